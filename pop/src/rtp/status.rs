//! How a route is, for `GET /api/v1/rtp/routes` and `pop rtp list`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pop_session::SessionView;
use pop_session::view::ParticipantView;
use serde::Serialize;

use super::plan::Way;
use super::{Entry, Leg, Routes, sdp};
use crate::config::RouteRtcp;

/// A route. Counters are those of a second ago, since the route was opened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// `in`, `out` or `forward`.
    pub direction: &'static str,
    /// `waiting` for a packet or a source, or `active`.
    pub state: &'static str,
    /// From the config file: it comes again with the next start.
    pub configured: bool,
    /// The room; absent when it forwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// Who publishes or watches there.
    pub identity: String,
    /// What it carries.
    pub codec: &'static str,
    /// RTP payload type; absent when every one passes.
    pub payload_type: Option<u8>,
    /// The suite of SDES; absent: plain RTP.
    pub suite: Option<&'static str>,
    /// The suite of what is forwarded; absent: plain RTP, or nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_suite: Option<&'static str>,
    /// Where it receives RTP: of a route out, where it sends from.
    pub address: SocketAddr,
    /// `mux`, `next` or `off`.
    pub rtcp: &'static str,
    /// Where it receives RTCP; absent when that is `off`.
    pub rtcp_port: Option<u16>,
    /// The other end: configured, or learnt; absent while it waits for one.
    pub peer: Option<String>,
    /// Where it forwards to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// RTP packets received.
    pub packets: u64,
    /// RTP payload bytes received.
    pub bytes: u64,
    /// Packets that never came, by their sequence numbers; with codec `any` those are not read.
    pub lost: i64,
    /// Interarrival jitter in milliseconds.
    pub jitter_ms: f64,
    /// RTP packets sent.
    pub sent_packets: u64,
    /// RTP payload bytes sent.
    pub sent_bytes: u64,
    /// Datagrams of others than the peer.
    pub foreign: u64,
    /// Datagrams of the peer, or of who could become it, that were not taken.
    pub refused: u64,
    /// What a receiver opens, or what a sender does. It holds the key: on the unix socket alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sdp: Option<String>,
    /// The same of what is forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_sdp: Option<String>,
}

impl RouteStatus {
    /// What may be shown where no password is asked for.
    pub fn without_secrets(mut self) -> Self {
        (self.sdp, self.to_sdp) = (None, None);
        self
    }
}

impl Routes {
    /// How the routes, or the one of this name, are.
    pub(super) async fn describe(&self, table: &BTreeMap<String, Entry>, only: Option<&str>) -> Vec<RouteStatus> {
        let sessions = self.shared.node.sessions().await;
        let wanted = table.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
        wanted.map(|(name, entry)| describe(name, entry, &sessions)).collect()
    }
}

fn find<'s>(sessions: &'s [SessionView], leg: &Leg) -> Option<&'s ParticipantView> {
    let (room, id) = (leg.room.as_str(), leg.participant.to_string());
    sessions.iter().find(|session| session.id == room)?.participants.iter().find(|person| person.id == id)
}

fn describe(name: &str, entry: &Entry, sessions: &[SessionView]) -> RouteStatus {
    let plan = &entry.plan;
    // Of a forwarder the way in, which is its last leg, has the address.
    let leg = entry.legs.last().expect("every route has a leg");
    let advertised = SocketAddr::new(plan.advertised, leg.local.port());
    let (direction, room, to, to_crypto) = match &plan.way {
        Way::In { room, .. } => ("in", Some(room), None, None),
        Way::Out { room, .. } => ("out", Some(room), None, None),
        Way::Forward { to, to_crypto, .. } => ("forward", None, Some(*to), to_crypto.as_ref()),
    };
    let described_at = match &plan.way {
        Way::Out { peer, .. } => *peer,
        Way::In { .. } | Way::Forward { .. } => advertised,
    };
    let mut status = RouteStatus {
        name: name.to_owned(),
        direction,
        state: "waiting",
        configured: entry.is_configured,
        room: room.map(|room| room.to_string()),
        identity: plan.identity.to_string(),
        codec: plan.codec.name(),
        payload_type: (plan.formats[0].number == plan.payload_type).then_some(plan.payload_type),
        suite: plan.crypto.as_ref().map(|crypto| crypto.suite().name()),
        to_suite: to_crypto.map(|crypto| crypto.suite().name()),
        address: advertised,
        rtcp: plan.rtcp.name(),
        rtcp_port: if plan.rtcp == RouteRtcp::Mux { Some(leg.local.port()) } else { leg.rtcp_port },
        peer: find(sessions, leg).and_then(|person| person.address.clone()),
        to,
        packets: 0,
        bytes: 0,
        lost: 0,
        jitter_ms: 0.0,
        sent_packets: 0,
        sent_bytes: 0,
        foreign: 0,
        refused: 0,
        sdp: sdp::describe(name, plan, described_at, plan.crypto.as_ref()),
        to_sdp: to.and_then(|to| sdp::describe(name, plan, to, to_crypto)),
    };
    for person in entry.legs.iter().filter_map(|leg| find(sessions, leg)) {
        for stats in person.tracks.iter().filter_map(|track| track.stats.as_ref()) {
            (status.packets, status.bytes, status.lost, status.jitter_ms) = (stats.packets, stats.bytes, stats.lost, stats.jitter_ms);
        }
        for subscription in &person.subscriptions {
            (status.sent_packets, status.sent_bytes) = (subscription.stats.packets, subscription.stats.bytes);
        }
        if let Some(route) = &person.route {
            status.foreign += route.foreign;
            status.refused += route.refused;
        }
    }
    if status.packets + status.sent_packets > 0 {
        status.state = "active";
    }
    status
}
