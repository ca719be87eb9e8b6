//! What arrived at one subscriber: sequence numbers in, counts out.

use crate::result::{LatencyUs, TrainPackets};

/// Sequence numbers that are told apart as repeats behind the newest one.
const WINDOW_LEN: u64 = 4_096;

/// The continuity of one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrival {
    /// The newest extended sequence number; counts from one rollover so that an older first packet has a number too.
    newest: Option<u64>,
    window: Vec<u64>,
    /// Different sequence numbers that arrived.
    pub(crate) packets: u64,
    /// Sequence numbers that arrived again.
    pub(crate) repeats: u64,
}

impl Arrival {
    /// A packet with `sequence` arrived.
    pub(crate) fn insert(&mut self, sequence: u16) {
        if self.window.is_empty() {
            self.window.resize((WINDOW_LEN / 64) as usize, 0);
        }
        let newest = *self.newest.get_or_insert(1 << 16 | u64::from(sequence));
        let index = newest.wrapping_add_signed(i64::from(sequence.wrapping_sub(newest as u16) as i16));
        for passed in (newest + 1..=index).take(WINDOW_LEN as usize) {
            self.window[(passed % WINDOW_LEN / 64) as usize] &= !(1 << (passed % 64));
        }
        self.newest = Some(newest.max(index));
        let bit = 1 << (index % 64);
        let word = &mut self.window[(index % WINDOW_LEN / 64) as usize];
        if *word & bit == 0 && newest.saturating_sub(index) < WINDOW_LEN {
            *word |= bit;
            self.packets += 1;
        } else {
            self.repeats += 1;
        }
    }
}

/// Latency of authenticated packets, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<u64>);

impl Latencies {
    /// Room for `len` samples, so that none is allocated for while packets flow.
    pub(crate) fn with_capacity(len: usize) -> Latencies {
        Latencies(Vec::with_capacity(len))
    }

    /// One packet took `ns`.
    pub(crate) fn push(&mut self, ns: u64) {
        self.0.push(ns);
    }

    /// How many packets were timed.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all samples and keeps the room.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// What all samples say, by nearest rank; `None` when there is none.
    pub(crate) fn summarize(&mut self) -> Option<LatencyUs> {
        self.0.sort_unstable();
        let at = |share: f64| {
            let rank = (share * self.0.len() as f64).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map(|ns| *ns as f64 / 1e3)
        };
        Some(LatencyUs { p50: at(0.5)?, p99: at(0.99)?, p999: at(0.999)?, max: at(1.0)? })
    }
}

/// The longest train that is told apart, in packets: the kernel cuts at 64 before 6.9, and at 128 after.
const TRAIN_LEN_MAX: usize = 128;

/// Lengths of a replay: enough for a thousandth.
const REPLAY_LEN: usize = 1_024;

/// How many trains there were of each length.
#[derive(Clone, Debug)]
pub(crate) struct Trains([u64; TRAIN_LEN_MAX + 1]);

impl Default for Trains {
    fn default() -> Trains {
        Trains([0; TRAIN_LEN_MAX + 1])
    }
}

impl Trains {
    /// A train of `len` packets came.
    pub(crate) fn push(&mut self, len: usize) {
        self.0[len.min(TRAIN_LEN_MAX)] += 1;
    }

    /// Mean, median and the like; `None` when no train came.
    pub(crate) fn summarize(&self) -> Option<TrainPackets> {
        let trains: u64 = self.0.iter().sum();
        let packets: u64 = self.0.iter().zip(0..).map(|(count, len)| count * len).sum();
        let at = |share| self.at(share).map(|len| len as u32);
        Some(TrainPackets { mean: packets as f64 / trains as f64, p50: at(0.5)?, p99: at(0.99)? })
    }

    /// The length at a share (nearest rank).
    fn at(&self, share: f64) -> Option<usize> {
        let trains: u64 = self.0.iter().sum();
        let rank = ((share * trains as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        })
    }

    /// Lengths in the same proportions, mixed, each at most `max`; a single packet when no train came.
    pub(crate) fn replay(&self, max: usize) -> Vec<usize> {
        // An odd step visits each of a power of two once.
        let share = |n: usize| (n * 613 % REPLAY_LEN) as f64 / REPLAY_LEN as f64 + 0.5 / REPLAY_LEN as f64;
        (0..REPLAY_LEN).map(|n| self.at(share(n)).unwrap_or(1).clamp(1, max)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(sequences: impl IntoIterator<Item = u16>) -> (u64, u64) {
        let mut arrival = Arrival::default();
        sequences.into_iter().for_each(|sequence| arrival.insert(sequence));
        (arrival.packets, arrival.repeats)
    }

    #[test]
    fn each_sequence_number_counts_once() {
        assert_eq!(arrive([5, 6, 7]), (3, 0));
        assert_eq!(arrive([5, 7, 6, 6, 5]), (3, 2));
        assert_eq!(arrive([65_534, 65_535, 0, 1, 65_535]), (4, 1));
        assert_eq!(arrive([0, 65_535]), (2, 0), "a packet from before the first");
        assert_eq!(arrive((0..20_000u32).map(|n| (n * 2) as u16)), (20_000, 0), "gaps larger than the window in sum");
        assert_eq!(arrive([0, 10_000, 10_001, 10_000]), (3, 1), "a gap larger than the window");
        assert_eq!(arrive((0..200_000u32).map(|n| n as u16)), (200_000, 0));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut latencies = Latencies::with_capacity(1_000);
        assert_eq!(latencies.summarize(), None);
        (1..=1_000).rev().for_each(|us| latencies.push(us * 1_000));
        assert_eq!(latencies.summarize(), Some(LatencyUs { p50: 500.0, p99: 990.0, p999: 999.0, max: 1_000.0 }));
    }

    #[test]
    fn a_replay_has_the_lengths_in_their_proportions() {
        let mut trains = Trains::default();
        assert_eq!((trains.summarize(), trains.replay(64)), (None, vec![1; REPLAY_LEN]));
        (0..300).for_each(|_| trains.push(1));
        (0..100).for_each(|_| trains.push(9));
        assert_eq!(trains.summarize(), Some(TrainPackets { mean: 3.0, p50: 1, p99: 9 }));
        let replay = trains.replay(64);
        assert_eq!(replay.iter().filter(|len| **len == 9).count(), REPLAY_LEN / 4);
        assert!(replay.windows(8).any(|part| part.contains(&1) && part.contains(&9)), "mixed");
        assert_eq!(trains.replay(4).iter().max(), Some(&4));
    }
}
