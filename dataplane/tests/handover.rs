//! A track whose subscribers are on another worker: what crosses, what comes back, what is lost when the other worker is slow.

mod common;

use std::time::Duration;

use common::{Client, Packet, Pair, Rig, media_to, open_transport, protect, rtcp_to, vp8};
use pop_dataplane::Gauges;
use pop_proto::control::{Codec, Extension, ExtensionIds, LayerWish, MediaKind, OpenSubscription, OpenTrack, OpenTransport, PayloadType};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

const TICK: Duration = Duration::from_millis(10);

/// A publisher of one VP8 track at home, which is mirrored.
fn video() -> (Pair, Client) {
    let mut pair = Pair::new();
    let publisher = pair.home.publisher(1);
    pair.mirror(Rig::track(1));
    (pair, publisher)
}

/// A second publisher at home, of audio, which is mirrored.
fn add_audio(pair: &mut Pair) -> Client {
    add_audio_as(pair, 20)
}

fn add_audio_as(pair: &mut Pair, id: u64) -> Client {
    let publisher = pair.home.connect(id);
    let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
    let track = OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(id) };
    pair.home.command(Command::OpenTrack(Box::new(track.clone())));
    pair.mirror(track);
    publisher
}

fn add_listener(pair: &mut Pair, id: u64) -> Client {
    let client = pair.away.connect(id);
    pair.away.command(Command::OpenSubscription(Box::new(OpenSubscription { kind: MediaKind::Audio, ..Rig::subscription(id) })));
    pair.away.forward(id, Some(20));
    client
}

const IDS: ExtensionIds = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::Rid, 2);

/// A publisher of two simulcast layers at home, which are mirrored.
fn simulcast() -> (Pair, Client) {
    let mut pair = Pair::new();
    let publisher = pair.home.connect_with(OpenTransport { extensions: IDS, ..open_transport(1) });
    let track = OpenTrack { ssrc: None, layers: vec!["a".into(), "b".into()], order: vec![0, 1], ..Rig::track(1) };
    pair.home.command(Command::OpenTrack(Box::new(track.clone())));
    pair.mirror(track);
    (pair, publisher)
}

/// One packet of a layer; its SSRC is 50 and the layer.
fn of_layer(publisher: &Client, layer: usize, index: u64, keyframe: bool) -> Vec<u8> {
    let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, [b"a", b"b"][layer])];
    let payload = vp8(keyframe, 100 + 400 * layer);
    let (ssrc, timestamp) = (50 + layer as u32, 3_000 * index as u32);
    protect(publisher, &Packet { ssrc, payload_type: 96, index, timestamp, elements: &elements, payload: &payload })
}

fn payload_lens(viewer: &mut Client, sent: &[common::Sent]) -> Vec<usize> {
    media_to(viewer, sent).iter().map(|(_, _, payload)| payload.len()).collect()
}

#[test]
fn a_packet_crosses_once_and_reaches_every_subscriber_of_the_mirror_as_it_is() {
    let (mut pair, publisher) = video();
    let mut near = pair.home.viewer(2, 1);
    let mut far: Vec<_> = (3..8).map(|id| pair.away.viewer(id, 1)).collect();
    for index in 0..100 {
        let payload = [&vp8(index == 0, 500)[..], &[index as u8]].concat();
        let [home, away] = pair.receive(&publisher, publisher.packet(1, index, &payload));
        for (viewer, sent) in far.iter_mut().map(|viewer| (viewer, &away)).chain([(&mut near, &home)]) {
            let media = media_to(viewer, sent);
            assert_eq!(media.len(), 1, "packet {index}");
            assert_eq!((media[0].0, &media[0].2), (100 + index, &payload));
        }
    }
    let (home, away) = (pair.home.core.counters(), pair.away.core.counters());
    assert_eq!((home.handover_packets_out, away.handover_packets_in, away.rtp_packets_out), (100, 100, 500));
    assert_eq!((home.handover_bytes_out, away.handover_bytes_in), (50_100, 50_100));
    assert_eq!((home.handover_batches_out, away.handover_batches_in), (100, 100));
    assert_eq!((home.rtp_packets_in, away.rtp_packets_in), (100, 0), "a packet is received once");
    assert_eq!((pair.away.core.gauges().tracks, pair.away.core.gauges().mirrors), (0, 1));
    pair.pass(Duration::from_secs(2));
    let of_track = |event: &Event| matches!(event, Event::TrackStarted { .. } | Event::TrackStats { .. } | Event::AudioLevel { .. });
    assert_eq!(pair.away.events().iter().filter(|event| of_track(event)).count(), 0, "its home tells of the track");
    assert!(pair.home.events().iter().any(|event| matches!(event, Event::TrackStarted { track: TrackId(1) })));
}

#[test]
fn packets_of_one_turn_cross_in_one_batch() {
    let (mut pair, publisher) = video();
    let mut viewer = pair.away.viewer(2, 1);
    for index in 0..50 {
        let mut packet = publisher.packet(1, index, &vp8(index == 0, 900));
        pair.home.core.handle_datagram(pair.home.now, publisher.path, &mut packet);
    }
    pair.cross();
    let sent = pair.away.sent();
    assert_eq!(media_to(&mut viewer, &sent).len(), 50);
    assert_eq!(pair.away.core.counters().handover_batches_in, 1);
    assert!(sent.iter().any(|sent| sent.train > 10), "what came together leaves together");
}

#[test]
fn a_mirror_answers_nacks_from_its_own_history_and_its_home_asks_for_what_is_missing() {
    let (mut pair, mut publisher) = video();
    let mut viewer = pair.away.viewer(2, 1);
    for index in (0..20).filter(|index| *index != 15) {
        let [_, sent] = pair.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
        media_to(&mut viewer, &sent);
    }
    let nack = viewer.rtcp(|c| c.nack(0, 2, [110]));
    let sent = pair.away.exchange(viewer.path, nack);
    assert_eq!(sent.iter().filter(|sent| sent.path == viewer.path).count(), 1);
    assert_eq!(pair.away.core.counters().retransmitted_packets, 1);
    let [home, away] = pair.pass(TICK);
    let asked = rtcp_to(&mut publisher, &home);
    let nacks = asked.iter().flat_map(|compound| RtcpReader::new(compound).unwrap());
    let missing: Vec<u16> = nacks
        .filter_map(|p| if let RtcpPacket::Nack { sequences, .. } = p { Some(sequences) } else { None })
        .flat_map(|s| s.iter().collect::<Vec<_>>())
        .collect();
    assert_eq!(missing, [15], "the home asks");
    assert!(away.iter().all(|sent| sent.path == viewer.path), "the mirror asks nobody");
    // It comes late, and crosses like the others.
    let [_, sent] = pair.receive(&publisher, publisher.packet(1, 15, &vp8(false, 500)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 115);
}

#[test]
fn keyframes_that_both_workers_subscribers_ask_for_are_asked_for_once() {
    let (mut pair, mut publisher) = video();
    let mut near = pair.home.viewer(2, 1);
    let mut far: Vec<_> = (3..8).map(|id| pair.away.viewer(id, 1)).collect();
    for index in 0..30 {
        pair.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
    }
    pair.pass(Duration::from_secs(1));
    let before = pair.home.core.counters().rtcp_pli_out;
    for viewer in &mut far {
        let (path, ssrc) = (viewer.path, viewer.id as u32);
        let pli = viewer.rtcp(|c| c.pli(0, ssrc));
        pair.away.exchange(path, pli);
    }
    let pli = near.rtcp(|c| c.pli(0, 2));
    pair.home.exchange(near.path, pli);
    let [home, _] = pair.pass(Duration::from_millis(100));
    assert_eq!(pair.home.core.counters().rtcp_pli_out - before, 1);
    assert_eq!(pair.away.core.counters().rtcp_pli_out, 0);
    assert!(!rtcp_to(&mut publisher, &home).is_empty());
    // And the keyframe answers all of them.
    pair.receive(&publisher, publisher.packet(1, 30, &vp8(true, 500)));
    pair.pass(Duration::from_millis(900));
    assert_eq!(pair.home.core.counters().rtcp_pli_out - before, 1);
}

#[test]
fn the_first_subscriber_of_a_mirror_costs_one_keyframe_and_the_next_begins_with_what_is_kept() {
    let (mut pair, publisher) = video();
    for index in 0..10 {
        pair.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
    }
    let mut late = pair.away.viewer(2, 1);
    let [_, away] = pair.pass(Duration::from_millis(20));
    assert_eq!(media_to(&mut late, &away).len(), 10, "the mirror has kept the group");
    assert_eq!(pair.home.core.counters().rtcp_pli_out, 0);
}

#[test]
fn only_layers_that_a_mirrors_subscribers_take_are_asked_for() {
    let (mut pair, publisher) = simulcast();
    let mut viewer = pair.away.viewer(2, 1);
    let wish = |spatial_max| Command::Wish { subscription: SubscriptionId(2), wish: LayerWish { spatial_max, ..LayerWish::default() } };
    pair.away.command(wish(0));
    let mut index = 0;
    let mut run = |pair: &mut Pair, viewer: &mut Client, frames: u64| {
        let mut lens = Vec::new();
        for _ in 0..frames {
            for layer in 0..2 {
                // Each tenth packet of the upper layer is lost.
                if layer == 0 || index % 10 != 5 {
                    let [_, sent] = pair.receive(&publisher, of_layer(&publisher, layer, index, index.is_multiple_of(20)));
                    lens.extend(payload_lens(viewer, &sent));
                }
            }
            let [_, sent] = pair.pass(Duration::from_millis(30));
            lens.extend(payload_lens(viewer, &sent));
            index += 1;
        }
        lens
    };
    // The first second is generous.
    run(&mut pair, &mut viewer, 60);
    let before = pair.home.core.counters().rtcp_nack_out;
    let lens = run(&mut pair, &mut viewer, 60);
    assert!(lens.iter().all(|len| *len == 100) && lens.len() > 50, "{lens:?}");
    assert_eq!(pair.home.core.counters().rtcp_nack_out, before, "nobody takes the upper layer");
    pair.away.command(wish(1));
    let lens = run(&mut pair, &mut viewer, 60);
    assert!(lens.iter().filter(|len| **len == 500).count() > 20, "{lens:?}");
    assert!(pair.home.core.counters().rtcp_nack_out > before, "the upper layer is taken");
}

#[test]
fn the_publishers_clock_and_its_goodbye_cross() {
    let (mut pair, mut publisher) = simulcast();
    let mut viewer = pair.away.viewer(2, 1);
    let mut index = 0;
    for _ in 0..40 {
        for layer in 0..2 {
            pair.receive(&publisher, of_layer(&publisher, layer, index, index.is_multiple_of(10)));
        }
        pair.pass(Duration::from_millis(30));
        index += 1;
    }
    let info = SenderInfo { ssrc: 51, ntp: 77 << 32, rtp_timestamp: 5, packets: 1, octets: 1 };
    let report = publisher.rtcp(|c| c.sender_report(&info, &[]));
    pair.receive(&publisher, report);
    let [_, away] = pair.pass(Duration::from_secs(1));
    let compounds = rtcp_to(&mut viewer, &away);
    let reports = compounds.iter().flat_map(|compound| RtcpReader::new(compound).unwrap());
    let ntp = reports.filter_map(|packet| if let RtcpPacket::SenderReport { info, .. } = packet { Some(info.ntp) } else { None });
    let seconds: Vec<u64> = ntp.map(|ntp| ntp >> 32).collect();
    assert!(!seconds.is_empty() && seconds.iter().all(|s| (77..79).contains(s)), "on the publisher's clock: {seconds:?}");

    let bye = publisher.rtcp(|c| c.receiver_report(51, &[])?.bye(&[51]));
    pair.receive(&publisher, bye);
    pair.pass(TICK);
    let [_, away] = pair.receive(&publisher, of_layer(&publisher, 0, index, true));
    assert_eq!(payload_lens(&mut viewer, &away), [100], "the lower layer at once");
}

#[test]
fn an_encoder_that_begins_anew_goes_on_at_the_mirror() {
    let (mut pair, publisher) = simulcast();
    let mut viewer = pair.away.viewer(2, 1);
    for index in 0..5 {
        let [_, away] = pair.receive(&publisher, of_layer(&publisher, 0, 40_000 + index, index == 0));
        assert_eq!(payload_lens(&mut viewer, &away).len(), 1);
    }
    // Another SSRC, and numbers far below.
    for index in 0..5 {
        let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, b"a")];
        let payload = vp8(index == 0, 100);
        let timestamp = 3_000 * index as u32;
        let packet = Packet { ssrc: 90, payload_type: 96, index: 7 + index, timestamp, elements: &elements, payload: &payload };
        let [_, away] = pair.receive(&publisher, protect(&publisher, &packet));
        assert_eq!(media_to(&mut viewer, &away).iter().map(|(index, _, _)| *index).collect::<Vec<_>>(), [105 + index]);
    }
    assert_eq!(pair.away.drops(DropReason::TooOld), 0);
}

#[test]
fn a_worker_that_does_not_take_its_batches_loses_its_own_video_first_and_nobody_elses() {
    let (mut pair, publisher) = video();
    let speaker = add_audio(&mut pair);
    let mut near = pair.home.viewer(2, 1);
    let mut far = pair.away.viewer(3, 1);
    let mut listener = add_listener(&mut pair, 4);
    // The other worker takes nothing meanwhile.
    let mut reached = 0;
    for index in 0..4_000u64 {
        let mut packet = publisher.packet(1, index, &vp8(index == 0, 1_000));
        pair.home.core.handle_datagram(pair.home.now, publisher.path, &mut packet);
        if index % 40 == 0 {
            let mut packet = speaker.packet(20, index / 40, &[7; 60]);
            pair.home.core.handle_datagram(pair.home.now, speaker.path, &mut packet);
        }
        pair.home_ends.send(&mut pair.home.core);
        reached += media_to(&mut near, &pair.home.sent()).len();
    }
    assert_eq!(reached, 4_000, "its neighbours lose nothing");
    let lost = pair.home.drops(DropReason::HandoverQueueFull);
    assert!((1_500..4_000).contains(&lost), "{lost}");
    assert_eq!(pair.home.core.counters().handover_packets_out + lost, 4_100);
    // Then it does.
    let (mut seen, mut heard) = (0, 0);
    while pair.away_ends.receive(pair.away.now, &mut pair.away.core) {
        let sent = pair.away.sent();
        (seen, heard) = (seen + media_to(&mut far, &sent).len(), heard + media_to(&mut listener, &sent).len());
        pair.home_ends.send(&mut pair.home.core);
    }
    assert_eq!(heard, 100, "audio has its own share of the lane");
    assert_eq!(seen as u64, 4_000 - lost);
    // A hole that large is a keyframe's work.
    let before = pair.home.core.counters().rtcp_pli_out;
    pair.receive(&publisher, publisher.packet(1, 4_000, &vp8(false, 1_000)));
    pair.pass(Duration::from_millis(30));
    assert_eq!(pair.home.core.counters().rtcp_pli_out, before + 1);
}

#[test]
fn a_loud_track_leaves_the_others_their_part_of_a_full_lane() {
    let mut pair = Pair::new();
    let speaker = add_audio(&mut pair);
    let loud = add_audio_as(&mut pair, 21);
    let mut listener = add_listener(&mut pair, 4);
    // The other worker takes nothing meanwhile; 20 packets are 400 ms of speech.
    for index in 0..20_000u64 {
        let mut packet = loud.packet(21, index, &[9; 60]);
        pair.home.core.handle_datagram(pair.home.now, loud.path, &mut packet);
        if index % 1_000 == 0 {
            let mut packet = speaker.packet(20, index / 1_000, &[7; 60]);
            pair.home.core.handle_datagram(pair.home.now, speaker.path, &mut packet);
        }
        pair.home_ends.send(&mut pair.home.core);
        pair.home.sent();
    }
    assert!(pair.home.drops(DropReason::HandoverQueueFull) > 15_000);
    let mut heard = 0;
    while pair.away_ends.receive(pair.away.now, &mut pair.away.core) {
        let sent = pair.away.sent();
        heard += media_to(&mut listener, &sent).len();
        pair.home_ends.send(&mut pair.home.core);
    }
    assert_eq!(heard, 20);
}

#[test]
fn what_a_full_lane_lost_of_a_mirrors_asks_is_asked_again() {
    let (mut pair, publisher) = video();
    for index in 0..3 {
        pair.receive(&publisher, publisher.packet(1, index, &vp8(false, 500)));
    }
    let _viewer = pair.away.viewer(2, 1);
    // Its first ask goes nowhere.
    pair.away.pass(Duration::from_millis(40));
    while pair.away.core.poll_handover().is_some() {}
    pair.pass(Duration::from_millis(600));
    assert_eq!(pair.home.core.counters().rtcp_pli_out, 1);
}

#[test]
fn closing_either_end_leaves_nothing() {
    let (mut pair, publisher) = video();
    let viewer = pair.away.viewer(2, 1);
    for index in 0..50 {
        pair.receive(&publisher, publisher.packet(1, index, &vp8(index == 0, 500)));
    }
    let before = pair.home.core.counters().handover_packets_out;
    // The last subscriber of the mirror leaves.
    pair.away.command(Command::CloseSubscription { subscription: SubscriptionId(2) });
    pair.home.command(Command::Export { track: TrackId(1), to: 1, on: false });
    pair.away.command(Command::CloseTrack { track: TrackId(1) });
    pair.receive(&publisher, publisher.packet(1, 50, &vp8(false, 500)));
    assert_eq!(pair.home.core.counters().handover_packets_out, before);
    assert_eq!(pair.away.core.gauges(), Gauges { transports: 1, ..Gauges::default() });
    // It comes again, and the publisher leaves with a packet on its way.
    pair.mirror(Rig::track(1));
    pair.away.command(Command::OpenSubscription(Box::new(Rig::subscription(2))));
    pair.away.forward(2, Some(1));
    let mut packet = publisher.packet(1, 51, &vp8(true, 500));
    pair.home.core.handle_datagram(pair.home.now, publisher.path, &mut packet);
    pair.home_ends.send(&mut pair.home.core);
    let mut packet = publisher.packet(1, 52, &vp8(true, 500));
    pair.home.core.handle_datagram(pair.home.now, publisher.path, &mut packet);
    pair.home.command(Command::CloseTransport { transport: TransportId(1) });
    pair.away.command(Command::CloseTrack { track: TrackId(1) });
    pair.cross();
    assert_eq!(pair.away.drops(DropReason::UnknownStream), 1, "counted, and nobody's");
    pair.pass(TICK);
    assert_eq!(pair.home.core.gauges(), Gauges::default());
    pair.away.command(Command::CloseTransport { transport: TransportId(viewer.id) });
    assert_eq!(pair.away.core.gauges(), Gauges::default());
}
