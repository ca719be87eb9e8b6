//! `pop-bench`.
fn main() {}
