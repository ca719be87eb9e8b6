//! The shape of protobuf, and of JSON, before the library's parser: how many fields there are at all levels. The library makes a
//! struct of some hundred bytes of each empty message of two, so what is allowed is bounded by fields and not by bytes alone.

/// Most fields of one message and all that is inside. A resume that tells of a thousand tracks has three thousand.
pub(super) const FIELDS_MAX: usize = 8_192;

/// Deepest nesting that is looked into: the room protocol's requests have four levels.
const DEPTH_MAX: usize = 6;

/// Deepest nesting of JSON, where a list is a level of its own: a resume that tells of tracks, their codecs and the layers of these
/// has nine.
const JSON_DEPTH_MAX: usize = 12;

/// `bytes` is a sequence of fields, and has at most [`FIELDS_MAX`] at all levels. Whatever looks like a message inside is counted as
/// one, text that happens to look so included: it only counts too much.
pub(super) fn is_within_bounds(bytes: &[u8]) -> bool {
    let mut left = FIELDS_MAX;
    matches!(count(bytes, DEPTH_MAX, &mut left), Shape::Message)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Message,
    /// Something else: text, bytes, packed numbers.
    Other,
    TooMany,
}

fn count(mut bytes: &[u8], depth: usize, left: &mut usize) -> Shape {
    while !bytes.is_empty() {
        let Some((field, rest)) = read_field(bytes) else { return Shape::Other };
        let Some(fewer) = left.checked_sub(1) else { return Shape::TooMany };
        *left = fewer;
        if depth > 0 && count(field, depth - 1, left) == Shape::TooMany {
            return Shape::TooMany;
        }
        bytes = rest;
    }
    Shape::Message
}

/// The content of a field with a length (empty for a number), and what follows.
fn read_field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, rest) = read_varint(bytes)?;
    if key >> 3 == 0 || key >> 3 > 0x1fff_ffff {
        return None;
    }
    match key & 7 {
        0 => read_varint(rest).map(|(_, rest)| (&[][..], rest)),
        1 => rest.get(8..).map(|rest| (&[][..], rest)),
        2 => {
            let (len, rest) = read_varint(rest)?;
            rest.split_at_checked(usize::try_from(len).ok()?)
        }
        5 => rest.get(4..).map(|rest| (&[][..], rest)),
        _ => None,
    }
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i).min(63);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

/// The same for JSON: an object of at most [`FIELDS_MAX`] values in all, nested at most [`JSON_DEPTH_MAX`] deep. Whether it is JSON, the library says.
pub(super) fn is_json_within_bounds(text: &[u8]) -> bool {
    let (mut depth, mut values) = (0, 0);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'{' | b'[' => (depth, values) = (depth + 1, values + 1),
            b'}' | b']' => depth = usize::saturating_sub(depth, 1),
            b',' => values += 1,
            _ => {}
        }
        if depth > JSON_DEPTH_MAX || values > FIELDS_MAX {
            return false;
        }
    }
    text.trim_ascii_start().starts_with(b"{")
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_empty_values_is_refused_and_text_is_no_flood() {
        let flood = format!("{{\"agents\": [{}{{}}]}}", "{},".repeat(FIELDS_MAX));
        assert!(!is_json_within_bounds(flood.as_bytes()));
        assert!(!is_json_within_bounds(&b"[".repeat(JSON_DEPTH_MAX + 1)));
        let text = format!("{{\"metadata\": \"{}\\\"[[[[[[[[[[[[[[\"}}", "{},".repeat(FIELDS_MAX));
        assert!(is_json_within_bounds(text.as_bytes()));
        for other in ["", "[]", "null", "\"{}\""] {
            assert!(!is_json_within_bounds(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn a_flood_of_empty_messages_is_refused_at_any_level() {
        let flood = [0x2a, 0].repeat(FIELDS_MAX + 1);
        assert!(!is_within_bounds(&flood));
        assert!(is_within_bounds(&[0x2a, 0].repeat(FIELDS_MAX)));
        let mut inside = vec![0x0a];
        inside.extend_from_slice(&[0x82, 0x80, 0x01]);
        inside.extend_from_slice(&flood);
        assert!(!is_within_bounds(&inside));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&[0x0a, 5, 1][..], &[0x00], &[0x07], &[0xff; 11], &[0x0d, 1, 2]] {
            assert!(!is_within_bounds(bytes), "{bytes:?}");
        }
        assert!(is_within_bounds(&[]));
        assert!(is_within_bounds(&[0x72, 3, b'v', b'=', b'0']));
    }
}
