//! Sessions that span PoPs: who is in them is told between nodes of two PoPs by the same machine as on the bus, over their links, to those alone
//! whom it concerns.
//!
//! ```text
//! rooms --put, key-----> +-------+ --Presence--> links with nodes of other PoPs
//! links --Presence-----> | Spans | --BusEvent--> rooms, as what the bus tells
//! links up, down, time-> +-------+
//! ```
//! A session has the API keys of those whose tokens let them in here. A node of another PoP hears of it, and is heard in it, when its certificate
//! carries all of these: whoever has none of them, or not all, is answered as if nobody were here.
//!
//! Who shares a session is known where PoPs meet: each node that has people in it says so, with its keys, to the nodes of the three PoPs that
//! rank first by highest random weight of the session (`Meet`), and these tell each of whom else they know of whose certificate has the keys, and that one of
//! it (`Hosts`). So nobody tells all. Where they meet it is known which nodes
//! share a session and by which API keys, and a plain digest of its name, which tells a name that can be guessed. It is soft state: it goes with the link, and who ranks first is told anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use pop_relay::control::{HOSTS_MAX, MEET_KEYS_MAX, Presence, Telling};
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::placement::rank_first;
use pop_session::presence::{LocalRecord, RemoteKey};

use crate::bus::{BusEvent, Machine, NodeRecord};
use crate::mesh::{Grants, Peer};

/// Sessions that one node of another PoP wants to hear of, and those that it meets others for here.
const WATCHES_MAX: usize = 8_192;

/// API keys of a session; one with more is told to nobody.
const KEYS_MAX: usize = MEET_KEYS_MAX;

/// PoPs where those meet that share a session.
const MEETINGS: usize = 3;

/// Nodes without a link that are believed to share a session, by the word of one PoP where it is met: what one makes up takes no place of
/// what another one says.
const NAMED_MAX: usize = HOSTS_MAX / MEETINGS;

/// Sessions in one turn of which it is looked at who ranks first, when PoPs have come or gone: about a millisecond.
const MEETS_PER_TURN: usize = 1_024;

/// What waits for a node whose link has no room, in bytes. Who takes nothing while more comes is told it all the same, which ends the link.
const UNSENT_LEN_MAX: usize = 4 << 20;

/// What a message that waits costs beside its body, in bytes.
const UNSENT_COST: usize = 96;

/// Keys of people who are coming, and how long that may take.
const EARLY_MAX: usize = 4_096;
const EARLY_LIFE: Duration = Duration::from_secs(10);

/// A question without an answer is asked again after this: a round trip of the longest path, and what waits in front of it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(2);

/// A node of another PoP with which there is a link.
struct Neighbour {
    /// Of its PoP, to rank it.
    pop: NodeId,
    incarnation: Incarnation,
    grants: Grants,
    /// What it wants to hear of, whether or not it may.
    watches: HashSet<SessionId>,
    /// What it meets others for here.
    meets: HashSet<SessionId>,
}

/// What nodes have said, by session.
type BySession<T> = HashMap<SessionId, BTreeMap<NodeId, T>>;

fn forget_said<T>(said: &mut BySession<T>, session: &SessionId, node: NodeId) {
    if let Some(nodes) = said.get_mut(session) {
        nodes.remove(&node);
        if nodes.is_empty() {
            said.remove(session);
        }
    }
}

/// A session that is here, and whose people's keys are known.
struct Shared {
    keys: BTreeSet<Box<str>>,
    /// What it is called where PoPs meet.
    meeting: SessionId,
    /// PoPs that rank first.
    first: Vec<NodeId>,
    /// Those that were told so.
    met: BTreeSet<NodeId>,
    /// Nodes of other PoPs that share it: whoever has said so, or was named, and had a link.
    hosts: BTreeSet<NodeId>,
    /// Nodes that have had none yet, by the PoP that named them, the newest last.
    named: BTreeMap<NodeId, VecDeque<NodeId>>,
}

impl Shared {
    fn is_granted(&self, of: &Neighbour) -> bool {
        !self.keys.is_empty() && self.keys.len() <= KEYS_MAX && self.keys.iter().all(|key| of.grants.holds(key))
    }

    fn is_host(&self, node: NodeId) -> bool {
        self.hosts.contains(&node) || self.named.values().any(|named| named.contains(&node))
    }

    fn forget_host(&mut self, node: NodeId) {
        self.hosts.remove(&node);
        self.named.values_mut().for_each(|named| named.retain(|of| *of != node));
    }

    /// A PoP where it is met names a node that has no link.
    fn name(&mut self, teller: NodeId, node: NodeId) {
        let named = self.named.entry(teller).or_default();
        if !named.contains(&node) {
            if named.len() >= NAMED_MAX {
                named.pop_front();
            }
            named.push_back(node);
        }
    }
}

/// What waits for a node.
#[derive(Default)]
struct Unsent {
    waiting: VecDeque<Presence>,
    len: usize,
}

fn cost(Presence { session, telling }: &Presence) -> usize {
    let body = match telling {
        Telling::Watch | Telling::Unwatch | Telling::Ask(..) | Telling::Part => 0,
        Telling::Participant(_, body) | Telling::Digest(body) | Telling::Page(.., body) => body.len(),
        Telling::Meet(keys) => keys.iter().map(|key| key.len() + 8).sum(),
        Telling::Hosts(nodes) => 8 * nodes.len(),
    };
    UNSENT_COST + session.as_str().len() + body
}

/// See the module.
#[allow(missing_debug_implementations)]
pub struct Spans {
    machine: Machine,
    sessions: HashMap<SessionId, Shared>,
    /// Of these, by [`Shared::meeting`].
    meetings: HashMap<SessionId, SessionId>,
    neighbours: HashMap<NodeId, Neighbour>,
    /// Their [`Neighbour::watches`], and their [`Neighbour::meets`] with the keys that they do it by.
    watchers: BySession<()>,
    meeters: BySession<Vec<String>>,
    /// Of `neighbours`, by PoP.
    pops: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// PoPs of which a node has come, and whether one has gone, since `unmet` was filled last.
    came: BTreeSet<NodeId>,
    has_gone: bool,
    /// Sessions for which others may rank first, because of these PoPs that have come, or of one that has gone.
    unmet: Vec<SessionId>,
    unmet_for: Vec<NodeId>,
    unsent: HashMap<NodeId, Unsent>,
    /// Those of `unsent` whose turn it is, and those whose links have no room until the next turn.
    ready: VecDeque<NodeId>,
    held: Vec<NodeId>,
    /// Keys of those who may make a session.
    early: VecDeque<(Instant, SessionId, Box<str>)>,
    /// Who may hear of a session no longer.
    shut_out: VecDeque<(NodeId, SessionId)>,
}

/// A PoP, to be ranked.
fn number_of(pop: &str) -> NodeId {
    NodeId::of(pop, "")
}

/// What a session is called where PoPs meet that may not know its name.
fn meeting_of(session: &SessionId) -> SessionId {
    let digest = digest::digest(&digest::SHA256, session.as_str().as_bytes());
    let digits: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    SessionId::new(&digits).expect("32 digits are a name")
}

impl Spans {
    /// Of the node that says this of itself in its PoP.
    pub fn new(record: &NodeRecord) -> Spans {
        let machine = Machine::new(record.clone(), GIVE_UP_AFTER).abroad();
        Spans {
            machine,
            sessions: HashMap::new(),
            meetings: HashMap::new(),
            neighbours: HashMap::new(),
            watchers: HashMap::new(),
            meeters: HashMap::new(),
            pops: BTreeMap::new(),
            came: BTreeSet::new(),
            has_gone: false,
            unmet: Vec::new(),
            unmet_for: Vec::new(),
            unsent: HashMap::new(),
            ready: VecDeque::new(),
            held: Vec::new(),
            early: VecDeque::new(),
            shut_out: VecDeque::new(),
        }
    }

    /// Somebody is in a session here by a token of this API key.
    pub fn note_key(&mut self, session: &SessionId, key: &str) {
        let shared = self.sessions.entry(session.clone()).or_insert_with(|| Shared {
            keys: BTreeSet::new(),
            meeting: meeting_of(session),
            first: rank_first(session, self.pops.keys().copied(), MEETINGS),
            met: BTreeSet::new(),
            hosts: BTreeSet::new(),
            named: BTreeMap::new(),
        });
        if shared.keys.len() > KEYS_MAX || shared.keys.contains(key) {
            return;
        }
        let (is_new, meeting) = (shared.keys.is_empty(), shared.meeting.clone());
        let before = self.heard_by(session);
        if let Some(shared) = self.sessions.get_mut(session) {
            shared.keys.insert(key.into());
        }
        // They are to know all keys.
        self.meet(session, true);
        if is_new {
            self.machine.watch(session);
            self.meetings.insert(meeting.clone(), session.clone());
            let watching = self.watchers.get(session).into_iter().flat_map(BTreeMap::keys);
            let meeting = self.meeters.get(&meeting).into_iter().flat_map(BTreeMap::keys);
            let sharing: BTreeSet<NodeId> = watching.chain(meeting).copied().collect();
            sharing.into_iter().for_each(|node| self.add_host(session, node, None));
            return;
        }
        for node in before {
            if !self.is_granted(session, node) {
                self.tell(node, session, Telling::Unwatch);
                self.shut_out.push_back((node, session.clone()));
                // What is known of its people is known no longer.
                self.machine.ask(session, node);
            }
        }
    }

    /// Says where PoPs meet that the session is here, and to those no longer where they do not meet any more. `again`: to those that know it, too.
    fn meet(&mut self, session: &SessionId, again: bool) {
        let Some(Shared { keys, meeting, first, met, named, .. }) = self.sessions.get_mut(session) else { return };
        let pops = first.iter().filter(|_| keys.len() <= KEYS_MAX).filter_map(|pop| self.pops.get(pop));
        let now: BTreeSet<NodeId> = pops.flatten().copied().collect();
        let before = std::mem::replace(met, now.clone());
        named.retain(|pop, _| first.contains(pop));
        let (meeting, keys): (SessionId, Vec<String>) = (meeting.clone(), keys.iter().map(|key| key.to_string()).collect());
        before.difference(&now).for_each(|node| self.tell(*node, &meeting, Telling::Part));
        let new = now.iter().filter(|node| again || !before.contains(node));
        new.for_each(|node| self.tell(*node, &meeting, Telling::Meet(keys.clone())));
    }

    /// Looks at who ranks first, after the PoPs of `unmet_for` have come, or others have gone.
    fn meet_anew(&mut self, session: &SessionId) {
        let Some(Shared { first, .. }) = self.sessions.get_mut(session) else { return };
        let is_here = |pop: &NodeId| self.pops.contains_key(pop);
        if first.iter().all(is_here) {
            // Whoever did not rank first does so by coming alone.
            let came = self.unmet_for.iter().filter(|pop| is_here(pop) && !first.contains(pop));
            let ranked = rank_first(session, first.iter().chain(came).copied(), MEETINGS);
            if ranked == *first && !self.unmet_for.iter().any(|pop| first.contains(pop)) {
                return;
            }
            *first = ranked;
        } else {
            *first = rank_first(session, self.pops.keys().copied(), MEETINGS);
        }
        self.meet(session, false);
    }

    /// A node of another PoP shares the session, or so it is said: by itself, or by this PoP where it is met.
    fn add_host(&mut self, session: &SessionId, node: NodeId, teller: Option<NodeId>) {
        let is_granted = self.is_granted(session, node);
        let Some(shared) = self.sessions.get_mut(session) else { return };
        if !is_granted {
            // Who has a link and not the keys will not have them before it has another one.
            if let Some(teller) = teller.filter(|_| !self.neighbours.contains_key(&node) && !shared.hosts.contains(&node)) {
                shared.name(teller, node);
            }
        } else if shared.hosts.insert(node) {
            self.tell(node, session, Telling::Watch);
            self.machine.ask(session, node);
            self.machine.begin_digests(session);
        }
    }

    fn is_host(&self, session: &SessionId, node: NodeId) -> bool {
        self.sessions.get(session).is_some_and(|shared| shared.is_host(node))
    }

    /// The same for one that is not here yet: who comes in a moment makes it.
    pub fn note_early_key(&mut self, now: Instant, session: SessionId, key: Box<str>) {
        if self.early.len() < EARLY_MAX {
            self.early.push_back((now, session, key));
        }
    }

    /// The session is here from now on.
    pub fn begin(&mut self, session: &SessionId) {
        self.end(session);
        let keys: Vec<Box<str>> = self.early.iter().filter(|(_, of, _)| of == session).map(|(.., key)| key.clone()).collect();
        keys.iter().for_each(|key| self.note_key(session, key));
    }

    /// The session is not here any longer, or another one of this name.
    pub fn end(&mut self, session: &SessionId) {
        self.heard_by(session).into_iter().for_each(|node| self.tell(node, session, Telling::Unwatch));
        if let Some(Shared { meeting, met, .. }) = self.sessions.remove(session) {
            met.into_iter().for_each(|node| self.tell(node, &meeting, Telling::Part));
            self.meetings.remove(&meeting);
            self.machine.unwatch(session);
        }
    }

    /// See [`Bus::put_participant`](crate::bus::Bus::put_participant).
    pub fn put(&mut self, now: Instant, session: &SessionId, record: &LocalRecord) {
        // What others would not take is counted, and the bus says so in the log.
        let _ = self.machine.put_participant(now, session, record);
    }

    /// See [`Bus::withdraw`](crate::bus::Bus::withdraw).
    pub fn withdraw(&mut self, now: Instant, session: &SessionId, participant: ParticipantId) {
        self.machine.withdraw(now, session, participant);
    }

    /// There is a link with a node of another PoP.
    pub fn link_up(&mut self, now: Instant, peer: &Peer) {
        self.link_down(now, peer.node);
        let (node, incarnation, grants) = (peer.node, peer.incarnation, peer.grants.clone());
        let (pop, watches, meets) = (number_of(&peer.pop), HashSet::new(), HashSet::new());
        self.neighbours.insert(node, Neighbour { pop, incarnation, grants, watches, meets });
        self.pops.entry(pop).or_default().insert(node);
        self.came.insert(pop);
        let (name, pop) = (peer.name.as_str().into(), peer.pop.as_str().into());
        let (load, capacity, draining) = Default::default();
        // Where it is reached is the operator's to say, or its PoP's.
        let (mesh, release, vips) = (None, "".into(), Vec::new());
        self.machine.meet(now, NodeRecord { name, pop, node, incarnation, mesh, release, load, capacity, draining, vips });
        let hears = |session: &&SessionId| self.is_host(session, node) && self.is_granted(session, node);
        let sessions: Vec<SessionId> = self.sessions.keys().filter(hears).cloned().collect();
        for session in &sessions {
            if let Some(shared) = self.sessions.get_mut(session) {
                // It is no longer by what others say.
                shared.forget_host(node);
                shared.hosts.insert(node);
            }
            self.tell(node, session, Telling::Watch);
            self.machine.ask(session, node);
        }
    }

    /// There is none any longer.
    pub fn link_down(&mut self, now: Instant, node: NodeId) {
        if let Some(Neighbour { incarnation, pop, watches, meets, .. }) = self.neighbours.remove(&node) {
            self.machine.part(now, node, incarnation);
            watches.iter().for_each(|session| forget_said(&mut self.watchers, session, node));
            meets.iter().for_each(|meeting| forget_said(&mut self.meeters, meeting, node));
            self.unsent.remove(&node);
            self.ready.retain(|of| *of != node);
            self.held.retain(|of| *of != node);
            for shared in self.sessions.values_mut() {
                shared.met.remove(&node);
            }
            if let Some(nodes) = self.pops.get_mut(&pop) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.pops.remove(&pop);
                    self.has_gone = true;
                }
            }
        }
    }

    /// Whether a node of another PoP may know of people in a session, and be believed who is.
    pub fn is_granted(&self, session: &SessionId, node: NodeId) -> bool {
        self.neighbours.get(&node).zip(self.sessions.get(session)).is_some_and(|(of, shared)| shared.is_granted(of))
    }

    /// Whether all keys of a session that is here are among these.
    pub fn are_held(&self, session: &SessionId, grants: &Grants) -> bool {
        self.has_keys(session) && self.sessions.get(session).is_some_and(|shared| shared.keys.iter().all(|key| grants.holds(key)))
    }

    /// Somebody is in a session here.
    pub fn has_keys(&self, session: &SessionId) -> bool {
        self.sessions.get(session).is_some_and(|shared| !shared.keys.is_empty())
    }

    /// Who is told of a session that he watches, and hears that this node does.
    fn heard_by(&self, session: &SessionId) -> Vec<NodeId> {
        let Some(shared) = self.sessions.get(session) else { return Vec::new() };
        // Who was only named and has a link by now is among them.
        let hears = |node: &NodeId| self.neighbours.get(node).is_some_and(|of| shared.is_granted(of));
        shared.hosts.iter().copied().filter(hears).collect()
    }

    /// A node says something. `false`: it has no link, may not say it, or says too much.
    pub fn hear(&mut self, now: Instant, node: NodeId, presence: Presence) -> bool {
        if matches!(presence.telling, Telling::Meet(_) | Telling::Part | Telling::Hosts(_)) {
            return self.hear_meeting(node, presence);
        }
        let is_granted = self.is_granted(&presence.session, node);
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return false };
        match &presence.telling {
            // It may be granted later, when somebody comes.
            Telling::Watch if neighbour.watches.len() >= WATCHES_MAX => return neighbour.watches.contains(&presence.session),
            Telling::Watch | Telling::Unwatch => {
                if matches!(presence.telling, Telling::Watch) {
                    neighbour.watches.insert(presence.session.clone());
                    self.watchers.entry(presence.session.clone()).or_default().insert(node, ());
                    if is_granted {
                        self.add_host(&presence.session, node, None);
                        self.machine.begin_digests(&presence.session);
                    }
                } else {
                    neighbour.watches.remove(&presence.session);
                    forget_said(&mut self.watchers, &presence.session, node);
                    self.sessions.get_mut(&presence.session).into_iter().for_each(|shared| shared.forget_host(node));
                }
                // What it had to say before somebody was here was not for this node; whom it shuts out it tells of nobody.
                if is_granted {
                    self.machine.ask(&presence.session, node);
                }
            }
            Telling::Participant(..) | Telling::Digest(_) | Telling::Page(..) if !is_granted => return false,
            _ => {
                // Of what it does not watch it would not hear who goes.
                let shares = is_granted && neighbour.watches.contains(&presence.session);
                if let Some(answer) = self.machine.handle_presence(now, node, presence, shares) {
                    self.push(node, answer);
                }
            }
        }
        true
    }

    /// The same of who meets whom.
    fn hear_meeting(&mut self, node: NodeId, Presence { session: meeting, telling }: Presence) -> bool {
        let session = self.meetings.get(&meeting).cloned();
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return false };
        match telling {
            Telling::Meet(_) if neighbour.meets.len() >= WATCHES_MAX && !neighbour.meets.contains(&meeting) => return false,
            Telling::Meet(keys) => {
                neighbour.meets.insert(meeting.clone());
                self.meeters.entry(meeting.clone()).or_default().insert(node, keys);
                self.introduce(node, &meeting);
                if let Some(session) = session {
                    self.add_host(&session, node, None);
                }
            }
            Telling::Part => {
                neighbour.meets.remove(&meeting);
                forget_said(&mut self.meeters, &meeting, node);
            }
            Telling::Hosts(nodes) => {
                let (Some(session), teller) = (session, neighbour.pop) else { return true };
                if !self.sessions.get(&session).is_some_and(|shared| shared.met.contains(&node)) {
                    return false;
                }
                nodes.into_iter().for_each(|node| self.add_host(&session, node, Some(teller)));
            }
            _ => {}
        }
        true
    }

    /// Tells one that meets others of these, and these of it: whose certificates have each other's keys.
    fn introduce(&mut self, node: NodeId, meeting: &SessionId) {
        let Some(of_meeting) = self.meeters.get(meeting) else { return };
        let Some(of_one) = of_meeting.get(&node) else { return };
        let holds = |node: NodeId, keys: &[String]| {
            self.neighbours.get(&node).is_some_and(|Neighbour { grants, .. }| keys.iter().all(|key| grants.holds(key)))
        };
        let others = of_meeting.iter().filter(|(other, keys)| **other != node && holds(node, keys) && holds(**other, of_one));
        let others: Vec<NodeId> = others.map(|(other, _)| *other).take(HOSTS_MAX).collect();
        for other in &others {
            self.tell(*other, meeting, Telling::Hosts(vec![node]));
        }
        if !others.is_empty() {
            self.tell(node, meeting, Telling::Hosts(others));
        }
    }

    /// What came of a participant is not believed now: it is told again.
    pub fn forget_record(&mut self, session: &SessionId, key: RemoteKey) {
        self.machine.forget_record(session, key);
    }

    /// See [`Bus::tell_again`](crate::bus::Bus::tell_again).
    pub fn tell_again(&mut self, node: NodeId) {
        self.machine.tell_again(node);
    }

    /// To be called each some ten milliseconds.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.machine.handle_timeout(now);
        self.ready.extend(self.held.drain(..));
        self.meet_some();
        while self.early.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= EARLY_LIFE) {
            self.early.pop_front();
        }
    }

    /// Looks at who ranks first in some of the sessions, after PoPs have come or gone.
    fn meet_some(&mut self) {
        if self.unmet.is_empty() && (self.has_gone || !self.came.is_empty()) {
            self.has_gone = false;
            self.unmet_for = std::mem::take(&mut self.came).into_iter().collect();
            self.unmet = self.sessions.keys().cloned().collect();
        }
        let some = self.unmet.split_off(self.unmet.len().saturating_sub(MEETS_PER_TURN));
        some.iter().for_each(|session| self.meet_anew(session));
    }

    fn tell(&mut self, node: NodeId, session: &SessionId, telling: Telling) {
        self.push(node, Presence { session: session.clone(), telling });
    }

    fn push(&mut self, node: NodeId, presence: Presence) {
        let unsent = self.unsent.entry(node).or_insert_with(|| {
            self.ready.push_back(node);
            Unsent::default()
        });
        unsent.len += cost(&presence);
        unsent.waiting.push_back(presence);
    }

    /// The next that is ready.
    fn pop(&mut self, has_room: impl Fn(NodeId) -> bool) -> Option<(NodeId, Presence)> {
        while let Some(node) = self.ready.pop_front() {
            // Its link may have ended.
            let Some(unsent) = self.unsent.get_mut(&node) else { continue };
            if !has_room(node) && unsent.len <= UNSENT_LEN_MAX {
                self.held.push(node);
                continue;
            }
            let Some(presence) = unsent.waiting.pop_front() else {
                self.unsent.remove(&node);
                continue;
            };
            unsent.len -= cost(&presence);
            self.ready.push_back(node);
            return Some((node, presence));
        }
        None
    }

    /// What to say next, and to whom. `has_room`: a node's link takes more in this turn.
    pub fn poll_send(&mut self, now: Instant, has_room: impl Fn(NodeId) -> bool) -> Option<(NodeId, Presence)> {
        loop {
            if let Some(next) = self.pop(&has_room) {
                return Some(next);
            }
            let (to, wire) = self.machine.poll(now)?;
            let Some(presence) = wire.into_presence() else { continue };
            match to {
                Some(node) if self.is_host(&presence.session, node) && self.is_granted(&presence.session, node) => {
                    self.push(node, presence)
                }
                Some(node) => {
                    if let Telling::Ask(from, number) = presence.telling {
                        self.machine.answer_with_nobody(now, node, presence.session, from, number);
                    }
                }
                None => {
                    let to: Vec<NodeId> = match self.watchers.get(&presence.session) {
                        Some(of) => self.heard_by(&presence.session).into_iter().filter(|node| of.contains_key(node)).collect(),
                        None => Vec::new(),
                    };
                    if to.is_empty() && matches!(presence.telling, Telling::Digest(_)) {
                        self.machine.end_digests(&presence.session);
                    }
                    to.into_iter().for_each(|node| self.push(node, presence.clone()));
                }
            }
        }
    }

    /// What others did.
    pub fn poll_event(&mut self) -> Option<BusEvent> {
        self.machine.poll_event()
    }

    /// A node that may hear of a session no longer: what it was sent of it ends.
    pub fn poll_shut_out(&mut self) -> Option<(NodeId, SessionId)> {
        self.shut_out.pop_front()
    }

    /// Who meets others here, of all sessions.
    pub fn meets(&self) -> usize {
        self.neighbours.values().map(|of| of.meets.len()).sum()
    }

    /// People of other PoPs that are known.
    pub fn participants(&self) -> u64 {
        self.machine.counters().participants()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pop_schemas::Identity;
    use pop_session::Kind;
    use pop_session::member::Permissions;
    use pop_session::placement::rank;
    use pop_session::presence::{Manifest, Version};

    use super::*;

    const STEP: Duration = Duration::from_millis(25);

    fn session() -> SessionId {
        SessionId::new("room").unwrap()
    }

    fn record(pop: &str) -> NodeRecord {
        NodeRecord {
            name: "a".into(),
            pop: pop.into(),
            node: NodeId::of(pop, "a"),
            incarnation: Incarnation { start: 1, nonce: 7 },
            mesh: None,
            release: "".into(),
            load: 0,
            capacity: 0,
            draining: false,
            vips: Vec::new(),
        }
    }

    fn peer(pop: &str, grants: Grants) -> Peer {
        Peer {
            node: NodeId::of(pop, "a"),
            name: "a".to_owned(),
            pop: pop.to_owned(),
            incarnation: record(pop).incarnation,
            number: 1,
            their_number: 1,
            version: 1,
            workers: Vec::new(),
            address: "192.0.2.1:7890".parse().unwrap(),
            playout: Duration::ZERO,
            grants,
        }
    }

    fn local(participant: u64, counter: u32, is_here: bool) -> LocalRecord {
        let manifest = Manifest::new(Identity::new("ann").unwrap(), Kind::Member, Permissions::PUBLISHER);
        LocalRecord {
            participant: ParticipantId(participant),
            version: Version { epoch: 0, counter },
            manifest: is_here.then_some(manifest),
        }
    }

    /// Nodes of PoPs, each linked with each, and whom each believes to be in the session.
    struct Rig {
        now: Instant,
        names: Vec<&'static str>,
        spans: Vec<Spans>,
        people: Vec<BTreeMap<u64, u32>>,
        /// What is lost on the way, as with a link that ends.
        cut: bool,
        /// How often each of these was said: from where, and to where.
        said: BTreeMap<(usize, usize), usize>,
    }

    impl Rig {
        /// With what each PoP's certificate carries.
        fn new(pops: &[(&'static str, Grants)]) -> Rig {
            let names: Vec<&str> = pops.iter().map(|(pop, _)| *pop).collect();
            let spans = names.iter().map(|pop| Spans::new(&record(pop))).collect();
            let people = names.iter().map(|_| BTreeMap::new()).collect();
            let mut rig = Rig { now: Instant::now(), names, spans, people, cut: false, said: BTreeMap::new() };
            for (at, spans) in rig.spans.iter_mut().enumerate() {
                for (_, (pop, grants)) in pops.iter().enumerate().filter(|(other, _)| *other != at) {
                    spans.link_up(rig.now, &peer(pop, grants.clone()));
                }
            }
            rig
        }

        fn run(&mut self, steps: usize) {
            for _ in 0..steps {
                self.now += STEP;
                for at in 0..self.spans.len() {
                    self.spans[at].handle_timeout(self.now);
                    while let Some((to, presence)) = self.spans[at].poll_send(self.now, |_| true) {
                        let from = NodeId::of(self.names[at], "a");
                        let other = self.names.iter().position(|pop| NodeId::of(pop, "a") == to).unwrap();
                        *self.said.entry((at, other)).or_default() += 1;
                        if !self.cut {
                            self.spans[other].hear(self.now, from, presence);
                        }
                    }
                }
                for (spans, people) in self.spans.iter_mut().zip(&mut self.people) {
                    while let Some(event) = spans.poll_event() {
                        if let BusEvent::Record { record, .. } = event {
                            match record.manifest {
                                Some(_) => drop(people.insert(record.key.participant.0, record.version.counter)),
                                None => drop(people.remove(&record.key.participant.0)),
                            }
                        }
                    }
                }
            }
        }

        fn enter(&mut self, at: usize, participant: u64, key: &str) {
            self.spans[at].put(self.now, &session(), &local(participant, 1, true));
            self.spans[at].note_key(&session(), key);
        }

        fn known(&self, at: usize) -> Vec<u64> {
            self.people[at].keys().copied().collect()
        }
    }

    #[test]
    fn who_comes_and_goes_is_known_where_the_key_is_granted_and_nowhere_else() {
        let key = || Grants::of(["key"]);
        let mut rig = Rig::new(&[("fra", key()), ("sin", key()), ("ams", Grants::of(["another"]))]);
        rig.enter(0, 1, "key");
        rig.enter(2, 3, "key");
        rig.run(4);
        rig.enter(1, 2, "key");
        rig.run(4);
        assert_eq!((rig.known(0), rig.known(1), rig.known(2)), (vec![2], vec![1], Vec::new()));
        rig.spans[0].put(rig.now, &session(), &local(1, 2, true));
        rig.run(2);
        assert_eq!(rig.people[1].get(&1), Some(&2));
        rig.spans[0].put(rig.now, &session(), &local(1, 3, false));
        rig.run(2);
        assert_eq!(rig.known(1), Vec::<u64>::new());
    }

    #[test]
    fn what_a_link_lost_comes_with_a_digest_and_a_link_that_is_back_brings_all() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::all())]);
        rig.enter(0, 1, "key");
        rig.enter(1, 2, "key");
        rig.run(4);
        rig.cut = true;
        rig.spans[0].put(rig.now, &session(), &local(1, 2, true));
        rig.run(4);
        rig.cut = false;
        rig.run(100);
        assert_eq!(rig.people[1].get(&1), Some(&2));
        let (fra, sin) = (peer("fra", Grants::all()), peer("sin", Grants::all()));
        rig.spans[0].link_down(rig.now, sin.node);
        rig.spans[1].link_down(rig.now, fra.node);
        rig.spans[0].put(rig.now, &session(), &local(1, 3, false));
        rig.spans[0].put(rig.now, &session(), &local(4, 1, true));
        rig.run(100);
        assert_eq!(rig.known(1), [1], "the room keeps them as long as it likes");
        rig.spans[0].link_up(rig.now, &sin);
        rig.spans[1].link_up(rig.now, &fra);
        rig.run(100);
        assert_eq!((rig.known(0), rig.known(1)), (vec![2], vec![4]));
    }

    #[test]
    fn what_stays_as_it_is_is_told_ever_more_seldom_and_what_is_missed_comes_as_soon_as_ever() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::all())]);
        rig.enter(0, 1, "key");
        rig.enter(1, 2, "key");
        let minute = |rig: &mut Rig| {
            let before = rig.said.clone();
            rig.run(2_400);
            [(0, 1), (1, 0)].map(|of| rig.said[&of] - before.get(&of).copied().unwrap_or_default())
        };
        let minutes: Vec<[usize; 2]> = (0..3).map(|_| minute(&mut rig)).collect();
        assert!(minutes[0].iter().all(|count| (6..16).contains(count)), "{minutes:?}");
        assert!(minutes[2].iter().all(|count| (2..4).contains(count)), "{minutes:?}");
        rig.cut = true;
        rig.spans[0].put(rig.now, &session(), &local(1, 2, true));
        rig.run(4);
        rig.cut = false;
        rig.run(100);
        assert_eq!(rig.people[1].get(&1), Some(&2), "of what changed there is a digest soon");
        minute(&mut rig);
        minute(&mut rig);
        rig.people[1].clear();
        rig.spans[1].forget_record(&session(), RemoteKey { node: NodeId::of("fra", "a").0, participant: ParticipantId(1) });
        rig.run(100);
        assert_eq!(rig.known(1), [1], "nor does what was not believed wait for one");
        minute(&mut rig);
        rig.cut = true;
        rig.spans[0].withdraw(rig.now, &session(), ParticipantId(1));
        rig.run(4);
        rig.cut = false;
        rig.run(100);
        assert_eq!(rig.known(1), Vec::<u64>::new(), "nor who has gone to another node");
    }

    #[test]
    fn a_session_that_nobody_shares_costs_no_digests_until_somebody_does() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::all())]);
        let has_digests = |rig: &Rig| !format!("{:?}", rig.spans[0].machine).contains("digest_at: None");
        rig.enter(0, 1, "key");
        assert!(has_digests(&rig));
        rig.run(400);
        assert!(!has_digests(&rig));
        rig.enter(1, 2, "key");
        rig.run(20);
        assert!(has_digests(&rig));
        let before = rig.said[&(0, 1)];
        rig.run(200);
        assert_eq!(rig.said[&(0, 1)] - before, 2, "after 1.5 s and after 3 s");
        // Who goes takes them with him.
        rig.spans[1].end(&session());
        rig.run(2_000);
        assert!(!has_digests(&rig));
    }

    #[test]
    fn a_second_key_shuts_out_who_has_the_first_alone() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::of(["one"]))]);
        rig.enter(0, 1, "one");
        rig.enter(1, 2, "one");
        rig.run(4);
        assert_eq!((rig.known(0), rig.known(1)), (vec![2], vec![1]));
        rig.enter(0, 3, "two");
        rig.run(200);
        assert_eq!(rig.spans[0].poll_shut_out().map(|(_, session)| session), Some(session()));
        assert_eq!((rig.known(0), rig.known(1)), (Vec::new(), Vec::new()), "neither hears of the other");
    }

    #[test]
    fn who_is_shut_out_while_he_is_asked_is_known_no_longer() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::of(["one"]))]);
        rig.enter(0, 1, "one");
        rig.enter(1, 2, "one");
        rig.run(4);
        // It is asked, and does not answer.
        let sin = NodeId::of("sin", "a");
        rig.cut = true;
        rig.spans[0].machine.ask(&session(), sin);
        rig.run(1);
        rig.cut = false;
        rig.enter(0, 3, "two");
        rig.run(200);
        assert_eq!((rig.known(0), rig.known(1)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn nobody_hears_of_a_newcomer_before_its_key_is_known() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::of(["one"]))]);
        rig.enter(0, 1, "one");
        rig.enter(1, 2, "one");
        rig.run(4);
        // As the node does it: the key, the record, and the key once more.
        rig.spans[0].note_key(&session(), "two");
        rig.spans[0].put(rig.now, &session(), &local(3, 1, true));
        rig.run(2);
        assert!(!rig.people[1].contains_key(&3));
        // One who makes the room comes before it.
        let other = SessionId::new("other").unwrap();
        rig.spans[0].note_early_key(rig.now, other.clone(), "two".into());
        rig.spans[0].begin(&other);
        assert!(!rig.spans[0].is_granted(&other, NodeId::of("sin", "a")));
        rig.spans[0].note_key(&other, "one");
        assert!(!rig.spans[0].is_granted(&other, NodeId::of("sin", "a")), "both keys count");
        rig.run(500);
        rig.spans[0].begin(&other);
        rig.spans[0].note_key(&other, "one");
        assert!(rig.spans[0].is_granted(&other, NodeId::of("sin", "a")), "he did not come");
    }

    #[test]
    fn what_was_not_believed_is_told_again() {
        let mut rig = Rig::new(&[("fra", Grants::all()), ("sin", Grants::all())]);
        rig.enter(0, 1, "key");
        rig.enter(1, 2, "key");
        rig.run(4);
        rig.people[1].clear();
        rig.spans[1].forget_record(&session(), RemoteKey { node: NodeId::of("fra", "a").0, participant: ParticipantId(1) });
        rig.run(100);
        assert_eq!(rig.known(1), [1]);
    }

    const MANY: [&str; 9] = ["ams", "fra", "khi", "nyc", "sea", "sin", "syd", "tyo", "waw"];

    /// Those where the session's PoPs meet, the others, as one of them sees it.
    fn ranked(of: usize) -> Vec<usize> {
        let others = MANY.iter().enumerate().filter(|(at, _)| *at != of);
        let ranked = rank(&session(), others.map(|(_, pop)| number_of(pop)));
        ranked.into_iter().map(|number| MANY.iter().position(|pop| number_of(pop) == number).unwrap()).collect()
    }

    #[test]
    fn those_who_share_a_session_meet_at_three_pops_and_nobody_else_hears_of_it() {
        let mut rig = Rig::new(&MANY.map(|pop| (pop, Grants::all())));
        // The two that rank last.
        let (a, b) = (ranked(0)[7], ranked(0)[6]);
        rig.enter(a, 1, "key");
        rig.run(200);
        let heard: BTreeSet<usize> = rig.said.keys().map(|(_, to)| *to).collect();
        assert_eq!(heard, ranked(a)[..3].iter().copied().collect(), "and nothing again and again");
        assert!(rig.said.values().all(|count| *count == 1), "{:?}", rig.said);
        rig.enter(b, 2, "key");
        rig.run(20);
        assert_eq!((rig.known(a), rig.known(b)), (vec![2], vec![1]));
        let heard: BTreeSet<usize> = rig.said.keys().map(|(_, to)| *to).collect();
        assert_eq!(heard.len(), 5, "{heard:?}");
        // One where they meet has people, too.
        rig.enter(ranked(a)[0], 3, "key");
        rig.run(20);
        assert_eq!((rig.known(a), rig.known(b), rig.known(ranked(a)[0])), (vec![2, 3], vec![1, 3], vec![1, 2]));
    }

    #[test]
    fn who_comes_meets_the_others_though_those_where_they_met_are_gone() {
        let mut rig = Rig::new(&MANY.map(|pop| (pop, Grants::all())));
        let (a, b) = (ranked(0)[7], ranked(0)[6]);
        rig.enter(a, 1, "key");
        rig.run(4);
        for gone in ranked(a)[..3].to_vec() {
            for at in 0..MANY.len() {
                let node = NodeId::of(MANY[gone], "a");
                rig.spans[at].link_down(rig.now, node);
            }
        }
        rig.run(4);
        rig.enter(b, 2, "key");
        rig.run(20);
        assert_eq!((rig.known(a), rig.known(b)), (vec![2], vec![1]));
    }

    #[test]
    fn nobody_is_told_who_shares_a_session_whose_keys_he_has_not() {
        let (a, b) = (ranked(0)[7], ranked(0)[6]);
        let grants = |at: usize| if at == b { Grants::of(["another"]) } else { Grants::of(["key"]) };
        let pops: Vec<_> = MANY.iter().enumerate().map(|(at, pop)| (*pop, grants(at))).collect();
        let mut rig = Rig::new(&pops);
        rig.enter(a, 1, "key");
        rig.run(4);
        let before = rig.said.clone();
        // It says that it has, or that it needs another one.
        for key in ["key", "another"] {
            rig.enter(b, 2, key);
            rig.run(20);
            let told: Vec<_> = rig.said.keys().filter(|(_, to)| *to == b).collect();
            assert!(told.is_empty(), "{told:?}");
        }
        rig.said.retain(|(from, _), _| *from == a);
        assert_eq!(rig.said, before, "nor is the one told of it");
        // Who names others unasked is not heard.
        let (now, hosts) = (rig.now, Presence { session: meeting_of(&session()), telling: Telling::Hosts(vec![NodeId::of(MANY[b], "a")]) });
        assert!(!rig.spans[a].hear(now, NodeId::of(MANY[b], "a"), hosts.clone()));
        assert!(rig.spans[a].hear(now, NodeId::of(MANY[ranked(a)[0]], "a"), hosts));
        rig.run(20);
        assert_eq!((rig.known(a), rig.known(b)), (vec![], vec![]), "and who is named needs the keys all the same");
        let names = Telling::Hosts((0..HOSTS_MAX as u64).map(NodeId).collect());
        let hosts = Presence { session: meeting_of(&session()), telling: names };
        assert!(rig.spans[a].hear(rig.now, NodeId::of(MANY[ranked(a)[0]], "a"), hosts));
        rig.enter(ranked(0)[5], 7, "key");
        rig.run(20);
        assert_eq!(rig.known(a), [7], "nor keeps who is made up a real one out");
    }

    #[test]
    fn who_ends_a_session_and_begins_it_again_is_in_it_with_the_others() {
        let mut rig = Rig::new(&MANY.map(|pop| (pop, Grants::all())));
        let (a, b) = (ranked(0)[7], ranked(0)[6]);
        rig.enter(a, 1, "key");
        rig.enter(b, 2, "key");
        rig.run(20);
        for who in 3..6 {
            let left = local(if who == 3 { 2 } else { who - 1 }, 2, false);
            rig.spans[b].put(rig.now, &session(), &left);
            rig.run(2);
            rig.spans[b].end(&session());
            rig.people[b].clear();
            rig.run(20);
            assert_eq!(rig.known(a), Vec::<u64>::new());
            rig.enter(b, who, "key");
            rig.run(20);
            assert_eq!((rig.known(a), rig.known(b)), (vec![who], vec![1]));
        }
    }

    #[test]
    fn what_is_said_unasked_or_too_often_counts_for_nothing() {
        let mut rig = Rig::new(&[("fra", Grants::of(["key"])), ("ams", Grants::none())]);
        rig.enter(0, 1, "key");
        let (now, ams) = (rig.now, NodeId::of("ams", "a"));
        let mut say = |session: &str, telling| {
            let session = SessionId::new(session).unwrap();
            rig.spans[0].hear(now, ams, Presence { session, telling })
        };
        let garbage = || std::sync::Arc::<[u8]>::from(b"garbage".as_slice());
        assert!(!say("room", Telling::Participant(ParticipantId(9), garbage())));
        assert!(!say("room", Telling::Page(ParticipantId(0), 1, garbage())));
        assert!(!say("room", Telling::Digest(garbage())));
        assert!((0..WATCHES_MAX).all(|n| say(&format!("room {n}"), Telling::Watch)));
        assert!(!say("one more", Telling::Watch));
        let meet = || Telling::Meet(vec!["key".to_owned()]);
        assert!((0..WATCHES_MAX).all(|n| say(&format!("room {n}"), meet())));
        assert!(!say("one more", meet()) && say("room 7", meet()) && say("room 7", Telling::Part) && say("one more", meet()));
        assert!(say("room 1", Telling::Unwatch) && say("one more", Telling::Watch));
        assert!(say("room", Telling::Ask(ParticipantId(0), 5)), "it is told that nobody is here");
        let said: Vec<Telling> =
            std::iter::from_fn(|| rig.spans[0].poll_send(now, |_| true)).map(|(_, presence)| presence.telling).collect();
        let bytes = said.iter().find_map(|telling| if let Telling::Page(_, 5, bytes) = telling { Some(bytes) } else { None });
        let bytes = bytes.expect("an answer");
        assert!(bytes.len() < 64, "{}", bytes.len());
        assert!(!rig.spans[0].hear(now, NodeId(9), Presence { session: session(), telling: Telling::Watch }), "one without a link");
    }

    const CROWD: usize = 8_000;

    /// A node of fra with so many sessions, that has told all that it had to.
    fn crowded(sessions: usize, pops: usize) -> (Spans, Instant) {
        let (mut spans, mut now) = (Spans::new(&record("fra")), Instant::now());
        for pop in 0..pops {
            spans.link_up(now, &peer(&format!("pop-{pop:03}"), Grants::all()));
        }
        for session in 0..sessions {
            spans.note_key(&SessionId::new(&format!("room-{session}")).unwrap(), "key");
        }
        for _ in 0..100 {
            turn(&mut spans, &mut now, |_| true);
        }
        (spans, now)
    }

    /// One turn: what is told in it.
    fn turn(spans: &mut Spans, now: &mut Instant, has_room: impl Fn(NodeId) -> bool) -> Vec<(NodeId, Presence)> {
        *now += STEP;
        spans.handle_timeout(*now);
        std::iter::from_fn(|| spans.poll_send(*now, &has_room)).collect()
    }

    #[test]
    fn a_pop_that_comes_is_ranked_for_some_sessions_at_a_time_and_told_of_each_once() {
        let (mut spans, mut now) = crowded(CROWD, 0);
        let nodes =
            ["a", "b", "c", "d"].map(|name| Peer { node: NodeId::of("ams", name), name: name.to_owned(), ..peer("ams", Grants::all()) });
        nodes.iter().for_each(|peer| spans.link_up(now, peer));
        let mut told: BTreeMap<(NodeId, SessionId), usize> = BTreeMap::new();
        for _ in 0..2 * CROWD / MEETS_PER_TURN {
            let said = turn(&mut spans, &mut now, |_| true);
            let meets = said.into_iter().filter(|(_, presence)| matches!(presence.telling, Telling::Meet(_)));
            let before = told.values().sum::<usize>();
            meets.for_each(|(node, presence)| *told.entry((node, presence.session)).or_default() += 1);
            let count = told.values().sum::<usize>() - before;
            assert!(count <= nodes.len() * MEETS_PER_TURN, "{count} in one turn");
        }
        assert_eq!(told.len(), nodes.len() * CROWD);
        assert!(told.values().all(|count| *count == 1));
    }

    #[test]
    fn who_ranks_first_is_the_same_however_pops_came_and_went() {
        let (mut spans, mut now) = crowded(500, 20);
        let names: Vec<String> = (0..40).map(|pop| format!("pop-{pop:03}")).collect();
        for round in 0..200_usize {
            let pop = &names[round * 7 % 40];
            match spans.pops.contains_key(&number_of(pop)) {
                true => spans.link_down(now, NodeId::of(pop, "a")),
                false => spans.link_up(now, &peer(pop, Grants::all())),
            }
            if round % 3 == 0 {
                turn(&mut spans, &mut now, |_| true);
            }
        }
        (0..4).for_each(|_| drop(turn(&mut spans, &mut now, |_| true)));
        for (session, shared) in &spans.sessions {
            let ranked = rank(session, spans.pops.keys().copied());
            assert_eq!(shared.first, ranked[..MEETINGS]);
            let met: BTreeSet<NodeId> = ranked[..MEETINGS].iter().flat_map(|pop| spans.pops[pop].clone()).collect();
            assert_eq!(shared.met, met);
        }
    }

    #[test]
    fn what_a_link_has_no_room_for_waits_and_nothing_is_lost() {
        let (mut spans, mut now) = crowded(CROWD, 0);
        let (slow, quick) = (peer("ams", Grants::all()), peer("sin", Grants::all()));
        [&slow, &quick].into_iter().for_each(|peer| spans.link_up(now, peer));
        // Of one that takes a hundred messages in a turn, and one that takes all.
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut turns = 0;
        while counts.get(&slow.node).is_none_or(|count| *count < CROWD) {
            let room = std::cell::Cell::new(100);
            let has_room = |node| node != slow.node || room.replace(room.get() - i32::from(room.get() > 0)) > 0;
            for (node, presence) in turn(&mut spans, &mut now, has_room) {
                assert!(matches!(presence.telling, Telling::Meet(_)));
                *counts.entry(node).or_default() += 1;
            }
            turns += 1;
            assert!(turns <= 100, "{counts:?}");
            assert!(turns < 20 || counts[&quick.node] == CROWD, "who is quick does not wait for who is slow");
        }
        assert!(turns >= 80, "{turns}");
        assert_eq!(counts[&slow.node], CROWD);
    }

    #[test]
    fn who_takes_nothing_does_not_make_others_hold_what_he_is_told_for_ever() {
        let (mut spans, mut now) = crowded(CROWD, 0);
        let ams = peer("ams", Grants::all());
        spans.link_up(now, &ams);
        let mut told = 0;
        for round in 0..40 {
            for session in 0..CROWD {
                // Each new key is told to all.
                spans.note_key(&SessionId::new(&format!("room-{session}")).unwrap(), &format!("key-{round}"));
            }
            told += turn(&mut spans, &mut now, |_| false).len();
            assert!(spans.unsent[&ams.node].len <= UNSENT_LEN_MAX, "{}", spans.unsent[&ams.node].len);
        }
        assert!(told > CROWD);
    }

    #[test]
    fn who_makes_up_names_takes_no_place_of_what_another_one_says() {
        let mut rig = Rig::new(&MANY.map(|pop| (pop, Grants::all())));
        let (a, b) = (ranked(0)[7], ranked(0)[6]);
        let (liar, honest) = (NodeId::of(MANY[ranked(a)[0]], "a"), NodeId::of(MANY[ranked(a)[1]], "a"));
        rig.enter(a, 1, "key");
        rig.run(4);
        // The two have no link yet.
        let (of_a, of_b) = (peer(MANY[a], Grants::all()), peer(MANY[b], Grants::all()));
        rig.spans[a].link_down(rig.now, of_b.node);
        rig.spans[b].link_down(rig.now, of_a.node);
        let mut hear = |teller: NodeId, nodes: Vec<NodeId>| {
            let hosts = Presence { session: meeting_of(&session()), telling: Telling::Hosts(nodes) };
            assert!(rig.spans[a].hear(rig.now, teller, hosts));
        };
        hear(liar, (0..HOSTS_MAX as u64).map(NodeId).collect());
        hear(honest, vec![of_b.node]);
        (0..100).for_each(|n| hear(liar, (n * 1_000..).take(HOSTS_MAX).map(NodeId).collect()));
        let named = rig.spans[a].sessions[&session()].named.values().map(VecDeque::len).sum::<usize>();
        assert_eq!(named, NAMED_MAX + 1);
        rig.spans[a].link_up(rig.now, &of_b);
        let told: Vec<_> = std::iter::from_fn(|| rig.spans[a].poll_send(rig.now, |_| true)).collect();
        let watch = Presence { session: session(), telling: Telling::Watch };
        assert!(told.contains(&(of_b.node, watch)), "it shares it, as the honest one says");
        // By the newest word of the liar another one that is real comes in, too.
        hear_again(&mut rig, a, liar, b);
    }

    fn hear_again(rig: &mut Rig, at: usize, teller: NodeId, named: usize) {
        let of_named = peer(MANY[named], Grants::all());
        rig.spans[at].link_down(rig.now, of_named.node);
        rig.spans[at].sessions.get_mut(&session()).unwrap().hosts.clear();
        let hosts = Presence { session: meeting_of(&session()), telling: Telling::Hosts(vec![of_named.node]) };
        assert!(rig.spans[at].hear(rig.now, teller, hosts));
        assert!(rig.spans[at].sessions[&session()].is_host(of_named.node));
    }

    #[test]
    fn those_where_a_session_is_met_no_longer_are_told_so_though_its_keys_change() {
        let mut rig = Rig::new(&MANY.map(|pop| (pop, Grants::all())));
        let a = ranked(0)[7];
        let first = NodeId::of(MANY[ranked(a)[0]], "a");
        let fourth = NodeId::of(MANY[ranked(a)[3]], "a");
        let away = peer(MANY[ranked(a)[0]], Grants::all());
        rig.spans[a].link_down(rig.now, first);
        rig.enter(a, 1, "key");
        rig.run(4);
        let said = |rig: &mut Rig| -> Vec<(NodeId, Telling)> {
            std::iter::from_fn(|| rig.spans[a].poll_send(rig.now, |_| true)).map(|(node, presence)| (node, presence.telling)).collect()
        };
        assert!(rig.spans[a].sessions[&session()].met.contains(&fourth));
        // The first is back, and in the same turn there is another key.
        rig.spans[a].link_up(rig.now, &away);
        rig.spans[a].note_key(&session(), "another");
        rig.now += STEP;
        rig.spans[a].handle_timeout(rig.now);
        let told = said(&mut rig);
        assert!(told.contains(&(fourth, Telling::Part)), "{told:?}");
        assert!(told.contains(&(first, Telling::Meet(vec!["another".to_owned(), "key".to_owned()]))), "{told:?}");
        // One key too many: it is met nowhere.
        (0..KEYS_MAX).for_each(|n| rig.spans[a].note_key(&session(), &format!("key-{n}")));
        let parted = said(&mut rig).into_iter().filter(|(_, telling)| *telling == Telling::Part).map(|(node, _)| node);
        assert_eq!(parted.collect::<BTreeSet<_>>(), ranked(a)[..3].iter().map(|pop| NodeId::of(MANY[*pop], "a")).collect());
    }

    #[test]
    fn nobody_is_asked_who_does_not_share_a_session() {
        let (mut spans, mut now) = crowded(100, 20);
        let asks = |spans: &Spans| {
            format!("{:?}", spans.machine).matches("PageAsk").count() + format!("{:?}", spans.machine).matches("Queued").count()
        };
        spans.note_key(&session(), "key");
        assert_eq!(asks(&spans), 0, "of twenty PoPs");
        let ams = peer("ams", Grants::all());
        spans.link_up(now, &ams);
        assert_eq!(asks(&spans), 0, "of a hundred sessions");
        spans.hear(now, ams.node, Presence { session: session(), telling: Telling::Watch });
        let asked = |told: &[(NodeId, Presence)]| told.iter().filter(|(_, presence)| matches!(presence.telling, Telling::Ask(..))).count();
        assert_eq!(asked(&turn(&mut spans, &mut now, |_| true)), 1);
        // When the link is back, it is asked before it says anything.
        spans.link_down(now, ams.node);
        spans.link_up(now, &ams);
        assert_eq!(asked(&turn(&mut spans, &mut now, |_| true)), 1);
    }

    /// What it costs that PoPs come and go: printed, since other things run on the machine.
    #[test]
    fn pops_come_and_go_beside_many_sessions_at_little_cost() {
        let (mut spans, mut now) = crowded(CROWD, 299);
        let mut measure = |what: &str, change: &dyn Fn(&mut Spans, Instant)| {
            let (began, mut longest, mut told) = (Instant::now(), Duration::ZERO, 0);
            change(&mut spans, now);
            let changed = began.elapsed();
            let mut all = changed;
            for _ in 0..10 {
                let began = Instant::now();
                told += turn(&mut spans, &mut now, |_| true).len();
                longest = longest.max(began.elapsed());
                all += began.elapsed();
            }
            println!("{what}: {changed:?} at once, {all:?} in all, {longest:?} the longest turn, {told} told");
        };
        measure("nothing", &|_, _| {});
        for name in ["a", "b", "c", "d"] {
            let peer = Peer { node: NodeId::of("ams", name), name: name.to_owned(), ..peer("ams", Grants::all()) };
            measure("a node of a PoP comes", &|spans, now| spans.link_up(now, &peer));
        }
        measure("one goes", &|spans, now| spans.link_down(now, NodeId::of("ams", "a")));
        for name in ["b", "c", "d"] {
            measure("one goes", &|spans, now| spans.link_down(now, NodeId::of("ams", name)));
        }
    }
}
