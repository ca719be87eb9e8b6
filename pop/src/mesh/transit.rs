//! Control links through a third node: it copies bytes between two nodes, each of which has a link with it, and can neither read nor change
//! what they say, since that is TLS between the two.
//!
//! ```text
//! A                        Z                               B
//!   TLS (A, Z) ----------->
//!   0, id of B ----------->  may it? ---- TLS (Z, B) ----->
//!                                    ---- 1, id of A ----->
//!                                    <--- 0 ---------------  or why not
//!   0, or why not <--------
//!   TLS (A, B) ===========>  bytes, counted and paced ====>  a Hello or a Resume, never another transit
//! ```
//! What Z asks of B says that it is for A, and B takes nothing else on it, so a transit never has another one in it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pop_schemas::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::counters::{Counters, Transit};
use super::identity::server_name;
use super::link::Stream;
use super::{NodeName, Shared, dial};

/// What such a connection speaks.
pub(super) const PROTOCOL: &[u8] = b"pop-transit/1";

/// Transits that this node carries at once: 16 MiB of buffers.
pub const TRANSITS_MAX: usize = 512;

/// Of these for one asker: a link has one, and a second while it changes. A node with 255 links finds places for them at the four third
/// nodes that it asks.
pub const TRANSITS_PER_ASKER_MAX: usize = 64;

/// Connections with one node that have not said what is wanted: a node takes no more than 64 of one address.
const UNSAID_MAX: usize = 48;

/// Bytes of one direction that wait here.
const BUFFER_LEN: usize = 16 << 10;

/// Bytes a second in one direction of a transit: more waits, and so does who sends it. Control is some kilobytes a second, what a link may
/// have to say again 2 MiB.
const BYTES_PER_S_MAX: usize = 1 << 20;

/// A link says something ten times a second, both ways.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// An end that has had no link with this node for so long, and has none again, has no right to a transit. A link that goes on over another
/// connection stays one.
const UNLINKED_MAX: Duration = Duration::from_millis(500);

/// How long the way to the other node may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// The first words of such a connection: what is wanted, and the id of the other end.
const WORDS_LEN: usize = 9;
const ASK: u8 = 0;
const BRING: u8 = 1;

/// The answer to them when it is a transit from now on.
const TAKEN: u8 = 0;

/// What is wanted of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// That it carries to this node.
    Ask(NodeId),
    /// That it takes a connection of this one.
    Bring(NodeId),
}

/// Reads the first words; `None`: they are none.
pub(super) async fn read_words(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Wanted>> {
    let mut words = [0; WORDS_LEN];
    stream.read_exact(&mut words).await?;
    let [what, id @ ..] = words;
    let id = NodeId(u64::from_le_bytes(id));
    Ok(match what {
        ASK => Some(Wanted::Ask(id)),
        BRING => Some(Wanted::Bring(id)),
        _ => None,
    })
}

async fn write_words(stream: &mut (impl AsyncWrite + Unpin), what: u8, node: NodeId) -> io::Result<()> {
    let mut words = [what; WORDS_LEN];
    words[1..].copy_from_slice(&node.0.to_le_bytes());
    stream.write_all(&words).await?;
    stream.flush().await
}

/// Says that what was brought is taken.
pub(super) async fn take(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    answer(stream, TAKEN).await
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), word: u8) -> io::Result<()> {
    stream.write_all(&[word]).await?;
    stream.flush().await
}

/// Why there is no transit.
#[derive(Debug)]
pub(super) enum Untaken {
    /// The other node could not be reached, or speaks of no transits.
    Unreachable,
    /// It says no.
    Refused,
    /// It says that it does not reach whom it should carry to.
    NotReached,
}

impl From<io::Error> for Untaken {
    fn from(_: io::Error) -> Self {
        Untaken::Unreachable
    }
}

/// Asks node `third` for a transit to `node`.
pub(super) async fn open(shared: &Shared, third: NodeId, node: NodeId) -> Result<Box<dyn Stream>, Untaken> {
    let mut stream = connect(shared, third, ASK, node).await?;
    match stream.read_u8().await? {
        TAKEN => Ok(stream),
        why if [Transit::Unknown, Transit::Unreachable].into_iter().any(|refusal| why == 1 + refusal as u8) => Err(Untaken::NotReached),
        _ => Err(Untaken::Refused),
    }
}

/// A connection for transits with a node that this one has a direct link with, which has heard what is wanted.
async fn connect(shared: &Shared, node: NodeId, what: u8, about: NodeId) -> Result<Box<dyn Stream>, Untaken> {
    let name = shared.directly_linked(node).ok_or(Untaken::Unreachable)?;
    let address = shared.address_of(node).ok_or(Untaken::Unreachable)?;
    let _turn = shared.turns.take(node).await;
    let stream = dial::connect(address).await?;
    super::prepare(&stream)?;
    let mut stream = TlsConnector::from(shared.identity().transit()).connect(server_name(Some(&name)), stream).await?;
    let (_, connection) = stream.get_ref();
    let chain = connection.peer_certificates().unwrap_or_default();
    let is_right = shared.vouches(&name, chain).is_ok() && connection.alpn_protocol() == Some(PROTOCOL);
    if !is_right {
        return Err(Untaken::Unreachable);
    }
    write_words(&mut stream, what, about).await?;
    Ok(Box::new(stream))
}

/// Whose turn it is to connect with a node, by node. Only those are kept for which somebody has one or waits.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<NodeId, Arc<Semaphore>>>);

impl Turns {
    async fn take(&self, node: NodeId) -> OwnedSemaphorePermit {
        let turns = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
            Arc::clone(all.entry(node).or_insert_with(|| Arc::new(Semaphore::new(UNSAID_MAX))))
        };
        turns.acquire_owned().await.expect("it is never closed")
    }
}

/// How many transits there are, by who has asked for them.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<NodeId, usize>>);

/// A transit's place, until dropped.
struct Place<'a> {
    places: &'a Places,
    asker: NodeId,
}

impl Places {
    fn all(&self) -> MutexGuard<'_, HashMap<NodeId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.all().values().sum()
    }

    fn take(&self, asker: NodeId) -> Option<Place<'_>> {
        let mut all = self.all();
        let own = all.get(&asker).copied().unwrap_or_default();
        if own >= TRANSITS_PER_ASKER_MAX || all.values().sum::<usize>() >= TRANSITS_MAX {
            return None;
        }
        all.insert(asker, own + 1);
        Some(Place { places: self, asker })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.places.all();
        let left = all.get(&self.asker).map_or(0, |count| count - 1);
        if left == 0 {
            all.remove(&self.asker);
        } else {
            all.insert(self.asker, left);
        }
    }
}

/// Carries what `asker` has for `node`, when it may.
pub(super) async fn carry(shared: &Arc<Shared>, mut stream: Box<dyn Stream>, asker: &NodeName, node: NodeId) {
    let (place, other) = match begin(shared, asker, node).await {
        Ok(begun) => begun,
        Err(refusal) => {
            shared.counters.transit(refusal);
            tracing::info!(target: crate::logging::AUDIT, node = %asker, %node, reason = refusal.label(), "control transit refused");
            // Who hung up hears nothing.
            let _ = timeout(OPEN_TIMEOUT, answer(&mut stream, 1 + refusal as u8)).await;
            return;
        }
    };
    if !timeout(OPEN_TIMEOUT, take(&mut stream)).await.is_ok_and(|said| said.is_ok()) {
        return;
    }
    shared.counters.transit(Transit::Carried);
    let name = shared.linked_name(node).map(|name| name.to_string()).unwrap_or_default();
    tracing::info!(target: crate::logging::AUDIT, from = %asker, to = name, "control transit begins");
    tokio::select! {
        () = pass_both(stream, other, &shared.counters) => {}
        () = unlinked(shared, [asker.id(), node]) => {}
    }
    tracing::info!(target: crate::logging::AUDIT, from = %asker, to = name, "control transit ends");
    drop(place);
}

/// Only between two nodes that this one has links with right now, and with the other one a direct one.
async fn begin<'a>(shared: &'a Shared, asker: &NodeName, node: NodeId) -> Result<(Place<'a>, Box<dyn Stream>), Transit> {
    let from = asker.id();
    if node == shared.node || node == from {
        return Err(Transit::Myself);
    }
    if shared.linked_name(from).is_none() {
        return Err(Transit::Stranger);
    }
    let place = shared.transits.take(from).ok_or(Transit::Full)?;
    if shared.directly_linked(node).is_none() {
        return Err(Transit::Unknown);
    }
    let opening = async {
        let mut other = connect(shared, node, BRING, from).await?;
        match other.read_u8().await? {
            TAKEN => Ok::<_, Untaken>(other),
            _ => Err(Untaken::Refused),
        }
    };
    let opened = timeout(OPEN_TIMEOUT, opening).await.map_err(|_| Transit::Unreachable)?;
    Ok((place, opened.map_err(|_| Transit::Unreachable)?))
}

/// Returns when one of `ends` has no link any more.
async fn unlinked(shared: &Shared, ends: [NodeId; 2]) {
    let mut changed = shared.changed.subscribe();
    let are_linked = || {
        let table = shared.table();
        ends.iter().all(|end| table.links.contains_key(end))
    };
    loop {
        while are_linked() {
            if changed.changed().await.is_err() {
                return;
            }
        }
        sleep(UNLINKED_MAX).await;
        if !are_linked() {
            return;
        }
    }
}

/// Until one end hangs up, or says nothing, or takes nothing.
async fn pass_both(ours: Box<dyn Stream>, theirs: Box<dyn Stream>, counters: &Counters) {
    let (mut ours_in, mut ours_out) = split(ours);
    let (mut theirs_in, mut theirs_out) = split(theirs);
    tokio::select! {
        () = pass(&mut ours_in, &mut theirs_out, counters) => {}
        () = pass(&mut theirs_in, &mut ours_out, counters) => {}
    }
}

async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), counters: &Counters) {
    let mut bytes = vec![0; BUFFER_LEN];
    let (mut second, mut passed) = (Instant::now(), 0);
    while let Ok(Ok(len @ 1..)) = timeout(SILENCE_MAX, from.read(&mut bytes)).await {
        let passing = async {
            to.write_all(&bytes[..len]).await?;
            to.flush().await
        };
        if !timeout(SILENCE_MAX, passing).await.is_ok_and(|passed| passed.is_ok()) {
            return;
        }
        counters.transit_bytes(len);
        if second.elapsed() >= Duration::from_secs(1) {
            (second, passed) = (Instant::now(), 0);
        }
        passed += len;
        if passed >= BYTES_PER_S_MAX {
            sleep_until(second + Duration::from_secs(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_one_asker_and_come_back() {
        let places = Places::default();
        let mut held: Vec<_> = (0..TRANSITS_PER_ASKER_MAX).map(|_| places.take(NodeId(1)).expect("a place")).collect();
        assert!(places.take(NodeId(1)).is_none());
        held.extend((2..).map_while(|node| places.take(NodeId(node))).take(TRANSITS_MAX));
        assert_eq!((places.len(), held.len()), (TRANSITS_MAX, TRANSITS_MAX));
        assert!(places.take(NodeId(1_000)).is_none());
        held.remove(0);
        assert!(places.take(NodeId(1_001)).is_some());
        drop(held);
        assert_eq!(places.len(), 0);
        assert!(places.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_with_one_node_wait_for_their_turn_and_those_with_others_do_not() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..UNSAID_MAX {
            held.push(turns.take(NodeId(1)).await);
        }
        assert!(timeout(OPEN_TIMEOUT, turns.take(NodeId(1))).await.is_err());
        drop(turns.take(NodeId(2)).await);
        held.pop();
        let last = turns.take(NodeId(1)).await;
        drop((held, last, turns.take(NodeId(3)).await));
        assert_eq!(turns.0.lock().map(|all| all.len()).ok(), Some(2), "one is of now, and what nobody has goes with the next");
    }

    #[tokio::test]
    async fn the_first_words_are_nine_bytes_and_of_two_kinds() {
        let mut words = Vec::new();
        write_words(&mut words, ASK, NodeId(0x0102_0304_0506_0708)).await.expect("memory");
        assert_eq!(words, [0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(read_words(&mut words.as_slice()).await.expect("nine"), Some(Wanted::Ask(NodeId(0x0102_0304_0506_0708))));
        assert_eq!(read_words(&mut [1, 9, 0, 0, 0, 0, 0, 0, 0].as_slice()).await.expect("nine"), Some(Wanted::Bring(NodeId(9))));
        assert_eq!(read_words(&mut [2; 9].as_slice()).await.expect("nine"), None);
        assert!(read_words(&mut [0; 8].as_slice()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_paced_and_who_says_nothing_is_let_go_of() {
        let (mut a, z_a) = tokio::io::duplex(4 << 20);
        let (z_b, mut b) = tokio::io::duplex(4 << 20);
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let passing = tokio::spawn(async move { pass_both(Box::new(z_a), Box::new(z_b), &counted).await });
        let began = Instant::now();
        a.write_all(&vec![7; 3 << 20]).await.expect("it is open");
        let mut came = vec![0; 3 << 20];
        b.read_exact(&mut came).await.expect("it comes");
        assert!(came.iter().all(|byte| *byte == 7));
        let took = began.elapsed();
        assert!((Duration::from_millis(1_900)..Duration::from_millis(3_100)).contains(&took), "{took:?} for 3 MiB at 1 MiB/s");
        b.write_all(b"back").await.expect("it is open");
        let mut back = [0; 4];
        a.read_exact(&mut back).await.expect("it comes");
        let silent = Instant::now();
        passing.await.expect("it ends");
        assert!(silent.elapsed() <= SILENCE_MAX);
        assert_eq!(a.read(&mut back).await.expect("it is closed"), 0);
    }
}
