//! Numbers that a session draws: ids, SSRCs, first sequence numbers. The owner draws the seed, so that a test's run can be repeated.
//!
//! None of them is a secret: what keeps others out are tokens, ICE passwords and DTLS keys, and those are drawn by the owner.

/// xoshiro256** (Blackman and Vigna 2018), filled by SplitMix64 as its authors advise.
#[derive(Debug)]
pub(crate) struct Draw {
    state: [u64; 4],
}

impl Draw {
    pub(crate) fn new(mut seed: u64) -> Draw {
        let mut next = || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Draw { state: [next(), next(), next(), next()] }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let drawn = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        drawn
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// An id that neither another draw of this node nor its counter, which starts at 1, will meet: 63 bits, the highest is set.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_u64() | 1 << 63
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's first numbers for the state 1, 2, 3, 4.
    #[test]
    fn it_is_the_published_generator() {
        let mut draw = Draw { state: [1, 2, 3, 4] };
        let drawn: Vec<_> = (0..5).map(|_| draw.next_u64()).collect();
        assert_eq!(drawn, [11520, 0, 1509978240, 1215971899390074240, 1216172134540287360]);
    }
}
