//! CPU time of a thread and of the process, the system's monotonic clock, and how punctual a thread is.

use std::io;
use std::time::Duration;

/// CPU time that the calling thread has used, user and system.
pub fn thread_cpu_time() -> Duration {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time that all threads of the process have used, user and system.
pub fn process_cpu_time() -> Duration {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// `CLOCK_MONOTONIC`, as other programs of this host read it.
pub fn monotonic_time() -> Duration {
    read_clock(libc::CLOCK_MONOTONIC)
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`, and `time` is one.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "Linux has had these clocks since 2.6.12");
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// What the kernel believes of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// A time service keeps it right.
    pub synchronized: bool,
    /// How wrong it is at most, in microseconds.
    pub error_us: u64,
}

/// Asks the kernel about the wall clock (adjtimex(2)); changes nothing.
pub fn clock_state() -> io::Result<ClockState> {
    // SAFETY: every field of a `timex` is a number, and zero is one. `modes` of zero only reads.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and writes one `timex`, and `state` is one.
    let result = unsafe { libc::adjtimex(&raw mut state) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(ClockState { synchronized: state.status & libc::STA_UNSYNC == 0, error_us: state.maxerror.unsigned_abs() })
}

/// How late the kernel may end a sleep of the calling thread. The default of 50 us is too coarse for a pacer.
pub fn set_timer_slack(slack: Duration) -> io::Result<()> {
    let nanos = libc::c_ulong::try_from(slack.as_nanos()).unwrap_or(libc::c_ulong::MAX).max(1);
    // SAFETY: this option takes a number, no pointer.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanos) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the calling thread run before every ordinary one (`SCHED_FIFO`, the lowest of its priorities). For a thread that sleeps
/// most of the time and must not be late; it needs `CAP_SYS_NICE`.
pub fn set_realtime() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one `sched_param`, which lives here; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clocks_state_can_be_read_by_anybody() {
        let state = clock_state().expect("reading needs no right");
        assert!(!state.synchronized || state.error_us < 16_000_000, "{state:?}: the kernel gives up at 16 s");
    }

    #[test]
    fn the_monotonic_clock_is_the_systems() {
        let text = std::fs::read_to_string("/proc/uptime").expect("Linux has it");
        let uptime_s: f64 = text.split(' ').next().expect("two numbers").parse().expect("a number");
        // They differ by the time that the machine slept.
        assert!(monotonic_time().as_secs_f64() <= uptime_s + 1.0 && monotonic_time() > Duration::ZERO);
    }

    #[test]
    fn work_takes_cpu_time() {
        let process_before = process_cpu_time();
        let before = thread_cpu_time();
        let mut sum = 0u64;
        while thread_cpu_time() - before < Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_cpu_time() - process_before >= Duration::from_millis(2));
    }
}
