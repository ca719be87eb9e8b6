//! `--json FILE`: the figures arrive, or the run does not begin.

use std::path::Path;
use std::process::{Command, Output};

fn run_floor(file: &Path) -> Output {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_pop-bench"));
    bench.args(["floor", "--subscribers", "2", "--packets", "1000", "--core", "0", "--json"]).arg(file);
    bench.output().expect("pop-bench runs")
}

#[test]
fn the_folder_of_the_figures_is_made_before_anything_is_measured() {
    let folder = std::env::temp_dir().join(format!("pop-bench-json-{}", std::process::id()));
    let file = folder.join("new/floor.json");
    let output = run_floor(&file);
    assert!(output.status.success(), "{output:?}");
    let figures = std::fs::read(&file).expect("it was written");
    let figures: serde_json::Value = serde_json::from_slice(&figures).expect("JSON");
    assert!(figures["case"] == "floor" && figures["cpu_ns_per_packet"].is_number(), "{figures}");
    // A file is no folder.
    let output = run_floor(&file.join("floor.json"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("floor.json") && !said.contains("floor  "), "{said}");
    std::fs::remove_dir_all(folder).expect("it was made here");
}
