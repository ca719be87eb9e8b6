//! A page that one forwards: what was measured and how, the figures with floor and gates, a chart or two, what to beware of, and how
//! to repeat it. It is made from a case's JSON alone, so it works on old results.
//!
//! ```text
//! FILE.json -> Record -> rows (figure, measured, gate, goal) -> NAME.md
//!                    \-> charts (bars, lines)                -> NAME-cpu.svg, NAME-latency.svg, NAME-load.svg
//! ```

pub(crate) mod charts;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::compare;
use crate::results::{FLOOR_CASES, Figured, Record, group, micros, percent, short, spread};
use charts::{Axes, Bar, Line, Mark};

/// Share of the floor that a fan-out must reach, and wants to (DESIGN 11).
const FLOOR_RATIO: (f64, f64) = (0.6, 0.85);

/// p99 of added latency over that of a bare forwarder.
const FORWARDER_RATIO: (f64, f64) = (3.0, 1.5);

/// How many times less CPU than a peer.
const PEER_RATIO: (f64, f64) = (5.0, 10.0);

/// Bytes of memory per active subscriber.
const MEMORY_BYTES: (f64, f64) = (128e3, 48e3);

/// Keys that tell memory per subscriber or member.
const MEMORY_KEYS: &[&str] = &["bytes_per_subscriber", "active_bytes_per_member"];

/// What the x axis of a list of steps may be, and how it reads.
const STEP_KEYS: &[(&str, &str)] = &[
    ("members", "members"),
    ("subscribers", "subscribers"),
    ("load_percent", "load, % of the highest rate without excess loss"),
    ("offered_packets_per_second", "offered packets/s"),
    ("bitrate", "bits/s per publisher"),
];

/// `pop-bench report`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// Results, as `--json` wrote them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the pages and pictures go.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

/// Makes a page of each file.
pub(crate) fn run(args: &ReportArgs) -> Result<(), String> {
    for file in &args.files {
        let name = file.file_stem().map_or_else(|| "report".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let page = write_report(&Record::read(file)?, &name, &args.out)?;
        eprintln!("report    {}", page.display());
    }
    Ok(())
}

/// Writes `NAME.md` and its pictures, and tells where the page is.
pub(crate) fn write_report(record: &Record, name: &str, folder: &Path) -> Result<PathBuf, String> {
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display())).map(|()| path)
    };
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let charts = charts_of(record);
    for chart in &charts {
        put(&format!("{name}-{}.svg", chart.name), &chart.svg)?;
    }
    put(&format!("{name}.md"), &page(record, name, &charts))
}

/// A figure as the page and the table show it.
pub(crate) struct Row {
    pub(crate) figure: &'static str,
    pub(crate) measured: String,
    pub(crate) gate: String,
    pub(crate) goal: String,
    pub(crate) state: State,
}

/// How a figure stands to what is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is promised about it.
    Free,
    /// Promised and not measured.
    Unknown,
    Missed,
    Gate,
    Goal,
}

impl State {
    pub(crate) fn words(self) -> &'static str {
        match self {
            State::Free => "",
            State::Unknown => "not measured",
            State::Missed => "**missed**",
            State::Gate => "gate met",
            State::Goal => "goal met",
        }
    }

    fn of(value: Option<f64>, (gate, goal): (f64, f64), larger_is_better: bool) -> State {
        let reaches = |value: f64, bound: f64| if larger_is_better { value >= bound } else { value <= bound };
        match value {
            None => State::Unknown,
            Some(value) if reaches(value, goal) => State::Goal,
            Some(value) if reaches(value, gate) => State::Gate,
            Some(_) => State::Missed,
        }
    }
}

/// The median, and the range when there were several runs.
fn tell(samples: &[f64], write: impl Fn(f64) -> String) -> String {
    match (spread(samples), samples.len()) {
        (None, _) => "-".to_owned(),
        (Some([_, median, _]), 1) => write(median),
        (Some([low, median, high]), n) if write(low) == write(high) => format!("{} ({n} runs)", write(median)),
        (Some([low, median, high]), n) => format!("{} ({} to {}, {n} runs)", write(median), write(low), write(high)),
    }
}

/// The figures of a result, those that it has or that are promised for its case.
pub(crate) fn rows(record: &Record) -> Vec<Row> {
    let mut rows = Vec::new();
    let free = |figure, measured: String| Row { figure, measured, gate: String::new(), goal: String::new(), state: State::Free };
    let median = |samples: &[f64]| spread(samples).map(|[_, median, _]| median);
    let number = |key: &'static str| record.samples(move |figures: Figured<'_>| figures.number(key));
    let case = record.case();

    let rates = number("packets_per_second");
    if !rates.is_empty() {
        rows.push(free("packets/s delivered", tell(&rates, group)));
    }
    let losses = number("loss");
    if !losses.is_empty() {
        let allowed = loss_allowed(case);
        let worst = losses.iter().copied().fold(0.0, f64::max);
        rows.push(Row {
            gate: allowed.map(percent).unwrap_or_default(),
            goal: allowed.map(percent).unwrap_or_default(),
            state: allowed.map_or(State::Free, |allowed| State::of(Some(worst), (allowed, allowed), false)),
            ..free("loss", tell(&losses, percent))
        });
    }
    let cpu = number("cpu_ns_per_packet");
    let floor = record.samples(|figures| figures.floor_ns());
    let judged = FLOOR_CASES.contains(&case);
    if let Some(floor_ns) = median(&floor).filter(|_| judged) {
        rows.push(Row {
            gate: format!("{} ns", group(floor_ns / FLOOR_RATIO.0)),
            goal: format!("{} ns", group(floor_ns / FLOOR_RATIO.1)),
            ..free("CPU per packet", tell(&cpu, |ns| format!("{} ns", group(ns))))
        });
        rows.push(free("floor: AES-GCM and GSO send alone", tell(&floor, |ns| format!("{} ns", group(ns)))));
    } else if !cpu.is_empty() {
        rows.push(free("CPU per packet", tell(&cpu, |ns| format!("{} ns", group(ns)))));
    }
    let ratios = number("floor_ratio");
    if judged {
        rows.push(Row {
            gate: short(FLOOR_RATIO.0),
            goal: short(FLOOR_RATIO.1),
            state: State::of(median(&ratios), FLOOR_RATIO, true),
            ..free("share of the floor", tell(&ratios, short))
        });
    }
    let peers = peer_ratio(record);
    if let Some((name, ratio)) = &peers {
        rows.push(Row {
            gate: format!("{} x", short(PEER_RATIO.0)),
            goal: format!("{} x", short(PEER_RATIO.1)),
            state: State::of(Some(*ratio), PEER_RATIO, true),
            ..free("less CPU than a peer", format!("{} x ({name})", short(*ratio)))
        });
    }
    let allocations = number("allocations_per_packet");
    if !allocations.is_empty() || judged {
        rows.push(Row {
            gate: "0".to_owned(),
            goal: "0".to_owned(),
            state: State::of(allocations.iter().copied().reduce(f64::max), (0.0, 0.0), false),
            ..free("allocations per packet", tell(&allocations, |value| if value == 0.0 { "0".to_owned() } else { format!("{value:.6}") }))
        });
    }
    let latency = |point: &'static str| record.samples(move |figures: Figured<'_>| figures.latency_us(point));
    let points = ["p50", "p99", "p999", "max"].map(|point| median(&latency(point)));
    if points.iter().any(Option::is_some) {
        let points = points.map(|point| point.map_or_else(|| "-".to_owned(), micros));
        rows.push(free("latency p50 / p99 / p99.9 / max", points.join(" / ")));
    }
    let forwarder = record.find_number("forwarder_ratio");
    if forwarder.is_some() || case == "latency" {
        rows.push(Row {
            gate: format!("{} x", short(FORWARDER_RATIO.0)),
            goal: format!("{} x", short(FORWARDER_RATIO.1)),
            state: State::of(forwarder, FORWARDER_RATIO, false),
            ..free("added p99 over a bare forwarder's", forwarder.map_or_else(|| "-".to_owned(), |ratio| format!("{} x", short(ratio))))
        });
    }
    if let Some(bytes) = MEMORY_KEYS.iter().find_map(|key| record.find_number(key)) {
        rows.push(Row {
            gate: "128 KB".to_owned(),
            goal: "48 KB".to_owned(),
            state: State::of(Some(bytes), MEMORY_BYTES, false),
            ..free("memory per active subscriber", format!("{} KB", short(bytes / 1e3)))
        });
    }
    if let Some(train) = record.value().get("train_packets").map(Figured).filter(|train| train.number("mean").is_some()) {
        let text = |key| train.number(key).map_or_else(|| "-".to_owned(), short);
        rows.push(free("packets per train, mean / p50 / p99", format!("{} / {} / {}", text("mean"), text("p50"), text("p99"))));
    }
    rows
}

/// The loss with which a case's figures still count, as a share; `None` where it tells itself.
fn loss_allowed(case: &str) -> Option<f64> {
    match case {
        "fanout" | "session" | "audio" | "ndr" | "latency" | "relay" => Some(0.0),
        "pdr" => Some(0.005),
        "rooms" => Some(0.001),
        _ => None,
    }
}

/// A peer's CPU per packet over ours, and the peer's name.
fn peer_ratio(record: &Record) -> Option<(String, f64)> {
    let ratio = record.find_number("peer_ratio")?;
    Some((record.find("peer").and_then(Value::as_str).unwrap_or("peer").to_owned(), ratio))
}

struct Chart {
    /// Of its file.
    name: &'static str,
    title: String,
    svg: String,
}

fn charts_of(record: &Record) -> Vec<Chart> {
    [cpu_chart(record), load_chart(record), latency_chart(record)].into_iter().flatten().collect()
}

/// CPU per packet of everything that ran, beside the floor and what it allows.
fn cpu_chart(record: &Record) -> Option<Chart> {
    let mut bars = Vec::new();
    let bar = |name: &str, samples: &[f64], class: &'static str| {
        spread(samples).map(|[low, value, high]| Bar {
            name: name.to_owned(),
            value,
            range: (samples.len() > 1).then_some((low, high)),
            text: format!("{} ns", group(value)),
            class,
        })
    };
    let sides = record.list("figures").into_iter().find(|figure| figure.0["figure"] == "CPU ns per packet");
    for (side, name) in [("ours", "this build"), ("theirs", "the other")] {
        let runs = sides.and_then(|figure| figure.0[side]["runs"].as_array());
        let samples: Vec<f64> = runs.into_iter().flatten().filter_map(Value::as_f64).collect();
        bars.extend(bar(name, &samples, "a"));
    }
    let runs = record.list("runs");
    let mut named = runs.iter().filter_map(|run| Some((run.name()?, run.number("cpu_ns_per_packet")?))).peekable();
    if named.peek().is_some() {
        bars.extend(named.filter_map(|(name, cpu)| bar(name, &[cpu], "a")));
    } else {
        bars.extend(bar("pop", &record.samples(|figures| figures.number("cpu_ns_per_packet")), "a"));
    }
    let floor = record.samples(|figures| figures.floor_ns());
    let mut marks = Vec::new();
    if let Some([_, floor_ns, _]) = spread(&floor).filter(|_| FLOOR_CASES.contains(&record.case())) {
        bars.extend(bar("floor", &floor, "floor"));
        let mark = |name: &str, share: f64, class| Mark { name: format!("{name} {share}"), value: floor_ns / share, class };
        marks = vec![mark("goal", FLOOR_RATIO.1, "goal"), mark("gate", FLOOR_RATIO.0, "gate")];
    }
    if bars.len() < 2 {
        return None;
    }
    let note = "ns of the packet threads, kernel included; shorter is better. Floor: AES-GCM and GSO send alone.";
    let title = "CPU per delivered packet".to_owned();
    Some(Chart { name: "cpu", svg: charts::bars(&title, note, &bars, &marks), title })
}

/// Packets per second over what was raised.
fn load_chart(record: &Record) -> Option<Chart> {
    let (steps, key, axis) = steps_of(record)?;
    let allowed = loss_allowed(record.case()).unwrap_or(0.0);
    let mut points: Vec<(f64, f64, bool)> = steps
        .iter()
        .filter_map(|step| {
            Some((step.number(key)?, step.number("packets_per_second")?, step.number("loss").is_none_or(|loss| loss <= allowed)))
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() < 2 {
        return None;
    }
    let title = "Packets delivered per second".to_owned();
    let note = format!("a red ring: more than {} was lost", percent(allowed));
    let line = Line { name: "delivered".to_owned(), points };
    let svg = charts::lines(&title, &note, &Axes { x: axis, y: "packets/s", log: false }, &[line]);
    Some(Chart { name: "load", svg, title })
}

/// Percentiles over the load where it varied, else as bars.
fn latency_chart(record: &Record) -> Option<Chart> {
    const POINTS: [(&str, &str); 4] = [("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"), ("max", "max")];
    let title = "Latency".to_owned();
    if let Some((steps, key, axis)) = steps_of(record) {
        let line = |point: &str, name: &str| {
            let mut points: Vec<(f64, f64, bool)> =
                steps.iter().filter_map(|step| Some((step.number(key)?, step.latency_us(point)?, true))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line { name: name.to_owned(), points }
        };
        let all: Vec<Line> = POINTS.iter().map(|(point, name)| line(point, name)).filter(|line| line.points.len() > 1).collect();
        if !all.is_empty() {
            let note = "from the time at which a packet had to leave to its arrival; each line of the grid is ten times the one below";
            let svg = charts::lines(&title, note, &Axes { x: axis, y: "us", log: true }, &all);
            return Some(Chart { name: "latency", svg, title });
        }
    }
    let bars: Vec<Bar> = POINTS
        .iter()
        .filter_map(|(point, name)| {
            let samples = record.samples(|figures| figures.latency_us(point));
            let [low, value, high] = spread(&samples)?;
            let range = (samples.len() > 1).then_some((low, high));
            Some(Bar { name: (*name).to_owned(), value, range, text: micros(value), class: "a" })
        })
        .collect();
    let note = "from the time at which a packet had to leave to its arrival";
    (bars.len() > 1).then(|| Chart { name: "latency", svg: charts::bars(&title, note, &bars, &[]), title })
}

/// The steps of a case that raised something, and what.
fn steps_of(record: &Record) -> Option<(Vec<Figured<'_>>, &'static str, &'static str)> {
    let steps = record.list("steps");
    let varies = |key: &str| {
        steps.len() > 1
            && steps.iter().all(|step| step.number(key).is_some())
            && steps.iter().any(|step| step.number(key) != steps[0].number(key))
    };
    let (key, axis) = STEP_KEYS.iter().find(|(key, _)| varies(key))?;
    Some((steps, key, axis))
}

/// What a case does, for a reader who has never heard of it.
fn about(case: &str) -> &'static str {
    match case {
        "fanout" => {
            "Publishers send SRTP video into a node, which decrypts each packet once, encrypts it for every subscriber, and sends it in GSO trains. Publishers, subscribers and node are real from HTTP and DTLS to the last SRTP tag."
        }
        "session" => "One room in which every member gets what others publish, over as many workers as the command says.",
        "audio" => "Many small audio packets: subscribers are raised until packets are lost.",
        "latency" => {
            "Packets with their intended time of sending inside, at shares of the highest rate: what the target adds, waiting for a late generator included."
        }
        "ndr" => "The highest rate at which nothing at all is lost, searched as RFC 2544 does.",
        "pdr" => "The highest rate at which at most 0.5 % is lost, searched as RFC 2544 does.",
        "peer" => "The same fan-out through another server and through pop, in turn, with the same clients and sender.",
        "relay" => {
            "RTP into one worker, over a sealed link to a worker of another node, and out of that: the origin seals, the edge opens. Beside it the bare sender with the same packets and trains, and what a frame alone costs."
        }
        "rooms" => "One room whose members speak LiveKit's protocol: joins, memory, and how many it carries.",
        "compare" => "Two builds in turn on the same machine, the same command each time.",
        _ => "",
    }
}

fn page(record: &Record, name: &str, charts: &[Chart]) -> String {
    let mut out = String::new();
    let rows = rows(record);
    let _ = writeln!(out, "# pop-bench {}: {}\n", md(record.case()), md(&record.load()));
    let _ = writeln!(out, "{}\n", verdict(record, &rows));
    if !about(record.case()).is_empty() {
        let _ = writeln!(out, "{}\n", about(record.case()));
    }
    if record.case() == "compare" {
        out.push_str(&compare::table(record));
    } else {
        let _ = writeln!(out, "| figure | measured | gate | goal | |\n|---|---|---|---|---|");
        for Row { figure, measured, gate, goal, state } in &rows {
            let _ = writeln!(out, "| {figure} | {} | {gate} | {goal} | {} |", md(measured), state.words());
        }
    }
    out.push('\n');
    for chart in charts {
        let _ = writeln!(out, "![{}]({}-{}.svg)\n", chart.title, md(&name.replace(' ', "%20")), chart.name);
    }
    let beware = record.beware();
    if !beware.is_empty() {
        out.push_str("**Beware**\n\n");
        beware.iter().for_each(|sentence| {
            let _ = writeln!(out, "- {}", md(sentence));
        });
        out.push('\n');
    }
    let _ = writeln!(out, "**Where**\n\n| | |\n|---|---|");
    for (key, text) in
        [("measured", record.text("measured").unwrap_or("unknown")), ("commit of pop", record.text("commit").unwrap_or("unknown"))]
    {
        let _ = writeln!(out, "| {key} | {} |", md(text));
    }
    for part in ["machine", "config"] {
        let words = flat(&record.value()[part]).into_iter().filter(|(key, _)| key != "commit");
        let words: Vec<String> = words.map(|(key, value)| md(&format!("{} {value}", key.replace('_', " ")))).collect();
        let _ = writeln!(out, "| {part} | {} |", words.join(" · "));
    }
    if let Some(command) = record.text("command") {
        // Four blanks: no fence that a hostile command could close.
        let command = command.replace(|c: char| c.is_control(), " ");
        let _ = writeln!(out, "\n**Again**\n\n    cargo build --release --locked --workspace --bins\n    target/release/{command}");
    }
    out
}

/// The one sentence for those who read no further.
pub(crate) fn verdict(record: &Record, rows: &[Row]) -> String {
    if let Some(word) = record.value()["detail"]["verdict"].as_str() {
        let figures = record.list("figures").into_iter().filter(|figure| figure.0["verdict"] == word && word != "noise");
        let names: Vec<&str> = figures.filter_map(|figure| figure.0["figure"].as_str()).collect();
        let names = if names.is_empty() { String::new() } else { format!(": {}", md(&names.join(", "))) };
        return format!("This build against the other: **{}**{names}.", md(word));
    }
    let find = |figure: &str| rows.iter().find(|row| row.figure == figure);
    let mut parts = Vec::new();
    let median = |key: &'static str| spread(&record.samples(|figures| figures.number(key))).map(|[_, median, _]| median);
    if let Some(held) = record.held() {
        parts.push(format!("**{held}** without excess loss"));
    }
    if let Some(rate) = median("packets_per_second") {
        let loss = match median("loss") {
            Some(0.0) => ", none lost".to_owned(),
            Some(loss) => format!(", {} lost", percent(loss)),
            None => String::new(),
        };
        parts.push(format!("**{} packets/s** delivered{loss}", group(rate)));
    }
    if let Some(cpu) = median("cpu_ns_per_packet") {
        parts.push(format!("**{} ns** of CPU each", group(cpu)));
    }
    if let Some((row, ratio)) = find("share of the floor").zip(median("floor_ratio")) {
        parts.push(format!("**{}** of the floor ({})", short(ratio), row.state.words().trim_matches('*')));
    }
    let latency = |point: &'static str| spread(&record.samples(|figures| figures.latency_us(point))).map(|[_, median, _]| median);
    if let (Some(p50), Some(p99)) = (latency("p50"), latency("p99")) {
        parts.push(format!("latency p50 {}, p99 {}", micros(p50), micros(p99)));
    }
    let missed: Vec<&str> = rows.iter().filter(|row| row.state == State::Missed).map(|row| row.figure).collect();
    let missed = if missed.is_empty() { String::new() } else { format!(" Missed: {}.", missed.join(", ")) };
    if parts.is_empty() { format!("No figure.{missed}") } else { format!("{}.{missed}", parts.join("; ")) }
}

/// A nested object as `key`, `key of key`.
fn flat(value: &Value) -> Vec<(String, String)> {
    let Value::Object(map) = value else { return Vec::new() };
    map.iter()
        .flat_map(|(key, value)| match value {
            Value::Object(_) => flat(value).into_iter().map(|(inner, text)| (format!("{key} {inner}"), text)).collect(),
            Value::String(text) => vec![(key.clone(), text.clone())],
            Value::Null => Vec::new(),
            Value::Array(list) => vec![(
                key.clone(),
                list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect::<Vec<_>>().join(", "),
            )],
            other => vec![(key.clone(), other.to_string())],
        })
        .collect()
}

/// Text as Markdown that stays text: no cell ends early, no tag opens, no link or picture forms.
pub(crate) fn md(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '|' | '[' | ']' | '!' | '#' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
