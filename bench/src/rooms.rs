//! `pop-bench rooms`: one room, members that speak the room protocol, everything real from the WebSocket to the last SRTP tag.
//!
//! ```text
//! a node -> memory -> all members join, nobody publishes -> memory                        idle
//! a node -> publishers join and send -> the others join meanwhile -> a measured run        live
//!        -> (raise) more join, another run, until packets are lost -> memory
//! ```
//! Clients are light: they count and authenticate packets and decode nothing.

mod crowd;
mod member;
mod report;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pop::dtls::{Certificate, Dtls};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::fanout::load::Pace;
use crate::fanout::packet::PACKET_LEN_MIN;
use crate::fanout::server::{Capacity, Server};
use crate::fanout::{PACKET_LEN_MAX, machine, parse_bitrate, parse_duration, program_beside};
use crate::floor::pin_to;
use crate::groups::{SOCKET_QUEUE_LEN, bind_clients};
use crate::machine::{Workers, process_cpu, resident_bytes};
use crate::random::{random_bytes, random_hex};
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use crowd::Crowd;
use member::{Member, Ticket, join};
use report::{Memory, Report, Step, Wave};

/// Members that join at the same time.
const JOINS_AT_ONCE: usize = 20;

/// One member in this many authenticates every packet.
const AUTHENTICATE_EVERY: usize = 10;

/// Most that one member takes: the node's own bound is 256 sections.
const PUBLISHERS_MAX: usize = 200;

/// Loss at which a room is too large, as a share.
const LOSS_MAX: f64 = 0.001;

/// Memory of joins that are over is given back, and what the room tells its members is read.
const SETTLE: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct RoomsArgs {
    /// Members of the room; each takes what all the others publish.
    #[arg(long, default_value_t = 50)]
    members: usize,
    /// How many of them publish a video track.
    #[arg(long, default_value_t = 10)]
    publishers: usize,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "150k", value_parser = parse_bitrate)]
    bitrate: u64,
    /// Bytes of an RTP packet before protection.
    #[arg(long, default_value_t = 1_100)]
    packet_size: usize,
    /// Frames per second; the packets of a frame leave in one burst.
    #[arg(long, default_value_t = 15)]
    fps: u32,
    /// How long one run is, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// After a run without loss let so many more join and run again; 0: one run.
    #[arg(long, default_value_t = 0)]
    raise: usize,
    /// Where raising ends, in members.
    #[arg(long, default_value_t = 1_000)]
    raise_max: usize,
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// Core of the packet worker.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Cores of several packet workers, as in `dataplane.cores`, instead of --server-core: the room spreads over them.
    #[arg(long)]
    server_cores: Option<String>,
    /// Core of the load generator.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The server's back end: auto, io_uring or mmsg.
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl RoomsArgs {
    fn check(&self) -> Result<(), String> {
        if !(1..=PUBLISHERS_MAX).contains(&self.publishers) || self.members < self.publishers.max(2) {
            return Err(format!("--publishers must be 1 to {PUBLISHERS_MAX}, and --members at least as many and at least 2"));
        }
        if !(PACKET_LEN_MIN..=PACKET_LEN_MAX).contains(&self.packet_size) {
            return Err(format!("--packet-size must be {PACKET_LEN_MIN} to {PACKET_LEN_MAX} bytes"));
        }
        if !(1..=1_000).contains(&self.fps) || self.duration.is_zero() {
            return Err("--fps must be 1 to 1000, and --duration above zero".to_owned());
        }
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace { bitrate: self.bitrate, packet_len: self.packet_size, fps: self.fps, duration: self.duration }
    }

    fn capacity(&self) -> Capacity {
        let members = if self.raise == 0 { self.members } else { self.members.max(self.raise_max) };
        // Joining takes longer than a client may usually be silent, and who has joined is served only when a batch is full.
        Capacity {
            transports: members + 8,
            tracks: self.publishers + 8,
            subscriptions: members * self.publishers + 64,
            consent_timeout_s: 120,
        }
    }

    /// The members that only watch authenticate, when there are any: they get everything.
    fn authenticates(&self, index: usize) -> bool {
        let first = if self.publishers < self.members { self.publishers } else { 0 };
        index.checked_sub(first).is_some_and(|n| n.is_multiple_of(AUTHENTICATE_EVERY))
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &RoomsArgs) -> Result<(), String> {
    args.check()?;
    make_folder_of(args.json.as_deref())?;
    let (idle, idle_memory) = Room::open(args)?.measure_idle()?;
    let mut room = Room::open(args)?;
    let (publisher_joins, steps) = room.measure_live()?;
    let active_memory = room.memory()?;
    let (machine, drops) = (machine(&room.server), room.server.drops());
    let handed_over = room.server.metric("pop_handover_packets_total").map(|both_directions| both_directions / 2.0);
    let report =
        Report::new(args, [idle, publisher_joins], [idle_memory, active_memory], steps, &room.crowd, machine, (drops, handed_over));
    report.summarize();
    let json = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
    write_json(args.json.as_deref(), &json)
}

/// A node of its own, and who is in its room.
struct Room<'a> {
    args: &'a RoomsArgs,
    key: (&'static str, String),
    server: Server,
    workers: Workers,
    runtime: Runtime,
    dtls: Dtls,
    crowd: Crowd,
    bytes_before: u64,
}

impl Room<'_> {
    fn open(args: &RoomsArgs) -> Result<Room<'_>, String> {
        let key = ("bench", random_hex::<20>());
        let program = args.pop.clone().map_or_else(program_beside, Ok)?;
        let cores = args.server_cores.clone().unwrap_or_else(|| args.server_core.to_string());
        let server = Server::start(&program, cores, args.capacity(), &args.backend, (key.0, &key.1))?;
        let (workers, bytes_before) = (Workers::find(server.pid)?, resident_bytes(server.pid)?);
        let core = args.load_core;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || drop(pin_to(core)))
            .enable_all()
            .build()
            .map_err(|e| format!("runtime: {e}"))?;
        let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
        Ok(Room { args, key, server, workers, runtime, dtls, crowd: Crowd::new(args.pace()), bytes_before })
    }

    fn memory(&self) -> Result<Memory, String> {
        Ok(Memory { before: self.bytes_before, after: resident_bytes(self.server.pid)?, members: self.crowd.len() })
    }

    /// All join and nobody publishes.
    fn measure_idle(mut self) -> Result<(Wave, Memory), String> {
        let wave = self.wave(0..self.args.members, Kind::Idle)?;
        std::thread::sleep(SETTLE);
        Ok((wave, self.memory()?))
    }

    /// Publishers, then the others while media flows, then runs.
    fn measure_live(&mut self) -> Result<(Wave, Vec<Step>), String> {
        let args = self.args;
        // Only now: a child inherits the cores of its parent.
        pin_to(args.load_core)?;
        let publishing = self.wave(0..args.publishers, Kind::Publishing)?;
        if let Some(sentence) = publishing.failures.first() {
            return Err(sentence.clone());
        }
        if args.publishers > 1 {
            self.crowd.offer_again(&self.runtime)?;
        }
        let mut steps = Vec::new();
        let mut joining = args.publishers..args.members;
        loop {
            let wave = self.wave(joining.clone(), Kind::Watching)?;
            let step = self.step(wave)?;
            step.summarize();
            let goes_on = step.holds(LOSS_MAX) && args.raise > 0 && joining.end < args.raise_max;
            steps.push(step);
            if !goes_on {
                return Ok((publishing, steps));
            }
            joining = joining.end..(joining.end + args.raise).min(args.raise_max);
        }
    }

    fn step(&mut self, joins: Wave) -> Result<Step, String> {
        let pid = self.server.pid;
        let (worker_before, process_before) = (self.workers.cpu_ns()?, process_cpu(pid)?);
        let outcome = self.crowd.run()?;
        let (worker_cpu_ns, process_cpu) = (self.workers.cpu_ns()? - worker_before, process_cpu(pid)? - process_before);
        Ok(Step::new(self.crowd.len(), self.crowd.streams(), joins, outcome, worker_cpu_ns, process_cpu))
    }

    /// Lets members join, a bounded number at once, and takes them in. Who fails is told in the report.
    fn wave(&mut self, members: Range<usize>, kind: Kind) -> Result<Wave, String> {
        let cpu_before = process_cpu(self.server.pid)?;
        let args = self.args;
        let arrivals = self.start_wave(members, kind)?;
        let (times, failures) = self.crowd.admit(&arrivals, |index| args.authenticates(index))?;
        let cpu = process_cpu(self.server.pid)? - cpu_before;
        Ok(Wave::new(&times, failures, cpu))
    }

    fn start_wave(&self, members: Range<usize>, kind: Kind) -> Result<Receiver<Result<Member, String>>, String> {
        let (arrived, arrivals) = mpsc::channel();
        let sockets = bind_clients(members.len(), SOCKET_QUEUE_LEN)
            .map_err(|e| format!("client sockets: {e}: raise the limit of open files (ulimit -n)"))?;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
        let wave = Instant::now();
        let tickets: Vec<Ticket> = members.map(|index| self.ticket(index, kind, wave, now_s)).collect();
        let (dtls, permits) = (self.dtls.clone(), Arc::new(Semaphore::new(JOINS_AT_ONCE)));
        self.runtime.spawn(async move {
            for (ticket, socket) in tickets.into_iter().zip(sockets) {
                let permit = Arc::clone(&permits).acquire_owned().await.expect("nobody closes it");
                let (dtls, arrived) = (dtls.clone(), arrived.clone());
                tokio::spawn(async move { arrived.send(join(dtls, socket, ticket, permit).await) });
            }
        });
        Ok(arrivals)
    }

    fn ticket(&self, index: usize, kind: Kind, wave: Instant, now_s: u64) -> Ticket {
        let publishes = index < self.args.publishers;
        Ticket {
            index,
            wave,
            http: self.server.http.clone(),
            token: sign_token((self.key.0, &self.key.1), "bench", &format!("member-{index}"), Grant::Member, now_s),
            ssrc: (kind == Kind::Publishing).then(|| u32::from_be_bytes(random_bytes())),
            receives: (self.args.publishers - usize::from(publishes)).max(1),
            awaits_keyframe: kind == Kind::Watching,
        }
    }
}

/// What the members of a wave come for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To be there: nobody publishes.
    Idle,
    /// To publish, and to watch when all publishers are there.
    Publishing,
    /// To watch what is sent already.
    Watching,
}
