//! `pop-bench resume`: a node is killed under people who watch, and how long each of them is without media, phase by phase.
//!
//! ```text
//! three nodes on loopback: people's sockets at one, their transports at another, and at the third whom they watch
//!
//! last packet -- kill -9 -- end of the socket -- ReconnectResponse, answer -- check answered -- keys -- first packet of a keyframe
//!                      detect              signalling                   ICE            DTLS   keyframe
//! ```
//! People are light: they do what livekit-client does, at once, and decode nothing. Somebody who watches at the third node shows what the
//! others feel of it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use pop::dtls::{Certificate, Dtls};
use pop_proto::control::SrtpKeys;
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_session::life::SILENCE_ENDED_MAX;
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::fanout::ice::Checks;
use crate::fanout::join::{DATAGRAM_LEN_MAX, JOIN_TIMEOUT, check_connectivity, shake_hands};
use crate::fanout::packet::{HEADER_LEN, Place, write_packet};
use crate::fanout::program_beside;
use crate::fanout::server::Server;
use crate::machine::Machine;
use crate::network::Network;
use crate::result::{Figures, case_json};
use crate::rooms::member::{Member, Signal, Ticket, describe, join, join_request, wait_for_keyframe};
use crate::sdp::{Answer, Media, Offer};
use crate::token::{Grant, sign_token};
use crate::{http, make_folder_of, write_json};

/// The nodes. People's sockets are at the last one, which has their transports elsewhere.
const NAMES: [&str; 3] = ["a", "b", "c"];
const DOOR: usize = 2;

/// One frame, which is one packet.
const FRAME: Duration = Duration::from_millis(33);
const PACKET_LEN: usize = 200;

/// How long nodes have to find each other.
const SETTLE: Duration = Duration::from_secs(30);

/// People that come at the same time.
const JOINS_AT_ONCE: usize = 20;

/// How long people watch before the kill.
const WATCH: Duration = Duration::from_secs(1);

/// Nobody needs longer to be back, also when hundreds are at once.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);

/// The bystander's last packet has come when none has for so long.
const QUIET: Duration = Duration::from_secs(5);

const KEY: (&str, &str) = ("bench", "a secret of this run alone, 0123456789ab");

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// People whose transports are at the node that is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    people: u32,
    /// Kills, one after the other, each with people of its own.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    kills: u32,
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the case. The error is a sentence.
pub(crate) fn run(args: &ResumeArgs) -> Result<(), String> {
    make_folder_of(args.json.as_deref())?;
    let program = args.pop.clone().map_or_else(program_beside, Ok)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let json = runtime.map_err(|error| format!("no runtime: {error}"))?.block_on(measure(args, &program))?;
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?)
}

/// How long each phase took one person.
#[derive(Clone, Copy, Debug)]
struct Phases {
    detect: Duration,
    signalling: Duration,
    ice: Duration,
    dtls: Duration,
    keyframe: Duration,
    /// From the last packet of before to the first that a picture can begin with.
    gap: Duration,
}

/// Of all people.
#[derive(Debug, Serialize)]
struct Spread {
    phase: &'static str,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// What no node could do without.
    minimum: String,
}

/// What somebody at another node felt.
#[derive(Debug, Default, Serialize)]
struct Bystander {
    /// Packets that came, and the longest wait for one, from the kill to the last who was back.
    packets: usize,
    interval_p99_ms: f64,
    interval_max_ms: f64,
}

async fn measure(args: &ResumeArgs, program: &Path) -> Result<Value, String> {
    let mut nodes = Nodes::make(program)?;
    let certificate = Certificate::generate().map_err(|error| error.to_string())?;
    let dtls = Dtls::new(certificate, 2 * args.people as usize + 8);
    let (mut phases, mut back_ms, mut bystanders) = (Vec::new(), Vec::new(), Vec::new());
    for kill in 0..args.kills {
        nodes.until_whole().await?;
        let call = Call::begin(&nodes, &dtls, &format!("resume-{kill}"), args.people).await?;
        sleep(WATCH).await;
        let (seen, back, bystander) = call.kill(&mut nodes).await?;
        eprintln!("kill {kill}: {} people, the last is back after {:.0} ms, {bystander:?}", seen.len(), ms(back));
        phases.extend(seen);
        back_ms.push(ms(back));
        bystanders.push(bystander);
    }
    let round_trips = |n: u32| format!("{n} round trips");
    let spreads = [
        spread("detect", &phases, |of| of.detect, "half a round trip: the kernel ends the dead node's connections".to_owned()),
        spread("signalling", &phases, |of| of.signalling, format!("3 round trips, {} ms the verdict", SILENCE_ENDED_MAX.as_millis())),
        spread("ice", &phases, |of| of.ice, round_trips(1)),
        spread("dtls", &phases, |of| of.dtls, round_trips(3)),
        spread("keyframe", &phases, |of| of.keyframe, format!("2 round trips and up to {} ms, a frame", FRAME.as_millis())),
        spread("gap", &phases, |of| of.gap, String::new()),
    ];
    for of in &spreads {
        eprintln!("{:>10}: p50 {:6.1} ms, p99 {:6.1} ms, max {:6.1} ms   {}", of.phase, of.p50_ms, of.p99_ms, of.max_ms, of.minimum);
    }
    let config = json!({ "people": args.people, "kills": args.kills });
    let detail = json!({ "phases": spreads, "all_back_ms": back_ms, "bystanders": bystanders });
    Ok(case_json("resume", &Figures::default(), &Machine::describe("none", None), config, detail))
}

fn ms(of: Duration) -> f64 {
    of.as_secs_f64() * 1_000.0
}

fn spread(phase: &'static str, all: &[Phases], of: impl Fn(&Phases) -> Duration, minimum: String) -> Spread {
    let mut sorted: Vec<f64> = all.iter().map(|phases| ms(of(phases))).collect();
    sorted.sort_by(f64::total_cmp);
    Spread { phase, p50_ms: share(&sorted, 0.5), p99_ms: share(&sorted, 0.99), max_ms: share(&sorted, 1.0), minimum }
}

/// The value below which this share of `sorted` is; 0 of nothing.
fn share(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

/// The PoP: processes on addresses of loopback.
struct Nodes {
    program: PathBuf,
    folder: PathBuf,
    /// None of them is there while it is dead.
    servers: [Option<Server>; NAMES.len()],
}

impl Nodes {
    fn make(program: &Path) -> Result<Nodes, String> {
        let folder = std::env::temp_dir().join(format!("pop-bench-resume-{}", std::process::id()));
        let mut nodes = Nodes { program: program.to_owned(), folder, servers: [const { None }; NAMES.len()] };
        nodes.ca(&["init"])?;
        for (at, name) in NAMES.into_iter().enumerate() {
            let out = nodes.folder.join(name);
            nodes.ca(&[
                "issue",
                "--node",
                name,
                "--pop",
                "bench",
                "--address",
                &address(at).to_string(),
                "--out",
                &out.to_string_lossy(),
            ])?;
            nodes.start(at)?;
        }
        Ok(nodes)
    }

    fn ca(&self, words: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.arg("ca").args(words).arg("--dir").arg(self.folder.join("ca"));
        let ended = command.output().map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        if ended.status.success() { Ok(()) } else { Err(format!("pop ca {}: {}", words[0], said.trim())) }
    }

    fn start(&mut self, at: usize) -> Result<(), String> {
        let (name, own, folder) = (NAMES[at], address(at), self.folder.join(NAMES[at]));
        let others: Vec<String> =
            (0..NAMES.len()).filter(|other| *other != at).map(|other| format!("\"{}:7447\"", address(other))).collect();
        let text = format!(
            "[http]\nlisten = \"{own}:7880\"\nconnections_per_address_max = 4096\nrequests_per_address_per_s_max = 100000\n\
             [admin]\nlisten = \"{own}:9464\"\nsocket = \"{files}/pop.sock\"\n\
             [media]\naddresses = [\"{own}\"]\nport = 20000\nconsent_timeout = \"120s\"\n\
             [auth.keys]\n{} = \"{}\"\n[node]\nname = \"{name}\"\npop = \"bench\"\nstate_dir = \"{files}/state\"\n\
             [bus]\nlisten = [\"{own}:7447\"]\nconnect = [{}]\n\
             [mesh]\nsplit = {}\nlisten = \"{own}:7890\"\nca = \"{files}/ca.pem\"\ncert = \"{files}/node.pem\"\nkey = \"{files}/node.key\"\n\
             [log]\nlevel = \"error\"\n",
            KEY.0,
            KEY.1,
            others.join(", "),
            at == DOOR,
            files = folder.display(),
        );
        self.servers[at] = Some(Server::run(&self.program, &Network::open(true), self.folder.join(format!("{name}-config")), &text)?);
        Ok(())
    }

    fn http(&self, at: usize) -> Result<&str, String> {
        self.servers[at].as_ref().map(|server| &*server.http).ok_or_else(|| format!("node {} is dead", NAMES[at]))
    }

    /// Each knows all others, and has a link to each.
    async fn until_whole(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if (0..NAMES.len()).all(|at| is_whole(at).unwrap_or(false)) {
                return Ok(());
            }
            if begun.elapsed() > SETTLE {
                return Err(format!("the nodes do not know each other after {SETTLE:?}"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.servers = [const { None }; NAMES.len()];
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Nobody else's on this host, most likely.
fn address(at: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 71, at as u8 + 1))
}

fn is_whole(at: usize) -> Option<bool> {
    let page = http::request("GET", &format!("http://{}:9464/api/v1/status", address(at)), &[], "").ok()?;
    let status: Value = serde_json::from_str(&page.body).ok()?;
    let up = |list: &str| status[list].as_array().map_or(0, |of| of.iter().filter(|it| it["state"] == "up").count());
    Some(up("nodes") == NAMES.len() - 1 && up("links") == NAMES.len() - 1)
}

/// One room: who is watched, who watches, and somebody who watches at the node of the first.
struct Call {
    people: JoinSet<Result<(Phases, Instant), String>>,
    /// The node that has their transports.
    victim: usize,
    killed: Arc<OnceLock<Instant>>,
    bystander: tokio::task::JoinHandle<Vec<Instant>>,
    publisher: AbortHandle,
}

impl Call {
    async fn begin(nodes: &Nodes, dtls: &Dtls, room: &str, people: u32) -> Result<Call, String> {
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
        let token = |identity: &str, grant| sign_token(KEY, room, identity, grant, now_s);
        let door = nodes.http(DOOR)?.to_owned();
        // Where the door has transports of this room; the other node has who is watched.
        let scout = Person::come(dtls.clone(), &door, token("scout", Grant::Watch)).await?;
        let victim = (0..NAMES.len()).find(|at| address(*at) == scout.server.ip()).ok_or("the answer names no node's address")?;
        if victim == DOOR {
            return Err("the node that people's sockets are at has their transports, too".to_owned());
        }
        let stage = (0..NAMES.len()).find(|at| ![victim, DOOR].contains(at)).ok_or("there are three nodes")?;
        let publisher =
            member(nodes.http(stage)?, dtls, token("publisher", Grant::Publish), Some(u32::from_be_bytes(crate::random::random_bytes())))
                .await?;
        let publisher = tokio::spawn(publish(publisher)).abort_handle();
        let watcher = member(nodes.http(stage)?, dtls, token("bystander", Grant::Watch), None).await?;
        let bystander = tokio::spawn(listen(watcher));
        let killed = Arc::new(OnceLock::new());
        let mut all = JoinSet::new();
        let (gate, mut coming) = (Arc::new(Semaphore::new(JOINS_AT_ONCE)), JoinSet::new());
        for n in 0..people {
            let (dtls, door, gate, token) = (dtls.clone(), door.clone(), Arc::clone(&gate), token(&format!("person-{n}"), Grant::Watch));
            coming.spawn(async move {
                let _permit = gate.acquire().await.map_err(|error| error.to_string())?;
                let mut person = Person::come(dtls, &door, token).await?;
                person.until_picture().await?;
                Ok::<_, String>(person)
            });
        }
        while let Some(person) = coming.join_next().await {
            let person = person.map_err(|error| error.to_string())??;
            if person.server.ip() != address(victim) {
                return Err(format!("a person of {room} is at {}, the others at {}", person.server, address(victim)));
            }
            let killed = Arc::clone(&killed);
            all.spawn(async move {
                timeout(RESUME_TIMEOUT, person.resume(&killed)).await.unwrap_or_else(|_| Err("nobody came back".to_owned()))
            });
        }
        drop(scout);
        Ok(Call { people: all, victim, killed, bystander, publisher })
    }

    /// The phases of all, when the last was back, and what the bystander felt. The node is started again.
    async fn kill(mut self, nodes: &mut Nodes) -> Result<(Vec<Phases>, Duration, Bystander), String> {
        let killed = *self.killed.get_or_init(Instant::now);
        // SIGKILL.
        nodes.servers[self.victim] = None;
        let (mut phases, mut last) = (Vec::new(), killed);
        while let Some(person) = self.people.join_next().await {
            let (of, back) = person.map_err(|error| error.to_string())??;
            phases.push(of);
            last = last.max(back);
        }
        self.publisher.abort();
        let arrivals = timeout(JOIN_TIMEOUT, self.bystander).await.map_err(|_| "the bystander did not end".to_owned())?;
        let arrivals = arrivals.map_err(|error| error.to_string())?;
        let during: Vec<Instant> = arrivals.into_iter().filter(|at| (killed..=last).contains(at)).collect();
        let mut waits: Vec<f64> = during.windows(2).map(|pair| ms(pair[1] - pair[0])).collect();
        waits.sort_by(f64::total_cmp);
        let bystander = Bystander { packets: during.len(), interval_p99_ms: share(&waits, 0.99), interval_max_ms: share(&waits, 1.0) };
        nodes.start(self.victim)?;
        Ok((phases, last - killed, bystander))
    }
}

/// A member of the other benches, with all that it needs.
async fn member(http: &str, dtls: &Dtls, token: String, ssrc: Option<u32>) -> Result<Member, String> {
    let ticket = Ticket {
        index: 0,
        http: http.to_owned(),
        wave: Instant::now(),
        token,
        ssrc,
        receives: usize::from(ssrc.is_none()),
        media: Media::Video,
        awaits_keyframe: ssrc.is_none(),
    };
    let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.map_err(|error| error.to_string())?;
    join(dtls.clone(), bind()?, ticket, permit).await
}

fn bind() -> Result<std::net::UdpSocket, String> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    socket.map_err(|error| format!("client socket: {error}"))
}

/// Sends a frame every 33 ms, a keyframe when one is asked for.
async fn publish(member: Member) {
    let Member { socket, server, keys, ssrc, seat: _seat, .. } = member;
    let Ok(media) = UdpSocket::from_std(socket) else { return };
    let (sender, mut receiver) = (SrtpSender::new(keys.profile, &keys.local), SrtpReceiver::new(keys.profile, &keys.remote));
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut index, mut wants_keyframe, mut buffer) = (0_u64, true, [0; DATAGRAM_LEN_MAX]);
    loop {
        tokio::select! {
            _ = frames.tick() => {
                let (mut packet, mut sealed) = ([0; PACKET_LEN], [0; DATAGRAM_LEN_MAX]);
                let place = Place {
                    ssrc: ssrc.unwrap_or_default(),
                    sequence: index as u16,
                    timestamp: (index * 3_000) as u32,
                    starts_frame: true,
                    ends_frame: true,
                    keyframe: std::mem::take(&mut wants_keyframe),
                    media: Media::Video,
                };
                write_packet(&mut packet, &place, index, 0);
                let (header, payload) = packet.split_at(HEADER_LEN);
                if let Ok(len) = sender.protect_rtp(index, header, payload, &mut sealed) {
                    let _ = media.send_to(&sealed[..len], server).await;
                }
                index += 1;
            }
            received = media.recv(&mut buffer) => {
                let Ok(len) = received else { continue };
                if demux(&buffer[..len]) != Ok(Protocol::Rtcp) {
                    continue;
                }
                let Ok(len) = receiver.unprotect_rtcp(&mut buffer[..len]) else { continue };
                let packets = RtcpReader::new(&buffer[..len]).into_iter().flatten();
                wants_keyframe |= packets.into_iter().any(|packet| matches!(packet, RtcpPacket::Pli { .. } | RtcpPacket::Fir { .. }));
            }
        }
    }
}

/// When packets came, until none has for [`QUIET`].
async fn listen(member: Member) -> Vec<Instant> {
    let Member { socket, keys, seat: _seat, .. } = member;
    let Ok(media) = UdpSocket::from_std(socket) else { return Vec::new() };
    let mut receiver = SrtpReceiver::new(keys.profile, &keys.remote);
    let (mut arrivals, mut last, mut buffer) = (Vec::new(), Instant::now(), [0; DATAGRAM_LEN_MAX]);
    // Reports come all the time.
    while let Ok(Ok(len)) = timeout(QUIET.saturating_sub(last.elapsed()), media.recv(&mut buffer)).await {
        if is_media(&mut receiver, &mut buffer[..len]) {
            last = Instant::now();
            arrivals.push(last);
        }
    }
    arrivals
}

fn is_media(receiver: &mut SrtpReceiver, datagram: &mut [u8]) -> bool {
    demux(datagram) == Ok(Protocol::Rtp)
        && RtpView::parse(datagram).map(|view| view.header_len()).is_ok_and(|len| receiver.unprotect_rtp(datagram, len).is_ok())
}

/// Somebody who watches, and comes back.
struct Person {
    dtls: Dtls,
    media: UdpSocket,
    signal: Signal,
    door: String,
    token: String,
    sid: String,
    offer: proto::SessionDescription,
    answer: proto::SessionDescription,
    server: std::net::SocketAddr,
    keys: SrtpKeys,
    early: Vec<Vec<u8>>,
}

/// A person's next peer connection: an offer with new credentials of ICE.
fn offer_of(dtls: &Dtls) -> Offer {
    Offer::new(dtls.fingerprint().attribute(), None, 1, Media::Video)
}

impl Person {
    async fn come(dtls: Dtls, door: &str, token: String) -> Result<Person, String> {
        let media = UdpSocket::from_std(bind()?).map_err(|error| format!("client socket: {error}"))?;
        let offer = offer_of(&dtls);
        let request = join_request(None, Media::Video, &offer);
        let (mut signal, told) = Signal::open(door, &token, &request).await?;
        let Told::Join(welcome) = told else { return Err("the server's first message is no JoinResponse".to_owned()) };
        let sid = welcome.participant.ok_or("the JoinResponse names nobody")?.sid;
        let description = signal.read_description().await?;
        let answer = Answer::parse(&description.sdp)?;
        let mut early = Vec::new();
        let keys = connect(&dtls, &media, &offer, &answer, &mut early).await?.2;
        let (offer, door) = (describe(&offer, 1), door.to_owned());
        Ok(Person { dtls, media, signal, door, token, sid, offer, answer: description, server: answer.candidate, keys, early })
    }

    async fn until_picture(&mut self) -> Result<(), String> {
        let seen = timeout(JOIN_TIMEOUT, wait_for_keyframe(&self.media, &self.keys, std::mem::take(&mut self.early))).await;
        seen.unwrap_or_else(|_| Err(format!("no picture within {JOIN_TIMEOUT:?}")))
    }

    /// Watches until the node is dead, and comes back: the phases, and when the picture was there.
    async fn resume(mut self, killed: &OnceLock<Instant>) -> Result<(Phases, Instant), String> {
        let mut receiver = SrtpReceiver::new(self.keys.profile, &self.keys.remote);
        let (mut last, mut buffer) = (Instant::now(), [0; DATAGRAM_LEN_MAX]);
        loop {
            tokio::select! {
                told = self.signal.next() => match told {
                    Ok(Told::Leave(leave)) if leave.action() != proto::leave_request::Action::Resume => {
                        return Err(format!("told to leave: {:?} {:?}", leave.action(), leave.reason()));
                    }
                    // A socket that ends says so to every SDK.
                    Ok(Told::Leave(_)) | Err(_) => break,
                    Ok(_) => {}
                },
                Ok(len) = self.media.recv(&mut buffer) => {
                    if is_media(&mut receiver, &mut buffer[..len]) {
                        last = Instant::now();
                    }
                }
            }
        }
        let detected = Instant::now();
        let killed = *killed.get().ok_or("the server ended signalling before the kill")?;
        let offer = offer_of(&self.dtls);
        let mut request = join_request(None, Media::Video, &offer);
        (request.reconnect, request.participant_sid, request.publisher_offer) = (true, self.sid, None);
        let (mut signal, told) = Signal::open(&self.door, &self.token, &request).await?;
        match told {
            Told::Reconnect(_) => {}
            Told::Leave(leave) => return Err(format!("no resume: {:?} {:?}", leave.action(), leave.reason())),
            _ => return Err("the server's first message is no ReconnectResponse".to_owned()),
        }
        let sync = proto::SyncState { offer: Some(self.offer), answer: Some(self.answer), ..Default::default() };
        signal.say(Say::SyncState(sync)).await?;
        signal.say(Say::Offer(describe(&offer, 2))).await?;
        let answer = Answer::parse(&signal.read_description().await?.sdp)?;
        let answered = Instant::now();
        let mut early = Vec::new();
        let (checked, agreed, keys) = connect(&self.dtls, &self.media, &offer, &answer, &mut early).await?;
        wait_for_keyframe(&self.media, &keys, early).await?;
        let back = Instant::now();
        let phases = Phases {
            detect: detected - killed,
            signalling: answered - detected,
            ice: checked - answered,
            dtls: agreed - checked,
            keyframe: back - agreed,
            gap: back - last,
        };
        Ok((phases, back))
    }
}

/// ICE and DTLS: when the check was answered, when there were keys, and these.
async fn connect(
    dtls: &Dtls,
    media: &UdpSocket,
    offer: &Offer,
    answer: &Answer,
    early: &mut Vec<Vec<u8>>,
) -> Result<(Instant, Instant, SrtpKeys), String> {
    let mut checks = Checks::new(&offer.ufrag, (&answer.ufrag, &answer.password));
    check_connectivity(media, answer, &mut checks).await?;
    let checked = Instant::now();
    let keys = shake_hands(dtls, media, answer, |datagram| early.push(datagram.to_vec())).await?;
    Ok((checked, Instant::now(), keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_sorted_list_is_one_of_its_values() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([share(&sorted, 0.5), share(&sorted, 0.99), share(&sorted, 1.0)], [100.0, 198.0, 200.0]);
        assert_eq!((share(&[7.0], 0.5), share(&[], 0.99)), (7.0, 0.0));
    }
}
