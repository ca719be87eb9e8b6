//! One session's task: the only one that touches its [`Session`].

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pop_dataplane::limits::TRACKS_PER_TRANSPORT_MAX;
use pop_proto::control::{DataMessage, ExtensionIds, OpenTrack, OpenTransport, PayloadTypeMap, SrtpProfile};
use pop_proto::{Command, Event};
use pop_schemas::{NodeId, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};
use pop_session::member::{ConnectionQuality, Enter, MemberRequest, Notice, Offer, Resume};
use pop_session::placement::Claim;
use pop_session::presence::Record;
use pop_session::session::{Action, Audit, CloseReason, RoomWord};
use pop_session::{Join, Limits, Output, Refusal, Reply, Request, RequestId, Session, SessionView, TransportFailure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::sleep_until;

use super::data::{DataPath, Outbox, Places, Received, new_room_places};
use super::directory::{RoomSender, Slot};
use super::member::{Line, Member, Order, Socket, TransportStart};
use super::pump::Route;
use super::spread::{Directed, RemoteTrack, Spread};
use super::{EndsProcess, Shared};
use crate::cluster::Cluster;
use crate::data::{DataDrop, SenderPlace};
use crate::dtls::{DtlsError, DtlsEvent, DtlsEvents, DtlsPeer};
use crate::logging::AUDIT;
use crate::signal::livekit::data::Sender;

/// Messages for a client that are handed to its association together.
const ORDERS_PER_TURN: usize = 64;

/// After this a section that got no mirror for want of a place asks for one again: places are given back without a word.
const MIRROR_RETRY: Duration = Duration::from_secs(1);

/// What reaches a room.
pub(crate) enum RoomMessage {
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
    /// A client comes in as a member.
    Enter {
        enter: Box<Enter>,
        socket: Socket,
        line: Arc<Mutex<Line>>,
        slot: Slot,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// A member's client is back.
    Resume {
        resume: Box<Resume>,
        socket: Socket,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The client of a member of another node is here.
    Adopt {
        resume: Box<Resume>,
        socket: Socket,
        line: Arc<Mutex<Line>>,
        slot: Slot,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// What is remembered of a member.
    FindMember {
        participant: ParticipantId,
        reply: oneshot::Sender<Found>,
    },
    /// Which worker has the transport behind an HTTP resource.
    FindWorker {
        resource: Box<str>,
        reply: oneshot::Sender<Option<usize>>,
    },
    /// A member says something on its socket of this number.
    Member {
        participant: ParticipantId,
        socket: u64,
        request: MemberRequest,
        permit: OwnedSemaphorePermit,
    },
    /// A member offers its transport.
    Offer {
        participant: ParticipantId,
        socket: u64,
        offer: Box<Offer>,
        start: TransportStart,
        permit: OwnedSemaphorePermit,
    },
    /// More was claimed for a member.
    Claimed {
        participant: ParticipantId,
        slot: Slot,
    },
    /// The socket of this number is gone.
    SocketClosed {
        participant: ParticipantId,
        socket: u64,
    },
    Describe {
        reply: oneshot::Sender<SessionView>,
    },
    /// Does the room's task live?
    Ping {
        reply: oneshot::Sender<()>,
    },
    /// From a worker.
    Event(Box<Event>),
    /// A message of a client.
    Data {
        transport: TransportId,
        message: Arc<DataMessage>,
        places: Places,
    },
    /// A client takes messages slower than they come.
    DataOverflow {
        transport: TransportId,
        generation: u32,
    },
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
    /// What another node says of its participant.
    Record {
        record: Box<Record>,
        /// In the bound of all that wait, until it is taken.
        _place: Option<OwnedSemaphorePermit>,
    },
    /// A participant of another node, or an operator there, says something.
    RemoteData {
        node: NodeId,
        sender: Option<ParticipantId>,
        message: Arc<DataMessage>,
        /// Among what that node may have waiting.
        place: OwnedSemaphorePermit,
    },
    /// How another node's participants are.
    Heard {
        node: NodeId,
        speaking: Vec<(ParticipantId, u8)>,
        connections: Vec<ConnectionQuality>,
        /// In the bound of all that wait, until it is taken; so of the next two.
        place: OwnedSemaphorePermit,
    },
    /// What another node knows to have been said of the room.
    Word {
        word: RoomWord,
        place: OwnedSemaphorePermit,
    },
    /// Another node wants what ours say.
    Followed {
        node: NodeId,
        age: Duration,
        received: Vec<(ParticipantId, u32)>,
        place: OwnedSemaphorePermit,
    },
    /// What that node's participants say is to be asked for.
    Follow {
        node: NodeId,
    },
    /// What became of another node.
    Node {
        node: NodeId,
        fate: NodeFate,
    },
    /// Another node sends a track that was asked for.
    RemoteOffered {
        remote: Box<RemoteTrack>,
        /// The worker that takes it.
        home: usize,
    },
    /// What another node sent of a track ends; it is asked for again.
    RemoteLost {
        track: TrackId,
    },
    /// A track of `owner` is to be taken by worker `home`, unless another one has it, and to be passed on to further nodes; or no longer.
    Pass {
        track: TrackId,
        owner: NodeId,
        home: usize,
        on: bool,
    },
    /// Another node's subscribers want a track of ours, or no longer.
    Wanted {
        track: TrackId,
        on: bool,
        reply: oneshot::Sender<Option<Exported>>,
    },
    /// The node stops: everybody leaves.
    Close,
}

/// Where a member is.
pub(crate) enum Found {
    /// Here, on this worker.
    Here(usize, Arc<Mutex<Line>>),
    /// On this node, which does not answer.
    Away(NodeId),
    /// On this other node.
    There(NodeId),
    /// Nowhere.
    Unknown,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeFate {
    /// It is silent: its people may come back, with it or elsewhere.
    Away,
    /// It is here again, the same as before.
    Back,
    /// It has begun anew: whom it does not name is gone.
    Restarted,
}

/// A track for another node.
#[derive(Clone)]
pub(crate) struct Exported {
    /// It is not ours: it goes on to nodes of this PoP alone.
    pub(crate) is_passed: bool,
    /// The worker that has it.
    pub(crate) home: usize,
    pub(crate) open: OpenTrack,
    pub(crate) extensions: ExtensionIds,
    /// And no screen.
    pub(crate) is_camera: bool,
}

/// A track of another node that sections here take.
struct RemoteFeed {
    owner: NodeId,
    /// It was asked for, and neither came nor ended since.
    is_awaited: bool,
    /// What each section takes of it.
    forwards: HashMap<SubscriptionId, Vec<PayloadTypeMap>>,
    /// It goes on to further nodes; the worker that takes it for them.
    passed: Option<usize>,
}

impl RemoteFeed {
    fn new(owner: NodeId) -> RemoteFeed {
        RemoteFeed { owner, is_awaited: false, forwards: HashMap::new(), passed: None }
    }
}

/// Who waits for the reply of a request.
enum Waiting {
    Join(oneshot::Sender<Result<(), Refusal>>, TransportId, ParticipantId),
    Leave(oneshot::Sender<bool>),
    Ask(oneshot::Sender<Result<Reply, Refusal>>),
    Enter(oneshot::Sender<Result<(), Refusal>>, ParticipantId),
    /// With the socket that the new one took the place of.
    Resume(oneshot::Sender<Result<(), Refusal>>, ParticipantId, Option<Socket>),
}

/// Starts a room's task; it ends when the directory has dropped the sender and no placement holds a copy.
pub(super) fn start(shared: Weak<Shared>, id: SessionId) -> RoomSender {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).expect("the system gives random bytes");
    let seed = u64::from_ne_bytes(seed);
    let (node, grace) = shared.upgrade().map_or_else(Default::default, |shared| (shared.node, shared.grace));
    let limits = Limits { streams_max: TRACKS_PER_TRANSPORT_MAX, grace, ..Limits::default() };
    let watch = Watch::start(&shared, &id, sender.downgrade());
    let room = Room {
        _watch: watch,
        shared,
        spread: Spread::default(),
        refused: HashMap::new(),
        retry_at: None,
        people: HashMap::new(),
        session: Session::new(id, limits, seed).on_node(node.0),
        mailbox: sender.downgrade(),
        waiting: HashMap::new(),
        routed: HashMap::new(),
        members: HashMap::new(),
        opening: None,
        outboxes: HashMap::new(),
        data_places: new_room_places(),
        sender_place: None,
        overflowed: Vec::new(),
        remotes: HashMap::new(),
        offered: Vec::new(),
        postponed: Vec::new(),
        lost: Vec::new(),
        passing: Vec::new(),
        requests: 0,
    };
    tokio::spawn(room.run(receiver));
    sender
}

/// Where somebody is.
struct Person {
    worker: usize,
    /// Its HTTP resource.
    resource: Option<Box<str>>,
}

/// Other nodes' participants come to this room while it lives.
struct Watch {
    shared: Weak<Shared>,
    session: SessionId,
    number: u64,
}

impl Watch {
    fn start(shared: &Weak<Shared>, session: &SessionId, room: mpsc::WeakUnboundedSender<RoomMessage>) -> Watch {
        let mut watch = Watch { shared: shared.clone(), session: session.clone(), number: 0 };
        if let Some(shared) = shared.upgrade()
            && let Some(cluster) = shared.cluster.get()
        {
            watch.number = shared.ids.fetch_add(1, Relaxed);
            cluster.watch(session, room, watch.number);
        }
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade()
            && let Some(cluster) = shared.cluster.get()
        {
            cluster.unwatch(&self.session, self.number);
        }
    }
}

struct Room {
    _watch: Watch,
    shared: Weak<Shared>,
    spread: Spread<Slot>,
    /// What sections wait for whose worker had no place for a mirror of it.
    refused: HashMap<SubscriptionId, (TrackId, Vec<PayloadTypeMap>)>,
    /// When they ask again.
    retry_at: Option<Time>,
    people: HashMap<ParticipantId, Person>,
    session: Session,
    /// For the transport tasks of this room.
    mailbox: mpsc::WeakUnboundedSender<RoomMessage>,
    waiting: HashMap<RequestId, Waiting>,
    /// What the RTP routes of this room claim.
    routed: HashMap<TransportId, Slot>,
    members: HashMap<ParticipantId, Member>,
    /// What the transport of the offer that is being handled begins with.
    opening: Option<(ParticipantId, TransportStart)>,
    /// Where the data of members goes.
    outboxes: HashMap<TransportId, Outbox>,
    /// For what waits for this room, of all its members together.
    data_places: Arc<Semaphore>,
    /// What the sender of the message that is being handed out has to wait for.
    sender_place: Option<SenderPlace>,
    /// Those that have overflowed in this turn: what the session has said for them before it knew is not sent.
    overflowed: Vec<TransportId>,
    /// Tracks of other nodes that are taken here, whether they come or are awaited.
    remotes: HashMap<TrackId, RemoteFeed>,
    /// Of these, what has just begun and what has just ended to come.
    offered: Vec<(RemoteTrack, usize)>,
    /// Offered, and without a place here: they are tried again with [`Room::refused`].
    postponed: Vec<(RemoteTrack, usize)>,
    lost: Vec<TrackId>,
    /// What is to be passed on, and by which worker; `None`: no longer.
    passing: Vec<(TrackId, NodeId, Option<usize>)>,
    requests: u64,
}

impl Room {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<RoomMessage>) {
        let _guard = EndsProcess;
        loop {
            let Some(now) = self.shared.upgrade().map(|shared| shared.clock.now()) else { return };
            let deadline = self.session.poll_timeout().into_iter().chain(self.retry_at).min().map(|at| at.since(now));
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
            self.retry_mirrors(&shared).await;
        }
    }

    fn handle(&mut self, shared: &Shared, message: RoomMessage) {
        let now = shared.clock.now();
        match message {
            RoomMessage::Join { join, dtls, slot, reply } => self.join(shared, *join, dtls.map(|dtls| *dtls), slot, reply),
            RoomMessage::Leave { resource, reply } => self.request(shared, Request::Leave { resource }, Waiting::Leave(reply)),
            RoomMessage::Ask { request, reply } => self.request(shared, request, Waiting::Ask(reply)),
            RoomMessage::Enter { enter, socket, line, slot, reply } => {
                let participant = enter.participant;
                self.people.insert(participant, Person { worker: slot.worker(), resource: None });
                let (identity, hidden) = (enter.identity.clone(), enter.permissions.hidden);
                self.members.insert(participant, Member::new(socket, line, identity, hidden, slot));
                self.request(shared, Request::Enter(enter), Waiting::Enter(reply, participant));
            }
            RoomMessage::Resume { resume, socket, reply } => self.resume(shared, resume, socket, reply),
            RoomMessage::Adopt { resume, socket, line, slot, reply } => self.adopt(shared, resume, (socket, line), slot, reply),
            // Who asked may be gone.
            RoomMessage::FindMember { participant, reply } => drop(reply.send(self.find_member(participant))),
            RoomMessage::FindWorker { resource, reply } => {
                let person = self.people.values().find(|person| person.resource.as_deref() == Some(&*resource));
                let _ = reply.send(person.map(|person| person.worker));
            }
            RoomMessage::Member { participant, socket, request, permit: _permit } => {
                if self.is_current(participant, socket) {
                    self.session.handle_member(now, participant, request);
                }
            }
            RoomMessage::Offer { participant, socket, offer, start, permit: _permit } => {
                if self.is_current(participant, socket) {
                    self.opening = Some((participant, start));
                    self.session.handle_member(now, participant, MemberRequest::Offer(offer));
                }
            }
            RoomMessage::Claimed { participant, slot } => {
                if let Some(member) = self.members.get_mut(&participant) {
                    member.keep(slot);
                }
            }
            RoomMessage::SocketClosed { participant, socket } => {
                if self.is_current(participant, socket) {
                    self.cut_socket(now, participant);
                }
            }
            // Who asked may be gone.
            RoomMessage::Ping { reply } => drop(reply.send(())),
            RoomMessage::Describe { reply } => drop(reply.send(self.describe(now))),
            RoomMessage::Event(event) => self.session.handle_event(now, *event),
            RoomMessage::Data { transport, message, places } => {
                self.sender_place = Some(places.sender);
                self.take_data(shared, transport, message);
            }
            RoomMessage::DataOverflow { transport, generation } => {
                if self.outboxes.get(&transport).is_some_and(|outbox| outbox.is_current(generation)) {
                    self.overflow(now, transport);
                }
            }
            RoomMessage::Connected { transport, profile } => self.session.handle_transport_connected(now, transport, profile),
            RoomMessage::Failed { transport, failure } => self.session.handle_transport_failed(now, transport, failure),
            RoomMessage::Record { record, _place } => drop(self.session.handle_record(now, *record)),
            RoomMessage::RemoteData { node, sender, message, place: _place } => {
                self.count_data(shared, |session| session.handle_remote_data(now, node.0, sender, message));
            }
            RoomMessage::Heard { node, speaking, connections, place: _place } => {
                self.session.handle_heard(now, node.0, &speaking, &connections);
            }
            RoomMessage::Word { word, place: _place } => self.session.handle_room_word(now, word),
            RoomMessage::Followed { node, age, received, place: _place } => self.session.handle_follow(now, node.0, age, &received),
            RoomMessage::Follow { node } => {
                if let Some(cluster) = shared.cluster.get() {
                    cluster.follow(self.session.id(), node, self.session.received_of(node.0));
                }
                self.session.tell_room_to(node.0);
            }
            RoomMessage::Node { node, fate } => match fate {
                NodeFate::Away => self.session.handle_node_away(now, node.0),
                NodeFate::Back => self.session.handle_node_back(now, node.0),
                NodeFate::Restarted => self.session.handle_node_restarted(now, node.0),
            },
            RoomMessage::RemoteOffered { remote, home } => self.offered.push((*remote, home)),
            RoomMessage::RemoteLost { track } => self.lost.push(track),
            RoomMessage::Pass { track, owner, home, on } => self.passing.push((track, owner, on.then_some(home))),
            RoomMessage::Wanted { track, on, reply } => {
                let is_camera = self.session.is_camera(track);
                let exported = |(home, open, extensions): (usize, &OpenTrack, ExtensionIds)| Exported {
                    is_passed: false,
                    home,
                    open: open.clone(),
                    extensions,
                    is_camera,
                };
                let exported = self.spread.local_track(track).map(exported);
                if exported.is_some() {
                    self.session.handle_remote_demand(now, track, on);
                }
                // A cluster that is gone needs no answer.
                let _ = reply.send(exported);
            }
            RoomMessage::Close => {
                self.requests += 1;
                self.session.handle_request(now, RequestId(self.requests), Request::Shutdown);
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
        let (transport, worker) = (join.transport.id(), slot.worker());
        self.spread.place(transport, worker);
        self.people.insert(join.participant, Person { worker, resource: Some(join.resource.clone()) });
        let participant = join.participant;
        let (peer, events) = dtls.unzip();
        // Before the worker hears of the transport, so that no event of it comes to an unknown address.
        if let Some(room) = self.mailbox.upgrade() {
            shared.routes[worker].add(transport, Route { room, peer });
        }
        match events {
            Some(events) => self.start_transport((transport, worker), events, mpsc::unbounded_channel().1, vec![slot], None),
            None => drop(self.routed.insert(transport, slot)),
        }
        self.request(shared, Request::Join(Box::new(join)), Waiting::Join(reply, transport, participant));
    }

    /// Starts the task of a transport, which keeps `slots`.
    fn start_transport(
        &self,
        (id, worker): (TransportId, usize),
        events: DtlsEvents,
        orders: mpsc::UnboundedReceiver<Order>,
        slots: Vec<Slot>,
        data: Option<Box<DataPath>>,
    ) {
        let (shared, room) = (self.shared.clone(), self.mailbox.clone());
        tokio::spawn(Transport { shared, worker, id, room, slots, data }.run(events, orders));
    }

    fn resume(&mut self, shared: &Shared, resume: Box<Resume>, socket: Socket, reply: oneshot::Sender<Result<(), Refusal>>) {
        let participant = resume.participant;
        let Some(member) = self.members.get_mut(&participant) else {
            let _ = reply.send(Err(Refusal::UnknownParticipant));
            return;
        };
        let old = member.socket.replace(socket);
        self.request(shared, Request::Resume(resume), Waiting::Resume(reply, participant, old));
    }

    fn find_member(&self, participant: ParticipantId) -> Found {
        match (self.people.get(&participant).zip(self.members.get(&participant)), self.session.owner_abroad(participant)) {
            (Some((person, member)), _) => Found::Here(person.worker, Arc::clone(&member.line)),
            (None, Some((node, true))) => Found::Away(NodeId(node)),
            (None, Some((node, false))) => Found::There(NodeId(node)),
            (None, None) => Found::Unknown,
        }
    }

    fn adopt(
        &mut self,
        shared: &Shared,
        resume: Box<Resume>,
        (socket, line): (Socket, Arc<Mutex<Line>>),
        slot: Slot,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let participant = resume.participant;
        if self.members.contains_key(&participant) {
            // Another socket of it was faster: it is here now.
            let _ = reply.send(Err(Refusal::Elsewhere));
            return;
        }
        let hidden = self.session.participants().find(|of| of.id() == participant).is_some_and(|of| of.is_hidden());
        self.people.insert(participant, Person { worker: slot.worker(), resource: None });
        self.members.insert(participant, Member::new(socket, line, resume.identity.clone(), hidden, slot));
        self.request(shared, Request::Resume(resume), Waiting::Enter(reply, participant));
    }

    /// What comes on a socket that another one has replaced is late.
    fn is_current(&self, participant: ParticipantId, socket: u64) -> bool {
        let current = self.members.get(&participant).and_then(|member| member.socket.as_ref());
        current.is_some_and(|current| current.number == socket)
    }

    fn cut_socket(&mut self, now: Time, participant: ParticipantId) {
        if let Some(member) = self.members.get_mut(&participant) {
            member.socket = None;
        }
        self.session.handle_member(now, participant, MemberRequest::SocketClosed);
    }

    /// A member's transport begins. Its DTLS may be refused; then it ends at once.
    async fn open_transport(&mut self, shared: &Shared, open: Box<OpenTransport>, participant: ParticipantId, start: TransportStart) {
        let id = open.transport;
        let Some(worker) = self.people.get(&participant).map(|person| person.worker) else { return };
        self.spread.place(id, worker);
        match shared.dtls.open(start.role, start.fingerprints) {
            Ok((peer, events)) => {
                if let Some(room) = self.mailbox.upgrade() {
                    shared.routes[worker].add(id, Route { room, peer: Some(peer) });
                }
                let (orders, received) = mpsc::unbounded_channel();
                let (mut slots, mut data) = (Vec::new(), None);
                if let Some(member) = self.members.get_mut(&participant) {
                    slots = std::mem::take(&mut member.slots);
                    let outbox = Outbox::new(orders.clone(), Arc::clone(&shared.data));
                    let sender = Sender::new(participant, member.identity.clone(), Arc::clone(&member.hidden));
                    let kept = std::mem::take(&mut member.line.lock().expect("nothing panics while it is held").channels);
                    data = Some(Box::new(DataPath::new(
                        now(),
                        sender,
                        kept,
                        outbox.generation(),
                        Arc::clone(&self.data_places),
                        Arc::clone(&shared.data),
                    )));
                    self.outboxes.insert(id, outbox);
                    member.transport = Some(orders);
                }
                self.start_transport((id, worker), events, received, slots, data);
                shared.command(worker, Command::OpenTransport(open)).await;
            }
            Err(error) => {
                tracing::debug!(transport = %id, %error, "DTLS cannot begin");
                self.session.handle_transport_failed(shared.clock.now(), id, failure(&error));
            }
        }
    }

    fn take_data(&mut self, shared: &Shared, transport: TransportId, message: Arc<DataMessage>) {
        let now = shared.clock.now();
        self.count_data(shared, |session| session.handle_event(now, Event::Data { transport, message }));
    }

    fn count_data(&mut self, shared: &Shared, hand: impl FnOnce(&mut Session)) {
        let before = self.session.data_drops();
        hand(&mut self.session);
        let after = self.session.data_drops();
        for (reason, count) in [
            (DataDrop::NotAllowed, after.forbidden - before.forbidden),
            (DataDrop::Malformed, after.oversized - before.oversized),
            (DataDrop::Repeated, after.repeated - before.repeated),
            (DataDrop::Foreign, after.foreign - before.foreign),
        ] {
            (0..count).for_each(|_| shared.data.count_drop(reason));
        }
    }

    fn send_data(&mut self, shared: &Shared, transport: TransportId, message: &Arc<DataMessage>) {
        let outbox = self.outboxes.get_mut(&transport).filter(|_| !self.overflowed.contains(&transport));
        let Some(outbox) = outbox else { return shared.data.count_drop(DataDrop::NotConnected) };
        if outbox.send(now(), message, self.sender_place.as_ref()).is_err() {
            self.overflow(shared.clock.now(), transport);
        }
    }

    fn overflow(&mut self, now: Time, transport: TransportId) {
        tracing::debug!(%transport, "a client takes data too slowly; it is told to resume");
        self.session.handle_data_overflow(now, transport);
        self.overflowed.push(transport);
    }

    fn tell(&mut self, shared: &Shared, participant: ParticipantId, notice: Notice) {
        let Some(member) = self.members.get_mut(&participant) else { return };
        if let Notice::Grants(grants) = &notice {
            member.hidden.store(grants.permissions.hidden, Relaxed);
        }
        let is_last = matches!(notice, Notice::Leave { .. });
        let taken = member.socket.as_ref().is_none_or(|socket| socket.tell(notice));
        if is_last {
            member.socket = None;
        } else if !taken {
            shared.count_slow_reader();
            self.cut_socket(shared.clock.now(), participant);
        }
    }

    async fn drain(&mut self, shared: &Shared) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Command(Command::OpenTransport(open)) if self.opening.is_some() => {
                    let (participant, start) = self.opening.take().expect("it is there");
                    self.open_transport(shared, open, participant, start).await;
                }
                // The transport's task tells the worker, after the client was told. A route has no task, and nobody to tell.
                Output::Command(Command::CloseTransport { transport }) => {
                    if let Some(slot) = self.routed.remove(&transport) {
                        shared.command(slot.worker(), Command::CloseTransport { transport }).await;
                    }
                }
                Output::Command(Command::SendData { transport, message }) => self.send_data(shared, transport, &message),
                Output::Command(command) => self.direct(shared, command).await,
                Output::Closed { transport, .. } => {
                    let directed = self.forget(shared, transport);
                    self.send(shared, directed).await;
                }
                Output::Reply(id, reply) => self.reply(shared, id, reply),
                Output::Audit(audit) => {
                    self.audit(shared, &audit);
                    if let Action::Left { reason, .. } = audit.action {
                        self.people.remove(&audit.participant);
                        self.members.remove(&audit.participant);
                        if let Some(cluster) = shared.cluster.get().filter(|_| reason == CloseReason::TakenOver) {
                            cluster.withdraw(self.session.id(), audit.participant);
                        }
                    }
                }
                // A node alone has nobody to tell.
                Output::Put(record) => {
                    if let Some(cluster) = shared.cluster.get() {
                        cluster.put(self.session.id(), record);
                    }
                }
                Output::Abroad { node, told } => {
                    if let Some(cluster) = shared.cluster.get() {
                        cluster.tell_abroad(self.session.id(), node.map(NodeId), told, self.sender_place.clone());
                    }
                }
                Output::Notice(participant, notice) => self.tell(shared, participant, notice),
            }
        }
        self.take_remotes(shared).await;
        self.opening = None;
        self.sender_place = None;
        for transport in self.overflowed.drain(..) {
            if let Some(outbox) = self.outboxes.get_mut(&transport) {
                outbox.restart(now());
            }
        }
    }

    /// What a section takes of a track of another node is kept for as long as it takes it. A track that does not come yet is asked for,
    /// and the section is fed by nothing meanwhile.
    fn note_remote(&mut self, shared: &Shared, command: &mut Command) {
        let Command::Forward { subscription, track, payload_types } = command else { return };
        for feed in self.remotes.values_mut() {
            feed.forwards.remove(subscription);
        }
        let Some((cluster, id)) = shared.cluster.get().zip(*track) else { return };
        let Some(key) = self.session.remote_track(id) else { return };
        let (section, worker) = (*subscription, self.spread.worker_of_section(*subscription));
        let feed = self.remotes.entry(id).or_insert_with(|| RemoteFeed::new(NodeId(key.node)));
        feed.forwards.insert(section, payload_types.clone());
        if feed.owner.0 != key.node {
            // Its owner was taken over: what the old one sends ends, and the new one is asked.
            cluster.unwant(self.session.id(), id, std::mem::replace(&mut feed.owner, NodeId(key.node)));
            self.lost.push(id);
        }
        if !self.spread.has_track(id) {
            if let Some(worker) = worker.filter(|_| !std::mem::replace(&mut feed.is_awaited, true)) {
                cluster.want(self.session.id(), id, feed.owner, worker);
            }
            *track = None;
        }
    }

    /// Opens what other nodes have begun to send, closes what they no longer do, and lets go of what nobody takes.
    async fn take_remotes(&mut self, shared: &Shared) {
        let Some(cluster) = shared.cluster.get() else { return };
        for (track, owner, home) in std::mem::take(&mut self.passing) {
            let directed = self.note_passed(cluster, track, owner, home);
            self.send(shared, directed).await;
        }
        for track in std::mem::take(&mut self.lost) {
            self.postponed.retain(|(remote, _)| remote.open.track != track);
            let directed = self.spread.close_remote(track);
            self.send(shared, directed).await;
            let worker = self.remotes.get(&track).and_then(|feed| self.worker_of_feed(feed));
            if let Some((feed, worker)) = self.remotes.get_mut(&track).zip(worker) {
                feed.is_awaited = true;
                cluster.want(self.session.id(), track, feed.owner, worker);
            }
        }
        for (remote, home) in std::mem::take(&mut self.offered) {
            let id = remote.open.track;
            let Some(feed) = self.remotes.get_mut(&id) else { continue };
            feed.is_awaited = false;
            let forwards: Vec<_> = feed.forwards.iter().map(|(section, maps)| (*section, maps.clone())).collect();
            let claim = Claim { tracks: remote.open.layers.len().max(1), ..Claim::default() };
            let Ok(slot) = shared.directory.grow(self.session.id(), home, claim).await else {
                tracing::warn!(room = %self.session.id(), track = %id, "a track of another node is not taken: its worker has no place (dataplane.tracks_max)");
                self.postponed.push((remote, home));
                self.retry_at.get_or_insert(shared.clock.now() + MIRROR_RETRY);
                continue;
            };
            let is_passed = feed.passed.is_some();
            let directed = self.spread.open_remote(home, remote, slot);
            self.send(shared, directed).await;
            if is_passed {
                self.pass_on(cluster, id);
            }
            for (subscription, payload_types) in forwards {
                self.bring(shared, Command::Forward { subscription, track: Some(id), payload_types }).await;
            }
        }
        let (spread, session, mut let_go) = (&self.spread, &self.session, Vec::new());
        self.remotes.retain(|track, feed| {
            feed.forwards.retain(|section, _| spread.worker_of_section(*section).is_some());
            let is_taken = !feed.forwards.is_empty() || feed.passed.is_some();
            if !is_taken {
                cluster.unwant(session.id(), *track, feed.owner);
                let_go.push(*track);
            }
            is_taken
        });
        for track in let_go {
            // One that never fed a section here, for want of a place, has not been closed with the last of them.
            let directed = self.spread.close_remote(track);
            self.send(shared, directed).await;
        }
    }

    /// A track of `owner` is to be passed on, or no longer.
    fn note_passed(&mut self, cluster: &Cluster, track: TrackId, owner: NodeId, home: Option<usize>) -> Vec<Directed> {
        let id = self.session.id();
        let Some(home) = home else {
            if let Some(feed) = self.remotes.get_mut(&track) {
                feed.passed = None;
            }
            return self.spread.pass(track, false);
        };
        // What this node publishes, or has of another one, is not this.
        let is_theirs = self.remotes.get(&track).map_or(!self.spread.has_track(track), |feed| feed.owner == owner);
        if !is_theirs {
            cluster.passed(id, track, None);
            return Vec::new();
        }
        let feed = self.remotes.entry(track).or_insert_with(|| RemoteFeed::new(owner));
        feed.passed = Some(home);
        if self.spread.has_track(track) {
            self.pass_on(cluster, track);
        } else if !std::mem::replace(&mut feed.is_awaited, true) {
            cluster.want(id, track, owner, home);
        }
        Vec::new()
    }

    /// A track is here that other nodes wait for.
    fn pass_on(&mut self, cluster: &Cluster, track: TrackId) {
        let directed = self.spread.pass(track, true);
        debug_assert!(directed.is_empty(), "what is passed on stays");
        let is_camera = self.session.is_camera(track);
        if let Some((home, open, extensions)) = self.spread.passed_track(track) {
            let exported = Exported { is_passed: true, home, open: open.clone(), extensions, is_camera };
            cluster.passed(self.session.id(), track, Some(exported));
        }
    }

    fn worker_of_feed(&self, feed: &RemoteFeed) -> Option<usize> {
        feed.forwards.keys().find_map(|section| self.spread.worker_of_section(*section)).or(feed.passed)
    }

    async fn direct(&mut self, shared: &Shared, mut command: Command) {
        self.note_remote(shared, &mut command);
        if let (Command::CloseTrack { track }, Some(cluster)) = (&command, shared.cluster.get()) {
            cluster.closed(*track);
        }
        self.bring(shared, command).await;
    }

    /// Brings a command to its worker; a track that is taken on another worker for the first time is mirrored there.
    async fn bring(&mut self, shared: &Shared, command: Command) {
        let waited = match &command {
            Command::Forward { subscription, .. } | Command::CloseSubscription { subscription } => {
                self.refused.remove(subscription).is_some()
            }
            _ => false,
        };
        let mut claim = None;
        if let Some((worker, tracks)) = self.spread.missing_mirror(&command) {
            claim = shared.directory.grow(self.session.id(), worker, Claim { tracks, ..Claim::default() }).await.ok();
            if let (None, Command::Forward { subscription, track: Some(track), payload_types }) = (&claim, &command) {
                if !waited {
                    tracing::warn!(room = %self.session.id(), worker, "a section gets nothing: its worker has no place for one more track of another worker (dataplane.tracks_max)");
                }
                self.refused.insert(*subscription, (*track, payload_types.clone()));
                self.retry_at.get_or_insert(shared.clock.now() + MIRROR_RETRY);
            }
        }
        let directed = self.spread.direct(command, claim);
        self.send(shared, directed).await;
    }

    /// Sections that were refused a mirror ask again when it is time.
    async fn retry_mirrors(&mut self, shared: &Shared) {
        if self.retry_at.is_none_or(|at| shared.clock.now() < at) {
            return;
        }
        self.retry_at = None;
        self.offered.append(&mut self.postponed);
        let forward = |(subscription, (track, payload_types)): (&SubscriptionId, &(TrackId, Vec<PayloadTypeMap>))| Command::Forward {
            subscription: *subscription,
            track: Some(*track),
            payload_types: payload_types.clone(),
        };
        let again: Vec<Command> = self.refused.iter().map(forward).collect();
        for command in again {
            self.direct(shared, command).await;
        }
        self.take_remotes(shared).await;
    }

    /// Sends commands in their order; the pumps learn what they open and close before the workers do.
    async fn send(&mut self, shared: &Shared, directed: Vec<Directed>) {
        for (worker, command) in directed {
            shared.routes[worker].note(&command);
            shared.command(worker, command).await;
        }
        self.spread.give_back();
    }

    /// With the worker of each.
    fn describe(&self, now: Time) -> SessionView {
        let workers: HashMap<_, _> = self.people.iter().map(|(id, person)| (id.to_string(), person.worker)).collect();
        let mut view = self.session.describe(now);
        for participant in &mut view.participants {
            participant.worker = workers.get(&participant.id).copied();
        }
        view
    }

    /// What other workers are to be told comes back.
    fn forget(&mut self, shared: &Shared, transport: TransportId) -> Vec<Directed> {
        self.routed.remove(&transport);
        self.outboxes.remove(&transport);
        if let Some(worker) = self.spread.worker_of(transport) {
            shared.routes[worker].remove(transport);
        }
        self.spread.close_transport(transport)
    }

    fn reply(&mut self, shared: &Shared, id: RequestId, reply: Result<Reply, Refusal>) {
        // Nobody waits when the node stops, or when the HTTP client hung up; the state is right all the same.
        match self.waiting.remove(&id) {
            Some(Waiting::Join(waiting, transport, participant)) => {
                if reply.is_err() {
                    self.people.remove(&participant);
                    let directed = self.forget(shared, transport);
                    debug_assert!(directed.is_empty(), "who was not let in has taken nothing");
                }
                let _ = waiting.send(reply.map(|_| ()));
            }
            Some(Waiting::Enter(waiting, participant)) => {
                if reply.is_err() {
                    self.people.remove(&participant);
                    self.members.remove(&participant);
                }
                let _ = waiting.send(reply.map(|_| ()));
            }
            Some(Waiting::Resume(waiting, participant, old)) => {
                if let Some(member) = self.members.get_mut(&participant).filter(|_| reply.is_err()) {
                    member.socket = old;
                }
                let _ = waiting.send(reply.map(|_| ()));
            }
            Some(Waiting::Leave(waiting)) => drop(waiting.send(reply.is_ok())),
            Some(Waiting::Ask(waiting)) => drop(waiting.send(reply)),
            None => {}
        }
    }

    fn audit(&self, shared: &Shared, audit: &Audit) {
        let (room, identity, role) = (self.session.id(), &audit.identity, audit.kind.name());
        let participant = audit.participant;
        match audit.action {
            Action::Entered => tracing::info!(target: AUDIT, %room, %identity, role, %participant, "enter"),
            Action::TakenOver { from } => {
                tracing::info!(target: AUDIT, %room, %identity, role, %participant, from = %NodeId(from), "take over");
            }
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
            Action::Unpublished { track } => tracing::info!(target: AUDIT, %room, %identity, role, %participant, %track, "unpublish"),
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
    slots: Vec<Slot>,
    /// Of a member.
    data: Option<Box<DataPath>>,
}

impl Transport {
    async fn run(mut self, mut events: DtlsEvents, mut orders: mpsc::UnboundedReceiver<Order>) {
        if self.data.is_some() {
            events.take_data();
        }
        loop {
            let wake = self.data.as_ref().and_then(|data| data.poll_timeout());
            let event = tokio::select! {
                event = events.recv() => event,
                Some(order) = orders.recv() => {
                    self.obey(order);
                    // Those who wait behind it go out together.
                    for _ in 0..ORDERS_PER_TURN {
                        let Ok(order) = orders.try_recv() else { break };
                        self.obey(order);
                    }
                    self.carry_data(&events).await;
                    continue;
                }
                () = sleep_until(wake.unwrap_or_else(now).into()), if wake.is_some() => {
                    if let Some(data) = &mut self.data {
                        data.handle_timeout(now());
                    }
                    self.carry_data(&events).await;
                    continue;
                }
            };
            // The events end when the peer is dropped by the pump, after the close_notify is out.
            let Some(event) = event else { break };
            let Some(shared) = self.shared.upgrade() else { return };
            let message = match event {
                DtlsEvent::Send(datagram) => {
                    shared.command(self.worker, Command::SendDtls { transport: self.id, datagram }).await;
                    continue;
                }
                DtlsEvent::Established { keys, .. } => {
                    let profile = keys.profile;
                    shared.command(self.worker, Command::InstallKeys { transport: self.id, keys }).await;
                    if let Some(data) = &mut self.data {
                        data.begin();
                    }
                    self.carry_data(&events).await;
                    RoomMessage::Connected { transport: self.id, profile }
                }
                DtlsEvent::Failed(error) => {
                    tracing::debug!(transport = %self.id, %error, "DTLS failed");
                    RoomMessage::Failed { transport: self.id, failure: failure(&error) }
                }
                DtlsEvent::Data(packet) => {
                    if let Some(data) = &mut self.data {
                        data.handle_data(now(), &packet);
                    }
                    self.carry_data(&events).await;
                    continue;
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

    fn obey(&mut self, order: Order) {
        match order {
            Order::Keep(slot) => self.slots.push(slot),
            Order::Send(parcel) => {
                if let Some(data) = &mut self.data {
                    data.queue(now(), parcel);
                }
            }
        }
    }

    /// Brings the client's messages to the room, and what waits for the client to the worker.
    async fn carry_data(&mut self, events: &DtlsEvents) {
        let (Some(data), Some(shared)) = (&mut self.data, self.shared.upgrade()) else { return };
        let (transport, room) = (self.id, self.room.upgrade());
        for Received { message, places } in data.poll_messages(now()) {
            // A room that has ended has closed its transports.
            let _ = room.as_ref().map(|room| room.send(RoomMessage::Data { transport, message: Arc::new(message), places }));
        }
        if let Some(generation) = data.take_overflow() {
            let _ = room.as_ref().map(|room| room.send(RoomMessage::DataOverflow { transport, generation }));
        }
        while let Some(packet) = data.poll_transmit(now()) {
            match events.seal_data(&packet) {
                Some(datagram) => shared.command(self.worker, Command::SendDtls { transport, datagram }).await,
                None => shared.data.count_drop(DataDrop::NotSealed),
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn failure(error: &DtlsError) -> TransportFailure {
    match error {
        DtlsError::Timeout => TransportFailure::HandshakeTimeout,
        DtlsError::Fingerprint => TransportFailure::Fingerprint,
        _ => TransportFailure::Handshake,
    }
}
