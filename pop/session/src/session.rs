//! One room on one worker: requests and worker events in, commands and replies out.
//!
//! ```text
//! HTTP, CLI     -> handle_request ---+
//! worker Event  -> handle_event   ---+-> poll: Reply -> who asked | Command -> the worker | Closed -> DTLS, slot | Audit -> log
//! DTLS          -> handle_transport_*+
//! timer         -> handle_timeout ---+
//! ```
//! Drain [`Session::poll`] to the end after each call.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pop_proto::control::{
    Codec, Command, Event, IceCredentials, MediaKind, OpenRtp, OpenSubscription, OpenTrack, OpenTransport, RtpPeer, RtpPeerStats,
    SrtpProfile, TransportLoss,
};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};

use crate::format::{PayloadFormat, map_payload_types};
use crate::member::{AdminRequest, Enter, MemberRequest, Notice, ParticipantInfo, Resume};
use crate::participant::{Connection, IceSession, LocalParticipant, LocalSection, LocalTrack, Participant, Role};
use crate::presence::{Applied, Record, RemoteParticipants};
use crate::subscribe::choose;
use crate::view::{self, SessionView};

/// From the answer to agreed keys. The worker gives up after 30 s without a check ([`TransportLoss::NeverConnected`]); a
/// handshake that began at the last moment gets 10 s more.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a member whose socket is gone is waited for, while its media may still flow.
pub const RESUME_GRACE: Duration = Duration::from_secs(30);

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

/// How many, so that one room cannot take the node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Local participants of one session.
    pub participants_max: usize,
    /// Streams of one publisher.
    pub tracks_max: usize,
    /// Clients of one identity that have not connected yet.
    pub connecting_max: usize,
}

impl Default for Limits {
    /// A worker's plan is smaller than this many transports, so it refuses first; a publisher sends camera, screen and sound.
    /// One token in a hall may bring a few hundred viewers within the second that a client needs to connect; who never connects
    /// must not keep every place of a worker for the 40 s that it may try.
    fn default() -> Self {
        Limits { participants_max: 16_384, tracks_max: 8, connecting_max: 256 }
    }
}

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
    /// It did not connect within [`CONNECT_TIMEOUT`].
    ConnectTimeout,
    /// The worker lost it.
    Lost(TransportLoss),
    /// DTLS failed or ended.
    Failed(TransportFailure),
}

impl CloseReason {
    /// One word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Left => "left",
            CloseReason::Replaced => "replaced",
            CloseReason::ConnectTimeout => "connect_timeout",
            CloseReason::Lost(TransportLoss::NeverConnected) => "never_connected",
            CloseReason::Lost(TransportLoss::ConsentExpired) => "consent_expired",
            CloseReason::Lost(TransportLoss::KeyExhausted) => "key_exhausted",
            CloseReason::Lost(TransportLoss::SocketRefused) => "socket_refused",
            CloseReason::Failed(TransportFailure::Handshake) => "dtls_failed",
            CloseReason::Failed(TransportFailure::HandshakeTimeout) => "dtls_timeout",
            CloseReason::Failed(TransportFailure::Fingerprint) => "dtls_fingerprint",
            CloseReason::Failed(TransportFailure::ClosedByPeer) => "closed_by_peer",
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
    /// Publisher or viewer.
    pub role: Role,
    /// What happened.
    pub action: Action,
}

/// What happened to a participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was let in.
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
    /// Tell a member. After [`Notice::Leave`] its socket ends.
    Notice(ParticipantId, Notice),
}

/// A room. See the module for how to drive it.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    limits: Limits,
    participants: BTreeMap<ParticipantId, LocalParticipant>,
    remotes: RemoteParticipants,
    tracks: BTreeMap<TrackId, LocalTrack>,
    sections: BTreeMap<SubscriptionId, LocalSection>,
    by_transport: BTreeMap<TransportId, ParticipantId>,
    by_resource: BTreeMap<Box<str>, ParticipantId>,
    /// Who is connecting, by deadline; an entry goes when its participant connects or leaves.
    connecting: BTreeSet<(Time, ParticipantId)>,
    /// The capture of each kind, by `MediaKind`.
    taps: [Option<u32>; 2],
    /// The next publisher's place.
    next_order: u64,
    /// Events about ids that this session does not have (any more).
    unknown_events: u64,
    outputs: VecDeque<Output>,
}

impl Session {
    /// An empty room. All that it draws (ids, SSRCs, first numbers) comes from `seed`, which its owner drew at random.
    pub fn new(id: SessionId, limits: Limits, seed: u64) -> Session {
        let _ = seed;
        Session {
            id,
            limits,
            participants: BTreeMap::new(),
            remotes: RemoteParticipants::default(),
            tracks: BTreeMap::new(),
            sections: BTreeMap::new(),
            by_transport: BTreeMap::new(),
            by_resource: BTreeMap::new(),
            connecting: BTreeSet::new(),
            taps: [None; 2],
            next_order: 0,
            unknown_events: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Nobody is connected here and nothing is captured: the owner may drop it.
    pub fn is_empty(&self) -> bool {
        self.participants.is_empty() && self.taps == [None; 2]
    }

    /// Events that named something this session does not have: stragglers after a close, or a bug when it keeps growing.
    pub fn unknown_events(&self) -> u64 {
        self.unknown_events
    }

    /// Everybody, locals first.
    pub fn participants(&self) -> impl Iterator<Item = Participant<'_>> {
        let locals = self.participants.values().map(Participant::Local);
        locals.chain(self.remotes.iter().map(Participant::Remote))
    }

    /// The body of `/api/v1/sessions` for this room.
    pub fn describe(&self, now: Time) -> SessionView {
        view::describe(now, &self.id, &self.participants, &self.tracks, &self.sections, &self.remotes, self.taps)
    }

    /// Takes a request; its reply comes out of [`Session::poll`]. A refused request has changed nothing.
    pub fn handle_request(&mut self, now: Time, id: RequestId, request: Request) {
        let result = match request {
            Request::Join(join) => self.join(now, *join),
            Request::Leave { resource } => self.leave(now, &resource),
            Request::UpdateIce(update) => self.update_ice(*update),
            Request::Tap { tap, kind } => self.open_tap(tap, kind),
            Request::Untap { tap } => self.close_tap(tap),
            Request::Enter(_) | Request::Resume(_) | Request::Admin(_) => Err(Refusal::UnknownParticipant),
        };
        self.outputs.push_back(Output::Reply(id, result));
    }

    /// Takes an event of this session's worker. DTLS datagrams are none of its business and are counted as unknown.
    pub fn handle_event(&mut self, now: Time, event: Event) {
        let known = match event {
            Event::TransportValidated { transport, remote } => self.note_address(transport, remote),
            Event::TransportLost { transport, loss } => self.close_transport(now, transport, CloseReason::Lost(loss)),
            Event::RtpPeerStats { transport, stats } => self.note_peer_stats(transport, stats),
            Event::TrackStarted { track } => self.start_track(track),
            Event::TrackStats { track, stats } => match self.tracks.get_mut(&track) {
                Some(known) => {
                    let changed = known.stats.codec != stats.codec;
                    known.stats = stats;
                    if changed {
                        self.feed_sections();
                    }
                    true
                }
                None => false,
            },
            Event::SubscriptionStats { subscription, stats } => match self.sections.get_mut(&subscription) {
                Some(known) => {
                    known.stats = stats;
                    true
                }
                None => false,
            },
            Event::Dtls { .. } | Event::AudioLevel { .. } | Event::Data { .. } => false,
        };
        self.unknown_events += u64::from(!known);
    }

    /// Takes what a member says. Its answers are notices.
    pub fn handle_member(&mut self, now: Time, participant: ParticipantId, request: MemberRequest) {
        let _ = (now, participant, request);
    }

    /// DTLS is through and the keys go to the worker.
    pub fn handle_transport_connected(&mut self, now: Time, transport: TransportId, profile: SrtpProfile) {
        let Some(participant) = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id)) else {
            self.unknown_events += 1;
            return;
        };
        participant.connection = Connection::Connected { profile };
        self.connecting.remove(&(participant.joined + CONNECT_TIMEOUT, participant.id));
        let action = Action::Connected { profile, address: participant.address, after: now.since(participant.joined) };
        let audit = audit(participant, action);
        self.outputs.push_back(Output::Audit(audit));
    }

    /// DTLS failed, or the client closed it.
    pub fn handle_transport_failed(&mut self, now: Time, transport: TransportId, failure: TransportFailure) {
        let known = self.close_transport(now, transport, CloseReason::Failed(failure));
        self.unknown_events += u64::from(!known);
    }

    /// Takes what another node says of its participant.
    pub fn handle_record(&mut self, record: Record) -> Applied {
        self.remotes.apply(record)
    }

    /// When [`Session::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.connecting.first().map(|(deadline, _)| *deadline)
    }

    /// Ends those who did not connect in time.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((_, id)) = self.connecting.first().filter(|(deadline, _)| *deadline <= now).copied() {
            self.remove(now, id, CloseReason::ConnectTimeout);
        }
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn join(&mut self, now: Time, join: Join) -> Result<Reply, Refusal> {
        let replaced = self.replaced_by(&join);
        self.check_join(&join, replaced.is_some())?;

        let Join { participant: id, identity, hidden, resource, transport, media } = join;
        let transport_id = transport.id();
        let role = match media {
            Media::Publish(_) => Role::Publish,
            Media::Watch(_) => Role::Watch,
        };
        let (mut connection, mut address, mut ice) = (Connection::Connecting, None, None);
        match transport {
            Opening::WebRtc(open) => {
                ice = Some(IceSession { credentials: open.ice.clone(), restarted: false });
                self.command(Command::OpenTransport(Box::new(open)));
                self.connecting.insert((now + CONNECT_TIMEOUT, id));
            }
            Opening::Rtp(open) => {
                connection = Connection::Routed { profile: open.keys.as_ref().map(|keys| keys.profile), stats: RtpPeerStats::default() };
                if let RtpPeer::Fixed(peer) = open.peer {
                    address = Some(peer);
                }
                self.command(Command::OpenRtp(Box::new(open)));
            }
        }
        self.by_transport.insert(transport_id, id);
        self.by_resource.insert(resource.clone(), id);
        let participant = LocalParticipant {
            id,
            identity,
            hidden,
            role,
            resource,
            transport: transport_id,
            ice,
            joined: now,
            connection,
            address,
            tracks: Vec::new(),
            sections: Vec::new(),
        };
        self.outputs.push_back(Output::Audit(audit(&participant, Action::Joined { transport: transport_id })));
        self.participants.insert(id, participant);
        match media {
            Media::Publish(publications) => self.open_tracks(id, publications, replaced),
            Media::Watch(sections) => self.open_sections(id, sections),
        }
        if let Some(replaced) = replaced {
            self.remove(now, replaced, CloseReason::Replaced);
        }
        self.feed_sections();
        Ok(Reply::Joined)
    }

    /// The publisher whose place `join` takes. A client that was killed and comes again must not wait for its own ghost to
    /// expire; viewers may share an identity, so they replace nobody. A route is the operator's: it ends when he says so, and
    /// it ends nobody.
    fn replaced_by(&self, join: &Join) -> Option<ParticipantId> {
        let (Media::Publish(_), Opening::WebRtc(_)) = (&join.media, &join.transport) else { return None };
        let same = |p: &&LocalParticipant| p.role == Role::Publish && p.identity == join.identity && !p.is_routed();
        self.participants.values().find(same).map(|p| p.id)
    }

    fn check_join(&self, join: &Join, replaces: bool) -> Result<(), Refusal> {
        if self.participants.len() - usize::from(replaces) >= self.limits.participants_max {
            return Err(Refusal::Full(self.limits.participants_max));
        }
        let taken = self.participants.contains_key(&join.participant)
            || self.by_resource.contains_key(&join.resource)
            || self.by_transport.contains_key(&join.transport.id());
        if taken {
            return Err(Refusal::Duplicate);
        }
        match &join.media {
            Media::Publish(publications) => {
                if publications.is_empty() {
                    return Err(Refusal::NoMedia);
                }
                if publications.len() > self.limits.tracks_max {
                    return Err(Refusal::TooManyTracks(self.limits.tracks_max));
                }
                let ids: BTreeSet<_> = publications.iter().map(|p| p.open.track).collect();
                if ids.len() != publications.len() || ids.iter().any(|id| self.tracks.contains_key(id)) {
                    return Err(Refusal::Duplicate);
                }
            }
            Media::Watch(sections) => {
                if sections.is_empty() {
                    return Err(Refusal::NoMedia);
                }
                // Publishers of one identity replace each other and need no such bound.
                let connecting = self.connecting.iter().filter_map(|(_, id)| self.participants.get(id));
                if connecting.filter(|p| p.identity == join.identity).count() >= self.limits.connecting_max {
                    return Err(Refusal::Connecting(self.limits.connecting_max));
                }
                let kinds: BTreeSet<_> = sections.iter().map(|s| s.open.kind).collect();
                if kinds.len() != sections.len() {
                    return Err(Refusal::TooManySections);
                }
                let ids: BTreeSet<_> = sections.iter().map(|s| s.open.subscription).collect();
                if ids.len() != sections.len() || ids.iter().any(|id| self.sections.contains_key(id)) {
                    return Err(Refusal::Duplicate);
                }
            }
        }
        Ok(())
    }

    fn open_tracks(&mut self, owner: ParticipantId, publications: Vec<Publication>, replaced: Option<ParticipantId>) {
        let order = replaced.and_then(|id| self.tracks_of(id).next().map(|track| track.order)).unwrap_or_else(|| {
            self.next_order += 1;
            self.next_order
        });
        let publisher = self.participants[&owner].identity.clone();
        for Publication { mut open, formats } in publications {
            let (id, kind) = (open.track, open.kind);
            open.payload_types = formats.iter().map(|format| format.payload_type()).collect();
            // The n-th camera of the new client stands for the n-th of the old one.
            let nth = self.tracks_of(owner).filter(|track| track.kind == kind).count();
            let stands_for = replaced.and_then(|old| self.tracks_of(old).filter(|track| track.kind == kind).nth(nth));
            let (stands_for, started) = (stands_for.map(|track| track.id), stands_for.is_some_and(|track| track.started));
            let layers = open.layers.clone();
            self.command(Command::OpenTrack(Box::new(open)));
            let publisher = publisher.clone();
            let track = LocalTrack { id, owner, publisher, kind, formats, layers, order, started, stats: Default::default() };
            self.tracks.insert(id, track);
            if let Some(participant) = self.participants.get_mut(&owner) {
                participant.tracks.push(id);
            }
            if let Some(tap) = self.taps[kind as usize] {
                self.command(Command::Tap { track: id, tap: Some(tap) });
            }
            if let Some(old) = stands_for {
                self.move_sections(old, id);
            }
        }
    }

    fn tracks_of(&self, owner: ParticipantId) -> impl Iterator<Item = &LocalTrack> {
        let ids = self.participants.get(&owner).into_iter().flat_map(|participant| &participant.tracks);
        ids.filter_map(|id| self.tracks.get(id))
    }

    fn open_sections(&mut self, owner: ParticipantId, sections: Vec<Section>) {
        for Section { open, formats, publisher } in sections {
            let (id, kind) = (open.subscription, open.kind);
            self.command(Command::OpenSubscription(Box::new(open)));
            self.sections.insert(id, LocalSection { id, kind, formats, publisher, source: None, stats: Default::default() });
            if let Some(participant) = self.participants.get_mut(&owner) {
                participant.sections.push(id);
            }
        }
    }

    fn leave(&mut self, now: Time, resource: &str) -> Result<Reply, Refusal> {
        let id = *self.by_resource.get(resource).ok_or(Refusal::UnknownResource)?;
        self.remove(now, id, CloseReason::Left);
        Ok(Reply::Left)
    }

    /// The condition is judged and the session changed in one step: requests may overlap (RFC 9725 section 4.3.1).
    fn update_ice(&mut self, update: IceUpdate) -> Result<Reply, Refusal> {
        let id = self.by_resource.get(&update.resource).ok_or(Refusal::UnknownResource)?;
        let participant = self.participants.get_mut(id).expect("a resource goes with its participant");
        // A route has no ICE, and no HTTP client that could ask.
        let session = participant.ice.as_mut().ok_or(Refusal::UnknownResource)?;
        match &update.condition {
            IceCondition::Missing => return Err(Refusal::IceUnconditional),
            IceCondition::OneOf(tags) if !tags.contains(&session.credentials.local_ufrag) => return Err(Refusal::IceStale),
            IceCondition::OneOf(_) | IceCondition::Any => {}
        }
        let Some(credentials) = update.credentials else { return Ok(Reply::IceKept) };
        // "any WHIP session receiving an updated "ice-pwd" and "ice-ufrag" attributes MUST consider the request as performing an
        // ICE restart".
        if credentials.remote_ufrag != session.credentials.remote_ufrag {
            *session = IceSession { credentials: credentials.clone(), restarted: true };
            let (transport, ice) = (participant.transport, Box::new(credentials.clone()));
            self.command(Command::RestartIce { transport, ice });
            return Ok(Reply::IceRestarted(credentials));
        }
        // A restart whose answer was lost is asked for again, and gets the same answer.
        if session.restarted && update.condition == IceCondition::Any {
            return Ok(Reply::IceRestarted(session.credentials.clone()));
        }
        Ok(Reply::IceKept)
    }

    fn open_tap(&mut self, tap: u32, kind: Option<MediaKind>) -> Result<Reply, Refusal> {
        let wanted = |k: MediaKind| kind.is_none_or(|only| only == k);
        let kinds = [MediaKind::Audio, MediaKind::Video];
        // A track has one tap, so a capture of both kinds needs both to be free.
        if kinds.iter().any(|k| wanted(*k) && self.taps[*k as usize].is_some()) || self.taps.contains(&Some(tap)) {
            return Err(Refusal::TapBusy);
        }
        for k in kinds.into_iter().filter(|k| wanted(*k)) {
            self.taps[k as usize] = Some(tap);
        }
        let tracks: Vec<_> = self
            .tracks
            .values()
            .filter(|track| wanted(track.kind))
            .map(|track| TappedTrack { track: track.id, kind: track.kind, formats: track.formats.clone() })
            .collect();
        for tapped in &tracks {
            self.command(Command::Tap { track: tapped.track, tap: Some(tap) });
        }
        Ok(Reply::Tapped { tracks })
    }

    fn close_tap(&mut self, tap: u32) -> Result<Reply, Refusal> {
        if !self.taps.contains(&Some(tap)) {
            return Err(Refusal::UnknownTap);
        }
        let tapped: Vec<_> = self.tracks.values().filter(|t| self.taps[t.kind as usize] == Some(tap)).map(|t| t.id).collect();
        for track in tapped {
            self.command(Command::Tap { track, tap: None });
        }
        for slot in self.taps.iter_mut().filter(|slot| **slot == Some(tap)) {
            *slot = None;
        }
        Ok(Reply::Untapped)
    }

    fn note_address(&mut self, transport: TransportId, remote: SocketAddr) -> bool {
        let Some(participant) = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id)) else {
            return false;
        };
        participant.address = Some(remote);
        if participant.is_routed() {
            let learnt = audit(participant, Action::Learnt { address: remote });
            self.outputs.push_back(Output::Audit(learnt));
        }
        true
    }

    fn note_peer_stats(&mut self, transport: TransportId, news: RtpPeerStats) -> bool {
        let participant = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id));
        let Some(Connection::Routed { stats, .. }) = participant.map(|participant| &mut participant.connection) else { return false };
        *stats = news;
        true
    }

    fn start_track(&mut self, id: TrackId) -> bool {
        let Some(track) = self.tracks.get_mut(&id) else { return false };
        track.started = true;
        let action = Action::Published { track: id, kind: track.kind, codec: track.formats.first().map(|first| first.format.codec()) };
        let owner = self.participants.get(&track.owner).expect("a track goes with its participant");
        self.outputs.push_back(Output::Audit(audit(owner, action)));
        self.feed_sections();
        true
    }

    fn close_transport(&mut self, now: Time, transport: TransportId, reason: CloseReason) -> bool {
        let Some(id) = self.by_transport.get(&transport).copied() else { return false };
        self.remove(now, id, reason);
        true
    }

    /// Takes a participant out, with its transport, tracks and sections; sections that it fed get another source.
    fn remove(&mut self, now: Time, id: ParticipantId, reason: CloseReason) {
        let Some(participant) = self.participants.remove(&id) else { return };
        self.connecting.remove(&(participant.joined + CONNECT_TIMEOUT, id));
        self.by_transport.remove(&participant.transport);
        self.by_resource.remove(&participant.resource);
        for track in &participant.tracks {
            self.tracks.remove(track);
        }
        for section in &participant.sections {
            self.sections.remove(section);
        }
        // After TransportLost the worker has already forgotten the transport and everything in it.
        if !matches!(reason, CloseReason::Lost(_)) {
            self.command(Command::CloseTransport { transport: participant.transport });
        }
        self.outputs.push_back(Output::Closed { transport: participant.transport, reason });
        let action = Action::Left { reason, stayed: now.since(participant.joined) };
        self.outputs.push_back(Output::Audit(audit(&participant, action)));
        self.feed_sections();
    }

    /// Sections that `old` feeds go on with `new` where they can decode it; the worker continues sequence and timestamp.
    fn move_sections(&mut self, old: TrackId, new: TrackId) {
        let fed: Vec<_> = self.sections.values().filter(|section| section.source == Some(old)).map(|section| section.id).collect();
        for section in fed {
            self.forward(section, Some(new));
        }
    }

    /// Gives every section the track that should feed it.
    fn feed_sections(&mut self) {
        let changes: Vec<_> = self
            .sections
            .values()
            .map(|section| (section.id, choose(&self.tracks, section), section.source))
            .filter(|(_, wanted, source)| wanted != source)
            .collect();
        for (section, wanted, _) in changes {
            self.forward(section, wanted);
        }
    }

    fn forward(&mut self, id: SubscriptionId, track: Option<TrackId>) {
        let Some(section) = self.sections.get_mut(&id) else { return };
        let source = track.and_then(|id| self.tracks.get(&id));
        let payload_types = source.map(|track| map_payload_types(&track.formats, &section.formats)).unwrap_or_default();
        let track = track.filter(|_| !payload_types.is_empty());
        section.source = track;
        self.command(Command::Forward { subscription: id, track, payload_types });
    }

    fn command(&mut self, command: Command) {
        self.outputs.push_back(Output::Command(command));
    }
}

fn audit(participant: &LocalParticipant, action: Action) -> Audit {
    Audit { participant: participant.id, identity: participant.identity.clone(), role: participant.role, action }
}
