//! Bounded views of what arrives. No byte reaches a machine, or a library, before its check here.

pub mod dependency;
pub mod dtls;
pub mod red;
pub mod rtcp;
pub mod rtp;
pub mod rtx;
pub mod stamp;
pub mod stun;

use crate::DropReason;

/// The protocols that share one media port (RFC 7983).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 8489.
    Stun,
    /// RFC 6347.
    Dtls,
    /// SRTP.
    Rtp,
    /// SRTCP, multiplexed with RTP (RFC 5761).
    Rtcp,
}

/// Shortest STUN message: its header.
const STUN_LEN_MIN: usize = 20;
/// Shortest DTLS record: its header.
const DTLS_LEN_MIN: usize = 13;
/// Shortest RTP packet: its fixed header.
const RTP_LEN_MIN: usize = 12;
/// Shortest RTCP packet that says anything: header and sender SSRC.
const RTCP_LEN_MIN: usize = 8;

/// Which protocol a datagram is of, by its first two bytes, and long enough for that protocol's fixed header.
///
/// ZRTP, TURN channels and QUIC, which RFC 7983 and RFC 9443 put beside these, have no user here: `UnknownProtocol`.
#[inline]
pub fn demux(datagram: &[u8]) -> Result<Protocol, DropReason> {
    let (protocol, len_min, short) = match datagram {
        [0..=3, ..] => (Protocol::Stun, STUN_LEN_MIN, DropReason::StunMalformed),
        [20..=63, ..] => (Protocol::Dtls, DTLS_LEN_MIN, DropReason::DtlsMalformed),
        // RFC 5761 section 4: "the RTCP packet type field occupies the same position in the packet as the combination of the
        // RTP marker (M) bit and the RTP payload type (PT)"; 192 to 223 are RTCP, so payload types 64 to 95 are never offered.
        [128..=191, 192..=223, ..] => (Protocol::Rtcp, RTCP_LEN_MIN, DropReason::RtcpMalformed),
        [128..=191, ..] => (Protocol::Rtp, RTP_LEN_MIN, DropReason::RtpMalformed),
        _ => return Err(DropReason::UnknownProtocol),
    };
    if datagram.len() < len_min { Err(short) } else { Ok(protocol) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7983 section 7, written out: what each first byte is, whatever follows.
    #[test]
    fn the_first_byte_chooses_as_in_rfc_7983() {
        for first in 0..=255u8 {
            let mut datagram = [0; 64];
            datagram[0] = first;
            let expected = match first {
                0..=3 => Ok(Protocol::Stun),
                20..=63 => Ok(Protocol::Dtls),
                128..=191 => Ok(Protocol::Rtp),
                _ => Err(DropReason::UnknownProtocol),
            };
            assert_eq!(demux(&datagram), expected, "first byte {first}");
        }
    }

    #[test]
    fn the_second_byte_tells_rtcp_from_rtp_as_in_rfc_5761() {
        for second in 0..=255u8 {
            let mut datagram = [0; 64];
            datagram[..2].copy_from_slice(&[0x80, second]);
            let expected = if (192..=223).contains(&second) { Protocol::Rtcp } else { Protocol::Rtp };
            assert_eq!(demux(&datagram), Ok(expected), "second byte {second}");
        }
    }

    #[test]
    fn a_datagram_shorter_than_its_protocols_header_is_malformed() {
        assert_eq!(demux(&[]), Err(DropReason::UnknownProtocol));
        for (first, second, len_min, reason) in [
            (0, 1, 20, DropReason::StunMalformed),
            (22, 254, 13, DropReason::DtlsMalformed),
            (0x80, 96, 12, DropReason::RtpMalformed),
            (0x80, 200, 8, DropReason::RtcpMalformed),
        ] {
            let mut datagram = [0; 20];
            datagram[..2].copy_from_slice(&[first, second]);
            assert_eq!(demux(&datagram[..len_min - 1]), Err(reason));
            assert!(demux(&datagram[..len_min]).is_ok());
        }
        assert_eq!(demux(&[0x80]), Err(DropReason::RtpMalformed));
    }
}
