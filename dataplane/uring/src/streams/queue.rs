//! What a slow peer has not taken yet: bytes of whole frames in a ring of fixed room, of which the first may have left in part.

use std::io::IoSlice;

use super::frame::LENGTH_LEN;

/// Where the bytes are in their room, which lies elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    head: usize,
    len: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that `room` still takes.
    pub(super) fn free(&self, room: &[u8]) -> usize {
        room.len() - self.len
    }

    /// Appends the last `rest` bytes of `datagram`'s frame; the caller has asked [`free`](Self::free).
    pub(super) fn push_frame(&mut self, room: &mut [u8], datagram: &[u8], rest: usize) {
        let length = (datagram.len() as u16).to_be_bytes();
        let gone = LENGTH_LEN + datagram.len() - rest;
        self.push(room, length.get(gone..).unwrap_or_default());
        self.push(room, &datagram[gone.saturating_sub(LENGTH_LEN)..]);
    }

    fn push(&mut self, room: &mut [u8], bytes: &[u8]) {
        assert!(bytes.len() <= self.free(room), "only what fits is queued");
        let tail = (self.head + self.len) % room.len();
        let first = bytes.len().min(room.len() - tail);
        room[tail..tail + first].copy_from_slice(&bytes[..first]);
        room[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.len += bytes.len();
    }

    /// The bytes in order, for one vectored write.
    pub(super) fn slices<'a>(&self, room: &'a [u8]) -> [IoSlice<'a>; 2] {
        let first = self.len.min(room.len() - self.head);
        [IoSlice::new(&room[self.head..self.head + first]), IoSlice::new(&room[..self.len - first])]
    }

    /// The first `count` bytes have left.
    pub(super) fn advance(&mut self, room: &[u8], count: usize) {
        self.head = (self.head + count) % room.len();
        self.len -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_cuts_and_the_wrap() {
        let (mut room, mut queue) = ([0; 37], Queue::default());
        let (mut left, mut expected) = (Vec::new(), Vec::new());
        let mut seed = 1u32;
        for round in 0..2_000u32 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let datagram: Vec<u8> = (0..seed >> 29).map(|i| (round + i) as u8).collect();
            let frame = [&(datagram.len() as u16).to_be_bytes()[..], &datagram].concat();
            let rest = frame.len() - (seed as usize >> 8) % (frame.len() + 1);
            if rest <= queue.free(&room) {
                queue.push_frame(&mut room, &datagram, rest);
                expected.extend_from_slice(&frame[frame.len() - rest..]);
            }
            let waiting = queue.slices(&room).iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
            let count = (seed as usize >> 16) % (waiting.len() + 1);
            left.extend_from_slice(&waiting[..count]);
            queue.advance(&room, count);
        }
        left.extend(queue.slices(&room).iter().flat_map(|slice| slice.to_vec()));
        assert!(left.len() > 5_000, "too few bytes to prove anything");
        assert_eq!(left, expected);
    }
}
