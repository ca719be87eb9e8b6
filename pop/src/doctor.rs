//! `pop doctor`: what this host offers, what the node will use of it, and what to change. It changes nothing.

mod host;

use std::net::{SocketAddr, TcpListener, UdpSocket};

use pop_dataplane::limits;
use pop_uring::{BackendKind, Probe};
use serde::Serialize;
use serde_json::json;

use crate::cli::{DoctorArgs, Failure};
use crate::config::{self, Backend, Config};
use crate::keys::ApiKeys;
use crate::node;

/// Oldest kernel that is served: Debian 12's.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Socket buffer that a media socket asks for, in bytes.
const SOCKET_BUFFER_LEN: u64 = pop_dataplane::worker::SOCKET_BUFFER_LEN as u64;

/// File descriptors of a node that is full: HTTP connections, and some tens for sockets, rings and files.
const OPEN_FILES_MIN: u64 = 4_096 + 256;

/// How a finding is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// The node will not start.
    Fail,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    name: String,
    /// How it is judged.
    level: Level,
    /// What was found.
    found: String,
    /// What to change; empty when there is nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    change: String,
}

impl Finding {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Ok, found: found.into(), change: String::new() }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Warn, found: found.into(), change: change.into() }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Fail, found: found.into(), change: change.into() }
    }
}

/// Prints the report; exit code 1 when the node would not start.
pub fn examine(args: &DoctorArgs) -> Result<(), Failure> {
    let config = args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let findings = findings(&config);
    let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if args.json {
        println!("{}", json!({ "version": crate::VERSION, "verdict": verdict, "findings": findings }));
    } else {
        print!("{}", report(&findings));
    }
    match findings.iter().filter(|finding| finding.level == Level::Fail).count() {
        0 => Ok(()),
        count => Err(Failure::Other(format!("{count} of these keep the node from starting: see the lines that begin with fail"))),
    }
}

fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
    let mut lines = String::new();
    for Finding { name, level, found, change } in findings {
        lines.push_str(&format!("{:<4}  {name:<width$}  {found}\n", level.name()));
        if !change.is_empty() {
            lines.push_str(&format!("{:<4}  {:<width$}  -> {change}\n", "", ""));
        }
    }
    lines
}

fn findings(config: &Config) -> Vec<Finding> {
    let probe = pop_uring::probe();
    let cores = config.dataplane.cores.choose(&node::available_cores());
    let workers = cores.as_ref().map_or(1, Vec::len);
    let mut findings = vec![kernel(&probe.kernel), backend(config.dataplane.backend, &probe)];
    findings.extend(features(config, &probe));
    findings.push(cores_of(&node::available_cores(), cores));
    findings.extend(memory(config, workers));
    findings.extend([
        socket_buffer("receive buffer", "net.core.rmem_max"),
        socket_buffer("send buffer", "net.core.wmem_max"),
        open_files(),
    ]);
    findings.extend(ports(config, workers));
    findings.push(keys(config));
    findings.extend(host::clock());
    findings.extend(host::governor());
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => {
            Finding::warn("kernel", release, "Linux 6.1 is the oldest that is tested: upgrade, or watch the lines below")
        }
        _ => Finding::ok("kernel", release),
    }
}

fn backend(wanted: Backend, probe: &Probe) -> Finding {
    let (used, reason) = (probe.backend.name(), &probe.reason);
    match (wanted, probe.backend) {
        (Backend::Mmsg, _) => Finding::ok("back end", "mmsg, as dataplane.backend says"),
        (Backend::IoUring, BackendKind::Mmsg) => Finding::fail("back end", reason, "set dataplane.backend to \"auto\" or \"mmsg\""),
        (_, BackendKind::Uring) => Finding::ok("back end", format!("{used}: {reason}")),
        (Backend::Auto, BackendKind::Mmsg) => {
            Finding::warn("back end", format!("{used}, the fallback"), format!("{reason}; the fallback carries the same packets"))
        }
    }
}

fn features(config: &Config, probe: &Probe) -> Vec<Finding> {
    let judge = |feature: &pop_uring::Feature| match feature.available {
        true => Finding::ok(feature.name, &feature.detail),
        false if feature.name == "udp_gro" && !config.dataplane.gro => Finding::ok(feature.name, "not used: dataplane.gro is false"),
        false => Finding::warn(feature.name, "not available", &feature.detail),
    };
    probe.features.iter().map(judge).collect()
}

fn cores_of(available: &[usize], chosen: Result<Vec<usize>, String>) -> Finding {
    let cores = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    match chosen {
        Err(message) => Finding::fail("cores", cores(available), message),
        Ok(workers) if workers.is_empty() => Finding::fail("cores", "none is known", "set dataplane.cores to core numbers"),
        Ok(workers) if workers.len() == available.len() => Finding::warn(
            "cores",
            format!("all of {} carry workers", cores(available)),
            "leave one to control and kernel: add a core, or set dataplane.cores",
        ),
        Ok(workers) => Finding::ok("cores", format!("workers on {} of {}", cores(&workers), cores(available))),
    }
}

fn memory(config: &Config, workers: usize) -> Vec<Finding> {
    let plan = limits::plan(&node::worker_limits(config));
    let each: u64 = plan.iter().map(limits::Term::bytes).sum();
    let all = each * workers as u64;
    let mut terms: Vec<_> = plan.iter().collect();
    terms.sort_by_key(|term| std::cmp::Reverse(term.bytes()));
    let largest: Vec<String> = terms.iter().take(3).map(|term| format!("{} {}", term.name, mib(term.bytes()))).collect();
    let found = format!("at most {} for {workers} workers, {} each ({})", mib(all), mib(each), largest.join(", "));
    let change = "lower dataplane.packet_pool, recv_buffers, trains or transports_max, or use fewer cores";
    vec![match host::memory_bytes() {
        Some((total, _)) if all > total => Finding::fail("memory plan", format!("{found}; the host has {}", mib(total)), change),
        Some((_, free)) if all > free => Finding::warn("memory plan", format!("{found}; only {} are free now", mib(free)), change),
        _ => Finding::ok("memory plan", found),
    }]
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn socket_buffer(name: &str, sysctl: &str) -> Finding {
    match host::sysctl(sysctl) {
        // SO_RCVBUFFORCE and SO_SNDBUFFORCE.
        Some(max) if max < SOCKET_BUFFER_LEN && config::user_id() == 0 => {
            Finding::ok(name, format!("{}: root may exceed {sysctl} = {max}", mib(SOCKET_BUFFER_LEN)))
        }
        None => Finding::warn(name, format!("{sysctl} cannot be read"), format!("set it: sysctl -w {sysctl}={SOCKET_BUFFER_LEN}")),
        Some(max) if max < SOCKET_BUFFER_LEN => Finding::warn(
            name,
            format!("{sysctl} = {max}: a busy worker's socket overflows early"),
            format!("sysctl -w {sysctl}={SOCKET_BUFFER_LEN}, and the line {sysctl} = {SOCKET_BUFFER_LEN} in sysctl.d to keep it"),
        ),
        Some(max) => Finding::ok(name, format!("{sysctl} = {max}")),
    }
}

fn open_files() -> Finding {
    match host::open_files_max() {
        Some(max) if max < OPEN_FILES_MIN => Finding::warn(
            "open files",
            format!("{max} at most"),
            format!("ulimit -n {OPEN_FILES_MIN}, or LimitNOFILE={OPEN_FILES_MIN} in the unit"),
        ),
        Some(max) => Finding::ok("open files", format!("{max} at most")),
        None => Finding::ok("open files", "no limit is known"),
    }
}

/// Each port is tried by binding it for a moment.
fn ports(config: &Config, workers: usize) -> Vec<Finding> {
    let running = std::os::unix::net::UnixStream::connect(config.admin.socket_path()).is_ok();
    let mut findings = vec![
        tried("http.listen", config.http.listen, TcpListener::bind(config.http.listen).err(), running),
        tried("admin.listen", config.admin.listen, TcpListener::bind(config.admin.listen).err(), running),
    ];
    if let Err(message) = config.media.check_ports(workers) {
        findings.push(Finding::fail("media.port", "too high", message));
        return findings;
    }
    for address in &config.media.addresses {
        let of_worker = |worker: usize| match config.media.port {
            0 => SocketAddr::new(*address, 0),
            // check_ports has seen that the last one fits.
            port => SocketAddr::new(*address, port + worker as u16),
        };
        let refused = (0..workers).map(of_worker).find_map(|address| Some((address, UdpSocket::bind(address).err()?)));
        let (shown, error) = refused.map_or((of_worker(0), None), |(address, error)| (address, Some(error)));
        findings.push(tried("media", shown, error, running));
    }
    findings
}

fn tried(key: &str, address: SocketAddr, error: Option<std::io::Error>, running: bool) -> Finding {
    let Some(error) = error else { return Finding::ok(key, format!("{address} is free")) };
    match error.kind() {
        std::io::ErrorKind::AddrInUse if running => Finding::ok(key, format!("{address} is taken, and a node is running here")),
        std::io::ErrorKind::AddrInUse => {
            Finding::fail(key, format!("{address} is taken"), "stop who has it (ss -lnptu shows), or choose another port")
        }
        std::io::ErrorKind::AddrNotAvailable if address.ip().is_loopback() => Finding::warn(
            key,
            format!("{address} is not on this host"),
            "without a config it is left out; with one, take it out of media.addresses",
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            Finding::fail(key, format!("{address} is not on this host"), "name one of `ip address`; behind NAT, use media.advertise")
        }
        std::io::ErrorKind::PermissionDenied => {
            Finding::fail(key, format!("{address} needs CAP_NET_BIND_SERVICE"), "grant it, or choose a port from 1024 on")
        }
        _ => Finding::fail(key, format!("{address}: {error}"), "choose another address or port"),
    }
}

fn keys(config: &Config) -> Finding {
    match ApiKeys::from_config(&config.auth) {
        Err(error) => Finding::fail("API keys", error.to_string(), "see [auth] in config/pop.toml"),
        Ok(keys) if keys.drawn() => Finding::ok("API keys", "none: one is drawn at each start and ends with the process"),
        Ok(keys) => Finding::ok("API keys", format!("{}", keys.iter().count())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_a_warning() {
        assert_eq!(kernel("5.10.0-28-amd64").level, Level::Warn);
        assert_eq!(kernel("6.1.0-28-amd64").level, Level::Ok);
        assert_eq!(kernel("10.0").level, Level::Ok);
        assert_eq!(kernel("?").level, Level::Ok);
    }

    #[test]
    fn a_demanded_ring_that_is_refused_keeps_the_node_from_starting() {
        let refused = Probe { kernel: "6.1".into(), features: Vec::new(), backend: BackendKind::Mmsg, reason: "io_uring is off".into() };
        assert_eq!(backend(Backend::IoUring, &refused).level, Level::Fail);
        assert_eq!(backend(Backend::Auto, &refused).level, Level::Warn);
        assert_eq!(backend(Backend::Mmsg, &refused).level, Level::Ok);
    }

    #[test]
    fn a_taken_port_is_a_failure_unless_the_node_has_it() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = held.local_addr().expect("it is bound");
        let again = || TcpListener::bind(address).err();
        assert_eq!(tried("http.listen", address, again(), false).level, Level::Fail);
        assert_eq!(tried("http.listen", address, again(), true).level, Level::Ok);
    }

    #[test]
    fn workers_on_every_core_leave_none_to_the_kernel() {
        assert_eq!(cores_of(&[0], Ok(vec![0])).level, Level::Warn);
        assert_eq!(cores_of(&[0, 1], Ok(vec![1])), Finding::ok("cores", "workers on 1 of 0,1"));
        assert_eq!(cores_of(&[0], Err("no core 7".into())).level, Level::Fail);
    }

    #[test]
    fn a_plan_beyond_the_host_is_a_failure() {
        let mut config = Config::default();
        config.dataplane.packet_pool = 4_194_304;
        assert_eq!(memory(&config, 256)[0].level, Level::Fail);
    }

    #[test]
    fn a_line_with_advice_is_two_lines() {
        let text = report(&[Finding::ok("a", "fine"), Finding::warn("name", "so so", "do this")]);
        assert_eq!(text, "ok    a     fine\nwarn  name  so so\n            -> do this\n");
    }
}
