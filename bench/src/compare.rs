//! `--report` and `--compare` around any case: the case runs as a child process of this program, with the same arguments less these
//! flags, and what it wrote is judged here. No case knows of it.
//!
//! ```text
//! CASE .. --compare POP --rounds 5      ours theirs | theirs ours | ours theirs | ..   each a whole CASE --pop X --json FILE
//!   figures of both -> rank test -> better, worse or noise
//! ```

pub(crate) mod child;
mod rank;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::fanout::program_beside;
use crate::results::{Figured, Record, group, now_utc, percent, short, spoken_command, spread};
use crate::{make_folder_of, report, write_json};
use child::Arguments;

/// Runs of each side below which nothing is better or worse.
const RUNS_MIN: usize = 5;

/// How often two samples of the same build may be told apart: with five runs each, only when no two runs overlap (2 of 252 orders).
const CHANCE_MAX: f64 = 0.01;

/// Medians that are closer than this are the same for whoever reads them.
const CHANGE_MIN: f64 = 0.01;

/// What goes around a case.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Around a case")]
pub(crate) struct Around {
    /// Write a page with charts into this folder: NAME.md, where NAME is that of --json or the case.
    #[arg(long, value_name = "DIR", global = true)]
    report: Option<PathBuf>,
    /// Compare with another `pop` (alternating), or with an earlier result (old.json, which also fills in the arguments).
    #[arg(long, value_name = "POP|JSON", global = true)]
    compare: Option<PathBuf>,
    /// The other `pop`, when --compare names the result that it made.
    #[arg(long, value_name = "POP", global = true)]
    against: Option<PathBuf>,
    /// Runs of each build.
    #[arg(long, value_name = "N", global = true, default_value_t = 5)]
    rounds: usize,
    /// Exit with 1 when a figure is worse.
    #[arg(long, global = true)]
    fail_on_worse: bool,
}

/// Flags of [`Around`] with a value, and without.
const VALUE_FLAGS: &[&str] = &["--report", "--compare", "--against", "--rounds"];
const PLAIN_FLAGS: &[&str] = &["--fail-on-worse"];

impl Around {
    /// Whether the case is to run as a child.
    pub(crate) fn is_asked(&self) -> bool {
        self.report.is_some() || self.compare.is_some() || self.against.is_some() || self.fail_on_worse
    }

    /// Runs the case of this process's arguments as often as it takes.
    pub(crate) fn run(&self) -> Result<(), String> {
        if self.compare.is_none() && (self.against.is_some() || self.fail_on_worse) {
            return Err("--against and --fail-on-worse belong to --compare".to_owned());
        }
        let mut arguments = Arguments::of_this_process()?;
        VALUE_FLAGS.iter().for_each(|flag| drop(arguments.take(flag)));
        PLAIN_FLAGS.iter().for_each(|flag| arguments.drop_plain(flag));
        let json = arguments.take("--json").map(PathBuf::from);
        make_folder_of(json.as_deref())?;
        let record = match &self.compare {
            Some(other) => self.compare(&mut arguments, other)?,
            None => Record::new(arguments.run("")?)?,
        };
        let text = serde_json::to_string_pretty(record.value()).map_err(|e| e.to_string())?;
        if json.is_some() {
            write_json(json.as_deref(), &text)?;
        }
        if let Some(folder) = &self.report {
            let stem = json.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
            let name = stem.unwrap_or_else(|| {
                if self.compare.is_some() { format!("{}-compared", arguments.case()) } else { arguments.case().to_owned() }
            });
            eprintln!("report    {}", report::write_report(&record, &name, folder)?.display());
        }
        let worse = record.value()["detail"]["verdict"] == "worse";
        if worse && self.fail_on_worse { Err("this build is worse".to_owned()) } else { Ok(()) }
    }

    fn compare(&self, arguments: &mut Arguments, other: &Path) -> Result<Record, String> {
        let old = if is_program(other) { None } else { Some(Record::read(other)?) };
        if let (Some(old), true) = (&old, arguments.are_bare()) {
            arguments.fill_from(old)?;
        }
        let against = self.against.clone().or_else(|| old.is_none().then(|| other.to_owned()));
        let ours = arguments.take("--pop").map_or_else(program_beside, |path| Ok(PathBuf::from(path)))?;
        let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
        for round in 0..self.rounds.max(1) {
            // Each goes first in turn: what a machine does over minutes then favours neither.
            let mut sides = vec![(&ours, &mut our_runs, "this build")];
            if let Some(against) = &against {
                sides.push((against, &mut their_runs, "the other"));
            }
            if round % 2 == 1 {
                sides.reverse();
            }
            for (program, runs, name) in sides {
                eprintln!("compare   round {} of {}: {name}", round + 1, self.rounds);
                let run = arguments.clone().with("--pop", program).run(name)?;
                if let Some(old) = old.as_ref() {
                    same_load(&run, old.value())?;
                }
                runs.push(Record::new(run)?);
            }
        }
        if let (Some(old), true) = (&old, against.is_none()) {
            let figures = judge(&samples_of(&our_runs), &old_samples(old));
            return comparison(&our_runs, figures, old.text("commit"), arguments);
        }
        let commit = their_runs.first().and_then(|run| run.text("commit")).map(str::to_owned);
        let figures = judge(&samples_of(&our_runs), &samples_of(&their_runs));
        comparison(&our_runs, figures, commit.as_deref(), arguments)
    }
}

/// A result is JSON; anything else that can be read is a program.
fn is_program(path: &Path) -> bool {
    path.extension().is_none_or(|extension| extension != "json")
}

/// Two runs compare only under the same load: the keys of `config` that both have must agree.
fn same_load(ours: &Value, theirs: &Value) -> Result<(), String> {
    let (Some(ours), Some(theirs)) = (ours["config"].as_object(), theirs["config"].as_object()) else { return Ok(()) };
    let differing: Vec<String> = ours
        .iter()
        .filter_map(|(key, value)| {
            let old = theirs.get(key)?;
            (old != value).then(|| format!("{key} {old} there, {value} here"))
        })
        .collect();
    if differing.is_empty() {
        Ok(())
    } else {
        Err(format!("another load than that of the old result ({}): repeat its arguments, or give none to take them", differing.join("; ")))
    }
}

/// A figure that two builds are compared by.
struct Compared {
    name: &'static str,
    larger_is_better: bool,
    read: fn(Figured<'_>) -> Option<f64>,
}

const COMPARED: &[Compared] = &[
    Compared { name: "packets per second", larger_is_better: true, read: |figures| figures.number("packets_per_second") },
    Compared { name: "CPU ns per packet", larger_is_better: false, read: |figures| figures.number("cpu_ns_per_packet") },
    Compared { name: "share of the floor", larger_is_better: true, read: |figures| figures.number("floor_ratio") },
    Compared { name: "loss", larger_is_better: false, read: |figures| figures.number("loss") },
    Compared { name: "allocations per packet", larger_is_better: false, read: |figures| figures.number("allocations_per_packet") },
    Compared { name: "latency p50 us", larger_is_better: false, read: |figures| figures.latency_us("p50") },
    Compared { name: "latency p99 us", larger_is_better: false, read: |figures| figures.latency_us("p99") },
];

/// Each figure's values, in the order of [`COMPARED`].
type Samples = Vec<Vec<f64>>;

fn samples_of(runs: &[Record]) -> Samples {
    COMPARED.iter().map(|figure| runs.iter().filter_map(|run| (figure.read)(run.figures())).collect()).collect()
}

fn old_samples(old: &Record) -> Samples {
    COMPARED.iter().map(|figure| old.samples(figure.read)).collect()
}

/// One word for a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Noise,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Noise => "noise",
        }
    }
}

/// The rule: a two-sided rank test (Mann-Whitney, exact) says with p <= 0.01 that the samples differ, the medians differ by at least
/// 1 %, and both sides ran at least five times. All else is noise, whatever the medians say.
fn decide(ours: &[f64], theirs: &[f64], larger_is_better: bool) -> Verdict {
    let (Some([_, our, _]), Some([_, their, _])) = (spread(ours), spread(theirs)) else { return Verdict::Noise };
    let small = (our - their).abs() <= CHANGE_MIN * their.abs().max(our.abs());
    if ours.len().min(theirs.len()) < RUNS_MIN || small || rank::chance(ours, theirs) > CHANCE_MAX {
        return Verdict::Noise;
    }
    if (our > their) == larger_is_better { Verdict::Better } else { Verdict::Worse }
}

fn judge(ours: &Samples, theirs: &Samples) -> Vec<Value> {
    let sides = COMPARED.iter().zip(ours.iter().zip(theirs)).filter(|(_, (ours, theirs))| !ours.is_empty() && !theirs.is_empty());
    sides
        .map(|(figure, (ours, theirs))| {
            let side = |samples: &[f64]| {
                spread(samples).map(|[min, median, max]| json!({"min": min, "median": median, "max": max, "runs": samples}))
            };
            json!({
                "figure": figure.name, "larger_is_better": figure.larger_is_better, "ours": side(ours), "theirs": side(theirs),
                "chance": rank::chance(ours, theirs), "verdict": decide(ours, theirs, figure.larger_is_better).word(),
            })
        })
        .collect()
}

/// The comparison as a result of its own; the table goes to stdout.
fn comparison(ours: &[Record], figures: Vec<Value>, their_commit: Option<&str>, arguments: &Arguments) -> Result<Record, String> {
    let first = ours.first().ok_or("no run")?;
    let has = |word: &str| figures.iter().any(|figure| figure["verdict"] == word);
    let verdict = if has("worse") {
        "worse"
    } else if has("better") {
        "better"
    } else {
        "noise"
    };
    let fewest = figures
        .iter()
        .flat_map(|figure| ["ours", "theirs"].map(|side| figure[side]["runs"].as_array().map_or(0, Vec::len)))
        .min()
        .unwrap_or(0);
    let mut beware = Vec::new();
    if fewest < RUNS_MIN {
        beware.push(format!("one side has {fewest} run(s): below {RUNS_MIN} every figure is called noise"));
    }
    let record = Record::new(json!({
        "case": "compare", "commit": first.text("commit"), "measured": now_utc(), "command": spoken_command(std::env::args()),
        "machine": first.value()["machine"], "config": first.value()["config"],
        "detail": {
            "of": arguments.case(), "their_commit": their_commit, "verdict": verdict, "figures": figures, "beware": beware,
        },
    }))?;
    print!("{}", table(&record));
    Ok(record)
}

/// The comparison as lines of Markdown.
pub(crate) fn table(record: &Record) -> String {
    let detail = &record.value()["detail"];
    let commit = |text: Option<&str>| report::md(text.unwrap_or("unknown"));
    let mut out = format!(
        "| figure | this build ({}) | the other ({}) | change | p | |\n|---|---|---|---|---|---|\n",
        commit(record.text("commit")),
        commit(detail["their_commit"].as_str())
    );
    for figure in detail["figures"].as_array().into_iter().flatten() {
        let name = figure["figure"].as_str().unwrap_or_default();
        let write = |value: f64| match name {
            "loss" => percent(value),
            "packets per second" => group(value),
            _ => short(value),
        };
        let side = |side: &str| {
            let side = Figured(&figure[side]);
            let [min, median, max] = ["min", "median", "max"].map(|key| side.number(key).unwrap_or_default());
            let runs = side.0["runs"].as_array().map_or(0, Vec::len);
            format!("{} ({} to {}, {runs} runs)", write(median), write(min), write(max))
        };
        let medians = ["ours", "theirs"].map(|side| Figured(&figure[side]).number("median").unwrap_or_default());
        let change = if medians[1] == 0.0 { "-".to_owned() } else { format!("{:+.1} %", (medians[0] / medians[1] - 1.0) * 100.0) };
        let verdict = figure["verdict"].as_str().unwrap_or_default();
        let verdict = if verdict == "noise" { verdict.to_owned() } else { format!("**{}**", report::md(verdict)) };
        let chance = figure["chance"].as_f64().unwrap_or(1.0);
        out += &format!("| {} | {} | {} | {change} | {chance:.3} | {verdict} |\n", report::md(name), side("ours"), side("theirs"));
    }
    out + &format!("\nVerdict: {}.\n", detail["verdict"].as_str().map(report::md).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 5] = [100.0, 101.0, 102.0, 103.0, 104.0];

    #[test]
    fn runs_that_never_overlap_are_better_or_worse() {
        let higher = A.map(|value| value + 5.0);
        assert_eq!((decide(&higher, &A, true), decide(&higher, &A, false)), (Verdict::Better, Verdict::Worse));
        assert_eq!((decide(&A, &higher, true), decide(&A, &higher, false)), (Verdict::Worse, Verdict::Better));
    }

    #[test]
    fn one_overlapping_run_of_five_is_noise() {
        let mut higher = A.map(|value| value + 5.0);
        higher[0] = 103.5;
        assert_eq!(decide(&higher, &A, true), Verdict::Noise);
        // Ten runs each bear it.
        let (many, more): (Vec<f64>, Vec<f64>) = ([A, A].concat(), [higher, higher].concat());
        assert_eq!(decide(&more, &many, true), Verdict::Better);
    }

    #[test]
    fn few_runs_and_small_changes_are_noise() {
        assert_eq!(decide(&[200.0; 4], &A, true), Verdict::Noise);
        assert_eq!(decide(&[200.0], &[100.0], true), Verdict::Noise);
        assert_eq!(decide(&[], &A, true), Verdict::Noise);
        assert_eq!(decide(&[1_000.1; 5], &[1_000.0; 5], true), Verdict::Noise);
        assert_eq!(decide(&[0.0; 5], &[0.0; 5], false), Verdict::Noise);
        assert_eq!(decide(&[0.01; 5], &[0.0; 5], false), Verdict::Worse, "loss where there was none");
    }

    #[test]
    fn another_load_is_refused() {
        let config = |subscribers: u32| json!({"config": {"subscribers": subscribers, "fps": 30}});
        assert_eq!(same_load(&config(200), &config(200)), Ok(()));
        assert!(same_load(&config(200), &config(50)).is_err_and(|sentence| sentence.contains("subscribers 50 there, 200 here")));
        assert_eq!(same_load(&config(200), &json!({"config": {"fps": 30}})), Ok(()), "a key that the old result lacks");
    }
}
