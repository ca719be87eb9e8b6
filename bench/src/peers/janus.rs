//! A Janus of our own: its process, and the way into its video room by its JSON API over HTTP.
//!
//! ```text
//! publisher:  create -> attach -> joinandconfigure with our offer -> event with its answer
//! subscriber: create -> attach -> join -> event with its offer    -> start with our answer
//! ```
//! In both ways it is ICE-lite, as `pop` is (its library checks the way back all the same), and the client is the DTLS server, so that
//! we choose the SRTP profile: AES-128-GCM.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pop::dtls::Dtls;
use pop_proto::wire::stun::RESPONSE_LEN_MAX;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::fanout::ice::{Checks, answer_check};
use crate::fanout::join::{JOIN_TIMEOUT, Joined, check_connectivity, shake_hands};
use crate::floor::pin_to;
use crate::http;
use crate::network::Network;
use crate::sdp::{Answer, Media, Offer};

/// It serves within a second; a busy machine gets this long.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks whether it serves.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// Port of its API: the namespace is its own.
const PORT: u16 = 8_088;

/// Lines of its log that go into an error.
const LOG_LINES: usize = 12;

/// A running Janus.
pub(crate) struct Janus {
    process: Child,
    folder: PathBuf,
    /// URL of its API.
    pub(crate) api: String,
    /// In its own words.
    pub(crate) version: String,
}

impl Janus {
    /// Starts `program` on `core` alone, with its video room plugin and one room for each publisher, numbered from 1. With
    /// `event_loops` that many threads serve all clients, with 0 each client has a thread.
    pub(crate) fn start(program: &Path, network: &Network, core: usize, rooms: usize, event_loops: usize) -> Result<Janus, String> {
        let parts = find_parts(program)?;
        let folder = std::env::temp_dir().join(format!("pop-bench-janus-{}", std::process::id()));
        let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
        write_folder(&folder, &parts, network, rooms, event_loops).map_err(fail)?;
        let log = fs::File::create(folder.join("log")).map_err(fail)?;
        let mut command = network.command(program);
        command.arg("--configs-folder").arg(&folder).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(fail)?).stderr(log);
        // A child inherits the cores of the thread that starts it.
        let start = move || pin_to(core).and_then(|()| command.spawn().map_err(|e| format!("Janus does not start: {e}")));
        let process = std::thread::spawn(start).join().map_err(|_| "the thread that starts Janus panicked".to_owned())??;
        // Owned from here on, so that every way out ends the process.
        let mut janus = Janus { process, folder, api: format!("http://{}:{PORT}/janus", network.node_address()), version: String::new() };
        janus.version = janus.wait_until_ready()?;
        Ok(janus)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it said last.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn wait_until_ready(&mut self) -> Result<String, String> {
        let start = Instant::now();
        while start.elapsed() < START_TIMEOUT {
            if let Ok(page) = http::request("GET", &format!("{}/info", self.api), &[], "")
                && let Ok(info) = serde_json::from_str::<Value>(&page.body)
            {
                return Ok(info["version_string"].as_str().unwrap_or("unknown").to_owned());
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("Janus ended before it served ({status}):\n{}", self.log()));
            }
            std::thread::sleep(START_INTERVAL);
        }
        Err(format!("Janus did not serve within {START_TIMEOUT:?}:\n{}", self.log()))
    }
}

impl Drop for Janus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The two of its parts that are used; the others would want libraries and ports of their own.
struct Parts {
    plugin: PathBuf,
    transport: PathBuf,
}

/// A package puts them at a fixed way from the program: `usr/bin/janus`, `usr/lib/x86_64-linux-gnu/janus/plugins`. An unpacked one too.
fn find_parts(program: &Path) -> Result<Parts, String> {
    let program =
        fs::canonicalize(program).map_err(|e| format!("{}: {e}: bench/peers/README.md says how to install it", program.display()))?;
    let lib = program.parent().and_then(Path::parent).map(|usr| usr.join("lib")).unwrap_or_default();
    let folders = fs::read_dir(&lib).map_err(|e| format!("{}: {e}", lib.display()))?.filter_map(|entry| Some(entry.ok()?.path()));
    let parts = folders.chain([lib.clone()]).map(|folder| Parts {
        plugin: folder.join("janus/plugins/libjanus_videoroom.so"),
        transport: folder.join("janus/transports/libjanus_http.so"),
    });
    let mut whole = parts.filter(|parts| parts.plugin.exists() && parts.transport.exists());
    whole
        .next()
        .ok_or_else(|| format!("{}: no janus/plugins/libjanus_videoroom.so and janus/transports/libjanus_http.so below it", lib.display()))
}

/// Its configuration. Nothing is recorded, no event handler, no TWCC: what a fan-out does not need would only cost.
fn write_folder(folder: &Path, parts: &Parts, network: &Network, rooms: usize, event_loops: usize) -> std::io::Result<()> {
    for (name, part) in [("plugins", &parts.plugin), ("transports", &parts.transport)] {
        fs::create_dir_all(folder.join(name))?;
        symlink(part, folder.join(name).join(part.file_name().unwrap_or_default()))?;
    }
    fs::create_dir_all(folder.join("none"))?;
    let address = network.node_address();
    let at = folder.display();
    let loops = if event_loops == 0 { String::new() } else { format!("event_loops = {event_loops}\n") };
    let core = format!(
        "general: {{\nplugins_folder = \"{at}/plugins\"\ntransports_folder = \"{at}/transports\"\nevents_folder = \"{at}/none\"\n\
         loggers_folder = \"{at}/none\"\ndebug_level = 3\ndebug_colors = false\nsession_timeout = 0\n{loops}}}\n\
         nat: {{\nice_lite = true\nice_enforce_list = \"{address}\"\n}}\n"
    );
    let transport = format!(
        "general: {{\njson = \"plain\"\nbase_path = \"/janus\"\nhttp = true\nport = {PORT}\nip = \"{address}\"\nhttps = false\n}}\n\
         admin: {{\nadmin_http = false\nadmin_https = false\n}}\n"
    );
    let room = |n: usize| format!("room-{n}: {{\npublishers = 1\nvideocodec = \"vp8\"\nbitrate = 0\nfir_freq = 0\nrecord = false\n}}\n");
    let plugin: String = (1..=rooms).map(room).collect();
    fs::write(folder.join("janus.jcfg"), core)?;
    fs::write(folder.join("janus.transport.http.jcfg"), transport)?;
    fs::write(folder.join("janus.plugin.videoroom.jcfg"), plugin)
}

/// Who joins, and where.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    /// URL of the API.
    pub(crate) api: String,
    /// Number of the room.
    pub(crate) room: usize,
    /// A publisher's SSRC.
    pub(crate) ssrc: Option<u32>,
}

/// The publisher's number in its room: clients may choose it, so that subscribers need not ask.
const FEED: u32 = 1;

/// Joins with `socket`. The error is a sentence that says how far it came.
pub(crate) async fn join(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket) -> Result<Joined, String> {
    let who = format!("{} room {}", ticket.api, ticket.room);
    timeout(JOIN_TIMEOUT, join_steps(dtls, socket, ticket))
        .await
        .unwrap_or_else(|_| Err(format!("not connected after {JOIN_TIMEOUT:?}")))
        .map_err(|sentence| format!("{who}: {sentence}"))
}

async fn join_steps(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket) -> Result<Joined, String> {
    let replies = socket.try_clone().map_err(|e| format!("client socket: {e}"))?;
    let socket = UdpSocket::from_std(socket).map_err(|e| format!("client socket: {e}"))?;
    let own = socket.local_addr().map_err(|e| format!("client socket: {e}"))?;
    let offer = Offer::new(dtls.fingerprint().attribute(), ticket.ssrc, usize::from(ticket.ssrc.is_none()), Media::Video);
    let publishes = ticket.ssrc.is_some();
    let (ufrag, password) = (offer.ufrag.clone(), offer.password.clone());
    let signalled = tokio::task::spawn_blocking(move || signal(&ticket, &offer, own)).await.map_err(|e| e.to_string())?;
    let (answer, resource) = signalled?;
    let mut checks = Checks::new(&ufrag, (&answer.ufrag, &answer.password));
    check_connectivity(&socket, &answer, &mut checks).await?;
    // Its library checks the way back even so, and begins no handshake before that is answered.
    let server = answer.candidate;
    let reply = |datagram: &[u8]| {
        let mut out = [0; RESPONSE_LEN_MAX];
        if let Some(len) = answer_check(&password, datagram, server, &mut out) {
            // A full queue is as good as a loss: it asks again.
            let _ = replies.send_to(&out[..len], server);
        }
    };
    let keys = shake_hands(&dtls, &socket, &answer, reply).await?;
    if publishes {
        // Its room knows the feed only when its own end of the handshake is done: whoever asks before is told that there is none.
        let session = resource.rsplit_once('/').map_or_else(String::new, |(session, _)| session.to_owned());
        let is_up = move || wait_for(&session, |message| (message["janus"] == "webrtcup").then_some(()));
        tokio::task::spawn_blocking(is_up).await.map_err(|e| e.to_string())??;
    }
    Ok(Joined { server, checks, keys, resource })
}

/// The exchange of descriptions: what the server's says, and the handle's URL.
fn signal(ticket: &Ticket, offer: &Offer, own: std::net::SocketAddr) -> Result<(Answer, String), String> {
    let session = format!("{}/{}", ticket.api, call(&ticket.api, json!({"janus": "create"}))?["data"]["id"]);
    let attached = call(&session, json!({"janus": "attach", "plugin": "janus.plugin.videoroom"}))?;
    let handle = format!("{session}/{}", attached["data"]["id"]);
    // The answering end is ICE-lite: it wants all that it should know in the description.
    let jsep = |kind: &str, sdp: String| json!({"type": kind, "sdp": format!("{sdp}{}", candidate_line(own)), "trickle": false});
    let room = ticket.room;
    if ticket.ssrc.is_some() {
        let body = json!({"request": "joinandconfigure", "ptype": "publisher", "room": room, "id": FEED, "audio": false, "video": true});
        call(&handle, json!({"janus": "message", "body": body, "jsep": jsep("offer", offer.text(1))}))?;
        return Ok((Answer::parse(&wait_for_description(&session)?)?, handle));
    }
    let body = json!({"request": "join", "ptype": "subscriber", "room": room, "streams": [{"feed": FEED}]});
    call(&handle, json!({"janus": "message", "body": body}))?;
    let theirs = wait_for_description(&session)?;
    let ours = offer.answer(&theirs)?;
    call(&handle, json!({"janus": "message", "body": {"request": "start"}, "jsep": jsep("answer", ours)}))?;
    // Our answer is `passive`, whatever its offer left open.
    Ok((Answer { server_is_active: true, ..Answer::parse(&theirs)? }, handle))
}

fn candidate_line(own: std::net::SocketAddr) -> String {
    format!("a=candidate:1 1 udp 2130706431 {} {} typ host\r\n", own.ip(), own.port())
}

/// One request: what it said, unless that is an error.
fn call(url: &str, mut body: Value) -> Result<Value, String> {
    body["transaction"] = json!("bench");
    let page = http::request("POST", url, &[("Content-Type", "application/json")], &body.to_string())?;
    read_message(&page.body)
}

/// Long polls until an event brings a description.
fn wait_for_description(session: &str) -> Result<String, String> {
    wait_for(session, |message| message["jsep"]["sdp"].as_str().map(str::to_owned))
}

/// Long polls until `pick` takes something of an event.
fn wait_for<T>(session: &str, pick: impl Fn(&Value) -> Option<T>) -> Result<T, String> {
    loop {
        let page = http::request("GET", &format!("{session}?maxev=1"), &[], "")?;
        if let Some(picked) = pick(&read_message(&page.body)?) {
            return Ok(picked);
        }
    }
}

/// A message, or the sentence of its error: the core's own has `error`, a plugin's has it in its data.
fn read_message(text: &str) -> Result<Value, String> {
    let message: Value = serde_json::from_str(text).map_err(|e| format!("no JSON ({e}): {text}"))?;
    let error = message["error"]["reason"].as_str().or_else(|| message["plugindata"]["data"]["error"].as_str());
    match error {
        Some(sentence) => Err(format!("Janus refused: {sentence}")),
        None => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_core_and_of_the_plugin_are_told() {
        assert!(read_message(r#"{"janus": "ack"}"#).is_ok());
        let refused = |text: &str| read_message(text).unwrap_err();
        assert_eq!(refused(r#"{"janus": "error", "error": {"code": 458, "reason": "No such session"}}"#), "Janus refused: No such session");
        assert_eq!(
            refused(r#"{"janus": "event", "plugindata": {"data": {"error_code": 426, "error": "No such room"}}}"#),
            "Janus refused: No such room"
        );
    }
}
