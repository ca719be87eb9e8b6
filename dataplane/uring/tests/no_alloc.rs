//! After start neither back end allocates, nor do streams: not to receive, not to send, not when a send is refused.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use pop_uring::alloc::{CountingAllocator, thread_allocations};
use pop_uring::{
    Backend, IoConfig, MmsgBackend, Streams, StreamsConfig, Transmit, UringBackend, Wait, WakeReceiver, bind_tcp, bind_udp, wake_pair,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const TRAIN_LEN: usize = 10 * 1_100;

/// Trains to oneself, refused and split ones by the second socket, a wake-up, an idle wait. Returns the datagrams received.
fn exercise(backend: &mut impl Backend, waker: &pop_uring::Waker, socket: &UdpSocket, rounds: usize) -> usize {
    let to = socket.local_addr().expect("bound");
    let mut received = 0;
    for round in 0..rounds {
        for segment in [1_100, 1_100, 100] {
            let id = backend.acquire().expect("a slot");
            backend.train(&id)[..TRAIN_LEN].fill(round as u8);
            // 110 segments of 100 bytes are refused on kernels before 6.9 and leave one by one.
            backend.send(id, Transmit { socket: 0, to, len: TRAIN_LEN, segment: Some(segment) });
        }
        let id = backend.acquire().expect("a slot");
        backend.send(id, Transmit { socket: 1, to, len: TRAIN_LEN, segment: Some(1_100) });
        let id = backend.acquire().expect("a slot");
        backend.send(id, Transmit { socket: 0, to: (Ipv4Addr::LOCALHOST, 0).into(), len: 100, segment: None });
        waker.wake();
        backend.turn(Wait::No).expect("a turn");
        while let Some(mut run) = backend.receive() {
            received += run.datagrams().count();
        }
        backend.turn(Wait::AtMost(std::time::Duration::from_micros(10))).expect("a turn");
    }
    received
}

fn check<B: Backend>(make: impl Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> std::io::Result<B>) {
    let socket = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 8 << 20, 8 << 20).expect("loopback");
    let (waker, wake) = wake_pair().expect("an eventfd");
    let ours = socket.try_clone().expect("a descriptor");
    // Without checksums it takes no train.
    let refusing = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 4_096, 8 << 20).expect("loopback");
    let (on, len) = (1i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the descriptor is borrowed and open; the kernel reads `len` bytes of `on`, which lives here.
    let set = unsafe { libc::setsockopt(refusing.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), len) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let mut backend = make(vec![ours, refusing], wake, &IoConfig::default()).expect("a back end");
    exercise(&mut backend, &waker, &socket, 10);
    let before = thread_allocations();
    let received = exercise(&mut backend, &waker, &socket, 1_000);
    assert_eq!(thread_allocations() - before, 0, "allocations for {received} datagrams on {}", B::NAME);
    assert!(backend.stats().gso_refused > 0 && backend.stats().trains_split > 900, "{:?}", backend.stats());
    assert!(received >= 20_000, "{received} datagrams: too few to prove anything; {:?}", backend.stats());
}

#[test]
fn the_ring_allocates_nothing_after_start() {
    check(UringBackend::new);
}

#[test]
fn the_fallback_allocates_nothing_after_start() {
    check(MmsgBackend::new);
}

/// Strangers come and go, a client sends and reads, and then reads no more.
#[test]
fn streams_allocate_nothing_after_start() {
    let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback");
    let address = listener.local_addr().expect("bound");
    let mut streams = Streams::new(vec![listener], &StreamsConfig { connections: 8, queue_len: 16_384 }).expect("an epoll set");
    let mut client = TcpStream::connect(address).expect("loopback");
    let to = client.local_addr().expect("connected");
    let mut now = Duration::ZERO;
    let mut exercise = |rounds: usize| {
        let mut received = 0;
        for round in 0..rounds {
            let stranger = TcpStream::connect(address).expect("loopback");
            (&stranger).write_all(if round % 2 == 0 { b"\x00\x03\x00" } else { b"GET /" }).expect("loopback");
            client.write_all(&[0, 2, 1, 1].repeat(50)).expect("loopback");
            now += Duration::from_millis(30);
            for _ in 0..4 {
                let before = thread_allocations();
                streams.turn(now).expect("a turn");
                while let Some(datagram) = streams.receive() {
                    received += 1;
                    let from = datagram.from;
                    streams.prove(0, from);
                }
                streams.send(0, to, &[5; 10_000], Some(1_000));
                streams.tick(now, |_, _| true);
                while streams.poll_closed().is_some() {}
                assert_eq!(thread_allocations() - before, 0, "allocations in round {round}");
            }
        }
        received
    };
    exercise(10);
    let received = exercise(200);
    assert!(received >= 9_000 && streams.stats().queue_full > 0, "{received} received, {:?}", streams.stats());
}

#[test]
fn the_counter_sees_an_allocation() {
    let before = thread_allocations();
    let boxed = std::hint::black_box(Box::new([0u8; 100]));
    assert_eq!(thread_allocations() - before, 1);
    drop(boxed);
}
