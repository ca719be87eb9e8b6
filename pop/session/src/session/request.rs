//! What the owner asks of a session, and how it is answered.

use std::time::Duration;

use pop_proto::control::{IceCredentials, MediaKind, OpenRtp, OpenSubscription, OpenTrack, OpenTransport};
use pop_schemas::{Identity, ParticipantId, TrackId, TransportId};

use crate::format::PayloadFormat;
use crate::member::{AdminRequest, Enter, ParticipantInfo, Resume, RoomInfo};

/// The owner's number for a request; its reply carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What somebody wants of a session.
#[derive(Debug)]
pub enum Request {
    /// Come in.
    Join(Box<Join>),
    /// Leave, by the name of the HTTP resource.
    Leave {
        /// As in [`Join::resource`].
        resource: Box<str>,
    },
    /// Come in as a member of the room.
    Enter(Box<Enter>),
    /// Come back as the member that one was.
    Resume(Box<Resume>),
    /// What an operator wants.
    Admin(AdminRequest),
    /// The node stops: everybody leaves.
    Shutdown,
    /// Go on under the ICE credentials of a PATCH (RFC 9725 section 4.3).
    UpdateIce(Box<IceUpdate>),
    /// Copy the packets of every track of `kind` (`None`: of both kinds), present and future, to a capture.
    Tap {
        /// The capture's number on the service thread.
        tap: u32,
        /// Audio or video alone.
        kind: Option<MediaKind>,
    },
    /// End a capture.
    Untap {
        /// Its number.
        tap: u32,
    },
}

/// What a PATCH to an HTTP resource says of ICE.
#[derive(Debug)]
pub struct IceUpdate {
    /// As in [`Join::resource`].
    pub resource: Box<str>,
    /// `If-Match`.
    pub condition: IceCondition,
    /// The client's fragment with what was drawn for the case that it is a new one; `None` when the body names no fragment.
    pub credentials: Option<IceCredentials>,
}

/// Which ICE session a PATCH is for. Its entity-tag is our fragment (RFC 9725 section 4.3.1: "a unique strong entity-tag
/// identifying the ICE session").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IceCondition {
    /// It does not say.
    Missing,
    /// `*`: the current one, whichever that is.
    Any,
    /// One of these.
    OneOf(Vec<Box<str>>),
}

/// A client that was let in, with everything that the owner drew and negotiated for it.
#[derive(Debug)]
pub struct Join {
    /// A new id.
    pub participant: ParticipantId,
    /// Who it says it is.
    pub identity: Identity,
    /// It is not shown to the others.
    pub hidden: bool,
    /// Wall clock in milliseconds since 1970: over all nodes, the latest of an identity stays.
    pub joined_at_ms: u64,
    /// The unguessable name of the HTTP resource; the participant can be found by it.
    pub resource: Box<str>,
    /// The transport to open.
    pub transport: Opening,
    /// What it sends or takes.
    pub media: Media,
}

/// A transport to open.
#[derive(Debug)]
pub enum Opening {
    /// A WebRTC client's: ICE and DTLS come first.
    WebRtc(OpenTransport),
    /// An RTP route's: media may come and go at once.
    Rtp(OpenRtp),
}

impl Opening {
    /// Its id.
    pub fn id(&self) -> TransportId {
        match self {
            Opening::WebRtc(open) => open.transport,
            Opening::Rtp(open) => open.transport,
        }
    }
}

/// What a client sends or takes.
#[derive(Debug)]
pub enum Media {
    /// Its streams, at least one.
    Publish(Vec<Publication>),
    /// Its sections: at most one of each kind, at least one.
    Watch(Vec<Section>),
}

/// A stream to take.
#[derive(Clone, Debug)]
pub struct Publication {
    /// For the worker. Its `payload_types` are replaced by those of `formats`.
    pub open: OpenTrack,
    /// What the client may send, in the answer's order.
    pub formats: Vec<PayloadFormat>,
}

/// A section to feed.
#[derive(Clone, Debug)]
pub struct Section {
    /// For the worker.
    pub open: OpenSubscription,
    /// What the client can take, in the answer's order.
    pub formats: Vec<PayloadFormat>,
    /// The only one that it takes tracks of; `None`: of everybody.
    pub publisher: Option<Identity>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is in.
    Joined,
    /// It has left.
    Left,
    /// The ICE session is the one that it was: there is nothing to do with candidates of the client, which an ICE-lite node
    /// never checks.
    IceKept,
    /// Checks are taken under these credentials, and under the old ones until the first of them.
    IceRestarted(IceCredentials),
    /// The capture runs; these tracks are there already.
    Tapped {
        /// May be empty: the capture waits for a publisher.
        tracks: Vec<TappedTrack>,
    },
    /// The capture has ended.
    Untapped,
    /// Those who are here.
    Participants(Vec<ParticipantInfo>),
    /// The room.
    Room(Box<RoomInfo>),
    /// It is done.
    Done,
}

/// A track that a capture gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TappedTrack {
    /// Its id.
    pub track: TrackId,
    /// Audio or video.
    pub kind: MediaKind,
    /// Its payload types.
    pub formats: Vec<PayloadFormat>,
}

/// Why a request changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The room has as many participants as it may.
    #[error("this room is full: it takes at most {0} participants")]
    Full(usize),
    /// One client brings more streams than it may.
    #[error("too many media sections: a client may publish at most {0}")]
    TooManyTracks(usize),
    /// Nothing to send or to take.
    #[error("there is no media section that can be used")]
    NoMedia,
    /// A viewer with two sections of one kind.
    #[error("a viewer has at most one audio and one video section")]
    TooManySections,
    /// Its name, metadata or attributes are longer than anybody would have to be told.
    #[error("a name, metadata or attributes are too long")]
    TextTooLong,
    /// Longer than [`pop_proto::control::DATA_MESSAGE_LEN_MAX`], or to more receivers than may be.
    #[error("the message is too long, or names too many receivers")]
    MessageTooLarge,
    /// Another node has the participant, and is not known to be away.
    #[error("another node has this participant")]
    Elsewhere,
    /// An RTP route of the operator has this identity.
    #[error("an RTP route of this room has this identity")]
    IdentityTaken,
    /// An id or a resource name is in use: the owner must draw others.
    #[error("an id of the new participant is already in use")]
    Duplicate,
    /// Too many clients of one identity have not connected yet: each keeps a place on the worker.
    #[error("{0} clients of this identity are connecting already")]
    Connecting(usize),
    /// Nobody has this resource.
    #[error("there is no such resource in this room")]
    UnknownResource,
    /// The request does not say which ICE session it is for.
    #[error("an If-Match header is needed: the ETag of the ICE session, or * to restart ICE")]
    IceUnconditional,
    /// The request is for another ICE session.
    #[error("the ICE session of this ETag is over: a later request has restarted ICE")]
    IceStale,
    /// Tracks of this kind are being captured already.
    #[error("this room is already being captured")]
    TapBusy,
    /// No capture has this number.
    #[error("there is no such capture in this room")]
    UnknownTap,
    /// Nobody of this identity, or with this id, is here.
    #[error("there is no such participant in this room")]
    UnknownParticipant,
    /// It publishes no such track.
    #[error("there is no such track in this room")]
    UnknownTrack,
}

/// See [`Limits::grace`]: a node that restarts, or one that takes its people over, is there in less.
const GRACE: Duration = Duration::from_secs(5);

/// How many, so that one room cannot take the node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Local participants of one session.
    pub participants_max: usize,
    /// Tracks of one publisher.
    pub tracks_max: usize,
    /// Streams of one publisher's transport, each layer counted: the worker has no place for more.
    pub streams_max: usize,
    /// Clients of one identity that have not connected yet.
    pub connecting_max: usize,
    /// How long participants of a node that does not answer are kept.
    pub grace: Duration,
}

impl Default for Limits {
    /// A worker's plan is smaller than this many transports, so it refuses first; a publisher sends camera, screen and sound.
    /// One token in a hall may bring a few hundred viewers within the second that a client needs to connect; who never connects
    /// must not keep every place of a worker for the 40 s that it may try.
    fn default() -> Self {
        Limits { participants_max: 16_384, tracks_max: 8, streams_max: 16, connecting_max: 256, grace: GRACE }
    }
}
