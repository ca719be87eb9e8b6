//! Reads an SDP offer (RFC 8866, JSEP) within bounds. What it does not know it skips; what it uses it checks.
//!
//! An [`Offer`] borrows from the text. Each error names the line and the field, because the one who reads it has a client that
//! somebody else wrote.

use std::borrow::Cow;
use std::fmt;

use pop_proto::control::{ICE_TEXT_LEN_MAX, MediaKind};
use pop_session::{Format, H264Profile};

/// Longest offer, in bytes. A browser's with camera, screen and every codec has 8 to 16 KiB.
pub const SDP_LEN_MAX: usize = 64 * 1_024;

/// Longest line, in bytes. The longest seen is an `a=fmtp` with H.264 parameter sets, below 1 KiB.
const LINE_LEN_MAX: usize = 4_096;

/// Most media sections: more than any client publishes, few enough that an answer to them stays small.
pub const MEDIA_MAX: usize = 64;

/// Most `a=ssrc`, `a=extmap` or `a=fingerprint` lines that one section keeps.
const ATTRIBUTES_MAX: usize = 64;

/// Most `a=rtcp-fb` lines of one section: Chromium sends 5 for each of 10 video payload types.
const FEEDBACK_MAX: usize = 512;

/// Longest mid, in bytes. One-byte header extensions carry at most 16.
const MID_LEN_MAX: usize = 16;

/// Why an offer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdpError {
    /// Line, counted from 1; 0 when the offer as a whole is meant.
    pub line: usize,
    /// The field, such as `a=rtpmap`.
    pub field: Cow<'static, str>,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for SdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "SDP: {} {}", self.field, self.reason),
            line => write!(f, "SDP line {line}: {} {}", self.field, self.reason),
        }
    }
}

impl std::error::Error for SdpError {}

impl SdpError {
    /// About the offer as a whole.
    pub(crate) fn whole(field: &'static str, reason: &'static str) -> SdpError {
        SdpError { line: 0, field: Cow::Borrowed(field), reason }
    }
}

/// Who sends, as the offerer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Both.
    SendRecv,
    /// The offerer.
    SendOnly,
    /// The answerer.
    RecvOnly,
    /// Nobody.
    Inactive,
}

impl Direction {
    /// The offerer may send.
    pub fn sends(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::SendOnly)
    }

    /// The offerer may receive.
    pub fn receives(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::RecvOnly)
    }
}

/// `a=setup` (RFC 5763): the DTLS role that the offerer is ready to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Either; the answerer chooses.
    ActPass,
    /// Client.
    Active,
    /// Server.
    Passive,
}

/// One `a=fingerprint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FingerprintLine<'a> {
    /// Its line, for the error when DTLS does not take it.
    pub line: usize,
    /// `sha-256 AB:CD:..`.
    pub value: &'a str,
}

/// What may stand in the session part or in a media section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportAttributes<'a> {
    /// `a=ice-ufrag`.
    pub ice_ufrag: Option<&'a str>,
    /// `a=ice-pwd`.
    pub ice_pwd: Option<&'a str>,
    /// `a=fingerprint`, in order.
    pub fingerprints: Vec<FingerprintLine<'a>>,
    /// `a=setup`.
    pub setup: Option<Setup>,
}

/// An offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The session part.
    pub transport: TransportAttributes<'a>,
    /// The mids of the first `a=group:BUNDLE`.
    pub bundle: Option<Vec<&'a str>>,
    /// Media sections, in order.
    pub media: Vec<OfferedMedia<'a>>,
}

/// A media section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedMedia<'a> {
    /// Line of its `m=`.
    pub line: usize,
    /// Audio or video; `None` for what is neither.
    pub kind: Option<MediaKind>,
    /// First word of `m=`.
    pub media: &'a str,
    /// Third word of `m=`: `UDP/TLS/RTP/SAVPF`.
    pub protocol: &'a str,
    /// The rest of `m=`: payload types, or formats of data.
    pub formats: &'a str,
    /// Port 0 without `a=bundle-only`: the offerer has switched it off.
    pub disabled: bool,
    /// `a=mid`.
    pub mid: Option<&'a str>,
    /// Own or the session's; sendrecv when there is none.
    pub direction: Direction,
    /// `a=rtcp-mux` or `a=rtcp-mux-only`.
    pub rtcp_mux: bool,
    /// `a=rtcp-rsize`.
    pub rtcp_rsize: bool,
    /// Payload types, in the order of `m=`.
    pub payloads: Vec<OfferedPayload<'a>>,
    /// `a=extmap` that the offerer may send.
    pub extensions: Vec<Extension<'a>>,
    /// SSRCs of `a=ssrc`, in order, without repetition.
    pub ssrcs: Vec<u32>,
    /// Second and later members of `a=ssrc-group:FID`: retransmissions.
    pub repair_ssrcs: Vec<u32>,
    /// Its own transport attributes.
    pub transport: TransportAttributes<'a>,
}

/// A payload type as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedPayload<'a> {
    /// 0 to 127.
    pub number: u8,
    /// Encoding name of `a=rtpmap`; empty when there is none.
    pub name: &'a str,
    /// Clock rate of `a=rtpmap` in Hz.
    pub clock_rate: u32,
    /// Channels of `a=rtpmap`; 1 when absent.
    pub channels: u32,
    /// Parameters of `a=fmtp`.
    pub fmtp: &'a str,
    /// Values of `a=rtcp-fb`, those of `*` included.
    pub feedback: Vec<&'a str>,
}

/// A header extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its id.
    pub id: u8,
    /// What it is.
    pub uri: &'a str,
}

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
        } else {
            None
        }
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

/// Reads an offer.
pub fn parse(text: &[u8]) -> Result<Offer<'_>, SdpError> {
    if text.len() > SDP_LEN_MAX {
        return Err(SdpError::whole("the offer", "is longer than 64 KiB"));
    }
    let text = std::str::from_utf8(text).map_err(|_| SdpError::whole("the offer", "is not UTF-8 text"))?;
    let mut reader = Reader::default();
    for (index, raw) in text.split('\n').enumerate() {
        let line = Line::read(index + 1, raw.strip_suffix('\r').unwrap_or(raw))?;
        if let Some(line) = line {
            reader.take(line)?;
        }
    }
    reader.finish()
}

/// One line: its number, the letter before `=`, and the rest.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    letter: char,
    value: &'a str,
}

impl<'a> Line<'a> {
    /// `None` for an empty line, which some clients put between sections.
    fn read(number: usize, text: &'a str) -> Result<Option<Line<'a>>, SdpError> {
        let error = |reason| SdpError { line: number, field: Cow::Borrowed("the line"), reason };
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > LINE_LEN_MAX {
            return Err(error("is longer than 4096 bytes"));
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(error("holds a control character"));
        }
        match (text.chars().next(), text.get(1..2)) {
            (Some(letter), Some("=")) if letter.is_ascii_lowercase() => Ok(Some(Line { number, letter, value: &text[2..] })),
            _ => Err(error("is not a letter, '=' and a value")),
        }
    }

    fn error(&self, reason: &'static str) -> SdpError {
        let field = match self.letter {
            'a' => Cow::Owned(format!("a={}", self.attribute().0.chars().take(32).collect::<String>())),
            letter => Cow::Owned(format!("{letter}=")),
        };
        SdpError { line: self.number, field, reason }
    }

    /// Name and value of `a=name:value`.
    fn attribute(&self) -> (&'a str, &'a str) {
        self.value.split_once(':').unwrap_or((self.value, ""))
    }
}

/// State between lines.
#[derive(Default)]
struct Reader<'a> {
    /// `v=0` came.
    versioned: bool,
    transport: TransportAttributes<'a>,
    direction: Option<Direction>,
    bundle: Option<Vec<&'a str>>,
    media: Vec<PartialMedia<'a>>,
}

/// A section whose lines are still coming.
struct PartialMedia<'a> {
    media: OfferedMedia<'a>,
    direction: Option<Direction>,
    port_zero: bool,
    bundle_only: bool,
    /// `a=rtcp-fb:*`.
    feedback_for_all: Vec<&'a str>,
    feedback_len: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        if !self.versioned {
            // RFC 8866 section 5: the description starts with its version.
            if line.letter != 'v' || line.value != "0" {
                return Err(line.error("is not the version: an SDP offer starts with v=0"));
            }
            self.versioned = true;
            return Ok(());
        }
        match line.letter {
            'm' => self.open_media(line),
            'a' => self.take_attribute(line),
            _ => Ok(()),
        }
    }

    fn open_media(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        if self.media.len() >= MEDIA_MAX {
            return Err(line.error("is one media section too many: at most 64 are taken"));
        }
        let mut words = line.value.splitn(4, ' ');
        let (Some(media), Some(port), Some(protocol), Some(formats)) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(line.error("is not media, port, protocol and formats"));
        };
        let port = port.split('/').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.ok_or_else(|| line.error("has a port that is not a number below 65536"))?;
        let kind = match media {
            "audio" => Some(MediaKind::Audio),
            "video" => Some(MediaKind::Video),
            _ => None,
        };
        let payloads = match kind {
            Some(_) => read_payload_numbers(line, formats)?,
            None => Vec::new(),
        };
        self.media.push(PartialMedia {
            media: OfferedMedia {
                line: line.number,
                kind,
                media,
                protocol,
                formats,
                disabled: false,
                mid: None,
                direction: Direction::SendRecv,
                rtcp_mux: false,
                rtcp_rsize: false,
                payloads,
                extensions: Vec::new(),
                ssrcs: Vec::new(),
                repair_ssrcs: Vec::new(),
                transport: TransportAttributes::default(),
            },
            direction: None,
            port_zero: port == 0,
            bundle_only: false,
            feedback_for_all: Vec::new(),
            feedback_len: 0,
        });
        Ok(())
    }

    fn take_attribute(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        let (name, value) = line.attribute();
        let direction = match name {
            "sendrecv" => Some(Direction::SendRecv),
            "sendonly" => Some(Direction::SendOnly),
            "recvonly" => Some(Direction::RecvOnly),
            "inactive" => Some(Direction::Inactive),
            _ => None,
        };
        if name == "mid" {
            self.check_mid(line, value)?;
        }
        let Some(section) = self.media.last_mut() else {
            match name {
                "group" => self.take_group(line, value)?,
                _ if direction.is_some() => self.direction = direction,
                _ => take_transport_attribute(&mut self.transport, line)?,
            }
            return Ok(());
        };
        if direction.is_some() {
            section.direction = direction;
            return Ok(());
        }
        let media = &mut section.media;
        match name {
            "mid" => media.mid = Some(value),
            "rtcp-mux" | "rtcp-mux-only" => media.rtcp_mux = true,
            "rtcp-rsize" => media.rtcp_rsize = true,
            "bundle-only" => section.bundle_only = true,
            "rtpmap" => take_rtpmap(media, line, value)?,
            "fmtp" => take_fmtp(media, line, value)?,
            "rtcp-fb" => section.take_feedback(line, value)?,
            "extmap" => take_extmap(media, line, value)?,
            "ssrc" => take_ssrc(media, line, value)?,
            "ssrc-group" => take_ssrc_group(media, line, value)?,
            _ => take_transport_attribute(&mut media.transport, line)?,
        }
        Ok(())
    }

    /// A repeated mid would make BUNDLE, and the mid extension, mean two sections at once.
    fn check_mid(&self, line: Line<'a>, mid: &str) -> Result<(), SdpError> {
        let token = !mid.is_empty() && mid.len() <= MID_LEN_MAX && mid.bytes().all(|b| b.is_ascii_graphic());
        if !token {
            return Err(line.error("is not 1 to 16 visible characters"));
        }
        let (last, before) = self.media.split_last().ok_or_else(|| line.error("stands before the first media section"))?;
        if last.media.mid.is_some() || before.iter().any(|other| other.media.mid == Some(mid)) {
            return Err(line.error("is given twice"));
        }
        Ok(())
    }

    fn take_group(&mut self, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
        let mut words = value.split(' ').filter(|word| !word.is_empty());
        if words.next() != Some("BUNDLE") || self.bundle.is_some() {
            return Ok(());
        }
        // A mid that no section has is harmless: ffmpeg names both sections even when it sends one.
        let mids: Vec<_> = words.take(MEDIA_MAX + 1).collect();
        if mids.len() > MEDIA_MAX {
            return Err(line.error("names more than 64 sections"));
        }
        self.bundle = Some(mids);
        Ok(())
    }

    fn finish(self) -> Result<Offer<'a>, SdpError> {
        if !self.versioned {
            return Err(SdpError::whole("the offer", "is empty"));
        }
        if self.media.is_empty() {
            return Err(SdpError::whole("the offer", "has no media section (m=)"));
        }
        let default = self.direction.unwrap_or(Direction::SendRecv);
        let media = self.media.into_iter().map(|section| section.finish(default)).collect();
        Ok(Offer { transport: self.transport, bundle: self.bundle, media })
    }
}

impl<'a> PartialMedia<'a> {
    fn take_feedback(&mut self, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
        self.feedback_len += 1;
        if self.feedback_len > FEEDBACK_MAX {
            return Err(line.error("is given more than 512 times in one section"));
        }
        let (number, feedback) = value.split_once(' ').ok_or_else(|| line.error("is not a payload type and a value"))?;
        if number == "*" {
            self.feedback_for_all.push(feedback.trim());
        } else if let Some(payload) = find_payload(&mut self.media, line, number)? {
            payload.feedback.push(feedback.trim());
        }
        Ok(())
    }

    fn finish(self, default: Direction) -> OfferedMedia<'a> {
        let mut media = self.media;
        media.direction = self.direction.unwrap_or(default);
        // RFC 9143 section 6: a zero port with bundle-only is not a rejected section.
        media.disabled = self.port_zero && !self.bundle_only;
        for payload in &mut media.payloads {
            payload.feedback.extend_from_slice(&self.feedback_for_all);
        }
        media
    }
}

fn read_payload_numbers<'a>(line: Line<'a>, formats: &'a str) -> Result<Vec<OfferedPayload<'a>>, SdpError> {
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

fn read_payload_number(line: Line<'_>, word: &str) -> Result<u8, SdpError> {
    word.parse::<u8>()
        .ok()
        .filter(|number| *number < 128)
        .ok_or_else(|| line.error("has a payload type that is not a number from 0 to 127"))
}

/// The payload type that an attribute is about; `None` when `m=` does not name it, which some clients leave behind after they
/// have removed a codec.
fn find_payload<'m, 'a>(
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

fn take_rtpmap<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
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

fn take_fmtp<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let (number, parameters) = value.split_once(' ').ok_or_else(|| line.error("is not a payload type and parameters"))?;
    if let Some(payload) = find_payload(media, line, number)? {
        if !payload.fmtp.is_empty() {
            return Err(line.error("is given twice for one payload type"));
        }
        payload.fmtp = parameters.trim();
    }
    Ok(())
}

fn take_extmap<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let mut words = value.split(' ');
    let (Some(id), Some(uri)) = (words.next(), words.next()) else {
        return Err(line.error("is not an id and a URI"));
    };
    let (id, direction) = id.split_once('/').unwrap_or((id, "sendrecv"));
    let id: u16 = id.parse().map_err(|_| line.error("has an id that is not a number"))?;
    // RFC 8285: 1 to 14 fit the one-byte header. Ids from 4096 on only ask for a number; 15 and more need the two-byte
    // header, which no client uses for the extensions that we take.
    let Some(id) = u8::try_from(id).ok().filter(|id| (1..=14).contains(id)) else { return Ok(()) };
    if media.extensions.len() >= ATTRIBUTES_MAX {
        return Err(line.error("is given more than 64 times in one section"));
    }
    if media.extensions.iter().any(|other| other.id == id) {
        return Err(line.error("gives one id to two extensions"));
    }
    if direction == "sendrecv" || direction == "sendonly" {
        media.extensions.push(Extension { id, uri });
    }
    Ok(())
}

fn take_ssrc(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let number = value.split(' ').next().unwrap_or_default();
    let ssrc = number.parse().map_err(|_| line.error("is not a number below 2^32"))?;
    if media.ssrcs.contains(&ssrc) {
        return Ok(());
    }
    if media.ssrcs.len() >= ATTRIBUTES_MAX {
        return Err(line.error("names more than 64 sources in one section"));
    }
    media.ssrcs.push(ssrc);
    Ok(())
}

fn take_ssrc_group(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let mut words = value.split(' ').filter(|word| !word.is_empty());
    if words.next() != Some("FID") {
        return Ok(());
    }
    for word in words.skip(1) {
        let ssrc = word.parse().map_err(|_| line.error("holds a source that is not a number below 2^32"))?;
        if media.repair_ssrcs.len() >= ATTRIBUTES_MAX {
            return Err(line.error("names more than 64 sources in one section"));
        }
        media.repair_ssrcs.push(ssrc);
    }
    Ok(())
}

fn take_transport_attribute<'a>(transport: &mut TransportAttributes<'a>, line: Line<'a>) -> Result<(), SdpError> {
    let (name, value) = line.attribute();
    match name {
        "ice-ufrag" => transport.ice_ufrag = Some(check_ice_text(line, value, 4, "is not 4 to 256 letters, digits, '+' or '/'")?),
        "ice-pwd" => transport.ice_pwd = Some(check_ice_text(line, value, 22, "is not 22 to 256 letters, digits, '+' or '/'")?),
        "fingerprint" => {
            if transport.fingerprints.len() >= ATTRIBUTES_MAX {
                return Err(line.error("is given more than 64 times"));
            }
            transport.fingerprints.push(FingerprintLine { line: line.number, value });
        }
        "setup" => {
            transport.setup = Some(match value {
                "actpass" => Setup::ActPass,
                "active" => Setup::Active,
                "passive" => Setup::Passive,
                _ => return Err(line.error("is not actpass, active or passive")),
            });
        }
        _ => {}
    }
    Ok(())
}

/// RFC 8839 section 5.4: ice-char is a letter, a digit, '+' or '/'. Some clients use base64url, so '-', '_' and '=' are taken;
/// a colon never is, because it separates the two halves of a check's user name.
fn check_ice_text<'a>(line: Line<'a>, value: &'a str, len_min: usize, reason: &'static str) -> Result<&'a str, SdpError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b);
    if value.len() < len_min || value.len() > ICE_TEXT_LEN_MAX || !value.bytes().all(ok) {
        return Err(line.error(reason));
    }
    Ok(value)
}
