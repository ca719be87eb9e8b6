//! Clients whose transport is on another node of the PoP: this node is their proxy (DESIGN 8). Who comes newly gets its transport on
//! another node than its socket, so that one of the two is there to act when the other dies. What names an id goes to the node that has it:
//! all ids that one start of a node gives out begin with the same 32 bits, and who was taken over is where the room's records say.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pop_session::token::Access;
use tokio::time::{Instant, sleep};

use super::livekit;
use crate::cluster::Goal;
use crate::mesh::{Carried, CarryError};
use crate::node::Node;
use crate::serve::BODY_LEN_MAX;

/// Of a lab's page: ends the node that has a person.
pub(crate) const CRASH_PATH: &str = "/demo/crash";

/// Digits of a resource's name that tell whose it is.
pub(super) const ORIGIN_DIGITS: usize = 8;

/// How long a client whose node does not answer waits for the word that this is dead, before it is told to come again.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the word is looked for.
const VERDICT_INTERVAL: Duration = Duration::from_millis(20);

/// Carries a request to the node that is to answer it; answers it here when that is this node, or none that is known.
pub(super) async fn carry(State(node): State<Node>, request: Request, next: Next) -> Response {
    if !node.has_others() || request.extensions().get::<Carried>().is_some() {
        return next.run(request).await;
    }
    let goal = goal_of(&request, |token| node.verify_token(token).ok());
    let Some(goal) = goal else { return next.run(request).await };
    let Some(mut way) = node.way(&goal, &[]).await else { return next.run(request).await };
    // A client that is slow with its body holds no place at the other node.
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LEN_MAX).await else {
        let problem = format!("the body is longer than {BODY_LEN_MAX} bytes, or did not come\n");
        return (StatusCode::PAYLOAD_TOO_LARGE, [(ACCESS_CONTROL_ALLOW_ORIGIN, "*")], problem).into_response();
    };
    let is_once = head.uri.path() == CRASH_PATH;
    let (deadline, mut failed) = (Instant::now() + VERDICT_TIMEOUT, Vec::new());
    loop {
        let (mesh, there) = way;
        let error = match mesh.carry(&there, Request::from_parts(head.clone(), body.clone())).await {
            Ok(response) => return response,
            Err(error) => error,
        };
        tracing::debug!(node = ?there.name, %error, "a client's request goes another way");
        match goal {
            // Who has the person next is not meant.
            _ if is_once => return refuse(&error),
            // Any node will do.
            Goal::Join(_) => failed.push(there.name.id()),
            // As soon as it is known that this one is dead, another one takes a member over, and a resource is none.
            _ if !matches!(error, CarryError::Unsupported) && Instant::now() < deadline => sleep(VERDICT_INTERVAL).await,
            Goal::Member { .. } | Goal::Origin(_) => return refuse(&error),
        }
        match node.way(&goal, &failed).await {
            Some(other) => way = other,
            None => return next.run(Request::from_parts(head, Body::from(body))).await,
        }
    }
}

fn refuse(error: &CarryError) -> Response {
    let status = match error {
        CarryError::Unsupported => StatusCode::BAD_GATEWAY,
        CarryError::Unreachable | CarryError::Unanswered => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, [(ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (RETRY_AFTER, "1")], format!("{error}\n")).into_response()
}

/// What a request wants that another node may have to answer. What a client says of itself is looked at when its token is trusted.
fn goal_of(request: &Request, verify: impl FnOnce(&str) -> Option<Access>) -> Option<Goal> {
    let mut segments = request.uri().path().strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next()?, segments.next(), segments.next()) {
        ("whip" | "whep", _, None, None) | (_, "whip" | "whep", None, None) if request.method() == Method::POST => {
            let token = request.headers().get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
            livekit::room_of(&verify(token)?).map(Goal::Join)
        }
        // What may be asked of a resource is the same everywhere.
        ("whip" | "whep", _, Some(_), None) if request.method() == Method::OPTIONS => None,
        ("whip" | "whep", _, Some(resource), None) => {
            let digits = resource.get(..ORIGIN_DIGITS)?;
            let is_ours = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_ours.then(|| u32::from_str_radix(digits, 16).ok()).flatten().map(Goal::Origin)
        }
        ("demo", "crash", None, None) if request.method() == Method::POST => {
            let (session, who) = livekit::wants(request.uri().query()?, request.headers(), verify)?;
            who.map(|participant| Goal::Member { session, participant })
        }
        ("rtc", "v1", None | Some("validate"), None) => {
            let (session, returning) = livekit::wants(request.uri().query()?, request.headers(), verify)?;
            Some(match returning {
                Some(participant) => Goal::Member { session, participant },
                None => Goal::Join(session),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pop_schemas::{ParticipantId, SessionId};
    use pop_session::token::{Claims, VideoGrant, sign, verify};

    use super::*;

    const SECRET: &[u8] = b"a secret of thirty-two characters";

    fn token() -> String {
        let video = VideoGrant { room: Some("demo".to_owned()), room_join: true, ..VideoGrant::default() };
        sign(&Claims { iss: "key".to_owned(), sub: "alice".to_owned(), exp: 10, video, ..Claims::default() }, SECRET).expect("a token")
    }

    /// What is wanted with that token in the place of `TOKEN`.
    fn goal(method: &str, uri: &str, authorization: &str) -> Option<Goal> {
        let request = Request::builder().method(method).uri(uri.replace("TOKEN", &token()));
        let request = request.header(AUTHORIZATION, authorization.replace("TOKEN", &token())).body(Body::empty()).expect("a request");
        goal_of(&request, |token| verify(token, 1, |_| Some(SECRET)).ok())
    }

    fn demo() -> SessionId {
        SessionId::new("demo").expect("a name")
    }

    #[test]
    fn an_id_tells_whose_it_is() {
        assert_eq!(goal("PATCH", "/whip/room/0012abcd00ff", ""), Some(Goal::Origin(0x12_abcd)));
        assert_eq!(goal("DELETE", "/whep/a%20room/7fffffff", ""), Some(Goal::Origin(0x7fff_ffff)));
        let back = Some(Goal::Member { session: demo(), participant: ParticipantId(0x12_abcd_0000_0007) });
        assert_eq!(goal("GET", "/rtc/v1?access_token=TOKEN&reconnect=1&sid=PA_0012abcd00000007", ""), back);
        assert_eq!(goal("GET", "/rtc/v1/validate?reconnect=true&sid=PA_0012abcd00000007", "Bearer TOKEN"), back);
        assert_eq!(goal("POST", "/demo/crash?reconnect=1&sid=PA_0012abcd00000007", "Bearer TOKEN"), back);
    }

    #[test]
    fn who_comes_newly_wants_a_place_in_the_room_of_its_token() {
        let join = Some(Goal::Join(demo()));
        for path in ["/whip/demo", "/demo/whip", "/whep/demo", "/demo/whep"] {
            assert_eq!(goal("POST", path, "Bearer TOKEN"), join, "{path}");
            assert_eq!(goal("GET", path, "Bearer TOKEN"), None, "{path}");
            assert_eq!(goal("POST", path, "Bearer of news"), None, "{path}");
        }
        for uri in [
            "/rtc/v1?access_token=TOKEN",
            "/rtc/v1?access_token=TOKEN&reconnect=0&sid=PA_0012abcd00000007",
            "/rtc/v1?access_token=TOKEN&sid=PA_12",
        ] {
            assert_eq!(goal("GET", uri, ""), join, "{uri}");
        }
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
            "/rtc/v1?access_token=bad&reconnect=1&sid=PA_0012abcd00000007",
            "/rtc/v1?reconnect=1&sid=PA_0012abcd00000007",
            "/rtc/v1?access_token=bad",
            "/rtc/v1",
            "/demo",
            "/demo/crash?reconnect=1&sid=PA_0012abcd00000007&access_token=TOKEN",
            "/",
        ] {
            assert_eq!(goal("GET", uri, ""), None, "{uri}");
        }
        assert_eq!(goal("OPTIONS", "/whip/room/0012abcd00ff", "Bearer TOKEN"), None);
    }
}
