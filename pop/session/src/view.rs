//! What the looking glass shows of a session: plain serializable values.

use std::collections::BTreeMap;

use pop_proto::control::{LayerWish, MediaKind, SubscriptionStats, TrackStats};
use pop_schemas::{ParticipantId, SessionId, SubscriptionId, Time, TrackId};
use serde::Serialize;

use crate::participant::{Choice, Connection, LocalParticipant, LocalSection, Track};
use crate::presence::{RemoteParticipant, RemoteParticipants};

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionView {
    /// The room's name.
    pub id: String,
    /// Everybody, locals first.
    pub participants: Vec<ParticipantView>,
    /// Kinds that are being captured: `audio`, `video`.
    pub captured: Vec<&'static str>,
}

/// A participant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParticipantView {
    /// `PA_` and a number.
    pub id: String,
    /// Who it says it is.
    pub identity: String,
    /// What it wants to be called; absent when it does not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It is not shown to the others.
    pub hidden: bool,
    /// Its transport ends on this node.
    pub local: bool,
    /// Of a local one: the worker that has its transport. The session does not know; its owner fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<usize>,
    /// The node where its transport ends: of a remote one its 16 hex digits. The session knows no names; its owner fills them in, also of
    /// a local one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `publish`, `watch` or `member`.
    pub kind: &'static str,
    /// `connecting`, `connected`; of another node's `remote`, or `away` while that does not answer. An RTP route is connected once it
    /// has a peer.
    pub state: &'static str,
    /// Milliseconds since it joined; absent for a remote one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Its address, once ICE has validated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The SRTP profile, once DTLS has agreed on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srtp: Option<&'static str>,
    /// Of an RTP route: what its ports have refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteView>,
    /// Of a member: how its client is connected for signalling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalView>,
    /// What it publishes.
    pub tracks: Vec<TrackView>,
    /// What it watches.
    pub subscriptions: Vec<SubscriptionView>,
}

/// A member's client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignalView {
    /// SDK and its version, as it says.
    pub client: String,
    /// Its socket is here; else it is waited for.
    pub connected: bool,
}

/// What the ports of an RTP route have refused since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Datagrams of others than the peer.
    pub foreign: u64,
    /// Datagrams of the peer, or of who could become it, that were not taken.
    pub refused: u64,
}

/// A published stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrackView {
    /// `TR_` and a number.
    pub id: String,
    /// `audio` or `video`.
    pub kind: &'static str,
    /// `camera`, `microphone`, `screen_share`, `screen_share_audio` or `unknown`.
    pub source: &'static str,
    /// What it wants to be called; absent when it does not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Silent by its publisher's, or an operator's, will.
    pub muted: bool,
    /// Codec of the last packet; absent before the first.
    pub codec: Option<&'static str>,
    /// Its simulcast layers, in the publisher's order; absent when it has one stream.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerView>,
    /// Nodes that it is sent to, or the one that it comes from, over a link. The session does not know; its owner fills them in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Since its start, all layers together; absent for a remote one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<TrackStatsView>,
}

/// A simulcast layer of a published stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerView {
    /// Its RID.
    pub rid: String,
    /// The best of those that come: who wants the best gets this one.
    pub forwarded: bool,
    /// In pixels, as announced; absent when that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// See `width`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
}

/// Counters of a published stream since its start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrackStatsView {
    /// RTP packets received.
    pub packets: u64,
    /// RTP payload bytes received.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: i64,
    /// Interarrival jitter in milliseconds.
    pub jitter_ms: f64,
    /// NACKed sequence numbers.
    pub nacked: u64,
    /// Keyframe requests sent.
    pub plis: u64,
}

/// A media section of a viewer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubscriptionView {
    /// `SU_` and a number.
    pub id: String,
    /// `audio` or `video`.
    pub kind: &'static str,
    /// The track that feeds it; absent while it waits.
    pub source: Option<String>,
    /// The source's codec.
    pub codec: Option<&'static str>,
    /// The layer that is sent: simulcast layer counted from the lowest, or spatial layer.
    pub layer: u8,
    /// The highest temporal layer that is sent.
    pub temporal: u8,
    /// Nothing is sent for want of bandwidth.
    pub congested: bool,
    /// Of a member: what it wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wish: Option<WishView>,
    /// Since its start.
    pub stats: SubscriptionStatsView,
}

/// What a member wants of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WishView {
    /// Nothing for now.
    pub paused: bool,
    /// The highest layer, counted from the lowest; absent: the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_max: Option<u8>,
    /// The highest temporal layer; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal_max: Option<u8>,
}

/// Counters of a subscription since its start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubscriptionStatsView {
    /// RTP packets sent, retransmissions included.
    pub packets: u64,
    /// RTP payload bytes sent.
    pub bytes: u64,
    /// Retransmissions sent.
    pub retransmitted: u64,
    /// Loss share of the client's last report, 0 to 1.
    pub fraction_lost: f64,
    /// Round trip from the client's last report, in milliseconds; absent when unknown.
    pub rtt_ms: Option<f64>,
    /// Packets of the viewer's whole transport that its transport-wide feedback told as received.
    pub transport_received: u64,
    /// The same, not received.
    pub transport_lost: u64,
}

pub(crate) fn describe(
    now: Time,
    id: &SessionId,
    participants: &BTreeMap<ParticipantId, LocalParticipant>,
    tracks: &BTreeMap<TrackId, Track>,
    sections: &BTreeMap<SubscriptionId, LocalSection>,
    remotes: &RemoteParticipants,
    taps: [Option<u32>; 2],
) -> SessionView {
    let locals = participants.values().map(|participant| local(now, participant, tracks, sections));
    let captured = [MediaKind::Audio, MediaKind::Video].into_iter().filter(|kind| taps[*kind as usize].is_some());
    SessionView {
        id: id.to_string(),
        participants: locals.chain(remotes.iter().filter(|remote| !remote.is_outdone).map(remote)).collect(),
        captured: captured.map(MediaKind::name).collect(),
    }
}

fn local(
    now: Time,
    participant: &LocalParticipant,
    tracks: &BTreeMap<TrackId, Track>,
    sections: &BTreeMap<SubscriptionId, LocalSection>,
) -> ParticipantView {
    let (state, srtp, route) = match participant.connection {
        Connection::Connecting => ("connecting", None, None),
        Connection::Connected { profile } => ("connected", Some(profile.name()), None),
        Connection::Routed { profile, stats } => {
            let state = if participant.address.is_some() { "connected" } else { "connecting" };
            (state, profile.map(|profile| profile.name()), Some(RouteView { foreign: stats.foreign, refused: stats.refused }))
        }
    };
    ParticipantView {
        id: participant.id.to_string(),
        identity: participant.identity.to_string(),
        name: participant.texts.name.to_string(),
        hidden: participant.hidden,
        local: true,
        worker: None,
        node: None,
        kind: participant.kind.name(),
        state,
        age_ms: Some(now.since(participant.joined).as_millis() as u64),
        address: participant.address.map(|address| address.to_string()),
        srtp,
        route,
        signal: participant.member.as_ref().map(|member| member.signal()),
        tracks: participant.tracks.iter().filter_map(|id| tracks.get(id)).map(track).collect(),
        subscriptions: participant.sections.iter().filter_map(|id| sections.get(id)).map(|s| section(s, tracks)).collect(),
    }
}

fn track(track: &Track) -> TrackView {
    let TrackStats { packets, bytes, lost, jitter, nacked, plis, codec, layer } = track.stats;
    let is_forwarded = |place| packets > 0 && place == layer;
    let layers = (0..).zip(&track.layers).map(|(place, rid)| {
        let announced = track.info.layers.iter().find(|layer| layer.rid == *rid).filter(|layer| layer.width > 0);
        let (width, height) = (announced.map(|layer| layer.width), announced.map(|layer| layer.height));
        LayerView { rid: rid.to_string(), forwarded: is_forwarded(place), width, height }
    });
    let jitter_ms = codec.map_or(0.0, |codec| f64::from(jitter) * 1_000.0 / f64::from(codec.clock_rate()));
    TrackView {
        id: track.id.to_string(),
        kind: track.kind.name(),
        source: track.info.source.name(),
        name: track.info.name.to_string(),
        muted: track.info.muted,
        codec: codec.map(|codec| codec.name()),
        layers: layers.collect(),
        links: Vec::new(),
        stats: Some(TrackStatsView { packets, bytes, lost, jitter_ms, nacked, plis }),
    }
}

fn section(section: &LocalSection, tracks: &BTreeMap<TrackId, Track>) -> SubscriptionView {
    let SubscriptionStats { packets, bytes, retransmitted, fraction_lost, rtt_us, transport_received, transport_lost, .. } = section.stats;
    let SubscriptionStats { layer, temporal, congested, .. } = section.stats;
    let source = section.source.and_then(|id| tracks.get(&id));
    SubscriptionView {
        id: section.id.to_string(),
        kind: section.kind.name(),
        source: source.map(|track| track.id.to_string()),
        codec: source.and_then(|track| track.stats.codec).map(|codec| codec.name()),
        layer,
        temporal,
        congested,
        wish: matches!(section.choice, Choice::Member).then(|| wish(section.wish)),
        stats: SubscriptionStatsView {
            packets,
            bytes,
            retransmitted,
            fraction_lost: f64::from(fraction_lost) / 256.0,
            rtt_ms: (rtt_us != 0).then(|| f64::from(rtt_us) / 1_000.0),
            transport_received,
            transport_lost,
        },
    }
}

fn wish(wish: LayerWish) -> WishView {
    let below = |max: u8| (max != u8::MAX).then_some(max);
    WishView { paused: wish.paused, layer_max: below(wish.spatial_max), temporal_max: below(wish.temporal_max) }
}

fn remote(remote: &RemoteParticipant) -> ParticipantView {
    let manifest = remote.manifest();
    let tracks = manifest.tracks.iter().map(|track| TrackView {
        id: track.info.track.to_string(),
        kind: track.info.kind.name(),
        source: track.info.source.name(),
        name: track.info.name.to_string(),
        muted: track.info.muted,
        codec: track.codec.map(|codec| codec.name()),
        layers: Vec::new(),
        links: Vec::new(),
        stats: None,
    });
    ParticipantView {
        id: remote.key().participant.to_string(),
        identity: manifest.identity.to_string(),
        name: manifest.name.to_string(),
        hidden: manifest.hidden,
        local: false,
        worker: None,
        node: Some(format!("{:016x}", remote.key().node)),
        kind: manifest.kind.name(),
        state: if remote.is_away() { "away" } else { "remote" },
        age_ms: None,
        address: None,
        srtp: None,
        route: None,
        signal: None,
        tracks: tracks.collect(),
        subscriptions: Vec::new(),
    }
}
