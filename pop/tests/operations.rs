//! What an operator does to a running node, as scripts see it: reload, log level, audit, what systemd hears, what survives a start.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pop_uring::FrozenThread;

#[path = "cli_support/process.rs"]
mod process;

use process::{Folder, Node, SECRET, code, config, http, json, run, shown, stderr};

const OTHER_SECRET: &str = "another secret of these tests, 0123456789";

/// How long a node may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node whose config and keys a test changes.
struct Changing {
    folder: Folder,
    node: Node,
}

impl Changing {
    fn start() -> Changing {
        let folder = Folder::new();
        let node = Node::start(&folder.config(), &[]);
        Changing { folder, node }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path("pop.sock")
    }

    /// The folder's config with `more` at its end.
    fn write(&self, more: &str) {
        self.folder.write("pop.toml", &format!("{}{more}", config(&self.socket(), "127.0.0.1:0")));
    }

    fn ask(&self, words: &[&str]) -> serde_json::Value {
        let output = run(&[words, &["--json", "--socket", shown(&self.socket())]].concat());
        assert_eq!(code(&output), Some(0), "{words:?}: {output:?}");
        json(&output)
    }

    /// The status of a WHIP request with a token of this key: a node that knows the key finds the body wanting.
    fn status_for(&self, keys: &str) -> u16 {
        let keys = self.folder.write("others.toml", keys);
        let words = ["token", "create", "--room", "stage", "--identity", "ann", "--json", "--keys", shown(&keys)];
        let made = json(&run(&words));
        let token = made["token"].as_str().expect("a token");
        let request = format!("/whip/stage HTTP/1.1\r\nauthorization: Bearer {token}\r\nx-rest:");
        http(self.node.said("http"), "POST", &request).0
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reload_applies_live_keys_and_names_the_others() {
    let changing = Changing::start();
    assert_eq!(changing.ask(&["reload"])["applied"], serde_json::json!([]), "nothing has changed yet");
    changing.write("[log]\nlevel = \"debug\"\n[node]\nname = \"other\"\n");
    let report = changing.ask(&["reload"]);
    assert_eq!(report["applied"], serde_json::json!([{ "key": "log.level", "from": "\"info\"", "to": "\"debug\"" }]));
    assert_eq!(report["restart"][0]["key"], "node.name");
    assert_eq!(changing.ask(&["log-level"])["filter"], "debug");
    assert_ne!(changing.ask(&["status"])["node"], "other", "a name is not changed while the node runs");
    // Until the restart it is said again.
    let report = changing.ask(&["reload"]);
    assert_eq!((report["applied"].as_array().map(Vec::len), report["restart"].as_array().map(Vec::len)), (Some(0), Some(1)), "{report}");
}

#[test]
fn added_and_removed_keys_count_at_once_and_are_never_shown() {
    let changing = Changing::start();
    let (first, second) = (format!("test = \"{SECRET}\"\n"), format!("next = \"{OTHER_SECRET}\"\n"));
    let refused = changing.status_for(&second);
    assert_eq!(refused, 401, "the node does not know the key yet");
    let known = changing.status_for(&first);
    assert!(known != 401 && known < 500, "{known}");
    changing.folder.write("keys.toml", &second);
    let report = changing.ask(&["reload"]);
    assert_eq!(report["changes"], serde_json::json!(["API key next added", "API key test removed"]));
    assert_eq!((changing.status_for(&first), changing.status_for(&second)), (401, known));
    // The node signs with the new key too.
    changing.ask(&["token", "create", "--room", "stage", "--identity", "ann"]);
    changing.node.signal("TERM");
    let (_, _, log) = changing.node.end();
    assert!(log.contains("API key next added") && !log.contains(SECRET) && !log.contains(OTHER_SECRET), "{log}");
}

#[test]
fn a_wrong_config_is_refused_whole_and_the_old_one_stays() {
    let changing = Changing::start();
    changing.write("[log]\nlevel = \"debug\"\n\n[node]\nnmae = \"x\"\n");
    let reload = || run(&["reload", "--socket", shown(&changing.socket())]);
    let output = reload();
    assert_eq!((code(&output), output.stdout.len()), (Some(2), 0), "{output:?}");
    let place = format!("pop: {}:18:1: there is no key `nmae` here", changing.folder.path("pop.toml").display());
    assert!(stderr(&output).starts_with(&place), "{}", stderr(&output));
    assert_eq!(changing.ask(&["log-level"])["filter"], "info", "half of the file was taken");
    // What only the keys file or the host can tell is refused as well.
    changing.write("[log]\nlevel = \"debug\"\n");
    changing.folder.write("keys.toml", "short = \"x\"\n");
    let output = reload();
    assert_eq!(code(&output), Some(2), "{output:?}");
    assert!(stderr(&output).contains("keys.toml:1:9: "), "{}", stderr(&output));
    changing.folder.config();
    let text = config(&changing.socket(), "127.0.0.1:0").replace("[dataplane]", "[dataplane]\ncores = \"8000\"");
    changing.folder.write("pop.toml", &text);
    let output = reload();
    assert!(code(&output) == Some(2) && stderr(&output).contains("choose from"), "{output:?}");
    fs::remove_file(changing.folder.path("pop.toml")).expect("it is ours");
    let output = reload();
    assert!(code(&output) == Some(2) && stderr(&output).contains("there is no such file"), "{output:?}");
    assert_eq!(http(changing.node.said("admin"), "GET", "/ready").0, 200);
    let successful = || {
        let metrics = http(changing.node.said("admin"), "GET", "/metrics").1;
        metrics.lines().find_map(|line| line.strip_prefix("pop_config_last_reload_successful ")).map(str::to_owned)
    };
    assert_eq!(successful().as_deref(), Some("0"));
    changing.folder.config();
    changing.ask(&["reload"]);
    assert_eq!(successful().as_deref(), Some("1"));
    changing.node.signal("TERM");
    let (_, _, log) = changing.node.end();
    assert!(log.contains("the new config is refused and the old one stays: ") && log.contains("18:1: there is no key"), "{log}");
}

/// A route of a config file, into a room; `keys` are one to a line.
fn route(name: &str, keys: &str) -> String {
    format!("[[rtp.route]]\nname = \"{name}\"\ndirection = \"in\"\ncodec = \"VP8\"\nroom = \"stage\"\nrtcp = \"off\"\n{keys}\n")
}

#[test]
fn a_reload_with_a_wrong_route_keeps_every_route_and_all_else() {
    let changing = Changing::start();
    let names = || {
        let routes = changing.ask(&["rtp", "list"])["routes"].clone();
        let name = |route: &serde_json::Value| route["name"].as_str().expect("a name").to_owned();
        routes.as_array().expect("routes").iter().map(name).collect::<Vec<_>>()
    };
    changing.ask(&["rtp", "add", "name=asked", "direction=in", "codec=VP8", "room=other", "rtcp=off"]);
    let asked = changing.ask(&["rtp", "list"])["routes"][0]["address"].as_str().expect("an address").rsplit(':').next().unwrap().to_owned();
    changing.write(&route("kept", ""));
    changing.ask(&["reload"]);
    assert_eq!(names(), ["asked", "kept"]);
    let media = changing.node.said("media").split('-').next().expect("a port").to_owned();
    for (name, keys, said) in [
        ("new", format!("peer = \"127.0.0.1:{media}\""), "is a media port of this node"),
        ("new", "peer = \"127.255.255.255:5004\"".to_owned(), "is a broadcast address"),
        ("new", format!("port = {asked}"), "is the RTP route \"asked\"'s already"),
        ("asked", String::new(), "there is an RTP route \"asked\" already"),
    ] {
        changing.write(&format!("[log]\nlevel = \"debug\"\n{}", route(name, &keys)));
        let output = run(&["reload", "--socket", shown(&changing.socket())]);
        assert!(code(&output) == Some(2) && stderr(&output).contains(said), "{keys}: {output:?}");
        assert_eq!((names(), &changing.ask(&["log-level"])["filter"]), (vec!["asked".into(), "kept".into()], &"info".into()), "{keys}");
    }
    // What only the attempt can tell is told, and the rest holds. No way to the peer is no reason to refuse.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    changing.write(&format!(
        "{}{}",
        route("late", &format!("port = {port}")),
        route("away", "address = \"127.0.0.1\"\npeer = \"192.0.2.1:5004\"")
    ));
    let output = run(&["reload", "--socket", shown(&changing.socket())]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(stderr(&output).contains("RTP route \"late\" is not open: cannot bind "), "{output:?}");
    assert_eq!(names(), ["asked", "away"]);
    changing.node.signal("TERM");
    let (_, _, log) = changing.node.end();
    for said in ["audit: route add ", "audit: route remove ", "peer 192.0.2.1:5004 cannot be reached from 127.0.0.1 now"] {
        assert!(log.contains(said), "no {said:?} in:\n{log}");
    }
}

#[test]
fn routes_that_cannot_be_together_are_found_before_the_start() {
    let folder = Folder::new();
    folder.config();
    let refused = |command: &[&str], listen: &str, routes: &str| {
        let file = folder.write("pop.toml", &format!("{}{routes}", config(&folder.path("pop.sock"), listen)));
        let output = run(&[command, &[shown(&file)]].concat());
        (code(&output), stderr(&output))
    };
    for (second, said) in [
        ("port = 21005", "port 21005 is the RTP route \"one\"'s already"),
        ("peer = \"127.0.0.1:21004\"", "peer 127.0.0.1:21004 is the RTP route \"one\" of this node"),
        ("port = 21010", "port 21010 is where one sends to"),
        ("peer = \"127.0.0.1:7880\"", "peer 127.0.0.1:7880 is the HTTP listener of this node"),
    ] {
        let one = route("one", "port = 21004\npeer = \"127.0.0.1:21010\"").replace("\"off\"", "\"next\"");
        let (code, log) = refused(&["check"], "127.0.0.1:7880", &format!("{one}{}", route("two", second)));
        assert!(code == Some(2) && log.contains("pop.toml:") && log.contains(said), "{second}: {code:?} {log}");
    }
    // What only the host can tell.
    let broadcast = route("one", "peer = \"127.255.255.255:5004\"");
    let (code, log) = refused(&["run", "--config"], "127.0.0.1:0", &broadcast);
    assert!(code == Some(2) && log.contains("pop: RTP route \"one\": peer 127.255.255.255:5004 is a broadcast address"), "{code:?} {log}");
}

#[test]
fn sighup_is_a_reload_and_never_the_end() {
    let changing = Changing::start();
    changing.write("[log]\nlevel = \"debug\"\nformat = \"json\"\n");
    changing.node.signal("HUP");
    wait_until("the level of the file", || changing.ask(&["log-level"])["filter"] == "debug");
    changing.write("[log]\nlevel = 3\n");
    changing.node.signal("HUP");
    changing.node.signal("TERM");
    let (code, _, log) = changing.node.end();
    assert_eq!(code, Some(0), "{log}");
    let last = log.lines().last().expect("a line");
    let last: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: not JSON at the end: {log}"));
    assert_eq!(last["message"], "stopped");
}

#[test]
fn the_log_level_changes_until_the_next_reload() {
    let changing = Changing::start();
    assert_eq!(changing.ask(&["log-level", "info,pop_dataplane=trace"])["filter"], "info,pop_dataplane=trace");
    let output = run(&["log-level", "loud", "--socket", shown(&changing.socket())]);
    assert_eq!(code(&output), Some(2), "{output:?}");
    assert!(stderr(&output).starts_with("pop: \"loud\" is no filter: write a level"), "{}", stderr(&output));
    assert_eq!(changing.ask(&["log-level"])["filter"], "info,pop_dataplane=trace");
    let report = changing.ask(&["reload"]);
    assert_eq!(report["changes"][0], "log filter \"info\", formerly \"info,pop_dataplane=trace\"");
    for (method, path) in [("POST", "/api/v1/reload"), ("PUT", "/api/v1/log"), ("GET", "/api/v1/log")] {
        assert_eq!(http(changing.node.said("admin"), method, path).0, 403, "{method} {path} over TCP");
    }
}

#[test]
fn the_audit_tells_who_did_what_in_text_and_in_json() {
    for format in ["text", "json"] {
        let changing = Changing::start();
        // Whatever the level is.
        changing.write(&format!("[log]\nlevel = \"error\"\nformat = \"{format}\"\n"));
        changing.ask(&["reload"]);
        changing.ask(&["token", "create", "--room", "stage", "--identity", "ann", "--no-publish", "--ttl", "1h"]);
        changing.ask(&["rtp", "capture", "stage", shown(&changing.folder.path("a.pcapng")), "--duration", "50ms"]);
        changing.ask(&["log-level", "warn"]);
        changing.node.signal("TERM");
        let (_, _, log) = changing.node.end();
        for (action, fields) in [
            ("reload", vec![("by", "unix socket"), ("applied", if format == "text" { "log.level" } else { "log.format,log.level" })]),
            ("grant", vec![("room", "stage"), ("identity", "ann"), ("publish", "false"), ("ttl_s", "3600")]),
            ("capture start", vec![("room", "stage"), ("kind", "all")]),
            ("capture stop", vec![("packets", "0"), ("complete", "true")]),
            ("log", vec![("filter", "warn"), ("former", "error")]),
        ] {
            let found = log.lines().any(|line| match serde_json::from_str::<serde_json::Value>(line) {
                Ok(line) => {
                    let value = |field: &str| line[field].as_str().map_or_else(|| line[field].to_string(), str::to_owned);
                    let target = line["target"] == "audit" && line["message"] == action;
                    target && fields.iter().all(|(field, expected)| value(field) == *expected)
                }
                Err(_) => {
                    let said = |(field, value): &(&str, &str)| {
                        [format!(" {field}={value}"), format!(" {field}=\"{value}\"")].iter().any(|text| line.contains(text.as_str()))
                    };
                    line.contains(&format!(" audit: {action} ")) && fields.iter().all(said)
                }
            });
            assert!(found, "no audit of {action} with {fields:?} in {format}:\n{log}");
        }
    }
}

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    /// At a path, or after `@` in the abstract namespace.
    fn listen(place: &str) -> Manager {
        let address = match place.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(place),
        };
        Manager(UnixDatagram::bind_addr(&address.expect("an address")).expect("it is free"))
    }

    fn start(&self, place: &str, folder: &Folder, watchdog: Duration) -> Node {
        let usec = watchdog.as_micros().to_string();
        Node::start_as(&folder.config(), |command| {
            let command = command.env("NOTIFY_SOCKET", place).env_remove("WATCHDOG_PID").env_remove("STATE_DIRECTORY");
            if watchdog.is_zero() { command } else { command.env("WATCHDOG_USEC", usec) }
        })
    }

    /// The next message, if one comes in time.
    fn next_within(&self, time: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(time)).expect("not zero");
        let mut bytes = [0; 4_096];
        let len = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    /// Waits for a message that begins so.
    fn wait_for(&self, start: &str) -> String {
        let started = Instant::now();
        let mut heard = Vec::new();
        while started.elapsed() < PATIENCE {
            match self.next_within(PATIENCE) {
                Some(message) if message.starts_with(start) => return message,
                other => heard.extend(other),
            }
        }
        panic!("no {start:?} in {heard:?}")
    }
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end() {
    let folder = Folder::new();
    for place in [shown(&folder.path("notify")).to_owned(), format!("@pop-notify-{}", std::process::id())] {
        let manager = Manager::listen(&place);
        let node = manager.start(&place, &folder, Duration::ZERO);
        assert_eq!(manager.wait_for("READY"), "READY=1");
        assert_eq!(manager.wait_for("STATUS="), "STATUS=serving 0 clients");
        let output = run(&["reload", "--socket", shown(&folder.path("pop.sock"))]);
        assert_eq!(code(&output), Some(0), "{output:?}");
        let reloading = manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
        let usec: f64 = reloading.rsplit('=').next().and_then(|usec| usec.parse().ok()).expect("a number");
        let uptime = fs::read_to_string("/proc/uptime").expect("Linux has it");
        let uptime_s: f64 = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("a number");
        assert!((uptime_s - usec / 1e6).abs() < 10.0, "{reloading:?} and up for {uptime_s} s");
        assert_eq!(manager.wait_for("READY"), "READY=1");
        node.signal("TERM");
        assert_eq!(manager.wait_for("STOPPING"), "STOPPING=1");
        assert_eq!(node.end().0, Some(0));
    }
}

#[test]
fn a_manager_that_cannot_be_told_is_a_sentence() {
    let folder = Folder::new();
    let node = Node::start_as(&folder.config(), |command| command.env("NOTIFY_SOCKET", "vsock:2:1234"));
    let (code, _, log) = node.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("pop: NOTIFY_SOCKET=vsock:2:1234 cannot be used: "), "{log}");
}

#[test]
fn a_worker_that_hangs_stops_the_watchdog_until_it_moves_again() {
    let folder = Folder::new();
    let place = format!("@pop-watchdog-{}", std::process::id());
    let manager = Manager::listen(&place);
    let deadline = Duration::from_secs(4);
    let node = manager.start(&place, &folder, deadline);
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", node.child.id())).expect("it runs").flatten();
    let worker =
        tasks.map(|task| task.path()).find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "pop-worker-0"));
    let worker = worker.expect("a worker").file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
    let frozen = FrozenThread::freeze(worker).expect("it is our child's");
    assert_eq!(manager.wait_for("STATUS=stuck"), "STATUS=stuck: worker 0 has not turned within 1s");
    // What was on its way before has come; from here on there is silence, although the node answers.
    assert_eq!(http(node.said("admin"), "GET", "/healthz").0, 200);
    let started = Instant::now();
    while let Some(rest) = (deadline + Duration::from_secs(1)).checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) {
        let message = manager.next_within(rest);
        assert_ne!(message.as_deref(), Some("WATCHDOG=1"), "the watchdog is fed while a worker hangs");
    }
    drop(frozen);
    manager.wait_for("WATCHDOG=1");
    assert_eq!(manager.wait_for("STATUS="), "STATUS=serving 0 clients");
    node.signal("TERM");
    let (code, _, log) = node.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("worker 0 has not turned within 1s: the watchdog is not fed"), "{log}");
}

#[test]
fn each_start_is_counted_in_the_state_directory() {
    let folder = Folder::new();
    let state = folder.path("state");
    let text = config(&folder.path("pop.sock"), "127.0.0.1:0") + &format!("[node]\nstate_dir = \"{}\"\n", state.display());
    let started = || {
        folder.config();
        let node = Node::start(&folder.write("pop.toml", &text), &[]);
        let status = json(&run(&["status", "--json", "--socket", shown(&folder.path("pop.sock"))]));
        node.signal("KILL");
        drop(node.end());
        status["incarnation"]["start"].as_u64().expect("a number")
    };
    let first = started();
    assert_eq!([started(), started()], [first + 1, first + 2]);
    // A folder that cannot be is one line.
    fs::remove_dir_all(&state).expect("it is ours");
    fs::write(&state, "in the way").expect("it is ours");
    let output = run(&["run", "--config", shown(&folder.path("pop.toml"))]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(stderr(&output).contains("pop: node.state_dir ") && stderr(&output).contains("set node.state_dir to another folder"));
}
