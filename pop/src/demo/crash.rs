//! `POST /demo/crash?reconnect=1&sid=SID`: the node that carries a participant's media ends as a crash ends it. In a lab alone; a `GET`
//! tells whether this is one, also where it is none: a page that finds nothing complains. Who asks another node is carried there, as one
//! who comes back is.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::guest::admitted;
use crate::config::DemoConfig;
use crate::logging::AUDIT;
use crate::node::Node;
use crate::signal::{self, CRASH_PATH};

/// The endpoint of `node`.
pub(super) fn routes(node: Node, config: &DemoConfig) -> Router {
    let is_lab = config.crash;
    let tell = get(move || async move { Json(json!({ "lab": is_lab })) });
    let routes = Router::new().route(CRASH_PATH, if is_lab { tell.post(crash) } else { tell });
    signal::carried(node.clone(), routes.with_state(node))
}

async fn crash(State(node): State<Node>, headers: HeaderMap) -> Response {
    let (access, room) = match admitted(&node, &headers) {
        Ok(admitted) => admitted,
        Err((code, sentence)) => return (code, format!("{sentence}\n")).into_response(),
    };
    let identity = access.identity();
    if node.hosts(&room).await.get(identity.as_str()).is_none_or(|host| host != node.name()) {
        return (StatusCode::NOT_FOUND, "this node carries nobody of that name in that room\n").into_response();
    }
    tracing::error!(target: AUDIT, %room, %identity, "a person of the lab ends this process");
    // No goodbye of any kind: sockets end as they do for SIGKILL.
    std::process::abort()
}
