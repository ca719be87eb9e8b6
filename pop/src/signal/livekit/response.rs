//! What a client is told: the session's notices as messages of the room protocol.

use std::collections::BTreeMap;

use livekit_protocol as proto;
use pop_proto::control::MediaKind;
use pop_schemas::TrackId;
use pop_session::member::{
    ConnectionGrade, LeaveAction, LeaveReason, MemberState, Notice, ParticipantInfo, Permissions, Quality, RequestRefusal, RoomInfo,
    Source, SubscriptionError, TrackInfo, VideoLayer, Welcome,
};
use pop_session::sid::{format_participant_sid, format_track_sid};
use proto::signal_response::Message;

use crate::config::IceServer;

/// How often a client pings, in seconds; LiveKit's servers say the same.
pub(super) const PING_INTERVAL_S: u32 = 5;

/// After so long a silence either end gives the socket up, in seconds.
pub(super) const PING_TIMEOUT_S: u32 = 15;

/// Clients decide by the server's version what they may use of it: what livekit-server had in this one is what there is here, and what
/// came later (SVC codecs as simulcast) is not.
const FEATURES_OF: &str = "1.13.6";

/// The version of the room protocol that this node speaks: the `protocol` of clients' own information.
const PROTOCOL: i32 = 16;

/// What passes, as clients name it; the first video codec is what they fall back to.
const CODECS: [&str; 7] = ["audio/opus", "audio/red", "video/VP8", "video/H264", "video/VP9", "video/AV1", "video/H265"];

/// What a [`Welcome`] says beside the room.
pub(super) struct About<'a> {
    pub(super) node: &'a str,
    pub(super) ice_servers: &'a [IceServer],
}

/// The kind of a message, for counters; one of [`super::counters::OUT`].
pub(super) fn kind_of(message: &Message) -> &'static str {
    match message {
        Message::Join(_) => "join",
        Message::Reconnect(_) => "reconnect",
        Message::Answer(_) => "answer",
        Message::Update(_) => "update",
        Message::TrackPublished(_) => "track_published",
        Message::TrackUnpublished(_) => "track_unpublished",
        Message::TrackSubscribed(_) => "track_subscribed",
        Message::Leave(_) => "leave",
        Message::Mute(_) => "mute",
        Message::SpeakersChanged(_) => "speakers_changed",
        Message::RoomUpdate(_) => "room_update",
        Message::ConnectionQuality(_) => "connection_quality",
        Message::StreamStateUpdate(_) => "stream_state_update",
        Message::SubscribedQualityUpdate(_) => "subscribed_quality_update",
        Message::SubscriptionPermissionUpdate(_) => "subscription_permission_update",
        Message::SubscriptionResponse(_) => "subscription_response",
        Message::RequestResponse(_) => "request_response",
        Message::MediaSectionsRequirement(_) => "media_sections_requirement",
        Message::RefreshToken(_) => "refresh_token",
        Message::Pong(_) | Message::PongResp(_) => "pong",
        _ => unreachable!("this node sends no other"),
    }
}

/// What the client's own tracks are made of: a quality is told with its codec.
#[derive(Debug, Default)]
pub(super) struct OwnTracks(BTreeMap<TrackId, Box<str>>);

impl OwnTracks {
    fn note(&mut self, track: &TrackInfo) {
        self.0.insert(track.track, track.mime.clone());
    }

    /// The message of a notice; `None` where the socket itself has to do something ([`Notice::Answer`], [`Notice::Grants`],
    /// [`Notice::OfferRefused`]).
    pub(super) fn write(&mut self, about: &About<'_>, own: pop_schemas::ParticipantId, notice: Notice) -> Option<Message> {
        Some(match notice {
            Notice::Welcome(welcome) => Message::Join(join(about, *welcome)),
            Notice::Resumed(resumed) => Message::Reconnect(proto::ReconnectResponse {
                ice_servers: ice_servers(about.ice_servers),
                client_configuration: None,
                server_info: Some(server_info(about)),
                last_message_seq: resumed.last_message,
            }),
            Notice::Answer(_) | Notice::Grants(_) | Notice::OfferRefused { .. } => return None,
            Notice::SectionsNeeded { audio, video } => {
                Message::MediaSectionsRequirement(proto::MediaSectionsRequirement { num_audios: audio, num_videos: video })
            }
            Notice::TrackPublished { cid, track: info } => {
                self.note(&info);
                Message::TrackPublished(proto::TrackPublishedResponse { cid: cid.into(), track: Some(track(&info)) })
            }
            Notice::AddTrackRefused { cid, refused } => {
                let add = proto::AddTrackRequest { cid: cid.into(), ..Default::default() };
                Message::RequestResponse(refusal(0, Some(refused), Some(proto::request_response::Request::AddTrack(add))))
            }
            Notice::TrackUnpublished(id) => {
                self.0.remove(&id);
                Message::TrackUnpublished(proto::TrackUnpublishedResponse { track_sid: format_track_sid(id) })
            }
            Notice::TrackSubscribed(id) => Message::TrackSubscribed(proto::TrackSubscribed { track_sid: format_track_sid(id) }),
            Notice::Participants(participants) => {
                for info in participants.iter().filter(|info| info.participant == own).flat_map(|info| &info.tracks) {
                    self.note(info);
                }
                Message::Update(proto::ParticipantUpdate { participants: participants.iter().map(participant).collect() })
            }
            Notice::Muted { track, muted } => Message::Mute(proto::MuteTrackRequest { sid: format_track_sid(track), muted }),
            Notice::Speakers(speakers) => {
                let speaker = |of: &pop_session::member::Speaker| proto::SpeakerInfo {
                    sid: format_participant_sid(of.participant),
                    level: of.level,
                    active: of.active,
                };
                Message::SpeakersChanged(proto::SpeakersChanged { speakers: speakers.iter().map(speaker).collect() })
            }
            Notice::Room(info) => Message::RoomUpdate(proto::RoomUpdate { room: Some(room(&info)) }),
            Notice::Quality(qualities) => {
                let update = |of: &pop_session::member::ConnectionQuality| proto::ConnectionQualityInfo {
                    participant_sid: format_participant_sid(of.participant),
                    quality: grade(of.grade) as i32,
                    score: of.score,
                };
                Message::ConnectionQuality(proto::ConnectionQualityUpdate { updates: qualities.iter().map(update).collect() })
            }
            Notice::StreamStates(states) => {
                let state = |of: pop_session::member::StreamState| proto::StreamStateInfo {
                    participant_sid: format_participant_sid(of.publisher),
                    track_sid: format_track_sid(of.track),
                    state: if of.paused { proto::StreamState::Paused } else { proto::StreamState::Active } as i32,
                };
                Message::StreamStateUpdate(proto::StreamStateUpdate { stream_states: states.into_iter().map(state).collect() })
            }
            Notice::SubscribedQuality { track, quality } => self.subscribed_quality(track, quality),
            Notice::SubscriptionPermission { publisher, track, allowed } => {
                Message::SubscriptionPermissionUpdate(proto::SubscriptionPermissionUpdate {
                    participant_sid: format_participant_sid(publisher),
                    track_sid: format_track_sid(track),
                    allowed,
                })
            }
            Notice::SubscriptionFailed { track, error } => Message::SubscriptionResponse(proto::SubscriptionResponse {
                track_sid: format_track_sid(track),
                err: match error {
                    SubscriptionError::Codec => proto::SubscriptionError::SeCodecUnsupported,
                    SubscriptionError::UnknownTrack => proto::SubscriptionError::SeTrackNotfound,
                    SubscriptionError::Full => proto::SubscriptionError::SeUnknown,
                } as i32,
            }),
            Notice::RequestAnswered { request, refused } => Message::RequestResponse(refusal(request, refused, None)),
            Notice::Leave { reason, action } => leave(reason, action),
        })
    }

    /// Which layers somebody wants: all up to the best that is wanted.
    fn subscribed_quality(&self, id: TrackId, best: Quality) -> Message {
        const STEPS: [Quality; 3] = [Quality::Low, Quality::Medium, Quality::High];
        let enabled = |step: Quality| best != Quality::Off && step <= best;
        let qualities: Vec<_> =
            STEPS.iter().map(|step| proto::SubscribedQuality { quality: quality(*step) as i32, enabled: enabled(*step) }).collect();
        let codec = self.0.get(&id).and_then(|mime| mime.split_once('/')).map(|(_, name)| name.to_ascii_lowercase());
        let codecs = codec.map(|codec| proto::SubscribedCodec { codec, qualities: qualities.clone() });
        #[expect(deprecated, reason = "older clients read this alone")]
        Message::SubscribedQualityUpdate(proto::SubscribedQualityUpdate {
            track_sid: format_track_sid(id),
            subscribed_qualities: qualities,
            subscribed_codecs: codecs.into_iter().collect(),
        })
    }
}

/// The end of a socket.
pub(super) fn leave(reason: LeaveReason, action: LeaveAction) -> Message {
    use proto::DisconnectReason as To;
    let reason = match reason {
        LeaveReason::ClientInitiated => To::ClientInitiated,
        LeaveReason::DuplicateIdentity => To::DuplicateIdentity,
        LeaveReason::ServerShutdown => To::ServerShutdown,
        LeaveReason::Removed => To::ParticipantRemoved,
        LeaveReason::RoomDeleted => To::RoomDeleted,
        LeaveReason::StateMismatch => To::StateMismatch,
        LeaveReason::JoinFailure => To::JoinFailure,
        LeaveReason::SignalClosed => To::SignalClose,
        LeaveReason::ConnectionTimeout => To::ConnectionTimeout,
        LeaveReason::MediaFailure => To::MediaFailure,
    };
    let action = match action {
        LeaveAction::Disconnect => proto::leave_request::Action::Disconnect,
        LeaveAction::Resume => proto::leave_request::Action::Resume,
        LeaveAction::Reconnect => proto::leave_request::Action::Reconnect,
    };
    let can_reconnect = action != proto::leave_request::Action::Disconnect;
    Message::Leave(proto::LeaveRequest { can_reconnect, reason: reason as i32, action: action as i32, regions: None })
}

fn join(about: &About<'_>, welcome: Welcome) -> proto::JoinResponse {
    let server_info = server_info(about);
    proto::JoinResponse {
        room: Some(room(&welcome.room)),
        participant: Some(participant(&welcome.participant)),
        other_participants: welcome.others.iter().map(participant).collect(),
        server_version: server_info.version.clone(),
        ice_servers: ice_servers(about.ice_servers),
        subscriber_primary: false,
        ping_timeout: PING_TIMEOUT_S as i32,
        ping_interval: PING_INTERVAL_S as i32,
        server_info: Some(server_info),
        enabled_publish_codecs: CODECS.map(codec).into(),
        fast_publish: true,
        ..Default::default()
    }
}

fn server_info(about: &About<'_>) -> proto::ServerInfo {
    proto::ServerInfo {
        edition: proto::server_info::Edition::Standard as i32,
        version: FEATURES_OF.to_owned(),
        protocol: PROTOCOL,
        node_id: about.node.to_owned(),
        ..Default::default()
    }
}

fn codec(mime: &str) -> proto::Codec {
    proto::Codec { mime: mime.to_owned(), fmtp_line: String::new() }
}

fn ice_servers(servers: &[IceServer]) -> Vec<proto::IceServer> {
    let server = |server: &IceServer| proto::IceServer {
        urls: vec![server.url.clone()],
        username: server.username.clone().unwrap_or_default(),
        credential: server.credential.clone().unwrap_or_default(),
    };
    servers.iter().map(server).collect()
}

pub(crate) fn room(info: &RoomInfo) -> proto::Room {
    proto::Room {
        sid: info.sid.to_string(),
        name: info.name.to_string(),
        metadata: info.metadata.to_string(),
        creation_time: (info.created_at_ms / 1_000) as i64,
        creation_time_ms: info.created_at_ms as i64,
        num_participants: info.participants,
        num_publishers: info.publishers,
        max_participants: info.participants_max,
        enabled_codecs: CODECS.map(codec).into(),
        ..Default::default()
    }
}

pub(crate) fn participant(info: &ParticipantInfo) -> proto::ParticipantInfo {
    let state = match info.state {
        MemberState::Joining => proto::participant_info::State::Joining,
        MemberState::Joined => proto::participant_info::State::Joined,
        MemberState::Active => proto::participant_info::State::Active,
        MemberState::Disconnected => proto::participant_info::State::Disconnected,
    };
    let left = info.left.map(|reason| leave(reason, LeaveAction::Disconnect));
    let disconnect_reason = match left {
        Some(Message::Leave(leave)) => leave.reason,
        _ => 0,
    };
    proto::ParticipantInfo {
        sid: format_participant_sid(info.participant),
        identity: info.identity.to_string(),
        state: state as i32,
        tracks: info.tracks.iter().map(track).collect(),
        metadata: info.metadata.to_string(),
        joined_at: (info.joined_at_ms / 1_000) as i64,
        joined_at_ms: info.joined_at_ms as i64,
        name: info.name.to_string(),
        version: info.version,
        permission: Some(permission(&info.permissions)),
        is_publisher: info.is_publisher,
        attributes: info.attributes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        disconnect_reason,
        ..Default::default()
    }
}

#[expect(deprecated, reason = "clients of older versions read these fields alone")]
fn permission(permissions: &Permissions) -> proto::ParticipantPermission {
    proto::ParticipantPermission {
        can_subscribe: permissions.subscribe,
        can_publish: permissions.publish,
        can_publish_data: permissions.publish_data,
        can_publish_sources: permissions.sources.iter().map(|of| source(*of) as i32).collect(),
        hidden: permissions.hidden,
        recorder: permissions.recorder,
        can_update_metadata: permissions.update_metadata,
        ..Default::default()
    }
}

#[expect(deprecated, reason = "clients of older versions read these fields alone")]
pub(crate) fn track(info: &TrackInfo) -> proto::TrackInfo {
    use proto::video_layer::Mode;
    let layers: Vec<_> = info.layers.iter().map(layer).collect();
    let mode = match (info.kind, info.simulcast, layers.len()) {
        (MediaKind::Audio, ..) => Mode::Unused,
        (_, false, 2..) => Mode::MultipleSpatialLayersPerStream,
        _ => Mode::OneSpatialLayerPerStream,
    };
    let codec = proto::SimulcastCodecInfo {
        mime_type: info.mime.to_string(),
        mid: info.mid.to_string(),
        layers: layers.clone(),
        video_layer_mode: mode as i32,
        ..Default::default()
    };
    proto::TrackInfo {
        sid: format_track_sid(info.track),
        r#type: match info.kind {
            MediaKind::Audio => proto::TrackType::Audio,
            MediaKind::Video => proto::TrackType::Video,
        } as i32,
        name: info.name.to_string(),
        muted: info.muted,
        width: info.width,
        height: info.height,
        simulcast: info.simulcast,
        disable_dtx: info.disable_dtx,
        source: source(info.source) as i32,
        layers,
        mime_type: info.mime.to_string(),
        mid: info.mid.to_string(),
        codecs: if info.mime.is_empty() { Vec::new() } else { vec![codec] },
        stereo: info.stereo,
        disable_red: info.disable_red,
        encryption: info.encryption,
        stream: info.stream.to_string(),
        audio_features: info.audio_features.clone(),
        ..Default::default()
    }
}

fn layer(layer: &VideoLayer) -> proto::VideoLayer {
    proto::VideoLayer {
        quality: quality(layer.quality) as i32,
        width: layer.width,
        height: layer.height,
        bitrate: layer.bitrate,
        spatial_layer: layer.spatial.into(),
        rid: layer.rid.to_string(),
        ..Default::default()
    }
}

fn source(source: Source) -> proto::TrackSource {
    match source {
        Source::Unknown => proto::TrackSource::Unknown,
        Source::Camera => proto::TrackSource::Camera,
        Source::Microphone => proto::TrackSource::Microphone,
        Source::ScreenShare => proto::TrackSource::ScreenShare,
        Source::ScreenShareAudio => proto::TrackSource::ScreenShareAudio,
    }
}

fn quality(quality: Quality) -> proto::VideoQuality {
    match quality {
        Quality::Low => proto::VideoQuality::Low,
        Quality::Medium => proto::VideoQuality::Medium,
        Quality::High => proto::VideoQuality::High,
        Quality::Off => proto::VideoQuality::Off,
    }
}

fn grade(grade: ConnectionGrade) -> proto::ConnectionQuality {
    match grade {
        ConnectionGrade::Poor => proto::ConnectionQuality::Poor,
        ConnectionGrade::Good => proto::ConnectionQuality::Good,
        ConnectionGrade::Excellent => proto::ConnectionQuality::Excellent,
        ConnectionGrade::Lost => proto::ConnectionQuality::Lost,
    }
}

fn refusal(request_id: u32, refused: Option<RequestRefusal>, request: Option<proto::request_response::Request>) -> proto::RequestResponse {
    use proto::request_response::Reason;
    let (reason, message) = match refused {
        None => (Reason::Ok, ""),
        Some(RequestRefusal::NotFound) => (Reason::NotFound, "there is no such thing"),
        Some(RequestRefusal::NotAllowed) => (Reason::NotAllowed, "the token does not allow it"),
        Some(RequestRefusal::LimitExceeded) => (Reason::LimitExceeded, "it is more than a bound of this node"),
        Some(RequestRefusal::Invalid) => (Reason::InvalidRequest, "it contradicts itself"),
    };
    proto::RequestResponse { request_id, reason: reason as i32, message: message.to_owned(), request }
}
