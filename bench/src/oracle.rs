//! The nonce oracle: over everything that was captured, one (key, SSRC, index) has one ciphertext.
//!
//! Two packets under one key and index give an attacker the XOR of their plaintexts, and with GCM the authentication key
//! (RFC 7714 section 10.1), so this is checked from outside, on the wire, with a demultiplexer that shares no code with the
//! appliance: an oracle that shares its subject's bugs finds none of them.
//!
//! ```text
//! pcap -> datagram -+-> DTLS: new ServerHello, then its sender's Finished -> the flow's streams start anew (new keys)
//!                   +-> SRTP / SRTCP, cut out of its GSO train -> (flow, SSRC) -> index -> hash of the whole packet
//! ```
//! The file is read twice: a tap on loopback or veth sees GSO trains before the kernel cuts them and a pcap does not carry
//! the segment size, so the first pass learns which SSRCs and payload types each flow has, and the second finds the cuts.
//! The first pass also learns which clients moved (ICE restarts): a flow without a handshake, to which a sender goes on with an SSRC
//! of a flow that has one, is that flow under another address, and its keys are the same.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::net::SocketAddr;

use crate::pcap::{Datagram, Pcap, Record};

/// Most violations that are described; all are counted.
const VIOLATIONS_SHOWN_MAX: usize = 10;

/// Segments that one GSO train may hold: `UDP_MAX_SEGMENTS` of Linux 6.x.
const TRAIN_SEGMENTS_MAX: usize = 128;

/// A captured UDP payload longer than this must be a train, in bytes: no appliance packet is longer than an Ethernet MTU.
const PACKET_LEN_MAX: usize = 1_500;

/// How far from the last sequence number a packet inside a train may be; keeps random ciphertext from looking like a header.
const TRAIN_SEQUENCE_DISTANCE_MAX: u16 = 2_048;

/// A direction of a 5-tuple: sender, receiver.
type Flow = (SocketAddr, SocketAddr);

/// What a capture held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// SRTP packets.
    pub(crate) rtp: u64,
    /// SRTCP packets whose index was checked.
    pub(crate) rtcp: u64,
    /// SRTCP packets of flows whose DTLS handshake is not in the capture, so that the place of the index is unknown.
    pub(crate) rtcp_unchecked: u64,
    /// (flow, key, SSRC, RTP or RTCP) seen.
    pub(crate) streams: u64,
    /// Packets equal to an earlier one, byte for byte.
    pub(crate) repeats: u64,
    /// Packets that have an earlier one's index and differ from it.
    pub(crate) violations: u64,
    /// GSO trains that were cut.
    pub(crate) trains: u64,
    /// IP fragments, which cannot be checked.
    pub(crate) fragments: u64,
    /// The same by clients, where the server's ports are known. libwebrtc sends a packet again under its own SSRC where RTX was not
    /// negotiated, with another transport-wide number in it: LiveKit's Rust SDK offers no RTX.
    pub(crate) clients_violations: u64,
    /// The first violations, one sentence each.
    pub(crate) shown: Vec<String>,
    /// The file ends inside a record.
    pub(crate) cut: bool,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict { rtp, rtcp, streams, repeats, violations, .. } = self;
        write!(f, "{rtp} rtp, {rtcp} rtcp packets, {streams} streams, {repeats} identical repeats, {violations} violations")
    }
}

/// Checks a capture that `open` can open twice. Only flows with a port in `ports` at either end count, when given; they are the server's.
/// `Err` says why the capture cannot be judged.
pub(crate) fn check_capture<R: Read>(mut open: impl FnMut() -> Result<R, String>, ports: Option<(u16, u16)>) -> Result<Verdict, String> {
    let in_ports = |datagram: &Datagram<'_>| {
        ports.is_none_or(|(first, last)| {
            [datagram.source, datagram.destination].iter().any(|address| (first..=last).contains(&address.port()))
        })
    };
    let mut oracle = Oracle { servers: ports, ..Oracle::default() };
    let mut pcap = Pcap::open(open()?)?;
    while let Some(record) = pcap.next()? {
        if let Record::Udp(datagram) = record
            && in_ports(&datagram)
        {
            oracle.learn_head(&datagram);
        }
    }
    oracle.follow_moves();
    let mut pcap = Pcap::open(open()?)?;
    while let Some(record) = pcap.next()? {
        match record {
            Record::Udp(datagram) if in_ports(&datagram) => oracle.check_datagram(&datagram)?,
            Record::Fragment => oracle.verdict.fragments += 1,
            Record::Udp(_) | Record::Other => {}
        }
    }
    oracle.verdict.cut = pcap.cut;
    Ok(oracle.verdict)
}

#[derive(Default)]
struct Oracle {
    /// Its ports, the first and the last.
    servers: Option<(u16, u16)>,
    /// What the first pass learned: SSRCs at the head of a datagram, and the payload or packet types seen with each.
    heads: HashMap<Flow, HashMap<u32, [u64; 4]>>,
    /// Flows of a DTLS handshake, in either direction.
    secured: HashSet<Flow>,
    /// A flow of a client that moved, and the one on which it shook hands.
    moved: HashMap<Flow, Flow>,
    streams: HashMap<(Flow, u32, Kind), Stream>,
    handshakes: HashMap<Flow, Handshake>,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Rtp,
    Rtcp,
}

/// One SSRC under one key.
#[derive(Default)]
struct Stream {
    /// The highest RTP index, the rollover counter counted from the capture's start.
    highest: Option<u64>,
    /// Index to the packet's hash and frame number: 16 bytes per packet whatever its length.
    seen: HashMap<u64, (u64, u64)>,
}

/// The last ServerHello that a flow's sender sent.
struct Handshake {
    random: [u8; 32],
    /// Bytes behind the SRTCP index: none with GCM (RFC 7714 section 9.3), a 10-byte tag with SHA1-80 (RFC 3711 section 3.4).
    rtcp_trailer_len: usize,
    finished: bool,
}

/// An SRTP or SRTCP header's identity.
struct Head {
    kind: Kind,
    ssrc: u32,
    /// RTP payload type without marker, or RTCP packet type.
    packet_type: u8,
    sequence: u16,
}

impl Oracle {
    fn learn_head(&mut self, datagram: &Datagram<'_>) {
        // A handshake. The goodbye, an alert, goes to where the client is by then.
        if datagram.payload.first() == Some(&22) {
            self.secured.extend([(datagram.source, datagram.destination), (datagram.destination, datagram.source)]);
        }
        if let Some(head) = parse_head(datagram.payload) {
            let types = self.heads.entry((datagram.source, datagram.destination)).or_default().entry(head.ssrc).or_default();
            types[usize::from(head.packet_type >> 6)] |= 1 << (head.packet_type & 63);
        }
    }

    /// A node draws its SSRCs from 32 bits for each client, so one that it sends to two addresses is one client's. What clients
    /// draw is not looked at: browsers that only receive all report as SSRC 1.
    fn follow_moves(&mut self) {
        let mut origins: HashMap<(SocketAddr, u32), Flow> = HashMap::new();
        for (flow, heads) in self.heads.iter().filter(|(flow, _)| self.secured.contains(*flow)) {
            origins.extend(heads.keys().map(|ssrc| ((flow.0, *ssrc), *flow)));
        }
        for (flow, heads) in self.heads.iter().filter(|(flow, _)| !self.secured.contains(*flow)) {
            if let Some(origin) = heads.keys().find_map(|ssrc| origins.get(&(flow.0, *ssrc))) {
                self.moved.insert(*flow, *origin);
                self.moved.insert((flow.1, flow.0), (origin.1, origin.0));
            }
        }
        for (flow, origin) in &self.moved {
            for (ssrc, types) in self.heads.get(flow).cloned().unwrap_or_default() {
                let known = self.heads.entry(*origin).or_default().entry(ssrc).or_default();
                known.iter_mut().zip(types).for_each(|(known, types)| *known |= types);
            }
        }
    }

    fn check_datagram(&mut self, datagram: &Datagram<'_>) -> Result<(), String> {
        let flow = (datagram.source, datagram.destination);
        match datagram.payload.first() {
            Some(20..=63) => self.follow_handshake(flow, datagram.payload),
            Some(128..=191) if datagram.missing > 0 => {
                return Err(format!("frame {} is cut off: capture whole packets with tcpdump -s 0", datagram.frame));
            }
            Some(128..=191) => self.check_media(self.moved.get(&flow).copied().unwrap_or(flow), datagram)?,
            // STUN, TURN channels, other programs: no nonce of ours.
            _ => {}
        }
        Ok(())
    }

    /// RFC 7983 gives 20 to 63 to DTLS. Both directions of a 5-tuple get new keys when the server's Finished follows a
    /// ServerHello with a new random; a retransmitted ServerHello has the old random and changes nothing.
    fn follow_handshake(&mut self, flow: Flow, mut records: &[u8]) {
        while let Some(len) = records.get(11..13).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
            && let Some(fragment) = records.get(13..13 + len)
        {
            let (content_type, epoch) = (records[0], u16::from_be_bytes([records[3], records[4]]));
            if content_type == 22 && epoch == 0 {
                if let Some((random, rtcp_trailer_len)) = parse_server_hello(fragment)
                    && self.handshakes.get(&flow).is_none_or(|h| h.random != random)
                {
                    self.handshakes.insert(flow, Handshake { random, rtcp_trailer_len, finished: false });
                }
            } else if content_type == 22
                && let Some(handshake) = self.handshakes.get_mut(&flow)
                && !handshake.finished
            {
                handshake.finished = true;
                let reverse = (flow.1, flow.0);
                // The other end may have been the server before.
                self.handshakes.remove(&reverse);
                self.streams.retain(|(of, ..), _| *of != flow && *of != reverse);
            }
            records = &records[13 + len..];
        }
    }

    fn check_media(&mut self, flow: Flow, datagram: &Datagram<'_>) -> Result<(), String> {
        let mut rest = datagram.payload;
        match self.find_segment_len(flow, rest) {
            Some(segment_len) => {
                self.verdict.trains += 1;
                while !rest.is_empty() {
                    let (packet, behind) = rest.split_at(segment_len.min(rest.len()));
                    self.check_packet(flow, datagram.frame, packet);
                    rest = behind;
                }
            }
            None if rest.len() > PACKET_LEN_MAX => {
                return Err(format!(
                    "frame {}: the train of {} bytes cannot be cut into packets: turn GSO off on the interface (ethtool -K IF tx-udp-segmentation off)",
                    datagram.frame,
                    rest.len()
                ));
            }
            None => self.check_packet(flow, datagram.frame, rest),
        }
        Ok(())
    }

    /// The shortest length at which every segment starts with a header that this flow is known to have: multiples of the
    /// true length fit as well, so the shortest is the true one. `None`: a single packet.
    fn find_segment_len(&self, flow: Flow, payload: &[u8]) -> Option<usize> {
        let heads = self.heads.get(&flow)?;
        let shortest = payload.len().div_ceil(TRAIN_SEGMENTS_MAX).max(12);
        (shortest..payload.len().min(PACKET_LEN_MAX + 1))
            .find(|len| payload.chunks(*len).skip(1).all(|segment| self.is_known(flow, heads, segment)))
    }

    fn is_known(&self, flow: Flow, heads: &HashMap<u32, [u64; 4]>, segment: &[u8]) -> bool {
        parse_head(segment).is_some_and(|head| {
            let type_is_known =
                heads.get(&head.ssrc).is_some_and(|types| types[usize::from(head.packet_type >> 6)] >> (head.packet_type & 63) & 1 == 1);
            type_is_known && self.is_near(flow, &head)
        })
    }

    fn is_near(&self, flow: Flow, head: &Head) -> bool {
        head.kind == Kind::Rtcp
            || self.streams.get(&(flow, head.ssrc, Kind::Rtp)).and_then(|stream| stream.highest).is_none_or(|highest| {
                let distance = head.sequence.wrapping_sub(highest as u16);
                distance.min(distance.wrapping_neg()) <= TRAIN_SEQUENCE_DISTANCE_MAX
            })
    }

    fn check_packet(&mut self, flow: Flow, frame: u64, packet: &[u8]) {
        let Some(head) = parse_head(packet) else { return };
        let rtcp_index = match head.kind {
            Kind::Rtp => None,
            Kind::Rtcp => match self.rtcp_index(flow, packet) {
                Some(index) => Some(index),
                None => {
                    self.verdict.rtcp_unchecked += 1;
                    return;
                }
            },
        };
        let verdict = &mut self.verdict;
        let stream = self.streams.entry((flow, head.ssrc, head.kind)).or_insert_with(|| {
            verdict.streams += 1;
            Stream::default()
        });
        let index = match rtcp_index {
            Some(index) => {
                verdict.rtcp += 1;
                index
            }
            None => {
                verdict.rtp += 1;
                stream.extend_sequence(head.sequence)
            }
        };
        let mut hasher = DefaultHasher::new();
        packet.hash(&mut hasher);
        match stream.seen.entry(index) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert((hasher.finish(), frame));
            }
            std::collections::hash_map::Entry::Occupied(entry) if entry.get().0 == hasher.finish() => verdict.repeats += 1,
            _ if self.servers.is_some_and(|(first, last)| !(first..=last).contains(&flow.0.port())) => verdict.clients_violations += 1,
            std::collections::hash_map::Entry::Occupied(entry) => {
                verdict.violations += 1;
                if verdict.shown.len() < VIOLATIONS_SHOWN_MAX {
                    verdict.shown.push(format!(
                        "frames {} and {frame}: {:?} index {} of SSRC {:#010x} from {} to {} was used for two ciphertexts",
                        entry.get().1,
                        head.kind,
                        index & 0xffff_ffff,
                        head.ssrc,
                        flow.0,
                        flow.1
                    ));
                }
            }
        }
    }

    /// "The E-flag and the SRTCP index" are a word of their own behind the encrypted part (RFC 3711 section 3.4).
    fn rtcp_index(&self, flow: Flow, packet: &[u8]) -> Option<u64> {
        let handshake = self.handshakes.get(&flow).or_else(|| self.handshakes.get(&(flow.1, flow.0)))?;
        let end = packet.len().checked_sub(handshake.rtcp_trailer_len)?;
        let word: [u8; 4] = packet.get(end.checked_sub(4)?..end)?.try_into().ok()?;
        Some(u64::from(u32::from_be_bytes(word) & 0x7fff_ffff))
    }
}

impl Stream {
    /// The index of RFC 3711 section 3.3.1: the sequence number extended to the one nearest to the highest so far.
    /// Counting starts at one rollover so that a packet from before the first one has an index too.
    fn extend_sequence(&mut self, sequence: u16) -> u64 {
        let highest = *self.highest.get_or_insert(1 << 16 | u64::from(sequence));
        let step = sequence.wrapping_sub(highest as u16) as i16;
        let index = highest.wrapping_add_signed(i64::from(step));
        self.highest = Some(highest.max(index));
        index
    }
}

/// RFC 5761 section 4: packet types 192 to 223 are RTCP.
fn parse_head(packet: &[u8]) -> Option<Head> {
    let [128..=191, second, high, low, ..] = *packet else { return None };
    let word = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    let sequence = u16::from_be_bytes([high, low]);
    match second {
        192..=223 => Some(Head { kind: Kind::Rtcp, ssrc: word(4)?, packet_type: second, sequence }),
        _ => Some(Head { kind: Kind::Rtp, ssrc: word(8)?, packet_type: second & 0x7f, sequence }),
    }
}

/// The random of a ServerHello and the bytes behind the SRTCP index under the profile that it chose (RFC 5764 section
/// 4.1.1); `None` for anything else. The first fragment always holds both: a ServerHello is about 100 bytes.
fn parse_server_hello(fragment: &[u8]) -> Option<([u8; 32], usize)> {
    let body = match fragment {
        [2, _, _, _, _, _, 0, 0, 0, ..] => fragment.get(12..)?,
        _ => return None,
    };
    let random = body.get(2..34)?.try_into().ok()?;
    let session_id_len = usize::from(*body.get(34)?);
    // Session id, cipher suite, compression method, length of the extensions.
    let mut extensions = body.get(35 + session_id_len + 5..)?;
    while let [a, b, c, d, rest @ ..] = extensions {
        let (kind, len) = (u16::from_be_bytes([*a, *b]), usize::from(u16::from_be_bytes([*c, *d])));
        let value = rest.get(..len)?;
        if kind == 14 {
            return match value {
                [0, 2, 0, 1, ..] => Some((random, 10)),
                [0, 2, 0, 7 | 8, ..] => Some((random, 0)),
                _ => None,
            };
        }
        extensions = &rest[len..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcap::write::raw_pcap;

    const CLIENT: &str = "127.0.0.1:40000";
    const SERVER: &str = "127.0.0.1:10000";

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn to_client(payload: Vec<u8>) -> (SocketAddr, SocketAddr, Vec<u8>) {
        (address(SERVER), address(CLIENT), payload)
    }

    fn to_server(payload: Vec<u8>) -> (SocketAddr, SocketAddr, Vec<u8>) {
        (address(CLIENT), address(SERVER), payload)
    }

    /// An RTP packet whose "ciphertext" is drawn from `salt` and the header, so that different packets differ.
    fn rtp(ssrc: u32, sequence: u16, salt: u64, len: usize) -> Vec<u8> {
        let mut packet = vec![0x80, 96];
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 9]);
        packet.extend(ssrc.to_be_bytes());
        let mut state = salt ^ u64::from(ssrc) << 16 ^ u64::from(sequence) ^ 0x9e37_79b9_7f4a_7c15;
        while packet.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            packet.push(state as u8);
        }
        packet
    }

    fn rtcp(ssrc: u32, index: u32, salt: u8, trailer_len: usize) -> Vec<u8> {
        let mut packet = vec![0x80, 201, 0, 1];
        packet.extend(ssrc.to_be_bytes());
        packet.extend([salt; 20]);
        packet.extend((index | 1 << 31).to_be_bytes());
        packet.extend(vec![salt ^ 0x5a; trailer_len]);
        packet
    }

    fn record(epoch: u16, body: &[u8]) -> Vec<u8> {
        let mut record = vec![22, 0xfe, 0xfd];
        record.extend(epoch.to_be_bytes());
        record.extend([0; 6]);
        record.extend((body.len() as u16).to_be_bytes());
        record.extend(body);
        record
    }

    fn server_hello(random: u8, profile: u8) -> Vec<u8> {
        let mut body = vec![0xfe, 0xfd];
        body.extend([random; 32]);
        body.extend([0, 0xc0, 0x2b, 0, 0, 15, 0xff, 0x01, 0, 1, 0, 0, 14, 0, 5, 0, 2, 0, profile, 0]);
        let len = (body.len() as u32).to_be_bytes();
        let mut message = vec![2, len[1], len[2], len[3], 0, 1, 0, 0, 0, len[1], len[2], len[3]];
        message.extend(body);
        record(0, &message)
    }

    fn finished() -> Vec<u8> {
        record(1, &[7; 40])
    }

    fn judge(datagrams: &[(SocketAddr, SocketAddr, Vec<u8>)]) -> Verdict {
        let file = raw_pcap(datagrams);
        check_capture(|| Ok(&file[..]), None).expect("the capture can be judged")
    }

    #[test]
    fn one_index_with_two_ciphertexts_is_a_violation_and_an_identical_repeat_is_not() {
        let verdict = judge(&[
            to_client(rtp(7, 1, 0, 100)),
            to_client(rtp(7, 2, 0, 100)),
            to_client(rtp(7, 1, 0, 100)),
            // The other direction has its own key.
            to_server(rtp(7, 1, 5, 100)),
        ]);
        assert_eq!((verdict.rtp, verdict.streams, verdict.repeats, verdict.violations), (4, 2, 1, 0));

        let verdict = judge(&[to_client(rtp(7, 1, 0, 100)), to_client(rtp(7, 2, 0, 100)), to_client(rtp(7, 1, 1, 100))]);
        assert_eq!((verdict.repeats, verdict.violations), (0, 1));
        assert!(verdict.shown[0].starts_with("frames 1 and 3: Rtp index 65537 of SSRC 0x00000007"), "{}", verdict.shown[0]);
    }

    #[test]
    fn a_sequence_number_after_a_rollover_is_another_index() {
        let mut datagrams: Vec<_> = (0..70_000u32).map(|n| to_client(rtp(7, n as u16, u64::from(n >> 16), 40))).collect();
        let verdict = judge(&datagrams);
        assert_eq!((verdict.rtp, verdict.repeats, verdict.violations), (70_000, 0, 0));
        // A retransmission from before the rollover is told apart from the packets after it.
        datagrams.truncate(65_540);
        datagrams.push(to_client(rtp(7, 65_530, 0, 40)));
        assert_eq!((judge(&datagrams).repeats, judge(&datagrams).violations), (1, 0));
        datagrams.push(to_client(rtp(7, 65_530, 1, 40)));
        assert_eq!(judge(&datagrams).violations, 1);
    }

    #[test]
    fn a_finished_handshake_means_new_keys_and_a_repeated_server_hello_does_not() {
        let old_and_new = |between: Vec<Vec<u8>>| {
            let mut datagrams =
                vec![to_client(server_hello(1, 7)), to_client(finished()), to_client(rtp(7, 1, 0, 100)), to_server(rtp(8, 1, 0, 100))];
            datagrams.extend(between.into_iter().map(to_client));
            datagrams.extend([to_client(rtp(7, 1, 1, 100)), to_server(rtp(8, 1, 1, 100))]);
            judge(&datagrams).violations
        };
        assert_eq!(old_and_new(vec![server_hello(2, 7), finished()]), 0);
        assert_eq!(old_and_new(vec![[server_hello(2, 7), finished()].concat()]), 0);
        assert_eq!(old_and_new(vec![server_hello(2, 7)]), 2, "a handshake that did not end");
        assert_eq!(old_and_new(vec![server_hello(1, 7), finished()]), 2, "a retransmitted flight");
        assert_eq!(old_and_new(vec![]), 2);
    }

    #[test]
    fn a_client_that_moved_keeps_its_keys_and_another_client_has_its_own() {
        let moved = |(source, destination, payload): (SocketAddr, SocketAddr, Vec<u8>)| {
            let elsewhere = |place: SocketAddr| if place == address(CLIENT) { address("127.0.0.1:40001") } else { place };
            (elsewhere(source), elsewhere(destination), payload)
        };
        let call = [to_client(server_hello(1, 7)), to_client(finished()), to_client(rtp(7, 1, 0, 100)), to_server(rtcp(1, 1, 1, 0))];
        let goodbye = vec![21, 254, 253, 0, 1, 0, 0, 0, 0, 0, 9, 0, 2, 1, 0];
        let good = [
            moved(to_server(goodbye)),
            moved(to_server(rtcp(1, 2, 1, 0))),
            moved(to_client(rtp(7, 2, 0, 100))),
            moved(to_client(rtp(7, 1, 0, 100))),
        ];
        let verdict = judge(&[&call[..], &good].concat());
        assert_eq!((verdict.rtp, verdict.rtcp, verdict.rtcp_unchecked), (3, 2, 0));
        assert_eq!((verdict.streams, verdict.repeats, verdict.violations), (2, 1, 0));
        let bad = [moved(to_client(rtp(7, 1, 1, 100))), moved(to_server(rtcp(1, 1, 2, 0)))];
        assert_eq!(judge(&[&call[..], &bad].concat()).violations, 2, "both directions");
        // What is sent to another client has another SSRC; that both clients report as 1 means nothing.
        let other = [moved(to_client(rtp(8, 1, 0, 100))), moved(to_server(rtcp(1, 1, 2, 0)))];
        let verdict = judge(&[&call[..], &other].concat());
        assert_eq!((verdict.rtcp_unchecked, verdict.violations), (1, 0));
    }

    #[test]
    fn the_srtcp_index_is_found_under_each_profile() {
        for (profile, trailer_len) in [(1, 10), (7, 0), (8, 0)] {
            let keys = [to_client(server_hello(1, profile)), to_client(finished())];
            let good =
                [to_client(rtcp(7, 1, 1, trailer_len)), to_client(rtcp(7, 2, 2, trailer_len)), to_client(rtcp(7, 2, 2, trailer_len))];
            let verdict = judge(&[&keys[..], &good].concat());
            assert_eq!((verdict.rtcp, verdict.repeats, verdict.violations), (3, 1, 0), "profile {profile}");
            let bad = [to_server(rtcp(9, 1, 1, trailer_len)), to_server(rtcp(9, 1, 2, trailer_len))];
            assert_eq!(judge(&[&keys[..], &bad].concat()).violations, 1, "profile {profile}");
        }
        let verdict = judge(&[to_client(rtcp(7, 1, 1, 0))]);
        assert_eq!((verdict.rtcp, verdict.rtcp_unchecked), (0, 1), "no handshake, no place of the index");
    }

    #[test]
    fn a_train_is_cut_into_its_packets() {
        let train = |sequences: std::ops::Range<u16>, last_len: usize, salt: u64| {
            let last = sequences.end;
            let mut train: Vec<u8> = sequences.flat_map(|n| rtp(7, n, salt, 500)).collect();
            train.extend(rtp(8, last, salt, last_len));
            train
        };
        // Stream 8 heads a datagram only at the end of the file: the first pass knows it all the same.
        let datagrams = vec![
            to_client(train(1..10, 90, 0)),
            to_client(train(10..12, 500, 0)),
            to_client([rtp(7, 12, 0, 60), rtp(7, 13, 0, 60)].concat()),
            to_client(rtp(8, 50, 0, 90)),
        ];
        let verdict = judge(&datagrams);
        assert_eq!((verdict.rtp, verdict.trains, verdict.streams, verdict.violations), (16, 3, 2, 0));
        let bad = [datagrams.clone(), vec![to_client([rtp(7, 14, 0, 500), rtp(7, 5, 1, 500)].concat())]].concat();
        assert_eq!(judge(&bad).violations, 1, "the second packet of a train counts");

        let random = raw_pcap(&[to_client(rtp(7, 1, 0, 4_000))]);
        assert!(check_capture(|| Ok(&random[..]), None).is_err(), "a train that cannot be cut is not passed over");
    }

    #[test]
    fn ports_select_the_flows() {
        let file = raw_pcap(&[to_client(rtp(7, 1, 0, 100)), to_client(rtp(7, 1, 1, 100))]);
        let violations = |ports| check_capture(|| Ok(&file[..]), ports).unwrap().violations;
        assert_eq!((violations(None), violations(Some((10_000, 10_000))), violations(Some((1, 9_999)))), (1, 1, 0));
        let client = address(CLIENT).port();
        let verdict = check_capture(|| Ok(&file[..]), Some((client, client))).unwrap();
        assert_eq!((verdict.violations, verdict.clients_violations), (0, 1), "what the other end does is told apart");
    }
}
