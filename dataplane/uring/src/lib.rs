//! Rings, buffers, sockets, GSO, feature probe and the counting allocator: the only unsafe code of the appliance.
//!
//! A worker thread owns one [`Backend`]: [`UringBackend`] by default, [`MmsgBackend`] where [`probe()`] says so. Both take all
//! their memory at start, hand out send slots ([`Backend::acquire`]) to be filled in place, and turn once per loop:
//!
//! ```text
//! loop { backend.turn(wait) ; while receive() { decide } ; acquire() -> train() -> send() }
//! ```

mod address;
pub mod alloc;
mod backend;
mod clock;
mod compare;
mod control;
mod diag;
mod environment;
mod freeze;
mod interface;
mod memory;
mod mmsg;
mod probe;
mod raw_udp;
mod receipt;
mod refusals;
mod seccomp;
mod slots;
mod socket;
mod sockets;
mod stamped;
mod streams;
mod tun;
mod uring;
mod wake;
mod wake_task;

pub use backend::{Backend, BackendKind, IoConfig, IoStats, Received, TrainId, Transmit, UnknownBackend, Wait};
pub use clock::{ClockState, clock_state, monotonic_time, process_cpu_time, set_realtime, set_timer_slack, thread_cpu_time};
pub use compare::{Comparison, Figure, Spread, compare};
pub use diag::DiagSocket;
pub use environment::set_variable;
pub use freeze::FrozenThread;
pub use interface::{FrameSocket, Interface, InterfaceAddress, RouteSocket, bind_tcp_foreign};
pub use mmsg::MmsgBackend;
pub use probe::{Feature, Probe, probe};
pub use raw_udp::{RawUdp, ip_packet};
pub use seccomp::refuse_io_uring;
pub use socket::{bind_tcp, bind_udp, limit_unsent};
pub use stamped::{AsyncStampedSocket, StampedReceipt, StampedSocket};
pub use streams::{FRAME_LEN_MAX, StreamReceived, StreamStats, Streams, StreamsConfig};
pub use tun::{Tun, enter_namespace, wait_readable};
pub use uring::UringBackend;
pub use wake::{WakeReceiver, Waker, wake_pair};
pub use wake_task::AsyncWake;
