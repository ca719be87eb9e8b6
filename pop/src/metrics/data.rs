//! Data messages in Prometheus' words.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::data::{DataCounters, DataDrop, Direction};

/// Reads the data counters at each scrape.
#[derive(Debug)]
pub struct DataCollector(Arc<DataCounters>);

impl DataCollector {
    /// Of a node.
    pub fn new(counters: Arc<DataCounters>) -> Self {
        Self(counters)
    }
}

/// Value of the `kind` label.
const fn kind(reliable: bool) -> &'static str {
    if reliable { "reliable" } else { "lossy" }
}

impl Collector for DataCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counters = &self.0;
        let series = || Direction::ALL.into_iter().flat_map(|direction| [(direction, true), (direction, false)]);

        let help = "Data messages from clients and to clients";
        let mut family = encoder.encode_descriptor("pop_data_messages", help, None, MetricType::Counter)?;
        for (direction, reliable) in series() {
            let labels = [("direction", direction.label()), ("kind", kind(reliable))];
            ConstCounter::new(counters.total(direction, reliable).0).encode(family.encode_family(&labels)?)?;
        }

        let help = "Bytes of these messages";
        let mut family = encoder.encode_descriptor("pop_data_bytes", help, None, MetricType::Counter)?;
        for (direction, reliable) in series() {
            let labels = [("direction", direction.label()), ("kind", kind(reliable))];
            ConstCounter::new(counters.total(direction, reliable).1).encode(family.encode_family(&labels)?)?;
        }

        let help = "Data messages, and packets that carry them, that ended here";
        let mut family = encoder.encode_descriptor("pop_data_dropped", help, None, MetricType::Counter)?;
        for reason in DataDrop::ALL {
            ConstCounter::new(counters.dropped(*reason)).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }

        for (name, help, count) in [
            ("pop_data_overflows", "Receivers that were told to resume because they took data too slowly", counters.overflows()),
            ("pop_data_associations_lost", "SCTP associations that ended before their transports", counters.associations_lost()),
            ("pop_sctp_panics", "Panics of the SCTP library that were caught: a bug", counters.panics()),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(family)?;
        }
        Ok(())
    }
}
