//! `[bus]` and `[mesh]`: the other nodes of this PoP, and the links between nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pop_relay::control::VERSION;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::value;

/// Nodes that one file may name, and that one node speaks with.
pub const PEERS_MAX: usize = 255;

/// The highest price of a way, in milliseconds: ways that cost so much are taken when nothing else is left.
const PRICE_MAX: u32 = 10_000;

/// `[bus]`: state of the PoP. A node without addresses here is alone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Where other nodes of the PoP reach this one's bus.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// Where this one reaches theirs; some suffice when each node reaches each over others' addresses, too.
    #[serde(deserialize_with = "addresses")]
    pub connect: Vec<SocketAddr>,
    /// The CA of this PoP alone, PEM, where others have one of their own: whoever has no certificate of it is not let in. `None`: `mesh.ca`.
    pub ca: Option<PathBuf>,
}

/// `[mesh]`: secured links to other nodes. A node without `listen` has none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeshConfig {
    /// Where control links are taken (TLS).
    #[serde(deserialize_with = "optional_address")]
    pub listen: Option<SocketAddr>,
    /// Control addresses of nodes that the bus does not tell of: those of other PoPs.
    #[serde(deserialize_with = "addresses")]
    pub peers: Vec<SocketAddr>,
    /// First UDP port of the relay, on the address of `listen`: worker `i` uses `relay_port + i`; 0 takes any free port per worker.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, 65_535>")]
    pub relay_port: u16,
    /// The operator's CA, PEM; `pop ca` makes it.
    pub ca: Option<PathBuf>,
    /// This node's certificate chain, PEM, from that CA: names the node and its PoP.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The operator's list of certificates that were taken back, PEM; `pop ca revoke` makes it.
    pub revoked: Option<PathBuf>,
    /// Clients get their transports on another node of the PoP than the one that holds their sockets.
    pub split: bool,
    /// A packet that is later than this at the other node is not sent again.
    #[serde(deserialize_with = "value::duration::<_, 20, 2_000>")]
    pub playout: Duration,
    /// What a way through a PoP costs beside its round trips, in milliseconds, by the PoP's name.
    #[serde(deserialize_with = "prices")]
    pub prices: BTreeMap<String, u32>,
    /// Nodes of other PoPs tell of further ones, and those get links, too.
    pub discover: bool,
    /// Newest version of what is said to other nodes, on links and on the bus: the one before while not all nodes are of this release.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, 1>")]
    pub schema: u8,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            listen: None,
            peers: Vec::new(),
            relay_port: 11_000,
            ca: None,
            cert: None,
            key: None,
            revoked: None,
            split: true,
            playout: Duration::from_millis(150),
            prices: BTreeMap::new(),
            discover: true,
            schema: VERSION,
        }
    }
}

impl BusConfig {
    /// Other nodes are told of this one's sessions.
    pub fn is_on(&self) -> bool {
        !self.listen.is_empty() || !self.connect.is_empty()
    }
}

impl MeshConfig {
    /// Where worker `index` takes the datagrams of links; `None` without links.
    pub fn relay_address(&self, index: usize) -> Option<SocketAddr> {
        let port = if self.relay_port == 0 { 0 } else { self.relay_port.saturating_add(index as u16) };
        self.listen.map(|listen| SocketAddr::new(listen.ip(), port))
    }

    /// The files of this node's identity: CA, chain, key.
    pub fn files(&self) -> Option<(&PathBuf, &PathBuf, &PathBuf)> {
        Some((self.ca.as_ref()?, self.cert.as_ref()?, self.key.as_ref()?))
    }
}

/// What no key of the two tables alone can tell. The error names the key to point at.
pub(super) fn check(bus: &BusConfig, mesh: &MeshConfig) -> Result<(), (&'static str, String)> {
    let is_secured = mesh.files().is_some();
    if [&mesh.ca, &mesh.cert, &mesh.key].iter().any(|file| file.is_some()) && !is_secured {
        return Err(("mesh.ca", "mesh.ca, mesh.cert and mesh.key go together: `pop ca` makes them".to_owned()));
    }
    if let Some(address) = bus.listen.iter().chain(&bus.connect).find(|address| !address.ip().is_loopback())
        && !is_secured
    {
        return Err((
            "bus",
            format!("the bus leaves this host at {address}: that needs mesh.ca, mesh.cert and mesh.key, which `pop ca` makes"),
        ));
    }
    if mesh.revoked.is_some() && !is_secured {
        return Err(("mesh.revoked", "mesh.revoked needs mesh.ca, mesh.cert and mesh.key, which `pop ca` makes".to_owned()));
    }
    if bus.ca.is_some() && !is_secured {
        return Err(("bus.ca", "bus.ca needs mesh.ca, mesh.cert and mesh.key, which `pop ca` makes".to_owned()));
    }
    if mesh.listen.is_some() && !is_secured {
        return Err(("mesh.listen", "mesh.listen needs mesh.ca, mesh.cert and mesh.key, which `pop ca` makes".to_owned()));
    }
    if mesh.listen.is_some_and(|listen| listen.ip().is_unspecified()) {
        return Err(("mesh.listen", "mesh.listen must be an address that other nodes reach, not a wildcard".to_owned()));
    }
    if mesh.listen.is_none() && !mesh.peers.is_empty() {
        return Err(("mesh.peers", "mesh.peers needs mesh.listen: links are taken and made by the same node".to_owned()));
    }
    Ok(())
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let addresses = Vec::<SocketAddr>::deserialize(deserializer)?;
    if addresses.len() > PEERS_MAX {
        return Err(de::Error::custom(format_args!("{} addresses, of which a node takes at most {PEERS_MAX}", addresses.len())));
    }
    match addresses.iter().find(|address| address.port() == 0) {
        Some(address) => Err(de::Error::custom(format_args!("{address} has no port that others could know"))),
        None => Ok(addresses),
    }
}

fn prices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u32>, D::Error> {
    let prices = BTreeMap::<String, u32>::deserialize(deserializer)?;
    if prices.len() > PEERS_MAX {
        return Err(de::Error::custom(format_args!("{} prices, of which a node takes at most {PEERS_MAX}", prices.len())));
    }
    match prices.iter().find(|(_, price)| **price > PRICE_MAX) {
        Some((pop, price)) => Err(de::Error::custom(format_args!("{price} ms for {pop:?}, and a price is at most {PRICE_MAX} ms"))),
        None => Ok(prices),
    }
}

fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    value::socket_address(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("pop.toml")).expect_err("it is wrong").to_string()
    }

    #[test]
    fn what_leaves_the_host_needs_a_certificate() {
        assert!(Config::parse("[bus]\nlisten = [\"127.0.0.1:7447\"]", Path::new("pop.toml")).is_ok());
        assert!(error("[bus]\nlisten = [\"10.0.0.1:7447\"]").contains("pop ca"));
        assert!(error("[mesh]\nlisten = \"127.0.0.1:7890\"").contains("mesh.listen needs"));
        assert!(error("[mesh]\nca = \"ca.pem\"").contains("go together"));
        assert!(error("[bus]\nca = \"ca.pem\"").contains("bus.ca needs"));
        assert!(error("[mesh]\nrevoked = \"crl.pem\"").contains("mesh.revoked needs"));
        assert!(error("[bus]\nconnect = [\"127.0.0.1:0\"]").contains("no port"));
        let files = "ca = \"ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n";
        assert!(error(&format!("[mesh]\n{files}listen = \"0.0.0.0:7890\"")).contains("not a wildcard"));
        assert!(error(&format!("[mesh]\n{files}peers = [\"10.0.0.1:7890\"]")).contains("mesh.peers needs mesh.listen"));
        assert!(error("[mesh]\nprices = { sin = 10_001 }").contains("a price is at most 10000 ms"));
        let config = Config::parse(&format!("[mesh]\n{files}listen = \"10.0.0.1:7890\"\n"), Path::new("pop.toml")).expect("it is whole");
        assert_eq!((config.mesh.relay_port, config.bus.is_on()), (11_000, false));
    }
}
