//! The running node: it connects signalling, sessions, DTLS and workers. Tasks own state; nothing here holds a lock over a wait.
//!
//! ```text
//! signal --Node::place--> directory (rooms, slots)          which worker the client is for
//! signal --Node::join---> room task (owns the Session) --Command--> spread --> workers: of the transport, of the track's mirrors
//! worker --Event--> pump -+-> room task
//!                         +-> DtlsPeer -> transport task --SendDtls, InstallKeys--> worker, Connected/Failed --> room task
//! ```

mod capture;
mod data;
mod directory;
mod elsewhere;
mod kept;
mod member;
mod pump;
mod room;
mod route;
mod selftest;
mod spread;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use pop_dataplane::limits::{LINKS_MAX, TCP_CONNECTIONS_MAX, WorkerLimits};
use pop_dataplane::{Clock, Crossing, Service, Worker, WorkerConfig, WorkerSnapshot};
use pop_proto::Command;
use pop_proto::control::IceCredentials;
use pop_proto::probe::ProbeRates;
use pop_relay::control::{Action, Order, Outcome};
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId, Time};
use pop_session::member::{AdminRequest, Enter, Resume, RoomInfo};
use pop_session::placement::{Claim, Full};
use pop_session::token::{self, Access, TokenError, VideoGrant};
use pop_session::view::ParticipantView;
use pop_session::{IceUpdate, Join, Refusal, Reply, Request, SessionView};
use tokio::sync::mpsc::WeakUnboundedSender;
use tokio::sync::oneshot;

pub use capture::{CaptureError, CaptureId, CaptureRequest};
pub(crate) use data::{LOSSY, RELIABLE};
pub use directory::Placement;
pub(crate) use directory::Slot;
pub(crate) use elsewhere::Wish;
pub use member::{EnterError, Line, Seat, TransportStart};
use room::Found;
pub(crate) use room::{Exported, NodeFate, RoomMessage};
pub use route::{OpenRoute, RouteError, RouteSockets};
pub use selftest::{SelfTest, TryResult, WorkerTest};
pub(crate) use spread::RemoteTrack;

use crate::backend::{self, Choice};
use crate::bus::{Bus, BusApplier, BusCounters, BusSettings, NodeRecord};
use crate::cluster::{self, Cluster, Goal};
use crate::config::{Backend, Config};
use crate::data::DataCounters;
use crate::dtls::{Certificate, Dtls, DtlsCounters, DtlsError, Fingerprint, Role};
use crate::keys::ApiKeys;
use crate::mesh::{Elsewhere, Mesh, MeshSettings};
use crate::metrics::{self, Deaths, JoinSeconds, RelayedBytes};
use crate::probe::Probe;
use crate::signal::SignalCounters;
use crate::token::unix_now_s;
use crate::vip::Vip;
use directory::Directory;

/// DTLS handshakes that may be open at once, counted from a client's first good check on: each takes at most about 150 KiB.
const HALF_OPEN_MAX: usize = 1_000;

/// At shutdown, clients are told for at most this long.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client whose node is silent is kept waiting for at most so long, until it is known that the node is gone; and how often that is
/// looked at.
const VERDICT_WAIT_MAX: Duration = Duration::from_secs(1);
const VERDICT_INTERVAL: Duration = Duration::from_millis(20);

/// How long a node that begins waits for those that are there, and how often it looks.
const MEET_MAX: Duration = Duration::from_millis(500);
const MEET_INTERVAL: Duration = Duration::from_millis(5);

/// A full worker queue is tried again after this: one worker turn is far shorter.
const COMMAND_RETRY: Duration = Duration::from_millis(1);

/// Why a client could not be let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The session said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// DTLS said no.
    #[error(transparent)]
    Dtls(#[from] DtlsError),
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// Why a room could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Its session said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// As many rooms as may be are kept, or no worker has a place.
    #[error("this node keeps as many rooms as it may")]
    Full,
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// What became of a [`Node::update_ice`].
#[derive(Clone, Debug)]
pub enum IceUpdated {
    /// The ICE session goes on.
    Kept,
    /// Another one begins.
    Restarted {
        /// Its credentials.
        credentials: IceCredentials,
        /// The worker's candidates, as clients reach them; where the node serves TCP they are TCP candidates, too.
        candidates: Vec<SocketAddr>,
    },
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    name: String,
    pop: String,
    /// Of the name and the PoP's.
    node: NodeId,
    /// How long people of a node that is silent are kept.
    grace: Duration,
    /// Replaced as a whole by a reload.
    keys: RwLock<Arc<ApiKeys>>,
    dtls: Dtls,
    pub(crate) data: Arc<DataCounters>,
    pub(crate) relayed: Arc<RelayedBytes>,
    clock: Clock,
    workers: Vec<Worker>,
    candidates: Vec<Vec<SocketAddr>>,
    routes: Vec<pump::Routes>,
    dtls_refused: Vec<pump::Refused>,
    service: Service,
    probe: Probe,
    directory: Directory,
    self_test: SelfTest,
    kept: kept::KeptRooms,
    captures: capture::Captures,
    ids: AtomicU64,
    /// See [`Node::origin`].
    origin: u32,
    stopping: AtomicBool,
    join_seconds: JoinSeconds,
    /// Set once, before the first client comes; a node alone has none.
    cluster: OnceLock<Cluster>,
    consent: Duration,
    slow_readers: AtomicU64,
    signal_counters: SignalCounters,
}

/// How a node is with others.
pub struct Joined {
    /// Of its bus, when it has one.
    pub bus: Option<Arc<BusCounters>>,
    /// Takes other certificates for it.
    pub(crate) bus_files: Option<BusApplier>,
    /// Its links, when it has some.
    pub mesh: Option<Mesh>,
}

/// The bounds of one worker, from the config.
pub fn worker_limits(config: &Config) -> WorkerLimits {
    let dataplane = &config.dataplane;
    // The config's bounds keep each of these within its type.
    WorkerLimits {
        transports: dataplane.transports_max as u32,
        tracks: dataplane.tracks_max as u32,
        subscriptions: dataplane.subscriptions_max as u32,
        packets: dataplane.packet_pool as u32,
        recv_buffers: dataplane.recv_buffers as u16,
        recv_buffer_len: if dataplane.gro { 65_536 } else { 2_048 },
        trains: dataplane.trains as u16,
        train_len: 65_535,
        tcp_connections: if config.media.tcp { TCP_CONNECTIONS_MAX } else { 0 },
        // Cores that are not there are refused elsewhere.
        peers: dataplane.cores.choose(&available_cores()).map_or(0, |cores| cores.len().saturating_sub(1) as u16),
        links: if config.mesh.listen.is_some() { LINKS_MAX } else { 0 },
    }
}

impl Node {
    /// Binds the media ports and starts workers, service thread and tasks, on the tokio runtime of the caller.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change: a port that is taken, a core that does not exist, no back end.
    pub fn start(config: &Config, keys: ApiKeys) -> Result<Node, String> {
        let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, HALF_OPEN_MAX);
        let clock = Clock::start();
        let service = Service::start(clock).map_err(|e| format!("cannot start the service thread: {e}"))?;
        let cores = config.dataplane.cores.choose(&available_cores())?;
        config.media.check_ports(cores.len())?;
        let Choice { kind: backend, reason, warning } = backend::choose(config, &pop_uring::probe())?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        tracing::info!(backend = backend.name(), reason, "the back end is chosen");
        let (probe, reflectors) = Probe::bind(config)?;
        let crossing = Crossing::new(cores.len());
        let mut workers = Vec::new();
        let mut wakes = Vec::new();
        for (index, core) in cores.iter().enumerate() {
            let port = if config.media.port == 0 { 0 } else { config.media.port + index as u16 };
            let worker_config = WorkerConfig {
                index,
                core: Some(*core),
                backend,
                may_fall_back: config.dataplane.backend != Backend::IoUring,
                addresses: config.media.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
                relay: config.mesh.relay_address(index).into_iter().collect(),
                limits: worker_limits(config),
                gro: config.dataplane.gro,
                busy_poll: Duration::from_micros(config.dataplane.busy_poll_us.into()),
                consent: config.media.consent_timeout,
                probe: probe.of_worker(&config.probe),
                crossing: crossing.clone(),
            };
            let (worker, wake) = Worker::start(worker_config, clock, service.taps()).map_err(|e| e.to_string())?;
            workers.push(worker);
            wakes.push(wake);
        }
        let advertise = |worker: &Worker| {
            let address =
                |(i, bound): (usize, &SocketAddr)| SocketAddr::new(config.media.advertised(i).unwrap_or(bound.ip()), bound.port());
            worker.addresses().iter().enumerate().map(address).collect()
        };
        let candidates = workers.iter().map(advertise).collect();
        probe.start(reflectors, &service).map_err(|e| format!("cannot start the reflectors: {e}"))?;
        let (routes, route_requests): (Vec<_>, Vec<_>) = workers.iter().map(|_| pump::Routes::new()).unzip();
        let dtls_refused = workers.iter().map(|_| pump::Refused::new()).collect();
        let plans = workers.iter().map(|worker| plan(worker.limits())).collect();
        let origin = draw_origin();
        let node = Node {
            shared: Arc::new_cyclic(|shared| Shared {
                name: config.node.shown_name(),
                pop: config.node.pop.clone(),
                node: NodeId::of(&config.node.pop, &config.node.shown_name()),
                grace: config.session.grace,
                keys: RwLock::new(Arc::new(keys)),
                dtls,
                data: Arc::default(),
                relayed: Arc::new(RelayedBytes::new(workers.len())),
                clock,
                self_test: SelfTest::new(workers.len()),
                workers,
                candidates,
                routes,
                dtls_refused,
                service,
                probe,
                directory: Directory::start(plans, shared.clone()),
                kept: kept::KeptRooms::default(),
                captures: capture::Captures::default(),
                ids: AtomicU64::new(u64::from(origin) << 32 | 1),
                origin,
                stopping: AtomicBool::new(false),
                join_seconds: JoinSeconds::default(),
                cluster: OnceLock::new(),
                consent: config.media.consent_timeout,
                slow_readers: AtomicU64::new(0),
                signal_counters: SignalCounters::default(),
            }),
        };
        for (worker, (wake, requests)) in wakes.into_iter().zip(route_requests).enumerate() {
            pump::start(Arc::downgrade(&node.shared), worker, wake, requests).map_err(|e| format!("cannot watch worker {worker}: {e}"))?;
        }
        Ok(node)
    }

    /// Joins the other nodes that the config names; a node whose config names none stays alone. Before the first client comes.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub async fn join_others(&self, config: &Config, incarnation: Incarnation) -> Result<Joined, String> {
        let shared = &self.shared;
        let (pop, id) = (config.node.pop.clone(), shared.node);
        let relays = shared.workers.iter().filter_map(|worker| worker.relay_addresses().first().copied()).collect();
        let mesh = match MeshSettings::of(config, incarnation, relays)? {
            Some(settings) => Some(Mesh::start(settings).await?),
            None => None,
        };
        let bus = match BusSettings::of(config) {
            Some(settings) => {
                let settings = BusSettings { name: shared.name.clone(), ..settings };
                let opened = Bus::open(&settings, id, incarnation).await?;
                Some((opened, settings))
            }
            None => None,
        };
        let (bus, settings) = bus.unzip();
        let joined = Joined {
            bus: bus.as_ref().map(|(bus, _)| bus.counters()),
            bus_files: bus.as_ref().zip(settings.as_ref()).map(|((bus, _), settings)| bus.applier(settings)),
            mesh: mesh.as_ref().map(|(mesh, _)| mesh.clone()),
        };
        if mesh.is_none() && bus.is_none() {
            return Ok(joined);
        }
        let record = NodeRecord {
            name: shared.name.as_str().into(),
            pop: pop.as_str().into(),
            node: id,
            incarnation,
            mesh: mesh.as_ref().map(|(mesh, _)| mesh.address()),
            release: crate::VERSION.into(),
            load: 0,
            capacity: shared.workers.iter().map(|worker| worker.limits().transports).sum(),
            draining: false,
            vips: Vec::new(),
        };
        if let Some((bus, _)) = &bus {
            bus.put_node(record.clone());
        }
        let cluster = Cluster::start(Arc::downgrade(shared), record, bus, mesh, config.session, &config.mesh);
        // A node joins once.
        let _ = shared.cluster.set(cluster);
        if let Some(settings) = &settings {
            self.meet_others(settings, config.mesh.listen.is_some()).await;
        }
        Ok(joined)
    }

    /// Returns when all nodes of the bus that take connections are known, and linked where there are links, or after a while: whoever was at the
    /// start before comes back to this one at once, and is to be brought to a node that knows him.
    async fn meet_others(&self, settings: &BusSettings, has_links: bool) {
        let (there, deadline) = (crate::bus::there_are(settings).await, Instant::now() + MEET_MAX);
        while there > 0 && Instant::now() < deadline {
            let cluster::Description { nodes, links, .. } = self.others().await;
            if nodes.len() >= there && (!has_links || nodes.iter().all(|of| links.iter().any(|link| link.id == of.id))) {
                return;
            }
            tokio::time::sleep(MEET_INTERVAL).await;
        }
    }

    /// The other nodes and the links to them.
    pub async fn others(&self) -> cluster::Description {
        match self.shared.cluster.get() {
            Some(cluster) => cluster.describe().await,
            None => Default::default(),
        }
    }

    /// This node has each of these addresses when it is its turn among the nodes of the PoP. A node alone never has.
    pub fn share_addresses(&self, vips: Vec<Vip>) {
        if let Some(cluster) = self.shared.cluster.get() {
            cluster.share_addresses(vips);
        }
    }

    /// Deaths of other nodes, for the metrics; a node alone sees none.
    pub fn deaths(&self) -> Option<Arc<Deaths>> {
        self.shared.cluster.get().map(Cluster::deaths)
    }

    /// The other PoPs, for the metrics; a node alone sees none.
    pub fn overlay(&self) -> Option<metrics::Overlay> {
        self.shared.cluster.get().map(Cluster::overlay)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The PoP that it is a node of.
    pub fn pop(&self) -> &str {
        &self.shared.pop
    }

    /// A number that this process has not given out before.
    pub fn next_id(&self) -> u64 {
        self.shared.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// The upper half of every id that this start of the node gives out, and of its incarnation's nonce: other nodes tell by it whose
    /// an id is.
    pub fn origin(&self) -> u32 {
        self.shared.origin
    }

    /// Whether it is one of several.
    pub(crate) fn has_others(&self) -> bool {
        self.shared.cluster.get().is_some()
    }

    /// The other node of the PoP that is to answer what a client wants, and the way there; never one of `failed`. `None`: this one is.
    pub(crate) async fn way(&self, goal: &Goal, failed: &[NodeId]) -> Option<(Mesh, Elsewhere)> {
        if let Goal::Member { session, participant } = goal
            && self.has_member(session, *participant).await
        {
            return None;
        }
        self.shared.cluster.get()?.way(goal, failed).await
    }

    /// The ways to all other nodes of the PoP that live.
    pub(crate) async fn ways(&self) -> Vec<(Mesh, Elsewhere)> {
        match self.shared.cluster.get() {
            Some(cluster) => cluster.ways().await,
            None => Vec::new(),
        }
    }

    async fn has_member(&self, session: &SessionId, participant: ParticipantId) -> bool {
        let Some(room) = self.shared.directory.find(session).await else { return false };
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::FindMember { participant, reply }).is_ok() && matches!(answer.await, Ok(Found::Here(..)))
    }

    /// Random bytes for passwords and identifiers.
    pub fn random(&self, out: &mut [u8]) {
        aws_lc_rs::rand::fill(out).expect("the system gives random bytes");
    }

    /// The certificate's fingerprint, for the SDP.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.shared.dtls.fingerprint()
    }

    /// The API keys, as of now.
    pub fn keys(&self) -> Arc<ApiKeys> {
        Arc::clone(&self.shared.keys.read().expect("nothing panics while the keys are held"))
    }

    /// From now on tokens are checked and signed with these.
    pub fn set_keys(&self, keys: ApiKeys) {
        *self.shared.keys.write().expect("nothing panics while the keys are held") = Arc::new(keys);
    }

    /// How long a client may stay silent.
    pub fn consent_timeout(&self) -> Duration {
        self.shared.consent
    }

    /// Checks an access token against this node's keys and the wall clock.
    ///
    /// # Errors
    ///
    /// What is wrong with the token.
    pub fn verify_token(&self, token: &str) -> Result<Access, TokenError> {
        let keys = self.keys();
        token::verify(token, unix_now_s(), |id| keys.secret(id))
    }

    /// The same for the token of a server, which is nobody.
    ///
    /// # Errors
    ///
    /// What is wrong with the token.
    pub fn verify_server_token(&self, token: &str) -> Result<VideoGrant, TokenError> {
        let keys = self.keys();
        token::verify_claims(token, unix_now_s(), |id| keys.secret(id)).map(|claims| claims.video)
    }

    /// Somebody comes into a session by this token, and once more when he is in it: other PoPs that may use its API key may know of the session, and
    /// those that may not may no longer.
    pub fn note_key(&self, session: &SessionId, access: &Access) {
        if let Some(cluster) = self.shared.cluster.get() {
            cluster.note_key(session, &access.claims().iss);
        }
    }

    /// Chooses the worker for one more client of `session` ([`pop_session::placement`]) and keeps what it claims there until the placement is dropped or the
    /// client is gone.
    ///
    /// # Errors
    ///
    /// No worker has room, or the node is stopping.
    pub async fn place(&self, session: &SessionId, claim: Claim) -> Result<Placement, Full> {
        if self.is_stopping() {
            return Err(Full);
        }
        let mut placement = self.shared.directory.place(session, claim).await?;
        placement.candidates = self.shared.candidates[placement.worker].clone();
        Ok(placement)
    }

    /// Lets a client in.
    ///
    /// # Errors
    ///
    /// See [`JoinError`]; nothing of the client is left then.
    pub async fn join(&self, placement: Placement, role: Role, remote: Vec<Fingerprint>, join: Join) -> Result<(), JoinError> {
        let dtls = self.shared.dtls.open(role, remote)?;
        let room = placement.room.clone();
        let (reply, answer) = oneshot::channel();
        let message = RoomMessage::Join { join: Box::new(join), dtls: Some(Box::new(dtls)), slot: placement.slot, reply };
        room.send(message).map_err(|_| JoinError::Stopping)?;
        answer.await.map_err(|_| JoinError::Stopping)?.map_err(JoinError::Refused)
    }

    /// Lets a client in as a member of a room. [`pop_session::member::Notice::Welcome`] is the seat's first notice.
    ///
    /// # Errors
    ///
    /// See [`EnterError`]; nothing of the client is left then.
    pub async fn enter(&self, session: &SessionId, enter: Enter) -> Result<Seat, EnterError> {
        if self.is_stopping() {
            return Err(EnterError::Stopping);
        }
        let claim = Claim { transports: 1, ..Claim::default() };
        let Placement { worker, room, slot, .. } = self.shared.directory.place(session, claim).await.map_err(|Full| EnterError::Full)?;
        let (_, hold) = self.shared.directory.hold(session).await.map_err(|Full| EnterError::Full)?;
        let line = Arc::new(Line::default().into());
        let (seat, socket) = member::new_seat(self, (session, worker, room.clone()), enter.participant, Arc::clone(&line), hold);
        let (reply, answer) = oneshot::channel();
        let message = RoomMessage::Enter { enter: Box::new(enter), socket, line, slot, reply };
        room.send(message).map_err(|_| EnterError::Stopping)?;
        answer.await.map_err(|_| EnterError::Stopping)??;
        Ok(seat)
    }

    /// Gives a member that is back a new seat. [`pop_session::member::Notice::Resumed`] is its first notice. One whose node is gone is taken
    /// over, when its client can make a new DTLS association on the connection that it has (`redoes_dtls`); while its node is silent and
    /// not yet known to be gone, that is waited for.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownParticipant`]: it is not here, or somebody else. [`Refusal::Elsewhere`]: another node has it.
    pub async fn resume(&self, session: &SessionId, resume: Resume, redoes_dtls: bool) -> Result<Seat, Refusal> {
        let (unknown, deadline) = (Refusal::UnknownParticipant, Instant::now() + VERDICT_WAIT_MAX);
        let room = self.shared.directory.find(session).await.ok_or(unknown)?;
        loop {
            let (reply, answer) = oneshot::channel();
            room.send(RoomMessage::FindMember { participant: resume.participant, reply }).map_err(|_| unknown)?;
            match answer.await.map_err(|_| unknown)? {
                Found::Away(node) | Found::There(node) if self.is_abroad(node).await => return Err(unknown),
                Found::Here(worker, line) => return self.resume_here(session, (worker, room), line, resume).await,
                Found::Away(_) | Found::There(_) if !redoes_dtls || self.is_stopping() => return Err(Refusal::Elsewhere),
                Found::Away(_) => match self.adopt(session, resume.clone()).await {
                    Err(Refusal::Elsewhere) if Instant::now() < deadline => {}
                    done => return done,
                },
                Found::There(_) if Instant::now() < deadline => {}
                Found::There(_) => return Err(Refusal::Elsewhere),
                Found::Unknown => return Err(unknown),
            }
            tokio::time::sleep(VERDICT_INTERVAL).await;
        }
    }

    /// One of another PoP: clients of its people begin anew here.
    async fn is_abroad(&self, node: NodeId) -> bool {
        match self.shared.cluster.get() {
            Some(cluster) => cluster.is_abroad(node).await,
            None => false,
        }
    }

    async fn resume_here(
        &self,
        session: &SessionId,
        (worker, room): (usize, directory::RoomSender),
        line: Arc<Mutex<Line>>,
        resume: Resume,
    ) -> Result<Seat, Refusal> {
        let unknown = Refusal::UnknownParticipant;
        let (_, hold) = self.shared.directory.hold(session).await.map_err(|Full| unknown)?;
        let (seat, socket) = member::new_seat(self, (session, worker, room.clone()), resume.participant, line, hold);
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::Resume { resume: Box::new(resume), socket, reply }).map_err(|_| unknown)?;
        answer.await.unwrap_or(Err(unknown))?;
        Ok(seat)
    }

    /// The member of a node that is gone becomes one of ours.
    async fn adopt(&self, session: &SessionId, resume: Resume) -> Result<Seat, Refusal> {
        let unknown = Refusal::UnknownParticipant;
        let claim = Claim { transports: 1, ..Claim::default() };
        let Placement { worker, room, slot, .. } = self.shared.directory.place(session, claim).await.map_err(|Full| unknown)?;
        let (_, hold) = self.shared.directory.hold(session).await.map_err(|Full| unknown)?;
        let line = Arc::new(Mutex::new(Line::adopted()));
        let (seat, socket) = member::new_seat(self, (session, worker, room.clone()), resume.participant, Arc::clone(&line), hold);
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::Adopt { resume: Box::new(resume), socket, line, slot, reply }).map_err(|_| unknown)?;
        answer.await.unwrap_or(Err(unknown))?;
        Ok(seat)
    }

    /// What an operator wants of a room.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownParticipant`] where there is no such room, and what the session says.
    pub async fn admin(&self, session: &SessionId, request: AdminRequest) -> Result<Reply, Refusal> {
        let order = self.shared.cluster.get().zip(elsewhere::order_of(&request));
        let deletes = matches!(request, AdminRequest::Delete);
        let here = self.admin_here(session, request).await;
        match order {
            Some((cluster, order)) if deletes || matches!(here, Err(Refusal::UnknownParticipant | Refusal::UnknownTrack)) => {
                elsewhere::add(here, cluster.order(session, order).await)
            }
            _ => here,
        }
    }

    async fn admin_here(&self, session: &SessionId, request: AdminRequest) -> Result<Reply, Refusal> {
        let unknown = Refusal::UnknownParticipant;
        let found = self.shared.directory.find(session).await;
        // A room that is on other nodes alone is begun here for as long as it takes to know who is in it.
        let (room, _slot) = match found {
            Some(room) => (room, None),
            None if self.shared.cluster.get().is_some() && elsewhere::needs_everybody(&request) => {
                let (room, slot) = self.shared.directory.hold(session).await.map_err(|Full| unknown)?;
                elsewhere::await_people(&room).await;
                (room, Some(slot))
            }
            None => return Err(unknown),
        };
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::Ask { request: Request::Admin(request), reply }).map_err(|_| unknown)?;
        answer.await.unwrap_or(Err(unknown))
    }

    /// What the sockets of members count.
    pub fn signal_counters(&self) -> &SignalCounters {
        &self.shared.signal_counters
    }

    /// Makes a room, or changes the one that is there, and keeps it for `duration` although nobody may be in it.
    ///
    /// # Errors
    ///
    /// See [`CreateError`]; a room that was not there is not there then.
    pub async fn create_room(&self, session: &SessionId, request: AdminRequest, duration: Duration) -> Result<RoomInfo, CreateError> {
        if self.is_stopping() {
            return Err(CreateError::Stopping);
        }
        let (room, slot) = self.shared.directory.hold(session).await.map_err(|Full| CreateError::Full)?;
        // First: what has no place changes nothing.
        let shared = Arc::downgrade(&self.shared);
        let was_kept = self.shared.kept.keep(session, slot, duration, shared).map_err(|Full| CreateError::Full)?;
        let made = self.change_room(&room, request).await;
        if made.is_err() && !was_kept {
            self.shared.kept.end(session);
        }
        made
    }

    async fn change_room(&self, room: &directory::RoomSender, request: AdminRequest) -> Result<RoomInfo, CreateError> {
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::Ask { request: Request::Admin(request), reply }).map_err(|_| CreateError::Stopping)?;
        let Reply::Room(info) = answer.await.map_err(|_| CreateError::Stopping)?? else {
            unreachable!("a room that is made is described");
        };
        Ok(*info)
    }

    /// Ends a room: everybody leaves, and it is kept no longer.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownParticipant`]: there is no such room.
    pub async fn delete_room(&self, session: &SessionId) -> Result<(), Refusal> {
        self.admin(session, AdminRequest::Delete).await?;
        self.shared.kept.end(session);
        Ok(())
    }

    /// Every room that this node knows of.
    pub async fn rooms(&self) -> Vec<RoomInfo> {
        let mut rooms = Vec::new();
        for room in self.shared.directory.rooms().await {
            let (reply, answer) = oneshot::channel();
            let request = Request::Admin(AdminRequest::Describe);
            // A room that has just ended is none.
            if room.send(RoomMessage::Ask { request, reply }).is_err() {
                continue;
            }
            if let Ok(Ok(Reply::Room(info))) = answer.await
                // One that is kept for people of other nodes alone, and they have gone.
                && (info.participants > 0 || info.created_at_ms > 0)
            {
                rooms.push(*info);
            }
        }
        rooms
    }

    /// Sockets that were cut because their clients did not read what they were told.
    pub fn slow_readers(&self) -> u64 {
        self.shared.slow_readers.load(Ordering::Relaxed)
    }

    /// Ends the participant behind an HTTP resource; false when there is none.
    pub async fn leave(&self, session: &SessionId, resource: &str) -> bool {
        let Some(room) = self.shared.directory.find(session).await else { return false };
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::Leave { resource: resource.into(), reply }).is_ok() && answer.await.unwrap_or(false)
    }

    /// Compares a PATCH with the participant's ICE session, and restarts ICE when it brings a new fragment.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownResource`], [`Refusal::IceUnconditional`], [`Refusal::IceStale`]; the session is what it was then.
    pub async fn update_ice(&self, session: &SessionId, update: IceUpdate) -> Result<IceUpdated, Refusal> {
        let room = self.shared.directory.find(session).await.ok_or(Refusal::UnknownResource)?;
        let (reply, answer) = oneshot::channel();
        room.send(RoomMessage::FindWorker { resource: update.resource.clone(), reply }).map_err(|_| Refusal::UnknownResource)?;
        let worker = answer.await.ok().flatten().ok_or(Refusal::UnknownResource)?;
        let (reply, answer) = oneshot::channel();
        let request = Request::UpdateIce(Box::new(update));
        // A room that ends takes its resources with it.
        room.send(RoomMessage::Ask { request, reply }).map_err(|_| Refusal::UnknownResource)?;
        match answer.await.unwrap_or(Err(Refusal::UnknownResource))? {
            Reply::IceRestarted(credentials) => {
                Ok(IceUpdated::Restarted { credentials, candidates: self.shared.candidates[worker].clone() })
            }
            _ => Ok(IceUpdated::Kept),
        }
    }

    /// Every session with its participants.
    pub async fn sessions(&self) -> Vec<SessionView> {
        let others = self.others().await;
        let links: HashMap<String, Vec<String>> = others.tracks.iter().map(|(track, names)| (track.to_string(), names.clone())).collect();
        let mut views = Vec::new();
        for room in self.shared.directory.rooms().await {
            let (reply, answer) = oneshot::channel();
            if room.send(RoomMessage::Describe { reply }).is_ok()
                && let Ok(mut view) = answer.await
            {
                for person in &mut view.participants {
                    // Those of other PoPs are known by their links, and called NODE.POP.
                    let of = |id: &str| {
                        let of_this_pop = others.nodes.iter().find(|node| node.id == id).map(|node| node.node.clone());
                        let link = || others.links.iter().find(|link| link.id == id);
                        of_this_pop.or_else(|| link().map(|link| format!("{}.{}", link.node, link.pop)))
                    };
                    person.node =
                        if person.local { Some(self.shared.name.clone()) } else { person.node.take().map(|id| of(&id).unwrap_or(id)) };
                    for track in &mut person.tracks {
                        track.links = links.get(&track.id).cloned().unwrap_or_default();
                    }
                }
                views.push(view);
            }
        }
        views
    }

    /// At which node each of those who are shown in a session is, by identity.
    pub async fn hosts(&self, session: &SessionId) -> BTreeMap<String, String> {
        let Some(room) = self.shared.directory.find(session).await else { return BTreeMap::new() };
        let (reply, answer) = oneshot::channel();
        let view = if room.send(RoomMessage::Describe { reply }).is_ok() { answer.await.ok() } else { None };
        let others = self.others().await.nodes;
        let shown = view.into_iter().flat_map(|view| view.participants).filter(|person| !person.hidden && person.kind != "watch");
        let name = |id: &str| others.iter().find(|node| node.id == id).map(|node| node.node.clone());
        let host = |person: ParticipantView| {
            let host = if person.local { self.shared.name.clone() } else { name(person.node.as_deref()?)? };
            Some((person.identity, host))
        };
        shown.filter_map(host).collect()
    }

    /// Returns when the directory and every room have answered. A node whose control tasks are stuck never returns.
    pub async fn rooms_answer(&self) {
        let ask = |room: directory::RoomSender| {
            let (reply, answer) = oneshot::channel();
            // A room that has just ended needs not answer.
            room.send(RoomMessage::Ping { reply }).is_ok().then_some(answer)
        };
        // All are asked before any is waited for: on a busy node each answer takes a turn of the runtime, and hundreds of them in a row
        // would take it for stuck.
        let asked: Vec<_> = self.shared.directory.rooms().await.into_iter().filter_map(ask).collect();
        for answer in asked {
            let _ = answer.await;
        }
    }

    /// Makes every worker turn now.
    pub fn wake_workers(&self) {
        self.shared.workers.iter().for_each(Worker::wake);
    }

    /// Each worker's totals, with what DTLS refused of the datagrams that it handed up.
    pub fn workers(&self) -> Vec<WorkerSnapshot> {
        let refused = self.shared.dtls_refused.iter();
        let count = |(worker, refused): (&Worker, &pump::Refused)| {
            let mut snapshot = worker.snapshot();
            refused.add_to(&mut snapshot.drops);
            snapshot
        };
        self.shared.workers.iter().zip(refused).map(count).collect()
    }

    /// First and last media port.
    pub fn media_ports(&self) -> (u16, u16) {
        let ports = || self.shared.workers.iter().flat_map(|w| w.addresses()).map(SocketAddr::port);
        (ports().min().unwrap_or(0), ports().max().unwrap_or(0))
    }

    /// Whether the media ports take TCP connections, too.
    pub fn serves_tcp(&self) -> bool {
        self.shared.workers.iter().all(|worker| worker.limits().tcp_connections > 0)
    }

    /// Begins to send packets through its own workers, once a second; on the tokio runtime of the caller.
    pub fn start_self_test(&self) {
        selftest::start(self);
    }

    /// Whether they come back.
    pub fn self_test(&self) -> &SelfTest {
        &self.shared.self_test
    }

    /// How long joins take.
    pub fn join_seconds(&self) -> &JoinSeconds {
        &self.shared.join_seconds
    }

    /// What DTLS has done.
    pub fn dtls_counters(&self) -> DtlsCounters {
        self.shared.dtls.counters()
    }

    /// What became of data messages.
    pub fn data_counters(&self) -> &Arc<DataCounters> {
        &self.shared.data
    }

    /// What crossed links to other nodes.
    pub fn relayed_bytes(&self) -> Arc<RelayedBytes> {
        Arc::clone(&self.shared.relayed)
    }

    /// Whether new clients are refused because the node ends.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    /// What strangers may measure.
    pub fn probe(&self) -> &Probe {
        &self.shared.probe
    }

    /// Limits probes to `rates` from now on, on every worker and reflector.
    pub async fn limit_probes(&self, rates: ProbeRates) {
        self.shared.probe.set_rates(rates);
        for worker in 0..self.shared.workers.len() {
            self.shared.command(worker, Command::ProbeRates(rates)).await;
        }
    }

    /// Each worker's addresses, as clients are told them.
    pub fn candidates(&self) -> &[Vec<SocketAddr>] {
        &self.shared.candidates
    }

    /// Refuses new clients from now on: `/ready` says so.
    pub fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(cluster) = self.shared.cluster.get() {
            cluster.tell_node();
        }
    }

    /// Ends every session, telling the clients, and completes the captures.
    pub async fn shutdown(&self) {
        self.stop_accepting();
        self.shared.kept.end_all();
        capture::stop_all(self).await;
        for room in self.shared.directory.rooms().await {
            // A room that has just ended needs no goodbye.
            let _ = room.send(RoomMessage::Close);
        }
        // What is not told in time is told by silence.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.shared.directory.emptied()).await;
        if let Some(cluster) = self.shared.cluster.get() {
            cluster.leave().await;
        }
    }
}

impl Shared {
    /// How much of what it can do this node does, in permille, and whether it lets its people go. A gray one can do nothing more: nodes
    /// of every release place nobody on one that is full.
    pub(crate) async fn load(&self) -> (u16, bool) {
        let load = if self.self_test.is_gray() { 1_000 } else { self.directory.load().await };
        (load, self.stopping.load(Ordering::Relaxed))
    }

    /// Has the room here, although nobody may be in it, for as long as what comes back lives.
    pub(crate) async fn hold_room(&self, session: &SessionId) -> Option<(WeakUnboundedSender<RoomMessage>, Slot)> {
        self.directory.hold(session).await.ok().map(|(room, slot)| (room.downgrade(), slot))
    }

    /// How long people of a node that is gone are kept.
    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// Does what another node's operator asks of a room.
    pub(crate) async fn obey(&self, order: Order) -> Outcome {
        let Some(room) = self.directory.find(&order.session).await else { return Outcome::UnknownParticipant };
        let deletes = order.action == Action::Delete;
        let session = order.session.clone();
        let mut outcome = Outcome::UnknownParticipant;
        for request in elsewhere::requests_of(order) {
            let (reply, answer) = oneshot::channel();
            let sent = room.send(RoomMessage::Ask { request: Request::Admin(request), reply });
            outcome = elsewhere::outcome_of(match sent {
                Ok(()) => answer.await.unwrap_or(Err(Refusal::UnknownParticipant)),
                Err(_) => Err(Refusal::UnknownParticipant),
            });
            if outcome != Outcome::Done {
                break;
            }
        }
        if deletes {
            self.kept.end(&session);
        }
        outcome
    }

    /// The node takes nobody new, and its people go.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The workers' clock.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Until when workers have looked at what came over links.
    pub(crate) fn listened_at(&self) -> Time {
        self.workers.iter().map(Worker::turned_at).max().unwrap_or(Time::ZERO)
    }

    /// When something of the node that has this number came over a link last.
    pub(crate) fn heard_at(&self, node: u8) -> Time {
        self.workers.iter().map(|worker| worker.heard_at(node)).max().unwrap_or(Time::ZERO)
    }

    /// Whether a worker has stood still, and waits to be let go on.
    pub(crate) fn is_held(&self) -> bool {
        self.workers.iter().any(Worker::is_held)
    }

    /// Nothing leaves any more.
    pub(crate) fn hold(&self) {
        self.workers.iter().for_each(Worker::hold);
    }

    /// Workers that have stood still go on.
    pub(crate) fn release(&self) {
        self.workers.iter().for_each(Worker::release);
    }

    /// How many workers there are.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Hands a command to a worker; waits while its queue is full, so that none is lost.
    pub(crate) async fn command(&self, worker: usize, mut command: Command) {
        while let Err(back) = self.workers[worker].send(command) {
            command = back;
            tokio::time::sleep(COMMAND_RETRY).await;
        }
    }
}

/// Ids are unique in the mesh: nodes begin at a place of their own, drawn at each start. Below 2^63, because they are session ids in SDP,
/// too, and Firefox takes none above.
fn draw_origin() -> u32 {
    let mut drawn = [0; 4];
    aws_lc_rs::rand::fill(&mut drawn).expect("the system gives random bytes");
    u32::from_ne_bytes(drawn) >> 1
}

/// What a worker may promise.
fn plan(limits: &WorkerLimits) -> Claim {
    Claim { transports: limits.transports as usize, tracks: limits.tracks as usize, subscriptions: limits.subscriptions as usize }
}

/// The cores that this process may use.
pub fn available_cores() -> Vec<usize> {
    pop_dataplane::available_cores()
}

/// What only this host can tell of a config: whether its cores exist, and whether there is a media port for each of them.
///
/// # Errors
///
/// A sentence that says what to change.
pub fn check_host(config: &Config) -> Result<(), String> {
    let cores = config.dataplane.cores.choose(&available_cores())?;
    config.media.check_ports(cores.len())
}

/// A panic in a task that owns state ends the process: the supervisor restarts it, and no half-dead node goes on.
pub(crate) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::exit(1);
        }
    }
}
