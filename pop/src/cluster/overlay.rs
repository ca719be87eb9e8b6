//! The other PoPs, as this node sees them: what their nodes say of themselves, how the ways to them are, and which way is the best.
//!
//! Each link's datagrams are its probes: ten a second when it is idle, more when it carries media. Their counters tell what was lost, their
//! echoes the round trip. What this node measures is told to the nodes of all other PoPs, and what theirs measure comes from them. While a
//! link's datagrams go over others, the direct path has probes of its own. Of the routes each link gets its way and the one beside it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{LinkStats, PathStats};
use pop_relay::control::Paths;
use pop_relay::route::{Changed, Figures, PopName, Routes, Way};
use pop_schemas::{NodeId, Time};

use crate::logging::AUDIT;
use crate::mesh::Peer;
use crate::view::{OverlayView, PathView, PopView, RouteView};

/// Seconds without a datagram after which a path is gone, where its link has not ended before.
const SILENT_MAX: u8 = 2;

/// A node of another PoP is heard so often at most; it says something once a second at most.
const HEAR_PAUSE: Duration = Duration::from_millis(200);

/// All that is lost.
const ALL: u16 = 10_000;

/// Of the loss of a second this share, of sixteen, is believed at once: three seconds tell most of a change.
const NEW_SHARE: u32 = 6;

/// A node of another PoP with which there is a link.
struct Neighbour {
    pop: PopName,
    /// Of the second before.
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
    /// What it says of itself, and when it did.
    told: Option<Paths>,
    heard_at: Option<Time>,
}

impl Neighbour {
    fn figures(&self) -> Option<Figures> {
        let Neighbour { rtt_us, jitter_us, loss_in, loss_out, .. } = *self;
        (rtt_us > 0 && self.silent < SILENT_MAX && loss_out < ALL).then_some(Figures { rtt_us, loss_out, loss_in, jitter_us })
    }

    /// Takes a second's figures.
    fn take(&mut self, stats: &LinkStats) {
        let of_all = (stats.datagrams_in.saturating_sub(self.datagrams_in), stats.lost.saturating_sub(self.lost));
        let of_echoes = (stats.direct.came.saturating_sub(self.direct.came), stats.direct.lost.saturating_sub(self.direct.lost));
        // What comes over others tells nothing of this path, whichever way they are lost.
        let is_carried = stats.carried_in > self.carried_in;
        (self.datagrams_in, self.lost, self.carried_in) = (stats.datagrams_in, stats.lost, stats.carried_in);
        self.direct = stats.direct;
        let (came, lost) = if is_carried { of_echoes } else { of_all };
        self.silent = if came == 0 { self.silent.saturating_add(1) } else { 0 };
        // The round trip of all is that of the ways that they take.
        let has_echoes = stats.direct.rtt_us > 0;
        self.rtt_us = if has_echoes { stats.direct.rtt_us } else { stats.rtt_us };
        self.jitter_us = if is_carried { stats.direct.jitter_us } else { stats.jitter_us };
        let now = (lost * u64::from(ALL)).checked_div(lost + came).unwrap_or_default() as u32;
        self.loss_in = ((now * NEW_SHARE + u32::from(self.loss_in) * (16 - NEW_SHARE)) / 16) as u16;
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

/// See the module.
pub(super) struct Overlay {
    pop: PopName,
    routes: Routes,
    neighbours: HashMap<NodeId, Neighbour>,
    /// Times that a route became another one.
    changes: u64,
}

impl Overlay {
    pub(super) fn new(pop: &str, prices: &BTreeMap<String, u32>) -> Overlay {
        let prices = prices.iter().map(|(pop, ms)| (PopName::from(pop.as_str()), u64::from(*ms) * 1_000)).collect();
        let pop = PopName::from(pop);
        Overlay { routes: Routes::new(Arc::clone(&pop), prices), pop, neighbours: HashMap::new(), changes: 0 }
    }

    /// A link is up.
    pub(super) fn link_up(&mut self, peer: &Peer) {
        if peer.pop == *self.pop {
            return;
        }
        // Of the datagrams of the link before nothing is known.
        let pop = PopName::from(peer.pop.as_str());
        let (carried_in, direct) = Default::default();
        let (datagrams_in, lost, silent, rtt_us, jitter_us, loss_in, loss_out, told, heard_at) = Default::default();
        let neighbour =
            Neighbour { pop, datagrams_in, lost, carried_in, direct, silent, rtt_us, jitter_us, loss_in, loss_out, told, heard_at };
        self.neighbours.insert(peer.node, neighbour);
    }

    /// It is up no longer.
    pub(super) fn link_down(&mut self, now: Time, node: NodeId) {
        if let Some(Neighbour { pop, .. }) = self.neighbours.remove(&node) {
            self.measure(now, &pop);
            self.decide(now);
        }
    }

    /// The link with the least cost is the path to a PoP.
    fn measure(&mut self, now: Time, pop: &PopName) {
        let figures = self.neighbours.values().filter(|of| of.pop == *pop).filter_map(Neighbour::figures);
        self.routes.measure(now, pop, figures.min_by_key(Figures::cost_us));
    }

    /// A second is over: what its links have carried. Returns what the nodes of other PoPs are to be told.
    pub(super) fn tick<'a>(
        &mut self,
        now: Time,
        links: impl Iterator<Item = (&'a NodeId, LinkStats)>,
    ) -> Option<Vec<pop_relay::control::Path>> {
        for (node, stats) in links {
            if let Some(neighbour) = self.neighbours.get_mut(node) {
                neighbour.take(&stats);
            }
        }
        let pops: Vec<PopName> = self.neighbours.values().map(|of| Arc::clone(&of.pop)).collect();
        pops.iter().for_each(|pop| self.measure(now, pop));
        self.decide(now);
        self.routes.poll_told(now)
    }

    /// What a node of another PoP says. `false`: it is none, or says too much.
    pub(super) fn hear(&mut self, now: Time, node: NodeId, told: Paths) -> bool {
        let Some(neighbour) = self.neighbours.get_mut(&node) else { return false };
        if neighbour.heard_at.is_some_and(|at| now.since(at) < HEAR_PAUSE) {
            return false;
        }
        neighbour.heard_at = Some(now);
        let of_us = told.paths.iter().find(|path| path.pop == *self.pop);
        // That it does not name this PoP says that nothing comes to it; the first times nothing may have come yet.
        neighbour.loss_out = match of_us {
            Some(path) => path.figures.loss_in.min(ALL - 1),
            None if neighbour.told.as_ref().is_some_and(|before| before.paths.iter().any(|path| path.pop == *self.pop)) => ALL,
            None => neighbour.loss_out,
        };
        let pop = Arc::clone(&neighbour.pop);
        self.routes.hear(now, node, &pop, &told.paths);
        neighbour.told = Some(told);
        self.measure(now, &pop);
        true
    }

    /// The way to each node of other PoPs, and the one beside it. All nodes of a PoP are reached in the same way; through a PoP, through
    /// that one of its nodes to which this one's path is the best.
    pub(super) fn ways(&self) -> Vec<(NodeId, NodeWay, Option<NodeWay>)> {
        let through = |pop: &PopName| {
            let cost = |of: &Neighbour| of.figures().map(|figures| figures.cost_us());
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

    /// Who is told what this node measures.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.neighbours.keys().copied()
    }

    fn decide(&mut self, now: Time) {
        self.routes.handle_timeout(now);
        while let Some(Changed { to, from, way }) = self.routes.poll_change() {
            let name = |way: Option<&pop_relay::route::Way>| way.map_or_else(|| "none".to_owned(), ToString::to_string);
            self.changes += 1;
            tracing::info!(target: AUDIT, pop = %to, from = name(from.as_ref()), way = name(way.as_ref()), "another way to a PoP");
        }
    }

    pub(super) fn describe(&self, now: Time) -> OverlayView {
        let milliseconds = |us: u64| us as f64 / 1_000.0;
        let share = |loss: u16| f64::from(loss) / f64::from(ALL);
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
            paths: self.routes.matrix().into_iter().map(path).collect(),
            routes: routes.collect(),
            changes: self.changes,
            ..OverlayView::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use pop_relay::control::Path;

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
        let mut overlay = Overlay::new("fra", &BTreeMap::new());
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
        let (mut datagrams_in, mut lost) = overlay.neighbours.get(&node).map_or((0, 0), |of| (of.datagrams_in, of.lost));
        for second in from..from + seconds {
            (datagrams_in, lost) = (datagrams_in + 10 - lost_of_ten, lost + lost_of_ten);
            let stats = LinkStats { datagrams_in, lost, rtt_us: 160_000, ..LinkStats::default() };
            overlay.tick(Time::from_millis(second * 1_000), [(&node, stats)].into_iter());
        }
    }

    fn shown(overlay: &Overlay) -> Vec<(f64, f64)> {
        overlay.describe(Time::ZERO).paths.iter().filter(|path| path.from == "fra").map(|path| (path.loss_out, path.loss_in)).collect()
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
        let carried = |seconds: u64, echoes: u64| LinkStats {
            datagrams_in: before + 50 * seconds,
            carried_in: 50 * seconds,
            rtt_us: 240_000,
            direct: PathStats { came: echoes, lost: seconds, rtt_us: 180_000, jitter_us: 7_000 },
            ..LinkStats::default()
        };
        for second in 1..=10 {
            overlay.tick(Time::from_millis((2 + second) * 1_000), [(&node, carried(second, 9 * second))].into_iter());
        }
        let of = overlay.describe(Time::ZERO).paths.into_iter().find(|path| path.from == "fra").expect("a path");
        assert_eq!((of.rtt_ms, of.jitter_ms), (180.0, 7.0));
        assert!((0.08..0.1).contains(&of.loss_in), "one of ten: {}", of.loss_in);
        // Nothing comes directly any more, and all the rest does.
        for second in 11..=12 {
            overlay.tick(Time::from_millis((2 + second) * 1_000), [(&node, carried(second, 90))].into_iter());
        }
        assert_eq!(shown(&overlay), []);
        assert_eq!(overlay.ways(), [(node, NodeWay::Direct, None)], "and there is no other");
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
                (NodeId(of), LinkStats { datagrams_in: came, rtt_us: rtt_us(of), ..LinkStats::default() })
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
        assert_eq!((shown(&overlay), overlay.describe(Time::ZERO).routes), (Vec::new(), Vec::new()));
        assert!(overlay.hear(Time::from_millis(4_500), node, paths("fra", 0)));
        assert_eq!(shown(&overlay), [(0.0, 0.0)]);
    }

    #[test]
    fn who_says_too_much_or_has_no_link_is_not_heard() {
        let (mut overlay, node) = overlay();
        assert!(overlay.hear(Time::from_millis(1_000), node, paths("fra", 0)));
        assert!(!overlay.hear(Time::from_millis(1_100), node, paths("fra", 9_000)));
        assert!(!overlay.hear(Time::from_millis(1_300), NodeId(8), paths("fra", 0)), "of this PoP");
        assert!(!overlay.hear(Time::from_millis(1_300), NodeId(9), paths("fra", 0)));
        seconds(&mut overlay, node, 2, 1, 0);
        assert_eq!(shown(&overlay), [(0.0, 0.0)]);
        overlay.link_down(Time::from_millis(3_000), node);
        assert_eq!(overlay.describe(Time::ZERO).pops[0].state, "away");
    }
}
