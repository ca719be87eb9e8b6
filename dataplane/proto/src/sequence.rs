//! Sequence numbers that wrap.

/// Where the first sequence number lands: far enough from zero that packets before it have a place, and a multiple of 2^32 so
/// that the low 32 bits are the extended number of RFC 3550 (its cycle count starts at 0).
const START: u64 = 1 << 32;

/// Extends 16-bit sequence numbers to 64 bits by the nearest wrap to the newest one seen.
///
/// Holds while neighbours in arrival order are less than 2^15 apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceUnwrapper {
    newest: Option<u64>,
}

impl SequenceUnwrapper {
    /// Nothing seen yet.
    pub const fn new() -> SequenceUnwrapper {
        SequenceUnwrapper { newest: None }
    }

    /// The extended number, which becomes the newest when it is later. Call it with authenticated packets only.
    #[inline]
    pub fn unwrap(&mut self, sequence: u16) -> u64 {
        let extended = self.peek(sequence);
        self.newest = self.newest.max(Some(extended));
        extended
    }

    /// The extended number that [`unwrap`](Self::unwrap) would return; changes nothing.
    #[inline]
    pub fn peek(&self, sequence: u16) -> u64 {
        match self.newest {
            Some(newest) => extend_sequence(newest, sequence),
            None => START + u64::from(sequence),
        }
    }

    /// The newest extended number; its low 32 bits are RFC 3550's extended highest sequence number received.
    #[inline]
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }
}

/// The 64-bit number with these low 16 bits that is nearest to `near`; a tie goes back.
#[inline]
pub fn extend_sequence(near: u64, sequence: u16) -> u64 {
    let distance = sequence.wrapping_sub(near as u16) as i16;
    near.wrapping_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_across_the_wrap_in_both_directions() {
        let mut unwrapper = SequenceUnwrapper::new();
        let first = unwrapper.unwrap(65_534);
        assert_eq!(unwrapper.unwrap(1), first + 3);
        assert_eq!(unwrapper.unwrap(65_535), first + 1, "late packet of the old cycle");
        assert_eq!(unwrapper.newest(), Some(first + 3), "a late packet is not the newest");
        assert_eq!(unwrapper.peek(2), first + 4);
    }

    #[test]
    fn packets_before_the_first_have_a_place() {
        let mut unwrapper = SequenceUnwrapper::new();
        let first = unwrapper.unwrap(0);
        assert_eq!(unwrapper.unwrap(65_535), first - 1);
    }

    #[test]
    fn the_low_half_is_the_extended_number_of_rfc_3550() {
        let mut unwrapper = SequenceUnwrapper::new();
        unwrapper.unwrap(65_000);
        unwrapper.unwrap(10);
        assert_eq!(unwrapper.newest().map(|n| n as u32), Some(0x0001_000a));
    }

    #[test]
    fn every_step_below_half_a_cycle_is_followed() {
        for step in [1u64, 2, 1_000, 32_767] {
            let mut unwrapper = SequenceUnwrapper::new();
            let mut truth = 77u64;
            let offset = unwrapper.unwrap(77) - truth;
            for _ in 0..200 {
                truth += step;
                assert_eq!(unwrapper.unwrap(truth as u16), truth + offset);
            }
        }
    }
}
