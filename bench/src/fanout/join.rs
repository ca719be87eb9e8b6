//! One client's way in: WHIP or WHEP, ICE, DTLS. What a browser does, with the same steps on the wire.

use std::net::SocketAddr;
use std::time::Duration;

use pop::dtls::{Dtls, DtlsEvent, Fingerprint, Role};
use pop_proto::control::SrtpKeys;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::ice::Checks;
use crate::http;
use crate::sdp::{Answer, Media, Offer};

/// All of it takes a few milliseconds; a client that is not in by then is reported.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

/// First retransmission of a check; doubles (RFC 8445 section 14.3 starts at 500 ms, loopback needs less).
const CHECK_RETRY: Duration = Duration::from_millis(50);

/// Longest datagram before media flows, in bytes.
pub(crate) const DATAGRAM_LEN_MAX: usize = 2_048;

/// Who joins, and where.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    /// The WHIP or WHEP URL.
    pub(crate) url: String,
    /// Its bearer token.
    pub(crate) token: String,
    /// A publisher's SSRC.
    pub(crate) ssrc: Option<u32>,
    /// It offers RTX.
    pub(crate) rtx: bool,
}

/// A client that may send and receive media.
pub(crate) struct Joined {
    /// The server's media address.
    pub(crate) server: SocketAddr,
    /// To go on with.
    pub(crate) checks: Checks,
    /// What DTLS agreed on.
    pub(crate) keys: SrtpKeys,
    /// Where DELETE ends the stay.
    pub(crate) resource: String,
}

/// Joins with `socket`. The error is a sentence that says how far it came.
pub(crate) async fn join(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket) -> Result<Joined, String> {
    let url = ticket.url.clone();
    timeout(JOIN_TIMEOUT, join_steps(dtls, socket, ticket))
        .await
        .unwrap_or_else(|_| Err(format!("{url}: not connected after {JOIN_TIMEOUT:?}")))
}

async fn join_steps(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket) -> Result<Joined, String> {
    let socket = UdpSocket::from_std(socket).map_err(|e| format!("client socket: {e}"))?;
    let offer =
        Offer::new(dtls.fingerprint().attribute(), ticket.ssrc, usize::from(ticket.ssrc.is_none()), Media::Video).with_rtx(ticket.rtx);
    let (answer, resource) = signal(&ticket, offer.text(1)).await?;
    let mut checks = Checks::new(&offer.ufrag, (&answer.ufrag, &answer.password));
    check_connectivity(&socket, &answer, &mut checks).await?;
    let keys = shake_hands(&dtls, &socket, &answer, |_| {}).await?;
    Ok(Joined { server: answer.candidate, checks, keys, resource })
}

/// POST of the offer: the answer, and where DELETE goes.
async fn signal(ticket: &Ticket, offer: String) -> Result<(Answer, String), String> {
    let (url, authorization) = (ticket.url.clone(), format!("Bearer {}", ticket.token));
    let response = tokio::task::spawn_blocking(move || {
        http::request("POST", &url, &[("Content-Type", "application/sdp"), ("Authorization", &authorization)], &offer)
    })
    .await
    .map_err(|e| e.to_string())??;
    if response.status != 201 {
        let retry = response.header("retry-after").map_or(String::new(), |after| format!(" (Retry-After: {after})"));
        return Err(format!("{}: the server refused with {}{retry}: {}", ticket.url, response.status, response.body.trim()));
    }
    let location = response.header("location").ok_or_else(|| format!("{}: the answer has no Location", ticket.url))?;
    let origin = ticket.url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    let resource = if location.starts_with('/') { format!("{origin}{location}") } else { location.to_owned() };
    Ok((Answer::parse(&response.body).map_err(|e| format!("{}: {e}", ticket.url))?, resource))
}

/// Sends checks until one is answered.
pub(crate) async fn check_connectivity(socket: &UdpSocket, answer: &Answer, checks: &mut Checks) -> Result<(), String> {
    let mut retry = CHECK_RETRY;
    let mut buffer = [0; DATAGRAM_LEN_MAX];
    // One request, sent again (RFC 8489 section 6.2.1): the answer to the first is good, however far away it comes from.
    let mut request = [0; 256];
    let len = checks.write_check(&mut request);
    loop {
        socket.send_to(&request[..len], answer.candidate).await.map_err(|e| format!("{}: {e}", answer.candidate))?;
        let pause = sleep(retry);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    // An ICMP error of an earlier send is no reason to give up: the next check may pass.
                    if let Ok((len, from)) = received
                        && from == answer.candidate
                        && checks.read_answer(&buffer[..len]).is_some()
                    {
                        return Ok(());
                    }
                }
                () = &mut pause => break,
            }
        }
        retry *= 2;
    }
}

/// The association ends with this function: after the keys it has nothing to say, and its goodbye has no way out.
/// `early` gets what is not DTLS: the first media may overtake the keys.
pub(crate) async fn shake_hands(
    dtls: &Dtls,
    socket: &UdpSocket,
    answer: &Answer,
    mut early: impl FnMut(&[u8]),
) -> Result<SrtpKeys, String> {
    let server = answer.candidate;
    let expected: Fingerprint = answer.fingerprint.parse().map_err(|e| format!("the answer: {e}"))?;
    let role = if answer.server_is_active { Role::Server } else { Role::Client };
    let (peer, mut events) = dtls.open(role, vec![expected]).map_err(|e| format!("DTLS with {server}: {e}"))?;
    peer.start();
    let mut buffer = [0; DATAGRAM_LEN_MAX];
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(DtlsEvent::Send(datagram)) => {
                    socket.send_to(&datagram, server).await.map_err(|e| format!("{server}: {e}"))?;
                }
                Some(DtlsEvent::Established { keys, .. }) => return Ok(*keys),
                // Data of the application can only follow the keys.
                Some(DtlsEvent::Data(_)) => {}
                Some(DtlsEvent::Failed(reason)) => return Err(format!("DTLS with {server}: {reason}")),
                Some(DtlsEvent::Closed) | None => return Err(format!("DTLS with {server} ended without keys")),
            },
            received = socket.recv_from(&mut buffer) => {
                if let Ok((len, from)) = received
                    && from == server
                {
                    match buffer[..len] {
                        // A datagram that the gate drops is sent again by the other side.
                        [20..=63, ..] => drop(peer.deliver(&buffer[..len])),
                        _ => early(&buffer[..len]),
                    }
                }
            }
        }
    }
}
