//! Several real nodes of one PoP, as `pop ca` makes them, on this machine.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::fanout::server::Server;
use crate::http;
use crate::network::Network;

/// What they are called.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// How long nodes have to find each other.
const SETTLE: Duration = Duration::from_secs(30);

/// The API key of all of them.
pub(crate) const KEY: (&str, &str) = ("bench", "a secret of this run alone, 0123456789ab");

/// The PoP: processes with an address each.
pub(crate) struct Nodes {
    /// Of each node.
    pub(crate) addresses: Vec<IpAddr>,
    program: PathBuf,
    folder: PathBuf,
    /// None of them is there while it is dead.
    pub(crate) servers: Vec<Option<Server>>,
    /// Has the transports of those whose sockets it has elsewhere.
    door: Option<usize>,
    /// Where people are.
    pub(crate) people: Handle,
}

impl Nodes {
    /// Starts a node at each of the addresses, with certificates of a new CA. The error is a sentence.
    pub(crate) fn make(program: &Path, addresses: &[IpAddr], door: Option<usize>, people: Handle) -> Result<Nodes, String> {
        let folder = std::env::temp_dir().join(format!("pop-bench-nodes-{}", std::process::id()));
        let servers = addresses.iter().map(|_| None).collect();
        let mut nodes = Nodes { addresses: addresses.to_vec(), program: program.to_owned(), folder, servers, door, people };
        nodes.ca(&["init"])?;
        for (at, name) in NAMES.into_iter().enumerate().take(addresses.len()) {
            let out = nodes.folder.join(name);
            nodes.ca(&[
                "issue",
                "--node",
                name,
                "--pop",
                "bench",
                "--address",
                &addresses[at].to_string(),
                "--out",
                &out.to_string_lossy(),
            ])?;
            nodes.start(at)?;
        }
        Ok(nodes)
    }

    fn ca(&self, words: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.arg("ca").args(words).arg("--dir").arg(self.folder.join("ca"));
        let ended = command.output().map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        if ended.status.success() { Ok(()) } else { Err(format!("pop ca {}: {}", words[0], said.trim())) }
    }

    /// Starts a node, also one that was there before.
    pub(crate) fn start(&mut self, at: usize) -> Result<(), String> {
        let (name, own, folder) = (NAMES[at], self.addresses[at], self.folder.join(NAMES[at]));
        let others: Vec<String> =
            (0..self.addresses.len()).filter(|other| *other != at).map(|other| format!("\"{}:7447\"", self.addresses[other])).collect();
        let text = format!(
            "[http]\nlisten = \"{own}:7880\"\nconnections_per_address_max = 4096\nrequests_per_address_per_s_max = 100000\n\
             [admin]\nlisten = \"{own}:9464\"\nsocket = \"{files}/pop.sock\"\n\
             [media]\naddresses = [\"{own}\"]\nport = 20000\nconsent_timeout = \"120s\"\n\
             [dataplane]\ntransports_max = 4000\n\
             [auth.keys]\n{} = \"{}\"\n[node]\nname = \"{name}\"\npop = \"bench\"\nstate_dir = \"{files}/state\"\n\
             [bus]\nlisten = [\"{own}:7447\"]\nconnect = [{}]\n\
             [mesh]\nsplit = {}\nlisten = \"{own}:7890\"\nca = \"{files}/ca.pem\"\ncert = \"{files}/node.pem\"\nkey = \"{files}/node.key\"\n\
             [log]\nlevel = \"warn\"\n",
            KEY.0,
            KEY.1,
            others.join(", "),
            Some(at) == self.door,
            files = folder.display(),
        );
        self.servers[at] = Some(Server::run(&self.program, &Network::open(true), self.folder.join(format!("{name}-config")), &text)?);
        Ok(())
    }

    /// Base URL of its signalling.
    pub(crate) fn http(&self, at: usize) -> Result<&str, String> {
        self.servers[at].as_ref().map(|server| &*server.http).ok_or_else(|| format!("node {} is dead", NAMES[at]))
    }

    /// Each knows all others, and has a link to each.
    pub(crate) async fn until_whole(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if self.addresses.iter().all(|address| self.is_whole(*address).unwrap_or(false)) {
                return Ok(());
            }
            if begun.elapsed() > SETTLE {
                let told: Vec<String> =
                    self.addresses.iter().zip(NAMES).map(|(address, name)| format!("{name} {}", tell(*address))).collect();
                return Err(format!("the nodes do not know each other after {SETTLE:?}: {}", told.join("; ")));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn is_whole(&self, address: IpAddr) -> Option<bool> {
        let status = status(address).ok()?;
        let others = self.addresses.len() - 1;
        let up = |list: &str| status[list].as_array().map_or(0, |of| of.iter().filter(|it| it["state"] == "up").count());
        Some(up("nodes") == others && up("links") == others)
    }
}

fn status(address: IpAddr) -> Result<Value, String> {
    let page = http::request("GET", &format!("http://{address}:9464/api/v1/status"), &[], "")?;
    serde_json::from_str(&page.body).map_err(|error| error.to_string())
}

/// What the node at `address` says of the others.
fn tell(address: IpAddr) -> String {
    status(address).map_or_else(
        |error| format!("says nothing: {error}"),
        |status| format!("knows nodes {}, links {}", status["nodes"], status["links"]),
    )
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
