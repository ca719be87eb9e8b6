//! Makes the answer to an offer: first [`negotiate`] decides what is taken, then [`Negotiation::write`] writes it down.
//!
//! In between the caller draws credentials and a worker; a refused offer costs neither.

use std::net::SocketAddr;

use pop_dataplane::limits::TRACKS_PER_TRANSPORT_MAX;
use pop_proto::control::{Extension, ExtensionIds};
use pop_session::Role;
use pop_session::placement::Claim;

use self::section::{accept, agree_on_extensions, flows, is_bundled, is_secure_rtp};
use self::transport::OfferedTransport;
use super::sdp::{FingerprintLine, Offer, OfferedMedia, SdpError};
use crate::config::DtlsRole;

pub use self::member::{Agreed, FeedText, MemberNegotiation, MemberSection, negotiate_member};
pub use self::section::Accepted;
pub(super) use self::write::{ICE_OPTIONS, write_candidates};

mod member;
mod section;
mod transport;
mod write;

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
    /// Header extensions of all accepted sections together.
    pub extensions: ExtensionIds,
    /// `transport-cc` was agreed in a section.
    pub transport_cc: bool,
    /// `goog-remb` was agreed, for want of `transport-cc`.
    pub remb: bool,
    /// Every accepted section takes RTCP that is not a compound.
    pub reduced_size_rtcp: bool,
    /// `a=extmap-allow-mixed` of the session part (RFC 8285 section 6).
    mixed_extensions: bool,
    bundled: bool,
    sections: Vec<(&'a OfferedMedia<'a>, Option<Accepted<'a>>)>,
}

/// Our side of the transport.
#[derive(Debug)]
pub struct LocalTransport<'a> {
    /// For `o=`: unique, below 2^62.
    pub session_id: u64,
    /// For `o=`: raised by each answer of one session.
    pub session_version: u64,
    /// ICE fragment.
    pub ufrag: &'a str,
    /// ICE password.
    pub pwd: &'a str,
    /// Value of `a=fingerprint`.
    pub fingerprint: &'a str,
    /// Where the worker listens, the preferred first; at least one.
    pub candidates: &'a [SocketAddr],
    /// Where it takes TCP connections (RFC 6544), the preferred first; may be empty.
    pub tcp_candidates: &'a [SocketAddr],
}

/// What we send to a viewer.
#[derive(Debug)]
pub struct LocalMedia<'a> {
    /// One for audio and video, so that they are played in step.
    pub stream: &'a str,
    /// CNAME of all sections.
    pub cname: &'a str,
    /// One per accepted section.
    pub sources: &'a [LocalSource],
}

/// The SSRCs of a section of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSource {
    /// Of the stream.
    pub ssrc: u32,
    /// Of its retransmissions, when the client takes them as a stream of their own.
    pub rtx_ssrc: Option<u32>,
}

/// Decides what of `offer` is taken from a publisher or given to a viewer. Its errors are about what is not possible, not about
/// what is malformed.
pub fn negotiate<'a>(offer: &'a Offer<'a>, role: Role, dtls_role: DtlsRole) -> Result<Negotiation<'a>, SdpError> {
    let mut sections: Vec<_> = offer.media.iter().map(|media| (media, accept(offer, media, role))).collect();
    match role {
        Role::Watch => keep_first_of_each_kind(&mut sections),
        Role::Publish => keep_what_a_transport_holds(&mut sections),
    }
    let accepted = || sections.iter().filter(|(_, accepted)| accepted.is_some()).map(|(media, _)| *media);
    let Some(first) = accepted().next() else { return Err(explain_nothing_accepted(offer, role)) };
    if offer.bundle.is_none() && accepted().count() > 1 {
        return Err(SdpError::whole("a=group:BUNDLE", "is missing: all media must share one transport"));
    }
    let OfferedTransport { remote_ufrag, fingerprints, passive } = OfferedTransport::read(offer, first, accepted(), dtls_role)?;
    let reduced_size_rtcp = accepted().all(|media| media.rtcp_rsize);

    let mut extensions = agree_on_extensions(ExtensionIds::NONE, sections.iter_mut().filter_map(|(_, accepted)| accepted.as_mut()));
    let any = |has: &dyn Fn(&Accepted<'_>) -> bool| sections.iter().filter_map(|(_, accepted)| accepted.as_ref()).any(has);
    let transport_cc = any(&|accepted| accepted.has_transport_cc());
    let remb = !transport_cc && any(&|accepted| accepted.offers_remb());
    if role == Role::Publish && !remb {
        // Nobody looks at it then, and it costs 4 bytes a packet.
        for accepted in sections.iter_mut().filter_map(|(_, accepted)| accepted.as_mut()) {
            accepted.extensions = accepted.extensions.with(Extension::AbsSendTime, 0);
        }
        extensions = extensions.with(Extension::AbsSendTime, 0);
    }
    let negotiation = Negotiation {
        role,
        remote_ufrag,
        fingerprints,
        passive,
        extensions,
        transport_cc,
        remb,
        reduced_size_rtcp,
        mixed_extensions: offer.mixed_extensions,
        bundled: offer.bundle.is_some(),
        sections,
    };
    negotiation.check_sources()?;
    Ok(negotiation)
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

/// A worker takes so many streams of one publisher, each simulcast layer one; sections beyond them are rejected.
fn keep_what_a_transport_holds(sections: &mut [(&OfferedMedia<'_>, Option<Accepted<'_>>)]) {
    let mut room = TRACKS_PER_TRANSPORT_MAX;
    for (_, accepted) in sections {
        let Some(streams) = accepted.as_ref().map(Accepted::streams) else { continue };
        match room.checked_sub(streams) {
            Some(left) => room = left,
            None => *accepted = None,
        }
    }
}

/// The most useful sentence for somebody whose offer has nothing for us.
fn explain_nothing_accepted(offer: &Offer<'_>, role: Role) -> SdpError {
    let open: Vec<_> = offer.media.iter().filter(|media| media.kind.is_some() && !media.disabled).collect();
    if open.is_empty() {
        return SdpError::whole("m=", "has neither audio nor video");
    }
    let Some(flowing) = open.iter().find(|media| flows(media, role)) else {
        let reason = match role {
            Role::Publish => "is never sendonly or sendrecv: a publisher must send",
            Role::Watch => "is never recvonly or sendrecv: a viewer must receive",
        };
        return SdpError::whole("the direction", reason);
    };
    let reason = if !is_secure_rtp(flowing.protocol) {
        "is not UDP/TLS/RTP/SAVPF"
    } else if !is_bundled(offer, flowing) {
        "is not in the BUNDLE group"
    } else {
        "has no codec that passes here: opus, VP8, VP9, H264 (packetization-mode 0 or 1), H265 and AV1 do"
    };
    SdpError { line: flowing.line, field: "m=".into(), reason }
}

impl<'a> Negotiation<'a> {
    /// What the client takes of its worker's plan.
    pub fn claim(&self) -> Claim {
        match self.role {
            Role::Publish => Claim { transports: 1, tracks: self.accepted().map(Accepted::streams).sum(), subscriptions: 0 },
            Role::Watch => Claim { transports: 1, tracks: 0, subscriptions: self.accepted().count() },
        }
    }

    /// The accepted sections, in order.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted<'a>> {
        self.sections.iter().filter_map(|(_, accepted)| accepted.as_ref())
    }

    fn check_sources(&self) -> Result<(), SdpError> {
        if self.role == Role::Watch {
            return Ok(());
        }
        check_sources(self.accepted())
    }
}

/// A packet's SSRC chooses its track, so no two streams of a publisher may share one.
fn check_sources<'s, 'a: 's>(accepted: impl Iterator<Item = &'s Accepted<'a>>) -> Result<(), SdpError> {
    let mut ssrcs: Vec<_> = accepted.flat_map(|accepted| [accepted.ssrc, accepted.rtx_ssrc]).flatten().collect();
    ssrcs.sort_unstable();
    if ssrcs.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(SdpError::whole("a=ssrc", "gives one source to two streams"));
    }
    Ok(())
}
