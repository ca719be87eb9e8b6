//! Tracks that cross a link between workers of two nodes: what crosses, what comes back, what is repaired, what is refused.

mod common;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use common::{Client, Packet, Rig, Sent, media_to, open_transport, protect, rtcp_to, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::handover::{Crossing, Ends};
use pop_dataplane::limits::WorkerLimits;
use pop_dataplane::{Counters, Gauges};
use pop_proto::control::{
    Codec, Extension, ExtensionIds, LayerWish, LinkId, LinkKeys, MediaKind, OpenLink, OpenSubscription, OpenTrack, OpenTransport, Path,
    PayloadType, SELF_TEST, SessionBound,
};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{NodeId, SubscriptionId, Time, TrackId, TransportId};

/// The relay socket: there is one media socket.
const RELAY: u16 = 1;
const STEP: Duration = Duration::from_millis(1);
const IDS: ExtensionIds = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::Rid, 2);

/// What the head of a datagram says of its payload.
const MEDIA: [u8; 4] = [0, 1, 2, 3];
const REPAIR: u8 = 1;
const ASK: u8 = 5;
const CLOCK: u8 = 6;
const PARITY: u8 = 10;

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 11_000))
}

/// Keys of what `from` sends to `to`.
fn keys(from: usize, to: usize) -> [u8; 28] {
    std::array::from_fn(|at| (from * 50 + to * 20 + at) as u8)
}

fn open(node: usize, other: usize, version: u8) -> Command {
    Command::OpenLink(Box::new(OpenLink {
        link: LinkId::new(other as u8, 0),
        own: NodeId(node as u64),
        node: NodeId(other as u64),
        remote: address(other),
        version,
        remote_link: LinkId::new(node as u8, 0),
        keys: LinkKeys { send: keys(node, other), receive: keys(other, node) },
        is_abroad: false,
        generation: 0,
        playout: Duration::from_millis(150),
    }))
}

fn node(node: usize) -> Rig {
    let mut rig = Rig { core: Core::new(WorkerLimits { links: 4, ..common::limits() }, common::CONSENT), ..Rig::new() };
    rig.core.set_media_sockets(1);
    rig.core.set_relay_sockets(&[address(node)]);
    rig
}

/// A datagram on the wire.
struct Wired {
    from: usize,
    kind: u8,
    layer: u8,
    len: usize,
}

/// A way from node 1 to node 2 that takes so much at once.
struct Bottleneck {
    rate_bps: u64,
    /// What it holds, as time.
    queue: Duration,
    free_at: Time,
    on_the_way: VecDeque<(Time, Vec<u8>)>,
}

/// Two nodes of one worker each, 1 and 2, and the link between them.
struct Mesh {
    /// Node 1, which has the publishers.
    origin: Rig,
    /// Node 2, which has the viewers.
    edge: Rig,
    /// Another worker of node 2, and the lanes between the two.
    other: Rig,
    edge_ends: Ends,
    other_ends: Ends,
    /// What crossed, lost datagrams included.
    wire: Vec<Wired>,
    /// Of the media datagrams of node 1 each so many-th is lost; 0: none.
    lose: usize,
    media: usize,
    bottleneck: Option<Bottleneck>,
    /// How long that way takes without a queue.
    way: Duration,
    /// Of the schema that both speak.
    version: u8,
}

impl Mesh {
    fn new() -> Mesh {
        Mesh::of_version(1)
    }

    fn of_version(version: u8) -> Mesh {
        let crossing = Crossing::new(2);
        let (edge_ends, other_ends) = (crossing.ends(0), crossing.ends(1));
        let (origin, edge, other) = (node(1), node(2), node(3));
        let mut mesh = Mesh {
            origin,
            edge,
            other,
            edge_ends,
            other_ends,
            wire: Vec::new(),
            lose: 0,
            media: 0,
            bottleneck: None,
            way: Duration::from_millis(10),
            version,
        };
        mesh.origin.command(open(1, 2, version));
        mesh.edge.command(open(2, 1, version));
        mesh.pass(Duration::from_millis(50));
        mesh
    }

    /// Node 2 takes a track of node 1.
    fn relay(&mut self, track: OpenTrack, extensions: ExtensionIds) {
        let alias = 100 + track.track.0 as u16;
        self.origin.command(Command::ExportToLink { track: track.track, link: LinkId::new(2, 0), alias, bound: None, on: true });
        self.edge.command(Command::OpenRemoteTrack { open: Box::new(track), extensions, link: LinkId::new(1, 0), alias });
    }

    /// What either sends crosses until nothing is left; returns what went to clients of each.
    fn cross(&mut self) -> [Vec<Sent>; 2] {
        let mut to_clients = [Vec::new(), Vec::new()];
        loop {
            self.edge_ends.send(&mut self.edge.core);
            while self.other_ends.receive(self.other.now, &mut self.other.core) {}
            self.other_ends.send(&mut self.other.core);
            while self.edge_ends.receive(self.edge.now, &mut self.edge.core) {}
            let (mut crossed, sent) = (false, [self.origin.sent(), self.edge.sent()]);
            for (node, sent) in [1, 2].into_iter().zip(sent) {
                for sent in sent {
                    if sent.path.socket != RELAY {
                        to_clients[node - 1].push(sent);
                        continue;
                    }
                    assert_eq!(sent.path.remote, address(3 - node));
                    crossed = true;
                    self.carry(node, sent.bytes);
                }
            }
            if !crossed {
                return to_clients;
            }
        }
    }

    fn carry(&mut self, from: usize, mut bytes: Vec<u8>) {
        assert_eq!(bytes[0], self.version);
        let kind = bytes[1] & 0x0f;
        self.wire.push(Wired { from, kind, layer: bytes[6], len: bytes.len() });
        if from == 1 && MEDIA.contains(&kind) {
            self.media += 1;
            if self.lose != 0 && self.media.is_multiple_of(self.lose) {
                return;
            }
        }
        let now = self.origin.now;
        if let Some(way) = self.bottleneck.as_mut().filter(|_| from == 1) {
            let took = Duration::from_nanos((bytes.len() as u64 + 28) * 8_000_000_000 / way.rate_bps);
            let left = way.free_at.max(now) + took;
            if left.since(now) <= way.queue {
                way.free_at = left;
                way.on_the_way.push_back((left + self.way, bytes));
            }
            return;
        }
        let to = if from == 1 { &mut self.edge } else { &mut self.origin };
        to.core.handle_datagram(to.now, Path { socket: RELAY, remote: address(from) }, &mut bytes);
    }

    /// A datagram of a publisher's reaches node 1; returns what went to clients of each.
    fn receive(&mut self, from: &Client, mut datagram: Vec<u8>) -> [Vec<Sent>; 2] {
        self.origin.core.handle_datagram(self.origin.now, from.path, &mut datagram);
        self.cross()
    }

    /// Time passes; returns what went to clients of each.
    fn pass(&mut self, duration: Duration) -> [Vec<Sent>; 2] {
        let (end, mut sent) = (self.origin.now + duration, [Vec::new(), Vec::new()]);
        while self.origin.now < end {
            for rig in [&mut self.origin, &mut self.edge, &mut self.other] {
                rig.now = rig.now + STEP;
                rig.core.handle_timeout(rig.now);
            }
            if let Some(way) = &mut self.bottleneck {
                while way.on_the_way.front().is_some_and(|(due, _)| *due <= self.origin.now) {
                    let Some((_, mut bytes)) = way.on_the_way.pop_front() else { break };
                    self.edge.core.handle_datagram(self.edge.now, Path { socket: RELAY, remote: address(1) }, &mut bytes);
                }
            }
            let step = self.cross();
            sent.iter_mut().zip(step).for_each(|(sent, step)| sent.extend(step));
        }
        sent
    }

    /// Datagrams of a kind from a node since the last call of [`Mesh::forget`].
    fn count(&self, from: usize, kind: u8) -> usize {
        self.wire.iter().filter(|wired| wired.from == from && wired.kind == kind).count()
    }

    fn forget(&mut self) {
        self.wire.clear();
    }

    fn origin_counters(&self) -> Counters {
        *self.origin.core.counters()
    }
}

/// A publisher of one VP8 track on node 1, which node 2 takes.
fn video() -> (Mesh, Client) {
    let mut mesh = Mesh::new();
    let publisher = mesh.origin.publisher(1);
    mesh.relay(Rig::track(1), open_transport(1).extensions);
    (mesh, publisher)
}

/// A viewer on node 2 whose ask has crossed.
fn viewer(mesh: &mut Mesh, id: u64) -> Client {
    let viewer = mesh.edge.viewer(id, 1);
    mesh.pass(Duration::from_millis(20));
    viewer
}

/// A publisher of two simulcast layers on node 1, which node 2 takes.
fn simulcast() -> (Mesh, Client) {
    simulcast_over(Mesh::new())
}

fn simulcast_over(mut mesh: Mesh) -> (Mesh, Client) {
    let publisher = mesh.origin.connect_with(OpenTransport { extensions: IDS, ..open_transport(1) });
    let track = OpenTrack { ssrc: None, layers: vec!["a".into(), "b".into()], order: vec![0, 1], ..Rig::track(1) };
    mesh.origin.command(Command::OpenTrack(Box::new(track.clone())));
    mesh.relay(track, IDS);
    (mesh, publisher)
}

/// One packet of a layer; its SSRC is 50 and the layer.
fn of_layer(publisher: &Client, layer: usize, index: u64, keyframe: bool) -> Vec<u8> {
    let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, [b"a", b"b"][layer])];
    let payload = vp8(keyframe, 100 + 400 * layer);
    let (ssrc, timestamp) = (50 + layer as u32, 3_000 * index as u32);
    protect(publisher, &Packet { ssrc, payload_type: 96, index, timestamp, elements: &elements, payload: &payload })
}

fn wish(subscription: u64, spatial_max: u8) -> Command {
    Command::Wish { subscription: SubscriptionId(subscription), wish: LayerWish { spatial_max, ..LayerWish::default() } }
}

/// Frames of both layers, each 30 ms; a keyframe each 20. Returns the lengths of the payloads that reached the viewer.
fn run_layers(mesh: &mut Mesh, publisher: &Client, viewer: &mut Client, frames: std::ops::Range<u64>) -> Vec<usize> {
    let mut lens = Vec::new();
    for index in frames {
        for layer in 0..2 {
            let [_, sent] = mesh.receive(publisher, of_layer(publisher, layer, index, index.is_multiple_of(20)));
            lens.extend(media_to(viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
        }
        let [_, sent] = mesh.pass(Duration::from_millis(30));
        lens.extend(media_to(viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
    }
    lens
}

#[test]
fn a_packet_crosses_once_and_reaches_every_viewer_of_the_other_node_as_it_is() {
    let (mut mesh, publisher) = video();
    let mut far: Vec<_> = (3..5).map(|id| mesh.edge.viewer(id, 1)).collect();
    mesh.pass(Duration::from_millis(20));
    let mut near = mesh.origin.viewer(2, 1);
    mesh.forget();
    for index in 0..100 {
        let payload = [&vp8(index == 0, 500)[..], &[index as u8]].concat();
        let [origin, edge] = mesh.receive(&publisher, publisher.packet(1, index, &payload));
        for (viewer, sent) in far.iter_mut().map(|viewer| (viewer, &edge)).chain([(&mut near, &origin)]) {
            let media = media_to(viewer, sent);
            assert_eq!(media.len(), 1, "packet {index}");
            assert_eq!((media[0].0, &media[0].2), (100 + index, &payload));
        }
        mesh.pass(Duration::from_millis(5));
    }
    assert_eq!(mesh.count(1, 0), 100, "one copy for two viewers");
    let (origin, edge) = (mesh.origin.core.counters(), mesh.edge.core.counters());
    assert_eq!((origin.relay_packets_out, edge.relay_packets_in, edge.rtp_packets_out, edge.rtp_packets_in), (100, 100, 200, 0));
    assert_eq!(origin.relay_media_bytes_out, edge.relay_media_bytes_in);
    let bytes = |from: usize| mesh.wire.iter().filter(|wired| wired.from == from).map(|wired| wired.len as u64).sum::<u64>();
    assert!(origin.relay_bytes_out >= bytes(1) && edge.relay_bytes_in == origin.relay_bytes_out, "nothing was lost: {origin:?}");
    assert_eq!((edge.relay_datagrams_in, edge.relay_datagrams_out), (origin.relay_datagrams_out, origin.relay_datagrams_in));
    let gauges = mesh.edge.core.gauges();
    assert_eq!((gauges.tracks, gauges.remotes, gauges.links), (0, 1, 1));
    mesh.pass(Duration::from_secs(2));
    let events = mesh.edge.events();
    let of_track = |event: &&Event| matches!(event, Event::TrackStarted { .. } | Event::TrackStats { .. } | Event::AudioLevel { .. });
    assert_eq!(events.iter().filter(of_track).count(), 0, "its origin tells of the track");
    let mut stats = events.iter().filter_map(|event| if let Event::LinkStats { link, stats } = event { Some((link, stats)) } else { None });
    let (link, stats) = stats.next_back().expect("once a second");
    assert_eq!((*link, stats.lost, stats.refused), (LinkId::new(1, 0), 0, 0), "{stats:?}");
    assert!(stats.media_bytes_in >= 50_000 && stats.rtt_us > 0, "{stats:?}");
}

#[test]
fn a_track_that_another_node_names_as_the_nodes_own_test_does_not_close_it() {
    let mut mesh = Mesh::new();
    let tester = mesh.edge.connect(1);
    mesh.edge.command(Command::OpenTrack(Box::new(OpenTrack { track: TrackId(SELF_TEST), ..Rig::track(1) })));
    let mut back = mesh.edge.viewer(2, SELF_TEST);
    mesh.edge.sent();
    let hostile = Box::new(OpenTrack { track: TrackId(SELF_TEST), ..Rig::track(7) });
    mesh.edge.command(Command::OpenRemoteTrack { open: hostile, extensions: IDS, link: LinkId::new(1, 0), alias: 9 });
    let sent = mesh.edge.exchange(tester.path, tester.packet(1, 1, &vp8(true, 100)));
    assert_eq!(media_to(&mut back, &sent).len(), 1);
    assert_eq!(mesh.edge.core.gauges().remotes, 0);
}

#[test]
fn packets_of_one_turn_leave_over_a_link_as_one_train() {
    let (mut mesh, publisher) = video();
    let _viewer = viewer(&mut mesh, 2);
    for index in 0..40 {
        let mut packet = publisher.packet(1, index, &vp8(index == 0, 900));
        mesh.origin.core.handle_datagram(mesh.origin.now, publisher.path, &mut packet);
    }
    let sent = mesh.origin.sent();
    let trains: Vec<_> = sent.iter().filter(|sent| sent.path.socket == RELAY && sent.train > 1).map(|sent| sent.train).collect();
    assert_eq!(trains, [40; 40]);
}

#[test]
fn before_anybody_watches_and_a_second_after_nobody_does_not_a_byte_of_a_track_crosses() {
    let (mut mesh, publisher) = video();
    let mut index = 0;
    let mut run = |mesh: &mut Mesh, duration: Duration| {
        let end = mesh.origin.now + duration;
        while mesh.origin.now < end {
            mesh.receive(&publisher, publisher.packet(1, index, &vp8(index.is_multiple_of(50), 500)));
            mesh.pass(Duration::from_millis(10));
            index += 1;
        }
    };
    let of_tracks =
        |mesh: &Mesh| mesh.wire.iter().filter(|wired| MEDIA.contains(&wired.kind) || [ASK, CLOCK].contains(&wired.kind)).count();
    mesh.forget();
    run(&mut mesh, Duration::from_secs(3));
    assert_eq!(of_tracks(&mesh), 0);
    let viewers = [viewer(&mut mesh, 2), viewer(&mut mesh, 3)];
    run(&mut mesh, Duration::from_secs(1));
    assert!(of_tracks(&mesh) > 90);
    mesh.edge.command(Command::CloseSubscription { subscription: SubscriptionId(viewers[0].id) });
    mesh.forget();
    run(&mut mesh, Duration::from_secs(2));
    assert!(of_tracks(&mesh) > 190, "one still watches");
    mesh.edge.forward(viewers[1].id, None);
    run(&mut mesh, Duration::from_secs(1));
    mesh.forget();
    run(&mut mesh, Duration::from_secs(3));
    assert_eq!(of_tracks(&mesh), 0);
}

#[test]
fn an_ask_that_the_link_lost_is_told_again() {
    let (mut mesh, publisher) = video();
    let mut viewer = mesh.edge.viewer(2, 1);
    // Its first asks go nowhere.
    for _ in 0..50 {
        mesh.edge.now = mesh.edge.now + STEP;
        mesh.edge.core.handle_timeout(mesh.edge.now);
        mesh.edge.sent();
    }
    mesh.pass(Duration::from_millis(1_100));
    let [_, edge] = mesh.receive(&publisher, publisher.packet(1, 0, &vp8(true, 500)));
    assert_eq!(media_to(&mut viewer, &edge).len(), 1);
}

#[test]
fn only_the_layer_that_is_watched_crosses_and_another_when_that_is_wished() {
    let (mut mesh, publisher) = simulcast();
    let mut viewer = mesh.edge.viewer(2, 1);
    mesh.edge.command(wish(2, 0));
    run_layers(&mut mesh, &publisher, &mut viewer, 0..60);
    mesh.forget();
    let lens = run_layers(&mut mesh, &publisher, &mut viewer, 60..120);
    assert!(lens.len() >= 60 && lens.iter().all(|len| *len == 100), "{lens:?}");
    let layers = |mesh: &Mesh, layer: u8| mesh.wire.iter().filter(|w| w.from == 1 && w.kind == 0 && w.layer == layer).count();
    assert_eq!((layers(&mesh, 0), layers(&mesh, 1)), (60, 0));
    // The far side knows that the upper layer comes, though nothing of it crossed.
    mesh.edge.command(wish(2, 1));
    run_layers(&mut mesh, &publisher, &mut viewer, 120..180);
    mesh.forget();
    let lens = run_layers(&mut mesh, &publisher, &mut viewer, 180..240);
    assert!(lens.len() >= 60 && lens.iter().all(|len| *len == 500), "{lens:?}");
    assert_eq!((layers(&mesh, 0), layers(&mesh, 1)), (0, 60));
    // A layer that pauses at its publisher gives way.
    let mut lens = Vec::new();
    for index in 240..300 {
        let [_, sent] = mesh.receive(&publisher, of_layer(&publisher, 0, index, index.is_multiple_of(20)));
        lens.extend(media_to(&mut viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
        mesh.pass(Duration::from_millis(30));
    }
    assert!(lens.iter().filter(|len| **len == 100).count() > 15, "{lens:?}");
}

#[test]
fn with_a_node_of_the_version_before_layers_repairs_and_keyframes_are_the_same() {
    let (mut mesh, publisher) = simulcast_over(Mesh::of_version(0));
    let mut viewer = viewer(&mut mesh, 2);
    let lens = run_layers(&mut mesh, &publisher, &mut viewer, 0..80);
    assert!(lens.iter().filter(|len| **len == 500).count() > 50, "{lens:?}");
    mesh.edge.command(wish(2, 0));
    mesh.lose = 10;
    let lens = run_layers(&mut mesh, &publisher, &mut viewer, 80..160);
    mesh.lose = 0;
    let lens = [lens, run_layers(&mut mesh, &publisher, &mut viewer, 160..170)].concat();
    // From the next keyframe on each packet of the lower layer, the lost ones too.
    let low = lens.iter().filter(|len| **len == 100).count();
    assert!(low >= 60 && mesh.count(1, REPAIR) >= 5, "{low} packets, {} repairs", mesh.count(1, REPAIR));
    assert_eq!(mesh.edge.drops(DropReason::RelayPayload) + mesh.origin.drops(DropReason::RelayPayload), 0);
}

#[test]
fn on_a_link_that_cannot_carry_all_the_upper_layers_fall_first_and_come_back_and_audio_stays() {
    let (mut mesh, publisher) = simulcast();
    let speaker = mesh.origin.connect(20);
    let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
    let track = OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(20) };
    mesh.origin.command(Command::OpenTrack(Box::new(track.clone())));
    mesh.relay(track, open_transport(20).extensions);
    let mut viewer = mesh.edge.viewer(2, 1);
    let open = OpenSubscription { kind: MediaKind::Audio, transport: TransportId(2), ..Rig::subscription(20) };
    mesh.edge.command(Command::OpenSubscription(Box::new(open)));
    mesh.edge.forward(20, Some(20));
    let (mut index, mut at) = (0, 0);
    // Lengths of what reaches the viewer in so many seconds: audio has 60 bytes.
    let mut run = |mesh: &mut Mesh, seconds: u64| {
        let mut lens = Vec::new();
        for frame in 0..seconds * 33 {
            if frame % 33 == 0 {
                // It consents.
                mesh.edge.receive(&viewer, viewer.check(common::PWD));
            }
            for layer in 0..2 {
                let [_, sent] = mesh.receive(&publisher, of_layer(&publisher, layer, index, index.is_multiple_of(20)));
                lens.extend(media_to(&mut viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
            }
            index += 1;
            for _ in 0..3 {
                let [_, sent] = mesh.receive(&speaker, speaker.packet(20, at, &[7; 60]));
                lens.extend(media_to(&mut viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
                let [_, sent] = mesh.pass(Duration::from_millis(10));
                lens.extend(media_to(&mut viewer, &sent).iter().map(|(_, _, payload)| payload.len()));
                at += 1;
            }
        }
        lens
    };
    let count = |lens: &[usize], len: usize| lens.iter().filter(|other| **other == len).count();
    run(&mut mesh, 5);
    assert!(count(&run(&mut mesh, 2), 500) >= 60);
    mesh.lose = 4;
    let lens = run(&mut mesh, 40);
    assert!(count(&lens, 100) > 20, "the lower layer first: {}", count(&lens, 100));
    let lens = run(&mut mesh, 3);
    assert_eq!((count(&lens, 500), count(&lens, 100)), (0, 0), "then none");
    assert!(count(&lens, 60) > 290, "audio stays: {}", count(&lens, 60));
    assert!(mesh.origin.drops(DropReason::RelayCongested) > 100);
    mesh.lose = 0;
    let lens = run(&mut mesh, 40);
    assert!(count(&lens, 500) > 300, "and all comes back: {}", count(&lens, 500));
}

/// A camera of three layers, of 0.5, 1.5 and 4 Mb/s, and a voice, on node 1; on node 2 somebody for each layer, who hear the voice.
struct Crowded {
    mesh: Mesh,
    camera: Client,
    voice: Client,
    viewers: Vec<Client>,
    frame: u64,
    numbers: [u64; 3],
    spoken: u64,
    /// What was spoken that the first viewer has heard, and the longest that it took.
    heard: HashSet<u64>,
    late_max: Duration,
    spoken_at: Vec<Time>,
    /// Bytes that each viewer got since the last [`Crowded::run`].
    got: [usize; 3],
}

impl Crowded {
    const FRAME_LENS: [usize; 3] = [2_080, 6_250, 16_600];

    fn new() -> Crowded {
        Crowded::of_version(1)
    }

    fn of_version(version: u8) -> Crowded {
        let mut mesh = Mesh::of_version(version);
        let camera = mesh.origin.connect_with(OpenTransport { extensions: IDS, ..open_transport(1) });
        let layers = ["a", "b", "c"].map(Box::from).to_vec();
        let track = OpenTrack { ssrc: None, layers, order: vec![0, 1, 2], ..Rig::track(1) };
        mesh.origin.command(Command::OpenTrack(Box::new(track.clone())));
        mesh.relay(track, IDS);
        let voice = mesh.origin.connect(20);
        let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
        let track = OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(20) };
        mesh.origin.command(Command::OpenTrack(Box::new(track.clone())));
        mesh.relay(track, open_transport(20).extensions);
        let viewers = (2..5).map(|id| {
            let viewer = mesh.edge.viewer(id, 1);
            mesh.edge.command(wish(id, 4 - id as u8));
            viewer
        });
        let viewers = viewers.collect();
        let open = OpenSubscription { kind: MediaKind::Audio, transport: TransportId(2), ..Rig::subscription(20) };
        mesh.edge.command(Command::OpenSubscription(Box::new(open)));
        mesh.edge.forward(20, Some(20));
        let (heard, spoken_at) = Default::default();
        Crowded {
            mesh,
            camera,
            voice,
            viewers,
            frame: 0,
            numbers: [0; 3],
            spoken: 0,
            heard,
            late_max: Duration::ZERO,
            spoken_at,
            got: [0; 3],
        }
    }

    fn narrow(&mut self, rate_bps: u64) {
        let (queue, free_at) = (Duration::from_millis(200), Time::ZERO);
        self.mesh.bottleneck = Some(Bottleneck { rate_bps, queue, free_at, on_the_way: VecDeque::new() });
    }

    /// So many seconds pass; returns what each viewer got in them, in kb/s.
    fn run(&mut self, seconds: u64) -> [u64; 3] {
        self.got = [0; 3];
        for step in 0..seconds * 100 {
            if step % 100 == 0 {
                for viewer in &self.viewers {
                    self.mesh.edge.receive(viewer, viewer.check(common::PWD));
                }
                self.mesh.edge.sent();
            }
            if step % 3 == 0 {
                self.film();
            }
            if step % 2 == 0 {
                let payload = [&self.spoken.to_le_bytes()[..], &[7; 60]].concat();
                let packet = self.voice.packet(20, self.spoken, &payload);
                (self.spoken, self.spoken_at) = (self.spoken + 1, [&self.spoken_at[..], &[self.mesh.origin.now]].concat());
                let [_, sent] = self.mesh.receive(&self.voice, packet);
                self.take(&sent);
            }
            for _ in 0..10 {
                let [_, sent] = self.mesh.pass(STEP);
                self.take(&sent);
            }
        }
        self.got.map(|got| (got * 8) as u64 / 1_000 / seconds.max(1))
    }

    /// A frame of each layer; each sixtieth is a keyframe and four times as long.
    fn film(&mut self) {
        let keyframe = self.frame.is_multiple_of(60);
        for layer in 0..3 {
            let mut len = Self::FRAME_LENS[layer] * if keyframe { 4 } else { 1 };
            let mut is_first = true;
            while len > 0 {
                let of_packet = len.clamp(20, 1_100);
                let mut payload = vp8(keyframe, of_packet);
                payload[0] = if is_first { 0x10 } else { 0 };
                let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, [b"a", b"b", b"c"][layer])];
                let (ssrc, index, timestamp) = (50 + layer as u32, self.numbers[layer], 2_700 * self.frame as u32);
                let packet =
                    protect(&self.camera, &Packet { ssrc, payload_type: 96, index, timestamp, elements: &elements, payload: &payload });
                let [_, sent] = self.mesh.receive(&self.camera, packet);
                self.take(&sent);
                self.numbers[layer] += 1;
                (len, is_first) = (len.saturating_sub(of_packet), false);
            }
        }
        self.frame += 1;
    }

    fn take(&mut self, sent: &[Sent]) {
        let now = self.mesh.edge.now;
        for (viewer, got) in self.viewers.iter_mut().zip(&mut self.got) {
            for (_, _, payload) in media_to(viewer, sent) {
                if payload.len() == 68 {
                    let spoken = u64::from_le_bytes(payload[..8].try_into().unwrap());
                    assert!(self.heard.insert(spoken), "it came twice");
                    self.late_max = self.late_max.max(now.since(self.spoken_at[spoken as usize]));
                } else {
                    *got += payload.len();
                }
            }
        }
    }

    fn limit(&mut self) -> u64 {
        let stats = |event: &Event| if let Event::LinkStats { stats, .. } = event { Some(*stats) } else { None };
        self.mesh.origin.events().iter().rev().find_map(stats).expect("once a second").limit
    }
}

#[test]
fn before_a_bottleneck_video_falls_to_what_fits_at_once_and_audio_is_whole_and_in_time() {
    let mut crowded = Crowded::new();
    let got = crowded.run(8);
    assert!(got[0] > 3_500 && got[1] > 1_300 && got[2] > 450, "{got:?}");
    assert_eq!(crowded.limit(), 0);
    crowded.narrow(2_000_000);
    let got = crowded.run(1);
    assert!(got[2] > 300, "the lowest layer goes on: {got:?}");
    assert!(crowded.late_max < Duration::from_millis(600), "of what is repaired: {:?}", crowded.late_max);
    crowded.late_max = Duration::ZERO;
    let got = crowded.run(60);
    assert!(got.iter().all(|got| (500..700).contains(got)), "what fits for all: {got:?}");
    assert!((1_000_000..2_500_000).contains(&crowded.limit()));
    assert!(crowded.late_max < Duration::from_millis(200), "each try of more is short: {:?}", crowded.late_max);
    let lost = crowded.spoken - crowded.heard.len() as u64;
    assert!(lost * 1_000 <= crowded.spoken, "{lost} of {}", crowded.spoken);
    assert!(crowded.mesh.origin.drops(DropReason::RelayCongested) > 100);
    crowded.mesh.bottleneck = None;
    crowded.run(45);
    let got = crowded.run(8);
    assert!(got[0] > 3_500 && got[1] > 1_300 && got[2] > 450, "all comes back: {got:?}");
    crowded.run(30);
    assert_eq!(crowded.limit(), 0);
    let lost = crowded.spoken - crowded.heard.len() as u64;
    assert!(lost * 1_000 <= crowded.spoken, "{lost} of {}", crowded.spoken);
}

/// Bytes of datagrams of node 1 since the last [`Mesh::forget`]: of parity, and of all.
fn parity_of(mesh: &Mesh) -> [usize; 2] {
    [[PARITY].as_slice(), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, PARITY]]
        .map(|kinds| mesh.wire.iter().filter(|wired| wired.from == 1 && kinds.contains(&wired.kind)).map(|wired| wired.len).sum())
}

#[test]
fn over_a_long_way_parity_brings_back_for_viewers_what_the_way_loses() {
    let [with, without] = [1, 0].map(|version| {
        let mut crowded = Crowded::of_version(version);
        let (rate_bps, queue, on_the_way) = (u64::MAX / 16, Duration::from_secs(1), VecDeque::new());
        crowded.mesh.bottleneck = Some(Bottleneck { rate_bps, queue, free_at: Time::ZERO, on_the_way });
        crowded.mesh.way = Duration::from_millis(220);
        crowded.mesh.lose = 23;
        crowded.run(20);
        crowded.mesh.forget();
        let (spoken, heard) = (crowded.spoken, crowded.heard.len());
        crowded.late_max = Duration::ZERO;
        let got = crowded.run(10);
        let [parity, all] = parity_of(&crowded.mesh);
        // Those of the last 220 ms are on their way, as they were before.
        let (spoken, heard) = (crowded.spoken - spoken, crowded.heard.len() - heard);
        println!(
            "version {version}: {heard} of {spoken} heard, {:?} late at most, {got:?} kb/s, {parity} of {all} bytes are parity",
            crowded.late_max
        );
        if version == 1 {
            assert!(crowded.late_max < Duration::from_millis(220 + 80), "{:?}", crowded.late_max);
            assert!(parity * 100 > 5 * all && parity * 100 < 35 * all, "{parity} of {all}");
        } else {
            assert_eq!(parity, 0, "the version before knows none");
        }
        (spoken, heard)
    });
    assert!(with.1 as u64 + 2 >= with.0, "{with:?}");
    assert!((without.1 as u64) < without.0 * 98 / 100, "{without:?}");
}

#[test]
fn where_a_long_way_does_not_carry_all_audio_has_parity_and_video_gives_up_its_own_and_no_layer() {
    for rate_bps in [1_500_000, 3_000_000] {
        let [with, without] = [1, 0].map(|version| {
            let mut crowded = Crowded::of_version(version);
            crowded.narrow(rate_bps);
            crowded.mesh.way = Duration::from_millis(220);
            crowded.mesh.lose = 40;
            crowded.run(60);
            crowded.mesh.forget();
            let (spoken, heard) = (crowded.spoken, crowded.heard.len());
            let got = crowded.run(30);
            let limit = crowded.limit();
            let [parity, all] = parity_of(&crowded.mesh);
            let (spoken, heard) = (crowded.spoken - spoken, crowded.heard.len() - heard);
            println!("{rate_bps} b/s, version {version}: {heard} of {spoken} heard, {got:?} kb/s, {parity} of {all} bytes are parity, limit {limit}");
            assert!(version == 0 || parity > 0, "audio has it");
            (got, heard)
        });
        assert!(with.1 > without.1, "{with:?} {without:?}");
        let [with, without] = [with, without].map(|(got, _)| got.iter().sum::<u64>());
        assert!(with * 100 >= without * 90, "video at {rate_bps} b/s: {with} kb/s, without parity {without}");
    }
}

#[test]
fn a_way_that_is_longer_from_now_on_is_no_bottleneck() {
    let mut crowded = Crowded::new();
    crowded.run(5);
    // 80 ms more than before, and no end of room.
    let (rate_bps, queue, on_the_way) = (u64::MAX / 16, Duration::from_secs(1), VecDeque::new());
    crowded.mesh.bottleneck = Some(Bottleneck { rate_bps, queue, free_at: Time::ZERO, on_the_way });
    crowded.mesh.way = Duration::from_millis(80);
    crowded.run(5);
    let got = crowded.run(8);
    assert!(got[0] > 3_500 && got[1] > 1_300 && got[2] > 450, "{got:?}");
    assert_eq!(crowded.limit(), 0);
}

#[test]
fn a_link_that_carries_too_little_to_be_judged_is_not_kept_from_carrying_more() {
    let (mut mesh, publisher) = simulcast();
    let mut viewer = mesh.edge.viewer(2, 1);
    let mut index = 0;
    let mut run = |mesh: &mut Mesh, seconds: u64| {
        let mut count = 0;
        for frame in 0..seconds * 33 {
            if frame % 33 == 0 {
                mesh.edge.receive(&viewer, viewer.check(common::PWD));
            }
            for layer in 0..2 {
                let [_, sent] = mesh.receive(&publisher, of_layer(&publisher, layer, index, index.is_multiple_of(20)));
                count += media_to(&mut viewer, &sent).len();
            }
            index += 1;
            let [_, sent] = mesh.pass(Duration::from_millis(30));
            count += media_to(&mut viewer, &sent).len();
        }
        count
    };
    run(&mut mesh, 5);
    mesh.lose = 3;
    run(&mut mesh, 40);
    assert!(mesh.origin.drops(DropReason::RelayCongested) > 0);
    mesh.lose = 0;
    // No sound goes over it, so a second brings one datagram or ten: no share of them is known for a minute.
    run(&mut mesh, 25);
    assert!(run(&mut mesh, 3) > 80, "the picture is back");
}

#[test]
fn a_layer_that_was_unwatched_for_long_goes_on_wherever_its_numbers_are() {
    let (mut mesh, publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    let [_, edge] = mesh.receive(&publisher, publisher.packet(1, 0, &vp8(true, 500)));
    assert_eq!(media_to(&mut viewer, &edge).len(), 1);
    mesh.edge.forward(2, None);
    for index in [25_000, 50_000] {
        mesh.receive(&publisher, publisher.packet(1, index, &vp8(true, 500)));
        mesh.pass(Duration::from_millis(1_500));
    }
    mesh.edge.forward(2, Some(1));
    mesh.pass(Duration::from_millis(100));
    // Nearer to the number before when counted backwards.
    for index in 60_000..60_010 {
        let [_, edge] = mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 60_000, 500)));
        assert_eq!(media_to(&mut viewer, &edge).len(), 1, "{index}");
    }
}

#[test]
fn a_nack_is_answered_by_the_viewers_node() {
    let (mut mesh, publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    for index in 0..20 {
        let [_, sent] = mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
        media_to(&mut viewer, &sent);
    }
    mesh.forget();
    let nack = viewer.rtcp(|c| c.nack(0, 2, [110]));
    let sent = mesh.edge.exchange(viewer.path, nack);
    assert_eq!(sent.iter().filter(|sent| sent.path == viewer.path).count(), 1);
    mesh.pass(Duration::from_millis(50));
    assert_eq!((mesh.edge.core.counters().retransmitted_packets, mesh.count(1, REPAIR)), (1, 0));
}

#[test]
fn what_a_link_loses_is_repaired_and_each_viewer_gets_everything_once() {
    let (mut mesh, mut publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    mesh.lose = 10;
    let mut seen = Vec::new();
    for index in 0..500 {
        let [_, edge] = mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 700)));
        seen.extend(media_to(&mut viewer, &edge).iter().map(|(index, _, _)| *index));
        let [origin, edge] = mesh.pass(Duration::from_millis(3));
        seen.extend(media_to(&mut viewer, &edge).iter().map(|(index, _, _)| *index));
        let compounds = rtcp_to(&mut publisher, &origin);
        let is_nack = |packet: RtcpPacket<'_>| matches!(packet, RtcpPacket::Nack { .. });
        assert!(!compounds.iter().flat_map(|compound| RtcpReader::new(compound).unwrap()).any(is_nack), "the publisher is not asked");
    }
    let [_, edge] = mesh.pass(Duration::from_millis(300));
    seen.extend(media_to(&mut viewer, &edge).iter().map(|(index, _, _)| *index));
    seen.sort_unstable();
    assert_eq!(seen, (100..600).collect::<Vec<_>>());
    let repairs = mesh.origin_counters().relay_repairs_out;
    assert!((40..200).contains(&repairs), "{repairs}");
}

#[test]
fn keyframes_that_viewers_of_a_node_ask_for_cross_as_one_ask_and_are_asked_for_once() {
    let (mut mesh, publisher) = video();
    let mut far: Vec<_> = (3..8).map(|id| mesh.edge.viewer(id, 1)).collect();
    mesh.pass(Duration::from_millis(20));
    for index in 0..30 {
        mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
    }
    mesh.pass(Duration::from_secs(1));
    let before = mesh.origin_counters().rtcp_pli_out;
    mesh.pass(Duration::from_millis(20));
    mesh.forget();
    for viewer in &mut far {
        let (path, ssrc) = (viewer.path, viewer.id as u32);
        let pli = viewer.rtcp(|c| c.pli(0, ssrc));
        mesh.edge.exchange(path, pli);
    }
    mesh.pass(Duration::from_millis(100));
    assert_eq!(mesh.origin_counters().rtcp_pli_out - before, 1);
    assert!((1..=2).contains(&mesh.count(2, ASK)), "one ask, or that of the second beside it: {}", mesh.count(2, ASK));
    mesh.receive(&publisher, publisher.packet(1, 30, &vp8(true, 500)));
    mesh.pass(Duration::from_millis(900));
    assert_eq!(mesh.origin_counters().rtcp_pli_out - before, 1);
}

#[test]
fn a_new_picture_is_asked_for_where_a_hole_comes_no_more_and_nobody_has_to_notice_first() {
    let (mut mesh, publisher) = video();
    viewer(&mut mesh, 2);
    let mut index = 0;
    let mut film = |mesh: &mut Mesh, frames: u64, lose: usize| {
        mesh.lose = lose;
        for _ in 0..frames {
            mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
            index += 1;
            mesh.pass(Duration::from_millis(30));
        }
        mesh.origin_counters().rtcp_pli_out
    };
    let before = film(&mut mesh, 60, 0);
    assert_eq!(film(&mut mesh, 60, 10), before, "what is lost one by one is repaired");
    // From now on a repair would come too late.
    mesh.way = Duration::from_millis(200);
    mesh.bottleneck =
        Some(Bottleneck { rate_bps: 1 << 30, queue: Duration::from_secs(1), free_at: Time::ZERO, on_the_way: VecDeque::new() });
    assert_eq!(film(&mut mesh, 60, 0), before);
    assert_eq!(film(&mut mesh, 10, 1), before, "nothing comes");
    assert_eq!(film(&mut mesh, 12, 0), before + 1);
}

#[test]
fn the_publishers_clock_and_its_goodbye_cross() {
    let (mut mesh, mut publisher) = simulcast();
    let mut viewer = mesh.edge.viewer(2, 1);
    run_layers(&mut mesh, &publisher, &mut viewer, 0..40);
    let info = SenderInfo { ssrc: 51, ntp: 77 << 32, rtp_timestamp: 5, packets: 1, octets: 1 };
    let report = publisher.rtcp(|c| c.sender_report(&info, &[]));
    mesh.receive(&publisher, report);
    let [_, edge] = mesh.pass(Duration::from_secs(1));
    let compounds = rtcp_to(&mut viewer, &edge);
    let reports = compounds.iter().flat_map(|compound| RtcpReader::new(compound).unwrap());
    let ntp = reports.filter_map(|packet| if let RtcpPacket::SenderReport { info, .. } = packet { Some(info.ntp) } else { None });
    let seconds: Vec<u64> = ntp.map(|ntp| ntp >> 32).collect();
    assert!(!seconds.is_empty() && seconds.iter().all(|s| (77..79).contains(s)), "on the publisher's clock: {seconds:?}");
    let bye = publisher.rtcp(|c| c.receiver_report(51, &[])?.bye(&[51]));
    mesh.receive(&publisher, bye);
    mesh.pass(Duration::from_millis(20));
    let [_, edge] = mesh.receive(&publisher, of_layer(&publisher, 0, 40, true));
    assert_eq!(media_to(&mut viewer, &edge).len(), 1, "the lower layer at once");
}

#[test]
fn an_encoder_that_begins_anew_goes_on_at_the_other_node() {
    let (mut mesh, publisher) = simulcast();
    let mut viewer = mesh.edge.viewer(2, 1);
    mesh.edge.command(wish(2, 0));
    mesh.pass(Duration::from_millis(20));
    for index in 0..5 {
        let [_, edge] = mesh.receive(&publisher, of_layer(&publisher, 0, 40_000 + index, index == 0));
        assert_eq!(media_to(&mut viewer, &edge).len(), 1);
    }
    // Another SSRC, and numbers far below.
    for index in 0..5 {
        let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, b"a")];
        let payload = vp8(index == 0, 100);
        let timestamp = 3_000 * index as u32;
        let packet = Packet { ssrc: 90, payload_type: 96, index: 7 + index, timestamp, elements: &elements, payload: &payload };
        let [_, edge] = mesh.receive(&publisher, protect(&publisher, &packet));
        assert_eq!(media_to(&mut viewer, &edge).iter().map(|(index, _, _)| *index).collect::<Vec<_>>(), [105 + index]);
    }
}

#[test]
fn small_audio_packets_of_a_turn_share_a_datagram() {
    let mut mesh = Mesh::new();
    let speakers: Vec<_> = (20..26)
        .map(|id| {
            let client = mesh.origin.connect(id);
            let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
            let track = OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(id) };
            mesh.origin.command(Command::OpenTrack(Box::new(track.clone())));
            mesh.relay(track, open_transport(id).extensions);
            client
        })
        .collect();
    let mut listener = mesh.edge.connect(2);
    for id in 20..26 {
        let open = OpenSubscription { kind: MediaKind::Audio, transport: TransportId(2), ..Rig::subscription(id) };
        mesh.edge.command(Command::OpenSubscription(Box::new(open)));
        mesh.edge.forward(id, Some(id));
    }
    mesh.pass(Duration::from_millis(20));
    mesh.forget();
    for index in 0..50 {
        for speaker in &speakers {
            let mut packet = speaker.packet(speaker.id as u32, index, &[7; 60]);
            mesh.origin.core.handle_datagram(mesh.origin.now, speaker.path, &mut packet);
        }
        let [_, edge] = mesh.cross();
        assert_eq!(media_to(&mut listener, &edge).len(), 6, "at once");
        mesh.pass(Duration::from_millis(20));
    }
    let media: usize = MEDIA.iter().map(|kind| mesh.count(1, *kind)).sum();
    assert_eq!(media, 50, "six packets in each");
}

/// Microphones 20 to 24 on node 1, of which `max` cross at once, and somebody on node 2 who hears them all.
struct Voices {
    mesh: Mesh,
    speakers: Vec<Client>,
    listener: Client,
    /// Packets of each so far.
    spoken: u64,
    /// What was heard of each: packet's number, sequence number and timestamp.
    heard: [Vec<(u64, u64, u32)>; 5],
}

impl Voices {
    const LEVEL: u8 = 8;
    const IDS: ExtensionIds = IDS.with(Extension::AudioLevel, Voices::LEVEL);

    fn new(max: u8) -> Voices {
        let mut mesh = Mesh::new();
        let speakers = (20..25).map(|id| {
            let client = mesh.origin.connect_with(OpenTransport { extensions: Voices::IDS, ..open_transport(id) });
            mesh.origin.command(Command::OpenTrack(Box::new(Voices::track(id))));
            mesh.edge.command(Command::OpenRemoteTrack {
                open: Box::new(Voices::track(id)),
                extensions: Voices::IDS,
                link: LinkId::new(1, 0),
                alias: id as u16,
            });
            client
        });
        let speakers = speakers.collect();
        let listener = mesh.edge.connect(2);
        let mut voices = Voices { mesh, speakers, listener, spoken: 0, heard: Default::default() };
        (20..25).for_each(|id| voices.export(id, max, true));
        for id in 20..25 {
            let open = OpenSubscription { kind: MediaKind::Audio, transport: TransportId(2), ..Rig::subscription(id) };
            voices.mesh.edge.command(Command::OpenSubscription(Box::new(open)));
            voices.mesh.edge.forward(id, Some(id));
        }
        voices.mesh.pass(Duration::from_millis(20));
        voices.mesh.forget();
        voices
    }

    fn track(id: u64) -> OpenTrack {
        let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
        OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(id) }
    }

    fn export(&mut self, id: u64, max: u8, on: bool) {
        let bound = Some(SessionBound { session: 7, max });
        self.mesh.origin.command(Command::ExportToLink { track: TrackId(id), link: LinkId::new(2, 0), alias: id as u16, bound, on });
    }

    fn packet(&self, speaker: usize, index: u64, level: Option<u8>) -> Vec<u8> {
        let payload = [&index.to_be_bytes()[..], &[7; 40]].concat();
        let level = level.map(|level| [level]);
        let elements = level.as_ref().map(|level| (Voices::LEVEL, &level[..]));
        let (ssrc, timestamp) = (20 + speaker as u32, 960 * index as u32);
        protect(
            &self.speakers[speaker],
            &Packet { ssrc, payload_type: 96, index, timestamp, elements: elements.as_slice(), payload: &payload },
        )
    }

    /// Each has a packet every 20 ms for so long; `None`: one that tells no level. How many of each were heard.
    fn talk(&mut self, ms: u64, levels: [Option<u8>; 5]) -> [usize; 5] {
        let before = self.heard.each_ref().map(Vec::len);
        for tick in 0..ms / 20 {
            if tick % 50 == 0 {
                self.mesh.edge.receive(&self.listener, self.listener.check(common::PWD));
            }
            for (speaker, level) in levels.into_iter().enumerate() {
                let mut packet = self.packet(speaker, self.spoken, level);
                let path = self.speakers[speaker].path;
                self.mesh.origin.core.handle_datagram(self.mesh.origin.now, path, &mut packet);
            }
            self.spoken += 1;
            let [_, at_once] = self.mesh.cross();
            self.hear(&at_once);
            let [_, later] = self.mesh.pass(Duration::from_millis(20));
            self.hear(&later);
        }
        std::array::from_fn(|speaker| self.heard[speaker].len() - before[speaker])
    }

    fn hear(&mut self, sent: &[Sent]) {
        for (index, header, payload) in media_to(&mut self.listener, sent) {
            let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let spoken = u64::from_be_bytes(payload[..8].try_into().unwrap());
            self.heard[number(8) as usize - 20].push((spoken, index, number(4)));
        }
    }
}

#[test]
fn of_many_microphones_the_loudest_cross_a_link_and_what_does_not_is_neither_lost_nor_late() {
    let mut voices = Voices::new(2);
    let quiet = [Some(80); 5];
    assert_eq!(voices.talk(1_000, quiet), [50, 50, 0, 0, 0], "who was first, as nobody needs a place");
    let with = |loud: [usize; 2]| std::array::from_fn(|speaker| Some(if loud.contains(&speaker) { 25 } else { 80 }));
    assert_eq!(voices.talk(2_000, with([4, 4]))[4], 100, "from the first packet on");
    assert_eq!(voices.talk(2_000, with([3, 4]))[3..], [100, 100], "both");
    let heard = voices.talk(4_000, with([0, 1]));
    assert!(heard[0] >= 98 && heard[1] >= 98, "the places of those before are free within 2 s: {heard:?}");
    assert_eq!(voices.talk(900, quiet), [45, 45, 0, 0, 0], "a pause");
    let counters = voices.mesh.origin_counters();
    // One more where the place was taken from somebody whose packet of that moment had gone.
    let (packets, crossed) = (5 * voices.spoken, counters.relay_packets_out);
    assert!((2 * voices.spoken..=2 * voices.spoken + 4).contains(&crossed), "two at each moment: {crossed}");
    assert_eq!((voices.mesh.origin.drops(DropReason::RelayNotLoudest), counters.relay_repairs_out), (packets - crossed, 0));
    for (speaker, heard) in voices.heard.iter().enumerate() {
        let times = |a: &(u64, u64, u32), b: &(u64, u64, u32)| (b.0 - a.0, u64::from(b.2.wrapping_sub(a.2)));
        for (a, b) in heard.iter().zip(heard.iter().skip(1)) {
            assert_eq!(b.1, a.1 + 1, "no number is missing, of {speaker}");
            let (packets, ticks) = times(a, b);
            assert!(ticks.abs_diff(960 * packets) <= 960, "the clock went on, of {speaker}: {packets} packets, {ticks} ticks");
        }
    }
    assert_eq!(voices.mesh.edge.drops(DropReason::TooOld) + voices.mesh.edge.drops(DropReason::Duplicate), 0);
}

#[test]
fn the_loudest_are_repaired_and_late_packets_of_before_do_not_cross() {
    let mut voices = Voices::new(1);
    voices.mesh.lose = 10;
    let loud = |speaker: usize| std::array::from_fn(|other| Some(if other == speaker { 20 } else { 90 }));
    for round in 0..6 {
        let speaker = round % 2;
        voices.talk(2_000, [Some(90); 5]);
        let first = voices.spoken + 5;
        voices.talk(2_000, loud(speaker));
        let heard: HashSet<_> = voices.heard[speaker].iter().map(|(spoken, ..)| *spoken).collect();
        let missing: Vec<_> = (first..voices.spoken - 5).filter(|spoken| !heard.contains(spoken)).collect();
        assert!(missing.is_empty(), "of {speaker} in round {round}: {missing:?}");
    }
    assert!(voices.mesh.count(1, REPAIR) > 20);
    voices.mesh.lose = 0;
    // Of the time of another, and of its own, both late.
    assert_eq!(voices.talk(1_000, loud(1)), [0, 50, 0, 0, 0]);
    voices.talk(2_000, [Some(90); 5]);
    let before = voices.packet(0, voices.spoken, Some(20));
    voices.spoken += 1;
    assert_eq!(voices.talk(200, loud(0)), [10, 0, 0, 0, 0]);
    let own = voices.packet(0, voices.spoken, Some(20));
    voices.spoken += 1;
    assert_eq!(voices.talk(200, loud(0)), [10, 0, 0, 0, 0]);
    let held_back = voices.mesh.origin.drops(DropReason::RelayNotLoudest);
    for (late, heard) in [(before, 0), (own, 1)] {
        let count = voices.heard[0].len();
        let [_, edge] = voices.mesh.receive(&voices.speakers[0], late);
        voices.hear(&edge);
        assert_eq!(voices.heard[0].len(), count + heard);
    }
    assert_eq!(voices.mesh.origin.drops(DropReason::RelayNotLoudest), held_back + 1);
}

#[test]
fn microphones_that_tell_no_level_always_cross() {
    let mut voices = Voices::new(1);
    assert_eq!(voices.talk(1_000, [None; 5]), [50; 5]);
    assert_eq!(voices.talk(1_000, [Some(30), Some(30), None, None, None]), [50, 0, 50, 50, 50]);
    // Who has told one and tells none now is silent.
    assert_eq!(voices.talk(1_000, [Some(30), None, None, None, None]), [50, 0, 50, 50, 50]);
}

#[test]
fn a_microphone_that_goes_leaves_its_place_and_one_that_is_offered_again_goes_on() {
    let mut voices = Voices::new(1);
    let quiet = [Some(90); 5];
    assert_eq!(voices.talk(200, quiet), [10, 0, 0, 0, 0]);
    voices.export(20, 1, false);
    assert_eq!(voices.talk(200, quiet), [0, 10, 0, 0, 0]);
    voices.mesh.origin.command(Command::CloseTrack { track: TrackId(21) });
    assert_eq!(voices.talk(200, quiet), [0, 0, 10, 0, 0]);
    assert_eq!(voices.talk(200, [Some(90), Some(90), Some(90), Some(20), Some(90)]), [0, 0, 1, 10, 0], "who has it speaks first");
    // The other end has not heard of it yet.
    voices.export(23, 1, true);
    voices.mesh.pass(Duration::from_millis(1_100));
    assert_eq!(voices.talk(200, [Some(90), Some(90), Some(90), Some(20), Some(90)]), [0, 0, 1, 10, 0]);
}

#[test]
fn of_many_cameras_those_of_who_spoke_last_cross_a_link_if_somebody_there_watches() {
    let mut mesh = Mesh::new();
    let cameras: Vec<_> = (1..4).map(|id| mesh.origin.publisher(id)).collect();
    for id in 1..4u64 {
        let (track, link, alias) = (TrackId(id), LinkId::new(2, 0), id as u16);
        let bound = Some(SessionBound { session: 7, max: 1 });
        mesh.origin.command(Command::ExportToLink { track, link, alias, bound, on: true });
        let extensions = open_transport(id).extensions;
        mesh.edge.command(Command::OpenRemoteTrack { open: Box::new(Rig::track(id)), extensions, link: LinkId::new(1, 0), alias });
    }
    let mut viewers: Vec<_> = (1..4).map(|id| mesh.edge.viewer(10 + id, id)).collect();
    mesh.pass(Duration::from_millis(20));
    let (mut index, mut next) = (0, [100; 3]);
    // A second of all, each tenth packet a keyframe; how many each viewer got.
    let mut film = |mesh: &mut Mesh| {
        let mut seen = [0; 3];
        for _ in 0..30 {
            for camera in &cameras {
                let [_, sent] = mesh.receive(camera, camera.packet(camera.id as u32, index, &vp8(index % 10 == 0, 300)));
                for (at, viewer) in viewers.iter_mut().enumerate() {
                    for (number, _, _) in media_to(viewer, &sent) {
                        assert_eq!(number, next[at], "no number is missing");
                        (seen[at], next[at]) = (seen[at] + 1, number + 1);
                    }
                }
            }
            mesh.pass(Duration::from_millis(33));
            index += 1;
        }
        seen
    };
    assert_eq!(film(&mut mesh), [30, 0, 0]);
    let before = mesh.origin_counters().relay_packets_out;
    mesh.origin.command(Command::Spoke { track: TrackId(3) });
    assert_eq!(film(&mut mesh), [0, 0, 30]);
    mesh.origin.command(Command::Spoke { track: TrackId(2) });
    mesh.origin.command(Command::Spoke { track: TrackId(1) });
    assert_eq!(film(&mut mesh), [30, 0, 0]);
    assert_eq!(mesh.origin_counters().relay_packets_out - before, 60, "one crosses at each moment");
    // Nobody watches 1 any more.
    mesh.edge.command(Command::Wish { subscription: SubscriptionId(11), wish: LayerWish { paused: true, ..LayerWish::default() } });
    mesh.pass(Duration::from_millis(1_200));
    assert_eq!(film(&mut mesh), [0, 30, 0], "who spoke before");
    // It goes.
    mesh.origin.command(Command::CloseTrack { track: TrackId(2) });
    mesh.pass(Duration::from_millis(1_200));
    assert_eq!(film(&mut mesh), [0, 0, 30]);
}

#[test]
fn a_track_of_another_node_is_mirrored_to_other_workers_and_never_sent_back() {
    let (mut mesh, publisher) = simulcast();
    mesh.edge_ends.supply(1);
    mesh.other_ends.supply(0);
    let track = OpenTrack { ssrc: None, layers: vec!["a".into(), "b".into()], order: vec![0, 1], ..Rig::track(1) };
    mesh.other.command(Command::OpenMirror { open: Box::new(track), home: 0 });
    mesh.edge.command(Command::Export { track: TrackId(1), to: 1, on: true });
    mesh.edge.command(Command::ExportToLink { track: TrackId(1), link: LinkId::new(1, 0), alias: 7, bound: None, on: true });
    let mut far = mesh.other.viewer(2, 1);
    mesh.other.command(wish(2, 1));
    let mut lens = Vec::new();
    for index in 0..120 {
        for layer in 0..2 {
            mesh.receive(&publisher, of_layer(&publisher, layer, index, index.is_multiple_of(20)));
            let sent = mesh.other.sent();
            lens.extend(media_to(&mut far, &sent).iter().map(|(_, _, payload)| payload.len()));
        }
        mesh.pass(Duration::from_millis(30));
        let sent = mesh.other.sent();
        lens.extend(media_to(&mut far, &sent).iter().map(|(_, _, payload)| payload.len()));
    }
    assert!(lens[60..].iter().all(|len| *len == 500) && lens.len() >= 100, "{lens:?}");
    assert!(MEDIA.iter().all(|kind| mesh.count(2, *kind) == 0), "a packet never goes back where it came from");
    // Nobody watches any more.
    mesh.other.command(Command::CloseSubscription { subscription: SubscriptionId(2) });
    mesh.pass(Duration::from_millis(1_000));
    mesh.forget();
    for index in 120..130 {
        mesh.receive(&publisher, of_layer(&publisher, 1, index, true));
    }
    assert!(MEDIA.iter().all(|kind| mesh.count(1, *kind) == 0));
}

#[test]
fn garbage_at_the_relay_port_is_counted_and_the_link_stays() {
    let (mut mesh, publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    let mut packet = publisher.packet(1, 0, &vp8(true, 500));
    mesh.origin.core.handle_datagram(mesh.origin.now, publisher.path, &mut packet);
    let sent =
        mesh.origin.sent().into_iter().find(|sent| sent.path.socket == RELAY && sent.bytes[1] & 0x0f == 0).expect("a packet crosses");
    let mut offer = |mesh: &mut Mesh, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sent.bytes.clone();
        change(&mut bytes);
        let stranger = Path { socket: RELAY, remote: "198.51.100.7:4000".parse().unwrap() };
        let reached = mesh.edge.exchange(stranger, bytes);
        media_to(&mut viewer, &reached).len()
    };
    type Change = &'static dyn Fn(&mut Vec<u8>);
    let cases: [(Change, DropReason); 9] = [
        (&|bytes| bytes.clear(), DropReason::RelayMalformed),
        (&|bytes| bytes.truncate(31), DropReason::RelayMalformed),
        (&|bytes| bytes[0] = 9, DropReason::RelayMalformed),
        (&|bytes| bytes.resize(9_000, 0), DropReason::RelayMalformed),
        (&|bytes| bytes[2] ^= 0x40, DropReason::RelayUnknownLink),
        (&|bytes| bytes[1] ^= 0x80, DropReason::RelayKeyUnknown),
        (&|bytes| bytes[4] ^= 1, DropReason::RelayAuth),
        (&|bytes| bytes[20] ^= 1, DropReason::RelayAuth),
        (&|bytes| *bytes.last_mut().unwrap() ^= 1, DropReason::RelayAuth),
    ];
    for (at, (change, reason)) in cases.into_iter().enumerate() {
        let before = mesh.edge.drops(reason);
        assert_eq!(offer(&mut mesh, change), 0);
        assert_eq!(mesh.edge.drops(reason), before + 1, "case {at}: {}", reason.label());
    }
    assert_eq!(offer(&mut mesh, &|_| {}), 1, "as it was sent");
    assert_eq!(offer(&mut mesh, &|_| {}), 0, "and not again");
    assert_eq!(mesh.edge.drops(DropReason::RelayReplay), 1);
    // Neither port takes what belongs to the other.
    let mut check = publisher.check(common::PWD);
    mesh.origin.core.handle_datagram(mesh.origin.now, Path { socket: RELAY, remote: publisher.path.remote }, &mut check);
    assert_eq!(mesh.origin.drops(DropReason::RelayUnknownLink), 1);
    let answers = mesh.edge.exchange(viewer.path, sent.bytes.clone());
    assert!(media_to(&mut viewer, &answers).is_empty());
}

#[test]
fn a_third_node_sends_nothing_under_our_association_and_nothing_that_it_was_not_asked_for() {
    let (mut mesh, publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    // Node 3 has a link to node 2, and a track under the alias that node 1's has.
    let mut third = node(3);
    third.command(open(3, 2, 1));
    mesh.edge.command(open(2, 3, 1));
    let liar = third.publisher(9);
    third.command(Command::ExportToLink { track: TrackId(9), link: LinkId::new(2, 0), alias: 101, bound: None, on: true });
    // It believes to be asked.
    let wanting = {
        let mut wanting = node(2);
        wanting.command(open(2, 3, 1));
        wanting.command(Command::OpenRemoteTrack {
            open: Box::new(Rig::track(9)),
            extensions: ExtensionIds::NONE,
            link: LinkId::new(3, 0),
            alias: 101,
        });
        wanting.viewer(5, 9);
        wanting.pass(Duration::from_millis(20))
    };
    for sent in wanting.into_iter().filter(|sent| sent.path.socket == RELAY) {
        third.exchange(Path { socket: RELAY, remote: address(2) }, sent.bytes);
    }
    let mut crossed = 0;
    for index in 0..20 {
        let mut packet = liar.packet(9, index, &vp8(index == 0, 500));
        third.core.handle_datagram(third.now, liar.path, &mut packet);
        for sent in third.sent().into_iter().filter(|sent| sent.path.socket == RELAY && sent.bytes[1] & 0x0f == 0) {
            crossed += 1;
            let unasked = mesh.edge.exchange(Path { socket: RELAY, remote: address(3) }, sent.bytes.clone());
            let mut borrowed = sent.bytes;
            borrowed[2..4].copy_from_slice(&LinkId::new(1, 0).0.to_le_bytes());
            let aliased = mesh.edge.exchange(Path { socket: RELAY, remote: address(3) }, borrowed);
            assert_eq!(media_to(&mut viewer, &unasked).len() + media_to(&mut viewer, &aliased).len(), 0);
        }
    }
    assert_eq!(crossed, 20);
    // A counter that the honest link has used ends before its tag is looked at.
    let refused = mesh.edge.drops(DropReason::RelayAuth) + mesh.edge.drops(DropReason::RelayReplay);
    assert_eq!((mesh.edge.drops(DropReason::UnknownStream), refused), (20, 20));
    let [_, edge] = mesh.receive(&publisher, publisher.packet(1, 0, &vp8(true, 500)));
    assert_eq!(media_to(&mut viewer, &edge).len(), 1, "the honest link goes on");
}

#[test]
fn a_link_goes_on_under_new_keys() {
    let (mut mesh, publisher) = video();
    let mut viewer = viewer(&mut mesh, 2);
    let rekey = |link: LinkId, from: usize, to: usize| {
        let keys = LinkKeys { send: keys(from, to).map(|byte| !byte), receive: keys(to, from).map(|byte| !byte) };
        Command::RekeyLink { link, generation: 1, keys: Box::new(keys) }
    };
    let mut seen = 0;
    for index in 0..300 {
        if index == 100 {
            mesh.origin.command(rekey(LinkId::new(2, 0), 1, 2));
        }
        if index == 105 {
            mesh.edge.command(rekey(LinkId::new(1, 0), 2, 1));
        }
        let [_, edge] = mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
        seen += media_to(&mut viewer, &edge).len();
        let [_, edge] = mesh.pass(Duration::from_millis(10));
        seen += media_to(&mut viewer, &edge).len();
    }
    assert_eq!(seen, 300);
    let mut packet = publisher.packet(1, 300, &vp8(false, 500));
    mesh.origin.core.handle_datagram(mesh.origin.now, publisher.path, &mut packet);
    let sent = mesh.origin.sent();
    assert!(sent.iter().any(|sent| sent.path.socket == RELAY && sent.bytes[1] == 0x80), "the new keys are in use");
}

#[test]
fn closing_a_link_or_either_end_of_a_track_leaves_nothing() {
    let (mut mesh, publisher) = video();
    let viewer = viewer(&mut mesh, 2);
    for index in 0..50 {
        mesh.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
    }
    let before = mesh.origin_counters().relay_packets_out;
    assert_eq!(before, 50);
    // The track ends at both ends, and packets of it are on their way.
    mesh.origin.command(Command::ExportToLink { track: TrackId(1), link: LinkId::new(2, 0), alias: 101, bound: None, on: false });
    mesh.edge.command(Command::CloseTrack { track: TrackId(1) });
    mesh.receive(&publisher, publisher.packet(1, 50, &vp8(false, 500)));
    assert_eq!(mesh.origin_counters().relay_packets_out, before);
    assert_eq!(mesh.edge.core.gauges(), Gauges { transports: 1, subscriptions: 1, links: 1, ..Gauges::default() });
    // It comes again under the same alias, and the link ends.
    mesh.relay(Rig::track(1), open_transport(1).extensions);
    mesh.edge.forward(2, Some(1));
    mesh.pass(Duration::from_millis(20));
    mesh.receive(&publisher, publisher.packet(1, 51, &vp8(true, 500)));
    assert_eq!(mesh.origin_counters().relay_packets_out, before + 1);
    let mut packet = publisher.packet(1, 52, &vp8(false, 500));
    mesh.origin.core.handle_datagram(mesh.origin.now, publisher.path, &mut packet);
    mesh.origin.command(Command::CloseLink { link: LinkId::new(2, 0) });
    mesh.edge.command(Command::CloseLink { link: LinkId::new(1, 0) });
    mesh.pass(Duration::from_millis(20));
    assert_eq!(mesh.origin_counters().relay_packets_out, before + 1);
    assert_eq!(mesh.edge.core.gauges(), Gauges { transports: 1, subscriptions: 1, ..Gauges::default() });
    mesh.edge.command(Command::CloseTransport { transport: TransportId(viewer.id) });
    mesh.origin.command(Command::CloseTransport { transport: TransportId(1) });
    mesh.pass(Duration::from_millis(20));
    assert_eq!((mesh.edge.core.gauges(), mesh.origin.core.gauges()), (Gauges::default(), Gauges::default()));
    assert_eq!((mesh.edge.core.poll_timeout(), mesh.origin.core.poll_timeout()), (None, None));
}
