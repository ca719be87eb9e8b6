//! `pop`.
fn main() {}
