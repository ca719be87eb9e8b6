//! The data of a member's transport: its SCTP association, what comes from it, and what waits for it.
//!
//! ```text
//! DTLS data -> handle_data -> Sctp -> poll_message: stamped with its sender, at the rate of a sender -> room
//! room -> Outbox -> queue -> [reliable | lossy] -> Sctp -> poll_transmit -> DTLS data
//! ```
//!
//! A sender that is too fast is not read from: its window closes, and it waits. Its lossy messages are dropped instead. Too fast is
//! more than a rate, and more than the slowest receiver takes, while that one is at most [`HOLD_MAX`] behind: a browser that stutters
//! makes a burst longer instead of losing its place in it. One that is slower than that waits alone.
//!
//! A receiver that is too slow has at most [`RELIABLE_LEN`] bytes or [`RELIABLE_AGE_MAX`] of reliable messages waiting. Then all
//! that waits for it is dropped, and the session tells its client to resume and sends again what it missed. What the association
//! has already is what came before all that, so the order holds. Each such end of the queue begins another generation of messages:
//! those of an older one are no longer sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pop_proto::control::DataMessage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::member::Order;
use crate::data::{DataCounters, DataDrop, Direction, SenderPlace};
use crate::sctp::{KeptChannel, Sctp, SctpEnd, SctpEvent, Side};
use crate::signal::livekit::data::Sender;

/// Channels of the room protocol.
pub(crate) const RELIABLE: &str = "_reliable";
pub(crate) const LOSSY: &str = "_lossy";
const DATA_TRACK: &str = "_data_track";

/// Bytes of reliable messages that wait for one receiver. Half of what a room keeps, so that what was dropped is still there when its
/// client comes back; then as much as the room keeps may wait, all of it at once.
const RELIABLE_LEN: usize = RELIABLE_LEN_MAX / 2;
const RELIABLE_LEN_MAX: usize = 1 << 20;

/// A receiver that is back has caught up when this is over and half of the queue is free.
const CATCH_UP_MIN: Duration = Duration::from_millis(100);

/// How long the oldest of them waits.
const RELIABLE_AGE_MAX: Duration = Duration::from_secs(2);

/// How long a message that waits for a receiver keeps its place among what its sender may have waiting.
const HOLD_MAX: Duration = Duration::from_millis(500);

/// A receiver that overflowed keeps no sender's places for so long: who never catches up must not slow the others again and again.
const HOLD_PAUSE: Duration = Duration::from_secs(30);

/// Bytes of lossy messages that wait for one receiver.
const LOSSY_LEN_MAX: usize = 64 << 10;

/// Bytes that one association has on its way: 2.5 MB/s at a round trip of 100 ms.
const RELIABLE_FLIGHT_LEN: usize = 256 << 10;
const LOSSY_FLIGHT_LEN: usize = 32 << 10;

/// What a waiting message costs beside its body, in bytes.
const PARCEL_COST: usize = 128;

/// What a receiver that a message names costs beside its name, in bytes: it is looked up.
const NAME_COST: usize = 64;

/// Bytes of one sender's messages that wait for the room, or for its receivers.
const ROOM_LEN_MAX: usize = 512 << 10;

/// Bytes of all senders' messages that wait for one room. From half of it on nobody's reliable ones are read: those that are on
/// their way find a place in the other half.
const ROOM_LEN_SUM_MAX: usize = 8 << 20;

/// When the room has that much, it is asked again after this.
const ROOM_RETRY: Duration = Duration::from_millis(2);

/// What a sender may send: a second and so much at once. Everybody in the room gets it, so one sender at 4 MiB/s is a room's load.
const RELIABLE_RATE: Rate = Rate { bytes: 4 << 20, bytes_burst: 1 << 20, messages: 5_000, messages_burst: 5_000 };
const LOSSY_RATE: Rate = Rate { bytes: 4 << 20, bytes_burst: 1 << 20, messages: 5_000, messages_burst: 5_000 };

/// Messages that are read in one turn.
const MESSAGES_PER_TURN: usize = 128;

/// A message on its way to one receiver's association.
pub(super) struct Parcel {
    message: Arc<DataMessage>,
    generation: u32,
    queued_at: Instant,
    _place: OwnedSemaphorePermit,
    /// The place among what its sender may have waiting.
    hold: Option<SenderPlace>,
}

/// A receiver's queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// The room's end of a receiver's queue.
pub(super) struct Outbox {
    orders: mpsc::UnboundedSender<Order>,
    reliable: Arc<Semaphore>,
    lossy: Arc<Semaphore>,
    generation: Arc<AtomicU32>,
    catching_up: CatchingUp,
    overflowed_at: Option<Instant>,
    counters: Arc<DataCounters>,
}

/// A receiver that has overflowed gets what it missed all at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CatchingUp {
    No,
    /// Nothing has come yet.
    Waits,
    Since(Instant),
}

impl Outbox {
    pub(super) fn new(orders: mpsc::UnboundedSender<Order>, counters: Arc<DataCounters>) -> Outbox {
        Outbox {
            orders,
            reliable: Arc::new(Semaphore::new(RELIABLE_LEN_MAX)),
            lossy: Arc::new(Semaphore::new(LOSSY_LEN_MAX)),
            generation: Arc::new(AtomicU32::new(0)),
            catching_up: CatchingUp::No,
            overflowed_at: None,
            counters,
        }
    }

    /// For [`DataPath::new`].
    pub(super) fn generation(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.generation)
    }

    /// Hands a message to the receiver's task. `hold` is its sender's place, where it comes from one now.
    ///
    /// # Errors
    /// [`Overflow`]: a reliable one has no place. The caller tells the session, and calls [`Outbox::restart`].
    pub(super) fn send(&mut self, now: Instant, message: &Arc<DataMessage>, hold: Option<&SenderPlace>) -> Result<(), Overflow> {
        let (places, len_max) = if message.reliable { (&self.reliable, RELIABLE_LEN_MAX) } else { (&self.lossy, LOSSY_LEN_MAX) };
        let cost = cost(message).min(len_max) as u32;
        let place = Arc::clone(places).try_acquire_many_owned(cost);
        let is_full = message.reliable && self.is_full(now);
        let Some(place) = place.ok().filter(|_| !is_full) else {
            if message.reliable {
                self.counters.count_drop(DataDrop::ReliableOverflow);
                return Err(Overflow);
            }
            self.counters.count_drop(DataDrop::LossyQueueFull);
            return Ok(());
        };
        let generation = self.generation.load(Relaxed);
        let may_hold = message.reliable && self.overflowed_at.is_none_or(|at| now >= at + HOLD_PAUSE);
        let hold = hold.filter(|_| may_hold).cloned();
        let parcel = Parcel { message: Arc::clone(message), generation, queued_at: now, _place: place, hold };
        if self.orders.send(Order::Send(parcel)).is_err() {
            self.counters.count_drop(DataDrop::NotConnected);
        }
        Ok(())
    }

    /// Whether more waits than may.
    fn is_full(&mut self, now: Instant) -> bool {
        let waiting = RELIABLE_LEN_MAX - self.reliable.available_permits();
        match self.catching_up {
            CatchingUp::No => {}
            CatchingUp::Waits => self.catching_up = CatchingUp::Since(now),
            CatchingUp::Since(at) if now >= at + CATCH_UP_MIN && waiting <= RELIABLE_LEN / 2 => self.catching_up = CatchingUp::No,
            CatchingUp::Since(_) => {}
        }
        self.catching_up == CatchingUp::No && waiting > RELIABLE_LEN
    }

    /// Whether this is the generation that overflowed: it may have been reported twice.
    pub(super) fn is_current(&self, generation: u32) -> bool {
        self.generation.load(Relaxed) == generation
    }

    /// What waits is no longer sent.
    pub(super) fn restart(&mut self, now: Instant) {
        self.catching_up = CatchingUp::Waits;
        self.overflowed_at = Some(now);
        self.generation.fetch_add(1, Relaxed);
        self.counters.count_overflow();
    }
}

/// A message of the client, with its places in what the room may have waiting.
pub(super) struct Received {
    pub(super) message: DataMessage,
    pub(super) places: Places,
}

/// Where a message waits.
pub(crate) struct Places {
    /// Among what one sender may have waiting.
    pub(super) sender: SenderPlace,
    /// Among what the whole room may.
    _room: OwnedSemaphorePermit,
}

/// Where the messages of a room's senders wait for it.
pub(super) fn new_room_places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM_LEN_SUM_MAX))
}

/// What a message costs while it waits, in bytes.
fn cost(message: &DataMessage) -> usize {
    message.body.len() + names_cost(message) + PARCEL_COST
}

/// The part of it that is for the receivers which it names.
fn names_cost(message: &DataMessage) -> usize {
    message.to.iter().map(|identity| identity.as_str().len() + NAME_COST).sum()
}

/// The task's part.
pub(super) struct DataPath {
    sctp: Sctp,
    /// Channels that are there as soon as DTLS is.
    kept: Vec<KeptChannel>,
    sender: Sender,
    counters: Arc<DataCounters>,

    /// Open channels by what they carry; the newest is sent on.
    reliable: Vec<u16>,
    lossy: Vec<u16>,
    others: Vec<(u16, DataDrop)>,

    reliable_bucket: Bucket,
    lossy_bucket: Bucket,
    /// Places in the room's mailbox: of this sender, and of all.
    own_places: Arc<Semaphore>,
    room_places: Arc<Semaphore>,
    /// Something is left to be read then.
    read_at: Option<Instant>,

    waiting: VecDeque<Parcel>,
    /// Of these the first so many have waited for [`HOLD_MAX`] and hold nothing.
    released: usize,
    lossy_waiting: VecDeque<Parcel>,
    generation: Arc<AtomicU32>,
    /// What the task itself has seen overflow.
    overflowed: Option<u32>,
    reported: Option<u32>,
    has_ended: bool,
}

impl DataPath {
    /// `generation` is of the receiver's [`Outbox`], `room_places` of [`new_room_places`]. `kept`: channels of a client whose transport was
    /// on another node.
    pub(super) fn new(
        now: Instant,
        sender: Sender,
        kept: Vec<KeptChannel>,
        generation: Arc<AtomicU32>,
        room_places: Arc<Semaphore>,
        counters: Arc<DataCounters>,
    ) -> DataPath {
        DataPath {
            sctp: Sctp::new(if kept.is_empty() { Side::Accepts } else { Side::Begins }, now),
            kept,
            sender,
            counters,
            reliable: Vec::new(),
            lossy: Vec::new(),
            others: Vec::new(),
            reliable_bucket: Bucket::new(RELIABLE_RATE, now),
            lossy_bucket: Bucket::new(LOSSY_RATE, now),
            own_places: Arc::new(Semaphore::new(ROOM_LEN_MAX)),
            room_places,
            read_at: None,
            waiting: VecDeque::new(),
            released: 0,
            lossy_waiting: VecDeque::new(),
            generation,
            overflowed: None,
            reported: None,
            has_ended: false,
        }
    }

    /// DTLS is through. A client that came from another node knows nothing of this association: it is asked to begin anew.
    pub(super) fn begin(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if !kept.is_empty() {
            self.sctp.begin_again(kept);
        }
    }

    /// Application data of the client.
    pub(super) fn handle_data(&mut self, now: Instant, data: &[u8]) {
        if let Err(reason) = self.sctp.handle_datagram(now, data) {
            self.counters.count_drop(reason);
        }
        self.read_at = Some(now);
        self.settle(now);
    }

    /// A message for the client.
    pub(super) fn queue(&mut self, now: Instant, parcel: Parcel) {
        if parcel.message.reliable {
            self.waiting.push_back(parcel)
        } else {
            self.lossy_waiting.push_back(parcel)
        }
        self.settle(now);
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.sctp.handle_timeout(now);
        self.settle(now);
    }

    /// When [`DataPath::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.waiting.front().map(|parcel| parcel.queued_at + RELIABLE_AGE_MAX);
        let held = self.waiting.get(self.released).map(|parcel| parcel.queued_at + HOLD_MAX);
        [self.sctp.poll_timeout(), oldest, held, self.read_at].into_iter().flatten().min()
    }

    /// The next packet for the client.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        self.sctp.poll_transmit(now)
    }

    /// Messages of the client, at most as many as one turn may have.
    pub(super) fn poll_messages(&mut self, now: Instant) -> Vec<Received> {
        let mut received = Vec::new();
        if self.read_at.is_none_or(|at| at > now) {
            return received;
        }
        self.read_at = None;
        self.read_others(now);
        self.read_lossy(now, &mut received);
        if received.len() == MESSAGES_PER_TURN {
            self.read_at = Some(now);
        }
        self.read_reliable(now, &mut received);
        self.settle(now);
        received
    }

    /// The generation that has just overflowed, once.
    pub(super) fn take_overflow(&mut self) -> Option<u32> {
        let overflowed = self.overflowed.filter(|_| self.reported != self.overflowed);
        self.reported = self.overflowed;
        overflowed
    }

    /// Brings what has happened together: events, what may go out now, what has waited too long.
    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.sctp.poll_event() {
            self.handle_event(event);
        }
        for reason in self.sctp.take_drops() {
            self.counters.count_drop(reason);
        }
        self.drop_what_is_over();
        self.send_waiting();
        self.release_old(now);
        if self.waiting.front().is_some_and(|parcel| now >= parcel.queued_at + RELIABLE_AGE_MAX) {
            self.overflow();
        }
    }

    fn handle_event(&mut self, event: SctpEvent) {
        match event {
            SctpEvent::Opened { channel, label, .. } => match &*label {
                RELIABLE => self.reliable.push(channel),
                LOSSY => self.lossy.push(channel),
                DATA_TRACK => self.others.push((channel, DataDrop::DataTrack)),
                _ => self.others.push((channel, DataDrop::UnknownChannel)),
            },
            SctpEvent::Closed { channel } => {
                self.reliable.retain(|known| *known != channel);
                self.lossy.retain(|known| *known != channel);
                self.others.retain(|(known, _)| *known != channel);
            }
            SctpEvent::Ended(end) => {
                self.reliable.clear();
                self.lossy.clear();
                self.others.clear();
                self.has_ended = true;
                self.counters.count_lost();
                if end == SctpEnd::Panicked {
                    self.counters.count_panic();
                }
            }
            SctpEvent::Connected | SctpEvent::Acknowledged { .. } => {}
        }
    }

    fn read_others(&mut self, now: Instant) {
        for (channel, reason) in self.others.clone() {
            while self.sctp.read(now, channel).is_some() {
                self.counters.count_drop(reason);
            }
        }
    }

    /// Lossy messages are never left behind: they would keep the reliable ones of their sender waiting.
    fn read_lossy(&mut self, now: Instant, received: &mut Vec<Received>) {
        for channel in self.lossy.clone() {
            while received.len() < MESSAGES_PER_TURN {
                let Some(message) = self.sctp.read(now, channel) else { break };
                if self.lossy_bucket.take(now, message.body.len()) {
                    self.take(false, &message.body, received);
                } else {
                    self.counters.count_drop(DataDrop::LossyRate);
                }
            }
        }
    }

    fn read_reliable(&mut self, now: Instant, received: &mut Vec<Received>) {
        for channel in self.reliable.clone() {
            loop {
                let is_busy = self.is_room_busy();
                let ready_at = if is_busy { now + ROOM_RETRY } else { self.reliable_bucket.ready_at(now) };
                if ready_at > now || received.len() >= 2 * MESSAGES_PER_TURN {
                    self.read_at = Some(self.read_at.map_or(ready_at, |at| at.min(ready_at)));
                    return;
                }
                let Some(message) = self.sctp.read(now, channel) else { break };
                self.reliable_bucket.charge(message.body.len());
                self.take(true, &message.body, received);
            }
        }
    }

    fn is_room_busy(&self) -> bool {
        let is_half_used = |places: &Semaphore, max: usize| places.available_permits() < max / 2;
        is_half_used(&self.own_places, ROOM_LEN_MAX) || is_half_used(&self.room_places, ROOM_LEN_SUM_MAX)
    }

    fn take(&mut self, reliable: bool, body: &[u8], received: &mut Vec<Received>) {
        self.counters.count(Direction::Received, reliable, body.len());
        let stamped = self.sender.stamp(reliable, body).and_then(|message| {
            let bucket = if reliable { &mut self.reliable_bucket } else { &mut self.lossy_bucket };
            bucket.charge_bytes(names_cost(&message));
            let cost = cost(&message) as u32;
            let place = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_many_owned(cost).map_err(|_| DataDrop::LossyRate);
            let places = Places { sender: Arc::new(place(&self.own_places)?), _room: place(&self.room_places)? };
            Ok(Received { message, places })
        });
        match stamped {
            Ok(message) => received.push(message),
            Err(reason) => self.counters.count_drop(reason),
        }
    }

    /// Drops what waits of a generation that has overflowed.
    fn drop_what_is_over(&mut self) {
        let current = self.generation.load(Relaxed);
        let is_over = |parcel: &Parcel| parcel.generation != current || Some(parcel.generation) == self.overflowed;
        if self.waiting.front().is_some_and(&is_over) {
            let before = self.waiting.len();
            self.waiting.retain(|parcel| !is_over(parcel));
            self.released = 0;
            for _ in self.waiting.len()..before {
                self.counters.count_drop(DataDrop::ReliableOverflow);
            }
        }
        if self.has_ended {
            self.released = 0;
            let lost = self.waiting.drain(..).chain(self.lossy_waiting.drain(..));
            lost.for_each(|_| self.counters.count_drop(DataDrop::NotConnected));
        }
    }

    fn send_waiting(&mut self) {
        if let Some(channel) = self.lossy.last().copied() {
            while !self.lossy_waiting.is_empty() && self.sctp.buffered_len(channel) < LOSSY_FLIGHT_LEN {
                let parcel = self.lossy_waiting.pop_front().expect("it is not empty");
                self.send(channel, &parcel);
            }
        }
        if let Some(channel) = self.reliable.last().copied() {
            while !self.waiting.is_empty() && self.sctp.buffered_len(channel) < RELIABLE_FLIGHT_LEN {
                let parcel = self.waiting.pop_front().expect("it is not empty");
                self.released = self.released.saturating_sub(1);
                self.send(channel, &parcel);
            }
        }
    }

    /// Nobody's sender waits any longer for this receiver to take what is that old.
    fn release_old(&mut self, now: Instant) {
        while let Some(parcel) = self.waiting.get_mut(self.released).filter(|parcel| now >= parcel.queued_at + HOLD_MAX) {
            parcel.hold = None;
            self.released += 1;
        }
    }

    fn send(&mut self, channel: u16, parcel: &Parcel) {
        let body = &parcel.message.body;
        match self.sctp.send(channel, true, &Bytes::copy_from_slice(body)) {
            Ok(()) => self.counters.count(Direction::Sent, parcel.message.reliable, body.len()),
            Err(_) => self.counters.count_drop(DataDrop::NotConnected),
        }
    }

    /// The oldest has waited too long. A client that never opened a channel is not told anything: it does not want data.
    fn overflow(&mut self) {
        if self.reliable.is_empty() {
            self.released = 0;
            self.waiting.drain(..).for_each(|_| self.counters.count_drop(DataDrop::NotConnected));
            return;
        }
        self.overflowed = self.waiting.front().map(|parcel| parcel.generation);
        self.drop_what_is_over();
    }
}

/// What may come in a second, and at once.
#[derive(Clone, Copy)]
struct Rate {
    bytes: u64,
    bytes_burst: u64,
    messages: u64,
    messages_burst: u64,
}

/// Tokens for bytes and for messages, both in millionths, so that a microsecond brings a whole number. They may go below zero by one
/// message.
struct Bucket {
    rate: Rate,
    bytes: i64,
    messages: i64,
    filled_at: Instant,
}

const MILLION: i64 = 1_000_000;

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Bucket {
        Bucket { rate, bytes: rate.bytes_burst as i64 * MILLION, messages: rate.messages_burst as i64 * MILLION, filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        // Ten seconds fill every bucket.
        let us = now.saturating_duration_since(self.filled_at).as_micros().min(10_000_000) as i64;
        self.filled_at = now;
        self.bytes = (self.bytes + us * self.rate.bytes as i64).min(self.rate.bytes_burst as i64 * MILLION);
        self.messages = (self.messages + us * self.rate.messages as i64).min(self.rate.messages_burst as i64 * MILLION);
    }

    /// When a message may be taken.
    fn ready_at(&mut self, now: Instant) -> Instant {
        self.fill(now);
        let wait = |tokens: i64, rate: u64| (-tokens).max(-1) / rate as i64 + 1;
        if self.bytes > 0 && self.messages > 0 {
            return now;
        }
        let us = wait(self.bytes, self.rate.bytes).max(wait(self.messages, self.rate.messages)).max(1);
        now + Duration::from_micros(us as u64)
    }

    fn charge_bytes(&mut self, len: usize) {
        self.bytes -= len as i64 * MILLION;
    }

    fn charge(&mut self, len: usize) {
        self.charge_bytes(len);
        self.messages -= MILLION;
    }

    fn take(&mut self, now: Instant, len: usize) -> bool {
        let ready = self.ready_at(now) <= now;
        if ready {
            self.charge(len);
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pop_schemas::{Identity, ParticipantId};

    use super::*;
    use crate::sctp::{Limit, Promise};
    use crate::signal::livekit::data::testing::{packet, packet_to, sender_of};

    const PROMISES: [(&str, Promise); 3] = [
        (RELIABLE, Promise { ordered: true, limit: Limit::None }),
        (LOSSY, Promise { ordered: false, limit: Limit::Repeats(0) }),
        (DATA_TRACK, Promise { ordered: false, limit: Limit::Repeats(0) }),
    ];

    /// A member of a room: its client, its transport's data, and the room's end of its queue.
    struct Member {
        client: Sctp,
        path: DataPath,
        outbox: Outbox,
        orders: mpsc::UnboundedReceiver<Order>,
        reads: bool,
        /// What the client has got, by channel.
        got: BTreeMap<&'static str, Vec<Vec<u8>>>,
        /// What the room has got, with its places.
        said: Vec<DataMessage>,
        overflows: Vec<u32>,
    }

    impl Member {
        fn new(now: Instant, name: &str, counters: &Arc<DataCounters>) -> Member {
            let (sender, orders) = mpsc::unbounded_channel();
            let outbox = Outbox::new(sender, Arc::clone(counters));
            let stamp = Sender::new(ParticipantId(7), Identity::new(name).unwrap(), Arc::default());
            let path = DataPath::new(now, stamp, Vec::new(), outbox.generation(), new_room_places(), Arc::clone(counters));
            let mut client = Sctp::new(Side::Begins, now);
            client.begin();
            let (got, said, overflows) = (BTreeMap::new(), Vec::new(), Vec::new());
            Member { client, path, outbox, orders, reads: true, got, said, overflows }
        }

        /// A round trip on a network without delay; the room takes at once what is said.
        fn turn(&mut self, now: Instant) {
            let received = self.exchange(now);
            self.said.extend(received.into_iter().map(|received| received.message));
        }

        fn exchange(&mut self, now: Instant) -> Vec<Received> {
            self.client.handle_timeout(now);
            self.path.handle_timeout(now);
            while let Ok(Order::Send(parcel)) = self.orders.try_recv() {
                self.path.queue(now, parcel);
            }
            while let Some(packet) = self.client.poll_transmit(now) {
                self.path.handle_data(now, &packet);
            }
            let received = self.path.poll_messages(now);
            self.overflows.extend(self.path.take_overflow());
            while let Some(packet) = self.path.poll_transmit(now) {
                let _ = self.client.handle_datagram(now, &packet);
            }
            while let Some(event) = self.client.poll_event() {
                if event == SctpEvent::Connected {
                    for (label, promise) in PROMISES {
                        self.client.open(label, promise).expect("it is connected");
                    }
                }
            }
            for (label, _) in PROMISES {
                let Some(channel) = self.client.find(label).filter(|_| self.reads) else { continue };
                while let Some(message) = self.client.read(now, channel) {
                    self.got.entry(label).or_default().push(message.body);
                }
            }
            received
        }

        fn say(&mut self, label: &str, body: &[u8]) {
            let channel = self.client.find(label).expect("it is open");
            self.client.send(channel, true, &Bytes::copy_from_slice(body)).unwrap();
        }

        fn numbers(&self) -> Vec<u32> {
            self.got.get(RELIABLE).into_iter().flatten().map(|body| u32::from_be_bytes(body[..4].try_into().unwrap())).collect()
        }
    }

    fn members(names: &[&str]) -> (Instant, Vec<Member>, Arc<DataCounters>) {
        let counters: Arc<DataCounters> = Arc::default();
        let mut now = Instant::now();
        let mut members: Vec<Member> = names.iter().map(|name| Member::new(now, name, &counters)).collect();
        for _ in 0..100 {
            now += Duration::from_millis(1);
            members.iter_mut().for_each(|member| member.turn(now));
        }
        assert!(members.iter().all(|member| member.path.reliable.len() == 1 && member.path.lossy.len() == 1));
        (now, members, counters)
    }

    fn message(number: u32, len: usize, reliable: bool) -> Arc<DataMessage> {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(len, 7);
        Arc::new(DataMessage { reliable, to: Vec::new(), sequence: number, body: body.into() })
    }

    #[test]
    fn messages_come_in_order_with_their_senders_name_and_data_tracks_end_here() {
        let (mut now, mut members, counters) = members(&["ann"]);
        let ann = &mut members[0];
        for n in 1..=300 {
            ann.say(RELIABLE, &packet(vec![n as u8; 100], n));
            ann.say(DATA_TRACK, b"a frame");
        }
        ann.say(LOSSY, &packet(vec![1], 0));
        ann.say(RELIABLE, b"no packet");
        for _ in 0..100 {
            now += Duration::from_millis(1);
            ann.turn(now);
        }
        let (reliable, lossy): (Vec<_>, Vec<_>) = ann.said.iter().partition(|message| message.reliable);
        assert_eq!(reliable.iter().map(|m| m.sequence).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
        assert_eq!(lossy.len(), 1);
        assert!(ann.said.iter().all(|message| sender_of(&message.body) == "ann"));
        assert_eq!(counters.dropped(DataDrop::DataTrack), 300);
        assert_eq!(counters.dropped(DataDrop::Malformed), 1);
        assert_eq!(counters.total(Direction::Received, true).0, 301);
    }

    #[test]
    fn a_receiver_that_stops_is_told_while_the_others_go_on_and_misses_nothing_when_it_is_back() {
        let (mut now, mut members, counters) = members(&["slow", "fast"]);
        members[0].reads = false;
        let (mut sent, mut stopped_at) = (0, None);
        let begin = now;
        while sent < 4_000 {
            now += Duration::from_millis(2);
            // 150 KB a second: it is the age that is too much.
            let message = message(sent, 300, true);
            for member in members.iter_mut().filter(|member| member.overflows.is_empty()) {
                assert!(member.outbox.send(now, &message, None).is_ok());
            }
            sent += 1;
            members.iter_mut().for_each(|member| member.turn(now));
            if members[0].overflows.len() == 1 && stopped_at.is_none() {
                stopped_at = Some(now - begin);
                members[0].outbox.restart(now);
            }
        }
        let stopped_at = stopped_at.expect("it does not read");
        println!("told after {stopped_at:?}");
        assert!(stopped_at >= RELIABLE_AGE_MAX && stopped_at < Duration::from_secs(7), "{stopped_at:?}");
        assert_eq!(members[1].numbers(), (0..4_000).collect::<Vec<_>>(), "the other one goes on");
        assert_eq!((members[0].overflows.len(), members[1].overflows.len()), (1, 0));
        assert_eq!(counters.overflows(), 1);
        assert!(counters.dropped(DataDrop::ReliableOverflow) > 0);
        // It is back, and says what it has; the session sends the rest again, while the association still has some of the old.
        members[0].reads = true;
        members[0].turn(now);
        let has = members[0].numbers().len() as u32;
        let mut next = has;
        for _ in 0..4_000 {
            now += Duration::from_millis(1);
            if next < 4_000 && members[0].outbox.send(now, &message(next, 300, true), None).is_ok() {
                next += 1;
            }
            members[0].turn(now);
        }
        // As clients of the room protocol do: what is not newer than the last one is a repeat.
        let mut newest = None;
        let numbers: Vec<u32> = members[0]
            .numbers()
            .into_iter()
            .filter(|n| newest.replace(newest.map_or(*n, |m: u32| m.max(*n))).is_none_or(|m| *n > m))
            .collect();
        assert_eq!(numbers, (0..4_000).collect::<Vec<_>>(), "none missing, none out of order");
    }

    #[test]
    fn a_queue_that_is_full_overflows_at_once() {
        let (now, mut members, counters) = members(&["slow"]);
        let slow = &mut members[0];
        slow.reads = false;
        let taken = (0..100).take_while(|n| slow.outbox.send(now, &message(*n, 60_000, true), None).is_ok()).count();
        assert_eq!(taken, RELIABLE_LEN / (60_000 + PARCEL_COST));
        assert_eq!(counters.dropped(DataDrop::ReliableOverflow), 1);
        slow.outbox.restart(now);
        slow.turn(now);
        assert!(slow.path.waiting.is_empty(), "what waited is gone, and its places are free");
        assert!(!slow.outbox.is_current(0) && slow.outbox.is_current(1));
        // All that the room has kept comes at once, and more is too much.
        let replayed = (0..100).take_while(|n| slow.outbox.send(now, &message(*n, 60_000, true), None).is_ok()).count();
        assert_eq!(replayed, RELIABLE_LEN_MAX / (60_000 + PARCEL_COST));
    }

    /// Sends 3,000 messages of 1,000 bytes as fast as they are taken, to a receiver that reads nothing in `stopped`. When all were
    /// taken, and how often it overflowed.
    fn burst_to_one_that_stops(stopped: std::ops::Range<u64>) -> (Duration, u64) {
        let (mut now, mut members, counters) = members(&["ann", "bob"]);
        let (begin, mut next) = (now, 1);
        let channel = members[0].client.find(RELIABLE).unwrap();
        let mut all_said_at = None;
        while now - begin < Duration::from_secs(6) {
            now += Duration::from_millis(1);
            let [ann, bob] = &mut members[..] else { unreachable!() };
            while next <= 3_000 && ann.client.buffered_len(channel) < 1 << 20 {
                ann.say(RELIABLE, &packet(vec![0; 1_000], next));
                next += 1;
            }
            bob.reads = !stopped.contains(&((now - begin).as_millis() as u64));
            let received = ann.exchange(now);
            let mut is_behind = false;
            for Received { message, places } in received {
                let message = Arc::new(message);
                is_behind |= bob.outbox.send(now, &message, Some(&places.sender)).is_err();
                ann.said.push(Arc::unwrap_or_clone(message));
            }
            bob.turn(now);
            if is_behind || bob.overflows.pop().is_some_and(|generation| bob.outbox.is_current(generation)) {
                bob.outbox.restart(now);
            }
            if ann.said.len() == 3_000 {
                all_said_at.get_or_insert(now - begin);
            }
        }
        if counters.overflows() == 0 {
            assert_eq!(members[1].got[RELIABLE].len(), 3_000);
        }
        (all_said_at.expect("all are taken at last"), counters.overflows())
    }

    #[test]
    fn a_receiver_that_stutters_slows_a_burst_and_one_that_stops_does_so_for_a_moment_only() {
        let (fluent, overflows) = burst_to_one_that_stops(0..0);
        assert_eq!(overflows, 0);
        let (stutter, overflows) = burst_to_one_that_stops(100..500);
        assert_eq!(overflows, 0, "it is waited for");
        let (stop, overflows) = burst_to_one_that_stops(100..6_000);
        println!("3 MB taken in {fluent:?}, {stutter:?} with a stutter, {stop:?} with one that stops");
        assert!(overflows > 0, "it is behind, and told so");
        assert!(stutter < fluent + Duration::from_millis(450), "{stutter:?}");
        assert!(stop < fluent + 4 * HOLD_MAX, "the others go on: {stop:?}");
    }

    #[test]
    fn lossy_messages_are_dropped_and_never_wait_behind_reliable_ones() {
        let (mut now, mut members, counters) = members(&["slow"]);
        let slow = &mut members[0];
        slow.reads = false;
        for n in 0..2_000 {
            now += Duration::from_micros(100);
            assert!(slow.outbox.send(now, &message(n, 1_000, false), None).is_ok());
            slow.turn(now);
        }
        let dropped = counters.dropped(DataDrop::LossyQueueFull);
        assert!((1_500..1_970).contains(&dropped), "{dropped}");
        assert!(slow.overflows.is_empty());
        slow.reads = true;
        for _ in 0..2_000 {
            now += Duration::from_millis(1);
            slow.turn(now);
        }
        assert!(slow.outbox.send(now, &message(1, 1_000, false), None).is_ok());
        let before = slow.got[LOSSY].len();
        for n in 0..200 {
            assert!(slow.outbox.send(now, &message(n, 2_000, true), None).is_ok());
        }
        slow.outbox.send(now, &message(2, 1_000, false), None).unwrap();
        for _ in 0..10 {
            now += Duration::from_millis(1);
            slow.turn(now);
        }
        assert_eq!(slow.got[LOSSY].len(), before + 2);
    }

    #[test]
    fn naming_many_receivers_costs_as_much_as_sending_bytes() {
        let (mut now, mut members, counters) = members(&["flood"]);
        let flood = &mut members[0];
        let packet = packet_to(vec!["b".repeat(16); 200]);
        for _ in 0..100 {
            now += Duration::from_millis(1);
            (0..2).for_each(|_| flood.say(LOSSY, &packet));
            flood.turn(now);
        }
        let paid = RELIABLE_RATE.bytes_burst as usize / (200 * (16 + NAME_COST));
        println!("{} of 200 messages taken", flood.said.len());
        assert!((paid..2 * paid + 10).contains(&flood.said.len()), "{}", flood.said.len());
        assert!(counters.dropped(DataDrop::LossyRate) > 0);
    }

    #[test]
    fn nobody_is_read_while_too_much_waits_for_the_room_and_nothing_is_lost() {
        let (mut now, mut members, counters) = members(&["ann"]);
        let ann = &mut members[0];
        let room = Arc::clone(&ann.path.room_places);
        let others = room.try_acquire_many((ROOM_LEN_SUM_MAX / 2 + 1) as u32).unwrap();
        (1..=20).for_each(|n| ann.say(RELIABLE, &packet(vec![1], n)));
        let turns = |ann: &mut Member, now: &mut Instant| {
            for _ in 0..50 {
                *now += Duration::from_millis(1);
                ann.turn(*now);
            }
        };
        turns(ann, &mut now);
        assert!(ann.said.is_empty());
        drop(others);
        turns(ann, &mut now);
        assert_eq!(ann.said.len(), 20);
        assert_eq!(counters.dropped(DataDrop::LossyRate), 0);
    }

    #[test]
    fn a_sender_that_floods_is_slowed_and_loses_nothing() {
        let (mut now, mut members, counters) = members(&["flood"]);
        let flood = &mut members[0];
        let channel = flood.client.find(RELIABLE).unwrap();
        let begin = now;
        let mut next = 1;
        while flood.said.len() < 1_200 && now - begin < Duration::from_secs(60) {
            now += Duration::from_millis(1);
            // As fast as it is taken.
            while next <= 1_200 && flood.client.buffered_len(channel) < 1 << 20 {
                flood.say(RELIABLE, &packet(vec![0; 15_000], next));
                next += 1;
            }
            flood.turn(now);
        }
        let elapsed = now - begin;
        let rate = 1_200.0 * 15_000.0 / elapsed.as_secs_f64();
        println!("18 MB in {elapsed:?}: {:.1} MB/s", rate / 1e6);
        assert_eq!(flood.said.iter().map(|m| m.sequence).collect::<Vec<_>>(), (1..=1_200).collect::<Vec<_>>());
        assert!(rate < 1.1 * (RELIABLE_RATE.bytes + RELIABLE_RATE.bytes_burst / 3) as f64, "{rate}");
        assert!(rate > 0.5 * RELIABLE_RATE.bytes as f64, "the window opens again without a timer of the sender: {rate}");
        for reason in [DataDrop::SctpFlood, DataDrop::LossyRate, DataDrop::Malformed] {
            assert_eq!(counters.dropped(reason), 0, "{reason:?}");
        }
    }

    #[test]
    fn who_never_opened_a_channel_is_told_nothing() {
        let counters: Arc<DataCounters> = Arc::default();
        let mut now = Instant::now();
        let mut silent = Member::new(now, "silent", &counters);
        for n in 0..3_000 {
            now += Duration::from_millis(1);
            assert!(silent.outbox.send(now, &message(n, 100, true), None).is_ok());
            while let Ok(Order::Send(parcel)) = silent.orders.try_recv() {
                silent.path.queue(now, parcel);
            }
            silent.path.handle_timeout(now);
        }
        assert_eq!(silent.path.take_overflow(), None);
        assert!(counters.dropped(DataDrop::NotConnected) >= 900);
    }
}
