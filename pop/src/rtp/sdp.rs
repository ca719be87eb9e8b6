//! The SDP of a route: what a receiver opens, or what a sender must do (RFC 8866).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use pop_proto::control::MediaKind;

use super::plan::Plan;
use super::sdes::Crypto;
use crate::config::{RouteCodec, RouteRtcp};

/// Describes a stream to `at`; `None` for codec `any`, which nobody can be told how to decode.
pub(super) fn describe(name: &str, plan: &Plan, at: SocketAddr, crypto: Option<&Crypto>) -> Option<String> {
    let codec = plan.formats[0].format.codec();
    if plan.codec == RouteCodec::Any {
        return None;
    }
    let (number, family) = (plan.payload_type, if at.is_ipv4() { "IP4" } else { "IP6" });
    let profile = if crypto.is_some() { "RTP/SAVP" } else { "RTP/AVP" };
    let mut text = String::with_capacity(512);
    let mut line = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).and_then(|()| text.write_str("\r\n")).expect("a String takes every write");
    };
    line(format_args!("v=0"));
    line(format_args!("o=- 0 0 IN {} {}", family_of(plan.advertised), plan.advertised));
    line(format_args!("s={name}"));
    line(format_args!("c=IN {family} {}", at.ip()));
    line(format_args!("t=0 0"));
    line(format_args!("m={} {} {profile} {number}", codec.kind().name(), at.port()));
    let channels = if codec.kind() == MediaKind::Audio { "/2" } else { "" };
    line(format_args!("a=rtpmap:{number} {}/{}{channels}", codec.name(), plan.clock_rate));
    match (&plan.fmtp, plan.codec) {
        (Some(fmtp), _) => line(format_args!("a=fmtp:{number} {fmtp}")),
        // What passes here when nothing is said (RFC 6184 section 8.1 would mean mode 0).
        (None, RouteCodec::H264) => line(format_args!("a=fmtp:{number} packetization-mode=1")),
        (None, _) => {}
    }
    match plan.rtcp {
        RouteRtcp::Mux => line(format_args!("a=rtcp-mux")),
        RouteRtcp::Next => {}
        // RFC 3556 section 2: no bandwidth for RTCP is no RTCP.
        RouteRtcp::Off => line(format_args!("b=RS:0\r\nb=RR:0")),
    }
    if let Some(crypto) = crypto {
        line(format_args!("a=crypto:{}", crypto.attribute()));
    }
    Some(text)
}

fn family_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IP4" } else { "IP6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MediaConfig;

    fn described(text: &str) -> Option<String> {
        let config = toml::from_str(text).expect("it is right");
        let plan = Plan::new("cam", &config, &MediaConfig::default(), |out| out.fill(0)).expect("it is right");
        describe("cam", &plan, "192.0.2.7:5004".parse().expect("an address"), plan.crypto.as_ref())
    }

    #[test]
    fn a_receiver_reads_where_what_and_under_which_key() {
        let sdp = described(
            "direction = \"in\"\nroom = \"r\"\ncodec = \"opus\"\npayload_type = 111\nsuite = \"AEAD_AES_128_GCM\"\nrtcp = \"mux\"",
        );
        let key = "A".repeat(37) + "A==";
        let expected = format!(
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=cam\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\nm=audio 5004 RTP/SAVP 111\r\n\
             a=rtpmap:111 opus/48000/2\r\na=rtcp-mux\r\na=crypto:1 AEAD_AES_128_GCM inline:{key}\r\n"
        );
        assert_eq!(sdp.as_deref(), Some(expected.as_str()));
        let sdp = described("direction = \"in\"\nroom = \"r\"\ncodec = \"H264\"\nrtcp = \"off\"").expect("H264 can be described");
        assert!(
            sdp.ends_with("m=video 5004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\nb=RS:0\r\nb=RR:0\r\n")
        );
        assert_eq!(described("direction = \"in\"\nto = \"127.0.0.1:5004\"\ncodec = \"any\""), None);
    }
}
