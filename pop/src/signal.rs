//! Signalling: how a client and this node agree on a transport and on media.
//!
//! ```text
//! POST offer -> endpoint: room, token, type, size -> sdp::parse -> answer::negotiate -> Node::place -> whip | whep: ids, keys
//!            <- 201, Location, answer             <- Node::join <------------------------------------------+
//! ```
//! What names an id of another node goes there, and who comes newly goes to the node that is to have its transport; of both no more than
//! the token and the id are looked at here ([`elsewhere`]).
//! Everything that can fail on the client's account fails before a worker is asked, so a refused client costs nothing.

pub mod answer;
mod elsewhere;
mod endpoint;
mod ice_servers;
pub mod livekit;
mod patch;
pub mod sdp;
mod whep;
mod whip;

use axum::{Router, middleware};

pub(crate) use elsewhere::CRASH_PATH;
pub use endpoint::Problem;
pub use livekit::{Refused, SignalCounters};

use crate::config::Config;
use crate::node::Node;

/// Everything that clients signal by.
pub fn routes(node: Node, config: &Config) -> Router {
    carried(node.clone(), endpoint::routes(node.clone(), config).merge(livekit::routes(node, config)))
}

/// What is asked of somebody whom another node has is answered there.
pub(crate) fn carried(node: Node, routes: Router) -> Router {
    routes.layer(middleware::from_fn_with_state(node, elsewhere::carry))
}
