//! `pop-bench forward`: the bare UDP forwarder, the least that a packet costs which comes in and goes out again.
//!
//! ```text
//! recvmmsg (GRO) -> copy -> sendmmsg (GSO)      asleep while nothing comes, as a worker is
//! ```
//! It reads no byte of a packet. Latency and CPU of the appliance are told beside its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use pop_uring::{Backend, BackendKind, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, WakeReceiver, Waker, bind_udp, wake_pair};

use crate::floor::pin_to;
use crate::machine::cpu_ns;

/// Queue of the socket in each direction, in bytes: a worker's own.
const QUEUE_LEN: usize = pop_dataplane::worker::SOCKET_BUFFER_LEN;

/// Bytes of the longest run of datagrams.
const RUN_LEN_MAX: usize = 65_536;

/// What to forward.
#[derive(Debug, clap::Args)]
pub(crate) struct ForwardArgs {
    /// Receive here: ADDRESS:PORT.
    #[arg(long)]
    listen: SocketAddr,
    /// Send there: ADDRESS:PORT.
    #[arg(long)]
    to: SocketAddr,
    /// Core of the forwarder.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Which system calls carry the packets: mmsg or io_uring.
    #[arg(long, default_value = "mmsg", value_parser = crate::parse_backend)]
    backend: BackendKind,
}

/// Forwards until the process is ended, or the socket fails.
pub(crate) fn run(args: &ForwardArgs) -> Result<(), String> {
    let forwarder = Forwarder::start(args.listen, args.to, args.core, args.backend)?;
    eprintln!("forward  {} to {}, on core {}", forwarder.address, args.to, args.core);
    forwarder.join()
}

/// A thread that forwards; it ends with this.
pub(crate) struct Forwarder {
    /// Where it receives.
    pub(crate) address: SocketAddr,
    schedstat: String,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<thread::JoinHandle<Result<(), String>>>,
}

impl Forwarder {
    /// Starts the thread and binds the socket. The error is a sentence.
    pub(crate) fn start(listen: SocketAddr, to: SocketAddr, core: usize, kind: BackendKind) -> Result<Forwarder, String> {
        let fail = move |e: std::io::Error| format!("the forwarder on {listen}: {e}");
        let (waker, wakes) = wake_pair().map_err(fail)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let (prepared, outcome) = mpsc::channel();
        let thread = thread::spawn(move || {
            pin_to(core)?;
            let socket = bind_udp(listen, QUEUE_LEN, QUEUE_LEN).map_err(fail)?;
            let address = socket.local_addr().map_err(fail)?;
            // "/proc/thread-self" is PID/task/TID.
            let own = std::fs::read_link("/proc/thread-self").map_err(fail)?;
            let _ = prepared.send((address, format!("/proc/{}/schedstat", own.display())));
            match kind {
                BackendKind::Uring => forward(make(UringBackend::new, socket, wakes).map_err(fail)?, to, &stopped),
                BackendKind::Mmsg => forward(make(MmsgBackend::new, socket, wakes).map_err(fail)?, to, &stopped),
            }
            .map_err(fail)
        });
        match outcome.recv() {
            Ok((address, schedstat)) => Ok(Forwarder { address, schedstat, stop, waker, thread: Some(thread) }),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| "the forwarder ended at once".to_owned())),
        }
    }

    /// CPU nanoseconds of the thread.
    pub(crate) fn cpu_ns(&self) -> Result<u64, String> {
        cpu_ns(&self.schedstat)
    }

    /// Waits for its end, which only an error is.
    fn join(mut self) -> Result<(), String> {
        self.thread.take().map_or(Ok(()), join)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        let _ = self.thread.take().map(join);
    }
}

fn join(thread: thread::JoinHandle<Result<(), String>>) -> Result<(), String> {
    thread.join().map_err(|_| "the forwarder panicked".to_owned())?
}

fn make<B>(
    new: impl FnOnce(Vec<std::net::UdpSocket>, WakeReceiver, &IoConfig) -> std::io::Result<B>,
    socket: std::net::UdpSocket,
    wakes: WakeReceiver,
) -> std::io::Result<B> {
    new(vec![socket], wakes, &IoConfig { train_len: RUN_LEN_MAX as u32, sockets: 1, ..IoConfig::default() })
}

fn forward<B: Backend>(mut backend: B, to: SocketAddr, stopped: &AtomicBool) -> std::io::Result<()> {
    // The received buffer is lent by the back end until its slot is asked for: the one copy more that safe code costs here.
    let mut run = vec![0; RUN_LEN_MAX].into_boxed_slice();
    while !stopped.load(Ordering::Relaxed) {
        backend.turn(Wait::UntilWoken)?;
        while let Some(received) = backend.receive() {
            let (len, segment) = (received.bytes.len(), received.segment);
            run[..len].copy_from_slice(received.bytes);
            // Without a slot the socket is full: what a bare forwarder cannot send it loses.
            let Some(id) = backend.acquire() else { continue };
            backend.train(&id)[..len].copy_from_slice(&run[..len]);
            backend.send(id, Transmit { socket: 0, to, len, segment: Some(segment as u16) });
        }
    }
    Ok(())
}
