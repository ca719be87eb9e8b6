//! The other PoPs, as this node sees them: what their nodes say of themselves, how the ways to them are, and which way is the best.
//!
//! Each link's datagrams are its probes: ten a second when it is idle, more when it carries media. Their counters tell what was lost, their
//! echoes the round trip. What this node measures is told to the nodes of all other PoPs, and what theirs measure comes from them. While a
//! link's datagrams go over others, the direct path has probes of its own. Of the routes each link gets its way and the one beside it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{LinkStats, PathStats};
use pop_relay::control::{LOCATED_MAX, Located, Path, Paths};
use pop_relay::route::{Changed, Figures, LOSS_ALL, PopName, Routes, Way};
use pop_schemas::{NodeId, Time};

use super::events::Events;
use crate::config::MeshConfig;
use crate::logging::AUDIT;
use crate::mesh::{NodeName, Peer};
use crate::view::{OverlayView, PathView, PopView, RouteView};

/// Seconds without a datagram after which a path is gone, where its link has not ended before.
const SILENT_MAX: u8 = 2;

/// A node of another PoP is heard so often at most, of what comes sooner the last; it says something once a second at most.
const HEAR_PAUSE: Duration = Duration::from_millis(200);

/// A neighbour is told of all paths at first and so often, else of those that have changed.
const TELL_ALL_EVERY: Duration = Duration::from_secs(60);

/// Links that end together are one change: each is decided on so long after the one before, at the earliest.
const DECIDE_PAUSE: Duration = Duration::from_millis(100);

/// A neighbour is told where nodes are when that has changed, and so often.
const LOCATE_EVERY: Duration = Duration::from_secs(60);

/// Nodes that were heard of, and are called and have not answered yet; and for how long they may not.
const CALLED_MAX: usize = 64;
const CALLED_FOR: Duration = Duration::from_secs(30);

/// One that did not answer is not called again before.
const CALL_AGAIN: Duration = Duration::from_secs(300);

/// Of so many that is remembered.
const UNANSWERED_MAX: usize = 1_024;

/// Nodes over which a control link may go, for each PoP.
const THIRDS_MAX: usize = 8;

/// Of the loss of a second this share, of sixteen, is believed at once: three seconds tell most of a change.
const NEW_SHARE: u32 = 6;

/// A node of another PoP with which there is a link.
struct Neighbour {
    pop: PopName,
    /// Of the second before.
    datagrams_out: u64,
    datagrams_in: u64,
    lost: u64,
    carried_in: u64,
    direct: PathStats,
    /// Seconds without a datagram.
    silent: u8,
    rtt_us: u32,
    jitter_us: u32,
    loss_in: u16,
    /// As it says; all while it says that nothing comes.
    loss_out: u16,
    /// It has said that something comes.
    has_heard: bool,
    /// What it says of itself, and when it did.
    told: Option<Paths>,
    heard_at: Option<Time>,
    /// What it has said since then.
    waits: Option<Paths>,
    /// What it was told last of the link with it, and when of all paths.
    said: Option<Figures>,
    said_all_at: Option<Time>,
    /// Where it takes connections, as it says.
    at: Option<SocketAddr>,
    name: Box<str>,
    /// Of which nodes it was told last, and when.
    located: Option<(Vec<Located>, Time)>,
}

impl Neighbour {
    /// While something comes of it; also when nothing arrives there.
    fn figures(&self) -> Option<Figures> {
        let Neighbour { rtt_us, jitter_us, loss_in, loss_out, .. } = *self;
        (rtt_us > 0 && self.silent < SILENT_MAX).then_some(Figures { rtt_us, loss_out, loss_in, jitter_us })
    }

    /// Takes a second's figures.
    fn take(&mut self, stats: &LinkStats) {
        if stats.datagrams_out == self.datagrams_out {
            // The workers have not told since the last time: each link sends a datagram a second and more.
            return;
        }
        let since = |now: u64, before: u64| now.saturating_sub(before).min(u64::from(u32::MAX));
        let of_all = (since(stats.datagrams_in, self.datagrams_in), since(stats.lost, self.lost));
        let of_echoes = (since(stats.direct.came, self.direct.came), since(stats.direct.lost, self.direct.lost));
        // What comes over others tells nothing of this path, whichever way they are lost.
        let is_carried = stats.carried_in > self.carried_in;
        (self.datagrams_out, self.datagrams_in, self.lost) = (stats.datagrams_out, stats.datagrams_in, stats.lost);
        (self.carried_in, self.direct) = (stats.carried_in, stats.direct);
        let (came, lost) = if is_carried { of_echoes } else { (of_all.0 + of_echoes.0, of_all.1 + of_echoes.1) };
        self.silent = if came == 0 { self.silent.saturating_add(1) } else { 0 };
        // The round trip of all is that of the ways that they take.
        let has_echoes = stats.direct.rtt_us > 0 && (is_carried || of_echoes.0 > 0);
        self.rtt_us = if has_echoes { stats.direct.rtt_us } else { stats.rtt_us };
        self.jitter_us = if is_carried { stats.direct.jitter_us } else { stats.jitter_us };
        if let Some(now) = (lost * u64::from(LOSS_ALL)).checked_div(lost + came) {
            self.loss_in = ((now as u32 * NEW_SHARE + u32::from(self.loss_in) * (16 - NEW_SHARE)) / 16) as u16;
        }
    }

    /// Takes what it says. `own`: the name of this PoP, with which it says how the link with this node is.
    fn hear(&mut self, now: Time, own: &str, told: Paths) {
        self.heard_at = Some(now);
        let of_us = told.paths.iter().find(|path| path.pop == own);
        let is_silent = if told.changes { told.gone.iter().any(|pop| pop == own) } else { of_us.is_none() };
        // That it does not name this PoP says that nothing comes to it; the first times nothing may have come yet.
        self.loss_out = match of_us {
            Some(path) => path.figures.loss_in.min(LOSS_ALL - 1),
            None if is_silent && self.has_heard => LOSS_ALL,
            None => self.loss_out,
        };
        self.has_heard |= of_us.is_some();
        self.told = Some(Paths { paths: Vec::new(), gone: Vec::new(), ..told });
    }

    /// Whether it is to be told something else of the link with it.
    fn has_news(&self) -> bool {
        match (self.said, self.figures()) {
            (None, None) => false,
            (Some(said), Some(figures)) => said.differs(&figures),
            _ => true,
        }
    }
}

/// How datagrams get to a node of another PoP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeWay {
    /// By themselves.
    Direct,
    /// Through this node of a third one.
    Via(NodeId),
}

impl NodeWay {
    pub(super) fn carrier(self) -> Option<NodeId> {
        if let NodeWay::Via(node) = self { Some(node) } else { None }
    }
}

/// See the module.
pub(super) struct Overlay {
    pop: PopName,
    routes: Routes,
    neighbours: HashMap<NodeId, Neighbour>,
    /// Times that a route became another one.
    changes: u64,
    /// What happened of late, also to nodes of this PoP.
    pub(super) events: Events,
    /// When it was decided last, and whether something has changed since.
    decided_at: Time,
    is_undecided: bool,
    /// This node, for others.
    own: Option<Located>,
    discovers: bool,
    /// Nodes that were heard of, to be called.
    heard_of: Vec<Located>,
    /// Since when those are called.
    called: HashMap<NodeId, Time>,
    /// When those were called that did not answer.
    unanswered: HashMap<NodeId, Time>,
}

/// A node that a certificate can name.
pub(super) fn located(name: &str, pop: &str, address: SocketAddr) -> Option<Located> {
    let name = NodeName::new(name, pop).ok()?;
    Some(Located { node: name.node().to_owned(), pop: name.pop().to_owned(), address })
}

impl Overlay {
    /// Of a node, that takes connections there.
    pub(super) fn new(name: &str, pop: &str, address: Option<SocketAddr>, config: &MeshConfig) -> Overlay {
        let prices = config.prices.iter().map(|(pop, ms)| (PopName::from(pop.as_str()), u64::from(*ms) * 1_000)).collect();
        let own = address.and_then(|address| located(name, pop, address));
        let pop = PopName::from(pop);
        let (routes, discovers) = (Routes::new(Arc::clone(&pop), prices), config.discover);
        let (neighbours, heard_of, called, unanswered) = Default::default();
        let (changes, events, decided_at, is_undecided) = (0, Events::default(), Time::ZERO, false);
        Overlay { pop, routes, neighbours, changes, events, decided_at, is_undecided, own, discovers, heard_of, called, unanswered }
    }

    /// A link is up.
    pub(super) fn link_up(&mut self, peer: &Peer) {
        if peer.pop == *self.pop {
            return;
        }
        // Of the datagrams of the link before nothing is known, and this one begins with all paths.
        self.routes.forget(peer.node);
        let pop = PopName::from(peer.pop.as_str());
        self.events.note_node("link_up", &pop, &peer.name);
        let neighbour = Neighbour {
            pop,
            datagrams_out: 0,
            datagrams_in: 0,
            lost: 0,
            carried_in: 0,
            direct: PathStats::default(),
            silent: 0,
            rtt_us: 0,
            jitter_us: 0,
            loss_in: 0,
            loss_out: 0,
            has_heard: false,
            told: None,
            heard_at: None,
            waits: None,
            said: None,
            said_all_at: None,
            at: None,
            name: peer.name.as_str().into(),
            located: None,
        };
        self.neighbours.insert(peer.node, neighbour);
    }

    /// It is up no longer.
    pub(super) fn link_down(&mut self, now: Time, node: NodeId) {
        if let Some(Neighbour { pop, name, .. }) = self.neighbours.remove(&node) {
            self.events.note_node("link_down", &pop, &name);
            self.routes.forget(node);
            self.measure(now, &pop);
            self.is_undecided = true;
        }
    }

    /// To be called each some ten milliseconds: what has changed is decided on soon.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        if self.is_undecided && now.since(self.decided_at) >= DECIDE_PAUSE {
            self.decide(now);
        }
    }

    /// The link with the least cost is the path to a PoP.
    fn measure(&mut self, now: Time, pop: &PopName) {
        let figures = self.neighbours.values().filter(|of| of.pop == *pop).filter_map(Neighbour::figures);
        // One on which packets arrive before one on which they do not.
        self.routes.measure(now, pop, figures.min_by_key(|figures| (!figures.reaches(), figures.cost_us())));
    }

    /// A second is over: what its links have carried. Returns which paths each node of another PoP is to be told of: of its own PoP that is
    /// how the link with it is, of others the best one.
    pub(super) fn tick<'a>(&mut self, now: Time, links: impl Iterator<Item = (&'a NodeId, LinkStats)>) -> Vec<(NodeId, Paths)> {
        for (node, stats) in links {
            if let Some(neighbour) = self.neighbours.get_mut(node) {
                neighbour.take(&stats);
            }
        }
        let late: Vec<NodeId> = self.neighbours.iter().filter(|(_, of)| of.waits.is_some()).map(|(node, _)| *node).collect();
        for node in late {
            if let Some(told) = self.neighbours.get_mut(&node).and_then(|of| of.waits.take()) {
                self.take_told(now, node, told);
            }
        }
        let pops: Vec<PopName> = self.neighbours.values().map(|of| Arc::clone(&of.pop)).collect();
        pops.iter().for_each(|pop| self.measure(now, pop));
        self.decide(now);
        let has_news = self.neighbours.values().any(Neighbour::has_news);
        let Some((changed, gone)) = self.routes.poll_told(now, has_news) else { return Vec::new() };
        let all = self.routes.told();
        let tell = |(node, of): (&NodeId, &mut Neighbour)| {
            let changes = of.said_all_at.is_some_and(|at| now.since(at) < TELL_ALL_EVERY);
            let is_news = !changes || of.has_news();
            let was_said = of.said.is_some();
            if is_news {
                of.said = of.figures();
            }
            if !changes {
                of.said_all_at = Some(now);
            }
            let own = of.said.filter(|_| is_news).map(|figures| Path { pop: of.pop.to_string(), figures });
            let gone = gone.iter().filter(|pop| changes && **pop != *of.pop).cloned();
            let silent = (changes && was_said && of.said.is_none()).then(|| of.pop.to_string());
            let paths = if changes { &changed } else { &all };
            let paths = paths.iter().filter(|path| path.pop != *of.pop).cloned().chain(own).collect();
            (*node, Paths { paths, changes, gone: gone.chain(silent).collect(), ..Paths::default() })
        };
        self.neighbours.iter_mut().map(tell).collect()
    }

    /// What a node of another PoP says. `false`: it is none.
    pub(super) fn hear(&mut self, now: Time, node: NodeId, told: Paths) -> bool {
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return false };
        if neighbour.heard_at.is_some_and(|at| now.since(at) < HEAR_PAUSE) {
            match &mut neighbour.waits {
                Some(waits) => waits.add(told),
                None => neighbour.waits = Some(told),
            }
        } else {
            self.take_told(now, node, told);
        }
        true
    }

    /// The way to each node of other PoPs, and the one beside it. All nodes of a PoP are reached in the same way; through a PoP, through
    /// that one of its nodes to which this one's path is the best.
    pub(super) fn ways(&self) -> Vec<(NodeId, NodeWay, Option<NodeWay>)> {
        let through = |pop: &PopName| {
            let cost = |of: &Neighbour| of.figures().filter(Figures::reaches).map(|figures| figures.cost_us());
            let of_pop = self.neighbours.iter().filter(|(_, of)| of.pop == *pop);
            of_pop.filter_map(|(node, of)| Some((cost(of)?, *node))).min().map(|(_, node)| NodeWay::Via(node))
        };
        let way = |way: &Way| match way {
            Way::Direct => Some(NodeWay::Direct),
            Way::Via(pop) => through(pop),
        };
        let of_node = |(node, of): (&NodeId, &Neighbour)| {
            let route = self.routes.route(&of.pop);
            let backup = route.and_then(|route| way(route.backup.as_ref()?));
            match route.and_then(|route| way(&route.way)) {
                // Where no way is known the datagrams find out whether there is one.
                None => (*node, NodeWay::Direct, backup.filter(|backup| *backup != NodeWay::Direct)),
                // One that failed is the one beside it, until there are two others: it may live in one direction.
                Some(way @ NodeWay::Via(_)) => (*node, way, backup.or(Some(NodeWay::Direct))),
                Some(way) => (*node, way, backup),
            }
        };
        self.neighbours.iter().map(of_node).collect()
    }

    /// Nodes that may have a way to those of a PoP, the best first: those that say so and others of the PoP itself, then the nearest.
    pub(super) fn thirds(&self, pop: &str) -> Vec<NodeId> {
        let cost = |(node, of): (&NodeId, &Neighbour)| {
            let own = of.figures().filter(Figures::reaches)?.cost_us();
            let theirs =
                if *of.pop == *pop { Some(0) } else { self.routes.heard(*node, pop).filter(Figures::reaches).map(|of| of.cost_us()) };
            Some((theirs.is_none(), own + theirs.unwrap_or_default(), *node))
        };
        let mut thirds: Vec<_> = self.neighbours.iter().filter_map(cost).collect();
        thirds.sort_unstable();
        thirds.into_iter().take(THIRDS_MAX).map(|(_, _, node)| node).collect()
    }

    /// Where neighbours take connections, as they say.
    pub(super) fn located(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        self.neighbours.iter().filter_map(|(node, of)| Some((*node, of.at?)))
    }

    fn take_told(&mut self, now: Time, node: NodeId, mut told: Paths) {
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return };
        let pop = Arc::clone(&neighbour.pop);
        let nodes = std::mem::take(&mut told.nodes);
        if let Some(own) = nodes.iter().find(|of| *of.node == *neighbour.name && *of.pop == *neighbour.pop) {
            neighbour.at = Some(own.address);
        }
        self.routes.hear(now, node, &pop, &told.paths, told.changes.then_some(told.gone.as_slice()));
        neighbour.hear(now, &self.pop, told);
        if self.discovers && !nodes.is_empty() {
            self.heard_of.extend(nodes);
            self.take_located(now);
        }
        self.measure(now, &pop);
        self.is_undecided = true;
    }

    /// Which nodes a neighbour is to be told of. `known`: those of this PoP beside this one.
    pub(super) fn tell_of(&mut self, now: Time, node: NodeId, known: &[Located]) -> Vec<Located> {
        let abroad = self.neighbours.iter().filter(|(other, _)| **other != node);
        let abroad = abroad.filter_map(|(_, of)| located(&of.name, &of.pop, of.at?));
        let mut nodes: Vec<Located> = self.own.iter().chain(known).cloned().chain(abroad).collect();
        nodes.sort_unstable_by(|a, b| (&a.pop, &a.node).cmp(&(&b.pop, &b.node)));
        nodes.truncate(LOCATED_MAX);
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return Vec::new() };
        if neighbour.located.as_ref().is_some_and(|(told, at)| *told == nodes && now.since(*at) < LOCATE_EVERY) {
            return Vec::new();
        }
        neighbour.located = Some((nodes.clone(), now));
        nodes
    }

    /// Whom to call of those that were heard of: nodes of other PoPs without a link. What they are their certificates say.
    fn take_located(&mut self, now: Time) {
        let (unanswered, neighbours, pop) = (&self.unanswered, &self.neighbours, &self.pop);
        self.heard_of.retain(|of| {
            let node = NodeId::of(&of.pop, &of.node);
            let was_called = unanswered.get(&node).is_some_and(|at| now.since(*at) < CALL_AGAIN);
            *of.pop != **pop && !was_called && !neighbours.contains_key(&node) && located(&of.node, &of.pop, of.address).is_some()
        });
        self.heard_of.truncate(UNANSWERED_MAX);
    }

    /// Whom to call now, and whom no longer.
    pub(super) fn poll_located(&mut self, now: Time, is_linked: impl Fn(&NodeId) -> bool) -> (Vec<Located>, Vec<NodeId>) {
        self.called.retain(|node, _| !is_linked(node));
        self.unanswered.retain(|_, at| now.since(*at) < CALL_AGAIN);
        let over: Vec<NodeId> = self.called.iter().filter(|(_, since)| now.since(**since) >= CALLED_FOR).map(|(node, _)| *node).collect();
        for node in &over {
            self.called.remove(node);
            if self.unanswered.len() < UNANSWERED_MAX {
                self.unanswered.insert(*node, now);
            }
        }
        let mut calls = std::mem::take(&mut self.heard_of);
        calls.retain(|of| {
            let node = NodeId::of(&of.pop, &of.node);
            let is_new = !is_linked(&node) && !self.called.contains_key(&node) && self.called.len() < CALLED_MAX;
            if is_new {
                self.called.insert(node, now);
            }
            is_new
        });
        (calls, over)
    }

    fn decide(&mut self, now: Time) {
        (self.decided_at, self.is_undecided) = (now, false);
        self.routes.handle_timeout(now);
        while let Some(Changed { to, from, way }) = self.routes.poll_change() {
            let name = |way: Option<Way>| way.map_or_else(|| "none".to_owned(), |way| way.to_string());
            let (from, way) = (name(from), name(way));
            self.changes += 1;
            tracing::info!(target: AUDIT, pop = %to, from, way, "another way to a PoP");
            self.events.note_way(&to, from, way);
        }
    }

    /// `all`: with what others measure, too.
    pub(super) fn describe(&self, now: Time, all: bool) -> OverlayView {
        let milliseconds = |us: u64| us as f64 / 1_000.0;
        let share = |loss: u16| f64::from(loss) / f64::from(LOSS_ALL);
        let pop = |name: &PopName| {
            let told: Vec<&Neighbour> = self.neighbours.values().filter(|of| of.pop == *name).collect();
            let said = || told.iter().filter_map(|of| of.told.as_ref());
            let mut releases: Vec<String> = said().map(|told| told.release.clone()).collect();
            releases.sort();
            releases.dedup();
            PopView {
                pop: name.to_string(),
                state: if self.routes.route(name).is_some() { "up" } else { "away" },
                links: told.len(),
                releases,
                load: said().map(|told| told.load).max().unwrap_or_default(),
                draining: said().count() > 0 && said().all(|told| told.draining),
            }
        };
        let path = |((from, to), figures): ((PopName, PopName), Figures)| PathView {
            from: from.to_string(),
            to: to.to_string(),
            rtt_ms: milliseconds(u64::from(figures.rtt_us)),
            jitter_ms: milliseconds(u64::from(figures.jitter_us)),
            loss_out: share(figures.loss_out),
            loss_in: share(figures.loss_in),
        };
        let routes = self.routes.routes().map(|(to, route)| RouteView {
            to: to.to_string(),
            way: route.way.to_string(),
            in_use: None,
            backup: route.backup.as_ref().map(ToString::to_string),
            cost_ms: milliseconds(route.cost_us),
            direct_ms: route.direct_us.map(milliseconds),
            reason: route.reason.label(),
            age_ms: u64::try_from(now.since(route.since).as_millis()).unwrap_or(u64::MAX),
        });
        OverlayView {
            pops: self.routes.pops().map(pop).collect(),
            paths: if all {
                self.routes.matrix().into_iter().map(path).collect()
            } else {
                self.routes.paths().map(|(to, figures)| path(((Arc::clone(&self.pop), Arc::clone(to)), figures))).collect()
            },
            routes: routes.collect(),
            changes: self.changes,
            events: self.events.list(),
            ..OverlayView::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: u64, pop: &str) -> Peer {
        Peer {
            node: NodeId(node),
            name: "a".to_owned(),
            pop: pop.to_owned(),
            incarnation: pop_schemas::Incarnation { start: 1, nonce: 1 },
            number: 1,
            their_number: 1,
            version: 1,
            workers: Vec::new(),
            address: "192.0.2.1:7890".parse().expect("an address"),
            playout: Duration::ZERO,
            grants: crate::mesh::Grants::none(),
        }
    }

    fn overlay() -> (Overlay, NodeId) {
        let mut overlay = Overlay::new("x", "fra", None, &MeshConfig::default());
        overlay.link_up(&peer(7, "sin"));
        overlay.link_up(&peer(8, "fra"));
        (overlay, NodeId(7))
    }

    fn paths(to: &str, loss_in: u16) -> Paths {
        let figures = Figures { rtt_us: 160_000, loss_out: 0, loss_in, jitter_us: 0 };
        Paths { paths: vec![Path { pop: to.to_owned(), figures }], ..Paths::default() }
    }

    /// Seconds with so many datagrams, of which so many of ten are lost.
    fn seconds(overlay: &mut Overlay, node: NodeId, from: u64, seconds: u64, lost_of_ten: u64) {
        for second in from..from + seconds {
            let stats = second_of(overlay, node, 10 - lost_of_ten, lost_of_ten);
            overlay.tick(Time::from_millis(second * 1_000), [(&node, stats)].into_iter());
        }
    }

    /// What a link's workers say after a second in which so much more came, and was lost.
    fn second_of(overlay: &Overlay, node: NodeId, came: u64, lost: u64) -> LinkStats {
        let of = &overlay.neighbours[&node];
        let (datagrams_out, datagrams_in, lost) = (of.datagrams_out + 10, of.datagrams_in + came, of.lost + lost);
        LinkStats { datagrams_out, datagrams_in, lost, rtt_us: 160_000, ..LinkStats::default() }
    }

    fn shown(overlay: &Overlay) -> Vec<(f64, f64)> {
        overlay
            .describe(Time::ZERO, true)
            .paths
            .iter()
            .filter(|path| path.from == "fra")
            .map(|path| (path.loss_out, path.loss_in))
            .collect()
    }

    #[test]
    fn what_is_lost_is_seen_within_three_seconds_and_forgotten_in_ten() {
        let (mut overlay, node) = overlay();
        seconds(&mut overlay, node, 0, 5, 0);
        assert_eq!(shown(&overlay), [(0.0, 0.0)], "and a node of this PoP is none of another");
        seconds(&mut overlay, node, 5, 3, 3);
        let (_, loss) = shown(&overlay)[0];
        assert!((0.2..0.3).contains(&loss), "{loss}");
        seconds(&mut overlay, node, 8, 10, 0);
        let (_, loss) = shown(&overlay)[0];
        assert!(loss < 0.01, "{loss}");
    }

    #[test]
    fn while_others_carry_the_direct_path_is_what_its_own_probes_tell() {
        let (mut overlay, node) = overlay();
        seconds(&mut overlay, node, 0, 2, 0);
        let before = overlay.neighbours[&node].datagrams_in;
        let sent = overlay.neighbours[&node].datagrams_out;
        let carried = |seconds: u64, echoes: u64| LinkStats {
            datagrams_out: sent + 10 * seconds,
            datagrams_in: before + 50 * seconds,
            carried_in: 50 * seconds,
            rtt_us: 240_000,
            direct: PathStats { came: echoes, lost: seconds, rtt_us: 180_000, jitter_us: 7_000 },
            ..LinkStats::default()
        };
        for second in 1..=10 {
            overlay.tick(Time::from_millis((2 + second) * 1_000), [(&node, carried(second, 9 * second))].into_iter());
        }
        let of = overlay.describe(Time::ZERO, true).paths.into_iter().find(|path| path.from == "fra").expect("a path");
        assert_eq!((of.rtt_ms, of.jitter_ms), (180.0, 7.0));
        assert!((0.08..0.1).contains(&of.loss_in), "one of ten: {}", of.loss_in);
        // Nothing comes directly any more, and all the rest does.
        for second in 11..=12 {
            overlay.tick(Time::from_millis((2 + second) * 1_000), [(&node, carried(second, 90))].into_iter());
        }
        assert_eq!(shown(&overlay), []);
        assert_eq!(overlay.ways(), [(node, NodeWay::Direct, None)], "and there is no other");
        // Without another way there are no echoes, and what they told last is of before.
        let alone = LinkStats { datagrams_out: u64::MAX, datagrams_in: before + 610, rtt_us: 200_000, ..carried(12, 90) };
        overlay.tick(Time::from_millis(15_000), [(&node, alone)].into_iter());
        assert_eq!(overlay.describe(Time::ZERO, true).paths.iter().find(|path| path.from == "fra").map(|path| path.rtt_ms), Some(200.0));
    }

    #[test]
    fn each_node_of_a_pop_gets_the_pops_way_through_the_nearest_node_of_the_one_between() {
        let (mut overlay, node) = overlay();
        for of in [peer(10, "ams"), peer(11, "ams"), peer(12, "sin")] {
            overlay.link_up(&of);
        }
        let rtt_us = |of: u64| match of {
            10 => 9_000,
            11 => 5_000,
            _ => 200_000,
        };
        let tick = |overlay: &mut Overlay, second: u64, sin_lives: bool| {
            let stats = [10, 11, 7, 12].map(|of| {
                let came = if sin_lives || of < 12 && of != 7 { 10 * (second + 1) } else { 0 };
                (NodeId(of), LinkStats { datagrams_out: second + 1, datagrams_in: came, rtt_us: rtt_us(of), ..LinkStats::default() })
            });
            let now = Time::from_millis(1_000 * second);
            let figures = Figures { rtt_us: 20_000, ..Figures::default() };
            let told =
                Paths { paths: vec![Path { pop: "sin".to_owned(), figures }, Path { pop: "fra".to_owned(), figures }], ..Paths::default() };
            assert!(overlay.hear(now, NodeId(11), told));
            overlay.tick(now, stats.iter().map(|(node, stats)| (node, *stats)));
        };
        (0..10).for_each(|second| tick(&mut overlay, second, true));
        let mut ways = overlay.ways();
        ways.sort_by_key(|(node, ..)| *node);
        let by_ams = (NodeWay::Via(NodeId(11)), Some(NodeWay::Direct));
        assert_eq!(
            ways.iter().filter(|(of, ..)| [node, NodeId(12)].contains(of)).map(|(_, way, backup)| (*way, *backup)).collect::<Vec<_>>(),
            [by_ams; 2]
        );
        assert!(ways.iter().any(|(of, way, _)| (*of, *way) == (NodeId(10), NodeWay::Direct)));
    }

    #[test]
    fn a_path_on_which_nothing_goes_out_is_none() {
        let (mut overlay, node) = overlay();
        seconds(&mut overlay, node, 0, 2, 0);
        assert!(overlay.hear(Time::from_millis(1_500), node, paths("fra", 250)));
        assert_eq!(shown(&overlay), [(0.025, 0.0)]);
        // It hears nothing of us, and says so; its own datagrams come.
        assert!(overlay.hear(Time::from_millis(2_500), node, paths("ams", 0)));
        seconds(&mut overlay, node, 3, 1, 0);
        assert_eq!((shown(&overlay), overlay.describe(Time::ZERO, true).routes), (vec![(1.0, 0.0)], Vec::new()));
        assert!(overlay.hear(Time::from_millis(4_500), node, paths("fra", 0)));
        assert_eq!(shown(&overlay), [(0.0, 0.0)]);
    }

    #[test]
    fn who_says_too_much_or_has_no_link_is_not_heard() {
        let (mut overlay, node) = overlay();
        assert!(overlay.hear(Time::from_millis(1_000), node, paths("fra", 0)));
        assert!(overlay.hear(Time::from_millis(1_100), node, paths("fra", 9_000)), "it waits for the next second");
        assert_eq!(overlay.neighbours[&node].loss_out, 0);
        assert!(!overlay.hear(Time::from_millis(1_300), NodeId(8), paths("fra", 0)), "of this PoP");
        assert!(!overlay.hear(Time::from_millis(1_300), NodeId(9), paths("fra", 0)));
        seconds(&mut overlay, node, 2, 1, 0);
        assert_eq!(shown(&overlay), [(0.9, 0.0)], "and is heard then");
        overlay.link_down(Time::from_millis(3_000), node);
        overlay.handle_timeout(Time::from_millis(3_100));
        assert_eq!(overlay.describe(Time::ZERO, true).pops[0].state, "away");
    }

    /// Two PoPs of two nodes each, and what arrives of ten datagrams a second: of the first PoP's nodes at the second's, and back.
    struct Pair {
        second: u64,
        nodes: Vec<(NodeId, &'static str, Overlay)>,
        arrives: Box<dyn Fn(usize, usize) -> u64>,
    }

    impl Pair {
        fn new() -> Pair {
            let (_, node) = overlay();
            let names = ["fra", "fra", "sin", "sin"];
            let id = |at: usize| NodeId(node.0 + at as u64);
            let mut nodes: Vec<_> =
                names.iter().enumerate().map(|(at, pop)| (id(at), *pop, Overlay::new("x", pop, None, &MeshConfig::default()))).collect();
            for (at, (_, _, overlay)) in nodes.iter_mut().enumerate() {
                for (other, pop) in names.iter().enumerate().filter(|(other, _)| *other != at) {
                    overlay.link_up(&Peer { node: id(other), pop: (*pop).to_owned(), ..peer(7, "sin") });
                }
            }
            Pair { second: 0, nodes, arrives: Box::new(|_, _| 10) }
        }

        fn run(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.second += 1;
                let now = Time::from_millis(self.second * 1_000);
                let mut said = Vec::new();
                for at in 0..self.nodes.len() {
                    let stats: Vec<(NodeId, LinkStats)> = (0..self.nodes.len())
                        .filter(|other| self.nodes[*other].1 != self.nodes[at].1)
                        .map(|other| {
                            let (node, came) = (self.nodes[other].0, (self.arrives)(other, at));
                            let mut stats = second_of(&self.nodes[at].2, node, came, 10 - came);
                            // Of what does not come nothing tells that it was sent.
                            stats.lost = if came == 0 { self.nodes[at].2.neighbours[&node].lost } else { stats.lost };
                            (node, stats)
                        })
                        .collect();
                    let told = self.nodes[at].2.tick(now, stats.iter().map(|(node, stats)| (node, *stats)));
                    said.extend(told.into_iter().map(|(to, paths)| (at, to, paths)));
                }
                // The control connections lose nothing.
                for (from, to, told) in said {
                    let node = self.nodes[from].0;
                    let at = self.nodes.iter().position(|(node, ..)| *node == to).unwrap();
                    self.nodes[at].2.hear(now + Duration::from_millis(300), node, told);
                }
            }
        }

        /// Whether each of the nodes has a way to the other PoP.
        fn reach(&self) -> Vec<bool> {
            let to = |pop: &str| if pop == "fra" { "sin" } else { "fra" };
            self.nodes.iter().map(|(_, pop, overlay)| overlay.routes.route(to(pop)).is_some()).collect()
        }
    }

    #[test]
    fn a_path_that_was_cut_in_one_direction_or_both_is_there_again_when_it_heals() {
        let mut pair = Pair::new();
        pair.run(10);
        assert_eq!(pair.reach(), [true; 4]);
        // Where nothing comes back nothing can be repaired either: a path that is cut one way is none in both.
        for cut in [(|from, _| if from < 2 { 0 } else { 10 }) as fn(usize, usize) -> u64, |_, _| 0] {
            pair.arrives = Box::new(cut);
            pair.run(12);
            assert_eq!(pair.reach(), [false; 4]);
            pair.arrives = Box::new(|_, _| 10);
            pair.run(12);
            assert_eq!(pair.reach(), [true; 4], "it is there again");
        }
    }

    #[test]
    fn a_node_whose_own_packets_do_not_arrive_knows_so_although_those_of_its_neighbour_do() {
        let mut pair = Pair::new();
        pair.arrives = Box::new(|from, _| if from == 1 { 0 } else { 10 });
        pair.run(3);
        pair.arrives = Box::new(|_, _| 10);
        pair.run(10);
        pair.arrives = Box::new(|from, _| if from == 1 { 0 } else { 10 });
        pair.run(12);
        assert_eq!(pair.reach(), [true, false, true, true]);
    }

    #[test]
    fn workers_that_tell_late_are_no_silence_and_counters_of_any_size_no_harm() {
        let (mut overlay, node) = overlay();
        seconds(&mut overlay, node, 0, 5, 1);
        let (before, same) = (shown(&overlay), second_of(&overlay, node, 0, 0));
        let same = LinkStats { datagrams_out: same.datagrams_out - 10, ..same };
        for second in 5..9 {
            overlay.tick(Time::from_millis(second * 1_000), [(&node, same)].into_iter());
        }
        assert_eq!(shown(&overlay), before);
        let huge = LinkStats { lost: 1 << 62, ..second_of(&overlay, node, 10, 0) };
        overlay.tick(Time::from_millis(9_000), [(&node, huge)].into_iter());
        assert!(shown(&overlay)[0].1 <= 1.0);
    }

    fn nodes(pops: &[(&str, &str)]) -> Vec<Located> {
        pops.iter().map(|(node, pop)| located(node, pop, "192.0.2.9:7890".parse().unwrap()).unwrap()).collect()
    }

    fn called(overlay: &mut Overlay, second: u64, linked: &[NodeId]) -> (Vec<String>, usize) {
        let (calls, over) = overlay.poll_located(Time::from_millis(second * 1_000), |node| linked.contains(node));
        (calls.into_iter().map(|of| format!("{}.{}", of.node, of.pop)).collect(), over.len())
    }

    #[test]
    fn nodes_that_are_heard_of_are_called_for_a_while_and_not_by_the_thousand() {
        let (mut overlay, node) = overlay();
        let tell = |overlay: &mut Overlay, second: u64, nodes| {
            overlay.hear(Time::from_millis(second * 1_000), node, Paths { nodes, ..Paths::default() });
        };
        // Of this PoP its bus tells.
        tell(&mut overlay, 1, nodes(&[("b", "fra"), ("c", "nyc"), ("a", "khi")]));
        assert_eq!(called(&mut overlay, 1, &[node]), (vec!["c.nyc".to_owned(), "a.khi".to_owned()], 0));
        tell(&mut overlay, 2, nodes(&[("c", "nyc")]));
        assert_eq!(called(&mut overlay, 2, &[NodeId::of("nyc", "c")]), (vec![], 0), "it is there");
        assert_eq!(called(&mut overlay, 31, &[NodeId::of("nyc", "c")]), (vec![], 1), "the other has not answered");
        tell(&mut overlay, 32, nodes(&[("a", "khi")]));
        assert_eq!(called(&mut overlay, 32, &[]), (vec![], 0), "and is not called so soon");
        tell(&mut overlay, 400, nodes(&[("a", "khi")]));
        assert_eq!(called(&mut overlay, 400, &[]), (vec!["a.khi".to_owned()], 0));
        let names: Vec<String> = (0..200).map(|n| format!("n{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "moon")).collect();
        tell(&mut overlay, 401, nodes(&many));
        assert_eq!(called(&mut overlay, 401, &[]).0.len(), CALLED_MAX - 1);
    }

    #[test]
    fn where_nodes_are_is_told_when_that_is_new_and_each_minute() {
        let mut overlay = Overlay::new("x", "fra", "192.0.2.7:7890".parse().ok(), &MeshConfig::default());
        overlay.link_up(&Peer { name: "c".to_owned(), ..peer(7, "sin") });
        overlay.link_up(&Peer { node: NodeId(9), name: "d".to_owned(), pop: "nyc".to_owned(), ..peer(7, "sin") });
        let told = |overlay: &mut Overlay, second: u64, known: &[Located]| -> Vec<String> {
            let nodes = overlay.tell_of(Time::from_millis(second * 1_000), NodeId(7), known);
            nodes.into_iter().map(|of| format!("{}.{}", of.node, of.pop)).collect()
        };
        assert_eq!(told(&mut overlay, 1, &[]), ["x.fra"], "of the other it is not known where it listens");
        assert_eq!(told(&mut overlay, 2, &[]), Vec::<String>::new());
        overlay.hear(Time::from_millis(2_500), NodeId(9), Paths { nodes: nodes(&[("d", "nyc")]), ..Paths::default() });
        assert_eq!(told(&mut overlay, 3, &nodes(&[("y", "fra")])), ["x.fra", "y.fra", "d.nyc"]);
        assert_eq!(told(&mut overlay, 62, &nodes(&[("y", "fra")])), Vec::<String>::new());
        assert_eq!(told(&mut overlay, 63, &nodes(&[("y", "fra")])).len(), 3);
    }
}
