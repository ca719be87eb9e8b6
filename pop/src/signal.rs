//! Signalling: how a client and this node agree on a transport and on media.
//!
//! ```text
//! POST offer -> endpoint: room, token, type, size -> sdp::parse -> answer::negotiate -> Node::place -> whip | whep: ids, keys
//!            <- 201, Location, answer             <- Node::join <------------------------------------------+
//! ```
//! Everything that can fail on the client's account fails before a worker is asked, so a refused client costs nothing.

pub mod answer;
mod endpoint;
mod ice_servers;
mod patch;
pub mod sdp;
mod whep;
mod whip;

pub use endpoint::{Problem, routes};
