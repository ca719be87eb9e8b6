//! Results as files: reading the JSON of any case, its name in `bench/results`, and numbers for people.
//!
//! A result lies in `DATE-NAME.json`, such as `2026-11-26-fanout-1x200.json`. The newest date of a name counts; older ones stay as history.

pub(crate) mod all;
pub(crate) mod table;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// The keys that say what ran, in the order in which people read them.
const LOAD_KEYS: &[&str] = &[
    "publishers",
    "participants",
    "members",
    "speakers",
    "subscribers",
    "streams",
    "bitrate",
    "packet_size",
    "size",
    "fps",
    "pace",
    "backend",
    "duration_s",
];

/// Something with the figures of `result.rs`: a whole result, or one entry of its `runs`, `repeats` or `steps`.
#[derive(Clone, Copy)]
pub(crate) struct Figured<'a>(pub(crate) &'a Value);

impl<'a> Figured<'a> {
    /// A figure by its key; `None` where it is null or missing.
    pub(crate) fn number(self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64().filter(|value| value.is_finite())
    }

    /// Microseconds at `p50`, `p99`, `p999` or `max`.
    pub(crate) fn latency_us(self, point: &str) -> Option<f64> {
        Figured(self.0.get("latency_us")?).number(point)
    }

    /// CPU time of the floor per packet, in ns: told, or what ratio and CPU time say. `None` when the floor was off: then there is no
    /// ratio, and what the floor took says nothing.
    pub(crate) fn floor_ns(self) -> Option<f64> {
        let ratio = self.number("floor_ratio")?;
        self.number("floor_ns_per_packet").or_else(|| Some(ratio * self.number("cpu_ns_per_packet")?))
    }

    /// What it is called among its neighbours.
    pub(crate) fn name(self) -> Option<&'a str> {
        self.0.get("name")?.as_str()
    }
}

/// One result.
pub(crate) struct Record(Value);

impl Record {
    /// Reads a case's JSON. The error is a sentence.
    pub(crate) fn read(path: &Path) -> Result<Record, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("{}: no JSON: {e}", path.display()))?;
        Record::new(value).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Takes what a case wrote.
    pub(crate) fn new(value: Value) -> Result<Record, String> {
        if value.get("case").and_then(Value::as_str).is_none() {
            return Err("no result of pop-bench: it has no `case`".to_owned());
        }
        Ok(Record(value))
    }

    pub(crate) fn value(&self) -> &Value {
        &self.0
    }

    pub(crate) fn case(&self) -> &str {
        self.text("case").unwrap_or_default()
    }

    /// A text at the top level: `case`, `commit`, `command`, `measured`.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    pub(crate) fn figures(&self) -> Figured<'_> {
        Figured(&self.0)
    }

    /// The entries of a list in `detail`.
    pub(crate) fn list(&self, key: &str) -> Vec<Figured<'_>> {
        self.0["detail"][key].as_array().map_or_else(Vec::new, |entries| entries.iter().map(Figured).collect())
    }

    /// The first value of that key anywhere in `detail` or `config`: cases nest their own parts as they like.
    pub(crate) fn find(&self, key: &str) -> Option<&Value> {
        find(&self.0["detail"], key).or_else(|| find(&self.0["config"], key))
    }

    pub(crate) fn find_number(&self, key: &str) -> Option<f64> {
        self.find(key)?.as_f64()
    }

    /// The figure, of each repeat when there are several.
    pub(crate) fn samples(&self, read: impl Fn(Figured<'_>) -> Option<f64>) -> Vec<f64> {
        let repeats: Vec<f64> = self.list("repeats").into_iter().filter_map(&read).collect();
        if repeats.is_empty() { read(self.figures()).into_iter().collect() } else { repeats }
    }

    /// What ran, in words: `1 publisher, 200 subscribers, 1.5 Mb/s, 1,100 B, 30 frames/s`.
    pub(crate) fn load(&self) -> String {
        let config = &self.0["config"];
        let parts = LOAD_KEYS.iter().filter_map(|key| {
            let value = config.get(key)?;
            let Some(number) = value.as_f64() else { return value.as_str().map(|text| format!("{key} {text}")) };
            let plural = if number == 1.0 { "" } else { "s" };
            Some(match *key {
                "publishers" | "participants" | "members" | "speakers" | "subscribers" | "streams" => {
                    format!("{} {}{plural}", group(number), key.trim_end_matches('s'))
                }
                "bitrate" => format!("{} each", bits(number)),
                "packet_size" | "size" => format!("{} B", group(number)),
                "fps" => format!("{} frames/s", group(number)),
                "duration_s" => format!("{} s", short(number)),
                _ => format!("{key} {}", short(number)),
            })
        });
        parts.collect::<Vec<_>>().join(", ")
    }

    /// The most that a case with a growing room or audience carried: `1,010 members`.
    pub(crate) fn held(&self) -> Option<String> {
        let (key, what) = if self.case() == "audio" { ("subscribers", "subscribers") } else { ("members_without_loss", "members") };
        self.0["detail"][key].as_f64().map(|count| format!("{} {what}", group(count)))
    }

    /// CPU, cores, kernel and back end, in one line.
    pub(crate) fn machine(&self) -> String {
        let machine = &self.0["machine"];
        let text = |key: &str| machine.get(key).and_then(Value::as_str).map(str::to_owned);
        let cores = machine.get("cores").and_then(Value::as_u64).map(|cores| format!("{cores} cores"));
        let kernel = text("kernel").map(|kernel| format!("Linux {kernel}"));
        [text("cpu"), cores, kernel, text("backend")].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// What a reader has to know before the figures count.
    pub(crate) fn beware(&self) -> Vec<String> {
        let told = self.0["detail"]["beware"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let mut sentences: Vec<String> = told.collect();
        let mut add = |words: &str, sentence: String| {
            // A case that says it in its own words is not repeated.
            if !sentences.iter().any(|told| told.contains(words)) {
                sentences.push(sentence);
            }
        };
        if self.find("oversubscribed").is_some_and(|value| value.as_bool() == Some(true)) {
            add("oversubscribed", "oversubscribed: workers and the load generator shared a core; the figure is a lower bound".to_owned());
        }
        if let Some(drops) = self.find_number("generator_drops").filter(|drops| *drops > 0.0) {
            add("generator", format!("the load generator lost {} packets in its own sockets: its limit, not the node's", group(drops)));
        }
        if let Some(late_ms) = self.find_number("overrun_us").map(|us| us / 1e3).filter(|ms| *ms > 20.0) {
            add("last packet", format!("the last packet came {late_ms:.0} ms after its frame: the node did not keep up with this rate"));
        }
        let measures_floor = self.figures().number("cpu_ns_per_packet").is_some() && FLOOR_CASES.contains(&self.case());
        if measures_floor && self.figures().number("floor_ratio").is_none() {
            add("floor off", "floor off: the floor program ran slower than its known price, so there is no ratio".to_owned());
        }
        if self.text("commit").is_none_or(|commit| commit == "unknown" || commit.ends_with("-dirty")) {
            add("commit", "the build has no clean commit: nobody can build the same again".to_owned());
        }
        sentences
    }
}

/// Cases that run the floor program beside the node.
pub(crate) const FLOOR_CASES: &[&str] = &["fanout", "session", "audio"];

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

/// `2026-11-26` and `fanout-1x200` of `2026-11-26-fanout-1x200.json`; `None` for a file that is named otherwise.
pub(crate) fn split_name(path: &Path) -> Option<(&str, &str)> {
    let (date, name) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_at_checked(10)?;
    let pattern = |(i, c): (usize, char)| if i == 4 || i == 7 { c == '-' } else { c.is_ascii_digit() };
    let name = name.strip_prefix('-').filter(|name| !name.is_empty())?;
    date.chars().enumerate().all(pattern).then_some((date, name))
}

/// Now, as `2026-11-26T22:30:00Z`.
pub(crate) fn now_utc() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Unix seconds as a date: days to the civil calendar by eras of 400 years that start in March.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// The command as others can repeat it: no file of this machine, no secret.
pub(crate) fn spoken_command(arguments: impl IntoIterator<Item = String>) -> String {
    let mut words = vec!["pop-bench".to_owned()];
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(word) = arguments.next() {
        let (flag, inline) = word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value.to_owned())));
        match flag {
            "--json" | "--report" => drop(inline.or_else(|| arguments.next())),
            "--token" => {
                drop(inline.or_else(|| arguments.next()));
                words.push("--token TOKEN".to_owned());
            }
            _ => words.push(quote(&match inline {
                Some(value) => format!("{flag}={}", without_folder(&value)),
                None => without_folder(&word),
            })),
        }
    }
    words.join(" ")
}

fn without_folder(word: &str) -> String {
    let path = Path::new(word);
    let name = if path.is_absolute() { path.file_name().and_then(|name| name.to_str()) } else { None };
    name.unwrap_or(word).to_owned()
}

/// For a shell, where it needs it.
fn quote(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=.,:/@%+".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// `34,100`: whole, thousands apart.
pub(crate) fn group(value: f64) -> String {
    if value.abs() >= 1e15 {
        return format!("{value:.0e}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 && digits != "0" { format!("-{text}") } else { text }
}

/// Three digits that count, and no more zeros than needed: `0.462`, `4.97`, `1,017`.
pub(crate) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => return group(value),
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A share as per cent; a loss that is not zero never reads as zero.
pub(crate) fn percent(share: f64) -> String {
    let per_cent = share * 100.0;
    if per_cent != 0.0 && per_cent.abs() < 0.001 { "< 0.001 %".to_owned() } else { format!("{} %", short(per_cent)) }
}

/// Bits per second.
pub(crate) fn bits(value: f64) -> String {
    match value {
        _ if value >= 1e9 => format!("{} Gb/s", short(value / 1e9)),
        _ if value >= 1e6 => format!("{} Mb/s", short(value / 1e6)),
        _ => format!("{} kb/s", short(value / 1e3)),
    }
}

/// Microseconds, as milliseconds where they are long.
pub(crate) fn micros(value: f64) -> String {
    if value >= 1_000.0 { format!("{} ms", short(value / 1e3)) } else { format!("{} us", short(value)) }
}

/// Least, middle and largest; `None` of nothing.
pub(crate) fn spread(samples: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
    Some([low, median, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let dates = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        dates.iter().for_each(|(seconds, date)| assert_eq!(utc(*seconds), *date));
    }

    #[test]
    fn a_command_names_no_file_of_this_machine_and_no_secret() {
        let command = |text: &str| spoken_command(text.split(' ').map(str::to_owned));
        assert_eq!(command("/opt/x/pop-bench fanout --json /a/b.json --subscribers 2"), "pop-bench fanout --subscribers 2");
        assert_eq!(command("b fanout --token secret --pop /opt/old/pop --json=x"), "pop-bench fanout --token TOKEN --pop pop");
        assert_eq!(command("b fanout --token=secret --pop=/opt/old/pop"), "pop-bench fanout --token TOKEN --pop=pop");
        assert_eq!(command("b shaper --wire a;b"), "pop-bench shaper --wire 'a;b'");
    }

    #[test]
    fn names_have_a_date() {
        let split = |name: &'static str| split_name(Path::new(name));
        assert_eq!(split("bench/results/2026-11-26-fanout-1x200.json"), Some(("2026-11-26", "fanout-1x200")));
        assert!(
            ["fanout.json", "2026-11-26.json", "2026-11-26-.json", "2026-1x-26-a.json", "2026-11-26-a.md"]
                .iter()
                .all(|n| split(n).is_none())
        );
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([group(0.0), group(999.6), group(1_234_567.0), group(-1_000.0)], ["0", "1,000", "1,234,567", "-1,000"]);
        assert_eq!(
            [short(0.4624), short(4.97), short(16.25), short(1_017.2), short(0.0), short(5.0)],
            ["0.462", "4.97", "16.2", "1,017", "0", "5"]
        );
        assert_eq!([percent(0.0), percent(1e-7), percent(0.005), percent(0.95)], ["0 %", "< 0.001 %", "0.5 %", "95 %"]);
        assert_eq!([bits(1.5e6), bits(64e3), bits(4.95e9)], ["1.5 Mb/s", "64 kb/s", "4.95 Gb/s"]);
        assert_eq!([micros(999.0), micros(1_210.4)], ["999 us", "1.21 ms"]);
        assert_eq!((spread(&[3.0, 1.0]), spread(&[3.0, 1.0, 2.0]), spread(&[])), (Some([1.0, 2.0, 3.0]), Some([1.0, 2.0, 3.0]), None));
    }
}
