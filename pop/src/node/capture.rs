//! Captures: a room's decrypted packets into a file, written by the service thread.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use pop_dataplane::CaptureEnd;
use pop_proto::control::MediaKind;
use pop_schemas::SessionId;
use pop_session::{Refusal, Reply, Request, TappedTrack};
use tokio::sync::oneshot;

use super::Node;
use super::directory::{RoomSender, Slot};
use super::room::RoomMessage;
use crate::logging::AUDIT;

/// A running capture's number.
pub type CaptureId = u32;

/// What to capture, and where to.
#[derive(Clone, Debug)]
pub struct CaptureRequest {
    /// Which room; nobody need be in it yet.
    pub session: SessionId,
    /// The file to create; it must not exist.
    pub path: PathBuf,
    /// Audio or video alone.
    pub kind: Option<MediaKind>,
}

/// Why a capture could not start or end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file system said no.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The room said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No worker has room for another session, or the node is stopping.
    #[error("this node takes no more sessions")]
    Full,
    /// No capture has this number.
    #[error("there is no capture {0}")]
    Unknown(CaptureId),
}

/// The captures that run.
#[derive(Default)]
pub(super) struct Captures(Mutex<HashMap<CaptureId, Capture>>);

struct Capture {
    room: RoomSender,
    path: PathBuf,
    /// Keeps the room although everybody may leave.
    _hold: Slot,
}

impl Captures {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<CaptureId, Capture>> {
        self.0.lock().expect("nothing panics while the table is held")
    }
}

impl Node {
    /// Starts a capture; tells the tracks that it gets at once. Later publishers of the room are captured too.
    ///
    /// # Errors
    ///
    /// See [`CaptureError`]; a room that refuses leaves no file.
    pub async fn start_capture(&self, request: CaptureRequest) -> Result<(CaptureId, Vec<TappedTrack>), CaptureError> {
        let CaptureRequest { session, path, kind } = request;
        let (room, hold) = self.shared.directory.hold(&session).await.map_err(|_| CaptureError::Full)?;
        // Captures of one process number far below 2^32.
        let tap = self.next_id() as CaptureId;
        let started = self.shared.service.start_capture(tap, path.clone()).await;
        started.map_err(|source| CaptureError::File { path: path.clone(), source })?;
        match ask(&room, Request::Tap { tap, kind }).await {
            Ok(Reply::Tapped { tracks }) => {
                let kind = kind.map_or("all", MediaKind::name);
                tracing::info!(target: AUDIT, room = %session, capture = tap, path = %path.display(), kind, "capture start");
                self.shared.captures.table().insert(tap, Capture { room, path, _hold: hold });
                Ok((tap, tracks))
            }
            Ok(_) => unreachable!("a tap is answered by Tapped"),
            Err(refusal) => {
                // The file holds a head and no packet: its end does not matter, and it must not be in the way of the next try.
                let _ = self.shared.service.stop_capture(tap).await;
                let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(&path).map_err(|error| (path, error)));
                if let Ok(Err((path, error))) = removed.await {
                    tracing::warn!(path = %path.display(), %error, "a refused capture's empty file stays");
                }
                Err(refusal.into())
            }
        }
    }

    /// Ends a capture: its file is complete and on disk.
    ///
    /// # Errors
    ///
    /// See [`CaptureError`].
    pub async fn stop_capture(&self, id: CaptureId) -> Result<CaptureEnd, CaptureError> {
        let capture = self.shared.captures.table().remove(&id).ok_or(CaptureError::Unknown(id))?;
        // A room that has just ended taps nothing any longer.
        let _ = ask(&capture.room, Request::Untap { tap: id }).await;
        let ended = self.shared.service.stop_capture(id).await;
        let (packets, path) = (ended.as_ref().map_or(0, |end| end.packets), capture.path.display());
        tracing::info!(target: AUDIT, capture = id, %path, packets, complete = ended.is_ok(), "capture stop");
        ended.map_err(|source| CaptureError::File { path: capture.path, source })
    }
}

/// Completes every capture's file.
pub(super) async fn stop_all(node: &Node) {
    let ids: Vec<_> = node.shared.captures.table().keys().copied().collect();
    for id in ids {
        if let Err(error) = node.stop_capture(id).await {
            tracing::warn!(%error, "a capture did not end well");
        }
    }
}

async fn ask(room: &RoomSender, request: Request) -> Result<Reply, Refusal> {
    let (reply, answer) = oneshot::channel();
    // The hold keeps the room; only a node that ends loses it.
    let _ = room.send(RoomMessage::Ask { request, reply });
    answer.await.unwrap_or(Err(Refusal::UnknownTap))
}
