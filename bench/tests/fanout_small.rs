//! The fan-out case as a test: a small input, no timed assertion.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

mod common;

use common::find_pop;

/// The cases share two cores and pin their threads: one at a time. This is for cargo's own runner; nextest starts a process per
/// test and is told in `.config/nextest.toml`.
static ALONE: Mutex<()> = Mutex::new(());

fn run_fanout(arguments: &[&str]) -> std::process::Output {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let pop = find_pop();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(bench)
        .args(["fanout", "--server-core", &(cores - 1).min(1).to_string(), "--pop"])
        .arg(pop)
        .args(arguments)
        .output()
        .expect("pop-bench runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn two_subscribers_get_and_authenticate_everything() {
    let output = run_fanout(&["--subscribers", "2", "--duration", "1s"]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["case"], "fanout");
    for key in ["packets_per_second", "cpu_ns_per_packet", "loss", "allocations_per_packet"] {
        assert!(report[key].is_number(), "{key} in {report}");
    }
    for key in ["p50", "p99", "p999", "max"] {
        assert!(report["latency_us"][key].is_number(), "latency_us.{key} in {report}");
    }
    for key in ["mean", "p50", "p99"] {
        assert!(report["train_packets"][key].is_number(), "train_packets.{key} in {report}");
    }
    assert!(report["machine"]["nic"]["kind"].is_string() && report["config"].is_object(), "{report}");
    for pace in ["paced", "frames"] {
        let run = &report["detail"]["paces"][pace]["runs"][0];
        // A busy machine has no floor to compare with, and the report says so.
        assert!(run["floor_ratio"].is_number() || run["floor_off"].is_string(), "{run}");
        assert_eq!(run["floors"].as_array().map(Vec::len), Some(2), "before and after");
        let evidence = &run["evidence"];
        assert!(evidence["syscalls_per_packet"].is_number(), "{evidence}");
        assert_eq!(run["loss"], 0.0, "{evidence}");
        assert_eq!(evidence["expected"], evidence["delivered"]);
        assert_eq!(evidence["refused"], 0, "a packet was not authentic");
        // The first of the two subscribers authenticates: every packet of its publisher, each once.
        assert_eq!(evidence["authenticated"], evidence["sent"]);
        // The numbers inside the packets are 0 to sent - 1: the fold tells whether it was exactly those.
        let sent = evidence["sent"].as_u64().expect("a count");
        let expected = (1..=sent).fold(0u64, |sum, n| sum.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert_eq!(evidence["checksum"], format!("{expected:016x}"));
        println!("checksum {}", evidence["checksum"]);
    }
}

#[test]
fn every_second_subscriber_has_aes_cm_and_the_others_are_timed() {
    let output = run_fanout(&[
        "--subscribers",
        "4",
        "--profile",
        "mixed",
        "--bitrate",
        "300k",
        "--duration",
        "500ms",
        "--loopback",
        "--pace",
        "burst",
    ]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["config"]["profile"], "mixed");
    let both = serde_json::json!(["AEAD_AES_128_GCM", "AES128_CM_HMAC_SHA1_80"]);
    assert_eq!(report["detail"]["srtp_profiles"], both);
    let evidence = &report["detail"]["paces"]["burst"]["runs"][0]["evidence"];
    assert_eq!((&report["loss"], &evidence["refused"]), (&Value::from(0.0), &Value::from(0)), "{evidence}");
    // One of the two of either profile authenticates everything, and the one with GCM times it.
    let sent = evidence["sent"].as_u64().expect("a count");
    assert_eq!((&evidence["authenticated"], &evidence["latency_samples"]), (&Value::from(2 * sent), &Value::from(sent)), "{evidence}");
    println!("checksum {}", evidence["checksum"]);
}

#[test]
fn padding_is_measured_beside_none_in_one_run() {
    let output =
        run_fanout(&["--subscribers", "3", "--uneven", "--bitrate", "600k", "--duration", "500ms", "--loopback", "--pace", "burst"]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["loss"], 0.0);
    let told = &report["detail"]["padding"]["burst"];
    let number = |side: &str, name: &str| told[side][name].as_f64().unwrap_or_else(|| panic!("{side} {name} in {told}"));
    // GCM's tag behind 1,100 bytes, and behind the packets of the first half of a frame a byte less.
    assert!(number("plain", "bytes_per_packet") < 1_116.0 && number("plain", "padding_bytes_per_packet") == 0.0, "{told}");
    let padding = number("padded", "padding_bytes_per_packet");
    assert!(padding > 0.0 && padding < 1.0, "{told}");
    assert!((number("padded", "bytes_per_packet") - number("plain", "bytes_per_packet") - padding).abs() < 0.01, "{told}");
    assert!(number("padded", "cpu_ns_per_packet") > 0.0 && told["cpu_ratio"].is_f64(), "{told}");
    for side in ["padded", "plain"] {
        assert!(number(side, "authenticated") > 0.0, "{side} of {told}");
    }
}

#[test]
fn three_publishers_reach_their_own_subscribers() {
    let output = run_fanout(&[
        "--subscribers",
        "6",
        "--publishers",
        "3",
        "--bitrate",
        "300k",
        "--duration",
        "500ms",
        "--loopback",
        "--pace",
        "burst",
    ]);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["machine"]["nic"]["kind"], "loopback");
    let evidence = &report["detail"]["paces"]["burst"]["runs"][0]["evidence"];
    assert_eq!((&report["loss"], &evidence["refused"]), (&Value::from(0.0), &Value::from(0)), "{evidence}");
    assert_eq!(evidence["expected"].as_u64(), evidence["sent"].as_u64().map(|sent| 2 * sent), "two subscribers per publisher");
    println!("checksum {}", evidence["checksum"]);
}

#[test]
fn nothing_of_a_killed_run_stays() {
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut run = Command::new(bench)
        .args(["fanout", "--subscribers", "1", "--duration", "60s", "--server-core", "0", "--pop"])
        .arg(find_pop())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("pop-bench runs");
    let namespace = PathBuf::from(format!("/run/netns/popb{}", run.id()));
    let wait = |there: bool| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            namespace.exists() == there
        })
    };
    let made = wait(true);
    run.kill().expect("it runs");
    run.wait().expect("it ends");
    assert!(!made || wait(false), "{namespace:?} stayed");
    if !made {
        println!("no namespace: not root here");
    }
}

#[test]
fn a_server_that_is_not_there_is_told_with_a_sentence() {
    let bench = Path::new(env!("CARGO_BIN_EXE_pop-bench"));
    let output = Command::new(bench).args(["fanout", "--pop", "no/such/pop"]).output().expect("pop-bench runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no/such/pop") && said.contains("--pop"), "{said}");
}
