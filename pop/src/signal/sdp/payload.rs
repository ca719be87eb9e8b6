//! Payload types: the numbers of `m=`, and what `a=rtpmap` and `a=fmtp` say about them.

use pop_session::{Format, H264Profile};

use super::line::Line;
use super::{OfferedMedia, OfferedPayload, SdpError};

impl OfferedPayload<'_> {
    /// The value of a parameter of `a=fmtp`, whose names are case-insensitive.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All parameters of the form `name=value`.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fmtp.split(';').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.trim(), value.trim()))
    }

    /// The format when it is one that passes through.
    pub fn format(&self) -> Option<Format> {
        let is = |name: &str, clock_rate| self.name.eq_ignore_ascii_case(name) && self.clock_rate == clock_rate;
        let number = |name, default| self.parameter(name).map_or(Some(default), |value| value.parse::<u8>().ok());
        if is("opus", 48_000) && self.channels == 2 {
            Some(Format::Opus)
        } else if is("VP8", 90_000) {
            Some(Format::Vp8)
        } else if is("VP9", 90_000) {
            Some(Format::Vp9 { profile: number("profile-id", 0)? })
        } else if is("AV1", 90_000) {
            Some(Format::Av1 { profile: number("profile", 0)? })
        } else if is("H264", 90_000) {
            let packetization_mode = number("packetization-mode", 0).filter(|mode| *mode <= 1)?;
            Some(Format::H264 { profile: self.h264_profile()?, packetization_mode })
        } else if is("H265", 90_000) {
            self.h265_format()
        } else {
            None
        }
    }

    /// RFC 7798 section 7.1: profile space 0 is the only one that ITU-T H.265 has filled, `SRST` the only mode that is one
    /// stream. With `sprop-max-don-diff` each payload has another head; no WebRTC encoder reorders NAL units.
    fn h265_format(&self) -> Option<Format> {
        let number = |name, default| self.parameter(name).map_or(Some(default), |value| value.parse::<u8>().ok());
        let profile = number("profile-id", 1).filter(|profile| (1..32).contains(profile))?;
        let tier = number("tier-flag", 0).filter(|tier| *tier <= 1)?;
        let one_stream = self.parameter("tx-mode").is_none_or(|mode| mode.eq_ignore_ascii_case("SRST"));
        let plain = number("profile-space", 0)? == 0 && number("sprop-max-don-diff", 0)? == 0;
        (one_stream && plain).then_some(Format::H265 { profile, high_tier: tier == 1 })
    }

    /// The one payload type of all blocks of redundant audio (RFC 2198 section 5: `a=fmtp:63 111/111`); `None` when this is
    /// something else, or mixes payload types.
    pub fn red_block(&self) -> Option<u8> {
        if !self.name.eq_ignore_ascii_case("red") || self.clock_rate != 48_000 || self.channels != 2 {
            return None;
        }
        let mut blocks = self.fmtp.split('/').map(|block| block.trim().parse::<u8>().ok());
        let primary = blocks.next()??;
        let mut blocks = blocks.peekable();
        (blocks.peek().is_some() && blocks.all(|block| block == Some(primary))).then_some(primary)
    }

    /// The payload type that this one retransmits (RFC 4588 section 8.6: `apt`).
    pub fn repairs(&self) -> Option<u8> {
        if !self.name.eq_ignore_ascii_case("rtx") {
            return None;
        }
        self.parameter("apt")?.parse().ok()
    }

    /// From `profile-level-id`. Without one RFC 6184 infers Baseline of level 1, which no encoder of today means; libwebrtc
    /// infers Constrained Baseline, and so do we.
    fn h264_profile(&self) -> Option<H264Profile> {
        let Some(text) = self.parameter("profile-level-id") else { return Some(H264Profile::ConstrainedBaseline) };
        if text.len() != 6 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = u32::from_str_radix(text, 16).ok()?.to_be_bytes();
        Some(H264Profile::from_profile_level_id(bytes[1], bytes[2]))
    }
}

pub(super) fn read_payload_numbers<'a>(line: Line<'a>, formats: &'a str) -> Result<Vec<OfferedPayload<'a>>, SdpError> {
    let mut payloads = Vec::new();
    let mut seen = 0u128;
    for word in formats.split(' ').filter(|word| !word.is_empty()) {
        let number = read_payload_number(line, word)?;
        if seen & (1 << number) != 0 {
            return Err(line.error("names a payload type twice"));
        }
        seen |= 1 << number;
        payloads.push(OfferedPayload { number, name: "", clock_rate: 0, channels: 1, fmtp: "", feedback: Vec::new() });
    }
    Ok(payloads)
}

pub(super) fn read_payload_number(line: Line<'_>, word: &str) -> Result<u8, SdpError> {
    word.parse::<u8>()
        .ok()
        .filter(|number| *number < 128)
        .ok_or_else(|| line.error("has a payload type that is not a number from 0 to 127"))
}

/// The payload type that an attribute is about; `None` when `m=` does not name it, which some clients leave behind after they
/// have removed a codec.
pub(super) fn find_payload<'m, 'a>(
    media: &'m mut OfferedMedia<'a>,
    line: Line<'a>,
    number: &str,
) -> Result<Option<&'m mut OfferedPayload<'a>>, SdpError> {
    if media.kind.is_none() {
        return Ok(None);
    }
    let number = read_payload_number(line, number)?;
    Ok(media.payloads.iter_mut().find(|payload| payload.number == number))
}

pub(super) fn take_rtpmap<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let (number, encoding) = value.split_once(' ').ok_or_else(|| line.error("is not a payload type and an encoding"))?;
    let mut parts = encoding.trim().split('/');
    let (Some(name), Some(rate)) = (parts.next(), parts.next()) else {
        return Err(line.error("has an encoding that is not name/clock rate"));
    };
    let clock_rate = rate.parse().map_err(|_| line.error("has a clock rate that is not a number"))?;
    let channels = parts.next().map_or(Ok(1), str::parse).map_err(|_| line.error("has a channel count that is not a number"))?;
    if let Some(payload) = find_payload(media, line, number)? {
        if !payload.name.is_empty() {
            return Err(line.error("is given twice for one payload type"));
        }
        payload.name = name;
        payload.clock_rate = clock_rate;
        payload.channels = channels;
    }
    Ok(())
}

pub(super) fn take_fmtp<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let (number, parameters) = value.split_once(' ').ok_or_else(|| line.error("is not a payload type and parameters"))?;
    if let Some(payload) = find_payload(media, line, number)? {
        if !payload.fmtp.is_empty() {
            return Err(line.error("is given twice for one payload type"));
        }
        payload.fmtp = parameters.trim();
    }
    Ok(())
}
