//! What the kernel refuses and takes again, on both back ends: nothing stalls, everything is counted, and it recovers.
//!
//! The kernel itself is made to refuse: a filter that drops at the interface is `ENOBUFS` to a socket that asks for errors, a socket
//! without checksums takes no GSO, a slow interface fills the send queue, a veth loses its checksum offload.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pop_uring::{Backend, IoConfig, IoStats, Transmit, Wait, WakeReceiver, bind_udp, wake_pair};

mod namespace;

use namespace::in_namespace;

/// Longer than any delivery on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(10);

const SEGMENT: usize = 1_000;
const TRAIN_LEN: usize = 10 * SEGMENT;
const SLOTS: usize = 8;

/// Each test runs once per back end, in a namespace of its own that the commands set up.
macro_rules! for_both {
    ($($name:ident: $prepare:expr),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() {
                super::in_namespace($prepare, concat!("uring::", stringify!($name)), || super::$name(pop_uring::UringBackend::new));
            })*
        }
        mod mmsg {
            $(#[test] fn $name() {
                super::in_namespace($prepare, concat!("mmsg::", stringify!($name)), || super::$name(pop_uring::MmsgBackend::new));
            })*
        }
    };
}

for_both!(
    no_buffers_at_the_interface_is_counted_and_ends: "ip link set lo up && tc qdisc add dev lo clsact",
    a_way_that_refuses_trains_gets_datagrams_and_then_trains_again: "ip link set lo up",
    a_refused_way_costs_its_neighbours_nothing: "ip link set lo up",
    a_refused_way_with_a_full_socket_drops_its_own_and_goes_on:
        "ip link set lo up && tc qdisc add dev lo root tbf rate 40mbit burst 4kb latency 60s",
    an_interface_without_checksum_offload_passes_every_train_whole:
        "ip link add v0 type veth peer name v1 && ip addr add 192.0.2.1/24 dev v0 && ethtool -K v0 tx off >&2",
);

trait Make<B>: Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> std::io::Result<B> {}

impl<B, F: Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> std::io::Result<B>> Make<B> for F {}

fn back_end<B: Backend>(make: impl Make<B>, sockets: Vec<UdpSocket>) -> B {
    let (_waker, wake) = wake_pair().expect("an eventfd");
    make(sockets, wake, &IoConfig { trains: SLOTS as u16, ..IoConfig::default() }).expect("a back end")
}

fn socket(queue: usize) -> UdpSocket {
    bind_udp((Ipv4Addr::UNSPECIFIED, 0).into(), 4 << 20, queue).expect("any port")
}

/// A blocking receiver.
fn receiver(ip: Ipv4Addr) -> UdpSocket {
    let socket = bind_udp((ip, 0).into(), 8 << 20, 4_096).expect("the address is here");
    socket.set_nonblocking(false).expect("it blocks");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and open; the kernel reads `len` bytes of `value`, which lives here.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A socket that sends without checksums takes no train, as an interface without checksum offload did before Linux 6.11.
fn refuse_trains(socket: &UdpSocket, on: bool) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, i32::from(on));
}

/// Queues a train of ten datagrams that all begin with `mark`, and turns.
fn send_train(backend: &mut impl Backend, socket: u16, to: SocketAddr, mark: u8) {
    let id = backend.acquire().expect("a slot is free after each turn");
    for datagram in backend.train(&id)[..TRAIN_LEN].chunks_mut(SEGMENT) {
        datagram[0] = mark;
    }
    backend.send(id, Transmit { socket, to, len: TRAIN_LEN, segment: Some(SEGMENT as u16) });
    backend.turn(Wait::No).expect("a refusal does not end a turn");
}

fn assert_train_arrives(receiver: &UdpSocket, mark: u8) {
    for number in 0..TRAIN_LEN / SEGMENT {
        let mut datagram = [0; 2 * SEGMENT];
        let (len, _) = receiver.recv_from(&mut datagram).unwrap_or_else(|error| panic!("datagram {number} of train {mark}: {error}"));
        assert_eq!((len, datagram[0]), (SEGMENT, mark));
    }
}

fn assert_every_slot_is_back(backend: &mut impl Backend) {
    let slots: Vec<_> = std::iter::from_fn(|| backend.acquire()).collect();
    assert_eq!(slots.len(), SLOTS, "a slot is lost");
    slots.into_iter().for_each(|slot| backend.release(slot));
}

fn no_buffers_at_the_interface_is_counted_and_ends<B: Backend>(make: impl Make<B>) {
    let drop_all = |on: bool| {
        let on_words = ["filter", "add", "dev", "lo", "egress", "bpf", "da", "bytecode", "1,6 0 0 2"];
        let words = if on { &on_words[..] } else { &["filter", "del", "dev", "lo", "egress"] };
        assert!(Command::new("tc").args(words).status().expect("iproute2").success(), "tc {words:?}");
    };
    let ours = socket(4 << 20);
    // Without it the kernel keeps what the interface dropped to itself.
    set_option(&ours, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
    let mut backend = back_end(make, vec![ours]);
    let receiver = receiver(Ipv4Addr::LOCALHOST);
    let to = address(&receiver);
    for round in 1..=3u8 {
        drop_all(true);
        for _ in 0..20 {
            send_train(&mut backend, 0, to, 0);
        }
        let stats = backend.stats();
        assert_eq!((stats.sends_failed, stats.send_errno), (200 * u64::from(round), libc::ENOBUFS));
        // Dropped whole: a train that had no room is no reason for ten sends that have none.
        assert_eq!((stats.gso_refused, stats.trains_split), (0, 0));
        drop_all(false);
        send_train(&mut backend, 0, to, round);
        assert_train_arrives(&receiver, round);
    }
    assert_every_slot_is_back(&mut backend);
}

fn a_way_that_refuses_trains_gets_datagrams_and_then_trains_again<B: Backend>(make: impl Make<B>) {
    let ours = socket(4 << 20);
    let control = ours.try_clone().expect("a descriptor");
    let mut backend = back_end(make, vec![ours]);
    let receiver = receiver(Ipv4Addr::LOCALHOST);
    let to = address(&receiver);
    send_train(&mut backend, 0, to, 1);
    assert_train_arrives(&receiver, 1);
    refuse_trains(&control, true);
    for mark in 2..22 {
        send_train(&mut backend, 0, to, mark);
        assert_train_arrives(&receiver, mark);
    }
    let stats = backend.stats();
    assert_eq!((stats.trains_sent, stats.gso_refused, stats.trains_split), (1, 1, 19), "one try, and then none for a while");
    assert_eq!((stats.datagrams_sent, stats.bytes_sent, stats.sends_failed), (210, 210_000, 0));
    // Whatever turns pass meanwhile: after some seconds one train is tried, refused again, and nothing is lost.
    let start = Instant::now();
    while backend.stats().gso_refused == 1 {
        assert!(start.elapsed() < PATIENCE, "no train is tried again");
        send_train(&mut backend, 0, to, 50);
        assert_train_arrives(&receiver, 50);
        backend.turn(Wait::AtMost(Duration::from_millis(100))).expect("a turn");
    }
    assert!(start.elapsed() > Duration::from_secs(2), "tried again after {:?}", start.elapsed());
    refuse_trains(&control, false);
    let before = backend.stats();
    while backend.stats().trains_sent == before.trains_sent {
        assert!(start.elapsed() < 2 * PATIENCE, "it never recovers");
        send_train(&mut backend, 0, to, 51);
        assert_train_arrives(&receiver, 51);
        backend.turn(Wait::AtMost(Duration::from_millis(100))).expect("a turn");
    }
    let split = backend.stats().trains_split;
    for mark in 60..80 {
        send_train(&mut backend, 0, to, mark);
        assert_train_arrives(&receiver, mark);
    }
    let stats: IoStats = backend.stats();
    assert_eq!((stats.trains_split, stats.gso_refused, stats.sends_failed), (split, 2, 0), "every train is one again");
    assert_every_slot_is_back(&mut backend);
}

fn a_refused_way_costs_its_neighbours_nothing<B: Backend>(make: impl Make<B>) {
    let refusing = socket(4 << 20);
    refuse_trains(&refusing, true);
    let mut backend = back_end(make, vec![refusing, socket(4 << 20)]);
    let receiver = receiver(Ipv4Addr::LOCALHOST);
    let to = address(&receiver);
    for mark in 0..20 {
        send_train(&mut backend, 0, to, mark);
        assert_train_arrives(&receiver, mark);
        send_train(&mut backend, 1, to, mark);
        assert_train_arrives(&receiver, mark);
    }
    let stats = backend.stats();
    assert_eq!((stats.gso_refused, stats.trains_split, stats.trains_sent), (1, 19, 20));
    // Who cannot be sent to at all is no reason to split: port 0 takes no datagram.
    for _ in 0..3 {
        send_train(&mut backend, 1, (Ipv4Addr::LOCALHOST, 0).into(), 0);
    }
    send_train(&mut backend, 1, to, 99);
    assert_train_arrives(&receiver, 99);
    let after = backend.stats();
    assert_eq!((after.trains_split, after.trains_sent, after.sends_failed), (19, 21, 30));
    assert_every_slot_is_back(&mut backend);
}

fn a_refused_way_with_a_full_socket_drops_its_own_and_goes_on<B: Backend>(make: impl Make<B>) {
    // Room for some datagrams; the interface takes 5 a millisecond.
    let refusing = socket(16 << 10);
    refuse_trains(&refusing, true);
    let mut backend = back_end(make, vec![refusing]);
    let receiver = receiver(Ipv4Addr::LOCALHOST);
    let to = address(&receiver);
    let start = Instant::now();
    for _ in 0..100 {
        send_train(&mut backend, 0, to, 7);
    }
    assert!(start.elapsed() < PATIENCE / 2, "a full socket held the turn up: {:?}", start.elapsed());
    let stats = backend.stats();
    assert_eq!(stats.datagrams_sent + stats.sends_failed, 1_000, "{stats:?}");
    assert!(stats.sends_failed > 0 && stats.datagrams_sent > 0, "{stats:?}");
    assert_eq!(stats.send_errno, libc::EAGAIN);
    for _ in 0..stats.datagrams_sent {
        receiver.recv_from(&mut [0; 2_000]).expect("what was taken arrives");
    }
    // The queue is empty again.
    send_train(&mut backend, 0, to, 8);
    assert_eq!(receiver.recv_from(&mut [0; 2_000]).expect("it goes on").0, SEGMENT);
    assert_every_slot_is_back(&mut backend);
}

/// A network namespace that lives as long as a process in it.
struct Far(Child);

impl Far {
    fn start() -> Far {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).stdin(Stdio::null()).spawn().expect("util-linux");
        let far = Far(child);
        let ours = std::fs::read_link("/proc/self/ns/net").expect("/proc is mounted");
        while std::fs::read_link(far.place()).is_ok_and(|namespace| namespace == ours) {
            thread::sleep(Duration::from_millis(1));
        }
        far
    }

    fn place(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// A receiver in there. A namespace is a thread's, and a socket's for good.
    fn receiver(&self, ip: Ipv4Addr) -> UdpSocket {
        let namespace = File::open(self.place()).expect("the process lives");
        let entered = thread::spawn(move || {
            // SAFETY: an open descriptor and a number, no pointer.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
            receiver(ip)
        });
        entered.join().expect("the address is there")
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn an_interface_without_checksum_offload_passes_every_train_whole<B: Backend>(make: impl Make<B>) {
    let far = Far::start();
    let (far_id, there) = (far.0.id(), Ipv4Addr::new(192, 0, 2, 2));
    let script = format!(
        "ip link set v1 netns {far_id} && ip link set v0 up && nsenter -t {far_id} -n sh -c 'ip addr add {there}/24 dev v1 && ip link set v1 up' && \
         until ip -o link show v0 | grep -q LOWER_UP; do sleep 0.01; done"
    );
    assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell").success(), "{script}");
    let features = Command::new("ethtool").args(["-k", "v0"]).output().expect("ethtool");
    assert!(String::from_utf8_lossy(&features.stdout).contains("tx-checksumming: off"), "the offload is still on: this proves nothing");
    let receiver = far.receiver(there);
    let to = address(&receiver);
    let mut backend = back_end(make, vec![socket(4 << 20)]);
    for mark in 0..20 {
        send_train(&mut backend, 0, to, mark);
        assert_train_arrives(&receiver, mark);
    }
    let stats = backend.stats();
    assert_eq!((stats.datagrams_sent, stats.sends_failed), (200, 0));
    // Linux since 6.11 cuts the train and adds the checksums itself; before, it refuses one train, and no second one.
    assert!(
        (stats.trains_sent, stats.gso_refused, stats.trains_split) == (20, 0, 0)
            || (stats.trains_sent, stats.gso_refused, stats.trains_split) == (0, 1, 19),
        "{stats:?}"
    );
    assert_every_slot_is_back(&mut backend);
}
