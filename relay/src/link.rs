//! One relation of two workers: numbers, seals, splits and bundles what goes out; opens, joins and asks again for what comes in.
//!
//! The owner drives it: `open` each datagram that came, `write_*` what is to leave, then, at the end of each turn, `next_repair` and
//! `poll_transmit` and `poll_by_way` until none has anything. Nothing allocates after [`Link::new`]; what it holds is [`Link::MEMORY_LEN`].

mod bundle;
mod missing;
mod parity;
mod parts;
mod path;
mod rate;
mod sent;
mod table;
mod transit;
mod ways;
mod window;

use std::time::Duration;

use pop_schemas::Time;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use self::{
    bundle::Bundle,
    parity::make_parity_tables,
    table::{Ask, Clock},
    transit::{HOPS_MAX, SourceRoute, TRANSIT_OVERHEAD, Transit},
    ways::{PathStats, Way, Ways},
};
use self::{
    bundle::{BUNDLED_LEN_MAX, Pending},
    missing::{MissingList, Repaired},
    parity::{Class, PARITY_LEN, Protection, Recovery},
    parts::{Parts, part_header, part_len, part_range},
    path::{BASE, LADDER, Path},
    rate::{Least, Rate},
    sent::Sent,
    table::{Feedback, RANGE_LEN, RANGES_MAX, Range, Tables, read_ask, read_clock, read_feedback},
    ways::{DIRECT, Echo, EchoWindow, Evidence, Pace, WAYS_MAX},
    window::{WINDOW_LEN, Window},
};
use crate::{
    RelayDrop,
    frame::{FrameKind, HEAD_LEN, Head, OVERHEAD},
    keys::KEYS_LEN,
    seal::{Opener, Sealer, TRANSIT_COUNTERS},
};

/// Longest datagram that is ever written, so the least that `out` of [`Link::poll_transmit`] has to hold.
pub const DATAGRAM_LEN_WRITTEN_MAX: usize = LADDER[LADDER.len() - 1];
/// What a repair has in front of its packet: the counter's low half, place, count, part. A frame leaves room for it, so that its repair
/// passes where it passed.
const REPAIR_LEN: usize = 8;
/// From this version on a node knows of parity.
const PARITY_VERSION: u8 = 1;
/// What a half has in front of it.
const PART_LEN: usize = 2;
/// Longest packet that is written: two halves over a path with the least MTU, which is that of two nodes with one between them.
pub const FRAME_LEN_MAX: usize = 2 * (LADDER[0] - OVERHEAD - REPAIR_LEN);
/// What `out` has to hold beyond the packet.
pub const WRITE_MARGIN: usize = 2 * (OVERHEAD + REPAIR_LEN);

/// Between two datagrams while media flows: where there is none there is a heartbeat, which is feedback.
const BEAT_ACTIVE: Duration = Duration::from_millis(50);
/// While none does any longer: inside a PoP, ...
const BEAT_IDLE: Duration = Duration::from_millis(100);
/// ... and between two, unless it measures their path where no echoes go. Who looks each second sees one.
const BEAT_ABROAD: Duration = Duration::from_millis(900);
/// Media flows until so long after the last packet.
const ACTIVE: Duration = Duration::from_secs(1);
/// A link rests so long after it, or after its start.
const RESTS_AFTER: Duration = Duration::from_secs(30);
/// A longer interval is told so long before.
const TOLD_AHEAD: Duration = Duration::from_millis(600);
/// Between two echoes by the direct way of the first workers of both nodes, by which the path is measured; ...
const ECHO_MEASURING: Duration = Duration::from_millis(100);
/// ... when that rests, and of each link over which media flows: that measures it, too; ...
const ECHO: Duration = Duration::from_millis(250);
/// ... by a way beside it, and of all others; ...
const ECHO_BESIDE: Duration = Duration::from_secs(1);
/// ... and by one beside them.
const ECHO_RESTING: Duration = Duration::from_millis(2_500);
/// While it is not known which way lives.
const ECHO_UNEASY: Duration = Duration::from_millis(50);
/// What was sent and may not have come goes again at most so often, when the way is in doubt.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
/// A way loses more than repairs bring back in time when above this share, in percent, so many datagrams were lost in a row of feedbacks: at 30 % that
/// takes some 40 datagrams, and at 10 % it is chance.
const LOSSY_PERCENT: u64 = 18;
const LOSSY: u64 = 5;
/// Two feedbacks are at least so far apart: what goes missing meanwhile is asked for together.
const FEEDBACK_EVERY: Duration = Duration::from_millis(5);
/// The round trip while none was measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(50);
/// A measured one beyond it is a lie.
const RTT_MAX: Duration = Duration::from_secs(10);
/// How long a datagram may be overtaken by others before it counts as missing: a sixteenth of the round trip within these. With an eighth
/// the second repair of 20 ms audio is 2 ms late at a round trip of 60 ms and the default playout.
const TOLERANCE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(10));
/// What a repair takes beside the round trip: until it is missed, asked for and written.
const REPAIR_SLACK: Duration = Duration::from_millis(30);
/// So many bytes in and out are worth a feedback before its time, of which it is less than a hundredth, ...
const FEEDBACK_BYTES: u64 = 16_384;
/// ... and fewer between PoPs only each so long; ...
const FEEDBACK_BYTES_LIGHT: u64 = 8_192;
const FEEDBACK_LIGHT: Duration = Duration::from_millis(100);
/// ... but not sooner than so: what the way carries shows in them, and a queue fills in a tenth of a second.
const FEEDBACK_BUSY: Duration = Duration::from_millis(20);
/// A datagram that waited so long on its way, in microseconds, is answered at once.
const QUEUE_TOLD_US: u64 = 30_000;

/// What a link needs to know. The keys are wiped when it goes.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct LinkConfig {
    /// Schema version that both ends speak.
    pub version: u8,
    /// What our datagrams say they are for: the other node's number of ours in the high byte, our worker in the low one.
    pub remote_association: u16,
    /// The other node is of another PoP. Inside a PoP the heartbeat tells whether a node lives; PoPs have links with hundreds of others, most of
    /// which carry nothing.
    pub is_abroad: bool,
    /// It is of the first workers of both nodes: by it the path is measured.
    pub measures: bool,
    /// Generation of the keys.
    pub generation: u32,
    /// Key and salt of what we send.
    pub send: [u8; KEYS_LEN],
    /// Key and salt of what we receive.
    pub receive: [u8; KEYS_LEN],
    /// How late a repair may be.
    #[zeroize(skip)]
    pub playout: Duration,
}

/// Names a packet that was written, for a repair of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameRef {
    /// Link-local name of the track.
    pub alias: u16,
    /// Its layer.
    pub layer: u8,
    /// How often the layer has begun anew, modulo 256.
    pub epoch: u8,
    /// Extended RTP sequence number: the caller finds the packet by it. It does not travel.
    pub sequence: u64,
    /// The datagram that carried it.
    counter: u64,
    /// Which of how many in it.
    place: u8,
    count: u8,
    /// See [`part_header`]; 0: it was not split.
    part: u16,
}

impl FrameRef {
    /// Names packet `sequence` of a layer.
    pub fn new(alias: u16, layer: u8, epoch: u8, sequence: u64) -> FrameRef {
        FrameRef { alias, layer, epoch, sequence, counter: 0, place: 0, count: 1, part: 0 }
    }
}

/// Lengths of the datagrams that were written, which lie back to back from the start of `out`. 0: there is none. The second is never
/// longer than the first, so both may be of one GSO train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Of the first.
    pub first: usize,
    /// Of the second.
    pub second: usize,
}

/// A packet that came.
#[derive(Debug, PartialEq, Eq)]
pub struct Media<'a> {
    /// Link-local name of the track.
    pub alias: u16,
    /// Its layer.
    pub layer: u8,
    /// How often the layer has begun anew, modulo 256.
    pub epoch: u8,
    /// The packet.
    pub payload: &'a mut [u8],
}

/// What a datagram was.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// A packet, for the first time.
    Media(Media<'a>),
    /// Packets, each for the first time.
    Bundle(Bundle<'a>),
    /// What the other end wants of a track of ours.
    Ask(Ask),
    /// The publisher's clock of a layer.
    Clock(Clock),
    /// A datagram of another link.
    Transit(Transit<'a>),
    /// The link's own, or half a packet.
    Nothing,
}

/// What a link has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams sent, repairs and feedback included; those of others apart.
    pub datagrams_out: u64,
    /// Their UDP payload bytes, those of others included.
    pub bytes_out: u64,
    /// Bytes of packets in them, repairs excluded.
    pub media_bytes_out: u64,
    /// Datagrams that were authentic and new; those of others apart.
    pub datagrams_in: u64,
    /// Their UDP payload bytes, those of others included.
    pub bytes_in: u64,
    /// Bytes of packets in them.
    pub media_bytes_in: u64,
    /// Datagrams that the other end sent and that did not come, by its counters.
    pub lost: u64,
    /// Of these, repaired in time.
    pub repaired: u64,
    /// Repairs sent.
    pub repairs_out: u64,
    /// Datagrams that were not authentic, replayed or malformed.
    pub refused: u64,
    /// Round trip in microseconds; 0 while unknown.
    pub rtt_us: u32,
    /// Interarrival jitter in microseconds.
    pub jitter_us: u32,
    /// Largest UDP payload that passes.
    pub mtu: u16,
    /// UDP payload bytes of what was carried for others, part of `bytes_out` and `bytes_in`.
    pub transit_bytes_out: u64,
    /// See `transit_bytes_out`.
    pub transit_bytes_in: u64,
    /// Datagrams that came over others.
    pub carried_in: u64,
    /// Echoes sent, none of which are among the datagrams above.
    pub echoes_out: u64,
    /// Echoes that were authentic and new.
    pub echoes_in: u64,
    /// Datagrams of parity sent, and their UDP payload bytes: part of the totals above.
    pub parities_out: u64,
    /// See `parities_out`.
    pub parity_bytes_out: u64,
    /// Of `lost`, what parity brought back in time.
    pub recovered: u64,
}

/// The round trip (RFC 6298 section 2) and the jitter (RFC 3550 section 6.4.1) of what the other end's feedback says.
#[derive(Default)]
struct Clocks {
    rtt: Option<Duration>,
    rtt_variation: Duration,
    jitter: Duration,
    /// The other end's clock in its last feedback, in microseconds, and when that came.
    remote_us: u64,
    remote_at: Time,
    least: Least,
}

impl Clocks {
    fn rtt_or_default(&self) -> Duration {
        self.rtt.unwrap_or(RTT_UNKNOWN)
    }

    fn measured(&mut self, rtt: Duration) {
        if rtt > RTT_MAX {
            return;
        }
        self.rtt = Some(match self.rtt {
            None => {
                self.rtt_variation = rtt / 2;
                rtt
            }
            Some(smoothed) => {
                self.rtt_variation = (self.rtt_variation * 3 + smoothed.abs_diff(rtt)) / 4;
                (smoothed * 7 + rtt) / 8
            }
        });
    }

    /// A feedback that was written at `remote_us` came now; returns how long it waited on its way, in microseconds.
    fn heard(&mut self, now: Time, remote_us: u64) -> u64 {
        if self.remote_us != 0 {
            let there = Duration::from_micros(remote_us - self.remote_us);
            let transit = now.since(self.remote_at).abs_diff(there).min(RTT_MAX);
            self.jitter = (self.jitter * 15 + transit) / 16;
        }
        (self.remote_us, self.remote_at) = (remote_us, now);
        self.least.above(now, remote_us, now.as_micros())
    }
}

/// One relation of two workers; see the module.
pub struct Link {
    version: u8,
    association: u16,
    is_abroad: bool,
    measures: bool,
    playout: Duration,
    sealer: Sealer,
    opener: Opener,
    window: Window,
    /// The first counter that came: what was before it was sent to nobody.
    base: Option<u64>,
    /// Datagrams that came with counters from `base` on, and what came while this end did not read.
    came: u64,
    /// What the next datagram passes over is no loss of the way: this end stood still.
    has_stood_still: bool,
    missing: MissingList,
    parts: Parts,
    sent: Sent,
    pending: Pending,
    tables: Tables,
    evidence: Evidence,
    echoes: EchoWindow,
    /// Of the datagrams of others.
    transits: Window,
    ways: Ways,
    /// The way that was the only one last.
    settled: Way,
    /// Of each way, the direct one first.
    paths: [Path; WAYS_MAX],
    /// The ways of those behind it.
    carried_by: [Way; WAYS_MAX - 1],
    clocks: Clocks,
    rate: Rate,
    protection: Protection,
    /// A repair of what we send comes too late.
    is_long: bool,
    recovery: Recovery,
    /// Counter of the last probe of the other end.
    probe: u64,
    feedback_at: Time,
    /// The other end is to hear something until then, whatever it is.
    beat_at: Time,
    fed_back_at: Time,
    /// In and out until then.
    fed_back_bytes: u64,
    media_at: Option<Time>,
    /// Nothing has crossed for long.
    rests: bool,
    /// What the other end has told of last: from this counter on nothing is known.
    told_next: u64,
    /// What was sent lately may not have come; when all of it was sent again last.
    misses: bool,
    again_at: Option<Time>,
    /// The counter and how many had come, as told last, and a hundred times what was lost beyond [`LOSSY_PERCENT`].
    lost_from: (u64, u64),
    lost_beyond: u64,
    began: Time,
    heard_at: Option<Time>,
    stats: LinkStats,
}

impl Link {
    /// Bytes of heap that one link has, keys apart: see [`Link::KEYS_MEMORY_LEN`].
    pub const MEMORY_LEN: usize = 2 * Window::MEMORY_LEN
        + MissingList::MEMORY_LEN
        + Parts::MEMORY_LEN
        + Sent::MEMORY_LEN
        + Pending::MEMORY_LEN
        + Tables::MEMORY_LEN
        + Protection::MEMORY_LEN
        + Recovery::MEMORY_LEN
        + Self::KEYS_MEMORY_LEN;
    /// Bytes of heap that all links of a process share.
    pub const SHARED_MEMORY_LEN: usize = parity::TABLES_LEN;
    /// Bytes of heap that the library has for four keys: two to send, two to open with. Bounded from above.
    pub const KEYS_MEMORY_LEN: usize = 4 * 1_024;

    /// A link that has sent nothing yet.
    pub fn new(config: &LinkConfig, now: Time) -> Link {
        Link {
            version: config.version,
            association: config.remote_association,
            is_abroad: config.is_abroad,
            measures: config.measures,
            playout: config.playout,
            sealer: Sealer::new(&config.send, config.generation),
            opener: Opener::new(&config.receive, config.generation),
            window: Window::new(),
            base: None,
            came: 0,
            has_stood_still: false,
            missing: MissingList::new(),
            parts: Parts::new(),
            sent: Sent::new(),
            pending: Pending::new(),
            tables: Tables::new(),
            evidence: Evidence::new(),
            echoes: EchoWindow::default(),
            transits: Window::new(),
            ways: Ways::default(),
            settled: Way::Direct,
            paths: [Path::direct(now), Path::carried(now, 0), Path::carried(now, 0)],
            carried_by: [Way::Direct; WAYS_MAX - 1],
            clocks: Clocks::default(),
            rate: Rate::new(),
            protection: Protection::new(config.playout),
            is_long: false,
            recovery: Recovery::new(),
            probe: u64::MAX,
            feedback_at: now,
            beat_at: now,
            fed_back_at: Time::ZERO,
            fed_back_bytes: 0,
            media_at: None,
            rests: false,
            told_next: 0,
            misses: false,
            again_at: None,
            lost_from: (0, 0),
            lost_beyond: 0,
            began: now,
            heard_at: None,
            stats: LinkStats::default(),
        }
    }

    /// Opens the next generation too, from now on; seals under it when the other end says that it can open it.
    pub fn rekey(&mut self, now: Time, generation: u32, send: &[u8; KEYS_LEN], receive: &[u8; KEYS_LEN]) {
        self.opener.rekey(now, receive, generation);
        self.sealer.rekey(send, generation);
        self.feedback_at = now;
    }

    /// Whether the present key has sealed almost as much as it may; true once per generation.
    pub fn keys_used(&mut self) -> bool {
        self.sealer.keys_used()
    }

    /// The generation of keys that is sealed under.
    pub fn generation(&self) -> u32 {
        self.sealer.generation()
    }

    /// Longest packet that goes in one datagram: what repairs or protects it has to pass, too.
    fn frame_len_whole(&self) -> usize {
        self.mtu() - OVERHEAD - if self.protection.is_on() { PARITY_LEN } else { REPAIR_LEN }
    }

    /// Bytes of the datagrams that a packet of `len` bytes is now.
    pub fn media_len(&self, len: usize) -> usize {
        len + if len <= self.frame_len_whole() { OVERHEAD } else { 2 * (OVERHEAD + PART_LEN) }
    }

    fn head(&self, kind: FrameKind, alias: u16, layer: u8, epoch: u8) -> Head {
        // Phase and counter are the sealer's.
        Head { version: self.version, kind, phase: false, association: self.association, alias, layer, epoch, counter: 0 }
    }

    fn count_out(&mut self, len: usize) -> usize {
        self.stats.datagrams_out += 1;
        self.stats.bytes_out += len as u64;
        len
    }

    /// In and out.
    fn bytes(&self) -> u64 {
        self.stats.bytes_out + self.stats.bytes_in
    }

    fn is_active(&self, now: Time) -> bool {
        self.media_at.is_some_and(|at| now.since(at) < ACTIVE)
    }

    /// Nothing has crossed for long.
    fn is_resting(&self, now: Time) -> bool {
        self.is_abroad && now.since(self.media_at.unwrap_or(self.began)) >= RESTS_AFTER
    }

    /// Between two datagrams at most.
    fn beat(&self, now: Time) -> Duration {
        match self.is_abroad {
            _ if self.is_active(now) => BEAT_ACTIVE,
            false => BEAT_IDLE,
            true if self.evidence.is_probed() || !self.measures => BEAT_ABROAD,
            true if self.is_resting(now) => ECHO,
            true => ECHO_MEASURING,
        }
    }

    /// How often echoes go.
    fn echo_pace(&self, now: Time) -> Pace {
        let ahead = now + TOLD_AHEAD;
        let Ways { first, second } = self.ways;
        let is_direct = first == Way::Direct || second == Some(Way::Direct);
        let (direct, beside) = match (self.is_active(ahead), self.is_resting(ahead)) {
            (true, _) if is_direct || !self.measures => (ECHO, ECHO_BESIDE),
            _ if !self.measures => (ECHO_BESIDE, ECHO_RESTING),
            (_, false) => (ECHO_MEASURING, ECHO_BESIDE),
            (_, true) => (ECHO, ECHO_RESTING),
        };
        let uneasy = if self.is_active(now) { ECHO_UNEASY } else { direct };
        Pace { direct, beside, uneasy, beat: self.beat(ahead) }
    }

    /// Media went in or out.
    fn active(&mut self, now: Time, is_out: bool) {
        let is_new = !self.is_active(now);
        self.media_at = Some(now);
        if is_new {
            self.rests = false;
            self.beat_at = self.beat_at.min(now + BEAT_ACTIVE);
            self.evidence.hurry(now);
        }
        if is_out && self.is_abroad {
            // It is the heartbeat itself.
            self.beat_at = now + BEAT_ACTIVE;
        }
        let due = match self.bytes() - self.fed_back_bytes {
            FEEDBACK_BYTES.. => self.fed_back_at + FEEDBACK_BUSY,
            // By it the other end tells how long that was on its way.
            ..FEEDBACK_BYTES_LIGHT if self.is_abroad && is_out => now + ECHO,
            // The heartbeat is whatever goes the other way.
            ..FEEDBACK_BYTES_LIGHT if self.is_abroad => now + FEEDBACK_LIGHT,
            _ => now + BEAT_ACTIVE,
        };
        self.feedback_at = self.feedback_at.min(due);
    }

    /// Writes a packet: in one datagram, or in two halves when the path is too narrow. `out` has [`Self::media_len`] bytes or more.
    /// Fails with [`RelayDrop::TooLarge`] beyond [`FRAME_LEN_MAX`], [`RelayDrop::KeysUsed`].
    pub fn write_media(&mut self, now: Time, frame: &FrameRef, payload: &[u8], out: &mut [u8]) -> Result<Written, RelayDrop> {
        self.write_frame(now, Class::Video, frame, payload, out)
    }

    fn write_frame(&mut self, now: Time, class: Class, frame: &FrameRef, payload: &[u8], out: &mut [u8]) -> Result<Written, RelayDrop> {
        if payload.len() > FRAME_LEN_MAX || out.len() < self.media_len(payload.len()) {
            return Err(RelayDrop::TooLarge);
        }
        let written = if payload.len() <= self.frame_len_whole() {
            let head = self.head(FrameKind::Media, frame.alias, frame.layer, frame.epoch);
            let counter = self.sealer.counter();
            let len = self.sealer.seal(head, payload, &[], out)?;
            self.sent.push(FrameRef { counter, place: 0, count: 1, part: 0, ..*frame });
            self.protect(now, class, &Head { counter, ..head }, [payload, &[]]);
            Written { first: self.count_out(len), second: 0 }
        } else {
            let first = self.write_part(now, class, frame, part_header(false, payload.len()), payload, out)?;
            let second = self.write_part(now, class, frame, part_header(true, payload.len()), payload, &mut out[first..])?;
            Written { first, second }
        };
        self.stats.media_bytes_out += payload.len() as u64;
        self.active(now, true);
        Ok(written)
    }

    fn write_part(
        &mut self,
        now: Time,
        class: Class,
        frame: &FrameRef,
        part: u16,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<usize, RelayDrop> {
        let head = self.head(FrameKind::Part, frame.alias, frame.layer, frame.epoch);
        let counter = self.sealer.counter();
        let (part_head, half) = (part.to_le_bytes(), &payload[part_range(part)]);
        let len = self.sealer.seal(head, &part_head, half, out)?;
        self.sent.push(FrameRef { counter, place: 0, count: 1, part, ..*frame });
        self.protect(now, class, &Head { counter, ..head }, [&part_head, half]);
        Ok(self.count_out(len))
    }

    /// Writes a small packet with others of the same turn: it leaves with [`Self::poll_transmit`]. What is written to `out` are packets of
    /// before, when they are as many as a datagram holds; or the packet itself, when it is not small. As [`Self::write_media`] otherwise.
    pub fn bundle_media(&mut self, now: Time, frame: &FrameRef, payload: &[u8], out: &mut [u8]) -> Result<Written, RelayDrop> {
        if payload.len() > BUNDLED_LEN_MAX {
            return self.write_frame(now, Class::Audio, frame, payload, out);
        }
        let len_max = self.mtu() - if self.protection.is_on() { PARITY_LEN } else { 0 };
        let written = if self.pending.fits(payload.len(), len_max) { Written::default() } else { self.flush(now, out)? };
        self.pending.push(frame, payload);
        self.stats.media_bytes_out += payload.len() as u64;
        self.active(now, true);
        Ok(written)
    }

    /// Writes the packets that wait. They are dropped when that fails, so that no turn meets those of one long past.
    fn flush(&mut self, now: Time, out: &mut [u8]) -> Result<Written, RelayDrop> {
        let frames = self.pending.frames();
        let head = match frames {
            [] => return Ok(Written::default()),
            [frame] => self.head(FrameKind::Media, frame.alias, frame.layer, frame.epoch),
            _ => self.head(FrameKind::Bundle, 0, 0, 0),
        };
        let counter = self.sealer.counter();
        let sealed = self.sealer.seal(head, self.pending.payload(), &[], out);
        if sealed.is_ok() {
            if self.protection.is_on() {
                let len_max = self.mtu() - OVERHEAD - PARITY_LEN;
                self.protection.keep(now, Class::Audio, &Head { counter, ..head }, [self.pending.payload(), &[]], len_max);
            }
            for (place, frame) in frames.iter().enumerate() {
                self.sent.push(FrameRef { counter, place: place as u8, count: frames.len() as u8, part: 0, ..*frame });
            }
        }
        self.pending.clear();
        Ok(Written { first: self.count_out(sealed?), second: 0 })
    }

    /// Writes what our subscribers want of a track of theirs. It is not repaired: the caller tells it again until it holds.
    pub fn write_ask(&mut self, ask: &Ask, out: &mut [u8]) -> Result<usize, RelayDrop> {
        let head = self.head(FrameKind::Ask, ask.alias, 0, 0);
        let len = self.sealer.seal(head, self.tables.ask(ask), &[], out)?;
        Ok(self.count_out(len))
    }

    /// Writes a publisher's clock. It is not repaired: the caller tells it again.
    pub fn write_clock(&mut self, clock: &Clock, out: &mut [u8]) -> Result<usize, RelayDrop> {
        let head = self.head(FrameKind::Clock, clock.alias, clock.layer, 0);
        let len = self.sealer.seal(head, self.tables.clock(clock), &[], out)?;
        Ok(self.count_out(len))
    }

    /// Writes a datagram of another link, which the other end is to open or to pass on. It is not repaired: that link repairs. Fails with
    /// [`RelayDrop::TooLarge`] beyond [`Self::transit_len_max`].
    pub fn write_transit(&mut self, route: SourceRoute, datagram: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        if datagram.len() > self.transit_len_max() {
            return Err(RelayDrop::TooLarge);
        }
        let head = self.head(FrameKind::Transit, 0, route.worker, route.hops_left);
        let len = self.sealer.seal_transit(head, &route.destination.0.to_le_bytes(), datagram, out)?;
        self.stats.transit_bytes_out += len as u64;
        self.stats.bytes_out += len as u64;
        Ok(len)
    }

    /// Longest datagram that [`Self::write_transit`] takes now. What is carried goes over this link's own path, however its own datagrams go.
    pub fn transit_len_max(&self) -> usize {
        self.paths[DIRECT].mtu() - TRANSIT_OVERHEAD
    }

    /// Datagrams are to go this way from now on, and by the backup where it fails. Ways over others take what every path does until
    /// [`Self::set_len_max`] says more. Without either the link goes directly, and needs no echoes.
    pub fn route(&mut self, now: Time, way: Way, backup: Option<Way>) {
        self.evidence.route(way, backup);
        for at in 1..WAYS_MAX {
            let way = self.evidence.way_at(at);
            if std::mem::replace(&mut self.carried_by[at - 1], way) != way {
                self.paths[at] = Path::carried(now, 0);
            }
        }
        self.review_ways(now);
    }

    /// Whose number this is takes datagrams of so many bytes: see [`Self::transit_len_max`].
    pub fn set_len_max(&mut self, now: Time, carrier: u16, len_max: usize) {
        if let at @ 1.. = self.evidence.place(Way::Via(carrier)) {
            self.paths[at].set_len_max(now, len_max);
        }
    }

    /// How datagrams leave.
    pub fn ways(&self) -> Ways {
        self.ways
    }

    /// What of echoes came by the direct path, and how long it takes.
    pub fn direct_path(&self) -> PathStats {
        self.evidence.direct()
    }

    fn review_ways(&mut self, now: Time) {
        let ways = self.evidence.choose(now);
        let misses = self.evidence.misses();
        if !std::mem::replace(&mut self.misses, misses)
            && misses
            && self.is_active(now)
            && !self.rate.has_queue()
            && self.again_at.is_none_or(|at| now.since(at) >= AGAIN_EVERY)
        {
            // The other end does not know yet what it misses, and would ask for it a round trip later.
            self.again_at = Some(now);
            self.sent.ask_from(self.told_next, self.sealer.counter());
        }
        if ways == self.ways {
            return;
        }
        self.ways = ways;
        self.evidence.tell(now);
        // By two of them what comes first counts, and it is not for long.
        if ways.second.is_none() && std::mem::replace(&mut self.settled, ways.first) != ways.first {
            self.rate.way_changed(now);
        }
        self.feedback_at = now;
    }

    /// What leaves by this way alone, whatever [`Self::ways`] says, until there is nothing: echoes, probes of the MTU. `out` as for
    /// [`Self::poll_transmit`].
    pub fn poll_by_way(&mut self, now: Time, out: &mut [u8]) -> Option<(Way, usize)> {
        self.poll_echo(now, out).or_else(|| self.poll_probe(now, out))
    }

    fn poll_echo(&mut self, now: Time, out: &mut [u8]) -> Option<(Way, usize)> {
        let (way, echo) = self.evidence.poll(now, &self.echo_pace(now))?;
        let head = self.head(FrameKind::Echo, 0, 0, 0);
        let len = self.sealer.seal_echo(head, &echo.bytes(), out).ok()?;
        self.stats.echoes_out += 1;
        Some((way, len))
    }

    /// The next packet that the other end misses. The caller looks it up and gives it to [`Self::write_repair`]; one that it no longer has
    /// it passes over.
    pub fn next_repair(&mut self) -> Option<FrameRef> {
        self.sent.next_repair()
    }

    /// Writes a packet again, under a counter of its own, with the counter of the datagram that was lost. `payload` is all of the packet, of
    /// which the lost half goes again when it was split. Fails with [`RelayDrop::Gone`] when that is not the packet that was split,
    /// [`RelayDrop::TooLarge`] when the path has become too narrow for it.
    pub fn write_repair(&mut self, now: Time, frame: &FrameRef, payload: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        let payload = match frame.part {
            0 => payload,
            part if payload.len() == part_len(part) => &payload[part_range(part)],
            _ => return Err(RelayDrop::Gone),
        };
        if payload.len() > self.mtu() - OVERHEAD - REPAIR_LEN {
            return Err(RelayDrop::TooLarge);
        }
        let ([c0, c1, c2, c3], [p0, p1]) = ((frame.counter as u32).to_le_bytes(), frame.part.to_le_bytes());
        let header = [c0, c1, c2, c3, frame.place, frame.count, p0, p1];
        let head = self.head(FrameKind::Repair, frame.alias, frame.layer, frame.epoch);
        let len = self.sealer.seal(head, &header, payload, out)?;
        self.stats.repairs_out += 1;
        self.active(now, true);
        Ok(self.count_out(len))
    }

    /// Something was sealed: where a repair of it comes too late, parity of it follows.
    #[inline]
    fn protect(&mut self, now: Time, class: Class, head: &Head, payload: [&[u8]; 2]) {
        if self.protection.is_on() {
            let len_max = self.mtu() - OVERHEAD - PARITY_LEN;
            self.protection.keep(now, class, head, payload, len_max);
        }
    }

    /// Whether parity of as many datagrams as it takes at once waits: of what is written before it has left there will be none.
    #[inline]
    pub fn parity_waits(&self) -> bool {
        self.protection.waits()
    }

    /// Parity that is due, audio's first. [`Self::poll_transmit`] has it, too; the parity of a block is equally long, and a GSO train.
    pub fn poll_parity(&mut self, now: Time, out: &mut [u8]) -> Option<usize> {
        let head = self.head(FrameKind::Parity, 0, 0, 0);
        let parity = self.protection.next(now, self.sealer.counter())?;
        let len = self.sealer.seal(head, parity.head(), parity.shard, out).ok()?;
        self.stats.parities_out += 1;
        self.stats.parity_bytes_out += len as u64;
        Some(self.count_out(len))
    }

    /// Whether the next of [`Self::poll_parity`] is of the same block as the last.
    pub fn parity_goes_on(&self) -> bool {
        self.protection.goes_on()
    }

    /// How much parity audio has, in percent of it; 0: none.
    pub fn audio_parity_percent(&self) -> u64 {
        self.protection.audio_percent()
    }

    /// What is to leave at the end of a turn, until there is nothing: the small packets that wait, parity, feedback.
    /// `out` has [`DATAGRAM_LEN_WRITTEN_MAX`] bytes or more.
    pub fn poll_transmit(&mut self, now: Time, out: &mut [u8]) -> Option<usize> {
        if !self.pending.is_empty()
            && let Ok(Written { first, .. }) = self.flush(now, out)
        {
            return Some(first);
        }
        self.poll_parity(now, out).or_else(|| self.poll_feedback(now, out))
    }

    fn poll_feedback(&mut self, now: Time, out: &mut [u8]) -> Option<usize> {
        if now < self.feedback_due() {
            return None;
        }
        let rtt = self.clocks.rtt_or_default();
        let again = rtt + self.clocks.rtt_variation.max(TOLERANCE.0);
        let mut ranges = [Range::default(); RANGES_MAX];
        // As many as fit.
        let ranges_max = if self.mtu() < BASE { RANGES_MAX - (BASE - LADDER[0]).div_ceil(RANGE_LEN) } else { RANGES_MAX };
        let missing = self.missing.ask(now, rtt, again, &mut self.window, &mut ranges[..ranges_max]);
        if missing == 0 && now < self.feedback_at.min(self.beat_at) {
            return None;
        }
        let beat = self.beat(now);
        self.beat_at = now + beat;
        self.feedback_at = now + if self.is_abroad { BEAT_ABROAD } else { beat };
        (self.fed_back_at, self.fed_back_bytes) = (now, self.bytes());
        let held = now.since(self.clocks.remote_at);
        let feedback = Feedback {
            next: self.window.next(),
            received: self.came,
            echo_us: self.clocks.remote_us,
            echo_held_us: held.as_micros().try_into().unwrap_or(u32::MAX),
            // 0 is "none yet".
            now_us: now.as_micros().max(1),
            generation: self.opener.generation(),
            probe: self.probe,
            jitter_us: self.clocks.jitter.as_micros() as u32,
        };
        let head = self.head(FrameKind::Feedback, 0, 0, 0);
        let len = self.sealer.seal(head, self.tables.feedback(&feedback, &ranges[..missing], self.version), &[], out).ok()?;
        Some(self.count_out(len))
    }

    fn poll_probe(&mut self, now: Time, out: &mut [u8]) -> Option<(Way, usize)> {
        let at = self.probed().find(|at| self.paths[*at].timeout() <= now)?;
        let rtt = self.clocks.rtt_or_default().max(self.evidence.rtt(at).unwrap_or_default());
        let (counter, way) = (self.sealer.counter(), self.evidence.way_at(at));
        let is_used = self.ways.first == way || self.ways.second == Some(way);
        let path = &mut self.paths[at];
        let len = path.due(now)?;
        path.sent(now, counter, rtt, is_used);
        let head = self.head(FrameKind::Probe, 0, 0, 0);
        let len = self.sealer.seal(head, &[0; LADDER[LADDER.len() - 1]][..len - OVERHEAD], &[], out).ok()?;
        Some((way, self.count_out(len)))
    }

    /// The places of the paths whose MTU is looked for: of the way, and of the one beside it, so that all passes when that is taken. One by one, for
    /// feedback tells of one probe; and not while nobody is there to answer, nothing arrives by it, or nothing crosses that could be too long.
    fn probed(&self) -> impl Iterator<Item = usize> + use<> {
        let is_on = self.heard_at.is_some() && !self.rests;
        let arriving = self.evidence.arriving().map(|at| at.filter(|_| is_on));
        let waits = arriving.into_iter().flatten().find(|at| self.paths[*at].waits());
        arriving.into_iter().flatten().filter(move |at| waits.is_none_or(|waiting| waiting == *at))
    }

    fn feedback_due(&self) -> Time {
        self.feedback_at.min(self.beat_at).min(self.missing.ask_at().max(self.fed_back_at + FEEDBACK_EVERY))
    }

    /// When [`Self::handle_timeout`] and then [`Self::poll_transmit`] or [`Self::poll_by_way`] have something.
    pub fn poll_timeout(&self) -> Time {
        let path = self.probed().map(|at| self.paths[at].timeout()).min();
        [path, self.opener.timeout(), Some(self.evidence.timeout()), self.protection.timeout()]
            .into_iter()
            .flatten()
            .fold(self.feedback_due(), Time::min)
    }

    /// Time passed: old keys die, probes are lost.
    pub fn handle_timeout(&mut self, now: Time) {
        self.opener.handle_timeout(now);
        self.rests = self.is_resting(now);
        self.probed().for_each(|at| self.paths[at].handle_timeout(now));
        self.evidence.handle_timeout(now);
        self.review_ways(now);
    }

    /// [`Self::open_by`] of what came by itself.
    pub fn open<'a>(&'a mut self, now: Time, datagram: &'a mut [u8]) -> Result<Incoming<'a>, RelayDrop> {
        self.open_by(now, datagram, Way::Direct)
    }

    /// Opens a datagram in place, which came by `by`. What it says is authentic, new, and within bounds; everything else is a [`RelayDrop`].
    pub fn open_by<'a>(&'a mut self, now: Time, datagram: &'a mut [u8], by: Way) -> Result<Incoming<'a>, RelayDrop> {
        let (head, len, places) = match self.open_sealed(now, datagram, by) {
            Ok(opened) => opened,
            Err(reason) => {
                self.stats.refused += 1;
                return Err(reason);
            }
        };
        let payload = &mut datagram[HEAD_LEN..HEAD_LEN + len];
        match head.kind {
            FrameKind::Media | FrameKind::Bundle | FrameKind::Part => {
                if self.recovery.is_on(now) {
                    self.recovery.keep(&head, payload);
                    if head.counter + 1 < self.window.next() {
                        self.recovery.came_late(now, &head, &self.window);
                    }
                }
                self.active(now, false);
                take_media(&mut self.parts, &mut self.stats, &head, payload, places)
            }
            FrameKind::Parity => {
                self.recovery.take(now, &head, payload, &self.window).inspect_err(|_| self.stats.refused += 1)?;
                Ok(Incoming::Nothing)
            }
            FrameKind::Repair => self.open_repair(now, &head, payload),
            FrameKind::Feedback => {
                let Ok((feedback, missing)) = read_feedback(payload) else { return self.refuse() };
                self.handle_feedback(now, &feedback, missing);
                Ok(Incoming::Nothing)
            }
            FrameKind::Ask => read_ask(payload).map(Incoming::Ask).inspect_err(|_| self.stats.refused += 1),
            FrameKind::Clock => {
                let clock = read_clock(payload).inspect_err(|_| self.stats.refused += 1)?;
                Ok(Incoming::Clock(Clock { age: clock.age + self.clocks.rtt.unwrap_or_default() / 2, ..clock }))
            }
            FrameKind::Probe => {
                // The answer goes at once: the prober waits little longer than a round trip.
                (self.probe, self.feedback_at) = (head.counter, now);
                Ok(Incoming::Nothing)
            }
            FrameKind::Echo => {
                let echo = Echo::read(payload, by).inspect_err(|_| self.stats.refused += 1)?;
                self.evidence.take_echo(now, by, &echo);
                self.review_ways(now);
                Ok(Incoming::Nothing)
            }
            FrameKind::Transit => {
                self.stats.transit_bytes_in += (len + OVERHEAD) as u64;
                Transit::read(&head, payload).map(Incoming::Transit).inspect_err(|_| self.stats.refused += 1)
            }
        }
    }

    /// The next datagram that did not come, and that parity has brought back; to be taken after each that was opened, until there is nothing.
    pub fn poll_recovered(&mut self, now: Time) -> Option<Result<Incoming<'_>, RelayDrop>> {
        loop {
            let counter = self.recovery.next()?;
            if self.window.check(counter).is_err() || !self.recovery.has(counter) {
                continue;
            }
            let (places, in_time) = self.missing.recovered(now, counter);
            // The original comes no more. It does not count as one that came: the way has lost it.
            self.window.insert(counter);
            self.stats.recovered += u64::from(in_time);
            let Link { recovery, parts, stats, version, association, .. } = self;
            let of_link = Head {
                version: *version,
                kind: FrameKind::Parity,
                phase: false,
                association: *association,
                alias: 0,
                layer: 0,
                epoch: 0,
                counter,
            };
            let (head, payload) = recovery.datagram(&of_link, counter)?;
            return Some(take_media(parts, stats, &head, payload, places));
        }
    }

    fn refuse<'a>(&mut self) -> Result<Incoming<'a>, RelayDrop> {
        self.stats.refused += 1;
        Err(RelayDrop::BadPayload)
    }

    /// Everything up to the payload: head, replay, seal, and what the counter says.
    fn open_sealed(&mut self, now: Time, datagram: &mut [u8], by: Way) -> Result<(Head, usize, u32), RelayDrop> {
        let head = Head::read(datagram)?;
        if head.kind == FrameKind::Echo {
            self.echoes.check(head.counter)?;
            let len = self.opener.open(now, &head, datagram)?;
            self.echoes.insert(head.counter);
            self.heard_at = Some(now);
            self.stats.echoes_in += 1;
            return Ok((head, len, 0));
        }
        if head.kind == FrameKind::Transit {
            let counter = head.counter.checked_sub(TRANSIT_COUNTERS).ok_or(RelayDrop::Malformed)?;
            self.transits.check(counter)?;
            let len = self.opener.open(now, &head, datagram)?;
            self.transits.insert(counter);
            self.heard_at = Some(now);
            self.evidence.heard(now, by);
            self.stats.bytes_in += datagram.len() as u64;
            return Ok((head, len, 0));
        }
        self.window.check(head.counter)?;
        let len = self.opener.open(now, &head, datagram)?;
        let next = self.window.next();
        let base = *self.base.get_or_insert(head.counter);
        let places = if head.counter < next { self.missing.came(head.counter) } else { 0 };
        if head.counter > next && next > 0 {
            let tolerance = self.tolerance();
            self.missing.passed_over(now, next, head.counter, tolerance, self.playout, &mut self.window);
        }
        self.window.insert(head.counter);
        self.came += u64::from(head.counter >= base);
        if std::mem::take(&mut self.has_stood_still) && next > 0 {
            self.came += head.counter.saturating_sub(next);
        }
        if self.heard_at.replace(now).is_none() {
            // The first echo, so that the round trip is known early.
            self.feedback_at = now;
        }
        self.evidence.heard(now, by);
        self.stats.carried_in += u64::from(by != Way::Direct);
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += datagram.len() as u64;
        Ok((head, len, places))
    }

    fn open_repair<'a>(&'a mut self, now: Time, head: &Head, payload: &'a mut [u8]) -> Result<Incoming<'a>, RelayDrop> {
        let Some((header, packet)) = payload.split_first_chunk_mut::<REPAIR_LEN>() else { return self.refuse() };
        let [c0, c1, c2, c3, place, count, p0, p1] = *header;
        let part = u16::from_le_bytes([p0, p1]);
        if place >= count || usize::from(count) > bundle::BUNDLE_FRAMES_MAX || (part != 0 && count != 1) {
            return self.refuse();
        }
        // The nearest counter below the next with this low half.
        let next = self.window.next();
        let behind = (next as u32).wrapping_sub(u32::from_le_bytes([c0, c1, c2, c3]));
        let Some(counter) = next.checked_sub(u64::from(behind)).filter(|_| u64::from(behind) <= WINDOW_LEN && behind != 0) else {
            return Err(RelayDrop::Late);
        };
        match self.missing.repaired(now, counter, place, count) {
            // It came meanwhile, or nobody waits for it any longer.
            Repaired::Again | Repaired::Unknown => return Err(RelayDrop::Late),
            Repaired::Partly => {}
            Repaired::Wholly { in_time } => {
                self.window.insert(counter);
                self.stats.repaired += u64::from(in_time);
            }
        }
        if part != 0 {
            return join(&mut self.parts, &mut self.stats, head, counter, part, packet);
        }
        self.stats.media_bytes_in += packet.len() as u64;
        Ok(Incoming::Media(media(head, packet)))
    }

    fn handle_feedback(&mut self, now: Time, feedback: &Feedback, missing: impl Iterator<Item = Range>) {
        // So many as one list of missing datagrams holds: ranges are the other end's word.
        let counters = missing.flat_map(|range| range.first..range.first.saturating_add(u64::from(range.count))).take(missing::MISSING_MAX);
        let asked = counters.map(|counter| self.sent.ask(counter)).count();
        self.sealer.confirm(feedback.generation);
        self.paths.iter_mut().for_each(|path| path.answered(now, feedback.probe));
        if asked > 0 && self.ways.second.is_none() {
            self.paths[self.evidence.place(self.ways.first)].suspect(now);
        }
        // One that was overtaken by a later one has nothing new about time.
        if feedback.now_us <= self.clocks.remote_us {
            return;
        }
        self.told_next = feedback.next;
        if feedback.echo_us != 0 {
            let since_echo = now.as_micros().checked_sub(feedback.echo_us);
            if let Some(rtt) = since_echo.and_then(|since| since.checked_sub(u64::from(feedback.echo_held_us))) {
                self.clocks.measured(Duration::from_micros(rtt));
            }
        }
        if self.clocks.heard(now, feedback.now_us) > QUEUE_TOLD_US {
            self.feedback_at = now;
        }
        self.rate.spare_loss(self.evidence.spares(now) && !self.rate.has_queue());
        self.rate.handle_feedback(now, feedback, self.stats.bytes_out, self.stats.datagrams_out);
        self.review_loss(now, feedback);
        self.review_protection();
    }

    /// A way that loses much without a queue has something wrong: until there are other routes what goes by two is not missed.
    fn review_loss(&mut self, now: Time, feedback: &Feedback) {
        let (next, received) = std::mem::replace(&mut self.lost_from, (feedback.next, feedback.received));
        if next == 0 || self.rate.is_blind() {
            return;
        }
        // What was overtaken counts when it comes. One feedback alone is a burst.
        let sent = feedback.next.saturating_sub(next).min(WINDOW_LEN);
        let came = feedback.received.saturating_sub(received).min(2 * WINDOW_LEN);
        let before = self.lost_beyond;
        let beyond = (before + (100 - LOSSY_PERCENT) * sent).saturating_sub(100 * came);
        self.lost_beyond = beyond.min(before + 50 * LOSSY);
        if self.lost_beyond < 100 * LOSSY && !self.rate.take_spared() {
            return;
        }
        self.lost_beyond = 0;
        let is_one_way = self.ways.second.is_none() && self.is_active(now);
        if is_one_way && !self.rate.has_queue() && self.rate.limit().is_none() {
            self.evidence.lose(now);
            self.review_ways(now);
        }
    }

    fn tolerance(&self) -> Duration {
        (self.clocks.rtt_or_default() / 16).clamp(TOLERANCE.0, TOLERANCE.1)
    }

    /// What is lost is protected where the other end would ask for it too late; until it is in time by an eighth.
    fn review_protection(&mut self) {
        let budget = if self.is_long { self.playout / 8 * 7 } else { self.playout };
        let tolerance = self.tolerance();
        self.is_long = self.version >= PARITY_VERSION && self.clocks.rtt.is_some_and(|rtt| rtt + tolerance > budget);
        self.protection.follow(if self.is_long { self.rate.steady_loss_ppm() } else { 0 });
        // Where not all passes, parity of video would take the place of video: as room, or as what shows how much passes.
        self.protection.set_room(self.rate.limit().is_none());
    }

    /// Until now this end stood still: what was written did not leave, and what came was not opened. Neither tells of the way.
    pub fn stood_still(&mut self, now: Time) {
        self.has_stood_still = true;
        self.rate.stood_still(now);
    }

    /// What it has done.
    pub fn stats(&self) -> LinkStats {
        let expected = self.window.next().saturating_sub(self.base.unwrap_or_default());
        LinkStats {
            lost: expected.saturating_sub(self.came),
            rtt_us: self.clocks.rtt.map_or(0, |rtt| rtt.as_micros().max(1) as u32),
            jitter_us: self.clocks.jitter.as_micros() as u32,
            mtu: self.mtu() as u16,
            ..self.stats
        }
    }

    /// Largest UDP payload that passes.
    pub fn mtu(&self) -> usize {
        let mtu = |way: Way| self.paths[self.evidence.place(way)].mtu();
        self.ways.second.map_or(usize::MAX, mtu).min(mtu(self.ways.first))
    }

    /// The smoothed round trip, once it is known.
    pub fn rtt(&self) -> Option<Duration> {
        self.clocks.rtt
    }

    /// How long it takes until a repair of what was lost is there; `None`: too long to be of use.
    pub fn repairs_within(&self) -> Option<Duration> {
        let rtt = self.clocks.rtt_or_default();
        (rtt <= self.playout).then(|| rtt + rtt / 8 + REPAIR_SLACK)
    }

    /// When the last authentic datagram came.
    pub fn heard_at(&self) -> Option<Time> {
        self.heard_at
    }

    /// How many of 1,000 datagrams of ours do not come to the other end, smoothed.
    pub fn loss_out_permille(&self) -> u16 {
        self.rate.loss_permille()
    }

    /// What the way to the other end carries, in bit/s of datagrams; `None`: all of what is sent, as far as is known.
    pub fn limit(&self) -> Option<u64> {
        self.rate.limit()
    }

    /// How fast datagrams may leave while there is a limit, in bit/s.
    pub fn pace(&self) -> Option<u64> {
        self.rate.pace()
    }
}

fn media<'a>(head: &Head, payload: &'a mut [u8]) -> Media<'a> {
    Media { alias: head.alias, layer: head.layer, epoch: head.epoch, payload }
}

/// Takes a datagram of packets that came, or was brought back; `places` of it were repaired before.
fn take_media<'a>(
    parts: &'a mut Parts,
    stats: &mut LinkStats,
    head: &Head,
    payload: &'a mut [u8],
    places: u32,
) -> Result<Incoming<'a>, RelayDrop> {
    match head.kind {
        FrameKind::Bundle => {
            let (bundle, bytes) = Bundle::read(payload, places).inspect_err(|_| stats.refused += 1)?;
            stats.media_bytes_in += bytes as u64;
            Ok(Incoming::Bundle(bundle))
        }
        FrameKind::Part => {
            let Some((part, bytes)) = payload.split_first_chunk::<PART_LEN>() else {
                stats.refused += 1;
                return Err(RelayDrop::BadPayload);
            };
            join(parts, stats, head, head.counter, u16::from_le_bytes(*part), bytes)
        }
        _ => {
            stats.media_bytes_in += payload.len() as u64;
            Ok(Incoming::Media(media(head, payload)))
        }
    }
}

/// Takes half a packet; gives the packet when it is whole.
fn join<'a>(
    parts: &'a mut Parts,
    stats: &mut LinkStats,
    head: &Head,
    counter: u64,
    part: u16,
    bytes: &[u8],
) -> Result<Incoming<'a>, RelayDrop> {
    match parts.join(counter, part, bytes) {
        Ok(None) => Ok(Incoming::Nothing),
        Ok(Some(packet)) => {
            stats.media_bytes_in += packet.len() as u64;
            Ok(Incoming::Media(media(head, packet)))
        }
        Err(reason) => {
            stats.refused += u64::from(reason == RelayDrop::BadPayload);
            Err(reason)
        }
    }
}
