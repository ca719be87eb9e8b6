//! Rooms that an operator made: each is there for a time although nobody may be in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::Duration;

use pop_schemas::SessionId;
use pop_session::placement::Full;
use tokio::task::AbortHandle;

use super::Shared;
use super::directory::Slot;

/// Most rooms that are kept at once. An empty one is a task and its session: some kilobytes.
const KEPT_MAX: usize = 1_024;

/// The rooms, each with the claim that keeps it.
#[derive(Default)]
pub(super) struct KeptRooms {
    rooms: Mutex<HashMap<SessionId, Kept>>,
    generations: AtomicU64,
}

struct Kept {
    /// Which timer ends it: an older one may be on its way already.
    generation: u64,
    _slot: Slot,
    timer: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl KeptRooms {
    /// Keeps the room that `slot` names for `duration` from now on. One that is kept already is kept anew; says whether it was.
    pub(super) fn keep(&self, session: &SessionId, slot: Slot, duration: Duration, shared: Weak<Shared>) -> Result<bool, Full> {
        let mut rooms = self.rooms();
        if rooms.len() >= KEPT_MAX && !rooms.contains_key(session) {
            return Err(Full);
        }
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let ended = session.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            if let Some(shared) = shared.upgrade() {
                shared.kept.end_of(&ended, generation);
            }
        });
        let kept = Kept { generation, _slot: slot, timer: timer.abort_handle() };
        Ok(rooms.insert(session.clone(), kept).is_some())
    }

    /// A timer has run down.
    fn end_of(&self, session: &SessionId, generation: u64) {
        let mut rooms = self.rooms();
        if rooms.get(session).is_some_and(|kept| kept.generation == generation) {
            rooms.remove(session);
        }
    }

    /// The room lasts as long as somebody is in it.
    pub(super) fn end(&self, session: &SessionId) {
        self.rooms().remove(session);
    }

    /// The same for all.
    pub(super) fn end_all(&self) {
        self.rooms().clear();
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<SessionId, Kept>> {
        self.rooms.lock().expect("nothing panics while it is held")
    }
}
