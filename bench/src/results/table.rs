//! `pop-bench table`: README's table is what the newest results say, and a test holds it to that.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::report::{self, State, md};
use crate::results::{Figured, Record, group, micros, percent, short, split_name, spread};

/// What stands between these lines is made; the rest of the page is written by hand.
const BEGIN: &str = "<!-- made by pop-bench table: begin -->";
const END: &str = "<!-- made by pop-bench table: end -->";

/// `pop-bench table`.
#[derive(Debug, clap::Args)]
pub(crate) struct TableArgs {
    /// The folder of `DATE-NAME.json` files.
    #[arg(default_value = "bench/results")]
    folder: PathBuf,
    /// The page that has the markers.
    #[arg(long, default_value = "README.md")]
    page: PathBuf,
    /// Write nothing; exit with 1 when the page says something else than the results.
    #[arg(long)]
    check: bool,
}

/// Writes the table into the page, or checks it.
pub(crate) fn run(args: &TableArgs) -> Result<(), String> {
    let page = std::fs::read_to_string(&args.page).map_err(|e| format!("{}: {e}", args.page.display()))?;
    let made = replace(&page, &table(&newest(&args.folder)?)).map_err(|e| format!("{}: {e}", args.page.display()))?;
    if made == page {
        return Ok(());
    }
    if args.check {
        let (page, folder) = (args.page.display(), args.folder.display());
        return Err(format!("{page} does not say what {folder} says: run pop-bench table {folder} --page {page}"));
    }
    std::fs::write(&args.page, made).map_err(|e| format!("{}: {e}", args.page.display()))
}

/// The newest result of each name, by name, with its date.
fn newest(folder: &Path) -> Result<BTreeMap<String, (String, Record)>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // By date within a name, since the date comes first.
    paths.sort();
    let mut found = BTreeMap::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let (date, name) = split_name(path).ok_or_else(|| format!("{}: a result is named DATE-NAME.json", path.display()))?;
        found.insert(name.to_owned(), (date.to_owned(), Record::read(path)?));
    }
    Ok(found)
}

fn replace(page: &str, table: &str) -> Result<String, String> {
    let missing = || format!("the lines {BEGIN} and {END} are missing");
    let (before, rest) = page.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

fn table(results: &BTreeMap<String, (String, Record)>) -> String {
    let mut out = String::from(
        "| result | load | delivered/s | loss | CPU per packet | floor | share of it | allocations | p50 / p99 |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, (_, record)) in results {
        let held = record.held().map(|held| format!("; held {held}"));
        let load = record.load() + &held.unwrap_or_default();
        let row = Cells::of(record.figures(), |read| record.samples(read));
        row.write(&mut out, &md(name), &md(&load));
        let runs = record.list("runs");
        if runs.len() > 1 {
            for run in runs {
                Cells::of(run, |read| read(run).into_iter().collect()).write(
                    &mut out,
                    &format!("– {}", md(run.name().unwrap_or("run"))),
                    "",
                );
            }
        }
    }
    let states = |state: State| results.values().flat_map(|(_, record)| report::rows(record)).filter(|row| row.state == state).count();
    let _ = writeln!(
        out,
        "\nOf what DESIGN promises about these figures, {} reach the goal, {} the gate, {} miss it, and {} were not measured.",
        states(State::Goal),
        states(State::Gate),
        states(State::Missed),
        states(State::Unknown)
    );
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, (date, record)) in results {
        let commit = record.text("commit").unwrap_or("unknown");
        places.entry(format!("{}, commit {}, {date}", md(&record.machine()), md(commit))).or_default().push(name);
    }
    for (place, names) in &places {
        let whose = if places.len() == 1 { String::new() } else { format!(" ({})", md(&names.join(", "))) };
        let _ = writeln!(out, "Machine: {place}{whose}.");
    }
    let beware: Vec<String> = results
        .iter()
        .flat_map(|(name, (_, record))| record.beware().into_iter().map(move |sentence| format!("- {}: {}", md(name), md(&sentence))))
        .collect();
    if !beware.is_empty() {
        let _ = writeln!(out, "\nBeware:\n\n{}", beware.join("\n"));
    }
    out.push_str("\n```sh\n");
    for (name, (_, record)) in results {
        if let Some(command) = record.text("command") {
            let command = command.replace(|c: char| c.is_control() || c == '`', " ");
            let _ = writeln!(out, "target/release/{command}   # {name}");
        }
    }
    out.push_str("```\n");
    out
}

struct Cells([String; 7]);

impl Cells {
    /// `samples` reads a figure of each repeat.
    fn of(figures: Figured<'_>, samples: impl Fn(fn(Figured<'_>) -> Option<f64>) -> Vec<f64>) -> Cells {
        let cell = |read: fn(Figured<'_>) -> Option<f64>, write: &dyn Fn(f64) -> String| {
            let samples = samples(read);
            match spread(&samples) {
                None => "-".to_owned(),
                Some([low, median, high]) if samples.len() > 1 && write(low) != write(high) => {
                    format!("{} ({} to {})", write(median), write(low), write(high))
                }
                Some([_, median, _]) => write(median),
            }
        };
        let latency = ["p50", "p99"].map(|point| figures.latency_us(point).map(micros));
        Cells([
            cell(|figures| figures.number("packets_per_second"), &group),
            cell(|figures| figures.number("loss"), &percent),
            cell(|figures| figures.number("cpu_ns_per_packet"), &|ns| format!("{} ns", group(ns))),
            cell(|figures| figures.floor_ns(), &|ns| format!("{} ns", group(ns))),
            cell(|figures| figures.number("floor_ratio"), &short),
            cell(|figures| figures.number("allocations_per_packet"), &short),
            if let [Some(p50), Some(p99)] = latency { format!("{p50} / {p99}") } else { "-".to_owned() },
        ])
    }

    fn write(&self, out: &mut String, name: &str, load: &str) {
        let _ = writeln!(out, "| {name} | {load} | {} |", self.0.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let made = replace(&page, "new\n").expect("it has markers");
        assert_eq!(made, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(replace(&made, "new\n"), Ok(made.clone()), "again is the same");
        assert!(replace("no markers", "new").is_err() && replace(BEGIN, "new").is_err());
    }

    #[test]
    fn the_newest_result_of_a_name_counts() {
        let folder = std::env::temp_dir().join(format!("pop-bench-table-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let put = |name: &str, rate: u32| {
            std::fs::write(folder.join(name), format!("{{\"case\": \"fanout\", \"packets_per_second\": {rate}}}"))
                .expect("it can be written");
        };
        put("2026-11-26-a.json", 2);
        put("2025-12-31-a.json", 1);
        put("2025-01-01-b.json", 3);
        let results = newest(&folder).expect("all are results");
        let rates: Vec<_> =
            results.iter().map(|(name, (date, r))| (name.as_str(), date.as_str(), r.figures().number("packets_per_second"))).collect();
        assert_eq!(rates, [("a", "2026-11-26", Some(2.0)), ("b", "2025-01-01", Some(3.0))]);
        put("fanout.json", 4);
        assert!(newest(&folder).is_err_and(|sentence| sentence.contains("DATE-NAME.json")));
        std::fs::remove_dir_all(&folder).expect("it was made here");
    }
}
