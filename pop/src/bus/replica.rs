//! What this node tells the others and what it knows of them: a machine without IO. Its owner brings messages and time, carries out
//! [`Send`]s and takes [`BusEvent`]s.
//!
//! ```text
//! beat, token --> meet -> Peer --node record--> NodeUp -> pull of each watched session
//! put --------> take ---+-> known (id, version) -> Record
//! page --------> take --+     what a pull has not confirmed -> tombstone
//! digest -> differs from known -> pull
//! ```
//!
//! Versions alone are kept of others, so a session's own memory holds the records. What is dropped for want of place is not known
//! either: the next digest differs, and it is asked for again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::placement::{KEEPERS, rank};
use pop_session::presence::{LocalRecord, REMOTE_PARTICIPANTS_MAX, Record, RemoteKey, TOMBSTONE_LIFE, Version};

use super::counters::{BusCounters, Ignored, add, count};
use super::record::{self, Beat, Digest, NodeRecord, Page, RecordError, SCHEMA, Sum, Written};
use crate::config::PEERS_MAX;

/// [`Replica::handle_timeout`] is called this often.
pub(super) const TICK: Duration = Duration::from_millis(25);

/// A node that says nothing for so long is not on the bus, and its participants are read anew when it is. Whether it lives is
/// [`pop_session::life`]'s to say.
const SILENCE_MAX: Duration = Duration::from_millis(450);

/// A session's digest is written this often.
const DIGEST_INTERVAL: Duration = Duration::from_millis(1_500);

/// Between PoPs, where links lose nothing that they do not end with, each one that nothing has changed before comes after twice as long as
/// the one before, up to this.
const DIGEST_INTERVAL_MAX: Duration = Duration::from_secs(24);

/// Participants that left are told to those who ask for [`TOMBSTONE_LIFE`]: longer than anyone keeps those of a node that is away.
const TOMBSTONES_MAX: usize = 16_384;

/// A query without an answer is made again after this.
const ASK_AGAIN: Duration = Duration::from_millis(200);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// Pages that are asked for at the same time: as many as are of [`ASKED_BYTES`], as pages have been lately, within these bounds. A node that is back
/// may share hundreds of sessions of few people with others that are 250 ms away.
const ASKED_MIN: usize = 32;
const ASKED_MAX: usize = 512;
const ASKED_BYTES: usize = ASKED_MIN * record::PAGE_BYTES;

/// While so many are to be asked nothing is asked again that was dropped: the digests show it.
const PULLS_LATER_MAX: usize = 16_384;

/// Records of others that wait for whoever takes them, and bytes of their opaque texts.
const RECORD_EVENTS_MAX: usize = 16_384;
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Participants of others that are known in all sessions: 40 bytes each.
const KNOWN_MAX: usize = 4 * REMOTE_PARTICIPANTS_MAX;

/// Sessions that this node is told to keep at once; the others are by their next digests.
const HEARD_OF_MAX: usize = 256;

/// Incarnations of nodes that are gone are remembered for so long, and whom they had: when one is back, who is not named any more has gone.
const FENCE_LIFE: Duration = Duration::from_secs(60);

/// Of those whom a node had before it was gone a pull so much later decides. One of them who has gone on at another node is heard from that
/// one by then, and does not seem to have left meanwhile.
const SECOND_PULL: Duration = Duration::from_millis(400);

/// Why a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Its connection ended, or it said so.
    Left,
    /// It said nothing for half a second.
    Silent,
    /// It has started again: what it had is not there any longer, and [`BusEvent::NodeUp`] follows when it has told of itself.
    Restarted,
}

/// What others did.
#[derive(Clone, Debug)]
pub enum BusEvent {
    /// What is new of a participant of another node, in a session that is watched. After a node was gone its participants come again.
    Record {
        /// Which.
        session: SessionId,
        /// What.
        record: Record,
    },
    /// A node is there; its participants follow.
    NodeUp(NodeRecord),
    /// Somebody is in a session that is not watched here, and this node is one of its keepers ([`KEEPERS`]). Told again and again until it
    /// is watched.
    Keep(SessionId),
    /// What it tells of itself has changed.
    NodeChanged(NodeRecord),
    /// A node that was up is not; its participants are not told one by one.
    NodeGone {
        /// Which.
        node: NodeId,
        /// Why.
        why: Gone,
    },
    /// Somebody says that it is this node and started later. On the bus anybody of the CA can say so.
    Duplicate {
        /// Its start.
        theirs: Incarnation,
        /// Where its mesh is, and where it has to prove it.
        mesh: Option<SocketAddr>,
    },
}

/// What is to be done on the bus.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Send {
    /// Listen to a session, or no longer.
    Watch(SessionId, bool),
    Participant(SessionId, ParticipantId, Arc<[u8]>),
    Node(Vec<u8>),
    Digest(SessionId, Vec<u8>),
    AskNode(NodeId, Incarnation),
    AskPage(PageAsk),
}

/// A query for participants of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageAsk {
    pub(super) session: SessionId,
    pub(super) node: NodeId,
    /// Another process may have the node's id, and would answer, too.
    pub(super) incarnation: Incarnation,
    pub(super) from: ParticipantId,
    /// Of the pull, so that a late answer to an earlier one is not taken for one to this.
    pub(super) number: u32,
}

#[derive(Debug)]
struct Own {
    version: Version,
    bytes: Arc<[u8]>,
    is_here: bool,
    /// It is in `unsent`.
    is_unsent: bool,
}

#[derive(Debug)]
struct OwnSession {
    records: BTreeMap<ParticipantId, Own>,
    /// When its next digest is due; `None`: nobody hears it.
    digest_at: Option<Instant>,
    /// How long the next one but one is due after it.
    digest_interval: Duration,
    /// It is in `digests_unsent`.
    is_digest_unsent: bool,
    /// When the last of them that has another owner went: without a record the session has digests still, which say so.
    withdrawn_at: Option<Instant>,
}

#[derive(Debug)]
struct Peer {
    incarnation: Incarnation,
    heard_at: Instant,
    /// When its last beat came: a node that stood still does not beat before it knows what others hold it for.
    beat_at: Option<Instant>,
    /// It is up when this is known; with how new it is.
    record: Option<(NodeRecord, u32)>,
    asked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    /// The last pull of its node that has confirmed it.
    pull: u32,
    /// The next time that it comes it is told once more.
    again: bool,
}

/// By session and node.
type PullKey = (SessionId, NodeId);

#[derive(Debug)]
struct Pull {
    number: u32,
    from: ParticipantId,
    state: PullState,
    /// [`SECOND_PULL`] after another one.
    is_second: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullState {
    Queued,
    Asked(Instant),
    /// It has failed; again then.
    Waits(Instant),
}

#[derive(Debug)]
pub(super) struct Replica {
    node: NodeId,
    pop: Box<str>,
    /// The others are of other PoPs, not of this one.
    is_abroad: bool,
    incarnation: Incarnation,
    /// Version of the records that it writes.
    schema: u8,
    counters: Arc<BusCounters>,
    own: BTreeMap<SessionId, OwnSession>,
    own_node: Option<NodeRecord>,
    /// Of `own_node`; 0: there is none.
    own_counter: u32,
    /// In the order in which they left.
    tombstones: VecDeque<(Instant, SessionId, ParticipantId, Version)>,
    /// To be sent.
    node_unsent: bool,
    watches_unsent: VecDeque<(SessionId, bool)>,
    unsent: VecDeque<(SessionId, ParticipantId)>,
    /// When digests are due, the first on top. One counts that says what its session says.
    digests_due: BinaryHeap<Reverse<(Instant, SessionId)>>,
    digests_unsent: VecDeque<SessionId>,
    ask_nodes: VecDeque<NodeId>,
    pull_queue: VecDeque<PullKey>,
    pulls: BTreeMap<PullKey, Pull>,
    asked: usize,
    /// How long pages have been lately, in bytes: as the longest, and shorter again with each that is.
    page_len: usize,
    pull_number: u32,
    peers: BTreeMap<NodeId, Peer>,
    /// The highest incarnations of nodes that are gone.
    fences: BTreeMap<NodeId, (Incarnation, Instant)>,
    watched: BTreeMap<SessionId, BTreeMap<NodeId, BTreeMap<ParticipantId, Known>>>,
    known: usize,
    events: VecDeque<BusEvent>,
    record_events: usize,
    event_bytes: usize,
    /// Sessions of which an event is among them.
    heard_of: BTreeSet<SessionId>,
    /// The newest that says it is this node.
    lost_to: Option<Incarnation>,
    /// An event has told of it.
    is_lost_told: bool,
    ticked_at: Option<Instant>,
}

impl Replica {
    pub(super) fn new(node: NodeId, pop: &str, incarnation: Incarnation, counters: Arc<BusCounters>) -> Self {
        Self {
            node,
            pop: pop.into(),
            is_abroad: false,
            incarnation,
            schema: SCHEMA,
            counters,
            own: BTreeMap::new(),
            own_node: None,
            own_counter: 0,
            tombstones: VecDeque::new(),
            node_unsent: false,
            watches_unsent: VecDeque::new(),
            unsent: VecDeque::new(),
            digests_due: BinaryHeap::new(),
            digests_unsent: VecDeque::new(),
            ask_nodes: VecDeque::new(),
            pull_queue: VecDeque::new(),
            pulls: BTreeMap::new(),
            asked: 0,
            page_len: record::PAGE_BYTES,
            pull_number: 0,
            peers: BTreeMap::new(),
            fences: BTreeMap::new(),
            watched: BTreeMap::new(),
            known: 0,
            events: VecDeque::new(),
            record_events: 0,
            event_bytes: 0,
            heard_of: BTreeSet::new(),
            lost_to: None,
            is_lost_told: false,
            ticked_at: None,
        }
    }

    /// The same, that writes records of this version.
    pub(super) fn writing(self, schema: u8) -> Self {
        Self { schema, ..self }
    }

    /// The same for nodes of other PoPs, where nobody keeps a session that he has nobody in, and few of many share it: those are asked
    /// who are known, and for the rest [`Self::pull_anew`] is called.
    pub(super) fn abroad(self) -> Self {
        Self { is_abroad: true, ..self }
    }

    /// What others shall know of one of ours; of several changes that have not been sent the last is.
    pub(super) fn put_participant(&mut self, now: Instant, session: &SessionId, local: &LocalRecord) -> Result<(), RecordError> {
        let bytes: Arc<[u8]> = match record::encode_participant(self.node, self.incarnation, local, self.schema) {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                count(&self.counters.refused);
                return Err(error);
            }
        };
        // Its keepers hear of a session by its digest, so the first one does not wait.
        let due = &mut self.digests_due;
        let own = self.own.entry(session.clone()).or_insert_with(|| {
            due.push(Reverse((now, session.clone())));
            OwnSession {
                records: BTreeMap::new(),
                digest_at: Some(now),
                digest_interval: DIGEST_INTERVAL,
                is_digest_unsent: false,
                withdrawn_at: None,
            }
        });
        let is_here = local.manifest.is_some();
        let is_unsent = own.records.get(&local.participant).is_some_and(|known| known.is_unsent);
        own.records.insert(local.participant, Own { version: local.version, bytes, is_here, is_unsent: true });
        if !is_unsent {
            self.unsent.push_back((session.clone(), local.participant));
        }
        if self.is_abroad {
            self.hasten_digest(now, session);
        }
        if !is_here {
            self.bury(now, session, local.participant, local.version);
        }
        Ok(())
    }

    /// One of ours has another owner: nobody is told of it from here any more, and by the next digest those who still believe us learn that.
    pub(super) fn withdraw_participant(&mut self, now: Instant, session: &SessionId, participant: ParticipantId) {
        let Some(own) = self.own.get_mut(session) else { return };
        let Some(Own { version, .. }) = own.records.remove(&participant) else { return };
        own.withdrawn_at = Some(now);
        if self.is_abroad {
            self.hasten_digest(now, session);
        }
        self.bury(now, session, participant, version);
    }

    /// Something has changed, or somebody listens who did not: the digest comes as soon as within a PoP.
    fn hasten_digest(&mut self, now: Instant, session: &SessionId) {
        let Some(own) = self.own.get_mut(session) else { return };
        own.digest_interval = DIGEST_INTERVAL;
        let at = now + DIGEST_INTERVAL;
        if own.digest_at.is_none_or(|due| due > at) {
            own.digest_at = Some(at);
            self.digests_due.push(Reverse((at, session.clone())));
        }
    }

    /// Somebody hears a session's digests from now on.
    pub(super) fn begin_digests(&mut self, session: &SessionId) {
        if let Some(now) = self.ticked_at {
            self.hasten_digest(now, session);
        }
    }

    /// Nobody hears a session's digests: there are none until somebody does.
    pub(super) fn end_digests(&mut self, session: &SessionId) {
        if let Some(own) = self.own.get_mut(session) {
            own.digest_at = None;
        }
    }

    fn bury(&mut self, now: Instant, session: &SessionId, participant: ParticipantId, version: Version) {
        self.tombstones.push_back((now, session.clone(), participant, version));
        if self.tombstones.len() > TOMBSTONES_MAX {
            self.forget_tombstone();
        }
    }

    fn forget_tombstone(&mut self) {
        let Some((at, session, participant, version)) = self.tombstones.pop_front() else { return };
        let Some(own) = self.own.get_mut(&session) else { return };
        if own.records.get(&participant).is_some_and(|own| !own.is_here && own.version == version) {
            own.records.remove(&participant);
        }
        if own.records.is_empty() && own.withdrawn_at.is_none_or(|last| last <= at) {
            self.own.remove(&session);
        }
    }

    pub(super) fn put_node(&mut self, record: NodeRecord) {
        if self.own_node.as_ref() != Some(&record) {
            self.own_node = Some(record);
            self.own_counter += 1;
            self.node_unsent = true;
        }
    }

    pub(super) fn watch(&mut self, session: &SessionId) {
        if !self.watched.contains_key(session) {
            self.watched.insert(session.clone(), BTreeMap::new());
            self.watches_unsent.push_back((session.clone(), true));
            let is_asked = |peer: &Peer| peer.record.is_some() && !self.is_abroad;
            let up: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| is_asked(peer)).map(|(&node, _)| node).collect();
            for node in up {
                self.pull(session, node);
            }
        }
    }

    pub(super) fn unwatch(&mut self, session: &SessionId) {
        let Some(nodes) = self.watched.remove(session) else { return };
        self.forget(nodes.values().map(BTreeMap::len).sum());
        self.watches_unsent.push_back((session.clone(), false));
        self.end_pulls(|(of, _)| of == session);
    }

    /// All that was declared on the bus is gone, and what others told meanwhile: everything is declared and read again.
    pub(super) fn handle_reopened(&mut self) {
        self.watches_unsent = self.watched.keys().map(|session| (session.clone(), true)).collect();
        self.end_pulls(|_| true);
        let up: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| peer.record.is_some()).map(|(&node, _)| node).collect();
        let sessions: Vec<SessionId> = self.watched.keys().cloned().collect();
        for session in &sessions {
            up.iter().for_each(|&node| self.pull(session, node));
        }
    }

    /// Asks `node` for all that it says, and tells it once more: what came while the node was held for away counted for nothing.
    pub(super) fn tell_again(&mut self, node: NodeId) {
        // What is under way may have passed some of them.
        self.end_pulls(|(_, of)| *of == node);
        let mut sessions = Vec::new();
        for (session, nodes) in &mut self.watched {
            if let Some(known) = nodes.get_mut(&node).filter(|known| !known.is_empty()) {
                known.values_mut().for_each(|known| known.again = true);
                sessions.push(session.clone());
            }
        }
        for session in sessions {
            self.pull(&session, node);
        }
    }

    fn forget(&mut self, participants: usize) {
        self.known -= participants;
        self.counters.participants.store(self.known as u64, Ordering::Relaxed);
    }

    fn end_pulls(&mut self, is_over: impl Fn(&PullKey) -> bool) {
        let asked = &mut self.asked;
        self.pulls.retain(|key, pull| {
            let ends = is_over(key);
            *asked -= usize::from(ends && matches!(pull.state, PullState::Asked(_)));
            !ends
        });
        self.pull_queue.retain(|key| !is_over(key));
    }

    /// Reads all that `node` has of `session`, whatever is being read of it.
    pub(super) fn pull_anew(&mut self, session: &SessionId, node: NodeId) {
        if !self.watched.contains_key(session) || self.peers.get(&node).is_none_or(|peer| peer.record.is_none()) {
            return;
        }
        let key = (session.clone(), node);
        match self.pulls.get(&key).map(|pull| (pull.state, pull.from)) {
            // That is about to be done.
            Some((PullState::Queued, ParticipantId(0))) => return,
            Some((PullState::Queued, _)) => self.pull_queue.retain(|of| *of != key),
            Some((PullState::Asked(_), _)) => self.asked -= 1,
            Some((PullState::Waits(_), _)) | None => {}
        }
        self.pulls.remove(&key);
        self.pull(session, node);
    }

    /// What came of a participant last counts for nothing: it is told once more when it comes again.
    pub(super) fn forget_record(&mut self, session: &SessionId, key: RemoteKey) {
        let known = self.watched.get_mut(session).and_then(|nodes| nodes.get_mut(&NodeId(key.node))?.get_mut(&key.participant));
        if let Some(known) = known {
            known.again = true;
            self.pull_later(session, NodeId(key.node));
        }
    }

    /// What was dropped is asked for again when a digest would show it within a PoP. Between PoPs the next one may be far away.
    fn pull_later(&mut self, session: &SessionId, node: NodeId) {
        let Some(now) = self.ticked_at.filter(|_| self.is_abroad) else { return };
        let key = (session.clone(), node);
        if self.pulls.len() < PULLS_LATER_MAX && !self.pulls.contains_key(&key) {
            self.pull_number = self.pull_number.wrapping_add(1);
            let state = PullState::Waits(now + DIGEST_INTERVAL);
            self.pulls.insert(key, Pull { number: self.pull_number, from: ParticipantId(0), state, is_second: false });
        }
    }

    /// Reads all that `node` has of `session`, unless that is being done.
    fn pull(&mut self, session: &SessionId, node: NodeId) {
        let key = (session.clone(), node);
        if !self.pulls.contains_key(&key) {
            self.pull_number = self.pull_number.wrapping_add(1);
            let pull = Pull { number: self.pull_number, from: ParticipantId(0), state: PullState::Queued, is_second: false };
            self.pulls.insert(key.clone(), pull);
            self.pull_queue.push_back(key);
        }
    }

    /// In which start a node was heard last, also when it is gone.
    pub(super) fn incarnation_of(&self, node: NodeId) -> Option<Incarnation> {
        let fence = self.fences.get(&node).map(|(incarnation, _)| *incarnation);
        self.peers.get(&node).map(|peer| peer.incarnation).or(fence)
    }

    /// When the last beat of a node that is up came.
    pub(super) fn beat_at(&self, node: NodeId) -> Option<Instant> {
        self.peers.get(&node).filter(|peer| peer.record.is_some())?.beat_at
    }

    /// That it lives, every [`pop_session::life::BEAT_INTERVAL`].
    pub(super) fn beat(&self) -> Vec<u8> {
        record::encode_beat(Beat { incarnation: self.incarnation, counter: self.own_counter })
    }

    pub(super) fn handle_beat(&mut self, now: Instant, node: NodeId, beat: Beat) {
        if !self.meet(now, node, beat.incarnation) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.beat_at = Some(now);
        let is_known = peer.record.as_ref().is_some_and(|(_, counter)| *counter == beat.counter);
        let is_asked = peer.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASK_AGAIN);
        if beat.counter != 0 && !is_known && !is_asked {
            peer.asked_at = Some(now);
            self.ask_nodes.push_back(node);
        }
    }

    /// A liveliness token has come or gone.
    pub(super) fn handle_token(&mut self, now: Instant, node: NodeId, incarnation: Incarnation, is_here: bool) {
        if is_here {
            if self.meet(now, node, incarnation) && self.peers.get(&node).is_some_and(|peer| peer.record.is_none()) {
                self.ask_nodes.push_back(node);
            }
        } else if self.peers.get(&node).is_some_and(|peer| peer.incarnation == incarnation) {
            self.remove(now, node, Gone::Left);
        }
    }

    /// A node was heard in an incarnation. False: what it says does not count.
    fn meet(&mut self, now: Instant, node: NodeId, incarnation: Incarnation) -> bool {
        if node == self.node {
            if incarnation != self.incarnation {
                self.handle_duplicate(incarnation);
            }
            return false;
        }
        let newest = self.peers.get(&node).map(|peer| peer.incarnation).max(self.fences.get(&node).map(|(fence, _)| *fence));
        if newest.is_some_and(|newest| incarnation < newest) {
            self.counters.ignore(Ignored::Older);
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            if peer.incarnation == incarnation {
                peer.heard_at = now;
                return true;
            }
            self.remove(now, node, Gone::Restarted);
        } else if self.peers.len() >= PEERS_MAX && !self.is_abroad {
            // Abroad each has a link, of which there are no more than may be.
            self.counters.ignore(Ignored::Full);
            return false;
        } else if newest != Some(incarnation) {
            self.drop_known(node);
        }
        self.peers.insert(node, Peer { incarnation, heard_at: now, beat_at: None, record: None, asked_at: None });
        true
    }

    /// The order of incarnations decides: the later start is the one that the operator meant. It is asked for its node record, which says
    /// where it can be met.
    fn handle_duplicate(&mut self, theirs: Incarnation) {
        count(&self.counters.duplicates);
        if theirs > self.incarnation && self.lost_to != Some(theirs) {
            (self.lost_to, self.is_lost_told) = (Some(theirs), false);
            if !self.ask_nodes.contains(&self.node) {
                self.ask_nodes.push_back(self.node);
            }
        }
    }

    fn handle_duplicate_record(&mut self, record: &NodeRecord) {
        self.handle_duplicate(record.incarnation);
        let is_new = self.lost_to == Some(record.incarnation) && !std::mem::replace(&mut self.is_lost_told, true);
        // Whoever says so again and again, each time with another start, is told of once until that is heard.
        if is_new && !self.events.iter().any(|event| matches!(event, BusEvent::Duplicate { .. })) {
            self.events.push_back(BusEvent::Duplicate { theirs: record.incarnation, mesh: record.mesh });
        }
    }

    fn remove(&mut self, now: Instant, node: NodeId, why: Gone) {
        let Some(peer) = self.peers.remove(&node) else { return };
        if self.fences.len() >= PEERS_MAX
            && let Some(oldest) = self.fences.iter().min_by_key(|(_, (_, at))| *at).map(|(&node, _)| node)
        {
            self.fences.remove(&oldest);
            if !self.peers.contains_key(&oldest) {
                self.drop_known(oldest);
            }
        }
        self.fences.insert(node, (peer.incarnation, now));
        if why == Gone::Restarted {
            self.drop_known(node);
        } else {
            let known = self.watched.values_mut().filter_map(|nodes| nodes.get_mut(&node)).flat_map(BTreeMap::values_mut);
            known.for_each(|known| known.again = true);
        }
        self.end_pulls(|(_, of)| *of == node);
        if peer.record.is_some() {
            count(&self.counters.nodes_gone);
            self.events.push_back(BusEvent::NodeGone { node, why });
            self.count_nodes();
        }
    }

    /// Forgets whom a node had.
    fn drop_known(&mut self, node: NodeId) {
        let forgotten = self.watched.values_mut().filter_map(|nodes| nodes.remove(&node)).map(|known| known.len()).sum();
        self.forget(forgotten);
    }

    fn count_nodes(&self) {
        let up = self.peers.values().filter(|peer| peer.record.is_some()).count();
        self.counters.nodes.store(up as u64, Ordering::Relaxed);
    }

    pub(super) fn handle_node(&mut self, now: Instant, key: NodeId, record: NodeRecord, counter: u32) {
        // Who may be on this bus is the operator's CA's to say, and it makes certificates for nodes of other PoPs, too.
        if record.node != key || NodeId::of(&record.pop, &record.name) != key || (record.pop == self.pop) == self.is_abroad {
            self.counters.ignore(Ignored::Foreign);
            return;
        }
        if key == self.node && record.incarnation != self.incarnation {
            return self.handle_duplicate_record(&record);
        }
        if !self.meet(now, key, record.incarnation) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match &peer.record {
            Some((known, _)) if *known == record => peer.record = Some((record, counter)),
            Some((_, known)) if *known >= counter => self.counters.ignore(Ignored::Older),
            Some(_) => {
                peer.record = Some((record.clone(), counter));
                self.events.push_back(BusEvent::NodeChanged(record));
            }
            None => {
                peer.record = Some((record.clone(), counter));
                count(&self.counters.nodes_up);
                self.events.push_back(BusEvent::NodeUp(record));
                self.count_nodes();
                let is_asked = |nodes: &BTreeMap<NodeId, _>| !self.is_abroad || nodes.contains_key(&key);
                let sessions: Vec<SessionId> =
                    self.watched.iter().filter(|(_, of)| is_asked(of)).map(|(session, _)| session.clone()).collect();
                for session in sessions {
                    self.pull(&session, key);
                }
            }
        }
    }

    /// A record that its writer has put, under the key of `node` and `participant`.
    pub(super) fn handle_participant(&mut self, session: &SessionId, key: RemoteKey, written: Written) {
        let Written { incarnation, record } = written;
        if record.key != key {
            self.counters.ignore(Ignored::Foreign);
            return;
        }
        let node = NodeId(key.node);
        match self.peers.get(&node) {
            Some(peer) if incarnation < peer.incarnation => self.counters.ignore(Ignored::Older),
            Some(peer) if incarnation == peer.incarnation && peer.record.is_some() => {
                let pull = self.pulls.get(&(session.clone(), node)).map_or(0, |pull| pull.number);
                self.take(session, record, pull);
            }
            _ if node == self.node => self.handle_own(incarnation),
            _ => self.counters.ignore(Ignored::UnknownNode),
        }
    }

    fn handle_own(&mut self, incarnation: Incarnation) {
        if incarnation != self.incarnation {
            self.handle_duplicate(incarnation);
        }
    }

    /// Takes `record` of a node that is up, when it is newer than what is known; `pull`: what confirms it.
    fn take(&mut self, session: &SessionId, record: Record, pull: u32) {
        let Some(nodes) = self.watched.get_mut(session) else { return };
        let known = nodes.entry(NodeId(record.key.node)).or_default();
        let is_new = match known.get_mut(&record.key.participant) {
            Some(entry) => {
                // Whatever becomes of the record: its participant has not gone unseen.
                entry.pull = pull;
                if record.version < entry.version || record.version == entry.version && !entry.again {
                    if record.version < entry.version {
                        self.counters.ignore(Ignored::Older);
                    }
                    return;
                }
                false
            }
            None => true,
        };
        let bytes = opaque_len(&record);
        let has_place = self.record_events < RECORD_EVENTS_MAX
            && (self.event_bytes + bytes <= EVENT_BYTES_MAX)
            && (!is_new || record.manifest.is_none() || self.known < KNOWN_MAX);
        if !has_place {
            self.counters.ignore(Ignored::Full);
            return self.pull_later(session, NodeId(record.key.node));
        }
        if record.manifest.is_some() {
            known.insert(record.key.participant, Known { version: record.version, pull, again: false });
            self.known += usize::from(is_new);
        } else if !is_new {
            known.remove(&record.key.participant);
            self.known -= 1;
        }
        self.counters.participants.store(self.known as u64, Ordering::Relaxed);
        count(&self.counters.records_in);
        self.record_events += 1;
        self.event_bytes += bytes;
        self.events.push_back(BusEvent::Record { session: session.clone(), record });
    }

    /// Digests of all sessions come here: of one that is not watched, this node may be a keeper.
    pub(super) fn handle_digest(&mut self, session: &SessionId, node: NodeId, digest: Digest) {
        if !self.peers.get(&node).is_some_and(|peer| peer.incarnation == digest.incarnation && peer.record.is_some()) {
            return;
        }
        let Some(nodes) = self.watched.get(session) else {
            if digest.sum != Sum::default() {
                self.hear_of(session);
            }
            return;
        };
        let mut sum = Sum::default();
        for (&participant, known) in nodes.get(&node).into_iter().flatten().filter(|(_, known)| !known.again) {
            sum.add(participant, known.version);
        }
        if sum != digest.sum && !self.pulls.contains_key(&(session.clone(), node)) {
            count(&self.counters.repairs);
            self.pull(session, node);
        }
    }

    /// Somebody is in a session that is not watched here.
    fn hear_of(&mut self, session: &SessionId) {
        if self.is_abroad {
            return;
        }
        let up = self.peers.iter().filter(|(_, peer)| peer.record.is_some()).map(|(&node, _)| node);
        let is_keeper = rank(session, up.chain([self.node])).iter().take(KEEPERS).any(|node| *node == self.node);
        if is_keeper && self.heard_of.len() < HEARD_OF_MAX && self.heard_of.insert(session.clone()) {
            self.events.push_back(BusEvent::Keep(session.clone()));
        }
    }

    /// The answer to `ask`; `None`: none came.
    pub(super) fn handle_page(&mut self, now: Instant, ask: &PageAsk, page: Option<Page>) {
        let key = (ask.session.clone(), ask.node);
        let Some(pull) = self.pulls.get_mut(&key) else { return };
        if pull.number != ask.number || pull.from != ask.from || !matches!(pull.state, PullState::Asked(_)) {
            return;
        }
        self.asked -= 1;
        let incarnation = self.peers.get(&ask.node).map(|peer| peer.incarnation);
        let Some(page) = page.filter(|page| Some(page.incarnation) == incarnation) else {
            pull.state = PullState::Waits(now + ASK_AGAIN);
            return;
        };
        let is_second = pull.is_second;
        self.page_len = page.len.max(self.page_len - self.page_len / 8);
        match page.next {
            // It must go on, or it never ends.
            Some(next) if next > pull.from => {
                pull.from = next;
                pull.state = PullState::Queued;
                self.pull_queue.push_back(key);
            }
            _ => drop(self.pulls.remove(&key)),
        }
        for written in page.records {
            let written = match written {
                Ok(written) => written,
                Err(error) => {
                    self.counters.ignore(error);
                    continue;
                }
            };
            if NodeId(written.record.key.node) == ask.node && Some(written.incarnation) == incarnation {
                self.take(&ask.session, written.record, ask.number);
            } else {
                self.counters.ignore(Ignored::Foreign);
            }
        }
        if page.next.is_none() {
            count(&self.counters.resyncs);
            self.end_unconfirmed(now, ask, is_second);
        }
    }

    /// What was known before a pull and is not in it has gone: longer ago than its tombstone lives, or to another owner.
    fn end_unconfirmed(&mut self, now: Instant, ask: &PageAsk, is_second: bool) {
        let Some(known) = self.watched.get(&ask.session).and_then(|nodes| nodes.get(&ask.node)) else { return };
        let unconfirmed = known.iter().filter(|(_, known)| known.pull != ask.number);
        let (waits, gone): (Vec<_>, Vec<_>) =
            unconfirmed.map(|(&id, known)| (id, *known)).partition(|(_, known)| known.again && !is_second);
        if !waits.is_empty() {
            self.pull_number = self.pull_number.wrapping_add(1);
            let state = PullState::Waits(now + SECOND_PULL);
            let pull = Pull { number: self.pull_number, from: ParticipantId(0), state, is_second: true };
            self.pulls.insert((ask.session.clone(), ask.node), pull);
        }
        for (participant, Known { version, .. }) in gone {
            let version = Version { counter: version.counter.saturating_add(1), ..version };
            let key = RemoteKey { node: ask.node.0, participant };
            self.take(&ask.session, Record { key, version, manifest: None }, ask.number);
        }
    }

    /// A page of our own, for a node that asks.
    pub(super) fn answer(&self, session: &SessionId, from: ParticipantId) -> Vec<u8> {
        let records = self.own.get(session).into_iter().flat_map(|own| own.records.range(from..));
        record::encode_page(self.incarnation, records.map(|(&id, own)| (id, &*own.bytes)))
    }

    /// Our node record, for a node that asks.
    pub(super) fn answer_node(&self) -> Option<Vec<u8>> {
        self.own_node.as_ref().map(|record| record::encode_node(record, self.own_counter))
    }

    /// Every [`TICK`]. When this comes late, the node had no time to listen either: that is nobody's silence.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let late = self.ticked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at + TICK));
        self.ticked_at = Some(now);
        // Whether one of another PoP lives its link says.
        if !self.is_abroad {
            self.end_silent(now, late);
        }
        // Who is away for long at another PoP may be kept by rooms as long as anybody is.
        let life = if self.is_abroad { TOMBSTONE_LIFE } else { FENCE_LIFE };
        let is_over = |(_, (_, at)): &(&NodeId, &(Incarnation, Instant))| now.saturating_duration_since(*at) >= life;
        for node in self.fences.iter().filter(is_over).map(|(&node, _)| node).collect::<Vec<_>>() {
            self.fences.remove(&node);
            if !self.peers.contains_key(&node) {
                self.drop_known(node);
            }
        }
        while self.tombstones.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= TOMBSTONE_LIFE) {
            self.forget_tombstone();
        }
        while self.digests_due.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, session))) = self.digests_due.pop() else { break };
            let Some(own) = self.own.get_mut(&session).filter(|own| own.digest_at == Some(at)) else { continue };
            let next = now + own.digest_interval;
            own.digest_at = Some(next);
            if self.is_abroad {
                own.digest_interval = (own.digest_interval * 2).min(DIGEST_INTERVAL_MAX);
            }
            if !std::mem::replace(&mut own.is_digest_unsent, true) {
                self.digests_unsent.push_back(session.clone());
            }
            self.digests_due.push(Reverse((next, session)));
        }
        for (key, pull) in &mut self.pulls {
            match pull.state {
                PullState::Asked(at) if now.saturating_duration_since(at) > ANSWER_WAIT_MAX => {
                    self.asked -= 1;
                    pull.state = PullState::Waits(now + ASK_AGAIN);
                }
                PullState::Waits(until) if until <= now => {
                    pull.state = PullState::Queued;
                    self.pull_queue.push_back(key.clone());
                }
                _ => {}
            }
        }
    }

    /// Those that have said nothing for too long are gone, where it was not this node that did not listen for so long.
    fn end_silent(&mut self, now: Instant, late: Duration) {
        for peer in self.peers.values_mut() {
            peer.heard_at = (peer.heard_at + late).min(now);
        }
        let is_silent = |peer: &Peer| now.saturating_duration_since(peer.heard_at) > SILENCE_MAX;
        let silent: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| is_silent(peer)).map(|(&node, _)| node).collect();
        for node in silent {
            self.remove(now, node, Gone::Silent);
        }
    }

    /// What to do next on the bus, the most urgent first.
    pub(super) fn poll_send(&mut self, now: Instant) -> Option<Send> {
        if let Some((session, on)) = self.watches_unsent.pop_front() {
            return Some(Send::Watch(session, on));
        }
        if std::mem::take(&mut self.node_unsent) {
            return self.answer_node().map(Send::Node);
        }
        while let Some(node) = self.ask_nodes.pop_front() {
            let of_peer = self.peers.get(&node).map(|peer| peer.incarnation);
            if let Some(incarnation) = if node == self.node { self.lost_to } else { of_peer } {
                return Some(Send::AskNode(node, incarnation));
            }
        }
        while let Some((session, participant)) = self.unsent.pop_front() {
            if let Some(own) = self.own.get_mut(&session).and_then(|own| own.records.get_mut(&participant)) {
                own.is_unsent = false;
                count(&self.counters.records_out);
                add(&self.counters.record_bytes_out, own.bytes.len());
                return Some(Send::Participant(session, participant, Arc::clone(&own.bytes)));
            }
        }
        if self.asked < (ASKED_BYTES / self.page_len.max(1)).clamp(ASKED_MIN, ASKED_MAX)
            && let Some(key) = self.pull_queue.pop_front()
            && let (Some(pull), Some(peer)) = (self.pulls.get_mut(&key), self.peers.get(&key.1))
        {
            pull.state = PullState::Asked(now);
            self.asked += 1;
            let (session, node) = key;
            let incarnation = peer.incarnation;
            return Some(Send::AskPage(PageAsk { session, node, incarnation, from: pull.from, number: pull.number }));
        }
        while let Some(session) = self.digests_unsent.pop_front() {
            let Some(own) = self.own.get_mut(&session) else { continue };
            own.is_digest_unsent = false;
            let mut sum = Sum::default();
            for (&participant, own) in own.records.iter().filter(|(_, own)| own.is_here) {
                sum.add(participant, own.version);
            }
            return Some(Send::Digest(session, record::encode_digest(Digest { incarnation: self.incarnation, sum })));
        }
        None
    }

    /// Something was put that was not sent.
    pub(super) fn has_put(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// What others did.
    pub(super) fn poll_event(&mut self) -> Option<BusEvent> {
        let event = self.events.pop_front();
        if let Some(BusEvent::Record { record, .. }) = &event {
            self.record_events -= 1;
            self.event_bytes -= opaque_len(record);
        }
        if let Some(BusEvent::Keep(session)) = &event {
            self.heard_of.remove(session);
        }
        event
    }

    pub(super) fn has_event(&self) -> bool {
        !self.events.is_empty()
    }
}

/// Bytes of the texts that may be long.
fn opaque_len(record: &Record) -> usize {
    record.manifest.as_ref().map_or(0, |manifest| {
        let attributes: usize = manifest.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        manifest.metadata.len() + attributes
    })
}

#[cfg(test)]
mod tests;
