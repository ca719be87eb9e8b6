//! Control messages of `sendmsg` and `recvmsg`: the segment size of a train, the drop counter of a socket.
//!
//! ```text
//! | cmsg_len: usize | cmsg_level: i32 | cmsg_type: i32 | data, padded to 8 |
//! ```

/// Room for what a receive can report: `UDP_GRO` and `SO_RXQ_OVFL`, 24 bytes each.
pub(crate) const RECV_CONTROL_LEN: usize = 48;
/// Room for what a send says: `UDP_SEGMENT`.
pub(crate) const SEND_CONTROL_LEN: usize = 24;

const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// Control bytes at the alignment of `cmsghdr`, which the kernel's macros expect.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control<const N: usize>(pub(crate) [u8; N]);

/// What the kernel said beside a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReceiveReport {
    /// `UDP_GRO`: the length of each datagram of a run.
    pub(crate) segment: Option<usize>,
    /// `SO_RXQ_OVFL`: datagrams this socket has dropped since it was made, modulo 2^32.
    pub(crate) dropped: Option<u32>,
}

/// Writes the `UDP_SEGMENT` message.
pub(crate) fn encode_segment(segment: u16, control: &mut Control<SEND_CONTROL_LEN>) {
    put_message(control, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
}

/// Reads the messages beside a datagram. Others than the two are passed over; a broken length ends the reading.
pub(crate) fn decode(control: &[u8]) -> ReceiveReport {
    let mut report = ReceiveReport::default();
    for (level, kind, data) in messages(control) {
        match (level, kind, data.first_chunk::<4>()) {
            (libc::SOL_UDP, libc::UDP_GRO, Some(value)) => report.segment = usize::try_from(i32::from_ne_bytes(*value)).ok(),
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, Some(value)) => report.dropped = Some(u32::from_ne_bytes(*value)),
            _ => {}
        }
    }
    report
}

/// The messages as (level, type, data). A broken length ends the reading.
pub(crate) fn messages(mut control: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = control.split_first_chunk::<HEADER_LEN>()?;
        let len = header.first_chunk().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
        let data = control.get(HEADER_LEN..len)?;
        control = control.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((i32_at(header, HEADER_LEN - 8), i32_at(header, HEADER_LEN - 4), data))
    })
}

/// Writes one message at the start of `control` and returns the bytes that it takes there.
pub(crate) fn put_message<const N: usize>(control: &mut Control<N>, level: i32, kind: i32, data: &[u8]) -> usize {
    let bytes = &mut control.0;
    let len = HEADER_LEN + data.len();
    bytes.fill(0);
    bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
    bytes[HEADER_LEN - 8..HEADER_LEN - 4].copy_from_slice(&level.to_ne_bytes());
    bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
    bytes[HEADER_LEN..len].copy_from_slice(data);
    len.next_multiple_of(size_of::<usize>())
}

fn i32_at(bytes: &[u8; HEADER_LEN], at: usize) -> i32 {
    i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, value: i32) -> Vec<u8> {
        let mut bytes = (HEADER_LEN + 4).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&level.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&value.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn both_reports_are_read_in_any_order_and_others_passed_over() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, 1_200);
        let drops = message(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, -1);
        let other = message(libc::SOL_IP, libc::IP_TTL, 64);
        let report = ReceiveReport { segment: Some(1_200), dropped: Some(u32::MAX) };
        assert_eq!(decode(&[other.clone(), gro.clone(), drops.clone()].concat()), report);
        assert_eq!(decode(&[drops, other, gro].concat()), report);
    }

    #[test]
    fn broken_lengths_end_the_reading() {
        let mut endless = message(libc::SOL_UDP, libc::UDP_GRO, 1);
        endless[0] = 0;
        assert_eq!(decode(&endless), ReceiveReport::default());
        endless[..8].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(decode(&endless), ReceiveReport::default());
        assert_eq!(decode(&message(libc::SOL_UDP, libc::UDP_GRO, 1)[..19]), ReceiveReport::default());
    }

    #[test]
    fn the_send_message_fills_its_room() {
        let mut control = Control([0xff; SEND_CONTROL_LEN]);
        encode_segment(1_200, &mut control);
        assert_eq!(control.0[..8], 18usize.to_ne_bytes());
        assert_eq!(control.0[16..18], 1_200u16.to_ne_bytes());
    }
}
