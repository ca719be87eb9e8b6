//! `/api/v1/rtp/routes`: to look at for everybody who reaches the admin listener, to change on the unix socket.

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::{RouteFailure, RouteStatus, Routes};
use crate::admin::{refuse, refuse_for_now, socket_only};
use crate::config::RouteConfig;

/// For the admin listener: no secrets, no changes.
pub fn listener_router<S>(routes: Routes) -> Router<S> {
    let list = |State(routes): State<Routes>| async move {
        let shown: Vec<_> = routes.list().await.into_iter().map(RouteStatus::without_secrets).collect();
        Json(json!({ "routes": shown }))
    };
    let show = |State(routes): State<Routes>, Path(name): Path<String>| async move {
        answer(StatusCode::OK, routes.show(&name).await.map(RouteStatus::without_secrets))
    };
    Router::new()
        .route("/api/v1/rtp/routes", get(list).post(socket_only))
        .route("/api/v1/rtp/routes/{name}", get(show).delete(socket_only))
        .with_state(routes)
}

/// For the unix socket: everything.
pub fn socket_router<S>(routes: Routes) -> Router<S> {
    let list = |State(routes): State<Routes>| async move { Json(json!({ "routes": routes.list().await })) };
    Router::new()
        .route("/api/v1/rtp/routes", get(list).post(add))
        .route("/api/v1/rtp/routes/{name}", get(show).delete(remove))
        .with_state(routes)
}

async fn add(State(routes): State<Routes>, body: Result<Json<RouteConfig>, JsonRejection>) -> Response {
    match body {
        Ok(Json(config)) => answer(StatusCode::CREATED, routes.add(config).await),
        Err(rejection) => refuse(rejection.status(), rejection.body_text()),
    }
}

async fn show(State(routes): State<Routes>, Path(name): Path<String>) -> Response {
    answer(StatusCode::OK, routes.show(&name).await)
}

async fn remove(State(routes): State<Routes>, Path(name): Path<String>) -> Response {
    answer(StatusCode::OK, routes.remove(&name).await)
}

fn answer(code: StatusCode, outcome: Result<RouteStatus, RouteFailure>) -> Response {
    match outcome {
        Ok(status) => (code, Json(status)).into_response(),
        Err(RouteFailure::Request(sentence)) => refuse(StatusCode::BAD_REQUEST, sentence),
        Err(RouteFailure::Conflict(sentence)) => refuse(StatusCode::CONFLICT, sentence),
        Err(RouteFailure::Unknown(sentence)) => refuse(StatusCode::NOT_FOUND, sentence),
        Err(RouteFailure::Full(sentence)) => refuse_for_now(Json(json!({ "error": sentence }))),
    }
}
