//! What a peer may have waiting in the crate, beyond the window that the crate counts in bytes.
//!
//! The crate goes through all parts of a message for each that comes, and a chunk of one byte costs it some hundred: so the number of
//! chunks has a bound as well, and small parts have a rate. Who goes beyond has its packets dropped, as on a bad network, and sends
//! them again: nobody is cut off for it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::WINDOW_LEN;
use super::packet::{self, Facts};
use crate::data::DataDrop;

/// Chunks that may wait. A thousand of them cost the crate 300 KB.
const CHUNKS_MAX: u32 = 8_192;

/// Beyond the bound one packet passes in this time, so that an acknowledgement goes out, which tells what really waits.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Small parts at once; one more for each so many bytes, and each second. Chromium fills a packet of 1,100 bytes to the end with the
/// beginning of the next message: that makes two small parts in each packet.
const SMALL_MAX: u32 = 256;
const SMALL_REFILL_LEN: usize = 400;

pub(super) struct Flow {
    /// Chunks that came and were not read. Repeats are in it until an acknowledgement says that nothing waits.
    waiting: u32,
    probed_at: Instant,
    small: u32,
    refilled_at: Instant,
    /// Bytes on the way to the next small part.
    fill_len: usize,

    /// The window as the peer knows it.
    announced: u32,
    /// Read since.
    read_len: usize,
    /// The newest packet with data.
    newest: Option<Bytes>,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Flow {
        Flow {
            waiting: 0,
            probed_at: now,
            small: SMALL_MAX,
            refilled_at: now,
            fill_len: 0,
            announced: WINDOW_LEN as u32,
            read_len: 0,
            newest: None,
        }
    }

    /// Whether a packet may pass.
    pub(super) fn admit(&mut self, now: Instant, facts: &Facts) -> Result<(), DataDrop> {
        if facts.data_chunks == 0 {
            return Ok(());
        }
        if self.waiting + facts.data_chunks > CHUNKS_MAX {
            if now.saturating_duration_since(self.probed_at) < PROBE_INTERVAL {
                return Err(DataDrop::SctpFlood);
            }
            self.probed_at = now;
        }
        self.refill(now, facts.data_len);
        self.small = self.small.checked_sub(facts.small_fragments).ok_or(DataDrop::SctpFlood)?;
        self.waiting = self.waiting.saturating_add(facts.data_chunks);
        Ok(())
    }

    fn refill(&mut self, now: Instant, data_len: usize) {
        self.fill_len += data_len;
        let mut more = self.fill_len / SMALL_REFILL_LEN;
        self.fill_len %= SMALL_REFILL_LEN;
        let seconds = now.saturating_duration_since(self.refilled_at).as_secs();
        if seconds > 0 {
            self.refilled_at = now;
            more += usize::try_from(seconds).unwrap_or(usize::MAX).min(SMALL_MAX as usize);
        }
        self.small = self.small.saturating_add(more as u32).min(SMALL_MAX);
    }

    pub(super) fn note_data(&mut self, packet: &Bytes) {
        self.newest = Some(packet.clone());
    }

    /// An acknowledgement goes out.
    pub(super) fn note_announced(&mut self, window: u32) {
        self.announced = window;
        self.read_len = 0;
        if window as usize >= WINDOW_LEN {
            self.waiting = 0;
        }
    }

    /// A message was read. Returns a packet to be handled again when the peer believes that the window is closed and it is open
    /// again: the crate announces a window with acknowledgements only, and acknowledges a repeat.
    pub(super) fn note_read(&mut self, chunks: usize, len: usize) -> Option<Bytes> {
        self.waiting = self.waiting.saturating_sub(chunks as u32);
        self.read_len += len;
        if (self.announced as usize) < WINDOW_LEN / 2 && self.read_len >= WINDOW_LEN / 4 {
            self.read_len = 0;
            return self.newest.as_ref().and_then(|packet| packet::first_data(packet)).map(Bytes::from);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(chunks: u32, len: usize, small: u32) -> Facts {
        Facts { data_chunks: chunks, data_len: len, small_fragments: small, init: None }
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
        flow.note_announced(WINDOW_LEN as u32);
        assert_eq!(flow.admit(now, &data(1, 10, 0)), Ok(()), "nothing waits");
    }

    #[test]
    fn small_parts_have_a_rate_that_large_ones_earn() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        for _ in 0..SMALL_MAX {
            assert_eq!(flow.admit(now, &data(1, 1, 1)), Ok(()));
        }
        assert_eq!(flow.admit(now, &data(1, 1, 1)), Err(DataDrop::SctpFlood));
        // As Chromium does with small messages: the end of one, some whole ones, the beginning of another.
        for _ in 0..1_000 {
            assert_eq!(flow.admit(now, &data(7, 1_050, 2)), Ok(()));
            flow.note_read(7, 1_050);
        }
        for _ in 0..SMALL_MAX {
            let _ = flow.admit(now, &data(1, 1, 1));
        }
        assert_eq!(flow.admit(now, &data(1, 1, 1)), Err(DataDrop::SctpFlood));
        assert_eq!(flow.admit(now + Duration::from_secs(1), &data(1, 1, 1)), Ok(()));
    }

    #[test]
    fn a_window_that_opens_again_is_told_once() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        let chunk = [0, 3, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 53, b'x', 0, 0, 0];
        let newest = Bytes::from([&[0x13, 0x88, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 0][..], &chunk].concat());
        flow.note_data(&newest);
        assert_eq!(flow.note_read(1, WINDOW_LEN), None, "the peer knows it as open");
        flow.note_announced(0);
        assert_eq!(flow.note_read(1, WINDOW_LEN / 4 - 1), None);
        assert!(flow.note_read(1, 1).is_some());
        assert_eq!(flow.note_read(1, 1), None);
    }
}
