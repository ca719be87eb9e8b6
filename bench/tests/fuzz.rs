//! Every fuzz body on mutations of its seeds. `POP_MUTATION_FACTOR` makes it longer, `POP_MUTATION_SEED` another run.

use pop_bench::fuzz::{BODIES, body, run_seeded};

fn from_environment(key: &str, default: u64) -> u64 {
    std::env::var(key).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key} is no number")))
}

/// Inputs per body: about a second each in release.
fn run(name: &str, count: u64) {
    let seed = from_environment("POP_MUTATION_SEED", 0x0070_6f70);
    let count = count * from_environment("POP_MUTATION_FACTOR", 1) / if cfg!(debug_assertions) { 20 } else { 1 };
    println!("{name}: seed {seed}");
    let tally = run_seeded(&body(name), seed, count as usize);
    let share = 100 * tally.passed / tally.inputs;
    println!("{name}: {} inputs, {share} % past the first check", tally.inputs);
    assert!(share >= 20, "{name}: only {share} % of the inputs get past the first check");
}

macro_rules! runs {
    ($($test:ident: $name:literal, $count:literal;)*) => {
        $(#[test] fn $test() { run($name, $count); })*

        #[test]
        fn every_body_is_run() {
            let run = [$($name),*];
            assert!(BODIES.iter().all(|body| run.contains(&body.name)) && run.len() == BODIES.len());
        }
    };
}

runs! {
    fuzz_rtp: "rtp", 400_000;
    fuzz_rtcp: "rtcp", 200_000;
    fuzz_stun: "stun", 200_000;
    fuzz_dtls: "dtls", 400_000;
    fuzz_sdp: "sdp", 20_000;
    fuzz_signal: "signal", 20_000;
    fuzz_config: "config", 10_000;
    fuzz_twcc: "twcc", 20_000;
    fuzz_ice: "ice", 20_000;
    fuzz_srtp: "srtp", 20_000;
    fuzz_core: "core", 20_000;
}

#[test]
fn equal_seeds_make_equal_runs() {
    assert_eq!(run_seeded(&body("core"), 3, 50), run_seeded(&body("core"), 3, 50));
}
