//! As much of IP and UDP as a wire needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const UDP: u8 = 17;
const UDP_HEADER_LEN: usize = 8;
/// Of the UDP checksum in its header (RFC 768).
const CHECKSUM_AT: usize = 6;

/// Where an IP packet goes (RFC 791 section 3.1, RFC 8200 section 3).
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..20)?.first_chunk().map(|bytes: &[u8; 4]| Ipv4Addr::from(*bytes).into()),
        6 => packet.get(24..40)?.first_chunk().map(|bytes: &[u8; 16]| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// Where the layer above IP begins, and which it is. Fragments and IPv6 extension headers are not followed.
fn upper_layer(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 => {
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
            (!fragment).then_some((usize::from(packet[0] & 0xf) * 4, *packet.get(9)?))
        }
        6 => Some((40, *packet.get(6)?)),
        _ => None,
    }
}

/// Flips one bit of the payload that `draw` chooses. A UDP checksum is mended, so that the damage reaches the program, as it
/// does when a host's memory is at fault; in anything else the receiving kernel finds it and drops the packet.
pub(super) fn flip_bit(packet: &mut [u8], draw: u64) {
    let Some((start, protocol)) = upper_layer(packet) else { return };
    let udp = protocol == UDP;
    let body = start + if udp { UDP_HEADER_LEN } else { 0 };
    if body >= packet.len() {
        return;
    }
    let bit = (draw % ((packet.len() - body) as u64 * 8)) as usize;
    let at = body + bit / 8;
    let mask = 1u8 << (bit % 8);
    packet[at] ^= mask;
    let sum = start + CHECKSUM_AT;
    // Zero means "none", and stays none.
    if udp && packet[sum..sum + 2] != [0, 0] {
        let old_sum = u16::from_be_bytes([packet[sum], packet[sum + 1]]);
        let shift = if (at - start).is_multiple_of(2) { 8 } else { 0 };
        let (new, old) = (u16::from(packet[at]) << shift, u16::from(packet[at] ^ mask) << shift);
        let mended = mend_checksum(old_sum, old, new);
        packet[sum..sum + 2].copy_from_slice(&mended.to_be_bytes());
    }
}

/// RFC 1624 equation 3: HC' = ~(~HC + ~m + m'). A sum of zero is sent as 0xffff (RFC 768).
fn mend_checksum(sum: u16, old: u16, new: u16) -> u16 {
    let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    match !(total as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A UDP packet between two IPv4 addresses with a right checksum.
    pub(in crate::shaper) fn udp_packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let len = 28 + payload.len() as u16;
        let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, UDP, 0, 0];
        packet.extend([from, to].concat());
        packet.extend([0, 9, 0, 9]);
        packet.extend((len - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend_from_slice(payload);
        let sum = !udp_sum(&packet);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Over the pseudo header and the datagram; 0xffff when the checksum in it is right.
    fn udp_sum(packet: &[u8]) -> u16 {
        let udp_len = (packet.len() - 20) as u16;
        let mut bytes = packet[12..20].to_vec();
        bytes.extend([0, UDP]);
        bytes.extend(udp_len.to_be_bytes());
        bytes.extend_from_slice(&packet[20..]);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let mut total: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn every_flipped_bit_keeps_the_checksum_right() {
        for payload in [&b"odd"[..], b"even", b"a longer payload of some bytes"] {
            let packet = udp_packet([10, 0, 0, 1], [10, 0, 0, 2], payload);
            assert_eq!(udp_sum(&packet), 0xffff);
            for draw in 0..payload.len() as u64 * 8 {
                let mut hurt = packet.clone();
                flip_bit(&mut hurt, draw);
                let flipped: u32 = hurt[28..].iter().zip(&packet[28..]).map(|(a, b)| (a ^ b).count_ones()).sum();
                assert_eq!((flipped, udp_sum(&hurt)), (1, 0xffff), "bit {draw}");
                assert_eq!(hurt[..26], packet[..26], "the headers stay");
            }
        }
    }

    #[test]
    fn a_packet_without_payload_or_cut_short_stays_as_it_is() {
        let packet = udp_packet([10, 0, 0, 1], [10, 0, 0, 2], b"");
        for len in 0..=packet.len() {
            let mut cut = packet[..len].to_vec();
            flip_bit(&mut cut, 12_345);
            assert_eq!(cut, packet[..len]);
            assert_eq!(destination(&cut).is_some(), len >= 20);
        }
    }
}
