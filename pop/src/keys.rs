//! The API keys of this node: who may sign tokens.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::config::{AuthConfig, ConfigError, Secret, keys_of_table};

/// Key names with their secrets; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeys {
    keys: BTreeMap<String, Secret>,
    drawn: bool,
}

impl ApiKeys {
    /// The keys that `auth` names, or, when it names none, one drawn from the system's randomness that ends with the process.
    pub fn from_config(auth: &AuthConfig) -> Result<Self, ConfigError> {
        match &auth.keys_file {
            Some(file) => Self::load(file),
            None if auth.keys.is_empty() => Ok(Self::draw()),
            None => Ok(Self { keys: auth.keys.clone(), drawn: false }),
        }
    }

    /// Reads a file of `name = "secret"` lines. A file that everybody may read holds no secret: it is refused.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        use std::os::unix::fs::PermissionsExt;

        #[derive(Deserialize)]
        #[serde(transparent)]
        struct KeysFile(#[serde(deserialize_with = "keys_of_table")] BTreeMap<String, Secret>);

        let mode = std::fs::metadata(file).map_err(|e| ConfigError::unreadable(file, &e))?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(ConfigError::whole_file(file, format!("everybody may use this file of secrets: chmod 640 {}", file.display())));
        }
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError::unreadable(file, &e))?;
        let KeysFile(keys) = toml::from_str(&text).map_err(|e| ConfigError::from_toml(&text, file, &e))?;
        if keys.is_empty() {
            return Err(ConfigError::whole_file(file, "it holds no key: add a line such as name = \"secret\""));
        }
        Ok(Self { keys, drawn: false })
    }

    /// One key of 256 random bits that lives in memory only.
    pub fn draw() -> Self {
        let mut bytes = [0u8; 32];
        // aws-lc fails only when the kernel has no randomness at all; nothing can be signed or encrypted then.
        aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
        let secret = Secret::new(&URL_SAFE_NO_PAD.encode(bytes)).expect("43 characters are within the bounds of a secret");
        Self { keys: BTreeMap::from([("local".to_owned(), secret)]), drawn: true }
    }

    /// Whether the key was drawn at start, so that tokens end with the process.
    pub fn drawn(&self) -> bool {
        self.drawn
    }

    /// The key that this node signs its own tokens with: the first by name.
    pub fn signing(&self) -> (&str, &Secret) {
        let (name, secret) = self.keys.iter().next().expect("every way to make ApiKeys puts one in");
        (name, secret)
    }

    /// The secret of the key `name`, for checking a token that names it.
    pub fn secret(&self, name: &str) -> Option<&[u8]> {
        self.keys.get(name).map(|secret| secret.expose().as_bytes())
    }

    /// All names and secrets, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.keys.iter().map(|(name, secret)| (name.as_str(), secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_key_is_new_each_time() {
        let (first, second) = (ApiKeys::draw(), ApiKeys::draw());
        assert!(first.drawn());
        assert_ne!(first.signing().1, second.signing().1);
    }

    #[test]
    fn a_config_without_keys_draws_one() {
        let keys = ApiKeys::from_config(&AuthConfig::default()).expect("drawing needs no file");
        assert!(keys.drawn() && keys.iter().count() == 1);
    }
}
