//! Ids as clients of the room protocol see them: a prefix and 16 hex digits, so that all have one length. Clients tell kinds apart by
//! the prefix.

use pop_schemas::{ParticipantId, TrackId};

const PARTICIPANT: &str = "PA_";
const TRACK: &str = "TR_";
const ROOM: &str = "RM_";

/// `PA_` and 16 hex digits.
pub fn format_participant_sid(id: ParticipantId) -> String {
    format(PARTICIPANT, id.0)
}

/// The id of a text of [`format_participant_sid`]; `None` when it is none.
pub fn parse_participant_sid(text: &str) -> Option<ParticipantId> {
    parse(PARTICIPANT, text).map(ParticipantId)
}

/// `TR_` and 16 hex digits.
pub fn format_track_sid(id: TrackId) -> String {
    format(TRACK, id.0)
}

/// The id of a text of [`format_track_sid`]; `None` when it is none.
pub fn parse_track_sid(text: &str) -> Option<TrackId> {
    parse(TRACK, text).map(TrackId)
}

/// `RM_` and 16 hex digits: one life of a room.
pub fn format_room_sid(number: u64) -> String {
    format(ROOM, number)
}

/// The number of a text of [`format_room_sid`]; `None` when it is none.
pub fn parse_room_sid(text: &str) -> Option<u64> {
    parse(ROOM, text)
}

fn format(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:016x}")
}

/// Takes what [`format`] writes and nothing else: one id has one text, which clients compare.
fn parse(prefix: &str, text: &str) -> Option<u64> {
    let digits = text.strip_prefix(prefix)?;
    let is_ours = digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_ours.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_from_its_text() {
        for number in [0, 1, 0xfedc_ba98_7654_3210, u64::MAX] {
            assert_eq!(parse_participant_sid(&format_participant_sid(ParticipantId(number))), Some(ParticipantId(number)));
            assert_eq!(parse_track_sid(&format_track_sid(TrackId(number))), Some(TrackId(number)));
            assert_eq!(parse_room_sid(&format_room_sid(number)), Some(number));
        }
        assert_eq!(format_track_sid(TrackId(0xab)), "TR_00000000000000ab");
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in ["", "TR_", "TR_ab", "PA_00000000000000ab", "TR_00000000000000AB", "TR_+0000000000000ab", "TR_00000000000000ab0"] {
            assert_eq!(parse_track_sid(text), None, "{text:?}");
        }
    }
}
