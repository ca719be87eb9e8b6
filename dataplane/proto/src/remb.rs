//! How much a publisher may send, told by REMB (draft-alvestrand-rmcat-remb-03) where transport-wide feedback was not negotiated.
//!
//! What a receiver can know without send times: how much arrives and how much of it is lost. The estimate grows by a quarter a second
//! while next to nothing is lost, but never far beyond what really arrives, and falls with the loss, as the loss-based part of
//! Google's congestion control does (draft-ietf-rmcat-gcc-02 section 6). A queue that fills without loss is not seen: publishers that
//! can do better negotiate transport-wide feedback.

use std::time::Duration;

use pop_schemas::Time;

/// Between two measurements, and at least between two REMBs.
const WINDOW: Duration = Duration::from_millis(200);

/// A REMB leaves this often when nothing falls.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the estimate begins: what browsers start with.
const START: u64 = 300_000;
const MIN: u64 = 100_000;
const MAX: u64 = 50_000_000;

/// Loss shares of 1,024: below `LOSS_LOW` (2 %) the estimate grows, above `LOSS_HIGH` (10 %) it falls.
const LOSS_LOW: u64 = 20;
const LOSS_HIGH: u64 = 102;

/// Packets in a window that make its loss a share; one of ten lost means nothing.
const PACKETS_MIN: u64 = 20;

/// Totals of all media streams of a transport since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Packets that should have come.
    pub expected: u64,
    /// Packets that came without being asked for again.
    pub received: u64,
}

/// Estimates for one transport.
#[derive(Debug)]
pub struct RembEstimator {
    /// In bit/s.
    estimate: u64,
    /// Bytes since `window_start`, repairs and padding included.
    bytes: u64,
    window_start: Option<Time>,
    before: Received,
    /// Packets and losses that wait to be enough for a share.
    pending: Received,
    last_sent: Option<(Time, u64)>,
}

impl Default for RembEstimator {
    fn default() -> Self {
        Self::new()
    }
}

impl RembEstimator {
    /// Nothing received.
    pub fn new() -> RembEstimator {
        RembEstimator {
            estimate: START,
            bytes: 0,
            window_start: None,
            before: Received::default(),
            pending: Received::default(),
            last_sent: None,
        }
    }

    /// An authenticated packet came, `len` bytes with its header.
    #[inline]
    pub fn record(&mut self, now: Time, len: usize) {
        self.bytes += len as u64;
        self.window_start.get_or_insert(now);
    }

    /// When [`RembEstimator::poll`] wants to be called; `None` before the first packet.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.window_start.map(|start| start + WINDOW)
    }

    /// Measures, and returns the bitrate to tell when that is due: once a second, and at once when it fell. `totals` may fall when
    /// a stream begins anew.
    pub fn poll(&mut self, now: Time, totals: Received) -> Option<u64> {
        let start = self.window_start.filter(|start| now.since(*start) >= WINDOW)?;
        self.measure(now.since(start), totals);
        self.window_start = Some(now);
        let due = self.last_sent.is_none_or(|(at, told)| now.since(at) >= INTERVAL || self.estimate < told);
        if !due {
            return None;
        }
        self.last_sent = Some((now, self.estimate));
        Some(self.estimate)
    }

    fn measure(&mut self, elapsed: Duration, totals: Received) {
        let rate = self.bytes * 8_000_000 / (elapsed.as_micros() as u64).max(1);
        self.bytes = 0;
        self.pending.expected += totals.expected.saturating_sub(self.before.expected);
        self.pending.received += totals.received.saturating_sub(self.before.received);
        self.before = totals;
        if self.pending.expected < PACKETS_MIN {
            return;
        }
        let Received { expected, received } = std::mem::take(&mut self.pending);
        let lost = expected.saturating_sub(received);
        let share = lost * 1_024 / expected;
        self.estimate = if share > LOSS_HIGH {
            // As the draft has it: the rate that arrives, less half of the loss share again.
            self.estimate.min(rate) * (2_048 - share) / 2_048
        } else if share < LOSS_LOW {
            let growth = self.estimate / 4 * elapsed.as_millis().min(1_000) as u64 / 1_000;
            // Half more than what arrives lets an encoder grow; beyond that nothing is known.
            (self.estimate + growth).min(rate + rate / 2 + MIN)
        } else {
            self.estimate
        }
        .clamp(MIN, MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `capacity` bit/s in each second and a publisher that sends what it was told, at most `wanted`.
    fn run(capacity: impl Fn(u64) -> u64, wanted: u64, seconds: u64) -> (u64, Vec<(u64, u64)>) {
        let mut estimator = RembEstimator::new();
        let (mut told, mut tells, mut totals) = (START, Vec::new(), Received::default());
        for tick in 0..seconds * 100 {
            let now = Time::from_millis(tick * 10);
            let sent = told.min(wanted) / 100 / 8;
            let arrived = sent.min(capacity(tick / 100) / 100 / 8);
            totals.expected += sent / 100;
            totals.received += arrived / 100;
            estimator.record(now, arrived as usize);
            if let Some(bitrate) = estimator.poll(now, totals) {
                told = bitrate;
                tells.push((now.as_millis(), bitrate));
            }
        }
        (told, tells)
    }

    #[test]
    fn a_free_link_is_filled_within_ten_seconds_and_the_telling_is_once_a_second() {
        let (told, tells) = run(|_| u64::MAX, 2_500_000, 12);
        assert!(told >= 2_500_000, "{told}");
        assert!((11..=13).contains(&tells.len()), "{tells:?}");
        assert!(told <= 2_500_000 * 3 / 2 + MIN, "not far beyond what arrives");
    }

    #[test]
    fn a_narrow_link_is_found_and_a_fall_is_told_at_once() {
        let (told, tells) = run(|second| if second < 30 { 3_000_000 } else { 1_000_000 }, 10_000_000, 60);
        assert!((700_000..=1_300_000).contains(&told), "{told}");
        let fall = tells.iter().find(|(at, bitrate)| *at >= 30_000 && *bitrate < 1_300_000).expect("it falls");
        assert!(fall.0 < 31_000, "{fall:?}");
        assert!(tells.iter().filter(|(at, _)| *at > 31_000).all(|(_, bitrate)| *bitrate <= 1_300_000), "{tells:?}");
    }

    #[test]
    fn a_little_loss_changes_nothing_and_silence_tells_nothing() {
        let mut estimator = RembEstimator::new();
        assert_eq!(estimator.poll_timeout(), None);
        assert_eq!(estimator.poll(Time::from_millis(5_000), Received::default()), None);
        estimator.record(Time::from_millis(5_000), 100_000);
        let told = estimator.poll(Time::from_millis(5_200), Received { expected: 100, received: 95 });
        assert_eq!(told, Some(START), "5 % is neither low nor high");
        estimator.record(Time::from_millis(5_300), 1_000);
        assert_eq!(estimator.poll(Time::from_millis(5_400), Received { expected: 110, received: 95 }), None, "10 packets make no share");
    }

    #[test]
    fn the_estimate_has_a_floor() {
        let mut estimator = RembEstimator::new();
        for window in 1..50u64 {
            estimator.record(Time::from_millis(window * 200), 10);
            estimator.poll(Time::from_millis(window * 200), Received { expected: window * 100, received: window * 10 });
        }
        assert_eq!(estimator.estimate, MIN);
    }
}
