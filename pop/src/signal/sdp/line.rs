//! A line of SDP: bounded, without control characters, `letter=value`.

use std::borrow::Cow;

use pop_proto::control::ICE_TEXT_LEN_MAX;

use super::SdpError;

/// Longest line, in bytes. The longest seen is an `a=fmtp` with H.264 parameter sets, below 1 KiB.
const LINE_LEN_MAX: usize = 4_096;

/// One line: its number, the letter before `=`, and the rest.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    pub(super) letter: char,
    pub(super) value: &'a str,
}

impl<'a> Line<'a> {
    /// `None` for an empty line, which some clients put between sections.
    pub(super) fn read(number: usize, text: &'a str) -> Result<Option<Line<'a>>, SdpError> {
        let error = |reason| SdpError { line: number, field: Cow::Borrowed("the line"), reason };
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > LINE_LEN_MAX {
            return Err(error("is longer than 4096 bytes"));
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(error("holds a control character"));
        }
        match (text.chars().next(), text.get(1..2)) {
            (Some(letter), Some("=")) if letter.is_ascii_lowercase() => Ok(Some(Line { number, letter, value: &text[2..] })),
            _ => Err(error("is not a letter, '=' and a value")),
        }
    }

    pub(super) fn error(&self, reason: &'static str) -> SdpError {
        let field = match self.letter {
            'a' => Cow::Owned(format!("a={}", self.attribute().0.chars().take(32).collect::<String>())),
            letter => Cow::Owned(format!("{letter}=")),
        };
        SdpError { line: self.number, field, reason }
    }

    /// Name and value of `a=name:value`.
    pub(super) fn attribute(&self) -> (&'a str, &'a str) {
        self.value.split_once(':').unwrap_or((self.value, ""))
    }

    /// The value of an `a=ice-ufrag`.
    pub(super) fn ufrag(&self) -> Result<&'a str, SdpError> {
        self.ice_text(4, "is not 4 to 256 letters, digits, '+' or '/'")
    }

    /// The value of an `a=ice-pwd`.
    pub(super) fn pwd(&self) -> Result<&'a str, SdpError> {
        self.ice_text(22, "is not 22 to 256 letters, digits, '+' or '/'")
    }

    /// RFC 8839 section 5.4: ice-char is a letter, a digit, '+' or '/'. Some clients use base64url, so '-', '_' and '=' are taken;
    /// a colon never is, because it separates the two halves of a check's user name.
    fn ice_text(&self, len_min: usize, reason: &'static str) -> Result<&'a str, SdpError> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b);
        let (_, value) = self.attribute();
        if value.len() < len_min || value.len() > ICE_TEXT_LEN_MAX || !value.bytes().all(ok) {
            return Err(self.error(reason));
        }
        Ok(value)
    }
}
