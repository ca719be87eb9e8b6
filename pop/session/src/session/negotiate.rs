//! A member's offers: one transport, and by mid what each media section carries in each direction.
//!
//! A section never goes from one track to another in one answer: it is idle in between. All clients notice a section that begins to
//! receive; not all notice one whose stream id alone has changed.

use std::collections::{BTreeMap, BTreeSet};

use pop_proto::control::{Codec, Command, IceCredentials, LayerWish, MediaKind, OpenSubscription, OpenTransport};
use pop_schemas::{ParticipantId, SubscriptionId, Time, TrackId, TransportId};

use super::Session;
use super::output::{Action, CloseReason, Output, audit};
use super::{CONNECT_TIMEOUT, MEMBER_SECTIONS_MAX};
use crate::format::{PayloadFormat, map_payload_types};
use crate::member::{
    Answer, Feed, Notice, Offer, OfferedSection, ReceivingSection, SectionUse, SendingSection, SubscriptionError, TransportOffer,
};
use crate::participant::{Choice, Connection, IceSession, LocalSection};

/// SSRCs of one transport until its client is told to begin anew: they are remembered, as none may be used twice under a key. Each offer
/// may draw some hundred.
const SSRCS_MAX: usize = 65_536;

/// A media section of a member's transport.
#[derive(Debug)]
pub(crate) struct MemberSection {
    pub(super) kind: MediaKind,
    /// What its client sends into it.
    pub(super) sends: Option<SendingSection>,
    /// The track that this is.
    pub(super) takes: Option<TrackId>,
    /// By which name it was announced; the offer may have another one.
    pub(super) cid: Box<str>,
    /// Its client still sends a track that has been ended.
    pub(super) is_spent: bool,
    /// See [`AddTrack::codec`](crate::member::AddTrack::codec).
    pub(super) codec: Option<Codec>,
    /// What its client can take from it.
    pub(super) receives: Option<ReceivingSection>,
    /// Opened when it is used for the first time.
    pub(super) outgoing: Option<Outgoing>,
    /// The last answer says that it feeds something.
    pub(super) told: bool,
}

/// The sending side of a section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(super) subscription: SubscriptionId,
    ssrc: u32,
    rtx_ssrc: Option<u32>,
}

impl Session {
    /// Takes an offer and answers it.
    pub(super) fn take_offer(&mut self, now: Time, id: ParticipantId, offer: Offer) {
        let Offer { id: number, ice, transport, sections } = offer;
        let mids: BTreeSet<_> = sections.iter().map(|section| &section.mid).collect();
        if sections.len() > MEMBER_SECTIONS_MAX || mids.len() != sections.len() || mids.iter().any(|mid| mid.is_empty()) {
            let reason = if sections.len() > MEMBER_SECTIONS_MAX { "too many media sections" } else { "a mid is there twice" };
            self.notify(id, Notice::OfferRefused { id: number, reason });
            return;
        }
        if self.member(id).is_some_and(|member| member.ssrcs.len() >= SSRCS_MAX) {
            return self.remove(now, id, CloseReason::SsrcsExhausted);
        }
        let Some(ice) = self.take_ice(now, id, ice, transport) else { return };
        self.expect_tracks(id, &sections);
        self.take_offered(now, id, &sections);
        self.feed_as_before(id);
        self.feed_waiting(id);
        let Some(participant) = self.participants.get(&id) else { return };
        let cname = cname_of(participant.id);
        let sections = self.answer_sections(id);
        self.notify(id, Notice::Answer(Box::new(Answer { id: number, ice, cname, sections })));
        self.feed_sections();
        self.note_offer(now, id);
    }

    /// Opens the transport, restarts its ICE, or keeps it. The credentials that hold now.
    fn take_ice(&mut self, now: Time, id: ParticipantId, ice: IceCredentials, offer: TransportOffer) -> Option<IceCredentials> {
        let participant = self.participants.get_mut(&id)?;
        match (participant.transport, &mut participant.ice) {
            (Some(transport), Some(session)) => {
                let restarts = session.credentials.remote_ufrag != ice.remote_ufrag;
                if restarts {
                    *session = IceSession { credentials: ice, restarted: true };
                }
                let current = session.credentials.clone();
                self.update_transport(id, transport, offer);
                if restarts {
                    self.command(Command::RestartIce { transport, ice: Box::new(current.clone()) });
                }
                Some(current)
            }
            _ => {
                self.open_transport(now, id, ice.clone(), offer);
                Some(ice)
            }
        }
    }

    /// A first offer may send nothing: what the client sends with is agreed when it does.
    fn update_transport(&mut self, id: ParticipantId, transport: TransportId, offer: TransportOffer) {
        let Some(member) = self.member_mut(id) else { return };
        if member.transport.as_ref() == Some(&offer) {
            return;
        }
        let TransportOffer { extensions, transport_cc, remb, .. } = offer;
        member.transport = Some(offer);
        self.command(Command::UpdateTransport { transport, extensions, transport_cc, remb });
    }

    fn open_transport(&mut self, now: Time, id: ParticipantId, ice: IceCredentials, offer: TransportOffer) {
        let transport = TransportId(self.draw.next_id());
        let rtcp_ssrc = self.draw.next_u32().max(1);
        let Some(participant) = self.participants.get_mut(&id) else { return };
        participant.transport = Some(transport);
        participant.ice = Some(IceSession { credentials: ice.clone(), restarted: false });
        self.connecting.remove(&(participant.opened + CONNECT_TIMEOUT, id));
        participant.opened = now;
        participant.connection = Connection::Connecting;
        let joined = audit(participant, Action::Joined { transport });
        if let Some(member) = &mut participant.member {
            member.ssrcs.insert(rtcp_ssrc);
            member.transport = Some(offer.clone());
        }
        self.by_transport.insert(transport, id);
        self.connecting.insert((now + CONNECT_TIMEOUT, id));
        let TransportOffer { extensions, transport_cc, remb, reduced_size_rtcp } = offer;
        let cname = cname_of(id);
        let open = OpenTransport { transport, ice, extensions, transport_cc, remb, reduced_size_rtcp, rtcp_ssrc, cname };
        self.command(Command::OpenTransport(Box::new(open)));
        self.outputs.push_back(Output::Audit(joined));
        self.touch(id);
    }

    /// Remembers what the offer says of each section; what a section that is gone was fed waits for another one.
    pub(super) fn note_sections(&mut self, id: ParticipantId, offered: &[OfferedSection]) {
        let Some(member) = self.member_mut(id) else { return };
        let offers: BTreeSet<_> = offered.iter().map(|section| (&section.mid, section.kind)).collect();
        let mut closed = Vec::new();
        member.sections.retain(|mid, section| {
            let kept = offers.contains(&(mid, section.kind));
            if !kept {
                closed.extend(section.outgoing);
            }
            kept
        });
        for OfferedSection { mid, kind, sends, receives } in offered {
            let (kind, sends, receives) = (*kind, sends.clone(), receives.clone());
            let section = member.sections.entry(mid.clone()).or_insert_with(|| MemberSection {
                kind,
                sends: None,
                takes: None,
                cid: "".into(),
                is_spent: false,
                codec: None,
                receives: None,
                outgoing: None,
                told: false,
            });
            let cid = |sends: &Option<SendingSection>| sends.as_ref().map(|sends| sends.cid.clone());
            section.is_spent &= cid(&section.sends) == cid(&sends);
            (section.sends, section.receives) = (sends, receives);
            if section.receives.is_none() {
                closed.extend(section.outgoing.take());
            }
        }
        for outgoing in closed {
            self.close_section(id, outgoing.subscription);
        }
        self.refresh_formats(id);
    }

    /// What sections that are open can take now.
    fn refresh_formats(&mut self, id: ParticipantId) {
        let Some(member) = self.participants.get(&id).and_then(|participant| participant.member.as_ref()) else { return };
        let open = member.sections.values().filter_map(|section| Some((section.outgoing?.subscription, section.receives.as_ref()?)));
        let changed: Vec<_> = open
            .filter(|(subscription, receives)| self.sections.get(subscription).is_some_and(|known| known.formats != receives.formats))
            .map(|(subscription, receives)| (subscription, receives.formats.clone()))
            .collect();
        for (subscription, formats) in changed {
            let Some(section) = self.sections.get_mut(&subscription) else { continue };
            section.formats = formats;
            let source = section.source;
            self.forward(subscription, source);
        }
    }

    /// Closes a member's section; the subscription in it waits again.
    fn close_section(&mut self, id: ParticipantId, subscription: SubscriptionId) {
        self.forget_section(subscription);
        if let Some(participant) = self.participants.get_mut(&id) {
            participant.sections.retain(|section| *section != subscription);
        }
        self.command(Command::CloseSubscription { subscription });
    }

    /// Takes a section out of the books.
    pub(super) fn forget_section(&mut self, id: SubscriptionId) {
        let Some(section) = self.sections.remove(&id) else { return };
        let Some(track) = section.source.and_then(|source| self.tracks.get_mut(&source)) else { return };
        track.takers.remove(&id);
    }

    /// Opens a section in the worker.
    pub(super) fn open_section(&mut self, owner: ParticipantId, open: OpenSubscription, formats: Vec<PayloadFormat>, choice: Choice) {
        let (id, kind) = (open.subscription, open.kind);
        self.command(Command::OpenSubscription(Box::new(open)));
        let (source, wish, stats) = (None, LayerWish::default(), Default::default());
        let section = LocalSection { id, owner, kind, formats, choice, source, wish, stats };
        self.sections.insert(id, section);
        if let Some(participant) = self.participants.get_mut(&owner) {
            participant.sections.push(id);
        }
    }

    /// Gives the tracks that wait the sections that are idle, the longest waiting first.
    fn feed_waiting(&mut self, id: ParticipantId) {
        for track in self.waiting_of(id) {
            match self.find_section(id, track) {
                Ok(Some(mid)) => self.feed_section(id, &mid, track),
                Ok(None) => {}
                Err(Undecodable) => self.fail_subscription(id, track, SubscriptionError::Codec),
            }
        }
    }

    /// An idle section that can decode the track now.
    fn find_section(&self, id: ParticipantId, track: TrackId) -> Result<Option<Box<str>>, Undecodable> {
        let (Some(member), Some(track)) = (self.member(id), self.tracks.get(&track)) else { return Ok(None) };
        let of_kind = member.sections.iter().filter(|(_, section)| section.kind == track.kind);
        let receiving = of_kind.filter_map(|(mid, section)| Some((mid, section, section.receives.as_ref()?)));
        let mut decoding = receiving.clone().filter(|(_, _, receives)| !map_payload_types(&track.formats, &receives.formats).is_empty());
        if receiving.count() > 0 && decoding.clone().next().is_none() {
            return Err(Undecodable);
        }
        let idle = decoding.find(|(_, section, _)| !section.told && self.source_of(section).is_none());
        Ok(idle.map(|(mid, _, _)| mid.clone()))
    }

    /// What a member's section is fed with.
    pub(super) fn source_of(&self, section: &MemberSection) -> Option<TrackId> {
        self.sections.get(&section.outgoing?.subscription)?.source
    }

    pub(super) fn feed_section(&mut self, id: ParticipantId, mid: &str, track: TrackId) {
        let Some(subscription) = self.open_outgoing(id, mid) else { return };
        // Before the first packet, so that nobody gets a picture that is too large even for a moment.
        self.wish_for(id, track, subscription);
        self.forward(subscription, Some(track));
        self.note_fed(id, track, subscription);
    }

    /// The section's subscription on the worker, opened when there is none yet.
    fn open_outgoing(&mut self, id: ParticipantId, mid: &str) -> Option<SubscriptionId> {
        let participant = self.participants.get_mut(&id)?;
        let transport = participant.transport?;
        let member = participant.member.as_mut()?;
        let section = member.sections.get_mut(mid)?;
        if let Some(outgoing) = section.outgoing {
            return Some(outgoing.subscription);
        }
        let receives = section.receives.clone()?;
        let kind = section.kind;
        // "never used before under the transport's key": the set lives as long as the transport.
        let mut draw_ssrc = || loop {
            let ssrc = self.draw.next_u32();
            if ssrc != 0 && member.ssrcs.insert(ssrc) {
                return ssrc;
            }
        };
        let (ssrc, rtx_ssrc) = (draw_ssrc(), receives.rtx.then(&mut draw_ssrc));
        let subscription = SubscriptionId(self.draw.next_id());
        section.outgoing = Some(Outgoing { subscription, ssrc, rtx_ssrc });
        let first_sequence = (self.draw.next_u32() & 0x7fff) as u16;
        let first_timestamp = self.draw.next_u32();
        let (extensions, mid) = (receives.extensions, mid.into());
        let open = OpenSubscription { subscription, transport, kind, ssrc, first_sequence, first_timestamp, rtx_ssrc, extensions, mid };
        self.open_section(id, open, receives.formats, Choice::Member);
        Some(subscription)
    }

    fn answer_sections(&mut self, id: ParticipantId) -> BTreeMap<Box<str>, SectionUse> {
        let Some(member) = self.member(id) else { return BTreeMap::new() };
        let uses = |section: &MemberSection| SectionUse {
            takes: section.takes,
            codec: section.codec.filter(|_| section.takes.is_some()),
            feeds: self.feed_of(section),
        };
        let uses: BTreeMap<_, _> = member.sections.iter().map(|(mid, section)| (mid.clone(), uses(section))).collect();
        if let Some(member) = self.member_mut(id) {
            for (mid, section) in &mut member.sections {
                section.told = uses[mid].feeds.is_some();
            }
        }
        uses
    }

    fn feed_of(&self, section: &MemberSection) -> Option<Feed> {
        let track = self.tracks.get(&self.source_of(section)?)?;
        let Outgoing { ssrc, rtx_ssrc, .. } = section.outgoing?;
        Some(Feed { track: track.id, publisher: track.owner, stream: track.info.stream.clone(), ssrc, rtx_ssrc })
    }
}

/// No section of the client takes any format of the track.
struct Undecodable;

/// A name that means nothing (RFC 7022 section 4.2) and stays for the participant's life.
fn cname_of(id: ParticipantId) -> Box<str> {
    format!("{:016x}", id.0).into()
}
