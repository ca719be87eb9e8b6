//! What a blast packet is: RTP that every target passes, VP8 enough for a room's track, and inside which one it is and when it left.
//!
//! ```text
//! 0..12 RTP header | 12..23 VP8 descriptor and frame header | 28..36 number | 36..44 due, ns | 44..52 left, ns
//!   | 52..56 mark | 56..60 run | 60..64 stream | 64..72 check | zeros
//! ```
//! Times are `CLOCK_MONOTONIC`, so both ends have to be on one machine for latencies; counts work across any distance.

use pop_proto::wire::rtp::{self, RtpView};

use crate::fanout::packet::{HEADER_LEN, Place, write_packet};
use crate::sdp::Media;

/// The shortest packet that holds every field, in bytes.
pub(crate) const STAMPED_LEN_MIN: usize = 72;

/// Tells our packets from whatever else comes to a sink.
const MARK: u32 = u32::from_be_bytes(*b"popb");

/// One packet of this many begins a keyframe: a room's viewer that joins late finds one soon, at every rate that is worth measuring.
const KEYFRAME_EVERY: u64 = 512;

/// Which packet, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// From 0 on in each stream of each run.
    pub(crate) number: u64,
    /// When it was to leave, whatever held the sender up: latency from here on leaves no queue out (no coordinated omission).
    pub(crate) due_ns: u64,
    /// When the sender had it ready.
    pub(crate) left_ns: u64,
    /// Drawn for each run, so that a late packet of the last one is told apart.
    pub(crate) run: u32,
    /// From 0 on.
    pub(crate) stream: u32,
}

/// Why a datagram is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unstamped {
    /// No RTP packet, or one without our mark.
    Foreign,
    /// Our mark, and fields that do not belong together.
    Damaged,
}

/// Fills `packet` (at least [`STAMPED_LEN_MIN`] bytes, zeros behind) with the packet of `stamp`. Every packet is a frame of its own.
pub(crate) fn write_stamped(packet: &mut [u8], ssrc: u32, sequence: u16, stamp: &Stamp) {
    // 90 kHz.
    let timestamp = (stamp.due_ns * 9 / 100_000) as u32;
    let keyframe = stamp.number.is_multiple_of(KEYFRAME_EVERY);
    let place = Place { ssrc, sequence, timestamp, starts_frame: true, ends_frame: true, keyframe, media: Media::Video };
    write_packet(packet, &place, stamp.number, stamp.due_ns);
    packet[44..52].copy_from_slice(&stamp.left_ns.to_be_bytes());
    packet[52..56].copy_from_slice(&MARK.to_be_bytes());
    packet[56..60].copy_from_slice(&stamp.run.to_be_bytes());
    packet[60..64].copy_from_slice(&stamp.stream.to_be_bytes());
    packet[64..72].copy_from_slice(&check(stamp).to_be_bytes());
}

/// The stamp of a datagram, wherever its header ends.
pub(crate) fn read_stamped(datagram: &[u8]) -> Result<Stamp, Unstamped> {
    let payload = RtpView::parse(datagram).and_then(|view| rtp::payload(datagram, view.header_len())).map_err(|_| Unstamped::Foreign)?;
    let fields: &[u8; STAMPED_LEN_MIN - HEADER_LEN] = payload.first_chunk().ok_or(Unstamped::Foreign)?;
    let word = |at: usize| u32::from_be_bytes(fields[at - HEADER_LEN..at - HEADER_LEN + 4].try_into().expect("four bytes"));
    let double = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    if word(52) != MARK {
        return Err(Unstamped::Foreign);
    }
    let stamp = Stamp { number: double(28), due_ns: double(36), left_ns: double(44), run: word(56), stream: word(60) };
    if double(64) == check(&stamp) { Ok(stamp) } else { Err(Unstamped::Damaged) }
}

/// What one packet adds to a checksum: equal sums of sender and sink mean equal sets of packets, in any order.
pub(crate) fn fold(stream: u32, number: u64) -> u64 {
    mix(number.wrapping_add(1) ^ u64::from(stream).rotate_right(16))
}

fn check(stamp: &Stamp) -> u64 {
    let ids = u64::from(stamp.run) << 32 | u64::from(stamp.stream);
    [stamp.number, stamp.due_ns, stamp.left_ns].iter().fold(mix(ids), |sum, field| mix(sum ^ field))
}

/// The finalizer of SplitMix64: every bit of the input changes half of the output's.
fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { number: 1 << 40 | 7, due_ns: 123_456_789_000, left_ns: 123_456_790_000, run: 5, stream: 3 };

    fn packet() -> [u8; 100] {
        let mut packet = [0; 100];
        write_stamped(&mut packet, 9, 65_535, &STAMP);
        packet
    }

    #[test]
    fn a_stamp_survives_a_header_of_another_length() {
        assert_eq!(read_stamped(&packet()), Ok(STAMP));
        // An appliance may add CSRCs or extensions.
        let mut longer = packet().to_vec();
        longer[0] |= 1;
        longer.splice(12..12, [1, 2, 3, 4]);
        assert_eq!(read_stamped(&longer), Ok(STAMP));
    }

    #[test]
    fn whatever_else_comes_is_foreign_or_damaged() {
        for byte in 28..STAMPED_LEN_MIN {
            let mut changed = packet();
            changed[byte] ^= 0x10;
            let expected = if (52..56).contains(&byte) { Unstamped::Foreign } else { Unstamped::Damaged };
            assert_eq!(read_stamped(&changed), Err(expected), "byte {byte}");
        }
        for len in 0..STAMPED_LEN_MIN {
            assert_eq!(read_stamped(&packet()[..len]), Err(Unstamped::Foreign), "{len} bytes");
        }
        assert_eq!(read_stamped(&[0; 200]), Err(Unstamped::Foreign));
        assert_eq!(read_stamped(&[0xff; 200]), Err(Unstamped::Foreign));
    }

    #[test]
    fn the_first_packet_begins_a_keyframe() {
        let mut first = [0; STAMPED_LEN_MIN];
        write_stamped(&mut first, 9, 0, &Stamp { number: 0, ..STAMP });
        assert!(crate::fanout::packet::starts_keyframe(&first[HEADER_LEN..]));
        assert!(!crate::fanout::packet::starts_keyframe(&packet()[HEADER_LEN..]));
    }
}
