//! `pop completion` and `pop man`: what the shell and the reader know of the command line, made from the command line itself.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;

use super::{Cli, CompletionArgs, Failure, ManArgs};

pub(super) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pop", &mut script);
    print_whole(&script)
}

/// One page for `pop`, or a page for each command as files of a folder.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    match &args.folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder).map_err(|error| wrong_folder(folder, &error)),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(|error| Failure::Other(error.to_string()))?;
            print_whole(&page)
        }
    }
}

fn wrong_folder(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("no pages can be written into {}: {error}", folder.display()))
}

fn print_whole(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush()).map_err(|error| Failure::Other(format!("stdout is closed: {error}")))
}
