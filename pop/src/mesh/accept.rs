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

/// The same for addresses from which there is a link: many links of a node move at once, and whoever has none takes nothing of this.
const PENDING_KNOWN_MAX: usize = 128;
const PENDING_PER_KNOWN_MAX: usize = 64;

/// How long to wait when the process has no file descriptor left: an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that has not proved itself.
struct Pending {
    address: IpAddr,
    /// There was a link from its address.
    is_known: bool,
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
    let mut pending: Vec<Pending> = Vec::with_capacity(PENDING_MAX + PENDING_KNOWN_MAX);
    loop {
        let Ok((stream, remote)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        pending.retain(|one| !one.task.is_finished() && !one.progress.is_proved.load(Ordering::Relaxed));
        let is_known = shared.is_linked_from(remote.ip());
        if let Some(one) = crowded_out(&mut pending, remote.ip(), is_known) {
            one.task.abort();
            shared.refuse(Refusal::Crowded, &one.address, None);
        }
        let progress = Arc::<Progress>::default();
        let task = shared.spawn(admit(Arc::clone(&shared), stream, remote, Arc::clone(&progress)));
        pending.push(Pending { address: remote.ip(), is_known, progress, task });
    }
}

/// Sends away who has waited longest, those first who have not said a word: an honest node speaks at once, and is done within two
/// round trips, so it is not among them however many others only connect.
fn crowded_out(pending: &mut Vec<Pending>, address: IpAddr, is_known: bool) -> Option<Pending> {
    let (all_max, own_max) = if is_known { (PENDING_KNOWN_MAX, PENDING_PER_KNOWN_MAX) } else { (PENDING_MAX, PENDING_PER_ADDRESS_MAX) };
    let is_alike = |one: &Pending| one.is_known == is_known;
    let is_own = |one: &Pending| is_alike(one) && one.address == address;
    let is_candidate: &dyn Fn(&Pending) -> bool = if pending.iter().filter(|one| is_own(one)).count() >= own_max {
        &is_own
    } else if pending.iter().filter(|one| is_alike(one)).count() >= all_max {
        &is_alike
    } else {
        return None;
    };
    let is_silent = |one: &Pending| !one.progress.has_spoken.load(Ordering::Relaxed);
    let silent = pending.iter().position(|one| is_candidate(one) && is_silent(one));
    silent.or_else(|| pending.iter().position(is_candidate)).map(|longest| pending.remove(longest))
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
    Carrier(Box<carry::Held>),
}

async fn establish(shared: &Arc<Shared>, stream: TcpStream, remote: SocketAddr, progress: &Progress) -> Result<Established, Refused> {
    let broken = |error: std::io::Error| Refused::Fault(refusal_of(&error), None);
    super::prepare(&stream).map_err(broken)?;
    stream.readable().await.map_err(broken)?;
    progress.has_spoken.store(true, Ordering::Relaxed);
    let acceptor = TlsAcceptor::from(shared.identity().server());
    let mut stream = acceptor.accept(stream).await.map_err(broken)?;
    let proof = super::proof(shared, stream.get_ref().1)?;
    match stream.get_ref().1.alpn_protocol() {
        // It says for whom it asks, which is believed of nodes of this PoP alone.
        Some(carry::PROTOCOL) if proof.name.pop() == shared.name.pop() => {
            Ok(Established::Carrier(Box::new(carry::Held::new(shared, stream, proof.certificate))))
        }
        Some(carry::PROTOCOL) => Err(Refused::Fault(Refusal::WrongName, Some(proof.name))),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_flood_of_strangers_takes_no_place_of_a_node_with_a_link_and_each_has_its_bound() {
        let mut pending = Vec::new();
        let mut come = |host: u8, is_known, count| {
            let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, host));
            let mut away = Vec::new();
            for _ in 0..count {
                away.extend(crowded_out(&mut pending, address, is_known).map(|one| (one.address, one.is_known)));
                let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
                pending.push(Pending { address, is_known, progress: Arc::default(), task });
            }
            assert!(away.iter().all(|(_, was_known)| *was_known == is_known));
            away.len()
        };
        assert_eq!(come(1, true, PENDING_PER_KNOWN_MAX), 0);
        assert_eq!(come(2, false, 100), 100 - PENDING_PER_ADDRESS_MAX);
        assert_eq!((3..100).map(|host| come(host, false, 1)).sum::<usize>(), 97 + PENDING_PER_ADDRESS_MAX - PENDING_MAX);
        assert_eq!(come(1, true, 1), 1);
        assert_eq!(come(101, true, PENDING_PER_KNOWN_MAX), 0);
        assert_eq!(come(102, true, 1), 1);
        assert_eq!(pending.len(), PENDING_MAX + PENDING_KNOWN_MAX);
    }
}
