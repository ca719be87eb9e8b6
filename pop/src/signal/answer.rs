//! Makes the answer to an offer: first [`negotiate`] decides what is taken, then [`Negotiation::write`] writes it down.
//!
//! In between the caller draws credentials and a worker; a refused offer costs neither.

use std::fmt::{self, Write};
use std::net::SocketAddr;

use pop_proto::control::{MediaKind, PAYLOAD_TYPES_MAX};
use pop_session::placement::Claim;
use pop_session::{Format, PayloadFormat, Role};

use super::sdp::{FingerprintLine, Offer, OfferedMedia, OfferedPayload, SdpError, Setup, TransportAttributes};
use crate::config::DtlsRole;

/// Transport-wide congestion control (draft-holmer-rmcat-transport-wide-cc-extensions-01).
const TWCC_URI: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// RFC 8843 section 15: the mid in each packet.
const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";

/// What is taken of an offer.
#[derive(Debug)]
pub struct Negotiation<'a> {
    /// What the client came for.
    pub role: Role,
    /// The client's ICE fragment.
    pub remote_ufrag: &'a str,
    /// The client's certificate is one of these.
    pub fingerprints: &'a [FingerprintLine<'a>],
    /// The DTLS client is the other side: we answer `passive`.
    pub passive: bool,
    /// Extension id of transport-wide-cc; publishers only.
    pub twcc_extension: Option<u8>,
    /// Extension id of the mid; publishers only.
    pub mid_extension: Option<u8>,
    /// Every accepted section takes RTCP that is not a compound.
    pub reduced_size_rtcp: bool,
    bundled: bool,
    sections: Vec<(&'a OfferedMedia<'a>, Option<Accepted<'a>>)>,
}

/// An accepted media section.
#[derive(Debug)]
pub struct Accepted<'a> {
    /// Audio or video.
    pub kind: MediaKind,
    /// Its mid; empty when a lone section has none.
    pub mid: &'a str,
    /// Payload types, in the offer's order.
    pub formats: Vec<PayloadFormat>,
    /// The publisher's SSRC when the offer names it.
    pub ssrc: Option<u32>,
    /// `nack` was agreed for a payload type.
    pub nack: bool,
    /// `nack pli` was agreed for a payload type.
    pub pli: bool,
    payloads: Vec<&'a OfferedPayload<'a>>,
    twcc: Option<u8>,
    mid_extension: Option<u8>,
}

/// Our side of the transport.
#[derive(Debug)]
pub struct LocalTransport<'a> {
    /// For `o=`: unique, below 2^62.
    pub session_id: u64,
    /// ICE fragment.
    pub ufrag: &'a str,
    /// ICE password.
    pub pwd: &'a str,
    /// Value of `a=fingerprint`.
    pub fingerprint: &'a str,
    /// Where the worker listens, the preferred first; at least one.
    pub candidates: &'a [SocketAddr],
}

/// What we send to a viewer.
#[derive(Debug)]
pub struct LocalMedia<'a> {
    /// One for audio and video, so that they are played in step.
    pub stream: &'a str,
    /// CNAME of all sections.
    pub cname: &'a str,
    /// One SSRC per accepted section.
    pub ssrcs: &'a [u32],
}

/// Decides what of `offer` is taken from a publisher or given to a viewer. Its errors are about what is not possible, not about
/// what is malformed.
pub fn negotiate<'a>(offer: &'a Offer<'a>, role: Role, dtls_role: DtlsRole) -> Result<Negotiation<'a>, SdpError> {
    let mut sections: Vec<_> = offer.media.iter().map(|media| (media, accept(offer, media, role))).collect();
    if role == Role::Watch {
        keep_first_of_each_kind(&mut sections);
    }
    let accepted = || sections.iter().filter(|(_, accepted)| accepted.is_some()).map(|(media, _)| *media);
    let Some(first) = accepted().next() else { return Err(explain_nothing_accepted(offer, role)) };
    if offer.bundle.is_none() && accepted().count() > 1 {
        return Err(SdpError::whole("a=group:BUNDLE", "is missing: all media must share one transport"));
    }
    if let Some(media) = accepted().find(|media| !media.rtcp_mux) {
        return Err(SdpError { line: media.line, field: "m=".into(), reason: "is without a=rtcp-mux: RTP and RTCP must share one port" });
    }
    let transport = |has: fn(&TransportAttributes<'a>) -> bool| {
        // BUNDLE: the first section's transport is everybody's; some clients tell it once for the whole session.
        [&first.transport, &offer.transport].into_iter().find(|attributes| has(attributes))
    };
    let missing = |field, reason| move || SdpError::whole(field, reason);
    let ice = transport(|t| t.ice_ufrag.is_some()).ok_or_else(missing("a=ice-ufrag", "is missing"))?;
    let remote_ufrag = ice.ice_ufrag.ok_or_else(missing("a=ice-ufrag", "is missing"))?;
    transport(|t| t.ice_pwd.is_some()).ok_or_else(missing("a=ice-pwd", "is missing"))?;
    let fingerprints = transport(|t| !t.fingerprints.is_empty()).ok_or_else(missing("a=fingerprint", "is missing"))?;
    let setup = transport(|t| t.setup.is_some()).and_then(|t| t.setup).unwrap_or(Setup::ActPass);
    let passive = answer_setup(setup, dtls_role)?;

    let twcc_extension = sections.iter().find_map(|(_, accepted)| accepted.as_ref()?.twcc);
    let mid_extension = sections.iter().find_map(|(_, accepted)| accepted.as_ref()?.mid_extension);
    let reduced_size_rtcp = accepted().all(|media| media.rtcp_rsize);
    for accepted in sections.iter_mut().filter_map(|(_, accepted)| accepted.as_mut()) {
        // One transport has one id for one extension: a section that numbers it otherwise goes without.
        accepted.twcc = accepted.twcc.filter(|id| Some(*id) == twcc_extension);
        accepted.mid_extension = accepted.mid_extension.filter(|id| Some(*id) == mid_extension);
    }
    Ok(Negotiation {
        role,
        remote_ufrag,
        fingerprints: &fingerprints.fingerprints,
        passive,
        twcc_extension,
        mid_extension,
        reduced_size_rtcp,
        bundled: offer.bundle.is_some(),
        sections,
    })
}

/// Whether we answer `passive`.
fn answer_setup(offered: Setup, wanted: DtlsRole) -> Result<bool, SdpError> {
    match (offered, wanted) {
        (Setup::Active, _) | (Setup::ActPass, DtlsRole::Auto | DtlsRole::Passive) => Ok(true),
        (Setup::ActPass, DtlsRole::Active) | (Setup::Passive, DtlsRole::Auto | DtlsRole::Active) => Ok(false),
        (Setup::Passive, DtlsRole::Passive) => {
            Err(SdpError::whole("a=setup", "is passive: this node is a DTLS server alone (media.dtls_role), so offer actpass or active"))
        }
    }
}

/// A viewer is fed by one source of each kind, so its further sections are rejected.
fn keep_first_of_each_kind(sections: &mut [(&OfferedMedia<'_>, Option<Accepted<'_>>)]) {
    let mut seen = [false; 2];
    for (_, accepted) in sections {
        if let Some(kind) = accepted.as_ref().map(|accepted| accepted.kind)
            && std::mem::replace(&mut seen[kind as usize], true)
        {
            *accepted = None;
        }
    }
}

fn accept<'a>(offer: &'a Offer<'a>, media: &'a OfferedMedia<'a>, role: Role) -> Option<Accepted<'a>> {
    let kind = media.kind?;
    let flows = match role {
        Role::Publish => media.direction.sends(),
        Role::Watch => media.direction.receives(),
    };
    let bundled = offer.bundle.as_ref().is_none_or(|mids| media.mid.is_some_and(|mid| mids.contains(&mid)));
    if media.disabled || !flows || !bundled || !is_secure_rtp(media.protocol) {
        return None;
    }
    let known = media.payloads.iter().filter_map(|payload| Some((payload, payload.format()?)));
    let known = known.filter(|(_, format)| format.codec().kind() == kind);
    let (payloads, formats): (Vec<_>, Vec<_>) =
        known.take(PAYLOAD_TYPES_MAX).map(|(payload, format)| (payload, PayloadFormat { number: payload.number, format })).unzip();
    if payloads.is_empty() {
        return None;
    }
    let extension = |uri| media.extensions.iter().find(|extension| extension.uri == uri && role == Role::Publish).map(|found| found.id);
    let offers = |feedback: &str| payloads.iter().any(|payload| payload.feedback.contains(&feedback));
    Some(Accepted {
        kind,
        mid: media.mid.unwrap_or_default(),
        formats,
        ssrc: media.ssrcs.iter().find(|ssrc| !media.repair_ssrcs.contains(ssrc)).copied(),
        nack: offers("nack"),
        pli: offers("nack pli"),
        twcc: extension(TWCC_URI).filter(|_| offers("transport-cc")),
        mid_extension: extension(MID_URI),
        payloads,
    })
}

fn is_secure_rtp(protocol: &str) -> bool {
    // JSEP section 5.1.2: all of these mean DTLS-SRTP.
    matches!(protocol, "UDP/TLS/RTP/SAVPF" | "UDP/TLS/RTP/SAVP" | "RTP/SAVPF" | "RTP/SAVP" | "TCP/DTLS/RTP/SAVPF" | "TCP/DTLS/RTP/SAVP")
}

/// The most useful sentence for somebody whose offer has nothing for us.
fn explain_nothing_accepted(offer: &Offer<'_>, role: Role) -> SdpError {
    let flows = |media: &OfferedMedia<'_>| match role {
        Role::Publish => media.direction.sends(),
        Role::Watch => media.direction.receives(),
    };
    let open: Vec<_> = offer.media.iter().filter(|media| media.kind.is_some() && !media.disabled).collect();
    if open.is_empty() {
        return SdpError::whole("m=", "has neither audio nor video");
    }
    let Some(flowing) = open.iter().find(|media| flows(media)) else {
        let reason = match role {
            Role::Publish => "is never sendonly or sendrecv: a publisher must send",
            Role::Watch => "is never recvonly or sendrecv: a viewer must receive",
        };
        return SdpError::whole("the direction", reason);
    };
    let in_bundle = offer.bundle.as_ref().is_none_or(|mids| flowing.mid.is_some_and(|mid| mids.contains(&mid)));
    let reason = if !is_secure_rtp(flowing.protocol) {
        "is not UDP/TLS/RTP/SAVPF"
    } else if !in_bundle {
        "is not in the BUNDLE group"
    } else {
        "has no codec that passes here: opus, VP8, VP9, H264 (packetization-mode 0 or 1) and AV1 do"
    };
    SdpError { line: flowing.line, field: "m=".into(), reason }
}

impl<'a> Negotiation<'a> {
    /// What the client takes of its worker's plan.
    pub fn claim(&self) -> Claim {
        let sections = self.accepted().count();
        match self.role {
            Role::Publish => Claim { transports: 1, tracks: sections, subscriptions: 0 },
            Role::Watch => Claim { transports: 1, tracks: 0, subscriptions: sections },
        }
    }

    /// The accepted sections, in order.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted<'a>> {
        self.sections.iter().filter_map(|(_, accepted)| accepted.as_ref())
    }

    /// The answer. `media` is what a viewer gets; a publisher gets nothing.
    pub fn write(&self, local: &LocalTransport<'_>, media: Option<&LocalMedia<'_>>) -> String {
        let mut text = String::with_capacity(4_096);
        self.write_to(&mut text, local, media).expect("a String takes every write");
        text
    }

    fn write_to(&self, out: &mut String, local: &LocalTransport<'_>, media: Option<&LocalMedia<'_>>) -> fmt::Result {
        write!(out, "v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=ice-lite\r\n", local.session_id)?;
        if self.bundled {
            out.push_str("a=group:BUNDLE");
            for accepted in self.accepted() {
                write!(out, " {}", accepted.mid)?;
            }
            out.push_str("\r\n");
        }
        out.push_str("a=msid-semantic: WMS *\r\n");
        let mut ssrcs = media.map(|media| media.ssrcs).unwrap_or_default().iter();
        let mut first = true;
        for (offered, accepted) in &self.sections {
            let Some(accepted) = accepted else {
                write_rejected(out, offered)?;
                continue;
            };
            self.write_section(out, accepted, offered, local)?;
            if let (Some(media), Some(ssrc)) = (media, ssrcs.next()) {
                let (kind, stream) = (accepted.kind.name(), media.stream);
                write!(out, "a=msid:{stream} {stream}-{kind}\r\n")?;
                write!(out, "a=ssrc:{ssrc} cname:{}\r\na=ssrc:{ssrc} msid:{stream} {stream}-{kind}\r\n", media.cname)?;
            }
            if std::mem::take(&mut first) {
                write_candidates(out, local.candidates)?;
            }
        }
        Ok(())
    }

    fn write_section(
        &self,
        out: &mut String,
        accepted: &Accepted<'_>,
        offered: &OfferedMedia<'_>,
        local: &LocalTransport<'_>,
    ) -> fmt::Result {
        let default = local.candidates.first().copied();
        let port = default.map_or(9, |address| address.port());
        write!(out, "m={} {port} {}", accepted.kind.name(), offered.protocol)?;
        for payload in &accepted.payloads {
            write!(out, " {}", payload.number)?;
        }
        match default {
            Some(SocketAddr::V4(v4)) => write!(out, "\r\nc=IN IP4 {}\r\n", v4.ip())?,
            Some(SocketAddr::V6(v6)) => write!(out, "\r\nc=IN IP6 {}\r\n", v6.ip())?,
            None => out.push_str("\r\nc=IN IP4 0.0.0.0\r\n"),
        }
        // The transport is written into every section although BUNDLE needs it once: ffmpeg, GStreamer and aiortc read it there.
        write!(out, "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\na=fingerprint:{}\r\n", local.ufrag, local.pwd, local.fingerprint)?;
        write!(out, "a=setup:{}\r\n", if self.passive { "passive" } else { "active" })?;
        if !accepted.mid.is_empty() {
            write!(out, "a=mid:{}\r\n", accepted.mid)?;
        }
        out.push_str(match self.role {
            Role::Publish => "a=recvonly\r\n",
            Role::Watch => "a=sendonly\r\n",
        });
        out.push_str("a=rtcp-mux\r\n");
        if self.reduced_size_rtcp {
            out.push_str("a=rtcp-rsize\r\n");
        }
        for (id, uri) in [(accepted.twcc, TWCC_URI), (accepted.mid_extension, MID_URI)] {
            if let Some(id) = id {
                write!(out, "a=extmap:{id} {uri}\r\n")?;
            }
        }
        for (payload, format) in accepted.payloads.iter().zip(&accepted.formats) {
            self.write_payload(out, accepted, payload, format.format)?;
        }
        Ok(())
    }

    fn write_payload(&self, out: &mut String, accepted: &Accepted<'_>, payload: &OfferedPayload<'_>, format: Format) -> fmt::Result {
        let (number, codec) = (payload.number, format.codec());
        let channels = if codec.kind() == MediaKind::Audio { "/2" } else { "" };
        write!(out, "a=rtpmap:{number} {}/{}{channels}\r\n", codec.name(), codec.clock_rate())?;
        let wanted: &[&str] = match self.role {
            Role::Publish => &["transport-cc", "ccm fir", "nack", "nack pli"],
            Role::Watch => &["nack", "nack pli"],
        };
        for feedback in wanted.iter().filter(|wanted| payload.feedback.contains(wanted)) {
            if *feedback != "transport-cc" || accepted.twcc.is_some() {
                write!(out, "a=rtcp-fb:{number} {feedback}\r\n")?;
            }
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
        Ok(())
    }
}

/// A parameter of the offer that belongs into the answer unchanged, because what passes through us is what the two clients agree
/// on with us in between.
fn is_echoed(format: Format, name: &str) -> bool {
    let echoed: &[&str] = match format {
        // RFC 7587 section 7: what the answerer prefers to receive; a publisher that offers it may send it.
        Format::Opus => &["minptime", "useinbandfec", "stereo", "usedtx", "maxplaybackrate"],
        Format::Vp8 => &["max-fs", "max-fr"],
        Format::Vp9 { .. } => &["profile-id", "max-fs", "max-fr"],
        // RFC 6184 section 8.2.2: "The parameters identifying a media format configuration for H.264 are profile-level-id and
        // packetization-mode. These media format configuration parameters (except for the level part of profile-level-id) MUST
        // be used symmetrically". The level is the offer's, which is right with and without level-asymmetry-allowed.
        // sprop-parameter-sets describes the sender's own stream and is not echoed.
        Format::H264 { .. } => &["level-asymmetry-allowed", "packetization-mode", "profile-level-id"],
        Format::Av1 { .. } => &["profile", "level-idx", "tier"],
        // Of RTP routes; no offer has it.
        Format::Raw { .. } => &[],
    };
    echoed.iter().any(|echoed| echoed.eq_ignore_ascii_case(name))
}

/// RFC 3264 section 6: "To reject an offered stream, the port number in the corresponding stream in the answer MUST be set to
/// zero."
fn write_rejected(out: &mut String, offered: &OfferedMedia<'_>) -> fmt::Result {
    // A stream has at least one format, and the answer to a rejected one may carry any of the offer's.
    let format = offered.formats.split(' ').find(|format| !format.is_empty()).unwrap_or("0");
    write!(out, "m={} 0 {} {format}\r\nc=IN IP4 0.0.0.0\r\n", offered.media, offered.protocol)?;
    if let Some(mid) = offered.mid {
        write!(out, "a=mid:{mid}\r\n")?;
    }
    out.push_str("a=inactive\r\n");
    Ok(())
}

fn write_candidates(out: &mut String, candidates: &[SocketAddr]) -> fmt::Result {
    for (i, address) in candidates.iter().enumerate() {
        // RFC 8445 section 5.1.2.1: 2^24 * type preference (126 for host) + 2^8 * local preference + 256 - component. The
        // order that the operator gave is the preference.
        let local_preference = 65_535u32.saturating_sub(u32::try_from(i).unwrap_or(u32::MAX));
        let priority = (126 << 24) + (local_preference << 8) + 255;
        write!(out, "a=candidate:{} 1 udp {priority} {} {} typ host\r\n", i + 1, address.ip(), address.port())?;
    }
    out.push_str("a=end-of-candidates\r\n");
    Ok(())
}
