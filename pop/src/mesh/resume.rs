//! A link with a node of another PoP goes on over another connection: over a third node when its own says nothing any longer, and directly
//! when that is possible again. The link stays what it was: its secret, its keys, its messages in order.
//!
//! ```text
//! caller                                                    called
//!   connect directly, or over a third node (transit.rs): TLS 1.3 between the two, both certificates
//!   Resume: attempt, what has come, proof  ---------------->  is it a link of mine, with this secret?
//!                  what has come, proof    <----------------  Resume, and from now on this connection
//!   from now on this connection
//!   u64: so many come before, messages ...  <-------------->  u64: so many come before, messages ...
//! ```
//! The connection before is let go of once both ends have the next: while it brings something still, nothing is missed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use pop_relay::control::{PROOF_LEN, Resume};
use pop_relay::keys;
use pop_schemas::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::link::{Connection, Ended, First, Link, Stream, read_first, write_resume};
use super::{NodeName, Proof, Refused, Shared, dial, transit};
use super::{counters::Refusal, identity::refusal_of};

/// How often a link's connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection that brings nothing for so long stands: ten signs of life are due. Where one direction is cut the other end finds it.
const STALLED: Duration = Duration::from_secs(1);

/// The node with the lower id calls; the other one when it has not for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause after attempts that failed; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(4);

/// Another way is tried beside one that has not come to be within this: who stalls costs no more.
const STAGGER: Duration = Duration::from_millis(700);

/// Third nodes that are asked at once.
const THIRDS_MAX: usize = 4;

/// Longest that a connection may take, over the longest ways; and then the words of both ends on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// Datagrams have come directly for so long when a link goes back to the direct path. A path that failed within [`BACK_SOON`] is let be for
/// twice as long each time.
const BACK_AFTER: Duration = Duration::from_secs(5);
const BACK_AFTER_MAX: Duration = Duration::from_secs(300);
const BACK_SOON: Duration = Duration::from_secs(60);

/// Where no datagrams tell, whether a direct connection can be had is tried so often.
const BACK_UNTOLD: Duration = Duration::from_secs(30);

/// What both ends of a link have said of calls.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// The last attempt of this end, and of the other.
    ours: AtomicU64,
    theirs: AtomicU64,
    /// This end has said its words and has no answer.
    is_calling: AtomicBool,
}

/// How both ends prove that they are those of a link.
fn proof_of(link: &Link, own: NodeId, connection: &[u8; 32], is_own: bool, calls: bool) -> [u8; PROOF_LEN] {
    let (from, to) = if is_own { (own, link.peer.node) } else { (link.peer.node, own) };
    keys::prove(link.secret.bytes(), connection, from, to, calls)
}

fn is_same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Why a call came to nothing.
enum Failed {
    /// Nobody takes connections there.
    NotThere,
    /// The other end says that it has no such link.
    Unknown,
    /// No way, no time, or no word that could be believed.
    Otherwise,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionRefused { Failed::NotThere } else { Failed::Otherwise }
    }
}

/// Gives the link another connection whenever it needs one. Returns when the other end does not know the link any more.
pub(super) async fn keep_connected(shared: &Shared, link: &Link) -> Ended {
    if !link.resumes {
        return std::future::pending().await;
    }
    let patience = if shared.node < link.peer.node { Duration::ZERO } else { PATIENCE };
    let (mut pause, mut back_after) = (RETRY_MIN, BACK_AFTER);
    let mut stands_since: Option<Instant> = None;
    let (mut was_direct, mut came_back_at, mut tried_back_at) = (link.wire().via.is_none(), None::<Instant>, Instant::now());
    loop {
        sleep(LOOK_INTERVAL).await;
        let wire = link.wire();
        if wire.via.is_none() != was_direct {
            was_direct = !was_direct;
            if was_direct {
                came_back_at = Some(Instant::now());
            } else {
                let is_soon = came_back_at.is_some_and(|at| at.elapsed() < BACK_SOON);
                back_after = if is_soon { (back_after * 2).min(BACK_AFTER_MAX) } else { BACK_AFTER };
            }
        }
        let stands = !wire.is_up || wire.silence() > STALLED;
        if stands {
            // The second look in a row: this node may have stood still itself.
            let since = *stands_since.get_or_insert_with(Instant::now);
            if since.elapsed() < patience.max(LOOK_INTERVAL) {
                continue;
            }
        } else {
            (stands_since, pause) = (None, RETRY_MIN);
            let is_told = link.figures.lock().is_ok_and(|figures| figures.datagrams_out > 0);
            let is_alive = if is_told { link.direct_for() >= back_after } else { tried_back_at.elapsed() >= BACK_UNTOLD };
            let is_due = wire.via.is_some() && is_alive && wire.since.elapsed() >= back_after + patience;
            if !is_due || tried_back_at.elapsed() < back_after {
                continue;
            }
            tried_back_at = Instant::now();
        }
        let called = if stands { call_anyhow(shared, link).await } else { call(shared, link, None).await };
        match called {
            Ok(connection) => {
                link.go_on(connection);
                stands_since = None;
            }
            Err(Failed::Unknown) => return Ended::Closed,
            // Its process has ended, and nobody who should have a link with it has one.
            Err(Failed::NotThere) if !link.wire().is_up => return Ended::Closed,
            Err(_) if stands => {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            Err(_) => back_after = (back_after * 2).min(BACK_AFTER_MAX),
        }
    }
}

/// By whatever way there is: over third nodes, and directly. The next is tried when those before have not come to anything for a moment.
async fn call_anyhow(shared: &Shared, link: &Link) -> Result<Connection, Failed> {
    let wire = link.wire();
    let mut ways: Vec<Option<NodeId>> = shared.thirds(&link.peer.pop, link.peer.node).into_iter().take(THIRDS_MAX).map(Some).collect();
    // The one that stands comes last, and the direct path first where its connection broke: the other end may just have begun anew.
    ways.sort_by_key(|way| *way == wire.via);
    let is_hopeful = !wire.is_up || wire.via.is_some();
    ways.insert(if is_hopeful { 0 } else { ways.len() }, None);
    let (mut ways, mut trying) = (ways.into_iter(), Vec::<Pin<Box<dyn Future<Output = _> + Send + '_>>>::new());
    let mut last = Failed::Otherwise;
    loop {
        match ways.next() {
            Some(way) => trying.push(Box::pin(call(shared, link, way))),
            None if trying.is_empty() => return Err(last),
            None => {}
        }
        let next = poll_fn(|context| {
            let done = trying.iter_mut().enumerate().find_map(|(place, one)| match one.as_mut().poll(context) {
                Poll::Ready(outcome) => Some((place, outcome)),
                Poll::Pending => None,
            });
            done.map_or(Poll::Pending, |(place, outcome)| {
                drop(trying.swap_remove(place));
                Poll::Ready(outcome)
            })
        });
        match timeout(STAGGER, next).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(Failed::Unknown)) => return Err(Failed::Unknown),
            Ok(Err(Failed::NotThere)) => last = Failed::NotThere,
            Ok(Err(Failed::Otherwise)) | Err(_) => {}
        }
    }
}

async fn call(shared: &Shared, link: &Link, via: Option<NodeId>) -> Result<Connection, Failed> {
    let name = NodeName::new(&link.peer.name, &link.peer.pop).map_err(|_| Failed::Otherwise)?;
    let connecting = async {
        let stream: Box<dyn Stream> = match via {
            None => {
                let address = shared.address_of(link.peer.node).ok_or(Failed::Otherwise)?;
                let stream = dial::connect(address).await?;
                super::prepare(&stream)?;
                Box::new(stream)
            }
            Some(third) => transit::open(shared, third, link.peer.node).await.map_err(|_| Failed::Otherwise)?,
        };
        Ok::<_, Failed>(dial::secure(shared, stream, Some(&name)).await?)
    };
    let mut stream = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| Failed::Otherwise)??;
    let proof = super::proof(shared, stream.get_ref().1).map_err(|_| Failed::Otherwise)?;
    if proof.name.id() != link.peer.node {
        return Err(Failed::Otherwise);
    }
    timeout(WORDS_TIMEOUT, speak(shared, link, &mut stream, &proof)).await.map_err(|_| Failed::Otherwise)??;
    Ok(Connection { stream: Box::new(stream), via })
}

/// Says that this is the link's next connection, and hears the same.
async fn speak(shared: &Shared, link: &Link, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), proof: &Proof) -> Result<(), Failed> {
    let calls = &link.calls;
    // Of several ways that have come to be at once the first has the word.
    if calls.is_calling.swap(true, Ordering::Relaxed) {
        return Err(Failed::Otherwise);
    }
    let _calling = Calling(&calls.is_calling);
    let number = calls.ours.fetch_add(1, Ordering::Relaxed) + 1;
    let received = link.flow().tell_received();
    let own = proof_of(link, shared.node, &proof.secret, true, true);
    write_resume(stream, Resume { number, received, proof: own }).await?;
    let First::Resume(answer) = read_first(stream).await.map_err(|_| Failed::Otherwise)? else { return Err(Failed::Otherwise) };
    if answer.number == 0 {
        return Err(Failed::Unknown);
    }
    let is_theirs = is_same(&answer.proof, &proof_of(link, shared.node, &proof.secret, false, false));
    if is_theirs && link.take_word(answer.received) { Ok(()) } else { Err(Failed::Otherwise) }
}

struct Calling<'a>(&'a AtomicBool);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Answers a node that calls to make its link go on: over this connection, from now on.
pub(super) async fn answer(
    shared: &Shared,
    mut stream: Box<dyn Stream>,
    via: Option<NodeId>,
    proof: &Proof,
    said: Resume,
) -> Result<(), Refused> {
    let fault = |reason| Refused::Fault(reason, Some(proof.name.clone()));
    let link = shared.table().links.get(&proof.name.id()).filter(|link| link.resumes).cloned();
    let link = link.filter(|link| is_same(&said.proof, &proof_of(link, shared.node, &proof.secret, false, true)));
    let Some(link) = link else {
        // This node has begun anew, or has given the link up.
        let _ = write_resume(&mut stream, Resume { number: 0, received: 0, proof: [0; PROOF_LEN] }).await;
        return Err(Refused::Redundant);
    };
    if link.peer.grants != proof.grants {
        // It may use other API keys now, and has to be known anew.
        link.end(Ended::Renewed);
        return Err(Refused::Redundant);
    }
    let calls = &link.calls;
    // Of two that call at once the one with the lower id is heard.
    let is_ours = shared.node < link.peer.node && calls.is_calling.load(Ordering::Relaxed);
    if is_ours || calls.theirs.fetch_max(said.number, Ordering::Relaxed) >= said.number {
        return Err(Refused::Redundant);
    }
    if !link.take_word(said.received) {
        return Err(fault(Refusal::Malformed));
    }
    let received = link.flow().tell_received();
    let own = proof_of(&link, shared.node, &proof.secret, true, false);
    write_resume(&mut stream, Resume { number: said.number, received, proof: own }).await.map_err(|error| fault(refusal_of(&error)))?;
    link.go_on(Connection { stream, via });
    Ok(())
}
