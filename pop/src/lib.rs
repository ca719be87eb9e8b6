//! The appliance.

pub mod admin;
pub mod backend;
pub mod bus;
pub mod ca;
pub mod captures;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod data;
pub(crate) mod demo;
pub mod doctor;
pub mod dtls;
mod glass;
pub mod http;
pub mod keys;
pub mod liveness;
pub mod logging;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod notify;
pub mod panic;
pub mod probe;
mod rejoin;
pub mod reload;
pub mod rtp;
pub mod run;
pub mod sctp;
pub mod serve;
pub mod signal;
pub mod state;
pub mod tls;
pub mod token;
pub mod tune;
pub mod view;
pub mod vip;

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, when the build was told (`POP_COMMIT`).
pub const COMMIT: &str = match option_env!("POP_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
