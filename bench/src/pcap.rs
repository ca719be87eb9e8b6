//! Reads classic pcap files as tcpdump writes them, down to the UDP payload.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Largest record that is read: tcpdump's default snap length, in bytes.
const RECORD_LEN_MAX: usize = 262_144;

/// An open capture.
pub(crate) struct Pcap<R> {
    input: R,
    big_endian: bool,
    link: LinkType,
    frame: u64,
    record: Vec<u8>,
    /// The file ends inside a record: the capturing process was killed.
    pub(crate) cut: bool,
}

/// One UDP datagram of the capture. On loopback and veth it may be a whole GSO train: the tap sees it before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// The record's number in the file, from 1, as Wireshark counts.
    pub(crate) frame: u64,
    /// Sender.
    pub(crate) source: SocketAddr,
    /// Receiver.
    pub(crate) destination: SocketAddr,
    /// What UDP carries.
    pub(crate) payload: &'a [u8],
    /// Bytes of the payload that the snap length cut off.
    pub(crate) missing: usize,
}

/// What a record held.
pub(crate) enum Record<'a> {
    /// UDP over IPv4 or IPv6.
    Udp(Datagram<'a>),
    /// An IP fragment: its ports are unknown, so it cannot be checked.
    Fragment,
    /// Anything else.
    Other,
}

#[derive(Clone, Copy)]
enum LinkType {
    Null,
    Ethernet,
    Raw,
    LinuxSll,
    LinuxSll2,
}

impl<R: Read> Pcap<R> {
    /// Reads the file header. The error is a sentence for the operator.
    pub(crate) fn open(mut input: R) -> Result<Pcap<R>, String> {
        let mut header = [0; 24];
        input.read_exact(&mut header).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => "the file is shorter than a pcap header".to_owned(),
            _ => e.to_string(),
        })?;
        let big_endian = match [header[0], header[1], header[2], header[3]] {
            [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => false,
            [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => true,
            [0x0a, 0x0d, 0x0d, 0x0a] => {
                return Err("this is pcapng: capture with tcpdump -w, or convert it with editcap -F pcap".to_owned());
            }
            magic => return Err(format!("not a pcap file: it starts with {magic:02x?}")),
        };
        let link = match number(big_endian, &header[20..24]) & 0x0fff_ffff {
            0 => LinkType::Null,
            1 => LinkType::Ethernet,
            12 | 14 | 101 => LinkType::Raw,
            113 => LinkType::LinuxSll,
            276 => LinkType::LinuxSll2,
            other => return Err(format!("link type {other} is not read here: capture on lo, any or an Ethernet interface")),
        };
        Ok(Pcap { input, big_endian, link, frame: 0, record: Vec::new(), cut: false })
    }

    /// The next record; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, String> {
        let mut header = [0; 16];
        match read_all(&mut self.input, &mut header)? {
            0 => return Ok(None),
            16 => {}
            _ => {
                self.cut = true;
                return Ok(None);
            }
        }
        let captured = number(self.big_endian, &header[8..12]) as usize;
        let original = number(self.big_endian, &header[12..16]) as usize;
        if captured > RECORD_LEN_MAX {
            return Err(format!("record {} claims {captured} bytes: the file is damaged", self.frame + 1));
        }
        self.record.resize(captured, 0);
        if read_all(&mut self.input, &mut self.record)? != captured {
            self.cut = true;
            return Ok(None);
        }
        self.frame += 1;
        Ok(Some(parse_link(self.link, &self.record, self.frame, original.saturating_sub(captured)).unwrap_or(Record::Other)))
    }
}

fn number(big_endian: bool, bytes: &[u8]) -> u32 {
    let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

/// Fills `buffer` as far as the input reaches.
fn read_all(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, String> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(len)
}

fn parse_link(link: LinkType, bytes: &[u8], frame: u64, missing: usize) -> Option<Record<'_>> {
    let ip = match link {
        // The family is in the byte order of the machine that captured; the IP version nibble tells the same.
        LinkType::Null => bytes.get(4..)?,
        LinkType::Raw => bytes,
        LinkType::LinuxSll => bytes.get(16..)?,
        LinkType::LinuxSll2 => bytes.get(20..)?,
        LinkType::Ethernet => {
            let mut at = 12;
            while matches!(bytes.get(at..at + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
                at += 4;
            }
            match bytes.get(at..at + 2)? {
                [0x08, 0x00] | [0x86, 0xdd] => bytes.get(at + 2..)?,
                _ => return None,
            }
        }
    };
    match ip.first()? >> 4 {
        4 => parse_ipv4(ip, frame, missing),
        6 => parse_ipv6(ip, frame, missing),
        _ => None,
    }
}

fn parse_ipv4(ip: &[u8], frame: u64, missing: usize) -> Option<Record<'_>> {
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    if header_len < 20 || *ip.get(9)? != 17 {
        return None;
    }
    if be16(ip, 6)? & 0x3fff != 0 {
        return Some(Record::Fragment);
    }
    let address = |at: usize| ip.get(at..at + 4).map(|b| IpAddr::from(Ipv4Addr::new(b[0], b[1], b[2], b[3])));
    parse_udp(ip.get(header_len..)?, address(12)?, address(16)?, frame, missing)
}

fn parse_ipv6(ip: &[u8], frame: u64, missing: usize) -> Option<Record<'_>> {
    let address = |at: usize| {
        let bytes: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(Ipv6Addr::from(bytes)))
    };
    let (mut next, mut at) = (*ip.get(6)?, 40);
    loop {
        match next {
            17 => return parse_udp(ip.get(at..)?, address(8)?, address(24)?, frame, missing),
            44 => return Some(Record::Fragment),
            // Hop-by-hop, routing and destination options share one shape (RFC 8200 section 4).
            0 | 43 | 60 => {
                next = *ip.get(at)?;
                at += (usize::from(*ip.get(at + 1)?) + 1) * 8;
            }
            _ => return None,
        }
    }
}

fn parse_udp(udp: &[u8], source: IpAddr, destination: IpAddr, frame: u64, missing: usize) -> Option<Record<'_>> {
    let (from, to, len) = (be16(udp, 0)?, be16(udp, 2)?, usize::from(be16(udp, 4)?));
    let payload = udp.get(8..)?;
    // A train longer than 65,535 bytes is captured with length 0; Ethernet pads short frames behind the datagram.
    let payload = if len >= 8 { payload.get(..len - 8).unwrap_or(payload) } else { payload };
    let missing = if len >= 8 { (len - 8).saturating_sub(payload.len()) } else { missing };
    let (source, destination) = (SocketAddr::new(source, from), SocketAddr::new(destination, to));
    Some(Record::Udp(Datagram { frame, source, destination, payload, missing }))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Captures made by tests.
#[cfg(test)]
pub(crate) mod write {
    use std::net::SocketAddr;

    /// A little-endian pcap of link type RAW with one IPv4 or IPv6 UDP datagram per entry.
    pub(crate) fn raw_pcap(datagrams: &[(SocketAddr, SocketAddr, Vec<u8>)]) -> Vec<u8> {
        let mut file = file_header(101);
        for (source, destination, payload) in datagrams {
            push_record(&mut file, &[], &ip_packet(*source, *destination, payload));
        }
        file
    }

    pub(crate) fn file_header(link: u32) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
        file.extend(link.to_le_bytes());
        file
    }

    pub(crate) fn push_record(file: &mut Vec<u8>, link_header: &[u8], ip: &[u8]) {
        let len = (link_header.len() + ip.len()) as u32;
        file.extend([0; 8]);
        file.extend(len.to_le_bytes());
        file.extend(len.to_le_bytes());
        file.extend(link_header);
        file.extend(ip);
    }

    pub(crate) fn ip_packet(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let udp_len = (payload.len() + 8) as u16;
        let mut ip = match (source, destination) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let mut ip = vec![0x45, 0];
                ip.extend((udp_len + 20).to_be_bytes());
                ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
                ip.extend(from.ip().octets());
                ip.extend(to.ip().octets());
                ip
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(udp_len.to_be_bytes());
                ip.extend([17, 64]);
                ip.extend(from.ip().octets());
                ip.extend(to.ip().octets());
                ip
            }
            _ => panic!("both ends have one address family"),
        };
        ip.extend(source.port().to_be_bytes());
        ip.extend(destination.port().to_be_bytes());
        ip.extend(udp_len.to_be_bytes());
        ip.extend([0, 0]);
        ip.extend(payload);
        ip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(file: &[u8]) -> Vec<Vec<u8>> {
        let mut pcap = Pcap::open(file).expect("the header is right");
        let mut found = Vec::new();
        while let Some(record) = pcap.next().expect("the records are right") {
            if let Record::Udp(datagram) = record {
                found.push(datagram.payload.to_vec());
            }
        }
        found
    }

    #[test]
    fn every_link_type_leads_to_the_same_datagram() {
        let v4 = write::ip_packet("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap(), b"four");
        let v6 = write::ip_packet("[::1]:5".parse().unwrap(), "[::1]:6".parse().unwrap(), b"six");
        let ethernet = |kind: [u8; 2]| [[0; 12].as_slice(), &kind].concat();
        let vlan = |kind: [u8; 2]| [[0; 12].as_slice(), &[0x81, 0, 0, 7], &kind].concat();
        let headers: [(u32, Vec<u8>, Vec<u8>); 6] = [
            (0, vec![2, 0, 0, 0], vec![10, 0, 0, 0]),
            (1, ethernet([8, 0]), ethernet([0x86, 0xdd])),
            (1, vlan([8, 0]), vlan([0x86, 0xdd])),
            (101, vec![], vec![]),
            (113, vec![0; 16], vec![0; 16]),
            (276, vec![0; 20], vec![0; 20]),
        ];
        for (link, header4, header6) in headers {
            let mut file = write::file_header(link);
            write::push_record(&mut file, &header4, &v4);
            write::push_record(&mut file, &header6, &v6);
            assert_eq!(payloads(&file), [b"four".to_vec(), b"six".to_vec()], "link type {link}");
        }
    }

    #[test]
    fn damaged_files_are_refused_or_end_early_and_never_panic() {
        assert!(Pcap::open(&b""[..]).is_err());
        assert!(Pcap::open(&[0u8; 24][..]).is_err());
        let whole = write::raw_pcap(&[("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap(), b"payload".to_vec())]);
        for len in 24..whole.len() {
            let mut pcap = Pcap::open(&whole[..len]).unwrap();
            assert!(pcap.next().unwrap().is_none());
            assert_eq!(pcap.cut, len > 24);
        }
        // Every byte of the packet changed in turn: other datagrams, no panic.
        for at in 24..whole.len() {
            let mut file = whole.clone();
            file[at] ^= 0xff;
            let mut pcap = Pcap::open(&file[..]).unwrap();
            while let Ok(Some(_)) = pcap.next() {}
        }
    }
}
