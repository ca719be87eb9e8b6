//! Which rooms exist, on which workers, and how much of its plan each worker has promised. One task owns it.

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

/// A claim on a room and on a worker's plan; given back when dropped.
pub(crate) struct Slot {
    session: SessionId,
    worker: usize,
    claim: Claim,
    requests: mpsc::UnboundedSender<Request>,
}

impl Slot {
    /// On whose plan.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Without a directory there is nothing to give back to.
        let _ = self.requests.send(Request::Release { session: self.session.clone(), worker: self.worker, claim: self.claim });
    }
}

enum Request {
    /// `on`: the worker that it must be.
    Place {
        session: SessionId,
        claim: Claim,
        on: Option<usize>,
        reply: oneshot::Sender<Result<Placed, Full>>,
    },
    Release {
        session: SessionId,
        worker: usize,
        claim: Claim,
    },
    Find {
        session: SessionId,
        reply: oneshot::Sender<Option<RoomSender>>,
    },
    Rooms {
        reply: oneshot::Sender<Vec<RoomSender>>,
    },
    Load {
        reply: oneshot::Sender<u16>,
    },
    Emptied {
        reply: oneshot::Sender<()>,
    },
}

/// The room, and the claim on it and on a worker. The claim travels with the answer: when nobody takes the answer, it is given back.
type Placed = (RoomSender, Slot);

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
        let (room, slot) = self.claim(session, claim, None).await?;
        Ok(Placement { worker: slot.worker, candidates: Vec::new(), room, slot })
    }

    /// A claim on the room alone: it keeps the room although nobody may be in it.
    pub(super) async fn hold(&self, session: &SessionId) -> Result<Placed, Full> {
        self.claim(session, Claim::default(), Some(0)).await
    }

    /// A further claim on the plan of `worker`, of somebody who is in the room; it keeps the room, too.
    pub(super) async fn grow(&self, session: &SessionId, worker: usize, growth: Claim) -> Result<Slot, Full> {
        let (_, slot) = self.claim(session, growth, Some(worker)).await?;
        Ok(slot)
    }

    async fn claim(&self, session: &SessionId, claim: Claim, on: Option<usize>) -> Result<Placed, Full> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Place { session: session.clone(), claim, on, reply }).map_err(|_| Full)?;
        answer.await.map_err(|_| Full)?
    }

    /// The room.
    pub(super) async fn find(&self, session: &SessionId) -> Option<RoomSender> {
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

    /// How much of the workers' plans is promised, in permille.
    pub(super) async fn load(&self) -> u16 {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Load { reply });
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
    sender: RoomSender,
    /// Clients on each worker that has some, in the order in which the workers got them.
    clients: Vec<(usize, usize)>,
    /// Slots that name it: the room ends with the last.
    claims: usize,
}

impl Room {
    fn take(&mut self, worker: usize, clients: usize) {
        self.claims += 1;
        match self.clients.iter_mut().find(|(of, _)| *of == worker) {
            Some((_, count)) => *count += clients,
            None if clients > 0 => self.clients.push((worker, clients)),
            None => {}
        }
    }

    fn give_back(&mut self, worker: usize, clients: usize) {
        self.claims -= 1;
        if let Some((_, count)) = self.clients.iter_mut().find(|(of, _)| *of == worker) {
            *count -= clients;
        }
        self.clients.retain(|(_, count)| *count > 0);
    }
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
                Request::Place { session, claim, on, reply } => {
                    let _ = reply.send(self.place(&session, claim, on));
                }
                Request::Release { session, worker, claim } => self.release(&session, worker, claim),
                Request::Find { session, reply } => {
                    let _ = reply.send(self.rooms.get(&session).map(|room| room.sender.clone()));
                }
                Request::Rooms { reply } => {
                    let _ = reply.send(self.rooms.values().map(|room| room.sender.clone()).collect());
                }
                Request::Load { reply } => drop(reply.send(placement::load_permille(&self.loads))),
                Request::Emptied { reply } => self.waiting.push(reply),
            }
            if self.rooms.is_empty() {
                for waiting in self.waiting.drain(..) {
                    let _ = waiting.send(());
                }
            }
        }
    }

    fn place(&mut self, session: &SessionId, claim: Claim, on: Option<usize>) -> Result<Placed, Full> {
        let requests = self.requests.upgrade().ok_or(Full)?;
        let current: Vec<usize> =
            self.rooms.get(session).map(|room| room.clients.iter().map(|(worker, _)| *worker).collect()).unwrap_or_default();
        let worker = match on {
            Some(worker) => self.loads.get(worker).filter(|load| load.has_room(&claim)).map(|_| worker).ok_or(Full)?,
            None => {
                let shared = self.shared.upgrade().ok_or(Full)?;
                let tests = shared.self_test.workers();
                placement::place_around(&current, &claim, &self.loads, |worker| tests[worker].is_gray())?
            }
        };
        let shared = &self.shared;
        let room = self.rooms.entry(session.clone()).or_insert_with(|| Room {
            sender: room::start(shared.clone(), session.clone()),
            clients: Vec::new(),
            claims: 0,
        });
        room.take(worker, claim.transports);
        self.loads[worker].used += claim;
        Ok((room.sender.clone(), Slot { session: session.clone(), worker, claim, requests }))
    }

    fn release(&mut self, session: &SessionId, worker: usize, claim: Claim) {
        let room = self.rooms.get_mut(session).expect("a slot names a room that exists for as long as the slot does");
        room.give_back(worker, claim.transports);
        self.loads[worker].used -= claim;
        if room.claims == 0 {
            self.rooms.remove(session);
        }
    }
}
