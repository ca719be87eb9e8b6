//! Packets between nodes: a worker's real core on each node, and a sealed link between each two.
//!
//! ```text
//! RTP -> core of the track's node -- datagrams, lost, late, twice, flipped --> core of a viewer's node -> RTP
//! ```
//! What the control plane would say (tracks wanted and offered, nodes that begin anew) is said at once: it is the packets that are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::time::Duration;

use pop_dataplane::core::{Core, Transmit};
use pop_dataplane::limits::WorkerLimits;
use pop_proto::control::{
    Codec, Command, Event, ExtensionIds, LinkId, LinkKeys, MediaKind, Numbering, OpenLink, OpenRtp, OpenSubscription, OpenTrack, Path,
    PayloadType, PayloadTypeMap, RtcpVia, RtpPeer,
};
use pop_proto::wire::rtp::{self, RtpView};
use pop_relay::control::VERSION;
use pop_relay::frame::{FrameKind, Head};
use pop_schemas::{NodeId, SubscriptionId, Time, TrackId, TransportId};

use crate::dice::{Dice, mix};

const STEP: Duration = Duration::from_millis(5);
const TROUBLE: Duration = Duration::from_secs(8);
/// So long nothing is lost any more: what was asked for in vain is asked for again after a second, and once more.
const CALM: Duration = Duration::from_millis(2_500);
/// Chance may have been taken for a way that does not carry all, and then video waits: that is tried again after 8 s, later each time that
/// it failed, and grows.
const UNLIMITED_MAX: Duration = Duration::from_secs(90);
/// At the end each viewer has to get everything for so long.
const PROOF: Duration = Duration::from_secs(1);

/// The socket for links: there is one for media. Those of routes come behind.
const RELAY: u16 = 1;
const FIRST_ROUTE: u16 = 2;
const PAYLOAD_TYPE: u8 = 96;
/// Of the packets of a track one in so many begins a picture that needs no other.
const KEYFRAME_EVERY: u64 = 20;
/// Bytes of a payload in front of its filler: a VP8 descriptor and frame tag, the track, the number.
const PROLOGUE_LEN: usize = 18;
const FILLER: u8 = 0xa7;

/// What a run, or many, came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkFigures {
    /// Packets that viewers got.
    pub delivered: u64,
    /// Packets that crossed a link, and that did so again.
    pub crossed: u64,
    /// See `crossed`.
    pub repairs: u64,
    /// Datagrams that did not come, that came twice, that came flipped.
    pub lost: u64,
    /// See `lost`.
    pub twice: u64,
    /// See `lost`.
    pub flipped: u64,
    /// Nodes that began anew.
    pub restarts: u64,
    /// Viewers that were there at the end.
    pub viewers: u64,
    /// Runs in which a link was believed not to carry all when the wires were calm.
    pub limited: u64,
}

impl AddAssign for LinkFigures {
    fn add_assign(&mut self, other: LinkFigures) {
        let LinkFigures { delivered, crossed, repairs, lost, twice, flipped, restarts, viewers, limited } = other;
        self.delivered += delivered;
        self.crossed += crossed;
        self.repairs += repairs;
        self.lost += lost;
        self.twice += twice;
        self.flipped += flipped;
        self.restarts += restarts;
        self.viewers += viewers;
        self.limited += limited;
    }
}

struct Node {
    core: Core,
    start: u64,
    next_socket: u16,
    /// Links that do not carry all, as it believes.
    limited: BTreeSet<LinkId>,
}

struct Track {
    origin: usize,
    socket: u16,
    kind: MediaKind,
    /// Packets so far, as they were published.
    packets: Vec<Vec<u8>>,
}

struct Viewer {
    node: usize,
    track: TrackId,
    /// Numbers of the packets that came, and the sequence numbers that they had.
    numbers: BTreeSet<u64>,
    sequences: BTreeSet<u16>,
}

/// From, to, what.
type Datagram = (usize, usize, Vec<u8>);

/// Nodes, the tracks and viewers that they have, and the wires between them.
pub struct Links {
    dice: Dice,
    now: Time,
    nodes: Vec<Node>,
    tracks: BTreeMap<TrackId, Track>,
    /// By node and socket.
    viewers: BTreeMap<(usize, u16), Viewer>,
    /// Names of tracks on links: from, to, alias.
    aliases: BTreeMap<(usize, usize, u16), TrackId>,
    next_alias: u16,
    next_track: u64,
    under_way: BTreeMap<(Time, u64), Datagram>,
    serial: u64,
    lost_percent: usize,
    is_calm: bool,
    /// Packets, each once for every node that had asked for its track.
    owed: u64,
    /// Of nodes that began anew, too.
    figures: LinkFigures,
}

impl Links {
    /// Two to four nodes, as the seed says.
    pub fn new(seed: u64) -> Links {
        let mut dice = Dice(mix(seed ^ 0x6c69_6e6b));
        let lost_percent = dice.pick(&[0, 2, 5, 8]).expect("there are some");
        let count = 2 + dice.below(3);
        let mut links = Links {
            dice,
            now: Time::from_millis(1_000),
            nodes: (0..count).map(|id| new_node(id, 1)).collect(),
            tracks: BTreeMap::new(),
            viewers: BTreeMap::new(),
            aliases: BTreeMap::new(),
            next_alias: 0,
            next_track: 0,
            under_way: BTreeMap::new(),
            serial: 0,
            lost_percent,
            is_calm: false,
            owed: 0,
            figures: LinkFigures::default(),
        };
        for (of, other) in pairs(count) {
            links.open_link(of, other);
        }
        links
    }

    /// The whole run. Panics where
    /// - a viewer gets a packet twice, changed, or of a track that is not its own, or two packets under one sequence number;
    /// - a track crosses a link that does not lead from its origin to a node that asked for it: what crosses is a tree, and nothing goes back;
    /// - packets cross more often than once for each node that asked;
    /// - a viewer does not get everything when the wires have been calm for a while, or a link is believed not to carry it for long.
    pub fn run(mut self) -> LinkFigures {
        let end = self.now + TROUBLE;
        while self.now < end {
            self.trouble();
            self.step();
        }
        self.is_calm = true;
        self.rest(CALM);
        let end = self.now + UNLIMITED_MAX;
        self.figures.limited += u64::from(self.has_limit());
        while self.has_limit() {
            assert!(self.now < end, "the wires are calm, and a link is not taken for one");
            self.step();
        }
        // A picture that needs no other, so that nobody waits for one.
        let first: BTreeMap<_, _> = self.tracks.iter().map(|(id, track)| (*id, next_keyframe(track))).collect();
        self.rest(PROOF + PROOF);
        let last: BTreeMap<_, _> = self.tracks.iter().map(|(id, track)| (*id, track.packets.len() as u64)).collect();
        self.is_silent_for(Duration::from_millis(500));
        for viewer in self.viewers.values() {
            let due = first[&viewer.track]..last[&viewer.track];
            let missing: Vec<_> = due.filter(|number| !viewer.numbers.contains(number)).collect();
            assert!(missing.is_empty(), "a viewer of {} on node {} misses {missing:?}", viewer.track, viewer.node);
        }
        for node in 0..self.nodes.len() {
            self.count(node);
        }
        self.figures.viewers = self.viewers.len() as u64;
        assert!(self.figures.crossed <= self.owed, "{} packets crossed, and {} were asked for", self.figures.crossed, self.owed);
        self.figures
    }

    fn has_limit(&self) -> bool {
        self.nodes.iter().any(|node| !node.limited.is_empty())
    }

    fn rest(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    /// What is under way arrives, and nothing new is published.
    fn is_silent_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.pass();
        }
    }

    fn step(&mut self) {
        let ids: Vec<TrackId> = self.tracks.keys().copied().collect();
        for id in ids {
            if self.dice.once_in(2) {
                self.publish(id);
            }
        }
        self.pass();
    }

    fn pass(&mut self) {
        self.now = self.now + STEP;
        while let Some(first) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, mut bytes) = first.remove();
            let path = Path { socket: RELAY, remote: address(from) };
            self.nodes[to].core.handle_datagram(self.now, path, &mut bytes);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].core.handle_timeout(self.now);
            self.drain(node);
        }
    }

    fn trouble(&mut self) {
        let node = self.dice.below(self.nodes.len());
        let ids: Vec<TrackId> = self.tracks.keys().copied().collect();
        match self.dice.below(400) {
            0 => self.restart(node),
            1..=5 if self.tracks.len() < 6 => self.open_track(node),
            6..=20 => {
                if let Some(track) = self.dice.pick(&ids) {
                    self.watch(node, track);
                }
            }
            21..=26 => {
                let viewers: Vec<_> = self.viewers.keys().copied().collect();
                if let Some(viewer) = self.dice.pick(&viewers) {
                    self.leave(viewer);
                }
            }
            27..=29 => self.send_back(node),
            _ => {}
        }
    }

    fn order(&mut self, node: usize, command: Command) {
        self.nodes[node].core.handle_command(self.now, command);
    }

    fn open_link(&mut self, of: usize, other: usize) {
        let starts = (self.nodes[of].start, self.nodes[other].start);
        let open = OpenLink {
            link: link(other),
            own: NodeId(of as u64),
            node: NodeId(other as u64),
            remote: address(other),
            version: VERSION,
            remote_link: link(of),
            keys: LinkKeys { send: keys((of, starts.0), (other, starts.1)), receive: keys((other, starts.1), (of, starts.0)) },
            is_abroad: false,
            generation: 0,
            playout: Duration::from_millis(150),
        };
        self.order(of, Command::OpenLink(Box::new(open)));
    }

    /// A node dies and its next self comes: all that it had is gone, and each link has new keys.
    fn restart(&mut self, node: usize) {
        self.count(node);
        self.figures.restarts += 1;
        let start = self.nodes[node].start + 1;
        self.nodes[node] = new_node(node, start);
        self.aliases.retain(|(from, to, _), _| *from != node && *to != node);
        let gone: BTreeSet<_> = self.tracks.iter().filter(|(_, track)| track.origin == node).map(|(id, _)| *id).collect();
        self.tracks.retain(|id, _| !gone.contains(id));
        let orphans: Vec<_> =
            self.viewers.iter().filter(|((at, _), v)| *at != node && gone.contains(&v.track)).map(|(key, _)| *key).collect();
        for (at, socket) in orphans {
            self.order(at, Command::CloseTransport { transport: transport(socket) });
        }
        self.viewers.retain(|(at, _), viewer| *at != node && !gone.contains(&viewer.track));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.open_link(other, node);
            self.open_link(node, other);
        }
    }

    fn open_route(&mut self, node: usize, peer: RtpPeer) -> u16 {
        let socket = self.nodes[node].next_socket;
        self.nodes[node].next_socket += 1;
        let open = OpenRtp {
            transport: transport(socket),
            socket,
            rtcp: RtcpVia::Off,
            peer,
            keys: None,
            numbering: Numbering::Own,
            // No SSRC of a track.
            rtcp_ssrc: u32::MAX,
            cname: "sim".into(),
        };
        self.order(node, Command::OpenRtp(Box::new(open)));
        socket
    }

    fn open_track(&mut self, node: usize) {
        let socket = self.open_route(node, RtpPeer::Learnt { silence: Duration::from_secs(60), never: None });
        self.next_track += 1;
        let kind = if self.dice.once_in(2) { MediaKind::Audio } else { MediaKind::Video };
        let track = Track { origin: node, socket, kind, packets: Vec::new() };
        let id = TrackId(self.next_track);
        let open = describe(id, &track);
        self.order(node, Command::OpenTrack(Box::new(open)));
        self.tracks.insert(id, track);
    }

    fn publish(&mut self, id: TrackId) {
        let track = self.tracks.get_mut(&id).expect("it is there");
        let number = track.packets.len() as u64;
        let filler = match track.kind {
            MediaKind::Audio => 20 + self.dice.below(100),
            // Some do not fit the path's first MTU, and leave in two halves.
            MediaKind::Video => 200 + self.dice.below(1_150),
        };
        let keyframe = number.is_multiple_of(KEYFRAME_EVERY);
        let mut payload = [&[0x10, u8::from(!keyframe)][..], &id.0.to_be_bytes(), &number.to_be_bytes()].concat();
        payload.resize(PROLOGUE_LEN + filler, FILLER);
        let mut packet = vec![0; rtp::FIXED_HEADER_LEN];
        rtp::write_header(&mut packet, true, PAYLOAD_TYPE, number as u16, 3_000 * number as u32, id.0 as u32);
        packet.extend_from_slice(&payload);
        track.packets.push(payload);
        let (origin, socket) = (track.origin, track.socket);
        self.owed += self.holders(id).len() as u64;
        let path = Path { socket, remote: ([192, 0, 2, 1], 5_004).into() };
        self.nodes[origin].core.handle_datagram(self.now, path, &mut packet);
        self.drain(origin);
    }

    /// The nodes that have a track of another.
    fn holders(&self, id: TrackId) -> BTreeSet<usize> {
        self.aliases.iter().filter(|(_, track)| **track == id).map(|((_, to, _), _)| *to).collect()
    }

    /// Somebody on `node` watches; when it is the first there, the node asks the origin.
    fn watch(&mut self, node: usize, id: TrackId) {
        let track = &self.tracks[&id];
        let (origin, open) = (track.origin, describe(id, track));
        let kind = track.kind;
        if origin != node && !self.holders(id).contains(&node) {
            self.next_alias += 1;
            let alias = self.next_alias;
            self.aliases.insert((origin, node, alias), id);
            self.order(origin, Command::ExportToLink { track: id, link: link(node), alias, bound: None, on: true });
            let (link, extensions) = (link(origin), ExtensionIds::NONE);
            self.order(node, Command::OpenRemoteTrack { open: Box::new(open), extensions, link, alias });
        }
        let socket = self.open_section(node, id, kind);
        let viewer = Viewer { node, track: id, numbers: BTreeSet::new(), sequences: BTreeSet::new() };
        self.viewers.insert((node, socket), viewer);
    }

    /// A route out that a track is forwarded to.
    fn open_section(&mut self, node: usize, track: TrackId, kind: MediaKind) -> u16 {
        let socket = self.open_route(node, RtpPeer::Fixed(([192, 0, 2, 2], 6_000).into()));
        let subscription = SubscriptionId(socket.into());
        let open = OpenSubscription {
            subscription,
            transport: transport(socket),
            kind,
            ssrc: 7,
            first_sequence: self.dice.next() as u16 >> 1,
            first_timestamp: 0,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "".into(),
        };
        self.order(node, Command::OpenSubscription(Box::new(open)));
        let payload_types = vec![PayloadTypeMap { from: PAYLOAD_TYPE, to: PAYLOAD_TYPE, rtx: None, unwrap_red: false }];
        self.order(node, Command::Forward { subscription, track: Some(track), payload_types });
        socket
    }

    /// A viewer goes; when it was the last there, the node needs the track no more.
    fn leave(&mut self, (node, socket): (usize, u16)) {
        let viewer = self.viewers.remove(&(node, socket)).expect("it is there");
        self.order(node, Command::CloseTransport { transport: transport(socket) });
        if self.viewers.values().any(|other| other.node == node && other.track == viewer.track) {
            return;
        }
        let held = self.aliases.iter().find(|((_, to, _), track)| *to == node && **track == viewer.track).map(|(key, _)| *key);
        if let Some((origin, _, alias)) = held {
            self.order(node, Command::CloseTrack { track: viewer.track });
            self.order(origin, Command::ExportToLink { track: viewer.track, link: link(node), alias, bound: None, on: false });
            self.aliases.remove(&(origin, node, alias));
        }
    }

    /// A node is told to send a track back where it came from, and its origin watches it there under another name: nothing may leave.
    fn send_back(&mut self, node: usize) {
        let held: Vec<_> = self.aliases.iter().filter(|((_, to, _), _)| *to == node).map(|(key, id)| (key.0, *id)).collect();
        let Some((origin, track)) = self.dice.pick(&held) else { return };
        self.next_alias += 1;
        self.next_track += 1;
        let (alias, other_name, kind) = (self.next_alias, TrackId(self.next_track), self.tracks[&track].kind);
        self.order(node, Command::ExportToLink { track, link: link(origin), alias, bound: None, on: true });
        let open = describe(other_name, &self.tracks[&track]);
        let (link, extensions) = (link(node), ExtensionIds::NONE);
        self.order(origin, Command::OpenRemoteTrack { open: Box::new(open), extensions, link, alias });
        self.open_section(origin, other_name, kind);
    }

    fn drain(&mut self, node: usize) {
        let mut train = vec![0; 65_535];
        while let Some(Transmit { path, len, segment }) = self.nodes[node].core.poll_transmit(self.now, &mut train) {
            for bytes in train[..len].chunks(segment.map_or(len, usize::from)) {
                if path.socket == RELAY {
                    self.carry(node, path.remote, bytes);
                } else {
                    self.deliver((node, path.socket), bytes);
                }
            }
        }
        let Node { core, limited, .. } = &mut self.nodes[node];
        while let Some(event) = core.poll_event() {
            if let Event::LinkStats { link, stats } = event {
                if stats.limit == 0 {
                    limited.remove(&link)
                } else {
                    limited.insert(link)
                };
            }
        }
    }

    fn carry(&mut self, from: usize, remote: SocketAddr, bytes: &[u8]) {
        let to = (0..self.nodes.len()).find(|node| address(*node) == remote).expect("it goes to a node");
        let head = Head::read(bytes).expect("what a node sends has a head");
        if matches!(head.kind, FrameKind::Media | FrameKind::Repair | FrameKind::Part) {
            let track = self.aliases.get(&(from, to, head.alias)).map(|id| &self.tracks[id]);
            assert!(
                track.is_some_and(|track| track.origin == from),
                "alias {} crosses from {from} to {to}, which nobody asked for",
                head.alias
            );
        }
        let copies = if !self.is_calm && self.dice.once_in(50) { 2 } else { 1 };
        self.figures.twice += copies - 1;
        for _ in 0..copies {
            if !self.is_calm && self.dice.below(100) < self.lost_percent {
                self.figures.lost += 1;
                continue;
            }
            let late = if !self.is_calm && self.dice.once_in(25) { self.dice.wait_ms(30) } else { Duration::ZERO };
            let mut bytes = bytes.to_vec();
            if !self.is_calm && self.dice.once_in(300) {
                self.figures.flipped += 1;
                let at = self.dice.below(bytes.len());
                bytes[at] ^= 1 << self.dice.below(8);
            }
            self.serial += 1;
            self.under_way.insert((self.now + Duration::from_millis(20) + late, self.serial), (from, to, bytes));
        }
    }

    fn deliver(&mut self, key: (usize, u16), bytes: &[u8]) {
        let viewer = self.viewers.get_mut(&key).expect("only viewers get anything");
        let view = RtpView::parse(bytes).expect("it is RTP");
        let payload = &bytes[view.header_len()..];
        let word = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
        let (track, number) = (TrackId(word(2)), word(10));
        assert_eq!(track, viewer.track, "it is another track's");
        assert!(payload == self.tracks[&track].packets[number as usize], "it is not what was published");
        assert!(viewer.numbers.insert(number), "packet {number} of {track} comes twice to {key:?}");
        assert!(viewer.sequences.insert(view.sequence()), "two packets have one number");
        self.figures.delivered += 1;
    }

    /// Takes a node's counters, before it goes.
    fn count(&mut self, node: usize) {
        let counters = self.nodes[node].core.counters();
        self.figures.crossed += counters.relay_packets_out;
        self.figures.repairs += counters.relay_repairs_out;
    }
}

/// The number of the next packet that needs no other.
fn next_keyframe(track: &Track) -> u64 {
    (track.packets.len() as u64).next_multiple_of(KEYFRAME_EVERY)
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |of| (0..count).filter(move |other| *other != of).map(move |other| (of, other)))
}

fn address(node: usize) -> SocketAddr {
    ([10, 0, 0, 1 + node as u8], 11_000).into()
}

/// What every other node calls its link to `node`.
fn link(node: usize) -> LinkId {
    LinkId::new(1 + node as u8, 0)
}

fn transport(socket: u16) -> TransportId {
    TransportId(socket.into())
}

/// Of what `from` sends to `to`, each as node and start.
fn keys(from: (usize, u64), to: (usize, u64)) -> [u8; 28] {
    let seed = mix(mix(from.1 << 8 | from.0 as u64) ^ (to.1 << 8 | to.0 as u64));
    std::array::from_fn(|at| mix(seed ^ at as u64) as u8)
}

fn new_node(node: usize, start: u64) -> Node {
    Node { core: new_core(node), start, next_socket: FIRST_ROUTE, limited: BTreeSet::new() }
}

fn new_core(node: usize) -> Core {
    let limits = WorkerLimits { transports: 256, tracks: 64, subscriptions: 256, packets: 8_192, links: 8, ..WorkerLimits::default() };
    let mut core = Core::new(limits, Duration::from_secs(15));
    core.set_media_sockets(1);
    core.set_relay_sockets(&[address(node)]);
    core
}

fn describe(id: TrackId, track: &Track) -> OpenTrack {
    let codec = if track.kind == MediaKind::Video { Codec::Vp8 } else { Codec::Opus };
    OpenTrack {
        track: id,
        transport: transport(track.socket),
        kind: track.kind,
        ssrc: None,
        rtx_ssrc: None,
        mid: "".into(),
        layers: Vec::new(),
        order: Vec::new(),
        payload_types: vec![PayloadType { number: PAYLOAD_TYPE, codec, rtx: None }],
        nack: false,
        pli: false,
        fir: false,
    }
}
