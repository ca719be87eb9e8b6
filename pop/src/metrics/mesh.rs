//! Links to other nodes in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::mesh::{Mesh, MeshCounters};

/// Reads the mesh's counters at each scrape.
#[derive(Debug)]
pub struct MeshCollector(Mesh);

impl MeshCollector {
    /// Of `mesh`.
    pub fn new(mesh: Mesh) -> Self {
        Self(mesh)
    }
}

impl Collector for MeshCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let MeshCounters { links, refused, messages_in, messages_out, rekeys, carried, joined, expires_at_s } = self.0.counters();
        let gauges = [
            ("pop_mesh_links", "Links to other nodes that are up", links as u64),
            (
                "pop_mesh_joined_sockets",
                "Clients' sockets that go through this node to the one that has their transport",
                joined.max(0) as u64,
            ),
            ("pop_mesh_certificate_expiry_timestamp_seconds", "Until when mesh.cert is valid, in Unix seconds", expires_at_s),
        ];
        for (name, help, value) in gauges {
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Connections that became no link, and links that ended for a fault of the other end";
        let mut family = encoder.encode_descriptor("pop_mesh_refused", help, None, MetricType::Counter)?;
        for (reason, count) in refused {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        let help = "Control messages of links, those of liveness included";
        let mut family = encoder.encode_descriptor("pop_mesh_messages", help, None, MetricType::Counter)?;
        for (direction, count) in [("in", messages_in), ("out", messages_out)] {
            ConstCounter::new(count).encode(family.encode_family(&[("direction", direction)])?)?;
        }
        let help =
            "Requests of clients that belong to another node, by what became of them; answered and full are of those that came from others";
        let mut family = encoder.encode_descriptor("pop_mesh_carried", help, None, MetricType::Counter)?;
        for (outcome, count) in carried {
            ConstCounter::new(count).encode(family.encode_family(&[("result", outcome.label())])?)?;
        }
        let help = "New generations of the keys of links";
        ConstCounter::new(rekeys).encode(encoder.encode_descriptor("pop_mesh_rekeys", help, None, MetricType::Counter)?)
    }
}
