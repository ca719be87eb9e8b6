//! Clients of WHIP and WHEP, and RTP routes: in by one request with everything, out by another.

use std::collections::BTreeSet;

use pop_proto::control::{Command, MediaKind, OpenTrack, RtpPeer, RtpPeerStats};
use pop_schemas::{ParticipantId, Time};

use super::bucket::Bucket;
use super::output::{Action, CloseReason, Output, audit};
use super::publish::{mime_of, order_layers};
use super::request::{IceCondition, IceUpdate, Join, Media, Opening, Publication, Refusal, Reply, Section};
use super::told::CHANGES_BURST;
use super::{CONNECT_TIMEOUT, Session};
use crate::format::PayloadFormat;
use crate::member::{Source, TrackInfo};
use crate::participant::{Choice, Connection, IceSession, Kind, LocalParticipant, Texts, Track};

impl Session {
    pub(super) fn join(&mut self, now: Time, join: Join) -> Result<Reply, Refusal> {
        let replaced = self.replaced_by(&join);
        self.check_join(&join, replaced.is_some())?;

        let Join { participant: id, identity, hidden, joined_at_ms, resource, transport, media } = join;
        self.set_wall_clock(now, joined_at_ms);
        let transport_id = transport.id();
        let kind = match media {
            Media::Publish(_) => Kind::Publisher,
            Media::Watch(_) => Kind::Viewer,
        };
        let (mut connection, mut address, mut ice) = (Connection::Connecting, None, None);
        match transport {
            Opening::WebRtc(open) => {
                ice = Some(IceSession { credentials: open.ice.clone(), restarted: false });
                self.command(Command::OpenTransport(Box::new(open)));
                self.connecting.insert((now + CONNECT_TIMEOUT, id));
            }
            Opening::Rtp(open) => {
                connection = Connection::Routed { profile: open.keys.as_ref().map(|keys| keys.profile), stats: RtpPeerStats::default() };
                if let RtpPeer::Fixed(peer) = open.peer {
                    address = Some(peer);
                }
                self.command(Command::OpenRtp(Box::new(open)));
            }
        }
        self.by_transport.insert(transport_id, id);
        self.by_resource.insert(resource.clone(), id);
        let joined_at_ms = self.draw_joined_ms(now, &identity);
        let participant = LocalParticipant {
            id,
            identity,
            hidden,
            kind,
            resource: Some(resource),
            transport: Some(transport_id),
            ice,
            joined: now,
            joined_at_ms,
            opened: now,
            connection,
            address,
            tracks: Vec::new(),
            sections: Vec::new(),
            texts: Texts::default(),
            counter: 0,
            told: Bucket::full(CHANGES_BURST),
            epoch: 0,
            member: None,
        };
        self.outputs.push_back(Output::Audit(audit(&participant, Action::Joined { transport: transport_id })));
        self.insert(now, participant);
        match media {
            Media::Publish(publications) => self.open_tracks(now, id, publications, replaced),
            Media::Watch(sections) => self.open_sections(id, sections),
        }
        if let Some(replaced) = replaced {
            self.remove(now, replaced, CloseReason::Replaced);
        }
        self.feed_sections();
        Ok(Reply::Joined)
    }

    /// The publisher whose place `join` takes. A client that was killed and comes again must not wait for its own ghost to
    /// expire, and a member with its identity would be the same one twice in everybody's eyes; viewers may share an identity, so
    /// they replace nobody. A route is the operator's: it ends when he says so, and it ends nobody.
    fn replaced_by(&self, join: &Join) -> Option<ParticipantId> {
        let (Media::Publish(_), Opening::WebRtc(_)) = (&join.media, &join.transport) else { return None };
        let same = |p: &&LocalParticipant| p.kind != Kind::Viewer && p.identity == join.identity && !p.is_routed();
        self.participants.values().find(same).map(|p| p.id)
    }

    fn check_join(&self, join: &Join, replaces: bool) -> Result<(), Refusal> {
        self.check_full(&join.identity, usize::from(replaces))?;
        let taken = self.participants.contains_key(&join.participant)
            || self.by_resource.contains_key(&join.resource)
            || self.by_transport.contains_key(&join.transport.id());
        if taken {
            return Err(Refusal::Duplicate);
        }
        match &join.media {
            Media::Publish(publications) => {
                if publications.is_empty() {
                    return Err(Refusal::NoMedia);
                }
                if publications.len() > self.limits.tracks_max {
                    return Err(Refusal::TooManyTracks(self.limits.tracks_max));
                }
                let streams: usize = publications.iter().map(|p| p.open.layers.len().max(1)).sum();
                if streams > self.limits.streams_max {
                    return Err(Refusal::TooManyTracks(self.limits.streams_max));
                }
                let ids: BTreeSet<_> = publications.iter().map(|p| p.open.track).collect();
                if ids.len() != publications.len() || ids.iter().any(|id| self.tracks.contains_key(id)) {
                    return Err(Refusal::Duplicate);
                }
            }
            Media::Watch(sections) => {
                if sections.is_empty() {
                    return Err(Refusal::NoMedia);
                }
                // Publishers of one identity replace each other and need no such bound.
                let connecting = self.connecting.iter().filter_map(|(_, id)| self.participants.get(id));
                if connecting.filter(|p| p.identity == join.identity).count() >= self.limits.connecting_max {
                    return Err(Refusal::Connecting(self.limits.connecting_max));
                }
                let kinds: BTreeSet<_> = sections.iter().map(|s| s.open.kind).collect();
                if kinds.len() != sections.len() {
                    return Err(Refusal::TooManySections);
                }
                let ids: BTreeSet<_> = sections.iter().map(|s| s.open.subscription).collect();
                if ids.len() != sections.len() || ids.iter().any(|id| self.sections.contains_key(id)) {
                    return Err(Refusal::Duplicate);
                }
            }
        }
        Ok(())
    }

    fn open_tracks(&mut self, now: Time, owner: ParticipantId, publications: Vec<Publication>, replaced: Option<ParticipantId>) {
        let order = replaced.and_then(|id| self.tracks_of(id).next().map(|track| track.order)).unwrap_or_else(|| self.draw_order(now));
        for Publication { open, formats } in publications {
            let (id, kind) = (open.track, open.kind);
            // The n-th camera of the new client stands for the n-th of the old one.
            let nth = self.tracks_of(owner).filter(|track| track.kind == kind).count();
            let stands_for = replaced.and_then(|old| self.tracks_of(old).filter(|track| track.kind == kind).nth(nth));
            let (stands_for, started) = (stands_for.map(|track| track.id), stands_for.is_some_and(|track| track.started));
            let info = describe_publication(&open, &formats, nth);
            self.open_track(owner, open, formats, info, order);
            if let Some(track) = self.tracks.get_mut(&id) {
                track.started = started;
            }
            if let Some(old) = stands_for {
                self.move_sections(old, id);
            }
        }
    }

    pub(super) fn tracks_of(&self, owner: ParticipantId) -> impl Iterator<Item = &Track> {
        let ids = self.participants.get(&owner).into_iter().flat_map(|participant| &participant.tracks);
        ids.filter_map(|id| self.tracks.get(id))
    }

    fn open_sections(&mut self, owner: ParticipantId, sections: Vec<Section>) {
        for Section { open, formats, publisher } in sections {
            self.open_section(owner, open, formats, Choice::Oldest { publisher });
        }
    }

    pub(super) fn leave_resource(&mut self, now: Time, resource: &str) -> Result<Reply, Refusal> {
        let id = *self.by_resource.get(resource).ok_or(Refusal::UnknownResource)?;
        self.remove(now, id, CloseReason::Left);
        Ok(Reply::Left)
    }

    /// The condition is judged and the session changed in one step: requests may overlap (RFC 9725 section 4.3.1).
    pub(super) fn update_ice(&mut self, update: IceUpdate) -> Result<Reply, Refusal> {
        let id = self.by_resource.get(&update.resource).ok_or(Refusal::UnknownResource)?;
        let participant = self.participants.get_mut(id).expect("a resource goes with its participant");
        // A route has no ICE, and no HTTP client that could ask.
        let session = participant.ice.as_mut().ok_or(Refusal::UnknownResource)?;
        match &update.condition {
            IceCondition::Missing => return Err(Refusal::IceUnconditional),
            IceCondition::OneOf(tags) if !tags.contains(&session.credentials.local_ufrag) => return Err(Refusal::IceStale),
            IceCondition::OneOf(_) | IceCondition::Any => {}
        }
        let Some(credentials) = update.credentials else { return Ok(Reply::IceKept) };
        // "any WHIP session receiving an updated "ice-pwd" and "ice-ufrag" attributes MUST consider the request as performing an
        // ICE restart".
        if credentials.remote_ufrag != session.credentials.remote_ufrag {
            *session = IceSession { credentials: credentials.clone(), restarted: true };
            let transport = participant.transport.expect("who has ICE has a transport");
            let ice = Box::new(credentials.clone());
            self.command(Command::RestartIce { transport, ice });
            return Ok(Reply::IceRestarted(credentials));
        }
        // A restart whose answer was lost is asked for again, and gets the same answer.
        if session.restarted && update.condition == IceCondition::Any {
            return Ok(Reply::IceRestarted(session.credentials.clone()));
        }
        Ok(Reply::IceKept)
    }
}

/// What members see of a track that told nothing but its media section: the first of each kind is a camera or a microphone, as a
/// broadcast is.
fn describe_publication(open: &OpenTrack, formats: &[PayloadFormat], nth: usize) -> TrackInfo {
    let source = match (nth, open.kind) {
        (0, MediaKind::Audio) => Source::Microphone,
        (0, MediaKind::Video) => Source::Camera,
        _ => Source::Unknown,
    };
    let (layers, _) = order_layers(open.kind, &open.layers, &[]);
    TrackInfo {
        track: open.track,
        kind: open.kind,
        source,
        name: "".into(),
        muted: false,
        width: 0,
        height: 0,
        simulcast: layers.len() > 1,
        layers,
        mime: mime_of(formats),
        mid: open.mid.clone(),
        stream: "".into(),
        encryption: 0,
        audio_features: Vec::new(),
        disable_red: false,
        stereo: false,
        disable_dtx: false,
    }
}
