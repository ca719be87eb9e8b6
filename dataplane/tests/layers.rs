//! The layer that each subscriber gets: by its wish, by what comes, by what its network takes.

mod common;

use std::time::Duration;

use common::{Client, PWD, Packet, Rig, Sent, media_to, protect, rtcp_to};
use pop_proto::control::{
    Codec, Extension, ExtensionIds, LayerWish, MediaKind, OpenSubscription, OpenTrack, OpenTransport, PayloadType, PayloadTypeMap,
};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::rtcp::{ReportBlock, RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::wire::rtp::RtpView;
use pop_proto::{Command, Event};
use pop_schemas::{SubscriptionId, Time, TrackId, TransportId};

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

/// How a viewer tells of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    Feedback,
    Reports,
    Estimate,
}

/// The way to a viewer: what exceeds `capacity` bit/s and a tenth of a second's queue is lost.
struct Way {
    tells: Tells,
    capacity: u64,
    /// Bits that it takes now.
    credit: u64,
    recorder: TwccRecorder,
    /// Packets that were sent and lost since the last report.
    sent: u64,
    lost: u64,
    arrived_bits: u64,
    /// The newest sequence number that arrived, with its cycles.
    newest: u32,
}

impl Way {
    fn new(tells: Tells, capacity: u64) -> Way {
        Way { tells, capacity, credit: capacity / 10, recorder: TwccRecorder::new(), sent: 0, lost: 0, arrived_bits: 0, newest: 0 }
    }

    /// Ten milliseconds pass.
    fn pass(&mut self) {
        self.credit = (self.credit + self.capacity / 100).min((self.capacity / 10).max(12_000));
    }

    fn take(&mut self, now: Time, view: &RtpView<'_>, bits: u64) {
        self.sent += 1;
        self.newest = self.newest.max(u32::from(view.sequence()));
        let Some(left) = self.credit.checked_sub(bits) else {
            self.lost += 1;
            return;
        };
        self.credit = left;
        self.arrived_bits += bits;
        if let Some(sequence) = view.transport_sequence(3) {
            self.recorder.record(sequence, now);
        }
    }

    /// What the viewer's browser sends once a second, and feedback whenever it is due.
    fn tell(&mut self, now: Time, client: &mut Client, second: bool) -> Option<Vec<u8>> {
        let ssrc = client.id as u32;
        match self.tells {
            Tells::Feedback => {
                let mut compound = vec![0; 1_500];
                let len = self.recorder.poll_feedback(now, 9, ssrc, &mut compound)?;
                let len = client.sender.protect_rtcp(&mut compound, len).unwrap();
                compound.truncate(len);
                Some(compound)
            }
            _ if !second => None,
            Tells::Reports => {
                let fraction_lost = (256 * self.lost / self.sent.max(1)).min(255) as u8;
                (self.sent, self.lost) = (0, 0);
                let block = ReportBlock { ssrc, fraction_lost, highest_sequence: self.newest, ..ReportBlock::default() };
                Some(client.rtcp(|c| c.receiver_report(9, &[block])))
            }
            Tells::Estimate => {
                // What arrived, and half of it more while nothing was lost.
                let arrived = std::mem::take(&mut self.arrived_bits);
                let estimate = if std::mem::take(&mut self.lost) > 0 { arrived * 85 / 100 } else { arrived * 3 / 2 + 10_000 };
                Some(client.rtcp(|c| c.receiver_report(9, &[])?.remb(9, estimate, &[ssrc])))
            }
        }
    }
}

struct Viewer {
    client: Client,
    way: Option<Way>,
    /// Indexes of the packets that are sent to it.
    indexes: Vec<u64>,
    frames: Vec<Frame>,
}

impl Viewer {
    fn receive(&mut self, codec: Codec, now: Time, sent: &[Sent]) {
        let at_ms = now.as_millis();
        for (index, header, payload) in media_to(&mut self.client, sent) {
            self.indexes.push(index);
            if let Some(way) = &mut self.way {
                way.take(now, &RtpView::parse(&header).unwrap(), 8 * (header.len() + payload.len()) as u64);
            }
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
    /// Each second frame of VP8 is of a higher temporal layer.
    temporal: bool,
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
        let mut call = Call::open(codec, RIDS.map(Into::into).into(), order);
        for (at, wish) in wishes.iter().enumerate() {
            call.join(2 + at as u64, *wish);
        }
        call
    }

    /// A call of nobody yet.
    fn open(codec: Codec, layers: Vec<Box<str>>, order: &[u8]) -> Call {
        let mut rig = Rig::new();
        let publisher = rig.connect_with(OpenTransport { extensions: IDS, ..common::open_transport(1) });
        rig.command(Command::OpenTrack(Box::new(OpenTrack {
            ssrc: None,
            layers,
            order: order.into(),
            payload_types: vec![PayloadType { number: 96, codec, rtx: None }],
            ..Rig::track(1)
        })));
        Call {
            rig,
            codec,
            publisher,
            viewers: Vec::new(),
            frame_len: [300, 1_000, 4_000],
            temporal: false,
            // Each layer has numbers of its own, the second close to the end of its first round.
            next: [100, 65_500, 7_000],
            frame: 0,
            asked: [false; 3],
            requests: [0; 3],
        }
    }

    fn join(&mut self, id: u64, wish: LayerWish) {
        self.join_by(id, wish, None);
    }

    fn join_by(&mut self, id: u64, wish: LayerWish, way: Option<Way>) {
        let extensions = if self.codec == Codec::Av1 || way.is_some() { IDS } else { ExtensionIds::NONE };
        let client = self.rig.connect_with(OpenTransport { extensions, ..common::open_transport(id) });
        let open = OpenSubscription { extensions, ..Rig::subscription(id) };
        self.rig.command(Command::OpenSubscription(Box::new(open)));
        self.wish(id, wish);
        self.rig.forward(id, Some(1));
        self.viewers.push(Viewer { client, way, indexes: Vec::new(), frames: Vec::new() });
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
            for tick in 0..3 {
                let sent = self.rig.pass(Duration::from_millis(10));
                self.deliver(&sent);
                self.tell(tick == 0 && self.frame.is_multiple_of(30));
            }
            self.rig.now = self.rig.now + Duration::from_millis(FRAME_MS - 30);
        }
    }

    fn tell(&mut self, second: bool) {
        for viewer in &mut self.viewers {
            if second {
                self.rig.receive(&viewer.client, viewer.client.check(PWD));
            }
            let Some(way) = &mut viewer.way else { continue };
            way.pass();
            if let Some(datagram) = way.tell(self.rig.now, &mut viewer.client, second) {
                self.rig.receive(&viewer.client, datagram);
            }
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
        // A keyframe is of the lowest temporal layer.
        let may_be = !self.temporal || self.frame.is_multiple_of(2);
        let keyframe = self.frame == 0 || (may_be && std::mem::take(&mut self.asked[layer]));
        let number = (20_000 * (1 + layer as u32) + self.frame) as u16;
        let descriptor = [[0xc0], [(number >> 8) as u8], [number as u8]].concat();
        let elements: [(u8, &[u8]); 3] = [(1, b"0"), (2, RIDS[layer].as_bytes()), (4, &descriptor)];
        let elements = if self.codec == Codec::Av1 { &elements[..] } else { &elements[..2] };
        let (mut left, mut begins) = (self.frame_len[layer], true);
        while left > 0 {
            let len = left.min(1_000);
            left -= len;
            let mut payload = vec![layer as u8; len.max(16)];
            let mut head = payload_head(self.codec, begins, keyframe, number, self.frame as u8);
            if self.temporal {
                let higher = self.frame as u8 % 2;
                // L and T besides I; TID, and Y: it is built on the lowest layer alone.
                (head[1], head[4]) = (0xe0, self.frame as u8 / 2);
                head.insert(5, higher << 6 | 0x20);
            }
            payload[..head.len()].copy_from_slice(&head);
            let timestamp = self.timestamp(layer);
            let packet = Packet { ssrc, payload_type: 96, index: self.next[layer], timestamp, elements, payload: &payload };
            self.rig.receive(&self.publisher, protect(&self.publisher, &packet));
            self.next[layer] += 1;
            begins = false;
        }
    }

    fn deliver(&mut self, sent: &[Sent]) {
        let now = self.rig.now;
        self.viewers.iter_mut().for_each(|viewer| viewer.receive(self.codec, now, sent));
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
    // The publisher names its highest layer first; that it brings the least does not matter then.
    let mut call = Call::new(Codec::Vp8, &[2, 1, 0], &[up_to(0), up_to(1), up_to(2)]);
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

/// Layers 0, 1 and 2 take about 75, 245 and 970 kbit/s.
const MIDDLE: u64 = 500_000;
const PLENTY: u64 = 5_000_000;
const NOTHING: u64 = 45_000;

#[test]
fn a_network_that_takes_less_gets_a_lower_layer_and_when_it_recovers_the_top_again() {
    for tells in [Tells::Feedback, Tells::Reports, Tells::Estimate] {
        let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[LayerWish::default()]);
        call.join_by(3, LayerWish::default(), Some(Way::new(tells, PLENTY)));
        call.run(10);
        assert_eq!(call.viewers[1].layer(), 2, "{tells:?}");
        call.viewers[1].way.as_mut().unwrap().capacity = MIDDLE;
        let throttled_at = call.now_ms();
        call.run(40);
        let since = |call: &Call, at| call.viewers[1].frames_since(at).copied().collect::<Vec<_>>();
        let frames = since(&call, throttled_at);
        let lowered = frames.iter().find(|frame| frame.layer < 2).expect("it gets less");
        assert!(lowered.at_ms - throttled_at < 3_500, "{tells:?}: after {} ms", lowered.at_ms - throttled_at);
        let top = frames.iter().filter(|frame| frame.layer == 2).count();
        assert!(top * 4 < frames.len(), "{tells:?}: {top} of {} frames were too much", frames.len());
        let middle = frames.iter().filter(|frame| frame.layer == 1).count();
        assert!(middle * 3 > frames.len() * 2, "{tells:?}: {middle} of {} frames used what there was", frames.len());
        call.viewers[1].way.as_mut().unwrap().capacity = PLENTY;
        call.run(70);
        let recovered_at = call.now_ms();
        call.run(20);
        assert!(since(&call, recovered_at).iter().all(|frame| frame.layer == 2), "{tells:?}: and stays");
        call.viewers.iter().for_each(Viewer::assert_continuous);
        let layers: Vec<_> = call.viewers[0].frames_since(3_000).map(|frame| frame.layer).collect();
        assert!(layers.iter().all(|layer| *layer == 2), "{tells:?}: nobody else notices");
    }
}

#[test]
fn a_network_that_does_not_even_take_the_lowest_layer_gets_nothing_and_figures_say_so() {
    let mut call = Call::new(Codec::Vp8, &[0, 1, 2], &[]);
    call.join_by(2, LayerWish::default(), Some(Way::new(Tells::Feedback, PLENTY)));
    call.run(5);
    let congested = |call: &mut Call| {
        let events = call.rig.events().into_iter().filter_map(|event| match event {
            Event::SubscriptionStats { stats, .. } => Some(stats.congested),
            _ => None,
        });
        events.collect::<Vec<_>>()
    };
    assert!(congested(&mut call).iter().all(|congested| !congested));
    call.viewers[0].way.as_mut().unwrap().capacity = NOTHING;
    let throttled_at = call.now_ms();
    call.run(20);
    let told = congested(&mut call);
    assert!(told.contains(&true), "{told:?}");
    let frames = call.viewers[0].frames_since(throttled_at + 5_000).count();
    assert!(frames < 15 * 30 / 3, "{frames} frames of 450");
    call.viewers[0].way.as_mut().unwrap().capacity = PLENTY;
    call.run(90);
    assert_eq!((call.viewers[0].layer(), congested(&mut call).last()), (2, Some(&false)));
    call.viewers[0].assert_continuous();
}

/// A client with several sections: what each gets, by its payloads.
struct Shared {
    rig: Rig,
    publisher: Client,
    client: Client,
    way: Way,
    /// (when, SSRC, layer) of each packet.
    got: Vec<(u64, u32, u8)>,
    /// What a section of audio was sent.
    next: [u64; 4],
    frame: u32,
}

impl Shared {
    /// Client 2 watches track 1 by a section for each wish, SSRCs 2 and up, and hears track 9 by SSRC 90.
    fn new(wishes: &[LayerWish], capacity: u64) -> Shared {
        let mut rig = Rig::new();
        let publisher = rig.connect_with(OpenTransport { extensions: IDS, ..common::open_transport(1) });
        let of = |mid: &str| OpenTrack { ssrc: None, mid: mid.into(), transport: TransportId(1), ..Rig::track(1) };
        rig.command(Command::OpenTrack(Box::new(OpenTrack { layers: RIDS.map(Into::into).into(), order: vec![0, 1, 2], ..of("0") })));
        rig.command(Command::OpenTrack(Box::new(OpenTrack {
            track: TrackId(9),
            kind: MediaKind::Audio,
            payload_types: vec![PayloadType { number: 111, codec: Codec::Opus, rtx: None }],
            ..of("1")
        })));
        let client = rig.connect_with(OpenTransport { extensions: IDS, ..common::open_transport(2) });
        let section = |id: u64| OpenSubscription { transport: TransportId(2), extensions: IDS, ..Rig::subscription(id) };
        for (at, wish) in wishes.iter().enumerate() {
            let id = 2 + at as u64;
            rig.command(Command::OpenSubscription(Box::new(section(id))));
            rig.command(Command::Wish { subscription: SubscriptionId(id), wish: *wish });
            rig.forward(id, Some(1));
        }
        rig.command(Command::OpenSubscription(Box::new(OpenSubscription { kind: MediaKind::Audio, ..section(90) })));
        let payload_types = vec![PayloadTypeMap { from: 111, to: 111, rtx: None, unwrap_red: false }];
        rig.command(Command::Forward { subscription: SubscriptionId(90), track: Some(TrackId(9)), payload_types });
        Shared { rig, publisher, client, way: Way::new(Tells::Feedback, capacity), got: Vec::new(), next: [100; 4], frame: 0 }
    }

    fn run(&mut self, seconds: u64) {
        self.run_ms(1_000 * seconds);
    }

    fn run_ms(&mut self, duration_ms: u64) {
        for _ in 0..duration_ms / 10 {
            if self.frame.is_multiple_of(3) {
                self.send_video();
            }
            if self.frame.is_multiple_of(2) {
                self.send(3, 509, 111, b"1", &[7; 80]);
            }
            if self.frame.is_multiple_of(100) {
                self.rig.receive(&self.client, self.client.check(PWD));
            }
            self.frame += 1;
            let sent = [self.rig.sent(), self.rig.pass(Duration::from_millis(10))].concat();
            let now = self.rig.now;
            for (_, header, payload) in media_to(&mut self.client, &sent) {
                let view = RtpView::parse(&header).unwrap();
                self.way.take(now, &view, 8 * (header.len() + payload.len()) as u64);
                self.got.push((now.as_millis(), view.ssrc(), *payload.last().unwrap()));
            }
            self.way.pass();
            if let Some(feedback) = self.way.tell(now, &mut self.client, false) {
                self.rig.receive(&self.client, feedback);
            }
        }
    }

    /// A frame of each layer; each tenth is a keyframe.
    fn send_video(&mut self) {
        for (layer, len) in [300, 1_000, 4_000].into_iter().enumerate() {
            for packet in 0..len / 1_001 + 1 {
                let mut payload = vec![layer as u8; len.min(1_000)];
                let begins = packet == 0;
                let number = self.frame as u16 / 3;
                let head = payload_head(Codec::Vp8, begins, number.is_multiple_of(10), number, self.frame as u8);
                payload[..head.len()].copy_from_slice(&head);
                self.send(layer, 500 + layer as u32, 96, b"0", &payload);
            }
        }
    }

    fn send(&mut self, stream: usize, ssrc: u32, payload_type: u8, mid: &[u8], payload: &[u8]) {
        let rid = RIDS.get(stream).map_or(&b"-"[..], |rid| rid.as_bytes());
        let elements: [(u8, &[u8]); 2] = [(1, mid), (2, rid)];
        let (index, timestamp) = (self.next[stream], 900 * self.frame);
        self.next[stream] += 1;
        let packet = Packet { ssrc, payload_type, index, timestamp, elements: &elements, payload };
        self.rig.receive(&self.publisher, protect(&self.publisher, &packet));
    }

    /// The layers that a section got in the last seconds, each once, the most first.
    fn layers(&self, ssrc: u32, seconds: u64) -> Vec<u8> {
        let since = self.rig.now.as_millis() - 1_000 * seconds;
        let of = |layer: u8| self.got.iter().filter(|(at, s, l)| *at >= since && *s == ssrc && *l == layer).count();
        let mut layers: Vec<u8> = [0, 1, 2, 7].into_iter().filter(|layer| of(*layer) > 0).collect();
        layers.sort_by_key(|layer| std::cmp::Reverse(of(*layer)));
        layers
    }
}

#[test]
fn the_important_section_gets_the_better_layer_and_everybody_the_lowest_first() {
    let important = LayerWish { priority: 1, ..LayerWish::default() };
    let mut call = Shared::new(&[LayerWish::default(), important, LayerWish::default()], 3 * PLENTY);
    call.run(5);
    assert_eq!([2, 3, 4].map(|ssrc| call.layers(ssrc, 1)), [[2]; 3]);
    // Layers take 85, 270 and 1,070 kbit/s, audio 40.
    call.way.capacity = 500_000;
    call.run(7);
    assert_eq!([2, 3, 4].map(|ssrc| call.layers(ssrc, 1)), [[0], [1], [0]]);
    assert_eq!(call.layers(90, 1), [7]);
    assert_eq!(call.rig.core.gauges().subscriptions, 4);
}

#[test]
fn audio_goes_on_when_there_is_no_room_for_any_picture() {
    let mut call = Shared::new(&[LayerWish::default(), LayerWish { priority: 1, ..LayerWish::default() }], PLENTY);
    call.run(5);
    call.way.capacity = 120_000;
    call.run(12);
    let heard = call.got.iter().filter(|(at, ssrc, _)| *ssrc == 90 && *at >= call.rig.now.as_millis() - 2_000).count();
    assert!(heard >= 98, "{heard} of 100 packets");
    assert_eq!((call.layers(2, 2), call.layers(3, 2)), (vec![], vec![0]), "the important one is left");
}

#[test]
fn a_wish_takes_its_share_at_once_while_there_is_a_bound() {
    let mut call = Shared::new(&[LayerWish::default(), LayerWish::default()], PLENTY);
    call.run(5);
    call.way.capacity = 430_000;
    call.run(7);
    assert_eq!([2, 3].map(|ssrc| call.layers(ssrc, 1)), [[1], [0]], "in turn");
    // Not when a second's judgement comes anyway.
    call.run_ms(300);
    call.rig.command(Command::Wish { subscription: SubscriptionId(2), wish: PAUSED });
    let at = call.rig.now.as_millis();
    call.run_ms(400);
    assert!(call.got.iter().any(|got| *got > (at, 3, 1) && (got.1, got.2) == (3, 1)), "what one leaves the other takes");
}

#[test]
fn a_section_that_was_paused_while_the_bound_went_has_none_when_it_is_shown() {
    let mut call = Shared::new(&[LayerWish::default(), LayerWish::default()], PLENTY);
    call.run(5);
    call.way.capacity = 120_000;
    call.run(12);
    let left_out: u32 = if call.layers(2, 1).is_empty() { 2 } else { 3 };
    assert_eq!(call.layers(left_out, 1), []);
    call.rig.command(Command::Wish { subscription: SubscriptionId(left_out.into()), wish: PAUSED });
    call.way.capacity = PLENTY;
    // Until nothing is left of the bound.
    call.run(150);
    call.rig.command(Command::Wish { subscription: SubscriptionId(left_out.into()), wish: LayerWish::default() });
    call.run(2);
    assert_eq!(call.layers(left_out, 1), [2]);
}

#[test]
fn a_stream_with_temporal_layers_becomes_slower_before_it_stops() {
    for layers in [Vec::new(), RIDS.map(Into::into).into()] {
        becomes_slower_before_it_stops(Call::open(Codec::Vp8, layers, &[]));
    }
}

fn becomes_slower_before_it_stops(mut call: Call) {
    (call.temporal, call.frame_len) = (true, [0, 1_000, 0]);
    call.join_by(2, LayerWish::default(), Some(Way::new(Tells::Feedback, PLENTY)));
    call.run(5);
    // All of it takes 245 kbit/s, half of its frames 123.
    call.viewers[0].way.as_mut().unwrap().capacity = 150_000;
    call.run(6);
    let at = call.now_ms();
    call.rig.events();
    call.run(3);
    let frames: Vec<Frame> = call.viewers[0].frames_since(at).copied().collect();
    assert!((40..=50).contains(&frames.len()), "{} frames in 3 s", frames.len());
    for pair in frames.windows(2) {
        assert_eq!(pair[1].numbers.unwrap().0, pair[0].numbers.unwrap().0 + 1, "pictures have no holes");
    }
    assert!(call.viewers[0].indexes.windows(2).all(|pair| pair[1] == pair[0] + 1), "nor have sequence numbers");
    let told = call.rig.events().into_iter().find_map(|event| match event {
        Event::SubscriptionStats { stats, .. } => Some((stats.temporal, stats.congested)),
        _ => None,
    });
    assert_eq!(told, Some((0, false)));
    call.viewers[0].way.as_mut().unwrap().capacity = PLENTY;
    call.run(60);
    let at = call.now_ms();
    call.run(3);
    assert!(call.viewers[0].frames_since(at).count() >= 85, "all frames again");
}
