//! The server under load: a child process of ours, or one that already runs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::http;
use crate::network::Network;

/// A node is serving within a second (DESIGN 11); a debug build on a busy machine gets this long.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What the cases that start a node have in common.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pub(crate) pop: Option<PathBuf>,
    /// Core of the packet worker.
    #[arg(long, default_value_t = 1)]
    pub(crate) server_core: usize,
    /// Packet workers, on that core and the next ones.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 0)]
    pub(crate) load_core: usize,
    /// Node and load on loopback, as it is without root; default: a veth pair into a namespace that is made for the run.
    #[arg(long)]
    pub(crate) loopback: bool,
    /// The server's back end: auto, io_uring or mmsg.
    #[arg(long, default_value = "auto")]
    pub(crate) backend: String,
    /// Write the figures to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// What a server has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// Clients.
    pub(crate) transports: usize,
    /// Published tracks.
    pub(crate) tracks: usize,
    /// Sections that carry a track to a client.
    pub(crate) subscriptions: usize,
    /// How long a client may be silent.
    pub(crate) consent_timeout_s: u32,
}

impl Default for Capacity {
    /// The defaults of `pop.toml`.
    fn default() -> Capacity {
        Capacity { transports: 2_000, tracks: 1_000, subscriptions: 10_000, consent_timeout_s: 15 }
    }
}

/// A running node and the way to its interfaces.
pub(crate) struct Server {
    /// Base URL of signalling, without a slash at the end.
    pub(crate) http: String,
    /// Base URL of the operator's listener, when known.
    pub(crate) admin: Option<String>,
    /// Its process.
    pub(crate) pid: u32,
    child: Option<Started>,
}

struct Started {
    process: Child,
    folder: PathBuf,
}

/// Where a server that is started here runs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// A packet worker on each of these cores.
    pub(crate) cores: &'a [usize],
    /// It listens at this network's end for nodes, on free ports.
    pub(crate) network: &'a Network,
}

impl Server {
    /// Starts `program` with `key` as its API key.
    pub(crate) fn start(program: &Path, place: Place<'_>, capacity: Capacity, backend: &str, key: (&str, &str)) -> Result<Server, String> {
        let address = place.network.node_address();
        let cores = place.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let folder = std::env::temp_dir().join(format!("pop-bench-{}", std::process::id()));
        let Capacity { transports, tracks, subscriptions, consent_timeout_s } = capacity;
        // All clients of a run have one address, which only loopback may be without a bound.
        let text = format!(
            "[http]\nlisten = \"{address}:0\"\nconnections_per_address_max = 4096\nrequests_per_address_per_s_max = 100000\n\
             [admin]\nlisten = \"{address}:0\"\nsocket = \"{socket}\"\n\
             [media]\naddresses = [\"{address}\"]\nport = 0\nconsent_timeout = \"{consent_timeout_s}s\"\n\
             [dataplane]\ncores = \"{cores}\"\ntransports_max = {transports}\ntracks_max = {tracks}\n\
             subscriptions_max = {subscriptions}\nbackend = \"{backend}\"\n\
             [auth.keys]\n{name} = \"{secret}\"\n[log]\nlevel = \"warn\"\n",
            socket = folder.join("pop.sock").display(),
            name = key.0,
            secret = key.1,
        );
        Server::run(program, place.network, folder, &text)
    }

    /// Starts `program` with this config, which is kept in `folder` until it ends.
    pub(crate) fn run(program: &Path, network: &Network, folder: PathBuf, text: &str) -> Result<Server, String> {
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let config = folder.join("pop.toml");
        // The file holds a secret: nobody else may read it.
        std::os::unix::fs::OpenOptionsExt::mode(std::fs::OpenOptions::new().write(true).create(true).truncate(true), 0o600)
            .open(&config)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| format!("{}: {e}", config.display()))?;
        // Told here, in this program's words: what carries it into a namespace has its own.
        if !program.exists() {
            return Err(format!("{}: no such file: build it (cargo build --release -p pop) or name it with --pop", program.display()));
        }
        let mut process = network
            .command(program)
            .args(["run", "--json", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let stdout = process.stdout.take().expect("stdout is piped above");
        let pid = process.id();
        // Owned from here on, so that every way out ends the process.
        let mut server = Server { http: String::new(), admin: None, pid, child: Some(Started { process, folder }) };
        let ready = read_ready_line(stdout)?;
        let field = |name: &str| ready.get(name).and_then(Value::as_str).map(|url| url.trim_end_matches('/').to_owned());
        server.http = field("http").ok_or_else(|| format!("the server's ready line has no http: {ready}"))?;
        server.admin = field("admin");
        Ok(server)
    }

    /// Uses a node that runs on this machine.
    pub(crate) fn attach(http: &str, admin: Option<&str>, pid: u32) -> Server {
        let trim = |url: &str| url.trim_end_matches('/').to_owned();
        Server { http: trim(http), admin: admin.map(trim), pid, child: None }
    }

    /// The unix socket of a node that was started here, for `pop`'s own commands.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.child.as_ref().map(|started| started.folder.join("pop.sock"))
    }

    /// The metrics page; `None` when there is no admin listener.
    pub(crate) fn metrics(&self) -> Option<String> {
        http::request("GET", &format!("{}/metrics", self.admin.as_ref()?), &[], "").ok().map(|page| page.body)
    }

    /// Drops by reason, the reasons that have any.
    pub(crate) fn drop_counts(&self) -> Vec<(String, u64)> {
        self.metrics().map_or_else(Vec::new, |page| parse_drops(&page))
    }

    /// The same for a report.
    pub(crate) fn drops(&self) -> Value {
        self.drop_counts().into_iter().map(|(reason, count)| (reason, Value::from(count))).collect()
    }

    /// The packet workers' back end, in the status page's words.
    pub(crate) fn backend(&self) -> Option<String> {
        let page = http::request("GET", &format!("{}/api/v1/status", self.admin.as_ref()?), &[], "").ok()?;
        find_text(&serde_json::from_str(&page.body).ok()?, "backend")
    }

    /// Version and commit in the server's own words.
    pub(crate) fn version(&self) -> Option<String> {
        let page = http::request("GET", &format!("{}/version", self.admin.as_ref()?), &[], "").ok()?;
        (page.status == 200).then(|| page.body.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(started) = &mut self.child {
            // Nothing is left to lose after the measurement; SIGTERM's order is tested elsewhere.
            let _ = started.process.kill();
            let _ = started.process.wait();
            let _ = std::fs::remove_dir_all(&started.folder);
        }
    }
}

/// Reads stdout on a thread of its own: a server that neither speaks nor ends must not hang the bench.
fn read_ready_line(stdout: std::process::ChildStdout) -> Result<Value, String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    loop {
        let line = lines.recv_timeout(START_TIMEOUT).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => format!("the server printed no ready line within {START_TIMEOUT:?}"),
            mpsc::RecvTimeoutError::Disconnected => "the server ended before it was ready: its message is above".to_owned(),
        })?;
        if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
            return Ok(value);
        }
    }
}

/// The first text called `name` anywhere in `value`.
fn find_text(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Object(map) => match map.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => map.values().find_map(|value| find_text(value, name)),
        },
        Value::Array(list) => list.iter().find_map(|value| find_text(value, name)),
        _ => None,
    }
}

/// The sum of all samples of a metric; `None` when the page has none.
pub(crate) fn sum_metric(page: &str, name: &str) -> Option<f64> {
    let samples: Vec<f64> = page
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = if rest.starts_with('{') { rest.rsplit_once("} ")?.1 } else { rest.strip_prefix(' ')? };
            value.split(' ').next()?.parse().ok()
        })
        .collect();
    (!samples.is_empty()).then(|| samples.iter().sum())
}

fn parse_drops(page: &str) -> Vec<(String, u64)> {
    let mut drops = std::collections::BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("pop_rtp_dropped_packets_total{")) {
        if let Some((_, rest)) = line.split_once("reason=\"")
            && let Some((reason, rest)) = rest.split_once('"')
            && let Some(count) = rest.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok())
            && count > 0.0
        {
            *drops.entry(reason.to_owned()).or_insert(0) += count as u64;
        }
    }
    drops.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let page = "# TYPE a counter\na_total 3\na_total_other 9\nb{worker=\"0\"} 1\nb{worker=\"1\"} 2.5\n\
                    pop_rtp_dropped_packets_total{worker=\"0\",reason=\"srtp_auth\"} 4\n\
                    pop_rtp_dropped_packets_total{worker=\"1\",reason=\"srtp_auth\"} 1\n\
                    pop_rtp_dropped_packets_total{worker=\"1\",reason=\"too_old\"} 0\n";
        assert_eq!((sum_metric(page, "a_total"), sum_metric(page, "b"), sum_metric(page, "c")), (Some(3.0), Some(3.5), None));
        assert_eq!(parse_drops(page), [("srtp_auth".to_owned(), 5)]);
    }
}
