//! Twirp: the calls of a service, each a POST of one message as protobuf or JSON, answered in kind (Twirp specification, version 7).
//!
//! The token is checked before the body is read, and the body by bounds of our own before a library parses it.

use std::borrow::Cow;

use axum::Json;
use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use pop_session::Refusal;
use pop_session::token::{GrantError, VideoGrant};
use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::wire;
use crate::mesh::{Carried, Elsewhere, Mesh};
use crate::node::Node;

/// Largest body, in bytes: 64 KiB of data or of metadata, written as JSON.
pub(super) const BODY_LEN_MAX: usize = 128 << 10;

/// Twirp's words for what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BadRoute,
    Malformed,
    Unauthenticated,
    PermissionDenied,
    InvalidArgument,
    NotFound,
    FailedPrecondition,
    ResourceExhausted,
    Unimplemented,
    Unavailable,
}

impl Code {
    const ALL: [Code; 10] = [
        Code::BadRoute,
        Code::Malformed,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
        Code::Unimplemented,
        Code::Unavailable,
    ];

    const fn name(self) -> &'static str {
        match self {
            Code::BadRoute => "bad_route",
            Code::Malformed => "malformed",
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "permission_denied",
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::FailedPrecondition => "failed_precondition",
            Code::ResourceExhausted => "resource_exhausted",
            Code::Unimplemented => "unimplemented",
            Code::Unavailable => "unavailable",
        }
    }

    /// "Error Codes" of the specification.
    const fn status(self) -> StatusCode {
        match self {
            Code::BadRoute | Code::NotFound => StatusCode::NOT_FOUND,
            Code::Malformed | Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Why a call did nothing, in one sentence for whoever wrote the caller.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    sentence: Cow<'static, str>,
}

impl Failure {
    pub(super) fn new(code: Code, sentence: impl Into<Cow<'static, str>>) -> Failure {
        Failure { code, sentence: sentence.into() }
    }
}

impl IntoResponse for Failure {
    /// "Twirp errors are always JSON", whatever the call was written in.
    fn into_response(self) -> Response {
        (self.code.status(), Json(json!({ "code": self.code.name(), "msg": self.sentence }))).into_response()
    }
}

impl From<GrantError> for Failure {
    fn from(error: GrantError) -> Failure {
        Failure::new(Code::PermissionDenied, error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let code = match refusal {
            Refusal::UnknownParticipant | Refusal::UnknownTrack => Code::NotFound,
            Refusal::TextTooLong | Refusal::MessageTooLarge => Code::InvalidArgument,
            Refusal::Full(_) => Code::ResourceExhausted,
            _ => Code::FailedPrecondition,
        };
        Failure::new(code, refusal.to_string())
    }
}

/// Who calls, with what its token allows.
pub(super) struct Caller {
    pub(super) node: Node,
    pub(super) grant: VideoGrant,
    /// Another node carried the call here: it goes no further.
    pub(super) is_carried: bool,
    /// The token, for another node that is asked the same: it looks at it itself.
    authorization: HeaderValue,
    path: Uri,
}

/// What a node says that does not do what it was asked.
#[derive(Deserialize)]
struct Sentence {
    code: String,
    msg: String,
}

impl Caller {
    /// Has another node do what was asked here, and tells what it answers.
    pub(super) async fn ask_at<Asked, Answer>(&self, (mesh, there): &(Mesh, Elsewhere), asked: &Asked) -> Result<Answer, Failure>
    where
        Asked: Message,
        Answer: Message + Default,
    {
        let unanswered = || Failure::new(Code::Unavailable, "the node that has this did not answer: try again in 1 s");
        let request = axum::http::Request::builder()
            .method(Method::POST)
            .uri(self.path.path())
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/protobuf")
            .body(Bytes::from(asked.encode_to_vec()))
            .map_err(|_| unanswered())?;
        let response = mesh.carry(there, request).await.map_err(|error| Failure::new(Code::Unavailable, error.to_string()))?;
        let (head, body) = response.into_parts();
        // It has met the bound of what is carried.
        let body = to_bytes(body, usize::MAX).await.map_err(|_| unanswered())?;
        if head.status == StatusCode::OK {
            return Answer::decode(body).map_err(|_| unanswered());
        }
        let Sentence { code, msg } = serde_json::from_slice(&body).map_err(|_| unanswered())?;
        let code = Code::ALL.into_iter().find(|known| known.name() == code).unwrap_or(Code::Unavailable);
        Err(Failure::new(code, msg))
    }
}

/// A method of the service: `work` gets the message that was sent, and makes the one that is answered.
pub(super) fn method<Asked, Answer, Work, Done>(work: Work) -> MethodRouter<Node>
where
    Asked: Message + Default + DeserializeOwned + 'static,
    Answer: Message + Serialize,
    Work: Fn(Caller, Asked) -> Done + Clone + Send + Sync + 'static,
    Done: Future<Output = Result<Answer, Failure>> + Send,
{
    any(move |State(node): State<Node>, request: Request| async move {
        match call(node, request, work).await {
            Ok(answer) => answer,
            Err(failure) => failure.into_response(),
        }
    })
}

async fn call<Asked, Answer, Work, Done>(node: Node, request: Request, work: Work) -> Result<Response, Failure>
where
    Asked: Message + Default + DeserializeOwned,
    Answer: Message + Serialize,
    Work: FnOnce(Caller, Asked) -> Done,
    Done: Future<Output = Result<Answer, Failure>>,
{
    if request.method() != Method::POST {
        return Err(Failure::new(Code::BadRoute, "a call is a POST"));
    }
    let grant = authorize(&node, request.headers())?;
    let authorization = request.headers().get(AUTHORIZATION).cloned().expect("it was looked at");
    let (is_carried, path) = (request.extensions().get::<Carried>().is_some(), request.uri().clone());
    let encoding = Encoding::of(request.headers())
        .ok_or_else(|| Failure::new(Code::BadRoute, "the Content-Type must be application/protobuf or application/json"))?;
    let body = Bytes::from_request(request, &())
        .await
        .map_err(|_| Failure::new(Code::Malformed, format!("the body did not come, or is longer than {BODY_LEN_MAX} bytes")))?;
    let asked = encoding.read(&body).ok_or_else(|| Failure::new(Code::Malformed, "the body is not the message of this method"))?;
    let answer = work(Caller { node, grant, is_carried, authorization, path }, asked).await?;
    Ok(encoding.write(&answer))
}

fn authorize(node: &Node, headers: &HeaderMap) -> Result<VideoGrant, Failure> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let token = token.ok_or_else(|| Failure::new(Code::Unauthenticated, "an access token is needed: Authorization: Bearer TOKEN"))?;
    node.verify_server_token(token).map_err(|error| Failure::new(Code::Unauthenticated, error.to_string()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Option<Encoding> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        match value.split(';').next()?.trim().to_ascii_lowercase().as_str() {
            "application/protobuf" => Some(Encoding::Protobuf),
            "application/json" => Some(Encoding::Json),
            _ => None,
        }
    }

    fn read<Asked: Message + Default + DeserializeOwned>(self, body: &[u8]) -> Option<Asked> {
        match self {
            Encoding::Protobuf => wire::is_within_bounds(body).then(|| Asked::decode(body).ok())?,
            Encoding::Json => wire::is_json_within_bounds(body).then(|| serde_json::from_slice(body).ok())?,
        }
    }

    fn write<Answer: Message + Serialize>(self, answer: &Answer) -> Response {
        match self {
            Encoding::Protobuf => ([(CONTENT_TYPE, "application/protobuf")], answer.encode_to_vec()).into_response(),
            Encoding::Json => Json(answer).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use livekit_protocol as proto;

    use super::*;

    /// SplitMix64.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) % bound as u64) as usize
        }
    }

    fn samples() -> Vec<(Encoding, Vec<u8>)> {
        let asked = proto::UpdateParticipantRequest {
            room: "stage".into(),
            identity: "ann".into(),
            metadata: "{\"seat\": [1, 2]}".into(),
            permission: Some(proto::ParticipantPermission {
                can_publish: true,
                can_publish_sources: vec![proto::TrackSource::Camera as i32],
                ..Default::default()
            }),
            name: "Ann".into(),
            attributes: [("role".to_owned(), "host".to_owned())].into(),
        };
        vec![(Encoding::Protobuf, asked.encode_to_vec()), (Encoding::Json, serde_json::to_vec(&asked).expect("it is JSON"))]
    }

    #[test]
    fn a_message_comes_back_from_either_encoding() {
        let read: Vec<proto::UpdateParticipantRequest> =
            samples().iter().map(|(encoding, body)| encoding.read(body).expect("it is whole")).collect();
        assert_eq!(read[0], read[1]);
        let known = Encoding::Json.read::<proto::DeleteRoomRequest>(b"{\"room\": \"a\", \"of_a_newer_version\": {\"x\": [1]}}");
        assert_eq!(known.map(|asked| asked.room), Some("a".to_owned()));
    }

    #[test]
    fn mutated_bodies_are_no_more_than_refused() {
        let mut dice = Dice(18);
        let factor = std::env::var("POP_MUTATION_FACTOR").map_or(1, |factor| factor.parse().expect("POP_MUTATION_FACTOR is a number"));
        let rounds = 20_000 * factor;
        for (encoding, sample) in samples() {
            let (mut within, mut read) = (0, 0);
            for _ in 0..rounds {
                let mut body = sample.clone();
                for _ in 0..=dice.below(3) {
                    let at = dice.below(body.len().max(1));
                    if body.is_empty() {
                        break;
                    }
                    match dice.below(4) {
                        0 => body[at] = dice.below(256) as u8,
                        1 => body[at] ^= 1 << dice.below(8),
                        2 => drop(body.remove(at)),
                        _ => body.truncate(at.max(1)),
                    }
                }
                let bounded = match encoding {
                    Encoding::Protobuf => wire::is_within_bounds(&body),
                    Encoding::Json => wire::is_json_within_bounds(&body),
                };
                within += usize::from(bounded);
                read += usize::from(encoding.read::<proto::UpdateParticipantRequest>(&body).is_some());
            }
            println!("{encoding:?}: {within} of {rounds} mutated bodies pass the bounds, {read} are read");
            assert!(within > rounds / 4 && read > rounds / 100, "the mutations reach the library");
        }
    }
}
