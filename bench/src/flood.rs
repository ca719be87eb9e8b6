//! `pop-bench flood`: live streams on one node while a stranger sends as fast as one core can.
//!
//! ```text
//! start -> publishers and subscribers join -> run -> for each kind: run with the flood beside it, run after it -> report
//! ```
//! The packet worker has one core, load and flood share the other. With `--to` it is the flood alone, against a node that runs.

mod packets;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use pop::dtls::{Certificate, Dtls};
use pop_uring::{Backend, IoConfig, IoStats, MmsgBackend, RawUdp, Transmit, Wait};
use serde::Serialize;
use serde_json::json;

use crate::fanout::join::{Ticket, join};
use crate::fanout::load::{Load, Outcome};
use crate::fanout::seats::{JOINS_AT_ONCE, Seats};
use crate::fanout::server::{Capacity, Place, Server, sum_metric};
use crate::fanout::timeline::{Pace, Spread};
use crate::fanout::{machine, parse_bitrate, parse_duration, program_beside};
use crate::floor::pin_to;
use crate::groups::no_wakes;
use crate::machine::{Workers, resident_bytes};
use crate::network::Network;
use crate::random::random_hex;
use crate::result::{Figures, case_json};
use crate::sdp::Media;
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use packets::{Forged, Kind, Victim, forge};

/// The flood's sends in flight.
const SENDS: u16 = 64;

/// Where packets with a forged source leave, and trains with none, in the flooder's back end.
const RAW_SOCKET: u16 = 0;
const OWN_SOCKET: u16 = 1;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct FloodArgs {
    /// What to flood with; default: each kind in turn.
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// How long each flood, and each run without one, lasts.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Of the packets that are sent.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only flood this media address of a node that runs: no load, no figures of its own.
    #[arg(long, value_name = "ADDRESS", requires = "from", conflicts_with_all = ["subscribers", "publishers", "bitrate", "pop"])]
    to: Option<SocketAddrV4>,
    /// A live client's address and port, as an attacker sees them.
    #[arg(long, requires = "to", value_name = "ADDRESS")]
    from: Vec<SocketAddrV4>,
    /// The node's ufrag of such a client, from its answer.
    #[arg(long, requires = "to", default_value = "unknown")]
    ufrag: String,
    /// Subscribers in all; they spread evenly over the publishers.
    #[arg(long, default_value_t = 20)]
    subscribers: usize,
    /// Publishers, each in a room of its own.
    #[arg(long, default_value_t = 2)]
    publishers: usize,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "1.5M", value_parser = parse_bitrate)]
    bitrate: u64,
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// Core of the packet worker.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Core of the load generator and of the flood.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The server's back end: auto, io_uring or mmsg.
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a flood sent.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sent {
    /// Datagrams that the kernel took, each fragment of one counted.
    datagrams: u64,
    /// Their bytes, IP headers of forged ones included.
    bytes: u64,
    /// What the kernel refused.
    refused: u64,
    /// Share of its core that the flood got.
    cpu_share: f64,
}

/// Live streams during one flood and right after it.
#[derive(Debug, Serialize)]
struct Trial {
    kind: Kind,
    sent: Sent,
    sent_per_second: f64,
    /// Of the live streams, while the flood ran.
    loss: f64,
    latency_p99_us: f64,
    /// Of the load generator's own queues; inside `loss`.
    generator_drops: u64,
    /// Of the live streams in the run that began within 0.2 s of the flood's end; below zero when packets of the run before came in it.
    loss_after: f64,
    worker_cpu_share: f64,
    /// How long the worker was ready and something else had its core: what the machine took, not the flood.
    worker_waited_share: f64,
    /// Growth of the node's resident memory from before the flood to its end, in bytes.
    resident_growth: i64,
    /// Datagrams that the kernel dropped because the media socket's queue was full.
    kernel_drops: u64,
    /// By reason, what the node refused.
    drops: Vec<(String, u64)>,
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &FloodArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    let kinds = if args.kind.is_empty() { Kind::value_variants() } else { &args.kind };
    if let Some(to) = args.to {
        pin_to(args.load_core)?;
        let username = format!("{}:stranger", args.ufrag);
        let victims: Vec<Victim> = args.from.iter().map(|from| Victim { from: *from, username: username.clone(), ssrc: 1 }).collect();
        for kind in kinds {
            let sent = flood(&forge(*kind, to, &victims, args.seed)?, to, args.duration, &AtomicBool::new(false))?;
            eprintln!("flood {kind:?}: {sent:?}");
        }
        return Ok(());
    }
    let key = ("bench", random_hex::<20>());
    let program = args.pop.clone().map_or_else(program_beside, Ok)?;
    // The victims' own addresses are forged: that is for loopback alone.
    let network = Network::open(true);
    let place = Place { cores: &[args.server_core], network: &network };
    let server = Server::start(&program, place, Capacity::default(), &args.backend, (key.0, &key.1))?;
    pin_to(args.load_core)?;
    let workers = Workers::find(server.pid)?;
    let pace =
        Pace { bitrate: args.bitrate, packet_len: 1_100, fps: 30, spread: Spread::Burst, duration: args.duration, media: Media::Video };
    let (mut load, to, victims) = join_all(args, &pace, (&server.http, network.load_address()), (key.0, &key.1))?;
    load.renew_consent()?;
    let calm = load.run(&pace)?;
    if calm.delivered == 0 {
        return Err(format!("the clients joined and no packet arrived; the server's drops: {:?}", server.drops()));
    }
    let mut trials = Vec::new();
    for kind in kinds {
        let trial = try_kind(*kind, &forge(*kind, to, &victims, args.seed)?, to, (&server, &workers), &mut load, &pace)?;
        summarize(&trial, &pace);
        trials.push(trial);
    }
    let worst = trials.iter().max_by(|a, b| a.loss.total_cmp(&b.loss));
    let figures = Figures {
        packets_per_second: Some(calm.delivered as f64 / calm.elapsed.as_secs_f64()),
        loss: worst.map(|trial| trial.loss),
        ..Figures::default()
    };
    let config = json!({
        "subscribers": args.subscribers, "publishers": args.publishers, "bitrate": args.bitrate,
        "duration_s": args.duration.as_secs_f64(), "seed": args.seed,
    });
    let detail = json!({
        "loss_without_flood": calm.loss(), "latency_p99_us_without_flood": calm.latency_us.map(|latency| latency.p99),
        "checksum": format!("{:016x}", calm.checksum), "trials": trials,
    });
    let json = case_json("flood", &figures, &machine(&server), config, detail);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

fn summarize(trial: &Trial, pace: &Pace) {
    let Trial { kind, sent, sent_per_second, loss, latency_p99_us, loss_after, worker_cpu_share, .. } = trial;
    eprintln!(
        "{:<7} {:>9.0} datagrams/s for {:.0?} on {:.0} % of a core: loss {:.4} %, after it {:.4} %, p99 {:.0} us, worker {:.0} % and \
         {:.0} % without its core, {} dropped in the kernel, {:+} KiB, {:?}",
        format!("{kind:?}"),
        sent_per_second,
        pace.duration,
        sent.cpu_share * 100.0,
        loss * 100.0,
        loss_after * 100.0,
        latency_p99_us,
        worker_cpu_share * 100.0,
        trial.worker_waited_share * 100.0,
        trial.kernel_drops,
        trial.resident_growth / 1_024,
        trial.drops,
    );
}

/// One run with the flood beside it, and one right after it.
fn try_kind(
    kind: Kind,
    pool: &[Forged],
    to: SocketAddrV4,
    (server, workers): (&Server, &Workers),
    load: &mut Load,
    pace: &Pace,
) -> Result<Trial, String> {
    let kernel_drops = || {
        let page = server.metrics().unwrap_or_default();
        sum_metric(&page, "pop_udp_receive_buffer_drops_total").unwrap_or_default() as u64
    };
    let (drops_before, kernel_before, resident_before) = (server.drop_counts(), kernel_drops(), resident_bytes(server.pid)?);
    let (cpu_before, waited_before, start) = (workers.cpu_ns()?, workers.waited_ns()?, Instant::now());
    let done = AtomicBool::new(false);
    let (outcome, sent) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(pool, to, pace.duration, &done));
        let outcome: Result<Outcome, String> = load.run(pace);
        done.store(true, Ordering::Relaxed);
        let sent = flooding.join().map_err(|_| "the flood panicked".to_owned())?;
        Ok::<_, String>((outcome?, sent?))
    })?;
    let (cpu, waited, elapsed) = (workers.cpu_ns()? - cpu_before, workers.waited_ns()? - waited_before, start.elapsed());
    let resident_growth = resident_bytes(server.pid)? as i64 - resident_before as i64;
    let after = load.run(&Pace { duration: pace.duration.min(Duration::from_secs(2)), ..*pace })?;
    let before = |reason: &str| drops_before.iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count);
    let drops = server.drop_counts().into_iter().map(|(reason, count)| (reason.clone(), count - before(&reason)));
    Ok(Trial {
        kind,
        sent,
        sent_per_second: sent.datagrams as f64 / pace.duration.as_secs_f64(),
        loss: outcome.loss(),
        latency_p99_us: outcome.latency_us.map_or(0.0, |latency| latency.p99),
        generator_drops: outcome.generator_drops,
        loss_after: after.loss(),
        worker_cpu_share: cpu as f64 / elapsed.as_nanos() as f64,
        worker_waited_share: waited as f64 / elapsed.as_nanos() as f64,
        resident_growth,
        kernel_drops: kernel_drops() - kernel_before,
        drops: drops.filter(|(_, count)| *count > 0).collect(),
    })
}

/// Sends the pool in turn as fast as this thread can, for `duration` or until `stop`.
fn flood(pool: &[Forged], to: SocketAddrV4, duration: Duration, stop: &AtomicBool) -> Result<Sent, String> {
    let refused = |e: std::io::Error| format!("the flood's sockets: {e} (a forged source needs CAP_NET_RAW)");
    let raw = RawUdp::new().map_err(refused)?.into_socket();
    let own = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)).map_err(refused)?;
    let config = IoConfig { recv_buffers: 1, trains: SENDS, gro: false, ..IoConfig::default() };
    let mut backend = MmsgBackend::new(vec![raw, own], no_wakes().map_err(refused)?, &config).map_err(refused)?;
    let (start, cpu) = (Instant::now(), pop_uring::thread_cpu_time());
    let mut next = pool.iter().cycle();
    while start.elapsed() < duration && !stop.load(Ordering::Relaxed) {
        // One clock read and one turn for as many as there are slots; what the kernel did not take yet keeps its slot.
        while let Some(id) = backend.acquire() {
            let forged = next.next().expect("a cycle has no end");
            let (socket, bytes, segment) = match forged {
                Forged::Packet(bytes) => (RAW_SOCKET, bytes, None),
                Forged::Train { bytes, segment } => (OWN_SOCKET, bytes, Some(*segment)),
            };
            backend.train(&id)[..bytes.len()].copy_from_slice(bytes);
            backend.send(id, Transmit { socket, to: SocketAddr::V4(to), len: bytes.len(), segment });
        }
        backend.turn(Wait::No).map_err(refused)?;
    }
    let (wall, cpu) = (start.elapsed(), pop_uring::thread_cpu_time() - cpu);
    let IoStats { datagrams_sent, bytes_sent, sends_failed, .. } = backend.stats();
    if datagrams_sent == 0 {
        return Err("the kernel took no packet of the flood".to_owned());
    }
    let cpu_share = cpu.as_secs_f64() / wall.as_secs_f64();
    Ok(Sent { datagrams: datagrams_sent, bytes: bytes_sent, refused: sends_failed, cpu_share })
}

/// The load, the node's media address, and the clients as seen on the wire.
fn join_all(
    args: &FloodArgs,
    pace: &Pace,
    (base, address): (&str, IpAddr),
    key: (&str, &str),
) -> Result<(Load, SocketAddrV4, Vec<Victim>), String> {
    let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
    let seats = Seats { sides: 1, publishers: args.publishers, subscribers: args.subscribers, address, pace: *pace, timed: None };
    let (load, members) = seats.fill(|seat, socket| {
        let room = format!("flood-{}", seat.publisher);
        let (door, grant) = if seat.subscriber.is_some() { ("whep", Grant::Watch) } else { ("whip", Grant::Publish) };
        let token = sign_token(key, &room, &random_hex::<8>(), grant, now_s);
        join(dtls.clone(), socket, Ticket { url: format!("{base}/{door}/{room}"), token, ssrc: seat.published(), rtx: false })
    })?;
    let (mut victims, mut to) = (Vec::new(), None);
    for member in members {
        if let (SocketAddr::V4(from), SocketAddr::V4(server)) = (member.address, member.server) {
            to = Some(server);
            victims.push(Victim { from, username: member.username, ssrc: member.seat.ssrc });
        }
    }
    Ok((load, to.ok_or("the node's media address is not IPv4")?, victims))
}
