//! What waits for its turn on a link that does not carry all at once: names of packets, which stay in their tracks' histories.
//!
//! Audio never waits, but what it takes is taken from what video may; repairs of video go before what is new of it. A link without a limit
//! has nothing to do with this.

use std::collections::VecDeque;
use std::time::Duration;

use pop_relay::link::FrameRef;
use pop_schemas::Time;

/// A train is so much of the rate at most, or one datagram.
const TRAIN: Duration = Duration::from_millis(5);
/// What waits longer than this came too fast for the link; what comes then is dropped. A keyframe is as much as a second of what follows it.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Packets that wait, of new ones and of repairs.
const WAITING_MAX: usize = 1_024;
/// What a single datagram takes.
const DATAGRAM_LEN: u64 = 1_472;

/// Bytes of a pacer, for the memory plan.
pub(super) const PACER_LEN: usize = 2 * WAITING_MAX * size_of::<(FrameRef, u16)>();

/// The pacer of one link.
pub(super) struct Pacer {
    /// In bit/s; `None`: nothing is limited, and what waits leaves at once.
    pace: Option<u64>,
    /// Bytes that may leave now; below zero, what left is not paid yet.
    credit: i64,
    /// When that was.
    at: Time,
    /// Repairs, and new packets, each with its length.
    waiting: [VecDeque<(FrameRef, u16)>; 2],
    /// Bytes of them.
    len: u64,
}

impl Pacer {
    pub(super) fn new() -> Pacer {
        let queue = || VecDeque::with_capacity(WAITING_MAX);
        Pacer { pace: None, credit: 0, at: Time::ZERO, waiting: [queue(), queue()], len: 0 }
    }

    /// Whether packets of video have to go through it.
    #[inline]
    pub(super) fn is_armed(&self) -> bool {
        self.pace.is_some()
    }

    /// Follows the link; it stays armed until nothing waits, so that nothing overtakes.
    pub(super) fn follow(&mut self, pace: Option<u64>) {
        let drained = self.waiting.iter().all(VecDeque::is_empty);
        self.pace = pace.or(if drained { None } else { Some(u64::MAX / 16) });
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        (u128::from(self.pace.unwrap_or_default()) * time.as_micros() / 8_000_000) as u64
    }

    /// Bytes of a train.
    fn train_len(&self) -> i64 {
        self.bytes_in(TRAIN).max(DATAGRAM_LEN).cast_signed()
    }

    /// Takes a packet, unless more waits than may.
    pub(super) fn push(&mut self, frame: FrameRef, len: usize, is_repair: bool) -> bool {
        let queue = &self.waiting[usize::from(!is_repair)];
        if queue.len() == WAITING_MAX || self.len > self.bytes_in(WAIT_MAX) {
            return false;
        }
        self.len += len as u64;
        self.waiting[usize::from(!is_repair)].push_back((frame, len as u16));
        true
    }

    /// So many bytes have left.
    #[inline]
    pub(super) fn spend(&mut self, len: usize) {
        if self.is_armed() {
            // What audio takes alone may not keep video away for ever after.
            self.credit = (self.credit - len as i64).max(-8 * self.train_len());
        }
    }

    /// The next packet that may leave, and whether it is a repair; [`Pacer::pop`] takes it off.
    pub(super) fn next(&mut self, now: Time) -> Option<(FrameRef, bool)> {
        let earned = self.bytes_in(now.since(self.at).min(WAIT_MAX));
        // Less than a byte is earned later.
        if earned > 0 {
            self.credit = self.credit.saturating_add(earned.cast_signed()).min(self.train_len());
            self.at = now;
        }
        if self.credit <= 0 {
            return None;
        }
        let at = self.waiting.iter().position(|queue| !queue.is_empty())?;
        Some((self.waiting[at].front()?.0, at == 0))
    }

    /// The packet that was next has left, or never will.
    pub(super) fn pop(&mut self) {
        if let Some((_, len)) = self.waiting.iter_mut().find_map(VecDeque::pop_front) {
            self.len -= u64::from(len);
        }
    }

    /// When the next train may leave; `None` when nothing waits.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let waits = self.waiting.iter().any(|queue| !queue.is_empty());
        let pace = self.pace.filter(|_| waits)?;
        let lacking = u128::from((self.train_len() - self.credit).max(0).unsigned_abs());
        Some(self.at + Duration::from_micros((lacking * 8_000_000 / u128::from(pace.max(1))) as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_is_five_milliseconds_of_the_rate_and_repairs_go_first() {
        let mut pacer = Pacer::new();
        pacer.follow(Some(8_000_000));
        for sequence in 0..100 {
            assert!(pacer.push(FrameRef::new(1, 0, 0, sequence), 1_000, false));
        }
        assert!(pacer.push(FrameRef::new(2, 0, 0, 7), 1_000, true));
        let (mut now, mut left) = (Time::from_millis(1_000), Vec::new());
        while let Some(due) = pacer.poll_timeout() {
            now = now.max(due);
            let mut train = 0;
            while let Some((frame, is_repair)) = pacer.next(now) {
                pacer.pop();
                pacer.spend(1_000);
                left.push((now, frame.sequence, is_repair));
                train += 1;
            }
            assert!((1..=6).contains(&train), "{train} of 1,000 bytes each at 8 Mb/s");
        }
        assert_eq!((left[0].1, left[0].2, left.len()), (7, true, 101));
        assert!(left[1..].iter().map(|(_, sequence, _)| *sequence).eq(0..100), "in their order");
        let took = left[100].0.since(left[0].0);
        assert!((90..=102).contains(&took.as_millis()), "101 kB in {took:?}");
    }

    #[test]
    fn what_waits_is_bounded_and_all_of_it_leaves_when_the_limit_goes() {
        let mut pacer = Pacer::new();
        pacer.follow(Some(800_000));
        let taken = (0..5_000).filter(|sequence| pacer.push(FrameRef::new(1, 0, 0, *sequence), 1_000, false)).count();
        assert_eq!(taken, 101, "a second of 800 kb/s");
        pacer.follow(None);
        assert!(pacer.is_armed(), "what comes now does not overtake them");
        let now = Time::from_millis(1);
        assert_eq!(std::iter::from_fn(|| pacer.next(now).inspect(|_| pacer.pop())).count(), 101);
        pacer.follow(None);
        assert!(!pacer.is_armed());
    }
}
