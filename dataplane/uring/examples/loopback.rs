//! CPU ns per datagram of the calling thread over loopback, both back ends in turn ([`pop_uring::compare`]).
//!
//! `cargo run --release -p pop-uring --example loopback -- ROUNDS`

use std::env;
use std::io;

use pop_uring::{Figure, Spread, compare};

fn main() -> io::Result<()> {
    let rounds = env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(15);
    let compared = compare(rounds)?;
    println!("{:<10}{:>6}  {:<10}{:>8}{:>8}{:>8}", "case", "train", "back end", "median", "min", "max");
    for Figure { case, train, backend, cpu_ns: Spread { min, median, max } } in &compared.figures {
        println!("{case:<10}{train:>6}  {:<10}{median:>8.0}{min:>8.0}{max:>8.0}", backend.name());
    }
    println!("rounds {}, faster {:?}, checksum {:016x}", compared.rounds, compared.faster(), compared.checksum);
    Ok(())
}
