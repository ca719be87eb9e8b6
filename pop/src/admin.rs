//! The operator's side: health, metrics and a read-only API for everybody who reaches the admin listener; tokens and captures
//! only for who may open the unix socket.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use pop_proto::control::MediaKind;
use pop_schemas::SessionId;
use pop_session::SessionView;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::parse_duration;
use crate::keys::ApiKeys;
use crate::metrics::{self, Metrics};
use crate::token::{TokenRequest, unix_now_s};
use crate::{http, serve};

/// Open connections of the admin listener and of the unix socket, each.
pub const CONNECTIONS_MAX: usize = 64;

/// Longest capture: a forgotten one must not fill the disk.
pub const CAPTURE_DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What the operator's side asks of the node.
pub trait Operations: Send + Sync + 'static {
    /// Every session of this node.
    fn sessions(&self) -> impl Future<Output = Vec<SessionView>> + Send;

    /// The node itself.
    fn status(&self) -> impl Future<Output = NodeStatus> + Send;

    /// Starts to write what a room's track carries.
    fn start_capture(&self, request: CaptureRequest) -> impl Future<Output = Result<CaptureStatus, CaptureError>> + Send;

    /// A capture that runs, or one of the last that ended.
    fn capture(&self, id: u32) -> impl Future<Output = Option<CaptureStatus>> + Send;

    /// Ends a capture; its file is complete when this returns.
    fn stop_capture(&self, id: u32) -> impl Future<Output = Option<CaptureStatus>> + Send;
}

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// This start of it.
    pub incarnation: Incarnation,
    /// The release.
    pub version: &'static str,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// It takes new clients.
    pub ready: bool,
    /// It is moving its people away.
    pub draining: bool,
    /// Rooms.
    pub sessions: usize,
    /// People in them whose transport ends here.
    pub participants: usize,
    /// Links to other nodes.
    pub links: Vec<serde_json::Value>,
    /// Packet workers.
    pub workers: Vec<WorkerStatus>,
}

/// Orders the starts of one node; never compared between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Incarnation {
    /// Which start.
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
    /// Its UDP port.
    pub port: u16,
    /// Clients connected or connecting.
    pub transports: u64,
    /// RTP packets received.
    pub rtp_packets_in: u64,
    /// RTP packets sent.
    pub rtp_packets_out: u64,
    /// Packets that ended here for one of the reasons of `pop_rtp_dropped_packets_total`.
    pub dropped_packets: u64,
}

/// A checked request for a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRequest {
    /// The room.
    pub room: SessionId,
    /// Which of its tracks: the first of this kind.
    pub kind: MediaKind,
    /// Absolute path of the pcapng file to make; it must not exist.
    pub path: PathBuf,
    /// When it ends by itself.
    pub duration: Duration,
}

/// Why no capture started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaptureError {
    /// Nobody is in the room.
    NoRoom,
    /// Nobody publishes this kind there.
    NoTrack,
    /// Too many run already; how many may.
    Full(usize),
    /// The file cannot be made; why.
    File(String),
}

impl CaptureError {
    fn status(&self) -> StatusCode {
        match self {
            CaptureError::NoRoom | CaptureError::NoTrack => StatusCode::NOT_FOUND,
            CaptureError::Full(_) => StatusCode::SERVICE_UNAVAILABLE,
            CaptureError::File(_) => StatusCode::CONFLICT,
        }
    }

    fn sentence(&self, request: &CaptureRequest) -> String {
        let (room, kind) = (&request.room, request.kind.name());
        match self {
            CaptureError::NoRoom => format!("there is no room {room} on this node: see `pop sessions`"),
            CaptureError::NoTrack => format!("nobody publishes {kind} in room {room}: see `pop sessions`, or choose --kind"),
            CaptureError::Full(max) => format!("{max} captures run already: wait for one to end"),
            CaptureError::File(why) => format!("{} cannot be written: {why}", request.path.display()),
        }
    }
}

/// A capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaptureStatus {
    /// Its number.
    pub id: u32,
    /// How it is.
    pub state: CaptureState,
    /// Packets written.
    pub packets: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Packets that came faster than the disk took them.
    pub dropped: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureState {
    /// It writes.
    Running,
    /// Its file is complete.
    Done,
    /// Its file could not be written to the end.
    Failed,
}

/// The body of `POST /api/v1/captures`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureBody {
    /// The room.
    pub room: String,
    /// `audio` or `video`.
    pub kind: String,
    /// Absolute path on the node's host.
    pub path: PathBuf,
    /// Such as `10s`; at most [`CAPTURE_DURATION_MAX`].
    pub duration: String,
}

impl CaptureBody {
    fn check(self) -> Result<CaptureRequest, String> {
        let room = SessionId::new(&self.room).map_err(|error| format!("room {error}"))?;
        let kind = match self.kind.as_str() {
            "audio" => MediaKind::Audio,
            "video" => MediaKind::Video,
            other => return Err(format!("kind must be audio or video, not {other:?}")),
        };
        let bounds = Duration::from_millis(1)..=CAPTURE_DURATION_MAX;
        let duration = parse_duration(&self.duration).filter(|duration| bounds.contains(duration));
        let duration = duration.ok_or_else(|| format!("duration must be such as \"10s\" and at most \"24h\", not {:?}", self.duration))?;
        if !self.path.is_absolute() {
            return Err("path must start with / because the node does not know your folder".to_owned());
        }
        Ok(CaptureRequest { room, kind, path: self.path, duration })
    }
}

/// Whether the node takes new clients: said by `/ready` and by the metric, decided in one place.
#[derive(Clone, Debug)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Readiness {
    /// Not yet ready.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        metrics.set_ready(false);
        Self { ready: Arc::default(), metrics }
    }

    /// From now on.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
        self.metrics.set_ready(ready);
    }

    /// Now.
    pub fn get(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// What the operator's routes work on.
pub struct Admin<N> {
    /// The node.
    pub node: Arc<N>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Whether it takes new clients.
    pub readiness: Readiness,
    /// Its keys, for tokens.
    pub keys: Arc<ApiKeys>,
    /// Base of every URL that clients use.
    pub public_url: Arc<str>,
}

impl<N> Clone for Admin<N> {
    fn clone(&self) -> Self {
        Self {
            node: Arc::clone(&self.node),
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            keys: Arc::clone(&self.keys),
            public_url: Arc::clone(&self.public_url),
        }
    }
}

impl<N: Operations> Admin<N> {
    /// The routes of the admin listener: nothing that changes the node, nothing secret.
    pub fn listener_router(self) -> Router {
        let socket_only = || async {
            (
                StatusCode::FORBIDDEN,
                Json(json!({ "error": "this is answered on the unix socket only (admin.socket): use the pop command" })),
            )
        };
        let router = Self::read_only()
            .route("/api/v1/tokens", post(socket_only))
            .route("/api/v1/captures", post(socket_only))
            .route("/api/v1/captures/{id}", get(socket_only).delete(socket_only));
        self.finish(router)
    }

    /// The routes of the unix socket: all.
    pub fn socket_router(self) -> Router {
        let router = Self::read_only()
            .route("/api/v1/tokens", post(create_token::<N>))
            .route("/api/v1/captures", post(start_capture::<N>))
            .route("/api/v1/captures/{id}", get(show_capture::<N>).delete(stop_capture::<N>));
        self.finish(router)
    }

    fn read_only() -> Router<Self> {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/ready", get(ready::<N>))
            .route("/metrics", get(show_metrics::<N>))
            .route("/version", get(|| async { Json(json!({ "version": crate::VERSION, "commit": crate::COMMIT })) }))
            .route("/api/v1/sessions", get(sessions::<N>))
            .route("/api/v1/status", get(status::<N>))
            .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such route: see pop/README.md") })
    }

    fn finish(self, router: Router<Self>) -> Router {
        let metrics = Arc::clone(&self.metrics);
        serve::bounded(http::counted(router.with_state(self), metrics))
    }
}

fn refuse(code: StatusCode, sentence: impl Into<String>) -> Response {
    (code, Json(json!({ "error": sentence.into() }))).into_response()
}

async fn ready<N: Operations>(State(admin): State<Admin<N>>) -> Response {
    if admin.readiness.get() { "ready\n".into_response() } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response() }
}

async fn show_metrics<N: Operations>(State(admin): State<Admin<N>>) -> Response {
    admin.metrics.observe_sessions(&admin.node.sessions().await);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.encode()).into_response()
}

async fn sessions<N: Operations>(State(admin): State<Admin<N>>) -> Response {
    let status = admin.node.status().await;
    let sessions = admin.node.sessions().await;
    Json(json!({ "node": status.node, "incarnation": status.incarnation, "sessions": sessions })).into_response()
}

async fn status<N: Operations>(State(admin): State<Admin<N>>) -> Response {
    Json(admin.node.status().await).into_response()
}

async fn create_token<N: Operations>(State(admin): State<Admin<N>>, body: Result<Json<TokenRequest>, JsonRejection>) -> Response {
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    match request.sign(&admin.keys, unix_now_s()) {
        Ok(token) => Json(json!({ "token": token, "url": &*admin.public_url })).into_response(),
        Err(sentence) => refuse(StatusCode::BAD_REQUEST, sentence),
    }
}

async fn start_capture<N: Operations>(State(admin): State<Admin<N>>, body: Result<Json<CaptureBody>, JsonRejection>) -> Response {
    let request = match body {
        Ok(Json(body)) => body.check(),
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    let request = match request {
        Ok(request) => request,
        Err(sentence) => return refuse(StatusCode::BAD_REQUEST, sentence),
    };
    match admin.node.start_capture(request.clone()).await {
        Ok(capture) => (StatusCode::CREATED, Json(capture)).into_response(),
        Err(error) => refuse(error.status(), error.sentence(&request)),
    }
}

async fn show_capture<N: Operations>(State(admin): State<Admin<N>>, Path(id): Path<u32>) -> Response {
    found(id, admin.node.capture(id).await)
}

async fn stop_capture<N: Operations>(State(admin): State<Admin<N>>, Path(id): Path<u32>) -> Response {
    found(id, admin.node.stop_capture(id).await)
}

fn found(id: u32, capture: Option<CaptureStatus>) -> Response {
    match capture {
        Some(capture) => Json(capture).into_response(),
        None => refuse(StatusCode::NOT_FOUND, format!("there is no capture {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> CaptureBody {
        CaptureBody { room: "stage".into(), kind: "video".into(), path: "/var/a.pcapng".into(), duration: "10s".into() }
    }

    #[test]
    fn a_capture_request_names_its_wrong_field() {
        assert_eq!(body().check().map(|request| request.duration), Ok(Duration::from_secs(10)));
        let refused = |body: CaptureBody| body.check().expect_err("it is wrong");
        assert!(refused(CaptureBody { room: "a/b".into(), ..body() }).starts_with("room holds"));
        assert!(refused(CaptureBody { kind: "data".into(), ..body() }).starts_with("kind must be audio or video"));
        assert!(refused(CaptureBody { path: "a.pcapng".into(), ..body() }).starts_with("path must start with /"));
        for duration in ["0s", "25h", "10", ""] {
            assert!(refused(CaptureBody { duration: duration.into(), ..body() }).starts_with("duration must be"), "{duration:?}");
        }
    }

    #[test]
    fn readiness_is_the_same_for_the_probe_and_the_metric() {
        let metrics = Metrics::new("mmsg", Vec::new());
        let readiness = Readiness::new(Arc::clone(&metrics));
        assert!(!readiness.get() && metrics.encode().contains("pop_ready 0\n"));
        readiness.set(true);
        assert!(readiness.get() && metrics.encode().contains("pop_ready 1\n"));
    }

    #[test]
    fn an_incarnation_shows_its_nonce_in_hexadecimal() {
        let shown = serde_json::to_string(&Incarnation { start: 3, nonce: 0xab }).expect("plain values");
        assert_eq!(shown, r#"{"start":3,"nonce":"00000000000000ab"}"#);
    }
}
