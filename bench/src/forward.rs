//! A bare UDP forwarder: what comes to one socket goes to every target, runs of datagrams in as GRO and out as GSO.
//!
//! ```text
//! turn: recvmmsg / ring -> for each run: copy once per target -> sends -> next turn
//! ```
//! No SFU on this kernel can add less latency, and none that copies per receiver can cost less without encryption.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pop_uring::{Backend, BackendKind, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, bind_udp, thread_cpu_time};
use serde_json::{Value, json};

use crate::fanout::parse_duration;
use crate::floor::pin_to;
use crate::floors::parse_backend;
use crate::groups::no_wakes;
use crate::{make_folder_of, write_json};

/// Sleeps between two looks at whether to stop.
const WAIT: Duration = Duration::from_millis(20);

/// Queue of the socket in each direction, in bytes: as a packet worker's.
const QUEUE_LEN: usize = 25 << 20;

/// Segments of one send: the kernel's limit before 6.9. A longer run leaves as several.
const SEGMENTS_MAX: usize = 64;

/// `pop-bench forward`
#[derive(Debug, clap::Args)]
pub(crate) struct ForwardArgs {
    /// Where datagrams come in; port 0 takes any, which the ready line on stdout tells.
    #[arg(long)]
    listen: SocketAddr,
    /// Where each goes; may be given many times.
    #[arg(long = "to", required = true, value_delimiter = ',')]
    to: Vec<SocketAddr>,
    /// Core to pin to.
    #[arg(long)]
    core: Option<usize>,
    /// Which system calls carry them: mmsg or io_uring.
    #[arg(long, default_value = "mmsg", value_parser = parse_backend)]
    backend: BackendKind,
    /// End after this long and tell the counters; default: never.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Write the counters to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a forwarder did, read by others while it runs.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// It ends soon after this is set.
    pub(crate) stop: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Counts {
    /// Datagrams that it sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// CPU time of its thread, as of its last turn.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    fn report(&self) -> Value {
        let (received, sent, cpu_ns) = (self.received.load(Ordering::Relaxed), self.sent(), self.cpu_ns());
        json!({"received": received, "sent": sent, "cpu_ns": cpu_ns, "cpu_ns_per_packet": cpu_ns as f64 / sent.max(1) as f64})
    }
}

/// Runs it as a program. The error is a sentence.
pub(crate) fn run(args: &ForwardArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    if let Some(core) = args.core {
        pin_to(core)?;
    }
    let socket = bind_udp(args.listen, QUEUE_LEN, QUEUE_LEN).map_err(|e| format!("{}: {e}", args.listen))?;
    let listen = socket.local_addr().map_err(|e| format!("{}: {e}", args.listen))?;
    println!("{}", json!({"ready": {"listen": listen, "to": args.to, "backend": args.backend.name()}}));
    let counts = Counts::default();
    forward(socket, &args.to, args.backend, &counts, args.duration)?;
    write_json(args.json.as_deref(), &counts.report().to_string())
}

/// Forwards until it is told to stop or the time is over.
pub(crate) fn forward(
    socket: UdpSocket,
    to: &[SocketAddr],
    backend: BackendKind,
    counts: &Counts,
    duration: Option<Duration>,
) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("forwarder: {e}");
    let wakes = no_wakes().map_err(fail)?;
    let config = IoConfig { recv_buffers: 64, ..IoConfig::default() };
    match backend {
        BackendKind::Uring => {
            let backend = UringBackend::new(vec![socket], wakes, &config).map_err(fail)?;
            Forwarder { backend, to, counts }.run(duration)
        }
        BackendKind::Mmsg => {
            let backend = MmsgBackend::new(vec![socket], wakes, &config).map_err(fail)?;
            Forwarder { backend, to, counts }.run(duration)
        }
    }
    .map_err(fail)
}

struct Forwarder<'a, B> {
    backend: B,
    to: &'a [SocketAddr],
    counts: &'a Counts,
}

impl<B: Backend> Forwarder<'_, B> {
    fn run(mut self, duration: Option<Duration>) -> std::io::Result<()> {
        let (start, mut run) = (Instant::now(), Vec::with_capacity(1 << 16));
        while !self.counts.stop.load(Ordering::Relaxed) && duration.is_none_or(|duration| start.elapsed() < duration) {
            self.backend.turn(Wait::AtMost(WAIT))?;
            while let Some(received) = self.backend.receive() {
                let segment = received.segment;
                // Its buffer is the back end's, and so are the slots: one copy more than needed, for all targets together.
                run.clear();
                run.extend_from_slice(received.bytes);
                self.counts.received.fetch_add(run.len().div_ceil(segment) as u64, Ordering::Relaxed);
                for part in run.chunks(segment * SEGMENTS_MAX) {
                    self.send_to_all(part, segment)?;
                }
            }
            self.counts.cpu_ns.store(thread_cpu_time().as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn send_to_all(&mut self, part: &[u8], segment: usize) -> std::io::Result<()> {
        let packets = part.len().div_ceil(segment);
        let segment = (packets > 1).then_some(segment as u16);
        for &to in self.to {
            let id = loop {
                match self.backend.acquire() {
                    Some(id) => break id,
                    None => self.backend.turn(Wait::AtMost(WAIT))?,
                }
            };
            self.backend.train(&id)[..part.len()].copy_from_slice(part);
            self.backend.send(id, Transmit { socket: 0, to, len: part.len(), segment });
        }
        self.counts.sent.fetch_add((packets * self.to.len()) as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_goes_to_every_target_whole() {
        let bind = || std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let (source, sinks) = (bind(), [bind(), bind()]);
        let to: Vec<SocketAddr> = sinks.iter().map(|sink| sink.local_addr().expect("bound")).collect();
        let socket = bind_udp("127.0.0.1:0".parse().expect("an address"), 1 << 20, 1 << 20).expect("loopback");
        let listen = socket.local_addr().expect("bound");
        let counts = Counts::default();
        std::thread::scope(|scope| {
            let forwarder = scope.spawn(|| forward(socket, &to, BackendKind::Mmsg, &counts, None));
            for text in ["one", "two"] {
                source.send_to(text.as_bytes(), listen).expect("it leaves");
                for sink in &sinks {
                    sink.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
                    let mut bytes = [0; 8];
                    let len = sink.recv(&mut bytes).expect("it arrives");
                    assert_eq!(&bytes[..len], text.as_bytes());
                }
            }
            counts.stop.store(true, Ordering::Relaxed);
            forwarder.join().expect("no panic").expect("no error");
        });
        assert_eq!((counts.report()["received"].as_u64(), counts.sent()), (Some(2), 4));
    }
}
