//! `pop-bench all`: every headline figure in turn, each a child process. One that fails does not stop the others.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::compare::child::Arguments;
use crate::report;
use crate::results::{Record, now_utc};

/// A figure that README shows: the name of its file, and its command in a short and in a long form.
struct Headline {
    name: &'static str,
    quick: &'static str,
    full: &'static str,
}

const HEADLINES: &[Headline] = &[
    Headline {
        name: "fanout-1x200",
        quick: "fanout --subscribers 200 --duration 3s",
        full: "fanout --subscribers 200 --duration 10s --repeats 5",
    },
    Headline {
        name: "fanout-10x200",
        // In one room, so that each of the 200 gets all ten.
        quick: "session --participants 60 --publishers 10 --bitrate 1.5M --pace frames --duration 2s",
        full: "session --participants 210 --publishers 10 --bitrate 1.5M --duration 10s --repeats 3",
    },
    Headline {
        name: "fanout-1x200-aes-cm",
        quick: "fanout --subscribers 200 --profile aes-cm --pace frames --duration 2s",
        full: "fanout --subscribers 200 --profile aes-cm --duration 10s --repeats 3",
    },
    Headline {
        name: "fanout-1x200-mixed",
        quick: "fanout --subscribers 200 --profile mixed --pace frames --duration 2s",
        full: "fanout --subscribers 200 --profile mixed --duration 10s --repeats 3",
    },
    Headline {
        name: "session-100x99",
        quick: "session --participants 100 --publishers-all --pace frames --duration 2s",
        full: "session --participants 100 --publishers-all --duration 10s",
    },
    Headline {
        name: "session-50x49",
        quick: "session --participants 50 --pace frames --duration 3s",
        full: "session --participants 50 --duration 10s",
    },
    Headline { name: "audio-10xN", quick: "audio --subscribers-max 400 --duration 1s", full: "audio" },
    Headline { name: "latency", quick: "latency --loads 50 --repeats 1 --duration 2s", full: "latency" },
    Headline { name: "ndr", quick: "ndr --first 300ms --duration 1s --width 5", full: "ndr" },
    Headline { name: "relay", quick: "relay --rate 50k --duration 1s --passes 5 --seeds 1", full: "relay" },
    Headline {
        name: "rooms-10xN",
        quick: "rooms --members 50 --publishers 10 --duration 2s",
        full: "rooms --members 110 --publishers 10 --raise 100 --raise-max 1010 --bitrate 100k --fps 10 --duration 5s",
    },
    Headline { name: "peer-janus", quick: "peer janus --pairs 1 --duration 3s", full: "peer janus" },
];

/// The longest that one figure may take: a case that hangs must not keep the others from running.
const QUICK_LIMIT: Duration = Duration::from_secs(60);
const FULL_LIMIT: Duration = Duration::from_secs(900);

/// `pop-bench all`.
#[derive(Debug, clap::Args)]
pub(crate) struct AllArgs {
    /// Short runs, all together in less than 4 minutes.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Runs as long as those of README's table; the default.
    #[arg(long)]
    full: bool,
    /// Where the results go, as DATE-NAME.json.
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
    /// Only these figures, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Write a page with charts of each into this folder, too.
    #[arg(long, value_name = "DIR")]
    pages: Option<PathBuf>,
}

/// Runs them. The error names those that failed.
pub(crate) fn run(args: &AllArgs) -> Result<(), String> {
    let known: Vec<&str> = HEADLINES.iter().map(|headline| headline.name).collect();
    if let Some(name) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("no figure is named {name}: there are {}", known.join(", ")));
    }
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let wanted = |headline: &&Headline| args.only.is_empty() || args.only.iter().any(|name| name == headline.name);
    let (start, mut lines, mut failed) = (Instant::now(), Vec::new(), Vec::new());
    for headline in HEADLINES.iter().filter(wanted) {
        let began = Instant::now();
        let command = if args.quick { headline.quick } else { headline.full };
        eprintln!("\n== {}: pop-bench {command}", headline.name);
        let outcome = measure(args, headline.name, command);
        if let Err(sentence) = &outcome {
            failed.push(headline.name);
            eprintln!("failed    {}: {sentence}", headline.name);
        }
        let outcome = outcome.unwrap_or_else(|sentence| format!("failed: {sentence}"));
        lines.push(format!("{:<16} {:>5.0} s  {outcome}", headline.name, began.elapsed().as_secs_f64()));
    }
    eprintln!("\n{}\n{:<16} {:>5.0} s", lines.join("\n"), "total", start.elapsed().as_secs_f64());
    if failed.is_empty() { Ok(()) } else { Err(format!("{} of {} failed: {}", failed.len(), lines.len(), failed.join(", "))) }
}

/// One figure into its file; the answer is its line in the summary.
fn measure(args: &AllArgs, name: &str, command: &str) -> Result<String, String> {
    let limit = if args.quick { QUICK_LIMIT } else { FULL_LIMIT };
    let record = Record::new(Arguments::new(command).run_within(limit)?)?;
    let stem = format!("{}-{name}", &now_utc()[..10]);
    let path = args.out.join(format!("{stem}.json"));
    let text = serde_json::to_string_pretty(record.value()).map_err(|e| e.to_string())?;
    std::fs::write(&path, format!("{text}\n")).map_err(|e| format!("{}: {e}", path.display()))?;
    if let Some(folder) = &args.pages {
        report::write_report(&record, &stem, folder)?;
    }
    Ok(report::verdict(&record, &report::rows(&record)).replace("**", ""))
}
