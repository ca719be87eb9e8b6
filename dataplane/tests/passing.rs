//! A track that goes on over a second link: its origin, the node that passes it on, and the one that gets it from there.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Client, Packet, Rig, Sent, media_to, open_transport, protect, rtcp_to, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::WorkerLimits;
use pop_proto::Command;
use pop_proto::control::{Extension, ExtensionIds, LayerWish, LinkId, LinkKeys, OpenLink, OpenTrack, OpenTransport, Path};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, SenderInfo};
use pop_schemas::{NodeId, SubscriptionId, TrackId};

const RELAY: u16 = 1;
const STEP: Duration = Duration::from_millis(1);
const IDS: ExtensionIds = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::Rid, 2);
/// The publisher is at the first; the second passes its track on to the third.
const ORIGIN: usize = 1;
const GATEWAY: usize = 2;
const EDGE: usize = 3;
/// What the head of a datagram says of its payload.
const MEDIA: [u8; 4] = [0, 1, 2, 3];
const REPAIR: u8 = 1;
/// Names of the track on the first link and on the second.
const ALIASES: [u16; 2] = [101, 207];

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 11_000))
}

fn link(node: usize) -> LinkId {
    LinkId::new(node as u8, 0)
}

/// Keys of what `from` sends to `to`.
fn keys(from: usize, to: usize) -> [u8; 28] {
    std::array::from_fn(|at| (from * 50 + to * 20 + at) as u8)
}

fn open(of: usize, other: usize) -> Command {
    Command::OpenLink(Box::new(OpenLink {
        link: link(other),
        own: NodeId(of as u64),
        node: NodeId(other as u64),
        remote: address(other),
        version: 1,
        remote_link: link(of),
        keys: LinkKeys { send: keys(of, other), receive: keys(other, of) },
        is_abroad: false,
        generation: 0,
        playout: Duration::from_millis(150),
    }))
}

struct Chain {
    nodes: [Rig; 3],
    publisher: Client,
    /// From which node to which, what kind, which layer.
    wire: Vec<(usize, usize, u8, u8)>,
    /// Of the media datagrams from the gateway to the third node each so many-th is lost; 0: none.
    lose: usize,
    media: usize,
}

impl Chain {
    /// Two simulcast layers, which nobody watches yet.
    fn new() -> Chain {
        let mut nodes = [ORIGIN, GATEWAY, EDGE].map(|of| {
            let mut rig = Rig { core: Core::new(WorkerLimits { links: 4, ..common::limits() }, common::CONSENT), ..Rig::new() };
            rig.core.set_media_sockets(1);
            rig.core.set_relay_sockets(&[address(of)]);
            rig
        });
        for (of, other) in [(ORIGIN, GATEWAY), (GATEWAY, ORIGIN), (GATEWAY, EDGE), (EDGE, GATEWAY)] {
            nodes[of - 1].command(open(of, other));
        }
        let publisher = nodes[0].connect_with(OpenTransport { extensions: IDS, ..open_transport(1) });
        let track = OpenTrack { ssrc: None, layers: vec!["a".into(), "b".into()], order: vec![0, 1], ..Rig::track(1) };
        nodes[0].command(Command::OpenTrack(Box::new(track.clone())));
        for (from, alias) in [ORIGIN, GATEWAY].into_iter().zip(ALIASES) {
            let to = from + 1;
            nodes[from - 1].command(Command::ExportToLink { track: TrackId(1), link: link(to), alias, bound: None, on: true });
            let open = Box::new(track.clone());
            nodes[to - 1].command(Command::OpenRemoteTrack { open, extensions: IDS, link: link(from), alias });
        }
        let mut chain = Chain { nodes, publisher, wire: Vec::new(), lose: 0, media: 0 };
        chain.pass(Duration::from_millis(50));
        chain
    }

    fn of(&mut self, node: usize) -> &mut Rig {
        &mut self.nodes[node - 1]
    }

    /// Somebody who watches at a node, and has the layer up to this.
    fn viewer(&mut self, node: usize, id: u64, spatial_max: u8) -> Client {
        let viewer = self.of(node).viewer(id, 1);
        let wish = LayerWish { spatial_max, ..LayerWish::default() };
        self.of(node).command(Command::Wish { subscription: SubscriptionId(id), wish });
        self.pass(Duration::from_millis(50));
        viewer
    }

    /// What nodes send crosses until nothing is left; returns what went to clients of each.
    fn cross(&mut self) -> [Vec<Sent>; 3] {
        let mut to_clients = [const { Vec::new() }; 3];
        loop {
            let mut crossed = false;
            for from in [ORIGIN, GATEWAY, EDGE] {
                for sent in self.of(from).sent() {
                    if sent.path.socket == RELAY {
                        crossed = true;
                        self.carry(from, sent);
                    } else {
                        to_clients[from - 1].push(sent);
                    }
                }
            }
            if !crossed {
                return to_clients;
            }
        }
    }

    fn carry(&mut self, from: usize, Sent { path, mut bytes, .. }: Sent) {
        let to = [ORIGIN, GATEWAY, EDGE].into_iter().find(|to| path.remote == address(*to)).expect("it goes to a node");
        let kind = bytes[1] & 0x0f;
        self.wire.push((from, to, kind, bytes[6]));
        if to == EDGE && MEDIA.contains(&kind) {
            self.media += 1;
            if self.lose != 0 && self.media.is_multiple_of(self.lose) {
                return;
            }
        }
        let rig = self.of(to);
        rig.core.handle_datagram(rig.now, Path { socket: RELAY, remote: address(from) }, &mut bytes);
    }

    fn pass(&mut self, duration: Duration) -> [Vec<Sent>; 3] {
        let (end, mut sent) = (self.nodes[0].now + duration, [const { Vec::new() }; 3]);
        while self.nodes[0].now < end {
            for rig in &mut self.nodes {
                rig.now = rig.now + STEP;
                rig.core.handle_timeout(rig.now);
            }
            let step = self.cross();
            sent.iter_mut().zip(step).for_each(|(sent, step)| sent.extend(step));
        }
        sent
    }

    /// Frames of both layers, each 30 ms, a keyframe each 20; returns the lengths of the payloads that reached each viewer, the upper
    /// layer's being 500.
    fn run(&mut self, viewers: &mut [(usize, &mut Client)], frames: std::ops::Range<u64>) -> Vec<Vec<usize>> {
        let mut lens = vec![Vec::new(); viewers.len()];
        for index in frames {
            let mut sent = [const { Vec::new() }; 3];
            for layer in 0..2 {
                let mut datagram = self.packet(layer, index, index.is_multiple_of(20));
                let path = self.publisher.path;
                let rig = self.of(ORIGIN);
                rig.core.handle_datagram(rig.now, path, &mut datagram);
                sent.iter_mut().zip(self.cross()).for_each(|(sent, step)| sent.extend(step));
            }
            sent.iter_mut().zip(self.pass(Duration::from_millis(30))).for_each(|(sent, step)| sent.extend(step));
            for ((node, viewer), lens) in viewers.iter_mut().zip(&mut lens) {
                lens.extend(media_to(viewer, &sent[*node - 1]).iter().map(|(_, _, payload)| payload.len()));
            }
        }
        lens
    }

    fn packet(&self, layer: usize, index: u64, keyframe: bool) -> Vec<u8> {
        let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, [b"a", b"b"][layer])];
        let payload = vp8(keyframe, 100 + 400 * layer);
        let (ssrc, timestamp) = (50 + layer as u32, 3_000 * index as u32);
        protect(&self.publisher, &Packet { ssrc, payload_type: 96, index, timestamp, elements: &elements, payload: &payload })
    }

    /// Layers of which media went from a node to the next.
    fn layers(&self, from: usize, to: usize) -> Vec<u8> {
        let of_link = self.wire.iter().filter(|(a, b, kind, _)| (*a, *b) == (from, to) && [0, 3].contains(kind));
        let mut layers: Vec<_> = of_link.map(|(.., layer)| *layer).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    fn count(&self, from: usize, to: usize, kinds: &[u8]) -> usize {
        self.wire.iter().filter(|(a, b, kind, _)| (*a, *b) == (from, to) && kinds.contains(kind)).count()
    }
}

#[test]
fn each_link_carries_the_layers_that_are_wanted_behind_it_and_no_more() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 0);
    chain.run(&mut [(EDGE, &mut far)], 0..60);
    chain.wire.clear();
    let lens = chain.run(&mut [(EDGE, &mut far)], 60..100);
    assert!(lens[0].len() >= 38 && lens[0].iter().all(|len| *len == 100), "{lens:?}");
    assert_eq!((chain.layers(ORIGIN, GATEWAY), chain.layers(GATEWAY, EDGE)), (vec![0], vec![0]));
    // One at the gateway wants more: that crosses the first link besides, and the second no more than before.
    let mut near = chain.viewer(GATEWAY, 3, 1);
    chain.run(&mut [(EDGE, &mut far), (GATEWAY, &mut near)], 100..160);
    chain.wire.clear();
    let lens = chain.run(&mut [(EDGE, &mut far), (GATEWAY, &mut near)], 160..200);
    assert!(lens[0].iter().all(|len| *len == 100) && lens[1].iter().all(|len| *len == 500), "{lens:?}");
    assert_eq!((chain.layers(ORIGIN, GATEWAY), chain.layers(GATEWAY, EDGE)), (vec![0, 1], vec![0]));
    // And the other way round.
    chain.of(EDGE).command(Command::Wish { subscription: SubscriptionId(2), wish: LayerWish { spatial_max: 1, ..LayerWish::default() } });
    chain.of(GATEWAY).command(Command::CloseSubscription { subscription: SubscriptionId(3) });
    chain.run(&mut [(EDGE, &mut far)], 200..260);
    chain.wire.clear();
    let lens = chain.run(&mut [(EDGE, &mut far)], 260..300);
    assert!(lens[0].iter().all(|len| *len == 500), "{lens:?}");
    assert_eq!((chain.layers(ORIGIN, GATEWAY), chain.layers(GATEWAY, EDGE)), (vec![1], vec![1]));
}

#[test]
fn within_a_second_of_the_last_viewer_behind_either_link_neither_carries_a_byte_of_the_track() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 1);
    chain.run(&mut [(EDGE, &mut far)], 0..40);
    chain.of(EDGE).command(Command::CloseSubscription { subscription: SubscriptionId(2) });
    chain.pass(Duration::from_secs(1));
    chain.wire.clear();
    chain.run(&mut [], 40..80);
    let media = [(ORIGIN, GATEWAY), (GATEWAY, EDGE)].map(|(from, to)| chain.count(from, to, &MEDIA));
    assert_eq!(media, [0, 0]);
}

#[test]
fn what_the_second_link_loses_is_repaired_by_the_node_between() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 1);
    chain.run(&mut [(EDGE, &mut far)], 0..40);
    chain.wire.clear();
    chain.lose = 10;
    let lens = chain.run(&mut [(EDGE, &mut far)], 40..240);
    chain.lose = 0;
    let more = chain.run(&mut [(EDGE, &mut far)], 240..250);
    assert_eq!(lens[0].len() + more[0].len(), 210, "everything once");
    assert!((15..60).contains(&chain.count(GATEWAY, EDGE, &[REPAIR])), "{}", chain.count(GATEWAY, EDGE, &[REPAIR]));
    assert_eq!(chain.count(ORIGIN, GATEWAY, &[REPAIR]), 0, "nothing of it is asked of the origin");
}

#[test]
fn a_keyframe_that_a_viewer_asks_for_is_asked_of_the_publisher_and_comes() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 1);
    chain.run(&mut [(EDGE, &mut far)], 0..30);
    chain.pass(Duration::from_secs(1));
    let before = chain.of(ORIGIN).core.counters().rtcp_pli_out;
    let pli = far.rtcp(|c| c.pli(0, 2));
    let path = far.path;
    chain.of(EDGE).exchange(path, pli);
    chain.pass(Duration::from_millis(100));
    assert_eq!(chain.of(ORIGIN).core.counters().rtcp_pli_out - before, 1);
}

#[test]
fn the_publishers_clock_reaches_a_viewer_behind_the_second_link() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 1);
    chain.run(&mut [(EDGE, &mut far)], 0..40);
    let info = SenderInfo { ssrc: 51, ntp: 77 << 32, rtp_timestamp: 5, packets: 1, octets: 1 };
    let mut report = chain.publisher.rtcp(|c| c.sender_report(&info, &[]));
    let path = chain.publisher.path;
    let rig = chain.of(ORIGIN);
    rig.core.handle_datagram(rig.now, path, &mut report);
    let [_, _, sent] = chain.pass(Duration::from_secs(1));
    let compounds = rtcp_to(&mut far, &sent);
    let reports = compounds.iter().flat_map(|compound| RtcpReader::new(compound).unwrap());
    let ntp = reports.filter_map(|packet| if let RtcpPacket::SenderReport { info, .. } = packet { Some(info.ntp >> 32) } else { None });
    let seconds: Vec<u64> = ntp.collect();
    assert!(!seconds.is_empty() && seconds.iter().all(|s| (77..79).contains(s)), "on the publisher's clock: {seconds:?}");
}

#[test]
fn a_track_that_ends_between_ends_behind_the_second_link_too_and_may_come_again() {
    let mut chain = Chain::new();
    let mut far = chain.viewer(EDGE, 2, 1);
    chain.run(&mut [(EDGE, &mut far)], 0..40);
    chain.of(GATEWAY).command(Command::CloseTrack { track: TrackId(1) });
    chain.wire.clear();
    let lens = chain.run(&mut [(EDGE, &mut far)], 40..60);
    assert_eq!((lens[0].len(), chain.count(GATEWAY, EDGE, &MEDIA)), (0, 0));
    let track = OpenTrack { ssrc: None, layers: vec!["a".into(), "b".into()], order: vec![0, 1], ..Rig::track(1) };
    let open = Box::new(track.clone());
    chain.of(GATEWAY).command(Command::OpenRemoteTrack { open, extensions: IDS, link: link(ORIGIN), alias: ALIASES[0] });
    let (link_of_edge, alias) = (link(EDGE), ALIASES[1] + 1);
    chain.of(GATEWAY).command(Command::ExportToLink { track: TrackId(1), link: link_of_edge, alias, bound: None, on: true });
    // The third node was told of both.
    chain.of(EDGE).command(Command::OpenRemoteTrack { open: Box::new(track), extensions: IDS, link: link(GATEWAY), alias });
    chain.of(EDGE).forward(2, Some(1));
    chain.pass(Duration::from_millis(100));
    let lens = chain.run(&mut [(EDGE, &mut far)], 60..100);
    assert!(lens[0].len() >= 35, "{lens:?}");
}
