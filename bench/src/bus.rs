//! `pop-bench bus`: how long a change of a participant's state takes to the other node of a PoP, beside a bare zenoh put of the same length
//! in the same run, how long a node that joins a session needs to know all who are in it, and how long the records of members are.
//!
//! ```text
//! for each rate, in turn: Bus::put_participant at a -> zenoh over loopback -> BusEvent::Record at b
//!                         session.put at a          -> zenoh over loopback -> subscriber at b
//! 10,000 participants at a -> a node opens its bus and watches their session -> the last one known
//! ```
//! Every latency starts when its change was due, so a queue in front of a slow bus is inside it. All ends are in this process.

mod records;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
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

use crate::blast::{latency_us, new_histogram};
use crate::fanout::parse_duration;
use crate::machine::Machine;
use crate::result::{Figures, LatencyUs, case_json};
use crate::{make_folder_of, write_json};

const POP: &str = "bench";

/// Participants whose state changes in turn.
const PARTICIPANTS: u64 = 100;

/// How long what was said may be on its way after the last of it.
const TAIL: Duration = Duration::from_secs(3);

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
    limit_threads().map_err(|error| format!("zenoh's threads: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let json = runtime.map_err(|error| format!("no runtime: {error}"))?.block_on(measure(args))?;
    write_json(args.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?)
}

/// One side at one rate: all its runs together.
#[derive(Debug, Serialize)]
struct Step {
    side: &'static str,
    rate: u32,
    /// Changes that were made.
    sent: u64,
    /// Of these, heard each for itself. A bus may leave out what a newer change of the same participant has replaced.
    heard: u64,
    /// Participants, or keys, whose last change was never heard.
    lost: u64,
    latency_us: Option<LatencyUs>,
}

async fn measure(args: &BusArgs) -> Result<Value, String> {
    let records = records::measure()?;
    for kind in &records {
        eprintln!("{kind}");
    }
    let mut steps = Vec::new();
    let ours = Ours::open().await?;
    let bare = Bare::open().await?;
    for rate in &args.rates {
        let mut sides = [Tally::new("pop", *rate), Tally::new("zenoh", *rate)];
        for _ in 0..args.repeats {
            ours.run(*rate, args.duration, &mut sides[0]).await?;
            bare.run(*rate, args.duration, &mut sides[1]).await?;
        }
        for side in sides {
            let step = side.end();
            eprintln!(
                "{:>6} at {rate:>6}/s: {} of {} heard, {} lost, {}",
                step.side,
                step.heard,
                step.sent,
                step.lost,
                shown(step.latency_us)
            );
            steps.push(step);
        }
    }
    drop(bare);
    let resync_ms = resync(args.participants).await?;
    eprintln!("a node knows {} participants {resync_ms:.0} ms after it began to open its bus", args.participants);
    let promised = steps.iter().find(|step| step.side == "pop");
    let last = steps.iter().rev().find(|step| step.side == "pop");
    let figures = Figures {
        packets_per_second: last.map(|step| f64::from(step.rate) * step.heard as f64 / step.sent as f64),
        loss: last.map(|step| step.lost as f64 / (PARTICIPANTS * u64::from(args.repeats)) as f64),
        latency_us: promised.and_then(|step| step.latency_us),
        ..Figures::default()
    };
    let config = json!({ "rates": args.rates, "repeats": args.repeats, "duration_s": args.duration.as_secs_f64(), "participants": args.participants });
    let bytes = encoded(1, 1)?.len();
    let detail =
        json!({ "rates": steps, "record_bytes": bytes, "member_records": records, "resync_ms": resync_ms, "repeats": args.repeats });
    Ok(case_json("bus", &figures, &Machine::describe("none", None), config, detail))
}

fn shown(latency: Option<LatencyUs>) -> String {
    latency.map_or_else(|| "nothing".to_owned(), |us| format!("p50 {:.0} us, p99 {:.0} us, max {:.0} us", us.p50, us.p99, us.max))
}

/// What was heard, by participant and change: shared with who hears it.
struct Tally {
    side: &'static str,
    rate: u32,
    latency: Histogram<u64>,
    sent: u64,
    lost: u64,
}

impl Tally {
    fn new(side: &'static str, rate: u32) -> Tally {
        Tally { side, rate, latency: new_histogram(), sent: 0, lost: 0 }
    }

    fn end(self) -> Step {
        let Tally { side, rate, latency, sent, lost } = self;
        Step { side, rate, sent, heard: latency.len(), lost, latency_us: latency_us(&latency) }
    }
}

/// Change `n` of a run is due then.
fn due(begun: Instant, rate: u32, n: u64) -> Instant {
    begun + Duration::from_secs_f64(n as f64 / f64::from(rate))
}

/// Which participant the change is of, and which of its changes it is, from 1 on.
fn of(n: u64) -> (u64, u32) {
    (n % PARTICIPANTS + 1, (n / PARTICIPANTS + 1) as u32)
}

fn number_of(participant: u64, change: u32) -> u64 {
    (u64::from(change) - 1) * PARTICIPANTS + participant - 1
}

/// Makes all changes of a run when they are due.
async fn make(begun: Instant, rate: u32, duration: Duration, mut change: impl FnMut(u64)) -> u64 {
    let count = (duration.as_secs_f64() * f64::from(rate)) as u64;
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
    let manifest = Manifest::new(identity, Kind::Publisher, Permissions::PUBLISHER);
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
    last: Vec<u32>,
}

impl Heard {
    fn new(begun: Instant, rate: u32, before: u32) -> Heard {
        Heard { begun, rate, before, latency: new_histogram(), last: vec![0; PARTICIPANTS as usize] }
    }

    fn note(&mut self, participant: u64, change: u32) {
        let Some(change) = change.checked_sub(self.before).filter(|change| *change > 0) else { return };
        let Some(last) = participant.checked_sub(1).and_then(|at| self.last.get_mut(at as usize)) else { return };
        *last = change.max(*last);
        let late = Instant::now().saturating_duration_since(due(self.begun, self.rate, number_of(participant, change)));
        self.latency.saturating_record(late.as_nanos() as u64);
    }

    /// Participants of which less than the last of `sent` changes was heard.
    fn behind(&self, sent: u64) -> u64 {
        (0..PARTICIPANTS.min(sent)).filter(|at| self.last[*at as usize] < of((sent - 1 - at) / PARTICIPANTS * PARTICIPANTS + at).1).count()
            as u64
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
        let heard = Arc::new(Mutex::new(Heard::new(Instant::now(), 1, 0)));
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
        *lock(&self.heard) = Heard::new(begun, rate, before);
        let records: Vec<_> = (1..=PARTICIPANTS).map(|participant| record(participant, 0)).collect::<Result<_, _>>()?;
        let sent = make(begun, rate, duration, |n| {
            let (participant, change) = of(n);
            let mut record = records[participant as usize - 1].clone();
            record.version.counter = before + change;
            // One that is too large is none of these.
            let _ = self.a.put_participant(&room, &record);
        })
        .await;
        *lock(&self.before) += of(sent).1;
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
        let heard = Arc::new(Mutex::new(Heard::new(Instant::now(), 1, 0)));
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
        *lock(&self.heard) = Heard::new(begun, rate, before);
        let sent = make(begun, rate, duration, |n| {
            let (participant, change) = of(n);
            self.put(participant, before + change, len);
        })
        .await;
        *lock(&self.before) += of(sent).1;
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
            let (participant, change) = of(n);
            assert_eq!(number_of(participant, change), n);
        }
    }

    #[tokio::test]
    async fn who_missed_the_last_change_is_behind() {
        let mut heard = Heard::new(Instant::now(), 1_000, 7);
        assert_eq!(heard.behind(150), 100);
        for n in 0..150 {
            let (participant, change) = of(n);
            heard.note(participant, 7 + change);
        }
        assert_eq!((heard.behind(150), heard.latency.len()), (0, 150));
        assert_eq!(heard.behind(151), 1);
        heard.note(1, 7);
        assert_eq!(heard.latency.len(), 150, "a change of an earlier run");
    }
}
