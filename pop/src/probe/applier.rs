//! The live keys of `[probe]`.

use async_trait::async_trait;

use super::rates;
use crate::config::Config;
use crate::node::Node;
use crate::reload::{Applier, Prepared};

/// The rates and the other PoPs change while the node runs; where it answers does not.
pub struct ProbeApplier(pub Node);

#[async_trait]
impl Applier for ProbeApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["probe.prefix_requests_per_second", "probe.requests_per_second", "probe.pops"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let (node, rates, pops) = (self.0.clone(), rates(&new.probe), new.probe.pops.clone());
        Ok(Prepared::new(Vec::new(), async move {
            node.probe().set_pops(pops);
            node.limit_probes(rates).await;
        }))
    }
}
