//! Which rooms exist, on which worker, and how much of its plan each worker has promised. One task owns it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Weak;

use pop_schemas::SessionId;
use pop_session::placement::{self, Claim, Full, WorkerLoad};
use tokio::sync::{mpsc, oneshot};

use super::room::{self, RoomMessage};
use super::{EndsProcess, Shared};

/// A room's mailbox.
pub(super) type RoomSender = mpsc::UnboundedSender<RoomMessage>;

/// A place for one client, until it is used by a join or dropped.
pub struct Placement {
    /// Which worker.
    pub worker: usize,
    /// The worker's candidates, as clients reach them.
    pub candidates: Vec<SocketAddr>,
    pub(super) room: RoomSender,
    pub(super) slot: Slot,
}

/// A claim on a room and on its worker's plan; given back when dropped.
pub(super) struct Slot {
    session: SessionId,
    claim: Claim,
    requests: mpsc::UnboundedSender<Request>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Without a directory there is nothing to give back to.
        let _ = self.requests.send(Request::Release { session: self.session.clone(), claim: self.claim });
    }
}

enum Request {
    Place { session: SessionId, claim: Claim, reply: oneshot::Sender<Result<Placed, Full>> },
    Release { session: SessionId, claim: Claim },
    Find { session: SessionId, reply: oneshot::Sender<Option<(usize, RoomSender)>> },
    Rooms { reply: oneshot::Sender<Vec<RoomSender>> },
    Emptied { reply: oneshot::Sender<()> },
}

/// Worker, room, and the claim on both. The claim travels with the answer: when nobody takes the answer, it is given back.
type Placed = (usize, RoomSender, Slot);

/// The handle of the directory's task.
pub(super) struct Directory {
    requests: mpsc::UnboundedSender<Request>,
}

impl Directory {
    /// `plans`: what each worker may carry.
    pub(super) fn start(plans: Vec<Claim>, shared: Weak<Shared>) -> Directory {
        let (requests, received) = mpsc::unbounded_channel();
        let loads = plans.into_iter().map(|plan| WorkerLoad { used: Claim::default(), plan }).collect();
        let state = State { loads, rooms: HashMap::new(), shared, waiting: Vec::new(), requests: requests.downgrade() };
        tokio::spawn(state.run(received));
        Directory { requests }
    }

    pub(super) async fn place(&self, session: &SessionId, claim: Claim) -> Result<Placement, Full> {
        let (worker, room, slot) = self.claim(session, claim).await?;
        Ok(Placement { worker, candidates: Vec::new(), room, slot })
    }

    /// A claim on the room alone: it keeps the room although nobody may be in it.
    pub(super) async fn hold(&self, session: &SessionId) -> Result<Placed, Full> {
        self.claim(session, Claim::default()).await
    }

    /// A further claim of somebody who is in the room; it keeps the room, too.
    pub(super) async fn grow(&self, session: &SessionId, growth: Claim) -> Result<Slot, Full> {
        let (_, _, slot) = self.claim(session, growth).await?;
        Ok(slot)
    }

    async fn claim(&self, session: &SessionId, claim: Claim) -> Result<Placed, Full> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Place { session: session.clone(), claim, reply }).map_err(|_| Full)?;
        answer.await.map_err(|_| Full)?
    }

    /// The room and its worker.
    pub(super) async fn find(&self, session: &SessionId) -> Option<(usize, RoomSender)> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Find { session: session.clone(), reply }).ok()?;
        answer.await.ok().flatten()
    }

    pub(super) async fn rooms(&self) -> Vec<RoomSender> {
        let (reply, answer) = oneshot::channel();
        // Only a runtime that is ending has no directory, and then there are no rooms.
        let _ = self.requests.send(Request::Rooms { reply });
        answer.await.unwrap_or_default()
    }

    /// Waits until the last room has ended.
    pub(super) async fn emptied(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Emptied { reply });
        let _ = answer.await;
    }
}

struct Room {
    worker: usize,
    sender: RoomSender,
    /// Slots that name it: the room ends with the last.
    claims: usize,
}

struct State {
    loads: Vec<WorkerLoad>,
    rooms: HashMap<SessionId, Room>,
    shared: Weak<Shared>,
    waiting: Vec<oneshot::Sender<()>>,
    /// For the slots.
    requests: mpsc::WeakUnboundedSender<Request>,
}

impl State {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let _guard = EndsProcess;
        while let Some(request) = requests.recv().await {
            // Who asked may be gone by now (a client that hung up); then nobody needs the answer.
            match request {
                Request::Place { session, claim, reply } => {
                    let _ = reply.send(self.place(&session, claim));
                }
                Request::Release { session, claim } => self.release(&session, claim),
                Request::Find { session, reply } => {
                    let _ = reply.send(self.rooms.get(&session).map(|room| (room.worker, room.sender.clone())));
                }
                Request::Rooms { reply } => {
                    let _ = reply.send(self.rooms.values().map(|room| room.sender.clone()).collect());
                }
                Request::Emptied { reply } => self.waiting.push(reply),
            }
            if self.rooms.is_empty() {
                for waiting in self.waiting.drain(..) {
                    let _ = waiting.send(());
                }
            }
        }
    }

    fn place(&mut self, session: &SessionId, claim: Claim) -> Result<Placed, Full> {
        let requests = self.requests.upgrade().ok_or(Full)?;
        let current = self.rooms.get(session).map(|room| room.worker);
        let worker = placement::place(current, &claim, &self.loads)?;
        let shared = &self.shared;
        let room = self.rooms.entry(session.clone()).or_insert_with(|| Room {
            worker,
            sender: room::start(shared.clone(), session.clone(), worker),
            claims: 0,
        });
        room.claims += 1;
        self.loads[worker].used += claim;
        Ok((worker, room.sender.clone(), Slot { session: session.clone(), claim, requests }))
    }

    fn release(&mut self, session: &SessionId, claim: Claim) {
        let room = self.rooms.get_mut(session).expect("a slot names a room that exists for as long as the slot does");
        room.claims -= 1;
        self.loads[room.worker].used -= claim;
        if room.claims == 0 {
            self.rooms.remove(session);
        }
    }
}
