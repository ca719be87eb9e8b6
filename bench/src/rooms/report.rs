//! The figures of a room: one JSON object, and the same for people.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::crowd::Crowd;
use super::member::Times;
use super::{LOSS_MAX, RoomsArgs};
use crate::machine::Machine;
use crate::measured::Run;
use crate::result::case_json;

/// Failures whose sentence is told.
const SHOWN_MAX: usize = 5;

/// Members that joined together.
#[derive(Debug, Serialize)]
pub(crate) struct Wave {
    joined: usize,
    /// And those that did not.
    pub(crate) failed: usize,
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
    process_cpu_share: f64,
    #[serde(flatten)]
    run: Run,
}

impl Step {
    /// `members` and what all of them get together.
    pub(crate) fn new((members, streams): (usize, u64), joins: Wave, run: Run, process_cpu_share: f64) -> Step {
        Step { members, streams, joins, process_cpu_share, run }
    }

    /// All came in, and what they should get arrived.
    pub(crate) fn holds(&self, loss_max: f64) -> bool {
        self.run.figures.loss.is_some_and(|loss| loss <= loss_max) && self.joins.failed == 0
    }

    /// For people, as soon as it is known: raising takes minutes.
    pub(crate) fn summarize(&self) {
        self.joins.summarize("joins");
        eprintln!("room      {:>10} members, {} streams", self.members, self.streams);
        self.run.summarize("run");
    }
}

/// The largest room that was run with at most 0.1 % loss; the last where none was.
fn counting(steps: &[Step]) -> Option<&Step> {
    steps.iter().rev().find(|step| step.holds(LOSS_MAX)).or(steps.last())
}

/// What `--json` writes. `joins` are those of the idle room, then of the publishers; `memory` is that of the idle room, then of the live
/// one after its last run.
pub(crate) fn report(
    args: &RoomsArgs,
    joins: [Wave; 2],
    memory: [Memory; 2],
    steps: Vec<Step>,
    crowd: &Crowd,
    machine: &Machine,
    (drops, handed_over): (Value, Option<f64>),
) -> Value {
    let figures = counting(&steps).map(|step| step.run.figures.clone()).unwrap_or_default();
    let config = json!({
        "members": args.members, "publishers": args.publishers, "bitrate": args.bitrate, "packet_size": args.packet_size,
        "fps": args.fps, "pace": args.pace, "duration_s": args.duration.as_secs_f64(), "raise": args.raise, "raise_max": args.raise_max,
        "backend": args.common.backend,
    });
    let [idle_joins, publisher_joins] = joins;
    let detail = json!({
        "idle_joins": idle_joins, "publisher_joins": publisher_joins,
        "idle_bytes_per_member": memory[0].per_member(), "active_bytes_per_member": memory[1].per_member(),
        "idle_memory": memory[0], "active_memory": memory[1],
        "members_without_loss": steps.iter().filter(|step| step.holds(LOSS_MAX)).map(|step| step.members).max(),
        "steps": steps, "members_lost": crowd.lost(), "unknown_packets": crowd.unknown(), "server_drops": drops,
        "handed_over_packets": handed_over,
    });
    case_json("rooms", &figures, machine, config, detail)
}

/// The same for people, on stderr: stdout may be the JSON. The runs told themselves.
pub(crate) fn summarize(joins: &[Wave; 2], memory: [Memory; 2], steps: &[Step]) {
    joins[0].summarize("idle");
    joins[1].summarize("publisher");
    eprintln!("memory    {:>10.0} bytes per idle member, {:.0} per active one", memory[0].per_member(), memory[1].per_member());
    if let Some(step) = counting(steps).filter(|step| step.holds(LOSS_MAX)) {
        eprintln!("room      {:>10} members at no more than {} % loss", step.members, LOSS_MAX * 100.0);
    }
}
