//! `pop-bench latency`: what a packet waits on its way, at shares of the highest rate, beside the bare forwarder on the same core.
//!
//! ```text
//! PDR (given or searched) -> at 10, 50, 80, 90 % of it, in turn: pop, bare forwarder, nothing -> one histogram each
//! ```
//! Every latency starts when its packet was due, so a queue in front of a slow target is inside it (no coordinated omission).

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::blast::rate::Rate;
use crate::blast::{ShapeArgs, latency_us, new_histogram};
use crate::fanout::parse_duration;
use crate::result::{Figures, LatencyUs, case_json};
use crate::search::{Limit, PDR_LOSS, Plan, merge, search_lane};
use crate::target::{Target, TargetArgs};
use crate::trial::{Lane, Outcome};
use crate::{make_folder_of, write_json};

/// The load at which DESIGN 11 promises something, in per cent.
const PROMISED_LOAD: u32 = 50;

/// The search in front is a rough one: loads are shares of what it finds.
const SEARCH_WIDTH: f64 = 0.03;

/// A generator that sends a packet later than this after its time is the limit itself, in microseconds.
const LATE_US_MAX: f64 = 20_000.0;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    /// The highest rate with 0.5 % loss, if it is known; default: it is searched.
    #[arg(long)]
    pdr: Option<Rate>,
    /// Loads in per cent of it.
    #[arg(long, value_delimiter = ',', default_value = "10,50,80,90", value_parser = clap::value_parser!(u32).range(1..=100))]
    loads: Vec<u32>,
    /// Runs of each target at each load, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Length of one run.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the case. The error is a sentence.
pub(crate) fn run(args: &LatencyArgs) -> Result<(), String> {
    args.shape.check()?;
    if args.duration.is_zero() {
        return Err("--duration must be above zero".to_owned());
    }
    make_folder_of(args.json.as_deref())?;
    let mut sink = args.target.bind_sink()?;
    let mut lanes = Vec::new();
    let target = args.target.open(sink.address, args.shape.streams)?;
    let machine = target.machine();
    let ours = target.name();
    for target in [target, args.target.open_forwarder(sink.address)?, Target::Nothing(sink.address)] {
        let mut lane = Lane::new(target, args.target.any_port(), args.shape)?;
        lane.find_way(&mut sink)?;
        lanes.push(lane);
    }
    let mut beware = Vec::new();
    let pdr = match args.pdr {
        Some(rate) => rate.packets_per_second(args.shape.size),
        None => {
            let length = Duration::from_millis(500).min(args.duration);
            let last = Duration::from_secs(2).min(args.duration);
            let plan = Plan { start: 20e3, max: 2e7, width: SEARCH_WIDTH, first: length, last, tries: 2 };
            let found = search_lane(&plan, &mut lanes[0], &mut sink, PDR_LOSS, &mut Vec::new())?;
            if found.limit == Limit::Generator {
                beware.push(format!(
                    "the loads are shares of {:.0} packets/s, which is the generator's limit and not the target's",
                    found.rate
                ));
            }
            found.rate
        }
    };
    let mut loads = Vec::new();
    for percent in &args.loads {
        let rate = pdr * f64::from(*percent) / 100.0;
        let mut sums: Vec<Sum> = lanes.iter().map(|_| Sum::new()).collect();
        for _ in 0..args.repeats {
            for (lane, sum) in lanes.iter_mut().zip(&mut sums) {
                sum.add(&lane.run(&mut sink, rate, args.duration)?);
            }
        }
        let load = Load::new(*percent, rate, &lanes, &sums);
        load.say();
        loads.push(load);
    }
    // The promise's load, or the one closest to it.
    let promised = loads.iter().min_by_key(|load| load.load_percent.abs_diff(PROMISED_LOAD)).ok_or("--loads is empty")?;
    let (own, bare) = (&promised.targets[0], &promised.targets[1]);
    for load in &loads {
        if generator_was_the_limit(&load.targets) {
            let late = load.targets.iter().map(|target| target.late_us_max).fold(0.0, f64::max);
            beware.push(format!(
                "generator limit at {} % load: it was {late:.0} us late, so its tail is in the latencies",
                load.load_percent
            ));
        }
    }
    for sentence in &beware {
        eprintln!("beware   {sentence}");
    }
    let figures = Figures {
        packets_per_second: Some(own.packets_per_second),
        cpu_ns_per_packet: own.cpu_ns_per_packet,
        loss: Some(own.loss),
        floor_ratio: bare.cpu_ns_per_packet.zip(own.cpu_ns_per_packet).map(|(floor, own)| floor / own),
        allocations_per_packet: own.allocations_per_packet,
        latency_us: own.latency_us,
        ..Figures::default()
    };
    let mut config = args.target.describe();
    let more = json!({
        "size": args.shape.size, "streams": args.shape.streams, "train": args.shape.train, "pdr_packets_per_second": pdr,
        "pdr": if args.pdr.is_some() { "given" } else { "searched" }, "loads_percent": args.loads, "repeats": args.repeats,
        "duration_s": args.duration.as_secs_f64(),
    });
    merge(&mut config, more);
    let steps: Vec<Value> = loads.iter().map(|load| load.step(0)).collect();
    let detail = json!({
        "target": ours, "load_percent": promised.load_percent, "forwarder_ratio": promised.added_p99_ratio,
        "forwarder_ratio_whole": promised.p99_ratio, "floor_ns_per_packet": bare.cpu_ns_per_packet, "runs": promised.targets, "steps": steps,
        "loads": loads, "beware": beware, "drops": lanes[0].target.drops(),
    });
    let json = case_json("latency", &figures, &machine, config, detail);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

/// The runs of one target at one load, together.
struct Sum {
    latency: Histogram<u64>,
    p99_us: Vec<f64>,
    sent: u64,
    unsent: u64,
    arrived: u64,
    seconds: f64,
    cpu_ns: Option<u64>,
    allocations: Option<f64>,
    sink_drops: u64,
    late_ns_max: u64,
}

impl Sum {
    fn new() -> Sum {
        Sum {
            latency: new_histogram(),
            p99_us: Vec::new(),
            sent: 0,
            unsent: 0,
            arrived: 0,
            seconds: 0.0,
            cpu_ns: Some(0),
            allocations: Some(0.0),
            sink_drops: 0,
            late_ns_max: 0,
        }
    }

    fn add(&mut self, outcome: &Outcome) {
        self.latency.add(&outcome.latency).expect("all histograms here have the same bounds");
        self.p99_us.push(outcome.latency.value_at_quantile(0.99) as f64 / 1e3);
        self.sent += outcome.sent.packets;
        self.unsent += outcome.sent.unsent;
        self.arrived += outcome.arrived.counts.packets;
        self.seconds += outcome.sent.elapsed.as_secs_f64();
        self.cpu_ns = self.cpu_ns.zip(outcome.target_cpu_ns).map(|(sum, ns)| sum + ns);
        self.allocations = self.allocations.zip(outcome.allocations).map(|(sum, count)| sum + count);
        self.sink_drops += outcome.sink_drops;
        self.late_ns_max = self.late_ns_max.max(outcome.sent.late.max());
    }
}

/// One load: the target, the bare forwarder, nothing, in this order.
#[derive(Debug, Serialize)]
struct Load {
    load_percent: u32,
    offered_packets_per_second: f64,
    targets: Vec<Figure>,
    /// The 99th percentile of the target over the forwarder's, both whole: generator and sink inside. Like the next, none where the
    /// generator was the limit: its lateness is in both.
    p99_ratio: Option<f64>,
    /// The same of what each adds: minus the median without any target.
    added_p99_ratio: Option<f64>,
}

/// One target at one load.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    packets_per_second: f64,
    cpu_ns_per_packet: Option<f64>,
    allocations_per_packet: Option<f64>,
    loss: f64,
    latency_us: Option<LatencyUs>,
    /// The 99th percentile minus the median without any target.
    added_p99_us: Option<f64>,
    /// Of each run.
    p99_us: Vec<f64>,
    late_us_max: f64,
    sent: u64,
    unsent: u64,
    sink_drops: u64,
}

/// It was late by more than a queue, did not send everything, or its sink lost some.
fn generator_was_the_limit(targets: &[Figure]) -> bool {
    targets.iter().any(|target| target.late_us_max > LATE_US_MAX || target.unsent + target.sink_drops > 0)
}

impl Load {
    fn new(load_percent: u32, rate: f64, lanes: &[Lane], sums: &[Sum]) -> Load {
        let alone_us = sums.last().and_then(|nothing| latency_us(&nothing.latency)).map(|latency| latency.p50);
        let targets: Vec<Figure> = lanes
            .iter()
            .zip(sums)
            .map(|(lane, sum)| {
                let arrived = sum.arrived.max(1) as f64;
                let latency = latency_us(&sum.latency);
                Figure {
                    name: lane.target.name(),
                    packets_per_second: sum.arrived as f64 / sum.seconds,
                    cpu_ns_per_packet: sum.cpu_ns.map(|ns| ns as f64 / arrived),
                    allocations_per_packet: sum.allocations.map(|count| count / arrived),
                    loss: 1.0 - sum.arrived as f64 / sum.sent.max(1) as f64,
                    added_p99_us: latency.zip(alone_us).map(|(latency, alone)| latency.p99 - alone),
                    latency_us: latency,
                    p99_us: sum.p99_us.clone(),
                    late_us_max: sum.late_ns_max as f64 / 1e3,
                    sent: sum.sent,
                    unsent: sum.unsent,
                    sink_drops: sum.sink_drops,
                }
            })
            .collect();
        let is_fair = !generator_was_the_limit(&targets);
        let ratio = |of: fn(&Figure) -> Option<f64>| {
            of(&targets[0]).zip(of(&targets[1])).and_then(|(own, bare)| (is_fair && bare > 0.0).then(|| own / bare))
        };
        let p99_ratio = ratio(|figure| figure.latency_us.map(|latency| latency.p99));
        let added_p99_ratio = ratio(|figure| figure.added_p99_us);
        Load { load_percent, offered_packets_per_second: rate, targets, p99_ratio, added_p99_ratio }
    }

    fn say(&self) {
        eprintln!("{:>3} % load, {:.0} packets/s", self.load_percent, self.offered_packets_per_second);
        for figure in &self.targets {
            let Some(us) = figure.latency_us else { continue };
            let cpu = figure.cpu_ns_per_packet.map_or_else(String::new, |ns| format!(", {ns:.0} ns of CPU per packet"));
            eprintln!(
                "  {:<10} {:>8.1} us p50 {:>8.1} us p99 {:>8.1} us p99.9 {:>9.1} us max, loss {:.5} %{cpu}",
                figure.name,
                us.p50,
                us.p99,
                us.p999,
                us.max,
                figure.loss * 100.0
            );
        }
        if let Some((added, whole)) = self.added_p99_ratio.zip(self.p99_ratio) {
            eprintln!("  added p99 is {added:.2} of the bare forwarder's (whole p99: {whole:.2})");
        }
    }

    /// For the chart: the target at `index`.
    fn step(&self, index: usize) -> Value {
        let figure = &self.targets[index];
        json!({
            "load_percent": self.load_percent, "packets_per_second": figure.packets_per_second, "loss": figure.loss,
            "latency_us": figure.latency_us, "cpu_ns_per_packet": figure.cpu_ns_per_packet,
        })
    }
}
