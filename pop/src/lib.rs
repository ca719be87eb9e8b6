//! The appliance.

pub mod config;
pub mod keys;
pub mod serve;
