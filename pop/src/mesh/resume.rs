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

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pop_relay::control::{PROOF_LEN, Resume};
use pop_relay::keys;
use pop_schemas::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::link::{Connection, Ended, First, Link, Stream, read_first, write_resume};
use super::transit::Untaken;
use super::tries::{STAGGER, THIRDS_MAX, Try, staggered};
use super::{NodeName, Proof, Refused, Shared, dial, transit};
use super::{counters::Refusal, identity::refusal_of};

/// How often a link's connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection that brings nothing for so long stands: four signs of life are due. Where one direction is cut the other end finds it.
const STALLED: Duration = Duration::from_secs(1);

/// The node with the lower id calls; the other one when it has not for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause after attempts that failed; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(4);

/// Longest that a connection may take, over the longest ways; and then the words of both ends on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a way that has come to be waits while others have the word: whoever was called lets go of it after 5 s.
const TURN_TIMEOUT: Duration = Duration::from_millis(4_500);

/// A way that came to nothing, or stalled, is tried last for so long.
const FAILED_LATELY: Duration = Duration::from_secs(30);

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
    /// Whose way has the word: of several that have come to be at once one, and the next when that has come to nothing.
    word: tokio::sync::Mutex<()>,
    /// When ways came to nothing.
    failed: Mutex<HashMap<Option<NodeId>, Instant>>,
}

impl Calls {
    /// Only those of a moment ago are kept.
    fn note(&self, way: Option<NodeId>, has_failed: bool) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < FAILED_LATELY);
        if has_failed {
            failed.insert(way, Instant::now());
        } else {
            failed.remove(&way);
        }
    }

    /// In this order, but those last that failed lately.
    fn order(&self, ways: &mut [Option<NodeId>]) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        ways.sort_by_key(|way| failed.get(way).is_some_and(|at| at.elapsed() < FAILED_LATELY));
    }
}

/// One way that is tried. Who is dropped before the outcome has stalled, when another way had time to come to be.
struct Trying<'a> {
    calls: &'a Calls,
    way: Option<NodeId>,
    since: Instant,
    is_done: bool,
}

impl Trying<'_> {
    fn done(&mut self, has_failed: bool) {
        self.is_done = true;
        self.calls.note(self.way, has_failed);
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if !self.is_done && self.since.elapsed() >= STAGGER {
            self.calls.note(self.way, true);
        }
    }
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
    /// Nobody takes connections there, as the direct path says.
    NotThere,
    /// A third node says that it does not reach it.
    NotReached,
    /// Nobody takes connections there, and no third node that there is reaches it.
    Gone,
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
            // Its process has ended. A direct path alone that refuses may be that of somebody between.
            Err(Failed::Gone) if !link.wire().is_up => return Ended::Closed,
            Err(_) if stands => {
                sleep(dial::jittered(pause)).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            Err(_) => back_after = (back_after * 2).min(BACK_AFTER_MAX),
        }
    }
}

/// By whatever way there is: over third nodes, and directly. The next is tried when those before have not come to anything for a moment.
async fn call_anyhow(shared: &Shared, link: &Link) -> Result<Connection, Failed> {
    let wire = link.wire();
    let mut ways: Vec<Option<NodeId>> = shared.thirds(&link.peer.pop, link.peer.node).into_iter().map(Some).collect();
    // The one that stands comes last.
    ways.sort_by_key(|way| *way == wire.via);
    link.calls.order(&mut ways);
    ways.truncate(THIRDS_MAX);
    // The direct path first where its connection broke: the other end may just have begun anew.
    let is_hopeful = !wire.is_up || wire.via.is_some();
    ways.insert(if is_hopeful { 0 } else { ways.len() }, None);
    link.calls.order(&mut ways);
    let tries = ways.into_iter().map(|way| Box::pin(call(shared, link, way)) as Try<'_, _, _>);
    match staggered(tries, |failed| matches!(failed, Failed::Unknown), is_gone).await {
        Ok(connection) => Ok(connection),
        Err(failed) => Err(judge(&failed)),
    }
}

/// The direct path and a third node say so, and nobody else says otherwise: who stalls does not delay that.
fn is_gone(failed: &[Failed]) -> bool {
    failed.iter().any(|failed| matches!(failed, Failed::NotReached)) && matches!(judge(failed), Failed::Gone)
}

/// What the failures of all ways say together.
fn judge(failed: &[Failed]) -> Failed {
    let is_not_there = failed.iter().any(|failed| matches!(failed, Failed::NotThere));
    if failed.iter().any(|failed| matches!(failed, Failed::Unknown)) {
        Failed::Unknown
    } else if is_not_there && failed.iter().all(|failed| matches!(failed, Failed::NotThere | Failed::NotReached)) {
        Failed::Gone
    } else {
        Failed::Otherwise
    }
}

async fn call(shared: &Shared, link: &Link, via: Option<NodeId>) -> Result<Connection, Failed> {
    let mut trying = Trying { calls: &link.calls, way: via, since: Instant::now(), is_done: false };
    let called = call_by(shared, link, via).await;
    trying.done(called.is_err());
    called
}

async fn call_by(shared: &Shared, link: &Link, via: Option<NodeId>) -> Result<Connection, Failed> {
    let name = NodeName::new(&link.peer.name, &link.peer.pop).map_err(|_| Failed::Otherwise)?;
    let connecting = async {
        let stream: Box<dyn Stream> = match via {
            None => {
                let address = shared.address_of(link.peer.node).ok_or(Failed::Otherwise)?;
                let stream = dial::connect(address).await?;
                super::prepare(&stream)?;
                Box::new(stream)
            }
            Some(third) => transit::open(shared, third, link.peer.node).await.map_err(|untaken| match untaken {
                Untaken::NotReached => Failed::NotReached,
                Untaken::Unreachable | Untaken::Refused => Failed::Otherwise,
            })?,
        };
        Ok::<_, Failed>(dial::secure(shared, stream, Some(&name)).await?)
    };
    let mut stream = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| Failed::Otherwise)??;
    let proof = super::proof(shared, stream.get_ref().1).map_err(|_| Failed::Otherwise)?;
    if proof.name.id() != link.peer.node {
        return Err(Failed::Otherwise);
    }
    let _word = timeout(TURN_TIMEOUT, link.calls.word.lock()).await.map_err(|_| Failed::Otherwise)?;
    timeout(WORDS_TIMEOUT, speak(shared, link, &mut stream, &proof)).await.map_err(|_| Failed::Otherwise)??;
    Ok(Connection { stream: Box::new(stream), via })
}

/// Says that this is the link's next connection, and hears the same.
async fn speak(shared: &Shared, link: &Link, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), proof: &Proof) -> Result<(), Failed> {
    let calls = &link.calls;
    // The other end hears that this one calls.
    calls.is_calling.store(true, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_way_that_failed_or_stalled_is_tried_last_for_a_while() {
        let (calls, direct, ams, khi) = (Calls::default(), None, Some(NodeId(1)), Some(NodeId(2)));
        let ordered = || {
            let mut ways = [direct, ams, khi];
            calls.order(&mut ways);
            ways
        };
        let trying = |way| Trying { calls: &calls, way, since: Instant::now(), is_done: false };
        trying(direct).done(true);
        assert_eq!(ordered(), [ams, khi, direct]);
        let stalled = trying(ams);
        sleep(STAGGER).await;
        // One that had no time to come to be is none the worse.
        drop((stalled, trying(khi)));
        assert_eq!(ordered(), [khi, direct, ams]);
        trying(ams).done(false);
        assert_eq!(ordered(), [ams, khi, direct]);
        sleep(FAILED_LATELY).await;
        assert_eq!(ordered(), [direct, ams, khi]);
    }

    #[test]
    fn a_path_that_refuses_is_the_end_only_where_no_third_node_may_reach_the_other_one() {
        use Failed::{Gone, NotReached, NotThere, Otherwise, Unknown};
        assert!(matches!(judge(&[NotThere]), Gone));
        assert!(matches!(judge(&[NotReached, NotThere, NotReached]), Gone));
        assert!(matches!(judge(&[NotReached, NotThere, Otherwise]), Otherwise));
        assert!(matches!(judge(&[NotReached, NotReached]), Otherwise));
        assert!(matches!(judge(&[NotThere, Unknown]), Unknown));
        assert!(matches!(judge(&[]), Otherwise));
        assert!(is_gone(&[NotThere, NotReached]) && !is_gone(&[NotThere]) && !is_gone(&[NotReached, NotReached]));
        assert!(!is_gone(&[NotThere, NotReached, Otherwise]));
    }
}
