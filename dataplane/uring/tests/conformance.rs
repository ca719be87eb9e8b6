//! What a back end promises, held against both of them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use pop_uring::{Backend, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, Waker, bind_udp, wake_pair};

/// Longer than any loopback delivery on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(5);

trait Make: Backend + Sized {
    fn make(sockets: Vec<UdpSocket>, config: &IoConfig) -> (Self, Waker);
}

impl Make for UringBackend {
    fn make(sockets: Vec<UdpSocket>, config: &IoConfig) -> (Self, Waker) {
        let (waker, wake) = wake_pair().expect("an eventfd");
        (Self::new(sockets, wake, config).expect("a ring"), waker)
    }
}

impl Make for MmsgBackend {
    fn make(sockets: Vec<UdpSocket>, config: &IoConfig) -> (Self, Waker) {
        let (waker, wake) = wake_pair().expect("an eventfd");
        (Self::new(sockets, wake, config).expect("memory"), waker)
    }
}

/// Every test runs once per back end: `uring::NAME` and `mmsg::NAME`.
macro_rules! for_both {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() { super::$name::<pop_uring::UringBackend>(); })*
        }
        mod mmsg {
            $(#[test] fn $name() { super::$name::<pop_uring::MmsgBackend>(); })*
        }
    };
}

for_both!(
    single_datagrams_come_back_as_they_were_sent,
    a_train_leaves_as_datagrams,
    a_train_is_received_whole_and_split_by_its_segment,
    a_run_without_gro_arrives_one_by_one,
    ipv4_and_ipv6_sockets_are_told_apart,
    slots_run_out_and_come_back,
    a_released_slot_is_free_again,
    more_datagrams_than_buffers_pause_reception_but_lose_none,
    a_full_socket_queue_is_counted_as_kernel_drops,
    datagrams_left_unread_are_there_after_the_next_turn,
    a_wake_up_ends_the_wait,
    a_wake_up_before_the_wait_is_not_lost,
    an_idle_wait_ends_in_time,
    a_turn_without_waiting_returns_at_once,
    an_icmp_error_does_not_stop_reception,
    a_train_after_an_icmp_error_still_leaves,
    an_empty_datagram_is_received,
    empty_datagrams_do_not_stop_reception,
    an_oversized_datagram_is_dropped_and_counted,
    a_train_that_the_kernel_refuses_leaves_datagram_by_datagram,
    a_refused_datagram_is_counted_and_frees_its_slot,
    many_sockets_are_all_served,
    back_ends_come_and_go,
    a_socket_is_added_and_removed_while_traffic_flows,
    an_index_is_used_again_and_its_former_socket_is_not_heard,
    sends_in_flight_leave_by_the_socket_that_they_were_meant_for,
    a_train_for_a_removed_socket_is_counted_and_frees_its_slot,
    a_removed_socket_lets_go_of_its_port,
    an_index_out_of_room_or_taken_is_refused,
    a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable,
    a_back_end_that_polls_busily_still_sleeps_and_wakes,
);

fn small() -> IoConfig {
    IoConfig { recv_buffers: 64, recv_buffer_len: 65_536, trains: 8, train_len: 65_000, gro: true, ..IoConfig::default() }
}

fn loopback_v4() -> UdpSocket {
    bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 4 << 20, 4 << 20).expect("IPv4 loopback")
}

fn loopback_v6() -> UdpSocket {
    bind_udp((Ipv6Addr::LOCALHOST, 0).into(), 4 << 20, 4 << 20).expect("IPv6 loopback")
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("a bound socket")
}

/// A blocking socket of the test's own, the peer of the back end.
fn peer() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("IPv4 loopback");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

/// A received buffer, kept.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    socket: u16,
    from: SocketAddr,
    segment: usize,
    datagrams: Vec<Vec<u8>>,
}

fn receive_all(backend: &mut impl Backend, kept: &mut Vec<Kept>) {
    while let Some(mut received) = backend.receive() {
        let (socket, from, segment) = (received.socket, received.from, received.segment);
        kept.push(Kept { socket, from, segment, datagrams: received.datagrams().map(|d| d.to_vec()).collect() });
    }
}

/// Turns until `count` datagrams are there.
fn receive_count(backend: &mut impl Backend, count: usize) -> Vec<Kept> {
    let start = Instant::now();
    let mut kept = Vec::new();
    while kept.iter().map(|k: &Kept| k.datagrams.len()).sum::<usize>() < count {
        assert!(start.elapsed() < PATIENCE, "only {kept:?} of {count}; {:?}", backend.stats());
        backend.turn(Wait::AtMost(Duration::from_millis(100))).expect("a turn");
        receive_all(backend, &mut kept);
    }
    kept
}

fn send(backend: &mut impl Backend, socket: u16, to: SocketAddr, bytes: &[u8], segment: Option<u16>) {
    let id = backend.acquire().expect("a free slot");
    backend.train(&id)[..bytes.len()].copy_from_slice(bytes);
    backend.send(id, Transmit { socket, to, len: bytes.len(), segment });
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn single_datagrams_come_back_as_they_were_sent<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    let peer = peer();
    for len in [1, 12, 1_200, 1_472, 9_000, 65_507] {
        let sent = pattern(len);
        peer.send_to(&sent, to).expect("loopback");
        let kept = receive_count(&mut backend, 1);
        assert_eq!(kept, [Kept { socket: 0, from: address(&peer), segment: len, datagrams: vec![sent.clone()] }]);
        if len <= 65_000 {
            send(&mut backend, 0, address(&peer), &sent, None);
            backend.turn(Wait::No).expect("a turn");
            let mut echoed = vec![0; 65_536];
            let (echoed_len, from) = peer.recv_from(&mut echoed).expect("the echo");
            assert_eq!((&echoed[..echoed_len], from), (&sent[..], to));
        }
    }
    let stats = backend.stats();
    assert_eq!((stats.datagrams_received, stats.trains_sent, stats.sends_failed), (6, 5, 0));
    assert_eq!((stats.truncated, stats.receive_errors, stats.kernel_drops), (0, 0, 0));
}

fn a_train_leaves_as_datagrams<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let peer = peer();
    let sent = pattern(1_200 * 9 + 7);
    send(&mut backend, 0, address(&peer), &sent, Some(1_200));
    backend.turn(Wait::No).expect("a turn");
    let mut buffer = [0; 2_000];
    for segment in sent.chunks(1_200) {
        let (len, _) = peer.recv_from(&mut buffer).expect("a segment");
        assert_eq!(&buffer[..len], segment);
    }
    let stats = backend.stats();
    assert_eq!((stats.trains_sent, stats.datagrams_sent, stats.bytes_sent, stats.gso_refused), (1, 10, 10_807, 0));
}

fn a_train_is_received_whole_and_split_by_its_segment<B: Make>() {
    let (left, right) = (loopback_v4(), loopback_v4());
    let (from, to) = (address(&left), address(&right));
    let (mut backend, _waker) = B::make(vec![left, right], &small());
    let sent = pattern(1_100 * 58 + 501);
    send(&mut backend, 0, to, &sent, Some(1_100));
    let kept = receive_count(&mut backend, 59);
    let datagrams = sent.chunks(1_100).map(<[u8]>::to_vec).collect();
    assert_eq!(kept, [Kept { socket: 1, from, segment: 1_100, datagrams }]);
    let stats = backend.stats();
    assert_eq!((stats.trains_received, stats.datagrams_received, stats.bytes_received), (1, 59, sent.len() as u64));
}

fn a_run_without_gro_arrives_one_by_one<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &IoConfig { gro: false, recv_buffer_len: 2_048, ..small() });
    let sent = pattern(1_100 * 10);
    send(&mut backend, 0, to, &sent, Some(1_100));
    let kept = receive_count(&mut backend, 10);
    assert!(kept.iter().all(|k| k.segment == 1_100 && k.datagrams.len() == 1));
    assert_eq!(kept.into_iter().flat_map(|k| k.datagrams.concat()).collect::<Vec<_>>(), sent);
}

fn ipv4_and_ipv6_sockets_are_told_apart<B: Make>() {
    let (v4, v6) = (loopback_v4(), loopback_v6());
    let (v4_address, v6_address) = (address(&v4), address(&v6));
    let (mut backend, _waker) = B::make(vec![v4, v6], &small());
    send(&mut backend, 0, v4_address, b"four", None);
    send(&mut backend, 1, v6_address, &pattern(2_500), Some(1_000));
    send(&mut backend, 1, v6_address, b"six", None);
    let mut kept = receive_count(&mut backend, 5);
    kept.sort_by_key(|k| k.socket);
    assert_eq!(kept[0], Kept { socket: 0, from: v4_address, segment: 4, datagrams: vec![b"four".to_vec()] });
    let six: Vec<_> = kept[1..].iter().flat_map(|k| k.datagrams.clone()).collect();
    assert!(kept[1..].iter().all(|k| k.socket == 1 && k.from == v6_address));
    assert_eq!(six.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500, 3]);
}

fn slots_run_out_and_come_back<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let peer = peer();
    for _ in 0..20 {
        for _ in 0..8 {
            send(&mut backend, 0, address(&peer), b"x", None);
        }
        assert!(backend.acquire().is_none(), "all eight slots are in flight");
        backend.turn(Wait::No).expect("a turn");
    }
    assert_eq!(backend.stats().trains_sent, 160);
}

fn a_released_slot_is_free_again<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &IoConfig { trains: 1, ..small() });
    for _ in 0..3 {
        let id = backend.acquire().expect("the one slot");
        assert_eq!(backend.train(&id).len(), 65_000);
        assert!(backend.acquire().is_none());
        backend.release(id);
    }
}

fn more_datagrams_than_buffers_pause_reception_but_lose_none<B: Make>() {
    let (a, b) = (loopback_v4(), loopback_v4());
    let to = [address(&a), address(&b)];
    let (mut backend, _waker) = B::make(vec![a, b], &IoConfig { recv_buffers: 8, recv_buffer_len: 2_048, gro: false, ..small() });
    let peer = peer();
    for i in 0..100u8 {
        peer.send_to(&[i], to[usize::from(i % 2)]).expect("loopback");
    }
    let mut seen: Vec<u8> = receive_count(&mut backend, 100).into_iter().map(|k| k.datagrams[0][0]).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    assert!(backend.stats().receive_overflows > 0, "eight buffers cannot hold a hundred datagrams");
    assert_eq!(backend.stats().kernel_drops, 0);
}

fn a_full_socket_queue_is_counted_as_kernel_drops<B: Make>() {
    let socket = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 4_096, 4_096).expect("IPv4 loopback");
    let to = address(&socket);
    // The ring takes datagrams out of the queue by itself until its buffers are full.
    let (mut backend, _waker) = B::make(vec![socket], &IoConfig { recv_buffers: 1, recv_buffer_len: 2_048, gro: false, ..small() });
    let peer = peer();
    for _ in 0..200 {
        peer.send_to(&[7; 1_000], to).expect("loopback");
    }
    let start = Instant::now();
    let mut received = 0;
    // The counter rides on datagrams queued after the drop: keep some coming.
    while backend.stats().kernel_drops == 0 {
        assert!(start.elapsed() < PATIENCE, "{:?}", backend.stats());
        backend.turn(Wait::No).expect("a turn");
        while backend.receive().is_some() {
            received += 1;
        }
        peer.send_to(&[7; 1_000], to).expect("loopback");
    }
    assert!(received > 0 && backend.stats().kernel_drops < 200 + received);
}

fn datagrams_left_unread_are_there_after_the_next_turn<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    let peer = peer();
    for i in 0..3u8 {
        peer.send_to(&[i], to).expect("loopback");
    }
    backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
    assert_eq!(backend.receive().map(|r| r.bytes.to_vec()), Some(vec![0]));
    let start = Instant::now();
    backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
    assert!(start.elapsed() < PATIENCE / 2, "a turn slept on unread datagrams");
    let rest: Vec<_> = receive_count(&mut backend, 2).into_iter().flat_map(|k| k.datagrams).collect();
    assert_eq!(rest, [vec![1], vec![2]]);
}

fn a_wake_up_ends_the_wait<B: Make>() {
    let (mut backend, waker) = B::make(vec![loopback_v4()], &small());
    for round in 1..=3 {
        let other = waker.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            other.wake();
        });
        let start = Instant::now();
        while backend.stats().wakeups < round {
            assert!(start.elapsed() < PATIENCE);
            backend.turn(Wait::UntilWoken).expect("a turn");
        }
        thread.join().expect("the waker's thread");
        assert_eq!(backend.stats().wakeups, round);
    }
}

fn a_wake_up_before_the_wait_is_not_lost<B: Make>() {
    let (mut backend, waker) = B::make(vec![loopback_v4()], &small());
    let peer = peer();
    for round in 1..=10 {
        waker.wake();
        waker.wake();
        // With a send in the turn too: its completion must not hide the wake-up.
        send(&mut backend, 0, address(&peer), b"x", None);
        let start = Instant::now();
        while backend.stats().wakeups < round {
            assert!(start.elapsed() < PATIENCE);
            backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
        }
        assert!(start.elapsed() < PATIENCE / 2);
        assert_eq!(backend.stats().wakeups, round, "two wakes before a turn are one wake-up");
    }
}

fn an_idle_wait_ends_in_time<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let start = Instant::now();
    backend.turn(Wait::AtMost(Duration::from_millis(30))).expect("a turn");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(30) && took < PATIENCE, "slept {took:?}");
    assert!(backend.receive().is_none());
}

fn a_turn_without_waiting_returns_at_once<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let start = Instant::now();
    for _ in 0..100 {
        backend.turn(Wait::No).expect("a turn");
        backend.turn(Wait::AtMost(Duration::ZERO)).expect("a turn");
    }
    assert!(start.elapsed() < PATIENCE);
}

/// Only a connected socket hears of ICMP errors.
fn connected_to_nobody() -> (UdpSocket, SocketAddr) {
    let socket = loopback_v4();
    let nobody = {
        let closed = loopback_v4();
        address(&closed)
    };
    socket.connect(nobody).expect("a connect sends nothing");
    (socket, nobody)
}

fn an_icmp_error_does_not_stop_reception<B: Make>() {
    let (socket, nobody) = connected_to_nobody();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    send(&mut backend, 0, nobody, b"anybody?", None);
    let start = Instant::now();
    while backend.stats().receive_errors == 0 {
        assert!(start.elapsed() < PATIENCE, "no ICMP error was seen: {:?}", backend.stats());
        backend.turn(Wait::AtMost(Duration::from_millis(50))).expect("an ICMP error does not end a turn");
        assert!(backend.receive().is_none());
    }
    // Now somebody takes that address and speaks.
    let somebody = UdpSocket::bind(nobody).expect("the port is free");
    somebody.send_to(b"here", to).expect("loopback");
    let kept = receive_count(&mut backend, 1);
    assert_eq!((kept[0].from, &kept[0].datagrams[0][..]), (nobody, &b"here"[..]));
}

fn a_train_after_an_icmp_error_still_leaves<B: Make>() {
    let (socket, nobody) = connected_to_nobody();
    let (mut backend, _waker) = B::make(vec![socket], &small());
    // Both leave in one turn: the second finds the first one's error on the socket.
    send(&mut backend, 0, nobody, b"first", None);
    send(&mut backend, 0, nobody, b"second", None);
    backend.turn(Wait::No).expect("a turn");
    assert_eq!((backend.stats().trains_sent, backend.stats().sends_failed), (2, 0));
}

fn an_empty_datagram_is_received<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    let peer = peer();
    send(&mut backend, 0, address(&peer), b"", None);
    backend.turn(Wait::No).expect("a turn");
    assert_eq!(peer.recv_from(&mut [0; 8]).expect("an empty datagram").0, 0);
    peer.send_to(b"", to).expect("loopback");
    let kept = receive_count(&mut backend, 1);
    assert_eq!(kept, [Kept { socket: 0, from: address(&peer), segment: 1, datagrams: vec![Vec::new()] }]);
}

fn empty_datagrams_do_not_stop_reception<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    let peer = peer();
    for i in 0..50u8 {
        peer.send_to(b"", to).expect("loopback");
        peer.send_to(&[i], to).expect("loopback");
    }
    let full: Vec<u8> = receive_count(&mut backend, 100).into_iter().flat_map(|k| k.datagrams.concat()).collect();
    assert_eq!(full, (0..50).collect::<Vec<_>>());
}

fn an_oversized_datagram_is_dropped_and_counted<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &IoConfig { recv_buffer_len: 1_024, gro: false, ..small() });
    let peer = peer();
    for len in [1_025, 1_024, 60_000, 3] {
        peer.send_to(&pattern(len), to).expect("loopback");
    }
    let kept = receive_count(&mut backend, 2);
    assert_eq!(kept.iter().map(|k| k.datagrams.concat().len()).collect::<Vec<_>>(), [1_024, 3]);
    assert_eq!((backend.stats().truncated, backend.stats().datagrams_received), (2, 2));
}

fn a_train_that_the_kernel_refuses_leaves_datagram_by_datagram<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &IoConfig { recv_buffers: 512, ..small() });
    // More segments than UDP_MAX_SEGMENTS, 64 or 128: EINVAL.
    let sent = pattern(100 * 200);
    send(&mut backend, 0, to, &sent, Some(100));
    let kept = receive_count(&mut backend, 200);
    assert_eq!(kept.into_iter().flat_map(|k| k.datagrams.concat()).collect::<Vec<_>>(), sent);
    let stats = backend.stats();
    assert_eq!((stats.gso_refused, stats.datagrams_sent, stats.bytes_sent, stats.sends_failed), (1, 200, 20_000, 0));
    assert!(backend.acquire().is_some());
}

fn a_refused_datagram_is_counted_and_frees_its_slot<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &IoConfig { trains: 2, ..small() });
    let peer = peer();
    for round in 1..=3 {
        // Port 0 is refused with EINVAL; the train behind it is not held up.
        send(&mut backend, 0, (Ipv4Addr::LOCALHOST, 0).into(), b"nowhere", None);
        send(&mut backend, 0, address(&peer), b"somewhere", None);
        backend.turn(Wait::No).expect("a refused send does not end a turn");
        assert_eq!((backend.stats().sends_failed, backend.stats().trains_sent), (round, round));
        assert_eq!(peer.recv_from(&mut [0; 16]).expect("the train behind").0, 9);
    }
}

fn many_sockets_are_all_served<B: Make>() {
    let sockets: Vec<_> = (0..64).map(|_| loopback_v4()).collect();
    let addresses: Vec<_> = sockets.iter().map(address).collect();
    let (mut backend, _waker) = B::make(sockets, &small());
    let peer = peer();
    for to in &addresses {
        peer.send_to(b"hello", to).expect("loopback");
    }
    let mut served: Vec<_> = receive_count(&mut backend, 64).into_iter().map(|k| k.socket).collect();
    served.sort_unstable();
    assert_eq!(served, (0..64).collect::<Vec<_>>());
}

/// A ring that is dropped with receives armed and datagrams under way leaves nothing behind that the next one trips over.
fn back_ends_come_and_go<B: Make>() {
    for _ in 0..20 {
        let socket = loopback_v4();
        let to = address(&socket);
        let (mut backend, waker) = B::make(vec![socket], &small());
        send(&mut backend, 0, to, &pattern(5_000), Some(1_000));
        receive_count(&mut backend, 5);
        send(&mut backend, 0, to, b"on its way", None);
        drop(backend);
        waker.wake();
        // The port is free again at once: the kernel holds no reference to the socket.
        let start = Instant::now();
        while bind_udp(to, 1 << 16, 1 << 16).is_err() {
            assert!(start.elapsed() < PATIENCE, "the ring keeps its socket");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One socket echoes all the time; another comes, echoes, and goes, many times, in the same slot.
fn a_socket_is_added_and_removed_while_traffic_flows<B: Make>() {
    let steady = loopback_v4();
    let steady_to = address(&steady);
    let (mut backend, _waker) = B::make(vec![steady], &small());
    let (steady_peer, passing_peer) = (peer(), peer());
    for round in 0..50u8 {
        let passing = loopback_v4();
        let passing_to = address(&passing);
        backend.add_socket(7, passing).expect("the index is free");
        for i in 0..4 {
            steady_peer.send_to(&[round, i], steady_to).expect("loopback");
            passing_peer.send_to(&[round, i], passing_to).expect("loopback");
        }
        let mut kept = receive_count(&mut backend, 8);
        kept.sort_by_key(|k| k.socket);
        let datagrams =
            |socket: u16| -> Vec<Vec<u8>> { kept.iter().filter(|k| k.socket == socket).flat_map(|k| k.datagrams.clone()).collect() };
        let expected: Vec<_> = (0..4).map(|i| vec![round, i]).collect();
        assert_eq!((datagrams(0), datagrams(7)), (expected.clone(), expected));
        send(&mut backend, 7, address(&passing_peer), &[round], None);
        send(&mut backend, 0, address(&steady_peer), &[round], None);
        backend.turn(Wait::No).expect("a turn");
        for (peer, from) in [(&steady_peer, steady_to), (&passing_peer, passing_to)] {
            let mut echo = [0; 8];
            assert_eq!(peer.recv_from(&mut echo).expect("an echo"), (1, from));
            assert_eq!(echo[0], round);
        }
        backend.remove_socket(7).expect("a removal");
    }
    let stats = backend.stats();
    assert_eq!((stats.sends_failed, stats.receive_errors, stats.late, stats.trains_sent), (0, 0, 0, 100));
}

fn an_index_is_used_again_and_its_former_socket_is_not_heard<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let peer = peer();
    let mut late = 0;
    for round in 0..20u8 {
        let former = loopback_v4();
        let former_to = address(&former);
        backend.add_socket(1, former).expect("the index is free");
        backend.turn(Wait::No).expect("a turn");
        for _ in 0..3 {
            peer.send_to(b"former", former_to).expect("loopback");
        }
        // In half of the rounds the datagrams are in our buffers already, in the other half still in the socket.
        if round % 2 == 0 {
            backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
        }
        backend.remove_socket(1).expect("a removal");
        let latter = loopback_v4();
        let latter_to = address(&latter);
        backend.add_socket(1, latter).expect("the index is free again");
        peer.send_to(&[round], latter_to).expect("loopback");
        let kept = receive_count(&mut backend, 1);
        assert_eq!(kept.iter().map(|k| (k.socket, k.datagrams.concat())).collect::<Vec<_>>(), [(1, vec![round])]);
        backend.remove_socket(1).expect("a removal");
        assert!(backend.stats().late >= late + u64::from(round % 2 == 0), "what was dropped is counted");
        late = backend.stats().late;
    }
}

fn sends_in_flight_leave_by_the_socket_that_they_were_meant_for<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    let peer = peer();
    for round in 0..20u8 {
        let former = loopback_v4();
        let former_from = address(&former);
        backend.add_socket(1, former).expect("the index is free");
        // Queued, not submitted: no turn in between.
        send(&mut backend, 1, address(&peer), &[round], None);
        send(&mut backend, 1, address(&peer), &pattern(2_500), Some(1_000));
        backend.remove_socket(1).expect("a removal");
        let latter = loopback_v4();
        let latter_from = address(&latter);
        backend.add_socket(1, latter).expect("the index is free again");
        send(&mut backend, 1, address(&peer), b"latter", None);
        backend.turn(Wait::No).expect("a turn");
        let mut buffer = [0; 2_000];
        for (len, from) in [(1, former_from), (1_000, former_from), (1_000, former_from), (500, former_from), (6, latter_from)] {
            assert_eq!(peer.recv_from(&mut buffer).expect("a datagram"), (len, from));
        }
        backend.remove_socket(1).expect("a removal");
    }
    assert_eq!((backend.stats().trains_sent, backend.stats().sends_failed), (60, 0));
    // Every slot is back.
    let slots: Vec<_> = std::iter::from_fn(|| backend.acquire()).collect();
    assert_eq!(slots.len(), 8);
}

fn a_train_for_a_removed_socket_is_counted_and_frees_its_slot<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &IoConfig { trains: 1, ..small() });
    backend.add_socket(1, loopback_v4()).expect("the index is free");
    backend.remove_socket(1).expect("a removal");
    backend.remove_socket(1).expect("a second removal is none");
    for round in 1..=3 {
        for socket in [1, 63, 5_000] {
            send(&mut backend, socket, (Ipv4Addr::LOCALHOST, 9).into(), &pattern(2_500), Some(1_000));
        }
        backend.turn(Wait::No).expect("a turn");
        assert_eq!((backend.stats().sends_failed, backend.stats().trains_sent), (9 * round, 0));
    }
}

fn a_removed_socket_lets_go_of_its_port<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &small());
    for _ in 0..10 {
        let socket = loopback_v4();
        let to = address(&socket);
        backend.add_socket(1, socket).expect("the index is free");
        backend.turn(Wait::No).expect("a turn");
        backend.remove_socket(1).expect("a removal");
        backend.turn(Wait::No).expect("a turn");
        let start = Instant::now();
        while bind_udp(to, 1 << 16, 1 << 16).is_err() {
            assert!(start.elapsed() < PATIENCE, "the back end keeps the socket");
            backend.turn(Wait::AtMost(Duration::from_millis(1))).expect("a turn");
        }
    }
}

fn an_index_out_of_room_or_taken_is_refused<B: Make>() {
    let (mut backend, _waker) = B::make(vec![loopback_v4()], &IoConfig { sockets: 2, ..small() });
    assert!(backend.add_socket(0, loopback_v4()).expect_err("taken").to_string().contains("is taken"));
    assert!(backend.add_socket(2, loopback_v4()).expect_err("no room").to_string().contains("room for 2"));
    backend.add_socket(1, loopback_v4()).expect("there is room");
}

fn a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, _waker) = B::make(vec![socket], &small());
    let (mut left, right) = UnixStream::pair().expect("a pair");
    backend.watch(right.try_clone().expect("a descriptor").into()).expect("it is watched");
    for _ in 0..3 {
        backend.turn(Wait::AtMost(Duration::from_millis(5))).expect("a turn");
        assert!(!backend.watched_is_ready());
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            left.write_all(b"x").expect("room");
            left
        });
        // Twice, because nobody reads it: what is ready stays ready.
        for _ in 0..2 {
            let start = Instant::now();
            while !backend.watched_is_ready() {
                assert!(start.elapsed() < PATIENCE, "the wait does not end");
                backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
            }
            backend.turn(Wait::No).expect("a turn");
        }
        left = writer.join().expect("the writer");
        (&right).read_exact(&mut [0]).expect("a byte");
        // Sends, datagrams and the watch in one turn.
        send(&mut backend, 0, to, b"hello", None);
        assert_eq!(receive_count(&mut backend, 1)[0].datagrams[0], b"hello");
        while backend.watched_is_ready() {
            backend.turn(Wait::No).expect("a turn");
        }
    }
}

/// Loopback has no card to poll: the wait must neither spin for ever nor miss what comes, whether the kernel grants the polling or not.
fn a_back_end_that_polls_busily_still_sleeps_and_wakes<B: Make>() {
    let socket = loopback_v4();
    let to = address(&socket);
    let (mut backend, waker) = B::make(vec![socket], &IoConfig { busy_poll: Duration::from_micros(200), ..small() });
    if let Some(refusal) = backend.busy_poll_refusal() {
        assert!(matches!(refusal.raw_os_error(), Some(libc::EPERM | libc::EINVAL)), "{refusal}");
    }
    let before = pop_uring::thread_cpu_time();
    backend.turn(Wait::AtMost(Duration::from_millis(300))).expect("a turn");
    let used = pop_uring::thread_cpu_time() - before;
    assert!(used < Duration::from_millis(30), "an idle wait of 300 ms used {used:?}");
    peer().send_to(b"hello", to).expect("loopback");
    assert_eq!(receive_count(&mut backend, 1)[0].datagrams, [b"hello".to_vec()]);
    waker.wake();
    backend.turn(Wait::AtMost(PATIENCE)).expect("a turn");
    assert_eq!(backend.stats().wakeups, 1);
    let (mut plain, _waker) = B::make(vec![loopback_v4()], &small());
    plain.turn(Wait::No).expect("a turn");
    assert!(plain.busy_poll_refusal().is_none(), "nobody asked");
}
