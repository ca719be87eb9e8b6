//! What of the machine as a whole matters to packets: kernel, limits, clock, cores, and who else touches interrupts and ports.

use pop_uring::ClockState;

use super::host::{Host, parse_list, show_list, sysctl_path};
use super::{Finding, mib};
use crate::http::CONNECTIONS_MAX;
use crate::mesh::CARRIED_MAX;

/// Oldest kernel that is served: Debian 12's.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// File descriptors of a node that is full: connections of clients, each of which another node may have; those that this node has for
/// others; and some for sockets, rings and files.
const OPEN_FILES_MIN: u64 = (2 * CONNECTIONS_MAX + CARRIED_MAX) as u64 + 512;

/// Locked memory that a worker's rings may need, in bytes.
const LOCKED_MEMORY_MIN: u64 = 64 << 20;

/// Longest error of the wall clock that tokens and captures bear, in microseconds.
const CLOCK_ERROR_US_MAX: u64 = 1_000_000;

/// The settings that the package brings: what `--fix` sets, and where it keeps it.
const PACKAGED: &str = include_str!("../../../config/sysctl.d/90-pop.conf");

/// A kernel setting that packets need.
pub(super) struct Sysctl {
    name: &'static str,
    key: &'static str,
    /// The least that is enough; the packaged value leaves more room.
    min: u64,
    why: &'static str,
}

/// Every setting that `--fix` may raise. Raising one takes memory from nobody who does not ask for it.
pub(super) const SYSCTLS: [Sysctl; 5] = [
    Sysctl {
        name: "receive buffer",
        key: "net.core.rmem_max",
        min: pop_dataplane::worker::SOCKET_BUFFER_LEN as u64,
        why: "a busy worker's socket overflows early",
    },
    Sysctl {
        name: "send buffer",
        key: "net.core.wmem_max",
        min: pop_dataplane::worker::SOCKET_BUFFER_LEN as u64,
        why: "a burst of trains is refused by the socket",
    },
    Sysctl { name: "socket options", key: "net.core.optmem_max", min: 65_536, why: "control messages of a batch may not fit" },
    Sysctl {
        name: "backlog",
        key: "net.core.netdev_max_backlog",
        min: 10_000,
        why: "bursts between cores, on loopback and on veth are lost",
    },
    Sysctl {
        name: "reconnects",
        key: "net.ipv4.tcp_syn_linear_timeouts",
        // A minute of a cut.
        min: 60,
        why: "after a cut nodes find each other again as late as the cut was long",
    },
];

impl Sysctl {
    /// What the package sets.
    fn packaged(&self) -> u64 {
        // A minus: the kernel may not have it.
        let value =
            |line: &str| line.split_once('=').filter(|(key, _)| key.trim().trim_start_matches('-') == self.key)?.1.trim().parse().ok();
        PACKAGED.lines().find_map(value).unwrap_or(self.min)
    }
}

/// Judges a setting. `forced`: this user may exceed a buffer's limit (SO_RCVBUFFORCE, SO_SNDBUFFORCE).
pub(super) fn sysctl(host: &Host, sysctl: &Sysctl, forced: bool) -> Finding {
    let Sysctl { name, key, min, why } = sysctl;
    let Some(value) = host.sysctl(key) else {
        // A network namespace has no backlog of its own, for one.
        return Finding::ok(*name, format!("{key} cannot be read here"));
    };
    let forced = forced && (key.ends_with("rmem_max") || key.ends_with("wmem_max"));
    let found = format!("{key} = {value}");
    match value >= *min {
        true => Finding::ok(*name, found),
        false if forced => Finding::ok(*name, format!("{found}, and root may exceed it")),
        false => Finding::warn(*name, found, "raise it; `pop doctor --fix` does, and keeps it in sysctl.d")
            .why(*why)
            .command(format!("sysctl -w {key}={}", sysctl.packaged())),
    }
}

pub(super) fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => {
            Finding::warn("kernel", release, "Linux 6.1 is the oldest that is tested: upgrade, or watch the lines below")
        }
        _ => Finding::ok("kernel", release),
    }
}

/// `kernel.io_uring_disabled` (since Linux 6.6).
pub(super) fn io_uring(host: &Host) -> Option<Finding> {
    let (name, value) = ("io_uring switch", host.sysctl("kernel.io_uring_disabled")?);
    let found = format!("kernel.io_uring_disabled = {value}");
    Some(match value {
        0 => Finding::ok(name, found),
        _ => Finding::warn(name, found, "allow it, if the host's rules permit; recvmmsg and sendmmsg carry the same packets")
            .why("the ring saves system calls on the receive side")
            .command("sysctl -w kernel.io_uring_disabled=0"),
    })
}

/// A soft limit of this process, as its children would have it; `None` when there is none.
fn soft_limit(host: &Host, key: &str) -> Option<u64> {
    let text = host.read("/proc/self/limits")?;
    text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

pub(super) fn open_files(host: &Host) -> Finding {
    match soft_limit(host, "Max open files") {
        Some(max) if max < OPEN_FILES_MIN => Finding::warn("open files", format!("{max} at most"), "LimitNOFILE=262144 in the unit, or")
            .why("each HTTP connection is a file: at the limit no client gets in")
            .command(format!("ulimit -n {OPEN_FILES_MIN}")),
        Some(max) => Finding::ok("open files", format!("{max} at most")),
        None => Finding::ok("open files", "no limit"),
    }
}

pub(super) fn locked_memory(host: &Host) -> Option<Finding> {
    let max = soft_limit(host, "Max locked memory")?;
    let found = format!("{} at most", mib(max));
    Some(match max {
        LOCKED_MEMORY_MIN.. => Finding::ok("locked memory", found),
        _ => Finding::warn("locked memory", found, "LimitMEMLOCK=infinity in the unit, or")
            .why("older kernels count rings and registered buffers against it")
            .command("ulimit -l unlimited"),
    })
}

/// The clock that packets are timed by, and whether somebody keeps the wall clock right: tokens expire by it.
pub(super) fn clocks(host: &Host, state: Option<ClockState>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(source) = host.read("/sys/devices/system/clocksource/clocksource0/current_clocksource") {
        // Others leave the user program for each reading.
        let quick = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"].contains(&source.as_str());
        findings.push(match quick {
            true => Finding::ok("clock source", source),
            false => Finding::warn("clock source", source, "boot with clocksource=tsc where the CPU's is stable")
                .why("each reading of the clock is a system call"),
        });
    }
    findings.push(wall_clock(host, state));
    findings
}

fn wall_clock(host: &Host, state: Option<ClockState>) -> Finding {
    if let Some(ClockState { synchronized: true, error_us }) = state {
        let found = format!("synchronized, wrong by at most {} ms", error_us.div_ceil(1_000));
        return match error_us {
            0..=CLOCK_ERROR_US_MAX => Finding::ok("time", found),
            _ => {
                Finding::warn("time", found, "ask the time service why").why("tokens expire by the wall clock").command("chronyc tracking")
            }
        };
    }
    let keepers =
        ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/chronyd.pid", "/run/ntpd.pid", "/run/ntpsec/ntpd.pid"];
    match keepers.iter().find(|keeper| host.has(keeper)) {
        Some(keeper) => Finding::ok("time", format!("kept ({keeper})")),
        None => Finding::warn("time", "the kernel's clock is not synchronized, and no time service was seen", "install one")
            .why("tokens expire by the wall clock")
            .command("apt-get install chrony"),
    }
}

/// The CPU's frequency governor, where there is one, on the workers' cores.
pub(super) fn governor(host: &Host, workers: &[usize]) -> Option<Finding> {
    let of_core = |core: &usize| host.read(&format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"));
    let slow: Vec<usize> = workers.iter().copied().filter(|core| of_core(core).is_some_and(|governor| governor != "performance")).collect();
    match slow.first() {
        None => Some(Finding::ok("governor", workers.iter().find_map(of_core)?)),
        Some(first) => {
            let found = format!("{} on cores {}", of_core(first).unwrap_or_default(), show_list(&slow));
            let finding = Finding::warn("governor", found, "keep the clock up");
            Some(finding.why("a core that sleeps wakes late: latency is unsteady").command("cpupower frequency-set -g performance"))
        }
    }
}

/// Two workers on the threads of one physical core share its arithmetic.
pub(super) fn siblings(host: &Host, workers: &[usize]) -> Option<Finding> {
    let of_core = |core: usize| {
        let list = host.read(&format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"))?;
        Some(parse_list(&list))
    };
    if workers.iter().all(|core| of_core(*core).is_none_or(|siblings| siblings.len() < 2)) {
        return None;
    }
    let shared: Vec<usize> = workers
        .iter()
        .copied()
        .filter(|core| of_core(*core).is_some_and(|siblings| siblings.iter().any(|other| other != core && workers.contains(other))))
        .collect();
    if shared.is_empty() {
        return Some(Finding::ok("SMT", "each worker has a physical core"));
    }
    let finding = Finding::warn(
        "SMT",
        format!("workers on {} are threads of shared cores", show_list(&shared)),
        "name one thread per core in dataplane.cores",
    );
    Some(finding.why("two threads of a core encrypt no faster than one and a bit"))
}

/// Whether the service runs that moves interrupts every ten seconds.
pub(crate) fn runs_irqbalance(host: &Host) -> bool {
    let mut processes = host.list("/proc").into_iter().filter(|entry| entry.bytes().all(|byte| byte.is_ascii_digit()));
    processes.any(|process| host.read(&format!("/proc/{process}/comm")).is_some_and(|name| name == "irqbalance"))
}

pub(super) fn irqbalance(host: &Host) -> Option<Finding> {
    let finding = Finding::warn("irqbalance", "it runs", "stop it, or ban the workers' cores (IRQBALANCE_BANNED_CPULIST)")
        .why("it moves the queues' interrupts away from the cores that they were given")
        .command("systemctl disable --now irqbalance");
    runs_irqbalance(host).then_some(finding)
}

/// A table of connections that nobody needs for media.
pub(super) fn conntrack(host: &Host, ports: (u16, u16)) -> Option<Finding> {
    let (count, max) = (host.sysctl("net.netfilter.nf_conntrack_count")?, host.sysctl("net.netfilter.nf_conntrack_max")?);
    let (first, last) = ports;
    let table = "nft add table inet pop; nft add chain inet pop raw '{ type filter hook prerouting priority raw; }'";
    let finding = Finding::warn("conntrack", format!("on, {count} of {max} entries"), "leave the media ports out of it");
    Some(
        finding
            .why("each packet is looked up, and a full table drops new clients")
            .command(format!("{table}; nft add rule inet pop raw udp dport {first}-{last} notrack")),
    )
}

/// Total and available memory, in bytes.
pub(super) fn memory_bytes(host: &Host) -> Option<(u64, u64)> {
    let text = host.read("/proc/meminfo")?;
    let kib = |key: &str| text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse::<u64>().ok();
    Some((kib("MemTotal:")? << 10, kib("MemAvailable:")? << 10))
}

/// Where `--fix` keeps what it set: behind the package's 90-pop.conf, which a file of the same name would hide.
const SYSCTL_FILE: &str = "/etc/sysctl.d/91-pop-doctor.conf";

/// Raises what is too low, now and for the next boot; a line for each thing that was done. The error says what could not be.
pub(super) fn fix(host: &Host) -> Result<Vec<String>, String> {
    let low: Vec<&Sysctl> = SYSCTLS.iter().filter(|sysctl| host.sysctl(sysctl.key).is_some_and(|value| value < sysctl.min)).collect();
    if low.is_empty() {
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    for sysctl in &low {
        let (key, former, wanted) = (sysctl.key, host.sysctl(sysctl.key).unwrap_or_default(), sysctl.packaged());
        host.write(&sysctl_path(key), &wanted.to_string()).map_err(|error| format!("{key} cannot be set: {error}: run this as root"))?;
        done.push(format!("{key} = {wanted}, formerly {former}"));
    }
    let kept = host.read(SYSCTL_FILE).unwrap_or_else(|| "# Written by `pop doctor --fix`: what a media node needs.".to_owned());
    let is_low = |line: &str| line.split_once('=').is_some_and(|(key, _)| low.iter().any(|sysctl| sysctl.key == key.trim()));
    let others = kept.lines().filter(|line| !is_low(line)).map(str::to_owned);
    let lines: Vec<String> = others.chain(low.iter().map(|sysctl| format!("{} = {}", sysctl.key, sysctl.packaged()))).collect();
    host.replace(SYSCTL_FILE, &format!("{}\n", lines.join("\n"))).map_err(|error| format!("{SYSCTL_FILE} cannot be written: {error}"))?;
    done.push(format!("{SYSCTL_FILE} keeps it for the next boot"));
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn an_old_kernel_is_a_warning() {
        assert_eq!(kernel("5.10.0-28-amd64").level, Level::Warn);
        assert_eq!(kernel("6.1.0-28-amd64").level, Level::Ok);
        assert_eq!(kernel("10.0").level, Level::Ok);
        assert_eq!(kernel("?").level, Level::Ok);
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_a_warning() {
        let nothing = Host::new(Some(std::path::Path::new("/nowhere")));
        let judged = |state| wall_clock(&nothing, state).level;
        assert_eq!(judged(Some(ClockState { synchronized: true, error_us: 900 })), Level::Ok);
        assert_eq!(judged(Some(ClockState { synchronized: true, error_us: 2_000_000 })), Level::Warn);
        assert_eq!(judged(Some(ClockState { synchronized: false, error_us: 0 })), Level::Warn);
        assert_eq!(judged(None), Level::Warn);
    }
}
