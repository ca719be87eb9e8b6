//! The host as files: `/proc` and `/sys` below a root, so that a recorded tree is judged like the machine itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest file that is read, in bytes: `/proc/interrupts` of 256 cores and 2,000 interrupts is 5 MB.
const FILE_LEN_MAX: u64 = 16 << 20;

/// Where `ethtool` output lies in a recorded tree: `ethtool/ens1f0/-k`.
const RECORDED_ETHTOOL: &str = "ethtool";

/// A host: this machine, or a tree that was recorded from one.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    root: PathBuf,
    live: bool,
}

impl Host {
    /// This machine, or the tree below `root`.
    pub(crate) fn new(root: Option<&Path>) -> Self {
        Self { root: root.unwrap_or(Path::new("/")).to_owned(), live: root.is_none() }
    }

    /// Whether it is this machine: ports can be tried and programs run.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the white space around it; `None` when it is not there.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        use std::io::Read;
        let mut text = String::new();
        fs::File::open(self.place(path)).ok()?.take(FILE_LEN_MAX).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// A file that holds one number.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// A number under `/proc/sys`, by its sysctl name.
    pub(crate) fn sysctl(&self, name: &str) -> Option<u64> {
        self.number(&sysctl_path(name))
    }

    /// The names in a folder, numbers in their order.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.place(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| {
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            (stem.to_owned(), name[stem.len()..].parse::<u64>().ok(), name.clone())
        });
        names
    }

    /// Whether a path is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.place(path).exists()
    }

    /// The last part of where a symbolic link leads: a driver's name, for one.
    pub(crate) fn link_name(&self, path: &str) -> Option<String> {
        fs::read_link(self.place(path)).ok()?.file_name()?.to_str().map(str::to_owned)
    }

    /// What `ethtool` says with `options` of an interface; `None` when it is not installed or refuses.
    pub(crate) fn ethtool(&self, interface: &str, options: &[&str]) -> Option<String> {
        let (option, more) = options.split_first()?;
        if !self.live {
            return self.read(&format!("{RECORDED_ETHTOOL}/{interface}/{}", options.join("_")));
        }
        let mut command = Command::new("ethtool");
        command.arg(option).arg(interface).args(more).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    }

    /// Writes `text` into a file that the kernel keeps, or that is there in the tree.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        fs::OpenOptions::new().write(true).truncate(true).open(self.place(path))?.write_all_of(text)
    }

    /// Makes or replaces a file of the operator's as a whole, and its folder.
    pub(crate) fn replace(&self, path: &str, text: &str) -> io::Result<()> {
        let place = self.place(path);
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        crate::state::replace_file(&place, text.as_bytes())
    }

    /// Removes a file; one that is not there is removed.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.place(path)).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    }
}

trait WriteAll {
    fn write_all_of(self, text: &str) -> io::Result<()>;
}

impl WriteAll for fs::File {
    fn write_all_of(mut self, text: &str) -> io::Result<()> {
        use std::io::Write;
        self.write_all(format!("{text}\n").as_bytes())
    }
}

/// `net.core.rmem_max` as a path.
pub(crate) fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

/// `0-3,8` as numbers; what is no list is empty.
pub(crate) fn parse_list(text: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < 1 << 16 => numbers.extend(first..=last),
            _ => return Vec::new(),
        }
    }
    numbers
}

/// Numbers as `0-3,8`.
pub(crate) fn show_list(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let texts: Vec<String> =
        runs.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") }).collect();
    texts.join(",")
}

/// A CPU mask of sysfs: hexadecimal words of 32 bits, the highest first (`00000000,0000000c`).
pub(crate) fn parse_mask(text: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for (word, digits) in text.trim().split(',').rev().enumerate() {
        let Ok(bits) = u32::from_str_radix(digits, 16) else { return Vec::new() };
        cores.extend((0..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| word * 32 + bit));
    }
    cores
}

/// Cores as a CPU mask of sysfs.
pub(crate) fn show_mask(cores: &[usize]) -> String {
    let words = cores.iter().max().map_or(1, |core| core / 32 + 1);
    let mut bits = vec![0u32; words];
    for core in cores {
        bits[core / 32] |= 1 << (core % 32);
    }
    let texts: Vec<String> =
        bits.iter().rev().enumerate().map(|(i, word)| if i == 0 { format!("{word:x}") } else { format!("{word:08x}") }).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_read_back_what_they_show() {
        for cores in [vec![], vec![0], vec![0, 1, 2, 5], vec![31, 32, 33], vec![127]] {
            assert_eq!(parse_list(&show_list(&cores)), cores);
            assert_eq!(parse_mask(&show_mask(&cores)), cores);
        }
        assert_eq!((show_list(&[0, 1, 2, 5]), show_mask(&[2, 3]), show_mask(&[33])), ("0-2,5".into(), "c".into(), "2,00000000".into()));
        assert_eq!(parse_mask("00000000,0000000c"), [2, 3]);
        for bad in ["x", "3-1", "1,,x", "0-99999999999"] {
            assert!(parse_list(bad).is_empty(), "{bad:?}");
        }
        assert!(parse_mask("zz").is_empty());
    }
}
