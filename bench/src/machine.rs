//! Which machine a figure comes from, and the CPU time of its threads. All of it is read from /proc.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::network::Nic;

/// What a reader needs to compare two results.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// CPU model name.
    pub(crate) cpu: String,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Cores of the machine.
    pub(crate) cores: usize,
    /// `uring` or `mmsg`, of the sender that was measured.
    pub(crate) backend: String,
    /// Version of this program.
    pub(crate) version: &'static str,
    /// What the server says about itself, or this checkout's commit.
    pub(crate) commit: String,
    /// What lies between the node and its load; `null` when that is not this program's to know.
    pub(crate) nic: Option<Nic>,
    /// Which cores did what; `null` when nothing is pinned.
    pub(crate) pinning: Option<Pinning>,
}

/// Which cores did what.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pinning {
    /// A packet worker each.
    pub(crate) workers: Vec<usize>,
    /// The load generator and the sinks.
    pub(crate) load: usize,
    /// A worker shares its core, with the load or with another.
    pub(crate) oversubscribed: bool,
}

impl Pinning {
    /// `workers` workers from `first` on, round the machine's cores, and the load on `load`.
    pub(crate) fn new(first: usize, workers: usize, load: usize) -> Pinning {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).max(first + 1);
        let workers: Vec<usize> = (0..workers).map(|n| (first + n) % cores).collect();
        let shared = workers.contains(&load) || (1..workers.len()).any(|n| workers[..n].contains(&workers[n]));
        Pinning { workers, load, oversubscribed: shared }
    }
}

impl Machine {
    /// Describes this machine.
    pub(crate) fn describe(backend: &str, commit: Option<String>) -> Machine {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |(_, name)| name);
        Machine {
            cpu: model.to_owned(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
            cores: cpu.lines().filter(|line| line.starts_with("processor")).count(),
            backend: backend.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit.filter(|commit| commit != "unknown").or_else(checkout_commit).unwrap_or_else(|| "unknown".to_owned()),
            nic: None,
            pinning: None,
        }
    }

    /// The same with what lies between node and load, and who was where.
    pub(crate) fn with(self, nic: Nic, pinning: Pinning) -> Machine {
        Machine { nic: Some(nic), pinning: Some(pinning), ..self }
    }
}

fn checkout_commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The pinned packet threads of a server process.
#[derive(Debug)]
pub(crate) struct Workers {
    paths: Vec<String>,
}

impl Workers {
    /// The threads of `pid` that are named `pop-worker-N`.
    pub(crate) fn find(pid: u32) -> Result<Workers, String> {
        Workers::find_named(pid, |name| name.starts_with("pop-worker-"))
    }

    /// The one that is named `pop-worker-{index}`.
    pub(crate) fn find_one(pid: u32, index: usize) -> Result<Workers, String> {
        Workers::find_named(pid, |name| name.trim() == format!("pop-worker-{index}"))
    }

    fn find_named(pid: u32, is_wanted: impl Fn(&str) -> bool) -> Result<Workers, String> {
        let tasks = format!("/proc/{pid}/task");
        let entries =
            fs::read_dir(&tasks).map_err(|e| format!("{tasks}: {e}: the server's threads must be readable (same machine, same user)"))?;
        let paths: Vec<String> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = fs::read_to_string(path.join("comm")).ok()?;
                is_wanted(&name).then(|| path.join("schedstat").display().to_string())
            })
            .collect();
        if paths.is_empty() { Err(format!("process {pid} has no thread named pop-worker-N")) } else { Ok(Workers { paths }) }
    }

    /// The one process on this machine that has workers.
    pub(crate) fn find_process() -> Result<u32, String> {
        let pids = fs::read_dir("/proc").map_err(|e| format!("/proc: {e}"))?;
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let found: Vec<u32> = pids.filter(|pid| Workers::find(*pid).is_ok()).collect();
        match found[..] {
            [pid] => Ok(pid),
            [] => Err("no process here has a thread named pop-worker-N: run this on the server's machine".to_owned()),
            _ => Err(format!("several processes have packet workers ({found:?}): say which with --pid")),
        }
    }

    /// CPU nanoseconds of all workers together.
    pub(crate) fn cpu_ns(&self) -> Result<u64, String> {
        self.paths.iter().map(|path| cpu_ns(path)).sum()
    }

    /// Nanoseconds that they were ready to run and something else had their core, all together.
    pub(crate) fn waited_ns(&self) -> Result<u64, String> {
        self.paths.iter().map(|path| schedstat(path, 1)).sum()
    }
}

fn cpu_ns(path: &str) -> Result<u64, String> {
    schedstat(path, 0)
}

/// A field of schedstat: 0 is "time spent on the cpu", 1 "time spent waiting on a runqueue", both in nanoseconds
/// (Documentation/scheduler/sched-stats.rst).
fn schedstat(path: &str, field: usize) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    text.split(' ').nth(field).and_then(|field| field.parse().ok()).ok_or_else(|| format!("{path}: no time in {text:?}"))
}

/// CPU nanoseconds of all threads that a process has now. Where none ends meanwhile, the growth is what it spent, to a tick.
pub(crate) fn threads_cpu_ns(pid: u32) -> Result<u64, String> {
    let tasks = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&tasks).map_err(|e| format!("{tasks}: {e}"))?;
    // One that ended since the list was made is not there.
    let threads = entries.filter_map(|entry| cpu_ns(&entry.ok()?.path().join("schedstat").display().to_string()).ok());
    Ok(threads.sum())
}

/// CPU time of a whole process, its ended threads included, to 10 ms: fields 14 and 15 of stat are in ticks (proc_pid_stat(5)), and
/// Linux shows 100 of them a second whatever its own clock does.
pub(crate) fn process_cpu(pid: u32) -> Result<Duration, String> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    // The name in parentheses may hold blanks; behind it comes field 3.
    let fields: Vec<&str> = text.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    ticks.map(|ticks| Duration::from_millis(10 * ticks)).ok_or_else(|| format!("{path}: no CPU time"))
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1_024).ok_or_else(|| format!("{path}: no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_on_the_loads_core_is_told() {
        assert!(!Pinning::new(1, 1, 0).oversubscribed && Pinning::new(0, 1, 0).oversubscribed);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(Pinning::new(1, cores.max(2), 0).oversubscribed, "one of so many sits with the load");
    }

    #[test]
    fn cpu_time_of_a_thread_is_in_nanoseconds() {
        let read = || cpu_ns("/proc/thread-self/schedstat").unwrap();
        let (before, own) = (read(), pop_uring::thread_cpu_time());
        let mut sum = 0u64;
        while (pop_uring::thread_cpu_time() - own).as_millis() < 20 {
            sum = std::hint::black_box(sum + 1);
        }
        // The kernel brings the figure up to date at each tick, at the latest 10 ms apart.
        let ns = read() - before;
        assert!((8_000_000..200_000_000).contains(&ns), "{ns}");
        assert!(threads_cpu_ns(std::process::id()).unwrap() >= ns, "this thread is one of them");
        let all = process_cpu(std::process::id()).unwrap();
        assert!(all >= Duration::from_millis(10) && all.as_secs() < 3_600, "{all:?}");
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
        assert!(Workers::find(std::process::id()).is_err(), "a process without workers is told apart");
    }
}
