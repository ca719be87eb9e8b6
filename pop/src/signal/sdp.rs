//! Reads an SDP offer (RFC 8866, JSEP) within bounds. What it does not know it skips; what it uses it checks.
//!
//! An [`Offer`] borrows from the text. Each error names the line and the field, because the one who reads it has a client that
//! somebody else wrote.

use std::borrow::Cow;
use std::fmt;

use pop_proto::control::MediaKind;

use self::line::Line;
use self::reader::Reader;

pub use self::simulcast::{LayerRid, OfferedLayer, OfferedRid};
pub use self::source::{SourceGroup, SourceSemantics};

pub mod fragment;
mod line;
mod payload;
mod reader;
mod simulcast;
mod source;

/// Longest offer of WHIP and WHEP, in bytes. A browser's with camera, screen and every codec has 8 to 16 KiB.
pub const SDP_LEN_MAX: usize = 64 * 1_024;

/// Most media sections of WHIP and WHEP: more than any client publishes, few enough that an answer to them stays small.
pub const MEDIA_MAX: usize = 64;

/// How much of an offer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes.
    pub len: usize,
    /// Lines.
    pub lines: usize,
    /// Media sections.
    pub media: usize,
}

impl Bounds {
    /// Of one who publishes or watches one stream. Browsers write 40 bytes a line, so 64 KiB of theirs are 1,600 lines.
    pub const STREAM: Bounds = Bounds { len: SDP_LEN_MAX, lines: 2_048, media: MEDIA_MAX };
    /// Of a member of a room, which has a section for each track that it takes: 320 of them (`MEMBER_SECTIONS_MAX`), and some that its
    /// client has given up. Chromium's video section has 4 KB and its audio section 1 KB, so fifty people with camera and
    /// microphone make 250 KB.
    pub const MEMBER: Bounds = Bounds { len: 1_280 * 1_024, lines: 40_960, media: 384 };
}

/// Most `a=ssrc`, `a=extmap`, `a=rid` or `a=fingerprint` lines that one section keeps.
const ATTRIBUTES_MAX: usize = 64;

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
    fn read(name: &str) -> Option<Direction> {
        match name {
            "sendrecv" => Some(Direction::SendRecv),
            "sendonly" => Some(Direction::SendOnly),
            "recvonly" => Some(Direction::RecvOnly),
            "inactive" => Some(Direction::Inactive),
            _ => None,
        }
    }

    /// As an attribute.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    /// The direction in which one end sends, receives, or both.
    pub const fn of(sends: bool, receives: bool) -> Direction {
        match (sends, receives) {
            (true, true) => Direction::SendRecv,
            (true, false) => Direction::SendOnly,
            (false, true) => Direction::RecvOnly,
            (false, false) => Direction::Inactive,
        }
    }

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
    /// `a=extmap-allow-mixed` in the session part.
    pub mixed_extensions: bool,
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
    /// `a=extmap`, in order.
    pub extensions: Vec<OfferedExtension<'a>>,
    /// `a=extmap-allow-mixed` in this section.
    pub mixed_extensions: bool,
    /// SSRCs of `a=ssrc`, in order, without repetition.
    pub ssrcs: Vec<u32>,
    /// `a=ssrc-group`, in order.
    pub groups: Vec<SourceGroup>,
    /// `a=rid` of direction send, in order.
    pub rids: Vec<OfferedRid<'a>>,
    /// The list of `a=simulcast:send`, in order; empty without one.
    pub layers: Vec<OfferedLayer<'a>>,
    /// The track of the first `a=msid` (RFC 8830): its second word.
    pub track: Option<&'a str>,
    /// `a=sctp-port` (RFC 8841), of a section of data channels.
    pub sctp_port: Option<u16>,
    /// `a=max-message-size` (RFC 8841), in bytes; 0 is no limit.
    pub message_len_max: Option<u64>,
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

/// An `a=extmap` (RFC 8285).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferedExtension<'a> {
    /// Its id, 1 to 255.
    pub id: u8,
    /// Who may send it; sendrecv when there is none.
    pub direction: Direction,
    /// What it is.
    pub uri: &'a str,
}

/// Reads an offer of one stream.
pub fn parse(text: &[u8]) -> Result<Offer<'_>, SdpError> {
    parse_within(Bounds::STREAM, text)
}

/// Reads an offer of at most `bounds`.
pub fn parse_within(bounds: Bounds, text: &[u8]) -> Result<Offer<'_>, SdpError> {
    if text.len() > bounds.len {
        let reason = if bounds == Bounds::MEMBER { "is longer than 1280 KiB" } else { "is longer than 64 KiB" };
        return Err(SdpError::whole("the offer", reason));
    }
    let text = std::str::from_utf8(text).map_err(|_| SdpError::whole("the offer", "is not UTF-8 text"))?;
    let mut reader = Reader::new(bounds.media);
    for (index, raw) in text.split('\n').enumerate() {
        if index >= bounds.lines {
            let reason = if bounds == Bounds::MEMBER { "has more than 40960 lines" } else { "has more than 2048 lines" };
            return Err(SdpError::whole("the offer", reason));
        }
        let line = Line::read(index + 1, raw.strip_suffix('\r').unwrap_or(raw))?;
        if let Some(line) = line {
            reader.take(line)?;
        }
    }
    reader.finish()
}
