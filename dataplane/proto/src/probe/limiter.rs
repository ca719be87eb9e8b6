//! How many requests of strangers are answered: per source prefix, and altogether.
//!
//! ```text
//! address -> /24 or /48 -+- hash 1 -> cell --+
//!                        +- hash 2 -> cell --+-> the emptier one decides (count-min)
//!                                  all ------+
//! ```
//! The table never grows and nobody is pushed out of it, so a flood of forged sources makes no room for itself. A prefix is refused
//! for another's requests only when both of its cells are shared with such; the hashes are keyed, so nobody can aim at that.

use std::net::IpAddr;
use std::time::Duration;

use pop_schemas::Time;

/// Cells of one hash: with 100 prefixes at their limit, another one is refused with them once in 6,700 cases.
const CELLS: usize = 1 << CELL_BITS;
const CELL_BITS: u32 = 13;

/// Bytes of one limiter, for the memory plan.
pub const LIMITER_LEN: usize = 2 * CELLS * size_of::<Time>();

/// What one prefix and all together may send in one go, beyond their rate.
const BURST: Duration = Duration::from_secs(1);

/// Requests per second that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRates {
    /// Of one source prefix: /24 of IPv4, /48 of IPv6. At least 1.
    pub per_prefix: u32,
    /// Of all. At least 1.
    pub total: u32,
}

/// Secret numbers of the hashes, drawn by the owner.
pub type HashSeed = [u128; 4];

/// A bounded table of rates (generic cell rate algorithm: a cell holds when its next request would be on time).
pub struct PrefixLimiter {
    cells: Box<[[Time; CELLS]; 2]>,
    total: Time,
    seed: HashSeed,
}

impl PrefixLimiter {
    /// Takes all its memory.
    pub fn new(seed: HashSeed) -> PrefixLimiter {
        let cells = vec![[Time::ZERO; CELLS]; 2].into_boxed_slice();
        let cells = cells.try_into().unwrap_or_else(|_| unreachable!("it was made of two"));
        PrefixLimiter { cells, total: Time::ZERO, seed }
    }

    /// Whether a request of `from` is answered; if so, it counts.
    pub fn admit(&mut self, now: Time, from: IpAddr, rates: ProbeRates) -> bool {
        let prefix = prefix_of(from);
        let [a, b, c, d] = self.seed;
        let at = [hash(prefix, a, b), hash(prefix, c, d)];
        let due = self.cells[0][at[0]].min(self.cells[1][at[1]]);
        if due > now + BURST || self.total > now + BURST {
            return false;
        }
        self.total = self.total.max(now) + interval(rates.total);
        let next = due.max(now) + interval(rates.per_prefix);
        for (cells, at) in self.cells.iter_mut().zip(at) {
            // Never down: another prefix of the cell may have more to answer for.
            cells[at] = cells[at].max(next);
        }
        true
    }
}

fn interval(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}

/// The prefix as a number, families apart. An IPv4 address that a dual-stack socket shows as IPv6 is one of IPv4.
fn prefix_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => 1 << 48 | (ip.to_bits() >> 80) as u64,
    }
}

/// Multiply-shift with secret `a` and `b`: two prefixes share a cell with probability 1 / CELLS, whatever they are (Dietzfelbinger 1996).
fn hash(prefix: u64, a: u128, b: u128) -> usize {
    (a.wrapping_mul(u128::from(prefix)).wrapping_add(b) >> (128 - CELL_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: ProbeRates = ProbeRates { per_prefix: 10, total: 1_000_000 };
    const SEED: HashSeed = [0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835, 7, 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9, 11];

    fn admitted(limiter: &mut PrefixLimiter, now: Time, from: &str, requests: usize, rates: ProbeRates) -> usize {
        let from = from.parse().expect("an address");
        (0..requests).filter(|_| limiter.admit(now, from, rates)).count()
    }

    #[test]
    fn one_prefix_gets_its_rate_and_its_neighbours_share_it() {
        let mut limiter = PrefixLimiter::new(SEED);
        let now = Time::from_millis(5_000);
        assert_eq!(admitted(&mut limiter, now, "192.0.2.1", 100, RATES), 11, "a second's worth, and the one that is due");
        assert_eq!(admitted(&mut limiter, now, "192.0.2.200", 5, RATES), 0);
        assert_eq!(admitted(&mut limiter, now, "::ffff:192.0.2.3", 5, RATES), 0);
        assert_eq!(admitted(&mut limiter, now, "192.0.3.1", 5, RATES), 5);
        assert_eq!(admitted(&mut limiter, now, "2001:db8:1::1", 100, RATES), 11);
        assert_eq!(admitted(&mut limiter, now, "2001:db8:1:ffff::1", 5, RATES), 0);
        assert_eq!(admitted(&mut limiter, now, "2001:db8:2::1", 5, RATES), 5);
        let mut later = 0;
        for second in 1..=10 {
            later += admitted(&mut limiter, now + Duration::from_secs(second), "192.0.2.1", 100, RATES);
        }
        assert_eq!(later, 100);
    }

    #[test]
    fn all_together_get_no_more_than_the_total() {
        let mut limiter = PrefixLimiter::new(SEED);
        let rates = ProbeRates { total: 100, ..RATES };
        let now = Time::from_millis(5_000);
        let answered = (0..100_000u32).filter(|i| limiter.admit(now, IpAddr::V4((i << 8).into()), rates)).count();
        assert_eq!(answered, 101);
        assert_eq!(admitted(&mut limiter, now + Duration::from_millis(100), "203.0.113.1", 100, rates), 10, "100 ms later a tenth");
    }

    #[test]
    fn a_flood_of_some_prefixes_leaves_the_others_alone() {
        let mut limiter = PrefixLimiter::new(SEED);
        let now = Time::from_millis(5_000);
        for flooding in 0..100u32 {
            admitted(&mut limiter, now, &IpAddr::V4((0x0a00_0000 | flooding << 8).into()).to_string(), 200, RATES);
        }
        let refused = (0..20_000u32).filter(|i| !limiter.admit(now, IpAddr::V4((0xc000_0000 + (i << 8)).into()), RATES)).count();
        assert!(refused <= 20, "{refused} of 20,000 innocent prefixes were refused");
    }
}
