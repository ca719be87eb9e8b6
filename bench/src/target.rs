//! What stands between a generator and a sink: `pop` with RTP routes, a bare forwarder, whatever takes plain RTP, or nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use pop_dataplane::worker::SOCKET_BUFFER_LEN;
use pop_uring::{BackendKind, bind_udp};
use serde_json::{Value, json};

use crate::fanout::server::{Capacity, Place, Server, sum_metric};
use crate::fanout::{machine, program_beside};
use crate::floor::pin_to;
use crate::forward::{self, Counts};
use crate::machine::{Machine, Workers};
use crate::network::Network;
use crate::random::random_hex;
use crate::sink::{Sink, Tally};

/// The room that the routes meet in.
const ROOM: &str = "bench";

/// Which way packets take through `pop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RouteKind {
    /// A route into a room and one out of it: the way of every track.
    Room,
    /// One route that forwards, with nobody in between.
    Forward,
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Measure a target that runs already: where it takes plain RTP. It sends to --listen.
    #[arg(long, requires = "listen", conflicts_with_all = ["pop", "route"])]
    to: Option<SocketAddr>,
    /// Where packets come back; default: a free port on loopback.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// Which way packets take through it.
    #[arg(long, value_enum, default_value_t = RouteKind::Room)]
    route: RouteKind,
    /// Core of the packet worker, and of the bare forwarder.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// Core of generator and sink.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The server's back end: auto, io_uring or mmsg.
    #[arg(long, default_value = "auto")]
    backend: String,
}

impl TargetArgs {
    /// The sink of all trials. The error is a sentence.
    pub(crate) fn bind_sink(&self) -> Result<Sink, String> {
        Sink::bind(self.listen.unwrap_or_else(|| self.any_port()), Tally::new(Some(0), false))
    }

    /// Where generators bind.
    pub(crate) fn any_port(&self) -> SocketAddr {
        let any = self.to.map(|to| if to.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0u16; 8], 0)) });
        any.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    /// What was asked for, sending to `sink`; then the calling thread is the load's.
    pub(crate) fn open(&self, sink: SocketAddr, streams: u32) -> Result<Target, String> {
        let target = match self.to {
            Some(to) => Target::Other(to),
            None => {
                if self.route == RouteKind::Room && streams > 1 {
                    return Err("a room's track is one stream: --streams 1, or --route forward".to_owned());
                }
                let program = self.pop.clone().map_or_else(program_beside, Ok)?;
                start_pop(&program, self, sink)?
            }
        };
        // Only now: a child inherits the cores of its parent.
        pin_to(self.load_core)?;
        Ok(target)
    }

    /// The bare forwarder that stands beside it, on the same core.
    pub(crate) fn open_forwarder(&self, sink: SocketAddr) -> Result<Target, String> {
        Bare::start(self.any_port(), sink, self.server_core).map(Target::Forwarder)
    }

    /// For a report.
    pub(crate) fn describe(&self) -> Value {
        json!({
            "target": self.to.map_or_else(|| "pop".to_owned(), |to| to.to_string()),
            "route": self.to.is_none().then_some(match self.route { RouteKind::Room => "room", RouteKind::Forward => "forward" }),
            "server_core": self.server_core, "load_core": self.load_core, "network": "loopback",
        })
    }
}

/// Something that packets go through.
pub(crate) enum Target {
    /// A node of ours that was started here, and the address of its route.
    Pop(Box<Server>, Workers, SocketAddr),
    /// The bare forwarder.
    Forwarder(Bare),
    /// The sink itself: what generator and sink cost alone.
    Nothing(SocketAddr),
    /// A target that runs already.
    Other(SocketAddr),
}

impl Target {
    /// Where packets are sent.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Target::Pop(_, _, address) | Target::Nothing(address) | Target::Other(address) => *address,
            Target::Forwarder(forwarder) => forwarder.address,
        }
    }

    /// In reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Target::Pop(..) => "pop",
            Target::Forwarder(_) => "forwarder",
            Target::Nothing(_) => "nothing",
            Target::Other(_) => "target",
        }
    }

    /// CPU nanoseconds of its packet threads, where they can be read.
    pub(crate) fn cpu_ns(&self) -> Result<Option<u64>, String> {
        match self {
            Target::Pop(_, workers, _) => workers.cpu_ns().map(Some),
            Target::Forwarder(forwarder) => Ok(Some(forwarder.counts.cpu_ns())),
            Target::Nothing(_) | Target::Other(_) => Ok(None),
        }
    }

    /// Heap allocations of its packet threads since its start, where it tells them.
    pub(crate) fn allocations(&self) -> Option<f64> {
        match self {
            Target::Pop(server, ..) => sum_metric(&server.metrics()?, "pop_worker_allocations_total"),
            _ => None,
        }
    }

    /// Drops by reason, where it tells them.
    pub(crate) fn drops(&self) -> Value {
        match self {
            Target::Pop(server, ..) => server.drops(),
            _ => Value::Null,
        }
    }

    /// This machine, and what the target says about itself.
    pub(crate) fn machine(&self) -> Machine {
        match self {
            Target::Pop(server, ..) => machine(server),
            _ => Machine::describe("mmsg", None),
        }
    }
}

/// The bare forwarder as a thread; it ends with this.
pub(crate) struct Bare {
    address: SocketAddr,
    counts: Arc<Counts>,
    thread: Option<thread::JoinHandle<Result<(), String>>>,
}

impl Bare {
    fn start(listen: SocketAddr, to: SocketAddr, core: usize) -> Result<Bare, String> {
        let fail = |e: std::io::Error| format!("the forwarder on {listen}: {e}");
        let socket = bind_udp(listen, SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN).map_err(fail)?;
        let address = socket.local_addr().map_err(fail)?;
        let counts = Arc::<Counts>::default();
        let own = counts.clone();
        let thread = thread::spawn(move || {
            pin_to(core)?;
            forward::forward(socket, &[to], BackendKind::Mmsg, &own, None)
        });
        Ok(Bare { address, counts, thread: Some(thread) })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn start_pop(program: &Path, args: &TargetArgs, sink: SocketAddr) -> Result<Target, String> {
    let key = ("bench", random_hex::<20>());
    let place = Place { cores: &[args.server_core], network: &Network::open(true) };
    let server = Server::start(program, place, Capacity::default(), &args.backend, (key.0, &key.1))?;
    let add = |words: &[String]| add_route(program, &server, words);
    let peer = format!("peer={sink}");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let address = match args.route {
        RouteKind::Forward => add(&words(&["direction=in", "codec=any", &format!("to={sink}")]))?,
        RouteKind::Room => {
            let room = format!("room={ROOM}");
            add(&words(&["direction=out", &room, "codec=VP8", "rtcp=off", &peer]))?;
            add(&words(&["direction=in", &room, "codec=VP8", "rtcp=off"]))?
        }
    };
    let address = address.ok_or("the route into the node has no address")?;
    let workers = Workers::find(server.pid)?;
    Ok(Target::Pop(Box::new(server), workers, address))
}

/// `pop rtp add`, as an operator does it: where the route receives.
fn add_route(program: &Path, server: &Server, words: &[String]) -> Result<Option<SocketAddr>, String> {
    let socket = server.socket().ok_or("only a node that was started here gets routes")?;
    let mut command = Command::new(program);
    command.args(["rtp", "add"]).args(words).arg("--socket").arg(socket).arg("--json").stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("{}: {e}", program.display()))?;
    if !output.status.success() {
        return Err(format!("pop rtp add {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()));
    }
    let route: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("pop rtp add: {e}"))?;
    Ok(route["address"].as_str().and_then(|address| address.parse().ok()))
}
