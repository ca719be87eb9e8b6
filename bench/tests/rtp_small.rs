//! The plain RTP cases as tests: small inputs, real sockets, a real node; no timed assertion.

mod common;

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pop-bench"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(arguments: &[&str]) -> Value {
    let output = bench(arguments).output().expect("pop-bench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

/// A case that starts a node, whose core is the last one where there are two.
fn report_with_node(arguments: &[&str]) -> Value {
    let pop = common::find_pop().display().to_string();
    let core = (std::thread::available_parallelism().map_or(1, usize::from) - 1).min(1).to_string();
    report(&[arguments, &["--pop", &pop, "--server-core", &core]].concat())
}

#[test]
fn a_sink_counts_exactly_what_a_blast_sent_whatever_noise_comes_between() {
    for train in ["1", "8"] {
        let mut sink = bench(&["sink", "--listen", "127.0.0.1:0", "--idle", "500ms", "--expect", "3000"]).spawn().expect("pop-bench runs");
        let mut said = BufReader::new(sink.stderr.take().expect("it is piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says where it listens");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        let noise = UdpSocket::bind("127.0.0.1:0").expect("a port");
        for len in 0..200u8 {
            noise.send_to(&vec![len; usize::from(len)], &address).expect("it leaves");
        }
        let sent = report(&["blast", "--to", &address, "--rate", "10k", "--duration", "300ms", "--streams", "3", "--train", train]);
        assert_eq!((&sent["case"], &sent["detail"]["sent"], &sent["detail"]["unsent"]), (&"blast".into(), &3_000.into(), &0.into()));
        let output = sink.wait_with_output().expect("it ends when nothing comes");
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
        let got = &report["detail"]["sink"];
        for (key, count) in [("packets", 3_000), ("missing", 0), ("duplicates", 0), ("reordered", 0), ("streams", 3), ("foreign", 200)] {
            assert_eq!(got[key], count, "{key} in {report}");
        }
        assert_eq!((&got["checksum"], &report["loss"]), (&sent["detail"]["checksum"], &0.0.into()), "{report}");
        for key in ["p50", "p99", "p999", "max"] {
            assert!(report["latency_us"][key].as_f64().is_some_and(|us| us > 0.0), "latency_us.{key} in {report}");
        }
        println!("checksum {}", got["checksum"]);
    }
}

#[test]
fn a_sink_that_misses_packets_says_so_by_its_exit_code() {
    let output = bench(&["sink", "--listen", "127.0.0.1:0", "--duration", "300ms", "--expect", "1"]).output().expect("pop-bench runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 1 packets did not come"), "{output:?}");
}

#[test]
fn the_highest_rate_through_a_node_is_found_and_every_packet_of_its_trial_arrived() {
    let arguments = ["--start", "2k", "--max", "4k", "--first", "200ms", "--duration", "400ms", "--tries", "5", "--width", "20"];
    for route in ["room", "forward"] {
        let report = report_with_node(&[&["ndr", "--route", route][..], &arguments].concat());
        let confirmed = &report["detail"]["confirmed"];
        assert_eq!((&report["case"], &report["loss"]), (&"ndr".into(), &0.0.into()), "{report}");
        assert_eq!(confirmed["sent"], confirmed["arrived"]);
        assert!(report["cpu_ns_per_packet"].is_number() && report["allocations_per_packet"].is_number(), "{report}");
        println!("checksum {} of {} packets by {route}", confirmed["checksum"], confirmed["sent"]);
    }
}

#[test]
fn latency_is_told_beside_the_bare_forwarders() {
    let report = report_with_node(&["latency", "--pdr", "4k", "--loads", "10,50", "--repeats", "1", "--duration", "300ms"]);
    let loads = report["detail"]["loads"].as_array().expect("a list");
    let percents: Vec<_> = loads.iter().map(|load| load["load_percent"].as_u64().expect("a number")).collect();
    assert_eq!(percents, [10, 50]);
    for load in loads {
        let targets = load["targets"].as_array().expect("a list");
        let names: Vec<_> = targets.iter().map(|target| &target["name"]).collect();
        assert_eq!(names, ["pop", "forwarder", "nothing"]);
        // On a busy machine the generator is late, and then there is none.
        let is_late = targets.iter().any(|target| target["late_us_max"].as_f64().is_some_and(|us| us > 20_000.0));
        assert!(load["p99_ratio"].is_number() || is_late, "{load}");
    }
    assert!(report["latency_us"]["p99"].is_number() && report["floor_ratio"].is_number(), "{report}");
    println!("ratio {}", report["detail"]["forwarder_ratio"]);
}

#[test]
fn a_link_between_two_workers_carries_every_packet_and_tells_what_it_adds() {
    let cores = (std::thread::available_parallelism().map_or(1, usize::from) - 1).min(1).to_string();
    let short = ["--rate", "2k", "--duration", "300ms", "--passes", "2", "--seeds", "1", "--talk", "2s"];
    let report = report(&[&["relay", "--server-core", &cores][..], &short].concat());
    let trial = &report["detail"]["link"]["trial"];
    assert_eq!((&report["case"], &report["loss"], &trial["sent"]), (&"relay".into(), &0.0.into(), &trial["arrived"]), "{report}");
    assert!(report["cpu_ns_per_packet"].is_number() && report["packets_per_second"].is_number(), "{report}");
    assert!(report["latency_us"]["p99"].is_number() && report["allocations_per_packet"].is_number(), "{report}");
    // 1,100 bytes of RTP with 32 around them, and a little feedback.
    let share = report["detail"]["link"]["share_not_rtp"].as_f64().expect("a share");
    assert!((32.0 / 1_132.0..0.08).contains(&share), "{share}");
    for frame in report["detail"]["frames"].as_array().expect("a list") {
        assert_eq!(frame["bytes"].as_u64(), frame["raw_bytes"].as_u64().map(|raw| raw + 16), "a tag more than the raw struct: {frame}");
    }
    for repair in report["detail"]["repair"].as_array().expect("a list") {
        assert!(repair["repaired"].as_u64().is_some_and(|repaired| repaired > 0), "{repair}");
        assert!(
            repair["p99_per_rtt"].as_f64().is_some_and(|rounds| rounds >= 1.0),
            "no repair is there before the ask has crossed: {repair}"
        );
    }
    println!("checksum {}", trial["checksum"]);
}

#[test]
fn what_cannot_be_measured_is_told_with_a_sentence() {
    for (arguments, said) in [
        (&["blast", "--to", "127.0.0.1:9", "--size", "20"][..], "--size must be 72 to"),
        (&["blast", "--to", "127.0.0.1:9", "--train", "60"], "--train must be 1 to 59"),
        (&["ndr", "--streams", "2"], "a room's track is one stream"),
        (&["pdr", "--start", "2k", "--max", "1k"], "--max is below --start"),
        (&["ndr", "--pop", "no/such/pop"], "no/such/pop"),
        (&["relay", "--size", "3000"], "--size must be at most 2240 bytes"),
    ] {
        let output = bench(arguments).output().expect("pop-bench runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
