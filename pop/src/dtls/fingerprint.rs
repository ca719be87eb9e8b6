//! The certificate fingerprint of SDP (RFC 8122 section 5).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;

/// Longest `a=fingerprint` value that is read, in bytes: `sha-512` and 64 bytes in hex need 199.
const ATTRIBUTE_LEN_MAX: usize = 256;

/// The hash of a certificate, as SDP carries it.
///
/// `Display` prints the bytes alone (`AB:CD:..`); [`Fingerprint::attribute`] is the whole value of the SDP attribute, which
/// `FromStr` reads.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    function: HashFunction,
    bytes: Vec<u8>,
}

impl Fingerprint {
    /// SHA-256 of a DER certificate.
    pub(super) fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint::with(HashFunction::Sha256, certificate)
    }

    fn with(function: HashFunction, certificate: &[u8]) -> Fingerprint {
        Fingerprint { function, bytes: digest::digest(function.algorithm(), certificate).as_ref().to_vec() }
    }

    /// `sha-256`, `sha-384` or `sha-512`.
    pub fn hash_name(&self) -> &'static str {
        self.function.name()
    }

    /// The value of `a=fingerprint`: `sha-256 AB:CD:..`.
    pub fn attribute(&self) -> String {
        format!("{} {self}", self.hash_name())
    }

    /// The fingerprint among `expected` that is this certificate's.
    ///
    /// Only those of the strongest function count: RFC 8122 section 5.1, "an endpoint MUST select the set of fingerprints that
    /// use the most preferred hash function".
    pub(super) fn find(expected: &[Fingerprint], certificate: &[u8]) -> Option<Fingerprint> {
        let strongest = expected.iter().map(|f| f.function).max()?;
        let own = Fingerprint::with(strongest, certificate);
        expected.contains(&own).then_some(own)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.bytes.iter().enumerate() {
            write!(f, "{}{byte:02X}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.attribute())
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(attribute: &str) -> Result<Fingerprint, FingerprintError> {
        if attribute.len() > ATTRIBUTE_LEN_MAX {
            return Err(FingerprintError::TooLong);
        }
        let (name, hex) = attribute.trim().split_once(' ').ok_or(FingerprintError::Malformed)?;
        let function = HashFunction::from_name(name).ok_or(FingerprintError::Function)?;
        let bytes = hex.trim_start().split(':').map(parse_hex_byte).collect::<Option<Vec<u8>>>().ok_or(FingerprintError::Malformed)?;
        if bytes.len() != function.algorithm().output_len() {
            return Err(FingerprintError::Malformed);
        }
        Ok(Fingerprint { function, bytes })
    }
}

/// Why an `a=fingerprint` value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FingerprintError {
    /// Longer than any that is known.
    #[error("a=fingerprint is longer than {ATTRIBUTE_LEN_MAX} bytes")]
    TooLong,
    /// Not `function XX:XX:..` with as many bytes as the function has.
    #[error("a=fingerprint is not a hash function and its bytes in hex, separated by colons")]
    Malformed,
    /// MD5, SHA-1 and what is unknown: too weak to carry the trust in the media.
    #[error("a=fingerprint must use sha-256, sha-384 or sha-512")]
    Function,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum HashFunction {
    Sha256,
    Sha384,
    Sha512,
}

impl HashFunction {
    /// RFC 8122 section 5: "hash-func ... are case-insensitive" (the grammar's strings are).
    fn from_name(name: &str) -> Option<HashFunction> {
        [HashFunction::Sha256, HashFunction::Sha384, HashFunction::Sha512].into_iter().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    const fn name(self) -> &'static str {
        match self {
            HashFunction::Sha256 => "sha-256",
            HashFunction::Sha384 => "sha-384",
            HashFunction::Sha512 => "sha-512",
        }
    }

    fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            HashFunction::Sha256 => &digest::SHA256,
            HashFunction::Sha384 => &digest::SHA384,
            HashFunction::Sha512 => &digest::SHA512,
        }
    }
}

fn parse_hex_byte(text: &str) -> Option<u8> {
    let both = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    both.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, FingerprintError};

    #[test]
    fn an_attribute_reads_back_as_written() {
        for function in ["sha-256", "SHA-256"] {
            let own = Fingerprint::of(b"certificate");
            let read: Fingerprint = format!("{function} {own}").to_lowercase().parse().unwrap();
            assert_eq!(read, own);
            assert_eq!(read.attribute().parse(), Ok(own));
        }
    }

    #[test]
    fn weak_short_long_and_odd_attributes_are_refused() {
        let own = Fingerprint::of(b"certificate").to_string();
        let cases = [
            (format!("sha-1 {}", &own[..59]), FingerprintError::Function),
            (format!("md5 {}", &own[..47]), FingerprintError::Function),
            (format!("sha-256 {}", &own[..92]), FingerprintError::Malformed),
            (format!("sha-256 {own}:00"), FingerprintError::Malformed),
            (format!("sha-384 {own}"), FingerprintError::Malformed),
            (format!("sha-256 {}", own.replace(':', "")), FingerprintError::Malformed),
            (format!("sha-256 +{}", &own[1..]), FingerprintError::Malformed),
            (own.clone(), FingerprintError::Malformed),
            (String::new(), FingerprintError::Malformed),
            ("x".repeat(300), FingerprintError::TooLong),
        ];
        for (attribute, error) in cases {
            assert_eq!(attribute.parse::<Fingerprint>(), Err(error), "{attribute}");
        }
    }

    #[test]
    fn only_the_strongest_function_counts() {
        let strong = Fingerprint::with(super::HashFunction::Sha512, b"certificate");
        let weak = Fingerprint::of(b"certificate");
        let other = Fingerprint::with(super::HashFunction::Sha512, b"other");
        assert_eq!(Fingerprint::find(&[weak.clone(), strong.clone()], b"certificate"), Some(strong));
        assert_eq!(Fingerprint::find(&[weak.clone(), other.clone()], b"certificate"), None);
        assert_eq!(Fingerprint::find(&[other], b"certificate"), None);
        assert_eq!(Fingerprint::find(&[], b"certificate"), None);
        assert!(Fingerprint::find(&[weak], b"certificate").is_some());
    }
}
