//! Which of many descriptors is ready: one `epoll` set, which is a descriptor itself, so that a back end can wait for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Descriptors that one look takes; the rest is there at the next one, the longest waiting first.
pub(super) const EVENTS_MAX: usize = 64;

pub(super) struct Epoll {
    fd: OwnedFd,
    events: Box<[libc::epoll_event; EVENTS_MAX]>,
}

/// A ready descriptor.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    /// What it was added with.
    pub(super) token: u64,
    /// Bytes, the end, or an error to read.
    pub(super) readable: bool,
    /// Room to write.
    pub(super) writable: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a descriptor or -1 comes back.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made in the line above and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX]) })
    }

    /// Reports `fd` under `token` until it is closed. Flags are `EPOLLIN` and the like.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64, flags: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, flags)
    }

    /// Reports other things of `fd` from now on.
    pub(super) fn modify(&self, fd: BorrowedFd<'_>, token: u64, flags: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, flags)
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, token: u64, flags: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: flags as u32, u64: token };
        // SAFETY: both descriptors are open, and the kernel copies the event before the call returns.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Looks, without waiting; then [`ready`](Self::ready) has as many entries as this says.
    pub(super) fn look(&mut self) -> io::Result<usize> {
        let events = self.events.as_mut_ptr();
        // SAFETY: the array has `EVENTS_MAX` entries, which the kernel fills from the first on.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, EVENTS_MAX as i32, 0) };
        match usize::try_from(count) {
            Ok(count) => Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    pub(super) fn ready(&self, at: usize) -> Ready {
        let libc::epoll_event { events, u64: token } = self.events[at];
        Ready { token, readable: events & !(libc::EPOLLOUT as u32) != 0, writable: events & libc::EPOLLOUT as u32 != 0 }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
