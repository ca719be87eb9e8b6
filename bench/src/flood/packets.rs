//! What an attacker sends: a few hundred packets of each kind, made once by seed, so that sending is all that a flood costs.

use std::net::{Ipv4Addr, SocketAddrV4};

use pop_bench::seeded::SplitMix64;
use pop_proto::wire::stun::{BindingRequest, Role, TransactionId, write_request};
use pop_uring::ip_packet;
use serde::Serialize;

/// Packets of one kind before the first comes again.
const POOL_LEN: usize = 256;

/// The longest datagram that fits an Ethernet MTU.
const DATAGRAM_LEN_MAX: usize = 1_472;

/// Datagrams in one GSO send: what every kernel takes.
const TRAIN_SEGMENTS: usize = 64;

/// Bytes of one datagram of a train: 64 of them fill a UDP payload.
const TRAIN_SEGMENT_LEN: usize = 1_000;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Random bytes of random lengths, each from another address.
    Noise,
    /// SRTP of a stream that exists with a wrong tag, every second one from a client's own address and port.
    Tag,
    /// Checks under a client's name and not under its password, every second one from that client's address and port.
    Stun,
    /// SRTP of streams that nobody has, from clients' addresses and ports.
    Ssrc,
    /// Empty, too short, too long, in IP fragments, and fragments whose other half never comes, from clients' addresses and ports.
    Size,
    /// Runs of 64 datagrams in one send, as fast as GSO goes, from one stranger: SRTP and checks as above.
    Trains,
    /// All of these in turn.
    Mixed,
}

/// A client of the node, as an attacker sees it on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Victim {
    /// Where its packets come from.
    pub(crate) from: SocketAddrV4,
    /// USERNAME of its checks.
    pub(crate) username: String,
    /// An SSRC that it sends; any when it sends none.
    pub(crate) ssrc: u32,
}

/// One send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forged {
    /// A whole IP packet.
    Packet(Vec<u8>),
    /// Datagrams of one length from the flooder's own address.
    Train {
        /// All of them.
        bytes: Vec<u8>,
        /// Bytes of each.
        segment: u16,
    },
}

/// The pool of `kind`, in the order of sending; equal seeds make equal pools.
pub(crate) fn forge(kind: Kind, to: SocketAddrV4, victims: &[Victim], seed: u64) -> Result<Vec<Forged>, String> {
    assert!(!victims.is_empty(), "checked by the caller");
    let mut forger = Forger { random: SplitMix64::new(seed), to, victims };
    let one_kind = |forger: &mut Forger<'_>, kind| -> Result<Vec<Forged>, String> {
        let mut pool = Vec::new();
        for at in 0..POOL_LEN {
            forger.forge(kind, at, &mut pool)?;
        }
        Ok(pool)
    };
    if kind != Kind::Mixed {
        return one_kind(&mut forger, kind);
    }
    let mut pool = Vec::new();
    for at in 0..POOL_LEN {
        for kind in [Kind::Noise, Kind::Tag, Kind::Stun, Kind::Ssrc, Kind::Size] {
            forger.forge(kind, at, &mut pool)?;
        }
    }
    // One train among so many: by datagrams it is half of the flood.
    let trains = one_kind(&mut forger, Kind::Trains)?;
    let every = TRAIN_SEGMENTS.min(pool.len());
    let pieces = pool.chunks(every).zip(trains).flat_map(|(chunk, train)| chunk.iter().cloned().chain([train]));
    Ok(pieces.collect())
}

struct Forger<'a> {
    random: SplitMix64,
    to: SocketAddrV4,
    victims: &'a [Victim],
}

impl Forger<'_> {
    fn forge(&mut self, kind: Kind, at: usize, pool: &mut Vec<Forged>) -> Result<(), String> {
        let victim = &self.victims[at % self.victims.len()];
        // Strangers and the client itself, in turn.
        let from = if at.is_multiple_of(2) { victim.from } else { self.stranger() };
        match kind {
            Kind::Noise => {
                let len = self.random.below(DATAGRAM_LEN_MAX) + 1;
                let (from, payload) = (self.stranger(), self.bytes(len));
                pool.push(self.packet(from, &payload)?);
            }
            Kind::Tag => {
                let payload = self.rtp(victim.ssrc, 1_100);
                pool.push(self.packet(from, &payload)?);
            }
            Kind::Ssrc => {
                let ssrc = self.random.next_u64() as u32;
                let payload = self.rtp(ssrc, 200);
                pool.push(self.packet(victim.from, &payload)?);
            }
            Kind::Stun => {
                let payload = self.check(&victim.username);
                pool.push(self.packet(from, &payload)?);
            }
            Kind::Size => self.wrong_size(at, victim.from, pool)?,
            Kind::Trains => {
                let one = if at.is_multiple_of(2) { self.rtp(victim.ssrc, TRAIN_SEGMENT_LEN) } else { self.check(&victim.username) };
                pool.push(Forged::Train { segment: one.len() as u16, bytes: one.repeat(TRAIN_SEGMENTS) });
            }
            Kind::Mixed => unreachable!("it is made of the others"),
        }
        Ok(())
    }

    fn wrong_size(&mut self, at: usize, from: SocketAddrV4, pool: &mut Vec<Forged>) -> Result<(), String> {
        let len = DATAGRAM_LEN_MAX + 1 + self.random.below(7_000);
        let mut payload = self.rtp(1, len);
        match at % 5 {
            0 => pool.push(self.packet(from, &[])?),
            1 => {
                // Of each protocol by its first byte, and shorter than its header.
                let first = [0u8, 22, 0x80][self.random.below(3)];
                let len = self.random.below(12) + 1;
                let mut payload = self.bytes(len);
                payload[0] = first;
                pool.push(self.packet(from, &payload)?);
            }
            2 => pool.push(self.packet(from, &payload)?),
            3 => {
                let [first, second] = self.fragments(from, &payload)?;
                pool.extend([first, second]);
            }
            _ => {
                payload.truncate(DATAGRAM_LEN_MAX);
                let [first, _] = self.fragments(from, &payload)?;
                pool.push(first);
            }
        }
        Ok(())
    }

    /// The packet in two IP fragments (RFC 791 section 3.1: the offset counts 8 bytes, bit 13 says that more come).
    fn fragments(&mut self, from: SocketAddrV4, payload: &[u8]) -> Result<[Forged; 2], String> {
        const MORE: u16 = 1 << 13;
        let whole = ip_packet(from, self.to, payload).map_err(|e| e.to_string())?;
        let id = (self.random.next_u64() as u16 | 1).to_be_bytes();
        let body = &whole[20..];
        let cut = body.len() / 16 * 8;
        let fragment = |body: &[u8], offset: u16| {
            let mut packet = [&whole[..20], body].concat();
            let len = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&len);
            packet[4..6].copy_from_slice(&id);
            packet[6..8].copy_from_slice(&offset.to_be_bytes());
            Forged::Packet(packet)
        };
        Ok([fragment(&body[..cut], MORE), fragment(&body[cut..], (cut / 8) as u16)])
    }

    fn packet(&self, from: SocketAddrV4, payload: &[u8]) -> Result<Forged, String> {
        ip_packet(from, self.to, payload).map(Forged::Packet).map_err(|e| e.to_string())
    }

    /// Any loopback address and port: on another network the source is as free.
    fn stranger(&mut self) -> SocketAddrV4 {
        let bits = self.random.next_u64();
        SocketAddrV4::new(Ipv4Addr::new(127, 1, (bits >> 16) as u8, (bits >> 24) as u8 | 1), (bits as u16).max(1_024))
    }

    /// A header of RTP with any sequence number, and bytes that no key made.
    fn rtp(&mut self, ssrc: u32, len: usize) -> Vec<u8> {
        let mut packet = self.bytes(len);
        packet[..2].copy_from_slice(&[0x80, 96]);
        packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
        packet
    }

    fn check(&mut self, username: &str) -> Vec<u8> {
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&self.bytes(12));
        let request = BindingRequest {
            transaction: TransactionId(transaction),
            username,
            priority: Some(1),
            role: Some(Role::Controlling(self.random.next_u64())),
            use_candidate: true,
        };
        let mut out = [0; 256];
        let len = write_request(&request, b"not the password of anybody", &mut out).expect("two ufrags fit a request");
        out[..len].to_vec()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.random.next_u64().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(kind: Kind, seed: u64) -> Vec<Forged> {
        let victim = Victim { from: "127.0.0.1:4000".parse().unwrap(), username: "theirs:mine".to_owned(), ssrc: 7 };
        forge(kind, "127.0.0.1:9".parse().unwrap(), &[victim], seed).expect("it fits")
    }

    #[test]
    fn equal_seeds_make_equal_floods() {
        assert!(pool(Kind::Mixed, 3) == pool(Kind::Mixed, 3));
        assert!(pool(Kind::Mixed, 3) != pool(Kind::Mixed, 4));
    }

    #[test]
    fn two_fragments_are_the_packet() {
        let packets = pool(Kind::Size, 1);
        let of = |forged: &Forged| match forged {
            Forged::Packet(packet) => packet.clone(),
            Forged::Train { .. } => panic!("no train is of a wrong size"),
        };
        let at = packets.iter().position(|p| of(p)[6..8] == [0x20, 0]).expect("a first fragment");
        let (first, second) = (of(&packets[at]), of(&packets[at + 1]));
        assert_eq!(first[4..6], second[4..6]);
        assert_eq!(usize::from(u16::from_be_bytes([second[6], second[7]])) * 8, first.len() - 20);
        let udp_len = usize::from(u16::from_be_bytes([first[24], first[25]]));
        assert_eq!(udp_len, first.len() + second.len() - 40);
    }
}
