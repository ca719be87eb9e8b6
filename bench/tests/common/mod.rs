//! What tests of cases share.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The `pop` binary beside `pop-bench`. A test of the whole workspace has built it; a test of this package alone has not, since
/// cargo builds a package's own binaries only.
pub(crate) fn find_pop() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_pop-bench")).parent().expect("a binary lies in a folder");
    let target = folder.parent().expect("target/PROFILE");
    if folder.join("pop").exists() {
        return folder.join("pop");
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "pop", "--bin", "pop", "--target-dir"]).arg(target);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs").success(), "pop does not build");
    folder.join("pop")
}
