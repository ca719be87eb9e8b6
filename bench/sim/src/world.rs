//! A run: trouble for half a minute, then calm, then the books of all nodes must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Duration;

use pop_schemas::{ParticipantId, Time, TrackId};
use pop_session::Kind;

use crate::dice::Dice;
use crate::network::Network;
use crate::node::Node;

const NAMES: [&str; 8] = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"];

/// Between two looks at the network; timers are looked at each [`TICK`].
const STEP: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(50);

const TROUBLE: Duration = Duration::from_secs(25);

/// After this much calm on each side of a cut nothing that was lost there is missing: a digest, its repair, and what came late.
const CALM: Duration = Duration::from_millis(2_300);

/// So long the people of a node that died are away, and a little more.
const CALM_WITH_DEAD: Duration = Duration::from_millis(6_000);

/// The promise: sets are equal so soon after a cut has ended.
const HEAL: Duration = Duration::from_secs(1);

/// What a run, or many, came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Messages that arrived.
    pub carried: u64,
    /// Messages that did not.
    pub lost: u64,
    /// Pulls because of a digest.
    pub repairs: u64,
    /// Sections that got a track of another node.
    pub fed_abroad: u64,
    /// Nodes that died.
    pub crashes: u64,
    /// Directions that were cut.
    pub cuts: u64,
    /// Participants that were there at the end.
    pub participants: u64,
    /// Tracks that were there at the end.
    pub tracks: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        let Figures { carried, lost, repairs, fed_abroad, crashes, cuts, participants, tracks } = other;
        self.carried += carried;
        self.lost += lost;
        self.repairs += repairs;
        self.fed_abroad += fed_abroad;
        self.crashes += crashes;
        self.cuts += cuts;
        self.participants += participants;
        self.tracks += tracks;
    }
}

/// Nodes, those who are connected to them, and what is between.
#[derive(Debug)]
pub struct World {
    seed: u64,
    dice: Dice,
    now: Time,
    network: Network,
    nodes: BTreeMap<u64, Node>,
    /// How often each node has started; those that are dead too.
    starts: BTreeMap<u64, u64>,
    /// When a node began anew the last time: whom it had is away for as long as if it were dead.
    restarted: Option<Time>,
    ticked: Time,
    figures: Figures,
}

impl World {
    /// Two to five nodes, as the seed says.
    pub fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let lost_percent = dice.pick(&[0, 1, 5, 20]).expect("there are some");
        let starts: BTreeMap<_, _> = (1..=2 + dice.below(4) as u64).map(|node| (node, 1)).collect();
        let now = Time::from_millis(1_000);
        let nodes = starts.keys().map(|id| (*id, Node::new(now, *id, 1, seed))).collect();
        World {
            seed,
            dice,
            now,
            network: Network::new(lost_percent),
            nodes,
            starts,
            restarted: None,
            ticked: now,
            figures: Figures::default(),
        }
    }

    /// The whole run. Panics where
    /// - a node writes of a participant that is not its own, or one version twice;
    /// - a section is fed by a track that is neither here nor known to be there, or whose node is away;
    /// - somebody is told to have left whose node was away for less than the grace;
    /// - a client hears an older word after a newer one, or of one identity twice;
    /// - a second after a partition has healed, nodes do not know the same participants and tracks, an identity is there twice, a
    ///   client believes anything else, a section is fed by a track that nobody publishes, or a viewer is not fed although he could be.
    pub fn run(mut self) -> Figures {
        let end = self.now + TROUBLE;
        while self.now < end {
            self.trouble();
            self.step();
        }
        self.network.is_calm = true;
        let has_dead = self.nodes.len() < self.starts.len() || self.restarted.is_some_and(|at| self.now.since(at) < CALM_WITH_DEAD);
        self.rest(if has_dead { CALM_WITH_DEAD } else { CALM });
        self.network.mend();
        self.rest(HEAL);
        self.check();
        self.figures.carried = self.network.carried;
        self.figures.lost = self.network.lost;
        for node in self.nodes.values() {
            self.figures.repairs += node.replica.repairs;
            self.figures.fed_abroad += node.fed_abroad;
        }
        self.figures
    }

    fn rest(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now = self.now + STEP;
        while let Some((_, (from, to, message))) = self.network.arrive(self.now) {
            let Some(node) = self.nodes.get_mut(&to) else { continue };
            let mut news = Vec::new();
            let answer = node.replica.handle(self.now, from, message, &mut news);
            node.hear(self.now, news);
            if let Some(answer) = answer {
                self.network.send(&mut self.dice, self.now, (to, from, answer));
            }
        }
        if self.now.since(self.ticked) >= TICK {
            self.ticked = self.now;
            self.tick();
        }
        let all: Vec<_> = self.starts.keys().copied().collect();
        for (id, node) in &mut self.nodes {
            for message in std::mem::take(&mut node.out) {
                for to in all.iter().filter(|to| *to != id) {
                    self.network.send(&mut self.dice, self.now, (*id, *to, message.clone()));
                }
            }
        }
    }

    fn tick(&mut self) {
        for (id, node) in &mut self.nodes {
            let mut news = Vec::new();
            let (all, asks) = node.replica.tick(self.now, &mut news);
            node.hear(self.now, news);
            node.pass(self.now);
            node.answer(self.now);
            node.out.extend(all);
            for (to, ask) in asks {
                self.network.send(&mut self.dice, self.now, (*id, to, ask));
            }
        }
    }

    fn trouble(&mut self) {
        let ids: Vec<_> = self.starts.keys().copied().collect();
        let Some(id) = self.dice.pick(&ids) else { return };
        match self.dice.below(1_000) {
            0..=1 if self.nodes.len() > 1 => self.crash(id),
            2..=8 if !self.nodes.contains_key(&id) => self.restart(id),
            10..=13 => self.cut(id, &ids),
            14..=18 => self.network.mend(),
            20..=34 => self.enter(id),
            35..=37 => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.watch(self.now);
                }
            }
            40..=140 => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.act(self.now, &mut self.dice);
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, id: u64) {
        let (name, hidden) = (self.dice.pick(&NAMES).expect("there are some"), self.dice.once_in(8));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.enter(self.now, name, hidden);
        }
    }

    fn crash(&mut self, id: u64) {
        if let Some(node) = self.nodes.remove(&id) {
            self.figures.crashes += 1;
            self.figures.fed_abroad += node.fed_abroad;
            self.figures.repairs += node.replica.repairs;
        }
    }

    fn restart(&mut self, id: u64) {
        let start = self.starts.get_mut(&id).expect("it was there");
        *start += 1;
        self.restarted = Some(self.now);
        self.nodes.insert(id, Node::new(self.now, id, *start, self.seed));
    }

    /// A node from all others, or two from each other; in both directions or in one.
    fn cut(&mut self, id: u64, ids: &[u64]) {
        let other = self.dice.pick(ids).expect("there are some");
        let (is_alone, ways) = (other == id, self.dice.below(3));
        for other in ids.iter().copied().filter(|node| *node != id && (is_alone || *node == other)) {
            for (way, from, to) in [(0, id, other), (1, other, id)] {
                if ways == way || ways == 2 {
                    self.figures.cuts += 1;
                    self.network.cut(from, to);
                }
            }
        }
    }

    fn check(&mut self) {
        let mut everybody = BTreeMap::<ParticipantId, BTreeSet<TrackId>>::new();
        let mut shown = BTreeMap::<String, (ParticipantId, BTreeSet<TrackId>)>::new();
        let (mut published, mut open) = (BTreeSet::new(), false);
        for node in self.nodes.values() {
            let own: BTreeSet<_> = node.session.local_records().map(|record| record.participant).collect();
            for participant in node.session.participants().filter(|participant| own.contains(&participant.id())) {
                let tracks: BTreeSet<_> = participant.tracks().into_iter().collect();
                published.extend(tracks.iter().copied());
                if participant.kind() != Kind::Viewer && !participant.is_hidden() {
                    let known = shown.insert(participant.identity().to_string(), (participant.id(), tracks.clone()));
                    assert!(known.is_none(), "{} is there twice", participant.identity());
                }
                assert!(everybody.insert(participant.id(), tracks).is_none());
            }
            let records = node.session.local_records().filter_map(|record| record.manifest).filter(|manifest| !manifest.hidden);
            open |= records.flat_map(|manifest| manifest.tracks).any(|track| track.info.kind == pop_proto::control::MediaKind::Video);
        }
        for node in self.nodes.values() {
            let known: BTreeMap<_, _> =
                node.session.participants().map(|p| (p.id(), p.tracks().into_iter().collect::<BTreeSet<_>>())).collect();
            assert_eq!(known, everybody, "what node {} knows", node.id);
            for (id, client) in &node.clients {
                let believed: BTreeMap<_, _> = client
                    .others
                    .iter()
                    .map(|(name, info)| (name.clone(), (info.participant, info.tracks.iter().map(|track| track.track).collect())))
                    .collect();
                let mut expected = shown.clone();
                expected.retain(|_, (other, _)| other != id);
                assert_eq!(believed, expected, "what {} on node {} believes", client.name, node.id);
            }
            for (section, (_, source)) in &node.sections {
                assert!(source.is_none_or(|track| published.contains(&track)), "{section} is fed by a ghost");
            }
            for viewer in &node.viewers {
                let source = node.sections.get(viewer).and_then(|(_, source)| *source);
                assert_eq!(source.is_some(), open, "a viewer on node {} is fed when there is something", node.id);
            }
        }
        self.figures.participants = everybody.len() as u64;
        self.figures.tracks = published.len() as u64;
    }
}
