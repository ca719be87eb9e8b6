//! One link from its two Hellos to its end: one future that reads, one that writes, ended together. A link with a node of another PoP may
//! go on over another connection (`resume.rs`): then both are begun anew, and nothing is lost or comes twice (`flow.rs`).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pop_proto::control::LinkStats;
use pop_relay::control::{self, Alive, CONTROL_LEN_MAX, ControlError, Hello, Message, Rekey, Resume};
use pop_schemas::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::counters::Refusal;
use super::flow::Flow;
use super::revoked::{CertificateId, Telling};
use super::{LinkSecret, MeshEvent, Peer, Shared, resume};
use crate::data::SenderPlace;

/// That this node lives is said so often.
const ALIVE_INTERVAL: Duration = Duration::from_millis(100);
/// The same between PoPs: there datagrams tell sooner, and of such links there may be hundreds.
const ALIVE_INTERVAL_ABROAD: Duration = Duration::from_millis(250);

/// One that stood still answers another that did so often at most.
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// A peer that says nothing for so long, or takes nothing, has no link.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// While datagrams of a node of another PoP come, whatever their way, its link is up: the path of the control connection is cut, and heals, or
/// the kernel gives the connection up. Workers tell once a second of what came.
const CARRIED_MAX: Duration = Duration::from_secs(3);

/// Messages that wait for a peer, in bytes. One that is further behind starts anew and is told the state again.
const QUEUE_LEN_MAX: usize = 1 << 20;

/// Behind so many bytes nothing is queued that can wait elsewhere: the rest is for what cannot.
const ROOM_LEN_MAX: usize = QUEUE_LEN_MAX / 4;

/// Data messages that wait for a peer, in bytes. They have a queue of their own: a peer that is too slow for them keeps its link. Half of
/// what a room keeps, so that what was dropped is still there when the peer asks for it.
const DATA_LEN_MAX: usize = 512 << 10;

/// The same for one that has been too slow and gets what it missed all at once, that of several sessions together.
const DATA_LEN_CATCHING_UP_MAX: usize = 4 << 20;

/// How long the oldest of them waits.
const DATA_AGE_MAX: Duration = Duration::from_secs(2);

/// How long a message that waits keeps its place among what its sender may have waiting: a link that stutters makes a burst longer instead
/// of losing its place in it. A link that is slower than that waits alone.
const HOLD_MAX: Duration = Duration::from_millis(500);

/// A link that overflowed keeps no sender's places for so long: who never catches up must not slow the others again and again.
const HOLD_PAUSE: Duration = Duration::from_secs(30);

/// Behind so many bytes of data a lossy message does not wait.
const LOSSY_LEN_MAX: usize = 64 << 10;

/// Bytes of a peer's data messages that wait for rooms of this node: the link is read no further then.
const DATA_IN_LEN_MAX: u32 = 1 << 20;

/// What a message that waits costs beside its body, in bytes.
const DATA_COST: usize = 256;

/// Who ends a link says so within this, where the connection takes it.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Connections that wait to take the place of a link's.
const CONNECTIONS_MAX: usize = 2;

/// Datagrams come directly without a pause as long as this.
const DIRECT_PAUSE_MAX: Duration = Duration::from_millis(2_500);

/// How long one generation of keys is used.
const REKEY_INTERVAL: Duration = Duration::from_secs(120);

/// After a step to new keys no other one is made for so long. A datagram tells its generation by one bit: the second step takes away the
/// keys of before the first, so both ends must have made the first by then, their workers too. Keys that are used up meanwhile are those
/// of before.
const REKEY_PAUSE: Duration = Duration::from_secs(5);

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The other end closed it, or the network did.
    Closed,
    /// Nothing came for 2 s.
    Silent,
    /// The other end did not take what it was sent: 1 MiB or 2 s of it waited.
    Slow,
    /// Another link of the pair took its place: of a newer start of the node, or the one that both ends keep.
    Replaced,
    /// What came was no message of ours.
    Malformed,
    /// A message was announced that is longer than one may be.
    TooLarge,
    /// The node no longer wants it.
    Forgotten,
    /// It is made anew.
    Renewed,
    /// Its certificate was taken back.
    Revoked,
}

impl Ended {
    /// As the audit log says it.
    pub const fn label(self) -> &'static str {
        match self {
            Ended::Closed => "closed",
            Ended::Silent => "silent",
            Ended::Slow => "slow",
            Ended::Replaced => "replaced",
            Ended::Malformed => "malformed",
            Ended::TooLarge => "too_large",
            Ended::Forgotten => "forgotten",
            Ended::Renewed => "renewed",
            Ended::Revoked => "revoked",
        }
    }

    /// When the other end is to blame.
    pub(super) const fn fault(self) -> Option<Refusal> {
        match self {
            Ended::Malformed => Some(Refusal::Malformed),
            Ended::TooLarge => Some(Refusal::TooLarge),
            Ended::Revoked => Some(Refusal::Revoked),
            _ => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What waits to be written.
pub(super) enum Item {
    Message {
        bytes: Vec<u8>,
        queued_at: Instant,
    },
    /// The answer of who was called.
    Hello(Hello),
    Alive,
    Rekey,
}

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection whose other end has proved who it is.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    /// The node that it goes over.
    pub(super) via: Option<NodeId>,
}

/// What a link's task takes.
pub(super) struct Inbox {
    items: mpsc::UnboundedReceiver<Item>,
    connections: mpsc::Receiver<Connection>,
}

/// The connection of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    /// There is one.
    pub(super) is_up: bool,
    /// The node that it goes over.
    pub(super) via: Option<NodeId>,
    /// Since when that is so.
    pub(super) since: Instant,
    /// When it brought something last.
    heard_at: Instant,
    /// What it brought waits until this node has taken it, and what is behind that is not looked at.
    is_busy: bool,
}

impl Wire {
    /// It is there and goes over nobody else.
    pub(super) fn is_direct(&self) -> bool {
        self.is_up && self.via.is_none()
    }

    /// For how long it has brought nothing.
    pub(super) fn silence(&self) -> Duration {
        if self.is_busy { Duration::ZERO } else { self.heard_at.elapsed() }
    }
}

/// Why a data message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataRefused {
    /// The node has no link.
    Down,
    /// It is a lossy one, and too much waits.
    Full,
    /// It is a reliable one, and too much waits, or for too long. All that waited is dropped.
    Overflow {
        /// So many messages.
        dropped: usize,
    },
}

/// A data message for a peer.
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    pub(crate) reliable: bool,
    /// The peer can ask for it by its number when it is dropped.
    pub(crate) numbered: bool,
    /// Its place among what its sender may have waiting.
    pub(crate) hold: Option<SenderPlace>,
}

struct Waiting {
    bytes: Vec<u8>,
    queued_at: Instant,
    is_kept: bool,
    hold: Option<SenderPlace>,
}

/// Data messages that wait to be written.
#[derive(Default)]
struct DataQueue {
    waiting: VecDeque<Waiting>,
    len: usize,
    /// Of these the first so many hold nothing.
    released: usize,
    /// It has overflowed, and was not empty since what the peer has asked for again was queued.
    is_catching_up: bool,
    /// That has not been queued yet: that nothing waits means nothing.
    is_awaiting: bool,
    overflowed_at: Option<Instant>,
}

impl DataQueue {
    /// `numbered`: the peer asks for it when it is dropped. A reliable message that is not stays when the others go, within the bound.
    fn push(&mut self, now: Instant, bytes: Vec<u8>, reliable: bool, numbered: bool, hold: Option<SenderPlace>) -> Result<(), DataRefused> {
        self.release_old(now);
        let len = self.len + bytes.len() + DATA_COST;
        let is_late = self.waiting.front().is_some_and(|first| now.duration_since(first.queued_at) > DATA_AGE_MAX);
        if !reliable && (len > LOSSY_LEN_MAX || is_late) {
            return Err(DataRefused::Full);
        }
        let hold = hold.filter(|_| reliable && self.overflowed_at.is_none_or(|at| now.duration_since(at) >= HOLD_PAUSE));
        let next = Waiting { bytes, queued_at: now, is_kept: reliable && !numbered, hold };
        let len_max = if self.is_catching_up { DATA_LEN_CATCHING_UP_MAX } else { DATA_LEN_MAX };
        if len > len_max || is_late {
            let before = self.waiting.len() + 1;
            self.waiting.push_back(next);
            let mut left = DATA_LEN_MAX / 2;
            self.waiting.retain(|waiting| {
                let cost = waiting.bytes.len() + DATA_COST;
                let stays = waiting.is_kept && cost <= left;
                left -= if stays { cost } else { 0 };
                stays
            });
            // They wait anew.
            self.waiting.iter_mut().for_each(|waiting| (waiting.queued_at, waiting.hold) = (now, None));
            (self.len, self.released) = (DATA_LEN_MAX / 2 - left, self.waiting.len());
            (self.is_catching_up, self.is_awaiting, self.overflowed_at) = (true, true, Some(now));
            return Err(DataRefused::Overflow { dropped: before - self.waiting.len() });
        }
        self.len = len;
        self.waiting.push_back(next);
        self.is_awaiting &= !numbered;
        Ok(())
    }

    /// Who has waited long enough for this peer waits no longer.
    fn release_old(&mut self, now: Instant) {
        while let Some(waiting) = self.waiting.get_mut(self.released).filter(|waiting| now.duration_since(waiting.queued_at) >= HOLD_MAX) {
            waiting.hold = None;
            self.released += 1;
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let Some(Waiting { bytes, .. }) = self.waiting.pop_front() else {
            self.is_catching_up &= self.is_awaiting;
            return None;
        };
        self.len -= bytes.len() + DATA_COST;
        self.released = self.released.saturating_sub(1);
        Some(bytes)
    }
}

/// A link that is up, as everybody but its own task sees it.
pub(super) struct Link {
    /// Tells the links of one node apart, one after the other.
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// This node made the connection.
    pub(super) dialled: bool,
    pub(super) since: Instant,
    items: mpsc::UnboundedSender<Item>,
    /// Bytes in `items`.
    queue_len: AtomicUsize,
    /// When its last sign of life came, in milliseconds since the link began; 0: none has.
    heard_ms: AtomicU64,
    /// The peer's clock in the last [`Alive`] that came.
    their_us: AtomicU64,
    /// Our clock in it, and what the peer said of this node.
    answer: Mutex<(u64, Said)>,
    /// When this end answered last, of the clock of [`Shared::now_us`].
    answered_us: AtomicU64,
    data: Mutex<DataQueue>,
    /// Something came into it.
    data_queued: Notify,
    /// For the peer's data messages until rooms have taken them.
    data_places: Arc<Semaphore>,
    keys: Mutex<Generation>,
    /// What its workers told last, together, and when something had come.
    pub(super) figures: Mutex<LinkStats>,
    carried_at: Mutex<Option<Instant>>,
    /// Since when datagrams come directly without a pause, and when the last ones did.
    direct: Mutex<Option<(Instant, Instant)>>,
    flow: Mutex<Flow>,
    /// The other end has taken something.
    taken: Notify,
    wire: Mutex<Wire>,
    connections: mpsc::Sender<Connection>,
    /// It can go on over another connection.
    pub(super) resumes: bool,
    pub(super) secret: LinkSecret,
    /// What the other end has shown.
    pub(super) certificate: CertificateId,
    /// It was asked for new keys, and has not stepped to them.
    wants_rekey: AtomicBool,
    /// What it tells of certificates that were taken back.
    telling: Mutex<Telling>,
    /// What both ends said of the calls that are to make it go on.
    pub(super) calls: resume::Calls,
    /// The other end is a node of another PoP.
    is_abroad: bool,
    ended: watch::Sender<Option<Ended>>,
}

/// What another node says of this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// It holds this node for dead.
    pub(crate) dead: bool,
    /// It stood still itself, and does not know yet.
    pub(crate) hung: bool,
}

#[derive(Clone, Copy)]
struct Generation {
    number: u32,
    since: Instant,
}

impl Link {
    pub(super) fn new(
        id: u64,
        peer: Peer,
        secret: LinkSecret,
        certificate: CertificateId,
        dialled: bool,
        is_abroad: bool,
        resumes: bool,
    ) -> (Link, Inbox) {
        let (items, received) = mpsc::unbounded_channel();
        let (connections, offered) = mpsc::channel(CONNECTIONS_MAX);
        let since = Instant::now();
        let keys = Mutex::new(Generation { number: 0, since });
        let wire = Wire { is_up: true, via: None, since, heard_at: since, is_busy: false };
        let link = Link {
            id,
            peer,
            dialled,
            since,
            items,
            queue_len: AtomicUsize::new(0),
            heard_ms: AtomicU64::new(0),
            their_us: AtomicU64::new(0),
            answer: Mutex::default(),
            answered_us: AtomicU64::new(0),
            data: Mutex::default(),
            data_queued: Notify::new(),
            data_places: Arc::new(Semaphore::new(DATA_IN_LEN_MAX as usize)),
            keys,
            figures: Mutex::default(),
            carried_at: Mutex::default(),
            direct: Mutex::default(),
            flow: Mutex::default(),
            taken: Notify::new(),
            wire: Mutex::new(wire),
            connections,
            resumes,
            secret,
            certificate,
            wants_rekey: AtomicBool::new(false),
            telling: Mutex::default(),
            calls: resume::Calls::default(),
            is_abroad,
            ended: watch::Sender::new(None),
        };
        (link, Inbox { items: received, connections: offered })
    }

    /// Queues a message; `false` when it is none, or the link has ended. A queue that is full ends the link.
    pub(super) fn send(&self, message: &Message) -> bool {
        let Ok(bytes) = control::encode(message, self.peer.version) else { return false };
        let queue_len = self.queue_len.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if queue_len > QUEUE_LEN_MAX {
            self.end(Ended::Slow);
            return false;
        }
        self.items.send(Item::Message { bytes, queued_at: Instant::now() }).is_ok()
    }

    /// See [`Mesh::has_room`](super::Mesh::has_room).
    pub(super) fn has_room(&self) -> bool {
        self.queue_len.load(Ordering::Relaxed) < ROOM_LEN_MAX
    }

    /// The first message of who was called.
    pub(super) fn say_hello(&self, hello: Hello) {
        // Its task is about to begin.
        let _ = self.items.send(Item::Hello(hello));
    }

    /// Queues a data message behind those before it; control messages go first.
    pub(super) fn send_data(&self, outgoing: Outgoing) -> Result<(), DataRefused> {
        let Outgoing { message, reliable, numbered, hold } = outgoing;
        let Ok(bytes) = control::encode(&message, self.peer.version) else { return Err(DataRefused::Full) };
        // What was kept of an overflow waits to be written, too.
        let result = self.data().push(Instant::now(), bytes, reliable, numbered, hold);
        self.data_queued.notify_one();
        result
    }

    fn data(&self) -> MutexGuard<'_, DataQueue> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next data message to be written; nothing is lost when this is dropped.
    async fn next_data(&self) -> Vec<u8> {
        loop {
            let next = self.data().pop();
            if let Some(bytes) = next {
                return bytes;
            }
            self.data_queued.notified().await;
        }
    }

    /// Waits until rooms have taken enough of the peer's data.
    async fn data_place(&self, len: usize) -> OwnedSemaphorePermit {
        let cost = u32::try_from(len + DATA_COST).unwrap_or(DATA_IN_LEN_MAX).min(DATA_IN_LEN_MAX);
        Arc::clone(&self.data_places).acquire_many_owned(cost).await.expect("it is never closed")
    }

    /// Asks for the next generation of keys.
    pub(super) fn rekey(&self) -> bool {
        self.wants_rekey.store(true, Ordering::Relaxed);
        self.items.send(Item::Rekey).is_ok()
    }

    pub(super) fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            *ended = ended.or(Some(why));
            is_first
        });
    }

    /// Says that this node lives.
    pub(super) fn tell_alive(&self) {
        // A link that ends tells nothing.
        let _ = self.items.send(Item::Alive);
    }

    fn alive(&self, shared: &Shared) -> Alive {
        let (dead, hung) = (shared.holds_dead(&self.peer), shared.is_hung());
        let received = if self.resumes { self.flow().tell_received() } else { 0 };
        Alive { now_us: shared.now_us(), echo_us: self.their_us.load(Ordering::Relaxed), dead, hung, received }
    }

    fn take_alive(&self, shared: &Shared, alive: Alive) {
        self.their_us.store(alive.now_us, Ordering::Relaxed);
        let said = Said { dead: alive.dead, hung: alive.hung };
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = (alive.echo_us, said);
        if alive.hung {
            // It waits for the answer. Of two that stood still each answer would be a question.
            let now_us = shared.now_us();
            let is_early = now_us < self.answered_us.load(Ordering::Relaxed) + ANSWER_INTERVAL.as_micros() as u64;
            if !is_early || !shared.is_hung() {
                self.answered_us.store(now_us, Ordering::Relaxed);
                self.tell_alive();
            }
        } else {
            self.hear();
        }
    }

    /// What the peer holds this node for, as it has said since our clock showed `since_us`; `None`: it has not said.
    pub(super) fn verdict(&self, since_us: u64) -> Option<Said> {
        let (echo_us, said) = *self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        (echo_us >= since_us).then_some(said)
    }

    /// How long ago its last sign of life came; `None`: none has. That there is a link is none.
    pub(super) fn silence(&self) -> Option<Duration> {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        (heard_ms > 0).then(|| self.since.elapsed().saturating_sub(Duration::from_millis(heard_ms)))
    }

    /// Takes what its workers have done, together.
    pub(super) fn note_figures(&self, figures: LinkStats) {
        let came = |of: &LinkStats| of.datagrams_in + of.direct.came;
        let before = std::mem::replace(&mut *self.figures.lock().unwrap_or_else(PoisonError::into_inner), figures);
        let now = Instant::now();
        if came(&figures) > came(&before) {
            *self.carried_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        if figures.direct.came > before.direct.came {
            let mut direct = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
            let since = direct.filter(|(_, last)| now.duration_since(*last) < DIRECT_PAUSE_MAX).map_or(now, |(since, _)| since);
            *direct = Some((since, now));
        }
    }

    /// For how long datagrams have come directly without a pause.
    pub(super) fn direct_for(&self) -> Duration {
        let direct = *self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        direct.filter(|(_, last)| last.elapsed() < DIRECT_PAUSE_MAX).map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    pub(super) fn telling(&self) -> MutexGuard<'_, Telling> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wire(&self) -> Wire {
        *self.wire_mut()
    }

    fn wire_mut(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first connection is of this kind.
    pub(super) fn begin_via(&self, via: Option<NodeId>) {
        self.wire_mut().via = via;
    }

    fn change_wire(&self, is_up: bool, via: Option<NodeId>) {
        let now = Instant::now();
        *self.wire_mut() = Wire { is_up, via, since: now, heard_at: now, is_busy: false };
    }

    /// A message came by it, and is taken now, or was.
    fn note_heard(&self, is_busy: bool) {
        let mut wire = self.wire_mut();
        (wire.heard_at, wire.is_busy) = (Instant::now(), is_busy);
    }

    /// Between two signs of life.
    fn alive_interval(&self) -> Duration {
        if self.is_abroad { ALIVE_INTERVAL_ABROAD } else { ALIVE_INTERVAL }
    }

    /// Another connection may be wanted, or is one that goes over another node.
    pub(super) fn may_need_another(&self) -> bool {
        let wire = self.wire();
        self.resumes && (!wire.is_direct() || wire.silence() > self.alive_interval() * 3)
    }

    /// Its task is to go on with this connection. `false`: there are too many already, or it has ended.
    pub(super) fn go_on(&self, connection: Connection) -> bool {
        self.connections.try_send(connection).is_ok()
    }

    /// Takes the other end's word of what it has taken. `false`: that cannot be.
    pub(super) fn take_word(&self, received: u64) -> bool {
        let is_sound = self.flow().take_word(received);
        self.taken.notify_one();
        is_sound
    }

    /// Its datagrams come although the control connection says nothing.
    fn is_carried(&self) -> bool {
        let at = *self.carried_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_abroad && at.is_some_and(|at| at.elapsed() < CARRIED_MAX)
    }

    /// What is told now may arrive much later.
    fn is_cut(&self) -> bool {
        self.is_abroad && self.silence().is_some_and(|silence| silence > self.alive_interval() * 3)
    }

    fn hear(&self) {
        let now_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    pub(super) fn generation(&self) -> u32 {
        self.keys().number
    }

    fn keys(&self) -> MutexGuard<'_, Generation> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To generation `number`, when that is the next and the step before is at least `pause` ago.
    fn step_to(&self, number: u32, pause: Duration) -> bool {
        let mut keys = self.keys();
        let is_due = keys.number.checked_add(1) == Some(number) && (keys.number == 0 || keys.since.elapsed() >= pause);
        if is_due {
            *keys = Generation { number, since: Instant::now() };
        }
        is_due
    }
}

/// What became of a connection.
enum Over {
    /// The link ends with it.
    Ended(Ended),
    /// It broke, and the link may go on over another one.
    Broken,
}

/// Reads and writes until the link ends; why it did. Then nothing of its connection is left.
pub(super) async fn run(shared: &Shared, link: &Link, first: Connection, inbox: Inbox) -> Ended {
    let Inbox { mut items, mut connections } = inbox;
    let mut ended = link.ended.subscribe();
    let mut told = pin!(async { ended.wait_for(Option::is_some).await.ok().and_then(|why| *why).unwrap_or(Ended::Closed) });
    let mut keeping = pin!(resume::keep_connected(shared, link));
    let (mut connection, mut is_first) = (Some(first), true);
    loop {
        let serving = async {
            match &mut connection {
                Some(connection) => serve(shared, link, &mut connection.stream, &mut items, is_first).await,
                None => Over::Ended(wait_for_connection(link).await),
            }
        };
        let over = tokio::select! {
            biased;
            why = &mut told => {
                if let Some(Connection { stream, .. }) = connection.as_mut().filter(|_| link.resumes) {
                    // Else the other end would call, since the link might go on.
                    let _ = timeout(CLOSE_TIMEOUT, stream.shutdown()).await;
                }
                return why;
            }
            Some(next) = connections.recv() => {
                link.change_wire(true, next.via);
                shared.note_moved(link, next.via);
                (connection, is_first) = (Some(next), false);
                continue;
            }
            why = &mut keeping => return why,
            over = serving => over,
        };
        match over {
            Over::Broken if link.resumes => {
                connection = None;
                let via = link.wire().via;
                link.change_wire(false, via);
            }
            Over::Broken => return Ended::Closed,
            Over::Ended(why) => return why,
        }
    }
}

/// While the datagrams of a link come, or for 2 s, another connection may take the place of the one that broke.
async fn wait_for_connection(link: &Link) -> Ended {
    let since = Instant::now();
    while link.is_carried() || since.elapsed() < SILENCE_MAX {
        tokio::time::sleep(ALIVE_INTERVAL).await;
    }
    Ended::Closed
}

async fn serve(
    shared: &Shared,
    link: &Link,
    stream: &mut Box<dyn Stream>,
    items: &mut mpsc::UnboundedReceiver<Item>,
    is_first: bool,
) -> Over {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        biased;
        over = read(shared, link, reader, is_first) => over,
        over = write(shared, link, writer, items, is_first) => over,
    }
}

/// Within 2 s, or for as long as the link is carried.
async fn while_carried<T>(link: &Link, doing: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut doing = pin!(doing);
    loop {
        match timeout(SILENCE_MAX, doing.as_mut()).await {
            Err(_) if link.is_carried() => {}
            done => return done,
        }
    }
}

/// Whatever it waits for, it may be begun anew on another connection: a message counts as received once all is done with it.
async fn read(shared: &Shared, link: &Link, mut reader: impl AsyncRead + Unpin, is_first: bool) -> Over {
    let mut known = 0;
    if !is_first {
        let before = match while_carried(link, reader.read_u64_le()).await {
            Err(_) => return Over::Ended(Ended::Silent),
            Ok(Err(_)) => return Over::Broken,
            Ok(Ok(before)) => before,
        };
        known = match link.flow().known_after(before) {
            Some(known) => known,
            None => return Over::Ended(Ended::Malformed),
        };
    }
    let mut bytes = Vec::new();
    loop {
        match while_carried(link, read_frame(&mut reader, &mut bytes)).await {
            Err(_) => return Over::Ended(Ended::Silent),
            Ok(Err(FrameError::TooLarge)) => return Over::Ended(Ended::TooLarge),
            Ok(Err(FrameError::Closed)) => return Over::Ended(Ended::Closed),
            Ok(Err(FrameError::Io(_))) => return Over::Broken,
            Ok(Ok(())) => shared.counters.message_in(),
        }
        link.note_heard(false);
        let message = control::decode(&bytes);
        if let Ok(Message::Alive(alive)) = message {
            if link.resumes && !link.take_word(alive.received) {
                return Over::Ended(Ended::Malformed);
            }
            link.take_alive(shared, alive);
            shared.take_waiting(link);
            continue;
        }
        if known > 0 {
            // It came over the connection before.
            known -= 1;
            continue;
        }
        link.note_heard(true);
        match message {
            // A later version's: whoever sends it can do without an answer.
            Err(ControlError::Unknown) => {}
            Ok(Message::Hello(_) | Message::Resume(_) | Message::Alive(_)) | Err(_) => return Over::Ended(Ended::Malformed),
            Ok(Message::Rekey(Rekey { generation })) if generation <= link.generation() => {}
            Ok(Message::Rekey(Rekey { generation })) => {
                let Ok(permit) = shared.events.reserve().await else { return Over::Ended(Ended::Closed) };
                // It has heard of the step before earlier than we, or later.
                if !link.step_to(generation, REKEY_PAUSE / 2) {
                    // A node of before steps twice when both ends step at once. With another link both begin anew.
                    let is_early = link.generation().checked_add(1) == Some(generation);
                    return Over::Ended(if is_early { Ended::Renewed } else { Ended::Malformed });
                }
                rekeyed(shared, link, generation, permit);
                link.send(&Message::Rekey(Rekey { generation }));
            }
            Ok(Message::Revoked(list)) => shared.take_told(link, list),
            Ok(Message::Data(data)) => {
                let place = link.data_place(bytes.len()).await;
                shared.emit(link, MeshEvent::Data { node: link.peer.node, data: Box::new(data), place }).await;
            }
            Ok(message) => shared.emit(link, MeshEvent::Message { node: link.peer.node, message }).await,
        }
        link.note_heard(false);
        if link.flow().note_received(bytes.len()) && link.resumes {
            link.tell_alive();
        }
    }
}

/// What is written next.
enum Next {
    /// The first of those that are kept.
    Kept(u64, Arc<[u8]>),
    Said(Vec<u8>),
}

async fn write(
    shared: &Shared,
    link: &Link,
    mut writer: impl AsyncWrite + Unpin,
    items: &mut mpsc::UnboundedReceiver<Item>,
    is_first: bool,
) -> Over {
    if !is_first {
        let before = link.flow().rewind();
        if while_carried(link, writer.write_all(&before.to_le_bytes())).await.is_err() {
            return Over::Ended(Ended::Slow);
        }
    }
    // The step to new keys that could not be made.
    let mut rekey_again = link.wants_rekey.load(Ordering::Relaxed).then(Instant::now);
    let mut alive = interval(link.alive_interval());
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let said = |message| Next::Said(control::encode(&message, link.peer.version).expect("ours are within the limits"));
    loop {
        let rekey_at = rekey_again.unwrap_or(link.keys().since + REKEY_INTERVAL);
        let (kept, is_full) = {
            let flow = link.flow();
            (flow.next(), flow.is_full())
        };
        let is_ready = kept.is_none() && !is_full;
        let next = tokio::select! {
            biased;
            _ = alive.tick() => {
                link.data().release_old(Instant::now());
                said(Message::Alive(link.alive(shared)))
            }
            () = std::future::ready(()), if kept.is_some() => match kept {
                Some((number, bytes)) => Next::Kept(number, bytes),
                None => continue,
            },
            () = link.taken.notified(), if is_full => continue,
            // The other end may have stepped since.
            () = sleep_until(rekey_at), if is_ready => {
                let is_due = rekey_again.take().is_some() || link.keys().since + REKEY_INTERVAL <= Instant::now();
                if is_due && !rekey(shared, link).await {
                    rekey_again = Some(Instant::now() + REKEY_PAUSE);
                }
                continue;
            }
            item = items.recv(), if is_ready => match item {
                None => return Over::Ended(Ended::Closed),
                Some(Item::Message { queued_at, .. }) if queued_at.elapsed() > SILENCE_MAX && !link.is_carried() => {
                    return Over::Ended(Ended::Slow);
                }
                Some(Item::Message { bytes, .. }) => {
                    link.queue_len.fetch_sub(bytes.len(), Ordering::Relaxed);
                    link.flow().push(bytes);
                    continue;
                }
                Some(Item::Hello(hello)) => said(Message::Hello(hello)),
                Some(Item::Alive) => said(Message::Alive(link.alive(shared))),
                Some(Item::Rekey) => {
                    if !rekey(shared, link).await {
                        rekey_again = Some(Instant::now() + REKEY_PAUSE);
                    }
                    continue;
                }
            },
            bytes = link.next_data(), if is_ready => {
                link.flow().push(bytes);
                continue;
            }
        };
        let bytes: &[u8] = match &next {
            Next::Kept(_, bytes) => bytes,
            Next::Said(bytes) => bytes,
        };
        match while_carried(link, write_frame(&mut writer, bytes)).await {
            Ok(Ok(())) => shared.counters.message_out(),
            Ok(Err(_)) => return Over::Broken,
            Err(_) => return Over::Ended(Ended::Slow),
        }
        if let Next::Kept(number, _) = next {
            let mut flow = link.flow();
            flow.note_written(number);
            if !link.resumes {
                flow.forget_written();
            }
        }
    }
}

/// Steps to new keys. `false`: not now; two steps that only one end has made would end the link, as a datagram tells its generation by one bit.
async fn rekey(shared: &Shared, link: &Link) -> bool {
    if link.is_cut() {
        return false;
    }
    // The node stops.
    let Ok(permit) = shared.events.reserve().await else { return true };
    link.wants_rekey.store(false, Ordering::Relaxed);
    let generation = link.generation().saturating_add(1);
    if link.step_to(generation, REKEY_PAUSE) {
        // Here first: what the other end seals with it must be opened when it comes.
        rekeyed(shared, link, generation, permit);
        link.send(&Message::Rekey(Rekey { generation }));
    }
    true
}

fn rekeyed(shared: &Shared, link: &Link, generation: u32, permit: mpsc::Permit<'_, MeshEvent>) {
    shared.counters.rekey();
    tracing::info!(target: crate::logging::AUDIT, node = link.peer.name, pop = link.peer.pop, generation, "mesh link rekeyed");
    shared.emit_by(permit, link, MeshEvent::Rekeyed { node: link.peer.node, generation });
}

/// Why no message was read.
pub(super) enum FrameError {
    TooLarge,
    /// The other end has said that there are no more.
    Closed,
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        FrameError::Io(error)
    }
}

/// One message's bytes, behind their length.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut len = [0; 4];
    let first = reader.read(&mut len).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut len[first..]).await?;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > CONTROL_LEN_MAX {
        return Err(FrameError::TooLarge);
    }
    bytes.resize(len, 0);
    reader.read_exact(bytes).await?;
    Ok(())
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).expect("encode() keeps to CONTROL_LEN_MAX");
    // One write, so that length and message are one TLS record.
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(bytes);
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// The first message of a connection.
pub(super) enum First {
    Hello(Hello),
    /// It is to take the place of a link's.
    Resume(Resume),
}

pub(super) async fn read_first(reader: &mut (impl AsyncRead + Unpin)) -> Result<First, Refusal> {
    let mut bytes = Vec::new();
    match read_frame(reader, &mut bytes).await {
        Ok(()) => {}
        Err(FrameError::TooLarge) => return Err(Refusal::TooLarge),
        Err(FrameError::Closed) => return Err(Refusal::Closed),
        Err(FrameError::Io(error)) => return Err(super::identity::refusal_of(&error)),
    }
    match control::decode(&bytes) {
        Ok(Message::Hello(hello)) => Ok(First::Hello(hello)),
        Ok(Message::Resume(resume)) => Ok(First::Resume(resume)),
        _ => Err(Refusal::Malformed),
    }
}

pub(super) async fn read_hello(reader: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    match read_first(reader).await? {
        First::Hello(hello) => Ok(hello),
        First::Resume(_) => Err(Refusal::Malformed),
    }
}

pub(super) async fn write_resume(writer: &mut (impl AsyncWrite + Unpin), resume: Resume) -> io::Result<()> {
    let bytes = control::encode(&Message::Resume(resume), control::VERSION).expect("it is short");
    write_frame(writer, &bytes).await
}

pub(super) async fn write_hello(writer: &mut (impl AsyncWrite + Unpin), hello: Hello) -> Result<(), Refusal> {
    let bytes = control::encode(&Message::Hello(hello), control::VERSION).expect("our own names and workers keep to the limits");
    write_frame(writer, &bytes).await.map_err(|error| super::identity::refusal_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn push(queue: &mut DataQueue, now: Instant, len: usize) -> Result<(), DataRefused> {
        queue.push(now, vec![0; len - DATA_COST], true, true, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_too_slow_loses_what_waits_and_then_gets_all_that_it_missed_at_once() {
        let (now, mut queue) = (Instant::now(), DataQueue::default());
        for n in 0..8 {
            assert_eq!(push(&mut queue, now, 64 * KIB), Ok(()), "message {n}");
        }
        assert_eq!(push(&mut queue, now, 64 * KIB), Err(DataRefused::Overflow { dropped: 9 }));
        assert!(queue.waiting.is_empty() && queue.len == 0);
        for n in 0..64 {
            assert_eq!(push(&mut queue, now, 64 * KIB), Ok(()), "message {n}");
        }
        assert_eq!(push(&mut queue, now, 64 * KIB), Err(DataRefused::Overflow { dropped: 65 }));
        // It has caught up when nothing waits any longer of what it has asked for.
        assert_eq!(push(&mut queue, now, 64 * KIB), Ok(()));
        assert!(queue.pop().is_some());
        assert_eq!(queue.pop(), None);
        for _ in 0..8 {
            assert_eq!(push(&mut queue, now, 64 * KIB), Ok(()));
        }
        assert!(matches!(push(&mut queue, now, 64 * KIB), Err(DataRefused::Overflow { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_what_was_left_before_it_asks_again_gets_all_that_it_missed_at_once() {
        let (now, mut queue) = (Instant::now(), DataQueue::default());
        assert!((0..9).any(|_| push(&mut queue, now, 64 * KIB).is_err()));
        // The writer finds nothing, and what nobody can ask for passes.
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.push(now, vec![1; KIB], true, false, None), Ok(()));
        assert!(queue.pop().is_some());
        assert_eq!(queue.pop(), None);
        for n in 0..16 {
            assert_eq!(push(&mut queue, now, 64 * KIB), Ok(()), "message {n} of those that were asked for again");
        }
        while queue.pop().is_some() {}
        assert!((0..9).any(|_| push(&mut queue, now, 64 * KIB).is_err()), "it has caught up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_for_two_seconds_loses_its_place() {
        let (now, mut queue) = (Instant::now(), DataQueue::default());
        assert_eq!(push(&mut queue, now, KIB), Ok(()));
        assert_eq!(push(&mut queue, now + DATA_AGE_MAX, KIB), Ok(()));
        assert_eq!(push(&mut queue, now + DATA_AGE_MAX + Duration::from_millis(1), KIB), Err(DataRefused::Overflow { dropped: 3 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lossy_message_waits_behind_little_and_never_costs_a_peer_its_place() {
        let (now, mut queue) = (Instant::now(), DataQueue::default());
        assert_eq!(queue.push(now, vec![1; 60 * KIB], false, false, None), Ok(()));
        assert_eq!(queue.push(now, vec![2; 8 * KIB], false, false, None), Err(DataRefused::Full));
        assert_eq!(push(&mut queue, now, 8 * KIB), Ok(()));
        assert_eq!(queue.push(now + 2 * DATA_AGE_MAX, vec![3; KIB], false, false, None), Err(DataRefused::Full));
        assert_eq!([queue.pop(), queue.pop()].map(|bytes| bytes.map(|bytes| bytes.len())), [Some(60 * KIB), Some(8 * KIB - DATA_COST)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_a_number_survives_an_overflow_and_is_written_first() {
        let (now, mut queue) = (Instant::now(), DataQueue::default());
        assert_eq!(queue.push(now, vec![9; KIB], true, false, None), Ok(()));
        let overflow = (0..8).map(|_| push(&mut queue, now, 64 * KIB)).find(Result::is_err);
        assert_eq!(overflow, Some(Err(DataRefused::Overflow { dropped: 8 })));
        assert_eq!(push(&mut queue, now, KIB), Ok(()), "what is asked for again");
        assert_eq!([queue.pop(), queue.pop(), queue.pop()].map(|bytes| bytes.map(|bytes| bytes[0])), [Some(9), Some(0), None]);
        assert_eq!(queue.len, 0);
        // They alone never fill it.
        let overflows = (0..100).filter(|_| queue.push(now, vec![9; 64 * KIB], true, false, None).is_err()).count();
        assert!(overflows > 0 && queue.len <= DATA_LEN_CATCHING_UP_MAX, "{overflows}, {}", queue.len);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_waits_for_a_slow_peer_for_a_moment_and_not_for_one_that_never_catches_up() {
        let (mut now, mut queue) = (Instant::now(), DataQueue::default());
        let places = Arc::new(Semaphore::new(100));
        let place = || Some(Arc::new(Arc::clone(&places).try_acquire_many_owned(10).unwrap()));
        for _ in 0..4 {
            assert_eq!(queue.push(now, vec![0; KIB], true, true, place()), Ok(()));
        }
        assert_eq!(places.available_permits(), 60);
        assert!(queue.pop().is_some());
        assert_eq!(places.available_permits(), 70, "what is written waits no longer");
        now += HOLD_MAX;
        assert_eq!(queue.push(now, vec![0; KIB], true, true, place()), Ok(()));
        assert_eq!(places.available_permits(), 90, "and what has waited long enough");
        while push(&mut queue, now, 64 * KIB).is_ok() {}
        assert_eq!(places.available_permits(), 100);
        assert_eq!(queue.push(now, vec![0; KIB], true, true, place()), Ok(()));
        assert_eq!(places.available_permits(), 100, "nobody waits for it now");
        while queue.pop().is_some() {}
        assert_eq!(queue.push(now + HOLD_PAUSE, vec![0; KIB], true, true, place()), Ok(()));
        assert_eq!(places.available_permits(), 90);
    }
}
