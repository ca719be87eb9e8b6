//! What stands between a packet and the wire: SRTP, or nothing on a plain RTP route.

use crate::DropReason;
use crate::control::SrtpKeys;
use crate::srtp::{Opened, SrtpReceiver, SrtpSender};

/// Ahead of the newest packet by this many, a packet begins the stream anew (RFC 3550 appendix A.1, `MAX_DROPOUT`).
const DROPOUT_MAX: u16 = 3_000;

/// Behind the newest packet by this many, likewise. RFC 3550 has 100; this is what a video history still takes.
const MISORDER_MAX: u16 = 1_000;

/// The sending half.
pub enum Sender {
    /// RFC 3550 as it is.
    Plain,
    /// RFC 3711.
    Srtp(SrtpSender),
}

impl Sender {
    /// Under `keys`, or plain.
    pub fn new(keys: Option<&SrtpKeys>) -> Sender {
        keys.map_or(Sender::Plain, |keys| Sender::Srtp(SrtpSender::new(keys.profile, &keys.local)))
    }

    /// As [`SrtpSender::is_exhausted`].
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Sender::Srtp(sender) if sender.is_exhausted())
    }

    /// Bytes that an RTP packet grows by.
    #[inline]
    pub fn overhead(&self) -> usize {
        match self {
            Sender::Plain => 0,
            Sender::Srtp(sender) => sender.overhead(),
        }
    }

    /// Bytes that an RTCP packet grows by.
    pub fn rtcp_overhead(&self) -> usize {
        match self {
            Sender::Plain => 0,
            Sender::Srtp(sender) => sender.rtcp_overhead(),
        }
    }

    /// As [`SrtpSender::protect_rtp`]; a plain packet is header and payload.
    ///
    /// Errors: those of [`SrtpSender::protect_rtp`]; plain: [`DropReason::TooLarge`].
    #[inline]
    pub fn protect_rtp(&self, index: u64, header: &[u8], payload: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
        match self {
            Sender::Srtp(sender) => sender.protect_rtp(index, header, payload, out),
            Sender::Plain => {
                let len = header.len() + payload.len();
                let out = out.get_mut(..len).ok_or(DropReason::TooLarge)?;
                let (head, body) = out.split_at_mut(header.len());
                head.copy_from_slice(header);
                body.copy_from_slice(payload);
                Ok(len)
            }
        }
    }

    /// As [`SrtpSender::protect_padded_rtp`]. What leaves plain is not padded: routes keep the packets that came.
    ///
    /// Errors: those of [`SrtpSender::protect_padded_rtp`]; plain: [`DropReason::TooLarge`].
    #[inline]
    pub fn protect_padded_rtp(&self, index: u64, header: &[u8], payload: &[u8], padding: u8, out: &mut [u8]) -> Result<usize, DropReason> {
        match self {
            Sender::Srtp(sender) => sender.protect_padded_rtp(index, header, payload, padding, out),
            Sender::Plain => self.protect_rtp(index, header, payload, out),
        }
    }

    /// As [`SrtpSender::protect_rtcp`]; a plain packet stays as it is.
    ///
    /// Errors: those of [`SrtpSender::protect_rtcp`].
    pub fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Result<usize, DropReason> {
        match self {
            Sender::Plain => Ok(len),
            Sender::Srtp(sender) => sender.protect_rtcp(buf, len),
        }
    }
}

/// The receiving half.
pub enum Receiver {
    /// RFC 3550 as it is: nothing is authentic, everything is bounded.
    Plain(PlainReceiver),
    /// RFC 3711.
    Srtp(SrtpReceiver),
}

impl Receiver {
    /// Under `keys`, or plain.
    pub fn new(keys: Option<&SrtpKeys>) -> Receiver {
        let srtp = |keys: &SrtpKeys| Receiver::Srtp(SrtpReceiver::new(keys.profile, &keys.remote));
        keys.map_or(Receiver::Plain(PlainReceiver::default()), srtp)
    }

    /// As [`SrtpReceiver::unprotect_rtp`]; a plain packet is left as it is.
    ///
    /// Errors: those of [`SrtpReceiver::unprotect_rtp`] and of [`PlainReceiver::index`].
    #[inline]
    pub fn unprotect_rtp(&mut self, packet: &mut [u8], header_len: usize) -> Result<Opened, DropReason> {
        match self {
            Receiver::Srtp(receiver) => receiver.unprotect_rtp(packet, header_len),
            Receiver::Plain(receiver) => Ok(Opened { len: packet.len(), index: receiver.index(packet)? }),
        }
    }

    /// As [`SrtpReceiver::unprotect_rtcp`]; a plain packet is left as it is.
    ///
    /// Errors: those of [`SrtpReceiver::unprotect_rtcp`].
    pub fn unprotect_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, DropReason> {
        match self {
            Receiver::Srtp(receiver) => receiver.unprotect_rtcp(packet),
            Receiver::Plain(_) => Ok(packet.len()),
        }
    }

    /// As [`SrtpReceiver::forget`].
    pub fn forget(&mut self, ssrc: u32) {
        match self {
            Receiver::Srtp(receiver) => receiver.forget(ssrc),
            Receiver::Plain(receiver) => receiver.forget(ssrc),
        }
    }
}

/// Extends the sequence numbers of the one stream of a plain route (RFC 3550 appendix A.1).
#[derive(Debug, Default)]
pub struct PlainReceiver {
    stream: Option<PlainStream>,
}

#[derive(Debug)]
struct PlainStream {
    ssrc: u32,
    highest: u64,
    /// A packet far from the others came; the one that follows it proves that the sender began anew.
    restart: Option<u16>,
}

impl PlainReceiver {
    /// The stream that is being received.
    pub fn ssrc(&self) -> Option<u32> {
        self.stream.as_ref().map(|stream| stream.ssrc)
    }

    /// Whether this packet begins the stream anew: another SSRC, or the second of two packets far from all others.
    ///
    /// A lone packet far away is remembered; [`PlainReceiver::index`] refuses it.
    pub fn begins_anew(&mut self, ssrc: u32, sequence: u16) -> bool {
        let Some(stream) = &mut self.stream else { return true };
        if stream.ssrc != ssrc {
            return true;
        }
        if is_near(stream.highest, sequence) {
            stream.restart = None;
            return false;
        }
        stream.restart.replace(sequence.wrapping_add(1)) == Some(sequence)
    }

    /// The extended sequence number of a packet with at least a fixed header, whose SSRC becomes the stream's when there is none.
    ///
    /// Errors: [`DropReason::UnknownStream`] for another SSRC than the stream's, [`DropReason::TooOld`] for one packet far from all
    /// others.
    pub fn index(&mut self, packet: &[u8]) -> Result<u64, DropReason> {
        let fixed: &[u8; 12] = packet.first_chunk().ok_or(DropReason::RtpMalformed)?;
        let sequence = u16::from_be_bytes([fixed[2], fixed[3]]);
        let ssrc = u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
        let Some(stream) = &mut self.stream else {
            // One turn above zero, so that what was overtaken by the first packet has a place.
            let highest = 0x1_0000 + u64::from(sequence);
            self.stream = Some(PlainStream { ssrc, highest, restart: None });
            return Ok(highest);
        };
        if stream.ssrc != ssrc {
            return Err(DropReason::UnknownStream);
        }
        if !is_near(stream.highest, sequence) {
            return Err(DropReason::TooOld);
        }
        let ahead = sequence.wrapping_sub(stream.highest as u16) as i16;
        // The highest is at least 2^16, and a near packet is less than 2^15 away.
        let index = stream.highest.saturating_add_signed(i64::from(ahead));
        stream.highest = stream.highest.max(index);
        Ok(index)
    }

    /// Forgets the stream: the next packet begins one.
    pub fn forget(&mut self, ssrc: u32) {
        self.stream.take_if(|stream| stream.ssrc == ssrc);
    }
}

fn is_near(highest: u64, sequence: u16) -> bool {
    let ahead = sequence.wrapping_sub(highest as u16);
    !(DROPOUT_MAX..=u16::MAX - MISORDER_MAX).contains(&ahead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtp;

    fn packet(ssrc: u32, sequence: u16) -> [u8; 12] {
        let mut packet = [0; 12];
        rtp::write_header(&mut packet, false, 96, sequence, 0, ssrc);
        packet
    }

    #[test]
    fn a_plain_stream_counts_on_over_its_rollover() {
        let mut receiver = PlainReceiver::default();
        let indexes: Vec<_> = [65_534, 65_533, 65_535, 1, 0].map(|s| receiver.index(&packet(7, s)).unwrap()).to_vec();
        assert_eq!(indexes, [0x1_fffe, 0x1_fffd, 0x1_ffff, 0x2_0001, 0x2_0000]);
        assert_eq!(receiver.index(&packet(8, 2)), Err(DropReason::UnknownStream));
    }

    #[test]
    fn one_packet_far_away_is_refused_and_two_in_order_begin_anew() {
        let mut receiver = PlainReceiver::default();
        receiver.index(&packet(7, 100)).unwrap();
        assert!(!receiver.begins_anew(7, 101));
        assert!(!receiver.begins_anew(7, 30_000));
        assert_eq!(receiver.index(&packet(7, 30_000)), Err(DropReason::TooOld));
        // One that fits in between takes the suspicion away.
        assert!(!receiver.begins_anew(7, 101));
        assert!(!receiver.begins_anew(7, 30_001));
        assert!(receiver.begins_anew(7, 30_002));
        assert!(receiver.begins_anew(9, 101));
    }

    #[test]
    fn plain_is_header_and_payload_and_needs_its_room() {
        let mut out = [0; 15];
        assert_eq!(Sender::Plain.protect_rtp(0, &packet(1, 2), &[5, 6, 7], &mut out), Ok(15));
        assert_eq!((&out[..12], &out[12..]), (&packet(1, 2)[..], &[5, 6, 7][..]));
        assert_eq!(Sender::Plain.protect_rtp(0, &packet(1, 2), &[5, 6, 7], &mut out[..14]), Err(DropReason::TooLarge));
    }
}
