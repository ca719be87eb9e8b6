//! The appliers of `[log]` and `[auth]`. Others lie beside what they change.

use async_trait::async_trait;

use super::{Applier, Prepared};
use crate::config::Config;
use crate::keys::ApiKeys;
use crate::logging::{self, LogControl};
use crate::node::Node;

/// `[log]`: a filter that an operator asked for in between ends with the reload; the file is what counts.
pub struct LogApplier(pub LogControl);

#[async_trait]
impl Applier for LogApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["log"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let (log, control) = (new.log, self.0.clone());
        let (former, filter) = (control.filter(), logging::filter_of_level(log.level));
        let changes = if former == filter { Vec::new() } else { vec![format!("log filter {filter:?}, formerly {former:?}")] };
        Ok(Prepared::new(changes, async move {
            control.set_format(log.format);
            control.set_filter(filter).expect("a level is a filter");
        }))
    }
}

/// `[auth]` and the keys file. A key that is gone signs no further join; who has joined with it stays.
pub struct AuthApplier(pub Node);

#[async_trait]
impl Applier for AuthApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["auth"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let node = self.0.clone();
        let (old, new) = (node.keys(), ApiKeys::from_config(&new.auth).map_err(|error| error.to_string())?);
        if old.drawn() && new.drawn() {
            // No key is configured, as before: the drawn one lives as long as the process.
            return Ok(Prepared::new(Vec::new(), async {}));
        }
        Ok(Prepared::new(differences(&old, &new), async move { node.set_keys(new) }))
    }
}

fn differences(old: &ApiKeys, new: &ApiKeys) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, secret) in new.iter() {
        match old.secret(name) {
            None => lines.push(format!("API key {name} added")),
            Some(before) if before != secret.expose().as_bytes() => lines.push(format!("API key {name} has another secret")),
            Some(_) => {}
        }
    }
    lines.extend(old.iter().filter(|(name, _)| new.secret(name).is_none()).map(|(name, _)| format!("API key {name} removed")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthConfig;

    #[test]
    fn keys_are_told_by_name_and_never_by_secret() {
        let keys = |text: &str| {
            let auth: AuthConfig = toml::from_str(text).expect("it is right");
            ApiKeys::from_config(&auth).expect("no file is needed")
        };
        let (a, b) = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210");
        let old = keys(&format!("keys = {{ gone = \"{a}\", kept = \"{a}\", turned = \"{a}\" }}"));
        let new = keys(&format!("keys = {{ kept = \"{a}\", new = \"{a}\", turned = \"{b}\" }}"));
        assert_eq!(differences(&old, &new), ["API key new added", "API key turned has another secret", "API key gone removed"]);
    }
}
