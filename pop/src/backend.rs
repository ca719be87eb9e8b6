//! Which back end carries the packets, and why: what the config demands, what the kernel grants, and what `pop doctor --bench`
//! measured here.
//!
//! A verdict is about one kernel release on one CPU model. Those of the last few lie in the state directory; one about another
//! machine says nothing, and a file that cannot be read is as good as none.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pop_uring::{BackendKind, Comparison, Figure, Probe, Spread};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::Failure;
use crate::config::{Backend, Config};
use crate::state;
use crate::token::unix_now_s;

/// In the state directory.
const VERDICTS_FILE: &str = "backend.json";

/// The shape of that file; another one is not read.
const VERSION: u32 = 1;

/// Kernels that are remembered: the one in use, and those that a boot menu still has.
const VERDICTS_MAX: usize = 8;

/// Longest file that is read, in bytes; eight verdicts take 2 KiB.
const FILE_LEN_MAX: u64 = 64 << 10;

/// Rounds of `pop doctor --bench`, about 3 s: enough for a 95 % interval that leaves out the three worst on either side.
const ROUNDS: usize = 15;

/// The back end that a node takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which one.
    pub kind: BackendKind,
    /// Why, in words.
    pub reason: String,
    /// What was found in the way of a better choice: a file of verdicts that cannot be read.
    pub warning: Option<String>,
}

/// Chooses for a node on this machine.
///
/// # Errors
///
/// `io_uring` is demanded and refused; the sentence says why.
pub fn choose(config: &Config, probe: &Probe) -> Result<Choice, String> {
    let dir = state::folder(&config.node);
    choose_from(config.dataplane.backend, probe, dir.as_deref(), &cpu_model())
}

fn choose_from(wanted: Backend, probe: &Probe, dir: Option<&Path>, cpu: &str) -> Result<Choice, String> {
    let choice = |kind, reason: String| Choice { kind, reason, warning: None };
    match (wanted, probe.backend) {
        (Backend::Mmsg, _) => Ok(choice(BackendKind::Mmsg, "dataplane.backend says so".to_owned())),
        (Backend::IoUring, BackendKind::Uring) => Ok(choice(BackendKind::Uring, "dataplane.backend says so".to_owned())),
        (Backend::IoUring, BackendKind::Mmsg) => {
            Err(format!("dataplane.backend is \"io_uring\", but {}; set it to \"auto\" or \"mmsg\"", probe.reason))
        }
        (Backend::Auto, BackendKind::Mmsg) => Ok(choice(BackendKind::Mmsg, probe.reason.clone())),
        (Backend::Auto, BackendKind::Uring) => {
            let (verdicts, warning) = dir.map_or((Vec::new(), None), |dir| match read(&dir.join(VERDICTS_FILE)) {
                Ok(verdicts) => (verdicts, None),
                Err(sentence) => (Vec::new(), Some(sentence)),
            });
            let verdict = verdicts.iter().find(|verdict| verdict.is_about(&probe.kernel, cpu));
            let (kind, reason) = match verdict {
                Some(verdict) => (verdict.faster().unwrap_or(BackendKind::Uring), verdict.sentence()),
                None => (BackendKind::Uring, format!("{}; `pop doctor --bench` tells whether mmsg is faster here", probe.reason)),
            };
            Ok(Choice { kind, reason, warning })
        }
    }
}

/// What one measurement said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    /// The kernel's release.
    kernel: String,
    /// The CPU's model.
    cpu: String,
    /// Name of the faster back end; absent: the difference was noise.
    faster: Option<String>,
    /// CPU time of mmsg over that of io_uring, median.
    ratio: f64,
    /// Where the true median lies with 95 % confidence.
    ratio_interval: (f64, f64),
    rounds: usize,
    /// Unix time in seconds.
    measured_at_s: u64,
}

impl Verdict {
    fn new(kernel: &str, cpu: &str, compared: &Comparison) -> Verdict {
        Verdict {
            kernel: kernel.to_owned(),
            cpu: cpu.to_owned(),
            faster: compared.faster().map(|kind| kind.name().to_owned()),
            ratio: compared.ratio.median,
            ratio_interval: compared.ratio_interval,
            rounds: compared.rounds,
            measured_at_s: unix_now_s(),
        }
    }

    fn is_about(&self, kernel: &str, cpu: &str) -> bool {
        self.kernel == kernel && self.cpu == cpu
    }

    fn faster(&self) -> Option<BackendKind> {
        self.faster.as_deref().and_then(|name| name.parse().ok())
    }

    /// What it means, with by how much.
    fn sentence(&self) -> String {
        let (low, high) = self.ratio_interval;
        match self.faster() {
            Some(BackendKind::Uring) => format!("io_uring is faster here: mmsg takes {}", percent_more(self.ratio, low, high)),
            Some(BackendKind::Mmsg) => {
                format!("mmsg is faster here: io_uring takes {}", percent_more(1.0 / self.ratio, 1.0 / high, 1.0 / low))
            }
            None => format!(
                "the difference is noise here: mmsg takes {:.2} times the CPU time of io_uring ({low:.2} to {high:.2}); io_uring is the default",
                self.ratio
            ),
        }
    }
}

fn percent_more(ratio: f64, low: f64, high: f64) -> String {
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    format!("{:.0} % more CPU time ({:.0} to {:.0} %)", percent(ratio), percent(low), percent(high))
}

/// The file as a whole.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdicts {
    version: u32,
    verdicts: Vec<Verdict>,
}

/// The verdicts in `file`; none where there is no file. The error is a sentence for the operator.
fn read(file: &Path) -> Result<Vec<Verdict>, String> {
    let ignored = |why: &dyn std::fmt::Display| format!("{} is ignored: {why}; `pop doctor --bench` writes it anew", file.display());
    let mut text = String::new();
    let opened = File::open(file).and_then(|file| file.take(FILE_LEN_MAX).read_to_string(&mut text));
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ignored(&error)),
        Ok(_) => {}
    }
    let Verdicts { version, verdicts } = serde_json::from_str(&text).map_err(|error| ignored(&error))?;
    let known = |verdict: &Verdict| verdict.faster.is_none() || verdict.faster().is_some();
    match version {
        VERSION if verdicts.iter().all(known) => Ok(verdicts),
        VERSION => Err(ignored(&"it names an unknown back end")),
        _ => Err(ignored(&format!("it has version {version}, not {VERSION}"))),
    }
}

/// Keeps `verdict` in `dir`, in place of an older one about the same machine. Root measures, perhaps under a narrow umask, and a service of
/// another user reads: what a machine is like is no secret, so everybody may.
fn keep(dir: &Path, verdict: Verdict) -> io::Result<PathBuf> {
    if !dir.exists() {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    let file = dir.join(VERDICTS_FILE);
    let mut verdicts = read(&file).unwrap_or_default();
    verdicts.retain(|other| !other.is_about(&verdict.kernel, &verdict.cpu));
    verdicts.insert(0, verdict);
    verdicts.truncate(VERDICTS_MAX);
    let text = serde_json::to_string_pretty(&Verdicts { version: VERSION, verdicts }).map_err(io::Error::other)?;
    state::replace_file(&file, format!("{text}\n").as_bytes())?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    Ok(file)
}

/// The CPU's model as the kernel names it; the architecture where it names none.
fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == "model name"));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned())
}

/// `pop doctor --bench`: measures both back ends, prints what they cost, and keeps the verdict.
pub fn bench(config: &Config, as_json: bool) -> Result<(), Failure> {
    let probe = pop_uring::probe();
    if probe.backend == BackendKind::Mmsg {
        return Err(Failure::Other(format!("there is nothing to compare: {}", probe.reason)));
    }
    let compared = pop_uring::compare(ROUNDS).map_err(|error| Failure::Other(format!("the back ends could not be compared: {error}")))?;
    let verdict = Verdict::new(&probe.kernel, &cpu_model(), &compared);
    let kept = state::folder(&config.node).map(|dir| (keep(&dir, verdict.clone()), dir));
    let kept_in = kept.as_ref().and_then(|(kept, _)| kept.as_ref().ok());
    if as_json {
        println!("{}", document(&compared, &verdict, kept_in));
    } else {
        print!("{}", table(&compared));
        println!("{} on {}: {}", verdict.kernel, verdict.cpu, verdict.sentence());
        match kept_in {
            Some(file) => println!("kept in {}: dataplane.backend = \"auto\" follows it from the next start on", file.display()),
            None => println!("not kept: there is no state directory that can be written (node.state_dir)"),
        }
    }
    match kept {
        Some((Err(error), dir)) => Err(Failure::Other(format!("the verdict could not be kept in {}: {error}", dir.display()))),
        _ => Ok(()),
    }
}

fn table(compared: &Comparison) -> String {
    let mut lines = format!("CPU ns per 1,100-byte datagram over loopback, {} alternating rounds\n", compared.rounds);
    lines.push_str(&format!("{:<9}{:>6}  {:<9}{:>8}{:>8}{:>8}\n", "case", "train", "back end", "median", "min", "max"));
    for Figure { case, train, backend, cpu_ns: Spread { min, median, max } } in &compared.figures {
        lines.push_str(&format!("{case:<9}{train:>6}  {:<9}{median:>8.0}{min:>8.0}{max:>8.0}\n", backend.name()));
    }
    lines
}

fn document(compared: &Comparison, verdict: &Verdict, file: Option<&PathBuf>) -> serde_json::Value {
    let spread = |Spread { min, median, max }: Spread| json!({ "min": min, "median": median, "max": max });
    let figures: Vec<_> = compared
        .figures
        .iter()
        .map(|figure| {
            json!({ "case": figure.case, "train": figure.train, "backend": figure.backend.name(), "cpu_ns": spread(figure.cpu_ns) })
        })
        .collect();
    let checksum = format!("{:016x}", compared.checksum);
    json!({
        "version": crate::VERSION,
        "figures": figures,
        "ratio": spread(compared.ratio),
        "verdict": verdict,
        "sentence": verdict.sentence(),
        "file": file,
        "checksum": checksum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            Folder(std::env::temp_dir().join(format!("pop-backend-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn verdict(kernel: &str, faster: Option<&str>, ratio: f64) -> Verdict {
        Verdict {
            kernel: kernel.to_owned(),
            cpu: "A".to_owned(),
            faster: faster.map(str::to_owned),
            ratio,
            ratio_interval: (ratio - 0.01, ratio + 0.01),
            rounds: 15,
            measured_at_s: 1,
        }
    }

    fn probe(backend: BackendKind) -> Probe {
        Probe { kernel: "6.12".to_owned(), features: Vec::new(), backend, reason: "the ring says".to_owned() }
    }

    fn auto(dir: &Path) -> Choice {
        choose_from(Backend::Auto, &probe(BackendKind::Uring), Some(dir), "A").expect("auto always finds one")
    }

    #[test]
    fn auto_follows_the_verdict_about_this_kernel_and_cpu_alone() {
        let folder = Folder::new("follows");
        assert_eq!(auto(&folder.0).kind, BackendKind::Uring, "without a folder");
        keep(&folder.0, verdict("6.12", Some("mmsg"), 0.9)).expect("temporary files can be made");
        let choice = auto(&folder.0);
        assert_eq!((choice.kind, choice.warning), (BackendKind::Mmsg, None));
        assert_eq!(choice.reason, "mmsg is faster here: io_uring takes 11 % more CPU time (10 to 12 %)");
        for (kernel, cpu) in [("6.13", "A"), ("6.12", "B")] {
            let probe = Probe { kernel: kernel.to_owned(), ..probe(BackendKind::Uring) };
            let choice = choose_from(Backend::Auto, &probe, Some(&folder.0), cpu).expect("auto always finds one");
            assert_eq!((choice.kind, choice.warning), (BackendKind::Uring, None), "{kernel} {cpu}");
        }
        // Measured again: the newer one counts.
        keep(&folder.0, verdict("6.12", None, 1.0)).expect("it is ours");
        let choice = auto(&folder.0);
        assert!(choice.kind == BackendKind::Uring && choice.reason.starts_with("the difference is noise"), "{choice:?}");
        assert_eq!(read(&folder.0.join(VERDICTS_FILE)).expect("it is ours").len(), 1);
    }

    #[test]
    fn what_the_config_demands_and_what_the_kernel_refuses_outdo_a_verdict() {
        let folder = Folder::new("outdone");
        keep(&folder.0, verdict("6.12", Some("mmsg"), 0.5)).expect("temporary files can be made");
        let chosen = |wanted, backend| choose_from(wanted, &probe(backend), Some(&folder.0), "A").map(|choice| choice.kind);
        assert_eq!(chosen(Backend::IoUring, BackendKind::Uring), Ok(BackendKind::Uring));
        assert!(chosen(Backend::IoUring, BackendKind::Mmsg).is_err_and(|sentence| sentence.contains("the ring says")));
        keep(&folder.0, verdict("6.12", Some("io_uring"), 2.0)).expect("it is ours");
        assert_eq!(chosen(Backend::Mmsg, BackendKind::Uring), Ok(BackendKind::Mmsg));
        assert_eq!(chosen(Backend::Auto, BackendKind::Mmsg), Ok(BackendKind::Mmsg));
    }

    #[test]
    fn a_corrupt_or_foreign_file_is_ignored_with_a_warning_and_replaced() {
        let folder = Folder::new("corrupt");
        std::fs::create_dir_all(&folder.0).expect("temporary files can be made");
        let file = folder.0.join(VERDICTS_FILE);
        let foreign = r#"{"version":2,"verdicts":[]}"#;
        let unknown = r#"{"version":1,"verdicts":[{"kernel":"6.12","cpu":"A","faster":"dpdk","ratio":1,"ratio_interval":[1,1],"rounds":1,"measured_at_s":1}]}"#;
        let long = " ".repeat(FILE_LEN_MAX as usize + 1);
        for text in ["", "{", "[]", "\u{0}", r#"{"version":1}"#, foreign, unknown, &long] {
            std::fs::write(&file, text).expect("it is ours");
            let choice = auto(&folder.0);
            assert_eq!(choice.kind, BackendKind::Uring);
            assert!(choice.warning.is_some_and(|warning| warning.contains("is ignored")), "{text:?}");
        }
        keep(&folder.0, verdict("6.12", Some("mmsg"), 0.9)).expect("it is ours");
        assert_eq!((auto(&folder.0).kind, auto(&folder.0).warning), (BackendKind::Mmsg, None));
    }

    #[test]
    fn the_latest_kernels_are_remembered() {
        let folder = Folder::new("latest");
        for kernel in 0..VERDICTS_MAX + 3 {
            keep(&folder.0, verdict(&kernel.to_string(), None, 1.0)).expect("temporary files can be made");
        }
        let kernels: Vec<String> = read(&folder.0.join(VERDICTS_FILE)).expect("it is ours").into_iter().map(|it| it.kernel).collect();
        assert_eq!((kernels.len(), kernels[0].as_str()), (VERDICTS_MAX, "10"));
    }
}
