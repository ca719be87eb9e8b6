//! RTP routes: plain or SDES RTP into a room, out of one, or through the node.
//!
//! ```text
//! [[rtp.route]], POST /api/v1/rtp/routes -> plan (checked) -> sockets -> Node::open_route (one leg, a forwarder two) -> table
//! GET, DELETE  ---------------------------------------------------------------------------------------------------------^
//! ```

pub mod api;
mod apply;
mod open;
mod plan;
mod sdes;
mod sdp;
mod status;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use pop_schemas::{ParticipantId, SessionId};
use tokio::sync::Mutex;

pub use apply::RouteApplier;
pub use status::RouteStatus;

use crate::config::{Config, Cores, MediaConfig, ROUTES_MAX, RouteConfig, RtpConfig};
use crate::node::{Node, OpenRoute};
use plan::{IsOurs, Plan};

/// A port that is this node's own, and what for.
#[derive(Clone, Debug)]
pub struct OwnPort {
    /// Such as "the HTTP listener".
    pub what: String,
    /// The port.
    pub port: u16,
}

/// Why a route is as it was, with the sentence for who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFailure {
    /// The request is wrong.
    Request(String),
    /// It is in the way of another route, or of another program.
    Conflict(String),
    /// No room for one more.
    Full(String),
    /// There is no such route.
    Unknown(String),
}

impl RouteFailure {
    /// The sentence.
    pub fn sentence(&self) -> &str {
        match self {
            Self::Request(sentence) | Self::Conflict(sentence) | Self::Full(sentence) | Self::Unknown(sentence) => sentence,
        }
    }
}

/// The routes of a node. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    shared: Arc<Shared>,
}

struct Shared {
    node: Node,
    media: MediaConfig,
    own: Vec<OwnPort>,
    /// Held over a change: changes come one after the other.
    table: Mutex<BTreeMap<String, Entry>>,
}

/// A route that is served.
struct Entry {
    config: RouteConfig,
    plan: Plan,
    /// From the config file: a reload may end it.
    is_configured: bool,
    /// One; a forwarder has a way in and a way out.
    legs: Vec<Leg>,
}

/// One participant.
struct Leg {
    open: OpenRoute,
    room: SessionId,
    participant: ParticipantId,
    local: SocketAddr,
    rtcp_port: Option<u16>,
}

impl Leg {
    fn ports(&self) -> impl Iterator<Item = u16> {
        [Some(self.local.port()), self.rtcp_port].into_iter().flatten()
    }
}

impl Routes {
    /// None yet. `own` are the ports of the node's listeners; those of media and probes are known.
    pub fn new(node: Node, media: &MediaConfig, mut own: Vec<OwnPort>) -> Self {
        // One by one: free ports that the kernel chose for several workers are no range.
        let media_ports = node.candidates().iter().flatten().map(SocketAddr::port);
        own.extend(media_ports.map(|port| OwnPort { what: "a media port".to_owned(), port }));
        own.extend(node.probe().reflector_ports().map(|port| OwnPort { what: "a probe reflector".to_owned(), port }));
        Self { shared: Arc::new(Shared { node, media: media.clone(), own, table: Mutex::default() }) }
    }

    /// Opens a route.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub async fn add(&self, config: RouteConfig) -> Result<RouteStatus, RouteFailure> {
        let routes = self.clone();
        // In a task of its own: whoever asked may hang up half-way, and half a route would be nobody's to end.
        let added = tokio::spawn(async move {
            let mut table = routes.shared.table.lock().await;
            let name = routes.open(&mut table, config, false).await?;
            Ok(routes.describe(&table, Some(&name)).await.remove(0))
        });
        added.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Ends a route, and tells how it was.
    ///
    /// # Errors
    ///
    /// There is none of this name.
    pub async fn remove(&self, name: &str) -> Result<RouteStatus, RouteFailure> {
        let (routes, name) = (self.clone(), name.to_owned());
        let removed = tokio::spawn(async move {
            let mut table = routes.shared.table.lock().await;
            if !table.contains_key(&name) {
                return Err(unknown(&name));
            }
            let status = routes.describe(&table, Some(&name)).await.remove(0);
            routes.close(&mut table, &name).await;
            Ok(status)
        });
        removed.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// How one route is.
    ///
    /// # Errors
    ///
    /// There is none of this name.
    pub async fn show(&self, name: &str) -> Result<RouteStatus, RouteFailure> {
        let table = self.shared.table.lock().await;
        if table.contains_key(name) { Ok(self.describe(&table, Some(name)).await.remove(0)) } else { Err(unknown(name)) }
    }

    /// How all routes are, by name.
    pub async fn list(&self) -> Vec<RouteStatus> {
        let table = self.shared.table.lock().await;
        self.describe(&table, None).await
    }
}

fn unknown(name: &str) -> RouteFailure {
    RouteFailure::Unknown(format!("there is no RTP route {name:?}"))
}

/// Checks the routes of a config file as far as the file alone can tell.
///
/// # Errors
///
/// A sentence that names the route and what is wrong.
pub fn check_file(config: &Config) -> Result<(), String> {
    let Config { http, admin, media, .. } = config;
    let workers = if let Cores::List(cores) = &config.dataplane.cores { cores.len() } else { 1 };
    // Ports that are drawn are checked at the start.
    let media_ports = (media.port..=u16::MAX).take(if media.port == 0 { 0 } else { workers });
    let listeners = [("the HTTP listener", http.listen.port()), ("the admin listener", admin.listen.port())];
    let own = listeners.into_iter().filter(|(_, port)| *port != 0).chain(media_ports.map(|port| ("a media port", port)));
    let own: Vec<OwnPort> = own.map(|(what, port)| OwnPort { what: what.to_owned(), port }).collect();
    let is_ours = |ip: IpAddr| ip.is_loopback() || media.addresses.contains(&ip) || media.advertise.contains(&ip);
    check(&config.rtp, media, &own, &is_ours)
}

/// Checks each route, and each beside those before it.
fn check(config: &RtpConfig, media: &MediaConfig, own: &[OwnPort], is_ours: IsOurs<'_>) -> Result<(), String> {
    if config.route.len() > ROUTES_MAX {
        return Err(format!("{} RTP routes are too many: a node takes {ROUTES_MAX}", config.route.len()));
    }
    let mut plans: BTreeMap<&str, Plan> = BTreeMap::new();
    for route in &config.route {
        let name = route.name.as_deref().ok_or("each [[rtp.route]] needs a name")?;
        if plans.contains_key(name) {
            return Err(format!("two RTP routes are named {name:?}"));
        }
        let refuse = |sentence: &str| format!("RTP route {name:?}: {sentence}");
        let plan = Plan::new(name, route, media, |_| {}).map_err(|sentence| refuse(&sentence))?;
        plan.check_own(own, is_ours).map_err(|sentence| refuse(&sentence))?;
        for (other, theirs) in &plans {
            plan.check_beside(other, theirs, &theirs.ports(), is_ours).map_err(|failure| refuse(failure.sentence()))?;
        }
        plans.insert(name, plan);
    }
    Ok(())
}
