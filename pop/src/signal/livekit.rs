//! LiveKit's client protocol, version 1: rooms for the clients that its SDKs make.
//!
//! ```text
//! GET /rtc/v1?access_token&join_request -> join: token, room, first offer -> Node::enter | Node::resume -> Seat
//! WebSocket <-> socket <- request: messages in the session's words -> Seat::say, Seat::offer
//!                      <- response: notices in the protocol's words <- Seat::next
//!                      <- offer: an offer is cut down to what can be served, and its answer written when the session has decided
//! ```
//! One PeerConnection per client, which offers alone ("publisher only"). What comes from a client is bounded before a parser sees it:
//! the URL by the listener, messages by length, fields and rate, offers by the bounds of [`super::sdp`].

mod counters;
pub mod data;
mod digest;
mod join;
mod offer;
mod request;
mod response;
mod rooms;
mod socket;
mod twirp;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, RawQuery, State, WebSocketUpgrade};
use axum::http::header::{ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, extract};
use pop_schemas::{ParticipantId, SessionId};
use pop_session::token::{Access, GrantError, TokenError};

use self::join::JoinError;
use self::socket::Context;
use super::endpoint::open_to_all_origins;
use super::sdp::Bounds;
use crate::config::Config;
use crate::node::Node;
use crate::serve::Place;

pub use self::counters::{Refused, SignalCounters};
pub use self::digest::{Digest, digest_join_request, digest_message, digest_offer};
pub(super) use self::join::room_of;

/// Longest message of a client, in bytes: an offer, and the offer and the answer that a resume brings.
const MESSAGE_LEN_MAX: usize = 2 * Bounds::MEMBER.len;

/// Bytes that are read from a socket at once. The buffer is filled with zeros whole, so each member has it for good: most messages are of a
/// few hundred bytes, and a longer one takes more reads.
const READ_BUFFER_LEN: usize = 8 << 10;

/// Why a client is not let to the socket: one sentence, which SDKs show.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("an access token is needed: access_token=TOKEN, or Authorization: Bearer TOKEN")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the query of the URL cannot be read")]
    Query,
    #[error("this node is stopping")]
    Stopping,
    /// Not 404, at which clients try another version and come back, and not 501, whose sentence they do not show.
    #[error("this node speaks version 1 of the room protocol (/rtc/v1): use a client SDK that joins by a single peer connection")]
    Version,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match self {
            Problem::NoToken | Problem::Token(_) => StatusCode::UNAUTHORIZED,
            Problem::Grant(_) | Problem::Version => StatusCode::FORBIDDEN,
            Problem::Join(_) | Problem::Query => StatusCode::BAD_REQUEST,
            Problem::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl Problem {
    fn counted_as(&self) -> Refused {
        match self {
            Problem::NoToken | Problem::Token(_) | Problem::Grant(_) => Refused::Token,
            Problem::Join(_) | Problem::Query => Refused::Join,
            Problem::Stopping => Refused::Full,
            Problem::Version => Refused::Version,
        }
    }
}

/// `/rtc/v1` and what belongs to it, and the calls of servers.
pub(super) fn routes(node: Node, config: &Config) -> Router {
    let services = rooms::routes(node.clone());
    let context = Arc::new(Context { node, dtls_role: config.media.dtls_role, ice_servers: config.http.ice_servers.clone() });
    Router::new()
        .route("/rtc/v1", get(connect).options(preflight))
        .route("/rtc/v1/validate", get(validate).options(preflight))
        .route("/rtc", get(refuse_version).options(preflight))
        .route("/rtc/validate", get(refuse_version).options(preflight))
        .route_layer(middleware::from_fn(open_to_all_origins))
        .with_state(context)
        .merge(services)
}

async fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "Authorization"),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

async fn refuse_version(State(context): State<Arc<Context>>) -> Response {
    refuse(&context, Problem::Version)
}

fn refuse(context: &Context, problem: Problem) -> Response {
    context.counters().refuse(problem.counted_as());
    problem.into_response()
}

/// What a client is told that could not open its socket and asks why.
async fn validate(State(context): State<Arc<Context>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    match admit(&context, query.as_deref(), &headers) {
        Ok(_) => "success".into_response(),
        Err(problem) => refuse(&context, problem),
    }
}

async fn connect(
    State(context): State<Arc<Context>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    place: Option<Extension<Arc<Place>>>,
    upgrade: Result<WebSocketUpgrade, extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let admitted = match admit(&context, query.as_deref(), &headers) {
        Ok(admitted) => admitted,
        Err(problem) => return refuse(&context, problem),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    let (access, joined) = admitted;
    upgrade
        .max_message_size(MESSAGE_LEN_MAX)
        .max_frame_size(MESSAGE_LEN_MAX)
        .read_buffer_size(READ_BUFFER_LEN)
        .on_upgrade(move |frames| socket::serve(context, frames, access, joined, place.map(|Extension(place)| place)))
}

/// The room that a client comes to by `query`, and who it was before when it says that it is back. Its token is trusted, or it wants nothing.
pub(super) fn wants(
    query: &str,
    headers: &HeaderMap,
    verify: impl FnOnce(&str) -> Option<Access>,
) -> Option<(SessionId, Option<ParticipantId>)> {
    let (query, token) = read_query(Some(query), headers).ok()?;
    Some((room_of(&verify(&token)?)?, query.resumes()))
}

/// The query, and the token that it or a header brings.
fn read_query(query: Option<&str>, headers: &HeaderMap) -> Result<(join::Query, String), Problem> {
    let uri = format!("/?{}", query.unwrap_or_default()).parse().map_err(|_| Problem::Query)?;
    let Query(mut query) = Query::<join::Query>::try_from_uri(&uri).map_err(|_| Problem::Query)?;
    let bearer = || Some(headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?.trim().to_owned());
    let token = query.access_token.take().filter(|token| !token.is_empty()).or_else(bearer).ok_or(Problem::NoToken)?;
    Ok((query, token))
}

/// Everything that can be said without the room.
fn admit(context: &Context, query: Option<&str>, headers: &HeaderMap) -> Result<(Access, join::Joined), Problem> {
    let (query, token) = read_query(query, headers)?;
    let access = context.node.verify_token(&token)?;
    let room = room_of(&access).ok_or(GrantError::OtherRoom)?;
    access.may_join(&room)?;
    if context.node.is_stopping() {
        return Err(Problem::Stopping);
    }
    // Everybody in the room gets to know it; who may resume by it, the identity of the token says.
    let participant = ParticipantId(context.node.next_id());
    let mut joined = query.read(token, &access, participant, crate::token::unix_now_ms())?;
    // Who comes back does not always say what it is.
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    joined.redoes_dtls &= !agent.is_some_and(|agent| agent.contains("Firefox/"));
    Ok((access, joined))
}
