//! Offers of real clients, hostile offers, and a million mutations of the former.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pop::config::DtlsRole;
use pop::signal::answer::{LocalMedia, LocalSource, LocalTransport, negotiate};
use pop::signal::sdp::{MEDIA_MAX, SDP_LEN_MAX, SdpError, parse};
use pop_proto::control::{Codec, Extension};
use pop_session::{Format, Role};
use webrtc_sdp::attribute_type::{SdpAttribute, SdpAttributeType};

const FINGERPRINT: &str = "sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF";

fn corpus(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/corpus/sdp/{name}.sdp", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

const PUBLISHERS: [&str; 14] = [
    "chromium-whip",
    "chromium-simulcast",
    "chromium-sim",
    "firefox-whip",
    "firefox-simulcast",
    "safari-whip",
    "aiortc-whip",
    "libdatachannel-whip",
    "obs-whip",
    "obs-simulcast",
    "ffmpeg8-whip",
    "ffmpeg8.0-whip",
    "gstreamer-whip",
    "gstreamer-rtx",
];
const VIEWERS: [&str; 4] = ["chromium-whep", "firefox-whep", "aiortc-whep", "gstreamer-whep"];

fn answer(offer: &[u8], role: Role) -> Result<String, SdpError> {
    answer_as(offer, role, DtlsRole::Auto)
}

fn answer_as(offer: &[u8], role: Role, dtls_role: DtlsRole) -> Result<String, SdpError> {
    let offer = parse(offer)?;
    let negotiation = negotiate(&offer, role, dtls_role)?;
    let candidates = ["192.0.2.1:10000".parse().unwrap(), "[2001:db8::1]:10000".parse().unwrap()];
    let local = LocalTransport {
        session_id: 42,
        session_version: 1,
        ufrag: "abcdefgh",
        pwd: "0123456789abcdef0123456789abcdef",
        fingerprint: FINGERPRINT,
        candidates: &candidates,
        tcp_candidates: &[],
    };
    let sources = (1u32..).zip(negotiation.accepted());
    let sources: Vec<_> = sources.map(|(n, it)| LocalSource { ssrc: 1111 * n, rtx_ssrc: it.has_rtx().then_some(1111 * n + 1) }).collect();
    let media = LocalMedia { stream: "stream", cname: "cname", sources: &sources };
    Ok(negotiation.write(&local, (role == Role::Watch).then_some(&media)))
}

fn lines<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    text.split("\r\n").filter_map(|line| line.strip_prefix(prefix)).collect()
}

#[test]
fn every_known_client_gets_an_answer_that_mozillas_parser_takes() {
    let offers = PUBLISHERS.map(|name| (name, Role::Publish)).into_iter().chain(VIEWERS.map(|name| (name, Role::Watch)));
    for (name, role) in offers {
        let text = answer(&corpus(name), role).unwrap_or_else(|error| panic!("{name}: {error}"));
        let parsed = webrtc_sdp::parse_sdp(&text, true).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        assert_eq!(parsed.media.len(), 2, "{name}");
        assert!(parsed.get_attribute(SdpAttributeType::IceLite).is_some(), "{name}");
        for media in &parsed.media {
            assert_eq!(media.get_port(), 10_000, "{name}");
            for needed in [SdpAttributeType::RtcpMux, SdpAttributeType::Mid, SdpAttributeType::IceUfrag, SdpAttributeType::Setup] {
                assert!(media.get_attribute(needed.clone()).is_some(), "{name}: {needed}");
            }
            assert!(
                media
                    .get_attribute(match role {
                        Role::Publish => SdpAttributeType::Recvonly,
                        Role::Watch => SdpAttributeType::Sendonly,
                    })
                    .is_some()
            );
        }
        let candidates: Vec<_> = parsed.media.iter().map(|media| media.get_attributes_of_type(SdpAttributeType::Candidate).len()).collect();
        assert_eq!(candidates, [2, 0], "{name}: all candidates are in the first section");
        let ours = parsed.media[0].get_attributes_of_type(SdpAttributeType::Candidate);
        let priorities: Vec<_> = ours
            .iter()
            .filter_map(|c| match c {
                SdpAttribute::Candidate(c) => Some(c.priority),
                _ => None,
            })
            .collect();
        assert_eq!(priorities, [2_130_706_431, 2_130_706_175], "RFC 8445 5.1.2.1");
        assert!(!text.contains("ulpfec") && !text.contains("red/90000"), "{name}");
    }
}

/// What the answer says of each section in one line: media and mid; codecs with their payload types; extensions; feedback of the
/// first payload type; layers.
fn summarize(answer: &str) -> Vec<String> {
    let sections = answer.split("\r\nm=").skip(1).map(|section| format!("m={section}"));
    sections
        .map(|section| {
            let one = |prefix: &str| lines(&section, prefix).join(",");
            let kind = section.split(['=', ' ']).nth(1).unwrap_or_default().to_owned();
            let codecs = lines(&section, "a=rtpmap:").into_iter().map(|line| {
                let (number, encoding) = line.split_once(' ').unwrap();
                format!("{}:{number}", encoding.split('/').next().unwrap())
            });
            let extensions = lines(&section, "a=extmap:").into_iter().map(|line| {
                let (id, uri) = line.split_once(' ').unwrap();
                let found = Extension::ALL.into_iter().find(|extension| extension.uri() == uri).unwrap();
                format!("{found:?}:{id}")
            });
            let first = lines(&section, "a=rtpmap:")[0].split(' ').next().unwrap();
            let parts = [
                format!("{kind} {}", one("a=mid:")),
                codecs.collect::<Vec<_>>().join(" "),
                extensions.collect::<Vec<_>>().join(" "),
                one(&format!("a=rtcp-fb:{first} ")),
                one("a=simulcast:"),
            ];
            parts.join(" | ")
        })
        .collect()
}

const CHROMIUM_VIDEO: &str = "VP8:96 rtx:97 H264:102 rtx:103 H264:104 rtx:107 H264:108 rtx:109 H264:114 rtx:115 H264:116 rtx:117 H264:39 \
     rtx:40 AV1:45 rtx:46 VP9:98 rtx:99 VP9:100 rtx:101";

#[test]
fn each_client_gets_the_codecs_extensions_and_feedback_that_it_and_we_have() {
    let all = "transport-cc,ccm fir,nack,nack pli";
    let rows: [(&str, [String; 2]); 14] = [
        (
            "chromium-whip",
            [
                "audio 0 | opus:111 red:63 | Mid:4 TransportCc:3 AudioLevel:1 | transport-cc | ".into(),
                format!("video 1 | {CHROMIUM_VIDEO} | Mid:4 TransportCc:3 PlayoutDelay:5 VideoOrientation:13 | {all} | "),
            ],
        ),
        (
            "chromium-simulcast",
            [
                "audio 0 | red:63 opus:111 | Mid:4 TransportCc:3 AudioLevel:1 |  | ".into(),
                format!(
                    "video 1 | {CHROMIUM_VIDEO} | Mid:4 Rid:10 RepairedRid:11 TransportCc:3 DependencyDescriptor:12 PlayoutDelay:5 \
                     VideoOrientation:13 | {all} | recv q;h;f"
                ),
            ],
        ),
        (
            "chromium-sim",
            [
                "audio 0 | opus:111 red:63 | Mid:4 TransportCc:3 AudioLevel:1 | transport-cc | ".into(),
                format!("video 1 | {CHROMIUM_VIDEO} | TransportCc:3 PlayoutDelay:5 VideoOrientation:13 | {all} | "),
            ],
        ),
        (
            "firefox-whip",
            [
                "audio 0 | opus:109 | Mid:3 TransportCc:7 AudioLevel:1 | transport-cc | ".into(),
                format!("video 1 | VP8:120 rtx:124 VP9:121 rtx:125 AV1:99 rtx:100 | Mid:3 TransportCc:7 | {all} | "),
            ],
        ),
        (
            "firefox-simulcast",
            [
                "audio 0 | opus:109 | Mid:3 TransportCc:7 AudioLevel:1 | transport-cc | ".into(),
                format!(
                    "video 1 | VP8:120 rtx:124 VP9:121 rtx:125 H264:126 rtx:127 H264:97 rtx:98 H264:105 rtx:106 H264:103 rtx:104 AV1:99 \
                     rtx:100 | Mid:3 Rid:9/recvonly RepairedRid:10/recvonly TransportCc:7 DependencyDescriptor:8/recvonly | {all} | \
                     recv q;h;f"
                ),
            ],
        ),
        (
            "safari-whip",
            [
                "audio 0 | opus:111 red:63 | Mid:4 TransportCc:3 AudioLevel:1 | transport-cc | ".into(),
                format!(
                    "video 1 | H264:96 rtx:97 H264:98 rtx:99 H265:100 rtx:101 H265:102 rtx:103 VP8:125 rtx:104 AV1:35 rtx:36 VP9:37 \
                     rtx:38 | Mid:4 TransportCc:3 PlayoutDelay:5 VideoOrientation:13 | {all} | "
                ),
            ],
        ),
        (
            "aiortc-whip",
            [
                "audio 0 | opus:96 | Mid:1 AudioLevel:2 |  | ".into(),
                "video 1 | VP8:97 rtx:98 H264:99 rtx:100 H264:101 rtx:102 | Mid:1 AbsSendTime:3 | goog-remb,nack,nack pli | ".into(),
            ],
        ),
        ("libdatachannel-whip", ["audio 0 | opus:111 |  |  | ".into(), "video 1 | H265:96 |  | goog-remb,nack,nack pli | ".into()]),
        ("obs-whip", ["audio 0 | opus:111 |  |  | ".into(), "video 1 | H264:96 |  | goog-remb,nack,nack pli | ".into()]),
        (
            "obs-simulcast",
            ["audio 0 | opus:111 |  |  | ".into(), "video 1 | H264:96 | Mid:1 Rid:2 | goog-remb,nack,nack pli | recv 2;1;0".into()],
        ),
        ("ffmpeg8-whip", ["audio 0 | opus:111 |  |  | ".into(), "video 1 | H264:106 rtx:105 |  | nack | ".into()]),
        ("ffmpeg8.0-whip", ["audio 0 | opus:111 |  |  | ".into(), "video 1 | H264:106 |  |  | ".into()]),
        ("gstreamer-whip", ["video video0 | H264:96 |  | ccm fir,nack pli | ".into(), "audio audio1 | opus:97 |  |  | ".into()]),
        (
            "gstreamer-rtx",
            [
                format!("video video0 | VP8:96 rtx:100 | TransportCc:1 | {all} | "),
                "audio audio1 | opus:97 rtx:102 | TransportCc:1 | transport-cc,nack | ".into(),
            ],
        ),
    ];
    assert_eq!(rows.each_ref().map(|(name, _)| *name), PUBLISHERS, "each recorded offer has its row");
    for (name, expected) in rows {
        assert_eq!(summarize(&answer(&corpus(name), Role::Publish).unwrap()), expected, "{name}");
    }
    let firefox = answer(&corpus("firefox-whep"), Role::Watch).unwrap();
    let expected = [
        "audio 0 | opus:109 | Mid:3 TransportCc:7 AudioLevel:1 | transport-cc | ".to_owned(),
        format!(
            "video 1 | VP8:120 rtx:124 VP9:121 rtx:125 AV1:99 rtx:100 | Mid:3 AbsSendTime:4 TransportCc:7 PlayoutDelay:6/sendonly | {all} | "
        ),
    ];
    assert_eq!(summarize(&firefox), expected);
    let gstreamer = answer(&corpus("gstreamer-whep"), Role::Watch).unwrap();
    assert_eq!(summarize(&gstreamer), ["video video0 | VP8:96 |  | ccm fir,nack pli | ", "audio audio1 | opus:97 |  |  | "]);
}

/// An offer of one video section with these lines; extension ids are in the section.
fn video(formats: &str, attributes: &str) -> String {
    format!(
        "v=0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef012345\r\na=fingerprint:{FINGERPRINT}\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF {formats}\r\na=mid:v\r\na=rtcp-mux\r\n{}",
        attributes.split_inclusive('\n').map(|line| line.replace('\n', "\r\n")).collect::<String>()
    )
}

const TWCC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
const ABS_SEND_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time";
const RID: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";

#[test]
fn where_repairs_are_the_packet_again_no_value_changes_with_each_sending() {
    for role in [Role::Watch, Role::Publish] {
        no_value_changes_with_each_sending(role);
    }
}

fn no_value_changes_with_each_sending(role: Role) {
    let common = format!(
        "a=extmap:1 {TWCC}\na=extmap:2 {ABS_SEND_TIME}\na=extmap:3 urn:3gpp:video-orientation\na=rtpmap:96 VP8/90000\n\
         a=rtcp-fb:96 transport-cc\na=rtcp-fb:96 goog-remb\n"
    );
    let summary =
        |formats: &str, more: &str| summarize(&answer(video(formats, &format!("{common}{more}")).as_bytes(), role).unwrap()).remove(0);
    // Who sends to us tells us its time with the one or the other.
    let both = if role == Role::Watch { "AbsSendTime:2 TransportCc:1" } else { "TransportCc:1" };
    let rtx = "a=rtpmap:97 rtx/90000\na=fmtp:97 apt=96\n";
    let nack = "a=rtcp-fb:96 nack\n";
    assert_eq!(
        summary("96 97", &format!("{nack}{rtx}")),
        format!("video v | VP8:96 rtx:97 | {both} VideoOrientation:3 | transport-cc,nack | ")
    );
    assert_eq!(summary("96", nack), "video v | VP8:96 | VideoOrientation:3 | goog-remb,nack | ");
    assert_eq!(summary("96", ""), format!("video v | VP8:96 | {both} VideoOrientation:3 | transport-cc | "));
    assert_eq!(
        summary("96 97", rtx),
        format!("video v | VP8:96 | {both} VideoOrientation:3 | transport-cc | "),
        "RTX without NACK is never used"
    );
    let other = "a=rtpmap:98 VP9/90000\na=rtcp-fb:98 nack\n";
    assert_eq!(
        summary("96 97 98", &format!("{nack}{rtx}{other}")),
        "video v | VP8:96 rtx:97 VP9:98 | VideoOrientation:3 | goog-remb,nack | ",
        "one payload type without RTX is enough"
    );
}

#[test]
fn retransmissions_need_their_payload_type_to_name_an_accepted_one() {
    let codecs = |formats: &str, more: &str| {
        let text = answer(video(formats, &format!("a=rtpmap:96 VP8/90000\na=rtcp-fb:96 nack\n{more}")).as_bytes(), Role::Publish).unwrap();
        lines(&text, "m=")[0].rsplit("SAVPF ").next().unwrap().to_owned()
    };
    assert_eq!(codecs("97 96", "a=rtpmap:97 rtx/90000\na=fmtp:97 apt=96;rtx-time=3000\n"), "96 97");
    assert_eq!(codecs("96 97", "a=rtpmap:97 rtx/90000\na=fmtp:97 apt=98\n"), "96");
    assert_eq!(codecs("96 97", "a=rtpmap:97 rtx/90000\n"), "96");
    assert_eq!(codecs("96 97", "a=rtpmap:97 rtx/48000\na=fmtp:97 apt=96\n"), "96", "another clock");
    assert_eq!(
        codecs("96 97 98", "a=rtpmap:97 rtx/90000\na=fmtp:97 apt=96\na=rtpmap:98 rtx/90000\na=fmtp:98 apt=96\n"),
        "96 97",
        "the first"
    );
}

#[test]
fn sources_are_told_apart_by_their_groups() {
    let found = |attributes: &str| {
        let offer =
            video("96 97", &format!("a=rtpmap:96 VP8/90000\na=rtcp-fb:96 nack\na=rtpmap:97 rtx/90000\na=fmtp:97 apt=96\n{attributes}"));
        let offer = parse(offer.as_bytes()).unwrap();
        let negotiation = negotiate(&offer, Role::Publish, DtlsRole::Auto).unwrap();
        let section = negotiation.accepted().next().unwrap();
        (section.ssrc, section.rtx_ssrc)
    };
    assert_eq!(found("a=ssrc:2 cname:x\na=ssrc:1 cname:x\na=ssrc-group:FID 1 2\n"), (Some(1), Some(2)), "the repair came first");
    assert_eq!(found("a=ssrc:3 cname:x\na=ssrc:1 cname:x\na=ssrc-group:FEC-FR 1 3\n"), (Some(1), None));
    assert_eq!(found("a=ssrc-group:FID 1 1\na=ssrc:1 cname:x\n"), (None, None), "a source that repairs itself is none");
    assert_eq!(found(""), (None, None));
    let sim = "a=ssrc-group:SIM 1 2 3\na=ssrc-group:FID 1 4\na=ssrc-group:FID 2 5\na=ssrc-group:FID 3 6\na=ssrc:1 cname:x\n";
    assert_eq!(found(sim), (Some(3), Some(6)), "the top layer");
    let two = String::from_utf8(corpus("obs-whip")).unwrap().replace("3388068601", "3388068600");
    let error = answer(two.as_bytes(), Role::Publish).unwrap_err().to_string();
    assert_eq!(error, "SDP: a=ssrc gives one source to two streams");
}

#[test]
fn red_is_taken_when_all_its_blocks_are_the_opus_that_is_taken() {
    let codecs = |fmtp: &str| {
        let offer = String::from_utf8(corpus("chromium-whip")).unwrap().replace("a=fmtp:63 111/111", fmtp);
        lines(&answer(offer.as_bytes(), Role::Publish).unwrap(), "m=")[0].to_owned()
    };
    for (fmtp, red) in [
        ("a=fmtp:63 111/111", true),
        ("a=fmtp:63 111/111/111", true),
        ("a=fmtp:63 111", false),
        ("a=fmtp:63 111/9", false),
        ("a=fmtp:63 9/9", false),
        ("a=fmtp:63 63/63", false),
        ("a=x:y", false),
    ] {
        assert_eq!(codecs(fmtp).ends_with(" 111 63"), red, "{fmtp}");
    }
}

#[test]
fn h265_is_taken_as_one_stream_of_plain_payloads() {
    let format = |fmtp: &str| {
        let offer = video("96", &format!("a=rtpmap:96 H265/90000\n{fmtp}"));
        let offer = parse(offer.as_bytes()).unwrap();
        offer.media[0].payloads[0].format()
    };
    let h265 = |profile, high_tier| Some(Format::H265 { profile, high_tier });
    assert_eq!(format(""), h265(1, false), "what RFC 7798 infers");
    assert_eq!(format("a=fmtp:96 level-id=180;profile-id=2;tier-flag=1;tx-mode=SRST\n"), h265(2, true));
    assert_eq!(format("a=fmtp:96 profile-id=1;sprop-max-don-diff=0\n"), h265(1, false));
    for wrong in ["tx-mode=MRST", "profile-space=1", "profile-id=0", "profile-id=32", "profile-id=x", "tier-flag=2", "sprop-max-don-diff=1"]
    {
        assert_eq!(format(&format!("a=fmtp:96 {wrong}\n")), None, "{wrong}");
    }
    let text = answer(video("96", "a=rtpmap:96 H265/90000\na=fmtp:96 level-id=93;sprop-vps=AAAA;tx-mode=SRST\n").as_bytes(), Role::Publish);
    assert_eq!(lines(&text.unwrap(), "a=fmtp:96 "), ["level-id=93;tx-mode=SRST"], "what describes the sender's own stream is not echoed");
}

#[test]
fn every_layer_is_answered_in_the_offers_order_with_its_restrictions() {
    let answered = |attributes: &str| {
        let codecs = "a=rtpmap:96 VP8/90000\na=rtpmap:98 VP9/90000\n";
        let text = answer(video("96 98 99", &format!("{codecs}a=extmap:4 {RID}\n{attributes}")).as_bytes(), Role::Publish).unwrap();
        [lines(&text, "a=rid:"), lines(&text, "a=simulcast:")].concat().join(" | ")
    };
    assert_eq!(answered("a=rid:l send\na=rid:h send\na=simulcast:send h;l\n"), "h recv | l recv | recv h;l");
    assert_eq!(answered("a=rid:h send\na=rid:l send\na=simulcast:send h;~l\n"), "h recv | l recv | recv h;~l", "paused stays paused");
    assert_eq!(
        answered("a=rid:h send pt=96,99;max-width=1280;max-height=720\na=simulcast:send h\n"),
        "h recv pt=96;max-width=1280;max-height=720 | recv h",
        "without the payload type that is not taken"
    );
    assert_eq!(answered("a=rid:h send pt=99\na=rid:l send\na=simulcast:send h;l\n"), "l recv | recv l");
    assert_eq!(answered("a=rid:a send x-new=1\na=rid:b send\na=simulcast:send a,b;c\n"), "b recv | c recv | recv b;c", "RFC 8851 6.3");
    assert_eq!(answered("a=simulcast:send 2;1;0\n"), "2 recv | 1 recv | 0 recv | recv 2;1;0", "a=rid is missing");
    assert_eq!(answered("a=rid:h send\na=rid:l send\n"), "", "a=simulcast is missing: one stream");
    assert_eq!(answered("a=rid:r recv\na=simulcast:recv r\n"), "", "what the publisher receives is nothing");
    assert_eq!(
        answered("a=simulcast:send 1;2;3;4;5 recv r\n"),
        "1 recv | 2 recv | 3 recv | 4 recv | recv 1;2;3;4",
        "as many as a track has"
    );
    let codec = "a=rtpmap:96 VP8/90000\na=rid:h send\na=rid:l send\na=simulcast:send h;l\n";
    let text = answer(video("96", codec).as_bytes(), Role::Publish).unwrap();
    assert!(!text.contains("a=rid") && !text.contains("a=simulcast"), "without its extension nobody could tell the layers apart");
}

#[test]
fn one_extension_has_one_id_in_all_sections() {
    let offer = String::from_utf8(corpus("chromium-whip")).unwrap();
    let (head, second) = offer.split_once("m=video").unwrap();
    // The second section has the mid under the audio level's number of the first, and transport-wide-cc under another one.
    let second = second.replace("extmap:4 urn", "extmap:1 urn").replace("extmap:3 http", "extmap:9 http");
    let text = answer(format!("{head}m=video{second}").as_bytes(), Role::Publish).unwrap();
    let sections = summarize(&text);
    assert!(sections[0].contains("| Mid:4 TransportCc:3 AudioLevel:1 |"), "{sections:?}");
    assert!(sections[1].contains("| PlayoutDelay:5 VideoOrientation:13 | ccm fir,nack,nack pli |"), "{sections:?}");
}

#[test]
fn ids_above_14_are_for_those_who_mix_both_forms_of_header() {
    let summary = |id: u32, more: &str| {
        let attributes = format!("a=rtpmap:96 VP8/90000\na=extmap:{id} urn:3gpp:video-orientation\n{more}");
        let text = answer(video("96", &attributes).as_bytes(), Role::Publish).unwrap();
        assert_eq!(text.contains("a=extmap-allow-mixed"), !more.is_empty());
        summarize(&text).remove(0)
    };
    let mixed = "a=extmap-allow-mixed\n";
    assert!(summary(14, "").contains("VideoOrientation:14"));
    assert!(!summary(15, "").contains("VideoOrientation"));
    assert!(summary(15, mixed).contains("VideoOrientation:15"));
    assert!(summary(255, mixed).contains("VideoOrientation:255"));
    assert!(!summary(256, mixed).contains("VideoOrientation"));
    assert!(!summary(0, mixed).contains("VideoOrientation"));
    assert!(!summary(4096, mixed).contains("VideoOrientation"));
}

#[test]
fn an_extension_flows_the_way_that_its_offerer_said() {
    let summary = |direction: &str, role| {
        let attributes = format!("a=rtpmap:96 VP8/90000\na=extmap:5/{direction} urn:3gpp:video-orientation\n");
        summarize(&answer(video("96", &attributes).as_bytes(), role).unwrap()).remove(0)
    };
    assert!(summary("sendonly", Role::Publish).contains("VideoOrientation:5/recvonly"));
    assert!(summary("sendrecv", Role::Publish).contains("VideoOrientation:5 |"));
    assert!(summary("recvonly", Role::Watch).contains("VideoOrientation:5/sendonly"));
    for (direction, role) in
        [("recvonly", Role::Publish), ("inactive", Role::Publish), ("sendonly", Role::Watch), ("inactive", Role::Watch)]
    {
        assert!(!summary(direction, role).contains("VideoOrientation"), "{direction}");
    }
}

#[test]
fn tcp_candidates_come_after_all_udp_candidates() {
    let offer = corpus("chromium-whip");
    let offer = parse(&offer).unwrap();
    let negotiation = negotiate(&offer, Role::Publish, DtlsRole::Auto).unwrap();
    let (udp, tcp) = (["192.0.2.1:10000".parse().unwrap()], ["192.0.2.1:10000".parse().unwrap(), "[2001:db8::1]:10000".parse().unwrap()]);
    let local = LocalTransport {
        session_id: 1,
        session_version: 1,
        ufrag: "abcd",
        pwd: "0123456789abcdef012345",
        fingerprint: FINGERPRINT,
        candidates: &udp,
        tcp_candidates: &tcp,
    };
    let text = negotiation.write(&local, None);
    let expected = [
        "1 1 udp 2130706431 192.0.2.1 10000 typ host",
        // (90 << 24) + ((4 << 13) + 8191 << 8) + 255 and 256 less.
        "2 1 tcp 1520435199 192.0.2.1 10000 typ host tcptype passive",
        "3 1 tcp 1520434943 2001:db8::1 10000 typ host tcptype passive",
    ];
    assert_eq!(lines(&text, "a=candidate:"), expected);
    webrtc_sdp::parse_sdp(&text, true).unwrap();
}

#[test]
fn the_dtls_role_is_the_one_that_the_client_left_us() {
    for name in PUBLISHERS {
        let setup = if name.starts_with("ffmpeg8") { "a=setup:active" } else { "a=setup:passive" };
        let text = answer(&corpus(name), Role::Publish).unwrap();
        assert_eq!(text.matches(setup).count(), 2, "{name}");
    }
    let active = String::from_utf8(corpus("chromium-whip")).unwrap().replace("setup:actpass", "setup:active");
    assert!(answer(active.as_bytes(), Role::Publish).unwrap().contains("a=setup:passive"));
}

#[test]
fn the_configured_dtls_role_is_taken_where_the_client_allows_it() {
    let offer = |setup: &str| String::from_utf8(corpus("chromium-whip")).unwrap().replace("setup:actpass", setup);
    let setup = |offered: &str, role| {
        let text = answer_as(offer(offered).as_bytes(), Role::Publish, role).map_err(|error| error.to_string())?;
        Ok::<_, String>(lines(&text, "a=setup:")[0].to_owned())
    };
    for (offered, role, answered) in [
        ("setup:actpass", DtlsRole::Auto, "passive"),
        ("setup:actpass", DtlsRole::Passive, "passive"),
        ("setup:actpass", DtlsRole::Active, "active"),
        ("setup:active", DtlsRole::Active, "passive"),
        ("setup:passive", DtlsRole::Auto, "active"),
    ] {
        assert_eq!(setup(offered, role).as_deref(), Ok(answered), "{offered} {role:?}");
    }
    assert!(setup("setup:passive", DtlsRole::Passive).unwrap_err().contains("a=setup is passive"));
}

#[test]
fn a_publisher_is_asked_for_what_it_offered_in_its_order() {
    let text = answer(&corpus("chromium-whip"), Role::Publish).unwrap();
    assert_eq!(
        lines(&text, "m="),
        [
            "audio 10000 UDP/TLS/RTP/SAVPF 111 63",
            "video 10000 UDP/TLS/RTP/SAVPF 96 97 102 103 104 107 108 109 114 115 116 117 39 40 45 46 98 99 100 101"
        ]
    );
    assert_eq!(lines(&text, "a=rtcp-fb:96 "), ["transport-cc", "ccm fir", "nack", "nack pli"]);
    assert_eq!(lines(&text, "a=rtcp-fb:111 "), ["transport-cc"]);
    assert_eq!(lines(&text, "a=fmtp:111 "), ["minptime=10;useinbandfec=1"]);
    assert_eq!(lines(&text, "a=fmtp:104 "), ["level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42001f"]);
    assert_eq!(lines(&text, "a=fmtp:107 "), ["apt=104"]);
    assert_eq!(lines(&text, "a=fmtp:63 "), ["111/111"]);
    assert_eq!(lines(&text, "a=group:"), ["BUNDLE 0 1"]);
    assert_eq!(lines(&text, "a=rtcp-rsize").len(), 2);
    assert_eq!(lines(&text, "a=ssrc").len(), 0);
}

#[test]
fn the_publishers_own_stream_is_found_among_its_repair_streams() {
    let offer = corpus("chromium-whip");
    let offer = parse(&offer).unwrap();
    let negotiation = negotiate(&offer, Role::Publish, DtlsRole::Auto).unwrap();
    let ssrcs: Vec<_> = negotiation.accepted().map(|section| section.ssrc).collect();
    assert_eq!(ssrcs, [offer.media[0].ssrcs.first().copied(), offer.media[1].ssrcs.first().copied()]);
    assert_eq!(offer.media[1].repair_ssrc(offer.media[1].ssrcs[0]), Some(offer.media[1].ssrcs[1]));
    assert_eq!(
        (negotiation.extensions.get(Extension::TransportCc), negotiation.extensions.get(Extension::Mid), negotiation.reduced_size_rtcp),
        (Some(3), Some(4), true)
    );
    let codecs: Vec<_> = negotiation.accepted().flat_map(|section| &section.formats).map(|format| format.format.codec()).collect();
    assert_eq!(codecs.iter().filter(|codec| **codec == Codec::H264).count(), 6);
}

#[test]
fn a_viewer_gets_one_stream_of_audio_and_video_with_one_cname() {
    for name in ["chromium-whep", "firefox-whep", "aiortc-whep"] {
        let text = answer(&corpus(name), Role::Watch).unwrap();
        assert_eq!(lines(&text, "a=msid:"), ["stream stream-audio", "stream stream-video"], "{name}");
        assert_eq!(lines(&text, "a=ssrc:1111 "), ["cname:cname", "msid:stream stream-audio"], "{name}");
        assert_eq!(lines(&text, "a=ssrc:2222 "), ["cname:cname", "msid:stream stream-video"], "{name}");
        assert_eq!(lines(&text, "a=ssrc:2223 "), ["cname:cname", "msid:stream stream-video"], "{name}");
        assert_eq!(lines(&text, "a=ssrc-group:"), ["FID 2222 2223"], "{name}");
    }
}

#[test]
fn a_section_with_port_zero_counts_only_with_bundle_only() {
    let offer = String::from_utf8(corpus("firefox-whep")).unwrap();
    assert!(offer.contains("m=video 0 ") && offer.contains("a=bundle-only"));
    let off = offer.replace("a=bundle-only\r\n", "");
    let text = answer(off.as_bytes(), Role::Watch).unwrap();
    assert!(lines(&text, "m=")[1].starts_with("video 0 "), "{text}");
    assert_eq!(lines(&text, "a=group:"), ["BUNDLE 0"]);
}

#[test]
fn what_is_not_taken_is_rejected_with_port_zero_and_the_rest_works() {
    let mut offer = String::from_utf8(corpus("chromium-whip")).unwrap().replace("opus/48000", "speex/48000");
    offer = offer.replace("BUNDLE 0 1", "BUNDLE 0 1 2");
    offer += "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\na=sctp-port:5000\r\n";
    let text = answer(offer.as_bytes(), Role::Publish).unwrap();
    let media = lines(&text, "m=");
    assert_eq!((media[0], media[2]), ("audio 0 UDP/TLS/RTP/SAVPF 111", "application 0 UDP/DTLS/SCTP webrtc-datachannel"));
    assert_eq!(lines(&text, "a=group:"), ["BUNDLE 1"]);
    let second = text.split("m=video").nth(1).unwrap();
    assert!(second.contains("a=candidate:1 1 udp"), "candidates go to the first accepted section");
    webrtc_sdp::parse_sdp(&text, true).unwrap();
}

#[test]
fn a_viewers_second_video_section_is_rejected() {
    let offer = String::from_utf8(corpus("aiortc-whep")).unwrap();
    let video = offer.split("m=video").nth(1).unwrap();
    let offer = format!("{}m=video{}", offer.replace("BUNDLE 0 1", "BUNDLE 0 1 2"), video.replace("a=mid:1", "a=mid:2"));
    let text = answer(offer.as_bytes(), Role::Watch).unwrap();
    assert!(lines(&text, "m=")[2].starts_with("video 0 "));
    assert_eq!(lines(&text, "a=group:"), ["BUNDLE 0 1"]);
}

#[test]
fn a_lone_section_needs_no_bundle_and_two_do() {
    let offer = String::from_utf8(corpus("ffmpeg8-whip")).unwrap();
    let without = offer.replace("a=group:BUNDLE 0 1\r\n", "");
    assert!(answer(without.as_bytes(), Role::Publish).unwrap_err().to_string().contains("a=group:BUNDLE is missing"));
    let audio_only = without.split("m=video").next().unwrap();
    let text = answer(audio_only.as_bytes(), Role::Publish).unwrap();
    assert!(!text.contains("a=group"));
    // ffmpeg without audio still names both mids in the group.
    let (head, video) = (offer.split("m=audio").next().unwrap(), offer.split("m=video").nth(1).unwrap());
    assert_eq!(lines(&answer(format!("{head}m=video{video}").as_bytes(), Role::Publish).unwrap(), "a=group:"), ["BUNDLE 1"]);
}

#[test]
fn an_offer_that_cannot_work_is_refused_with_its_reason() {
    let chromium = String::from_utf8(corpus("chromium-whip")).unwrap();
    let rows: &[(&str, String, Role)] = &[
        ("SDP line 8: m= is without a=rtcp-mux", chromium.replace("a=rtcp-mux\r\n", ""), Role::Publish),
        ("a=ice-ufrag is missing", chromium.replace("a=ice-ufrag:", "a=x-ufrag:"), Role::Publish),
        ("a=ice-pwd is missing", chromium.replace("a=ice-pwd:", "a=x-pwd:"), Role::Publish),
        ("a=fingerprint is missing", chromium.replace("a=fingerprint:", "a=x-fingerprint:"), Role::Publish),
        ("the direction is never recvonly or sendrecv", chromium.clone(), Role::Watch),
        ("the direction is never sendonly or sendrecv", chromium.replace("a=sendonly", "a=recvonly"), Role::Publish),
        ("m= has no codec that passes here", chromium.replace("rtpmap:", "rtpmap-x:"), Role::Publish),
        ("m= is not UDP/TLS/RTP/SAVPF", chromium.replace("UDP/TLS/RTP/SAVPF", "RTP/AVP"), Role::Publish),
        ("m= is not in the BUNDLE group", chromium.replace("BUNDLE 0 1", "BUNDLE 7"), Role::Publish),
        ("m= has neither audio nor video", "v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n".into(), Role::Publish),
    ];
    for (reason, offer, role) in rows {
        let error = answer(offer.as_bytes(), *role).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
}

#[test]
fn a_malformed_field_is_named_with_its_line() {
    let head = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n";
    let rows: &[(&str, String)] = &[
        ("SDP: the offer is empty", String::new()),
        ("SDP: the offer has no media section (m=)", head.into()),
        ("SDP line 1: s= is not the version", "s=-\r\n".into()),
        ("SDP line 1: v= is not the version", "v=1\r\n".into()),
        ("SDP line 5: the line is not a letter, '=' and a value", format!("{head}hello\r\n")),
        ("SDP line 5: the line holds a control character", format!("{head}a=x\0y\r\n")),
        ("SDP line 5: the line is longer than 4096 bytes", format!("{head}a={}\r\n", "x".repeat(5_000))),
        ("SDP line 5: m= is not media, port, protocol and formats", format!("{head}m=audio 9\r\n")),
        ("SDP line 5: m= has a port that is not a number below 65536", format!("{head}m=audio 99999 RTP/SAVPF 0\r\n")),
        ("SDP line 5: m= has a payload type that is not a number from 0 to 127", format!("{head}m=audio 9 RTP/SAVPF 128\r\n")),
        ("SDP line 5: m= names a payload type twice", format!("{head}m=audio 9 RTP/SAVPF 9 9\r\n")),
        ("SDP line 6: a=rtpmap has a clock rate that is not a number", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=rtpmap:9 G722/x\r\n")),
        ("SDP line 7: a=rtpmap is given twice", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=rtpmap:9 a/1\r\na=rtpmap:9 a/1\r\n")),
        ("SDP line 6: a=ice-ufrag is not 4 to 256", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=ice-ufrag:a:cd\r\n")),
        ("SDP line 6: a=ice-pwd is not 22 to 256", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=ice-pwd:short\r\n")),
        ("SDP line 6: a=setup is not actpass, active or passive", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=setup:holdconn\r\n")),
        ("SDP line 8: a=mid is given twice", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=mid:0\r\nm=audio 9 RTP/SAVPF 9\r\na=mid:0\r\n")),
        ("SDP line 6: a=extmap has an id that is not a number", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=extmap:x urn:y\r\n")),
        ("SDP line 6: a=extmap has a direction that is none", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=extmap:1/x urn:y\r\n")),
        ("SDP line 7: a=extmap gives one id", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=extmap:1 urn:y\r\na=extmap:1 urn:z\r\n")),
        ("SDP line 6: a=rid is not a RID and a direction", format!("{head}m=video 9 RTP/SAVPF 9\r\na=rid:1\r\n")),
        ("SDP line 6: a=rid has a RID that is not 1 to 16", format!("{head}m=video 9 RTP/SAVPF 9\r\na=rid:a.b send\r\n")),
        ("SDP line 6: a=rid has a direction that is not", format!("{head}m=video 9 RTP/SAVPF 9\r\na=rid:1 both\r\n")),
        ("SDP line 6: a=rid has a payload type that is not", format!("{head}m=video 9 RTP/SAVPF 9\r\na=rid:1 send pt=x\r\n")),
        ("SDP line 7: a=rid is given twice", format!("{head}m=video 9 RTP/SAVPF 9\r\na=rid:1 send\r\na=rid:1 send\r\n")),
        ("SDP line 6: a=simulcast names a RID twice", format!("{head}m=video 9 RTP/SAVPF 9\r\na=simulcast:send 1;2,1\r\n")),
        ("SDP line 6: a=simulcast has a RID that is not", format!("{head}m=video 9 RTP/SAVPF 9\r\na=simulcast:send 1;;2\r\n")),
        ("SDP line 6: a=simulcast has a direction without", format!("{head}m=video 9 RTP/SAVPF 9\r\na=simulcast:send\r\n")),
        ("SDP line 6: a=simulcast is not one list", format!("{head}m=video 9 RTP/SAVPF 9\r\na=simulcast:send 1 send 2\r\n")),
        ("SDP line 7: a=simulcast is given twice", format!("{head}m=video 9 RTP/SAVPF 9\r\na=simulcast:send 1\r\na=simulcast:send 2\r\n")),
        ("SDP line 6: a=ssrc-group names no source", format!("{head}m=video 9 RTP/SAVPF 9\r\na=ssrc-group:FID\r\n")),
        ("SDP line 6: a=ssrc is not a number", format!("{head}m=audio 9 RTP/SAVPF 9\r\na=ssrc:4294967296 cname:x\r\n")),
    ];
    for (message, offer) in rows {
        let error = parse(offer.as_bytes()).expect_err(message).to_string();
        assert!(error.starts_with(message), "{error:?} is not {message:?}");
    }
    assert_eq!(parse(b"v=0\r\n\xff\xfe").unwrap_err().to_string(), "SDP: the offer is not UTF-8 text");
}

#[test]
fn an_offer_at_every_limit_is_answered_within_100_ms() {
    let mut offer = String::from("v=0\r\n");
    for mid in 0..MEDIA_MAX {
        offer += &format!("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:{mid}\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\n");
        offer += "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef012345\r\na=fingerprint:sha-256 00\r\n";
    }
    let bundle: String = (0..MEDIA_MAX).map(|mid| format!(" {mid}")).collect();
    let offer = offer.replacen("v=0\r\n", &format!("v=0\r\na=group:BUNDLE{bundle}\r\n"), 1);
    let took = shortest(|| drop(answer(offer.as_bytes(), Role::Publish).unwrap()));
    assert!(took < Duration::from_millis(100), "{took:?}");
    let parsed = parse(offer.as_bytes()).unwrap();
    let claim = negotiate(&parsed, Role::Publish, DtlsRole::Auto).unwrap().claim();
    assert_eq!(claim.tracks, 16, "what a worker takes of one transport; the other sections are rejected");
}

#[test]
fn each_simulcast_layer_takes_a_place_of_the_workers_plan() {
    let offer = corpus("chromium-simulcast");
    let offer = parse(&offer).unwrap();
    let negotiation = negotiate(&offer, Role::Publish, DtlsRole::Auto).unwrap();
    let layers: usize = negotiation.accepted().map(|section| section.layers.len().max(1)).sum();
    assert!(layers > negotiation.accepted().count());
    assert_eq!(negotiation.claim().tracks, layers);
}

/// The shortest of five runs: what else the machine does lengthens some of them.
fn shortest(run: impl Fn()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..5).map(time).min().expect("five runs")
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// One change: of a line, a word, a number or a byte.
fn mutate(rng: &mut Rng, offer: &[u8], other: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 14] = [
        b"",
        b"0",
        b"-1",
        b"127",
        b"128",
        b"65535",
        b"4294967296",
        b"18446744073709551616",
        b"*",
        b"/",
        b"=",
        b"\xc3\xa9",
        b"a=mid:0",
        b"BUNDLE",
    ];
    let mut lines: Vec<Vec<u8>> = offer.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let at = rng.below(lines.len());
    match rng.below(8) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[rng.below(lines.len())].clone()),
        2 => {
            let to = rng.below(lines.len());
            lines.swap(at, to);
        }
        3 => {
            let foreign: Vec<&[u8]> = other.split_inclusive(|b| *b == b'\n').collect();
            lines[at] = rng.pick(&foreign).to_vec();
        }
        4 => {
            let line = lines[at].clone();
            let words: Vec<&[u8]> = line.split_inclusive(|b| b" :/;=".contains(b)).collect();
            let hit = rng.below(words.len());
            let word = rng.pick(&WORDS);
            lines[at] = words.iter().enumerate().flat_map(|(i, w)| if i == hit { word } else { w }.to_vec()).collect();
        }
        5 => {
            let (line, byte) = (&mut lines[at], rng.next() as u8);
            let i = rng.below(line.len());
            line[i] = byte;
        }
        6 => {
            let cut = rng.below(lines[at].len());
            lines[at].truncate(cut);
        }
        _ => {
            let digits: Vec<usize> = (0..lines[at].len()).filter(|i| lines[at][*i].is_ascii_digit()).collect();
            if !digits.is_empty() {
                let i = digits[rng.below(digits.len())];
                lines[at][i] = b'0' + (rng.next() % 10) as u8;
            }
        }
    }
    lines.concat()
}

#[test]
fn mutated_offers_end_in_an_error_or_in_an_answer_of_the_same_shape() {
    let seed = std::env::var("POP_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    let factor = std::env::var("POP_MUTATION_FACTOR").map_or(1, |factor| factor.parse().expect("POP_MUTATION_FACTOR is a number"));
    let rounds = factor * if cfg!(debug_assertions) { 4_000 } else { 1_000_000 };
    let seeds: Vec<_> = PUBLISHERS.iter().chain(&VIEWERS).map(|name| corpus(name)).collect();
    let mut rng = Rng(seed);
    let (mut parsed, mut answered) = (0u32, 0u32);
    let mut reasons = BTreeMap::<_, u32>::new();
    for _ in 0..rounds {
        let mut offer = seeds[rng.below(seeds.len())].clone();
        for _ in 0..=rng.below(3) {
            let other = rng.below(seeds.len());
            offer = mutate(&mut rng, &offer, &seeds[other]);
        }
        let sections = match parse(&offer) {
            Ok(offer) => offer.media.len(),
            Err(error) => {
                *reasons.entry(error.reason).or_default() += 1;
                continue;
            }
        };
        parsed += 1;
        for role in [Role::Publish, Role::Watch] {
            let Ok(text) = answer(&offer, role) else { continue };
            answered += 1;
            assert!(text.ends_with("\r\n") && !text.contains('\0') && text.len() < 2 * SDP_LEN_MAX);
            let again = parse(text.as_bytes()).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            assert_eq!(again.media.len(), sections, "seed {seed}");
        }
    }
    let share = f64::from(parsed) / f64::from(rounds);
    println!("seed {seed}: {rounds} offers, {:.1} % past the reader, {answered} answers, {} reasons", share * 100.0, reasons.len());
    assert!(share >= 0.3, "the mutations are too coarse to reach the negotiation");
}
