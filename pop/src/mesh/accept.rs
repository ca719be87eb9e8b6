//! Connections of others: bounded until they have proved whose they are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::counters::Refusal;
use super::identity::refusal_of;
use super::{Admission, PROOF_TIMEOUT, Refused, Shared, carry, link};

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
        Ok(Ok(Established::Link(admission, stream))) => {
            progress.is_proved.store(true, Ordering::Relaxed);
            shared.run(admission, stream).await;
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
    Link(Admission, Box<TlsStream<TcpStream>>),
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
    let proof = super::proof(&shared.identity(), stream.get_ref().1)?;
    if stream.get_ref().1.alpn_protocol() == Some(carry::PROTOCOL) {
        return Ok(Established::Carrier(Box::new(stream)));
    }
    let hello = match link::read_hello(&mut stream).await {
        Ok(hello) => hello,
        // A node that has seen whom it called, and has a link with us already.
        Err(Refusal::Closed) => return Err(Refused::Redundant),
        Err(reason) => return Err(Refused::Fault(reason, Some(proof.name))),
    };
    if proof.name.id() == shared.node {
        // Ourselves, or another process with our certificate: who called hears which start of the node this is.
        let _ = link::write_hello(&mut stream, shared.hello(1)).await;
    }
    let admission = shared.register(proof, hello, false, remote).await?;
    Ok(Established::Link(admission, Box::new(stream)))
}
