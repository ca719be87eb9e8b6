//! The header extensions that a subscriber's section negotiated, under its ids (RFC 8285).
//!
//! ```text
//! stored header --CopiedElements: where--> audio level, orientation, playout delay, descriptor --+
//! HeaderLayout: mid, abs-send-time, transport-cc as a ready prefix ------------------------------+--> 12 bytes + block
//! ```
//! A section's prefix is constant but for five bytes, so packets that were equally long stay so and a train stays whole.

use crate::control::{Extension, ExtensionIds, MID_LEN_MAX};
use crate::wire::rtp::{FIXED_HEADER_LEN, RtpView};

/// What passes from the publisher to the viewer as it is. RIDs do not: a viewer has one stream.
const COPIED: [Extension; 4] =
    [Extension::AudioLevel, Extension::VideoOrientation, Extension::PlayoutDelay, Extension::DependencyDescriptor];
const AUDIO_LEVEL: usize = 0;
const DESCRIPTOR: usize = 3;

/// A dependency descriptor's fixed part: flags and template, then the frame number in 16 bits.
const DESCRIPTOR_LEN_MIN: usize = 3;

/// Longest value that the one-byte form can say.
const ONE_BYTE_LEN_MAX: usize = 16;
/// Largest id of the one-byte form.
const ONE_BYTE_ID_MAX: u8 = 14;

/// Block head, then mid, abs-send-time and transport-cc in the two-byte form.
const PREFIX_LEN_MAX: usize = 4 + (2 + MID_LEN_MAX) + (2 + 3) + (2 + 2);

/// Bytes of a prefix and the padding behind it: zeros.
const PREFIX_ROOM: usize = PREFIX_LEN_MAX.next_multiple_of(4);

/// Longest header that [`HeaderLayout::write`] makes.
pub const HEADER_LEN_MAX: usize = (FIXED_HEADER_LEN + PREFIX_LEN_MAX + COPIED.len() * (2 + u8::MAX as usize)).next_multiple_of(4);

/// Where a stored packet keeps the elements that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopiedElements([Place; COPIED.len()]);

/// An element's value, in bytes from the start of the packet; no length: it is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    at: u8,
    len: u8,
}

impl CopiedElements {
    /// The packet has none.
    pub const NONE: CopiedElements = CopiedElements([Place { at: 0, len: 0 }; COPIED.len()]);

    /// Looks for them under the publisher's `ids`. An empty value does not pass, nor does one more than 255 bytes into the packet:
    /// everybody's are in the first hundred.
    #[inline]
    pub fn find(view: &RtpView<'_>, ids: &ExtensionIds) -> CopiedElements {
        let mut found = CopiedElements::default();
        for (id, at, value) in view.extension_places() {
            let Some(which) = COPIED.iter().position(|extension| ids.get(*extension) == Some(id)) else { continue };
            let (Ok(at), Ok(len)) = (u8::try_from(at), u8::try_from(value.len())) else { continue };
            if which != DESCRIPTOR || value.len() >= DESCRIPTOR_LEN_MIN {
                found.0[which] = Place { at, len };
            }
        }
        found
    }

    /// Most packets of video have none.
    #[inline]
    fn is_empty(&self) -> bool {
        self.0 == CopiedElements::NONE.0
    }

    /// The audio level's byte (RFC 6464 section 3); `None` without one. `packet` is the one that was searched.
    #[inline]
    pub fn audio_level(&self, packet: &[u8]) -> Option<u8> {
        let place = self.0[AUDIO_LEVEL];
        (place.len != 0).then(|| packet[usize::from(place.at)])
    }

    /// The dependency descriptor. `packet` is the one that was searched.
    #[inline]
    pub fn descriptor<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let Place { at, len } = self.0[DESCRIPTOR];
        (len != 0).then(|| &packet[usize::from(at)..][..usize::from(len)])
    }

    /// The dependency descriptor's frame number; `None` without a descriptor. `packet` is the one that was searched.
    #[inline]
    pub fn frame_number(&self, packet: &[u8]) -> Option<u16> {
        let place = self.0[DESCRIPTOR];
        (place.len != 0).then(|| u16::from_be_bytes([packet[usize::from(place.at) + 1], packet[usize::from(place.at) + 2]]))
    }
}

/// What differs each time that a packet is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When: seconds in 6.18 fixed point, 24 bits.
    pub send_time: u32,
    /// The transport's next number.
    pub transport_sequence: u16,
}

/// A section's extensions, ready to be written.
#[derive(Clone, Debug)]
pub struct HeaderLayout {
    /// In the one-byte and in the two-byte form.
    prefixes: [Prefix; 2],
    copied: [u8; COPIED.len()],
    /// An id needs the two-byte form.
    two_byte: bool,
    has_transport_sequence: bool,
    has_send_time: bool,
}

/// Block head and constant elements in wire form.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    bytes: [u8; PREFIX_ROOM],
    len: u8,
    /// 0: there is none.
    send_time_at: u8,
    /// 0: there is none.
    sequence_at: u8,
}

impl HeaderLayout {
    /// The layout of a section with these ids. A mid that is empty or longer than [`MID_LEN_MAX`] is left out.
    pub fn new(ids: &ExtensionIds, mid: &str) -> HeaderLayout {
        let mid = Some(mid).filter(|mid| !mid.is_empty() && mid.len() <= MID_LEN_MAX);
        let mid = ids.get(Extension::Mid).zip(mid);
        let (send_time, sequence) = (ids.get(Extension::AbsSendTime), ids.get(Extension::TransportCc));
        let copied = COPIED.map(|extension| ids.get(extension).unwrap_or(0));
        let written = [mid.map(|(id, _)| id), send_time, sequence].into_iter().flatten().chain(copied);
        HeaderLayout {
            prefixes: [false, true].map(|two_byte| Prefix::new(two_byte, mid, send_time, sequence)),
            copied,
            two_byte: written.into_iter().any(|id| id > ONE_BYTE_ID_MAX),
            has_transport_sequence: sequence.is_some(),
            has_send_time: send_time.is_some(),
        }
    }

    /// Sending a packet twice makes two different headers: a repair must not be the packet again.
    pub fn differs_each_time(&self) -> bool {
        self.has_transport_sequence || self.has_send_time
    }

    /// The dependency descriptor passes.
    pub fn has_descriptor(&self) -> bool {
        self.copied[DESCRIPTOR] != 0
    }

    /// Each packet takes a number of the transport.
    #[inline]
    pub fn has_transport_sequence(&self) -> bool {
        self.has_transport_sequence
    }

    /// Bytes of the header of a packet with these elements.
    #[inline]
    pub fn len(&self, elements: &CopiedElements) -> usize {
        FIXED_HEADER_LEN + self.block_len(elements, self.form(elements)).next_multiple_of(4)
    }

    /// RFC 8285 section 4.1: the form is the block's, so one element that needs two bytes decides for all.
    #[inline]
    fn form(&self, elements: &CopiedElements) -> usize {
        usize::from(
            self.two_byte || !elements.is_empty() && self.passing(elements).any(|(_, place)| usize::from(place.len) > ONE_BYTE_LEN_MAX),
        )
    }

    #[inline]
    fn passing(&self, elements: &CopiedElements) -> impl Iterator<Item = (u8, Place)> {
        self.copied.into_iter().zip(elements.0).filter(|(id, place)| *id != 0 && place.len != 0)
    }

    /// Bytes of the block before its padding; 0: no block.
    #[inline]
    fn block_len(&self, elements: &CopiedElements, form: usize) -> usize {
        let prefix = usize::from(self.prefixes[form].len);
        let copied: usize = if elements.is_empty() { 0 } else { self.copied_len(elements, form) };
        if prefix == BLOCK_HEAD_LEN && copied == 0 { 0 } else { prefix + copied }
    }

    #[inline]
    fn copied_len(&self, elements: &CopiedElements, form: usize) -> usize {
        self.passing(elements).map(|(_, place)| 1 + form + usize::from(place.len)).sum()
    }

    /// Writes the block behind the fixed header in `out`, sets its X bit and returns the length of the whole header, which is
    /// [`HeaderLayout::len`]. `packet` is the stored one in which `elements` were found; `frame_shift` is added to the dependency
    /// descriptor's frame number.
    #[inline]
    pub fn write(&self, out: &mut [u8; HEADER_LEN_MAX], packet: &[u8], elements: &CopiedElements, stamp: Stamp, frame_shift: u16) -> usize {
        let form = self.form(elements);
        let len = self.block_len(elements, form);
        if len == 0 {
            return FIXED_HEADER_LEN;
        }
        let prefix = &self.prefixes[form];
        let padded = len.next_multiple_of(4);
        out[0] |= 0x10;
        // Of one length always, and so without a call.
        let (block, _) = out[FIXED_HEADER_LEN..].split_at_mut(padded.max(PREFIX_ROOM));
        block[..PREFIX_ROOM].copy_from_slice(&prefix.bytes);
        block[2..4].copy_from_slice(&((padded / 4 - 1) as u16).to_be_bytes());
        if prefix.send_time_at != 0 {
            block[usize::from(prefix.send_time_at)..][..3].copy_from_slice(&stamp.send_time.to_be_bytes()[1..]);
        }
        if prefix.sequence_at != 0 {
            block[usize::from(prefix.sequence_at)..][..2].copy_from_slice(&stamp.transport_sequence.to_be_bytes());
        }
        if elements.is_empty() {
            return FIXED_HEADER_LEN + padded;
        }
        let mut at = usize::from(prefix.len);
        for (which, (id, place)) in self.copied.into_iter().zip(elements.0).enumerate() {
            if id == 0 || place.len == 0 {
                continue;
            }
            let (start, value_len) = (usize::from(place.at), usize::from(place.len));
            at = write_element_head(block, at, form == 1, id, value_len);
            block[at..at + value_len].copy_from_slice(&packet[start..start + value_len]);
            if which == DESCRIPTOR {
                let number = u16::from_be_bytes([block[at + 1], block[at + 2]]).wrapping_add(frame_shift);
                block[at + 1..at + 3].copy_from_slice(&number.to_be_bytes());
            }
            at += value_len;
        }
        block[at..padded].fill(0);
        FIXED_HEADER_LEN + padded
    }
}

/// Profile and length of an extension block.
const BLOCK_HEAD_LEN: usize = 4;

impl Prefix {
    fn new(two_byte: bool, mid: Option<(u8, &str)>, send_time: Option<u8>, sequence: Option<u8>) -> Prefix {
        let mut prefix = Prefix { bytes: [0; PREFIX_ROOM], len: BLOCK_HEAD_LEN as u8, send_time_at: 0, sequence_at: 0 };
        prefix.bytes[..2].copy_from_slice(if two_byte { &[0x10, 0x00] } else { &[0xbe, 0xde] });
        if let Some((id, mid)) = mid {
            prefix.element(two_byte, id, mid.as_bytes());
        }
        if let Some(id) = send_time {
            prefix.send_time_at = prefix.element(two_byte, id, &[0; 3]);
        }
        if let Some(id) = sequence {
            prefix.sequence_at = prefix.element(two_byte, id, &[0; 2]);
        }
        prefix
    }

    /// Appends an element and returns where its value is.
    fn element(&mut self, two_byte: bool, id: u8, value: &[u8]) -> u8 {
        let at = write_element_head(&mut self.bytes, self.len.into(), two_byte, id, value.len());
        let end = at + value.len();
        self.bytes[at..end].copy_from_slice(value);
        self.len = end as u8;
        at as u8
    }
}

/// Id and length of an element at `at`; returns where its value goes.
#[inline]
fn write_element_head(block: &mut [u8], at: usize, two_byte: bool, id: u8, len: usize) -> usize {
    if two_byte {
        block[at..at + 2].copy_from_slice(&[id, len as u8]);
        at + 2
    } else {
        // Only written where the form was chosen for a larger id or length: nothing is lost.
        block[at] = id << 4 | (len as u8).wrapping_sub(1) & 0x0f;
        at + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtp::write_header;

    /// The publisher's numbering.
    fn theirs() -> ExtensionIds {
        ExtensionIds::NONE
            .with(Extension::AudioLevel, 1)
            .with(Extension::VideoOrientation, 2)
            .with(Extension::PlayoutDelay, 3)
            .with(Extension::DependencyDescriptor, 4)
            .with(Extension::Rid, 5)
            .with(Extension::AbsSendTime, 6)
    }

    fn stored(two_byte: bool, elements: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = vec![0; 12];
        write_header(&mut packet, true, 96, 1, 2, 3);
        packet[0] |= 0x10;
        packet.extend_from_slice(if two_byte { &[0x10, 0x00, 0, 0] } else { &[0xbe, 0xde, 0, 0] });
        for (id, value) in elements {
            match two_byte {
                true => packet.extend_from_slice(&[*id, value.len() as u8]),
                false => packet.push(id << 4 | (value.len() - 1) as u8),
            }
            packet.extend_from_slice(value);
        }
        packet.resize(packet.len().next_multiple_of(4), 0);
        let words = (packet.len() / 4 - 4) as u16;
        packet[14..16].copy_from_slice(&words.to_be_bytes());
        packet
    }

    fn written(layout: &HeaderLayout, packet: &[u8], stamp: Stamp, frame_shift: u16) -> Vec<u8> {
        let elements = CopiedElements::find(&RtpView::parse(packet).unwrap(), &theirs());
        let mut out = [0xee; HEADER_LEN_MAX];
        write_header(&mut out, false, 100, 7, 8, 9);
        let len = layout.write(&mut out, packet, &elements, stamp, frame_shift);
        assert_eq!(len, layout.len(&elements));
        assert_eq!(RtpView::parse(&out[..len]).unwrap().header_len(), len);
        out[..len].to_vec()
    }

    #[test]
    fn a_section_without_extensions_has_twelve_bytes() {
        let layout = HeaderLayout::new(&ExtensionIds::NONE, "0");
        let header = written(&layout, &stored(false, &[(1, &[5]), (2, &[6])]), Stamp::default(), 0);
        assert_eq!((header.len(), header[0]), (12, 0x80));
    }

    #[test]
    fn elements_pass_under_the_subscribers_ids() {
        let ours = ExtensionIds::NONE
            .with(Extension::Mid, 9)
            .with(Extension::AudioLevel, 10)
            .with(Extension::VideoOrientation, 11)
            .with(Extension::PlayoutDelay, 12)
            .with(Extension::AbsSendTime, 13)
            .with(Extension::TransportCc, 14)
            .with(Extension::Rid, 8);
        let layout = HeaderLayout::new(&ours, "v1");
        let packet = stored(false, &[(5, b"hi"), (1, &[0x8a]), (6, &[1, 1, 1]), (2, &[3]), (3, &[1, 2, 3]), (7, &[9])]);
        let header = written(&layout, &packet, Stamp { send_time: 0x0012_3456, transport_sequence: 0xabcd }, 0);
        let view = RtpView::parse(&header).unwrap();
        assert_eq!(header[12..14], [0xbe, 0xde]);
        let elements: Vec<_> = view.extensions().collect();
        let expected: [(u8, &[u8]); 6] =
            [(9, b"v1"), (13, &[0x12, 0x34, 0x56]), (14, &[0xab, 0xcd]), (10, &[0x8a]), (11, &[3]), (12, &[1, 2, 3])];
        assert_eq!(elements, expected, "no RID, nothing that was not negotiated");
        assert!(layout.differs_each_time());
    }

    #[test]
    fn packets_without_copied_elements_are_equally_long() {
        let layout = HeaderLayout::new(&ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::TransportCc, 2), "0");
        let lens: Vec<_> =
            [stored(false, &[]), stored(false, &[(1, &[1])])].iter().map(|p| written(&layout, p, Stamp::default(), 0).len()).collect();
        assert_eq!(lens, [24, 24]);
        assert!(!HeaderLayout::new(&ExtensionIds::NONE.with(Extension::Mid, 1), "0").differs_each_time());
    }

    #[test]
    fn a_large_id_or_a_long_element_takes_the_two_byte_form() {
        let descriptor: Vec<u8> = (0..17).collect();
        let large = HeaderLayout::new(&ExtensionIds::NONE.with(Extension::Mid, 15).with(Extension::AudioLevel, 2), "0");
        let header = written(&large, &stored(false, &[(1, &[7])]), Stamp::default(), 0);
        assert_eq!(header[12..14], [0x10, 0x00]);
        assert_eq!(RtpView::parse(&header).unwrap().extensions().collect::<Vec<_>>(), [(15, &b"0"[..]), (2, &[7])]);
        let long = HeaderLayout::new(&ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::DependencyDescriptor, 2), "0");
        let header = written(&long, &stored(true, &[(4, &descriptor)]), Stamp::default(), 0);
        assert_eq!(header[12..14], [0x10, 0x00]);
        assert_eq!(RtpView::parse(&header).unwrap().extension(2), Some(&descriptor[..]));
        let header = written(&long, &stored(true, &[(4, &descriptor[..16])]), Stamp::default(), 0);
        assert_eq!(header[12..14], [0xbe, 0xde], "16 bytes fit the one-byte form");
        assert_eq!(RtpView::parse(&header).unwrap().extension(2), Some(&descriptor[..16]));
    }

    #[test]
    fn frame_numbers_are_shifted_and_the_rest_of_the_descriptor_stays() {
        let layout = HeaderLayout::new(&ExtensionIds::NONE.with(Extension::DependencyDescriptor, 2), "");
        let packet = stored(false, &[(4, &[0xc1, 0xff, 0xff, 0x80, 0x77])]);
        let header = written(&layout, &packet, Stamp::default(), 3);
        assert_eq!(RtpView::parse(&header).unwrap().extension(2), Some(&[0xc1, 0x00, 0x02, 0x80, 0x77][..]));
        let cut = stored(false, &[(4, &[0xc1, 0xff])]);
        assert_eq!(written(&layout, &cut, Stamp::default(), 3).len(), 12, "too short for a frame number: it does not pass");
    }

    #[test]
    fn the_longest_elements_fit_and_what_is_too_deep_in_the_header_does_not_pass() {
        let long = [7; 255];
        let ours = COPIED.iter().enumerate().fold(ExtensionIds::NONE, |ids, (i, e)| ids.with(*e, 200 + i as u8));
        let layout = HeaderLayout::new(&ours.with(Extension::Mid, 1), "a-mid-of-16-char");
        let header = written(&layout, &stored(true, &[(1, &long), (2, &long), (3, &long), (4, &long)]), Stamp::default(), 0);
        let view = RtpView::parse(&header).unwrap();
        assert_eq!(view.extension(1), Some(&b"a-mid-of-16-char"[..]));
        assert_eq!(view.extension(200), Some(&long[..]));
        assert_eq!(view.extension(201), None, "it starts at byte 275");
        assert_eq!(view.extensions().count(), 2);
    }
}
