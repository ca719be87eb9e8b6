//! Where machines meet sockets: pinned packet workers, and the service thread for what is slow.

pub mod clock;
pub mod core;
pub mod counters;
pub mod handover;
pub mod limits;
pub mod pcapng;
pub mod reflect;
pub mod service;
pub mod worker;

pub use clock::Clock;
pub use counters::{Counters, Drops, Gauges, WorkerSnapshot};
pub use handover::Crossing;
pub use service::{CaptureEnd, Service};
pub use worker::{ProbeConfig, STOOD_STILL, Worker, WorkerConfig};

/// The cores that this process may use, ascending.
pub fn available_cores() -> Vec<usize> {
    let mut cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}
