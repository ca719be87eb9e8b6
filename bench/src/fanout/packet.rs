//! What a bench packet is: VP8 enough for a server to find its keyframes, with a number and a send time inside.
//!
//! ```text
//! 0..12 RTP header | 12 VP8 descriptor | 13..23 VP8 frame header (first packet) | 28..36 number | 36..44 sent, ns | filler
//! ```

use crate::sdp::Media;

/// Bytes of the RTP header: no CSRC, no extension.
pub(crate) const HEADER_LEN: usize = 12;
const NUMBER_AT: usize = 28;
const SENT_AT: usize = 36;

/// The shortest packet that holds both fields, in bytes.
pub(crate) const PACKET_LEN_MIN: usize = SENT_AT + 8;

/// A keyframe of 640 x 360 (RFC 6386 section 9.1): frame tag with the key bit clear and show_frame set, start code, sizes.
const KEYFRAME: [u8; 10] = [0x10, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01];
/// An interframe's tag: the key bit set.
const INTERFRAME: [u8; 3] = [0x11, 0, 0];

/// Where a packet stands in its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// SSRC of the stream.
    pub(crate) ssrc: u32,
    /// RTP sequence number.
    pub(crate) sequence: u16,
    /// RTP timestamp of the frame.
    pub(crate) timestamp: u32,
    /// First packet of its frame.
    pub(crate) starts_frame: bool,
    /// Last packet of its frame: the marker bit.
    pub(crate) ends_frame: bool,
    /// The frame decodes without another.
    pub(crate) keyframe: bool,
    /// Of audio a frame is a packet, and all of the payload is filler.
    pub(crate) media: Media,
}

/// Fills `packet` (at least [`PACKET_LEN_MIN`] bytes) with the packet at `place`. The filler stays what it was.
pub(crate) fn write_packet(packet: &mut [u8], place: &Place, number: u64, sent_ns: u64) {
    packet[0] = 0x80;
    packet[1] = place.media.payload_type() | if place.ends_frame && place.media == Media::Video { 0x80 } else { 0 };
    packet[2..4].copy_from_slice(&place.sequence.to_be_bytes());
    packet[4..8].copy_from_slice(&place.timestamp.to_be_bytes());
    packet[8..12].copy_from_slice(&place.ssrc.to_be_bytes());
    if place.media == Media::Video {
        // RFC 7741 section 4.2: S is set at the start of a partition, PID 0.
        packet[12] = if place.starts_frame { 0x10 } else { 0 };
        match (place.starts_frame, place.keyframe) {
            (true, true) => packet[13..23].copy_from_slice(&KEYFRAME),
            (true, false) => packet[13..16].copy_from_slice(&INTERFRAME),
            (false, _) => {}
        }
    }
    packet[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_be_bytes());
    packet[SENT_AT..SENT_AT + 8].copy_from_slice(&sent_ns.to_be_bytes());
}

/// Number and send time of a packet whose payload is `payload`, as a subscriber decrypted it.
pub(crate) fn read_payload(payload: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_be_bytes(payload.get(at - HEADER_LEN..at - HEADER_LEN + 8)?.try_into().ok()?));
    Some((word(NUMBER_AT)?, word(SENT_AT)?))
}

/// The payload begins a keyframe.
pub(crate) fn starts_keyframe(payload: &[u8]) -> bool {
    matches!(payload, [0x10, tag, ..] if tag & 1 == 0)
}

/// How many packets each frame gets so that their mean is `bitrate`: all packets have one size, so frames differ in count.
pub(crate) struct FrameSizer {
    packets_per_frame: f64,
    owed: f64,
}

impl FrameSizer {
    /// `bitrate` in bits of RTP packets per second.
    pub(crate) fn new(bitrate: u64, packet_len: usize, fps: u32) -> FrameSizer {
        FrameSizer { packets_per_frame: bitrate as f64 / 8.0 / packet_len as f64 / f64::from(fps), owed: 0.0 }
    }

    /// Packets of the next frame, at least one.
    pub(crate) fn next_frame(&mut self) -> usize {
        self.owed += self.packets_per_frame;
        let packets = (self.owed.round() as usize).max(1);
        self.owed -= packets as f64;
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_time_survive_and_the_keyframe_shows() {
        let mut packet = [0xaa; PACKET_LEN_MIN];
        let media = Media::Video;
        let place = Place { ssrc: 7, sequence: 300, timestamp: 90, starts_frame: true, ends_frame: true, keyframe: true, media };
        write_packet(&mut packet, &place, 12, 34);
        assert_eq!(read_payload(&packet[HEADER_LEN..]), Some((12, 34)));
        assert_eq!((packet[1], &packet[2..4]), (0x80 | 96, &[1, 44][..]));
        assert_eq!((packet[12], packet[13] & 1, &packet[16..19]), (0x10, 0, &[0x9d, 0x01, 0x2a][..]));
        assert_eq!(read_payload(&[0; 10]), None);
        assert!(starts_keyframe(&packet[HEADER_LEN..]));
        write_packet(&mut packet, &Place { keyframe: false, ..place }, 13, 35);
        assert!(!starts_keyframe(&packet[HEADER_LEN..]));
    }

    #[test]
    fn frames_add_up_to_the_bitrate() {
        let mut sizer = FrameSizer::new(1_500_000, 1_100, 30);
        let packets: usize = (0..300).map(|_| sizer.next_frame()).sum();
        assert!(packets.abs_diff(1_500_000 * 10 / 8 / 1_100) <= 1, "{packets}");
    }
}
