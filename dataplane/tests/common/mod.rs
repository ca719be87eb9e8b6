//! A core with clients around it, in fake time: each client speaks real STUN, SRTP and SRTCP of its own.
#![allow(dead_code, unreachable_pub)] // Each test file uses its part.

use std::net::SocketAddr;
use std::time::Duration;

use pop_dataplane::core::{Core, Transmit};
use pop_dataplane::handover::{Crossing, Ends};
use pop_dataplane::limits::WorkerLimits;
use pop_proto::control::{
    Codec, Extension, ExtensionIds, IceCredentials, MasterKey, MediaKind, OpenSubscription, OpenTrack, OpenTransport, Path, PayloadType,
    PayloadTypeMap, SrtpKeys, SrtpProfile,
};
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtcp::RtcpWriter;
use pop_proto::wire::stun::{self, BindingRequest, Role, TransactionId};
use pop_proto::wire::{Protocol, demux, rtp};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, Time, TrackId, TransportId};

pub const CONSENT: Duration = Duration::from_secs(15);
pub const PWD: &str = "a-password-of-22-chars";
pub const TWCC_EXTENSION: u8 = 3;
pub const MID_EXTENSION: u8 = 4;

/// The plan of a small worker.
pub fn limits() -> WorkerLimits {
    WorkerLimits { transports: 64, tracks: 32, subscriptions: 128, packets: 4_096, ..WorkerLimits::default() }
}

pub fn key(seed: u8) -> MasterKey {
    MasterKey { key: std::array::from_fn(|i| seed ^ i as u8), salt: std::array::from_fn(|i| seed.wrapping_add(i as u8)) }
}

/// A client's transport.
pub fn open_transport(id: u64) -> OpenTransport {
    OpenTransport {
        transport: TransportId(id),
        ice: IceCredentials { local_ufrag: format!("ufrag{id}").into(), local_pwd: PWD.into(), remote_ufrag: "remote".into() },
        extensions: ExtensionIds::NONE.with(Extension::TransportCc, TWCC_EXTENSION).with(Extension::Mid, MID_EXTENSION),
        transport_cc: true,
        remb: false,
        reduced_size_rtcp: true,
        rtcp_ssrc: 0x1000 + id as u32,
        cname: "pop".into(),
    }
}

/// A nominating check of a client.
pub fn check(id: u64, password: &str) -> Vec<u8> {
    check_as(&format!("ufrag{id}:remote"), password)
}

/// The same under other credentials.
pub fn check_as(username: &str, password: &str) -> Vec<u8> {
    let request = BindingRequest {
        transaction: TransactionId([7; 12]),
        username,
        priority: Some(1),
        role: Some(Role::Controlling(1)),
        use_candidate: true,
    };
    let mut out = vec![0; 256];
    let len = stun::write_request(&request, password.as_bytes(), &mut out).unwrap();
    out.truncate(len);
    out
}

/// A client: its address, its keys, its streams.
pub struct Client {
    pub id: u64,
    pub path: Path,
    pub sender: SrtpSender,
    pub receiver: SrtpReceiver,
}

impl Client {
    fn new(id: u64, profile: SrtpProfile) -> Client {
        let remote: SocketAddr = format!("127.0.0.1:{}", 20_000 + id).parse().unwrap();
        Client {
            id,
            path: Path { socket: 0, remote },
            sender: SrtpSender::new(profile, &key(id as u8)),
            receiver: SrtpReceiver::new(profile, &key(!id as u8)),
        }
    }

    /// A nominating check.
    pub fn check(&self, password: &str) -> Vec<u8> {
        check(self.id, password)
    }

    /// A nominating check under other credentials.
    pub fn check_as(&self, username: &str, password: &str) -> Vec<u8> {
        check_as(username, password)
    }

    /// A protected packet of `ssrc` with a transport-wide sequence number.
    pub fn packet(&self, ssrc: u32, index: u64, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        rtp::write_header(&mut header, true, 96, index as u16, 90 * index as u32, ssrc);
        header[0] |= 0x10;
        header[12..].copy_from_slice(&[0xbe, 0xde, 0, 1, TWCC_EXTENSION << 4 | 1, (index >> 8) as u8, index as u8, 0]);
        let mut out = vec![0; 1_500];
        let len = self.sender.protect_rtp(index, &header, payload, &mut out).unwrap();
        out.truncate(len);
        out
    }

    /// A protected packet of `ssrc` that names its mid, of one character.
    pub fn packet_of_mid(&self, ssrc: u32, mid: u8, payload_type: u8, index: u64, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        rtp::write_header(&mut header, true, payload_type, index as u16, 90 * index as u32, ssrc);
        header[0] |= 0x10;
        header[12..].copy_from_slice(&[0xbe, 0xde, 0, 1, MID_EXTENSION << 4, mid, 0, 0]);
        let mut out = vec![0; 1_500];
        let len = self.sender.protect_rtp(index, &header, payload, &mut out).unwrap();
        out.truncate(len);
        out
    }

    /// A protected RTCP compound.
    pub fn rtcp(&mut self, write: impl for<'w, 'o> FnOnce(&'w mut RtcpWriter<'o>) -> Option<&'w mut RtcpWriter<'o>>) -> Vec<u8> {
        let mut out = vec![0; 1_500];
        let mut writer = RtcpWriter::new(&mut out);
        let len = write(&mut writer).expect("the compound fits").len();
        let len = self.sender.protect_rtcp(&mut out, len).unwrap();
        out.truncate(len);
        out
    }
}

/// An RTP packet before protection.
pub struct Packet<'a> {
    pub ssrc: u32,
    pub payload_type: u8,
    pub index: u64,
    pub timestamp: u32,
    pub elements: &'a [(u8, &'a [u8])],
    pub payload: &'a [u8],
}

/// The packet as `client` sends it.
pub fn protect(client: &Client, packet: &Packet<'_>) -> Vec<u8> {
    let mut header = vec![0; 16];
    rtp::write_header(&mut header, true, packet.payload_type, packet.index as u16, packet.timestamp, packet.ssrc);
    for (id, value) in packet.elements {
        header.push(id << 4 | (value.len() - 1) as u8);
        header.extend_from_slice(value);
    }
    header.resize(header.len().next_multiple_of(4), 0);
    header[0] |= 0x10;
    let words = (header.len() / 4 - 4) as u8;
    header[12..16].copy_from_slice(&[0xbe, 0xde, 0, words]);
    let mut out = vec![0; 1_500];
    let len = client.sender.protect_rtp(packet.index, &header, packet.payload, &mut out).unwrap();
    out.truncate(len);
    out
}

/// A datagram that the core sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub path: Path,
    pub bytes: Vec<u8>,
    /// How many datagrams its train had.
    pub train: usize,
}

pub struct Rig {
    pub core: Core,
    pub now: Time,
    pub profile: SrtpProfile,
    pub train: Vec<u8>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig { core: Core::new(limits(), CONSENT), now: Time::from_millis(1), profile: SrtpProfile::AeadAes128Gcm, train: vec![0; 65_535] }
    }

    /// The track that [`Rig::publisher`] publishes.
    pub fn track(id: u64) -> OpenTrack {
        OpenTrack {
            track: TrackId(id),
            transport: TransportId(id),
            kind: MediaKind::Video,
            ssrc: Some(id as u32),
            rtx_ssrc: None,
            mid: "0".into(),
            layers: Vec::new(),
            order: Vec::new(),
            payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: None }],
            nack: true,
            pli: true,
            fir: false,
        }
    }

    /// The section that [`Rig::viewer`] has.
    pub fn subscription(id: u64) -> OpenSubscription {
        OpenSubscription {
            subscription: SubscriptionId(id),
            transport: TransportId(id),
            kind: MediaKind::Video,
            ssrc: id as u32,
            first_sequence: 100,
            first_timestamp: 5_000,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        }
    }

    /// A client whose transport is open and nothing more.
    pub fn open(&mut self, id: u64) -> Client {
        self.open_with(open_transport(id))
    }

    pub fn open_with(&mut self, transport: OpenTransport) -> Client {
        let id = transport.transport.0;
        self.command(Command::OpenTransport(Box::new(transport)));
        Client::new(id, self.profile)
    }

    /// A client that has passed ICE and has keys.
    pub fn connect(&mut self, id: u64) -> Client {
        self.connect_with(open_transport(id))
    }

    pub fn connect_with(&mut self, transport: OpenTransport) -> Client {
        let client = self.open_with(transport);
        self.receive(&client, client.check(PWD));
        self.install_keys(client.id);
        client
    }

    pub fn install_keys(&mut self, id: u64) {
        let keys = SrtpKeys { profile: self.profile, local: key(!id as u8), remote: key(id as u8) };
        self.command(Command::InstallKeys { transport: TransportId(id), keys: Box::new(keys) });
    }

    /// A connected publisher of one VP8 track: track id, SSRC and transport id are `id`.
    pub fn publisher(&mut self, id: u64) -> Client {
        let client = self.connect(id);
        self.command(Command::OpenTrack(Box::new(Self::track(id))));
        client
    }

    /// A connected viewer of `track`: subscription id, SSRC and transport id are `id`.
    pub fn viewer(&mut self, id: u64, track: u64) -> Client {
        let client = self.connect(id);
        self.command(Command::OpenSubscription(Box::new(Self::subscription(id))));
        self.forward(id, Some(track));
        client
    }

    pub fn forward(&mut self, subscription: u64, track: Option<u64>) {
        self.command(Command::Forward {
            subscription: SubscriptionId(subscription),
            track: track.map(TrackId),
            payload_types: vec![PayloadTypeMap { from: 96, to: 102, rtx: None, unwrap_red: false }],
        });
    }

    pub fn command(&mut self, command: Command) {
        self.core.handle_command(self.now, command);
    }

    /// Hands in a datagram from a client's address; drops what the core answers.
    pub fn receive(&mut self, from: &Client, mut datagram: Vec<u8>) {
        self.core.handle_datagram(self.now, from.path, &mut datagram);
    }

    /// Hands in a datagram and returns what the core sends because of it.
    pub fn exchange(&mut self, path: Path, mut datagram: Vec<u8>) -> Vec<Sent> {
        self.core.handle_datagram(self.now, path, &mut datagram);
        self.sent()
    }

    /// One send, as it is.
    pub fn transmit(&mut self) -> Option<Transmit> {
        self.core.poll_transmit(self.now, &mut self.train)
    }

    /// Everything that the core wants to send, datagram by datagram.
    pub fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while let Some(Transmit { path, len, segment }) = self.core.poll_transmit(self.now, &mut self.train) {
            let segment = segment.map_or(len, usize::from);
            let train = len.div_ceil(segment);
            sent.extend(self.train[..len].chunks(segment).map(|bytes| Sent { path, bytes: bytes.to_vec(), train }));
        }
        sent
    }

    /// Lets time pass in ticks; returns what is sent meanwhile.
    pub fn pass(&mut self, duration: Duration) -> Vec<Sent> {
        let (end, mut sent) = (self.now + duration, Vec::new());
        while self.now < end {
            self.now = self.now + Duration::from_millis(10);
            self.core.handle_timeout(self.now);
            sent.extend(self.sent());
        }
        sent
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_event()).collect()
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.core.drops()[reason as usize]
    }
}

/// The RTP packets among `sent` to `client`, opened: (index, header, payload).
pub fn media_to(client: &mut Client, sent: &[Sent]) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let mut packets = Vec::new();
    for datagram in sent.iter().filter(|s| s.path == client.path) {
        let mut bytes = datagram.bytes.clone();
        if demux(&bytes) == Ok(Protocol::Rtp) {
            let header_len = rtp::RtpView::parse(&bytes).unwrap().header_len();
            let opened = client.receiver.unprotect_rtp(&mut bytes, header_len).expect("the viewer's key opens what is sent to it");
            packets.push((opened.index, bytes[..header_len].to_vec(), bytes[header_len..opened.len].to_vec()));
        }
    }
    packets
}

/// The RTCP compounds among `sent` to `client`, opened.
pub fn rtcp_to(client: &mut Client, sent: &[Sent]) -> Vec<Vec<u8>> {
    let mut compounds = Vec::new();
    for datagram in sent.iter().filter(|s| s.path == client.path) {
        let mut bytes = datagram.bytes.clone();
        if demux(&bytes) == Ok(Protocol::Rtcp) {
            let len = client.receiver.unprotect_rtcp(&mut bytes).expect("the client's key opens what is sent to it");
            compounds.push(bytes[..len].to_vec());
        }
    }
    compounds
}

/// A VP8 payload: the first packet of a keyframe, or of another frame.
pub fn vp8(keyframe: bool, len: usize) -> Vec<u8> {
    let mut payload = vec![0xab; len];
    payload[0] = 0x10;
    payload[1] = u8::from(!keyframe);
    payload
}

/// Two workers of one node, in one fake time.
pub struct Pair {
    /// Worker 0, which has the publishers.
    pub home: Rig,
    /// Worker 1, which has mirrors of their tracks.
    pub away: Rig,
    pub home_ends: Ends,
    pub away_ends: Ends,
}

impl Pair {
    pub fn new() -> Pair {
        let crossing = Crossing::new(2);
        Pair { home: Rig::new(), away: Rig::new(), home_ends: crossing.ends(0), away_ends: crossing.ends(1) }
    }

    /// Mirrors a track of the first worker on the second.
    pub fn mirror(&mut self, track: OpenTrack) {
        let id = track.track;
        self.home_ends.supply(1);
        self.away_ends.supply(0);
        self.away.command(Command::OpenMirror { open: Box::new(track), home: 0 });
        self.home.command(Command::Export { track: id, to: 1, on: true });
    }

    /// What either has for the other is handed over and taken.
    pub fn cross(&mut self) {
        self.home_ends.send(&mut self.home.core);
        while self.away_ends.receive(self.away.now, &mut self.away.core) {}
        self.away_ends.send(&mut self.away.core);
        while self.home_ends.receive(self.home.now, &mut self.home.core) {}
    }

    /// A datagram reaches the first worker; returns what each sends because of it.
    pub fn receive(&mut self, from: &Client, mut datagram: Vec<u8>) -> [Vec<Sent>; 2] {
        self.home.core.handle_datagram(self.home.now, from.path, &mut datagram);
        self.cross();
        [self.home.sent(), self.away.sent()]
    }

    /// Time passes in ticks; returns what each sends meanwhile.
    pub fn pass(&mut self, duration: Duration) -> [Vec<Sent>; 2] {
        let (end, mut sent) = (self.home.now + duration, [Vec::new(), Vec::new()]);
        while self.home.now < end {
            for (rig, sent) in [&mut self.home, &mut self.away].into_iter().zip(&mut sent) {
                sent.extend(rig.pass(Duration::from_millis(10)));
            }
            self.cross();
        }
        sent[0].extend(self.home.sent());
        sent[1].extend(self.away.sent());
        sent
    }
}
