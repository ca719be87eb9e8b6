//! One thread of a child process held still, for tests of watchdogs: what a hung worker looks like from outside.

use std::io;
use std::ptr;

/// A thread that does not run until this is dropped. Only the thread that froze it can let it go.
#[derive(Debug)]
pub struct FrozenThread {
    thread: libc::pid_t,
    /// A tracer is a thread: another one's detach is refused.
    _stays: std::marker::PhantomData<*const ()>,
}

impl FrozenThread {
    /// Stops the thread with this id (a folder of `/proc/PID/task`); its process's other threads run on.
    ///
    /// # Errors
    ///
    /// There is no such thread, or it is not this user's child.
    pub fn freeze(thread: u32) -> io::Result<Self> {
        let thread = libc::pid_t::try_from(thread).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        trace(libc::PTRACE_SEIZE, thread)?;
        let frozen = Self { thread, _stays: std::marker::PhantomData };
        trace(libc::PTRACE_INTERRUPT, thread)?;
        let mut status = 0;
        // SAFETY: the kernel writes one int, and `status` is one.
        match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(frozen),
        }
    }
}

impl Drop for FrozenThread {
    fn drop(&mut self) {
        // A thread that has been killed meanwhile needs no release.
        let _ = trace(libc::PTRACE_DETACH, self.thread);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read and write no memory of ours; both pointers are unused.
    match unsafe { libc::ptrace(request, thread, nothing, nothing) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_frozen_thread_uses_no_time_and_goes_on_afterwards() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().expect("a shell");
        let used = || {
            let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
            let fields: Vec<String> = text.rsplit(')').next().expect("a name in brackets").split_whitespace().map(str::to_owned).collect();
            fields[11].parse::<u64>().expect("user time in ticks")
        };
        let frozen = FrozenThread::freeze(child.id()).expect("it is our child");
        let before = used();
        sleep(Duration::from_millis(150));
        assert_eq!(used(), before);
        drop(frozen);
        while used() == before {
            sleep(Duration::from_millis(10));
        }
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }
}
