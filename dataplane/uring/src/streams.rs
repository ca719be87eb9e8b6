//! Datagrams over TCP (RFC 4571 framing): the passive side of ICE-TCP (RFC 6544) for one worker thread.
//!
//! ```text
//!             accept          a check of a transport here: prove
//!   listener --------> unproven ---------------------------------> proven ----> closed: the owner is told
//!                         | 5 s, 4 frames, no STUN, evicted           | peer, framing, 10 s stalled, nobody's any more
//!                         +----> reset, counted                       |
//!   send ---> writev, what does not fit the kernel waits in the connection's queue; what does not fit there is dropped, whole
//! ```
//! Anybody may connect, so a connection is worth little until it has proven itself, and nothing here waits, grows or allocates for
//! one: every bound is taken at start.

mod epoll;
mod frame;
mod queue;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use self::epoll::{EVENTS_MAX, Epoll};
use self::frame::{Front, LENGTH_LEN, front};
use self::queue::Queue;

pub use self::frame::FRAME_LEN_MAX;

/// A connection that has not proven itself by then is closed. An honest one does within two round trips.
const PROVE_WITHIN: Duration = Duration::from_secs(5);

/// Frames that a connection may send without proving itself: checks that are answered with an error, and repeats.
const UNPROVEN_FRAMES_MAX: u8 = 4;

/// Unproven connections at one time; one more evicts the oldest, which had the most time.
const UNPROVEN_MAX: usize = 128;

/// Unproven connections of one source. A browser opens one or two, and an office behind one address comes at the full hour.
const UNPROVEN_PER_SOURCE_MAX: usize = 32;

/// Connections of one source: an office behind one address.
const PER_SOURCE_MAX: usize = 128;

/// A connection whose queue moves by no byte for this long is closed: its peer reads nothing.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(50);

/// Connections accepted per [`TICK`]: 4,000 a second, about 3 % of a core when all of them are strangers.
const ACCEPTS_PER_TICK: u32 = 200;

/// Bytes that the kernel may hold unsent for one connection (`TCP_NOTSENT_LOWAT`): what is on its way to the peer does not count,
/// so this is delay alone, half a second at 2 Mb/s.
const UNSENT_MAX: u32 = 128 << 10;

/// The last bytes of a queue are for short datagrams: answers to checks, RTCP and audio pass where video no longer does.
const RESERVE_LEN: usize = 4 << 10;
const SHORT_LEN: usize = 256;

/// Bytes of one read.
const READ_LEN: usize = 64 << 10;

/// Segments of one train, as over UDP.
const SEGMENTS_MAX: usize = 64;

/// What the streams of one thread may take of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamsConfig {
    /// Connections at one time.
    pub connections: u16,
    /// Bytes that wait in one connection's queue for its peer, 8 KiB at least. Together with the kernel's 128 KiB a keyframe must fit.
    pub queue_len: u32,
}

impl StreamsConfig {
    /// Bytes of one connection. Pages of a queue count once a peer was slow.
    pub const fn connection_len(&self) -> usize {
        self.queue_len as usize + PARTIAL_LEN + size_of::<Slot>() + 2 * size_of::<(Key, u16)>() + size_of::<Key>()
    }
}

/// Bytes of a frame that is not whole yet.
const PARTIAL_LEN: usize = LENGTH_LEN + FRAME_LEN_MAX;

/// A listener's index and the far end: one connection.
type Key = (u16, SocketAddr);

/// Counters since the start, and how many connections are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Connections open now.
    pub open: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Accepts that the kernel refused: no descriptors, no memory.
    pub accept_errors: u64,
    /// Connections refused because their source has too many, or because all places are taken by proven ones.
    pub refused: u64,
    /// Connections closed because they did not prove themselves in time, in few frames or at all, evicted ones included.
    pub unproven: u64,
    /// Connections closed for a frame of a length that no datagram has.
    pub misframed: u64,
    /// Connections closed because their peer read nothing for 10 s.
    pub stalled: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams sent or queued.
    pub datagrams_sent: u64,
    /// Datagrams dropped because their connection's queue was full.
    pub queue_full: u64,
    /// Datagrams dropped because their connection is gone.
    pub sends_failed: u64,
}

/// A datagram that came over a connection.
#[derive(Debug)]
pub struct StreamReceived<'a> {
    /// Index of the listener in the list that [`Streams::new`] was given.
    pub listener: u16,
    /// The far end of the connection.
    pub from: SocketAddr,
    /// The connection has proven itself. If not, and this datagram does, the owner calls [`Streams::prove`].
    pub proven: bool,
    /// 1 to [`FRAME_LEN_MAX`] bytes.
    pub bytes: &'a mut [u8],
}

struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

struct Connection {
    stream: TcpStream,
    key: Key,
    accepted_at: Duration,
    proven: bool,
    unproven_frames: u8,
    /// Bytes in this connection's part of `Streams::partials`.
    partial_len: u16,
    queue: Queue,
    /// When the queue last moved, as of the last tick; `None` while it is empty.
    moved_at: Option<Duration>,
    /// The queue has moved since the last tick.
    moved: bool,
}

/// A place and how many had it before.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: u16,
    generation: u32,
}

struct Listener {
    listener: TcpListener,
    /// Reported by the set; else it waits for the next tick.
    armed: bool,
}

/// What is being read: a connection's bytes in `Streams::scratch`.
struct Reading {
    place: Place,
    at: usize,
    end: usize,
}

/// Why a connection ends.
#[derive(Clone, Copy)]
enum End {
    Peer,
    Owner,
    Unproven,
    Misframed,
    Stalled,
}

/// The listeners and connections of one worker thread.
pub struct Streams {
    epoll: Epoll,
    listeners: Box<[Listener]>,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    by_key: HashMap<Key, u16>,
    queue_len: usize,
    queues: Box<[u8]>,
    partials: Box<[u8]>,
    scratch: Box<[u8]>,
    /// Connections that have something to read, found by the last look.
    readable: VecDeque<Place>,
    reading: Option<Reading>,
    closed: VecDeque<Key>,
    accepts_left: u32,
    next_tick: Duration,
    stats: StreamStats,
}

impl Streams {
    /// Listens on `listeners` (see [`bind_tcp`](crate::bind_tcp)) and takes all memory.
    ///
    /// # Errors
    ///
    /// What the kernel refused; `InvalidInput` for no connections or a queue below 8 KiB.
    pub fn new(listeners: Vec<TcpListener>, config: &StreamsConfig) -> io::Result<Self> {
        if config.connections == 0 || (config.queue_len as usize) < 2 * RESERVE_LEN {
            return Err(io::Error::new(ErrorKind::InvalidInput, "StreamsConfig: connections is 0 or queue_len is below 8192"));
        }
        let (count, queue_len) = (usize::from(config.connections), config.queue_len as usize);
        let epoll = Epoll::new()?;
        for (index, listener) in listeners.iter().enumerate() {
            listener.set_nonblocking(true)?;
            epoll.add(listener.as_fd(), LISTENER_TOKEN | index as u64, LISTENER_FLAGS)?;
        }
        Ok(Self {
            epoll,
            listeners: listeners.into_iter().map(|listener| Listener { listener, armed: true }).collect(),
            slots: (0..count).map(|_| Slot { generation: 0, connection: None }).collect(),
            free: (0..config.connections).rev().collect(),
            by_key: HashMap::with_capacity(count),
            queue_len,
            queues: vec![0; count * queue_len].into(),
            partials: vec![0; count * PARTIAL_LEN].into(),
            scratch: vec![0; PARTIAL_LEN + READ_LEN].into(),
            readable: VecDeque::with_capacity(EVENTS_MAX),
            reading: None,
            closed: VecDeque::with_capacity(count),
            accepts_left: ACCEPTS_PER_TICK,
            next_tick: Duration::ZERO,
            stats: StreamStats::default(),
        })
    }

    /// A descriptor that is readable while [`turn`](Self::turn) has something to do, for [`Backend::watch`](crate::Backend::watch).
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn watch_fd(&self) -> io::Result<OwnedFd> {
        self.epoll.as_fd().try_clone_to_owned()
    }

    /// Looks once at what is ready: accepts, writes what waited, and notes who can be read. `now` is monotonic.
    ///
    /// # Errors
    ///
    /// Only what no peer can cause.
    pub fn turn(&mut self, now: Duration) -> io::Result<()> {
        if self.has_unread() {
            return Ok(());
        }
        for at in 0..self.epoll.look()? {
            let ready = self.epoll.ready(at);
            if ready.token & LISTENER_TOKEN != 0 {
                self.accept(now, (ready.token & !LISTENER_TOKEN) as usize);
                continue;
            }
            let place = Place { slot: ready.token as u16, generation: (ready.token >> 16) as u32 };
            if ready.writable {
                self.flush(place);
            }
            if ready.readable {
                self.readable.push_back(place);
            }
        }
        Ok(())
    }

    /// Whether [`receive`](Self::receive) may have something left of this turn.
    pub fn has_unread(&self) -> bool {
        self.reading.is_some() || !self.readable.is_empty()
    }

    /// The next datagram of this turn.
    pub fn receive(&mut self) -> Option<StreamReceived<'_>> {
        let (listener, from, proven, range) = loop {
            let Some(Reading { place, at, end }) = self.reading else {
                let place = self.readable.pop_front()?;
                self.read(place);
                continue;
            };
            let Some(connection) = connection(&mut self.slots, place) else {
                // Closed by a send meanwhile; what it said last is of no use to anybody.
                self.reading = None;
                continue;
            };
            match front(&self.scratch[at..end]) {
                Front::TooLong => self.close(place, End::Misframed),
                Front::Partial => {
                    let partial = usize::from(place.slot) * PARTIAL_LEN;
                    self.partials[partial..partial + (end - at)].copy_from_slice(&self.scratch[at..end]);
                    connection.partial_len = (end - at) as u16;
                    self.reading = None;
                }
                Front::Whole(len) => {
                    let start = at + LENGTH_LEN;
                    self.reading = Some(Reading { place, at: start + len, end });
                    if !connection.proven {
                        connection.unproven_frames += 1;
                        let may_be_check = self.scratch[start..start + len].first().is_some_and(|byte| *byte < 4);
                        if !may_be_check || connection.unproven_frames > UNPROVEN_FRAMES_MAX {
                            self.close(place, End::Unproven);
                            continue;
                        }
                    }
                    // Nothing in nothing: some keep a connection alive with it.
                    if len > 0 {
                        break (connection.key.0, connection.key.1, connection.proven, start..start + len);
                    }
                }
            }
        };
        self.stats.datagrams_received += 1;
        Some(StreamReceived { listener, from, proven, bytes: &mut self.scratch[range] })
    }

    /// One read of a connection into the scratch, behind what it had said of a frame before.
    fn read(&mut self, place: Place) {
        let Some(connection) = connection(&mut self.slots, place) else { return };
        let kept = usize::from(connection.partial_len);
        match (&connection.stream).read(&mut self.scratch[kept..kept + READ_LEN]) {
            Ok(0) => self.close(place, End::Peer),
            Ok(len) => {
                let partial = usize::from(place.slot) * PARTIAL_LEN;
                self.scratch[..kept].copy_from_slice(&self.partials[partial..partial + kept]);
                connection.partial_len = 0;
                self.reading = Some(Reading { place, at: 0, end: kept + len });
            }
            Err(error) if may_try_again(&error) => {}
            Err(_) => self.close(place, End::Peer),
        }
    }

    /// The connection from `remote` belongs to a client: it stays as long as [`tick`](Self::tick) finds it owned.
    pub fn prove(&mut self, listener: u16, remote: SocketAddr) {
        if let Some(slot) = self.by_key.get(&(listener, remote))
            && let Some(connection) = &mut self.slots[usize::from(*slot)].connection
        {
            connection.proven = true;
        }
    }

    /// Sends `bytes` to `remote`: one datagram, or datagrams of `segment` bytes of which the last may be shorter. What the
    /// connection does not take now waits; a datagram for which there is no room is dropped whole and counted.
    pub fn send(&mut self, listener: u16, remote: SocketAddr, bytes: &[u8], segment: Option<u16>) {
        let segment = segment.map_or(bytes.len(), usize::from).max(1);
        let datagrams = || bytes.chunks(segment);
        let Some(&slot) = self.by_key.get(&(listener, remote)) else {
            self.stats.sends_failed += datagrams().len() as u64;
            return;
        };
        let place = Place { slot, generation: self.slots[usize::from(slot)].generation };
        let Some(connection) = connection(&mut self.slots, place) else {
            unreachable!("the table of far ends names open connections alone");
        };
        let mut sent = 0;
        if connection.queue.is_empty() {
            match write_frames(&connection.stream, bytes, segment) {
                Ok(count) => sent = count,
                Err(error) if may_try_again(&error) => {}
                Err(_) => {
                    self.stats.sends_failed += datagrams().len() as u64;
                    self.close(place, End::Peer);
                    return;
                }
            }
        }
        let was_empty = connection.queue.is_empty();
        let room = room(&mut self.queues, self.queue_len, slot);
        for datagram in datagrams() {
            let frame_len = LENGTH_LEN + datagram.len();
            let rest = frame_len.saturating_sub(sent);
            let reserve = if datagram.len() > SHORT_LEN { RESERVE_LEN } else { 0 };
            // A frame that has left in part must follow whole; it finds the queue empty.
            if rest == frame_len && rest + reserve > connection.queue.free(room) {
                self.stats.queue_full += 1;
                continue;
            }
            if rest > 0 {
                connection.queue.push_frame(room, datagram, rest);
            }
            sent -= frame_len - rest;
            self.stats.datagrams_sent += 1;
        }
        if was_empty && !connection.queue.is_empty() {
            connection.moved = true;
            self.watch(place, libc::EPOLLOUT);
        }
    }

    /// Writes what waited, as far as the kernel takes it.
    fn flush(&mut self, place: Place) {
        let Some(connection) = connection(&mut self.slots, place) else { return };
        let room = room(&mut self.queues, self.queue_len, place.slot);
        while !connection.queue.is_empty() {
            match (&connection.stream).write_vectored(&connection.queue.slices(room)) {
                Ok(count) => {
                    connection.queue.advance(room, count);
                    connection.moved = true;
                }
                Err(error) if may_try_again(&error) => return,
                Err(_) => return self.close(place, End::Peer),
            }
        }
        self.watch(place, 0);
    }

    /// Asks for `more` of a connection than what there is to read.
    fn watch(&mut self, place: Place, more: i32) {
        let Some(connection) = connection(&mut self.slots, place) else { return };
        if self.epoll.modify(connection.stream.as_fd(), place.token(), libc::EPOLLIN | more).is_err() {
            // Only without memory; a connection that is not heard of any more must not stay.
            self.close(place, End::Peer);
        }
    }

    /// When [`tick`](Self::tick) wants to be called; `None` while there is nothing to look after.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let idle = self.free.len() == self.slots.len() && self.listeners.iter().all(|listener| listener.armed);
        (!idle).then_some(self.next_tick)
    }

    /// Does what time asks for: closes what is late, stalled, or proven and not `owned` (listener, far end) any more.
    pub fn tick(&mut self, now: Duration, owned: impl Fn(u16, SocketAddr) -> bool) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        for slot in 0..self.slots.len() {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot] else { continue };
            let place = Place { slot: slot as u16, generation: *generation };
            let moved = std::mem::take(&mut connection.moved);
            connection.moved_at = if connection.queue.is_empty() { None } else { connection.moved_at.filter(|_| !moved).or(Some(now)) };
            if connection.moved_at.is_some_and(|moved_at| now.saturating_sub(moved_at) >= STALLED_AFTER) {
                self.close(place, End::Stalled);
            } else if connection.proven && !owned(connection.key.0, connection.key.1) {
                self.close(place, End::Owner);
            } else if !connection.proven && now.saturating_sub(connection.accepted_at) >= PROVE_WITHIN {
                self.close(place, End::Unproven);
            }
        }
        self.accepts_left = ACCEPTS_PER_TICK;
        for (index, listener) in self.listeners.iter_mut().enumerate().filter(|(_, listener)| !listener.armed) {
            let rearmed = self.epoll.modify(listener.listener.as_fd(), LISTENER_TOKEN | index as u64, LISTENER_FLAGS);
            listener.armed = rearmed.is_ok();
        }
    }

    /// The next proven connection that is closed: its listener and far end.
    pub fn poll_closed(&mut self) -> Option<(u16, SocketAddr)> {
        self.closed.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> StreamStats {
        StreamStats { open: (self.slots.len() - self.free.len()) as u64, ..self.stats }
    }

    /// Takes who waits at a listener, and arms it again unless there are more than a tick's worth.
    fn accept(&mut self, now: Duration, index: usize) {
        self.listeners[index].armed = false;
        while self.accepts_left > 0 {
            match self.listeners[index].listener.accept() {
                Ok((stream, remote)) => {
                    self.accepts_left -= 1;
                    self.stats.accepted += 1;
                    self.admit(now, stream, (index as u16, remote));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let listener = &mut self.listeners[index];
                    let rearmed = self.epoll.modify(listener.listener.as_fd(), LISTENER_TOKEN | index as u64, LISTENER_FLAGS);
                    listener.armed = rearmed.is_ok();
                    return;
                }
                // Gone before we came, or a network error of the connection (accept(2)): the next one.
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                    self.accepts_left -= 1;
                }
                Err(_) => {
                    self.stats.accept_errors += 1;
                    return;
                }
            }
        }
    }

    /// Gives a new connection a place, if its source may have one more.
    fn admit(&mut self, now: Duration, stream: TcpStream, key: Key) {
        let source = source_of(key.1.ip());
        let (mut of_source, mut unproven_of_source, mut unproven, mut oldest) = (0, 0, 0, None);
        for (slot, Slot { generation, connection }) in self.slots.iter().enumerate() {
            let Some(connection) = connection else { continue };
            let same = source_of(connection.key.1.ip()) == source;
            of_source += usize::from(same);
            if !connection.proven {
                unproven += 1;
                unproven_of_source += usize::from(same);
                let place = Place { slot: slot as u16, generation: *generation };
                if oldest.is_none_or(|(at, _)| connection.accepted_at < at) {
                    oldest = Some((connection.accepted_at, place));
                }
            }
        }
        // The same far end twice: the kernel has forgotten the first, of which we are yet to hear.
        let is_new = !self.by_key.contains_key(&key);
        if !is_new || unproven_of_source >= UNPROVEN_PER_SOURCE_MAX || of_source >= PER_SOURCE_MAX {
            self.stats.refused += 1;
            return reset(&stream);
        }
        if (unproven >= UNPROVEN_MAX || self.free.is_empty())
            && let Some((_, place)) = oldest
        {
            self.close(place, End::Unproven);
        }
        let Some(slot) = self.free.pop() else {
            self.stats.refused += 1;
            return reset(&stream);
        };
        let place = Place { slot, generation: self.slots[usize::from(slot)].generation };
        let watched = stream.set_nonblocking(true).and_then(|()| self.epoll.add(stream.as_fd(), place.token(), libc::EPOLLIN));
        if watched.is_err() {
            self.stats.accept_errors += 1;
            self.free.push(slot);
            return reset(&stream);
        }
        self.by_key.insert(key, slot);
        self.slots[usize::from(slot)].connection = Some(Connection {
            stream,
            key,
            accepted_at: now,
            proven: false,
            unproven_frames: 0,
            partial_len: 0,
            queue: Queue::default(),
            moved_at: None,
            moved: false,
        });
    }

    /// Ends a connection; the descriptor leaves the set by being closed.
    fn close(&mut self, place: Place, end: End) {
        let slot = &mut self.slots[usize::from(place.slot)];
        let Some(connection) = slot.connection.take_if(|_| slot.generation == place.generation) else { return };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place.slot);
        self.by_key.remove(&connection.key);
        if connection.proven {
            self.closed.push_back(connection.key);
        } else {
            reset(&connection.stream);
        }
        match end {
            End::Peer | End::Owner => {}
            End::Unproven => self.stats.unproven += 1,
            End::Misframed => self.stats.misframed += 1,
            End::Stalled => self.stats.stalled += 1,
        }
    }
}

/// Marks the token of a listener.
const LISTENER_TOKEN: u64 = 1 << 63;

/// A listener is reported once and armed again when it was emptied, so that a flood waits for the next tick and not in a loop.
const LISTENER_FLAGS: i32 = libc::EPOLLIN | libc::EPOLLONESHOT;

impl Place {
    fn token(self) -> u64 {
        u64::from(self.generation) << 16 | u64::from(self.slot)
    }
}

fn connection(slots: &mut [Slot], place: Place) -> Option<&mut Connection> {
    let slot = &mut slots[usize::from(place.slot)];
    if slot.generation == place.generation { slot.connection.as_mut() } else { None }
}

/// A connection's part of the queues.
fn room(queues: &mut [u8], queue_len: usize, slot: u16) -> &mut [u8] {
    &mut queues[usize::from(slot) * queue_len..][..queue_len]
}

/// One vectored write of the datagrams, each behind its length: how many bytes of all that the kernel took.
fn write_frames(mut stream: &TcpStream, bytes: &[u8], segment: usize) -> io::Result<usize> {
    let mut lengths = [[0; LENGTH_LEN]; SEGMENTS_MAX];
    for (length, datagram) in lengths.iter_mut().zip(bytes.chunks(segment)) {
        *length = (datagram.len() as u16).to_be_bytes();
    }
    let mut slices = [IoSlice::new(&[]); 2 * SEGMENTS_MAX];
    let mut count = 0;
    for (length, datagram) in lengths.iter().zip(bytes.chunks(segment)) {
        slices[count] = IoSlice::new(length);
        slices[count + 1] = IoSlice::new(datagram);
        count += 2;
    }
    stream.write_vectored(&slices[..count])
}

/// Closing sends a reset and leaves nothing of the connection in the kernel.
fn reset(stream: &TcpStream) {
    // It cannot fail on a TCP socket; if it did, the connection would end by itself in a minute.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn may_try_again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Who counts as one: an IPv4 address, an IPv6 network of 64 bits.
fn source_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6) >> 64 | 1 << 127,
    }
}

/// What every accepted socket inherits of its listener: no delay, and a bound on what waits unsent in the kernel.
pub(crate) fn prepare(listener: &impl AsFd) -> io::Result<()> {
    let unsent_max = i32::try_from(UNSENT_MAX).unwrap_or(i32::MAX);
    crate::socket::set_option(listener, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    crate::socket::set_option(listener, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, unsent_max)
}
