//! `pop-bench rooms`: one room, members that speak the room protocol, everything real from the WebSocket to the last SRTP tag.
//!
//! ```text
//! a node -> memory -> all members join, nobody publishes -> memory                        idle
//! a node -> publishers join and send -> the others join meanwhile -> a measured run        live
//!        -> (raise) more join, another run, until packets are lost -> memory
//! ```
//! Clients are light: they count and authenticate packets and decode nothing.

mod crowd;
pub(crate) mod member;
mod report;

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pop::dtls::{Certificate, Dtls};
use pop_uring::BackendKind;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::fanout::arrival::Trains;
use crate::fanout::load::Outcome;
use crate::fanout::server::{Capacity, Common, Place, Server, sum_metric};
use crate::fanout::timeline::{Pace, Spread};
use crate::fanout::{FrameArgs, floor_packets, machine, parse_bitrate, parse_duration, program_beside};
use crate::floor::{Floor, Plan, measure_beside, pin_to};
use crate::groups::{SOCKET_QUEUE_LEN, bind_clients};
use crate::machine::{Machine, Pinning, Workers, process_cpu, resident_bytes};
use crate::measured::{Run, Spent};
use crate::network::Network;
use crate::random::{random_bytes, random_hex};
use crate::sdp::Media;
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use crowd::Crowd;
use member::{Member, Ticket, join};
use report::{Memory, Step, Wave};

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
    /// Frames per second.
    #[arg(long, default_value_t = 15)]
    fps: u32,
    /// How the packets of a frame leave.
    #[arg(long, value_enum, default_value_t = Spread::Frames)]
    pace: Spread,
    /// How long one run is, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// After a run without loss let so many more join and run again; 0: one run.
    #[arg(long, default_value_t = 0)]
    raise: usize,
    /// Where raising ends, in members.
    #[arg(long, default_value_t = 1_000)]
    raise_max: usize,
    #[command(flatten)]
    common: Common,
}

/// A room and its load, whatever the case.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Members at first, and at most.
    pub(crate) members: usize,
    pub(crate) members_max: usize,
    /// How many of them publish a track.
    pub(crate) publishers: usize,
    /// How they send, at first.
    pub(crate) pace: Pace,
    /// The others do not hear of members who only watch: a room of thousands is an audience.
    pub(crate) hidden: bool,
}

impl Shape {
    /// The error is a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Pace { packet_len, fps, duration, .. } = self.pace;
        if !(1..=PUBLISHERS_MAX).contains(&self.publishers) || self.members < self.publishers.max(2) {
            return Err(format!("publishers must be 1 to {PUBLISHERS_MAX}, and members at least as many and at least 2"));
        }
        if duration.is_zero() {
            return Err("--duration must be above zero".to_owned());
        }
        FrameArgs { packet_size: packet_len, fps }.check()
    }

    fn capacity(&self) -> Capacity {
        // Joining takes longer than a client may usually be silent, and who has joined is served only when a batch is full.
        Capacity {
            transports: self.members_max + 8,
            tracks: self.publishers + 8,
            subscriptions: self.members_max * self.publishers + 64,
            consent_timeout_s: 120,
        }
    }

    /// The members that only watch authenticate, when there are any: they get everything.
    fn authenticates(&self, index: usize) -> bool {
        let first = if self.publishers < self.members { self.publishers } else { 0 };
        index.checked_sub(first).is_some_and(|n| n.is_multiple_of(AUTHENTICATE_EVERY))
    }
}

/// Where a room is measured.
pub(crate) struct Site<'a> {
    pub(crate) common: &'a Common,
    pub(crate) network: Network,
    pub(crate) pinning: Pinning,
}

impl Site<'_> {
    /// Makes the network.
    pub(crate) fn open(common: &Common) -> Result<Site<'_>, String> {
        make_folder_of(common.json.as_deref())?;
        if common.workers == 0 {
            return Err("--workers must be above zero".to_owned());
        }
        let pinning = Pinning::new(common.server_core, common.workers, common.load_core);
        Ok(Site { common, network: Network::open(common.loopback), pinning })
    }

    /// The machine, as the server and this program see it.
    pub(crate) fn machine(&self, server: &Server) -> Machine {
        machine(server).with(self.network.describe(), self.pinning.clone())
    }

    /// Writes the figures to where they are wanted.
    pub(crate) fn write(&self, json: &Value) -> Result<(), String> {
        write_json(self.common.json.as_deref(), &serde_json::to_string_pretty(json).map_err(|e| e.to_string())?)
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &RoomsArgs) -> Result<(), String> {
    let shape = Shape {
        members: args.members,
        members_max: if args.raise == 0 { args.members } else { args.members.max(args.raise_max) },
        publishers: args.publishers,
        pace: Pace {
            bitrate: args.bitrate,
            packet_len: args.packet_size,
            fps: args.fps,
            spread: args.pace,
            duration: args.duration,
            media: Media::Video,
        },
        hidden: false,
    };
    shape.check()?;
    let site = Site::open(&args.common)?;
    let (idle, idle_memory) = Room::open(&shape, &site)?.measure_idle()?;
    let mut room = Room::open(&shape, &site)?;
    let (publisher_joins, steps) = room.measure_live(args)?;
    let memory = [idle_memory, room.memory()?];
    // Counted where they leave and where they arrive.
    let handed_over = room.server.metrics().and_then(|page| sum_metric(&page, "pop_handover_packets_total")).map(|both| both / 2.0);
    let joins = [idle, publisher_joins];
    report::summarize(&joins, memory, &steps);
    let json = report::report(args, joins, memory, steps, &room.crowd, &site.machine(&room.server), (room.server.drops(), handed_over));
    site.write(&json)
}

/// A node of its own, and who is in its room.
pub(crate) struct Room<'a> {
    shape: &'a Shape,
    site: &'a Site<'a>,
    key: (&'static str, String),
    pub(crate) server: Server,
    workers: Workers,
    runtime: Runtime,
    dtls: Dtls,
    pub(crate) crowd: Crowd,
    bytes_before: u64,
}

impl<'a> Room<'a> {
    /// Starts the node. The error is a sentence.
    pub(crate) fn open(shape: &'a Shape, site: &'a Site<'a>) -> Result<Room<'a>, String> {
        let key = ("bench", random_hex::<20>());
        let common = site.common;
        let program = common.pop.clone().map_or_else(program_beside, Ok)?;
        let place = Place { cores: &site.pinning.workers, network: &site.network };
        let server = Server::start(&program, place, shape.capacity(), &common.backend, (key.0, &key.1))?;
        let (workers, bytes_before) = (Workers::find(server.pid)?, resident_bytes(server.pid)?);
        let core = common.load_core;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || drop(pin_to(core)))
            .enable_all()
            .build()
            .map_err(|e| format!("runtime: {e}"))?;
        let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
        Ok(Room { shape, site, key, server, workers, runtime, dtls, crowd: Crowd::new(shape.pace), bytes_before })
    }

    fn memory(&self) -> Result<Memory, String> {
        Ok(Memory { before: self.bytes_before, after: resident_bytes(self.server.pid)?, members: self.crowd.len() })
    }

    /// All join and nobody publishes.
    fn measure_idle(mut self) -> Result<(Wave, Memory), String> {
        let wave = self.wave(0..self.shape.members, Kind::Idle)?;
        std::thread::sleep(SETTLE);
        Ok((wave, self.memory()?))
    }

    /// Publishers, then the others while media flows, then runs.
    fn measure_live(&mut self, args: &RoomsArgs) -> Result<(Wave, Vec<Step>), String> {
        let publishing = self.publish()?;
        let mut steps = Vec::new();
        let mut joining = args.publishers..args.members;
        loop {
            let wave = self.watch(joining.clone())?;
            let step = self.step(wave, &self.shape.pace.clone())?;
            step.summarize();
            let goes_on = step.holds(LOSS_MAX) && args.raise > 0 && joining.end < args.raise_max;
            steps.push(step);
            if !goes_on {
                return Ok((publishing, steps));
            }
            joining = joining.end..(joining.end + args.raise).min(args.raise_max);
        }
    }

    /// The publishers join; each gets what the others publish.
    pub(crate) fn publish(&mut self) -> Result<Wave, String> {
        // Only now: a child inherits the cores of its parent.
        pin_to(self.site.common.load_core)?;
        let publishing = self.wave(0..self.shape.publishers, Kind::Publishing)?;
        if let Some(sentence) = publishing.failures.first() {
            return Err(sentence.clone());
        }
        if self.shape.publishers > 1 {
            self.crowd.offer_again(&self.runtime)?;
        }
        Ok(publishing)
    }

    /// These join, while media flows.
    pub(crate) fn watch(&mut self, members: Range<usize>) -> Result<Wave, String> {
        self.wave(members, Kind::Watching)
    }

    fn step(&mut self, joins: Wave, pace: &Pace) -> Result<Step, String> {
        let process_before = process_cpu(self.server.pid)?;
        let (outcome, spent) = self.run(pace)?;
        let process_cpu = process_cpu(self.server.pid)? - process_before;
        let share = process_cpu.as_secs_f64() / outcome.elapsed.as_secs_f64();
        Ok(Step::new((self.crowd.len(), self.crowd.streams()), joins, Run::new(&outcome, &spent, Vec::new()), share))
    }

    /// One run, and what the server spent on it.
    pub(crate) fn run(&mut self, pace: &Pace) -> Result<(Outcome, Spent), String> {
        let before = Spent::read(&self.server, &self.workers)?;
        let outcome = self.crowd.run(pace)?;
        Ok((outcome, Spent::read(&self.server, &self.workers)?.since(&before)))
    }

    /// The floor with these trains, on the first worker's core, into the members' sockets.
    pub(crate) fn floor_like(&mut self, trains: &Trains) -> Result<Floor, String> {
        let Pace { packet_len, duration, .. } = self.shape.pace;
        let plan = Plan {
            seals: true,
            trains: trains.replay(Plan::train_max(packet_len)),
            packet_len,
            packets: floor_packets(duration),
            core: self.site.common.server_core,
            from: self.site.network.node_address(),
            namespace: self.site.network.namespace(),
            backend: BackendKind::Mmsg,
        };
        measure_beside(plan, self.crowd.addresses(), || self.crowd.drain())
    }

    /// Lets members join, a bounded number at once, and takes them in. Who fails is told in the report.
    fn wave(&mut self, members: Range<usize>, kind: Kind) -> Result<Wave, String> {
        let cpu_before = process_cpu(self.server.pid)?;
        let shape = self.shape;
        let arrivals = self.start_wave(members, kind)?;
        let (times, failures) = self.crowd.admit(&arrivals, |index| shape.authenticates(index))?;
        let cpu = process_cpu(self.server.pid)? - cpu_before;
        Ok(Wave::new(&times, failures, cpu))
    }

    fn start_wave(&self, members: Range<usize>, kind: Kind) -> Result<Receiver<Result<Member, String>>, String> {
        let (arrived, arrivals) = mpsc::channel();
        let sockets = bind_clients(self.site.network.load_address(), members.len(), SOCKET_QUEUE_LEN)
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
        let publishes = index < self.shape.publishers;
        let grant = if self.shape.hidden && !publishes { Grant::Hidden } else { Grant::Member };
        Ticket {
            index,
            wave,
            http: self.server.http.clone(),
            token: sign_token((self.key.0, &self.key.1), "bench", &format!("member-{index}"), grant, now_s),
            ssrc: (kind == Kind::Publishing).then(|| u32::from_be_bytes(random_bytes())),
            receives: (self.shape.publishers - usize::from(publishes)).max(1),
            media: self.shape.pace.media,
            awaits_keyframe: kind == Kind::Watching && self.shape.pace.media == Media::Video,
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
