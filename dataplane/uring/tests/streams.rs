//! Datagrams over TCP: what honest clients get, and what strangers do not. Time is the test's own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pop_uring::{FRAME_LEN_MAX, StreamStats, Streams, StreamsConfig, bind_tcp};
use socket2::{Domain, SockRef, Socket, Type};

/// Longer than any loopback delivery on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: StreamsConfig = StreamsConfig { connections: 64, queue_len: 64 << 10 };

struct Rig {
    streams: Streams,
    address: SocketAddr,
    now: Duration,
    /// What came, with who sent it.
    received: Vec<(SocketAddr, Vec<u8>)>,
    closed: Vec<SocketAddr>,
}

impl Rig {
    fn new(config: &StreamsConfig) -> Rig {
        let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback");
        let address = listener.local_addr().expect("bound");
        let streams = Streams::new(vec![listener], config).expect("an epoll set");
        Rig { streams, address, now: Duration::ZERO, received: Vec::new(), closed: Vec::new() }
    }

    /// One turn as a worker makes it; a connection whose datagram starts with 1 has proven itself.
    fn turn(&mut self) {
        self.streams.turn(self.now).expect("a turn");
        while let Some(received) = self.streams.receive() {
            let (from, proves, bytes) = (received.from, received.bytes[0] == 1, received.bytes.to_vec());
            self.received.push((from, bytes));
            if proves {
                self.streams.prove(0, from);
            }
        }
        self.streams.tick(self.now, |_, _| true);
        self.closed.extend(std::iter::from_fn(|| self.streams.poll_closed()).map(|(_, remote)| remote));
    }

    fn turn_until(&mut self, done: impl Fn(&Rig) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{:?} received, {:?}", self.received.len(), self.stats());
            // Ticks refill what may be accepted.
            self.now += Duration::from_micros(500);
            self.turn();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets `duration` pass.
    fn pass(&mut self, duration: Duration) {
        self.turn();
        self.now += duration;
        self.turn();
    }

    fn stats(&self) -> StreamStats {
        self.streams.stats()
    }

    /// A client that has proven itself.
    fn client(&mut self) -> TcpStream {
        let mut client = TcpStream::connect(self.address).expect("loopback");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        client.write_all(&frame(&[1])).expect("loopback");
        let count = self.received.len() + 1;
        self.turn_until(|rig| rig.received.len() == count);
        client
    }
}

fn frame(datagram: &[u8]) -> Vec<u8> {
    [&(datagram.len() as u16).to_be_bytes()[..], datagram].concat()
}

/// The next frame that a client reads; `None` at the end of the stream.
fn read_frame(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    client.read_exact(&mut length).ok()?;
    let mut datagram = vec![0; u16::from_be_bytes(length).into()];
    client.read_exact(&mut datagram).expect("a frame is never cut");
    Some(datagram)
}

/// A connection from another loopback address.
fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Whether the far end has ended the connection.
fn is_ended(client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
    match client.read(&mut [0; 64]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn datagrams_come_whole_whatever_the_cuts() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    client.set_nodelay(true).expect("an option");
    let datagrams: Vec<Vec<u8>> = (0..400).map(|i| (0..1 + i * 37 % FRAME_LEN_MAX).map(|b| (b + i) as u8).collect()).collect();
    let bytes: Vec<u8> = datagrams.iter().flat_map(|datagram| frame(datagram)).collect();
    let (mut at, mut cut) = (0, 1);
    while at < bytes.len() {
        let end = bytes.len().min(at + cut);
        client.write_all(&bytes[at..end]).expect("loopback");
        (at, cut) = (end, cut * 31 % 4_099);
        rig.turn();
    }
    rig.turn_until(|rig| rig.received.len() == 401);
    assert!(rig.received.drain(1..).map(|(_, datagram)| datagram).eq(datagrams));
    assert_eq!(rig.stats().datagrams_received, 401);
}

#[test]
fn a_train_leaves_as_frames() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    let to = client.local_addr().expect("connected");
    let train: Vec<u8> = (0..20 * 1_000 + 7).map(|i| (i / 100) as u8).collect();
    rig.streams.send(0, to, &train, Some(1_000));
    rig.streams.send(0, to, b"one", None);
    for segment in train.chunks(1_000).chain([&b"one"[..]]) {
        assert_eq!(read_frame(&mut client).as_deref(), Some(segment));
    }
    assert_eq!((rig.stats().datagrams_sent, rig.stats().queue_full), (22, 0));
}

/// A peer that reads nothing costs what its queue holds, whole datagrams are dropped, and what it reads later is in order.
#[test]
fn a_full_queue_drops_whole_datagrams_and_audio_last() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    let to = client.local_addr().expect("connected");
    let video = |number: u16| -> Vec<u8> { (0..10u16).flat_map(|i| [&(number * 10 + i).to_be_bytes()[..], &[7; 998]].concat()).collect() };
    let mut trains = 0;
    while rig.stats().queue_full < 100 {
        rig.streams.send(0, to, &video(trains), Some(1_000));
        trains += 1;
        rig.turn();
        assert!(trains < 3_000, "a peer that reads nothing takes {:?}", rig.stats());
    }
    let before = rig.stats();
    rig.streams.send(0, to, &[9; 100], None);
    rig.streams.send(0, to, &video(trains), Some(1_000));
    assert_eq!(rig.stats().datagrams_sent, before.datagrams_sent + 1, "a short datagram passes where video does not");
    assert_eq!(rig.stats().queue_full, before.queue_full + 10);

    let sent = rig.stats().datagrams_sent;
    let reader = std::thread::spawn(move || (0..sent).map(|_| read_frame(&mut client).expect("a frame")).collect::<Vec<_>>());
    let start = Instant::now();
    while !reader.is_finished() {
        assert!(start.elapsed() < PATIENCE);
        rig.turn();
    }
    let frames = reader.join().expect("the reader");
    let numbers: Vec<u16> = frames.iter().filter(|f| f.len() == 1_000).map(|f| u16::from_be_bytes([f[0], f[1]])).collect();
    assert_eq!(numbers.len() as u64, sent - 1);
    assert!(numbers.is_sorted_by(|a, b| a < b), "datagrams keep their order");
    assert_eq!(frames.last().map(|f| f.len()), Some(100));
}

#[test]
fn a_peer_that_reads_nothing_is_closed() {
    let mut rig = Rig::new(&CONFIG);
    let client = rig.client();
    let to = client.local_addr().expect("connected");
    while rig.stats().queue_full == 0 {
        rig.streams.send(0, to, &[7; 60_000], Some(1_000));
    }
    rig.pass(Duration::from_secs(1));
    rig.pass(Duration::from_secs(9));
    assert_eq!(rig.stats().stalled, 0);
    rig.pass(Duration::from_secs(2));
    assert_eq!((rig.stats().stalled, rig.stats().open, &rig.closed[..]), (1, 0, &[to][..]));
    rig.streams.send(0, to, b"gone", None);
    assert_eq!(rig.stats().sends_failed, 1);
}

#[test]
fn strangers_are_closed() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    let connect = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(rig.address).expect("loopback");
        stream.write_all(bytes).expect("loopback");
        stream
    };
    // At once: no STUN, too long, nothing in a frame, and one check too many that proves nothing.
    let mut at_once =
        [connect(b"GET / HTTP/1.1\r\n\r\n"), connect(&frame(&[0x16, 3, 1])), connect(&frame(b"")), connect(&frame(&[0]).repeat(5))];
    rig.turn_until(|rig| rig.stats().unproven + rig.stats().misframed == 4);
    assert_eq!(rig.stats().misframed, 1);
    assert!(at_once.iter_mut().all(is_ended));
    // In time: silent, half a length, half a frame.
    let mut in_time = [&b""[..], &[0], &[0, 20, 0, 1]].map(|bytes| {
        let mut stream = TcpStream::connect(rig.address).expect("loopback");
        stream.write_all(bytes).expect("loopback");
        stream
    });
    rig.turn_until(|rig| rig.stats().open == 4);
    rig.pass(Duration::from_millis(4_900));
    assert_eq!(rig.stats().open, 4);
    rig.pass(Duration::from_millis(200));
    assert_eq!((rig.stats().open, rig.stats().unproven), (1, 6));
    assert!(in_time.iter_mut().all(is_ended));
    assert_eq!(rig.closed, [], "nobody is told of strangers");
    // Whoever has proven itself may be silent, and may be wrong only once.
    rig.pass(Duration::from_secs(60));
    client.write_all(&[0xff, 0xff, 0]).expect("loopback");
    rig.turn_until(|rig| rig.stats().misframed == 2);
    assert_eq!(rig.closed, [client.local_addr().expect("connected")]);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_is_one_closed_connection() {
    let mut rig = Rig::new(&CONFIG);
    let (mut client, mut other) = (rig.client(), rig.client());
    let gone = client.local_addr().expect("connected");
    client.write_all(&frame(&[2; 900])[..400]).expect("loopback");
    rig.turn();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(client);
    rig.turn_until(|rig| rig.stats().open == 1);
    assert_eq!(rig.closed, [gone]);
    other.write_all(&frame(b"here")).expect("loopback");
    rig.turn_until(|rig| rig.received.len() == 3);
    assert_eq!(rig.received[2].1, b"here");
}

#[test]
fn a_connection_that_nobody_owns_any_more_is_closed() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    rig.now += Duration::from_secs(1);
    rig.streams.tick(rig.now, |_, _| false);
    assert_eq!(rig.streams.poll_closed().map(|(_, remote)| remote), client.local_addr().ok());
    assert!(is_ended(&mut client));
}

#[test]
fn a_source_has_few_unproven_connections_and_the_oldest_makes_room() {
    let mut rig = Rig::new(&CONFIG);
    let mut streams: Vec<_> = (0..33).map(|_| TcpStream::connect(rig.address).expect("loopback")).collect();
    rig.turn_until(|rig| rig.stats().accepted == 33);
    assert_eq!((rig.stats().open, rig.stats().refused), (32, 1));
    assert!(is_ended(&mut streams[32]));
    // Another takes the other places; then the oldest goes for each that comes.
    rig.now += Duration::from_millis(1);
    streams.extend((0..32).map(|_| connect_from([127, 0, 0, 2], rig.address).expect("loopback")));
    rig.turn_until(|rig| rig.stats().accepted == 65);
    assert_eq!((rig.stats().open, rig.stats().refused, rig.stats().unproven), (64, 1, 0));
    streams.push(connect_from([127, 0, 0, 100], rig.address).expect("loopback"));
    rig.turn_until(|rig| rig.stats().accepted == 66);
    assert_eq!((rig.stats().open, rig.stats().unproven), (64, 1));
    assert!(streams[..32].iter_mut().any(is_ended), "the first to come was the first to go");
}

/// Whoever is there keeps its connection and is served while ten thousand strangers come from many addresses.
#[test]
fn ten_thousand_strangers_do_not_disturb_a_client() {
    let mut rig = Rig::new(&CONFIG);
    let mut client = rig.client();
    let to = client.local_addr().expect("connected");
    let address = rig.address;
    let flood = std::thread::spawn(move || {
        let mut kept = std::collections::VecDeque::new();
        for i in 0..10_000u32 {
            // What is refused is refused; some stay open, some speak.
            let Ok(mut stream) = connect_from([127, 1, (i >> 8) as u8, i as u8 | 1], address) else { continue };
            let _ = stream.write_all(if i % 2 == 0 { b"\x00\x05\x00\x01" } else { b"garbage and more of it" });
            kept.push_back(stream);
            if kept.len() > 200 {
                kept.pop_front();
            }
        }
    });
    let mut echoes = 0u32;
    let start = Instant::now();
    while !flood.is_finished() {
        assert!(start.elapsed() < 12 * PATIENCE, "{:?}", rig.stats());
        client.write_all(&frame(&echoes.to_be_bytes())).expect("the client's connection stays");
        let count = rig.received.len() + 1;
        let sent = Instant::now();
        let is_there = |rig: &Rig| rig.received.iter().skip(count - 1).any(|(from, _)| *from == to);
        while !is_there(&rig) {
            assert!(sent.elapsed() < PATIENCE);
            rig.now += Duration::from_micros(500);
            rig.turn();
            assert!(rig.stats().open <= 64);
        }
        rig.streams.send(0, to, &echoes.to_be_bytes(), None);
        assert_eq!(read_frame(&mut client).as_deref(), Some(&echoes.to_be_bytes()[..]));
        echoes += 1;
    }
    flood.join().expect("the flood");
    let stats = rig.stats();
    assert!(echoes > 100 && stats.accepted > 9_000, "{echoes} echoes, {stats:?}");
    assert!(stats.refused + stats.unproven + stats.misframed > 5_000, "{stats:?}");
    assert_eq!(rig.closed, []);
}
