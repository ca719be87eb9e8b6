//! RTP routes on a worker: sockets of their own, and a participant on them that needs neither ICE nor DTLS.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;

use pop_schemas::SessionId;
use pop_session::placement::Claim;
use pop_session::{Join, Refusal};
use tokio::sync::oneshot;

use super::room::RoomMessage;
use super::{COMMAND_RETRY, Node};

/// Where a route's packets come in and go out.
pub struct RouteSockets {
    /// RTP, and RTCP when it is multiplexed.
    pub rtp: UdpSocket,
    /// RTCP on the next port.
    pub rtcp: Option<UdpSocket>,
}

/// A route that is served.
#[derive(Debug)]
pub struct OpenRoute {
    session: SessionId,
    resource: Box<str>,
    worker: usize,
    sockets: Vec<u16>,
}

/// Why a route could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No worker has room for it, or the node is stopping.
    #[error("this node takes no more RTP routes: its workers are full, or it is stopping")]
    Full,
    /// The worker takes no more sockets.
    #[error("{0}")]
    Socket(io::Error),
    /// The session said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Node {
    /// Opens a route: `join` makes its participant from the indexes of the sockets on the worker.
    ///
    /// # Errors
    ///
    /// See [`RouteError`]; nothing of the route is left then.
    pub async fn open_route(
        &self,
        session: &SessionId,
        claim: Claim,
        sockets: RouteSockets,
        join: impl FnOnce(u16, Option<u16>) -> Join,
    ) -> Result<OpenRoute, RouteError> {
        let placement = self.place(session, claim).await.map_err(|_| RouteError::Full)?;
        let mut route = OpenRoute { session: session.clone(), resource: Box::default(), worker: placement.worker, sockets: Vec::new() };
        let indexes = self.add_sockets(&mut route, sockets).await;
        let joined = match indexes {
            Ok((rtp, rtcp)) => {
                let join = join(rtp, rtcp);
                route.resource = join.resource.clone();
                let (reply, answer) = oneshot::channel();
                let message = RoomMessage::Join { join: Box::new(join), dtls: None, slot: placement.slot, reply };
                match placement.room.send(message) {
                    Ok(()) => answer.await.map_err(|_| RouteError::Full).and_then(|answer| answer.map_err(RouteError::Refused)),
                    Err(_) => Err(RouteError::Full),
                }
            }
            Err(error) => Err(RouteError::Socket(error)),
        };
        match joined {
            Ok(()) => Ok(route),
            Err(error) => {
                self.remove_sockets(&route).await;
                Err(error)
            }
        }
    }

    /// Ends a route; its ports are free for others a worker's turn later.
    pub async fn close_route(&self, route: OpenRoute) {
        // A node that stops has ended it already.
        self.leave(&route.session, &route.resource).await;
        self.remove_sockets(&route).await;
    }

    async fn add_sockets(&self, route: &mut OpenRoute, sockets: RouteSockets) -> io::Result<(u16, Option<u16>)> {
        let rtp = self.add_socket(route, sockets.rtp).await?;
        Ok((
            rtp,
            match sockets.rtcp {
                Some(rtcp) => Some(self.add_socket(route, rtcp).await?),
                None => None,
            },
        ))
    }

    async fn add_socket(&self, route: &mut OpenRoute, socket: UdpSocket) -> io::Result<u16> {
        let worker = &self.shared.workers[route.worker];
        loop {
            match worker.add_socket(socket.try_clone()?) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::time::sleep(COMMAND_RETRY).await,
                added => {
                    let index = added?;
                    route.sockets.push(index);
                    return Ok(index);
                }
            }
        }
    }

    /// After the transport was closed: the worker does both in order.
    async fn remove_sockets(&self, route: &OpenRoute) {
        for index in &route.sockets {
            while let Err(error) = self.shared.workers[route.worker].remove_socket(*index) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "the route added this socket: {error}");
                tokio::time::sleep(COMMAND_RETRY).await;
            }
        }
    }
}
