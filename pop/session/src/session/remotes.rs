//! Participants of other nodes as members see them, and what other nodes hear of ours.
//!
//! Sole writer: a local participant is changed here and told to others, a remote one is replaced by what its owner tells. A record
//! about one of ours is nobody's to write.

use std::collections::BTreeSet;

use pop_schemas::{ParticipantId, Time, TrackId};

use super::Session;
use super::output::Output;
use crate::member::{LeaveReason, MemberState, ParticipantInfo};
use crate::participant::LocalParticipant;
use crate::presence::{Applied, LocalRecord, Manifest, Record, RemoteParticipant, RemoteTrack, Version};

/// Bits of [`ParticipantInfo::version`] that count the changes of one owner; those above are the epoch.
const COUNTER_BITS: u32 = 24;

/// The last of an epoch.
const COUNTER_MAX: u32 = (1 << COUNTER_BITS) - 1;

impl Session {
    /// Takes what another node says of its participant.
    pub fn handle_record(&mut self, now: Time, record: Record) -> Applied {
        let id = record.key.participant;
        if self.participants.contains_key(&id) {
            return Applied::Stale;
        }
        let before = self.remotes.find(id).filter(|remote| remote.manifest().is_shown());
        let (gone, tracks) = (before.map(describe_remote), before.map(tracks_of).unwrap_or_default());
        let applied = self.remotes.apply(record);
        if applied != Applied::New {
            return applied;
        }
        let after = self.remotes.find(id).filter(|remote| remote.manifest().is_shown()).map(tracks_of);
        match (&after, gone) {
            (None, Some(gone)) => self.gone.push(end(gone)),
            (None, None) => {}
            (Some(_), _) => drop(self.changed.insert(id)),
        }
        let after = after.unwrap_or_default();
        for track in tracks.difference(&after) {
            self.remote_tracks.remove(track);
            self.withdraw_track(*track);
        }
        for track in after.difference(&tracks) {
            self.remote_tracks.insert(*track, id);
            self.offer_track(*track);
        }
        // Nothing of it is here to be fed, so there is nobody to ask for an offer.
        self.unsettled.clear();
        self.tell_changes(now, None);
        applied
    }

    /// What other nodes should know of each of ours: the answer to one that asks for everything.
    pub fn local_records(&self) -> impl Iterator<Item = LocalRecord> {
        self.participants.values().map(|participant| self.record(participant))
    }

    /// Tells other nodes of changes.
    pub(super) fn put_records(&mut self, changed: &BTreeSet<ParticipantId>) {
        let ended = std::mem::take(&mut self.ended);
        let records = changed.iter().filter_map(|id| self.participants.get(id)).map(|participant| self.record(participant));
        let records: Vec<_> = ended.into_iter().chain(records).collect();
        self.outputs.extend(records.into_iter().map(|record| Output::Put(Box::new(record))));
    }

    /// The last word on one of ours.
    pub(super) fn bury(&mut self, participant: &LocalParticipant) {
        let version = next_version(Version { epoch: participant.epoch, counter: participant.counter });
        self.ended.push(LocalRecord { participant: participant.id, version, manifest: None });
    }

    fn record(&self, participant: &LocalParticipant) -> LocalRecord {
        let info = self.describe_local(participant);
        let tracks = self.tracks_of(participant.id).map(|track| RemoteTrack {
            info: track.info.clone(),
            codec: track.stats.codec,
            formats: track.formats.clone(),
            rids: track.layers.clone(),
        });
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
            tracks: tracks.collect(),
        };
        let version = Version { epoch: participant.epoch, counter: participant.counter };
        LocalRecord { participant: participant.id, version, manifest: Some(manifest) }
    }
}

fn tracks_of(remote: &RemoteParticipant) -> BTreeSet<TrackId> {
    remote.manifest().tracks.iter().map(|track| track.info.track).collect()
}

fn end(mut info: ParticipantInfo) -> ParticipantInfo {
    (info.state, info.left, info.tracks) = (MemberState::Disconnected, Some(LeaveReason::ClientInitiated), Vec::new());
    info.version += 1;
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

/// Clients compare one number, and drop what is older: a take-over counts more than any change before it.
pub(super) fn client_version(version: Version) -> u32 {
    version.epoch.min(u32::MAX >> COUNTER_BITS) << COUNTER_BITS | version.counter.min(COUNTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_newer_for_clients_after_sixteen_million_changes_too() {
        let mut version = Version { epoch: 0, counter: COUNTER_MAX - 2 };
        for _ in 0..5 {
            let next = next_version(version);
            assert!(next > version && client_version(next) > client_version(version), "{next:?} after {version:?}");
            version = next;
        }
    }
}
