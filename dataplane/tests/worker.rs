//! A worker on its thread, with real sockets, on both back ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use pop_dataplane::limits::{ADDED_SOCKETS_MAX, WorkerLimits};
use pop_dataplane::{Clock, Crossing, Service, Worker, WorkerConfig, WorkerSnapshot};
use pop_proto::control::{ExtensionIds, LinkId, LinkKeys, Numbering, OpenLink, OpenRtp, OpenTrack, PayloadTypeMap, RtcpVia, RtpPeer};
use pop_proto::wire::{rtp, stun};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{NodeId, SubscriptionId, TrackId, TransportId};
use pop_uring::{BackendKind, bind_udp};

mod common;

/// Longer than any answer on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sockets of a [`worker`]: two of its media port, one of its relay port.
const OWN_SOCKETS: u16 = 3;

/// Every test runs once per back end.
macro_rules! for_both {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() { super::$name(pop_uring::BackendKind::Uring); })*
        }
        mod mmsg {
            $(#[test] fn $name() { super::$name(pop_uring::BackendKind::Mmsg); })*
        }
    };
}

for_both!(
    an_added_socket_is_found_by_the_command_behind_it_and_is_gone_after_its_removal,
    no_more_sockets_than_the_plan_has_are_added,
    a_check_over_tcp_is_answered_in_a_frame_and_its_connection_ends_with_its_transport,
    strangers_on_the_tcp_port_disturb_neither_udp_nor_tcp,
    an_idle_worker_sleeps,
    a_worker_that_polls_busily_stays_awake_after_a_datagram_and_then_sleeps,
    two_workers_of_different_nodes_pass_media_over_their_relay_ports,
);

fn worker(backend: BackendKind) -> Worker {
    start(backend, 0, Duration::ZERO)
}

fn start(backend: BackendKind, index: usize, busy_poll: Duration) -> Worker {
    let clock = Clock::start();
    let service = Service::start(clock).expect("a service thread");
    let config = WorkerConfig {
        index,
        core: None,
        backend,
        may_fall_back: false,
        addresses: vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()],
        relay: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        limits: WorkerLimits { recv_buffers: 16, links: 4, ..common::limits() },
        gro: true,
        busy_poll,
        consent: common::CONSENT,
        probe: None,
        crossing: Crossing::new(index + 1),
    };
    Worker::start(config, clock, service.taps()).expect("a worker").0
}

fn loopback() -> UdpSocket {
    bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 1 << 16, 1 << 16).expect("loopback")
}

/// A client's socket: it waits a little for an answer.
fn peer() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    socket
}

/// One check of transport 1, and who answered it.
fn check(peer: &UdpSocket, to: SocketAddr) -> Option<SocketAddr> {
    peer.send_to(&common::check(1, common::PWD), to).expect("loopback");
    let mut answer = [0; 256];
    let (len, from) = peer.recv_from(&mut answer).ok()?;
    let answer = stun::Message::parse(&answer[..len]).expect("an answer");
    assert_eq!(answer.mapped_address(), peer.local_addr().ok());
    Some(from)
}

/// Opens a route as transport 2 on the socket at `index`.
fn open_route(worker: &Worker, socket: u16) {
    let open = OpenRtp {
        transport: TransportId(2),
        socket,
        rtcp: RtcpVia::Off,
        peer: RtpPeer::Learnt { silence: PATIENCE, never: None },
        keys: None,
        numbering: Numbering::Own,
        rtcp_ssrc: 9,
        cname: "pop".into(),
    };
    worker.send(Command::OpenRtp(Box::new(open))).expect("there is room");
    let track = OpenTrack { ssrc: None, ..common::Rig::track(2) };
    worker.send(Command::OpenTrack(Box::new(track))).expect("there is room");
}

/// Sends RTP to the route of [`open_route`] at `to` until it has learnt its peer.
fn wait_until_learnt(worker: &Worker, peer: &UdpSocket, to: SocketAddr) {
    let from = peer.local_addr().expect("bound");
    let learnt = |event| matches!(event, Event::TransportValidated { transport: TransportId(2), remote } if remote == from);
    let mut packet = [7; 40];
    rtp::write_header(&mut packet, true, 96, 1, 90, 5);
    let start = Instant::now();
    while !std::iter::from_fn(|| worker.poll_event()).any(learnt) {
        assert!(start.elapsed() < PATIENCE, "the added socket takes nothing");
        peer.send_to(&packet, to).expect("loopback");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn an_added_socket_is_found_by_the_command_behind_it_and_is_gone_after_its_removal(backend: BackendKind) {
    let worker = worker(backend);
    let media = worker.addresses()[0];
    let peer = peer();
    let mut indexes = Vec::new();
    for _ in 0..10 {
        let socket = loopback();
        let to = socket.local_addr().expect("bound");
        let index = worker.add_socket(socket).expect("there is room");
        worker.send(Command::OpenTransport(Box::new(common::open_transport(1)))).expect("there is room");
        open_route(&worker, index);
        wait_until_learnt(&worker, &peer, to);
        assert_eq!(check(&peer, to), None, "a route's port answers no checks");
        let start = Instant::now();
        while check(&peer, media) != Some(media) {
            assert!(start.elapsed() < PATIENCE, "the first socket answers no more");
        }
        for id in [1, 2] {
            worker.send(Command::CloseTransport { transport: TransportId(id) }).expect("there is room");
        }
        worker.remove_socket(index).expect("it was added");
        let refused = worker.remove_socket(index).expect_err("it is gone");
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
        let start = Instant::now();
        while bind_udp(to, 1 << 16, 1 << 16).is_err() {
            assert!(start.elapsed() < PATIENCE, "the removed socket keeps its port");
            std::thread::sleep(Duration::from_millis(1));
        }
        indexes.push(index);
    }
    assert_eq!(indexes, [OWN_SOCKETS; 10], "an index is used again");
    assert!(worker.remove_socket(0).is_err() && worker.remove_socket(2).is_err(), "the media and the relay socket stay");
}

fn no_more_sockets_than_the_plan_has_are_added(backend: BackendKind) {
    let worker = worker(backend);
    let indexes: Vec<_> = (0..ADDED_SOCKETS_MAX).map(|_| worker.add_socket(loopback()).expect("there is room")).collect();
    assert_eq!(indexes, (OWN_SOCKETS..ADDED_SOCKETS_MAX + OWN_SOCKETS).collect::<Vec<_>>());
    let refused = worker.add_socket(loopback()).expect_err("there is no room").to_string();
    assert!(refused.contains("serves 256 added sockets already"), "{refused}");
    worker.remove_socket(17).expect("it was added");
    let socket = loopback();
    let to = socket.local_addr().expect("bound");
    assert_eq!(worker.add_socket(socket).expect("one place is free"), 17);
    open_route(&worker, 17);
    wait_until_learnt(&worker, &peer(), to);
}

/// One check of transport `id` over a connection: the mapped address of its answer, `None` when the connection ends.
fn check_over(stream: &mut TcpStream, id: u64, password: &str) -> Option<SocketAddr> {
    let check = common::check(id, password);
    stream.write_all(&[&(check.len() as u16).to_be_bytes()[..], &check].concat()).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).expect("a frame is never cut");
    stun::Message::parse(&answer).expect("an answer").mapped_address()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("the media port takes TCP");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Waits until the worker's published figures are as asked.
fn wait_for(worker: &Worker, what: impl Fn(&WorkerSnapshot) -> bool) -> WorkerSnapshot {
    let start = Instant::now();
    loop {
        let snapshot = worker.snapshot();
        if what(&snapshot) {
            return snapshot;
        }
        assert!(start.elapsed() < PATIENCE, "{snapshot:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_check_over_tcp_is_answered_in_a_frame_and_its_connection_ends_with_its_transport(backend: BackendKind) {
    let worker = worker(backend);
    worker.send(Command::OpenTransport(Box::new(common::open_transport(1)))).expect("there is room");
    let mut streams: Vec<TcpStream> = worker.addresses().iter().map(|address| connect(*address)).collect();
    for stream in &mut streams {
        for _ in 0..3 {
            assert_eq!(check_over(stream, 1, common::PWD), stream.local_addr().ok());
        }
    }
    wait_for(&worker, |snapshot| snapshot.gauges.tcp_connections == 2 && snapshot.counters.ice_checks_ok == 6);
    let goodbye = [21, 0xfe, 0xfd, 0, 0];
    worker.send(Command::SendDtls { transport: TransportId(1), datagram: goodbye.into() }).expect("there is room");
    worker.send(Command::CloseTransport { transport: TransportId(1) }).expect("there is room");
    let mut told = Vec::new();
    for stream in &mut streams {
        stream.read_to_end(&mut told).expect("an orderly end");
    }
    assert_eq!(told, [&[0, 5][..], &goodbye].concat(), "what was said last still leaves, by the path that is selected");
    let end = wait_for(&worker, |snapshot| snapshot.gauges.tcp_connections == 0);
    assert_eq!((end.counters.tcp_accepted, end.counters.tcp_unproven), (2, 0));
}

fn strangers_on_the_tcp_port_disturb_neither_udp_nor_tcp(backend: BackendKind) {
    let worker = worker(backend);
    let media = worker.addresses()[0];
    for id in [1, 2] {
        worker.send(Command::OpenTransport(Box::new(common::open_transport(id)))).expect("there is room");
    }
    let (udp, mut tcp) = (peer(), connect(media));
    let start = Instant::now();
    while check(&udp, media) != Some(media) {
        assert!(start.elapsed() < PATIENCE, "UDP answers nothing");
    }
    assert_eq!(check_over(&mut tcp, 2, common::PWD), tcp.local_addr().ok());
    let mut slowest = Duration::ZERO;
    for round in 0..300u32 {
        // Wrong user, wrong password, no frame, half a frame, a reset; each from an address of its own.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 3, (round >> 8) as u8, round as u8], 0)).into()).expect("loopback");
        socket.connect(&media.into()).expect("the kernel takes it");
        let mut stranger = TcpStream::from(socket);
        stranger.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
        match round % 5 {
            0 => assert_eq!(check_over(&mut stranger, 77, common::PWD), None),
            1 => assert_eq!(check_over(&mut stranger, 1, "a wrong password of 22"), None),
            2 => drop(stranger.write_all(b"GET / HTTP/1.1\r\n\r\n")),
            3 => drop(stranger.write_all(&[0, 100, 0, 1])),
            _ => socket2::SockRef::from(&stranger).set_linger(Some(Duration::ZERO)).expect("an option"),
        }
        let asked = Instant::now();
        assert_eq!(check(&udp, media), Some(media), "UDP in round {round}");
        assert_eq!(check_over(&mut tcp, 2, common::PWD), tcp.local_addr().ok(), "TCP in round {round}");
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "an honest client waited {slowest:?}");
    // The last stranger's bytes may be read after its connection was taken.
    let end = wait_for(&worker, |snapshot| snapshot.counters.tcp_accepted == 301 && snapshot.counters.tcp_misframed >= 60);
    assert_eq!((end.counters.ice_checks_ok >= 602, end.counters.tcp_misframed), (true, 60), "{:?}", end.counters);
    assert_eq!(end.drops[DropReason::StunIntegrity as usize] + end.drops[DropReason::StunUnknownUser as usize], 120);
}

/// CPU time of the worker's thread in nanoseconds. The index is the test's own: threads of other tests have other names.
fn cpu_ns(index: usize) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten();
    let name = format!("pop-worker-{index}");
    let of_worker = |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let task = tasks.map(|task| task.path()).find(|task| of_worker(task)).expect("the thread runs");
    let schedstat = std::fs::read_to_string(task.join("schedstat")).expect("the kernel counts");
    schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds")
}

fn an_idle_worker_sleeps(backend: BackendKind) {
    let index = 3 + usize::from(backend == BackendKind::Mmsg);
    let worker = start(backend, index, Duration::ZERO);
    loopback().send_to(b"noise", worker.addresses()[0]).expect("loopback");
    std::thread::sleep(Duration::from_millis(50));
    let (cpu, turns) = (cpu_ns(index), worker.snapshot().counters.turns);
    std::thread::sleep(Duration::from_millis(500));
    let (used, turned) = (cpu_ns(index) - cpu, worker.snapshot().counters.turns - turns);
    assert!(used < 5_000_000 && turned <= 2, "{used} ns and {turned} turns in half a second of nothing");
}

fn a_worker_that_polls_busily_stays_awake_after_a_datagram_and_then_sleeps(backend: BackendKind) {
    const BUSY: Duration = Duration::from_millis(300);
    let index = 5 + usize::from(backend == BackendKind::Mmsg);
    let worker = start(backend, index, BUSY);
    let asleep = || {
        let start = Instant::now();
        loop {
            let turns = worker.snapshot().counters.turns;
            std::thread::sleep(Duration::from_millis(100));
            if worker.snapshot().counters.turns == turns {
                return turns;
            }
            assert!(start.elapsed() < PATIENCE, "it never sleeps");
        }
    };
    let before = asleep();
    loopback().send_to(b"noise", worker.addresses()[0]).expect("loopback");
    std::thread::sleep(BUSY);
    let after = asleep();
    assert!(after - before > 1_000, "{} turns in {BUSY:?}: it did not stay awake", after - before);
    let cpu = cpu_ns(index);
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_ns(index) - cpu < 5_000_000, "it does not sleep when nothing comes");
}

fn two_workers_of_different_nodes_pass_media_over_their_relay_ports(backend: BackendKind) {
    let (origin, edge) = (worker(backend), worker(backend));
    let order = |worker: &Worker, command| worker.send(command).expect("there is room");
    let link = |of: u8, other: u8, remote: &Worker| {
        let keys = LinkKeys { send: [of; 28], receive: [other; 28] };
        let remote = remote.relay_addresses()[0];
        let (own, node) = (NodeId(of.into()), NodeId(other.into()));
        let open = OpenLink {
            link: LinkId::new(other, 0),
            own,
            node,
            remote,
            version: 1,
            remote_link: LinkId::new(of, 0),
            keys,
            is_abroad: false,
            generation: 0,
            playout: PATIENCE,
        };
        Command::OpenLink(Box::new(open))
    };
    order(&origin, link(1, 2, &edge));
    order(&edge, link(2, 1, &origin));
    // An RTP route publishes here, and another sends on there.
    let socket = loopback();
    let to = socket.local_addr().expect("bound");
    open_route(&origin, origin.add_socket(socket).expect("there is room"));
    let track = OpenTrack { ssrc: None, ..common::Rig::track(2) };
    order(&origin, Command::ExportToLink { track: TrackId(2), link: LinkId::new(2, 0), alias: 9, bound: None, on: true });
    let remote = Command::OpenRemoteTrack { open: Box::new(track), extensions: ExtensionIds::NONE, link: LinkId::new(1, 0), alias: 9 };
    order(&edge, remote);
    let (source, sink) = (peer(), peer());
    let route = OpenRtp {
        transport: TransportId(3),
        socket: edge.add_socket(loopback()).expect("there is room"),
        rtcp: RtcpVia::Off,
        peer: RtpPeer::Fixed(sink.local_addr().expect("bound")),
        keys: None,
        numbering: Numbering::Own,
        rtcp_ssrc: 9,
        cname: "pop".into(),
    };
    order(&edge, Command::OpenRtp(Box::new(route)));
    order(&edge, Command::OpenSubscription(Box::new(common::Rig::subscription(3))));
    let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: None, unwrap_red: false }];
    order(&edge, Command::Forward { subscription: SubscriptionId(3), track: Some(TrackId(2)), payload_types });
    let start = Instant::now();
    let (mut sequence, mut seen) = (0u16, 0);
    let mut packet = [0; 1_500];
    while seen < 100 {
        assert!(start.elapsed() < PATIENCE, "{:?} {:?}", origin.snapshot().counters, edge.snapshot().counters);
        // Each a picture, so that none waits for another.
        let mut sent = vec![0; 12];
        rtp::write_header(&mut sent, true, 96, sequence, 3_000 * u32::from(sequence), 5);
        sent.extend(common::vp8(true, 500));
        source.send_to(&sent, to).expect("loopback");
        sequence += 1;
        if let Ok((len, _)) = sink.recv_from(&mut packet) {
            assert_eq!(packet[12..len], sent[12..]);
            seen += 1;
        }
    }
    let edge = wait_for(&edge, |snapshot| snapshot.counters.relay_packets_in >= 100);
    assert_eq!((edge.counters.rtp_packets_in, edge.gauges.links, edge.gauges.remotes), (0, 1, 1), "{:?}", edge.counters);
}
