//! Sans-IO media protocol: what a datagram is, who may send it, and what it becomes for each subscriber.
//!
//! Nothing here owns a socket, a clock, a thread, a lock or a source of randomness; `dataplane::core` drives it.

pub mod allocation;
pub mod allowance;
pub mod audio_level;
pub mod codec;
pub mod control;
pub mod drop_reason;
pub mod group;
pub mod header;
pub mod history;
pub mod ice;
pub mod inbound;
pub mod layering;
pub mod layers;
pub mod loudest;
pub mod outbound;
pub mod picture;
pub mod probe;
pub mod protection;
pub mod remb;
pub mod sequence;
pub mod slots;
pub mod srtp;
pub mod thinning;
pub mod twcc;
pub mod wire;

pub use control::{Command, Event};
pub use drop_reason::DropReason;
