//! Which keys differ between two config files by what they mean, not by how they are written.

use std::collections::BTreeSet;

use serde::Serialize;
use toml::{Table, Value};

use crate::config::Config;

/// The file of all defaults, which `tests/config.rs` holds to the reader.
const DEFAULTS: &str = include_str!("../../../config/pop.toml");

/// Longest value that is shown, in characters.
const SHOWN_LEN_MAX: usize = 200;

/// A key with another value than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// The value in force until now; never a secret.
    pub from: String,
    /// The value in the file; never a secret.
    pub to: String,
}

/// The keys whose values differ. Both tables are configs that were read without error.
pub(super) fn changes(old: &Table, new: &Table) -> Vec<Change> {
    let defaults: Table = DEFAULTS.parse().expect("tests/config.rs reads it too");
    let effective = |table: &Table| table.clone().try_into::<Config>().ok();
    let before = effective(old);
    let mut changes = Vec::new();
    for key in keys(old).union(&keys(new)) {
        if find(old, key) == find(new, key) {
            continue;
        }
        let mut trial = old.clone();
        take_key(&mut trial, new, key);
        // "60s" and "1m" are the same, and so are a default that is written and one that is not.
        if effective(&trial) != before {
            let shown = |table| show(key, find(table, key).or_else(|| find(&defaults, key)));
            changes.push(Change { key: key.clone(), from: shown(old), to: shown(new) });
        }
    }
    changes
}

/// Gives `key` of `to` the value that it has in `from`, or none.
pub(super) fn take_key(to: &mut Table, from: &Table, key: &str) {
    let value = find(from, key).cloned();
    let Some((section, name)) = key.split_once('.') else {
        match value {
            Some(value) => drop(to.insert(key.to_owned(), value)),
            None => drop(to.remove(key)),
        }
        return;
    };
    let section = to.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    match (section.as_table_mut(), value) {
        (Some(section), Some(value)) => drop(section.insert(name.to_owned(), value)),
        (Some(section), None) => drop(section.remove(name)),
        (None, _) => {}
    }
}

/// `section.key` of every section, and the name alone of what is no table.
fn keys(table: &Table) -> BTreeSet<String> {
    let of_section = |(section, value): (&String, &Value)| match value.as_table() {
        Some(keys) => keys.keys().map(|key| format!("{section}.{key}")).collect(),
        None => vec![section.clone()],
    };
    table.iter().flat_map(of_section).collect()
}

fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(key),
    }
}

/// A value for a log: no secret, no list of tables, no page of text.
fn show(key: &str, value: Option<&Value>) -> String {
    let is_secret = key == "auth.keys" || ["secret", "password", "pwd", "credential"].iter().any(|word| key.contains(word));
    match value {
        None => "none".to_owned(),
        Some(Value::Table(table)) => format!("{} entries", table.len()),
        Some(Value::Array(list)) if list.iter().any(Value::is_table) => format!("{} entries", list.len()),
        Some(_) if is_secret => "(secret)".to_owned(),
        Some(value) => {
            let text = value.to_string();
            match text.char_indices().nth(SHOWN_LEN_MAX) {
                Some((end, _)) => format!("{}..", &text[..end]),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, new: &str) -> Vec<String> {
        let parse = |text: &str| text.parse::<Table>().expect("it is TOML");
        changes(&parse(old), &parse(new)).into_iter().map(|change| format!("{}: {} -> {}", change.key, change.from, change.to)).collect()
    }

    #[test]
    fn a_key_changes_when_its_meaning_does() {
        assert_eq!(shown("", "[media]\nport = 20_000\n"), ["media.port: 10000 -> 20000"]);
        assert_eq!(shown("media.port = 1", ""), ["media.port: 1 -> 10000"]);
        assert_eq!(
            shown("log = { level = \"warn\" }\nmedia.port = 1", "[log]\nlevel = \"info\"\nformat = \"json\"\n[media]\nport = 1\n"),
            ["log.format: \"text\" -> \"json\"", "log.level: \"warn\" -> \"info\""]
        );
        for (old, new) in [
            ("", DEFAULTS),
            ("media.consent_timeout = \"60s\"", "[media]\nconsent_timeout = \"1m\"\n"),
            ("dataplane.cores = \"1-3\"", "dataplane.cores = \"3,2,1\""),
        ] {
            assert_eq!(shown(old, new), [""; 0], "{old:?} and {new:?} mean the same");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let (old, new) = ("one = \"0123456789abcdef0123456789abcdef\"", "one = \"fedcba9876543210fedcba9876543210\"");
        assert_eq!(shown(&format!("[auth.keys]\n{old}\n"), &format!("[auth.keys]\n{new}\n")), ["auth.keys: 1 entries -> 1 entries"]);
        assert_eq!(show("probe.password", Some(&"x".into())), "(secret)");
    }
}
