//! Participants that other nodes own: one writer each, so a newer record simply replaces the older one.
//!
//! The order is the owner's (epoch, counter). A take-over writes the next epoch under the new owner's key, so a lower epoch of
//! the same participant is fenced; for equal epochs of two owners the lower node wins (DESIGN 7).

use std::collections::BTreeMap;

use pop_proto::control::Codec;
use pop_schemas::{Identity, ParticipantId};

use crate::format::PayloadFormat;
use crate::member::{MemberState, Permissions, TrackInfo};
use crate::participant::Kind;

/// Remote participants that one session remembers, tombstones included; a peer cannot grow it without end.
pub const REMOTE_PARTICIPANTS_MAX: usize = 65_536;

/// A participant and the node that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteKey {
    /// The owner.
    pub node: u64,
    /// The participant.
    pub participant: ParticipantId,
}

/// How new a record is; the derived order is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Raised by each take-over.
    pub epoch: u32,
    /// Raised by each change of one owner.
    pub counter: u32,
}

/// What others know of a participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Who it says it is.
    pub identity: Identity,
    /// It is not shown to the others.
    pub hidden: bool,
    /// What it is.
    pub kind: Kind,
    /// To be shown.
    pub name: Box<str>,
    /// Opaque.
    pub metadata: Box<str>,
    /// Opaque.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
    /// How far it is.
    pub state: MemberState,
    /// Wall clock in milliseconds since 1970.
    pub joined_at_ms: u64,
    /// What it may.
    pub permissions: Permissions,
    /// What it publishes.
    pub tracks: Vec<RemoteTrack>,
}

/// A track in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteTrack {
    /// As everybody may know it; with its id at the owner.
    pub info: TrackInfo,
    /// Codec, once the owner knows.
    pub codec: Option<Codec>,
    /// What its packets may carry; empty before it is negotiated.
    pub formats: Vec<PayloadFormat>,
    /// RIDs of its simulcast layers; empty when it has one stream.
    pub rids: Vec<Box<str>>,
}

impl Manifest {
    /// One without texts and tracks.
    pub fn new(identity: Identity, kind: Kind, permissions: Permissions) -> Manifest {
        Manifest {
            identity,
            hidden: permissions.hidden,
            kind,
            name: "".into(),
            metadata: "".into(),
            attributes: BTreeMap::new(),
            state: MemberState::Active,
            joined_at_ms: 0,
            permissions,
            tracks: Vec::new(),
        }
    }

    /// Members see it.
    pub(crate) fn is_shown(&self) -> bool {
        self.kind != Kind::Viewer && !self.hidden
    }
}

/// What this node tells others of a participant of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRecord {
    /// Whose.
    pub participant: ParticipantId,
    /// How new.
    pub version: Version,
    /// `None` is a tombstone.
    pub manifest: Option<Manifest>,
}

/// One record from the bus.
#[derive(Clone, Debug)]
pub struct Record {
    /// Whose.
    pub key: RemoteKey,
    /// How new.
    pub version: Version,
    /// `None` is a tombstone: the participant left.
    pub manifest: Option<Manifest>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is what we now believe.
    New,
    /// We know the same or something newer.
    Stale,
    /// [`REMOTE_PARTICIPANTS_MAX`] is reached.
    Full,
}

/// A participant that another node owns: there is no way to edit one.
#[derive(Debug)]
pub struct RemoteParticipant {
    key: RemoteKey,
    version: Version,
    manifest: Manifest,
}

impl RemoteParticipant {
    /// Its owner and id.
    pub fn key(&self) -> RemoteKey {
        self.key
    }

    /// How new that is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What its owner last wrote.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

#[derive(Debug)]
struct Entry {
    node: u64,
    version: Version,
    /// `None` after a tombstone, kept so that a late older record does not bring the participant back.
    participant: Option<RemoteParticipant>,
}

/// The remote participants of one session.
#[derive(Debug, Default)]
pub struct RemoteParticipants {
    entries: BTreeMap<ParticipantId, Entry>,
}

impl RemoteParticipants {
    /// Takes `record` when it is newer than what is known.
    pub fn apply(&mut self, record: Record) -> Applied {
        let Record { key, version, manifest } = record;
        if let Some(known) = self.entries.get(&key.participant) {
            let newer = if known.node == key.node {
                version > known.version
            } else {
                // Two owners: the higher epoch is the take-over; for equal epochs the lower node id wins.
                (version.epoch, std::cmp::Reverse(key.node)) > (known.version.epoch, std::cmp::Reverse(known.node))
            };
            if !newer {
                return Applied::Stale;
            }
        } else if self.entries.len() >= REMOTE_PARTICIPANTS_MAX {
            return Applied::Full;
        }
        let participant = manifest.map(|manifest| RemoteParticipant { key, version, manifest });
        self.entries.insert(key.participant, Entry { node: key.node, version, participant });
        Applied::New
    }

    /// One of those who are here.
    pub fn find(&self, id: ParticipantId) -> Option<&RemoteParticipant> {
        self.entries.get(&id)?.participant.as_ref()
    }

    /// Those who are here, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &RemoteParticipant> + Clone {
        self.entries.values().filter_map(|entry| entry.participant.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(node: u64, epoch: u32, counter: u32, identity: Option<&str>) -> Record {
        Record {
            key: RemoteKey { node, participant: ParticipantId(7) },
            version: Version { epoch, counter },
            manifest: identity.map(|name| Manifest::new(Identity::new(name).unwrap(), Kind::Publisher, Permissions::PUBLISHER)),
        }
    }

    fn names(remotes: &RemoteParticipants) -> Vec<&str> {
        remotes.iter().map(|p| p.manifest().identity.as_str()).collect()
    }

    #[test]
    fn an_older_record_of_the_owner_changes_nothing() {
        let mut remotes = RemoteParticipants::default();
        assert_eq!(remotes.apply(record(1, 0, 2, Some("new"))), Applied::New);
        assert_eq!(remotes.apply(record(1, 0, 1, Some("old"))), Applied::Stale);
        assert_eq!(remotes.apply(record(1, 0, 2, Some("same"))), Applied::Stale);
        assert_eq!(names(&remotes), ["new"]);
    }

    #[test]
    fn a_take_over_fences_the_old_owner() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(record(1, 0, 900, Some("at 1")));
        assert_eq!(remotes.apply(record(2, 1, 0, Some("at 2"))), Applied::New);
        assert_eq!(remotes.apply(record(1, 0, 901, Some("zombie"))), Applied::Stale);
        assert_eq!(names(&remotes), ["at 2"]);
    }

    #[test]
    fn for_equal_epochs_the_lower_node_wins_whatever_the_order() {
        for order in [[1, 2], [2, 1]] {
            let mut remotes = RemoteParticipants::default();
            for node in order {
                remotes.apply(record(node, 3, 0, Some(if node == 1 { "low" } else { "high" })));
            }
            assert_eq!(names(&remotes), ["low"]);
        }
    }

    #[test]
    fn a_tombstone_is_not_undone_by_a_late_record() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(record(1, 0, 1, Some("a")));
        assert_eq!(remotes.apply(record(1, 0, 3, None)), Applied::New);
        assert_eq!(remotes.apply(record(1, 0, 2, Some("a"))), Applied::Stale);
        assert_eq!(remotes.iter().count(), 0);
    }
}
