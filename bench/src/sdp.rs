//! The offers of a plain client with one video section, and what it needs of the answer.

use std::fmt::Write;
use std::net::SocketAddr;

/// Payload type of VP8 in every offer.
pub(crate) const PAYLOAD_TYPE: u8 = 96;

/// What a client says about itself.
pub(crate) struct Offer<'a> {
    /// ICE credentials.
    pub(crate) ufrag: &'a str,
    /// At least 22 characters.
    pub(crate) password: &'a str,
    /// Hash of the certificate: the value of `a=fingerprint`.
    pub(crate) fingerprint: &'a str,
    /// The SSRC of a publisher; `None` makes a viewer's offer.
    pub(crate) ssrc: Option<u32>,
}

impl Offer<'_> {
    /// The offer of one bundled VP8 section.
    pub(crate) fn text(&self) -> String {
        let Offer { ufrag, password, fingerprint, ssrc } = self;
        let direction = if ssrc.is_some() { "sendonly" } else { "recvonly" };
        let mut text = format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF {PAYLOAD_TYPE}\r\nc=IN IP4 0.0.0.0\r\n\
             a=ice-ufrag:{ufrag}\r\na=ice-pwd:{password}\r\na=fingerprint:{fingerprint}\r\na=setup:actpass\r\n\
             a=mid:0\r\na={direction}\r\na=rtcp-mux\r\na=rtcp-rsize\r\na=rtpmap:{PAYLOAD_TYPE} VP8/90000\r\n\
             a=rtcp-fb:{PAYLOAD_TYPE} nack\r\na=rtcp-fb:{PAYLOAD_TYPE} nack pli\r\n"
        );
        if let Some(ssrc) = ssrc {
            let _ = write!(text, "a=msid:bench video\r\na=ssrc:{ssrc} cname:bench\r\n");
        }
        text
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
        })
    }
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
    fn an_answer_gives_credentials_role_and_the_ipv4_candidate() {
        let text = "v=0\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 AA:BB\r\na=setup:passive\r\n\
                    a=candidate:1 1 TCP 9 10.0.0.1 9 typ host tcptype passive\r\na=candidate:2 1 udp 9 ::1 10000 typ host\r\n\
                    a=candidate:3 1 UDP 9 127.0.0.1 10000 typ host generation 0\r\n";
        let answer = Answer::parse(text).unwrap();
        assert_eq!((answer.candidate, answer.server_is_active), ("127.0.0.1:10000".parse().unwrap(), false));
        assert_eq!(Answer::parse("v=0\r\n").unwrap_err(), "the answer has no a=ice-ufrag:");
    }
}
