//! What a peer may have waiting in the crate, beyond the window that the crate counts in bytes.
//!
//! The crate goes through all parts of a message for each that comes, and a chunk of one byte costs it some hundred: so the number of
//! chunks has a bound as well, and small parts have a rate. Who goes beyond has its packets dropped, as on a bad network, and sends
//! them again: nobody is cut off for it. What our last acknowledgement says has come is a repeat and does not wait: Chromium sends all
//! that is on its way again when three acknowledgements in a row come late. Repeats have a rate, since each costs an acknowledgement.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::WINDOW_LEN;
use super::packet::{self, Announced, Facts};
use crate::data::DataDrop;

/// Chunks that may wait. A thousand of them cost the crate 300 KB.
const CHUNKS_MAX: u32 = 8_192;

/// Beyond the bound one packet passes in this time, so that an acknowledgement goes out, which tells what really waits.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Small parts at once; one more for each so many bytes, and so many a second. Chromium fills a packet to the end with the beginning
/// of the next message, and what its window has left, however short: while the window is small that makes two or three parts of
/// fewer than 100 bytes in each packet. At once they are two million of the crate's steps, and at this rate, with all the others
/// waiting, eight million a second.
const SMALL_MAX: u32 = 2_048;
const SMALL_REFILL_LEN: usize = 100;

/// Packets that bring nothing new, at once and each millisecond.
const REPEATS_MAX: u32 = 2_048;
const REPEATS_REFILL: u32 = 2;

const REFILL_INTERVAL: Duration = Duration::from_millis(1);

pub(super) struct Flow {
    /// Chunks that came and were not read. Those that never will be are in it until an acknowledgement says that nothing waits.
    waiting: u32,
    /// What our last acknowledgement said: what the peer knows of its window, too.
    told: Option<Announced>,
    /// Packets without anything new that may come.
    repeats: u32,
    probed_at: Instant,
    small: u32,
    refilled_at: Instant,
    /// Bytes on the way to the next small part.
    fill_len: usize,

    /// Read since.
    read_len: usize,
    /// The newest packet with data.
    newest: Option<Bytes>,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Flow {
        Flow {
            waiting: 0,
            told: None,
            repeats: REPEATS_MAX,
            probed_at: now,
            small: SMALL_MAX,
            refilled_at: now,
            fill_len: 0,
            read_len: 0,
            newest: None,
        }
    }

    /// Whether a packet may pass.
    pub(super) fn admit(&mut self, now: Instant, facts: &Facts) -> Result<(), DataDrop> {
        if facts.data.is_empty() {
            return Ok(());
        }
        if facts.data.iter().any(|chunk| self.is_far(chunk.tsn)) {
            return Err(DataDrop::SctpFlood);
        }
        self.refill(now, facts.data_len);
        let (mut news, mut small) = (0, 0);
        for chunk in facts.data.iter().filter(|chunk| self.is_new(chunk.tsn)) {
            news += 1;
            small += u32::from(chunk.is_small);
        }
        if news == 0 {
            self.repeats = self.repeats.checked_sub(1).ok_or(DataDrop::SctpFlood)?;
            return Ok(());
        }
        if self.waiting + news > CHUNKS_MAX {
            if now.saturating_duration_since(self.probed_at) < PROBE_INTERVAL {
                return Err(DataDrop::SctpFlood);
            }
            self.probed_at = now;
        }
        self.small = self.small.checked_sub(small).ok_or(DataDrop::SctpFlood)?;
        self.waiting = self.waiting.saturating_add(news);
        Ok(())
    }

    fn is_new(&self, tsn: u32) -> bool {
        self.told.as_ref().is_none_or(|told| !told.has(tsn))
    }

    /// So far beyond what is missing that the crate would have to remember more than it may.
    fn is_far(&self, tsn: u32) -> bool {
        self.told.as_ref().is_some_and(|told| {
            let ahead = tsn.wrapping_sub(told.cumulative_tsn);
            (CHUNKS_MAX..1 << 31).contains(&ahead)
        })
    }

    fn refill(&mut self, now: Instant, data_len: usize) {
        self.fill_len += data_len;
        let mut more = self.fill_len / SMALL_REFILL_LEN;
        self.fill_len %= SMALL_REFILL_LEN;
        let elapsed = now.saturating_duration_since(self.refilled_at);
        let steps = (elapsed.as_nanos() / REFILL_INTERVAL.as_nanos()).min(u128::from(SMALL_MAX)) as u32;
        // What is left of a step counts for the next.
        self.refilled_at = if steps == SMALL_MAX { now } else { self.refilled_at + steps * REFILL_INTERVAL };
        more += steps as usize;
        self.repeats = self.repeats.saturating_add(REPEATS_REFILL * steps).min(REPEATS_MAX);
        self.small = self.small.saturating_add(more as u32).min(SMALL_MAX);
    }

    pub(super) fn note_data(&mut self, packet: &Bytes) {
        self.newest = Some(packet.clone());
    }

    /// An acknowledgement goes out.
    pub(super) fn note_announced(&mut self, announced: Announced) {
        self.read_len = 0;
        if announced.window as usize >= WINDOW_LEN {
            self.waiting = 0;
        }
        self.told = Some(announced);
    }

    /// A message was read. Returns a packet to be handled again when the peer believes that the window is closed and it is open
    /// again: the crate announces a window with acknowledgements only, and acknowledges a repeat.
    pub(super) fn note_read(&mut self, chunks: usize, len: usize) -> Option<Bytes> {
        self.waiting = self.waiting.saturating_sub(chunks as u32);
        self.read_len += len;
        let window = self.told.as_ref().map_or(WINDOW_LEN, |told| told.window as usize);
        if window < WINDOW_LEN / 2 && self.read_len >= WINDOW_LEN / 4 {
            self.read_len = 0;
            return self.newest.as_ref().and_then(|packet| packet::first_data(packet)).map(Bytes::from);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::packet::DataFact;
    use super::*;

    thread_local!(static NEXT: Cell<u32> = const { Cell::new(u32::MAX - 100) });

    /// A packet of chunks that have not come before.
    fn data(chunks: u32, len: usize, small: u32) -> Facts {
        let first = NEXT.get();
        NEXT.set(first.wrapping_add(chunks));
        let data = (0..chunks).map(|n| DataFact { tsn: first.wrapping_add(n), is_small: n < small }).collect();
        Facts { data, data_len: len, init: None }
    }

    /// Of the newest chunk of [`data`].
    fn last_tsn() -> u32 {
        NEXT.get().wrapping_sub(1)
    }

    fn announced(cumulative_tsn: u32, window: usize) -> Announced {
        Announced { cumulative_tsn, window: window as u32, gaps: Vec::new() }
    }

    #[test]
    fn small_messages_beyond_the_bound_wait_at_the_sender() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        for _ in 0..CHUNKS_MAX {
            assert_eq!(flow.admit(now, &data(1, 10, 0)), Ok(()));
        }
        assert_eq!(flow.admit(now, &data(1, 10, 0)), Err(DataDrop::SctpFlood));
        assert_eq!(flow.admit(now, &data(0, 0, 0)), Ok(()), "what carries no data passes");
        flow.note_read(10, 100);
        assert_eq!(flow.admit(now, &data(10, 100, 0)), Ok(()));
        assert_eq!(flow.admit(now + PROBE_INTERVAL, &data(1, 10, 0)), Ok(()), "one now and then");
        assert_eq!(flow.admit(now + PROBE_INTERVAL, &data(1, 10, 0)), Err(DataDrop::SctpFlood));
        flow.note_announced(announced(last_tsn(), WINDOW_LEN));
        assert_eq!(flow.admit(now, &data(1, 10, 0)), Ok(()), "nothing waits");
    }

    #[test]
    fn small_parts_have_a_rate_that_large_ones_earn() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        let burst = (0..2 * SMALL_MAX).take_while(|_| flow.admit(now, &data(1, 1, 1)).is_ok()).count();
        assert_eq!(burst, SMALL_MAX as usize + SMALL_MAX as usize / (SMALL_REFILL_LEN - 1));
        // As Chromium does with small messages: the end of one, some whole ones, the beginning of another.
        for _ in 0..1_000 {
            assert_eq!(flow.admit(now, &data(7, 1_050, 2)), Ok(()));
            flow.note_read(7, 1_050);
        }
        while flow.admit(now, &data(1, 1, 1)).is_ok() {}
        assert_eq!(flow.admit(now + REFILL_INTERVAL, &data(1, 1, 1)), Ok(()), "time brings more as well");
    }

    #[test]
    fn a_sender_whose_window_is_small_loses_nothing() {
        // Chromium after a loss: a message of 170 bytes in three parts, 500 to 2,000 a second; each that is dropped keeps its window small.
        for pace_us in [500, 1_900] {
            let begin = Instant::now();
            let mut flow = Flow::new(begin);
            for packet in 0..20_000 {
                let now = begin + packet * Duration::from_micros(pace_us);
                assert_eq!(flow.admit(now, &data(3, 170, 2)), Ok(()), "packet {packet}, one each {pace_us} us");
                flow.note_read(3, 170);
            }
        }
    }

    #[test]
    fn what_has_been_acknowledged_does_not_wait_again() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        let packets: Vec<_> = (0..100).map(|_| data(34, 620, 2)).collect();
        for packet in &packets {
            assert_eq!(flow.admit(now, packet), Ok(()));
        }
        // The first half by number, the other as a block behind a gap of one.
        let cumulative_tsn = packets[50].data[0].tsn.wrapping_sub(2);
        let gaps = vec![(2, 50 * 34 + 1)];
        flow.note_announced(Announced { cumulative_tsn, window: 100_000, gaps });
        let (waiting, small) = (flow.waiting, flow.small);
        for _ in 0..20 {
            for (n, packet) in packets.iter().enumerate() {
                assert_eq!(flow.admit(now, packet), Ok(()), "packet {n}");
            }
        }
        assert_eq!(flow.waiting, waiting + 20, "the one that is missing is new each time");
        assert!(flow.small >= small, "{} of {small}", flow.small);
        // 2,048 at once and 2 a millisecond.
        let more = (0..2 * REPEATS_MAX).take_while(|_| flow.admit(now, &packets[0]).is_ok()).count();
        assert_eq!(more, REPEATS_MAX as usize - 20 * 99);
        assert_eq!(flow.admit(now + REFILL_INTERVAL, &packets[0]), Ok(()));
    }

    #[test]
    fn a_gap_that_never_closes_makes_nobody_remember_more() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        let first = data(1, 100, 0);
        let tsn = first.data[0].tsn;
        assert_eq!(flow.admit(now, &first), Ok(()));
        flow.note_announced(announced(tsn, WINDOW_LEN));
        let at = |ahead: u32| Facts { data: vec![DataFact { tsn: tsn.wrapping_add(ahead), is_small: false }], data_len: 100, init: None };
        assert_eq!(flow.admit(now, &at(CHUNKS_MAX - 1)), Ok(()));
        assert_eq!(flow.admit(now, &at(CHUNKS_MAX)), Err(DataDrop::SctpFlood));
        assert_eq!(flow.admit(now, &at(u32::MAX)), Ok(()), "an old one is acknowledged again");
    }

    #[test]
    fn a_window_that_opens_again_is_told_once() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        let chunk = [0, 3, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 53, b'x', 0, 0, 0];
        let newest = Bytes::from([&[0x13, 0x88, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 0][..], &chunk].concat());
        flow.note_data(&newest);
        assert_eq!(flow.note_read(1, WINDOW_LEN), None, "the peer knows it as open");
        flow.note_announced(announced(0, 0));
        assert_eq!(flow.note_read(1, WINDOW_LEN / 4 - 1), None);
        assert!(flow.note_read(1, 1).is_some());
        assert_eq!(flow.note_read(1, 1), None);
    }
}
