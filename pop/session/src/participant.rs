//! Participants. One that is connected here is a [`LocalParticipant`] and only its [`crate::Session`] writes it; one that another
//! node owns is a [`crate::presence::RemoteParticipant`] and is replaced as a whole by its owner's newer record, never edited.

use std::net::SocketAddr;

use pop_proto::control::{IceCredentials, MediaKind, RtpPeerStats, SrtpProfile, SubscriptionStats, TrackStats};
use pop_schemas::{Identity, ParticipantId, SubscriptionId, Time, TrackId, TransportId};

use crate::format::PayloadFormat;
use crate::presence::RemoteParticipant;

/// What a participant came for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It sends media into the room.
    Publish,
    /// It takes media from the room.
    Watch,
}

impl Role {
    /// `publish` or `watch`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Publish => "publish",
            Role::Watch => "watch",
        }
    }
}

/// How far a local participant's transport is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The answer is out; ICE or DTLS is not through.
    Connecting,
    /// DTLS agreed on keys: media may flow.
    Connected {
        /// The SRTP profile.
        profile: SrtpProfile,
    },
    /// An RTP route: nothing is agreed on, and its peer may come and go.
    Routed {
        /// The SRTP profile; `None` is plain RTP.
        profile: Option<SrtpProfile>,
        /// What its ports have refused.
        stats: RtpPeerStats,
    },
}

/// One participant of a room, wherever it is connected.
#[derive(Clone, Copy, Debug)]
pub enum Participant<'a> {
    /// Connected here.
    Local(&'a LocalParticipant),
    /// Connected to another node.
    Remote(&'a RemoteParticipant),
}

impl Participant<'_> {
    /// Its id.
    pub fn id(&self) -> ParticipantId {
        match self {
            Participant::Local(local) => local.id,
            Participant::Remote(remote) => remote.key().participant,
        }
    }

    /// Who it says it is.
    pub fn identity(&self) -> &Identity {
        match self {
            Participant::Local(local) => &local.identity,
            Participant::Remote(remote) => &remote.manifest().identity,
        }
    }

    /// It is not shown to the others.
    pub fn is_hidden(&self) -> bool {
        match self {
            Participant::Local(local) => local.hidden,
            Participant::Remote(remote) => remote.manifest().hidden,
        }
    }

    /// What it came for.
    pub fn role(&self) -> Role {
        match self {
            Participant::Local(local) => local.role,
            Participant::Remote(remote) => remote.manifest().role,
        }
    }
}

/// A participant whose transport ends on this node. Its fields change inside this crate only.
#[derive(Debug)]
pub struct LocalParticipant {
    pub(crate) id: ParticipantId,
    pub(crate) identity: Identity,
    pub(crate) hidden: bool,
    pub(crate) role: Role,
    pub(crate) resource: Box<str>,
    pub(crate) transport: TransportId,
    /// `None` for a route.
    pub(crate) ice: Option<IceSession>,
    pub(crate) joined: Time,
    pub(crate) connection: Connection,
    /// Set by the first authenticated check; of a route: its peer.
    pub(crate) address: Option<SocketAddr>,
    /// Empty for a viewer.
    pub(crate) tracks: Vec<TrackId>,
    /// Empty for a publisher.
    pub(crate) sections: Vec<SubscriptionId>,
}

impl LocalParticipant {
    /// It is an RTP route.
    pub(crate) fn is_routed(&self) -> bool {
        matches!(self.connection, Connection::Routed { .. })
    }
}

/// What a WebRTC client and this node have told each other of ICE.
#[derive(Debug)]
pub(crate) struct IceSession {
    /// Those of the last restart, confirmed by a check or not.
    pub(crate) credentials: IceCredentials,
    /// They are not from the join.
    pub(crate) restarted: bool,
}

/// A stream that a local participant publishes.
#[derive(Debug)]
pub(crate) struct LocalTrack {
    pub(crate) id: TrackId,
    pub(crate) owner: ParticipantId,
    /// Its owner's identity.
    pub(crate) publisher: Identity,
    pub(crate) kind: MediaKind,
    pub(crate) formats: Vec<PayloadFormat>,
    /// RIDs of its simulcast layers; empty when it has one stream.
    pub(crate) layers: Vec<Box<str>>,
    /// Place in the room's order of publishers; a publisher that restarts keeps its place.
    pub(crate) order: u64,
    /// Its first packet came, or it replaces a track whose first packet had come.
    pub(crate) started: bool,
    pub(crate) stats: TrackStats,
}

/// A media section of a local viewer.
#[derive(Debug)]
pub(crate) struct LocalSection {
    pub(crate) id: SubscriptionId,
    pub(crate) kind: MediaKind,
    pub(crate) formats: Vec<PayloadFormat>,
    /// The only one that it takes tracks of; `None`: of everybody.
    pub(crate) publisher: Option<Identity>,
    /// What is forwarded into it; `None` while nothing fits.
    pub(crate) source: Option<TrackId>,
    pub(crate) stats: SubscriptionStats,
}
