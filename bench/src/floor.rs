//! The floor: the work that no SFU on this kernel can avoid. AES-128-GCM in place and a GSO send per train, nothing else.
//!
//! ```text
//! for each subscriber in turn: slot -> seal each packet where it lies -> one GSO send     (one pinned core)
//! sinks: the sockets of the fanout, read on another core, or sockets that nobody reads
//! ```
//! On loopback the sender's core also does the receivers' softirq, in the fanout and here alike: that is why both have the
//! same kind of sink.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use pop_uring::{Backend, BackendKind, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, bind_udp, thread_cpu_time};
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
const TRAIN_PACKETS_MAX: f64 = 64.0;
/// Longest train, in bytes: a UDP payload.
const TRAIN_LEN_MAX: usize = 65_000;
/// Runs whose median is the figure; one more before them warms caches and is dropped.
const ROUNDS: usize = 5;

/// What the floor sends, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Keys and destinations, served in turn.
    pub(crate) subscribers: usize,
    /// Mean packets per train; trains differ by one packet at most.
    pub(crate) train_len: f64,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Packets per round.
    pub(crate) packets: u64,
    /// Core of the sender.
    pub(crate) core: usize,
    /// Core of the reader, when the sinks are read.
    pub(crate) sink_core: usize,
    /// What becomes of the packets.
    pub(crate) sink: Sink,
    /// Which system calls carry them.
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
    /// Packets per second of wall time: median of the rounds.
    pub(crate) packets_per_second: f64,
    /// Mean packets per train.
    pub(crate) train_len: f64,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Keys and destinations.
    pub(crate) subscribers: usize,
    /// What became of the packets.
    pub(crate) sink: Sink,
    /// Which system calls carried them.
    pub(crate) backend: &'static str,
    /// Packets that the sinks read over all rounds.
    pub(crate) packets_read: u64,
    /// Folds every authentication tag of the last round, so that no seal can be left out. Keys are drawn anew each run.
    pub(crate) checksum: String,
}

/// Runs the floor. The error is a sentence.
pub(crate) fn measure_floor(plan: &Plan) -> Result<Floor, String> {
    let segment = plan.packet_len + TAG_LEN;
    if !(1.0..=TRAIN_PACKETS_MAX).contains(&plan.train_len) || plan.train_len.ceil() as usize * segment > TRAIN_LEN_MAX {
        let most = (TRAIN_LEN_MAX / segment).min(TRAIN_PACKETS_MAX as usize);
        return Err(format!("a train of {} packets cannot be sent: choose 1 to {most}", plan.train_len));
    }
    if plan.subscribers == 0 || plan.packet_len <= HEADER_LEN {
        return Err("the floor needs at least one subscriber, and packets longer than their header".to_owned());
    }
    // The smallest queue that the kernel gives (SOCK_MIN_RCVBUF) holds one train or none.
    let queue_len = if plan.sink == Sink::Read { SOCKET_QUEUE_LEN } else { 1 };
    let sockets = bind_clients(plan.subscribers, queue_len).map_err(|e| format!("sink sockets: {e}"))?;
    let sinks: Vec<SocketAddr> = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let reader = Reader::start(sockets, plan)?;
    let copy = *plan;
    // A thread of its own: pinning must not stick to the caller.
    let rounds = thread::spawn(move || send_rounds(&copy, &sinks)).join().map_err(|_| "the floor's sender panicked".to_owned())?;
    let packets_read = reader.stop();
    let rounds = rounds?;
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Floor {
        ns_per_packet: median(Round::ns_per_packet),
        rounds_ns: rounds.iter().map(|round| (round.ns_per_packet() * 10.0).round() / 10.0).collect(),
        packets_per_second: median(|round| round.packets as f64 / round.wall.as_secs_f64()),
        train_len: plan.train_len,
        packet_len: plan.packet_len,
        subscribers: plan.subscribers,
        sink: plan.sink,
        backend: plan.backend.name(),
        packets_read,
        checksum: format!("{:016x}", rounds[rounds.len() - 1].checksum),
    })
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

fn send_rounds(plan: &Plan, sinks: &[SocketAddr]) -> Result<Vec<Round>, String> {
    pin_to(plan.core)?;
    let fail = |e: std::io::Error| format!("floor sender: {e}");
    let socket = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)), 1 << 20, 8 << 20).map_err(fail)?;
    let config =
        IoConfig { recv_buffers: 16, recv_buffer_len: 2_048, trains: 2 * TRAINS_PER_TURN as u16, gro: false, ..IoConfig::default() };
    match plan.backend {
        BackendKind::Uring => {
            Sender::new(plan, UringBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?).run(plan, sinks)
        }
        BackendKind::Mmsg => {
            Sender::new(plan, MmsgBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?).run(plan, sinks)
        }
    }
    .map_err(fail)
}

struct Sender<B> {
    backend: B,
    keys: Vec<LessSafeKey>,
    /// Of the next seal; one counter for all keys, so no nonce repeats.
    nonce: u64,
    owed: f64,
}

impl<B: Backend> Sender<B> {
    fn new(plan: &Plan, backend: B) -> Sender<B> {
        let key = || LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &random_bytes::<16>()).expect("16 bytes are an AES-128 key"));
        Sender { backend, keys: (0..plan.subscribers).map(|_| key()).collect(), nonce: 0, owed: 0.0 }
    }

    fn run(mut self, plan: &Plan, sinks: &[SocketAddr]) -> std::io::Result<Vec<Round>> {
        (0..=ROUNDS).map(|_| self.send_round(plan, sinks)).skip(1).collect()
    }

    fn send_round(&mut self, plan: &Plan, sinks: &[SocketAddr]) -> std::io::Result<Round> {
        let segment = plan.packet_len + TAG_LEN;
        let (mut packets, mut trains, mut checksum) = (0, 0, 0u64);
        let (wall, cpu) = (Instant::now(), thread_cpu_time());
        for subscriber in (0..sinks.len()).cycle() {
            if packets >= plan.packets {
                break;
            }
            let id = loop {
                match self.backend.acquire() {
                    Some(id) => break id,
                    None => self.backend.turn(Wait::AtMost(Duration::from_millis(10)))?,
                }
            };
            self.owed += plan.train_len;
            let count = (self.owed.round() as usize).max(1);
            self.owed -= count as f64;
            let train = &mut self.backend.train(&id)[..count * segment];
            for packet in train.chunks_exact_mut(segment) {
                let (header, rest) = packet.split_at_mut(HEADER_LEN);
                let (payload, tag) = rest.split_at_mut(plan.packet_len - HEADER_LEN);
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&self.nonce.to_be_bytes());
                self.nonce += 1;
                let sealed = self.keys[subscriber]
                    .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&*header), payload)
                    .expect("a payload of this size is within GCM's bounds");
                tag.copy_from_slice(sealed.as_ref());
                checksum = checksum.rotate_left(5) ^ u64::from_be_bytes(tag[..8].try_into().expect("a tag has 16 bytes"));
            }
            let gso = if count > 1 { Some(segment as u16) } else { None };
            self.backend.send(id, Transmit { socket: 0, to: sinks[subscriber], len: count * segment, segment: gso });
            packets += count as u64;
            trains += 1;
            if trains % TRAINS_PER_TURN == 0 {
                self.backend.turn(Wait::No)?;
            }
        }
        self.backend.turn(Wait::No)?;
        Ok(Round { packets, cpu: thread_cpu_time() - cpu, wall: wall.elapsed(), checksum })
    }
}

/// The thread that owns the sinks and reads them, if they are to be read.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Reader {
    /// Returns when the sinks take trains uncut.
    fn start(sockets: Vec<UdpSocket>, plan: &Plan) -> Result<Reader, String> {
        let (prepared, outcome) = mpsc::channel();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, core, sink) = (stop.clone(), plan.sink_core, plan.sink);
        let thread = thread::spawn(move || {
            // On a machine with one core the reader shares it; the sender's CPU time is its own all the same.
            let _ = pin_to(core);
            let mut groups = match Groups::new(sockets) {
                Ok(groups) => groups,
                Err(e) => {
                    let _ = prepared.send(Err(format!("sink sockets: {e}")));
                    return 0;
                }
            };
            let _ = prepared.send(Ok(()));
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                match sink {
                    Sink::Drop => thread::sleep(Duration::from_millis(1)),
                    Sink::Read => {
                        let swept = groups.sweep(|_, received| count += received.bytes.len().div_ceil(received.segment) as u64);
                        if swept.is_err() {
                            break;
                        }
                    }
                }
            }
            count
        });
        outcome.recv().map_err(|_| "the floor's reader panicked".to_owned())??;
        Ok(Reader { stop, thread })
    }

    /// Ends the thread: packets that it read.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(train_len: f64, sink: Sink) -> Plan {
        Plan { subscribers: 3, train_len, packet_len: 200, packets: 600, core: 0, sink_core: 0, sink, backend: BackendKind::Mmsg }
    }

    #[test]
    fn a_small_floor_runs_and_says_what_it_did() {
        for (train_len, sink) in [(5.5, Sink::Drop), (1.0, Sink::Read)] {
            let floor = measure_floor(&small(train_len, sink)).unwrap();
            assert!(floor.ns_per_packet > 0.0 && floor.rounds_ns.len() == ROUNDS);
            println!("checksum {}", floor.checksum);
        }
    }

    #[test]
    fn a_train_that_the_kernel_would_refuse_is_refused_with_a_sentence() {
        let error = measure_floor(&Plan { packet_len: 1_400, ..small(60.0, Sink::Drop) }).unwrap_err();
        assert_eq!(error, "a train of 60 packets cannot be sent: choose 1 to 45");
        assert!(measure_floor(&small(0.5, Sink::Drop)).is_err());
    }
}
