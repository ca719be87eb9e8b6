//! The numbers by which VP8 and VP9 count their pictures, inside the payload descriptor.
//!
//! Each simulcast encoder counts for itself. A viewer that is moved from one to another gets them continued, so that its decoder
//! sees one stream; the descriptor stays in the clear under end-to-end encryption, so this always works.

use crate::control::Codec;

/// Where a payload keeps its picture numbers, as offsets into it; 0: nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicturePlaces {
    id: u8,
    tl0: u8,
}

/// What is added to the numbers of a source so that they continue those of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureShift {
    /// To the picture id, modulo its width.
    pub id: u16,
    /// To TL0PICIDX.
    pub tl0: u8,
}

/// The numbers of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureNumbers {
    /// Picture id, of 7 or 15 bits.
    pub id: u16,
    /// TL0PICIDX; 0 when the descriptor has none.
    pub tl0: u8,
}

impl PicturePlaces {
    /// Finds them; nowhere for a codec or a descriptor without them, and for one that is cut short.
    #[inline]
    pub fn find(codec: Codec, payload: &[u8]) -> PicturePlaces {
        match codec {
            Codec::Vp8 => vp8(payload),
            Codec::Vp9 => vp9(payload),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// The payload has a picture id.
    #[inline]
    pub fn any(self) -> bool {
        self.id != 0
    }

    /// The numbers in `payload`, which is the one that was searched; `None` when there is no picture id.
    #[inline]
    pub fn read(self, payload: &[u8]) -> Option<PictureNumbers> {
        if !self.any() {
            return None;
        }
        let at = usize::from(self.id);
        let high = *payload.get(at)?;
        let id = match high & LONG_ID {
            0 => u16::from(high),
            _ => u16::from_be_bytes([high & 0x7f, *payload.get(at + 1)?]),
        };
        let tl0 = if self.tl0 == 0 { 0 } else { *payload.get(usize::from(self.tl0))? };
        Some(PictureNumbers { id, tl0 })
    }

    /// Adds `shift` to the numbers in `payload`; each keeps its width.
    pub fn shift(self, payload: &mut [u8], shift: PictureShift) {
        let Some(numbers) = self.read(payload) else { return };
        let at = usize::from(self.id);
        let id = numbers.id.wrapping_add(shift.id);
        if payload[at] & LONG_ID == 0 {
            payload[at] = id as u8 & 0x7f;
        } else {
            payload[at..at + 2].copy_from_slice(&(id | 0x8000).to_be_bytes());
        }
        if self.tl0 != 0 {
            let tl0 = &mut payload[usize::from(self.tl0)];
            *tl0 = tl0.wrapping_add(shift.tl0);
        }
    }
}

impl PictureNumbers {
    /// The shift that makes `next` follow these.
    pub fn shift_to(self, next: PictureNumbers) -> PictureShift {
        PictureShift { id: self.id.wrapping_add(1).wrapping_sub(next.id), tl0: self.tl0.wrapping_add(1).wrapping_sub(next.tl0) }
    }
}

/// The first bit of a picture id says that it has 15 bits instead of 7: the same in VP8 and VP9.
const LONG_ID: u8 = 0x80;

/// RFC 7741 section 4.2: `|X|R|N|S|R|PID|`, `|I|L|T|K|RSV|`, picture id, TL0PICIDX.
fn vp8(payload: &[u8]) -> Option<PicturePlaces> {
    let [first, fields, id, ..] = payload else { return None };
    if first & 0x80 == 0 || fields & 0x80 == 0 {
        return None;
    }
    places(payload, 2, *id, (fields & 0x40 != 0).then_some(0))
}

/// RFC 9628 section 4.2: `|I|P|L|F|B|E|V|Z|`, picture id, layer indices, TL0PICIDX unless flexible.
fn vp9(payload: &[u8]) -> Option<PicturePlaces> {
    let [first, id, ..] = payload else { return None };
    if first & 0x80 == 0 {
        return None;
    }
    places(payload, 1, *id, (first & 0x30 == 0x20).then_some(1))
}

/// `id` is the byte at `at`; TL0PICIDX, when there is one, is `tl0` bytes behind the picture id.
fn places(payload: &[u8], at: u8, id: u8, tl0: Option<u8>) -> Option<PicturePlaces> {
    let end = at + if id & LONG_ID == 0 { 1 } else { 2 };
    let tl0 = tl0.map_or(0, |behind| end + behind);
    let last = tl0.max(end - 1);
    payload.get(usize::from(last))?;
    Some(PicturePlaces { id: at, tl0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted(codec: Codec, payload: &[u8], shift: PictureShift) -> Vec<u8> {
        let mut bytes = payload.to_vec();
        PicturePlaces::find(codec, payload).shift(&mut bytes, shift);
        bytes
    }

    #[test]
    fn numbers_move_and_keep_their_width_and_nothing_else_moves() {
        let shift = PictureShift { id: 3, tl0: 5 };
        assert_eq!(shifted(Codec::Vp8, &[0x90, 0xc0, 0x7e, 0xfe, 1, 2], shift), [0x90, 0xc0, 0x01, 0x03, 1, 2]);
        assert_eq!(shifted(Codec::Vp8, &[0x90, 0xc0, 0xff, 0xfe, 9, 2], shift), [0x90, 0xc0, 0x80, 0x01, 14, 2]);
        assert_eq!(shifted(Codec::Vp8, &[0x90, 0x80, 0x10, 9], shift), [0x90, 0x80, 0x13, 9]);
        assert_eq!(shifted(Codec::Vp8, &[0x10, 0x80, 0x10, 9], shift), [0x10, 0x80, 0x10, 9], "no extension, no numbers");
        assert_eq!(shifted(Codec::Vp9, &[0xa8, 0x92, 0x34, 0, 7, 1], shift), [0xa8, 0x92, 0x37, 0, 12, 1]);
        assert_eq!(shifted(Codec::Vp9, &[0xb8, 0x12, 0, 7, 1], shift), [0xb8, 0x15, 0, 7, 1], "flexible mode has no TL0PICIDX");
        assert_eq!(shifted(Codec::H264, &[0x90, 0xc0, 0x7e], shift), [0x90, 0xc0, 0x7e]);
    }

    #[test]
    fn a_descriptor_that_is_cut_short_has_no_numbers() {
        for whole in [&[0x90, 0xc0, 0xff, 0xfe, 9][..], &[0x90, 0xc0, 0x7f, 9]] {
            assert!(PicturePlaces::find(Codec::Vp8, whole).any());
            for len in 0..whole.len() {
                assert!(!PicturePlaces::find(Codec::Vp8, &whole[..len]).any(), "{len} bytes");
            }
        }
        let whole = [0xa0, 0x92, 0x34, 0, 7];
        assert!(PicturePlaces::find(Codec::Vp9, &whole).any());
        for len in 0..whole.len() {
            assert!(!PicturePlaces::find(Codec::Vp9, &whole[..len]).any(), "{len} bytes");
        }
    }

    #[test]
    fn the_next_source_follows_the_one_before() {
        let last = PictureNumbers { id: 0x7fff, tl0: 255 };
        let next = PictureNumbers { id: 100, tl0: 7 };
        let shift = last.shift_to(next);
        assert_eq!(shifted(Codec::Vp8, &[0x90, 0xc0, 0x80, 100, 7], shift), [0x90, 0xc0, 0x80, 0, 0]);
    }
}
