//! The public listener's own state in Prometheus' words.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::serve::Sources;
use crate::tls::Tls;

/// Reads the listener's counters and its certificate at each scrape.
#[derive(Clone)]
pub struct HttpCollector {
    /// Who connects.
    pub sources: Arc<Sources>,
    /// Without TLS there is no certificate, and no metric of one.
    pub tls: Option<Tls>,
}

impl std::fmt::Debug for HttpCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpCollector")
    }
}

impl Collector for HttpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "HTTP connections closed because their address had as many as it may";
        let refused = ConstCounter::new(self.sources.refused_connections());
        refused.encode(encoder.encode_descriptor("pop_http_refused_connections", help, None, MetricType::Counter)?)?;
        if let Some(tls) = &self.tls {
            let help = "Until when the certificate in use is valid, in Unix seconds";
            let expiry = ConstGauge::new(i64::try_from(tls.expires_at_s()).unwrap_or(i64::MAX));
            expiry.encode(encoder.encode_descriptor("pop_tls_certificate_expiry_timestamp_seconds", help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
