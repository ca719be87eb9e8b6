//! The figures: one JSON object with the same keys from release to release, and the same for people.

use serde::Serialize;
use serde_json::{Value, json};

use super::load::Pace;
use super::{FanoutArgs, Measured, OVERRUN_MAX};
use crate::floor::Floor;
use crate::machine::Machine;

/// Heap allocations of the packet workers, when the server says them.
pub(crate) type Allocations = Option<f64>;

/// What `--json` writes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    packets_per_second: f64,
    cpu_ns_per_packet: f64,
    loss: f64,
    floor_ratio: f64,
    allocations_per_packet: Option<f64>,
    latency_us: Latency,
    machine: Machine,
    config: Value,
    floor: Value,
    /// What the figures rest on.
    evidence: Evidence,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    samples: usize,
}

#[derive(Debug, Serialize)]
struct Evidence {
    sent: u64,
    expected: u64,
    delivered: u64,
    repeats: u64,
    authenticated: u64,
    refused: u64,
    checksum: String,
    train_len: f64,
    worker_cpu_share: f64,
    keyframe_requests: u64,
    overrun_us: f64,
    generator_late_us_max: f64,
    generator_drops: u64,
    server_drops: Value,
}

impl Report {
    /// `floors` are those before and after the run.
    pub(crate) fn new(
        args: &FanoutArgs,
        pace: &Pace,
        measured: Measured,
        floors: [Floor; 2],
        machine: Machine,
        drops: Vec<(String, u64)>,
    ) -> Report {
        let Measured { outcome, worker_cpu_ns, allocations } = measured;
        let delivered = outcome.delivered.max(1) as f64;
        let cpu_ns_per_packet = worker_cpu_ns as f64 / delivered;
        let floor_ns = (floors[0].ns_per_packet + floors[1].ns_per_packet) / 2.0;
        Report {
            packets_per_second: outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
            cpu_ns_per_packet,
            loss: outcome.loss(),
            floor_ratio: floor_ns / cpu_ns_per_packet,
            allocations_per_packet: allocations.map(|allocations| allocations / delivered),
            latency_us: Latency {
                p50: outcome.latency_us[0],
                p99: outcome.latency_us[1],
                p99_9: outcome.latency_us[2],
                samples: outcome.latency_samples,
            },
            machine,
            config: json!({
                "subscribers": args.subscribers, "publishers": args.publishers, "bitrate": pace.bitrate,
                "packet_size": pace.packet_len, "fps": pace.fps, "duration_s": pace.duration.as_secs_f64(), "search": args.search,
                "server_core": args.server_core, "load_core": args.load_core, "server": if args.http.is_some() { "attached" } else { "started" },
            }),
            floor: json!({"ns_per_packet": floor_ns, "before": floors[0], "after": floors[1]}),
            evidence: Evidence {
                sent: outcome.sent,
                expected: outcome.expected,
                delivered: outcome.delivered,
                repeats: outcome.repeats,
                authenticated: outcome.authenticated,
                refused: outcome.refused,
                checksum: format!("{:016x}", outcome.checksum),
                train_len: outcome.train_len(),
                worker_cpu_share: worker_cpu_ns as f64 / outcome.elapsed.as_nanos() as f64,
                keyframe_requests: outcome.keyframe_requests,
                overrun_us: outcome.overrun.as_nanos() as f64 / 1e3,
                generator_late_us_max: outcome.late_max.as_nanos() as f64 / 1e3,
                generator_drops: outcome.generator_drops,
                server_drops: drops.into_iter().map(|(reason, count)| (reason, Value::from(count))).collect(),
            },
        }
    }

    /// The same for people, on stderr: stdout may be the JSON.
    pub(crate) fn summarize(&self) {
        let Report { latency_us: latency, evidence, floor, .. } = self;
        let floor_ns = floor["ns_per_packet"].as_f64().unwrap_or_default();
        eprintln!("fan-out   {:>10.0} packets/s delivered, loss {:.5} %", self.packets_per_second, self.loss * 100.0);
        eprintln!(
            "worker    {:>10.0} ns of CPU per packet ({:.0} % of its core), floor {floor_ns:.0} ns, ratio {:.3}",
            self.cpu_ns_per_packet,
            evidence.worker_cpu_share * 100.0,
            self.floor_ratio
        );
        match self.allocations_per_packet {
            Some(allocations) => eprintln!("          {allocations:>10.6} allocations per packet"),
            None => eprintln!("          the server does not tell its allocations (pop_worker_allocations_total)"),
        }
        eprintln!(
            "latency   {:>10.0} us p50, {:.0} us p99, {:.0} us p99.9 over {} packets",
            latency.p50, latency.p99, latency.p99_9, latency.samples
        );
        eprintln!(
            "evidence  {} of {} packets delivered, {} authenticated, {} refused, mean train {:.2}, checksum {}",
            evidence.delivered, evidence.expected, evidence.authenticated, evidence.refused, evidence.train_len, evidence.checksum
        );
        if evidence.overrun_us > OVERRUN_MAX.as_nanos() as f64 / 1e3 {
            eprintln!(
                "beware    the last packet came {:.0} ms after its frame's time: this rate was not kept up with",
                evidence.overrun_us / 1e3
            );
        }
        if evidence.generator_drops > 0 {
            eprintln!("beware    {} packets were lost in the load generator's own sockets, not in the server", evidence.generator_drops);
        }
    }
}
