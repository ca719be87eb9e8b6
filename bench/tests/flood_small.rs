//! A flood at a core's full rate beside a few live streams. The promise is a figure, so a slow build proves only that nothing breaks.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Of the live streams while the flood runs.
const LOSS_MAX: f64 = 0.005;

/// Of the time of a run in which the worker may wait for its core and its loss still be its own.
const WAITED_SHARE_MAX: f64 = 0.01;

/// Growth of resident memory that is no growth: pages of the receive buffers that nothing had come into yet, and the metrics' own.
const RESIDENT_GROWTH_MAX: i64 = 4 << 20;

#[test]
fn live_streams_outlast_a_flood_and_it_is_counted_by_reason() {
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let pop = bench.with_file_name("pop");
    if !pop.exists() {
        // A test of this package alone has not built it; the other cases' tests do.
        panic!("{} is missing: build the workspace's programs first (cargo build --workspace --bins)", pop.display());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(bench)
        .args(["flood", "--kind", "mixed", "--kind", "trains", "--duration", "2s", "--subscribers", "6", "--publishers", "2"])
        .args(["--seed", "7", "--server-core", &(cores - 1).min(1).to_string(), "--pop"])
        .arg(pop)
        .output()
        .expect("pop-bench runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    for key in ["case", "commit", "loss", "machine", "config", "detail"] {
        assert!(!report[key].is_null(), "{key} in {report}");
    }
    println!("checksum {}", report["detail"]["checksum"]);
    let trials = report["detail"]["trials"].as_array().expect("one for each kind");
    assert_eq!(trials.len(), 2);
    for trial in trials {
        assert!(trial["sent"]["datagrams"].as_u64() > Some(10_000), "{trial}");
        assert!(trial["loss_after"].as_f64().is_some_and(|loss| loss <= 0.0), "{trial}");
        assert!(trial["resident_growth"].as_i64().is_some_and(|bytes| bytes <= RESIDENT_GROWTH_MAX), "{trial}");
        // Where other programs had the worker's core, its queue is full whatever it does. Trains of 64 KB are two copies of each byte, one
        // by the sender's core and one by the worker's: who of them is faster is a figure, not a promise.
        let waited = trial["worker_waited_share"].as_f64().expect("a share");
        if !cfg!(debug_assertions) && waited < WAITED_SHARE_MAX && trial["kind"] == "mixed" {
            assert!(trial["loss"].as_f64().is_some_and(|loss| loss <= LOSS_MAX), "{trial}");
        }
    }
    let reasons: Vec<&str> = trials[0]["drops"].as_array().expect("a list").iter().filter_map(|drop| drop[0].as_str()).collect();
    for reason in ["unknown_protocol", "unknown_address", "srtp_auth", "stun_integrity", "rtp_malformed", "too_large"] {
        assert!(reasons.contains(&reason), "none ended as {reason}: {reasons:?}");
    }
}
