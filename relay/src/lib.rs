//! Sans-IO link between two nodes: frames between their workers, and control between themselves.
//!
//! `relay/README.md` is the design: the picture of a datagram, who does what, what is bounded by what.

pub mod control;
mod drop_reason;
pub mod frame;
pub mod keys;
pub mod link;
pub mod route;
pub mod seal;

pub use drop_reason::RelayDrop;
