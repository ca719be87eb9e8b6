//! Messages of the control connection between two nodes: plain values, and their FlatBuffers bytes.
//!
//! Bytes that came meet the bounds of length first, then the verifier, then the limits of lists and texts here. What the peer's
//! control connection is (TLS, length prefix) is the caller's business.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use pop_schemas::{
    Identity, Incarnation, NodeId, ParticipantId, SessionId, TrackId,
    generated::{relay as schema, verifier},
};

use crate::route::{Figures, LOSS_ALL};

/// Newest schema version that is spoken: 1 has `Offer.load`, `Want.origin` and `Feedback.jitter_us`.
pub const VERSION: u8 = 1;
/// Oldest schema version that is spoken.
pub const VERSION_MIN: u8 = 0;

/// Longest message, in bytes, without the length in front of it: one of 64 KiB of data, with the names of 1,024 receivers.
pub const CONTROL_LEN_MAX: usize = 256 * 1024;
/// Workers of a node; the low byte of an association numbers them.
pub const WORKERS_MAX: usize = 256;
/// Payload types of a track: as many as there are numbers.
pub const PAYLOAD_TYPES_MAX: usize = 128;
/// Header extensions of a track: as many as the one-byte form has ids, with room.
pub const EXTENSIONS_MAX: usize = 32;
/// Simulcast layers of a track: a bit each in `Ask`.
pub const LAYERS_MAX: usize = 8;
/// Longest name of a node, a PoP, a codec or a layer, in bytes.
pub const NAME_LEN_MAX: usize = 128;
/// Longest metadata of a room, in bytes: what operators may say.
pub const METADATA_LEN_MAX: usize = 64 * 1024;
/// Longest reason of a refusal, in bytes.
pub const REASON_LEN_MAX: usize = 256;

/// Longest body of a data message, in bytes.
pub const BODY_LEN_MAX: usize = 64 * 1024;
/// Receivers that a data message names; and senders, speakers, connections or tracks that a message tells of.
pub const ENTRIES_MAX: usize = 1_024;

/// PoPs that a message tells of.
pub const PATHS_MAX: usize = 512;
/// Nodes that a message tells of.
pub const LOCATED_MAX: usize = 256;
/// API keys of a session that PoPs meet for, and nodes that share one.
pub const MEET_KEYS_MAX: usize = 32;
/// See [`MEET_KEYS_MAX`].
pub const HOSTS_MAX: usize = 1_024;
/// Longest name of a release, in bytes.
pub const RELEASE_LEN_MAX: usize = 32;

/// Longest record, digest or page of records in bytes.
pub const TOLD_LEN_MAX: usize = 200 << 10;

/// Longest list of certificates that were taken back, in bytes.
pub const REVOKED_LEN_MAX: usize = 128 << 10;

/// Length of a proof that both ends know a link's secret.
pub const PROOF_LEN: usize = 32;

/// Tables of the largest message: the root, the message, its paths and nodes.
const TABLES_MAX: usize = 2 + PATHS_MAX + LOCATED_MAX;
const _: () = assert!(PAYLOAD_TYPES_MAX <= PATHS_MAX);

/// First on a control connection, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Newest schema that is spoken.
    pub version: u8,
    /// Oldest schema that is spoken.
    pub version_min: u8,
    /// Name of the node, as in its certificate.
    pub node: String,
    /// Name of its PoP, as in its certificate.
    pub pop: String,
    /// Orders the starts of this node.
    pub incarnation: Incarnation,
    /// What the receiver puts into the high byte of `Head.association`.
    pub link: u8,
    /// Relay address of each worker.
    pub workers: Vec<SocketAddr>,
    /// How long a frame may be late before nobody wants it; whole milliseconds.
    pub playout: Duration,
    /// It counts messages, and a link may go on over another connection: see [`Resume`].
    pub resumes: bool,
}

/// The asker's subscribers want a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The session it is in.
    pub session: SessionId,
    /// Which.
    pub track: TrackId,
    /// The asker's worker that will take it.
    pub worker: u16,
    /// The node of another PoP whose track it is: the reader, of the asker's PoP, is to take it from there and to pass it on. `None`: it is the
    /// reader's own. A writer for a peer of version 0 has none.
    pub origin: Option<NodeId>,
}

/// Nobody behind the asker wants it any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwant {
    /// Which.
    pub track: TrackId,
}

/// A payload type of a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadType {
    /// Its number.
    pub number: u8,
    /// As in `a=rtpmap`: `VP8`, `opus`; `raw` for bytes that nobody looks at.
    pub codec: String,
    /// In hertz.
    pub clock_rate: u32,
    /// Of its retransmissions.
    pub rtx: Option<u8>,
}

/// The origin sends a track from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which.
    pub track: TrackId,
    /// Its name in heads.
    pub alias: u16,
    /// The origin's worker that sends it.
    pub worker: u16,
    /// Audio, else video.
    pub audio: bool,
    /// What its packets may be.
    pub payload_types: Vec<PayloadType>,
    /// Ids of the header extensions in its packets, in an order that both ends know; 0: none.
    pub extensions: Vec<u8>,
    /// RIDs of its simulcast layers.
    pub layers: Vec<String>,
    /// Their places from the lowest quality up, when the publisher told them.
    pub order: Vec<u8>,
    /// Permille of the origin's capacity that is in use; 0 from a writer of version 0.
    pub load: u16,
}

/// The origin does not send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Which.
    pub track: TrackId,
    /// For the log of the asker.
    pub reason: String,
}

/// Keys of the next generation can be opened from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rekey {
    /// Which.
    pub generation: u32,
}

/// The writer lives, and what it has heard of the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// The writer's clock in microseconds.
    pub now_us: u64,
    /// The reader's clock in the last one that came of it; 0: none has.
    pub echo_us: u64,
    /// The writer holds this start of the reader for dead.
    pub dead: bool,
    /// The writer has not run for a while, and does not know yet whether others hold it for dead: this is no sign of life.
    pub hung: bool,
    /// Messages of this link that have come, but for those of this kind; 0 from one that does not count.
    pub received: u64,
}

/// First on a connection that takes the place of a link's, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Of the caller's attempts, each one higher; in an answer 0: the link is not known.
    pub number: u64,
    /// Messages of this link that have come.
    pub received: u64,
    /// Of the link's secret and this connection's.
    pub proof: [u8; PROOF_LEN],
}

/// The writer has members in a session of the reader's and wants to hear what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Which.
    pub session: SessionId,
    /// For how long the writer has known members of the reader in it: it misses nothing older. Whole milliseconds.
    pub age: Duration,
    /// The last reliable message that it has of each.
    pub received: Vec<(ParticipantId, u32)>,
}

/// The writer has nobody in the session any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfollow {
    /// Which.
    pub session: SessionId,
}

/// A message of a participant of the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Where it is said.
    pub session: SessionId,
    /// Who says it; 0: an operator.
    pub sender: ParticipantId,
    /// In order and never lost; else as it comes.
    pub reliable: bool,
    /// The sender's number of a reliable message; 0: it has none.
    pub sequence: u32,
    /// To these of the reader's participants; empty: to all.
    pub to: Vec<Identity>,
    /// At most [`BODY_LEN_MAX`] bytes.
    pub body: Arc<[u8]>,
}

/// How well somebody is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who.
    pub participant: ParticipantId,
    /// Mean opinion score, in hundredths.
    pub score: u16,
    /// 0 poor, 1 good, 2 excellent, 3 lost.
    pub grade: u8,
}

/// Of the writer's participants in a session: who speaks now, and whose connection has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub session: SessionId,
    /// All who speak, and how loud, in tenths.
    pub speaking: Vec<(ParticipantId, u8)>,
    /// Of those that have changed.
    pub connections: Vec<Connection>,
}

/// What an operator wants of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take one out.
    Remove,
    /// Silence tracks.
    Mute,
    /// Let tracks be heard.
    Unmute,
    /// Subscribe one to tracks.
    Subscribe,
    /// Unsubscribe one.
    Unsubscribe,
    /// End the room.
    Delete,
}

/// An operator wants something of a room of the reader's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Comes back in [`Done`].
    pub number: u64,
    /// Which room.
    pub session: SessionId,
    /// What.
    pub action: Action,
    /// Of whom; `None`: of all.
    pub identity: Option<Identity>,
    /// Which tracks.
    pub tracks: Vec<TrackId>,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// There is no such participant, or no such room.
    UnknownParticipant,
    /// There is no such track.
    UnknownTrack,
}

/// The answer to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of which.
    pub number: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What operators have said of a room, as the writer knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Which room.
    pub session: SessionId,
    /// At most [`METADATA_LEN_MAX`] bytes.
    pub metadata: String,
    /// It takes no more than these; 0: no bound was set.
    pub participants_max: u32,
    /// When and at which node it was said; of two the later counts.
    pub said: (u64, u64),
}

/// The way to another PoP, as a node measures it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Name of the PoP.
    pub pop: String,
    /// What it is like.
    pub figures: Figures,
}

/// Where a node of some PoP takes control connections. What it is worth its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Located {
    /// Its name.
    pub node: String,
    /// Its PoP's.
    pub pop: String,
    /// Where.
    pub address: SocketAddr,
}

/// What a node tells other PoPs of itself and of its ways to all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// At most [`PATHS_MAX`], none twice, each with a round trip.
    pub paths: Vec<Path>,
    /// Release of its program.
    pub release: String,
    /// Permille of what it can do that it does.
    pub load: u16,
    /// It takes no new people.
    pub draining: bool,
    /// At most [`LOCATED_MAX`] nodes of all PoPs, now and then.
    pub nodes: Vec<Located>,
    /// `paths` are those alone that have changed since the node told last.
    pub changes: bool,
    /// PoPs that it does not reach any more, with `changes` alone; at most [`PATHS_MAX`].
    pub gone: Vec<String>,
}

impl Paths {
    fn check(&self) -> Result<(), ControlError> {
        check_names(self.paths.iter().map(|path| path.pop.as_str()))?;
        check_names(self.nodes.iter().flat_map(|of| [of.node.as_str(), &of.pop]))?;
        check_names(self.gone.iter().map(String::as_str))?;
        let mut names: Vec<&str> = self.paths.iter().map(|path| path.pop.as_str()).chain(self.gone.iter().map(String::as_str)).collect();
        names.sort_unstable();
        let is_sound = |Path { figures: Figures { rtt_us, loss_out, loss_in, .. }, .. }: &Path| {
            *rtt_us > 0 && *loss_out <= LOSS_ALL && *loss_in <= LOSS_ALL
        };
        // It is shown in terminals.
        let holds = self.paths.len() <= PATHS_MAX
            && self.gone.len() <= PATHS_MAX
            && (self.changes || self.gone.is_empty())
            && self.paths.iter().all(is_sound)
            && names.windows(2).all(|pair| pair[0] != pair[1])
            && self.nodes.len() <= LOCATED_MAX
            && self.release.len() <= RELEASE_LEN_MAX
            && self.release.bytes().all(|byte| byte.is_ascii_graphic());
        if holds { Ok(()) } else { Err(ControlError::Limit) }
    }

    /// Takes what was told after it, as if both had been told at once.
    pub fn add(&mut self, later: Paths) {
        if !later.changes {
            let nodes = if later.nodes.is_empty() { std::mem::take(&mut self.nodes) } else { later.nodes };
            *self = Paths { nodes, ..later };
            return;
        }
        let is_later = |pop: &String| later.gone.contains(pop) || later.paths.iter().any(|path| path.pop == *pop);
        self.paths.retain(|path| !is_later(&path.pop));
        self.gone.retain(|pop| !is_later(pop));
        self.paths.extend(later.paths);
        self.paths.truncate(PATHS_MAX);
        if self.changes {
            self.gone.extend(later.gone);
            self.gone.truncate(PATHS_MAX);
        }
        if !later.nodes.is_empty() {
            self.nodes = later.nodes;
        }
        (self.release, self.load, self.draining) = (later.release, later.load, later.draining);
    }
}

/// What a node tells one of another PoP of who is in a session, as on the bus of a PoP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Which.
    pub session: SessionId,
    /// What.
    pub telling: Telling,
}

/// See [`Presence`]. Bodies are what the bus of a PoP carries, at most [`TOLD_LEN_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Telling {
    /// The writer wants to hear who of the reader's people is in it.
    Watch,
    /// No longer.
    Unwatch,
    /// The record of one of the writer's.
    Participant(ParticipantId, Arc<[u8]>),
    /// A digest of the writer's records.
    Digest(Arc<[u8]>),
    /// For the reader's records from this participant on; the number comes back.
    Ask(ParticipantId, u32),
    /// The answer.
    Page(ParticipantId, u32, Arc<[u8]>),
    /// The writer has people in it by tokens of these API keys, and meets others that have: at least one, at most [`MEET_KEYS_MAX`]. Here and in
    /// the two below the session is a digest of its name.
    Meet(Vec<String>),
    /// No longer.
    Part,
    /// These nodes have, too: at most [`HOSTS_MAX`].
    Hosts(Vec<NodeId>),
}

/// One message of a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Want`].
    Want(Want),
    /// See [`Unwant`].
    Unwant(Unwant),
    /// See [`Offer`].
    Offer(Offer),
    /// See [`Refuse`].
    Refuse(Refuse),
    /// See [`Rekey`].
    Rekey(Rekey),
    /// See [`Alive`].
    Alive(Alive),
    /// See [`Follow`].
    Follow(Follow),
    /// See [`Unfollow`].
    Unfollow(Unfollow),
    /// See [`Data`].
    Data(Data),
    /// The reader was too slow: messages for it were dropped, and no more come before it says [`Follow`] again.
    Gap,
    /// See [`Heard`].
    Heard(Heard),
    /// See [`Order`].
    Order(Order),
    /// See [`Done`].
    Done(Done),
    /// See [`Room`].
    Room(Room),
    /// See [`Paths`].
    Paths(Paths),
    /// See [`Presence`].
    Presence(Presence),
    /// See [`Resume`].
    Resume(Resume),
    /// A list of certificates that a CA has taken back, at most [`REVOKED_LEN_MAX`] bytes: what it is its signature says.
    Revoked(Arc<[u8]>),
}

/// Why bytes are no message, or a message is no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Longer than [`CONTROL_LEN_MAX`], or too short for any message.
    Length,
    /// Not a FlatBuffer of this schema: offsets, depth, tables.
    Malformed,
    /// A list, a text or a number in it is beyond its limit, or a name is no name.
    Limit,
    /// A message that a later version may know. Harmless: to be counted and passed over.
    Unknown,
}

impl ControlError {
    /// Every reason, in the order of its discriminant.
    pub const ALL: &'static [ControlError] = &[ControlError::Length, ControlError::Malformed, ControlError::Limit, ControlError::Unknown];

    /// A name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            ControlError::Length => "length",
            ControlError::Malformed => "malformed",
            ControlError::Limit => "limit",
            ControlError::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ControlError::Length => "is longer or shorter than a message may be",
            ControlError::Malformed => "is no message of the schema",
            ControlError::Limit => "holds a list, a text or a number beyond its limit",
            ControlError::Unknown => "is a message of a later version",
        })
    }
}

impl std::error::Error for ControlError {}

/// The version to speak with a peer that said `theirs`, where this end's newest is `ours`; `None`: there is none in common.
pub fn negotiate(ours: u8, theirs: &Hello) -> Option<u8> {
    let newest = theirs.version.min(ours);
    ((VERSION_MIN..=VERSION).contains(&newest) && theirs.version_min <= newest).then_some(newest)
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), ControlError> {
    let holds = names.into_iter().all(|name| name.len() <= NAME_LEN_MAX);
    if holds { Ok(()) } else { Err(ControlError::Limit) }
}

impl Hello {
    fn check(&self) -> Result<(), ControlError> {
        check_names([self.node.as_str(), &self.pop])?;
        let holds =
            self.version >= self.version_min && self.workers.len() <= WORKERS_MAX && self.playout.as_millis() <= u128::from(u16::MAX);
        if holds { Ok(()) } else { Err(ControlError::Limit) }
    }
}

impl Offer {
    fn check(&self) -> Result<(), ControlError> {
        check_names(self.payload_types.iter().map(|payload_type| payload_type.codec.as_str()))?;
        check_names(self.layers.iter().map(String::as_str))?;
        let holds = self.payload_types.len() <= PAYLOAD_TYPES_MAX
            && self.extensions.len() <= EXTENSIONS_MAX
            && self.layers.len() <= LAYERS_MAX
            && self.order.len() <= LAYERS_MAX;
        if holds { Ok(()) } else { Err(ControlError::Limit) }
    }
}

impl Refuse {
    fn check(&self) -> Result<(), ControlError> {
        if self.reason.len() <= REASON_LEN_MAX { Ok(()) } else { Err(ControlError::Limit) }
    }
}

fn check_entries(len: usize) -> Result<(), ControlError> {
    if len <= ENTRIES_MAX { Ok(()) } else { Err(ControlError::Limit) }
}

impl Data {
    fn check(&self) -> Result<(), ControlError> {
        check_entries(self.to.len())?;
        if self.body.len() <= BODY_LEN_MAX { Ok(()) } else { Err(ControlError::Limit) }
    }
}

/// The bytes of `message` for a peer that speaks `version`, without the length in front. Fails with [`ControlError::Limit`] where
/// [`decode`] would.
pub fn encode(message: &Message, version: u8) -> Result<Vec<u8>, ControlError> {
    let mut builder = FlatBufferBuilder::with_capacity(512);
    let (message_type, message) = match message {
        Message::Hello(hello) => (schema::Message::Hello, write_hello(&mut builder, hello)?),
        Message::Want(want) => {
            let session = builder.create_string(want.session.as_str());
            // Who does not know it would take the track for its own.
            if version < 1 && want.origin.is_some() {
                return Err(ControlError::Limit);
            }
            let origin = want.origin.map_or(0, |node| node.0);
            let args = schema::WantArgs { session: Some(session), track: want.track.0, worker: want.worker, origin };
            (schema::Message::Want, schema::Want::create(&mut builder, &args).as_union_value())
        }
        Message::Unwant(unwant) => {
            let args = schema::UnwantArgs { track: unwant.track.0 };
            (schema::Message::Unwant, schema::Unwant::create(&mut builder, &args).as_union_value())
        }
        Message::Offer(offer) => (schema::Message::Offer, write_offer(&mut builder, offer, version)?),
        Message::Refuse(refuse) => {
            refuse.check()?;
            let reason = builder.create_string(&refuse.reason);
            let args = schema::RefuseArgs { track: refuse.track.0, reason: Some(reason) };
            (schema::Message::Refuse, schema::Refuse::create(&mut builder, &args).as_union_value())
        }
        Message::Rekey(rekey) => {
            let args = schema::RekeyArgs { generation: rekey.generation };
            (schema::Message::Rekey, schema::Rekey::create(&mut builder, &args).as_union_value())
        }
        Message::Alive(alive) => {
            let Alive { now_us, echo_us, dead, hung, received } = *alive;
            let args = schema::AliveArgs { now_us, echo_us, dead, hung, received };
            (schema::Message::Alive, schema::Alive::create(&mut builder, &args).as_union_value())
        }
        Message::Follow(follow) => (schema::Message::Follow, write_follow(&mut builder, follow)?),
        Message::Unfollow(unfollow) => {
            let session = builder.create_string(unfollow.session.as_str());
            let args = schema::UnfollowArgs { session: Some(session) };
            (schema::Message::Unfollow, schema::Unfollow::create(&mut builder, &args).as_union_value())
        }
        Message::Data(data) => (schema::Message::Data, write_data(&mut builder, data)?),
        Message::Gap => (schema::Message::Gap, schema::Gap::create(&mut builder, &schema::GapArgs {}).as_union_value()),
        Message::Heard(heard) => (schema::Message::Heard, write_heard(&mut builder, heard)?),
        Message::Order(order) => (schema::Message::Order, write_order(&mut builder, order)?),
        Message::Done(done) => {
            let args = schema::DoneArgs { number: done.number, result: done.outcome as u8 };
            (schema::Message::Done, schema::Done::create(&mut builder, &args).as_union_value())
        }
        Message::Room(room) => (schema::Message::Room, write_room(&mut builder, room)?),
        Message::Paths(paths) => (schema::Message::Paths, write_paths(&mut builder, paths)?),
        Message::Presence(presence) => (schema::Message::Presence, write_presence(&mut builder, presence)?),
        Message::Revoked(list) => {
            if list.len() > REVOKED_LEN_MAX {
                return Err(ControlError::Limit);
            }
            let list = Some(builder.create_vector(list));
            (schema::Message::Revoked, schema::Revoked::create(&mut builder, &schema::RevokedArgs { list }).as_union_value())
        }
        Message::Resume(Resume { number, received, proof }) => {
            let proof = Some(builder.create_vector(proof));
            let args = schema::ResumeArgs { number: *number, received: *received, proof };
            (schema::Message::Resume, schema::Resume::create(&mut builder, &args).as_union_value())
        }
    };
    let control = schema::Control::create(&mut builder, &schema::ControlArgs { message_type, message: Some(message) });
    builder.finish(control, None);
    let bytes = builder.finished_data();
    if bytes.len() <= CONTROL_LEN_MAX { Ok(bytes.to_vec()) } else { Err(ControlError::Length) }
}

fn write_hello(builder: &mut FlatBufferBuilder<'_>, hello: &Hello) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    hello.check()?;
    let workers: Vec<_> = hello.workers.iter().map(|address| builder.create_string(&address.to_string())).collect();
    let args = schema::HelloArgs {
        version: hello.version,
        version_min: hello.version_min,
        node: Some(builder.create_string(&hello.node)),
        pop: Some(builder.create_string(&hello.pop)),
        start: hello.incarnation.start,
        nonce: hello.incarnation.nonce,
        link: hello.link,
        workers: Some(builder.create_vector(&workers)),
        playout_ms: hello.playout.as_millis() as u16,
        resumes: hello.resumes,
    };
    Ok(schema::Hello::create(builder, &args).as_union_value())
}

fn write_offer(builder: &mut FlatBufferBuilder<'_>, offer: &Offer, version: u8) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    offer.check()?;
    let payload_types: Vec<_> = offer
        .payload_types
        .iter()
        .map(|payload_type| {
            let codec = builder.create_string(&payload_type.codec);
            let args = schema::PayloadTypeArgs {
                number: payload_type.number,
                codec: Some(codec),
                clock_rate: payload_type.clock_rate,
                rtx: payload_type.rtx.map_or(-1, i16::from),
            };
            schema::PayloadType::create(builder, &args)
        })
        .collect();
    let layers: Vec<_> = offer.layers.iter().map(|layer| builder.create_string(layer)).collect();
    let args = schema::OfferArgs {
        track: offer.track.0,
        alias: offer.alias,
        worker: offer.worker,
        audio: offer.audio,
        payload_types: Some(builder.create_vector(&payload_types)),
        extensions: Some(builder.create_vector(&offer.extensions)),
        layers: Some(builder.create_vector(&layers)),
        order: Some(builder.create_vector(&offer.order)),
        load: if version >= 1 { offer.load } else { 0 },
    };
    Ok(schema::Offer::create(builder, &args).as_union_value())
}

fn write_follow(builder: &mut FlatBufferBuilder<'_>, follow: &Follow) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    check_entries(follow.received.len())?;
    let received: Vec<_> = follow.received.iter().map(|(participant, last)| schema::Received::new(participant.0, *last)).collect();
    let args = schema::FollowArgs {
        session: Some(builder.create_string(follow.session.as_str())),
        age_ms: u32::try_from(follow.age.as_millis()).unwrap_or(u32::MAX),
        received: Some(builder.create_vector(&received)),
    };
    Ok(schema::Follow::create(builder, &args).as_union_value())
}

fn write_data(builder: &mut FlatBufferBuilder<'_>, data: &Data) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    data.check()?;
    let to: Vec<_> = data.to.iter().map(|identity| builder.create_string(identity.as_str())).collect();
    let args = schema::DataArgs {
        session: Some(builder.create_string(data.session.as_str())),
        sender: data.sender.0,
        reliable: data.reliable,
        sequence: data.sequence,
        to: Some(builder.create_vector(&to)),
        body: Some(builder.create_vector(&data.body)),
    };
    Ok(schema::Data::create(builder, &args).as_union_value())
}

fn write_heard(builder: &mut FlatBufferBuilder<'_>, heard: &Heard) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    check_entries(heard.speaking.len().max(heard.connections.len()))?;
    let speaking: Vec<_> = heard.speaking.iter().map(|(participant, level)| schema::Speaking::new(participant.0, *level)).collect();
    let connection = |told: &Connection| schema::Connection::new(told.participant.0, told.score, told.grade);
    let connections: Vec<_> = heard.connections.iter().map(connection).collect();
    let args = schema::HeardArgs {
        session: Some(builder.create_string(heard.session.as_str())),
        speaking: Some(builder.create_vector(&speaking)),
        connections: Some(builder.create_vector(&connections)),
    };
    Ok(schema::Heard::create(builder, &args).as_union_value())
}

fn write_order(builder: &mut FlatBufferBuilder<'_>, order: &Order) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    check_entries(order.tracks.len())?;
    let tracks: Vec<_> = order.tracks.iter().map(|track| track.0).collect();
    let args = schema::OrderArgs {
        number: order.number,
        session: Some(builder.create_string(order.session.as_str())),
        action: schema::Action(order.action as u8),
        identity: order.identity.as_ref().map(|identity| builder.create_string(identity.as_str())),
        tracks: Some(builder.create_vector(&tracks)),
    };
    Ok(schema::Order::create(builder, &args).as_union_value())
}

fn write_room(builder: &mut FlatBufferBuilder<'_>, room: &Room) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    if room.metadata.len() > METADATA_LEN_MAX {
        return Err(ControlError::Limit);
    }
    let (said_ms, said_at) = room.said;
    let args = schema::RoomArgs {
        session: Some(builder.create_string(room.session.as_str())),
        metadata: Some(builder.create_string(&room.metadata)),
        participants_max: room.participants_max,
        said_ms,
        said_at,
    };
    Ok(schema::Room::create(builder, &args).as_union_value())
}

fn write_paths(builder: &mut FlatBufferBuilder<'_>, paths: &Paths) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    paths.check()?;
    let Paths { paths, release, load, draining, nodes, changes, gone } = paths;
    let gone: Vec<_> = gone.iter().map(|pop| builder.create_string(pop)).collect();
    let nodes: Vec<_> = nodes
        .iter()
        .map(|Located { node, pop, address }| {
            let [node, pop, address] = [node, pop, &address.to_string()].map(|text| Some(builder.create_string(text)));
            schema::Located::create(builder, &schema::LocatedArgs { node, pop, address })
        })
        .collect();
    let paths: Vec<_> = paths
        .iter()
        .map(|path| {
            let Figures { rtt_us, loss_out, loss_in, jitter_us } = path.figures;
            let pop = Some(builder.create_string(&path.pop));
            schema::Path::create(builder, &schema::PathArgs { pop, rtt_us, loss_out, loss_in, jitter_us })
        })
        .collect();
    let args = schema::PathsArgs {
        paths: Some(builder.create_vector(&paths)),
        release: Some(builder.create_string(release)),
        load: *load,
        draining: *draining,
        nodes: if nodes.is_empty() { None } else { Some(builder.create_vector(&nodes)) },
        changes: *changes,
        gone: if gone.is_empty() { None } else { Some(builder.create_vector(&gone)) },
    };
    Ok(schema::Paths::create(builder, &args).as_union_value())
}

fn check_keys<'a>(count: usize, keys: impl Iterator<Item = &'a str>) -> Result<(), ControlError> {
    if (1..=MEET_KEYS_MAX).contains(&count) { check_names(keys) } else { Err(ControlError::Limit) }
}

fn write_presence(builder: &mut FlatBufferBuilder<'_>, presence: &Presence) -> Result<WIPOffset<UnionWIPOffset>, ControlError> {
    let (mut keys, mut nodes) = (None, None);
    match &presence.telling {
        Telling::Meet(list) => {
            check_keys(list.len(), list.iter().map(String::as_str))?;
            let list: Vec<_> = list.iter().map(|key| builder.create_string(key)).collect();
            keys = Some(builder.create_vector(&list));
        }
        Telling::Hosts(list) if list.len() > HOSTS_MAX => return Err(ControlError::Limit),
        Telling::Hosts(list) => nodes = Some(builder.create_vector_from_iter(list.iter().map(|node| node.0))),
        _ => {}
    }
    let (telling, participant, number, body) = match &presence.telling {
        Telling::Meet(_) => (schema::Telling::Meet, 0, 0, None),
        Telling::Part => (schema::Telling::Part, 0, 0, None),
        Telling::Hosts(_) => (schema::Telling::Hosts, 0, 0, None),
        Telling::Watch => (schema::Telling::Watch, 0, 0, None),
        Telling::Unwatch => (schema::Telling::Unwatch, 0, 0, None),
        Telling::Participant(participant, body) => (schema::Telling::Participant, participant.0, 0, Some(body)),
        Telling::Digest(body) => (schema::Telling::Digest, 0, 0, Some(body)),
        Telling::Ask(from, number) => (schema::Telling::Ask, from.0, *number, None),
        Telling::Page(from, number, body) => (schema::Telling::Page, from.0, *number, Some(body)),
    };
    if body.is_some_and(|body| body.len() > TOLD_LEN_MAX) {
        return Err(ControlError::Limit);
    }
    let args = schema::PresenceArgs {
        session: Some(builder.create_string(presence.session.as_str())),
        telling,
        participant,
        number,
        body: body.map(|body| builder.create_vector(body)),
        keys,
        nodes,
    };
    Ok(schema::Presence::create(builder, &args).as_union_value())
}

/// The message that `bytes` are, the length in front of them taken off. Fields that the writer's version has not are what the version
/// before behaved as.
pub fn decode(bytes: &[u8]) -> Result<Message, ControlError> {
    // A root offset, a vtable of two fields, a table with them.
    if !(16..=CONTROL_LEN_MAX).contains(&bytes.len()) {
        return Err(ControlError::Length);
    }
    let control = flatbuffers::root_with_opts::<schema::Control<'_>>(&verifier(TABLES_MAX), bytes).map_err(|_| ControlError::Malformed)?;
    if let Some(hello) = control.message_as_hello() {
        read_hello(&hello).map(Message::Hello)
    } else if let Some(want) = control.message_as_want() {
        let origin = (want.origin() != 0).then_some(NodeId(want.origin()));
        Ok(Message::Want(Want { session: read_session(want.session())?, track: TrackId(want.track()), worker: want.worker(), origin }))
    } else if let Some(unwant) = control.message_as_unwant() {
        Ok(Message::Unwant(Unwant { track: TrackId(unwant.track()) }))
    } else if let Some(offer) = control.message_as_offer() {
        read_offer(&offer).map(Message::Offer)
    } else if let Some(refuse) = control.message_as_refuse() {
        let reason = refuse.reason().unwrap_or_default();
        // Looked at before it is copied.
        if reason.len() > REASON_LEN_MAX {
            return Err(ControlError::Limit);
        }
        Ok(Message::Refuse(Refuse { track: TrackId(refuse.track()), reason: reason.to_owned() }))
    } else if let Some(rekey) = control.message_as_rekey() {
        Ok(Message::Rekey(Rekey { generation: rekey.generation() }))
    } else if let Some(alive) = control.message_as_alive() {
        let (now_us, echo_us, dead, hung, received) = (alive.now_us(), alive.echo_us(), alive.dead(), alive.hung(), alive.received());
        Ok(Message::Alive(Alive { now_us, echo_us, dead, hung, received }))
    } else if let Some(follow) = control.message_as_follow() {
        read_follow(&follow).map(Message::Follow)
    } else if let Some(unfollow) = control.message_as_unfollow() {
        Ok(Message::Unfollow(Unfollow { session: read_session(unfollow.session())? }))
    } else if let Some(data) = control.message_as_data() {
        read_data(&data).map(Message::Data)
    } else if control.message_as_gap().is_some() {
        Ok(Message::Gap)
    } else if let Some(heard) = control.message_as_heard() {
        read_heard(&heard).map(Message::Heard)
    } else if let Some(order) = control.message_as_order() {
        read_order(&order)
    } else if let Some(done) = control.message_as_done() {
        let outcomes = [Outcome::Done, Outcome::UnknownParticipant, Outcome::UnknownTrack];
        let outcome = *outcomes.get(usize::from(done.result())).ok_or(ControlError::Unknown)?;
        Ok(Message::Done(Done { number: done.number(), outcome }))
    } else if let Some(room) = control.message_as_room() {
        read_room(&room).map(Message::Room)
    } else if let Some(paths) = control.message_as_paths() {
        read_paths(&paths).map(Message::Paths)
    } else if let Some(presence) = control.message_as_presence() {
        read_presence(&presence).map(Message::Presence)
    } else if let Some(revoked) = control.message_as_revoked() {
        let list = revoked.list().map(|list| list.bytes()).unwrap_or_default();
        if list.len() > REVOKED_LEN_MAX {
            return Err(ControlError::Limit);
        }
        Ok(Message::Revoked(list.into()))
    } else if let Some(resume) = control.message_as_resume() {
        let proof = resume.proof().and_then(|proof| proof.bytes().try_into().ok()).ok_or(ControlError::Limit)?;
        Ok(Message::Resume(Resume { number: resume.number(), received: resume.received(), proof }))
    } else {
        Err(ControlError::Unknown)
    }
}

fn read_session(name: &str) -> Result<SessionId, ControlError> {
    SessionId::new(name).map_err(|_| ControlError::Limit)
}

fn read_follow(follow: &schema::Follow<'_>) -> Result<Follow, ControlError> {
    let received = follow.received();
    check_entries(received.map_or(0, |list| list.len()))?;
    Ok(Follow {
        session: read_session(follow.session())?,
        age: Duration::from_millis(u64::from(follow.age_ms())),
        received: received.iter().flatten().map(|of| (ParticipantId(of.participant()), of.sequence())).collect(),
    })
}

fn read_data(data: &schema::Data<'_>) -> Result<Data, ControlError> {
    let (to, body) = (data.to(), data.body());
    check_entries(to.map_or(0, |list| list.len()))?;
    if body.len() > BODY_LEN_MAX {
        return Err(ControlError::Limit);
    }
    let to: Result<_, _> = to.iter().flatten().map(|name| Identity::new(name).map_err(|_| ControlError::Limit)).collect();
    Ok(Data {
        session: read_session(data.session())?,
        sender: ParticipantId(data.sender()),
        reliable: data.reliable(),
        sequence: data.sequence(),
        to: to?,
        body: body.bytes().into(),
    })
}

fn read_heard(heard: &schema::Heard<'_>) -> Result<Heard, ControlError> {
    let (speaking, connections) = (heard.speaking(), heard.connections());
    check_entries(speaking.map_or(0, |list| list.len()).max(connections.map_or(0, |list| list.len())))?;
    let connection =
        |of: &schema::Connection| Connection { participant: ParticipantId(of.participant()), score: of.score(), grade: of.grade() };
    Ok(Heard {
        session: read_session(heard.session())?,
        speaking: speaking.iter().flatten().map(|of| (ParticipantId(of.participant()), of.level())).collect(),
        connections: connections.iter().flatten().map(connection).collect(),
    })
}

fn read_order(order: &schema::Order<'_>) -> Result<Message, ControlError> {
    let tracks = order.tracks();
    check_entries(tracks.map_or(0, |list| list.len()))?;
    let action = match order.action() {
        schema::Action::Remove => Action::Remove,
        schema::Action::Mute => Action::Mute,
        schema::Action::Unmute => Action::Unmute,
        schema::Action::Subscribe => Action::Subscribe,
        schema::Action::Unsubscribe => Action::Unsubscribe,
        schema::Action::Delete => Action::Delete,
        // Who gives it waits for an answer in vain.
        _ => return Err(ControlError::Unknown),
    };
    Ok(Message::Order(Order {
        number: order.number(),
        session: read_session(order.session())?,
        action,
        identity: order.identity().map(|name| Identity::new(name).map_err(|_| ControlError::Limit)).transpose()?,
        tracks: tracks.iter().flatten().map(TrackId).collect(),
    }))
}

fn read_room(room: &schema::Room<'_>) -> Result<Room, ControlError> {
    let metadata = room.metadata().unwrap_or_default();
    // Looked at before it is copied.
    if metadata.len() > METADATA_LEN_MAX {
        return Err(ControlError::Limit);
    }
    Ok(Room {
        session: read_session(room.session())?,
        metadata: metadata.to_owned(),
        participants_max: room.participants_max(),
        said: (room.said_ms(), room.said_at()),
    })
}

fn read_paths(paths: &schema::Paths<'_>) -> Result<Paths, ControlError> {
    let (list, nodes, release, gone) = (paths.paths(), paths.nodes(), paths.release().unwrap_or_default(), paths.gone());
    // Looked at before it is copied.
    let is_long = list.map_or(0, |list| list.len()) > PATHS_MAX
        || gone.map_or(0, |list| list.len()) > PATHS_MAX
        || nodes.map_or(0, |list| list.len()) > LOCATED_MAX;
    if is_long || release.len() > RELEASE_LEN_MAX {
        return Err(ControlError::Limit);
    }
    check_names(list.iter().flatten().map(|path| path.pop()))?;
    check_names(nodes.iter().flatten().flat_map(|of| [of.node(), of.pop()]))?;
    check_names(gone.iter().flatten())?;
    let located = |of: schema::Located<'_>| {
        let address = of.address().parse().map_err(|_| ControlError::Limit)?;
        Ok(Located { node: of.node().to_owned(), pop: of.pop().to_owned(), address })
    };
    let nodes: Result<_, _> = nodes.iter().flatten().map(located).collect();
    let path = |path: schema::Path<'_>| Path {
        pop: path.pop().to_owned(),
        figures: Figures { rtt_us: path.rtt_us(), loss_out: path.loss_out(), loss_in: path.loss_in(), jitter_us: path.jitter_us() },
    };
    let paths = Paths {
        paths: list.iter().flatten().map(path).collect(),
        release: release.to_owned(),
        load: paths.load(),
        draining: paths.draining(),
        nodes: nodes?,
        changes: paths.changes(),
        gone: gone.iter().flatten().map(str::to_owned).collect(),
    };
    paths.check()?;
    Ok(paths)
}

fn read_presence(presence: &schema::Presence<'_>) -> Result<Presence, ControlError> {
    let body = presence.body().map(|body| body.bytes()).unwrap_or_default();
    if body.len() > TOLD_LEN_MAX {
        return Err(ControlError::Limit);
    }
    let (participant, number) = (ParticipantId(presence.participant()), presence.number());
    let telling = match presence.telling() {
        schema::Telling::Watch => Telling::Watch,
        schema::Telling::Unwatch => Telling::Unwatch,
        schema::Telling::Participant => Telling::Participant(participant, body.into()),
        schema::Telling::Digest => Telling::Digest(body.into()),
        schema::Telling::Ask => Telling::Ask(participant, number),
        schema::Telling::Page => Telling::Page(participant, number, body.into()),
        schema::Telling::Meet => {
            let keys = presence.keys();
            check_keys(keys.map_or(0, |keys| keys.len()), keys.iter().flatten())?;
            Telling::Meet(keys.iter().flatten().map(str::to_owned).collect())
        }
        schema::Telling::Part => Telling::Part,
        schema::Telling::Hosts => {
            let nodes = presence.nodes();
            if nodes.map_or(0, |nodes| nodes.len()) > HOSTS_MAX {
                return Err(ControlError::Limit);
            }
            Telling::Hosts(nodes.iter().flatten().map(NodeId).collect())
        }
        _ => return Err(ControlError::Unknown),
    };
    Ok(Presence { session: read_session(presence.session())?, telling })
}

fn read_hello(hello: &schema::Hello<'_>) -> Result<Hello, ControlError> {
    check_names([hello.node(), hello.pop()])?;
    let workers = hello.workers();
    if workers.len() > WORKERS_MAX {
        return Err(ControlError::Limit);
    }
    let workers: Result<_, _> = workers.iter().map(|text| text.parse().map_err(|_| ControlError::Limit)).collect();
    let hello = Hello {
        version: hello.version(),
        version_min: hello.version_min(),
        node: hello.node().to_owned(),
        pop: hello.pop().to_owned(),
        incarnation: Incarnation { start: hello.start(), nonce: hello.nonce() },
        link: hello.link(),
        workers: workers?,
        playout: Duration::from_millis(u64::from(hello.playout_ms())),
        resumes: hello.resumes(),
    };
    hello.check()?;
    Ok(hello)
}

fn read_offer(offer: &schema::Offer<'_>) -> Result<Offer, ControlError> {
    let (payload_types, layers) = (offer.payload_types(), offer.layers());
    let (extensions, order) = (offer.extensions(), offer.order());
    // Before anything is copied.
    let lengths = [
        (payload_types.map_or(0, |list| list.len()), PAYLOAD_TYPES_MAX),
        (layers.map_or(0, |list| list.len()), LAYERS_MAX),
        (extensions.map_or(0, |list| list.len()), EXTENSIONS_MAX),
        (order.map_or(0, |list| list.len()), LAYERS_MAX),
    ];
    if lengths.iter().any(|(len, len_max)| len > len_max) {
        return Err(ControlError::Limit);
    }
    check_names(payload_types.iter().flatten().map(|payload_type| payload_type.codec()))?;
    check_names(layers.iter().flatten())?;
    let payload_types: Result<_, _> = payload_types
        .iter()
        .flatten()
        .map(|payload_type| {
            let rtx = match payload_type.rtx() {
                -1 => None,
                rtx => Some(u8::try_from(rtx).map_err(|_| ControlError::Limit)?),
            };
            let (number, codec, clock_rate) = (payload_type.number(), payload_type.codec().to_owned(), payload_type.clock_rate());
            Ok(PayloadType { number, codec, clock_rate, rtx })
        })
        .collect();
    Ok(Offer {
        track: TrackId(offer.track()),
        alias: offer.alias(),
        worker: offer.worker(),
        audio: offer.audio(),
        payload_types: payload_types?,
        extensions: extensions.map_or_else(Vec::new, |list| list.bytes().to_vec()),
        layers: layers.iter().flatten().map(str::to_owned).collect(),
        order: order.map_or_else(Vec::new, |list| list.bytes().to_vec()),
        load: offer.load(),
    })
}
