//! What `/proc` and `/sys` say of the host.

use std::fs;
use std::path::Path;

use super::Finding;

/// Total and available memory, in bytes.
pub(super) fn memory_bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse::<u64>().ok();
    Some((kib("MemTotal:")? << 10, kib("MemAvailable:")? << 10))
}

/// A number under `/proc/sys`, by its sysctl name.
pub(super) fn sysctl(name: &str) -> Option<u64> {
    read(&format!("/proc/sys/{}", name.replace('.', "/")))?.parse().ok()
}

/// The soft limit of open files.
pub(super) fn open_files_max() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// The clock that packets are timed by, and whether somebody keeps the wall clock right: tokens expire by it.
pub(super) fn clock() -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(source) = read("/sys/devices/system/clocksource/clocksource0/current_clocksource") {
        // Others leave the user program for each reading.
        let quick = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"].contains(&source.as_str());
        findings.push(match quick {
            true => Finding::ok("clock source", source),
            false => {
                Finding::warn("clock source", source, "a reading is a system call: boot with clocksource=tsc where the CPU's is stable")
            }
        });
    }
    let keepers =
        ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/chronyd.pid", "/run/ntpd.pid", "/run/ntpsec/ntpd.pid"];
    findings.push(match keepers.iter().find(|keeper| Path::new(keeper).exists()) {
        Some(keeper) => Finding::ok("time", format!("kept ({keeper})")),
        None => Finding::warn("time", "no time service was seen", "install chrony: tokens expire by the wall clock"),
    });
    findings
}

/// The CPU's frequency governor, where there is one.
pub(super) fn governor() -> Option<Finding> {
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    Some(match governor.as_str() {
        "performance" => Finding::ok("governor", governor),
        _ => Finding::warn("governor", governor, "cpupower frequency-set -g performance: latency is steadier"),
    })
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
