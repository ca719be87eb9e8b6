//! A worker on its thread, with real sockets, on both back ends.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use pop_dataplane::limits::{ADDED_SOCKETS_MAX, WorkerLimits};
use pop_dataplane::{Clock, Service, Worker, WorkerConfig};
use pop_proto::Command;
use pop_proto::wire::stun;
use pop_schemas::TransportId;
use pop_uring::{BackendKind, bind_udp};

mod common;

/// Longer than any answer on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(5);

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

for_both!(an_added_socket_is_found_by_the_command_behind_it_and_is_gone_after_its_removal, no_more_sockets_than_the_plan_has_are_added);

fn worker(backend: BackendKind) -> Worker {
    let clock = Clock::start();
    let service = Service::start(clock).expect("a service thread");
    let config = WorkerConfig {
        index: 0,
        core: None,
        backend,
        may_fall_back: false,
        addresses: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        limits: WorkerLimits { recv_buffers: 16, ..common::limits() },
        gro: true,
        consent: common::CONSENT,
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
        let start = Instant::now();
        while check(&peer, to) != Some(to) {
            assert!(start.elapsed() < PATIENCE, "the added socket answers nothing");
        }
        while check(&peer, media) != Some(media) {
            assert!(start.elapsed() < PATIENCE, "the first socket answers no more");
        }
        worker.send(Command::CloseTransport { transport: TransportId(1) }).expect("there is room");
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
    assert_eq!(indexes, [1; 10], "an index is used again");
    assert!(worker.remove_socket(0).is_err(), "the media socket stays");
}

fn no_more_sockets_than_the_plan_has_are_added(backend: BackendKind) {
    let worker = worker(backend);
    let indexes: Vec<_> = (0..ADDED_SOCKETS_MAX).map(|_| worker.add_socket(loopback()).expect("there is room")).collect();
    assert_eq!(indexes, (1..=ADDED_SOCKETS_MAX).collect::<Vec<_>>());
    let refused = worker.add_socket(loopback()).expect_err("there is no room").to_string();
    assert!(refused.contains("serves 256 added sockets already"), "{refused}");
    worker.remove_socket(17).expect("it was added");
    let socket = loopback();
    let to = socket.local_addr().expect("bound");
    assert_eq!(worker.add_socket(socket).expect("one place is free"), 17);
    worker.send(Command::OpenTransport(Box::new(common::open_transport(1)))).expect("there is room");
    let (peer, start) = (peer(), Instant::now());
    while check(&peer, to) != Some(to) {
        assert!(start.elapsed() < PATIENCE, "the socket in the freed place answers nothing");
    }
}
