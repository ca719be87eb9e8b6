//! The bus case as a test: a small input, no timed assertion.

mod common;

use std::process::Command;

use serde_json::Value;

#[test]
fn changes_come_to_the_other_nodes_clients_each_or_replaced() {
    let output = Command::new(env!("CARGO_BIN_EXE_pop-bench"))
        .args(["bus", "--rates", "50", "--repeats", "1", "--duration", "1s", "--participants", "20", "--pop"])
        .arg(common::find_pop())
        .output()
        .expect("pop-bench runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let runs = report["detail"]["runs"].as_array().expect("a list");
    let sides: Vec<_> = runs.iter().map(|run| run["side"].as_str().expect("a name")).collect();
    assert_eq!((sides, &report["loss"]), (vec!["clients", "pop", "zenoh"], &Value::from(0.0)));
    for run in runs {
        let [sent, heard, replaced, lost] =
            ["sent", "heard", "replaced", "lost"].map(|key| run[key].as_u64().unwrap_or_else(|| panic!("{key} in {run}")));
        assert_eq!((sent, heard + replaced, lost), (50, 50, 0), "{run}");
        assert!(run["latency_us"]["p50"].is_number(), "{run}");
    }
    assert_eq!((&runs[0]["refused"], &runs[0]["people"]), (&Value::from(0), &Value::from(6)), "{}", runs[0]);
    println!("checksum {}", runs[0]["sent"]);
}
