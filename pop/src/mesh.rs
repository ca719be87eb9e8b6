//! Control links to other nodes: who they are, what they say, and the secrets of the datagrams between workers (DESIGN 8).
//!
//! ```text
//! mesh.peers, Mesh::dial -> dial --+-> TLS 1.3, both certificates of mesh.ca -> Hello both ways -> register -> MeshEvent::LinkUp
//! mesh.listen -----------> accept -+          |                                     |                 |
//!                                             +-- refused: counted, audited --------+                 v
//! Mesh::send, send_data -> a queue each (1 MiB, 2 s) -> write -> u32 length, Control -> read -> MeshEvent::{Message, Data, Rekeyed}, at the end LinkDown
//! ```
//! A node is what its certificate names. Of two connections of a pair the one stays that the node with the lower id made; a newer start
//! of a node takes the place of the older at once. Who makes a connection speaks first and the other answers, so that the one that is
//! up on both sides is the same. A link with a node of another PoP outlives its connection ([`resume`]), which may go over a third node
//! ([`transit`]). Requests of clients that another node has go there over connections of their own ([`carry`]). Events of one link come in order, and none after its `LinkDown`.

mod accept;
mod carry;
mod counters;
mod dial;
mod flow;
mod frames;
mod grants;
mod identity;
mod link;
mod name;
mod resume;
mod revoked;
mod transit;
mod tries;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use pop_dataplane::STOOD_STILL;
use pop_proto::control::{LinkKeys, LinkStats};
use pop_relay::control::{self, Data, Hello, Message};
use pop_schemas::{Incarnation, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::config::{Config, PEERS_MAX};
use crate::logging::AUDIT;
use crate::reload::{Applier, Prepared};
use crate::{serve, state};
use counters::Counters;
use link::{Connection, Inbox, Link};
use revoked::{CertificateId, Revoked};

pub use carry::{Answering, CARRIED_MAX, Carried, CarryError, Elsewhere};
pub use counters::{MeshCounters, Refusal, Transit, Unheard};
pub use grants::{GRANTS_MAX, Grants};
pub use identity::{MeshFiles, MeshIdentity};
pub use link::{DataRefused, Ended};
pub(crate) use link::{Outgoing, Said};
pub use name::NodeName;
pub use revoked::{CRL_LEN_MAX, Listed};
pub use transit::{TRANSITS_MAX, TRANSITS_PER_ASKER_MAX};

/// How long a connection may take to prove whose it is: TLS and both Hellos.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Label of the TLS exporter that gives the datagrams their secret.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-pop-relay";

/// Events that wait for the node. When they are so many, links are read no further.
const EVENTS_MAX: usize = 1_024;

/// See [`keep_ticking`].
const TICK: Duration = Duration::from_millis(25);

/// Bytes of a link that wait in the kernel until they can be sent.
const UNSENT_LEN_MAX: u32 = 64 << 10;

/// What a mesh starts with.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// Where links are taken.
    pub listen: SocketAddr,
    /// Who this node is, and whom it believes.
    pub identity: MeshIdentity,
    /// Which start of it this is.
    pub incarnation: Incarnation,
    /// Relay address of each worker.
    pub workers: Vec<SocketAddr>,
    /// Nodes that are dialled from the start on.
    pub peers: Vec<SocketAddr>,
    /// How late a frame may be before nobody wants it.
    pub playout: Duration,
    /// Newest schema that is spoken.
    pub schema: u8,
    /// The operator's list of certificates that were taken back.
    pub revoked: Option<PathBuf>,
    /// Where the newest lists are kept, those that others tell of, too.
    pub kept: Option<PathBuf>,
}

impl MeshSettings {
    /// Those of `[mesh]` and `[node]`; `None` for a node without `mesh.listen`.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub fn of(config: &Config, incarnation: Incarnation, workers: Vec<SocketAddr>) -> Result<Option<MeshSettings>, String> {
        let Some(listen) = config.mesh.listen else { return Ok(None) };
        let identity = MeshIdentity::of(config)?.ok_or("mesh.listen needs mesh.ca, mesh.cert and mesh.key, which `pop ca` makes")?;
        let (peers, playout, schema) = (config.mesh.peers.clone(), config.mesh.playout, config.mesh.schema);
        let (revoked, kept) = (config.mesh.revoked.clone(), state::folder(&config.node).map(|folder| folder.join("revoked.pem")));
        Ok(Some(MeshSettings { listen, identity, incarnation, workers, peers, playout, schema, revoked, kept }))
    }
}

/// The other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number in the whole mesh.
    pub node: NodeId,
    /// Its name, and its PoP's, as its certificate says.
    pub name: String,
    /// Its PoP.
    pub pop: String,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// What this node calls it, 1 to 255: the high byte of the heads of its datagrams. The same as long as this node runs, unless more
    /// nodes come and go than there are numbers.
    pub number: u8,
    /// What it calls this node: the high byte of the heads of our datagrams.
    pub their_number: u8,
    /// Schema that both speak.
    pub version: u8,
    /// Relay address of each of its workers.
    pub workers: Vec<SocketAddr>,
    /// The other end of the connection.
    pub address: SocketAddr,
    /// How late a frame may be there before nobody wants it.
    pub playout: Duration,
    /// Which API keys the certificate that it showed on this connection lets its PoP use.
    pub grants: Grants,
}

/// What both ends of a link know and nobody else.
#[derive(Clone)]
pub struct LinkSecret {
    secret: Zeroizing<[u8; 32]>,
    local: NodeId,
    remote: NodeId,
}

impl LinkSecret {
    fn bytes(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Keys between a worker of this node and one of the other.
    pub fn keys(&self, generation: u32, local_worker: u8, remote_worker: u8) -> LinkKeys {
        let (local, remote) = ((self.local, local_worker), (self.remote, remote_worker));
        LinkKeys {
            send: pop_relay::keys::derive(&self.secret, generation, local, remote),
            receive: pop_relay::keys::derive(&self.secret, generation, remote, local),
        }
    }
}

impl fmt::Debug for LinkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSecret")
    }
}

/// What the mesh tells the node.
#[derive(Debug)]
pub enum MeshEvent {
    /// A node can be spoken with. Its keys begin with generation 0.
    LinkUp {
        /// Who.
        peer: Box<Peer>,
        /// For the keys of the datagrams.
        secret: LinkSecret,
    },
    /// It cannot any longer. Another `LinkUp` may follow at once, of another start or of the other connection of the pair.
    LinkDown {
        /// Who.
        node: NodeId,
        /// Why.
        why: Ended,
    },
    /// Both ends step to these keys; the former still open for a while.
    Rekeyed {
        /// With whom.
        node: NodeId,
        /// Of [`LinkSecret::keys`].
        generation: u32,
    },
    /// It says something.
    Message {
        /// Who.
        node: NodeId,
        /// Never a Hello, a Rekey, an Alive or Data.
        message: Message,
    },
    /// One of its participants says something.
    Data {
        /// Who.
        node: NodeId,
        /// What.
        data: Box<Data>,
        /// Held until a room has taken it: of a peer whose messages wait for too long no more are read.
        place: OwnedSemaphorePermit,
    },
}

/// A link that is up, for who looks at the node.
#[derive(Clone, Debug)]
pub struct LinkState {
    /// The other end.
    pub peer: Peer,
    /// This node made the connection.
    pub dialled: bool,
    /// The name of the node, and of its PoP, that its control connection goes over; `None`: it is direct.
    pub over: Option<(String, String)>,
    /// There is a control connection now.
    pub is_connected: bool,
    /// Of the keys in use.
    pub generation: u32,
    /// How long it has been up.
    pub age: Duration,
    /// What the workers have done on it, together, as of the last second.
    pub figures: LinkStats,
}

/// The links of this node. Cheap to clone; with the last clone all links end.
#[derive(Clone)]
pub struct Mesh(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.tasks().abort_all();
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mesh({} at {})", self.0.shared.name, self.0.address)
    }
}

impl Mesh {
    /// Listens and dials. Within a tokio runtime.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub async fn start(settings: MeshSettings) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), String> {
        let MeshSettings { listen, identity, incarnation, workers, peers, playout, schema, revoked, kept } = settings;
        let of_file = revoked.map(|file| revoked::read("mesh.revoked", &file)).transpose()?.unwrap_or_default();
        let listener = serve::bind("mesh.listen", listen).await?;
        let address = listener.local_addr().unwrap_or(listen);
        if let Some(warning) = identity.warning() {
            tracing::warn!("{warning}");
        }
        pop_relay::link::make_parity_tables();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared {
            node: identity.name().id(),
            name: identity.name().clone(),
            incarnation,
            workers,
            playout,
            schema,
            started: Instant::now(),
            ticked_us: AtomicU64::new(0),
            is_hung: AtomicBool::new(false),
            identity: RwLock::new(identity),
            events,
            table: Mutex::default(),
            changed: watch::Sender::new(()),
            listed: watch::Sender::new(()),
            counters: Counters::default(),
            tasks: Mutex::default(),
            answers: Mutex::default(),
            transits: transit::Places::default(),
            turns: transit::Turns::default(),
            revoked: Mutex::default(),
            kept: Mutex::new(kept),
        });
        shared.take_kept();
        for list in of_file {
            shared.take_operators(&list)?;
        }
        tracing::info!(name = %shared.name, %address, certificate_days = shared.identity().days_left(), api_keys = %shared.identity().grants(), "links to other nodes are taken");
        shared.spawn(accept::accept(Arc::clone(&shared), listener));
        shared.spawn(keep_ticking(Arc::clone(&shared)));
        for peer in peers.into_iter().take(PEERS_MAX).filter(|peer| *peer != address) {
            shared.spawn(dial::keep_linked(Arc::clone(&shared), peer, None));
        }
        Ok((Mesh(Arc::new(Handle { shared, address })), receiver))
    }

    /// Where links are taken.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Who this node is.
    pub fn name(&self) -> &NodeName {
        &self.0.shared.name
    }

    /// Which API keys this node's own certificate lets its PoP use, as of now.
    pub fn grants(&self) -> Grants {
        self.0.shared.identity().grants().clone()
    }

    /// Keeps a link with this node when it is ours to dial: in a PoP, whose bus tells both of each other, the node with the lower id does, and
    /// one of another PoP is dialled by whoever hears of it. Said again with another address, it goes there.
    pub fn dial(&self, node: NodeId, pop: &str, name: &str, address: SocketAddr) {
        let shared = &self.0.shared;
        let name = match NodeName::new(name, pop) {
            Ok(name) if name.id() == node => name,
            Ok(_) => return tracing::warn!(%node, name, pop, "a node's id is not that of its name: it gets no link"),
            Err(error) => return tracing::warn!(%node, "a node gets no link: {error}"),
        };
        if shared.node == node || shared.node > node && pop == shared.name.pop() {
            return;
        }
        let mut table = shared.table();
        if table.dialers.get(&node).is_some_and(|dialer| dialer.address == address) {
            return;
        }
        if let Some(former) = table.dialers.remove(&node) {
            former.task.abort();
        }
        if table.dialers.len() >= PEERS_MAX {
            return tracing::warn!(%name, "a node gets no link: there are {PEERS_MAX} others");
        }
        let task = shared.spawn(dial::keep_linked(Arc::clone(shared), address, Some(name)));
        table.dialers.insert(node, Dialer { address, task });
    }

    /// Where nodes take links, as far as they have said so: what is there proves itself.
    pub fn locate(&self, nodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        let mut table = self.0.shared.table();
        for (node, address) in nodes {
            if table.links.contains_key(&node) {
                table.located.insert(node, address);
            }
        }
    }

    /// PoPs to whose nodes this one has no direct way, or may have none in a moment: [`Self::note_thirds`] is to tell of them.
    pub fn sought(&self) -> HashSet<String> {
        let table = self.0.shared.table();
        let links = table.links.values().filter(|link| link.may_need_another()).map(|link| link.peer.pop.clone());
        links.chain(table.unreached.values().map(|name| name.pop().to_owned())).collect()
    }

    /// Which nodes may have a way to those of each PoP, the best first.
    pub fn note_thirds(&self, thirds: HashMap<String, Vec<NodeId>>) {
        self.0.shared.table().thirds = thirds;
    }

    /// Dials this node no longer, and ends its link.
    pub fn forget(&self, node: NodeId) {
        let mut table = self.0.shared.table();
        table.ways.remove(&node);
        table.located.remove(&node);
        table.unreached.remove(&node);
        // Should it be back, it begins as one that lives.
        table.dead.remove(&node);
        if let Some(dialer) = table.dialers.remove(&node) {
            dialer.task.abort();
        }
        if let Some(link) = table.links.get(&node) {
            link.end(Ended::Forgotten);
        }
    }

    /// Ends a node's link and lets it be made anew, from generation 0 on.
    pub fn renew(&self, node: NodeId) {
        if let Some(link) = self.0.shared.table().links.get(&node) {
            link.end(Ended::Renewed);
        }
    }

    /// Which start of this very node is at `address`, when somebody there proves by the node's certificate that it is this node. It may
    /// be this process.
    pub async fn own_start_at(&self, address: SocketAddr) -> Option<Incarnation> {
        dial::own_start_at(&self.0.shared, address).await
    }

    /// Says something to a node. `false`: it has no link, or is too far behind, which ends the link; when it is up again the node has
    /// to be told everything anew.
    pub fn send(&self, node: NodeId, message: &Message) -> bool {
        self.0.shared.table().links.get(&node).is_some_and(|link| link.send(message))
    }

    /// Whether what can wait elsewhere may be said to a node now: little waits before it. `true` where there is no link, and it goes nowhere.
    pub fn has_room(&self, node: NodeId) -> bool {
        self.0.shared.table().links.get(&node).is_none_or(|link| link.has_room())
    }

    /// Sends a data message behind those before it, with a bound of its own: a node that is too slow for data keeps its link.
    ///
    /// # Errors
    ///
    /// See [`DataRefused`]: what becomes of the message.
    pub(crate) fn send_data(&self, node: NodeId, outgoing: Outgoing) -> Result<(), DataRefused> {
        self.0.shared.table().links.get(&node).ok_or(DataRefused::Down)?.send_data(outgoing)
    }

    /// How long ago a node's link brought a sign of life; `None`: there is no link, or it has brought none.
    pub fn silence(&self, node: NodeId) -> Option<Duration> {
        self.0.shared.table().links.get(&node)?.silence()
    }

    /// Holds a start of a node for dead, or no longer any of it: the node is told so.
    pub fn hold_dead(&self, node: NodeId, start: Option<Incarnation>) {
        let mut table = self.0.shared.table();
        match start {
            Some(start) => drop(table.dead.insert(node, start)),
            None => drop(table.dead.remove(&node)),
        }
    }

    /// Whether it found that this process stood still for [`STOOD_STILL`] or more. Since then it does not say that this node lives,
    /// until [`Self::go_on`].
    pub fn is_hung(&self) -> bool {
        self.0.shared.is_hung()
    }

    /// It lives, and others are told so.
    pub fn go_on(&self) {
        self.0.shared.is_hung.store(false, Ordering::Relaxed);
    }

    /// Asks all others whether they hold this node for dead. Returns what [`Self::verdicts`] is to be called with.
    pub fn ask_verdicts(&self) -> u64 {
        let shared = &self.0.shared;
        shared.is_hung.store(true, Ordering::Relaxed);
        let links: Vec<_> = shared.table().links.values().cloned().collect();
        let since_us = shared.now_us();
        links.iter().for_each(|link| link.tell_alive());
        since_us
    }

    /// Who has answered that question, and what.
    pub(crate) fn verdicts(&self, since_us: u64) -> Vec<(NodeId, Said)> {
        let table = self.0.shared.table();
        table.links.iter().filter_map(|(node, link)| Some((*node, link.verdict(since_us)?))).collect()
    }

    /// Counts something that came over a link and is not heard.
    pub(crate) fn ignore(&self, why: Unheard) {
        self.0.shared.counters.ignore(why);
    }

    /// Steps to the next generation of keys: they are used up. `false`: there is no link.
    pub fn rekey(&self, node: NodeId) -> bool {
        self.0.shared.table().links.get(&node).is_some_and(|link| link.rekey())
    }

    /// Takes what the workers have done on a node's link, together.
    pub fn note_figures(&self, node: NodeId, figures: LinkStats) {
        if let Some(link) = self.0.shared.table().links.get(&node) {
            link.note_figures(figures);
        }
    }

    /// The links that are up, by the id of the other node.
    pub fn links(&self) -> Vec<LinkState> {
        let table = self.0.shared.table();
        let mut links: Vec<_> = table.links.values().map(|link| link.state(&table)).collect();
        links.sort_by_key(|link| link.peer.node);
        links
    }

    /// What was counted.
    pub fn counters(&self) -> MeshCounters {
        let shared = &self.0.shared;
        let links = shared.table().links.len();
        shared.counters.read(links, shared.transits.len(), shared.revoked().len(), shared.identity().expires_at_s())
    }

    /// Takes a list (CRL, DER) of certificates that were taken back, by whoever made it: its signature counts.
    pub fn take_list(&self, list: &[u8]) -> Listed {
        self.0.shared.take_list(list)
    }

    /// Takes the operator's lists of certificates that were taken back.
    fn take_lists(&self, lists: &[Vec<u8>]) {
        for list in lists {
            // It was looked at before.
            let _ = self.0.shared.take_operators(list);
        }
    }

    /// Takes other files for new links. Those that are up go on, but when the certificate is for other API keys, or other CAs are believed: then
    /// links are made anew, since the other end knows only what it was shown.
    ///
    /// # Errors
    ///
    /// A sentence that says which file is wrong; the old ones stay.
    pub fn reload(&self, files: &MeshFiles) -> Result<(), String> {
        self.replace(MeshIdentity::load(files, &self.0.shared.name)?);
        Ok(())
    }

    fn replace(&self, identity: MeshIdentity) {
        let shared = &self.0.shared;
        let before = shared.identity();
        // Of another CA it may have been told what it could not believe.
        let is_other = before.grants() != identity.grants() || before.roots() != identity.roots();
        *shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        if is_other {
            let links: Vec<_> = shared.table().links.values().cloned().collect();
            links.iter().for_each(|link| link.end(Ended::Renewed));
        }
    }
}

/// `mesh.ca`, `mesh.cert` and `mesh.key`.
pub struct MeshApplier(pub Mesh);

#[async_trait]
impl Applier for MeshApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["bus.ca", "mesh.ca", "mesh.cert", "mesh.key", "mesh.revoked"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let mesh = self.0.clone();
        let identity = MeshIdentity::of(new).map_err(|error| format!("{error}; the old certificate stays"))?;
        let identity = identity.ok_or("mesh.ca, mesh.cert and mesh.key cannot be taken away while the node runs: restart it")?;
        let mut changes = Vec::new();
        if identity.expires_at_s() != mesh.counters().expires_at_s {
            changes.push(format!("certificate of mesh.cert, valid for {} days", identity.days_left()));
        }
        if *identity.grants() != mesh.grants() {
            changes.push(format!("API keys of mesh.cert: {}; links are made anew", identity.grants()));
        }
        changes.extend(identity.warning().map(str::to_owned));
        let lists = new.mesh.revoked.as_ref().map(|file| revoked::read("mesh.revoked", file)).transpose()?.unwrap_or_default();
        let mut known = mesh.0.shared.revoked().clone();
        for list in &lists {
            match known.take(list, &identity.roots()) {
                Listed::New | Listed::Known => {}
                Listed::Old => changes
                    .push("mesh.revoked has a list that changes nothing: a newer one, or another one of its number, is known".to_owned()),
                why => return Err(format!("mesh.revoked: a list is {}: `pop ca revoke` makes one by the CA in mesh.ca", why.label())),
            }
        }
        Ok(Prepared::new(changes, async move {
            mesh.replace(identity);
            mesh.take_lists(&lists);
        }))
    }
}

/// What all tasks of the mesh have in common.
struct Shared {
    node: NodeId,
    name: NodeName,
    incarnation: Incarnation,
    workers: Vec<SocketAddr>,
    playout: Duration,
    schema: u8,
    started: Instant,
    /// Of [`Shared::now_us`], at the last [`TICK`].
    ticked_us: AtomicU64,
    /// See [`Mesh::is_hung`].
    is_hung: AtomicBool,
    identity: RwLock<MeshIdentity>,
    events: mpsc::Sender<MeshEvent>,
    table: Mutex<Table>,
    /// Told after each change of the table's links.
    changed: watch::Sender<()>,
    /// Told after certificates were taken back.
    listed: watch::Sender<()>,
    counters: Counters,
    tasks: Mutex<JoinSet<()>>,
    /// Of [`Mesh::answer_carried`].
    answers: Mutex<Option<carry::Answers>>,
    /// Control links of others that go over this node.
    transits: transit::Places,
    turns: transit::Turns,
    /// Certificates that were taken back.
    revoked: Mutex<Revoked>,
    /// Where that is kept. Locked while it is written, so that what is newest is written last.
    kept: Mutex<Option<PathBuf>>,
}

#[derive(Default)]
struct Table {
    links: HashMap<NodeId, Arc<Link>>,
    /// What nodes are called here.
    numbers: HashMap<NodeId, u8>,
    /// Nodes that a connection of ours is about to link with: one at a time.
    claims: HashSet<NodeId>,
    /// Of [`Mesh::dial`].
    dialers: HashMap<NodeId, Dialer>,
    /// Of connections that carry clients' requests.
    ways: HashMap<NodeId, Arc<carry::Way>>,
    /// Where those that have links take others.
    located: HashMap<NodeId, SocketAddr>,
    /// Of [`Mesh::note_thirds`].
    thirds: HashMap<String, Vec<NodeId>>,
    /// Nodes of other PoPs that are dialled and not reached.
    unreached: HashMap<NodeId, NodeName>,
    next_link: u64,
    /// Starts of nodes that are held for dead.
    dead: HashMap<NodeId, Incarnation>,
}

struct Dialer {
    address: SocketAddr,
    task: AbortHandle,
}

/// A link that was entered into the table. Who gets it runs it.
struct Admission {
    link: Arc<Link>,
    inbox: Inbox,
}

/// Why a connection becomes no link.
enum Refused {
    /// Counted and told.
    Fault(Refusal, Option<NodeName>),
    /// The pair has a link already: nobody's fault.
    Redundant,
    /// This node is stopping.
    Stopped,
}

/// Our own connection is about to link with a node, until dropped.
struct Claim<'a> {
    shared: &'a Shared,
    node: NodeId,
    /// What the node is called here.
    number: u8,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.table().claims.remove(&self.node);
    }
}

impl Table {
    /// What `node` is called here; `None` when all numbers have a link.
    fn number(&mut self, node: NodeId) -> Option<u8> {
        if let Some(number) = self.numbers.get(&node) {
            return Some(*number);
        }
        let free = (1..=u8::MAX).find(|number| !self.numbers.values().any(|taken| taken == number));
        let number = match free {
            Some(number) => number,
            None => {
                let idle = self.numbers.keys().find(|node| !self.links.contains_key(node) && !self.claims.contains(node)).copied()?;
                self.numbers.remove(&idle)?
            }
        };
        self.numbers.insert(node, number);
        Some(number)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> MutexGuard<'_, Option<carry::Answers>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self) -> MeshIdentity {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The clock of [`control::Alive`]: never 0.
    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Whoever asks first after the process has stood still finds it.
    fn is_hung(&self) -> bool {
        let still_us = self.now_us().saturating_sub(self.ticked_us.load(Ordering::Relaxed));
        if Duration::from_micros(still_us) >= STOOD_STILL + TICK {
            self.is_hung.store(true, Ordering::Relaxed);
        }
        self.is_hung.load(Ordering::Relaxed)
    }

    fn revoked(&self) -> MutexGuard<'_, Revoked> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a list of certificates that were taken back: what is new is kept and told to all, and ends links.
    fn take_list(&self, list: &[u8]) -> Listed {
        let outcome = self.look_at_list(list, None);
        self.counters.listed(outcome);
        outcome
    }

    /// The same of one that another node tells of.
    fn take_told(&self, link: &Link, list: Arc<[u8]>) {
        let now = Instant::now();
        let outcome = if self.revoked().knows(&list) {
            Listed::Known
        } else if link.telling().may_look(now, self.identity().roots().len()) {
            self.look_at_list(&list, Some(now))
        } else {
            Listed::TooMany
        };
        self.counters.listed(outcome);
        if outcome == Listed::TooMany {
            link.telling().wait(list);
        }
    }

    /// Looks at what a link has told of when that was too much.
    fn take_waiting(&self, link: &Link) {
        let now = Instant::now();
        let waited = link.telling().waited(now, self.identity().roots().len());
        let Some(list) = waited else { return };
        let outcome = self.look_at_list(&list, Some(now));
        if outcome == Listed::TooMany {
            // It is counted.
            return link.telling().wait_again(list);
        }
        self.counters.listed(outcome);
    }

    /// `told`: another node tells of it, now.
    fn look_at_list(&self, list: &[u8], told: Option<Instant>) -> Listed {
        if self.revoked().knows(list) {
            return Listed::Known;
        }
        let outcome = match revoked::verify(list, &self.identity().roots()) {
            Ok(verified) => self.revoked().enter(verified, told),
            Err(why) => why,
        };
        if outcome != Listed::New {
            return outcome;
        }
        tracing::warn!(target: AUDIT, certificates = self.revoked().len(), "certificates were taken back");
        self.keep_lists();
        self.listed.send_replace(());
        let links: Vec<_> = self.table().links.values().cloned().collect();
        for link in links {
            if self.revoked().has(&link.certificate) {
                link.end(Ended::Revoked);
                if let Some(way) = self.table().ways.get(&link.peer.node) {
                    way.lose();
                }
            } else {
                link.send(&Message::Revoked(list.into()));
            }
        }
        outcome
    }

    fn take_operators(&self, list: &[u8]) -> Result<(), String> {
        match self.take_list(list) {
            Listed::New | Listed::Known => Ok(()),
            Listed::Old => {
                tracing::warn!("mesh.revoked is older than the list that is known, which goes on");
                Ok(())
            }
            why => Err(format!("mesh.revoked: a list is {}: `pop ca revoke` makes one by the CA in mesh.ca", why.label())),
        }
    }

    /// What was known before this start.
    fn take_kept(&self) {
        let kept = self.kept();
        let Some(file) = kept.as_ref().filter(|file| file.exists()) else { return };
        match revoked::read("revoked certificates", file) {
            Ok(lists) => {
                for list in lists {
                    self.revoked().take(&list, &self.identity().roots());
                }
            }
            Err(error) => tracing::warn!("{error}: what was known of certificates that were taken back is lost"),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_lists(&self) {
        let kept = self.kept();
        let Some(file) = &*kept else { return };
        let text: String = self.revoked().lists().map(revoked::pem).collect();
        if let Err(error) = state::replace_file(file, text.as_bytes()) {
            tracing::warn!(file = %file.display(), %error, "which certificates were taken back is not kept over a restart");
        }
    }

    fn holds_dead(&self, peer: &Peer) -> bool {
        self.table().dead.get(&peer.node) == Some(&peer.incarnation)
    }

    /// Runs a task that ends with the mesh.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }

    /// Whether a chain that TLS has taken may be a node's of this name, and was not taken back.
    fn vouches(&self, name: &NodeName, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let id = chain.first().and_then(|end| CertificateId::of(end)).ok_or(Refusal::NoCertificate)?;
        if self.revoked().has(&id) {
            return Err(Refusal::Revoked);
        }
        self.identity().vouches(name, chain)
    }

    fn hello(&self, number: u8) -> Hello {
        Hello {
            version: self.schema,
            version_min: control::VERSION_MIN,
            node: self.name.node().to_owned(),
            pop: self.name.pop().to_owned(),
            incarnation: self.incarnation,
            link: number,
            workers: self.workers.clone(),
            playout: self.playout,
            resumes: true,
        }
    }

    fn refuse(&self, reason: Refusal, address: &dyn fmt::Display, name: Option<&NodeName>) {
        self.counters.refuse(reason);
        let node = name.map(NodeName::to_string).unwrap_or_default();
        tracing::info!(target: AUDIT, %address, node, reason = reason.label(), "mesh link refused");
    }

    /// For a connection of ours that has proved to be `node`'s.
    fn claim(&self, node: NodeId) -> Result<Claim<'_>, Refused> {
        let mut table = self.table();
        if table.links.contains_key(&node) || table.claims.contains(&node) {
            return Err(Refused::Redundant);
        }
        let number = table.number(node).ok_or(Refused::Fault(Refusal::Full, None))?;
        table.claims.insert(node);
        Ok(Claim { shared: self, node, number })
    }

    /// Enters a connection that has proved whose it is and has said `hello`. After its only wait it cannot be cancelled, so what is
    /// in the table has somebody who runs it.
    async fn register(
        &self,
        proof: Proof,
        hello: Hello,
        dialled: bool,
        address: SocketAddr,
        via: Option<NodeId>,
    ) -> Result<Admission, Refused> {
        let Proof { name, grants, secret, certificate } = proof;
        let node = name.id();
        let fault = |reason| Refused::Fault(reason, Some(name.clone()));
        if NodeName::new(&hello.node, &hello.pop).as_ref() != Ok(&name) {
            return Err(fault(Refusal::WrongName));
        }
        let version = control::negotiate(self.schema, &hello).ok_or_else(|| fault(Refusal::Version))?;
        if hello.link == 0 {
            return Err(fault(Refusal::Malformed));
        }
        let mut permits = self.events.reserve_many(2).await.map_err(|_| Refused::Stopped)?;
        let mut table = self.table();
        if node == self.node {
            return Err(if hello.incarnation == self.incarnation { Refused::Redundant } else { self.duplicate(&name) });
        }
        let by_lower = dialled == (self.node < node);
        if let Some(present) = table.links.get(&node) {
            let (old, new) = (present.peer.incarnation, hello.incarnation);
            if new.start < old.start || (new.start == old.start && new.nonce != old.nonce) {
                return Err(self.duplicate(&name));
            }
            if new == old && !by_lower && present.dialled == (self.node < node) {
                return Err(Refused::Redundant);
            }
        } else if !dialled && !by_lower && table.claims.contains(&node) {
            // Our own connection is as far, and is the one that stays.
            return Err(Refused::Redundant);
        }
        let number = table.number(node).ok_or_else(|| fault(Refusal::Full))?;
        let peer = Peer {
            node,
            name: hello.node,
            pop: hello.pop,
            incarnation: hello.incarnation,
            number,
            their_number: hello.link,
            version,
            workers: hello.workers,
            address,
            playout: hello.playout,
            grants,
        };
        table.next_link += 1;
        let is_abroad = peer.pop != self.name.pop();
        let secret = LinkSecret { secret, local: self.node, remote: node };
        // In a PoP a node that is not heard is to be found out soon.
        let resumes = is_abroad && hello.resumes;
        table.unreached.remove(&node);
        let (link, inbox) = Link::new(table.next_link, peer.clone(), secret.clone(), certificate, dialled, is_abroad, resumes);
        link.begin_via(via);
        if self.revoked().has(&link.certificate) {
            return Err(fault(Refusal::Revoked));
        }
        if dialled && via.is_none() {
            table.located.insert(node, address);
        }
        if !dialled {
            // The answer; nothing else can be queued before it.
            link.say_hello(self.hello(number));
        }
        for list in self.revoked().lists() {
            link.send(&Message::Revoked(list.into()));
        }
        let link = Arc::new(link);
        let mut tell = |event| permits.next().expect("there are two").send(event);
        if let Some(former) = table.links.insert(node, Arc::clone(&link)) {
            former.end(Ended::Replaced);
            tell(MeshEvent::LinkDown { node, why: Ended::Replaced });
        }
        tell(MeshEvent::LinkUp { peer: Box::new(peer), secret });
        drop(table);
        self.changed.send_replace(());
        let Incarnation { start, .. } = link.peer.incarnation;
        tracing::info!(target: AUDIT, node = %name, %address, dialled, start, number, version, "mesh link up");
        Ok(Admission { link, inbox })
    }

    fn duplicate(&self, name: &NodeName) -> Refused {
        tracing::error!(node = %name, "two processes say that they are this node, and the second is refused: give each node its own name");
        Refused::Fault(Refusal::Duplicate, Some(name.clone()))
    }

    /// Runs a link to its end.
    async fn run(&self, Admission { link, inbox }: Admission, connection: Connection) {
        let why = link::run(self, &link, connection, inbox).await;
        if let Some(reason) = why.fault() {
            self.counters.refuse(reason);
        }
        let (node, name, pop) = (link.peer.node, &link.peer.name, &link.peer.pop);
        tracing::info!(target: AUDIT, node = name, pop, address = %link.peer.address, %why, "mesh link down");
        let Ok(permit) = self.events.reserve().await else { return };
        let mut table = self.table();
        if table.links.get(&node).is_some_and(|present| present.id == link.id) {
            table.links.remove(&node);
            permit.send(MeshEvent::LinkDown { node, why });
            drop(table);
            self.changed.send_replace(());
        }
    }

    /// Tells something of a link, unless another has taken its place.
    async fn emit(&self, link: &Link, event: MeshEvent) {
        if let Ok(permit) = self.events.reserve().await {
            self.emit_by(permit, link, event);
        }
    }

    fn emit_by(&self, permit: mpsc::Permit<'_, MeshEvent>, link: &Link, event: MeshEvent) {
        let table = self.table();
        if table.links.get(&link.peer.node).is_some_and(|present| present.id == link.id) {
            permit.send(event);
        }
    }

    /// A link has gone on over another connection.
    fn note_moved(&self, link: &Link, via: Option<NodeId>) {
        self.counters.moved(via.is_none());
        let over = via.and_then(|via| self.linked_name(via)).map(|name| name.to_string());
        let Peer { name, pop, .. } = &link.peer;
        tracing::info!(target: AUDIT, node = name, pop, over = over.as_deref().unwrap_or("the direct path"), "mesh link moved");
    }

    /// A node is dialled and not reached.
    fn note_unreached(&self, name: &NodeName) {
        let mut table = self.table();
        if name.pop() != self.name.pop() && table.unreached.len() < PEERS_MAX && !table.links.contains_key(&name.id()) {
            table.unreached.insert(name.id(), name.clone());
        }
    }

    /// Who has a link.
    fn linked_name(&self, node: NodeId) -> Option<NodeName> {
        self.table().links.get(&node)?.peer_name()
    }

    /// Who has one whose connection goes over nobody else.
    fn directly_linked(&self, node: NodeId) -> Option<NodeName> {
        self.table().links.get(&node).filter(|link| link.wire().is_direct())?.peer_name()
    }

    /// Whether a node at this address has a link.
    fn is_linked_from(&self, address: IpAddr) -> bool {
        self.table().links.values().any(|link| link.peer.address.ip() == address)
    }

    /// Where a node takes connections.
    fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        let table = self.table();
        table.located.get(&node).copied().or_else(|| table.dialers.get(&node).map(|dialer| dialer.address))
    }

    /// Nodes that may have a way to `node` of `pop`, the best first, as far as this one has a direct link with them.
    fn thirds(&self, pop: &str, node: NodeId) -> Vec<NodeId> {
        let table = self.table();
        let is_fit = |third: &&NodeId| **third != node && table.links.get(third).is_some_and(|link| link.wire().is_direct());
        table.thirds.get(pop).into_iter().flatten().filter(is_fit).copied().collect()
    }

    /// Returns when `node` has no link.
    async fn unlinked(&self, node: NodeId) {
        let mut changed = self.changed.subscribe();
        while self.table().links.contains_key(&node) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Link {
    fn peer_name(&self) -> Option<NodeName> {
        NodeName::new(&self.peer.name, &self.peer.pop).ok()
    }

    fn state(&self, table: &Table) -> LinkState {
        let wire = self.wire();
        let name =
            |via: NodeId| table.links.get(&via).map_or_else(Default::default, |link| (link.peer.name.clone(), link.peer.pop.clone()));
        let over = wire.via.map(name);
        let figures = *self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        LinkState {
            peer: self.peer.clone(),
            dialled: self.dialled,
            over,
            is_connected: wire.is_up,
            generation: self.generation(),
            age: self.since.elapsed(),
            figures,
        }
    }
}

/// Its ticks are what tells that the process runs.
async fn keep_ticking(shared: Arc<Shared>) {
    loop {
        // What was missed meanwhile is found first.
        shared.is_hung();
        shared.ticked_us.store(shared.now_us(), Ordering::Relaxed);
        tokio::time::sleep(TICK).await;
    }
}

/// What is written goes at once, and what must go next is not behind seconds of data.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    pop_uring::limit_unsent(stream, UNSENT_LEN_MAX)
}

/// What a finished handshake has proved.
struct Proof {
    /// Who is at the other end.
    name: NodeName,
    /// What the certificate lets its PoP use.
    grants: Grants,
    /// What only both ends know.
    secret: Zeroizing<[u8; 32]>,
    certificate: CertificateId,
}

fn proof<Data>(shared: &Shared, connection: &rustls::ConnectionCommon<Data>) -> Result<Proof, Refused> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let certificate = chain.first().ok_or(Refused::Fault(Refusal::NoCertificate, None))?;
    let name = NodeName::of_certificate(certificate).ok_or(Refused::Fault(Refusal::WrongName, None))?;
    shared.vouches(&name, chain).map_err(|reason| Refused::Fault(reason, Some(name.clone())))?;
    let id = CertificateId::of(certificate).ok_or(Refused::Fault(Refusal::Malformed, None))?;
    let secret = connection.export_keying_material([0; 32], EXPORTER_LABEL, None);
    let secret = Zeroizing::new(secret.map_err(|_| Refused::Fault(Refusal::Malformed, None))?);
    Ok(Proof { name, grants: Grants::of_certificate(certificate), secret, certificate: id })
}
