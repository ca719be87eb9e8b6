//! The back end for kernels and containers that refuse io_uring: `sendmmsg`, `ppoll`, `recvmmsg`.
//!
//! ```text
//!  turn   sendmmsg per socket -> ppoll (sockets, wake-up; sleeps as asked) -> recvmmsg per readable socket
//! ```

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use crate::address::NAME_LEN;
use crate::backend::{Backend, BackendKind, IoConfig, IoStats, RECV_HEADER_LEN, Received, TrainId, Transmit, Wait, stride};
use crate::control::{Control, RECV_CONTROL_LEN};
use crate::memory::Region;
use crate::receipt::{Receipt, ends_reception};
use crate::slots::{Slots, empty_header};
use crate::socket::set_busy_poll;
use crate::sockets::{SocketKey, Sockets};
use crate::wake::WakeReceiver;

/// Messages of one system call. 64 spread its cost to a few ns each; the kernel's own limit is 1,024.
const BATCH: usize = 64;

/// Places in the poll set.
const WAKE_POLL: usize = 0;
const WATCH_POLL: usize = 1;
const FIRST_SOCKET_POLL: usize = 2;

/// The sockets and memory of one worker thread, driven by `sendmmsg` and `recvmmsg`.
///
/// Like the ring it stays on the thread that made it (it is not `Send`), so that both can stand in for each other.
pub struct MmsgBackend {
    receiver: Receiver,
    slots: Slots,
    sockets: Sockets,
    /// Per socket the slots that wait for `sendmmsg`, in order.
    queues: Box<[Vec<u16>]>,
    /// What a queue must hold: every send slot.
    trains: usize,
    send_batch: Box<[libc::mmsghdr]>,
    /// The wake-up, the watched descriptor, then the sockets by their index.
    polls: Box<[libc::pollfd]>,
    wake: WakeReceiver,
    watched: Option<OwnedFd>,
    /// One more than the highest index of a socket.
    end: usize,
    /// The socket whose turn it is to be read first.
    first: usize,
    busy_poll: Duration,
    busy_poll_refusal: Option<io::Error>,
    stats: IoStats,
}

impl MmsgBackend {
    /// Takes the memory and prepares `sockets` (see [`bind_udp`](crate::bind_udp)).
    pub fn new(sockets: Vec<UdpSocket>, wake: WakeReceiver, config: &IoConfig) -> io::Result<Self> {
        config.check(sockets.len())?;
        let mut queues: Box<[Vec<u16>]> = (0..config.sockets).map(|_| Vec::new()).collect();
        for queue in queues.iter_mut().take(sockets.len()) {
            queue.reserve_exact(usize::from(config.trains));
        }
        let busy_poll_refusal = sockets.iter().find_map(|socket| set_busy_poll(socket, config.busy_poll).err());
        let sockets = Sockets::new(sockets, config.sockets, config.gro)?;
        let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        Ok(Self {
            receiver: Receiver::new(config)?,
            slots: Slots::new(config)?,
            trains: usize::from(config.trains),
            queues,
            send_batch: (0..BATCH).map(|_| empty_message()).collect(),
            polls: [wake.as_raw_fd(), -1].into_iter().chain(sockets.fds()).map(poll).collect(),
            end: sockets.end(),
            sockets,
            wake,
            watched: None,
            first: 0,
            busy_poll: config.busy_poll,
            busy_poll_refusal,
            stats: IoStats::default(),
        })
    }

    /// Sends a socket's queue until it is empty or the kernel takes no more; what is left waits for `POLLOUT`.
    fn flush(&mut self, socket: usize) {
        let fd = self.fd(socket);
        let queue = &mut self.queues[socket];
        let mut done = 0;
        while done < queue.len() {
            let batch = BATCH.min(queue.len() - done);
            for (message, index) in self.send_batch.iter_mut().zip(&queue[done..done + batch]) {
                message.msg_hdr = self.slots.header_copy(*index);
            }
            self.stats.syscalls += 1;
            let messages = self.send_batch.as_mut_ptr();
            // SAFETY: the first `batch` messages were just filled with headers of prepared slots, which point at memory of
            // `self.slots` and stay as they are until `complete`; the kernel writes only `msg_len`.
            let sent = unsafe { libc::sendmmsg(fd, messages, batch as u32, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if sent < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => continue,
                    _ => {}
                }
                // The error is about the first message; the ones behind it are tried again.
                self.slots.complete(queue[done], Err(error), fd, &mut self.stats);
                done += 1;
                continue;
            }
            for index in &queue[done..done + sent as usize] {
                self.slots.complete(*index, Ok(0), fd, &mut self.stats);
            }
            done += sent as usize;
        }
        queue.drain(..done);
    }

    /// The descriptor of the socket at an index, -1 where there is none.
    fn fd(&self, socket: usize) -> RawFd {
        self.polls[FIRST_SOCKET_POLL + socket].fd
    }

    /// Asks what is readable, sleeping as `wait` says. Leaves the answer in `polls`.
    fn poll(&mut self, wait: Wait) -> io::Result<()> {
        let polls = &mut self.polls[..FIRST_SOCKET_POLL + self.end];
        for (poll, queue) in polls[FIRST_SOCKET_POLL..].iter_mut().zip(&self.queues) {
            poll.events = if queue.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
        }
        let timeout = match wait {
            Wait::No => Some(libc::timespec { tv_sec: 0, tv_nsec: 0 }),
            Wait::AtMost(duration) => Some(libc::timespec {
                tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: duration.subsec_nanos().into(),
            }),
            Wait::UntilWoken => None,
        };
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        self.stats.syscalls += 1;
        let (entries, len) = (polls.as_mut_ptr(), polls.len() as libc::nfds_t);
        // SAFETY: `polls` has as many entries as said, and the time-out, where there is one, lives until the call returns.
        let ready = unsafe { libc::ppoll(entries, len, timeout, ptr::null()) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        for poll in polls {
            poll.revents = 0;
        }
        if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
    }
}

impl Backend for MmsgBackend {
    const KIND: BackendKind = BackendKind::Mmsg;

    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.slots.begin_turn();
        for socket in 0..self.end {
            self.flush(socket);
        }
        let undelivered = self.receiver.has_ready();
        self.poll(if undelivered { Wait::No } else { wait })?;
        if self.polls[WAKE_POLL].revents != 0 {
            self.stats.wakeups += 1;
            self.stats.syscalls += 1;
            self.wake.drain()?;
        }
        // What the caller left from the last turn lies in the buffers that a receive would fill.
        if undelivered {
            return Ok(());
        }
        self.receiver.clear();
        for socket in (self.first..self.end).chain(0..self.first) {
            if self.polls[FIRST_SOCKET_POLL + socket].revents & !libc::POLLOUT == 0 {
                continue;
            }
            if let Some(key) = self.sockets.key(socket as u16) {
                self.receiver.fill(key, self.fd(socket), &mut self.stats)?;
            }
        }
        self.first = (self.first + 1) % self.end.max(1);
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
        if self.sockets.key(transmit.socket).is_none() {
            return self.slots.fail(id, &transmit, &mut self.stats);
        }
        if self.slots.must_split(&transmit) {
            let fd = self.fd(usize::from(transmit.socket));
            return self.slots.send_split(id, transmit, fd, &mut self.stats);
        }
        let queue = &mut self.queues[usize::from(transmit.socket)];
        queue.push(self.slots.prepare(id, transmit));
    }

    fn release(&mut self, id: TrainId) {
        self.slots.release(id);
    }

    fn add_socket(&mut self, index: u16, socket: UdpSocket) -> io::Result<()> {
        let busy_poll = set_busy_poll(&socket, self.busy_poll);
        let key = self.sockets.insert(index, socket)?;
        if let Err(error) = busy_poll {
            self.busy_poll_refusal.get_or_insert(error);
        }
        self.queues[usize::from(index)].reserve_exact(self.trains);
        self.polls[FIRST_SOCKET_POLL + usize::from(index)].fd = self.sockets.fd(key);
        self.end = self.sockets.end();
        Ok(())
    }

    fn remove_socket(&mut self, index: u16) -> io::Result<()> {
        let at = usize::from(index);
        if self.sockets.key(index).is_none() {
            return Ok(());
        }
        self.flush(at);
        // What the kernel does not take now has nothing to leave by any more.
        for slot in std::mem::take(&mut self.queues[at]) {
            self.slots.complete(slot, Err(io::Error::from_raw_os_error(libc::EBADF)), -1, &mut self.stats);
        }
        let poll = &mut self.polls[FIRST_SOCKET_POLL + at];
        (poll.fd, poll.revents) = (-1, 0);
        self.sockets.remove(index);
        self.end = self.sockets.end();
        self.first %= self.end.max(1);
        Ok(())
    }

    fn watch(&mut self, fd: OwnedFd) -> io::Result<()> {
        assert!(self.watched.is_none(), "a back end watches one descriptor");
        self.polls[WATCH_POLL].fd = fd.as_raw_fd();
        self.watched = Some(fd);
        Ok(())
    }

    fn watched_is_ready(&self) -> bool {
        self.polls[WATCH_POLL].revents != 0
    }

    fn busy_poll_refusal(&self) -> Option<&io::Error> {
        self.busy_poll_refusal.as_ref()
    }

    fn stats(&self) -> IoStats {
        self.stats
    }
}

/// The receive side: buffers that `recvmmsg` fills from the first on, and how far the caller has read them.
struct Receiver {
    buffers: Region,
    stride: usize,
    buffer_len: usize,
    /// Per buffer the socket that filled it.
    filled_by: Box<[SocketKey]>,
    messages: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[[u8; NAME_LEN]]>,
    controls: Box<[Control<RECV_CONTROL_LEN>]>,
    filled: usize,
    read: usize,
}

impl Receiver {
    fn new(config: &IoConfig) -> io::Result<Self> {
        let count = usize::from(config.recv_buffers.next_power_of_two());
        let stride = stride(config.recv_buffer_len as usize + RECV_HEADER_LEN);
        Ok(Self {
            buffers: Region::new(count * stride)?,
            stride,
            buffer_len: config.recv_buffer_len as usize,
            filled_by: vec![SocketKey { index: 0, generation: 0 }; count].into(),
            messages: (0..count).map(|_| empty_message()).collect(),
            vectors: (0..count).map(|_| libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }).collect(),
            names: vec![[0; NAME_LEN]; count].into(),
            controls: vec![Control([0; RECV_CONTROL_LEN]); count].into(),
            filled: 0,
            read: 0,
        })
    }

    fn has_ready(&self) -> bool {
        self.read < self.filled
    }

    fn clear(&mut self) {
        self.filled = 0;
        self.read = 0;
    }

    /// One `recvmmsg` into the buffers that are left.
    fn fill(&mut self, socket: SocketKey, fd: i32, stats: &mut IoStats) -> io::Result<()> {
        let batch = self.filled..self.messages.len().min(self.filled + BATCH);
        if batch.is_empty() {
            stats.receive_overflows += 1;
            return Ok(());
        }
        for at in batch.clone() {
            self.filled_by[at] = socket;
            self.vectors[at] =
                libc::iovec { iov_base: self.buffers.address(at * self.stride, self.buffer_len).cast(), iov_len: self.buffer_len };
            let header = &mut self.messages[at].msg_hdr;
            header.msg_name = (&raw mut self.names[at]).cast();
            header.msg_namelen = NAME_LEN as u32;
            header.msg_iov = &raw mut self.vectors[at];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[at]).cast();
            header.msg_controllen = RECV_CONTROL_LEN as _;
            header.msg_flags = 0;
        }
        stats.syscalls += 1;
        let len = batch.len() as u32;
        let messages = self.messages[batch].as_mut_ptr();
        // SAFETY: `len` messages were just pointed at names, vectors, controls and buffers of their own, all owned by `self` and
        // borrowed by nobody: the caller's last `Received` ended when the turn began.
        let received = unsafe { libc::recvmmsg(fd, messages, len, libc::MSG_DONTWAIT, ptr::null_mut()) };
        if received >= 0 {
            self.filled += received as usize;
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(()),
            Some(errno) if ends_reception(errno) => Err(error),
            // An ICMP error; reading it cleared it, and the datagrams behind it are there for the next turn.
            _ => {
                stats.receive_errors += 1;
                Ok(())
            }
        }
    }

    fn next(&mut self, sockets: &mut Sockets, stats: &mut IoStats) -> Option<Received<'_>> {
        while self.read < self.filled {
            let at = self.read;
            self.read += 1;
            let socket = self.filled_by[at];
            let Some(drops_seen) = sockets.drops_seen(socket) else {
                stats.late += 1;
                continue;
            };
            let message = &self.messages[at];
            let header = &message.msg_hdr;
            let receipt = Receipt {
                name: &self.names[at][..NAME_LEN.min(header.msg_namelen as usize)],
                control: &self.controls[at].0[..RECV_CONTROL_LEN.min(header.msg_controllen as _)],
                len: self.buffer_len.min(message.msg_len as usize),
                truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            };
            if let Some(accepted) = receipt.accept(drops_seen, stats) {
                // SAFETY: no receive is under way: `recvmmsg` ran within `turn`.
                let bytes = unsafe { self.buffers.slice_mut(at * self.stride, accepted.len) };
                return Some(Received { socket: socket.index, from: accepted.from, segment: accepted.segment, bytes });
            }
        }
        None
    }
}

fn empty_message() -> libc::mmsghdr {
    libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 }
}
