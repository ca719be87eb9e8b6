//! The figures of a room: one JSON object, and the same for people.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::crowd::Crowd;
use super::member::Times;
use super::{LOSS_MAX, RoomsArgs};
use crate::fanout::load::Outcome;
use crate::machine::Machine;

/// Failures whose sentence is told.
const SHOWN_MAX: usize = 5;

/// Members that joined together.
#[derive(Debug, Serialize)]
pub(crate) struct Wave {
    joined: usize,
    failed: usize,
    /// The first of them.
    pub(crate) failures: Vec<String>,
    per_second: f64,
    /// Of the whole process.
    per_cpu_second: f64,
    welcome_ms: Spread,
    keys_ms: Spread,
    /// The first packet of a keyframe, authenticated; nothing is decoded.
    first_keyframe_packet_ms: Spread,
}

/// A time of many members; `null` when nobody has it.
#[derive(Debug, Serialize)]
struct Spread {
    p50: Option<f64>,
    p99: Option<f64>,
    samples: usize,
}

impl Spread {
    fn new(times: impl Iterator<Item = Duration>) -> Spread {
        let mut ms: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let rank = |share: f64| ms.get(((share * ms.len() as f64).ceil() as usize).saturating_sub(1)).copied();
        Spread { p50: rank(0.5), p99: rank(0.99), samples: ms.len() }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.p50, self.p99) {
            (Some(p50), Some(p99)) => write!(f, "{p50:.1} / {p99:.1} ms"),
            _ => f.write_str("-"),
        }
    }
}

impl Wave {
    /// `cpu` is what the server used meanwhile.
    pub(crate) fn new(times: &[Times], failures: Vec<String>, cpu: Duration) -> Wave {
        // The last keys end the wave: a wait for a keyframe holds up nobody.
        let elapsed = times.iter().map(|times| times.began + times.keys).max().unwrap_or_default();
        let per = |time: Duration| if time.is_zero() { 0.0 } else { times.len() as f64 / time.as_secs_f64() };
        Wave {
            joined: times.len(),
            failed: failures.len(),
            per_second: per(elapsed),
            per_cpu_second: per(cpu),
            welcome_ms: Spread::new(times.iter().map(|times| times.welcome)),
            keys_ms: Spread::new(times.iter().map(|times| times.keys)),
            first_keyframe_packet_ms: Spread::new(times.iter().filter_map(|times| times.keyframe)),
            failures: failures.into_iter().take(SHOWN_MAX).collect(),
        }
    }

    fn summarize(&self, name: &str) {
        if self.joined + self.failed == 0 {
            return;
        }
        eprintln!(
            "{name:<9} {:>10.1} joins/s, {:.1} per CPU second; p50 / p99: welcome {}, keys {}, first keyframe packet {}; {} failed",
            self.per_second, self.per_cpu_second, self.welcome_ms, self.keys_ms, self.first_keyframe_packet_ms, self.failed
        );
        self.failures.iter().for_each(|sentence| eprintln!("beware    {sentence}"));
    }
}

/// Resident memory of the server, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) members: usize,
}

impl Memory {
    fn per_member(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64 / self.members.max(1) as f64
    }
}

/// One run of a room of one size.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    members: usize,
    streams: u64,
    joins: Wave,
    packets_per_second: f64,
    loss: f64,
    latency_us: Value,
    worker_cpu_share: f64,
    worker_cpu_ns_per_packet: f64,
    process_cpu_share: f64,
    sent: u64,
    expected: u64,
    delivered: u64,
    repeats: u64,
    authenticated: u64,
    refused: u64,
    checksum: String,
    train_len: f64,
    overrun_us: f64,
    generator_late_us_max: f64,
    generator_drops: u64,
}

impl Step {
    /// `streams` is what all members get together.
    pub(crate) fn new(members: usize, streams: u64, joins: Wave, outcome: Outcome, worker_cpu_ns: u64, process_cpu: Duration) -> Step {
        let [p50, p99, p999] = outcome.latency_us;
        Step {
            members,
            streams,
            joins,
            packets_per_second: outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
            loss: outcome.loss(),
            latency_us: json!({"p50": p50, "p99": p99, "p99.9": p999, "samples": outcome.latency_samples}),
            worker_cpu_share: worker_cpu_ns as f64 / outcome.elapsed.as_nanos() as f64,
            worker_cpu_ns_per_packet: worker_cpu_ns as f64 / outcome.delivered.max(1) as f64,
            process_cpu_share: process_cpu.as_secs_f64() / outcome.elapsed.as_secs_f64(),
            sent: outcome.sent,
            expected: outcome.expected,
            delivered: outcome.delivered,
            repeats: outcome.repeats,
            authenticated: outcome.authenticated,
            refused: outcome.refused,
            checksum: format!("{:016x}", outcome.checksum),
            train_len: outcome.train_len(),
            overrun_us: outcome.overrun.as_nanos() as f64 / 1e3,
            generator_late_us_max: outcome.late_max.as_nanos() as f64 / 1e3,
            generator_drops: outcome.generator_drops,
        }
    }

    /// All came in, and what they should get arrived.
    pub(crate) fn holds(&self, loss_max: f64) -> bool {
        self.loss <= loss_max && self.joins.failed == 0
    }

    /// For people, as soon as it is known: raising takes minutes.
    pub(crate) fn summarize(&self) {
        self.joins.summarize("joins");
        eprintln!(
            "run       {:>10} members, {} streams, {:.0} packets/s, loss {:.4} %, worker {:.0} % of its core ({:.0} ns a packet), \
             latency p50 / p99 {:.0} / {:.0} us, {} of {} delivered, {} authenticated, {} refused, checksum {}",
            self.members,
            self.streams,
            self.packets_per_second,
            self.loss * 100.0,
            self.worker_cpu_share * 100.0,
            self.worker_cpu_ns_per_packet,
            self.latency_us["p50"].as_f64().unwrap_or_default(),
            self.latency_us["p99"].as_f64().unwrap_or_default(),
            self.delivered,
            self.expected,
            self.authenticated,
            self.refused,
            self.checksum
        );
        if self.generator_drops > 0 || self.generator_late_us_max > 20e3 {
            eprintln!(
                "beware    the generator lost {} packets in its own sockets and was up to {:.0} ms late",
                self.generator_drops,
                self.generator_late_us_max / 1e3
            );
        }
    }
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Joins of a room in which nobody publishes.
    idle_joins: Wave,
    /// Joins of those who publish.
    publisher_joins: Wave,
    idle_bytes_per_member: f64,
    active_bytes_per_member: f64,
    /// The largest room that was run with at most 0.1 % loss.
    members_without_loss: Option<usize>,
    steps: Vec<Step>,
    machine: Machine,
    config: Value,
    evidence: Value,
}

impl Report {
    /// `joins` are those of the idle room, then of the publishers; `memory` is that of the idle room, then of the live one after its
    /// last run.
    pub(crate) fn new(
        args: &RoomsArgs,
        joins: [Wave; 2],
        memory: [Memory; 2],
        steps: Vec<Step>,
        crowd: &Crowd,
        machine: Machine,
        (drops, handed_over): (Vec<(String, u64)>, Option<f64>),
    ) -> Report {
        let drops: serde_json::Map<String, Value> = drops.into_iter().map(|(reason, count)| (reason, Value::from(count))).collect();
        let [idle_joins, publisher_joins] = joins;
        Report {
            idle_joins,
            publisher_joins,
            idle_bytes_per_member: memory[0].per_member(),
            active_bytes_per_member: memory[1].per_member(),
            members_without_loss: steps.iter().filter(|step| step.holds(LOSS_MAX)).map(|step| step.members).max(),
            steps,
            machine,
            config: json!({
                "members": args.members, "publishers": args.publishers, "bitrate": args.bitrate, "packet_size": args.packet_size,
                "fps": args.fps, "duration_s": args.duration.as_secs_f64(), "raise": args.raise, "raise_max": args.raise_max,
                "server_core": args.server_core, "server_cores": args.server_cores, "load_core": args.load_core,
            }),
            evidence: json!({
                "idle_memory": memory[0], "active_memory": memory[1], "members_lost": crowd.lost(), "unknown_packets": crowd.unknown(),
                "server_drops": drops, "handed_over_packets": handed_over,
            }),
        }
    }

    /// The same for people, on stderr: stdout may be the JSON. The runs told themselves.
    pub(crate) fn summarize(&self) {
        self.idle_joins.summarize("idle");
        self.publisher_joins.summarize("publisher");
        eprintln!(
            "memory    {:>10.0} bytes per idle member, {:.0} per active one",
            self.idle_bytes_per_member, self.active_bytes_per_member
        );
        if let Some(members) = self.members_without_loss {
            eprintln!("room      {members:>10} members at no more than {} % loss", LOSS_MAX * 100.0);
        }
    }
}
