//! `POST /demo/crash?reconnect=1&sid=SID`: the node that carries a participant's media ends as a crash ends it. In a lab alone; a `GET`
//! tells whether this is one. Who asks another node is carried there, as one who comes back is.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::guest::admitted;
use crate::config::DemoConfig;
use crate::logging::AUDIT;
use crate::node::Node;
use crate::signal::{self, CRASH_PATH};

/// The endpoint of `node`; none where it is not a lab's.
pub(super) fn routes(node: Node, config: &DemoConfig) -> Router {
    if !config.crash {
        return Router::new();
    }
    let routes = Router::new().route(CRASH_PATH, get(|| async { StatusCode::NO_CONTENT }).post(crash));
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
