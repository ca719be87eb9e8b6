//! What Prometheus scrapes. Names have base units; labels have few values and never a user's.

mod bus;
mod data;
mod deaths;
mod dtls;
mod http;
mod mesh;
mod overlay;
mod probe;
mod process;
mod selftest;
mod signal;
mod vip;
mod workers;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pop_session::SessionView;
pub use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use bus::BusCollector;
pub use data::DataCollector;
pub use deaths::{DeathCollector, Deaths};
pub use dtls::DtlsCollector;
pub use http::HttpCollector;
pub use mesh::MeshCollector;
pub use overlay::{Overlay, OverlayCollector};
pub use probe::ProbeCollector;
pub use selftest::SelfTestCollector;
pub use signal::SignalCollector;
pub use vip::VipCollector;
pub use workers::{RelayedBytes, WorkerCollector};

use crate::reload::LastReload;

/// How a scraper wants its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4, which `promtool check metrics` and every older scraper read.
    Prometheus,
}

impl Exposition {
    /// What an `Accept` header asks for: Prometheus text unless it names OpenMetrics.
    pub fn negotiate(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Exposition::OpenMetrics } else { Exposition::Prometheus }
    }

    /// Value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Seconds from a participant's request to its media: shared by the rooms, which measure, and [`Metrics`], which tells.
#[derive(Clone, Debug)]
pub struct JoinSeconds(Histogram);

impl Default for JoinSeconds {
    /// 4 ms to 33 s by doubling: DTLS on loopback to the longest that a client may take.
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.004, 2.0, 14)))
    }
}

impl JoinSeconds {
    /// A participant is connected `after` it was let in.
    pub fn observe(&self, after: Duration) {
        self.0.observe(after.as_secs_f64());
    }
}

/// The appliance's metrics. Everything here is shared and has interior counters; a clone of the `Arc` may count anywhere off
/// the packet path. The workers' own counters are read at each scrape.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ready: Gauge,
    reload_successful: Gauge,
    reload_success_at: Gauge,
    suppressed_lines: Counter,
    draining: Gauge,
    sessions: Gauge,
    participants: Family<Participants, Gauge>,
    tracks: Family<Tracks, Gauge>,
    http_requests: Family<HttpRequest, Counter>,
    http_seconds: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Participants {
    kind: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tracks {
    direction: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpRequest {
    route: String,
    code: u16,
}

impl Metrics {
    /// Registers everything; `backend` is how packets enter and leave the kernel, `collectors` are read at each scrape.
    pub fn new(backend: &str, joins: &JoinSeconds, collectors: Vec<Box<dyn Collector>>) -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::default(),
            ready: Gauge::default(),
            reload_successful: Gauge::default(),
            reload_success_at: Gauge::default(),
            suppressed_lines: Counter::default(),
            draining: Gauge::default(),
            sessions: Gauge::default(),
            participants: Family::default(),
            tracks: Family::default(),
            http_requests: Family::default(),
            // 1 ms to 8 s by doubling: an answer from memory to the slowest that still ends within the time of a request.
            http_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        };
        metrics.register(backend, joins, collectors);
        Arc::new(metrics)
    }

    fn register(&mut self, backend: &str, joins: &JoinSeconds, collectors: Vec<Box<dyn Collector>>) {
        let build =
            Info::new([("version", crate::VERSION.to_owned()), ("commit", crate::COMMIT.to_owned()), ("backend", backend.to_owned())]);
        let registry = &mut self.registry;
        registry.register("pop_build", "What runs", build);
        registry.register("pop_ready", "1 while the node takes new clients", self.ready.clone());
        let help = "1 when the last config file was taken whole, at the start or by a reload";
        registry.register("pop_config_last_reload_successful", help, self.reload_successful.clone());
        let help = "When a config file was last taken whole, in Unix seconds";
        registry.register("pop_config_last_reload_success_timestamp_seconds", help, self.reload_success_at.clone());
        registry.register("pop_log_suppressed_lines", "Log lines held back by the rate limit", self.suppressed_lines.clone());
        registry.register("pop_draining", "1 while the node lets its people go", self.draining.clone());
        registry.register("pop_sessions", "Rooms that have a participant", self.sessions.clone());
        registry.register("pop_participants", "Participants by kind; hidden ones are local too", self.participants.clone());
        registry.register("pop_tracks", "Published tracks (in) and subscriptions (out)", self.tracks.clone());
        registry.register("pop_join_seconds", "From a participant's request to the keys of its media", joins.0.clone());
        registry.register("pop_http_requests", "Answered HTTP requests", self.http_requests.clone());
        registry.register("pop_http_request_duration_seconds", "From the request's head to its answer", self.http_seconds.clone());
        registry.register_collector(Box::new(process::ProcessCollector));
        for collector in collectors {
            registry.register_collector(collector);
        }
    }

    /// The node takes new clients, or no longer; then it lets its people go.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
        self.draining.set(i64::from(!ready));
    }

    /// How the last reload went, and how many log lines were held back since the start.
    pub fn observe_operations(&self, last: LastReload, suppressed_lines: u64) {
        self.reload_successful.set(i64::from(last.successful));
        self.reload_success_at.set(i64::try_from(last.success_at_s).unwrap_or(i64::MAX));
        self.suppressed_lines.inner().store(suppressed_lines, Ordering::Relaxed);
    }

    /// A request for `route` (its pattern, never its path) was answered.
    pub fn count_http(&self, route: &str, code: u16, took: Duration) {
        self.http_requests.get_or_create(&HttpRequest { route: route.to_owned(), code }).inc();
        self.http_seconds.observe(took.as_secs_f64());
    }

    /// What exists now.
    pub fn observe_sessions(&self, sessions: &[SessionView]) {
        self.sessions.set(as_i64(sessions.len()));
        let people = || sessions.iter().flat_map(|session| &session.participants);
        let counts = [
            ("local", people().filter(|person| person.local).count()),
            ("remote", people().filter(|person| !person.local).count()),
            ("hidden", people().filter(|person| person.local && person.hidden).count()),
        ];
        for (kind, count) in counts {
            self.participants.get_or_create(&Participants { kind }).set(as_i64(count));
        }
        for kind in ["audio", "video"] {
            let locals = || people().filter(|person| person.local);
            let published = locals().flat_map(|person| &person.tracks).filter(|track| track.kind == kind).count();
            let watched = locals().flat_map(|person| &person.subscriptions).filter(|section| section.kind == kind).count();
            self.tracks.get_or_create(&Tracks { direction: "in", kind }).set(as_i64(published));
            self.tracks.get_or_create(&Tracks { direction: "out", kind }).set(as_i64(watched));
        }
    }

    /// The text of a scrape.
    pub fn encode(&self, exposition: Exposition) -> String {
        let mut text = String::with_capacity(16 * 1_024);
        encode(&mut text, &self.registry).expect("a String takes every write");
        match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => to_prometheus_text(&text),
        }
    }
}

/// OpenMetrics describes a counter without the suffix of its samples and has an `info` type; the older format knows neither.
fn to_prometheus_text(openmetrics: &str) -> String {
    let mut types = HashMap::new();
    for line in openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        if let Some((name, kind)) = line.split_once(' ') {
            types.insert(name, kind);
        }
    }
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|word| Some((word, line.strip_prefix(word)?.split_once(' ')?)));
        let written = match described {
            Some((word, (name, rest))) => {
                let (suffix, kind) = match types.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(kind) => ("", *kind),
                    None => ("", "untyped"),
                };
                writeln!(text, "{word}{name}{suffix} {}", if word == "# TYPE " { kind } else { rest })
            }
            None if line.starts_with('#') => Ok(()),
            None => writeln!(text, "{line}"),
        };
        written.expect("a String takes every write");
    }
    text
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::{Certificate, Dtls};

    #[tokio::test]
    async fn a_handshake_that_never_failed_is_a_zero() {
        let dtls = Dtls::new(Certificate::generate().expect("the library makes one"), 8);
        let text = Metrics::new("mmsg", &JoinSeconds::default(), vec![Box::new(DtlsCollector::new(move || dtls.counters()))])
            .encode(Exposition::OpenMetrics);
        assert!(text.contains("pop_dtls_handshakes_total{role=\"client\",result=\"panicked\"} 0"), "{text}");
        assert!(text.contains("pop_dtls_handshake_seconds_bucket{le=\"+Inf\"} 0"), "{text}");
        assert!(text.contains("pop_dtls_half_open 0"), "{text}");
    }

    #[test]
    fn every_reason_and_both_directions_of_data_are_there_from_the_start() {
        let counters: Arc<crate::data::DataCounters> = Arc::default();
        counters.count(crate::data::Direction::Sent, true, 7);
        let text =
            Metrics::new("mmsg", &JoinSeconds::default(), vec![Box::new(DataCollector::new(counters))]).encode(Exposition::OpenMetrics);
        for line in [
            "pop_data_messages_total{direction=\"sent\",kind=\"reliable\"} 1",
            "pop_data_bytes_total{direction=\"sent\",kind=\"reliable\"} 7",
            "pop_data_messages_total{direction=\"received\",kind=\"lossy\"} 0",
            "pop_data_dropped_total{reason=\"sctp_malformed\"} 0",
            "pop_data_overflows_total 0",
            "pop_sctp_panics_total 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn every_line_of_the_text_belongs_to_an_explained_metric() {
        let metrics = Metrics::new("mmsg", &JoinSeconds::default(), Vec::new());
        metrics.count_http("/whip/{room}", 201, Duration::from_millis(1));
        metrics.observe_sessions(&[]);
        let text = metrics.encode(Exposition::OpenMetrics);
        let explained: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(explained.iter().any(|name| line.starts_with(name)), "no HELP for {line}");
        }
        assert!(text.contains("pop_http_requests_total{route=\"/whip/{room}\",code=\"201\"} 1"), "{text}");
        assert!(text.contains("pop_tracks{direction=\"out\",kind=\"video\"} 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_older_format_names_counters_as_its_samples_do() {
        let metrics = Metrics::new("mmsg", &JoinSeconds::default(), Vec::new());
        metrics.count_http("/whip/{room}", 201, Duration::from_millis(1));
        let text = metrics.encode(Exposition::Prometheus);
        assert!(text.contains("# TYPE pop_http_requests_total counter\n"), "{text}");
        assert!(text.contains("# TYPE pop_build_info gauge\n") && text.contains("\npop_build_info{"), "{text}");
        assert!(text.contains("# TYPE pop_join_seconds histogram\n"), "{text}");
        assert!(!text.contains("EOF") && !text.contains("# UNIT"), "{text}");
        assert_eq!(Exposition::negotiate("text/plain"), Exposition::Prometheus);
        assert_eq!(Exposition::negotiate("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), Exposition::OpenMetrics);
    }
}
