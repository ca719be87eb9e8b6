//! Latency probes as strangers make them: the built binary serves, the built binary and a bare socket measure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pop::probe::Description;

/// A node on free ports; ends with the test.
struct Node {
    child: Child,
    folder: PathBuf,
    authority: String,
}

fn folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("pop-probe-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("temporary files can be made");
    folder
}

fn pop(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pop"));
    command.args(words).stdin(Stdio::null());
    command
}

fn config(folder: &std::path::Path, probe: &str) -> PathBuf {
    let path = folder.join("pop.toml");
    let socket = folder.join("pop.sock");
    let text = format!(
        "[node]\nname = \"fra1\"\nregion = \"Frankfurt\"\n[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         socket = \"{}\"\n[media]\naddresses = [\"127.0.0.1\"]\nport = 0\n[dataplane]\npacket_pool = 1024\nrecv_buffers = 16\n\
         [probe]\n{probe}\n",
        socket.display()
    );
    std::fs::write(&path, text).expect("temporary files can be made");
    path
}

impl Node {
    fn start(probe: &str) -> Node {
        let folder = folder();
        let config = config(&folder, probe);
        let mut command = pop(&["run", "--json", "--config", config.to_str().expect("it is text")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary is there");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("the node serves");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("the ready line");
        let authority = ready["http"].as_str().expect("a URL").trim_start_matches("http://").to_owned();
        Node { child, folder, authority }
    }

    fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// Head and body of an answer.
    fn ask(&self, method: &str, path: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.authority).expect("it listens");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).expect("the request is small");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_lowercase(), body.to_owned())
    }

    fn description(&self) -> Description {
        serde_json::from_str(&self.ask("GET", "/.well-known/pop.json", "").1).expect("it is JSON")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn probe(words: &[&str]) -> (Option<i32>, String, String) {
    let all: Vec<&str> = [&["probe"], words].concat();
    let Output { status, stdout, stderr } = pop(&all).output().expect("the binary is there");
    (status.code(), String::from_utf8(stdout).expect("text"), String::from_utf8(stderr).expect("text"))
}

#[test]
fn http_probes_get_nothing_but_headers_for_any_origin() {
    let node = Node::start("stun = 0\nstamp = 0");
    for method in ["GET", "HEAD"] {
        let (head, body) = node.ask(method, "/probe", "accept: */*\r\norigin: https://elsewhere.example\r\n");
        assert!(head.starts_with("http/1.1 204 "), "{head}");
        for line in ["cache-control: no-store", "access-control-allow-origin: *", "timing-allow-origin: *", "vary: accept"] {
            assert!(head.contains(line), "{line} in {head}");
        }
        assert!(head.contains("server-timing: node;desc=\"fra1\";dur="), "{head}");
        assert_eq!(body, "");
    }
    let (head, page) = node.ask("GET", "/probe", "accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n");
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-security-policy") && head.contains("vary: accept"), "{head}");
    // Every file that the page names is there.
    let named: Vec<&str> = page.split('"').filter(|part| part.starts_with("/probe/") || part.starts_with("/demo/")).collect();
    assert!(named.len() >= 4, "{named:?}");
    for path in named {
        assert!(node.ask("GET", path, "").0.starts_with("http/1.1 200 "), "{path}");
    }
}

#[test]
fn the_description_names_what_answers() {
    let node = Node::start("stun = 0\nstamp = 0\npops = [\"https://sin.pop.example\"]");
    let (head, _) = node.ask("GET", "/.well-known/pop.json", "");
    assert!(head.contains("access-control-allow-origin: *") && head.contains("application/json"), "{head}");
    let Description { name, region, ice, stun, stamp, http, pops, version } = node.description();
    assert_eq!((name.as_str(), region.as_str(), http.as_str()), ("fra1", "Frankfurt", "/probe"));
    assert_eq!((version.as_str(), pops), (pop::VERSION, vec!["https://sin.pop.example".to_owned()]));
    let ice = ice.expect("the ICE probe is on");
    assert!(ice.candidates[0].port != 0 && stun[0].port() != 0 && stamp[0].port() != 0);
    let without = Node::start("stun = false\nstamp = false\nice = false");
    let Description { ice, stun, stamp, .. } = without.description();
    assert!(ice.is_none() && stun.is_empty() && stamp.is_empty());
    assert!(Node::start("stun = 0\nstamp = 0\nhttp = false").ask("GET", "/probe", "").0.starts_with("http/1.1 404 "));
}

#[test]
fn a_reload_changes_the_rates_and_the_other_pops() {
    let node = Node::start("stun = 0\nstamp = 0\nprefix_requests_per_second = 1");
    let answered = |count: &str| {
        let (_, stdout, _) = probe(&["--ice", "-c", count, "-i", "10ms", "-W", "300ms", "--json", &node.url()]);
        let report: serde_json::Value = serde_json::from_str(&stdout).expect("one object");
        report["probes"][0]["received"].as_u64().expect("a number")
    };
    assert!(answered("20") <= 4);
    config(&node.folder, "stun = 0\nstamp = 0\nprefix_requests_per_second = 1000\npops = [\"http://other.example\"]");
    let socket = node.folder.join("pop.sock");
    let reload = pop(&["reload", "--socket", socket.to_str().expect("it is text")]).output().expect("the binary is there");
    assert!(reload.status.success(), "{reload:?}");
    let said = String::from_utf8(reload.stdout).expect("text");
    assert!(said.contains("probe.prefix_requests_per_second") && said.contains("probe.pops"), "{said}");
    assert_eq!(node.description().pops, ["http://other.example"]);
    // What the slow rate has booked ahead is two seconds at most.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(answered("20"), 20);
}

#[test]
fn the_command_measures_each_way_and_ranks() {
    let node = Node::start("stun = 0\nstamp = 0");
    for method in ["--stun", "--stamp", "--http", "--ice"] {
        let (code, stdout, stderr) = probe(&[method, "-c", "3", "-i", "20ms", &node.url()]);
        assert_eq!(code, Some(0), "{method}: {stdout}{stderr}");
        assert_eq!(stdout.lines().filter(|line| line.contains(" time=")).count(), 3, "{stdout}");
        assert!(stdout.contains("3 sent, 3 received, 0.0% loss\nrtt min/avg/max/mdev = "), "{stdout}");
    }
    let stamp = node.description().stamp[0].to_string();
    let (code, stdout, _) = probe(&["--stamp", "-c", "2", "-i", "20ms", "--json", &stamp, &node.url()]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one object");
    assert_eq!((code, report["probes"].as_array().map(Vec::len)), (Some(0), Some(2)));
    let min = |i: usize| report["probes"][i]["rtt_ms"]["min"].as_f64().expect("a number");
    assert!(min(0) <= min(1) && report["best"] == report["probes"][0]["target"], "{report}");
    assert_eq!(report["probes"][0]["samples"][0]["ttl"], 64);
}

#[test]
fn loss_is_exit_code_1_and_a_wrong_argument_2() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    let (code, stdout, stderr) = probe(&["-c", "2", "-i", "20ms", "-W", "100ms", &address]);
    assert_eq!((code, stderr.as_str()), (Some(1), "pop: 2 of 2 probes were lost\n"));
    assert!(stdout.contains("seq=1 lost") && stdout.contains("2 sent, 0 received, 100.0% loss"), "{stdout}");
    for words in
        [&[][..], &["--stun", "--ice", "a"], &["-c", "0", "a"], &["-i", "1ms", "a"], &["-W", "11s", "a"], &["a:b"], &["--ice", "192.0.2.1"]]
    {
        assert_eq!(probe(words).0, Some(2), "{words:?}");
    }
}

/// Answers every request three times wrongly and once rightly: another transaction, garbage, a fake error, then the answer, twice.
#[test]
fn forged_repeated_and_broken_replies_are_passed_over() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("it is a duration");
    let address = server.local_addr().expect("it is bound").to_string();
    let forger = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let serving = std::thread::spawn(move || {
        for _ in 0..3 {
            let mut request = [0; 100];
            let (len, from) = server.recv_from(&mut request).expect("a request");
            assert_eq!(len, 20);
            let answer = |transaction: &[u8], kind: [u8; 2]| {
                [&kind[..], &[0, 12, 0x21, 0x12, 0xa4, 0x42], transaction, &[0, 0x20, 0, 8, 0, 1, 1, 2, 3, 4, 5, 6]].concat()
            };
            let right = answer(&request[8..20], [1, 1]);
            forger.send_to(&right, from).expect("loopback takes it");
            for datagram in [vec![0; 1_473], answer(&[7; 12], [1, 1]), answer(&request[8..20], [0, 1]), vec![], right.clone(), right] {
                server.send_to(&datagram, from).expect("loopback takes it");
            }
        }
    });
    let (code, stdout, _) = probe(&["-c", "3", "-i", "50ms", &address]);
    serving.join().expect("it served");
    assert_eq!(code, Some(0));
    assert!(stdout.contains("3 sent, 3 received, 0.0% loss"), "{stdout}");
}

#[test]
fn a_description_of_a_stranger_is_bounded_and_believed_only_in_its_form() {
    let answers: [(&str, String); 4] = [
        ("cannot be read", format!("HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n{}", "x".repeat(200_000))),
        ("is no pop.json", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[1,2,3,4]".to_owned()),
        ("answers no ice probes", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("HTTP 302", "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned()),
    ];
    for (sentence, answer) in answers {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.read(&mut [0; 2_000]);
            // The client may hang up before it has all.
            let _ = stream.write_all(answer.as_bytes());
        });
        let (code, _, stderr) = probe(&[&url]);
        serving.join().expect("it served");
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(sentence) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn a_demanded_port_that_is_taken_is_one_line_and_no_start() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let folder = folder();
    let config = config(&folder, &format!("stun = {port}\nstamp = false"));
    let output = pop(&["run", "--config", config.to_str().expect("it is text")]).output().expect("the binary is there");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().expect("a line");
    assert!(last.contains(&format!("127.0.0.1:{port}/udp is taken by another process")) && last.contains("set probe.stun"), "{stderr}");
    std::fs::remove_dir_all(folder).expect("it was made here");
}
