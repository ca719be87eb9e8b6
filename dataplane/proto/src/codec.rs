//! Where a decoder can start: the first packet of a keyframe, seen in the payload's own header and nothing deeper.

use crate::control::Codec;

/// A subscriber can begin with this packet. Audio always; a payload that is cut short never.
///
/// `payload` is decrypted and without padding.
#[inline]
pub fn is_keyframe_start(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::Opus | Codec::Red | Codec::Raw { .. } => true,
        Codec::Vp8 => vp8(payload).unwrap_or(false),
        Codec::Vp9 => vp9(payload).unwrap_or(false),
        Codec::H264 => h264(payload).unwrap_or(false),
        Codec::H265 => h265(payload).unwrap_or(false),
        Codec::Av1 => av1(payload),
    }
}

/// RFC 7741 section 4.2 and 4.3. `None`: cut short.
fn vp8(payload: &[u8]) -> Option<bool> {
    const EXTENDED: u8 = 0x80;
    const START_OF_PARTITION: u8 = 0x10;
    const PARTITION: u8 = 0x07;
    let (descriptor, mut rest) = payload.split_first()?;
    if descriptor & EXTENDED != 0 {
        let (fields, after) = rest.split_first()?;
        rest = after;
        if fields & 0x80 != 0 {
            rest = skip_picture_id(rest)?;
        }
        // TL0PICIDX, then one byte for TID and KEYIDX together.
        let more = usize::from(fields & 0x40 != 0) + usize::from(fields & 0x30 != 0);
        rest = rest.get(more..)?;
    }
    // "P: Inverse key frame flag. When set to 0, the current frame is a key frame."
    let is_key = rest.first()? & 1 == 0;
    Some(descriptor & (START_OF_PARTITION | PARTITION) == START_OF_PARTITION && is_key)
}

/// RFC 9628 section 4.2. `None`: cut short.
fn vp9(payload: &[u8]) -> Option<bool> {
    const PICTURE_ID: u8 = 0x80;
    const INTER_PREDICTED: u8 = 0x40;
    const LAYERS: u8 = 0x20;
    const BEGINS_FRAME: u8 = 0x08;
    let (descriptor, mut rest) = payload.split_first()?;
    if descriptor & PICTURE_ID != 0 {
        rest = skip_picture_id(rest)?;
    }
    // The upper spatial layers of a key picture are not inter-picture predicted either: it starts with the lowest.
    let is_base = descriptor & LAYERS == 0 || rest.first()? & 0x0e == 0;
    rest.first()?;
    Some(descriptor & (INTER_PREDICTED | BEGINS_FRAME) == BEGINS_FRAME && is_base)
}

/// 7 bits, or 15 when the first says so: the same in VP8 and VP9.
fn skip_picture_id(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(if bytes.first()? & 0x80 == 0 { 1 } else { 2 }..)
}

/// RFC 6184 section 5. `None`: cut short.
fn h264(payload: &[u8]) -> Option<bool> {
    const STAP_A: u8 = 24;
    const FU_A: u8 = 28;
    const FU_START: u8 = 0x80;
    let (header, mut rest) = payload.split_first()?;
    match header & 0x1f {
        STAP_A => {
            while !rest.is_empty() {
                let (len, after) = rest.split_first_chunk()?;
                let (unit, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                let (unit_header, body) = unit.split_first()?;
                if starts_coded_sequence(unit_header & 0x1f, body)? {
                    return Some(true);
                }
                rest = after;
            }
            Some(false)
        }
        FU_A => {
            let (fu_header, body) = rest.split_first()?;
            Some(fu_header & FU_START != 0 && starts_coded_sequence(fu_header & 0x1f, body)?)
        }
        unit_type => starts_coded_sequence(unit_type, rest),
    }
}

/// A sequence parameter set, or the first slice of an instantaneous decoder refresh picture.
fn starts_coded_sequence(unit_type: u8, body: &[u8]) -> Option<bool> {
    const IDR_SLICE: u8 = 5;
    const SEQUENCE_PARAMETER_SET: u8 = 7;
    match unit_type {
        SEQUENCE_PARAMETER_SET => Some(true),
        // A slice begins with first_mb_in_slice as ue(v), whose 0 is a single set bit: later slices of the picture are no start.
        IDR_SLICE => Some(body.first()? & 0x80 != 0),
        _ => Some(false),
    }
}

/// RFC 7798 section 4.4, without DONL fields (`sprop-max-don-diff` is 0 in WebRTC). `None`: cut short.
fn h265(payload: &[u8]) -> Option<bool> {
    const AGGREGATION: u8 = 48;
    const FRAGMENTATION: u8 = 49;
    const FU_START: u8 = 0x80;
    let (header, mut rest) = payload.split_first_chunk::<2>()?;
    match h265_unit_type(header) {
        AGGREGATION => {
            while !rest.is_empty() {
                let (len, after) = rest.split_first_chunk()?;
                let (unit, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                let (unit_header, body) = unit.split_first_chunk::<2>()?;
                if starts_random_access(h265_unit_type(unit_header), body)? {
                    return Some(true);
                }
                rest = after;
            }
            Some(false)
        }
        FRAGMENTATION => {
            let (fu_header, body) = rest.split_first()?;
            Some(fu_header & FU_START != 0 && starts_random_access(fu_header & 0x3f, body)?)
        }
        unit_type => starts_random_access(unit_type, rest),
    }
}

/// `|F| Type (6) | LayerId (6) | TID (3)|`.
fn h265_unit_type(header: &[u8; 2]) -> u8 {
    header[0] >> 1 & 0x3f
}

/// A video or sequence parameter set, or the first slice of a BLA, IDR or CRA picture (ITU-T H.265 table 7-1).
fn starts_random_access(unit_type: u8, body: &[u8]) -> Option<bool> {
    const BLA_W_LP: u8 = 16;
    const CRA: u8 = 21;
    const VIDEO_PARAMETER_SET: u8 = 32;
    const SEQUENCE_PARAMETER_SET: u8 = 33;
    match unit_type {
        VIDEO_PARAMETER_SET | SEQUENCE_PARAMETER_SET => Some(true),
        // first_slice_segment_in_pic_flag is the slice header's first bit.
        BLA_W_LP..=CRA => Some(body.first()? & 0x80 != 0),
        _ => Some(false),
    }
}

/// AOM "RTP Payload Format For AV1" 1.0 section 4.4: `|Z|Y|W W|N|-|-|-|`.
fn av1(payload: &[u8]) -> bool {
    const CONTINUES: u8 = 0x80;
    const NEW_SEQUENCE: u8 = 0x08;
    match payload {
        // "N: MUST be set to 1 if the packet is the first packet of a coded video sequence"; "if N equals 1 then Z must equal 0".
        [header, _, ..] => header & (CONTINUES | NEW_SEQUENCE) == NEW_SEQUENCE,
        _ => false,
    }
}
