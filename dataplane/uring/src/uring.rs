//! The io_uring back end: multishot receives into a buffer ring, GSO sends, one submit per turn.
//!
//! ```text
//!  turn   give buffers back -> arm what ended -> submit -> reap -> (nothing there?) sleep -> reap
//!                                                  |        |
//!  kernel     sends leave, datagrams land in buffers        +-> ready (socket, buffer, length), wake-ups, free send slots
//! ```

mod buffer_ring;

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed, Napi, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use self::buffer_ring::BufferRing;
use crate::address::NAME_LEN;
use crate::backend::{Backend, BackendKind, IoConfig, IoStats, RECV_HEADER_LEN, Received, TrainId, Transmit, Wait};
use crate::control::RECV_CONTROL_LEN;
use crate::receipt::{Receipt, ends_reception};
use crate::slots::{Slots, empty_header};
use crate::sockets::{SocketKey, Sockets};
use crate::wake::WakeReceiver;

/// The buffer group of the one buffer ring.
const GROUP: u16 = 0;
/// Places among the registered files.
const WAKE_FILE: u32 = 0;
const WATCH_FILE: u32 = 1;
const FIRST_SOCKET_FILE: u32 = 2;
/// Calls that may be needed to submit a full queue: each cut short by completions that a reap makes room for.
const SUBMIT_TRIES: usize = 64;
/// `io_uring_recvmsg_out`: four u32 (lengths of name, control and payload, flags) in front of a received datagram.
const OUT_LEN: usize = 16;

/// One ring, its sockets and its memory.
///
/// Make it on the thread that turns it: the ring is made with `SINGLE_ISSUER`, and a turn from another thread would fail. The
/// type is not `Send`, so the compiler sees to it:
///
/// ```compile_fail,E0277
/// fn assert_send<T: Send>() {}
/// assert_send::<pop_uring::UringBackend>();
/// ```
pub struct UringBackend {
    // First, so that it is dropped before the memory that the kernel knows of.
    ring: IoUring,
    receiver: Receiver,
    slots: Slots,
    sockets: Sockets,
    wake: WakeReceiver,
    wake_armed: bool,
    watched: Option<OwnedFd>,
    watch_armed: bool,
    /// As of the last turn.
    watched_is_ready: bool,
    /// Sends pushed since the last submit.
    sends_queued: bool,
    busy_poll_refusal: Option<io::Error>,
    stats: IoStats,
    flags: &'static str,
}

/// A step of the set-up that the kernel refused.
#[derive(Debug)]
pub(crate) struct SetupError {
    /// What was tried, in the words of the manual page.
    pub(crate) step: &'static str,
    pub(crate) error: io::Error,
}

impl From<SetupError> for io::Error {
    fn from(SetupError { step, error }: SetupError) -> Self {
        io::Error::new(error.kind(), format!("{step}: {error}"))
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> SetupError {
    move |error| SetupError { step, error }
}

impl UringBackend {
    /// Makes the ring and arms its receives on `sockets` (see [`bind_udp`](crate::bind_udp)).
    ///
    /// # Errors
    ///
    /// What the kernel refused, with the step in front; `InvalidInput` for a config out of its bounds.
    pub fn new(sockets: Vec<UdpSocket>, wake: WakeReceiver, config: &IoConfig) -> io::Result<Self> {
        Ok(Self::set_up(sockets, wake, config)?)
    }

    pub(crate) fn set_up(sockets: Vec<UdpSocket>, wake: WakeReceiver, config: &IoConfig) -> Result<Self, SetupError> {
        config.check(sockets.len()).map_err(step("config"))?;
        let sockets = Sockets::new(sockets, config.sockets, config.gro).map_err(step("SO_RXQ_OVFL, UDP_GRO"))?;
        // At most: a send per slot, an arming per socket, the wake-up, the watch; and of completions, one per buffer in addition.
        let submissions = u32::from(config.trains) + u32::from(config.sockets) + 2;
        let completions = submissions + u32::from(config.recv_buffers.next_power_of_two());
        let (ring, flags) = build_ring(submissions, completions).map_err(step("io_uring_setup"))?;
        let fds: Vec<RawFd> = [wake.as_raw_fd(), -1].into_iter().chain(sockets.fds()).collect();
        ring.submitter().register_files(&fds).map_err(step("IORING_REGISTER_FILES"))?;
        let busy_poll_refusal = register_busy_poll(&ring, config.busy_poll).err();
        let receiver = Receiver::new(config, &sockets).map_err(step("mmap"))?;
        let slots = Slots::new(config).map_err(step("mmap"))?;
        let stats = IoStats::default();
        let mut backend = Self {
            ring,
            receiver,
            slots,
            sockets,
            wake,
            wake_armed: false,
            watched: None,
            watch_armed: false,
            watched_is_ready: false,
            sends_queued: false,
            busy_poll_refusal,
            stats,
            flags,
        };
        backend.receiver.buffers.register(&backend.ring.submitter(), GROUP).map_err(step("IORING_REGISTER_PBUF_RING"))?;
        backend.turn(Wait::No).map_err(step("multishot recvmsg"))?;
        Ok(backend)
    }

    /// The flags that this kernel took at set-up.
    pub(crate) fn setup_flags(&self) -> &'static str {
        self.flags
    }

    /// Queues a multishot receive on every socket that has none, and the poll of the wake-up.
    fn arm(&mut self) -> io::Result<()> {
        if !self.wake_armed {
            let entry = opcode::PollAdd::new(Fixed(WAKE_FILE), libc::POLLIN as u32).multi(true).build();
            self.push(entry.user_data(Token::Wake.encode()))?;
            self.wake_armed = true;
        }
        // Once: what is still there to read then completes the next one at once.
        if self.watched.is_some() && !self.watch_armed {
            let entry = opcode::PollAdd::new(Fixed(WATCH_FILE), libc::POLLIN as u32).build();
            self.push(entry.user_data(Token::Watch.encode()))?;
            self.watch_armed = true;
        }
        // Without a buffer a receive would end at once, with ENOBUFS, turn after turn.
        while self.receiver.buffers.kernel_has_some() {
            let Some(key) = self.receiver.disarmed.pop() else { break };
            let entry = opcode::RecvMsgMulti::new(file_of(key.index), &raw const *self.receiver.header, GROUP).build();
            self.push(entry.user_data(Token::Receive(key).encode()))?;
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: the entries made in this file point at the receive header (boxed, never written after `new`), at the header of
        // a prepared slot (unchanged until its completion), or at nothing. They live longer than the ring, whose requests are
        // cancelled in `drop`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_ok() {
            return Ok(());
        }
        // The queue has room for every slot and socket, so this happens only after a submit that the kernel cut short.
        self.enter(0, None)?;
        // SAFETY: as above.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("io_uring_enter takes no submissions"))
    }

    /// Submits what is queued and waits for `want` completions, at most `timeout`.
    fn enter(&mut self, want: usize, timeout: Option<Timespec>) -> io::Result<()> {
        self.stats.syscalls += 1;
        let submitter = self.ring.submitter();
        let result = match &timeout {
            Some(timeout) => submitter.submit_with_args(want, &SubmitArgs::new().timespec(timeout)),
            None => submitter.submit_and_wait(want),
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => Ok(()),
            // The wait ended without a completion (time, a signal), or completions must be reaped before more can be submitted.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Submits all that is queued.
    fn submit_all(&mut self) -> io::Result<()> {
        for _ in 0..SUBMIT_TRIES {
            self.enter(0, None)?;
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            // Cut short: completions must be taken before the kernel takes more.
            self.reap()?;
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "io_uring_enter takes no submissions"))
    }

    /// Whether entering the kernel would do anything: something to submit, or completions that it holds back.
    fn must_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Takes every completion that is there: whether one was a wake-up or about the watched descriptor.
    fn reap(&mut self) -> io::Result<bool> {
        let mut woken = false;
        let mut broken = None;
        for completion in self.ring.completion() {
            let result = errno_result(completion.result());
            match Token::decode(completion.user_data()) {
                Token::Send { slot, generation } => {
                    let fd = self.slots.socket(slot).map_or(-1, |index| self.sockets.fd(SocketKey { index, generation }));
                    self.slots.complete(slot, result.map(|len| len as usize), fd, &mut self.stats);
                }
                Token::Receive(key) => {
                    let is_current = self.sockets.key(key.index) == Some(key);
                    if let Err(error) = self.receiver.complete(key, is_current, result, completion.flags(), &mut self.stats) {
                        broken = Some(error);
                    }
                }
                Token::Watch => {
                    (self.watch_armed, self.watched_is_ready) = (false, true);
                    if let Err(error) = result {
                        broken = Some(error);
                    }
                }
                Token::Cancel => {}
                Token::Wake => {
                    woken = true;
                    self.wake_armed &= cqueue::more(completion.flags());
                    if let Err(error) = result {
                        broken = Some(error);
                    }
                }
            }
        }
        if woken {
            self.stats.wakeups += 1;
            self.stats.syscalls += 1;
            self.wake.drain()?;
        }
        broken.map_or(Ok(woken || self.watched_is_ready), Err)
    }
}

impl Backend for UringBackend {
    const KIND: BackendKind = BackendKind::Uring;

    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.receiver.give_back_held();
        self.slots.begin_turn();
        self.watched_is_ready = false;
        self.arm()?;
        let may_sleep = self.receiver.ready.is_empty() && !wait.is_no();
        let mut woken = false;
        // Sends first and by themselves: their completions would end the sleep. With nothing to send, one call does both.
        if self.sends_queued || !may_sleep {
            self.sends_queued = false;
            if self.must_enter() {
                self.enter(0, None)?;
            }
            woken = self.reap()?;
        }
        if may_sleep && self.receiver.ready.is_empty() && !woken {
            let timeout = match wait {
                Wait::AtMost(duration) => Some(Timespec::from(duration)),
                Wait::No | Wait::UntilWoken => None,
            };
            self.enter(1, timeout)?;
            self.reap()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Option<Received<'_>> {
        self.receiver.next(&mut self.sockets, &mut self.stats)
    }

    fn acquire(&mut self) -> Option<TrainId> {
        self.slots.acquire()
    }

    fn train(&mut self, id: &TrainId) -> &mut [u8] {
        self.slots.train(id)
    }

    fn send(&mut self, id: TrainId, transmit: Transmit) {
        let Some(SocketKey { index, generation }) = self.sockets.key(transmit.socket) else {
            return self.slots.fail(id, &transmit, &mut self.stats);
        };
        if self.slots.must_split(&transmit) {
            let fd = self.sockets.fd(SocketKey { index, generation });
            return self.slots.send_split(id, transmit, fd, &mut self.stats);
        }
        let slot = self.slots.prepare(id, transmit);
        let entry = opcode::SendMsg::new(file_of(index), self.slots.header(slot)).build();
        match self.push(entry.user_data(Token::Send { slot, generation }.encode())) {
            Ok(()) => self.sends_queued = true,
            // The ring is broken, which the next turn reports; the slot must not be lost meanwhile.
            Err(error) => self.slots.complete(slot, Err(error), -1, &mut self.stats),
        }
    }

    fn release(&mut self, id: TrainId) {
        self.slots.release(id);
    }

    fn add_socket(&mut self, index: u16, socket: UdpSocket) -> io::Result<()> {
        let key = self.sockets.insert(index, socket)?;
        if let Err(error) = self.ring.submitter().register_files_update(file_of(index).0, &[self.sockets.fd(key)]) {
            self.sockets.remove(index);
            return Err(error);
        }
        self.receiver.disarmed.push(key);
        Ok(())
    }

    fn remove_socket(&mut self, index: u16) -> io::Result<()> {
        let Some(key) = self.sockets.key(index) else { return Ok(()) };
        // A request finds its socket at submission: what is queued goes out by this one, and not by the next one at the index.
        let cancel = opcode::AsyncCancel::new(Token::Receive(key).encode()).build();
        let submitted = self.push(cancel.user_data(Token::Cancel.encode())).and_then(|()| self.submit_all());
        // Whatever failed: the key is over, and what a receive that goes on brings is late.
        self.receiver.disarmed.retain(|disarmed| *disarmed != key);
        self.sockets.remove(index);
        submitted.and(self.ring.submitter().register_files_update(file_of(index).0, &[-1]).map(drop))
    }

    fn watch(&mut self, fd: OwnedFd) -> io::Result<()> {
        assert!(self.watched.is_none(), "a back end watches one descriptor");
        self.ring.submitter().register_files_update(WATCH_FILE, &[fd.as_raw_fd()])?;
        self.watched = Some(fd);
        Ok(())
    }

    fn watched_is_ready(&self) -> bool {
        self.watched_is_ready
    }

    fn busy_poll_refusal(&self) -> Option<&io::Error> {
        self.busy_poll_refusal.as_ref()
    }

    fn stats(&self) -> IoStats {
        self.stats
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        // The kernel tears a ring down in the background; cancelled here, nothing in flight can outlive the memory. It fails
        // only where nothing is in flight.
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
    }
}

/// The receive side: buffers, what arrived in them, and which sockets are armed.
struct Receiver {
    buffers: BufferRing,
    /// Read by the kernel at every arming: how much room of a buffer is for the address and for control messages.
    header: Box<libc::msghdr>,
    ready: VecDeque<Arrival>,
    /// The buffer behind the caller's last `Received`.
    held: Option<u16>,
    /// Sockets that no receive is armed for; each at most once.
    disarmed: Vec<SocketKey>,
}

/// A completion of a multishot receive.
struct Arrival {
    socket: SocketKey,
    buffer: u16,
    /// Bytes of the buffer in use, header included.
    len: usize,
}

impl Receiver {
    fn new(config: &IoConfig, sockets: &Sockets) -> io::Result<Self> {
        let count = config.recv_buffers.next_power_of_two();
        let mut disarmed = Vec::with_capacity(usize::from(config.sockets));
        disarmed.extend((0..config.sockets).filter_map(|index| sockets.key(index)));
        let mut header = Box::new(empty_header());
        header.msg_namelen = NAME_LEN as u32;
        header.msg_controllen = RECV_CONTROL_LEN as _;
        Ok(Self {
            buffers: BufferRing::new(count, config.recv_buffer_len as usize + RECV_HEADER_LEN)?,
            header,
            ready: VecDeque::with_capacity(usize::from(count)),
            held: None,
            disarmed,
        })
    }

    /// # Errors
    ///
    /// One that would come back at every arming.
    fn complete(
        &mut self,
        socket: SocketKey,
        is_current: bool,
        result: io::Result<u32>,
        flags: u32,
        stats: &mut IoStats,
    ) -> io::Result<()> {
        if !cqueue::more(flags) && is_current {
            self.disarmed.push(socket);
        }
        let buffer = cqueue::buffer_select(flags);
        if let Some(buffer) = buffer {
            self.buffers.take(buffer);
        }
        match (result, buffer) {
            (Ok(len), Some(buffer)) => self.ready.push_back(Arrival { socket, buffer, len: len as usize }),
            // No buffer, no datagram: the receive ended by itself and is armed again.
            (Ok(_), None) => {}
            (Err(error), buffer) => {
                if let Some(buffer) = buffer {
                    self.buffers.give_back(buffer);
                }
                match error.raw_os_error() {
                    // The end of a receive that was cancelled because its socket is removed, or whatever else came before it.
                    _ if !is_current => {}
                    Some(libc::ENOBUFS) => stats.receive_overflows += 1,
                    Some(errno) if ends_reception(errno) => return Err(error),
                    _ => stats.receive_errors += 1,
                }
            }
        }
        Ok(())
    }

    fn give_back_held(&mut self) {
        if let Some(buffer) = self.held.take() {
            self.buffers.give_back(buffer);
        }
    }

    fn next(&mut self, sockets: &mut Sockets, stats: &mut IoStats) -> Option<Received<'_>> {
        self.give_back_held();
        loop {
            let Arrival { socket, buffer, len } = self.ready.pop_front()?;
            self.held = Some(buffer);
            let Some(drops_seen) = sockets.drops_seen(socket) else {
                stats.late += 1;
                self.give_back_held();
                continue;
            };
            let receipt = read_receipt(self.buffers.bytes(buffer, len));
            if let Some(accepted) = receipt.accept(drops_seen, stats) {
                let bytes = &mut self.buffers.bytes(buffer, RECV_HEADER_LEN + accepted.len)[RECV_HEADER_LEN..];
                return Some(Received { socket: socket.index, from: accepted.from, segment: accepted.segment, bytes });
            }
            self.give_back_held();
        }
    }
}

/// Reads the kernel's header of a buffer: `io_uring_recvmsg_out`, the address, the control messages, each in its fixed room.
fn read_receipt(bytes: &[u8]) -> Receipt<'_> {
    let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word));
    let room = |at: usize, len: usize| bytes.get(at..at + len).unwrap_or_default();
    let payload_len = bytes.len().saturating_sub(RECV_HEADER_LEN);
    Receipt {
        name: room(OUT_LEN, NAME_LEN.min(word(0) as usize)),
        control: room(OUT_LEN + NAME_LEN, RECV_CONTROL_LEN.min(word(4) as usize)),
        len: payload_len.min(word(8) as usize),
        truncated: word(12) & libc::MSG_TRUNC as u32 != 0,
    }
}

/// What a completion belongs to, in its 64 bits of user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Wake,
    Receive(SocketKey),
    /// A send slot, and the generation of the socket that it left by.
    Send {
        slot: u16,
        generation: u32,
    },
    Cancel,
    Watch,
}

impl Token {
    const KIND_SHIFT: u32 = 48;
    const GENERATION_SHIFT: u32 = 16;

    fn encode(self) -> u64 {
        let pack = |kind: u64, generation: u32, number: u16| {
            kind << Self::KIND_SHIFT | u64::from(generation) << Self::GENERATION_SHIFT | u64::from(number)
        };
        match self {
            Token::Wake => 0,
            Token::Receive(SocketKey { index, generation }) => pack(1, generation, index),
            Token::Send { slot, generation } => pack(2, generation, slot),
            Token::Cancel => pack(3, 0, 0),
            Token::Watch => pack(4, 0, 0),
        }
    }

    fn decode(user_data: u64) -> Self {
        let (generation, number) = ((user_data >> Self::GENERATION_SHIFT) as u32, user_data as u16);
        match user_data >> Self::KIND_SHIFT {
            0 => Token::Wake,
            1 => Token::Receive(SocketKey { index: number, generation }),
            2 => Token::Send { slot: number, generation },
            3 => Token::Cancel,
            4 => Token::Watch,
            _ => unreachable!("the kernel gives back the user data that it was given"),
        }
    }
}

/// A socket's place among the registered files.
fn file_of(index: u16) -> Fixed {
    Fixed(FIRST_SOCKET_FILE + u32::from(index))
}

fn errno_result(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// `IORING_REGISTER_NAPI` (Linux 6.9): a wait polls the cards that the sockets' datagrams came from before it sleeps.
fn register_busy_poll(ring: &IoUring, duration: Duration) -> io::Result<()> {
    if duration.is_zero() {
        return Ok(());
    }
    let timeout_us = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    ring.submitter().register_napi(&mut Napi::new().set_busy_poll_timeout(timeout_us))
}

/// The flags of a ring that one thread drives: completions run when that thread asks for them and interrupt nothing. Kernels
/// before 6.1 and 5.19 know fewer of them.
fn build_ring(submissions: u32, completions: u32) -> io::Result<(IoUring, &'static str)> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completions.next_power_of_two()).setup_clamp().dontfork();
    let mut best = builder.clone();
    best.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag().setup_single_issuer().setup_defer_taskrun();
    let mut older = builder.clone();
    older.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    let attempts = [
        (best, "SINGLE_ISSUER, DEFER_TASKRUN, COOP_TASKRUN"),
        (older, "COOP_TASKRUN (DEFER_TASKRUN needs Linux 6.1)"),
        (builder, "no flags (COOP_TASKRUN needs Linux 5.19)"),
    ];
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for (builder, flags) in attempts {
        match builder.build(submissions) {
            Ok(ring) => return Ok((ring, flags)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for number in [0, 1, u16::MAX] {
            for generation in [0, 1, u32::MAX] {
                let receive = Token::Receive(SocketKey { index: number, generation });
                for token in [Token::Wake, Token::Cancel, Token::Watch, receive, Token::Send { slot: number, generation }] {
                    assert_eq!(Token::decode(token.encode()), token);
                }
            }
        }
    }
}
