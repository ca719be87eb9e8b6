//! Typed values: each reader knows its bound and says it when the value is outside.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};

use super::{MEDIA_ADDRESSES_MAX, WORKERS_MAX};

/// The word that leaves a choice to the node.
pub(super) const AUTO: &str = "auto";

/// Shortest secret, in bytes: HS256 wants a key at least as long as its hash (RFC 7518 section 3.2).
pub(crate) const SECRET_LEN_MIN: usize = 32;

/// Longest secret and key name, in bytes.
pub(crate) const KEY_TEXT_LEN_MAX: usize = 256;

/// Keys of one node.
const KEYS_MAX: usize = 1_024;

/// STUN and TURN servers that clients are told of: each is a header field of every answer.
const ICE_SERVERS_MAX: usize = 16;

/// Highest core number that is taken: the kernel's own limit (`CONFIG_NR_CPUS`) on amd64.
const CORE_MAX: usize = 8_191;

/// `dataplane.cores`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// All but the first when there is more than one: the first is left to the control plane and the kernel.
    #[default]
    Auto,
    /// These, ascending, each once, 1 to [`WORKERS_MAX`] of them.
    List(Vec<usize>),
}

impl Cores {
    /// The cores to pin workers to, of those that this process may use; the error says what to change.
    pub fn choose(&self, available: &[usize]) -> Result<Vec<usize>, String> {
        match self {
            Cores::Auto => {
                let skipped = usize::from(available.len() > 1);
                Ok(available.iter().copied().skip(skipped).take(WORKERS_MAX).collect())
            }
            Cores::List(cores) => match cores.iter().find(|core| !available.contains(core)) {
                Some(core) => {
                    Err(format!("dataplane.cores names core {core}, which this process may not use: choose from {}", list(available)))
                }
                None => Ok(cores.clone()),
            },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == AUTO {
            return Some(Cores::Auto);
        }
        let mut cores = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (core_number(first)?, core_number(last)?);
            // Bounded before it is filled: "0-9999999999" must not take memory.
            if first > last || last - first >= WORKERS_MAX || cores.len() + (last - first) >= WORKERS_MAX {
                return None;
            }
            cores.extend(first..=last);
        }
        cores.sort_unstable();
        let named = cores.len();
        cores.dedup();
        (cores.len() == named).then_some(Cores::List(cores))
    }
}

fn core_number(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|core| digits && *core <= CORE_MAX)
}

/// `1, 2, 3` for a message.
fn list(numbers: &[usize]) -> String {
    let texts: Vec<String> = numbers.iter().map(usize::to_string).collect();
    texts.join(", ")
}

/// The base of every URL that the node hands out: `http://` or `https://`, a host and perhaps a port. No path: the node's own
/// paths and the `Location` of a resource begin at the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The URL, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
        let plain = text.len() <= 512 && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'<>?#\\@/".contains(&byte));
        (plain && !rest.is_empty() && !rest.starts_with(':')).then(|| Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for PublicUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a URL such as \"https://pop.example\", with nothing after host and port", Self::parse)
    }
}

/// A STUN or TURN server that clients are told of.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IceServer {
    /// `stun:`, `stuns:`, `turn:` or `turns:`, a host, perhaps a port and a transport (RFC 7064, RFC 7065).
    #[serde(deserialize_with = "ice_server_url")]
    pub url: String,
    /// Of TURN; with `credential`.
    #[serde(default, deserialize_with = "ice_server_text")]
    pub username: Option<String>,
    /// The password.
    #[serde(default, deserialize_with = "ice_server_text")]
    pub credential: Option<String>,
}

impl IceServer {
    /// A TURN server takes nobody without name and password, a STUN server asks for neither.
    fn is_complete(&self) -> bool {
        let is_turn = self.url.starts_with("turn");
        self.username.is_some() == is_turn && self.credential.is_some() == is_turn
    }
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IceServer({})", self.url)
    }
}

fn ice_server_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(deserializer, "a STUN or TURN URL such as \"turn:turn.example:3478?transport=udp\"", |value| {
        let (scheme, rest) = value.split_once(':')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-:[]?=_".contains(&b);
        let ok = matches!(scheme, "stun" | "stuns" | "turn" | "turns") && (1..=256).contains(&rest.len()) && rest.bytes().all(plain);
        ok.then(|| value.to_owned())
    })
}

fn ice_server_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = String::deserialize(deserializer)?;
    let ok = (1..=256).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    // Without the value: it may be a password, and the sentence goes to the log.
    if ok { Ok(Some(value)) } else { Err(de::Error::custom("username and credential must be 1 to 256 visible ASCII characters")) }
}

/// Up to [`ICE_SERVERS_MAX`] servers, each whole.
pub(super) fn ice_servers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IceServer>, D::Error> {
    let servers = Vec::<IceServer>::deserialize(deserializer)?;
    if servers.len() > ICE_SERVERS_MAX {
        return Err(de::Error::custom(format!("ice_servers must be at most {ICE_SERVERS_MAX} servers, not {}", servers.len())));
    }
    match servers.iter().find(|server| !server.is_complete()) {
        Some(server) => Err(de::Error::custom(format!(
            "ice_servers: {} needs username and credential if it is TURN, and neither if it is STUN",
            server.url
        ))),
        None => Ok(servers),
    }
}

/// A key's secret. Never shown: not in errors, not in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Checks the length: 32 to 256 bytes.
    pub fn new(text: &str) -> Result<Self, String> {
        match text.len() {
            SECRET_LEN_MIN..=KEY_TEXT_LEN_MAX => Ok(Self(text.into())),
            len => Err(format!("a secret of {SECRET_LEN_MIN} to {KEY_TEXT_LEN_MAX} bytes, not one of {len}")),
        }
    }

    /// The secret itself, for the signer.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretVisitor;
        impl Visitor<'_> for SecretVisitor {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string of {SECRET_LEN_MIN} to {KEY_TEXT_LEN_MAX} bytes (draw one: openssl rand -base64 32)")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Secret, E> {
                let len = format!("one of {} bytes", value.len());
                Secret::new(value).map_err(|_| E::invalid_value(Unexpected::Other(&len), &self))
            }
        }
        deserializer.deserialize_str(SecretVisitor)
    }
}

/// `90s`, `15m`, `1h`, `500ms` or `2d`: digits and one unit, no sign, no fraction.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// A duration of `MIN_MS` to `MAX_MS` milliseconds.
pub(super) fn duration<'de, D: Deserializer<'de>, const MIN_MS: u64, const MAX_MS: u64>(deserializer: D) -> Result<Duration, D::Error> {
    let expected = format!("a duration from {} to {}, such as \"30s\"", show_ms(MIN_MS), show_ms(MAX_MS));
    let bounds = Duration::from_millis(MIN_MS)..=Duration::from_millis(MAX_MS);
    text(deserializer, &expected, |value| parse_duration(value).filter(|duration| bounds.contains(duration)))
}

fn show_ms(ms: u64) -> String {
    if ms.is_multiple_of(1_000) { format!("\"{}s\"", ms / 1_000) } else { format!("\"{ms}ms\"") }
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn bounded<'de, D: Deserializer<'de>, T: TryFrom<u64>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<T, D::Error> {
    whole_number::<D, T>(deserializer, &format!("a whole number from {MIN} to {MAX}"), |value| (MIN..=MAX).contains(&value))
}

/// A power of two from `MIN` to `MAX`.
pub(super) fn power_of_two<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<usize, D::Error> {
    let holds = |value: u64| (MIN..=MAX).contains(&value) && value.is_power_of_two();
    whole_number(deserializer, &format!("a power of two from {MIN} to {MAX}"), holds)
}

fn whole_number<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    deserializer: D,
    expected: &str,
    holds: impl Fn(u64) -> bool,
) -> Result<T, D::Error> {
    struct NumberVisitor<'a, T, F>(&'a str, F, PhantomData<T>);
    impl<T: TryFrom<u64>, F: Fn(u64) -> bool> Visitor<'_> for NumberVisitor<'_, T, F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            let number = u64::try_from(value).ok().filter(|number| self.1(*number)).and_then(|number| T::try_from(number).ok());
            number.ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            let number = Some(value).filter(|number| self.1(*number)).and_then(|number| T::try_from(number).ok());
            number.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
        }
    }
    deserializer.deserialize_i64(NumberVisitor(expected, holds, PhantomData))
}

/// A string that `parse` takes.
pub(super) fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct TextVisitor<'a, T, F>(&'a str, F, PhantomData<T>);
    impl<T, F: Fn(&str) -> Option<T>> Visitor<'_> for TextVisitor<'_, T, F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
            (self.1)(value).ok_or_else(|| E::invalid_value(Unexpected::Str(value), &self))
        }
    }
    deserializer.deserialize_str(TextVisitor(expected, parse, PhantomData))
}

pub(super) fn node_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(deserializer, "\"auto\" or 1 to 63 letters, digits, dots, hyphens and underscores", plain_name)
}

pub(super) fn pop_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(deserializer, "1 to 63 letters, digits, dots, hyphens and underscores", plain_name)
}

fn plain_name(value: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ((1..=63).contains(&value.len()) && value.chars().all(plain)).then(|| value.to_owned())
}

pub(super) fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(deserializer, "at most 63 characters of text", |value| {
        (value.chars().count() <= 63 && !value.chars().any(char::is_control)).then(|| value.to_owned())
    })
}

pub(super) fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    text(deserializer, "an address and a port, such as \"127.0.0.1:7880\" or \"[::1]:7880\"", |value| value.parse().ok())
}

pub(super) fn cores<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cores, D::Error> {
    let expected = format!("\"auto\" or 1 to {WORKERS_MAX} core numbers, each once, such as \"1-3,5\"");
    text(deserializer, &expected, Cores::parse)
}

pub(super) fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    text(deserializer, "the path of a file", |value| path(value).map(Some))
}

pub(super) fn path_or_auto<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    // A unix socket's name has 108 bytes in the kernel's structure, the closing zero included.
    text(deserializer, "\"auto\" or a path of at most 107 bytes", |value| match value {
        AUTO => Some(None),
        value if value.len() > 107 => None,
        value => path(value).map(Some),
    })
}

pub(super) fn folder_or_auto<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    text(deserializer, "\"auto\" or the path of a folder that starts with /", |value| match value {
        AUTO => Some(None),
        value => path(value).filter(|folder| folder.is_absolute()).map(Some),
    })
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
}

/// At most [`MEDIA_ADDRESSES_MAX`] different addresses that a packet can be sent from: no wildcard, no multicast.
pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    struct Address(IpAddr);
    impl<'de> Deserialize<'de> for Address {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            text(deserializer, "one IP address (no wildcard, no multicast, no port), such as \"192.0.2.1\"", |value| {
                let address: IpAddr = value.parse().ok()?;
                (!address.is_unspecified() && !address.is_multicast()).then_some(Address(address))
            })
        }
    }
    struct AddressesVisitor;
    impl<'de> Visitor<'de> for AddressesVisitor {
        type Value = Vec<IpAddr>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MEDIA_ADDRESSES_MAX} IP addresses, each once")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<IpAddr>, A::Error> {
            let mut addresses = Vec::new();
            while let Some(Address(address)) = seq.next_element()? {
                if addresses.contains(&address) {
                    return Err(de::Error::invalid_value(Unexpected::Other(&format!("{address} twice")), &self));
                }
                if addresses.len() == MEDIA_ADDRESSES_MAX {
                    return Err(de::Error::invalid_value(Unexpected::Other("more"), &self));
                }
                addresses.push(address);
            }
            Ok(addresses)
        }
    }
    deserializer.deserialize_seq(AddressesVisitor)
}

/// At most [`MEDIA_ADDRESSES_MAX`] addresses that neighbours of one link can be told of.
pub(super) fn service_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let addresses = addresses(deserializer)?;
    let is_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_broadcast() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    match addresses.iter().find(|address| is_local(address)) {
        Some(address) => Err(de::Error::custom(format!("{address} is no address that clients could reach at one node after the other"))),
        None => Ok(addresses),
    }
}

/// `name = "secret"` pairs.
pub(crate) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Secret>, D::Error> {
    struct KeysVisitor;
    impl<'de> Visitor<'de> for KeysVisitor {
        type Value = BTreeMap<String, Secret>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {KEYS_MAX} lines of the form name = \"secret\", the name 1 to {KEY_TEXT_LEN_MAX} bytes")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut keys = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                if !(1..=KEY_TEXT_LEN_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
                    return Err(de::Error::invalid_value(Unexpected::Other("a name that is empty, too long or not text"), &self));
                }
                if keys.len() == KEYS_MAX {
                    return Err(de::Error::invalid_value(Unexpected::Other("more"), &self));
                }
                keys.insert(name, map.next_value()?);
            }
            Ok(keys)
        }
    }
    deserializer.deserialize_map(KeysVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_list_is_bounded_sorted_and_free_of_doubles() {
        assert_eq!(Cores::parse("auto"), Some(Cores::Auto));
        assert_eq!(Cores::parse("5, 1-3"), Some(Cores::List(vec![1, 2, 3, 5])));
        for bad in ["", ",", "1,", "3-1", "1,1", "1-3,2", "-1", "+1", "a", "0-9999999999", "0-256", "9000", "1-2-3"] {
            assert_eq!(Cores::parse(bad), None, "{bad:?} was accepted");
        }
        assert!(matches!(Cores::parse("0-255"), Some(Cores::List(cores)) if cores.len() == WORKERS_MAX));
    }

    #[test]
    fn auto_leaves_the_first_core_to_the_control_plane() {
        assert_eq!(Cores::Auto.choose(&[0, 1, 2]), Ok(vec![1, 2]));
        assert_eq!(Cores::Auto.choose(&[4]), Ok(vec![4]));
        let missing = Cores::List(vec![7]).choose(&[0, 1]).expect_err("there is no core 7");
        assert!(missing.ends_with("choose from 0, 1"), "{missing}");
    }

    #[test]
    fn a_duration_is_digits_and_a_unit() {
        assert_eq!(parse_duration("60s"), Some(Duration::from_secs(60)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3_600)));
        for bad in ["", "s", "60", "-1s", "1.5s", "1 s", "1w", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse_duration(bad), None, "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_public_url_has_a_scheme_and_a_host() {
        assert_eq!(PublicUrl::parse("https://pop.example/").map(|url| url.0), Some("https://pop.example".to_owned()));
        for bad in [
            "pop.example",
            "ftp://x",
            "https://",
            "https:///x",
            "http://:80",
            "https://a b",
            "https://u@h",
            "https://a?b",
            "https://a/b",
            "https://a//",
        ] {
            assert_eq!(PublicUrl::parse(bad), None, "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new(&"s".repeat(32)).expect("32 bytes are enough");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(Secret::new(&"s".repeat(31)).is_err());
    }
}
