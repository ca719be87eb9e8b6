//! A track's recent packets, kept once and shared by everyone who forwards or repairs them.
//!
//! ```text
//! PacketPool   [slot 0][slot 1][slot 2] ...        one block of memory per worker, taken at start; facts beside it, by slot
//! History      place[sequence % capacity] -> slot  one ring per layer; holds slots by age, gives them back
//! ```
//! Subscribers hold sequence offsets, never packets. What is known of a packet lies with its slot, not in the ring: a ring has room for
//! a second of the fastest stream, and most streams hold a tenth of that.

use std::time::Duration;

use pop_schemas::Time;

use crate::drop_reason::DropReason;
use crate::header::CopiedElements;
use crate::layering::FrameLayers;
use crate::picture::PicturePlaces;

/// Bytes of a slot: an Ethernet MTU's datagram fits whole.
pub const SLOT_LEN: usize = 1_536;

/// How long a packet can be asked for again. A repair that comes later than this misses every playout buffer.
pub const HISTORY_AGE_MAX: Duration = Duration::from_millis(1_000);

/// The packet memory of one worker: fixed slots, handed out and given back.
pub struct PacketPool {
    bytes: Box<[u8]>,
    /// Of the packet in each slot that was ever used.
    facts: Vec<Facts>,
    free: Vec<u32>,
}

/// What is known of the packet in a slot.
#[derive(Clone, Copy, Default)]
struct Facts {
    received: Time,
    meta: Meta,
}

impl PacketPool {
    /// Takes the address space for `slots` packets; pages are touched when first used.
    pub fn new(slots: u32) -> PacketPool {
        PacketPool {
            bytes: vec![0; slots as usize * SLOT_LEN].into_boxed_slice(),
            facts: Vec::with_capacity(slots as usize),
            // Popped from the end, so that low slots (already touched pages) are used again first.
            free: (0..slots).rev().collect(),
        }
    }

    /// Memory of one slot with all that belongs to it, in bytes.
    pub const BYTES_PER_SLOT: usize = SLOT_LEN + size_of::<Facts>() + size_of::<u32>();

    /// More than half of the slots are free: what is old may stay.
    pub fn is_roomy(&self) -> bool {
        self.free.len() > self.bytes.len() / SLOT_LEN / 2
    }

    /// Slots that nobody holds.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Puts a packet of at most [`SLOT_LEN`] bytes into a free slot.
    fn take(&mut self, packet: &[u8], facts: Facts) -> Option<u32> {
        let slot = self.free.pop()?;
        let index = slot as usize;
        match self.facts.get_mut(index) {
            Some(place) => *place = facts,
            // Slots are first used in their order, each within the room that was taken at start.
            None => self.facts.push(facts),
        }
        self.bytes[index * SLOT_LEN..][..packet.len()].copy_from_slice(packet);
        Some(slot)
    }

    fn give(&mut self, slot: u32) {
        debug_assert!(self.free.len() < self.bytes.len() / SLOT_LEN, "a slot was given back twice");
        self.free.push(slot);
    }

    fn facts(&self, slot: u32) -> &Facts {
        &self.facts[slot as usize]
    }

    fn stored(&self, slot: u32) -> Stored<'_> {
        let meta = self.facts(slot).meta;
        Stored { meta, packet: &self.bytes[slot as usize * SLOT_LEN..][..usize::from(meta.len)] }
    }
}

/// What is known of a stored packet without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// RTP timestamp as published.
    pub timestamp: u32,
    /// Payload type as published.
    pub payload_type: u8,
    /// Marker bit.
    pub marker: bool,
    /// The payload starts a frame that decodes without others.
    pub keyframe_start: bool,
    /// It came as a retransmission (RFC 4588).
    pub repeated: bool,
    /// Bytes of the RTP header, extensions included; the payload follows, without padding.
    pub header_len: u16,
    /// Header and payload.
    pub len: u16,
    /// Where the header keeps the extensions that pass to viewers.
    pub elements: CopiedElements,
    /// Where the payload keeps its picture numbers.
    pub picture: PicturePlaces,
    /// What its frame is to viewers of a lower quality.
    pub layers: FrameLayers,
}

/// One place of a ring.
#[derive(Clone, Copy)]
struct Place {
    /// The lower half of the sequence number. Enough: within 2^32 packets a place is used four million times.
    sequence: u32,
    slot: u32,
}

/// No packet came.
const NEVER_USED: u32 = u32::MAX;
/// Its packet was given back.
const GIVEN_BACK: u32 = u32::MAX - 1;
const EMPTY: Place = Place { sequence: 0, slot: NEVER_USED };

impl Place {
    /// Whether `sequence` came, still here or not.
    fn is_of(&self, sequence: u64) -> bool {
        self.sequence == sequence as u32 && self.slot != NEVER_USED
    }

    /// The slot of `sequence` while it is here.
    fn held(&self, sequence: u64) -> Option<u32> {
        (self.sequence == sequence as u32 && self.slot < GIVEN_BACK).then_some(self.slot)
    }
}

/// A stored packet.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Its facts.
    pub meta: Meta,
    /// Header and payload as published, padding stripped.
    pub packet: &'a [u8],
}

impl<'a> Stored<'a> {
    /// The SSRC as published.
    pub fn ssrc(&self) -> u32 {
        u32::from_be_bytes(self.packet[8..12].try_into().expect("the slice has four bytes"))
    }

    /// The RTP payload.
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[usize::from(self.meta.header_len)..]
    }
}

/// What became of a sequence number.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// Still here.
    Held(Stored<'a>),
    /// It came and was given back since.
    Gone,
    /// It never came.
    Missing,
}

/// One track's ring of packets, indexed by extended sequence number.
pub struct History {
    places: Box<[Place]>,
    newest: u64,
    oldest_held: u64,
    any: bool,
}

impl History {
    /// A ring of `capacity` packets (rounded up to a power of two).
    pub fn new(capacity: usize) -> History {
        let capacity = capacity.next_power_of_two();
        History { places: vec![EMPTY; capacity].into_boxed_slice(), newest: 0, oldest_held: 0, any: false }
    }

    /// Memory of one ring, in bytes.
    pub const fn len_bytes(capacity: usize) -> usize {
        capacity.next_power_of_two() * size_of::<Place>()
    }

    /// How many sequence numbers back a packet can be stored or asked for.
    pub fn capacity(&self) -> u64 {
        self.places.len() as u64
    }

    fn index(&self, sequence: u64) -> usize {
        // The capacity is a power of two, so the mask is the remainder.
        (sequence & (self.places.len() as u64 - 1)) as usize
    }

    /// Stores a packet.
    ///
    /// Errors: [`DropReason::TooLarge`], [`DropReason::TooOld`], [`DropReason::Duplicate`], [`DropReason::PoolEmpty`] (after
    /// this track's own oldest packet was given up).
    pub fn insert(&mut self, pool: &mut PacketPool, now: Time, sequence: u64, packet: &[u8], meta: Meta) -> Result<(), DropReason> {
        if packet.len() > SLOT_LEN {
            return Err(DropReason::TooLarge);
        }
        if self.any && sequence + self.capacity() <= self.newest {
            return Err(DropReason::TooOld);
        }
        if self.any && sequence >= self.newest + self.capacity() {
            // A jump past the whole ring: nothing of it can be asked for again, and no walk over the gap is owed.
            self.clear(pool);
            self.oldest_held = sequence;
        }
        let index = self.index(sequence);
        if self.places[index].is_of(sequence) {
            return Err(DropReason::Duplicate);
        }
        self.release(pool, index);
        let facts = Facts { received: now, meta };
        let slot = match pool.take(packet, facts) {
            Some(slot) => slot,
            None => {
                self.release_oldest(pool);
                pool.take(packet, facts).ok_or(DropReason::PoolEmpty)?
            }
        };
        self.places[index] = Place { sequence: sequence as u32, slot };
        if !self.any {
            (self.any, self.newest, self.oldest_held) = (true, sequence, sequence);
        } else {
            self.newest = self.newest.max(sequence);
            self.oldest_held = self.oldest_held.min(sequence);
        }
        Ok(())
    }

    /// What became of `sequence`.
    pub fn lookup<'p>(&self, pool: &'p PacketPool, sequence: u64) -> Lookup<'p> {
        let place = &self.places[self.index(sequence)];
        if let Some(slot) = place.held(sequence) {
            return Lookup::Held(pool.stored(slot));
        }
        let overwritten = self.any && sequence + self.capacity() <= self.newest;
        if overwritten || place.is_of(sequence) { Lookup::Gone } else { Lookup::Missing }
    }

    /// The newest sequence number that came; `None` before the first.
    pub fn newest(&self) -> Option<u64> {
        self.any.then_some(self.newest)
    }

    /// The facts of `sequence` while it is here.
    pub fn held<'p>(&self, pool: &'p PacketPool, sequence: u64) -> Option<&'p Meta> {
        self.places[self.index(sequence)].held(sequence).map(|slot| &pool.facts(slot).meta)
    }

    /// How many packets are here. Looks at every place.
    pub fn count(&self) -> usize {
        self.places.iter().filter(|place| place.slot < GIVEN_BACK).count()
    }

    /// Gives back what is older than [`HISTORY_AGE_MAX`], but nothing from sequence number `keep_from` on.
    pub fn expire(&mut self, pool: &mut PacketPool, now: Time, keep_from: Option<u64>) {
        let end = keep_from.unwrap_or(u64::MAX);
        while self.any && self.oldest_held <= self.newest && self.oldest_held < end {
            let index = self.index(self.oldest_held);
            if let Some(slot) = self.places[index].held(self.oldest_held) {
                if now.since(pool.facts(slot).received) < HISTORY_AGE_MAX {
                    return;
                }
                self.release(pool, index);
            }
            self.oldest_held += 1;
        }
    }

    /// Forgets everything, sequence numbers included.
    pub fn reset(&mut self, pool: &mut PacketPool) {
        self.clear(pool);
        (self.newest, self.oldest_held, self.any) = (0, 0, false);
    }

    /// Gives every packet back.
    pub fn clear(&mut self, pool: &mut PacketPool) {
        for index in 0..self.places.len() {
            self.release(pool, index);
        }
        self.places.fill(EMPTY);
    }

    fn release(&mut self, pool: &mut PacketPool, index: usize) {
        let place = &mut self.places[index];
        if place.slot < GIVEN_BACK {
            pool.give(std::mem::replace(&mut place.slot, GIVEN_BACK));
        }
    }

    fn release_oldest(&mut self, pool: &mut PacketPool) {
        while self.any && self.oldest_held <= self.newest {
            let index = self.index(self.oldest_held);
            let held = self.places[index].held(self.oldest_held).is_some();
            self.oldest_held += 1;
            if held {
                self.release(pool, index);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(len: usize) -> Meta {
        Meta { timestamp: 1, payload_type: 96, marker: false, keyframe_start: false, header_len: 12, len: len as u16, ..Meta::default() }
    }

    fn store(history: &mut History, pool: &mut PacketPool, now: Time, sequence: u64) -> Result<(), DropReason> {
        let packet = [sequence as u8; 100];
        history.insert(pool, now, sequence, &packet, meta(packet.len()))
    }

    fn held(history: &History, pool: &PacketPool, sequence: u64) -> Option<u8> {
        match history.lookup(pool, sequence) {
            Lookup::Held(stored) => Some(stored.packet[0]),
            Lookup::Gone | Lookup::Missing => None,
        }
    }

    #[test]
    fn a_packet_can_be_asked_for_until_its_age_ends() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(8));
        store(&mut history, &mut pool, Time::ZERO, 5).unwrap();
        history.expire(&mut pool, Time::ZERO + HISTORY_AGE_MAX - Duration::from_nanos(1), None);
        assert_eq!(held(&history, &pool, 5), Some(5));
        history.expire(&mut pool, Time::ZERO + HISTORY_AGE_MAX, None);
        assert!(matches!(history.lookup(&pool, 5), Lookup::Gone));
        assert_eq!(pool.free_slots(), 8);
        assert!(matches!(history.lookup(&pool, 6), Lookup::Missing));
    }

    #[test]
    fn what_is_to_be_kept_outlives_its_age_until_its_end() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(8));
        (5..9).for_each(|sequence| store(&mut history, &mut pool, Time::ZERO, sequence).unwrap());
        let late = Time::ZERO + 2 * HISTORY_AGE_MAX;
        history.expire(&mut pool, late, Some(7));
        assert_eq!([5, 6, 7, 8].map(|s| history.held(&pool, s).is_some()), [false, false, true, true]);
        history.expire(&mut pool, late, None);
        assert_eq!(pool.free_slots(), 8);
    }

    #[test]
    fn reordered_packets_fill_their_places_and_duplicates_are_refused() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(8));
        for sequence in [10, 13, 11, 9] {
            store(&mut history, &mut pool, Time::ZERO, sequence).unwrap();
        }
        assert_eq!(store(&mut history, &mut pool, Time::ZERO, 11), Err(DropReason::Duplicate));
        assert!(matches!(history.lookup(&pool, 12), Lookup::Missing));
        store(&mut history, &mut pool, Time::ZERO, 12).unwrap();
        for sequence in 9..=13 {
            assert_eq!(held(&history, &pool, sequence), Some(sequence as u8));
        }
    }

    #[test]
    fn the_ring_forgets_its_oldest_and_refuses_what_is_older_still() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(32));
        for sequence in 100..120 {
            store(&mut history, &mut pool, Time::ZERO, sequence).unwrap();
        }
        assert_eq!(held(&history, &pool, 112), Some(112));
        assert!(matches!(history.lookup(&pool, 111), Lookup::Gone));
        assert_eq!(store(&mut history, &mut pool, Time::ZERO, 111), Err(DropReason::TooOld));
        assert_eq!(pool.free_slots(), 32 - 8);
        history.clear(&mut pool);
        assert_eq!(pool.free_slots(), 32);
    }

    #[test]
    fn an_empty_pool_costs_the_track_its_own_oldest_packet_and_no_other_track_anything() {
        let mut pool = PacketPool::new(4);
        let (mut greedy, mut modest) = (History::new(16), History::new(16));
        store(&mut modest, &mut pool, Time::ZERO, 1).unwrap();
        for sequence in 0..10 {
            store(&mut greedy, &mut pool, Time::ZERO, sequence).unwrap();
        }
        assert_eq!(held(&modest, &pool, 1), Some(1));
        assert_eq!((held(&greedy, &pool, 6), held(&greedy, &pool, 7)), (None, Some(7)));
        let mut late = History::new(16);
        assert_eq!(store(&mut late, &mut pool, Time::ZERO, 1), Err(DropReason::PoolEmpty));
    }

    #[test]
    fn a_jump_gives_every_slot_back() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(8));
        for sequence in 0..5 {
            store(&mut history, &mut pool, Time::ZERO, sequence).unwrap();
        }
        store(&mut history, &mut pool, Time::ZERO, 1 << 40).unwrap();
        assert_eq!(pool.free_slots(), 7);
        history.expire(&mut pool, Time::ZERO + HISTORY_AGE_MAX, None);
        assert_eq!(pool.free_slots(), 8);
    }

    #[test]
    fn a_packet_larger_than_a_slot_is_refused() {
        let (mut history, mut pool) = (History::new(8), PacketPool::new(1));
        let packet = [0; SLOT_LEN + 1];
        assert_eq!(history.insert(&mut pool, Time::ZERO, 1, &packet, meta(0)), Err(DropReason::TooLarge));
    }
}
