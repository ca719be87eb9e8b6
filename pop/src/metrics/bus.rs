//! The bus in Prometheus' words.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::bus::{BusCounters, Ignored};

/// Reads the bus's counters at each scrape.
#[derive(Debug)]
pub struct BusCollector(Arc<BusCounters>);

impl BusCollector {
    /// Of a node.
    pub fn new(counters: Arc<BusCounters>) -> Self {
        Self(counters)
    }
}

impl Collector for BusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counters = &self.0;

        let help = "Participants' records that were read from other nodes (in) and written for them (out)";
        let mut family = encoder.encode_descriptor("pop_bus_records", help, None, MetricType::Counter)?;
        for (direction, count) in [("in", counters.records_in()), ("out", counters.records_out())] {
            ConstCounter::new(count).encode(family.encode_family(&[("direction", direction)])?)?;
        }

        let help = "Messages of other nodes that had no effect";
        let mut family = encoder.encode_descriptor("pop_bus_ignored", help, None, MetricType::Counter)?;
        for reason in Ignored::ALL {
            ConstCounter::new(counters.ignored(reason)).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }

        let (up, gone) = counters.transitions();
        for (name, help, count) in [
            (
                "pop_bus_record_bytes",
                "Bytes of participants' records that were written, without the bus's own",
                counters.record_bytes_out(),
            ),
            ("pop_bus_records_refused", "Records of this node that others would not accept, and that were not written", counters.refused()),
            ("pop_bus_resyncs", "Times that all records of a node in a session were read", counters.resyncs()),
            ("pop_bus_repairs", "Digests that told of something missed", counters.repairs()),
            ("pop_bus_queries_dropped", "Queries of others that found too many waiting", counters.queries_dropped()),
            ("pop_bus_duplicates", "Times that another process with this node's name was heard", counters.duplicates()),
            (
                "pop_bus_entered_anew",
                "Times that the bus was entered anew because somebody of bus.connect takes connections and is not on it",
                counters.entered_anew(),
            ),
            ("pop_bus_nodes_up", "Times that a node of the PoP came up", up),
            ("pop_bus_nodes_gone", "Times that a node of the PoP was gone", gone),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(family)?;
        }
        for (name, help, value) in [
            ("pop_bus_nodes", "Other nodes of the PoP that are up", counters.nodes()),
            ("pop_bus_participants", "Participants of other nodes that are known here", counters.participants()),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family)?;
        }
        Ok(())
    }
}
