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

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use pop_relay::control::{HOSTS_MAX, MEET_KEYS_MAX, Presence, Telling};
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::placement::rank;
use pop_session::presence::{LocalRecord, RemoteKey};

use crate::bus::{BusEvent, Machine, NodeRecord};
use crate::mesh::{Grants, Peer};

/// Sessions that one node of another PoP wants to hear of, and those that it meets others for here.
const WATCHES_MAX: usize = 8_192;

/// API keys of a session; one with more is told to nobody.
const KEYS_MAX: usize = MEET_KEYS_MAX;

/// PoPs where those meet that share a session.
const MEETINGS: usize = 3;

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
    /// What it meets others for here, by which keys.
    meets: HashMap<SessionId, Vec<String>>,
}

/// A session that is here, and whose people's keys are known.
struct Shared {
    keys: BTreeSet<Box<str>>,
    /// What it is called where PoPs meet.
    meeting: SessionId,
    /// Those that were told so.
    met: BTreeSet<NodeId>,
    /// Nodes of other PoPs that share it, whether or not there is a link now.
    hosts: BTreeSet<NodeId>,
}

/// See the module.
pub(super) struct Spans {
    machine: Machine,
    sessions: HashMap<SessionId, Shared>,
    /// Of these, by [`Shared::meeting`].
    meetings: HashMap<SessionId, SessionId>,
    neighbours: HashMap<NodeId, Neighbour>,
    /// Neighbours have come or gone, so others may rank first.
    is_unmet: bool,
    unsent: VecDeque<(NodeId, Presence)>,
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
    pub(super) fn new(record: &NodeRecord) -> Spans {
        let machine = Machine::new(record.clone(), GIVE_UP_AFTER).abroad();
        Spans {
            machine,
            sessions: HashMap::new(),
            meetings: HashMap::new(),
            neighbours: HashMap::new(),
            is_unmet: false,
            unsent: VecDeque::new(),
            early: VecDeque::new(),
            shut_out: VecDeque::new(),
        }
    }

    /// Somebody is in a session here by a token of this API key.
    pub(super) fn note_key(&mut self, session: &SessionId, key: &str) {
        let shared = self.sessions.entry(session.clone()).or_insert_with(|| Shared {
            keys: BTreeSet::new(),
            meeting: meeting_of(session),
            met: BTreeSet::new(),
            hosts: BTreeSet::new(),
        });
        if shared.keys.len() > KEYS_MAX || shared.keys.contains(key) {
            return;
        }
        let (is_new, meeting) = (shared.keys.is_empty(), shared.meeting.clone());
        let before = self.heard_by(session);
        if let Some(shared) = self.sessions.get_mut(session) {
            shared.keys.insert(key.into());
            // They are to know all keys.
            shared.met.clear();
        }
        self.meet(session);
        if is_new {
            self.machine.watch(session);
            self.meetings.insert(meeting.clone(), session.clone());
            let shares = |of: &Neighbour| of.watches.contains(session) || of.meets.contains_key(&meeting);
            let sharing: Vec<NodeId> = self.neighbours.iter().filter(|(_, of)| shares(of)).map(|(node, _)| *node).collect();
            sharing.into_iter().for_each(|node| self.add_host(session, node));
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

    /// Says where PoPs meet that the session is here, and to those no longer where they do not meet any more.
    fn meet(&mut self, session: &SessionId) {
        let Some(Shared { keys, meeting, met, .. }) = self.sessions.get_mut(session) else { return };
        let pops = rank(session, self.neighbours.values().map(|of| of.pop));
        let meets = |pop: NodeId| keys.len() <= KEYS_MAX && pops.iter().take(MEETINGS).any(|of| *of == pop);
        let now: BTreeSet<NodeId> = self.neighbours.iter().filter(|(_, of)| meets(of.pop)).map(|(node, _)| *node).collect();
        let telling = |telling| Presence { session: meeting.clone(), telling };
        self.unsent.extend(met.difference(&now).map(|node| (*node, telling(Telling::Part))));
        let keys: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        self.unsent.extend(now.difference(met).map(|node| (*node, telling(Telling::Meet(keys.clone())))));
        *met = now;
    }

    /// A node of another PoP shares the session, or so it is said.
    fn add_host(&mut self, session: &SessionId, node: NodeId) {
        let is_granted = self.is_granted(session, node);
        let Some(shared) = self.sessions.get_mut(session) else { return };
        // Whom others only name takes nobody's place.
        let has_place = is_granted || shared.hosts.len() < HOSTS_MAX;
        if has_place && shared.hosts.insert(node) && is_granted {
            self.tell(node, session, Telling::Watch);
        }
    }

    fn is_host(&self, session: &SessionId, node: NodeId) -> bool {
        self.sessions.get(session).is_some_and(|shared| shared.hosts.contains(&node))
    }

    /// The same for one that is not here yet: who comes in a moment makes it.
    pub(super) fn note_early_key(&mut self, now: Instant, session: SessionId, key: Box<str>) {
        if self.early.len() < EARLY_MAX {
            self.early.push_back((now, session, key));
        }
    }

    /// The session is here from now on.
    pub(super) fn begin(&mut self, session: &SessionId) {
        self.end(session);
        let keys: Vec<Box<str>> = self.early.iter().filter(|(_, of, _)| of == session).map(|(.., key)| key.clone()).collect();
        keys.iter().for_each(|key| self.note_key(session, key));
    }

    /// The session is not here any longer, or another one of this name.
    pub(super) fn end(&mut self, session: &SessionId) {
        self.heard_by(session).into_iter().for_each(|node| self.tell(node, session, Telling::Unwatch));
        if let Some(Shared { meeting, met, .. }) = self.sessions.remove(session) {
            met.into_iter().for_each(|node| self.tell(node, &meeting, Telling::Part));
            self.meetings.remove(&meeting);
            self.machine.unwatch(session);
        }
    }

    /// See [`Bus::put_participant`](crate::bus::Bus::put_participant).
    pub(super) fn put(&mut self, now: Instant, session: &SessionId, record: &LocalRecord) {
        // What others would not take is counted, and the bus says so in the log.
        let _ = self.machine.put_participant(now, session, record);
    }

    /// See [`Bus::withdraw`](crate::bus::Bus::withdraw).
    pub(super) fn withdraw(&mut self, now: Instant, session: &SessionId, participant: ParticipantId) {
        self.machine.withdraw(now, session, participant);
    }

    /// There is a link with a node of another PoP.
    pub(super) fn link_up(&mut self, now: Instant, peer: &Peer) {
        self.link_down(now, peer.node);
        let (node, incarnation, grants) = (peer.node, peer.incarnation, peer.grants.clone());
        let (pop, watches, meets) = (number_of(&peer.pop), HashSet::new(), HashMap::new());
        self.neighbours.insert(node, Neighbour { pop, incarnation, grants, watches, meets });
        let (name, pop) = (peer.name.as_str().into(), peer.pop.as_str().into());
        let (load, capacity, draining) = Default::default();
        // Where it is reached is the operator's to say, or its PoP's.
        let (mesh, release, vips) = (None, "".into(), Vec::new());
        self.is_unmet = true;
        self.machine.meet(now, NodeRecord { name, pop, node, incarnation, mesh, release, load, capacity, draining, vips });
        let hears = |session: &&SessionId| self.is_host(session, node) && self.is_granted(session, node);
        let sessions: Vec<SessionId> = self.sessions.keys().filter(hears).cloned().collect();
        sessions.iter().for_each(|session| self.tell(node, session, Telling::Watch));
    }

    /// There is none any longer.
    pub(super) fn link_down(&mut self, now: Instant, node: NodeId) {
        if let Some(Neighbour { incarnation, .. }) = self.neighbours.remove(&node) {
            self.machine.part(now, node, incarnation);
            self.unsent.retain(|(to, _)| *to != node);
            for shared in self.sessions.values_mut() {
                shared.met.remove(&node);
            }
            self.is_unmet = true;
        }
    }

    /// Whether a node of another PoP may know of people in a session, and be believed who is.
    pub(super) fn is_granted(&self, session: &SessionId, node: NodeId) -> bool {
        let held = self.neighbours.get(&node).map(|of| &of.grants).zip(self.sessions.get(session).map(|shared| &shared.keys));
        held.is_some_and(|(grants, keys)| !keys.is_empty() && keys.len() <= KEYS_MAX && keys.iter().all(|key| grants.holds(key)))
    }

    /// Whether all keys of a session that is here are among these.
    pub(super) fn are_held(&self, session: &SessionId, grants: &Grants) -> bool {
        self.has_keys(session) && self.sessions.get(session).is_some_and(|shared| shared.keys.iter().all(|key| grants.holds(key)))
    }

    /// Somebody is in a session here.
    pub(super) fn has_keys(&self, session: &SessionId) -> bool {
        self.sessions.get(session).is_some_and(|shared| !shared.keys.is_empty())
    }

    /// Who is told of a session that he watches, and hears that this node does.
    fn heard_by(&self, session: &SessionId) -> Vec<NodeId> {
        let hosts = self.sessions.get(session).into_iter().flat_map(|shared| &shared.hosts);
        hosts.copied().filter(|node| self.is_granted(session, *node)).collect()
    }

    /// A node says something. `false`: it has no link, may not say it, or says too much.
    pub(super) fn hear(&mut self, now: Instant, node: NodeId, presence: Presence) -> bool {
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
                    if is_granted {
                        self.add_host(&presence.session, node);
                    }
                } else {
                    neighbour.watches.remove(&presence.session);
                    self.sessions.get_mut(&presence.session).map(|shared| shared.hosts.remove(&node));
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
                    self.unsent.push_back((node, answer));
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
            Telling::Meet(_) if neighbour.meets.len() >= WATCHES_MAX && !neighbour.meets.contains_key(&meeting) => return false,
            Telling::Meet(keys) => {
                neighbour.meets.insert(meeting.clone(), keys);
                self.introduce(node, &meeting);
                if let Some(session) = session {
                    self.add_host(&session, node);
                }
            }
            Telling::Part => drop(neighbour.meets.remove(&meeting)),
            Telling::Hosts(nodes) => {
                let Some(session) = session else { return true };
                if !self.sessions.get(&session).is_some_and(|shared| shared.met.contains(&node)) {
                    return false;
                }
                nodes.into_iter().for_each(|node| self.add_host(&session, node));
            }
            _ => {}
        }
        true
    }

    /// Tells one that meets others of these, and these of it: whose certificates have each other's keys.
    fn introduce(&mut self, node: NodeId, meeting: &SessionId) {
        let Some(one) = self.neighbours.get(&node) else { return };
        let holds =
            |one: &Neighbour, other: &Neighbour| other.meets.get(meeting).is_some_and(|keys| keys.iter().all(|key| one.grants.holds(key)));
        let others = self.neighbours.iter().filter(|(other, of)| **other != node && holds(one, of) && holds(of, one));
        let others: Vec<NodeId> = others.map(|(other, _)| *other).take(HOSTS_MAX).collect();
        for other in &others {
            self.tell(*other, meeting, Telling::Hosts(vec![node]));
        }
        if !others.is_empty() {
            self.tell(node, meeting, Telling::Hosts(others));
        }
    }

    /// What came of a participant is not believed now: it is told again.
    pub(super) fn forget_record(&mut self, session: &SessionId, key: RemoteKey) {
        self.machine.forget_record(session, key);
    }

    /// See [`Bus::tell_again`](crate::bus::Bus::tell_again).
    pub(super) fn tell_again(&mut self, node: NodeId) {
        self.machine.tell_again(node);
    }

    /// To be called each some ten milliseconds.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        // Whether a node lives its link says.
        for (node, of) in &self.neighbours {
            self.machine.hear_alive(now, *node, of.incarnation);
        }
        self.machine.handle_timeout(now);
        if std::mem::take(&mut self.is_unmet) {
            let sessions: Vec<SessionId> = self.sessions.keys().cloned().collect();
            sessions.iter().for_each(|session| self.meet(session));
        }
        while self.early.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= EARLY_LIFE) {
            self.early.pop_front();
        }
    }

    fn tell(&mut self, node: NodeId, session: &SessionId, telling: Telling) {
        self.unsent.push_back((node, Presence { session: session.clone(), telling }));
    }

    /// What to say next, and to whom.
    pub(super) fn poll_send(&mut self, now: Instant) -> Option<(NodeId, Presence)> {
        while self.unsent.is_empty() {
            let (to, wire) = self.machine.poll(now)?;
            let Some(presence) = wire.into_presence() else { continue };
            match to {
                Some(node) if self.is_host(&presence.session, node) && self.is_granted(&presence.session, node) => {
                    self.unsent.push_back((node, presence))
                }
                Some(node) => {
                    if let Telling::Ask(from, number) = presence.telling {
                        self.machine.answer_with_nobody(now, node, presence.session, from, number);
                    }
                }
                None => {
                    let hears = |node: &NodeId| self.neighbours.get(node).is_some_and(|of| of.watches.contains(&presence.session));
                    let to = self.heard_by(&presence.session).into_iter().filter(hears);
                    self.unsent.extend(to.map(|node| (node, presence.clone())).collect::<Vec<_>>());
                }
            }
        }
        self.unsent.pop_front()
    }

    /// What others did.
    pub(super) fn poll_event(&mut self) -> Option<BusEvent> {
        self.machine.poll_event()
    }

    /// A node that may hear of a session no longer: what it was sent of it ends.
    pub(super) fn poll_shut_out(&mut self) -> Option<(NodeId, SessionId)> {
        self.shut_out.pop_front()
    }

    /// People of other PoPs that are known.
    pub(super) fn participants(&self) -> u64 {
        self.machine.counters().participants()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pop_schemas::Identity;
    use pop_session::Kind;
    use pop_session::member::Permissions;
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
                    while let Some((to, presence)) = self.spans[at].poll_send(self.now) {
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
        let said: Vec<Telling> = std::iter::from_fn(|| rig.spans[0].poll_send(now)).map(|(_, presence)| presence.telling).collect();
        let bytes = said.iter().find_map(|telling| if let Telling::Page(_, 5, bytes) = telling { Some(bytes) } else { None });
        let bytes = bytes.expect("an answer");
        assert!(bytes.len() < 64, "{}", bytes.len());
        assert!(!rig.spans[0].hear(now, NodeId(9), Presence { session: session(), telling: Telling::Watch }), "one without a link");
    }
}
