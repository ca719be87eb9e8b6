//! A member whose node died is taken over by the node that its client comes to: the same participant with the same tracks, under the next
//! epoch.
//!
//! What it is, and how it wants the tracks of others, comes from the record that its owner wrote last; what it takes, and how its sections are
//! called, from what its client says when it is back (`Sync`) and from its next offer. Until that offer its tracks are away: whoever takes them keeps them and gets nothing.

use pop_proto::control::MediaKind;
use pop_schemas::{ParticipantId, Time, TrackId};

use super::bucket::Bucket;
use super::members::Member;
use super::output::{Action, Output, audit};
use super::permissions::Takers;
use super::publish::Announced;
use super::remotes::COUNTER_MAX;
use super::request::Refusal;
use super::told::CHANGES_BURST;
use super::{CONNECT_TIMEOUT, MEMBER_SECTIONS_MAX, Session};
use crate::format::map_payload_types;
use crate::member::{OfferedSection, Resume};
use crate::participant::{Connection, Kind, LocalParticipant, Origin, Texts};
use crate::presence::{Manifest, RemoteTrack, Wish};

/// What is known of a member that was taken over, until its new transport is connected.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// By mid, what its client was fed with last.
    fed: Vec<(Box<str>, TrackId)>,
    /// Its client has said what it publishes.
    is_told: bool,
    /// Of its tracks, what the client still publishes, and by which name.
    published: Vec<(Box<str>, TrackId)>,
    /// Of each sender, the last reliable message that it has.
    pub(super) received: Option<Vec<(ParticipantId, u32)>>,
    /// How it wanted the tracks of others.
    wishes: Vec<Wish>,
}

impl Adopted {
    pub(super) fn wish_for(&self, track: TrackId) -> Option<Wish> {
        self.wishes.iter().find(|wish| wish.track == track).copied()
    }
}

/// No participant changes more often than this within one epoch.
const CHANGES_MAX: u32 = 1 << 24;

/// It may have been at a node that we never heard: clients must not hold what that one told for newer. So the changes of one who comes back
/// are numbered from the wall clock on, in 64ths of a second, which begin again once a year. `known`: what is known to have been told.
pub(super) fn first_counter(now_ms: u64, known: u32) -> u32 {
    let wall = now_ms.saturating_mul(64) / 1_000 % u64::from(COUNTER_MAX - CHANGES_MAX);
    known.max(wall as u32)
}

impl Session {
    /// The node of a participant that is on another one, and whether that does not answer; `None`: it is none that is here.
    pub fn owner_abroad(&self, id: ParticipantId) -> Option<(u64, bool)> {
        self.remotes.find(id).map(|remote| (remote.key().node, remote.is_away()))
    }

    /// Makes a member of another node, which does not answer, one of ours.
    pub(super) fn adopt(&mut self, now: Time, resume: &Resume) -> Result<(), Refusal> {
        let id = resume.participant;
        let known = self.remotes.find(id).filter(|remote| !remote.is_outdone);
        let remote = known.filter(|remote| remote.manifest().kind == Kind::Member).ok_or(Refusal::UnknownParticipant)?;
        let manifest = remote.manifest();
        if manifest.identity != resume.identity || !resume.permissions.cover(&manifest.permissions) {
            return Err(Refusal::UnknownParticipant);
        }
        if !remote.is_away() {
            return Err(Refusal::Elsewhere);
        }
        // Which SSRC is which layer a client's packets say only until the first report about them, and that was on the other node: of
        // layers that nobody wrote down nothing would come here.
        let known = |track: &RemoteTrack| track.ssrcs.iter().any(|of_layer| of_layer.media.is_some());
        if manifest.tracks.iter().any(|track| track.started && !track.rids.is_empty() && !known(track)) {
            return Err(Refusal::UnknownParticipant);
        }
        // Whom an operator's later bound would keep out is in already.
        if self.participants.len() >= self.limits.participants_max {
            return Err(Refusal::Full(self.limits.participants_max));
        }
        let Some(remote) = self.remotes.hand_over(id) else { return Err(Refusal::UnknownParticipant) };
        self.begin(now, resume.now_ms);
        self.far.remove(&id);
        let (from, version) = (remote.key().node, remote.version());
        let Manifest { identity, hidden, name, metadata, attributes, joined_at_ms, permissions, takers, tracks, taking, wishes, .. } =
            remote.into_manifest();
        let mut member = Member::new(permissions, taking.everything, taking.adaptive, &resume.client);
        member.takers = Takers::new(takers);
        member.last_message = self.forget_remote_news(id);
        member.adopted = Some(Box::new(Adopted { wishes, ..Adopted::default() }));
        let mut ours = Vec::new();
        for told in tracks {
            let Some(track) = self.tracks.get_mut(&told.info.track).filter(|track| track.owner == id) else { continue };
            track.origin = Origin::Away;
            ours.push(track.id);
        }
        let since = self.epoch_ms.map_or(now, |epoch| Time::from_millis(joined_at_ms.saturating_sub(epoch)).min(now));
        let participant = LocalParticipant {
            id,
            identity,
            hidden,
            kind: Kind::Member,
            resource: None,
            transport: None,
            ice: None,
            joined: since,
            joined_at_ms,
            opened: now,
            connection: Connection::Connecting,
            address: None,
            tracks: ours,
            sections: Vec::new(),
            texts: Texts { name, metadata, attributes },
            counter: first_counter(resume.now_ms, version.counter),
            told: Bucket::full(CHANGES_BURST),
            epoch: version.epoch.saturating_add(1),
            member: Some(Box::new(member)),
        };
        self.outputs.push_back(Output::Audit(audit(&participant, Action::TakenOver { from })));
        // One that never makes an offer must not keep a place for ever.
        self.connecting.insert((now + CONNECT_TIMEOUT, id));
        self.insert(now, participant);
        Ok(())
    }

    /// What the client of one that was taken over says of what was before.
    pub(super) fn note_sync(
        &mut self,
        id: ParticipantId,
        subscribe: bool,
        published: &[(Box<str>, TrackId)],
        received: &[(ParticipantId, u32)],
        fed: Vec<(Box<str>, TrackId)>,
    ) {
        let tracks: Vec<_> = self.tracks_of(id).map(|track| track.id).collect();
        let Some(member) = self.member_mut(id) else { return };
        let Some(adopted) = &mut member.adopted else { return };
        adopted.is_told = true;
        adopted.published = published.iter().filter(|(_, track)| tracks.contains(track)).cloned().collect();
        adopted.received = Some(received.to_vec());
        adopted.fed = fed;
        adopted.fed.truncate(MEMBER_SECTIONS_MAX);
        // What its client takes of itself it knows better than the record.
        let everything = !subscribe;
        if std::mem::replace(&mut member.auto_subscribe, everything) != everything {
            member.subscriptions.clear();
            self.subscribe_to_all(id);
        }
    }

    /// Tracks of one that was taken over are expected in the sections that its client sends them in. One that it no longer sends has
    /// ended.
    pub(super) fn expect_tracks(&mut self, id: ParticipantId, offered: &[OfferedSection]) {
        let Some(adopted) = self.member(id).and_then(|member| member.adopted.as_ref()) else { return };
        let mut taken: Vec<&str> = Vec::new();
        let (mut expected, mut over) = (Vec::new(), Vec::new());
        for track in self.tracks_of(id).filter(|track| track.is_away()) {
            let cid = adopted.published.iter().find(|(_, published)| *published == track.id).map(|(cid, _)| &**cid);
            let is_over = adopted.is_told && cid.is_none();
            let sending = || {
                let of_kind = offered.iter().filter(|section| section.kind == track.kind && !taken.contains(&&*section.mid));
                of_kind.filter_map(|section| Some((section, section.sends.as_ref()?)))
            };
            // A section keeps its name for as long as the client's connection lives; what is sent in it may be called anew.
            let place = sending()
                .find(|(section, _)| section.mid == track.info.mid)
                .or_else(|| sending().find(|(_, sends)| Some(&*sends.cid) == cid));
            match place.filter(|_| !is_over) {
                Some((section, sends)) => {
                    taken.push(&section.mid);
                    let codec = track.stats.codec.filter(|_| track.kind == MediaKind::Video);
                    let (info, layers) = (track.info.clone(), track.info.layers.clone());
                    expected.push(Announced { cid: sends.cid.clone(), info, layers, codec });
                }
                None => over.push(track.id),
            }
        }
        for track in over {
            self.close_track(track);
        }
        if let Some(member) = self.member_mut(id) {
            member.announced.extend(expected);
        }
    }

    /// Sections of one that was taken over go on with what they had, so that its client sees no track come or go. One whose track it takes
    /// no longer is idle in this answer.
    pub(super) fn feed_as_before(&mut self, id: ParticipantId) {
        let adopted = self.member_mut(id).and_then(|member| member.adopted.as_mut());
        let Some(fed) = adopted.map(|adopted| std::mem::take(&mut adopted.fed)) else { return };
        for (mid, track) in fed {
            let Some(member) = self.member_mut(id) else { return };
            let wants = member.subscriptions.get(&track).is_some_and(|known| !known.failed && !known.denied && known.section.is_none());
            let Some(section) = member.sections.get_mut(&mid).filter(|section| section.outgoing.is_none()) else { continue };
            section.told = true;
            let (kind, formats) = (section.kind, section.receives.as_ref().map(|receives| receives.formats.clone()));
            let fits = |formats: Vec<_>| {
                let track = self.tracks.get(&track);
                track.is_some_and(|track| track.kind == kind && !map_payload_types(&track.formats, &formats).is_empty())
            };
            if wants && formats.is_some_and(fits) {
                self.feed_section(id, &mid, track);
            }
        }
    }
}
