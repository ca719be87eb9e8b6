//! The appliance.

pub mod config;
pub mod dtls;
pub mod keys;
pub mod serve;
