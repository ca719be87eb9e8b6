//! What is on the bus, as bytes. What comes from other nodes meets the bounds here, then the verifier, then the accessors; a record
//! that is accepted is within what a session of this node would accept from a client of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, WIPOffset};
use pop_proto::control::{Codec, LAYERS_MAX as RIDS_MAX, MediaKind, TrackSsrcs};
use pop_schemas::generated::{bus as fb, verifier};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId, TrackId};
use pop_session::format::{Format, H264Profile, PayloadFormat};
use pop_session::member::{MemberState, PermissionSubject, Permissions, Quality, Source, SubscriptionPermission, TrackInfo, VideoLayer};
use pop_session::participant::Kind;
use pop_session::presence::{LocalRecord, Manifest, Record, RemoteKey, RemoteTrack, Taking, Version, WISHES_MAX, Wish};

/// Newest version of records that is written: 1 has `Track.waits`, `Track.ssrcs`, `Manifest.wishes` and `Node.vips`. Readers take 0, too.
pub const SCHEMA: u8 = 1;

/// Longest record of a participant in bytes: metadata and attributes of 64 KiB each are allowed to a member, and the rest fits the rest.
pub const RECORD_LEN_MAX: usize = 192 << 10;

/// Longest answer to a query: a page is full when the next record would make it longer, but holds one at least.
pub(super) const PAGE_LEN_MAX: usize = RECORD_LEN_MAX + 4_096;

/// Records of a page beyond which it is full, and bytes of them: some hundred typical ones, a fraction of a millisecond of work.
pub(super) const PAGE_RECORDS_MAX: usize = 512;
pub(super) const PAGE_BYTES: usize = 64 << 10;

/// Longest of the small ones: node record, beat, digest.
const SMALL_LEN_MAX: usize = 2_048;

/// Service addresses of a node: a config has 8 at most, and those of a later release may have more.
const VIPS_MAX: usize = 64;

const TEXT_LEN_MAX: usize = 256;
const OPAQUE_LEN_MAX: usize = 64 << 10;
const ATTRIBUTES_MAX: usize = 4_096;
const TRACKS_MAX: usize = 64;
const LAYERS_MAX: usize = 16;
const FORMATS_MAX: usize = 128;
/// Whom a manifest names as takers of its tracks, and tracks of each.
const TAKERS_MAX: usize = 128;
const TAKER_TRACKS_MAX: usize = 64;

/// Tables in a record: its manifest, tracks and their layers, takers.
const TABLES_MAX: usize = 2 + TRACKS_MAX * (1 + LAYERS_MAX) + TAKERS_MAX;

/// Payload type that stands for none.
const NO_RTX: u8 = 255;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Longer than any may be, or with more parts.
    TooLarge,
    /// No FlatBuffer of its kind, or with values that nobody means.
    Malformed,
}

/// What everybody may know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name, as `node.name`.
    pub name: Box<str>,
    /// Its PoP.
    pub pop: Box<str>,
    /// Which node.
    pub node: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Address of its control links; `None`: it has no mesh.
    pub mesh: Option<SocketAddr>,
    /// The release that runs.
    pub release: Box<str>,
    /// Permille of what it can do that it does.
    pub load: u16,
    /// Clients that it has place for.
    pub capacity: u32,
    /// It lets its people go.
    pub draining: bool,
    /// Service addresses that its host can have now.
    pub vips: Vec<IpAddr>,
}

/// A participant's record with its writer.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) incarnation: Incarnation,
    pub(super) record: Record,
}

/// It lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) incarnation: Incarnation,
    /// Of its newest node record; 0: it has none yet.
    pub(super) counter: u32,
}

/// What a node has of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) incarnation: Incarnation,
    pub(super) sum: Sum,
}

/// A set of participants in two numbers: the same for the same set in whatever order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) count: u32,
    pub(super) hash: u64,
}

impl Sum {
    pub(super) fn add(&mut self, participant: ParticipantId, version: Version) {
        self.count += 1;
        let version = u64::from(version.epoch) << 32 | u64::from(version.counter);
        self.hash = self.hash.wrapping_add(mix(participant.0 ^ mix(version)));
    }
}

/// The finalizer of SplitMix64: each bit of the input moves half of those of the output.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// An answer to a query.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) incarnation: Incarnation,
    /// One that is refused does not take the others with it.
    pub(super) records: Vec<Result<Written, RecordError>>,
    /// Ask again from here; `None`: that was all.
    pub(super) next: Option<ParticipantId>,
    /// Its bytes.
    pub(super) len: usize,
}

/// The bytes of a participant's record, as a writer of version `schema` makes them.
///
/// # Errors
///
/// It is longer than [`RECORD_LEN_MAX`], or has more parts than others accept.
pub fn encode_participant(node: NodeId, incarnation: Incarnation, record: &LocalRecord, schema: u8) -> Result<Vec<u8>, RecordError> {
    let mut builder = FlatBufferBuilder::with_capacity(512);
    let builder = &mut builder;
    let manifest = match &record.manifest {
        Some(manifest) if !is_bounded(manifest) => return Err(RecordError::TooLarge),
        Some(manifest) => Some(write_manifest(builder, manifest, schema)),
        None => None,
    };
    let root = fb::Participant::create(
        builder,
        &fb::ParticipantArgs {
            node: node.0,
            start: incarnation.start,
            nonce: incarnation.nonce,
            participant: record.participant.0,
            epoch: record.version.epoch,
            counter: record.version.counter,
            manifest,
        },
    );
    builder.finish_minimal(root);
    if builder.finished_data().len() > RECORD_LEN_MAX { Err(RecordError::TooLarge) } else { Ok(builder.finished_data().to_vec()) }
}

/// Others accept it.
fn is_bounded(manifest: &Manifest) -> bool {
    let track = |track: &RemoteTrack| {
        let info = &track.info;
        [&info.name, &info.mime, &info.mid, &info.stream].into_iter().chain(&track.rids).all(|text| text.len() <= TEXT_LEN_MAX)
            && info.layers.iter().all(|layer| layer.rid.len() <= TEXT_LEN_MAX)
            && [info.layers.len(), info.audio_features.len(), track.rids.len()].iter().all(|&len| len <= LAYERS_MAX)
            && track.formats.len() <= FORMATS_MAX
    };
    let attributes: usize = manifest.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    manifest.name.len() <= TEXT_LEN_MAX
        && manifest.metadata.len() <= OPAQUE_LEN_MAX
        && attributes <= OPAQUE_LEN_MAX
        && manifest.attributes.len() <= ATTRIBUTES_MAX
        && manifest.permissions.sources.len() <= LAYERS_MAX
        && manifest.tracks.len() <= TRACKS_MAX
        && manifest.tracks.iter().all(track)
        && manifest.wishes.len() <= WISHES_MAX
        && manifest.takers.participants.len() <= TAKERS_MAX
        && manifest.takers.participants.iter().all(|(_, tracks)| tracks.as_ref().is_none_or(|tracks| tracks.len() <= TAKER_TRACKS_MAX))
}

fn write_manifest<'a>(builder: &mut FlatBufferBuilder<'a>, manifest: &Manifest, schema: u8) -> WIPOffset<fb::Manifest<'a>> {
    let tracks: Vec<_> = manifest.tracks.iter().map(|track| write_track(builder, track, schema)).collect();
    let takers: Vec<_> = manifest.takers.participants.iter().map(|(who, tracks)| write_taker(builder, who, tracks.as_deref())).collect();
    let attributes: Vec<_> =
        manifest.attributes.iter().flat_map(|(name, value)| [name, value]).map(|text| builder.create_string(text)).collect();
    let wishes: Vec<_> = manifest.wishes.iter().map(write_wish).collect();
    let allowed = &manifest.permissions;
    let sources: Vec<_> = allowed.sources.iter().map(|&source| write_source(source)).collect();
    let permissions = fb::Permissions::new(
        allowed.subscribe,
        allowed.publish,
        allowed.publish_data,
        allowed.hidden,
        allowed.recorder,
        allowed.update_metadata,
    );
    let args = fb::ManifestArgs {
        identity: Some(builder.create_string(manifest.identity.as_str())),
        hidden: manifest.hidden,
        kind: match manifest.kind {
            Kind::Publisher => fb::Kind::Publisher,
            Kind::Viewer => fb::Kind::Viewer,
            Kind::Member => fb::Kind::Member,
        },
        name: write_text(builder, &manifest.name),
        metadata: write_text(builder, &manifest.metadata),
        attributes: (!attributes.is_empty()).then(|| builder.create_vector(&attributes)),
        state: match manifest.state {
            MemberState::Joining => fb::State::Joining,
            MemberState::Joined => fb::State::Joined,
            MemberState::Active => fb::State::Active,
            MemberState::Disconnected => fb::State::Disconnected,
        },
        joined_at_ms: manifest.joined_at_ms,
        permissions: Some(&permissions),
        sources: (!sources.is_empty()).then(|| builder.create_vector(&sources)),
        tracks: (!tracks.is_empty()).then(|| builder.create_vector(&tracks)),
        takers_all: manifest.takers.all,
        takers: (!takers.is_empty()).then(|| builder.create_vector(&takers)),
        takes_everything: manifest.taking.everything,
        takes_adaptive: manifest.taking.adaptive,
        wishes: (!wishes.is_empty() && schema >= 1).then(|| builder.create_vector(&wishes)),
    };
    fb::Manifest::create(builder, &args)
}

fn write_wish(wish: &Wish) -> fb::Wish {
    fb::Wish::new(wish.track.0, wish.height, wish.fps, write_quality(wish.quality), wish.priority)
}

fn write_taker<'a>(builder: &mut FlatBufferBuilder<'a>, who: &PermissionSubject, tracks: Option<&[TrackId]>) -> WIPOffset<fb::Taker<'a>> {
    let (identity, participant) = match who {
        PermissionSubject::Identity(identity) => (Some(builder.create_string(identity.as_str())), 0),
        PermissionSubject::Participant(participant) => (None, participant.0),
    };
    let some = tracks.is_some();
    let tracks = tracks.map(|tracks| builder.create_vector_from_iter(tracks.iter().map(|track| track.0)));
    fb::Taker::create(builder, &fb::TakerArgs { identity, participant, some, tracks })
}

/// An absent text is an empty one.
fn write_text<'a>(builder: &mut FlatBufferBuilder<'a>, text: &str) -> Option<WIPOffset<&'a str>> {
    (!text.is_empty()).then(|| builder.create_string(text))
}

fn write_track<'a>(builder: &mut FlatBufferBuilder<'a>, track: &RemoteTrack, schema: u8) -> WIPOffset<fb::Track<'a>> {
    let info = &track.info;
    let layers: Vec<_> = info.layers.iter().map(|layer| write_layer(builder, layer)).collect();
    let rids: Vec<_> = track.rids.iter().map(|rid| builder.create_string(rid)).collect();
    let formats: Vec<_> = track.formats.iter().map(write_format).collect();
    let (codec, clock_rate) = track.codec.map_or((fb::Codec::None, 0), write_codec);
    let args = fb::TrackArgs {
        track: info.track.0,
        audio: info.kind == MediaKind::Audio,
        source: write_source(info.source),
        name: write_text(builder, &info.name),
        muted: info.muted,
        width: info.width,
        height: info.height,
        layers: (!layers.is_empty()).then(|| builder.create_vector(&layers)),
        simulcast: info.simulcast,
        mime: write_text(builder, &info.mime),
        mid: write_text(builder, &info.mid),
        stream: write_text(builder, &info.stream),
        encryption: info.encryption,
        audio_features: (!info.audio_features.is_empty()).then(|| builder.create_vector(&info.audio_features)),
        disable_red: info.disable_red,
        stereo: info.stereo,
        disable_dtx: info.disable_dtx,
        codec,
        clock_rate,
        formats: (!formats.is_empty()).then(|| builder.create_vector(&formats)),
        rids: (!rids.is_empty()).then(|| builder.create_vector(&rids)),
        started: track.started,
        order: track.order,
        waits: track.waits && schema >= 1,
        ssrcs: if schema >= 1 { write_ssrcs(builder, track) } else { None },
    };
    fb::Track::create(builder, &args)
}

fn write_ssrcs<'a>(builder: &mut FlatBufferBuilder<'a>, track: &RemoteTrack) -> Option<WIPOffset<flatbuffers::Vector<'a, u32>>> {
    let ssrcs = || track.ssrcs.iter().take(track.rids.len()).flat_map(|of_layer| [of_layer.media, of_layer.rtx]);
    ssrcs().any(|ssrc| ssrc.is_some()).then(|| builder.create_vector(&ssrcs().map(Option::unwrap_or_default).collect::<Vec<_>>()))
}

fn write_layer<'a>(builder: &mut FlatBufferBuilder<'a>, layer: &VideoLayer) -> WIPOffset<fb::Layer<'a>> {
    let args = fb::LayerArgs {
        quality: write_quality(layer.quality),
        width: layer.width,
        height: layer.height,
        bitrate: layer.bitrate,
        rid: write_text(builder, &layer.rid),
        spatial: layer.spatial,
    };
    fb::Layer::create(builder, &args)
}

fn write_quality(quality: Quality) -> fb::Quality {
    match quality {
        Quality::Low => fb::Quality::Low,
        Quality::Medium => fb::Quality::Medium,
        Quality::High => fb::Quality::High,
        Quality::Off => fb::Quality::Off,
    }
}

fn write_source(source: Source) -> fb::Source {
    match source {
        Source::Unknown => fb::Source::Unknown,
        Source::Camera => fb::Source::Camera,
        Source::Microphone => fb::Source::Microphone,
        Source::ScreenShare => fb::Source::ScreenShare,
        Source::ScreenShareAudio => fb::Source::ScreenShareAudio,
    }
}

fn write_codec(codec: Codec) -> (fb::Codec, u32) {
    match codec {
        Codec::Opus => (fb::Codec::Opus, 0),
        Codec::Red => (fb::Codec::Red, 0),
        Codec::Vp8 => (fb::Codec::Vp8, 0),
        Codec::Vp9 => (fb::Codec::Vp9, 0),
        Codec::H264 => (fb::Codec::H264, 0),
        Codec::H265 => (fb::Codec::H265, 0),
        Codec::Av1 => (fb::Codec::Av1, 0),
        Codec::Raw { clock_rate } => (fb::Codec::Raw, clock_rate),
    }
}

fn write_format(format: &PayloadFormat) -> fb::Format {
    let (codec, clock_rate) = write_codec(format.format.codec());
    let (profile, mode, idc, iop) = match format.format {
        Format::Red { block } => (block, 0, 0, 0),
        Format::Vp9 { profile } | Format::Av1 { profile } => (profile, 0, 0, 0),
        Format::H265 { profile, high_tier } => (profile, u8::from(high_tier), 0, 0),
        Format::H264 { profile, packetization_mode } => {
            let (profile, idc, iop) = match profile {
                H264Profile::Baseline => (fb::H264Profile::Baseline, 0, 0),
                H264Profile::ConstrainedBaseline => (fb::H264Profile::ConstrainedBaseline, 0, 0),
                H264Profile::Main => (fb::H264Profile::Main, 0, 0),
                H264Profile::ConstrainedHigh => (fb::H264Profile::ConstrainedHigh, 0, 0),
                H264Profile::High => (fb::H264Profile::High, 0, 0),
                H264Profile::Other { idc, iop } => (fb::H264Profile::Other, idc, iop),
            };
            (profile.0, packetization_mode, idc, iop)
        }
        Format::Opus | Format::Vp8 | Format::Raw { .. } => (0, 0, 0, 0),
    };
    fb::Format::new(clock_rate, format.number, format.rtx.unwrap_or(NO_RTX), codec, profile, mode, idc, iop)
}

/// A verified buffer of at most `len_max` bytes.
fn read<'a, T>(bytes: &'a [u8], len_max: usize, tables: usize) -> Result<T::Inner, RecordError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    if bytes.len() > len_max {
        return Err(RecordError::TooLarge);
    }
    flatbuffers::root_with_opts::<T>(&verifier(tables), bytes).map_err(|_| RecordError::Malformed)
}

/// A participant's record and its writer.
pub(super) fn decode_participant(bytes: &[u8]) -> Result<Written, RecordError> {
    let record = read::<fb::Participant<'_>>(bytes, RECORD_LEN_MAX, TABLES_MAX)?;
    Ok(Written {
        incarnation: Incarnation { start: record.start(), nonce: record.nonce() },
        record: Record {
            key: RemoteKey { node: record.node(), participant: ParticipantId(record.participant()) },
            version: Version { epoch: record.epoch(), counter: record.counter() },
            manifest: record.manifest().map(read_manifest).transpose()?,
        },
    })
}

fn read_manifest(manifest: fb::Manifest<'_>) -> Result<Manifest, RecordError> {
    let texts = manifest.attributes().unwrap_or_default();
    if texts.len() > 2 * ATTRIBUTES_MAX || texts.iter().map(str::len).sum::<usize>() > OPAQUE_LEN_MAX {
        return Err(RecordError::TooLarge);
    }
    if !texts.len().is_multiple_of(2) {
        return Err(RecordError::Malformed);
    }
    let attributes: BTreeMap<Box<str>, Box<str>> =
        (0..texts.len() / 2).map(|i| (texts.get(2 * i).into(), texts.get(2 * i + 1).into())).collect();
    let tracks = manifest.tracks().unwrap_or_default();
    let sources = manifest.sources().unwrap_or_default();
    let takers = manifest.takers().unwrap_or_default();
    let wishes = manifest.wishes().unwrap_or_default();
    if wishes.len() > WISHES_MAX {
        return Err(RecordError::TooLarge);
    }
    if tracks.len() > TRACKS_MAX || sources.len() > LAYERS_MAX || takers.len() > TAKERS_MAX {
        return Err(RecordError::TooLarge);
    }
    let allowed = manifest.permissions();
    Ok(Manifest {
        identity: Identity::new(manifest.identity()).map_err(|_| RecordError::Malformed)?,
        hidden: manifest.hidden(),
        kind: match manifest.kind() {
            fb::Kind::Publisher => Kind::Publisher,
            fb::Kind::Viewer => Kind::Viewer,
            fb::Kind::Member => Kind::Member,
            _ => return Err(RecordError::Malformed),
        },
        name: read_text(manifest.name(), TEXT_LEN_MAX)?,
        metadata: read_text(manifest.metadata(), OPAQUE_LEN_MAX)?,
        attributes,
        state: match manifest.state() {
            fb::State::Joining => MemberState::Joining,
            fb::State::Joined => MemberState::Joined,
            fb::State::Active => MemberState::Active,
            fb::State::Disconnected => MemberState::Disconnected,
            _ => return Err(RecordError::Malformed),
        },
        joined_at_ms: manifest.joined_at_ms(),
        permissions: Permissions {
            subscribe: allowed.subscribe(),
            publish: allowed.publish(),
            publish_data: allowed.publish_data(),
            sources: sources.iter().map(read_source).collect(),
            hidden: allowed.hidden(),
            recorder: allowed.recorder(),
            update_metadata: allowed.update_metadata(),
        },
        takers: SubscriptionPermission {
            all: manifest.takers_all(),
            participants: takers.iter().map(read_taker).collect::<Result<_, _>>()?,
        },
        tracks: tracks.iter().map(read_track).collect::<Result<_, _>>()?,
        taking: Taking { everything: manifest.takes_everything(), adaptive: manifest.takes_adaptive() },
        wishes: wishes.iter().map(read_wish).collect::<Result<_, _>>()?,
    })
}

fn read_wish(wish: &fb::Wish) -> Result<Wish, RecordError> {
    let quality = read_quality(wish.quality())?;
    Ok(Wish { track: TrackId(wish.track()), quality, height: wish.height(), fps: wish.fps(), priority: wish.priority() })
}

fn read_taker(taker: fb::Taker<'_>) -> Result<(PermissionSubject, Option<Vec<TrackId>>), RecordError> {
    let tracks = taker.tracks().unwrap_or_default();
    if tracks.len() > TAKER_TRACKS_MAX {
        return Err(RecordError::TooLarge);
    }
    let who = match taker.identity() {
        Some(identity) => PermissionSubject::Identity(Identity::new(identity).map_err(|_| RecordError::Malformed)?),
        None => PermissionSubject::Participant(ParticipantId(taker.participant())),
    };
    Ok((who, taker.some().then(|| tracks.iter().map(TrackId).collect())))
}

fn read_text(text: Option<&str>, len_max: usize) -> Result<Box<str>, RecordError> {
    let text = text.unwrap_or_default();
    if text.len() > len_max { Err(RecordError::TooLarge) } else { Ok(text.into()) }
}

fn read_track(track: fb::Track<'_>) -> Result<RemoteTrack, RecordError> {
    let (layers, features) = (track.layers().unwrap_or_default(), track.audio_features().unwrap_or_default());
    let (formats, rids) = (track.formats().unwrap_or_default(), track.rids().unwrap_or_default());
    let of_layers = track.ssrcs().unwrap_or_default();
    let is_bounded = [layers.len(), features.len(), rids.len()].iter().all(|&len| len <= LAYERS_MAX);
    if !is_bounded || formats.len() > FORMATS_MAX || of_layers.len() > 2 * RIDS_MAX {
        return Err(RecordError::TooLarge);
    }
    let mut ssrcs = TrackSsrcs::default();
    for (place, ssrc) in of_layers.iter().enumerate().filter(|(_, ssrc)| *ssrc != 0) {
        let of_layer = &mut ssrcs[place / 2];
        *(if place % 2 == 0 { &mut of_layer.media } else { &mut of_layer.rtx }) = Some(ssrc);
    }
    let codec = match track.codec() {
        fb::Codec::None => None,
        codec => Some(read_codec(codec, track.clock_rate())?),
    };
    Ok(RemoteTrack {
        info: TrackInfo {
            track: TrackId(track.track()),
            kind: if track.audio() { MediaKind::Audio } else { MediaKind::Video },
            source: read_source(track.source()),
            name: read_text(track.name(), TEXT_LEN_MAX)?,
            muted: track.muted(),
            width: track.width(),
            height: track.height(),
            layers: layers.iter().map(read_layer).collect::<Result<_, _>>()?,
            simulcast: track.simulcast(),
            mime: read_text(track.mime(), TEXT_LEN_MAX)?,
            mid: read_text(track.mid(), TEXT_LEN_MAX)?,
            stream: read_text(track.stream(), TEXT_LEN_MAX)?,
            encryption: track.encryption(),
            audio_features: features.iter().collect(),
            disable_red: track.disable_red(),
            stereo: track.stereo(),
            disable_dtx: track.disable_dtx(),
        },
        codec,
        formats: formats.iter().map(read_format).collect::<Result<_, _>>()?,
        rids: rids.iter().map(|rid| read_text(Some(rid), TEXT_LEN_MAX)).collect::<Result<_, _>>()?,
        ssrcs,
        started: track.started(),
        order: track.order(),
        waits: track.waits(),
    })
}

fn read_layer(layer: fb::Layer<'_>) -> Result<VideoLayer, RecordError> {
    Ok(VideoLayer {
        quality: read_quality(layer.quality())?,
        width: layer.width(),
        height: layer.height(),
        bitrate: layer.bitrate(),
        rid: read_text(layer.rid(), TEXT_LEN_MAX)?,
        spatial: layer.spatial(),
    })
}

fn read_quality(quality: fb::Quality) -> Result<Quality, RecordError> {
    Ok(match quality {
        fb::Quality::Low => Quality::Low,
        fb::Quality::Medium => Quality::Medium,
        fb::Quality::High => Quality::High,
        fb::Quality::Off => Quality::Off,
        _ => return Err(RecordError::Malformed),
    })
}

/// A source of a later version is one that does not say.
fn read_source(source: fb::Source) -> Source {
    match source {
        fb::Source::Camera => Source::Camera,
        fb::Source::Microphone => Source::Microphone,
        fb::Source::ScreenShare => Source::ScreenShare,
        fb::Source::ScreenShareAudio => Source::ScreenShareAudio,
        _ => Source::Unknown,
    }
}

fn read_codec(codec: fb::Codec, clock_rate: u32) -> Result<Codec, RecordError> {
    Ok(match codec {
        fb::Codec::Opus => Codec::Opus,
        fb::Codec::Red => Codec::Red,
        fb::Codec::Vp8 => Codec::Vp8,
        fb::Codec::Vp9 => Codec::Vp9,
        fb::Codec::H264 => Codec::H264,
        fb::Codec::H265 => Codec::H265,
        fb::Codec::Av1 => Codec::Av1,
        // Timestamps are divided by it.
        fb::Codec::Raw if clock_rate > 0 => Codec::Raw { clock_rate },
        _ => return Err(RecordError::Malformed),
    })
}

fn read_format(format: &fb::Format) -> Result<PayloadFormat, RecordError> {
    let profile = format.profile();
    let read = match read_codec(format.codec(), format.clock_rate())? {
        Codec::Opus => Format::Opus,
        Codec::Red => Format::Red { block: profile },
        Codec::Vp8 => Format::Vp8,
        Codec::Vp9 => Format::Vp9 { profile },
        Codec::H264 => Format::H264 {
            profile: match fb::H264Profile(profile) {
                fb::H264Profile::Baseline => H264Profile::Baseline,
                fb::H264Profile::ConstrainedBaseline => H264Profile::ConstrainedBaseline,
                fb::H264Profile::Main => H264Profile::Main,
                fb::H264Profile::ConstrainedHigh => H264Profile::ConstrainedHigh,
                fb::H264Profile::High => H264Profile::High,
                fb::H264Profile::Other => H264Profile::Other { idc: format.idc(), iop: format.iop() },
                _ => return Err(RecordError::Malformed),
            },
            packetization_mode: format.mode(),
        },
        Codec::H265 => Format::H265 { profile, high_tier: format.mode() != 0 },
        Codec::Av1 => Format::Av1 { profile },
        Codec::Raw { clock_rate } => Format::Raw { clock_rate },
    };
    Ok(PayloadFormat { number: format.number(), format: read, rtx: (format.rtx() != NO_RTX).then_some(format.rtx()) })
}

pub(super) fn encode_node(record: &NodeRecord, counter: u32) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(256);
    let vips: Vec<_> = record.vips.iter().map(write_address).collect();
    let args = fb::NodeArgs {
        node: record.node.0,
        start: record.incarnation.start,
        nonce: record.incarnation.nonce,
        counter,
        name: Some(builder.create_string(&record.name)),
        pop: Some(builder.create_string(&record.pop)),
        mesh: record.mesh.map(|address| builder.create_string(&address.to_string())),
        release: write_text(&mut builder, &record.release),
        load: record.load,
        capacity: record.capacity,
        draining: record.draining,
        vips: (!vips.is_empty()).then(|| builder.create_vector(&vips)),
    };
    let root = fb::Node::create(&mut builder, &args);
    finish(builder, root)
}

/// A node's record, and how new it is.
pub(super) fn decode_node(bytes: &[u8]) -> Result<(NodeRecord, u32), RecordError> {
    let node = read::<fb::Node<'_>>(bytes, SMALL_LEN_MAX, 1)?;
    let vips = node.vips().unwrap_or_default();
    if vips.len() > VIPS_MAX {
        return Err(RecordError::TooLarge);
    }
    let record = NodeRecord {
        name: read_text(Some(node.name()), TEXT_LEN_MAX)?,
        pop: read_text(Some(node.pop()), TEXT_LEN_MAX)?,
        node: NodeId(node.node()),
        incarnation: Incarnation { start: node.start(), nonce: node.nonce() },
        mesh: node.mesh().map(str::parse).transpose().map_err(|_| RecordError::Malformed)?,
        release: read_text(node.release(), TEXT_LEN_MAX)?,
        load: node.load(),
        capacity: node.capacity(),
        draining: node.draining(),
        vips: vips.iter().map(read_address).collect(),
    };
    Ok((record, node.counter()))
}

fn write_address(address: &IpAddr) -> fb::Address {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    fb::Address::new((bits >> 64) as u64, bits as u64)
}

fn read_address(address: &fb::Address) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(u128::from(address.high()) << 64 | u128::from(address.low()))).to_canonical()
}

pub(super) fn encode_beat(beat: Beat) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(64);
    let args = fb::BeatArgs { start: beat.incarnation.start, nonce: beat.incarnation.nonce, counter: beat.counter };
    let root = fb::Beat::create(&mut builder, &args);
    finish(builder, root)
}

pub(super) fn decode_beat(bytes: &[u8]) -> Result<Beat, RecordError> {
    let beat = read::<fb::Beat<'_>>(bytes, SMALL_LEN_MAX, 1)?;
    Ok(Beat { incarnation: Incarnation { start: beat.start(), nonce: beat.nonce() }, counter: beat.counter() })
}

pub(super) fn encode_digest(digest: Digest) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(64);
    let Digest { incarnation, sum } = digest;
    let args = fb::DigestArgs { start: incarnation.start, nonce: incarnation.nonce, count: sum.count, hash: sum.hash };
    let root = fb::Digest::create(&mut builder, &args);
    finish(builder, root)
}

pub(super) fn decode_digest(bytes: &[u8]) -> Result<Digest, RecordError> {
    let digest = read::<fb::Digest<'_>>(bytes, SMALL_LEN_MAX, 1)?;
    let incarnation = Incarnation { start: digest.start(), nonce: digest.nonce() };
    Ok(Digest { incarnation, sum: Sum { count: digest.count(), hash: digest.hash() } })
}

/// A query for a page.
pub(super) fn encode_ask(session: &SessionId, from: ParticipantId) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(64);
    let session = Some(builder.create_string(session.as_str()));
    let root = fb::Ask::create(&mut builder, &fb::AskArgs { session, from: from.0 });
    finish(builder, root)
}

pub(super) fn decode_ask(bytes: &[u8]) -> Result<(SessionId, ParticipantId), RecordError> {
    let ask = read::<fb::Ask<'_>>(bytes, SMALL_LEN_MAX, 1)?;
    Ok((SessionId::new(ask.session()).map_err(|_| RecordError::Malformed)?, ParticipantId(ask.from())))
}

/// As many of `records` (ids and their bytes) as a page takes.
pub(super) fn encode_page<'a>(incarnation: Incarnation, records: impl Iterator<Item = (ParticipantId, &'a [u8])>) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(4_096);
    let (mut blobs, mut len, mut next) = (Vec::new(), 0, 0);
    for (participant, bytes) in records {
        // 16 bytes around each; the first is always in, and is no longer than RECORD_LEN_MAX.
        len += bytes.len() + 16;
        if !blobs.is_empty() && (len > PAGE_BYTES || blobs.len() >= PAGE_RECORDS_MAX) {
            next = participant.0;
            break;
        }
        let bytes = Some(builder.create_vector(bytes));
        blobs.push(fb::Blob::create(&mut builder, &fb::BlobArgs { bytes }));
    }
    let records = Some(builder.create_vector(&blobs));
    let root = fb::Page::create(&mut builder, &fb::PageArgs { start: incarnation.start, nonce: incarnation.nonce, records, next });
    finish(builder, root)
}

pub(super) fn decode_page(bytes: &[u8]) -> Result<Page, RecordError> {
    let page = read::<fb::Page<'_>>(bytes, PAGE_LEN_MAX, 1 + PAGE_RECORDS_MAX)?;
    Ok(Page {
        incarnation: Incarnation { start: page.start(), nonce: page.nonce() },
        records: page.records().unwrap_or_default().iter().map(|blob| decode_participant(blob.bytes().bytes())).collect(),
        next: (page.next() != 0).then_some(ParticipantId(page.next())),
        len: bytes.len(),
    })
}

fn finish<T>(mut builder: FlatBufferBuilder<'_>, root: WIPOffset<T>) -> Vec<u8> {
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

#[cfg(test)]
mod tests;
