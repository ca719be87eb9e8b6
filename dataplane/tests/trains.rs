//! Packets of a frame that are nearly equally long leave as one train: padding makes them equal.

mod common;

use common::{Client, Packet, Rig, Sent, media_to, protect};
use pop_proto::control::{ExtensionIds, MediaKind, OpenSubscription, PayloadTypeMap};
use pop_proto::{Command, Event};
use pop_schemas::{SubscriptionId, TrackId};

const WITH_RTX: PayloadTypeMap = PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false };
const WITHOUT_RTX: PayloadTypeMap = PayloadTypeMap { rtx: None, ..WITH_RTX };

fn watch(rig: &mut Rig, id: u64, map: PayloadTypeMap) -> Client {
    let client = rig.connect(id);
    let rtx_ssrc = map.rtx.map(|_| 0x0200_0000 + id as u32);
    rig.command(Command::OpenSubscription(Box::new(OpenSubscription { rtx_ssrc, ..Rig::subscription(id) })));
    rig.command(Command::Forward { subscription: SubscriptionId(id), track: Some(TrackId(1)), payload_types: vec![map] });
    client
}

/// A turn brings a keyframe in packets with so many bytes of payload; what leaves.
fn turn(rig: &mut Rig, publisher: &Client, first: u64, lens: &[usize]) -> Vec<Sent> {
    // Answers to checks from before.
    rig.sent();
    for (at, len) in lens.iter().enumerate() {
        let mut payload = vec![7; *len];
        // VP8: a keyframe's first partition begins with the first packet.
        payload[..2].copy_from_slice(&[if at == 0 { 0x10 } else { 0 }, 0]);
        let packet = Packet { ssrc: 1, payload_type: 96, index: first + at as u64, timestamp: 9_000, elements: &[], payload: &payload };
        rig.receive(publisher, protect(publisher, &packet));
    }
    rig.sent()
}

/// Bytes of payload and of padding of each packet to `client`, by the packets themselves.
fn shapes(client: &mut Client, sent: &[Sent]) -> Vec<(usize, usize)> {
    let shape = |(_, header, payload): (u64, Vec<u8>, Vec<u8>)| {
        let padding = if header[0] & 0x20 != 0 { usize::from(*payload.last().expect("the count")) } else { 0 };
        let (media, zeros) = payload.split_at(payload.len() - padding);
        assert!(zeros.iter().rev().skip(1).all(|byte| *byte == 0), "{zeros:?}");
        (media.len(), padding)
    };
    media_to(client, sent).into_iter().map(shape).collect()
}

fn trains(sent: &[Sent]) -> Vec<usize> {
    let mut trains = Vec::new();
    let mut rest = sent;
    while let Some(first) = rest.first() {
        trains.push(first.train);
        rest = &rest[first.train..];
    }
    trains
}

#[test]
fn a_frame_whose_last_packets_are_a_byte_longer_is_one_train() {
    for profile in [pop_proto::control::SrtpProfile::AeadAes128Gcm, pop_proto::control::SrtpProfile::Aes128CmSha1_80] {
        let mut rig = Rig { profile, ..Rig::new() };
        let publisher = rig.publisher(1);
        let mut viewer = watch(&mut rig, 2, WITH_RTX);
        let sent = turn(&mut rig, &publisher, 10, &[1_000, 1_000, 1_001, 1_001, 1_001]);
        assert_eq!(trains(&sent), [5]);
        assert_eq!(shapes(&mut viewer, &sent), [(1_000, 1), (1_000, 1), (1_001, 0), (1_001, 0), (1_001, 0)]);
        assert_eq!(rig.core.counters().rtp_padding_bytes_out, 2);
        // What a report says counts no padding (RFC 3550 section 6.4.1).
        let octets = rig.core.counters().rtp_bytes_out;
        assert_eq!(octets, 5_003);
    }
}

#[test]
fn a_packet_that_is_a_little_too_short_does_not_end_the_train() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = watch(&mut rig, 2, WITH_RTX);
    let sent = turn(&mut rig, &publisher, 10, &[1_000, 980, 1_000, 969, 1_000]);
    assert_eq!(trains(&sent), [4, 1], "969 bytes would need more than 3 %");
    assert_eq!(shapes(&mut viewer, &sent), [(1_000, 0), (980, 20), (1_000, 0), (969, 0), (1_000, 0)]);
}

#[test]
fn extensions_that_the_viewer_does_not_get_pad_nothing() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = watch(&mut rig, 2, WITH_RTX);
    rig.sent();
    for (index, elements) in [(10, &[][..]), (11, &[(9, &[1; 8][..])][..])] {
        let payload = [&[if index == 10 { 0x10 } else { 0 }, 0][..], &[7; 998]].concat();
        let packet = Packet { ssrc: 1, payload_type: 96, index, timestamp: 9_000, elements, payload: &payload };
        rig.receive(&publisher, protect(&publisher, &packet));
    }
    let sent = rig.sent();
    assert_eq!(shapes(&mut viewer, &sent), [(1_000, 0), (1_000, 0)]);
}

#[test]
fn where_a_repair_is_the_same_packet_again_nothing_is_padded() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = watch(&mut rig, 2, WITHOUT_RTX);
    let sent = turn(&mut rig, &publisher, 10, &[1_000, 1_001]);
    assert_eq!((trains(&sent), shapes(&mut viewer, &sent)), (vec![1, 1], vec![(1_000, 0), (1_001, 0)]));
    let nack = viewer.rtcp(|c| c.nack(0, 2, [100]));
    let again = rig.exchange(viewer.path, nack);
    assert_eq!(again[0].bytes, sent[0].bytes, "one index makes one ciphertext");
}

#[test]
fn a_repair_with_rtx_is_not_padded_and_brings_what_was_published() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = watch(&mut rig, 2, WITH_RTX);
    turn(&mut rig, &publisher, 10, &[1_000, 1_001]);
    let nack = viewer.rtcp(|c| c.nack(0, 2, [100]));
    let again = rig.exchange(viewer.path, nack);
    assert_eq!(shapes(&mut viewer, &again), [(1_002, 0)], "its number and its payload");
}

#[test]
fn audio_is_never_padded() {
    let mut rig = Rig::new();
    let publisher = rig.connect(1);
    let audio = pop_proto::control::OpenTrack { kind: MediaKind::Audio, ..Rig::track(1) };
    rig.command(Command::OpenTrack(Box::new(audio)));
    let mut viewer = rig.connect(2);
    let section = OpenSubscription { kind: MediaKind::Audio, rtx_ssrc: Some(77), extensions: ExtensionIds::NONE, ..Rig::subscription(2) };
    rig.command(Command::OpenSubscription(Box::new(section)));
    rig.command(Command::Forward { subscription: SubscriptionId(2), track: Some(TrackId(1)), payload_types: vec![WITH_RTX] });
    let sent = turn(&mut rig, &publisher, 10, &[160, 161, 159]);
    assert_eq!(shapes(&mut viewer, &sent), [(160, 0), (161, 0), (159, 0)]);
    assert!(rig.events().iter().any(|event| matches!(event, Event::TrackStarted { .. })));
}

#[test]
fn packets_that_grow_by_a_byte_each_cost_no_more_than_their_neighbours() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = watch(&mut rig, 2, WITH_RTX);
    let lens: Vec<usize> = (0..60).map(|at| 900 + at).collect();
    let sent = turn(&mut rig, &publisher, 10, &lens);
    assert_eq!(sent.len(), 60);
    assert!(shapes(&mut viewer, &sent).iter().zip(&lens).all(|((media, padding), len)| media == len && *padding <= 27));
}
