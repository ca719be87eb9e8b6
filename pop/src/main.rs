//! `pop`: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pop::cli::{self, Cli, Command, Failure};
use pop::{doctor, dtls, run, tune};
use pop_uring::alloc::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

fn main() -> ExitCode {
    dtls::install_crypto_provider();
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Doctor(args) => doctor::examine(&args),
        Command::Tune(args) => tune::tune(&args),
        command => ask(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Short commands need one thread.
fn ask(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Other(format!("no runtime: {error}")))?;
    runtime.block_on(cli::ask(command))
}
