//! Links to other nodes in Prometheus' words.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::mesh::{LinkState, Mesh, MeshCounters};

/// Reads the mesh's counters at each scrape.
#[derive(Debug)]
pub struct MeshCollector(Mesh);

impl MeshCollector {
    /// Of `mesh`.
    pub fn new(mesh: Mesh) -> Self {
        Self(mesh)
    }
}

impl Collector for MeshCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let MeshCounters {
            links,
            refused,
            messages_in,
            messages_out,
            unheard,
            rekeys,
            carried,
            joined,
            transits,
            transited,
            transit_bytes,
            moved,
            listed,
            revoked,
            expires_at_s,
        } = self.0.counters();
        let gauges = [
            ("pop_mesh_links", "Links to other nodes that are up", links as u64),
            (
                "pop_mesh_joined_sockets",
                "Clients' sockets that go through this node to the one that has their transport",
                joined.max(0) as u64,
            ),
            ("pop_mesh_control_transits", "Control links of other nodes that go over this one", transits as u64),
            ("pop_mesh_revoked_certificates", "Certificates that their CA has taken back, as far as this node knows", revoked as u64),
            ("pop_mesh_certificate_expiry_timestamp_seconds", "Until when mesh.cert is valid, in Unix seconds", expires_at_s),
        ];
        for (name, help, value) in gauges {
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Connections that became no link, and links that ended for a fault of the other end";
        let mut family = encoder.encode_descriptor("pop_mesh_refused", help, None, MetricType::Counter)?;
        for (reason, count) in refused {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        let help = "Control messages of links, those of liveness included";
        let mut family = encoder.encode_descriptor("pop_mesh_messages", help, None, MetricType::Counter)?;
        for (direction, count) in [("in", messages_in), ("out", messages_out)] {
            ConstCounter::new(count).encode(family.encode_family(&[("direction", direction)])?)?;
        }
        let help = "Control messages that counted for nothing: of a node that is none of this PoP (foreign), or too many for this node's rooms (full)";
        let mut family = encoder.encode_descriptor("pop_mesh_ignored_messages", help, None, MetricType::Counter)?;
        for (why, count) in unheard {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", why.label())])?)?;
        }
        let help =
            "Requests of clients that belong to another node, by what became of them; answered and full are of those that came from others";
        let mut family = encoder.encode_descriptor("pop_mesh_carried", help, None, MetricType::Counter)?;
        for (outcome, count) in carried {
            ConstCounter::new(count).encode(family.encode_family(&[("result", outcome.label())])?)?;
        }
        let help =
            "Transits of control links: carried for two others, or why not; taken and loop are of those that another node brought here";
        let mut family = encoder.encode_descriptor("pop_mesh_transited", help, None, MetricType::Counter)?;
        for (outcome, count) in transited {
            ConstCounter::new(count).encode(family.encode_family(&[("result", outcome.label())])?)?;
        }
        let help = "Bytes of other nodes' control links that went over this one";
        ConstCounter::new(transit_bytes).encode(encoder.encode_descriptor(
            "pop_mesh_control_transit_bytes",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let help = "Links that went on over another connection: a direct one, or one over a third node";
        let mut family = encoder.encode_descriptor("pop_mesh_control_moves", help, None, MetricType::Counter)?;
        for (to, count) in moved {
            ConstCounter::new(count).encode(family.encode_family(&[("to", to)])?)?;
        }
        let help = "Lists of certificates that were taken back, from files and other nodes, by what became of them";
        let mut family = encoder.encode_descriptor("pop_mesh_revocation_lists", help, None, MetricType::Counter)?;
        for (outcome, count) in listed {
            ConstCounter::new(count).encode(family.encode_family(&[("result", outcome.label())])?)?;
        }
        let help = "New generations of the keys of links";
        ConstCounter::new(rekeys).encode(encoder.encode_descriptor("pop_mesh_rekeys", help, None, MetricType::Counter)?)?;
        encode_links(&mut encoder, &self.0.links())
    }
}

/// Each link that is up, as of the last second: there are 255 at most, and with a link its series end.
fn encode_links(encoder: &mut DescriptorEncoder, links: &[LinkState]) -> Result<(), std::fmt::Error> {
    type Gauge = (&'static str, &'static str, fn(&LinkState) -> f64);
    let gauges: [Gauge; 4] = [
        ("pop_mesh_link_rtt_seconds", "Round trip of media datagrams to another node and back; the longest of its workers", |link| {
            f64::from(link.figures.rtt_us) / 1e6
        }),
        ("pop_mesh_link_jitter_seconds", "Interarrival jitter of what comes from another node; the most of its workers", |link| {
            f64::from(link.figures.jitter_us) / 1e6
        }),
        ("pop_mesh_link_mtu_bytes", "Longest UDP payload that passes to another node", |link| f64::from(link.figures.mtu)),
        (
            "pop_mesh_link_limit_bits_per_second",
            "What a link carries, where loss and delay say that it is less than what is to be sent: the sum over those of its workers that know a limit; 0: none does",
            |link| link.figures.limit as f64,
        ),
    ];
    for (name, help, value) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for link in links {
            ConstGauge::new(value(link)).encode(family.encode_family(&[("peer", peer_of(link).as_str())])?)?;
        }
    }
    type Counter = (&'static str, &'static str, &'static str, fn(&LinkState) -> Vec<(&'static str, u64)>);
    let counters: [Counter; 4] = [
        ("pop_mesh_link_datagrams", "Relay datagrams to and from another node", "direction", |link| {
            vec![("in", link.figures.datagrams_in), ("out", link.figures.datagrams_out)]
        }),
        ("pop_mesh_link_bytes", "UDP payload bytes of relay datagrams to and from another node", "direction", |link| {
            vec![("in", link.figures.bytes_in), ("out", link.figures.bytes_out)]
        }),
        (
            "pop_mesh_link_lost_datagrams",
            "Datagrams of another node that did not come at first (missed), and of these what its repairs brought in time (repaired), or its \
             parity (recovered)",
            "result",
            |link| vec![("missed", link.figures.lost), ("repaired", link.figures.repaired), ("recovered", link.figures.recovered)],
        ),
        (
            "pop_mesh_link_dropped",
            "What came over a link and was not authentic, new or well-formed (refused), and video that was not sent over it because it does \
             not carry it (congested)",
            "reason",
            |link| vec![("refused", link.figures.refused), ("congested", link.figures.congested)],
        ),
    ];
    type Sum = (&'static str, &'static str, fn(&LinkState) -> u64);
    let sums: [Sum; 2] = [
        ("pop_mesh_link_repairs", "Repairs that were sent to another node", |link| link.figures.repairs_out),
        (
            "pop_mesh_link_parity_bytes",
            "UDP payload bytes of parity to another node, for which a repair would come too late: part of pop_mesh_link_bytes",
            |link| link.figures.parity_bytes_out,
        ),
    ];
    for (name, help, value) in sums {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for link in links {
            ConstCounter::new(value(link)).encode(family.encode_family(&[("peer", peer_of(link).as_str())])?)?;
        }
    }
    for (name, help, label, values) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for link in links {
            for (of, count) in values(link) {
                ConstCounter::new(count).encode(family.encode_family(&[("peer", peer_of(link).as_str()), (label, of)])?)?;
            }
        }
    }
    Ok(())
}

/// The other node and its PoP.
fn peer_of(link: &LinkState) -> String {
    format!("{}.{}", link.peer.name, link.peer.pop)
}
