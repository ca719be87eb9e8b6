//! A run: trouble for half a minute, then calm, then the books of all nodes must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Duration;

use pop_proto::control::MediaKind;
use pop_schemas::{ParticipantId, Time, TrackId};
use pop_session::presence::Manifest;
use pop_session::{Kind, Refusal};

use crate::client::Client;
use crate::dice::Dice;
use crate::network::Network;
use crate::node::Node;
use crate::replica::Message;

const NAMES: [&str; 8] = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"];

/// Between two looks at the network; timers are looked at each [`TICK`].
const STEP: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(50);

const TROUBLE: Duration = Duration::from_secs(25);

/// After this much calm on each side of a cut nothing that was lost there is missing: a digest, its repair, and what came late.
const CALM: Duration = Duration::from_millis(2_300);

/// So long the people of a node that died are away, and a little more.
const CALM_WITH_DEAD: Duration = Duration::from_millis(6_000);

/// A client that was refused, or has lost its node, tries again after at most so long.
const AGAIN_MS_MAX: u64 = 300;

/// A node that stood still for longer than this was declared dead, finds that out, and begins anew.
const HANG_MAX: Duration = Duration::from_millis(400);

/// The promise: sets are equal so soon after a cut has ended.
const HEAL: Duration = Duration::from_secs(1);

/// Participants of one run that may be over: with most seeds it is nobody, in 5 of the first 1,000 it is one.
const OVER_MAX: usize = 2;

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
    /// Nodes that stood still for so long that they began anew.
    pub hangs: u64,
    /// Participants that went on at another node.
    pub taken_over: u64,
    /// Clients that came back to the node that they had.
    pub resumed: u64,
    /// Those whom clients see that nobody has, and that their node had never heard of when they came to it.
    pub ghosts: u64,
    /// The same of whom it had heard.
    pub ghosts_known: u64,
    /// Participants at a node which has not heard that they went on elsewhere, and ended there.
    pub over: u64,
    /// Of them those who had left there.
    pub over_left: u64,
    /// Clients that could not go on and came in anew.
    pub anew: u64,
    /// Directions that were cut.
    pub cuts: u64,
    /// Participants that were there at the end.
    pub participants: u64,
    /// Tracks that were there at the end.
    pub tracks: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        let Figures {
            carried,
            lost,
            repairs,
            fed_abroad,
            crashes,
            hangs,
            taken_over,
            resumed,
            ghosts,
            ghosts_known,
            over,
            over_left,
            anew,
            cuts,
            participants,
            tracks,
        } = other;
        self.carried += carried;
        self.lost += lost;
        self.repairs += repairs;
        self.fed_abroad += fed_abroad;
        self.crashes += crashes;
        self.hangs += hangs;
        self.taken_over += taken_over;
        self.resumed += resumed;
        self.ghosts += ghosts;
        self.ghosts_known += ghosts_known;
        self.over += over;
        self.over_left += over_left;
        self.anew += anew;
        self.cuts += cuts;
        self.participants += participants;
        self.tracks += tracks;
    }
}

#[derive(Debug)]
struct Still {
    since: Time,
    until: Time,
    inbox: Vec<(u64, Message)>,
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
    /// Clients that look for a node to go on at, and when they try.
    stranded: Vec<(Time, ParticipantId, Client)>,
    /// Nodes that stand still, and until when; what came for them meanwhile.
    still: BTreeMap<u64, Still>,
    /// Where those went on who came back: the node and its start.
    moved: BTreeMap<ParticipantId, (u64, u64)>,
    /// Who left, or was told to: nobody sees them again.
    ended: BTreeSet<ParticipantId>,
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
            stranded: Vec::new(),
            still: BTreeMap::new(),
            moved: BTreeMap::new(),
            ended: BTreeSet::new(),
            figures: Figures::default(),
        }
    }

    /// The whole run. Panics where
    /// - a node writes of a participant that is not its own, or one version twice;
    /// - a section is fed by a track that is neither here nor known to be there, or whose node is away;
    /// - somebody is told to have left whose node was away for less than the grace;
    /// - a client hears an older word after a newer one, or of one identity twice;
    /// - a second after a partition has healed, nodes do not know the same participants and tracks, an identity is there twice, a
    ///   client believes anything else (but for one who is gone, once it has moved: they are counted), somebody who has a client is lost, somebody who has left is there, a section is fed by a track that nobody publishes, or a viewer is not fed although he could be.
    pub fn run(mut self) -> Figures {
        let end = self.now + TROUBLE;
        while self.now < end {
            self.trouble();
            self.step();
        }
        self.network.is_calm = true;
        for still in self.still.values_mut() {
            still.until = still.until.min(self.now + HANG_MAX);
        }
        let has_dead = self.nodes.len() < self.starts.len()
            || !self.still.is_empty()
            || self.restarted.is_some_and(|at| self.now.since(at) < CALM_WITH_DEAD);
        self.rest(if has_dead { CALM_WITH_DEAD } else { CALM });
        self.network.mend();
        self.rest(HEAL);
        self.check();
        self.figures.carried = self.network.carried;
        self.figures.lost = self.network.lost;
        for node in self.nodes.values() {
            self.figures.repairs += node.replica.repairs();
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
            match self.still.get_mut(&to) {
                Some(still) => still.inbox.push((from, message)),
                None => self.deliver(from, to, message),
            }
        }
        self.wake();
        if self.now.since(self.ticked) >= TICK {
            self.ticked = self.now;
            self.tick();
        }
        let all: Vec<_> = self.starts.keys().copied().collect();
        self.gather();
        for (id, node) in &mut self.nodes {
            // Who stands still says nothing.
            while let Some((to, message)) = if self.still.contains_key(id) { None } else { node.replica.poll(self.now) } {
                for to in all.iter().filter(|other| *other != id && to.is_none_or(|to| to == **other)) {
                    self.network.send(&mut self.dice, self.now, (*id, *to, message.clone()));
                }
            }
        }
    }

    fn deliver(&mut self, from: u64, to: u64, message: Message) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let mut news = Vec::new();
        let answer = node.replica.handle(self.now, from, message, &mut news);
        node.hear(self.now, news);
        if let Some(answer) = answer {
            self.network.send(&mut self.dice, self.now, (to, from, answer));
        }
    }

    /// Nodes that stood still go on: as what they were, or as another start.
    fn wake(&mut self) {
        let due: Vec<_> = self.still.iter().filter(|(_, still)| still.until <= self.now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(still) = self.still.remove(&id) else { continue };
            if still.until.since(still.since) > HANG_MAX {
                self.figures.hangs += 1;
                self.leave_behind(id);
                self.restart(id);
                continue;
            }
            for (from, message) in still.inbox {
                self.deliver(from, id, message);
            }
        }
    }

    /// Those who lost their node look for another; those who have left are noted.
    fn gather(&mut self) {
        for node in self.nodes.values_mut() {
            self.ended.extend(node.ended.drain(..));
            for (id, client) in node.stranded.drain(..) {
                self.stranded.push((self.now + self.dice.wait_ms(AGAIN_MS_MAX), id, client));
            }
        }
        let (due, later): (Vec<_>, _) = std::mem::take(&mut self.stranded).into_iter().partition(|(at, _, _)| *at <= self.now);
        self.stranded = later;
        for (_, id, client) in due {
            self.come_back(id, client);
        }
    }

    /// A client tries a node that answers. If its participant is at another one that this one hears, it is led there, as the proxy does.
    fn come_back(&mut self, id: ParticipantId, client: Client) {
        let answering: Vec<_> = self.nodes.keys().copied().filter(|node| !self.still.contains_key(node)).collect();
        let again = self.now + self.dice.wait_ms(AGAIN_MS_MAX);
        let Some(at) = self.dice.pick(&answering) else { return self.stranded.push((again, id, client)) };
        let owner = answering.into_iter().find(|node| self.nodes[node].has(id));
        let is_led = owner.filter(|owner| *owner == at || (!self.network.is_cut(at, *owner) && !self.network.is_cut(*owner, at)));
        let at = is_led.unwrap_or(at);
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let had = node.has(id);
        match node.resume(self.now, id, client) {
            None => {
                let count = if had { &mut self.figures.resumed } else { &mut self.figures.taken_over };
                *count += 1;
                let start = node.start;
                self.moved.insert(id, (at, start));
            }
            // Its node is silent, and not yet known to be dead.
            Some((client, Refusal::Elsewhere)) => self.stranded.push((again, id, client)),
            Some((client, _)) => {
                self.figures.anew += 1;
                node.enter(self.now, client.name, client.permissions.hidden);
            }
        }
    }

    /// A node's clients are without it. One in four gives up.
    fn leave_behind(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.ended.extend(node.ended.drain(..));
        let clients = std::mem::take(&mut node.clients).into_iter().chain(node.stranded.drain(..));
        for (id, client) in clients.collect::<Vec<_>>() {
            if !self.dice.once_in(4) {
                self.stranded.push((self.now + self.dice.wait_ms(2 * AGAIN_MS_MAX), id, client));
            }
        }
    }

    fn tick(&mut self) {
        for (id, node) in self.nodes.iter_mut().filter(|(id, _)| !self.still.contains_key(id)) {
            let mut news = Vec::new();
            let beat = node.replica.tick(self.now, &mut news);
            node.hear(self.now, news);
            node.pass(self.now);
            node.answer(self.now);
            let Some(beat) = beat else { continue };
            for to in self.starts.keys().filter(|to| *to != id) {
                self.network.send(&mut self.dice, self.now, (*id, *to, beat.clone()));
            }
        }
    }

    fn trouble(&mut self) {
        let ids: Vec<_> = self.starts.keys().copied().collect();
        let Some(id) = self.dice.pick(&ids) else { return };
        match self.dice.below(1_000) {
            _ if self.still.contains_key(&id) => {}
            0..=1 if self.nodes.len() > 1 => self.crash(id),
            2..=8 if !self.nodes.contains_key(&id) => self.restart(id),
            10..=13 => self.cut(id, &ids),
            14..=18 => self.network.mend(),
            20..=34 => self.enter(id),
            150..=151 => {
                let longest = if self.dice.once_in(2) { 300 } else { 3_000 };
                let until = self.now + self.dice.wait_ms(longest);
                self.still.insert(id, Still { since: self.now, until, inbox: Vec::new() });
            }
            152..=156 => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                let Some(client) = self.dice.pick(&node.clients.keys().copied().collect::<Vec<_>>()) else { return };
                let lost = node.lose(self.now, client);
                self.stranded.extend(lost.map(|lost| (self.now + self.dice.wait_ms(AGAIN_MS_MAX), client, lost)));
            }
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
        self.leave_behind(id);
        if let Some(node) = self.nodes.remove(&id) {
            self.figures.crashes += 1;
            self.figures.fed_abroad += node.fed_abroad;
            self.figures.repairs += node.replica.repairs();
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

    /// Those who are over wait at a node that never heard of where they went on. A node that has them, or lost them and lives, would have
    /// told it; what may have been lost on its way is the word that they left.
    fn check_over(&mut self, over: &BTreeSet<ParticipantId>) {
        assert!(over.len() <= OVER_MAX, "they are at their former nodes still: {over:?}");
        for id in over {
            let lives = |(node, start): &(u64, u64)| self.nodes.get(node).is_some_and(|node| node.start == *start);
            let (has_left, node_lives) = (self.ended.contains(id), self.moved.get(id).is_some_and(lives));
            assert!(has_left || !node_lives, "{id:?} is at its former node still, and the later one lives");
            self.figures.over += 1;
            self.figures.over_left += u64::from(has_left);
        }
    }

    fn check(&mut self) {
        assert!(self.stranded.is_empty(), "they find no node: {:?}", self.stranded);
        let mut everybody = BTreeMap::<ParticipantId, BTreeSet<TrackId>>::new();
        let mut shown = BTreeMap::<String, (ParticipantId, BTreeSet<TrackId>)>::new();
        let (mut published, mut over) = (BTreeSet::new(), BTreeSet::new());
        for node in self.nodes.values() {
            let own: BTreeSet<_> = node.session.local_records().map(|record| record.participant).collect();
            // Its client went on elsewhere and was lost there, or left, while this node heard nothing: it waits for the client, 30 s at most.
            let is_over = |id: &&ParticipantId| !node.clients.contains_key(id) && self.moved.get(id).is_some_and(|(at, _)| *at != node.id);
            over.extend(own.iter().filter(is_over).copied());
            for participant in node.session.participants().filter(|participant| own.contains(&participant.id())) {
                let tracks: BTreeSet<_> = participant.tracks().into_iter().collect();
                published.extend(tracks.iter().copied());
                if participant.kind() != Kind::Viewer && !participant.is_hidden() {
                    let known = shown.insert(participant.identity().to_string(), (participant.id(), tracks.clone()));
                    assert!(known.is_none(), "{} is there twice", participant.identity());
                }
                assert!(everybody.insert(participant.id(), tracks).is_none());
            }
        }
        let risen: Vec<_> = self.ended.iter().filter(|id| everybody.contains_key(id) && !over.contains(id)).collect();
        assert!(risen.is_empty(), "they had left: {risen:?}");
        self.check_over(&over);
        everybody.retain(|id, _| !over.contains(id));
        // Whose picture there is, to be seen: somebody's who is here, and of those who are over.
        let records = self.nodes.values().flat_map(|node| node.session.local_records());
        let shows = |manifest: &Manifest| !manifest.hidden && manifest.tracks.iter().any(|track| track.info.kind == MediaKind::Video);
        let shown_by = records.filter(|record| record.manifest.as_ref().is_some_and(shows)).map(|record| record.participant);
        let (of_over, open): (Vec<_>, Vec<_>) = shown_by.partition(|id| over.contains(id));
        shown.retain(|_, (id, _)| !over.contains(id));
        for node in self.nodes.values() {
            let known: BTreeMap<_, _> = node
                .session
                .participants()
                .filter(|p| !over.contains(&p.id()))
                .map(|p| (p.id(), p.tracks().into_iter().collect::<BTreeSet<_>>()))
                .collect();
            assert_eq!(known, everybody, "what node {} knows", node.id);
            let lost: Vec<_> = node.clients.keys().filter(|id| !node.has(**id)).collect();
            assert!(lost.is_empty(), "on node {} clients have nobody: {lost:?}", node.id);
            for (id, client) in &node.clients {
                let others = client.others.iter().filter(|(_, info)| !over.contains(&info.participant));
                let mut believed: BTreeMap<_, _> = others
                    .map(|(name, info)| (name.clone(), (info.participant, info.tracks.iter().map(|track| track.track).collect())))
                    .collect();
                let mut expected = shown.clone();
                expected.retain(|_, (other, _)| other != id);
                if client.has_moved {
                    for (_, (other, _)) in believed.iter().filter(|(name, _)| !expected.contains_key(*name)) {
                        let count = if client.missed.contains(other) { &mut self.figures.ghosts } else { &mut self.figures.ghosts_known };
                        *count += 1;
                    }
                    believed.retain(|name, _| expected.contains_key(name));
                }
                assert_eq!(believed, expected, "what {} on node {} believes", client.name, node.id);
            }
            for (section, (_, source)) in &node.sections {
                assert!(source.is_none_or(|track| published.contains(&track)), "{section} is fed by a ghost");
            }
            for viewer in &node.viewers {
                let source = node.sections.get(viewer).and_then(|(_, source)| *source);
                let may_differ = open.is_empty() && !of_over.is_empty();
                assert!(may_differ || source.is_some() != open.is_empty(), "a viewer on node {} is fed when there is something", node.id);
            }
        }
        self.figures.participants = everybody.len() as u64;
        self.figures.tracks = published.len() as u64;
    }
}
