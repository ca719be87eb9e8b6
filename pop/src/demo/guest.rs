//! `POST /demo/guest`: whoever holds a token that brings guests gets a token of their own, so that one link serves a whole room and
//! nobody pushes anybody out. `GET /demo/hosts`: at which node each person of the token's room is.

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pop_schemas::{Identity, SessionId};
use pop_session::token::{self, Access};
use serde::Deserialize;
use serde_json::json;

use crate::node::Node;

/// A name of 64 characters in JSON, with room for escapes.
const BODY_LEN_MAX: usize = 1_024;

/// Longest name of a guest, in characters: what a tile has room for.
const NAME_LEN_MAX: usize = 64;

/// The endpoint of `node`.
pub(super) fn routes(node: Node) -> Router {
    Router::new()
        .route("/demo/guest", post(admit))
        .route("/demo/hosts", get(show_hosts))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(node)
}

/// Who asks, and the room that the token is for.
pub(super) fn admitted(node: &Node, headers: &HeaderMap) -> Result<(Access, SessionId), Refused> {
    let access = node.verify_token(bearer(headers)?).map_err(|error| (StatusCode::UNAUTHORIZED, error.to_string()))?;
    let video = &access.claims().video;
    let room = video.room.as_deref().filter(|_| video.room_join).and_then(|room| SessionId::new(room).ok());
    let room = room.ok_or((StatusCode::FORBIDDEN, "the token is for no room".to_owned()))?;
    Ok((access, room))
}

/// For those who may be in the room, of those whom they may see.
async fn show_hosts(State(node): State<Node>, headers: HeaderMap) -> Response {
    match admitted(&node, &headers) {
        Ok((_, room)) => ([(CACHE_CONTROL, "no-store")], Json(json!({ "hosts": node.hosts(&room).await }))).into_response(),
        Err((code, sentence)) => (code, format!("{sentence}\n")).into_response(),
    }
}

/// Who wants to be a guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    name: String,
}

async fn admit(State(node): State<Node>, headers: HeaderMap, wish: Result<Json<Wish>, JsonRejection>) -> Response {
    let answer = bearer(&headers).and_then(|token| {
        let Json(wish) = wish.map_err(|rejection| (rejection.status(), rejection.body_text()))?;
        guest_token(&node, token, wish.name.trim())
    });
    match answer {
        Ok(token) => ([(CACHE_CONTROL, "no-store")], Json(json!({ "token": token }))).into_response(),
        Err((code, sentence)) => (code, format!("{sentence}\n")).into_response(),
    }
}

/// Refusals are a code and a sentence for the person at the page.
pub(super) type Refused = (StatusCode, String);

fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    token.ok_or_else(|| (StatusCode::UNAUTHORIZED, "an access token is needed: Authorization: Bearer TOKEN".to_owned()))
}

fn guest_token(node: &Node, token: &str, name: &str) -> Result<String, Refused> {
    let access = node.verify_token(token).map_err(|error| (StatusCode::UNAUTHORIZED, error.to_string()))?;
    let length = name.chars().count();
    if !(1..=NAME_LEN_MAX).contains(&length) || name.chars().any(char::is_control) {
        return Err((StatusCode::BAD_REQUEST, format!("a name has 1 to {NAME_LEN_MAX} characters, none of them a control character")));
    }
    let refused = || (StatusCode::FORBIDDEN, "this token is one person's: it brings no guests".to_owned());
    let claims = access.guest(&draw_identity(), name).ok_or_else(refused)?;
    let keys = node.keys();
    let secret = keys.secret(&claims.iss).ok_or((StatusCode::UNAUTHORIZED, token::TokenError::UnknownKey.to_string()))?;
    token::sign(&claims, secret).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// 64 random bits: two guests of a room never meet under one identity, and none can be guessed to push its holder out.
fn draw_identity() -> Identity {
    let mut bytes = [0u8; 8];
    // aws-lc fails only when the kernel has no randomness at all; the node would not have started then.
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    Identity::new(&format!("guest-{:016x}", u64::from_be_bytes(bytes))).expect("letters, digits and a dash are an identity")
}
