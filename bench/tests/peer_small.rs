//! The comparison with Janus as a test: a small input, no timed assertion.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

mod common;

use common::find_pop;

/// `scripts/setup test` unpacks the Janus that this needs.
#[test]
fn janus_serves_the_same_clients_and_both_costs_are_told() {
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(bench)
        .args(["peer", "janus", "--subscribers", "5", "--duration", "3s", "--pairs", "1"])
        .args(["--server-core", &(cores - 1).min(1).to_string(), "--pop"])
        .arg(find_pop())
        .output()
        .expect("pop-bench runs");
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    if said.contains("run it as root") {
        return println!("not root: no network namespace to compare in");
    }
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["case"], "peer");
    for (at, name) in ["pop", "janus"].into_iter().enumerate() {
        let run = &report["detail"]["runs"][at];
        assert_eq!((&run["name"], &run["loss"], &run["refused"]), (&Value::from(name), &Value::from(0.0), &Value::from(0)), "{run}");
        assert_eq!(run["expected"], run["delivered"]);
        assert_eq!(run["srtp_profiles"], serde_json::json!(["AEAD_AES_128_GCM"]), "{run}");
        // One of five authenticates: a fifth of all packets, each of which was this publisher's.
        assert_eq!(run["authenticated"].as_u64().map(|count| 5 * count), run["expected"].as_u64(), "{run}");
        assert!(run["cpu_ns_per_packet"].as_f64().is_some_and(|ns| ns > 0.0), "{run}");
        println!("{name} checksum {}", run["checksum"]);
    }
    let checksums = [0, 1].map(|at| &report["detail"]["runs"][at]["checksum"]);
    assert_eq!(checksums[0], checksums[1], "both carried the same numbers");
    assert!(report["detail"]["peer_ratio"].is_number());
}

#[test]
fn a_peer_that_is_not_there_is_told_with_a_sentence() {
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let output = Command::new(bench).args(["peer", "janus", "--program", "no/such/janus"]).output().expect("pop-bench runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no/such/janus") || said.contains("run it as root"), "{said}");
}
