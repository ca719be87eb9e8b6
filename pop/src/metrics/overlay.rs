//! The other PoPs and the ways to them in Prometheus' words.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::view::OverlayView;

/// What the cluster has written last, a second ago at most.
pub type Overlay = Arc<Mutex<OverlayView>>;

/// Reads it at each scrape. Paths are those of this node: each PoP tells its own.
#[derive(Debug)]
pub struct OverlayCollector {
    /// The PoP that it is a node of.
    pub pop: String,
    /// See [`Overlay`].
    pub overlay: Overlay,
}

impl Collector for OverlayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let own = || overlay.paths.iter().filter(|path| path.from == self.pop);
        let mut family =
            encoder.encode_descriptor("pop_mesh_path_rtt_seconds", "Round trip to another PoP and back", None, MetricType::Gauge)?;
        for path in own() {
            ConstGauge::new(path.rtt_ms / 1_000.0).encode(family.encode_family(&[("pop", path.to.as_str())])?)?;
        }
        let help = "Share of the datagrams to (out) and from (in) another PoP that are lost";
        let mut family = encoder.encode_descriptor("pop_mesh_path_loss_ratio", help, None, MetricType::Gauge)?;
        for path in own() {
            for (direction, loss) in [("in", path.loss_in), ("out", path.loss_out)] {
                ConstGauge::new(loss).encode(family.encode_family(&[("pop", path.to.as_str()), ("direction", direction)])?)?;
            }
        }
        let help = "The way to another PoP that is the best: 1 for `direct` or `via POP`; a PoP without one is not reached";
        let mut family = encoder.encode_descriptor("pop_mesh_route", help, None, MetricType::Gauge)?;
        for route in &overlay.routes {
            ConstGauge::new(1_i64).encode(family.encode_family(&[("pop", route.to.as_str()), ("way", route.way.as_str())])?)?;
        }
        let help =
            "How datagrams to another PoP leave now: 1 for `direct`, `via POP`, or both joined by `+` while it is not known which lives";
        let mut family = encoder.encode_descriptor("pop_mesh_way_in_use", help, None, MetricType::Gauge)?;
        for (to, way) in overlay.routes.iter().filter_map(|route| Some((&route.to, route.in_use.as_ref()?))) {
            ConstGauge::new(1_i64).encode(family.encode_family(&[("pop", to.as_str()), ("way", way.as_str())])?)?;
        }
        for (name, help, count) in [
            ("pop_mesh_sessions", "Sessions with people in another PoP, too", overlay.sessions as i64),
            ("pop_mesh_participants", "People of other PoPs that are known here", overlay.participants as i64),
        ] {
            ConstGauge::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Times that the way to another PoP became another one";
        ConstCounter::new(overlay.changes).encode(encoder.encode_descriptor("pop_mesh_route_changes", help, None, MetricType::Counter)?)
    }
}
