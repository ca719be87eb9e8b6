//! The HTTP side that WHIP and WHEP share: one POST makes a resource, PATCH moves it, one DELETE ends it.

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pop_proto::control::{IceCredentials, OpenTransport};
use pop_schemas::{IdError, ParticipantId, SessionId, TransportId};
use pop_session::token::{Access, GrantError, TokenError};
use pop_session::{IceCondition, IceUpdate, Join, Opening, Refusal, Role};

use super::answer::{Accepted, LocalMedia, LocalSource, LocalTransport, Negotiation, negotiate};
use super::elsewhere::ORIGIN_DIGITS;
use super::ice_servers::IceServers;
use super::patch::{self, SDP_FRAGMENT, draw_credentials};
use super::sdp::{self, FingerprintLine, SDP_LEN_MAX, SdpError};
use super::{whep, whip};
use crate::config::{Config, DtlsRole};
use crate::dtls::{self, DtlsError, Fingerprint};
use crate::http::encode_component;
use crate::node::{JoinError, Node};
use crate::token::unix_now_ms;

const SDP: &str = "application/sdp";

/// What the endpoint takes by POST (RFC 9725, W3C LDP section 7.1).
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

/// What a resource takes by PATCH (RFC 5789 section 3.1).
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// How long a client should wait before it asks a full node again, in seconds.
const RETRY_AFTER_S: &str = "5";

/// What the config says to every endpoint.
#[derive(Clone)]
struct Setup {
    /// What the node wants to be when a client leaves it the choice.
    dtls_role: DtlsRole,
    ice_servers: IceServers,
    /// Before the path of a `Location`. Empty without a public URL: a relative reference is right for whoever reached this node
    /// directly. With one it must be absolute, because clients exist that resolve it against the URL that they were redirected from.
    base: String,
}

/// `/whip/{room}` and `/whep/{room}` with their resources, and the same endpoints as `/{room}/whip` and `/{room}/whep`.
pub(super) fn routes(node: Node, config: &Config) -> Router {
    let setup = Setup {
        dtls_role: config.media.dtls_role,
        ice_servers: IceServers::new(&config.http.ice_servers),
        base: config.http.public_url.as_ref().map_or_else(String::new, |url| url.as_str().to_owned()),
    };
    let endpoint = |role| -> MethodRouter<Node> {
        let (create_setup, describe_setup) = (setup.clone(), setup.clone());
        post(move |State(node), path, request| create(node, role, create_setup, path, request))
            .get(move || async move { describe_endpoint(role) })
            .options(move |State(node), headers, path| async move { answer_options(&node, role, &describe_setup, &headers, path) })
    };
    let resource = || -> MethodRouter<Node> {
        delete(remove).patch(patch::update).get(describe_resource).options(|| async { preflight("GET, HEAD, PATCH, DELETE, OPTIONS") })
    };
    Router::new()
        .route("/whip/{room}", endpoint(Role::Publish))
        .route("/{room}/whip", endpoint(Role::Publish))
        .route("/whip/{room}/{resource}", resource())
        .route("/whep/{room}", endpoint(Role::Watch))
        .route("/{room}/whep", endpoint(Role::Watch))
        .route("/whep/{room}/{resource}", resource())
        .route_layer(middleware::from_fn(open_to_all_origins))
        .layer(DefaultBodyLimit::max(SDP_LEN_MAX))
        .with_state(node)
}

/// Why a request is refused. Its display is the body of the answer: one sentence for whoever wrote the client.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The path is not a room.
    #[error("the room's name {0}")]
    Room(#[from] IdError),
    /// The path cannot be decoded.
    #[error("the room's name is not percent-encoded UTF-8")]
    Path,
    /// No bearer token.
    #[error("an access token is needed: Authorization: Bearer TOKEN")]
    NoToken,
    /// The token is not believed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token does not allow this.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The body is said to be something else.
    #[error("the Content-Type must be application/sdp")]
    ContentType,
    /// The body of a PATCH is said to be something else.
    #[error("the Content-Type must be {SDP_FRAGMENT}")]
    PatchType,
    /// The body is longer than this, in bytes.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// The body did not arrive.
    #[error("the body could not be read")]
    Body,
    /// The offer is malformed.
    #[error("{0}")]
    Malformed(SdpError),
    /// The offer is well formed and cannot be served.
    #[error("{0}")]
    Unusable(SdpError),
    /// The session does not take it.
    #[error(transparent)]
    Refused(Refusal),
    /// No room on the workers, or too many handshakes.
    #[error("this node is full: try again in {RETRY_AFTER_S} s")]
    Full,
    /// The node ends.
    #[error("this node is stopping")]
    Stopping,
    /// Nobody has this resource.
    #[error("there is no such resource: it may have ended")]
    NoResource,
    /// Ours alone.
    #[error("this node made a mistake: {0}")]
    Ours(String),
}

impl Problem {
    /// Why a body of at most `len_max` bytes did not come.
    pub(super) fn of_body(rejection: &BytesRejection, len_max: usize) -> Problem {
        match rejection {
            BytesRejection::FailedToBufferBody(cause) if cause.status() == StatusCode::PAYLOAD_TOO_LARGE => Problem::TooLarge(len_max),
            _ => Problem::Body,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Problem::Room(_) | Problem::Path | Problem::Body | Problem::Malformed(_) => StatusCode::BAD_REQUEST,
            Problem::NoToken | Problem::Token(_) => StatusCode::UNAUTHORIZED,
            Problem::Grant(_) => StatusCode::FORBIDDEN,
            Problem::ContentType | Problem::PatchType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Problem::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            // RFC 9725 section 4.3.1: 428 for a missing entity-tag, 412 for one of another ICE session.
            Problem::Refused(Refusal::IceUnconditional) => StatusCode::PRECONDITION_REQUIRED,
            Problem::Refused(Refusal::IceStale) => StatusCode::PRECONDITION_FAILED,
            Problem::Refused(Refusal::Connecting(_)) => StatusCode::TOO_MANY_REQUESTS,
            // RFC 9725 answers an offer whose number of tracks it does not support with 422 or 400, and one whose a=setup it does
            // not support with 422; every well-formed offer that cannot be served gets the same here.
            Problem::Unusable(_) | Problem::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Problem::Full | Problem::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Problem::NoResource => StatusCode::NOT_FOUND,
            Problem::Ours(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// RFC 6750 section 3.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Problem::NoToken => Some("Bearer"),
            Problem::Token(_) => Some("Bearer error=\"invalid_token\""),
            Problem::Grant(_) => Some("Bearer error=\"insufficient_scope\""),
            _ => None,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(_) => Problem::Full,
            Refusal::UnknownResource => Problem::NoResource,
            Refusal::Duplicate => Problem::Ours(refusal.to_string()),
            refusal => Problem::Refused(refusal),
        }
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Dtls(DtlsError::Full) => Problem::Full,
            JoinError::Refused(refusal) => refusal.into(),
            JoinError::Dtls(error) => Problem::Ours(error.to_string()),
            JoinError::Stopping => Problem::Stopping,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, format!("{self}\n")).into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge() {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        // RFC 9110 section 15.5.16, RFC 5789 section 2.2.
        match self {
            Problem::ContentType => drop(headers.insert(ACCEPT_POST, HeaderValue::from_static(SDP))),
            Problem::PatchType => drop(headers.insert(ACCEPT_PATCH, HeaderValue::from_static(SDP_FRAGMENT))),
            _ => {}
        }
        response
    }
}

/// `N` random bytes.
pub(super) fn draw<const N: usize>(node: &Node) -> [u8; N] {
    let mut bytes = [0; N];
    node.random(&mut bytes);
    bytes
}

type RoomPath = Result<Path<String>, axum::extract::rejection::PathRejection>;
pub(super) type ResourcePath = Result<Path<(String, String)>, axum::extract::rejection::PathRejection>;

async fn create(node: Node, role: Role, setup: Setup, path: RoomPath, request: Request) -> Result<Response, Problem> {
    let Path(room) = path.map_err(|_| Problem::Path)?;
    let room = SessionId::new(&room)?;
    let access = verify_access(&node, role, &room, request.headers())?;
    check_content_type(request.headers(), SDP).map_err(|()| Problem::ContentType)?;
    let body = Bytes::from_request(request, &()).await.map_err(|rejection| Problem::of_body(&rejection, SDP_LEN_MAX))?;
    let offer = sdp::parse(&body).map_err(Problem::Malformed)?;
    let negotiation = negotiate(&offer, role, setup.dtls_role).map_err(Problem::Unusable)?;
    let fingerprints = strong_fingerprints(negotiation.fingerprints).map_err(Problem::Malformed)?;

    let placement = node.place(&room, negotiation.claim()).await.map_err(|_| Problem::Full)?;
    let admission = Admission::draw(&node, &negotiation);
    let answer = admission.write_answer(&node, &negotiation, &placement.candidates);
    let our_role = if negotiation.passive { dtls::Role::Server } else { dtls::Role::Client };
    let resource = admission.resource.clone();
    let etag = entity_tag(&admission.ice.local_ufrag);
    let join = admission.into_join(&node, &negotiation, &access);
    node.note_key(&room, &access);
    node.join(placement, our_role, fingerprints, join).await?;
    node.note_key(&room, &access);

    let kind = if role == Role::Publish { "whip" } else { "whep" };
    let location = format!("{}/{kind}/{}/{resource}", setup.base, encode_component(room.as_str()));
    let headers = [(CONTENT_TYPE, SDP.to_owned()), (LOCATION, location), (ETAG, etag), (CACHE_CONTROL, "no-store".to_owned())];
    // The last is for clients of older drafts, which trickle only when they see it.
    let mut response = (StatusCode::CREATED, headers, [(ACCEPT_PATCH, SDP_FRAGMENT)], answer).into_response();
    setup.ice_servers.add_to(response.headers_mut(), true);
    Ok(response)
}

/// The tag of the ICE session in which our fragment is this one.
pub(super) fn entity_tag(local_ufrag: &str) -> String {
    format!("\"{local_ufrag}\"")
}

/// "Those HTTP resources do not have any representation defined in this specification, so the WHIP endpoints and sessions MUST
/// return a 2XX successful response with no content when a GET request is received." A player recognises a WHEP endpoint by its
/// type.
fn describe_endpoint(role: Role) -> Response {
    match role {
        Role::Publish => StatusCode::NO_CONTENT.into_response(),
        Role::Watch => (StatusCode::OK, [(CONTENT_TYPE, SDP)]).into_response(),
    }
}

async fn describe_resource(State(node): State<Node>, path: ResourcePath) -> Result<StatusCode, Problem> {
    let Path((room, resource)) = path.map_err(|_| Problem::Path)?;
    let room = SessionId::new(&room)?;
    // An update that says nothing finds out whether it is there.
    let look = IceUpdate { resource: resource.into(), condition: IceCondition::Any, credentials: None };
    node.update_ice(&room, look).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever knows the resource's name may end it: 128 random bits that only its maker was told. A token is not looked at. It would
/// add nothing, and one that has expired during the call would keep its own client from leaving.
async fn remove(State(node): State<Node>, path: ResourcePath) -> Result<StatusCode, Problem> {
    let Path((room, resource)) = path.map_err(|_| Problem::Path)?;
    let room = SessionId::new(&room)?;
    if node.leave(&room, &resource).await { Ok(StatusCode::OK) } else { Err(Problem::NoResource) }
}

/// OPTIONS of an endpoint. A client that wants the STUN and TURN servers before its offer asks with its token; a browser's preflight
/// has none and gets none: "the WHIP endpoint SHOULD NOT return the STUN/TURN server configuration if the OPTIONS request is a preflight
/// request for CORS".
fn answer_options(node: &Node, role: Role, setup: &Setup, headers: &HeaderMap, path: RoomPath) -> Response {
    let mut response = preflight("GET, HEAD, POST, OPTIONS");
    if !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        let room = path.ok().and_then(|Path(room)| SessionId::new(&room).ok());
        let trusted = room.is_some_and(|room| verify_access(node, role, &room, headers).is_ok());
        setup.ice_servers.add_to(response.headers_mut(), trusted);
    }
    response
}

fn preflight(methods: &'static str) -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, If-Match"),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
        (ACCEPT_POST, SDP),
        (ACCEPT_PATCH, SDP_FRAGMENT),
    ];
    // RFC 9725 wants 200 and Accept-Post for OPTIONS.
    (StatusCode::OK, headers).into_response()
}

/// What a page may read of an answer beside its type and length.
const EXPOSED: &str = "Location, ETag, Link, Accept-Post, Accept-Patch, Allow, Retry-After, WWW-Authenticate";

/// Any page may talk to this node: what protects a room is its token, which a browser never sends by itself.
pub(super) async fn open_to_all_origins(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    response
}

/// What the request's token allows, when it allows `role` in `room`.
fn verify_access(node: &Node, role: Role, room: &SessionId, headers: &HeaderMap) -> Result<Access, Problem> {
    let access = verify_bearer(node, headers)?;
    match role {
        Role::Publish => access.may_publish(room)?,
        Role::Watch => access.may_watch(room)?,
    }
    Ok(access)
}

fn verify_bearer(node: &Node, headers: &HeaderMap) -> Result<Access, Problem> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = value.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (_, token) = bearer.ok_or(Problem::NoToken)?;
    Ok(node.verify_token(token.trim())?)
}

pub(super) fn check_content_type(headers: &HeaderMap, wanted: &str) -> Result<(), ()> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(wanted) { Ok(()) } else { Err(()) }
}

/// Those that use a strong hash; aiortc sends three. At least one must remain.
pub(super) fn strong_fingerprints(lines: &[FingerprintLine<'_>]) -> Result<Vec<Fingerprint>, SdpError> {
    let mut fingerprints = Vec::new();
    let mut refused = None;
    for line in lines {
        match line.value.parse::<Fingerprint>() {
            Ok(fingerprint) => fingerprints.push(fingerprint),
            Err(_) => refused = refused.or(Some(line.line)),
        }
    }
    if fingerprints.is_empty() {
        let reason = "is not sha-256, sha-384 or sha-512 with its bytes in hex, separated by colons";
        return Err(SdpError { line: refused.unwrap_or_default(), field: "a=fingerprint".into(), reason });
    }
    Ok(fingerprints)
}

/// What is drawn for a new client.
struct Admission {
    transport: TransportId,
    resource: String,
    ice: IceCredentials,
    cname: String,
    rtcp_ssrc: u32,
    /// One per accepted section of a viewer.
    sources: Vec<LocalSource>,
}

impl Admission {
    fn draw(node: &Node, negotiation: &Negotiation<'_>) -> Admission {
        let mut ssrcs = draw_ssrcs(node, 2 * negotiation.accepted().count() + 1).into_iter();
        let mut next_ssrc = || ssrcs.next().expect("two for each section and one were drawn");
        let rtcp_ssrc = next_ssrc();
        let source = |accepted: &Accepted<'_>| LocalSource { ssrc: next_ssrc(), rtx_ssrc: accepted.has_rtx().then(&mut next_ssrc) };
        let sources = negotiation.accepted().map(source).collect();
        Admission {
            transport: TransportId(node.next_id()),
            resource: name_resource(node),
            ice: draw_credentials(node, negotiation.remote_ufrag),
            cname: URL_SAFE_NO_PAD.encode(draw::<12>(node)),
            rtcp_ssrc,
            sources,
        }
    }

    fn write_answer(&self, node: &Node, negotiation: &Negotiation<'_>, candidates: &[std::net::SocketAddr]) -> String {
        let fingerprint = node.fingerprint().attribute();
        let local = LocalTransport {
            session_id: node.next_id(),
            session_version: 1,
            ufrag: &self.ice.local_ufrag,
            pwd: &self.ice.local_pwd,
            fingerprint: &fingerprint,
            candidates,
            tcp_candidates: if node.serves_tcp() { candidates } else { &[] },
        };
        // The CNAME names the stream too: both say which sounds and pictures belong together.
        let media = LocalMedia { stream: &self.cname, cname: &self.cname, sources: &self.sources };
        negotiation.write(&local, (negotiation.role == Role::Watch).then_some(&media))
    }

    fn into_join(self, node: &Node, negotiation: &Negotiation<'_>, access: &Access) -> Join {
        let publishes = negotiation.role == Role::Publish;
        let media = match negotiation.role {
            Role::Publish => whip::media(node, negotiation, self.transport),
            Role::Watch => whep::media(node, negotiation, self.transport, &self.sources),
        };
        Join {
            participant: ParticipantId(node.next_id()),
            identity: access.identity().clone(),
            hidden: access.is_hidden(),
            joined_at_ms: unix_now_ms(),
            resource: self.resource.into(),
            transport: Opening::WebRtc(OpenTransport {
                transport: self.transport,
                ice: self.ice,
                extensions: negotiation.extensions,
                transport_cc: publishes && negotiation.transport_cc,
                remb: publishes && negotiation.remb,
                reduced_size_rtcp: negotiation.reduced_size_rtcp,
                rtcp_ssrc: self.rtcp_ssrc,
                cname: self.cname.into(),
            }),
            media,
        }
    }
}

/// Whose it is, for the other nodes of the PoP, and 128 random bits.
fn name_resource(node: &Node) -> String {
    let secret = u128::from_be_bytes(draw(node));
    format!("{:0ORIGIN_DIGITS$x}{secret:032x}", node.origin())
}

/// Distinct SSRCs: each is under the same key, so no two streams may share one.
fn draw_ssrcs(node: &Node, count: usize) -> Vec<u32> {
    let mut ssrcs = Vec::with_capacity(count);
    while ssrcs.len() < count {
        let ssrc = u32::from_be_bytes(draw(node));
        // Some clients take 0 for "none".
        if ssrc != 0 && !ssrcs.contains(&ssrc) {
            ssrcs.push(ssrc);
        }
    }
    ssrcs
}
