//! Datagrams on a stream: each is preceded by its length in two bytes (RFC 4571 section 2, RFC 6544 section 3).

/// Bytes of the length.
pub(super) const LENGTH_LEN: usize = 2;

/// Longest datagram that is taken from a stream, in bytes: an Ethernet MTU's worth, as over UDP. A peer that announces more is no
/// ICE client.
pub const FRAME_LEN_MAX: usize = 1_500;

/// What stands at the front of received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// A datagram of this length behind its two bytes.
    Whole(usize),
    /// Not all of one.
    Partial,
    /// An announced length above [`FRAME_LEN_MAX`].
    TooLong,
}

/// Looks at the front of `bytes`.
pub(super) fn front(bytes: &[u8]) -> Front {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Front::Partial };
    match usize::from(u16::from_be_bytes(*length)) {
        len if len > FRAME_LEN_MAX => Front::TooLong,
        len if len > rest.len() => Front::Partial,
        len => Front::Whole(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_whole_only_with_its_last_byte() {
        let bytes = [&[0, 3][..], b"abc", &[0, 0], &[0xff]].concat();
        for len in 0..5 {
            assert_eq!(front(&bytes[..len]), Front::Partial, "{len} bytes");
        }
        assert_eq!(front(&bytes), Front::Whole(3));
        assert_eq!(front(&bytes[5..]), Front::Whole(0));
        assert_eq!(front(&bytes[7..]), Front::Partial);
    }

    #[test]
    fn a_length_that_no_datagram_has_is_seen_before_its_bytes_are_there() {
        assert_eq!(front(&(FRAME_LEN_MAX as u16).to_be_bytes()), Front::Partial);
        assert_eq!(front(&(FRAME_LEN_MAX as u16 + 1).to_be_bytes()), Front::TooLong);
        assert_eq!(front(b"GET / HTTP/1.1"), Front::TooLong);
    }
}
