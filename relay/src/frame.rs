//! The head of a datagram, written and read in place: byte for byte the FlatBuffers struct `pop.relay.Head`.
//!
//! ```text
//!  0        1        2                 4                 6        7        8                16
//!  +--------+--------+-----------------+-----------------+--------+--------+-----------------+- - - - -+- - - -+
//!  |version | kind   | association     | alias           | layer  | epoch  | counter         | sealed  | tag   |
//!  +--------+--------+-----------------+-----------------+--------+--------+-----------------+- - - - -+- - - -+
//!            7: key phase, 3..0: kind     little-endian                                         n        16
//! ```

use crate::{
    RelayDrop,
    control::{VERSION, VERSION_MIN},
};

/// Bytes of the head.
pub const HEAD_LEN: usize = 16;
/// Bytes of the AES-GCM tag at the end.
pub const TAG_LEN: usize = 16;
/// Bytes that a datagram is longer than its payload.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;
/// Longest datagram that is read: more than the largest path MTU that is ever probed.
pub const DATAGRAM_LEN_MAX: usize = 2_048;

/// What the payload of a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// One packet.
    Media = 0,
    /// One packet of a datagram that was lost.
    Repair = 1,
    /// Several small packets.
    Bundle = 2,
    /// Half of a packet.
    Part = 3,
    /// Table `Feedback`.
    Feedback = 4,
    /// Table `Ask`.
    Ask = 5,
    /// Table `Clock`.
    Clock = 6,
    /// Nothing but length: does it pass?
    Probe = 7,
    /// A datagram of another link, sealed, and whither: see `link/transit.rs`.
    Transit = 8,
    /// How one way is: see `link/ways.rs`. It has a counter of its own kind.
    Echo = 9,
    /// Parity of several datagrams: see `link/parity.rs`.
    Parity = 10,
}

impl FrameKind {
    fn from_bits(bits: u8) -> Option<FrameKind> {
        Some(match bits {
            0 => FrameKind::Media,
            1 => FrameKind::Repair,
            2 => FrameKind::Bundle,
            3 => FrameKind::Part,
            4 => FrameKind::Feedback,
            5 => FrameKind::Ask,
            6 => FrameKind::Clock,
            7 => FrameKind::Probe,
            8 => FrameKind::Transit,
            9 => FrameKind::Echo,
            10 => FrameKind::Parity,
            _ => return None,
        })
    }
}

/// The head's fields; see `schemas/fbs/relay.fbs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Schema version of the sender.
    pub version: u8,
    /// What the payload is.
    pub kind: FrameKind,
    /// The lowest bit of the keys' generation.
    pub phase: bool,
    /// Whom it is for: the receiver's number of the sender's node in the high byte, the sender's worker in the low one.
    pub association: u16,
    /// Link-local name of the track; 0 where the kind has none.
    pub alias: u16,
    /// Simulcast layer of it.
    pub layer: u8,
    /// How often the layer has begun anew, modulo 256.
    pub epoch: u8,
    /// The datagram's own number.
    pub counter: u64,
}

/// Bits of the head's kind that are neither the kind nor the phase: a sender of our versions leaves them 0.
const KIND_RESERVED: u8 = 0x70;

impl Head {
    /// The head at the start of `datagram`. Checks the datagram's length, the version and the kind: [`RelayDrop::Malformed`] otherwise.
    pub fn read(datagram: &[u8]) -> Result<Head, RelayDrop> {
        if datagram.len() < OVERHEAD || datagram.len() > DATAGRAM_LEN_MAX {
            return Err(RelayDrop::Malformed);
        }
        let bytes: &[u8; HEAD_LEN] = datagram.first_chunk().ok_or(RelayDrop::Malformed)?;
        let [version, kind, a0, a1, t0, t1, layer, epoch, counter @ ..] = *bytes;
        if !(VERSION_MIN..=VERSION).contains(&version) || kind & KIND_RESERVED != 0 {
            return Err(RelayDrop::Malformed);
        }
        Ok(Head {
            version,
            kind: FrameKind::from_bits(kind & 0x0f).ok_or(RelayDrop::Malformed)?,
            phase: kind & 0x80 != 0,
            association: u16::from_le_bytes([a0, a1]),
            alias: u16::from_le_bytes([t0, t1]),
            layer,
            epoch,
            counter: u64::from_le_bytes(counter),
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEAD_LEN] {
        let ([a0, a1], [t0, t1]) = (self.association.to_le_bytes(), self.alias.to_le_bytes());
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.to_le_bytes();
        let kind = self.kind as u8 | if self.phase { 0x80 } else { 0 };
        [self.version, kind, a0, a1, t0, t1, self.layer, self.epoch, c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// Which link a datagram claims to be of, for the demultiplexer; `None` where it can be of none. Nothing of it is authentic yet.
pub fn association_of(datagram: &[u8]) -> Option<u16> {
    Head::read(datagram).ok().map(|head| head.association)
}

#[cfg(test)]
mod tests {
    use pop_schemas::generated::relay;

    use super::*;

    #[test]
    fn a_head_has_the_bytes_of_the_schema() {
        let head = Head {
            version: 1,
            kind: FrameKind::Part,
            phase: true,
            association: 0x0102,
            alias: 0x0304,
            layer: 5,
            epoch: 6,
            counter: 0x0708_090a_0b0c_0d0e,
        };
        let generated = relay::Head::new(1, 0x83, 0x0102, 0x0304, 5, 6, 0x0708_090a_0b0c_0d0e);
        assert_eq!(head.bytes(), generated.0);
        let mut datagram = head.bytes().to_vec();
        datagram.resize(OVERHEAD, 0);
        assert_eq!(Head::read(&datagram), Ok(head));
        assert_eq!(association_of(&datagram), Some(0x0102));
    }

    #[test]
    fn a_head_of_another_version_kind_or_length_is_malformed() {
        let good = [1, 0, 2, 1, 4, 3, 5, 6, 1, 0, 0, 0, 0, 0, 0, 0].into_iter().chain([0; TAG_LEN]).collect::<Vec<u8>>();
        assert!(Head::read(&good).is_ok());
        for (at, value) in [(0, 2), (0, 255), (1, 11), (1, 15), (1, 0x10), (1, 0x40)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Head::read(&bad), Err(RelayDrop::Malformed), "byte {at} is {value}");
            assert_eq!(association_of(&bad), None);
        }
        for len in 0..OVERHEAD {
            assert_eq!(Head::read(&good[..len]), Err(RelayDrop::Malformed));
        }
        assert_eq!(Head::read(&[0; DATAGRAM_LEN_MAX + 1]), Err(RelayDrop::Malformed));
    }
}
