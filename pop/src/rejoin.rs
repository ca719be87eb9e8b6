//! A node that others hold for dead begins anew: the same program with the same arguments in the same process, so that who supervises it
//! sees no end. The kernel closes what it had open, and with that its clients and the other nodes know.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// In the environment of a program that began anew.
const VARIABLE: &str = "POP_REJOINS";

/// The program itself, also where its file was replaced or removed meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// A ring gives its ports back a little after the end of the program that had it.
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Does not return.
pub(crate) fn begin_anew() -> ! {
    let mut words = env::args_os();
    let mut command = Command::new(PROGRAM);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let error = command.args(words).env(VARIABLE, "1").exec();
    tracing::error!(%error, "the program cannot begin anew: it ends");
    std::process::exit(1);
}

/// Does what needs ports; again and again for a while, when the program began anew and they may be its own of before.
pub(crate) fn bind_own<T, E>(mut bind: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let until = Instant::now() + PORTS_FREE_WITHIN;
    loop {
        match bind() {
            Err(_) if env::var_os(VARIABLE).is_some() && Instant::now() < until => std::thread::sleep(TRY_AGAIN),
            outcome => return outcome,
        }
    }
}
