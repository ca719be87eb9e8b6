//! A way between people and nodes with a round trip, played by `pop-bench shaper`.
//!
//! ```text
//! namespace popbPID                        shaper          namespace shaper-PID-people
//! nodes 10.0.71.1 .. 3, who is watched == TUN == delay == TUN == people 10.0.71.100
//! ```
//! Nodes share their end: only what goes to people and back takes time. Both namespaces go when this process ends, whatever ends it.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::network::Network;

/// The wire. Fields in the order of their end: the shaper, then the namespace with all that is in it.
pub(super) struct Distance {
    shaper: Shaper,
    lines: Lines<BufReader<ChildStdout>>,
    people: PathBuf,
    network: Network,
}

/// It ends with its stdin.
struct Shaper {
    process: Child,
    commands: Option<ChildStdin>,
}

impl Distance {
    /// No distance yet, to nodes at `addresses`.
    pub(super) fn make(addresses: impl IntoIterator<Item = IpAddr>) -> Result<Distance, String> {
        let network = Network::open(false);
        let namespace = network.name().ok_or("--rtt needs namespaces, so root")?;
        let networks: Vec<String> = addresses.into_iter().map(|address| format!("{address}/24")).collect();
        let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let mut process = Command::new(program)
            .args(["shaper", "--end", &format!("pop@{namespace}={}", networks.join(",")), "--end", "people=10.0.71.100/24"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("the shaper: {error}"))?;
        let commands = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("stdout is piped above")).lines();
        let mut distance = Distance { shaper: Shaper { process, commands }, lines, people: PathBuf::new(), network };
        let ready = distance.read()?;
        let people = ready["ready"]["people"]["netns"].as_str().ok_or("the shaper names no namespace of people")?;
        distance.people = PathBuf::from("/run/netns").join(people);
        Ok(distance)
    }

    /// The file of the nodes' namespace.
    pub(super) fn nodes(&self) -> Option<PathBuf> {
        self.network.namespace().map(PathBuf::from)
    }

    /// The file of people's namespace.
    pub(super) fn people(&self) -> PathBuf {
        self.people.clone()
    }

    /// From now on people are so many milliseconds away, half of them each way.
    pub(super) fn set(&mut self, rtt_ms: u32) -> Result<(), String> {
        let commands = self.shaper.commands.as_mut().expect("stdin is piped, and open as long as we are here");
        writeln!(commands, "pop-people delay {}us", rtt_ms * 500).map_err(|error| format!("the shaper: {error}"))?;
        let answer = self.read()?;
        if answer["error"].is_null() { Ok(()) } else { Err(format!("the shaper: {}", answer["error"])) }
    }

    fn read(&mut self) -> Result<Value, String> {
        let line = self.lines.next().ok_or("the shaper ended")?.map_err(|error| format!("the shaper: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("the shaper said {line:?}: {error}"))
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.process.wait();
    }
}
