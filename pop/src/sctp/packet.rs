//! The bounded check that every SCTP packet passes before the crate sees it (RFC 9260, RFC 3758, RFC 6525).
//!
//! ```text
//! packet -> length, checksum -> each chunk: length, padding, fields -+-> the packet, with what it carries
//!                                                                    +-> chunks that may be skipped are cut out
//!                                                                    +-> anything else: None
//! ```

/// Longest packet: what a DTLS record in one datagram can carry.
const PACKET_LEN_MAX: usize = crate::dtls::DATA_LEN_MAX;

const COMMON_HEADER_LEN: usize = 12;
const CHUNK_HEADER_LEN: usize = 4;
const DATA_HEADER_LEN: usize = 12;

/// Parameters of an INIT: browsers send 3 to 6.
const INIT_PARAMETERS_MAX: usize = 32;

/// A fragment shorter than this is counted as a small one: senders fill packets of 1,100 bytes and more.
pub(super) const SMALL_FRAGMENT_LEN: usize = 400;

pub(super) const DATA: u8 = 0;
pub(super) const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
const RE_CONFIG: u8 = 130;
const FORWARD_TSN: u8 = 192;

/// What a packet carries that its association has to judge.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// DATA chunks.
    pub(super) data: Vec<DataFact>,
    /// Bytes of user data in them.
    pub(super) data_len: usize,
    /// Initiate tag of the INIT that it is.
    pub(super) init: Option<u32>,
}

/// A DATA chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataFact {
    /// Transmission sequence number.
    pub(super) tsn: u32,
    /// It is a small part of a message that is in several.
    pub(super) is_small: bool,
}

/// What an acknowledgement of ours tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// All up to it have come.
    pub(super) cumulative_tsn: u32,
    /// Bytes that may come.
    pub(super) window: u32,
    /// First and last of each block that has come beyond it, counted from it, in order.
    pub(super) gaps: Vec<(u16, u16)>,
}

impl Announced {
    /// Whether it says that `tsn` has come.
    pub(super) fn has(&self, tsn: u32) -> bool {
        let ahead = tsn.wrapping_sub(self.cumulative_tsn);
        if ahead == 0 || ahead >= 1 << 31 {
            return true;
        }
        let Ok(ahead) = u16::try_from(ahead) else { return false };
        let block = self.gaps.partition_point(|(_, last)| *last < ahead);
        self.gaps.get(block).is_some_and(|(first, _)| *first <= ahead)
    }
}

/// A packet that holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) facts: Facts,
    /// The packet without the chunks that are skipped, when there are some.
    pub(super) rewritten: Option<Vec<u8>>,
}

enum Verdict {
    Keep,
    Skip,
}

/// Checks a packet of a peer that may use stream ids below `streams`.
pub(super) fn check(packet: &[u8], streams: u16) -> Option<Checked> {
    if packet.len() > PACKET_LEN_MAX || packet.len() < COMMON_HEADER_LEN + CHUNK_HEADER_LEN || !packet.len().is_multiple_of(4) {
        return None;
    }
    let sum = u32::from_le_bytes(packet[8..12].try_into().ok()?);
    if packet[..2] == [0, 0] || packet[2..4] == [0, 0] || checksum(packet) != sum {
        return None;
    }
    let tagged = packet[4..8] != [0; 4];
    let mut facts = Facts::default();
    let mut kept = Vec::new();
    let (mut chunks, mut skipped) = (0, false);
    let mut rest = &packet[COMMON_HEADER_LEN..];
    while !rest.is_empty() {
        let (chunk, tail) = split_chunk(rest)?;
        let (kind, flags, value) = (chunk[0], chunk[1], &chunk[CHUNK_HEADER_LEN..]);
        // RFC 9260 section 6.10: "INIT, INIT ACK, and SHUTDOWN COMPLETE ... MUST be the only chunk in the packet". Section 8.5.1:
        // an INIT has the verification tag 0, and nothing else has.
        let alone = matches!(kind, INIT | INIT_ACK | SHUTDOWN_COMPLETE);
        if (alone && (chunks > 0 || !tail.is_empty())) || tagged == (kind == INIT) {
            return None;
        }
        match check_chunk(kind, flags, value, streams, &mut facts)? {
            Verdict::Keep => kept.push(&rest[..rest.len() - tail.len()]),
            Verdict::Skip => skipped = true,
        }
        chunks += 1;
        rest = tail;
    }
    Some(Checked { facts, rewritten: skipped.then(|| rebuild(packet, &kept)) })
}

/// A chunk without its padding, and what follows.
fn split_chunk(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let header = bytes.first_chunk::<CHUNK_HEADER_LEN>()?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if len < CHUNK_HEADER_LEN {
        return None;
    }
    let (padded, rest) = bytes.split_at_checked(len.next_multiple_of(4))?;
    Some((&padded[..len], rest))
}

fn check_chunk(kind: u8, flags: u8, value: &[u8], streams: u16, facts: &mut Facts) -> Option<Verdict> {
    let holds = match kind {
        DATA => return check_data(flags, value, streams, facts),
        INIT => {
            facts.init = Some(u32::from_be_bytes(*value.first_chunk()?));
            check_init(value)
        }
        INIT_ACK => check_init(value),
        SACK => check_sack(value),
        HEARTBEAT => check_parameters(value, 1),
        COOKIE_ECHO => !value.is_empty(),
        SHUTDOWN => value.len() == 4,
        COOKIE_ACK | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => value.is_empty(),
        ABORT => check_parameters(value, INIT_PARAMETERS_MAX),
        FORWARD_TSN => value.len() >= 4 && value.len().is_multiple_of(4),
        RE_CONFIG => return check_reconfig(value),
        // An ERROR reports what the peer did not understand; nothing is to be done, and the crate would end the association.
        ERROR => return Some(Verdict::Skip),
        // RFC 9260 section 3.2: the highest bit says "Skip this chunk, and continue processing the SCTP packet".
        unknown if unknown & 0x80 != 0 => return Some(Verdict::Skip),
        _ => false,
    };
    holds.then_some(Verdict::Keep)
}

fn check_data(flags: u8, value: &[u8], streams: u16, facts: &mut Facts) -> Option<Verdict> {
    const WHOLE: u8 = 3;
    let data_len = value.len().checked_sub(DATA_HEADER_LEN)?;
    // RFC 9260 section 3.3.1: user data has a length of at least 1.
    if data_len == 0 || u16::from_be_bytes([value[4], value[5]]) >= streams {
        return None;
    }
    let tsn = u32::from_be_bytes(*value.first_chunk()?);
    facts.data.push(DataFact { tsn, is_small: flags & WHOLE != WHOLE && data_len < SMALL_FRAGMENT_LEN });
    facts.data_len += data_len;
    Some(Verdict::Keep)
}

fn check_init(value: &[u8]) -> bool {
    const FIXED_LEN: usize = 16;
    let Some((fixed, parameters)) = value.split_at_checked(FIXED_LEN) else { return false };
    let number = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let tag_is_zero = fixed[..4] == [0; 4];
    let window = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    !tag_is_zero && window >= 1_500 && number(8) > 0 && number(10) > 0 && check_parameters(parameters, INIT_PARAMETERS_MAX)
}

/// Type, length, value, padding; the padding of the last one may be missing.
fn check_parameters(bytes: &[u8], max: usize) -> bool {
    let mut rest = bytes;
    for _ in 0..max {
        if rest.is_empty() {
            return true;
        }
        let Some(header) = rest.first_chunk::<4>() else { return false };
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if len < 4 || len > rest.len() {
            return false;
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty()
}

fn check_sack(value: &[u8]) -> bool {
    const FIXED_LEN: usize = 12;
    let Some((fixed, rest)) = value.split_at_checked(FIXED_LEN) else { return false };
    let gaps = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let duplicates = usize::from(u16::from_be_bytes([fixed[10], fixed[11]]));
    if rest.len() != 4 * (gaps + duplicates) {
        return false;
    }
    // In order and apart, so that who goes through them goes through each number once.
    let mut next = 1;
    rest.chunks_exact(4).take(gaps).all(|gap| {
        let (start, end) = (u16::from_be_bytes([gap[0], gap[1]]), u16::from_be_bytes([gap[2], gap[3]]));
        let holds = start >= next && end >= start;
        next = end.saturating_add(1);
        holds
    })
}

/// One or two parameters: a reset of outgoing streams, a response. Others are not offered by us, and are skipped.
fn check_reconfig(value: &[u8]) -> Option<Verdict> {
    const OUTGOING_RESET: u16 = 13;
    const RESPONSE: u16 = 16;
    if value.is_empty() || !check_parameters(value, 2) {
        return None;
    }
    let mut rest = value;
    while let Some(header) = rest.first_chunk::<4>() {
        let (kind, len) = (u16::from_be_bytes([header[0], header[1]]), usize::from(u16::from_be_bytes([header[2], header[3]])));
        let holds = match kind {
            OUTGOING_RESET => len >= 16 && len.is_multiple_of(2),
            RESPONSE => len == 12 || len == 20,
            _ => return Some(Verdict::Skip),
        };
        if !holds {
            return None;
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Verdict::Keep)
}

/// The same packet with these chunks only.
fn rebuild(packet: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
    let mut built = packet[..COMMON_HEADER_LEN].to_vec();
    chunks.iter().for_each(|chunk| built.extend_from_slice(chunk));
    let sum = checksum(&built);
    built[8..12].copy_from_slice(&sum.to_le_bytes());
    built
}

/// The first DATA chunk of a packet, as a packet of its own.
pub(super) fn first_data(packet: &[u8]) -> Option<Vec<u8>> {
    let mut rest = packet.get(COMMON_HEADER_LEN..)?;
    while let Some((chunk, tail)) = split_chunk(rest) {
        if chunk[0] == DATA {
            return Some(rebuild(packet, &[&rest[..rest.len() - tail.len()]]));
        }
        rest = tail;
    }
    None
}

/// What a packet of ours tells, when it acknowledges something.
pub(super) fn announced(packet: &[u8]) -> Option<Announced> {
    let mut rest = packet.get(COMMON_HEADER_LEN..)?;
    while let Some((chunk, tail)) = split_chunk(rest) {
        if chunk[0] == SACK {
            let number = |at: usize| Some(u32::from_be_bytes(*chunk.get(at..)?.first_chunk()?));
            let count = usize::from(u16::from_be_bytes(*chunk.get(12..)?.first_chunk()?));
            let block = |block: &[u8]| (u16::from_be_bytes([block[0], block[1]]), u16::from_be_bytes([block[2], block[3]]));
            let gaps = chunk.get(16..)?.chunks_exact(4).take(count).map(block).collect();
            return Some(Announced { cumulative_tsn: number(4)?, window: number(8)?, gaps });
        }
        rest = tail;
    }
    None
}

/// CRC-32C (RFC 9260 appendix A) with the checksum field as zero.
pub(super) fn checksum(packet: &[u8]) -> u32 {
    let step = |sum: u32, byte: u8| sum >> 8 ^ TABLE[usize::from(sum as u8 ^ byte)];
    let zeroed = packet[..8].iter().copied().chain([0; 4]).chain(packet[COMMON_HEADER_LEN..].iter().copied());
    !zeroed.fold(!0, step)
}

const TABLE: [u32; 256] = {
    /// Reversed 0x1edc6f41.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut value, mut bit) = (byte as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(tag: u32, chunks: &[&[u8]]) -> Vec<u8> {
        let mut packet = vec![0x13, 0x88, 0x13, 0x88];
        packet.extend_from_slice(&tag.to_be_bytes());
        packet.extend_from_slice(&[0; 4]);
        for chunk in chunks {
            packet.extend_from_slice(chunk);
            packet.resize(packet.len().next_multiple_of(4), 0);
        }
        let sum = checksum(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        packet
    }

    fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap().to_be_bytes();
        [&[kind, flags, len[0], len[1]], value].concat()
    }

    fn data(flags: u8, stream: u16, len: usize) -> Vec<u8> {
        let mut value = vec![0; 12 + len];
        value[4..6].copy_from_slice(&stream.to_be_bytes());
        chunk(DATA, flags, &value)
    }

    #[test]
    fn the_checksum_is_the_one_of_rfc_3720() {
        // RFC 3720 appendix B.4 has the CRC of 32 zeros; the 12 bytes of a header and 20 more are such.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn what_a_packet_carries_is_counted() {
        let small = data(2, 1, 10);
        let whole = data(3, 1, 10);
        let facts = check(&packet(7, &[&small, &whole]), 64).unwrap().facts;
        let fact = |is_small| DataFact { tsn: facts.data[0].tsn, is_small };
        assert_eq!(facts, Facts { data: vec![fact(true), fact(false)], data_len: 20, init: None });
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        let good = packet(7, &[&data(3, 1, 8)]);
        assert!(check(&good, 64).is_some());
        for len in 0..good.len() {
            assert!(check(&good[..len], 64).is_none(), "cut to {len}");
        }
        let mut changed = good.clone();
        changed[20] ^= 1;
        assert!(check(&changed, 64).is_none(), "the checksum");
        assert!(check(&packet(0, &[&data(3, 1, 8)]), 64).is_none(), "no tag");
        assert!(check(&packet(7, &[&data(3, 64, 8)]), 64).is_none(), "a stream that was not agreed");
        assert!(check(&packet(7, &[&data(3, 1, 0)]), 64).is_none(), "no data");
        assert!(check(&packet(7, &[&[DATA, 3, 0, 3]]), 64).is_none(), "shorter than its header");
        assert!(check(&packet(7, &[&[DATA, 3, 0xff, 0xff]]), 64).is_none(), "longer than the packet");
        let init = chunk(INIT, 0, &[0, 0, 0, 9, 0, 1, 0, 0, 0, 4, 0, 4, 0, 0, 0, 1]);
        assert_eq!(check(&packet(0, &[&init]), 64).unwrap().facts.init, Some(9));
        assert!(check(&packet(7, &[&init]), 64).is_none(), "an INIT has no tag");
        assert!(check(&packet(0, &[&init, &init]), 64).is_none(), "an INIT is alone");
        let sack = |gaps: &[[u16; 2]]| {
            let mut value = vec![0, 0, 0, 1, 0, 1, 0, 0, 0, gaps.len() as u8, 0, 0];
            gaps.iter().flatten().for_each(|number| value.extend_from_slice(&number.to_be_bytes()));
            packet(7, &[&chunk(SACK, 0, &value)])
        };
        assert!(check(&sack(&[[1, 3], [5, 9]]), 64).is_some());
        assert!(check(&sack(&[[1, 65_535], [1, 65_535]]), 64).is_none(), "the same numbers again");
        assert!(check(&sack(&[[9, 5]]), 64).is_none());
        assert!(check(&sack(&[[0, 5]]), 64).is_none());
    }

    #[test]
    fn what_may_be_skipped_is_cut_out() {
        let kept = data(3, 1, 8);
        let padding = chunk(0x84, 0, &[0; 50]);
        let error = chunk(ERROR, 0, &[0, 6, 0, 4]);
        let more_streams = chunk(RE_CONFIG, 0, &[0, 17, 0, 12, 0, 0, 0, 1, 0, 8, 0, 0]);
        let checked = check(&packet(7, &[&padding, &kept, &error, &more_streams]), 64).unwrap();
        assert_eq!(checked.rewritten, Some(packet(7, &[&kept])));
        assert!(check(&packet(7, &[&chunk(0x40, 0, &[0; 8])]), 64).is_none(), "one that may not be skipped");
    }

    #[test]
    fn what_an_acknowledgement_tells_is_found() {
        let sack = chunk(SACK, 0, &[0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 1, 0, 2, 0, 3, 0, 9, 0, 9, 0, 0, 0, 1]);
        let told = Announced { cumulative_tsn: 1, window: 0x1_0000, gaps: vec![(2, 3), (9, 9)] };
        assert_eq!(announced(&packet(7, &[&data(3, 1, 9), &sack])), Some(told.clone()));
        let has: Vec<u32> = (1..12).filter(|tsn| told.has(*tsn)).collect();
        assert_eq!(has, [1, 3, 4, 10]);
        assert!(told.has(0) && told.has(u32::MAX) && !told.has(70_000));
        assert_eq!(announced(&packet(7, &[&data(3, 1, 9)])), None);
    }
}
