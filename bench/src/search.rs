//! `pop-bench ndr` and `pdr`: the highest rate without loss, and with at most 0.5 % of it.
//!
//! ```text
//! double until a trial fails -> halve the gap, short trials -> confirm with a long one; when it fails: down, long trials only
//! ```
//! After RFC 2544 section 26.1 and MLRsearch (bounds, relative width, a longer final trial, an exceed ratio). A rate at which the generator
//! itself fell behind bounds the search and is never called the target's.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::blast::ShapeArgs;
use crate::blast::rate::Rate;
use crate::fanout::parse_duration;
use crate::result::{Figures, case_json};
use crate::sink::Sink;
use crate::target::TargetArgs;
use crate::trial::{Lane, Outcome, TrialReport, Verdict};
use crate::{make_folder_of, write_json};

/// Loss that `pdr` allows when nothing else is said, as a share.
pub(crate) const PDR_LOSS: f64 = 0.005;

/// A search that is so far below its first rate gives up.
const GIVE_UP_BELOW: f64 = 1e-3;

/// What to search.
#[derive(Debug, clap::Args)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    /// The first rate that is tried.
    #[arg(long, default_value = "20k")]
    start: Rate,
    /// The highest rate that is tried, such as the card's.
    #[arg(long, default_value = "20Mpps")]
    max: Rate,
    /// Length of a trial while the search narrows.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    first: Duration,
    /// Length of a trial that confirms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// The search ends when the bounds are so close, in per cent of the rate.
    #[arg(long, default_value_t = 1.0)]
    width: f64,
    /// A rate is too fast when it failed so many times in a row. 1 is RFC 2544 to the letter; 2 forgives a disturbance of the machine.
    #[arg(long, default_value_t = 2)]
    tries: u32,
    /// Loss that is allowed, in per cent; default: 0 for ndr, 0.5 for pdr.
    #[arg(long)]
    loss: Option<f64>,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs `ndr` or `pdr`, with the share of loss that it allows. The error is a sentence.
pub(crate) fn run(case: &'static str, args: &SearchArgs, loss_max: f64) -> Result<(), String> {
    args.shape.check()?;
    let loss_max = args.loss.map_or(loss_max, |percent| percent / 100.0);
    if !(0.0..1.0).contains(&loss_max) {
        return Err("--loss must be 0 to below 100 per cent".to_owned());
    }
    let plan = Plan {
        start: args.start.packets_per_second(args.shape.size),
        max: args.max.packets_per_second(args.shape.size),
        width: args.width / 100.0,
        first: args.first,
        last: args.duration,
        tries: args.tries,
    };
    plan.check()?;
    make_folder_of(args.json.as_deref())?;
    let mut sink = args.target.bind_sink()?;
    let target = args.target.open(sink.address, args.shape.streams)?;
    let mut lane = Lane::new(target, args.target.any_port(), args.shape)?;
    lane.find_way(&mut sink)?;
    let mut steps = Vec::new();
    let found = search_lane(&plan, &mut lane, &mut sink, loss_max, &mut steps)?;
    let outcome = &found.outcome;
    let gbps = found.rate * args.shape.size as f64 * 8.0 / 1e9;
    let beware = found.limit.sentence(found.rate);
    eprintln!(
        "{case}  {:.0} packets/s of {} bytes ({gbps:.3} Gb/s) through {}, loss {:.5} % over {:.1} s, checksum {}",
        found.rate,
        args.shape.size,
        lane.target.name(),
        outcome.loss() * 100.0,
        outcome.sent.elapsed.as_secs_f64(),
        outcome.arrived.checksum,
    );
    for sentence in &beware {
        eprintln!("beware  {sentence}");
    }
    let report = outcome.report();
    let figures = Figures {
        packets_per_second: Some(outcome.packets_per_second()),
        cpu_ns_per_packet: outcome.cpu_ns_per_packet(),
        loss: Some(outcome.loss()),
        allocations_per_packet: outcome.allocations.map(|count| count / outcome.arrived.counts.packets.max(1) as f64),
        latency_us: report.latency_us,
        ..Figures::default()
    };
    let mut config = args.target.describe();
    let own = json!({
        "size": args.shape.size, "streams": args.shape.streams, "train": args.shape.train, "loss_max": loss_max,
        "first_s": args.first.as_secs_f64(), "duration_s": args.duration.as_secs_f64(), "width": plan.width, "tries": args.tries,
    });
    merge(&mut config, own);
    let detail = json!({
        "rate_packets_per_second": found.rate, "upper_bound_packets_per_second": found.upper, "limit": found.limit, "beware": beware,
        "bits_per_second": found.rate * args.shape.size as f64 * 8.0, "confirmed": report, "steps": steps, "drops": lane.target.drops(),
    });
    let json = case_json(case, &figures, &lane.target.machine(), config, detail);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

/// Adds the keys of `more` to `object`.
pub(crate) fn merge(object: &mut serde_json::Value, more: serde_json::Value) {
    if let (serde_json::Value::Object(all), serde_json::Value::Object(more)) = (object, more) {
        all.extend(more);
    }
}

/// One trial of a search in its report.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    verdict: Verdict,
    #[serde(flatten)]
    trial: TrialReport,
}

/// Searches a real lane, and says each trial as it ends.
pub(crate) fn search_lane(
    plan: &Plan,
    lane: &mut Lane,
    sink: &mut Sink,
    loss_max: f64,
    steps: &mut Vec<Step>,
) -> Result<Found<Outcome>, String> {
    search(plan, |rate, duration| {
        let outcome = lane.run(sink, rate, duration)?;
        let verdict = outcome.judge(loss_max);
        eprintln!(
            "search  {rate:>10.0} packets/s for {:.1} s: loss {:.5} %, {:.1} ms overrun, {} unsent, at most {:.0} us late: {}",
            duration.as_secs_f64(),
            outcome.loss() * 100.0,
            outcome.overrun.as_secs_f64() * 1e3,
            outcome.sent.unsent,
            outcome.sent.late.max() as f64 / 1e3,
            match verdict {
                Verdict::Good => "good",
                Verdict::TooFast => "too fast",
                Verdict::GeneratorLimit => "generator limit",
            }
        );
        steps.push(Step { verdict, trial: outcome.report() });
        Ok((verdict, outcome))
    })
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Packets per second of the first trial.
    pub(crate) start: f64,
    /// The highest rate.
    pub(crate) max: f64,
    /// How close the bounds have to be, as a share.
    pub(crate) width: f64,
    /// Length of a trial while the search narrows.
    pub(crate) first: Duration,
    /// Length of a trial that confirms.
    pub(crate) last: Duration,
    /// Failures in a row that make a rate too fast.
    pub(crate) tries: u32,
}

impl Plan {
    fn check(&self) -> Result<(), String> {
        if self.max < self.start {
            return Err("--max is below --start".to_owned());
        }
        if !(0.000_1..=0.5).contains(&self.width) || self.tries == 0 || self.first.is_zero() || self.last < self.first {
            return Err(
                "--width must be 0.01 to 50 per cent, --tries at least 1, --first above zero and --duration not below it".to_owned()
            );
        }
        Ok(())
    }
}

/// What ended a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The target lost packets, or fell behind, at the next rate.
    Target,
    /// The generator did: the target may do more.
    Generator,
    /// Nothing failed up to the highest rate that was asked for.
    Asked,
}

impl Limit {
    /// What a reader must know beside the figure.
    pub(crate) fn sentence(self, rate: f64) -> Vec<String> {
        match self {
            Limit::Target => Vec::new(),
            Limit::Generator => {
                vec![format!("generator limit: the target does {rate:.0} packets/s at least, more could not be sent or taken here")]
            }
            Limit::Asked => vec![format!("no rate up to --max failed: the target does {rate:.0} packets/s at least")],
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found<T> {
    /// The highest rate that passed a trial of the full length, packets per second.
    pub(crate) rate: f64,
    /// The lowest rate that failed.
    pub(crate) upper: Option<f64>,
    /// What failed there.
    pub(crate) limit: Limit,
    /// The trial that confirmed.
    pub(crate) outcome: T,
}

/// Finds the highest good rate; `trial` runs one rate for so long.
pub(crate) fn search<T>(plan: &Plan, mut trial: impl FnMut(f64, Duration) -> Result<(Verdict, T), String>) -> Result<Found<T>, String> {
    let mut judge = |rate: f64, duration: Duration| {
        let mut worst = None;
        for _ in 0..plan.tries {
            let (verdict, outcome) = trial(rate, duration)?;
            match verdict {
                Verdict::Good => return Ok((Verdict::Good, outcome)),
                // One failure of the target is enough to call it the target's.
                _ if worst.as_ref().is_some_and(|(found, _)| *found == Verdict::TooFast) => {}
                _ => worst = Some((verdict, outcome)),
            }
        }
        worst.ok_or_else(|| "a rate was not tried".to_owned())
    };
    // The bounds: the highest rate that passed a short trial, and the lowest that failed any.
    let mut lower: Option<f64> = None;
    let mut upper: Option<(f64, Verdict)> = None;
    loop {
        let rate = match (lower, upper) {
            (None, None) => plan.start,
            (Some(good), None) if good >= plan.max => break,
            (Some(good), None) => (good * 2.0).min(plan.max),
            (None, Some((bad, _))) => bad / 2.0,
            (Some(good), Some((bad, _))) if bad / good <= 1.0 + plan.width => break,
            (Some(good), Some((bad, _))) => (good * bad).sqrt(),
        };
        if rate < plan.start * GIVE_UP_BELOW {
            return Err(format!("packets are lost or late at every rate down to {rate:.0} packets/s"));
        }
        match judge(rate, plan.first)?.0 {
            Verdict::Good => lower = Some(rate),
            verdict => upper = Some((rate, verdict)),
        }
    }
    // Now trials of the full length alone count. Each failure goes down twice as far as the one before.
    let mut rate = lower.expect("the loop above ends with a lower bound");
    let mut step = 1.0 + plan.width;
    let mut confirmed: Option<(f64, T)> = None;
    loop {
        let (verdict, outcome) = judge(rate, plan.last)?;
        match verdict {
            Verdict::Good => confirmed = Some((rate, outcome)),
            verdict => upper = Some((rate, verdict)),
        }
        rate = match (confirmed.take(), upper) {
            (Some((good, outcome)), Some((bad, verdict))) if bad / good <= 1.0 + plan.width => {
                let limit = if verdict == Verdict::TooFast { Limit::Target } else { Limit::Generator };
                return Ok(Found { rate: good, upper: Some(bad), limit, outcome });
            }
            (Some((good, outcome)), None) => return Ok(Found { rate: good, upper: None, limit: Limit::Asked, outcome }),
            (Some((good, outcome)), Some((bad, _))) => {
                confirmed = Some((good, outcome));
                (good * bad).sqrt()
            }
            (None, _) => {
                let next = rate / step;
                step *= step;
                next
            }
        };
        if rate < plan.start * GIVE_UP_BELOW {
            return Err(format!("no rate down to {rate:.0} packets/s passed a trial of {:.1} s", plan.last.as_secs_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { start: 1_000.0, max: 1e7, width: 0.01, first: Duration::from_secs(1), last: Duration::from_secs(10), tries: 1 };

    fn found(plan: &Plan, mut verdict: impl FnMut(f64, Duration) -> Verdict) -> (Found<f64>, usize) {
        let mut trials = 0;
        let found = search(plan, |rate, duration| {
            trials += 1;
            assert!(trials < 100, "it does not end");
            Ok((verdict(rate, duration), duration.as_secs_f64()))
        });
        (found.expect("there is a good rate"), trials)
    }

    fn below(limit: f64) -> impl Fn(f64, Duration) -> Verdict {
        move |rate, _| if rate <= limit { Verdict::Good } else { Verdict::TooFast }
    }

    #[test]
    fn the_highest_good_rate_is_found_within_the_width_and_confirmed_by_a_long_trial() {
        for limit in [3.0, 700.0, 1_000.0, 123_456.0, 9.9e6] {
            let (found, trials) = found(&PLAN, below(limit));
            assert!(found.rate <= limit && found.rate >= limit / 1.01, "{limit}: {found:?}");
            assert!(found.upper.is_some_and(|bad| bad > limit && bad / found.rate <= 1.01), "{limit}: {found:?}");
            assert_eq!((found.limit, found.outcome), (Limit::Target, 10.0));
            assert!(trials < 40, "{trials} trials for {limit}");
        }
    }

    #[test]
    fn a_rate_that_only_short_trials_pass_is_not_the_result() {
        let (found, _) = found(&PLAN, |rate, duration| below(if duration.as_secs() > 1 { 80_000.0 } else { 123_456.0 })(rate, duration));
        assert!(found.rate <= 80_000.0 && found.rate >= 80_000.0 / 1.01, "{found:?}");
    }

    #[test]
    fn the_generators_limit_is_never_called_the_targets() {
        let generator = |rate: f64, _: Duration| if rate <= 50_000.0 { Verdict::Good } else { Verdict::GeneratorLimit };
        assert_eq!(found(&PLAN, generator).0.limit, Limit::Generator);
        assert!(!Limit::Generator.sentence(1.0).is_empty());
        // A target that fails below the generator's limit is told as such.
        let both = |rate: f64, _: Duration| match rate {
            ..=20_000.0 => Verdict::Good,
            ..=50_000.0 => Verdict::TooFast,
            _ => Verdict::GeneratorLimit,
        };
        assert_eq!(found(&PLAN, both).0.limit, Limit::Target);
    }

    #[test]
    fn a_search_that_nothing_stops_ends_at_the_highest_rate() {
        let (found, _) = found(&PLAN, |_, _| Verdict::Good);
        assert_eq!((found.rate, found.limit, found.upper), (1e7, Limit::Asked, None));
    }

    #[test]
    fn one_disturbance_is_forgiven_where_two_tries_are_asked_for() {
        let mut trials = 0;
        let mut disturbed = |rate: f64, duration: Duration| {
            trials += 1;
            if trials % 7 == 3 { Verdict::TooFast } else { below(123_456.0)(rate, duration) }
        };
        let (found, _) = found(&Plan { tries: 2, ..PLAN }, &mut disturbed);
        assert!(found.rate <= 123_456.0 && found.rate >= 123_456.0 / 1.01, "{found:?}");
    }

    #[test]
    fn a_target_that_never_keeps_up_is_told_with_a_sentence() {
        let error = search(&PLAN, |_, _| Ok((Verdict::TooFast, ()))).expect_err("no rate is good");
        assert!(error.contains("at every rate"), "{error}");
        let error =
            search(&PLAN, |_, d| Ok((if d.as_secs() > 1 { Verdict::TooFast } else { Verdict::Good }, ()))).expect_err("no long one is");
        assert!(error.contains("passed a trial"), "{error}");
    }
}
