//! What became of latency probes, in Prometheus' words.

use pop_proto::probe::ProbeResult;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Reads the totals at each scrape.
pub struct ProbeCollector<F>(F);

impl<F: Fn() -> Vec<(&'static str, ProbeResult, u64)>> ProbeCollector<F> {
    /// `read` takes kind, result and total.
    pub fn new(read: F) -> Self {
        Self(read)
    }
}

impl<F> std::fmt::Debug for ProbeCollector<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProbeCollector")
    }
}

impl<F: Fn() -> Vec<(&'static str, ProbeResult, u64)> + Send + Sync + 'static> Collector for ProbeCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Latency probes by kind: answered, limited by their rate, refused as wrong";
        let mut family = encoder.encode_descriptor("pop_probe_requests", help, None, MetricType::Counter)?;
        for (kind, result, count) in (self.0)() {
            ConstCounter::new(count).encode(family.encode_family(&[("kind", kind), ("result", result.name())])?)?;
        }
        Ok(())
    }
}
