//! What crosses the queues: a [`Command`] goes down to a worker, an [`Event`] comes up from it.

mod data;
mod rtp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::{NodeId, SubscriptionId, TrackId, TransportId};
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use data::{DATA_MESSAGE_LEN_MAX, DataMessage};
pub use rtp::{ANY_PAYLOAD_TYPE, Numbering, OpenRtp, RtcpVia, RtpPeer, RtpPeerStats};

use crate::probe::ProbeRates;

/// Largest DTLS datagram that is taken or sent, in bytes: an Ethernet MTU's worth.
pub const DTLS_DATAGRAM_LEN_MAX: usize = 1_500;

/// Payload types that one media section may name.
pub const PAYLOAD_TYPES_MAX: usize = 16;

/// Simulcast layers that one track may have: browsers send at most three, and a fourth for a screen.
pub const LAYERS_MAX: usize = 4;

/// Longest mid or RID that goes into or comes out of a header extension, in bytes: the limit of the one-byte form.
pub const MID_LEN_MAX: usize = 16;

/// Longest ICE ufrag or password that is taken, in bytes (RFC 8839 section 5.4 allows 256; browsers send 4 and 24).
pub const ICE_TEXT_LEN_MAX: usize = 256;

/// From here on a socket's index is that of a TCP listener of the worker, and a path is one connection to it.
pub const TCP_SOCKET_BASE: u16 = 0x8000;

/// Where a datagram came from or goes to: one of the worker's sockets and the far address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Index of the worker's socket.
    pub socket: u16,
    /// The far end.
    pub remote: SocketAddr,
}

impl Path {
    /// Whether datagrams go by a TCP connection (RFC 6544).
    pub const fn is_tcp(&self) -> bool {
        self.socket >= TCP_SOCKET_BASE
    }
}

/// A bounded copy of one DTLS datagram.
#[derive(Clone, Copy)]
pub struct Datagram {
    len: u16,
    bytes: [u8; DTLS_DATAGRAM_LEN_MAX],
}

impl Datagram {
    /// A copy of `bytes`; `None` when it is longer than [`DTLS_DATAGRAM_LEN_MAX`].
    pub fn new(bytes: &[u8]) -> Option<Datagram> {
        let mut copy = Datagram { len: u16::try_from(bytes.len()).ok()?, bytes: [0; DTLS_DATAGRAM_LEN_MAX] };
        copy.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(copy)
    }

    /// The datagram.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Datagram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Datagram({} bytes)", self.len)
    }
}

/// The SRTP protection profile that DTLS agreed on (RFC 5764 section 4.1.2, RFC 7714 section 14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SrtpProfile {
    /// `SRTP_AES128_CM_HMAC_SHA1_80`, 0x0001.
    Aes128CmSha1_80,
    /// `SRTP_AEAD_AES_128_GCM`, 0x0007.
    AeadAes128Gcm,
    /// `SRTP_AEAD_AES_256_GCM`, 0x0008.
    AeadAes256Gcm,
}

impl SrtpProfile {
    /// Bytes of a master key.
    pub const fn key_len(self) -> usize {
        match self {
            SrtpProfile::Aes128CmSha1_80 | SrtpProfile::AeadAes128Gcm => 16,
            SrtpProfile::AeadAes256Gcm => 32,
        }
    }

    /// Bytes of a master salt.
    pub const fn salt_len(self) -> usize {
        match self {
            SrtpProfile::Aes128CmSha1_80 => 14,
            SrtpProfile::AeadAes128Gcm | SrtpProfile::AeadAes256Gcm => 12,
        }
    }

    /// The name that logs and the API show.
    pub const fn name(self) -> &'static str {
        match self {
            SrtpProfile::Aes128CmSha1_80 => "AES128_CM_HMAC_SHA1_80",
            SrtpProfile::AeadAes128Gcm => "AEAD_AES_128_GCM",
            SrtpProfile::AeadAes256Gcm => "AEAD_AES_256_GCM",
        }
    }
}

/// One direction's master key and salt.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey {
    /// Master key; the first `SrtpProfile::key_len` bytes count.
    pub key: [u8; 32],
    /// Master salt; the first `SrtpProfile::salt_len` bytes count.
    pub salt: [u8; 14],
}

/// What DTLS exported for one transport.
pub struct SrtpKeys {
    /// Agreed profile.
    pub profile: SrtpProfile,
    /// Protects what this node sends.
    pub local: MasterKey,
    /// Opens what the client sends.
    pub remote: MasterKey,
}

impl std::fmt::Debug for SrtpKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SrtpKeys({})", self.profile.name())
    }
}

/// Audio or video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MediaKind {
    /// Audio.
    Audio,
    /// Video.
    Video,
}

impl MediaKind {
    /// `audio` or `video`, as in SDP.
    pub const fn name(self) -> &'static str {
        match self {
            MediaKind::Audio => "audio",
            MediaKind::Video => "video",
        }
    }
}

/// A codec that passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codec {
    /// RFC 7587.
    Opus,
    /// Redundant audio (RFC 2198) over Opus.
    Red,
    /// RFC 7741.
    Vp8,
    /// RFC 9628.
    Vp9,
    /// RFC 6184.
    H264,
    /// RFC 7798.
    H265,
    /// AOM RTP payload format 1.0.
    Av1,
    /// Bytes that are not looked at; counted as video, each packet stands alone.
    Raw {
        /// RTP clock rate in Hz.
        clock_rate: u32,
    },
}

impl Codec {
    /// Audio or video.
    pub const fn kind(self) -> MediaKind {
        match self {
            Codec::Opus | Codec::Red => MediaKind::Audio,
            _ => MediaKind::Video,
        }
    }

    /// RTP clock rate in Hz.
    pub const fn clock_rate(self) -> u32 {
        match self {
            Codec::Opus | Codec::Red => 48_000,
            Codec::Raw { clock_rate } => clock_rate,
            _ => 90_000,
        }
    }

    /// The codec that [`Codec::name`] and [`Codec::clock_rate`] tell.
    pub fn named(name: &str, clock_rate: u32) -> Option<Codec> {
        let known = [Codec::Opus, Codec::Red, Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1, Codec::Raw { clock_rate }];
        known.into_iter().find(|codec| codec.name() == name && codec.clock_rate() == clock_rate)
    }

    /// The encoding name of `a=rtpmap`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Opus => "opus",
            Codec::Red => "red",
            Codec::Vp8 => "VP8",
            Codec::Vp9 => "VP9",
            Codec::H264 => "H264",
            Codec::H265 => "H265",
            Codec::Av1 => "AV1",
            Codec::Raw { .. } => "raw",
        }
    }
}

/// A payload type with its codec, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadType {
    /// RTP payload type, 0 to 127, or [`ANY_PAYLOAD_TYPE`].
    pub number: u8,
    /// What it carries.
    pub codec: Codec,
    /// Payload type of its retransmissions (RFC 4588 section 8.6: `apt` of that one names `number`).
    pub rtx: Option<u8>,
}

/// A header extension (RFC 8285) that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Extension {
    /// Media section of the packet (RFC 9143 section 15).
    Mid,
    /// Simulcast layer of the packet (RFC 8852 section 3.1).
    Rid,
    /// Simulcast layer that an RTX packet repairs (RFC 8852 section 3.2).
    RepairedRid,
    /// When the packet left its sender, 6.18 fixed point seconds.
    AbsSendTime,
    /// Transport-wide sequence number (draft-holmer-rmcat-transport-wide-cc-extensions-01 section 2).
    TransportCc,
    /// Client-to-mixer audio level (RFC 6464).
    AudioLevel,
    /// AV1's dependency descriptor (AOM RTP payload format 1.0, appendix A).
    DependencyDescriptor,
    /// Smallest and largest playout delay that the sender asks for.
    PlayoutDelay,
    /// Rotation and flip of the picture (3GPP TS 26.114, CVO).
    VideoOrientation,
}

impl Extension {
    /// Every extension, in the order of its discriminant.
    pub const ALL: [Extension; 9] = [
        Extension::Mid,
        Extension::Rid,
        Extension::RepairedRid,
        Extension::AbsSendTime,
        Extension::TransportCc,
        Extension::AudioLevel,
        Extension::DependencyDescriptor,
        Extension::PlayoutDelay,
        Extension::VideoOrientation,
    ];

    /// What `a=extmap` calls it.
    pub const fn uri(self) -> &'static str {
        match self {
            Extension::Mid => "urn:ietf:params:rtp-hdrext:sdes:mid",
            Extension::Rid => "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
            Extension::RepairedRid => "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
            Extension::AbsSendTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
            Extension::TransportCc => "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            Extension::AudioLevel => "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            Extension::DependencyDescriptor => "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension",
            Extension::PlayoutDelay => "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
            Extension::VideoOrientation => "urn:3gpp:video-orientation",
        }
    }
}

/// The id of each extension in one media section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtensionIds([u8; Extension::ALL.len()]);

impl ExtensionIds {
    /// None is negotiated.
    pub const NONE: ExtensionIds = ExtensionIds([0; Extension::ALL.len()]);

    /// The id, when it is negotiated: 1 to 14 fit the one-byte form, the rest needs the two-byte form (RFC 8285 section 4.2).
    pub const fn get(&self, extension: Extension) -> Option<u8> {
        match self.0[extension as usize] {
            0 => None,
            id => Some(id),
        }
    }

    /// The same with `extension` under `id`; 0 means not negotiated.
    #[must_use]
    pub const fn with(mut self, extension: Extension, id: u8) -> ExtensionIds {
        self.0[extension as usize] = id;
        self
    }

    /// Each extension's id, in the order of [`Extension::ALL`]; 0: not negotiated.
    pub const fn ids(&self) -> &[u8; Extension::ALL.len()] {
        &self.0
    }

    /// The ids of [`ExtensionIds::ids`]; what is missing is not negotiated, what is beyond is of a later version.
    pub fn from_ids(ids: &[u8]) -> ExtensionIds {
        ExtensionIds(std::array::from_fn(|i| ids.get(i).copied().unwrap_or(0)))
    }

    /// The extension that has this id.
    pub fn extension(&self, id: u8) -> Option<Extension> {
        if id == 0 {
            return None;
        }
        Extension::ALL.into_iter().find(|extension| self.0[*extension as usize] == id)
    }
}

/// The ICE credentials of both ends (RFC 8445 section 5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    /// Our fragment; unique on the worker. Checks arrive for `local_ufrag:remote_ufrag`.
    pub local_ufrag: Box<str>,
    /// Our password: the key of every check's MESSAGE-INTEGRITY.
    pub local_pwd: Box<str>,
    /// The client's fragment.
    pub remote_ufrag: Box<str>,
}

impl std::fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IceCredentials({}:{})", self.local_ufrag, self.remote_ufrag)
    }
}

/// A new transport.
#[derive(Clone, Debug)]
pub struct OpenTransport {
    /// Its id.
    pub transport: TransportId,
    /// ICE credentials.
    pub ice: IceCredentials,
    /// Extension ids in what the client sends: one numbering for all of its sections (RFC 9143 section 7.1.3 has one RTP session).
    pub extensions: ExtensionIds,
    /// Transport-wide feedback was negotiated (`a=rtcp-fb transport-cc`): the worker sends it for packets with the extension.
    pub transport_cc: bool,
    /// The worker sends REMB: `a=rtcp-fb goog-remb` was negotiated and transport-wide feedback was not.
    pub remb: bool,
    /// The client takes RTCP that is not a compound (`a=rtcp-rsize`, RFC 5506).
    pub reduced_size_rtcp: bool,
    /// SSRC of our RTCP towards this client; drawn anew for each transport.
    pub rtcp_ssrc: u32,
    /// CNAME of everything that we send to this client.
    pub cname: Box<str>,
}

/// The id of the transport, the track and the section by which a node tests its own way for media, one of each on every worker; what is drawn
/// for clients is this one with a chance of 2^-64. They are in no plan and in no figure, bring no events that matter, and do not keep a worker
/// awake.
pub const SELF_TEST: u64 = u64::MAX;

/// A stream that a client publishes into its transport.
#[derive(Clone, Debug)]
pub struct OpenTrack {
    /// Its id.
    pub track: TrackId,
    /// The publisher's transport.
    pub transport: TransportId,
    /// Audio or video.
    pub kind: MediaKind,
    /// SSRC when the offer names it (`a=ssrc`); else the first packet with `mid`, then with a payload type of this track, binds it.
    /// `None` with `layers`: each layer is bound by its RID.
    pub ssrc: Option<u32>,
    /// SSRC of the retransmissions of `ssrc` when the offer names it (`a=ssrc-group:FID`, RFC 5576 section 4.2); else the first
    /// packet with `mid` (and with the layer's repaired RID) and an RTX payload type of this track binds it.
    pub rtx_ssrc: Option<u32>,
    /// The media section's mid.
    pub mid: Box<str>,
    /// Simulcast layers by RID, in the order of `a=simulcast` (RFC 8853 section 5.1): at most [`LAYERS_MAX`]. Empty: one layer
    /// without RID.
    pub layers: Vec<Box<str>>,
    /// Places of `layers`, the lowest quality first, when the publisher told it. Empty: layers are ranked by what they bring.
    pub order: Vec<u8>,
    /// Negotiated payload types.
    pub payload_types: Vec<PayloadType>,
    /// `a=rtcp-fb nack` was negotiated.
    pub nack: bool,
    /// `a=rtcp-fb nack pli` was negotiated.
    pub pli: bool,
    /// `a=rtcp-fb ccm fir` was negotiated (RFC 5104 section 4.3.1): keyframes are asked for by FIR when `pli` was not.
    pub fir: bool,
}

/// The SSRCs of a track's layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSsrcs {
    /// Of its packets.
    pub media: Option<u32>,
    /// Of their retransmissions.
    pub rtx: Option<u32>,
}

/// By place in [`OpenTrack::layers`].
pub type TrackSsrcs = [LayerSsrcs; LAYERS_MAX];

/// A subscriber's media section: one outgoing SSRC that tracks are forwarded into, one at a time.
#[derive(Clone, Debug)]
pub struct OpenSubscription {
    /// Its id.
    pub subscription: SubscriptionId,
    /// The subscriber's transport.
    pub transport: TransportId,
    /// Audio or video.
    pub kind: MediaKind,
    /// SSRC of what we send; never used before under the transport's key.
    pub ssrc: u32,
    /// First sequence number, below 2^15 so that both ends agree on rollover counter 0 (RFC 3711 section 3.3.1).
    pub first_sequence: u16,
    /// First RTP timestamp.
    pub first_timestamp: u32,
    /// SSRC of our retransmissions, when the client negotiated RTX (RFC 4588); never used before under the transport's key.
    /// `None`: a retransmission is the packet again, to the last bit. Such a section must negotiate neither abs-send-time nor
    /// transport-cc, which change with each sending.
    pub rtx_ssrc: Option<u32>,
    /// Extension ids that this section negotiated.
    pub extensions: ExtensionIds,
    /// The section's mid: the value of [`Extension::Mid`]. At most [`MID_LEN_MAX`] bytes when that is negotiated.
    pub mid: Box<str>,
}

/// What a subscriber wants of the layers of its track. The worker gives less when the track or the client's network has less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerWish {
    /// Nothing at all for now.
    pub paused: bool,
    /// The highest simulcast layer, counted from the lowest, or the highest spatial layer of a layered stream.
    pub spatial_max: u8,
    /// The highest temporal layer.
    pub temporal_max: u8,
    /// Who gets bandwidth first among the sections of one client: the lower the earlier.
    pub priority: u8,
}

impl Default for LayerWish {
    /// Everything that there is.
    fn default() -> LayerWish {
        LayerWish { paused: false, spatial_max: u8::MAX, temporal_max: u8::MAX, priority: u8::MAX }
    }
}

/// Which payload type of the subscriber takes a payload type of the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadTypeMap {
    /// As the publisher sends it.
    pub from: u8,
    /// As the subscriber expects it.
    pub to: u8,
    /// The subscriber's payload type for its retransmissions; used when the section has an `rtx_ssrc`.
    pub rtx: Option<u8>,
    /// `from` is RED and the subscriber takes none: the primary block alone is sent (RFC 2198 section 3), as `to`.
    pub unwrap_red: bool,
}

/// A worker's relation with one worker of another node: our number of that node, then that worker's index. It is also what that worker
/// puts into the head of its datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u16);

impl LinkId {
    /// The link of node `node` (our number for it) and its worker.
    pub const fn new(node: u8, worker: u8) -> LinkId {
        LinkId((node as u16) << 8 | worker as u16)
    }

    /// Our number of the node.
    pub const fn node(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The other node's worker.
    pub const fn worker(self) -> u8 {
        self.0 as u8
    }
}

/// Keys of one link and generation.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct LinkKeys {
    /// Seals what this worker sends: an AES-128 key, then a salt of 12 bytes.
    pub send: [u8; 28],
    /// Opens what the other worker sends.
    pub receive: [u8; 28],
}

impl std::fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKeys")
    }
}

/// A new link.
#[derive(Clone, Debug)]
pub struct OpenLink {
    /// Its number here.
    pub link: LinkId,
    /// This node, and the other one: what others carry names nodes.
    pub own: NodeId,
    /// See `own`.
    pub node: NodeId,
    /// It is of another PoP: of such links there are many, and most carry nothing.
    pub is_abroad: bool,
    /// The other worker's relay port.
    pub remote: SocketAddr,
    /// Schema that both ends speak.
    pub version: u8,
    /// What the other worker calls this link: goes into the head of our datagrams.
    pub remote_link: LinkId,
    /// Generation of the keys.
    pub generation: u32,
    /// They.
    pub keys: LinkKeys,
    /// A frame that is later than this is not repaired.
    pub playout: Duration,
}

/// How a link's datagrams get to the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkWay {
    /// From its relay port to the other's.
    #[default]
    Direct,
    /// Over this link, with a node that passes them on.
    Via(LinkId),
}

/// How a link's datagrams leave now: as its worker finds it, which is the way that it was told, the backup, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaysInUse {
    /// This way.
    pub first: LinkWay,
    /// And this one, while it is not known which of them lives.
    pub second: Option<LinkWay>,
}

/// What the direct path of a link is like, whatever its datagrams go by: of echoes alone, which are sent while the link has another way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Echoes that came.
    pub came: u64,
    /// That did not.
    pub lost: u64,
    /// Round trip in microseconds; 0 while unknown.
    pub rtt_us: u32,
    /// Interarrival jitter in microseconds.
    pub jitter_us: u32,
}

/// A bound on the tracks of one kind of a session that cross a link at once: of microphones the loudest do, at most
/// [`LOUDEST_MAX`](crate::loudest::LOUDEST_MAX), of video that of who spoke last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionBound {
    /// Which session: a number that all tracks of it have on this link.
    pub session: u32,
    /// So many, as the first of them told.
    pub max: u8,
}

/// What a link has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkStats {
    /// Datagrams sent, repairs and feedback included.
    pub datagrams_out: u64,
    /// Their UDP payload bytes.
    pub bytes_out: u64,
    /// Bytes of RTP packets in them, repairs excluded.
    pub media_bytes_out: u64,
    /// Datagrams that were authentic and new.
    pub datagrams_in: u64,
    /// Their UDP payload bytes.
    pub bytes_in: u64,
    /// Bytes of RTP packets in them.
    pub media_bytes_in: u64,
    /// Datagrams that the other end sent and that did not come, by its counters.
    pub lost: u64,
    /// Of these, repaired in time.
    pub repaired: u64,
    /// Repairs sent.
    pub repairs_out: u64,
    /// Of `lost`, what parity brought back in time.
    pub recovered: u64,
    /// UDP payload bytes of parity, part of `bytes_out`.
    pub parity_bytes_out: u64,
    /// Datagrams that were not authentic, replayed or malformed.
    pub refused: u64,
    /// Round trip in microseconds; 0 while unknown.
    pub rtt_us: u32,
    /// Interarrival jitter in microseconds.
    pub jitter_us: u32,
    /// Largest UDP payload that passes.
    pub mtu: u16,
    /// What it carries, in bit/s, as it paces what it sends; 0: no limit is known.
    pub limit: u64,
    /// Packets of video that were not sent because it does not carry them.
    pub congested: u64,
    /// Datagrams that came over others.
    pub carried_in: u64,
    /// UDP payload bytes of what it carried between other nodes, or between this one and another: part of `bytes_in` and `bytes_out`.
    pub transit_bytes_in: u64,
    /// See `transit_bytes_in`.
    pub transit_bytes_out: u64,
    /// How its datagrams leave.
    pub ways: WaysInUse,
    /// The direct path.
    pub direct: PathStats,
}

/// From the control plane to one worker.
#[derive(Debug)]
pub enum Command {
    /// Accept checks for a new transport.
    OpenTransport(Box<OpenTransport>),
    /// Open a transport that needs neither checks nor DTLS; its sockets were added before.
    OpenRtp(Box<OpenRtp>),
    /// What a later offer of the transport's client has added.
    UpdateTransport {
        /// Which.
        transport: TransportId,
        /// As in [`OpenTransport`]; an id that it had stays what it was.
        extensions: ExtensionIds,
        /// As in [`OpenTransport`].
        transport_cc: bool,
        /// As in [`OpenTransport`].
        remb: bool,
    },
    /// Forget the transport and everything in it. What was commanded to be sent before still leaves.
    CloseTransport {
        /// Which.
        transport: TransportId,
    },
    /// Take checks under new credentials, too (RFC 8445 section 9). The first good one retires the old credentials; DTLS, SRTP
    /// and media go on. A restart that no check has confirmed is replaced.
    RestartIce {
        /// Which.
        transport: TransportId,
        /// The new ones; both fragments differ from the current.
        ice: Box<IceCredentials>,
    },
    /// Send a DTLS datagram on the transport's selected path.
    SendDtls {
        /// Which.
        transport: TransportId,
        /// At most [`DTLS_DATAGRAM_LEN_MAX`] bytes.
        datagram: Box<[u8]>,
    },
    /// The handshake is done and the fingerprint is right: media may flow.
    InstallKeys {
        /// Which.
        transport: TransportId,
        /// What DTLS exported.
        keys: Box<SrtpKeys>,
    },
    /// Take a published stream.
    OpenTrack(Box<OpenTrack>),
    /// What SSRCs a track's layers had on another node: a client says which is which until the first report about them alone. What
    /// its packets say is truer.
    BindLayers {
        /// Which; it was opened just before.
        track: TrackId,
        /// What is known.
        ssrcs: TrackSsrcs,
    },
    /// Forget a published stream; its subscriptions stay and wait for another source.
    CloseTrack {
        /// Which.
        track: TrackId,
    },
    /// Make a mirror of a track of another worker: what is handed over of it is forwarded here like a track of this worker. It is
    /// closed by [`Command::CloseTrack`].
    OpenMirror {
        /// As its home knows it; the transport is not looked at.
        open: Box<OpenTrack>,
        /// Index of the worker that has the publisher.
        home: usize,
    },
    /// Hand a track over to the mirror of another worker, or stop.
    Export {
        /// Which.
        track: TrackId,
        /// Index of the worker that has the mirror.
        to: usize,
        /// `false` stops.
        on: bool,
    },
    /// Make a subscriber's media section.
    OpenSubscription(Box<OpenSubscription>),
    /// Forget it.
    CloseSubscription {
        /// Which.
        subscription: SubscriptionId,
    },
    /// Forward `track` into `subscription` from its next keyframe on (audio: from the next packet), continuing sequence
    /// and timestamp; `None` stops.
    Forward {
        /// Into which section.
        subscription: SubscriptionId,
        /// From which track, or mirror of a track, of the same worker.
        track: Option<TrackId>,
        /// Payload types that the subscriber takes; the rest is dropped.
        payload_types: Vec<PayloadTypeMap>,
    },
    /// How a section wants the layers of whatever is forwarded into it, from now on.
    Wish {
        /// Which.
        subscription: SubscriptionId,
        /// What.
        wish: LayerWish,
    },
    /// Send a data message to a client. Its SCTP association is not on the worker: the owner of the queue takes this one out.
    SendData {
        /// Whose.
        transport: TransportId,
        /// What.
        message: Arc<DataMessage>,
    },
    /// Who publishes this track of video speaks, or did just now.
    Spoke {
        /// Which.
        track: TrackId,
    },
    /// Copy a track's decrypted packets to the service thread, or stop.
    Tap {
        /// Which.
        track: TrackId,
        /// The capture's number on the service thread; `None` stops.
        tap: Option<u32>,
    },
    /// Answer ICE probes at these rates from now on.
    ProbeRates(ProbeRates),
    /// Speak with a worker of another node.
    OpenLink(Box<OpenLink>),
    /// Seal with the keys of this generation from now on, and open what comes under either.
    RekeyLink {
        /// Which.
        link: LinkId,
        /// From 1 on.
        generation: u32,
        /// What is derived of the link's new secret.
        keys: Box<LinkKeys>,
    },
    /// Send what the link has to say this way from now on, by the backup where the way fails, and by both where it is not known. What comes
    /// is taken by any way.
    RouteLink {
        /// Which.
        link: LinkId,
        /// The way.
        way: LinkWay,
        /// The one beside it, should that fail.
        backup: Option<LinkWay>,
    },
    /// Forget the link; what came over it ends, what went over it stops.
    CloseLink {
        /// Which.
        link: LinkId,
    },
    /// Take a track of another node: what comes over the link under this alias is forwarded here like a track of this worker. It is
    /// closed by [`Command::CloseTrack`].
    OpenRemoteTrack {
        /// As its origin knows it; the transport is not looked at.
        open: Box<OpenTrack>,
        /// Extension ids in its packets.
        extensions: ExtensionIds,
        /// The link to the origin's worker.
        link: LinkId,
        /// What the origin calls it there.
        alias: u16,
    },
    /// Send a track over a link, or stop.
    ExportToLink {
        /// Which.
        track: TrackId,
        /// The link to the other node's worker.
        link: LinkId,
        /// What it is called there; one alias of a link names one track at a time.
        alias: u16,
        /// Where not all of a session cross at once.
        bound: Option<SessionBound>,
        /// `false` stops.
        on: bool,
    },
}

/// Why a transport ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportLoss {
    /// No authenticated check came within the first 30 s.
    NeverConnected,
    /// Neither a check nor an authentic packet came for too long: the client is gone.
    ConsentExpired,
    /// SRTP may not be sent under this key any longer.
    KeyExhausted,
    /// The back end did not take the socket of a route.
    SocketRefused,
}

/// Counters of one published stream since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrackStats {
    /// RTP packets received.
    pub packets: u64,
    /// RTP payload bytes received.
    pub bytes: u64,
    /// Packets that never came (RFC 3550 cumulative loss).
    pub lost: i64,
    /// Interarrival jitter in RTP units (RFC 3550 section 6.4.1).
    pub jitter: u32,
    /// NACKed sequence numbers.
    pub nacked: u64,
    /// Keyframe requests sent.
    pub plis: u64,
    /// Codec of the last packet.
    pub codec: Option<Codec>,
    /// The best simulcast layer that comes now: its place in `OpenTrack::layers`.
    pub layer: u8,
}

/// Counters of one subscription since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SubscriptionStats {
    /// RTP packets sent, retransmissions included.
    pub packets: u64,
    /// RTP payload bytes sent.
    pub bytes: u64,
    /// Retransmissions sent.
    pub retransmitted: u64,
    /// Loss share that the client's last report told, 0 to 255 (RFC 3550 fraction lost).
    pub fraction_lost: u8,
    /// Round trip from the client's last report, in microseconds; 0 when unknown.
    pub rtt_us: u32,
    /// Packets of the whole transport that the client's transport-wide feedback told as received, ...
    pub transport_received: u64,
    /// ... and as not received. One that came after it was told as lost counts in both.
    pub transport_lost: u64,
    /// What is sent now: the simulcast layer, counted from the lowest, or the spatial layer of a layered stream.
    pub layer: u8,
    /// The highest temporal layer that is sent.
    pub temporal: u8,
    /// The client's network has no room for any layer: nothing is sent.
    pub congested: bool,
}

/// From one worker to the control plane.
#[derive(Debug)]
// A DTLS datagram rides inline so that the worker never allocates for a client's handshake; the queue is bounded and its
// size is a line of the memory plan.
#[allow(clippy::large_enum_variant)]
pub enum Event {
    /// The first authenticated check came: DTLS may start. Again for the first one after an ICE restart. Of a route: a peer was
    /// learnt.
    TransportValidated {
        /// Which.
        transport: TransportId,
        /// The client's address.
        remote: SocketAddr,
    },
    /// A DTLS datagram of a validated path, records checked.
    Dtls {
        /// Which.
        transport: TransportId,
        /// The datagram.
        datagram: Datagram,
    },
    /// The transport ended by itself and is forgotten.
    TransportLost {
        /// Which.
        transport: TransportId,
        /// Why.
        loss: TransportLoss,
    },
    /// Once a second while something is refused on a route's ports.
    RtpPeerStats {
        /// Which.
        transport: TransportId,
        /// Since its start.
        stats: RtpPeerStats,
    },
    /// The first authenticated packet of a track came.
    TrackStarted {
        /// Which.
        track: TrackId,
    },
    /// Which SSRCs the simulcast layers of a track have: each 10 ms in which one was learnt.
    LayersBound {
        /// Which.
        track: TrackId,
        /// All that is known.
        ssrcs: TrackSsrcs,
    },
    /// How loud a track was (RFC 6464), each 400 ms while it is not silent, and once when it falls silent.
    AudioLevel {
        /// Which.
        track: TrackId,
        /// Of the loud packets of the interval, the loudest: 0 to 127, in -dBov, so that 0 is the loudest. 127 when it falls silent.
        level: u8,
        /// Share of the interval that was loud, in percent; 0 once, when it falls silent.
        active_percent: u8,
    },
    /// A client sent a data message.
    Data {
        /// Whose transport.
        transport: TransportId,
        /// As its receivers get it.
        message: Arc<DataMessage>,
    },
    /// Once a second while packets flow; with more than 4,000 of them on a worker less often, each in turn.
    TrackStats {
        /// Which.
        track: TrackId,
        /// Since its start.
        stats: TrackStats,
    },
    /// Once a second while packets flow, and when the section becomes congested or does not any more; with more than 4,000 of them on a
    /// worker less often, each in turn.
    SubscriptionStats {
        /// Which.
        subscription: SubscriptionId,
        /// Since its start.
        stats: SubscriptionStats,
    },
    /// Once a second of each link.
    LinkStats {
        /// Which.
        link: LinkId,
        /// Since its start.
        stats: LinkStats,
    },
    /// A datagram came of a link that this worker has not, so that its worker may have one with this. Not authentic.
    LinkMissing {
        /// As the datagram names it.
        link: LinkId,
    },
    /// Somebody's datagram is to go on to a worker of this node, with which this worker has no link.
    LinkWanted {
        /// To which.
        node: NodeId,
    },
    /// Almost all counters of the link's present keys are used: it needs the next generation.
    LinkKeysUsed {
        /// Which.
        link: LinkId,
    },
}
