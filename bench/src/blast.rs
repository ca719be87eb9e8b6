//! `pop-bench blast`: RTP at a rate, whoever cannot keep up with it.
//!
//! ```text
//! packet i is due at start + i / rate     due? -> stamp number, due time, now -> slots -> one sendmmsg (GSO trains on request)
//! ```
//! Open loop: nothing that the receiver does slows it down, and a packet that is late says by how much.

pub(crate) mod packet;
pub(crate) mod rate;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use pop_uring::{Backend, IoConfig, MmsgBackend, Transmit, Wait, bind_udp, monotonic_time, set_timer_slack};
use serde::Serialize;
use serde_json::json;

use crate::fanout::parse_duration;
use crate::floor::pin_to;
use crate::groups::no_wakes;
use crate::machine::Machine;
use crate::random::random_bytes;
use crate::result::{Figures, LatencyUs, case_json};
use crate::{make_folder_of, write_json};

use packet::{STAMPED_LEN_MIN, Stamp, fold, write_stamped};
use rate::Rate;

/// The longest packet, in bytes: a jumbo frame's.
const PACKET_LEN_MAX: usize = 8_972;

/// Packets of a GSO train, at most: the kernel's limit before 6.9.
const TRAIN_PACKETS_MAX: usize = 64;

/// Bytes of a train, at most: a UDP payload.
const TRAIN_LEN_MAX: usize = 65_000;

/// Datagrams or trains of one `sendmmsg`, at most, so that a sink on the same thread is never kept waiting for long.
const TRAINS_PER_TURN: usize = 32;

/// Queue of the sending socket, in bytes.
const SEND_QUEUE_LEN: usize = 4 << 20;

/// The kernel ends a sleep late; so much earlier the sender begins to spin.
const SPIN: Duration = Duration::from_micros(80);

/// A generator that is so far behind at its end gives up: it found its own limit.
const GIVE_UP_AFTER: Duration = Duration::from_millis(500);

/// Latencies in nanoseconds, up to a minute, three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are those of the documentation")
}

/// The percentiles that a report shows, in microseconds; `None` of nothing.
pub(crate) fn latency_us(histogram: &Histogram<u64>) -> Option<LatencyUs> {
    let at = |percentile| histogram.value_at_percentile(percentile) as f64 / 1e3;
    (!histogram.is_empty()).then(|| LatencyUs { p50: at(50.0), p99: at(99.0), p999: at(99.9), max: histogram.max() as f64 / 1e3 })
}

/// The shape of the packets, in every case that sends some.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ShapeArgs {
    /// Bytes of an RTP packet.
    #[arg(long, default_value_t = 1_100)]
    pub(crate) size: usize,
    /// RTP streams (SSRCs), served in turn.
    #[arg(long, default_value_t = 1)]
    pub(crate) streams: u32,
    /// Packets of one GSO train, due together; 1 sends single datagrams.
    #[arg(long, default_value_t = 1)]
    pub(crate) train: usize,
}

impl ShapeArgs {
    /// The error is a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(STAMPED_LEN_MIN..=PACKET_LEN_MAX).contains(&self.size) {
            return Err(format!("--size must be {STAMPED_LEN_MIN} to {PACKET_LEN_MAX} bytes"));
        }
        let most = TRAIN_PACKETS_MAX.min(TRAIN_LEN_MAX / self.size);
        if !(1..=most).contains(&self.train) {
            return Err(format!("--train must be 1 to {most} packets of {} bytes", self.size));
        }
        if !(1..=crate::sink::STREAMS_MAX as u32).contains(&self.streams) {
            return Err(format!("--streams must be 1 to {}", crate::sink::STREAMS_MAX));
        }
        Ok(())
    }
}

/// What to send.
#[derive(Debug, clap::Args)]
pub(crate) struct BlastArgs {
    /// Where to: ADDRESS:PORT.
    #[arg(long)]
    to: SocketAddr,
    /// Packets per second (200k) or bits of RTP packets per second (500Mbps).
    #[arg(long, default_value = "10k")]
    rate: Rate,
    #[command(flatten)]
    shape: ShapeArgs,
    /// How long, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Send from this address (its port may be 0); default: any.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Core of the sender; default: wherever the kernel likes.
    #[arg(long)]
    core: Option<usize>,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the case. The error is a sentence.
pub(crate) fn run(args: &BlastArgs) -> Result<(), String> {
    args.shape.check()?;
    make_folder_of(args.json.as_deref())?;
    if let Some(core) = args.core {
        pin_to(core)?;
    }
    // Without it a sleep is 50 us late more.
    let _ = set_timer_slack(Duration::from_nanos(1));
    let mut generator = Generator::new(args.from, args.to, args.shape)?;
    let pps = args.rate.packets_per_second(args.shape.size);
    generator.begin(pps, args.duration, monotonic_time());
    let mut next_progress = Duration::from_secs(1);
    while let Some(due) = generator.due() {
        let now = monotonic_time();
        generator.turn(now).map_err(|e| format!("{}: {e}", args.to))?;
        let since = now.saturating_sub(generator.started());
        if since >= next_progress {
            next_progress += Duration::from_secs(1);
            let (sent, late_us) = (generator.sent.packets, generator.sent.late.max() as f64 / 1e3);
            eprintln!("blast  {:>4} s {sent:>12} packets sent, at most {late_us:.0} us late", since.as_secs());
        }
        if let Some(free) = due.checked_sub(now + SPIN) {
            thread::sleep(free);
        }
    }
    let sent = generator.end(monotonic_time()).map_err(|e| format!("{}: {e}", args.to))?;
    let report = SentReport::new(&sent);
    eprintln!(
        "blast  {} packets in {:.3} s, {:.0} packets/s of {pps:.0}, late {:.0} us p99 and {:.0} us at most, checksum {}",
        sent.packets,
        sent.elapsed.as_secs_f64(),
        sent.packets_per_second(),
        report.late_us.map_or(0.0, |late| late.p99),
        report.late_us.map_or(0.0, |late| late.max),
        report.checksum,
    );
    if sent.unsent > 0 {
        eprintln!("beware {} packets never left: {pps:.0} packets/s is above what this generator can send here", sent.unsent);
    }
    let figures = Figures { packets_per_second: Some(sent.packets_per_second()), ..Figures::default() };
    let config = json!({
        "to": args.to, "packets_per_second": pps, "size": args.shape.size, "streams": args.shape.streams, "train": args.shape.train,
        "duration_s": args.duration.as_secs_f64(), "core": args.core,
    });
    let json = case_json("blast", &figures, &Machine::describe("mmsg", None), config, &report);
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

/// What a run sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// Packets that the kernel took.
    pub(crate) packets: u64,
    /// Packets of the plan that it did not take, or that were still owed when the generator gave up.
    pub(crate) unsent: u64,
    /// From the start to the last packet's due time or leave, whichever is later.
    pub(crate) elapsed: Duration,
    /// When the last packet was due, on the monotonic clock.
    pub(crate) last_due: Duration,
    /// How much later it left.
    pub(crate) late_last: Duration,
    /// Nanoseconds between due and leaving.
    pub(crate) late: Histogram<u64>,
    /// Folds the numbers of what was handed to the kernel.
    pub(crate) checksum: u64,
    /// Which run.
    pub(crate) run: u32,
}

impl Sent {
    /// Packets per second that left.
    pub(crate) fn packets_per_second(&self) -> f64 {
        self.packets as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// The same for a report.
#[derive(Debug, Serialize)]
pub(crate) struct SentReport {
    sent: u64,
    unsent: u64,
    elapsed_s: f64,
    late_us: Option<LatencyUs>,
    checksum: String,
    run: u32,
}

impl SentReport {
    pub(crate) fn new(sent: &Sent) -> SentReport {
        SentReport {
            sent: sent.packets,
            unsent: sent.unsent,
            elapsed_s: sent.elapsed.as_secs_f64(),
            late_us: latency_us(&sent.late),
            checksum: format!("{:016x}", sent.checksum),
            run: sent.run,
        }
    }
}

/// The sender: one socket for all its runs, since a target may have learnt it as its peer.
pub(crate) struct Generator {
    backend: MmsgBackend,
    to: SocketAddr,
    shape: ShapeArgs,
    /// SSRC of stream 0; the others follow.
    ssrc: u32,
    /// Packets of each stream before this run: sequence numbers go on from run to run.
    before: u64,
    /// Datagrams that the kernel took before this run.
    taken_before: u64,
    pace: Pace,
    sent: Sent,
}

/// When packets are due.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    start_ns: u64,
    /// Nanoseconds between two packets.
    interval_ns: f64,
    /// Packets of the plan.
    total: u64,
    /// Index of the next packet.
    next: u64,
    /// It is too late for the rest.
    given_up: bool,
}

impl Pace {
    /// When the packet is due, on the monotonic clock: all of a train are due with its first.
    fn due_ns(&self, index: u64) -> u64 {
        self.start_ns + (index as f64 * self.interval_ns) as u64
    }
}

impl Generator {
    /// Binds the socket and takes the memory.
    pub(crate) fn new(from: Option<SocketAddr>, to: SocketAddr, shape: ShapeArgs) -> Result<Generator, String> {
        let any = SocketAddr::new(if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) }, 0);
        let from = from.unwrap_or(any);
        let fail = |e: std::io::Error| format!("the sender's socket on {from}: {e}");
        let socket = bind_udp(from, 1 << 16, SEND_QUEUE_LEN).map_err(fail)?;
        let config = IoConfig {
            recv_buffers: 16,
            recv_buffer_len: 2_048,
            trains: 4 * TRAINS_PER_TURN as u16,
            train_len: (shape.size * shape.train).max(512) as u32,
            gro: false,
            sockets: 1,
            ..IoConfig::default()
        };
        let backend = MmsgBackend::new(vec![socket], no_wakes().map_err(fail)?, &config).map_err(fail)?;
        let run = u32::from_be_bytes(random_bytes());
        let sent = Sent {
            packets: 0,
            unsent: 0,
            elapsed: Duration::ZERO,
            last_due: Duration::ZERO,
            late_last: Duration::ZERO,
            late: new_histogram(),
            checksum: 0,
            run,
        };
        let ssrc = u32::from_be_bytes(random_bytes()) | 1;
        Ok(Generator { backend, to, shape, ssrc, before: 0, taken_before: 0, pace: Pace::default(), sent })
    }

    /// Plans a run that starts now.
    pub(crate) fn begin(&mut self, packets_per_second: f64, duration: Duration, now: Duration) {
        let total = ((packets_per_second * duration.as_secs_f64()).round() as u64).max(1);
        self.pace = Pace { start_ns: now.as_nanos() as u64, interval_ns: 1e9 / packets_per_second, total, next: 0, given_up: false };
        self.sent.late.reset();
        (self.sent.packets, self.sent.unsent, self.sent.checksum) = (0, 0, 0);
        self.sent.run = self.sent.run.wrapping_add(1);
        self.taken_before = self.backend.stats().datagrams_sent;
    }

    /// When the run began.
    pub(crate) fn started(&self) -> Duration {
        Duration::from_nanos(self.pace.start_ns)
    }

    /// Which run this is.
    pub(crate) fn run(&self) -> u32 {
        self.sent.run
    }

    /// When the next packet is to leave; `None` when all have left or it is too late for the rest.
    pub(crate) fn due(&self) -> Option<Duration> {
        (self.pace.next < self.pace.total && !self.pace.given_up).then(|| Duration::from_nanos(self.pace.due_ns(self.pace.next)))
    }

    /// Sends what is due at `now`, at most one `sendmmsg` of it.
    pub(crate) fn turn(&mut self, now: Duration) -> std::io::Result<()> {
        let now_ns = now.as_nanos() as u64;
        let mut queued = false;
        for _ in 0..TRAINS_PER_TURN {
            let (first, due_ns) = (self.pace.next, self.pace.due_ns(self.pace.next));
            if first >= self.pace.total || due_ns > now_ns {
                break;
            }
            // A full socket gives its slots back when it has room; what is due meanwhile gets late, and says so.
            let Some(id) = self.backend.acquire() else {
                queued = true;
                break;
            };
            let count = (self.shape.train as u64).min(self.pace.total - first);
            let bytes = self.backend.train(&id);
            for (index, packet) in (first..first + count).zip(bytes.chunks_exact_mut(self.shape.size)) {
                let (number, stream) = (index / u64::from(self.shape.streams), (index % u64::from(self.shape.streams)) as u32);
                let stamp = Stamp { number, due_ns, left_ns: now_ns, run: self.sent.run, stream };
                write_stamped(packet, self.ssrc.wrapping_add(stream), (self.before + number) as u16, &stamp);
                self.sent.checksum = self.sent.checksum.wrapping_add(fold(stream, number));
            }
            self.sent.late.saturating_record_n(now_ns - due_ns, count);
            self.sent.late_last = Duration::from_nanos(now_ns - due_ns);
            let len = self.shape.size * count as usize;
            let segment = (count > 1).then_some(self.shape.size as u16);
            self.backend.send(id, Transmit { socket: 0, to: self.to, len, segment });
            self.pace.next += count;
            queued = true;
        }
        if queued {
            self.backend.turn(Wait::No)?;
            while self.backend.receive().is_some() {}
            self.sent.packets = self.backend.stats().datagrams_sent - self.taken_before;
        }
        let planned = self.pace.due_ns(self.pace.total);
        self.pace.given_up = now_ns > planned + GIVE_UP_AFTER.as_nanos() as u64;
        Ok(())
    }

    /// Ends the run: what the kernel still holds back leaves, and the account is made.
    pub(crate) fn end(&mut self, now: Duration) -> std::io::Result<Sent> {
        self.backend.turn(Wait::No)?;
        let pace = self.pace;
        self.sent.packets = self.backend.stats().datagrams_sent - self.taken_before;
        self.sent.unsent = pace.total - self.sent.packets;
        let last = pace.next.saturating_sub(1);
        self.sent.last_due = Duration::from_nanos(pace.due_ns(last - last % self.shape.train as u64));
        let planned = Duration::from_nanos((pace.next as f64 * pace.interval_ns) as u64);
        self.sent.elapsed = planned.max(now.saturating_sub(self.started()));
        self.before += pace.next.div_ceil(u64::from(self.shape.streams));
        Ok(self.sent.clone())
    }
}
