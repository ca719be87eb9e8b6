//! Batches of packets from worker to worker.
//!
//! ```text
//! core.poll_handover -> the open batch --end of a turn, one wake--> full --> the other worker's turn -> core.handle_handover
//!                            ^-------------------------------------- free <----------+
//! ```
//! Each pair of workers has a lane in each direction, with one producer and one consumer. Its batches are made when the first track
//! crosses it and go round from then on. Whoever finds none free drops: a worker that is slow harms its own subscribers alone.

use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use pop_proto::DropReason;
use pop_schemas::{Time, TrackId};
use pop_uring::Waker;

use crate::core::{Core, Handed, Peer};

/// Batches of one lane: 16 ms of 1 Gb/s, which is longer than a worker's turn and than the scheduler lets a neighbour run.
pub const BATCHES: usize = 16;

/// Batches that are left to audio, and to what workers ask of each other, when the others are taken. No track takes more places of the open
/// one than are left in both: a loud one alone takes all of the first and half of the last, and whoever speaks beside it finds room.
const AUDIO_BATCHES: usize = 2;

/// Bytes of packets in one batch: what it may count of them, 1,024 bytes each.
const BATCH_BYTES_LEN: usize = BATCH_ITEMS_MAX << 10;

/// Things in one batch: a worker that must drain its core looks after each batch, as after each receive buffer.
const BATCH_ITEMS_MAX: usize = 128;

/// While so many batches wait for the other worker, one more is not handed over before it is full: short turns here must not use up
/// the lane while the other worker is in a long one.
const WAITING_MAX: usize = 4;

/// Bytes of one lane's batches, for the memory plan.
pub const LANE_LEN: usize = BATCHES * (BATCH_BYTES_LEN + BATCH_ITEMS_MAX * size_of::<Item>() + 3 * size_of::<Batch>());

struct Item {
    handed: Handed,
    start: u32,
    len: u16,
}

struct Batch {
    items: Vec<Item>,
    bytes: Box<[u8]>,
    len: usize,
}

impl Batch {
    fn new() -> Batch {
        Batch { items: Vec::with_capacity(BATCH_ITEMS_MAX), bytes: vec![0; BATCH_BYTES_LEN].into(), len: 0 }
    }

    /// False: it has no room for that.
    fn push(&mut self, handed: Handed, packet: &[u8]) -> bool {
        let Some(place) = self.bytes.get_mut(self.len..self.len + packet.len()) else { return false };
        if self.items.len() == BATCH_ITEMS_MAX {
            return false;
        }
        place.copy_from_slice(packet);
        self.items.push(Item { handed, start: self.len as u32, len: packet.len() as u16 });
        self.len += packet.len();
        true
    }

    /// Packets of `track`.
    fn packets_of(&self, track: TrackId) -> usize {
        self.items.iter().filter(|item| matches!(item.handed, Handed::Packet { track: t, .. } if t == track)).count()
    }

    fn clear(&mut self) {
        self.items.clear();
        self.len = 0;
    }
}

/// From one worker to one other. Both queues have a place for every batch that there is.
struct Lane {
    full: ArrayQueue<Batch>,
    free: ArrayQueue<Batch>,
}

struct Shared {
    workers: usize,
    /// By producer, then by consumer.
    lanes: Box<[Lane]>,
    /// Set when the worker runs.
    wakers: Box<[OnceLock<Waker>]>,
}

impl Shared {
    fn lane(&self, from: usize, to: usize) -> &Lane {
        &self.lanes[from * self.workers + to]
    }
}

/// All lanes between the workers of a node.
#[derive(Clone)]
pub struct Crossing(Arc<Shared>);

impl std::fmt::Debug for Crossing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crossing({} workers)", self.0.workers)
    }
}

impl Crossing {
    /// Lanes between so many workers; without batches before something crosses.
    pub fn new(workers: usize) -> Crossing {
        let lane = |_| Lane { full: ArrayQueue::new(BATCHES), free: ArrayQueue::new(BATCHES) };
        let lanes = (0..workers * workers).map(lane).collect();
        Crossing(Arc::new(Shared { workers, lanes, wakers: (0..workers).map(|_| OnceLock::new()).collect() }))
    }

    /// The ends of one worker.
    pub fn ends(&self, worker: usize) -> Ends {
        let outgoing = (0..self.0.workers).map(|_| Outgoing::default()).collect();
        Ends { shared: Arc::clone(&self.0), worker, outgoing, next: 0, batches: 0 }
    }
}

/// The producer's end of one lane.
#[derive(Default)]
struct Outgoing {
    /// The lane has its batches.
    is_supplied: bool,
    /// The batch in the making.
    open: Option<Batch>,
    /// Batches were handed over and the other worker was not woken since.
    is_wake_due: bool,
}

/// One worker's ends of its lanes.
pub struct Ends {
    shared: Arc<Shared>,
    worker: usize,
    /// By consumer.
    outgoing: Box<[Outgoing]>,
    /// Whose lane is looked at first.
    next: usize,
    /// Handed over since the start.
    batches: u64,
}

impl Ends {
    /// Others wake this worker by it.
    pub fn set_waker(&self, waker: Waker) {
        // A worker starts once.
        let _ = self.shared.wakers[self.worker].set(waker);
    }

    /// Something will go to worker `to`: its lane gets its batches.
    pub fn supply(&mut self, to: usize) {
        if !std::mem::replace(&mut self.outgoing[to].is_supplied, true) {
            let lane = self.shared.lane(self.worker, to);
            for _ in 0..BATCHES {
                assert!(lane.free.push(Batch::new()).is_ok(), "a lane has a place for each of its batches");
            }
        }
    }

    /// Takes what `core` has for others, and hands over what is due.
    pub fn send(&mut self, core: &mut Core) {
        while let Some(handover) = core.poll_handover() {
            let (handed, mut packets, mut dropped) = (handover.handed, 0, 0);
            for Peer { worker, .. } in handover.to {
                let taken = self.put(usize::from(*worker), handed, handover.packet, handover.gives_way);
                *if taken { &mut packets } else { &mut dropped } += 1;
            }
            if let Handed::Packet { meta, .. } = handed {
                let counters = core.counters_mut();
                counters.handover_packets_out += packets;
                counters.handover_bytes_out += packets * u64::from(meta.len - meta.header_len);
                core.count_drops(DropReason::HandoverQueueFull, dropped);
            }
        }
        for to in 0..self.shared.workers {
            if self.outgoing[to].open.is_some() && self.shared.lane(self.worker, to).full.len() < WAITING_MAX {
                self.hand_over(to);
            }
            if std::mem::take(&mut self.outgoing[to].is_wake_due)
                && let Some(waker) = self.shared.wakers[to].get()
            {
                waker.wake();
            }
        }
        core.counters_mut().handover_batches_out = self.batches;
    }

    /// Whether something waits here until the other worker has taken what it has.
    pub fn is_holding(&self) -> bool {
        self.outgoing.iter().any(|outgoing| outgoing.open.is_some())
    }

    /// Whether something of others waits for this worker.
    pub fn has_arrivals(&self) -> bool {
        (0..self.shared.workers).any(|from| !self.shared.lane(from, self.worker).full.is_empty())
    }

    /// Gives `core` a batch of another worker; false: there is none.
    pub fn receive(&mut self, now: Time, core: &mut Core) -> bool {
        for _ in 0..self.shared.workers {
            let from = self.next;
            self.next = (self.next + 1) % self.shared.workers;
            let lane = self.shared.lane(from, self.worker);
            let Some(mut batch) = lane.full.pop() else { continue };
            for Item { handed, start, len } in &batch.items {
                core.handle_handover(now, from, *handed, &batch.bytes[*start as usize..][..usize::from(*len)]);
            }
            core.counters_mut().handover_batches_in += 1;
            batch.clear();
            assert!(lane.free.push(batch).is_ok(), "a lane has a place for each of its batches");
            return true;
        }
        false
    }

    /// Puts one thing into the open batch; false: the lane is full.
    fn put(&mut self, to: usize, handed: Handed, packet: &[u8], gives_way: bool) -> bool {
        let lane = self.shared.lane(self.worker, to);
        if lane.free.len() < AUDIO_BATCHES {
            let has_its_share = |track| {
                let left = |batch: &Batch| BATCH_ITEMS_MAX * (1 + lane.free.len()) - batch.items.len();
                self.outgoing[to].open.as_ref().is_some_and(|batch| batch.packets_of(track) >= left(batch))
            };
            if gives_way || matches!(handed, Handed::Packet { track, .. } if has_its_share(track)) {
                return false;
            }
        }
        if self.outgoing[to].open.as_mut().is_some_and(|batch| batch.push(handed, packet)) {
            return true;
        }
        if gives_way && lane.free.len() == AUDIO_BATCHES {
            return false;
        }
        let Some(mut batch) = lane.free.pop() else { return false };
        let taken = batch.push(handed, packet);
        self.hand_over(to);
        self.outgoing[to].open = Some(batch);
        taken
    }

    fn hand_over(&mut self, to: usize) {
        if let Some(batch) = self.outgoing[to].open.take() {
            self.outgoing[to].is_wake_due = true;
            self.batches += 1;
            assert!(self.shared.lane(self.worker, to).full.push(batch).is_ok(), "a lane has a place for each of its batches");
        }
    }
}
