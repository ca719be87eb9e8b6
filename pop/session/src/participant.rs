//! Participants. One that is connected here is a [`LocalParticipant`] and only its [`crate::Session`] writes it; one that another
//! node owns is a [`crate::presence::RemoteParticipant`] and is replaced as a whole by its owner's newer record, never edited.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pop_proto::control::{IceCredentials, LayerWish, MediaKind, RtpPeerStats, SrtpProfile, SubscriptionStats, TrackSsrcs, TrackStats};
use pop_schemas::{Identity, ParticipantId, SubscriptionId, Time, TrackId, TransportId};

use crate::format::PayloadFormat;
use crate::member::TrackInfo;
use crate::presence::RemoteParticipant;
use crate::session::{Bucket, Demand, Judged, Member};

/// What a client of WHIP or WHEP comes for.
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

/// What a participant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It sends media into the room: a client of WHIP, or a route in.
    Publisher,
    /// It takes media from the room: a client of WHEP, or a route out.
    Viewer,
    /// It does both, as it likes: a client of the room protocol.
    Member,
}

impl Kind {
    /// `publish`, `watch` or `member`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Publisher => "publish",
            Kind::Viewer => "watch",
            Kind::Member => "member",
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

    /// What it publishes.
    pub fn tracks(&self) -> Vec<TrackId> {
        match self {
            Participant::Local(local) => local.tracks.clone(),
            Participant::Remote(remote) => remote.manifest().tracks.iter().map(|track| track.info.track).collect(),
        }
    }

    /// It is not shown to the others.
    pub fn is_hidden(&self) -> bool {
        match self {
            Participant::Local(local) => local.hidden,
            Participant::Remote(remote) => remote.manifest().hidden,
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Participant::Local(local) => local.kind,
            Participant::Remote(remote) => remote.manifest().kind,
        }
    }
}

/// A participant whose transport ends on this node. Its fields change inside this crate only.
#[derive(Debug)]
pub struct LocalParticipant {
    pub(crate) id: ParticipantId,
    pub(crate) identity: Identity,
    pub(crate) hidden: bool,
    pub(crate) kind: Kind,
    /// `None` for a member.
    pub(crate) resource: Option<Box<str>>,
    /// `None` for a member that has made no offer yet.
    pub(crate) transport: Option<TransportId>,
    /// `None` for a route, and without a transport.
    pub(crate) ice: Option<IceSession>,
    pub(crate) joined: Time,
    /// The same by the wall clock, in milliseconds since 1970; 0: unknown. Of equal identities the later one stays.
    pub(crate) joined_at_ms: u64,
    /// When its transport was opened: the deadline of [`Connection::Connecting`] counts from here.
    pub(crate) opened: Time,
    pub(crate) connection: Connection,
    /// Set by the first authenticated check; of a route: its peer.
    pub(crate) address: Option<SocketAddr>,
    /// Empty for a viewer.
    pub(crate) tracks: Vec<TrackId>,
    /// Empty for a publisher.
    pub(crate) sections: Vec<SubscriptionId>,
    /// What it wants to be shown.
    pub(crate) texts: Texts,
    /// Raised by each change that others may see.
    pub(crate) counter: u32,
    /// How often changes of it are told at once.
    pub(crate) told: Bucket,
    /// Raised by each take-over.
    pub(crate) epoch: u32,
    /// Of a member alone.
    pub(crate) member: Option<Box<Member>>,
}

/// What a participant wants to be shown of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) name: Box<str>,
    pub(crate) metadata: Box<str>,
    pub(crate) attributes: BTreeMap<Box<str>, Box<str>>,
}

impl LocalParticipant {
    /// It is an RTP route.
    pub(crate) fn is_routed(&self) -> bool {
        matches!(self.connection, Connection::Routed { .. })
    }

    /// Others see it: a viewer of WHEP is an audience, and may share its identity with others.
    pub(crate) fn is_shown(&self) -> bool {
        self.kind != Kind::Viewer && !self.hidden
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

/// A stream that somebody publishes, here or on another node.
#[derive(Debug)]
pub(crate) struct Track {
    pub(crate) id: TrackId,
    pub(crate) owner: ParticipantId,
    pub(crate) origin: Origin,
    /// Its owner's identity.
    pub(crate) publisher: Identity,
    pub(crate) kind: MediaKind,
    pub(crate) formats: Vec<PayloadFormat>,
    /// RIDs of its simulcast layers; empty when it has one stream.
    pub(crate) layers: Vec<Box<str>>,
    /// What they have, as far as is known.
    pub(crate) ssrcs: TrackSsrcs,
    /// Place in the room's order of publishers, about the microseconds since 1970 when it came; a publisher that restarts keeps its
    /// place.
    pub(crate) order: u64,
    /// Its first packet came, or it replaces a track whose first packet had come.
    pub(crate) started: bool,
    /// What everybody may know of it.
    pub(crate) info: TrackInfo,
    /// Sections that it is forwarded into.
    pub(crate) takers: BTreeSet<SubscriptionId>,
    /// What its publisher was told of its subscribers.
    pub(crate) demand: Demand,
    /// Its counters when its connection was judged last; `None` before, and after it was meant to be silent.
    pub(crate) judged: Option<Judged>,
    pub(crate) stats: TrackStats,
}

impl Track {
    /// Another node tells what it is, and its events and commands are none of this session's business.
    pub(crate) fn is_remote(&self) -> bool {
        self.origin != Origin::Here
    }

    /// Nothing comes of it: its node may be dead.
    pub(crate) fn is_away(&self) -> bool {
        self.origin == Origin::Away
    }
}

/// Where a track is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By a local participant.
    Here,
    /// On another node.
    There,
    /// On another node that does not answer, or of one that was taken over and has not offered it again, here or there: sections keep it,
    /// and are silent.
    Away,
}

/// A media section that tracks are sent into.
#[derive(Debug)]
pub(crate) struct LocalSection {
    pub(crate) id: SubscriptionId,
    pub(crate) owner: ParticipantId,
    pub(crate) kind: MediaKind,
    pub(crate) formats: Vec<PayloadFormat>,
    pub(crate) choice: Choice,
    /// What is forwarded into it; `None` while nothing fits.
    pub(crate) source: Option<TrackId>,
    /// What the worker was told last.
    pub(crate) wish: LayerWish,
    pub(crate) stats: SubscriptionStats,
}

/// Who chooses what feeds a section.
#[derive(Debug)]
pub(crate) enum Choice {
    /// The session, by age.
    Oldest {
        /// The only one whose tracks are taken; `None`: of everybody.
        publisher: Option<Identity>,
    },
    /// The member whose section it is, by its subscriptions.
    Member,
}
