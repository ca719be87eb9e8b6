//! What members are told of participants. Changes within one call are told once, at its end: one value for all who hear of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::{ParticipantId, Time};

use super::output::Output;
use super::remotes::{client_version, describe_remote, next_version};
use super::{RESUME_GRACE, Session};
use crate::member::{LeaveReason, MemberState, Notice, ParticipantInfo, Permissions, RoomInfo};
use crate::participant::{Connection, LocalParticipant};
use crate::presence::{RemoteParticipant, Version};

/// A room of more members is large: who comes and goes without publishing is told together. A thousand people who come at once would
/// else be told of each other three million times.
const AUDIENCE_MIN: usize = 64;

/// So many changes of one participant are told at once, and one more each interval: one that mutes and unmutes without end is told to
/// everybody, with all of its texts.
pub(super) const CHANGES_BURST: u32 = 20;
const CHANGE_INTERVAL: Duration = Duration::from_millis(250);

/// Other changes are told together, at most this much later.
const WAIT: Duration = Duration::from_secs(1);

/// How many are here is told so much later (LiveKit's figure): nothing but a number on a page hangs on it.
const ROOM_INTERVAL: Duration = Duration::from_secs(5);

/// Participants that are gone and not forgotten, at most.
const PAST_MAX: usize = 1_024;

impl Session {
    /// Tells a member, while its socket is here.
    pub(super) fn notify(&mut self, id: ParticipantId, notice: Notice) {
        if self.member(id).is_some_and(|member| member.socket_gone.is_none()) {
            self.outputs.push_back(Output::Notice(id, notice));
        }
    }

    /// What others may see of it has changed.
    pub(super) fn touch(&mut self, id: ParticipantId) {
        if !self.changed.insert(id) {
            return;
        }
        self.raise_version(id);
    }

    pub(super) fn raise_version(&mut self, id: ParticipantId) {
        if let Some(participant) = self.participants.get_mut(&id) {
            let version = Version { epoch: participant.epoch, counter: participant.counter };
            Version { epoch: participant.epoch, counter: participant.counter } = next_version(version);
        }
    }

    /// The end of each call: tells what it has changed. `fresh` has been told all by its welcome.
    pub(super) fn settle_changes(&mut self, now: Time, fresh: Option<ParticipantId>) {
        if self.gone.is_empty() && self.changed.is_empty() {
            return self.tell_changes(now, fresh);
        }
        if self.tell_at.is_none_or(|at| at > now) && self.may_wait(now) {
            self.tell_at.get_or_insert(now + WAIT);
            return;
        }
        self.tell_changes(now, fresh);
        self.count_later(now);
    }

    /// Nothing of it is urgent: it is about the audience of a large room, or about one that changes again and again. It waits
    /// together with what came before, so that the order is kept.
    fn may_wait(&mut self, now: Time) -> bool {
        let is_large = self.members_here().nth(AUDIENCE_MIN).is_some();
        if self.gone.iter().any(|info| info.is_publisher || !is_large) {
            return false;
        }
        let urgent = |participant: &mut LocalParticipant| {
            let is_audience = is_large && participant.tracks.is_empty();
            !is_audience && participant.told.has(now, CHANGES_BURST, CHANGE_INTERVAL)
        };
        let (participants, remotes) = (&mut self.participants, &self.remotes);
        let urgent_far = |id| !is_large || remotes.find(id).is_none_or(|remote| !remote.manifest().tracks.is_empty());
        !self.changed.iter().any(|id| participants.get_mut(id).map_or_else(|| urgent_far(*id), urgent))
    }

    fn count_later(&mut self, now: Time) {
        if self.room_at.is_none() && self.members().next().is_some() {
            self.room_at = Some(now + ROOM_INTERVAL);
        }
    }

    /// What has waited.
    pub(super) fn tell_waiting(&mut self, now: Time) {
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_changes(now, None);
            self.count_later(now);
        }
        if self.room_at.take_if(|at| *at <= now).is_some() {
            let room = self.describe_room();
            let counts = (room.participants, room.publishers);
            if std::mem::replace(&mut self.told_counts, counts) != counts {
                self.tell_room();
            }
        }
    }

    /// Tells everything that has changed and was not told.
    pub(super) fn tell_changes(&mut self, now: Time, fresh: Option<ParticipantId>) {
        self.tell_at = None;
        let gone = std::mem::take(&mut self.gone);
        let changed = std::mem::take(&mut self.changed);
        if gone.is_empty() && changed.is_empty() && self.ended.is_empty() {
            return;
        }
        self.remember(now, &gone);
        // Those who are gone come first: the same identity may be here again.
        let mut news = gone;
        for id in &changed {
            if let Some(participant) = self.participants.get_mut(id) {
                participant.told.take(now, CHANGES_BURST, CHANGE_INTERVAL);
            }
        }
        self.put_records(&changed);
        let shown = changed.iter().filter_map(|id| self.participants.get(id)).filter(|participant| participant.is_shown());
        news.extend(shown.map(|participant| self.describe_local(participant)));
        let remotes = changed.iter().filter_map(|id| self.remotes.find(*id)).filter(|remote| remote.is_shown());
        news.extend(remotes.map(describe_remote));
        let hidden: Vec<_> = changed.into_iter().filter(|id| self.participants.get(id).is_some_and(|p| p.hidden)).collect();
        if !news.is_empty() {
            let news = Arc::new(news);
            for id in self.members_here().filter(|id| Some(*id) != fresh).collect::<Vec<_>>() {
                self.notify(id, Notice::Participants(news.clone()));
            }
        }
        for id in hidden.into_iter().filter(|id| Some(*id) != fresh) {
            let Some(itself) = self.participants.get(&id).map(|participant| self.describe_local(participant)) else { continue };
            self.notify(id, Notice::Participants(Arc::new(vec![itself])));
        }
    }

    /// Keeps who is gone for those who come back; nobody needs their texts.
    fn remember(&mut self, now: Time, gone: &[ParticipantInfo]) {
        self.forget_past(now);
        for info in gone {
            self.past.retain(|(_, past)| past.participant != info.participant);
            if self.past.len() >= PAST_MAX {
                self.past.pop_front();
            }
            let (metadata, attributes) = Default::default();
            self.past.push_back((now, ParticipantInfo { metadata, attributes, ..info.clone() }));
        }
    }

    fn forget_past(&mut self, now: Time) {
        while self.past.front().is_some_and(|(at, _)| *at + RESUME_GRACE <= now) {
            self.past.pop_front();
        }
    }

    /// What one who is back must hear of: those who have gone meanwhile, then everybody who is here. Clients know others by identity,
    /// so nobody is gone whose identity is here again.
    pub(super) fn everybody(&mut self, now: Time, id: ParticipantId) -> Vec<ParticipantInfo> {
        self.forget_past(now);
        let mut here = self.others(id);
        here.extend(self.participants.get(&id).map(|participant| self.describe_local(participant)));
        let identities: BTreeSet<_> = here.iter().map(|info| &info.identity).collect();
        let gone = self.past.iter().map(|(_, info)| info).chain(&self.gone);
        let gone: Vec<_> = gone.filter(|info| !identities.contains(&info.identity)).cloned().collect();
        gone.into_iter().chain(here).collect()
    }

    /// Members whose socket is here.
    pub(super) fn members_here(&self) -> impl Iterator<Item = ParticipantId> {
        let here = |participant: &&LocalParticipant| participant.member.as_ref().is_some_and(|member| member.socket_gone.is_none());
        self.participants.values().filter(here).map(|participant| participant.id)
    }

    /// Everybody whom `but` may see.
    pub(super) fn others(&self, but: ParticipantId) -> Vec<ParticipantInfo> {
        let locals = self.participants.values().filter(|participant| participant.id != but && participant.is_shown());
        let remotes = self.remotes.iter().filter(|remote| remote.is_shown());
        locals.map(|participant| self.describe_local(participant)).chain(remotes.map(describe_remote)).collect()
    }

    pub(super) fn describe_local(&self, participant: &LocalParticipant) -> ParticipantInfo {
        let texts = participant.texts.clone();
        ParticipantInfo {
            participant: participant.id,
            identity: participant.identity.clone(),
            name: texts.name,
            metadata: texts.metadata,
            attributes: texts.attributes,
            state: state_of(participant),
            tracks: self.tracks_of(participant.id).map(|track| track.info.clone()).collect(),
            joined_at_ms: participant.joined_at_ms,
            version: client_version(Version { epoch: participant.epoch, counter: participant.counter }),
            permissions: participant.member.as_ref().map_or(Permissions::PUBLISHER, |member| member.permissions.clone()),
            is_publisher: !participant.tracks.is_empty(),
            left: None,
        }
    }

    pub(super) fn describe_gone(&self, participant: &LocalParticipant, reason: LeaveReason) -> ParticipantInfo {
        let mut info = self.describe_local(participant);
        (info.state, info.left, info.tracks) = (MemberState::Disconnected, Some(reason), Vec::new());
        info.version = info.version.saturating_add(1);
        info
    }

    pub(super) fn describe_room(&self) -> RoomInfo {
        let locals = self.participants.values().filter(|participant| participant.is_shown());
        let remotes = self.remotes.iter().filter(|remote| remote.is_shown()).map(RemoteParticipant::manifest);
        let publishers = locals.clone().filter(|local| !local.tracks.is_empty()).count();
        let publishers = publishers + remotes.clone().filter(|manifest| !manifest.tracks.is_empty()).count();
        RoomInfo {
            name: self.id.as_str().into(),
            sid: self.sid.clone(),
            metadata: self.word.metadata.clone(),
            participants: (locals.count() + remotes.count()) as u32,
            publishers: publishers as u32,
            created_at_ms: self.created.map_or(0, |created| self.wall_ms(created)),
            participants_max: self.word.participants_max,
        }
    }

    /// Wall clock in milliseconds since 1970, as the first member told it; 0 before.
    pub(super) fn wall_ms(&self, at: Time) -> u64 {
        self.epoch_ms.map_or(0, |epoch| epoch.saturating_add(at.as_millis()))
    }
}

fn state_of(participant: &LocalParticipant) -> MemberState {
    match participant.connection {
        // Nobody need hear that one which was taken over comes once more.
        Connection::Connecting if participant.member.as_ref().is_some_and(|member| member.adopted.is_some()) => MemberState::Active,
        Connection::Connecting if participant.transport.is_none() => MemberState::Joining,
        Connection::Connecting => MemberState::Joined,
        Connection::Connected { .. } => MemberState::Active,
        Connection::Routed { .. } if participant.address.is_some() => MemberState::Active,
        Connection::Routed { .. } => MemberState::Joined,
    }
}
