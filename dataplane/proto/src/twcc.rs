//! Receiver's side of transport-wide congestion control (draft-holmer-rmcat-transport-wide-cc-extensions-01): tells a publisher
//! when each of its packets came, so that it can raise its bitrate.
//!
//! ```text
//! record(sequence, arrival) -> ring of arrival ticks, one slot per transport sequence number
//!                                   |
//! poll_feedback  <- report: the sequence numbers from `report_from` to the newest, as chunks and deltas
//! ```

use std::time::Duration;

use pop_schemas::Time;

use crate::sequence::SequenceUnwrapper;
use crate::wire::rtcp::TRANSPORT_CC;

/// Sequence numbers that the ring holds: 100 ms of 10,000 packets/s (about 90 Mb/s from one publisher) at 4 bytes each.
/// Older ones are told as lost once at most, so a larger ring would only buy memory (4 KiB per publishing transport as it is).
const RING_LEN: usize = 1_024;

/// A report waits this long after its first packet when many arrive: libwebrtc's estimator reacts within one feedback interval,
/// and 50 ms is the fastest that its own receiver sends.
const INTERVAL_BUSY: Duration = Duration::from_millis(50);
/// And this long when few do (audio alone): half the reports for streams that have no bitrate to find.
const INTERVAL_QUIET: Duration = Duration::from_millis(100);
/// Packets waiting that make a transport busy. One audio stream has 3 in 50 ms, video of 1 Mb/s about 6 more.
const BUSY_PACKETS: u32 = 8;
/// Span of unreported sequence numbers that is reported early, before the ring overwrites them.
const SPAN_URGENT: u64 = RING_LEN as u64 / 2;
/// And this long even then, so that a publisher that jumps in its numbers cannot buy a report with every packet. The other half
/// of the ring holds 5 ms of 100,000 packets/s.
const INTERVAL_URGENT: Duration = Duration::from_millis(5);

/// RTCP header, two SSRCs, base sequence, count, reference time, feedback count.
const HEADER_LEN: usize = 20;
/// The fewest symbols that one chunk covers, the last of a report apart: a two-bit vector. It bounds the chunks of n packets.
const CHUNK_SYMBOLS_MIN: usize = 7;
const RUN_LEN_MAX: usize = 0x1fff;

/// Shortest buffer that [`TwccRecorder::poll_feedback`] writes into: a ring full of lost packets and one with a large delta.
pub const FEEDBACK_LEN_MIN: usize = (HEADER_LEN + 2 * RING_LEN.div_ceil(CHUNK_SYMBOLS_MIN) + 2).next_multiple_of(4);

/// A slot's value when the packet has not come.
const NOT_RECEIVED: u32 = 0;

/// 250 us, the unit of deltas.
const TICK_NANOS: u64 = 250_000;
/// The unit of the reference time, 64 ms, in ticks. Its 24 bits and these 8 are the 32 bits of a tick count: both wrap together.
const REFERENCE_TICKS_LOG2: u32 = 8;

/// Arrival times by transport sequence number, and the reports made of them. Nothing is allocated after [`new`](Self::new).
#[derive(Debug)]
pub struct TwccRecorder {
    unwrapper: SequenceUnwrapper,
    /// Arrival in ticks, by sequence number modulo the ring's length; wrapping, [`NOT_RECEIVED`] when it has not come.
    arrivals: Box<[u32; RING_LEN]>,
    /// First sequence number of the next report. A packet that comes late moves it back: the report then begins there again,
    /// and the sender ignores what it knows already.
    report_from: u64,
    /// One past the newest sequence number; 0 before the first packet.
    end: u64,
    /// Arrival of the first packet that no report has told; `None` when there is nothing to tell.
    waiting_since: Option<Time>,
    /// Packets recorded since the last report.
    waiting: u32,
    feedback_count: u8,
}

impl Default for TwccRecorder {
    fn default() -> Self {
        Self::new()
    }
}

impl TwccRecorder {
    /// Memory of one recorder, in bytes.
    pub const LEN: usize = size_of::<TwccRecorder>() + RING_LEN * size_of::<u32>();

    /// Nothing recorded.
    pub fn new() -> TwccRecorder {
        TwccRecorder {
            unwrapper: SequenceUnwrapper::new(),
            arrivals: Box::new([NOT_RECEIVED; RING_LEN]),
            report_from: 0,
            end: 0,
            waiting_since: None,
            waiting: 0,
            feedback_count: 0,
        }
    }

    /// An authenticated packet with this transport sequence number came. The first arrival of a number counts; one older than the
    /// ring is not told again.
    pub fn record(&mut self, sequence: u16, arrival: Time) {
        let sequence = self.unwrapper.unwrap(sequence);
        if self.end == 0 {
            (self.report_from, self.end) = (sequence, sequence);
        }
        self.make_room(sequence);
        let oldest = self.end.saturating_sub(RING_LEN as u64);
        if sequence < oldest || self.arrival(sequence) != NOT_RECEIVED {
            return;
        }
        // Tick 0 comes once in 12 days and would read as "not received": that packet is told 250 us late.
        self.arrivals[slot(sequence)] = ((arrival.as_nanos() / TICK_NANOS) as u32).max(NOT_RECEIVED + 1);
        self.report_from = self.report_from.min(sequence);
        self.waiting += 1;
        self.waiting_since.get_or_insert(arrival);
    }

    /// When [`poll_feedback`](Self::poll_feedback) has something to send; `None` when no packet waits to be told.
    pub fn poll_timeout(&self) -> Option<Time> {
        let since = self.waiting_since?;
        let interval = if self.end - self.report_from >= SPAN_URGENT {
            INTERVAL_URGENT
        } else if self.waiting >= BUSY_PACKETS {
            INTERVAL_BUSY
        } else {
            INTERVAL_QUIET
        };
        Some(since + interval)
    }

    /// Writes one feedback packet into `out`, plain RTCP, and returns its length, a multiple of 4. `None` when none is due or
    /// `out` is shorter than [`FEEDBACK_LEN_MIN`]. Call it until `None`: a report that does not fit is split.
    pub fn poll_feedback(&mut self, now: Time, sender_ssrc: u32, media_ssrc: u32, out: &mut [u8]) -> Option<usize> {
        if out.len() < FEEDBACK_LEN_MIN || self.poll_timeout()? > now {
            return None;
        }
        let report = self.plan_report(out.len());
        let len = self.write_report(&report, sender_ssrc, media_ssrc, out);
        self.feedback_count = self.feedback_count.wrapping_add(1);
        self.report_from = report.base + report.count as u64;
        if self.report_from == self.end {
            self.waiting_since = None;
            self.waiting = 0;
        }
        Some(len)
    }

    /// Moves the end of the ring past `sequence` and empties the slots that it takes over.
    fn make_room(&mut self, sequence: u64) {
        let new_end = (sequence + 1).max(self.end);
        for taken in self.end.max(new_end.saturating_sub(RING_LEN as u64))..new_end {
            self.arrivals[slot(taken)] = NOT_RECEIVED;
        }
        self.end = new_end;
        self.report_from = self.report_from.max(new_end.saturating_sub(RING_LEN as u64));
    }

    fn arrival(&self, sequence: u64) -> u32 {
        self.arrivals[slot(sequence)]
    }

    /// How far the next report reaches: up to the last received packet whose delta and chunks fit.
    fn plan_report(&self, out_len: usize) -> Report {
        let mut report = Report { base: self.report_from, count: 0, reference: 0, symbols: [Symbol::NotReceived; RING_LEN] };
        let mut previous = None;
        let mut deltas_len = 0;
        for (index, sequence) in (self.report_from..self.end).enumerate() {
            let tick = self.arrival(sequence);
            if tick == NOT_RECEIVED {
                continue;
            }
            let base_tick = *previous.get_or_insert_with(|| {
                report.reference = tick >> REFERENCE_TICKS_LOG2;
                report.reference << REFERENCE_TICKS_LOG2
            });
            let Some(symbol) = Symbol::of_delta(delta(base_tick, tick)) else { break };
            deltas_len += symbol as usize;
            let count = index + 1;
            let len = HEADER_LEN + 2 * count.div_ceil(CHUNK_SYMBOLS_MIN) + deltas_len;
            if len.next_multiple_of(4) > out_len {
                break;
            }
            report.symbols[index] = symbol;
            report.count = count;
            previous = Some(tick);
        }
        assert!(report.count > 0, "a packet waits, its first delta is below 256 ticks, and FEEDBACK_LEN_MIN has room for it");
        report
    }

    fn write_report(&self, report: &Report, sender_ssrc: u32, media_ssrc: u32, out: &mut [u8]) -> usize {
        const VERSION_AND_FORMAT: u8 = 0x80 | TRANSPORT_CC;
        const TRANSPORT_FEEDBACK: u8 = 205;
        let symbols = &report.symbols[..report.count];
        let mut body = Body { out: &mut *out, len: HEADER_LEN };
        let mut rest = symbols;
        while !rest.is_empty() {
            let (chunk, covered) = next_chunk(rest);
            body.put(&chunk.to_be_bytes());
            rest = &rest[covered..];
        }
        let mut previous = report.reference << REFERENCE_TICKS_LOG2;
        for (sequence, symbol) in (report.base..).zip(symbols) {
            let tick = self.arrival(sequence);
            match symbol {
                Symbol::NotReceived => continue,
                Symbol::Small => body.put(&[delta(previous, tick) as u8]),
                Symbol::Large => body.put(&(delta(previous, tick) as i16).to_be_bytes()),
            }
            previous = tick;
        }
        // The draft pads with zeros without the P bit: the count says where the report ends.
        let padding = body.len.next_multiple_of(4) - body.len;
        body.put(&[0; 4][..padding]);
        let len = body.len;

        let words = (len / 4 - 1) as u16;
        out[..2].copy_from_slice(&[VERSION_AND_FORMAT, TRANSPORT_FEEDBACK]);
        out[2..4].copy_from_slice(&words.to_be_bytes());
        out[4..8].copy_from_slice(&sender_ssrc.to_be_bytes());
        out[8..12].copy_from_slice(&media_ssrc.to_be_bytes());
        out[12..14].copy_from_slice(&(report.base as u16).to_be_bytes());
        out[14..16].copy_from_slice(&(report.count as u16).to_be_bytes());
        out[16..20].copy_from_slice(&(report.reference << 8 | u32::from(self.feedback_count)).to_be_bytes());
        len
    }
}

/// What one feedback packet tells.
struct Report {
    base: u64,
    count: usize,
    /// In 64 ms, 24 bits.
    reference: u32,
    symbols: [Symbol; RING_LEN],
}

/// What follows the fixed header; `plan_report` has made sure that it fits.
struct Body<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Body<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// A packet's status; its value is also the length of its delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Symbol {
    NotReceived = 0,
    /// Delta of 0 to 255 ticks.
    Small = 1,
    /// Delta of 16 bits, signed.
    Large = 2,
}

impl Symbol {
    /// `None`: the delta does not fit 16 bits and a new report has to begin.
    fn of_delta(delta: i32) -> Option<Symbol> {
        match delta {
            0..=0xff => Some(Symbol::Small),
            -0x8000..=0x7fff => Some(Symbol::Large),
            _ => None,
        }
    }
}

/// The chunk for the first of `symbols` (not empty), and how many it covers.
fn next_chunk(symbols: &[Symbol]) -> (u16, usize) {
    const VECTOR: u16 = 0x8000;
    const TWO_BIT: u16 = 0x4000;
    let run = symbols.iter().take(RUN_LEN_MAX).take_while(|symbol| **symbol == symbols[0]).count();
    let wide = &symbols[..symbols.len().min(14)];
    let has_large = wide.contains(&Symbol::Large);
    // A run wins as soon as it covers what the vector would.
    if run >= if has_large { symbols.len().min(7) } else { wide.len() } {
        return ((symbols[0] as u16) << 13 | run as u16, run);
    }
    if has_large {
        let narrow = &symbols[..symbols.len().min(7)];
        let bits = narrow.iter().enumerate().map(|(i, symbol)| (*symbol as u16) << (12 - 2 * i)).sum::<u16>();
        return (VECTOR | TWO_BIT | bits, narrow.len());
    }
    let bits = wide.iter().enumerate().map(|(i, symbol)| (*symbol as u16) << (13 - i)).sum::<u16>();
    (VECTOR | bits, wide.len())
}

fn slot(sequence: u64) -> usize {
    (sequence % RING_LEN as u64) as usize
}

/// From one wrapping tick to another.
fn delta(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}
