//! `pop-bench fanout`: one node, publishers and many subscribers, everything real from HTTP to the last SRTP tag.
//!
//! ```text
//! start or attach -> publishers join -> subscribers join, 20 at a time
//!   -> for each pace: warm-up (lengths of trains) -> (search) -> floor -> measured run -> floor -> .. -> report
//! ```
//! The packet worker has one core, the load another, and a veth pair lies between them. The floor runs on the worker's core while the
//! worker sleeps, into the same sockets, with the lengths of the trains of the run before it.

pub(crate) mod arrival;
pub(crate) mod ice;
pub(crate) mod join;
pub(crate) mod load;
pub(crate) mod packet;
pub(crate) mod server;
pub(crate) mod timeline;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pop::dtls::{Certificate, Dtls};
use pop_proto::control::SrtpProfile;
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_uring::BackendKind;
use serde_json::{Value, json};

use crate::floor::{Floor, Plan, measure_beside, pin_to};
use crate::groups::{Groups, SOCKET_QUEUE_LEN, bind_clients};
use crate::http;
use crate::machine::{Machine, Pinning, Workers};
use crate::measured::{Repeats, Run, Spent, counting, detail_of};
use crate::network::Network;
use crate::random::{random_bytes, random_hex};
use crate::result::case_json;
use crate::sdp::Media;
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use arrival::Trains;
use join::{Joined, Ticket, join};
use load::{Client, Load, Outcome, Publisher, Role, Subscriber};
use packet::PACKET_LEN_MIN;
use server::{Capacity, Place, Server};
use timeline::{Pace, Spread};

/// Clients that join at the same time: a handshake costs the node about a millisecond of CPU, and nothing here is a storm.
const JOINS_AT_ONCE: usize = 20;

/// One subscriber in this many authenticates every packet.
pub(crate) const AUTHENTICATE_EVERY: usize = 10;

/// Before anything is measured: caches, histories and the worker's buffers fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Packets of one floor round, at most: about 0.1 s.
const FLOOR_PACKETS_MAX: u64 = 200_000;

/// Packets of one floor round for each second of a measurement.
const FLOOR_PACKETS_PER_SECOND: f64 = 40_000.0;

/// Loss at which a search says "too fast", as a share.
pub(crate) const SEARCH_LOSS_MAX: f64 = 0.000_1;

/// A queue that takes longer than this to work off after the last frame means that the rate was not kept up with: deep socket
/// queues hide seconds of it without a loss.
pub(crate) const OVERRUN_MAX: Duration = Duration::from_millis(20);

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
    /// Frames per second.
    #[arg(long, default_value_t = 30)]
    fps: u32,
    /// How the packets of a frame leave, one measurement each; the one with the lower floor ratio counts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paced,frames")]
    pace: Vec<Spread>,
    /// How long to measure, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Runs of each pace, between floors.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// SRTP of the clients. The floor seals with GCM whatever they have.
    #[arg(long, value_enum, default_value_t = Protection::Gcm)]
    profile: Protection,
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
    /// Packet workers (of a server that is started here), on that core and the next ones.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// Node and load on loopback, as it is without root; default: a veth pair into a namespace that is made for the run.
    #[arg(long)]
    loopback: bool,
    /// The server's back end: auto, io_uring or mmsg (of a server that is started here).
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What the clients offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Protection {
    /// AEAD_AES_128_GCM.
    Gcm,
    /// AES_CM_128_HMAC_SHA1_80.
    AesCm,
    /// Every second subscriber AES-CM, the others GCM: latency is that of the others, who must not be slowed down.
    Mixed,
}

impl Protection {
    /// Of the publishers, and of the `n`-th subscriber.
    fn is_aes_cm(self, subscriber: Option<usize>) -> bool {
        match self {
            Protection::Gcm => false,
            Protection::AesCm => true,
            // One in AUTHENTICATE_EVERY is timed, and that is an even number.
            Protection::Mixed => subscriber.is_some_and(|n| n % 2 == 1),
        }
    }
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
    let network = Network::open(args.loopback || args.http.is_some());
    let pinning = Pinning::new(args.server_core, args.workers, args.load_core);
    let server = match &args.http {
        Some(http) => {
            let pid = args.pid.map_or_else(Workers::find_process, Ok)?;
            Server::attach(http, args.admin.as_deref(), pid)
        }
        None => {
            let program = args.pop.clone().map_or_else(program_beside, Ok)?;
            let capacity = Capacity { transports: args.subscribers + args.publishers + 8, ..Capacity::default() };
            let place = Place { cores: &pinning.workers, network: &network };
            Server::start(&program, place, capacity, &args.backend, (key.0, &key.1))?
        }
    };
    // Only now: a child inherits the cores of its parent.
    pin_to(args.load_core)?;
    let workers = Workers::find(server.pid)?;
    let tickets = make_tickets(args, &server.http, (key.0, &key.1))?;
    let (mut load, sinks, joined) = join_all(args, tickets, &network)?;
    let mut bench = Bench { args, server: &server, workers: &workers, network: &network, load: &mut load, sinks };
    let result = args.pace.iter().map(|spread| bench.measure(*spread)).collect::<Result<Vec<_>, String>>();
    // A node of ours ends with its process; in somebody else's the clients must not linger until consent expires.
    if args.http.is_some() {
        for stay in &joined {
            let _ = http::request("DELETE", &stay.resource, &[("Authorization", &format!("Bearer {}", stay.token))], "");
        }
    }
    let runs = result?;
    let machine = machine(&server).with(network.describe(), pinning.clone());
    let profiles: BTreeSet<&str> = joined.iter().map(|stay| stay.profile).collect();
    let own = json!({"server_drops": server.drops(), "srtp_profiles": profiles});
    let json = report(args, &runs, (&machine, &pinning), own);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

fn report(args: &FanoutArgs, runs: &[(Pace, Repeats)], (machine, pinning): (&Machine, &Pinning), own: Value) -> Value {
    let (pace, repeats) = counting(runs);
    let config = json!({
        "subscribers": args.subscribers, "publishers": args.publishers, "bitrate": pace.bitrate, "packet_size": pace.packet_len,
        "fps": pace.fps, "duration_s": pace.duration.as_secs_f64(), "search": args.search, "repeats": args.repeats,
        "profile": args.profile,
        "server": if args.http.is_some() { "attached" } else { "started" }, "backend": args.backend,
    });
    let detail = detail_of(runs, pinning, own);
    case_json("fanout", &repeats.middle().figures, machine, config, detail)
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
    if !(1..=1_000).contains(&args.fps) || args.duration.is_zero() || args.repeats == 0 || args.workers == 0 {
        return Err("--fps must be 1 to 1000, and --duration, --repeats and --workers above zero".to_owned());
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

/// What DELETE needs, and what DTLS came to.
struct Stay {
    resource: String,
    token: String,
    profile: &'static str,
}

/// The load, the addresses of its subscribers, and how to leave.
fn join_all(args: &FanoutArgs, tickets: Vec<Ticket>, network: &Network) -> Result<(Load, Vec<SocketAddr>, Vec<Stay>), String> {
    let sockets = bind_clients(network.load_address(), tickets.len(), SOCKET_QUEUE_LEN)
        .map_err(|e| format!("client sockets: {e}: raise the limit of open files (ulimit -n)"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))?;
    let dtls = |profiles: &'static [SrtpProfile]| -> Result<Dtls, String> {
        Ok(Dtls::with_profiles(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE, profiles))
    };
    let (gcm, aes_cm) = (dtls(&[SrtpProfile::AeadAes128Gcm])?, dtls(&[SrtpProfile::Aes128CmSha1_80])?);
    let dtls_of = |at: usize| if args.profile.is_aes_cm(at.checked_sub(args.publishers)) { &aes_cm } else { &gcm };
    let (mut clients, mut stays) = (Vec::new(), Vec::new());
    let pairs: Vec<Seat<'_>> =
        tickets.iter().zip(&sockets).enumerate().map(|(at, (ticket, socket))| (ticket, socket, dtls_of(at))).collect();
    // The publishers alone first, so that every viewer finds its track.
    let (publishers, subscribers) = pairs.split_at(args.publishers);
    for batch in publishers.chunks(JOINS_AT_ONCE).chain(subscribers.chunks(JOINS_AT_ONCE)) {
        for (joined, ticket) in runtime.block_on(join_batch(batch))?.into_iter().zip(batch) {
            let at = clients.len();
            let Joined { server, checks, keys, resource } = joined;
            let receiver = || SrtpReceiver::new(keys.profile, &keys.remote);
            let role = match ticket.0.ssrc {
                Some(ssrc) => {
                    let sender = SrtpSender::new(keys.profile, &keys.local);
                    let sequence = u16::from_be_bytes(random_bytes());
                    Role::Publisher(Box::new(Publisher::new(sender, receiver(), ssrc, sequence, &args.pace_of(Spread::Burst))))
                }
                None => {
                    let n = at - args.publishers;
                    let authenticates = n.is_multiple_of(AUTHENTICATE_EVERY);
                    Role::Subscriber(Box::new(Subscriber::new(n % args.publishers, authenticates.then(receiver))))
                }
            };
            clients.push(Client { server, checks, role });
            stays.push(Stay { resource, token: ticket.0.token.clone(), profile: keys.profile.name() });
        }
    }
    let authenticating = args.subscribers.div_ceil(AUTHENTICATE_EVERY);
    let per_subscriber = args.bitrate as f64 / 8.0 / args.packet_size as f64 * args.duration.as_secs_f64();
    let samples = (per_subscriber as usize + 2 * args.fps as usize) * authenticating;
    let sinks = sockets[args.publishers..].iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let groups = Groups::new(sockets).map_err(|e| format!("load generator: {e}"))?;
    // The runtime's threads would share the generator's core; what is left to do there is nothing.
    runtime.shutdown_background();
    Ok((Load::new(groups, clients, args.packet_size, samples), sinks, stays))
}

/// Who joins, by which socket and with which DTLS.
type Seat<'a> = (&'a Ticket, &'a UdpSocket, &'a Dtls);

async fn join_batch(batch: &[Seat<'_>]) -> Result<Vec<Joined>, String> {
    let mut tasks = Vec::new();
    for (ticket, socket, dtls) in batch {
        let socket = socket.try_clone().map_err(|e| format!("client socket: {e}"))?;
        tasks.push(tokio::spawn(join((*dtls).clone(), socket, (*ticket).clone())));
    }
    let mut joined = Vec::new();
    for task in tasks {
        joined.push(task.await.map_err(|e| format!("a client's join panicked: {e}"))??);
    }
    Ok(joined)
}

/// This machine, and what the server says about itself.
pub(crate) fn machine(server: &Server) -> Machine {
    let version = server.version();
    let field = |name: &str| Some(serde_json::from_str::<Value>(version.as_deref()?).ok()?.get(name)?.as_str()?.to_owned());
    Machine::describe(&server.backend().unwrap_or_else(|| "unknown".to_owned()), field("commit"))
}

impl FanoutArgs {
    fn pace_of(&self, spread: Spread) -> Pace {
        Pace { bitrate: self.bitrate, packet_len: self.packet_size, fps: self.fps, spread, duration: self.duration, media: Media::Video }
    }
}

/// Everything that a measurement needs.
struct Bench<'a> {
    args: &'a FanoutArgs,
    server: &'a Server,
    workers: &'a Workers,
    network: &'a Network,
    load: &'a mut Load,
    /// Addresses of the subscribers.
    sinks: Vec<SocketAddr>,
}

impl Bench<'_> {
    /// All runs of one pace, and the pace, which a search changes.
    fn measure(&mut self, spread: Spread) -> Result<(Pace, Repeats), String> {
        let pace = self.args.pace_of(spread);
        self.load.renew_consent()?;
        let warm_up = self.load.run(&Pace { duration: WARM_UP, ..pace })?;
        if warm_up.delivered == 0 {
            let (answers, drops) = (self.load.check_answers(), self.server.drops());
            return Err(format!("{answers} clients joined and no packet arrived; the server's drops: {drops}"));
        }
        // The rate that a search finds is run once more between its floors, which have that rate's trains.
        let (pace, like) = if self.args.search { self.search(pace)? } else { (pace, warm_up) };
        let mut floor = self.floor_like(&like.trains)?;
        let mut runs = Vec::new();
        for _ in 0..self.args.repeats {
            self.load.renew_consent()?;
            let (outcome, spent) = self.run(&pace)?;
            let after = self.floor_like(&outcome.trains)?;
            let run = Run::new(&outcome, &spent, vec![std::mem::replace(&mut floor, after.clone()), after]);
            run.summarize(spread.name());
            runs.push(run);
        }
        Ok((pace, Repeats::new(runs)))
    }

    /// One run, and what the server spent on it.
    fn run(&mut self, pace: &Pace) -> Result<(Outcome, Spent), String> {
        let before = Spent::read(self.server, self.workers)?;
        let outcome = self.load.run(pace)?;
        Ok((outcome, Spent::read(self.server, self.workers)?.since(&before)))
    }

    /// Doubles the bitrate until packets are lost or queue up, then halves the gap. The last rate without either is the result.
    fn search(&mut self, start: Pace) -> Result<(Pace, Outcome), String> {
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
            let (outcome, spent) = self.run(&pace)?;
            eprintln!(
                "search: {:>8.3} Mb/s per publisher, {:>9.0} packets/s, loss {:.5} %, {:>6.1} ms overrun, {:.0} ns of worker CPU per packet ({:.0} % of its core)",
                bitrate as f64 / 1e6,
                outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
                outcome.loss() * 100.0,
                outcome.overrun.as_secs_f64() * 1e3,
                spent.cpu_ns_per_packet(&outcome),
                spent.cpu_share(&outcome) * 100.0,
            );
            if outcome.loss() <= SEARCH_LOSS_MAX && outcome.overrun <= OVERRUN_MAX {
                good = Some((pace, outcome));
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

    /// The floor at the run's packet size and with its trains, on the worker's core, into the subscribers' sockets.
    fn floor_like(&mut self, trains: &Trains) -> Result<Floor, String> {
        let args = self.args;
        let plan = Plan {
            seals: true,
            trains: trains.replay(Plan::train_max(args.packet_size)),
            packet_len: args.packet_size,
            packets: floor_packets(args.duration),
            core: args.server_core,
            from: self.network.node_address(),
            namespace: self.network.namespace(),
            backend: BackendKind::Mmsg,
        };
        measure_beside(plan, self.sinks.clone(), || self.load.drain())
    }
}

/// Packets of one floor round for a measurement of this length: a short one gets a short floor.
pub(crate) fn floor_packets(duration: Duration) -> u64 {
    ((duration.as_secs_f64() * FLOOR_PACKETS_PER_SECOND) as u64).clamp(1_000, FLOOR_PACKETS_MAX)
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
