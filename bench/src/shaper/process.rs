//! The shaper as a process: namespaces, a TUN in each, commands on stdin.
//!
//! It lives as long as its stdin (or for `--duration`), so a test that dies leaves no namespace and no process behind.

use std::collections::BTreeMap;
use std::io::{BufRead, ErrorKind, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pop_schemas::Time;
use pop_uring::{Tun, WakeReceiver, Waker, set_realtime, set_timer_slack, wait_readable, wake_pair};
use serde::Serialize;

use super::{End, Shaper, WireStats};

/// Packets taken from one device before the others have their turn and what is due leaves: about 100 us.
const BATCH: usize = 64;

/// Longest IP packet.
const PACKET_LEN_MAX: usize = 65_535;

/// Packets that wait in a device for us: a burst of a second at 10,000 packets/s.
const DEVICE_QUEUE: &str = "10000";

/// Lateness is counted per microsecond up to here.
const LATE_US_MAX: usize = 20_000;

/// `pop-bench shaper`
#[derive(Debug, clap::Args)]
pub struct ShaperArgs {
    /// An end: NAME=ADDRESS/LEN[,ADDRESS/LEN] makes a namespace of its own, NAME@NETNS=.. uses one that exists, NAME@.=.. is this
    /// one. Its device is called NAME. Two or more.
    #[arg(long = "end", value_name = "END", required = true)]
    ends: Vec<String>,
    /// What a wire does, such as 'a-b delay 20ms loss 1%'; the same words on stdin change it at run time.
    #[arg(long = "wire", value_name = "WORDS")]
    wires: Vec<String>,
    /// Namespaces that it makes are called PREFIX-NAME [default: shaper-PID]
    #[arg(long)]
    prefix: Option<String>,
    /// Of all random decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest packet of the devices, in bytes.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u16).range(576..))]
    mtu: u16,
    /// End after so many seconds, even when stdin has ended before.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Write the counters to this file at the end.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What the shaper did, printed as its last line and on `stats`.
#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    seconds: f64,
    /// By direction, as `a>b`.
    wires: BTreeMap<String, WireStats>,
    /// To an address that no end has, and multicast.
    unrouted: u64,
    /// The receiving device did not take it: it is down, or the packet is broken.
    refused: u64,
    /// Still on their way.
    held: usize,
    /// How much later than due packets left, in microseconds.
    late_us: Late,
}

#[derive(Debug, Serialize)]
struct Late {
    p50: usize,
    p99: usize,
    p999: usize,
    max: usize,
}

/// Runs until stdin or the duration ends. Prints JSON lines: what it made, an answer to each command, the report.
pub fn run(args: &ShaperArgs) -> Result<Report, String> {
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("shaper-{}", std::process::id()));
    let places = args.ends.iter().map(|text| Place::parse(text, &prefix)).collect::<Result<Vec<_>, _>>()?;
    let ends = places.iter().map(|place| End { name: place.name.clone(), addresses: place.ips() }).collect();
    let mut shaper = Shaper::new(ends, args.seed)?;
    for words in &args.wires {
        shaper.command(words).map_err(|sentence| format!("--wire {words:?}: {sentence}"))?;
    }
    let mut made = Namespaces(Vec::new());
    let mut tuns = Vec::new();
    for place in &places {
        tuns.push(place.build(args.mtu, &mut made)?);
    }
    let (commands, wake) = listen(args.duration)?;
    let ready: BTreeMap<&str, &Place> = places.iter().map(|place| (place.name.as_str(), place)).collect();
    say(&serde_json::json!({"ready": ready}));
    // The default of 50 us is most of the error that is allowed.
    set_timer_slack(Duration::from_nanos(1)).map_err(|e| format!("timer slack: {e}"))?;
    // A network does not slow down because a test is busy: at a load of 10, p99 was 0.9 ms late with this and 5.5 ms without.
    if let Err(error) = set_realtime() {
        eprintln!("pop-bench shaper: no real-time priority ({error}): packets are late when this machine is busy");
    }
    let report = Player::new(shaper, tuns, args.seed).play(&commands, &wake)?;
    say(&serde_json::json!({"stats": report}));
    Ok(report)
}

fn say(line: &serde_json::Value) {
    // Nobody listening is no reason to stop: the namespaces are still to be removed.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// An end as the command line describes it.
#[derive(Debug, Serialize)]
struct Place {
    #[serde(skip)]
    name: String,
    /// `None`: the namespace of this process.
    netns: Option<String>,
    #[serde(skip)]
    ours: bool,
    /// With prefix lengths.
    #[serde(rename = "addresses")]
    networks: Vec<String>,
}

impl Place {
    fn parse(text: &str, prefix: &str) -> Result<Self, String> {
        let wrong = || format!("--end {text:?} is not NAME[@NETNS]=ADDRESS/LEN[,ADDRESS/LEN]");
        let (name, networks) = text.split_once('=').ok_or_else(wrong)?;
        let (name, netns, ours) = match name.split_once('@') {
            None => (name, Some(format!("{prefix}-{name}")), true),
            Some((name, ".")) => (name, None, false),
            Some((name, netns)) => (name, Some(netns.to_owned()), false),
        };
        let networks: Vec<String> = networks.split(',').map(str::to_owned).collect();
        let good = |network: &String| network.split_once('/').is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok());
        if !networks.iter().all(good) {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), netns, ours, networks })
    }

    fn ips(&self) -> Vec<IpAddr> {
        self.networks.iter().filter_map(|network| network.split_once('/')?.0.parse().ok()).collect()
    }

    /// Makes the namespace, when it is to be ours, and the device in it.
    fn build(&self, mtu: u16, made: &mut Namespaces) -> Result<Tun, String> {
        if let Some(netns) = self.netns.as_deref().filter(|_| self.ours) {
            ip(None, &format!("netns add {netns}"))?;
            made.0.push(netns.to_owned());
            ip(Some(netns), "link set lo up")?;
        }
        let netns = self.netns.as_deref();
        let path = netns.map(|netns| PathBuf::from("/run/netns").join(netns));
        let device = &self.name;
        let tun =
            Tun::open(device, path.as_deref()).map_err(|e| format!("TUN device {device} in {}: {e}", netns.unwrap_or("this namespace")))?;
        for network in &self.networks {
            ip(netns, &format!("addr add {network} dev {device}"))?;
        }
        ip(netns, &format!("link set dev {device} mtu {mtu} txqueuelen {DEVICE_QUEUE} up"))?;
        if self.ours {
            // Browsers take the addresses of the default route's device.
            for network in &self.networks {
                let family = if network.contains(':') { "-6" } else { "-4" };
                ip(netns, &format!("{family} route replace default dev {device}"))?;
            }
        }
        Ok(tun)
    }
}

/// Runs iproute2's `ip`, in the namespace `netns` when it is given. The error is a sentence with what it said.
pub fn ip(netns: Option<&str>, words: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let output = command.args(words.split(' ')).output().map_err(|e| format!("ip (package iproute2): {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {words}: {}", said.trim())) }
}

/// Those that this process made: they go with it.
struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for netns in &self.0 {
            if let Err(sentence) = ip(None, &format!("netns del {netns}")) {
                eprintln!("pop-bench shaper: {sentence}");
            }
        }
    }
}

enum Order {
    Line(String),
    End,
}

/// Threads that read stdin and wait for signals and for the end.
fn listen(duration: Option<f64>) -> Result<(mpsc::Receiver<Order>, WakeReceiver), String> {
    let (sender, commands) = mpsc::channel();
    let (waker, wake) = wake_pair().map_err(|e| format!("eventfd: {e}"))?;
    let pass = move |sender: &mpsc::Sender<Order>, waker: &Waker, order| {
        // The receiver is gone only when the process ends.
        let _ = sender.send(order);
        waker.wake();
    };
    if let Some(seconds) = duration {
        let duration = Duration::try_from_secs_f64(seconds).map_err(|e| format!("--duration: {e}"))?;
        let (sender, waker) = (sender.clone(), waker.clone());
        thread::spawn(move || {
            thread::sleep(duration);
            pass(&sender, &waker, Order::End);
        });
    }
    let (for_signals, waker_of_signals) = (sender.clone(), waker.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|e| format!("signals: {e}"))?;
    let signals = {
        let _inside = runtime.enter();
        use tokio::signal::unix::{SignalKind, signal};
        [SignalKind::interrupt(), SignalKind::terminate()].map(signal)
    };
    let [Ok(mut interrupt), Ok(mut terminate)] = signals else { return Err("signals cannot be caught".to_owned()) };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        pass(&for_signals, &waker_of_signals, Order::End);
    });
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            pass(&sender, &waker, Order::Line(line));
        }
        if duration.is_none() {
            pass(&sender, &waker, Order::End);
        }
    });
    Ok((commands, wake))
}

/// The machine with devices and a clock.
struct Player {
    shaper: Shaper,
    tuns: Vec<Tun>,
    seed: u64,
    start: Instant,
    refused: u64,
    late_us: Vec<u64>,
    late_us_max: usize,
}

impl Player {
    fn new(shaper: Shaper, tuns: Vec<Tun>, seed: u64) -> Self {
        Self { shaper, tuns, seed, start: Instant::now(), refused: 0, late_us: vec![0; LATE_US_MAX + 1], late_us_max: 0 }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    fn play(mut self, commands: &mpsc::Receiver<Order>, wake: &WakeReceiver) -> Result<Report, String> {
        let mut buffer = vec![0; PACKET_LEN_MAX];
        let mut readable = Vec::new();
        loop {
            let timeout = self.shaper.next_due().map(|due| due.since(self.now()));
            let sources: Vec<_> = std::iter::once(wake.as_fd()).chain(self.tuns.iter().map(AsFd::as_fd)).collect();
            wait_readable(&sources, timeout, &mut readable).map_err(|e| format!("ppoll: {e}"))?;
            if readable[0] {
                wake.drain().map_err(|e| format!("eventfd: {e}"))?;
                for order in commands.try_iter() {
                    match order {
                        Order::End => return Ok(self.report()),
                        Order::Line(line) => self.answer(line.trim()),
                    }
                }
            }
            for end in (0..self.tuns.len()).filter(|end| readable[end + 1]) {
                self.receive(end, &mut buffer)?;
            }
            self.deliver();
        }
    }

    fn answer(&mut self, line: &str) {
        match line {
            "" => {}
            "stats" => say(&serde_json::json!({"stats": self.report()})),
            _ => match self.shaper.command(line) {
                Ok(()) => say(&serde_json::json!({"ok": line})),
                Err(sentence) => say(&serde_json::json!({"error": sentence})),
            },
        }
    }

    fn receive(&mut self, end: usize, buffer: &mut [u8]) -> Result<(), String> {
        for _ in 0..BATCH {
            match self.tuns[end].receive(buffer) {
                Ok(len) => {
                    let now = self.now();
                    self.shaper.handle_packet(now, end, &buffer[..len]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("device {}: {error}", self.shaper.ends()[end].name)),
            }
        }
        Ok(())
    }

    fn deliver(&mut self) {
        let mut now = self.now();
        while let Some(delivery) = self.shaper.poll(now) {
            let late = delivery.due;
            // Nothing to do about a device that is down but to count it.
            self.refused += u64::from(self.tuns[delivery.to].send(delivery.packet).is_err());
            let late_us = now.since(late).as_micros() as usize;
            self.late_us[late_us.min(LATE_US_MAX)] += 1;
            self.late_us_max = self.late_us_max.max(late_us);
            now = self.now();
        }
    }

    fn report(&self) -> Report {
        let wires = self.shaper.stats().map(|(from, to, stats)| (format!("{from}>{to}"), stats)).collect();
        let quantile = |share| quantile(&self.late_us, share);
        Report {
            seed: self.seed,
            seconds: self.start.elapsed().as_secs_f64(),
            wires,
            unrouted: self.shaper.unrouted(),
            refused: self.refused,
            held: self.shaper.held(),
            late_us: Late { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999), max: self.late_us_max },
        }
    }
}

/// The value at or below which `share` of all counts are, in a histogram of one count per value.
fn quantile(counts: &[u64], share: f64) -> usize {
    let total: u64 = counts.iter().sum();
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    counts
        .iter()
        .position(|count| {
            seen += count;
            seen >= rank
        })
        .unwrap_or(0)
}
