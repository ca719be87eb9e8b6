//! Where machines meet sockets: pinned packet workers, and the service thread for what is slow.

pub mod clock;
pub mod core;
pub mod counters;
pub mod limits;
pub mod pcapng;
pub mod service;
pub mod worker;

pub use clock::Clock;
pub use counters::{Counters, Drops, Gauges, WorkerSnapshot};
pub use service::{CaptureEnd, Service};
pub use worker::{Worker, WorkerConfig};
