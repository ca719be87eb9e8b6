//! How an event becomes a line: text for people or JSON for machines, as of now.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::AUDIT;

/// Both formats, and which one is wanted.
pub(super) struct Lines {
    json: Arc<AtomicBool>,
    text: Format<Full>,
    /// Text with the target, which tells an audit line from the others.
    audit: Format<Full>,
    object: Format<Json>,
}

impl Lines {
    /// JSON while `json` is true, else text.
    pub(super) fn new(json: Arc<AtomicBool>) -> Self {
        let text = Format::default().with_target(false);
        let object = Format::default().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { json, text, audit: Format::default(), object }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.json.load(Ordering::Relaxed) {
            self.object.format_event(context, writer, event)
        } else if event.metadata().target() == AUDIT {
            self.audit.format_event(context, writer, event)
        } else {
            self.text.format_event(context, writer, event)
        }
    }
}
