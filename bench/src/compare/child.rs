//! A case as a child process of this program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::results::Record;

/// How often a child with a limit is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Figures of children, one file each.
static FILES: AtomicU32 = AtomicU32::new(0);

/// A case and its arguments, as words.
#[derive(Clone, Debug)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// What this process was started with, less its own name.
    pub(crate) fn of_this_process() -> Result<Arguments, String> {
        let words: Result<Vec<String>, _> = std::env::args_os().skip(1).map(|word| word.into_string()).collect();
        words.map(Arguments).map_err(|word| format!("{}: no UTF-8", word.display()))
    }

    pub(crate) fn new(words: &str) -> Arguments {
        Arguments(words.split_whitespace().map(str::to_owned).collect())
    }

    /// The case's name: the first word that is no flag, once [`take`](Self::take) has removed the others.
    pub(crate) fn case(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// Only the case is named.
    pub(crate) fn are_bare(&self) -> bool {
        self.0.len() == 1
    }

    /// The arguments of an earlier result of the same case.
    pub(crate) fn fill_from(&mut self, old: &Record) -> Result<(), String> {
        if old.case() != self.case() {
            return Err(format!("the old result is of {}, not of {}", old.case(), self.case()));
        }
        let words = old.text("command").and_then(|command| command.strip_prefix("pop-bench "));
        let words = words.ok_or("the old result does not tell its command: give its arguments here")?;
        if words.contains('\'') || words.contains("TOKEN") {
            return Err(format!("the old result's command cannot be repeated as it is: give the arguments here ({words})"));
        }
        *self = Arguments::new(words);
        drop((self.take("--pop"), self.take("--repeats")));
        Ok(())
    }

    /// Removes a flag with its value, written either way, and tells the last value.
    pub(crate) fn take(&mut self, flag: &str) -> Option<String> {
        let (mut value, mut kept) = (None, Vec::new());
        let mut words = std::mem::take(&mut self.0).into_iter();
        while let Some(word) = words.next() {
            if word == flag {
                value = words.next();
            } else if let Some(inline) = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                value = Some(inline.to_owned());
            } else {
                kept.push(word);
            }
        }
        self.0 = kept;
        value
    }

    pub(crate) fn drop_plain(&mut self, flag: &str) {
        self.0.retain(|word| word != flag);
    }

    pub(crate) fn with(mut self, flag: &str, value: &Path) -> Arguments {
        self.0.extend([flag.to_owned(), value.display().to_string()]);
        self
    }

    /// Runs it to its end and reads its figures; progress goes where this program's goes. `who` names it in errors.
    pub(crate) fn run(&self, who: &str) -> Result<Value, String> {
        let file = FiguresFile::new();
        let mut child = self.start(&file.0)?;
        let status = child.wait().map_err(|e| e.to_string())?;
        let who = if who.is_empty() { String::new() } else { format!(" ({who})") };
        if !status.success() {
            return Err(format!("the run{who} failed: {status}"));
        }
        file.read()
    }

    /// The same, ended with all that it started when it takes longer than `limit`.
    pub(crate) fn run_within(&self, limit: Duration) -> Result<Value, String> {
        let file = FiguresFile::new();
        let mut child = self.start(&file.0)?;
        let end = Instant::now() + limit;
        loop {
            match child.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => return file.read(),
                Some(status) => return Err(status.to_string()),
                None if Instant::now() > end => {
                    end_family(&mut child);
                    return Err(format!("not done within {} s", limit.as_secs()));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }

    fn start(&self, json: &Path) -> Result<Child, String> {
        let own = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
        let mut command = Command::new(&own);
        command.args(&self.0).arg("--json").arg(json).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map_err(|e| format!("{}: {e}", own.display()))
    }
}

/// A file of figures that goes when it was read.
struct FiguresFile(PathBuf);

impl FiguresFile {
    fn new() -> FiguresFile {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        FiguresFile(std::env::temp_dir().join(format!("pop-bench-figures-{}-{number}.json", std::process::id())))
    }

    fn read(&self) -> Result<Value, String> {
        let text = std::fs::read_to_string(&self.0).map_err(|e| format!("the run left no figures: {e}"))?;
        serde_json::from_str(&text).map_err(|e| format!("the run's figures: {e}"))
    }
}

impl Drop for FiguresFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A case that hangs has a node: its own child must not stay.
fn end_family(child: &mut Child) {
    let parent = child.id().to_string();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let children: Vec<String> = pids
        .filter(|pid| pid.bytes().all(|c| c.is_ascii_digit()))
        .filter(|pid| {
            // Field 4 of stat is the parent, behind the name in parentheses (proc_pid_stat(5)).
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(parent.as_str())
        })
        .collect();
    let _ = child.kill();
    let _ = child.wait();
    if !children.is_empty() {
        let _ = Command::new("kill").arg("-KILL").args(children).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_around_a_case_are_taken_out() {
        let mut arguments = Arguments::new("--rounds 3 fanout --json=a.json --subscribers 2 --report out --fail-on-worse");
        let values = ["--rounds", "--json", "--report", "--compare"].map(|flag| arguments.take(flag));
        assert_eq!(values, [Some("3".to_owned()), Some("a.json".to_owned()), Some("out".to_owned()), None]);
        arguments.drop_plain("--fail-on-worse");
        assert_eq!((arguments.case(), arguments.are_bare(), arguments.0.join(" ").as_str()), ("fanout", false, "fanout --subscribers 2"));
    }

    #[test]
    fn an_old_result_gives_its_arguments() {
        let old = |command: &str| Record::new(serde_json::json!({"case": "fanout", "command": command})).expect("it has a case");
        let mut arguments = Arguments::new("fanout");
        arguments.fill_from(&old("pop-bench fanout --subscribers 200 --pop pop --repeats 5")).expect("it can be repeated");
        assert_eq!(arguments.0.join(" "), "fanout --subscribers 200");
        assert!(Arguments::new("rooms").fill_from(&old("pop-bench fanout")).is_err());
        assert!(Arguments::new("fanout").fill_from(&old("pop-bench fanout --token TOKEN")).is_err());
    }
}
