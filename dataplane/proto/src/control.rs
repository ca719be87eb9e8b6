//! What crosses the queues: a [`Command`] goes down to a worker, an [`Event`] comes up from it.

use std::net::SocketAddr;

use pop_schemas::{SubscriptionId, TrackId, TransportId};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Largest DTLS datagram that is taken or sent, in bytes: an Ethernet MTU's worth.
pub const DTLS_DATAGRAM_LEN_MAX: usize = 1_500;

/// Payload types that one media section may name.
pub const PAYLOAD_TYPES_MAX: usize = 16;

/// Longest ICE ufrag or password that is taken, in bytes (RFC 8839 section 5.4 allows 256; browsers send 4 and 24).
pub const ICE_TEXT_LEN_MAX: usize = 256;

/// Where a datagram came from or goes to: one of the worker's sockets and the far address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Index of the worker's socket.
    pub socket: u8,
    /// The far end.
    pub remote: SocketAddr,
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
    /// RFC 7741.
    Vp8,
    /// RFC 9628.
    Vp9,
    /// RFC 6184.
    H264,
    /// AOM RTP payload format 1.0.
    Av1,
}

impl Codec {
    /// Audio or video.
    pub const fn kind(self) -> MediaKind {
        match self {
            Codec::Opus => MediaKind::Audio,
            _ => MediaKind::Video,
        }
    }

    /// RTP clock rate in Hz.
    pub const fn clock_rate(self) -> u32 {
        match self {
            Codec::Opus => 48_000,
            _ => 90_000,
        }
    }

    /// The encoding name of `a=rtpmap`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Opus => "opus",
            Codec::Vp8 => "VP8",
            Codec::Vp9 => "VP9",
            Codec::H264 => "H264",
            Codec::Av1 => "AV1",
        }
    }
}

/// A payload type with its codec, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadType {
    /// RTP payload type, 0 to 127.
    pub number: u8,
    /// What it carries.
    pub codec: Codec,
}

/// The ICE credentials of both ends (RFC 8445 section 5.3).
#[derive(Clone, Debug)]
pub struct IceCredentials {
    /// Our fragment; unique on the worker. Checks arrive for `local_ufrag:remote_ufrag`.
    pub local_ufrag: Box<str>,
    /// Our password: the key of every check's MESSAGE-INTEGRITY.
    pub local_pwd: Box<str>,
    /// The client's fragment.
    pub remote_ufrag: Box<str>,
}

/// A new transport.
#[derive(Clone, Debug)]
pub struct OpenTransport {
    /// Its id.
    pub transport: TransportId,
    /// ICE credentials.
    pub ice: IceCredentials,
    /// Extension id of transport-wide-cc in what the client sends, when negotiated: the worker then sends feedback.
    pub twcc_extension: Option<u8>,
    /// Extension id of `urn:ietf:params:rtp-hdrext:sdes:mid` in what the client sends, when negotiated.
    pub mid_extension: Option<u8>,
    /// The client takes RTCP that is not a compound (`a=rtcp-rsize`, RFC 5506).
    pub reduced_size_rtcp: bool,
    /// SSRC of our RTCP towards this client; drawn anew for each transport.
    pub rtcp_ssrc: u32,
    /// CNAME of everything that we send to this client.
    pub cname: Box<str>,
}

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
    pub ssrc: Option<u32>,
    /// The media section's mid.
    pub mid: Box<str>,
    /// Negotiated payload types.
    pub payload_types: Vec<PayloadType>,
    /// `a=rtcp-fb nack` was negotiated.
    pub nack: bool,
    /// `a=rtcp-fb nack pli` was negotiated.
    pub pli: bool,
}

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
}

/// Which payload type of the subscriber takes a payload type of the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadTypeMap {
    /// As the publisher sends it.
    pub from: u8,
    /// As the subscriber expects it.
    pub to: u8,
}

/// From the control plane to one worker.
#[derive(Debug)]
pub enum Command {
    /// Accept checks for a new transport.
    OpenTransport(Box<OpenTransport>),
    /// Forget the transport and everything in it. What was commanded to be sent before still leaves.
    CloseTransport {
        /// Which.
        transport: TransportId,
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
    /// Forget a published stream; its subscriptions stay and wait for another source.
    CloseTrack {
        /// Which.
        track: TrackId,
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
        /// From which track of the same worker.
        track: Option<TrackId>,
        /// Payload types that the subscriber takes; the rest is dropped.
        payload_types: Vec<PayloadTypeMap>,
    },
    /// Copy a track's decrypted packets to the service thread, or stop.
    Tap {
        /// Which.
        track: TrackId,
        /// The capture's number on the service thread; `None` stops.
        tap: Option<u32>,
    },
}

/// Why a transport ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportLoss {
    /// No authenticated check came within the first 30 s.
    NeverConnected,
    /// Checks stopped: the client is gone (RFC 7675).
    ConsentExpired,
    /// SRTP may not be sent under this key any longer.
    KeyExhausted,
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
}

/// From one worker to the control plane.
#[derive(Debug)]
// A DTLS datagram rides inline so that the worker never allocates for a client's handshake; the queue is bounded and its
// size is a line of the memory plan.
#[allow(clippy::large_enum_variant)]
pub enum Event {
    /// The first authenticated check came: DTLS may start.
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
    /// The first authenticated packet of a track came.
    TrackStarted {
        /// Which.
        track: TrackId,
    },
    /// Once a second while packets flow.
    TrackStats {
        /// Which.
        track: TrackId,
        /// Since its start.
        stats: TrackStats,
    },
    /// Once a second while packets flow.
    SubscriptionStats {
        /// Which.
        subscription: SubscriptionId,
        /// Since its start.
        stats: SubscriptionStats,
    },
}
