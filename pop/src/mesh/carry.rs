//! Requests of clients that came to a node other than the one that has their transport: they go there over a connection of their own,
//! beside the link, with the same certificates and another protocol (ALPN).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use pop_schemas::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy, split};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream;

use super::counters::Carry;
use super::frames::Frames;
use super::identity::server_name;
use super::revoked::CertificateId;
use super::{Mesh, NodeName, PROOF_TIMEOUT, Shared};
use crate::serve::{self, Place};

/// What such a connection speaks.
pub(super) const PROTOCOL: &[u8] = b"pop-http/1";

/// Connections that this node answers for others: each is a client's.
pub const CARRIED_MAX: usize = 4_096;

/// Handshakes with one node at once: it bears 16 of one address that have not proved themselves, and one may be the link's.
const HANDSHAKES_MAX: usize = 8;

/// Longest answer that is no change of protocol, in bytes.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// Longest that a node may take for an answer, handshake apart.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A node says something on every socket more often than this; one that does not is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// How long what is left may take when one end has hung up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who the client is, for the node that answers. What a client itself sends under this name is taken away.
const CLIENT: HeaderName = HeaderName::from_static("pop-client");

/// On a request that another node carried here: it goes no further.
#[derive(Clone, Copy, Debug)]
pub struct Carried;

/// A node that has what a client asks for.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// Whose certificate it must show.
    pub name: NodeName,
    /// Where it takes links.
    pub address: SocketAddr,
}

/// What connects this node's clients with another node.
pub(super) struct Way {
    /// Turns of those that connect.
    turns: Semaphore,
    /// Changes when the node is lost.
    lost: watch::Sender<()>,
}

impl Way {
    /// What goes there ends.
    pub(super) fn lose(&self) {
        self.lost.send_replace(());
    }
}

/// Why a request was not carried.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// It cannot be reached, or is not who it should be.
    #[error("the node that has this cannot be reached: try again in 1 s")]
    Unreachable,
    /// It runs a release that answers its own clients alone.
    #[error("the node that has this answers its own clients alone: ask it itself")]
    Unsupported,
    /// It went away before it answered, or answers as many as it may.
    #[error("the node that has this did not answer: try again in 1 s")]
    Unanswered,
}

impl CarryError {
    fn counted_as(&self) -> Carry {
        match self {
            CarryError::Unreachable => Carry::Unreachable,
            CarryError::Unsupported => Carry::Unsupported,
            CarryError::Unanswered => Carry::Unanswered,
        }
    }
}

/// What a node answers carried requests with.
pub(super) struct Answers {
    router: Router,
    stop: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

/// Carried requests are answered as long as this lives.
#[must_use]
pub struct Answering(Arc<Shared>);

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.answers() = None;
    }
}

impl Mesh {
    /// Requests that other nodes carry here are answered by `router`, until `stop` turns true or what this returns is dropped.
    pub fn answer_carried(&self, router: Router, stop: watch::Receiver<bool>) -> Answering {
        let router = router.layer(middleware::from_fn(unpack));
        let shared = &self.0.shared;
        *shared.answers() = Some(Answers { router, stop, places: Arc::new(Semaphore::new(CARRIED_MAX)) });
        Answering(Arc::clone(shared))
    }

    /// Carries a client's request to `there` and its answer back; after a change of protocol everything, both ways, to the end. Where it is
    /// the other node that ends, unasked, a client with a WebSocket is told at once that its socket ends, and comes back.
    ///
    /// # Errors
    ///
    /// [`CarryError`]; the client may try again.
    pub async fn carry(&self, there: &Elsewhere, request: Request<Bytes>) -> Result<Response, CarryError> {
        let shared = &self.0.shared;
        let mut lost = shared.way(there.name.id()).lost.subscribe();
        let outcome = tokio::select! {
            outcome = carry(shared, there, request) => outcome,
            _ = lost.changed() => Err(CarryError::Unreachable),
        };
        self.0.shared.counters.carry(outcome.as_ref().map_or_else(CarryError::counted_as, |_| Carry::Carried));
        outcome
    }

    /// `node` is dead: what it was asked for clients is asked no longer, and whose sockets go there hear of it.
    pub fn lose(&self, node: NodeId) {
        if let Some(way) = self.0.shared.table().ways.get(&node) {
            way.lose();
        }
    }
}

async fn carry(shared: &Arc<Shared>, there: &Elsewhere, mut request: Request<Bytes>) -> Result<Response, CarryError> {
    let ours = request.extensions_mut().remove::<OnUpgrade>();
    let place = request.extensions().get::<Arc<Place>>().cloned();
    request.headers_mut().remove(CLIENT);
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(client)| client.to_string());
    if let Some(client) = client.and_then(|client| HeaderValue::try_from(client).ok()) {
        request.headers_mut().insert(CLIENT, client);
    }
    let lost = shared.way(there.name.id()).lost.subscribe();
    let stream = connect(shared, there).await?;
    let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| CarryError::Unreachable)?;
    // It ends when the request is answered, or hands over what follows a change of protocol.
    shared.spawn(async move { drop(connection.with_upgrades().await) });
    let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request.map(Full::new))).await;
    let mut response = answer.map_err(|_| CarryError::Unanswered)?.map_err(|_| CarryError::Unanswered)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (ours, theirs) = (ours.ok_or(CarryError::Unanswered)?, hyper::upgrade::on(&mut response));
        let (stop, shared_too) = (shared.answers().as_ref().map(|answers| answers.stop.clone()), Arc::clone(shared));
        shared.spawn(async move {
            if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                shared_too.counters.joined(1);
                join(ours, theirs, stop, lost).await;
                shared_too.counters.joined(-1);
            }
            // The client's place among the connections of its address is taken as long as it talks.
            drop(place);
        });
        return Ok(response.map(Body::new));
    }
    let (head, body) = response.into_parts();
    let body = to_bytes(Body::new(body), ANSWER_LEN_MAX).await.map_err(|_| CarryError::Unanswered)?;
    Ok(Response::from_parts(head, Body::from(body)))
}

async fn connect(shared: &Shared, there: &Elsewhere) -> Result<ClientStream<TcpStream>, CarryError> {
    let way = shared.way(there.name.id());
    let _turn = way.turns.acquire().await.map_err(|_| CarryError::Unreachable)?;
    let connecting = async {
        let stream = TcpStream::connect(there.address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(shared.identity().carrier()).connect(server_name(Some(&there.name)), stream).await
    };
    let connected = timeout(PROOF_TIMEOUT, connecting).await.map_err(|_| CarryError::Unreachable)?;
    let stream = connected.map_err(|_| CarryError::Unreachable)?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    shared.vouches(&there.name, chain).map_err(|_| CarryError::Unreachable)?;
    if stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
        return Err(CarryError::Unsupported);
    }
    Ok(stream)
}

/// Carries both ways until either end hangs up, the node says nothing any longer or is lost, or this one stops.
async fn join(ours: Upgraded, theirs: Upgraded, stop: Option<watch::Receiver<bool>>, mut lost: watch::Receiver<()>) {
    let (mut ours_in, mut ours_out) = split(TokioIo::new(ours));
    let (mut theirs_in, mut theirs_out) = split(TokioIo::new(theirs));
    let stopped = async {
        match stop {
            Some(mut stop) => drop(stop.wait_for(|stopped| *stopped).await),
            None => std::future::pending().await,
        }
    };
    let mut frames = Frames::default();
    // Nobody is left to be told of an error.
    let has_hung_up = tokio::select! {
        copied = copy(&mut ours_in, &mut theirs_out) => copied.is_ok(),
        () = copy_lively(&mut theirs_in, &mut ours_out, &mut frames) => false,
        _ = lost.changed() => false,
        () = stopped => false,
    };
    let ending = async {
        if let Some(end) = frames.end().filter(|_| !has_hung_up) {
            let _ = ours_out.write_all(&end).await;
        }
        tokio::join!(theirs_out.shutdown(), ours_out.shutdown())
    };
    let _ = timeout(CLOSE_TIMEOUT, ending).await;
}

async fn copy_lively(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), frames: &mut Frames) {
    let mut bytes = vec![0; 8 << 10];
    while let Ok(Ok(len @ 1..)) = timeout(SILENCE_MAX, from.read(&mut bytes)).await {
        // Whoever is cut off in between has an end of a frame to wait for that does not come.
        frames.begin();
        if to.write_all(&bytes[..len]).await.is_err() || to.flush().await.is_err() {
            return;
        }
        frames.pass(&bytes[..len]);
    }
}

/// Marks a carried request, and gives it the address of its client.
async fn unpack(mut request: Request<Body>, next: Next) -> Response {
    let client = request.headers_mut().remove(CLIENT);
    if let Some(client) = client.and_then(|client| client.to_str().ok()?.parse::<SocketAddr>().ok()) {
        request.extensions_mut().insert(ConnectInfo(client));
    }
    request.extensions_mut().insert(Carried);
    next.run(request).await
}

/// A node's connection, which ends when its certificate is taken back: also what hyper hands over after a change of protocol.
pub(super) struct Held {
    stream: TlsStream<TcpStream>,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl Held {
    pub(super) fn new(shared: &Arc<Shared>, stream: TlsStream<TcpStream>, certificate: CertificateId) -> Held {
        let (mut listed, shared) = (shared.listed.subscribe(), Arc::clone(shared));
        let over = async move {
            while !shared.revoked().has(&certificate) {
                if listed.changed().await.is_err() {
                    return;
                }
            }
        };
        Held { stream, over: Box::pin(over), is_over: false }
    }

    /// Wakes the task that reads when it is over.
    fn look(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over || self.over.as_mut().poll(context).is_ready();
        if self.is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Answers what a node carries over this connection, as long as it does.
pub(super) async fn answer(shared: &Shared, stream: Box<Held>) {
    let ready = shared.answers().as_ref().map(|answers| (answers.router.clone(), answers.stop.clone(), Arc::clone(&answers.places)));
    let Some((router, stop, places)) = ready else { return };
    match places.try_acquire_owned() {
        Ok(place) => {
            shared.counters.carry(Carry::Answered);
            serve::answer_one(stream, router, place, stop).await;
        }
        Err(_) => shared.counters.carry(Carry::Full),
    }
}

impl Shared {
    fn way(&self, node: NodeId) -> Arc<Way> {
        let way = || Arc::new(Way { turns: Semaphore::new(HANDSHAKES_MAX), lost: watch::Sender::new(()) });
        Arc::clone(self.table().ways.entry(node).or_insert_with(way))
    }
}
