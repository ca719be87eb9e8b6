//! Participants of other nodes as members see them, and what other nodes hear of ours.
//!
//! Sole writer: a local participant is changed here and told to others, a remote one is replaced by what its owner tells. A record
//! about one of ours counts only when it is a take-over. Tracks of remote participants feed sections as ours do: their commands name
//! them, and the owner of the session brings them here.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use pop_proto::control::{MediaKind, TrackStats};
use pop_schemas::{Identity, ParticipantId, SubscriptionId, Time, TrackId};

use super::Session;
use super::output::{CloseReason, Output};
use super::permissions::Takers;
use super::wishes::wishes_of;
use crate::member::{LeaveReason, MemberState, ParticipantInfo, Source};
use crate::participant::{Choice, LocalParticipant, Origin, Track};
use crate::presence::{
    Applied, LocalRecord, Manifest, REMOTE_TRACKS_MAX, Record, RemoteKey, RemoteParticipant, RemoteTrack, Taking, Version,
};

/// Bits of [`ParticipantInfo::version`] that count changes; the one above is set from the second epoch on.
const COUNTER_BITS: u32 = 31;

/// The last of an epoch.
pub(super) const COUNTER_MAX: u32 = (1 << COUNTER_BITS) - 1;

/// The last that is believed; ours go on from there.
const EPOCH_MAX: u32 = u32::MAX / 2;

/// What members and sections here have of a remote participant.
#[derive(Debug)]
pub(super) struct Far {
    /// Members see it.
    pub(super) is_shown: bool,
    /// Its owner, and under which epoch.
    owner: (u64, u32),
    /// Those that may be fed.
    tracks: BTreeSet<TrackId>,
    /// Who may take them.
    pub(super) takers: Takers,
}

impl Session {
    /// The same on a node with this id: of two that have one identity since one moment, the one on the higher node stays.
    pub fn on_node(mut self, node: u64) -> Session {
        self.node = node;
        self
    }

    /// Takes what another node says of its participant.
    pub fn handle_record(&mut self, now: Time, record: Record) -> Applied {
        let applied = self.take_record(now, record);
        if applied == Applied::New {
            self.feed_sections();
        }
        if applied == Applied::New || !self.restated.is_empty() {
            self.settle(now);
        }
        applied
    }

    /// A node does not answer. Its participants are kept for [`super::Limits::grace`], and nobody is fed by them.
    pub fn handle_node_away(&mut self, now: Time, node: u64) {
        let lost = self.remotes.lose_node(now, self.limits.grace, node);
        self.show_away(now, lost);
    }

    /// A node answers again as what it was. What it has to say comes by itself.
    pub fn handle_node_back(&mut self, now: Time, node: u64) {
        let found = self.remotes.find_node(node);
        self.show_away(now, found);
    }

    /// A node has begun anew and knows nothing of what it was. Its participants are kept for [`super::Limits::grace`], as those of a node
    /// that is away: another one may take them over. To be called before its new records come.
    pub fn handle_node_restarted(&mut self, now: Time, node: u64) {
        let lost = self.remotes.orphan_node(now, self.limits.grace, node);
        self.show_away(now, lost);
    }

    /// These are away, or not any longer.
    fn show_away(&mut self, now: Time, changed: Vec<ParticipantId>) {
        for id in changed {
            self.refresh_remote(now, id, self.remotes.find(id).map(describe_remote));
        }
        self.feed_sections();
        self.settle(now);
    }

    /// Other nodes want a track of ours, or want it no longer.
    pub fn handle_remote_demand(&mut self, now: Time, track: TrackId, wanted: bool) {
        let is_ours = self.tracks.get(&track).is_some_and(|track| !track.is_remote());
        let changed = if wanted { is_ours && self.wanted_abroad.insert(track) } else { self.wanted_abroad.remove(&track) };
        self.unknown_events += u64::from(wanted && !is_ours);
        if changed {
            self.rated.insert(track);
            self.settle(now);
        }
    }

    /// Whose a track is, and on which node; `None` for tracks of this node.
    pub fn remote_track(&self, track: TrackId) -> Option<RemoteKey> {
        let track = self.tracks.get(&track).filter(|track| track.is_remote())?;
        Some(self.remotes.find(track.owner)?.key())
    }

    /// Whether a track shows a camera: so does video that does not say what it shows.
    pub fn is_camera(&self, track: TrackId) -> bool {
        let shows = |track: &Track| track.kind == MediaKind::Video && matches!(track.info.source, Source::Camera | Source::Unknown);
        self.tracks.get(&track).is_some_and(shows)
    }

    /// What other nodes should know of each of ours: the answer to one that asks for everything.
    pub fn local_records(&self) -> impl Iterator<Item = LocalRecord> {
        self.participants.values().map(|participant| self.record(participant))
    }

    /// Participants whose node was away for too long, and old tombstones.
    pub(super) fn end_away(&mut self, now: Time) {
        let mut ended = false;
        while let Some(id) = self.remotes.next_over(now) {
            self.end_remote(now, id);
            ended = true;
        }
        if ended {
            self.feed_sections();
        }
    }

    fn take_record(&mut self, now: Time, record: Record) -> Applied {
        let RemoteKey { node, participant: id } = record.key;
        // No node counts so far: what comes after it would be older for clients, or for everybody.
        if record.version.counter > COUNTER_MAX || record.version.epoch > EPOCH_MAX {
            return Applied::Stale;
        }
        let mut said = 0;
        if let Some(local) = self.participants.get_mut(&id) {
            let is_newer = (record.version.epoch, Reverse(node)) > (local.epoch, Reverse(self.node));
            let was_taken_over = local.epoch > 0;
            // The first epoch is no take-over: who writes it of one of ours has no right to.
            if record.version.epoch == 0 || !is_newer {
                // Of two who took it over at once the other has lost, but it may have told more: what clients know must not be newer than
                // what ours says next.
                if record.version.epoch != 0 && record.version.epoch == local.epoch && record.version.counter >= local.counter {
                    local.counter = record.version.counter;
                    self.restate(id);
                }
                if was_taken_over {
                    self.remotes.note_rival(record);
                }
                return Applied::Stale;
            }
            // It went on at the other node, and has left there already.
            if let Some(local) = self.participants.get(&id).filter(|local| record.manifest.is_none() && local.is_shown()) {
                self.gone.push(self.describe_gone(local, LeaveReason::ClientInitiated));
            }
            said = self.member(id).map_or(0, |member| member.last_message);
            self.remove(now, id, CloseReason::TakenOver);
        }
        let before = self.remotes.find(id).map(describe_remote);
        // Clients know others by identity: one that had another would be two to them.
        let is_another = |known: &ParticipantInfo| record.manifest.as_ref().is_some_and(|manifest| manifest.identity != known.identity);
        if before.as_ref().is_some_and(is_another) {
            return Applied::Stale;
        }
        let applied = self.remotes.apply(now, self.limits.grace, record);
        if applied == Applied::New {
            // What it said here it may say again there.
            if said > 0 {
                self.news.received.insert(id, said);
            }
            self.refresh_remote(now, id, before);
        }
        applied
    }

    fn end_remote(&mut self, now: Time, id: ParticipantId) {
        let before = self.remotes.find(id).map(describe_remote);
        let rival = self.remotes.end(now, id);
        self.refresh_remote(now, id, before);
        if let Some(rival) = rival {
            self.take_record(now, rival);
        }
    }

    /// A remote participant is another one than `before`.
    fn refresh_remote(&mut self, now: Time, id: ParticipantId, before: Option<ParticipantInfo>) {
        let after = self.remotes.find(id).map(|remote| remote.manifest().identity.clone());
        let identities: BTreeSet<_> = before.iter().map(|info| info.identity.clone()).chain(after).collect();
        for identity in &identities {
            self.contest_identity(now, identity);
        }
        self.show_remote(id, before);
    }

    /// Of those with one identity, on all nodes, the latest stays, because clients know others by it. One of ours is told that it is
    /// out; one of another node's is told there, and is not shown here until then.
    pub(super) fn contest_identity(&mut self, now: Time, identity: &Identity) {
        let Some(mut best) = self.remotes.named(identity).map(rank_remote).max() else { return };
        let locals = self.identities.get(identity).into_iter().flatten().filter_map(|id| self.participants.get(id));
        let mut displaced = Vec::new();
        for local in locals {
            let rank = (local.joined_at_ms, self.node, local.id);
            if local.is_routed() {
                // The operator's: it ends where it was made.
                best = (u64::MAX, u64::MAX, local.id);
            } else if rank < best {
                displaced.push(local.id);
            } else {
                best = rank;
            }
        }
        for id in displaced {
            self.remove(now, id, CloseReason::Displaced);
        }
        let changed = self.remotes.named(identity).filter(|remote| remote.is_outdone != (rank_remote(remote) < best));
        for id in changed.map(|remote| remote.key().participant).collect::<Vec<_>>() {
            let before = self.remotes.find(id).map(describe_remote);
            if let Some(remote) = self.remotes.find_mut(id) {
                remote.is_outdone = !remote.is_outdone;
            }
            self.show_remote(id, before);
            self.feed_sections();
        }
    }

    /// When one comes that is to stay over all of its identity.
    pub(super) fn draw_joined_ms(&self, now: Time, identity: &Identity) -> u64 {
        let others = self.remotes.named(identity).map(|remote| remote.manifest().joined_at_ms.saturating_add(1));
        // The clocks of nodes differ; who comes now is later than who is here.
        others.max().unwrap_or(0).max(self.wall_ms(now))
    }

    /// Brings what members and sections have of a remote participant up to its record.
    fn show_remote(&mut self, id: ParticipantId, before: Option<ParticipantInfo>) {
        self.forget_news(id);
        let remote = self.remotes.find(id).filter(|remote| !remote.is_outdone);
        let is_shown = remote.is_some_and(RemoteParticipant::is_shown);
        let after = remote.map(describe_remote);
        let origin = if remote.is_some_and(RemoteParticipant::is_away) { Origin::Away } else { Origin::There };
        let takers = remote.map_or_else(Takers::everybody, |remote| Takers::new(remote.manifest().takers.clone()));
        let tracks = remote.map(|remote| remote.manifest().tracks.iter().take(REMOTE_TRACKS_MAX).cloned().collect::<Vec<_>>());
        let publisher = remote.map(|remote| remote.manifest().identity.clone());
        let owner = remote.map_or((0, 0), |remote| (remote.key().node, remote.version().epoch));
        let (was_shown, known, chose, had) = match self.far.remove(&id) {
            Some(far) => (far.is_shown, far.tracks, far.takers, far.owner),
            None => (false, BTreeSet::new(), Takers::everybody(), owner),
        };
        match (was_shown, is_shown) {
            (true, false) => {
                let reason = self.why_gone(id);
                self.gone.extend(before.map(|info| end(info, reason)));
            }
            (_, true) if !was_shown || had != owner || !is_same(before.as_ref(), after.as_ref()) => drop(self.changed.insert(id)),
            _ => {}
        }
        let offered: BTreeSet<_> = tracks.iter().flatten().map(|track| track.info.track).collect();
        for track in known.difference(&offered) {
            self.forget_track(*track);
        }
        let (Some(tracks), Some(publisher)) = (tracks, publisher) else { return };
        let is_new_choice = chose != takers;
        self.far.insert(id, Far { is_shown, owner, tracks: BTreeSet::new(), takers });
        let mut taken = BTreeSet::new();
        for track in tracks {
            let number = track.info.track;
            let origin = if track.waits { Origin::Away } else { origin };
            if !self.take_remote_track(id, &publisher, (origin, owner.0 != had.0), track) {
                self.unknown_events += 1;
                continue;
            }
            taken.insert(number);
            match (was_shown, is_shown) {
                (true, false) => {
                    self.stop_members(number);
                    self.withdraw_track(number);
                }
                (_, true) => self.offer_track(number),
                _ => {}
            }
            if is_new_choice {
                self.recheck_all(number);
            }
        }
        if let Some(far) = self.far.get_mut(&id) {
            far.tracks = taken;
        }
    }

    /// `false`: somebody else has a track of this id.
    fn take_remote_track(
        &mut self,
        owner: ParticipantId,
        publisher: &Identity,
        (origin, is_moved): (Origin, bool),
        told: RemoteTrack,
    ) -> bool {
        let RemoteTrack { info, codec, formats, rids: layers, ssrcs, started, order, .. } = told;
        let (id, kind) = (info.track, info.kind);
        let known = self.tracks.get(&id).map(|known| (known.owner, known.kind, known.is_remote()));
        if known.is_some_and(|(of, _, is_remote)| of != owner || !is_remote) {
            return false;
        }
        if known.is_some_and(|(_, before, _)| before != kind) {
            self.forget_track(id);
        }
        let stats = TrackStats { codec, ..TrackStats::default() };
        let Some(track) = self.tracks.get_mut(&id) else {
            let publisher = publisher.clone();
            let (takers, demand, judged) = Default::default();
            let track =
                Track { id, owner, origin, publisher, kind, formats, layers, ssrcs, order, started, info, takers, demand, judged, stats };
            self.tracks.insert(id, track);
            return true;
        };
        let is_refed = track.formats != formats || track.origin != origin || is_moved;
        let is_rewished = track.info.muted != info.muted || track.info.layers != info.layers;
        (track.formats, track.layers, track.ssrcs, track.order, track.started) = (formats, layers, ssrcs, order, started);
        (track.info, track.origin, track.stats) = (info, origin, stats);
        if is_refed {
            self.feed_anew(id);
        }
        if is_rewished {
            self.wish_for_all(id);
        }
        true
    }

    /// What a remote track carries has changed, or it is away or back.
    fn feed_anew(&mut self, id: TrackId) {
        let Some(track) = self.tracks.get(&id) else { return };
        let is_away = track.is_away();
        let is_kept = |section: &SubscriptionId| {
            let section = self.sections.get(section);
            // The session looks for another source for those that it chooses for.
            !is_away || section.is_some_and(|section| matches!(section.choice, Choice::Member))
        };
        for section in track.takers.iter().copied().filter(is_kept).collect::<Vec<_>>() {
            self.forward(section, Some(id));
        }
        for member in self.members().collect::<Vec<_>>() {
            if self.retry_subscription(member, id) {
                self.unsettled.insert(member);
            }
        }
    }

    fn why_gone(&self, id: ParticipantId) -> LeaveReason {
        match self.remotes.find(id) {
            Some(remote) if remote.is_outdone => LeaveReason::DuplicateIdentity,
            Some(_) => LeaveReason::Removed,
            None if self.remotes.is_unsaid(id) => LeaveReason::ConnectionTimeout,
            None => LeaveReason::ClientInitiated,
        }
    }

    /// Other nodes must hear of one of ours, although members need not.
    pub(super) fn restate(&mut self, id: ParticipantId) {
        self.restated.insert(id);
    }

    /// Tells other nodes what only they must hear of.
    pub(super) fn put_restated(&mut self) {
        for id in std::mem::take(&mut self.restated) {
            self.raise_version(id);
            let Some(record) = self.participants.get(&id).map(|participant| self.record(participant)) else { continue };
            self.outputs.push_back(Output::Put(Box::new(record)));
            // What waits to be told comes under a version of its own.
            if self.changed.contains(&id) {
                self.raise_version(id);
            }
        }
    }

    /// Tells other nodes of changes.
    pub(super) fn put_records(&mut self, changed: &BTreeSet<ParticipantId>) {
        let ended = std::mem::take(&mut self.ended);
        self.restated.retain(|id| !changed.contains(id));
        self.rewished.retain(|id| !changed.contains(id));
        let records = changed.iter().filter_map(|id| self.participants.get(id)).map(|participant| self.record(participant));
        let records: Vec<_> = ended.into_iter().chain(records).collect();
        self.outputs.extend(records.into_iter().map(|record| Output::Put(Box::new(record))));
    }

    /// The last word on one of ours.
    pub(super) fn bury(&mut self, now: Time, participant: &LocalParticipant) {
        let version = next_version(version_of(participant));
        // Its former owner may still tell of it.
        if version.epoch > 0 {
            self.remotes.bury(now, RemoteKey { node: self.node, participant: participant.id }, version, false);
        }
        self.ended.push(LocalRecord { participant: participant.id, version, manifest: None });
    }

    fn record(&self, participant: &LocalParticipant) -> LocalRecord {
        let info = self.describe_local(participant);
        let tracks = self.tracks_of(participant.id).map(|track| RemoteTrack {
            info: track.info.clone(),
            codec: track.stats.codec,
            formats: track.formats.clone(),
            rids: track.layers.clone(),
            ssrcs: track.ssrcs,
            started: track.started,
            order: track.order,
            waits: track.is_away(),
        });
        let taking = participant.member.as_ref().map_or_else(Taking::default, |member| member.taking());
        let wishes = participant.member.as_deref().map(wishes_of).unwrap_or_default();
        let takers = participant.member.as_ref().map_or_else(|| Takers::everybody().told(), |member| member.takers.told());
        let manifest = Manifest {
            identity: info.identity,
            hidden: participant.hidden,
            kind: participant.kind,
            name: info.name,
            metadata: info.metadata,
            attributes: info.attributes,
            state: info.state,
            joined_at_ms: info.joined_at_ms,
            permissions: info.permissions,
            takers,
            tracks: tracks.collect(),
            taking,
            wishes,
        };
        LocalRecord { participant: participant.id, version: version_of(participant), manifest: Some(manifest) }
    }
}

fn version_of(participant: &LocalParticipant) -> Version {
    Version { epoch: participant.epoch, counter: participant.counter }
}

/// The latest stays; the rest only makes all nodes choose the same one.
fn rank_remote(remote: &RemoteParticipant) -> (u64, u64, ParticipantId) {
    (remote.manifest().joined_at_ms, remote.key().node, remote.key().participant)
}

/// Members need not hear of it. Where a change never came here, or another owner's, they do: one that comes from another node may have heard
/// of that there, and takes what is newer alone.
fn is_same(before: Option<&ParticipantInfo>, after: Option<&ParticipantInfo>) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return false };
    after.version <= before.version.saturating_add(1) && ParticipantInfo { version: after.version, ..before.clone() } == *after
}

fn end(mut info: ParticipantInfo, reason: LeaveReason) -> ParticipantInfo {
    (info.state, info.left, info.tracks) = (MemberState::Disconnected, Some(reason), Vec::new());
    info.version = info.version.saturating_add(1);
    info
}

/// A remote participant as members see it.
pub(super) fn describe_remote(remote: &RemoteParticipant) -> ParticipantInfo {
    let manifest = remote.manifest();
    let tracks: Vec<_> = manifest.tracks.iter().map(|track| track.info.clone()).collect();
    ParticipantInfo {
        participant: remote.key().participant,
        identity: manifest.identity.clone(),
        name: manifest.name.clone(),
        metadata: manifest.metadata.clone(),
        attributes: manifest.attributes.clone(),
        state: manifest.state,
        is_publisher: !tracks.is_empty(),
        tracks,
        joined_at_ms: manifest.joined_at_ms,
        version: client_version(remote.version()),
        permissions: manifest.permissions.clone(),
        left: None,
    }
}

/// After a change. A client would take no change beyond those that its number counts, so the epoch counts on.
pub(super) fn next_version(version: Version) -> Version {
    if version.counter >= COUNTER_MAX {
        return Version { epoch: version.epoch + 1, counter: 0 };
    }
    Version { counter: version.counter + 1, ..version }
}

/// Clients compare one number, and drop what is older: a take-over counts more than any change of the first owner. Those of later owners
/// count from the wall clock on (`first_counter`), so that the last one's are newer, whatever was heard of those between.
pub(super) fn client_version(version: Version) -> u32 {
    version.epoch.min(1) << COUNTER_BITS | version.counter.min(COUNTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_newer_for_clients_after_two_billion_changes_too() {
        let mut version = Version { epoch: 0, counter: COUNTER_MAX - 2 };
        for _ in 0..5 {
            let next = next_version(version);
            assert!(next > version && client_version(next) > client_version(version), "{next:?} after {version:?}");
            version = next;
        }
    }
}
