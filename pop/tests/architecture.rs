//! DESIGN 3 as a test: who imports whom, which package has which door, where unsafe code may be, what lies at the top.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Crate, folder, and the crates of ours that it may import. One direction: each names only crates above it.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("pop-schemas", "schemas", &[]),
    ("pop-uring", "dataplane/uring", &[]),
    ("pop-relay", "relay", &["pop-schemas", "pop-uring"]),
    ("pop-proto", "dataplane/proto", &["pop-schemas", "pop-uring"]),
    ("pop-session", "pop/session", &["pop-schemas", "pop-proto"]),
    ("pop-dataplane", "dataplane", &["pop-schemas", "pop-uring", "pop-relay", "pop-proto"]),
    ("pop", "pop", &["pop-schemas", "pop-uring", "pop-relay", "pop-proto", "pop-session", "pop-dataplane"]),
    ("pop-bench", "bench", &["pop-schemas", "pop-uring", "pop-relay", "pop-proto", "pop-session", "pop-dataplane", "pop"]),
    ("pop-sim", "bench/sim", &["pop-schemas", "pop-uring", "pop-relay", "pop-proto", "pop-session", "pop-dataplane", "pop"]),
];

/// Folders that may lie at the top; each has a README that is its design page.
const TOP_FOLDERS: &[&str] = &["schemas", "relay", "dataplane", "pop", "config", "bench", "scripts"];

/// Files that lie at the top.
const TOP_FILES: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "SPECIFICATION.md",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "deny.toml",
    "clippy.toml",
];

/// What names a package in code, and the places that may: the one door, and tests or benches that look at it from outside.
const DOORS: &[(&str, &[&str])] = &[
    ("webrtc_dtls", &["pop/src/dtls.rs", "pop/src/dtls/", "pop/tests/dtls", "bench/"]),
    ("io_uring::", &["dataplane/uring/"]),
    ("tokio_uring::", &["dataplane/src/service.rs"]),
    // dtls/data.rs: records of application data, because the library's nonces are not fit for many.
    (
        "aws_lc_rs::aead",
        &[
            "dataplane/proto/src/srtp.rs",
            "dataplane/proto/src/srtp/",
            "relay/src/seal.rs",
            "dataplane/proto/tests/",
            "pop/src/dtls/data.rs",
            "bench/",
        ],
    ),
    ("sctp_proto", &["pop/src/sctp.rs", "pop/src/sctp/", "pop/tests/sctp"]),
    ("livekit_protocol", &["pop/src/signal/livekit.rs", "pop/src/signal/livekit/", "pop/tests/", "bench/"]),
    ("prometheus_client", &["pop/src/metrics.rs", "pop/src/metrics/"]),
    ("jsonwebtoken", &["pop/session/src/token.rs", "pop/session/tests/"]),
    ("zenoh", &["pop/src/bus.rs", "pop/src/bus/", "pop/tests/bus.rs", "bench/src/bus.rs"]),
    ("mimalloc", &["dataplane/uring/"]),
    ("core_affinity", &["dataplane/src/", "bench/"]),
];

/// Sources of machines without IO: their owner brings bytes, time and randomness.
const SANS_IO: &[&str] =
    &["schemas/src", "relay/src", "dataplane/proto/src", "pop/session/src", "dataplane/src/core.rs", "dataplane/src/core"];

/// What such a machine may not name.
const IO_WORDS: &[&str] = &[
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "std::fs",
    "std::thread",
    "Instant",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Condvar",
    "tokio",
    "async fn",
    "crossbeam",
    "socket2",
    "aws_lc_rs::rand",
    "getrandom",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("pop lies in the workspace").to_owned()
}

/// Every file below `folder` that is ours, as paths from the root.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || ["target", "node_modules", "__pycache__"].contains(&name.as_str()) {
                continue;
            }
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(root()).expect("it is below the root").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines of Rust code with their numbers: no comments, no text in quotes.
fn code(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().map(|(i, line)| {
        let (mut kept, mut quoted, mut escaped) = (String::new(), false, false);
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '/' if !quoted && chars.peek() == Some(&'/') => break,
                _ if !quoted => kept.push(c),
                _ => {}
            }
        }
        (i + 1, kept)
    })
}

fn has_word(line: &str, word: &str) -> bool {
    let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| boundary(line[..at].chars().next_back()) && boundary(line[at + word.len()..].chars().next()))
}

#[test]
fn imports_go_one_way() {
    let workspace: toml::Table = read("Cargo.toml").parse().expect("cargo reads it too");
    let members = workspace["workspace"]["members"].as_array().expect("a list of folders");
    assert!(members.len() >= 7, "the workspace has its crates");
    for folder in members.iter().map(|member| member.as_str().expect("a folder")) {
        let manifest: toml::Table = read(&format!("{folder}/Cargo.toml")).parse().expect("cargo reads it too");
        let name = manifest["package"]["name"].as_str().expect("a name");
        let (_, place, allowed) =
            CRATES.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("DESIGN 3 has no crate {name}"));
        assert_eq!(*place, folder, "{name} lies elsewhere in DESIGN 3");
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for import in manifest.get(table).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys) {
                let ours = CRATES.iter().any(|(known, ..)| known == import);
                assert!(!ours || allowed.contains(&import.as_str()), "{name} may not import {import} ({table}): DESIGN 3");
            }
        }
        assert!(manifest.get("lints").is_some() || name == "pop-uring", "{name} does not take the workspace's lints");
    }
}

#[test]
fn each_package_has_one_door() {
    for path in files("").iter().filter(|path| path.ends_with(".rs")) {
        for (number, line) in code(&read(path)) {
            for (package, doors) in DOORS {
                let named = line.match_indices(package).any(|(at, _)| {
                    // `tokio_uring::` holds `uring::`; only the whole name counts.
                    !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
                });
                assert!(
                    !named || doors.iter().any(|door| path.starts_with(door)),
                    "{path}:{number} names {package}: its door is {}",
                    doors[0]
                );
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_uring_alone() {
    let mut seen = 0;
    for path in files("").iter().filter(|path| path.ends_with(".rs")) {
        let found = code(&read(path)).find(|(_, line)| has_word(line, "unsafe"));
        let exempt = path.starts_with("dataplane/uring/") || path.starts_with("schemas/src/generated");
        seen += usize::from(exempt && found.is_some());
        assert!(exempt || found.is_none(), "{path}:{} is unsafe", found.map_or(0, |(number, _)| number));
    }
    assert!(seen > 0, "the search finds what is there");
}

#[test]
fn machines_without_io_name_none() {
    let mut checked = 0;
    for path in SANS_IO.iter().flat_map(|place| if place.ends_with(".rs") { vec![(*place).to_owned()] } else { files(place) }) {
        if !path.ends_with(".rs") || !root().join(&path).exists() {
            continue;
        }
        checked += 1;
        let text = read(&path);
        // Tests and measurements may read a clock.
        for (number, line) in code(&text).take_while(|(_, line)| !line.contains("#[cfg(test)]")) {
            for word in IO_WORDS {
                assert!(!has_word(&line, word), "{path}:{number} names {word}: pass it in (DESIGN 3)");
            }
        }
    }
    assert!(checked >= 20, "only {checked} files were looked at");
}

#[test]
fn the_top_holds_what_the_design_lists() {
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(root()).expect("the workspace is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.path().is_dir() {
            assert!(TOP_FOLDERS.contains(&name.as_str()), "folder {name} is not in DESIGN 3");
            folders.insert(name);
        } else {
            assert!(TOP_FILES.contains(&name.as_str()), "file {name} is not in DESIGN 3");
        }
    }
    for folder in &folders {
        assert!(root().join(folder).join("README.md").is_file(), "{folder}/README.md is missing: it is the folder's design page");
    }
    for file in TOP_FILES.iter().filter(|file| **file != "clippy.toml") {
        assert!(root().join(file).is_file(), "{file} is missing");
    }
}

/// Built from pieces, so that this file does not name one itself.
#[test]
fn no_file_names_a_place_of_one_machine() {
    let places = ["tmp", "work", "root", "home"].map(|folder| format!("/{folder}/"));
    for path in files("") {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (i, line) in text.lines().enumerate() {
            for place in &places {
                // `http://host/home/` and `a/home/b` are no places: only a path that starts there.
                let starts = line
                    .match_indices(place.as_str())
                    .any(|(at, _)| !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._-}*~/)>".contains(c)));
                assert!(!starts, "{path}:{} names {place}", i + 1);
            }
        }
    }
}
