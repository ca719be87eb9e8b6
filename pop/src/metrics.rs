//! What Prometheus scrapes. Names have base units; labels have few values and never a user's.

mod process;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use pop_session::SessionView;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Value of `Content-Type` of the text that [`Metrics::encode`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The appliance's metrics. Everything here is shared and has interior counters; a clone of the `Arc` may count anywhere off
/// the packet path. The workers' own counters are read at each scrape.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ready: Gauge,
    sessions: Gauge,
    participants: Family<Participants, Gauge>,
    tracks: Family<Tracks, Gauge>,
    handshakes: Family<Handshake, Counter>,
    handshake_seconds: Histogram,
    http_requests: Family<HttpRequest, Counter>,
    http_seconds: Histogram,
}

/// Which end of DTLS the node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DtlsEnd {
    /// The client sent the ClientHello.
    Server,
    /// The node sent it.
    Client,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeResult {
    /// Keys were agreed and the fingerprint was right.
    Done,
    /// It failed, or the certificate was another one than the offer's.
    Failed,
    /// It did not end in time.
    TimedOut,
    /// The library panicked; it was caught, and it is a bug.
    Panicked,
}

impl DtlsEnd {
    const ALL: [DtlsEnd; 2] = [DtlsEnd::Server, DtlsEnd::Client];

    const fn label(self) -> &'static str {
        match self {
            DtlsEnd::Server => "server",
            DtlsEnd::Client => "client",
        }
    }
}

impl HandshakeResult {
    const ALL: [HandshakeResult; 4] =
        [HandshakeResult::Done, HandshakeResult::Failed, HandshakeResult::TimedOut, HandshakeResult::Panicked];

    const fn label(self) -> &'static str {
        match self {
            HandshakeResult::Done => "done",
            HandshakeResult::Failed => "failed",
            HandshakeResult::TimedOut => "timed_out",
            HandshakeResult::Panicked => "panicked",
        }
    }
}

impl EncodeLabelValue for DtlsEnd {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.label())
    }
}

impl EncodeLabelValue for HandshakeResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.label())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    role: DtlsEnd,
    result: HandshakeResult,
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
    /// Registers everything; `backend` is how packets enter and leave the kernel.
    pub fn new(backend: &str) -> Arc<Self> {
        // 1 ms to 8 s by doubling: a loopback answer to the slowest handshake that still ends.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let mut metrics = Self {
            registry: Registry::default(),
            ready: Gauge::default(),
            sessions: Gauge::default(),
            participants: Family::default(),
            tracks: Family::default(),
            handshakes: Family::default(),
            handshake_seconds: seconds(),
            http_requests: Family::default(),
            http_seconds: seconds(),
        };
        metrics.register(backend);
        Arc::new(metrics)
    }

    fn register(&mut self, backend: &str) {
        let build =
            Info::new([("version", crate::VERSION.to_owned()), ("commit", crate::COMMIT.to_owned()), ("backend", backend.to_owned())]);
        let registry = &mut self.registry;
        registry.register("pop_build", "What runs", build);
        registry.register("pop_ready", "1 while the node takes new clients", self.ready.clone());
        registry.register("pop_sessions", "Rooms that have a participant", self.sessions.clone());
        registry.register("pop_participants", "Participants by kind; hidden ones are local too", self.participants.clone());
        registry.register("pop_tracks", "Published tracks (in) and subscriptions (out)", self.tracks.clone());
        registry.register("pop_dtls_handshakes", "Ended DTLS handshakes by the node's role", self.handshakes.clone());
        registry.register("pop_dtls_handshake_seconds", "From the first datagram to the keys", self.handshake_seconds.clone());
        registry.register("pop_http_requests", "Answered HTTP requests", self.http_requests.clone());
        registry.register("pop_http_request_duration_seconds", "From the request's head to its answer", self.http_seconds.clone());
        registry.register_collector(Box::new(process::ProcessCollector));
        // A series that appears only with its first event hides that event from `rate()`.
        for role in DtlsEnd::ALL {
            for result in HandshakeResult::ALL {
                let _ = self.handshakes.get_or_create(&Handshake { role, result });
            }
        }
    }

    /// The node takes new clients, or no longer.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// A DTLS handshake ended after `took`.
    pub fn count_handshake(&self, role: DtlsEnd, result: HandshakeResult, took: Duration) {
        self.handshakes.get_or_create(&Handshake { role, result }).inc();
        if result == HandshakeResult::Done {
            self.handshake_seconds.observe(took.as_secs_f64());
        }
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

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1_024);
        encode(&mut text, &self.registry).expect("a String takes every write");
        text
    }
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_that_never_failed_is_a_zero() {
        let metrics = Metrics::new("mmsg");
        metrics.count_handshake(DtlsEnd::Server, HandshakeResult::Done, Duration::from_millis(3));
        let text = metrics.encode();
        assert!(text.contains("pop_dtls_handshakes_total{role=\"server\",result=\"done\"} 1"), "{text}");
        assert!(text.contains("pop_dtls_handshakes_total{role=\"client\",result=\"panicked\"} 0"), "{text}");
        assert!(text.contains("pop_dtls_handshake_seconds_count 1"), "{text}");
    }

    #[test]
    fn every_line_of_the_text_belongs_to_an_explained_metric() {
        let metrics = Metrics::new("mmsg");
        metrics.count_http("/whip/{room}", 201, Duration::from_millis(1));
        metrics.observe_sessions(&[]);
        let text = metrics.encode();
        let explained: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(explained.iter().any(|name| line.starts_with(name)), "no HELP for {line}");
        }
        assert!(text.contains("pop_http_requests_total{route=\"/whip/{room}\",code=\"201\"} 1"), "{text}");
        assert!(text.contains("pop_tracks{direction=\"out\",kind=\"video\"} 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
