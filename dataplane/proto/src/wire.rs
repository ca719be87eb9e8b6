//! Bounded views of what arrives. No byte reaches a machine, or a library, before its check here.

pub mod rtp;
pub mod stun;
