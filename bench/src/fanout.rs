//! `pop-bench fanout`: one node, publishers and many subscribers, everything real from HTTP to the last SRTP tag.
//!
//! ```text
//! start or attach -> publishers join -> subscribers join, 20 at a time -> warm-up (mean train length)
//!   -> (search) -> floor -> measured run -> floor -> report
//! ```
//! The packet worker has one core, the load another. The floor runs on the worker's core while the worker sleeps.

pub(crate) mod arrival;
pub(crate) mod ice;
pub(crate) mod join;
pub(crate) mod load;
pub(crate) mod packet;
mod report;
pub(crate) mod server;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pop::dtls::{Certificate, Dtls};
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_uring::BackendKind;
use serde_json::Value;

use crate::floor::{Floor, Plan, Sink, measure_floor, pin_to};
use crate::groups::{Groups, SOCKET_QUEUE_LEN, bind_clients};
use crate::http;
use crate::machine::{Machine, Workers};
use crate::random::{random_bytes, random_hex};
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use join::{Joined, Ticket, join};
use load::{Client, Load, Outcome, Pace, Publisher, Role, Subscriber};
use packet::PACKET_LEN_MIN;
use report::{Allocations, Report};
use server::{Capacity, Server};

/// Clients that join at the same time: a handshake costs the node about a millisecond of CPU, and nothing here is a storm.
const JOINS_AT_ONCE: usize = 20;

/// One subscriber in this many authenticates every packet.
pub(crate) const AUTHENTICATE_EVERY: usize = 10;

/// Before anything is measured: caches, histories and the worker's buffers fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Packets of one floor round, at most: about 0.1 s.
const FLOOR_PACKETS_MAX: u64 = 200_000;

/// A short measurement gets a short floor: packets of one round for each second of it.
const FLOOR_PACKETS_PER_SECOND: f64 = 40_000.0;

/// The longest mean train of a floor: 45 packets of the longest size fill a UDP payload.
const FLOOR_TRAIN_MAX: f64 = 45.0;

/// Loss at which a search says "too fast", as a share.
const SEARCH_LOSS_MAX: f64 = 0.000_1;

/// A queue that takes longer than this to work off after the last frame means that the rate was not kept up with: deep socket
/// queues hide seconds of it without a loss.
const OVERRUN_MAX: Duration = Duration::from_millis(20);

/// A search ends when the last good and the first bad rate are this close.
const SEARCH_RATIO: f64 = 1.03;

/// The longest RTP packet that is sent, in bytes: with its tag it fits an Ethernet MTU.
pub(crate) const PACKET_LEN_MAX: usize = 1_400;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct FanoutArgs {
    /// Subscribers in all; they spread evenly over the publishers.
    #[arg(long, default_value_t = 50)]
    subscribers: usize,
    /// Publishers, each in a room of its own.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "1.5M", value_parser = parse_bitrate)]
    bitrate: u64,
    /// Bytes of an RTP packet before protection.
    #[arg(long, default_value_t = 1_100)]
    packet_size: usize,
    /// Frames per second; the packets of a frame leave in one burst.
    #[arg(long, default_value_t = 30)]
    fps: u32,
    /// How long to measure, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Raise the bitrate until packets are lost or queue up, and report the highest rate without either.
    #[arg(long)]
    search: bool,
    /// The server to start; default: `pop` beside this program.
    #[arg(long, conflicts_with = "http")]
    pop: Option<PathBuf>,
    /// Measure a node that runs on this machine: its signalling URL.
    #[arg(long, requires = "token")]
    http: Option<String>,
    /// A token for its room, with publish and subscribe grants.
    #[arg(long, requires = "http")]
    token: Option<String>,
    /// Its operator's URL, for /metrics; without it allocations are not reported.
    #[arg(long, requires = "http")]
    admin: Option<String>,
    /// Its process, when several nodes run here.
    #[arg(long, requires = "http")]
    pid: Option<u32>,
    /// Core of the packet worker (of a server that is started here) and of the floor.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The server's back end: auto, io_uring or mmsg (of a server that is started here).
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// `10s`, `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    pop::config::parse_duration(text).ok_or_else(|| "give digits and a unit, such as 10s or 500ms".to_owned())
}

/// `1.5M`, `500k`, `64000`.
pub(crate) fn parse_bitrate(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.strip_suffix(['M', 'm']) {
        Some(number) => (number, 1e6),
        None => text.strip_suffix(['k', 'K']).map_or((text, 1.0), |number| (number, 1e3)),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor <= 1e11 => Ok((number * factor) as u64),
        _ => Err("give bits per second, such as 1.5M, 500k or 64000".to_owned()),
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &FanoutArgs) -> Result<(), String> {
    check_args(args)?;
    make_folder_of(args.json.as_deref())?;
    let key = ("bench", random_hex::<20>());
    let server = match &args.http {
        Some(http) => {
            let pid = args.pid.map_or_else(Workers::find_process, Ok)?;
            Server::attach(http, args.admin.as_deref(), pid)
        }
        None => {
            let program = args.pop.clone().map_or_else(program_beside, Ok)?;
            let capacity = Capacity { transports: args.subscribers + args.publishers + 8, ..Capacity::default() };
            Server::start(&program, args.server_core, capacity, &args.backend, (key.0, &key.1))?
        }
    };
    // Only now: a child inherits the cores of its parent.
    pin_to(args.load_core)?;
    let workers = Workers::find(server.pid)?;
    let tickets = make_tickets(args, &server.http, (key.0, &key.1))?;
    let (mut load, joined) = join_all(args, tickets)?;
    let result = measure(args, &server, &workers, &mut load);
    // A node of ours ends with its process; in somebody else's the clients must not linger until consent expires.
    if args.http.is_some() {
        for stay in &joined {
            let _ = http::request("DELETE", &stay.resource, &[("Authorization", &format!("Bearer {}", stay.token))], "");
        }
    }
    let report = result?;
    report.summarize();
    let json = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
    write_json(args.json.as_deref(), &json)
}

fn check_args(args: &FanoutArgs) -> Result<(), String> {
    if args.publishers == 0 || args.subscribers < args.publishers {
        return Err("--publishers must be at least 1, and --subscribers at least as many".to_owned());
    }
    if args.http.is_some() && args.publishers > 1 {
        return Err("--http takes one publisher: a token opens one room".to_owned());
    }
    if !(PACKET_LEN_MIN..=PACKET_LEN_MAX).contains(&args.packet_size) {
        return Err(format!("--packet-size must be {PACKET_LEN_MIN} to {PACKET_LEN_MAX} bytes"));
    }
    if !(1..=1_000).contains(&args.fps) || args.duration.is_zero() {
        return Err("--fps must be 1 to 1000, and --duration above zero".to_owned());
    }
    Ok(())
}

/// The `pop` that was built together with this program.
pub(crate) fn program_beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    Ok(own.with_file_name("pop"))
}

/// Publishers first, then subscribers in turn over the publishers' rooms.
fn make_tickets(args: &FanoutArgs, base: &str, key: (&str, &str)) -> Result<Vec<Ticket>, String> {
    let given = match &args.token {
        Some(token) => Some((token.clone(), room_of(token)?)),
        None => None,
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
    let ticket = |path: &str, publisher: usize, identity: String, ssrc: Option<u32>| {
        let (token, room) = given.clone().unwrap_or_else(|| {
            let room = format!("bench-{publisher}");
            (sign_token(key, &room, &identity, if ssrc.is_some() { Grant::Publish } else { Grant::Watch }, now_s), room)
        });
        Ticket { url: format!("{base}/{path}/{room}"), token, ssrc }
    };
    let publishers = (0..args.publishers).map(|n| ticket("whip", n, format!("publisher-{n}"), Some(u32::from_be_bytes(random_bytes()))));
    let subscribers = (0..args.subscribers).map(|n| ticket("whep", n % args.publishers, format!("subscriber-{n}"), None));
    Ok(publishers.chain(subscribers).collect())
}

/// The room that a token is for: the server checks the signature, this only reads.
fn room_of(token: &str) -> Result<String, String> {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Value> = claims.and_then(|json| serde_json::from_slice(&json).ok());
    let room = claims.as_ref().and_then(|claims| claims.get("video")?.get("room")?.as_str());
    room.map(str::to_owned).ok_or_else(|| "--token names no room (video.room): make one with pop token create --room R".to_owned())
}

/// What DELETE needs.
struct Stay {
    resource: String,
    token: String,
}

fn join_all(args: &FanoutArgs, tickets: Vec<Ticket>) -> Result<(Load, Vec<Stay>), String> {
    let sockets = bind_clients(tickets.len(), SOCKET_QUEUE_LEN)
        .map_err(|e| format!("client sockets: {e}: raise the limit of open files (ulimit -n)"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))?;
    let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
    let (mut clients, mut stays) = (Vec::new(), Vec::new());
    let pairs: Vec<(&Ticket, &std::net::UdpSocket)> = tickets.iter().zip(&sockets).collect();
    // The publishers alone first, so that every viewer finds its track.
    let (publishers, subscribers) = pairs.split_at(args.publishers);
    for batch in publishers.chunks(JOINS_AT_ONCE).chain(subscribers.chunks(JOINS_AT_ONCE)) {
        for (joined, ticket) in runtime.block_on(join_batch(&dtls, batch))?.into_iter().zip(batch) {
            let at = clients.len();
            let Joined { server, checks, keys, resource } = joined;
            let receiver = || SrtpReceiver::new(keys.profile, &keys.remote);
            let role = match ticket.0.ssrc {
                Some(ssrc) => {
                    let sender = SrtpSender::new(keys.profile, &keys.local);
                    let sequence = u16::from_be_bytes(random_bytes());
                    Role::Publisher(Box::new(Publisher::new(sender, receiver(), ssrc, sequence)))
                }
                None => {
                    let n = at - args.publishers;
                    let authenticates = n.is_multiple_of(AUTHENTICATE_EVERY);
                    Role::Subscriber(Box::new(Subscriber::new(n % args.publishers, authenticates.then(receiver))))
                }
            };
            clients.push(Client { server, checks, role });
            stays.push(Stay { resource, token: ticket.0.token.clone() });
        }
    }
    let authenticating = args.subscribers.div_ceil(AUTHENTICATE_EVERY);
    let per_subscriber = args.bitrate as f64 / 8.0 / args.packet_size as f64 * args.duration.as_secs_f64();
    let samples = (per_subscriber as usize + 2 * args.fps as usize) * authenticating;
    let groups = Groups::new(sockets).map_err(|e| format!("load generator: {e}"))?;
    // The runtime's threads would share the generator's core; what is left to do there is nothing.
    runtime.shutdown_background();
    Ok((Load::new(groups, clients, args.packet_size, samples), stays))
}

async fn join_batch(dtls: &Dtls, batch: &[(&Ticket, &std::net::UdpSocket)]) -> Result<Vec<Joined>, String> {
    let mut tasks = Vec::new();
    for (ticket, socket) in batch {
        let socket = socket.try_clone().map_err(|e| format!("client socket: {e}"))?;
        tasks.push(tokio::spawn(join(dtls.clone(), socket, (*ticket).clone())));
    }
    let mut joined = Vec::new();
    for task in tasks {
        joined.push(task.await.map_err(|e| format!("a client's join panicked: {e}"))??);
    }
    Ok(joined)
}

fn measure(args: &FanoutArgs, server: &Server, workers: &Workers, load: &mut Load) -> Result<Report, String> {
    let pace = Pace { bitrate: args.bitrate, packet_len: args.packet_size, fps: args.fps, duration: args.duration };
    load.renew_consent()?;
    let warm_up = load.run(&Pace { duration: WARM_UP, ..pace })?;
    if warm_up.delivered == 0 {
        return Err(format!("{} clients joined and no packet arrived; the server's drops: {:?}", load.check_answers(), server.drops()));
    }
    // The rate that a search finds is run once more between its floors, which have that rate's trains.
    let (pace, like) = if args.search { search(load, server, workers, pace)? } else { (pace, warm_up) };
    let floor_before = floor_like(args, load, &like)?;
    load.renew_consent()?;
    let measured = measure_run(load, server, workers, &pace)?;
    let floor_after = floor_like(args, load, &measured.outcome)?;
    Ok(Report::new(args, &pace, measured, [floor_before, floor_after], machine(server), server.drops()))
}

/// This machine, and what the server says about itself.
pub(crate) fn machine(server: &Server) -> Machine {
    let version = server.version();
    let field = |name: &str| Some(serde_json::from_str::<Value>(version.as_deref()?).ok()?.get(name)?.as_str()?.to_owned());
    Machine::describe(&server.backend().unwrap_or_else(|| "unknown".to_owned()), field("commit"))
}

/// One run with the server's own figures around it.
struct Measured {
    outcome: Outcome,
    worker_cpu_ns: u64,
    allocations: Allocations,
}

fn measure_run(load: &mut Load, server: &Server, workers: &Workers, pace: &Pace) -> Result<Measured, String> {
    let allocations_before = server.metric("pop_worker_allocations_total");
    let cpu_before = workers.cpu_ns()?;
    let outcome = load.run(pace)?;
    let worker_cpu_ns = workers.cpu_ns()? - cpu_before;
    let allocations_after = server.metric("pop_worker_allocations_total");
    let allocations = allocations_after.zip(allocations_before).map(|(after, before)| after - before);
    Ok(Measured { outcome, worker_cpu_ns, allocations })
}

/// Doubles the bitrate until packets are lost or queue up, then halves the gap. The last rate without either is the result.
fn search(load: &mut Load, server: &Server, workers: &Workers, start: Pace) -> Result<(Pace, Outcome), String> {
    let mut good: Option<(Pace, Outcome)> = None;
    let mut bad: Option<u64> = None;
    loop {
        let bitrate = match (&good, bad) {
            (None, None) => start.bitrate,
            (Some((pace, _)), None) => pace.bitrate * 2,
            (None, Some(bad)) => bad / 2,
            (Some((pace, _)), Some(bad)) => (pace.bitrate + bad) / 2,
        };
        let pace = Pace { bitrate, ..start };
        let measured = measure_run(load, server, workers, &pace)?;
        let outcome = &measured.outcome;
        eprintln!(
            "search: {:>8.3} Mb/s per publisher, {:>9.0} packets/s, loss {:.5} %, {:>6.1} ms overrun, {:.0} ns of worker CPU per packet ({:.0} % of its core)",
            bitrate as f64 / 1e6,
            outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
            outcome.loss() * 100.0,
            outcome.overrun.as_secs_f64() * 1e3,
            measured.worker_cpu_ns as f64 / outcome.delivered.max(1) as f64,
            measured.worker_cpu_ns as f64 / outcome.elapsed.as_nanos() as f64 * 100.0,
        );
        if outcome.loss() <= SEARCH_LOSS_MAX && outcome.overrun <= OVERRUN_MAX {
            good = Some((pace, measured.outcome));
        } else {
            bad = Some(bitrate);
        }
        match (good.take(), bad) {
            (Some(found), Some(bad)) if bad as f64 / found.0.bitrate as f64 <= SEARCH_RATIO => return Ok(found),
            (None, Some(bad)) if bad < start.bitrate / 1_000 => return Err("packets are lost or late at every rate".to_owned()),
            (unfinished, _) => good = unfinished,
        }
    }
}

/// The floor at the run's packet size and mean train length, on the worker's core. The clients keep their consent meanwhile.
fn floor_like(args: &FanoutArgs, load: &mut Load, outcome: &Outcome) -> Result<Floor, String> {
    let plan = Plan {
        subscribers: args.subscribers,
        train_len: outcome.train_len().clamp(1.0, FLOOR_TRAIN_MAX),
        packet_len: args.packet_size,
        packets: ((args.duration.as_secs_f64() * FLOOR_PACKETS_PER_SECOND) as u64).clamp(1_000, FLOOR_PACKETS_MAX),
        core: args.server_core,
        sink_core: args.load_core,
        sink: Sink::Read,
        backend: BackendKind::Mmsg,
    };
    let floor = std::thread::spawn(move || measure_floor(&plan));
    while !floor.is_finished() {
        load.idle()?;
    }
    floor.join().map_err(|_| "the floor panicked".to_owned())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitrates_have_units() {
        assert_eq!((parse_bitrate("1.5M"), parse_bitrate("500k"), parse_bitrate("64000")), (Ok(1_500_000), Ok(500_000), Ok(64_000)));
        assert!(["", "M", "-1k", "x", "0"].iter().all(|text| parse_bitrate(text).is_err()));
    }

    #[test]
    fn the_room_is_read_from_the_token() {
        assert_eq!(room_of(&sign_token(("k", "secret"), "blue", "me", Grant::Publish, 1_000)), Ok("blue".to_owned()));
        assert!(room_of("a.b.c").is_err());
    }
}
