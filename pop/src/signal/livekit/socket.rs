//! One client's socket: messages in, notices out, one task.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, close_code};
use livekit_protocol as proto;
use pop_session::member::{Enter, LeaveAction, LeaveReason, MemberRequest, Notice};
use pop_session::token::{self, Access, TokenError};
use prost::Message as _;
use proto::signal_request::Message as In;
use proto::signal_response::Message as Out;
use tokio::time::{Instant, MissedTickBehavior};

use super::counters::{Refused, SignalCounters};
use super::join::{Arrival, Joined, room_of};
use super::offer::{OfferError, Offers, StreamNames};
use super::request::{self, Said, Simulation};
use super::response::{About, OwnTracks, PING_INTERVAL_S, PING_TIMEOUT_S, kind_of, leave};
use super::wire::{is_json_within_bounds, is_within_bounds};
use crate::config::{DtlsRole, IceServer};
use crate::logging::AUDIT;
use crate::node::{EnterError, Node, Seat};
use crate::sctp::KeptChannel;
use crate::serve::Place;
use crate::token::{unix_now_ms, unix_now_s};

/// Messages that a client may send per second, in the mean; a client that shows fifty tiles changes the settings of each when its
/// window changes.
const MESSAGES_PER_S: u32 = 50;

/// Messages that it may save up.
const MESSAGES_BURST: u32 = 500;

/// An offer costs as much as so many other messages: it is parsed twice and answered.
const OFFER_COST: u32 = 10;

/// How often a client gets a newer token, and how long that one holds at least: LiveKit's servers do the same.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
const REFRESH_TTL_S: u64 = 10 * 60;

/// How long a client that was told of the end may take to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What all sockets share.
pub(super) struct Context {
    pub(super) node: Node,
    pub(super) dtls_role: DtlsRole,
    pub(super) ice_servers: Vec<IceServer>,
}

impl Context {
    pub(super) fn counters(&self) -> &SignalCounters {
        self.node.signal_counters()
    }

    fn about(&self) -> About<'_> {
        About { node: self.node.name(), ice_servers: &self.ice_servers }
    }
}

/// Serves a client from its first notice to the end of its socket. `place` is its place among the listener's connections.
pub(super) async fn serve(context: Arc<Context>, mut frames: WebSocket, access: Access, joined: Joined, place: Option<Arc<Place>>) {
    let _open = context.counters().open();
    let Joined { arrival, offer, tracks, sync, streams, redoes_dtls, token } = joined;
    let seat = match take_seat(&context, &access, arrival, redoes_dtls).await {
        Ok(seat) => seat,
        Err((refused, reason, action)) => {
            context.counters().refuse(refused);
            let mut socket = Writer { context: &context, as_text: false };
            let _ = socket.send(&mut frames, leave(reason, action)).await;
            return close(frames, close_code::NORMAL).await;
        }
    };
    let mut socket = Socket {
        writer: Writer { context: &context, as_text: false },
        context: &context,
        seat,
        access,
        token,
        offers: Offers::default(),
        streams,
        own: OwnTracks::default(),
        budget: Budget::new(Instant::now()),
    };
    let mut turn = socket.begin(&mut frames, sync, tracks, offer).await;
    if turn == Turn::On {
        turn = socket.run(&mut frames).await;
    }
    // The room hears of the end before the client does.
    drop(socket);
    close(frames, if turn == Turn::Resume { close_code::RESTART } else { close_code::NORMAL }).await;
    drop(place);
}

async fn take_seat(
    context: &Context,
    access: &Access,
    arrival: Arrival,
    redoes_dtls: bool,
) -> Result<Seat, (Refused, LeaveReason, LeaveAction)> {
    // The token was checked for a room before.
    let Some(room) = room_of(access) else { return Err((Refused::Token, LeaveReason::JoinFailure, LeaveAction::Disconnect)) };
    context.node.note_key(&room, access);
    let seat = match arrival {
        Arrival::Enter(enter) => enter_room(context, &room, *enter).await,
        Arrival::Resume(resume) => {
            let (refused, reason, action) = (Refused::Resume, LeaveReason::StateMismatch, LeaveAction::Reconnect);
            let (participant, identity) = (resume.participant, resume.identity.clone());
            context.node.resume(&room, resume, redoes_dtls).await.map_err(|why| {
                tracing::info!(target: AUDIT, %room, %identity, %participant, %why, "resume refused");
                (refused, reason, action)
            })
        }
        Arrival::Stranger => {
            tracing::info!(target: AUDIT, %room, identity = %access.identity(), "resume refused: it names nobody");
            Err((Refused::Resume, LeaveReason::StateMismatch, LeaveAction::Reconnect))
        }
    }?;
    context.node.note_key(&room, access);
    Ok(seat)
}

async fn enter_room(context: &Context, room: &pop_schemas::SessionId, enter: Enter) -> Result<Seat, (Refused, LeaveReason, LeaveAction)> {
    context.node.enter(room, enter).await.map_err(|error| match error {
        EnterError::Full | EnterError::Refused(_) => (Refused::Full, LeaveReason::JoinFailure, LeaveAction::Disconnect),
        EnterError::Stopping => (Refused::Full, LeaveReason::ServerShutdown, LeaveAction::Disconnect),
    })
}

/// The end, said in the WebSocket's own words. What the client is still sending is read and dropped until its own end comes: a
/// connection that is closed with bytes unread is reset, and then the client may never see what it was told.
async fn close(mut frames: WebSocket, code: u16) {
    let end = Frame::Close(Some(CloseFrame { code, reason: "".into() }));
    let closing = async {
        if frames.send(end).await.is_ok() {
            while let Some(Ok(_)) = frames.recv().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

/// What the end of a turn means.
#[derive(PartialEq, Eq)]
enum Turn {
    On,
    End,
    /// The socket ends, and its client is to come back with another.
    Resume,
}

struct Socket<'c> {
    context: &'c Context,
    writer: Writer<'c>,
    seat: Seat,
    access: Access,
    /// The last one that it got, or came by: of the same key.
    token: String,
    offers: Offers,
    streams: StreamNames,
    own: OwnTracks,
    budget: Budget,
}

impl Socket<'_> {
    /// Tells the client that it is in, and then hands over what it brought: what that leads to comes second.
    async fn begin(
        &mut self,
        frames: &mut WebSocket,
        sync: Option<proto::SyncState>,
        tracks: Vec<proto::AddTrackRequest>,
        offer: Option<proto::SessionDescription>,
    ) -> Turn {
        let Some(first) = self.seat.next().await else { return Turn::End };
        let turn = self.tell(frames, first).await;
        if turn != Turn::On {
            return turn;
        }
        let sync = sync.map(|state| request::sync(&state));
        for said in sync.into_iter().chain(tracks.into_iter().map(request::add_track)).chain(offer.map(Said::Offer)) {
            let turn = self.obey(frames, said).await;
            if turn != Turn::On {
                return turn;
            }
        }
        Turn::On
    }

    async fn run(&mut self, frames: &mut WebSocket) -> Turn {
        let now = Instant::now();
        let mut pings = tokio::time::interval(Duration::from_secs(PING_INTERVAL_S.into()));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = tokio::time::interval_at(now + REFRESH_INTERVAL, REFRESH_INTERVAL);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = now;
        let timeout = Duration::from_secs(PING_TIMEOUT_S.into());
        loop {
            // Who has said too much is read again when it is paid for, and who has offers open when they are answered.
            let readable = self.budget.readable_at();
            let ready = tokio::time::sleep_until(readable);
            let may_read = !self.offers.is_full();
            let turn = tokio::select! {
                notice = self.seat.next() => match notice {
                    Some(notice) => self.tell(frames, notice).await,
                    None => Turn::End,
                },
                frame = async { ready.await; frames.recv().await }, if may_read => {
                    heard = Instant::now();
                    match frame {
                        Some(Ok(frame)) => self.hear(frames, frame).await,
                        // A frame that breaks the WebSocket protocol, or one that is too long.
                        Some(Err(_)) => { self.context.counters().refuse(Refused::Message); Turn::End }
                        None => Turn::End,
                    }
                },
                _ = pings.tick() => {
                    if Instant::now().duration_since(heard.max(readable)) >= timeout {
                        self.context.counters().refuse(Refused::Silent);
                        Turn::End
                    } else if frames.send(Frame::Ping(Default::default())).await.is_ok() { Turn::On } else { Turn::End }
                },
                _ = refresh.tick() => self.refresh_token(frames).await,
            };
            if turn != Turn::On {
                return turn;
            }
        }
    }

    async fn hear(&mut self, frames: &mut WebSocket, frame: Frame) -> Turn {
        let read = match frame {
            Frame::Binary(bytes) => read_binary(&bytes),
            Frame::Text(text) => {
                self.writer.as_text = true;
                read_text(&text)
            }
            Frame::Ping(_) | Frame::Pong(_) => {
                self.charge(1);
                return Turn::On;
            }
            Frame::Close(_) => return Turn::End,
        };
        let Some(message) = read.and_then(|request| request.message) else {
            self.charge(1);
            self.context.counters().refuse(Refused::Message);
            return Turn::On;
        };
        self.charge(if matches!(message, In::Offer(_)) { OFFER_COST } else { 1 });
        self.context.counters().take(request::kind_of(&message));
        self.obey(frames, request::read(message)).await
    }

    fn charge(&mut self, cost: u32) {
        if self.budget.charge(Instant::now(), cost) {
            self.context.counters().refuse(Refused::Flood);
        }
    }

    async fn obey(&mut self, frames: &mut WebSocket, said: Said) -> Turn {
        match said {
            Said::Request(request) => {
                // A client that leaves is told nothing more.
                let leaves = matches!(request, MemberRequest::Leave);
                self.seat.say(request).await;
                if leaves { Turn::End } else { Turn::On }
            }
            Said::Sync(sync, channels) => {
                self.note_channels(channels);
                self.seat.say(MemberRequest::Sync(sync)).await;
                Turn::On
            }
            Said::Offer(offer) => self.offer(frames, offer).await,
            Said::Ping { timestamp_ms, newer } => {
                let pong = proto::Pong { last_ping_timestamp: timestamp_ms, timestamp: unix_now_ms() as i64 };
                let answer = if newer { Out::PongResp(pong) } else { Out::Pong(unix_now_ms() as i64) };
                self.writer.send(frames, answer).await
            }
            Said::Simulate(simulation) => self.simulate(frames, simulation).await,
            Said::Nothing => Turn::On,
            Said::Refused(reason) => {
                self.context.counters().refuse(reason);
                Turn::On
            }
        }
    }

    async fn offer(&mut self, frames: &mut WebSocket, offer: proto::SessionDescription) -> Turn {
        let Err(error) = self.offers.take(self.context, &self.seat, offer).await else { return Turn::On };
        self.context.counters().refuse(Refused::Offer);
        match error {
            OfferError::Sdp(error) => tracing::debug!(participant = %self.seat.participant(), %error, "an offer is refused"),
            OfferError::Certificate => tracing::debug!(participant = %self.seat.participant(), "an offer brings another certificate"),
        }
        self.begin_anew(frames).await
    }

    /// The first transport here goes on with the channels that its client has from the one before, on another node.
    fn note_channels(&self, channels: Vec<KeptChannel>) {
        let mut line = self.seat.line();
        if line.is_adopted && line.transport.is_none() {
            line.channels = channels;
        }
    }

    /// Media cannot go on with what the client has: it is told to come again with everything new.
    async fn begin_anew(&mut self, frames: &mut WebSocket) -> Turn {
        self.dismiss(frames, LeaveReason::MediaFailure, LeaveAction::Reconnect).await
    }

    /// Its member leaves the room, and the client hears why and what to do.
    async fn dismiss(&mut self, frames: &mut WebSocket, reason: LeaveReason, action: LeaveAction) -> Turn {
        self.seat.say(MemberRequest::Leave).await;
        let _ = self.writer.send(frames, leave(reason, action)).await;
        Turn::End
    }

    async fn tell(&mut self, frames: &mut WebSocket, notice: Notice) -> Turn {
        match notice {
            Notice::Answer(answer) => match self.offers.answer(self.context, &self.seat, self.streams, &answer) {
                Some(description) => self.writer.send(frames, Out::Answer(description)).await,
                None => Turn::On,
            },
            Notice::OfferRefused { id, reason } => {
                self.offers.forget(id);
                self.context.counters().refuse(Refused::Offer);
                tracing::debug!(participant = %self.seat.participant(), reason, "the session refuses an offer");
                self.begin_anew(frames).await
            }
            Notice::Grants(grants) => {
                let claims = self.access.claims_mut();
                claims.name = Some(grants.name.into());
                claims.metadata = Some(grants.metadata.into());
                claims.attributes = grants.attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
                claims.video.set_permissions(&grants.permissions);
                self.refresh_token(frames).await
            }
            // LiveKit's Rust SDK, and what is built on it, begins anew at every `Leave`; a socket that ends is what makes all clients resume.
            Notice::Leave { action: LeaveAction::Resume, .. } => Turn::Resume,
            notice => {
                let is_last = matches!(notice, Notice::Leave { .. });
                let Some(message) = self.own.write(&self.context.about(), self.seat.participant(), notice) else { return Turn::On };
                let turn = self.writer.send(frames, message).await;
                if is_last { Turn::End } else { turn }
            }
        }
    }

    /// Signs the client's token anew with the key that signed it, so that it can come back after the old one has expired. A key that
    /// was removed signs nothing, and one that has another secret now is another key: what it did not sign is not renewed.
    async fn refresh_token(&mut self, frames: &mut WebSocket) -> Turn {
        let keys = self.context.node.keys();
        // At time 0 no token has expired, and one that is not valid yet has a right signature.
        let signed = token::verify(&self.token, 0, |id| keys.secret(id));
        if !matches!(signed, Ok(_) | Err(TokenError::NotYetValid)) {
            return Turn::On;
        }
        let claims = self.access.claims_mut();
        let Some(secret) = keys.secret(&claims.iss) else { return Turn::On };
        claims.renew(unix_now_s() + REFRESH_TTL_S);
        match token::sign(claims, secret) {
            Ok(token) => {
                self.token.clone_from(&token);
                self.writer.send(frames, Out::RefreshToken(token)).await
            }
            Err(_) => Turn::On,
        }
    }

    async fn simulate(&mut self, frames: &mut WebSocket, simulation: Simulation) -> Turn {
        let (reason, action) = match simulation {
            Simulation::SocketLost => return Turn::End,
            Simulation::Resume => (LeaveReason::SignalClosed, LeaveAction::Resume),
            Simulation::Reconnect => (LeaveReason::StateMismatch, LeaveAction::Reconnect),
            Simulation::Leave => (LeaveReason::ServerShutdown, LeaveAction::Disconnect),
        };
        if simulation != Simulation::Resume {
            self.seat.say(MemberRequest::Leave).await;
        }
        let _ = self.writer.send(frames, leave(reason, action)).await;
        Turn::End
    }
}

pub(super) fn read_binary(bytes: &[u8]) -> Option<proto::SignalRequest> {
    if !is_within_bounds(bytes) {
        return None;
    }
    proto::SignalRequest::decode(bytes).ok()
}

fn read_text(text: &str) -> Option<proto::SignalRequest> {
    if !is_json_within_bounds(text.as_bytes()) {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Writes messages the way that the client writes its own.
struct Writer<'c> {
    context: &'c Context,
    /// As JSON.
    as_text: bool,
}

impl Writer<'_> {
    /// A client that does not read holds only its own task; the listener cuts it after 10 s.
    async fn send(&mut self, frames: &mut WebSocket, message: Out) -> Turn {
        self.context.counters().send(kind_of(&message));
        let response = proto::SignalResponse { message: Some(message) };
        let frame = match self.as_text {
            false => Frame::Binary(response.encode_to_vec().into()),
            true => match serde_json::to_string(&response) {
                Ok(text) => Frame::Text(text.into()),
                Err(_) => return Turn::End,
            },
        };
        if frames.send(frame).await.is_ok() { Turn::On } else { Turn::End }
    }
}

/// What a client may say: so much per second, with savings.
struct Budget {
    /// When all that was said is paid for.
    paid_at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget { paid_at: now }
    }

    /// True when this is what used the savings up.
    fn charge(&mut self, now: Instant, cost: u32) -> bool {
        let had = self.readable_at() <= now;
        self.paid_at = self.paid_at.max(now) + Duration::from_secs(1) / MESSAGES_PER_S * cost;
        had && self.readable_at() > now
    }

    /// When its next message may be read.
    fn readable_at(&self) -> Instant {
        let savings = Duration::from_secs(1) / MESSAGES_PER_S * MESSAGES_BURST;
        self.paid_at.checked_sub(savings).unwrap_or(self.paid_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_read_no_faster_than_it_may_speak() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let used_up = (0..MESSAGES_BURST + 1).filter(|_| budget.charge(start, 1)).count();
        assert_eq!(used_up, 1, "it is counted once");
        assert!(budget.readable_at() > start);
        let later = start + Duration::from_secs(1);
        assert!(budget.readable_at() <= later);
        for _ in 0..MESSAGES_PER_S {
            budget.charge(later, 1);
        }
        assert!(budget.readable_at() <= later + Duration::from_secs(1));
        assert!(budget.charge(later + Duration::from_secs(100), MESSAGES_BURST + 1));
    }
}
