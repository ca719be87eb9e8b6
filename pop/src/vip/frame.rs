//! What neighbours are told when an address has come here: gratuitous ARP and unsolicited Neighbor Advertisement, as Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const BROADCAST: [u8; 6] = [0xff; 6];
const NOBODY: [u8; 6] = [0; 6];

/// Of ff02::1, all nodes of the link (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

/// The frames that say to all of the link: `address` is at `mac`.
pub(super) fn announcements(mac: [u8; 6], address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        // Hosts differ in which of the two they believe.
        IpAddr::V4(address) => vec![gratuitous_arp(ARP_REQUEST, mac, address), gratuitous_arp(ARP_REPLY, mac, address)],
        IpAddr::V6(address) => vec![unsolicited_advertisement(mac, address)],
    }
}

/// RFC 5227 section 3: an announcement is a request in which "both the sender and target IP address fields contain the IP address being
/// announced". In the form of a reply the target's hardware address "is also set to the link-layer address to which this cache entry should
/// be updated" (RFC 5944 section 4.6).
fn gratuitous_arp(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let target = if operation == ARP_REPLY { mac } else { NOBODY };
    // Ethernet, IPv4, their lengths, the operation.
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let parts: [&[u8]; 8] = [&BROADCAST, &mac, &ARP, &head, &mac, &address.octets(), &target, &address.octets()];
    parts.concat()
}

/// RFC 4861 section 7.2.6: to all nodes, with the override flag, so that neighbours change what they have. Hop limit 255, else it is not
/// believed.
fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    // Type 136, code 0, a checksum to come, the flags, the target, and option 2: its link-layer address, in units of 8 bytes.
    let parts: [&[u8]; 4] = [&[136, 0, 0, 0, OVERRIDE, 0, 0, 0], &address.octets(), &[2, 1], &mac];
    let mut message = parts.concat();
    let sum = checksum(address, ALL_NODES, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let head = [0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255];
    let parts: [&[u8]; 7] = [&ALL_NODES_MAC, &mac, &IPV6, &head, &address.octets(), &ALL_NODES.octets(), &message];
    parts.concat()
}

/// Over the pseudo-header of RFC 8200 section 8.1 and `message`, whose length is even.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = [&from.octets()[..], &to.octets()[..], message].concat();
    let words = pseudo.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + message.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0x00, 0x5e, 0x10, 0x00, 0x01];

    fn hexadecimal(frame: &[u8]) -> String {
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Scapy 2.8: `Ether(dst="ff:ff:ff:ff:ff:ff", src=M)/ARP(op=1, hwsrc=M, psrc="192.0.2.80", hwdst="00:00:00:00:00:00",
    /// pdst="192.0.2.80")`, and `op=2, hwdst=M`.
    #[test]
    fn a_gratuitous_arp_is_a_request_and_a_reply() {
        let frames = announcements(MAC, "192.0.2.80".parse().expect("an address"));
        let frames: Vec<_> = frames.iter().map(|frame| hexadecimal(frame)).collect();
        assert_eq!(
            frames,
            [
                "ffffffffffff02005e1000010806000108000604000102005e100001c0000250000000000000c0000250",
                "ffffffffffff02005e1000010806000108000604000202005e100001c000025002005e100001c0000250",
            ]
        );
    }

    /// Scapy 2.8: `Ether(dst="33:33:00:00:00:01", src=M)/IPv6(src=A, dst="ff02::1", hlim=255)/ICMPv6ND_NA(tgt=A, R=0, S=0, O=1)/
    /// ICMPv6NDOptDstLLAddr(lladdr=M)`.
    #[test]
    fn an_unsolicited_advertisement_overrides() {
        let frames = announcements(MAC, "2001:db8::80".parse().expect("an address"));
        let frames: Vec<_> = frames.iter().map(|frame| hexadecimal(frame)).collect();
        assert_eq!(
            frames,
            [concat!(
                "33330000000102005e10000186dd6000000000203aff20010db8000000000000000000000080ff020000000000000000000000000001",
                "88009a1c2000000020010db8000000000000000000000080020102005e100001"
            )]
        );
    }
}
