//! The packet workers' counters in Prometheus' words: `_in` and `_out` become a direction, each worker a label.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pop_dataplane::WorkerSnapshot;
use pop_proto::DropReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// With whom RTP is exchanged, beside clients: other nodes of this PoP, and those of others.
const RELAYED_SCOPES: [&str; 2] = ["pop", "mesh"];

/// Bytes of RTP packets that crossed links, by worker, whether the other node is of another PoP, and whether they left.
#[derive(Debug)]
pub struct RelayedBytes(Vec<[[AtomicU64; 2]; 2]>);

impl RelayedBytes {
    /// None yet, on so many workers.
    pub fn new(workers: usize) -> RelayedBytes {
        RelayedBytes((0..workers).map(|_| Default::default()).collect())
    }

    /// More came and left by `worker`.
    pub fn add(&self, worker: usize, is_of_another_pop: bool, came: u64, left: u64) {
        if let Some(scopes) = self.0.get(worker) {
            let [bytes_in, bytes_out] = &scopes[usize::from(is_of_another_pop)];
            bytes_in.fetch_add(came, Relaxed);
            bytes_out.fetch_add(left, Relaxed);
        }
    }
}

/// Reads the workers' totals at each scrape.
pub struct WorkerCollector<F> {
    read: F,
    relayed: Arc<RelayedBytes>,
}

impl<F: Fn() -> Vec<WorkerSnapshot>> WorkerCollector<F> {
    /// `read` takes the totals.
    pub fn new(read: F, relayed: Arc<RelayedBytes>) -> Self {
        Self { read, relayed }
    }
}

impl<F> std::fmt::Debug for WorkerCollector<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerCollector")
    }
}

/// One sample: the worker, the direction when the counter has one, the value.
type Sample = (String, Option<&'static str>, u64);

impl<F: Fn() -> Vec<WorkerSnapshot> + Send + Sync + 'static> Collector for WorkerCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let workers = (self.read)();
        encode_bytes(&mut encoder, &workers, &self.relayed)?;
        encode_counters(&mut encoder, &workers)?;
        encode_drops(&mut encoder, &workers)?;
        encode_gauges(&mut encoder, &workers)
    }
}

/// By with whom: clients, other nodes of this PoP, nodes of others.
fn encode_bytes(encoder: &mut DescriptorEncoder, workers: &[WorkerSnapshot], relayed: &RelayedBytes) -> Result<(), std::fmt::Error> {
    let help = "RTP payload bytes exchanged with clients (scope local), bytes of RTP packets that crossed links to other nodes of this \
                PoP (pop) and to nodes of others (mesh), as of the last second; repairs between nodes excluded";
    let mut family = encoder.encode_descriptor("pop_rtp_bytes", help, None, MetricType::Counter)?;
    let mut encode = |worker: &str, scope: &str, [came, left]: [u64; 2]| {
        for (direction, value) in [("in", came), ("out", left)] {
            let labels = [("direction", direction), ("scope", scope), ("worker", worker)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok::<(), std::fmt::Error>(())
    };
    for worker in workers {
        let (index, counters) = (worker.worker.to_string(), &worker.counters);
        encode(&index, "local", [counters.rtp_bytes_in, counters.rtp_bytes_out])?;
        let Some(scopes) = relayed.0.get(worker.worker) else { continue };
        for (scope, bytes) in RELAYED_SCOPES.iter().zip(scopes) {
            encode(&index, scope, [bytes[0].load(Relaxed), bytes[1].load(Relaxed)])?;
        }
    }
    Ok(())
}

fn encode_counters(encoder: &mut DescriptorEncoder, workers: &[WorkerSnapshot]) -> Result<(), std::fmt::Error> {
    // A metric is described once, whatever has samples of it.
    let mut metrics: BTreeMap<&'static str, (&'static str, Vec<Sample>)> = BTreeMap::new();
    for worker in workers {
        worker.counters.for_each(|name, help, value| {
            // Told with the other kinds of probes, by `ProbeCollector`, and by scope.
            if name.starts_with("probe_") || name.starts_with("rtp_bytes_") {
                return;
            }
            let (name, direction) = match (name.strip_suffix("_in"), name.strip_suffix("_out")) {
                (Some(name), _) => (name, Some("in")),
                (_, Some(name)) => (name, Some("out")),
                _ => (name, None),
            };
            metrics.entry(name).or_insert((help, Vec::new())).1.push((worker.worker.to_string(), direction, value));
        });
    }
    for (name, (help, samples)) in metrics {
        // One of two directions explains only itself: the shared text leaves the direction to the label.
        let help = if samples.iter().any(|(_, direction, _)| direction.is_some()) { directed_help(name) } else { help.trim() };
        let name = format!("pop_{name}");
        let mut family = encoder.encode_descriptor(&name, help.trim_end_matches('.'), None, MetricType::Counter)?;
        for (worker, direction, value) in samples {
            let counter = ConstCounter::new(value);
            match direction {
                Some(direction) => counter.encode(family.encode_family(&[("direction", direction), ("worker", &worker)])?)?,
                None => counter.encode(family.encode_family(&[("worker", &worker)])?)?,
            }
        }
    }
    Ok(())
}

/// What a counter of both directions counts.
fn directed_help(name: &str) -> &'static str {
    match name {
        "rtp_packets" => "RTP packets received and authenticated (in), protected and handed to the kernel (out)",
        "rtx_packets" => "Retransmissions on an RTX stream (RFC 4588) received and authenticated",
        "rtx_padding" => "RTX packets without an original packet: what a publisher probes the way with",
        "rtcp_packets" => "RTCP datagrams received and authenticated (in), sent (out)",
        "rtcp_nack" => "Sequence numbers that viewers asked for again (in), that publishers were asked for (out)",
        "rtcp_pli" => "Keyframe requests from viewers (in), to publishers (out)",
        "rtcp_remb" => "Receiver estimated maximum bitrate datagrams",
        "rtcp_twcc" => "Transport-wide congestion control feedback datagrams",
        "dtls_datagrams" => "DTLS datagrams handed to the control plane (in), sent (out)",
        "datagrams" => "UDP datagrams received (in), sent (out)",
        "handover_packets" => "Packets taken from other workers for mirrors of their tracks (in), handed over to other workers (out)",
        "handover_bytes" => "RTP payload bytes taken from other workers (in), handed over to other workers (out)",
        "handover_batches" => "Batches taken from other workers (in), handed over to other workers (out)",
        "rtp_padding_bytes" => "Bytes of padding that made packets as long as their neighbours in a train",
        "relay_datagrams" => "Datagrams of links taken from other nodes' workers (in), sent to them (out)",
        "relay_bytes" => "UDP payload bytes of links' datagrams",
        "relay_packets" => "RTP packets taken from other nodes, repairs included (in), sent to them, repairs excluded (out)",
        "relay_media_bytes" => "Bytes of RTP packets that crossed links, headers included",
        "relay_repairs" => "RTP packets sent again to another node's worker",
        "trains" => "Sends handed to the kernel; one carries a whole train of datagrams",
        _ => "Counted by direction",
    }
}

fn encode_drops(encoder: &mut DescriptorEncoder, workers: &[WorkerSnapshot]) -> Result<(), std::fmt::Error> {
    let help = "Packets that ended here, by reason; every reason is listed from the start";
    let mut family = encoder.encode_descriptor("pop_rtp_dropped_packets", help, None, MetricType::Counter)?;
    for worker in workers {
        let index = worker.worker.to_string();
        for reason in DropReason::ALL {
            let counter = ConstCounter::new(worker.drops[*reason as usize]);
            counter.encode(family.encode_family(&[("reason", reason.label()), ("worker", &index)])?)?;
        }
    }
    Ok(())
}

fn encode_gauges(encoder: &mut DescriptorEncoder, workers: &[WorkerSnapshot]) -> Result<(), std::fmt::Error> {
    type Read = fn(&WorkerSnapshot) -> u64;
    const GAUGES: [(&str, &str, Read); 8] = [
        ("pop_worker_transports", "Clients connected or connecting", |worker| worker.gauges.transports),
        ("pop_worker_tracks", "Published tracks", |worker| worker.gauges.tracks),
        ("pop_worker_mirrors", "Mirrors of other workers' tracks", |worker| worker.gauges.mirrors),
        ("pop_worker_remotes", "Tracks of other nodes", |worker| worker.gauges.remotes),
        ("pop_worker_links", "Links to workers of other nodes", |worker| worker.gauges.links),
        ("pop_worker_subscriptions", "Sections of viewers", |worker| worker.gauges.subscriptions),
        ("pop_worker_tcp_connections", "TCP connections open at the media port", |worker| worker.gauges.tcp_connections),
        ("pop_worker_held_packets", "Packets in retransmission histories", |worker| worker.gauges.packets_held),
    ];
    for (name, help, read) in GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for worker in workers {
            let gauge = ConstGauge::new(i64::try_from(read(worker)).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("worker", &worker.worker.to_string())])?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pop_dataplane::{Counters, Gauges};

    use super::*;
    use crate::metrics::{Exposition, JoinSeconds, Metrics};

    fn worker(worker: usize, rtp_packets_in: u64) -> WorkerSnapshot {
        let counters = Counters { rtp_packets_in, allocations: 7, ..Counters::default() };
        let mut drops = [0; DropReason::ALL.len()];
        drops[DropReason::SrtpAuth as usize] = 3;
        WorkerSnapshot { worker, core: None, backend: "mmsg", counters, drops, gauges: Gauges { tracks: 2, ..Gauges::default() } }
    }

    fn text() -> String {
        let relayed = RelayedBytes::new(2);
        relayed.add(1, false, 300, 400);
        relayed.add(1, true, 5, 6);
        relayed.add(1, true, 5, 6);
        let collector = WorkerCollector::new(|| vec![worker(0, 10), worker(1, 20)], Arc::new(relayed));
        Metrics::new("mmsg", &JoinSeconds::default(), vec![Box::new(collector)]).encode(Exposition::OpenMetrics)
    }

    #[test]
    fn bytes_are_told_by_with_whom_they_were_exchanged() {
        let text = text();
        for line in [
            "pop_rtp_bytes_total{direction=\"out\",scope=\"local\",worker=\"0\"} 0",
            "pop_rtp_bytes_total{direction=\"in\",scope=\"pop\",worker=\"1\"} 300",
            "pop_rtp_bytes_total{direction=\"out\",scope=\"pop\",worker=\"1\"} 400",
            "pop_rtp_bytes_total{direction=\"out\",scope=\"mesh\",worker=\"1\"} 12",
            "pop_rtp_bytes_total{direction=\"in\",scope=\"mesh\",worker=\"0\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn a_workers_totals_are_labelled_with_worker_and_direction() {
        let text = text();
        for line in [
            "pop_rtp_packets_total{direction=\"in\",worker=\"0\"} 10",
            "pop_rtp_packets_total{direction=\"in\",worker=\"1\"} 20",
            "pop_rtp_packets_total{direction=\"out\",worker=\"1\"} 0",
            "pop_worker_allocations_total{worker=\"0\"} 7",
            "pop_worker_tracks{worker=\"1\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("Counted by direction"), "a counter lacks its explanation:\n{text}");
        let mut explained: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = explained.len();
        explained.sort_unstable();
        explained.dedup();
        assert_eq!(explained.len(), all, "a metric is described twice");
    }

    #[test]
    fn every_drop_reason_is_there_from_the_start() {
        let text = text();
        for reason in DropReason::ALL {
            let count = if *reason == DropReason::SrtpAuth { 3 } else { 0 };
            let line = format!("pop_rtp_dropped_packets_total{{reason=\"{}\",worker=\"0\"}} {count}", reason.label());
            assert!(text.lines().any(|found| found == line), "no {line}");
        }
    }
}
