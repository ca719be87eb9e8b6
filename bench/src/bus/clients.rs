//! People of two real nodes: in each room three change their own metadata at one node, and one watches at the other.
//!
//! ```text
//! somebody-N == WebSocket ==> pop, node a == zenoh, mTLS ==> pop, node b == WebSocket ==> who watches
//!             <-- the same change, to all three of the room
//! ```
//! Nobody has media: it is a matter of signalling alone. They come for one run and leave after it, since a node lets nobody stay without
//! a transport.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use livekit_protocol as proto;
use proto::request_response::Reason;
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Heard, Settle, TICK, Tally, count, due, lock, make, number_of, of, text};
use crate::blast::{latency_us, new_histogram};
use crate::machine::process_cpu;
use crate::nodes::{KEY, Nodes};
use crate::result::LatencyUs;
use crate::rooms::member::{Signal, greeting};
use crate::token::{Grant, sign_token};

/// On loopback nobody else's, most likely.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 72, 1)), IpAddr::V4(Ipv4Addr::new(127, 0, 72, 2))];

/// People of a room who change, at the first node.
const CHANGING: u64 = 3;

/// Changes that one makes in a run, and for each second of it one more: a node takes ten at once and two a second.
const CHANGES_EACH: u64 = 8;

/// People that come at the same time.
const JOINS_AT_ONCE: usize = 50;

/// How long those who watch have to hear of all in their rooms: people without a transport are sent away 40 s after they came.
const KNOWN_MAX: Duration = Duration::from_secs(15);

/// After all have come or gone: what nodes tell each other of it.
const QUIET: Duration = Duration::from_secs(1);

/// How long nodes keep those whose sockets ended without a word, and then some.
const GONE: Duration = Duration::from_secs(15);

/// How long the server may take to end the socket of one who leaves.
const GOODBYE: Duration = Duration::from_secs(10);

/// What a run with people tells beside what was heard.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Beside {
    /// Who change, of the last run; for each three of them one watches.
    people: u64,
    /// From when a change was due until it was written into its sender's socket: this program's own lateness.
    pub(super) left_us: Option<LatencyUs>,
    /// Changes that the node refused.
    refused: u64,
    /// CPU seconds per second, of the last run, until the last change was heard.
    pub(super) cores: Cores,
}

/// Who used so many cores.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cores {
    bench: f64,
    a: f64,
    b: f64,
}

/// The nodes; people come for each run.
pub(super) struct Clients {
    nodes: Nodes,
    runs: u32,
    left: Histogram<u64>,
    refused: u64,
    rate: u32,
}

/// Of all people of a run.
struct Shared {
    heard: Arc<Mutex<Heard>>,
    left: Mutex<Histogram<u64>>,
    refused: AtomicU64,
    /// Who watch and know everybody in their room.
    ready: AtomicU64,
}

/// A person's next change, or the end of the run.
type Changes = mpsc::UnboundedReceiver<(u64, u32)>;

impl Clients {
    pub(super) async fn open(program: &Path) -> Result<Clients, String> {
        let nodes = Nodes::make(program, &ADDRESSES, None, Handle::current())?;
        nodes.until_whole().await?;
        Ok(Clients { nodes, runs: 0, left: new_histogram(), refused: 0, rate: 0 })
    }

    pub(super) async fn run(&mut self, rate: u32, duration: Duration, tally: &mut Tally) -> Result<(), String> {
        let rooms = count(rate, duration).div_ceil(CHANGES_EACH + duration.as_secs()).div_ceil(CHANGING).max(1);
        let people = rooms * CHANGING;
        let shared = Arc::new(Shared {
            heard: Arc::new(Mutex::new(Heard::new(Instant::now(), rate, 0, people))),
            left: Mutex::new(new_histogram()),
            refused: AtomicU64::new(0),
            ready: AtomicU64::new(0),
        });
        let (all, mut staying) = self.come(rooms, &shared).await?;
        let ready = async {
            while shared.ready.load(Ordering::Relaxed) < rooms {
                sleep(10 * TICK).await;
            }
        };
        if timeout(KNOWN_MAX, ready).await.is_err() {
            drop((all, staying));
            // Others are measured next: until the nodes have sent away all of these.
            sleep(GONE).await;
            let missing = rooms - shared.ready.load(Ordering::Relaxed);
            return Err(format!("{missing} of {rooms} who watch did not know all of their room after {KNOWN_MAX:?}"));
        }
        sleep(QUIET).await;
        let before = self.cpu()?;
        let begun = Instant::now() + 20 * TICK;
        *lock(&shared.heard) = Heard::new(begun, rate, 0, people);
        let sent = make(begun, rate, duration, |n| {
            let (participant, change) = of(n, people);
            // One whose task has ended says why below.
            let _ = all[participant as usize - 1].send((participant, change));
        })
        .await;
        shared.heard.settle(sent, tally).await?;
        let (after, seconds) = (self.cpu()?, begun.elapsed().as_secs_f64());
        drop(all);
        while let Some(person) = staying.join_next().await {
            person.map_err(|error| error.to_string())??;
        }
        if std::mem::replace(&mut self.rate, rate) != rate {
            (self.left, self.refused) = (new_histogram(), 0);
        }
        self.left.add(&*lock(&shared.left)).map_err(|error| error.to_string())?;
        self.refused += shared.refused.load(Ordering::Relaxed);
        let [bench, a, b] = std::array::from_fn(|at| (after[at] - before[at]).as_secs_f64() / seconds);
        tally.beside = Some(Beside { people, left_us: latency_us(&self.left), refused: self.refused, cores: Cores { bench, a, b } });
        sleep(QUIET).await;
        Ok(())
    }

    /// CPU time so far of this program, and of each node.
    fn cpu(&self) -> Result<[Duration; 3], String> {
        let node = |at: usize| self.nodes.servers[at].as_ref().map_or(Ok(Duration::ZERO), |server| process_cpu(server.pid));
        Ok([process_cpu(std::process::id())?, node(0)?, node(1)?])
    }

    /// Everybody: the ways to those who change, in their order, and the tasks of all. Each goes when the ways are dropped.
    async fn come(
        &mut self,
        rooms: u64,
        shared: &Arc<Shared>,
    ) -> Result<(Vec<mpsc::UnboundedSender<(u64, u32)>>, JoinSet<Result<(), String>>), String> {
        self.runs += 1;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
        let (mut all, mut staying, gate) = (Vec::new(), JoinSet::new(), Arc::new(Semaphore::new(JOINS_AT_ONCE)));
        let mut coming = JoinSet::new();
        // One who watches has no changes to make, and leaves when the first of its room does. Neighbours in time are in different rooms.
        for n in 0..rooms * (CHANGING + 1) {
            let (room, watches) = (format!("room-{}-{}", self.runs, n % rooms), n >= rooms * CHANGING);
            let (identity, grant) =
                if watches { ("watcher".to_owned(), Grant::Watch) } else { (format!("somebody-{}", n + 1), Grant::Member) };
            let token = sign_token(KEY, &room, &identity, grant, now_s);
            let (http, gate) = (self.nodes.http(usize::from(watches))?.to_owned(), Arc::clone(&gate));
            let (way, changes) = mpsc::unbounded_channel();
            all.push(way);
            coming.spawn(async move {
                let _permit = gate.acquire_owned().await.map_err(|error| error.to_string())?;
                let (signal, told) = Signal::open(&http, &token, &greeting()).await?;
                let welcome = match told {
                    Told::Join(welcome) => welcome,
                    Told::Leave(leave) => return Err(format!("the server refused {identity}: {:?}", leave.reason())),
                    _ => return Err("the server's first message is no JoinResponse".to_owned()),
                };
                let others = watches.then(|| welcome.other_participants.into_iter().map(|other| other.identity).collect());
                Ok((signal, changes, others))
            });
        }
        while let Some(come) = coming.join_next().await {
            let (signal, changes, others) = come.map_err(|error| error.to_string())??;
            staying.spawn(stay(signal, changes, others, Arc::clone(shared)));
        }
        Ok((all, staying))
    }
}

/// Makes the changes that are asked for, and notes those of others when it is one who watches: `others` are who it knows by now.
async fn stay(mut signal: Signal, mut changes: Changes, mut others: Option<BTreeSet<String>>, shared: Arc<Shared>) -> Result<(), String> {
    let mut is_ready = false;
    loop {
        if !is_ready && others.as_ref().is_some_and(|others| others.len() as u64 == CHANGING) {
            is_ready = true;
            shared.ready.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            change = changes.recv() => {
                let Some((participant, change)) = change else { break };
                let update = proto::UpdateParticipantMetadata { metadata: text(participant, change), ..Default::default() };
                signal.say(Say::UpdateMetadata(update)).await?;
                let was_due = {
                    let heard = lock(&shared.heard);
                    due(heard.begun, heard.rate, number_of(participant, change, heard.last.len() as u64))
                };
                let late = Instant::now().saturating_duration_since(was_due);
                lock(&shared.left).saturating_record(late.as_nanos() as u64);
            }
            told = signal.next() => match told? {
                Told::Update(update) => {
                    let Some(others) = &mut others else { continue };
                    for other in update.participants {
                        if let Some((participant, change)) = read_text(&other.metadata) {
                            lock(&shared.heard).note(participant, change);
                        }
                        others.insert(other.identity);
                    }
                }
                Told::RequestResponse(answer) if answer.reason() != Reason::Ok => {
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                }
                Told::Leave(leave) => return Err(format!("told to leave: {:?}", leave.reason())),
                _ => {}
            }
        }
    }
    signal.say(Say::Leave(proto::LeaveRequest::default())).await?;
    // The server ends the socket.
    let gone = async { while signal.next().await.is_ok() {} };
    timeout(GOODBYE, gone).await.map_err(|_| "the server does not end the socket of one who left".to_owned())
}

fn read_text(text: &str) -> Option<(u64, u32)> {
    let (participant, change) = text.split_once(' ')?;
    Some((participant.parse().ok()?, change.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_in_the_text_that_it_made() {
        assert_eq!(read_text(&text(1_234, 7)), Some((1_234, 7)));
        assert_eq!((read_text(""), read_text("seat 7")), (None, None));
    }
}
