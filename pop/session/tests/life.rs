//! A node and one that watches it, whose threads run when they get to: in fake time, by seed.

use std::time::Duration;

use pop_schemas::Time;
use pop_session::life::{Fate, Life, SILENCE_CUT_MAX, VERDICT_WAIT_MAX, VERDICT_WAIT_OTHERS_MAX, Verdict, Way, Witness, verdict};

/// Fast enough, and the same everywhere.
struct Dice(u64);

impl Dice {
    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// How late threads run, in milliseconds: mostly, and one time in a hundred.
#[derive(Clone, Copy)]
struct Load {
    mostly: u64,
    seldom: u64,
}

const CALM: Load = Load { mostly: 2, seldom: 4 };
/// Sixteen who want all of two processors.
const HOGS: Load = Load { mostly: 60, seldom: 180 };

/// Runs every `period_ms` and is late.
struct Thread {
    period_ms: u64,
    at_ms: u64,
}

impl Thread {
    fn is_due(&mut self, now_ms: u64, load: Load, dice: &mut Dice) -> bool {
        if self.at_ms > now_ms {
            return false;
        }
        let late = if dice.below(100) == 0 { load.seldom } else { load.mostly };
        self.at_ms = now_ms + self.period_ms + dice.below(late + 1);
        true
    }
}

/// What becomes of the node that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    None,
    /// Its process ends, and the kernel ends its connections.
    Crash,
    /// It stands still.
    Hang,
    /// Nothing of it comes.
    Silent,
    /// No packets of it come.
    NoPackets,
}

/// The watched node sends on three ways; the watcher reads each when its thread for that gets to run.
struct World {
    dice: Dice,
    now_ms: u64,
    life: Life,
    theirs: Load,
    ours: Load,
    loss_percent: u64,
    senders: [Thread; 3],
    readers: [Thread; 3],
    look: Thread,
    /// On the way to the watcher, by when they are there.
    wire: [Vec<u64>; 3],
    listened: Time,
    last_sent_ms: u64,
    frozen_until_ms: u64,
    fates: Vec<(u64, Fate)>,
}

impl World {
    fn new(seed: u64, theirs: Load, ours: Load) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut thread = |period_ms| Thread { period_ms, at_ms: dice.below(50) };
        let senders = [thread(50), thread(100), thread(50)];
        let readers = [thread(0), thread(0), thread(10)];
        World {
            dice,
            now_ms: 0,
            life: Life::default(),
            theirs,
            ours,
            loss_percent: 2,
            senders,
            readers,
            look: Thread { period_ms: 0, at_ms: 0 },
            wire: Default::default(),
            listened: Time::ZERO,
            last_sent_ms: 0,
            frozen_until_ms: 0,
            fates: Vec::new(),
        }
    }

    fn step(&mut self, harm: Harm) {
        let (ms, now) = (self.now_ms, Time::from_millis(self.now_ms));
        for (at, sender) in self.senders.iter_mut().enumerate() {
            let is_packets = at == Way::Packets as usize;
            let is_gone = match harm {
                Harm::None => false,
                Harm::NoPackets => is_packets,
                Harm::Crash | Harm::Hang | Harm::Silent => true,
            };
            if sender.is_due(ms, self.theirs, &mut self.dice) && !is_gone {
                if !is_packets || self.dice.below(100) >= self.loss_percent {
                    self.wire[at].push(ms + self.dice.below(2));
                }
                self.last_sent_ms = if harm == Harm::NoPackets { self.last_sent_ms } else { ms };
            }
        }
        if ms < self.frozen_until_ms {
            self.now_ms += 1;
            return;
        }
        for (at, reader) in self.readers.iter_mut().enumerate() {
            if !reader.is_due(ms, self.ours, &mut self.dice) {
                continue;
            }
            let way = Way::ALL[at];
            let before = self.wire[at].len();
            self.wire[at].retain(|there| *there > ms);
            if self.wire[at].len() < before {
                self.life.hear(way, now);
            }
            if way == Way::Packets {
                self.listened = now;
            } else if harm == Harm::Crash {
                self.life.end(way);
                if way == Way::Link {
                    self.life.end(Way::Packets);
                }
            }
        }
        if self.look.at_ms <= ms {
            self.fates.extend(self.life.judge(now, self.listened).map(|fate| (ms, fate)));
            let planned = self.life.look_at().since(now).as_millis() as u64;
            self.look.period_ms = planned;
            self.look.is_due(ms, self.ours, &mut self.dice);
        }
        self.now_ms += 1;
    }

    fn run(&mut self, ms: u64, harm: Harm) {
        for _ in 0..ms {
            self.step(harm);
        }
    }
}

#[test]
fn nobody_is_dead_because_threads_get_to_run_late() {
    for seed in 0..60 {
        let mut world = World::new(seed, HOGS, HOGS);
        world.run(60_000, Harm::None);
        assert_eq!(world.fates, [], "seed {seed}");
    }
}

#[test]
fn nobody_is_dead_because_the_watcher_stood_still() {
    for seed in 0..60 {
        let mut world = World::new(seed, CALM, CALM);
        for _ in 0..20 {
            world.run(1_000, Harm::None);
            world.frozen_until_ms = world.now_ms + world.dice.below(5_000);
        }
        world.run(6_000, Harm::None);
        assert_eq!(world.fates, [], "seed {seed}");
    }
}

#[test]
fn a_stop_of_two_tenths_of_a_second_is_not_seen() {
    for seed in 0..200 {
        let mut world = World::new(seed, CALM, CALM);
        let at = 1_000 + world.dice.below(500);
        world.run(at, Harm::None);
        world.run(200, Harm::Hang);
        world.run(1_000, Harm::None);
        assert_eq!(world.fates, [], "seed {seed}");
    }
}

#[test]
fn a_node_that_ends_in_whatever_way_is_dead_within_three_tenths_of_a_second() {
    for harm in [Harm::Crash, Harm::Hang, Harm::Silent] {
        let mut slowest = 0;
        for seed in 0..200 {
            let mut world = World::new(seed, CALM, CALM);
            let at = 2_000 + world.dice.below(500);
            world.run(at, Harm::None);
            world.run(500, harm);
            let [(told_ms, Fate::Dead)] = world.fates[..] else { panic!("seed {seed}, {harm:?}: {:?}", world.fates) };
            let took_ms = told_ms - world.last_sent_ms;
            assert!(took_ms <= 300, "seed {seed}, {harm:?}: {took_ms} ms");
            slowest = slowest.max(took_ms);
        }
        println!("{harm:?}: at most {slowest} ms after the last sign of life");
        assert!(harm != Harm::Crash || slowest <= 180);
    }
}

#[test]
fn a_node_of_which_no_packets_come_is_cut_off_and_not_dead_until_they_come_again() {
    for seed in 0..100 {
        let mut world = World::new(seed, CALM, CALM);
        world.run(2_000, Harm::None);
        let cut_ms = world.last_sent_ms;
        world.run(1_500, Harm::NoPackets);
        let [(told_ms, Fate::Cut)] = world.fates[..] else { panic!("seed {seed}: {:?}", world.fates) };
        assert!(told_ms - cut_ms <= SILENCE_CUT_MAX.as_millis() as u64 + 100, "seed {seed}: {} ms", told_ms - cut_ms);
        world.run(500, Harm::None);
        assert!(matches!(world.fates[..], [_, (_, Fate::Alive)]), "seed {seed}: {:?}", world.fates);
    }
}

#[test]
fn a_node_that_is_heard_again_is_back_by_what_it_says_then_alone() {
    for seed in 0..100 {
        let mut world = World::new(seed, CALM, HOGS);
        world.run(2_000, Harm::None);
        world.run(3_000, Harm::Silent);
        assert_eq!(world.life.fate(), Fate::Dead, "seed {seed}: {:?}", world.fates);
        let told = world.fates.len();
        world.run(1_000, Harm::None);
        assert_eq!(world.life.fate(), Fate::Alive, "seed {seed}: {:?}", world.fates);
        assert!(!world.fates[told..].iter().any(|(_, fate)| *fate == Fate::Dead));
    }
}

#[test]
fn one_connection_that_ends_says_nothing_of_a_node() {
    let mut world = World::new(7, CALM, CALM);
    world.run(2_000, Harm::None);
    for _ in 0..1_000 {
        world.life.end(Way::Bus);
        world.step(Harm::None);
    }
    assert_eq!(world.fates, []);
    assert!(world.life.heard_at().is_some_and(|at| Time::from_millis(world.now_ms).since(at) < Duration::from_millis(100)));
}

/// When a node of which only the bus ever told is held for dead, its connection of the bus having ended so long after its last beat.
#[test]
fn a_node_that_has_no_link_yet_is_not_dead_because_the_bus_began_anew() {
    let mut life = Life::default();
    let at = Time::from_millis;
    life.hear(Way::Bus, at(1_000));
    let mut dead_at = None;
    for now in (1_000..2_000).step_by(5).map(at) {
        life.end(Way::Bus);
        dead_at = dead_at.or_else(|| life.judge(now, now).map(|fate| (fate, now)));
        if dead_at.is_none() && now == at(1_400) {
            assert_eq!(life.fate(), Fate::Alive, "it has 0.45 s to come again");
        }
    }
    assert!(dead_at.is_some_and(|(fate, when)| fate == Fate::Dead && when <= at(1_480)), "{dead_at:?}");
}

/// Verdicts of others that are connected, or not (`x`): `A`, `D`: they hold it for alive, for dead; `a`: as `A`, and they stood still
/// themselves; `?`: they have said nothing.
fn witnesses(of: &str) -> Vec<Witness> {
    let said = |letter| match letter {
        'A' | 'a' => Some(false),
        'D' => Some(true),
        _ => None,
    };
    of.chars().map(|letter| Witness { is_connected: letter != 'x', holds_dead: said(letter), stood_still: letter == 'a' }).collect()
}

#[test]
fn a_node_that_stood_still_waits_for_nobody_who_died_meanwhile_when_another_speaks_for_it() {
    let after = |of, waited| verdict(&witnesses(of), waited);
    let alive = |is_settled| Verdict::Alive { is_settled };
    assert_eq!(after("AA", Duration::ZERO), alive(true));
    assert_eq!(after("AD", Duration::ZERO), Verdict::Dead);
    assert_eq!(after("xD", Duration::ZERO), Verdict::Dead);
    assert_eq!(after("Ax", Duration::ZERO), alive(false), "its connections have ended");
    assert_eq!(after("A?", VERDICT_WAIT_OTHERS_MAX - Duration::from_millis(1)), Verdict::Wait, "it may answer yet");
    assert_eq!(after("A?", VERDICT_WAIT_OTHERS_MAX), alive(false), "its host is silent");
}

#[test]
fn who_stood_still_with_it_does_not_speak_for_those_who_may_hold_both_for_dead() {
    let after = |of, waited| verdict(&witnesses(of), waited);
    assert_eq!(after("ax", VERDICT_WAIT_MAX - Duration::from_millis(1)), Verdict::Wait, "the third may have the people of both");
    assert_eq!(after("aD", Duration::ZERO), Verdict::Dead);
    assert_eq!(after("aA", Duration::ZERO), Verdict::Alive { is_settled: true });
    assert_eq!(after("aa", Duration::ZERO), Verdict::Alive { is_settled: false }, "all stood still: nobody knows more");
}

#[test]
fn a_node_that_stood_still_and_finds_nobody_waits_for_connections_anew() {
    let after = |of, waited| verdict(&witnesses(of), waited);
    for nobody in ["xx", "??", "x?"] {
        assert_eq!(after(nobody, VERDICT_WAIT_MAX - Duration::from_millis(1)), Verdict::Wait);
        assert_eq!(after(nobody, VERDICT_WAIT_MAX), Verdict::Alive { is_settled: false });
    }
    assert_eq!(after("", Duration::ZERO), Verdict::Alive { is_settled: false }, "it is alone");
}
