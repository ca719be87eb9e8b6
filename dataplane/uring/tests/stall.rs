//! A send queue that is full: an interface slower than the worker. Loopback never is, so the test makes a network namespace
//! whose loopback passes 4 Mb/s, and runs itself in there.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use pop_uring::{Backend, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, WakeReceiver, bind_udp, wake_pair};

mod namespace;

use namespace::in_namespace;

const SLOW: &str = "ip link set lo up && tc qdisc add dev lo root tbf rate 4mbit burst 4kb latency 60s";

#[test]
fn the_ring_waits_for_a_full_send_queue_and_loses_nothing() {
    in_namespace(SLOW, "the_ring_waits_for_a_full_send_queue_and_loses_nothing", || check(UringBackend::new));
}

#[test]
fn the_fallback_waits_for_a_full_send_queue_and_loses_nothing() {
    in_namespace(SLOW, "the_fallback_waits_for_a_full_send_queue_and_loses_nothing", || check(MmsgBackend::new));
}

fn check<B: Backend>(make: impl Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> std::io::Result<B>) {
    const COUNT: u64 = 200;
    /// A turn that nothing wakes takes this long and fails the test, but for the last one: after it all is sent.
    const LONG: Duration = Duration::from_millis(1_500);
    // Room for two or three datagrams: the rest of the eight slots stalls.
    let sender = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 1 << 20, 4_096).expect("loopback");
    // Not of the back end, so that nothing but room in the send queue can end its sleep.
    let receiver = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 4 << 20, 4_096).expect("loopback");
    receiver.set_nonblocking(false).expect("a blocking socket");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let to = receiver.local_addr().expect("bound");
    let (_waker, wake) = wake_pair().expect("an eventfd");
    let mut backend = make(vec![sender], wake, &IoConfig { trains: 8, ..IoConfig::default() }).expect("a back end");
    let start = Instant::now();
    let (mut queued, mut full) = (0, 0);
    let mut received = Vec::new();
    while backend.stats().trains_sent < COUNT {
        assert!(start.elapsed() < Duration::from_secs(15), "{queued} queued; {:?}", backend.stats());
        while queued < COUNT {
            let Some(id) = backend.acquire() else {
                full += 1;
                break;
            };
            backend.train(&id)[0] = queued as u8;
            backend.send(id, Transmit { socket: 0, to, len: 1_000, segment: None });
            queued += 1;
        }
        backend.turn(Wait::AtMost(LONG)).expect("a turn");
    }
    let took = start.elapsed();
    for _ in 0..COUNT {
        let mut datagram = [0; 2_000];
        receiver.recv_from(&mut datagram).expect("every datagram arrives");
        received.push(datagram[0]);
    }
    let stats = backend.stats();
    assert!(full > 0, "the slots never ran out: the queue was not full and this proves nothing");
    assert!(took < Duration::from_secs(3), "0.4 s of sending took {took:?}: room in the queue woke nobody");
    assert_eq!((stats.trains_sent, stats.sends_failed), (COUNT, 0));
    received.sort_unstable();
    assert_eq!(received, (0..COUNT as u8).collect::<Vec<_>>());
    // 4 Mb/s carry 200 datagrams in 0.4 s: whoever spins meanwhile makes thousands of calls.
    assert!(stats.syscalls < 20 * COUNT, "{} system calls for {COUNT} datagrams", stats.syscalls);
}
