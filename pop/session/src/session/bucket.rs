//! How often something may happen.

use std::time::Duration;

use pop_schemas::Time;

/// Tokens that come back one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    /// When the first one that is missing began to come back.
    since: Time,
}

impl Bucket {
    pub(crate) const fn full(burst: u32) -> Bucket {
        Bucket { tokens: burst, since: Time::ZERO }
    }

    /// Takes a token; `false` when there is none. One comes back each `interval`, up to `burst`.
    pub(super) fn take(&mut self, now: Time, burst: u32, interval: Duration) -> bool {
        self.refill(now, burst, interval);
        if self.tokens == 0 {
            return false;
        }
        if self.tokens == burst {
            self.since = now;
        }
        self.tokens -= 1;
        true
    }

    /// There is one.
    pub(super) fn has(&mut self, now: Time, burst: u32, interval: Duration) -> bool {
        self.refill(now, burst, interval);
        self.tokens > 0
    }

    fn refill(&mut self, now: Time, burst: u32, interval: Duration) {
        let back = now.since(self.since).as_nanos() / interval.as_nanos();
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(back).min(burst);
        self.since = if self.tokens == burst { now } else { self.since + interval * back };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let interval = Duration::from_millis(100);
        let mut bucket = Bucket::full(3);
        let mut taken = |at| bucket.take(Time::from_millis(at), 3, interval);
        assert_eq!([1_000, 1_000, 1_000, 1_000].map(&mut taken), [true, true, true, false]);
        assert_eq!([1_099, 1_100, 1_150, 1_200].map(&mut taken), [false, true, false, true]);
        assert_eq!([9_000, 9_000, 9_000, 9_000].map(&mut taken), [true, true, true, false]);
    }
}
