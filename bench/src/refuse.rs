//! A program on a kernel that refuses io_uring.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What real systems answer, with the number that Linux has for it on every architecture of ours.
const ERRORS: &[(&str, i32)] = &[("EPERM", 1), ("ENOMEM", 12), ("ENOSYS", 38)];

#[derive(clap::Args)]
pub(crate) struct RefuseArgs {
    /// What io_uring's system calls answer: ENOSYS, EPERM or ENOMEM.
    #[arg(value_parser = parse_error)]
    error: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<std::ffi::OsString>,
}

fn parse_error(text: &str) -> Result<i32, String> {
    ERRORS.iter().find(|(name, _)| *name == text).map(|(_, errno)| *errno).ok_or_else(|| "give ENOSYS, EPERM or ENOMEM".to_owned())
}

/// Becomes the program. Returns only when that fails.
pub(crate) fn run(args: &RefuseArgs) -> Result<Infallible, String> {
    pop_uring::refuse_io_uring(args.error).map_err(|e| format!("seccomp: {e}"))?;
    let (program, words) = args.command.split_first().ok_or("no program")?;
    Err(format!("{}: {}", program.display(), Command::new(program).args(words).exec()))
}
