//! One control connection from its two Hellos to its end: one future that reads, one that writes, ended together.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pop_proto::control::LinkStats;
use pop_relay::control::{self, Alive, CONTROL_LEN_MAX, ControlError, Hello, Message, Rekey};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::counters::Refusal;
use super::{MeshEvent, Peer, Shared};
use crate::data::SenderPlace;

/// That this node lives is said so often.
const ALIVE_INTERVAL: Duration = Duration::from_millis(100);

/// One that stood still answers another that did so often at most.
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// A peer that says nothing for so long, or takes nothing, has no link.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// While datagrams of a node of another PoP come, whatever their way, its link is up: the path of the control connection is cut, and heals, or
/// the kernel gives the connection up. Workers tell once a second of what came.
const CARRIED_MAX: Duration = Duration::from_secs(3);

/// Messages that wait for a peer, in bytes. One that is further behind starts anew and is told the state again.
const QUEUE_LEN_MAX: usize = 1 << 20;

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
        }
    }

    /// When the other end is to blame.
    pub(super) const fn fault(self) -> Option<Refusal> {
        match self {
            Ended::Malformed => Some(Refusal::Malformed),
            Ended::TooLarge => Some(Refusal::TooLarge),
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
    Message { bytes: Vec<u8>, queued_at: Instant },
    Rekey,
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
    pub(super) fn new(id: u64, peer: Peer, dialled: bool, is_abroad: bool) -> (Link, mpsc::UnboundedReceiver<Item>) {
        let (items, receiver) = mpsc::unbounded_channel();
        let since = Instant::now();
        let keys = Mutex::new(Generation { number: 0, since });
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
            is_abroad,
            ended: watch::Sender::new(None),
        };
        (link, receiver)
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
    pub(super) fn tell_alive(&self, shared: &Shared) {
        let (dead, hung) = (shared.holds_dead(&self.peer), shared.is_hung());
        let alive = Alive { now_us: shared.now_us(), echo_us: self.their_us.load(Ordering::Relaxed), dead, hung };
        self.send(&Message::Alive(alive));
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
                self.tell_alive(shared);
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
        if came(&figures) > came(&before) {
            *self.carried_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Its datagrams come although the control connection says nothing.
    fn is_carried(&self) -> bool {
        let at = *self.carried_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_abroad && at.is_some_and(|at| at.elapsed() < CARRIED_MAX)
    }

    /// What is told now may arrive much later.
    fn is_cut(&self) -> bool {
        self.is_abroad && self.silence().is_some_and(|silence| silence > SILENCE_MAX / 4)
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

/// Reads and writes until the link ends; why it did. Then nothing of `stream` is left.
pub(super) async fn run<S: AsyncRead + AsyncWrite>(shared: &Shared, link: &Link, stream: S, items: mpsc::UnboundedReceiver<Item>) -> Ended {
    let (reader, writer) = tokio::io::split(stream);
    let mut ended = link.ended.subscribe();
    let told = async { ended.wait_for(Option::is_some).await.ok().and_then(|why| *why).unwrap_or(Ended::Closed) };
    tokio::select! {
        biased;
        why = told => why,
        why = read(shared, link, reader) => why,
        why = write(shared, link, writer, items) => why,
    }
}

async fn read(shared: &Shared, link: &Link, mut reader: impl AsyncRead + Unpin) -> Ended {
    let mut bytes = Vec::new();
    loop {
        let came = {
            let mut frame = pin!(read_frame(&mut reader, &mut bytes));
            loop {
                match timeout(SILENCE_MAX, frame.as_mut()).await {
                    Err(_) if link.is_carried() => {}
                    came => break came,
                }
            }
        };
        match came {
            Err(_) => return Ended::Silent,
            Ok(Err(FrameError::TooLarge)) => return Ended::TooLarge,
            Ok(Err(FrameError::Io(_))) => return Ended::Closed,
            Ok(Ok(())) => shared.counters.message_in(),
        }
        match control::decode(&bytes) {
            Ok(Message::Alive(alive)) => link.take_alive(shared, alive),
            // A later version's: whoever sends it can do without an answer.
            Err(ControlError::Unknown) => {}
            Ok(Message::Hello(_)) | Err(_) => return Ended::Malformed,
            Ok(Message::Rekey(Rekey { generation })) if generation <= link.generation() => {}
            Ok(Message::Rekey(Rekey { generation })) => {
                // It has heard of the step before earlier than we, or later.
                if !link.step_to(generation, REKEY_PAUSE / 2) {
                    // A node of before steps twice when both ends step at once. With another link both begin anew.
                    let is_early = link.generation().checked_add(1) == Some(generation);
                    return if is_early { Ended::Renewed } else { Ended::Malformed };
                }
                rekeyed(shared, link, generation).await;
                link.send(&Message::Rekey(Rekey { generation }));
            }
            Ok(Message::Data(data)) => {
                let place = link.data_place(bytes.len()).await;
                shared.emit(link, MeshEvent::Data { node: link.peer.node, data: Box::new(data), place }).await;
            }
            Ok(message) => shared.emit(link, MeshEvent::Message { node: link.peer.node, message }).await,
        }
    }
}

async fn write(shared: &Shared, link: &Link, mut writer: impl AsyncWrite + Unpin, mut items: mpsc::UnboundedReceiver<Item>) -> Ended {
    // The step to new keys that could not be made.
    let mut rekey_again = None;
    let mut alive = interval(ALIVE_INTERVAL);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let rekey_at = rekey_again.unwrap_or(link.keys().since + REKEY_INTERVAL);
        let item = tokio::select! {
            biased;
            // The other end may have stepped since.
            () = sleep_until(rekey_at) => match rekey_again.take().is_some() || link.keys().since + REKEY_INTERVAL <= Instant::now() {
                true => Some(Item::Rekey),
                false => continue,
            },
            item = items.recv() => item,
            _ = alive.tick() => {
                link.data().release_old(Instant::now());
                link.tell_alive(shared);
                continue;
            }
            bytes = link.next_data() => {
                match write_while_carried(link, &mut writer, &bytes).await {
                    Ok(Ok(())) => shared.counters.message_out(),
                    Ok(Err(_)) => return Ended::Closed,
                    Err(_) => return Ended::Slow,
                }
                continue;
            }
        };
        let written = match item {
            None => return Ended::Closed,
            Some(Item::Message { queued_at, .. }) if queued_at.elapsed() > SILENCE_MAX && !link.is_carried() => return Ended::Slow,
            Some(Item::Message { bytes, .. }) => {
                link.queue_len.fetch_sub(bytes.len(), Ordering::Relaxed);
                write_while_carried(link, &mut writer, &bytes).await
            }
            // Two steps that only one end has made would end the link: a datagram tells its generation by one bit.
            Some(Item::Rekey) if link.is_cut() => {
                rekey_again = Some(Instant::now() + REKEY_PAUSE);
                continue;
            }
            Some(Item::Rekey) => {
                let generation = link.generation().saturating_add(1);
                if link.step_to(generation, REKEY_PAUSE) {
                    // Here first: what the other end seals with it must be opened when it comes.
                    rekeyed(shared, link, generation).await;
                    link.send(&Message::Rekey(Rekey { generation }));
                }
                continue;
            }
        };
        match written {
            Ok(Ok(())) => shared.counters.message_out(),
            Ok(Err(_)) => return Ended::Closed,
            Err(_) => return Ended::Slow,
        }
    }
}

/// Within 2 s, or for as long as the link is carried.
async fn write_while_carried(link: &Link, writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<io::Result<()>, Elapsed> {
    let mut frame = pin!(write_frame(writer, bytes));
    loop {
        match timeout(SILENCE_MAX, frame.as_mut()).await {
            Err(_) if link.is_carried() => {}
            written => return written,
        }
    }
}

async fn rekeyed(shared: &Shared, link: &Link, generation: u32) {
    shared.counters.rekey();
    tracing::info!(target: crate::logging::AUDIT, node = link.peer.name, pop = link.peer.pop, generation, "mesh link rekeyed");
    shared.emit(link, MeshEvent::Rekeyed { node: link.peer.node, generation }).await;
}

/// Why no message was read.
pub(super) enum FrameError {
    TooLarge,
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        FrameError::Io(error)
    }
}

/// One message's bytes, behind their length.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    let len = usize::try_from(reader.read_u32_le().await?).unwrap_or(usize::MAX);
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
pub(super) async fn read_hello(reader: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    let mut bytes = Vec::new();
    match read_frame(reader, &mut bytes).await {
        Ok(()) => {}
        Err(FrameError::TooLarge) => return Err(Refusal::TooLarge),
        Err(FrameError::Io(error)) => return Err(super::identity::refusal_of(&error)),
    }
    match control::decode(&bytes) {
        Ok(Message::Hello(hello)) => Ok(hello),
        _ => Err(Refusal::Malformed),
    }
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
