//! Other nodes that are held for dead, in Prometheus' words.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::Histogram;

/// What became of the other nodes: the cluster counts, the collector tells.
#[derive(Debug)]
pub struct Deaths {
    false_alarms: AtomicU64,
    deaths: AtomicU64,
    detection_seconds: Histogram,
}

impl Default for Deaths {
    fn default() -> Self {
        let bounds = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 2.0];
        Self { false_alarms: AtomicU64::new(0), deaths: AtomicU64::new(0), detection_seconds: Histogram::new(bounds) }
    }
}

impl Deaths {
    /// A node is held for dead, so long after its last sign of life.
    pub(crate) fn count(&self, silence: Duration) {
        self.deaths.fetch_add(1, Ordering::Relaxed);
        self.detection_seconds.observe(silence.as_secs_f64());
    }

    /// A node that was held for dead says as the same start of it that it lives.
    pub(crate) fn count_false(&self) {
        self.false_alarms.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads [`Deaths`] at each scrape.
#[derive(Debug)]
pub struct DeathCollector(pub Arc<Deaths>);

impl Collector for DeathCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Deaths { false_alarms, deaths, detection_seconds } = &*self.0;
        for (name, help, count) in [
            ("pop_node_deaths", "Times that another node of the PoP was held for dead", deaths),
            (
                "pop_node_false_alarms",
                "Times that a node was held for dead and went on, because of the network or of one of both",
                false_alarms,
            ),
        ] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "Seconds from a node's last sign of life to the moment at which it was held for dead";
        detection_seconds.encode(encoder.encode_descriptor("pop_node_detection_seconds", help, None, MetricType::Histogram)?)
    }
}
