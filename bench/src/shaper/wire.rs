//! One direction between two ends.

use std::collections::VecDeque;
use std::time::Duration;

use pop_schemas::Time;
use serde::Serialize;

use super::settings::{Jitter, JitterShape, Loss, Settings};
use crate::seeded::SplitMix64;

/// One direction: what it does, what its next packet depends on, and what became of all packets.
#[derive(Debug)]
pub struct Wire {
    pub(super) settings: Settings,
    pub(super) stats: WireStats,
    dice: Dice,
    /// Gilbert and Elliott's bad state.
    bad: bool,
    /// When each packet in the queue will have been transmitted, ascending; those of the past are taken off at the next packet.
    transmitted: VecDeque<Time>,
    /// When the latest packet in order arrives: none in order arrives before it.
    last_due: Time,
}

/// What became of the packets that were sent into a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WireStats {
    /// Sent into it.
    pub packets: u64,
    /// Bytes of them, IP headers included.
    pub bytes: u64,
    /// Handed to the other end, duplicates included.
    pub delivered: u64,
    /// Bytes of them.
    pub delivered_bytes: u64,
    /// Dropped by `loss`, or because the wire is down.
    pub lost: u64,
    /// Dropped because the queue before the rate was full.
    pub queue_full: u64,
    /// Dropped because they are longer than `mtu`.
    pub too_long: u64,
    /// Dropped because the shaper holds as many packets as it may.
    pub no_room: u64,
    /// Held back behind later ones.
    pub reordered: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// With a flipped bit.
    pub corrupted: u64,
}

/// A sequence for each kind of decision: another jitter loses the same packets.
#[derive(Debug)]
struct Dice {
    loss: SplitMix64,
    jitter: SplitMix64,
    reorder: SplitMix64,
    duplicate: SplitMix64,
    corrupt: SplitMix64,
}

/// One arrival of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) due: Time,
    /// Which bit to flip.
    pub(super) corrupt: Option<u64>,
}

/// None, one or two.
#[derive(Debug, Default)]
pub(super) struct Copies([Option<Copy>; 2]);

impl Copies {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Copy> {
        self.0.iter().flatten()
    }
}

impl Wire {
    pub(super) fn new(seed: u64) -> Self {
        let mut seeds = SplitMix64::new(seed);
        let mut next = || SplitMix64::new(seeds.next_u64());
        let dice = Dice { loss: next(), jitter: next(), reorder: next(), duplicate: next(), corrupt: next() };
        Self {
            settings: Settings::default(),
            stats: WireStats::default(),
            dice,
            bad: false,
            transmitted: VecDeque::new(),
            last_due: Time::ZERO,
        }
    }

    /// Decides about a packet of `len` bytes: when it arrives, how often and how whole.
    pub(super) fn carry(&mut self, now: Time, len: usize) -> Copies {
        self.stats.packets += 1;
        self.stats.bytes += len as u64;
        // Drawn for each packet, needed or not: what one setting does, does not depend on another.
        let lost = self.lose();
        let jitter = self.jitter();
        let reordered = self.dice.reorder.unit() < self.settings.reorder;
        let duplicated = self.dice.duplicate.unit() < self.settings.duplicate;
        let (corrupted, bit) = (self.dice.corrupt.unit() < self.settings.corrupt, self.dice.corrupt.next_u64());
        if self.settings.packet_len_max.is_some_and(|max| len > max) {
            self.stats.too_long += 1;
            return Copies::default();
        }
        if lost || self.settings.down {
            self.stats.lost += 1;
            return Copies::default();
        }
        let Some(sent) = self.transmit(now, len) else {
            self.stats.queue_full += 1;
            return Copies::default();
        };
        // Jitter moves the arrival in both directions, but not before the transmission.
        let delay_s = (self.settings.delay.as_secs_f64() + jitter).max(0.0);
        let mut due = (sent + Duration::from_secs_f64(delay_s)).max(self.last_due);
        if reordered {
            self.stats.reordered += 1;
            due = due + self.settings.reorder_gap;
        } else {
            self.last_due = due;
        }
        self.stats.duplicated += u64::from(duplicated);
        self.stats.corrupted += u64::from(corrupted);
        let copy = Copy { due, corrupt: corrupted.then_some(bit) };
        Copies([Some(copy), duplicated.then_some(copy)])
    }

    fn lose(&mut self) -> bool {
        let (change, lose) = (self.dice.loss.unit(), self.dice.loss.unit());
        match self.settings.loss {
            Loss::None => false,
            Loss::Random(share) => lose < share,
            Loss::Gilbert { enter, leave, loss } => {
                let threshold = if self.bad { leave } else { enter };
                self.bad ^= change < threshold;
                self.bad && lose < loss
            }
        }
    }

    /// Seconds to add to the delay.
    fn jitter(&mut self) -> f64 {
        let (a, b) = (self.dice.jitter.unit(), self.dice.jitter.unit());
        let Some(Jitter { spread, shape }) = self.settings.jitter else { return 0.0 };
        let factor = match shape {
            JitterShape::Uniform => 2.0 * a - 1.0,
            // Box and Muller; 1 - a is never zero.
            JitterShape::Normal => ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()).clamp(-4.0, 4.0),
            // Inverse of the distribution function; the mean of a Pareto of shape 3 that starts at zero is half its scale.
            JitterShape::Pareto => (2.0 * ((1.0 - a).powf(-1.0 / 3.0) - 1.0)).min(20.0),
        };
        factor * spread.as_secs_f64()
    }

    /// When the last bit has left, behind what is in the queue; `None` when that is full.
    fn transmit(&mut self, now: Time, len: usize) -> Option<Time> {
        while self.transmitted.front().is_some_and(|sent| *sent <= now) {
            self.transmitted.pop_front();
        }
        let Some(rate) = self.settings.rate_bps else { return Some(now) };
        if self.transmitted.len() >= self.settings.queue_len {
            return None;
        }
        let start = self.transmitted.back().map_or(now, |sent| (*sent).max(now));
        let sent = start + Duration::from_nanos((len as u128 * 8 * 1_000_000_000 / u128::from(rate)) as u64);
        self.transmitted.push_back(sent);
        Some(sent)
    }
}
