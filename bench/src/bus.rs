//! `pop-bench bus`: how long a change of a participant's state takes to the other node of a PoP and to a client there, beside a bare zenoh
//! put of the same length in the same run, how long a node that joins a session needs to know all who are in it, and how long the records
//! of members are.
//!
//! ```text
//! for each rate, in turn: client -> WebSocket -> pop, node a -> zenoh, mTLS -> pop, node b -> WebSocket -> client
//!                         Bus::put_participant at a -> zenoh over loopback -> BusEvent::Record at b
//!                         session.put at a          -> zenoh over loopback -> subscriber at b
//! 10,000 participants at a -> a node opens its bus and watches their session -> the last one known
//! ```
//! Every latency starts when its change was due, so a queue in front of whatever is slow is inside it. All clients, and all ends of the
//! second and third side, are in this process; the two nodes are processes.

mod clients;
mod records;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hdrhistogram::Histogram;
use pop::bus::{Bus, BusEvent, BusEvents, BusSettings, NodeRecord, SCHEMA, encode_participant, limit_threads};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::Kind;
use pop_session::member::Permissions;
use pop_session::presence::{LocalRecord, Manifest, Version};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zenoh::Session;

use self::clients::{Beside, Clients};
use crate::blast::{latency_us, new_histogram};
use crate::fanout::{parse_duration, program_beside};
use crate::machine::Machine;
use crate::result::{Figures, LatencyUs, case_json};
use crate::{make_folder_of, write_json};

const POP: &str = "bench";

/// Participants whose state changes in turn, where nobody keeps them from changing it often.
const PARTICIPANTS: u64 = 100;

/// How long what was said may be on its way after the last of it.
const TAIL: Duration = Duration::from_secs(10);

/// How long nodes have to find each other, or to know everybody.
const SETTLE: Duration = Duration::from_secs(60);

/// Changes that are made at once at most: a timer ticks once a millisecond.
const TICK: Duration = Duration::from_millis(1);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BusArgs {
    /// Changes a second, each rate in turn.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rates: Vec<u32>,
    /// Runs of each side at each rate, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Length of one run.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    duration: Duration,
    /// Participants of the session that a node joins.
    #[arg(long, default_value_t = 10_000)]
    participants: u64,
    /// The server to start; default: `pop` beside this program.
    #[arg(long)]
    pop: Option<PathBuf>,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the case. The error is a sentence.
pub(crate) fn run(args: &BusArgs) -> Result<(), String> {
    if args.duration < TICK {
        return Err("a run needs a duration".to_owned());
    }
    make_folder_of(args.json.as_deref())?;
    let program = args.pop.clone().map_or_else(program_beside, Ok)?;
    limit_threads().map_err(|error| format!("zenoh's threads: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let json = runtime.map_err(|error| format!("no runtime: {error}"))?.block_on(measure(args, &program))?;
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?)
}

/// One side at one rate: all its runs together.
#[derive(Debug, Serialize)]
struct Step {
    /// For tables.
    name: String,
    side: &'static str,
    rate: u32,
    /// Changes that were made.
    sent: u64,
    /// Of these, heard each for itself.
    heard: u64,
    /// Of these, never heard because a newer change of the same participant was heard first: it replaces them.
    replaced: u64,
    /// Participants, or keys, whose last change was never heard.
    lost: u64,
    /// Heard, while changes were due.
    packets_per_second: f64,
    /// Neither heard nor replaced, as a share of `sent`.
    loss: f64,
    latency_us: Option<LatencyUs>,
    /// Why there are not as many runs as of the other sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(flatten)]
    beside: Option<Beside>,
}

async fn measure(args: &BusArgs, program: &Path) -> Result<Value, String> {
    let records = records::measure()?;
    for kind in &records {
        eprintln!("{kind}");
    }
    let mut steps = Vec::new();
    let mut clients = Clients::open(program).await?;
    let ours = Ours::open().await?;
    let bare = Bare::open().await?;
    for rate in &args.rates {
        let mut sides = ["clients", "pop", "zenoh"].map(|side| Tally::new(side, *rate));
        for _ in 0..args.repeats {
            // Fewer people may still be a figure, and the other sides are.
            if sides[0].failed.is_none() {
                sides[0].failed = clients.run(*rate, args.duration, &mut sides[0]).await.err();
            }
            ours.run(*rate, args.duration, &mut sides[1]).await?;
            bare.run(*rate, args.duration, &mut sides[2]).await?;
        }
        for side in sides {
            let step = side.end();
            if let Some(sentence) = &step.failed {
                eprintln!("{:>18}: {sentence}", step.name);
            }
            let Step { name, sent, heard, replaced, lost, latency_us, beside, .. } = &step;
            eprintln!("{name:>18}: {heard} of {sent} heard, {replaced} replaced, {lost} lost, {}", shown(*latency_us));
            if let Some(Beside { left_us, cores, .. }) = beside {
                eprintln!("{:>18}  said when due: {}; cores {cores:?}", "", shown(*left_us));
            }
            steps.push(step);
        }
    }
    drop((bare, clients));
    let resync_ms = resync(args.participants).await?;
    eprintln!("a node knows {} participants {resync_ms:.0} ms after it began to open its bus", args.participants);
    let of_clients = steps.first();
    let figures = Figures {
        packets_per_second: of_clients.map(|step| step.packets_per_second),
        loss: of_clients.map(|step| step.loss),
        latency_us: of_clients.and_then(|step| step.latency_us),
        ..Figures::default()
    };
    let config = json!({ "rates": args.rates, "repeats": args.repeats, "duration_s": args.duration.as_secs_f64(), "participants": args.participants });
    let bytes = encoded(1, 1)?.len();
    let detail =
        json!({ "runs": steps, "record_bytes": bytes, "member_records": records, "resync_ms": resync_ms, "repeats": args.repeats });
    Ok(case_json("bus", &figures, &Machine::describe("none", None), config, detail))
}

fn shown(latency: Option<LatencyUs>) -> String {
    latency.map_or_else(|| "nothing".to_owned(), |us| format!("p50 {:.0} us, p99 {:.0} us, max {:.0} us", us.p50, us.p99, us.max))
}

/// All runs of one side at one rate.
struct Tally {
    side: &'static str,
    rate: u32,
    latency: Histogram<u64>,
    sent: u64,
    replaced: u64,
    missing: u64,
    lost: u64,
    beside: Option<Beside>,
    failed: Option<String>,
}

impl Tally {
    fn new(side: &'static str, rate: u32) -> Tally {
        Tally { side, rate, latency: new_histogram(), sent: 0, replaced: 0, missing: 0, lost: 0, beside: None, failed: None }
    }

    fn end(self) -> Step {
        let Tally { side, rate, latency, sent, replaced, missing, lost, beside, failed } = self;
        Step {
            name: format!("{side} at {rate}/s"),
            side,
            rate,
            sent,
            heard: latency.len(),
            replaced,
            lost,
            packets_per_second: if sent == 0 { 0.0 } else { f64::from(rate) * latency.len() as f64 / sent as f64 },
            loss: if sent == 0 { 0.0 } else { missing as f64 / sent as f64 },
            latency_us: latency_us(&latency),
            failed,
            beside,
        }
    }
}

/// Change `n` of a run is due then.
fn due(begun: Instant, rate: u32, n: u64) -> Instant {
    begun + Duration::from_secs_f64(n as f64 / f64::from(rate))
}

/// Which of so many participants the change is of, and which of its changes it is, from 1 on.
fn of(n: u64, participants: u64) -> (u64, u32) {
    (n % participants + 1, (n / participants + 1) as u32)
}

fn number_of(participant: u64, change: u32, participants: u64) -> u64 {
    (u64::from(change) - 1) * participants + participant - 1
}

/// Changes of a run.
fn count(rate: u32, duration: Duration) -> u64 {
    (duration.as_secs_f64() * f64::from(rate)) as u64
}

/// What a participant's metadata is after a change.
fn text(participant: u64, change: u32) -> String {
    format!("{participant} {change}")
}

/// Makes all changes of a run when they are due.
async fn make(begun: Instant, rate: u32, duration: Duration, mut change: impl FnMut(u64)) -> u64 {
    let count = count(rate, duration);
    let mut next = 0;
    while next < count {
        while next < count && due(begun, rate, next) <= Instant::now() {
            change(next);
            next += 1;
        }
        sleep_until(due(begun, rate, next).max(Instant::now() + TICK)).await;
    }
    count
}

fn record(participant: u64, counter: u32) -> Result<LocalRecord, String> {
    let identity = Identity::new(&format!("somebody-{participant}")).map_err(|error| error.to_string())?;
    let metadata = text(participant, counter).into();
    let manifest = Manifest { metadata, ..Manifest::new(identity, Kind::Publisher, Permissions::PUBLISHER) };
    Ok(LocalRecord { participant: ParticipantId(participant), version: Version { epoch: 0, counter }, manifest: Some(manifest) })
}

fn encoded(participant: u64, counter: u32) -> Result<Vec<u8>, String> {
    let incarnation = Incarnation { start: 1, nonce: 1 };
    encode_participant(NodeId(1), incarnation, &record(participant, counter)?, SCHEMA).map_err(|error| format!("{error:?}"))
}

fn session(name: &str) -> Result<SessionId, String> {
    SessionId::new(name).map_err(|error| error.to_string())
}

fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener.and_then(|listener| listener.local_addr()).map_err(|error| format!("no port on loopback: {error}"))
}

async fn open(name: &str, listen: &[SocketAddr], connect: &[SocketAddr]) -> Result<(Bus, BusEvents), String> {
    let settings = BusSettings {
        pop: POP.to_owned(),
        name: name.to_owned(),
        listen: listen.to_vec(),
        connect: connect.to_vec(),
        tls: None,
        schema: SCHEMA,
    };
    let (node, incarnation) = (NodeId::of(POP, name), Incarnation { start: 1, nonce: node_nonce(name) });
    let (bus, events) = Bus::open(&settings, node, incarnation).await?;
    bus.put_node(NodeRecord {
        name: name.into(),
        pop: POP.into(),
        node,
        incarnation,
        mesh: None,
        release: pop::VERSION.into(),
        load: 0,
        capacity: 0,
        draining: false,
        vips: Vec::new(),
    });
    Ok((bus, events))
}

fn node_nonce(name: &str) -> u64 {
    NodeId::of("nonce", name).0
}

/// Two buses of ours.
struct Ours {
    a: Bus,
    _b: Bus,
    heard: Arc<Mutex<Heard>>,
    /// Changes that participants have had: a version never comes twice.
    before: Mutex<u32>,
}

/// What one run hears: due times are counted from `begun`, changes from `before`.
struct Heard {
    begun: Instant,
    rate: u32,
    before: u32,
    latency: Histogram<u64>,
    /// The newest change of each participant.
    last: Vec<u32>,
    /// Changes before the newest that were not heard.
    replaced: u64,
}

impl Heard {
    fn new(begun: Instant, rate: u32, before: u32, participants: u64) -> Heard {
        Heard { begun, rate, before, latency: new_histogram(), last: vec![0; participants as usize], replaced: 0 }
    }

    /// Told again, or an older change: nothing.
    fn note(&mut self, participant: u64, change: u32) {
        let participants = self.last.len() as u64;
        let Some(change) = change.checked_sub(self.before).filter(|change| *change > 0) else { return };
        let Some(last) = participant.checked_sub(1).and_then(|at| self.last.get_mut(at as usize)).filter(|last| **last < change) else {
            return;
        };
        self.replaced += u64::from(change - *last - 1);
        *last = change;
        let late = Instant::now().saturating_duration_since(due(self.begun, self.rate, number_of(participant, change, participants)));
        self.latency.saturating_record(late.as_nanos() as u64);
    }

    /// Participants of which less than the last of `sent` changes was heard.
    fn behind(&self, sent: u64) -> u64 {
        let participants = self.last.len() as u64;
        let last_of = |at: u64| of((sent - 1 - at) / participants * participants + at, participants).1;
        (0..participants.min(sent)).filter(|at| self.last[*at as usize] < last_of(*at)).count() as u64
    }
}

impl Ours {
    async fn open() -> Result<Ours, String> {
        let address = free_address()?;
        let (a, mut of_a) = open("a", &[address], &[]).await?;
        let (b, mut of_b) = open("b", &[], &[address]).await?;
        let room = session("room")?;
        a.watch(&room);
        b.watch(&room);
        let heard = Arc::new(Mutex::new(Heard::new(Instant::now(), 1, 0, PARTICIPANTS)));
        await_node(&mut of_b).await?;
        await_node(&mut of_a).await?;
        tokio::spawn(async move { while of_a.recv().await.is_some() {} });
        let shared = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Some(event) = of_b.recv().await {
                if let BusEvent::Record { record, .. } = event {
                    lock(&shared).note(record.key.participant.0, record.version.counter);
                }
            }
        });
        Ok(Ours { a, _b: b, heard, before: Mutex::new(0) })
    }

    async fn run(&self, rate: u32, duration: Duration, tally: &mut Tally) -> Result<(), String> {
        let (room, before) = (session("room")?, *lock(&self.before));
        let begun = Instant::now() + 20 * TICK;
        *lock(&self.heard) = Heard::new(begun, rate, before, PARTICIPANTS);
        let records: Vec<_> = (1..=PARTICIPANTS).map(|participant| record(participant, 0)).collect::<Result<_, _>>()?;
        let sent = make(begun, rate, duration, |n| {
            let (participant, change) = of(n, PARTICIPANTS);
            let mut record = records[participant as usize - 1].clone();
            record.version.counter = before + change;
            if let Some(manifest) = &mut record.manifest {
                manifest.metadata = text(participant, before + change).into();
            }
            // One that is too large is none of these.
            let _ = self.a.put_participant(&room, &record);
        })
        .await;
        *lock(&self.before) += of(sent, PARTICIPANTS).1;
        self.heard.settle(sent, tally).await
    }
}

trait Settle {
    /// Waits for the rest of a run, and adds it to `tally`.
    async fn settle(&self, sent: u64, tally: &mut Tally) -> Result<(), String>;
}

impl Settle for Arc<Mutex<Heard>> {
    async fn settle(&self, sent: u64, tally: &mut Tally) -> Result<(), String> {
        let end = Instant::now() + TAIL;
        while lock(self).behind(sent) > 0 && Instant::now() < end {
            sleep(5 * TICK).await;
        }
        let heard = lock(self);
        tally.sent += sent;
        tally.lost += heard.behind(sent);
        tally.replaced += heard.replaced;
        tally.missing += sent.saturating_sub(heard.latency.len() + heard.replaced);
        tally.latency.add(&heard.latency).map_err(|error| error.to_string())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics with it")
}

async fn await_node(events: &mut BusEvents) -> Result<(), String> {
    let up = async { while !matches!(events.recv().await, Some(BusEvent::NodeUp(_)) | None) {} };
    timeout(SETTLE, up).await.map_err(|_| "the nodes of the bus did not find each other".to_owned())
}

/// Two sessions of zenoh, configured as the bus configures its own.
struct Bare {
    a: Session,
    _b: Session,
    heard: Arc<Mutex<Heard>>,
    before: Mutex<u32>,
}

impl Bare {
    async fn open() -> Result<Bare, String> {
        let address = free_address()?;
        let a = zenoh::open(bare_config(&[address], &[])?).await.map_err(|error| error.to_string())?;
        let b = zenoh::open(bare_config(&[], &[address])?).await.map_err(|error| error.to_string())?;
        let heard = Arc::new(Mutex::new(Heard::new(Instant::now(), 1, 0, PARTICIPANTS)));
        let shared = Arc::clone(&heard);
        let hears = b.declare_subscriber("bare/**").callback(move |sample| {
            let bytes = sample.payload().to_bytes();
            if let Some(head) = bytes.first_chunk::<12>() {
                let participant = u64::from_le_bytes(*head.first_chunk().expect("of twelve"));
                lock(&shared).note(participant, u32::from_le_bytes(*head.last_chunk().expect("of twelve")));
            }
        });
        hears.background().await.map_err(|error| error.to_string())?;
        let bare = Bare { a, _b: b, heard, before: Mutex::new(1) };
        // Until the subscription is known at the other end nothing is sent.
        let known = async {
            while lock(&bare.heard).latency.is_empty() {
                bare.put(1, 1, 64);
                sleep(50 * TICK).await;
            }
        };
        timeout(SETTLE, known).await.map_err(|_| "the bare sessions did not find each other".to_owned())?;
        Ok(bare)
    }

    fn put(&self, participant: u64, change: u32, len: usize) {
        let mut body = vec![0; len.max(12)];
        body[..8].copy_from_slice(&participant.to_le_bytes());
        body[8..12].copy_from_slice(&change.to_le_bytes());
        // Nobody is there any longer: then it counts as lost.
        let _ = zenoh::Wait::wait(self.a.put(format!("bare/{participant:016x}"), body));
    }

    async fn run(&self, rate: u32, duration: Duration, tally: &mut Tally) -> Result<(), String> {
        let len = encoded(1, 1)?.len();
        let begun = Instant::now() + 20 * TICK;
        let before = *lock(&self.before);
        *lock(&self.heard) = Heard::new(begun, rate, before, PARTICIPANTS);
        let sent = make(begun, rate, duration, |n| {
            let (participant, change) = of(n, PARTICIPANTS);
            self.put(participant, before + change, len);
        })
        .await;
        *lock(&self.before) += of(sent, PARTICIPANTS).1;
        self.heard.settle(sent, tally).await
    }
}

fn bare_config(listen: &[SocketAddr], connect: &[SocketAddr]) -> Result<zenoh::Config, String> {
    let endpoints = |addresses: &[SocketAddr]| -> Vec<String> { addresses.iter().map(|address| format!("tcp/{address}")).collect() };
    let config = json!({
        "mode": "peer",
        "listen": { "endpoints": endpoints(listen) },
        "connect": { "endpoints": endpoints(connect), "timeout_ms": -1 },
        "scouting": { "multicast": { "enabled": false }, "gossip": { "enabled": false } },
    });
    zenoh::Config::from_json5(&config.to_string()).map_err(|error| error.to_string())
}

/// Milliseconds from the opening of a bus until its node knows all of a session.
async fn resync(participants: u64) -> Result<f64, String> {
    let address = free_address()?;
    let (a, mut of_a) = open("full", &[address], &[]).await?;
    let room = session("full")?;
    a.watch(&room);
    for participant in 1..=participants {
        a.put_participant(&room, &record(participant, 1)?).map_err(|error| format!("{error:?}"))?;
    }
    tokio::spawn(async move { while of_a.recv().await.is_some() {} });
    let begun = Instant::now();
    let (b, mut of_b) = open("joins", &[], &[address]).await?;
    b.watch(&room);
    let mut known = 0;
    let all = async {
        while known < participants {
            match of_b.recv().await {
                Some(BusEvent::Record { .. }) => known += 1,
                Some(_) => {}
                None => return,
            }
        }
    };
    timeout(SETTLE, all).await.map_err(|_| format!("the node that joined knows not all of {participants} participants"))?;
    Ok(begun.elapsed().as_secs_f64() * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_go_round_and_are_found_again() {
        for n in [0, 1, 99, 100, 12_345] {
            let (participant, change) = of(n, 100);
            assert_eq!(number_of(participant, change, 100), n);
        }
    }

    #[tokio::test]
    async fn who_missed_the_last_change_is_behind() {
        let mut heard = Heard::new(Instant::now(), 1_000, 7, 100);
        assert_eq!(heard.behind(150), 100);
        for n in 0..150 {
            let (participant, change) = of(n, 100);
            heard.note(participant, 7 + change);
        }
        assert_eq!((heard.behind(150), heard.latency.len()), (0, 150));
        assert_eq!(heard.behind(151), 1);
        heard.note(1, 7);
        heard.note(1, 8);
        assert_eq!((heard.latency.len(), heard.replaced), (150, 0), "a change of an earlier run, and one told again");
    }

    #[tokio::test]
    async fn a_change_that_a_newer_one_overtook_is_replaced() {
        let mut heard = Heard::new(Instant::now(), 1_000, 0, 2);
        for (participant, change) in [(1, 1), (1, 4), (1, 3), (2, 2)] {
            heard.note(participant, change);
        }
        assert_eq!((heard.latency.len(), heard.replaced, heard.behind(8)), (3, 3, 1));
    }
}
