//! Outgoing numbers without holes over a stream of which some packets are left out.
//!
//! ```text
//! published   100 101 102 103 104 105 106 107      one bit for each: it has an outgoing number
//! bits          1   1   0   0   1   0   1   1
//! outgoing     50  51          52      53  54      first number of the word + bits before it
//! ```
//! A bit is written once, when the stream's front passes it, so a packet has one number for ever and no two have the same. A packet that
//! is missing when the front passes gets the number that its frame would want; see `Outbound`.

use crate::inbound::VIDEO_HISTORY_LEN;

const WORD: u64 = u64::BITS as u64;

/// Words in the ring: what the history can hold, and the one that is being filled.
const WORDS: usize = VIDEO_HISTORY_LEN / WORD as usize + 1;

#[derive(Clone, Copy, Default)]
struct Word {
    /// Which published sequences have a number.
    sent: u64,
    /// At which of them a picture was left out whose number those behind close up over.
    closed: u64,
    /// Outgoing number of the first one with a bit in `sent`.
    first: u64,
    /// Pictures left out before this word.
    pictures: u16,
}

/// At least the last [`VIDEO_HISTORY_LEN`] published packets of one source. Boxed, so that what is used for each packet of a subscription
/// lies together; the memory is taken when it is opened, needed or not, because nothing is allocated later.
pub struct Slots {
    words: Box<[Word; WORDS]>,
    /// One past the newest published sequence; nothing is in use at 0.
    front: u64,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { words: Box::new([Word::default(); WORDS]), front: 0 }
    }
}

impl Slots {
    /// Memory behind one, in bytes.
    pub const LEN: usize = WORDS * size_of::<Word>();

    /// Some packet was left out since the source began: numbers are these, not the source's constant.
    #[inline]
    pub fn is_in_use(&self) -> bool {
        self.front != 0
    }

    /// Nothing is left out any more: another source began.
    pub fn clear(&mut self) {
        self.front = 0;
    }

    /// From `front` on numbers are kept here; before it each packet had one, and the next is `next`.
    pub fn begin(&mut self, front: u64, next: u64) {
        self.front = front.max(1);
        for back in 0..WORDS as u64 {
            let Some(number) = (front / WORD).checked_sub(back) else { break };
            // May be below zero for a word that reaches behind the source's beginning; nobody asks there.
            let first = next.wrapping_sub(front.wrapping_sub(number * WORD));
            let sent = if back == 0 { (1 << (front % WORD)) - 1 } else { u64::MAX };
            *self.word_mut(number) = Word { sent, closed: 0, first, pictures: 0 };
        }
    }

    /// One past the newest published sequence.
    pub fn front(&self) -> u64 {
        self.front
    }

    /// Moves the front over all before `end`, each with a number or each without.
    pub fn append_until(&mut self, end: u64, sent: bool) {
        while self.front < end {
            let (at, room) = (self.front % WORD, WORD - self.front % WORD);
            let len = room.min(end - self.front);
            if sent {
                let run = u64::MAX >> (WORD - len) << at;
                self.word_mut(self.front / WORD).sent |= run;
            }
            self.front += len;
            if len == room {
                self.open_word();
            }
        }
    }

    /// The packet that was appended last begins a picture that is left out.
    pub fn close_picture(&mut self) {
        let last = self.front - 1;
        self.word_mut(last / WORD).closed |= 1 << (last % WORD);
        if self.front.is_multiple_of(WORD) {
            self.open_word();
        }
    }

    /// The word at the front begins where the one before it ends.
    fn open_word(&mut self) {
        let number = self.front / WORD;
        let before = *self.word_mut(number - 1);
        let first = before.first.wrapping_add(u64::from(before.sent.count_ones()));
        let pictures = before.pictures.wrapping_add(before.closed.count_ones() as u16);
        *self.word_mut(number) = Word { sent: 0, closed: 0, first, pictures };
    }

    /// The outgoing number that the next published packet would get.
    pub fn next(&self) -> u64 {
        let word = self.word(self.front / WORD);
        word.first.wrapping_add(u64::from(word.sent.count_ones()))
    }

    /// The outgoing number of a published packet and the pictures that were left out before it; `None`: it has no number, or it is out of
    /// reach.
    #[inline]
    pub fn number_of(&self, published: u64) -> Option<(u64, u16)> {
        if published >= self.front || published / WORD + (WORDS as u64) <= self.front / WORD {
            return None;
        }
        let word = self.word(published / WORD);
        let bit = 1 << (published % WORD);
        let before = bit - 1;
        let number = word.first.wrapping_add(u64::from((word.sent & before).count_ones()));
        (word.sent & bit != 0).then(|| (number, word.pictures.wrapping_add((word.closed & before).count_ones() as u16)))
    }

    /// The published packet behind an outgoing number; `None`: it is out of reach.
    pub fn published(&self, number: u64) -> Option<u64> {
        for back in 0..WORDS as u64 {
            let at = (self.front / WORD).checked_sub(back)?;
            let word = self.word(at);
            if number.wrapping_sub(word.first) < u64::from(word.sent.count_ones()) {
                return Some(at * WORD + u64::from(nth_bit(word.sent, number - word.first)));
            }
        }
        None
    }

    fn word(&self, number: u64) -> &Word {
        &self.words[(number % WORDS as u64) as usize]
    }

    fn word_mut(&mut self, number: u64) -> &mut Word {
        &mut self.words[(number % WORDS as u64) as usize]
    }
}

/// The place of the set bit that has `n` set ones below it; there are more than `n`.
fn nth_bit(mut bits: u64, n: u64) -> u32 {
    for _ in 0..n {
        bits &= bits - 1;
    }
    bits.trailing_zeros()
}
