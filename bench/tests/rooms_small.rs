//! The room case as a test: a small input, no timed assertion.

mod common;

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The cases share two cores and pin their threads: one at a time. This is for cargo's own runner; nextest starts a process per
/// test and is told in `.config/nextest.toml`.
static ALONE: Mutex<()> = Mutex::new(());

fn run_rooms(arguments: &[&str]) -> Value {
    run_case("rooms", arguments)
}

fn run_case(case: &str, arguments: &[&str]) -> Value {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pop = common::find_pop();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(env!("CARGO_BIN_EXE_pop-bench"))
        .args([case, "--server-core", &(cores - 1).min(1).to_string(), "--pop"])
        .arg(pop)
        .args(arguments)
        .output()
        .expect("pop-bench runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn count(step: &Value, key: &str) -> u64 {
    step[key].as_u64().unwrap_or_else(|| panic!("{key} in {step}"))
}

/// Nothing is lost, nothing is forged, and everybody came in.
fn assert_whole(step: &Value) {
    assert_arrived(&step["evidence"]);
    assert_eq!(count(&step["joins"], "failed"), 0, "{step}");
}

fn assert_arrived(evidence: &Value) {
    assert!(count(evidence, "sent") > 0 && count(evidence, "expected") == count(evidence, "delivered"), "{evidence}");
    assert_eq!((count(evidence, "refused"), count(evidence, "repeats")), (0, 0), "{evidence}");
}

#[test]
fn members_get_and_authenticate_what_one_publishes() {
    let report = run_rooms(&["--members", "4", "--publishers", "1", "--duration", "2s", "--raise", "2", "--raise-max", "6"]);
    assert_eq!((&report["case"], &report["loss"]), (&Value::from("rooms"), &Value::from(0.0)));
    let report = &report["detail"];
    assert_eq!((count(&report["idle_joins"], "joined"), count(&report["idle_joins"], "failed")), (4, 0));
    for key in ["idle_bytes_per_member", "active_bytes_per_member"] {
        assert!(report[key].is_number(), "{key} in {report}");
    }
    assert_eq!((count(report, "members_lost"), count(report, "unknown_packets")), (0, 0));
    let steps = report["steps"].as_array().expect("a list");
    assert_eq!((steps.len(), count(report, "members_without_loss")), (2, 6), "{report}");
    for (step, watchers, joined) in [(&steps[0], 3, 3), (&steps[1], 5, 2)] {
        assert_whole(step);
        let sent = count(&step["evidence"], "sent");
        assert_eq!((count(step, "streams"), count(&step["evidence"], "delivered")), (watchers, watchers * sent));
        assert_eq!(count(&step["joins"]["first_keyframe_packet_ms"], "samples"), joined, "{step}");
        // The first of the watchers authenticates: numbers 0 to sent - 1, each once.
        assert_eq!(count(&step["evidence"], "authenticated"), sent);
        let expected = (1..=sent).fold(0u64, |sum, n| sum.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        assert_eq!(step["evidence"]["checksum"], format!("{expected:016x}"));
        println!("checksum {}", step["evidence"]["checksum"]);
    }
}

#[test]
fn members_who_all_publish_get_all_the_others() {
    let report = run_rooms(&["--members", "4", "--publishers", "4", "--duration", "2s"]);
    let step = &report["detail"]["steps"][0];
    assert_whole(step);
    assert_eq!(count(&report["detail"]["publisher_joins"], "joined"), 4);
    assert_eq!((count(step, "members"), count(step, "streams")), (4, 12), "{step}");
    assert_eq!(count(&step["evidence"], "delivered"), 3 * count(&step["evidence"], "sent"));
    println!("checksum {}", step["evidence"]["checksum"]);
}

#[test]
fn a_session_in_which_all_publish_arrives_whole_at_both_paces() {
    let report = run_case("session", &["--participants", "4", "--publishers-all", "--bitrate", "200k", "--duration", "1s"]);
    assert_eq!((&report["case"], &report["loss"], count(&report["detail"], "streams")), (&"session".into(), &0.0.into(), 12));
    for pace in ["paced", "frames"] {
        let run = &report["detail"]["paces"][pace]["runs"][0];
        assert_arrived(&run["evidence"]);
        assert!(run["floor_ratio"].is_number() || run["floor_off"].is_string(), "{run}");
        println!("checksum {}", run["evidence"]["checksum"]);
    }
}

#[test]
fn an_audience_grows_and_hears_all_speakers() {
    let report =
        run_case("audio", &["--speakers", "3", "--subscribers", "2", "--subscribers-max", "4", "--raise", "2", "--duration", "1s"]);
    let steps = report["detail"]["steps"].as_array().expect("a list");
    let sizes: Vec<u64> = steps.iter().map(|step| count(step, "subscribers")).collect();
    // A busy machine may be late, which ends the raising as a loss does.
    assert!(sizes == [2, 4] || (sizes == [2] && steps[0]["holds"] == false), "{report}");
    for step in steps {
        assert_arrived(&step["evidence"]);
        // 3 speakers x 50 packets, each to all but its sender.
        assert_eq!(count(&step["evidence"], "delivered"), 150 * (count(step, "subscribers") + 2));
        println!("checksum {}", step["evidence"]["checksum"]);
    }
}

#[test]
fn members_on_two_workers_hear_each_other() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        // Two workers take two cores.
        return;
    }
    let report = run_rooms(&["--members", "8", "--publishers", "8", "--duration", "2s", "--workers", "2"]);
    let step = &report["detail"]["steps"][0];
    let evidence = &step["evidence"];
    assert_whole(step);
    assert_eq!((count(step, "members"), count(step, "streams")), (8, 56), "{step}");
    assert_eq!(count(evidence, "delivered"), 7 * count(evidence, "sent"));
    // The first has sections of its own to authenticate: what crossed is what was sent.
    assert!(count(evidence, "authenticated") > 0, "{step}");
    // Each publisher is mirrored once, however many there are on the other worker.
    let crossed = report["detail"]["handed_over_packets"].as_f64().expect("a count");
    let sent = count(evidence, "sent") as f64;
    assert!(crossed >= sent && crossed < 2.0 * sent, "{crossed} of {sent}");
    println!("checksum {}", evidence["checksum"]);
}
