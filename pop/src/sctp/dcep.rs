//! The channel establishment protocol (RFC 8832 section 5): OPEN and ACK.

/// Longest label or protocol, in bytes. Clients of the room protocol use labels of at most 11.
const NAME_LEN_MAX: usize = 64;

const ACK: u8 = 2;
const OPEN: u8 = 3;
const HEADER_LEN: usize = 12;

/// What is promised for the messages of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// In the order of sending.
    pub ordered: bool,
    /// How long a message is tried.
    pub limit: Limit,
}

/// How long a message is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Until it has arrived.
    None,
    /// With so many repeats.
    Repeats(u32),
    /// For so many milliseconds.
    LifetimeMs(u32),
}

/// A message of the protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dcep {
    Open { label: Box<str>, promise: Promise },
    Ack,
}

/// What an ACK looks like.
pub(super) const ACK_MESSAGE: [u8; 1] = [ACK];

/// Reads a message; `None` when it does not hold.
pub(super) fn parse(message: &[u8]) -> Option<Dcep> {
    if message == ACK_MESSAGE {
        return Some(Dcep::Ack);
    }
    let (header, names) = message.split_first_chunk::<HEADER_LEN>()?;
    let label_len = usize::from(u16::from_be_bytes([header[8], header[9]]));
    let protocol_len = usize::from(u16::from_be_bytes([header[10], header[11]]));
    if header[0] != OPEN || label_len > NAME_LEN_MAX || protocol_len > NAME_LEN_MAX || names.len() != label_len + protocol_len {
        return None;
    }
    let value = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let limit = match header[1] & 0x7f {
        0 => Limit::None,
        1 => Limit::Repeats(value),
        2 => Limit::LifetimeMs(value),
        _ => return None,
    };
    let label = std::str::from_utf8(&names[..label_len]).ok()?;
    Some(Dcep::Open { label: label.into(), promise: Promise { ordered: header[1] & 0x80 == 0, limit } })
}

/// An OPEN.
pub(super) fn build_open(label: &str, promise: Promise) -> Vec<u8> {
    let (kind, value) = match promise.limit {
        Limit::None => (0, 0),
        Limit::Repeats(repeats) => (1, repeats),
        Limit::LifetimeMs(ms) => (2, ms),
    };
    let mut message = vec![OPEN, kind | if promise.ordered { 0 } else { 0x80 }, 0, 0];
    message.extend_from_slice(&value.to_be_bytes());
    message.extend_from_slice(&u16::try_from(label.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(label.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_is_read_as_it_was_written() {
        for ordered in [true, false] {
            for limit in [Limit::None, Limit::Repeats(0), Limit::LifetimeMs(500)] {
                let promise = Promise { ordered, limit };
                let open = Dcep::Open { label: "_lossy".into(), promise };
                assert_eq!(parse(&build_open("_lossy", promise)), Some(open));
            }
        }
    }

    #[test]
    fn what_does_not_hold_is_no_message() {
        let good = build_open("_reliable", Promise { ordered: true, limit: Limit::None });
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), None, "{len}");
        }
        let with = |at: usize, value: u8| {
            let mut message = good.clone();
            message[at] = value;
            parse(&message)
        };
        assert_eq!(with(0, 4), None, "no such message");
        assert_eq!(with(1, 3), None, "no such kind of channel");
        assert_eq!(with(9, 8), None, "bytes behind the names");
        assert_eq!(with(8, 0xff), None, "a label longer than the message");
        assert_eq!(with(12, 0xff), None, "no UTF-8");
        let long = "x".repeat(NAME_LEN_MAX + 1);
        assert_eq!(parse(&build_open(&long, Promise { ordered: true, limit: Limit::None })), None);
        assert_eq!(parse(&[ACK]), Some(Dcep::Ack));
        assert_eq!(parse(&[ACK, 0]), None);
    }
}
