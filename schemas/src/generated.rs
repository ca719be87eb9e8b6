//! Code that `flatc --rust` made of `fbs/*.fbs`; a test makes it again and compares. Nothing here is written by hand but this file.
//!
//! Bytes of the network meet bounds of ours first, then the verifier under the limits of [`verifier`], then these accessors.
#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unused_imports,
    unused_lifetimes,
    mismatched_lifetime_syntaxes
)]

#[path = "generated/bus.rs"]
#[rustfmt::skip]
mod bus_generated;
#[path = "generated/relay.rs"]
#[rustfmt::skip]
mod relay_generated;

pub use bus_generated::pop::bus;
pub use relay_generated::pop::relay;

/// What a buffer from the network may be made of: the library's own limits are far too wide.
pub fn verifier(tables: usize) -> flatbuffers::VerifierOptions {
    flatbuffers::VerifierOptions { max_depth: 4, max_tables: tables, max_apparent_size: 1 << 20, ignore_missing_null_terminator: false }
}
