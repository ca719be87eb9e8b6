//! A member: a client of the room protocol. It publishes and watches over one transport that it renegotiates as it likes, and hears of
//! the room by [`Notice`]s. Words are the room protocol's; its encoding is `pop`'s business (`signal/livekit`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{Codec, DataMessage, ExtensionIds, IceCredentials, MediaKind};
use pop_schemas::{Identity, ParticipantId, TrackId};

use crate::format::PayloadFormat;

/// What a token, or an operator, allows a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// May watch.
    pub subscribe: bool,
    /// May publish.
    pub publish: bool,
    /// May send data.
    pub publish_data: bool,
    /// What it may publish; empty: everything.
    pub sources: Vec<Source>,
    /// Is not shown to the others.
    pub hidden: bool,
    /// Is a recorder.
    pub recorder: bool,
    /// May change its own name, metadata and attributes.
    pub update_metadata: bool,
}

impl Permissions {
    /// What a client of WHIP, or a route, may do.
    pub const PUBLISHER: Permissions = Permissions {
        subscribe: false,
        publish: true,
        publish_data: false,
        sources: Vec::new(),
        hidden: false,
        recorder: false,
        update_metadata: false,
    };
}

/// What a track shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// It does not say.
    #[default]
    Unknown,
    /// A camera.
    Camera,
    /// A microphone.
    Microphone,
    /// A screen.
    ScreenShare,
    /// The sound of a screen.
    ScreenShareAudio,
}

impl Source {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Unknown => "unknown",
            Source::Camera => "camera",
            Source::Microphone => "microphone",
            Source::ScreenShare => "screen_share",
            Source::ScreenShareAudio => "screen_share_audio",
        }
    }
}

/// Who comes in.
#[derive(Debug)]
pub struct Enter {
    /// A new id, drawn at random. Its text is what a client resumes by, and no secret: others see it.
    pub participant: ParticipantId,
    /// From the token.
    pub identity: Identity,
    /// To be shown.
    pub name: Box<str>,
    /// Opaque.
    pub metadata: Box<str>,
    /// Opaque.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
    /// From the token.
    pub permissions: Permissions,
    /// Everything that others publish is subscribed until the client says otherwise.
    pub auto_subscribe: bool,
    /// The client chooses sizes by itself, so a track starts with the lowest layer until it has told one.
    pub adaptive_stream: bool,
    /// Wall clock in milliseconds since 1970, to be shown to others.
    pub joined_at_ms: u64,
    /// For logs: SDK and its version.
    pub client: Box<str>,
}

/// A client whose socket was cut and that comes back to its participant.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Who it was.
    pub participant: ParticipantId,
    /// From the token: must be the participant's.
    pub identity: Identity,
    /// From the token: it must allow what the participant may, or what its first token did. Ids are no secret.
    pub permissions: Permissions,
    /// Wall clock in milliseconds since 1970.
    pub now_ms: u64,
    /// For logs: SDK and its version.
    pub client: Box<str>,
}

/// What a member says on its socket.
#[derive(Debug)]
pub enum MemberRequest {
    /// It will publish a track.
    AddTrack(Box<AddTrack>),
    /// An offer of its transport; answered by [`Notice::Answer`].
    Offer(Box<Offer>),
    /// One of its tracks falls silent, or is heard again.
    Mute {
        /// Its track.
        track: TrackId,
        /// Silent.
        muted: bool,
    },
    /// Takes, or no longer takes, tracks of others.
    Subscribe {
        /// Which; unknown ones may still come.
        tracks: Vec<TrackId>,
        /// Take.
        subscribe: bool,
    },
    /// How it wants tracks that it takes.
    TrackSettings(TrackSettings),
    /// Who may take its tracks.
    SubscriptionPermission(SubscriptionPermission),
    /// What the client still knows after a resume.
    Sync(Box<Sync>),
    /// Changes its own name, metadata and attributes; answered by [`Notice::RequestAnswered`].
    UpdateMetadata(Box<MetadataUpdate>),
    /// What is known of one of its tracks has changed.
    UpdateTrack(TrackUpdate),
    /// It leaves for good.
    Leave,
    /// Its socket is gone; the participant stays for [`crate::session::RESUME_GRACE`].
    SocketClosed,
}

/// A track that is announced before its media.
#[derive(Clone, Debug, Default)]
pub struct AddTrack {
    /// The client's name for it: the track id of `a=msid` in its offer.
    pub cid: Box<str>,
    /// Audio or video.
    pub kind: Option<MediaKind>,
    /// What it shows.
    pub source: Source,
    /// To be shown.
    pub name: Box<str>,
    /// Starts silent.
    pub muted: bool,
    /// Of the picture, in pixels; 0 when not told.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// Layers as the client intends to send them, any order.
    pub layers: Vec<VideoLayer>,
    /// Groups tracks that belong together.
    pub stream: Box<str>,
    /// The room protocol's number for the kind of end-to-end encryption; 0 is none.
    pub encryption: i32,
    /// The room protocol's numbers of what the sound is like.
    pub audio_features: Vec<i32>,
    /// Redundant audio is off.
    pub disable_red: bool,
    /// Stereo.
    pub stereo: bool,
    /// The sender never falls silent on its own.
    pub disable_dtx: bool,
    /// What it means to send: its client offers every codec in an order that says nothing, and sends the answer's first.
    pub codec: Option<Codec>,
}

/// A layer that a publisher means to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VideoLayer {
    /// Which.
    pub quality: Quality,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// In bit/s, as planned.
    pub bitrate: u32,
    /// RID of the layer's stream; empty for spatial layers of one stream.
    pub rid: Box<str>,
    /// Spatial layer within one stream.
    pub spatial: u8,
}

/// Picture quality, in the room protocol's three steps and none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quality {
    /// The smallest.
    Low,
    /// Between.
    Medium,
    /// The best.
    #[default]
    High,
    /// Nothing.
    Off,
}

/// What is known of a track by everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackInfo {
    /// Its id.
    pub track: TrackId,
    /// As its publisher told it.
    pub kind: MediaKind,
    /// What it shows.
    pub source: Source,
    /// To be shown.
    pub name: Box<str>,
    /// Silent now.
    pub muted: bool,
    /// In pixels; 0: unknown.
    pub width: u32,
    /// In pixels; 0: unknown.
    pub height: u32,
    /// Lowest first; empty for audio.
    pub layers: Vec<VideoLayer>,
    /// One RTP stream for each layer.
    pub simulcast: bool,
    /// `video/VP8` and the like; empty before it is negotiated.
    pub mime: Box<str>,
    /// In its publisher's transport; empty before it is negotiated.
    pub mid: Box<str>,
    /// Groups tracks that belong together.
    pub stream: Box<str>,
    /// See [`AddTrack::encryption`].
    pub encryption: i32,
    /// See [`AddTrack::audio_features`].
    pub audio_features: Vec<i32>,
    /// See [`AddTrack::disable_red`].
    pub disable_red: bool,
    /// See [`AddTrack::stereo`].
    pub stereo: bool,
    /// See [`AddTrack::disable_dtx`].
    pub disable_dtx: bool,
}

/// What everybody may know of a participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantInfo {
    /// Its id.
    pub participant: ParticipantId,
    /// Who it says it is.
    pub identity: Identity,
    /// To be shown.
    pub name: Box<str>,
    /// Opaque.
    pub metadata: Box<str>,
    /// Opaque.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
    /// How far it is.
    pub state: MemberState,
    /// What it publishes.
    pub tracks: Vec<TrackInfo>,
    /// Wall clock in milliseconds since 1970.
    pub joined_at_ms: u64,
    /// Raised by each change.
    pub version: u32,
    /// What it may.
    pub permissions: Permissions,
    /// It publishes something.
    pub is_publisher: bool,
    /// Why it is gone, with [`MemberState::Disconnected`].
    pub left: Option<LeaveReason>,
}

/// How far a participant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Its socket is here, no offer yet.
    Joining,
    /// Its offer came.
    Joined,
    /// Its media may flow.
    Active,
    /// It is gone.
    Disconnected,
}

/// What everybody may know of the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomInfo {
    /// Its name.
    pub name: Box<str>,
    /// Unique for this life of the room.
    pub sid: Box<str>,
    /// Opaque.
    pub metadata: Box<str>,
    /// Those who are shown.
    pub participants: u32,
    /// Those of them that publish.
    pub publishers: u32,
    /// Wall clock in milliseconds since 1970.
    pub created_at_ms: u64,
    /// It takes no more than these; 0: an operator has set no bound.
    pub participants_max: u32,
}

/// An offer of a member's transport, checked and cut down to what can be served. Sections that cannot be served are not in it and
/// are answered as inactive by whoever writes the answer.
#[derive(Debug)]
pub struct Offer {
    /// The client's number for it; the answer carries it.
    pub id: u32,
    /// The client's fragment with what was drawn for the case that it is a new one.
    pub ice: IceCredentials,
    /// For the worker, when this is the first offer.
    pub transport: TransportOffer,
    /// In the offer's order.
    pub sections: Vec<OfferedSection>,
}

/// What a first offer says of the transport as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportOffer {
    /// Ids of the header extensions that the client sends.
    pub extensions: ExtensionIds,
    /// `transport-cc` was agreed in a section that sends.
    pub transport_cc: bool,
    /// `goog-remb` was agreed, for want of `transport-cc`.
    pub remb: bool,
    /// `a=rtcp-rsize` everywhere.
    pub reduced_size_rtcp: bool,
}

/// A media section that can be served, as its client sees it.
#[derive(Clone, Debug)]
pub struct OfferedSection {
    /// `a=mid`, never empty.
    pub mid: Box<str>,
    /// Audio or video.
    pub kind: MediaKind,
    /// The client sends into it.
    pub sends: Option<SendingSection>,
    /// The client takes from it.
    pub receives: Option<ReceivingSection>,
}

/// A section that the client publishes into.
#[derive(Clone, Debug)]
pub struct SendingSection {
    /// The track id of `a=msid`: [`AddTrack::cid`].
    pub cid: Box<str>,
    /// What it may send, in the answer's order.
    pub formats: Vec<PayloadFormat>,
    /// As in [`pop_proto::control::OpenTrack`].
    pub ssrc: Option<u32>,
    /// As in [`pop_proto::control::OpenTrack`].
    pub rtx_ssrc: Option<u32>,
    /// RIDs, as in [`pop_proto::control::OpenTrack`].
    pub layers: Vec<Box<str>>,
    /// `nack` was agreed.
    pub nack: bool,
    /// `nack pli` was agreed.
    pub pli: bool,
    /// `ccm fir` was agreed.
    pub fir: bool,
}

/// A section that a track can be sent into.
#[derive(Clone, Debug)]
pub struct ReceivingSection {
    /// What it can take, in the answer's order.
    pub formats: Vec<PayloadFormat>,
    /// As in [`pop_proto::control::OpenSubscription`].
    pub extensions: ExtensionIds,
    /// It takes retransmissions as a stream of their own.
    pub rtx: bool,
}

/// What the answer says of each section, and of ICE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the offer.
    pub id: u32,
    /// Our side, and the client's fragment that it goes with.
    pub ice: IceCredentials,
    /// CNAME of everything that we send to this client.
    pub cname: Box<str>,
    /// By mid; a section of the offer that is not named is inactive.
    pub sections: BTreeMap<Box<str>, SectionUse>,
}

/// What a section of a member's transport carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectionUse {
    /// The client's track that we take.
    pub takes: Option<TrackId>,
    /// What the client's track should be sent as: the first of the answer.
    pub codec: Option<Codec>,
    /// The track of another that we send.
    pub feeds: Option<Feed>,
}

/// A track of another in a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// Which.
    pub track: TrackId,
    /// Whose.
    pub publisher: ParticipantId,
    /// See [`TrackInfo::stream`].
    pub stream: Box<str>,
    /// SSRC of what we send.
    pub ssrc: u32,
    /// SSRC of its retransmissions.
    pub rtx_ssrc: Option<u32>,
}

/// How a member wants tracks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackSettings {
    /// Which.
    pub tracks: Vec<TrackId>,
    /// Nothing for now.
    pub disabled: bool,
    /// Used when no size is told.
    pub quality: Quality,
    /// Of the place where it is shown, in pixels; 0: not told.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// Frames per second; 0: not told.
    pub fps: u32,
    /// 1 is the highest; 0: not told.
    pub priority: u32,
}

/// Who may take a member's tracks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionPermission {
    /// Everybody, whatever `participants` says.
    pub all: bool,
    /// By identity (or, where the client names it so, by id): all tracks (`None`), or these.
    pub participants: Vec<(PermissionSubject, Option<Vec<TrackId>>)>,
}

/// Whom a permission names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermissionSubject {
    /// By who it says it is.
    Identity(Identity),
    /// By id.
    Participant(ParticipantId),
}

/// What a client still knows after a resume.
#[derive(Clone, Debug, Default)]
pub struct Sync {
    /// With `auto_subscribe` those that it does not take, else those that it takes.
    pub tracks: Vec<TrackId>,
    /// What `tracks` means.
    pub subscribe: bool,
    /// Those of them that are paused.
    pub disabled: Vec<TrackId>,
    /// What it publishes: its name for the track, and ours.
    pub published: Vec<(Box<str>, TrackId)>,
    /// Of each sender, the last reliable message that came.
    pub received: Vec<(ParticipantId, u32)>,
    /// By mid, what the last answer fed into each section. Only one who was taken over from another node needs it.
    pub fed: Vec<(Box<str>, TrackId)>,
}

/// New name, metadata and attributes.
#[derive(Clone, Debug, Default)]
pub struct MetadataUpdate {
    /// The client's number; the answer carries it.
    pub request: u32,
    /// `None`: as it was.
    pub name: Option<Box<str>>,
    /// `None`: as it was.
    pub metadata: Option<Box<str>>,
    /// An empty value removes the key.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
}

/// What is new about a track of a member's own.
#[derive(Clone, Debug)]
pub struct TrackUpdate {
    /// Which.
    pub track: TrackId,
    /// New size.
    pub size: Option<(u32, u32)>,
    /// New audio features.
    pub audio_features: Option<Vec<i32>>,
}

/// What a member is told. [`Notice::Welcome`] or [`Notice::Resumed`] comes first on each socket.
#[derive(Clone, Debug)]
pub enum Notice {
    /// It is in.
    Welcome(Box<Welcome>),
    /// It is back.
    Resumed(Box<Resumed>),
    /// To an offer.
    Answer(Box<Answer>),
    /// An offer cannot be served, in words for the log; the client gets a full reconnect.
    OfferRefused {
        /// The offer's number.
        id: u32,
        /// Why.
        reason: &'static str,
    },
    /// So many more receiving sections are needed.
    SectionsNeeded {
        /// Of audio.
        audio: u32,
        /// Of video.
        video: u32,
    },
    /// Its track has an id now.
    TrackPublished {
        /// The client's name for it.
        cid: Box<str>,
        /// With its id.
        track: Box<TrackInfo>,
    },
    /// A track that it announced will not be taken.
    AddTrackRefused {
        /// The client's name for it.
        cid: Box<str>,
        /// Why.
        refused: RequestRefusal,
    },
    /// Its track is no longer taken, although its client still sends it.
    TrackUnpublished(TrackId),
    /// Its track has its first subscriber.
    TrackSubscribed(TrackId),
    /// These have come, changed or gone (the receiver itself included, when it changed). One value is shared by all who are told.
    Participants(Arc<Vec<ParticipantInfo>>),
    /// An operator silenced its track.
    Muted {
        /// Which.
        track: TrackId,
        /// Silent.
        muted: bool,
    },
    /// Who speaks, the loudest first; those who stopped have `active` false.
    Speakers(Arc<Vec<Speaker>>),
    /// The room has changed.
    Room(Arc<RoomInfo>),
    /// How well participants are connected.
    Quality(Arc<Vec<ConnectionQuality>>),
    /// Tracks that it takes were paused for want of bandwidth, or go on.
    StreamStates(Vec<StreamState>),
    /// The best that anybody wants of its track: the client may stop what is above.
    SubscribedQuality {
        /// Its track.
        track: TrackId,
        /// [`Quality::Off`]: nobody wants anything.
        quality: Quality,
    },
    /// Whether it may take a track.
    SubscriptionPermission {
        /// Whose.
        publisher: ParticipantId,
        /// Which.
        track: TrackId,
        /// It may.
        allowed: bool,
    },
    /// A subscription cannot be served.
    SubscriptionFailed {
        /// Which.
        track: TrackId,
        /// Why.
        error: SubscriptionError,
    },
    /// To a request with a number.
    RequestAnswered {
        /// The client's number.
        request: u32,
        /// Why not; `None`: done.
        refused: Option<RequestRefusal>,
    },
    /// What its token should say has changed: the socket's owner signs another one.
    Grants(Box<Grants>),
    /// The end of this socket, and with `action` what the client should do. Nothing comes after it.
    Leave {
        /// Why.
        reason: LeaveReason,
        /// What the client should do.
        action: LeaveAction,
    },
}

/// What a client is told when it comes in.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// The room.
    pub room: RoomInfo,
    /// Itself.
    pub participant: ParticipantInfo,
    /// Those that it may see.
    pub others: Vec<ParticipantInfo>,
}

/// What a client is told when it is back; [`Notice::Participants`] with everybody follows.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// The last reliable message of its own that came here.
    pub last_message: u32,
}

/// What a token should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// To be shown.
    pub name: Box<str>,
    /// Opaque.
    pub metadata: Box<str>,
    /// Opaque.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
    /// What it may.
    pub permissions: Permissions,
}

/// One who speaks, or has just stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speaker {
    /// Who.
    pub participant: ParticipantId,
    /// 0 to 1, linear.
    pub level: f32,
    /// Speaks now.
    pub active: bool,
}

/// How well a participant is connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnectionQuality {
    /// Who.
    pub participant: ParticipantId,
    /// In words.
    pub grade: ConnectionGrade,
    /// 1 to 5, as a mean opinion score.
    pub score: f32,
}

/// In words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionGrade {
    /// Hardly usable.
    Poor,
    /// Fair.
    Good,
    /// Nothing to complain of.
    Excellent,
    /// Nothing comes.
    Lost,
}

/// A subscription that was paused, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Whose.
    pub publisher: ParticipantId,
    /// Which.
    pub track: TrackId,
    /// Nothing is sent.
    pub paused: bool,
}

/// Why a subscription cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionError {
    /// Its client can decode none of its formats.
    Codec,
    /// There is no such track.
    UnknownTrack,
    /// The worker has no place for it.
    Full,
}

/// Why a numbered request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestRefusal {
    /// There is no such thing.
    NotFound,
    /// The token does not allow it.
    NotAllowed,
    /// More than a bound.
    LimitExceeded,
    /// It contradicts itself.
    Invalid,
}

/// Why somebody is out; the room protocol has a number for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// It said so.
    ClientInitiated,
    /// Its identity came again.
    DuplicateIdentity,
    /// The node stops.
    ServerShutdown,
    /// An operator took it out.
    Removed,
    /// An operator ended the room.
    RoomDeleted,
    /// What it wants to resume is not here.
    StateMismatch,
    /// It could not join.
    JoinFailure,
    /// Its socket went and did not come back.
    SignalClosed,
    /// Its media transport was lost.
    ConnectionTimeout,
    /// Its transport failed (DTLS, media).
    MediaFailure,
}

/// What a client should do after the end of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveAction {
    /// Nothing.
    Disconnect,
    /// Come back with what it has.
    Resume,
    /// Begin anew.
    Reconnect,
}

/// What an operator asks of a room (RoomService).
#[derive(Debug)]
pub enum AdminRequest {
    /// Who is here: [`crate::Reply::Participants`].
    List,
    /// Take one out.
    Remove(Identity),
    /// Silence a track, or let it be heard.
    Mute {
        /// Whose.
        identity: Identity,
        /// Which.
        track: TrackId,
        /// Silent.
        muted: bool,
    },
    /// Subscribe one to tracks, or unsubscribe.
    Subscribe {
        /// Who.
        identity: Identity,
        /// To which.
        tracks: Vec<TrackId>,
        /// Take.
        subscribe: bool,
    },
    /// Change what others see of one, and what it may.
    Update {
        /// Who.
        identity: Identity,
        /// New texts.
        texts: MetadataUpdate,
        /// New permissions.
        permissions: Option<Permissions>,
    },
    /// Change the room's metadata.
    UpdateRoom {
        /// Opaque.
        metadata: Box<str>,
        /// Wall clock in milliseconds since 1970.
        now_ms: u64,
    },
    /// What is known of the room: [`crate::Reply::Room`].
    Describe,
    /// Make the room, or change the one that is there; answered as `Describe` is.
    Create {
        /// `None`: as it was.
        metadata: Option<Box<str>>,
        /// As in [`RoomInfo::participants_max`]; 0: as it was.
        participants_max: u32,
        /// Wall clock in milliseconds since 1970.
        now_ms: u64,
    },
    /// Hand a message to members; it has no sender among them.
    SendData(Arc<DataMessage>),
    /// End the room for all.
    Delete,
}

/// How long reliable messages are kept for receivers that come back.
pub const DATA_HISTORY: Duration = Duration::from_secs(30);
