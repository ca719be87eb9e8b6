//! Service addresses in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::vip::Vip;

/// Reads the state of each [`Vip`] at each scrape.
#[derive(Debug)]
pub struct VipCollector {
    /// The node's PoP: another one may have the same addresses.
    pub pop: String,
    /// All of them.
    pub vips: Vec<Vip>,
}

impl Collector for VipCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let labels = |vip: &Vip| [("pop", self.pop.clone()), ("address", vip.address().to_string())];
        let help = "1 where this node has the service address, else 0: over all nodes of a PoP it is 1";
        let mut family = encoder.encode_descriptor("pop_vip_held", help, None, MetricType::Gauge)?;
        for vip in &self.vips {
            ConstGauge::new(i64::from(vip.is_held())).encode(family.encode_family(&labels(vip))?)?;
        }
        let help = "1 where the host can have the service address, 0 while its interface has no carrier or its kernel refuses";
        let mut family = encoder.encode_descriptor("pop_vip_able", help, None, MetricType::Gauge)?;
        for vip in &self.vips {
            ConstGauge::new(i64::from(vip.is_able())).encode(family.encode_family(&labels(vip))?)?;
        }
        let help = "Times that this node took the service address";
        let mut family = encoder.encode_descriptor("pop_vip_takeovers", help, None, MetricType::Counter)?;
        for vip in &self.vips {
            ConstCounter::new(vip.takeovers()).encode(family.encode_family(&labels(vip))?)?;
        }
        let help = "Times that the kernel did not take the service address, give it back or send its announcement";
        let mut family = encoder.encode_descriptor("pop_vip_failures", help, None, MetricType::Counter)?;
        for vip in &self.vips {
            ConstCounter::new(vip.failures()).encode(family.encode_family(&labels(vip))?)?;
        }
        Ok(())
    }
}
