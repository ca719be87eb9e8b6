//! Connections of others: bounded until they have proved whose they are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pop_schemas::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::counters::Refusal;
use super::counters::Transit;
use super::identity::refusal_of;
use super::link::{Connection, First, Stream};
use super::transit::Wanted;
use super::{Admission, NodeName, PROOF_TIMEOUT, Proof, Refused, Shared, carry, link, resume, transit};

/// Connections that have not proved themselves.
const PENDING_MAX: usize = 64;

/// Of these, how many of one address.
const PENDING_PER_ADDRESS_MAX: usize = 16;

/// How long to wait when the process has no file descriptor left: an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that has not proved itself.
struct Pending {
    address: IpAddr,
    progress: Arc<Progress>,
    task: AbortHandle,
}

#[derive(Default)]
struct Progress {
    has_spoken: AtomicBool,
    is_proved: AtomicBool,
}

/// Takes connections until the mesh ends.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut pending: Vec<Pending> = Vec::with_capacity(PENDING_MAX);
    loop {
        let Ok((stream, remote)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        pending.retain(|one| !one.task.is_finished() && !one.progress.is_proved.load(Ordering::Relaxed));
        make_room(&shared, &mut pending, remote);
        let progress = Arc::<Progress>::default();
        let task = shared.spawn(admit(Arc::clone(&shared), stream, remote, Arc::clone(&progress)));
        pending.push(Pending { address: remote.ip(), progress, task });
    }
}

/// Sends away who has waited longest, those first who have not said a word: an honest node speaks at once, and is done within two
/// round trips, so it is not among them however many others only connect.
fn make_room(shared: &Shared, pending: &mut Vec<Pending>, remote: SocketAddr) {
    let of_address = |one: &Pending| one.address == remote.ip();
    let is_candidate: &dyn Fn(&Pending) -> bool = if pending.iter().filter(|one| of_address(one)).count() >= PENDING_PER_ADDRESS_MAX {
        &of_address
    } else if pending.len() >= PENDING_MAX {
        &|_| true
    } else {
        return;
    };
    let is_silent = |one: &Pending| !one.progress.has_spoken.load(Ordering::Relaxed);
    let silent = pending.iter().position(|one| is_candidate(one) && is_silent(one));
    if let Some(longest) = silent.or_else(|| pending.iter().position(is_candidate)) {
        let one = pending.remove(longest);
        one.task.abort();
        shared.refuse(Refusal::Crowded, &one.address, None);
    }
}

async fn admit(shared: Arc<Shared>, stream: TcpStream, remote: SocketAddr, progress: Arc<Progress>) {
    let proved = timeout(PROOF_TIMEOUT, establish(&shared, stream, remote, &progress)).await;
    match proved {
        Ok(Ok(Established::Link(admission, connection))) => {
            progress.is_proved.store(true, Ordering::Relaxed);
            shared.run(*admission, connection).await;
        }
        Ok(Ok(Established::Resumed)) => {}
        Ok(Ok(Established::Transit(asker, node, stream))) => {
            progress.is_proved.store(true, Ordering::Relaxed);
            transit::carry(&shared, stream, &asker, node).await;
        }
        Ok(Ok(Established::Carrier(stream))) => {
            progress.is_proved.store(true, Ordering::Relaxed);
            carry::answer(&shared, stream).await;
        }
        Ok(Err(Refused::Fault(reason, name))) => shared.refuse(reason, &remote, name.as_ref()),
        Ok(Err(Refused::Redundant | Refused::Stopped)) => {}
        Err(_) => shared.refuse(Refusal::Timeout, &remote, None),
    }
}

/// What a connection that has proved itself is.
enum Established {
    Link(Box<Admission>, Connection),
    /// It is a link's that was there already.
    Resumed,
    /// A node wants to be carried to another.
    Transit(NodeName, NodeId, Box<dyn Stream>),
    /// It carries requests of clients.
    Carrier(Box<TlsStream<TcpStream>>),
}

async fn establish(shared: &Shared, stream: TcpStream, remote: SocketAddr, progress: &Progress) -> Result<Established, Refused> {
    let broken = |error: std::io::Error| Refused::Fault(refusal_of(&error), None);
    super::prepare(&stream).map_err(broken)?;
    stream.readable().await.map_err(broken)?;
    progress.has_spoken.store(true, Ordering::Relaxed);
    let acceptor = TlsAcceptor::from(shared.identity().server());
    let mut stream = acceptor.accept(stream).await.map_err(broken)?;
    let proof = super::proof(shared, stream.get_ref().1)?;
    match stream.get_ref().1.alpn_protocol() {
        Some(carry::PROTOCOL) => Ok(Established::Carrier(Box::new(stream))),
        Some(transit::PROTOCOL) => match transit::read_words(&mut stream).await.map_err(broken)? {
            Some(Wanted::Ask(node)) => Ok(Established::Transit(proof.name, node, Box::new(stream))),
            Some(Wanted::Bring(node)) => take_brought(shared, Box::new(stream), remote, node, proof.name.id()).await,
            None => {
                shared.counters.transit(Transit::Malformed);
                Err(Refused::Fault(Refusal::Malformed, Some(proof.name)))
            }
        },
        _ => begin(shared, Box::new(stream), remote, None, proof).await,
    }
}

/// What another node brings of `node`: a link of that one, or its next connection, and nothing else.
async fn take_brought(
    shared: &Shared,
    mut stream: Box<dyn Stream>,
    remote: SocketAddr,
    node: NodeId,
    via: NodeId,
) -> Result<Established, Refused> {
    let broken = |error: std::io::Error| Refused::Fault(refusal_of(&error), None);
    transit::take(&mut stream).await.map_err(broken)?;
    let stream = TlsAcceptor::from(shared.identity().server()).accept(stream).await.map_err(broken)?;
    let proof = super::proof(shared, stream.get_ref().1)?;
    if stream.get_ref().1.alpn_protocol().is_some() || proof.name.id() != node {
        shared.counters.transit(Transit::Loop);
        return Err(Refused::Fault(Refusal::Malformed, Some(proof.name)));
    }
    let established = begin(shared, Box::new(stream), remote, Some(via), proof).await?;
    shared.counters.transit(Transit::Taken);
    Ok(established)
}

/// The first message of a connection whose other end has proved who it is.
async fn begin(
    shared: &Shared,
    mut stream: Box<dyn Stream>,
    remote: SocketAddr,
    via: Option<NodeId>,
    proof: Proof,
) -> Result<Established, Refused> {
    let hello = match link::read_first(&mut stream).await {
        Ok(First::Hello(hello)) => hello,
        Ok(First::Resume(said)) => {
            resume::answer(shared, stream, via, &proof, said).await?;
            return Ok(Established::Resumed);
        }
        // A node that has seen whom it called, and has a link with us already.
        Err(Refusal::Closed) => return Err(Refused::Redundant),
        Err(reason) => return Err(Refused::Fault(reason, Some(proof.name))),
    };
    if proof.name.id() == shared.node {
        // Ourselves, or another process with our certificate: who called hears which start of the node this is.
        let _ = link::write_hello(&mut stream, shared.hello(1)).await;
    }
    let admission = shared.register(proof, hello, false, remote, via).await?;
    Ok(Established::Link(Box::new(admission), Connection { stream, via }))
}
