//! Layers inside one stream, by clients that speak real SRTP: a wish, the packets that come of it, repairs and keyframe requests.

mod common;
#[path = "../proto/tests/common/svc.rs"]
mod svc;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Client, Packet, Rig, Sent, media_to, protect, rtcp_to};
use pop_proto::control::{
    Codec, Extension, ExtensionIds, LayerWish, OpenSubscription, OpenTrack, OpenTransport, PayloadType, PayloadTypeMap,
};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_proto::wire::rtp::RtpView;
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId};
use svc::{Encoder, Frame, Prediction};

const THEIRS: ExtensionIds = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::DependencyDescriptor, 2);
const OURS: ExtensionIds = ExtensionIds::NONE.with(Extension::Mid, 5).with(Extension::DependencyDescriptor, 6);

struct Call {
    rig: Rig,
    publisher: Client,
    viewer: Client,
    encoder: Encoder,
    next: u64,
    /// Packets of the viewer's SSRC by their number: header and payload.
    got: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
    plis: usize,
}

impl Call {
    fn new(codec: Codec, prediction: Prediction, rtx: bool) -> Call {
        Call::with(codec, prediction, rtx, OURS)
    }

    fn with(codec: Codec, prediction: Prediction, rtx: bool, extensions: ExtensionIds) -> Call {
        let mut rig = Rig::new();
        let publisher = rig.connect_with(OpenTransport { extensions: THEIRS, transport_cc: false, ..common::open_transport(1) });
        let payload_types = vec![PayloadType { number: 96, codec, rtx: Some(97) }];
        rig.command(Command::OpenTrack(Box::new(OpenTrack { payload_types, ..Rig::track(1) })));
        let viewer = rig.connect(2);
        let subscription = OpenSubscription { extensions, rtx_ssrc: rtx.then_some(3), ..Rig::subscription(2) };
        rig.command(Command::OpenSubscription(Box::new(subscription)));
        let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: rtx.then_some(103), unwrap_red: false }];
        rig.command(Command::Forward { subscription: SubscriptionId(2), track: Some(TrackId(1)), payload_types });
        Call { rig, publisher, viewer, encoder: Encoder::new(3, 3, prediction), next: 100, got: BTreeMap::new(), plis: 0 }
    }

    /// The viewer asks for a keyframe `times` times, so far apart.
    fn plead(&mut self, times: usize, apart: Duration) {
        for _ in 0..times {
            let pli = self.viewer.rtcp(|c| c.pli(0, 2));
            let sent = self.rig.exchange(self.viewer.path, pli);
            self.take(&sent);
            let sent = self.rig.pass(apart);
            self.take(&sent);
        }
    }

    fn wish(&mut self, spatial_max: u8, temporal_max: u8) {
        let wish = LayerWish { spatial_max, temporal_max, ..LayerWish::default() };
        self.rig.command(Command::Wish { subscription: SubscriptionId(2), wish });
    }

    /// Two packets of each frame; the payload is noise to everybody but the decoder.
    fn packets(&mut self, frames: &[Frame]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for frame in frames {
            for starts in [true, false] {
                let descriptor = frame.descriptor(starts, !starts);
                packets.push(self.packet(frame, !starts, &descriptor));
                self.next += 1;
            }
        }
        packets
    }

    fn packet(&self, frame: &Frame, ends: bool, descriptor: &[u8]) -> Vec<u8> {
        let payload = [&self.next.to_be_bytes()[..], &[0xa7; 300]].concat();
        if descriptor.len() > 16 {
            return protect_two_byte(&self.publisher, self.next, 3_000 * frame.picture, ends && frame.is_last, descriptor, &payload);
        }
        let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, descriptor)];
        let timestamp = 3_000 * frame.picture;
        protect(&self.publisher, &Packet { ssrc: 1, payload_type: 96, index: self.next, timestamp, elements: &elements, payload: &payload })
    }

    /// Takes what was sent; tells what the publisher was asked for.
    fn take(&mut self, sent: &[Sent]) {
        for (index, header, payload) in media_to(&mut self.viewer, sent) {
            if RtpView::parse(&header).unwrap().ssrc() == 2 {
                let before = self.got.insert(index, (header, payload));
                assert!(before.is_none(), "number {index} came twice");
            }
        }
        for compound in rtcp_to(&mut self.publisher, sent) {
            self.plis += RtcpReader::new(&compound).unwrap().filter(|packet| matches!(packet, RtcpPacket::Pli { .. })).count();
        }
    }

    /// Sends `pictures` of the encoder, 30 a second; a keyframe that is asked for comes. Returns the frames that the viewer got whole.
    fn run(&mut self, pictures: usize) -> Vec<(u8, u8)> {
        let first = self.got.keys().last().map_or(0, |last| last + 1);
        let mut layers = BTreeMap::new();
        for _ in 0..pictures {
            let frames = self.encoder.picture();
            frames.iter().for_each(|frame| {
                layers.insert(frame.number, (frame.spatial, frame.temporal));
            });
            for packet in self.packets(&frames) {
                let sent = self.rig.exchange(self.publisher.path, packet);
                self.take(&sent);
            }
            let before = self.plis;
            let sent = self.rig.pass(Duration::from_millis(30));
            self.take(&sent);
            self.encoder.key_wanted |= self.plis > before;
        }
        let whole = self.got.range(first..).filter_map(|(_, (header, _))| {
            let view = RtpView::parse(header).unwrap();
            let descriptor = view.extension(6).expect("it passes");
            (descriptor[0] & 0x40 != 0).then(|| layers[&u16::from_be_bytes([descriptor[1], descriptor[2]])])
        });
        whole.collect()
    }

    fn target(&mut self) -> Option<(u8, u8)> {
        self.rig.pass(Duration::from_secs(1));
        let stats = self.rig.events().into_iter().filter_map(|event| match event {
            Event::SubscriptionStats { stats, .. } => Some((stats.layer, stats.temporal)),
            _ => None,
        });
        stats.last()
    }
}

/// A packet whose descriptor needs the two-byte form of header extensions.
fn protect_two_byte(client: &Client, index: u64, timestamp: u32, marker: bool, descriptor: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 12];
    pop_proto::wire::rtp::write_header(&mut header, marker, 96, index as u16, timestamp, 1);
    header[0] |= 0x10;
    header.extend_from_slice(&[0x10, 0, 0, 0, 2, descriptor.len() as u8]);
    header.extend_from_slice(descriptor);
    header.resize(header.len().next_multiple_of(4), 0);
    let words = (header.len() / 4 - 4) as u16;
    header[14..16].copy_from_slice(&words.to_be_bytes());
    let mut out = vec![0; 1_500];
    let len = client.sender.protect_rtp(index, &header, payload, &mut out).unwrap();
    out.truncate(len);
    out
}

#[test]
fn a_wish_chooses_among_the_layers_of_an_encrypted_stream_without_a_keyframe_where_none_is_needed() {
    let mut call = Call::new(Codec::Av1, Prediction::Full, false);
    let all = call.run(12);
    assert_eq!(all.len(), 36, "nothing of the payload is read: it could be encrypted from end to end");
    let plis = call.plis;
    call.wish(0, 0);
    let lowest = call.run(12);
    assert!(lowest.iter().all(|layers| *layers == (0, 0)) && lowest.len() == 3, "{lowest:?}");
    assert_eq!(call.plis, plis, "a lower layer that the higher is built on needs no keyframe");
    assert_eq!(call.target(), Some((0, 0)));
    assert_eq!(call.rig.drops(DropReason::LayerNotWanted), 2 * (36 - 3));
    call.wish(1, 2);
    let middle = call.run(12);
    assert!(middle.iter().any(|(spatial, _)| *spatial == 1) && middle.iter().all(|(spatial, _)| *spatial <= 1), "{middle:?}");
    assert_eq!(call.plis, plis + 1, "a higher one does, once");
    call.run(30);
    assert_eq!(call.plis, plis + 1);
    assert_eq!(call.target(), Some((1, 2)));
    let numbers: Vec<u64> = call.got.keys().copied().collect();
    assert!(numbers.iter().copied().eq(100..100 + numbers.len() as u64), "no holes");
}

#[test]
fn layers_that_stand_alone_between_keyframes_change_at_a_keyframe_that_is_asked_for_once() {
    let mut call = Call::new(Codec::Vp9, Prediction::Key, true);
    let top = call.run(12);
    let lower = top.iter().filter(|(spatial, _)| *spatial < 2).count();
    assert!(lower <= 4 && top.len() == 12 + lower, "the lower ones of the key pictures alone, the first of which nobody waited for");
    for spatial in [0, 2, 1] {
        let plis = call.plis;
        call.wish(spatial, u8::MAX);
        let got = call.run(60);
        assert_eq!(call.plis, plis + 1, "layer {spatial}");
        let settled = got.iter().rev().take(20).all(|(of, _)| *of == spatial);
        assert!(settled, "layer {spatial}: {got:?}");
    }
}

#[test]
fn a_nack_finds_its_packet_behind_what_was_left_out() {
    for rtx in [false, true] {
        let mut call = Call::new(Codec::Av1, Prediction::Full, rtx);
        call.run(6);
        call.wish(0, 1);
        call.run(20);
        let (index, first) = call.got.iter().rev().nth(3).map(|(index, first)| (*index, first.clone())).unwrap();
        let nack = call.viewer.rtcp(|c| c.nack(0, 2, [index as u16]));
        let sent = call.rig.exchange(call.viewer.path, nack);
        if rtx {
            let [(_, header, payload)] = &media_to(&mut call.viewer, &sent)[..] else { panic!("{sent:?}") };
            assert_eq!(RtpView::parse(header).unwrap().ssrc(), 3);
            assert_eq!((&payload[..2], &payload[2..]), (&(index as u16).to_be_bytes()[..], &first.1[..]));
        } else {
            // To the last bit: the viewer's replay window knows it already.
            let [repair] = &sent[..] else { panic!("{sent:?}") };
            let header_len = first.0.len();
            assert_eq!(repair.bytes[..header_len], first.0[..]);
        }
    }
}

#[test]
fn what_was_missing_when_its_neighbours_were_decided_on_fills_its_number() {
    let mut call = Call::new(Codec::Av1, Prediction::Full, false);
    call.run(6);
    call.wish(0, 2);
    call.run(6);
    let frames = call.encoder.picture();
    let packets = call.packets(&frames);
    let next = call.got.keys().last().unwrap() + 1;
    // Of the picture's six packets the last one of the base, both of the middle and the first of the top are late.
    for at in [0, 5] {
        let sent = call.rig.exchange(call.publisher.path, packets[at].clone());
        call.take(&sent);
    }
    let frames = call.encoder.picture();
    let following = call.packets(&frames);
    let sent = call.rig.exchange(call.publisher.path, following[0].clone());
    call.take(&sent);
    let holes = |call: &Call| {
        let newest = *call.got.keys().last().unwrap();
        (next..newest).filter(|index| !call.got.contains_key(index)).collect::<Vec<_>>()
    };
    assert_eq!(holes(&call), [next + 1, next + 2, next + 3, next + 4], "nobody knows yet which of them are wanted");
    for at in [4, 2, 1, 3] {
        let sent = call.rig.exchange(call.publisher.path, packets[at].clone());
        call.take(&sent);
    }
    assert_eq!(holes(&call), []);
    let lens: Vec<usize> = call.got.range(next..next + 5).map(|(_, (_, payload))| payload.len()).collect();
    assert_eq!(lens, [308, 308, 0, 0, 0], "what is not wanted is empty");
}

#[test]
fn a_malformed_descriptor_is_counted_and_its_packet_passes() {
    let mut call = Call::new(Codec::Av1, Prediction::Full, false);
    call.run(3);
    let frame = &call.encoder.picture()[0];
    let mut descriptor = frame.descriptor(true, true);
    descriptor.truncate(4);
    let packet = call.packet(frame, true, &descriptor);
    let sent = call.rig.exchange(call.publisher.path, packet);
    assert_eq!(media_to(&mut call.viewer, &sent).len(), 1);
    assert_eq!(call.rig.core.counters().descriptors_malformed, 1);
}

#[test]
fn a_network_that_takes_less_gets_fewer_layers_of_the_stream_and_more_when_it_recovers() {
    let mut call = Call::new(Codec::Av1, Prediction::Full, false);
    call.run(60);
    assert_eq!(call.target(), Some((2, 2)));
    // Each spatial layer takes 175 kbit/s, the lowest temporal one a quarter of it.
    for (bitrate, target) in [(400_000, (1, 2)), (150_000, (0, 0)), (1, (0, 0))] {
        for _ in 0..4 {
            let estimate = call.viewer.rtcp(|c| c.receiver_report(9, &[])?.remb(9, bitrate, &[2]));
            call.rig.receive(&call.viewer, estimate);
            call.run(33);
        }
        assert_eq!(call.target(), Some(target), "{bitrate}");
    }
    for _ in 0..40 {
        let checked = call.viewer.check(common::PWD);
        call.rig.exchange(call.viewer.path, checked);
        let estimate = call.viewer.rtcp(|c| c.receiver_report(9, &[])?.remb(9, 9_000_000, &[2]));
        call.rig.receive(&call.viewer, estimate);
        call.run(33);
    }
    assert_eq!(call.target(), Some((2, 2)));
    let numbers: Vec<u64> = call.got.keys().copied().collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no hole shows it");
}

#[test]
fn who_cannot_put_the_layers_of_av1_together_gets_the_lowest_after_asking_and_asking() {
    let without = ExtensionIds::NONE.with(Extension::Mid, 5);
    let (often, seldom) = (Duration::from_millis(250), Duration::from_millis(1_000));
    for (codec, extensions, apart, is_helped) in [
        (Codec::Av1, without, often, true),
        (Codec::Av1, without, seldom, false),
        (Codec::Av1, OURS, often, false),
        (Codec::Vp9, without, often, false),
    ] {
        let mut call = Call::with(codec, Prediction::Full, false, extensions);
        let bytes = |call: &mut Call| {
            let before = call.got.len();
            for _ in 0..8 {
                let frames = call.encoder.picture();
                for packet in call.packets(&frames) {
                    let sent = call.rig.exchange(call.publisher.path, packet);
                    call.take(&sent);
                }
            }
            call.got.len() - before
        };
        assert_eq!(bytes(&mut call), 8 * 6);
        call.plead(6, apart);
        bytes(&mut call);
        assert_eq!(bytes(&mut call), if is_helped { 8 * 2 } else { 8 * 6 }, "{codec:?} {apart:?}");
    }
}
