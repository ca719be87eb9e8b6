//! The wake-up from a worker to a task.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::wake::WakeReceiver;

/// A [`WakeReceiver`] that a tokio task awaits: worker to control plane, one system call per burst of wakes.
#[derive(Debug)]
pub struct AsyncWake {
    event: AsyncFd<WakeReceiver>,
}

impl AsyncWake {
    /// Registers the receiver with the runtime that this is called in. Panics outside of one.
    pub fn new(receiver: WakeReceiver) -> io::Result<Self> {
        // SAFETY: a `WakeReceiver` holds its eventfd open as long as it lives and never changes it.
        let event = unsafe { AsyncFd::register_with_interest(receiver, Interest::READABLE) }?;
        Ok(Self { event })
    }

    /// Waits for a wake-up and takes it. Look into the queues after it. Dropped before it ends, it has taken nothing.
    pub async fn woken(&self) -> io::Result<()> {
        loop {
            let mut ready = self.event.readable().await?;
            let woken = ready.get_inner().drain()?;
            // After the drain: a wake in between makes the descriptor ready anew, and tokio keeps what is newer than `ready`.
            ready.clear_ready();
            if woken {
                return Ok(());
            }
        }
    }
}
