//! Two workers with a sealed link between them: an RTP route publishes at the origin, another sends on at the edge.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use pop_dataplane::limits::WorkerLimits;
use pop_dataplane::worker::SOCKET_BUFFER_LEN;
use pop_dataplane::{Clock, Counters, Crossing, Service, Worker, WorkerConfig};
use pop_proto::Command;
use pop_proto::control::{
    Codec, ExtensionIds, LinkId, LinkKeys, MediaKind, Numbering, OpenLink, OpenRtp, OpenSubscription, OpenTrack, PayloadType,
    PayloadTypeMap, RtcpVia, RtpPeer,
};
use pop_relay::control::VERSION;
use pop_relay::keys::{KEYS_LEN, derive};
use pop_schemas::{NodeId, SubscriptionId, TrackId, TransportId};
use pop_uring::{bind_udp, enter_namespace};

use super::RelayArgs;
use crate::machine;
use crate::network::Network;
use crate::random::random_bytes;
use crate::sdp::Media;

/// The origin is node 1, the edge node 2, and the workers of both are number 0 to the other.
const ORIGIN: u8 = 1;
const EDGE: u8 = 2;
/// Ids on both, and the track's name on the link.
const TRACK: TrackId = TrackId(1);
const SUBSCRIPTION: SubscriptionId = SubscriptionId(2);
const ALIAS: u16 = 9;
/// As of a node: `mesh.playout`'s default.
const PLAYOUT: Duration = Duration::from_millis(150);
/// Counters are copied out more often than this.
const COUNTERS_AGE: Duration = Duration::from_millis(100);

/// Both workers; they end with this.
pub(super) struct Workers {
    origin: Worker,
    edge: Worker,
    cpu: [machine::Workers; 2],
    /// Where the origin takes RTP.
    pub(super) route: SocketAddr,
    _service: Service,
}

/// What both have spent.
pub(super) struct Spent {
    pub(super) origin_ns: u64,
    pub(super) edge_ns: u64,
    /// Heap allocations of both.
    pub(super) allocations: u64,
    /// UDP payload of the link's datagrams, from the origin and back.
    pub(super) bytes_out: u64,
    pub(super) bytes_back: u64,
    /// RTP packets in them, headers included.
    pub(super) media_bytes_out: u64,
    pub(super) repairs: u64,
    trains: u64,
    datagrams: u64,
}

impl Spent {
    /// What came on top of `before`.
    pub(super) fn since(&self, before: &Spent) -> Spent {
        Spent {
            origin_ns: self.origin_ns - before.origin_ns,
            edge_ns: self.edge_ns - before.edge_ns,
            allocations: self.allocations - before.allocations,
            bytes_out: self.bytes_out - before.bytes_out,
            bytes_back: self.bytes_back - before.bytes_back,
            media_bytes_out: self.media_bytes_out - before.media_bytes_out,
            repairs: self.repairs - before.repairs,
            trains: self.trains - before.trains,
            datagrams: self.datagrams - before.datagrams,
        }
    }

    /// Datagrams of one send of the origin.
    pub(super) fn train_mean(&self) -> f64 {
        self.datagrams as f64 / self.trains.max(1) as f64
    }

    /// Share of the link's UDP payload bytes, both ways, that are not RTP.
    pub(super) fn share_not_rtp(&self) -> f64 {
        1.0 - self.media_bytes_out as f64 / (self.bytes_out + self.bytes_back).max(1) as f64
    }
}

impl Workers {
    /// The origin at the network's end for nodes, the edge at the load's, which sends to `sink`. The error is a sentence.
    pub(super) fn start(args: &RelayArgs, network: &Network, sink: SocketAddr) -> Result<Workers, String> {
        let clock = Clock::start();
        let service = Service::start(clock).map_err(|e| format!("the service thread: {e}"))?;
        let start = |index: usize, core: usize, address: IpAddr| start(args, index, core, address, clock, &service);
        let (origin, route_in) = match network.namespace() {
            None => start(0, args.server_core, network.node_address())?,
            // Sockets are of the namespace of the thread that makes them.
            Some(namespace) => thread::scope(|scope| {
                let inside = || {
                    enter_namespace(Path::new(&namespace)).map_err(|e| format!("{namespace}: {e}"))?;
                    start(0, args.server_core, network.node_address())
                };
                scope.spawn(inside).join().map_err(|_| "the origin's start panicked".to_owned())?
            })?,
        };
        let (edge, route_out) = start(1, args.edge_core(), network.load_address())?;
        let route = route_in.local_addr().map_err(|e| format!("the route's socket: {e}"))?;
        let pid = std::process::id();
        let cpu = [machine::Workers::find_one(pid, 0)?, machine::Workers::find_one(pid, 1)?];
        let workers = Workers { origin, edge, cpu, route, _service: service };
        workers.connect()?;
        workers.open_routes((route_in, route_out), sink)?;
        Ok(workers)
    }

    fn connect(&self) -> Result<(), String> {
        let secret = random_bytes();
        let keys = |from: u8, to: u8| -> [u8; KEYS_LEN] { derive(&secret, 0, (NodeId(from.into()), 0), (NodeId(to.into()), 0)) };
        for (own, of, other, remote) in [(&self.origin, ORIGIN, EDGE, &self.edge), (&self.edge, EDGE, ORIGIN, &self.origin)] {
            let open = OpenLink {
                link: LinkId::new(other, 0),
                own: NodeId(of.into()),
                node: NodeId(other.into()),
                remote: remote.relay_addresses()[0],
                version: VERSION,
                remote_link: LinkId::new(of, 0),
                keys: LinkKeys { send: keys(of, other), receive: keys(other, of) },
                is_abroad: false,
                generation: 0,
                playout: PLAYOUT,
            };
            order(own, Command::OpenLink(Box::new(open)))?;
        }
        Ok(())
    }

    fn open_routes(&self, (route_in, route_out): (UdpSocket, UdpSocket), sink: SocketAddr) -> Result<(), String> {
        let added = |e: io::Error| format!("a route's socket: {e}");
        let (into, out) = (self.origin.add_socket(route_in).map_err(added)?, self.edge.add_socket(route_out).map_err(added)?);
        let payload_type = Media::Video.payload_type();
        let track = OpenTrack {
            track: TRACK,
            transport: TransportId(1),
            kind: MediaKind::Video,
            ssrc: None,
            rtx_ssrc: None,
            mid: "".into(),
            layers: Vec::new(),
            order: Vec::new(),
            payload_types: vec![PayloadType { number: payload_type, codec: Codec::Vp8, rtx: None }],
            nack: false,
            pli: false,
            fir: false,
        };
        let (link, alias) = (LinkId::new(EDGE, 0), ALIAS);
        order(&self.origin, open_route(into, RtpPeer::Learnt { silence: Duration::from_secs(60), never: None }))?;
        order(&self.origin, Command::OpenTrack(Box::new(track.clone())))?;
        order(&self.origin, Command::ExportToLink { track: TRACK, link, alias, bound: None, on: true })?;
        let (link, extensions) = (LinkId::new(ORIGIN, 0), ExtensionIds::NONE);
        order(&self.edge, Command::OpenRemoteTrack { open: Box::new(track), extensions, link, alias })?;
        order(&self.edge, open_route(out, RtpPeer::Fixed(sink)))?;
        let subscription = OpenSubscription {
            subscription: SUBSCRIPTION,
            transport: TransportId(1),
            kind: MediaKind::Video,
            ssrc: 7,
            first_sequence: 0,
            first_timestamp: 0,
            rtx_ssrc: None,
            extensions,
            mid: "".into(),
        };
        order(&self.edge, Command::OpenSubscription(Box::new(subscription)))?;
        let payload_types = vec![PayloadTypeMap { from: payload_type, to: payload_type, rtx: None, unwrap_red: false }];
        order(&self.edge, Command::Forward { subscription: SUBSCRIPTION, track: Some(TRACK), payload_types })
    }

    /// What they have spent since their start. What they told meanwhile is forgotten.
    pub(super) fn spent(&self) -> Result<Spent, String> {
        thread::sleep(COUNTERS_AGE);
        while self.origin.poll_event().or_else(|| self.edge.poll_event()).is_some() {}
        let (origin, edge): (Counters, Counters) = (self.origin.snapshot().counters, self.edge.snapshot().counters);
        Ok(Spent {
            origin_ns: self.cpu[0].cpu_ns()?,
            edge_ns: self.cpu[1].cpu_ns()?,
            allocations: origin.allocations + edge.allocations,
            bytes_out: origin.relay_bytes_out,
            bytes_back: edge.relay_bytes_out,
            media_bytes_out: origin.relay_media_bytes_out,
            repairs: origin.relay_repairs_out,
            trains: origin.trains_out,
            datagrams: origin.datagrams_out,
        })
    }
}

fn order(worker: &Worker, command: Command) -> Result<(), String> {
    worker.send(command).map_err(|_| "a worker's queue is full".to_owned())
}

/// One worker, and a socket for a route of it.
fn start(
    args: &RelayArgs,
    index: usize,
    core: usize,
    address: IpAddr,
    clock: Clock,
    service: &Service,
) -> Result<(Worker, UdpSocket), String> {
    let any_port = SocketAddr::new(address, 0);
    let config = WorkerConfig {
        index,
        core: Some(core),
        backend: args.backend,
        may_fall_back: true,
        addresses: vec![any_port],
        relay: vec![any_port],
        limits: WorkerLimits { transports: 8, tracks: 8, subscriptions: 8, tcp_connections: 0, links: 1, ..WorkerLimits::default() },
        gro: true,
        busy_poll: Duration::ZERO,
        consent: Duration::from_secs(15),
        probe: None,
        crossing: Crossing::new(index + 1),
    };
    let (worker, _) = Worker::start(config, clock, service.taps()).map_err(|e| format!("a worker on {address}: {e}"))?;
    let socket = bind_udp(any_port, SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN).map_err(|e| format!("a route on {address}: {e}"))?;
    Ok((worker, socket))
}

fn open_route(socket: u16, peer: RtpPeer) -> Command {
    Command::OpenRtp(Box::new(OpenRtp {
        transport: TransportId(1),
        socket,
        rtcp: RtcpVia::Off,
        peer,
        keys: None,
        numbering: Numbering::Own,
        rtcp_ssrc: 9,
        cname: "bench".into(),
    }))
}
