//! `pop-bench sink`: counts what a blast sent, or RTP of other senders, and says what was lost, repeated, reordered and how late.

mod tally;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pop_uring::{Backend, IoConfig, MmsgBackend, Wait, bind_udp, monotonic_time};
use serde_json::json;

use crate::fanout::parse_duration;
use crate::floor::pin_to;
use crate::groups::no_wakes;
use crate::machine::Machine;
use crate::result::{Figures, case_json};
use crate::{make_folder_of, write_json};

pub(crate) use tally::{STREAMS_MAX, Tally, TallyReport};

/// Queue of the socket, in bytes: 50 ms of 10 Gb/s.
const QUEUE_LEN: usize = 64 << 20;

/// The longest sleep: the end is looked at so often.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What to count.
#[derive(Debug, clap::Args)]
pub(crate) struct SinkArgs {
    /// Receive here: ADDRESS:PORT.
    #[arg(long)]
    listen: SocketAddr,
    /// Ends when nothing that counts came for so long, after the first packet.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    idle: Duration,
    /// Ends after so long in any case; default: waits for the first packet as long as it takes.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Count RTP of other senders (trafgen, GStreamer, ffmpeg), too, by SSRC and sequence number.
    #[arg(long)]
    plain: bool,
    /// Datagrams that were sent here: what of them did not come is loss, and then the exit code is 1.
    #[arg(long, value_name = "N")]
    expect: Option<u64>,
    /// Never sleep: the receive path costs the sender less, and a core here.
    #[arg(long)]
    spin: bool,
    /// Core of the sink; default: wherever the kernel likes.
    #[arg(long)]
    core: Option<usize>,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the case. The error is a sentence.
pub(crate) fn run(args: &SinkArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    if let Some(core) = args.core {
        pin_to(core)?;
    }
    let mut sink = Sink::bind(args.listen, Tally::new(None, args.plain))?;
    eprintln!("sink   listens on {}", sink.address);
    let started = monotonic_time();
    let (mut last_media, mut next_progress) = (None::<Duration>, Duration::from_secs(1));
    loop {
        let wait = if args.spin { Wait::No } else { Wait::AtMost(SLEEP_MAX) };
        if sink.sweep(wait).map_err(|e| format!("{}: {e}", args.listen))? {
            last_media = Some(monotonic_time());
        }
        let now = monotonic_time();
        let since = now - started;
        if args.duration.is_some_and(|most| since >= most) || last_media.is_some_and(|last| now - last >= args.idle) {
            break;
        }
        if since >= next_progress {
            next_progress += Duration::from_secs(1);
            if last_media.is_some() {
                let report = sink.tally.report();
                let (packets, missing) = (sink.tally.packets(), report.missing);
                eprintln!("sink   {:>4} s {packets:>12} packets, {missing} missing, {} foreign", since.as_secs(), report.counts.foreign);
            }
        }
    }
    let report = sink.tally.report();
    let counts = &report.counts;
    // Whoever tells how many there were means all datagrams of a sender whose packets may be equal.
    let arrived = if args.plain { sink.tally.packets() + counts.plain_duplicates } else { counts.packets };
    let missing = args.expect.map_or(report.missing, |expected| expected.saturating_sub(arrived));
    let loss = match args.expect.unwrap_or(counts.packets + report.missing) {
        0 => None,
        expected => Some(missing as f64 / expected as f64),
    };
    eprintln!(
        "sink   {arrived} packets, {missing} missing, {} twice, {} reordered, {} damaged, {} foreign, {} dropped by the kernel here, checksum {}",
        counts.duplicates + counts.plain_duplicates,
        report.reordered,
        counts.damaged,
        counts.foreign,
        sink.kernel_drops(),
        report.checksum
    );
    if let Some(latency) = &report.latency_us {
        let (p50, p99, p999, max) = (latency.p50, latency.p99, latency.p999, latency.max);
        eprintln!("latency {p50:.1} us p50, {p99:.1} us p99, {p999:.1} us p99.9, {max:.1} us at most, from the due time on");
    }
    let figures =
        Figures { packets_per_second: Some(report.packets_per_second), loss, latency_us: report.latency_us, ..Figures::default() };
    let config = json!({
        "listen": args.listen, "idle_s": args.idle.as_secs_f64(), "duration_s": args.duration.map(|most| most.as_secs_f64()),
        "plain": args.plain, "expect": args.expect, "core": args.core,
    });
    let detail = json!({"sink": report, "kernel_drops": sink.kernel_drops()});
    let json = case_json("sink", &figures, &Machine::describe("mmsg", None), config, detail);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)?;
    match args.expect {
        Some(expected) if missing > 0 => Err(format!("{missing} of {expected} packets did not come")),
        _ => Ok(()),
    }
}

/// A socket and its account.
pub(crate) struct Sink {
    backend: MmsgBackend,
    /// Where packets are to be sent.
    pub(crate) address: SocketAddr,
    /// What came.
    pub(crate) tally: Tally,
}

impl Sink {
    /// Binds the socket. The error is a sentence.
    pub(crate) fn bind(listen: SocketAddr, tally: Tally) -> Result<Sink, String> {
        let fail = |e: std::io::Error| format!("the sink's socket on {listen}: {e}");
        let socket = bind_udp(listen, QUEUE_LEN, 1 << 16).map_err(fail)?;
        let address = socket.local_addr().map_err(fail)?;
        let config = IoConfig { trains: 1, train_len: 512, sockets: 1, ..IoConfig::default() };
        let backend = MmsgBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?;
        Ok(Sink { backend, address, tally })
    }

    /// Takes what is there. Whether anything of it counts as media.
    pub(crate) fn sweep(&mut self, wait: Wait) -> std::io::Result<bool> {
        self.backend.turn(wait)?;
        let now_ns = monotonic_time().as_nanos() as u64;
        let mut media = false;
        while let Some(mut received) = self.backend.receive() {
            for datagram in received.datagrams() {
                media |= self.tally.take(now_ns, datagram);
            }
        }
        Ok(media)
    }

    /// Datagrams that did not fit the socket's queue, since the start: the sink was too slow.
    pub(crate) fn kernel_drops(&self) -> u64 {
        self.backend.stats().kernel_drops
    }
}
