//! The environment of this process, which libraries read that have no other setting.

use std::{env, fs, io};

/// Sets a variable, unless it is set already, while this thread is the only one of the process.
///
/// # Errors
///
/// There are other threads: one of them may be reading the environment.
pub fn set_variable(name: &str, value: &str) -> io::Result<()> {
    if env::var_os(name).is_some() {
        return Ok(());
    }
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run")));
    }
    // SAFETY: no other thread reads or writes the environment, because there is none, and this one does nothing else meanwhile.
    unsafe { env::set_var(name, value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn among_threads_the_environment_stays_as_it_is() {
        // A test runs on a thread beside the harness's.
        assert!(set_variable("POP_URING_TEST", "1").is_err());
        assert!(env::var_os("POP_URING_TEST").is_none());
        assert!(set_variable("PATH", "elsewhere").is_ok(), "what is set stays");
        assert_ne!(env::var_os("PATH"), Some("elsewhere".into()));
    }
}
