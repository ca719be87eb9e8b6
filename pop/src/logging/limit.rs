//! A token bucket per place in the code: what a remote can trigger cannot fill the disk, and what is held back is counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::AUDIT;

/// How many lines a place may write at once, and per second after that.
#[derive(Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Ten lines per second are as many as a person reads.
const LINES: Rate = Rate { burst: 100.0, per_second: 10.0 };

/// The audit is to be complete: only more joins than a node can do are held back.
const AUDIT_LINES: Rate = Rate { burst: 10_000.0, per_second: 1_000.0 };

/// The buckets of all places that have written a line; their number is bounded by the code.
#[derive(Default)]
pub(super) struct Limit {
    places: Mutex<HashMap<Identifier, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
    place: String,
    /// Since the last report.
    held_back: u64,
    held_back_total: u64,
}

impl Limit {
    /// Whether this line is written.
    fn admit(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        let rate = if metadata.target() == AUDIT { AUDIT_LINES } else { LINES };
        let mut places = self.places();
        let bucket = places.entry(metadata.callsite()).or_insert_with(|| {
            let place = format!("{}:{}", metadata.file().unwrap_or(metadata.target()), metadata.line().unwrap_or_default());
            Bucket { tokens: rate.burst, filled: now, place, held_back: 0, held_back_total: 0 }
        });
        bucket.tokens += now.saturating_duration_since(bucket.filled).as_secs_f64() * rate.per_second;
        bucket.tokens = bucket.tokens.min(rate.burst);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return true;
        }
        bucket.held_back += 1;
        bucket.held_back_total += 1;
        false
    }

    /// Each place with what it held back since the last call.
    pub(super) fn take(&self) -> Vec<(String, u64)> {
        let mut places = self.places();
        let held_back = places.values_mut().filter(|bucket| bucket.held_back > 0);
        held_back.map(|bucket| (bucket.place.clone(), std::mem::take(&mut bucket.held_back))).collect()
    }

    /// All that was ever held back.
    pub(super) fn total(&self) -> u64 {
        self.places().values().map(|bucket| bucket.held_back_total).sum()
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<Identifier, Bucket>> {
        self.places.lock().expect("nothing panics while the buckets are held")
    }
}

/// Asks the buckets about every line that the filter lets through.
pub(super) struct LimitLayer(pub(super) Arc<Limit>);

impl<S: Subscriber> Layer<S> for LimitLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.admit(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::callsite::Callsite;

    use super::*;

    /// A place is told from another by its address, so it must have one.
    struct Place(#[allow(dead_code)] u8);

    static PLACE: Place = Place(1);
    static LINE: Metadata<'static> = tracing::metadata! {
        name: "line", target: "pop", level: tracing::Level::INFO, fields: &[], callsite: &PLACE, kind: tracing::metadata::Kind::EVENT,
    };
    static OTHER: Place = Place(2);
    static AUDIT_LINE: Metadata<'static> = tracing::metadata! {
        name: "line", target: AUDIT, level: tracing::Level::INFO, fields: &[], callsite: &OTHER, kind: tracing::metadata::Kind::EVENT,
    };

    impl Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            &LINE
        }
    }

    #[test]
    fn a_place_that_floods_is_held_back_counted_and_heard_again() {
        let (limit, start) = (Limit::default(), Instant::now());
        let written = (0..1_000).filter(|_| limit.admit(&LINE, start)).count();
        assert_eq!((written, limit.total()), (100, 900));
        assert_eq!(limit.take().iter().map(|(_, lines)| *lines).collect::<Vec<_>>(), [900]);
        assert!(limit.take().is_empty(), "a report is made once");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| limit.admit(&LINE, later)).count(), 10);
        assert_eq!(limit.total(), 900 + 990);
    }

    #[test]
    fn a_place_that_floods_writes_its_burst_and_others_write_on() {
        use tracing_subscriber::layer::SubscriberExt;

        #[derive(Clone, Default)]
        struct Written(Arc<Mutex<Vec<u8>>>);

        impl std::io::Write for Written {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("one thread").extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let (written, limit) = (Written::default(), Arc::new(Limit::default()));
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(LimitLayer(Arc::clone(&limit))).with(lines);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..300 {
                tracing::info!("a stranger knocks");
            }
            tracing::info!("something else");
        });
        let text = String::from_utf8(written.0.lock().expect("one thread").clone()).expect("text");
        let count = |words: &str| text.lines().filter(|line| line.contains(words)).count() as u64;
        // A second or two may pass on a busy machine: ten lines each.
        assert!((100..150).contains(&count("knocks")) && count("something else") == 1, "{text}");
        assert_eq!(count("knocks") + limit.total(), 300);
    }

    #[test]
    fn a_flood_of_lines_holds_no_audit_line_back() {
        let (limit, now) = (Limit::default(), Instant::now());
        for _ in 0..1_000 {
            limit.admit(&LINE, now);
        }
        assert!((0..10_000).all(|_| limit.admit(&AUDIT_LINE, now)));
        assert!(!limit.admit(&AUDIT_LINE, now), "the audit has its bound too");
    }
}
