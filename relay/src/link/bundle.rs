//! Small packets of one turn in one datagram: a header of 6 bytes and the packet, one after the other.

use super::{FrameRef, Media, path::LADDER};
use crate::{RelayDrop, frame::OVERHEAD};

/// Packets in one datagram: a bit each says which were repaired.
pub(super) const BUNDLE_FRAMES_MAX: usize = 32;
/// Longest packet that is bundled: Opus at 128 kb/s and 20 ms is 320 bytes.
pub(super) const BUNDLED_LEN_MAX: usize = 400;
/// Alias, layer, epoch, and the packet's length, little-endian.
const ENTRY_LEN: usize = 6;
const BYTES_MAX: usize = LADDER[LADDER.len() - 1] - OVERHEAD;

/// Packets that wait for the end of the turn.
pub(super) struct Pending {
    bytes: Box<[u8; BYTES_MAX]>,
    len: usize,
    frames: Box<[FrameRef; BUNDLE_FRAMES_MAX]>,
    count: usize,
}

impl Pending {
    pub(super) const MEMORY_LEN: usize = BYTES_MAX + BUNDLE_FRAMES_MAX * size_of::<FrameRef>();

    pub(super) fn new() -> Pending {
        let frames = Box::new([FrameRef::default(); BUNDLE_FRAMES_MAX]);
        Pending { bytes: Box::new([0; BYTES_MAX]), len: 0, frames, count: 0 }
    }

    /// Whether a packet of `len` bytes fits into a datagram of `mtu` bytes with those that wait.
    pub(super) fn fits(&self, len: usize, mtu: usize) -> bool {
        self.count < BUNDLE_FRAMES_MAX && self.len + ENTRY_LEN + len + OVERHEAD <= mtu
    }

    /// Puts a packet that [`Self::fits`] behind those that wait.
    pub(super) fn push(&mut self, frame: &FrameRef, packet: &[u8]) {
        let ([a0, a1], [l0, l1]) = (frame.alias.to_le_bytes(), (packet.len() as u16).to_le_bytes());
        self.bytes[self.len..self.len + ENTRY_LEN].copy_from_slice(&[a0, a1, frame.layer, frame.epoch, l0, l1]);
        self.bytes[self.len + ENTRY_LEN..][..packet.len()].copy_from_slice(packet);
        self.len += ENTRY_LEN + packet.len();
        self.frames[self.count] = *frame;
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Names of those that wait.
    pub(super) fn frames(&self) -> &[FrameRef] {
        &self.frames[..self.count]
    }

    /// The payload: the bundle, or the packet alone when it is the only one.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[if self.count == 1 { ENTRY_LEN } else { 0 }..self.len]
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.count) = (0, 0);
    }
}

/// The packets of a datagram, in the order in which they were sent.
#[derive(Debug)]
pub struct Bundle<'a> {
    rest: &'a mut [u8],
    place: usize,
    /// A bit for each that was repaired before.
    skip: u32,
}

/// Length of the packet whose header `bytes` begin with, when all of it is there.
fn entry_len(bytes: &[u8]) -> Option<usize> {
    let header: &[u8; ENTRY_LEN] = bytes.first_chunk()?;
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    (bytes.len() >= ENTRY_LEN + len).then_some(len)
}

impl<'a> Bundle<'a> {
    /// Checks all of `payload`; gives the bundle and the bytes of its packets.
    pub(super) fn read(payload: &'a mut [u8], skip: u32) -> Result<(Bundle<'a>, usize), RelayDrop> {
        let (mut rest, mut place, mut bytes) = (&*payload, 0, 0);
        while !rest.is_empty() {
            let len = entry_len(rest).filter(|_| place < BUNDLE_FRAMES_MAX).ok_or(RelayDrop::BadPayload)?;
            rest = &rest[ENTRY_LEN + len..];
            bytes += if skip & 1 << place == 0 { len } else { 0 };
            place += 1;
        }
        Ok((Bundle { rest: payload, place: 0, skip }, bytes))
    }
}

impl<'a> Iterator for Bundle<'a> {
    type Item = Media<'a>;

    fn next(&mut self) -> Option<Media<'a>> {
        loop {
            let len = entry_len(self.rest)?;
            let (entry, rest) = std::mem::take(&mut self.rest).split_at_mut(ENTRY_LEN + len);
            self.rest = rest;
            let is_new = self.skip & 1 << self.place == 0;
            self.place += 1;
            if is_new {
                let (header, payload) = entry.split_at_mut(ENTRY_LEN);
                return Some(Media { alias: u16::from_le_bytes([header[0], header[1]]), layer: header[2], epoch: header[3], payload });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_gives_what_was_put_in_except_what_came_before() {
        let mut pending = Pending::new();
        for at in 0..3_u16 {
            assert!(pending.fits(at.into(), 1_200));
            pending.push(&FrameRef::new(at, 1, 2, 9), &vec![at as u8; at.into()]);
        }
        let mut payload = pending.payload().to_vec();
        let (bundle, bytes) = Bundle::read(&mut payload, 0b010).expect("it is one");
        assert_eq!(bundle.map(|media| (media.alias, media.payload.len())).collect::<Vec<_>>(), [(0, 0), (2, 2)]);
        assert_eq!(bytes, 2);
        let len = payload.len();
        assert!(Bundle::read(&mut payload[..len - 1], 0).is_err());
        assert!(Bundle::read(&mut [0; 33 * ENTRY_LEN], 0).is_err(), "one packet too many");
    }
}
