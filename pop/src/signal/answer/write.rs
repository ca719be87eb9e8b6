//! The answer as text.

use std::fmt::{self, Write};
use std::net::SocketAddr;

use pop_proto::control::{DATA_MESSAGE_LEN_MAX, Extension, ExtensionIds, MediaKind};
use pop_session::{Format, PayloadFormat, Role};

use super::super::sdp::{Direction, OfferedMedia, OfferedPayload};
use super::{Accepted, LocalMedia, LocalSource, LocalTransport, Negotiation};

/// RFC 8831 section 5 leaves it open; every browser uses this one.
const SCTP_PORT: u16 = 5_000;

/// RFC 8445 section 10: an agent of that RFC says so by ice2. Trickled candidates are taken (RFC 8840 section 4.1); a lite agent
/// needs none of them, because it answers checks and makes none.
pub(in crate::signal) const ICE_OPTIONS: &str = "a=ice-options:trickle ice2\r\n";

impl Negotiation<'_> {
    /// The answer. `media` is what a viewer gets; a publisher gets nothing.
    pub fn write(&self, local: &LocalTransport<'_>, media: Option<&LocalMedia<'_>>) -> String {
        let mut text = String::with_capacity(4_096);
        self.write_to(&mut text, local, media).expect("a String takes every write");
        text
    }

    fn write_to(&self, out: &mut String, local: &LocalTransport<'_>, media: Option<&LocalMedia<'_>>) -> fmt::Result {
        let writer = SectionWriter {
            local,
            passive: self.passive,
            reduced_size_rtcp: self.reduced_size_rtcp,
            mixed_extensions: self.mixed_extensions,
            remb: self.remb,
        };
        write_session(out, local, self.mixed_extensions, self.bundled.then(|| self.accepted().map(|accepted| accepted.mid)))?;
        let direction = match self.role {
            Role::Publish => Direction::RecvOnly,
            Role::Watch => Direction::SendOnly,
        };
        let mut sources = media.map(|media| media.sources).unwrap_or_default().iter();
        let mut first = true;
        for (offered, accepted) in &self.sections {
            let Some(accepted) = accepted else {
                write_rejected(out, offered)?;
                continue;
            };
            writer.write_section(out, accepted, accepted.extensions, offered, direction)?;
            write_layers(out, accepted, offered)?;
            if let (Some(media), Some(source)) = (media, sources.next()) {
                let track = format!("{}-{}", media.stream, accepted.kind.name());
                write_source(out, media.stream, &track, media.cname, source)?;
            }
            if std::mem::take(&mut first) {
                write_candidates(out, local.candidates, local.tcp_candidates)?;
            }
        }
        Ok(())
    }
}

/// What stands before the first section. `bundle` names the sections that share the transport.
pub(super) fn write_session<'m>(
    out: &mut String,
    local: &LocalTransport<'_>,
    mixed_extensions: bool,
    bundle: Option<impl Iterator<Item = &'m str>>,
) -> fmt::Result {
    let LocalTransport { session_id, session_version, .. } = local;
    write!(out, "v=0\r\no=- {session_id} {session_version} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=ice-lite\r\n")?;
    out.push_str(ICE_OPTIONS);
    if let Some(bundle) = bundle {
        out.push_str("a=group:BUNDLE");
        for mid in bundle {
            write!(out, " {mid}")?;
        }
        out.push_str("\r\n");
    }
    if mixed_extensions {
        out.push_str("a=extmap-allow-mixed\r\n");
    }
    Ok(())
}

/// What all sections of one answer have in common.
pub(super) struct SectionWriter<'a> {
    pub(super) local: &'a LocalTransport<'a>,
    pub(super) passive: bool,
    pub(super) reduced_size_rtcp: bool,
    pub(super) mixed_extensions: bool,
    pub(super) remb: bool,
}

impl SectionWriter<'_> {
    /// A section of RTP up to its payload types; `direction` is ours.
    pub(super) fn write_section(
        &self,
        out: &mut String,
        accepted: &Accepted<'_>,
        extensions: ExtensionIds,
        offered: &OfferedMedia<'_>,
        direction: Direction,
    ) -> fmt::Result {
        write!(out, "m={} {} {}", accepted.kind.name(), self.port(), offered.protocol)?;
        for format in &accepted.formats {
            write!(out, " {}", format.number)?;
            if let Some(rtx) = format.rtx {
                write!(out, " {rtx}")?;
            }
        }
        self.write_transport(out, accepted.mid)?;
        write!(out, "a={}\r\na=rtcp-mux\r\n", direction.name())?;
        if self.reduced_size_rtcp {
            out.push_str("a=rtcp-rsize\r\n");
        }
        if offered.mixed_extensions && !self.mixed_extensions {
            out.push_str("a=extmap-allow-mixed\r\n");
        }
        write_extensions(out, extensions, offered)?;
        for (payload, format) in accepted.payloads.iter().zip(&accepted.formats) {
            self.write_payload(out, accepted, payload, *format)?;
        }
        Ok(())
    }

    /// A section of data channels (RFC 8841).
    pub(super) fn write_data(&self, out: &mut String, offered: &OfferedMedia<'_>) -> fmt::Result {
        write!(out, "m={} {} {} {}", offered.media, self.port(), offered.protocol, offered.formats)?;
        self.write_transport(out, offered.mid.unwrap_or_default())?;
        write!(out, "a=sctp-port:{SCTP_PORT}\r\na=max-message-size:{DATA_MESSAGE_LEN_MAX}\r\n")
    }

    fn port(&self) -> u16 {
        self.local.candidates.first().map_or(9, SocketAddr::port)
    }

    /// The transport is written into every section although BUNDLE needs it once: ffmpeg, GStreamer and aiortc read it there.
    fn write_transport(&self, out: &mut String, mid: &str) -> fmt::Result {
        let local = self.local;
        match local.candidates.first() {
            Some(SocketAddr::V4(v4)) => write!(out, "\r\nc=IN IP4 {}\r\n", v4.ip())?,
            Some(SocketAddr::V6(v6)) => write!(out, "\r\nc=IN IP6 {}\r\n", v6.ip())?,
            None => out.push_str("\r\nc=IN IP4 0.0.0.0\r\n"),
        }
        write!(out, "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\na=fingerprint:{}\r\n", local.ufrag, local.pwd, local.fingerprint)?;
        write!(out, "a=setup:{}\r\n", if self.passive { "passive" } else { "active" })?;
        if !mid.is_empty() {
            write!(out, "a=mid:{mid}\r\n")?;
        }
        Ok(())
    }

    fn write_payload(
        &self,
        out: &mut String,
        accepted: &Accepted<'_>,
        payload: &OfferedPayload<'_>,
        PayloadFormat { number, format, rtx }: PayloadFormat,
    ) -> fmt::Result {
        let codec = format.codec();
        let channels = if codec.kind() == MediaKind::Audio { "/2" } else { "" };
        write!(out, "a=rtpmap:{number} {}/{}{channels}\r\n", codec.name(), codec.clock_rate())?;
        for feedback in ["transport-cc", "goog-remb", "ccm fir", "nack", "nack pli"] {
            let agreed = match feedback {
                "transport-cc" => accepted.has_transport_cc(),
                "goog-remb" => self.remb,
                _ => true,
            };
            if agreed && payload.feedback.contains(&feedback) {
                write!(out, "a=rtcp-fb:{number} {feedback}\r\n")?;
            }
        }
        if let Format::Red { .. } = format {
            write!(out, "a=fmtp:{number} {}\r\n", payload.fmtp)?;
        }
        let echoed: Vec<_> = payload.parameters().filter(|(name, _)| is_echoed(format, name)).collect();
        for (i, (name, value)) in echoed.iter().enumerate() {
            match i {
                0 => write!(out, "a=fmtp:{number} {name}={value}")?,
                _ => write!(out, ";{name}={value}")?,
            }
        }
        if !echoed.is_empty() {
            out.push_str("\r\n");
        }
        if let Some(rtx) = rtx {
            write!(out, "a=rtpmap:{rtx} rtx/{}\r\na=fmtp:{rtx} apt={number}\r\n", codec.clock_rate())?;
        }
        Ok(())
    }
}

fn write_extensions(out: &mut String, extensions: ExtensionIds, offered: &OfferedMedia<'_>) -> fmt::Result {
    for extension in Extension::ALL {
        let Some(id) = extensions.get(extension) else { continue };
        let offered = offered.extensions.iter().find(|offered| offered.id == id);
        // RFC 8285 section 5: an extension that the offerer only sends is one that the answerer only receives, and the reverse.
        let direction = match offered.map_or(Direction::SendRecv, |offered| offered.direction) {
            Direction::SendOnly => "/recvonly",
            Direction::RecvOnly => "/sendonly",
            Direction::SendRecv | Direction::Inactive => "",
        };
        write!(out, "a=extmap:{id}{direction} {}\r\n", extension.uri())?;
    }
    Ok(())
}

/// RFC 8851 section 6.3 and RFC 8853 section 5.3.2: the same RIDs in the same order, the direction turned round.
pub(super) fn write_layers(out: &mut String, accepted: &Accepted<'_>, offered: &OfferedMedia<'_>) -> fmt::Result {
    for layer in &accepted.layers {
        write!(out, "a=rid:{} recv", layer.id)?;
        let mut separator = ' ';
        let rid = offered.rids.iter().find(|rid| rid.id == layer.id);
        let kept = rid.map(|rid| rid.payloads.as_slice()).unwrap_or_default().iter();
        let kept: Vec<_> = kept.filter(|number| accepted.formats.iter().any(|f| f.number == **number)).map(u8::to_string).collect();
        if !kept.is_empty() {
            write!(out, "{separator}pt={}", kept.join(","))?;
            separator = ';';
        }
        for restriction in rid.map(|rid| rid.restrictions.as_slice()).unwrap_or_default() {
            write!(out, "{separator}{restriction}")?;
            separator = ';';
        }
        out.push_str("\r\n");
    }
    for (i, layer) in accepted.layers.iter().enumerate() {
        out.push_str(if i == 0 { "a=simulcast:recv " } else { ";" });
        write!(out, "{}{}", if layer.paused { "~" } else { "" }, layer.id)?;
    }
    if !accepted.layers.is_empty() {
        out.push_str("\r\n");
    }
    Ok(())
}

/// What a section of ours is fed with: `track` of `stream`, as the client names them.
pub(super) fn write_source(out: &mut String, stream: &str, track: &str, cname: &str, source: &LocalSource) -> fmt::Result {
    let LocalSource { ssrc, rtx_ssrc } = source;
    write!(out, "a=msid:{stream} {track}\r\n")?;
    if let Some(rtx) = rtx_ssrc {
        write!(out, "a=ssrc-group:FID {ssrc} {rtx}\r\n")?;
    }
    for ssrc in [Some(*ssrc), *rtx_ssrc].into_iter().flatten() {
        write!(out, "a=ssrc:{ssrc} cname:{cname}\r\na=ssrc:{ssrc} msid:{stream} {track}\r\n")?;
    }
    Ok(())
}

/// A parameter of the offer that belongs into the answer unchanged, because what passes through us is what the two clients agree
/// on with us in between.
fn is_echoed(format: Format, name: &str) -> bool {
    let echoed: &[&str] = match format {
        // RFC 7587 section 7: what the answerer prefers to receive; a publisher that offers it may send it.
        Format::Opus => &["minptime", "useinbandfec", "stereo", "usedtx", "maxplaybackrate"],
        Format::Red { .. } => &[],
        Format::Vp8 => &["max-fs", "max-fr"],
        Format::Vp9 { .. } => &["profile-id", "max-fs", "max-fr"],
        // RFC 6184 section 8.2.2: "The parameters identifying a media format configuration for H.264 are profile-level-id and
        // packetization-mode. These media format configuration parameters (except for the level part of profile-level-id) MUST
        // be used symmetrically". The level is the offer's, which is right with and without level-asymmetry-allowed.
        // sprop-parameter-sets describes the sender's own stream and is not echoed.
        Format::H264 { .. } => &["level-asymmetry-allowed", "packetization-mode", "profile-level-id"],
        // RFC 7798 section 7.2.2 has the same rule; sprop-* describe the sender's own stream.
        Format::H265 { .. } => {
            &["profile-space", "profile-id", "tier-flag", "level-id", "interop-constraints", "profile-compatibility-indicator", "tx-mode"]
        }
        Format::Av1 { .. } => &["profile", "level-idx", "tier"],
        // Of RTP routes; no offer has it.
        Format::Raw { .. } => &[],
    };
    echoed.iter().any(|echoed| echoed.eq_ignore_ascii_case(name))
}

/// RFC 3264 section 6: "To reject an offered stream, the port number in the corresponding stream in the answer MUST be set to
/// zero."
pub(super) fn write_rejected(out: &mut String, offered: &OfferedMedia<'_>) -> fmt::Result {
    // A stream has at least one format, and the answer to a rejected one may carry any of the offer's.
    let format = offered.formats.split(' ').find(|format| !format.is_empty()).unwrap_or("0");
    write!(out, "m={} 0 {} {format}\r\nc=IN IP4 0.0.0.0\r\n", offered.media, offered.protocol)?;
    if let Some(mid) = offered.mid {
        write!(out, "a=mid:{mid}\r\n")?;
    }
    out.push_str("a=inactive\r\n");
    Ok(())
}

/// RFC 8839 section 5.1 and RFC 6544 section 4.5; all of them, because a lite agent has no more to come.
pub(in crate::signal) fn write_candidates(out: &mut String, udp: &[SocketAddr], tcp: &[SocketAddr]) -> fmt::Result {
    let places = (0..udp.len()).zip(udp).chain((0..tcp.len()).zip(tcp));
    for (foundation, (place, address)) in (1..).zip(places) {
        // RFC 8445 section 5.1.2.1: 2^24 * type preference + 2^8 * local preference + 256 - component. The order that the
        // operator gave is the preference.
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let (address, port) = (address.ip(), address.port());
        write!(out, "a=candidate:{foundation} 1 ")?;
        if foundation <= udp.len() {
            let priority = (126 << 24) + (65_535u32.saturating_sub(place) << 8) + 255;
            write!(out, "udp {priority} {address} {port} typ host\r\n")?;
        } else {
            // RFC 6544 section 4.2: a lower type preference, so that UDP is tried first; the local preference is 2^13 * 4 for
            // passive candidates of hosts plus the other preference.
            let priority = (90 << 24) + (((4 << 13) + 8_191u32.saturating_sub(place)) << 8) + 255;
            write!(out, "tcp {priority} {address} {port} typ host tcptype passive\r\n")?;
        }
    }
    out.push_str("a=end-of-candidates\r\n");
    Ok(())
}
