//! One run at one rate through a target, sender and sink together: the unit of `ndr`, `pdr` and `latency`.
//!
//! ```text
//! generator --RTP--> target --RTP--> sink        one thread sends what is due and takes what came, in turn, without sleeping
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use pop_uring::{Wait, monotonic_time};
use serde::Serialize;

use crate::blast::{Generator, Sent, ShapeArgs, latency_us};
use crate::result::LatencyUs;
use crate::sink::{Sink, Tally, TallyReport};
use crate::target::Target;

/// After the last packet left, others are waited for until nothing came for so long.
const QUIET: Duration = Duration::from_millis(100);

/// A queue that takes longer than this to work off means that the rate was not kept up with: deep socket queues hide it without a loss.
pub(crate) const OVERRUN_MAX: Duration = Duration::from_millis(20);

/// A last packet that left so late means that the generator did not keep up; one before it, that it stalled.
const LATE_MAX: Duration = Duration::from_millis(20);

/// A new target gets so long until its first packet comes back.
const FIRST_PACKET: Duration = Duration::from_secs(10);

/// Of the packets that look for the way through a new target, per second.
const FIRST_PACKETS_PER_SECOND: f64 = 1_000.0;

/// What a trial tells.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Packets per second that were asked for.
    pub(crate) offered: f64,
    /// What the generator did.
    pub(crate) sent: Sent,
    /// What arrived.
    pub(crate) arrived: TallyReport,
    /// From due to arrival, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Between the last packet's leaving and the last arrival.
    pub(crate) overrun: Duration,
    /// Packets that did not fit the sink's own queue.
    pub(crate) sink_drops: u64,
    /// CPU time of the target's packet threads, where it can be read.
    pub(crate) target_cpu_ns: Option<u64>,
    /// Heap allocations of the same threads, where they are told.
    pub(crate) allocations: Option<f64>,
}

/// One word on a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Within the loss that is allowed, and without a queue behind.
    Good,
    /// The target lost packets or fell behind.
    TooFast,
    /// The generator or the sink did: nothing is said about the target.
    GeneratorLimit,
}

impl Outcome {
    /// Share of the packets that left and did not come.
    pub(crate) fn loss(&self) -> f64 {
        self.sent.packets.saturating_sub(self.arrived.counts.packets) as f64 / self.sent.packets.max(1) as f64
    }

    /// Different packets that arrived per second of sending.
    pub(crate) fn packets_per_second(&self) -> f64 {
        self.arrived.counts.packets as f64 / self.sent.elapsed.max(Duration::from_nanos(1)).as_secs_f64()
    }

    /// CPU nanoseconds of the target per packet that arrived.
    pub(crate) fn cpu_ns_per_packet(&self) -> Option<f64> {
        self.target_cpu_ns.map(|ns| ns as f64 / self.arrived.counts.packets.max(1) as f64)
    }

    /// Judges it against a share of loss that is allowed.
    pub(crate) fn judge(&self, loss_max: f64) -> Verdict {
        let stalled = Duration::from_nanos(self.sent.late.max()) > LATE_MAX;
        let fell_behind = self.sent.unsent > 0 || self.sink_drops > 0 || self.sent.late_last > LATE_MAX;
        let failed = self.loss() > loss_max || self.overrun > OVERRUN_MAX;
        match (failed, stalled) {
            _ if fell_behind => Verdict::GeneratorLimit,
            // What a stalled generator sends afterwards is a burst that nobody asked the target to carry; one that it carried is no fault.
            (true, true) => Verdict::GeneratorLimit,
            (true, false) => Verdict::TooFast,
            (false, _) => Verdict::Good,
        }
    }

    /// For a report.
    pub(crate) fn report(&self) -> TrialReport {
        TrialReport {
            offered_packets_per_second: self.offered,
            duration_s: self.sent.elapsed.as_secs_f64(),
            packets_per_second: self.packets_per_second(),
            sent: self.sent.packets,
            unsent: self.sent.unsent,
            arrived: self.arrived.counts.packets,
            loss: self.loss(),
            duplicates: self.arrived.counts.duplicates,
            reordered: self.arrived.reordered,
            overrun_us: self.overrun.as_nanos() as f64 / 1e3,
            late_us: latency_us(&self.sent.late),
            sink_drops: self.sink_drops,
            latency_us: latency_us(&self.latency),
            cpu_ns_per_packet: self.cpu_ns_per_packet(),
            checksum: self.arrived.checksum.clone(),
        }
    }
}

/// An [`Outcome`] in a report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrialReport {
    offered_packets_per_second: f64,
    duration_s: f64,
    packets_per_second: f64,
    sent: u64,
    unsent: u64,
    arrived: u64,
    loss: f64,
    duplicates: u64,
    reordered: u64,
    overrun_us: f64,
    late_us: Option<LatencyUs>,
    sink_drops: u64,
    pub(crate) latency_us: Option<LatencyUs>,
    cpu_ns_per_packet: Option<f64>,
    checksum: String,
}

/// A target and the generator in front of it: its own, since a target may have learnt it as its peer.
pub(crate) struct Lane {
    /// What packets go through.
    pub(crate) target: Target,
    generator: Generator,
}

impl Lane {
    /// Binds the generator at `from`. The error is a sentence.
    pub(crate) fn new(target: Target, from: SocketAddr, shape: ShapeArgs) -> Result<Lane, String> {
        let generator = Generator::new(Some(from), target.address(), shape)?;
        Ok(Lane { target, generator })
    }

    /// Sends a few packets until one comes back: a peer is learnt, a room's track finds its viewer.
    pub(crate) fn find_way(&mut self, sink: &mut Sink) -> Result<(), String> {
        let start = monotonic_time();
        while monotonic_time() - start < FIRST_PACKET {
            if self.run(sink, FIRST_PACKETS_PER_SECOND, Duration::from_millis(200))?.arrived.counts.packets > 0 {
                return Ok(());
            }
        }
        Err(format!(
            "nothing that was sent to {} ({}) came to {} within {} s: does it send there?",
            self.target.address(),
            self.target.name(),
            sink.address,
            FIRST_PACKET.as_secs()
        ))
    }

    /// One trial. The error is a sentence.
    pub(crate) fn run(&mut self, sink: &mut Sink, packets_per_second: f64, duration: Duration) -> Result<Outcome, String> {
        let Lane { target, generator } = self;
        let fail = |e: std::io::Error| format!("{}: {e}", target.name());
        let drops_before = sink.kernel_drops();
        let allocations_before = target.allocations();
        let cpu_before = target.cpu_ns()?;
        generator.begin(packets_per_second, duration, monotonic_time());
        sink.tally = Tally::new(Some(generator.run()), false);
        while generator.due().is_some() {
            generator.turn(monotonic_time()).map_err(fail)?;
            sink.sweep(Wait::No).map_err(fail)?;
        }
        let sent = generator.end(monotonic_time()).map_err(fail)?;
        let mut last = monotonic_time();
        while sink.tally.packets() < sent.packets && monotonic_time() - last < QUIET {
            if sink.sweep(Wait::AtMost(QUIET)).map_err(fail)? {
                last = monotonic_time();
            }
        }
        let target_cpu_ns = target.cpu_ns()?.zip(cpu_before).map(|(after, before)| after - before);
        let allocations = target.allocations().zip(allocations_before).map(|(after, before)| after - before);
        let last_left = sent.last_due + sent.late_last;
        let last_arrival = sink.tally.last_ns().map_or(last_left, Duration::from_nanos);
        Ok(Outcome {
            offered: packets_per_second,
            arrived: sink.tally.report(),
            latency: sink.tally.latency().clone(),
            overrun: last_arrival.saturating_sub(last_left),
            sink_drops: sink.kernel_drops() - drops_before,
            target_cpu_ns,
            allocations,
            sent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blast::new_histogram;

    fn outcome(lost: u64, overrun_ms: u64) -> Outcome {
        let tally = Tally::new(None, false).report();
        let mut arrived = tally;
        arrived.counts.packets = 1_000 - lost;
        let sent = Sent {
            packets: 1_000,
            unsent: 0,
            elapsed: Duration::from_secs(1),
            last_due: Duration::from_secs(1),
            late_last: Duration::ZERO,
            late: new_histogram(),
            checksum: 0,
            run: 0,
        };
        let overrun = Duration::from_millis(overrun_ms);
        Outcome { offered: 1e3, sent, arrived, latency: new_histogram(), overrun, sink_drops: 0, target_cpu_ns: None, allocations: None }
    }

    #[test]
    fn loss_and_a_queue_behind_are_the_targets_and_only_when_the_generator_kept_up() {
        assert_eq!(outcome(0, 0).judge(0.0), Verdict::Good);
        assert_eq!(outcome(1, 0).judge(0.0), Verdict::TooFast);
        assert_eq!((outcome(5, 0).judge(0.005), outcome(6, 0).judge(0.005)), (Verdict::Good, Verdict::TooFast));
        assert_eq!(outcome(0, 21).judge(0.5), Verdict::TooFast, "a deep queue hides what was not kept up with");
        let mut stalled = outcome(1, 0);
        stalled.sent.late.record(30_000_000).expect("within its bounds");
        assert_eq!((stalled.judge(0.0), stalled.judge(0.005)), (Verdict::GeneratorLimit, Verdict::Good));
        let limits: [fn(&mut Outcome); 3] =
            [|it| it.sent.unsent = 1, |it| it.sink_drops = 1, |it| it.sent.late_last = Duration::from_millis(21)];
        for limit in limits {
            let mut limited = outcome(0, 0);
            limit(&mut limited);
            assert_eq!(limited.judge(0.005), Verdict::GeneratorLimit);
        }
    }
}
