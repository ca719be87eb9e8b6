//! `pop-bench`: everything that looks at the appliance from outside. `bench/README.md` says how to read its figures.

mod oracle;
mod pcap;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "pop-bench", version, about = "Load, floors and oracles for the pop appliance")]
struct Cli {
    #[command(subcommand)]
    case: Case,
}

#[derive(Subcommand)]
enum Case {
    /// Check a capture: one (key, SSRC, index) has one ciphertext. Exit 1 on a violation, 2 when there is nothing to judge.
    Oracle(OracleArgs),
}

#[derive(clap::Args)]
struct OracleArgs {
    /// A classic pcap, as `tcpdump -w` writes it.
    file: PathBuf,
    /// A capture without media is a pass.
    #[arg(long)]
    allow_empty: bool,
    /// Look only at flows with one of these UDP ports at either end.
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports)]
    ports: Option<(u16, u16)>,
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err("give one port, or FIRST-LAST with FIRST not above LAST".to_owned()),
    }
}

fn main() -> ExitCode {
    match Cli::parse().case {
        Case::Oracle(args) => judge_capture(&args),
    }
}

fn judge_capture(args: &OracleArgs) -> ExitCode {
    let open = || File::open(&args.file).map(BufReader::new).map_err(|e| e.to_string());
    let verdict = match oracle::check_capture(open, args.ports) {
        Ok(verdict) => verdict,
        Err(sentence) => {
            eprintln!("pop-bench oracle: {}: {sentence}", args.file.display());
            return ExitCode::from(2);
        }
    };
    println!("{verdict}");
    for (count, what) in [
        (verdict.rtcp_unchecked, "SRTCP packets were not checked: their DTLS handshake is not in the capture"),
        (verdict.fragments, "IP fragments were not checked"),
        (u64::from(verdict.cut), "record at the end is cut off"),
    ] {
        if count > 0 {
            eprintln!("pop-bench oracle: {count} {what}");
        }
    }
    for violation in &verdict.shown {
        eprintln!("pop-bench oracle: {violation}");
    }
    if verdict.violations > 0 {
        return ExitCode::from(1);
    }
    if verdict.rtp + verdict.rtcp == 0 && !args.allow_empty {
        eprintln!("pop-bench oracle: {}: no SRTP or SRTCP was seen (--allow-empty accepts that)", args.file.display());
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
