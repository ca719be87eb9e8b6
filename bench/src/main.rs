//! `pop-bench`: everything that looks at the appliance from outside. `bench/README.md` says how to read its figures.

mod audio;
mod blast;
mod bus;
mod compare;
mod fanout;
mod flood;
mod floor;
mod floors;
mod forward;
mod groups;
mod http;
mod latency;
mod machine;
mod measured;
mod network;
mod nodes;
mod oracle;
mod pcap;
mod peers;
mod people;
mod random;
mod refuse;
mod relay;
mod report;
mod result;
mod results;
mod resume;
mod rooms;
mod sdp;
mod search;
mod session;
mod sink;
mod svg;
mod target;
mod token;
mod trial;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pop_bench::shaper::process::{self, ShaperArgs};

#[derive(Parser)]
#[command(name = "pop-bench", version, about = "Load, floors and oracles for the pop appliance")]
struct Cli {
    #[command(subcommand)]
    case: Case,
    #[command(flatten)]
    around: compare::Around,
}

#[derive(Subcommand)]
enum Case {
    /// Check a capture: one (key, SSRC, index) has one ciphertext. Exit 1 on a violation, 2 when there is nothing to judge.
    Oracle(OracleArgs),
    /// The work that no SFU on this kernel can avoid, as a minimal program on one pinned core: sends, with encryption, or a forwarder.
    Floor(floors::FloorArgs),
    /// A bare UDP forwarder, one to many: what any forwarder on this kernel adds in time. It ends with its stdin.
    Forward(forward::ForwardArgs),
    /// One node with publishers and many real SRTP subscribers, and the floor beside it.
    Fanout(Box<fanout::FanoutArgs>),
    /// One room with members that speak the room protocol: joins, memory, and how many it carries.
    Rooms(Box<rooms::RoomsArgs>),
    /// Live streams on one node while a stranger floods it as fast as one core can, by kind of bad packet.
    Flood(Box<flood::FloodArgs>),
    /// One call in which each gets what all the others publish: 50 x 49, 100 x 99.
    Session(Box<session::SessionArgs>),
    /// A few speakers and an audience that grows until packets are lost.
    Audio(Box<audio::AudioArgs>),
    /// RTP at a given rate, numbered and stamped, whoever cannot keep up with it.
    Blast(blast::BlastArgs),
    /// Count what a blast sent, or RTP of others: lost, repeated, reordered, and how late.
    Sink(sink::SinkArgs),
    /// The highest rate without loss (NDR), of a node with RTP routes or of any target that takes plain RTP.
    Ndr(search::SearchArgs),
    /// The highest rate with at most 0.5 % loss (PDR).
    Pdr(search::SearchArgs),
    /// Latency at shares of the PDR, beside the bare forwarder.
    Latency(latency::LatencyArgs),
    /// How long a change of a participant takes to the other node, beside a bare zenoh put, and how long a node that joins needs.
    Bus(bus::BusArgs),
    /// Kill the node that has people's transports, and time how each comes back, phase by phase.
    Resume(resume::ResumeArgs),
    /// A page with charts of each result, made from its JSON alone.
    Report(report::ReportArgs),
    /// Every headline figure in turn, into DATE-NAME.json files.
    All(results::all::AllArgs),
    /// Put the results into README's table, or check that they are there.
    Table(results::table::TableArgs),
    /// The same fan-out through `pop` and another server in turn, and the ratio of what a packet costs.
    Peer(Box<peers::PeerArgs>),
    /// A link between two nodes: what a frame costs beside a copy and the bare sender, packets/s of two workers, bytes that are not RTP, repairs.
    Relay(relay::RelayArgs),
    /// Light people in sessions of a node that runs already. Commands on stdin tell what they see; it ends with stdin.
    People(people::PeopleArgs),
    /// A network between namespaces with delay, loss and the rest, by seed. Commands on stdin change it; it ends with stdin.
    Shaper(ShaperArgs),
    /// Run a program that the kernel refuses io_uring, as container runtimes and hardened services do.
    RefuseIoUring(refuse::RefuseArgs),
}

impl Case {
    /// It writes figures of the shape of `result.rs`.
    fn measures(&self) -> bool {
        !matches!(
            self,
            Case::Oracle(_)
                | Case::Forward(_)
                | Case::Report(_)
                | Case::All(_)
                | Case::Table(_)
                | Case::People(_)
                | Case::Shaper(_)
                | Case::RefuseIoUring(_)
        )
    }
}

#[derive(clap::Args)]
struct OracleArgs {
    /// A classic pcap, as `tcpdump -w` writes it.
    file: PathBuf,
    /// A capture without media is a pass.
    #[arg(long)]
    allow_empty: bool,
    /// Look only at flows with one of these UDP ports at either end.
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports)]
    ports: Option<(u16, u16)>,
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err("give one port, or FIRST-LAST with FIRST not above LAST".to_owned()),
    }
}

fn main() -> ExitCode {
    let Cli { case, around } = Cli::parse();
    if around.is_asked() {
        return end("around a case", if case.measures() { around.run() } else { Err("only a case that measures has a report".to_owned()) });
    }
    match case {
        Case::Oracle(args) => judge_capture(&args),
        Case::Floor(args) => end("floor", floors::run(&args)),
        Case::Forward(args) => end("forward", forward::run(&args)),
        Case::Fanout(args) => end("fanout", fanout::run(&args)),
        Case::Rooms(args) => end("rooms", rooms::run(&args)),
        Case::Flood(args) => end("flood", flood::run(&args)),
        Case::Session(args) => end("session", session::run(&args)),
        Case::Audio(args) => end("audio", audio::run(&args)),
        Case::Blast(args) => end("blast", blast::run(&args)),
        Case::Sink(args) => end("sink", sink::run(&args)),
        Case::Ndr(args) => end("ndr", search::run("ndr", &args, 0.0)),
        Case::Pdr(args) => end("pdr", search::run("pdr", &args, search::PDR_LOSS)),
        Case::Latency(args) => end("latency", latency::run(&args)),
        Case::Bus(args) => end("bus", bus::run(&args)),
        Case::Resume(args) => end("resume", resume::run(&args)),
        Case::Report(args) => end("report", report::run(&args)),
        Case::All(args) => end("all", results::all::run(&args)),
        Case::Table(args) => end("table", results::table::run(&args)),
        Case::Peer(args) => end("peer", peers::run(&args)),
        Case::Relay(args) => end("relay", relay::run(&args)),
        Case::People(args) => end("people", people::run(&args)),
        Case::Shaper(args) => end("shaper", run_shaper(&args)),
        Case::RefuseIoUring(args) => end("refuse-io-uring", refuse::run(&args).map(|never| match never {})),
    }
}

fn end(case: &str, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("pop-bench {case}: {sentence}");
            ExitCode::from(1)
        }
    }
}

fn run_shaper(args: &ShaperArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    let report = process::run(args)?;
    // Its last line on stdout is the report already.
    let Some(file) = &args.json else { return Ok(()) };
    write_json(Some(file), &serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?)
}

/// Makes the folder that [`write_json`] will want, before anything is measured: figures must not be lost at the end.
fn make_folder_of(path: Option<&Path>) -> Result<(), String> {
    let Some(folder) = path.and_then(Path::parent) else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))
}

/// To `path`, or to stdout.
fn write_json(path: Option<&Path>, json: &str) -> Result<(), String> {
    match path {
        Some(path) => std::fs::write(path, format!("{json}\n")).map_err(|e| format!("{}: {e}", path.display())),
        None => {
            println!("{json}");
            Ok(())
        }
    }
}

fn judge_capture(args: &OracleArgs) -> ExitCode {
    let open = || File::open(&args.file).map(BufReader::new).map_err(|e| e.to_string());
    let verdict = match oracle::check_capture(open, args.ports) {
        Ok(verdict) => verdict,
        Err(sentence) => {
            eprintln!("pop-bench oracle: {}: {sentence}", args.file.display());
            return ExitCode::from(2);
        }
    };
    println!("{verdict}");
    for (count, what) in [
        (verdict.rtcp_unchecked, "SRTCP packets were not checked: their DTLS handshake is not in the capture"),
        (verdict.fragments, "IP fragments were not checked"),
        (verdict.clients_violations, "packets of clients have an index that they used before: RTX was not negotiated, or they are broken"),
        (u64::from(verdict.cut), "record at the end is cut off"),
    ] {
        if count > 0 {
            eprintln!("pop-bench oracle: {count} {what}");
        }
    }
    for violation in &verdict.shown {
        eprintln!("pop-bench oracle: {violation}");
    }
    if verdict.violations > 0 {
        return ExitCode::from(1);
    }
    if verdict.rtp + verdict.rtcp == 0 && !args.allow_empty {
        eprintln!("pop-bench oracle: {}: no SRTP or SRTCP was seen (--allow-empty accepts that)", args.file.display());
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
