//! TUN devices in network namespaces, and waiting for several of them, for bench: the two ends of a wire that a process plays.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// A non-blocking TUN device: one read or write is one IP packet, without a header before it. It goes with this value.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes the device `name` (1 to 15 bytes) in the namespace whose file is given, or in the caller's. It is down and without
    /// an address. It needs `CAP_NET_ADMIN` there, and `CAP_SYS_ADMIN` to enter.
    pub fn open(name: &str, namespace: Option<&Path>) -> io::Result<Self> {
        let Some(namespace) = namespace else { return Self::make(name) };
        // A namespace is a thread's: one that ends afterwards takes the caller nowhere.
        thread::scope(|scope| scope.spawn(|| enter_namespace(namespace).and_then(|()| Self::make(name))).join())
            .unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace panicked")))
    }

    fn make(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['%', '\0', '/']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device name has 1 to 15 bytes, without '%' and '/'"));
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            // TUN_EXCL: never attach to somebody else's device of that name.
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as i16 },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which `request` is.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result == 0 { Ok(Self { file }) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the next packet that the namespace sent into the device: its length, or `WouldBlock`.
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(packet)
    }

    /// Gives the namespace a packet, as if it came in by the device.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Puts the calling thread into the network namespace whose file is given. It stays there, so it should be a thread that ends.
pub fn enter_namespace(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: an open descriptor and a number, no pointer.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until one of `sources` can be read, for `timeout` at most (`None`: without end), and says which can. A signal ends the
/// wait as a timeout does. The wait is as precise as the thread's timer slack ([`set_timer_slack`](crate::set_timer_slack)).
pub fn wait_readable(sources: &[BorrowedFd<'_>], timeout: Option<Duration>, readable: &mut Vec<bool>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> =
        sources.iter().map(|source| libc::pollfd { fd: source.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `polled` holds as many entries as its length says, `limit` is null or a `timespec` of the line above, and a null
    // signal mask leaves the thread's as it is.
    let result = unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit, std::ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        polled.iter_mut().for_each(|entry| entry.revents = 0);
    }
    readable.clear();
    readable.extend(polled.iter().map(|entry| entry.revents != 0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake_pair;

    #[test]
    fn names_that_are_no_device_are_refused() {
        for name in ["", "sixteen-bytes-xy", "tun%d", "a/b"] {
            assert_eq!(Tun::open(name, None).expect_err(name).kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(Tun::open("x", Some(Path::new("/nowhere"))).expect_err("no namespace").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_wait_names_what_is_readable() {
        let (waker, wake) = wake_pair().expect("an eventfd");
        let (_other, quiet) = wake_pair().expect("an eventfd");
        let mut readable = Vec::new();
        let sources = [quiet.as_fd(), wake.as_fd()];
        wait_readable(&sources, Some(Duration::ZERO), &mut readable).expect("it waits");
        assert_eq!(readable, [false, false]);
        waker.wake();
        wait_readable(&sources, None, &mut readable).expect("it waits");
        assert_eq!(readable, [false, true]);
    }
}
