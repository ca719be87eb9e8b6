//! What a panic says. Whether it also ends the process is decided where it happens: workers and rooms do, a library that works
//! for one connection does not.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::token::unix_now_s;

/// At most one line per this time for panics that may have been provoked from outside.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// From now on a panic is one clear line.
pub fn install_hook() {
    let last_line_s = AtomicU64::new(0);
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("without a name");
        let now_s = unix_now_s();
        // A worker's panic is its last word; elsewhere a peer might repeat it.
        let quiet = last_line_s.swap(now_s, Ordering::Relaxed).saturating_add(LINE_INTERVAL.as_secs()) > now_s;
        if thread.starts_with("pop-worker") || !quiet {
            tracing::error!(thread, place = place(panic), "a bug: {}", message(panic));
        }
    }));
}

fn place(panic: &PanicHookInfo<'_>) -> String {
    panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or(formatted).unwrap_or("a panic without words")
}
