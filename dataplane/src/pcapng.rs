//! pcapng blocks (draft-ietf-opsawg-pcapng) for captured RTP, each packet in an IPv4 and UDP header of our making, so that
//! every reader of captures knows what to do with it.

use std::time::Duration;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// LINKTYPE_IPV4: packets begin with the IPv4 header.
const LINKTYPE_IPV4: u16 = 228;

const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// Documentation addresses (RFC 5737): the capture shows no client's address.
const FROM: [u8; 4] = [192, 0, 2, 1];
const TO: [u8; 4] = [192, 0, 2, 2];

/// The port that dissectors take for RTP.
pub const RTP_PORT: u16 = 5004;

/// Appends the section header and one interface with nanosecond timestamps.
pub fn write_head(out: &mut Vec<u8>) {
    block(out, SECTION_HEADER, |out| {
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend(1_u16.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(u64::MAX.to_le_bytes());
    });
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(LINKTYPE_IPV4.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        // if_tsresol = 10^-9 s, then the end of options.
        out.extend([9, 0, 1, 0, 9, 0, 0, 0]);
        out.extend([0; 4]);
    });
}

/// Appends one RTP packet; `at` is since 1970.
pub fn write_packet(out: &mut Vec<u8>, at: Duration, rtp: &[u8]) {
    let len = IPV4_LEN + UDP_LEN + rtp.len();
    block(out, ENHANCED_PACKET, |out| {
        let nanos = at.as_nanos() as u64;
        out.extend(0_u32.to_le_bytes());
        out.extend(((nanos >> 32) as u32).to_le_bytes());
        out.extend((nanos as u32).to_le_bytes());
        out.extend((len as u32).to_le_bytes());
        out.extend((len as u32).to_le_bytes());
        out.extend(ipv4_header(len as u16));
        out.extend(RTP_PORT.to_be_bytes());
        out.extend(RTP_PORT.to_be_bytes());
        out.extend(((UDP_LEN + rtp.len()) as u16).to_be_bytes());
        // RFC 768: zero says that no checksum was made.
        out.extend([0, 0]);
        out.extend(rtp);
    });
}

/// Appends how many packets the capture holds and how many it lost.
pub fn write_statistics(out: &mut Vec<u8>, at: Duration, received: u64, dropped: u64) {
    block(out, INTERFACE_STATISTICS, |out| {
        let nanos = at.as_nanos() as u64;
        out.extend(0_u32.to_le_bytes());
        out.extend(((nanos >> 32) as u32).to_le_bytes());
        out.extend((nanos as u32).to_le_bytes());
        for (code, value) in [(4_u16, received), (5, dropped)] {
            out.extend(code.to_le_bytes());
            out.extend(8_u16.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        out.extend([0; 4]);
    });
}

/// A block: type, length, body padded to 32 bits, length again.
fn block(out: &mut Vec<u8>, block_type: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(block_type.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    out.resize(out.len().next_multiple_of(4) + (start.next_multiple_of(4) - start), 0);
    let len = (out.len() + 4 - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    out.extend(len.to_le_bytes());
}

fn ipv4_header(len: u16) -> [u8; IPV4_LEN] {
    let mut header = [0; IPV4_LEN];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&FROM);
    header[16..20].copy_from_slice(&TO);
    // RFC 1071.
    let sum: u32 = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_words_and_tell_their_length_twice() {
        let mut out = Vec::new();
        write_head(&mut out);
        for len in 12..20 {
            write_packet(&mut out, Duration::new(1, 5), &vec![0x80; len]);
        }
        write_statistics(&mut out, Duration::new(2, 0), 8, 0);
        let (mut rest, mut blocks) = (&out[..], 0);
        while !rest.is_empty() {
            let len = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(rest[len - 4..len], rest[4..8]);
            rest = &rest[len..];
            blocks += 1;
        }
        assert_eq!(blocks, 2 + 8 + 1);
    }

    #[test]
    fn the_header_checksum_makes_the_sum_all_ones() {
        let header = ipv4_header(1_234);
        let sum: u32 = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
