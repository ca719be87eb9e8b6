//! For tests: a kernel that refuses io_uring, as container runtimes and hardened services do.

use std::io;

/// io_uring_setup, io_uring_enter, io_uring_register: the same numbers on every architecture.
const IO_URING_FIRST: u32 = 425;
const IO_URING_LAST: u32 = 427;

/// Makes every io_uring system call of the calling thread, and of what it starts, fail with `errno`. There is no way back.
///
/// For tests of the fallback: run it in a thread or a process of its own. `ENOSYS`, `EPERM` and `ENOMEM` are what real systems
/// answer.
pub fn refuse_io_uring(errno: i32) -> io::Result<()> {
    let refuse = libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xffff);
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump_if = |test: u32| (libc::BPF_JMP | test | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = [
        libc::sock_filter { code: load, jt: 0, jf: 0, k: 0 }, // the number of the call
        libc::sock_filter { code: jump_if(libc::BPF_JGE), jt: 0, jf: 2, k: IO_URING_FIRST },
        libc::sock_filter { code: jump_if(libc::BPF_JGT), jt: 1, jf: 0, k: IO_URING_LAST },
        libc::sock_filter { code: end, jt: 0, jf: 0, k: refuse },
        libc::sock_filter { code: end, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: this option takes numbers, no pointer.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the program and its `len` instructions, which live here, before it returns.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
