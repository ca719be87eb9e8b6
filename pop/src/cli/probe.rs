//! `pop probe`: round trips to PoPs, line by line as `ping` shows them.

mod statistics;
mod target;
mod udp;
mod web;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Failure, ProbeArgs};
use statistics::Statistics;
use target::Target;

/// PoPs that one call measures, those that others name included.
const TARGETS_MAX: usize = 64;

/// How a target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Stun,
    Stamp,
    Http,
    Ice,
}

impl Method {
    fn of(args: &ProbeArgs) -> Option<Method> {
        let chosen = [(args.stun, Method::Stun), (args.stamp, Method::Stamp), (args.http, Method::Http), (args.ice, Method::Ice)];
        chosen.into_iter().find(|(wanted, _)| *wanted).map(|(_, method)| method)
    }

    const fn name(self) -> &'static str {
        match self {
            Method::Stun => "stun",
            Method::Stamp => "stamp",
            Method::Http => "http",
            Method::Ice => "ice",
        }
    }
}

/// How many, how often, how patiently, and whether each is shown.
#[derive(Clone, Copy, Debug)]
struct Plan {
    count: u32,
    interval: Duration,
    timeout: Duration,
    show: bool,
}

/// One answered probe.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    sequence: u32,
    rtt: Duration,
    /// What STAMP says beside the round trip.
    stamp: Option<StampSample>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct StampSample {
    /// TTL with which the request arrived.
    ttl: u8,
    /// Nanoseconds there and back, and how far each may be off; `None` where a clock is not synchronized.
    split: Option<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Split {
    forward_nanos: i64,
    back_nanos: i64,
    error: Duration,
}

/// What was measured of one target.
struct Outcome {
    target: Target,
    statistics: Statistics,
}

pub(super) async fn probe(args: &ProbeArgs) -> Result<(), Failure> {
    let plan = Plan { count: args.count, interval: args.interval, timeout: args.timeout, show: !args.json };
    let mut targets = Vec::new();
    for text in &args.targets {
        targets.push(Target::find(text, Method::of(args), args.timeout).await?);
    }
    if args.pops {
        add_named_pops(&mut targets, args).await?;
    }
    let mut outcomes = measure(targets, plan).await;
    outcomes.sort_by_key(|outcome| outcome.statistics.min().unwrap_or(Duration::MAX));
    if args.json {
        println!("{}", report(&outcomes));
    } else {
        for outcome in &outcomes {
            print!("{}", outcome.statistics.summary(&outcome.target.label(), outcome.target.method.name()));
        }
        if outcomes.len() > 1 {
            print!("{}", ranking(&outcomes));
        }
    }
    let (sent, received) =
        outcomes.iter().fold((0, 0), |(sent, received), o| (sent + o.statistics.sent(), received + o.statistics.received()));
    if received < sent { Err(Failure::Other(format!("{} of {sent} probes were lost", sent - received))) } else { Ok(()) }
}

/// The PoPs that the targets' own documents name, each once.
async fn add_named_pops(targets: &mut Vec<Target>, args: &ProbeArgs) -> Result<(), Failure> {
    let mut known: Vec<String> = args.targets.iter().map(|text| text.trim_end_matches('/').to_owned()).collect();
    let named: Vec<String> = targets.iter().flat_map(|target| target.pops.iter().cloned()).collect();
    for url in named {
        let url = url.trim_end_matches('/').to_owned();
        if known.contains(&url) || targets.len() == TARGETS_MAX {
            continue;
        }
        // One that cannot be asked is said and left out: it was not our argument.
        match Target::find(&url, Method::of(args), args.timeout).await {
            Ok(target) => targets.push(target),
            Err(Failure::Usage(sentence) | Failure::Other(sentence)) => eprintln!("pop: {sentence}"),
        }
        known.push(url);
    }
    Ok(())
}

/// All targets at the same time, each on its own rhythm; what Ctrl-C leaves unsent is not counted.
async fn measure(targets: Vec<Target>, plan: Plan) -> Vec<Outcome> {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks = JoinSet::new();
    for target in targets {
        if plan.show {
            println!("PROBE {} by {}", target.label(), target.method.name());
        }
        let stopped = stopped.clone();
        tasks.spawn(async move {
            let mut statistics = Statistics::new(plan.count);
            match &target.place {
                target::Place::Udp(probe) => udp::run(&target, probe, plan, stopped, &mut statistics).await,
                target::Place::Web(url) => web::run(&target, url, plan, stopped, &mut statistics).await,
            }
            Outcome { target, statistics }
        });
    }
    let mut outcomes = Vec::new();
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(Ok(outcome)) => outcomes.push(outcome),
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => return outcomes,
            },
            _ = tokio::signal::ctrl_c(), if !*stopped.borrow() => {
                let _ = stop.send(true);
            }
        }
    }
}

/// When probe `sequence` is due.
fn due(started: Instant, plan: Plan, sequence: u32) -> Instant {
    started + plan.interval * sequence
}

fn show_sample(target: &Target, sample: &Sample) {
    let mut line = format!("{}: seq={} time={} ms", target.label(), sample.sequence, milliseconds(sample.rtt));
    if let Some(stamp) = sample.stamp {
        line += &format!(" ttl={}", stamp.ttl);
        if let Some(Split { forward_nanos, back_nanos, error }) = stamp.split {
            let ms = |nanos: i64| nanos as f64 / 1e6;
            line += &format!(" forward={:.3} back={:.3} ms +-{} ms", ms(forward_nanos), ms(back_nanos), milliseconds(error));
        }
    }
    println!("{line}");
}

fn show_loss(target: &Target, sequence: u32, reason: &str) {
    println!("{}: seq={sequence} {reason}", target.label());
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1_000.0)
}

fn ranking(outcomes: &[Outcome]) -> String {
    let mut text = String::from("--- ranking ---\n");
    for (i, Outcome { target, statistics }) in outcomes.iter().enumerate() {
        let min = statistics.min().map_or_else(|| "no answer".to_owned(), |min| format!("{} ms", milliseconds(min)));
        text += &format!("{}. {} {min}\n", i + 1, target.label());
    }
    text
}

fn report(outcomes: &[Outcome]) -> Value {
    let probes: Vec<Value> = outcomes.iter().map(|outcome| outcome.statistics.to_json(&outcome.target)).collect();
    let best = outcomes.first().filter(|outcome| outcome.statistics.min().is_some());
    json!({ "probes": probes, "best": best.map(|outcome| &outcome.target.text) })
}
