//! People whose node is killed at a drawn moment, as a test: few kills, on loopback. How long they are without a picture is a figure, that they
//! come back is the promise.

mod common;

use std::process::Command;

use serde_json::Value;

/// All of it happens in real time: where other programs have the processors people are too late (`bench/README.md`). What is broken is
/// broken each time, with the same seed.
const TRIES: usize = 3;

const PEOPLE: u64 = 2;
const KILLS: u64 = 3;

#[test]
fn people_are_back_in_the_call_at_whatever_moment_their_node_is_killed() {
    let report = (1..=TRIES).find_map(|time| {
        let output = Command::new(env!("CARGO_BIN_EXE_pop-bench"))
            .args(["resume", "--lives", "--people", &PEOPLE.to_string(), "--kills", &KILLS.to_string(), "--seed", "1", "--pop"])
            .arg(common::find_pop())
            .output()
            .expect("pop-bench runs");
        eprintln!("{time} of {TRIES}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).expect("the report is JSON"))
    });
    let report = report.expect("one of so many");
    let distances = report["detail"]["round_trips"].as_array().expect("a list");
    assert_eq!((distances.len(), &distances[0]["rtt_ms"]), (1, &Value::from(0)), "{report}");
    let lives = distances[0]["lives"].as_array().expect("a list");
    let sum = |key: &str| lives.iter().map(|of| of[key].as_u64().unwrap_or_else(|| panic!("{key} in {of}"))).sum::<u64>();
    assert_eq!((sum("people"), sum("untouched") + sum("resumed") + sum("anew")), (PEOPLE * KILLS, PEOPLE * KILLS), "{report}");
    assert!(sum("untouched") < PEOPLE * KILLS, "somebody's node was killed: {report}");
    println!("checksum {}", sum("people"));
}
