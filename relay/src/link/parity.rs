//! Parity where the round trip is too long for a repair: Reed-Solomon over blocks of a few datagrams, of audio and of video apart.
//!
//! ```text
//! sender    media --copy--> Block: 16 datagrams or 40 ms --encode--> parity, so much as what is lost asks for
//! receiver  media --copy--> ring of the last 256 counters <-- parity
//!                             `-- of a block enough is here --decode--> what did not come, as if it had come late
//!
//! shard     length of the payload (2) | kind | alias (2) | layer | epoch | payload | zeros
//! parity    how far behind its counter the block begins | datagrams n | parities | which | n - 1 times how far from the first | shard
//! ```
//! A datagram is in one block at most. Nothing is copied while the sender has no reason for parity, or none has come of late.

use std::time::Duration;

use pop_schemas::Time;
use reed_solomon_simd::{
    engine::DefaultEngine,
    rate::{HighRateDecoder, HighRateEncoder, RateDecoder, RateEncoder},
};

use super::{path::LADDER, window::Window};
use crate::{
    RelayDrop,
    frame::{FrameKind, Head},
};

/// Datagrams of a block, and parities. With more a block is better at the same price, but what it brings back comes later.
const BLOCK_LEN_MAX: usize = 16;
const PARITIES_MAX: usize = 8;
/// A block ends so long after its first datagram, or after half of the playout budget: what it brings back has to be in time.
const BLOCK_TIME_MAX: Duration = Duration::from_millis(40);
/// Counters that the ring holds: a byte says how far something is behind. They are 40 ms of 6,400 datagrams a second.
const RING_LEN: usize = 256;
/// A block ends when so many counters were sealed since its first: its parity has to be within the ring.
const SPAN_MAX: u64 = 192;
/// Blocks of which the parity waits for more.
const OPEN_MAX: usize = 16;
/// A parity of the other end is followed by copies of what comes for so long.
const FOLLOWED: Duration = Duration::from_secs(10);
/// The price of a decoding is 0.2 ms (`pop-bench` machine), whatever the block: one each 2 ms, and so many at once.
const DECODE_EVERY: Duration = Duration::from_millis(2);
const DECODES_AT_ONCE: u32 = 16;

/// Bytes of the library's tables, for all links of a process (`reed_solomon_simd::engine::tables`).
pub(super) const TABLES_LEN: usize = (8_192 + 4 * 128) * 1_024;

/// Length, kind, alias, layer, epoch.
const SHARD_HEAD_LEN: usize = 7;
const PARITY_HEAD_LEN: usize = 4;
/// The library takes shards of an even length; a place is of whole vectors of 64 bytes.
const SLOT_LEN: usize = LADDER[LADDER.len() - 1].next_multiple_of(64);
/// So much longer than the payload of the longest datagram that it is for may a parity's payload be.
pub(super) const PARITY_LEN: usize = PARITY_HEAD_LEN + BLOCK_LEN_MAX - 1 + SHARD_HEAD_LEN + 1;

/// Of what is sent so much may be lost for good, in millionths: of audio, and of video.
const LEFT_PPM: [f64; 2] = [500.0, 2_000.0];

/// No datagram has this counter.
const NONE: u64 = u64::MAX;

/// Whose block a datagram belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Audio = 0,
    Video = 1,
}

/// How many parities leave less than `left_ppm` of the datagrams of a block lost, where `loss_ppm` of all are, each by itself.
fn parities_for(len: usize, loss_ppm: u32, left_ppm: f64) -> usize {
    let loss = f64::from(loss_ppm) / 1e6;
    // One that is lost stays so when as many of the others are as there are parities.
    let is_enough = |parities: usize| {
        let others = len + parities - 1;
        let (mut fewer, mut exactly) = (0.0, (1.0 - loss).powi(others as i32));
        for lost in 0..parities {
            fewer += exactly;
            exactly *= loss / (1.0 - loss) * (others - lost) as f64 / (lost + 1) as f64;
        }
        loss * (1.0 - fewer) * 1e6 <= left_ppm
    };
    let most = len.min(PARITIES_MAX);
    if loss_ppm == 0 || loss_ppm >= 1_000_000 {
        return if loss_ppm == 0 { 0 } else { most };
    }
    (1..most).find(|parities| is_enough(*parities)).unwrap_or(most)
}

/// Writes the shard of a datagram to the start of `slot`; returns its length, `None` when it is too long.
fn write_shard(head: &Head, payload: [&[u8]; 2], slot: &mut [u8]) -> Option<usize> {
    let payload_len = payload[0].len() + payload[1].len();
    let shard = slot.get_mut(..SHARD_HEAD_LEN + payload_len)?;
    let ([l0, l1], [a0, a1]) = ((payload_len as u16).to_le_bytes(), head.alias.to_le_bytes());
    let (shard_head, bytes) = shard.split_at_mut(SHARD_HEAD_LEN);
    shard_head.copy_from_slice(&[l0, l1, head.kind as u8, a0, a1, head.layer, head.epoch]);
    bytes[..payload[0].len()].copy_from_slice(payload[0]);
    bytes[payload[0].len()..].copy_from_slice(payload[1]);
    Some(shard.len())
}

/// What a shard is of; `None`: of nothing that is protected. `head` is that of its link.
fn read_shard<'a>(head: &Head, counter: u64, shard: &'a mut [u8]) -> Option<(Head, &'a mut [u8])> {
    let ([l0, l1, kind, a0, a1, layer, epoch], payload) = shard.split_first_chunk_mut::<SHARD_HEAD_LEN>()?;
    let kind = [FrameKind::Media, FrameKind::Bundle, FrameKind::Part].into_iter().find(|known| *known as u8 == *kind)?;
    let payload = payload.get_mut(..usize::from(u16::from_le_bytes([*l0, *l1])))?;
    Some((Head { kind, alias: u16::from_le_bytes([*a0, *a1]), layer: *layer, epoch: *epoch, counter, ..*head }, payload))
}

/// Datagrams that were sent, and then the parity of them.
struct Block {
    /// The shards, later those of the parity.
    shards: Box<[u8]>,
    /// 0: it is free.
    len: usize,
    first: u64,
    /// How far each is from the first.
    offsets: [u8; BLOCK_LEN_MAX],
    lens: [u16; BLOCK_LEN_MAX],
    opened_at: Time,
    is_closed: bool,
    /// Of these so many have left; 0: nothing is encoded yet.
    parities: usize,
    left: usize,
    shard_len: usize,
}

impl Block {
    const MEMORY_LEN: usize = BLOCK_LEN_MAX * SLOT_LEN;

    fn new() -> Block {
        Block {
            shards: vec![0; Self::MEMORY_LEN].into(),
            len: 0,
            first: 0,
            offsets: [0; BLOCK_LEN_MAX],
            lens: [0; BLOCK_LEN_MAX],
            opened_at: Time::ZERO,
            is_closed: false,
            parities: 0,
            left: 0,
            shard_len: 0,
        }
    }

    fn clear(&mut self) {
        (self.len, self.is_closed, self.parities, self.left) = (0, false, 0, 0);
    }

    /// Makes the parity; false when there is to be none.
    fn encode(&mut self, encoder: &mut Encoder, parities: usize) -> bool {
        let longest = self.lens[..self.len].iter().max().map_or(0, |len| usize::from(*len));
        let shard_len = longest.next_multiple_of(2);
        let mut encode = || {
            encoder.reset(self.len, parities, shard_len).ok()?;
            for (slot, len) in self.shards.chunks_exact_mut(SLOT_LEN).zip(self.lens).take(self.len) {
                slot[usize::from(len)..shard_len].fill(0);
                encoder.add_original_shard(&slot[..shard_len]).ok()?;
            }
            let encoded = encoder.encode().ok()?;
            for (slot, shard) in self.shards.chunks_exact_mut(SLOT_LEN).zip(encoded.recovery_iter()) {
                slot[..shard_len].copy_from_slice(shard);
            }
            Some(())
        };
        if parities == 0 || encode().is_none() {
            return false;
        }
        (self.parities, self.shard_len) = (parities, shard_len);
        true
    }
}

/// Makes the library's tables, once for a process: else the worker would that has the first link, and that brings back the first datagram.
pub fn make_parity_tables() {
    let shard = [0; 64];
    let restored = || {
        let mut encoder: Encoder = HighRateEncoder::new(2, 1, shard.len(), DefaultEngine::new(), None).ok()?;
        (0..2).try_for_each(|_| encoder.add_original_shard(shard)).ok()?;
        let encoded = encoder.encode().ok()?;
        let mut decoder: Decoder = HighRateDecoder::new(2, 1, shard.len(), DefaultEngine::new(), None).ok()?;
        decoder.add_original_shard(0, shard).ok()?;
        decoder.add_recovery_shard(0, encoded.recovery(0)?).ok()?;
        decoder.decode().ok().map(drop)
    };
    restored().expect("two shards and one of parity are within the library's limits");
}

type Encoder = HighRateEncoder<DefaultEngine>;
type Decoder = HighRateDecoder<DefaultEngine>;

/// A parity datagram to be sealed: its head, and the shard.
pub(super) struct Parity<'a> {
    head: [u8; PARITY_HEAD_LEN + BLOCK_LEN_MAX - 1],
    head_len: usize,
    pub(super) shard: &'a [u8],
}

impl Parity<'_> {
    pub(super) fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }
}

/// The sender's part.
pub(super) struct Protection {
    encoder: Encoder,
    /// Of each class.
    blocks: [Block; 2],
    block_time: Duration,
    /// Of a million datagrams so many are lost and cannot be repaired in time; 0: nothing is protected.
    loss_ppm: u32,
    /// There is room for parity of video.
    has_room: bool,
}

impl Protection {
    /// The library has a place for each shard, too.
    pub(super) const MEMORY_LEN: usize = 2 * Block::MEMORY_LEN + BLOCK_LEN_MAX * SLOT_LEN;

    pub(super) fn new(playout: Duration) -> Protection {
        let encoder = HighRateEncoder::new(BLOCK_LEN_MAX, PARITIES_MAX, SLOT_LEN, DefaultEngine::new(), None);
        Protection {
            encoder: encoder.expect("16 shards and 8 of parity, each of an even length, are within the library's limits"),
            blocks: [Block::new(), Block::new()],
            block_time: BLOCK_TIME_MAX.min(playout / 2),
            loss_ppm: 0,
            has_room: true,
        }
    }

    /// From now on so much is lost that no repair brings back in time.
    pub(super) fn follow(&mut self, loss_ppm: u32) {
        self.loss_ppm = loss_ppm;
        if loss_ppm == 0 {
            self.blocks.iter_mut().for_each(Block::clear);
        }
    }

    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.loss_ppm > 0
    }

    /// Whether there is room for parity of video beside video.
    pub(super) fn set_room(&mut self, has_room: bool) {
        self.has_room = has_room;
        if !has_room {
            self.blocks[Class::Video as usize].clear();
        }
    }

    /// How much parity there is of audio, in percent: as in blocks of 40 ms of one voice.
    pub(super) fn audio_percent(&self) -> u64 {
        (100 * parities_for(2, self.loss_ppm, LEFT_PPM[Class::Audio as usize]) / 2) as u64
    }

    /// Whether a block of which parity has left has more.
    pub(super) fn goes_on(&self) -> bool {
        self.blocks.iter().any(|block| block.left > 0)
    }

    /// A datagram was sealed. What is longer than `len_max` cannot be protected, nor what comes while its class's last parity has not left.
    pub(super) fn keep(&mut self, now: Time, class: Class, head: &Head, payload: [&[u8]; 2], len_max: usize) {
        let block = &mut self.blocks[class as usize];
        if block.is_closed || class == Class::Video && !self.has_room || payload[0].len() + payload[1].len() > len_max {
            return;
        }
        if block.len == 0 {
            (block.first, block.opened_at) = (head.counter, now);
        }
        let offset = head.counter - block.first;
        if offset > SPAN_MAX {
            block.is_closed = true;
            return;
        }
        let Some(len) = write_shard(head, payload, &mut block.shards[block.len * SLOT_LEN..][..SLOT_LEN]) else { return };
        block.offsets[block.len] = offset as u8;
        block.lens[block.len] = len as u16;
        block.len += 1;
        block.is_closed = block.len == BLOCK_LEN_MAX;
    }

    /// A block is full: until its parity has left, nothing more of its class is protected.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        self.blocks.iter().any(|block| block.is_closed)
    }

    /// When the next block ends.
    pub(super) fn timeout(&self) -> Option<Time> {
        let of_block = |block: &Block| if block.is_closed { block.opened_at } else { block.opened_at + self.block_time };
        self.blocks.iter().filter(|block| block.len > 0).map(of_block).min()
    }

    /// The parity that is to leave now, audio's before video's; `counter` is the one that it will have.
    pub(super) fn next(&mut self, now: Time, counter: u64) -> Option<Parity<'_>> {
        let at = (0..self.blocks.len()).find(|&at| {
            let block = &mut self.blocks[at];
            let is_over = block.is_closed || now >= block.opened_at + self.block_time || counter.saturating_sub(block.first) > SPAN_MAX;
            if block.len == 0 || !is_over {
                return false;
            }
            let parities = parities_for(block.len, self.loss_ppm, LEFT_PPM[at]);
            let is_within = counter.saturating_sub(block.first) < RING_LEN as u64;
            if !is_within || block.parities == 0 && !block.encode(&mut self.encoder, parities) {
                block.clear();
                return false;
            }
            true
        })?;
        let block = &mut self.blocks[at];
        let mut head = [0; PARITY_HEAD_LEN + BLOCK_LEN_MAX - 1];
        head[..PARITY_HEAD_LEN].copy_from_slice(&[(counter - block.first) as u8, block.len as u8, block.parities as u8, block.left as u8]);
        let head_len = PARITY_HEAD_LEN + block.len - 1;
        head[PARITY_HEAD_LEN..head_len].copy_from_slice(&block.offsets[1..block.len]);
        let place = block.left * SLOT_LEN;
        block.left += 1;
        if block.left == block.parities {
            block.clear();
        }
        Some(Parity { head, head_len, shard: &block.shards[place..place + block.shard_len] })
    }
}

/// What of a counter is in the ring.
#[derive(Clone, Copy)]
struct Slot {
    counter: u64,
    len: u16,
    is_parity: bool,
}

/// A block of which parity came.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Layout {
    first: u64,
    len: usize,
    parities: usize,
    /// That of the first is 0.
    offsets: [u8; BLOCK_LEN_MAX],
}

impl Layout {
    fn counters(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, len) = (self.first, self.len);
        self.offsets.into_iter().take(len).map(move |offset| first + u64::from(offset))
    }
}

#[derive(Clone, Copy)]
struct Open {
    layout: Layout,
    /// Counters of its parities that came, each at its place.
    came: [u64; PARITIES_MAX],
}

/// The receiver's part.
pub(super) struct Recovery {
    decoder: Decoder,
    slots: Box<[Slot]>,
    bytes: Box<[u8]>,
    open: Vec<Open>,
    /// Counters of what was brought back and is not delivered.
    recovered: Vec<u64>,
    /// When a parity came last.
    heard_at: Option<Time>,
    /// A decoding is paid from then on.
    paid_at: Time,
}

impl Recovery {
    /// The library has a place for each shard of a block and of its parity, and up to the next power of two.
    pub(super) const MEMORY_LEN: usize = RING_LEN * (size_of::<Slot>() + SLOT_LEN)
        + OPEN_MAX * size_of::<Open>()
        + BLOCK_LEN_MAX * 8
        + (BLOCK_LEN_MAX + PARITIES_MAX).next_power_of_two() * SLOT_LEN;

    pub(super) fn new() -> Recovery {
        let decoder = HighRateDecoder::new(BLOCK_LEN_MAX, PARITIES_MAX, SLOT_LEN, DefaultEngine::new(), None);
        Recovery {
            decoder: decoder.expect("16 shards and 8 of parity, each of an even length, are within the library's limits"),
            slots: vec![Slot { counter: NONE, len: 0, is_parity: false }; RING_LEN].into(),
            bytes: vec![0; RING_LEN * SLOT_LEN].into(),
            open: Vec::with_capacity(OPEN_MAX),
            recovered: Vec::with_capacity(BLOCK_LEN_MAX),
            heard_at: None,
            paid_at: Time::ZERO,
        }
    }

    /// Whether the other end sends parity.
    #[inline]
    pub(super) fn is_on(&self, now: Time) -> bool {
        self.heard_at.is_some_and(|at| now.since(at) < FOLLOWED)
    }

    /// A datagram came.
    pub(super) fn keep(&mut self, head: &Head, payload: &[u8]) {
        let at = head.counter as usize % RING_LEN;
        if let Some(len) = write_shard(head, [payload, &[]], &mut self.bytes[at * SLOT_LEN..][..SLOT_LEN]) {
            self.slots[at] = Slot { counter: head.counter, len: len as u16, is_parity: false };
        }
    }

    /// It was overtaken by others: perhaps by a parity, and with it enough is here.
    pub(super) fn came_late(&mut self, now: Time, head: &Head, window: &Window) {
        while let Some(at) = self.open.iter().position(|open| open.layout.counters().any(|counter| counter == head.counter)) {
            if !self.decode(now, at, head, window) {
                return;
            }
        }
    }

    /// Takes a parity. Fails with [`RelayDrop::BadPayload`].
    pub(super) fn take(&mut self, now: Time, head: &Head, payload: &[u8], window: &Window) -> Result<(), RelayDrop> {
        let (layout, index, shard) = read_parity(head, payload).ok_or(RelayDrop::BadPayload)?;
        self.heard_at = Some(now);
        let place = head.counter as usize % RING_LEN;
        self.bytes[place * SLOT_LEN..][..shard.len()].copy_from_slice(shard);
        self.slots[place] = Slot { counter: head.counter, len: shard.len() as u16, is_parity: true };
        let at = self.open.iter().position(|open| open.layout == layout).unwrap_or_else(|| {
            if self.open.len() == OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(Open { layout, came: [NONE; PARITIES_MAX] });
            self.open.len() - 1
        });
        self.open[at].came[index] = head.counter;
        self.decode(now, at, head, window);
        Ok(())
    }

    fn shard(&self, counter: u64, is_parity: bool) -> Option<usize> {
        let slot = self.slots[counter as usize % RING_LEN];
        (slot.counter == counter && slot.is_parity == is_parity).then_some(usize::from(slot.len))
    }

    /// Brings back what a block misses, when enough of it is here; false while it is not. A block of which nothing is missing is over.
    fn decode(&mut self, now: Time, at: usize, head: &Head, window: &Window) -> bool {
        let Open { layout, came } = self.open[at];
        let lacking = layout.counters().filter(|counter| self.shard(*counter, false).is_none()).count();
        let is_wanted = layout.counters().any(|counter| window.check(counter).is_ok() && self.shard(counter, false).is_none());
        if is_wanted {
            let parities = came.iter().filter(|counter| self.shard(**counter, true).is_some()).count();
            if parities < lacking || !self.pay(now) {
                return false;
            }
            // What does not fit together was never a block.
            let _ = self.restore(&layout, &came, head);
        }
        self.open.remove(at);
        true
    }

    /// Whether a decoding may be done now.
    fn pay(&mut self, now: Time) -> bool {
        let earliest = Time::from_nanos(now.as_nanos().saturating_sub((DECODE_EVERY * DECODES_AT_ONCE).as_nanos() as u64));
        let may = self.paid_at <= now;
        if may {
            self.paid_at = self.paid_at.max(earliest) + DECODE_EVERY;
        }
        may
    }

    fn restore(&mut self, layout: &Layout, came: &[u64; PARITIES_MAX], head: &Head) -> Option<()> {
        let Recovery { decoder, slots, bytes, recovered, .. } = self;
        let known = |slots: &[Slot], counter: u64, is_parity: bool| {
            let slot = slots[counter as usize % RING_LEN];
            (slot.counter == counter && slot.is_parity == is_parity).then_some(usize::from(slot.len))
        };
        let shard_len = came.iter().find_map(|counter| known(slots, *counter, true))?;
        decoder.reset(layout.len, layout.parities, shard_len).ok()?;
        for (index, counter) in layout.counters().enumerate() {
            let Some(len) = known(slots, counter, false) else { continue };
            let slot = &mut bytes[counter as usize % RING_LEN * SLOT_LEN..][..SLOT_LEN];
            if len > shard_len {
                return None;
            }
            slot[len..shard_len].fill(0);
            decoder.add_original_shard(index, &slot[..shard_len]).ok()?;
        }
        for (index, counter) in came.iter().enumerate().take(layout.parities) {
            let Some(len) = known(slots, *counter, true) else { continue };
            decoder.add_recovery_shard(index, &bytes[*counter as usize % RING_LEN * SLOT_LEN..][..len]).ok()?;
        }
        let decoded = decoder.decode().ok()?;
        recovered.clear();
        for (index, counter) in layout.counters().enumerate() {
            let Some(shard) = decoded.restored_original(index) else { continue };
            let place = counter as usize % RING_LEN;
            let slot = &mut bytes[place * SLOT_LEN..][..shard.len()];
            slot.copy_from_slice(shard);
            if let Some((_, payload)) = read_shard(head, counter, slot) {
                slots[place] = Slot { counter, len: (SHARD_HEAD_LEN + payload.len()) as u16, is_parity: false };
                recovered.push(counter);
            } else {
                slots[place] = Slot { counter: NONE, len: 0, is_parity: false };
            }
        }
        // The first is taken first.
        recovered.reverse();
        Some(())
    }

    /// The next datagram that was brought back; it may have come meanwhile.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.recovered.pop()
    }

    /// It is a datagram, in the ring.
    pub(super) fn has(&mut self, counter: u64) -> bool {
        let head = Head { version: 0, kind: FrameKind::Parity, phase: false, association: 0, alias: 0, layer: 0, epoch: 0, counter };
        self.datagram(&head, counter).is_some()
    }

    /// The datagram, if it is in the ring. `head` is that of its link.
    pub(super) fn datagram(&mut self, head: &Head, counter: u64) -> Option<(Head, &mut [u8])> {
        let len = self.shard(counter, false)?;
        read_shard(head, counter, &mut self.bytes[counter as usize % RING_LEN * SLOT_LEN..][..len])
    }
}

/// The block that a parity is of, which parity of it this is, and its shard.
fn read_parity<'a>(head: &Head, payload: &'a [u8]) -> Option<(Layout, usize, &'a [u8])> {
    let ([behind, len, parities, index], rest) = payload.split_first_chunk::<PARITY_HEAD_LEN>()?;
    let (len, parities, index) = (usize::from(*len), usize::from(*parities), usize::from(*index));
    if !(1..=BLOCK_LEN_MAX).contains(&len) || !(1..=PARITIES_MAX).contains(&parities) || index >= parities {
        return None;
    }
    let (offsets, shard) = rest.split_at_checked(len - 1)?;
    let first = head.counter.checked_sub(u64::from(*behind))?;
    let mut layout = Layout { first, len, parities, offsets: [0; BLOCK_LEN_MAX] };
    layout.offsets[1..len].copy_from_slice(offsets);
    // Each is after the one before it, and the parity after all.
    let is_rising = layout.offsets[..len].windows(2).all(|pair| pair[0] < pair[1]) && layout.offsets[len - 1] < *behind;
    let is_shard = shard.len() > SHARD_HEAD_LEN && shard.len() <= SLOT_LEN && shard.len().is_multiple_of(2);
    (is_rising && is_shard).then_some((layout, index, shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000);

    fn head(counter: u64) -> Head {
        Head { version: 1, kind: FrameKind::Media, phase: false, association: 1, alias: 3, layer: 2, epoch: 1, counter }
    }

    fn payload(counter: u64) -> Vec<u8> {
        vec![counter as u8; 20 + counter as usize % 7]
    }

    /// Two ends: `came` of the datagrams 0 to `len`, which have every other counter, come, and the parities `parities`, before or behind them.
    fn cross(len: u64, loss_ppm: u32, came: &[u64], parities: &[usize], parity_first: bool) -> Vec<u64> {
        let (mut protection, mut recovery, mut window) = (Protection::new(Duration::from_millis(150)), Recovery::new(), Window::new());
        protection.follow(loss_ppm);
        let datagrams: Vec<u64> = (0..len).map(|at| 2 * at).collect();
        datagrams.iter().for_each(|counter| protection.keep(NOW, Class::Video, &head(*counter), [&payload(*counter), &[]], 1_400));
        let (mut counter, mut made) = (2 * len, Vec::new());
        while let Some(parity) = protection.next(NOW + BLOCK_TIME_MAX, counter) {
            made.push((counter, [parity.head(), parity.shard].concat()));
            counter += 1;
        }
        recovery.heard_at = Some(NOW);
        let mut brought = Vec::new();
        for is_parity in [parity_first, !parity_first] {
            if is_parity {
                for at in parities {
                    let head = Head { kind: FrameKind::Parity, ..head(made[*at].0) };
                    window.insert(head.counter);
                    recovery.take(NOW, &head, &made[*at].1, &window).expect("it is one");
                }
            } else {
                for counter in came.iter().map(|at| 2 * at) {
                    window.insert(counter);
                    recovery.keep(&head(counter), &payload(counter));
                    recovery.came_late(NOW, &head(counter), &window);
                }
            }
            while let Some(counter) = recovery.next() {
                let (of, bytes) = recovery.datagram(&head(0), counter).expect("it is there");
                assert_eq!((of, &*bytes), (head(counter), payload(counter).as_slice()));
                brought.push(counter);
            }
        }
        brought
    }

    #[test]
    fn as_many_as_there_are_parities_are_brought_back_whichever_come_and_in_whatever_order() {
        // At 5 % there are four of a full block.
        for parity_first in [false, true] {
            let came: Vec<u64> = (0..16).filter(|at| ![0, 5, 15].contains(at)).collect();
            assert_eq!(cross(16, 50_000, &came, &[0, 2, 3], parity_first), [0, 10, 30], "one parity is lost");
            assert_eq!(cross(16, 50_000, &came, &[1, 2], parity_first), [], "two parities are not three");
        }
        assert_eq!(cross(16, 50_000, &(0..16).collect::<Vec<_>>(), &[0, 1], false), [], "nothing was lost");
        assert_eq!(cross(1, 20_000, &[], &[0], false), [0], "a single one has itself");
    }

    #[test]
    fn parity_follows_what_is_lost_and_audio_has_more_of_it() {
        let of = |loss_ppm| [2, 16].map(|len| [0, 1].map(|class| parities_for(len, loss_ppm, LEFT_PPM[class])));
        assert_eq!(of(0), [[0, 0], [0, 0]]);
        assert_eq!(of(1_000), [[1, 1], [1, 1]]);
        assert_eq!(of(20_000), [[2, 1], [3, 2]]);
        assert_eq!(of(50_000), [[2, 2], [5, 4]]);
        assert_eq!(of(1_000_000), [[2, 2], [8, 8]]);
    }

    #[test]
    fn a_parity_that_is_none_is_refused_and_decodings_are_bounded() {
        let (mut recovery, mut window) = (Recovery::new(), Window::new());
        window.insert(300);
        let shard = [0; 20];
        let take = |recovery: &mut Recovery, counter: u64, parity: &[u8]| {
            let head = Head { kind: FrameKind::Parity, ..head(counter) };
            recovery.take(NOW, &head, &[parity, &shard].concat(), &window)
        };
        // No datagram, too many, no parity, too many, one of none, two that are one, one behind the parity, a beginning before the first.
        let bad: [&[u8]; 8] = [
            &[9, 0, 1, 0],
            &[9, 17, 1, 0],
            &[9, 1, 0, 0],
            &[9, 1, 9, 0],
            &[9, 1, 1, 1],
            &[9, 3, 1, 0, 4, 4],
            &[9, 2, 1, 0, 9],
            &[255, 1, 1, 0],
        ];
        for (at, parity) in bad.into_iter().enumerate() {
            assert_eq!(take(&mut recovery, if at == 7 { 200 } else { 300 }, parity), Err(RelayDrop::BadPayload), "{parity:?}");
        }
        let mut decoded = 0;
        for behind in 1..200 {
            take(&mut recovery, 300, &[behind, 1, 1, 0]).expect("it may be one");
            decoded += std::iter::from_fn(|| recovery.next()).count();
        }
        assert!(recovery.open.len() <= OPEN_MAX);
        assert!(decoded <= DECODES_AT_ONCE as usize + 1, "{decoded} in no time");
    }

    #[test]
    fn video_has_no_parity_while_there_is_no_room_for_it() {
        let mut protection = Protection::new(Duration::from_millis(150));
        protection.follow(50_000);
        for has_room in [false, true] {
            protection.set_room(has_room);
            for class in [Class::Audio, Class::Video] {
                (0..16).for_each(|counter| protection.keep(NOW, class, &head(counter), [&payload(counter), &[]], 1_400));
            }
            let mut made = 0;
            while protection.next(NOW, 20 + made).is_some() {
                made += 1;
            }
            assert_eq!(made, if has_room { 5 + 4 } else { 5 });
        }
    }
}
