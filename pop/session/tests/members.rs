//! What members do in a room, in fake time.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::time::Duration;

use pop_proto::control::{Command, MediaKind};
use pop_schemas::TrackId;
use pop_session::member::{LeaveAction, LeaveReason, MemberRequest, MemberState, Notice, Quality, Source, SubscriptionError, Sync};
use pop_session::session::{CONNECT_TIMEOUT, RESUME_GRACE};
use pop_session::{Limits, Refusal, Reply};
use stage::*;

#[test]
fn what_one_publishes_the_other_gets_in_the_next_answer() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let answer = stage.offer("bob", first_offer());
    assert!(answer.sections.values().all(|section| section.feeds.is_none()));
    stage.offer("ann", first_offer());
    stage.told("bob");

    let track = stage.add_track("ann", camera("cam")).expect("it is announced");
    assert!(participants(&stage.told("bob")).is_empty(), "it has no media yet");
    let mut sections = first_offer();
    sections.push(sends("6", "cam", &[VP8], &["q", "h", "f"]));
    let answer = stage.offer("ann", sections);
    assert_eq!(answer.sections["6"].takes, Some(track));

    let notices = stage.told("bob");
    let news = participants(&notices);
    assert_eq!((news[0].participant, news[0].tracks[0].track), (stage.members["ann"], track));
    assert_eq!(news[0].tracks[0].mime.as_ref(), "video/VP8");
    let qualities: Vec<_> = news[0].tracks[0].layers.iter().map(|layer| (layer.rid.to_string(), layer.quality)).collect();
    assert_eq!(qualities, [("q".into(), Quality::Low), ("h".into(), Quality::Medium), ("f".into(), Quality::High)]);
    assert_eq!(asked(&notices), [(0, 0)], "an idle section is there; its track is told by an answer");

    stage.forwards();
    let answer = stage.offer("bob", first_offer());
    let (mid, feed) = answer.sections.iter().find_map(|(mid, section)| Some((mid, section.feeds.as_ref()?))).expect("it is fed");
    assert_eq!((feed.track, feed.publisher), (track, stage.members["ann"]));
    assert_eq!(mid.as_ref(), "3");
    let forwards = stage.forwards();
    assert_eq!(forwards.len(), 1);
    assert_eq!(forwards[0].1, Some(track));
    assert!(asked(&stage.told("bob")).is_empty());
}

#[test]
fn sections_that_are_missing_are_asked_for_once() {
    let mut stage = Stage::new();
    stage.enter("ann");
    for cid in ["a", "b", "c", "d", "e"] {
        stage.add_track("ann", camera(cid));
    }
    let sections = ["a", "b", "c", "d"].iter().enumerate().map(|(n, cid)| sends(&n.to_string(), cid, &[VP8], &[]));
    let mut sections: Vec<_> = sections.collect();
    stage.offer("ann", sections.clone());

    stage.enter("bob");
    stage.told("bob");
    stage.offer("bob", first_offer());
    assert_eq!(asked(&stage.told("bob")), [(0, 1)]);
    sections.push(sends("4", "e", &[VP8], &[]));
    stage.offer("ann", sections);
    assert!(asked(&stage.told("bob")).is_empty(), "one is outstanding");

    let mut grown = first_offer();
    grown.push(receives("6", &[VP8]));
    let answer = stage.offer("bob", grown.clone());
    assert_eq!(answer.sections.values().filter(|section| section.feeds.is_some()).count(), 4);
    assert_eq!(asked(&stage.told("bob")), [(0, 1)], "counted again");
    grown.push(receives("7", &[VP8]));
    let answer = stage.offer("bob", grown);
    assert_eq!(answer.sections.values().filter(|section| section.feeds.is_some()).count(), 5);
    assert!(asked(&stage.told("bob")).is_empty());
}

#[test]
fn a_section_is_idle_in_one_answer_between_two_tracks() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let one = |cid| vec![sends("0", cid, &[VP8], &[])];
    let first = stage.add_track("ann", camera("a")).unwrap();
    stage.offer("ann", one("a"));
    let answer = stage.offer("bob", vec![receives("0", &[VP8])]);
    let ssrc = answer.sections["0"].feeds.as_ref().unwrap().ssrc;

    let second = stage.add_track("ann", camera("b")).unwrap();
    stage.forwards();
    stage.offer("ann", one("b"));
    let forwards = stage.forwards();
    assert_eq!(forwards.iter().map(|forward| forward.1).collect::<Vec<_>>(), [None], "{first} has ended");
    assert_eq!(asked(&stage.told("bob")), [(0, 0)]);
    let answer = stage.offer("bob", vec![receives("0", &[VP8])]);
    assert_eq!(answer.sections["0"].feeds, None);
    assert_eq!(asked(&stage.told("bob")), [(0, 0)]);
    let answer = stage.offer("bob", vec![receives("0", &[VP8])]);
    let feed = answer.sections["0"].feeds.as_ref().unwrap();
    assert_eq!((feed.track, feed.ssrc), (second, ssrc), "the worker continues the numbering");
}

#[test]
fn an_offer_that_came_before_its_announcement_is_matched() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let answer = stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    assert_eq!(answer.sections["0"].takes, None);
    stage.told("ann");
    stage.say("ann", MemberRequest::AddTrack(Box::new(camera("cam"))));
    let notices = stage.told("ann");
    assert_eq!(asked(&notices), [(0, 0)], "the answer said that nothing is taken");
    let answer = stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    assert!(answer.sections["0"].takes.is_some());
}

#[test]
fn a_track_with_another_name_in_the_offer_is_the_first_announced_of_its_kind() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let (mic, cam) = (stage.add_track("ann", microphone("mic")), stage.add_track("ann", camera("cam")));
    let answer = stage.offer("ann", vec![sends("0", "{1}", &[VP8], &[]), sends("1", "{2}", &[OPUS], &[])]);
    assert_eq!((answer.sections["0"].takes, answer.sections["1"].takes), (cam, mic));
    let again = stage.offer("ann", vec![sends("0", "{1}", &[VP8], &[]), sends("1", "{2}", &[OPUS], &[])]);
    assert_eq!(again.sections, answer.sections, "the same tracks go on");
}

#[test]
fn a_new_fragment_restarts_ice_and_the_same_one_keeps_it() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let first = stage.offer_with("ann", "one", first_offer()).unwrap();
    let kept = stage.offer_with("ann", "one", first_offer()).unwrap();
    assert_eq!(kept.ice, first.ice);
    stage.forget();
    let restarted = stage.offer_with("ann", "two", first_offer()).unwrap();
    assert_ne!(restarted.ice.local_ufrag, first.ice.local_ufrag);
    let restarts = stage.heard.commands.iter().filter(|command| matches!(command, Command::RestartIce { .. }));
    assert_eq!(restarts.count(), 1);
}

#[test]
fn the_newer_of_one_identity_stays_without_a_ghost() {
    let mut stage = Stage::new();
    let old = stage.enter("ann");
    stage.add_track("ann", camera("cam"));
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    stage.enter("bob");
    stage.offer("bob", first_offer());
    stage.forget();

    let new = stage.enter("ann");
    let to_old = &stage.heard.notices[&old];
    let expected = (LeaveReason::DuplicateIdentity, LeaveAction::Disconnect);
    assert!(matches!(to_old[..], [Notice::Leave { reason, action }] if (reason, action) == expected), "{to_old:?}");
    let news = participants(&stage.told("bob"));
    let states: Vec<_> = news.iter().map(|info| (info.participant, info.state, info.tracks.len())).collect();
    assert_eq!(states, [(old, MemberState::Disconnected, 0), (new, MemberState::Joining, 0)], "the old one first: clients know identities");
    assert!(matches!(stage.heard.commands[..], [Command::Forward { track: None, .. }, Command::CloseTransport { .. }]));
}

#[test]
fn a_member_whose_socket_is_cut_is_waited_for() {
    let mut stage = Stage::new();
    let ann = stage.enter("ann");
    stage.enter("bob");
    for name in ["ann", "bob"] {
        stage.offer(name, first_offer());
        stage.connect(name);
    }
    stage.say("ann", MemberRequest::SocketClosed);
    stage.pass(RESUME_GRACE - Duration::from_millis(1));
    assert_eq!(stage.resume("ann"), Ok(Reply::Joined));
    let notices = stage.told("ann");
    assert!(matches!(notices[notices.len() - 4..], [Notice::Resumed(_), Notice::Participants(_), Notice::Room(_), Notice::Grants(_)]));

    stage.say("ann", MemberRequest::SocketClosed);
    stage.told("bob");
    stage.pass(RESUME_GRACE);
    let news = participants(&stage.told("bob"));
    assert_eq!((news[0].participant, news[0].left), (ann, Some(LeaveReason::SignalClosed)));
    assert_eq!(stage.resume("ann"), Err(Refusal::UnknownParticipant));
}

#[test]
fn a_muted_track_is_told_to_everybody() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let track = stage.add_track("ann", microphone("mic")).unwrap();
    stage.offer("ann", vec![sends("0", "mic", &[OPUS], &[])]);
    stage.forget();
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    for name in ["ann", "bob"] {
        let news = participants(&stage.told(name));
        assert!(news[0].tracks[0].muted && news[0].tracks[0].kind == MediaKind::Audio, "{name}");
    }
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    assert!(stage.told("bob").is_empty(), "nothing has changed");
}

#[test]
fn an_audience_is_told_together_and_a_publisher_at_once() {
    let mut stage = Stage::new();
    let names: Vec<_> = (0..70).map(|n| &*Box::leak(format!("guest{n}").into_boxed_str())).collect();
    for name in &names {
        stage.enter(name);
    }
    stage.pass(Duration::from_secs(6));
    stage.forget();
    let updates = |stage: &mut Stage, name| {
        let notices = stage.told(name);
        notices.iter().filter_map(|n| if let Notice::Participants(infos) = n { Some(infos.len()) } else { None }).collect::<Vec<_>>()
    };
    for name in ["x", "y", "z"] {
        stage.enter(name);
        stage.offer(name, first_offer());
    }
    assert_eq!(updates(&mut stage, names[0]), Vec::<usize>::new());
    let Notice::Welcome(welcome) = &stage.told("z")[0] else { panic!("the welcome comes first") };
    assert_eq!(welcome.others.len(), 72, "one who comes in sees everybody");
    stage.pass(Duration::from_secs(1));
    assert_eq!(updates(&mut stage, names[0]), [3]);

    // One who waits to be told as gone and is back as a publisher: the order is kept.
    let old = stage.members["x"];
    stage.say("x", MemberRequest::Leave);
    assert_eq!(updates(&mut stage, names[0]), Vec::<usize>::new());
    let new = stage.enter("x");
    stage.add_track("x", camera("cam"));
    stage.offer("x", vec![sends("0", "cam", &[VP8], &[])]);
    let told = participants(&stage.told(names[0]));
    let who: Vec<_> = told.iter().map(|info| (info.participant, info.state == MemberState::Disconnected)).collect();
    assert_eq!(who, [(old, true), (new, false)]);
}

#[test]
fn how_many_are_here_is_told_a_little_later() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let rooms = |stage: &mut Stage| {
        let notices = stage.told("ann");
        notices
            .iter()
            .filter_map(|n| if let Notice::Room(room) = n { Some((room.participants, room.publishers)) } else { None })
            .collect::<Vec<_>>()
    };
    stage.offer("ann", first_offer());
    stage.connect("ann");
    stage.add_track("bob", camera("cam"));
    stage.offer("bob", vec![sends("0", "cam", &[VP8], &[])]);
    stage.connect("bob");
    assert_eq!(rooms(&mut stage), []);
    stage.pass(Duration::from_secs(5));
    assert_eq!(rooms(&mut stage), [(2, 1)]);
    stage.pass(Duration::from_secs(60));
    assert_eq!(rooms(&mut stage), []);
}

#[test]
fn whip_whep_and_members_share_a_room() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.offer("ann", first_offer());
    let source = stage.publish("studio");
    let told = stage.told("ann");
    let seen = &participants(&told)[0];
    assert_eq!((seen.identity.as_str(), seen.tracks[0].track, seen.tracks[0].source), ("studio", source, Source::Camera));
    assert_eq!(asked(&told), [(0, 0)]);
    stage.forwards();
    stage.offer("ann", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(source));

    let mine = stage.add_track("ann", camera("cam")).unwrap();
    stage.offer("ann", [first_offer(), vec![sends("6", "cam", &[VP8], &[])]].concat());
    stage.forwards();
    stage.watch();
    assert!(participants(&stage.told("ann")).iter().all(|info| info.identity.as_str() != "viewer"), "an audience is not shown");
    assert_eq!(stage.forwards(), [(stage.viewer_section(), Some(source))], "the oldest");
    stage.event(pop_proto::control::Event::TrackStarted { track: mine });
    assert_eq!(stage.forwards(), [(stage.viewer_section(), Some(mine))], "one that sends is better than one that does not");
}

#[test]
fn a_member_takes_the_place_of_a_whip_client_of_its_identity_and_the_reverse() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.publish("bob");
    stage.told("ann");
    stage.enter("bob");
    let told = participants(&stage.told("ann"));
    assert_eq!(told.iter().map(|info| info.state).collect::<Vec<_>>(), [MemberState::Disconnected, MemberState::Joining]);
    stage.publish("bob");
    let expected = (LeaveReason::DuplicateIdentity, LeaveAction::Disconnect);
    assert!(matches!(stage.told("bob").last(), Some(Notice::Leave { reason, action }) if (*reason, *action) == expected));
    let told = participants(&stage.told("ann"));
    assert_eq!(told.iter().map(|info| info.state).collect::<Vec<_>>(), [MemberState::Disconnected, MemberState::Joined]);
}

#[test]
fn a_lost_transport_ends_a_member_with_the_word_to_begin_anew() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    stage.offer("ann", first_offer());
    let transport = stage.transport("ann");
    let loss = pop_proto::control::TransportLoss::ConsentExpired;
    stage.event(pop_proto::control::Event::TransportLost { transport, loss });
    let expected = (LeaveReason::ConnectionTimeout, LeaveAction::Reconnect);
    assert!(matches!(stage.told("ann").last(), Some(Notice::Leave { reason, action }) if (*reason, *action) == expected));
    assert!(!stage.heard.commands.iter().any(|command| matches!(command, Command::CloseTransport { .. })), "the worker has forgotten it");
    assert_eq!(participants(&stage.told("bob"))[0].left, Some(LeaveReason::ConnectionTimeout));
    assert_eq!(stage.resume("ann"), Err(Refusal::UnknownParticipant));
}

#[test]
fn a_client_that_does_not_answer_is_asked_again() {
    let mut stage = Stage::new();
    stage.enter("bob");
    stage.offer("bob", first_offer());
    stage.publish("studio");
    assert_eq!(asked(&stage.told("bob")), [(0, 0)]);
    stage.publish("other");
    assert_eq!(asked(&stage.told("bob")), []);
    stage.pass(Duration::from_secs(5));
    assert_eq!(asked(&stage.told("bob")), [(0, 0)]);
}

#[test]
fn an_offer_that_was_under_way_does_not_make_the_client_add_sections_twice() {
    let mut stage = Stage::new();
    stage.enter("bob");
    stage.offer("bob", vec![receives("0", &[OPUS])]);
    stage.publish("studio");
    assert_eq!(asked(&stage.told("bob")), [(0, 1)]);
    stage.offer("bob", vec![receives("0", &[OPUS])]);
    assert_eq!(asked(&stage.told("bob")), [], "it was made before the client heard");
    stage.offer("bob", vec![receives("0", &[OPUS]), receives("1", &[VP8])]);
    assert_eq!(asked(&stage.told("bob")), []);
    assert!(stage.forwards().last().unwrap().1.is_some());
}

#[test]
fn what_a_resumed_client_has_not_seen_is_said_again() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let (seen, unseen) = (stage.add_track("ann", camera("a")).unwrap(), stage.add_track("ann", camera("b")).unwrap());
    stage.say("ann", MemberRequest::SocketClosed);
    stage.resume("ann").unwrap();
    stage.told("ann");
    let published = vec![("a".into(), seen)];
    stage.say("ann", MemberRequest::Sync(Box::new(Sync { published, ..Sync::default() })));
    let told: Vec<_> = stage
        .told("ann")
        .into_iter()
        .filter_map(|n| if let Notice::TrackPublished { track, .. } = n { Some(track.track) } else { None })
        .collect();
    assert_eq!(told, [unseen]);
}

/// Another node may have had it meanwhile and told more: who was there, too, believes what is newer than that alone.
#[test]
fn who_comes_back_is_told_anew_to_those_who_are_here() {
    let mut stage = Stage::new();
    let ann = stage.enter("ann");
    stage.enter("bob");
    stage.say("ann", MemberRequest::SocketClosed);
    stage.told("bob");
    let now_ms = 1_700_000_000_000;
    assert_eq!(stage.resume_at("ann", everything(), now_ms), Ok(Reply::Joined));
    let told = participants(&stage.told("bob"));
    let versions: Vec<_> = told.iter().filter(|info| info.participant == ann).map(|info| info.version).collect();
    assert_eq!(versions.len(), 1, "{told:?}");
    assert!(versions[0] > 1 << 31, "it counts as one that was taken over: {versions:x?}");
}

#[test]
fn a_sync_restores_what_was_not_taken() {
    let mut stage = Stage::new();
    stage.enter("bob");
    stage.offer("bob", first_offer());
    let track = stage.publish("studio");
    stage.offer("bob", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(track));
    stage.resume("bob").unwrap();
    let sync = Sync { tracks: vec![track, TrackId(99)], subscribe: false, ..Sync::default() };
    stage.say("bob", MemberRequest::Sync(Box::new(sync)));
    assert_eq!(stage.forwards().last().unwrap().1, None);
    assert!(!stage.told("bob").iter().any(|n| matches!(n, Notice::SubscriptionFailed { .. })), "what is gone is no failure");
}

#[test]
fn the_identity_of_a_route_cannot_be_taken_and_bounds_hold() {
    let mut stage = Stage::with(Limits { participants_max: 2, ..Limits::default() }, 1);
    stage.enter("ann");
    stage.enter("bob");
    let refused = stage.try_enter("cid", |_| {});
    assert_eq!(refused, Err(Refusal::Full(2)));
    assert_eq!(stage.try_enter("ann", |_| {}), Ok(Reply::Joined), "it takes its own place");
    assert_eq!(stage.try_enter("bob", |enter| enter.metadata = "x".repeat(70_000).into()), Err(Refusal::TextTooLong));
    assert!(stage.told("bob").iter().all(|notice| !matches!(notice, Notice::Leave { .. })), "a refused request changes nothing");
}

#[test]
fn an_offer_of_too_many_sections_or_twice_the_same_is_refused_and_changes_nothing() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let many = (0..321).map(|n| receives(&n.to_string(), &[VP8])).collect();
    let twice = vec![receives("0", &[VP8]), receives("0", &[VP8])];
    for sections in [many, twice, vec![receives("", &[VP8])]] {
        assert!(stage.offer_with("ann", "r", sections).is_none());
        assert!(matches!(stage.told("ann").last(), Some(Notice::OfferRefused { .. })));
        assert!(stage.heard.commands.is_empty());
    }
}

#[test]
fn a_client_whose_offers_never_have_the_sections_is_not_asked_for_ever() {
    let mut stage = Stage::new();
    stage.enter("bob");
    stage.offer("bob", vec![receives("0", &[OPUS])]);
    let track = stage.publish("studio");
    let mut asks = 0;
    let mut failed = false;
    for _ in 0..20 {
        stage.offer("bob", vec![receives("0", &[OPUS])]);
        stage.pass(Duration::from_secs(1));
        let told = stage.told("bob");
        asks += asked(&told).len();
        failed |= told
            .iter()
            .any(|notice| matches!(notice, Notice::SubscriptionFailed { track: id, error: SubscriptionError::Full } if *id == track));
    }
    assert_eq!((asks, failed), (3, true));
    stage.say("bob", MemberRequest::Subscribe { tracks: vec![track], subscribe: true });
    assert_eq!(asked(&stage.told("bob")), [(0, 1)], "it may try again");
}

#[test]
fn one_who_comes_back_hears_first_who_has_gone_meanwhile() {
    let mut stage = Stage::new();
    for name in ["ann", "bob", "cid"] {
        stage.enter(name);
    }
    let (bob, old) = (stage.members["bob"], stage.members["cid"]);
    stage.say("ann", MemberRequest::SocketClosed);
    stage.say("bob", MemberRequest::Leave);
    let new = stage.enter("cid");
    stage.told("ann");
    assert_eq!(stage.resume("ann"), Ok(Reply::Joined));
    let told = participants(&stage.told("ann"));
    let who: Vec<_> = told.iter().map(|info| (info.participant, info.state == MemberState::Disconnected)).collect();
    assert_eq!(who, [(bob, true), (new, false), (stage.members["ann"], false)], "{old} is here again under its identity");

    stage.pass(RESUME_GRACE);
    assert_eq!(stage.resume("ann"), Ok(Reply::Joined));
    assert!(participants(&stage.told("ann")).iter().all(|info| info.participant != bob), "everybody has heard");
}

#[test]
fn a_member_that_never_makes_an_offer_is_not_waited_for_longer_than_one_that_does_not_connect() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    stage.offer("bob", first_offer());
    stage.connect("bob");
    stage.pass(CONNECT_TIMEOUT - Duration::from_millis(1));
    assert!(!stage.told("ann").iter().any(|notice| matches!(notice, Notice::Leave { .. })));
    stage.pass(Duration::from_millis(1));
    let expected = (LeaveReason::ConnectionTimeout, LeaveAction::Reconnect);
    assert!(matches!(stage.told("ann").last(), Some(Notice::Leave { reason, action }) if (*reason, *action) == expected));
    assert!(!stage.told("bob").iter().any(|notice| matches!(notice, Notice::Leave { .. })));

    // The time to connect counts from the offer.
    stage.enter("cid");
    stage.pass(CONNECT_TIMEOUT - Duration::from_secs(1));
    stage.offer("cid", first_offer());
    stage.pass(CONNECT_TIMEOUT - Duration::from_secs(1));
    assert!(!stage.told("cid").iter().any(|notice| matches!(notice, Notice::Leave { .. })));
}

#[test]
fn a_transport_that_has_used_too_many_ssrcs_begins_anew() {
    let mut stage = Stage::new();
    stage.enter("bob");
    stage.publish("studio");
    let mut offers = 0;
    while !stage.told("bob").iter().any(|notice| matches!(notice, Notice::Leave { action: LeaveAction::Reconnect, .. })) {
        // A new section each time: two SSRCs.
        stage.offer_with("bob", "remote", vec![receives(&offers.to_string(), &[VP8])]);
        stage.heard.commands.clear();
        offers += 1;
        assert!(offers < 40_000, "for ever");
    }
    assert!(offers > 30_000, "{offers}");
}
