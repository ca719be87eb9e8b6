//! `pop-bench resume`: a node is killed under people who watch, and how long each of them is without media, phase by phase.
//!
//! ```text
//! three nodes on loopback: people's sockets at one, their transports at another, and at the third whom they watch
//!
//! last packet -- kill -9 -- end of the socket -- ReconnectResponse, answer -- check answered -- keys -- first packet of a keyframe
//!                      detect              signalling                   ICE            DTLS   keyframe
//! ```
//! People are light: they do what livekit-client does, at once, and decode nothing. Somebody who watches at the third node shows what the
//! others feel of it. With `--rtt` people are so far away ([`distance`]).

mod distance;
mod judged;
mod lives;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use pop::dtls::{Certificate, Dtls};
use pop_bench::seeded::SplitMix64;
use pop_proto::control::SrtpKeys;
use pop_proto::srtp::SrtpReceiver;
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_session::life::{BEAT_INTERVAL, SILENCE_ENDED_MAX};
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use self::distance::Distance;
use self::judged::Judged;
use self::lives::{Life, Lives};
use crate::fanout::ice::Checks;
use crate::fanout::join::{DATAGRAM_LEN_MAX, JOIN_TIMEOUT, check_connectivity, shake_hands};
use crate::fanout::program_beside;
use crate::machine::Machine;
use crate::nodes::{KEY, Nodes};
use crate::people::{Frames, bind, publish};
use crate::result::{Figures, LatencyUs, case_json};
use crate::rooms::member::{Member, Signal, Ticket, describe, join, join_request, wait_for_keyframe};
use crate::sdp::{Answer, Media, Offer};
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

/// People's sockets are at the last of three nodes, which has their transports elsewhere.
const DOOR: usize = 2;

/// On loopback nobody else's, most likely; at a distance in a namespace of their own.
const NEAR: [IpAddr; 3] = [ip(127, 1), ip(127, 2), ip(127, 3)];
const FAR: [IpAddr; 3] = [ip(10, 1), ip(10, 2), ip(10, 3)];

const fn ip(first: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, 0, 71, last))
}

/// Who is watched: a frame is one packet.
const FRAMES: Frames = Frames { origin: 0, number: 0, bitrate: 200 * 8 * 30, packet_len: 200, fps: 30 };

/// People that come at the same time.
const JOINS_AT_ONCE: usize = 20;

/// How long people watch before the kill.
const WATCH: Duration = Duration::from_secs(1);

/// Nobody needs longer to be back, also when hundreds are at once.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);

/// The bystander's last packet has come when none has for so long.
const QUIET: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// People whose transports are at the node that is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    people: u32,
    /// Kills, one after the other, each with people of its own.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    kills: u32,
    /// People are so many milliseconds away, there and back: so many kills with each, over wires that `shaper` plays. Needs root. Default:
    /// loopback, without any distance.
    #[arg(long, value_name = "MS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(..=1_000))]
    rtt: Vec<u32>,
    /// Kill at a drawn moment of people's lives (before the answer, in a handshake, while a track is turned off and on, ..) rather than while all
    /// watch, and fail when anybody is not in the picture soon.
    #[arg(long)]
    lives: bool,
    /// Capture all media of each kill (tcpdump) and show it to the nonce oracle.
    #[arg(long)]
    oracle: bool,
    /// Of what is drawn for `--lives`.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    let mut distance = if args.rtt.is_empty() { None } else { Some(Distance::make(FAR)?) };
    // A thread of its own: it and its children stay in the nodes' namespace.
    let measured = std::thread::scope(|scope| {
        let json = scope.spawn(|| {
            let (nodes, people) = match &distance {
                Some(distance) => (distance.nodes(), Some(distance.people())),
                None => (None, None),
            };
            if let Some(nodes) = &nodes {
                pop_uring::enter_namespace(nodes).map_err(|error| format!("{}: {error}", nodes.display()))?;
            }
            let people = runtime(people)?;
            runtime(nodes)?.block_on(measure(args, &program, distance.as_mut(), people.handle()))
        });
        json.join().unwrap_or_else(|_| Err("the measurement panicked".to_owned()))
    });
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&measured?).map_err(|error| error.to_string())?)
}

/// Sockets that its tasks make are in the namespace.
fn runtime(namespace: Option<PathBuf>) -> Result<Runtime, String> {
    let enter = move || {
        if let Some(namespace) = &namespace {
            pop_uring::enter_namespace(namespace).expect("it is there as long as the distance is");
        }
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().on_thread_start(enter).build().map_err(|error| format!("no runtime: {error}"))
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
    /// What no node could do without: round trips, and what else.
    minimum_ms: f64,
    minimum: String,
}

/// At one distance.
#[derive(Debug, Serialize)]
struct Round {
    rtt_ms: u32,
    phases: Vec<Spread>,
    /// Of each kill, from it to the last picture.
    all_back_ms: Vec<f64>,
    bystanders: Vec<Bystander>,
    /// With `--lives`, instead of the others.
    lives: Vec<Lives>,
}

/// At one distance so far.
#[derive(Default)]
struct Seen {
    phases: Vec<Phases>,
    all_back_ms: Vec<f64>,
    bystanders: Vec<Bystander>,
    lives: Vec<Life>,
}

impl Round {
    fn of(rtt_ms: u32, Seen { phases, all_back_ms, bystanders, lives }: Seen) -> Round {
        let phases = if phases.is_empty() { Vec::new() } else { spreads(rtt_ms, &phases) };
        Round { rtt_ms, phases, all_back_ms, bystanders, lives: lives::sum(&lives) }
    }
}

/// What somebody at another node felt.
#[derive(Debug, Default, Serialize)]
struct Bystander {
    /// Packets that came, and the longest wait for one, from the kill to the last who was back.
    packets: usize,
    interval_p99_ms: f64,
    interval_max_ms: f64,
}

async fn measure(args: &ResumeArgs, program: &Path, mut distance: Option<&mut Distance>, people: &Handle) -> Result<Value, String> {
    let mut nodes = Nodes::make(program, &distance.as_ref().map_or(NEAR, |_| FAR), Some(DOOR), people.clone())?;
    let certificate = Certificate::generate().map_err(|error| error.to_string())?;
    let dtls = Dtls::new(certificate, 2 * args.people as usize + 8);
    let (mut rounds, mut gaps_ms, mut judged_packets) = (Vec::new(), Vec::new(), 0);
    for rtt_ms in if args.rtt.is_empty() { vec![0] } else { args.rtt.clone() } {
        if let Some(distance) = &mut distance {
            distance.set(rtt_ms)?;
        }
        let mut seen = Seen::default();
        for kill in 0..args.kills {
            nodes.until_whole().await?;
            let room = format!("resume-{rtt_ms}-{kill}");
            let judged = args.oracle.then(Judged::begin).transpose()?;
            if args.lives {
                let rtt = Duration::from_millis(rtt_ms.into());
                let seed = SplitMix64::new(args.seed ^ u64::from(rtt_ms) << 32 ^ u64::from(kill) << 48).next_u64();
                seen.lives.extend(lives::kill(&mut nodes, &dtls, &room, args.people, rtt, seed).await?);
            } else {
                kill_watched(&mut nodes, &dtls, &room, args.people, &mut seen).await?;
            }
            if let Some(judged) = judged {
                judged_packets += judged.end().map_err(|error| format!("{room}: {error}"))?;
            }
        }
        gaps_ms.extend(seen.phases.iter().map(|phases| phases.gap).chain(seen.lives.iter().filter_map(Life::back)).map(ms));
        rounds.push(Round::of(rtt_ms, seen));
    }
    for Round { rtt_ms, phases, lives, .. } in &rounds {
        for Spread { phase, p50_ms, p99_ms, max_ms, minimum_ms, minimum } in phases {
            eprintln!(
                "{rtt_ms:>4} ms away {phase:>10}: p50 {p50_ms:6.1} ms, p99 {p99_ms:6.1} ms, max {max_ms:6.1} ms   at least {minimum_ms:5.1}: {minimum}"
            );
        }
        for Lives { stage, people, untouched, resumed, anew, attempts_max, back_p50_ms, back_p99_ms, back_max_ms } in lives {
            eprintln!(
                "{rtt_ms:>4} ms away {stage:>10?}: {people:>4} people, {untouched} untouched, {resumed} resumed, {anew} began anew, \
                 attempts {attempts_max} at most; back p50 {back_p50_ms:6.1} ms, p99 {back_p99_ms:6.1} ms, max {back_max_ms:6.1} ms"
            );
        }
    }
    if args.oracle {
        eprintln!("{judged_packets} packets of media were judged: no index was used twice");
    }
    let config = json!({ "lives": args.lives, "seed": args.seed, "people": args.people, "kills": args.kills, "rtt_ms": args.rtt, "loopback": distance.is_none() });
    gaps_ms.sort_by(f64::total_cmp);
    let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| 1_000.0 * share(&gaps_ms, part));
    let latency_us = (!gaps_ms.is_empty()).then_some(LatencyUs { p50, p99, p999, max });
    Ok(case_json(
        "resume",
        &Figures { latency_us, ..Figures::default() },
        &Machine::describe("none", None),
        config,
        json!({ "round_trips": rounds, "judged_packets": judged_packets }),
    ))
}

/// All people of a room watch, then their node is killed.
async fn kill_watched(nodes: &mut Nodes, dtls: &Dtls, room: &str, people: u32, seen: &mut Seen) -> Result<(), String> {
    let call = Call::begin(nodes, dtls, room, people).await?;
    sleep(WATCH).await;
    let (phases, back, bystander) = call.kill(nodes).await?;
    eprintln!("{room}: {} people, the last is back after {:.0} ms, {bystander:?}", phases.len(), ms(back));
    seen.phases.extend(phases);
    seen.all_back_ms.push(ms(back));
    seen.bystanders.push(bystander);
    Ok(())
}

fn ms(of: Duration) -> f64 {
    of.as_secs_f64() * 1_000.0
}

/// What people of one distance needed, beside what the protocols ask for: whole round trips of one message and its answer, and the time in which
/// a node may not be taken for dead. Computing and frames that are not due yet are left out.
fn spreads(rtt_ms: u32, all: &[Phases]) -> Vec<Spread> {
    let verdict = SILENCE_ENDED_MAX - BEAT_INTERVAL;
    let of = |phase, of: fn(&Phases) -> Duration, trips: f64, at_least: Duration, minimum: &str| {
        let mut sorted: Vec<f64> = all.iter().map(|phases| ms(of(phases))).collect();
        sorted.sort_by(f64::total_cmp);
        let minimum_ms = (trips * f64::from(rtt_ms)).max(ms(at_least));
        let [p50_ms, p99_ms, max_ms] = [0.5, 0.99, 1.0].map(|part| share(&sorted, part));
        Spread { phase, p50_ms, p99_ms, max_ms, minimum_ms, minimum: minimum.to_owned() }
    };
    let none = Duration::ZERO;
    let mut spreads = vec![
        of("detect", |of| of.detect, 0.5, none, "half a round trip, the end of the connection on its way"),
        of(
            "signalling",
            |of| of.signalling,
            3.0,
            verdict,
            "3 round trips (TCP, the upgrade, the offer), or the verdict after the last beat",
        ),
        of("ice", |of| of.ice, 1.0, none, "1 round trip, a check"),
        of("dtls", |of| of.dtls, 2.0, none, "2 round trips (RFC 5246 section 7.3)"),
        of("keyframe", |of| of.keyframe, 0.0, none, "nothing: its first packet may follow the keys at once"),
    ];
    let minimum_ms = spreads.iter().map(|of| of.minimum_ms).sum::<f64>() - 0.5 * f64::from(rtt_ms);
    let gap = of("gap", |of| of.gap, 0.0, none, "all of them, but for the last packet's way");
    spreads.push(Spread { minimum_ms, ..gap });
    spreads
}

/// The value below which this share of `sorted` is; 0 of nothing.
fn share(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
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
        let scout = nodes.people.spawn(Person::come(dtls.clone(), door.clone(), token("scout", Grant::Watch)));
        let scout = scout.await.map_err(|error| error.to_string())??;
        let victim =
            (0..nodes.addresses.len()).find(|at| nodes.addresses[*at] == scout.server.ip()).ok_or("the answer names no node's address")?;
        if victim == DOOR {
            return Err("the node that people's sockets are at has their transports, too".to_owned());
        }
        let stage = (0..nodes.addresses.len()).find(|at| ![victim, DOOR].contains(at)).ok_or("there are three nodes")?;
        let publisher =
            member(nodes.http(stage)?, dtls, token("publisher", Grant::Publish), Some(u32::from_be_bytes(crate::random::random_bytes())))
                .await?;
        let publisher = tokio::spawn(publish(publisher, FRAMES)).abort_handle();
        let watcher = member(nodes.http(stage)?, dtls, token("bystander", Grant::Watch), None).await?;
        let bystander = tokio::spawn(listen(watcher));
        let killed = Arc::new(OnceLock::new());
        let mut all = JoinSet::new();
        let (gate, mut coming) = (Arc::new(Semaphore::new(JOINS_AT_ONCE)), JoinSet::new());
        for n in 0..people {
            let (dtls, door, gate, token) = (dtls.clone(), door.clone(), Arc::clone(&gate), token(&format!("person-{n}"), Grant::Watch));
            let come = async move {
                let _permit = gate.acquire().await.map_err(|error| error.to_string())?;
                let mut person = Person::come(dtls, door, token).await?;
                person.until_picture().await?;
                Ok::<_, String>(person)
            };
            coming.spawn_on(come, &nodes.people);
        }
        while let Some(person) = coming.join_next().await {
            let person = person.map_err(|error| error.to_string())??;
            if person.server.ip() != nodes.addresses[victim] {
                return Err(format!("a person of {room} is at {}, the others at {}", person.server, nodes.addresses[victim]));
            }
            let killed = Arc::clone(&killed);
            let resume =
                async move { timeout(RESUME_TIMEOUT, person.resume(&killed)).await.unwrap_or_else(|_| Err("nobody came back".to_owned())) };
            all.spawn_on(resume, &nodes.people);
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
    async fn come(dtls: Dtls, door: String, token: String) -> Result<Person, String> {
        let media = UdpSocket::from_std(bind()?).map_err(|error| format!("client socket: {error}"))?;
        let offer = offer_of(&dtls);
        let request = join_request(None, Media::Video, &offer);
        let (mut signal, told) = Signal::open(&door, &token, &request).await?;
        let Told::Join(welcome) = told else { return Err("the server's first message is no JoinResponse".to_owned()) };
        let sid = welcome.participant.ok_or("the JoinResponse names nobody")?.sid;
        let description = signal.read_description().await?;
        let answer = Answer::parse(&description.sdp)?;
        let mut early = Vec::new();
        let keys = connect(&dtls, &media, &offer, &answer, &mut early).await?.2;
        let offer = describe(&offer, 1);
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
