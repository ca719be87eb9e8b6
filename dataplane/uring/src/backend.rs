//! What a worker asks of the kernel, whichever system calls carry it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

/// Receives datagrams and sends trains for one worker thread, with memory that was taken at start.
///
/// A back end is made on the thread that drives it and never leaves it: the ring accepts one issuer only.
pub trait Backend {
    /// Which kind this is.
    const KIND: BackendKind;
    /// Its name in logs, metrics and the config: `io_uring` or `mmsg`.
    const NAME: &'static str = Self::KIND.name();

    /// Submits queued sends, reaps completions, then waits as `wait` says for a datagram or a wake-up.
    ///
    /// It may return early with nothing (a signal, a send slot that came free), and does not wait at all while datagrams of
    /// the last turn are still there to [`receive`](Self::receive). After every turn the caller looks into all its queues.
    ///
    /// # Errors
    ///
    /// Only what ends the worker: a descriptor or an operation that the kernel no longer takes. What a peer can cause (ICMP
    /// errors, full queues, refused sends) is counted in [`IoStats`] and does not end reception.
    fn turn(&mut self, wait: Wait) -> io::Result<()>;

    /// The next datagram (or GRO run of datagrams) of this turn. Its buffer goes back to the kernel at the next call of
    /// `receive` or `turn`.
    fn receive(&mut self) -> Option<Received<'_>>;

    /// Takes a send slot; `None` while all are in flight.
    fn acquire(&mut self) -> Option<TrainId>;

    /// The slot's memory, [`IoConfig::train_len`] bytes, to be filled in place. It holds what was written into it last.
    fn train(&mut self, id: &TrainId) -> &mut [u8];

    /// Queues the first `transmit.len` bytes of the slot; they leave with the next [`turn`](Self::turn).
    fn send(&mut self, id: TrainId, transmit: Transmit);

    /// Gives a slot back unsent.
    fn release(&mut self, id: TrainId);

    /// Serves one more socket from the next turn on, at a free index below [`IoConfig::sockets`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an index that is taken or out of room; what the kernel refuses of the socket.
    fn add_socket(&mut self, index: u16, socket: UdpSocket) -> io::Result<()>;

    /// Stops serving a socket and lets go of it; the kernel closes it within the next turn.
    ///
    /// What was queued for it before still leaves if the socket takes it at once. What of it was received and not read yet is
    /// dropped and counted ([`IoStats::late`]), also when another socket has the index by then.
    ///
    /// # Errors
    ///
    /// What the kernel refuses: the socket is out all the same, but may keep its port until another has the index. An index without
    /// a socket is none.
    fn remove_socket(&mut self, index: u16) -> io::Result<()>;

    /// Ends every wait also when `fd` is readable. There is one; it stays.
    ///
    /// # Errors
    ///
    /// The kernel does not take it.
    fn watch(&mut self, fd: OwnedFd) -> io::Result<()>;

    /// Whether the last turn found the watched descriptor readable. It is looked at again in the next turn.
    fn watched_is_ready(&self) -> bool;

    /// Why the kernel does not busy-poll although [`IoConfig::busy_poll`] asks for it. Everything else works without.
    fn busy_poll_refusal(&self) -> Option<&io::Error>;

    /// Counters since the start.
    fn stats(&self) -> IoStats;
}

/// How long a turn may sleep in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: take what is there.
    No,
    /// Until a datagram or a wake-up comes, but at most this long.
    AtMost(Duration),
    /// Until a datagram or a wake-up comes.
    UntilWoken,
}

impl Wait {
    /// Whether this never sleeps.
    pub const fn is_no(self) -> bool {
        match self {
            Wait::No => true,
            Wait::AtMost(duration) => duration.is_zero(),
            Wait::UntilWoken => false,
        }
    }
}

/// What a back end needs of memory. Every count is bounded and all of it is taken at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoConfig {
    /// Receive buffers, rounded up to a power of two: what may arrive between two turns without `receive_overflows`.
    pub recv_buffers: u16,
    /// Payload room of one receive buffer, in bytes; the back end adds its own header. 65,536 with GRO, 2,048 without.
    pub recv_buffer_len: u32,
    /// Send slots: trains filled or in flight at one time.
    pub trains: u16,
    /// Bytes of one send slot. A UDP payload, GSO or not, ends at 65,507 over IPv4.
    pub train_len: u32,
    /// Lets the kernel hand over runs of equal datagrams of one sender in one buffer (`UDP_GRO`).
    pub gro: bool,
    /// Room for sockets: those of the start and those that may be added.
    pub sockets: u16,
    /// How long the kernel is asked to poll the network card in the caller's thread before it sleeps (NAPI busy poll); zero: not at
    /// all. It has nothing to poll for loopback.
    pub busy_poll: Duration,
}

impl IoConfig {
    /// Receive buffers and send slots that one back end may have at most. The kernel's buffer ring ends at 32,768; a worker
    /// that needs more than this is late, not short of buffers.
    pub const COUNT_MAX: u16 = 4_096;

    /// Sockets that one back end may have at most: the fallback polls every one in each turn.
    pub const SOCKETS_MAX: u16 = 1_024;

    /// Bytes of buffers that a back end takes at start. The kernel backs only pages that were touched.
    pub const fn memory_len(&self) -> usize {
        let recv = stride(self.recv_buffer_len as usize + RECV_HEADER_LEN) * self.recv_buffers.next_power_of_two() as usize;
        recv + stride(self.train_len as usize) * self.trains as usize
    }

    /// # Errors
    ///
    /// `InvalidInput` with the field that is out of its bounds.
    pub(crate) fn check(&self, sockets_len: usize) -> io::Result<()> {
        let refuse = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("IoConfig: {what}")));
        if !(1..=Self::SOCKETS_MAX).contains(&self.sockets) {
            return refuse("sockets is outside 1..=1024");
        }
        if !(1..=usize::from(self.sockets)).contains(&sockets_len) {
            return refuse("a back end starts with one socket at least, and with no more than it has room for (sockets)");
        }
        if !(1..=Self::COUNT_MAX).contains(&self.recv_buffers) {
            return refuse("recv_buffers is outside 1..=4096");
        }
        if !(1..=Self::COUNT_MAX).contains(&self.trains) {
            return refuse("trains is outside 1..=4096");
        }
        if !(512..=65_536).contains(&self.recv_buffer_len) {
            return refuse("recv_buffer_len is outside 512..=65536");
        }
        if !(512..=65_536).contains(&self.train_len) {
            return refuse("train_len is outside 512..=65536");
        }
        Ok(())
    }
}

impl Default for IoConfig {
    /// 256 buffers and 256 trains of 64 KiB with GRO, 32 MiB of address space, and room for 64 sockets.
    fn default() -> Self {
        Self {
            recv_buffers: 256,
            recv_buffer_len: 65_536,
            trains: 256,
            train_len: 65_000,
            gro: true,
            sockets: 64,
            busy_poll: Duration::ZERO,
        }
    }
}

/// Bytes in front of the payload of a receive buffer: `io_uring_recvmsg_out`, address, control messages.
pub(crate) const RECV_HEADER_LEN: usize = 16 + crate::address::NAME_LEN + crate::control::RECV_CONTROL_LEN;

/// The distance between two buffers: whole cache lines, so that no two share one.
pub(crate) const fn stride(len: usize) -> usize {
    len.next_multiple_of(64)
}

/// A received datagram, or a run of them from one sender to one socket.
#[derive(Debug)]
pub struct Received<'a> {
    /// Index of the socket.
    pub socket: u16,
    /// Who sent it, as the kernel says: over UDP, anybody.
    pub from: SocketAddr,
    /// Length of each datagram in `bytes`; the last may be shorter. At least 1, also for an empty datagram.
    pub segment: usize,
    /// The payload. To be changed in place as the caller likes.
    pub bytes: &'a mut [u8],
}

impl Received<'_> {
    /// The datagrams one by one, in order of arrival. An empty datagram is one empty slice.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let empty: Option<&mut [u8]> = if self.bytes.is_empty() { Some(&mut []) } else { None };
        self.bytes.chunks_mut(self.segment).chain(empty)
    }
}

/// Where a filled slot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Index of the socket that sends it. Without one, because it was removed, the train is counted in `sends_failed`.
    pub socket: u16,
    /// The receiver.
    pub to: SocketAddr,
    /// Bytes of the slot to send.
    pub len: usize,
    /// `Some(size)`: the bytes are datagrams of `size` bytes, the last may be shorter. At most 64 of them, or the kernel
    /// refuses the train and it leaves datagram by datagram (`gso_refused`). A way that refuses trains of fewer, too, gets no
    /// more of them for 3 s (`trains_split`).
    pub segment: Option<u16>,
}

/// A send slot that was acquired. It goes back by [`Backend::send`] or [`Backend::release`]; dropped, it is lost to the pool.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is neither sent nor released is lost to the pool"]
pub struct TrainId(pub(crate) u16);

/// Counters of one back end since its start. A GRO or GSO train counts once as a train and once per datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Datagrams handed to the caller.
    pub datagrams_received: u64,
    /// Payload bytes handed to the caller.
    pub bytes_received: u64,
    /// Buffers handed to the caller: `datagrams_received / trains_received` is the mean GRO run.
    pub trains_received: u64,
    /// Trains that the kernel took.
    pub trains_sent: u64,
    /// Datagrams that the kernel took.
    pub datagrams_sent: u64,
    /// Payload bytes that the kernel took.
    pub bytes_sent: u64,
    /// Datagrams that the kernel refused.
    pub sends_failed: u64,
    /// Trains that the kernel refused as a train (`EIO`, `EINVAL`) and that left datagram by datagram.
    pub gso_refused: u64,
    /// Trains that left datagram by datagram without a try, because the kernel had refused one on the same way (from the socket to
    /// the address) within the last 3 s.
    pub trains_split: u64,
    /// The error number of the last datagram that the kernel refused, other than for a socket that was removed; 0: none was.
    pub send_errno: i32,
    /// Times reception paused because every receive buffer was full (`ENOBUFS`); datagrams waited in the socket's queue.
    pub receive_overflows: u64,
    /// Errors reported in place of a datagram, ICMP's among them. Reception went on.
    pub receive_errors: u64,
    /// Datagrams dropped because they were longer than a receive buffer.
    pub truncated: u64,
    /// Datagrams that the kernel dropped because a socket's queue was full (`SO_RXQ_OVFL`), as of the last datagram.
    pub kernel_drops: u64,
    /// Datagrams (GRO runs count once) dropped unread because their socket was removed.
    pub late: u64,
    /// Wake-ups seen.
    pub wakeups: u64,
    /// System calls made.
    pub syscalls: u64,
}

/// Which system calls carry the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// [`UringBackend`](crate::UringBackend).
    Uring,
    /// [`MmsgBackend`](crate::MmsgBackend).
    Mmsg,
}

impl BackendKind {
    /// `io_uring` or `mmsg`.
    pub const fn name(self) -> &'static str {
        match self {
            BackendKind::Uring => "io_uring",
            BackendKind::Mmsg => "mmsg",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, UnknownBackend> {
        [BackendKind::Uring, BackendKind::Mmsg].into_iter().find(|kind| kind.name() == text).ok_or(UnknownBackend)
    }
}

/// The text names no back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownBackend;

impl fmt::Display for UnknownBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is not a back end: use \"io_uring\" or \"mmsg\"")
    }
}

impl std::error::Error for UnknownBackend {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_is_named_in_the_config_as_in_the_logs() {
        assert_eq!("io_uring".parse(), Ok(BackendKind::Uring));
        assert_eq!("mmsg".parse(), Ok(BackendKind::Mmsg));
        assert_eq!("epoll".parse::<BackendKind>(), Err(UnknownBackend));
    }

    #[test]
    fn counts_and_lengths_out_of_bounds_are_refused_by_name() {
        let good = IoConfig::default();
        assert!(good.check(1).is_ok());
        let said = |config: IoConfig, sockets| config.check(sockets).expect_err("must be refused").to_string();
        assert!(said(good, 0).contains("sockets"));
        assert!(said(good, 65).contains("room for"));
        assert!(said(IoConfig { sockets: 1_025, ..good }, 1).contains("sockets"));
        assert!(said(IoConfig { recv_buffers: 0, ..good }, 1).contains("recv_buffers"));
        assert!(said(IoConfig { trains: 4_097, ..good }, 1).contains("trains"));
        assert!(said(IoConfig { recv_buffer_len: 100_000, ..good }, 1).contains("recv_buffer_len"));
        assert!(said(IoConfig { train_len: 0, ..good }, 1).contains("train_len"));
    }

    #[test]
    fn an_empty_datagram_is_one_datagram() {
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut empty = Received { socket: 0, from, segment: 1, bytes: &mut [] };
        assert_eq!(empty.datagrams().map(|d| d.len()).collect::<Vec<_>>(), [0]);
        let mut run = Received { socket: 0, from, segment: 2, bytes: &mut [1, 2, 3, 4, 5] };
        assert_eq!(run.datagrams().map(|d| d.len()).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
