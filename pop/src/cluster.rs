//! What makes several nodes one: it joins the bus, the links, the rooms and the workers of this node. One task owns the state.
//!
//! ```text
//! room --put--------------> bus                 bus --Record, node's fate--> rooms
//! room --want, unwant-----> link --> its node   link --Want, Unwant--> room (is it ours?) --> ExportToLink to the track's worker, Offer
//! link up --> OpenLink to every worker          link --Offer--> room --> OpenRemoteTrack to the worker that takes it
//! first record of a node's people in a room, link up, Gap --Follow--> link        link --Follow--> room --> Followed, what was missed
//! room --data, speakers, qualities--> links of the nodes that follow its session  link --Data, Heard--> room
//! room --what an operator says of it--> links of all nodes, and of each that comes to share it     link --Room--> room
//! link --Want of a track of another PoP--> room takes it from there --> ExportToLink, Offer, as if it were ours (gateway.rs)
//! link --Presence--> spans --Record, node's fate--> rooms        room --put, key--> spans --Presence--> links with nodes of other PoPs
//! ```
//! What is wanted is kept until nobody wants it: a link that comes back is asked again.

mod events;
mod gateway;
mod overlay;
/// Public for `bench/sim` alone.
#[doc(hidden)]
pub mod spans;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use pop_dataplane::limits::LINKS_MAX;
use pop_proto::control::{
    Codec, DataMessage, ExtensionIds, LAYERS_MAX, LinkId, LinkStats, LinkWay, MID_LEN_MAX, MediaKind, OpenLink, OpenTrack,
    PAYLOAD_TYPES_MAX, PayloadType, SELF_TEST, SessionBound,
};
use pop_proto::{Command, Event};
use pop_relay::control::{
    self, Action, Connection, Data, Done, Follow, Heard, Located, Message, Offer, Order, Outcome, Paths, Refuse, Unfollow, Unwant,
};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId, Time, TrackId, TransportId};
use pop_session::life::{self, Fate, Life, Verdict, Way, Witness};
use pop_session::member::{ConnectionGrade, ConnectionQuality};
use pop_session::placement::{self, KEEPERS};
use pop_session::presence::{LocalRecord, Record};
use pop_session::session::{Abroad, RoomWord};
use pop_session::vip::{SETTLE, counts_from, holder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::admin;
use crate::bus::{Bus, BusEvent, BusEvents, Gone, NodeRecord};
use crate::config::{MeshConfig, SessionConfig};
use crate::data::{DataDrop, SenderPlace};
use crate::logging::AUDIT;
use crate::mesh::{DataRefused, Elsewhere, LinkSecret, LinkState, Mesh, MeshEvent, NodeName, Outgoing, Peer, Unheard};
use crate::metrics::{self, Deaths};
use crate::node::{EndsProcess, Exported, NodeFate, RemoteTrack, RoomMessage, Shared, Slot, Wish};
use crate::rejoin;
use crate::token::unix_now_ms;
use crate::view::{LinkView, NodeView, OverlayView, VipView};
use crate::vip::{Turn, Vip};
use gateway::{Facts, PASS_VERSION, Passes, Source, choose};
use overlay::{NodeWay, Overlay, located};
use spans::Spans;

/// A node that refuses a track may have it in a moment: its room learns of it by the same bus as ours.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Load and drain state of this node are looked at so often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// How long other nodes may take to do what an operator wants.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);

/// Orders of other nodes that are done at once.
const ORDERS_MAX: usize = 64;

/// Grades of connections, by their number on links.
const GRADES: [ConnectionGrade; 4] = [ConnectionGrade::Poor, ConnectionGrade::Good, ConnectionGrade::Excellent, ConnectionGrade::Lost];

/// Tracks that are sent to one node: an alias of a link names one.
const EXPORTS_MAX: usize = 32_768;

/// Wishes of other nodes that rooms have not answered yet. A room answers within its turn; who finds too many asks again.
const CONSIDERED_MAX: usize = 4_096;

/// Records of other nodes' participants that wait in the mailboxes of rooms, of all together. While there are so many the bus is read no
/// further, and keeps what it has within its own bounds.
const RECORDS_MAX: usize = 4_096;

/// So long the people of a node that lives, and is not on the bus, are believed to be as they were when the bus told of them last: on a
/// link with 10 % loss the bus was away for up to 9 s.
const UNTOLD_MAX: Duration = Duration::from_secs(15);

/// A clock of another PoP may be so far ahead.
const SKEW_MAX_MS: u64 = 10_000;

/// Of so many starts of nodes of this PoP it is remembered how their ids begin.
const ORIGINS_MAX: usize = 1_024;

/// Who was too slow says so at most so often.
const GAP_PAUSE: Duration = Duration::from_millis(100);

/// So long a node of another PoP may have no link before its people are away.
const UNLINKED_MAX: Duration = Duration::from_secs(3);

/// Words of other nodes (who speaks, what was said of a room, who wants to hear) that wait in the mailboxes of rooms, of all together.
const WORDS_MAX: usize = 4_096;

/// How often the mesh is asked to which nodes it seeks a way.
const SEEK_INTERVAL: Duration = Duration::from_millis(200);

/// What nodes of other PoPs are told in one turn of who is in sessions: each costs about two microseconds.
const TOLD_PER_TURN: usize = 4_096;

/// How often it is looked at whether this node stood still.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long after a node stood still it believes who holds it for dead, when not all could be asked.
const HANG_REMEMBERED: Duration = Duration::from_secs(60);

/// The same, when all others have answered that they do not: one of them may find so before it hears this node again, which is a tenth of a
/// second and a round trip later, and says so within the same. Whoever does later is cut off, and then both sides go on.
const HANG_SETTLED: Duration = Duration::from_secs(1);

/// Sessions that this node keeps although nobody of them is here: each is a room without a member, some kilobytes and its records.
const KEPT_MAX: usize = 4_096;

/// A room that is kept has so long to hear who is in it.
const KEEP_MIN: Duration = Duration::from_secs(5);

/// A node that is gone for so long, and has no link, is forgotten: until the bus tells of it again.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How often that is looked at.
const FORGET_INTERVAL: Duration = Duration::from_secs(30);

/// Who says on the bus that it is this node is asked so often to prove it.
const PROOF_TRIES: usize = 5;
/// Between two of these.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// Permille of what it can do that a node does when it gets no more people of other nodes' clients.
const FULL: u16 = 900;

/// How long the last records of a node that stops may take to leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

type RoomSender = mpsc::WeakUnboundedSender<RoomMessage>;

/// What the rooms and the workers' pumps tell.
enum Request {
    Watch {
        session: SessionId,
        room: RoomSender,
        number: u64,
    },
    Unwatch {
        session: SessionId,
        number: u64,
    },
    Put {
        session: SessionId,
        record: Box<LocalRecord>,
    },
    Withdraw {
        session: SessionId,
        participant: ParticipantId,
    },
    /// Somebody is in the session by a token of this API key.
    Key {
        session: SessionId,
        key: Box<str>,
    },
    /// Whether a node is one of another PoP's.
    IsAbroad {
        node: NodeId,
        reply: oneshot::Sender<bool>,
    },
    Want {
        session: SessionId,
        track: TrackId,
        owner: NodeId,
        worker: usize,
    },
    Unwant {
        session: SessionId,
        track: TrackId,
        owner: NodeId,
    },
    Closed {
        track: TrackId,
    },
    /// A track of another PoP is here for the nodes that are to get it from this one; `None`: it cannot be.
    Passed {
        session: SessionId,
        track: TrackId,
        exported: Option<Exported>,
    },
    /// A room's answer to another node's wish.
    Export {
        node: NodeId,
        session: SessionId,
        track: TrackId,
        worker: u16,
        exported: Option<Exported>,
    },
    /// A room has what of a node's people.
    Follow {
        session: SessionId,
        node: NodeId,
        received: Vec<(ParticipantId, u32)>,
    },
    /// For one node, or for all that follow the session.
    Abroad {
        session: SessionId,
        node: Option<NodeId>,
        told: Abroad,
        /// Of data: its place among what its sender may have waiting.
        hold: Option<SenderPlace>,
    },
    LinkStats {
        worker: usize,
        link: LinkId,
        stats: LinkStats,
    },
    LinkKeysUsed {
        link: LinkId,
    },
    /// Somebody has, or needs, links of all workers with the node that has this number, or with this one.
    LinkMissing {
        worker: usize,
        link: LinkId,
    },
    LinkWanted {
        node: NodeId,
    },
    Way {
        goal: Goal,
        failed: Vec<NodeId>,
        reply: oneshot::Sender<Option<(Mesh, Elsewhere)>>,
    },
    Ways {
        reply: oneshot::Sender<Vec<(Mesh, Elsewhere)>>,
    },
    /// What others know of this node may have changed.
    TellNode,
    /// An operator wants something of people of other nodes.
    Order {
        session: SessionId,
        wish: Wish,
        reply: oneshot::Sender<Outcome>,
    },
    /// What became of another node's order.
    Obeyed {
        node: NodeId,
        done: Done,
    },
    Describe {
        reply: oneshot::Sender<Description>,
    },
    /// See [`Node::share_addresses`](crate::node::Node::share_addresses).
    ShareAddresses {
        vips: Vec<Vip>,
    },
    /// Whether who says that it is this node has proved it.
    Proved {
        theirs: Incarnation,
        is_so: bool,
    },
    /// The node stops, and everything that was put before is to be told.
    Leave {
        reply: oneshot::Sender<()>,
    },
}

/// What a client wants of the PoP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A transport in a session.
    Join(SessionId),
    /// Something with an id that begins so.
    Origin(u32),
    /// To be again who it was.
    Member { session: SessionId, participant: ParticipantId },
}

/// The handle: cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    requests: mpsc::UnboundedSender<Request>,
    deaths: Arc<Deaths>,
    overlay: metrics::Overlay,
}

/// What is known of the other nodes.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Those of this PoP that were heard of.
    pub nodes: Vec<NodeView>,
    /// Links that are up.
    pub links: Vec<LinkView>,
    /// The other PoPs.
    pub overlay: OverlayView,
    /// Service addresses.
    pub vips: Vec<VipView>,
    /// Names of the nodes that each track goes to, or of the one that it comes from.
    pub tracks: HashMap<TrackId, Vec<String>>,
}

impl Cluster {
    /// Starts the task. `record` is what others know of this node; `bus` and `mesh` are what the config has of them.
    pub(crate) fn start(
        shared: Weak<Shared>,
        record: NodeRecord,
        bus: Option<(Bus, BusEvents)>,
        mesh: Option<(Mesh, mpsc::Receiver<MeshEvent>)>,
        session: SessionConfig,
        config: &MeshConfig,
    ) -> Cluster {
        let (requests, received) = mpsc::unbounded_channel();
        let (bus, bus_events) = bus.unzip();
        let (mesh, mesh_events) = mesh.unzip();
        let began = shared.upgrade().map(|shared| shared.now()).unwrap_or_default();
        let state = State {
            shared,
            splits: config.split,
            loudest: session.loudest,
            last_n: session.last_n,
            overlay: Overlay::new(&record.name, &record.pop, record.mesh, config),
            spans: Spans::new(&record),
            record,
            bus,
            mesh,
            requests: requests.downgrade(),
            rooms: HashMap::new(),
            kept: HashMap::new(),
            nodes: HashMap::new(),
            links: HashMap::new(),
            wants: HashMap::new(),
            passes: Passes::default(),
            next_alias: first_alias(),
            next_number: 0,
            considered: 0,
            waking: Vec::new(),
            is_proving: false,
            next_to_prove: None,
            orders: HashMap::new(),
            next_order: 0,
            obeying: Arc::new(Semaphore::new(ORDERS_MAX)),
            words: Arc::new(Semaphore::new(WORDS_MAX)),
            hang: None,
            doubted_until: None,
            began,
            looked_at: Instant::now(),
            sought_at: Instant::now(),
            past_origins: VecDeque::new(),
            vips: Vec::new(),
            deaths: Arc::default(),
            shown: metrics::Overlay::default(),
        };
        let (deaths, overlay) = (Arc::clone(&state.deaths), Arc::clone(&state.shown));
        tokio::spawn(state.run(received, bus_events, mesh_events));
        Cluster { requests, deaths, overlay }
    }

    fn tell(&self, request: Request) {
        // The task ends with the node.
        let _ = self.requests.send(request);
    }

    /// Records of other nodes' participants in `session` go to `room`, all that there are first. `number` is unwatched by the same.
    pub(crate) fn watch(&self, session: &SessionId, room: RoomSender, number: u64) {
        self.tell(Request::Watch { session: session.clone(), room, number });
    }

    /// The room has ended.
    pub(crate) fn unwatch(&self, session: &SessionId, number: u64) {
        self.tell(Request::Unwatch { session: session.clone(), number });
    }

    /// Tells other nodes of a participant of ours.
    pub(crate) fn put(&self, session: &SessionId, record: Box<LocalRecord>) {
        self.tell(Request::Put { session: session.clone(), record });
    }

    /// Somebody is in the session by a token of this API key. To be called before the room lets somebody in, so that nobody hears of that who may
    /// not, and once more when it has: the room may be another one by then.
    pub(crate) fn note_key(&self, session: &SessionId, key: &str) {
        self.tell(Request::Key { session: session.clone(), key: key.into() });
    }

    /// Whether a node is one of another PoP's, whose people nobody here takes over.
    pub(crate) async fn is_abroad(&self, node: NodeId) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::IsAbroad { node, reply });
        answer.await.unwrap_or_default()
    }

    /// A participant of ours has another owner, who tells of it.
    pub(crate) fn withdraw(&self, session: &SessionId, participant: ParticipantId) {
        self.tell(Request::Withdraw { session: session.clone(), participant });
    }

    /// Sections on `worker` want a track of node `owner`: asked once, until the room is told that it comes no longer.
    pub(crate) fn want(&self, session: &SessionId, track: TrackId, owner: NodeId, worker: usize) {
        self.tell(Request::Want { session: session.clone(), track, owner, worker });
    }

    /// Nobody here wants it any longer.
    pub(crate) fn unwant(&self, session: &SessionId, track: TrackId, owner: NodeId) {
        self.tell(Request::Unwant { session: session.clone(), track, owner });
    }

    /// A track of ours is no more.
    pub(crate) fn closed(&self, track: TrackId) {
        self.tell(Request::Closed { track });
    }

    /// A track of another PoP is here, and goes on to the nodes that wait for it; `None`: it cannot.
    pub(crate) fn passed(&self, session: &SessionId, track: TrackId, exported: Option<Exported>) {
        self.tell(Request::Passed { session: session.clone(), track, exported });
    }

    /// Asks for what a node's people say in `session`, beyond what is here: the last reliable message of each.
    pub(crate) fn follow(&self, session: &SessionId, node: NodeId, received: Vec<(ParticipantId, u32)>) {
        self.tell(Request::Follow { session: session.clone(), node, received });
    }

    /// Tells one node, or each that follows the session.
    pub(crate) fn tell_abroad(&self, session: &SessionId, node: Option<NodeId>, told: Abroad, hold: Option<SenderPlace>) {
        self.tell(Request::Abroad { session: session.clone(), node, told, hold });
    }

    /// What a worker says of its links.
    pub(crate) fn link_event(&self, worker: usize, event: &Event) {
        match event {
            Event::LinkStats { link, stats } => self.tell(Request::LinkStats { worker, link: *link, stats: *stats }),
            Event::LinkKeysUsed { link } => self.tell(Request::LinkKeysUsed { link: *link }),
            Event::LinkMissing { link } => self.tell(Request::LinkMissing { worker, link: *link }),
            Event::LinkWanted { node } => self.tell(Request::LinkWanted { node: *node }),
            _ => {}
        }
    }

    /// Returns when the others were told of everything that was put before, or a second is over. Nothing is told afterwards.
    pub(crate) async fn leave(&self) {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::Leave { reply });
        // What is not told in time is told by silence.
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, answer).await;
    }

    /// The other node that is to answer what a client wants here, and the way there; never one of `failed`. `None`: this one is.
    pub(crate) async fn way(&self, goal: &Goal, failed: &[NodeId]) -> Option<(Mesh, Elsewhere)> {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::Way { goal: goal.clone(), failed: failed.to_vec(), reply });
        answer.await.ok()?
    }

    /// The ways to all other nodes of the PoP that live.
    pub(crate) async fn ways(&self) -> Vec<(Mesh, Elsewhere)> {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::Ways { reply });
        answer.await.unwrap_or_default()
    }

    /// What others know of this node may have changed: they are told now. Else they are within a second.
    pub(crate) fn tell_node(&self) {
        self.tell(Request::TellNode);
    }

    /// Has other nodes do what an operator wants of their people.
    pub(crate) async fn order(&self, session: &SessionId, wish: Wish) -> Outcome {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::Order { session: session.clone(), wish, reply });
        match timeout(ORDER_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            _ => Outcome::UnknownParticipant,
        }
    }

    /// This node has each of these when it is its turn.
    pub(crate) fn share_addresses(&self, vips: Vec<Vip>) {
        self.tell(Request::ShareAddresses { vips });
    }

    /// For the metrics.
    pub fn deaths(&self) -> Arc<Deaths> {
        Arc::clone(&self.deaths)
    }

    /// For the metrics, as of the last second.
    pub fn overlay(&self) -> metrics::Overlay {
        Arc::clone(&self.overlay)
    }

    /// The other nodes and the links to them, now.
    pub async fn describe(&self) -> Description {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::Describe { reply });
        answer.await.unwrap_or_default()
    }
}

struct Watched {
    room: RoomSender,
    number: u64,
    /// Those of this node.
    own: HashSet<ParticipantId>,
    /// Nodes that have people in it.
    nodes: HashMap<NodeId, Known>,
}

impl Watched {
    fn new(room: RoomSender, number: u64) -> Watched {
        Watched { room, number, own: HashSet::new(), nodes: HashMap::new() }
    }
}

/// People of a node in a room.
struct Known {
    since: Instant,
    people: HashSet<ParticipantId>,
}

/// A node that the bus told of, or one of another PoP with which there is a link.
struct Node {
    record: NodeRecord,
    /// Since when it is not on the bus.
    gone_at: Option<Instant>,
    /// When it began anew: whom it had before may be taken over until their grace is over.
    anew_at: Option<Instant>,
    /// What is heard of it.
    life: Life,
    /// From when on it may have a service address.
    counts_from: Time,
    /// The rooms were told.
    is_away: bool,
}

impl Node {
    fn is_up(&self) -> bool {
        !self.is_away
    }

    /// It serves clients: also one that the bus does not tell of, while it is heard, and one whose packets alone do not come. Those hear that
    /// this node lives, so both find the same.
    fn is_serving(&self) -> bool {
        !self.record.draining && self.life.fate() != Fate::Dead && (self.is_up() || self.life.heard_at().is_some())
    }
}

/// A service address.
struct Shift {
    vip: Vip,
    /// Nodes that may have it, this one too, in order.
    fit: Vec<NodeId>,
    holder: Option<NodeId>,
}

/// This node stood still, and asks the others whether they hold it for dead.
struct Hang {
    since: Instant,
    /// Of [`Mesh::ask_verdicts`].
    since_us: u64,
}

/// A link that is up.
struct Link {
    peer: Peer,
    /// Of the workers' clock.
    opened_at: Time,
    secret: LinkSecret,
    /// Of the keys of all its workers.
    generation: u32,
    /// Which of its workers have links with ours. Without a place for them no media is exchanged; all else is.
    lanes: Lanes,
    /// Media has been wanted here or there.
    has_media: bool,
    exports: HashMap<TrackId, Export>,
    /// Sessions whose data goes to the node: its people are in them, and it has asked.
    followed: HashSet<SessionId>,
    /// Those of which the room has not said yet what was missed.
    asked: HashSet<SessionId>,
    /// It was too slow for data, and is to be told then.
    gap_at: Option<Instant>,
    /// It said last that it was.
    gap_heard_at: Option<Instant>,
    /// By worker and link.
    stats: HashMap<(usize, LinkId), LinkStats>,
    /// As its workers were told.
    way: (NodeWay, Option<NodeWay>),
}

impl Link {
    fn is_placed(&self) -> bool {
        self.lanes != Lanes::None
    }
}

/// Which workers of two nodes have links with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lanes {
    None,
    /// The first of each, by which the path is measured: so it is with nodes of other PoPs until there is something to exchange.
    First,
    All,
}

/// A track of ours that goes over a link.
struct Export {
    session: SessionId,
    home: usize,
    link: LinkId,
    alias: u16,
    /// The session's number on the link.
    number: u32,
}

/// A track that sections here want.
struct Want {
    session: SessionId,
    owner: NodeId,
    worker: usize,
    /// Who sends it, or is asked to: the owner, or for one of another PoP the gateway of its session.
    source: Source,
    /// It came, and the room that has been told so asks again by itself.
    is_lost: bool,
    /// Refused, and to be asked for then.
    again: Option<Instant>,
}

/// A session that this node keeps.
struct Keeping {
    since: Instant,
    room: RoomSender,
    _slot: Slot,
}

struct State {
    shared: Weak<Shared>,
    /// Clients get their transports on another node than their sockets.
    splits: bool,
    /// Microphones of a session that cross a link at once; 0: all.
    loudest: u8,
    /// The same of cameras.
    last_n: u8,
    /// What others know of this node.
    record: NodeRecord,
    /// The other PoPs.
    overlay: Overlay,
    /// Who is in sessions that span them.
    spans: Spans,
    bus: Option<Bus>,
    mesh: Option<Mesh>,
    /// For answers of rooms.
    requests: mpsc::WeakUnboundedSender<Request>,
    rooms: HashMap<SessionId, Watched>,
    /// See [`KEEPERS`].
    kept: HashMap<SessionId, Keeping>,
    nodes: HashMap<NodeId, Node>,
    links: HashMap<NodeId, Link>,
    wants: HashMap<TrackId, Want>,
    /// What this node takes of other PoPs for nodes of its own.
    passes: Passes,
    /// The next track's name on any link. It goes on from link to link, so that what was told of a track on the link before means no other
    /// one on the link that took its place.
    next_alias: u16,
    /// The last number that a session got on a link.
    next_number: u32,
    /// Wishes that rooms have not answered.
    considered: usize,
    /// Nodes that were asked for media in this turn.
    waking: Vec<NodeId>,
    /// Somebody is being asked to prove that it is this node.
    is_proving: bool,
    /// The last that has said so meanwhile.
    next_to_prove: Option<(Incarnation, Option<SocketAddr>)>,
    /// Orders that other nodes have not answered, by number.
    orders: HashMap<u64, GivenOrder>,
    next_order: u64,
    /// Places for orders of other nodes.
    obeying: Arc<Semaphore>,
    /// Places of [`WORDS_MAX`].
    words: Arc<Semaphore>,
    hang: Option<Hang>,
    /// This node stood still, and until then believes who holds it for dead.
    doubted_until: Option<Instant>,
    /// When this node began.
    began: Time,
    /// See [`Self::look`].
    looked_at: Instant,
    /// See [`Self::tell_thirds`].
    sought_at: Instant,
    /// What ids of starts began with that nodes of this PoP have ended, the last of them.
    past_origins: VecDeque<u32>,
    vips: Vec<Shift>,
    deaths: Arc<Deaths>,
    /// The overlay, for the metrics.
    shown: metrics::Overlay,
}

/// An order that some nodes were given.
struct GivenOrder {
    reply: oneshot::Sender<Outcome>,
    /// Of which no answer came.
    nodes: HashSet<NodeId>,
    /// The best so far.
    outcome: Outcome,
}

/// Drawn, so that a node that has begun anew does not begin with the names of before.
fn first_alias() -> u16 {
    let mut drawn = [0; 2];
    aws_lc_rs::rand::fill(&mut drawn).expect("the system gives random bytes");
    u16::from_ne_bytes(drawn)
}

/// The next event, when there is a place for a record; never where there is no such source.
async fn next_of_bus(events: &mut Option<BusEvents>, places: &Arc<Semaphore>) -> (Option<OwnedSemaphorePermit>, Option<BusEvent>) {
    let Some(events) = events else { return std::future::pending().await };
    // It is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    (place, events.recv().await)
}

async fn next_of_mesh(events: &mut Option<mpsc::Receiver<MeshEvent>>) -> Option<MeshEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

impl State {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut bus_events: Option<BusEvents>,
        mut mesh_events: Option<mpsc::Receiver<MeshEvent>>,
    ) {
        let _guard = EndsProcess;
        let places = Arc::new(Semaphore::new(RECORDS_MAX));
        let mut forget = tokio::time::interval(FORGET_INTERVAL);
        let mut tell = interval(TELL_INTERVAL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let gaps = self.links.values().filter_map(|link| link.gap_at);
            let wants = self.wants.values().flat_map(|want| want.again.into_iter().chain(want.source.poll_timeout()));
            let again = wants.chain(gaps).min();
            let deadline = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let look_at = self.look_at();
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.handle_request(request).await,
                    None => return,
                },
                (place, event) = next_of_bus(&mut bus_events, &places) => match event {
                    Some(BusEvent::Keep(session)) => self.keep(session).await,
                    Some(event) => self.handle_bus(event, place),
                    None => bus_events = None,
                },
                event = next_of_mesh(&mut mesh_events) => match event {
                    Some(event) => self.handle_mesh(event).await,
                    None => mesh_events = None,
                },
                () = deadline => self.ask_again(),
                now = forget.tick() => self.forget_gone(now),
                _ = tell.tick() => {
                    self.tell_node().await;
                    self.tell_paths();
                    self.tell_ways().await;
                    self.review_sources();
                    self.end_keeping();
                }
                () = tokio::time::sleep_until(look_at) => self.look(),
            }
            self.drive_spans(&places).await;
            // Before the answer comes.
            for node in std::mem::take(&mut self.waking) {
                self.wake_for_media(node).await;
            }
        }
    }

    async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Watch { session, room, number } => {
                let is_anew = self.rooms.insert(session.clone(), Watched::new(room, number)).is_some();
                self.spans.begin(&session);
                self.unfollow(&session);
                if let Some(bus) = &self.bus {
                    // A room of that name is about to end. This one has heard of nobody yet.
                    if is_anew {
                        bus.unwatch(&session);
                    }
                    bus.watch(&session);
                }
            }
            Request::Unwatch { session, number } => {
                // Another room of that name may have begun.
                if self.rooms.get(&session).is_some_and(|watched| watched.number == number) {
                    let watched = self.rooms.remove(&session);
                    self.spans.end(&session);
                    self.end_passes(|pass| pass.session == session).await;
                    self.unfollow(&session);
                    for node in watched.into_iter().flat_map(|watched| watched.nodes.into_keys()) {
                        self.send(node, Message::Unfollow(Unfollow { session: session.clone() }));
                    }
                    if let Some(bus) = &self.bus {
                        bus.unwatch(&session);
                    }
                }
            }
            Request::Put { session, record } => {
                self.spans.put(std::time::Instant::now(), &session, &record);
                if let Some(watched) = self.rooms.get_mut(&session) {
                    let (own, participant) = (&mut watched.own, record.participant);
                    let _ = if record.manifest.is_some() { own.insert(participant) } else { own.remove(&participant) };
                }
                // One that others would not take is counted there.
                if let Some(Err(error)) = self.bus.as_ref().map(|bus| bus.put_participant(&session, &record)) {
                    tracing::debug!(%session, participant = %record.participant, ?error, "other nodes are not told of a participant");
                }
            }
            Request::Key { session, key } => {
                if self.rooms.contains_key(&session) {
                    self.spans.note_key(&session, &key);
                } else {
                    self.spans.note_early_key(std::time::Instant::now(), session, key);
                }
            }
            // Who asked may be gone.
            Request::IsAbroad { node, reply } => drop(reply.send(self.is_abroad(node))),
            Request::Withdraw { session, participant } => {
                self.spans.withdraw(std::time::Instant::now(), &session, participant);
                if let Some(watched) = self.rooms.get_mut(&session) {
                    watched.own.remove(&participant);
                }
                if let Some(bus) = &self.bus {
                    bus.withdraw(&session, participant);
                }
            }
            Request::Want { session, track, owner, worker } => {
                // A track is one node's and one room's: who else claims its id gets nothing.
                if let Some(want) = self.wants.get(&track)
                    && (want.owner, &want.session) != (owner, &session)
                {
                    tracing::warn!(%track, %owner, %session, "two nodes or rooms claim one track; the first is believed");
                    return;
                }
                self.want(session, track, owner, worker);
            }
            Request::Unwant { session, track, owner } => {
                if self.wants.get(&track).is_some_and(|want| (want.owner, &want.session) == (owner, &session)) {
                    self.end_pass(track).await;
                    let want = self.wants.remove(&track);
                    for node in want.iter().flat_map(|want| want.source.nodes()) {
                        self.send(node, Message::Unwant(Unwant { track }));
                    }
                }
            }
            Request::Passed { session, track, exported } => self.pass_on(session, track, exported).await,
            Request::Closed { track } => {
                // The worker that had it has forgotten to whom it went.
                self.links.values_mut().for_each(|link| drop(link.exports.remove(&track)));
            }
            Request::Export { node, session, track, worker, exported } => {
                self.considered -= 1;
                self.export(node, session, track, worker, exported).await;
            }
            Request::Follow { session, node, received } => {
                let since = self.rooms.get(&session).and_then(|watched| watched.nodes.get(&node)).map(|known| known.since);
                if let Some(since) = since.filter(|_| self.may_share(&session, node)) {
                    self.send(node, Message::Follow(Follow { session, age: since.elapsed(), received }));
                }
            }
            Request::Abroad { session, node, told, hold } => self.tell_abroad(session, node, told, hold),
            Request::LinkStats { worker, link, stats } => {
                if let Some(of) = self.links.values_mut().find(|of| of.peer.number == link.node()) {
                    let before = of.stats.get(&(worker, link)).copied().unwrap_or_default();
                    // What was missed and comes late was missed all the same: a counter does not fall.
                    of.stats.insert((worker, link), LinkStats { lost: stats.lost.max(before.lost), ..stats });
                    if let Some(mesh) = &self.mesh {
                        mesh.note_figures(of.peer.node, total(of.stats.values()));
                    }
                    if let Some(shared) = self.shared.upgrade() {
                        let came = stats.media_bytes_in.saturating_sub(before.media_bytes_in);
                        let left = stats.media_bytes_out.saturating_sub(before.media_bytes_out);
                        shared.relayed.add(worker, *of.peer.pop != *self.record.pop, came, left);
                    }
                }
            }
            Request::LinkKeysUsed { link } => {
                let node = self.links.values().find(|of| of.peer.number == link.node()).map(|of| of.peer.node);
                if let Some((mesh, node)) = self.mesh.as_ref().zip(node) {
                    mesh.rekey(node);
                }
            }
            // That of the first is about to be opened, or was.
            Request::LinkMissing { worker, link } => {
                let of = self.links.values().find(|of| of.peer.number == link.node()).map(|of| of.peer.node);
                if let Some(node) = of.filter(|_| !is_first(worker, link)) {
                    self.wake(node).await;
                }
            }
            Request::LinkWanted { node } => drop(self.wake(node).await),
            Request::TellNode => self.tell_node().await,
            Request::Order { session, wish, reply } => self.give_order(session, wish, reply),
            Request::Obeyed { node, done } => self.send(node, Message::Done(done)),
            // Who asked may be gone.
            Request::Way { goal, failed, reply } => drop(reply.send(self.way(&goal, &failed))),
            Request::Ways { reply } => {
                let up: Vec<_> = self.of_this_pop().filter(|of| of.is_up()).map(|of| of.record.node).collect();
                let _ = reply.send(up.into_iter().filter_map(|node| self.way_to(node)).collect());
            }
            Request::Describe { reply } => drop(reply.send(self.describe())),
            Request::ShareAddresses { vips } => {
                self.vips = vips.into_iter().map(|vip| Shift { vip, fit: Vec::new(), holder: None }).collect()
            }
            Request::Proved { theirs, is_so } => {
                self.is_proving = false;
                if is_so {
                    self.end_as_duplicate(theirs);
                }
                tracing::warn!(node = %self.record.node, start = theirs.start, "somebody on the bus says that it is this node, and does not prove it: it is not believed");
                if let Some((theirs, mesh)) = self.next_to_prove.take() {
                    self.handle_duplicate(theirs, mesh);
                }
            }
            Request::Leave { reply } => {
                if let Some(bus) = self.bus.clone() {
                    tokio::spawn(async move {
                        bus.leave().await;
                        let _ = reply.send(());
                    });
                }
            }
        }
    }

    fn handle_bus(&mut self, event: BusEvent, place: Option<OwnedSemaphorePermit>) {
        match event {
            BusEvent::Record { session, mut record } => {
                if self.is_abroad(NodeId(record.key.node))
                    && let Some(manifest) = &mut record.manifest
                {
                    // Of two of one identity the later one stays: nobody comes from the future.
                    manifest.joined_at_ms = manifest.joined_at_ms.min(unix_now_ms() + SKEW_MAX_MS);
                }
                if !self.may_tell_of(&session, &record) {
                    if let Some(mesh) = &self.mesh {
                        mesh.ignore(Unheard::Foreign);
                    }
                    self.spans.forget_record(&session, record.key);
                } else if let Some(room) = self.room(&session) {
                    let (node, participant, is_here) = (NodeId(record.key.node), record.key.participant, record.manifest.is_some());
                    let _ = room.send(RoomMessage::Record { record: Box::new(record), _place: place });
                    self.note_person(&session, node, participant, is_here);
                }
            }
            BusEvent::NodeUp(record) => {
                let (node, incarnation) = (record.node, record.incarnation);
                tracing::info!(%node, name = %record.name, pop = %record.pop, "a node is here");
                self.dial(&record);
                match self.nodes.get_mut(&node) {
                    // What it says from now on brings it back, when it was away.
                    Some(of) if of.record.incarnation == incarnation => (of.record, of.gone_at) = (record, None),
                    before => {
                        let anew_at = before.as_ref().map(|_| Instant::now());
                        if let Some(before) = before.filter(|before| before.record.pop == self.record.pop) {
                            self.past_origins.push_back((before.record.incarnation.nonce >> 32) as u32);
                            if self.past_origins.len() > ORIGINS_MAX {
                                self.past_origins.pop_front();
                            }
                        }
                        let counts_from = counts_from(self.began, self.shared.upgrade().map(|shared| shared.now()).unwrap_or_default());
                        let life = Life::default();
                        if anew_at.is_some() || record.pop == self.record.pop {
                            let what = if anew_at.is_some() { "restarted" } else { "new" };
                            self.overlay.events.note_node(what, &record.pop, &record.name);
                        }
                        self.nodes.insert(node, Node { record, gone_at: None, anew_at, life, counts_from, is_away: false });
                        if anew_at.is_some() {
                            self.hold_dead(node, None);
                            // Whom it had is not there any longer, and nobody will say so.
                            self.tell_rooms(node, NodeFate::Restarted);
                        } else if !self.is_abroad(node) {
                            // What it asked for before the bus told of it was ignored.
                            self.send(node, Message::Gap);
                        }
                    }
                }
                // Rooms should hear that it is back before they hear what it says.
                self.look();
            }
            BusEvent::NodeChanged(record) => {
                self.dial(&record);
                let (node, has_room) = (record.node, takes_more(&record));
                if let Some(of) = self.nodes.get_mut(&node) {
                    of.record = record;
                }
                if !has_room {
                    self.leave_gateway(node);
                }
            }
            BusEvent::NodeGone { node, why } => {
                tracing::warn!(%node, ?why, "a node is not on the bus any more, or not linked if it is another PoP's");
                if let Some(of) = self.nodes.get_mut(&node) {
                    of.gone_at.get_or_insert(Instant::now());
                    if why == Gone::Restarted {
                        (of.is_away, of.anew_at) = (true, Some(Instant::now()));
                    }
                }
                if why == Gone::Restarted {
                    self.tell_rooms(node, NodeFate::Restarted);
                }
            }
            BusEvent::Duplicate { theirs, mesh } => self.handle_duplicate(theirs, mesh),
            BusEvent::Keep(_) => unreachable!("it was taken before"),
        }
    }

    /// Carries out what the machine of sessions that span PoPs wants.
    async fn drive_spans(&mut self, places: &Arc<Semaphore>) {
        let (now, mesh) = (std::time::Instant::now(), self.mesh.clone());
        let has_room = |node| mesh.as_ref().is_none_or(|mesh| mesh.has_room(node));
        // The rest when it is looked at this node the next time.
        for _ in 0..TOLD_PER_TURN {
            let Some((node, presence)) = self.spans.poll_send(now, has_room) else { break };
            self.send(node, Message::Presence(presence));
        }
        while let Some((node, session)) = self.spans.poll_shut_out() {
            self.shut_out(node, &session).await;
        }
        // While rooms have enough to do it keeps what it has, within its own bounds.
        while let Ok(place) = Arc::clone(places).try_acquire_owned() {
            let Some(event) = self.spans.poll_event() else { break };
            self.handle_bus(event, Some(place));
        }
    }

    /// A node of another PoP may not hear of a session any more.
    async fn shut_out(&mut self, node: NodeId, session: &SessionId) {
        if let Some(watched) = self.rooms.get_mut(session) {
            watched.nodes.remove(&node);
        }
        self.end_passes(|pass| pass.session == *session && pass.origin == node).await;
        let Some(link) = self.links.get_mut(&node) else { return };
        link.followed.remove(session);
        link.asked.remove(session);
        let sent: Vec<_> = link.exports.iter().filter(|(_, export)| export.session == *session).map(|(track, _)| *track).collect();
        for track in sent {
            self.stop_export(node, track).await;
            self.refuse(node, track, "a certificate without this session's API keys");
        }
    }

    /// It is known to be a node of this PoP.
    fn is_of_this_pop(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|of| of.record.pop == self.record.pop)
    }

    /// It is known to be a node of another PoP.
    fn is_abroad(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|of| of.record.pop != self.record.pop)
    }

    fn of_this_pop(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|of| of.record.pop == self.record.pop)
    }

    /// Nodes of other PoPs tell of their own people and tracks: of ours, and of a third PoP's, they are not believed, nor of those who have not
    /// come yet.
    fn may_tell_of(&self, session: &SessionId, record: &Record) -> bool {
        let (node, participant) = (NodeId(record.key.node), record.key.participant);
        let Some(teller) = self.nodes.get(&node).filter(|of| of.record.pop != self.record.pop).map(|of| &of.record.pop) else {
            return true;
        };
        let pop = |node: NodeId| self.nodes.get(&node).map(|of| &of.record.pop);
        let is_of_another = |(other, known): (&NodeId, &Known)| known.people.contains(&participant) && pop(*other) != Some(teller);
        let is_others = |watched: &Watched| watched.own.contains(&participant) || watched.nodes.iter().any(is_of_another);
        let tracks = record.manifest.iter().flat_map(|manifest| manifest.tracks.iter().map(|track| track.info.track.0));
        let mut origins = tracks.chain([participant.0]).map(|id| (id >> 32) as u32);
        !origins.any(|origin| self.is_origin_of_others(origin, teller)) && !self.rooms.get(session).is_some_and(is_others)
    }

    /// Whether ids that begin so are given out by this PoP, or by one that is not `pop`.
    fn is_origin_of_others(&self, origin: u32, pop: &str) -> bool {
        let begins = |record: &NodeRecord| (record.incarnation.nonce >> 32) as u32 == origin;
        let is_known = self.nodes.values().any(|of| begins(&of.record) && *of.record.pop != *pop);
        is_known || begins(&self.record) || self.past_origins.contains(&origin)
    }

    /// Whether a node may know of a session and say something in it: those of this PoP may.
    fn may_share(&self, session: &SessionId, node: NodeId) -> bool {
        self.nodes.contains_key(&node) && (!self.is_abroad(node) || self.spans.is_granted(session, node))
    }

    /// Somebody is in a session elsewhere, and this node is one of those that know of it in case that their node dies.
    async fn keep(&mut self, session: SessionId) {
        let Some(shared) = self.shared.upgrade().filter(|_| self.kept.len() < KEPT_MAX) else { return };
        if !self.kept.contains_key(&session)
            && let Some((room, slot)) = shared.hold_room(&session).await
        {
            self.kept.insert(session, Keeping { since: Instant::now(), room, _slot: slot });
        }
    }

    /// Lets go of sessions in which nobody is any more, and of those that other nodes keep now.
    fn end_keeping(&mut self) {
        let Some(grace) = self.shared.upgrade().map(|shared| shared.grace()) else { return };
        let (rooms, nodes, passes, own) = (&self.rooms, &self.nodes, &self.passes, self.record.node);
        let now = Instant::now();
        if self.of_this_pop().any(|of| of.anew_at.is_some_and(|at| now.saturating_duration_since(at) < grace)) {
            // Of whom a node had before it began anew nothing is known here: they may be in any of these.
            return;
        }
        // Those of a node that is gone may be taken over until their grace is over.
        let may_have_people = |node: &NodeId| {
            let of = nodes.get(node).filter(|of| of.record.pop == self.record.pop);
            of.is_some_and(|of| of.gone_at.is_none_or(|at| now.saturating_duration_since(at) < UNTOLD_MAX + grace))
        };
        let up: Vec<NodeId> = self.of_this_pop().filter(|of| of.is_up()).map(|of| of.record.node).chain([own]).collect();
        let passed = passes.sessions();
        self.kept.retain(|session, keeping| {
            let is_new = now.saturating_duration_since(keeping.since) < KEEP_MIN;
            let has_people = rooms.get(session).is_some_and(|watched| watched.nodes.keys().any(may_have_people));
            is_new
                || passed.contains(session)
                || has_people && placement::rank(session, up.iter().copied()).iter().take(KEEPERS).any(|node| *node == own)
        });
    }

    /// Somebody says on the bus that it is this node. There the CA lets everybody speak in any name, so it has to prove it where only the
    /// holder of the node's certificate can: on its mesh. A node without a mesh has nothing to ask, and believes it.
    fn handle_duplicate(&mut self, theirs: Incarnation, address: Option<SocketAddr>) {
        let Some(mesh) = self.mesh.clone() else { return self.end_as_duplicate(theirs) };
        let Some(requests) = self.requests.upgrade() else { return };
        if std::mem::replace(&mut self.is_proving, true) {
            self.next_to_prove = Some((theirs, address));
            return;
        }
        tokio::spawn(async move {
            let mut is_so = false;
            for _ in 0..address.map_or(0, |_| PROOF_TRIES) {
                let Some(address) = address else { break };
                is_so = mesh.own_start_at(address).await.is_some_and(|start| start == theirs);
                if is_so {
                    break;
                }
                tokio::time::sleep(PROOF_INTERVAL).await;
            }
            // The node stops.
            let _ = requests.send(Request::Proved { theirs, is_so });
        });
    }

    /// Two writers of one node's records would undo each other.
    fn end_as_duplicate(&self, theirs: Incarnation) {
        tracing::error!(node = %self.record.node, start = theirs.start, "another process that started later has this node's name: give each node of a PoP its own node.name");
        std::process::exit(1);
    }

    /// When [`Self::look`] has something to see.
    fn look_at(&self) -> Instant {
        let Some(shared) = self.shared.upgrade() else { return Instant::now() + LOOK_INTERVAL };
        let now = shared.now();
        let lives = self.of_this_pop().map(|of| of.life.look_at().since(now));
        // Whatever else there is to do meanwhile.
        (Instant::now() + lives.min().unwrap_or(LOOK_INTERVAL)).min(self.looked_at + LOOK_INTERVAL)
    }

    /// Whether this node stood still, whether the others live, and who holds what is one node's.
    fn look(&mut self) {
        self.looked_at = Instant::now();
        let Some(shared) = self.shared.upgrade() else { return };
        self.spans.handle_timeout(std::time::Instant::now());
        self.overlay.handle_timeout(shared.now());
        self.tell_thirds();
        self.look_at_lives(&shared);
        // Who asks whether it is dead is told nothing, and what it was told runs out.
        if self.hang.is_none() {
            self.share_out(&shared);
        }
    }

    fn look_at_lives(&mut self, shared: &Arc<Shared>) {
        let is_hung = self.bus.as_ref().is_some_and(Bus::is_hung) | self.mesh.as_ref().is_some_and(Mesh::is_hung) | shared.is_held();
        if is_hung || self.hang.is_some() {
            return self.ask_whether_dead(shared);
        }
        let is_remembered = self.doubted_until.is_some_and(|until| Instant::now() < until);
        let is_held_dead = |mesh: &Mesh| mesh.verdicts(0).into_iter().any(|(node, said)| said.dead && self.is_of_this_pop(node));
        if is_remembered && self.mesh.as_ref().is_some_and(is_held_dead) {
            return self.rejoin(shared);
        }
        self.judge_lives(shared);
    }

    /// Each service address to the first of its rank, among those that say that they can have it.
    fn share_out(&mut self, shared: &Shared) {
        if self.vips.is_empty() {
            return;
        }
        let able: Vec<IpAddr> = self.vips.iter().filter(|of| of.vip.is_able()).map(|of| of.vip.address()).collect();
        if able != self.record.vips {
            self.record.vips = able;
            if let Some(bus) = &self.bus {
                bus.put_node(self.record.clone());
            }
        }
        let (now, own) = (shared.now(), self.record.node);
        let is_fit = now >= self.began + SETTLE && !shared.is_stopping();
        for index in 0..self.vips.len() {
            let Shift { vip, fit: fit_before, holder: before } = &self.vips[index];
            let (address, before) = (vip.address(), *before);
            let others = self.of_this_pop().filter(|of| of.is_serving() && of.counts_from <= now && of.record.vips.contains(&address));
            let mut fit: Vec<NodeId> = others.map(|of| of.record.node).collect();
            fit.extend((is_fit && self.record.vips.contains(&address)).then_some(own));
            fit.sort_unstable();
            let has_changed = fit != *fit_before;
            let after = if has_changed { holder(address, &fit) } else { before };
            if after != before {
                let why = match before {
                    None => "this node has just begun, or nobody had it",
                    Some(node) if fit.contains(&node) => "it comes before the holder in the order of the address",
                    Some(node) if node == own && shared.is_stopping() => "this node stops",
                    Some(node) if node == own => "this host cannot have it now",
                    Some(node) if self.nodes.get(&node).is_some_and(|of| of.record.draining) => "the holder stops",
                    Some(node) if self.nodes.get(&node).is_some_and(Node::is_serving) => "the holder's host cannot have it now",
                    Some(_) => "the holder is away",
                };
                let name = |node: Option<NodeId>| node.and_then(|node| self.name(node)).unwrap_or("nobody");
                tracing::warn!(target: AUDIT, %address, from = name(before), to = name(after), why, "service address");
            }
            let of = &mut self.vips[index];
            (of.fit, of.holder) = (fit, after);
            let turn = match after {
                Some(node) if node == own => Turn::Ours,
                _ if shared.is_stopping() && of.vip.is_held() => Turn::Stops,
                _ => Turn::Theirs,
            };
            of.vip.tell(turn, has_changed);
        }
    }

    fn name(&self, node: NodeId) -> Option<&str> {
        let other = self.nodes.get(&node).map(|of| &*of.record.name);
        if node == self.record.node { Some(&self.record.name) } else { other }
    }

    /// After this node stood still nothing leaves it before the others have said what they hold it for: they may have given its people to
    /// another one.
    fn ask_whether_dead(&mut self, shared: &Shared) {
        let now = Instant::now();
        let hang = self.hang.get_or_insert_with(|| {
            tracing::warn!("this node stood still: it asks the others whether they hold it for dead");
            Hang { since: now, since_us: self.mesh.as_ref().map_or(0, Mesh::ask_verdicts) }
        });
        self.doubted_until = Some(now + HANG_REMEMBERED);
        let verdicts = self.mesh.as_ref().map_or_else(Vec::new, |mesh| mesh.verdicts(hang.since_us));
        let witness = |(node, of): (&NodeId, &Node)| {
            let said = verdicts.iter().find(|(of, _)| of == node).map(|(_, said)| *said);
            let holds_dead = said.map(|said| said.dead);
            let is_connected = self.links.contains_key(node) || of.gone_at.is_none();
            // Who is away is not waited for, and may hold this node for dead in turn. Who has had no link yet tells once he has.
            let is_asked = of.is_up() && of.life.has_heard(Way::Link) || holds_dead == Some(true);
            is_asked.then_some(Witness { is_connected, holds_dead, stood_still: said.is_some_and(|said| said.hung) })
        };
        let witnesses: Vec<_> = self.nodes.iter().filter(|(_, of)| of.record.pop == self.record.pop).filter_map(witness).collect();
        let waited = now.saturating_duration_since(hang.since);
        let is_settled = match life::verdict(&witnesses, waited) {
            Verdict::Wait => return,
            Verdict::Dead => return self.rejoin(shared),
            Verdict::Alive { is_settled } => is_settled,
        };
        tracing::warn!(after_ms = waited.as_millis(), is_settled, "nobody holds this node for dead: it goes on");
        self.hang = None;
        if is_settled {
            self.doubted_until = Some(now + HANG_SETTLED);
        }
        if let Some(bus) = &self.bus {
            bus.go_on();
        }
        if let Some(mesh) = &self.mesh {
            mesh.go_on();
        }
        shared.release();
        self.nodes.values_mut().for_each(|of| of.life.excuse(shared.now()));
    }

    /// Others hold this node for dead, and it did stand still: its people are theirs.
    fn rejoin(&self, shared: &Shared) {
        tracing::error!(target: AUDIT, node = %self.record.name, "others hold this node for dead, and it stood still: it begins anew");
        shared.hold();
        rejoin::begin_anew();
    }

    fn hold_dead(&self, node: NodeId, start: Option<Incarnation>) {
        if let Some(mesh) = &self.mesh {
            mesh.hold_dead(node, start);
        }
    }

    /// Who lives, by what is heard.
    fn judge_lives(&mut self, shared: &Shared) {
        let (now, listened) = (shared.now(), shared.listened_at());
        let mut changed = Vec::new();
        for (node, of) in &mut self.nodes {
            // A path between PoPs may be away for a moment. Nobody here takes its people over, so nothing is to be decided soon.
            if of.record.pop != self.record.pop {
                let is_away = of.gone_at.is_some_and(|at| at.elapsed() >= UNLINKED_MAX);
                if is_away != of.is_away {
                    let silence = of.gone_at.map_or(Duration::ZERO, |at| at.elapsed());
                    changed.push((*node, Fate::Alive, silence, std::mem::replace(&mut of.is_away, is_away), is_away));
                }
                continue;
            }
            let link = self.links.get(node).filter(|link| link.peer.incarnation == of.record.incarnation);
            let on_bus = self.bus.as_ref().filter(|_| of.gone_at.is_none()).and_then(|bus| bus.silence(*node));
            let on_link = link.and(self.mesh.as_ref()).and_then(|mesh| mesh.silence(*node));
            for (way, silence) in [(Way::Bus, on_bus), (Way::Link, on_link)] {
                match silence {
                    Some(silence) => of.life.hear(way, now - silence),
                    None => of.life.end(way),
                }
            }
            match link.map(|link| (shared.heard_at(link.peer.number), link.opened_at)) {
                Some((at, opened_at)) if at > opened_at => of.life.hear(Way::Packets, at),
                Some(_) => {}
                None => of.life.end(Way::Packets),
            }
            let before = of.life.fate();
            let silence = of.life.heard_at().map(|at| now.since(at)).unwrap_or_default();
            let fate = of.life.judge(now, listened);
            match fate {
                Some(Fate::Dead) => self.deaths.count(silence),
                Some(_) if before == Fate::Dead => self.deaths.count_false(),
                _ => {}
            }
            let is_untold = of.gone_at.is_some_and(|at| at.elapsed() >= UNTOLD_MAX);
            let is_away = of.life.fate() != Fate::Alive || is_untold || of.is_away && of.gone_at.is_some();
            if is_away != of.is_away || fate.is_some() {
                changed.push((*node, of.life.fate(), silence, std::mem::replace(&mut of.is_away, is_away), is_away));
            }
        }
        for (node, fate, silence, was_away, is_away) in changed {
            let silent_ms = silence.as_millis();
            let start = self.nodes.get(&node).map(|of| of.record.incarnation);
            self.hold_dead(node, start.filter(|_| fate == Fate::Dead));
            if is_away {
                tracing::warn!(target: AUDIT, %node, ?fate, silent_ms, "node away: its people are kept until it or another node has them");
            } else {
                tracing::info!(target: AUDIT, %node, "node back");
            }
            if is_away {
                self.leave_gateway(node);
            }
            if was_away != is_away {
                if let Some(Node { record, .. }) = self.nodes.get(&node) {
                    self.overlay.events.note_node(if is_away { "away" } else { "back" }, &record.pop, &record.name);
                }
                self.tell_rooms(node, if is_away { NodeFate::Away } else { NodeFate::Back });
                // The bus may have had it back before: rooms took what it said of whom they had given up for old.
                match &self.bus {
                    _ if is_away => {}
                    _ if self.is_abroad(node) => self.spans.tell_again(node),
                    Some(bus) => bus.tell_again(node),
                    None => {}
                }
            }
        }
    }

    fn forget_gone(&mut self, now: Instant) {
        let (links, mesh) = (&self.links, &self.mesh);
        self.nodes.retain(|node, of| {
            let is_over = of.gone_at.is_some_and(|at| now.saturating_duration_since(at) >= FORGET_AFTER) && !links.contains_key(node);
            if let Some(mesh) = mesh.as_ref().filter(|_| is_over) {
                mesh.forget(*node);
            }
            !is_over
        });
    }

    fn dial(&self, record: &NodeRecord) {
        if let Some((mesh, address)) = self.mesh.as_ref().zip(record.mesh) {
            mesh.dial(record.node, &record.pop, &record.name, address);
        }
    }

    async fn handle_mesh(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::Message { node, message: Message::Paths(told) } => {
                let Some(shared) = self.shared.upgrade() else { return };
                if !self.overlay.hear(shared.now(), node, told)
                    && let Some(mesh) = &self.mesh
                {
                    mesh.ignore(Unheard::Foreign);
                }
            }
            MeshEvent::Message { node, message: Message::Presence(presence) } => {
                if !self.spans.hear(std::time::Instant::now(), node, presence)
                    && let Some(mesh) = &self.mesh
                {
                    mesh.ignore(Unheard::Foreign);
                }
            }
            MeshEvent::Data { node, .. } | MeshEvent::Message { node, .. } if !self.may_say(node, &event) => self.ignore(node, event),
            MeshEvent::LinkUp { peer, secret } => self.link_up(*peer, secret).await,
            MeshEvent::LinkDown { node, .. } => self.link_down(node).await,
            MeshEvent::Rekeyed { node, generation } => {
                let Some(shared) = self.shared.upgrade() else { return };
                let Some(link) = self.links.get_mut(&node).filter(|link| link.is_placed()) else { return };
                link.generation = generation;
                for (worker, id) in pairs(&shared, &link.peer) {
                    let keys = Box::new(link.secret.keys(generation, worker as u8, id.worker()));
                    shared.command(worker, Command::RekeyLink { link: id, generation, keys }).await;
                }
            }
            MeshEvent::Data { node, data, place } => self.take_data(node, *data, place),
            MeshEvent::Message { node, message } => match message {
                Message::Follow(Follow { session, age, received }) => self.take_follow(node, &session, age, received),
                Message::Unfollow(Unfollow { session }) => {
                    if let Some(link) = self.links.get_mut(&node) {
                        link.followed.remove(&session);
                    }
                }
                Message::Gap => {
                    let is_soon = |at: Instant| at.elapsed() < GAP_PAUSE;
                    let Some(link) = self.links.get_mut(&node).filter(|link| !link.gap_heard_at.is_some_and(is_soon)) else { return };
                    link.gap_heard_at = Some(Instant::now());
                    self.follow_all(node);
                }
                Message::Order(order) => self.take_order(node, order),
                Message::Done(done) => self.take_answer(node, done),
                Message::Heard(heard) => self.take_heard(node, heard),
                Message::Room(word) => self.take_room_word(node, word),
                Message::Want(control::Want { session, track, worker, origin: None }) => self.consider(node, session, track, worker),
                Message::Want(control::Want { session, track, worker, origin: Some(origin) }) => {
                    self.consider_passing((node, worker), session, track, origin).await;
                }
                Message::Unwant(Unwant { track }) => {
                    self.stop_passing(track, node);
                    self.stop_export(node, track).await;
                }
                Message::Offer(offer) => self.take_offer(node, &offer),
                Message::Refuse(Refuse { track, reason }) => {
                    tracing::debug!(%node, %track, reason, "a node does not send a track; it is asked again");
                    self.take_refusal(node, track).await;
                }
                _ => {}
            },
        }
    }

    /// Whether what a node says is heard.
    fn may_say(&self, node: NodeId, event: &MeshEvent) -> bool {
        let session = match event {
            MeshEvent::Data { data, .. } => &data.session,
            MeshEvent::Message { message, .. } => match message {
                Message::Follow(Follow { session, .. })
                | Message::Order(Order { session, .. })
                | Message::Heard(Heard { session, .. })
                | Message::Room(control::Room { session, .. })
                | Message::Want(control::Want { session, .. }) => session,
                // Of what was asked for before, or of nothing that could do harm.
                _ => return self.nodes.contains_key(&node),
            },
            _ => return true,
        };
        self.may_share(session, node)
    }

    /// A node of which the bus has not told yet, or one of another PoP in a session that is none of its business, has a link and no say.
    fn ignore(&self, node: NodeId, event: MeshEvent) {
        if let Some(mesh) = &self.mesh {
            mesh.ignore(Unheard::Foreign);
        }
        match event {
            MeshEvent::Data { .. } => {
                if let Some(shared) = self.shared.upgrade() {
                    shared.data.count_drop(DataDrop::Foreign);
                }
            }
            MeshEvent::Message { message: Message::Want(control::Want { track, .. }), .. } => {
                self.refuse(node, track, "this node's rooms are not yours");
            }
            MeshEvent::Message { message: Message::Order(Order { number, .. }), .. } => {
                self.send(node, Message::Done(Done { number, outcome: Outcome::UnknownParticipant }));
            }
            _ => {}
        }
    }

    /// A place for a word that a room is to hear; `None`: too many wait, and the node is told to ask for what it has missed.
    fn place_of_word(&mut self, node: NodeId) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.words).try_acquire_owned().ok();
        if place.is_none() {
            if let Some(mesh) = &self.mesh {
                mesh.ignore(Unheard::Full);
            }
            if let Some(link) = self.links.get_mut(&node) {
                link.gap_at.get_or_insert(Instant::now() + ASK_AGAIN);
            }
        }
        place
    }

    async fn link_up(&mut self, peer: Peer, secret: LinkSecret) {
        let Some(shared) = self.shared.upgrade() else { return };
        self.close_link(peer.node).await;
        let is_abroad = peer.pop != *self.record.pop;
        let lanes = match self.free_places() {
            1.. if is_abroad => Lanes::First,
            free if !is_abroad && peer.workers.len() <= free => Lanes::All,
            _ => Lanes::None,
        };
        if lanes == Lanes::None {
            tracing::warn!(node = %peer.node, "no media is exchanged with a node until another one goes: the workers of all others are {LINKS_MAX} already");
        }
        let node = peer.node;
        if peer.pop != *self.record.pop {
            self.overlay.link_up(&peer);
            self.spans.link_up(std::time::Instant::now(), &peer);
        }
        let (exports, followed, asked, stats) = Default::default();
        let (opened_at, way, generation) = (shared.now(), (NodeWay::Direct, None), 0);
        let (gap_at, gap_heard_at, has_media) = Default::default();
        let link =
            Link { peer, opened_at, secret, generation, lanes, has_media, exports, followed, asked, gap_at, gap_heard_at, stats, way };
        self.open_lanes(&shared, &link, |is_first| lanes == Lanes::All || is_first && lanes == Lanes::First).await;
        self.links.insert(node, link);
        let is_asked = |want: &Want| want.source.asked() == node && !want.is_lost;
        let wanted: Vec<_> = self.wants.iter().filter(|(_, want)| is_asked(want)).map(|(track, _)| *track).collect();
        wanted.into_iter().for_each(|track| self.ask(track));
        self.follow_all(node);
    }

    /// Opens links of our workers with those of a node: of the first two, or of others.
    async fn open_lanes(&self, shared: &Shared, link: &Link, has: impl Fn(bool) -> bool) {
        let Link { peer, secret, generation, .. } = link;
        for (worker, id) in pairs(shared, peer).into_iter().filter(|(worker, id)| has(is_first(*worker, *id))) {
            let open = OpenLink {
                link: id,
                own: self.record.node,
                node: peer.node,
                is_abroad: peer.pop != *self.record.pop,
                remote: peer.workers[usize::from(id.worker())],
                version: peer.version,
                remote_link: LinkId::new(peer.their_number, worker as u8),
                generation: *generation,
                keys: secret.keys(*generation, worker as u8, id.worker()),
                playout: peer.playout,
            };
            shared.command(worker, Command::OpenLink(Box::new(open))).await;
        }
    }

    /// All workers get links with those of a node of another PoP. False: there is no place for them, or no link.
    async fn wake(&mut self, node: NodeId) -> bool {
        let (Some(shared), free) = (self.shared.upgrade(), self.free_places()) else { return false };
        let Some(link) = self.links.get_mut(&node).filter(|link| link.is_placed()) else { return false };
        if link.lanes == Lanes::All {
            return true;
        }
        if link.peer.workers.len() > 1 + free {
            tracing::warn!(%node, "no media is exchanged with a node until another one goes: the workers of all others are {LINKS_MAX} already");
            return false;
        }
        // Their ways are told anew.
        (link.lanes, link.way) = (Lanes::All, (NodeWay::Direct, None));
        if let Some(link) = self.links.get(&node) {
            self.open_lanes(&shared, link, |is_first| !is_first).await;
        }
        true
    }

    /// The same for media, which has ways of its own over other nodes.
    async fn wake_for_media(&mut self, node: NodeId) -> bool {
        let is_awake = self.wake(node).await;
        if let Some(link) = self.links.get_mut(&node).filter(|link| is_awake && !link.has_media) {
            (link.has_media, link.way) = (true, (NodeWay::Direct, None));
        }
        is_awake
    }

    async fn link_down(&mut self, node: NodeId) {
        if !self.close_link(node).await {
            return;
        }
        if let Some(shared) = self.shared.upgrade() {
            self.overlay.link_down(shared.now(), node);
            self.spans.link_down(std::time::Instant::now(), node);
        }
        // There may be a place now. The other end may have found one before, so the link is made anew.
        let Some(mesh) = &self.mesh else { return };
        let mut free = self.free_places();
        for link in self.links.values().filter(|link| !link.is_placed()) {
            if let Some(left) = free.checked_sub(link.peer.workers.len()) {
                free = left;
                mesh.renew(link.peer.node);
            }
        }
    }

    /// How many more workers of other nodes this node's workers can have links with.
    fn free_places(&self) -> usize {
        let taken = |link: &Link| match link.lanes {
            Lanes::None => 0,
            Lanes::First => 1,
            Lanes::All => link.peer.workers.len(),
        };
        let taken: usize = self.links.values().map(taken).sum();
        usize::from(LINKS_MAX).saturating_sub(taken)
    }

    /// False: there was none.
    async fn close_link(&mut self, node: NodeId) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let Some(link) = self.links.remove(&node) else { return false };
        // What it was asked for over this link it does not answer.
        for number in self.orders.keys().copied().collect::<Vec<_>>() {
            self.take_answer(node, Done { number, outcome: Outcome::UnknownParticipant });
        }
        for (worker, id) in pairs(&shared, &link.peer).into_iter().filter(|_| link.is_placed()) {
            shared.command(worker, Command::CloseLink { link: id }).await;
        }
        for (track, export) in link.exports {
            self.tell_demand(&export.session, track, false);
        }
        for track in self.passes.find(|pass| pass.askers.contains_key(&node)) {
            self.stop_passing(track, node);
        }
        let with_it = |want: &Want| want.source.nodes().any(|of| of == node);
        let tracks: Vec<_> = self.wants.iter().filter(|(_, want)| with_it(want)).map(|(track, _)| *track).collect();
        for track in tracks {
            self.lose_source(node, track).await;
        }
        true
    }

    /// What came of a track ends; the room asks again.
    async fn lose(&mut self, track: TrackId) {
        self.end_pass(track).await;
        let Some(want) = self.wants.get_mut(&track) else { return };
        want.is_lost = true;
        let session = want.session.clone();
        if let Some(room) = self.room(&session) {
            let _ = room.send(RoomMessage::RemoteLost { track });
        }
    }

    /// Sections here want a track, or nodes to which it is passed on: once more, when what came of it has ended.
    fn want(&mut self, session: SessionId, track: TrackId, owner: NodeId, worker: usize) {
        let now = Instant::now();
        let before = self.wants.remove(&track);
        let asked = self.choose_source(&session, track, owner, before.as_ref().map(|want| &want.source));
        for node in before.iter().flat_map(|want| want.source.nodes()).filter(|node| *node != asked) {
            self.send(node, Message::Unwant(Unwant { track }));
        }
        let source = before.map_or_else(|| Source::new(now, owner, asked), |want| want.source.anew(now, asked));
        self.wants.insert(track, Want { session, owner, worker, source, is_lost: false, again: None });
        self.ask(track);
    }

    /// Who is to be asked for a track.
    fn choose_source(&self, session: &SessionId, track: TrackId, owner: NodeId, source: Option<&Source>) -> NodeId {
        let (now, own) = (Instant::now(), self.record.node);
        // What others take from here comes from its owner.
        if !self.is_abroad(owner) || self.passes.get(track).is_some() {
            return owner;
        }
        let fits = |node: NodeId| {
            if node == own {
                return takes_more(&self.record) && self.links.get(&owner).is_some_and(|link| link.is_placed());
            }
            let link = self.links.get(&node).filter(|link| link.is_placed() && link.peer.version >= PASS_VERSION);
            let is_fit = self.nodes.get(&node).is_some_and(|of| of.is_up() && takes_more(&of.record));
            let has_keys = link.is_some_and(|link| self.spans.are_held(session, &link.peer.grants));
            is_fit && has_keys && !source.is_some_and(|source| source.has_failed(now, node))
        };
        choose(&self.rank(session), own, owner, fits)
    }

    /// Asks whoever is to be asked now. Whoever sends meanwhile goes on until that one does.
    fn choose_again(&mut self, track: TrackId) {
        let Some(want) = self.wants.get(&track) else { return };
        let asked = self.choose_source(&want.session, track, want.owner, Some(&want.source));
        if asked == want.source.asked() {
            return;
        }
        let Some(want) = self.wants.get_mut(&track) else { return };
        let left = want.source.ask(Instant::now(), asked);
        let comes = want.source.sender() == Some(asked);
        tracing::debug!(%track, owner = %want.owner, from = %asked, "a track is asked for elsewhere");
        left.into_iter().for_each(|node| self.send(node, Message::Unwant(Unwant { track })));
        if !comes {
            self.ask(track);
        }
    }

    /// A node does not pass a track on, or does not any more: the next is asked. What comes of it meanwhile goes on.
    fn fail_source(&mut self, node: NodeId, track: TrackId) {
        if let Some(want) = self.wants.get_mut(&track) {
            want.source.fail(Instant::now(), node);
        }
        self.choose_again(track);
    }

    /// Nothing of a track comes from a node any more.
    async fn lose_source(&mut self, node: NodeId, track: TrackId) {
        let Some(want) = self.wants.get_mut(&track) else { return };
        let (is_lost, is_owner) = (want.source.end(node), want.owner == node);
        want.source.fail(Instant::now(), node);
        if is_lost {
            self.lose(track).await;
        } else if !is_owner {
            self.choose_again(track);
        }
    }

    /// A node takes no more work, or is silent: what it passes on is asked for elsewhere.
    fn leave_gateway(&mut self, node: NodeId) {
        let passes_on = |want: &Want| want.source.asked() == node && want.owner != node;
        let tracks: Vec<_> = self.wants.iter().filter(|(_, want)| passes_on(want)).map(|(track, _)| *track).collect();
        tracks.into_iter().for_each(|track| self.fail_source(node, track));
    }

    /// What comes from another node than the gateway of its session does not for ever.
    fn review_sources(&mut self) {
        let now = Instant::now();
        let due = |(track, want): (&TrackId, &mut Want)| (!want.is_lost && want.source.is_settled(now)).then_some(*track);
        let tracks: Vec<_> = self.wants.iter_mut().filter_map(due).collect();
        tracks.into_iter().for_each(|track| self.choose_again(track));
    }

    fn ask(&mut self, track: TrackId) {
        let Some(want) = self.wants.get_mut(&track) else { return };
        want.again = None;
        let (owner, asked, session, worker) = (want.owner, want.source.asked(), want.session.clone(), want.worker as u16);
        // It is asked for when the link has a place. Whom its session is none of the business of it is not asked.
        if self.links.get(&asked).is_some_and(|link| !link.is_placed()) || self.is_abroad(owner) && !self.may_ask(&session, track, owner) {
            return;
        }
        let origin = (asked != owner).then_some(owner);
        self.waking.push(asked);
        self.send(asked, Message::Want(control::Want { session, track, worker, origin }));
    }

    /// Whether a node of another PoP may hear that a track of its is wanted: who asked for it to be passed on saw to that.
    fn may_ask(&self, session: &SessionId, track: TrackId, owner: NodeId) -> bool {
        let is_passed = self.passes.get(track).is_some_and(|pass| pass.session == *session && pass.origin == owner);
        self.may_share(session, owner) || is_passed && !self.spans.has_keys(session)
    }

    /// A node of this PoP wants this one to take a track of another PoP, and to pass it on.
    async fn consider_passing(&mut self, (node, worker): (NodeId, u16), session: SessionId, track: TrackId, origin: NodeId) {
        let is_sound = self.links.get(&node).is_some_and(|link| link.is_placed() && usize::from(worker) < link.peer.workers.len());
        if !is_sound {
            return self.refuse(node, track, "there is no such worker");
        }
        if let Some(reason) = self.facts(node, &session, track, origin).refusal() {
            return self.refuse(node, track, reason);
        }
        self.keep(session.clone()).await;
        let Some(shared) = self.shared.upgrade() else { return };
        let Some(room) = self.room_that_is_kept(&session) else {
            return self.refuse(node, track, "this node keeps as many rooms as it may");
        };
        if let Err(reason) = self.passes.add(&session, track, origin, (node, worker)) {
            return self.refuse(node, track, reason);
        }
        let home = track.0 as usize % shared.worker_count();
        let _ = room.send(RoomMessage::Pass { track, owner: origin, home, on: true });
    }

    fn facts(&self, node: NodeId, session: &SessionId, track: TrackId, origin: NodeId) -> Facts {
        let theirs = self.links.get(&node).map(|link| &link.peer.grants);
        let takes = |want: &Want| want.owner == origin && want.session == *session && want.source.is_direct();
        Facts {
            is_of_this_pop: self.is_of_this_pop(node),
            is_abroad: self.is_abroad(origin),
            is_linked: self.links.get(&origin).is_some_and(|link| link.is_placed()),
            has_room: takes_more(&self.record),
            is_direct: self.wants.get(&track).is_none_or(takes),
            is_covered: theirs.zip(self.mesh.as_ref()).is_some_and(|(theirs, mesh)| theirs.covers(&mesh.grants())),
            is_shared: !self.spans.has_keys(session) || self.spans.is_granted(session, origin),
        }
    }

    /// A track that nodes of this PoP wait for is here.
    async fn pass_on(&mut self, session: SessionId, track: TrackId, exported: Option<Exported>) {
        let Some(pass) = self.passes.get(track).filter(|pass| pass.session == session) else { return };
        let Some(exported) = exported else { return self.end_pass(track).await };
        for (node, worker) in pass.askers.clone() {
            self.export(node, session.clone(), track, worker, Some(exported.clone())).await;
        }
    }

    /// A node of this PoP wants a track no longer.
    fn stop_passing(&mut self, track: TrackId, node: NodeId) {
        if let Some(session) = self.passes.remove(track, node) {
            self.tell_passed(&session, track);
        }
    }

    /// What this node passes on ends: those that it went to ask elsewhere.
    async fn end_pass(&mut self, track: TrackId) {
        let Some(pass) = self.passes.end(track) else { return };
        for node in pass.askers.into_keys() {
            self.stop_export(node, track).await;
            self.refuse(node, track, "it does not come here any more");
        }
        self.tell_passed(&pass.session, track);
    }

    async fn end_passes(&mut self, holds: impl Fn(&gateway::Pass) -> bool) {
        for track in self.passes.find(holds) {
            self.end_pass(track).await;
        }
    }

    /// One that has just begun has not said so yet.
    fn room_that_is_kept(&self, session: &SessionId) -> Option<mpsc::UnboundedSender<RoomMessage>> {
        self.room(session).or_else(|| self.kept.get(session)?.room.upgrade())
    }

    /// The room lets go of what is passed on no longer.
    fn tell_passed(&self, session: &SessionId, track: TrackId) {
        if let Some(room) = self.room_that_is_kept(session) {
            let _ = room.send(RoomMessage::Pass { track, owner: NodeId(0), home: 0, on: false });
        }
    }

    fn ask_again(&mut self) {
        let now = Instant::now();
        let due = |of: fn(&Want) -> Option<Instant>| {
            let is_due = |want: &Want| of(want).is_some_and(|at| at <= now);
            self.wants.iter().filter(|(_, want)| is_due(want)).map(|(track, want)| (*track, want.source.asked())).collect::<Vec<_>>()
        };
        let (again, failed) = (due(|want| want.again), due(|want| want.source.poll_timeout()));
        again.into_iter().for_each(|(track, _)| self.ask(track));
        failed.into_iter().for_each(|(track, node)| self.fail_source(node, track));
        let behind: Vec<_> = self.links.iter().filter(|(_, link)| link.gap_at.is_some_and(|at| at <= now)).map(|(node, _)| *node).collect();
        for node in behind {
            if let Some(link) = self.links.get_mut(&node) {
                link.gap_at = None;
            }
            self.send(node, Message::Gap);
        }
    }

    /// Tells others what has changed of this node.
    async fn tell_node(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let (load, draining) = shared.load().await;
        if (self.record.load, self.record.draining) != (load, draining) {
            (self.record.load, self.record.draining) = (load, draining);
            if let Some(bus) = &self.bus {
                bus.put_node(self.record.clone());
            }
        }
    }

    /// How the ways to other PoPs are, and that to them.
    fn tell_paths(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let now = shared.now();
        let links = self.links.iter().map(|(node, link)| (node, total(link.stats.values())));
        let told = self.overlay.tick(now, links);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.describe_overlay(now, false);
        let in_pop = self.of_this_pop().filter(|of| of.is_up());
        let known: Vec<Located> = in_pop.filter_map(|of| located(&of.record.name, &of.record.pop, of.record.mesh?)).collect();
        for (node, told) in told {
            let (release, load, draining) = (crate::VERSION.to_owned(), self.record.load, self.record.draining);
            let nodes = self.overlay.tell_of(now, node, &known);
            self.send(node, Message::Paths(Paths { release, load, draining, nodes, ..told }));
        }
        let linked = |node: &NodeId| self.links.contains_key(node);
        let (dialled, forgotten) = self.overlay.poll_located(now, linked);
        let Some(mesh) = &self.mesh else { return };
        let in_pop = self.of_this_pop().filter_map(|of| Some((of.record.node, of.record.mesh?)));
        mesh.locate(in_pop.chain(self.overlay.located()));
        for Located { node, pop, address } in dialled {
            mesh.dial(NodeId::of(&pop, &node), &pop, &node, address);
        }
        forgotten.into_iter().for_each(|node| mesh.forget(node));
    }

    /// Over which nodes the mesh may reach those of other PoPs that it does not reach.
    fn tell_thirds(&mut self) {
        let Some(mesh) = self.mesh.as_ref().filter(|_| self.sought_at.elapsed() >= SEEK_INTERVAL) else { return };
        self.sought_at = Instant::now();
        mesh.note_thirds(
            mesh.sought()
                .into_iter()
                .map(|pop| {
                    let thirds = self.overlay.thirds(&pop);
                    (pop, thirds)
                })
                .collect(),
        );
    }

    /// Tells the workers how what they have for nodes of other PoPs gets there, where that has changed.
    async fn tell_ways(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        for (node, way, backup) in self.overlay.ways() {
            let Some(link) = self.links.get(&node).filter(|link| link.is_placed() && link.way != (way, backup)) else { continue };
            let has_media = link.has_media;
            if has_media {
                // Who carries does so directly.
                for carrier in [Some(way), backup].into_iter().flatten().filter_map(NodeWay::carrier) {
                    self.wake(carrier).await;
                }
            }
            let Some(link) = self.links.get(&node) else { continue };
            for (worker, id) in pairs(&shared, &link.peer).into_iter().filter(|(worker, id)| has_media || is_first(*worker, *id)) {
                let of_link = |way: NodeWay| match way {
                    NodeWay::Direct => Some(LinkWay::Direct),
                    // Each of its workers carries for some.
                    NodeWay::Via(carrier) => {
                        let carrier = &self.links.get(&carrier).filter(|link| link.is_placed())?.peer;
                        let of = usize::from(id.worker()) % carrier.workers.len().max(1);
                        Some(LinkWay::Via(LinkId::new(carrier.number, of as u8)))
                    }
                };
                let (way, backup) = (of_link(way).unwrap_or_default(), backup.and_then(of_link));
                shared.command(worker, Command::RouteLink { link: id, way, backup }).await;
            }
            if let Some(link) = self.links.get_mut(&node) {
                link.way = (way, backup);
            }
        }
    }

    /// How a node's datagrams leave, over all workers: the way, or the ways, of the most.
    fn way_in_use(&self, link: &Link) -> Option<String> {
        let name = |way: LinkWay| match way {
            LinkWay::Direct => "direct".to_owned(),
            LinkWay::Via(id) => {
                let carrier = self.links.values().find(|of| of.peer.number == id.node());
                carrier.map_or_else(|| "via ?".to_owned(), |of| format!("via {}", of.peer.pop))
            }
        };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for stats in link.stats.values() {
            let first = name(stats.ways.first);
            *counts.entry(stats.ways.second.map_or_else(|| first.clone(), |way| format!("{first}+{}", name(way)))).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(way, _)| way)
    }

    /// To the nodes that have people in the room, or that may have; who is alone has nobody to give orders to.
    fn give_order(&mut self, session: SessionId, wish: Wish, reply: oneshot::Sender<Outcome>) {
        let Wish { action, identity, tracks } = wish;
        let number = self.next_order;
        self.next_order += 1;
        let known = self.rooms.get(&session).filter(|_| action != Action::Delete);
        let fits = |node: &NodeId| known.is_none_or(|room| room.nodes.contains_key(node)) && self.may_share(&session, *node);
        let nodes: HashSet<NodeId> = self.links.keys().copied().filter(fits).collect();
        for node in &nodes {
            let (session, identity, tracks) = (session.clone(), identity.clone(), tracks.clone());
            self.send(*node, Message::Order(Order { number, session, action, identity, tracks }));
        }
        self.orders.retain(|_, order| !order.reply.is_closed());
        self.orders.insert(number, GivenOrder { reply, nodes, outcome: Outcome::UnknownParticipant });
        self.finish_order(number);
    }

    fn take_answer(&mut self, node: NodeId, Done { number, outcome }: Done) {
        let Some(order) = self.orders.get_mut(&number) else { return };
        if order.nodes.remove(&node) && order.outcome != Outcome::Done && outcome != Outcome::UnknownParticipant {
            order.outcome = outcome;
        }
        self.finish_order(number);
    }

    fn finish_order(&mut self, number: u64) {
        if self.orders.get(&number).is_some_and(|order| order.nodes.is_empty())
            && let Some(order) = self.orders.remove(&number)
        {
            // Who asked may be gone.
            let _ = order.reply.send(order.outcome);
        }
    }

    /// Another node's operator wants something of a room of this one.
    fn take_order(&self, node: NodeId, order: Order) {
        let number = order.number;
        let place = Arc::clone(&self.obeying).try_acquire_owned().ok();
        let (Some(place), Some(shared), Some(requests)) = (place, self.shared.upgrade(), self.requests.upgrade()) else {
            return self.send(node, Message::Done(Done { number, outcome: Outcome::UnknownParticipant }));
        };
        tracing::info!(target: AUDIT, %node, room = %order.session, action = ?order.action, identity = order.identity.as_ref().map(Identity::as_str), "order of another node");
        tokio::spawn(async move {
            let outcome = shared.obey(order).await;
            // The node stops.
            let _ = requests.send(Request::Obeyed { node, done: Done { number, outcome } });
            drop(place);
        });
    }

    /// The room has ended, or another has its name.
    fn unfollow(&mut self, session: &SessionId) {
        for link in self.links.values_mut() {
            link.followed.remove(session);
            link.asked.remove(session);
        }
    }

    /// People of `node` come to a room and go.
    fn note_person(&mut self, session: &SessionId, node: NodeId, participant: ParticipantId, is_here: bool) {
        let Some(watched) = self.rooms.get_mut(session) else { return };
        if is_here {
            let is_first = !watched.nodes.contains_key(&node);
            let known = watched.nodes.entry(node).or_insert_with(|| Known { since: Instant::now(), people: HashSet::new() });
            known.people.insert(participant);
            if is_first && let Some(room) = watched.room.upgrade() {
                let _ = room.send(RoomMessage::Follow { node });
            }
        } else if let Some(known) = watched.nodes.get_mut(&node) {
            known.people.remove(&participant);
            if known.people.is_empty() {
                watched.nodes.remove(&node);
            }
        }
    }

    /// Each room asks for what the node's people have said since it has heard of them last.
    fn follow_all(&self, node: NodeId) {
        for watched in self.rooms.values().filter(|watched| watched.nodes.contains_key(&node)) {
            if let Some(room) = watched.room.upgrade() {
                let _ = room.send(RoomMessage::Follow { node });
            }
        }
    }

    fn take_follow(&mut self, node: NodeId, session: &SessionId, age: Duration, received: Vec<(ParticipantId, u32)>) {
        let Some(room) = self.room(session) else { return };
        // What it asked for before is answered as of when the room comes to it, so once is enough.
        if self.links.get(&node).is_none_or(|link| link.asked.contains(session)) {
            return;
        }
        let Some(place) = self.place_of_word(node) else { return };
        if let Some(link) = self.links.get_mut(&node) {
            link.asked.insert(session.clone());
        }
        let _ = room.send(RoomMessage::Followed { node, age, received, place });
    }

    fn tell_abroad(&mut self, session: SessionId, node: Option<NodeId>, told: Abroad, hold: Option<SenderPlace>) {
        if told == Abroad::Followed {
            // An answer to what was asked over the link before this one is late.
            if let Some(link) = node.and_then(|node| self.links.get_mut(&node))
                && link.asked.remove(&session)
            {
                link.followed.insert(session);
            }
            return;
        }
        if let Abroad::Room(word) = told {
            return self.tell_room_word(session, node, word);
        }
        // A node that has nobody in the session is not followed; its operator is heard all the same. What nobody can ask for later, as it
        // has no number, is heard at once.
        let at_once = match &told {
            Abroad::Data { sender, message } => sender.is_none() || message.reliable && message.sequence == 0,
            _ => false,
        };
        let has_people = |other: &NodeId| self.rooms.get(&session).is_some_and(|watched| watched.nodes.contains_key(other));
        let hears = |other: &NodeId, link: &Link| {
            (link.followed.contains(&session) || at_once && has_people(other)) && self.may_share(&session, *other)
        };
        let follows = |(other, link): &(&NodeId, &Link)| node.is_none_or(|node| node == **other) && hears(other, link);
        let to: Vec<NodeId> = self.links.iter().filter(follows).map(|(node, _)| *node).collect();
        match told {
            Abroad::Followed | Abroad::Room(_) => {}
            Abroad::Data { sender, message } => {
                let DataMessage { reliable, to: names, sequence, body } = &*message;
                let (reliable, sequence, sender) = (*reliable, *sequence, sender.unwrap_or(ParticipantId(0)));
                let data = Data { session, sender, reliable, sequence, to: names.clone(), body: Arc::clone(body) };
                let (message, numbered) = (Message::Data(data), sequence != 0);
                for node in to {
                    self.send_data(node, Outgoing { message: message.clone(), reliable, numbered, hold: hold.clone() });
                }
            }
            Abroad::Heard { speaking, connections } => {
                let connection = |quality: &ConnectionQuality| Connection {
                    participant: quality.participant,
                    score: (quality.score * 100.0) as u16,
                    grade: GRADES.iter().position(|grade| *grade == quality.grade).unwrap_or(0) as u8,
                };
                let heard = Heard { session, speaking, connections: connections.iter().map(connection).collect() };
                to.into_iter().for_each(|node| self.send(node, Message::Heard(heard.clone())));
            }
        }
    }

    /// A node that is too slow loses its place: it hears nothing more before it asks for what it has missed. Nobody else waits.
    fn send_data(&mut self, node: NodeId, outgoing: Outgoing) {
        let (Some(shared), Some(mesh)) = (self.shared.upgrade(), &self.mesh) else { return };
        match mesh.send_data(node, outgoing) {
            Ok(()) => {}
            Err(DataRefused::Down) => shared.data.count_drop(DataDrop::NotConnected),
            Err(DataRefused::Full) => shared.data.count_drop(DataDrop::LossyQueueFull),
            Err(DataRefused::Overflow { dropped }) => {
                tracing::debug!(%node, dropped, "a node takes data too slowly; it is told to resume");
                (0..dropped).for_each(|_| shared.data.count_drop(DataDrop::ReliableOverflow));
                shared.data.count_overflow();
                if let Some(link) = self.links.get_mut(&node) {
                    link.followed.clear();
                    link.gap_at = Some(Instant::now() + ASK_AGAIN);
                }
            }
        }
    }

    fn take_data(&self, node: NodeId, data: Data, place: OwnedSemaphorePermit) {
        let Some(room) = self.room(&data.session) else {
            if let Some(shared) = self.shared.upgrade() {
                shared.data.count_drop(DataDrop::Foreign);
            }
            return;
        };
        let Data { sender, reliable, sequence, to, body, .. } = data;
        let (sender, message) = ((sender.0 != 0).then_some(sender), Arc::new(DataMessage { reliable, to, sequence, body }));
        let _ = room.send(RoomMessage::RemoteData { node, sender, message, place });
    }

    fn take_heard(&mut self, node: NodeId, heard: Heard) {
        let Heard { session, speaking, connections } = heard;
        let Some(room) = self.room(&session) else { return };
        let Some(place) = self.place_of_word(node) else { return };
        let quality = |told: &Connection| {
            let grade = *GRADES.get(usize::from(told.grade))?;
            Some(ConnectionQuality { participant: told.participant, grade, score: f32::from(told.score) / 100.0 })
        };
        let connections = connections.iter().filter_map(quality).collect();
        let _ = room.send(RoomMessage::Heard { node, speaking, connections, place });
    }

    /// To one node, or to all of the PoP. It waits behind data: what is dropped there comes with the answer to the next [`Follow`].
    fn tell_room_word(&mut self, session: SessionId, node: Option<NodeId>, word: RoomWord) {
        let RoomWord { metadata, participants_max, said } = word;
        let said_in = session.clone();
        let message = Message::Room(control::Room { session, metadata: metadata.into(), participants_max, said });
        let is_told = |other: &NodeId| node.is_none_or(|node| node == *other) && self.may_share(&said_in, *other);
        for node in self.links.keys().copied().filter(is_told).collect::<Vec<_>>() {
            self.send_data(node, Outgoing { message: message.clone(), reliable: true, numbered: false, hold: None });
        }
    }

    fn take_room_word(&mut self, node: NodeId, word: control::Room) {
        let control::Room { session, metadata, participants_max, said } = word;
        let Some(room) = self.room(&session) else { return };
        let Some(place) = self.place_of_word(node) else { return };
        let _ = room.send(RoomMessage::Word { word: RoomWord { metadata: metadata.into(), participants_max, said }, place });
    }

    /// A node does not send a track, or not any more: its owner is asked again, and in the place of who should pass it on the next one.
    async fn take_refusal(&mut self, node: NodeId, track: TrackId) {
        let Some(want) = self.wants.get(&track).filter(|want| want.source.nodes().any(|of| of == node)) else { return };
        let is_owner = want.owner == node;
        self.lose_source(node, track).await;
        if let Some(want) = self.wants.get_mut(&track).filter(|want| is_owner && want.source.asked() == node) {
            want.again = Some(Instant::now() + ASK_AGAIN);
        }
    }

    /// Another node's subscribers want a track: its room knows whether it is ours.
    fn consider(&mut self, node: NodeId, session: SessionId, track: TrackId, worker: u16) {
        let is_sound = self.links.get(&node).is_some_and(|link| link.is_placed() && usize::from(worker) < link.peer.workers.len());
        let room = self.room(&session).filter(|_| is_sound);
        let (Some(room), Some(requests)) = (room, self.requests.upgrade()) else {
            return self.refuse(node, track, "this node has no such room");
        };
        if self.considered >= CONSIDERED_MAX {
            return self.refuse(node, track, "too many wishes wait for this node's rooms");
        }
        self.considered += 1;
        let (reply, answer) = oneshot::channel();
        let _ = room.send(RoomMessage::Wanted { track, on: true, reply });
        tokio::spawn(async move {
            let exported = answer.await.ok().flatten();
            // The node stops.
            let _ = requests.send(Request::Export { node, session, track, worker, exported });
        });
    }

    async fn export(&mut self, node: NodeId, session: SessionId, track: TrackId, worker: u16, exported: Option<Exported>) {
        let Some(shared) = self.shared.upgrade() else { return };
        if !self.may_share(&session, node) {
            // It was shut out since it asked.
            self.tell_demand(&session, track, false);
            return self.refuse(node, track, "this node's rooms are not yours");
        }
        let Some(Exported { is_passed, home, open, extensions, is_camera }) = exported else {
            return self.refuse(node, track, "this node does not publish it");
        };
        // What comes from another PoP goes to none, and comes from where it began.
        let is_direct = self.wants.get(&track).is_some_and(|want| want.source.is_direct());
        if is_passed && !(self.is_of_this_pop(node) && is_direct) {
            return self.refuse(node, track, "tracks are passed on inside a PoP alone");
        }
        if self.links.contains_key(&node) && !self.wake_for_media(node).await {
            self.tell_demand(&session, track, false);
            return self.refuse(node, track, "this node's workers have links with as many as they may");
        }
        let Some(link) = self.links.get_mut(&node) else { return self.tell_demand(&session, track, false) };
        let id = LinkId::new(link.peer.number, worker as u8);
        let alias = match link.exports.get(&track) {
            Some(export) if (export.home, export.link) == (home, id) => export.alias,
            Some(export) => {
                let (home, link, alias) = (export.home, export.link, export.alias);
                shared.command(home, Command::ExportToLink { track, link, alias, bound: None, on: false }).await;
                alias
            }
            None if link.exports.len() >= EXPORTS_MAX => {
                self.tell_demand(&session, track, false);
                return self.refuse(node, track, "this node sends as many tracks as it may");
            }
            None => {
                while link.exports.values().any(|export| export.alias == self.next_alias) {
                    self.next_alias = self.next_alias.wrapping_add(1);
                }
                let alias = self.next_alias;
                self.next_alias = self.next_alias.wrapping_add(1);
                alias
            }
        };
        let Some(link) = self.links.get_mut(&node) else { return };
        let of = session.clone();
        let known = link.exports.values().find(|export| export.session == session).map(|export| export.number);
        let number = known.unwrap_or_else(|| {
            self.next_number = self.next_number.wrapping_add(1);
            self.next_number
        });
        let max = match open.kind {
            MediaKind::Audio => self.loudest,
            MediaKind::Video if is_camera => self.last_n,
            MediaKind::Video => 0,
        };
        let bound = (max > 0).then_some(SessionBound { session: number, max });
        link.exports.insert(track, Export { session, home, link: id, alias, number });
        shared.command(home, Command::ExportToLink { track, link: id, alias, bound, on: true }).await;
        let offer = Offer {
            track,
            alias,
            worker: home as u16,
            audio: open.kind == MediaKind::Audio,
            payload_types: open.payload_types.iter().map(told).collect(),
            extensions: extensions.ids().to_vec(),
            layers: open.layers.iter().map(|rid| rid.to_string()).collect(),
            order: open.order.clone(),
            load: self.record.load,
        };
        self.send(node, Message::Offer(offer));
        // Another node may have let go of it since the room was asked.
        if let Some(room) = self.room(&of) {
            let _ = room.send(RoomMessage::Wanted { track, on: true, reply: oneshot::channel().0 });
        }
    }

    async fn stop_export(&mut self, node: NodeId, track: TrackId) {
        let Some(shared) = self.shared.upgrade() else { return };
        let Some(export) = self.links.get_mut(&node).and_then(|link| link.exports.remove(&track)) else { return };
        let Export { session, home, link, alias, .. } = export;
        shared.command(home, Command::ExportToLink { track, link, alias, bound: None, on: false }).await;
        self.tell_demand(&session, track, false);
    }

    /// The room hears when the last node has let go of a track.
    fn tell_demand(&self, session: &SessionId, track: TrackId, on: bool) {
        if self.links.values().any(|link| link.exports.contains_key(&track)) {
            return;
        }
        if let Some(room) = self.room(session) {
            let _ = room.send(RoomMessage::Wanted { track, on, reply: oneshot::channel().0 });
        }
    }

    fn take_offer(&mut self, node: NodeId, offer: &Offer) {
        let Some(link) = self.links.get(&node).filter(|link| link.lanes == Lanes::All) else { return };
        let track = offer.track;
        // Of what was not asked for, or was asked of somebody else, nothing is taken.
        if self.wants.get(&track).is_none_or(|want| want.source.asked() != node && want.source.sender() != Some(node)) {
            // It was let go of before the answer to our wish came.
            return self.send(node, Message::Unwant(Unwant { track }));
        }
        let Some(want) = self.wants.get_mut(&track) else { return };
        let Some(open) = open_of(offer).filter(|_| usize::from(offer.worker) < link.peer.workers.len()) else {
            tracing::warn!(%node, %track, "a node offers a track in a way that this one does not understand");
            return;
        };
        // Who sends until another one does may offer it anew.
        let left = if want.source.asked() == node { want.source.offered() } else { None };
        want.again = None;
        let (session, home) = (want.session.clone(), want.worker);
        let remote = RemoteTrack {
            open: Box::new(open),
            extensions: ExtensionIds::from_ids(&offer.extensions),
            link: LinkId::new(link.peer.number, offer.worker as u8),
            alias: offer.alias,
        };
        if let Some(room) = self.room(&session) {
            let _ = room.send(RoomMessage::RemoteOffered { remote: Box::new(remote), home });
        }
        left.into_iter().for_each(|node| self.send(node, Message::Unwant(Unwant { track })));
    }

    fn refuse(&self, node: NodeId, track: TrackId, reason: &str) {
        self.send(node, Message::Refuse(Refuse { track, reason: reason.to_owned() }));
    }

    /// A link that is down is asked when it is up again.
    fn send(&self, node: NodeId, message: Message) {
        if let Some(mesh) = self.mesh.as_ref().filter(|_| self.links.contains_key(&node)) {
            mesh.send(node, &message);
        }
    }

    fn room(&self, session: &SessionId) -> Option<mpsc::UnboundedSender<RoomMessage>> {
        self.rooms.get(session)?.room.upgrade()
    }

    fn tell_rooms(&mut self, node: NodeId, fate: NodeFate) {
        if let Some(mesh) = self.mesh.as_ref().filter(|_| fate != NodeFate::Back) {
            mesh.lose(node);
        }
        if fate == NodeFate::Restarted {
            self.rooms.values_mut().for_each(|watched| drop(watched.nodes.remove(&node)));
        }
        for room in self.rooms.values().filter_map(|watched| watched.room.upgrade()) {
            let _ = room.send(RoomMessage::Node { node, fate });
        }
    }

    /// The nodes of this PoP that live, this one too, in the order in which they take the session's people.
    fn rank(&self, session: &SessionId) -> Vec<NodeId> {
        let up = self.of_this_pop().filter(|of| of.is_up()).map(|of| of.record.node);
        placement::rank(session, up.chain([self.record.node]))
    }

    fn way(&self, goal: &Goal, failed: &[NodeId]) -> Option<(Mesh, Elsewhere)> {
        let node = match goal {
            // Where this node can take nobody, as when it is gray, whoever can does.
            Goal::Join(session) if self.splits || self.record.load >= 1_000 => self.host(session, failed)?,
            Goal::Join(_) => return None,
            Goal::Origin(origin) => self.origin(*origin)?,
            Goal::Member { session, participant } => {
                let owner = self.owner(session, *participant).or_else(|| self.origin((participant.0 >> 32) as u32));
                // Without a connection it is dying, or its next start, which knows nobody, is at its address already: another one waits until
                // that is known.
                let is_connected =
                    |node: &NodeId| self.links.contains_key(node) || self.nodes.get(node).is_some_and(|of| of.gone_at.is_none());
                let owner = owner.filter(is_connected);
                // One that began anew knows nobody of a node that is gone, least of all those whom it had itself.
                let grace = self.shared.upgrade().map(|shared| shared.grace()).unwrap_or_default();
                let is_young = |of: &&Node| of.anew_at.is_some_and(|at| at.elapsed() < grace);
                let young = self.of_this_pop().filter(is_young).map(|of| of.record.node);
                let failed: Vec<NodeId> = failed.iter().copied().chain(young).collect();
                owner.or_else(|| self.host(session, &failed))?
            }
        };
        self.way_to(node)
    }

    fn way_to(&self, node: NodeId) -> Option<(Mesh, Elsewhere)> {
        let record = &self.nodes.get(&node)?.record;
        let name = NodeName::new(&record.name, &record.pop).ok().filter(|name| name.id() == node)?;
        Some((self.mesh.clone()?, Elsewhere { name, address: record.mesh? }))
    }

    /// Where people of the session whose sockets are here get their transports: the first of its rank that has a place, but this one.
    fn host(&self, session: &SessionId, failed: &[NodeId]) -> Option<NodeId> {
        let has_place = |node: &NodeId| {
            let fits = |of: &Node| !of.record.draining && of.record.load < FULL && of.record.mesh.is_some();
            self.links.contains_key(node) && !failed.contains(node) && self.nodes.get(node).is_some_and(fits)
        };
        self.rank(session).into_iter().find(has_place)
    }

    /// Whose people it is among. Of two, one has taken it over from the other.
    fn owner(&self, session: &SessionId, participant: ParticipantId) -> Option<NodeId> {
        let known = &self.rooms.get(session)?.nodes;
        let is_here = |node: &NodeId| !self.is_abroad(*node) && self.nodes.get(node).is_some_and(Node::is_up);
        let owners = known.iter().filter(|(node, known)| known.people.contains(&participant) && is_here(node));
        let origin = self.origin((participant.0 >> 32) as u32);
        owners.map(|(node, _)| *node).min_by_key(|node| Some(*node) == origin)
    }

    /// The upper half of a start's nonce begins all ids of that start.
    fn origin(&self, origin: u32) -> Option<NodeId> {
        let gave_out = |of: &&Node| of.is_up() && of.record.incarnation.nonce >> 32 == u64::from(origin);
        Some(self.of_this_pop().find(gave_out)?.record.node)
    }

    fn describe(&self) -> Description {
        let node = |of: &Node| NodeView {
            node: of.record.name.to_string(),
            id: of.record.node.to_string(),
            pop: of.record.pop.to_string(),
            state: if of.is_up() { "up" } else { "away" },
            incarnation: admin::Incarnation { start: of.record.incarnation.start, nonce: of.record.incarnation.nonce },
            mesh: of.record.mesh.map(|address| address.to_string()),
            participants: 0,
            load: of.record.load,
            capacity: of.record.capacity,
            draining: of.record.draining,
        };
        let mut nodes: Vec<_> = self.of_this_pop().map(node).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let up = self.mesh.iter().flat_map(Mesh::links);
        let mut links: Vec<_> = up.filter_map(|state| Some(self.describe_link(&state, self.links.get(&state.peer.node)?))).collect();
        links.sort_by(|a, b| (&a.pop, &a.node).cmp(&(&b.pop, &b.node)));
        let mut tracks: HashMap<TrackId, Vec<String>> = HashMap::new();
        for link in self.links.values() {
            let Peer { name, pop, .. } = &link.peer;
            let name = if *pop == *self.record.pop { name.clone() } else { format!("{name}.{pop}") };
            let comes = |want: &Want| want.source.sender() == Some(link.peer.node);
            let coming = self.wants.iter().filter(|(_, want)| comes(want)).map(|(track, _)| *track);
            for track in link.exports.keys().copied().chain(coming) {
                tracks.entry(track).or_default().push(name.clone());
            }
        }
        tracks.values_mut().for_each(|names| names.sort());
        let vip = |Shift { vip, holder, .. }: &Shift| VipView {
            address: vip.address().to_string(),
            holder: holder.and_then(|node| self.name(node)).map(str::to_owned),
            held: vip.is_held(),
        };
        let vips = self.vips.iter().map(vip).collect();
        let now = self.shared.upgrade().map(|shared| shared.now()).unwrap_or_default();
        Description { nodes, links, overlay: self.describe_overlay(now, true), vips, tracks }
    }

    fn describe_overlay(&self, now: Time, all: bool) -> OverlayView {
        let spans = |watched: &&Watched| watched.nodes.keys().any(|node| self.is_abroad(*node));
        let sessions = self.rooms.values().filter(spans).count();
        let mut overlay = OverlayView { sessions, participants: self.spans.participants(), ..self.overlay.describe(now, all) };
        for route in &mut overlay.routes {
            route.in_use = self.links.values().filter(|link| link.peer.pop == route.to).filter_map(|link| self.way_in_use(link)).max();
        }
        overlay
    }

    fn describe_link(&self, state: &LinkState, link: &Link) -> LinkView {
        let peer = &link.peer;
        let stats = &state.figures;
        LinkView {
            node: peer.name.clone(),
            id: peer.node.to_string(),
            pop: peer.pop.clone(),
            address: peer.address.to_string(),
            state: "up",
            dialled: state.dialled,
            control: match &state.over {
                _ if !state.is_connected => "none".to_owned(),
                None => "direct".to_owned(),
                Some((node, pop)) => format!("via {node}.{pop}"),
            },
            schema: peer.version,
            generation: state.generation,
            age_ms: state.age.as_millis() as u64,
            rtt_ms: (stats.rtt_us > 0).then(|| f64::from(stats.rtt_us) / 1_000.0),
            jitter_ms: f64::from(stats.jitter_us) / 1_000.0,
            mtu: (stats.mtu > 0).then_some(stats.mtu),
            lanes: match link.lanes {
                Lanes::None => 0,
                Lanes::First => 1,
                Lanes::All => self.shared.upgrade().map_or(0, |shared| shared.worker_count()) * peer.workers.len(),
            },
            tracks_out: link.exports.len(),
            tracks_in: self.wants.values().filter(|want| want.source.sender() == Some(peer.node)).count(),
            datagrams_out: stats.datagrams_out,
            datagrams_in: stats.datagrams_in,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
            lost: stats.lost,
            repaired: stats.repaired,
            recovered: stats.recovered,
            parity_bytes_out: stats.parity_bytes_out,
            dropped: stats.refused,
            limit_kbps: (stats.limit > 0).then_some(stats.limit / 1_000),
            congested: stats.congested,
            way: self.way_in_use(link).filter(|_| peer.pop != *self.record.pop),
            transit_bytes_in: stats.transit_bytes_in,
            transit_bytes_out: stats.transit_bytes_out,
            api_keys: peer.grants.list(),
        }
    }
}

/// Whether a node takes work of others.
fn takes_more(record: &NodeRecord) -> bool {
    !record.draining && record.load < FULL
}

/// Whether a worker's link is that of the first workers of two nodes.
fn is_first(worker: usize, link: LinkId) -> bool {
    worker == 0 && link.worker() == 0
}

/// Each worker of ours with each link of `peer`.
fn pairs(shared: &Shared, peer: &Peer) -> Vec<(usize, LinkId)> {
    let remotes = 0..peer.workers.len();
    (0..shared.worker_count())
        .flat_map(|worker| remotes.clone().map(move |remote| (worker, remote)))
        .map(|(worker, remote)| (worker, LinkId::new(peer.number, remote as u8)))
        .collect()
}

fn total<'a>(all: impl Iterator<Item = &'a LinkStats>) -> LinkStats {
    let mut sum = LinkStats::default();
    for stats in all {
        sum.datagrams_out = sum.datagrams_out.saturating_add(stats.datagrams_out);
        sum.bytes_out = sum.bytes_out.saturating_add(stats.bytes_out);
        sum.media_bytes_out = sum.media_bytes_out.saturating_add(stats.media_bytes_out);
        sum.datagrams_in = sum.datagrams_in.saturating_add(stats.datagrams_in);
        sum.bytes_in = sum.bytes_in.saturating_add(stats.bytes_in);
        sum.media_bytes_in = sum.media_bytes_in.saturating_add(stats.media_bytes_in);
        sum.lost = sum.lost.saturating_add(stats.lost);
        sum.repaired = sum.repaired.saturating_add(stats.repaired);
        sum.recovered = sum.recovered.saturating_add(stats.recovered);
        sum.parity_bytes_out = sum.parity_bytes_out.saturating_add(stats.parity_bytes_out);
        sum.repairs_out = sum.repairs_out.saturating_add(stats.repairs_out);
        sum.refused = sum.refused.saturating_add(stats.refused);
        sum.limit = sum.limit.saturating_add(stats.limit);
        sum.congested = sum.congested.saturating_add(stats.congested);
        sum.transit_bytes_in = sum.transit_bytes_in.saturating_add(stats.transit_bytes_in);
        sum.transit_bytes_out = sum.transit_bytes_out.saturating_add(stats.transit_bytes_out);
        sum.carried_in = sum.carried_in.saturating_add(stats.carried_in);
        sum.direct.came = sum.direct.came.saturating_add(stats.direct.came);
        sum.direct.lost = sum.direct.lost.saturating_add(stats.direct.lost);
        sum.direct.rtt_us = sum.direct.rtt_us.max(stats.direct.rtt_us);
        sum.direct.jitter_us = sum.direct.jitter_us.max(stats.direct.jitter_us);
        sum.rtt_us = sum.rtt_us.max(stats.rtt_us);
        sum.jitter_us = sum.jitter_us.max(stats.jitter_us);
        sum.mtu = if sum.mtu == 0 { stats.mtu } else { sum.mtu.min(stats.mtu) };
    }
    sum
}

fn told(payload_type: &PayloadType) -> control::PayloadType {
    let PayloadType { number, codec, rtx } = *payload_type;
    control::PayloadType { number, codec: codec.name().to_owned(), clock_rate: codec.clock_rate(), rtx }
}

/// The track as its origin describes it; `None` when it is beyond what one may be.
fn open_of(offer: &Offer) -> Option<OpenTrack> {
    let kind = if offer.audio { MediaKind::Audio } else { MediaKind::Video };
    let layers = offer.layers.len();
    let is_sound = offer.track.0 != SELF_TEST
        && offer.payload_types.len() <= PAYLOAD_TYPES_MAX
        && layers <= LAYERS_MAX
        && offer.layers.iter().all(|rid| !rid.is_empty() && rid.len() <= MID_LEN_MAX)
        && offer.order.len() <= layers
        && offer.order.iter().all(|place| usize::from(*place) < layers);
    let payload_types = offer.payload_types.iter().map(|told| {
        let codec = Codec::named(&told.codec, told.clock_rate).filter(|codec| codec.kind() == kind)?;
        Some(PayloadType { number: told.number, codec, rtx: told.rtx })
    });
    Some(OpenTrack {
        track: offer.track,
        transport: TransportId(0),
        kind,
        ssrc: None,
        rtx_ssrc: None,
        mid: "".into(),
        layers: offer.layers.iter().map(|rid| rid.as_str().into()).collect(),
        order: offer.order.clone(),
        payload_types: payload_types.collect::<Option<_>>()?,
        nack: false,
        pli: true,
        fir: false,
    })
    .filter(|_| is_sound)
}
