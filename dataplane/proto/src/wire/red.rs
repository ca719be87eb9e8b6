//! Redundant audio (RFC 2198): what a receiver without it needs.

use crate::DropReason;

/// The primary block's data: what the codec made last. The redundant blocks in front of it are older packets again.
///
/// ```text
/// redundant: |1| block PT (7) | timestamp offset (14) | block length (10) |     primary: |0| block PT (7) |
/// ```
///
/// `RedMalformed` when the headers or the redundant blocks do not fit. The primary may be empty.
#[inline]
pub fn primary(payload: &[u8]) -> Result<&[u8], DropReason> {
    const MORE: u8 = 0x80;
    let mut rest = payload;
    let mut redundant = 0;
    loop {
        match rest {
            [] => return Err(DropReason::RedMalformed),
            [head, blocks @ ..] if head & MORE == 0 => return blocks.get(redundant..).ok_or(DropReason::RedMalformed),
            [_, _, high, low, after @ ..] => {
                redundant += usize::from(u16::from_be_bytes([high & 3, *low]));
                rest = after;
            }
            _ => return Err(DropReason::RedMalformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_is_what_the_redundant_blocks_leave() {
        assert_eq!(primary(&[111, 1, 2, 3]), Ok(&[1, 2, 3][..]), "alone");
        assert_eq!(primary(&[0x80 | 111, 0x0f, 0x00, 2, 111, 9, 9, 1, 2]), Ok(&[1, 2][..]));
        assert_eq!(primary(&[0x80 | 111, 0, 0, 1, 0x80 | 111, 0, 0, 2, 111, 8, 9, 9, 7]), Ok(&[7][..]), "two redundant blocks");
        assert_eq!(primary(&[0x80 | 111, 0, 0, 1, 111, 9]), Ok(&[][..]));
    }

    #[test]
    fn blocks_that_do_not_fit_are_malformed() {
        for payload in [&[][..], &[0x80 | 111], &[0x80 | 111, 0, 0, 1], &[0x80 | 111, 0, 0, 1, 111], &[0x80 | 111, 0, 3, 0xff, 111, 1, 2]] {
            assert_eq!(primary(payload), Err(DropReason::RedMalformed), "{payload:?}");
        }
    }
}
