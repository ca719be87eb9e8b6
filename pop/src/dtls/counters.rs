//! What the associations of a node have come to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{DtlsError, Role};

/// Upper bounds of the handshake duration's buckets, in milliseconds. A loopback handshake takes 3, one over 100 ms of round
/// trip 300, one with a lost flight 100 more.
pub const HANDSHAKE_BUCKETS_MS: [u64; 10] = [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

/// `established`, `abandoned` (the owner dropped the peer first), then every [`DtlsError`] that ends an association.
const RESULTS: [&str; 14] = [
    "established",
    "abandoned",
    "full",
    "timeout",
    "peer_alert",
    "version",
    "cipher_suite",
    "extended_master_secret",
    "no_use_srtp",
    "no_srtp_profile",
    "fingerprint",
    "no_client_certificate",
    "handshake",
    "panicked",
];

/// A snapshot of [`super::Dtls::counters`].
#[derive(Clone, Debug, PartialEq)]
pub struct DtlsCounters {
    /// Handshakes by role and by result: `established`, `abandoned` or [`DtlsError::label`]. Every pair is listed.
    pub handshakes: Vec<(Role, &'static str, u64)>,
    /// Panics of the library that were caught; each ended one association and is a bug.
    pub panics: u64,
    /// Associations whose handshake has not ended.
    pub half_open: usize,
    /// Datagrams that found the owner's queue full.
    pub datagrams_lost: u64,
    /// Duration of the handshakes that were established, from their start, in microseconds.
    pub duration_us_sum: u64,
    /// Of these, how many lasted at most [`HANDSHAKE_BUCKETS_MS`]; the last entry is those that lasted longer. Not cumulative.
    pub duration_buckets: [u64; HANDSHAKE_BUCKETS_MS.len() + 1],
}

impl DtlsCounters {
    /// Handshakes with this role and result.
    pub fn handshakes(&self, role: Role, result: &str) -> u64 {
        self.handshakes.iter().filter(|(r, name, _)| *r == role && *name == result).map(|(_, _, count)| count).sum()
    }
}

#[derive(Default)]
pub(super) struct Counters {
    handshakes: [[AtomicU64; RESULTS.len()]; 2],
    panics: AtomicU64,
    datagrams_lost: AtomicU64,
    duration_us_sum: AtomicU64,
    duration_buckets: [AtomicU64; HANDSHAKE_BUCKETS_MS.len() + 1],
}

impl Counters {
    pub(super) fn count_established(&self, role: Role, duration: Duration) {
        self.count(role, "established");
        self.duration_us_sum.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
        let bucket = HANDSHAKE_BUCKETS_MS.partition_point(|&bound| Duration::from_millis(bound) < duration);
        self.duration_buckets[bucket].fetch_add(1, Relaxed);
    }

    pub(super) fn count_failed(&self, role: Role, error: &DtlsError) {
        self.count(role, error.label());
    }

    pub(super) fn count_abandoned(&self, role: Role) {
        self.count(role, "abandoned");
    }

    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(super) fn count_lost(&self) {
        self.datagrams_lost.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self, half_open: usize) -> DtlsCounters {
        let mut handshakes = Vec::with_capacity(2 * RESULTS.len());
        for role in [Role::Server, Role::Client] {
            for (result, count) in RESULTS.iter().zip(&self.handshakes[role as usize]) {
                handshakes.push((role, *result, count.load(Relaxed)));
            }
        }
        DtlsCounters {
            handshakes,
            panics: self.panics.load(Relaxed),
            half_open,
            datagrams_lost: self.datagrams_lost.load(Relaxed),
            duration_us_sum: self.duration_us_sum.load(Relaxed),
            duration_buckets: std::array::from_fn(|i| self.duration_buckets[i].load(Relaxed)),
        }
    }

    fn count(&self, role: Role, result: &str) {
        let index = RESULTS.iter().position(|known| *known == result).expect("every label is in RESULTS: a test goes through them");
        self.handshakes[role as usize][index].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_result() {
        let errors = [
            DtlsError::Full,
            DtlsError::Timeout,
            DtlsError::PeerAlert(40),
            DtlsError::Version,
            DtlsError::CipherSuite,
            DtlsError::ExtendedMasterSecret,
            DtlsError::NoUseSrtp,
            DtlsError::NoSrtpProfile,
            DtlsError::Fingerprint,
            DtlsError::NoClientCertificate,
            DtlsError::Handshake("x".into()),
            DtlsError::Panicked,
        ];
        let counters = Counters::default();
        for error in &errors {
            counters.count_failed(Role::Server, error);
        }
        counters.count_abandoned(Role::Server);
        counters.count_established(Role::Server, Duration::from_millis(5));
        let snapshot = counters.snapshot(0);
        assert!(snapshot.handshakes.iter().all(|(role, _, count)| *count == u64::from(*role == Role::Server)));
        assert_eq!((snapshot.duration_buckets[0], snapshot.duration_us_sum), (1, 5_000));
    }
}
