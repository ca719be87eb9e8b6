//! What a client says on its socket, in the session's words.

use livekit_protocol as proto;
use pop_proto::control::{Codec, MediaKind};
use pop_schemas::{Identity, TrackId};
use pop_session::member::{
    AddTrack, MemberRequest, MetadataUpdate, PermissionSubject, Quality, Source, SubscriptionPermission, Sync, TrackSettings, TrackUpdate,
    VideoLayer,
};
use pop_session::session::MEMBER_SECTIONS_MAX;
use pop_session::sid::{parse_participant_sid, parse_track_sid};
use proto::signal_request::Message;
use proto::simulate_scenario::Scenario;

use super::counters::Refused;
use crate::node::{LOSSY, RELIABLE};
use crate::sctp::{KeptChannel, Limit, Promise};

/// Longest text that a client may name something by, in bytes.
const NAME_LEN_MAX: usize = 256;

/// Data channels of a client that is back: one of each kind each way.
const CHANNELS_MAX: usize = 4;

/// Lines of its last answer that are looked at: some 60 for each section.
const ANSWER_LINES_MAX: usize = 100 * MEMBER_SECTIONS_MAX;

/// Most layers of one announced track.
const LAYERS_MAX: usize = 8;

/// What is to be done about a message.
#[derive(Debug)]
pub(super) enum Said {
    /// For the session.
    Request(MemberRequest),
    /// What a client that is back knows, and the data channels that it has.
    Sync(Box<Sync>, Vec<KeptChannel>),
    Offer(proto::SessionDescription),
    /// Answer it: when it was sent, and whether it is of the newer kind.
    Ping {
        timestamp_ms: i64,
        newer: bool,
    },
    /// Pretend that something has happened to this client.
    Simulate(Simulation),
    /// There is nothing to do, and that is right.
    Nothing,
    /// It is not taken.
    Refused(Refused),
}

/// What a client may ask to see, at its own cost alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Simulation {
    /// The socket is gone, without a word.
    SocketLost,
    /// It is told to come back with what it has.
    Resume,
    /// It is told to begin anew.
    Reconnect,
    /// It is told to leave.
    Leave,
}

/// The kind of a message, for counters.
pub(super) fn kind_of(message: &Message) -> &'static str {
    match message {
        Message::Offer(_) => "offer",
        Message::Trickle(_) => "trickle",
        Message::AddTrack(_) => "add_track",
        Message::Mute(_) => "mute",
        Message::Subscription(_) => "subscription",
        Message::TrackSetting(_) => "track_setting",
        Message::Leave(_) => "leave",
        Message::SubscriptionPermission(_) => "subscription_permission",
        Message::SyncState(_) => "sync_state",
        Message::Simulate(_) => "simulate",
        Message::Ping(_) | Message::PingReq(_) => "ping",
        Message::UpdateMetadata(_) => "update_metadata",
        Message::UpdateAudioTrack(_) | Message::UpdateVideoTrack(_) => "update_track",
        _ => "other",
    }
}

/// Reads a message.
#[expect(deprecated, reason = "older clients say UpdateLayers")]
pub(super) fn read(message: Message) -> Said {
    match message {
        Message::Offer(offer) => Said::Offer(offer),
        // An ICE-lite node answers whoever knows the password, and makes no checks.
        Message::Trickle(trickle) => match trickle.candidate_init.len() {
            0..=4_096 => Said::Nothing,
            _ => Said::Refused(Refused::Message),
        },
        Message::AddTrack(add) => add_track(add),
        Message::Mute(mute) => of_track(&mute.sid, |track| MemberRequest::Mute { track, muted: mute.muted }),
        Message::Subscription(update) => Said::Request(subscribe(&update)),
        Message::TrackSetting(settings) => Said::Request(MemberRequest::TrackSettings(track_settings(&settings))),
        Message::Leave(_) => Said::Request(MemberRequest::Leave),
        Message::SubscriptionPermission(permission) => subscription_permission(permission),
        Message::SyncState(state) => sync(&state),
        Message::Simulate(simulate) => simulation(simulate.scenario),
        Message::Ping(timestamp_ms) => Said::Ping { timestamp_ms, newer: false },
        Message::PingReq(ping) => Said::Ping { timestamp_ms: ping.timestamp, newer: true },
        Message::UpdateMetadata(update) => Said::Request(MemberRequest::UpdateMetadata(Box::new(metadata(update)))),
        Message::UpdateAudioTrack(update) => of_track(&update.track_sid, |track| {
            MemberRequest::UpdateTrack(TrackUpdate { track, size: None, audio_features: Some(update.features) })
        }),
        Message::UpdateVideoTrack(update) => of_track(&update.track_sid, |track| {
            MemberRequest::UpdateTrack(TrackUpdate { track, size: Some((update.width, update.height)), audio_features: None })
        }),
        // Layers are what comes; this node offers nothing that could be answered.
        Message::UpdateLayers(_) => Said::Nothing,
        Message::Answer(_) => Said::Refused(Refused::Unknown),
        Message::PublishDataTrackRequest(_)
        | Message::UnpublishDataTrackRequest(_)
        | Message::UpdateDataSubscription(_)
        | Message::StoreDataBlobRequest(_)
        | Message::GetDataBlobRequest(_) => Said::Refused(Refused::Unspoken),
    }
}

fn of_track(sid: &str, request: impl FnOnce(TrackId) -> MemberRequest) -> Said {
    parse_track_sid(sid).map_or(Said::Refused(Refused::Unknown), |track| Said::Request(request(track)))
}

fn tracks(sids: &[String]) -> Vec<TrackId> {
    sids.iter().filter_map(|sid| parse_track_sid(sid)).collect()
}

/// Announces a track.
pub(super) fn add_track(add: proto::AddTrackRequest) -> Said {
    let kind = match add.r#type() {
        proto::TrackType::Audio => MediaKind::Audio,
        proto::TrackType::Video => MediaKind::Video,
        proto::TrackType::Data => return Said::Refused(Refused::Unspoken),
    };
    // A second codec for a track that is there already: what clients that cannot decode the first one would get.
    if !add.sid.is_empty() {
        return Said::Refused(Refused::Unspoken);
    }
    if [&add.cid, &add.name, &add.stream].iter().any(|text| text.len() > NAME_LEN_MAX) || add.cid.is_empty() {
        return Said::Refused(Refused::Message);
    }
    let codec = add.simulcast_codecs.first();
    let layers = codec.map(|codec| &codec.layers).filter(|layers| !layers.is_empty()).unwrap_or(&add.layers);
    #[expect(deprecated, reason = "older clients say it so")]
    let (stereo, disable_dtx) = (add.stereo, add.disable_dtx);
    Said::Request(MemberRequest::AddTrack(Box::new(AddTrack {
        kind: Some(kind),
        source: source(add.source()),
        muted: add.muted,
        width: add.width,
        height: add.height,
        layers: layers.iter().take(LAYERS_MAX).map(layer).collect(),
        encryption: add.encryption,
        audio_features: add.audio_features.iter().copied().take(LAYERS_MAX).collect(),
        disable_red: add.disable_red,
        stereo: stereo || add.audio_features.contains(&(proto::AudioTrackFeature::TfStereo as i32)),
        disable_dtx: disable_dtx || add.audio_features.contains(&(proto::AudioTrackFeature::TfNoDtx as i32)),
        cid: add.cid.into(),
        name: add.name.into(),
        stream: add.stream.into(),
        codec: codec.filter(|_| kind == MediaKind::Video).and_then(|codec| video_codec(&codec.codec)),
    })))
}

/// `vp9`, or `video/VP9`.
fn video_codec(name: &str) -> Option<Codec> {
    let name = name.rsplit('/').next().unwrap_or_default();
    [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1].into_iter().find(|codec| codec.name().eq_ignore_ascii_case(name))
}

pub(super) fn source(source: proto::TrackSource) -> Source {
    match source {
        proto::TrackSource::Unknown => Source::Unknown,
        proto::TrackSource::Camera => Source::Camera,
        proto::TrackSource::Microphone => Source::Microphone,
        proto::TrackSource::ScreenShare => Source::ScreenShare,
        proto::TrackSource::ScreenShareAudio => Source::ScreenShareAudio,
    }
}

fn quality(quality: proto::VideoQuality) -> Quality {
    match quality {
        proto::VideoQuality::Low => Quality::Low,
        proto::VideoQuality::Medium => Quality::Medium,
        proto::VideoQuality::High => Quality::High,
        proto::VideoQuality::Off => Quality::Off,
    }
}

fn layer(layer: &proto::VideoLayer) -> VideoLayer {
    let rid: String = layer.rid.chars().take(16).collect();
    VideoLayer {
        quality: quality(layer.quality()),
        width: layer.width,
        height: layer.height,
        bitrate: layer.bitrate,
        rid: rid.into(),
        spatial: u8::try_from(layer.spatial_layer).unwrap_or_default(),
    }
}

fn subscribe(update: &proto::UpdateSubscription) -> MemberRequest {
    let of_participants = update.participant_tracks.iter().flat_map(|of| tracks(&of.track_sids));
    MemberRequest::Subscribe {
        tracks: tracks(&update.track_sids).into_iter().chain(of_participants).collect(),
        subscribe: update.subscribe,
    }
}

fn track_settings(settings: &proto::UpdateTrackSettings) -> TrackSettings {
    TrackSettings {
        tracks: tracks(&settings.track_sids),
        disabled: settings.disabled,
        quality: quality(settings.quality()),
        width: settings.width,
        height: settings.height,
        fps: settings.fps,
        priority: settings.priority,
    }
}

fn subscription_permission(permission: proto::SubscriptionPermission) -> Said {
    let mut participants = Vec::new();
    for of in permission.track_permissions {
        let by_id = parse_participant_sid(&of.participant_sid).map(PermissionSubject::Participant);
        let by_identity = || Identity::new(&of.participant_identity).ok().map(PermissionSubject::Identity);
        // Nobody has such a name, so nobody is allowed by it.
        let Some(subject) = by_id.or_else(by_identity) else { continue };
        participants.push((subject, (!of.all_tracks).then(|| tracks(&of.track_sids))));
    }
    Said::Request(MemberRequest::SubscriptionPermission(SubscriptionPermission { all: permission.all_participants, participants }))
}

/// What a client that is back knows.
pub(super) fn sync(state: &proto::SyncState) -> Said {
    let subscription = state.subscription.clone().unwrap_or_default();
    let MemberRequest::Subscribe { tracks: named, subscribe } = subscribe(&subscription) else { unreachable!("it is what was made") };
    let published = state.publish_tracks.iter().filter_map(|published| {
        let track = parse_track_sid(&published.track.as_ref()?.sid)?;
        Some((published.cid.as_str().into(), track))
    });
    let received = state.datachannel_receive_states.iter();
    let sync = Sync {
        tracks: named,
        subscribe,
        disabled: tracks(&state.track_sids_disabled),
        published: published.collect(),
        received: received.filter_map(|of| Some((parse_participant_sid(&of.publisher_sid)?, of.last_seq))).collect(),
        fed: state.answer.as_ref().map(|answer| fed(&answer.sdp)).unwrap_or_default(),
    };
    let mut channels: Vec<KeptChannel> = Vec::new();
    for channel in state.data_channels.iter().filter_map(kept_channel).take(CHANNELS_MAX) {
        if channels.iter().all(|known| known.channel != channel.channel) {
            channels.push(channel);
        }
    }
    Said::Sync(Box::new(sync), channels)
}

/// By mid, the track that an answer of ours fed into each section: the second word of `a=msid`. A line that is not ours names none.
fn fed(answer: &str) -> Vec<(Box<str>, TrackId)> {
    let mut fed = Vec::new();
    let (mut mid, mut track) = (None, None);
    for line in answer.lines().take(ANSWER_LINES_MAX).chain(["m="]) {
        if line.starts_with("m=") {
            fed.extend(mid.take().zip(track.take()));
        } else if let Some(name) = line.strip_prefix("a=mid:") {
            mid = Some(name.into());
        } else if let Some(names) = line.strip_prefix("a=msid:") {
            track = names.split(' ').nth(1).and_then(parse_track_sid);
        }
    }
    fed.truncate(MEMBER_SECTIONS_MAX);
    fed
}

fn kept_channel(info: &proto::DataChannelInfo) -> Option<KeptChannel> {
    let promise = match &*info.label {
        RELIABLE => Promise { ordered: true, limit: Limit::None },
        LOSSY => Promise { ordered: false, limit: Limit::Repeats(0) },
        _ => return None,
    };
    Some(KeptChannel { channel: u16::try_from(info.id).ok()?, label: info.label.as_str().into(), promise })
}

/// The protocol says "as it was" by an empty text.
fn metadata(update: proto::UpdateParticipantMetadata) -> MetadataUpdate {
    let given = |text: String| (!text.is_empty()).then(|| text.into());
    MetadataUpdate {
        request: update.request_id,
        name: given(update.name),
        metadata: given(update.metadata),
        attributes: update.attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
    }
}

fn simulation(scenario: Option<Scenario>) -> Said {
    match scenario {
        Some(Scenario::NodeFailure(true)) => Said::Simulate(Simulation::SocketLost),
        Some(Scenario::Migration(true)) => Said::Simulate(Simulation::Resume),
        Some(Scenario::ServerLeave(true)) => Said::Simulate(Simulation::Leave),
        Some(Scenario::LeaveRequestFullReconnect(true)) => Said::Simulate(Simulation::Reconnect),
        _ => Said::Refused(Refused::Unspoken),
    }
}
