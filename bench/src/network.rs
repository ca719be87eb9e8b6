//! What lies between the node and its load: a veth pair into a namespace that is made for the run, or loopback.
//!
//! ```text
//! this namespace                  popbPID
//! load, sinks 198.18.x.1 == veth == 198.18.x.2 node, floor
//! ```
//! A guard process removes it all when this one ends, whatever ends it: the guard waits for the end of a pipe that only we hold.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pop_bench::shaper::process::ip;
use serde::Serialize;
use serde_json::{Value, json};

/// Deaf to what a terminal sends to the whole group; everything in the namespace is of this run. It makes what it removes: there is no moment in
/// which one is there without the other.
const GUARD: &str = "trap '' INT TERM HUP; ip netns add \"$0\" 2>&1 && echo && read -r _; for pid in $(ip netns pids \"$0\"); do kill -9 \"$pid\"; done; \
                     ip link del \"$0\"; ip netns del \"$0\"";

/// Networks of four addresses in 198.18.0.0/15, the block for benchmarks (RFC 2544).
const NETWORKS: u32 = 1 << 15;

/// Where the node is, as seen by its load.
#[derive(Debug)]
pub(crate) struct Network {
    veth: Option<Veth>,
    /// Why it is loopback.
    reason: Option<String>,
}

/// Both the namespace and our end of the pair have this name.
#[derive(Debug)]
struct Veth {
    name: String,
    first: u32,
    guard: Child,
}

/// What a report says about it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Nic {
    /// `veth` or `loopback`.
    pub(crate) kind: &'static str,
    /// Of the load's end.
    pub(crate) device: String,
    /// Largest IP packet, and the kernel's bounds of what it passes on uncut, from `ip -d link`.
    pub(crate) limits: Value,
    /// `on` or `off` by name, from `ethtool -k`; null without that program.
    pub(crate) offloads: Value,
    /// Why it is loopback, when that was not asked for.
    pub(crate) reason: Option<String>,
}

impl Network {
    /// A veth pair unless `loopback` is asked for or the pair cannot be made; that is said on stderr.
    pub(crate) fn open(loopback: bool) -> Network {
        if loopback {
            return Network { veth: None, reason: None };
        }
        match Veth::make() {
            Ok(veth) => Network { veth: Some(veth), reason: None },
            Err(reason) => {
                eprintln!("beware    loopback instead of veth, which segments nothing: {reason}");
                Network { veth: None, reason: Some(reason) }
            }
        }
    }

    /// Where clients and sinks bind.
    pub(crate) fn load_address(&self) -> IpAddr {
        self.address(1)
    }

    /// Where the node listens, and the floor sends from.
    pub(crate) fn node_address(&self) -> IpAddr {
        self.address(2)
    }

    fn address(&self, host: u32) -> IpAddr {
        IpAddr::V4(self.veth.as_ref().map_or(Ipv4Addr::LOCALHOST, |veth| Ipv4Addr::from_bits(veth.first + host)))
    }

    /// `program` at the node's end. The process that it becomes has the id of the command.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(veth) = &self.veth else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &veth.name]).arg(program);
        command
    }

    /// What `ip netns` calls the node's namespace; `None`: the one of this process.
    pub(crate) fn name(&self) -> Option<&str> {
        self.veth.as_ref().map(|veth| &*veth.name)
    }

    /// Its file.
    pub(crate) fn namespace(&self) -> Option<String> {
        self.name().map(|name| format!("/run/netns/{name}"))
    }

    /// It is a veth pair.
    pub(crate) fn is_veth(&self) -> bool {
        self.veth.is_some()
    }

    /// For the report.
    pub(crate) fn describe(&self) -> Nic {
        let kind = if self.is_veth() { "veth" } else { "loopback" };
        let device = self.veth.as_ref().map_or("lo", |veth| &veth.name);
        Nic { kind, device: device.to_owned(), limits: limits_of(device), offloads: offloads_of(device), reason: self.reason.clone() }
    }
}

impl Veth {
    fn make() -> Result<Veth, String> {
        let pid = std::process::id();
        let name = format!("popb{pid}");
        let first = Ipv4Addr::new(198, 18, 0, 0).to_bits() + 4 * (pid % NETWORKS);
        let guard = Command::new("sh")
            .args(["-c", GUARD, &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("sh: {e}"))?;
        // Owned from here on: every way out removes what there is.
        let mut veth = Veth { name, first, guard };
        let mut said = String::new();
        let out = veth.guard.stdout.take().expect("stdout is piped above");
        BufReader::new(out).read_line(&mut said).map_err(|e| format!("sh: {e}"))?;
        if said != "\n" {
            return Err(format!("ip netns add: {}", said.trim()));
        }
        let name = &veth.name;
        let address = |host: u32| format!("{}/30", Ipv4Addr::from_bits(first + host));
        ip(None, &format!("link add {name} type veth peer name node netns {name}"))?;
        ip(None, &format!("addr add {} dev {name}", address(1)))?;
        ip(None, &format!("link set {name} up"))?;
        ip(Some(name), "link set lo up")?;
        ip(Some(name), &format!("addr add {} dev node", address(2)))?;
        ip(Some(name), "link set node up")?;
        Ok(veth)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn limits_of(device: &str) -> Value {
    let output = Command::new("ip").args(["-d", "-j", "link", "show", device]).output();
    let links: Option<Value> = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    let link = links.and_then(|links| links.get(0).cloned()).unwrap_or_default();
    json!({"mtu": link["mtu"], "gso_max_size": link["gso_max_size"], "gso_max_segs": link["gso_max_segs"], "gro_max_size": link["gro_max_size"]})
}

fn offloads_of(device: &str) -> Value {
    let program = ["/usr/sbin/ethtool", "/sbin/ethtool"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("ethtool");
    let Ok(output) = Command::new(program).args(["-k", device]).output() else { return Value::Null };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = ["tx-checksumming", "generic-segmentation-offload", "generic-receive-offload", "tx-udp-segmentation", "rx-gro-list"];
    let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let found = lines.filter(|(name, _)| wanted.contains(name)).map(|(name, state)| {
        let state = state.split(' ').next().unwrap_or_default();
        (name.to_owned(), Value::from(state))
    });
    Value::Object(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_where_everything_is_when_it_is_asked_for() {
        let network = Network::open(true);
        assert_eq!((network.load_address(), network.node_address()), (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()));
        assert!(!network.is_veth() && network.namespace().is_none() && network.describe().kind == "loopback");
    }

    #[test]
    fn a_pair_carries_packets_between_namespaces_and_goes_with_its_owner() {
        let network = Network::open(false);
        let Some(file) = network.namespace() else { return println!("not root: {:?}", network.reason) };
        let sink = std::net::UdpSocket::bind((network.load_address(), 0)).expect("our end has its address");
        sink.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a time limit");
        let (from, to) = (network.node_address(), sink.local_addr().expect("bound"));
        let path = file.clone();
        std::thread::spawn(move || {
            pop_uring::enter_namespace(Path::new(&path)).expect("it is there");
            let socket = std::net::UdpSocket::bind((from, 0)).expect("the node's end has its address");
            socket.send_to(b"x", to).expect("it leaves");
        })
        .join()
        .expect("the other end");
        let (len, sender) = sink.recv_from(&mut [0; 8]).expect("it arrives");
        assert_eq!((len, sender.ip()), (1, from));
        drop(network);
        assert!(!Path::new(&file).exists(), "the namespace stayed");
    }
}
