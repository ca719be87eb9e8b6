//! The bus: who is in which session and which nodes there are, told among the nodes of one PoP. The only door to zenoh.
//!
//! ```text
//! rooms --put, watch--> +---------+ --Send--> bus-out thread --put, query, declare--> zenoh
//!                       | Replica | <--beat, token, record, page---- zenoh's threads
//! rooms <--BusEvent---- +---------+ <--time---- bus-beat thread ------beat----------> zenoh
//! ```
//!
//! Everything that sends may wait for a slow peer, so it has a thread of its own; the beat has another one, so that a slow peer makes no
//! others believe that this node is dead. Nothing waits while it holds the replica.

mod counters;
mod lost;
mod machine;
mod record;
mod replica;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pop_dataplane::STOOD_STILL;
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId, fnv1a};
use pop_session::life::BEAT_INTERVAL;
use pop_session::presence::{LocalRecord, RemoteKey};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use zenoh::bytes::ZBytes;
use zenoh::liveliness::LivelinessToken;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::query::{ConsolidationMode, Query, QueryTarget};
use zenoh::sample::{Locality, Sample, SampleKind};
use zenoh::{Session, Wait};
use zeroize::Zeroizing;

pub use counters::{BusCounters, Ignored};
pub use machine::{Machine, Wire};
pub use record::{NodeRecord, RECORD_LEN_MAX, RecordError, SCHEMA, encode_participant};
pub use replica::{BusEvent, Gone};

use crate::config::Config;
use crate::mesh::MeshIdentity;
use crate::reload::{Applier, Prepared};
use lost::Lost;
use replica::{PageAsk, Replica, Send};

/// A peer whose packets stop is given up after this; its own says so to others, too.
const LEASE_MS: u64 = 400;

/// A connection that is not made within this is begun anew: it may have begun while the network was away.
const OPEN_TIMEOUT_MS: u64 = 600;
const ACCEPT_TIMEOUT_MS: u64 = 1_000;

/// A sender that waits for a peer gives it up after this, in microseconds; zenoh's lease comes first.
const WAIT_BEFORE_CLOSE_US: u64 = 500_000;

/// Batches of messages that wait for a peer, of a priority; the most that zenoh takes. Zenoh's thread says itself what its tables tell
/// (`ResponseFinal` of a question that is not for us, declarations), and waits for a batch that only it could free: with the two of
/// its default three small answers were enough for a bus that stood still for `WAIT_BEFORE_CLOSE_US`, and lost its connection.
const QUEUE: usize = 16;

/// Longest message that is taken: a page with its key.
const MESSAGE_LEN_MAX: usize = record::PAGE_LEN_MAX + 4_096;

/// Queries of others that wait to be answered.
const QUERIES_MAX: usize = 1_024;

/// The address of a session that has ended may be in use for a moment.
const ENTER_AGAIN: Duration = Duration::from_millis(25);

/// How long a node that leaves goes on telling what it has put.
pub const LEAVE_MAX: Duration = Duration::from_millis(500);

/// A query is given up after this.
const QUERY_TIMEOUT: Duration = Duration::from_millis(1_000);

/// What zenoh's own threads are: one, instead of six. It reads that from the environment, once.
///
/// With more it is unsound: zenoh-link-tls 1.10.2 reads and writes one TLS connection from two tasks through an `UnsafeCell`, and each step of
/// either changes what both use. On two threads a connection that failed under both at once ended the process in `alloc::handle_alloc_error`,
/// having cloned half of an error (2,199,727,050,928 bytes). On one thread a step of one is over before the other's begins.
pub const RUNTIME: &str =
    "(rx:(handover:app),acc:(handover:app),net:(handover:app),tx:(handover:app),app:(worker_threads:1,max_blocking_threads:4))";

/// Keeps zenoh to one thread. Comes before this process has any other thread; without it there are six, and TLS is not safe.
///
/// # Errors
///
/// There are other threads.
pub fn limit_threads() -> io::Result<()> {
    pop_uring::set_variable("ZENOH_RUNTIME", RUNTIME)
}

/// Where the bus is and who this node is on it.
#[derive(Clone, Debug)]
pub struct BusSettings {
    /// Name of the PoP.
    pub pop: String,
    /// Name of the node.
    pub name: String,
    /// Where others reach this node.
    pub listen: Vec<SocketAddr>,
    /// Where this node reaches others; those that are not there are tried again for ever.
    pub connect: Vec<SocketAddr>,
    /// CA whose certificates are let in, chain and private key, PEM; without them the bus is plain TCP.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
    /// Newest schema that is written.
    pub schema: u8,
}

impl BusSettings {
    /// From a node's config; `None`: it has no bus.
    pub fn of(config: &Config) -> Option<BusSettings> {
        config.bus.is_on().then(|| BusSettings {
            pop: config.node.pop.clone(),
            name: config.node.shown_name(),
            listen: config.bus.listen.clone(),
            connect: config.bus.connect.clone(),
            tls: files_of(config),
            schema: config.mesh.schema,
        })
    }

    fn zenoh_config(&self) -> Result<zenoh::Config, String> {
        let protocol = if self.tls.is_some() { "tls" } else { "tcp" };
        let endpoints =
            |addresses: &[SocketAddr]| -> Vec<String> { addresses.iter().map(|address| format!("{protocol}/{address}")).collect() };
        let retry = json!({ "period_init_ms": 50, "period_max_ms": 200, "period_increase_factor": 2 });
        let tls = self.tls.as_ref().map_or(json!({}), |(ca, cert, key)| {
            json!({
                "root_ca_certificate": ca,
                "listen_certificate": cert,
                "listen_private_key": key,
                "connect_certificate": cert,
                "connect_private_key": key,
                "enable_mtls": true,
                // Certificates name nodes, endpoints are addresses: the CA alone decides.
                "verify_name_on_connect": false,
                "close_link_on_expiration": true,
            })
        });
        let config = json!({
            "mode": "peer",
            "listen": { "endpoints": endpoints(&self.listen), "exit_on_failure": true, "timeout_ms": 0 },
            "connect": { "endpoints": endpoints(&self.connect), "exit_on_failure": false, "timeout_ms": -1, "retry": retry },
            "open": { "return_conditions": { "connect_scouted": false, "declares": false } },
            "scouting": { "multicast": { "enabled": false }, "gossip": { "enabled": false } },
            "timestamping": { "enabled": false },
            "queries_default_timeout": 1_000,
            "transport": {
                "unicast": {
                    "open_timeout": OPEN_TIMEOUT_MS,
                    "accept_timeout": ACCEPT_TIMEOUT_MS,
                    "max_sessions": crate::config::PEERS_MAX,
                },
                "link": {
                    "tx": {
                        "lease": LEASE_MS,
                        "keep_alive": 4,
                        "queue": {
                            "size": { "control": QUEUE, "interactive_high": QUEUE, "data_high": QUEUE },
                            "congestion_control": { "block": { "wait_before_close": WAIT_BEFORE_CLOSE_US } },
                        },
                    },
                    "rx": { "max_message_size": MESSAGE_LEN_MAX },
                    "tls": tls,
                },
                "shared_memory": { "enabled": false },
            },
            "adminspace": { "enabled": false },
        });
        zenoh::Config::from_json5(&config.to_string()).map_err(|error| format!("the bus cannot be set up: {error}"))
    }
}

/// Keys of one PoP.
#[derive(Clone, Debug)]
struct Keys {
    /// `pop/{pop}`
    root: String,
}

/// What a sample's key names.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Participant(SessionId, RemoteKey),
    Digest(SessionId, NodeId),
    Node(NodeId),
    Beat(NodeId),
    Live(NodeId, Incarnation),
}

/// Where sessions lie, about the root of how many a PoP may have.
const SHARDS: u64 = 64;

fn shard(session: &SessionId) -> String {
    format!("{:02x}", fnv1a(session.as_str().bytes()) % SHARDS)
}

impl Keys {
    /// Zenoh compares a key with all that lie beside it, for each put and each declaration: sessions lie in `SHARDS` places, not in one.
    fn session(&self, session: &SessionId) -> String {
        format!("{}/session/{}/{session}", self.root, shard(session))
    }

    fn participant(&self, session: &SessionId, node: NodeId, participant: ParticipantId) -> String {
        format!("{}/participant/{node}/{:016x}", self.session(session), participant.0)
    }

    /// Of all nodes and participants.
    fn participants(&self, session: &SessionId) -> String {
        format!("{}/participant/**", self.session(session))
    }

    fn digest(&self, session: &SessionId, node: NodeId) -> String {
        format!("{}/digest/{node}", self.session(session))
    }

    /// `kind` is `node` or `beat`.
    fn of_node(&self, kind: &str, node: NodeId) -> String {
        format!("{}/{kind}/{node}", self.root)
    }

    /// `kind` is `live`, or what is asked of one start of a node alone: `about` or `page`.
    fn of_start(&self, kind: &str, node: NodeId, incarnation: Incarnation) -> String {
        format!("{}/{kind}/{node}/{:016x}-{:016x}", self.root, incarnation.start, incarnation.nonce)
    }

    fn parse(&self, key: &str) -> Option<Key> {
        let rest = key.strip_prefix(&self.root)?.strip_prefix('/')?;
        let mut parts = rest.split('/');
        let mut part = || parts.next();
        let parsed = match part()? {
            "session" => {
                let (place, session) = (part()?, SessionId::new(part()?).ok()?);
                if place != shard(&session) {
                    return None;
                }
                match part()? {
                    "participant" => {
                        let node = hex(part()?)?;
                        Key::Participant(session, RemoteKey { node, participant: ParticipantId(hex(part()?)?) })
                    }
                    "digest" => Key::Digest(session, NodeId(hex(part()?)?)),
                    _ => return None,
                }
            }
            "node" => Key::Node(NodeId(hex(part()?)?)),
            "beat" => Key::Beat(NodeId(hex(part()?)?)),
            "live" => {
                let node = NodeId(hex(part()?)?);
                let (start, nonce) = part()?.split_once('-')?;
                Key::Live(node, Incarnation { start: hex(start)?, nonce: hex(nonce)? })
            }
            _ => return None,
        };
        part().is_none().then_some(parsed)
    }
}

/// 16 digits: one number has one text.
fn hex(text: &str) -> Option<u64> {
    (text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

#[derive(Debug)]
struct State {
    replica: Replica,
    queries: VecDeque<Query>,
    is_closed: bool,
    /// What was put before is sent first: until then.
    leaves_until: Option<Instant>,
    /// What the bus was entered with, or is to be.
    settings: BusSettings,
    /// It is to be entered anew with them.
    is_to_renew: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    to_send: Condvar,
    to_take: Notify,
    /// The session is closed.
    left: Notify,
    keys: Keys,
    node: NodeId,
    incarnation: Incarnation,
    counters: Arc<BusCounters>,
    /// Somebody calls [`Bus::go_on`].
    is_minded: AtomicBool,
    /// See [`Bus::is_hung`].
    is_hung: AtomicBool,
}

impl Shared {
    /// A panic while it is held ends the process (`panic.rs`), so its state is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the replica, and wakes whoever has something to do then.
    fn change<T>(&self, change: impl FnOnce(&mut Replica) -> T) -> T {
        let (result, has_event) = {
            let mut state = self.lock();
            let result = change(&mut state.replica);
            (result, state.replica.has_event())
        };
        self.to_send.notify_one();
        if has_event {
            self.to_take.notify_one();
        }
        result
    }

    fn enter_anew(&self, settings: BusSettings) {
        let mut state = self.lock();
        (state.settings, state.is_to_renew) = (settings, true);
        drop(state);
        self.to_send.notify_one();
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.to_send.notify_one();
        self.to_take.notify_one();
    }

    /// A message of another node, on a thread of zenoh's.
    fn handle_sample(&self, sample: &Sample) {
        let key = self.keys.parse(sample.key_expr().as_str());
        if sample.kind() != SampleKind::Put {
            // Nobody deletes: a participant that leaves has a record that says so.
            return self.counters.ignore(Ignored::Foreign);
        }
        if sample.payload().len() > RECORD_LEN_MAX {
            return self.counters.ignore(Ignored::TooLarge);
        }
        let bytes = sample.payload().to_bytes();
        let result = match key {
            Some(Key::Participant(session, key)) => {
                record::decode_participant(&bytes).map(|written| self.change(|replica| replica.handle_participant(&session, key, written)))
            }
            Some(Key::Digest(session, node)) => {
                record::decode_digest(&bytes).map(|digest| self.change(|replica| replica.handle_digest(&session, node, digest)))
            }
            Some(Key::Beat(node)) => {
                record::decode_beat(&bytes).map(|beat| self.change(|replica| replica.handle_beat(Instant::now(), node, beat)))
            }
            Some(Key::Node(node)) => self.handle_node(node, &bytes),
            Some(Key::Live(..)) | None => Err(RecordError::Malformed),
        };
        if let Err(error) = result {
            self.counters.ignore(error);
        }
    }

    fn handle_node(&self, node: NodeId, bytes: &[u8]) -> Result<(), RecordError> {
        let (record, counter) = record::decode_node(bytes)?;
        self.change(|replica| replica.handle_node(Instant::now(), node, record, counter));
        Ok(())
    }

    fn handle_token(&self, sample: &Sample) {
        match self.keys.parse(sample.key_expr().as_str()) {
            Some(Key::Live(node, incarnation)) => {
                let is_here = sample.kind() == SampleKind::Put;
                self.change(|replica| replica.handle_token(Instant::now(), node, incarnation, is_here));
            }
            _ => self.counters.ignore(Ignored::Malformed),
        }
    }

    fn handle_query(&self, query: Query) {
        let mut state = self.lock();
        if state.queries.len() < QUERIES_MAX {
            state.queries.push_back(query);
            drop(state);
            self.to_send.notify_one();
        } else {
            counters::count(&self.counters.queries_dropped);
        }
    }
}

/// This node on the bus. Clones are the same; with the last one it leaves.
#[derive(Clone, Debug)]
pub struct Bus {
    shared: Arc<Shared>,
    _leave: Arc<Leave>,
}

#[derive(Debug)]
struct Leave(Arc<Shared>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What others did, in its order.
#[derive(Debug)]
pub struct BusEvents(Arc<Shared>);

impl BusEvents {
    /// The next; waits for it. `None`: the bus was left.
    pub async fn recv(&mut self) -> Option<BusEvent> {
        loop {
            let changed = self.0.to_take.notified();
            {
                let mut state = self.0.lock();
                if let Some(event) = state.replica.poll_event() {
                    return Some(event);
                }
                if state.is_closed {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl Bus {
    /// Enters the bus as `node`. Others need not be there: they are found when they come.
    ///
    /// # Errors
    ///
    /// An address or a file that cannot be used, with what it is.
    pub async fn open(settings: &BusSettings, node: NodeId, incarnation: Incarnation) -> Result<(Bus, BusEvents), String> {
        let config = settings.zenoh_config()?;
        let session = zenoh::open(config).await.map_err(|error| format!("the bus cannot be opened ([bus], [mesh]): {error}"))?;
        let counters = Arc::new(BusCounters::default());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                replica: Replica::new(node, &settings.pop, incarnation, Arc::clone(&counters)).writing(settings.schema),
                queries: VecDeque::new(),
                is_closed: false,
                leaves_until: None,
                settings: settings.clone(),
                is_to_renew: false,
            }),
            left: Notify::new(),
            to_send: Condvar::new(),
            to_take: Notify::new(),
            keys: Keys { root: format!("pop/{}", settings.pop) },
            node,
            incarnation,
            counters,
            is_minded: AtomicBool::new(false),
            is_hung: AtomicBool::new(false),
        });
        declare(&session, &shared).await.map_err(|error| format!("the bus cannot be entered: {error}"))?;
        let start = |name: &str, run: Box<dyn FnOnce() + std::marker::Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| format!("no thread for the bus: {error}"))
        };
        // `bus-out` replaces it.
        let current = Arc::new(Mutex::new(session.clone()));
        let (of_beat, current_of_beat) = (Arc::clone(&shared), Arc::clone(&current));
        let beat = start("bus-beat", Box::new(move || beat_on(of_beat, current_of_beat)))?;
        let (of_out, runtime) = (Arc::clone(&shared), Handle::current());
        start("bus-out", Box::new(move || send_all(&of_out, session, &current, beat, &runtime)))?;
        tokio::spawn(mind_the_lost(Arc::downgrade(&shared)));
        let bus = Bus { _leave: Arc::new(Leave(Arc::clone(&shared))), shared: Arc::clone(&shared) };
        Ok((bus, BusEvents(shared)))
    }

    /// Tells others what is new of a participant of ours. Sent soon; of several changes the last may be the only one that is.
    ///
    /// # Errors
    ///
    /// Others would not accept it: nothing is told, and it is counted.
    pub fn put_participant(&self, session: &SessionId, record: &LocalRecord) -> Result<(), RecordError> {
        self.shared.change(|replica| replica.put_participant(Instant::now(), session, record))
    }

    /// Tells others what is new of this node. Its name and PoP must be those of its id ([`NodeId::of`]).
    pub fn put_node(&self, record: NodeRecord) {
        self.shared.change(|replica| replica.put_node(record));
    }

    /// From now on participants of others in `session` are told: first those that are there.
    pub fn watch(&self, session: &SessionId) {
        self.shared.change(|replica| replica.watch(session));
    }

    /// No longer.
    pub fn unwatch(&self, session: &SessionId) {
        self.shared.change(|replica| replica.unwatch(session));
    }

    /// Participants of `node` are told once more, as it says now.
    pub fn tell_again(&self, node: NodeId) {
        self.shared.change(|replica| replica.tell_again(node));
    }

    /// A participant of ours has another owner, who tells of it.
    pub fn withdraw(&self, session: &SessionId, participant: ParticipantId) {
        self.shared.change(|replica| replica.withdraw_participant(Instant::now(), session, participant));
    }

    /// Leaves the bus when what was put before has been sent, or [`LEAVE_MAX`] is over; returns then.
    pub async fn leave(&self) {
        let left = self.shared.left.notified();
        {
            let mut state = self.shared.lock();
            if state.is_closed {
                return;
            }
            state.leaves_until.get_or_insert(Instant::now() + LEAVE_MAX);
        }
        self.shared.to_send.notify_one();
        left.await;
    }

    /// How long ago the last beat came of a node that is up on the bus; `None`: none has.
    pub fn silence(&self, node: NodeId) -> Option<Duration> {
        self.shared.lock().replica.beat_at(node).map(|at| at.elapsed())
    }

    /// Whether it found that this process stood still for [`STOOD_STILL`] or more. Since then it does not say that this node lives,
    /// until [`Self::go_on`]; this is looked for from the first call on.
    pub fn is_hung(&self) -> bool {
        self.shared.is_minded.store(true, Ordering::Relaxed);
        self.shared.is_hung.load(Ordering::Relaxed)
    }

    /// It lives, and others are told so.
    pub fn go_on(&self) {
        self.shared.is_hung.store(false, Ordering::Relaxed);
    }

    /// Leaves the bus and enters it with other settings, soon; what is put meanwhile is told then.
    pub fn enter_anew(&self, settings: BusSettings) {
        self.shared.enter_anew(settings);
    }

    /// Takes other files for `settings` when they change.
    pub(crate) fn applier(&self, settings: &BusSettings) -> BusApplier {
        let files = settings.tls.as_ref().and_then(|files| read_files(files).ok());
        BusApplier { shared: Arc::clone(&self.shared), settings: settings.clone(), files: Arc::new(Mutex::new(files)) }
    }

    /// For the metrics.
    pub fn counters(&self) -> Arc<BusCounters> {
        Arc::clone(&self.shared.counters)
    }
}

fn files_of(config: &Config) -> Option<(PathBuf, PathBuf, PathBuf)> {
    config.mesh.files().map(|(ca, cert, key)| (config.bus.ca.as_ref().unwrap_or(ca).clone(), cert.clone(), key.clone()))
}

/// `bus.ca` or `mesh.ca`, `mesh.cert` and `mesh.key`, as the bus uses them. Zenoh reads them once, for all who come to it: so the bus is left and entered
/// anew, which takes a moment in which this node is not on it, and nobody takes it for dead.
pub(crate) struct BusApplier {
    shared: Arc<Shared>,
    settings: BusSettings,
    /// What they held when the bus was entered last.
    files: Arc<Mutex<Option<Files>>>,
}

/// CA, chain and key, PEM.
type Files = [Zeroizing<Vec<u8>>; 3];

fn read_files((ca, cert, key): &(PathBuf, PathBuf, PathBuf)) -> Result<Files, String> {
    let read = |path: &PathBuf| std::fs::read(path).map(Zeroizing::new).map_err(|error| format!("{}: {error}", path.display()));
    Ok([read(ca)?, read(cert)?, read(key)?])
}

#[async_trait]
impl Applier for BusApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["bus.ca", "mesh.ca", "mesh.cert", "mesh.key"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        MeshIdentity::of(new).map_err(|error| format!("{error}; the old certificate stays"))?;
        let tls = files_of(new);
        if tls.is_some() != self.settings.tls.is_some() {
            return Err("mesh.ca, mesh.cert and mesh.key cannot come or go while the bus is open: restart the node".to_owned());
        }
        let Some(paths) = tls else { return Ok(Prepared::new(Vec::new(), async {})) };
        let read = read_files(&paths)?;
        if lock(&self.files).as_ref() == Some(&read) {
            return Ok(Prepared::new(Vec::new(), async {}));
        }
        let settings = BusSettings { tls: Some(paths), ..self.settings.clone() };
        let (shared, files) = (Arc::clone(&self.shared), Arc::clone(&self.files));
        Ok(Prepared::new(vec!["the bus is entered anew with this certificate".to_owned()], async move {
            *lock(&files) = Some(read);
            shared.enter_anew(settings);
        }))
    }
}

/// A panic while it is held ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is heard for the life of the session.
async fn declare(session: &Session, shared: &Arc<Shared>) -> zenoh::Result<()> {
    let keys = &shared.keys;
    for kind in ["node", "beat", "session/*/*/digest"] {
        let handler = Arc::clone(shared);
        let key = format!("{}/{kind}/*", keys.root);
        let declared = session.declare_subscriber(key).allowed_origin(Locality::Remote);
        declared.callback(move |sample| handler.handle_sample(&sample)).background().await?;
    }
    for kind in ["about", "page"] {
        let handler = Arc::clone(shared);
        let key = keys.of_start(kind, shared.node, shared.incarnation);
        let declared = session.declare_queryable(key).allowed_origin(Locality::Remote);
        declared.callback(move |query| handler.handle_query(query)).background().await?;
    }
    let handler = Arc::clone(shared);
    let declared = session.liveliness().declare_subscriber(format!("{}/live/*/*", keys.root)).history(true);
    declared.callback(move |sample| handler.handle_token(&sample)).background().await?;
    Ok(())
}

/// What `bus-out` declares of this node, until dropped.
#[derive(Default)]
struct Declared {
    _token: Option<LivelinessToken>,
    subscribers: Subscribers,
}

impl Declared {
    fn of(shared: &Shared, session: &Session) -> Declared {
        let token = session.liveliness().declare_token(shared.keys.of_start("live", shared.node, shared.incarnation)).wait();
        if let Err(error) = &token {
            tracing::error!(%error, "the bus: no liveliness token; others see the end of this node later");
        }
        Declared { _token: token.ok(), subscribers: HashMap::new() }
    }
}

/// How many other nodes of `bus.connect` take connections.
pub(crate) async fn there_are(settings: &BusSettings) -> usize {
    lost::there_are(&lost::others(&settings.connect, &settings.listen)).await
}

/// Enters the bus anew while somebody takes connections and is not on it ([`lost`]).
async fn mind_the_lost(shared: Weak<Shared>) {
    let mut lost = Lost::default();
    loop {
        tokio::time::sleep(lost::LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let (settings, is_closed) = {
            let state = shared.lock();
            (state.settings.clone(), state.is_closed)
        };
        if is_closed {
            return;
        }
        let known = || shared.counters.nodes() as usize;
        let others = lost::others(&settings.connect, &settings.listen);
        let is_missing = known() < others.len() && {
            let there = lost::there_are(&others).await;
            known() < there
        };
        if lost.look(tokio::time::Instant::now(), is_missing) {
            tracing::warn!("somebody of bus.connect takes connections and is not on the bus: it is entered anew");
            counters::count(&shared.counters.entered_anew);
            shared.enter_anew(settings);
        }
    }
}

/// The thread `bus-out`. It is the last of the two: who waits for it may end the process, in which zenoh must not be called any more.
fn send_all(shared: &Arc<Shared>, mut session: Session, current: &Mutex<Session>, beat: JoinHandle<()>, runtime: &Handle) {
    let mut declared = Declared::of(shared, &session);
    loop {
        let (query, send, renewal) = {
            let mut state = shared.lock();
            loop {
                let is_late = state.leaves_until.is_some_and(|until| until <= Instant::now());
                if state.is_closed || is_late || state.leaves_until.is_some() && !state.replica.has_put() {
                    drop(state);
                    shared.close();
                    // Undeclares everything: others see the token go.
                    if let Err(error) = session.close().wait() {
                        tracing::debug!(%error, "the bus was left without a word");
                    }
                    let _ = beat.join();
                    drop((declared, session));
                    shared.left.notify_waiters();
                    return;
                }
                if std::mem::take(&mut state.is_to_renew) {
                    break (None, None, Some(state.settings.clone()));
                }
                let query = state.queries.pop_front().map(|query| {
                    let answer = answer(shared, &state.replica, &query);
                    (query, answer)
                });
                let send = state.replica.poll_send(Instant::now());
                if query.is_some() || send.is_some() {
                    break (query, send, None);
                }
                state = shared.to_send.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        if let Some(settings) = renewal {
            declared = Declared::default();
            if let Some(entered) = reopen(shared, &session, settings, runtime) {
                session = entered;
                *lock(current) = session.clone();
                declared = Declared::of(shared, &session);
            }
        }
        if let Some((query, Some(answer))) = query {
            let key = query.key_expr().clone();
            log_failure("answer", query.reply(key, answer).wait());
        }
        if let Some(send) = send {
            log_failure("send", perform(shared, &session, &mut declared.subscribers, send));
        }
    }
}

/// Leaves the bus and enters it with other settings; `None`: the node leaves it for good meanwhile. Others have this node away from it until
/// then, and read anew what it has when it is back.
fn reopen(shared: &Arc<Shared>, session: &Session, mut settings: BusSettings, runtime: &Handle) -> Option<Session> {
    if let Err(error) = session.close().wait() {
        tracing::debug!(%error, "the bus was left without a word");
    }
    let mut is_told = false;
    loop {
        let entered = settings.zenoh_config().and_then(|config| {
            runtime
                .block_on(async {
                    let session = zenoh::open(config).await?;
                    declare(&session, shared).await?;
                    Ok(session)
                })
                .map_err(|error: zenoh::Error| error.to_string())
        });
        let mut state = shared.lock();
        match entered {
            Ok(session) => {
                // Of the old session.
                state.queries.clear();
                state.replica.handle_reopened();
                drop(state);
                tracing::info!("the bus was entered anew");
                return Some(session);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(%error, "the bus cannot be entered anew; this node is not on it, and tries on");
                }
                if state.is_closed || state.leaves_until.is_some() {
                    return None;
                }
                // The files of a later reload may be the ones that do.
                state.is_to_renew = false;
                settings = state.settings.clone();
            }
        }
        drop(state);
        thread::sleep(ENTER_AGAIN);
    }
}

fn log_failure(what: &str, result: zenoh::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, what, "the bus refused");
    }
}

/// What `query` asks for; `None`: nothing that there is.
fn answer(shared: &Shared, replica: &Replica, query: &Query) -> Option<Vec<u8>> {
    if query.key_expr().as_str() == shared.keys.of_start("about", shared.node, shared.incarnation) {
        return replica.answer_node();
    }
    let asked = query.payload().map(ZBytes::to_bytes).unwrap_or_default();
    match record::decode_ask(&asked) {
        Ok((session, from)) => Some(replica.answer(&session, from)),
        Err(error) => {
            shared.counters.ignore(error);
            None
        }
    }
}

type Subscribers = HashMap<SessionId, zenoh::pubsub::Subscriber<()>>;

fn perform(shared: &Arc<Shared>, session: &Session, subscribers: &mut Subscribers, send: Send) -> zenoh::Result<()> {
    let keys = &shared.keys;
    let put = |key: String, bytes: ZBytes| {
        // Waits for a peer that is slow, not for one that is gone. Urgent, but behind the beats.
        let put = session.put(key, bytes).congestion_control(CongestionControl::Block).priority(Priority::InteractiveHigh);
        put.express(true).allowed_destination(Locality::Remote).wait()
    };
    match send {
        Send::Participant(of, participant, bytes) => put(keys.participant(&of, shared.node, participant), bytes.to_vec().into()),
        Send::Node(bytes) => put(keys.of_node("node", shared.node), bytes.into()),
        Send::Digest(of, bytes) => put(keys.digest(&of, shared.node), bytes.into()),
        Send::Watch(of, true) => {
            let handler = Arc::clone(shared);
            let declared = session.declare_subscriber(keys.participants(&of)).allowed_origin(Locality::Remote);
            let subscriber = declared.callback(move |sample| handler.handle_sample(&sample)).wait()?;
            subscribers.insert(of, subscriber);
            Ok(())
        }
        // Dropping one undeclares it.
        Send::Watch(of, false) => {
            subscribers.remove(&of);
            Ok(())
        }
        Send::AskNode(node, incarnation) => {
            let handler = Arc::clone(shared);
            ask(session, keys.of_start("about", node, incarnation), Vec::new(), move |bytes| {
                if let Some(Err(error)) = bytes.map(|bytes| handler.handle_node(node, bytes)) {
                    handler.counters.ignore(error);
                }
            })
        }
        Send::AskPage(page_ask) => {
            let (handler, bytes) = (Arc::clone(shared), record::encode_ask(&page_ask.session, page_ask.from));
            let key = keys.of_start("page", page_ask.node, page_ask.incarnation);
            ask(session, key, bytes, move |bytes| handler.handle_answer(&page_ask, bytes))
        }
    }
}

impl Shared {
    fn handle_answer(&self, ask: &PageAsk, bytes: Option<&[u8]>) {
        let page = bytes.and_then(|bytes| record::decode_page(bytes).map_err(|error| self.counters.ignore(error)).ok());
        self.change(|replica| replica.handle_page(Instant::now(), ask, page));
    }
}

/// Asks one node; `then` gets the first answer, or hears once that none came.
fn ask(
    session: &Session,
    key: String,
    payload: Vec<u8>,
    then: impl Fn(Option<&[u8]>) + std::marker::Send + Sync + 'static,
) -> zenoh::Result<()> {
    struct Asked<F: Fn(Option<&[u8]>)> {
        then: F,
        is_answered: AtomicBool,
    }
    impl<F: Fn(Option<&[u8]>)> Asked<F> {
        fn finish(&self, bytes: Option<&[u8]>) {
            if !self.is_answered.swap(true, Ordering::Relaxed) {
                (self.then)(bytes);
            }
        }
    }
    impl<F: Fn(Option<&[u8]>)> Drop for Asked<F> {
        fn drop(&mut self) {
            self.finish(None);
        }
    }
    let asked = Asked { then, is_answered: false.into() };
    let get = session.get(key).target(QueryTarget::All).consolidation(ConsolidationMode::None).timeout(QUERY_TIMEOUT);
    // Another priority than that of what `bus-out` puts, and many to a batch: the other end's thread may have to answer by itself (`QUEUE`).
    let get = get.congestion_control(CongestionControl::Block).priority(Priority::DataHigh).express(false);
    get.allowed_destination(Locality::Remote)
        .payload(payload)
        .callback(move |reply| {
            if let Ok(sample) = reply.result()
                && sample.payload().len() <= record::PAGE_LEN_MAX
            {
                asked.finish(Some(&sample.payload().to_bytes()));
            }
        })
        .wait()
}

/// The thread `bus-beat`: the clock of the replica, and the sign of life for others.
fn beat_on(shared: Arc<Shared>, current: Arc<Mutex<Session>>) {
    let key = shared.keys.of_node("beat", shared.node);
    let (mut tick_at, mut beat_at) = (Instant::now(), Instant::now());
    loop {
        let before = Instant::now();
        tick_at = (tick_at + replica::TICK).max(before);
        thread::sleep(tick_at.saturating_duration_since(before));
        if shared.lock().is_closed {
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(before) >= STOOD_STILL && shared.is_minded.load(Ordering::Relaxed) {
            shared.is_hung.store(true, Ordering::Relaxed);
        }
        shared.change(|replica| replica.handle_timeout(now));
        if now >= beat_at && !shared.is_hung.load(Ordering::Relaxed) {
            beat_at = now + BEAT_INTERVAL - replica::TICK / 2;
            let bytes = shared.lock().replica.beat();
            let session = lock(&current).clone();
            // Rather none than one that waits.
            let put = session.put(&key, bytes).congestion_control(CongestionControl::Drop).priority(Priority::RealTime);
            log_failure("beat", put.express(true).allowed_destination(Locality::Remote).wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys { root: "pop/fra".to_owned() };
        let session = SessionId::new("@a room, 100 %").unwrap();
        let (node, incarnation) = (NodeId(0xab), Incarnation { start: 7, nonce: u64::MAX });
        let participant = keys.participant(&session, node, ParticipantId(5));
        assert_eq!(participant, "pop/fra/session/1f/@a room, 100 %/participant/00000000000000ab/0000000000000005");
        let key = RemoteKey { node: 0xab, participant: ParticipantId(5) };
        assert_eq!(keys.parse(&participant), Some(Key::Participant(session.clone(), key)));
        assert_eq!(keys.parse(&keys.digest(&session, node)), Some(Key::Digest(session, node)));
        assert_eq!(keys.parse(&keys.of_node("node", node)), Some(Key::Node(node)));
        assert_eq!(keys.parse(&keys.of_node("beat", node)), Some(Key::Beat(node)));
        assert_eq!(keys.parse(&keys.of_start("live", node, incarnation)), Some(Key::Live(node, incarnation)));
        let elsewhere = participant.replace("/1f/", "/20/");
        for bad in [
            "pop/ber/node/00000000000000ab",
            "pop/fra/node/ab",
            "pop/fra/node/00000000000000AB",
            "pop/fra/node/00000000000000ab/x",
            &elsewhere,
        ] {
            assert_eq!(keys.parse(bad), None, "{bad}");
        }
    }
}
