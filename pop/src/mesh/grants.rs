//! Which API keys a node's certificate lets its PoP use (DESIGN 8, Trust): what the operator's CA has not signed is not granted.
//!
//! ```text
//! --api-keys list   room-a,call%2C2   *          % and two hexadecimal digits are that byte
//! SAN URI           urn:pop:api-key:room-a ..    urn:pop:api-key:*   all
//! ```
//! A URN stands in every tool that shows a certificate, no TLS library minds it, and it needs no OID of our own. All but letters, digits and
//! `-._~` is percent-encoded in it (RFC 8141 section 2), so `*` alone is all, and the id `*` is `%2A`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use x509_parser::extensions::GeneralName;

use crate::config::KEY_TEXT_LEN_MAX;

/// Before each id. RFC 8141 section 3 compares the rest of a URN byte by byte.
const PREFIX: &str = "urn:pop:api-key:";

/// All ids, in a certificate and in a list.
const ALL: &str = "*";

/// Ids in one certificate.
pub const GRANTS_MAX: usize = 256;

/// All of a certificate's URIs, in bytes. A chain has to fit into one TLS message of 64 KiB, and to be read before anybody is believed.
const URIS_LEN_MAX: usize = 32 << 10;

/// Longest certificate that is read, in bytes: of that TLS message.
const CERTIFICATE_LEN_MAX: usize = 64 << 10;

/// Ids that a line of the log names.
const SHOWN_MAX: usize = 8;

/// The API key ids that somebody may use. Cheap to clone; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    has_all: bool,
    /// Empty for who has all.
    keys: Arc<BTreeSet<String>>,
}

impl Grants {
    /// No key.
    pub fn none() -> Grants {
        Grants::default()
    }

    /// Each key that there is or will be.
    pub fn all() -> Grants {
        Grants { has_all: true, keys: Arc::default() }
    }

    /// The keys with these ids, read as they are: `*` is an id like any other.
    pub fn of<'a>(ids: impl IntoIterator<Item = &'a str>) -> Grants {
        Grants { has_all: false, keys: Arc::new(ids.into_iter().map(str::to_owned).collect()) }
    }

    /// What a certificate (DER) grants, whoever has signed it. A name that cannot be read grants nothing, and neither does a certificate
    /// that cannot, or that has more names than [`Grants::uris`] makes.
    pub fn of_certificate(der: &[u8]) -> Grants {
        Grants::read(der).unwrap_or_default()
    }

    fn read(der: &[u8]) -> Option<Grants> {
        if der.len() > CERTIFICATE_LEN_MAX {
            return None;
        }
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten()?;
        let names = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(PREFIX),
            _ => None,
        });
        let names: Vec<&str> = names.take(GRANTS_MAX + 1).collect();
        if names.len() > GRANTS_MAX {
            return None;
        }
        if names.contains(&ALL) {
            return Some(Grants::all());
        }
        let keys = names.into_iter().filter(|name| name.bytes().all(is_urn)).filter_map(|name| decode(name).ok());
        Some(Grants { has_all: false, keys: Arc::new(keys.collect()) })
    }

    /// Those of a list as an operator writes it: ids, or `*` alone for all. What a list cannot hold is percent-encoded: a comma is `%2C`, a
    /// percent sign `%25`, and the id `*` is `%2A`.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Grants, String> {
        let words: Vec<&str> = list.into_iter().collect();
        if words == [ALL] {
            return Ok(Grants::all());
        }
        if words.contains(&ALL) {
            return Err("* is all API keys: give it alone, or write the id * as %2A".to_owned());
        }
        let keys = words.into_iter().map(|word| decode(word).map_err(|what| format!("{word:?} is no id of an API key: {what}")));
        let grants = Grants { has_all: false, keys: Arc::new(keys.collect::<Result<_, _>>()?) };
        grants.uris().map(|_| grants)
    }

    /// What goes into a certificate, one name for each id.
    ///
    /// # Errors
    ///
    /// A sentence that says why it does not fit.
    pub fn uris(&self) -> Result<Vec<String>, String> {
        if self.has_all {
            return Ok(vec![format!("{PREFIX}{ALL}")]);
        }
        if self.keys.len() > GRANTS_MAX {
            return Err(format!("a certificate holds at most {GRANTS_MAX} API keys, not {}: give fewer, or '*' for all", self.keys.len()));
        }
        if let Some((key, what)) = self.keys.iter().find_map(|key| Some((key, check(key).err()?))) {
            return Err(format!("{key:?} is no id of an API key: {what}"));
        }
        let uris: Vec<String> = self.keys.iter().map(|key| format!("{PREFIX}{}", encode(key, is_unreserved))).collect();
        match uris.iter().map(String::len).sum() {
            0..=URIS_LEN_MAX => Ok(uris),
            len => {
                Err(format!("a certificate holds {URIS_LEN_MAX} bytes of API keys, not {len}: give fewer or shorter ones, or '*' for all"))
            }
        }
    }

    /// Whether the key with this id is among them.
    pub fn holds(&self, key: &str) -> bool {
        self.has_all || self.keys.contains(key)
    }

    /// Whether all keys of `others` are among them.
    pub fn covers(&self, others: &Grants) -> bool {
        self.has_all || !others.has_all && others.keys.is_subset(&self.keys)
    }

    /// As [`Grants::parse`] takes them.
    pub fn list(&self) -> Vec<String> {
        if self.has_all {
            return vec![ALL.to_owned()];
        }
        let shown = |key: &String| if key == ALL { "%2A".to_owned() } else { encode(key, |byte| !matches!(byte, b'%' | b',')) };
        self.keys.iter().map(shown).collect()
    }
}

/// For a line of a log: `none`, `*`, or the first ids.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list();
        if list.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&list[..list.len().min(SHOWN_MAX)].join(","))?;
        match list.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What a config takes as the name of a key.
fn check(key: &str) -> Result<(), &'static str> {
    match key.len() {
        0 => Err("it is empty"),
        1..=KEY_TEXT_LEN_MAX if key.chars().any(char::is_control) => Err("it has control characters"),
        1..=KEY_TEXT_LEN_MAX => Ok(()),
        _ => Err("it is longer than 256 bytes"),
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What may stand in a URN's last part (RFC 8141 section 2: pchar and `/`).
fn is_urn(byte: u8) -> bool {
    is_unreserved(byte) || b"%!$&'()*+,;=:@/".contains(&byte)
}

fn encode(key: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let mut text = Vec::with_capacity(key.len());
    for byte in key.bytes() {
        if is_plain(byte) {
            text.push(byte);
        } else {
            text.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    String::from_utf8(text).expect("whole characters are kept or become ASCII")
}

fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = text.bytes();
    let mut key = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            key.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err("write a percent sign as %25") };
        key.push((high << 4 | low) as u8);
    }
    let key = String::from_utf8(key).map_err(|_| "it is not UTF-8")?;
    check(&key).map(|()| key)
}

#[cfg(test)]
mod tests {
    use rcgen::SanType;

    use super::*;

    fn certificate(uris: &[String]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["a1.fra.pop.internal".to_owned()]).expect("a name");
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII"))));
        params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }

    fn read(uris: &[&str]) -> Grants {
        Grants::of_certificate(&certificate(&uris.iter().map(|uri| (*uri).to_owned()).collect::<Vec<_>>()))
    }

    #[test]
    fn a_certificate_grants_the_keys_that_were_signed_and_no_other() {
        let odd = ["plain", "*", "%2A", "a,b", "a b", "ä/ö:?#[]@", "%", "urn:pop:api-key:x", "日本", "\"", "\u{a0}"];
        let grants = Grants::of(odd);
        let read = Grants::of_certificate(&certificate(&grants.uris().expect("they fit")));
        assert_eq!(read, grants);
        assert!(odd.iter().all(|key| read.holds(key)) && !["", "Plain", "a", "x", "**"].iter().any(|key| read.holds(key)));
        let list = read.list();
        assert_eq!(Grants::parse(list.iter().map(String::as_str)), Ok(read));
        let all = Grants::of_certificate(&certificate(&Grants::all().uris().expect("one")));
        assert!(all == Grants::all() && all.holds("plain") && all.holds("*") && all != Grants::of(["*"]));
        let none = Grants::of_certificate(&certificate(&Grants::none().uris().expect("none")));
        assert!(none == Grants::none() && !none.holds("plain") && !none.holds("*"));
    }

    #[test]
    fn who_covers_others_holds_each_key_of_theirs() {
        let (few, more) = (Grants::of(["a"]), Grants::of(["a", "b"]));
        assert!(more.covers(&few) && more.covers(&more) && !few.covers(&more));
        assert!(Grants::all().covers(&more) && Grants::all().covers(&Grants::all()));
        assert!(!more.covers(&Grants::all()), "it holds those that there will be, too");
        assert!(few.covers(&Grants::none()) && !Grants::none().covers(&few));
    }

    #[test]
    fn what_cannot_be_read_grants_nothing() {
        assert_eq!(Grants::of_certificate(b"nothing"), Grants::none());
        assert_eq!(Grants::of_certificate(&[]), Grants::none());
        let long = format!("{PREFIX}{}", "a".repeat(KEY_TEXT_LEN_MAX + 1));
        let wrong =
            ["", "%", "%2", "%2x", "%+1", "%FF", "%00", "a%0A", "a b", "a?b", "a#b", "\"", "a%"].map(|text| format!("{PREFIX}{text}"));
        for uri in wrong.iter().chain([&long]) {
            assert_eq!(read(&[uri]), Grants::none(), "{uri}");
            assert_eq!(read(&[uri, "urn:pop:api-key:good"]), Grants::of(["good"]), "{uri}");
        }
        let foreign =
            ["https://a", "urn:pop:api-keys:a", "urn:other:api-key:a", "urn:pop:api-key", "URN:POP:API-KEY:a", "x urn:pop:api-key:*"];
        assert_eq!(read(&foreign), Grants::none());
        let whole = certificate(&[format!("{PREFIX}a"), format!("{PREFIX}*")]);
        assert_eq!(Grants::of_certificate(&whole), Grants::all());
        assert!((0..whole.len()).all(|len| Grants::of_certificate(&whole[..len]) == Grants::none()), "a part is none");
        let many = |count: usize| certificate(&(0..count).map(|n| format!("{PREFIX}{n}")).collect::<Vec<_>>());
        assert!(Grants::of_certificate(&many(GRANTS_MAX)).holds("255"));
        assert_eq!(Grants::of_certificate(&many(GRANTS_MAX + 1)), Grants::none());
        let large = certificate(&vec![format!("{PREFIX}{}", "a".repeat(KEY_TEXT_LEN_MAX)); GRANTS_MAX]);
        assert!(large.len() > CERTIFICATE_LEN_MAX && Grants::of_certificate(&large) == Grants::none());
    }

    #[test]
    fn damage_anywhere_in_a_certificate_panics_nowhere() {
        let whole = certificate(&[format!("{PREFIX}key"), format!("{PREFIX}%E2%82%AC")]);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                assert!(!Grants::of_certificate(&damaged).has_all, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_list_is_read_within_its_bounds() {
        assert_eq!(Grants::parse(["a", "b", "a"]), Ok(Grants::of(["a", "b"])));
        assert_eq!(Grants::parse(["*"]), Ok(Grants::all()));
        assert_eq!(Grants::parse(["%2a", "a%2Cb", "50%25"]), Ok(Grants::of(["*", "a,b", "50%"])));
        let long = "ä".repeat(KEY_TEXT_LEN_MAX / 2);
        assert_eq!(Grants::parse([&*long]), Ok(Grants::of([&*long])));
        let wrong = [("", "empty"), ("50%", "%25"), ("%ff", "UTF-8"), ("a\nb", "control"), (&*(long.clone() + "a"), "256 bytes")];
        for (word, sentence) in wrong {
            let error = Grants::parse(["a", word]).expect_err(word);
            assert!(error.contains(sentence), "{error}");
        }
        assert!(Grants::parse(["a", "*"]).is_err_and(|error| error.contains("alone")));
        let ids: Vec<String> = (0..=GRANTS_MAX).map(|n| n.to_string()).collect();
        assert!(Grants::parse(ids[1..].iter().map(String::as_str)).is_ok());
        let error = Grants::parse(ids.iter().map(String::as_str)).expect_err("one too many");
        assert!(error.contains("at most 256 API keys, not 257"), "{error}");
        let ids: Vec<String> = (0..60).map(|n| format!("{n:02}{}", "ä".repeat(127))).collect();
        assert!(Grants::parse(ids[..41].iter().map(String::as_str)).is_ok());
        assert!(Grants::parse(ids.iter().map(String::as_str)).is_err_and(|error| error.contains("32768 bytes")));
        // What is not of a list has the same bounds.
        assert!(Grants::of([""]).uris().is_err() && Grants::of(["a\u{7f}"]).uris().is_err());
    }

    #[test]
    fn a_line_of_the_log_names_the_first() {
        assert_eq!([Grants::none(), Grants::all(), Grants::of(["*", "b,c"])].map(|grants| grants.to_string()), ["none", "*", "%2A,b%2Cc"]);
        let ids: Vec<String> = (10..30).map(|n| n.to_string()).collect();
        assert_eq!(Grants::of(ids.iter().map(String::as_str)).to_string(), "10,11,12,13,14,15,16,17 and 12 more");
    }
}
