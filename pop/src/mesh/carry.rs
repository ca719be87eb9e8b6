//! Requests of clients that came to a node other than the one that has their transport: they go there over a connection of their own,
//! beside the link, with the same certificates and another protocol (ALPN).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream;

use super::counters::Refusal;
use super::identity::server_name;
use super::{Mesh, NodeName, PROOF_TIMEOUT, Shared};
use crate::serve::{self, BODY_LEN_MAX, Place};

/// What such a connection speaks.
pub(super) const PROTOCOL: &[u8] = b"pop-http/1";

/// Connections that this node answers for others: each is a client's.
pub(super) const CARRIED_MAX: usize = 4_096;

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

/// Why a request was not carried.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// It cannot be reached, or is not who it should be.
    #[error("the node that has this cannot be reached")]
    Unreachable,
    /// It runs a release that answers its own clients alone.
    #[error("the node that has this answers its own clients alone: ask it itself")]
    Unsupported,
    /// It went away before it answered.
    #[error("the node that has this did not answer")]
    Unanswered,
}

/// What a node answers carried requests with.
pub(super) struct Answers {
    router: Router,
    stop: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

impl Mesh {
    /// From now on requests that other nodes carry here are answered by `router`, until `stop` turns true.
    pub fn answer_carried(&self, router: Router, stop: watch::Receiver<bool>) {
        let router = router.layer(middleware::from_fn(unpack));
        // Said once, at the start.
        let _ = self.0.shared.answers.set(Answers { router, stop, places: Arc::new(Semaphore::new(CARRIED_MAX)) });
    }

    /// Carries a client's request to `there` and its answer back; after a change of protocol everything, both ways, to the end.
    ///
    /// # Errors
    ///
    /// [`CarryError`]; the client may try again.
    pub async fn carry(&self, there: &Elsewhere, mut request: Request) -> Result<Response, CarryError> {
        let shared = &self.0.shared;
        let stream = timeout(PROOF_TIMEOUT, connect(shared, there)).await.map_err(|_| CarryError::Unreachable)??;
        let (mut sender, connection) =
            http1::handshake::<_, Limited<Body>>(TokioIo::new(stream)).await.map_err(|_| CarryError::Unreachable)?;
        // It ends when the request is answered, or with what follows a change of protocol.
        shared.spawn(async move { drop(connection.with_upgrades().await) });
        let ours = request.extensions_mut().remove::<OnUpgrade>();
        let place = request.extensions().get::<Arc<Place>>().cloned();
        request.headers_mut().remove(CLIENT);
        let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(client)| client.to_string());
        if let Some(client) = client.and_then(|client| HeaderValue::try_from(client).ok()) {
            request.headers_mut().insert(CLIENT, client);
        }
        let request = request.map(|body| Limited::new(body, BODY_LEN_MAX));
        let mut response = sender.send_request(request).await.map_err(|_| CarryError::Unanswered)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(ours) = ours
        {
            let theirs = hyper::upgrade::on(&mut response);
            shared.spawn(async move {
                if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                    join(ours, theirs).await;
                }
                // The client's place among the connections of its address is taken as long as it talks.
                drop(place);
            });
        }
        Ok(response.map(Body::new))
    }
}

async fn connect(shared: &Shared, there: &Elsewhere) -> Result<ClientStream<TcpStream>, CarryError> {
    let stream = TcpStream::connect(there.address).await.map_err(|_| CarryError::Unreachable)?;
    stream.set_nodelay(true).map_err(|_| CarryError::Unreachable)?;
    let connector = TlsConnector::from(shared.identity().carrier());
    let stream = connector.connect(server_name(Some(&there.name)), stream).await.map_err(|_| CarryError::Unreachable)?;
    if stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
        return Err(CarryError::Unsupported);
    }
    Ok(stream)
}

async fn join(ours: Upgraded, theirs: Upgraded) {
    // Either end hanging up ends both; nobody is left to be told of an error.
    let _ = copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
}

/// Marks a carried request, and gives it the address of its client.
async fn unpack(mut request: Request, next: Next) -> Response {
    let client = request.headers_mut().remove(CLIENT);
    if let Some(client) = client.and_then(|client| client.to_str().ok()?.parse::<SocketAddr>().ok()) {
        request.extensions_mut().insert(ConnectInfo(client));
    }
    request.extensions_mut().insert(Carried);
    next.run(request).await
}

/// Answers what a node carries over this connection, as long as it does.
pub(super) async fn answer(shared: &Shared, stream: Box<TlsStream<TcpStream>>, remote: SocketAddr, name: &NodeName) {
    let Some(answers) = shared.answers.get() else { return };
    match Arc::clone(&answers.places).try_acquire_owned() {
        Ok(place) => serve::answer_one(stream, answers.router.clone(), place, answers.stop.clone()).await,
        Err(_) => shared.refuse(Refusal::Full, &remote, Some(name)),
    }
}
