//! `[[rtp.route]]`, and the body of `POST /api/v1/rtp/routes`: the same keys.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pop_proto::control::SrtpProfile;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::value;

/// Routes that one node may have: each takes one to four sockets of a worker.
pub const ROUTES_MAX: usize = 64;

/// `[rtp]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RtpConfig {
    /// Routes that are there from the start.
    pub route: Vec<RouteConfig>,
}

/// A way for plain or SDES RTP into a room's track, out of one, or through.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Its name here, 1 to 63 letters, digits, dots, hyphens, underscores; the API draws one when it is absent.
    #[serde(default, deserialize_with = "name")]
    pub name: Option<String>,
    /// Into the node or out of it.
    pub direction: Direction,
    /// The room whose track it feeds or takes; not together with `to`.
    #[serde(default)]
    pub room: Option<String>,
    /// Who publishes or watches; the route's name when absent.
    #[serde(default)]
    pub identity: Option<String>,
    /// Out: the publisher to follow; absent: the room's oldest track that fits, as a viewer gets it.
    #[serde(default)]
    pub from: Option<String>,
    /// What the packets carry.
    pub codec: RouteCodec,
    /// RTP payload type, 0 to 127; every one with codec `any`.
    #[serde(default = "payload_type", deserialize_with = "value::bounded::<_, _, 0, 127>")]
    pub payload_type: u8,
    /// RTP clock rate in Hz, with codec `any` alone: the others have theirs.
    #[serde(default, deserialize_with = "clock_rate")]
    pub clock_rate: Option<u32>,
    /// Parameters as in `a=fmtp`, for H264, VP9 and AV1 the profile, too.
    #[serde(default, deserialize_with = "fmtp")]
    pub fmtp: Option<String>,
    /// Which of `media.addresses` it uses; absent: the first of the peer's family.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// UDP port that it receives on, 1024 to 65535, 0 for any.
    #[serde(default)]
    pub port: u16,
    /// In: the one sender; absent: learnt from the first valid packet. Out: the destination.
    #[serde(default)]
    pub peer: Option<SocketAddr>,
    /// A learnt peer that was silent for so long may be followed by another.
    #[serde(default = "peer_timeout", deserialize_with = "value::duration::<_, 1_000, 3_600_000>")]
    pub peer_timeout: Duration,
    /// Where RTCP is; absent: on the next port, or nowhere with codec `any`.
    #[serde(default)]
    pub rtcp: Option<RouteRtcp>,
    /// SRTP under a key that both ends are told (RFC 4568); absent: plain RTP.
    #[serde(default)]
    pub suite: Option<Suite>,
    /// Base64 of master key and salt; absent with a suite: drawn, and told by the SDP.
    #[serde(default)]
    pub key: Option<SdesKey>,
    /// In: forward to this address instead of into a room.
    #[serde(default)]
    pub to: Option<SocketAddr>,
    /// As `suite`, of what is forwarded.
    #[serde(default)]
    pub to_suite: Option<Suite>,
    /// As `key`, of what is forwarded.
    #[serde(default)]
    pub to_key: Option<SdesKey>,
    /// Out, plain: the SSRC to send; absent: the source's.
    #[serde(default)]
    pub ssrc: Option<u32>,
}

/// `direction`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Packets come to the node.
    In,
    /// Packets leave it.
    Out,
}

/// `codec`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteCodec {
    /// RFC 7587.
    Opus,
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
    /// Whatever comes.
    Any,
}

impl RouteCodec {
    const ALL: [(&'static str, RouteCodec); 7] = [
        ("opus", RouteCodec::Opus),
        ("VP8", RouteCodec::Vp8),
        ("VP9", RouteCodec::Vp9),
        ("H264", RouteCodec::H264),
        ("H265", RouteCodec::H265),
        ("AV1", RouteCodec::Av1),
        ("any", RouteCodec::Any),
    ];

    /// As it is written in the config, and in `a=rtpmap`.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl<'de> Deserialize<'de> for RouteCodec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let find = |text: &str| Self::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, codec)| *codec);
        value::text(deserializer, "opus, VP8, VP9, H264, H265, AV1 or any", find)
    }
}

/// `rtcp`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteRtcp {
    /// On RTP's port (RFC 5761).
    Mux,
    /// On the next port (RFC 3550 section 11).
    Next,
    /// Neither sent nor taken.
    Off,
}

impl RouteRtcp {
    /// As it is written in the config.
    pub fn name(self) -> &'static str {
        match self {
            RouteRtcp::Mux => "mux",
            RouteRtcp::Next => "next",
            RouteRtcp::Off => "off",
        }
    }
}

/// `suite`: a crypto suite of SDES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite(pub SrtpProfile);

impl Suite {
    const ALL: [SrtpProfile; 3] = [SrtpProfile::Aes128CmSha1_80, SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm];

    /// The name in `a=crypto` (RFC 4568 section 6.2, RFC 7714 section 14.1).
    pub fn name(self) -> &'static str {
        match self.0 {
            SrtpProfile::Aes128CmSha1_80 => "AES_CM_128_HMAC_SHA1_80",
            SrtpProfile::AeadAes128Gcm => "AEAD_AES_128_GCM",
            SrtpProfile::AeadAes256Gcm => "AEAD_AES_256_GCM",
        }
    }
}

impl<'de> Deserialize<'de> for Suite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let find = |text: &str| Self::ALL.map(Suite).into_iter().find(|suite| suite.name().eq_ignore_ascii_case(text));
        value::text(deserializer, "AES_CM_128_HMAC_SHA1_80, AEAD_AES_128_GCM or AEAD_AES_256_GCM", find)
    }
}

/// `key`: master key and salt. Never shown: not in errors, not in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct SdesKey(Box<[u8]>);

impl SdesKey {
    /// From bytes that were drawn.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Key and salt, in this order.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SdesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SdesKey(..)")
    }
}

impl<'de> Deserialize<'de> for SdesKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As in RFC 4568 section 6.1 without lifetime and MKI: nobody needs them here.
        let text = String::deserialize(deserializer)?;
        let decoded = STANDARD.decode(text.strip_prefix("inline:").unwrap_or(&text));
        // The error must not show what was written.
        decoded
            .map(|bytes| Self(bytes.into()))
            .map_err(|_| de::Error::custom("a key is base64 of master key and salt, without lifetime and MKI"))
    }
}

const fn payload_type() -> u8 {
    96
}

const fn peer_timeout() -> Duration {
    Duration::from_secs(30)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    value::node_name(deserializer).map(Some)
}

fn clock_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    value::bounded::<_, _, 1_000, 1_000_000>(deserializer).map(Some)
}

fn fmtp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let plain =
        |text: &str| (text.len() <= 512 && !text.is_empty() && text.bytes().all(|b| (0x20..0x7f).contains(&b))).then(|| text.to_owned());
    value::text(deserializer, "parameters as in a=fmtp, such as \"packetization-mode=1;profile-level-id=42e01f\"", plain).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RouteConfig, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_route_needs_a_direction_and_a_codec_and_the_rest_has_defaults() {
        let route = parse("direction = \"in\"\ncodec = \"vp8\"").expect("it is enough");
        assert_eq!((route.direction, route.codec, route.payload_type, route.port), (Direction::In, RouteCodec::Vp8, 96, 0));
        assert_eq!((route.peer_timeout, route.suite, route.rtcp), (Duration::from_secs(30), None, None));
        let named = parse("direction = \"out\"\ncodec = \"any\"\nrtcp = \"mux\"\nsuite = \"aead_aes_256_gcm\"\nclock_rate = 8000")
            .expect("it is right");
        assert_eq!((named.codec.name(), named.suite.map(Suite::name), named.clock_rate), ("any", Some("AEAD_AES_256_GCM"), Some(8_000)));
    }

    #[test]
    fn what_is_wrong_is_named_and_a_key_is_never_shown() {
        for (line, said) in [
            ("codec = \"MPEG\"", "opus, VP8, VP9, H264, H265, AV1 or any"),
            ("payload_type = 128", "0 to 127"),
            ("suite = \"AES_CM_128_HMAC_SHA1_32\"", "AES_CM_128_HMAC_SHA1_80, AEAD_AES_128_GCM or AEAD_AES_256_GCM"),
            ("peer = \"host\"", "socket address"),
            ("fmtp = \"a\\r\\na=b\"", "a=fmtp"),
            ("name = \"a b\"", "letters"),
            ("clock = 1", "unknown field"),
        ] {
            let codec = if line.starts_with("codec") { "" } else { "codec = \"VP8\"\n" };
            let refused = parse(&format!("direction = \"in\"\n{codec}{line}")).expect_err(line);
            assert!(refused.contains(said), "{line}: {refused}");
        }
        let secret = "c2VjcmV0IQ==|2^20";
        let refused = parse(&format!("direction = \"in\"\ncodec = \"VP8\"\nkey = \"{secret}\"")).expect_err("a lifetime");
        assert!(!refused.contains("c2Vj"), "{refused}");
        assert_eq!(format!("{:?}", SdesKey::new(b"secret")), "SdesKey(..)");
    }
}
