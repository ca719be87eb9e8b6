//! The built binary as scripts see it: exit codes, the ready line, stdout and stderr, tokens, signals, and what it leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pop_proto::DropReason;
use pop_schemas::SessionId;
use pop_session::token;

#[path = "cli_support/process.rs"]
mod process;

use process::{Folder, Node, SECRET, code, config, http, json, pop, read_answer, run, shown, stderr};

/// A publisher's request whose body never comes. The node has read its head and waits: an orderly stop takes the grace of 2 s.
fn open_request(folder: &Folder, node: &Node) -> TcpStream {
    let made = run(&["token", "create", "--room", "stage", "--identity", "ann", "--json", "--keys", shown(&folder.path("keys.toml"))]);
    let token = json(&made)["token"].as_str().expect("a token").to_owned();
    let mut stream = TcpStream::connect(node.said("http").trim_start_matches("http://")).expect("the node listens");
    write!(
        stream,
        "POST /whip/stage HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/sdp\r\n\
         expect: 100-continue\r\ncontent-length: 100\r\n\r\n"
    )
    .expect("a small request");
    let mut answer = [0; 21];
    stream.read_exact(&mut answer).expect("the node asks for the body");
    assert_eq!(&answer, b"HTTP/1.1 100 Continue");
    stream
}

/// Asks over the unix socket for a capture of a minute; the answer's head and body.
fn start_capture(socket: &Path, room: &str, file: &Path) -> (String, String) {
    let body = serde_json::json!({ "room": room, "path": file, "duration": "1m" }).to_string();
    let mut stream = UnixStream::connect(socket).expect("the node listens");
    write!(
        stream,
        "POST /api/v1/captures HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a small request");
    read_answer(stream)
}

#[test]
fn wrong_arguments_are_exit_code_2_and_stdout_stays_empty() {
    for words in [
        &[][..],
        &["fly"],
        &["run", "--port", "1"],
        &["token", "create", "--room", "r"],
        &["token", "create", "--room", "r", "--identity", "i", "--ttl", "1 h"],
        &["rtp", "capture", "room"],
        &["rtp", "capture", "room", "f", "--kind", "data"],
        &["run", "--config", "no/such/pop.toml"],
        &["check", "no/such/pop.toml"],
        &["token", "create", "--room", "r", "--identity", "i", "--keys", "no/such/keys.toml"],
    ] {
        let output = run(words);
        assert_eq!(code(&output), Some(2), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{words:?}: {output:?}");
    }
    for words in [&["--help"][..], &["version"], &["--version"], &["token", "create", "--help"]] {
        let output = run(words);
        assert_eq!(code(&output), Some(0), "{words:?}");
        assert!(!output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn completions_and_the_manual_know_every_command() {
    let output = run(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let commands = help.split_once("Commands:").expect("a list").1.split_once("Options:").expect("a list").0;
    let commands: Vec<&str> =
        commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|name| !name.is_empty()).collect();
    assert!(commands.len() > 10 && !commands.contains(&"man"), "{commands:?}");
    for words in [["completion", "bash"], ["completion", "zsh"], ["completion", "fish"], ["man", ""]] {
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let output = run(&words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(code(&output), Some(0), "{words:?}");
        for command in &commands {
            // A manual writes a hyphen as \\-.
            assert!(text.contains(command) || text.contains(&command.replace('-', "\\-")), "{words:?} lacks {command}");
        }
    }
    let folder = Folder::new();
    assert_eq!(code(&run(&["man", shown(&folder.0)])), Some(0));
    assert!(fs::read_to_string(folder.path("pop-reload.1")).expect("a page").contains("config file"));
}

#[test]
fn a_watch_answers_again_until_nobody_reads() {
    let folder = Folder::new();
    let _node = Node::start(&folder.config(), &[]);
    let mut watch = pop(&["status", "--json", "--watch", "50ms", "--socket", shown(&folder.path("pop.sock"))]);
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().expect("the binary is there");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().expect("it is piped")));
    let mut uptime = || {
        let status: serde_json::Value = serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("an object");
        status["uptime_ms"].as_u64().expect("a number")
    };
    let (first, second) = (uptime(), uptime());
    assert!(second >= first + 50, "{first} ms, then {second} ms");
    drop(lines);
    assert_eq!(watch.wait().expect("it is our child").code(), Some(0));
}

#[test]
fn a_wrong_config_is_a_place_and_exit_code_2_for_check_and_run() {
    let folder = Folder::new();
    let file = folder.write("pop.toml", "[http]\nlisten = \"127.0.0.1:0\"\n\n[media]\nporrt = 1\n");
    for command in [&["check", shown(&file)][..], &["run", "--config", shown(&file)], &["doctor", "--config", shown(&file)]] {
        let output = run(command);
        assert_eq!(code(&output), Some(2), "{output:?}");
        let expected = format!("pop: {}:5:1: there is no key `porrt` here; known here: ", file.display());
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    }
    let output = run(&["check", "--json", shown(&file)]);
    let said = json(&output);
    assert_eq!(
        (code(&output), said["ok"].as_bool(), said["line"].as_u64(), said["column"].as_u64()),
        (Some(2), Some(false), Some(5), Some(1))
    );
    assert!(said["error"].as_str().is_some_and(|error| error.starts_with("there is no key `porrt` here")), "{said}");
    let output = run(&["check", "--json", shown(&folder.config())]);
    assert_eq!((code(&output), json(&output)["keys"].as_u64()), (Some(0), Some(1)), "{output:?}");
    let output = run(&["check", shown(&folder.config())]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("pop.toml: ok, "), "{output:?}");
}

#[test]
fn secrets_that_everybody_may_read_are_refused() {
    let folder = Folder::new();
    let file = folder.config();
    fs::set_permissions(folder.path("keys.toml"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let output = run(&["run", "--config", shown(&file)]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("chmod 640") && !stderr(&output).contains(SECRET), "{}", stderr(&output));
}

#[test]
fn the_ready_line_is_all_of_stdout_and_sigterm_is_exit_code_0() {
    let folder = Folder::new();
    for signal in ["TERM", "INT"] {
        let node = Node::start(&folder.config(), &[]);
        let words: Vec<&str> = node.line.trim_end().split(' ').collect();
        assert!(words.len() == 5 && words[0] == "ready" && node.line.ends_with('\n'), "{:?}", node.line);
        let keys: Vec<&str> = words[1..].iter().filter_map(|word| Some(word.split_once('=')?.0)).collect();
        assert_eq!(keys, ["http", "media", "admin", "demo"]);
        let (first, last) = node.said("media").split_once('-').expect("FIRST-LAST");
        assert!(first.parse::<u16>().expect("a port") > 0 && last.parse::<u16>().expect("a port") > 0);
        assert!(node.said("demo").starts_with(&format!("{}/demo?room=demo#token=", node.said("http"))), "{}", node.line);
        assert_eq!(http(node.said("http"), "GET", "/demo").0, 200);
        assert_eq!(http(node.said("admin"), "GET", "/ready"), (200, "ready\n".to_owned()));
        node.signal(signal);
        let (code, rest, log) = node.end();
        assert_eq!((code, rest.as_str()), (Some(0), ""), "{log}");
        assert!(!folder.path("pop.sock").exists(), "the socket stayed");
    }
}

#[test]
fn the_ready_line_as_json_says_the_same() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&node.line).expect("an object");
    let keys: Vec<&String> = said.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["admin", "demo", "http", "media"]);
    assert_eq!(http(said["admin"].as_str().expect("a URL"), "GET", "/healthz").0, 200);
}

fn post(base: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(base.strip_prefix("http://").expect("a plain URL")).expect("the node listens");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}")
        .expect("a small request");
    let (head, body) = read_answer(stream);
    (head[9..12].parse().expect("a status"), body)
}

#[test]
fn the_demo_url_makes_everybody_who_opens_it_somebody_else() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let link = node.said("demo").split_once("#token=").expect("a token").1.to_owned();
    let ask = |token: &str, name: &str| {
        let body = serde_json::json!({ "name": name }).to_string();
        post(
            node.said("http"),
            "/demo/guest",
            &[("authorization", &format!("Bearer {token}")), ("content-type", "application/json")],
            &body,
        )
    };
    let identity = |(code, body): (u16, String)| {
        assert_eq!(code, 200, "{body}");
        let token = serde_json::from_str::<serde_json::Value>(&body).expect("an object")["token"].as_str().expect("a token").to_owned();
        let access =
            token::verify(&token, pop::token::unix_now_s(), |name| (name == "test").then_some(SECRET.as_bytes())).expect("the node's own");
        assert!(access.may_publish(&SessionId::new("demo").expect("a name")).is_ok());
        (access.identity().to_string(), token)
    };
    let ((ann, anns), (bob, _)) = (identity(ask(&link, "Ann")), identity(ask(&link, "Bob")));
    assert!(ann != bob && ann.starts_with("guest-"), "{ann} {bob}");
    assert_eq!(ask(&anns, "Eve").0, 403, "a guest brings no guests");
    let output = run(&["token", "create", "--room", "demo", "--identity", "ann", "--socket", shown(&folder.path("pop.sock")), "--json"]);
    let own = json(&output);
    assert_eq!(own["demo"], format!("{}/demo?room=demo#token={}", node.said("http"), own["token"].as_str().expect("a token")));
    assert_eq!(ask(own["token"].as_str().expect("a token"), "Eve").0, 403, "a person's token brings no guests");
    for name in ["", "  ", "a\nb", &"x".repeat(65)] {
        assert_eq!(ask(&link, name).0, 400, "{name:?}");
    }
    assert_eq!(ask(&link, &"x".repeat(1_100)).0, 413);
    assert_eq!(ask("a.b.c", "Eve").0, 401);
    assert_eq!(post(node.said("http"), "/demo/guest", &[("content-type", "application/json")], "{}").0, 401);
}

#[test]
fn tokens_come_from_the_node_and_from_the_file_alike() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let (socket, keys) = (folder.path("pop.sock"), folder.path("keys.toml"));
    let asked = ["token", "create", "--room", "Straße 7", "--identity", "ann", "--no-publish", "--ttl", "1h", "--json"];
    let stage = SessionId::new("Straße 7").expect("a name");
    for (from, url) in [(["--socket", shown(&socket)], node.said("http")), (["--keys", shown(&keys)], "http://127.0.0.1:7880")] {
        let output = run(&[&asked[..], &from].concat());
        assert_eq!(code(&output), Some(0), "{output:?}");
        let made = json(&output);
        assert_eq!(made["url"], url);
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let text = made["token"].as_str().expect("a token");
        let verify = |at_s| token::verify(text, at_s, |name| (name == "test").then_some(SECRET.as_bytes()));
        let access = verify(now_s).expect("it is signed by the key of the file");
        assert!(access.may_watch(&stage).is_ok() && access.may_publish(&stage).is_err());
        assert!(verify(now_s + 3_590).is_ok() && verify(now_s + 3_601).is_err());
    }
    for wrong in ["a/b", ""] {
        let output = run(&["token", "create", "--room", wrong, "--identity", "ann", "--socket", shown(&socket)]);
        assert_eq!(code(&output), Some(2), "{output:?}");
        assert!(stderr(&output).starts_with("pop: room "), "{}", stderr(&output));
    }
}

#[test]
fn without_a_node_a_question_says_how_to_start_one() {
    let folder = Folder::new();
    for words in
        [&["sessions"][..], &["status", "--json"], &["rtp", "capture", "r", "f"], &["token", "create", "--room", "r", "--identity", "i"]]
    {
        let output = run(&[words, &["--socket", shown(&folder.path("pop.sock"))]].concat());
        assert_eq!(code(&output), Some(1), "{output:?}");
        assert!(stderr(&output).contains("no node answers at") && stderr(&output).contains("`pop run`"), "{}", stderr(&output));
    }
}

#[test]
fn a_killed_node_leaves_nothing_in_the_way_of_the_next() {
    let folder = Folder::new();
    let first = Node::start(&folder.config(), &[]);
    first.signal("KILL");
    assert_eq!(first.end().0, None);
    assert!(folder.path("pop.sock").exists(), "a kill leaves the socket file");
    let second = Node::start(&folder.config(), &[]);
    assert!(second.line.starts_with("ready "), "{:?}", second.line);
    let output = run(&["status", "--json", "--socket", shown(&folder.path("pop.sock"))]);
    let status = json(&output);
    assert_eq!((status["ready"].as_bool(), status["sessions"].as_u64()), (Some(true), Some(0)), "{status}");
}

#[test]
fn what_is_taken_is_one_line_and_exit_code_1() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let taken = node.said("http").trim_start_matches("http://").to_owned();
    let other = Folder::new();
    other.config();
    let cases = [
        (config(&folder.path("pop.sock"), "127.0.0.1:0"), "another node is alive at"),
        (config(&other.path("pop.sock"), &taken), "is taken by another process: stop it, or set http.listen"),
        (config(Path::new("/proc/pop/pop.sock"), "127.0.0.1:0"), "set admin.socket to another path"),
        (config(&other.path("keys.toml"), "127.0.0.1:0"), "is there and is no socket: remove it"),
        (config(&other.path("pop.sock"), "192.0.2.1:80"), "is no address of this host: set http.listen"),
    ];
    for (text, sentence) in cases {
        let file = other.write("pop.toml", &text);
        let output = run(&["run", "--config", shown(&file)]);
        assert_eq!(code(&output), Some(1), "{output:?}");
        let lines: Vec<String> = stderr(&output).lines().filter(|line| line.starts_with("pop: ")).map(str::to_owned).collect();
        assert!(lines.len() == 1 && lines[0].contains(sentence), "should say {sentence:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn too_few_descriptors_are_one_line_and_exit_code_1() {
    let folder = Folder::new();
    let file = folder.config();
    for limit in ["--nofile=8:8", "--nofile=12:12", "--nofile=16:16"] {
        let mut command = std::process::Command::new("prlimit");
        command.args([limit, env!("CARGO_BIN_EXE_pop"), "run", "--config", shown(&file)]).stdin(std::process::Stdio::null());
        let output = command.output().expect("prlimit of util-linux is there");
        assert_eq!(code(&output), Some(1), "{limit}: {output:?}");
        let lines: Vec<String> = stderr(&output).lines().filter(|line| line.starts_with("pop: ")).map(str::to_owned).collect();
        assert!(lines.len() == 1 && lines[0].contains("raise the limit of open files (LimitNOFILE="), "{limit}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_config_that_this_host_cannot_follow_is_exit_code_2() {
    let folder = Folder::new();
    folder.config();
    let text = config(&folder.path("pop.sock"), "127.0.0.1:0");
    let cores = std::thread::available_parallelism().expect("Linux tells").get();
    let mut cases = vec![(text.replace("[dataplane]", "[dataplane]\ncores = \"8000\""), "choose from")];
    // With one worker the last port has room for all.
    if cores > 2 {
        cases.push((text.replace("port = 0", "port = 65535"), "leaves no room for"));
    }
    for (text, sentence) in cases {
        let file = folder.write("pop.toml", &text);
        let output = run(&["run", "--config", shown(&file)]);
        assert_eq!(code(&output), Some(2), "{output:?}");
        let said = stderr(&output);
        assert!(said.lines().last().is_some_and(|line| line.starts_with("pop: ") && line.contains(sentence)), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_admin_listener_tells_and_does_not_act() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let admin = node.said("admin");
    for path in ["/api/v1/tokens", "/api/v1/captures"] {
        let (code, body) = http(admin, "POST", path);
        assert!(code == 403 && body.contains("unix socket"), "{path}: {code} {body}");
    }
    let (_, metrics) = http(admin, "GET", "/metrics");
    assert!(metrics.contains("\npop_ready 1\n"), "{metrics}");
    for reason in DropReason::ALL {
        let series = format!("pop_rtp_dropped_packets_total{{reason=\"{}\",worker=\"0\"}} 0", reason.label());
        assert!(metrics.contains(&series), "no {series}");
    }
    let sessions: serde_json::Value = serde_json::from_str(&http(admin, "GET", "/api/v1/sessions").1).expect("JSON");
    assert_eq!(sessions["sessions"], serde_json::json!([]));
    assert!(sessions["incarnation"]["start"].as_u64().expect("a number") > 0);
    assert_eq!(http(admin, "GET", "/other").0, 404);
    assert_eq!(http(node.said("http"), "GET", "/metrics").0, 404, "the public listener shows no metrics");
}

#[test]
fn a_capture_ends_by_itself_and_never_overwrites() {
    let folder = Folder::new();
    let _node = Node::start(&folder.config(), &[]);
    let socket = folder.path("pop.sock");
    let capture = |file: &str| {
        let words = ["rtp", "capture", "stage", file, "--duration", "300ms", "--json", "--socket", shown(&socket)];
        // A relative name is meant from where the user stands.
        pop(&words).current_dir(&folder.0).output().expect("the binary is there")
    };
    let output = capture("a.pcapng");
    assert_eq!(code(&output), Some(0), "{output:?}");
    let ended = json(&output);
    assert_eq!((ended["state"].as_str(), ended["packets"].as_u64()), (Some("done"), Some(0)));
    let file = fs::read(folder.path("a.pcapng")).expect("it was made");
    assert_eq!(file.len() as u64, ended["bytes"].as_u64().expect("a number"));
    assert_eq!(file[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a pcapng file begins with a section header");
    let again = capture("a.pcapng");
    assert_eq!(code(&again), Some(1), "{again:?}");
    assert!(stderr(&again).contains("cannot write"), "{}", stderr(&again));
    assert_eq!(fs::read(folder.path("a.pcapng")).expect("it is there").len(), file.len());
}

#[test]
fn a_capture_is_private_and_a_refused_one_leaves_no_file() {
    let folder = Folder::new();
    let _node = Node::start(&folder.config(), &[]);
    let socket = folder.path("pop.sock");
    let first = folder.path("first.pcapng");
    let (head, body) = start_capture(&socket, "stage", &first);
    assert!(head.starts_with("HTTP/1.1 201 "), "{head} {body}");
    assert_eq!(fs::metadata(&first).expect("it was made").permissions().mode() & 0o777, 0o600);
    let second = folder.path("second.pcapng");
    let rows = [("stage", &second, 409), ("other", &first, 409), ("other", &folder.path("no/such/folder.pcapng"), 400)];
    for (room, file, code) in rows {
        let (head, body) = start_capture(&socket, room, file);
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{room} {}: {head} {body}", file.display());
    }
    assert!(first.exists() && !second.exists(), "the refused capture's file stayed");
    for number in 1..16 {
        let (head, body) = start_capture(&socket, &format!("room {number}"), &folder.path(&format!("{number}.pcapng")));
        assert!(head.starts_with("HTTP/1.1 201 "), "{head} {body}");
    }
    let (head, body) = start_capture(&socket, "one more", &folder.path("more.pcapng"));
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nretry-after: "), "{head} {body}");
}

#[test]
fn an_open_request_does_not_hold_the_end_up() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let _open = open_request(&folder, &node);
    let started = Instant::now();
    node.signal("TERM");
    let (code, _, log) = node.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
}

#[test]
fn a_second_signal_stops_at_once() {
    let folder = Folder::new();
    let node = Node::start(&folder.config(), &[]);
    let _open = open_request(&folder, &node);
    let started = Instant::now();
    node.signal("TERM");
    node.signal("INT");
    let (code, _, log) = node.end();
    let took = started.elapsed();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopping; a second signal stops at once") && log.contains("stopped at once signal="), "{log}");
    assert!(took < Duration::from_millis(1_500), "it took {took:?}: the grace was waited for");
}

#[test]
fn the_doctor_judges_this_host() {
    let folder = Folder::new();
    let output = run(&["doctor", "--json", "--config", shown(&folder.config())]);
    let report = json(&output);
    let findings = report["findings"].as_array().expect("a list");
    for name in
        ["kernel", "back end", "udp_segment", "udp_gro", "cores", "memory plan", "receive buffer", "open files", "http.listen", "media"]
    {
        assert!(findings.iter().any(|finding| finding["name"] == name), "no {name} in {report}");
    }
    let failed = findings.iter().any(|finding| finding["level"] == "fail");
    assert_eq!(code(&output), Some(i32::from(failed)), "{output:?}");
    assert!(findings.iter().all(|finding| finding["level"] == "ok" || finding["change"].is_string()), "advice is missing: {report}");
}
