//! A mesh of many PoPs in fake time: what each measures enters as smoothed results, a second apart, and some decide, with the real
//! [`Routes`], while paths fail, turn gray and take detours. Beside each decision is that of an oracle, which knows how each path is now.
//!
//! ```text
//! dice -> a pair is cut, gray or slow; the uplink of a PoP is lossy, slow or away
//!           |
//! truth --smoothed--> Routes::measure of each PoP --poll_told, a second later--> Routes::hear of those that decide
//!    \--------------> oracle: the least cost now          handle_timeout --> way: what does it cost now?
//!     \-------------------------------------------------------------------> packets of some sessions, over links of those that decide
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use pop_relay::control::{self, Message, Paths};
use pop_relay::route::{Figures, LOSS_ALL, PopName, Routes, TRANSIT_US, Way};
use pop_schemas::{NodeId, Time};

use crate::dice::Dice;
use crate::packets::{PacketFigures, Packets, Paths as World};

/// Seconds without a datagram after which a path is gone.
const SILENT_MAX: u8 = 2;

/// Of the loss of a second this share, of sixteen, is believed at once.
const NEW_SHARE: u32 = 6;

/// All paths are told so often, in seconds, else those that have changed.
const TELL_ALL_EVERY: u32 = 60;

/// Seconds between two cuts of paths that packets take.
const CUT_EVERY: u32 = 10;

/// Packets are sent when each knows the ways, and until so long before the end.
const PACKETS_FROM_S: u32 = 5;
const PACKETS_UNTIL_S: u32 = 3;

/// The oracle is asked each so many seconds.
const ORACLE_EVERY: u32 = 5;

/// Seconds between two troubles of a path. One lasts a minute.
const TROUBLE_EVERY: usize = 6_000;

/// A choice is as good as the best one when it costs no more than this beyond it: what [`Routes`] does not change a way for.
const MARGIN_US: u64 = 5_000;

/// How a path is besides its length.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    until: u32,
    is_cut: bool,
    /// Lost in the direction from the lower to the higher PoP, and back, in ten thousandths.
    loss: [u16; 2],
    detour_us: u32,
}

/// A pair's path, as the lower end and the higher one see it.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    loss_in: [u16; 2],
    silent: u8,
}

/// What a run found.
#[derive(Debug, Default)]
pub struct OverlayFigures {
    /// Choices that the oracle judged.
    pub choices: u64,
    /// Of these, as good as the best.
    pub good: u64,
    /// Of these, ways on which nothing arrives although there is one.
    pub dead: u64,
    /// How much later than by the best way a packet is, of choices on which packets arrive, in microseconds; sorted.
    pub regrets_us: Vec<u64>,
    /// How long a way was taken on which nothing arrived, in seconds; sorted.
    pub outages_s: Vec<u32>,
    /// Times that a way became another one.
    pub changes: u64,
    /// PoPs that decided, and seconds.
    pub deciders: usize,
    /// See `deciders`.
    pub seconds: u32,
    /// Bytes that a PoP has told all others, of all PoPs together.
    pub told_bytes: u64,
    /// PoPs.
    pub pops: usize,
    /// Things that happened to paths.
    pub troubles: u64,
    /// What became of the packets of some sessions.
    pub packets: PacketFigures,
}

impl OverlayFigures {
    /// The value below which this share of a sorted list is.
    pub fn share<T: Copy + Default>(list: &[T], share: f64) -> T {
        list.get(((list.len() as f64 * share) as usize).min(list.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// Control bits per second that a PoP sends to all others together.
    pub fn control_kbps(&self) -> f64 {
        self.told_bytes as f64 * 8.0 / 1_000.0 / f64::from(self.seconds) / self.pops as f64
    }
}

/// Round trip of each pair of so many PoPs, the lower one first, in microseconds.
pub(crate) fn rtts(dice: &mut Dice, pops: usize) -> Vec<u32> {
    // Regions on a plane of 20,000 km, most PoPs near the middle of one.
    let regions: Vec<(f64, f64)> = (0..8).map(|_| (dice.below(20_000) as f64, dice.below(10_000) as f64)).collect();
    let places: Vec<(f64, f64)> = (0..pops)
        .map(|_| {
            let (x, y) = regions[dice.below(regions.len())];
            (x + dice.below(2_400) as f64 - 1_200.0, y + dice.below(2_400) as f64 - 1_200.0)
        })
        .collect();
    let mut rtts = vec![0; pops * pops];
    for a in 0..pops {
        for b in a + 1..pops {
            let ((ax, ay), (bx, by)) = (places[a], places[b]);
            let km = (ax - bx).hypot(ay - by);
            // Light in fibre, 100 km a millisecond there and back; few paths are straight, and some go around half a continent.
            let stretch = 1.2 + dice.below(60) as f64 / 100.0 + if dice.once_in(12) { 1.0 } else { 0.0 };
            rtts[a * pops + b] = 1_500 + (km * 10.0 * stretch) as u32;
        }
    }
    rtts
}

/// The mesh.
pub struct OverlayWorld {
    dice: Dice,
    second: u32,
    names: Vec<PopName>,
    /// Round trip of each pair, in microseconds.
    rtts: Vec<u32>,
    troubles: Vec<Trouble>,
    uplinks: Vec<Trouble>,
    measured: Vec<Measured>,
    routes: Vec<Routes>,
    deciders: Vec<usize>,
    /// When each tells of all paths, beginning with the first time.
    tells_all_at: Vec<u32>,
    /// What one has told another one, and waits for their path.
    late: BTreeMap<(usize, usize), Paths>,
    /// Of each decider and destination, since when nothing arrives.
    dead_since: BTreeMap<(usize, usize), u32>,
    packets: Option<Packets>,
    figures: OverlayFigures,
}

impl World for OverlayWorld {
    fn path(&self, from: usize, to: usize) -> Option<Figures> {
        self.truth(from, to)
    }

    fn is_cut_off(&self, pop: usize) -> bool {
        self.uplinks[pop].until > self.second && self.uplinks[pop].is_cut
    }
}

impl OverlayWorld {
    /// So many PoPs, each with a link to each, of which so many decide. Between these are so many sessions of which packets are sent.
    pub fn new(seed: u64, pops: usize, deciders: usize, sampled: usize) -> OverlayWorld {
        let mut dice = Dice(seed);
        let names: Vec<PopName> = (0..pops).map(|n| PopName::from(format!("pop-{n:03}"))).collect();
        let rtts = rtts(&mut dice, pops);
        let routes = names.iter().map(|name| Routes::new(Arc::clone(name), BTreeMap::new())).collect();
        let deciders: Vec<usize> = (0..deciders).map(|n| n * pops / deciders).collect();
        let began = Time::from_millis((PACKETS_FROM_S * 1_000).into());
        let packets = (sampled > 0 && deciders.len() > 1).then(|| Packets::new(seed, began, &deciders, sampled));
        let (troubles, measured) = (vec![Trouble::default(); pops * pops], vec![Measured::default(); pops * pops]);
        let tells_all_at = vec![0; pops];
        let (uplinks, figures) = (vec![Trouble::default(); pops], OverlayFigures::default());
        let (late, dead_since) = Default::default();
        OverlayWorld {
            dice,
            second: 0,
            names,
            rtts,
            troubles,
            uplinks,
            measured,
            routes,
            deciders,
            tells_all_at,
            late,
            dead_since,
            packets,
            figures,
        }
    }

    /// Runs for so many seconds.
    pub fn run(mut self, seconds: u32) -> OverlayFigures {
        for _ in 0..seconds {
            self.second += 1;
            self.happen();
            self.send(seconds);
            self.measure();
            self.tell();
            self.decide();
        }
        let still: Vec<u32> = self.dead_since.values().map(|since| self.second - since).collect();
        let OverlayWorld { mut figures, deciders, routes, packets, .. } = self;
        figures.packets = packets.map(Packets::finish).unwrap_or_default();
        figures.outages_s.extend(still);
        figures.outages_s.sort_unstable();
        figures.regrets_us.sort_unstable();
        (figures.deciders, figures.pops, figures.seconds) = (deciders.len(), routes.len(), seconds);
        figures
    }

    /// A second of packets, by the ways that were chosen before it.
    fn send(&mut self, seconds: u32) {
        if self.second < PACKETS_FROM_S {
            return;
        }
        let Some(mut packets) = self.packets.take() else { return };
        if self.second + PACKETS_UNTIL_S > seconds {
            packets.fall_silent();
        }
        for (from, to) in packets.pairs() {
            let route = self.routes[from].route(&self.names[to]);
            let place = |way: &Way| match way {
                Way::Direct => None,
                Way::Via(pop) => self.names.binary_search(pop).ok(),
            };
            // One that has no way stays at what it has.
            if let Some(route) = route {
                packets.route((from, to), place(&route.way), route.backup.as_ref().map(place), self);
            }
        }
        packets.run(Time::from_millis((u64::from(self.second) + 1) * 1_000), self);
        self.packets = Some(packets);
    }

    fn trouble(&mut self, longest: usize) -> Trouble {
        let until = self.second + 2 + self.dice.below(longest) as u32;
        let (kind, loss) = (self.dice.below(4), [self.dice.below(3_000) as u16, self.dice.below(3_000) as u16]);
        let trouble = Trouble { until, ..Trouble::default() };
        self.figures.troubles += 1;
        match kind {
            0 => Trouble { is_cut: true, ..trouble },
            1 => Trouble { loss: [loss[0], 0], ..trouble },
            2 => Trouble { loss, ..trouble },
            _ => Trouble { detour_us: 10_000 + self.dice.below(140_000) as u32, ..trouble },
        }
    }

    /// About one path of a hundred has trouble at a time, and now and then a whole PoP.
    fn happen(&mut self) {
        let pops = self.names.len();
        for _ in 0..(pops * pops / 2 + self.dice.below(TROUBLE_EVERY)) / TROUBLE_EVERY {
            let (a, b) = (self.dice.below(pops), self.dice.below(pops));
            if a != b && self.troubles[a.min(b) * pops + a.max(b)].until <= self.second {
                self.troubles[a.min(b) * pops + a.max(b)] = self.trouble(120);
            }
        }
        // Paths that packets take are cut more often than others, so that many ways fail under them.
        if let Some(packets) = self.packets.as_ref().filter(|_| self.second.is_multiple_of(CUT_EVERY))
            && let Some((a, b)) = packets.draw_path(&mut self.dice)
            && self.troubles[a.min(b) * pops + a.max(b)].until <= self.second
        {
            let until = self.second + 5 + self.dice.below(60) as u32;
            self.troubles[a.min(b) * pops + a.max(b)] = Trouble { until, is_cut: true, ..Trouble::default() };
            self.figures.troubles += 1;
        }
        if self.dice.once_in(60) {
            let pop = self.dice.below(pops);
            if self.uplinks[pop].until <= self.second {
                self.uplinks[pop] = self.trouble(30);
            }
        }
    }

    /// How the path from `a` to `b` is now; `None`: nothing passes.
    fn truth(&self, a: usize, b: usize) -> Option<Figures> {
        let at = self.at(a, b);
        let (mut rtt_us, mut out, mut back) = (self.rtts[at], 5_u32, 5_u32);
        for (of, forth) in [(&self.troubles[at], a < b), (&self.uplinks[a], true), (&self.uplinks[b], false)] {
            if of.until <= self.second {
                continue;
            }
            if of.is_cut {
                return None;
            }
            rtt_us += of.detour_us;
            let (first, second) = if forth { (of.loss[0], of.loss[1]) } else { (of.loss[1], of.loss[0]) };
            (out, back) = (out + u32::from(first), back + u32::from(second));
        }
        let capped = |loss: u32| loss.min(u32::from(LOSS_ALL) - 1) as u16;
        Some(Figures { rtt_us, loss_out: capped(out), loss_in: capped(back), jitter_us: rtt_us / 50 })
    }

    fn at(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.names.len() + a.max(b)
    }

    fn measure(&mut self) {
        let (pops, now) = (self.names.len(), self.now());
        for a in 0..pops {
            for b in a + 1..pops {
                let (at, truth) = (self.at(a, b), self.truth(a, b));
                let measured = &mut self.measured[at];
                measured.silent = if truth.is_some() { 0 } else { measured.silent.saturating_add(1) };
                if let Some(Figures { loss_in, loss_out, .. }) = truth {
                    for (known, came) in measured.loss_in.iter_mut().zip([loss_in, loss_out]) {
                        *known = ((u32::from(came) * NEW_SHARE + u32::from(*known) * (16 - NEW_SHARE)) / 16) as u16;
                    }
                } else if measured.silent < SILENT_MAX {
                    continue;
                }
                let [at_a, at_b] = measured.loss_in;
                let of = |loss_out, loss_in| truth.map(|figures| Figures { loss_out, loss_in, ..figures });
                self.routes[a].measure(now, &self.names[b], of(at_b, at_a));
                self.routes[b].measure(now, &self.names[a], of(at_a, at_b));
            }
        }
    }

    fn now(&self) -> Time {
        Time::from_millis(u64::from(self.second) * 1_000)
    }

    /// What is told in a second is heard by the next decision.
    fn tell(&mut self) {
        let (pops, now) = (self.names.len(), self.now());
        for from in 0..pops {
            let Some((changed, gone)) = self.routes[from].poll_told(now, false) else { continue };
            let is_all = self.second >= self.tells_all_at[from];
            if is_all {
                // Links come up at different times.
                let is_first = self.tells_all_at[from] == 0;
                self.tells_all_at[from] = self.second + if is_first { 1 + from as u32 % TELL_ALL_EVERY } else { TELL_ALL_EVERY };
            }
            let told = Paths { paths: if is_all { self.routes[from].told() } else { changed }, changes: !is_all, gone, ..Paths::default() };
            let told = if is_all { Paths { gone: Vec::new(), ..told } } else { told };
            self.count_told(&told);
            for decider in self.deciders.clone().into_iter().filter(|decider| *decider != from) {
                let mut told = told.clone();
                if let Some(mut before) = self.late.remove(&(from, decider)) {
                    before.add(told);
                    told = before;
                }
                // Over its own path, when that is there.
                if self.truth(from, decider).is_none() {
                    self.late.insert((from, decider), told);
                    continue;
                }
                let gone = told.changes.then_some(told.gone.as_slice());
                self.routes[decider].hear(now, NodeId(from as u64), &self.names[from], &told.paths, gone);
            }
        }
    }

    fn count_told(&mut self, told: &Paths) {
        let told = Message::Paths(Paths { release: "0.1.0".to_owned(), ..told.clone() });
        let len = control::encode(&told, control::VERSION).map_or(0, |bytes| bytes.len());
        self.figures.told_bytes += len as u64 * (self.names.len() as u64 - 1);
    }

    /// What a way costs now; `None`: nothing arrives.
    fn cost(&self, from: usize, to: usize, via: Option<usize>) -> Option<u64> {
        match via {
            None => Some(self.truth(from, to)?.cost_us()),
            Some(via) => Some(self.truth(from, via)?.cost_us() + self.truth(via, to)?.cost_us() + TRANSIT_US),
        }
    }

    fn decide(&mut self) {
        let (pops, now) = (self.names.len(), self.now());
        for decider in self.deciders.clone() {
            self.routes[decider].handle_timeout(now);
            while self.routes[decider].poll_change().is_some() {
                self.figures.changes += 1;
            }
            for to in (0..pops).filter(|to| *to != decider) {
                let way = self.routes[decider].route(&self.names[to]).map(|route| &route.way);
                let via = match way {
                    Some(Way::Via(pop)) => self.names.iter().position(|name| name == pop),
                    _ => None,
                };
                let cost = way.and_then(|_| self.cost(decider, to, via));
                match cost {
                    Some(_) => {
                        let since = self.dead_since.remove(&(decider, to));
                        self.figures.outages_s.extend(since.map(|since| self.second - since));
                    }
                    // A PoP that is away has no way.
                    None if self.uplinks[to].until > self.second && self.uplinks[to].is_cut => {}
                    None if self.uplinks[decider].until > self.second && self.uplinks[decider].is_cut => {}
                    None => drop(self.dead_since.entry((decider, to)).or_insert(self.second)),
                }
                if self.second.is_multiple_of(ORACLE_EVERY) {
                    self.judge(decider, to, cost);
                }
            }
        }
    }

    fn judge(&mut self, from: usize, to: usize, cost: Option<u64>) {
        let vias = (0..self.names.len()).filter(|via| ![from, to].contains(via)).map(Some);
        let Some(best) = vias.chain([None]).filter_map(|via| self.cost(from, to, via)).min() else { return };
        self.figures.choices += 1;
        match cost {
            Some(cost) => {
                self.figures.good += u64::from(cost <= best + MARGIN_US.max(best / 10));
                self.figures.regrets_us.push(cost.saturating_sub(best));
            }
            None => self.figures.dead += 1,
        }
    }
}
