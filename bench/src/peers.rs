//! `pop-bench peer janus`: the same fan-out through `pop` and through another server, in turn, with the same clients.
//!
//! ```text
//! one veth pair -> (pop: start, join, warm up, measure, end -> peer: the same) x pairs -> medians and their ratio
//! ```
//! The server has one core and the namespace at the far end, the load the other core. Of both the CPU time of all threads counts.

mod janus;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pop::dtls::{Certificate, Dtls};
use serde_json::{Value, json};

use crate::fanout::join::{self, Joined};
use crate::fanout::load::Outcome;
use crate::fanout::seats::{JOINS_AT_ONCE, Seat, Seats};
use crate::fanout::server::{Capacity, Place, Server};
use crate::fanout::timeline::{Pace, Spread};
use crate::fanout::{self, FrameArgs, parse_bitrate, parse_duration, program_beside};
use crate::floor::pin_to;
use crate::machine::{Machine, Pinning, Workers, threads_cpu_ns};
use crate::network::Network;
use crate::random::random_hex;
use crate::result::{Figures, case_json};
use crate::sdp::Media;
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use janus::Janus;

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Loss that a run may have and still say what a packet costs, as a share.
const LOSS_MAX: f64 = 0.001;

/// Whom to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// The video room of Janus.
    Janus,
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    /// The other server.
    #[arg(value_enum)]
    peer: Peer,
    /// Subscribers in all; they spread evenly over the publishers.
    #[arg(long, default_value_t = 200)]
    subscribers: usize,
    /// Publishers, each in a room of its own.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "1.5M", value_parser = parse_bitrate)]
    bitrate: u64,
    #[command(flatten)]
    frames: FrameArgs,
    /// How the packets of a frame leave the publisher.
    #[arg(long, value_enum, default_value_t = Spread::Frames)]
    spread: Spread,
    /// How long each run is, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// How often both run, in turn.
    #[arg(long, default_value_t = 2)]
    pairs: usize,
    /// The `pop` to start; default: the one beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// The peer to start; default: the one in PATH, else the one that scripts/setup unpacked.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Threads that serve all clients of the peer; 0: a thread for each client, as Janus does unless it is told.
    #[arg(long, default_value_t = 1)]
    event_loops: usize,
    /// Core of the server.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One run of one server.
struct Run {
    outcome: Outcome,
    /// Of all threads of the server.
    cpu_ns: u64,
    /// Of its packet worker alone, where it has one.
    worker_cpu_ns: Option<u64>,
    /// What DTLS agreed on, of all clients.
    profiles: Vec<&'static str>,
    version: String,
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &PeerArgs) -> Result<(), String> {
    check_args(args)?;
    make_folder_of(args.json.as_deref())?;
    let pop = args.pop.clone().map_or_else(program_beside, Ok)?;
    let program = args.program.clone().map_or_else(find_janus, Ok)?;
    let network = Network::open(false);
    if !network.is_veth() {
        return Err("Janus takes no loopback address, so this needs a veth pair: run it as root".to_owned());
    }
    let (mut ours, mut theirs, mut machine) = (Vec::new(), Vec::new(), None);
    for pair in 1..=args.pairs {
        let (run, described) = run_pop(args, &network, &pop)?;
        run.say("pop", pair);
        ours.push(run);
        machine = Some(described);
        let run = run_janus(args, &network, &program)?;
        run.say("janus", pair);
        theirs.push(run);
    }
    let machine = machine.ok_or("--pairs must be at least 1")?;
    let json = report(args, &machine, &ours, &theirs);
    let json = serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?;
    write_json(args.json.as_deref(), &json)
}

fn check_args(args: &PeerArgs) -> Result<(), String> {
    if args.pairs == 0 || args.duration.is_zero() {
        return Err("--pairs and --duration must be above zero".to_owned());
    }
    args.frames.check()
}

/// In PATH, or where `scripts/setup test` has put it: beside the folders of cargo's profiles.
fn find_janus() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let unpacked = own.parent().and_then(Path::parent).map(|target| target.join("tools/janus/usr/bin"));
    let found = std::env::split_paths(&path).chain(unpacked).map(|folder| folder.join("janus")).find(|program| program.exists());
    found.ok_or_else(|| "no janus is installed: bench/peers/README.md says how, or name it with --program".to_owned())
}

fn run_pop(args: &PeerArgs, network: &Network, program: &Path) -> Result<(Run, Machine), String> {
    let key = ("bench", random_hex::<20>());
    let capacity = Capacity { transports: args.subscribers + args.publishers + 8, ..Capacity::default() };
    let place = Place { cores: &[args.server_core], network };
    let server = Server::start(program, place, capacity, "auto", (key.0, &key.1))?;
    let workers = Workers::find(server.pid)?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
    let enter = |dtls: Dtls, socket: std::net::UdpSocket, seat: Seat| {
        let room = format!("bench-{}", seat.publisher);
        let (door, grant) = if seat.subscriber.is_some() { ("whep", Grant::Watch) } else { ("whip", Grant::Publish) };
        let token = sign_token((key.0, &key.1), &room, &random_hex::<8>(), grant, now_s);
        join::join(dtls, socket, join::Ticket { url: format!("{}/{door}/{room}", server.http), token, ssrc: seat.published(), rtx: false })
    };
    let run = measure(args, network, enter, || Ok((threads_cpu_ns(server.pid)?, Some(workers.cpu_ns()?))))
        .map_err(|sentence| format!("pop: {sentence}; its drops: {:?}", server.drops()))?;
    let machine = fanout::machine(&server).with(network.describe(), Pinning::new(args.server_core, 1, args.load_core));
    Ok((Run { version: machine.commit.clone(), ..run }, machine))
}

fn run_janus(args: &PeerArgs, network: &Network, program: &Path) -> Result<Run, String> {
    let janus = Janus::start(program, network, args.server_core, args.publishers, args.event_loops)?;
    let enter = |dtls: Dtls, socket: std::net::UdpSocket, seat: Seat| {
        janus::join(dtls, socket, janus::Ticket { api: janus.api.clone(), room: seat.publisher + 1, ssrc: seat.published() })
    };
    let run = measure(args, network, enter, || Ok((threads_cpu_ns(janus.pid())?, None)))
        .map_err(|sentence| format!("Janus: {sentence}\n{}", janus.log()))?;
    Ok(Run { version: janus.version.clone(), ..run })
}

/// CPU nanoseconds of a server's threads, and of its packet workers alone.
type CpuNs = (u64, Option<u64>);

/// Lets all clients join by `enter` and runs the load once. It does so on a thread of its own, since the load has a core and the next
/// server's start must not inherit it.
fn measure<F>(
    args: &PeerArgs,
    network: &Network,
    enter: impl Fn(Dtls, std::net::UdpSocket, Seat) -> F + Sync,
    cpu: impl Fn() -> Result<CpuNs, String> + Sync,
) -> Result<Run, String>
where
    F: Future<Output = Result<Joined, String>> + Send + 'static,
{
    let drive = || {
        pin_to(args.load_core)?;
        let pace = pace_of(args);
        let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
        let PeerArgs { publishers, subscribers, .. } = *args;
        let (mut load, members) = Seats { sides: 1, publishers, subscribers, address: network.load_address(), pace, timed: None }
            .fill(|seat, socket| enter(dtls.clone(), socket, seat))?;
        let profiles: BTreeSet<&str> = members.iter().map(|member| member.profile).collect();
        load.renew_consent()?;
        if load.run(&Pace { duration: WARM_UP, ..pace })?.delivered == 0 {
            return Err(format!("all joined ({} checks were answered) and no packet arrived", load.check_answers()));
        }
        load.renew_consent()?;
        let before = cpu()?;
        let outcome = load.run(&pace)?;
        let after = cpu()?;
        let worker_cpu_ns = after.1.zip(before.1).map(|(after, before)| after - before);
        Ok(Run { outcome, cpu_ns: after.0 - before.0, worker_cpu_ns, profiles: profiles.into_iter().collect(), version: String::new() })
    };
    std::thread::scope(|scope| scope.spawn(drive).join()).map_err(|_| "the load panicked".to_owned())?
}

fn pace_of(args: &PeerArgs) -> Pace {
    let PeerArgs { bitrate, frames: FrameArgs { packet_size: packet_len, fps }, spread, duration, .. } = *args;
    Pace { bitrate, packet_len, fps, spread, duration, media: Media::Video }
}

impl Run {
    fn ns_per_packet(&self) -> f64 {
        self.cpu_ns as f64 / self.outcome.delivered.max(1) as f64
    }

    fn packets_per_second(&self) -> f64 {
        self.outcome.delivered as f64 / self.outcome.elapsed.as_secs_f64()
    }

    /// As in a report's list of runs.
    fn json(&self, name: &str) -> Value {
        let Outcome { expected, delivered, authenticated, refused, generator_drops, overrun, checksum, .. } = &self.outcome;
        json!({
            "name": name, "version": self.version, "packets_per_second": self.packets_per_second(),
            "cpu_ns_per_packet": self.ns_per_packet(), "loss": self.outcome.loss(), "latency_us": self.outcome.latency_us,
            "train_packets": self.outcome.trains.summarize(),
            "worker_cpu_ns_per_packet": self.worker_cpu_ns.map(|ns| ns as f64 / (*delivered).max(1) as f64),
            "cpu_share": self.cpu_ns as f64 / self.outcome.elapsed.as_nanos() as f64,
            "expected": expected, "delivered": delivered, "authenticated": authenticated, "refused": refused,
            "checksum": format!("{checksum:016x}"), "generator_drops": generator_drops, "overrun_us": overrun.as_nanos() as f64 / 1e3,
            "srtp_profiles": self.profiles,
        })
    }

    fn say(&self, name: &str, pair: usize) {
        eprintln!(
            "{pair:>4} {name:<6} {:>8.0} ns of CPU per packet, {:>8.0} packets/s, loss {:.5} %, {:>3.0} % of a core, {}",
            self.ns_per_packet(),
            self.packets_per_second(),
            self.outcome.loss() * 100.0,
            self.cpu_ns as f64 / self.outcome.elapsed.as_nanos() as f64 * 100.0,
            self.profiles.join(" and "),
        );
    }
}

/// The run that has the median CPU time per packet, the lower one of two.
fn median(runs: &[Run]) -> &Run {
    let mut order: Vec<&Run> = runs.iter().collect();
    order.sort_by(|a, b| a.ns_per_packet().total_cmp(&b.ns_per_packet()));
    order[(order.len() - 1) / 2]
}

/// The top level tells our figures, `detail` both.
fn report(args: &PeerArgs, machine: &Machine, ours: &[Run], theirs: &[Run]) -> Value {
    let (pop, peer) = (median(ours), median(theirs));
    let ratio = peer.ns_per_packet() / pop.ns_per_packet();
    let beware = beware(ours, theirs);
    eprintln!("ratio     {ratio:.2}: what a delivered packet costs Janus over what it costs pop, all threads of both");
    beware.iter().for_each(|sentence| eprintln!("beware    {sentence}"));
    let figures = Figures {
        packets_per_second: Some(pop.packets_per_second()),
        cpu_ns_per_packet: Some(pop.ns_per_packet()),
        loss: Some(pop.outcome.loss()),
        latency_us: pop.outcome.latency_us,
        train_packets: pop.outcome.trains.summarize(),
        ..Figures::default()
    };
    let config = json!({
        "peer": "janus", "subscribers": args.subscribers, "publishers": args.publishers, "bitrate": args.bitrate,
        "packet_size": args.frames.packet_size, "fps": args.frames.fps, "spread": args.spread, "duration_s": args.duration.as_secs_f64(),
        "pairs": args.pairs, "event_loops": args.event_loops, "server_core": args.server_core, "load_core": args.load_core,
    });
    let list = |name: &str, runs: &[Run]| -> Vec<Value> { runs.iter().map(|run| run.json(name)).collect() };
    let detail = json!({
        "peer_ratio": ratio, "runs": [pop.json("pop"), peer.json("janus")], "beware": beware,
        "repeats": list("pop", ours), "peer_repeats": list("janus", theirs),
    });
    case_json("peer", &figures, machine, config, detail)
}

/// What a reader should know before taking the ratio.
fn beware(ours: &[Run], theirs: &[Run]) -> Vec<String> {
    let mut sentences = Vec::new();
    for (name, runs) in [("pop", ours), ("janus", theirs)] {
        if runs.iter().any(|run| run.outcome.loss() > LOSS_MAX) {
            sentences.push(format!("{name} lost packets: the cost of those that arrived holds the cost of those that did not"));
        }
        if runs.iter().any(|run| run.outcome.generator_drops > 0) {
            sentences.push(format!("packets of {name} were lost in the load generator's own sockets"));
        }
        if runs.iter().any(|run| run.outcome.refused > 0) {
            sentences.push(format!("packets of {name} were not authentic"));
        }
    }
    if median(ours).profiles != median(theirs).profiles {
        sentences.push("the two did not agree on the same SRTP profile".to_owned());
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ns: u64, delivered: u64) -> Run {
        let outcome = Outcome { expected: 100, delivered, elapsed: Duration::from_secs(1), ..Outcome::default() };
        Run { outcome, cpu_ns: ns * delivered, worker_cpu_ns: None, profiles: vec!["a"], version: String::new() }
    }

    #[test]
    fn the_median_is_taken_and_what_spoils_a_run_is_told() {
        let runs = [run(9, 100), run(2, 100), run(5, 100)];
        assert_eq!(median(&runs).ns_per_packet(), 5.0);
        assert_eq!(median(&runs[..2]).ns_per_packet(), 2.0);
        assert!(beware(&runs, &runs).is_empty());
        let other = [Run { profiles: vec!["b"], ..run(5, 90) }];
        let told = beware(&runs, &other);
        assert!(told.len() == 2 && told[0].starts_with("janus lost packets") && told[1].contains("SRTP profile"), "{told:?}");
    }
}
