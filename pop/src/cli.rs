//! The command line. Exit codes: 0 done, 2 bad config or arguments, 1 anything else; errors are one line on stderr.

mod bench;
mod ca;
mod capture;
mod check;
mod client;
mod complete;
mod operate;
mod probe;
mod rtp;
mod show;
mod token;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, parse_duration};

/// An edge Point of Presence for real-time media.
#[derive(Debug, Parser)]
#[command(name = "pop", version = crate::VERSION, arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// `pop COMMAND`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT. Without a config file: a complete node on loopback.
    Run(RunArgs),
    /// Check a config file and its keys; exit code 2 and file:line:column when it is wrong.
    Check(CheckArgs),
    /// Tell what this host offers, what the node will use, and what to change.
    Doctor(DoctorArgs),
    /// Line up the queues of the network cards with the workers: print the commands, or run them.
    Tune(TuneArgs),
    /// Make access tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make the certificates by which nodes trust each other.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Work with RTP.
    #[command(subcommand)]
    Rtp(RtpCommand),
    /// Measure this node or another: fanout, latency, ndr, pdr and more; `pop bench --help` lists them.
    Bench(BenchArgs),
    /// Measure round trips to PoPs, line by line as ping does; exit code 1 when a probe was lost.
    Probe(ProbeArgs),
    /// Show the rooms of the running node.
    Sessions(WatchArgs),
    /// Show the running node.
    Status(WatchArgs),
    /// Show the other nodes and the links to them.
    Mesh(WatchArgs),
    /// Take the changed config file; the old config stays when the new one is wrong.
    Reload(AskArgs),
    /// Show the log filter of the running node, or change it until the next reload.
    LogLevel(LogLevelArgs),
    /// Print the release.
    Version(JsonArgs),
    /// Print what a shell needs to complete commands: bash: pop completion bash > /etc/bash_completion.d/pop
    Completion(CompletionArgs),
    /// Print the manual page.
    #[command(hide = true)]
    Man(ManArgs),
}

/// `pop run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The config file; see config/pop.toml for every key.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the ready line as a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config file.
    #[arg(value_name = "FILE", default_value = "/etc/pop/pop.toml")]
    pub file: PathBuf,
    /// Print a JSON object, for a wrong file too.
    #[arg(long)]
    pub json: bool,
}

/// `pop doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Judge for this config file; default: the built-in defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Raise the kernel settings that are too low, now and in /etc/sysctl.d/91-pop-doctor.conf.
    #[arg(long)]
    pub fix: bool,
    /// Measure both back ends for some seconds, tell which is faster here, and keep it for dataplane.backend = "auto". It takes a
    /// core meanwhile.
    #[arg(long, conflicts_with_all = ["fix", "root"])]
    pub bench: bool,
    /// Judge the tree of /proc and /sys below this folder, recorded from another host.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop tune`
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// Print the commands and change nothing (the default).
    #[arg(long, visible_alias = "dry-run", conflicts_with = "apply")]
    pub print: bool,
    /// Do what they do, print the way back, and keep it as tune-undo.sh in the state directory.
    #[arg(long)]
    pub apply: bool,
    /// Tune for this config file; default: the built-in defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Tune this card, whatever media.addresses are; may be given more than once.
    #[arg(long, value_name = "INTERFACE")]
    pub interface: Vec<String>,
    /// Look at the tree of /proc and /sys below this folder, recorded from another host.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for one person in one room.
    Create(TokenArgs),
}

/// `pop token create`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The room.
    #[arg(long, value_name = "ROOM")]
    pub room: String,
    /// Who the holder is.
    #[arg(long, value_name = "IDENTITY")]
    pub identity: String,
    /// Allow publishing (the default).
    #[arg(long, overrides_with = "no_publish")]
    pub publish: bool,
    /// Do not allow publishing.
    #[arg(long, overrides_with = "publish")]
    pub no_publish: bool,
    /// Allow watching (the default).
    #[arg(long, overrides_with = "no_subscribe")]
    pub subscribe: bool,
    /// Do not allow watching.
    #[arg(long, overrides_with = "subscribe")]
    pub no_subscribe: bool,
    /// Do not show the holder to the others.
    #[arg(long)]
    pub hidden: bool,
    /// One link for many: whoever opens the page with this token gets an identity of their own.
    #[arg(long)]
    pub guests: bool,
    /// How long the token holds: 30s, 15m, 1h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = duration)]
    pub ttl: Duration,
    /// Sign with a key of this file instead of asking the running node.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    pub keys: Option<PathBuf>,
    /// With --keys: where the node is, for the url that is printed.
    #[arg(long, value_name = "URL", requires = "keys", default_value = "http://127.0.0.1:7880")]
    pub url: String,
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop ca`
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a CA: ca.pem, which every node gets, and ca.key, which none gets.
    Init(CaInitArgs),
    /// Make a node's certificate and key.
    Issue(CaIssueArgs),
    /// Make a node's certificate again: the same names, a new key.
    Renew(CaRenewArgs),
    /// Take a node's certificates back: crl.pem, which `pop reload` of one node tells to all.
    Revoke(CaRevokeArgs),
}

/// `pop ca init`
#[derive(Debug, Args)]
pub struct CaInitArgs {
    /// Where the CA is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What the CA is called in its certificate.
    #[arg(long, value_name = "NAME", default_value = "pop CA")]
    pub name: String,
    /// Overwrite a CA that is there.
    #[arg(long)]
    pub force: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop ca issue`
#[derive(Debug, Args)]
pub struct CaIssueArgs {
    /// Where the CA is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The node: node.name of its config.
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Its PoP: node.pop of its config.
    #[arg(long, value_name = "POP", default_value = "pop")]
    pub pop: String,
    /// How long the certificate is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    pub days: u64,
    /// An address of bus.listen, when the bus leaves the host; may be given more than once.
    #[arg(long, value_name = "IP")]
    pub address: Vec<IpAddr>,
    /// Ids of the API keys that its PoP may use towards other PoPs, '*' for all; a comma in an id is %2C, a percent sign %25. Default: none.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub api_keys: Vec<String>,
    /// Where node.pem, node.key and a copy of ca.pem go; default: the folder NAME.POP beside the CA.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Overwrite a certificate that is there.
    #[arg(long)]
    pub force: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop ca revoke`
#[derive(Debug, Args)]
pub struct CaRevokeArgs {
    /// Where the CA is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The node: all of its certificates that this CA has made.
    #[arg(long, value_name = "NAME", required_unless_present = "serial")]
    pub node: Option<String>,
    /// Its PoP.
    #[arg(long, value_name = "POP", default_value = "pop")]
    pub pop: String,
    /// Or one certificate, by its serial number in hexadecimal digits.
    #[arg(long, value_name = "HEX", conflicts_with = "node")]
    pub serial: Option<String>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop ca renew`
#[derive(Debug, Args)]
pub struct CaRenewArgs {
    /// Where the CA is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The node.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Its PoP.
    #[arg(long, value_name = "POP", default_value = "pop")]
    pub pop: String,
    /// How long the certificate is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    pub days: u64,
    /// Ids of the API keys that its PoP may use from now on, as for issue. Default: those of the old certificate.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub api_keys: Option<Vec<String>>,
    /// From now on its PoP may use no API key.
    #[arg(long, conflicts_with = "api_keys")]
    pub no_api_keys: bool,
    /// The folder of the certificate; default: the folder NAME.POP beside the CA.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop rtp`
#[derive(Debug, Subcommand)]
pub enum RtpCommand {
    /// Write what a room's tracks carry, decrypted, into a pcapng file.
    Capture(CaptureArgs),
    /// Show the RTP routes: plain or SDES RTP into a room, out of one, or through the node.
    List(AskArgs),
    /// Open an RTP route until the node ends, and print its port and its SDP.
    Add(RouteAddArgs),
    /// End an RTP route.
    Remove(RouteRemoveArgs),
    /// Send RTP at a given rate, numbered and stamped: pop bench blast.
    Blast(BenchArgs),
    /// Count what a blast sent, or RTP of other senders: pop bench sink.
    Sink(BenchArgs),
}

/// `pop bench`
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct BenchArgs {
    /// Everything is pop-bench's own.
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// `pop rtp add`
#[derive(Debug, Args)]
pub struct RouteAddArgs {
    /// The keys of [[rtp.route]] in config/pop.toml, such as: direction=in room=stage codec=VP8
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub keys: Vec<String>,
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop rtp remove`
#[derive(Debug, Args)]
pub struct RouteRemoveArgs {
    /// The route's name.
    pub name: String,
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop rtp capture`
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The room; its people may come later.
    pub room: String,
    /// The file to make; it must not exist.
    #[arg(value_name = "FILE.pcapng")]
    pub file: PathBuf,
    /// Only tracks of this kind; default: all of the room's tracks.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// When to stop; Ctrl-C stops at once.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Audio or video, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Audio.
    Audio,
    /// Video.
    Video,
}

/// `pop probe`
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// HOST, HOST:PORT or a PoP's URL; several are ranked at the end.
    #[arg(value_name = "TARGET", required = true, num_args = 1..=64)]
    pub targets: Vec<String>,
    /// Plain STUN Binding, UDP 3478 (the default for a host).
    #[arg(long, group = "method")]
    pub stun: bool,
    /// STAMP, UDP 862: without the time inside the reflector; both ways apart where both clocks are synchronized.
    #[arg(long, group = "method")]
    pub stamp: bool,
    /// HTTP requests on a warm connection.
    #[arg(long, group = "method")]
    pub http: bool,
    /// ICE checks on the media port (the default for a URL).
    #[arg(long, group = "method")]
    pub ice: bool,
    /// Also measure the PoPs that the targets' pop.json name.
    #[arg(long)]
    pub pops: bool,
    /// Probes for each target.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// Time between two probes of one target, 10ms or more.
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = probe_interval)]
    pub interval: Duration,
    /// A probe without an answer is lost after this, at most 10s.
    #[arg(short = 'W', long, value_name = "DURATION", default_value = "2s", value_parser = probe_timeout)]
    pub timeout: Duration,
    /// Print a JSON object at the end.
    #[arg(long)]
    pub json: bool,
}

/// A question to the running node.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `pop log-level`
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// A level, or directives such as info,pop_dataplane=debug; without one, the filter in force is shown.
    pub filter: Option<String>,
    /// The running node's unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A question that may be asked again and again.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The question.
    #[command(flatten)]
    pub ask: AskArgs,
    /// Ask again every so often, 2s if not told, until Ctrl-C.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2s", value_parser = duration)]
    pub watch: Option<Duration>,
}

/// `pop completion`
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell.
    pub shell: clap_complete::Shell,
}

/// `pop man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder instead.
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// A command that asks nobody.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a number and a unit: 500ms, 30s, 15m, 1h or 7d".to_owned())
}

/// Faster is a load test, not a probe.
fn probe_interval(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|it| if it >= Duration::from_millis(10) { Ok(it) } else { Err("10ms is the shortest interval".to_owned()) })
}

fn probe_timeout(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(1)..=Duration::from_secs(10);
    duration(text).and_then(|it| if bounds.contains(&it) { Ok(it) } else { Err("from 1ms to 10s".to_owned()) })
}

/// Why a command ended early.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The config or the arguments are wrong: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
    Other(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl Failure {
    /// Says it on stderr; the process's exit code.
    pub fn report(&self) -> ExitCode {
        let (code, sentence) = match self {
            Failure::Usage(sentence) => (2, sentence),
            Failure::Other(sentence) => (1, sentence),
        };
        eprintln!("pop: {sentence}");
        ExitCode::from(code)
    }
}

/// Runs every command but `run`, `doctor` and `tune`, which are stories of their own.
pub async fn ask(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(args) => check::check(&args),
        Command::Token(TokenCommand::Create(args)) => token::create(&args).await,
        Command::Ca(command) => ca::run(&command),
        Command::Rtp(RtpCommand::Capture(args)) => capture::capture(&args).await,
        Command::Probe(args) => probe::probe(&args).await,
        Command::Rtp(RtpCommand::List(args)) => rtp::show(&args).await,
        Command::Rtp(RtpCommand::Add(args)) => rtp::add(&args).await,
        Command::Rtp(RtpCommand::Remove(args)) => rtp::remove(&args).await,
        Command::Sessions(args) => show::sessions(&args).await,
        Command::Status(args) => show::status(&args).await,
        Command::Mesh(args) => show::mesh(&args).await,
        Command::Reload(args) => operate::reload(&args).await,
        Command::LogLevel(args) => operate::log_level(&args).await,
        Command::Version(args) => show::version(&args),
        Command::Completion(args) => complete::completion(&args),
        Command::Man(args) => complete::man(&args),
        Command::Bench(args) => bench::become_bench(None, &args),
        Command::Rtp(RtpCommand::Blast(args)) => bench::become_bench(Some("blast"), &args),
        Command::Rtp(RtpCommand::Sink(args)) => bench::become_bench(Some("sink"), &args),
        Command::Run(_) | Command::Doctor(_) | Command::Tune(_) => unreachable!("main keeps these"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_the_benchs_own_is_handed_on_unread() {
        let words = |line: &str| match Cli::try_parse_from(line.split(' ')).expect("they are right").command {
            Command::Bench(args) | Command::Rtp(RtpCommand::Blast(args)) => args.words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words("pop bench fanout --subscribers 2 --json x"), ["fanout", "--subscribers", "2", "--json", "x"]);
        assert_eq!(words("pop bench --help"), ["--help"]);
        assert_eq!(words("pop rtp blast --to 127.0.0.1:5004 --help"), ["--to", "127.0.0.1:5004", "--help"]);
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        let parse = |flags: &[&str]| {
            let words = ["pop", "token", "create", "--room", "r", "--identity", "i"].iter().chain(flags);
            match Cli::try_parse_from(words).expect("they are right").command {
                Command::Token(TokenCommand::Create(args)) => args,
                other => panic!("{other:?}"),
            }
        };
        assert!(!parse(&[]).no_publish);
        assert!(parse(&["--publish", "--no-publish"]).no_publish);
        assert!(!parse(&["--no-publish", "--publish"]).no_publish);
        assert_eq!(parse(&["--ttl", "90s"]).ttl, Duration::from_secs(90));
    }
}
