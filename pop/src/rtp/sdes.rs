//! SDES keys (RFC 4568): one key for both directions of a route.
//!
//! Both ends protect what they send under it. That is sound because SSRCs differ: what leaves the node has SSRCs drawn anew at
//! each start, and a packet that comes under one of them is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pop_proto::control::{MasterKey, SrtpKeys};

use crate::config::{SdesKey, Suite};

/// A suite with its key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Crypto {
    suite: Suite,
    key: SdesKey,
}

impl Crypto {
    /// Checks the key's length; the error says what the suite needs and never shows the key.
    pub(super) fn new(suite: Suite, key: SdesKey) -> Result<Self, String> {
        let (needed, has) = (key_len(suite), key.expose().len());
        if has != needed {
            let (key_len, salt_len) = (suite.0.key_len(), suite.0.salt_len());
            return Err(format!(
                "a key of {} is base64 of {key_len} bytes of key and {salt_len} of salt, not of {has} bytes",
                suite.name()
            ));
        }
        Ok(Self { suite, key })
    }

    /// With a key that `fill` draws.
    pub(super) fn draw(suite: Suite, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = vec![0; key_len(suite)];
        fill(&mut bytes);
        Self { suite, key: SdesKey::new(&bytes) }
    }

    pub(super) fn suite(&self) -> Suite {
        self.suite
    }

    /// The value of `a=crypto`.
    pub(super) fn attribute(&self) -> String {
        format!("1 {} inline:{}", self.suite.name(), STANDARD.encode(self.key.expose()))
    }

    /// For the worker.
    pub(super) fn keys(&self) -> SrtpKeys {
        let (key, salt) = self.key.expose().split_at(self.suite.0.key_len());
        let mut master = MasterKey { key: [0; 32], salt: [0; 14] };
        master.key[..key.len()].copy_from_slice(key);
        master.salt[..salt.len()].copy_from_slice(salt);
        SrtpKeys { profile: self.suite.0, local: master.clone(), remote: master }
    }
}

fn key_len(suite: Suite) -> usize {
    suite.0.key_len() + suite.0.salt_len()
}

#[cfg(test)]
mod tests {
    use pop_proto::control::SrtpProfile;

    use super::*;

    #[test]
    fn a_key_has_the_length_of_its_suite_and_is_split_into_key_and_salt() {
        for (profile, len) in [(SrtpProfile::Aes128CmSha1_80, 30), (SrtpProfile::AeadAes128Gcm, 28), (SrtpProfile::AeadAes256Gcm, 44)] {
            let bytes: Vec<u8> = (0..len).collect();
            let crypto = Crypto::new(Suite(profile), SdesKey::new(&bytes)).expect("it fits");
            let keys = crypto.keys();
            assert_eq!(keys.local.key[..profile.key_len()], bytes[..profile.key_len()]);
            assert_eq!(keys.remote.salt[..profile.salt_len()], bytes[profile.key_len()..]);
            let drawn = Crypto::draw(Suite(profile), |out| out.copy_from_slice(&bytes));
            assert!(drawn == crypto && crypto.attribute().ends_with(&STANDARD.encode(&bytes)));
            let refused = Crypto::new(Suite(profile), SdesKey::new(&bytes[1..])).err().expect("a byte is missing");
            assert!(refused.contains(&format!("not of {} bytes", len - 1)), "{refused}");
        }
    }

    /// RFC 4568 section 6.1's example, without its lifetime and MKI.
    #[test]
    fn the_example_of_rfc_4568_comes_back_as_it_is_written() {
        let inline = "d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj";
        let key = SdesKey::new(&STANDARD.decode(inline).expect("base64"));
        let crypto = Crypto::new(Suite(SrtpProfile::Aes128CmSha1_80), key).expect("30 bytes");
        assert_eq!(crypto.attribute(), format!("1 AES_CM_128_HMAC_SHA1_80 inline:{inline}"));
    }
}
