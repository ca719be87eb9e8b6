//! The messages of a link, numbered from 1 in each direction and kept until the other end has taken them, so that the link goes on over
//! another connection as if it were the same one.

use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that are kept. While so many wait for the other end's word that they came, no more is written.
const KEPT_LEN_MAX: usize = 2 << 20;

/// What a kept message costs beside its bytes.
const COST: usize = 64;

/// The other end is told at the latest after so many bytes of messages that they came.
const UNTOLD_LEN_MAX: usize = 256 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// So many the other end has taken.
    taken: u64,
    /// Those after them, in order.
    kept: VecDeque<Arc<[u8]>>,
    kept_len: usize,
    /// The last one that was written on the present connection, or that was taken before.
    written: u64,
    /// So many of the other end's were taken here.
    received: u64,
    /// Bytes of them since the other end was told.
    untold_len: usize,
}

impl Flow {
    /// Takes a message to be written.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        self.kept_len += bytes.len() + COST;
        self.kept.push_back(bytes.into());
    }

    /// Nothing more is to be pushed for now.
    pub(super) fn is_full(&self) -> bool {
        self.kept_len >= KEPT_LEN_MAX
    }

    /// The next one to be written, and its number.
    pub(super) fn next(&self) -> Option<(u64, Arc<[u8]>)> {
        let place = usize::try_from(self.written.saturating_sub(self.taken)).ok()?;
        Some((self.taken + place as u64 + 1, self.kept.get(place).cloned()?))
    }

    /// It was.
    pub(super) fn note_written(&mut self, number: u64) {
        self.written = self.written.max(number);
    }

    /// On a link that cannot go on over another connection nothing is kept.
    pub(super) fn forget_written(&mut self) {
        self.take_word(self.written);
    }

    /// The other end has taken so many. `false`: more than there were.
    pub(super) fn take_word(&mut self, taken: u64) -> bool {
        let newly = usize::try_from(taken.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        let is_sound = newly <= self.kept.len();
        if is_sound {
            self.take_first(newly);
        }
        is_sound
    }

    fn take_first(&mut self, count: usize) {
        for bytes in self.kept.drain(..count) {
            self.kept_len -= bytes.len() + COST;
        }
        self.taken += count as u64;
        self.written = self.written.max(self.taken);
    }

    /// All that is kept is written again, on another connection. Returns how many come before that.
    pub(super) fn rewind(&mut self) -> u64 {
        self.written = self.taken;
        self.taken
    }

    /// Of what the other end writes after its first `before` messages, how many were taken already; `None`: some between were never seen.
    pub(super) fn known_after(&self, before: u64) -> Option<u64> {
        self.received.checked_sub(before)
    }

    /// A message of the other end was taken. `true`: it should hear so.
    pub(super) fn note_received(&mut self, len: usize) -> bool {
        self.received += 1;
        self.untold_len += len;
        self.untold_len >= UNTOLD_LEN_MAX
    }

    /// How many of the other end's messages were taken: it hears so.
    pub(super) fn tell_received(&mut self) -> u64 {
        self.untold_len = 0;
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(flow: &mut Flow, count: u8) {
        (0..count).for_each(|n| flow.push(vec![n; 10]));
    }

    fn drain(flow: &mut Flow) -> Vec<u8> {
        let mut written = Vec::new();
        while let Some((number, bytes)) = flow.next() {
            written.push(bytes[0]);
            flow.note_written(number);
        }
        written
    }

    #[test]
    fn what_was_not_taken_is_written_again_and_nothing_else() {
        let mut flow = Flow::default();
        write(&mut flow, 5);
        assert_eq!(drain(&mut flow), [0, 1, 2, 3, 4]);
        assert!(flow.take_word(2));
        assert_eq!((flow.next(), flow.rewind()), (None, 2));
        assert_eq!(drain(&mut flow), [2, 3, 4]);
        assert!(flow.take_word(1), "an old word says nothing");
        assert_eq!(flow.rewind(), 2);
        assert!(flow.take_word(4));
        assert_eq!(drain(&mut flow), [4]);
        assert!(!flow.take_word(6), "it cannot have taken what was never written");
        assert!(flow.take_word(5) && flow.kept_len == 0 && flow.kept.is_empty());
    }

    #[test]
    fn a_word_that_comes_while_its_message_is_written_skips_nothing() {
        let mut flow = Flow::default();
        write(&mut flow, 3);
        drain(&mut flow);
        flow.rewind();
        // The first is being written once more when the connection before says that it came.
        let (number, _) = flow.next().expect("it is kept");
        assert!(flow.take_word(1));
        flow.note_written(number);
        assert_eq!(drain(&mut flow), [1, 2]);
    }

    #[test]
    fn what_came_before_the_connection_changed_is_known() {
        let mut flow = Flow::default();
        (0..7).for_each(|_| {
            flow.note_received(10);
        });
        assert_eq!([flow.known_after(4), flow.known_after(7), flow.known_after(8)], [Some(3), Some(0), None]);
        assert!(flow.note_received(UNTOLD_LEN_MAX));
        assert_eq!(flow.tell_received(), 8);
        assert!(!flow.note_received(1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut flow = Flow::default();
        let pushed = (0..)
            .take_while(|_| {
                !flow.is_full() && {
                    flow.push(vec![0; 1_000]);
                    true
                }
            })
            .count();
        assert!(pushed <= KEPT_LEN_MAX / 1_000 + 1);
        drain(&mut flow);
        assert!(flow.is_full(), "written is not taken");
        flow.forget_written();
        assert!(!flow.is_full() && flow.kept.is_empty());
    }
}
