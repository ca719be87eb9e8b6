//! Which way goes from this PoP to each other one: direct, or through one more PoP; and the way beside it, should that one fail.
//!
//! ```text
//! own measurements -----> Routes::measure --+--> Paths of this PoP --poll_told--> the other PoPs
//! Paths of other PoPs --> Routes::hear -----+--> cost of each way --handle_timeout--> Route, Changed
//! ```
//! Costs are milliseconds that a packet is late: half the round trip, what a lost packet waits for its repair, jitter, and what the operator
//! says that a transit costs. A way that is no longer there is left at once. Another one is left only for one that is clearly better and has
//! been for a while, and the more often a path has failed lately the less it is believed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::{NodeId, Time};

use crate::control::{PATHS_MAX, Path};

/// What others measure is believed for so long.
const HEARD_LIFE: Duration = Duration::from_secs(15);

/// What this PoP measures is told at least so often, and at most. Of its paths those alone are told that have changed.
const TELL_EVERY: Duration = Duration::from_secs(5);
const TELL_PAUSE: Duration = Duration::from_millis(900);

/// A way that lives is left for a better one at most so often.
const CHANGE_PAUSE: Duration = Duration::from_secs(5);

/// For so long the other one must have been better.
const BETTER_FOR: Duration = Duration::from_secs(2);

/// And by so much: the more of a tenth and this.
const MARGIN_US: u64 = 5_000;

/// A PoP on the way costs this beside its two paths, in microseconds: it is one more that can fail, and its bandwidth is paid twice.
pub const TRANSIT_US: u64 = 3_000;

/// Loss costs its share of what a repair takes, so many times: not the mean is heard, but what comes late.
const LOSS_WEIGHT: u64 = 20;

/// What a repair takes beside one and a half round trips, in microseconds.
const REPAIR_US: u64 = 20_000;

/// A path that has failed costs this more, in microseconds, and half of it after each [`FAILED_HALF`].
const FAILED_US: u64 = 200_000;
const FAILED_HALF: Duration = Duration::from_secs(15);
/// Failures that count together.
const FAILURES_MAX: u64 = 4;

/// A loss of this, in ten thousandths, is all.
pub const LOSS_ALL: u16 = 10_000;

/// Name of a PoP.
pub type PopName = Arc<str>;

/// A way to another PoP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Over the link with it.
    Direct,
    /// Over the links of another one.
    Via(PopName),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Direct => f.write_str("direct"),
            Way::Via(pop) => write!(f, "via {pop}"),
        }
    }
}

/// Why a way is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It costs least.
    Best,
    /// Another one costs less, but not by enough, or not for long enough.
    Kept,
    /// The way before is no longer there.
    Failed,
}

impl Reason {
    /// A name for operators.
    pub const fn label(self) -> &'static str {
        match self {
            Reason::Best => "best",
            Reason::Kept => "kept",
            Reason::Failed => "failed",
        }
    }
}

/// How packets go to a PoP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The way.
    pub way: Way,
    /// What it costs, in microseconds.
    pub cost_us: u64,
    /// The next best that has nothing in common with it.
    pub backup: Option<Way>,
    /// What the direct way would cost; `None`: there is none.
    pub direct_us: Option<u64>,
    /// Why.
    pub reason: Reason,
    /// Since when it is this way.
    pub since: Time,
    /// Since when another one is better by enough.
    better_since: Option<Time>,
}

/// A route is another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// To which PoP.
    pub to: PopName,
    /// The way before; `None`: there was none.
    pub from: Option<Way>,
    /// The way now; `None`: there is none any more.
    pub way: Option<Way>,
}

/// A path, and how often it has failed.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// `None`: nothing comes from there.
    path: Option<Figures>,
    failures: u64,
    failed_at: Time,
}

impl From<(&PopName, Figures)> for Path {
    fn from((pop, figures): (&PopName, Figures)) -> Path {
        Path { pop: pop.to_string(), figures }
    }
}

/// Of a [`Path`], without whither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Round trip in microseconds.
    pub rtt_us: u32,
    /// Lost of what is sent there, in ten thousandths.
    pub loss_out: u16,
    /// Lost of what comes from there.
    pub loss_in: u16,
    /// Interarrival jitter of what comes from there, in microseconds.
    pub jitter_us: u32,
}

impl Figures {
    /// Something of what is sent there arrives.
    pub fn reaches(&self) -> bool {
        self.loss_out < LOSS_ALL
    }

    /// How late a packet is that goes there, in microseconds.
    pub fn cost_us(&self) -> u64 {
        let rtt = u64::from(self.rtt_us);
        let repair = rtt + rtt / 2 + REPAIR_US;
        rtt / 2 + u64::from(self.loss_out) * repair * LOSS_WEIGHT / 10_000 + 2 * u64::from(self.jitter_us)
    }

    /// Whether others have to be told of the difference.
    pub fn differs(&self, other: &Figures) -> bool {
        let far = |a: u32, b: u32, least: u32| a.abs_diff(b) > (a.max(b) / 8).max(least);
        let loss = |a: u16, b: u16| a.abs_diff(b) > (a.max(b) / 4).max(50);
        far(self.rtt_us, other.rtt_us, 2_000)
            || far(self.jitter_us, other.jitter_us, 2_000)
            || loss(self.loss_out, other.loss_out)
            || loss(self.loss_in, other.loss_in)
    }
}

/// What a node of another PoP measures.
#[derive(Debug)]
struct Row {
    pop: PopName,
    heard_at: Time,
    /// Nothing was heard for [`HEARD_LIFE`]. What it tells next is of what has changed alone, so the rest is kept, and counts again then.
    is_silent: bool,
    /// Those that are no more there, too, while their failures count.
    paths: BTreeMap<PopName, Known>,
}

/// The ways of one node of a PoP to the other PoPs. Its owner brings measurements, what others tell, and time, once a second.
#[derive(Debug)]
pub struct Routes {
    pop: PopName,
    /// What a transit costs beside [`TRANSIT_US`], in microseconds, by PoP.
    prices: BTreeMap<PopName, u64>,
    own: BTreeMap<PopName, Known>,
    rows: BTreeMap<NodeId, Row>,
    routes: BTreeMap<PopName, Route>,
    changes: VecDeque<Changed>,
    told: BTreeMap<PopName, Figures>,
    told_at: Option<Time>,
}

impl Routes {
    /// Of a node of `pop`. `prices`: what the operator says that a way through a PoP costs more, in microseconds.
    pub fn new(pop: PopName, prices: BTreeMap<PopName, u64>) -> Routes {
        Routes {
            pop,
            prices,
            own: BTreeMap::new(),
            rows: BTreeMap::new(),
            routes: BTreeMap::new(),
            changes: VecDeque::new(),
            told: BTreeMap::new(),
            told_at: None,
        }
    }

    /// How the path to a PoP is now; `None`: nothing comes from there. A PoP of which this is said is known from then on.
    pub fn measure(&mut self, now: Time, pop: &PopName, figures: Option<Figures>) {
        if *pop == self.pop || (self.own.len() >= PATHS_MAX && !self.own.contains_key(pop)) {
            return;
        }
        match self.own.get_mut(pop) {
            Some(known) => known.note(now, figures),
            None => self.own.entry(Arc::clone(pop)).or_default().note(now, figures),
        }
    }

    /// What a node of another PoP measures. Of PoPs that this node has no link with it counts for nothing: only a link
    /// proves that there is one. `gone`: PoPs that it does not reach any more, where it tells what has changed; else all that it does not name.
    /// Changes of what is not held count for nothing: they would pass for all that it measures.
    pub fn hear(&mut self, now: Time, node: NodeId, pop: &PopName, paths: &[Path], gone: Option<&[String]>) {
        if *pop == self.pop || (self.rows.len() >= PATHS_MAX && !self.rows.contains_key(&node)) {
            return;
        }
        // A link that proves it may come later, and what has not changed is not told again then.
        let told: BTreeMap<&str, Figures> =
            paths.iter().filter(|path| path.pop != **pop).map(|path| (path.pop.as_str(), path.figures)).collect();
        let before = self.rows.remove(&node).filter(|row| row.pop == *pop).map(|row| row.paths);
        if before.is_none() && gone.is_some() {
            return;
        }
        let mut paths = before.unwrap_or_default();
        match gone {
            None => {
                paths.iter_mut().filter(|(to, _)| !told.contains_key(&***to)).for_each(|(_, known)| known.note(now, None));
            }
            Some(gone) => {
                for pop in gone.iter().filter(|pop| !told.contains_key(pop.as_str())) {
                    paths.get_mut(pop.as_str()).into_iter().for_each(|known| known.note(now, None));
                }
            }
        }
        for (to, figures) in told {
            if let Some(known) = paths.get_mut(to) {
                known.note(now, Some(figures));
            } else if paths.len() < PATHS_MAX {
                // Most are known by this name already: hundreds of rows have one text of it.
                let to = self.own.get_key_value(to).map_or_else(|| PopName::from(to), |(to, _)| Arc::clone(to));
                paths.insert(to, Known { path: Some(figures), ..Known::default() });
            }
        }
        paths.retain(|_, known| known.path.is_some() || known.weight(now) > 0);
        self.rows.insert(node, Row { pop: Arc::clone(pop), heard_at: now, is_silent: false, paths });
    }

    /// There is no link with the node any longer: what it told is of no use.
    pub fn forget(&mut self, node: NodeId) {
        self.rows.remove(&node);
    }

    /// What a node of another PoP has said of the path to this one.
    pub fn heard(&self, node: NodeId, to: &str) -> Option<Figures> {
        self.rows.get(&node).filter(|row| !row.is_silent)?.paths.get(to)?.path
    }

    /// What of that which this PoP measures is to be told now: the paths that have changed, and PoPs that it does not reach any more; nothing,
    /// to say that the rest still holds. `has_news`: somebody has to be told something beside that.
    pub fn poll_told(&mut self, now: Time, has_news: bool) -> Option<(Vec<Path>, Vec<String>)> {
        let differs = |pop: &PopName, figures: &Figures| self.told.get(pop).is_none_or(|told| told.differs(figures));
        let paths: Vec<Path> = self.paths().filter(|(pop, figures)| differs(pop, figures)).map(Path::from).collect();
        let is_gone = |pop: &&PopName| self.own.get(*pop).is_none_or(|own| own.path.is_none());
        let gone: Vec<String> = self.told.keys().filter(is_gone).map(|pop| pop.to_string()).collect();
        let is_due = match self.told_at {
            None => !paths.is_empty(),
            Some(at) => now.since(at) >= TELL_EVERY || (now.since(at) >= TELL_PAUSE && (has_news || !paths.is_empty() || !gone.is_empty())),
        };
        if !is_due {
            return None;
        }
        self.told.retain(|pop, _| !gone.iter().any(|gone| **gone == **pop));
        self.told.extend(paths.iter().map(|path| (PopName::from(path.pop.as_str()), path.figures)));
        self.told_at = Some(now);
        Some((paths, gone))
    }

    /// All that this PoP measures, for whom nothing was told before.
    pub fn told(&self) -> Vec<Path> {
        self.paths().map(Path::from).collect()
    }

    /// Those of [`Self::matrix`] that this PoP measures.
    pub fn paths(&self) -> impl Iterator<Item = (&PopName, Figures)> {
        self.own.iter().filter_map(|(pop, own)| Some((pop, own.path?)))
    }

    /// Decides anew. To be called once a second, and when a path is no longer there.
    pub fn handle_timeout(&mut self, now: Time) {
        self.rows.values_mut().for_each(|row| row.is_silent = now.since(row.heard_at) >= HEARD_LIFE);
        for (to, ways) in self.ways(now) {
            let before = self.routes.remove(&to);
            let from = before.as_ref().map(|route| route.way.clone());
            let after = decide(now, before, ways);
            let way = after.as_ref().map(|route| route.way.clone());
            if way != from {
                self.changes.push_back(Changed { to: Arc::clone(&to), from, way });
            }
            if let Some(route) = after {
                self.routes.insert(to, route);
            }
        }
    }

    /// To each PoP the ways that may be taken and what they cost, the best first: the two best, the direct one, and the one that is taken now.
    fn ways(&self, now: Time) -> Vec<(PopName, Vec<(u64, Way)>)> {
        let names: Vec<&PopName> = self.own.keys().collect();
        // A way is the place of the PoP on it among `names`, which are in their order: that of two is the order of the ways themselves.
        let place = |pop: &PopName| names.binary_search(&pop).ok();
        let direct: Vec<Option<u64>> = self.own.values().map(|own| own.cost_us(now)).collect();
        let mut found: Vec<Found> = names
            .iter()
            .zip(&direct)
            .map(|(to, direct)| {
                let taken = match self.routes.get(*to).map(|route| &route.way) {
                    Some(Way::Via(pop)) => place(pop),
                    _ => None,
                };
                let mut found = Found { taken, ..Found::default() };
                direct.iter().for_each(|cost| found.offer(*cost, None));
                found
            })
            .collect();
        for row in self.rows.values().filter(|row| !row.is_silent) {
            let Some(via) = place(&row.pop) else { continue };
            let Some(first) = direct[via] else { continue };
            let first = first + TRANSIT_US + self.prices.get(&row.pop).copied().unwrap_or_default();
            // Both are in the order of names.
            let mut at = 0;
            for (to, known) in &row.paths {
                while names.get(at).is_some_and(|name| *name < to) {
                    at += 1;
                }
                if at != via
                    && names.get(at).is_some_and(|name| *name == to)
                    && let Some(second) = known.cost_us(now)
                {
                    found[at].offer(first + second, Some(via));
                }
            }
        }
        let way = |via: Option<usize>| via.map_or(Way::Direct, |via| Way::Via(Arc::clone(names[via])));
        let ways = |found: Found| found.ways().into_iter().map(|(cost, via)| (cost, way(via))).collect();
        names.iter().map(|name| Arc::clone(name)).zip(found.into_iter().map(ways)).collect()
    }

    /// How packets go to a PoP; `None`: not at all.
    pub fn route(&self, to: &str) -> Option<&Route> {
        self.routes.get(to)
    }

    /// All routes, by PoP.
    pub fn routes(&self) -> impl Iterator<Item = (&PopName, &Route)> {
        self.routes.iter()
    }

    /// PoPs that are known.
    pub fn pops(&self) -> impl Iterator<Item = &PopName> {
        self.own.keys()
    }

    /// How each path between two PoPs is that is known of: the one that measures, the other, what it measures. Of several nodes of a PoP the
    /// path of the one with the least cost.
    pub fn matrix(&self) -> BTreeMap<(PopName, PopName), Figures> {
        let own = self.own.iter().filter_map(|(to, own)| Some((Arc::clone(&self.pop), Arc::clone(to), own.path?)));
        let is_known = |pop: &PopName| *pop == self.pop || self.own.contains_key(pop);
        let of_row = |row: &'_ Row| {
            let known = row.paths.iter().filter(|(to, _)| is_known(to));
            known.filter_map(|(to, known)| Some((Arc::clone(&row.pop), Arc::clone(to), known.path?))).collect::<Vec<_>>()
        };
        let heard = self.rows.values().filter(|row| is_known(&row.pop) && !row.is_silent).flat_map(of_row);
        let mut matrix: BTreeMap<(PopName, PopName), Figures> = BTreeMap::new();
        for (from, to, figures) in own.chain(heard) {
            let known = matrix.entry((from, to)).or_insert(figures);
            if figures.cost_us() < known.cost_us() {
                *known = figures;
            }
        }
        matrix
    }

    /// What has changed since the last call.
    pub fn poll_change(&mut self) -> Option<Changed> {
        self.changes.pop_front()
    }
}

/// The ways to a PoP that may be taken. `None` is the direct one.
#[derive(Debug, Default)]
struct Found {
    best: Vec<(u64, Option<usize>)>,
    direct: Option<u64>,
    /// Over whom it goes now, and what that costs.
    taken: Option<usize>,
    kept: Option<u64>,
}

impl Found {
    /// A PoP of several nodes counts once.
    fn offer(&mut self, cost: u64, via: Option<usize>) {
        let known = if via.is_none() { &mut self.direct } else { &mut self.kept };
        if via.is_none() || via == self.taken {
            *known = Some(known.map_or(cost, |known| known.min(cost)));
        }
        if self.best.len() == 2 && self.best[1] <= (cost, via) {
            return;
        }
        match self.best.iter_mut().find(|(_, of)| *of == via) {
            Some((known, _)) => *known = cost.min(*known),
            None => self.best.push((cost, via)),
        }
        self.best.sort_unstable();
        self.best.truncate(2);
    }

    /// The best first.
    fn ways(self) -> Vec<(u64, Option<usize>)> {
        let Found { best: mut ways, direct, taken, kept } = self;
        ways.extend(direct.map(|cost| (cost, None)));
        ways.extend(kept.map(|cost| (cost, taken)));
        ways.sort_unstable();
        ways.dedup();
        ways
    }
}

impl Known {
    /// How it is now. That nothing goes there any more is a failure.
    fn note(&mut self, now: Time, figures: Option<Figures>) {
        let goes = |path: Option<Figures>| path.is_some_and(|path| path.reaches());
        if goes(self.path) && !goes(figures) {
            self.failures = (self.weight(now) / FAILED_US + 1).min(FAILURES_MAX);
            self.failed_at = now;
        }
        self.path = figures;
    }

    /// How late a packet is that goes there; `None`: none arrives.
    fn cost_us(&self, now: Time) -> Option<u64> {
        Some(self.path.filter(Figures::reaches)?.cost_us() + self.weight(now))
    }

    /// What its failures cost now.
    fn weight(&self, now: Time) -> u64 {
        let halves = now.since(self.failed_at).as_millis() / FAILED_HALF.as_millis();
        (self.failures * FAILED_US).checked_shr(u32::try_from(halves).unwrap_or(u32::MAX)).unwrap_or_default()
    }
}

/// The route after `before`, where these are the ways.
fn decide(now: Time, before: Option<Route>, ways: Vec<(u64, Way)>) -> Option<Route> {
    let (best_us, best) = ways.first()?;
    let direct_us = ways.iter().find(|(_, way)| *way == Way::Direct).map(|(cost, _)| *cost);
    let is_better = |than: u64| best_us + MARGIN_US.max(than / 10) < than;
    let (mut chosen, mut cost_us, mut reason, mut since, mut better_since) = (best, *best_us, Reason::Best, now, None);
    let kept = |way: &Way| ways.iter().find(|(_, of)| of == way);
    match &before {
        // Of two that are about the same the direct one is the simpler.
        None => {
            if let Some((direct_us, direct)) = kept(&Way::Direct).filter(|(cost, way)| way != best && !is_better(*cost)) {
                (chosen, cost_us, reason) = (direct, *direct_us, Reason::Kept);
            }
        }
        Some(before) => match kept(&before.way) {
            None => reason = Reason::Failed,
            Some((kept_us, kept)) => {
                better_since = before.better_since.filter(|_| is_better(*kept_us)).or(is_better(*kept_us).then_some(now));
                let is_due = now.since(before.since) >= CHANGE_PAUSE && better_since.is_some_and(|at| now.since(at) >= BETTER_FOR);
                if is_due {
                    better_since = None;
                } else {
                    (chosen, cost_us, since) = (kept, *kept_us, before.since);
                    // Why it was taken stands until another one costs less.
                    reason = match before.reason {
                        _ if best != kept => Reason::Kept,
                        Reason::Failed => Reason::Failed,
                        Reason::Best | Reason::Kept => Reason::Best,
                    };
                }
            }
        },
    }
    let backup = ways.iter().find(|(_, way)| way != chosen).map(|(_, way)| way.clone());
    Some(Route { way: chosen.clone(), cost_us, backup, direct_us, reason, since, better_since })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn path(rtt_ms: u32, loss: u16) -> Figures {
        Figures { rtt_us: rtt_ms * 1_000, loss_out: loss, loss_in: loss, jitter_us: 0 }
    }

    /// A node of fra, and ams and sin: 10 ms to ams, 160 ms to sin, and ams has `theirs` to sin.
    struct Rig {
        now: Time,
        routes: Routes,
        direct: Option<Figures>,
        theirs: Option<Figures>,
        changes: Vec<(u64, String)>,
    }

    impl Rig {
        fn new(theirs: Option<Figures>) -> Rig {
            let routes = Routes::new("fra".into(), BTreeMap::new());
            Rig { now: Time::ZERO, routes, direct: Some(path(160, 0)), theirs, changes: Vec::new() }
        }

        fn tick(&mut self) -> String {
            self.now = self.now + SECOND;
            let (ams, sin) = (PopName::from("ams"), PopName::from("sin"));
            self.routes.measure(self.now, &ams, Some(path(10, 0)));
            self.routes.measure(self.now, &sin, self.direct);
            let paths: Vec<Path> = self.theirs.map(|figures| Path { pop: "sin".to_owned(), figures }).into_iter().collect();
            self.routes.hear(self.now, NodeId(1), &ams, &paths, None);
            self.routes.handle_timeout(self.now);
            while let Some(change) = self.routes.poll_change() {
                if *change.to == *"sin" {
                    let way = change.way.map_or("none".to_owned(), |way| way.to_string());
                    self.changes.push((self.now.as_millis() / 1_000, way));
                }
            }
            self.routes.route("sin").map_or("none".to_owned(), |route| route.way.to_string())
        }

        fn ticks(&mut self, count: usize) -> Vec<String> {
            (0..count).map(|_| self.tick()).collect()
        }
    }

    #[test]
    fn a_way_through_another_is_taken_when_it_is_clearly_better() {
        let mut rig = Rig::new(Some(path(140, 0)));
        assert_eq!(rig.ticks(20), ["direct"; 20], "150 ms and a transit against 160 ms is not worth it");
        rig.theirs = Some(path(100, 0));
        let after = rig.ticks(10);
        assert_eq!(after.iter().filter(|way| *way == "via ams").count(), 8, "after two seconds: {after:?}");
        let route = rig.routes.route("sin").unwrap();
        assert_eq!((&route.backup, route.reason), (&Some(Way::Direct), Reason::Best));
        assert_eq!((route.cost_us, route.direct_us), (5_000 + 50_000 + TRANSIT_US, Some(80_000)));
    }

    #[test]
    fn a_path_that_is_gone_is_left_at_once_and_is_believed_again_when_it_has_held() {
        let mut rig = Rig::new(Some(path(200, 0)));
        rig.ticks(10);
        rig.direct = None;
        assert_eq!(rig.tick(), "via ams");
        assert_eq!(rig.routes.route("sin").unwrap().reason, Reason::Failed);
        rig.direct = Some(path(160, 0));
        let after = rig.ticks(120);
        let back = after.iter().position(|way| way == "direct").expect("it is taken again");
        assert!((20..=90).contains(&back), "after {back} s");
        assert!(after[back..].iter().all(|way| way == "direct"), "and kept");
    }

    #[test]
    fn a_gray_path_loses_to_a_longer_one() {
        let mut rig = Rig::new(Some(path(200, 0)));
        rig.ticks(10);
        rig.direct = Some(path(160, 3_000));
        assert_eq!(rig.ticks(4).last().unwrap(), "via ams", "30 % of loss");
        rig.theirs = Some(path(200, 5_000));
        rig.ticks(10);
        assert_eq!(rig.tick(), "direct", "the other one is worse now");
    }

    #[test]
    fn what_flaps_costs_few_changes() {
        let mut rig = Rig::new(Some(path(200, 0)));
        rig.ticks(10);
        for second in 0..60 {
            rig.direct = (second % 2 == 0).then(|| path(160, 0));
            rig.tick();
        }
        assert!(rig.changes.len() <= 3, "{:?}", rig.changes);
        let mut rig = Rig::new(Some(path(100, 0)));
        rig.ticks(10);
        // The better way comes and goes as what one measures does.
        for second in 0..60 {
            rig.theirs = Some(if second % 3 == 0 { path(190, 0) } else { path(100, 0) });
            rig.tick();
        }
        let changes: Vec<u64> = rig.changes.iter().map(|(at, _)| *at).collect();
        assert!(changes.windows(2).all(|pair| pair[1] - pair[0] >= 5), "{:?}", rig.changes);
    }

    #[test]
    fn a_second_path_that_flaps_is_believed_less_each_time() {
        let mut rig = Rig::new(Some(path(50, 0)));
        rig.ticks(10);
        // Eight seconds there, two not.
        for second in 0..60 {
            rig.theirs = (second % 10 < 8).then(|| path(50, 0));
            rig.tick();
        }
        // Each is left at once, so a change and back is the most that one failure costs.
        assert!(rig.changes.len() <= 5, "{:?}", rig.changes);
    }

    #[test]
    fn what_arrives_nowhere_is_told_and_is_no_way() {
        let mut rig = Rig::new(Some(path(50, 0)));
        rig.ticks(5);
        rig.direct = Some(Figures { loss_out: LOSS_ALL, ..path(160, 0) });
        rig.theirs = None;
        assert_eq!(rig.ticks(20).last().unwrap(), "none");
        let (told, _) = rig.routes.poll_told(rig.now, false).expect("it differs");
        assert_eq!(told.iter().find(|path| path.pop == "sin").map(|path| path.figures.loss_out), Some(LOSS_ALL));
        rig.theirs = Some(Figures { loss_out: LOSS_ALL, ..path(50, 0) });
        assert_eq!(rig.tick(), "none", "nor through one whose packets do not arrive");
    }

    #[test]
    fn a_price_makes_a_way_dearer() {
        let routes = Routes::new("fra".into(), BTreeMap::from([(PopName::from("ams"), 40_000)]));
        let mut rig = Rig { routes, ..Rig::new(Some(path(100, 0))) };
        assert_eq!(rig.ticks(20).last().unwrap(), "direct", "80 ms, against 55 and a transit of 43");
    }

    #[test]
    fn what_a_node_told_goes_with_its_link() {
        let mut rig = Rig::new(Some(path(50, 0)));
        assert_eq!(rig.ticks(10).last().unwrap(), "via ams");
        rig.routes.forget(NodeId(1));
        rig.routes.handle_timeout(rig.now);
        assert_eq!(rig.routes.route("sin").unwrap().way, Way::Direct);
    }

    #[test]
    fn nothing_is_believed_of_whom_no_link_proves() {
        let mut rig = Rig::new(None);
        rig.tick();
        let forged = |pop: &str| Path { pop: pop.to_owned(), figures: path(1, 0) };
        // One that is none, one of a PoP without a link, and itself.
        rig.routes.hear(rig.now, NodeId(2), &"nyc".into(), &[forged("sin")], None);
        rig.routes.hear(rig.now, NodeId(1), &"ams".into(), &[forged("moon"), forged("ams"), forged("fra")], None);
        rig.routes.handle_timeout(rig.now);
        assert_eq!(rig.routes.routes().map(|(to, route)| format!("{to} {}", route.way)).collect::<Vec<_>>(), ["ams direct", "sin direct"]);
        let paths: Vec<String> = rig.routes.matrix().keys().map(|(from, to)| format!("{from} {to}")).collect();
        assert_eq!(paths, ["ams fra", "fra ams", "fra sin"]);
    }

    #[test]
    fn what_was_told_of_a_pop_counts_as_soon_as_there_is_a_link_with_it() {
        let (mut routes, now, ams) = (Routes::new("fra".into(), BTreeMap::new()), Time::ZERO, PopName::from("ams"));
        let told = |pop: &str| Path { pop: pop.to_owned(), figures: path(50, 0) };
        routes.hear(now, NodeId(1), &ams, &[told("sin"), told("fra")], None);
        assert!(routes.matrix().is_empty());
        routes.measure(now, &ams, Some(path(10, 0)));
        routes.hear(now, NodeId(1), &ams, &[], Some(&[]));
        routes.measure(now, &"sin".into(), None);
        routes.handle_timeout(now);
        assert_eq!(routes.route("sin").map(|route| route.way.to_string()), Some("via ams".to_owned()));
        assert_eq!(routes.matrix().len(), 3);
        let many: Vec<Path> = (0..PATHS_MAX).map(|n| told(&n.to_string())).collect();
        routes.hear(now, NodeId(1), &ams, &many, Some(&[]));
        assert_eq!(routes.rows[&NodeId(1)].paths.len(), PATHS_MAX);
    }

    #[test]
    fn what_is_not_told_any_more_is_forgotten() {
        let mut rig = Rig::new(Some(path(50, 0)));
        rig.ticks(5);
        assert_eq!(rig.ticks(5).last().unwrap(), "via ams");
        for _ in 0..16 {
            rig.now = rig.now + SECOND;
            rig.routes.handle_timeout(rig.now);
        }
        assert_eq!(rig.routes.route("sin").unwrap().way, Way::Direct);
    }

    #[test]
    fn the_ways_that_are_looked_at_decide_as_all_ways_would() {
        let (mut seed, mut changes) = (7_u64, 0);
        let mut below = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % end
        };
        let names: Vec<PopName> = (0..12).map(|n| PopName::from(format!("pop-{n:02}"))).collect();
        let prices = BTreeMap::from([(names[4].clone(), 9_000), (names[7].clone(), 1)]);
        let mut routes = Routes::new(names[0].clone(), prices);
        for second in 0..300 {
            let now = Time::from_millis(second * 1_000);
            for pop in &names[1..10] {
                let figures = path(20 + below(20) as u32, below(2) as u16);
                routes.measure(now, pop, (below(8) > 0).then_some(figures));
            }
            // Of each PoP two nodes tell, of some that have no link, too.
            for node in 2..24 {
                let told = |pop: &PopName, figures| Path { pop: pop.to_string(), figures };
                let mut paths: Vec<Path> = names.iter().map(|pop| told(pop, path(20 + below(20) as u32, 0))).collect();
                paths.retain(|_| below(6) > 0);
                routes.hear(now, NodeId(node), &names[node as usize / 2], &paths, None);
            }
            let mut all: BTreeMap<PopName, Vec<(u64, Way)>> = BTreeMap::new();
            for to in routes.own.keys() {
                let mut best: BTreeMap<Way, u64> = routes.own[to].cost_us(now).map(|cost| (Way::Direct, cost)).into_iter().collect();
                for Row { pop, paths, .. } in routes.rows.values().filter(|row| row.pop != *to) {
                    let cost = |known: Option<&Known>| known.and_then(|known| known.cost_us(now));
                    let Some((first, second)) = cost(routes.own.get(pop)).zip(cost(paths.get(to))) else { continue };
                    let cost = first + second + TRANSIT_US + routes.prices.get(pop).copied().unwrap_or_default();
                    let known = best.entry(Way::Via(pop.clone())).or_insert(cost);
                    *known = cost.min(*known);
                }
                let mut ways: Vec<(u64, Way)> = best.into_iter().map(|(way, cost)| (cost, way)).collect();
                ways.sort();
                all.insert(to.clone(), ways);
            }
            let due: BTreeMap<PopName, Route> =
                all.into_iter().filter_map(|(to, ways)| Some((to.clone(), decide(now, routes.routes.get(&to).cloned(), ways)?))).collect();
            routes.handle_timeout(now);
            assert_eq!(routes.routes, due);
            changes += std::iter::from_fn(|| routes.poll_change()).count();
        }
        assert!(changes > 300, "{changes} changes");
    }

    #[test]
    fn what_is_told_of_changes_leaves_the_rest_as_it_was() {
        let mut rig = Rig::new(Some(path(50, 0)));
        assert_eq!(rig.ticks(10).last().unwrap(), "via ams");
        let ams = PopName::from("ams");
        let mut hear = |paths: &[Path], gone: &[&str]| {
            let gone: Vec<String> = gone.iter().map(|pop| (*pop).to_owned()).collect();
            rig.now = rig.now + SECOND;
            rig.routes.hear(rig.now, NodeId(1), &ams, paths, Some(&gone));
            rig.routes.handle_timeout(rig.now);
            rig.routes.route("sin").map(|route| route.way.to_string())
        };
        let via = Some("via ams".to_owned());
        for _ in 0..20 {
            assert_eq!(hear(&[], &[]), via, "it still holds");
        }
        assert_eq!(hear(&[Path { pop: "fra".to_owned(), figures: path(10, 0) }], &["nyc"]), via);
        assert_eq!(hear(&[], &["sin"]), Some("direct".to_owned()));
    }

    #[test]
    fn what_is_told_of_changes_after_a_silence_goes_on_from_what_was_told_before() {
        let mut rig = Rig::new(Some(path(50, 0)));
        assert_eq!(rig.ticks(10).last().unwrap(), "via ams");
        rig.now = rig.now + 20 * SECOND;
        rig.routes.handle_timeout(rig.now);
        assert_eq!(rig.routes.route("sin").unwrap().way, Way::Direct);
        assert_eq!((rig.routes.heard(NodeId(1), "sin"), rig.routes.matrix().len()), (None, 2), "of who is silent nothing is believed");
        let (ams, nyc) = (PopName::from("ams"), [Path { pop: "nyc".to_owned(), figures: path(10, 0) }]);
        for _ in 0..10 {
            rig.now = rig.now + SECOND;
            rig.routes.hear(rig.now, NodeId(1), &ams, &nyc, Some(&[]));
            rig.routes.handle_timeout(rig.now);
        }
        assert_eq!(rig.routes.route("sin").unwrap().way.to_string(), "via ams", "it has not changed");
        // Of another node all is told before.
        rig.routes.hear(rig.now, NodeId(2), &ams, &nyc, Some(&[]));
        assert_eq!(rig.routes.heard(NodeId(2), "nyc"), None);
        rig.routes.hear(rig.now, NodeId(2), &ams, &nyc, None);
        assert!(rig.routes.heard(NodeId(2), "nyc").is_some());
    }

    #[test]
    fn what_has_changed_is_told_soon_and_the_rest_now_and_then() {
        let mut rig = Rig::new(None);
        rig.tick();
        let (told, _) = rig.routes.poll_told(rig.now, false).expect("the first time");
        assert_eq!(told.iter().map(|path| path.pop.as_str()).collect::<Vec<_>>(), ["ams", "sin"]);
        let mut times = Vec::new();
        for second in 1..=12 {
            rig.direct = Some(path(if second < 4 { 161 } else { 200 }, 0));
            rig.tick();
            times.extend(rig.routes.poll_told(rig.now, false).map(|(told, _)| (second, told.len())));
        }
        assert_eq!(times, [(4, 1), (9, 0)], "what has changed, and that the rest holds");
        rig.direct = None;
        rig.tick();
        assert_eq!(rig.routes.poll_told(rig.now, false), Some((Vec::new(), vec!["sin".to_owned()])));
        rig.direct = Some(path(200, 0));
        rig.tick();
        assert_eq!(rig.routes.poll_told(rig.now, false).map(|(told, gone)| (told.len(), gone.len())), Some((1, 0)), "it is there again");
        assert_eq!(rig.routes.told().len(), 2, "who is new is told of all");
    }
}
