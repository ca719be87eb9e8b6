//! A test that runs itself again inside a network namespace of its own, which goes with it.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

const INSIDE: &str = "POP_TEST_INSIDE_NAMESPACE";

/// Runs `test` in a new network namespace that the shell commands `prepare` set up. `name` is the test's own.
pub(crate) fn in_namespace(prepare: &str, name: &str, test: impl Fn()) {
    if env::var_os(INSIDE).is_some() {
        return test();
    }
    if !Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|status| status.success()) {
        let root = std::fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0;
        assert!(!root, "unshare(1) is missing or may not make a network namespace here: nothing was tested");
        eprintln!("skipped: only root may make a network namespace");
        return;
    }
    let itself = env::current_exe().expect("the test's own path");
    let mut child = Command::new("unshare");
    child.args(["-n", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]).arg(itself);
    let status = child.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").status().expect("unshare ran a moment ago");
    assert!(status.success(), "{name} failed inside the namespace (are ip, tc and ethtool there?)");
}
