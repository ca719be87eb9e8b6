//! How a client comes: the query of its URL, and the join request inside.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use livekit_protocol as proto;
use pop_schemas::{ParticipantId, SessionId};
use pop_session::member::{Enter, Resume};
use pop_session::sid::parse_participant_sid;
use pop_session::token::Access;
use prost::Message;
use serde::Deserialize;

use super::offer::StreamNames;
use super::wire::is_within_bounds;
use crate::signal::sdp::Bounds;

/// Largest join request, in bytes, decompressed: an offer and what comes with it.
const JOIN_LEN_MAX: usize = Bounds::MEMBER.len + 64 * 1_024;

/// Longest client name that is kept for the log, in bytes.
const CLIENT_LEN_MAX: usize = 64;

/// Clients write URL-safe base64, with padding (JavaScript) and without.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What may stand in the query. Beside the join request there are the words of clients that have none.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Query {
    pub(super) access_token: Option<String>,
    join_request: Option<String>,
    reconnect: Option<String>,
    sid: Option<String>,
    auto_subscribe: Option<String>,
    adaptive_stream: Option<String>,
    sdk: Option<String>,
    version: Option<String>,
    protocol: Option<String>,
    browser: Option<String>,
}

/// Why a client's query is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JoinError {
    #[error("join_request is not URL-safe base64")]
    Base64,
    #[error("join_request does not hold a WrappedJoinRequest of the room protocol")]
    Malformed,
    #[error("join_request is longer than {JOIN_LEN_MAX} bytes when it is decompressed")]
    TooLarge,
    #[error("join_request is compressed, but not as gzip does it")]
    Gzip,
}

/// What a client comes for.
#[derive(Debug)]
pub(super) enum Arrival {
    Enter(Box<Enter>),
    Resume(Resume),
    /// It wants to be somebody who never was here.
    Stranger,
}

/// A client that has come.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) arrival: Arrival,
    /// The first offer, when it came at once.
    pub(super) offer: Option<proto::SessionDescription>,
    /// Tracks that it announces at once.
    pub(super) tracks: Vec<proto::AddTrackRequest>,
    /// What a client that is back still knows, when it came at once.
    pub(super) sync: Option<proto::SyncState>,
    pub(super) streams: StreamNames,
    /// Its peer connection can change to another certificate of ours. Firefox's keeps the association that it has.
    pub(super) redoes_dtls: bool,
    /// What it came by.
    pub(super) token: String,
}

impl Query {
    /// Reads what `access` comes for. `participant` was drawn for the case that it is a new one.
    pub(super) fn read(self, token: String, access: &Access, participant: ParticipantId, now_ms: u64) -> Result<Joined, JoinError> {
        let request = match &self.join_request {
            Some(text) => unwrap(text)?,
            None => self.request(),
        };
        let proto::JoinRequest { publisher_offer, add_track_requests, sync_state, .. } = &request;
        let (offer, tracks, sync) = (publisher_offer.clone(), add_track_requests.clone(), sync_state.clone());
        let streams = request.client_info.as_ref().map_or(StreamNames::OfTracks, stream_names);
        let redoes_dtls = !request.client_info.as_ref().is_some_and(is_firefox);
        Ok(Joined { arrival: arrive(request, access, participant, now_ms), offer, tracks, sync, streams, redoes_dtls, token })
    }

    /// Who it was before, when it says that it is back.
    pub(super) fn resumes(&self) -> Option<ParticipantId> {
        let request = match &self.join_request {
            Some(text) => unwrap(text).ok()?,
            None => self.request(),
        };
        parse_participant_sid(&request.participant_sid).filter(|_| request.reconnect)
    }

    /// The same as a join request.
    fn request(&self) -> proto::JoinRequest {
        let is = |value: &Option<String>, default| value.as_deref().map_or(default, |value| matches!(value, "1" | "true"));
        let client = proto::ClientInfo {
            version: self.version.clone().unwrap_or_default(),
            protocol: self.protocol.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default(),
            browser: self.browser.clone().or_else(|| self.sdk.clone()).unwrap_or_default(),
            ..Default::default()
        };
        proto::JoinRequest {
            client_info: Some(client),
            connection_settings: Some(proto::ConnectionSettings {
                auto_subscribe: is(&self.auto_subscribe, true),
                adaptive_stream: is(&self.adaptive_stream, false),
                ..Default::default()
            }),
            reconnect: is(&self.reconnect, false),
            participant_sid: self.sid.clone().unwrap_or_default(),
            ..Default::default()
        }
    }
}

/// Clients know streams of several tracks from version 10 of the protocol on. Firefox names a track as it likes, and its stream must tell.
fn stream_names(client: &proto::ClientInfo) -> StreamNames {
    let knows = client.protocol >= 10 && !is_firefox(client);
    if knows { StreamNames::OfSources } else { StreamNames::OfTracks }
}

fn is_firefox(client: &proto::ClientInfo) -> bool {
    client.browser.eq_ignore_ascii_case("firefox")
}

/// A join request from the query's text.
pub(super) fn unwrap(text: &str) -> Result<proto::JoinRequest, JoinError> {
    let wrapped = BASE64.decode(text).map_err(|_| JoinError::Base64)?;
    if !is_within_bounds(&wrapped) {
        return Err(JoinError::Malformed);
    }
    let wrapped = proto::WrappedJoinRequest::decode(&*wrapped).map_err(|_| JoinError::Malformed)?;
    let request = match wrapped.compression() {
        proto::wrapped_join_request::Compression::None => wrapped.join_request,
        proto::wrapped_join_request::Compression::Gzip => decompress(&wrapped.join_request)?,
    };
    if request.len() > JOIN_LEN_MAX {
        return Err(JoinError::TooLarge);
    }
    if !is_within_bounds(&request) {
        return Err(JoinError::Malformed);
    }
    proto::JoinRequest::decode(&*request).map_err(|_| JoinError::Malformed)
}

/// Reads no further than one byte beyond the bound: 1 KB of gzip may mean 1 MB.
fn decompress(bytes: &[u8]) -> Result<Vec<u8>, JoinError> {
    let mut request = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes).take(JOIN_LEN_MAX as u64 + 1);
    decoder.read_to_end(&mut request).map_err(|_| JoinError::Gzip)?;
    Ok(request)
}

fn arrive(request: proto::JoinRequest, access: &Access, participant: ParticipantId, now_ms: u64) -> Arrival {
    let identity = access.identity().clone();
    if request.reconnect {
        let participant = parse_participant_sid(&request.participant_sid);
        let permissions = access.claims().video.permissions();
        let client: Box<str> = request.client_info.as_ref().map(describe_client).unwrap_or_default().into();
        let resume = |participant| Arrival::Resume(Resume { participant, identity, permissions, now_ms, client });
        return participant.map_or(Arrival::Stranger, resume);
    }
    let settings = request.connection_settings.unwrap_or(proto::ConnectionSettings { auto_subscribe: true, ..Default::default() });
    let claims = access.claims();
    let permissions = claims.video.permissions();
    // Who may not change them later may not bring others than its token's either.
    let may_bring = permissions.update_metadata;
    let metadata = Some(request.metadata).filter(|metadata| may_bring && !metadata.is_empty());
    let metadata = metadata.unwrap_or_else(|| claims.metadata.clone().unwrap_or_default());
    let own = claims.attributes.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
    // "will set keys provided via this; will overwrite if the same key is in the token; will not delete keys from token"
    let given = request.participant_attributes.into_iter().filter(|(_, value)| may_bring && !value.is_empty());
    let attributes: BTreeMap<Box<str>, Box<str>> = own.chain(given.map(|(key, value)| (key.into(), value.into()))).collect();
    Arrival::Enter(Box::new(Enter {
        participant,
        identity,
        name: claims.name.clone().unwrap_or_default().into(),
        metadata: metadata.into(),
        attributes,
        permissions,
        auto_subscribe: settings.auto_subscribe,
        adaptive_stream: settings.adaptive_stream,
        joined_at_ms: now_ms,
        client: request.client_info.as_ref().map(describe_client).unwrap_or_default().into(),
    }))
}

/// SDK, its version, and what it runs on; printable and short, because it goes into logs.
fn describe_client(client: &proto::ClientInfo) -> String {
    let sdk = client.sdk().as_str_name().to_ascii_lowercase();
    let text = format!("{sdk} {} {} {}", client.version, client.browser, client.os);
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(CLIENT_LEN_MAX).collect::<String>().trim().to_owned()
}

/// The room that a token is for.
pub(in crate::signal) fn room_of(access: &Access) -> Option<SessionId> {
    access.claims().video.room.as_deref().and_then(|room| SessionId::new(room).ok())
}
