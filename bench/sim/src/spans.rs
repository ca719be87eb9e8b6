//! Many PoPs and the sessions that they share, in fake time: the real [`Spans`] of each, over links with delay, while people come and go, PoPs
//! fail and return, and links are cut. It is measured what it takes until those who share a session know each other.
//!
//! ```text
//! dice -> join, leave, a session ends, a PoP or a region fails and returns, a link is cut
//!           |
//!        Spans of each PoP --poll_send--> half a round trip later --> Spans::hear of another one
//!           \--poll_event--> a record: the two know each other, so much later
//! ```

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pop::bus::{BusEvent, NodeRecord};
use pop::cluster::spans::Spans;
use pop::mesh::{Grants, Peer};
use pop_relay::control::{self, Message, Presence, Telling};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::Kind;
use pop_session::member::Permissions;
use pop_session::placement::rank_first;
use pop_session::presence::{LocalRecord, Manifest, Version};

use crate::dice::Dice;
use crate::overlay::rtts;

/// A step of fake time. No path takes as many of them as the wheel has.
const STEP: Duration = Duration::from_millis(10);
const STEPS_PER_SECOND: u64 = 100;
const WHEEL: usize = 128;

/// Each PoP looks at its time so often, in steps. A node does each 20 ms; so many nodes in one thread cannot.
const LOOK_EVERY: u64 = 25;

/// Until it is seen that a PoP or a link is no longer there, in steps.
const SILENT: u64 = 200;

/// All sessions begin within this, in seconds; what is measured is what comes after it and [`SETTLE_S`].
const SETTLE_S: u64 = 10;

/// How long a session lives, and how long anybody is in it at one PoP, in seconds.
const SESSION_LIFE_S: usize = 1_800;
const STAY_S: usize = 300;

/// Who does not know the other one after this never does, in seconds.
const NEVER_S: u64 = 15;

/// Customers, and of how many PoPs in a hundred the certificates carry each one's key.
const CUSTOMERS: [(&str, usize); 5] = [("acme", 100), ("bolt", 60), ("cone", 40), ("dune", 25), ("echo", 25)];

/// After what two are to find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum After {
    /// One of them has come.
    Join,
    /// One has come just after one or two of the three PoPs where they would meet have failed.
    OneFailed,
    /// The same after all three have.
    AllFailed,
    /// A PoP that had failed is back, with its people.
    Restart,
    /// One has come while the link between the two was cut, and it is back.
    Cut,
}

/// What a run found.
#[derive(Debug, Default)]
pub struct SpansFigures {
    /// Until one knows of somebody at the other PoP, in milliseconds; sorted.
    pub known_ms: BTreeMap<After, Vec<u64>>,
    /// Pairs that did not find each other in fifteen seconds.
    pub never: u64,
    /// Records of people that came to a PoP whose certificate has not the key.
    pub leaks: u64,
    /// Sent by each PoP: of who meets whom, and of people.
    pub rendezvous: Vec<Sent>,
    /// See `rendezvous`.
    pub presence: Vec<Sent>,
    /// Who meets others at a PoP, at the end; sorted.
    pub meets: Vec<u64>,
    /// Sessions that each PoP has, at the end; sorted.
    pub sessions: Vec<u64>,
    /// The most that a PoP had to say in one turn.
    pub burst_bytes: u64,
    /// Seconds that were measured.
    pub seconds: u64,
    /// PoPs that failed.
    pub failures: u64,
    /// People that came and went.
    pub joins: u64,
}

/// What a PoP has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    /// Bytes of messages as they are encoded.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
}

struct Pop {
    name: String,
    grants: Grants,
    start: u64,
    /// `None`: it has failed.
    spans: Option<Spans>,
    /// The sessions that it had when it failed.
    lost: Vec<usize>,
    is_dirty: bool,
}

struct Room {
    name: SessionId,
    customer: usize,
    /// At each PoP these people.
    members: BTreeMap<usize, Vec<u64>>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Join(usize, usize, After),
    Leave(usize, usize),
    /// All that are in it go, and another one of this size begins.
    Replace(usize),
    Return(usize),
    LinkDown(usize, usize),
    LinkUp(usize, usize),
}

struct Letter {
    from: usize,
    to: usize,
    link: u32,
    presence: Presence,
}

/// The PoPs and their sessions.
pub struct SpansWorld {
    dice: Dice,
    began: Instant,
    step: u64,
    ramp_s: u64,
    pops: Vec<Pop>,
    by_node: HashMap<NodeId, usize>,
    rtts: Vec<u32>,
    /// Of each pair, how often it has come and gone: odd while it is there.
    links: Vec<u32>,
    rooms: Vec<Room>,
    acts: BTreeMap<u64, Vec<Act>>,
    wheel: Vec<Vec<Letter>>,
    /// Who is to know whom of which session, since when.
    waits: HashMap<(usize, usize, usize), (u64, After)>,
    /// Pairs that have no link.
    parted: Vec<(usize, usize, usize)>,
    people: u64,
    /// Length of a digest's message: all are as long.
    digest_len: u64,
    figures: SpansFigures,
}

impl SpansWorld {
    /// So many PoPs, each with a link to each, and so many sessions.
    pub fn new(seed: u64, pops: usize, sessions: usize) -> SpansWorld {
        let mut dice = Dice(seed);
        let rtts = rtts(&mut dice, pops);
        let pops: Vec<Pop> = (0..pops)
            .map(|n| {
                let keys = CUSTOMERS.iter().filter(|(_, percent)| dice.below(100) < *percent).map(|(key, _)| *key);
                let grants = Grants::of(keys.collect::<Vec<_>>());
                Pop { name: format!("pop-{n:03}"), grants, start: 0, spans: None, lost: Vec::new(), is_dirty: false }
            })
            .collect();
        let by_node = pops.iter().enumerate().map(|(at, pop)| (node_of(&pop.name), at)).collect();
        let ramp_s = (sessions as u64 / 2_000).max(5);
        let (links, wheel) = (vec![0; pops.len() * pops.len()], (0..WHEEL).map(|_| Vec::new()).collect());
        let figures = SpansFigures {
            rendezvous: vec![Sent::default(); pops.len()],
            presence: vec![Sent::default(); pops.len()],
            ..Default::default()
        };
        let (rooms, acts, waits, parted) = Default::default();
        let (began, step, people, digest_len) = (Instant::now(), 0, 0, 0);
        let mut world = SpansWorld {
            dice,
            began,
            step,
            ramp_s,
            pops,
            by_node,
            rtts,
            links,
            rooms,
            acts,
            wheel,
            waits,
            parted,
            people,
            digest_len,
            figures,
        };
        (0..world.pops.len()).for_each(|pop| world.start(pop));
        for (a, b) in world.pairs() {
            world.link_up(a, b);
        }
        for room in 0..sessions {
            let size = world.size(room);
            world.begin(room, size, ramp_s as usize * STEPS_PER_SECOND as usize);
        }
        world
    }

    /// Most are at one PoP or at two; of the others a few are everywhere.
    fn size(&mut self, room: usize) -> usize {
        let pops = self.pops.len();
        match self.dice.below(1_000) {
            // By Zipf's law, as many as there are of these.
            _ if room < 8 => pops / (room + 1),
            0..=699 => 1,
            700..=899 => 2,
            900..=974 => 3,
            _ => (4 + 16 / (1 + self.dice.below(16))).min(pops),
        }
    }

    /// Another session in this place, whose people come within so many steps.
    fn begin(&mut self, room: usize, size: usize, within: usize) {
        // Large ones are of those whose keys are everywhere.
        let customer = if room < 8 { 0 } else { self.dice.below(CUSTOMERS.len()) };
        let salt = self.dice.next() as u32;
        let name = SessionId::new(&format!("room-{room:07}-{salt:08x}")).expect("it is short");
        let begun = Room { name, customer, members: BTreeMap::new() };
        match self.rooms.get_mut(room) {
            Some(before) => *before = begun,
            None => self.rooms.push(begun),
        }
        if size * 2 > self.pops.len() {
            for pop in 0..size {
                let at = self.dice.below(within) as u64;
                self.later(at, Act::Join(room, pop, After::Join));
            }
            return;
        }
        for n in 0..size {
            // Now and then somebody is at a PoP that may not know of the others.
            let pop = if n > 0 && self.dice.once_in(200) { self.dice.below(self.pops.len()) } else { self.draw_pop(customer) };
            let at = self.dice.below(within) as u64;
            self.later(at, Act::Join(room, pop, After::Join));
        }
    }

    /// A PoP of a customer; some are four times as large as others.
    fn draw_pop(&mut self, customer: usize) -> usize {
        let pops = self.pops.len();
        for _ in 0..1_000 {
            let pop = self.dice.below(pops).min(self.dice.below(pops));
            if self.holds(pop, customer) {
                return pop;
            }
        }
        0
    }

    fn holds(&self, pop: usize, customer: usize) -> bool {
        self.pops[pop].grants.holds(CUSTOMERS[customer].0)
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        (0..self.pops.len()).flat_map(|a| (a + 1..self.pops.len()).map(move |b| (a, b))).collect()
    }

    fn at(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.pops.len() + a.max(b)
    }

    fn is_linked(&self, a: usize, b: usize) -> bool {
        self.links[self.at(a, b)] % 2 == 1
    }

    fn now(&self) -> Instant {
        self.began + STEP * self.step as u32
    }

    fn later(&mut self, steps: u64, act: Act) {
        self.acts.entry(self.step + steps.max(1)).or_default().push(act);
    }

    /// Runs for so many seconds after all sessions have begun.
    pub fn run(mut self, seconds: u64) -> SpansFigures {
        let end = (self.ramp_s + SETTLE_S + seconds) * STEPS_PER_SECOND;
        while self.step < end {
            self.step += 1;
            // Nothing happens in the last seconds, so that all who are to know each other may.
            if self.step.is_multiple_of(STEPS_PER_SECOND) && self.is_measured() && self.step + (NEVER_S + 5) * STEPS_PER_SECOND < end {
                self.happen(self.step / STEPS_PER_SECOND - self.ramp_s - SETTLE_S, seconds);
            }
            for act in self.acts.remove(&self.step).unwrap_or_default() {
                self.act(act);
            }
            let letters = std::mem::take(&mut self.wheel[self.step as usize % WHEEL]);
            for letter in letters {
                self.deliver(letter);
            }
            let now = self.now();
            for pop in 0..self.pops.len() {
                let looks = (self.step + pop as u64).is_multiple_of(LOOK_EVERY);
                if let Some(spans) = self.pops[pop].spans.as_mut().filter(|_| looks) {
                    spans.handle_timeout(now);
                }
                if std::mem::take(&mut self.pops[pop].is_dirty) || looks {
                    self.drain(pop);
                }
            }
        }
        let late = self.waits.values().filter(|(since, _)| self.step - since > NEVER_S * STEPS_PER_SECOND).count();
        let mut figures = self.figures;
        figures.never += late as u64;
        figures.known_ms.values_mut().for_each(|list| list.sort_unstable());
        figures.meets = self.pops.iter().filter_map(|pop| Some(pop.spans.as_ref()?.meets() as u64)).collect();
        figures.meets.sort_unstable();
        let mut sessions = vec![0; self.pops.len()];
        self.rooms.iter().flat_map(|room| room.members.keys()).for_each(|pop| sessions[*pop] += 1);
        sessions.sort_unstable();
        (figures.sessions, figures.seconds) = (sessions, seconds);
        figures
    }

    fn is_measured(&self) -> bool {
        self.step > (self.ramp_s + SETTLE_S) * STEPS_PER_SECOND
    }

    /// What chance does in a second.
    fn happen(&mut self, second: u64, seconds: u64) {
        let (rooms, pops) = (self.rooms.len(), self.pops.len());
        for _ in 0..(rooms + self.dice.below(SESSION_LIFE_S)) / SESSION_LIFE_S {
            let room = self.dice.below(rooms);
            self.later(1, Act::Replace(room));
        }
        for _ in 0..(rooms * 3 / 2 + self.dice.below(STAY_S)) / STAY_S {
            let room = self.dice.below(rooms);
            let members: Vec<usize> = self.rooms[room].members.keys().copied().collect();
            let Some(pop) = self.dice.pick(&members) else { continue };
            let at = self.dice.below(100) as u64;
            self.later(at, Act::Leave(room, pop));
            let next = if self.dice.once_in(3) { self.draw_pop(self.rooms[room].customer) } else { pop };
            let back = 200 + self.dice.below(2_000) as u64;
            self.later(back, Act::Join(room, next, After::Join));
        }
        if self.dice.once_in(10) {
            let (a, b) = (self.dice.below(pops), self.dice.below(pops));
            if a != b && self.is_linked(a, b) {
                self.cut(a, b);
            }
        }
        // A PoP a minute; and in the middle a region at once.
        if second == seconds / 2 {
            let region = if pops >= 100 { pops / 10 } else { pops / 3 };
            let failed: Vec<usize> = (0..region).map(|n| n * pops / region).collect();
            self.fail(&failed);
        } else if second % 60 == 7 {
            let pop = self.dice.below(pops);
            self.fail(&[pop]);
        }
    }

    fn act(&mut self, act: Act) {
        let now = self.now();
        match act {
            Act::Join(room, pop, after) => self.join(room, pop, after),
            Act::Leave(room, pop) => self.leave(room, pop),
            Act::Replace(room) => {
                let members: Vec<usize> = self.rooms[room].members.keys().copied().collect();
                members.iter().for_each(|pop| self.leave(room, *pop));
                self.begin(room, members.len().max(1), 2_000);
            }
            Act::Return(pop) => {
                self.start(pop);
                for other in (0..self.pops.len()).filter(|other| *other != pop) {
                    let at = self.dice.below(100) as u64;
                    self.later(at, Act::LinkUp(pop, other));
                }
                for room in std::mem::take(&mut self.pops[pop].lost) {
                    let at = 200 + self.dice.below(1_000) as u64;
                    self.later(at, Act::Join(room, pop, After::Restart));
                }
            }
            Act::LinkUp(a, b) => self.link_up(a, b),
            // One of them sees it.
            Act::LinkDown(pop, other) => {
                if !self.is_linked(pop, other) {
                    let node = node_of(&self.pops[other].name);
                    self.spans(pop, |spans| spans.link_down(now, node));
                }
            }
        }
    }

    fn spans(&mut self, pop: usize, with: impl FnOnce(&mut Spans)) {
        if let Some(spans) = &mut self.pops[pop].spans {
            with(spans);
            self.pops[pop].is_dirty = true;
        }
    }

    fn start(&mut self, pop: usize) {
        let of = &mut self.pops[pop];
        of.start += 1;
        of.spans = Some(Spans::new(&NodeRecord {
            name: "a".into(),
            pop: of.name.as_str().into(),
            node: node_of(&of.name),
            incarnation: Incarnation { start: of.start, nonce: 7 },
            mesh: None,
            release: "".into(),
            load: 0,
            capacity: 0,
            draining: false,
            vips: Vec::new(),
        }));
    }

    fn link_up(&mut self, a: usize, b: usize) {
        if self.is_linked(a, b) || self.pops[a].spans.is_none() || self.pops[b].spans.is_none() {
            return;
        }
        let (at, now) = (self.at(a, b), self.now());
        self.links[at] += 1;
        for (one, other) in [(a, b), (b, a)] {
            let of = &self.pops[other];
            let peer = Peer {
                node: node_of(&of.name),
                name: "a".to_owned(),
                pop: of.name.clone(),
                incarnation: Incarnation { start: of.start, nonce: 7 },
                number: 1,
                their_number: 1,
                version: control::VERSION,
                workers: Vec::new(),
                address: ([192, 0, 2, 1], 7890).into(),
                playout: Duration::ZERO,
                grants: of.grants.clone(),
            };
            self.spans(one, |spans| spans.link_up(now, &peer));
        }
        let of_pair = |(_, one, other): &(usize, usize, usize)| [(a, b), (b, a)].contains(&(*one, *other));
        let back: Vec<_> = self.parted.extract_if(.., |pair| of_pair(pair)).collect();
        for (room, one, other) in back {
            self.wait(room, one, other, After::Cut);
        }
    }

    /// `one` is to know of the people of `other`.
    fn wait(&mut self, room: usize, one: usize, other: usize, after: After) {
        let Room { members, customer, .. } = &self.rooms[room];
        let knows = |pop| members.contains_key(&pop) && self.holds(pop, *customer);
        if !knows(one) || !knows(other) {
            return;
        }
        if self.is_linked(one, other) {
            self.waits.insert((room, one, other), (self.step, after));
        } else {
            self.parted.push((room, one, other));
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        let at = self.at(a, b);
        self.links[at] += 1;
        let of_pair = |(_, one, other): &(usize, usize, usize)| [(a, b), (b, a)].contains(&(*one, *other));
        let parted: Vec<_> = self.waits.keys().filter(|key| of_pair(key)).copied().collect();
        for pair in parted {
            self.waits.remove(&pair);
            self.parted.push(pair);
        }
        self.later(SILENT, Act::LinkDown(a, b));
        self.later(SILENT, Act::LinkDown(b, a));
        let back = SILENT + 1_000 + self.dice.below(3_000) as u64;
        self.later(back, Act::LinkUp(a, b));
    }

    fn join(&mut self, room: usize, pop: usize, after: After) {
        if self.pops[pop].spans.is_none() || self.rooms[room].members.contains_key(&pop) {
            return;
        }
        let people: Vec<u64> = (0..1 + self.dice.below(3) as u64).map(|n| self.people + n + 1).collect();
        self.people += people.len() as u64;
        self.figures.joins += u64::from(self.is_measured());
        let (now, name, key) = (self.now(), self.rooms[room].name.clone(), CUSTOMERS[self.rooms[room].customer].0);
        self.spans(pop, |spans| {
            spans.begin(&name);
            spans.note_key(&name, key);
            people.iter().for_each(|id| spans.put(now, &name, &record(*id, true)));
        });
        let others: Vec<usize> = self.rooms[room].members.keys().copied().collect();
        self.rooms[room].members.insert(pop, people);
        for other in others {
            self.wait(room, pop, other, after);
            self.wait(room, other, pop, after);
        }
    }

    fn leave(&mut self, room: usize, pop: usize) {
        let Some(people) = self.forget(room, pop) else { return };
        let (now, name) = (self.now(), self.rooms[room].name.clone());
        self.spans(pop, |spans| {
            people.iter().for_each(|id| spans.put(now, &name, &record(*id, false)));
            spans.end(&name);
        });
    }

    /// Nobody waits for it any longer.
    fn forget(&mut self, room: usize, pop: usize) -> Option<Vec<u64>> {
        let people = self.rooms[room].members.remove(&pop)?;
        for other in self.rooms[room].members.keys() {
            for key in [(room, pop, *other), (room, *other, pop)] {
                let waited = self.waits.remove(&key);
                self.figures.never += u64::from(waited.is_some_and(|(since, _)| self.step - since > NEVER_S * STEPS_PER_SECOND));
            }
        }
        self.parted.retain(|(of, one, other)| *of != room || ![one, other].contains(&&pop));
        Some(people)
    }

    /// These PoPs are no longer there. Just then others come into sessions that they were to meet in there.
    fn fail(&mut self, failed: &[usize]) {
        let failed: Vec<usize> = failed.iter().copied().filter(|pop| self.pops[*pop].spans.is_some()).collect();
        self.figures.failures += failed.len() as u64;
        self.probe(&failed);
        for pop in failed {
            self.pops[pop].spans = None;
            let had: Vec<usize> = (0..self.rooms.len()).filter(|room| self.rooms[*room].members.contains_key(&pop)).collect();
            had.iter().for_each(|room| drop(self.forget(*room, pop)));
            self.pops[pop].lost = had;
            for other in (0..self.pops.len()).filter(|other| *other != pop && self.is_linked(*other, pop)).collect::<Vec<_>>() {
                let at = self.at(pop, other);
                self.links[at] += 1;
                let seen = SILENT + self.dice.below(50) as u64;
                self.later(seen, Act::LinkDown(other, pop));
            }
            let back = 3_000 + self.dice.below(6_000) as u64;
            self.later(back, Act::Return(pop));
        }
    }

    fn probe(&mut self, failed: &[usize]) {
        let mut counts = [0; 2];
        let numbers: Vec<NodeId> = self.pops.iter().map(|pop| NodeId::of(&pop.name, "")).collect();
        for room in 8..self.rooms.len() {
            let Some(one) = self.rooms[room].members.keys().copied().find(|pop| !failed.contains(pop)) else { continue };
            let up = (0..self.pops.len()).filter(|pop| *pop != one && self.pops[*pop].spans.is_some());
            let first = rank_first(&self.rooms[room].name, up.map(|pop| numbers[pop]), 3);
            let gone = first.iter().filter(|number| failed.iter().any(|pop| numbers[*pop] == **number)).count();
            let (after, at) = match gone {
                0 => continue,
                3 => (After::AllFailed, 0),
                _ => (After::OneFailed, 1),
            };
            if counts[at] < 200 {
                counts[at] += 1;
                let (pop, at) = (self.draw_pop(self.rooms[room].customer), self.dice.below(300) as u64);
                self.later(at, Act::Join(room, pop, after));
            }
        }
    }

    fn deliver(&mut self, Letter { from, to, link, presence }: Letter) {
        if self.links[self.at(from, to)] != link {
            return;
        }
        let (now, node) = (self.now(), node_of(&self.pops[from].name));
        self.spans(to, |spans| {
            let _ = spans.hear(now, node, presence);
        });
    }

    /// All that a PoP has to say, and what it has learned.
    fn drain(&mut self, pop: usize) {
        let now = self.now();
        let mut burst = 0;
        loop {
            let Some(spans) = &mut self.pops[pop].spans else { return };
            let Some((node, presence)) = spans.poll_send(now, |_| true) else { break };
            let to = self.by_node[&node];
            burst += self.count(pop, &presence);
            let at = self.at(pop, to);
            if self.is_linked(pop, to) {
                let steps = (self.rtts[at] as u64 / 2 / STEP.as_micros() as u64).clamp(1, WHEEL as u64 - 1);
                let link = self.links[at];
                self.wheel[(self.step + steps) as usize % WHEEL].push(Letter { from: pop, to, link, presence });
            }
        }
        if self.is_measured() {
            self.figures.burst_bytes = self.figures.burst_bytes.max(burst);
        }
        while let Some(event) = self.pops[pop].spans.as_mut().and_then(Spans::poll_event) {
            let BusEvent::Record { session, record } = event else { continue };
            if record.manifest.is_none() {
                continue;
            }
            let room: usize = session.as_str()[5..12].parse().expect("it was named here");
            let of = self.by_node[&NodeId(record.key.node)];
            if self.rooms[room].name != session {
                continue;
            }
            self.figures.leaks += u64::from(!self.holds(pop, self.rooms[room].customer));
            if let Some((since, after)) = self.waits.remove(&(room, pop, of)).filter(|_| self.is_measured()) {
                self.figures.known_ms.entry(after).or_default().push((self.step - since) * STEP.as_millis() as u64);
            }
        }
    }

    fn count(&mut self, pop: usize, presence: &Presence) -> u64 {
        let encoded = || control::encode(&Message::Presence(presence.clone()), control::VERSION).map_or(0, |bytes| bytes.len() as u64);
        let is_digest = matches!(presence.telling, Telling::Digest(_));
        let len = if is_digest && self.digest_len > 0 { self.digest_len } else { encoded() };
        if is_digest {
            self.digest_len = len;
        }
        if self.is_measured() {
            let is_meeting = matches!(presence.telling, Telling::Meet(_) | Telling::Part | Telling::Hosts(_));
            let sent = if is_meeting { &mut self.figures.rendezvous[pop] } else { &mut self.figures.presence[pop] };
            (sent.bytes, sent.messages) = (sent.bytes + len, sent.messages + 1);
        }
        len
    }
}

fn node_of(pop: &str) -> NodeId {
    NodeId::of(pop, "a")
}

fn record(id: u64, is_here: bool) -> LocalRecord {
    let identity = Identity::new(&format!("person-{id}")).expect("it is short");
    let manifest = is_here.then(|| Manifest::new(identity, Kind::Member, Permissions::PUBLISHER));
    LocalRecord { participant: ParticipantId(id), version: Version { epoch: 0, counter: 1 + u32::from(!is_here) }, manifest }
}
