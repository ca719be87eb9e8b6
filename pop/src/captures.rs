//! Captures with an end: each has a task that stops it after its duration or when asked, and a status that outlives it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pop_proto::control::MediaKind;
use pop_schemas::SessionId;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::config::parse_duration;
use crate::node::{self, CaptureError, CaptureId, Node};

/// Longest capture: a forgotten one must not fill the disk.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Captures that may run at once. They share one thread and one disk.
pub const RUNNING_MAX: usize = 16;

/// Ended captures whose status is kept for who asks late.
const ENDED_MAX: usize = 64;

/// The body of `POST /api/v1/captures`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureBody {
    /// The room; nobody need be in it yet.
    pub room: String,
    /// `audio` or `video`; absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absolute path of a pcapng file on the node's host; it must not exist.
    pub path: PathBuf,
    /// Such as `10s`; at most [`DURATION_MAX`].
    pub duration: String,
}

impl CaptureBody {
    fn check(self) -> Result<(node::CaptureRequest, Duration), String> {
        let session = SessionId::new(&self.room).map_err(|error| format!("room {error}"))?;
        let kind = match self.kind.as_deref() {
            None => None,
            Some("audio") => Some(MediaKind::Audio),
            Some("video") => Some(MediaKind::Video),
            Some(other) => return Err(format!("kind must be audio or video, not {other:?}")),
        };
        let bounds = Duration::from_millis(1)..=DURATION_MAX;
        let duration = parse_duration(&self.duration).filter(|duration| bounds.contains(duration));
        let duration = duration.ok_or_else(|| format!("duration must be such as \"10s\" and at most \"24h\", not {:?}", self.duration))?;
        if !self.path.is_absolute() {
            return Err("path must start with / because the node does not know your folder".to_owned());
        }
        Ok((node::CaptureRequest { session, path: self.path, kind }, duration))
    }
}

/// A capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaptureStatus {
    /// Its number.
    pub id: CaptureId,
    /// How it is.
    pub state: CaptureState,
    /// Tracks that it got when it started; later ones join it.
    pub tracks: usize,
    /// Packets written; 0 while it runs.
    pub packets: u64,
    /// Bytes of the file; 0 while it runs.
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

/// Why a capture did not start, with the sentence for who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The request is wrong.
    Request(String),
    /// The room is in somebody's way.
    Conflict(String),
    /// The file system said no.
    File(io::ErrorKind, String),
    /// No room for one more.
    Full(String),
}

/// The captures of a node.
#[derive(Clone)]
pub struct Captures {
    node: Node,
    table: Arc<Mutex<BTreeMap<CaptureId, Entry>>>,
}

struct Entry {
    /// Taken by the first who wants it to end.
    stop: Option<oneshot::Sender<()>>,
    status: watch::Receiver<CaptureStatus>,
}

impl Captures {
    /// None yet.
    pub fn new(node: Node) -> Self {
        Self { node, table: Arc::default() }
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub async fn start(&self, body: CaptureBody) -> Result<CaptureStatus, StartError> {
        // In a task of its own: whoever asked may hang up half-way, and half a capture would be nobody's to end.
        let captures = self.clone();
        let started = tokio::spawn(async move { captures.start_whole(body).await });
        started.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn start_whole(&self, body: CaptureBody) -> Result<CaptureStatus, StartError> {
        let (request, duration) = body.check().map_err(StartError::Request)?;
        if self.running() >= RUNNING_MAX {
            return Err(StartError::Full(format!("{RUNNING_MAX} captures run already: wait for one to end")));
        }
        let (id, tracks) = self.node.start_capture(request).await.map_err(|error| match error {
            CaptureError::Full => StartError::Full(error.to_string()),
            CaptureError::File { ref source, .. } => StartError::File(source.kind(), error.to_string()),
            CaptureError::Refused(_) | CaptureError::Unknown(_) => StartError::Conflict(error.to_string()),
        })?;
        let status =
            CaptureStatus { id, state: CaptureState::Running, tracks: tracks.len(), packets: 0, bytes: 0, dropped: 0, error: None };
        let (stop, stopped) = oneshot::channel();
        let (publish, published) = watch::channel(status.clone());
        self.remember(id, Entry { stop: Some(stop), status: published });
        tokio::spawn(end_in_time(self.node.clone(), duration, stopped, publish));
        Ok(status)
    }

    /// How one is.
    pub fn status(&self, id: CaptureId) -> Option<CaptureStatus> {
        Some(self.table().get(&id)?.status.borrow().clone())
    }

    /// Ends one; its file is complete when this returns.
    pub async fn stop(&self, id: CaptureId) -> Option<CaptureStatus> {
        let (stop, mut status) = {
            let mut table = self.table();
            let entry = table.get_mut(&id)?;
            (entry.stop.take(), entry.status.clone())
        };
        if let Some(stop) = stop {
            // One that has just ended by itself listens no longer.
            let _ = stop.send(());
        }
        // Its task publishes the end before it goes away; a node that stops takes both.
        let ended = status.wait_for(|status| status.state != CaptureState::Running).await.map(|status| status.clone());
        Some(ended.unwrap_or_else(|_| status.borrow().clone()))
    }

    fn running(&self) -> usize {
        self.table().values().filter(|entry| entry.status.borrow().state == CaptureState::Running).count()
    }

    fn remember(&self, id: CaptureId, entry: Entry) {
        let mut table = self.table();
        table.insert(id, entry);
        let ended: Vec<CaptureId> =
            table.iter().filter(|(_, entry)| entry.status.borrow().state != CaptureState::Running).map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            table.remove(id);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<CaptureId, Entry>> {
        self.table.lock().expect("nothing panics while the table is held")
    }
}

async fn end_in_time(node: Node, duration: Duration, stopped: oneshot::Receiver<()>, publish: watch::Sender<CaptureStatus>) {
    // An elapsed duration, a request to stop, and a table that is gone all mean the same.
    let _ = tokio::time::timeout(duration, stopped).await;
    let id = publish.borrow().id;
    let ended = node.stop_capture(id).await;
    publish.send_modify(|status| match ended {
        Ok(end) => {
            status.state = CaptureState::Done;
            (status.packets, status.bytes, status.dropped) = (end.packets, end.bytes, end.dropped);
        }
        Err(error) => {
            status.state = CaptureState::Failed;
            status.error = Some(error.to_string());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> CaptureBody {
        CaptureBody { room: "stage".into(), kind: None, path: "/var/a.pcapng".into(), duration: "10s".into() }
    }

    #[test]
    fn a_capture_request_names_its_wrong_field() {
        assert_eq!(body().check().map(|(request, duration)| (request.kind, duration)), Ok((None, Duration::from_secs(10))));
        let refused = |body: CaptureBody| body.check().expect_err("it is wrong");
        assert!(refused(CaptureBody { room: "a/b".into(), ..body() }).starts_with("room holds"));
        assert!(refused(CaptureBody { kind: Some("data".into()), ..body() }).starts_with("kind must be audio or video"));
        assert!(refused(CaptureBody { path: "a.pcapng".into(), ..body() }).starts_with("path must start with /"));
        for duration in ["0s", "25h", "10", ""] {
            assert!(refused(CaptureBody { duration: duration.into(), ..body() }).starts_with("duration must be"), "{duration:?}");
        }
    }
}
