//! What is wrong in the file, where, and what to change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A config file that cannot be used. Shown as `file:line:column: sentence`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    /// Line and column from 1, the column in characters; `None` when the file could not be read.
    place: Option<(usize, usize)>,
    message: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl ConfigError {
    /// Line and column, both from 1, when the fault is in the text.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.place
    }

    /// The file that is wrong: the config, or one that it names.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is wrong and what to change, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// `file` could not be read.
    pub(crate) fn unreadable(file: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file: check the path".to_owned(),
            io::ErrorKind::PermissionDenied => "this user may not read it: change its owner or mode".to_owned(),
            io::ErrorKind::InvalidData => "it is not UTF-8 text: save it as UTF-8".to_owned(),
            io::ErrorKind::IsADirectory => "it is a folder: name the file in it".to_owned(),
            _ => format!("it cannot be read: {error}"),
        };
        Self { file: file.to_owned(), place: None, message: advice }
    }

    /// A fault without a place in the text.
    pub(crate) fn whole_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), place: None, message: message.into() }
    }

    /// What the TOML reader or one of our typed values refused.
    pub(crate) fn from_toml(text: &str, file: &Path, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        Self { file: file.to_owned(), place: Some(place(text, start)), message: reword(error.message(), key_at(text, start)) }
    }

    /// A rule over several keys; points at `key` (`section.key`, with a number for one table of a list: `rtp.route.0.port`) where
    /// the text has it, or at the innermost part of it that is there, else at the top. A bare key is looked for in each section.
    pub(crate) fn at_key(text: &str, file: &Path, key: &str, message: String) -> Self {
        let parts: Vec<&str> = key.split('.').collect();
        let start = DeTable::parse(text).ok().and_then(|table| {
            let in_section = || table.get_ref().values().find_map(|section| find_value(section, &parts));
            find_key(table.get_ref(), &parts).or_else(in_section)
        });
        let start = start.unwrap_or(0);
        Self { file: file.to_owned(), place: Some(place(text, start)), message }
    }
}

/// Where a key begins, however it is written: below its section, dotted, or in an inline table.
fn find_key(table: &DeTable<'_>, parts: &[&str]) -> Option<usize> {
    let (first, rest) = parts.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    Some(find_value(value, rest).unwrap_or(key.span().start))
}

fn find_value(value: &Spanned<DeValue<'_>>, parts: &[&str]) -> Option<usize> {
    let (first, rest) = parts.split_first()?;
    match value.get_ref() {
        DeValue::Table(table) => find_key(table, parts),
        DeValue::Array(list) => {
            let entry = list.get(first.parse::<usize>().ok()?)?;
            Some(find_value(entry, rest).unwrap_or(entry.span().start))
        }
        _ => None,
    }
}

/// Line and column of byte `at`, from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

/// The key that the line of byte `at` assigns, if it is before `at`.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let at = at.min(text.len());
    let line_start = text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let (key, _) = text.get(line_start..at)?.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))).then_some(key)
}

/// serde's `invalid value: integer `0`, expected X` as a sentence that says what to write.
fn reword(message: &str, key: Option<&str>) -> String {
    let key = key.unwrap_or("this");
    let message = message.trim_end();
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return match rest.split_once(", expected ") {
            Some((name, known)) => format!("there is no key {name} here; known here: {}", known.trim_start_matches("one of ")),
            None => format!("there is no key {rest} here"),
        };
    }
    if let Some(rest) = message.strip_prefix("unknown variant ")
        && let Some((name, known)) = rest.split_once(", expected ")
    {
        return format!("{key} must be {known}, not {name}");
    }
    if message == "wanted string or table" {
        return format!("{key} must be a string");
    }
    for prefix in ["invalid value: ", "invalid type: ", "invalid length "] {
        if let Some((found, expected)) = message.strip_prefix(prefix).and_then(|rest| rest.rsplit_once(", expected ")) {
            return format!("{key} must be {expected}, not {found}");
        }
    }
    message.replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_counts_characters_not_bytes() {
        assert_eq!(place("a\nüü=1", 6), (2, 3));
        assert_eq!(place("", 9), (1, 1));
    }

    #[test]
    fn a_rules_key_is_found_however_it_is_written() {
        let text = "log = { level = \"info\", format = 'text' }\nmedia.port = 1\n[[rtp.route]]\nname = 'a'\n[[rtp.route]]\nname = 'level'\nport = 1\n[auth]\n";
        for (key, line, column) in [
            ("log.format", 1, 25),
            ("media.port", 2, 7),
            ("rtp.route.1.port", 7, 1),
            ("rtp.route.1.peer", 5, 1),
            ("auth.keys_file", 8, 2),
            ("http.listen", 1, 1),
        ] {
            let error = ConfigError::at_key(text, Path::new("f"), key, String::new());
            assert_eq!(error.place(), Some((line, column)), "{key}");
        }
    }

    #[test]
    fn serde_words_become_a_sentence() {
        assert_eq!(reword("invalid value: integer `0`, expected 1 to 5", Some("trains")), "trains must be 1 to 5, not integer `0`");
        assert_eq!(reword("unknown field `x`, expected one of `a`, `b`", None), "there is no key `x` here; known here: `a`, `b`");
        assert_eq!(reword("unknown variant `x`, expected `a` or `b`", Some("k")), "k must be `a` or `b`, not `x`");
    }
}
