//! `pop doctor` and `pop tune` on two recorded hosts: one as its distribution leaves it, one that is tuned.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "cli_support/process.rs"]
mod process;

use process::{Folder, Node, code, json, run, shown, stderr};

/// Two sockets, mlx5 below a bond, nothing tuned.
const MLX5: &str = include_str!("hosts/mlx5.txt");

/// One socket, ice, tuned for workers on cores 2 to 5.
const ICE: &str = include_str!("hosts/ice.txt");

/// A recorded host as a tree of files, with a config for its addresses.
struct Recorded {
    folder: Folder,
    config: PathBuf,
}

impl Recorded {
    fn unpack(archive: &str, config: &str) -> Recorded {
        let folder = Folder::new();
        let config = folder.write("pop.toml", config);
        let mut open: Option<(PathBuf, Vec<&str>)> = None;
        for line in archive.lines().filter(|line| !line.starts_with('#')).chain(["@ end"]) {
            let Some(head) = line.strip_prefix("@ ") else {
                open.as_mut().expect("a file begins with @").1.push(line);
                continue;
            };
            if let Some((path, lines)) = open.take() {
                fs::create_dir_all(path.parent().expect("below the root")).expect("temporary files can be made");
                fs::write(&path, lines.join("\n") + "\n").expect("temporary files can be made");
            }
            match head.split_once(" -> ") {
                Some((path, target)) => {
                    let path = folder.path("host").join(path);
                    fs::create_dir_all(path.parent().expect("below the root")).expect("temporary files can be made");
                    std::os::unix::fs::symlink(target, path).expect("temporary files can be made");
                }
                None => open = Some((folder.path("host").join(head), Vec::new())),
            }
        }
        Recorded { folder, config }
    }

    fn mlx5() -> Recorded {
        Self::unpack(MLX5, "media.addresses = [\"192.0.2.10\"]\ndataplane.cores = \"1-4\"\nnode.state_dir = \"/var/lib/pop\"\n")
    }

    fn ice() -> Recorded {
        Self::unpack(ICE, "media.addresses = [\"2001:db8::7\"]\ndataplane.cores = \"2-5\"\n")
    }

    fn ask(&self, words: &[&str]) -> std::process::Output {
        run(&[words, &["--config", shown(&self.config), "--root", shown(&self.folder.path("host"))]].concat())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path("host").join(path)).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
    }

    /// Each finding as `level name: found`, with its command.
    fn findings(&self) -> Vec<(String, String)> {
        let output = self.ask(&["doctor", "--json"]);
        let report = json(&output);
        let text = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let findings = report["findings"].as_array().expect("a list");
        let line = |finding| format!("{} {}: {}", text(finding, "level"), text(finding, "name"), text(finding, "found"));
        findings.iter().map(|finding| (line(finding), text(finding, "command"))).collect()
    }
}

fn assert_found(findings: &[(String, String)], line: &str, command: &str) {
    let found = findings.iter().any(|(found, advised)| found == line && advised == command);
    assert!(found, "no {line:?} with {command:?} in\n{findings:#?}");
}

#[test]
fn the_doctor_finds_what_an_untuned_host_lacks_and_names_the_command() {
    let findings = Recorded::mlx5().findings();
    for (line, command) in [
        ("ok kernel: 6.1.0-28-amd64", ""),
        ("ok cores: workers on 1,2,3,4 of 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", ""),
        ("ok SMT: each worker has a physical core", ""),
        ("warn receive buffer: net.core.rmem_max = 212992", "sysctl -w net.core.rmem_max=33554432"),
        ("warn socket options: net.core.optmem_max = 20480", "sysctl -w net.core.optmem_max=131072"),
        ("warn backlog: net.core.netdev_max_backlog = 1000", "sysctl -w net.core.netdev_max_backlog=16384"),
        ("ok reconnects: net.ipv4.tcp_syn_linear_timeouts cannot be read here", ""),
        ("warn open files: 1024 at most", "ulimit -n 20992"),
        ("warn locked memory: 8 MiB at most", "ulimit -l unlimited"),
        ("ok time: kept (/run/chrony/chronyd.pid)", ""),
        ("warn governor: powersave on cores 1-4", "cpupower frequency-set -g performance"),
        ("ok ens1f0np0 queues: 8 receive, 8 transmit, driver mlx5_core", ""),
        ("warn ens1f0np0 interrupts: queue 0 on 9, queue 1 on 0, queue 2 on 3, queue 3 on 11", "pop tune --apply --interface ens1f0np0"),
        ("warn ens1f0np0 transmit: workers share transmit queues (XPS)", "pop tune --apply --interface ens1f0np0"),
        ("warn ens1f0np0 NUMA node: 0 (cores 0-3,8-11), workers on 4 are elsewhere", ""),
        ("ok ens1f0np0 offloads: GRO, GSO and UDP segmentation are on (rx-udp-gro-forwarding off)", ""),
        ("ok ens1f0np0 ring: 1024 of 8192 receive descriptors per queue", ""),
        ("warn ens1f0np0 RSS: UDP ports are not part of the hash", "ethtool -N ens1f0np0 rx-flow-hash udp4 sdfn"),
        ("warn irqbalance: it runs", "systemctl disable --now irqbalance"),
    ] {
        assert_found(&findings, line, command);
    }
    let conntrack = findings.iter().find(|(line, _)| line == "warn conntrack: on, 1482 of 262144 entries").expect("it is on");
    assert!(conntrack.1.ends_with("udp dport 10000-10003 notrack"), "{conntrack:?}");
}

#[test]
fn the_doctor_is_content_with_a_tuned_host() {
    let findings = Recorded::ice().findings();
    assert!(findings.iter().all(|(line, _)| line.starts_with("ok ")), "{findings:#?}");
    assert_found(&findings, "ok enp24s0f0 interrupts: the queues' run on the workers' cores 2-5", "");
    assert_found(&findings, "ok enp24s0f0 transmit: each worker has its queue (XPS)", "");
    assert_found(&findings, "ok io_uring switch: kernel.io_uring_disabled = 0", "");
}

#[test]
fn a_fix_raises_what_is_too_low_and_nothing_twice() {
    let host = Recorded::mlx5();
    let report = json(&host.ask(&["doctor", "--fix", "--json"]));
    let fixed: Vec<&str> = report["fixed"].as_array().expect("a list").iter().map(|line| line.as_str().expect("a line")).collect();
    assert_eq!(fixed[0], "net.core.rmem_max = 33554432, formerly 212992");
    assert_eq!(fixed.last(), Some(&"/etc/sysctl.d/91-pop-doctor.conf keeps it for the next boot"));
    assert_eq!((host.read("proc/sys/net/core/rmem_max"), host.read("proc/sys/net/core/optmem_max")), ("33554432".into(), "131072".into()));
    let kept = host.read("etc/sysctl.d/91-pop-doctor.conf");
    assert!(kept.contains("\nnet.core.netdev_max_backlog = 16384"), "{kept}");
    assert_eq!(json(&host.ask(&["doctor", "--fix", "--json"]))["fixed"], serde_json::json!([]));
    // What the operator has added to the file stays, and a higher value is not lowered.
    fs::write(host.folder.path("host/etc/sysctl.d/91-pop-doctor.conf"), "# ours\nvm.swappiness = 1\nnet.core.rmem_max = 1\n")
        .expect("it is ours");
    fs::write(host.folder.path("host/proc/sys/net/core/rmem_max"), "1\n").expect("it is ours");
    fs::write(host.folder.path("host/proc/sys/net/core/wmem_max"), "99999999\n").expect("it is ours");
    host.ask(&["doctor", "--fix"]);
    assert_eq!(host.read("etc/sysctl.d/91-pop-doctor.conf"), "# ours\nvm.swappiness = 1\nnet.core.rmem_max = 33554432");
    assert_eq!(host.read("proc/sys/net/core/wmem_max"), "99999999");
}

#[test]
fn tune_prints_commands_that_line_the_queues_up_and_the_way_back() {
    let host = Recorded::mlx5();
    let output = host.ask(&["tune", "--print"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let script = String::from_utf8_lossy(&output.stdout).into_owned();
    for command in [
        "systemctl stop irqbalance",
        "ethtool -X ens1f0np0 equal 4",
        "echo 1 > /proc/irq/129/smp_affinity_list",
        "echo 4 > /proc/irq/132/smp_affinity_list",
        "echo 2 > /sys/class/net/ens1f0np0/queues/tx-0/xps_cpus",
        "echo 10 > /sys/class/net/ens1f0np0/queues/tx-3/xps_cpus",
        // Queue 4 took core 4, which is worker 3's.
        "echo 0 > /sys/class/net/ens1f0np0/queues/tx-4/xps_cpus",
        "ethtool -G ens1f0np0 rx 4096",
        "ethtool -N ens1f0np0 rx-flow-hash udp4 sdfn",
        "ethtool -K ens1f0np0 ntuple on",
        "ethtool -N ens1f0np0 flow-type udp4 dst-port 10003 action 3 loc 6",
        "#   echo 0-3,8-11 > /proc/irq/129/smp_affinity_list",
        "#   echo 0010 > /sys/class/net/ens1f0np0/queues/tx-4/xps_cpus",
        "#   systemctl start irqbalance",
    ] {
        assert!(script.lines().any(|line| line == command), "no {command:?} in\n{script}");
    }
    assert!(!script.contains("/proc/irq/133/") && !script.contains("/proc/irq/128/"), "only the workers' queues move:\n{script}");
}

#[test]
fn tune_applies_and_takes_back() {
    let host = Recorded::mlx5();
    // A recorded host runs no programs: without irqbalance and ethtool's words there is none to run.
    fs::remove_dir_all(host.folder.path("host/ethtool")).expect("it is ours");
    fs::remove_dir_all(host.folder.path("host/proc/812")).expect("it is ours");
    let steps = json(&host.ask(&["tune", "--json"]))["steps"].as_array().expect("a list").len();
    let output = host.ask(&["tune", "--apply", "--json"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(json(&output)["done"].as_array().map(Vec::len), Some(steps));
    assert_eq!(
        (host.read("proc/irq/130/smp_affinity_list"), host.read("sys/class/net/ens1f0np0/queues/tx-1/xps_cpus")),
        ("2".into(), "4".into())
    );
    let report = json(&output);
    assert_eq!(report["done"][0]["undo"], "echo 0-3,8-11 > /proc/irq/129/smp_affinity_list");
    assert_eq!(report["undo"], "/var/lib/pop/tune-undo.sh");
    let undo = host.read("var/lib/pop/tune-undo.sh");
    let commands = |script: &str| script.lines().filter(|line| line.starts_with("echo ")).map(str::to_owned).collect::<Vec<_>>();
    let first = commands(&undo);
    assert_eq!(first.len(), steps, "{undo}");
    assert_eq!(
        first.last().map(String::as_str),
        Some("echo 0-3,8-11 > /proc/irq/129/smp_affinity_list || failed=1"),
        "the first change is taken back last"
    );
    assert!(undo.starts_with("#!/bin/sh\n") && undo.ends_with("\n[ -n \"$failed\" ] || rm -f -- \"$0\""), "{undo}");

    // Again: there is nothing to do, and the way back stays what it was.
    let output = host.ask(&["tune", "--apply"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("0 of 0 steps"), "{output:?}");
    assert_eq!(host.read("var/lib/pop/tune-undo.sh"), undo);

    // Somebody moves an interrupt: what is done again goes before what was done at first.
    fs::write(host.folder.path("host/proc/irq/130/smp_affinity_list"), "7\n").expect("it is ours");
    assert_eq!(json(&host.ask(&["tune", "--apply", "--json"]))["done"].as_array().map(Vec::len), Some(1));
    let second = commands(&host.read("var/lib/pop/tune-undo.sh"));
    assert_eq!((second[0].as_str(), &second[1..]), ("echo 7 > /proc/irq/130/smp_affinity_list || failed=1", &first[..]));

    // What cannot be taken back keeps the script.
    let broken = host.folder.write("broken.sh", &host.read("var/lib/pop/tune-undo.sh").replace("> /", "> /nowhere/"));
    assert!(std::process::Command::new("sh").arg(&broken).stderr(std::process::Stdio::null()).status().is_ok());
    assert!(broken.exists(), "it stays");

    // The script itself, on the tree, leads back to where it began.
    let root = host.folder.path("host");
    let script = host.read("var/lib/pop/tune-undo.sh").replace("> /", &format!("> {}/", shown(&root)));
    let place = host.folder.write("undo.sh", &script);
    assert!(std::process::Command::new("sh").arg(&place).status().expect("a shell").success());
    assert!(!place.exists(), "it goes when it is done");
    assert_eq!(json(&host.ask(&["tune", "--json"]))["steps"].as_array().map(Vec::len), Some(steps));
    assert_eq!(host.read("proc/irq/130/smp_affinity_list"), "0-3,8-11");
}

#[test]
fn a_dry_run_changes_nothing() {
    let host = Recorded::mlx5();
    let [printed, dry] = ["--print", "--dry-run"].map(|flag| host.ask(&["tune", flag]).stdout);
    assert!(printed == dry && !dry.is_empty());
    assert_eq!(host.read("proc/irq/129/smp_affinity_list"), "0-3,8-11");
    assert!(!host.folder.path("host/var/lib/pop").exists());
    assert_eq!(code(&host.ask(&["tune", "--dry-run", "--apply"])), Some(2));
}

#[test]
fn tune_stops_at_what_fails_and_tells_how_far_it_came() {
    let host = Recorded::mlx5();
    let output = host.ask(&["tune", "--apply"]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(stderr(&output).contains("`systemctl stop irqbalance` failed"), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("0 of "), "{output:?}");
    assert!(!host.folder.path("host/var/lib/pop/tune-undo.sh").exists(), "nothing was done: there is no way back");
}

#[test]
fn a_tuned_host_and_a_host_without_a_card_have_nothing_to_tune() {
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said(Recorded::ice().ask(&["tune"])), "# nothing to do: the queues line up with the workers\n");
    let host = Recorded::unpack(ICE, "");
    assert!(said(host.ask(&["tune"])).contains("name one with --interface"));
    for wrong in ["eth9", "../lo", ".."] {
        let output = host.ask(&["tune", "--interface", wrong]);
        assert_eq!(code(&output), Some(2), "{output:?}");
        assert!(stderr(&output).contains("there is no interface"), "{}", stderr(&output));
    }
}

#[test]
fn this_machine_can_be_judged_and_tuned_in_print() {
    let names = fs::read_dir("/sys/class/net").expect("Linux has it").flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if Path::new("/sys/class/net").join(&name).join("mtu").exists() {
            let output = run(&["tune", "--print", "--json", "--interface", &name]);
            assert_eq!(code(&output), Some(0), "{name}: {output:?}");
            assert!(json(&output)["steps"].is_array());
        }
    }
}

/// Back ends are measured on this machine, so only the shape of the verdict is known; what follows it is not.
#[test]
fn the_doctors_bench_keeps_a_verdict_that_the_node_and_the_doctor_follow() {
    let folder = Folder::new();
    let config = folder.config();
    let text = fs::read_to_string(&config).expect("it is ours");
    fs::write(&config, format!("{text}[node]\nstate_dir = \"{}\"\n", shown(&folder.path("state")))).expect("it is ours");
    // Root may have a narrow umask, and the node another user.
    let narrow = ["-c", "umask 077 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_pop"), "doctor", "--bench", "--json", "--config"];
    let output = Command::new("sh").args(narrow).arg(&config).output().expect("there is a shell");
    assert_eq!(code(&output), Some(0), "{output:?}");
    let mode = |path: &str| fs::metadata(folder.path(path)).expect("it was made").permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/backend.json")), (0o755, 0o644));
    let report = json(&output);
    assert_eq!(report["figures"].as_array().map(Vec::len), Some(12), "{report}");
    let file = folder.path("state/backend.json");
    assert_eq!(report["file"].as_str(), Some(shown(&file)));
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("it was kept")).expect("it is JSON");
    assert_eq!(kept["verdicts"][0], report["verdict"]);

    let finding = || {
        let report = json(&run(&["doctor", "--json", "--config", shown(&config)]));
        let findings = report["findings"].as_array().expect("a list").clone();
        findings.into_iter().filter(|finding| finding["name"] == "back end").map(|finding| finding.to_string()).collect::<Vec<_>>().join("")
    };
    let log = || {
        let node = Node::start(&config, &[]);
        assert!(node.line.starts_with("ready"), "{}", node.line);
        node.signal("TERM");
        node.end().2
    };
    let mut verdicts = kept.clone();
    verdicts["verdicts"][0]["faster"] = "mmsg".into();
    verdicts["verdicts"][0]["ratio"] = 0.8.into();
    fs::write(&file, verdicts.to_string()).expect("it is ours");
    assert!(finding().contains("mmsg: mmsg is faster here: io_uring takes 25 % more CPU time"), "{}", finding());
    let told = log();
    assert!(told.lines().any(|line| line.contains("back end is chosen") && line.contains("mmsg is faster here")), "{told}");
    fs::write(&file, "{ not ours").expect("it is ours");
    assert!(finding().contains("backend.json is ignored"), "{}", finding());
    let told = log();
    assert!(told.lines().any(|line| line.contains("WARN") && line.contains("backend.json is ignored")), "{told}");
    assert!(told.lines().any(|line| line.contains("back end is chosen") && line.contains("io_uring")), "{told}");
}
