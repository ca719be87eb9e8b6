//! Which packet indexes were already received.

/// A bitmap over the last `WORDS * 64` packet indexes below the highest one (RFC 3711 section 3.3.2).
///
/// Bit `index % (WORDS * 64)` belongs to `index`, so nothing is shifted when the window moves.
#[derive(Clone, Debug)]
pub(super) struct ReplayWindow<const WORDS: usize> {
    highest: u64,
    bits: [u64; WORDS],
}

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// Indexes that the window holds.
    const LEN: u64 = WORDS as u64 * 64;

    /// A window whose first index, `first`, was received.
    pub(super) fn starting_at(first: u64) -> Self {
        let mut window = Self { highest: first, bits: [0; WORDS] };
        window.mark(first);
        window
    }

    /// The highest index received.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `index` is neither received nor too old to tell.
    pub(super) fn is_new(&self, index: u64) -> bool {
        index > self.highest || (self.highest - index < Self::LEN && self.bits[Self::word(index)] & Self::bit(index) == 0)
    }

    /// Remembers `index`, which [`Self::is_new`]; called only after authentication.
    ///
    /// "After the packet has been authenticated (if necessary the window is first moved ahead), the replay list SHALL be
    /// updated with the new index" (RFC 3711 section 3.3.2).
    pub(super) fn insert(&mut self, index: u64) {
        if index > self.highest {
            if index - self.highest >= Self::LEN {
                self.bits = [0; WORDS];
            } else {
                // Usually one step: the bits that leave the window are the ones that come in.
                for entering in self.highest + 1..=index {
                    self.bits[Self::word(entering)] &= !Self::bit(entering);
                }
            }
            self.highest = index;
        }
        self.mark(index);
    }

    fn mark(&mut self, index: u64) {
        self.bits[Self::word(index)] |= Self::bit(index);
    }

    fn word(index: u64) -> usize {
        ((index % Self::LEN) / 64) as usize
    }

    fn bit(index: u64) -> u64 {
        1 << (index % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_index_is_new_once() {
        let mut window = ReplayWindow::<2>::starting_at(1_000);
        assert!(!window.is_new(1_000));
        for index in [1_001, 999, 1_050, 1_000 - 77 + 50] {
            assert!(window.is_new(index));
            window.insert(index);
            assert!(!window.is_new(index));
        }
    }

    #[test]
    fn the_oldest_index_is_highest_minus_length_plus_one() {
        let window = ReplayWindow::<2>::starting_at(1_000);
        assert!(window.is_new(1_000 - 127));
        assert!(!window.is_new(1_000 - 128));
    }

    #[test]
    fn agrees_with_a_set_under_random_jumps() {
        let mut seed = 7_u64;
        let mut window = ReplayWindow::<2>::starting_at(10_000);
        let mut seen = HashSet::from([10_000_u64]);
        for _ in 0..200_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let reach = if seed >> 60 == 0 { 700 } else { 9 };
            let index = (window.highest() + (seed >> 33) % reach).saturating_sub((seed >> 20) % 150);
            let is_new = !seen.contains(&index) && index + 128 > window.highest();
            assert_eq!(window.is_new(index), is_new, "index {index}, highest {}", window.highest());
            if is_new {
                window.insert(index);
                seen.insert(index);
            }
        }
    }
}
