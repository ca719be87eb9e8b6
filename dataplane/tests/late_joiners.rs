//! Who comes late begins with the group of pictures that is kept, and the publisher is asked for nothing.

mod common;

use std::time::Duration;

use common::{CONSENT, Client, Packet, Rig, Sent, limits, media_to, open_transport, protect, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::WorkerLimits;
use pop_proto::control::{LayerWish, OpenSubscription, OpenTransport, PayloadTypeMap};
use pop_proto::wire::rtp::RtpView;
use pop_proto::{Command, DropReason};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

/// Between two pictures of the publisher: a little more than 30 a second, a whole number of ticks.
const PICTURE: Duration = Duration::from_millis(30);
const PICTURE_TICKS: u32 = 2_700;

/// A publisher whose pictures are three packets, a keyframe ten.
struct Camera {
    client: Client,
    index: u64,
    pictures: u32,
}

impl Camera {
    fn new(rig: &mut Rig) -> Camera {
        Camera { client: rig.publisher(1), index: 40_000, pictures: 0 }
    }

    /// The packets of the next picture.
    fn picture(&mut self, keyframe: bool, len: usize) -> Vec<Vec<u8>> {
        let timestamp = (u32::MAX - 50_000).wrapping_add(self.pictures * PICTURE_TICKS);
        self.pictures += 1;
        let packets = if keyframe { 10 } else { 3 };
        let mut made = Vec::new();
        for at in 0..packets {
            let payload = if at == 0 { vp8(keyframe, len) } else { [&[0x00][..], &vec![0xab; len - 1]].concat() };
            let packet = Packet { ssrc: 1, payload_type: 96, index: self.index, timestamp, elements: &[], payload: &payload };
            made.push(protect(&self.client, &packet));
            self.index += 1;
        }
        made
    }

    /// Sends pictures for this long, the first a keyframe if asked; returns what the core sent.
    fn film(&mut self, rig: &mut Rig, duration: Duration, keyframe: bool) -> Vec<Sent> {
        let (mut sent, end) = (Vec::new(), rig.now + duration);
        let mut keyframe = keyframe;
        while rig.now < end {
            for packet in self.picture(std::mem::take(&mut keyframe), 1_000) {
                rig.receive(&self.client, packet);
            }
            sent.extend(rig.sent());
            sent.extend(rig.pass(PICTURE));
        }
        sent
    }
}

fn studio() -> (Rig, Camera) {
    let mut rig = Rig::new();
    rig.core = Core::new(WorkerLimits { transports: 200, subscriptions: 400, packets: 8_192, ..limits() }, CONSENT);
    let camera = Camera::new(&mut rig);
    rig.sent();
    (rig, camera)
}

/// A viewer with RTX.
fn viewer(rig: &mut Rig, id: u64) -> Client {
    let client = rig.connect_with(OpenTransport { transport_cc: false, ..open_transport(id) });
    let open = OpenSubscription { rtx_ssrc: Some(50_000 + id as u32), ..Rig::subscription(id) };
    rig.command(Command::OpenSubscription(Box::new(open)));
    watch(rig, id, 1);
    client
}

fn watch(rig: &mut Rig, subscription: u64, track: u64) {
    rig.command(Command::Forward {
        subscription: SubscriptionId(subscription),
        track: Some(TrackId(track)),
        payload_types: vec![PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false }],
    });
}

/// What a viewer saw: it asserts that the first packet begins a keyframe, that every number comes once and in order, and that time
/// goes on. Returns (index, timestamp) of each packet.
fn seen(client: &mut Client, sent: &[Sent]) -> Vec<(u64, u32)> {
    let mut seen: Vec<(u64, u32)> = Vec::new();
    for (index, header, payload) in media_to(client, sent) {
        let timestamp = RtpView::parse(&header).unwrap().timestamp();
        match seen.last() {
            None => assert_eq!(payload[..2], [0x10, 0], "viewer {} begins with a keyframe", client.id),
            Some((before, then)) => {
                assert_eq!(index, before + 1, "viewer {}", client.id);
                let step = timestamp.wrapping_sub(*then);
                assert!(step <= PICTURE_TICKS, "viewer {}: a step of {step}", client.id);
                assert_eq!(step != 0, payload[0] == 0x10, "viewer {}: each picture has its own time", client.id);
            }
        }
        seen.push((index, timestamp));
    }
    seen
}

fn plis(rig: &Rig) -> u64 {
    rig.core.counters().rtcp_pli_out
}

#[test]
fn a_hundred_late_joiners_of_a_short_group_see_a_picture_at_once_and_the_publisher_hears_nothing() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(600), true);
    let mut viewers = Vec::new();
    let mut sent = Vec::new();
    for id in 2..102 {
        viewers.push((viewer(&mut rig, id), rig.now, sent.len()));
        if id % 3 == 0 {
            sent.extend(camera.film(&mut rig, PICTURE, false));
        }
    }
    sent.extend(camera.film(&mut rig, Duration::from_millis(800), false));
    assert_eq!(plis(&rig), 0);
    let lengths: Vec<_> = viewers.iter_mut().map(|(client, ..)| seen(client, &sent).len()).collect();
    assert!(lengths.iter().all(|len| *len as u64 == camera.index - 40_000), "all of the group and all that came since: {lengths:?}");
    assert_eq!(rig.core.counters().catch_ups, 100);
    assert_eq!(rig.core.counters().catch_ups_broken, 0);
}

#[test]
fn the_first_picture_comes_within_a_tick_and_the_rest_at_a_bounded_pace() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let mut late = viewer(&mut rig, 2);
    let (mut seen_of, mut ticks) = (Vec::new(), 0);
    while rig.core.counters().catch_ups == 0 {
        let sent = rig.pass(Duration::from_millis(10));
        let packets = sent.iter().filter(|s| s.path == late.path && s.bytes.len() > 500).count();
        assert!(packets <= 34, "{packets} of 1,000 bytes in one tick");
        assert!(ticks > 0 || packets >= 30, "a keyframe and more at once");
        seen_of.extend(sent);
        ticks += 1;
        assert!(ticks < 20);
    }
    assert_eq!(seen(&mut late, &seen_of).len() as u64, camera.index - 40_000);
}

#[test]
fn the_past_is_squeezed_and_the_present_has_the_publishers_clock() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let mut late = viewer(&mut rig, 2);
    let sent = camera.film(&mut rig, Duration::from_millis(600), false);
    let seen = seen(&mut late, &sent);
    let live = &seen[seen.len() - 3 * 15..];
    let past = live[0].1.wrapping_sub(seen[0].1);
    assert!(past < 6 * PICTURE_TICKS + 135_000 / 30, "{past}: two seconds are nearly nothing");
    assert!(live.windows(2).all(|pair| [0, PICTURE_TICKS].contains(&pair[1].1.wrapping_sub(pair[0].1))));
}

#[test]
fn many_late_joiners_cost_the_others_no_picture() {
    let (mut rig, mut camera) = studio();
    let mut early = viewer(&mut rig, 2);
    let mut to_early = camera.film(&mut rig, Duration::from_millis(900), true);
    for id in 3..103 {
        viewer(&mut rig, id);
    }
    for _ in 0..10 {
        for packet in camera.picture(false, 1_000) {
            rig.receive(&camera.client, packet);
            let sent = rig.sent();
            assert_eq!(sent.iter().filter(|s| s.path == early.path).count(), 1, "in the turn in which it came");
            to_early.extend(sent);
        }
        let before = rig.core.counters().rtp_bytes_out;
        to_early.extend(rig.pass(Duration::from_millis(10)));
        assert!(rig.core.counters().rtp_bytes_out - before <= (1 << 20) + 66_000, "a bounded burst of all together");
    }
    seen(&mut early, &to_early);
}

#[test]
fn a_group_that_is_too_old_is_a_keyframe_request_for_all() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(2_500), true);
    let (mut viewers, mut sent) = (Vec::new(), Vec::new());
    for id in 2..102 {
        viewers.push(viewer(&mut rig, id));
        let answers = plis(&rig) == 1 && rig.core.counters().catch_ups == 0 && id == 40;
        if id % 4 == 0 {
            sent.extend(camera.film(&mut rig, PICTURE, answers));
        }
    }
    sent.extend(camera.film(&mut rig, Duration::from_millis(300), false));
    assert_eq!(plis(&rig), 1);
    for viewer in &mut viewers {
        assert!(seen(viewer, &sent).len() > 20);
    }
    assert!(rig.core.counters().catch_ups > 50, "who came after the answer began with it");
}

#[test]
fn a_group_that_is_too_large_is_a_keyframe_request() {
    let (mut rig, mut camera) = studio();
    for picture in 0..260 {
        for packet in camera.picture(picture == 0, 1_350) {
            rig.receive(&camera.client, packet);
        }
        rig.sent();
    }
    viewer(&mut rig, 2);
    rig.pass(Duration::from_millis(20));
    assert_eq!((plis(&rig), rig.core.counters().catch_ups), (1, 0));
}

#[test]
fn a_group_with_a_hole_is_waited_for_and_then_is_a_keyframe_request() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(300), true);
    camera.picture(false, 1_000);
    camera.film(&mut rig, Duration::from_millis(300), false);
    let mut late = viewer(&mut rig, 2);
    let mut sent = rig.pass(Duration::from_millis(90));
    assert_eq!(plis(&rig), 0, "a repair may still come");
    sent.extend(rig.pass(Duration::from_millis(40)));
    assert_eq!(plis(&rig), 1);
    assert_eq!(media_to(&mut late, &sent), [], "what cannot be decoded is not sent");
}

#[test]
fn a_hole_that_is_repaired_in_time_costs_no_keyframe() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(300), true);
    let missing = camera.picture(false, 1_000);
    camera.film(&mut rig, Duration::from_millis(30), false);
    let mut late = viewer(&mut rig, 2);
    let mut sent = rig.pass(Duration::from_millis(50));
    for packet in missing {
        rig.receive(&camera.client, packet);
    }
    sent.extend(rig.pass(Duration::from_millis(40)));
    assert_eq!(plis(&rig), 0);
    assert_eq!(seen(&mut late, &sent).len() as u64, camera.index - 40_000);
}

#[test]
fn what_was_lost_of_the_burst_is_repaired_with_the_time_that_it_had() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_200), true);
    let mut late = viewer(&mut rig, 2);
    let sent = camera.film(&mut rig, Duration::from_millis(300), false);
    let seen = seen(&mut late, &sent);
    for (index, timestamp) in [seen[3], seen[40], seen[90]] {
        let nack = late.rtcp(|c| c.nack(0, 2, [index as u16]));
        let path = late.path;
        let repairs = rig.exchange(path, nack);
        let [(_, header, payload)] = &media_to(&mut late, &repairs)[..] else { panic!("one repair of {index}") };
        let view = RtpView::parse(header).unwrap();
        assert_eq!((view.ssrc(), view.timestamp()), (50_002, timestamp));
        assert_eq!(payload[..2], (index as u16).to_be_bytes());
    }
}

/// A viewer that takes nothing for a while: the commands that stop and start it.
fn comes_back(stop: impl FnOnce(&mut Rig), start: impl FnOnce(&mut Rig)) {
    let (mut rig, mut camera) = studio();
    let mut client = viewer(&mut rig, 2);
    let mut sent = camera.film(&mut rig, Duration::from_millis(300), true);
    stop(&mut rig);
    let pause = camera.film(&mut rig, Duration::from_millis(600), false);
    assert_eq!(media_to(&mut client, &pause), []);
    start(&mut rig);
    sent.extend(camera.film(&mut rig, Duration::from_millis(600), false));
    let packets = media_to(&mut client, &sent);
    let times: Vec<u32> = packets.iter().map(|(_, header, _)| RtpView::parse(header).unwrap().timestamp()).collect();
    assert!(packets.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "no number is missing");
    assert!(times.windows(2).all(|pair| (pair[1].wrapping_sub(pair[0]) as i32) >= 0), "no picture is older than the one before");
    // Within two frames of the 1.5 s that have passed, the publisher's pictures being 30 ms apart.
    let passed = times.last().unwrap().wrapping_sub(times[0]);
    assert!(passed.abs_diff(49 * PICTURE_TICKS) <= 2 * PICTURE_TICKS, "{passed}");
    assert_eq!((plis(&rig), rig.core.counters().catch_ups), (0, 1));
}

#[test]
fn who_takes_the_track_again_goes_on_with_its_numbers_and_its_clock() {
    let none = Command::Forward { subscription: SubscriptionId(2), track: None, payload_types: Vec::new() };
    comes_back(|rig| rig.command(none), |rig| watch(rig, 2, 1));
}

#[test]
fn who_is_back_from_a_pause_goes_on_with_its_numbers_and_its_clock() {
    let wish = |paused| Command::Wish { subscription: SubscriptionId(2), wish: LayerWish { paused, ..LayerWish::default() } };
    comes_back(|rig| rig.command(wish(true)), |rig| rig.command(wish(false)));
}

#[test]
fn who_pauses_in_its_burst_gets_no_more_of_it() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let mut late = viewer(&mut rig, 2);
    let first = rig.pass(Duration::from_millis(10));
    assert!(seen(&mut late, &first).len() > 20);
    rig.command(Command::Wish { subscription: SubscriptionId(2), wish: LayerWish { paused: true, ..LayerWish::default() } });
    let sent = camera.film(&mut rig, Duration::from_millis(300), false);
    assert_eq!(media_to(&mut late, &sent), []);
    assert_eq!((plis(&rig), rig.core.counters().catch_ups_broken), (0, 1));
}

#[test]
fn who_asks_while_it_catches_up_is_not_passed_on() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let mut late = viewer(&mut rig, 2);
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.core.counters().catch_ups, 0, "it is still on the way");
    let pli = late.rtcp(|c| c.pli(0, 2));
    rig.exchange(late.path, pli);
    rig.pass(Duration::from_millis(200));
    assert_eq!(plis(&rig), 0);
    let pli = late.rtcp(|c| c.pli(0, 2));
    rig.exchange(late.path, pli);
    rig.pass(Duration::from_millis(20));
    assert_eq!(plis(&rig), 1, "it has lost what it was sent");
}

#[test]
fn an_encoder_that_begins_anew_or_a_track_that_ends_breaks_the_burst_and_nothing_else() {
    for ends in [false, true] {
        let (mut rig, mut camera) = studio();
        camera.film(&mut rig, Duration::from_millis(1_500), true);
        let mut late = viewer(&mut rig, 2);
        let mut sent = rig.pass(Duration::from_millis(10));
        if ends {
            rig.command(Command::CloseTrack { track: TrackId(1) });
            sent.extend(rig.pass(Duration::from_millis(100)));
            assert!(seen(&mut late, &sent).len() > 20);
            continue;
        }
        for index in 0..5 {
            rig.receive(&camera.client, camera.client.packet_of_mid(77, b'0', 96, 40_050 + index, &vp8(false, 900)));
        }
        sent.extend(rig.pass(Duration::from_millis(50)));
        assert_eq!((rig.core.counters().catch_ups, rig.core.counters().catch_ups_broken), (0, 1));
        let before = seen(&mut late, &sent).len() as u64;
        rig.receive(&camera.client, camera.client.packet_of_mid(77, b'0', 96, 40_055, &vp8(true, 900)));
        let sent = rig.pass(Duration::from_millis(50));
        assert_eq!(media_to(&mut late, &sent)[0].0, 100 + before, "its numbers go on at the keyframe");
    }
}

#[test]
fn a_viewer_that_leaves_in_its_burst_leaves_the_others_theirs() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let mut viewers: Vec<_> = (2..12).map(|id| viewer(&mut rig, id)).collect();
    let mut sent = rig.pass(Duration::from_millis(10));
    rig.command(Command::CloseSubscription { subscription: SubscriptionId(5) });
    rig.command(Command::CloseTransport { transport: TransportId(9) });
    sent.extend(camera.film(&mut rig, Duration::from_millis(300), false));
    for viewer in viewers.iter_mut().filter(|viewer| ![5, 9].contains(&viewer.id)) {
        assert_eq!(seen(viewer, &sent).len() as u64, camera.index - 40_000);
    }
    assert_eq!(rig.core.counters().catch_ups, 8);
}

#[test]
fn a_pool_without_room_keeps_nothing_beyond_its_time() {
    let (mut rig, mut camera) = studio();
    rig.core = Core::new(WorkerLimits { packets: 256, ..limits() }, CONSENT);
    camera.client = rig.publisher(1);
    camera.film(&mut rig, Duration::from_millis(1_800), true);
    assert!(rig.core.gauges().packets_held < 140, "{}", rig.core.gauges().packets_held);
    viewer(&mut rig, 2);
    rig.pass(Duration::from_millis(20));
    assert_eq!((plis(&rig), rig.core.counters().catch_ups), (1, 0));
    assert_eq!(rig.drops(DropReason::PoolEmpty), 0);
}

#[test]
fn a_group_is_given_back_when_it_is_too_old() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(2_400), true);
    assert_eq!(rig.core.gauges().packets_held, camera.index - 40_000);
    camera.film(&mut rig, Duration::from_millis(1_200), false);
    assert!(rig.core.gauges().packets_held <= 105, "{}: a second of it", rig.core.gauges().packets_held);
}

#[test]
fn a_burst_that_finds_no_way_out_ends_and_its_viewer_asks_for_a_keyframe() {
    let (mut rig, mut camera) = studio();
    camera.film(&mut rig, Duration::from_millis(1_500), true);
    let late = viewer(&mut rig, 2);
    // The send queue is full: nothing is taken.
    for _ in 0..310 {
        rig.now = rig.now + Duration::from_millis(10);
        rig.core.handle_timeout(rig.now);
    }
    assert_eq!((rig.core.counters().catch_ups, rig.core.counters().catch_ups_broken), (0, 1));
    rig.pass(Duration::from_millis(20));
    assert_eq!(plis(&rig), 1);
    assert_eq!(late.id, 2);
}
