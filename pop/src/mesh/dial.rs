//! Connections to others: tried again until there is a link, whoever made it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::{Incarnation, NodeId};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::counters::Refusal;
use super::identity::{refusal_of, server_name};
use super::link::{Connection, Stream};
use super::name::NodeName;
use super::tries::{THIRDS_MAX, Try, staggered};
use super::{Admission, PROOF_TIMEOUT, Refused, Shared, link, transit};

/// The first pause after a link that ended or did not come to be; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The longest pause: with [`CONNECT_TIMEOUT`] what a network needs at most to heal a link.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A connection that is not made within this is begun anew. The kernel repeats its SYN ever more seldom, and a cut would be felt as long
/// again as it was.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Both Hellos over a third node: another one waits for its turn meanwhile.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// A node of another PoP that was not reached so often is called over third nodes, too.
const DIRECT_TRIES: u32 = 2;

/// Keeps a link with the node at `address` until the task is ended. Without `expected` it is whoever shows a certificate of the CA.
pub(super) async fn keep_linked(shared: Arc<Shared>, address: SocketAddr, expected: Option<NodeName>) {
    let mut node = expected.as_ref().map(NodeName::id);
    // Who that is.
    let mut name = expected.clone();
    let (mut pause, mut is_told, mut unreached) = (RETRY_MIN, false, 0_u32);
    loop {
        if let Some(node) = node {
            shared.unlinked(node).await;
        }
        let mut outcome = timeout(PROOF_TIMEOUT, establish(&shared, address, expected.as_ref(), &mut node, &mut name)).await;
        unreached = if matches!(outcome, Ok(Err(Failure::Unreachable(_))) | Err(_)) { unreached.saturating_add(1) } else { 0 };
        if unreached >= 1
            && let Some(name) = &name
        {
            shared.note_unreached(name);
        }
        if unreached >= DIRECT_TRIES
            && let Some(name) = &name
            && let Some(begun) = establish_over_another(&shared, address, name).await
        {
            outcome = Ok(Ok(begun));
        }
        match outcome {
            Ok(Ok((admission, connection))) => {
                (pause, is_told, unreached) = (RETRY_MIN, false, 0);
                let shared_too = Arc::clone(&shared);
                shared.spawn(async move { shared_too.run(admission, connection).await });
                continue;
            }
            // The list of peers may be the same on every node.
            Ok(Err(Failure::Myself)) => return,
            Ok(Err(Failure::Refused(Refused::Stopped))) => return,
            Ok(Err(Failure::Refused(Refused::Redundant))) => {}
            Ok(Err(Failure::Refused(Refused::Fault(reason, name)))) => shared.refuse(reason, &address, name.as_ref()),
            Ok(Err(Failure::Unreachable(error))) => {
                if !is_told {
                    tracing::info!(%address, %error, "a node of the mesh is not there yet");
                }
                is_told = true;
            }
            Err(_) => shared.refuse(Refusal::Timeout, &address, expected.as_ref()),
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

enum Failure {
    Unreachable(io::Error),
    Myself,
    Refused(Refused),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Failure::Refused(refused)
    }
}

/// One attempt. `node` becomes who answered, and `name` who has a link now.
async fn establish(
    shared: &Shared,
    address: SocketAddr,
    expected: Option<&NodeName>,
    node: &mut Option<NodeId>,
    name: &mut Option<NodeName>,
) -> Result<(Admission, Connection), Failure> {
    let stream = connect(address).await.map_err(Failure::Unreachable)?;
    let broken = |error: io::Error| Refused::Fault(refusal_of(&error), expected.cloned());
    super::prepare(&stream).map_err(broken)?;
    let stream = secure(shared, Box::new(stream), expected).await.map_err(broken)?;
    let begun = begin(shared, stream, address, None, node).await?;
    *name = NodeName::new(&begun.0.link.peer.name, &begun.0.link.peer.pop).ok();
    Ok(begun)
}

/// The same over a node that may reach it: the first that does. A third node that stalls or cheats leaves their turn to the others.
async fn establish_over_another(shared: &Shared, address: SocketAddr, name: &NodeName) -> Option<(Admission, Connection)> {
    // Of several that have come to be at once one says Hello, and the next when that has come to nothing.
    let word = Mutex::new(());
    let one = async |third| {
        let connecting = async {
            let stream = transit::open(shared, third, name.id()).await.ok()?;
            secure(shared, stream, Some(name)).await.ok()
        };
        let stream = timeout(PROOF_TIMEOUT, connecting).await.ok().flatten().ok_or(())?;
        let _word = word.lock().await;
        let begun = timeout(HELLO_TIMEOUT, begin(shared, stream, address, Some(third), &mut None)).await;
        begun.map_err(drop)?.map_err(drop)
    };
    let thirds = shared.thirds(name.pop(), name.id()).into_iter().take(THIRDS_MAX);
    let tries = thirds.map(|third| Box::pin(one(third)) as Try<'_, _, ()>);
    staggered(tries, |()| false, |_| false).await.ok()
}

/// TLS with a node: `expected`, or any of the CA.
pub(super) async fn secure(
    shared: &Shared,
    stream: Box<dyn Stream>,
    expected: Option<&NodeName>,
) -> io::Result<TlsStream<Box<dyn Stream>>> {
    TlsConnector::from(shared.identity().client()).connect(server_name(expected), stream).await
}

/// Both Hellos. `node` becomes who answered.
async fn begin(
    shared: &Shared,
    mut stream: TlsStream<Box<dyn Stream>>,
    address: SocketAddr,
    via: Option<NodeId>,
    node: &mut Option<NodeId>,
) -> Result<(Admission, Connection), Failure> {
    let proof = super::proof(shared, stream.get_ref().1)?;
    let name = &proof.name;
    *node = Some(name.id());
    // Whoever has a link with it already, or is making one, leaves it at that.
    let claim = shared.claim(name.id())?;
    let refused = |reason| Refused::Fault(reason, Some(name.clone()));
    link::write_hello(&mut stream, shared.hello(claim.number)).await.map_err(refused)?;
    let hello = match link::read_hello(&mut stream).await {
        Ok(hello) => hello,
        // It keeps the link that it dialled itself.
        Err(Refusal::Closed) => return Err(Refused::Redundant.into()),
        Err(reason) => return Err(refused(reason).into()),
    };
    if name.id() == shared.node && hello.incarnation == shared.incarnation {
        return Err(Failure::Myself);
    }
    let admission = shared.register(proof, hello, true, address, via).await?;
    Ok((admission, Connection { stream: Box::new(stream), via }))
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Which start of this very node is at `address`: of whoever proves by the certificate that it is this node. `None`: nobody who does.
pub(super) async fn own_start_at(shared: &Shared, address: SocketAddr) -> Option<Incarnation> {
    let ask = async {
        let stream = connect(address).await.ok()?;
        let connector = TlsConnector::from(shared.identity().client());
        let mut stream = connector.connect(server_name(Some(&shared.name)), stream).await.ok()?;
        let name = super::proof(shared, stream.get_ref().1).ok().map(|proof| proof.name).filter(|name| *name == shared.name)?;
        link::write_hello(&mut stream, shared.hello(1)).await.ok()?;
        let hello = link::read_hello(&mut stream).await.ok()?;
        (NodeName::new(&hello.node, &hello.pop).as_ref() == Ok(&name)).then_some(hello.incarnation)
    };
    timeout(PROOF_TIMEOUT, ask).await.ok().flatten()
}

/// Between half of `pause` and all of it, so that nodes that lost each other together do not return together.
pub(super) fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    aws_lc_rs::rand::fill(&mut random).expect("the system gives random bytes");
    pause / 2 + pause.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}
