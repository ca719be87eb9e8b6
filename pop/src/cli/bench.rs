//! `pop bench CASE ..`, `pop rtp blast` and `pop rtp sink`: the program `pop-bench` that lies beside this one takes over.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{BenchArgs, Failure};

/// Becomes `pop-bench`, with `case` before the arguments: its exit code and its signals are this command's. Returns when it could not.
pub(super) fn become_bench(case: Option<&str>, args: &BenchArgs) -> Result<(), Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::Other(format!("this program's path: {error}")))?;
    let bench = own.with_file_name("pop-bench");
    let words = case.map(OsString::from).into_iter().chain(args.words.iter().cloned());
    let error = Command::new(&bench).args(words).exec();
    let hint = if error.kind() == io::ErrorKind::NotFound {
        ": it comes with the package pop; in a checkout, build it (cargo build --release -p pop-bench)"
    } else {
        ""
    };
    Err(Failure::Other(format!("{}: {error}{hint}", bench.display())))
}
