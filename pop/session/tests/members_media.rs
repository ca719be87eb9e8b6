//! What members hear of layers, speakers and connections, in fake time.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::time::Duration;

use pop_proto::control::{Codec, Command, Event, LayerWish, SubscriptionStats, TrackStats};
use pop_schemas::{SubscriptionId, TrackId};
use pop_session::member::{AddTrack, ConnectionGrade, MemberRequest, Notice, Quality, Speaker, StreamState, TrackSettings, VideoLayer};
use pop_session::{Format, PayloadFormat, Request};
use stage::*;

const CALM: Duration = Duration::from_secs(5);

/// Ann publishes three layers, bob takes them.
fn two() -> (Stage, TrackId, SubscriptionId) {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let layer = |quality, width, height| VideoLayer { quality, width, height, ..VideoLayer::default() };
    let layers = vec![layer(Quality::High, 1_280, 720), layer(Quality::Low, 320, 180), layer(Quality::Medium, 640, 360)];
    let track = stage.add_track("ann", AddTrack { width: 1_280, height: 720, layers, ..camera("cam") }).unwrap();
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &["f", "h", "q"])]);
    stage.offer("bob", first_offer());
    stage.connect("ann");
    stage.connect("bob");
    let opened = stage.heard.commands.iter().find_map(|command| match command {
        Command::OpenSubscription(open) => Some(open.subscription),
        _ => None,
    });
    let orders: Vec<_> = stage
        .heard
        .commands
        .iter()
        .filter_map(|command| if let Command::OpenTrack(open) = command { Some(open.order.clone()) } else { None })
        .collect();
    assert_eq!(orders, [[2, 1, 0]], "the offer lists the best first");
    stage.forget();
    (stage, track, opened.expect("bob's section is open"))
}

fn want(stage: &mut Stage, settings: TrackSettings) -> Option<LayerWish> {
    stage.heard.commands.clear();
    stage.say("bob", MemberRequest::TrackSettings(settings));
    stage.heard.commands.iter().find_map(|command| match command {
        Command::Wish { wish, .. } => Some(*wish),
        _ => None,
    })
}

fn demands(notices: &[Notice]) -> Vec<Quality> {
    let demand = |notice: &Notice| match notice {
        Notice::SubscribedQuality { quality, .. } => Some(*quality),
        _ => None,
    };
    notices.iter().filter_map(demand).collect()
}

#[test]
fn a_size_asks_for_the_smallest_layer_that_covers_it() {
    let (mut stage, track, _) = two();
    let sized = |height| TrackSettings { tracks: vec![track], width: height * 16 / 9, height, ..TrackSettings::default() };
    let spatial = |stage: &mut Stage, height| want(stage, sized(height)).map(|wish| wish.spatial_max);
    assert_eq!(spatial(&mut stage, 100), Some(0));
    assert_eq!(spatial(&mut stage, 200), None, "a tenth more than the layer has: the wish is the same");
    assert_eq!(spatial(&mut stage, 210), Some(1));
    assert_eq!(spatial(&mut stage, 2_160), Some(2));
}

#[test]
fn a_quality_a_rate_and_a_pause_become_wishes() {
    let (mut stage, track, _) = two();
    let base = TrackSettings { tracks: vec![track], ..TrackSettings::default() };
    let wish = want(&mut stage, TrackSettings { quality: Quality::Medium, fps: 15, priority: 2, ..base.clone() }).unwrap();
    assert_eq!(wish, LayerWish { paused: false, spatial_max: 1, temporal_max: 1, priority: 2 });
    assert!(want(&mut stage, TrackSettings { disabled: true, ..base.clone() }).unwrap().paused);
    let strange = TrackSettings { tracks: vec![TrackId(5)], ..base };
    assert_eq!(want(&mut stage, strange), None);
}

#[test]
fn a_client_that_tells_sizes_begins_with_the_lowest_layer() {
    let (mut stage, _, _) = two();
    stage.enter_with("cid", |enter| enter.adaptive_stream = true);
    stage.offer("cid", first_offer());
    let place = stage.heard.commands.iter().position(|command| matches!(command, Command::Wish { wish, .. } if wish.spatial_max == 0));
    let forward = stage.heard.commands.iter().position(|command| matches!(command, Command::Forward { .. }));
    assert!(place.unwrap() < forward.unwrap(), "before the first packet");
}

#[test]
fn the_publisher_hears_of_less_demand_when_it_lasts_and_of_more_at_once() {
    let (mut stage, track, _) = two();
    let low = TrackSettings { tracks: vec![track], quality: Quality::Low, ..TrackSettings::default() };
    let high = TrackSettings { quality: Quality::High, ..low.clone() };
    stage.told("ann");
    want(&mut stage, low.clone());
    stage.pass(CALM - Duration::from_millis(1));
    assert_eq!(demands(&stage.told("ann")), []);
    want(&mut stage, high.clone());
    want(&mut stage, low.clone());
    stage.pass(CALM - Duration::from_millis(1));
    assert_eq!(demands(&stage.told("ann")), [], "it did not last");
    stage.pass(Duration::from_millis(1));
    assert_eq!(demands(&stage.told("ann")), [Quality::Low]);
    want(&mut stage, high);
    assert_eq!(demands(&stage.told("ann")), [Quality::High]);
    want(&mut stage, TrackSettings { disabled: true, ..low });
    stage.pass(CALM);
    assert_eq!(demands(&stage.told("ann")), [Quality::Off]);
}

#[test]
fn a_track_that_nobody_takes_is_off_and_a_capture_wants_the_best() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.add_track("ann", camera("cam"));
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &["q", "h", "f"])]);
    stage.pass(CALM);
    assert_eq!(demands(&stage.told("ann")), [Quality::Off]);
    stage.request(Request::Tap { tap: 1, kind: None }).unwrap();
    assert_eq!(demands(&stage.told("ann")), [Quality::High]);
    stage.request(Request::Untap { tap: 1 }).unwrap();
    stage.pass(CALM);
    assert_eq!(demands(&stage.told("ann")), [Quality::Off]);
}

#[test]
fn the_first_subscriber_is_told_once() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let track = stage.add_track("ann", camera("cam")).unwrap();
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    for name in ["bob", "cid"] {
        stage.enter(name);
        stage.offer(name, first_offer());
    }
    let told = stage.told("ann").into_iter().filter(|notice| matches!(notice, Notice::TrackSubscribed(id) if *id == track)).count();
    assert_eq!(told, 1);
}

fn speakers(notices: &[Notice]) -> Vec<Vec<Speaker>> {
    let speakers = |notice: &Notice| match notice {
        Notice::Speakers(speakers) => Some(speakers.to_vec()),
        _ => None,
    };
    notices.iter().filter_map(speakers).collect()
}

#[test]
fn the_louder_speaker_comes_first_and_who_stops_is_told_once() {
    let mut stage = Stage::new();
    let mut tracks = Vec::new();
    for name in ["ann", "bob"] {
        stage.enter(name);
        tracks.push(stage.add_track(name, microphone("mic")).unwrap());
        stage.offer(name, vec![sends("0", "mic", &[OPUS], &[])]);
    }
    stage.enter("cid");
    stage.told("cid");
    let level = |track, level| Event::AudioLevel { track, level, active_percent: 90 };
    stage.event(level(tracks[0], 33));
    stage.event(level(tracks[1], 10));
    stage.pass(Duration::from_millis(400));
    let heard = speakers(&stage.told("cid"));
    let who: Vec<_> = heard[0].iter().map(|speaker| (speaker.participant, speaker.active)).collect();
    assert_eq!(who, [(stage.members["bob"], true)], "-33 dBov is not yet over the threshold when it is smoothed");
    stage.event(level(tracks[0], 20));
    stage.event(level(tracks[1], 10));
    stage.pass(Duration::from_millis(400));
    let heard = speakers(&stage.told("cid"));
    assert!(heard[0].windows(2).all(|pair| pair[0].level >= pair[1].level));
    assert!(heard[0].iter().any(|speaker| speaker.participant == stage.members["ann"] && speaker.active));

    stage.enter("dan");
    assert_eq!(speakers(&stage.told("dan"))[0].len(), 2, "one who comes in hears who speaks");
    stage.event(level(tracks[0], 127));
    stage.event(level(tracks[1], 127));
    stage.pass(Duration::from_secs(20));
    let stops: Vec<_> = speakers(&stage.told("cid")).into_iter().flatten().filter(|speaker| !speaker.active).collect();
    assert_eq!(stops.len(), 2);
    assert!(stops.iter().all(|speaker| speaker.level == 0.0));
    stage.pass(Duration::from_secs(5));
    assert!(speakers(&stage.told("cid")).is_empty());
}

#[test]
fn a_muted_or_hidden_one_is_no_speaker_and_a_cough_is_no_word() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let track = stage.add_track("ann", microphone("mic")).unwrap();
    stage.offer("ann", vec![sends("0", "mic", &[OPUS], &[])]);
    stage.told("ann");
    stage.event(Event::AudioLevel { track, level: 0, active_percent: 39 });
    stage.pass(Duration::from_secs(1));
    assert!(speakers(&stage.told("ann")).is_empty());
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    stage.event(Event::AudioLevel { track, level: 0, active_percent: 100 });
    stage.pass(Duration::from_secs(1));
    assert!(speakers(&stage.told("ann")).is_empty());
    stage.say("ann", MemberRequest::Mute { track, muted: false });
    stage.event(Event::AudioLevel { track, level: 0, active_percent: 100 });
    stage.pass(Duration::from_millis(400));
    assert_eq!(speakers(&stage.told("ann"))[0].len(), 1);
}

fn grades(stage: &mut Stage, name: &str) -> Vec<(String, ConnectionGrade)> {
    let of = |stage: &Stage, id| stage.members.iter().find(|(_, known)| **known == id).unwrap().0.to_string();
    let notices = stage.told(name);
    let mut grades = Vec::new();
    for notice in notices {
        let Notice::Quality(qualities) = notice else { continue };
        grades.extend(qualities.iter().map(|quality| (of(stage, quality.participant), quality.grade)));
    }
    grades
}

#[test]
fn connections_are_judged_by_loss_and_silence_and_told_to_whom_it_concerns() {
    let (mut stage, track, section) = two();
    stage.enter_as("cid", everything(), false);
    let stats = |packets, lost| Event::TrackStats { track, stats: TrackStats { packets, lost, ..TrackStats::default() } };
    stage.event(stats(500, 0));
    stage.pass(Duration::from_secs(5));
    for name in ["ann", "bob"] {
        stage.told(name);
    }
    stage.event(stats(1_000, 0));
    stage.pass(Duration::from_secs(5));
    assert_eq!(grades(&mut stage, "bob"), [], "excellent as before");
    assert_eq!(grades(&mut stage, "cid"), [("cid".into(), ConnectionGrade::Excellent)], "it takes nothing of the others");
    // 5 of 105 packets.
    stage.event(stats(1_100, 5));
    stage.pass(Duration::from_secs(5));
    assert_eq!(grades(&mut stage, "bob"), [("ann".into(), ConnectionGrade::Good)]);
    stage.pass(Duration::from_secs(5));
    assert_eq!(grades(&mut stage, "ann"), [("ann".into(), ConnectionGrade::Good), ("ann".into(), ConnectionGrade::Lost)]);
    stage.event(stats(2_000, 5));
    let stats = SubscriptionStats { fraction_lost: 128, ..SubscriptionStats::default() };
    stage.event(Event::SubscriptionStats { subscription: section, stats });
    stage.told("bob");
    stage.pass(Duration::from_secs(5));
    let expected = [("ann".into(), ConnectionGrade::Excellent), ("bob".into(), ConnectionGrade::Poor)];
    assert_eq!(grades(&mut stage, "bob"), expected);
}

#[test]
fn a_track_that_was_silent_for_a_reason_is_not_lost() {
    let (mut stage, track, _) = two();
    let stats = |packets| Event::TrackStats { track, stats: TrackStats { packets, ..TrackStats::default() } };
    stage.event(stats(500));
    stage.pass(Duration::from_secs(5));
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    stage.pass(Duration::from_secs(14));
    stage.say("ann", MemberRequest::Mute { track, muted: false });
    stage.pass(Duration::from_secs(1));
    assert!(grades(&mut stage, "ann").iter().all(|(_, grade)| *grade == ConnectionGrade::Excellent));
}

#[test]
fn a_stream_that_stops_for_want_of_bandwidth_is_told_and_told_when_it_goes_on() {
    let (mut stage, track, section) = two();
    let states = |notices: Vec<Notice>| -> Vec<StreamState> {
        notices.into_iter().flat_map(|notice| if let Notice::StreamStates(states) = notice { states } else { Vec::new() }).collect()
    };
    for congested in [true, true, false] {
        let stats = SubscriptionStats { congested, ..SubscriptionStats::default() };
        stage.event(Event::SubscriptionStats { subscription: section, stats });
    }
    let publisher = stage.members["ann"];
    let told = states(stage.told("bob"));
    assert_eq!(told, [true, false].map(|paused| StreamState { publisher, track, paused }));
}

#[test]
fn the_codec_that_was_announced_leads_the_answer_whatever_the_offers_order() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let vp9 = PayloadFormat { number: 98, format: Format::Vp9 { profile: 0 }, rtx: None };
    stage.add_track("ann", AddTrack { codec: Some(Codec::Vp9), ..camera("cam") }).unwrap();
    let answer = stage.offer("ann", vec![sends("0", "cam", &[VP8, vp9], &[])]);
    assert_eq!(answer.sections["0"].codec, Some(Codec::Vp9));
    let opened = stage.heard.commands.iter().find_map(|command| match command {
        Command::OpenTrack(open) => Some(open.payload_types.iter().map(|payload_type| payload_type.codec).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(opened.unwrap(), [Codec::Vp9, Codec::Vp8]);
}

#[test]
fn a_muted_track_is_not_forwarded_and_its_publisher_is_not_told_that_nobody_wants_it() {
    let (mut stage, track, subscription) = two();
    let wishes = |stage: &Stage| -> Vec<_> {
        let wish = |command: &Command| match command {
            Command::Wish { subscription: of, wish } => Some((*of, wish.paused)),
            _ => None,
        };
        stage.heard.commands.iter().filter_map(wish).collect()
    };
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    assert_eq!(wishes(&stage), [(subscription, true)]);
    stage.pass(2 * CALM);
    assert_eq!(demands(&stage.told("ann")), []);
    stage.forget();
    stage.say("ann", MemberRequest::Mute { track, muted: false });
    assert_eq!(wishes(&stage), [(subscription, false)]);
}

#[test]
fn a_low_wish_reaches_layers_inside_a_stream_that_told_of_none() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let track = stage.add_track("ann", camera("cam")).unwrap();
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    stage.offer("bob", first_offer());
    let wish = |quality| TrackSettings { tracks: vec![track], quality, ..TrackSettings::default() };
    assert_eq!(want(&mut stage, wish(Quality::Low)).unwrap().spatial_max, 0);
    assert_eq!(want(&mut stage, wish(Quality::High)).unwrap().spatial_max, u8::MAX);
}

#[test]
fn a_track_with_other_layers_is_opened_anew_so_that_the_streams_of_a_transport_stay_within_what_a_worker_holds() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    stage.offer("bob", first_offer());
    let cids = ["a", "b", "c", "d", "e", "f", "g"];
    let tracks: Vec<_> = cids.iter().map(|cid| stage.add_track("ann", camera(cid)).unwrap()).collect();
    let section = |place: usize, rids: &[&str]| sends(&place.to_string(), cids[place], &[VP8], rids);
    let four = ["1", "2", "3", "4"];
    stage.offer("ann", (0..4).map(|place| section(place, &four)).collect());
    // Counted by this offer alone it is 4 and 12 streams.
    let second: Vec<_> = (0..4).map(|place| section(place, &[])).chain((4..7).map(|place| section(place, &four))).collect();
    stage.told("bob");
    let answer = stage.offer("ann", second);
    let taken: Vec<_> = answer.sections.values().filter_map(|section| section.takes).collect();
    assert_eq!(taken, tracks, "everybody knows them by the same ids");
    assert_eq!(streams_most(&stage), 16);
    let seen = participants(&stage.told("bob"));
    assert_eq!(seen[0].tracks.iter().filter(|track| track.simulcast).count(), 3);
    let answer = stage.offer("bob", first_offer());
    assert_eq!(answer.sections.values().filter(|section| section.feeds.is_some()).count(), 3, "they go on");
}

#[test]
fn a_track_that_a_worker_has_no_place_for_is_not_opened() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let cids = ["a", "b", "c", "d", "e"];
    for cid in cids {
        stage.add_track("ann", camera(cid)).expect("it is announced");
    }
    let four = ["1", "2", "3", "4"];
    let sections = cids.iter().enumerate().map(|(place, cid)| sends(&place.to_string(), cid, &[VP8], &four));
    let answer = stage.offer("ann", sections.collect());
    assert_eq!(answer.sections.values().filter(|section| section.takes.is_some()).count(), 4);
    assert_eq!(streams_most(&stage), 16);
}

/// The most streams that the worker had open at a time.
fn streams_most(stage: &Stage) -> usize {
    let mut open = std::collections::BTreeMap::new();
    let mut most = 0;
    for command in &stage.heard.commands {
        match command {
            Command::OpenTrack(track) => drop(open.insert(track.track, track.layers.len().max(1))),
            Command::CloseTrack { track } => drop(open.remove(track)),
            _ => {}
        }
        most = most.max(open.values().sum());
    }
    most
}
