//! The service thread: low-rate files and reflectors on a tokio-uring runtime, so that no worker and no control task ever waits for a
//! disk or for strangers.
//!
//! ```text
//! worker -> TapSender (bounded queue, wake) -> service thread -> pcapng blocks -> io_uring write
//! 3478, 862 -> reflect, a task per socket
//! ```

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use pop_proto::history::SLOT_LEN;
use pop_schemas::Time;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::Clock;
use crate::core::Tapped;
use crate::limits::TAP_QUEUE_LEN;
use crate::pcapng;
use crate::reflect::Reflect;

/// Bytes that are written at once.
const WRITE_LEN: usize = 256 << 10;

/// Who captured may read what people said, and nobody else.
const FILE_MODE: u32 = 0o600;

/// A capture's packets are on disk after this at the latest.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// A tapped packet on its way; as large as a slot, so that the worker copies and never allocates.
struct TapPacket {
    tap: u32,
    at: Time,
    len: u16,
    bytes: [u8; SLOT_LEN],
}

/// A worker's end of the tap queue.
#[derive(Clone)]
pub struct TapSender {
    queue: Arc<ArrayQueue<TapPacket>>,
    wake: Arc<Notify>,
    /// Packets that found the queue full, of all captures.
    dropped: Arc<AtomicU64>,
}

impl TapSender {
    fn new() -> TapSender {
        TapSender { queue: Arc::new(ArrayQueue::new(TAP_QUEUE_LEN)), wake: Arc::new(Notify::new()), dropped: Arc::default() }
    }

    /// Tells the service thread that the queue has something.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Copies a packet into the queue; false when it is full. [`TapSender::wake`] comes after the last of a turn.
    pub fn send(&self, tapped: &Tapped<'_>) -> bool {
        let mut packet = TapPacket { tap: tapped.tap, at: tapped.at, len: tapped.packet.len() as u16, bytes: [0; SLOT_LEN] };
        packet.bytes[..tapped.packet.len()].copy_from_slice(tapped.packet);
        let sent = self.queue.push(packet).is_ok();
        self.dropped.fetch_add(u64::from(!sent), Ordering::Relaxed);
        sent
    }
}

/// How a capture ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureEnd {
    /// Packets written.
    pub packets: u64,
    /// Packets that any capture lost meanwhile because the disk did not keep up.
    pub dropped: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

enum Request {
    Start { tap: u32, path: PathBuf, reply: oneshot::Sender<io::Result<()>> },
    Stop { tap: u32, reply: oneshot::Sender<io::Result<CaptureEnd>> },
    Reflect(Box<Reflect>),
}

/// The handle of the service thread. It ends when the last handle is dropped, its files complete.
#[derive(Clone)]
pub struct Service {
    requests: mpsc::UnboundedSender<Request>,
    taps: TapSender,
}

impl Service {
    /// Starts the thread `pop-service`.
    ///
    /// # Errors
    ///
    /// No thread could be made.
    pub fn start(clock: Clock) -> io::Result<Service> {
        let (requests, received) = mpsc::unbounded_channel();
        let taps = TapSender::new();
        let served = taps.clone();
        // Made on its thread: a ring's files cannot leave it.
        let run = move || Serving { requests: received, taps: served, clock, captures: HashMap::new() }.run();
        std::thread::Builder::new().name("pop-service".into()).spawn(run)?;
        Ok(Service { requests, taps })
    }

    /// The end that workers write taps into.
    pub fn taps(&self) -> TapSender {
        self.taps.clone()
    }

    /// Creates `path` (it must not exist; only this user may read it) and writes the packets of `tap` into it until [`Service::stop_capture`].
    ///
    /// # Errors
    ///
    /// What the file system says, or a tap number in use.
    pub async fn start_capture(&self, tap: u32, path: PathBuf) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Start { tap, path, reply }, answer).await
    }

    /// Writes what is queued and closes the file.
    ///
    /// # Errors
    ///
    /// The first write that failed, or an unknown tap number.
    pub async fn stop_capture(&self, tap: u32) -> io::Result<CaptureEnd> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Stop { tap, reply }, answer).await
    }

    /// Answers on a reflector's socket until the thread ends.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn reflect(&self, reflect: Reflect) -> io::Result<()> {
        self.requests.send(Request::Reflect(Box::new(reflect))).map_err(|_| io::Error::other("the service thread has ended"))
    }

    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
        let gone = || io::Error::other("the service thread has ended");
        self.requests.send(request).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A file to append to: through the ring, or by plain writes where the kernel refuses the ring.
enum Sink {
    Uring(tokio_uring::fs::File),
    Plain(std::fs::File),
}

impl Sink {
    async fn append(&mut self, bytes: Vec<u8>, at: u64) -> (io::Result<()>, Vec<u8>) {
        match self {
            Sink::Uring(file) => file.write_all_at(bytes, at).await,
            Sink::Plain(file) => (io::Write::write_all(file, &bytes), bytes),
        }
    }

    async fn close(self) -> io::Result<()> {
        match self {
            Sink::Uring(file) => {
                file.sync_data().await?;
                file.close().await
            }
            Sink::Plain(file) => file.sync_data(),
        }
    }
}

struct Capture {
    sink: Sink,
    dropped_before: u64,
    pending: Vec<u8>,
    end: CaptureEnd,
    failed: Option<io::Error>,
}

impl Capture {
    async fn flush(&mut self) {
        if self.pending.is_empty() || self.failed.is_some() {
            self.pending.clear();
            return;
        }
        let bytes = std::mem::take(&mut self.pending);
        let len = bytes.len() as u64;
        let (result, mut bytes) = self.sink.append(bytes, self.end.bytes).await;
        bytes.clear();
        self.pending = bytes;
        match result {
            Ok(()) => self.end.bytes += len,
            Err(error) => {
                tracing::warn!(%error, "a capture cannot be written; its packets are dropped from here on");
                self.failed = Some(error);
            }
        }
    }
}

struct Serving {
    requests: mpsc::UnboundedReceiver<Request>,
    taps: TapSender,
    clock: Clock,
    captures: HashMap<u32, Capture>,
}

impl Serving {
    fn run(self) {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(self.serve(true)),
            Err(error) => {
                tracing::warn!(%error, "io_uring is refused here; the service thread uses plain system calls");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("the kernel gives an epoll set").block_on(self.serve(false));
            }
        }
    }

    async fn serve(mut self, uring: bool) {
        let wake = Arc::clone(&self.taps.wake);
        loop {
            let tick = async {
                match self.captures.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(FLUSH_INTERVAL).await,
                }
            };
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.handle(request, uring).await,
                    None => break,
                },
                () = wake.notified() => self.take_packets(WRITE_LEN).await,
                () = tick => self.take_packets(1).await,
            }
        }
        self.take_packets(1).await;
        for (_, capture) in self.captures {
            finish(capture, &self.clock, &self.taps).await.unwrap_or_default();
        }
    }

    /// Moves queued packets into their captures and writes those that hold at least `flush_len` bytes.
    async fn take_packets(&mut self, flush_len: usize) {
        // Bounded, so that a stop is heard although packets come as fast as the disk takes them.
        for _ in 0..TAP_QUEUE_LEN {
            let Some(packet) = self.taps.queue.pop() else { break };
            let Some(capture) = self.captures.get_mut(&packet.tap) else { continue };
            pcapng::write_packet(&mut capture.pending, self.clock.wall(packet.at), &packet.bytes[..usize::from(packet.len)]);
            capture.end.packets += 1;
            if capture.pending.len() >= WRITE_LEN {
                capture.flush().await;
            }
        }
        for capture in self.captures.values_mut().filter(|c| c.pending.len() >= flush_len) {
            capture.flush().await;
        }
    }

    // A caller that gave up waiting does not hear the answer; nothing else hangs on it.
    async fn handle(&mut self, request: Request, uring: bool) {
        match request {
            Request::Start { tap, path, reply } => {
                let _ = reply.send(self.start(tap, path, uring).await);
            }
            Request::Stop { tap, reply } => {
                self.take_packets(1).await;
                let end = match self.captures.remove(&tap) {
                    Some(capture) => finish(capture, &self.clock, &self.taps).await,
                    None => Err(io::Error::new(io::ErrorKind::NotFound, "no such capture")),
                };
                let _ = reply.send(end);
            }
            Request::Reflect(reflect) => {
                let (kind, address, clock) = (reflect.socket.kind().name(), reflect.socket.local_addr(), self.clock);
                tokio::spawn(async move {
                    if let Err(error) = reflect.serve(clock).await {
                        tracing::error!(kind, %address, %error, "a reflector has ended: probes there are not answered");
                    }
                });
            }
        }
    }

    async fn start(&mut self, tap: u32, path: PathBuf, uring: bool) -> io::Result<()> {
        if self.captures.contains_key(&tap) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the capture's number is in use"));
        }
        let sink = match uring {
            true => Sink::Uring(tokio_uring::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path).await?),
            false => Sink::Plain(std::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?),
        };
        let mut pending = Vec::with_capacity(2 * WRITE_LEN);
        pcapng::write_head(&mut pending);
        let dropped_before = self.taps.dropped.load(Ordering::Relaxed);
        let mut capture = Capture { sink, dropped_before, pending, end: CaptureEnd::default(), failed: None };
        capture.flush().await;
        match capture.failed {
            Some(error) => Err(error),
            None => {
                self.captures.insert(tap, capture);
                Ok(())
            }
        }
    }
}

async fn finish(mut capture: Capture, clock: &Clock, taps: &TapSender) -> io::Result<CaptureEnd> {
    capture.end.dropped = taps.dropped.load(Ordering::Relaxed) - capture.dropped_before;
    pcapng::write_statistics(&mut capture.pending, clock.wall(clock.now()), capture.end.packets, capture.end.dropped);
    capture.flush().await;
    let closed = capture.sink.close().await;
    match capture.failed {
        Some(error) => Err(error),
        None => closed.map(|()| capture.end),
    }
}
