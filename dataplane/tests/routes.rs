//! RTP routes on a core, in fake time: who may feed them, what leaves them, and as what.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Rig, Sent, key, media_to, vp8};
use pop_proto::control::{
    ANY_PAYLOAD_TYPE, Codec, ExtensionIds, MediaKind, Numbering, OpenRtp, OpenSubscription, OpenTrack, Path, PayloadType, PayloadTypeMap,
    RtcpVia, RtpPeer, SrtpKeys, SrtpProfile, TransportLoss,
};
use pop_proto::srtp::SrtpSender;
use pop_proto::wire::rtcp::{ReportBlock, RtcpPacket, RtcpReader, RtcpWriter, SenderInfo};
use pop_proto::wire::rtp;
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

/// Of every learnt peer here.
const SILENCE: Duration = Duration::from_secs(30);
const RTP: u16 = 7;
const RTCP: u16 = 8;
const SINK: &str = "192.0.2.9:5004";
const RTCP_SSRC: u32 = 0xfeed;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn learnt() -> RtpPeer {
    RtpPeer::Learnt { silence: SILENCE, never: None }
}

fn open_rtp(id: u64, peer: RtpPeer, rtcp: RtcpVia) -> OpenRtp {
    OpenRtp {
        transport: TransportId(id),
        socket: RTP,
        rtcp,
        peer,
        keys: None,
        numbering: Numbering::Own,
        rtcp_ssrc: RTCP_SSRC,
        cname: "pop".into(),
    }
}

/// A route into track `id`.
fn route_in(rig: &mut Rig, id: u64, open: OpenRtp, payload_type: PayloadType) {
    let feedback = open.rtcp != RtcpVia::Off;
    rig.command(Command::OpenRtp(Box::new(open)));
    rig.command(Command::OpenTrack(Box::new(OpenTrack {
        track: TrackId(id),
        transport: TransportId(id),
        kind: MediaKind::Video,
        ssrc: None,
        rtx_ssrc: None,
        mid: "".into(),
        layers: Vec::new(),
        order: Vec::new(),
        payload_types: vec![payload_type],
        nack: feedback,
        pli: feedback,
        fir: false,
    })));
}

const VP8: PayloadType = PayloadType { number: 96, codec: Codec::Vp8, rtx: None };
const RAW: PayloadType = PayloadType { number: ANY_PAYLOAD_TYPE, codec: Codec::Raw { clock_rate: 90_000 }, rtx: None };

/// A route out of `track`, to [`SINK`].
fn route_out(rig: &mut Rig, id: u64, track: u64, open: OpenRtp, map: PayloadTypeMap) {
    rig.command(Command::OpenRtp(Box::new(OpenRtp { peer: RtpPeer::Fixed(address(SINK)), ..open })));
    rig.command(Command::OpenSubscription(Box::new(OpenSubscription {
        subscription: SubscriptionId(id),
        transport: TransportId(id),
        kind: MediaKind::Video,
        ssrc: 0xabc,
        rtx_ssrc: None,
        extensions: ExtensionIds::NONE,
        mid: "".into(),
        first_sequence: 1_000,
        first_timestamp: 5,
    })));
    let forward = Command::Forward { subscription: SubscriptionId(id), track: Some(TrackId(track)), payload_types: vec![map] };
    rig.command(forward);
}

fn map(from: u8, to: u8) -> PayloadTypeMap {
    PayloadTypeMap { from, to, rtx: None, unwrap_red: false }
}

/// A plain packet: 90 units of time per sequence number.
fn packet(ssrc: u32, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 12];
    rtp::write_header(&mut packet, true, 96, sequence, 90 * u32::from(sequence), ssrc);
    packet.extend(payload);
    packet
}

fn give(rig: &mut Rig, socket: u16, from: &str, mut datagram: Vec<u8>) -> Vec<Sent> {
    rig.core.handle_datagram(rig.now, Path { socket, remote: address(from) }, &mut datagram);
    rig.sent()
}

fn learnt_peers(rig: &mut Rig) -> Vec<SocketAddr> {
    let peer = |event| match event {
        Event::TransportValidated { remote, .. } => Some(remote),
        _ => None,
    };
    rig.events().into_iter().filter_map(peer).collect()
}

#[test]
fn plain_rtp_reaches_a_browser_from_its_keyframe_on() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Off), VP8);
    let mut viewer = rig.viewer(2, 1);
    rig.sent();
    let mut sent = give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 65_534, &vp8(false, 50)));
    for sequence in 65_535..65_540u32 {
        sent.extend(give(
            &mut rig,
            RTP,
            "192.0.2.1:9000",
            packet(5, sequence as u16, &vp8(sequence == 65_535, 100 + sequence as usize % 7)),
        ));
    }
    let media = media_to(&mut viewer, &sent);
    assert_eq!(media.iter().map(|(index, ..)| *index).collect::<Vec<_>>(), [100, 101, 102, 103, 104]);
    assert_eq!(media[0].2, vp8(true, 101));
    let started = rig.events();
    assert!(matches!(started[1], Event::TransportValidated { remote, .. } if remote == address("192.0.2.1:9000")), "{started:?}");
    assert!(started.iter().any(|event| matches!(event, Event::TrackStarted { track: TrackId(1) })));
}

#[test]
fn a_learnt_peer_cannot_be_stolen_and_makes_room_after_its_silence() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Off), VP8);
    // None of these makes a peer: another payload type, a header that overruns, padding that overruns, nothing at all.
    let mut strays = vec![packet(5, 1, b"x"), packet(5, 1, b"x"), packet(5, 1, &[200]), Vec::new()];
    strays[0][1] = 97;
    strays[1][0] = 0x8f;
    strays[2][0] = 0xa0;
    for stray in strays {
        give(&mut rig, RTP, "192.0.2.66:1", stray);
    }
    assert_eq!(learnt_peers(&mut rig), []);

    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    for second in 0..100 {
        rig.pass(Duration::from_secs(1));
        // The thief is louder and copies the SSRC; same host, other port is a stranger, too.
        for thief in ["192.0.2.66:9000", "192.0.2.1:9001"] {
            give(&mut rig, RTP, thief, packet(5, 3 * second + 2, &vp8(true, 50)));
        }
        give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 3 * second + 3, &vp8(true, 50)));
    }
    assert_eq!(rig.drops(DropReason::ForeignPeer), 200);
    let events = rig.events();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::TransportValidated { .. })).count(), 1);
    let told = events.iter().rev().find_map(|event| match event {
        Event::RtpPeerStats { stats, .. } => Some(*stats),
        _ => None,
    });
    assert!(told.is_some_and(|stats| stats.refused == 4 && stats.foreign >= 196), "{told:?}");

    rig.pass(SILENCE - Duration::from_millis(100));
    give(&mut rig, RTP, "192.0.2.1:9002", packet(6, 1, &vp8(true, 50)));
    assert_eq!(learnt_peers(&mut rig), []);
    rig.pass(Duration::from_millis(200));
    give(&mut rig, RTP, "192.0.2.1:9002", packet(6, 1, &vp8(true, 50)));
    assert_eq!(learnt_peers(&mut rig), [address("192.0.2.1:9002")]);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 500, &vp8(true, 50)));
    assert_eq!(rig.drops(DropReason::ForeignPeer), 202, "who was silent is a stranger now");
}

#[test]
fn a_fixed_peer_is_the_only_one_for_ever_and_a_destination_is_never_learnt() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, RtpPeer::Fixed(address("192.0.2.1:9000")), RtcpVia::Off), VP8);
    rig.pass(2 * SILENCE);
    give(&mut rig, RTP, "192.0.2.2:9000", packet(5, 1, &vp8(true, 50)));
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    assert!(rig.events().iter().any(|event| matches!(event, Event::TrackStarted { .. })));

    let peer = RtpPeer::Learnt { silence: SILENCE, never: Some(address(SINK)) };
    route_in(&mut rig, 2, OpenRtp { socket: 20, ..open_rtp(2, peer, RtcpVia::Off) }, VP8);
    give(&mut rig, 20, SINK, packet(5, 1, &vp8(true, 50)));
    assert_eq!((learnt_peers(&mut rig), rig.drops(DropReason::ForeignPeer)), (vec![], 2));
}

#[test]
fn srtp_learns_from_an_authentic_packet_alone() {
    for profile in [SrtpProfile::Aes128CmSha1_80, SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm] {
        let mut rig = Rig::new();
        let keys = || Box::new(SrtpKeys { profile, local: key(1), remote: key(1) });
        route_in(&mut rig, 1, OpenRtp { keys: Some(keys()), ..open_rtp(1, learnt(), RtcpVia::Mux) }, VP8);
        route_out(
            &mut rig,
            2,
            1,
            OpenRtp { socket: 9, numbering: Numbering::Timestamps, keys: Some(keys()), ..open_rtp(2, learnt(), RtcpVia::Mux) },
            map(96, 96),
        );
        give(&mut rig, RTP, "192.0.2.66:1", packet(5, 1, &vp8(true, 50)));
        assert_eq!((rig.drops(DropReason::SrtpAuth), learnt_peers(&mut rig)), (1, vec![]));

        let sender = SrtpSender::new(profile, &key(1));
        let protect = |ssrc, index: u64| {
            let plain = packet(ssrc, index as u16, &vp8(true, 50));
            let mut out = vec![0; 1_500];
            let len = sender.protect_rtp(index, &plain[..12], &plain[12..], &mut out).unwrap();
            out.truncate(len);
            out
        };
        let sent = give(&mut rig, RTP, "192.0.2.1:9000", protect(5, 1));
        assert_eq!(learnt_peers(&mut rig), [address("192.0.2.1:9000")]);
        let mut out = pop_proto::srtp::SrtpReceiver::new(profile, &key(1));
        let mut bytes = sent[0].bytes.clone();
        let opened = out.unprotect_rtp(&mut bytes, 12).expect("the same key opens what leaves");
        assert_eq!((opened.index, &bytes[4..8], &bytes[8..12]), (1_000, &90u32.to_be_bytes()[..], &0xabc_u32.to_be_bytes()[..]));

        // A replay from elsewhere, also after the silence, is nobody's first packet.
        rig.pass(SILENCE + Duration::from_secs(1));
        give(&mut rig, RTP, "192.0.2.66:1", protect(5, 1));
        assert_eq!((rig.drops(DropReason::SrtpReplay), learnt_peers(&mut rig)), (1, vec![]));
        // The SSRC of our own reports, under the same key.
        give(&mut rig, RTP, "192.0.2.1:9000", protect(RTCP_SSRC, 2));
        assert_eq!(rig.drops(DropReason::UnknownStream), 1);
    }
}

#[test]
fn a_route_out_keeps_timestamps_and_ssrc_and_leaves_in_trains() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let open = OpenRtp { numbering: Numbering::TimestampsAndSsrc, ..open_rtp(2, learnt(), RtcpVia::Off) };
    route_out(&mut rig, 2, 1, open, map(96, 111));
    rig.sent();
    for index in 10..20 {
        rig.receive(&publisher, publisher.packet(1, index, &vp8(index == 10, 500)));
    }
    let sent = rig.sent();
    assert_eq!(sent.len(), 10);
    for (i, datagram) in sent.iter().enumerate() {
        assert_eq!(datagram.path, Path { socket: RTP, remote: address(SINK) });
        assert_eq!(datagram.train, 10, "one GSO train, as for a browser");
        let view = rtp::RtpView::parse(&datagram.bytes).unwrap();
        let kept = (view.timestamp(), view.ssrc(), view.payload_type(), view.sequence(), view.marker());
        assert_eq!(kept, (90 * (10 + i as u32), 1, 111, 1_000 + i as u16, true));
        assert_eq!(datagram.bytes[12..], vp8(i == 0, 500));
    }
}

#[test]
fn under_a_key_nothing_leaves_with_an_ssrc_that_may_come_again() {
    for numbering in [Numbering::TimestampsAndSsrc, Numbering::Whole] {
        let mut rig = Rig::new();
        let publisher = rig.publisher(1);
        let keys = SrtpKeys { profile: SrtpProfile::AeadAes128Gcm, local: key(1), remote: key(1) };
        let open = OpenRtp { numbering, keys: Some(Box::new(keys)), ..open_rtp(2, learnt(), RtcpVia::Off) };
        route_out(&mut rig, 2, 1, open, map(96, 111));
        rig.sent();
        let sent = rig.exchange(publisher.path, publisher.packet(1, 10, &vp8(true, 500)));
        let view = rtp::RtpView::parse(&sent[0].bytes).unwrap();
        assert_eq!((view.ssrc(), view.sequence(), view.timestamp()), (0xabc, 1_000, 900), "{numbering:?}");
    }
}

/// A packet of `ssrc` under the route's key.
fn protected(sender: &SrtpSender, ssrc: u32, index: u64) -> Vec<u8> {
    let plain = packet(ssrc, index as u16, &vp8(true, 50));
    let mut out = vec![0; 1_500];
    let len = sender.protect_rtp(index, &plain[..12], &plain[12..], &mut out).unwrap();
    out.truncate(len);
    out
}

#[test]
fn under_a_key_an_ssrc_that_was_left_is_refused_and_the_stream_plays_on_over_its_rollover() {
    let mut rig = Rig::new();
    let profile = SrtpProfile::AeadAes128Gcm;
    let keys = SrtpKeys { profile, local: key(2), remote: key(1) };
    route_in(&mut rig, 1, OpenRtp { keys: Some(Box::new(keys)), ..open_rtp(1, learnt(), RtcpVia::Mux) }, VP8);
    let mut sender = SrtpSender::new(profile, &key(1));
    let peer = "192.0.2.1:9000";
    for (ssrc, index) in [(5, 1), (6, 65_535), (6, 65_536)] {
        give(&mut rig, RTP, peer, protected(&sender, ssrc, index));
    }
    rig.pass(Duration::from_secs(5));
    give(&mut rig, RTP, peer, protected(&sender, 5, 1));
    assert_eq!(rig.drops(DropReason::UnknownStream), 1, "replayed");
    give(&mut rig, RTP, peer, protected(&sender, 6, 65_537));
    assert_eq!(rig.core.drops().iter().sum::<u64>(), 1);

    // While its stream is paused the peer's authentic reports keep its place.
    for _ in 0..10 {
        rig.pass(SILENCE / 3);
        let mut report = rtcp(|c| c.receiver_report(6, &[]));
        let len = report.len();
        report.resize(len + sender.rtcp_overhead(), 0);
        sender.protect_rtcp(&mut report, len).unwrap();
        give(&mut rig, RTP, peer, report);
    }
    give(&mut rig, RTP, "192.0.2.1:9001", protected(&sender, 6, 65_538));
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
}

#[test]
fn reports_come_from_the_peer_or_one_port_up_and_a_stranger_on_its_host_keeps_nobody_out() {
    let report = || rtcp(|c| c.receiver_report(3, &[]));
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Mux), VP8);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    give(&mut rig, RTP, "192.0.2.1:9777", report());
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1, "multiplexed is from the same port");
    give(&mut rig, RTP, "192.0.2.1:9000", report());
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);

    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Next { socket: RTCP }), VP8);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    give(&mut rig, RTCP, "192.0.2.1:6666", report());
    give(&mut rig, RTCP, "192.0.2.1:9001", report());
    assert_eq!(rig.drops(DropReason::ForeignPeer), 0, "the port after the RTP's is never kept out");
    give(&mut rig, RTCP, "192.0.2.1:6666", report());
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
    rig.pass(Duration::from_secs(15));
    give(&mut rig, RTCP, "192.0.2.1:7777", report());
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1, "who was silent makes room");
}

#[test]
fn two_senders_do_not_take_turns_however_short_the_silence() {
    let mut rig = Rig::new();
    let peer = RtpPeer::Learnt { silence: Duration::ZERO, never: None };
    route_in(&mut rig, 1, open_rtp(1, peer, RtcpVia::Off), VP8);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    rig.pass(Duration::from_millis(500));
    give(&mut rig, RTP, "192.0.2.2:9000", packet(5, 2, &vp8(true, 50)));
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
    rig.pass(Duration::from_millis(500));
    give(&mut rig, RTP, "192.0.2.2:9000", packet(5, 3, &vp8(true, 50)));
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
}

#[test]
fn a_route_whose_socket_was_refused_is_lost_at_once() {
    for refused in [RTP, RTCP] {
        let mut rig = Rig::new();
        rig.core.refuse_socket(refused);
        route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Next { socket: RTCP }), VP8);
        let events = rig.events();
        assert!(
            matches!(events[..], [Event::TransportLost { transport: TransportId(1), loss: TransportLoss::SocketRefused }]),
            "{events:?}"
        );
        rig.core.remove_socket(refused);
        route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Next { socket: RTCP }), VP8);
        assert_eq!((rig.events().len(), rig.core.gauges().transports), (0, 1));
    }
}

#[test]
fn a_forwarder_changes_no_byte_and_needs_no_sense_in_them() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Off), RAW);
    route_out(
        &mut rig,
        2,
        1,
        OpenRtp { socket: 9, numbering: Numbering::Whole, ..open_rtp(2, learnt(), RtcpVia::Off) },
        map(ANY_PAYLOAD_TYPE, ANY_PAYLOAD_TYPE),
    );
    let mut came = Vec::new();
    let mut left = Vec::new();
    for i in 0..2_000u32 {
        // Sequence numbers stand still or jump, payload types run through all, RTCP's included; CSRCs and an extension.
        let mut datagram = packet(5 + i % 3, (i % 2 * 20_000) as u16, &i.to_be_bytes());
        (datagram[0], datagram[1]) = (0x91, i as u8);
        datagram.splice(12..12, [1, 2, 3, 4, 0xbe, 0xde, 0, 1, 0x10, 7, 0, 0]);
        came.push(datagram.clone());
        left.extend(give(&mut rig, RTP, "192.0.2.1:9000", datagram).into_iter().map(|sent| sent.bytes));
    }
    assert_eq!(came, left);
    assert_eq!(rig.core.drops().iter().sum::<u64>(), 0);
}

/// A compound of `write`.
fn rtcp(write: impl for<'w, 'o> FnOnce(&'w mut RtcpWriter<'o>) -> Option<&'w mut RtcpWriter<'o>>) -> Vec<u8> {
    let mut out = vec![0; 1_500];
    let mut writer = RtcpWriter::new(&mut out);
    let len = write(&mut writer).expect("it fits").len();
    out.truncate(len);
    out
}

/// Who is told what, packet by packet: (path, report block's SSRC or none, keyframe wanted, NACKs).
fn told(sent: &[Sent]) -> Vec<(Path, Vec<u32>, bool, Vec<u16>)> {
    let tell = |sent: &Sent| {
        let (mut blocks_of, mut pli, mut nacks) = (Vec::new(), false, Vec::new());
        for part in RtcpReader::new(&sent.bytes).expect("plain RTCP") {
            match part {
                RtcpPacket::ReceiverReport { blocks, .. } => blocks_of.extend(blocks.iter().map(|block| block.ssrc)),
                RtcpPacket::Pli { .. } => pli = true,
                RtcpPacket::Nack { sequences, .. } => nacks.extend(sequences.iter()),
                _ => {}
            }
        }
        (sent.path, blocks_of, pli, nacks)
    };
    sent.iter().filter(|sent| (192..=223).contains(&sent.bytes[1])).map(tell).collect()
}

#[test]
fn a_sender_gets_reports_and_asks_beside_its_rtp_or_one_port_up() {
    for (rtcp_via, socket, expected) in [
        (RtcpVia::Mux, RTP, "192.0.2.1:9000"),
        (RtcpVia::Next { socket: RTCP }, RTCP, "192.0.2.1:9001"),
        (RtcpVia::Next { socket: RTCP }, RTCP, "192.0.2.1:9777"),
    ] {
        let mut rig = Rig::new();
        route_in(&mut rig, 1, open_rtp(1, learnt(), rtcp_via), VP8);
        let report = rtcp(|c| c.sender_report(&SenderInfo { ssrc: 5, ntp: 77 << 32, rtp_timestamp: 90, packets: 1, octets: 1 }, &[]));
        give(&mut rig, socket, expected, report.clone());
        assert_eq!(rig.drops(DropReason::ForeignPeer), 1, "reports make no peer");
        give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
        give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 3, &vp8(false, 50)));
        if expected != "192.0.2.1:9001" {
            give(&mut rig, socket, expected, report.clone());
            give(&mut rig, socket, "192.0.2.66:9", report.clone());
            assert_eq!(rig.drops(DropReason::ForeignPeer), 2);
        }
        rig.viewer(2, 1);
        let sent = rig.pass(Duration::from_millis(1_100));
        let to = Path { socket, remote: address(expected) };
        let sent: Vec<_> = sent.into_iter().filter(|sent| sent.path.socket == to.socket).collect();
        let told = told(&sent);
        assert!(told.iter().all(|(path, ..)| *path == to), "{rtcp_via:?}: {told:?}");
        assert!(told.iter().any(|(_, blocks, ..)| blocks == &[5]), "{rtcp_via:?}: a report about SSRC 5");
        assert!(told.iter().any(|(.., pli, _)| *pli), "{rtcp_via:?}: a viewer came and needs a keyframe");
        assert!(told.iter().any(|(.., nacks)| nacks == &[2]), "{rtcp_via:?}: packet 2 is missing");
    }
}

#[test]
fn a_receiver_gets_sender_reports_and_its_repairs_are_the_same_bytes() {
    let mut rig = Rig::new();
    let mut publisher = rig.publisher(1);
    let open = OpenRtp { numbering: Numbering::TimestampsAndSsrc, ..open_rtp(2, learnt(), RtcpVia::Next { socket: RTCP }) };
    route_out(&mut rig, 2, 1, open, map(96, 96));
    let report = publisher.rtcp(|c| c.sender_report(&SenderInfo { ssrc: 1, ntp: 9 << 32, rtp_timestamp: 900, packets: 0, octets: 0 }, &[]));
    rig.receive(&publisher, report);
    for index in 10..14 {
        rig.receive(&publisher, publisher.packet(1, index, &vp8(index == 10, 500)));
    }
    let sent: Vec<_> = rig.sent().into_iter().filter(|sent| sent.path.remote == address(SINK)).collect();
    assert_eq!(sent.len(), 4);
    let repairs = give(&mut rig, RTCP, "192.0.2.9:6000", rtcp(|c| c.receiver_report(3, &[])?.nack(3, 1, [1_001, 1_002])));
    let mut repaired: Vec<_> = repairs.into_iter().filter(|r| r.path.socket == RTP).map(|r| r.bytes).collect();
    repaired.sort();
    assert_eq!(repaired, [sent[1].bytes.clone(), sent[2].bytes.clone()]);

    let reports: Vec<_> = rig.pass(Duration::from_secs(1)).into_iter().filter(|s| s.path.socket == RTCP).collect();
    assert_eq!(reports.iter().map(|s| s.path.remote).collect::<Vec<_>>(), [address("192.0.2.9:6000")]);
    let first = RtcpReader::new(&reports[0].bytes).unwrap().next();
    let Some(RtcpPacket::SenderReport { info, .. }) = first else { panic!("{first:?}") };
    assert_eq!((info.ssrc, info.packets), (1, 4));
    assert!(info.rtp_timestamp.wrapping_sub(900) <= 90_000, "the publisher's clock, not shifted");
}

#[test]
fn an_encoder_that_starts_again_goes_on_at_once_and_two_do_not_take_turns() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Off), VP8);
    let mut viewer = rig.viewer(2, 1);
    rig.sent();
    let feed = |rig: &mut Rig, ssrc, sequence| give(rig, RTP, "192.0.2.1:9000", packet(ssrc, sequence, &vp8(true, 50)));
    let mut sent = feed(&mut rig, 5, 60_000);
    rig.pass(Duration::from_secs(2));
    sent.extend(feed(&mut rig, 6, 100));
    sent.extend(feed(&mut rig, 5, 60_001));
    sent.extend(feed(&mut rig, 6, 101));
    assert_eq!(rig.drops(DropReason::UnknownStream), 1, "the old one is not let in again within a second");
    // The same SSRC with numbers from elsewhere: its second packet proves it.
    rig.pass(Duration::from_secs(2));
    for sequence in [30_000, 30_001, 30_002] {
        sent.extend(feed(&mut rig, 6, sequence));
    }
    assert_eq!(rig.drops(DropReason::TooOld), 1);
    let indexes: Vec<_> = media_to(&mut viewer, &sent).iter().map(|(index, ..)| *index).collect();
    assert_eq!(indexes, [100, 101, 102, 103, 104]);
}

#[test]
fn a_closed_route_leaves_its_sockets_to_nobody() {
    let mut rig = Rig::new();
    route_in(&mut rig, 1, open_rtp(1, learnt(), RtcpVia::Next { socket: RTCP }), VP8);
    give(&mut rig, RTP, "192.0.2.1:9000", packet(5, 1, &vp8(true, 50)));
    rig.command(Command::CloseTransport { transport: TransportId(1) });
    for socket in [RTP, RTCP] {
        give(&mut rig, socket, "192.0.2.1:9000", packet(5, 2, &vp8(true, 50)));
    }
    assert_eq!(rig.drops(DropReason::UnknownAddress), 2);
    // The next route may have the same sockets.
    route_in(&mut rig, 2, open_rtp(2, learnt(), RtcpVia::Off), VP8);
    give(&mut rig, RTP, "192.0.2.5:1234", packet(5, 1, &vp8(true, 50)));
    assert_eq!(learnt_peers(&mut rig).last(), Some(&address("192.0.2.5:1234")));
}

#[test]
fn a_route_whose_receiver_loses_half_of_it_is_not_stopped() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    route_out(&mut rig, 2, 1, open_rtp(2, learnt(), RtcpVia::Next { socket: RTCP }), map(96, 102));
    let mut last = 0;
    for frame in 0..600u64 {
        last = rig.exchange(publisher.path, publisher.packet(1, frame, &vp8(frame.is_multiple_of(30), 900))).len();
        rig.pass(Duration::from_millis(30));
        if frame.is_multiple_of(30) {
            let block = ReportBlock { ssrc: 0xabc, fraction_lost: 128, highest_sequence: 1_000 + frame as u32, ..ReportBlock::default() };
            give(&mut rig, RTCP, "192.0.2.9:6000", rtcp(|c| c.receiver_report(3, &[block])));
        }
    }
    let congested = rig.events().into_iter().any(|event| matches!(event, Event::SubscriptionStats { stats, .. } if stats.congested));
    assert!(last == 1 && !congested, "{last} {congested}");
}

#[test]
fn a_receiver_of_the_sources_own_times_begins_with_the_next_keyframe_and_never_in_the_past() {
    for (numbering, catch_ups, plis) in [(Numbering::Own, 1, 0), (Numbering::TimestampsAndSsrc, 0, 1)] {
        let mut rig = Rig::new();
        let publisher = rig.publisher(1);
        for index in 10..12 {
            rig.receive(&publisher, publisher.packet(1, index, &vp8(index == 10, 500)));
        }
        route_out(&mut rig, 2, 1, OpenRtp { numbering, ..open_rtp(2, learnt(), RtcpVia::Off) }, map(96, 111));
        let to_sink = |sent: Vec<Sent>| sent.iter().filter(|sent| sent.path.remote == address(SINK)).count() as u64;
        assert_eq!(to_sink(rig.pass(Duration::from_millis(30))), 2 * catch_ups, "{numbering:?}");
        assert_eq!((rig.core.counters().catch_ups, rig.core.counters().rtcp_pli_out), (catch_ups, plis));
        rig.receive(&publisher, publisher.packet(1, 12, &vp8(true, 500)));
        assert_eq!(to_sink(rig.sent()), 1);
    }
}
