//! Participants that other nodes own: one writer each, so a newer record simply replaces the older one.
//!
//! The order is the owner's (epoch, counter). A take-over writes the next epoch under the new owner's key, so a lower epoch of
//! the same participant is fenced; for equal epochs of two owners the lower node wins (DESIGN 7).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pop_proto::control::{Codec, TrackSsrcs};
use pop_schemas::{Identity, ParticipantId, Time, TrackId};

use crate::format::PayloadFormat;
use crate::member::{MemberState, Permissions, Quality, SubscriptionPermission, TrackInfo};
use crate::participant::Kind;
use crate::session::MEMBER_SUBSCRIPTIONS_MAX;

/// Remote participants that one session remembers, tombstones included; a peer cannot grow it without end.
pub const REMOTE_PARTICIPANTS_MAX: usize = 65_536;

/// Tombstones among them; beyond, the oldest is forgotten.
pub const TOMBSTONES_MAX: usize = 16_384;

/// What is kept of participants that more than one node tells of, in which case all but one do not know better yet.
const RIVALS_MAX: usize = 16_384;

/// Longest that anybody is kept whose node is silent (`session.grace`).
pub const GRACE_MAX: Duration = Duration::from_secs(120);

/// How long one is kept: no record is under way for so long, and who was kept for [`GRACE_MAX`] because its node was silent is still known
/// to have left when that is back.
pub const TOMBSTONE_LIFE: Duration = GRACE_MAX.saturating_add(Duration::from_secs(30));

/// Tracks of one remote participant that are looked at.
pub const REMOTE_TRACKS_MAX: usize = 64;

/// Tracks that a manifest has wishes for: as many as a member may take.
pub const WISHES_MAX: usize = MEMBER_SUBSCRIPTIONS_MAX;

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
    /// Who may take its tracks.
    pub takers: SubscriptionPermission,
    /// What it publishes.
    pub tracks: Vec<RemoteTrack>,
    /// How it takes the tracks of others.
    pub taking: Taking,
    /// What it wants of them other than in the beginning; at most [`WISHES_MAX`].
    pub wishes: Vec<Wish>,
}

/// How a member wants a track of somebody else, as its client said last. Whoever takes the member over goes on so: livekit-client says it again
/// when it is back, but LiveKit's Rust SDK, and what is built on it (Python, Node, C++, Unity), does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which.
    pub track: TrackId,
    /// Counts when no height is told; [`Quality::Off`]: nothing for now.
    pub quality: Quality,
    /// Of the place where it is shown, in pixels; 0: not told.
    pub height: u32,
    /// Frames per second; 0: not told.
    pub fps: u16,
    /// 1 is the highest.
    pub priority: u8,
}

/// What a member's client said, when it came, of how it takes tracks: whoever takes it over goes on so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taking {
    /// See [`crate::member::Enter::auto_subscribe`].
    pub everything: bool,
    /// See [`crate::member::Enter::adaptive_stream`].
    pub adaptive: bool,
}

impl Default for Taking {
    fn default() -> Taking {
        Taking { everything: true, adaptive: false }
    }
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
    /// Their SSRCs, as far as the owner knows.
    pub ssrcs: TrackSsrcs,
    /// Its first packet came, or it replaces a track whose first packet had come.
    pub started: bool,
    /// Place in the order of age: about the microseconds since 1970 when it came.
    pub order: u64,
    /// Its owner was taken over, and has not offered it again: nothing comes of it yet.
    pub waits: bool,
}

impl RemoteTrack {
    /// One of which nothing has come yet.
    pub fn new(info: TrackInfo) -> RemoteTrack {
        RemoteTrack {
            info,
            codec: None,
            formats: Vec::new(),
            rids: Vec::new(),
            ssrcs: TrackSsrcs::default(),
            started: false,
            order: 0,
            waits: false,
        }
    }
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
            takers: SubscriptionPermission { all: true, participants: Vec::new() },
            tracks: Vec::new(),
            taking: Taking::default(),
            wishes: Vec::new(),
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
    /// Its node does not answer, and it has told nothing since.
    is_away: bool,
    /// When it is gone unless its node is back.
    until: Option<Time>,
    /// Its node has begun anew and knows nothing of it: only a record brings it back.
    is_orphan: bool,
    /// The same identity has come to another place later: nobody is shown, or fed, this one.
    pub(crate) is_outdone: bool,
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

    /// Its node does not answer: it is kept for a while, and not fed.
    pub fn is_away(&self) -> bool {
        self.is_away
    }

    pub(crate) fn into_manifest(self) -> Manifest {
        self.manifest
    }

    /// Members see it.
    pub(crate) fn is_shown(&self) -> bool {
        self.manifest.is_shown() && !self.is_outdone
    }
}

#[derive(Debug)]
struct Entry {
    node: u64,
    version: Version,
    state: State,
}

#[derive(Debug)]
enum State {
    Here(Box<RemoteParticipant>),
    /// Kept so that a late older record does not bring the participant back.
    Gone {
        /// When it is forgotten.
        until: Time,
        /// Its owner has not said that it is gone, so the owner's last word may still hold; or it has, and began anew since.
        unsaid: bool,
    },
}

/// What nodes that answer tell of participants, ours or others', of which another node has told more. It holds once nobody tells that
/// any more.
type Rivals = BTreeMap<(ParticipantId, u64), Record>;

/// The remote participants of one session.
#[derive(Debug, Default)]
pub struct RemoteParticipants {
    entries: BTreeMap<ParticipantId, Entry>,
    /// Those who go unless their node is back, by when.
    waiting: BTreeSet<(Time, ParticipantId)>,
    /// Tombstones, by when they are forgotten.
    buried: BTreeSet<(Time, ParticipantId)>,
    /// Members and publishers, for in those an identity is unique.
    identities: BTreeMap<Identity, BTreeSet<ParticipantId>>,
    /// Nodes that do not answer.
    away: BTreeSet<u64>,
    rivals: Rivals,
}

impl RemoteParticipants {
    /// Takes `record` when it is newer than what is known. One of a node that does not answer ends after `grace`, as it may be late.
    pub fn apply(&mut self, now: Time, grace: Duration, record: Record) -> Applied {
        let Record { key, version, .. } = record;
        if let Some(known) = self.entries.get(&key.participant) {
            // A tombstone that nobody tells any more is one that other owners may not hear of ever: to them it is none.
            let is_untold = matches!(known.state, State::Gone { unsaid, .. } if unsaid || self.away.contains(&known.node));
            let is_lost = is_untold && !self.away.contains(&key.node);
            let newer = if known.node == key.node {
                version > known.version || is_lost && version == known.version
            } else {
                // Two owners: the higher epoch is the take-over; for equal epochs the lower node id wins.
                is_lost || (version.epoch, Reverse(key.node)) > (known.version.epoch, Reverse(known.node))
            };
            if !newer {
                if known.node != key.node {
                    self.note_rival(record);
                }
                return Applied::Stale;
            }
        } else if self.entries.len() >= REMOTE_PARTICIPANTS_MAX && !self.forget_oldest() {
            return Applied::Full;
        }
        self.rivals.remove(&(key.participant, key.node));
        if let Some(Entry { node, version, state: State::Here(displaced) }) = self.take_out(key.participant)
            && node != key.node
            // Its writer may have begun anew, and does not tell it any more.
            && !displaced.is_away
        {
            self.note_rival(Record { key: displaced.key, version, manifest: Some(displaced.manifest) });
        }
        let Some(manifest) = record.manifest else {
            self.bury(now, key, version, false);
            return Applied::New;
        };
        let until = self.away.contains(&key.node).then(|| now + grace);
        self.waiting.extend(until.map(|until| (until, key.participant)));
        if manifest.kind != Kind::Viewer {
            self.identities.entry(manifest.identity.clone()).or_default().insert(key.participant);
        }
        let (is_away, is_orphan, is_outdone) = Default::default();
        let participant = RemoteParticipant { key, version, manifest, is_away, until, is_orphan, is_outdone };
        self.entries.insert(key.participant, Entry { node: key.node, version, state: State::Here(Box::new(participant)) });
        Applied::New
    }

    /// Keeps what another node than the owner tells.
    pub(crate) fn note_rival(&mut self, record: Record) {
        let key = (record.key.participant, record.key.node);
        let known = self.rivals.get(&key);
        if known.is_some_and(|known| known.version > record.version) {
            return;
        }
        let has_place = known.is_some() || self.rivals.len() < RIVALS_MAX;
        // A node that is away tells everything again when it is back.
        if record.manifest.is_some() && has_place && !self.away.contains(&record.key.node) {
            self.rivals.insert(key, record);
        } else {
            self.rivals.remove(&key);
        }
    }

    /// It is gone without its owner's word, or nobody tells any more that it is. What another node still tells of it then holds.
    pub(crate) fn end(&mut self, now: Time, id: ParticipantId) -> Option<Record> {
        let Entry { node, version, .. } = self.take_out(id)?;
        let rivals = self.rivals.range((id, 0)..=(id, u64::MAX)).map(|(_, rival)| rival);
        let best = rivals.max_by_key(|rival| (rival.version.epoch, Reverse(rival.key.node))).map(|rival| rival.key.node);
        let best = best.and_then(|node| self.rivals.remove(&(id, node)));
        self.bury(now, RemoteKey { node, participant: id }, version, true);
        best
    }

    /// It is this node's from now on, and out of these books. What its former owner still says meets the local participant.
    pub(crate) fn hand_over(&mut self, id: ParticipantId) -> Option<RemoteParticipant> {
        match self.take_out(id)?.state {
            State::Here(participant) => Some(*participant),
            State::Gone { .. } => None,
        }
    }

    /// It is gone, and its owner has not said so.
    pub(crate) fn is_unsaid(&self, id: ParticipantId) -> bool {
        self.entries.get(&id).is_some_and(|entry| matches!(entry.state, State::Gone { unsaid: true, .. }))
    }

    /// One of those who are here.
    pub fn find(&self, id: ParticipantId) -> Option<&RemoteParticipant> {
        self.entries.get(&id)?.here()
    }

    pub(crate) fn find_mut(&mut self, id: ParticipantId) -> Option<&mut RemoteParticipant> {
        match &mut self.entries.get_mut(&id)?.state {
            State::Here(participant) => Some(participant),
            State::Gone { .. } => None,
        }
    }

    /// Those who are here, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &RemoteParticipant> + Clone {
        self.entries.values().filter_map(Entry::here)
    }

    /// Members and publishers of this identity.
    pub(crate) fn named(&self, identity: &Identity) -> impl Iterator<Item = &RemoteParticipant> + Clone {
        self.identities.get(identity).into_iter().flatten().filter_map(|id| self.find(*id))
    }

    /// A node does not answer. Its participants.
    pub(crate) fn lose_node(&mut self, now: Time, grace: Duration, node: u64) -> Vec<ParticipantId> {
        self.away.insert(node);
        self.lose_people(now, grace, node, false)
    }

    /// A node has begun anew: those that it had are kept for `grace` all the same, for another one may take them over. Those that were
    /// here until now.
    pub(crate) fn orphan_node(&mut self, now: Time, grace: Duration, node: u64) -> Vec<ParticipantId> {
        self.away.remove(&node);
        self.lose_people(now, grace, node, true)
    }

    fn lose_people(&mut self, now: Time, grace: Duration, node: u64, is_orphan: bool) -> Vec<ParticipantId> {
        self.rivals.retain(|(_, of), _| *of != node);
        let mut lost = Vec::new();
        for (&id, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.node == node) {
            let participant = match &mut entry.state {
                State::Here(participant) => participant,
                State::Gone { until, unsaid } => {
                    *unsaid |= is_orphan;
                    if has_rival(&self.rivals, id) {
                        self.buried.remove(&(std::mem::replace(until, now), id));
                        self.buried.insert((now, id));
                    }
                    continue;
                }
            };
            participant.is_orphan |= is_orphan;
            if std::mem::replace(&mut participant.is_away, true) {
                continue;
            }
            if let Some(until) = participant.until.replace(now + grace) {
                self.waiting.remove(&(until, id));
            }
            self.waiting.insert((now + grace, id));
            lost.push(id);
        }
        lost
    }

    /// A node answers again. Its participants.
    pub(crate) fn find_node(&mut self, node: u64) -> Vec<ParticipantId> {
        self.away.remove(&node);
        let mut found = Vec::new();
        for participant in self.entries.values_mut().filter_map(Entry::here_mut).filter(|p| p.key.node == node && !p.is_orphan) {
            let id = participant.key.participant;
            if let Some(until) = participant.until.take() {
                self.waiting.remove(&(until, id));
            }
            participant.is_away = false;
            found.push(id);
        }
        found
    }

    /// When somebody goes, or a tombstone does not count any more.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let first = [&self.waiting, &self.buried].into_iter().filter_map(|deadlines| deadlines.first());
        first.map(|(at, _)| *at).min()
    }

    /// Forgets old tombstones. One who is to [`end`](Self::end) now, if any: who is here, or of whose tombstone nobody heard who still
    /// tells of it.
    pub(crate) fn next_over(&mut self, now: Time) -> Option<ParticipantId> {
        while let Some(&(_, id)) = self.buried.first().filter(|(at, _)| *at <= now) {
            if has_rival(&self.rivals, id) {
                return Some(id);
            }
            self.forget_oldest();
        }
        self.waiting.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    pub(crate) fn bury(&mut self, now: Time, key: RemoteKey, version: Version, unsaid: bool) {
        while self.buried.len() >= TOMBSTONES_MAX {
            self.forget_oldest();
        }
        let is_told = unsaid || !self.away.contains(&key.node) || !has_rival(&self.rivals, key.participant);
        let until = if is_told { now + TOMBSTONE_LIFE } else { now };
        self.buried.insert((until, key.participant));
        self.entries.insert(key.participant, Entry { node: key.node, version, state: State::Gone { until, unsaid } });
    }

    /// `false`: there is no tombstone.
    fn forget_oldest(&mut self) -> bool {
        // One with a rival makes way for it at the next turn.
        let oldest = self.buried.iter().find(|(_, id)| !has_rival(&self.rivals, *id)).or(self.buried.first()).copied();
        oldest.is_some_and(|of| self.buried.remove(&of) && self.entries.remove(&of.1).is_some())
    }

    /// Out of all books.
    fn take_out(&mut self, id: ParticipantId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        match &entry.state {
            State::Gone { until, .. } => drop(self.buried.remove(&(*until, id))),
            State::Here(participant) => {
                if let Some(until) = participant.until {
                    self.waiting.remove(&(until, id));
                }
                let identity = &participant.manifest.identity;
                if let Some(named) = self.identities.get_mut(identity) {
                    named.remove(&id);
                    if named.is_empty() {
                        self.identities.remove(identity);
                    }
                }
            }
        }
        Some(entry)
    }
}

fn has_rival(rivals: &Rivals, id: ParticipantId) -> bool {
    rivals.range((id, 0)..=(id, u64::MAX)).next().is_some()
}

impl Entry {
    fn here(&self) -> Option<&RemoteParticipant> {
        match &self.state {
            State::Here(participant) => Some(participant),
            State::Gone { .. } => None,
        }
    }

    fn here_mut(&mut self) -> Option<&mut RemoteParticipant> {
        match &mut self.state {
            State::Here(participant) => Some(participant),
            State::Gone { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

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

    /// Whose they are when all have ended who are to end.
    fn owners_at_end(remotes: &mut RemoteParticipants, now: Time) -> Vec<u64> {
        while let Some(id) = remotes.next_over(now) {
            if let Some(rival) = remotes.end(now, id) {
                assert_eq!(remotes.apply(now, GRACE, rival), Applied::New);
            }
        }
        remotes.iter().map(|p| p.key().node).collect()
    }

    /// Nodes 1 and 4 have taken it over at once, and it has left at node 1.
    fn gone_at_one_of_two(four_is_heard: bool) -> RemoteParticipants {
        let mut remotes = RemoteParticipants::default();
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 2, 1, Some("a"))), Applied::New);
        if four_is_heard {
            assert_eq!(remotes.apply(Time::ZERO, GRACE, record(4, 2, 5, Some("a"))), Applied::Stale);
        }
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 2, 2, None)), Applied::New);
        assert_eq!(remotes.next_over(Time::ZERO), None);
        remotes
    }

    #[test]
    fn a_tombstone_counts_for_another_owner_while_its_own_one_answers() {
        let lose: [fn(&mut RemoteParticipants); 2] =
            [|remotes| drop(remotes.lose_node(Time::ZERO, GRACE, 1)), |remotes| drop(remotes.orphan_node(Time::ZERO, GRACE, 1))];
        for lose in lose {
            let mut remotes = gone_at_one_of_two(false);
            assert_eq!(remotes.apply(Time::ZERO, GRACE, record(4, 2, 5, Some("a"))), Applied::Stale);
            lose(&mut remotes);
            assert_eq!(remotes.apply(Time::ZERO, GRACE, record(4, 2, 6, Some("a"))), Applied::New, "node 4 may never hear of it");
            assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 2, 2, None)), Applied::New, "it does hear of it");

            let mut remotes = gone_at_one_of_two(true);
            lose(&mut remotes);
            assert_eq!(owners_at_end(&mut remotes, Time::ZERO), [4], "though node 4 does not say it again");

            let mut remotes = gone_at_one_of_two(true);
            remotes.apply(Time::ZERO, GRACE, record(4, 2, 6, None));
            lose(&mut remotes);
            assert!(owners_at_end(&mut remotes, Time::ZERO).is_empty(), "it has left there, too");

            let mut remotes = gone_at_one_of_two(true);
            remotes.lose_node(Time::ZERO, GRACE, 4);
            lose(&mut remotes);
            assert!(owners_at_end(&mut remotes, Time::ZERO).is_empty(), "when node 4 is back it says it again");
        }
        let over = Time::ZERO + TOMBSTONE_LIFE;
        assert_eq!(owners_at_end(&mut gone_at_one_of_two(true), over), [4], "nobody tells it any more");
    }

    #[test]
    fn one_that_was_taken_over_is_whose_it_was_when_the_later_owner_goes_without_a_word() {
        let mut remotes = RemoteParticipants::default();
        for (node, epoch) in [(3, 1), (1, 2), (4, 2), (5, 3)] {
            remotes.apply(Time::ZERO, GRACE, record(node, epoch, 0, Some("a")));
        }
        let mut last = 5;
        for owner in [1, 4, 3] {
            remotes.lose_node(Time::ZERO, GRACE, last);
            assert_eq!(owners_at_end(&mut remotes, Time::ZERO + GRACE), [owner]);
            last = owner;
        }
    }

    #[test]
    fn what_a_node_told_before_it_began_anew_does_not_come_back_when_the_later_owner_goes() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(Time::ZERO, GRACE, record(1, 0, 1, Some("a")));
        remotes.orphan_node(Time::ZERO, GRACE, 1);
        remotes.apply(Time::ZERO, GRACE, record(2, 1, 1, Some("a")));
        remotes.orphan_node(Time::ZERO, GRACE, 2);
        assert!(owners_at_end(&mut remotes, Time::ZERO + GRACE).is_empty());
    }

    #[test]
    fn what_others_than_the_owner_tell_is_not_kept_without_number() {
        let mut remotes = RemoteParticipants::default();
        for id in 0..RIVALS_MAX as u64 + 100 {
            remotes.apply(Time::ZERO, GRACE, of(id, 1, Some("a")));
            let key = RemoteKey { node: 2, participant: ParticipantId(id) };
            assert_eq!(remotes.apply(Time::ZERO, GRACE, Record { key, ..of(id, 9, Some("a")) }), Applied::Stale);
        }
        assert_eq!(remotes.rivals.len(), RIVALS_MAX);
        remotes.lose_node(Time::ZERO, GRACE, 2);
        assert!(remotes.rivals.is_empty());
    }

    #[test]
    fn an_older_record_of_the_owner_changes_nothing() {
        let mut remotes = RemoteParticipants::default();
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 2, Some("new"))), Applied::New);
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 1, Some("old"))), Applied::Stale);
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 2, Some("same"))), Applied::Stale);
        assert_eq!(names(&remotes), ["new"]);
    }

    #[test]
    fn a_take_over_fences_the_old_owner() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(Time::ZERO, GRACE, record(1, 0, 900, Some("at 1")));
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(2, 1, 0, Some("at 2"))), Applied::New);
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 901, Some("zombie"))), Applied::Stale);
        assert_eq!(names(&remotes), ["at 2"]);
    }

    #[test]
    fn for_equal_epochs_the_lower_node_wins_whatever_the_order() {
        for order in [[1, 2], [2, 1]] {
            let mut remotes = RemoteParticipants::default();
            for node in order {
                remotes.apply(Time::ZERO, GRACE, record(node, 3, 0, Some(if node == 1 { "low" } else { "high" })));
            }
            assert_eq!(names(&remotes), ["low"]);
        }
    }

    #[test]
    fn a_tombstone_is_not_undone_by_a_late_record() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(Time::ZERO, GRACE, record(1, 0, 1, Some("a")));
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 3, None)), Applied::New);
        assert_eq!(remotes.apply(Time::ZERO, GRACE, record(1, 0, 2, Some("a"))), Applied::Stale);
        assert_eq!(remotes.iter().count(), 0);
    }

    fn of(id: u64, counter: u32, identity: Option<&str>) -> Record {
        let key = RemoteKey { node: 1, participant: ParticipantId(id) };
        Record { key, ..record(1, 0, counter, identity) }
    }

    #[test]
    fn a_tombstone_is_forgotten_after_its_life() {
        let mut remotes = RemoteParticipants::default();
        let at = Time::from_millis(5);
        remotes.apply(at, GRACE, record(1, 0, 3, None));
        assert_eq!(remotes.deadline(), Some(at + TOMBSTONE_LIFE));
        assert_eq!(remotes.next_over(at + TOMBSTONE_LIFE), None);
        assert_eq!(remotes.deadline(), None);
        assert!(remotes.entries.is_empty());
    }

    #[test]
    fn neither_those_who_are_here_nor_those_who_are_gone_are_without_number() {
        let mut remotes = RemoteParticipants::default();
        let now = Time::ZERO;
        for id in 0..TOMBSTONES_MAX as u64 + 100 {
            assert_eq!(remotes.apply(now, GRACE, of(id, 1, None)), Applied::New);
        }
        assert_eq!((remotes.entries.len(), remotes.buried.len()), (TOMBSTONES_MAX, TOMBSTONES_MAX));
        for id in 0..REMOTE_PARTICIPANTS_MAX as u64 {
            assert_eq!(remotes.apply(now, GRACE, of(1_000_000 + id, 1, Some("a"))), Applied::New, "tombstones make room");
        }
        assert_eq!((remotes.entries.len(), remotes.buried.len()), (REMOTE_PARTICIPANTS_MAX, 0));
        assert_eq!(remotes.apply(now, GRACE, of(9, 1, Some("a"))), Applied::Full);
        assert_eq!(remotes.apply(now, GRACE, of(1_000_000, 2, Some("a"))), Applied::New, "who is here may change");
    }

    #[test]
    fn the_books_are_empty_when_all_are_gone() {
        let mut remotes = RemoteParticipants::default();
        remotes.apply(Time::ZERO, GRACE, of(1, 1, Some("a")));
        remotes.lose_node(Time::ZERO, GRACE, 1);
        remotes.apply(Time::ZERO, GRACE, of(2, 1, Some("a")));
        assert_eq!(remotes.deadline(), Some(Time::ZERO + GRACE));
        while let Some(id) = remotes.next_over(Time::ZERO + GRACE) {
            remotes.end(Time::ZERO + GRACE, id);
        }
        assert_eq!(remotes.iter().count(), 0);
        assert!(remotes.identities.is_empty() && remotes.waiting.is_empty());
        assert_eq!(remotes.next_over(Time::ZERO + GRACE + TOMBSTONE_LIFE), None);
        assert!(remotes.entries.is_empty());
    }
}
