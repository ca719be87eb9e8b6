//! Halves of packets that did not fit the path, until both are here.

use crate::RelayDrop;

use super::FRAME_LEN_MAX;

/// Packets of which one half waits. A lost half waits for its repair: 10 % of 1,000 packets a second over 100 ms are 20.
const PARTS_MAX: usize = 32;
/// Which half, in the upper bit of the part's header.
const SECOND: u16 = 1 << 15;

/// The header of a half: which, and how long the packet is.
pub(super) fn part_header(second: bool, len: usize) -> u16 {
    len as u16 | if second { SECOND } else { 0 }
}

/// The half of a packet of `len` bytes that `header` names.
pub(super) fn part_range(header: u16) -> std::ops::Range<usize> {
    let len = usize::from(header & !SECOND);
    if header & SECOND == 0 { 0..len.div_ceil(2) } else { len.div_ceil(2)..len }
}

/// Length of the packet that `header` is of a half of.
pub(super) fn part_len(header: u16) -> usize {
    usize::from(header & !SECOND)
}

/// A packet of which one half is here.
#[derive(Clone, Copy, Default)]
struct Half {
    /// The header of the half that is here; 0: none.
    header: u16,
    /// The counter of the first half; the second has the next one.
    first: u64,
}

/// The places where they wait.
pub(super) struct Parts {
    halves: [Half; PARTS_MAX],
    bytes: Box<[u8]>,
    /// The place that is taken next when none is free.
    oldest: usize,
}

impl Parts {
    pub(super) const MEMORY_LEN: usize = PARTS_MAX * FRAME_LEN_MAX;

    pub(super) fn new() -> Parts {
        Parts { halves: [Half::default(); PARTS_MAX], bytes: vec![0; PARTS_MAX * FRAME_LEN_MAX].into(), oldest: 0 }
    }

    /// Takes the half that `header` names, of datagram `counter`; gives the packet when the other half was here. Fails with
    /// [`RelayDrop::BadPayload`] when it has not the length of such a half, with [`RelayDrop::PartLost`] when it took the place of
    /// another packet's half, which is lost.
    pub(super) fn join(&mut self, counter: u64, header: u16, bytes: &[u8]) -> Result<Option<&mut [u8]>, RelayDrop> {
        let (len, range) = (part_len(header), part_range(header));
        if !(2..=FRAME_LEN_MAX).contains(&len) || range.len() != bytes.len() {
            return Err(RelayDrop::BadPayload);
        }
        let first = counter.checked_sub(u64::from(header & SECOND != 0)).ok_or(RelayDrop::BadPayload)?;
        let other = Half { header: header ^ SECOND, first };
        if let Some(at) = self.halves.iter().position(|half| half.header == other.header && half.first == first) {
            self.halves[at].header = 0;
            let packet = &mut self.bytes[at * FRAME_LEN_MAX..][..len];
            packet[range].copy_from_slice(bytes);
            return Ok(Some(packet));
        }
        let (at, lost) = match self.halves.iter().position(|half| half.header == 0) {
            Some(at) => (at, false),
            None => (self.oldest, true),
        };
        self.oldest = (at + 1) % PARTS_MAX;
        self.halves[at] = Half { header, first };
        self.bytes[at * FRAME_LEN_MAX..][range].copy_from_slice(bytes);
        if lost { Err(RelayDrop::PartLost) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_join_in_either_order_and_only_with_their_own() {
        let packet: Vec<u8> = (0..1_301_u32).map(|at| at as u8).collect();
        let (head, tail) = (part_header(false, packet.len()), part_header(true, packet.len()));
        assert!(part_range(head).len() >= part_range(tail).len());
        let mut parts = Parts::new();
        for (first, second) in [((7, head), (8, tail)), ((10, tail), (9, head))] {
            assert_eq!(parts.join(first.0, first.1, &packet[part_range(first.1)]), Ok(None));
            assert_eq!(parts.join(second.0 + 40, second.1, &packet[part_range(second.1)]), Ok(None), "of another packet");
            let joined = parts.join(second.0, second.1, &packet[part_range(second.1)]);
            assert_eq!(joined.map(|packet| packet.map(|packet| packet.to_vec())), Ok(Some(packet.clone())));
        }
        assert_eq!(parts.join(20, head, &packet[1..part_range(head).end]), Err(RelayDrop::BadPayload));
        assert_eq!(parts.join(0, tail, &packet[part_range(tail)]), Err(RelayDrop::BadPayload));
        assert_eq!(parts.join(20, part_header(false, FRAME_LEN_MAX + 1), &[0; FRAME_LEN_MAX / 2 + 1]), Err(RelayDrop::BadPayload));
        for at in 0..PARTS_MAX as u64 - 2 {
            assert_eq!(parts.join(100 + 2 * at, head, &packet[part_range(head)]), Ok(None));
        }
        assert_eq!(parts.join(300, head, &packet[part_range(head)]), Err(RelayDrop::PartLost));
    }
}
