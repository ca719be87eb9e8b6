//! The sockets of the room protocol in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::node::Node;
use crate::signal::Refused;

/// Reads the sockets' counters at each scrape.
pub struct SignalCollector(Node);

impl SignalCollector {
    /// Of `node`.
    pub fn new(node: Node) -> Self {
        Self(node)
    }
}

impl std::fmt::Debug for SignalCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalCollector")
    }
}

impl Collector for SignalCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counters = self.0.signal_counters();
        let mut family = encoder.encode_descriptor("pop_signal_connections", "Open signalling sockets", None, MetricType::Gauge)?;
        ConstGauge::new(counters.connections()).encode(family.encode_family(&[("proto", "livekit")])?)?;

        let help = "Messages of signalling sockets, as their clients send (in) and get (out) them";
        let mut family = encoder.encode_descriptor("pop_signal_messages", help, None, MetricType::Counter)?;
        let all = counters.taken().map(|of| ("in", of)).chain(counters.sent().map(|of| ("out", of)));
        for (direction, (kind, count)) in all {
            ConstCounter::new(count).encode(family.encode_family(&[("direction", direction), ("type", kind)])?)?;
        }

        let help = "What signalling sockets and their clients were refused";
        let mut family = encoder.encode_descriptor("pop_signal_refused", help, None, MetricType::Counter)?;
        for reason in Refused::ALL {
            ConstCounter::new(counters.refused(reason)).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        ConstCounter::new(self.0.slow_readers()).encode(family.encode_family(&[("reason", "slow_reader")])?)?;
        Ok(())
    }
}
