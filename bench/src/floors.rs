//! `pop-bench floor`: the minimal programs, measured alone.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pop_uring::{Backend, BackendKind, IoConfig, MmsgBackend, Transmit, Wait, bind_udp, enter_namespace};
use serde::Serialize;
use serde_json::{Value, json};

use crate::floor::{Floor, Plan, Reader, Sink, measure_alone, pin_to};
use crate::forward::{Counts, forward};
use crate::groups::{SOCKET_QUEUE_LEN, bind_clients, no_wakes};
use crate::machine::{Machine, Pinning};
use crate::network::Network;
use crate::result::{Figures, TrainPackets, case_json};
use crate::{make_folder_of, write_json};

/// Runs that the source of the forwarder may be ahead of the sinks.
const AHEAD_MAX: u64 = 4;

/// A run that did not come by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(20);

/// Which minimal program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// GSO sends and nothing else.
    Send,
    /// AES-128-GCM in place before each send, a key per subscriber.
    Gcm,
    /// One UDP socket to many receivers, GRO in and GSO out: pop-bench forward.
    Forward,
}

/// `pop-bench floor`
#[derive(Debug, clap::Args)]
pub(crate) struct FloorArgs {
    /// Which minimal program.
    #[arg(long, value_enum, default_value_t = Kind::Gcm)]
    kind: Kind,
    /// Keys and destinations, served in turn.
    #[arg(long, default_value_t = 50)]
    subscribers: usize,
    /// Mean packets per train, such as 5.7.
    #[arg(long, default_value_t = 6.0)]
    train: f64,
    /// Bytes of an RTP packet before protection.
    #[arg(long, default_value_t = 1_100)]
    packet_size: usize,
    /// Packets per round; the figure is the median of five rounds after a dropped one. Of the forwarder: packets in all.
    #[arg(long, default_value_t = 200_000)]
    packets: u64,
    /// Core of the sender.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Core that reads the sinks.
    #[arg(long, default_value_t = 0)]
    sink_core: usize,
    /// What becomes of the packets.
    #[arg(long, value_enum, default_value_t = Sink::Read)]
    sink: Sink,
    /// Which system calls carry them: mmsg (the cheaper one, so the harder floor) or io_uring.
    #[arg(long, default_value = "mmsg", value_parser = parse_backend)]
    backend: BackendKind,
    /// Sender and sinks on loopback, as it is without root; default: a veth pair into a namespace that is made for the run.
    #[arg(long)]
    loopback: bool,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// `mmsg`, `io_uring`.
pub(crate) fn parse_backend(text: &str) -> Result<BackendKind, String> {
    text.parse().map_err(|e: pop_uring::UnknownBackend| e.to_string())
}

/// Runs the floor and writes its figures. The error is a sentence.
pub(crate) fn run(args: &FloorArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    let network = Network::open(args.loopback);
    let plan = Plan {
        seals: args.kind == Kind::Gcm,
        trains: Plan::even_trains(args.train, args.packet_size)?,
        packet_len: args.packet_size,
        packets: args.packets,
        core: args.core,
        from: network.node_address(),
        namespace: network.namespace(),
        backend: args.backend,
    };
    let (mut figures, detail) = match args.kind {
        Kind::Send | Kind::Gcm => {
            let (floor, read) = measure_alone(&plan, args.subscribers, (args.sink, network.load_address(), args.sink_core))?;
            (figures_of(&floor), json!({"floor": floor, "floor_off": floor.off(), "packets_read": read}))
        }
        Kind::Forward => measure_forward(args, &plan, &network)?,
    };
    figures.train_packets = Some(trains_of(&plan.trains));
    eprintln!(
        "floor     {:>10.1} ns of CPU per packet, {:.0} packets/s, trains of {:.2} x {} bytes, {} subscribers, {}, {}, checksum {}",
        figures.cpu_ns_per_packet.unwrap_or_default(),
        figures.packets_per_second.unwrap_or_default(),
        args.train,
        args.packet_size,
        args.subscribers,
        args.backend.name(),
        network.describe().kind,
        detail["floor"]["checksum"].as_str().unwrap_or("-")
    );
    if let Some(sentence) = detail["floor_off"].as_str() {
        eprintln!("beware    {sentence}");
    }
    let pinning = Pinning::new(args.core, 1, args.sink_core);
    let machine = Machine::describe(args.backend.name(), None).with(network.describe(), pinning);
    let config = json!({
        "kind": args.kind, "subscribers": args.subscribers, "train": args.train, "packet_size": args.packet_size,
        "packets": args.packets, "sink": args.sink, "backend": args.backend.name(),
    });
    let json = case_json("floor", &figures, &machine, config, detail);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

fn figures_of(floor: &Floor) -> Figures {
    Figures { packets_per_second: Some(floor.packets_per_second), cpu_ns_per_packet: Some(floor.ns_per_packet), ..Figures::default() }
}

fn trains_of(lengths: &[usize]) -> TrainPackets {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)] as u32;
    TrainPackets { mean: sorted.iter().sum::<usize>() as f64 / sorted.len() as f64, p50: at(0.5), p99: at(0.99) }
}

/// A source on the sinks' core sends trains through the forwarder on the other, a few ahead of what the sinks have read.
fn measure_forward(args: &FloorArgs, plan: &Plan, network: &Network) -> Result<(Figures, Value), String> {
    let fail = |e: std::io::Error| format!("forwarder's sinks: {e}");
    let sinks = bind_clients(network.load_address(), args.subscribers, SOCKET_QUEUE_LEN).map_err(fail)?;
    let to: Vec<SocketAddr> = sinks.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().map_err(fail)?;
    let counts = Arc::<Counts>::default();
    let (listening, heard) = std::sync::mpsc::channel();
    let (copy, plan_copy) = (Arc::clone(&counts), plan.clone());
    let forwarder = std::thread::spawn(move || {
        pin_to(plan_copy.core)?;
        if let Some(namespace) = &plan_copy.namespace {
            enter_namespace(Path::new(namespace)).map_err(|e| format!("{namespace}: {e}"))?;
        }
        let socket = bind_udp((plan_copy.from, 0).into(), SOCKET_QUEUE_LEN, SOCKET_QUEUE_LEN).map_err(|e| format!("forwarder: {e}"))?;
        let _ = listening.send(socket.local_addr().map_err(|e| format!("forwarder: {e}"))?);
        forward(socket, &to, plan_copy.backend, &copy, None)
    });
    let Ok(listen) = heard.recv() else { return forwarder.join().map_err(|_| "the forwarder panicked")?.map(|()| unreachable!()) };
    let reader = Reader::start(sinks, args.sink_core)?;
    let source = send_trains(plan, (network, listen), args, &reader);
    counts.stop.store(true, Ordering::Relaxed);
    forwarder.join().map_err(|_| "the forwarder panicked".to_owned())??;
    let read = reader.stop();
    let Source { expected, elapsed } = source?;
    let cpu_ns_per_packet = counts.cpu_ns() as f64 / counts.sent().max(1) as f64;
    let figures = Figures {
        packets_per_second: Some(read as f64 / elapsed.as_secs_f64()),
        cpu_ns_per_packet: Some(cpu_ns_per_packet),
        loss: Some(1.0 - read as f64 / expected.max(1) as f64),
        ..Figures::default()
    };
    Ok((figures, json!({"expected": expected, "forwarded": counts.sent(), "read": read})))
}

struct Source {
    expected: u64,
    elapsed: Duration,
}

fn send_trains(plan: &Plan, (network, to): (&Network, SocketAddr), args: &FloorArgs, reader: &Reader) -> Result<Source, String> {
    let fail = |e: std::io::Error| format!("forwarder's source: {e}");
    let socket = bind_udp((network.load_address(), 0).into(), SOCKET_QUEUE_LEN, SOCKET_QUEUE_LEN).map_err(fail)?;
    let config = IoConfig { recv_buffers: 1, recv_buffer_len: 2_048, trains: 4, gro: false, ..IoConfig::default() };
    let mut backend = MmsgBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?;
    let subscribers = args.subscribers as u64;
    let (start, mut expected) = (Instant::now(), 0);
    let mut trains = plan.trains.iter().cycle();
    while expected < plan.packets {
        let len = *trains.next().expect("it is a circle");
        let id = backend.acquire().expect("every turn sends what was queued before it");
        let segment = (len > 1).then_some(plan.packet_len as u16);
        backend.send(id, Transmit { socket: 0, to, len: len * plan.packet_len, segment });
        backend.turn(Wait::No).map_err(fail)?;
        expected += len as u64 * subscribers;
        let (sent, ahead) = (Instant::now(), AHEAD_MAX * len as u64 * subscribers);
        while expected.saturating_sub(reader.read.load(Ordering::Relaxed)) > ahead && sent.elapsed() < LOST_AFTER {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
    let sent = Instant::now();
    while reader.read.load(Ordering::Relaxed) < expected && sent.elapsed() < LOST_AFTER {
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(Source { expected, elapsed: start.elapsed() })
}
