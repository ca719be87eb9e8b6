//! Logs go to stderr, one event per line; stdout carries what scripts read. Format and filter can change while the node runs.
//!
//! ```text
//! event -> filter (log.level, or what an operator asked for) -> limit (a bucket per place in the code) -> text or JSON -> stderr
//! ```

mod limit;
mod lines;

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogConfig, LogFormat, LogLevel};
use limit::{Limit, LimitLayer};
use lines::Lines;

/// Target of the lines that say who did what: join, leave, grant, reload and the like. They are written at every level.
pub const AUDIT: &str = "audit";

/// Longest filter that is read, in bytes.
const FILTER_LEN_MAX: usize = 1_024;

/// What can be changed about the log of this process. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    shared: Arc<Shared>,
}

struct Shared {
    json: Arc<AtomicBool>,
    limit: Arc<Limit>,
    /// The filter as it was written.
    written: Mutex<String>,
}

/// Starts logging. Called once, before anything that could have something to say.
pub fn start(config: &LogConfig) -> LogControl {
    let written = filter_of_level(config.level);
    let (filter, handle) = reload::Layer::new(directives(written).expect("a level is a filter"));
    let json = Arc::new(AtomicBool::new(config.format == LogFormat::Json));
    let limit = Arc::new(Limit::default());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .event_format(Lines::new(Arc::clone(&json)));
    tracing_subscriber::registry().with(filter).with(LimitLayer(Arc::clone(&limit))).with(lines).init();
    LogControl { filter: handle, shared: Arc::new(Shared { json, limit, written: Mutex::new(written.to_owned()) }) }
}

/// `log.level` as a filter.
pub fn filter_of_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

impl LogControl {
    /// The filter in force, as it was written.
    pub fn filter(&self) -> String {
        self.written().clone()
    }

    /// Takes a level (`debug`) or directives (`pop=debug,pop_dataplane=trace`) from now on; the former filter. The error says
    /// what is wrong with the new one.
    pub fn set_filter(&self, text: &str) -> Result<String, String> {
        let filter = directives(text)?;
        self.filter.reload(filter).map_err(|error| format!("the filter cannot be changed: {error}"))?;
        Ok(std::mem::replace(&mut *self.written(), text.trim().to_owned()))
    }

    /// Takes a format from now on.
    pub fn set_format(&self, format: LogFormat) {
        self.shared.json.store(format == LogFormat::Json, Ordering::Relaxed);
    }

    /// The format in force.
    pub fn format(&self) -> LogFormat {
        if self.shared.json.load(Ordering::Relaxed) { LogFormat::Json } else { LogFormat::Text }
    }

    /// Lines that were not written because their place in the code had too many to say.
    pub fn suppressed(&self) -> u64 {
        self.shared.limit.total()
    }

    /// Says, a line per place, what was held back since the last report.
    pub fn report_suppressed(&self) {
        for (place, lines) in self.shared.limit.take() {
            tracing::warn!(lines, place, "lines were held back");
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, String> {
        self.shared.written.lock().expect("nothing panics while the text is held")
    }
}

/// Reads a filter. A bare level is ours alone: libraries are quieter than we are, since a peer's nonsense makes them warn.
fn directives(text: &str) -> Result<EnvFilter, String> {
    let text = text.trim();
    let known = "a level (error, warn, info, debug, trace) or directives such as \"info,pop_dataplane=debug\"";
    if text.is_empty() || text.len() > FILTER_LEN_MAX || text.chars().any(char::is_control) {
        return Err(format!("a filter is {known}, at most {FILTER_LEN_MAX} bytes"));
    }
    let whole = match text {
        "error" | "warn" | "info" | "debug" | "trace" => format!("error,pop={text},pop_dataplane={text},pop_uring={text}"),
        _ => text.to_owned(),
    };
    // EnvFilter takes a word that is no level for a target, and turns everything of that name on.
    let named = |directive: &str| directive.contains('=') || directive.contains('[') || directive.parse::<tracing::Level>().is_ok();
    if let Some(wrong) = whole.split(',').map(str::trim).find(|directive| !named(directive) && *directive != "off") {
        return Err(format!("{wrong:?} is no filter: write {known}"));
    }
    EnvFilter::builder().parse(format!("{whole},{AUDIT}=info")).map_err(|error| format!("{text:?} is no filter ({error}): write {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_directives_and_keeps_the_audit() {
        for (text, shown) in
            [("debug", "pop=debug"), ("off", "off"), ("info,pop_dataplane=trace", "pop_dataplane=trace"), (" warn ", "pop=warn")]
        {
            let filter = directives(text).expect("it is right").to_string();
            assert!(filter.contains(shown) && filter.contains("audit=info"), "{text:?} became {filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_a_sentence() {
        let long = "a=info,".repeat(200);
        for text in ["", "loud", "pop=loud", "info,,debug\n", "info,loud", &long] {
            let sentence = directives(text).expect_err("it is wrong");
            assert!(sentence.contains("a level (error, warn, info, debug, trace)"), "{text:?}: {sentence}");
        }
    }
}
