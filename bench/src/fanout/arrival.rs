//! What arrived at one subscriber: sequence numbers in, counts out.

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

    /// The samples at `shares` (0 to 1, nearest rank) in microseconds; zeros when there is none.
    pub(crate) fn percentiles_us<const N: usize>(&mut self, shares: [f64; N]) -> [f64; N] {
        self.0.sort_unstable();
        shares.map(|share| {
            let rank = (share * self.0.len() as f64).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map_or(0.0, |ns| *ns as f64 / 1e3)
        })
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
        assert_eq!(latencies.percentiles_us([0.5]), [0.0]);
        (1..=1_000).rev().for_each(|us| latencies.push(us * 1_000));
        assert_eq!(latencies.percentiles_us([0.5, 0.99, 0.999, 1.0]), [500.0, 990.0, 999.0, 1_000.0]);
    }
}
