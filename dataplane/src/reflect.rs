//! The reflectors of the service thread: STUN Binding and STAMP, answered with the kernel's receive timestamps.
//!
//! ```text
//! socket -> receipt (bytes, time, TTL, address) -> Reflector -> reply -> socket
//!      64 datagrams at most, then a pause of 1 ms: what a flood sends beyond that ends in the socket's small queue
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pop_proto::probe::{HashSeed, ProbeRates, ProbeRequest, ProbeResult, Reflector, ReflectorKind};
use pop_proto::wire::stamp::{ErrorEstimate, NtpTime, REQUEST_LEN_MAX, Reflection};
use pop_schemas::Time;
use pop_uring::{AsyncStampedSocket, ClockState, StampedReceipt, StampedSocket, clock_state};

use crate::clock::Clock;

/// Kernel queue of a reflector: about 300 requests, 5 ms of what is read at most. A longer one would only add to what STUN measures.
const SOCKET_BUFFER_LEN: usize = 256 << 10;

/// Datagrams that are read in one go.
const BATCH: usize = 64;

/// After a full batch: a flood gets 64,000 datagrams a second read, a tenth of a core.
const PAUSE: Duration = Duration::from_millis(1);

/// The clock's error is asked for again after this.
const ERROR_AGE_MAX: Duration = Duration::from_secs(1);

/// What a request without a TTL beside it is said to have come with (RFC 8762 section 4.3.1: 255 where it cannot be told).
const TTL_UNKNOWN: u8 = 255;

/// Rates that can change while reflectors run; shared by all of them, counted by each alone.
#[derive(Debug)]
pub struct SharedRates {
    per_prefix: AtomicU32,
    total: AtomicU32,
}

impl SharedRates {
    /// Starts with these.
    pub fn new(rates: ProbeRates) -> Arc<SharedRates> {
        Arc::new(SharedRates { per_prefix: rates.per_prefix.into(), total: rates.total.into() })
    }

    /// Changes them from the next batch on.
    pub fn set(&self, rates: ProbeRates) {
        self.per_prefix.store(rates.per_prefix, Ordering::Relaxed);
        self.total.store(rates.total, Ordering::Relaxed);
    }

    fn load(&self) -> ProbeRates {
        ProbeRates { per_prefix: self.per_prefix.load(Ordering::Relaxed), total: self.total.load(Ordering::Relaxed) }
    }
}

/// What the reflectors of one kind did with requests, by [`ProbeResult`].
#[derive(Debug, Default)]
pub struct ReflectCounters {
    requests: [AtomicU64; ProbeResult::ALL.len()],
}

impl ReflectCounters {
    /// Requests that ended so.
    pub fn requests(&self, result: ProbeResult) -> u64 {
        self.requests[result as usize].load(Ordering::Relaxed)
    }

    fn count(&self, result: ProbeResult) {
        self.requests[result as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A bound reflector that does not answer yet; [`crate::Service::reflect`] starts it.
#[derive(Debug)]
pub struct ReflectSocket {
    kind: ReflectorKind,
    socket: StampedSocket,
}

impl ReflectSocket {
    /// Binds `address`.
    ///
    /// # Errors
    ///
    /// What the kernel says: taken, not allowed, no such address.
    pub fn bind(kind: ReflectorKind, address: SocketAddr) -> io::Result<ReflectSocket> {
        Ok(ReflectSocket { kind, socket: StampedSocket::bind(address, SOCKET_BUFFER_LEN)? })
    }

    /// What it answers.
    pub fn kind(&self) -> ReflectorKind {
        self.kind
    }

    /// Where, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }
}

/// A reflector on its way to the service thread.
#[derive(Debug)]
pub struct Reflect {
    /// Its socket.
    pub socket: ReflectSocket,
    /// What it answers.
    pub rates: Arc<SharedRates>,
    /// What it counts into.
    pub counters: Arc<ReflectCounters>,
    /// Secret numbers of its rates' table.
    pub seed: HashSeed,
}

impl Reflect {
    /// Answers until the runtime ends.
    pub(crate) async fn serve(self, clock: Clock) -> io::Result<()> {
        let ReflectSocket { kind, socket } = self.socket;
        let local_port = socket.local_addr().port();
        let socket = AsyncStampedSocket::new(socket)?;
        let mut serving = Serving {
            clock,
            reflector: Reflector::new(kind, self.seed),
            rates: self.rates,
            counters: self.counters,
            local_port,
            error: own_error(),
            error_at: clock.now(),
        };
        // One byte more than is answered, so that a longer request is seen as one.
        let (mut request, mut reply) = ([0; REQUEST_LEN_MAX + 1], [0; REQUEST_LEN_MAX]);
        loop {
            socket.readable().await?;
            let mut read = 0;
            while read < BATCH {
                read += 1;
                match socket.receive_now(&mut request) {
                    Ok(receipt) => {
                        if let Some(len) = serving.handle(&receipt, &request, &mut reply) {
                            // A full queue or no route: the client counts a loss, as on any other path.
                            let _ = socket.send(&reply[..len], receipt.from, receipt.to);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier reply; the socket is well.
                    Err(_) => {}
                }
            }
            if read == BATCH {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct Serving {
    clock: Clock,
    reflector: Reflector,
    rates: Arc<SharedRates>,
    counters: Arc<ReflectCounters>,
    local_port: u16,
    error: ErrorEstimate,
    error_at: Time,
}

impl Serving {
    /// Writes the reply and returns its length, where there is one.
    fn handle(&mut self, receipt: &StampedReceipt, request: &[u8], reply: &mut [u8]) -> Option<usize> {
        let now = self.clock.now();
        if now.since(self.error_at) >= ERROR_AGE_MAX {
            (self.error, self.error_at) = (own_error(), now);
        }
        let transmitted = Clock::wall_now();
        let reflection = Reflection {
            received: NtpTime::from_unix(receipt.at.unwrap_or(transmitted)),
            transmitted: NtpTime::from_unix(transmitted),
            error: self.error,
            ttl: receipt.ttl.unwrap_or(TTL_UNKNOWN),
        };
        let request = ProbeRequest { from: receipt.from, local_port: self.local_port, bytes: &request[..receipt.len] };
        let handled = self.reflector.handle_request(now, &request, &reflection, self.rates.load(), reply);
        self.counters.count(handled.map_or_else(ProbeResult::of, |_| ProbeResult::Answered));
        handled.ok()
    }
}

/// The error of this host's timestamps, as its kernel knows it; 16 s, the kernel's own limit, where it does not say.
pub fn own_error() -> ErrorEstimate {
    match clock_state() {
        Ok(ClockState { synchronized, error_us }) => ErrorEstimate::new(synchronized, Duration::from_micros(error_us)),
        Err(_) => ErrorEstimate::new(false, Duration::from_secs(16)),
    }
}
