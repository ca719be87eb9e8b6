//! Whether media comes back through the workers, in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::node::{Node, TryResult};

/// Reads the node's [`SelfTest`](crate::node::SelfTest) at each scrape.
pub struct SelfTestCollector(pub Node);

impl std::fmt::Debug for SelfTestCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SelfTestCollector")
    }
}

impl Collector for SelfTestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let workers = || self.0.self_test().workers().iter().enumerate().map(|(worker, test)| (worker.to_string(), test));

        let help = "1 while media does not come back through the worker: nothing new is placed on the node";
        let mut family = encoder.encode_descriptor("pop_self_test_gray", help, None, MetricType::Gauge)?;
        for (worker, test) in workers() {
            ConstGauge::new(i64::from(test.is_gray())).encode(family.encode_family(&[("worker", worker)])?)?;
        }

        let help =
            "Packets that the node sent through its own worker: back, missed, or uncounted because the process was not given its time";
        let mut family = encoder.encode_descriptor("pop_self_test_tries", help, None, MetricType::Counter)?;
        for (worker, test) in workers() {
            for result in TryResult::ALL {
                let labels = [("worker", worker.as_str()), ("result", result.name())];
                ConstCounter::new(test.tries(result)).encode(family.encode_family(&labels)?)?;
            }
        }

        let help = "How long the last of them took that came back";
        let mut family = encoder.encode_descriptor("pop_self_test_round_trip_seconds", help, None, MetricType::Gauge)?;
        for (worker, test) in workers() {
            ConstGauge::new(test.round_trip().as_secs_f64()).encode(family.encode_family(&[("worker", worker)])?)?;
        }
        Ok(())
    }
}
