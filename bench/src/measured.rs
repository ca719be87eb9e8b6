//! One measured run: what arrived, what the workers spent on it, and the floors before and after; and several runs as one figure.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::fanout::OVERRUN_MAX;
use crate::fanout::load::Outcome;
use crate::fanout::server::Server;
use crate::fanout::timeline::Pace;
use crate::floor::Floor;
use crate::machine::{Pinning, Workers};
use crate::result::Figures;

/// What the packet workers have spent since their start, all together; `None` where the server does not tell.
pub(crate) struct Spent {
    cpu_ns: u64,
    allocations: Option<f64>,
    syscalls: Option<f64>,
    trains: Option<f64>,
    datagrams: Option<f64>,
    padding_bytes: Option<f64>,
}

impl Spent {
    /// Reads it now.
    pub(crate) fn read(server: &Server, workers: &Workers) -> Result<Spent, String> {
        let page = server.metrics();
        let sent =
            page.as_deref().unwrap_or_default().lines().filter(|line| line.contains("direction=\"out\"")).collect::<Vec<_>>().join("\n");
        let metric = |name| page.as_deref().and_then(|page| crate::fanout::server::sum_metric(page, name));
        Ok(Spent {
            cpu_ns: workers.cpu_ns()?,
            allocations: metric("pop_worker_allocations_total"),
            syscalls: metric("pop_worker_syscalls_total"),
            padding_bytes: metric("pop_rtp_padding_bytes_total"),
            trains: crate::fanout::server::sum_metric(&sent, "pop_trains_total"),
            datagrams: crate::fanout::server::sum_metric(&sent, "pop_datagrams_total"),
        })
    }

    /// What came on top of `before`.
    pub(crate) fn since(self, before: &Spent) -> Spent {
        let less = |now: Option<f64>, before: Option<f64>| now.zip(before).map(|(now, before)| now - before);
        Spent {
            cpu_ns: self.cpu_ns - before.cpu_ns,
            allocations: less(self.allocations, before.allocations),
            syscalls: less(self.syscalls, before.syscalls),
            trains: less(self.trains, before.trains),
            datagrams: less(self.datagrams, before.datagrams),
            padding_bytes: less(self.padding_bytes, before.padding_bytes),
        }
    }

    /// CPU time of the workers over that of one core meanwhile.
    pub(crate) fn cpu_share(&self, outcome: &Outcome) -> f64 {
        self.cpu_ns as f64 / outcome.elapsed.as_nanos() as f64
    }

    /// Nanoseconds per packet that arrived.
    pub(crate) fn cpu_ns_per_packet(&self, outcome: &Outcome) -> f64 {
        self.cpu_ns as f64 / outcome.delivered.max(1) as f64
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// What is compared.
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// Why there is no ratio.
    floor_off: Option<String>,
    floors: Vec<Floor>,
    evidence: Value,
}

impl Run {
    /// `floors` are those before and after, none when the floor was not measured.
    pub(crate) fn new(outcome: &Outcome, spent: &Spent, floors: Vec<Floor>) -> Run {
        let delivered = outcome.delivered.max(1) as f64;
        let cpu_ns_per_packet = spent.cpu_ns_per_packet(outcome);
        let floor_ns = floors.iter().map(|floor| floor.ns_per_packet).sum::<f64>() / floors.len().max(1) as f64;
        let floor_off = if floors.is_empty() { Some("not measured".to_owned()) } else { floors.iter().find_map(Floor::off) };
        let per_packet = |count: Option<f64>| count.map(|count| count / delivered);
        Run {
            figures: Figures {
                packets_per_second: Some(outcome.delivered as f64 / outcome.elapsed.as_secs_f64()),
                cpu_ns_per_packet: Some(cpu_ns_per_packet),
                loss: Some(outcome.loss()),
                floor_ratio: floor_off.is_none().then_some(floor_ns / cpu_ns_per_packet),
                allocations_per_packet: per_packet(spent.allocations),
                latency_us: outcome.latency_us,
                train_packets: outcome.trains.summarize(),
            },
            floor_off,
            evidence: json!({
                "sent": outcome.sent,
                "expected": outcome.expected,
                "delivered": outcome.delivered,
                "repeats": outcome.repeats,
                "authenticated": outcome.authenticated,
                "refused": outcome.refused,
                "checksum": format!("{:016x}", outcome.checksum),
                "latency_samples": outcome.latency_samples,
                // Of UDP payload.
                "bytes_per_packet": (outcome.bytes > 0).then(|| outcome.bytes as f64 / (outcome.delivered + outcome.repeats) as f64),
                "padding_bytes_per_packet": per_packet(spent.padding_bytes),
                "syscalls_per_packet": per_packet(spent.syscalls),
                // Of the worker itself, everything that it sent: it should agree with the trains that the sinks saw.
                "worker_train_mean": spent.datagrams.zip(spent.trains).filter(|(_, trains)| *trains > 0.0).map(|(all, trains)| all / trains),
                "worker_cpu_share": spent.cpu_share(outcome),
                "keyframe_requests": outcome.keyframe_requests,
                "overrun_us": outcome.overrun.as_nanos() as f64 / 1e3,
                "generator_late_us_max": outcome.late_max.as_nanos() as f64 / 1e3,
                "generator_drops": outcome.generator_drops,
            }),
            floors,
        }
    }

    /// What a table or a chart shows of it.
    pub(crate) fn row(&self, name: &str) -> Value {
        let floor_ns = self.floors.iter().map(|floor| floor.ns_per_packet).sum::<f64>() / self.floors.len() as f64;
        json!({
            "name": name,
            "packets_per_second": self.figures.packets_per_second,
            "cpu_ns_per_packet": self.figures.cpu_ns_per_packet,
            "floor_ns_per_packet": floor_ns,
            "floor_ratio": self.figures.floor_ratio,
            "loss": self.figures.loss,
            "latency_us": self.figures.latency_us,
        })
    }

    /// One of the numbers that are not compared.
    pub(crate) fn evidence(&self, name: &str) -> Option<f64> {
        self.evidence[name].as_f64()
    }

    /// What a reader must know of it: sentences.
    pub(crate) fn beware(&self) -> Vec<String> {
        let drops = self.evidence["generator_drops"].as_u64().unwrap_or_default();
        let lost = (drops > 0).then(|| format!("{drops} packets were lost in the load generator's own sockets"));
        self.floor_off.clone().into_iter().chain(lost).collect()
    }

    fn cpu_ns(&self) -> f64 {
        self.figures.cpu_ns_per_packet.unwrap_or(f64::INFINITY)
    }

    /// For people, on stderr: stdout may be the JSON.
    pub(crate) fn summarize(&self, name: &str) {
        let Run { figures, floors, evidence, .. } = self;
        let or_zero = |value: Option<f64>| value.unwrap_or_default();
        let number = |key: &str| evidence[key].as_f64().unwrap_or_default();
        eprintln!(
            "{name:<9} {:>10.0} packets/s delivered, loss {:.5} %, {} of {}, {} authenticated, {} refused, checksum {}",
            or_zero(figures.packets_per_second),
            or_zero(figures.loss) * 100.0,
            evidence["delivered"],
            evidence["expected"],
            evidence["authenticated"],
            evidence["refused"],
            evidence["checksum"].as_str().unwrap_or_default()
        );
        let floor = floors.iter().map(|floor| format!("{:.0}", floor.ns_per_packet)).collect::<Vec<_>>().join(" and ");
        let ratio = figures.floor_ratio.map_or_else(|| self.floor_off.clone().unwrap_or_default(), |ratio| format!("ratio {ratio:.3}"));
        eprintln!(
            "          {:>10.0} ns of CPU per packet ({:.0} % of a core), floor {floor} ns, {ratio}",
            self.cpu_ns(),
            number("worker_cpu_share") * 100.0
        );
        if let (Some(latency), Some(trains)) = (figures.latency_us, figures.train_packets) {
            eprintln!(
                "          {:>10.0} us p50, {:.0} us p99, {:.0} us p99.9, {:.0} us at most; trains of {:.2} (p50 {}, p99 {})",
                latency.p50, latency.p99, latency.p999, latency.max, trains.mean, trains.p50, trains.p99
            );
        }
        match figures.allocations_per_packet {
            Some(allocations) => {
                eprintln!("          {allocations:>10.6} allocations and {:.3} system calls per packet", number("syscalls_per_packet"));
            }
            None => eprintln!("          the server does not tell its allocations (pop_worker_allocations_total)"),
        }
        let late_ms = number("overrun_us") / 1e3;
        if late_ms > OVERRUN_MAX.as_secs_f64() * 1e3 {
            eprintln!("beware    the last packet came {late_ms:.0} ms after its frame's time: this rate was not kept up with");
        }
        if number("generator_drops") > 0.0 {
            eprintln!("beware    {} packets were lost in the load generator's own sockets", evidence["generator_drops"]);
        }
    }
}

/// Runs of one kind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Repeats {
    /// Each figure's smallest, middle and largest.
    spread: Value,
    /// In their order.
    pub(crate) runs: Vec<Run>,
}

impl Repeats {
    /// At least one run.
    pub(crate) fn new(runs: Vec<Run>) -> Repeats {
        Repeats { spread: spread_of(&runs), runs }
    }

    /// The run with the middle CPU time per packet: the one whose figures are told.
    pub(crate) fn middle(&self) -> &Run {
        let mut order: Vec<&Run> = self.runs.iter().collect();
        order.sort_by(|a, b| a.cpu_ns().total_cmp(&b.cpu_ns()));
        order[order.len() / 2]
    }
}

/// What the detail of a case with several paces holds: `pace` counts; `paces` has all there is, `runs` a row for each pace, `repeats` for
/// each run of the one that counts.
pub(crate) fn detail_of(runs: &[(Pace, Repeats)], pinning: &Pinning, own: Value) -> Value {
    let (pace, repeats) = counting(runs);
    let paces: Map<String, Value> = runs.iter().map(|(pace, repeats)| (pace.spread.name().to_owned(), json!(repeats))).collect();
    let rows: Vec<Value> = runs.iter().map(|(pace, repeats)| repeats.middle().row(pace.spread.name())).collect();
    let again: Vec<Value> = repeats.runs.iter().map(|run| run.row(pace.spread.name())).collect();
    let mut beware: Vec<String> = runs.iter().flat_map(|(_, repeats)| repeats.runs.iter().flat_map(Run::beware)).collect();
    if pinning.oversubscribed {
        beware.push("oversubscribed: a worker shares its core with the load or another worker".to_owned());
    }
    beware.dedup();
    let mut detail = json!({"pace": pace.spread, "paces": paces, "runs": rows, "repeats": again, "beware": beware});
    if let (Value::Object(all), Value::Object(own)) = (&mut detail, own) {
        all.extend(own);
    }
    detail
}

/// The pace with the lower ratio counts; unless each has one, the one that costs more.
pub(crate) fn counting(runs: &[(Pace, Repeats)]) -> &(Pace, Repeats) {
    let key = |repeats: &Repeats| {
        let run = repeats.middle();
        if all_judged(runs) { run.figures.floor_ratio.unwrap_or_default() } else { -run.cpu_ns() }
    };
    runs.iter().min_by(|a, b| key(&a.1).total_cmp(&key(&b.1))).expect("clap gives at least one pace")
}

/// The figures of a case with several paces: those of the one that counts. One pace's ratio never stands for another that has none.
pub(crate) fn figures_of(runs: &[(Pace, Repeats)]) -> Figures {
    let figures = counting(runs).1.middle().figures.clone();
    Figures { floor_ratio: figures.floor_ratio.filter(|_| all_judged(runs)), ..figures }
}

fn all_judged(runs: &[(Pace, Repeats)]) -> bool {
    runs.iter().all(|(_, repeats)| repeats.middle().figures.floor_ratio.is_some())
}

/// `{figure: {min, median, max}}` of what is a number.
fn spread_of(runs: &[Run]) -> Value {
    let pages: Vec<Value> = runs.iter().map(|run| json!(run.figures)).collect();
    let paths = ["packets_per_second", "cpu_ns_per_packet", "loss", "floor_ratio", "allocations_per_packet", "latency_us/p99"];
    let spread = paths.into_iter().filter_map(|path| {
        let mut values: Vec<f64> = pages.iter().filter_map(|page| page.pointer(&format!("/{path}"))?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (values.first()?, values.last()?);
        Some((path.replace('/', "_"), json!({"min": min, "median": values[values.len() / 2], "max": max})))
    });
    Value::Object(spread.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fanout::timeline::Spread;
    use crate::sdp::Media;

    fn run(cpu_ns: u64) -> Run {
        let outcome = Outcome { expected: 100, delivered: 100, elapsed: Duration::from_secs(1), ..Outcome::default() };
        Run::new(
            &outcome,
            &Spent { cpu_ns, allocations: Some(0.0), syscalls: None, trains: None, datagrams: None, padding_bytes: None },
            Vec::new(),
        )
    }

    #[test]
    fn the_middle_run_stands_for_all_and_the_spread_is_told() {
        let repeats = Repeats::new(vec![run(50_000), run(10_000), run(30_000)]);
        assert_eq!(repeats.middle().figures.cpu_ns_per_packet, Some(300.0));
        assert_eq!(repeats.spread["cpu_ns_per_packet"], json!({"min": 100.0, "median": 300.0, "max": 500.0}));
        assert_eq!(repeats.spread["allocations_per_packet"]["max"], 0.0);
        assert_eq!(repeats.spread.get("floor_ratio"), None, "no floor, no ratio");
        assert_eq!(repeats.middle().floor_off.as_deref(), Some("not measured"));
    }

    #[test]
    fn the_lower_ratio_counts_and_there_is_none_unless_each_pace_has_one() {
        let pace = |spread, cpu_ns, ratio| {
            let mut run = run(cpu_ns);
            run.figures.floor_ratio = ratio;
            let pace = Pace { bitrate: 1, packet_len: 100, fps: 1, spread, duration: Duration::from_secs(1), media: Media::Video };
            (pace, Repeats::new(vec![run]))
        };
        let told = |runs: &[_]| (counting(runs).0.spread, figures_of(runs).floor_ratio);
        let (cheap, dear) = (pace(Spread::Frames, 10_000, Some(0.5)), pace(Spread::Paced, 20_000, Some(0.7)));
        assert_eq!(told(&[cheap, dear]), (Spread::Frames, Some(0.5)));
        // The dearer one counts, and its ratio is not that of both.
        for runs in [[Some(0.5), None], [None, Some(0.7)], [None, None]] {
            let runs = [pace(Spread::Frames, 10_000, runs[0]), pace(Spread::Paced, 20_000, runs[1])];
            assert_eq!(told(&runs), (Spread::Paced, None));
        }
    }
}
