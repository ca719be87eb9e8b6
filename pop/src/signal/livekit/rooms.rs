//! LiveKit's RoomService: what servers do to rooms. Each method asks for the grant that LiveKit asks for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path};
use axum::routing::any;
use livekit_protocol as proto;
use pop_schemas::{Identity, SessionId, TrackId};
use pop_session::member::{AdminRequest, MetadataUpdate, ParticipantInfo, Permissions, RoomInfo};
use pop_session::sid::{format_participant_sid, parse_track_sid};
use pop_session::{Refusal, Reply};
use proto::data_packet::Kind;
use tokio::task::JoinSet;

use super::data::build_operator_message;
use super::request::source;
use super::response;
use super::twirp::{BODY_LEN_MAX, Caller, Code, Failure, method};
use crate::cluster::Goal;
use crate::node::{CreateError, Node};
use crate::token::unix_now_ms;

/// How long a room that is made waits for somebody when nobody says otherwise (LiveKit's figure).
const EMPTY_TIMEOUT_S: u32 = 300;

/// How long at most.
const EMPTY_TIMEOUT_S_MAX: u32 = 86_400;

/// The service. Methods that this node does not have, and other services, are answered too: their SDKs show the sentence.
pub(super) fn routes(node: Node) -> Router {
    Router::new()
        .route("/twirp/livekit.RoomService/CreateRoom", method(create_room))
        .route("/twirp/livekit.RoomService/ListRooms", method(list_rooms))
        .route("/twirp/livekit.RoomService/DeleteRoom", method(delete_room))
        .route("/twirp/livekit.RoomService/UpdateRoomMetadata", method(update_room_metadata))
        .route("/twirp/livekit.RoomService/ListParticipants", method(list_participants))
        .route("/twirp/livekit.RoomService/GetParticipant", method(get_participant))
        .route("/twirp/livekit.RoomService/RemoveParticipant", method(remove_participant))
        .route("/twirp/livekit.RoomService/UpdateParticipant", method(update_participant))
        .route("/twirp/livekit.RoomService/MutePublishedTrack", method(mute_published_track))
        .route("/twirp/livekit.RoomService/UpdateSubscriptions", method(update_subscriptions))
        .route("/twirp/livekit.RoomService/SendData", method(send_data))
        .route("/twirp/{service}/{method}", any(unimplemented))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(node)
}

async fn unimplemented(Path((service, method)): Path<(String, String)>) -> Failure {
    let name: String = format!("{service}/{method}").chars().take(128).collect();
    Failure::new(Code::Unimplemented, format!("this node has no {name}"))
}

impl Caller {
    /// The room, when the caller may manage it.
    fn manages(&self, room: &str) -> Result<SessionId, Failure> {
        let room = parse_room(room)?;
        self.grant.may_manage(&room)?;
        Ok(room)
    }

    async fn ask(&self, room: &SessionId, request: AdminRequest) -> Result<Reply, Failure> {
        Ok(self.node.admin(room, request).await?)
    }

    async fn list(&self, room: &SessionId) -> Result<Vec<ParticipantInfo>, Failure> {
        match self.node.admin(room, AdminRequest::List).await {
            Ok(Reply::Participants(participants)) => Ok(participants),
            Ok(other) => unreachable!("a list is answered by participants, not by {other:?}"),
            // Where nobody has been, nobody is.
            Err(Refusal::UnknownParticipant) => Ok(Vec::new()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn find(&self, room: &SessionId, identity: &Identity) -> Result<ParticipantInfo, Failure> {
        let found = self.list(room).await?.into_iter().find(|info| info.identity == *identity);
        found.ok_or_else(|| Refusal::UnknownParticipant.into())
    }

    async fn describe(&self, room: &SessionId) -> Result<RoomInfo, Failure> {
        let Reply::Room(info) = self.ask(room, AdminRequest::Describe).await? else { unreachable!("a room is described by its info") };
        Ok(*info)
    }
}

fn parse_room(room: &str) -> Result<SessionId, Failure> {
    SessionId::new(room).map_err(|error| Failure::new(Code::InvalidArgument, format!("the room's name {error}")))
}

fn parse_identity(identity: &str) -> Result<Identity, Failure> {
    Identity::new(identity).map_err(|error| Failure::new(Code::InvalidArgument, format!("the identity {error}")))
}

fn parse_track(sid: &str) -> Result<TrackId, Failure> {
    parse_track_sid(sid).ok_or_else(|| Refusal::UnknownTrack.into())
}

/// The protocol says "as it was" by an empty text.
fn given(text: String) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

async fn create_room(caller: Caller, asked: proto::CreateRoomRequest) -> Result<proto::Room, Failure> {
    caller.grant.may_create()?;
    if asked.egress.is_some() || !asked.agents.is_empty() {
        return Err(Failure::new(Code::Unimplemented, "this node records nothing and sends for no agents: leave egress and agents out"));
    }
    let room = parse_room(&asked.name)?;
    let empty_timeout = if asked.empty_timeout == 0 { EMPTY_TIMEOUT_S } else { asked.empty_timeout.min(EMPTY_TIMEOUT_S_MAX) };
    let (metadata, participants_max) = (given(asked.metadata), asked.max_participants);
    let request = AdminRequest::Create { metadata, participants_max, now_ms: unix_now_ms() };
    let made = caller.node.create_room(&room, request, Duration::from_secs(empty_timeout.into())).await;
    let info = made.map_err(|error| match error {
        CreateError::Refused(refusal) => refusal.into(),
        CreateError::Full => Failure::new(Code::ResourceExhausted, error.to_string()),
        CreateError::Stopping => Failure::new(Code::Unavailable, error.to_string()),
    })?;
    Ok(proto::Room { empty_timeout, ..response::room(&info) })
}

/// The rooms of all nodes, each once. A node that does not answer is about to be dead: the rooms that it alone knew of are not listed.
async fn list_rooms(caller: Caller, asked: proto::ListRoomsRequest) -> Result<proto::ListRoomsResponse, Failure> {
    caller.grant.may_list()?;
    let is_asked = |info: &RoomInfo| asked.names.is_empty() || asked.names.iter().any(|name| **name == *info.name);
    let rooms = caller.node.rooms().await;
    let mut rooms: Vec<_> = rooms.iter().filter(|info| is_asked(info)).map(response::room).collect();
    let ways = if caller.is_carried { Vec::new() } else { caller.node.ways().await };
    let asked = Arc::new((caller, asked));
    let mut answers = JoinSet::new();
    for way in ways {
        let asked = Arc::clone(&asked);
        answers.spawn(async move { asked.0.ask_at(&way, &asked.1).await });
    }
    while let Some(answer) = answers.join_next().await {
        match answer {
            Ok(Ok(proto::ListRoomsResponse { rooms: theirs })) => rooms.extend(theirs),
            Ok(Err(failure)) => tracing::debug!(?failure, "a node does not list its rooms"),
            Err(_) => {}
        }
    }
    Ok(proto::ListRoomsResponse { rooms: join_rooms(rooms) })
}

/// What nodes know of one room, as one. Each counts the people of all nodes, as far as it has heard of them; the oldest gives its id.
fn join_rooms(told: Vec<proto::Room>) -> Vec<proto::Room> {
    let mut rooms: BTreeMap<String, proto::Room> = BTreeMap::new();
    for room in told {
        let Some(known) = rooms.get_mut(&room.name) else {
            rooms.insert(room.name.clone(), room);
            continue;
        };
        known.num_participants = known.num_participants.max(room.num_participants);
        known.num_publishers = known.num_publishers.max(room.num_publishers);
        known.max_participants = known.max_participants.max(room.max_participants);
        let age = |room: &proto::Room| if room.creation_time_ms == 0 { i64::MAX } else { room.creation_time_ms };
        if age(&room) < age(known) {
            (known.sid, known.creation_time, known.creation_time_ms) = (room.sid, room.creation_time, room.creation_time_ms);
        }
        if known.metadata.is_empty() {
            known.metadata = room.metadata;
        }
    }
    rooms.into_values().collect()
}

async fn delete_room(caller: Caller, asked: proto::DeleteRoomRequest) -> Result<proto::DeleteRoomResponse, Failure> {
    caller.grant.may_create()?;
    let room = parse_room(&asked.room)?;
    let unknown = |_| Failure::new(Code::NotFound, "there is no such room");
    caller.node.delete_room(&room).await.map_err(unknown)?;
    Ok(proto::DeleteRoomResponse {})
}

async fn update_room_metadata(caller: Caller, asked: proto::UpdateRoomMetadataRequest) -> Result<proto::Room, Failure> {
    let room = caller.manages(&asked.room)?;
    caller.ask(&room, AdminRequest::UpdateRoom { metadata: asked.metadata.into(), now_ms: unix_now_ms() }).await?;
    Ok(response::room(&caller.describe(&room).await?))
}

async fn list_participants(caller: Caller, asked: proto::ListParticipantsRequest) -> Result<proto::ListParticipantsResponse, Failure> {
    let room = caller.manages(&asked.room)?;
    let participants = caller.list(&room).await?;
    Ok(proto::ListParticipantsResponse { participants: participants.iter().map(response::participant).collect() })
}

async fn get_participant(caller: Caller, asked: proto::RoomParticipantIdentity) -> Result<proto::ParticipantInfo, Failure> {
    let room = caller.manages(&asked.room)?;
    Ok(response::participant(&caller.find(&room, &parse_identity(&asked.identity)?).await?))
}

async fn remove_participant(caller: Caller, asked: proto::RoomParticipantIdentity) -> Result<proto::RemoveParticipantResponse, Failure> {
    let room = caller.manages(&asked.room)?;
    caller.ask(&room, AdminRequest::Remove(parse_identity(&asked.identity)?)).await?;
    Ok(proto::RemoveParticipantResponse {})
}

/// As with LiveKit unless it is configured otherwise, nobody opens another one's microphone.
async fn mute_published_track(caller: Caller, asked: proto::MuteRoomTrackRequest) -> Result<proto::MuteRoomTrackResponse, Failure> {
    let room = caller.manages(&asked.room)?;
    if !asked.muted {
        return Err(Failure::new(Code::FailedPrecondition, "a track that is muted is unmuted by its own participant"));
    }
    let (identity, track) = (parse_identity(&asked.identity)?, parse_track(&asked.track_sid)?);
    caller.ask(&room, AdminRequest::Mute { identity: identity.clone(), track, muted: true }).await?;
    let tracks = caller.find(&room, &identity).await?.tracks;
    // On another node it is muted before that is known here.
    let muted = |info| proto::TrackInfo { muted: true, ..response::track(info) };
    Ok(proto::MuteRoomTrackResponse { track: tracks.iter().find(|info| info.track == track).map(muted) })
}

async fn update_participant(caller: Caller, asked: proto::UpdateParticipantRequest) -> Result<proto::ParticipantInfo, Failure> {
    let room = caller.manages(&asked.room)?;
    let identity = parse_identity(&asked.identity)?;
    let again = (!caller.is_carried && caller.node.has_others()).then(|| asked.clone());
    let attributes = asked.attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let texts = MetadataUpdate { request: 0, name: given(asked.name), metadata: given(asked.metadata), attributes };
    let permissions = asked.permission.as_ref().map(permissions);
    match caller.node.admin(&room, AdminRequest::Update { identity: identity.clone(), texts, permissions }).await {
        // On another node, perhaps: the one that has the participant is asked the same.
        Err(Refusal::UnknownParticipant) => {
            let asked = again.ok_or(Refusal::UnknownParticipant)?;
            let participant = caller.find(&room, &identity).await?.participant;
            let way = caller.node.way(&Goal::Member { session: room, participant }, &[]).await;
            return caller.ask_at(&way.ok_or(Refusal::UnknownParticipant)?, &asked).await;
        }
        updated => drop(updated?),
    }
    Ok(response::participant(&caller.find(&room, &identity).await?))
}

#[expect(deprecated, reason = "`recorder` is what older servers say")]
fn permissions(asked: &proto::ParticipantPermission) -> Permissions {
    Permissions {
        subscribe: asked.can_subscribe,
        publish: asked.can_publish,
        publish_data: asked.can_publish_data,
        sources: asked.can_publish_sources().map(source).collect(),
        hidden: asked.hidden,
        recorder: asked.recorder,
        update_metadata: asked.can_update_metadata,
    }
}

async fn update_subscriptions(
    caller: Caller,
    asked: proto::UpdateSubscriptionsRequest,
) -> Result<proto::UpdateSubscriptionsResponse, Failure> {
    let room = caller.manages(&asked.room)?;
    let of_participants = asked.participant_tracks.iter().flat_map(|of| &of.track_sids);
    let tracks = asked.track_sids.iter().chain(of_participants).map(|sid| parse_track(sid)).collect::<Result<_, _>>()?;
    let identity = parse_identity(&asked.identity)?;
    caller.ask(&room, AdminRequest::Subscribe { identity, tracks, subscribe: asked.subscribe }).await?;
    Ok(proto::UpdateSubscriptionsResponse {})
}

async fn send_data(caller: Caller, asked: proto::SendDataRequest) -> Result<proto::SendDataResponse, Failure> {
    let room = caller.manages(&asked.room)?;
    let reliable = asked.kind() == Kind::Reliable;
    let Some(to) = receivers(&caller, &room, &asked).await? else { return Ok(proto::SendDataResponse {}) };
    let message = build_operator_message(reliable, to, asked.data, asked.topic, asked.nonce);
    let message = message.ok_or_else(|| Failure::from(Refusal::MessageTooLarge))?;
    caller.ask(&room, AdminRequest::SendData(message.into())).await?;
    Ok(proto::SendDataResponse {})
}

/// Whom a message is for; `None`: somebody is named, and none of them is here. An empty list is everybody.
#[expect(deprecated, reason = "older servers name receivers by id")]
async fn receivers(caller: &Caller, room: &SessionId, asked: &proto::SendDataRequest) -> Result<Option<Vec<Identity>>, Failure> {
    let mut to = asked.destination_identities.iter().map(|name| parse_identity(name)).collect::<Result<Vec<_>, _>>()?;
    if !asked.destination_sids.is_empty() {
        let named = |info: &ParticipantInfo| asked.destination_sids.contains(&format_participant_sid(info.participant));
        to.extend(caller.list(room).await?.into_iter().filter(named).map(|info| info.identity));
    }
    let names_somebody = !asked.destination_identities.is_empty() || !asked.destination_sids.is_empty();
    Ok((!names_somebody || !to.is_empty()).then_some(to))
}
