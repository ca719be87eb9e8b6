//! STAMP test packets in unauthenticated mode (RFC 8762 section 4.2.1), which TWAMP-Light senders share, with the session
//! identifier and the TLVs of RFC 8972.
//!
//! ```text
//! request 44  sequence 4 | timestamp 8 | error 2 | ssid 2 | zero 28                                            | TLVs or padding
//! reply   44  sequence 4 | timestamp 8 | error 2 | ssid 2 | received 8 | the request's first 14 | 0 2 | ttl 1 | 0 3 | the same
//! ```

use std::time::Duration;

use crate::DropReason;

/// Bytes of a test packet without TLVs and padding, in both directions.
pub const PACKET_LEN: usize = 44;

/// Shortest request that is answered: the reply up to the TTL, which is what a TWAMP-Light sender pads to (RFC 5357 section 4.1.2:
/// 14 bytes and 27 of padding). A shorter one would get more than it sent.
pub const REQUEST_LEN_MIN: usize = 41;

/// Longest request that is answered: what an Ethernet frame carries over IPv4.
pub const REQUEST_LEN_MAX: usize = 1_472;

/// The UDP port of TWAMP-Test and STAMP. A request from it is a reflector's reply, and answering would never end.
pub const PORT: u16 = 862;

/// Seconds from 1900, where NTP starts, to 1970.
const NTP_OFFSET_S: u64 = 2_208_988_800;

/// A sender sets U alone (RFC 8972 section 4): anything else behind the packet is a TWAMP sender's padding.
const TLV_SENT: u8 = 0x80;
const TLV_UNRECOGNIZED: u8 = 0x80;
const TLV_MALFORMED: u8 = 0x40;
/// Extra Padding, which asks for nothing but its return (RFC 8972 section 4.1).
const TLV_EXTRA_PADDING: u8 = 1;

/// A timestamp in the 64-bit NTP format: seconds since 1900 and their binary fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// From the wall clock.
    pub fn from_unix(since_1970: Duration) -> NtpTime {
        // The era wraps in 2036, as NTP's does.
        let seconds = since_1970.as_secs().wrapping_add(NTP_OFFSET_S) << 32;
        NtpTime(seconds | ((u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000))
    }

    /// Signed nanoseconds from `earlier` to this; right for times within 68 years of each other.
    pub fn nanos_since(self, earlier: NtpTime) -> i64 {
        let units = self.0.wrapping_sub(earlier.0) as i64;
        ((i128::from(units) * 1_000_000_000) >> 32) as i64
    }
}

/// How far a timestamp may be off (RFC 4656 section 4.1.2): `S Z scale(6) multiplier(8)`, an error of multiplier * 2^(scale - 32) s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEstimate(pub u16);

impl ErrorEstimate {
    /// Rounds `error` up. `is_synchronized`: the clock follows UTC by an external source.
    pub fn new(is_synchronized: bool, error: Duration) -> ErrorEstimate {
        // Seconds are cut at what the format holds, 255 * 2^31 s; no clock is that wrong.
        let mut multiplier = (error.as_nanos().min(u128::from(u64::MAX)) << 32).div_ceil(1_000_000_000);
        let mut scale = 0u16;
        while multiplier > 255 {
            multiplier = multiplier.div_ceil(2);
            scale += 1;
        }
        // "The Multiplier MUST NOT be set to zero" (RFC 4656 section 4.1.2).
        ErrorEstimate(u16::from(is_synchronized) << 15 | scale.min(63) << 8 | (multiplier as u16).max(1))
    }

    /// The S bit.
    pub fn is_synchronized(self) -> bool {
        self.0 >> 15 == 1
    }

    /// The Z bit: the timestamp beside it is PTPv2's truncated one, not NTP's (RFC 8186).
    pub fn is_ptp(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// The error that it says.
    pub fn error(self) -> Duration {
        let (scale, multiplier) = (self.0 >> 8 & 63, u128::from(self.0 & 255));
        let nanos = ((multiplier << scale) * 1_000_000_000) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What the reflector knows of its own.
#[derive(Clone, Copy, Debug)]
pub struct Reflection {
    /// When the request came, by the kernel where it tells.
    pub received: NtpTime,
    /// Now.
    pub transmitted: NtpTime,
    /// The error of both.
    pub error: ErrorEstimate,
    /// TTL or hop limit of the request; 255 where the kernel did not tell.
    pub ttl: u8,
}

/// Writes the reply to `request`, exactly as long as it, and returns that length. Stateless: "the Session-Reflector MUST use the
/// value in the Sequence Number field of the received packet" (RFC 8762 section 4.3.1).
///
/// # Errors
///
/// [`DropReason::StampMalformed`]: too short, too long, or longer than `out`.
pub fn write_reply(request: &[u8], reflection: &Reflection, out: &mut [u8]) -> Result<usize, DropReason> {
    let len = request.len();
    let (true, Some(out)) = ((REQUEST_LEN_MIN..=REQUEST_LEN_MAX).contains(&len), out.get_mut(..len)) else {
        return Err(DropReason::StampMalformed);
    };
    let mut head = [0; PACKET_LEN];
    head[..4].copy_from_slice(&request[..4]);
    head[4..12].copy_from_slice(&reflection.transmitted.0.to_be_bytes());
    head[12..14].copy_from_slice(&reflection.error.0.to_be_bytes());
    // "copies the SSID" (RFC 8972 section 3): with it, sessions on one 5-tuple are told apart.
    head[14..16].copy_from_slice(&request[14..16]);
    head[16..24].copy_from_slice(&reflection.received.0.to_be_bytes());
    head[24..38].copy_from_slice(&request[..14]);
    head[40] = reflection.ttl;
    let head_len = len.min(PACKET_LEN);
    out[..head_len].copy_from_slice(&head[..head_len]);
    out[head_len..].copy_from_slice(&request[head_len..]);
    mark_tlvs(&mut out[head_len..]);
    Ok(len)
}

/// Tells the sender which of its TLVs mean nothing here: all but Extra Padding. The values go back as they came.
fn mark_tlvs(mut tlvs: &mut [u8]) {
    while let [flags, kind, high, low, ..] = tlvs {
        if *flags != TLV_SENT {
            return;
        }
        let next = 4 + usize::from(u16::from_be_bytes([*high, *low]));
        *flags = if *kind == TLV_EXTRA_PADDING { 0 } else { TLV_UNRECOGNIZED };
        if next > tlvs.len() {
            // "the Session-Reflector MUST stop processing" behind it (RFC 8972 section 4).
            tlvs[0] |= TLV_MALFORMED;
            return;
        }
        tlvs = &mut tlvs[next..];
    }
}

/// Writes a sender's packet.
pub fn write_request(sequence: u32, at: NtpTime, error: ErrorEstimate, ssid: u16, out: &mut [u8; PACKET_LEN]) {
    out.fill(0);
    out[..4].copy_from_slice(&sequence.to_be_bytes());
    out[4..12].copy_from_slice(&at.0.to_be_bytes());
    out[12..14].copy_from_slice(&error.0.to_be_bytes());
    out[14..16].copy_from_slice(&ssid.to_be_bytes());
}

/// What a sender reads in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// When it left the reflector.
    pub transmitted: NtpTime,
    /// The error of the reflector's timestamps.
    pub error: ErrorEstimate,
    /// The session's identifier, as sent (zero by reflectors that know RFC 8762 alone).
    pub ssid: u16,
    /// When the request reached the reflector.
    pub received: NtpTime,
    /// The request's sequence number.
    pub sender_sequence: u32,
    /// The request's timestamp.
    pub sender_at: NtpTime,
    /// TTL with which the request reached the reflector.
    pub sender_ttl: u8,
}

impl Reply {
    /// Reads a reply of at least [`REQUEST_LEN_MIN`] bytes; what follows its 44 is not looked at.
    ///
    /// # Errors
    ///
    /// [`DropReason::StampMalformed`]: too short.
    pub fn parse(bytes: &[u8]) -> Result<Reply, DropReason> {
        let head: &[u8; REQUEST_LEN_MIN] = bytes.first_chunk().ok_or(DropReason::StampMalformed)?;
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| head[at + i]));
        let u16_at = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        Ok(Reply {
            transmitted: NtpTime(u64_at(4)),
            error: ErrorEstimate(u16_at(12)),
            ssid: u16_at(14),
            received: NtpTime(u64_at(16)),
            sender_sequence: (u64_at(24) >> 32) as u32,
            sender_at: NtpTime(u64_at(28)),
            sender_ttl: head[40],
        })
    }

    /// Signed nanoseconds that the request was inside the reflector.
    pub fn turnaround_nanos(&self) -> i64 {
        if !self.error.is_ptp() {
            return self.transmitted.nanos_since(self.received);
        }
        // 32 bits of seconds, 32 of nanoseconds (RFC 8186 section 2).
        let nanos = |time: NtpTime| i64::from((time.0 >> 32) as u32) * 1_000_000_000 + i64::from(time.0 as u32);
        nanos(self.transmitted) - nanos(self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFLECTION: Reflection = Reflection {
        received: NtpTime(0x1111_2222_3333_4444),
        transmitted: NtpTime(0x5555_6666_7777_8888),
        error: ErrorEstimate(0x8a01),
        ttl: 61,
    };

    fn request() -> [u8; PACKET_LEN] {
        let mut out = [0; PACKET_LEN];
        write_request(7, NtpTime(0xabcd), ErrorEstimate(1), 0xbeef, &mut out);
        out
    }

    fn reply(request: &[u8]) -> Vec<u8> {
        let mut out = [0; REQUEST_LEN_MAX];
        let len = write_reply(request, &REFLECTION, &mut out).expect("it is a request");
        out[..len].to_vec()
    }

    #[test]
    fn a_reply_says_both_times_and_gives_the_request_back() {
        let bytes = reply(&request());
        assert_eq!((bytes.len(), &bytes[..4]), (PACKET_LEN, &[0, 0, 0, 7][..]));
        assert_eq!(bytes[24..38], request()[..14], "sequence, timestamp and error of the sender");
        assert_eq!((&bytes[38..40], &bytes[41..]), (&[0, 0][..], &[0, 0, 0][..]), "what must be zero is");
        let read = Reply::parse(&bytes).expect("it is a reply");
        let Reflection { received, transmitted, error, ttl } = REFLECTION;
        let expected =
            Reply { transmitted, error, ssid: 0xbeef, received, sender_sequence: 7, sender_at: NtpTime(0xabcd), sender_ttl: ttl };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_reply_is_as_long_as_its_request_and_what_is_too_short_for_it_gets_none() {
        for len in 0..=REQUEST_LEN_MAX + 1 {
            let request = vec![0; len];
            let result = write_reply(&request, &REFLECTION, &mut [0; 2_000]);
            let expected = if (REQUEST_LEN_MIN..=REQUEST_LEN_MAX).contains(&len) { Ok(len) } else { Err(DropReason::StampMalformed) };
            assert_eq!(result, expected, "{len} bytes");
        }
        assert_eq!(write_reply(&request(), &REFLECTION, &mut [0; PACKET_LEN - 1]), Err(DropReason::StampMalformed));
    }

    #[test]
    fn unknown_tlvs_are_marked_padding_is_not_and_broken_ones_end_the_reading() {
        let tlvs = |bytes: &[u8]| reply(&[&request()[..], bytes].concat())[PACKET_LEN..].to_vec();
        assert_eq!(tlvs(&[0x80, 1, 0, 2, 9, 9, 0x80, 4, 0, 0]), [0, 1, 0, 2, 9, 9, 0x80, 4, 0, 0]);
        assert_eq!(tlvs(&[0x80, 1, 0, 3, 9, 9, 0x80, 1]), [0, 1, 0, 3, 9, 9, 0x80, 1], "a rest of no TLV");
        assert_eq!(tlvs(&[0x80, 9, 0xff, 0xff, 0x80, 1, 0, 0]), [0xc0, 9, 0xff, 0xff, 0x80, 1, 0, 0]);
        let padding = [0x55; 27];
        assert_eq!(tlvs(&padding), padding, "a TWAMP sender's padding comes back as it is");
    }

    #[test]
    fn an_error_estimate_is_never_below_the_error_and_never_zero() {
        for nanos in [0, 1, 999, 60_000, 1_000_000, 16_000_000_000, u64::MAX] {
            for is_synchronized in [false, true] {
                let estimate = ErrorEstimate::new(is_synchronized, Duration::from_nanos(nanos));
                assert_ne!(estimate.0 & 255, 0);
                assert_eq!((estimate.is_synchronized(), estimate.is_ptp()), (is_synchronized, false));
                let said = estimate.error().as_nanos() as f64;
                assert!(said + 1.0 >= nanos as f64 && said <= nanos as f64 * 1.02 + 2.0, "{nanos} became {said}");
            }
        }
    }

    #[test]
    fn the_turnaround_is_read_in_the_reflectors_own_format() {
        let mut read = Reply::parse(&reply(&request())).expect("it is a reply");
        (read.received, read.transmitted) = (NtpTime(5 << 32 | 1 << 31), NtpTime(6 << 32));
        assert_eq!(read.turnaround_nanos(), 500_000_000);
        read.error = ErrorEstimate(0x4001);
        (read.received, read.transmitted) = (NtpTime(5 << 32 | 999_999_000), NtpTime(6 << 32 | 1_000));
        assert_eq!(read.turnaround_nanos(), 2_000);
    }

    #[test]
    fn ntp_time_is_unix_time_moved() {
        // RFC 5905 figure 4: 1970-01-01 is 2,208,988,800 s into the era.
        assert_eq!(NtpTime::from_unix(Duration::ZERO), NtpTime(2_208_988_800 << 32));
        let half = NtpTime::from_unix(Duration::from_millis(500));
        assert_eq!(half.0 & 0xffff_ffff, 1 << 31);
        assert_eq!(half.nanos_since(NtpTime::from_unix(Duration::ZERO)), 500_000_000);
        assert_eq!(NtpTime(0).nanos_since(NtpTime(1 << 32)), -1_000_000_000);
        // After February 2036 the seconds begin anew, and differences go on.
        let wrap = Duration::from_secs((1 << 32) - 2_208_988_800);
        assert_eq!(NtpTime::from_unix(wrap).nanos_since(NtpTime::from_unix(wrap - Duration::from_secs(1))), 1_000_000_000);
    }
}
