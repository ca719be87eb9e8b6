//! The floor: the work that no SFU on this kernel can avoid. AES-128-GCM in place and a GSO send per train, nothing else.
//!
//! ```text
//! for each subscriber in turn: slot -> seal each packet where it lies -> one GSO send     (one pinned core)
//! sinks: the sockets of the fanout, read on another core, or sockets that nobody reads
//! ```
//! The sender's core also does the receivers' softirq, in the fanout and here alike: that is why both have the same sinks.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use pop_uring::{
    Backend, BackendKind, IoConfig, MmsgBackend, Received, Transmit, UringBackend, Wait, bind_udp, enter_namespace, thread_cpu_time,
};
use serde::Serialize;

use crate::groups::{Groups, SOCKET_QUEUE_LEN, bind_clients, no_wakes};
use crate::random::random_bytes;

/// Bytes of an RTP header, which is authenticated and not encrypted.
const HEADER_LEN: usize = 12;
/// Bytes that GCM adds.
const TAG_LEN: usize = 16;
/// Trains per system call. 4, 8, 16 and 32 cost the same here.
const TRAINS_PER_TURN: usize = 32;
/// Longest train, in packets: the kernel's limit before 6.9.
const TRAIN_PACKETS_MAX: usize = 64;
/// Longest train, in bytes: a UDP payload.
const TRAIN_LEN_MAX: usize = 65_000;
/// Runs whose median is the figure; one more before them warms caches and is dropped.
const ROUNDS: usize = 5;
/// Lengths of trains that have a given mean.
const LENGTHS: usize = 1_000;
/// Packets that may be on their way to sinks that are read: beyond that the sender sleeps, so that none is dropped, as in the fanout.
const UNREAD_MAX: u64 = 2_048;
/// How long the sender sleeps then, and how often at most: what was dropped is never read.
const UNREAD_PAUSE: Duration = Duration::from_micros(50);
const UNREAD_PAUSES_MAX: usize = 200;

/// Prices of DESIGN 5 in ns, as the line through its points: of a send, of each packet in it, and of GCM over 1,100 bytes.
const VETH_PRICE: (f64, f64) = (3_278.0, 22.0);
const LOOPBACK_PRICE: (f64, f64) = (1_865.0, 35.0);
const GCM_PRICE: f64 = 170.0;
/// Of a floor's packets one in so many is sent into sinks that drop, and at most so many of these.
const DROPPED_PART: u64 = 4;
const DROPPING_SINKS_MAX: usize = 64;
/// A floor that costs so much more than its price was measured on a machine that is not itself.
const PRICE_EXCESS_MAX: f64 = 1.1;

/// What the floor sends, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Encrypts each packet, with a key per subscriber.
    pub(crate) seals: bool,
    /// Packets of the trains in their order, from the first again at the end.
    pub(crate) trains: Vec<usize>,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Packets per round.
    pub(crate) packets: u64,
    /// Core of the sender.
    pub(crate) core: usize,
    /// Where it sends from.
    pub(crate) from: IpAddr,
    /// The file of the namespace that it sends from, when that is another.
    pub(crate) namespace: Option<String>,
    /// Which system calls carry the trains.
    pub(crate) backend: BackendKind,
}

/// What becomes of the floor's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sink {
    /// Read on another core by the fanout's own receive loop.
    Read,
    /// Never read: the kernel drops what does not fit a minimal queue.
    Drop,
}

/// What the floor costs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Floor {
    /// CPU nanoseconds of the sending thread per packet: median of the rounds.
    pub(crate) ns_per_packet: f64,
    /// The same of each round, in order.
    pub(crate) rounds_ns: Vec<f64>,
    /// What DESIGN 5's prices make of these trains on this way, into sinks that drop.
    pub(crate) price_ns: f64,
    /// The same measured now, on a part of the packets: whether this machine is itself.
    pub(crate) dropped_ns: f64,
    /// Packets per second of wall time: median of the rounds.
    pub(crate) packets_per_second: f64,
    /// Each packet was encrypted.
    pub(crate) seals: bool,
    /// Mean packets per train.
    pub(crate) train_len: f64,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Keys and destinations.
    pub(crate) subscribers: usize,
    /// Which system calls carried them.
    pub(crate) backend: &'static str,
    /// Packets that were sent over all rounds.
    pub(crate) packets: u64,
    /// Folds every authentication tag of the last round, so that no seal can be left out. Keys are drawn anew each run.
    pub(crate) checksum: String,
}

impl Floor {
    /// Why no ratio should be made of it, when there is a reason.
    pub(crate) fn off(&self) -> Option<String> {
        let excess = self.dropped_ns / self.price_ns;
        (excess > PRICE_EXCESS_MAX).then(|| {
            format!(
                "floor off: {:.0} ns per dropped packet in trains of {:.2}, {:.0} % above the {:.0} ns of DESIGN 5: something else runs here",
                self.dropped_ns,
                self.train_len,
                (excess - 1.0) * 100.0,
                self.price_ns
            )
        })
    }
}

impl Plan {
    /// The longest train of packets of `packet_len` bytes before protection.
    pub(crate) fn train_max(packet_len: usize) -> usize {
        (TRAIN_LEN_MAX / (packet_len + TAG_LEN)).clamp(1, TRAIN_PACKETS_MAX)
    }

    /// Lengths with this mean, each the next lower or higher whole number. The error is a sentence.
    pub(crate) fn even_trains(mean: f64, packet_len: usize) -> Result<Vec<usize>, String> {
        let most = Plan::train_max(packet_len);
        if !(1.0..=most as f64).contains(&mean) {
            return Err(format!("a train of {mean} packets cannot be sent: choose 1 to {most}"));
        }
        let mut owed = 0.0;
        let next = |_| {
            owed += mean;
            let count = f64::round(owed).max(1.0);
            owed -= count;
            count as usize
        };
        Ok((0..LENGTHS).map(next).collect())
    }

    fn segment(&self) -> usize {
        self.packet_len + TAG_LEN
    }

    fn train_len(&self) -> f64 {
        self.trains.iter().sum::<usize>() as f64 / self.trains.len() as f64
    }

    fn price_ns(&self) -> f64 {
        let (send, packet) = if self.namespace.is_some() { VETH_PRICE } else { LOOPBACK_PRICE };
        send / self.train_len() + packet + if self.seals { GCM_PRICE } else { 0.0 }
    }

    fn check(&self, sinks: &[SocketAddr]) -> Result<(), String> {
        let most = Plan::train_max(self.packet_len);
        if self.trains.is_empty() || self.trains.iter().any(|len| !(1..=most).contains(len)) {
            return Err(format!("the floor's trains must have 1 to {most} packets each"));
        }
        if sinks.is_empty() || self.packet_len <= HEADER_LEN {
            return Err("the floor needs at least one subscriber, and packets longer than their header".to_owned());
        }
        Ok(())
    }
}

/// What these trains cost into sinks that drop, as DESIGN 5's prices were taken.
fn measure_dropped(plan: &Plan, address: IpAddr, subscribers: usize) -> Result<f64, String> {
    let part = Plan { packets: (plan.packets / DROPPED_PART).max(1_000), ..plan.clone() };
    let sinks = DroppingSinks::open(address, subscribers.min(DROPPING_SINKS_MAX))?;
    Ok(measure_floor(&part, &sinks.addresses, None)?.ns_per_packet)
}

/// Sockets that nobody reads and that take trains uncut.
struct DroppingSinks {
    addresses: Vec<SocketAddr>,
    _groups: Groups,
}

impl DroppingSinks {
    fn open(address: IpAddr, count: usize) -> Result<DroppingSinks, String> {
        // The smallest queue that the kernel gives (SOCK_MIN_RCVBUF) holds one train or none.
        let sockets = bind_clients(address, count, 1).map_err(|e| format!("sink sockets: {e}"))?;
        let addresses = addresses_of(&sockets)?;
        Ok(DroppingSinks { addresses, _groups: Groups::new(sockets).map_err(|e| format!("sink sockets: {e}"))? })
    }
}

fn addresses_of(sockets: &[UdpSocket]) -> Result<Vec<SocketAddr>, String> {
    sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

/// Runs the floor into sinks of somebody else; `read` tells how many of its packets they have read, if they are read. The error is a
/// sentence.
pub(crate) fn measure_floor(plan: &Plan, sinks: &[SocketAddr], read: Option<Arc<AtomicU64>>) -> Result<Floor, String> {
    plan.check(sinks)?;
    let (copy, targets) = (plan.clone(), sinks.to_vec());
    // A thread of its own: pinning and the namespace must not stick to the caller.
    let rounds =
        thread::spawn(move || send_rounds(&copy, &targets, read)).join().map_err(|_| "the floor's sender panicked".to_owned())??;
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Floor {
        ns_per_packet: median(Round::ns_per_packet),
        rounds_ns: rounds.iter().map(|round| (round.ns_per_packet() * 10.0).round() / 10.0).collect(),
        price_ns: plan.price_ns(),
        dropped_ns: f64::NAN,
        packets_per_second: median(|round| round.packets as f64 / round.wall.as_secs_f64()),
        seals: plan.seals,
        train_len: plan.train_len(),
        packet_len: plan.packet_len,
        subscribers: sinks.len(),
        backend: plan.backend.name(),
        packets: rounds.iter().map(|round| round.packets).sum(),
        checksum: format!("{:016x}", rounds[rounds.len() - 1].checksum),
    })
}

/// Runs the floor into the sockets of a load, which `drain` reads meanwhile; it tells how many of the floor's packets it has read in all.
pub(crate) fn measure_beside(plan: Plan, sinks: Vec<SocketAddr>, mut drain: impl FnMut() -> Result<u64, String>) -> Result<Floor, String> {
    let read = Arc::new(AtomicU64::new(drain()?));
    let count = Arc::clone(&read);
    let floor = thread::spawn(move || -> Result<Floor, String> {
        let dropped_ns = measure_dropped(&plan, sinks[0].ip(), sinks.len())?;
        Ok(Floor { dropped_ns, ..measure_floor(&plan, &sinks, Some(count))? })
    });
    while !floor.is_finished() {
        read.store(drain()?, Ordering::Relaxed);
    }
    floor.join().map_err(|_| "the floor panicked".to_owned())?
}

/// Runs the floor into `subscribers` sinks of its own on `address`, read on `core` if they are: the floor, and packets that they read.
pub(crate) fn measure_alone(plan: &Plan, subscribers: usize, (sink, address, core): (Sink, IpAddr, usize)) -> Result<(Floor, u64), String> {
    let dropped_ns = measure_dropped(plan, address, subscribers)?;
    let (floor, read) = match sink {
        Sink::Drop => (measure_floor(plan, &DroppingSinks::open(address, subscribers)?.addresses, None)?, 0),
        Sink::Read => {
            let sockets = bind_clients(address, subscribers, SOCKET_QUEUE_LEN).map_err(|e| format!("sink sockets: {e}"))?;
            let sinks = addresses_of(&sockets)?;
            let reader = Reader::start(sockets, core)?;
            let floor = measure_floor(plan, &sinks, Some(Arc::clone(&reader.read)));
            let read = reader.stop();
            (floor?, read)
        }
    };
    Ok((Floor { dropped_ns, ..floor }, read))
}

/// Pins the calling thread. A core that is not there is the operator's mistake.
pub(crate) fn pin_to(core: usize) -> Result<(), String> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(format!("this thread may not run on core {core}: choose one of those that taskset -cp $$ lists"))
    }
}

struct Round {
    packets: u64,
    cpu: Duration,
    wall: Duration,
    checksum: u64,
}

impl Round {
    fn ns_per_packet(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets as f64
    }
}

fn send_rounds(plan: &Plan, sinks: &[SocketAddr], read: Option<Arc<AtomicU64>>) -> Result<Vec<Round>, String> {
    pin_to(plan.core)?;
    let fail = |e: std::io::Error| format!("floor sender: {e}");
    if let Some(namespace) = &plan.namespace {
        enter_namespace(Path::new(namespace)).map_err(|e| format!("{namespace}: {e}"))?;
    }
    let socket = bind_udp(SocketAddr::from((plan.from, 0)), 1 << 20, 8 << 20).map_err(fail)?;
    let config =
        IoConfig { recv_buffers: 16, recv_buffer_len: 2_048, trains: 2 * TRAINS_PER_TURN as u16, gro: false, ..IoConfig::default() };
    match plan.backend {
        BackendKind::Uring => {
            let backend = UringBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?;
            Sender::new(backend, sinks, read).run(plan)
        }
        BackendKind::Mmsg => {
            let backend = MmsgBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?;
            Sender::new(backend, sinks, read).run(plan)
        }
    }
    .map_err(fail)
}

struct Sender<'a, B> {
    backend: B,
    sinks: &'a [SocketAddr],
    keys: Vec<LessSafeKey>,
    /// Of the next seal; one counter for all keys, so no nonce repeats.
    nonce: u64,
    /// Packets that the sinks have read, if they are read, and those that were sent and not given up.
    read: Option<Arc<AtomicU64>>,
    sent: u64,
}

impl<B: Backend> Sender<'_, B> {
    fn new(backend: B, sinks: &[SocketAddr], read: Option<Arc<AtomicU64>>) -> Sender<'_, B> {
        let key =
            |_: &SocketAddr| LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &random_bytes::<16>()).expect("16 bytes are an AES-128 key"));
        let sent = read.as_ref().map_or(0, |read| read.load(Ordering::Relaxed));
        Sender { backend, sinks, keys: sinks.iter().map(key).collect(), nonce: 0, read, sent }
    }

    fn run(mut self, plan: &Plan) -> std::io::Result<Vec<Round>> {
        (0..=ROUNDS).map(|_| self.send_round(plan)).skip(1).collect()
    }

    fn send_round(&mut self, plan: &Plan) -> std::io::Result<Round> {
        let segment = plan.segment();
        let (mut packets, mut trains, mut checksum) = (0, 0, 0u64);
        let (wall, cpu) = (Instant::now(), thread_cpu_time());
        for (subscriber, &count) in (0..self.sinks.len()).cycle().zip(plan.trains.iter().cycle()) {
            if packets >= plan.packets {
                break;
            }
            let id = loop {
                match self.backend.acquire() {
                    Some(id) => break id,
                    None => self.backend.turn(Wait::AtMost(Duration::from_millis(10)))?,
                }
            };
            let train = &mut self.backend.train(&id)[..count * segment];
            if plan.seals {
                for packet in train.chunks_exact_mut(segment) {
                    checksum = checksum.rotate_left(5) ^ seal(&self.keys[subscriber], self.nonce, packet);
                    self.nonce += 1;
                }
            } else {
                checksum = checksum.rotate_left(5) ^ count as u64;
            }
            let gso = if count > 1 { Some(segment as u16) } else { None };
            self.backend.send(id, Transmit { socket: 0, to: self.sinks[subscriber], len: count * segment, segment: gso });
            packets += count as u64;
            trains += 1;
            if trains % TRAINS_PER_TURN == 0 {
                self.backend.turn(Wait::No)?;
                self.wait_for_sinks(packets);
            }
        }
        self.backend.turn(Wait::No)?;
        self.sent += packets;
        Ok(Round { packets, cpu: thread_cpu_time() - cpu, wall: wall.elapsed(), checksum })
    }

    /// Sleeps while too much is unread; what is never read is given up.
    fn wait_for_sinks(&mut self, packets: u64) {
        let Some(read) = &self.read else { return };
        let unread = || (self.sent + packets).saturating_sub(read.load(Ordering::Relaxed));
        let pauses = std::iter::repeat_n((), UNREAD_PAUSES_MAX).take_while(|()| unread() > UNREAD_MAX);
        if pauses.map(|()| thread::sleep(UNREAD_PAUSE)).count() == UNREAD_PAUSES_MAX {
            self.sent = self.sent.saturating_sub(unread());
        }
    }
}

/// Encrypts one packet where it lies; a part of its tag.
fn seal(key: &LessSafeKey, nonce: u64, packet: &mut [u8]) -> u64 {
    let (header, rest) = packet.split_at_mut(HEADER_LEN);
    let (payload, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_be_bytes());
    let sealed = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(bytes), Aad::from(&*header), payload)
        .expect("a payload of this size is within GCM's bounds");
    tag.copy_from_slice(sealed.as_ref());
    u64::from_be_bytes(tag[..8].try_into().expect("a tag has 16 bytes"))
}

/// The thread that owns the sinks and reads them.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    /// Packets that it has read.
    pub(crate) read: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Reader {
    /// Returns when the sinks take trains uncut.
    pub(crate) fn start(sockets: Vec<UdpSocket>, core: usize) -> Result<Reader, String> {
        let (prepared, outcome) = mpsc::channel();
        let (stop, read) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&read));
        let thread = thread::spawn(move || {
            // On a machine with one core the reader shares it; the sender's CPU time is its own all the same.
            let _ = pin_to(core);
            let mut groups = match Groups::new(sockets) {
                Ok(groups) => groups,
                Err(e) => {
                    let _ = prepared.send(Err(format!("sink sockets: {e}")));
                    return;
                }
            };
            let _ = prepared.send(Ok(()));
            loop {
                // What is told to end reads all that is there.
                let is_last = stopped.load(Ordering::Relaxed);
                let mut packets = 0;
                let mut take = |_, received: Received<'_>| packets += received.bytes.len().div_ceil(received.segment) as u64;
                let swept = if is_last { groups.sweep(&mut take) } else { groups.sweep_next(&mut take) };
                count.fetch_add(packets, Ordering::Relaxed);
                if swept.is_err() || is_last && packets == 0 {
                    break;
                }
            }
        });
        outcome.recv().map_err(|_| "the floor's reader panicked".to_owned())??;
        Ok(Reader { stop, read, thread })
    }

    /// Ends the thread: packets that it read.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.read.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn small(mean: f64, seals: bool) -> Plan {
        Plan {
            seals,
            trains: Plan::even_trains(mean, 200).unwrap(),
            packet_len: 200,
            packets: 600,
            core: 0,
            from: Ipv4Addr::LOCALHOST.into(),
            namespace: None,
            backend: BackendKind::Mmsg,
        }
    }

    #[test]
    fn a_small_floor_runs_and_says_what_it_did() {
        for (mean, seals, sink) in [(5.5, true, Sink::Drop), (1.0, false, Sink::Read)] {
            let (floor, read) = measure_alone(&small(mean, seals), 3, (sink, Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
            assert!(floor.ns_per_packet > 0.0 && floor.rounds_ns.len() == ROUNDS);
            assert!((floor.train_len - mean).abs() < 0.01, "{}", floor.train_len);
            assert!(sink == Sink::Drop || read >= floor.packets, "{read} of {}", floor.packets);
            println!("checksum {}", floor.checksum);
        }
    }

    #[test]
    fn a_train_that_the_kernel_would_refuse_is_refused_with_a_sentence() {
        assert_eq!(Plan::even_trains(60.0, 1_400).unwrap_err(), "a train of 60 packets cannot be sent: choose 1 to 45");
        assert!(Plan::even_trains(0.5, 200).is_err());
        let plan = Plan { trains: vec![3, 65], ..small(1.0, true) };
        assert!(measure_floor(&plan, &["127.0.0.1:9".parse().unwrap()], None).unwrap_err().contains("1 to 64 packets"));
    }

    #[test]
    fn a_floor_above_its_price_is_off() {
        let plan = small(10.0, true);
        let (mut floor, _) = measure_alone(&plan, 1, (Sink::Drop, Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
        floor.price_ns = plan.price_ns();
        assert!((390.0..395.0).contains(&floor.price_ns), "1,865 / 10 + 35 + 170: {}", floor.price_ns);
        assert!(floor.dropped_ns > 0.0, "it was measured");
        floor.dropped_ns = floor.price_ns * 1.09;
        assert_eq!(floor.off(), None);
        floor.dropped_ns = floor.price_ns * 1.11;
        assert!(floor.off().unwrap().starts_with("floor off: "));
    }
}
