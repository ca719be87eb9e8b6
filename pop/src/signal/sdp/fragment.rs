//! SDP fragments (`application/trickle-ice-sdpfrag`, RFC 8840 section 9): what a PATCH says of a client's ICE agent.

use super::SdpError;
use super::line::Line;

/// Longest fragment, in bytes: [`CANDIDATES_MAX`] candidates of the usual 150.
pub const FRAGMENT_LEN_MAX: usize = 32 * 1_024;

/// Most candidates of one fragment. Libwebrtc gathers at most one per interface, family, protocol and server, some tens.
const CANDIDATES_MAX: usize = 256;

/// Longest mid, in bytes, as in an offer.
const MID_LEN_MAX: usize = 16;

/// What a client says of its ICE agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// `a=ice-ufrag`, which comes with an `a=ice-pwd`. The password itself is of no use here: an ICE-lite agent sends no checks.
    pub ufrag: Option<&'a str>,
    /// Kind of media and mid of its first section: that of the offerer-tagged m-line of the BUNDLE group.
    pub section: Option<(&'a str, &'a str)>,
    /// How many `a=candidate` lines, all well formed. What they say is not kept: an ICE-lite agent answers whoever knows the
    /// password.
    pub candidates: usize,
    /// `a=end-of-candidates`.
    pub complete: bool,
}

/// Reads a fragment.
pub fn parse(text: &[u8]) -> Result<Fragment<'_>, SdpError> {
    let text = std::str::from_utf8(text).map_err(|_| SdpError::whole("the fragment", "is not UTF-8 text"))?;
    let mut fragment = Fragment::default();
    let mut pwd = None;
    let mut media = None;
    for (index, raw) in text.split('\n').enumerate() {
        let Some(line) = Line::read(index + 1, raw.strip_suffix('\r').unwrap_or(raw))? else { continue };
        match line.letter {
            'm' => media = Some(line.value.split(' ').next().unwrap_or_default()),
            'a' => match line.attribute() {
                ("ice-ufrag", _) => set_once(&mut fragment.ufrag, line.ufrag()?, line)?,
                ("ice-pwd", _) => set_once(&mut pwd, line.pwd()?, line)?,
                ("mid", value) if fragment.section.is_none() => {
                    let Some(media) = media else { return Err(line.error("stands before the first m=")) };
                    fragment.section = Some((read_media(line, media)?, read_mid(line, value)?));
                }
                // Some clients say so that there are no more.
                ("candidate", "") | ("end-of-candidates", _) => fragment.complete = true,
                ("candidate", value) => {
                    fragment.candidates += 1;
                    if fragment.candidates > CANDIDATES_MAX {
                        return Err(line.error("is given more than 256 times"));
                    }
                    check_candidate(line, value)?;
                }
                _ => {}
            },
            _ => {}
        }
    }
    if fragment.ufrag.is_some() != pwd.is_some() {
        return Err(SdpError::whole("a=ice-ufrag and a=ice-pwd", "come together or not at all"));
    }
    if fragment.ufrag.is_none() && fragment.candidates == 0 && !fragment.complete {
        return Err(SdpError::whole("the fragment", "has neither a=ice-ufrag nor a=candidate nor a=end-of-candidates"));
    }
    Ok(fragment)
}

/// All media share one transport, so what is said twice must be the same.
fn set_once<'a>(place: &mut Option<&'a str>, value: &'a str, line: Line<'_>) -> Result<(), SdpError> {
    if place.is_some_and(|before| before != value) {
        return Err(line.error("differs between sections, and all media share one transport"));
    }
    *place = Some(value);
    Ok(())
}

fn read_media<'a>(line: Line<'_>, media: &'a str) -> Result<&'a str, SdpError> {
    let known = matches!(media, "audio" | "video" | "application");
    known.then_some(media).ok_or_else(|| line.error("is in a section that is neither audio nor video nor application"))
}

fn read_mid<'a>(line: Line<'_>, mid: &'a str) -> Result<&'a str, SdpError> {
    let ok = (1..=MID_LEN_MAX).contains(&mid.len()) && mid.bytes().all(|b| b.is_ascii_graphic());
    ok.then_some(mid).ok_or_else(|| line.error("is not 1 to 16 visible characters"))
}

/// RFC 8839 section 5.1. "If the WHIP session does not support a candidate transport or is not able to resolve the connection
/// address, it MUST silently discard the candidate and continue processing the rest of the request normally": so any transport
/// and any address will do.
fn check_candidate(line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let mut words = value.split(' ');
    let mut next = || words.next().filter(|word| !word.is_empty());
    let checked = (|| {
        let (foundation, component, _transport) = (next()?, next()?, next()?);
        let (priority, _address, port) = (next()?, next()?, next()?);
        let numbers = component.parse::<u16>().is_ok_and(|id| (1..=256).contains(&id))
            && priority.parse::<u32>().is_ok()
            && port.parse::<u16>().is_ok();
        let kind = next()? == "typ" && next().is_some();
        (foundation.len() <= 32 && numbers && kind).then_some(())
    })();
    checked.ok_or_else(|| line.error("is not FOUNDATION COMPONENT TRANSPORT PRIORITY ADDRESS PORT typ TYPE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANDIDATE: &str = "a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0 ufrag EsAw network-id 1\r\n";

    #[test]
    fn the_examples_of_the_drafts_are_read() {
        let trickle = format!(
            "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n{CANDIDATE}a=end-of-candidates\r\n"
        );
        let expected = Fragment { ufrag: Some("EsAw"), section: Some(("audio", "0")), candidates: 1, complete: true };
        assert_eq!(parse(trickle.as_bytes()), Ok(expected));
        let restart = b"a=ice-ufrag:ysXw\r\na=ice-pwd:vw5LmwG4y/e6dPP/zAP9Gp5k\r\n";
        assert_eq!(parse(restart), Ok(Fragment { ufrag: Some("ysXw"), ..Fragment::default() }));
        let bundled = "a=ice-options:trickle ice2\na=group:BUNDLE 0 1\nm=audio 9 UDP/TLS/RTP/SAVPF 111\na=mid:0\na=ice-ufrag:ysXw\na=ice-pwd:vw5LmwG4y/e6dPP/zAP9Gp5k\n";
        assert_eq!(parse(bundled.as_bytes()).map(|fragment| fragment.section), Ok(Some(("audio", "0"))));
    }

    #[test]
    fn what_this_node_cannot_reach_is_no_error() {
        for candidate in [
            "a=candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active",
            "a=candidate:1 1 udp 1 3f2504e0-4f89-11d3-9a0c-0305e82c3301.local 50000 typ host",
            "a=candidate:1 1 sctp 1 fe80::1%eth0 1 typ host",
            "a=candidate:",
            "a=end-of-candidates",
        ] {
            parse(candidate.as_bytes()).unwrap_or_else(|error| panic!("{candidate}: {error}"));
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        let many = CANDIDATE.repeat(CANDIDATES_MAX + 1);
        for (text, sentence) in [
            ("", "has neither a=ice-ufrag"),
            ("hello", "SDP line 1: the line is not a letter"),
            ("a=mid:0\r\n", "stands before the first m="),
            ("m=audio 9 RTP/AVP 0\r\na=mid:0123456789abcdefg\r\n", "is not 1 to 16 visible characters"),
            ("m=<script> 9 RTP/AVP 0\r\na=mid:0\r\n", "neither audio nor video"),
            ("a=ice-ufrag:abc\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n", "a=ice-ufrag is not 4 to 256"),
            ("a=ice-ufrag:abcd\r\na=ice-pwd:short\r\n", "a=ice-pwd is not 22 to 256"),
            ("a=ice-ufrag:abcd\r\n", "come together or not at all"),
            ("a=ice-ufrag:abcd\r\na=ice-ufrag:abce\r\n", "differs between sections"),
            ("a=candidate:1 1 udp 1 192.0.2.1\r\n", "SDP line 1: a=candidate is not FOUNDATION"),
            ("a=candidate:1 0 udp 1 192.0.2.1 1 typ host\r\n", "a=candidate is not FOUNDATION"),
            ("a=candidate:1 1 udp 4294967296 192.0.2.1 1 typ host\r\n", "a=candidate is not FOUNDATION"),
            ("a=candidate:1 1 udp 1 192.0.2.1 65536 typ host\r\n", "a=candidate is not FOUNDATION"),
            ("a=candidate:1 1 udp 1 192.0.2.1 1 host\r\n", "a=candidate is not FOUNDATION"),
            ("a=candidate:1 1 udp 1 192.0.2.1 1 typ host\0\r\n", "holds a control character"),
            (&many, "SDP line 257: a=candidate is given more than 256 times"),
        ] {
            let error = parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(sentence), "{error:?} does not say {sentence:?}");
        }
        assert!(parse(b"a=candidate:\xff").is_err());
    }

    #[test]
    fn no_mutation_panics() {
        let seed = CANDIDATE.repeat(3) + "m=audio 9 RTP/AVP 0\r\na=mid:0\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n";
        let mut state = 9_u64;
        let mut random = move |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % end
        };
        for _ in 0..20_000 {
            let mut bytes = seed.clone().into_bytes();
            for _ in 0..=random(8) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b" :=\r\n\0a"[random(7)]),
                }
            }
            let _ = parse(&bytes);
        }
    }
}
