//! `pop-bench relay`: what a link between two nodes costs, in time and in bytes, and how soon it repairs.
//!
//! ```text
//! frames:  seal and head against a copy behind a raw struct                          one thread, no sockets
//! workers: blast --RTP--> origin (core A) ==sealed, veth==> edge (core B) --RTP--> sink     and the bare sender beside it
//! repair:  two links, a wire that loses, doubles, reorders and flips bits             fake time, by seed
//! ```

mod frame;
mod repair;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pop_uring::BackendKind;
use serde_json::{Value, json};

use crate::blast::ShapeArgs;
use crate::blast::rate::Rate;
use crate::fanout::{floor_packets, parse_duration};
use crate::floor::{Floor, Plan, Sink as FloorSink, measure_alone, pin_to};
use crate::floors::parse_backend;
use crate::machine::{Machine, Pinning};
use crate::network::Network;
use crate::result::{Figures, case_json};
use crate::sink::{Sink, Tally};
use crate::target::Target;
use crate::trial::{Lane, Outcome};
use crate::{make_folder_of, write_json};

use frame::Frames;
use repair::Repair;
use workers::{Spent, Workers};

/// Datagrams that a worker seals under one generation of keys. Nobody renews those of this link.
const SEALED_MAX: f64 = (1_u32 << 23) as f64;
/// Opus of 20 ms, beside the packets of `--size`: of small packets the head is a larger part.
const AUDIO_LEN: usize = 100;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// Bytes of an RTP packet.
    #[arg(long, default_value_t = 1_100)]
    size: usize,
    /// Packets of the publisher's GSO trains, due together.
    #[arg(long, default_value_t = 8)]
    train: usize,
    /// Send at this rate over the link: packets per second (200k) or bits (500Mbps).
    #[arg(long, default_value = "150k")]
    rate: Rate,
    /// How long the run over the link is that is reported, such as 5s or 500ms.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Passes over the frames; the fastest counts.
    #[arg(long, default_value_t = 21)]
    passes: usize,
    /// Wires of the repairs, by seed from 0 on.
    #[arg(long, default_value_t = 6)]
    seeds: u64,
    /// How long both ends talk over each of these wires, in their own time.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    talk: Duration,
    /// Core of the origin's worker, which seals, and of the bare sender.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Core of the edge's worker, which opens; default: that of the origin's.
    #[arg(long)]
    edge_core: Option<usize>,
    /// Core of generator and sink.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The link on loopback, as it is without root; default: a veth pair into a namespace that is made for the run.
    #[arg(long)]
    loopback: bool,
    /// Back end of the workers: io_uring or mmsg.
    #[arg(long, default_value = "io_uring", value_parser = parse_backend)]
    backend: BackendKind,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl RelayArgs {
    fn shape(&self) -> ShapeArgs {
        ShapeArgs { size: self.size, streams: 1, train: self.train }
    }

    fn edge_core(&self) -> usize {
        self.edge_core.unwrap_or(self.server_core)
    }

    fn check(&self) -> Result<(), String> {
        self.shape().check()?;
        if self.size > pop_relay::link::FRAME_LEN_MAX {
            return Err(format!("--size must be at most {} bytes: a link carries no longer packet", pop_relay::link::FRAME_LEN_MAX));
        }
        if self.duration.is_zero() || self.talk.is_zero() || self.passes == 0 || self.seeds == 0 {
            return Err("--duration, --talk, --passes and --seeds must be above zero".to_owned());
        }
        if self.rate.packets_per_second(self.size) * self.duration.as_secs_f64() > SEALED_MAX / 2.0 {
            return Err("--rate for --duration must be at most 4,194,304 packets: the keys of this link are not renewed".to_owned());
        }
        Ok(())
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &RelayArgs) -> Result<(), String> {
    args.check()?;
    make_folder_of(args.json.as_deref())?;
    let frames: Vec<Frames> = [AUDIO_LEN, args.size].into_iter().map(|len| frame::measure(len, args.passes)).collect();
    frames.iter().for_each(Frames::summarize);
    let repairs = repair::measure(args.seeds, args.talk);
    repairs.iter().for_each(Repair::summarize);

    let network = Network::open(args.loopback);
    let any_port = SocketAddr::new(network.load_address(), 0);
    let mut sink = Sink::bind(any_port, Tally::new(Some(0), false))?;
    let workers = Workers::start(args, &network, sink.address)?;
    // Only now: a thread inherits the cores of the one that starts it.
    pin_to(args.load_core)?;
    let mut lane = Lane::new(Target::Other(workers.route), any_port, args.shape())?;
    lane.find_way(&mut sink)?;
    let before = workers.spent()?;
    let outcome = lane.run(&mut sink, args.rate.packets_per_second(args.size), args.duration)?;
    let spent = workers.spent()?.since(&before);
    let train = spent.train_mean();
    let floors = [false, true].map(|seals| floor(args, &network, seals, train));
    let [send, gcm] = floors;
    let link = Crossed { outcome, spent, send: send?, gcm: gcm? };
    link.summarize();
    let json = report(args, &network, &frames, &repairs, &link);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

/// The bare sender with the link's packets and trains.
fn floor(args: &RelayArgs, network: &Network, seals: bool, train: f64) -> Result<Floor, String> {
    let plan = Plan {
        seals,
        trains: Plan::even_trains(train.clamp(1.0, Plan::train_max(args.size) as f64), args.size)?,
        packet_len: args.size,
        packets: floor_packets(args.duration),
        core: args.server_core,
        from: network.node_address(),
        namespace: network.namespace(),
        backend: BackendKind::Mmsg,
    };
    measure_alone(&plan, 1, (FloorSink::Read, network.load_address(), args.load_core)).map(|(floor, _)| floor)
}

/// What crossed the link between two workers.
struct Crossed {
    outcome: Outcome,
    spent: Spent,
    send: Floor,
    gcm: Floor,
}

impl Crossed {
    fn packets(&self) -> f64 {
        self.outcome.arrived.counts.packets.max(1) as f64
    }

    fn origin_ns(&self) -> f64 {
        self.spent.origin_ns as f64 / self.packets()
    }

    fn edge_ns(&self) -> f64 {
        self.spent.edge_ns as f64 / self.packets()
    }

    fn figures(&self) -> Figures {
        Figures {
            packets_per_second: Some(self.outcome.packets_per_second()),
            // The worker that seals: it is what the floor is the floor of.
            cpu_ns_per_packet: Some(self.origin_ns()),
            loss: Some(self.outcome.loss()),
            floor_ratio: self.gcm.off().is_none().then(|| self.gcm.ns_per_packet / self.origin_ns()),
            allocations_per_packet: Some(self.spent.allocations as f64 / self.packets()),
            latency_us: self.outcome.report().latency_us,
            ..Figures::default()
        }
    }

    fn summarize(&self) {
        eprintln!(
            "link      {:>10.0} packets/s, loss {:.5} %, {:.0} ns of CPU per packet at the origin, {:.0} at the edge, trains of {:.2}; bare sender {:.0}, \
             with GCM {:.0}; {:.4} of the bytes are not RTP, checksum {}",
            self.outcome.packets_per_second(),
            self.outcome.loss() * 100.0,
            self.origin_ns(),
            self.edge_ns(),
            self.spent.train_mean(),
            self.send.ns_per_packet,
            self.gcm.ns_per_packet,
            self.spent.share_not_rtp(),
            self.outcome.arrived.checksum,
        );
        self.gcm.off().iter().for_each(|sentence| eprintln!("beware    {sentence}"));
    }
}

fn report(args: &RelayArgs, network: &Network, frames: &[Frames], repairs: &[Repair], link: &Crossed) -> Value {
    let mut beware: Vec<String> = link.gcm.off().into_iter().collect();
    let cores = vec![args.server_core, args.edge_core()];
    let oversubscribed = cores[0] == cores[1] || cores.contains(&args.load_core);
    if oversubscribed {
        beware.push(
            "oversubscribed: the two workers and the load have less than a core each, so packets/s is less than a worker's".to_owned(),
        );
    }
    let run = |name: &str, cpu_ns: f64| {
        let floor = (name == "origin").then_some(link.gcm.ns_per_packet);
        json!({
            "name": name, "cpu_ns_per_packet": cpu_ns, "floor_ns_per_packet": floor, "packets_per_second": link.outcome.packets_per_second(),
            "packets_per_second_of_a_full_core": 1e9 / cpu_ns, "loss": link.outcome.loss(),
        })
    };
    let runs = [run("origin", link.origin_ns()), run("edge", link.edge_ns())];
    let crossed = json!({
        "trial": link.outcome.report(), "train_packets_mean": link.spent.train_mean(), "bytes_out": link.spent.bytes_out,
        "bytes_back": link.spent.bytes_back, "rtp_bytes_out": link.spent.media_bytes_out, "share_not_rtp": link.spent.share_not_rtp(),
        "repairs": link.spent.repairs,
    });
    let config = json!({
        "size": args.size, "train": args.train, "duration_s": args.duration.as_secs_f64(),
        "passes": args.passes, "seeds": args.seeds, "talk_s": args.talk.as_secs_f64(), "backend": args.backend.name(),
    });
    let detail = json!({
        "frames": frames, "runs": runs, "link": crossed, "bare_sender": {"send": link.send, "gcm": link.gcm}, "repair": repairs, "beware": beware,
    });
    let pinning = Pinning { workers: cores, load: args.load_core, oversubscribed };
    let machine = Machine::describe(args.backend.name(), None).with(network.describe(), pinning);
    case_json("relay", &link.figures(), &machine, config, detail)
}
