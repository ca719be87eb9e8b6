//! The DTLS door's counters in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::dtls::{DtlsCounters, HANDSHAKE_BUCKETS_MS};

/// Reads the DTLS counters at each scrape.
pub struct DtlsCollector<F>(F);

impl<F: Fn() -> DtlsCounters> DtlsCollector<F> {
    /// `read` takes the totals.
    pub fn new(read: F) -> Self {
        Self(read)
    }
}

impl<F> std::fmt::Debug for DtlsCollector<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DtlsCollector")
    }
}

impl<F: Fn() -> DtlsCounters + Send + Sync + 'static> Collector for DtlsCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let DtlsCounters { handshakes, panics, half_open, datagrams_lost, duration_us_sum, duration_buckets } = (self.0)();

        let help = "Ended DTLS handshakes by the node's role";
        let mut family = encoder.encode_descriptor("pop_dtls_handshakes", help, None, MetricType::Counter)?;
        for (role, result, count) in handshakes {
            ConstCounter::new(count).encode(family.encode_family(&[("role", role.name()), ("result", result)])?)?;
        }

        let bounds_s = HANDSHAKE_BUCKETS_MS.iter().map(|bound_ms| *bound_ms as f64 / 1_000.0).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds_s.zip(duration_buckets).collect();
        let count = duration_buckets.iter().sum();
        let help = "From the start of a handshake to its keys";
        let mut histogram = encoder.encode_descriptor("pop_dtls_handshake_seconds", help, None, MetricType::Histogram)?;
        histogram.encode_histogram::<NoLabelSet>(duration_us_sum as f64 / 1e6, count, &buckets, None)?;

        let half_open = ConstGauge::new(i64::try_from(half_open).unwrap_or(i64::MAX));
        half_open.encode(encoder.encode_descriptor("pop_dtls_half_open", "Handshakes that have not ended", None, MetricType::Gauge)?)?;
        for (name, help, count) in [
            ("pop_dtls_panics", "Caught panics of the DTLS library; each is a bug", panics),
            ("pop_dtls_lost_datagrams", "DTLS datagrams that found a queue full", datagrams_lost),
        ] {
            ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
