//! Where the kernel refused a train, so that it is not asked again for every one.
//!
//! A way is a socket and a destination address: whether a train can leave depends on the interface behind them (its checksum
//! offload, IPsec). Each way has a place in a small table, which it may share with others: those are then split too, which costs
//! time and loses nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A way that refused a train is tried with a train again after this long. A refusal costs one system call more than the split
/// that follows it, so that one in three seconds cannot be measured.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Places of the table, 16 bytes each.
const PLACES: usize = 1_024;

pub(crate) struct Refusals {
    /// Per place the end of its split time, on the monotonic clock.
    until: Box<[Duration]>,
    /// The latest of them; zero while no way is refused, and then nothing is looked up and no clock is read.
    last: Duration,
    now: Duration,
}

impl Refusals {
    pub(crate) fn new() -> Self {
        Self { until: vec![Duration::ZERO; PLACES].into(), last: Duration::ZERO, now: Duration::ZERO }
    }

    /// A turn begins: `clock` is read only while a way is refused.
    pub(crate) fn begin_turn(&mut self, clock: impl FnOnce() -> Duration) {
        if self.last.is_zero() {
            return;
        }
        self.now = clock();
        if self.now >= self.last {
            self.last = Duration::ZERO;
        }
    }

    /// The kernel refused a train on this way, and took its datagrams.
    pub(crate) fn note(&mut self, socket: u16, to: SocketAddr, now: Duration) {
        self.now = now;
        self.last = now + RETRY_INTERVAL;
        self.until[place(socket, to)] = self.last;
    }

    /// Whether a train on this way has to be split.
    pub(crate) fn holds(&self, socket: u16, to: SocketAddr) -> bool {
        !self.last.is_zero() && self.until[place(socket, to)] > self.now
    }
}

fn place(socket: u16, to: SocketAddr) -> usize {
    let address = match to.ip() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() as u64 ^ (v6.to_bits() >> 64) as u64,
    };
    // The high bits of a product with an odd constant (2^64 divided by the golden ratio) depend on all bits of the number.
    let spread = (address ^ u64::from(socket) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (spread >> (64 - PLACES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_way_is_split_for_the_interval_and_then_tried_again() {
        let (a, b) = (([192, 0, 2, 1], 5_000).into(), ([192, 0, 2, 2], 5_000).into());
        let mut refusals = Refusals::new();
        refusals.begin_turn(|| unreachable!("nothing was refused: no clock is read"));
        assert!(!refusals.holds(0, a));
        refusals.note(0, a, seconds(100));
        refusals.begin_turn(|| seconds(102));
        // Another port is behind the same interface; another destination or socket may not be.
        assert!(refusals.holds(0, a) && refusals.holds(0, ([192, 0, 2, 1], 6_000).into()));
        assert!(!refusals.holds(0, b) && !refusals.holds(1, a));
        refusals.note(1, b, seconds(102));
        refusals.begin_turn(|| seconds(100) + RETRY_INTERVAL);
        assert!(!refusals.holds(0, a) && refusals.holds(1, b));
        refusals.begin_turn(|| seconds(102) + RETRY_INTERVAL);
        assert!(!refusals.holds(1, b));
        refusals.begin_turn(|| unreachable!("the last refusal is over: no clock is read"));
        refusals.note(0, a, seconds(200));
        assert!(refusals.holds(0, a), "refused again");
    }

    #[test]
    fn ways_are_spread_over_the_table() {
        let v4 = (0..512u32).map(|host| SocketAddr::from(((0x0a00_0000 + host).to_be_bytes(), 1)));
        let v6 = (0..512u128).map(|host| SocketAddr::new(IpAddr::V6((0x2001_0db8 << 96 | host).into()), 1));
        let mut taken: Vec<usize> = v4.chain(v6).map(|to| place(0, to)).collect();
        taken.sort_unstable();
        taken.dedup();
        assert!(taken.len() > 512, "{} places for 1,024 ways", taken.len());
    }
}
