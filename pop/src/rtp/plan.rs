//! What a route's config means, checked: every refusal is one sentence that names what is wrong.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use pop_proto::control::{ANY_PAYLOAD_TYPE, Numbering};
use pop_schemas::{Identity, SessionId};
use pop_session::{Format, H264Profile, PayloadFormat};

use super::sdes::Crypto;
use super::{OwnPort, RouteFailure};
use crate::config::{Direction, MediaConfig, RouteCodec, RouteConfig, RouteRtcp};

/// Ports below need a privilege, and what listens on them never asked for media.
const PORT_MIN: u16 = 1_024;

/// Clock rate of codec `any` when none is given, in Hz.
const CLOCK_RATE_ANY: u32 = 90_000;

/// Whether an address is this node's, as far as who checks can tell.
pub(super) type IsOurs<'a> = &'a dyn Fn(IpAddr) -> bool;

/// A checked route.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) codec: RouteCodec,
    pub(super) payload_type: u8,
    pub(super) clock_rate: u32,
    pub(super) fmtp: Option<String>,
    /// What the session is told of the track or the section.
    pub(super) formats: Vec<PayloadFormat>,
    pub(super) identity: Identity,
    /// Where its sockets are bound.
    pub(super) address: IpAddr,
    /// What its SDP calls that address.
    pub(super) advertised: IpAddr,
    pub(super) port: u16,
    pub(super) rtcp: RouteRtcp,
    pub(super) crypto: Option<Crypto>,
    pub(super) way: Way,
}

/// Where packets come from and go to.
#[derive(Clone)]
pub(super) enum Way {
    /// Into a room.
    In { room: SessionId, peer: Option<SocketAddr>, peer_timeout: Duration },
    /// Out of a room.
    Out { room: SessionId, from: Option<Identity>, peer: SocketAddr, ssrc: Option<u32> },
    /// Through, with nobody in between.
    Forward { peer: Option<SocketAddr>, peer_timeout: Duration, to: SocketAddr, to_crypto: Option<Crypto> },
}

impl Plan {
    /// Checks everything that the config tells. `fill` draws keys that are not given.
    pub(super) fn new(name: &str, config: &RouteConfig, media: &MediaConfig, mut fill: impl FnMut(&mut [u8])) -> Result<Plan, String> {
        let mut crypto = |suite, key: &Option<_>, prefix: &str| match (suite, key) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(format!("{prefix}key needs a {prefix}suite: plain RTP has no key")),
            (Some(suite), Some(key)) => Crypto::new(suite, Clone::clone(key)).map(Some),
            (Some(suite), None) => Ok(Some(Crypto::draw(suite, &mut fill))),
        };
        let own_crypto = crypto(config.suite, &config.key, "")?;
        let to_crypto = crypto(config.to_suite, &config.to_key, "to_")?;
        let (formats, clock_rate) = formats(config)?;
        let (address, advertised) = choose_address(config, media)?;
        let rtcp = check_rtcp(config)?;
        if config.ssrc.is_some() && (config.suite.is_some() || config.direction == Direction::In) {
            let sentence = "ssrc is for a plain route out: under a key that is used again after a restart, each stream needs a new one";
            return Err(sentence.to_owned());
        }
        let plan = Plan {
            codec: config.codec,
            payload_type: config.payload_type,
            clock_rate,
            fmtp: config.fmtp.clone(),
            formats,
            identity: Identity::new(config.identity.as_deref().unwrap_or(name)).map_err(|error| format!("identity {error}"))?,
            address,
            advertised,
            port: config.port,
            rtcp,
            crypto: own_crypto,
            way: way(config, to_crypto)?,
        };
        for (key, remote) in plan.remotes() {
            check_remote(key, remote, address)?;
        }
        Ok(plan)
    }

    /// Checks its peers against the node's own ports and against its own.
    pub(super) fn check_own(&self, own: &[OwnPort], is_ours: IsOurs<'_>) -> Result<(), String> {
        for OwnPort { what, port } in own {
            if let Some((key, remote, _)) = self.sends_to(&[*port], is_ours) {
                return Err(format!("{key} {remote} is {what} of this node: packets would go in a circle"));
            }
        }
        match self.sends_to(&self.ports(), is_ours) {
            Some((.., port)) => Err(format!("port {port} is where this route sends to: packets would go in a circle")),
            None => Ok(()),
        }
    }

    /// Checks what only the kernel can tell: its networks. The sentences that come back are warnings, since a way that is not
    /// there yet may come.
    pub(super) fn check_networks(&self) -> Result<Vec<String>, String> {
        let mut warnings = Vec::new();
        for (key, remote) in self.remotes() {
            let socket = UdpSocket::bind((self.address, 0)).map_err(|error| format!("cannot bind {}/udp: {error}", self.address))?;
            match socket.connect(remote) {
                Ok(()) => {}
                // It connects no plain socket to the broadcast address of a network.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    return Err(format!("{key} {remote} is a broadcast address: a route has one peer"));
                }
                Err(error) => warnings.push(format!("{key} {remote} cannot be reached from {} now: {error}", self.address)),
            }
        }
        Ok(warnings)
    }

    /// Checks the route beside another of the node, which has `ports`: nothing twice, and no circle.
    pub(super) fn check_beside(&self, name: &str, other: &Plan, ports: &[u16], is_ours: IsOurs<'_>) -> Result<(), RouteFailure> {
        let own = self.ports();
        if let Some(port) = own.iter().find(|port| ports.contains(port))
            && self.address == other.address
        {
            return Err(RouteFailure::Conflict(format!("port {port} is the RTP route {name:?}'s already")));
        }
        if let Some((key, remote, _)) = self.sends_to(ports, is_ours) {
            let sentence = format!("{key} {remote} is the RTP route {name:?} of this node: packets would go in a circle");
            return Err(RouteFailure::Request(sentence));
        }
        // A port that somebody is told to send to is taken, although nobody listens there yet.
        if let Some((.., port)) = other.sends_to(&own, is_ours) {
            return Err(RouteFailure::Request(format!("port {port} is where {name} sends to: packets would go in a circle")));
        }
        if let (Way::In { room, .. }, Way::In { room: theirs, .. }) = (&self.way, &other.way)
            && (room, &self.identity) == (theirs, &other.identity)
        {
            let identity = &self.identity;
            return Err(RouteFailure::Conflict(format!("the RTP route {name:?} publishes as {identity:?} in this room already")));
        }
        Ok(())
    }

    /// The configured ports: RTP's, and RTCP's when that is the next one. None when they are drawn.
    pub(super) fn ports(&self) -> Vec<u16> {
        let next = (self.rtcp == RouteRtcp::Next).then(|| self.port.saturating_add(1));
        if self.port == 0 { Vec::new() } else { [Some(self.port), next].into_iter().flatten().collect() }
    }

    /// What it sends to that is one of `ports` of this node.
    pub(super) fn sends_to(&self, ports: &[u16], is_ours: IsOurs<'_>) -> Option<(&'static str, SocketAddr, u16)> {
        let reached = |remote| ports.iter().copied().find(|port| self.reaches(remote, *port));
        let mut found = self.remotes().filter_map(|(key, remote)| Some((key, remote, reached(remote)?)));
        found.find(|(_, remote, _)| is_ours(remote.ip()))
    }

    /// Addresses of others, and the keys that name them.
    pub(super) fn remotes(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + use<> {
        let (peer, to) = match &self.way {
            Way::In { peer, .. } => (*peer, None),
            Way::Out { peer, .. } => (Some(*peer), None),
            Way::Forward { peer, to, .. } => (*peer, Some(*to)),
        };
        peer.map(|peer| ("peer", peer)).into_iter().chain(to.map(|to| ("to", to)))
    }

    /// Whether something is sent to `port` for `remote`: RTP, or its RTCP on the next one.
    fn reaches(&self, remote: SocketAddr, port: u16) -> bool {
        remote.port() == port || (self.rtcp == RouteRtcp::Next && remote.port().checked_add(1) == Some(port))
    }

    /// What a packet keeps of its header on the way out.
    pub(super) fn numbering(&self) -> Numbering {
        match &self.way {
            Way::In { .. } => Numbering::Own,
            Way::Out { ssrc: None, .. } if self.crypto.is_none() => Numbering::TimestampsAndSsrc,
            Way::Forward { to_crypto: None, .. } => Numbering::Whole,
            Way::Out { .. } | Way::Forward { .. } => Numbering::Timestamps,
        }
    }
}

fn check_rtcp(config: &RouteConfig) -> Result<RouteRtcp, String> {
    let any = config.codec == RouteCodec::Any;
    let rtcp = config.rtcp.unwrap_or(if any { RouteRtcp::Off } else { RouteRtcp::Next });
    if any && rtcp != RouteRtcp::Off {
        return Err("codec any carries no RTCP: set rtcp to off".to_owned());
    }
    // RFC 5761 section 4: with the marker these payload types look like RTCP.
    if rtcp == RouteRtcp::Mux && (64..=95).contains(&config.payload_type) {
        let number = config.payload_type;
        return Err(format!("payload_type {number} cannot be told from RTCP on the same port: use another, or rtcp next or off"));
    }
    if config.port != 0 {
        check_port("port", config.port)?;
        if rtcp == RouteRtcp::Next && config.port == u16::MAX {
            return Err("port 65535 has no next one for RTCP: use another, or rtcp mux or off".to_owned());
        }
    }
    Ok(rtcp)
}

fn way(config: &RouteConfig, to_crypto: Option<Crypto>) -> Result<Way, String> {
    let room = || {
        let room = config.room.as_deref().ok_or_else(|| "a route needs a room, or, to forward, direction in and to".to_owned())?;
        SessionId::new(room).map_err(|error| format!("room {error}"))
    };
    if config.to.is_none() && to_crypto.is_some() {
        return Err("to_suite and to_key are of what is forwarded: set to, the address that it goes to".to_owned());
    }
    if let Some(to) = config.to {
        if config.direction == Direction::Out {
            return Err("a route out has a peer; to is for a route in that is forwarded".to_owned());
        }
        if config.room.is_some() {
            return Err("room and to are both set: a route in feeds a room, or is forwarded".to_owned());
        }
        if config.peer == Some(to) {
            return Err(format!("to {to} is the route's own peer: packets would go in a circle"));
        }
    }
    if config.from.is_some() && config.direction == Direction::In {
        return Err("from chooses whom a route out follows; a route in has a peer".to_owned());
    }
    let peer_timeout = config.peer_timeout;
    match (config.direction, config.to) {
        (Direction::In, Some(to)) => Ok(Way::Forward { peer: config.peer, peer_timeout, to, to_crypto }),
        (Direction::In, None) => Ok(Way::In { room: room()?, peer: config.peer, peer_timeout }),
        (Direction::Out, _) => {
            let peer = config.peer.ok_or("a route out needs a peer, the address that it sends to, such as \"192.0.2.7:5004\"")?;
            let from = config.from.as_deref().map(Identity::new).transpose().map_err(|error| format!("from {error}"))?;
            Ok(Way::Out { room: room()?, from, peer, ssrc: config.ssrc })
        }
    }
}

/// The codec with every profile that the parameters leave open, and its clock rate.
fn formats(config: &RouteConfig) -> Result<(Vec<PayloadFormat>, u32), String> {
    let number = |name: &str| -> Result<Option<u8>, String> {
        let Some(text) = parameter(config, name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("fmtp: {name}={text} is no number from 0 to 255"))
    };
    let out = config.direction == Direction::Out;
    let formats: Vec<Format> = match config.codec {
        RouteCodec::Opus => vec![Format::Opus],
        RouteCodec::Vp8 => vec![Format::Vp8],
        // A receiver that says nothing is taken to decode all; a sender that says nothing, to send what everybody decodes.
        RouteCodec::Vp9 => match number("profile-id")? {
            None if out => (0..=3).map(|profile| Format::Vp9 { profile }).collect(),
            profile => vec![Format::Vp9 { profile: profile.unwrap_or(0) }],
        },
        RouteCodec::Av1 => vec![Format::Av1 { profile: number("profile")?.unwrap_or(if out { 2 } else { 0 }) }],
        RouteCodec::H264 => {
            use H264Profile::{Baseline, ConstrainedBaseline, ConstrainedHigh, High, Main};
            let packetization_mode = match number("packetization-mode")?.unwrap_or(1) {
                mode @ 0..=1 => mode,
                mode => return Err(format!("fmtp: packetization-mode={mode} does not pass here: 0 and 1 do")),
            };
            let h264 = |profile| Format::H264 { profile, packetization_mode };
            match parameter(config, "profile-level-id") {
                Some(text) => vec![h264(h264_profile(text)?)],
                None if out => [High, ConstrainedHigh, Main, Baseline, ConstrainedBaseline].map(h264).to_vec(),
                None => vec![h264(ConstrainedBaseline)],
            }
        }
        RouteCodec::H265 => {
            let high_tier = number("tier-flag")?.map_or(out, |tier| tier != 0);
            // Main 10, then Main.
            let profiles = number("profile-id")?.map_or_else(|| if out { vec![2, 1] } else { vec![1] }, |profile| vec![profile]);
            profiles.into_iter().map(|profile| Format::H265 { profile, high_tier }).collect()
        }
        RouteCodec::Any => vec![Format::Raw { clock_rate: config.clock_rate.unwrap_or(CLOCK_RATE_ANY) }],
    };
    if config.clock_rate.is_some() && config.codec != RouteCodec::Any {
        return Err(format!("clock_rate is for codec any: {} has its own", config.codec.name()));
    }
    let clock_rate = formats[0].codec().clock_rate();
    let number = if config.codec == RouteCodec::Any { ANY_PAYLOAD_TYPE } else { config.payload_type };
    Ok((formats.into_iter().map(|format| PayloadFormat { number, format, rtx: None }).collect(), clock_rate))
}

fn parameter<'c>(config: &'c RouteConfig, name: &str) -> Option<&'c str> {
    let pairs = config.fmtp.as_deref()?.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn h264_profile(text: &str) -> Result<H264Profile, String> {
    let digits = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 6);
    let digits = digits.ok_or_else(|| format!("fmtp: profile-level-id={text} is not six hexadecimal digits"))?;
    let [_, idc, iop, _] = digits.to_be_bytes();
    Ok(H264Profile::from_profile_level_id(idc, iop))
}

fn choose_address(config: &RouteConfig, media: &MediaConfig) -> Result<(IpAddr, IpAddr), String> {
    let known = media.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let remote = config.to.or(config.peer).map(|remote| remote.ip());
    let at = match (config.address, remote) {
        (Some(address), _) => media.addresses.iter().position(|known| *known == address),
        (None, Some(remote)) => media.addresses.iter().position(|known| remote.is_ipv4() == known.is_ipv4()),
        (None, None) => Some(0),
    };
    match (at, config.address, remote) {
        (Some(at), ..) => Ok((media.addresses[at], media.advertised(at).unwrap_or(media.addresses[at]))),
        (None, None, Some(remote)) => Err(format!("media.addresses ({known}) has none of the family of {remote}")),
        (None, address, _) => {
            let address = address.map(|address| address.to_string()).unwrap_or_default();
            Err(format!("address {address} is not one of media.addresses: {known}"))
        }
    }
}

fn check_port(key: &str, port: u16) -> Result<(), String> {
    match port {
        0 => Err(format!("{key} has port 0, which is nobody's")),
        1..PORT_MIN => Err(format!("{key} has the privileged port {port}: media uses {PORT_MIN} and above")),
        _ => Ok(()),
    }
}

fn check_remote(key: &str, remote: SocketAddr, local: IpAddr) -> Result<(), String> {
    let ip = remote.ip();
    let wrong = if ip.is_unspecified() {
        "is no address to send to"
    } else if ip.is_multicast() {
        "is a multicast address: a route has one peer"
    } else if ip == IpAddr::from([255; 4]) {
        "is a broadcast address: a route has one peer"
    } else if ip.to_canonical() != ip {
        "is an IPv4 address written as IPv6: write it as IPv4"
    } else if ip.is_ipv4() != local.is_ipv4() {
        "is of another family than the route's address"
    } else {
        return check_port(&format!("{key} {remote}"), remote.port());
    };
    Err(format!("{key} {remote} {wrong}"))
}

/// Only addresses of this host can be bound.
pub(super) fn is_of_this_host(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let config = toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let own = [OwnPort { what: "a media port".into(), port: 10_000 }, OwnPort { what: "the HTTP listener".into(), port: 7_880 }];
        let media = MediaConfig::default();
        let plan = Plan::new("cam", &config, &media, |out| out.fill(7))?;
        plan.check_own(&own, &is_of_this_host)?;
        plan.check_networks().map(|_| plan)
    }

    const IN: &str = "direction = \"in\"\ncodec = \"VP8\"\nroom = \"stage\"\n";
    const OUT: &str = "direction = \"out\"\ncodec = \"H264\"\nroom = \"stage\"\n";
    const FORWARD: &str = "direction = \"in\"\ncodec = \"any\"\nto = \"127.0.0.1:5004\"\n";

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let rows = [
            (OUT, "peer = \"0.0.0.0:5004\"", "peer 0.0.0.0:5004 is no address to send to"),
            (OUT, "peer = \"239.1.2.3:5004\"", "is a multicast address"),
            (OUT, "peer = \"[ff02::1]:5004\"", "is a multicast address"),
            (OUT, "peer = \"255.255.255.255:5004\"", "is a broadcast address"),
            (OUT, "peer = \"127.255.255.255:5004\"", "is a broadcast address"),
            (OUT, "peer = \"127.0.0.1:53\"", "privileged port 53"),
            (OUT, "peer = \"127.0.0.1:0\"", "port 0"),
            (OUT, "peer = \"127.0.0.1:10000\"", "is a media port of this node: packets would go in a circle"),
            (OUT, "peer = \"127.0.0.9:7880\"", "is the HTTP listener of this node"),
            (OUT, "peer = \"127.0.0.1:9999\"", "is a media port of this node"),
            (OUT, "peer = \"[::ffff:127.0.0.1]:5004\"", "written as IPv6"),
            (OUT, "address = \"::1\"\npeer = \"127.0.0.1:5004\"", "another family"),
            (OUT, "", "a route out needs a peer"),
            (OUT, "peer = \"127.0.0.1:5004\"\nto = \"127.0.0.1:5006\"", "to is for a route in"),
            (OUT, "peer = \"127.0.0.1:5004\"\nssrc = 1\nsuite = \"AEAD_AES_128_GCM\"", "ssrc is for a plain route out"),
            (OUT, "peer = \"127.0.0.1:5004\"\nfmtp = \"packetization-mode=2\"", "packetization-mode=2 does not pass"),
            (OUT, "peer = \"127.0.0.1:5004\"\nfmtp = \"profile-level-id=xyz\"", "six hexadecimal digits"),
            (IN, "address = \"192.0.2.1\"", "address 192.0.2.1 is not one of media.addresses: 127.0.0.1, ::1"),
            (IN, "port = 80", "privileged port 80"),
            (IN, "port = 65535", "has no next one for RTCP"),
            (IN, "port = 5005\npeer = \"127.0.0.1:5004\"", "port 5005 is where this route sends to"),
            (IN, "to = \"127.0.0.1:5004\"", "room and to are both set"),
            (IN, "from = \"bob\"", "from chooses whom a route out follows"),
            (IN, "ssrc = 1", "ssrc is for a plain route out"),
            (IN, "clock_rate = 8000", "clock_rate is for codec any: VP8 has its own"),
            (IN, "key = \"AAAA\"", "key needs a suite"),
            (IN, "suite = \"AEAD_AES_128_GCM\"\nkey = \"AAAA\"", "16 bytes of key and 12 of salt, not of 3 bytes"),
            (IN, "to_suite = \"AEAD_AES_128_GCM\"", "set to, the address that it goes to"),
            (IN, "identity = \"a/b\"", "identity holds '/'"),
            (IN, "rtcp = \"mux\"\npayload_type = 72", "cannot be told from RTCP"),
            (FORWARD, "peer = \"127.0.0.1:5004\"", "to 127.0.0.1:5004 is the route's own peer"),
            (FORWARD, "rtcp = \"mux\"", "codec any carries no RTCP"),
            ("direction = \"in\"\ncodec = \"VP8\"\n", "", "a route needs a room"),
            ("direction = \"in\"\ncodec = \"VP8\"\nroom = \"a/b\"\n", "", "room holds '/'"),
        ];
        for (base, line, said) in rows {
            let refused = plan(&format!("{base}{line}")).err().unwrap_or_else(|| panic!("accepted: {line}"));
            assert!(refused.contains(said), "{line:?}: {refused}");
        }
    }

    #[test]
    fn a_peer_that_has_no_way_yet_is_a_warning() {
        // From loopback the kernel lets nothing out.
        let away = plan(&format!("{OUT}address = \"127.0.0.1\"\npeer = \"192.0.2.1:5004\"")).expect("it may come");
        let warnings = away.check_networks().expect("no broadcast");
        assert!(warnings.len() == 1 && warnings[0].starts_with("peer 192.0.2.1:5004 cannot be reached from 127.0.0.1 now"), "{warnings:?}");
    }

    #[test]
    fn a_route_keeps_as_much_of_the_header_as_its_protection_allows() {
        let suite = "suite = \"AEAD_AES_128_GCM\"\n";
        let peer = "peer = \"127.0.0.1:5004\"\n";
        let numbering = |text: String| plan(&text).unwrap_or_else(|error| panic!("{text}: {error}")).numbering();
        assert_eq!(numbering(format!("{OUT}{peer}")), Numbering::TimestampsAndSsrc);
        assert_eq!(numbering(format!("{OUT}{peer}ssrc = 7")), Numbering::Timestamps);
        assert_eq!(numbering(format!("{OUT}{peer}{suite}")), Numbering::Timestamps);
        assert_eq!(numbering(FORWARD.to_owned()), Numbering::Whole);
        assert_eq!(numbering(format!("{FORWARD}{suite}")), Numbering::Whole);
        assert_eq!(numbering(format!("{FORWARD}to_{suite}")), Numbering::Timestamps);
    }

    #[test]
    fn a_receiver_that_names_no_profile_takes_every_one() {
        let ok = |text: &str| plan(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let out = ok(&format!("{OUT}peer = \"127.0.0.1:5004\""));
        assert_eq!((out.formats.len(), out.payload_type, out.rtcp), (5, 96, RouteRtcp::Next));
        let named = ok(&format!("{OUT}peer = \"127.0.0.1:5004\"\nfmtp = \"Profile-Level-ID = 64001f\""));
        assert_eq!(named.formats[0].format, Format::H264 { profile: H264Profile::High, packetization_mode: 1 });
        let raw = ok(&format!("{FORWARD}clock_rate = 8000"));
        assert_eq!((raw.formats[0].number, raw.clock_rate, raw.rtcp), (ANY_PAYLOAD_TYPE, 8_000, RouteRtcp::Off));
        let drawn = ok(&format!("{IN}suite = \"AEAD_AES_256_GCM\""));
        assert!(drawn.crypto.is_some_and(|crypto| crypto.attribute().contains("BwcH")));
    }
}
