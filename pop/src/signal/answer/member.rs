//! The answer to an offer of a member of a room, whose one transport sends, takes and carries data, and is offered anew as it likes.

use std::fmt;

use pop_dataplane::limits::{SUBSCRIPTIONS_PER_TRANSPORT_MAX, TRACKS_PER_TRANSPORT_MAX};
use pop_proto::control::{Codec, Extension, ExtensionIds};
use pop_session::Role;
use pop_session::placement::Claim;

use super::section::{accept, agree_on_extensions, is_bundled, offered_extensions, read_section};
use super::transport::OfferedTransport;
use super::write::{SectionWriter, write_candidates, write_layers, write_rejected, write_session, write_source};
use super::{Accepted, LocalSource, LocalTransport, check_sources};
use crate::config::DtlsRole;
use crate::signal::sdp::{Direction, FingerprintLine, Offer, OfferedMedia, SdpError};

/// What the offers before this one have settled for the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// One numbering of header extensions, for whatever is sent either way.
    pub numbering: ExtensionIds,
    /// Those of them that the client may send.
    pub sends: ExtensionIds,
    /// `transport-cc` was agreed in a section that sends.
    pub transport_cc: bool,
    /// `goog-remb` was agreed in a section that sends, for want of `transport-cc`.
    pub remb: bool,
}

/// What can be served of a member's offer.
#[derive(Debug)]
pub struct MemberNegotiation<'a> {
    /// The client's ICE fragment.
    pub remote_ufrag: &'a str,
    /// The client's certificate is one of these.
    pub fingerprints: &'a [FingerprintLine<'a>],
    /// The DTLS client is the other side: we answer `passive`.
    pub passive: bool,
    /// As in `a=rtcp-rsize` of every section.
    pub reduced_size_rtcp: bool,
    /// What holds for the transport from now on.
    pub agreed: Agreed,
    /// Sections with media that nothing is left for on one transport, by [`TRACKS_PER_TRANSPORT_MAX`] and
    /// [`SUBSCRIPTIONS_PER_TRANSPORT_MAX`].
    pub left_out: usize,
    remb: bool,
    mixed_extensions: bool,
    sections: Vec<MemberSection<'a>>,
}

/// A section of a member's offer.
#[derive(Debug)]
pub struct MemberSection<'a> {
    offered: &'a OfferedMedia<'a>,
    plan: Plan<'a>,
}

#[derive(Debug)]
enum Plan<'a> {
    /// Nothing of it could ever be used.
    Reject,
    Data,
    Media {
        /// What is the same in every direction, with every extension that this node knows: Chromium offers in later sections only
        /// what was answered in an earlier one, and a section that carries nothing now may send simulcast later.
        base: Box<Accepted<'a>>,
        /// The client may send into it.
        takes: Option<Box<Accepted<'a>>>,
        /// The client can take from it.
        feeds: Option<Box<Accepted<'a>>>,
    },
}

/// What a section is fed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedText {
    /// First word of `a=msid`.
    pub stream: String,
    /// Second word of `a=msid`.
    pub track: String,
    /// SSRCs.
    pub source: LocalSource,
}

impl<'a> MemberSection<'a> {
    fn read(offer: &'a Offer<'a>, offered: &'a OfferedMedia<'a>) -> MemberSection<'a> {
        MemberSection { offered, plan: Plan::read(offer, offered) }
    }

    /// Its mid.
    pub fn mid(&self) -> &'a str {
        self.offered.mid.unwrap_or_default()
    }

    /// The client's name for the track that it sends here.
    pub fn cid(&self) -> &'a str {
        self.offered.track.unwrap_or_default()
    }

    /// What the client may send.
    pub fn takes(&self) -> Option<&Accepted<'a>> {
        match &self.plan {
            Plan::Media { takes, .. } => takes.as_deref(),
            _ => None,
        }
    }

    /// What the client can take.
    pub fn feeds(&self) -> Option<&Accepted<'a>> {
        match &self.plan {
            Plan::Media { feeds, .. } => feeds.as_deref(),
            _ => None,
        }
    }

    fn is_used(&self) -> bool {
        !matches!(self.plan, Plan::Reject)
    }

    fn accepted_mut(&mut self) -> impl Iterator<Item = &mut Accepted<'a>> {
        let (base, takes, feeds) = match &mut self.plan {
            Plan::Media { base, takes, feeds } => (Some(&mut **base), takes.as_deref_mut(), feeds.as_deref_mut()),
            _ => (None, None, None),
        };
        base.into_iter().chain(takes).chain(feeds)
    }
}

impl<'a> Plan<'a> {
    fn read(offer: &'a Offer<'a>, offered: &'a OfferedMedia<'a>) -> Plan<'a> {
        // A section without a name could not be told from others when it is offered again.
        if offered.mid.is_none() || offered.disabled {
            return Plan::Reject;
        }
        if is_data(offer, offered) {
            return Plan::Data;
        }
        let Some(mut base) = read_section(offer, offered, Role::Watch).map(Box::new) else { return Plan::Reject };
        base.extensions = offered_extensions(offer, offered, |_, _| true);
        let of = |role| accept(offer, offered, role).map(Box::new);
        Plan::Media { base, takes: of(Role::Publish), feeds: of(Role::Watch) }
    }
}

/// RFC 8841 section 4.1.
fn is_data(offer: &Offer<'_>, offered: &OfferedMedia<'_>) -> bool {
    offered.media == "application"
        && matches!(offered.protocol, "UDP/DTLS/SCTP" | "TCP/DTLS/SCTP")
        && offered.formats == "webrtc-datachannel"
        && is_bundled(offer, offered)
}

/// Decides what of `offer` can be served, after offers that have settled `before`.
pub fn negotiate_member<'a>(offer: &'a Offer<'a>, dtls_role: DtlsRole, before: Agreed) -> Result<MemberNegotiation<'a>, SdpError> {
    if offer.bundle.is_none() && offer.media.len() > 1 {
        return Err(SdpError::whole("a=group:BUNDLE", "is missing: all media must share one transport"));
    }
    let mut sections: Vec<_> = offer.media.iter().map(|offered| MemberSection::read(offer, offered)).collect();
    let left_out = keep_what_a_transport_holds(&mut sections);
    let used = || sections.iter().filter(|section| section.is_used()).map(|section| section.offered);
    let first = used().next().ok_or_else(|| SdpError::whole("m=", "has neither media nor data channels that can be served"))?;
    let OfferedTransport { remote_ufrag, fingerprints, passive } = OfferedTransport::read(offer, first, used(), dtls_role)?;
    let reduced_size_rtcp = used().all(|media| media.kind.is_none() || media.rtcp_rsize);

    let numbering = agree_on_extensions(before.numbering, sections.iter_mut().flat_map(MemberSection::accepted_mut));
    let takes = || sections.iter().filter_map(MemberSection::takes);
    let all = || sections.iter().filter_map(MemberSection::feeds).chain(takes());
    let transport_cc = all().any(Accepted::has_transport_cc);
    let remb = !transport_cc && all().any(Accepted::offers_remb);
    let mut agreed = Agreed {
        numbering,
        sends: before.sends,
        transport_cc: before.transport_cc || takes().any(Accepted::has_transport_cc),
        remb: before.remb || (remb && takes().next().is_some()),
    };
    agreed.remb &= !agreed.transport_cc;
    for accepted in sections.iter_mut().filter_map(MemberSection::takes_mut) {
        if !agreed.remb {
            // Nobody looks at it then, and it costs 4 bytes a packet.
            accepted.extensions = accepted.extensions.with(Extension::AbsSendTime, 0);
        }
        agreed.sends = join(agreed.sends, accepted.extensions);
    }
    let negotiation = MemberNegotiation {
        remote_ufrag,
        fingerprints,
        passive,
        reduced_size_rtcp,
        agreed,
        left_out,
        remb,
        mixed_extensions: offer.mixed_extensions,
        sections,
    };
    check_sources(negotiation.sections.iter().filter_map(MemberSection::takes))?;
    Ok(negotiation)
}

/// Of one numbering, the ids of both.
fn join(one: ExtensionIds, other: ExtensionIds) -> ExtensionIds {
    let ids = Extension::ALL.into_iter().filter_map(|extension| Some((extension, other.get(extension)?)));
    ids.fold(one, |all, (extension, id)| all.with(extension, id))
}

/// A worker takes so many streams of one transport and feeds so many of its sections; what is beyond is left out, the first come first.
fn keep_what_a_transport_holds(sections: &mut [MemberSection<'_>]) -> usize {
    keep_within(sections, Claim { transports: 1, tracks: TRACKS_PER_TRANSPORT_MAX, subscriptions: SUBSCRIPTIONS_PER_TRANSPORT_MAX })
}

fn keep_within(sections: &mut [MemberSection<'_>], mut room: Claim) -> usize {
    let mut left_out = 0;
    for section in sections {
        let Plan::Media { takes, feeds, .. } = &mut section.plan else { continue };
        let streams = takes.as_ref().map_or(0, |takes| takes.streams());
        match room.tracks.checked_sub(streams) {
            Some(left) => room.tracks = left,
            None => (*takes, left_out) = (None, left_out + 1),
        }
        match room.subscriptions.checked_sub(usize::from(feeds.is_some())) {
            Some(left) => room.subscriptions = left,
            None => (*feeds, left_out) = (None, left_out + 1),
        }
    }
    left_out
}

impl<'a> MemberNegotiation<'a> {
    /// What the client takes of its worker's plan beside its transport.
    pub fn claim(&self) -> Claim {
        let tracks = self.sections.iter().filter_map(MemberSection::takes).map(Accepted::streams).sum();
        let subscriptions = self.sections.iter().filter(|section| section.feeds().is_some()).count();
        Claim { transports: 0, tracks, subscriptions }
    }

    /// Leaves out what goes beyond `claim`; the number of directions of sections that were left out.
    pub fn restrict(&mut self, claim: Claim) -> usize {
        keep_within(&mut self.sections, claim)
    }

    /// The sections, in order.
    pub fn sections(&self) -> impl Iterator<Item = &MemberSection<'a>> {
        self.sections.iter()
    }

    /// Puts the codec that a publisher means to send first: it sends the first one of the answer.
    pub fn prefer(&mut self, codec_of: impl Fn(&str) -> Option<Codec>) {
        for section in &mut self.sections {
            let codec = codec_of(section.mid());
            if let Some(takes) = section.takes_mut().filter(|_| codec.is_some()) {
                takes.prefer(codec);
            }
        }
    }

    /// The answer. `uses` says of a mid whether its track is taken and what it is fed with.
    pub fn write(&self, local: &LocalTransport<'_>, cname: &str, uses: impl Fn(&str) -> (bool, Option<FeedText>)) -> String {
        let mut text = String::with_capacity(4_096 * self.sections.len().max(1));
        self.write_to(&mut text, local, cname, uses).expect("a String takes every write");
        text
    }

    fn write_to(
        &self,
        out: &mut String,
        local: &LocalTransport<'_>,
        cname: &str,
        uses: impl Fn(&str) -> (bool, Option<FeedText>),
    ) -> fmt::Result {
        let writer = SectionWriter {
            local,
            passive: self.passive,
            reduced_size_rtcp: self.reduced_size_rtcp,
            mixed_extensions: self.mixed_extensions,
            remb: self.remb,
        };
        let mids = self.sections.iter().filter(|section| section.is_used()).map(MemberSection::mid);
        write_session(out, local, self.mixed_extensions, Some(mids))?;
        let mut first = true;
        for section in &self.sections {
            match &section.plan {
                Plan::Reject => {
                    write_rejected(out, section.offered)?;
                    continue;
                }
                Plan::Data => writer.write_data(out, section.offered)?,
                Plan::Media { base, takes, feeds } => {
                    let (taken, feed) = uses(section.mid());
                    let takes = takes.as_deref().filter(|_| taken);
                    let feeds = feeds.as_deref().zip(feed);
                    write_media(out, &writer, section.offered, (base, takes), feeds, cname)?;
                }
            }
            if std::mem::take(&mut first) {
                write_candidates(out, local.candidates, local.tcp_candidates)?;
            }
        }
        Ok(())
    }
}

/// A section that carries nothing now is inactive and not rejected: a rejected one could not be used again.
fn write_media(
    out: &mut String,
    writer: &SectionWriter<'_>,
    offered: &OfferedMedia<'_>,
    (base, takes): (&Accepted<'_>, Option<&Accepted<'_>>),
    feeds: Option<(&Accepted<'_>, FeedText)>,
    cname: &str,
) -> fmt::Result {
    // A client sends whatever is answered, wanted or not.
    let own = takes.unwrap_or(base).extensions;
    let extensions = feeds.as_ref().map_or(own, |(feeds, _)| join(own, feeds.extensions));
    let direction = Direction::of(feeds.is_some(), takes.is_some());
    let accepted = takes.or(feeds.as_ref().map(|(feeds, _)| *feeds)).unwrap_or(base);
    writer.write_section(out, accepted, extensions, offered, direction)?;
    if let Some(takes) = takes {
        write_layers(out, takes, offered)?;
    }
    if let Some((_, FeedText { stream, track, source })) = &feeds {
        write_source(out, stream, track, cname, source)?;
    }
    Ok(())
}

impl<'a> MemberSection<'a> {
    fn takes_mut(&mut self) -> Option<&mut Accepted<'a>> {
        match &mut self.plan {
            Plan::Media { takes, .. } => takes.as_deref_mut(),
            _ => None,
        }
    }
}
