//! The operator's side: health, metrics, a read-only API and the looking glass for everybody who reaches the admin listener; tokens and
//! captures only for who may open the unix socket.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::captures::{CaptureBody, CaptureStatus, Captures, StartError};
use crate::cluster;
use crate::logging::{AUDIT, LogControl};
use crate::metrics::{Exposition, Metrics};
use crate::node::{CaptureId, Node};
use crate::reload::{Refusal, Reloader};
use crate::rtp::{self, Routes};
use crate::token::{TokenRequest, unix_now_s};
use crate::view::{LinkView, NodeView, OverlayView, VipView};
use crate::{glass, http, serve};

/// Open connections of the admin listener and of the unix socket, each.
pub const CONNECTIONS_MAX: usize = 64;

/// How long to wait before a node that is full or stopping is asked again, in seconds.
const RETRY_AFTER_S: &str = "5";

/// The description of everything below, for client generators; tests/openapi.rs holds it to the routes.
const OPENAPI: &str = include_str!("../../config/openapi.json");

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The PoP that it is a node of.
    pub pop: String,
    /// This start of it.
    pub incarnation: Incarnation,
    /// The release.
    pub version: &'static str,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// It takes new clients.
    pub ready: bool,
    /// It lets its people go and takes no new ones.
    pub draining: bool,
    /// Media does not come back through one of its workers: other nodes take new clients, where there are any.
    pub gray: bool,
    /// Base of the URLs that clients use.
    pub url: String,
    /// First and last media port, of UDP and TCP.
    pub media_ports: (u16, u16),
    /// Rooms.
    pub sessions: usize,
    /// People in them whose transport ends here.
    pub participants: usize,
    /// The other nodes that it knows.
    pub nodes: Vec<NodeView>,
    /// Links to other nodes.
    pub links: Vec<LinkView>,
    /// The other PoPs and the ways to them.
    pub overlay: OverlayView,
    /// Service addresses of the PoP.
    pub vips: Vec<VipView>,
    /// Packet workers.
    pub workers: Vec<WorkerStatus>,
}

/// Orders the starts of one node; never compared between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Incarnation {
    /// Larger at each start of one node: counted in the state directory, or the time.
    pub start: u64,
    /// 64 random bits, in hexadecimal: two starts that believe the same number still differ.
    #[serde(serialize_with = "hexadecimal")]
    pub nonce: u64,
}

fn hexadecimal<S: serde::Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:016x}"))
}

/// One packet worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its index.
    pub worker: usize,
    /// Its core, when pinning worked.
    pub core: Option<usize>,
    /// `io_uring` or `mmsg`.
    pub backend: &'static str,
    /// Media does not come back through it.
    pub gray: bool,
    /// Clients connected or connecting.
    pub transports: u64,
    /// Published tracks.
    pub tracks: u64,
    /// Sections of viewers.
    pub subscriptions: u64,
    /// RTP packets received.
    pub rtp_packets_in: u64,
    /// RTP packets sent.
    pub rtp_packets_out: u64,
    /// Packets that ended here for one of the reasons of `pop_rtp_dropped_packets_total`.
    pub dropped_packets: u64,
}

/// What the operator's routes work on. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    node: Node,
    metrics: Arc<Metrics>,
    captures: Captures,
    rtp: Routes,
    operations: Operations,
    url: Arc<str>,
    started: Instant,
    incarnation: Incarnation,
}

/// What an operator changes about the running process.
#[derive(Clone)]
pub struct Operations {
    /// The config file.
    pub reloader: Reloader,
    /// The log.
    pub log: LogControl,
}

impl Admin {
    /// Over `node`; `url` is the base of the URLs that clients use.
    pub fn new(
        node: Node,
        metrics: Arc<Metrics>,
        rtp: Routes,
        operations: Operations,
        incarnation: pop_schemas::Incarnation,
        url: &str,
    ) -> Self {
        let incarnation = Incarnation { start: incarnation.start, nonce: incarnation.nonce };
        let captures = Captures::new(node.clone());
        Self { node, metrics, captures, rtp, operations, url: url.into(), started: Instant::now(), incarnation }
    }

    /// The routes of the admin listener: nothing that changes the node, nothing secret.
    pub fn listener_router(self) -> Router {
        let router = read_only()
            .route("/api/v1/tokens", post(socket_only))
            .route("/api/v1/reload", post(socket_only))
            .route("/api/v1/log", get(socket_only).put(socket_only))
            .route("/api/v1/captures", post(socket_only))
            .route("/api/v1/captures/{id}", get(socket_only).delete(socket_only))
            .merge(glass::routes())
            .merge(rtp::api::listener_router(self.rtp.clone()));
        self.finish(router)
    }

    /// The routes of the unix socket: all.
    pub fn socket_router(self) -> Router {
        let router = read_only()
            .route("/api/v1/tokens", post(create_token))
            .route("/api/v1/reload", post(reload))
            .route("/api/v1/log", get(show_log).put(set_log))
            .route("/api/v1/captures", post(start_capture))
            .route("/api/v1/captures/{id}", get(show_capture).delete(stop_capture))
            .merge(rtp::api::socket_router(self.rtp.clone()));
        self.finish(router)
    }

    fn finish(self, router: Router<Self>) -> Router {
        let metrics = Arc::clone(&self.metrics);
        serve::bounded(http::counted(router.with_state(self), metrics))
    }

    async fn status(&self) -> NodeStatus {
        let sessions = self.node.sessions().await;
        let participants = sessions.iter().flat_map(|session| &session.participants).filter(|person| person.local).count();
        let workers = self.node.workers().into_iter().map(|worker| WorkerStatus {
            worker: worker.worker,
            core: worker.core,
            backend: worker.backend,
            gray: self.node.self_test().workers()[worker.worker].is_gray(),
            transports: worker.gauges.transports,
            tracks: worker.gauges.tracks,
            subscriptions: worker.gauges.subscriptions,
            rtp_packets_in: worker.counters.rtp_packets_in,
            rtp_packets_out: worker.counters.rtp_packets_out,
            dropped_packets: worker.drops.iter().sum(),
        });
        let cluster::Description { mut nodes, links, overlay, vips, .. } = self.node.others().await;
        for node in &mut nodes {
            let people = sessions.iter().flat_map(|session| &session.participants);
            node.participants = people.filter(|person| person.node.as_deref() == Some(&node.node)).count() as u64;
        }
        NodeStatus {
            node: self.node.name().to_owned(),
            pop: self.node.pop().to_owned(),
            incarnation: self.incarnation,
            version: crate::VERSION,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ready: !self.node.is_stopping(),
            draining: self.node.is_stopping(),
            gray: self.node.self_test().is_gray(),
            url: self.url.to_string(),
            media_ports: self.node.media_ports(),
            sessions: sessions.len(),
            participants,
            nodes,
            links,
            overlay,
            vips,
            workers: workers.collect(),
        }
    }
}

fn read_only() -> Router<Admin> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(show_metrics))
        .route("/version", get(|| async { Json(json!({ "version": crate::VERSION, "commit": crate::COMMIT })) }))
        .route("/api/v1/openapi.json", get(|| async { ([(CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/api/v1/sessions", get(sessions))
        .route("/api/v1/status", get(|State(admin): State<Admin>| async move { Json(admin.status().await) }))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such route: see /api/v1/openapi.json") })
}

/// For the admin listener, in the place of what it does not do.
pub(crate) async fn socket_only() -> Response {
    refuse(StatusCode::FORBIDDEN, "this is answered on the unix socket only (admin.socket): use the pop command on the host")
}

pub(crate) fn refuse(code: StatusCode, sentence: impl Into<String>) -> Response {
    (code, Json(json!({ "error": sentence.into() }))).into_response()
}

/// For now: whoever asks again may get it.
pub(crate) fn refuse_for_now(body: impl IntoResponse) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, RETRY_AFTER_S)], body).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    if admin.node.is_stopping() { refuse_for_now("stopping\n") } else { "ready\n".into_response() }
}

async fn show_metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    admin.metrics.set_ready(!admin.node.is_stopping());
    let Operations { reloader, log } = &admin.operations;
    admin.metrics.observe_operations(reloader.last().await, log.suppressed());
    admin.metrics.observe_sessions(&admin.node.sessions().await);
    let exposition = Exposition::negotiate(headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default());
    ([(CONTENT_TYPE, exposition.content_type())], admin.metrics.encode(exposition)).into_response()
}

async fn sessions(State(admin): State<Admin>) -> Response {
    let sessions = admin.node.sessions().await;
    Json(json!({ "node": admin.node.name(), "incarnation": admin.incarnation, "sessions": sessions })).into_response()
}

async fn create_token(State(admin): State<Admin>, body: Result<Json<TokenRequest>, JsonRejection>) -> Response {
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    match request.sign(&admin.node.keys(), unix_now_s()) {
        Ok(token) => {
            let TokenRequest { room, identity, publish, subscribe, hidden, guests, ttl_s } = request;
            tracing::info!(target: AUDIT, room, identity, publish, subscribe, hidden, guests, ttl_s, "grant");
            Json(json!({ "token": token, "url": &*admin.url })).into_response()
        }
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, sentence),
    }
}

async fn reload(State(admin): State<Admin>) -> Response {
    match admin.operations.reloader.reload("unix socket").await {
        Ok(report) => Json(report).into_response(),
        Err(Refusal::NoFile(sentence)) => refuse(StatusCode::CONFLICT, sentence),
        Err(Refusal::Config(sentence)) => refuse(StatusCode::UNPROCESSABLE_ENTITY, sentence),
    }
}

/// `PUT /api/v1/log`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBody {
    filter: String,
}

async fn show_log(State(admin): State<Admin>) -> Response {
    let log = &admin.operations.log;
    Json(json!({ "filter": log.filter(), "format": log.format(), "suppressed_lines": log.suppressed() })).into_response()
}

async fn set_log(State(admin): State<Admin>, body: Result<Json<LogBody>, JsonRejection>) -> Response {
    let filter = match body {
        Ok(Json(LogBody { filter })) => filter,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    match admin.operations.log.set_filter(&filter) {
        Ok(former) => {
            tracing::info!(target: AUDIT, filter, former, "log");
            show_log(State(admin)).await
        }
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, sentence),
    }
}

async fn start_capture(State(admin): State<Admin>, body: Result<Json<CaptureBody>, JsonRejection>) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    match admin.captures.start(body).await {
        Ok(capture) => (StatusCode::CREATED, Json(capture)).into_response(),
        Err(StartError::Request(sentence)) => refuse(StatusCode::BAD_REQUEST, sentence),
        Err(StartError::Conflict(sentence)) => refuse(StatusCode::CONFLICT, sentence),
        Err(StartError::File(kind, sentence)) => refuse(code_of_file(kind), sentence),
        Err(StartError::Full(sentence)) => refuse_for_now(Json(json!({ "error": sentence }))),
    }
}

/// Whose fault it is that a file cannot be made: a path that is wrong is the asker's, a disk that fails is ours.
fn code_of_file(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::AlreadyExists => StatusCode::CONFLICT,
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            StatusCode::BAD_REQUEST
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn show_capture(State(admin): State<Admin>, Path(id): Path<CaptureId>) -> Response {
    found(id, admin.captures.status(id))
}

async fn stop_capture(State(admin): State<Admin>, Path(id): Path<CaptureId>) -> Response {
    found(id, admin.captures.stop(id).await)
}

fn found(id: CaptureId, capture: Option<CaptureStatus>) -> Response {
    match capture {
        Some(capture) => Json(capture).into_response(),
        None => refuse(StatusCode::NOT_FOUND, format!("there is no capture {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_there_is_a_conflict() {
        // EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG, EACCES, EROFS, ENOSPC, EDQUOT, EIO
        let numbers = [17, 2, 20, 36, 13, 30, 28, 122, 5];
        let codes = numbers.map(|number| code_of_file(std::io::Error::from_raw_os_error(number).kind()).as_u16());
        assert_eq!(codes, [409, 400, 400, 400, 403, 403, 507, 507, 500]);
    }

    #[test]
    fn an_incarnation_shows_its_nonce_in_hexadecimal() {
        let shown = serde_json::to_string(&Incarnation { start: 3, nonce: 0xab }).expect("plain values");
        assert_eq!(shown, r#"{"start":3,"nonce":"00000000000000ab"}"#);
    }
}
