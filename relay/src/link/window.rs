//! Which counters came: the replay window of a link, and the base of what it counts as missing.

use crate::{RelayDrop, seal::ECHO_COUNTERS};

/// Counters below the next one that the window holds. At 50,000 datagrams a second it is 160 ms, the default playout budget.
pub(super) const WINDOW_LEN: u64 = 8_192;
const WORDS: usize = WINDOW_LEN as usize / 64;
/// A counter above is a lie: nobody sends so many.
const COUNTER_MAX: u64 = ECHO_COUNTERS;

/// A bitmap over the last [`WINDOW_LEN`] counters. Bit `counter % WINDOW_LEN` belongs to `counter`, so nothing is shifted.
pub(super) struct Window {
    /// One past the highest that came; 0 before the first.
    next: u64,
    bits: Box<[u64; WORDS]>,
}

impl Window {
    pub(super) const MEMORY_LEN: usize = WORDS * 8;

    pub(super) fn new() -> Window {
        Window { next: 0, bits: Box::new([0; WORDS]) }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether `counter` may still come.
    pub(super) fn check(&self, counter: u64) -> Result<(), RelayDrop> {
        if counter >= COUNTER_MAX {
            Err(RelayDrop::Malformed)
        } else if counter >= self.next {
            Ok(())
        } else if self.next - counter > WINDOW_LEN {
            Err(RelayDrop::TooOld)
        } else if self.bits[word(counter)] & bit(counter) != 0 {
            Err(RelayDrop::Replayed)
        } else {
            Ok(())
        }
    }

    /// Remembers `counter`, which passed [`Self::check`]; called only after authentication.
    pub(super) fn insert(&mut self, counter: u64) {
        if counter >= self.next {
            if counter - self.next >= WINDOW_LEN {
                self.bits.fill(0);
            } else {
                // Usually one step: the bits that leave the window are the ones that come in.
                for entering in self.next..=counter {
                    self.bits[word(entering)] &= !bit(entering);
                }
            }
            self.next = counter + 1;
        }
        self.bits[word(counter)] |= bit(counter);
    }
}

fn word(counter: u64) -> usize {
    ((counter % WINDOW_LEN) / 64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_comes_once_within_the_window_and_never_below_it() {
        let mut window = Window::new();
        for counter in [5, 3, 9_000, 9_000 - WINDOW_LEN + 1] {
            assert_eq!(window.check(counter), Ok(()), "{counter}");
            window.insert(counter);
            assert_eq!(window.check(counter), Err(RelayDrop::Replayed), "{counter}");
        }
        assert_eq!(window.check(9_000 - WINDOW_LEN), Err(RelayDrop::TooOld));
        assert_eq!(window.check(8_999), Ok(()), "what a jump passed over may come");
        assert_eq!(window.check(u64::MAX), Err(RelayDrop::Malformed));
        window.insert(9_000 + WINDOW_LEN - 1);
        window.insert(9_000 + WINDOW_LEN + 1);
        assert_eq!(window.check(9_000 + WINDOW_LEN), Ok(()), "the bit of the counter a window before is gone");
        window.insert(9_000 + 3 * WINDOW_LEN);
        assert_eq!(window.check(9_000 + 3 * WINDOW_LEN - 1), Ok(()), "a far jump leaves no bit behind");
    }
}
