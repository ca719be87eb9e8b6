//! RTP (RFC 3550 section 5.1) and its header extensions (RFC 8285).

use crate::DropReason;

/// Bytes of the fixed header: what [`write_header`] makes.
pub const FIXED_HEADER_LEN: usize = 12;

/// The P bit of a header's first byte: padding follows the payload.
pub const PADDING: u8 = 0x20;

const MALFORMED: DropReason = DropReason::RtpMalformed;

/// The header of one RTP packet, encrypted or not: the payload is never looked at.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// |V=2|P|X|  CC   |M|     PT      |       sequence number         |
/// |                           timestamp                           |
/// |                             SSRC                              |
/// |                 CSRC x CC, extension block                    |
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RtpView<'a> {
    fixed: &'a [u8; FIXED_HEADER_LEN],
    extensions: Extensions<'a>,
    header_len: usize,
}

impl<'a> RtpView<'a> {
    /// Checks the version, the CSRC list and every element of the extension block against the packet's length.
    /// `RtpMalformed` when one of them overruns.
    ///
    /// Padding is not checked: its count is inside the encrypted part, see [`payload`].
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<RtpView<'a>, DropReason> {
        let fixed: &[u8; FIXED_HEADER_LEN] = packet.first_chunk().ok_or(MALFORMED)?;
        if fixed[0] >> 6 != 2 {
            return Err(MALFORMED);
        }
        let csrc_end = FIXED_HEADER_LEN + 4 * usize::from(fixed[0] & 0x0f);
        let after_csrc = packet.get(csrc_end..).ok_or(MALFORMED)?;
        if fixed[0] & 0x10 == 0 {
            return Ok(RtpView { fixed, extensions: Extensions::NONE, header_len: csrc_end });
        }
        let ([p0, p1, w0, w1], after_head) = after_csrc.split_first_chunk().ok_or(MALFORMED)?;
        let len = 4 * usize::from(u16::from_be_bytes([*w0, *w1]));
        let extensions = Extensions::new(u16::from_be_bytes([*p0, *p1]), after_head.get(..len).ok_or(MALFORMED)?);
        if extensions.overrun() {
            return Err(MALFORMED);
        }
        Ok(RtpView { fixed, extensions, header_len: csrc_end + 4 + len })
    }

    /// The marker bit: for video, the last packet of a frame.
    #[inline]
    pub fn marker(&self) -> bool {
        self.fixed[1] & 0x80 != 0
    }

    /// Payload type, 0 to 127.
    #[inline]
    pub fn payload_type(&self) -> u8 {
        self.fixed[1] & 0x7f
    }

    /// Sequence number.
    #[inline]
    pub fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.fixed[2], self.fixed[3]])
    }

    /// Timestamp, in units of the codec's clock.
    #[inline]
    pub fn timestamp(&self) -> u32 {
        u32::from_be_bytes([self.fixed[4], self.fixed[5], self.fixed[6], self.fixed[7]])
    }

    /// Synchronisation source.
    #[inline]
    pub fn ssrc(&self) -> u32 {
        u32::from_be_bytes([self.fixed[8], self.fixed[9], self.fixed[10], self.fixed[11]])
    }

    /// Bytes before the payload: fixed header, CSRC list, extension block. What SRTP leaves in the clear.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// The first extension element with this id; `None` also for a block that is not RFC 8285's.
    #[inline]
    pub fn extension(&self, id: u8) -> Option<&'a [u8]> {
        self.extensions.elements().find_map(|(found, value)| (found == id).then_some(value))
    }

    /// Every extension element as id and value, padding left out.
    #[inline]
    pub fn extensions(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        self.extensions.elements()
    }

    /// Every extension element as id, place in the packet and value.
    #[inline]
    pub fn extension_places(&self) -> impl Iterator<Item = (u8, usize, &'a [u8])> + use<'a> {
        let end = self.header_len;
        let mut elements = self.extensions.elements();
        // The block ends where the header ends: what is left behind a value tells where the value is.
        std::iter::from_fn(move || elements.next().map(|(id, value)| (id, end - elements.rest.len() - value.len(), value)))
    }

    /// The transport-wide sequence number (draft-holmer-rmcat-transport-wide-cc-extensions-01 section 2) under this id.
    #[inline]
    pub fn transport_sequence(&self, id: u8) -> Option<u16> {
        self.extension(id)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// The payload of a decrypted packet without its padding; `header_len` is [`RtpView::header_len`] of the same packet.
///
/// `RtpMalformed` for a padding count of 0 or one that reaches into the header (CVE-2025-49140 is what happens otherwise).
/// A packet that is all padding is well formed and has an empty payload: libwebrtc probes bandwidth with such packets on the
/// media SSRC, and dropping them would leave holes that are asked for again and again.
#[inline]
pub fn payload(plain: &[u8], header_len: usize) -> Result<&[u8], DropReason> {
    let body = plain.get(header_len..).ok_or(MALFORMED)?;
    if plain.first().ok_or(MALFORMED)? & 0x20 == 0 {
        return Ok(body);
    }
    // RFC 3550 section 5.1: "The last octet of the padding contains a count of how many padding octets should be ignored,
    // including itself."
    let count = usize::from(*body.last().ok_or(MALFORMED)?);
    if count == 0 {
        return Err(MALFORMED);
    }
    body.get(..body.len().checked_sub(count).ok_or(MALFORMED)?).ok_or(MALFORMED)
}

/// Writes a fixed header without padding, CSRCs or extensions; returns its length, [`FIXED_HEADER_LEN`].
///
/// Panics when `out` is shorter: the caller's headroom is a constant.
#[inline]
pub fn write_header(out: &mut [u8], marker: bool, payload_type: u8, sequence: u16, timestamp: u32, ssrc: u32) -> usize {
    let out: &mut [u8; FIXED_HEADER_LEN] = out.first_chunk_mut().expect("every send buffer has room for an RTP header");
    out[0] = 0x80;
    out[1] = (u8::from(marker) << 7) | (payload_type & 0x7f);
    out[2..4].copy_from_slice(&sequence.to_be_bytes());
    out[4..8].copy_from_slice(&timestamp.to_be_bytes());
    out[8..12].copy_from_slice(&ssrc.to_be_bytes());
    FIXED_HEADER_LEN
}

/// How an extension block lays out its elements.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// 0xBEDE: 4 bits of id, 4 bits of length - 1.
    OneByte,
    /// 0x100_: a byte of id, a byte of length.
    TwoByte,
}

#[derive(Clone, Copy, Debug)]
struct Extensions<'a> {
    form: Form,
    block: &'a [u8],
}

impl<'a> Extensions<'a> {
    const NONE: Extensions<'static> = Extensions { form: Form::OneByte, block: &[] };

    #[inline]
    fn new(profile: u16, block: &'a [u8]) -> Extensions<'a> {
        match profile {
            0xbede => Extensions { form: Form::OneByte, block },
            // RFC 8285 section 4.3: the low four bits are "appbits", to be ignored when unknown.
            0x1000..=0x100f => Extensions { form: Form::TwoByte, block },
            // RFC 3550 section 5.3.1 lets a profile define its own block; whoever does not know it skips it.
            _ => Extensions::NONE,
        }
    }

    #[inline]
    fn elements(self) -> Elements<'a> {
        Elements { form: self.form, rest: self.block, overrun: false }
    }

    #[inline]
    fn overrun(self) -> bool {
        let mut elements = self.elements();
        elements.by_ref().for_each(drop);
        elements.overrun
    }
}

struct Elements<'a> {
    form: Form,
    rest: &'a [u8],
    /// Set when an element's length passed the end of the block; iteration has then stopped.
    overrun: bool,
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            let (id, len, value) = match (self.form, self.rest) {
                (_, []) => return None,
                (_, [0, rest @ ..]) => {
                    self.rest = rest;
                    continue;
                }
                // RFC 8285 section 4.2: for ID 15, and for ID 0 with a length, "processing of the entire extension MUST
                // terminate at that point".
                (Form::OneByte, [0x01..=0x0f | 0xf0..=0xff, ..]) => return None,
                (Form::OneByte, [head, value @ ..]) => (head >> 4, usize::from(head & 0x0f) + 1, value),
                (Form::TwoByte, [id, len, value @ ..]) => (*id, usize::from(*len), value),
                (Form::TwoByte, [_]) => {
                    self.overrun = true;
                    return None;
                }
            };
            let Some((value, rest)) = value.split_at_checked(len) else {
                self.overrun = true;
                return None;
            };
            self.rest = rest;
            return Some((id, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, after_fixed: &[u8]) -> Vec<u8> {
        let mut packet = vec![first, 0xe0, 0x12, 0x34, 1, 2, 3, 4, 5, 6, 7, 8];
        packet.extend_from_slice(after_fixed);
        packet
    }

    fn extended(profile: u16, block: &[u8]) -> Vec<u8> {
        assert_eq!(block.len() % 4, 0);
        let mut after = profile.to_be_bytes().to_vec();
        after.extend_from_slice(&(block.len() as u16 / 4).to_be_bytes());
        after.extend_from_slice(block);
        packet(0x90, &after)
    }

    #[test]
    fn a_written_header_reads_back() {
        let mut out = [0; 12];
        assert_eq!(write_header(&mut out, true, 96, 65_535, 0xdead_beef, 0x0102_0304), 12);
        let view = RtpView::parse(&out).unwrap();
        assert!(view.marker());
        assert_eq!((view.payload_type(), view.sequence()), (96, 65_535));
        assert_eq!((view.timestamp(), view.ssrc(), view.header_len()), (0xdead_beef, 0x0102_0304, 12));
    }

    #[test]
    fn the_header_ends_after_csrcs_and_extensions() {
        let mut bytes = packet(0x92, &[0; 8]);
        bytes.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x10, 7, 0, 0, 99]);
        let view = RtpView::parse(&bytes).unwrap();
        assert_eq!(view.header_len(), 12 + 8 + 4 + 4);
        assert_eq!(view.extension(1), Some(&[7][..]));
    }

    #[test]
    fn every_cut_header_is_malformed() {
        let mut whole = packet(0x91, &[0; 4]);
        whole.extend_from_slice(&[0xbe, 0xde, 0, 1, 0x12, 7, 8, 9]);
        for len in 0..whole.len() {
            assert_eq!(RtpView::parse(&whole[..len]).err(), Some(DropReason::RtpMalformed), "{len} bytes");
        }
        assert!(RtpView::parse(&whole).is_ok());
    }

    #[test]
    fn another_version_is_malformed() {
        for first in [0x00, 0x40, 0xc0] {
            assert_eq!(RtpView::parse(&packet(first, &[])).err(), Some(DropReason::RtpMalformed));
        }
    }

    /// The layout of RFC 8285 section 4.2's second example: lengths 1, 2 and 4, padding between.
    #[test]
    fn one_byte_elements_are_found_across_padding() {
        let bytes = extended(0xbede, &[0x10, 0xaa, 0x21, 0xbb, 0xcc, 0, 0, 0x33, 1, 2, 3, 4]);
        let view = RtpView::parse(&bytes).unwrap();
        assert_eq!(view.extension(1), Some(&[0xaa][..]));
        assert_eq!(view.extension(2), Some(&[0xbb, 0xcc][..]));
        assert_eq!(view.extension(3), Some(&[1, 2, 3, 4][..]));
        assert_eq!(view.extension(4), None);
        assert_eq!(view.transport_sequence(2), Some(0xbbcc));
        assert_eq!(view.transport_sequence(1), None, "one byte is no sequence number");
        assert_eq!(view.extensions().map(|(id, _)| id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn two_byte_elements_may_be_empty_and_long() {
        let mut block = vec![1, 0, 0, 2, 20];
        block.extend_from_slice(&[9; 20]);
        block.extend_from_slice(&[0, 0, 0]);
        let bytes = extended(0x1000, &block);
        let view = RtpView::parse(&bytes).unwrap();
        assert_eq!(view.extension(1), Some(&[][..]));
        assert_eq!(view.extension(2), Some(&[9; 20][..]));
    }

    #[test]
    fn an_element_past_the_end_of_its_block_is_malformed() {
        for (profile, block) in [(0xbede, [0x10, 1, 0x2f, 0]), (0xbede, [0, 0, 0, 0x10]), (0x1000, [1, 3, 0, 0]), (0x1000, [0, 0, 0, 1])] {
            assert_eq!(RtpView::parse(&extended(profile, &block)).err(), Some(DropReason::RtpMalformed), "{profile:x} {block:x?}");
        }
    }

    #[test]
    fn id_15_and_id_0_with_a_length_end_the_block() {
        for stop in [0xff, 0xf0, 0x03] {
            let bytes = extended(0xbede, &[0x10, 7, stop, 0x20]);
            let view = RtpView::parse(&bytes).expect("what follows the stop is not looked at");
            assert_eq!((view.extension(1), view.extension(2), view.extension(15)), (Some(&[7][..]), None, None));
        }
    }

    #[test]
    fn an_unknown_profile_is_skipped() {
        let bytes = extended(0xabcd, &[0xff; 8]);
        let view = RtpView::parse(&bytes).unwrap();
        assert_eq!((view.header_len(), view.extension(15)), (24, None));
    }

    /// Row 6 of the attack table: padding counts of an authenticated sender.
    #[test]
    fn padding_that_does_not_fit_the_payload_is_malformed() {
        for (body, expected) in [
            (&[1, 2, 3, 1][..], Ok(&[1, 2, 3][..])),
            (&[1, 2, 3, 3], Ok(&[1])),
            (&[0, 0, 0, 4], Ok(&[])),
            (&[1, 2, 3, 0], Err(DropReason::RtpMalformed)),
            (&[1, 2, 3, 5], Err(DropReason::RtpMalformed)),
            (&[1, 2, 3, 16], Err(DropReason::RtpMalformed)),
            (&[1, 2, 3, 255], Err(DropReason::RtpMalformed)),
            (&[], Err(DropReason::RtpMalformed)),
        ] {
            assert_eq!(payload(&packet(0xa0, body), 12), expected, "{body:?}");
        }
        assert_eq!(payload(&packet(0x80, &[1, 2, 200]), 12), Ok(&[1, 2, 200][..]), "no P bit, no padding");
        assert_eq!(payload(&packet(0x80, &[]), 13), Err(DropReason::RtpMalformed), "a header longer than the packet");
    }
}
