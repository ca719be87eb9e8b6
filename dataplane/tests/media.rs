//! RTX, header extensions, redundant audio, simulcast, goodbyes and estimates, by clients that speak real SRTP.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Client, Packet, Rig, Sent, media_to, protect, rtcp_to, vp8};
use pop_proto::control::{
    Codec, Extension, ExtensionIds, LayerSsrcs, LayerWish, MediaKind, OpenSubscription, OpenTrack, OpenTransport, PayloadType,
    PayloadTypeMap,
};
use pop_proto::wire::rtcp::{FirEntry, RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::wire::rtp::RtpView;
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

/// What the publisher of these tests numbers its extensions with.
const THEIRS: ExtensionIds = ExtensionIds::NONE
    .with(Extension::Mid, 1)
    .with(Extension::Rid, 2)
    .with(Extension::RepairedRid, 3)
    .with(Extension::TransportCc, 4)
    .with(Extension::VideoOrientation, 5)
    .with(Extension::DependencyDescriptor, 6)
    .with(Extension::AbsSendTime, 7)
    .with(Extension::AudioLevel, 8);

/// And the viewer.
const OURS: ExtensionIds = ExtensionIds::NONE
    .with(Extension::Mid, 9)
    .with(Extension::TransportCc, 10)
    .with(Extension::VideoOrientation, 11)
    .with(Extension::AbsSendTime, 12)
    .with(Extension::DependencyDescriptor, 13);

fn open_transport(id: u64) -> OpenTransport {
    OpenTransport { extensions: THEIRS, ..common::open_transport(id) }
}

fn open_track(id: u64) -> OpenTrack {
    OpenTrack { ssrc: None, payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: Some(97) }], ..Rig::track(id) }
}

fn open_subscription(id: u64) -> OpenSubscription {
    OpenSubscription { rtx_ssrc: Some(0x0200_0000 + id as u32), extensions: OURS, mid: "v".into(), ..Rig::subscription(id) }
}

const MAP: PayloadTypeMap = PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false };

trait Scene {
    fn publish(&mut self, transport: OpenTransport, track: OpenTrack) -> Client;
    fn watch(&mut self, subscription: OpenSubscription, map: PayloadTypeMap) -> Client;
}

impl Scene for Rig {
    fn publish(&mut self, transport: OpenTransport, track: OpenTrack) -> Client {
        let client = self.connect_with(transport);
        self.command(Command::OpenTrack(Box::new(track)));
        client
    }

    /// A viewer of track 1.
    fn watch(&mut self, subscription: OpenSubscription, map: PayloadTypeMap) -> Client {
        let client = self.connect(subscription.transport.0);
        let id = subscription.subscription;
        self.command(Command::OpenSubscription(Box::new(subscription)));
        self.command(Command::Forward { subscription: id, track: Some(TrackId(1)), payload_types: vec![map] });
        client
    }
}

/// A publisher (1) of VP8 with RTX and a viewer (2) with RTX and every extension.
fn call() -> (Rig, Client, Client) {
    let mut rig = Rig::new();
    let publisher = rig.publish(open_transport(1), open_track(1));
    let viewer = rig.watch(open_subscription(2), MAP);
    rig.sent();
    (rig, publisher, viewer)
}

fn media(client: &Client, index: u64, keyframe: bool) -> Vec<u8> {
    let payload = vp8(keyframe, 900);
    let timestamp = 3_000 * index as u32;
    protect(client, &Packet { ssrc: 50, payload_type: 96, index, timestamp, elements: &[(1, b"0"), (5, &[2])], payload: &payload })
}

/// The retransmission of [`media`].
fn rtx(client: &Client, index: u64, original: u64, payload: &[u8]) -> Vec<u8> {
    let payload = [&(original as u16).to_be_bytes()[..], payload].concat();
    let timestamp = 3_000 * original as u32;
    protect(client, &Packet { ssrc: 51, payload_type: 97, index, timestamp, elements: &[(1, b"0")], payload: &payload })
}

fn count(compounds: &[Vec<u8>], matches: impl Fn(&RtcpPacket<'_>) -> bool) -> usize {
    compounds.iter().map(|c| RtcpReader::new(c).unwrap().filter(|p| matches(p)).count()).sum()
}

#[test]
fn a_publishers_retransmission_takes_the_place_of_what_it_repeats() {
    let (mut rig, publisher, mut viewer) = call();
    let first = rig.exchange(publisher.path, media(&publisher, 10, true));
    assert_eq!(media_to(&mut viewer, &first).len(), 1);
    assert_eq!(rig.exchange(publisher.path, media(&publisher, 12, false)).len(), 1);
    let missing = vp8(false, 700);
    let repaired = media_to(&mut viewer, &rig.exchange(publisher.path, rtx(&publisher, 500, 11, &missing)));
    let [(index, header, payload)] = &repaired[..] else { panic!("{repaired:?}") };
    assert_eq!((*index, payload), (101, &missing));
    let view = RtpView::parse(header).unwrap();
    assert_eq!((view.payload_type(), view.timestamp()), (102, 5_000 + 3_000));
    assert_eq!(rig.core.counters().rtx_packets_in, 1);
    assert_eq!(rig.exchange(publisher.path, rtx(&publisher, 501, 11, &missing)), [], "once more is a duplicate");
    assert_eq!(rig.exchange(publisher.path, media(&publisher, 11, false)), [], "and so is the original, late");
    assert_eq!(rig.drops(DropReason::Duplicate), 2);
    rig.pass(Duration::from_millis(200));
    assert_eq!(rig.core.counters().rtcp_nack_out, 0, "nothing is missing any more");
}

#[test]
fn rtx_probes_are_counted_and_malformed_rtx_is_dropped() {
    let (mut rig, publisher, _) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    let probe = |payload: &[u8], index| {
        protect(&publisher, &Packet { ssrc: 51, payload_type: 97, index, timestamp: 0, elements: &[(1, b"0")], payload })
    };
    assert_eq!(rig.exchange(publisher.path, probe(&[], 1)), []);
    assert_eq!(rig.core.counters().rtx_padding_in, 1);
    assert_eq!(rig.core.drops().iter().sum::<u64>(), 0, "a probe is no error");
    assert_eq!(rig.exchange(publisher.path, probe(&[1], 2)), []);
    assert_eq!(rig.drops(DropReason::RtxMalformed), 1);
    assert_eq!(rig.exchange(publisher.path, probe(&[0xff, 0xff, 1], 3)), []);
    assert_eq!(rig.drops(DropReason::TooOld), 1, "before the stream's first number");
}

#[test]
fn rtx_of_a_stream_that_nobody_knows_is_an_unknown_stream() {
    let (mut rig, publisher, _) = call();
    assert_eq!(rig.exchange(publisher.path, rtx(&publisher, 1, 11, &[9; 100])), []);
    assert_eq!(rig.drops(DropReason::UnknownStream), 1, "no media yet");
    rig.exchange(publisher.path, media(&publisher, 10, true));
    let wrong =
        protect(&publisher, &Packet { ssrc: 77, payload_type: 97, index: 1, timestamp: 0, elements: &[(1, b"7")], payload: &[0, 11, 1] });
    assert_eq!(rig.exchange(publisher.path, wrong), []);
    assert_eq!(rig.drops(DropReason::UnknownStream), 2, "another mid");
}

#[test]
fn a_viewer_with_rtx_gets_repairs_on_their_own_stream_and_no_index_is_used_twice() {
    let (mut rig, publisher, mut viewer) = call();
    let mut sent = rig.exchange(publisher.path, media(&publisher, 10, true));
    sent.extend(rig.exchange(publisher.path, media(&publisher, 11, false)));
    let mut repairs = Vec::new();
    for _ in 0..5 {
        let nack = viewer.rtcp(|c| c.nack(0, 2, [101]));
        repairs.extend(rig.exchange(viewer.path, nack));
    }
    assert_eq!(repairs.len(), 5);
    let original = media_to(&mut viewer, &sent)[1].2.clone();
    for (at, (index, header, payload)) in media_to(&mut viewer, &repairs).into_iter().enumerate() {
        let view = RtpView::parse(&header).unwrap();
        assert_eq!((index, view.ssrc(), view.payload_type()), (100 + at as u64, 0x0200_0002, 103));
        assert_eq!(payload, [&101u16.to_be_bytes()[..], &original].concat());
        assert_eq!(view.timestamp(), 5_000 + 3_000);
        assert_eq!(view.extension(9), Some(&b"v"[..]));
        assert_eq!(view.transport_sequence(10), Some(2 + at as u16), "a repair takes a transport-wide number like any packet");
    }
    assert_eq!(rig.core.counters().retransmitted_packets, 5);
}

#[test]
fn repairs_with_rtx_are_bounded_like_all_others() {
    let (mut rig, publisher, mut viewer) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    let mut repairs = 0;
    for _ in 0..300 {
        let nack = viewer.rtcp(|c| c.nack(0, 2, [100]));
        repairs += rig.exchange(viewer.path, nack).len();
    }
    assert_eq!(repairs, 128);
    assert!(rig.drops(DropReason::RepairQueueFull) > 100);
}

#[test]
fn extensions_pass_under_the_viewers_ids_and_the_rest_stays_here() {
    let (mut rig, publisher, mut viewer) = call();
    let mut plain = rig.viewer(3, 1);
    rig.now = rig.now + Duration::from_millis(1_499);
    let descriptor = [0xc0, 0x12, 0x34, 0x80];
    let payload = vp8(true, 900);
    let elements: [(u8, &[u8]); 6] = [(1, b"0"), (2, b"hi"), (4, &[0, 1]), (5, &[3]), (6, &descriptor), (7, &[9, 9, 9])];
    let packet = Packet { ssrc: 50, payload_type: 96, index: 10, timestamp: 0, elements: &elements, payload: &payload };
    let sent = rig.exchange(publisher.path, protect(&publisher, &packet));
    let packets = media_to(&mut viewer, &sent);
    let view = RtpView::parse(&packets[0].1).unwrap();
    // 1.5 s in 6.18 fixed point.
    let expected: [(u8, &[u8]); 5] = [(9, b"v"), (12, &[0x06, 0x00, 0x00]), (10, &[0, 0]), (11, &[3]), (13, &descriptor)];
    assert_eq!(view.extensions().collect::<Vec<_>>(), expected);
    assert_eq!(packets[0].2, payload);
    assert_eq!(media_to(&mut plain, &sent)[0].1.len(), 12, "a viewer that negotiated none gets none");
}

#[test]
fn extensions_of_equal_size_keep_a_train_whole_and_number_its_packets() {
    let (mut rig, publisher, mut viewer) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    for index in 11..31 {
        rig.receive(&publisher, media(&publisher, index, false));
    }
    let sent = rig.sent();
    assert_eq!(sent.iter().map(|s| s.train).collect::<Vec<_>>(), [20; 20]);
    let numbers: Vec<_> =
        media_to(&mut viewer, &sent).iter().map(|(_, header, _)| RtpView::parse(header).unwrap().transport_sequence(10)).collect();
    assert_eq!(numbers, (1..21).map(Some).collect::<Vec<_>>());
}

#[test]
fn what_a_viewers_feedback_tells_is_reported_with_its_sections() {
    let (mut rig, publisher, viewer) = call();
    for index in 10..110 {
        rig.exchange(publisher.path, media(&publisher, index, index == 10));
    }
    let mut recorder = pop_proto::twcc::TwccRecorder::new();
    for sequence in (0..100).filter(|s| s % 10 != 3) {
        recorder.record(sequence, rig.now);
    }
    let mut compound = vec![0; 1_500];
    let len = recorder.poll_feedback(rig.now + Duration::from_secs(1), 9, 2, &mut compound).unwrap();
    let mut viewer = viewer;
    let len = viewer.sender.protect_rtcp(&mut compound, len).unwrap();
    compound.truncate(len);
    rig.receive(&viewer, compound);
    rig.pass(Duration::from_secs(1));
    let told = rig.events().into_iter().find_map(|event| match event {
        Event::SubscriptionStats { stats, .. } => Some((stats.transport_received, stats.transport_lost)),
        _ => None,
    });
    assert_eq!(told, Some((90, 10)));
}

#[test]
fn a_viewer_without_red_gets_the_primary_block_and_one_with_it_gets_all() {
    let mut rig = Rig::new();
    let track = OpenTrack {
        kind: MediaKind::Audio,
        payload_types: vec![
            PayloadType { number: 63, codec: Codec::Red, rtx: None },
            PayloadType { number: 111, codec: Codec::Opus, rtx: None },
        ],
        ..open_track(1)
    };
    let publisher = rig.publish(open_transport(1), track);
    let section = |id| OpenSubscription { kind: MediaKind::Audio, extensions: ExtensionIds::NONE, ..open_subscription(id) };
    let mut opus = rig.watch(section(2), PayloadTypeMap { from: 63, to: 109, rtx: None, unwrap_red: true });
    let mut red = rig.watch(section(3), PayloadTypeMap { from: 63, to: 120, rtx: None, unwrap_red: false });
    rig.sent();
    let send = |index: u64, payload: &[u8]| {
        protect(&publisher, &Packet { ssrc: 50, payload_type: 63, index, timestamp: 0, elements: &[(1, b"0")], payload })
    };
    let payload = [0x80 | 111, 0x0f, 0x00, 3, 111, 1, 2, 3, 7, 8, 9, 10];
    let sent = rig.exchange(publisher.path, send(1, &payload));
    let (to_opus, to_red) = (media_to(&mut opus, &sent), media_to(&mut red, &sent));
    assert_eq!((to_opus[0].1[1] & 0x7f, &to_opus[0].2[..]), (109, &[7, 8, 9, 10][..]));
    assert_eq!((to_red[0].1[1] & 0x7f, &to_red[0].2[..]), (120, &payload[..]));
    let sent = rig.exchange(publisher.path, send(2, &[0x80 | 111, 0x0f, 0x03, 0xff, 111, 1]));
    assert_eq!((media_to(&mut opus, &sent).len(), media_to(&mut red, &sent).len()), (0, 1));
    assert_eq!(rig.drops(DropReason::RedMalformed), 1);
}

#[test]
fn where_only_fir_is_negotiated_a_keyframe_is_asked_for_by_numbered_commands() {
    let mut rig = Rig::new();
    let mut publisher = rig.publish(open_transport(1), OpenTrack { pli: false, fir: true, ..open_track(1) });
    let mut viewer = rig.watch(open_subscription(2), MAP);
    rig.receive(&publisher, media(&publisher, 10, false));
    let compounds = rtcp_to(&mut publisher, &rig.pass(Duration::from_millis(1_100)));
    let mut commands = Vec::new();
    for packet in compounds.iter().flat_map(|c| RtcpReader::new(c).unwrap()) {
        match packet {
            RtcpPacket::Fir { entries, .. } => commands.extend(entries.iter()),
            RtcpPacket::Pli { .. } => panic!("PLI was not negotiated"),
            _ => {}
        }
    }
    assert_eq!(commands, [0, 1, 2].map(|sequence| FirEntry { ssrc: 50, sequence }), "one each half second");
    rig.receive(&publisher, media(&publisher, 11, true));
    rig.sent();
    let before = rig.core.counters().rtcp_pli_in;
    for sequence in [7, 7, 7, 8] {
        let fir = viewer.rtcp(|c| c.fir(0, FirEntry { ssrc: 2, sequence }));
        rig.receive(&viewer, fir);
    }
    assert_eq!(rig.core.counters().rtcp_pli_in - before, 2, "a repeated command is one");
}

#[test]
fn a_publisher_without_transport_wide_feedback_is_told_a_bitrate_every_second_and_at_once_when_it_falls() {
    let mut rig = Rig::new();
    let transport = OpenTransport { transport_cc: false, remb: true, ..open_transport(1) };
    let mut publisher = rig.publish(transport, open_track(1));
    let mut told = Vec::new();
    let send = |rig: &mut Rig, index: u64, lossy: bool| {
        if !(lossy && index.is_multiple_of(3)) {
            rig.receive(&publisher, media(&publisher, index, index == 1));
        }
        rig.pass(Duration::from_millis(10))
    };
    let sent: Vec<Sent> = (1..400).flat_map(|index| send(&mut rig, index, false)).collect();
    let lossy: Vec<Sent> = (400..500).flat_map(|index| send(&mut rig, index, true)).collect();
    for compound in rtcp_to(&mut publisher, &sent).iter().chain(&rtcp_to(&mut publisher, &lossy)) {
        for packet in RtcpReader::new(compound).unwrap() {
            match packet {
                RtcpPacket::Remb { bitrate, sources, .. } => {
                    assert_eq!(sources.iter().collect::<Vec<_>>(), [50]);
                    told.push(bitrate);
                }
                RtcpPacket::TransportCc(_) => panic!("it was not negotiated"),
                _ => {}
            }
        }
    }
    assert!(told[..4].is_sorted(), "{told:?}");
    let falls = told[4..].windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(falls >= 2 && told.last() < Some(&told[3]), "a third is lost, in one second: {told:?}");
    // 100 packets of about 930 bytes a second are 0.74 Mb/s.
    assert!((300_000..1_300_000).contains(&told[3]), "{told:?}");
}

#[test]
fn a_goodbye_frees_the_layer_and_viewers_wait_for_a_keyframe() {
    let (mut rig, mut publisher, mut viewer) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    let bye = publisher.rtcp(|c| c.receiver_report(50, &[])?.bye(&[50]));
    rig.receive(&publisher, bye);
    let other = |index, keyframe| {
        let payload = vp8(keyframe, 900);
        // No mid: only because the layer is free it binds by its payload type.
        protect(&publisher, &Packet { ssrc: 60, payload_type: 96, index, timestamp: 0, elements: &[(5, &[2])], payload: &payload })
    };
    assert_eq!(rig.exchange(publisher.path, other(7_000, false)), []);
    assert_eq!(rig.drops(DropReason::UnknownStream), 0);
    let sent = rig.exchange(publisher.path, other(7_001, true));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 101, "numbers go on");
}

#[test]
fn a_stream_that_said_goodbye_may_go_on_where_it_was() {
    let (mut rig, mut publisher, mut viewer) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    let bye = publisher.rtcp(|c| c.receiver_report(50, &[])?.bye(&[50]));
    rig.receive(&publisher, bye);
    assert_eq!(rig.exchange(publisher.path, media(&publisher, 11, false)), [], "at a keyframe");
    let requests = rig.pass(Duration::from_millis(1_100));
    assert!(count(&rtcp_to(&mut publisher, &requests), |p| matches!(p, RtcpPacket::Pli { .. })) >= 1);
    let sent = rig.exchange(publisher.path, media(&publisher, 12, true));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 101);
}

#[test]
fn what_we_close_says_goodbye_first() {
    let (mut rig, publisher, mut viewer) = call();
    rig.exchange(publisher.path, media(&publisher, 10, true));
    rig.command(Command::CloseSubscription { subscription: SubscriptionId(2) });
    let byes = |compounds: &[Vec<u8>]| -> Vec<u32> {
        let packets = compounds.iter().flat_map(|c| RtcpReader::new(c).unwrap());
        packets.flat_map(|p| if let RtcpPacket::Bye { sources } = p { sources.iter().collect() } else { Vec::new() }).collect()
    };
    let sent = rig.sent();
    assert_eq!(byes(&rtcp_to(&mut viewer, &sent)), [2, 0x0200_0002]);
    rig.command(Command::CloseTransport { transport: TransportId(2) });
    let sent = rig.sent();
    assert_eq!(byes(&rtcp_to(&mut viewer, &sent)), [0x1002], "our reports' source; the section is gone already");
    rig.command(Command::CloseTransport { transport: TransportId(1) });
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(rig.core.gauges(), Default::default());
}

#[test]
fn asks_that_do_not_fit_one_datagram_go_with_the_next() {
    let mut rig = Rig::new();
    let mut publisher = rig.connect_with(open_transport(1));
    // Eight streams with 63 scattered holes each: 2 KB of NACKs.
    for id in 1..9 {
        let track =
            OpenTrack { track: TrackId(id), transport: TransportId(1), mid: id.to_string().into(), ssrc: Some(id as u32), ..open_track(1) };
        rig.command(Command::OpenTrack(Box::new(track)));
    }
    for index in 0..64 {
        for ssrc in 1..9 {
            let payload = vp8(index == 0, 100);
            rig.receive(
                &publisher,
                protect(&publisher, &Packet { ssrc, payload_type: 96, index: 20 * index, timestamp: 0, elements: &[], payload: &payload }),
            );
        }
        if index % 12 == 11 {
            rig.core.drop_fresh();
        }
    }
    rig.core.drop_fresh();
    let sent = rig.pass(Duration::from_millis(20));
    let mut asked = 0;
    for compound in rtcp_to(&mut publisher, &sent) {
        assert!(compound.len() <= 1_200);
        for packet in RtcpReader::new(&compound).unwrap() {
            if let RtcpPacket::Nack { sequences, .. } = packet {
                asked += sequences.iter().count();
            }
        }
    }
    assert_eq!(asked as u64, rig.core.counters().rtcp_nack_out, "each ask that is counted was sent");
    assert!(asked > 8 * 64, "{asked}");
}

/// A publisher of three layers.
struct Simulcast {
    rig: Rig,
    publisher: Client,
    viewer: Client,
    /// Bytes per frame of each layer; 0: it is paused.
    frame_len: [usize; 3],
    next: [u64; 3],
    frame: u32,
    /// Layers that a keyframe was asked of since they last made one.
    asked: [bool; 3],
    /// (index, SSRC) -> datagram, of everything that the viewer got.
    seen: HashMap<(u64, u32), Vec<u8>>,
    /// (milliseconds, layer by payload, timestamp, picture id) of each frame that the viewer got.
    got: Vec<(u64, u8, u32, u16)>,
    requests: usize,
}

const RIDS: [&str; 3] = ["h", "f", "q"];

impl Simulcast {
    fn new() -> Simulcast {
        let mut rig = Rig::new();
        let layers = RIDS.iter().map(|rid| (*rid).into()).collect();
        let publisher = rig.publish(open_transport(1), OpenTrack { layers, ..open_track(1) });
        let viewer = rig.watch(open_subscription(2), MAP);
        rig.sent();
        Simulcast {
            rig,
            publisher,
            viewer,
            frame_len: [1_000, 4_000, 300],
            next: [100, 40_000, 7_000],
            frame: 0,
            asked: [false; 3],
            seen: HashMap::new(),
            got: Vec::new(),
            requests: 0,
        }
    }

    /// Frames at 30 a second, each layer with clock, picture ids and sequence of its own.
    fn run(&mut self, duration: Duration) {
        for _ in 0..duration.as_millis() / 33 {
            for layer in 0..3 {
                self.send_frame(layer);
            }
            self.frame += 1;
            let sent = self.rig.sent();
            self.receive(&sent);
            for _ in 0..3 {
                let sent = self.rig.pass(Duration::from_millis(10));
                self.receive(&sent);
                self.take_requests(&sent);
            }
            self.rig.now = self.rig.now + Duration::from_millis(3);
        }
    }

    fn send_frame(&mut self, layer: usize) {
        let ssrc = 500 + layer as u32;
        if self.frame_len[layer] == 0 {
            return;
        }
        if self.frame.is_multiple_of(30) {
            // Each layer's RTP clock starts elsewhere; the reports tell how they lie to each other.
            let ntp = (u64::from(self.frame) << 32) / 30;
            let info = SenderInfo { ssrc, ntp, rtp_timestamp: self.timestamp(layer), packets: 0, octets: 0 };
            let report = self.publisher.rtcp(|c| c.sender_report(&info, &[]));
            self.rig.receive(&self.publisher, report);
        }
        let keyframe = self.frame == 0 || std::mem::take(&mut self.asked[layer]);
        let [high, low] = ((1_000 * layer as u32 + self.frame) as u16 | 0x8000).to_be_bytes();
        let mut left = self.frame_len[layer];
        let mut begins = true;
        while left > 0 {
            let len = left.min(1_000);
            left -= len;
            let mut payload = vec![layer as u8; len.max(8)];
            payload[..6].copy_from_slice(&[0x80 | u8::from(begins) << 4, 0xc0, high, low, 9, u8::from(!keyframe)]);
            let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, RIDS[layer].as_bytes())];
            let index = self.next[layer];
            // libwebrtc names mid and rid until a report tells that they were heard.
            let elements = if index < [130, 40_030, 7_030][layer] { &elements[..] } else { &[] };
            let timestamp = self.timestamp(layer);
            let packet = Packet { ssrc, payload_type: 96, index, timestamp, elements, payload: &payload };
            self.rig.receive(&self.publisher, protect(&self.publisher, &packet));
            self.next[layer] += 1;
            begins = false;
        }
    }

    fn timestamp(&self, layer: usize) -> u32 {
        0xffff_0000u32.wrapping_mul(layer as u32 + 1).wrapping_add(3_000 * self.frame)
    }

    fn receive(&mut self, sent: &[Sent]) {
        for (index, header, payload) in media_to(&mut self.viewer, sent) {
            let view = RtpView::parse(&header).unwrap();
            let bytes = [&header[..], &payload].concat();
            if let Some(before) = self.seen.insert((index, view.ssrc()), bytes.clone()) {
                assert_eq!(before, bytes, "one index, two packets");
            }
            let picture = u16::from_be_bytes([payload[2] & 0x7f, payload[3]]);
            let frame = (self.rig.now.as_millis(), payload[7], view.timestamp(), picture);
            if self.got.last().is_none_or(|last| last.2 != frame.2) {
                self.got.push(frame);
            }
        }
    }

    fn take_requests(&mut self, sent: &[Sent]) {
        for compound in rtcp_to(&mut self.publisher, sent) {
            for packet in RtcpReader::new(&compound).unwrap() {
                if let RtcpPacket::Pli { media, .. } = packet {
                    self.asked[(media - 500) as usize] = true;
                    self.requests += 1;
                }
            }
        }
    }

    /// Every sequence number, timestamp and picture id follows the one before.
    fn assert_continuous(&self) {
        let mut indexes: Vec<_> = self.seen.keys().filter(|(_, ssrc)| *ssrc == 2).map(|(index, _)| *index).collect();
        indexes.sort_unstable();
        assert!(indexes.windows(2).all(|pair| pair[1] == pair[0] + 1), "a hole in the sequence");
        for pair in self.got.windows(2) {
            let [(.., before, picture_before), (at, _, timestamp, picture)] = pair else { unreachable!() };
            assert_eq!(*picture, picture_before + 1, "at {at} ms");
            let ticks = timestamp.wrapping_sub(*before);
            assert!((1..90_000).contains(&ticks), "{ticks} ticks at {at} ms");
        }
    }
}

#[test]
fn the_top_layer_reaches_everybody_and_the_switch_shows_in_no_number() {
    let mut call = Simulcast::new();
    call.run(Duration::from_secs(4));
    let layers: Vec<u8> = call.got.iter().map(|(_, layer, ..)| *layer).collect();
    assert_eq!(layers.first(), Some(&0), "the first that came");
    assert_eq!(layers.last(), Some(&1), "the one with the highest bitrate");
    assert_eq!(layers.windows(2).filter(|pair| pair[0] != pair[1]).count(), 1, "{layers:?}");
    call.assert_continuous();
    let switch = call.got.windows(2).find(|pair| pair[0].1 != pair[1].1).unwrap();
    // Layer 0's frame of the same instant is out already, which the reports tell: a tick later, then in step.
    assert_eq!(switch[1].2.wrapping_sub(switch[0].2), 1);
    let last = call.got.last().unwrap();
    assert!(last.0 >= call.rig.now.as_millis() - 100, "and it goes on");
    assert_eq!(call.rig.drops(DropReason::UnknownStream), 0);
    assert_eq!(call.rig.core.gauges().tracks, 1);
}

#[test]
fn layers_that_named_themselves_to_another_node_are_known_by_what_it_wrote_down() {
    // Past the packets that carry a RID.
    let late = || Simulcast { next: [1_000, 41_000, 9_000], ..Simulcast::new() };
    let mut call = late();
    call.run(Duration::from_secs(1));
    assert!(call.got.is_empty() && call.rig.drops(DropReason::UnknownStream) > 60, "nobody knows them");

    let mut call = late();
    let known = |media, rtx| LayerSsrcs { media: Some(media), rtx };
    let ssrcs = [known(500, None), known(501, Some(601)), known(502, None), LayerSsrcs::default()];
    call.rig.command(Command::BindLayers { track: TrackId(1), ssrcs });
    // What one layer has no other takes, and a layer that has one keeps it.
    let wrong = [known(777, Some(501)), LayerSsrcs::default(), known(500, Some(501)), known(888, None)];
    call.rig.command(Command::BindLayers { track: TrackId(1), ssrcs: wrong });
    call.run(Duration::from_secs(4));
    assert_eq!(call.got.last().map(|(_, layer, ..)| *layer), Some(1), "the best one");
    call.assert_continuous();
    assert_eq!(call.rig.drops(DropReason::UnknownStream), 0);
    let told: Vec<_> = call.rig.events().into_iter().filter(|event| matches!(event, Event::LayersBound { .. })).collect();
    assert!(matches!(&told[..], [Event::LayersBound { track: TrackId(1), ssrcs: told }] if *told == ssrcs), "{told:?}");
    // A retransmission is known, too.
    call.next[1] += 1;
    let lost = call.next[1] - 1;
    call.send_frame(1);
    let payload = [&(lost as u16).to_be_bytes()[..], &[0x80, 0xc0, 0x80, 1, 9, 1, 1, 1]].concat();
    let packet = Packet { ssrc: 601, payload_type: 97, index: 5, timestamp: 0, elements: &[], payload: &payload };
    call.rig.exchange(call.publisher.path, protect(&call.publisher, &packet));
    assert_eq!(call.rig.core.counters().rtx_packets_in, 1);
}

#[test]
fn a_publisher_that_changes_the_ssrc_of_a_layer_again_and_again_is_told_of_once_a_second() {
    let mut call = Simulcast::new();
    call.run(Duration::from_secs(1));
    call.rig.events();
    let (mut told, mut last) = (0, None);
    for change in 0..1_000 {
        let (ssrc, payload) = (10_000 + change, vp8(true, 100));
        let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, b"q")];
        let packet = Packet { ssrc, payload_type: 96, index: 1, timestamp: 0, elements: &elements, payload: &payload };
        call.rig.receive(&call.publisher, protect(&call.publisher, &packet));
        call.rig.pass(Duration::from_millis(10));
        for event in call.rig.events() {
            if let Event::LayersBound { ssrcs, .. } = event {
                (told, last) = (told + 1, ssrcs[2].media);
            }
        }
    }
    assert!((10..=18).contains(&told), "told {told} times in 10 s");
    assert!(last.is_some_and(|ssrc| ssrc >= 10_890), "and what is told is what is: {last:?}");
}

#[test]
fn when_the_top_layer_pauses_the_next_one_comes_within_a_second_and_gives_way_again() {
    let mut call = Simulcast::new();
    call.run(Duration::from_secs(4));
    let paused_at = call.rig.now.as_millis();
    call.frame_len[1] = 0;
    call.run(Duration::from_secs(3));
    let first = *call.got.iter().find(|(at, layer, ..)| *at >= paused_at && *layer == 0).expect("layer 0 comes");
    assert!(first.0 - paused_at < 1_000, "after {} ms", first.0 - paused_at);
    call.assert_continuous();
    let requests = call.requests;
    call.frame_len[1] = 4_000;
    call.run(Duration::from_secs(4));
    assert_eq!(call.got.last().unwrap().1, 1);
    assert!(call.requests > requests);
    call.assert_continuous();
}

#[test]
fn a_layer_that_says_goodbye_is_left_at_once() {
    let mut call = Simulcast::new();
    call.run(Duration::from_secs(4));
    let bye = call.publisher.rtcp(|c| c.receiver_report(501, &[])?.bye(&[501]));
    call.rig.receive(&call.publisher, bye);
    let at = call.rig.now.as_millis();
    call.frame_len[1] = 0;
    call.run(Duration::from_secs(1));
    let first = *call.got.iter().find(|(when, layer, ..)| *when >= at && *layer == 0).expect("layer 0 comes");
    assert!(first.0 - at < 150, "after {} ms", first.0 - at);
    call.frame_len[1] = 4_000;
    call.run(Duration::from_secs(4));
    assert_eq!(call.got.last().unwrap().1, 1, "it goes on under its SSRC without naming itself again");
    call.assert_continuous();
}

#[test]
fn each_layer_is_repaired_reported_and_retransmitted_for_itself() {
    let mut call = Simulcast::new();
    call.rig.watch(open_subscription(3), MAP);
    let wish = LayerWish { spatial_max: 0, ..LayerWish::default() };
    call.rig.command(Command::Wish { subscription: SubscriptionId(3), wish });
    call.run(Duration::from_secs(4));
    // Each layer loses a packet; nobody watches layer 0.
    call.next.iter_mut().for_each(|next| *next += 1);
    let lost = call.next[1] - 1;
    (0..3).for_each(|layer| call.send_frame(layer));
    call.rig.sent();
    let sent = call.rig.pass(Duration::from_millis(20));
    let mut asked = Vec::new();
    for compound in rtcp_to(&mut call.publisher, &sent) {
        for packet in RtcpReader::new(&compound).unwrap() {
            if let RtcpPacket::Nack { media, sequences, .. } = packet {
                asked.extend(sequences.iter().map(|sequence| (media, sequence)));
            }
        }
    }
    asked.sort_unstable();
    assert_eq!(asked, [(501, lost as u16), (502, call.next[2] as u16 - 2)]);
    // The repair comes as RTX that names the layer by its repaired RID.
    let payload = [&(lost as u16).to_be_bytes()[..], &[0x80, 0xc0, 0x80, 1, 9, 1, 1, 1]].concat();
    let elements: [(u8, &[u8]); 2] = [(1, b"0"), (3, RIDS[1].as_bytes())];
    let packet = Packet { ssrc: 601, payload_type: 97, index: 5, timestamp: 0, elements: &elements, payload: &payload };
    let sent = call.rig.exchange(call.publisher.path, protect(&call.publisher, &packet));
    assert_eq!(media_to(&mut call.viewer, &sent).len(), 1);
    assert_eq!(call.rig.core.counters().rtx_packets_in, 1);
    let sent = call.rig.pass(Duration::from_secs(1));
    let mut reported = Vec::new();
    for compound in rtcp_to(&mut call.publisher, &sent) {
        for packet in RtcpReader::new(&compound).unwrap() {
            if let RtcpPacket::ReceiverReport { blocks, .. } = packet {
                reported.extend(blocks.iter().map(|block| block.ssrc));
            }
        }
    }
    reported.sort_unstable();
    assert_eq!(reported, [500, 501, 502]);
}

#[test]
fn without_a_send_slot_a_viewer_loses_the_packets_of_its_own_layer() {
    let mut call = Simulcast::new();
    call.run(Duration::from_secs(4));
    (0..3).for_each(|layer| call.send_frame(layer));
    call.rig.core.drop_fresh();
    assert_eq!(call.rig.drops(DropReason::SendQueueFull), 4, "four packets of 1,000 bytes; the other layers' two are nobody's");
}

#[test]
fn a_layer_that_was_not_negotiated_and_one_without_a_name_are_unknown() {
    let mut call = Simulcast::new();
    let payload = vp8(true, 900);
    for (ssrc, elements) in [(900, &[(1, &b"0"[..]), (2, b"x")][..]), (901, &[(1, b"0")])] {
        let packet = Packet { ssrc, payload_type: 96, index: 1, timestamp: 0, elements, payload: &payload };
        assert_eq!(call.rig.exchange(call.publisher.path, protect(&call.publisher, &packet)), []);
    }
    assert_eq!(call.rig.drops(DropReason::UnknownStream), 2);
}
