//! A whole worker's core under any interleaving of commands, datagrams and time, with clients that speak real STUN, SRTP and SRTCP.
//!
//! What holds whatever comes: nothing panics; every datagram ends in a counter; one (key, SSRC, index) makes one ciphertext, over
//! wraps, switches and repairs; and when all is closed, nothing is held.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use pop_dataplane::core::{Core, Transmit};
use pop_dataplane::limits::WorkerLimits;
use pop_proto::Command;
use pop_proto::control::{
    Codec, Extension, ExtensionIds, IceCredentials, MasterKey, MediaKind, OpenSubscription, OpenTrack, OpenTransport, Path, PayloadType,
    PayloadTypeMap, SrtpKeys, SrtpProfile,
};
use pop_proto::sequence::extend_sequence;
use pop_proto::srtp::SrtpSender;
use pop_proto::wire::rtcp::RtcpWriter;
use pop_proto::wire::stun::{self, BindingRequest, Role, TransactionId};
use pop_proto::wire::{Protocol, demux, rtp};
use pop_schemas::{SubscriptionId, Time, TrackId, TransportId};

use super::{Outcome, Steps};

/// Ids of everything: few, so that commands meet what exists.
const IDS: usize = 4;
const PASSWORD: &str = "a-password-of-22-chars";
const PROFILE: SrtpProfile = SrtpProfile::AeadAes128Gcm;
const TWCC: u8 = 3;
/// Bytes that SRTCP adds: the tag, then E bit and index (RFC 7714 section 9).
const RTCP_INDEX_LEN: usize = 4;

pub(super) fn core(data: &[u8]) -> Outcome {
    let mut steps = Steps::new(data);
    let mut rig = Rig::new();
    while !steps.is_over() {
        rig.step(&mut steps);
        rig.drain();
    }
    rig.close();
    Outcome::passed(rig.core.counters().rtp_packets_in > 0)
}

struct Client {
    path: Path,
    /// Keys that the latest `InstallKeys` gave it.
    sender: SrtpSender,
    /// Number of these keys.
    generation: u32,
    /// Of its stream, as published.
    index: u64,
}

struct Rig {
    core: Core,
    now: Time,
    clients: Vec<Client>,
    /// Keys and SSRCs given out: each is new, as the control plane draws them.
    given: u32,
    /// SSRC that a subscription was opened with last.
    sections: [u32; IDS],
    train: Vec<u8>,
    oracle: Oracle,
}

impl Rig {
    fn new() -> Self {
        let limits =
            WorkerLimits { transports: IDS as u32, tracks: IDS as u32, subscriptions: IDS as u32, packets: 96, ..WorkerLimits::default() };
        let client = |i| Client {
            path: Path { socket: 0, remote: SocketAddr::from(([127, 0, 0, 1], 20_000 + 16 * i as u16)) },
            sender: SrtpSender::new(PROFILE, &key(0)),
            generation: 0,
            index: 65_000,
        };
        Self {
            core: Core::new(limits, Duration::from_secs(15)),
            now: Time::from_millis(1),
            clients: (0..IDS).map(client).collect(),
            given: 0,
            sections: [0; IDS],
            train: vec![0; 65_535],
            oracle: Oracle::default(),
        }
    }

    /// One more than what was given out before.
    fn draw(&mut self) -> u32 {
        self.given += 1;
        self.given
    }

    fn step(&mut self, steps: &mut Steps<'_>) {
        let (kind, i) = (steps.byte(), usize::from(steps.byte()) % IDS);
        match kind % 20 {
            // What ends a call comes seldom, or no call would last long enough for a repair.
            0 | 1 | 3 | 5 | 7 if kind < 200 && i % 2 == 0 => self.publish(i, steps),
            0 | 1 | 3 | 5 | 7 if kind < 200 => self.report(i, steps),
            0 => self.open_transport(i),
            1 => self.command(Command::CloseTransport { transport: TransportId(i as u64) }),
            2 => self.check(i, steps.byte()),
            3 => self.install_keys(i),
            4 => self.open_track(i, steps.byte()),
            5 => self.command(Command::CloseTrack { track: TrackId(i as u64) }),
            6 => self.open_subscription(i, steps.byte()),
            7 => self.command(Command::CloseSubscription { subscription: SubscriptionId(i as u64) }),
            8 | 9 => self.forward(i, steps.byte()),
            10 => self.report(i, steps),
            11 => {
                // Bytes of any kind, or a DTLS record around them (RFC 6347 section 4.1).
                let body = steps.take(usize::from(kind) * 2);
                let head = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, (body.len() >> 8) as u8, body.len() as u8];
                let datagram = [if kind & 128 == 0 { &head[..] } else { &[] }, body].concat();
                self.receive(i, datagram);
            }
            12 => {
                self.now = self.now + Duration::from_millis(u64::from(steps.byte()) * u64::from(steps.byte() % 8));
                self.core.handle_timeout(self.now);
            }
            13 => {
                // A handshake record, so that the oracle does not take it for media.
                let datagram = [&[22], steps.take(64)].concat().into();
                self.command(Command::SendDtls { transport: TransportId(i as u64), datagram });
            }
            14 => self.command(Command::Tap { track: TrackId(i as u64), tap: (kind & 128 == 0).then_some(7) }),
            15 => self.connect(i),
            // Media most of the time: a burst, with gaps, repeats and jumps.
            _ => {
                for _ in 0..=kind >> 6 {
                    self.publish(i, steps);
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.core.handle_command(self.now, command);
    }

    /// The whole way of a publisher with a viewer, which random steps would find seldom.
    fn connect(&mut self, i: usize) {
        let viewer = (i + 1) % IDS;
        for who in [i, viewer] {
            self.open_transport(who);
            self.check(who, 0);
            self.install_keys(who);
        }
        self.open_track(i, 0);
        // With RTX every other time.
        self.open_subscription(viewer, viewer as u8 * 16 + (self.given & 1) as u8);
        self.forward(viewer, i as u8);
    }

    // The control plane gives an id once: what has it, goes before.
    fn open_transport(&mut self, i: usize) {
        self.command(Command::CloseTransport { transport: TransportId(i as u64) });
        let rtcp_ssrc = 0x7000_0000 + self.draw();
        self.command(Command::OpenTransport(Box::new(OpenTransport {
            transport: TransportId(i as u64),
            ice: IceCredentials { local_ufrag: format!("ufrag{i}").into(), local_pwd: PASSWORD.into(), remote_ufrag: "remote".into() },
            extensions: ExtensionIds::NONE.with(Extension::TransportCc, TWCC),
            transport_cc: true,
            remb: false,
            reduced_size_rtcp: true,
            rtcp_ssrc,
            cname: "pop".into(),
        })));
    }

    fn check(&mut self, i: usize, how: u8) {
        let username = format!("ufrag{i}:remote");
        let request = BindingRequest {
            transaction: TransactionId([how; 12]),
            username: &username,
            priority: Some(1),
            role: Some(Role::Controlling(1)),
            use_candidate: how & 1 == 0,
        };
        let password = if how & 2 == 0 { PASSWORD } else { "of somebody else" };
        let mut bytes = vec![0; 256];
        let len = stun::write_request(&request, password.as_bytes(), &mut bytes).expect("a check fits");
        bytes.truncate(len);
        // Sometimes from another address; no two clients share one, since the oracle knows a key by its address.
        self.clients[i].path.remote.set_port(20_000 + 16 * i as u16 + u16::from(how >> 4));
        self.receive(i, bytes);
    }

    fn install_keys(&mut self, i: usize) {
        let generation = self.draw();
        let keys = SrtpKeys { profile: PROFILE, local: key(!generation), remote: key(generation) };
        self.command(Command::InstallKeys { transport: TransportId(i as u64), keys: Box::new(keys) });
        self.clients[i].sender = SrtpSender::new(PROFILE, &key(generation));
        self.clients[i].generation = generation;
    }

    fn open_track(&mut self, i: usize, how: u8) {
        self.command(Command::CloseTrack { track: TrackId(i as u64) });
        let transport = TransportId(if how & 3 == 0 { i } else { usize::from(how) % IDS } as u64);
        self.command(Command::OpenTrack(Box::new(OpenTrack {
            track: TrackId(i as u64),
            transport,
            kind: MediaKind::Video,
            ssrc: Some(i as u32),
            rtx_ssrc: None,
            mid: "0".into(),
            layers: Vec::new(),
            order: Vec::new(),
            payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: None }],
            nack: how & 4 == 0,
            pli: how & 8 == 0,
            fir: how & 16 != 0,
        })));
    }

    fn open_subscription(&mut self, i: usize, how: u8) {
        self.command(Command::CloseSubscription { subscription: SubscriptionId(i as u64) });
        let ssrc = 0x5000_0000 + self.draw();
        self.sections[i] = ssrc;
        self.command(Command::OpenSubscription(Box::new(OpenSubscription {
            subscription: SubscriptionId(i as u64),
            transport: TransportId(u64::from(how >> 4) % IDS as u64),
            kind: MediaKind::Video,
            ssrc,
            // Close to a wrap.
            first_sequence: 65_500 + u16::from(how & 15),
            first_timestamp: 5_000,
            rtx_ssrc: (how & 1 == 1).then_some(ssrc + 0x1000_0000),
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        })));
    }

    fn forward(&mut self, i: usize, how: u8) {
        let track = (how < 192).then_some(TrackId(u64::from(how) % IDS as u64));
        let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false }];
        self.command(Command::Forward { subscription: SubscriptionId(i as u64), track, payload_types });
    }

    fn publish(&mut self, i: usize, steps: &mut Steps<'_>) {
        let how = steps.byte();
        let client = &mut self.clients[i];
        client.index = match how {
            0..=199 => client.index + 1,
            200..=219 => client.index + u64::from(how - 198),
            220..=239 => client.index.saturating_sub(u64::from(how - 219)),
            _ => client.index + u64::from(steps.word()) / 2,
        };
        let mut header = [0; 20];
        rtp::write_header(&mut header, how & 1 == 0, 96, client.index as u16, 90 * client.index as u32, i as u32);
        header[0] |= 0x10;
        let [_, .., high, low] = client.index.to_be_bytes();
        header[12..].copy_from_slice(&[0xbe, 0xde, 0, 1, TWCC << 4 | 1, high, low, 0]);
        // One packet in four starts a keyframe (RFC 7741 section 4.3: S bit, then the inverse keyframe bit).
        let mut payload = [0xab; 40];
        (payload[0], payload[1]) = (0x10, u8::from(how & 3 != 0));
        // One payload per index: what a publisher sends twice is the same packet.
        let mut out = vec![0; 200];
        payload[2..10].copy_from_slice(&client.index.to_be_bytes());
        let len = client.sender.protect_rtp(client.index, &header, &payload, &mut out).expect("it fits");
        out.truncate(len);
        if how & 0xf0 == 0x50 {
            let at = usize::from(steps.byte()) % len;
            out[at] ^= steps.byte();
        }
        self.receive(i, out);
    }

    /// A viewer's RTCP: NACKs of what may have been sent, PLIs, BYE.
    fn report(&mut self, i: usize, steps: &mut Steps<'_>) {
        let how = steps.byte();
        // Its own section most of the time.
        let media = self.sections[if how & 8 == 0 { i } else { usize::from(how) % IDS }];
        let newest = self.oracle.newest.get(&(self.clients[i].generation, media)).copied().unwrap_or(65_500);
        let mut out = vec![0; 256];
        let mut writer = RtcpWriter::new(&mut out);
        let sequences = [steps.byte(), steps.byte(), steps.byte()].map(|step| (newest as u16).wrapping_sub(u16::from(step % 32)));
        let written = match how >> 6 {
            0 | 1 => writer.nack(9, media, sequences).map(|writer| writer.len()),
            2 => writer.pli(9, media).map(|writer| writer.len()),
            _ => writer.bye(&[i as u32]).map(|writer| writer.len()),
        };
        let written = written.expect("a small packet fits");
        let len = self.clients[i].sender.protect_rtcp(&mut out, written).expect("it fits");
        out.truncate(len);
        self.receive(i, out);
    }

    fn receive(&mut self, i: usize, mut datagram: Vec<u8>) {
        let before = self.ends();
        self.core.handle_datagram(self.now, self.clients[i].path, &mut datagram);
        assert!(self.ends() > before, "a datagram of {} bytes ended without a counter", datagram.len());
    }

    /// Packets that came to an end that somebody can see.
    fn ends(&self) -> u64 {
        let counters = self.core.counters();
        let taken = counters.rtp_packets_in + counters.rtcp_packets_in + counters.dtls_datagrams_in;
        taken + counters.ice_checks_ok + counters.ice_checks_refused + self.core.drops().iter().sum::<u64>()
    }

    fn drain(&mut self) {
        while let Some(Transmit { path, len, segment }) = self.core.poll_transmit(self.now, &mut self.train) {
            assert!(len > 0 && len <= self.train.len());
            let generation = self.clients.iter().find(|client| client.path == path).map(|client| client.generation);
            for datagram in self.train[..len].chunks(segment.map_or(len, usize::from)) {
                // Who has moved on is not looked at: its key cannot be told by its address.
                if let Some(generation) = generation {
                    self.oracle.see(generation, datagram);
                }
            }
        }
        while self.core.poll_event().is_some() {}
        while self.core.poll_tap().is_some() {}
    }

    fn close(&mut self) {
        for id in 0..IDS as u64 {
            self.command(Command::CloseSubscription { subscription: SubscriptionId(id) });
            self.command(Command::CloseTrack { track: TrackId(id) });
            self.command(Command::CloseTransport { transport: TransportId(id) });
        }
        self.drain();
        assert_eq!(self.core.gauges(), Default::default(), "something is held although all is closed");
    }
}

/// Keys of their number.
fn key(number: u32) -> MasterKey {
    let bytes = number.to_be_bytes();
    MasterKey { key: std::array::from_fn(|i| bytes[i % 4] ^ i as u8), salt: std::array::from_fn(|i| bytes[i % 4].wrapping_add(i as u8)) }
}

/// Everything that was sent under each (key, SSRC, index).
#[derive(Default)]
struct Oracle {
    rtp: HashMap<(u32, u32, u64), Vec<u8>>,
    newest: HashMap<(u32, u32), u64>,
    rtcp: HashMap<(u32, u32, u32), Vec<u8>>,
}

impl Oracle {
    fn see(&mut self, generation: u32, datagram: &[u8]) {
        match demux(datagram) {
            Ok(Protocol::Rtp) => {
                let view = rtp::RtpView::parse(datagram).expect("what we send parses");
                // The rollover counter is not on the wire: the nearest to what was sent before (RFC 3711 section 3.3.1).
                let newest = self.newest.entry((generation, view.ssrc())).or_insert(0x1_0000 + u64::from(view.sequence()));
                let index = extend_sequence(*newest, view.sequence());
                *newest = index.max(*newest);
                let first = self.rtp.entry((generation, view.ssrc(), index)).or_insert_with(|| datagram.to_vec());
                assert!(first == datagram, "SSRC {:#x}, index {index}: two packets", view.ssrc());
            }
            Ok(Protocol::Rtcp) => {
                let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().expect("four bytes"));
                let key = (generation, word(4), word(datagram.len() - RTCP_INDEX_LEN));
                let first = self.rtcp.entry(key).or_insert_with(|| datagram.to_vec());
                assert!(first == datagram, "SRTCP {key:?}: two packets");
            }
            _ => {}
        }
    }
}
