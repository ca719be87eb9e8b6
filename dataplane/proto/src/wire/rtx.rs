//! Retransmissions on a stream of their own (RFC 4588, SSRC multiplexing).

use crate::DropReason;

/// Bytes in front of the original payload: the original sequence number (OSN).
pub const OSN_LEN: usize = 2;

/// Turns a decrypted RTX packet into the packet that it repeats, in place: header with the original's sequence number, `ssrc` and
/// `payload_type`, then the original's payload. Extensions stay as the RTX packet has them.
///
/// `plain` ends with the payload, padding is gone; `header_len` is its header. The original starts [`OSN_LEN`] bytes into `plain`
/// and is returned with its sequence number. `None`: the payload is empty, which is how senders probe for bandwidth.
///
/// `RtxMalformed` when the payload has no room for the sequence number, `RtpMalformed` when `plain` has none for its header.
pub fn restore(plain: &mut [u8], header_len: usize, ssrc: u32, payload_type: u8) -> Result<Option<(u16, &mut [u8])>, DropReason> {
    let payload = plain.get(header_len..).ok_or(DropReason::RtpMalformed)?;
    let osn = match payload {
        [] => return Ok(None),
        [_] => return Err(DropReason::RtxMalformed),
        [high, low, ..] => [*high, *low],
    };
    plain.copy_within(..header_len, OSN_LEN);
    let original = &mut plain[OSN_LEN..];
    let fixed = original.first_chunk_mut::<12>().ok_or(DropReason::RtpMalformed)?;
    fixed[1] = fixed[1] & 0x80 | payload_type & 0x7f;
    fixed[2..4].copy_from_slice(&osn);
    fixed[8..].copy_from_slice(&ssrc.to_be_bytes());
    Ok(Some((u16::from_be_bytes(osn), original)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtp::{RtpView, write_header};

    fn packet(extension: &[u8], payload: &[u8]) -> (Vec<u8>, usize) {
        let mut packet = vec![0; 12];
        write_header(&mut packet, true, 97, 5, 1_234, 0xaaaa);
        packet[0] |= u8::from(!extension.is_empty()) << 4;
        packet.extend_from_slice(extension);
        let header_len = packet.len();
        packet.extend_from_slice(payload);
        (packet, header_len)
    }

    #[test]
    fn the_original_comes_back_with_its_extensions() {
        let (mut plain, header_len) = packet(&[0xbe, 0xde, 0, 1, 0x10, 7, 0, 0], &[0xff, 0xfe, 1, 2, 3]);
        let (sequence, original) = restore(&mut plain, header_len, 0xbbbb, 96).unwrap().expect("it has a payload");
        assert_eq!(sequence, 0xfffe);
        let view = RtpView::parse(original).unwrap();
        assert_eq!((view.payload_type(), view.sequence(), view.timestamp(), view.ssrc()), (96, 0xfffe, 1_234, 0xbbbb));
        assert!(view.marker());
        assert_eq!(view.extension(1), Some(&[7][..]));
        assert_eq!(original[view.header_len()..], [1, 2, 3]);
    }

    #[test]
    fn a_probe_is_empty_and_half_a_sequence_number_is_malformed() {
        let (mut plain, header_len) = packet(&[], &[]);
        assert_eq!(restore(&mut plain, header_len, 1, 96), Ok(None));
        let (mut plain, header_len) = packet(&[], &[7]);
        assert_eq!(restore(&mut plain, header_len, 1, 96), Err(DropReason::RtxMalformed));
        let (mut plain, header_len) = packet(&[], &[0, 7]);
        assert_eq!(restore(&mut plain, header_len, 1, 96).unwrap().map(|(_, original)| original.len()), Some(12), "an empty original");
    }
}
