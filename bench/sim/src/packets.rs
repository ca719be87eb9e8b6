//! Packets of some sessions between PoPs: audio over real [`Link`]s, which go by the ways that [`crate::OverlayWorld`] has chosen and find out
//! by their own echoes when one of them is cut.
//!
//! ```text
//! a speaker's packet -> Link::bundle_media -- ways() --> direct, or over a PoP -> Link::open_by at the other end -> was it there before? how late?
//!   echoes, feedback, repairs, parity --------^             lost, late and cut as the world says at each leg
//! ```

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use pop_relay::control::VERSION;
use pop_relay::link::{DATAGRAM_LEN_WRITTEN_MAX, FRAME_LEN_MAX, FrameRef, Incoming, Link, LinkConfig, WRITE_MARGIN, Way, Ways};
use pop_relay::route::Figures;
use pop_schemas::Time;

use crate::dice::{Dice, mix};

/// Between two packets of a speaker.
const PACKET_EVERY: Duration = Duration::from_millis(20);

/// Bytes of one: its stream, its number, and filler.
const PACKET_LEN: usize = 80;
const FILLER: u8 = 0xa7;

/// How much later than the quickest of the last seconds a packet may come.
const PLAYOUT: Duration = Duration::from_millis(150);
const QUICKEST_OF: Duration = Duration::from_secs(5);

/// A link has a turn so often at most.
const TURN: Duration = Duration::from_millis(1);

/// A pause belongs to a change of ways until so long after it.
const CHANGE_COUNTS: Duration = Duration::from_secs(1);

/// What became of the packets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PacketFigures {
    /// Sessions, and pairs of PoPs with a link between them.
    pub sessions: usize,
    /// See `sessions`.
    pub pairs: usize,
    /// Packets, one for each listening PoP.
    pub sent: u64,
    /// Of these, never there.
    pub lost: u64,
    /// Of these, there later than the playout allows.
    pub late: u64,
    /// Sent while one of the two PoPs was cut off from all others; not among `sent`.
    pub cut_off: u64,
    /// Packets that were given to a listener more than once.
    pub twice: u64,
    /// Datagrams that came to a PoP where they had been.
    pub circles: u64,
    /// Packets that came changed, or that nobody had sent.
    pub foreign: u64,
    /// Of `sent`, those that left over a third PoP; and by two ways, while it was not known which one lives.
    pub over_others: u64,
    /// See `over_others`.
    pub doubled: u64,
    /// The longest pause between two packets when the ways became others because the one that was taken had failed, in milliseconds; sorted.
    pub gaps_failed_ms: Vec<u64>,
    /// The same when another way was better.
    pub gaps_better_ms: Vec<u64>,
    /// Datagrams that did not come, and of these what came by a repair and by parity.
    pub missed: u64,
    /// See `missed`.
    pub repaired: u64,
    /// See `missed`.
    pub recovered: u64,
    /// Datagrams of these links, and bytes of their payload. Packets alone would have been `sent` of 80 bytes.
    pub datagrams: u64,
    /// See `datagrams`.
    pub bytes: u64,
}

/// What happens next.
enum Next {
    /// A speaker's packet.
    Speak(usize),
    /// The time of an end.
    Turn(usize),
    /// A datagram comes to this end by this way.
    Come(usize, Way, Vec<u8>),
    /// It comes to the PoP on its way to that end.
    Pass(usize, usize, Vec<u8>),
}

struct Due {
    at: Time,
    serial: u64,
    next: Next,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// One end of a link.
struct End {
    link: Link,
    from: usize,
    to: usize,
    other: usize,
    routed: Option<(Way, Option<Way>)>,
    ways: Ways,
    /// When its next turn is.
    turn_at: Option<Time>,
    /// What is spoken here and heard there.
    streams: Vec<usize>,
}

/// What somebody says, as one other PoP hears it.
struct Stream {
    end: usize,
    began: Time,
    next: u64,
    /// A bit for each packet: it came; it was sent while nothing could come.
    came: Vec<u64>,
    cut_off: Vec<u64>,
    came_at: Option<Time>,
    cut_off_at: Option<Time>,
    /// The least that any took, of these seconds and those before.
    quickest: [Duration; 2],
    quickest_at: Time,
    change: Option<Change>,
}

#[derive(Clone, Copy)]
struct Change {
    until: Time,
    gap: Duration,
    has_failed: bool,
    /// Nothing could come meanwhile.
    is_void: bool,
}

fn bit(bits: &mut Vec<u64>, number: u64) -> bool {
    let (word, mask) = (number as usize / 64, 1 << (number % 64));
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    let was = bits[word] & mask != 0;
    bits[word] |= mask;
    was
}

fn has_bit(bits: &[u64], number: u64) -> bool {
    bits.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}

/// How the world is now.
pub(crate) trait Paths {
    /// From one PoP to another; `None`: nothing passes.
    fn path(&self, from: usize, to: usize) -> Option<Figures>;

    /// Nothing goes to it or from it.
    fn is_cut_off(&self, pop: usize) -> bool;
}

/// The sessions whose packets are sent.
pub(crate) struct Packets {
    dice: Dice,
    now: Time,
    due: BinaryHeap<Reverse<Due>>,
    serial: u64,
    ends: Vec<End>,
    by_pair: BTreeMap<(usize, usize), usize>,
    streams: Vec<Stream>,
    /// When the last datagram comes from one PoP to another: none overtakes it.
    last: BTreeMap<(usize, usize), Time>,
    is_silent: bool,
    figures: PacketFigures,
}

impl Packets {
    /// So many sessions of two or three of these PoPs, in each of which somebody speaks at one of them from `now` on.
    pub(crate) fn new(seed: u64, now: Time, pops: &[usize], sessions: usize) -> Packets {
        let mut packets = Packets {
            dice: Dice(mix(seed ^ 0x7061_636b)),
            now,
            due: BinaryHeap::new(),
            serial: 0,
            ends: Vec::new(),
            by_pair: BTreeMap::new(),
            streams: Vec::new(),
            last: BTreeMap::new(),
            is_silent: false,
            figures: PacketFigures { sessions, ..PacketFigures::default() },
        };
        for _ in 0..sessions {
            let mut left = pops.to_vec();
            let speaker = left.swap_remove(packets.dice.below(left.len()));
            let began = now + Duration::from_micros(packets.dice.below(PACKET_EVERY.as_micros() as usize) as u64);
            for _ in 0..1 + packets.dice.below(2) {
                if !left.is_empty() {
                    let listener = left.swap_remove(packets.dice.below(left.len()));
                    packets.open_stream(speaker, listener, began);
                }
            }
        }
        packets.figures.pairs = packets.ends.len() / 2;
        packets
    }

    fn open_stream(&mut self, speaker: usize, listener: usize, began: Time) {
        if !self.by_pair.contains_key(&(speaker, listener)) {
            for (from, to) in [(speaker, listener), (listener, speaker)] {
                let config = LinkConfig {
                    version: VERSION,
                    remote_association: 0x0100,
                    is_abroad: true,
                    measures: true,
                    generation: 0,
                    send: keys(from, to),
                    receive: keys(to, from),
                    playout: PLAYOUT,
                };
                let (at, link) = (self.ends.len(), Link::new(&config, self.now));
                let other = if from == speaker { at + 1 } else { at - 1 };
                self.by_pair.insert((from, to), at);
                self.ends.push(End { link, from, to, other, routed: None, ways: Ways::default(), turn_at: None, streams: Vec::new() });
                self.plan_turn(at);
            }
        }
        let (end, stream) = (self.by_pair[&(speaker, listener)], self.streams.len());
        self.ends[end].streams.push(stream);
        self.streams.push(Stream {
            end,
            began,
            next: 0,
            came: Vec::new(),
            cut_off: Vec::new(),
            came_at: None,
            cut_off_at: None,
            quickest: [Duration::MAX; 2],
            quickest_at: began,
            change: None,
        });
        self.later(began, Next::Speak(stream));
    }

    /// Pairs of PoPs with a link, in both directions.
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        self.by_pair.keys().copied().collect()
    }

    /// The two PoPs of a path that packets take now.
    pub(crate) fn draw_path(&self, dice: &mut Dice) -> Option<(usize, usize)> {
        let End { from, to, ways, .. } = self.ends.get(dice.below(self.ends.len().max(1)))?;
        Some(match ways.first {
            Way::Direct => (*from, *to),
            Way::Via(via) if dice.once_in(2) => (*from, via.into()),
            Way::Via(via) => (via.into(), *to),
        })
    }

    /// What goes from one to the other is to go this way; `None`: over nobody.
    pub(crate) fn route(&mut self, (from, to): (usize, usize), way: Option<usize>, backup: Option<Option<usize>>, world: &impl Paths) {
        let Some(&at) = self.by_pair.get(&(from, to)) else { return };
        let of = |via: Option<usize>| via.map_or(Way::Direct, |via| Way::Via(via as u16));
        let routed = Some((of(way), backup.map(of)));
        if self.ends[at].routed != routed {
            self.ends[at].routed = routed;
            let now = self.now;
            self.ends[at].link.route(now, of(way), backup.map(of));
            self.end_turn(at, world);
        }
    }

    /// Nobody speaks any more: what is under way comes.
    pub(crate) fn fall_silent(&mut self) {
        self.is_silent = true;
    }

    pub(crate) fn run(&mut self, until: Time, world: &impl Paths) {
        while self.due.peek().is_some_and(|Reverse(due)| due.at <= until) {
            let Some(Reverse(Due { at, next, .. })) = self.due.pop() else { break };
            self.now = at;
            match next {
                Next::Speak(stream) => self.speak(stream, world),
                Next::Turn(end) if self.ends[end].turn_at == Some(at) => {
                    self.ends[end].turn_at = None;
                    self.end_turn(end, world);
                }
                Next::Turn(_) => {}
                Next::Come(end, by, bytes) => self.come(end, by, bytes, world),
                Next::Pass(pop, end, bytes) => {
                    let End { from, to, .. } = self.ends[self.ends[end].other];
                    // A datagram names one PoP on its way, which is neither of its ends.
                    self.figures.circles += u64::from(pop == from || pop == to);
                    self.leg(pop, to, Next::Come(end, Way::Via(pop as u16), bytes), world);
                }
            }
        }
        self.now = until;
    }

    pub(crate) fn finish(mut self) -> PacketFigures {
        let mut figures = self.figures;
        for stream in &mut self.streams {
            for number in 0..stream.next {
                figures.lost += u64::from(!has_bit(&stream.came, number) && !has_bit(&stream.cut_off, number));
            }
            if let Some(change) = stream.change.take().filter(|change| !change.is_void) {
                note_gap(&mut figures, change);
            }
        }
        for End { link, .. } in &self.ends {
            let stats = link.stats();
            figures.datagrams += stats.datagrams_out + stats.echoes_out;
            figures.bytes += stats.bytes_out;
            figures.missed += stats.lost;
            figures.repaired += stats.repaired;
            figures.recovered += stats.recovered;
        }
        figures.gaps_failed_ms.sort_unstable();
        figures.gaps_better_ms.sort_unstable();
        figures
    }

    fn later(&mut self, at: Time, next: Next) {
        self.serial += 1;
        self.due.push(Reverse(Due { at, serial: self.serial, next }));
    }

    fn speak(&mut self, stream: usize, world: &impl Paths) {
        if self.is_silent {
            return;
        }
        let (now, of) = (self.now, &mut self.streams[stream]);
        let (number, end) = (of.next, of.end);
        of.next += 1;
        let End { link, from, to, ways, .. } = &mut self.ends[end];
        if world.is_cut_off(*from) || world.is_cut_off(*to) {
            bit(&mut of.cut_off, number);
            of.cut_off_at = Some(now);
            of.change.iter_mut().for_each(|change| change.is_void = true);
            self.figures.cut_off += 1;
        } else {
            self.figures.sent += 1;
            self.figures.over_others += u64::from(ways.first != Way::Direct);
            self.figures.doubled += u64::from(ways.second.is_some());
        }
        let mut out = [0; FRAME_LEN_MAX + WRITE_MARGIN];
        let written = link.bundle_media(now, &FrameRef::new(stream as u16, 0, 0, number), &packet(stream, number), &mut out);
        let written = written.expect("a small packet fits");
        let (first, rest) = out.split_at(written.first);
        for bytes in [first, &rest[..written.second]].into_iter().filter(|bytes| !bytes.is_empty()) {
            self.transmit(end, bytes, world);
        }
        self.end_turn(end, world);
        self.later(now + PACKET_EVERY, Next::Speak(stream));
    }

    /// All that an end has to say.
    fn end_turn(&mut self, end: usize, world: &impl Paths) {
        let (now, mut out) = (self.now, [0; 9_216]);
        const { assert!(DATAGRAM_LEN_WRITTEN_MAX <= 9_216 && FRAME_LEN_MAX + WRITE_MARGIN <= 9_216) }
        if self.ends[end].link.poll_timeout() <= now {
            self.ends[end].link.handle_timeout(now);
        }
        while let Some(frame) = self.ends[end].link.next_repair() {
            let bytes = packet(frame.alias.into(), frame.sequence);
            if let Ok(len) = self.ends[end].link.write_repair(now, &frame, &bytes, &mut out) {
                self.transmit(end, &out[..len], world);
            }
        }
        while let Some(len) = self.ends[end].link.poll_transmit(now, &mut out) {
            self.transmit(end, &out[..len], world);
        }
        while let Some((way, len)) = self.ends[end].link.poll_by_way(now, &mut out) {
            self.send(end, way, out[..len].to_vec(), world);
        }
        self.note_ways(end, world);
        self.plan_turn(end);
    }

    fn plan_turn(&mut self, end: usize) {
        let at = self.ends[end].link.poll_timeout().max(self.now + TURN);
        if self.ends[end].turn_at.is_none_or(|before| before > at || before <= self.now) {
            self.ends[end].turn_at = Some(at);
            self.later(at, Next::Turn(end));
        }
    }

    /// The ways of an end may be others now.
    fn note_ways(&mut self, end: usize, world: &impl Paths) {
        let (now, End { link, from, to, ways, streams, .. }) = (self.now, &mut self.ends[end]);
        let before = std::mem::replace(ways, link.ways());
        if before == *ways {
            return;
        }
        let lives = match before.first {
            Way::Direct => world.path(*from, *to).is_some(),
            Way::Via(via) => world.path(*from, via.into()).is_some() && world.path(via.into(), *to).is_some(),
        };
        let is_void = world.is_cut_off(*from) || world.is_cut_off(*to);
        for stream in streams.iter() {
            let until = now + CHANGE_COUNTS;
            let change = self.streams[*stream].change.get_or_insert(Change { until, gap: Duration::ZERO, has_failed: false, is_void });
            (change.until, change.has_failed, change.is_void) = (until, change.has_failed || !lives, change.is_void || is_void);
        }
    }

    fn transmit(&mut self, end: usize, bytes: &[u8], world: &impl Paths) {
        let Ways { first, second } = self.ends[end].link.ways();
        self.send(end, first, bytes.to_vec(), world);
        if let Some(second) = second {
            self.send(end, second, bytes.to_vec(), world);
        }
    }

    fn send(&mut self, end: usize, way: Way, bytes: Vec<u8>, world: &impl Paths) {
        let End { from, to, other, .. } = self.ends[end];
        match way {
            Way::Direct => self.leg(from, to, Next::Come(other, Way::Direct, bytes), world),
            Way::Via(via) => self.leg(from, via.into(), Next::Pass(via.into(), other, bytes), world),
        }
    }

    /// Over one path, if it comes there.
    fn leg(&mut self, from: usize, to: usize, next: Next, world: &impl Paths) {
        let Some(Figures { rtt_us, loss_out, jitter_us, .. }) = world.path(from, to) else { return };
        let (is_lost, jitter) = (self.dice.below(10_000) < usize::from(loss_out), self.dice.below(jitter_us as usize + 1));
        if !is_lost {
            let at = self.now + Duration::from_micros(u64::from(rtt_us / 2) + jitter as u64);
            let last = self.last.entry((from, to)).or_insert(at);
            *last = at.max(*last);
            let at = *last;
            self.later(at, next);
        }
    }

    fn come(&mut self, end: usize, by: Way, mut bytes: Vec<u8>, world: &impl Paths) {
        let (now, mut came) = (self.now, Vec::new());
        let link = &mut self.ends[end].link;
        let mut take = |incoming: Incoming<'_>| match incoming {
            Incoming::Media(media) => came.push((media.alias, number_of(media.payload))),
            Incoming::Bundle(bundle) => came.extend(bundle.map(|media| (media.alias, number_of(media.payload)))),
            _ => {}
        };
        // One that came by two ways, or that was repaired and came after all, is refused.
        if let Ok(incoming) = link.open_by(now, &mut bytes, by) {
            take(incoming);
        }
        while let Some(recovered) = link.poll_recovered(now) {
            recovered.into_iter().for_each(&mut take);
        }
        for (alias, number) in came {
            self.hear(end, alias.into(), number);
        }
        self.end_turn(end, world);
    }

    /// A packet is there for who listens.
    fn hear(&mut self, end: usize, stream: usize, number: Option<u64>) {
        let (now, sender) = (self.now, self.ends[end].other);
        let Some((of, number)) = self.streams.get_mut(stream).zip(number).filter(|(of, number)| of.end == sender && *number < of.next)
        else {
            self.figures.foreign += 1;
            return;
        };
        if bit(&mut of.came, number) {
            self.figures.twice += 1;
            return;
        }
        let took = now.since(of.began + PACKET_EVERY * number as u32);
        if now.since(of.quickest_at) >= QUICKEST_OF {
            (of.quickest, of.quickest_at) = ([Duration::MAX, of.quickest[0]], now);
        }
        of.quickest[0] = of.quickest[0].min(took);
        let is_late = took > of.quickest[0].min(of.quickest[1]) + PLAYOUT;
        self.figures.late += u64::from(is_late && !has_bit(&of.cut_off, number));
        let before = of.came_at.replace(now);
        let Some(change) = &mut of.change else { return };
        if let Some(before) = before.filter(|before| of.cut_off_at.is_none_or(|at| at < *before)) {
            change.gap = change.gap.max(now.since(before));
        }
        if now >= change.until {
            let change = *change;
            of.change = None;
            if !change.is_void {
                note_gap(&mut self.figures, change);
            }
        }
    }
}

fn note_gap(figures: &mut PacketFigures, Change { gap, has_failed, .. }: Change) {
    let gaps = if has_failed { &mut figures.gaps_failed_ms } else { &mut figures.gaps_better_ms };
    gaps.push(gap.as_millis() as u64);
}

/// Of what `from` sends to `to`.
fn keys(from: usize, to: usize) -> [u8; 28] {
    let seed = mix((from as u64) << 32 | to as u64);
    std::array::from_fn(|at| mix(seed ^ at as u64) as u8)
}

fn packet(stream: usize, number: u64) -> [u8; PACKET_LEN] {
    let mut bytes = [FILLER; PACKET_LEN];
    bytes[..8].copy_from_slice(&(stream as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// `None`: it is none of these.
fn number_of(payload: &[u8]) -> Option<u64> {
    let word = |at: usize| payload.get(at..at + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let (stream, number) = word(0).zip(word(8))?;
    (*payload == packet(stream as usize, number)).then_some(number)
}
