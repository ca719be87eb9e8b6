//! One libFuzzer target per body of `pop_bench::fuzz`.

use libfuzzer_sys::Corpus;

/// Keeps what got past the first check; the rest is no input to start from.
pub fn run(name: &str, data: &[u8]) -> Corpus {
    match (pop_bench::fuzz::body(name).run)(data) {
        pop_bench::fuzz::Outcome::Passed => Corpus::Keep,
        pop_bench::fuzz::Outcome::Refused => Corpus::Reject,
    }
}
