//! What the tests of this crate share: a seeded generator, mutations, and two links with a bad wire between them.
// Each test binary takes what it needs.
#![allow(dead_code, unreachable_pub)]
// The crate is sans-IO, its tests read how long they are to run.
#![allow(clippy::disallowed_methods)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use pop_relay::{
    RelayDrop,
    frame::OVERHEAD,
    keys,
    link::{DATAGRAM_LEN_WRITTEN_MAX, FRAME_LEN_MAX, FrameRef, Incoming, Link, LinkConfig, WRITE_MARGIN, Written},
};
use pop_schemas::{NodeId, Time};

/// SplitMix64: tiny, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`; print the seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// True in so many of 1,000 times.
    pub fn permille(&mut self, permille: usize) -> bool {
        self.below(1_000) < permille
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next_u64() as u8).collect()
    }
}

/// Changes `bytes` in one to three places: bits, bytes at their limits, lengths, copies and cuts.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(3) {
        let len = bytes.len();
        if len == 0 {
            bytes.extend(rng.bytes(8));
            continue;
        }
        let at = rng.below(len);
        match rng.below(10) {
            0..=2 => bytes[at] ^= 1 << rng.below(8),
            3..=4 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.below(6)],
            5 => bytes[at] = rng.next_u64() as u8,
            6 => bytes[at] = bytes[at].wrapping_add([1, 4, 252, 255][rng.below(4)]),
            7 => bytes.truncate(at),
            8 => {
                let end = (at + 1 + rng.below(16)).min(len);
                let copy = bytes[at..end].to_vec();
                let to = rng.below(len);
                bytes.splice(to..to, copy);
            }
            _ => {
                let end = (at + 1 + rng.below(16)).min(len);
                bytes.drain(at..end);
            }
        }
    }
}

/// How many inputs a mutation test takes: fewer in debug, `POP_MUTATION_FACTOR` times as many when `scripts/test --long` sets it.
pub fn mutation_count() -> usize {
    let factor = std::env::var("POP_MUTATION_FACTOR").map_or(1, |factor| factor.parse().expect("POP_MUTATION_FACTOR is a number"));
    factor * if cfg!(debug_assertions) { 100_000 } else { 1_000_000 }
}

/// The secret of the control link that does not exist here.
const SECRET: [u8; 32] = [42; 32];
/// The two ends: worker 3 of node 0 and worker 5 of node 1.
const ENDS: [(NodeId, u8); 2] = [(NodeId(100), 3), (NodeId(200), 5)];
/// How late a packet may be.
pub const PLAYOUT: Duration = Duration::from_millis(150);

/// Keys of what end `from` sends in `generation`.
pub fn keys_of(from: usize, generation: u32) -> [u8; keys::KEYS_LEN] {
    keys::derive(&SECRET, generation, ENDS[from], ENDS[1 - from])
}

/// The link at `end`, which speaks `version`.
pub fn open_link(end: usize, version: u8, now: Time) -> Link {
    open_link_of(end, version, 0, false, now)
}

/// One that is opened while others of the two nodes are at this generation of keys.
pub fn open_link_later(end: usize, generation: u32, now: Time) -> Link {
    open_link_of(end, 1, generation, true, now)
}

/// The same, between PoPs.
pub fn open_link_abroad(end: usize, now: Time) -> Link {
    open_link_of(end, 1, 0, true, now)
}

fn open_link_of(end: usize, version: u8, generation: u32, is_abroad: bool, now: Time) -> Link {
    let (send, receive) = (keys_of(end, generation), keys_of(1 - end, generation));
    let remote_association = 0x0900 | u16::from(ENDS[end].1);
    Link::new(&LinkConfig { version, remote_association, is_abroad, measures: true, generation, send, receive, playout: PLAYOUT }, now)
}

/// What the wire does to datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// So many of 1,000 do not come.
    pub loss_permille: usize,
    /// With each of these so many in all.
    pub burst: usize,
    /// One way.
    pub delay: Duration,
    /// So many of 1,000 come twice, are late by up to 8 ms, or come with a bit flipped.
    pub twice_permille: usize,
    pub late_permille: usize,
    pub flipped_permille: usize,
    /// Longest UDP payload that comes.
    pub mtu: usize,
}

impl Wire {
    /// One that does nothing but take its time.
    pub const GOOD: Wire = Wire {
        loss_permille: 0,
        burst: 1,
        delay: Duration::from_millis(30),
        twice_permille: 0,
        late_permille: 0,
        flipped_permille: 0,
        mtu: 9_000,
    };
}

/// A packet that was sent.
struct Packet {
    sent_at: Time,
    bytes: Vec<u8>,
    delivered_at: Option<Time>,
}

/// One end: its link, what it sent (which is its history too), and what it was told.
pub struct End {
    pub link: Link,
    sent: HashMap<(u16, u64), Packet>,
    next_sequence: HashMap<u16, u64>,
    pub drops: HashMap<RelayDrop, u64>,
    /// Datagrams that left, by length.
    pub datagrams: Vec<usize>,
}

/// A datagram on the wire: when it comes, its number, to which end, its bytes.
type Flying = (Time, u64, usize, Vec<u8>);

/// Two links and the wire between them, in fake time.
pub struct Net {
    pub now: Time,
    pub wire: Wire,
    pub ends: [End; 2],
    rng: Rng,
    flying: BinaryHeap<Reverse<Flying>>,
    serial: u64,
    /// Datagrams that the wire took.
    pub swallowed: u64,
    /// An end gets its turn so many milliseconds after the last at most, as its machine has time: 1 is at once. What comes waits.
    pub turn_ms_max: usize,
    turns: [Time; 2],
    waiting: [Vec<Vec<u8>>; 2],
    /// An end stands still until then: nothing leaves it, and what comes is stale.
    still: [Option<Time>; 2],
    /// Nothing that this end sends comes.
    pub cut: [bool; 2],
    /// So many more of what this end sends are lost.
    losing: [usize; 2],
}

impl Net {
    pub fn new(seed: u64, wire: Wire, versions: [u8; 2]) -> Net {
        let now = Time::from_millis(10_000);
        let end = |end: usize| End {
            link: open_link(end, versions[end], now),
            sent: HashMap::new(),
            next_sequence: HashMap::new(),
            drops: HashMap::new(),
            datagrams: Vec::new(),
        };
        let ends = [end(0), end(1)];
        let (rng, flying, waiting) = (Rng::new(seed), BinaryHeap::new(), Default::default());
        Net {
            now,
            wire,
            ends,
            rng,
            flying,
            serial: 0,
            swallowed: 0,
            turn_ms_max: 1,
            turns: [now; 2],
            waiting,
            still: [None; 2],
            cut: [false; 2],
            losing: [0; 2],
        }
    }

    /// From now on, for so long.
    pub fn stand_still(&mut self, end: usize, time: Duration) {
        self.still[end] = Some(self.now + time);
    }

    fn transmit(&mut self, from: usize, datagram: &[u8]) {
        if self.still[from].is_some() {
            return;
        }
        self.ends[from].datagrams.push(datagram.len());
        if self.losing[from] == 0 && self.rng.permille(self.wire.loss_permille) {
            self.losing[from] = self.wire.burst;
        }
        let is_lost = self.losing[from] > 0;
        self.losing[from] = self.losing[from].saturating_sub(1);
        if self.cut[from] || datagram.len() > self.wire.mtu || is_lost {
            self.swallowed += 1;
            return;
        }
        for _ in 0..1 + usize::from(self.rng.permille(self.wire.twice_permille)) {
            let late = if self.rng.permille(self.wire.late_permille) { self.rng.below(8_000) as u64 } else { 0 };
            let mut bytes = datagram.to_vec();
            if self.rng.permille(self.wire.flipped_permille) {
                let at = self.rng.below(bytes.len());
                bytes[at] ^= 1 << self.rng.below(8);
            }
            self.serial += 1;
            self.flying.push(Reverse((self.now + self.wire.delay + Duration::from_micros(late), self.serial, 1 - from, bytes)));
        }
    }

    fn transmit_written(&mut self, from: usize, written: Written, out: &[u8]) {
        assert!(written.second <= written.first, "two halves are a GSO train");
        let (first, rest) = out.split_at(written.first);
        for datagram in [first, &rest[..written.second]] {
            if !datagram.is_empty() {
                self.transmit(from, datagram);
            }
        }
    }

    /// End `from` sends a packet of `len` bytes of track `alias`, small ones bundled.
    pub fn send(&mut self, from: usize, alias: u16, len: usize, bundled: bool) {
        let end = &mut self.ends[from];
        let next = end.next_sequence.entry(alias).or_default();
        let sequence = *next;
        *next += 1;
        let mut bytes = [alias.to_le_bytes().as_slice(), &sequence.to_le_bytes()].concat();
        bytes.extend(self.rng.bytes(len.max(10) - 10));
        let frame = FrameRef::new(alias, 1, 2, sequence);
        let mut out = vec![0; FRAME_LEN_MAX + WRITE_MARGIN];
        let link = &mut end.link;
        let written = if bundled {
            link.bundle_media(self.now, &frame, &bytes, &mut out)
        } else {
            let media_len = link.media_len(bytes.len());
            link.write_media(self.now, &frame, &bytes, &mut out)
                .inspect(|written| assert_eq!(written.first + written.second, media_len, "the length was known before"))
        };
        end.sent.insert((alias, sequence), Packet { sent_at: self.now, bytes, delivered_at: None });
        self.transmit_written(from, written.expect("it fits"), &out);
        while self.ends[from].link.parity_waits() {
            let Some(len) = self.ends[from].link.poll_parity(self.now, &mut out) else { break };
            self.transmit(from, &out[..len]);
        }
    }

    fn deliver(&mut self, to: usize, mut datagram: Vec<u8>) {
        let [a, b] = &mut self.ends;
        let (receiver, sender) = if to == 0 { (a, b) } else { (b, a) };
        let mut came = |alias: u16, layer: u8, epoch: u8, payload: &[u8]| {
            assert_eq!((layer, epoch), (1, 2));
            let sequence = u64::from_le_bytes(payload[2..10].try_into().expect("eight bytes"));
            let packet = sender.sent.get_mut(&(alias, sequence)).expect("what comes was sent");
            assert_eq!(payload, packet.bytes, "nothing comes changed");
            assert!(packet.delivered_at.replace(self.now).is_none(), "nothing comes twice: {alias} {sequence}");
        };
        let mut drops = Vec::new();
        let mut take = |incoming: Result<Incoming<'_>, RelayDrop>| match incoming {
            Ok(Incoming::Media(media)) => came(media.alias, media.layer, media.epoch, media.payload),
            Ok(Incoming::Bundle(bundle)) => bundle.for_each(|media| came(media.alias, media.layer, media.epoch, media.payload)),
            Ok(_) => {}
            Err(reason) => drops.push(reason),
        };
        take(receiver.link.open(self.now, &mut datagram));
        while let Some(recovered) = receiver.link.poll_recovered(self.now) {
            take(recovered);
        }
        drops.into_iter().for_each(|reason| *receiver.drops.entry(reason).or_default() += 1);
    }

    /// End of the turn at `from`: repairs, then everything else that the link has.
    fn drain(&mut self, from: usize) {
        let mut out = vec![0; DATAGRAM_LEN_WRITTEN_MAX.max(FRAME_LEN_MAX + OVERHEAD)];
        self.ends[from].link.handle_timeout(self.now);
        while let Some(frame) = self.ends[from].link.next_repair() {
            let end = &mut self.ends[from];
            let packet = &end.sent[&(frame.alias, frame.sequence)];
            if let Ok(len) = end.link.write_repair(self.now, &frame, &packet.bytes, &mut out) {
                self.transmit(from, &out[..len]);
            }
        }
        while let Some(len) = self.ends[from].link.poll_transmit(self.now, &mut out) {
            self.transmit(from, &out[..len]);
        }
        while let Some((_, len)) = self.ends[from].link.poll_by_way(self.now, &mut out) {
            self.transmit(from, &out[..len]);
        }
    }

    /// One millisecond: what is due comes, then each end whose turn it is takes it.
    pub fn step(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        while self.flying.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            let Some(Reverse((_, _, to, datagram))) = self.flying.pop() else { break };
            self.waiting[to].push(datagram);
        }
        for end in 0..2 {
            if let Some(until) = self.still[end] {
                if until <= self.now {
                    self.waiting[end].clear();
                    self.ends[end].link.stood_still(self.now);
                    self.still[end] = None;
                }
                continue;
            }
            if self.turns[end] > self.now {
                continue;
            }
            self.turns[end] = self.now + Duration::from_millis(1 + self.rng.below(self.turn_ms_max) as u64);
            for datagram in std::mem::take(&mut self.waiting[end]) {
                self.deliver(end, datagram);
            }
            self.drain(end);
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Both ends send for `time`: three tracks of audio, two of video with `video_len` bytes in bursts.
    pub fn talk(&mut self, time: Duration, video_len: usize) {
        let end = self.now + time;
        while self.now < end {
            let ms = self.now.as_millis();
            for from in 0..2 {
                if ms.is_multiple_of(20) {
                    (0..3).for_each(|alias| self.send(from, alias, 90 + 10 * usize::from(alias), true));
                }
                if ms.is_multiple_of(33) {
                    (0..4).for_each(|_| self.send(from, 10, video_len, false));
                    (0..2).for_each(|_| self.send(from, 11, video_len / 2, false));
                }
            }
            self.step();
        }
    }

    /// Of packets of tracks `aliases` that `from` sent: how many, how many came in time, how many at all.
    pub fn delivered(&self, from: usize, aliases: std::ops::Range<u16>) -> (usize, usize, usize) {
        let limit = self.wire.delay + PLAYOUT;
        let of_tracks = || self.ends[from].sent.iter().filter(|((alias, _), _)| aliases.contains(alias)).map(|(_, packet)| packet);
        let in_time = of_tracks().filter(|packet| packet.delivered_at.is_some_and(|at| at.since(packet.sent_at) <= limit)).count();
        (of_tracks().count(), in_time, of_tracks().filter(|packet| packet.delivered_at.is_some()).count())
    }

    /// How long after its time each packet of `from` came that was not there in time, in milliseconds, in order.
    pub fn repair_times_ms(&self, from: usize) -> Vec<u64> {
        // Up to 8 ms late are packets of the wire's own, and audio waits up to a step for the end of its turn.
        let late = |packet: &Packet| packet.delivered_at.map(|at| at.since(packet.sent_at + self.wire.delay).as_millis() as u64);
        let mut times: Vec<_> = self.ends[from].sent.values().filter_map(late).filter(|ms| *ms > 10).collect();
        times.sort_unstable();
        times
    }
}
