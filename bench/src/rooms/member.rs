//! One member: the room protocol over a WebSocket, with its offer in the join request, then ICE and DTLS.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use pop::dtls::Dtls;
use pop_proto::control::SrtpKeys;
use pop_proto::srtp::SrtpReceiver;
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use prost::Message as _;
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as WebSocketFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::fanout::ice::Checks;
use crate::fanout::join::{DATAGRAM_LEN_MAX, JOIN_TIMEOUT, check_connectivity, shake_hands};
use crate::fanout::packet::starts_keyframe;
use crate::sdp::{Answer, Media, Offer};

/// What a client says that it speaks: livekit-client 2.23.
const PROTOCOL: i32 = 17;

/// Who joins, and where.
pub(crate) struct Ticket {
    /// Its place among the members.
    pub(crate) index: usize,
    /// Base URL of signalling, `http://..`.
    pub(crate) http: String,
    /// When its wave began.
    pub(crate) wave: Instant,
    /// Its token.
    pub(crate) token: String,
    /// A publisher's SSRC.
    pub(crate) ssrc: Option<u32>,
    /// Sections for what others publish.
    pub(crate) receives: usize,
    /// What all of them publish.
    pub(crate) media: Media,
    /// It waits for the first keyframe packet: somebody sends.
    pub(crate) awaits_keyframe: bool,
}

/// How long after the join began, but for `began`.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// The join began so much later than its wave.
    pub(crate) began: Duration,
    /// The JoinResponse came.
    pub(crate) welcome: Duration,
    /// SRTP has its keys.
    pub(crate) keys: Duration,
    /// The first packet of a keyframe came and was authentic.
    pub(crate) keyframe: Option<Duration>,
}

/// A member whose media may flow.
pub(crate) struct Member {
    /// Its place among the members.
    pub(crate) index: usize,
    /// Its socket.
    pub(crate) socket: std::net::UdpSocket,
    /// The server's media address.
    pub(crate) server: SocketAddr,
    /// To go on with.
    pub(crate) checks: Checks,
    /// What DTLS agreed on.
    pub(crate) keys: SrtpKeys,
    /// A publisher's SSRC.
    pub(crate) ssrc: Option<u32>,
    /// SSRCs that it gets.
    pub(crate) sources: Vec<u32>,
    /// How long all that took.
    pub(crate) times: Times,
    /// Its signalling.
    pub(crate) seat: Seat,
}

/// A member's socket of signalling, which a task reads; dropped, the member leaves.
pub(crate) struct Seat(mpsc::UnboundedSender<oneshot::Sender<Result<Vec<u32>, String>>>);

impl Seat {
    /// Offers again and takes the SSRCs of the answer: of all tracks that there are by now.
    pub(crate) async fn offer_again(&self) -> Result<Vec<u32>, String> {
        let (reply, answer) = oneshot::channel();
        let gone = "the server ended a member's signalling";
        self.0.send(reply).map_err(|_| gone.to_owned())?;
        match timeout(JOIN_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|_| gone.to_owned())?,
            Err(_) => Err(format!("a second offer has no answer after {JOIN_TIMEOUT:?}")),
        }
    }

    /// The server ended it.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.is_closed()
    }
}

/// Joins. `permit` is given back with the keys: what comes then waits for others. The error is a sentence.
pub(crate) async fn join(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket, permit: OwnedSemaphorePermit) -> Result<Member, String> {
    let index = ticket.index;
    timeout(JOIN_TIMEOUT, join_steps(dtls, socket, ticket, permit))
        .await
        .unwrap_or_else(|_| Err(format!("not there after {JOIN_TIMEOUT:?}")))
        .map_err(|sentence| format!("member {index}: {sentence}"))
}

async fn join_steps(dtls: Dtls, socket: std::net::UdpSocket, ticket: Ticket, permit: OwnedSemaphorePermit) -> Result<Member, String> {
    let start = Instant::now();
    let media = socket.try_clone().and_then(UdpSocket::from_std).map_err(|e| format!("client socket: {e}"))?;
    let offer = Offer::new(dtls.fingerprint().attribute(), ticket.ssrc, ticket.receives, ticket.media);
    let (mut signal, told) = Signal::open(&ticket.http, &ticket.token, &join_request(ticket.ssrc, ticket.media, &offer)).await?;
    match told {
        Told::Join(_) => {}
        Told::Leave(leave) => return Err(format!("the server refused: {:?}", leave.reason())),
        _ => return Err("the server's first message is no JoinResponse".to_owned()),
    }
    let welcome = start.elapsed();
    let answer = signal.read_answer().await?;
    let mut checks = Checks::new(&offer.ufrag, (&answer.ufrag, &answer.password));
    check_connectivity(&media, &answer, &mut checks).await?;
    let mut early = Vec::new();
    let keys = shake_hands(&dtls, &media, &answer, |datagram| early.push(datagram.to_vec())).await?;
    let mut times = Times { began: start - ticket.wave, welcome, keys: start.elapsed(), keyframe: None };
    drop(permit);
    let (asks, asked) = mpsc::unbounded_channel();
    tokio::spawn(signal.stay(offer, asked));
    if ticket.awaits_keyframe {
        wait_for_keyframe(&media, &keys, early).await?;
        times.keyframe = Some(start.elapsed());
    }
    let Answer { candidate: server, sources, .. } = answer;
    Ok(Member { index: ticket.index, socket, server, checks, keys, ssrc: ticket.ssrc, sources, times, seat: Seat(asks) })
}

/// Reads until the first packet of a keyframe comes and is authentic; `early` came before.
pub(crate) async fn wait_for_keyframe(media: &UdpSocket, keys: &SrtpKeys, early: Vec<Vec<u8>>) -> Result<(), String> {
    let mut receiver = SrtpReceiver::new(keys.profile, &keys.remote);
    if early.into_iter().any(|mut datagram| is_keyframe(&mut receiver, &mut datagram)) {
        return Ok(());
    }
    let mut buffer = [0; DATAGRAM_LEN_MAX];
    loop {
        let len = media.recv(&mut buffer).await.map_err(|e| format!("client socket: {e}"))?;
        if is_keyframe(&mut receiver, &mut buffer[..len]) {
            return Ok(());
        }
    }
}

fn is_keyframe(receiver: &mut SrtpReceiver, datagram: &mut [u8]) -> bool {
    if demux(datagram) != Ok(Protocol::Rtp) {
        return false;
    }
    let Ok(header_len) = RtpView::parse(datagram).map(|view| view.header_len()) else { return false };
    let Ok(opened) = receiver.unprotect_rtp(datagram, header_len) else { return false };
    datagram.get(header_len..opened.len).is_some_and(starts_keyframe)
}

/// A socket of signalling.
pub(crate) struct Signal(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Signal {
    /// Comes with `request`, which may hold the first offer and the announcement of a publisher's track; to the server's first message.
    pub(crate) async fn open(http: &str, token: &str, request: &proto::JoinRequest) -> Result<(Signal, Told), String> {
        let wrapped = proto::WrappedJoinRequest { join_request: request.encode_to_vec(), ..Default::default() };
        let base = http.replacen("http://", "ws://", 1);
        let text = URL_SAFE_NO_PAD.encode(wrapped.encode_to_vec());
        // Without delay, as browsers do: else the second of two messages waits for the first one's acknowledgement.
        let (socket, _) = connect_async_with_config(format!("{base}/rtc/v1?access_token={token}&join_request={text}"), None, true)
            .await
            .map_err(|e| format!("{base}/rtc/v1: {e}"))?;
        let mut signal = Signal(socket);
        let told = signal.next().await?;
        Ok((signal, told))
    }

    async fn read_answer(&mut self) -> Result<Answer, String> {
        Answer::parse(&self.read_description().await?.sdp)
    }

    /// The next answer.
    pub(crate) async fn read_description(&mut self) -> Result<proto::SessionDescription, String> {
        loop {
            match self.next().await? {
                Told::Answer(answer) => return Ok(answer),
                Told::Leave(leave) => return Err(format!("the server refused the offer: {:?}", leave.reason())),
                _ => {}
            }
        }
    }

    /// The next message. The error is a sentence: there is none any more.
    pub(crate) async fn next(&mut self) -> Result<Told, String> {
        loop {
            match self.0.next().await {
                Some(Ok(WebSocketFrame::Binary(bytes))) => {
                    let response = proto::SignalResponse::decode(&*bytes).map_err(|e| format!("the server's message: {e}"))?;
                    if let Some(told) = response.message {
                        return Ok(told);
                    }
                }
                Some(Ok(WebSocketFrame::Close(_))) | None => return Err("the server ended signalling".to_owned()),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(format!("signalling: {e}")),
            }
        }
    }

    /// Reads what the room tells, so that pings are answered, and offers again when it is asked to. What is told is not looked at.
    async fn stay(mut self, offer: Offer, mut asked: mpsc::UnboundedReceiver<oneshot::Sender<Result<Vec<u32>, String>>>) {
        let mut version = 1;
        loop {
            tokio::select! {
                ask = asked.recv() => {
                    let Some(reply) = ask else { break };
                    version += 1;
                    let _ = reply.send(self.offer_again(&offer, version).await);
                }
                frame = self.0.next() => match frame {
                    Some(Ok(WebSocketFrame::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
            }
        }
        let _ = self.0.close(None).await;
    }

    async fn offer_again(&mut self, offer: &Offer, version: u32) -> Result<Vec<u32>, String> {
        self.say(Say::Offer(describe(offer, version))).await?;
        Ok(self.read_answer().await?.sources)
    }

    /// Says something to the server.
    pub(crate) async fn say(&mut self, message: Say) -> Result<(), String> {
        let request = proto::SignalRequest { message: Some(message) };
        let frame = WebSocketFrame::Binary(request.encode_to_vec().into());
        self.0.send(frame).await.map_err(|e| format!("signalling: {e}"))
    }
}

/// What is said of an offer.
pub(crate) fn describe(offer: &Offer, version: u32) -> proto::SessionDescription {
    proto::SessionDescription { r#type: "offer".to_owned(), sdp: offer.text(version), id: version, ..Default::default() }
}

/// What a member comes with.
pub(crate) fn join_request(ssrc: Option<u32>, media: Media, offer: &Offer) -> proto::JoinRequest {
    let named = proto::AddTrackRequest { cid: media.name().to_owned(), name: media.name().to_owned(), ..Default::default() };
    let track = match media {
        Media::Video => proto::AddTrackRequest {
            r#type: proto::TrackType::Video as i32,
            source: proto::TrackSource::Camera as i32,
            width: 640,
            height: 360,
            ..named
        },
        Media::Audio => {
            proto::AddTrackRequest { r#type: proto::TrackType::Audio as i32, source: proto::TrackSource::Microphone as i32, ..named }
        }
    };
    proto::JoinRequest {
        add_track_requests: ssrc.map(|_| track).into_iter().collect(),
        publisher_offer: Some(describe(offer, 1)),
        ..greeting()
    }
}

/// The same of one that has no media yet.
pub(crate) fn greeting() -> proto::JoinRequest {
    proto::JoinRequest {
        client_info: Some(proto::ClientInfo { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() }),
        connection_settings: Some(proto::ConnectionSettings { auto_subscribe: true, ..Default::default() }),
        ..Default::default()
    }
}
