//! The layer that each subscriber gets: by its wish, by what comes, by what its network takes.

mod common;

use std::time::Duration;

use common::{Client, Packet, Rig, Sent, media_to, protect, rtcp_to};
use pop_proto::control::{Codec, Extension, ExtensionIds, LayerWish, OpenSubscription, OpenTrack, OpenTransport, PayloadType};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::wire::rtp::RtpView;
use pop_proto::{Command, Event};
use pop_schemas::{SubscriptionId, TrackId};

const IDS: ExtensionIds = ExtensionIds::NONE
    .with(Extension::Mid, 1)
    .with(Extension::Rid, 2)
    .with(Extension::TransportCc, 3)
    .with(Extension::DependencyDescriptor, 4);

const RIDS: [&str; 3] = ["q", "h", "f"];

/// Milliseconds between two frames.
const FRAME_MS: u64 = 33;

/// One frame that a viewer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    at_ms: u64,
    /// The publisher's layer, which the payload tells.
    layer: u8,
    keyframe: bool,
    timestamp: u32,
    /// Picture id and TL0PICIDX of VP8; the descriptor's frame number of AV1, and the low bits of it. H.264 has none.
    numbers: Option<(u16, u8)>,
}

struct Viewer {
    client: Client,
    /// Indexes of its packets, as they came.
    indexes: Vec<u64>,
    frames: Vec<Frame>,
}

impl Viewer {
    fn receive(&mut self, codec: Codec, at_ms: u64, sent: &[Sent]) {
        for (index, header, payload) in media_to(&mut self.client, sent) {
            self.indexes.push(index);
            let view = RtpView::parse(&header).unwrap();
            let frame = Frame {
                at_ms,
                layer: *payload.last().unwrap(),
                keyframe: pop_proto::codec::is_keyframe_start(codec, &payload),
                timestamp: view.timestamp(),
                numbers: read_numbers(codec, &view, &payload),
            };
            if self.frames.last().is_none_or(|last| last.timestamp != frame.timestamp) {
                self.frames.push(frame);
            }
        }
    }

    fn layer(&self) -> u8 {
        self.frames.last().expect("something came").layer
    }

    fn frames_since(&self, at_ms: u64) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| frame.at_ms >= at_ms)
    }

    /// No hole and no repetition in any number, no timestamp that goes back, and each change of the layer at a keyframe.
    fn assert_continuous(&self) {
        assert!(self.indexes.windows(2).all(|pair| pair[1] == pair[0] + 1), "sequence numbers: {:?}", self.indexes);
        for pair in self.frames.windows(2) {
            let [before, frame] = pair else { unreachable!() };
            let ticks = frame.timestamp.wrapping_sub(before.timestamp) as i32;
            let passed = (frame.at_ms - before.at_ms) as i32 * 90;
            assert!(ticks > 0 && (ticks - passed).abs() <= 90 * 2 * FRAME_MS as i32, "{ticks} ticks: {before:?} {frame:?}");
            if let (Some((picture, tl0)), Some(numbers)) = (before.numbers, frame.numbers) {
                assert_eq!(numbers, (picture.wrapping_add(1) & 0x7fff, tl0.wrapping_add(1)), "{before:?} {frame:?}");
            }
            assert!(frame.layer == before.layer || frame.keyframe, "{before:?} {frame:?}");
        }
    }
}

fn read_numbers(codec: Codec, view: &RtpView<'_>, payload: &[u8]) -> Option<(u16, u8)> {
    match codec {
        Codec::Vp8 => Some((u16::from_be_bytes([payload[2], payload[3]]) & 0x7fff, payload[4])),
        Codec::Av1 => {
            let descriptor = view.extension(4).expect("the descriptor passes");
            Some((u16::from_be_bytes([descriptor[1], descriptor[2]]) & 0x7fff, descriptor[2]))
        }
        _ => None,
    }
}

/// A publisher of three layers, 30 frames a second each, and its viewers.
struct Call {
    rig: Rig,
    codec: Codec,
    publisher: Client,
    viewers: Vec<Viewer>,
    /// Bytes per frame of each layer; 0: it is paused.
    frame_len: [usize; 3],
    next: [u64; 3],
    frame: u32,
    /// Layers that a keyframe was asked of since they last made one.
    asked: [bool; 3],
    /// Keyframe requests of each layer.
    requests: [usize; 3],
}

impl Call {
    /// A call of viewers 2 and up, each with a wish.
    fn new(codec: Codec, order: &[u8], wishes: &[LayerWish]) -> Call {
        let mut rig = Rig::new();
        let publisher = rig.connect_with(OpenTransport { extensions: IDS, ..common::open_transport(1) });
        rig.command(Command::OpenTrack(Box::new(OpenTrack {
            ssrc: None,
            layers: RIDS.map(Into::into).into(),
            order: order.into(),
            payload_types: vec![PayloadType { number: 96, codec, rtx: None }],
            ..Rig::track(1)
        })));
        let mut call = Call {
            rig,
            codec,
            publisher,
            viewers: Vec::new(),
            frame_len: [300, 1_000, 4_000],
            // Each layer has numbers of its own, the second close to the end of its first round.
            next: [100, 65_500, 7_000],
            frame: 0,
            asked: [false; 3],
            requests: [0; 3],
        };
        for (at, wish) in wishes.iter().enumerate() {
            call.join(2 + at as u64, *wish);
        }
        call
    }

    fn join(&mut self, id: u64, wish: LayerWish) {
        let extensions = if self.codec == Codec::Av1 { IDS } else { ExtensionIds::NONE };
        let client = self.rig.connect_with(OpenTransport { extensions, ..common::open_transport(id) });
        let open = OpenSubscription { extensions, ..Rig::subscription(id) };
        self.rig.command(Command::OpenSubscription(Box::new(open)));
        self.wish(id, wish);
        self.rig.forward(id, Some(1));
        self.viewers.push(Viewer { client, indexes: Vec::new(), frames: Vec::new() });
    }

    fn wish(&mut self, id: u64, wish: LayerWish) {
        self.rig.command(Command::Wish { subscription: SubscriptionId(id), wish });
    }

    fn now_ms(&self) -> u64 {
        self.rig.now.as_millis()
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1_000 / FRAME_MS {
            (0..3).for_each(|layer| self.send_frame(layer));
            self.frame += 1;
            let sent = self.rig.sent();
            self.deliver(&sent);
            for _ in 0..3 {
                let sent = self.rig.pass(Duration::from_millis(10));
                self.deliver(&sent);
            }
            self.rig.now = self.rig.now + Duration::from_millis(FRAME_MS - 30);
        }
    }

    fn timestamp(&self, layer: usize) -> u32 {
        // Each encoder's clock starts elsewhere; one wraps soon.
        0xffff_0000u32.wrapping_mul(layer as u32 + 1).wrapping_add(90 * FRAME_MS as u32 * self.frame)
    }

    fn send_frame(&mut self, layer: usize) {
        let ssrc = 500 + layer as u32;
        if self.frame_len[layer] == 0 {
            return;
        }
        if self.frame.is_multiple_of(30) {
            let ntp = ((u64::from(self.frame) * FRAME_MS) << 32) / 1_000;
            let info = SenderInfo { ssrc, ntp, rtp_timestamp: self.timestamp(layer), packets: 0, octets: 0 };
            let report = self.publisher.rtcp(|c| c.sender_report(&info, &[]));
            self.rig.receive(&self.publisher, report);
        }
        let keyframe = self.frame == 0 || std::mem::take(&mut self.asked[layer]);
        let number = (20_000 * (1 + layer as u32) + self.frame) as u16;
        let descriptor = [[0xc0], [(number >> 8) as u8], [number as u8]].concat();
        let elements: [(u8, &[u8]); 3] = [(1, b"0"), (2, RIDS[layer].as_bytes()), (4, &descriptor)];
        let elements = if self.codec == Codec::Av1 { &elements[..] } else { &elements[..2] };
        let (mut left, mut begins) = (self.frame_len[layer], true);
        while left > 0 {
            let len = left.min(1_000);
            left -= len;
            let mut payload = vec![layer as u8; len.max(16)];
            let head = payload_head(self.codec, begins, keyframe, number, self.frame as u8);
            payload[..head.len()].copy_from_slice(&head);
            let timestamp = self.timestamp(layer);
            let packet = Packet { ssrc, payload_type: 96, index: self.next[layer], timestamp, elements, payload: &payload };
            self.rig.receive(&self.publisher, protect(&self.publisher, &packet));
            self.next[layer] += 1;
            begins = false;
        }
    }

    fn deliver(&mut self, sent: &[Sent]) {
        let now_ms = self.now_ms();
        self.viewers.iter_mut().for_each(|viewer| viewer.receive(self.codec, now_ms, sent));
        for compound in rtcp_to(&mut self.publisher, sent) {
            for packet in RtcpReader::new(&compound).unwrap() {
                if let RtcpPacket::Pli { media, .. } = packet {
                    self.asked[(media - 500) as usize] = true;
                    self.requests[(media - 500) as usize] += 1;
                }
            }
        }
    }
}

/// The first bytes of a payload.
fn payload_head(codec: Codec, begins: bool, keyframe: bool, picture: u16, tl0: u8) -> Vec<u8> {
    match codec {
        Codec::Vp8 => {
            let [high, low] = (picture | 0x8000).to_be_bytes();
            vec![0x80 | u8::from(begins) << 4, 0xc0, high, low, tl0, u8::from(!(keyframe && begins))]
        }
        // A sequence parameter set or a slice of another picture, each as a unit of its own.
        Codec::H264 => vec![if keyframe && begins { 0x67 } else { 0x61 }, 0x42],
        // One OBU element; N says that a coded video sequence begins.
        Codec::Av1 => vec![0x10 | u8::from(keyframe && begins) << 3, 0x0a, 0x01],
        _ => unreachable!("no test has it"),
    }
}

const fn up_to(spatial_max: u8) -> LayerWish {
    LayerWish { paused: false, spatial_max, temporal_max: u8::MAX, priority: u8::MAX }
}

const PAUSED: LayerWish = LayerWish { paused: true, ..up_to(u8::MAX) };

#[test]
fn three_subscribers_with_three_wishes_get_three_layers_and_no_number_shows_it() {
    for codec in [Codec::Vp8, Codec::H264, Codec::Av1] {
        let mut call = Call::new(codec, &[0, 1, 2], &[up_to(0), up_to(1), up_to(2)]);
        call.run(3);
        assert_eq!(call.viewers.iter().map(Viewer::layer).collect::<Vec<_>>(), [0, 1, 2], "{codec:?}");
        call.viewers.iter().for_each(Viewer::assert_continuous);
        // Each now wants what its neighbour has.
        for (id, rank) in [(2, 1), (3, 2), (4, 0)] {
            call.wish(id, up_to(rank));
        }
        call.run(3);
        assert_eq!(call.viewers.iter().map(Viewer::layer).collect::<Vec<_>>(), [1, 2, 0], "{codec:?}");
        for viewer in &call.viewers {
            viewer.assert_continuous();
            let changes = viewer.frames_since(2_900).map(|frame| frame.layer).collect::<Vec<_>>();
            assert_eq!(changes.windows(2).filter(|pair| pair[0] != pair[1]).count(), 1, "{codec:?} {changes:?}");
        }
    }
}

#[test]
fn a_layer_that_stops_gives_way_to_the_next_lower_and_takes_over_again_when_it_comes_back() {
    for says_goodbye in [false, true] {
        let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[up_to(0), up_to(1), up_to(2)]);
        call.run(3);
        let stopped_at = call.now_ms();
        call.frame_len[2] = 0;
        if says_goodbye {
            let bye = call.publisher.rtcp(|c| c.receiver_report(502, &[])?.bye(&[502]));
            call.rig.receive(&call.publisher, bye);
        }
        call.run(2);
        let first = call.viewers[2].frames_since(stopped_at).next().expect("another layer comes");
        assert_eq!(first.layer, 1);
        let waited = first.at_ms - stopped_at;
        assert!(waited < if says_goodbye { 150 } else { 700 }, "after {waited} ms");
        let back_at = call.now_ms();
        call.frame_len[2] = 4_000;
        call.run(2);
        let first = call.viewers[2].frames_since(back_at).find(|frame| frame.layer == 2).expect("the layer comes back");
        assert!(first.at_ms - back_at < 150, "after {} ms", first.at_ms - back_at);
        assert_eq!(call.viewers.iter().map(Viewer::layer).collect::<Vec<_>>(), [0, 1, 2], "the others keep theirs");
        for viewer in [&call.viewers[0], &call.viewers[1]] {
            viewer.assert_continuous();
        }
        assert!(call.viewers[2].indexes.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}

#[test]
fn when_no_layer_at_or_below_the_wish_comes_the_lowest_above_it_does() {
    let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[up_to(0)]);
    call.frame_len[0] = 0;
    call.run(2);
    assert_eq!(call.viewers[0].layer(), 1);
    call.frame_len[0] = 300;
    call.run(2);
    assert_eq!(call.viewers[0].layer(), 0);
    call.viewers[0].assert_continuous();
}

#[test]
fn a_paused_section_sends_nothing_and_goes_on_at_a_keyframe_over_every_forward() {
    let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[up_to(2)]);
    call.run(2);
    call.wish(2, PAUSED);
    let paused_at = call.now_ms();
    call.run(2);
    call.rig.forward(2, Some(1));
    call.run(1);
    assert_eq!(call.viewers[0].frames_since(paused_at).count(), 0);
    let requests = call.requests;
    call.run(2);
    assert_eq!(call.requests, requests, "and asks for nothing");
    call.wish(2, up_to(1));
    let resumed_at = call.now_ms();
    call.run(2);
    let first = call.viewers[0].frames_since(resumed_at).next().expect("it goes on");
    assert!(first.keyframe && first.at_ms - resumed_at < 150, "{first:?}");
    assert_eq!(first.layer, 1);
    call.viewers[0].assert_continuous();
}

#[test]
fn a_keyframe_is_asked_for_once_for_all_who_change_to_a_layer() {
    let wishes = [up_to(0); 20];
    let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &wishes);
    call.run(2);
    let requests = call.requests;
    (2..22).for_each(|id| call.wish(id, up_to(2)));
    call.run(3);
    assert!(call.viewers.iter().all(|viewer| viewer.layer() == 2));
    assert_eq!(call.requests, [requests[0], requests[1], requests[2] + 1]);
}

#[test]
fn what_nobody_takes_is_not_asked_for_again() {
    let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[up_to(1)]);
    call.run(3);
    let nacks = call.rig.core.counters().rtcp_nack_out;
    call.next[0] += 1;
    call.next[2] += 1;
    call.run(1);
    assert_eq!(call.rig.core.counters().rtcp_nack_out, nacks, "of the others' layers nothing");
    call.next[1] += 1;
    call.run(1);
    assert!(call.rig.core.counters().rtcp_nack_out > nacks);
    // A tap takes all of them.
    call.rig.command(Command::Tap { track: TrackId(1), tap: Some(1) });
    let nacks = call.rig.core.counters().rtcp_nack_out;
    call.next[2] += 1;
    call.run(1);
    assert!(call.rig.core.counters().rtcp_nack_out > nacks);
}

#[test]
fn figures_tell_each_sections_layer_counted_from_the_lowest() {
    // The publisher names its highest layer first.
    let mut call = Call::new(Codec::Vp8, &[2, 1, 0], &[up_to(0), up_to(1), up_to(2)]);
    call.frame_len = [4_000, 1_000, 300];
    call.run(3);
    assert_eq!(call.viewers.iter().map(Viewer::layer).collect::<Vec<_>>(), [2, 1, 0]);
    let mut layers = [None; 3];
    let mut best = None;
    for event in call.rig.events() {
        match event {
            Event::SubscriptionStats { subscription, stats } => layers[subscription.0 as usize - 2] = Some(stats.layer),
            Event::TrackStats { stats, .. } => best = Some(stats.layer),
            _ => {}
        }
    }
    assert_eq!(layers, [Some(0), Some(1), Some(2)]);
    assert_eq!(best, Some(0), "the best that comes, by its place");
}

#[test]
fn without_an_order_the_bitrate_ranks() {
    let mut call = Call::new(Codec::Vp8, &[], &[up_to(0), up_to(1), LayerWish::default()]);
    call.frame_len = [1_000, 4_000, 300];
    call.run(4);
    assert_eq!(call.viewers.iter().map(Viewer::layer).collect::<Vec<_>>(), [2, 0, 1]);
    call.viewers.iter().for_each(Viewer::assert_continuous);
}
