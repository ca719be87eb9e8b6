//! The state directory: what a node must still know after a crash. That is the number of its latest start, what was measured of
//! this machine (`backend.rs`), and the way back from `pop tune --apply`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{self, NodeConfig};
use crate::token::unix_now_ms;

/// Holds the highest start that a node of this directory has had.
const START_FILE: &str = "start";

/// Held while the number is read and written: two nodes may share the directory.
const LOCK_FILE: &str = "start.lock";

/// Where `auto` leads for root.
const SYSTEM_DIR: &str = "/var/lib/pop";

/// The number of this start (DESIGN 4): 1 + the highest in the state directory, written down before it is used. Without a
/// directory, and for the first start in one, milliseconds of Unix time: above every number that was counted from an earlier time.
///
/// # Errors
///
/// A configured directory that cannot be used, with what to change.
pub fn next_start(config: &NodeConfig) -> Result<u64, String> {
    let now_ms = unix_now_ms();
    match (&config.state_dir, automatic_dir()) {
        (Some(dir), _) => count_start(dir, now_ms).map_err(|error| {
            format!(
                "node.state_dir {} cannot be used: {error}: give it to this user, or set node.state_dir to another folder",
                dir.display()
            )
        }),
        (None, Some(dir)) => Ok(count_start(&dir, now_ms).unwrap_or_else(|error| {
            tracing::warn!(dir = %dir.display(), %error, "no state directory; the number of this start is the time");
            now_ms
        })),
        (None, None) => Ok(now_ms),
    }
}

/// The state directory, which may have to be made; `None` where there is none.
pub(crate) fn folder(config: &NodeConfig) -> Option<PathBuf> {
    config.state_dir.clone().or_else(automatic_dir)
}

/// systemd's StateDirectory, or the system's place for root.
fn automatic_dir() -> Option<PathBuf> {
    let given = std::env::var_os("STATE_DIRECTORY").and_then(|dirs| std::env::split_paths(&dirs).next());
    given.filter(|dir| dir.is_absolute()).or_else(|| (config::user_id() == 0).then(|| SYSTEM_DIR.into()))
}

fn count_start(dir: &Path, now_ms: u64) -> io::Result<u64> {
    fs::create_dir_all(dir)?;
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE))?;
    lock.lock()?;
    let file = dir.join(START_FILE);
    let highest = match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse::<u64>().ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        Err(error) => return Err(error),
    };
    // A file without a number is one that somebody else wrote: the time is above what it may have held.
    let start = highest.and_then(|highest| highest.checked_add(1)).unwrap_or(now_ms);
    replace_file(&file, format!("{start}\n").as_bytes())?;
    Ok(start)
}

/// Nobody but this user writes into `folder`, which may still be to be made.
pub(crate) fn is_private(folder: &Path) -> bool {
    fs::symlink_metadata(folder).map_or(true, |about| about.is_dir() && about.uid() == config::user_id() && about.mode() & 0o022 == 0)
}

/// Writes a file so that after a crash it is the old one or the new one, whole: beside it, synced, renamed, the folder synced.
pub(crate) fn replace_file(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        // A folder that a service's user owns may hold anything: what lies there is not followed, and not written to.
        if let Err(error) = fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut new = File::options().write(true).create_new(true).open(&beside)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        fs::rename(&beside, file)?;
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            Folder(std::env::temp_dir().join(format!("pop-state-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_start_is_one_more_even_when_the_clock_goes_back() {
        let folder = Folder::new("counts");
        let starts = [5_000, 1, 9_000].map(|now_ms| count_start(&folder.0, now_ms).expect("temporary files can be made"));
        assert_eq!(starts, [5_000, 5_001, 5_002]);
    }

    #[test]
    fn a_file_without_a_number_is_begun_anew() {
        let folder = Folder::new("broken");
        fs::create_dir_all(&folder.0).expect("temporary files can be made");
        for broken in ["", "many\n", "-1\n", "18446744073709551615\n"] {
            fs::write(folder.0.join(START_FILE), broken).expect("temporary files can be made");
            assert_eq!(count_start(&folder.0, 7_000).expect("it is ours"), 7_000, "{broken:?}");
        }
        assert_eq!(count_start(&folder.0, 1).expect("it is ours"), 7_001);
    }

    #[test]
    fn starts_at_the_same_time_never_share_a_number() {
        let folder = Folder::new("parallel");
        let place = folder.0.clone();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let place = place.clone();
                std::thread::spawn(move || count_start(&place, 1_000).expect("it is ours"))
            })
            .collect();
        let mut starts: Vec<u64> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        starts.sort_unstable();
        assert_eq!(starts, (1_000..1_008).collect::<Vec<_>>());
    }

    #[test]
    fn a_place_that_is_no_folder_is_a_sentence() {
        let config = NodeConfig { state_dir: Some("/proc/pop".into()), ..NodeConfig::default() };
        let sentence = next_start(&config).expect_err("nobody can make a folder there");
        assert!(sentence.starts_with("node.state_dir /proc/pop cannot be used: ") && sentence.contains("set node.state_dir"), "{sentence}");
    }
}
