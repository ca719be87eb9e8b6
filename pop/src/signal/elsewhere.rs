//! Clients whose transport is on another node of the PoP: this node is their proxy (DESIGN 8). Which node it is, an id tells: all that
//! one start of a node gives out begin with the same 32 bits.

use axum::extract::{Request, State};
use axum::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::livekit;
use crate::mesh::{Carried, CarryError};
use crate::node::Node;

/// Digits of a resource's name that tell whose it is.
pub(super) const ORIGIN_DIGITS: usize = 8;

/// Carries a request to the node that has what it names; answers it here when that is this node, or none that is known.
pub(super) async fn carry(State(node): State<Node>, request: Request, next: Next) -> Response {
    if !node.has_others() || request.extensions().get::<Carried>().is_some() {
        return next.run(request).await;
    }
    let is_trusted = |token: &str| node.verify_token(token).is_ok();
    let origin = origin_of(&request, is_trusted).filter(|origin| *origin != node.origin());
    let there = match origin {
        Some(origin) => node.elsewhere(origin).await,
        None => None,
    };
    let Some((mesh, there)) = there else { return next.run(request).await };
    match mesh.carry(&there, request).await {
        Ok(response) => response,
        Err(error) => {
            let status = match error {
                CarryError::Body => StatusCode::PAYLOAD_TOO_LARGE,
                CarryError::Unsupported => StatusCode::BAD_GATEWAY,
                CarryError::Unreachable | CarryError::Unanswered => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, [(ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (RETRY_AFTER, "1")], format!("{error}\n")).into_response()
        }
    }
}

/// Who gave out the id that a request names. What a client says of itself is looked at when its token is trusted.
fn origin_of(request: &Request, is_trusted: impl FnOnce(&str) -> bool) -> Option<u32> {
    let mut segments = request.uri().path().strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next()?, segments.next(), segments.next()) {
        // What may be asked of a resource is the same everywhere.
        ("whip" | "whep", _, Some(_), None) if request.method() == Method::OPTIONS => None,
        ("whip" | "whep", _, Some(resource), None) => {
            let digits = resource.get(..ORIGIN_DIGITS)?;
            let is_ours = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_ours.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        }
        ("rtc", "v1", None | Some("validate"), None) => {
            livekit::resumes(request.uri().query()?, request.headers(), is_trusted).map(|participant| (participant.0 >> 32) as u32)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn origin(method: &str, uri: &str) -> Option<u32> {
        origin_of(&Request::builder().method(method).uri(uri).body(Body::empty()).expect("a request"), |token| token == "good")
    }

    #[test]
    fn an_id_tells_whose_it_is() {
        assert_eq!(origin("PATCH", "/whip/room/0012abcd00ff"), Some(0x12_abcd));
        assert_eq!(origin("DELETE", "/whep/a%20room/7fffffff"), Some(0x7fff_ffff));
        assert_eq!(origin("GET", "/rtc/v1?access_token=good&reconnect=1&sid=PA_0012abcd00000007"), Some(0x12_abcd));
        assert_eq!(origin("GET", "/rtc/v1/validate?access_token=good&reconnect=true&sid=PA_0012abcd00000007"), Some(0x12_abcd));
    }

    #[test]
    fn all_else_is_answered_here() {
        for uri in [
            "/whip/room",
            "/room/whip",
            "/whip/room/0012abc",
            "/whip/room/+012abcd",
            "/whip/room/0012ABCD",
            "/whip/room/%30012abcd",
            "/whip/room/0012abcd/more",
            "/rtc/v1?access_token=good&reconnect=0&sid=PA_0012abcd00000007",
            "/rtc/v1?access_token=bad&reconnect=1&sid=PA_0012abcd00000007",
            "/rtc/v1?reconnect=1&sid=PA_0012abcd00000007",
            "/rtc/v1?access_token=good&sid=PA_0012abcd00000007",
            "/rtc/v1?access_token=good&reconnect=1&sid=PA_12",
            "/rtc/v1?access_token=good&join_request=%00",
            "/rtc/v1",
            "/demo",
            "/",
        ] {
            assert_eq!(origin("GET", uri), None, "{uri}");
        }
        assert_eq!(origin("OPTIONS", "/whip/room/0012abcd00ff"), None);
    }
}
