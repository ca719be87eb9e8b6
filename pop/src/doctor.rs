//! `pop doctor`: what this host offers, what the node will use of it, and what to change. It changes nothing, unless `--fix` asks
//! it to raise the kernel settings that are too low.

pub(crate) mod host;
pub(crate) mod nic;
pub(crate) mod system;

use std::net::{SocketAddr, TcpListener, UdpSocket};

use pop_dataplane::limits;
use pop_uring::{BackendKind, Probe};
use serde::Serialize;
use serde_json::json;

use crate::backend::{self, Choice};
use crate::cli::{DoctorArgs, Failure};
use crate::config::{self, Backend, Config};
use crate::keys::ApiKeys;
use crate::node;
use crate::tls::TlsIdentity;
use crate::token::unix_now_s;
use host::Host;

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
    /// Why it matters; empty where the rest says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    /// What to change; empty when there is nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    change: String,
    /// The command that does it, where one does.
    #[serde(skip_serializing_if = "String::is_empty")]
    command: String,
}

impl Finding {
    fn new(level: Level, name: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Self {
        let (name, found, change) = (name.into(), found.into(), change.into());
        Self { name, level, found, why: String::new(), change, command: String::new() }
    }

    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Level::Ok, name, found, "")
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self::new(Level::Warn, name, found, change)
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self::new(Level::Fail, name, found, change)
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }
}

/// Prints the report; exit code 1 when the node would not start.
pub fn examine(args: &DoctorArgs) -> Result<(), Failure> {
    let config = args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    if args.bench {
        return backend::bench(&config, args.json);
    }
    let host = Host::new(args.root.as_deref());
    let fixed = if args.fix { system::fix(&host).map_err(Failure::Other)? } else { Vec::new() };
    let findings = findings(&config, &host);
    let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if args.json {
        println!("{}", json!({ "version": crate::VERSION, "verdict": verdict, "fixed": fixed, "findings": findings }));
    } else {
        fixed.iter().for_each(|line| println!("fixed {line}"));
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
    for Finding { name, level, found, why, change, command } in findings {
        lines.push_str(&format!("{:<4}  {name:<width$}  {found}\n", level.name()));
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        if !change.is_empty() {
            lines.push_str(&format!("{:<4}  {:<width$}  -> {change}{why}\n", "", ""));
        }
        if !command.is_empty() {
            lines.push_str(&format!("{:<4}  {:<width$}     {command}\n", "", ""));
        }
    }
    lines
}

/// The cores that workers may have: this process's, or all that a recorded host has.
pub(crate) fn cores(host: &Host) -> Vec<usize> {
    match host.is_live() {
        true => node::available_cores(),
        false => host.read("/sys/devices/system/cpu/online").map_or(Vec::new(), |list| host::parse_list(&list)),
    }
}

fn findings(config: &Config, host: &Host) -> Vec<Finding> {
    let available = cores(host);
    let cores = config.dataplane.cores.choose(&available);
    let workers = cores.clone().unwrap_or_default();
    // A recorded host is judged as the service's user would find it.
    let forced = host.is_live() && config::user_id() == 0;
    let mut findings = vec![system::kernel(&host.read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()))];
    if host.is_live() {
        let probe = pop_uring::probe();
        findings.extend(back_end(config.dataplane.backend, &probe, backend::choose(config, &probe)));
        // Locked memory is among them, as the kernel counted it for a ring that was made.
        findings.extend(features(config, &probe));
    } else {
        findings.extend(system::locked_memory(host));
    }
    findings.extend(system::io_uring(host));
    findings.push(cores_of(&available, cores));
    findings.extend(system::siblings(host, &workers));
    findings.extend(memory(config, host, workers.len().max(1)));
    findings.extend(system::SYSCTLS.iter().map(|sysctl| system::sysctl(host, sysctl, forced)));
    findings.push(system::open_files(host));
    if host.is_live() {
        findings.extend(ports(config, workers.len().max(1)));
        findings.push(keys(config));
        findings.extend(certificate(config));
    }
    findings.extend(system::clocks(host, host.is_live().then(pop_uring::clock_state).and_then(Result::ok)));
    findings.extend(system::governor(host, &workers));
    let cards = nic::carrying(host, &config.media.addresses);
    findings.extend(nic::findings(host, &cards, &workers));
    if !cards.is_empty() {
        findings.extend(system::irqbalance(host));
        let last = config.media.port.saturating_add(u16::try_from(workers.len().saturating_sub(1)).unwrap_or(u16::MAX));
        findings.extend(system::conntrack(host, (config.media.port, last)));
    }
    findings
}

fn back_end(wanted: Backend, probe: &Probe, choice: Result<Choice, String>) -> Vec<Finding> {
    let name = "back end";
    let Choice { kind, reason, warning } = match choice {
        Ok(choice) => choice,
        Err(sentence) => return vec![Finding::fail(name, "io_uring is refused", sentence)],
    };
    let found = format!("{kind}: {reason}");
    let first = match (wanted, probe.backend) {
        (Backend::Auto, BackendKind::Mmsg) => {
            Finding::warn(name, format!("{kind}, the fallback"), format!("{reason}; the fallback carries the same packets"))
        }
        _ => Finding::ok(name, found),
    };
    let ignored = warning.map(|warning| Finding::warn(name, "its verdict is ignored", warning).command("pop doctor --bench"));
    [first].into_iter().chain(ignored).collect()
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

fn memory(config: &Config, host: &Host, workers: usize) -> Vec<Finding> {
    let plan = limits::plan(&node::worker_limits(config));
    let each: u64 = plan.iter().map(limits::Term::bytes).sum();
    let all = each * workers as u64;
    let mut terms: Vec<_> = plan.iter().collect();
    terms.sort_by_key(|term| std::cmp::Reverse(term.bytes()));
    let largest: Vec<String> = terms.iter().take(3).map(|term| format!("{} {}", term.name, mib(term.bytes()))).collect();
    let found = format!("at most {} for {workers} workers, {} each ({})", mib(all), mib(each), largest.join(", "));
    let change = "lower dataplane.packet_pool, recv_buffers, trains or transports_max, or use fewer cores";
    vec![match system::memory_bytes(host) {
        Some((total, _)) if all > total => Finding::fail("memory plan", format!("{found}; the host has {}", mib(total)), change),
        Some((_, free)) if all > free => Finding::warn("memory plan", format!("{found}; only {} are free now", mib(free)), change),
        _ => Finding::ok("memory plan", found),
    }]
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
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
        let refused_at = |address: SocketAddr| {
            let tcp = || if config.media.tcp { TcpListener::bind(address).err() } else { None };
            UdpSocket::bind(address).err().or_else(tcp)
        };
        let refused = (0..workers).map(of_worker).find_map(|address| Some((address, refused_at(address)?)));
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

/// A certificate that ends within this long is worth a word: ACME clients renew 30 days before.
const EXPIRY_WARNING_S: u64 = 14 * 86_400;

fn certificate(config: &Config) -> Option<Finding> {
    let (cert, key) = (config.http.tls_cert.as_ref()?, config.http.tls_key.as_ref()?);
    Some(match TlsIdentity::load(cert, key) {
        Err(sentence) => Finding::fail("certificate", "cannot be used", sentence),
        Ok(identity) => judge_expiry(identity.expires_at_s(), unix_now_s()),
    })
}

fn judge_expiry(expires_at_s: u64, now_s: u64) -> Finding {
    let left_s = expires_at_s.saturating_sub(now_s);
    let renew = "renew the files of http.tls_cert and http.tls_key, then: pop reload";
    match left_s {
        0 => Finding::warn("certificate", "has expired: clients refuse it", renew),
        1..EXPIRY_WARNING_S => Finding::warn("certificate", format!("ends in {} days", left_s / 86_400), renew),
        _ => Finding::ok("certificate", format!("valid for {} days", left_s / 86_400)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demanded_ring_that_is_refused_keeps_the_node_from_starting() {
        let refused = Probe { kernel: "6.1".into(), features: Vec::new(), backend: BackendKind::Mmsg, reason: "io_uring is off".into() };
        let first = |wanted, choice| back_end(wanted, &refused, choice).remove(0).level;
        let mmsg = Choice { kind: BackendKind::Mmsg, reason: "io_uring is off".into(), warning: None };
        assert_eq!(first(Backend::IoUring, Err("io_uring is off".into())), Level::Fail);
        assert_eq!(first(Backend::Auto, Ok(mmsg.clone())), Level::Warn);
        assert_eq!(first(Backend::Mmsg, Ok(mmsg.clone())), Level::Ok);
        let unread = Choice { warning: Some("backend.json is ignored".into()), ..mmsg };
        assert_eq!(back_end(Backend::Mmsg, &refused, Ok(unread))[1].level, Level::Warn);
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
        assert_eq!(memory(&config, &Host::new(None), 256)[0].level, Level::Fail);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_a_warning() {
        assert_eq!(judge_expiry(100 * 86_400, 0), Finding::ok("certificate", "valid for 100 days"));
        assert_eq!(judge_expiry(13 * 86_400, 0).level, Level::Warn);
        assert!(judge_expiry(10, 10).found.starts_with("has expired"));
    }

    #[test]
    fn a_line_with_advice_is_two_lines() {
        let text = report(&[Finding::ok("a", "fine"), Finding::warn("name", "so so", "do this").why("it helps").command("do it")]);
        assert_eq!(text, "ok    a     fine\nwarn  name  so so\n            -> do this (it helps)\n               do it\n");
    }
}
