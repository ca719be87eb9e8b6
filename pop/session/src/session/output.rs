//! What a session tells its owner to do.

use std::net::SocketAddr;
use std::time::Duration;

use pop_proto::control::{Codec, Command, MediaKind, SrtpProfile, TransportLoss};
use pop_schemas::{Identity, ParticipantId, TrackId, TransportId};

use super::abroad::Abroad;
use super::request::{Refusal, Reply, RequestId};
use crate::member::Notice;
use crate::participant::{Kind, LocalParticipant};
use crate::presence::LocalRecord;

/// Why a transport failed above ICE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFailure {
    /// DTLS ended in an error.
    Handshake,
    /// DTLS took too long.
    HandshakeTimeout,
    /// The client's certificate is not the one of its offer.
    Fingerprint,
    /// The client sent close_notify.
    ClosedByPeer,
}

/// Why a participant's transport is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It asked to leave.
    Left,
    /// The same identity publishes anew.
    Replaced,
    /// The same identity has come to another node later.
    Displaced,
    /// Another node has taken it over.
    TakenOver,
    /// It did not connect within [`super::CONNECT_TIMEOUT`].
    ConnectTimeout,
    /// The worker lost it.
    Lost(TransportLoss),
    /// DTLS failed or ended.
    Failed(TransportFailure),
    /// A member's socket went and did not come back within [`super::RESUME_GRACE`].
    SocketLost,
    /// Its transport has used so many SSRCs that it has to begin anew.
    SsrcsExhausted,
    /// An operator took it out.
    Removed,
    /// An operator ended the room.
    RoomDeleted,
    /// The node stops.
    Shutdown,
}

impl CloseReason {
    /// One word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Left => "left",
            CloseReason::Replaced => "replaced",
            CloseReason::Displaced => "displaced",
            CloseReason::TakenOver => "taken_over",
            CloseReason::ConnectTimeout => "connect_timeout",
            CloseReason::Lost(TransportLoss::NeverConnected) => "never_connected",
            CloseReason::Lost(TransportLoss::ConsentExpired) => "consent_expired",
            CloseReason::Lost(TransportLoss::KeyExhausted) => "key_exhausted",
            CloseReason::Lost(TransportLoss::SocketRefused) => "socket_refused",
            CloseReason::Failed(TransportFailure::Handshake) => "dtls_failed",
            CloseReason::Failed(TransportFailure::HandshakeTimeout) => "dtls_timeout",
            CloseReason::Failed(TransportFailure::Fingerprint) => "dtls_fingerprint",
            CloseReason::Failed(TransportFailure::ClosedByPeer) => "closed_by_peer",
            CloseReason::SocketLost => "socket_lost",
            CloseReason::SsrcsExhausted => "ssrcs_exhausted",
            CloseReason::Removed => "removed",
            CloseReason::RoomDeleted => "room_deleted",
            CloseReason::Shutdown => "shutdown",
        }
    }
}

/// One line for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Who.
    pub participant: ParticipantId,
    /// Who it says it is.
    pub identity: Identity,
    /// Publisher, viewer or member.
    pub kind: Kind,
    /// What happened.
    pub action: Action,
}

/// What happened to a participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A member was let in; its transport comes with its first offer.
    Entered,
    /// A member of another node that does not answer is this node's from now on.
    TakenOver {
        /// Whose it was.
        from: u64,
    },
    /// It was let in; of a member: its transport is open.
    Joined {
        /// Its transport.
        transport: TransportId,
    },
    /// Its media may flow.
    Connected {
        /// Agreed by DTLS.
        profile: SrtpProfile,
        /// Its address.
        address: Option<SocketAddr>,
        /// Since it was let in.
        after: Duration,
    },
    /// An RTP route has learnt its peer.
    Learnt {
        /// The peer.
        address: SocketAddr,
    },
    /// The first packet of one of its tracks came.
    Published {
        /// Which.
        track: TrackId,
        /// Audio or video.
        kind: MediaKind,
        /// The codec that leads the answer; the statistics tell later ones.
        codec: Option<Codec>,
    },
    /// A member no longer publishes a track.
    Unpublished {
        /// Which.
        track: TrackId,
    },
    /// It is out.
    Left {
        /// Why.
        reason: CloseReason,
        /// Since it was let in.
        stayed: Duration,
    },
}

/// What the owner must do.
#[derive(Debug)]
pub enum Output {
    /// Answer a request.
    Reply(RequestId, Result<Reply, Refusal>),
    /// Hand a command to this session's worker.
    Command(Command),
    /// A transport ended or was replaced: drop its DTLS and give its slot back. The worker has been told, or told us.
    Closed {
        /// Which.
        transport: TransportId,
        /// Why.
        reason: CloseReason,
    },
    /// Write a log line.
    Audit(Audit),
    /// Tell other nodes, where there are any.
    Put(Box<LocalRecord>),
    /// Tell another node; `None`: each that follows the session. Where there is none, nobody.
    Abroad {
        /// Which.
        node: Option<u64>,
        /// What.
        told: Abroad,
    },
    /// Tell a member. After [`Notice::Leave`] its socket ends.
    Notice(ParticipantId, Notice),
}

pub(super) fn audit(participant: &LocalParticipant, action: Action) -> Audit {
    Audit { participant: participant.id, identity: participant.identity.clone(), kind: participant.kind, action }
}
