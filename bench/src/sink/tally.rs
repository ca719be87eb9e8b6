//! What arrived: packets by number, counts and latencies out. Whatever comes, memory is bounded and every datagram is counted once.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use pop_proto::wire::rtp::RtpView;
use serde::Serialize;

use crate::blast::packet::{Unstamped, fold, read_stamped};
use crate::blast::{latency_us, new_histogram};
use crate::fanout::arrival::Arrival;
use crate::result::LatencyUs;

/// Streams that one sink tells apart; 8 KiB each. Packets of further ones count as foreign.
pub(crate) const STREAMS_MAX: usize = 1_024;

/// Numbers behind the newest one that are told apart as late or repeated. Older ones are stale.
const WINDOW_LEN: u64 = 65_536;

/// What a number was when it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    First,
    /// For the first time, behind a newer one.
    Late,
    Again,
    /// Too old to know.
    Stale,
}

/// The numbers of one stream.
#[derive(Debug, Default)]
struct Numbers {
    newest: Option<u64>,
    window: Vec<u64>,
    packets: u64,
}

impl Numbers {
    /// `number` arrived; also by how far it is behind the newest, or how many it left out.
    fn insert(&mut self, number: u64) -> (Came, u64) {
        if self.window.is_empty() {
            self.window.resize((WINDOW_LEN / 64) as usize, 0);
        }
        let ahead = self.newest.map_or(Some(number.saturating_add(1)), |newest| number.checked_sub(newest));
        let behind = self.newest.map_or(0, |newest| newest.saturating_sub(number));
        let (at, bit) = ((number % WINDOW_LEN / 64) as usize, 1u64 << (number % 64));
        if let Some(step @ 1..) = ahead {
            // The numbers that were passed are those of a window ago until now.
            for passed in (number - (step - 1).min(WINDOW_LEN - 1)..=number).rev() {
                self.window[(passed % WINDOW_LEN / 64) as usize] &= !(1 << (passed % 64));
            }
            self.newest = Some(number);
            self.window[at] |= bit;
            self.packets += 1;
            return (Came::First, step - 1);
        }
        if behind >= WINDOW_LEN {
            return (Came::Stale, behind);
        }
        if self.window[at] & bit != 0 {
            return (Came::Again, behind);
        }
        self.window[at] |= bit;
        self.packets += 1;
        (Came::Late, behind)
    }
}

/// The account of a sink.
pub(crate) struct Tally {
    /// The one run whose packets count; the first that is seen when nobody said.
    run: Option<u32>,
    /// Count RTP of other senders, too.
    plain: bool,
    streams: Vec<Numbers>,
    plain_streams: HashMap<u32, Arrival>,
    counts: Counts,
    /// Nanoseconds from due to arrival.
    latency: Histogram<u64>,
    /// Nanoseconds from leaving to arrival.
    transit: Histogram<u64>,
    /// When the first and the last packet that counts arrived, monotonic ns.
    span_ns: Option<(u64, u64)>,
}

/// What became of the datagrams. Their sum is `datagrams`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counts {
    /// All that came.
    pub(crate) datagrams: u64,
    /// Different packets of the run.
    pub(crate) packets: u64,
    /// Packets that came again.
    pub(crate) duplicates: u64,
    /// Packets too far behind to know whether they came again.
    pub(crate) stale: u64,
    /// Packets of another run.
    pub(crate) other_runs: u64,
    /// Our mark, and a stamp that was changed.
    pub(crate) damaged: u64,
    /// RTP packets of others, where they count.
    pub(crate) plain: u64,
    /// RTP packets of others that came again.
    pub(crate) plain_duplicates: u64,
    /// Everything else.
    pub(crate) foreign: u64,
    /// Of `packets`: those that came behind a newer one.
    #[serde(skip)]
    reordered: u64,
    #[serde(skip)]
    reorder_distance_max: u64,
    #[serde(skip)]
    gaps: u64,
    #[serde(skip)]
    gap_max: u64,
    /// Bytes of all datagrams.
    #[serde(skip)]
    bytes: u64,
    #[serde(skip)]
    checksum: u64,
}

impl Tally {
    /// Counts packets of `run`, or of the first run that comes.
    pub(crate) fn new(run: Option<u32>, plain: bool) -> Tally {
        Tally {
            run,
            plain,
            streams: Vec::new(),
            plain_streams: HashMap::new(),
            counts: Counts::default(),
            latency: new_histogram(),
            transit: new_histogram(),
            span_ns: None,
        }
    }

    /// `datagram` was there at `now_ns`. Whether it counts as media: noise must not keep a sink open.
    pub(crate) fn take(&mut self, now_ns: u64, datagram: &[u8]) -> bool {
        self.counts.datagrams += 1;
        self.counts.bytes += datagram.len() as u64;
        let stamp = match read_stamped(datagram) {
            Ok(stamp) => stamp,
            Err(Unstamped::Damaged) => {
                self.counts.damaged += 1;
                return false;
            }
            Err(Unstamped::Foreign) => return self.take_plain(now_ns, datagram),
        };
        if *self.run.get_or_insert(stamp.run) != stamp.run {
            self.counts.other_runs += 1;
            return false;
        }
        let stream = stamp.stream as usize;
        if stream >= STREAMS_MAX {
            self.counts.foreign += 1;
            return false;
        }
        if stream >= self.streams.len() {
            self.streams.resize_with(stream + 1, Numbers::default);
        }
        match self.streams[stream].insert(stamp.number) {
            (Came::First, left_out) => {
                self.counts.gaps += u64::from(left_out > 0);
                self.counts.gap_max = self.counts.gap_max.max(left_out);
            }
            (Came::Late, behind) => {
                self.counts.reordered += 1;
                self.counts.reorder_distance_max = self.counts.reorder_distance_max.max(behind);
            }
            (Came::Again, _) => {
                self.counts.duplicates += 1;
                return true;
            }
            (Came::Stale, _) => {
                self.counts.stale += 1;
                return true;
            }
        }
        self.counts.packets += 1;
        self.counts.checksum = self.counts.checksum.wrapping_add(fold(stamp.stream, stamp.number));
        self.latency.saturating_record(now_ns.saturating_sub(stamp.due_ns));
        self.transit.saturating_record(now_ns.saturating_sub(stamp.left_ns));
        self.note_time(now_ns);
        true
    }

    fn take_plain(&mut self, now_ns: u64, datagram: &[u8]) -> bool {
        // RFC 5761 section 4: these second bytes are RTCP's.
        let rtp = RtpView::parse(datagram).ok().filter(|_| self.plain && !(192..=223).contains(&datagram[1]));
        let room = self.plain_streams.len() < STREAMS_MAX;
        let Some(view) = rtp.filter(|view| room || self.plain_streams.contains_key(&view.ssrc())) else {
            self.counts.foreign += 1;
            return false;
        };
        let arrival = self.plain_streams.entry(view.ssrc()).or_default();
        let before = arrival.packets;
        arrival.insert(view.sequence());
        match arrival.packets > before {
            true => self.counts.plain += 1,
            false => self.counts.plain_duplicates += 1,
        }
        self.note_time(now_ns);
        true
    }

    fn note_time(&mut self, now_ns: u64) {
        self.span_ns = Some((self.span_ns.map_or(now_ns, |(first, _)| first), now_ns));
    }

    /// Different packets that count, of others too.
    pub(crate) fn packets(&self) -> u64 {
        self.counts.packets + self.counts.plain
    }

    /// Latencies from the due time, in nanoseconds.
    pub(crate) fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// When the last packet that counts arrived, monotonic ns.
    pub(crate) fn last_ns(&self) -> Option<u64> {
        self.span_ns.map(|(_, last)| last)
    }

    /// For a report.
    pub(crate) fn report(&self) -> TallyReport {
        // Every stream of a run starts at 0; what is missing behind the newest number only the sender knows.
        let expected: u64 = self.streams.iter().filter_map(|stream| Some(stream.newest?.saturating_add(1))).fold(0, u64::saturating_add);
        let counts = self.counts.clone();
        let span_s = self.span_ns.map_or(0.0, |(first, last)| (last - first) as f64 / 1e9);
        TallyReport {
            streams: self.streams.iter().filter(|stream| stream.newest.is_some()).count() + self.plain_streams.len(),
            missing: expected.saturating_sub(counts.packets),
            gaps: counts.gaps,
            gap_max: counts.gap_max,
            reordered: counts.reordered,
            reorder_distance_max: counts.reorder_distance_max,
            bytes: counts.bytes,
            checksum: format!("{:016x}", counts.checksum),
            packets_per_second: if span_s > 0.0 { (self.packets() - 1) as f64 / span_s } else { 0.0 },
            span_s,
            latency_us: latency_us(&self.latency),
            transit_us: latency_us(&self.transit),
            counts,
        }
    }
}

/// What a sink tells.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TallyReport {
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) streams: usize,
    /// Numbers below the newest of each stream that never came.
    pub(crate) missing: u64,
    /// Times that numbers were left out, and the longest such row; a late packet fills a part of one.
    pub(crate) gaps: u64,
    pub(crate) gap_max: u64,
    /// Packets behind a newer one, and by how many numbers at most.
    pub(crate) reordered: u64,
    pub(crate) reorder_distance_max: u64,
    pub(crate) bytes: u64,
    pub(crate) checksum: String,
    pub(crate) packets_per_second: f64,
    /// From the first packet to the last.
    pub(crate) span_s: f64,
    /// From the due time.
    pub(crate) latency_us: Option<LatencyUs>,
    /// From the sender's own stamp: without what the sender was late.
    pub(crate) transit_us: Option<LatencyUs>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blast::packet::{Stamp, write_stamped};

    fn packet(run: u32, stream: u32, number: u64) -> [u8; 80] {
        let mut packet = [0; 80];
        write_stamped(&mut packet, 1, number as u16, &Stamp { number, due_ns: 1_000, left_ns: 2_000, run, stream });
        packet
    }

    fn tally(numbers: impl IntoIterator<Item = u64>) -> TallyReport {
        let mut tally = Tally::new(None, false);
        numbers.into_iter().for_each(|number| assert!(tally.take(5_000, &packet(7, 0, number))));
        tally.report()
    }

    #[test]
    fn each_number_counts_once_whatever_the_order() {
        let in_order = tally(0..200_000);
        assert_eq!((in_order.counts.packets, in_order.missing, in_order.gaps, in_order.reordered), (200_000, 0, 0, 0));
        let swapped = tally([1, 0, 2, 5, 3, 4, 5, 3]);
        assert_eq!((swapped.counts.packets, swapped.missing, swapped.counts.duplicates), (6, 0, 2));
        assert_eq!((swapped.reordered, swapped.reorder_distance_max, swapped.gaps, swapped.gap_max), (3, 2, 2, 2));
        assert_eq!(swapped.checksum, tally(0..6).checksum);
        assert_ne!(swapped.checksum, tally(0..5).checksum);
        let lost = tally((0..100).filter(|number| number % 10 != 9));
        assert_eq!((lost.counts.packets, lost.missing, lost.gaps, lost.gap_max), (90, 9, 9, 1), "the tail is the sender's to know");
        let far = tally([0, 100_000, 34_464, 34_465, 34_465]);
        assert_eq!((far.counts.stale, far.counts.packets, far.counts.duplicates), (1, 3, 1), "a window ends after 65,536 numbers");
        assert_eq!(tally([0, WINDOW_LEN, 2 * WINDOW_LEN]).counts.packets, 3, "places of a window are used again");
        assert_eq!(tally([u64::MAX, u64::MAX, 0]).counts.stale, 1);
    }

    #[test]
    fn noise_is_counted_and_holds_nothing() {
        let mut tally = Tally::new(Some(7), false);
        let mut state = 1u64;
        for round in 0..20_000usize {
            let noise: Vec<u8> = (0..round % 90)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            assert!(!tally.take(1, &noise));
        }
        assert!(!tally.take(1, &packet(8, 0, 0)));
        assert!(!tally.take(1, &packet(7, u32::MAX, 0)));
        let mut damaged = packet(7, 0, 0);
        damaged[30] ^= 1;
        assert!(!tally.take(1, &damaged));
        let report = tally.report();
        let counts = &report.counts;
        assert_eq!((counts.foreign, counts.other_runs, counts.damaged, counts.packets), (20_001, 1, 1, 0));
        assert_eq!((report.streams, report.packets_per_second), (0, 0.0));
    }

    #[test]
    fn rtp_of_others_counts_where_it_is_asked_for() {
        let mut tally = Tally::new(None, true);
        let rtp = |ssrc: u32, sequence: u16| [&[0x80, 96][..], &sequence.to_be_bytes(), &[0; 4], &ssrc.to_be_bytes(), b"x"].concat();
        for (ssrc, sequence) in [(1, 65_535), (1, 0), (1, 0), (2, 0)] {
            assert!(tally.take(1, &rtp(ssrc, sequence)));
        }
        assert!(!tally.take(1, &[0x80, 200, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), "RTCP");
        for ssrc in 3..3_000 {
            tally.take(1, &rtp(ssrc, 0));
        }
        let report = tally.report();
        assert_eq!((report.streams, report.counts.plain, report.counts.plain_duplicates), (STREAMS_MAX, 3 + 1_022, 1));
        assert_eq!(report.counts.foreign, 1 + 2_997 - 1_022);
    }

    #[test]
    fn latency_starts_when_a_packet_was_due() {
        let report = tally([0]);
        assert_eq!(report.latency_us.map(|us| us.max.round()), Some(4.0));
        assert_eq!(report.transit_us.map(|us| us.max.round()), Some(3.0));
    }
}
