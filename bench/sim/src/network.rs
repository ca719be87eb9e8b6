//! What is under way between nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pop_schemas::Time;

use crate::dice::Dice;
use crate::replica::Message;

/// One message in so many comes late, in which case it may be older than what came after it.
const LATE_ONE_IN: usize = 25;

/// How late at most, and how long the others take.
const LATE_MS_MAX: u64 = 400;
const DELAY_MS_MAX: u64 = 30;

/// One message in so many comes twice.
const TWICE_ONE_IN: usize = 20;

/// From, to, what.
pub(crate) type Packet = (u64, u64, Message);

#[derive(Debug)]
pub(crate) struct Network {
    under_way: BTreeMap<(Time, u64), Packet>,
    next: u64,
    /// Directions in which nothing passes.
    cuts: BTreeSet<(u64, u64)>,
    /// Of a hundred messages.
    pub(crate) lost_percent: usize,
    /// Messages arrive soon, in order, and once.
    pub(crate) is_calm: bool,
    pub(crate) lost: u64,
    pub(crate) carried: u64,
}

impl Network {
    pub(crate) fn new(lost_percent: usize) -> Network {
        let (under_way, cuts) = Default::default();
        Network { under_way, next: 0, cuts, lost_percent, is_calm: false, lost: 0, carried: 0 }
    }

    pub(crate) fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub(crate) fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub(crate) fn mend(&mut self) {
        self.cuts.clear();
    }

    pub(crate) fn send(&mut self, dice: &mut Dice, now: Time, packet: Packet) {
        let copies = if !self.is_calm && dice.once_in(TWICE_ONE_IN) { 2 } else { 1 };
        for _ in 0..copies {
            let is_lost = !self.is_calm && dice.below(100) < self.lost_percent;
            if is_lost || self.cuts.contains(&(packet.0, packet.1)) {
                self.lost += 1;
                continue;
            }
            let is_late = !self.is_calm && dice.once_in(LATE_ONE_IN);
            let delay = match (self.is_calm, is_late) {
                (true, _) => Duration::from_millis(DELAY_MS_MAX),
                (false, true) => dice.wait_ms(LATE_MS_MAX),
                (false, false) => dice.wait_ms(DELAY_MS_MAX),
            };
            self.next += 1;
            self.under_way.insert((now + delay, self.next), packet.clone());
        }
    }

    /// What arrives by `now`. A cut also stops what is under way.
    pub(crate) fn arrive(&mut self, now: Time) -> Option<(Time, Packet)> {
        loop {
            let first = self.under_way.first_entry().filter(|entry| entry.key().0 <= now)?;
            let ((at, _), packet) = first.remove_entry();
            if !self.cuts.contains(&(packet.0, packet.1)) {
                self.carried += 1;
                return Some((at, packet));
            }
            self.lost += 1;
        }
    }
}
