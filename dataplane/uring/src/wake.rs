//! Wake-ups between threads: a worker asleep in the kernel, or a task of the control plane.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A waker and the receiver that it wakes, joined by an eventfd.
///
/// The rule on both sides: put the item into the queue, then [`Waker::wake`]; [`WakeReceiver::drain`] (a back end does it in
/// `turn`), then look into the queue.
pub fn wake_pair() -> io::Result<(Waker, WakeReceiver)> {
    // SAFETY: no pointers; a descriptor or -1 comes back.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made in the line above and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let shared = Arc::new(Shared { event: File::from(fd), pending: AtomicBool::new(false) });
    Ok((Waker { shared: shared.clone() }, WakeReceiver { shared }))
}

/// Wakes one receiver. Many wakes before the receiver looks are one wake-up and one system call.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// The receiving end: handed to a back end, or awaited by a task through [`AsyncWake`](crate::AsyncWake), or polled as a
/// descriptor.
#[derive(Debug)]
pub struct WakeReceiver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: File,
    /// Set from the first wake until the receiver has drained: whoever finds it set need not write.
    pending: AtomicBool,
}

impl Waker {
    /// Wakes the receiver, now or at its next wait.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // The only failure of an 8-byte write is a full counter, and then the receiver is already awake.
        let _ = (&self.shared.event).write(&1u64.to_ne_bytes());
    }
}

impl WakeReceiver {
    /// Takes all wake-ups so far: whether there was one. Look into the queues after it, not before.
    pub fn drain(&self) -> io::Result<bool> {
        let read = (&self.shared.event).read(&mut [0; 8]);
        // After the read: a wake between the two lines finds `pending` set and writes nothing, and its item is in the queue
        // that the caller looks into next. The other way round the read would swallow it and `pending` would stay set.
        self.shared.pending.swap(false, Ordering::AcqRel);
        match read {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for WakeReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl AsRawFd for WakeReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_one_and_none_is_lost_after_a_drain() {
        let (waker, receiver) = wake_pair().expect("an eventfd");
        assert!(!receiver.drain().expect("readable"));
        for _ in 0..3 {
            let other = waker.clone();
            waker.wake();
            other.wake();
            assert!(receiver.drain().expect("readable"));
            assert!(!receiver.drain().expect("readable"));
        }
    }
}
