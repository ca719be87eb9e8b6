//! The offers of a plain client with sections of one kind, and what it needs of the answer.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::random::random_hex;

/// What a client sends and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Media {
    /// VP8.
    Video,
    /// Opus.
    Audio,
}

impl Media {
    /// In every offer.
    pub(crate) fn payload_type(self) -> u8 {
        match self {
            Media::Video => 96,
            Media::Audio => 111,
        }
    }

    /// Ticks of its RTP timestamps per second.
    pub(crate) fn clock_rate(self) -> u32 {
        match self {
            Media::Video => 90_000,
            Media::Audio => 48_000,
        }
    }

    /// The kind of its sections, and what a publisher calls its track.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Media::Video => "video",
            Media::Audio => "audio",
        }
    }

    fn codec(self) -> &'static str {
        match self {
            Media::Video => "VP8/90000",
            Media::Audio => "opus/48000/2",
        }
    }
}

/// What a client says about itself.
pub(crate) struct Offer {
    /// ICE credentials.
    pub(crate) ufrag: String,
    /// See `ufrag`.
    pub(crate) password: String,
    fingerprint: String,
    ssrc: Option<u32>,
    receives: usize,
    media: Media,
    rtx: bool,
}

impl Offer {
    /// An offer with new credentials. `fingerprint` is the value of `a=fingerprint`; with an `ssrc` the client publishes, in its first
    /// section; `receives` more sections take what others publish.
    pub(crate) fn new(fingerprint: String, ssrc: Option<u32>, receives: usize, media: Media) -> Offer {
        Offer { ufrag: random_hex::<4>(), password: random_hex::<12>(), fingerprint, ssrc, receives, media, rtx: false }
    }

    /// The same, with RTX for the video (RFC 4588) when `rtx` is set.
    pub(crate) fn with_rtx(self, rtx: bool) -> Offer {
        Offer { rtx, ..self }
    }

    /// The offer as text, bundled. `version` grows from offer to offer of one client.
    pub(crate) fn text(&self, version: u32) -> String {
        let Offer { ufrag, password, fingerprint, ssrc, receives, media, rtx } = self;
        let (kind, payload_type, codec) = (media.name(), media.payload_type(), media.codec());
        let sections = usize::from(ssrc.is_some()) + receives;
        let mids: Vec<String> = (0..sections).map(|mid| mid.to_string()).collect();
        let rtx = rtx.then(|| payload_type + 1);
        let also = rtx.map_or_else(String::new, |rtx| format!(" {rtx}"));
        let mut text = format!(
            "v=0\r\no=- 1 {version} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE {}\r\n\
             a=ice-ufrag:{ufrag}\r\na=ice-pwd:{password}\r\na=fingerprint:{fingerprint}\r\na=setup:actpass\r\n",
            mids.join(" ")
        );
        for mid in 0..sections {
            let own = ssrc.filter(|_| mid == 0);
            let direction = if own.is_some() { "sendonly" } else { "recvonly" };
            let _ = write!(
                text,
                "m={kind} 9 UDP/TLS/RTP/SAVPF {payload_type}{also}\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\na={direction}\r\n\
                 a=rtcp-mux\r\na=rtcp-rsize\r\na=rtpmap:{payload_type} {codec}\r\na=rtcp-fb:{payload_type} nack\r\n"
            );
            if *media == Media::Video {
                let _ = write!(text, "a=rtcp-fb:{payload_type} nack pli\r\n");
            }
            if let Some(rtx) = rtx {
                let _ = write!(text, "a=rtpmap:{rtx} rtx/{}\r\na=fmtp:{rtx} apt={payload_type}\r\n", media.clock_rate());
            }
            if let Some(ssrc) = own {
                let _ = write!(text, "a=msid:bench {kind}\r\na=ssrc:{ssrc} cname:bench\r\n");
            }
        }
        text
    }

    /// The answer to a server's offer of one video section: we receive, and are the DTLS server, so that we choose the SRTP profile.
    /// Janus reads `a=setup` in the section alone.
    pub(crate) fn answer(&self, offer: &str) -> Result<String, String> {
        let Offer { ufrag, password, fingerprint, .. } = self;
        let mut lines = offer.lines().map(str::trim_end);
        let mid = lines.clone().find_map(|line| line.strip_prefix("a=mid:")).ok_or("the offer has no a=mid:")?;
        let mapping = lines.find_map(|line| line.strip_prefix("a=rtpmap:")?.split_once(' ').filter(|(_, name)| *name == "VP8/90000"));
        let (payload_type, _) = mapping.ok_or("the offer has no VP8")?;
        Ok(format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE {mid}\r\n\
             a=ice-ufrag:{ufrag}\r\na=ice-pwd:{password}\r\na=fingerprint:{fingerprint}\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF {payload_type}\r\nc=IN IP4 0.0.0.0\r\na=setup:passive\r\na=mid:{mid}\r\na=recvonly\r\n\
             a=rtcp-mux\r\na=rtpmap:{payload_type} VP8/90000\r\n\
             a=rtcp-fb:{payload_type} nack\r\na=rtcp-fb:{payload_type} nack pli\r\n"
        ))
    }
}

/// What a client takes from an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// ICE credentials of the server.
    pub(crate) ufrag: String,
    /// See `ufrag`.
    pub(crate) password: String,
    /// Hash of the server's certificate: the value of `a=fingerprint`.
    pub(crate) fingerprint: String,
    /// The server is the DTLS client (`setup:active`).
    pub(crate) server_is_active: bool,
    /// The first UDP candidate, IPv4 before IPv6.
    pub(crate) candidate: SocketAddr,
    /// SSRCs that the server sends, each once.
    pub(crate) sources: Vec<u32>,
}

impl Answer {
    /// Reads an answer. The error names what is missing.
    pub(crate) fn parse(text: &str) -> Result<Answer, String> {
        let value = |name: &str| {
            text.lines().find_map(|line| line.trim_end().strip_prefix(name)).ok_or_else(|| format!("the answer has no {name}"))
        };
        let mut candidates: Vec<SocketAddr> = text.lines().filter_map(parse_candidate).collect();
        candidates.sort_by_key(SocketAddr::is_ipv6);
        Ok(Answer {
            ufrag: value("a=ice-ufrag:")?.to_owned(),
            password: value("a=ice-pwd:")?.to_owned(),
            fingerprint: value("a=fingerprint:")?.to_owned(),
            server_is_active: value("a=setup:")? == "active",
            candidate: *candidates.first().ok_or("the answer has no UDP candidate")?,
            sources: parse_sources(text),
        })
    }
}

/// `a=ssrc:number attribute` (RFC 5576 section 4.1): a source has a line for each of its attributes.
fn parse_sources(text: &str) -> Vec<u32> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("a=ssrc:")?.split(' ').next()?.parse().ok());
    lines.collect::<std::collections::BTreeSet<u32>>().into_iter().collect()
}

/// `a=candidate:foundation component transport priority address port typ ..` (RFC 8839 section 5.1).
fn parse_candidate(line: &str) -> Option<SocketAddr> {
    let mut words = line.trim_end().strip_prefix("a=candidate:")?.split(' ');
    let (component, transport) = (words.nth(1)?, words.next()?);
    let (address, port) = (words.nth(1)?, words.next()?);
    (component == "1" && transport.eq_ignore_ascii_case("udp")).then_some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_of_the_server_is_answered_with_its_own_mid_and_payload_type() {
        let offer = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 101 102\r\na=mid:v0\r\na=rtpmap:101 VP8/90000\r\na=rtpmap:102 rtx/90000\r\n";
        let answer = Offer::new("sha-256 AA:BB".to_owned(), None, 1, Media::Video).answer(offer).unwrap();
        for line in ["a=group:BUNDLE v0", "a=mid:v0", "m=video 9 UDP/TLS/RTP/SAVPF 101", "a=setup:passive", "a=recvonly"] {
            assert!(answer.lines().any(|have| have == line), "{line} in {answer}");
        }
        assert!(Answer::parse(&format!("{answer}a=candidate:1 1 udp 9 127.0.0.1 5 typ host\r\n")).is_ok());
        let refused = |offer: &str| Offer::new(String::new(), None, 1, Media::Video).answer(offer).unwrap_err();
        assert_eq!(refused("v=0\r\na=mid:0\r\na=rtpmap:96 H264/90000\r\n"), "the offer has no VP8");
    }

    #[test]
    fn an_answer_gives_credentials_role_and_the_ipv4_candidate() {
        let text = "v=0\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 AA:BB\r\na=setup:passive\r\n\
                    a=candidate:1 1 TCP 9 10.0.0.1 9 typ host tcptype passive\r\na=candidate:2 1 udp 9 ::1 10000 typ host\r\n\
                    a=candidate:3 1 UDP 9 127.0.0.1 10000 typ host generation 0\r\n\
                    a=ssrc:7 cname:x\r\na=ssrc:7 msid:a b\r\na=ssrc:9 cname:x\r\n";
        let answer = Answer::parse(text).unwrap();
        assert_eq!((answer.candidate, answer.server_is_active), ("127.0.0.1:10000".parse().unwrap(), false));
        assert_eq!(answer.sources, [7, 9]);
        assert_eq!(Answer::parse("v=0\r\n").unwrap_err(), "the answer has no a=ice-ufrag:");
    }
}
