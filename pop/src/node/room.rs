//! One session's task: the only one that touches its [`Session`].

use std::collections::HashMap;
use std::sync::Weak;

use pop_proto::control::SrtpProfile;
use pop_proto::{Command, Event};
use pop_schemas::{SessionId, TransportId};
use pop_session::session::{Action, Audit};
use pop_session::{Join, Limits, Media, Output, Refusal, Reply, Request, RequestId, Session, SessionView, TransportFailure};
use tokio::sync::{mpsc, oneshot};

use super::directory::{RoomSender, Slot};
use super::pump::Route;
use super::{EndsProcess, Shared};
use crate::dtls::{DtlsError, DtlsEvent, DtlsEvents, DtlsPeer};
use crate::logging::AUDIT;

/// What reaches a room.
pub(super) enum RoomMessage {
    Join {
        join: Box<Join>,
        /// `None` for an RTP route.
        dtls: Option<Box<(DtlsPeer, DtlsEvents)>>,
        slot: Slot,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    Leave {
        resource: Box<str>,
        reply: oneshot::Sender<bool>,
    },
    /// A request whose reply has a content.
    Ask {
        request: Request,
        reply: oneshot::Sender<Result<Reply, Refusal>>,
    },
    Describe {
        reply: oneshot::Sender<SessionView>,
    },
    /// Does the room's task live?
    Ping {
        reply: oneshot::Sender<()>,
    },
    /// From the session's worker.
    Event(Box<Event>),
    /// DTLS is done; the worker has the keys.
    Connected {
        transport: TransportId,
        profile: SrtpProfile,
    },
    /// DTLS failed, or the client ended it.
    Failed {
        transport: TransportId,
        failure: TransportFailure,
    },
    /// The node stops: everybody leaves.
    Close,
}

/// Who waits for the reply of a request.
enum Waiting {
    Join(oneshot::Sender<Result<(), Refusal>>, TransportId),
    Leave(oneshot::Sender<bool>),
    Ask(oneshot::Sender<Result<Reply, Refusal>>),
}

/// Starts a room's task; it ends when the directory has dropped the sender and no placement holds a copy.
pub(super) fn start(shared: Weak<Shared>, id: SessionId, worker: usize) -> RoomSender {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).expect("the system gives random bytes");
    let seed = u64::from_ne_bytes(seed);
    let room = Room {
        shared,
        worker,
        session: Session::new(id, Limits::default(), seed),
        mailbox: sender.downgrade(),
        waiting: HashMap::new(),
        resources: HashMap::new(),
        routed: HashMap::new(),
        requests: 0,
    };
    tokio::spawn(room.run(receiver));
    sender
}

struct Room {
    shared: Weak<Shared>,
    worker: usize,
    session: Session,
    /// For the transport tasks of this room.
    mailbox: mpsc::WeakUnboundedSender<RoomMessage>,
    waiting: HashMap<RequestId, Waiting>,
    /// HTTP resources of those who are here, to end them all when the node stops.
    resources: HashMap<TransportId, Box<str>>,
    /// What the RTP routes of this room claim.
    routed: HashMap<TransportId, Slot>,
    requests: u64,
}

impl Room {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<RoomMessage>) {
        let _guard = EndsProcess;
        loop {
            let Some(now) = self.shared.upgrade().map(|shared| shared.clock.now()) else { return };
            let deadline = self.session.poll_timeout().map(|at| at.since(now));
            let timeout = async {
                match deadline {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => Some(message),
                    None => return,
                },
                () = timeout => None,
            };
            let Some(shared) = self.shared.upgrade() else { return };
            match message {
                Some(message) => self.handle(&shared, message),
                None => self.session.handle_timeout(shared.clock.now()),
            }
            self.drain(&shared).await;
        }
    }

    fn handle(&mut self, shared: &Shared, message: RoomMessage) {
        let now = shared.clock.now();
        match message {
            RoomMessage::Join { join, dtls, slot, reply } => self.join(shared, *join, dtls.map(|dtls| *dtls), slot, reply),
            RoomMessage::Leave { resource, reply } => self.request(shared, Request::Leave { resource }, Waiting::Leave(reply)),
            RoomMessage::Ask { request, reply } => self.request(shared, request, Waiting::Ask(reply)),
            // Who asked may be gone.
            RoomMessage::Ping { reply } => drop(reply.send(())),
            RoomMessage::Describe { reply } => drop(reply.send(self.session.describe(now))),
            RoomMessage::Event(event) => self.session.handle_event(now, *event),
            RoomMessage::Connected { transport, profile } => self.session.handle_transport_connected(now, transport, profile),
            RoomMessage::Failed { transport, failure } => self.session.handle_transport_failed(now, transport, failure),
            RoomMessage::Close => {
                for resource in self.resources.values().cloned().collect::<Vec<_>>() {
                    self.requests += 1;
                    self.session.handle_request(now, RequestId(self.requests), Request::Leave { resource });
                }
            }
        }
    }

    fn request(&mut self, shared: &Shared, request: Request, waiting: Waiting) {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.waiting.insert(id, waiting);
        self.session.handle_request(shared.clock.now(), id, request);
    }

    fn join(
        &mut self,
        shared: &Shared,
        join: Join,
        dtls: Option<(DtlsPeer, DtlsEvents)>,
        slot: Slot,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let transport = join.transport.id();
        let (tracks, subscriptions) = match &join.media {
            Media::Publish(publications) => (publications.iter().map(|p| p.open.track).collect(), Vec::new()),
            Media::Watch(sections) => (Vec::new(), sections.iter().map(|s| s.open.subscription).collect()),
        };
        self.resources.insert(transport, join.resource.clone());
        let (peer, events) = dtls.unzip();
        // Before the worker hears of the transport, so that no event of it comes to an unknown address.
        if let Some(room) = self.mailbox.upgrade() {
            shared.routes[self.worker].add(transport, Route { room, peer, tracks, subscriptions });
        }
        match events {
            Some(events) => {
                let (shared, room) = (self.shared.clone(), self.mailbox.clone());
                tokio::spawn(Transport { shared, worker: self.worker, id: transport, room, _slot: slot }.run(events));
            }
            None => drop(self.routed.insert(transport, slot)),
        }
        self.request(shared, Request::Join(Box::new(join)), Waiting::Join(reply, transport));
    }

    async fn drain(&mut self, shared: &Shared) {
        while let Some(output) = self.session.poll() {
            match output {
                // The transport's task tells the worker, after the client was told. A route has no task, and nobody to tell.
                Output::Command(Command::CloseTransport { transport }) => {
                    if let Some(_slot) = self.routed.remove(&transport) {
                        shared.command(self.worker, Command::CloseTransport { transport }).await;
                    }
                }
                Output::Command(command) => shared.command(self.worker, command).await,
                Output::Closed { transport, .. } => self.forget(shared, transport),
                Output::Reply(id, reply) => self.reply(shared, id, reply),
                Output::Audit(audit) => self.audit(shared, &audit),
                Output::Notice(..) => {}
            }
        }
    }

    fn forget(&mut self, shared: &Shared, transport: TransportId) {
        self.resources.remove(&transport);
        self.routed.remove(&transport);
        shared.routes[self.worker].remove(transport);
    }

    fn reply(&mut self, shared: &Shared, id: RequestId, reply: Result<Reply, Refusal>) {
        // Nobody waits when the node stops, or when the HTTP client hung up; the state is right all the same.
        match self.waiting.remove(&id) {
            Some(Waiting::Join(waiting, transport)) => {
                if reply.is_err() {
                    self.forget(shared, transport);
                }
                let _ = waiting.send(reply.map(|_| ()));
            }
            Some(Waiting::Leave(waiting)) => drop(waiting.send(reply.is_ok())),
            Some(Waiting::Ask(waiting)) => drop(waiting.send(reply)),
            None => {}
        }
    }

    fn audit(&self, shared: &Shared, audit: &Audit) {
        let (room, identity, role) = (self.session.id(), &audit.identity, audit.role.name());
        let participant = audit.participant;
        match audit.action {
            Action::Joined { transport } => tracing::info!(target: AUDIT, %room, %identity, role, %participant, %transport, "join"),
            Action::Connected { profile, address, after } => {
                shared.join_seconds.observe(after);
                let address = address.map(|a| a.to_string()).unwrap_or_default();
                tracing::info!(target: AUDIT, %room, %identity, role, %participant, address, profile = profile.name(), after_ms = after.as_millis() as u64, "connect");
            }
            Action::Learnt { address } => tracing::info!(%room, %identity, role, %participant, %address, "peer learnt"),
            Action::Published { track, kind, codec } => {
                let codec = codec.map_or("", |c| c.name());
                tracing::info!(target: AUDIT, %room, %identity, role, %participant, %track, kind = kind.name(), codec, "publish");
            }
            Action::Left { reason, stayed } => {
                tracing::info!(target: AUDIT, %room, %identity, role, %participant, reason = reason.name(), stayed_s = stayed.as_secs(), "leave");
            }
        }
    }
}

/// The task of one transport: it carries DTLS down to the worker, and its end gives the slot back.
struct Transport {
    shared: Weak<Shared>,
    worker: usize,
    id: TransportId,
    room: mpsc::WeakUnboundedSender<RoomMessage>,
    _slot: Slot,
}

impl Transport {
    async fn run(self, mut events: DtlsEvents) {
        // The events end when the peer is dropped by the pump, after the close_notify is out.
        while let Some(event) = events.recv().await {
            let Some(shared) = self.shared.upgrade() else { return };
            let message = match event {
                DtlsEvent::Send(datagram) => {
                    shared.command(self.worker, Command::SendDtls { transport: self.id, datagram }).await;
                    continue;
                }
                DtlsEvent::Established { keys, .. } => {
                    let profile = keys.profile;
                    shared.command(self.worker, Command::InstallKeys { transport: self.id, keys }).await;
                    RoomMessage::Connected { transport: self.id, profile }
                }
                DtlsEvent::Failed(error) => {
                    tracing::debug!(transport = %self.id, %error, "DTLS failed");
                    RoomMessage::Failed { transport: self.id, failure: failure(&error) }
                }
                DtlsEvent::Closed => RoomMessage::Failed { transport: self.id, failure: TransportFailure::ClosedByPeer },
            };
            if let Some(room) = self.room.upgrade() {
                // A room that has ended has closed its transports.
                let _ = room.send(message);
            }
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.command(self.worker, Command::CloseTransport { transport: self.id }).await;
        }
    }
}

fn failure(error: &DtlsError) -> TransportFailure {
    match error {
        DtlsError::Timeout => TransportFailure::HandshakeTimeout,
        DtlsError::Fingerprint => TransportFailure::Fingerprint,
        _ => TransportFailure::Handshake,
    }
}
