//! One pinned thread: a back end, a [`Core`] and two queues.
//!
//! ```text
//! turn: io.turn (submit, reap, sleep) -> now -> commands -> datagrams -> timeout -> events, taps, trains -> turn
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use pop_proto::control::{Path, TCP_SOCKET_BASE};
use pop_proto::probe::{HashSeed, IceProbe, ProbeCredentials, ProbeRates};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::Time;
use pop_uring::{
    Backend, BackendKind, IoConfig, IoStats, MmsgBackend, Streams, TrainId, UringBackend, Wait, WakeReceiver, Waker, alloc, bind_tcp,
    bind_udp, wake_pair,
};

use crate::clock::Clock;
use crate::core::Core;
use crate::counters::{Gauges, SharedCounters, WorkerSnapshot};
use crate::handover::{Crossing, Ends};
use crate::limits::{ADDED_SOCKETS_MAX, COMMANDS_MAX, EVENTS_MAX, WorkerLimits};
use crate::service::TapSender;

/// Kernel buffer of a media socket in each direction: 20 ms of 10 Gb/s.
pub const SOCKET_BUFFER_LEN: usize = 25 << 20;

/// Buffers (each up to 128 datagrams with GRO) that one turn takes, so that commands and timers are never starved.
const RECEIVES_PER_TURN: usize = 64;

/// Datagrams from TCP connections that one turn takes.
const STREAM_DATAGRAMS_PER_TURN: usize = 256;

/// Tries to find a port that is free for UDP and TCP, when any will do.
const PORT_TRIES: usize = 16;

/// How often a port that was in use is tried again, and after which pause.
const FREED_TRIES: usize = 50;
const FREED_RETRY: Duration = Duration::from_millis(10);

/// Batches of other workers that one turn takes.
const HANDOVERS_PER_TURN: usize = 8;

/// What waits here until another worker has taken what it has is looked at again after this.
const HANDOVER_RETRY: Duration = Duration::from_millis(1);

/// Commands that one turn takes.
const COMMANDS_PER_TURN: usize = 256;

/// A full event queue is tried again after this: spinning would take the core that the control plane may need.
const EVENT_RETRY: Duration = Duration::from_millis(1);

/// A worker with links turns every 10 ms. One that did not for so long has stood still, and other nodes may hold this one for dead: they do
/// after a quarter of a second, and were told last up to 50 ms before.
pub const STOOD_STILL: Duration = Duration::from_millis(215);

/// Counters are copied out this often.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its index: the thread is `pop-worker-{index}`.
    pub index: usize,
    /// The core to pin to; `None` leaves the choice to the scheduler.
    pub core: Option<usize>,
    /// Which back end to use.
    pub backend: BackendKind,
    /// A ring that cannot be made falls back to `mmsg`; else the worker does not start.
    pub may_fall_back: bool,
    /// Addresses of its media sockets; port 0 takes any.
    pub addresses: Vec<SocketAddr>,
    /// Addresses of its relay sockets, for links to workers of other nodes: one of an address family at most; port 0 takes any. None: no links.
    pub relay: Vec<SocketAddr>,
    /// Its bounds.
    pub limits: WorkerLimits,
    /// Receive runs of datagrams (`UDP_GRO`).
    pub gro: bool,
    /// How long it goes on looking for packets before it sleeps, and asks the kernel to do the same; zero: not at all.
    pub busy_poll: Duration,
    /// How long a client may stay silent.
    pub consent: Duration,
    /// The ICE probe, where strangers may measure.
    pub probe: Option<ProbeConfig>,
    /// The lanes to the node's other workers.
    pub crossing: Crossing,
}

/// The ICE probe of a worker.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// The public name and password.
    pub credentials: ProbeCredentials,
    /// What is answered.
    pub rates: ProbeRates,
    /// Secret numbers of the rates' table.
    pub seed: HashSeed,
}

/// What the worker is told, in order.
pub(crate) enum Order {
    Command(Command),
    AddSocket { index: u16, socket: UdpSocket },
    RemoveSocket { index: u16 },
}

struct Shared {
    orders: ArrayQueue<Order>,
    events: ArrayQueue<Event>,
    counters: SharedCounters,
    /// When it turned last, in nanoseconds of the clock.
    turned: AtomicU64,
    /// When something came of each node, by its number, likewise.
    heard: Box<[AtomicU64]>,
    /// Nothing leaves, and what came is not looked at.
    held: AtomicBool,
    stop: AtomicBool,
}

/// The handle of a running worker.
pub struct Worker {
    index: usize,
    core: Option<usize>,
    backend: BackendKind,
    addresses: Vec<SocketAddr>,
    relay_addresses: Vec<SocketAddr>,
    limits: WorkerLimits,
    shared: Arc<Shared>,
    waker: Waker,
    /// Per index of a socket whether it is taken; the first are those of `addresses` and of `relay_addresses`.
    sockets: Mutex<Box<[bool]>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread tells when it has its back end, or why it has none.
type Started = io::Result<Running>;

struct Running {
    backend: BackendKind,
    core: Option<usize>,
    waker: Waker,
}

impl Worker {
    /// Binds the sockets and starts the thread. The receiver is woken when events wait.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, or no back end that the kernel gives.
    pub fn start(config: WorkerConfig, clock: Clock, taps: TapSender) -> io::Result<(Worker, WakeReceiver)> {
        let tcp = config.limits.tcp_connections > 0;
        let bound = config.addresses.iter().map(|address| bind_freed(|| bind_media(*address, tcp))).collect::<io::Result<Vec<_>>>()?;
        let (mut sockets, listeners): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
        let listeners = listeners.into_iter().flatten().collect();
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<io::Result<Vec<_>>>()?;
        let relay = config.relay.iter().map(|address| bind_freed(|| bind_relay(*address))).collect::<io::Result<Vec<_>>>()?;
        let relay_addresses = relay.iter().map(UdpSocket::local_addr).collect::<io::Result<Vec<_>>>()?;
        sockets.extend(relay);
        let (events, event_wake) = wake_pair()?;
        let shared = Arc::new(Shared {
            orders: ArrayQueue::new(COMMANDS_MAX),
            events: ArrayQueue::new(EVENTS_MAX),
            counters: SharedCounters::new(),
            turned: AtomicU64::new(0),
            heard: (0..=u8::MAX).map(|_| AtomicU64::new(0)).collect(),
            held: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let (index, limits) = (config.index, config.limits);
        let (started, start) = std::sync::mpsc::channel();
        let seed = Seed { config, sockets, listeners, shared: Arc::clone(&shared), events, clock, taps, started };
        let thread = std::thread::Builder::new().name(format!("pop-worker-{index}")).spawn(move || {
            let _guard = EndsProcess;
            seed.run();
        })?;
        let Running { backend, core, waker } = start.recv().map_err(|_| io::Error::other("the worker ended before it started"))??;
        let own = addresses.len() + relay_addresses.len();
        let sockets = Mutex::new((0..own + usize::from(ADDED_SOCKETS_MAX)).map(|i| i < own).collect());
        Ok((Worker { index, core, backend, addresses, relay_addresses, limits, shared, waker, sockets, thread: Some(thread) }, event_wake))
    }

    /// Its media addresses, with real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its relay addresses, with real ports.
    pub fn relay_addresses(&self) -> &[SocketAddr] {
        &self.relay_addresses
    }

    /// Its bounds.
    pub fn limits(&self) -> &WorkerLimits {
        &self.limits
    }

    /// Queues a command; gives it back when the queue is full.
    ///
    /// # Errors
    ///
    /// The command, to be tried again: none may be lost.
    // A command comes back whole so that nothing is lost; boxing it would allocate for every one that is taken.
    #[allow(clippy::result_large_err)]
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.shared.orders.push(Order::Command(command)).map_err(|order| match order {
            Order::Command(command) => command,
            Order::AddSocket { .. } | Order::RemoveSocket { .. } => unreachable!("the queue gives back what it was given"),
        })?;
        self.waker.wake();
        Ok(())
    }

    /// Serves one more socket (see [`bind_udp`]) and returns its index, the `socket` of its [`Path`]s. Commands that are sent
    /// after this find it.
    ///
    /// # Errors
    ///
    /// [`ADDED_SOCKETS_MAX`] sockets were added; [`io::ErrorKind::WouldBlock`]: the worker's queue is full, try again, with a copy
    /// kept for that (`try_clone`): an error closes `socket`.
    pub fn add_socket(&self, socket: UdpSocket) -> io::Result<u16> {
        // Nobody panics while holding it. It is held over the push, so that an index is free only after its removal was queued.
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(free) = sockets.iter().position(|taken| !taken) else {
            return Err(io::Error::other(format!("worker {} serves {ADDED_SOCKETS_MAX} added sockets already, and no more", self.index)));
        };
        let index = free as u16;
        self.shared.orders.push(Order::AddSocket { index, socket }).map_err(|_| queue_full())?;
        sockets[free] = true;
        self.waker.wake();
        Ok(index)
    }

    /// Stops serving an added socket and closes it. Close the transports that use it first; what they were commanded to send
    /// still leaves.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`]: the worker's queue is full, try again; `InvalidInput`: no socket was added at `index`.
    pub fn remove_socket(&self, index: u16) -> io::Result<()> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::from(index);
        if at < self.addresses.len() + self.relay_addresses.len() || !sockets.get(at).is_some_and(|taken| *taken) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("worker {} has no added socket {index}", self.index)));
        }
        self.shared.orders.push(Order::RemoveSocket { index }).map_err(|_| queue_full())?;
        sockets[at] = false;
        self.waker.wake();
        Ok(())
    }

    /// Makes it turn now, with nothing to do: its counter of turns tells whether it lives.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// When it turned last: what had come until then was looked at.
    pub fn turned_at(&self) -> Time {
        Time::from_nanos(self.shared.turned.load(Ordering::Acquire))
    }

    /// When something authentic came over a link of the node with this number; [`Time::ZERO`]: never.
    pub fn heard_at(&self, node: u8) -> Time {
        Time::from_nanos(self.shared.heard[usize::from(node)].load(Ordering::Relaxed))
    }

    /// Whether it found that it stood still for [`STOOD_STILL`] or more while it had links: since then nothing leaves, and what comes is
    /// dropped, until [`Self::release`].
    pub fn is_held(&self) -> bool {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Nothing leaves from the next turn on.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// It goes on.
    pub fn release(&self) {
        self.shared.held.store(false, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Takes the next event.
    pub fn poll_event(&self) -> Option<Event> {
        self.shared.events.pop()
    }

    /// Totals as of a few milliseconds ago.
    pub fn snapshot(&self) -> WorkerSnapshot {
        let (counters, drops, gauges) = self.shared.counters.load();
        WorkerSnapshot { worker: self.index, core: self.core, backend: self.backend.name(), counters, drops, gauges }
    }
}

/// Binds; again for half a second where somebody has the port, who may have been killed just now: the kernel closes what a ring held only
/// some time after its process has ended.
fn bind_freed<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..FREED_TRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(FREED_RETRY),
            bound => return bound,
        }
    }
    bind()
}

/// A media socket, and a listener on the same port when `tcp` asks for one.
fn bind_media(address: SocketAddr, tcp: bool) -> io::Result<(UdpSocket, Option<TcpListener>)> {
    let refused = |protocol: &'static str, hint: &'static str| {
        move |e: io::Error| io::Error::new(e.kind(), format!("cannot bind the media port {address}/{protocol}: {e}{hint}"))
    };
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let socket = bind_udp(address, SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN).map_err(refused("udp", ""))?;
        if !tcp {
            return Ok((socket, None));
        }
        tries -= 1;
        match bind_tcp(socket.local_addr()?) {
            Ok(listener) => return Ok((socket, Some(listener))),
            // The kernel chose a port that is free for UDP alone.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(refused("tcp", " (media.tcp = false does without)")(error)),
        }
    }
}

/// A relay socket.
fn bind_relay(address: SocketAddr) -> io::Result<UdpSocket> {
    bind_udp(address, SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot bind the relay port {address}/udp (mesh.relay_port): {e}")))
}

fn queue_full() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "the worker's queue is full: try again")
}

impl Drop for Worker {
    /// Lets the thread end after its turn, and waits for it.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic on the worker has already ended the process.
            let _ = thread.join();
        }
    }
}

/// A panic on a worker ends the process: the supervisor restarts it, and no half-dead node goes on answering checks.
struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::exit(1);
        }
    }
}

/// Everything that the thread is given.
struct Seed {
    config: WorkerConfig,
    sockets: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
    events: Waker,
    clock: Clock,
    taps: TapSender,
    started: Sender<Started>,
}

impl Seed {
    fn run(self) {
        let (index, limits) = (self.config.index, self.config.limits);
        let pinned = self.config.core.filter(|id| core_affinity::set_for_current(core_affinity::CoreId { id: *id }));
        if let (Some(core), None) = (self.config.core, pinned) {
            tracing::warn!(worker = index, core, "the worker could not be pinned: no such core in this process's set");
        }
        let io_config = IoConfig {
            recv_buffers: limits.recv_buffers,
            recv_buffer_len: limits.recv_buffer_len,
            trains: limits.trains,
            train_len: limits.train_len,
            gro: self.config.gro,
            sockets: self.sockets.len() as u16 + ADDED_SOCKETS_MAX,
            busy_poll: self.config.busy_poll,
        };
        if self.config.backend == BackendKind::Uring {
            match self.open(&io_config, UringBackend::new) {
                Ok((io, waker)) => return self.serve(io, waker, pinned),
                Err(error) if self.config.may_fall_back => {
                    tracing::warn!(worker = index, %error, "io_uring is refused here; the worker uses recvmmsg and sendmmsg");
                }
                Err(error) => {
                    let error =
                        io::Error::new(error.kind(), format!("dataplane.backend is \"io_uring\", but no ring could be made: {error}"));
                    // The starter waits for this message; it cannot be gone.
                    let _ = self.started.send(Err(error));
                    return;
                }
            }
        }
        match self.open(&io_config, MmsgBackend::new) {
            Ok((io, waker)) => self.serve(io, waker, pinned),
            Err(error) => {
                // The starter waits for this message; it cannot be gone.
                let _ = self.started.send(Err(error));
            }
        }
    }

    /// Makes a back end on copies of the sockets, so that another can be tried when it is refused.
    fn open<B>(
        &self,
        config: &IoConfig,
        make: impl Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> io::Result<B>,
    ) -> io::Result<(B, Waker)> {
        let sockets = self.sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<Vec<_>>>()?;
        let (waker, wake) = wake_pair()?;
        Ok((make(sockets, wake, config)?, waker))
    }

    fn serve<B: Backend>(self, mut io: B, waker: Waker, pinned: Option<usize>) {
        let Seed { config, listeners, shared, events, clock, taps, started, .. } = self;
        if let Some(error) = io.busy_poll_refusal() {
            // The worker's own looking goes on; only the card is not polled from its thread.
            tracing::warn!(worker = config.index, %error, "the kernel does not busy-poll for this worker (CAP_NET_ADMIN, Linux 6.9)");
        }
        let streams = match listen(&mut io, listeners, &config.limits) {
            Ok(streams) => streams,
            Err(error) => {
                // The starter waits for this message; it cannot be gone.
                let _ = started.send(Err(io::Error::new(error.kind(), format!("cannot listen on the media port for TCP: {error}"))));
                return;
            }
        };
        let crossing = config.crossing.ends(config.index);
        crossing.set_waker(waker.clone());
        let mut core = Core::new(config.limits, config.consent);
        core.set_media_sockets(config.addresses.len() as u16);
        core.set_relay_sockets(&config.relay);
        if let Some(ProbeConfig { credentials, rates, seed }) = config.probe {
            core.set_probe(IceProbe::new(credentials, rates, seed));
        }
        // The starter waits for this message; it cannot be gone.
        let _ = started.send(Ok(Running { backend: B::KIND, core: pinned, waker }));
        let mut turning = Turning {
            io,
            streams,
            core,
            crossing,
            shared,
            events,
            clock,
            taps,
            held_event: None,
            published: Time::ZERO,
            busy_poll: config.busy_poll,
            busy: Time::ZERO,
            index: config.index,
            is_held: false,
            told: Told::default(),
        };
        if let Err(error) = turning.run() {
            // Only what no peer can cause gets here, and a node that cannot receive is no node.
            panic!("worker {}: the kernel no longer serves the media sockets: {error}", config.index);
        }
    }
}

/// The TCP side of the media port, heard by `io`'s wait; `None` without listeners.
fn listen(io: &mut impl Backend, listeners: Vec<TcpListener>, limits: &WorkerLimits) -> io::Result<Option<Streams>> {
    if listeners.is_empty() {
        return Ok(None);
    }
    let streams = Streams::new(listeners, &limits.streams())?;
    io.watch(streams.watch_fd()?)?;
    Ok(Some(streams))
}

/// The path of a connection: a listener's index and the far end.
fn tcp_path((listener, remote): (u16, SocketAddr)) -> Path {
    Path { socket: TCP_SOCKET_BASE + listener, remote }
}

/// Time as the back ends take it.
fn elapsed(now: Time) -> Duration {
    Duration::from_nanos(now.as_nanos())
}

/// The loop's state.
struct Turning<B> {
    io: B,
    streams: Option<Streams>,
    core: Core,
    crossing: Ends,
    shared: Arc<Shared>,
    events: Waker,
    clock: Clock,
    taps: TapSender,
    /// An event that found the queue full; it goes first.
    held_event: Option<Event>,
    published: Time,
    busy_poll: Duration,
    /// When a datagram or a command came last; the time until then plus `busy_poll` is spent awake.
    busy: Time,
    index: usize,
    /// As [`Worker::is_held`] said at the begin of this turn.
    is_held: bool,
    told: Told,
}

/// What of the back end's troubles was told: each once in a worker's life, however many packets it meets. The counters go on.
#[derive(Debug, Default)]
struct Told {
    train_refused: bool,
    send_failed: bool,
    buffers_full: bool,
}

impl Told {
    /// A sentence for each trouble that is there and was not told yet.
    fn look(&mut self, stats: &IoStats) -> [Option<String>; 3] {
        let once = |told: &mut bool, is_there: bool| is_there && !std::mem::replace(told, true);
        [
            once(&mut self.train_refused, stats.gso_refused > 0).then(|| {
                "the kernel refuses a train of datagrams (GSO) on the way to a client: they leave one by one there, at three to four \
                 times the cost, and a train is tried again every 3 s; look at tx-checksumming in `ethtool -k`"
                    .to_owned()
            }),
            once(&mut self.send_failed, stats.send_errno != 0).then(|| {
                let error = io::Error::from_raw_os_error(stats.send_errno);
                format!("the kernel refuses a datagram: {error}; such are dropped and counted (send_failed)")
            }),
            once(&mut self.buffers_full, stats.receive_overflows > 0).then(|| {
                "every receive buffer was full for a moment, and datagrams waited in their sockets: raise dataplane.recv_buffers if \
                 pop_uring_overflow_total goes on"
                    .to_owned()
            }),
        ]
    }
}

impl<B: Backend> Turning<B> {
    fn run(&mut self) -> io::Result<()> {
        let mut now = self.clock.now();
        // What was commanded before the stop is done before it: goodbyes are among it.
        while !self.shared.stop.load(Ordering::Acquire) || !self.shared.orders.is_empty() {
            let wait = self.wait(now);
            if wait == Wait::UntilWoken {
                self.publish(now);
            }
            let before = now;
            self.io.turn(wait)?;
            self.core.counters_mut().turns += 1;
            now = self.clock.now();
            if now.since(before) >= STOOD_STILL && self.core.has_links() {
                tracing::warn!(
                    worker = self.index,
                    stood_ms = now.since(before).as_millis(),
                    "stood still: nothing leaves until other nodes were asked"
                );
                self.shared.held.store(true, Ordering::Relaxed);
            }
            let was_held = std::mem::replace(&mut self.is_held, self.shared.held.load(Ordering::Relaxed));
            if was_held && !self.is_held {
                self.core.stood_still(now);
            }
            self.turn(now)?;
            while let Some(node) = self.core.poll_heard() {
                self.shared.heard[usize::from(node)].store(now.as_nanos(), Ordering::Relaxed);
            }
            // After what was heard: who sees this turn sees that.
            self.shared.turned.store(now.as_nanos(), Ordering::Release);
            if now.since(self.published) >= PUBLISH_INTERVAL {
                self.publish(now);
            }
        }
        self.publish(now);
        // What the last commands asked to be sent (close_notify among it) still leaves.
        self.io.turn(Wait::No)
    }

    /// How long the next turn may sleep.
    fn wait(&self, now: Time) -> Wait {
        if !self.shared.orders.is_empty() || self.streams.as_ref().is_some_and(Streams::has_unread) || self.crossing.has_arrivals() {
            return Wait::No;
        }
        if self.held_event.is_some() {
            return Wait::AtMost(EVENT_RETRY);
        }
        if !self.busy_poll.is_zero() && now.since(self.busy) < self.busy_poll {
            return Wait::No;
        }
        let core = self.core.poll_timeout().map(|at| at.since(now));
        let streams = self.streams.as_ref().and_then(Streams::poll_timeout).map(|at| at.saturating_sub(elapsed(now)));
        let handover = self.crossing.is_holding().then_some(HANDOVER_RETRY);
        match core.into_iter().chain(streams).chain(handover).min() {
            None => Wait::UntilWoken,
            Some(duration) => Wait::AtMost(duration),
        }
    }

    fn turn(&mut self, now: Time) -> io::Result<()> {
        // Before the datagrams: a client's first check follows the answer that it got, and that followed the command.
        for _ in 0..COMMANDS_PER_TURN {
            let Some(order) = self.shared.orders.pop() else { break };
            self.busy = now;
            match order {
                Order::Command(command) => {
                    if let Command::OpenMirror { home: other, .. } | Command::Export { to: other, .. } = &command {
                        self.crossing.supply(*other);
                    }
                    self.core.handle_command(now, command);
                }
                Order::AddSocket { index, socket } => {
                    if let Err(error) = self.io.add_socket(index, socket) {
                        tracing::error!(index, %error, "a socket could not be added");
                        self.core.refuse_socket(index);
                    }
                }
                Order::RemoveSocket { index } => {
                    // Goodbyes of the commands before this one are still in the core.
                    self.drain(now)?;
                    self.core.remove_socket(index);
                    if let Err(error) = self.io.remove_socket(index) {
                        // Nothing comes from it any more; at worst the kernel keeps its port until another takes the index.
                        tracing::error!(index, %error, "a socket could not be removed wholly");
                    }
                }
            }
        }
        for _ in 0..HANDOVERS_PER_TURN {
            if !self.crossing.receive(now, &mut self.core) {
                break;
            }
            self.busy = now;
            if self.core.must_drain() {
                self.drain(now)?;
            }
        }
        let mut stale = 0;
        for _ in 0..RECEIVES_PER_TURN {
            let Some(mut received) = self.io.receive() else { break };
            self.busy = now;
            if self.is_held {
                stale += received.datagrams().count() as u64;
                continue;
            }
            let path = Path { socket: received.socket, remote: received.from };
            self.core.handle_datagrams(now, path, received.datagrams());
            if self.core.must_drain() {
                self.drain(now)?;
            }
        }
        self.core.count_drops(DropReason::Stale, stale);
        if !self.is_held {
            self.receive_streams(now)?;
        }
        self.core.handle_timeout(now);
        self.drain(now)?;
        self.tick_streams(now);
        Ok(())
    }

    /// What came over TCP connections.
    fn receive_streams(&mut self, now: Time) -> io::Result<()> {
        let Some(streams) = &mut self.streams else { return Ok(()) };
        if self.io.watched_is_ready() {
            streams.turn(elapsed(now))?;
        }
        for _ in 0..STREAM_DATAGRAMS_PER_TURN {
            let Some(streams) = &mut self.streams else { break };
            let Some(received) = streams.receive() else { break };
            self.busy = now;
            let (key, proven) = ((received.listener, received.from), received.proven);
            self.core.handle_datagram(now, tcp_path(key), received.bytes);
            if !proven && self.core.owns_path(&tcp_path(key)) {
                streams.prove(key.0, key.1);
            }
            if self.core.must_drain() {
                self.drain(now)?;
            }
        }
        Ok(())
    }

    /// Which TCP connections are whose: after the drain, so that the goodbyes of a transport that is closed leave before its
    /// connection ends.
    fn tick_streams(&mut self, now: Time) {
        let Some(streams) = &mut self.streams else { return };
        streams.tick(elapsed(now), |listener, remote| self.core.owns_path(&tcp_path((listener, remote))));
        while let Some(key) = streams.poll_closed() {
            self.core.close_path(&tcp_path(key));
        }
    }

    /// Takes everything out of the core: events, what other workers get, taps, trains.
    fn drain(&mut self, now: Time) -> io::Result<()> {
        let mut woken = false;
        while let Some(event) = self.held_event.take().or_else(|| self.core.poll_event()) {
            woken = true;
            if let Err(event) = self.shared.events.push(event) {
                self.held_event = Some(event);
                break;
            }
        }
        if woken {
            self.events.wake();
        }
        self.crossing.send(&mut self.core);
        let (mut tapped, mut untapped) = (false, 0);
        while let Some(packet) = self.core.poll_tap() {
            tapped = true;
            untapped += u64::from(!self.taps.send(&packet));
        }
        if tapped {
            self.taps.wake();
            self.core.count_drops(DropReason::TapQueueFull, untapped);
        }
        loop {
            let Some(id) = self.acquire()? else {
                self.core.drop_fresh();
                return Ok(());
            };
            let Some(transmit) = self.core.poll_transmit(now, self.io.train(&id)) else {
                self.io.release(id);
                return Ok(());
            };
            if self.is_held {
                self.io.release(id);
                self.core.count_drops(DropReason::Stale, transmit.datagrams());
                continue;
            }
            let Path { socket, remote } = transmit.path;
            if let (true, Some(streams)) = (transmit.path.is_tcp(), &mut self.streams) {
                streams.send(socket - TCP_SOCKET_BASE, remote, &self.io.train(&id)[..transmit.len], transmit.segment);
                self.io.release(id);
                continue;
            }
            self.io.send(id, pop_uring::Transmit { socket, to: remote, len: transmit.len, segment: transmit.segment });
        }
    }

    /// A send slot; when all are in flight, one submission gives the kernel the chance to take them.
    fn acquire(&mut self) -> io::Result<Option<TrainId>> {
        match self.io.acquire() {
            Some(id) => Ok(Some(id)),
            None => {
                self.io.turn(Wait::No)?;
                Ok(self.io.acquire())
            }
        }
    }

    fn publish(&mut self, now: Time) {
        self.published = now;
        let stats = self.io.stats();
        for sentence in self.told.look(&stats).into_iter().flatten() {
            tracing::warn!(worker = self.index, "{sentence}");
        }
        let counters = self.core.counters_mut();
        counters.datagrams_in = stats.datagrams_received;
        counters.receive_overflow = stats.receive_overflows;
        counters.truncated = stats.truncated;
        counters.kernel_drops = stats.kernel_drops;
        counters.receive_errors = stats.receive_errors;
        counters.gso_refused = stats.gso_refused;
        counters.trains_split = stats.trains_split;
        counters.late_datagrams = stats.late;
        counters.syscalls = stats.syscalls;
        counters.allocations = alloc::thread_allocations();
        let tcp = self.streams.as_ref().map(Streams::stats).unwrap_or_default();
        counters.datagrams_in += tcp.datagrams_received;
        counters.tcp_accepted = tcp.accepted;
        counters.tcp_refused = tcp.refused;
        counters.tcp_accept_errors = tcp.accept_errors;
        counters.tcp_unproven = tcp.unproven;
        counters.tcp_misframed = tcp.misframed;
        counters.tcp_stalled = tcp.stalled;
        self.core.set_drops(DropReason::SendFailed, stats.sends_failed + tcp.sends_failed);
        self.core.set_drops(DropReason::TcpQueueFull, tcp.queue_full);
        let gauges = Gauges { tcp_connections: tcp.open, ..self.core.gauges() };
        self.shared.counters.store(self.core.counters(), self.core.drops(), &gauges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_once_with_what_to_do() {
        let mut told = Told::default();
        let mut look = |stats: IoStats| told.look(&stats).into_iter().flatten().collect::<Vec<_>>();
        let mut stats = IoStats::default();
        assert!(look(stats).is_empty());
        stats.gso_refused = 1;
        assert!(look(stats)[0].contains("tx-checksumming"));
        stats.gso_refused = 1_000;
        (stats.sends_failed, stats.send_errno) = (3, 105);
        let sentences = look(stats);
        assert!(sentences.len() == 1 && sentences[0].contains("No buffer space available"), "{sentences:?}");
        stats.sends_failed = 4_000;
        stats.receive_overflows = 1;
        assert!(look(stats)[0].contains("dataplane.recv_buffers"));
        stats.receive_overflows = 2;
        assert!(look(stats).is_empty());
    }
}
