//! Members of rooms: the seat that a client's socket has, and what a room keeps of a member between its sockets.
//!
//! ```text
//! socket --Seat::say, offer--> room task (owns the Session) --Notice--> Seat::next --> socket
//! ```
//! Both ways are bounded: a socket has a few requests on their way at most and waits, a room waits for nobody: it cuts the socket of
//! who does not read.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pop_proto::control::ExtensionIds;
use pop_schemas::{Identity, ParticipantId, SessionId};
use pop_session::Refusal;
use pop_session::member::{MemberRequest, Notice, Offer, ParticipantInfo, TransportOffer};
use pop_session::placement::{Claim, Full};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::data::Parcel;
use super::directory::{RoomSender, Slot};
use super::room::RoomMessage;
use super::{Node, Shared};
use crate::dtls::{Fingerprint, Role};
use crate::sctp::KeptChannel;

/// Requests of one socket that may wait for its room.
const REQUESTS_MAX: usize = 16;

/// Notices that may wait for one socket. A thousand people who come at once make so many.
const NOTICES_MAX: usize = 1_024;

/// Bytes that these notices may have, as [`weigh`] counts them.
const NOTICES_LEN_MAX: usize = 8 << 20;

/// What a participant with its tracks counts for in [`weigh`] beside its texts, in bytes.
const PARTICIPANT_WEIGHT: usize = 1_024;

/// Why a client could not become a member.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// No worker has room.
    #[error("this node is full")]
    Full,
    /// The session said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// What the offers of a member's transport have settled; it outlives sockets.
#[derive(Debug, Default)]
pub struct Line {
    /// One numbering of header extensions for both directions.
    pub numbering: ExtensionIds,
    /// As of the last offer; `None` before the first.
    pub transport: Option<TransportOffer>,
    /// The client's certificate is one of these.
    pub fingerprints: Vec<Fingerprint>,
    /// Answers so far.
    pub answers: u64,
    /// Its transport was on another node, and its first offer has not come here.
    pub is_adopted: bool,
    /// Then, the data channels that its client has.
    pub channels: Vec<KeptChannel>,
    /// What is claimed of the worker's plan for it, beside its transport.
    claimed: Claim,
}

impl Line {
    /// Of one whose transport was on another node.
    pub(super) fn adopted() -> Line {
        Line { is_adopted: true, ..Line::default() }
    }
}

/// An offer with what its transport needs to begin.
#[derive(Debug)]
pub struct TransportStart {
    /// Our end of DTLS.
    pub role: Role,
    /// The client's certificate is one of these.
    pub fingerprints: Vec<Fingerprint>,
}

/// The place of a client's socket in a room. Dropping it tells the room that the socket is gone.
pub struct Seat {
    participant: ParticipantId,
    session: SessionId,
    worker: usize,
    socket: u64,
    room: RoomSender,
    notices: mpsc::Receiver<Notice>,
    queued_len: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    line: Arc<Mutex<Line>>,
    node: Node,
    /// The room outlives the goodbye.
    _hold: Slot,
}

impl Seat {
    /// Whose it is.
    pub fn participant(&self) -> ParticipantId {
        self.participant
    }

    /// Of which room.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Which worker has its transport.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// What its offers have settled.
    pub fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("nothing panics while it is held")
    }

    /// The next notice; `None` when the room has nothing more to say on this socket. Losing the future loses no notice.
    pub async fn next(&mut self) -> Option<Notice> {
        let notice = self.notices.recv().await?;
        self.queued_len.fetch_sub(weigh(&notice), Ordering::Relaxed);
        Some(notice)
    }

    /// Hands a request to the room; waits while too many are on their way.
    pub async fn say(&self, request: MemberRequest) {
        let Some(permit) = self.permit().await else { return };
        let (participant, socket) = (self.participant, self.socket);
        // A room that has ended says so by its last notice.
        let _ = self.room.send(RoomMessage::Member { participant, socket, request, permit });
    }

    /// Claims what an offer needs beyond what its member has, or what there is of it: the most that the member may use now.
    pub async fn claim(&self, wanted: Claim) -> Claim {
        let claimed = self.line().claimed;
        let tracks = |tracks| Claim { tracks, ..Claim::default() };
        let subscriptions = |subscriptions| Claim { subscriptions, ..Claim::default() };
        self.grow(wanted.tracks.saturating_sub(claimed.tracks), tracks).await;
        self.grow(wanted.subscriptions.saturating_sub(claimed.subscriptions), subscriptions).await;
        self.line().claimed
    }

    /// Claims `missing` of something, or as many as there are, by halves.
    async fn grow(&self, mut missing: usize, of: impl Fn(usize) -> Claim) {
        let mut step = missing;
        while step > 0 {
            match self.node.shared.directory.grow(&self.session, self.worker, of(step)).await {
                Ok(slot) => {
                    self.line().claimed += of(step);
                    let _ = self.room.send(RoomMessage::Claimed { participant: self.participant, slot });
                    missing -= step;
                    step = step.min(missing);
                }
                Err(Full) => step /= 2,
            }
        }
    }

    /// Hands an offer to the room.
    pub async fn offer(&self, offer: Offer, start: TransportStart) {
        let Some(permit) = self.permit().await else { return };
        let (participant, socket) = (self.participant, self.socket);
        let _ = self.room.send(RoomMessage::Offer { participant, socket, offer: Box::new(offer), start, permit });
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A room that has ended knows.
        let _ = self.room.send(RoomMessage::SocketClosed { participant: self.participant, socket: self.socket });
    }
}

/// The room's end of a socket.
pub(crate) struct Socket {
    /// Unique in this process.
    pub(super) number: u64,
    notices: mpsc::Sender<Notice>,
    queued_len: Arc<AtomicUsize>,
}

impl Socket {
    /// False: it does not read, or is gone.
    pub(super) fn tell(&self, notice: Notice) -> bool {
        let weight = weigh(&notice);
        let queued_len = self.queued_len.fetch_add(weight, Ordering::Relaxed);
        // One alone always has a place: people who bring long texts must not keep others out of a room.
        if queued_len > 0 && queued_len + weight > NOTICES_LEN_MAX {
            return false;
        }
        self.notices.try_send(notice).is_ok()
    }
}

/// What a room keeps of a member.
pub(super) struct Member {
    /// `None` while its client is away.
    pub(super) socket: Option<Socket>,
    pub(super) line: Arc<Mutex<Line>>,
    /// Who it says it is.
    pub(super) identity: Identity,
    /// It is not shown to the others; its transport's task looks here.
    pub(super) hidden: Arc<AtomicBool>,
    /// What it claims, until it has a transport: then that one's task keeps them.
    pub(super) slots: Vec<Slot>,
    /// The task of its transport.
    pub(super) transport: Option<mpsc::UnboundedSender<Order>>,
}

/// What a room tells the task of a transport.
pub(super) enum Order {
    /// Keep this until the worker has forgotten the transport.
    Keep(Slot),
    /// A message for the client.
    Send(Parcel),
}

impl Member {
    pub(super) fn new(socket: Socket, line: Arc<Mutex<Line>>, identity: Identity, hidden: bool, slot: Slot) -> Member {
        let hidden = Arc::new(AtomicBool::new(hidden));
        Member { socket: Some(socket), line, identity, hidden, slots: vec![slot], transport: None }
    }

    /// Keeps a slot for as long as the worker has what it is for.
    pub(super) fn keep(&mut self, slot: Slot) {
        let Some(transport) = &self.transport else { return self.slots.push(slot) };
        // A task that has ended has been told to close everything.
        let _ = transport.send(Order::Keep(slot));
    }
}

/// Roughly what a notice keeps in memory while it waits, in bytes. Shared ones count for each who waits: what counts is that a room of
/// people who do not read stays bounded.
fn weigh(notice: &Notice) -> usize {
    let participants = match notice {
        Notice::Welcome(welcome) => weigh_participants(&welcome.others) + PARTICIPANT_WEIGHT,
        Notice::Participants(participants) => weigh_participants(participants.iter()),
        _ => 0,
    };
    256 + participants
}

/// A text may have 64 KiB.
fn weigh_participants<'p>(participants: impl IntoIterator<Item = &'p ParticipantInfo>) -> usize {
    let attributes = |info: &ParticipantInfo| info.attributes.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    let weight = |info: &ParticipantInfo| PARTICIPANT_WEIGHT + info.name.len() + info.metadata.len() + attributes(info);
    participants.into_iter().map(weight).sum()
}

/// Both ends of a new socket.
pub(super) fn new_seat(
    node: &Node,
    (session, worker, room): (&SessionId, usize, RoomSender),
    participant: ParticipantId,
    line: Arc<Mutex<Line>>,
    hold: Slot,
) -> (Seat, Socket) {
    let (sender, notices) = mpsc::channel(NOTICES_MAX);
    let (queued_len, number) = (Arc::new(AtomicUsize::new(0)), node.next_id());
    let socket = Socket { number, notices: sender, queued_len: Arc::clone(&queued_len) };
    let seat = Seat {
        participant,
        session: session.clone(),
        worker,
        socket: number,
        room,
        notices,
        queued_len,
        permits: Arc::new(Semaphore::new(REQUESTS_MAX)),
        line,
        node: node.clone(),
        _hold: hold,
    };
    (seat, socket)
}

impl Shared {
    /// Counts a socket that was cut because its client did not read.
    pub(super) fn count_slow_reader(&self) {
        self.slow_readers.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use pop_schemas::TrackId;

    use super::*;

    fn person(metadata_len: usize) -> ParticipantInfo {
        ParticipantInfo {
            participant: ParticipantId(1),
            identity: Identity::new("ann").unwrap(),
            name: "Ann".into(),
            metadata: "x".repeat(metadata_len).into(),
            attributes: Default::default(),
            state: pop_session::member::MemberState::Joined,
            tracks: Vec::new(),
            joined_at_ms: 0,
            version: 1,
            permissions: pop_session::member::Permissions::PUBLISHER,
            is_publisher: false,
            left: None,
        }
    }

    #[test]
    fn long_texts_that_wait_are_bounded_and_one_list_of_them_is_always_told() {
        let (sender, _notices) = mpsc::channel(NOTICES_MAX);
        let socket = Socket { number: 1, notices: sender, queued_len: Arc::default() };
        let crowd = |count| Notice::Participants(Arc::new(vec![person(64 << 10); count]));
        assert!(socket.tell(crowd(1_000)), "it is let in");
        assert!(!socket.tell(crowd(1)));
        let (sender, _notices) = mpsc::channel(NOTICES_MAX);
        let socket = Socket { number: 2, notices: sender, queued_len: Arc::default() };
        let told = (0..NOTICES_MAX).take_while(|_| socket.tell(crowd(1))).count();
        assert!((100..128).contains(&told), "{told}");
    }

    #[test]
    fn who_does_not_read_is_cut_before_it_costs_much() {
        let (sender, _notices) = mpsc::channel(NOTICES_MAX);
        let socket = Socket { number: 1, notices: sender, queued_len: Arc::default() };
        let told = (0..2 * NOTICES_MAX).take_while(|_| socket.tell(Notice::TrackSubscribed(TrackId(1)))).count();
        assert_eq!(told, NOTICES_MAX);
    }
}
