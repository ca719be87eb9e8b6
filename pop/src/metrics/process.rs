//! The process's own figures under the names that every exporter uses.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Clock ticks per second in `/proc`: 100 on every architecture that Linux runs user programs on (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` at each scrape. A file that cannot be read leaves its metric out.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let stat = Stat::read();
        if let Some(stat) = &stat {
            let counter = ConstCounter::new(stat.cpu_s);
            let descriptor = encoder.encode_descriptor("process_cpu_seconds", "CPU time of all threads", None, MetricType::Counter)?;
            counter.encode(descriptor)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Memory in RAM", status_bytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Address space", status_bytes("VmSize:")),
            ("process_open_fds", "Open file descriptors", open_files()),
            ("process_max_fds", "File descriptors that may be open", open_files_max()),
            ("process_threads", "Threads", stat.as_ref().map(|stat| stat.threads)),
            ("process_start_time_seconds", "Start in Unix time", stat.and_then(|stat| Some(boot_time_s()? + stat.started_s))),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(descriptor)?;
            }
        }
        encode_worker_cpu(&mut encoder)
    }
}

/// How busy each packet worker is: its rate is the share of a core that the worker takes.
fn encode_worker_cpu(encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
    let help = "CPU time of each packet worker's thread";
    let mut family = encoder.encode_descriptor("pop_worker_cpu_seconds", help, None, MetricType::Counter)?;
    for (worker, cpu_s) in worker_cpu() {
        ConstCounter::new(cpu_s).encode(family.encode_family(&[("worker", worker.as_str())])?)?;
    }
    Ok(())
}

/// From `/proc/self/task/*/schedstat`, whose first number is nanoseconds on a core.
fn worker_cpu() -> Vec<(String, f64)> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut workers: Vec<_> = tasks
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let worker = name.trim_end().strip_prefix("pop-worker-")?.to_owned();
            let nanoseconds: f64 = fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()?;
            Some((worker, nanoseconds / 1e9))
        })
        .collect();
    workers.sort_by(|a, b| a.0.cmp(&b.0));
    workers
}

/// From `/proc/self/stat` (proc_pid_stat(5)).
struct Stat {
    cpu_s: f64,
    threads: f64,
    /// After the boot.
    started_s: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the name in parentheses and may hold spaces; the third comes after the last ')'.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let (user, system) = (field(14)?, field(15)?);
        Some(Self { cpu_s: (user + system) / TICKS_PER_SECOND, threads: field(20)?, started_s: field(22)? / TICKS_PER_SECOND })
    }
}

fn status_bytes(key: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1_024.0)
}

fn open_files() -> Option<f64> {
    // Reading the folder opens one more.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn open_files_max() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

fn boot_time_s() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
}
