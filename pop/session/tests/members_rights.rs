//! What members may, what operators do, and who is seen, in fake time.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::collections::BTreeMap;

use pop_proto::control::{Command, MediaKind};
use pop_schemas::{ParticipantId, TrackId};
use pop_session::member::{
    AddTrack, AdminRequest, LeaveAction, LeaveReason, MemberRequest, MemberState, MetadataUpdate, Notice, PermissionSubject, Permissions,
    RequestRefusal, Source, SubscriptionError, SubscriptionPermission, Sync,
};
use pop_session::presence::{Applied, Manifest, Record, RemoteKey, RemoteTrack, Version};
use pop_session::{Kind, Limits, Refusal, Reply, Request};
use stage::*;

/// Ann's camera is taken by bob.
fn two() -> (Stage, TrackId) {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.enter("bob");
    let track = stage.add_track("ann", camera("cam")).unwrap();
    stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    stage.offer("bob", first_offer());
    stage.forget();
    (stage, track)
}

fn refusals(notices: &[Notice]) -> Vec<RequestRefusal> {
    let refused = |notice: &Notice| match notice {
        Notice::AddTrackRefused { refused, .. } => Some(*refused),
        Notice::RequestAnswered { refused, .. } => *refused,
        _ => None,
    };
    notices.iter().filter_map(refused).collect()
}

fn admin(stage: &mut Stage, request: AdminRequest) -> Result<Reply, Refusal> {
    stage.request(Request::Admin(request))
}

#[test]
fn what_may_not_be_published_is_refused_by_its_name() {
    let mut stage = Stage::with(Limits { tracks_max: 2, ..Limits::default() }, 1);
    stage.enter_as("ann", Permissions { sources: vec![Source::Microphone], ..everything() }, true);
    stage.enter_as("bob", Permissions { publish: false, ..everything() }, true);
    for (name, add) in [("ann", camera("c")), ("bob", microphone("m"))] {
        assert_eq!(stage.add_track(name, add), None);
        stage.say(name, MemberRequest::AddTrack(Box::new(camera("c"))));
        assert_eq!(refusals(&stage.told(name)), [RequestRefusal::NotAllowed]);
    }
    let mut refused = |add: AddTrack| {
        stage.told("ann");
        stage.say("ann", MemberRequest::AddTrack(Box::new(add)));
        refusals(&stage.told("ann"))
    };
    assert_eq!(refused(microphone("")), [RequestRefusal::Invalid]);
    assert_eq!(refused(AddTrack { kind: None, ..microphone("x") }), [RequestRefusal::Invalid]);
    assert_eq!(refused(AddTrack { name: "n".repeat(257).into(), ..microphone("x") }), [RequestRefusal::Invalid]);
    assert_eq!(refused(microphone("a")), []);
    assert_eq!(refused(microphone("a")), [RequestRefusal::Invalid], "its name is in use");
    assert_eq!(refused(microphone("b")), []);
    assert_eq!(refused(microphone("c")), [RequestRefusal::LimitExceeded]);
}

#[test]
fn an_unknown_track_and_one_that_cannot_be_decoded_fail() {
    let (mut stage, _) = two();
    stage.say("bob", MemberRequest::Subscribe { tracks: vec![TrackId(77)], subscribe: true });
    stage.enter("cid");
    let av1 = stage.add_track("cid", camera("cam")).unwrap();
    stage.offer("cid", vec![sends("0", "cam", &[AV1], &[])]);
    stage.offer("bob", first_offer());
    let failed: Vec<_> = stage
        .told("bob")
        .into_iter()
        .filter_map(|notice| if let Notice::SubscriptionFailed { track, error } = notice { Some((track, error)) } else { None })
        .collect();
    assert_eq!(failed, [(TrackId(77), SubscriptionError::UnknownTrack), (av1, SubscriptionError::Codec)]);
    stage.offer("bob", first_offer());
    assert!(asked(&stage.told("bob")).is_empty(), "nothing is asked for what can never be");
}

#[test]
fn who_takes_nothing_by_itself_takes_what_it_asks_for() {
    let (mut stage, track) = two();
    stage.enter_as("cid", everything(), false);
    let answer = stage.offer("cid", first_offer());
    assert!(answer.sections.values().all(|section| section.feeds.is_none()));
    assert!(asked(&stage.told("cid")).is_empty());
    stage.say("cid", MemberRequest::Subscribe { tracks: vec![track], subscribe: true });
    assert_eq!(asked(&stage.told("cid")), [(0, 0)]);
    stage.offer("cid", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(track));
    stage.say("cid", MemberRequest::Subscribe { tracks: vec![track], subscribe: false });
    assert_eq!(stage.forwards().last().unwrap().1, None);
}

#[test]
fn a_publisher_chooses_who_takes_its_tracks() {
    let (mut stage, track) = two();
    let ann = stage.members["ann"];
    let allow = |who: &str| {
        let entry = (PermissionSubject::Identity(identity(who)), Some(vec![track]));
        MemberRequest::SubscriptionPermission(SubscriptionPermission { all: false, participants: vec![entry] })
    };
    stage.say("ann", allow("cid"));
    let denied = |notices: &[Notice], expected| {
        notices.iter().any(|notice| {
            matches!(notice, Notice::SubscriptionPermission { publisher, track: of, allowed } if (*publisher, *of, *allowed) == (ann, track, expected))
        })
    };
    let told = stage.told("bob");
    assert!(denied(&told, false) && asked(&told).is_empty());
    assert_eq!(stage.forwards().last().unwrap().1, None);
    stage.say("ann", allow("bob"));
    let told = stage.told("bob");
    assert!(denied(&told, true));
    assert_eq!(asked(&told), [(0, 0)]);
    stage.offer("bob", first_offer());
    stage.offer("bob", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(track), "it goes on");
}

#[test]
fn a_permission_that_is_taken_back_ends_what_it_allowed() {
    let (mut stage, track) = two();
    let update = |who: &str, permissions| AdminRequest::Update {
        identity: identity(who),
        texts: MetadataUpdate::default(),
        permissions: Some(permissions),
    };
    assert_eq!(admin(&mut stage, update("bob", Permissions { subscribe: false, ..everything() })), Ok(Reply::Done));
    assert_eq!(stage.forwards().last().unwrap().1, None);
    assert!(stage.told("bob").iter().any(|notice| matches!(notice, Notice::Grants(grants) if !grants.permissions.subscribe)));
    admin(&mut stage, update("bob", everything())).unwrap();
    stage.offer("bob", first_offer());
    stage.offer("bob", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(track));

    admin(&mut stage, update("ann", Permissions { publish: false, ..everything() })).unwrap();
    assert!(stage.heard.commands.iter().any(|command| matches!(command, Command::CloseTrack { track: closed } if *closed == track)));
    assert!(stage.told("ann").iter().any(|notice| matches!(notice, Notice::TrackUnpublished(gone) if *gone == track)));
    assert!(participants(&stage.told("bob"))[0].tracks.is_empty());
}

#[test]
fn a_hidden_one_is_not_seen_and_sees() {
    let (mut stage, track) = two();
    stage.enter_as("ghost", Permissions { hidden: true, ..everything() }, true);
    stage.offer("ghost", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(track));
    assert!(stage.told("bob").is_empty());
    let Notice::Welcome(welcome) = &stage.told("ghost")[0] else { panic!("the welcome comes first") };
    assert_eq!((welcome.others.len(), welcome.room.participants), (2, 2));
    stage.say("ghost", MemberRequest::Leave);
    assert!(stage.told("bob").is_empty());

    let hide = |hidden| AdminRequest::Update {
        identity: identity("ann"),
        texts: MetadataUpdate::default(),
        permissions: Some(Permissions { hidden, ..everything() }),
    };
    admin(&mut stage, hide(true)).unwrap();
    assert_eq!(participants(&stage.told("bob"))[0].state, MemberState::Disconnected);
    assert_eq!(stage.forwards().last().unwrap().1, None);
    admin(&mut stage, hide(false)).unwrap();
    assert_eq!(participants(&stage.told("bob"))[0].tracks.len(), 1);
}

#[test]
fn texts_change_within_their_bounds_by_those_who_may() {
    let (mut stage, _) = two();
    stage.enter_as("cid", Permissions { update_metadata: false, ..everything() }, true);
    let update = |stage: &mut Stage, who: &str, update: MetadataUpdate| {
        stage.forget();
        stage.say(who, MemberRequest::UpdateMetadata(Box::new(update)));
        stage.told(who)
    };
    let name = |name: &str| MetadataUpdate { request: 9, name: Some(name.into()), ..MetadataUpdate::default() };
    assert_eq!(refusals(&update(&mut stage, "cid", name("x"))), [RequestRefusal::NotAllowed]);
    assert_eq!(refusals(&update(&mut stage, "bob", name(&"x".repeat(257)))), [RequestRefusal::LimitExceeded]);
    let long = MetadataUpdate { metadata: Some("x".repeat((64 << 10) + 1).into()), ..name("x") };
    assert_eq!(refusals(&update(&mut stage, "bob", long)), [RequestRefusal::LimitExceeded]);
    let set = |key: &str, value: &str| MetadataUpdate { attributes: BTreeMap::from([(key.into(), value.into())]), ..name("Bob") };
    let told = update(&mut stage, "bob", set("hand", "up"));
    assert!(matches!(told[0], Notice::RequestAnswered { request: 9, refused: None }));
    assert!(told.iter().any(|notice| matches!(notice, Notice::Grants(grants) if grants.name.as_ref() == "Bob")));
    let seen = &participants(&stage.told("ann"))[0];
    assert_eq!((seen.name.as_ref(), seen.attributes["hand"].as_ref()), ("Bob", "up"));
    let old = seen.version;
    update(&mut stage, "bob", set("hand", ""));
    let seen = &participants(&stage.told("ann"))[0];
    assert!(seen.attributes.is_empty() && seen.version > old, "an empty value removes the key");
}

#[test]
fn an_operator_lists_mutes_removes_and_ends() {
    let (mut stage, track) = two();
    let Ok(Reply::Participants(infos)) = admin(&mut stage, AdminRequest::List) else { panic!("it lists") };
    assert_eq!(infos.iter().map(|info| info.identity.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    let mute = |who: &str, track| AdminRequest::Mute { identity: identity(who), track, muted: true };
    assert_eq!(admin(&mut stage, mute("bob", track)), Err(Refusal::UnknownTrack));
    assert_eq!(admin(&mut stage, mute("zoe", track)), Err(Refusal::UnknownParticipant));
    assert_eq!(admin(&mut stage, mute("ann", track)), Ok(Reply::Done));
    assert!(stage.told("ann").iter().any(|notice| matches!(notice, Notice::Muted { muted: true, .. })));
    assert!(participants(&stage.told("bob"))[0].tracks[0].muted);
    let unsubscribe = AdminRequest::Subscribe { identity: identity("bob"), tracks: vec![track], subscribe: false };
    assert_eq!(admin(&mut stage, unsubscribe), Ok(Reply::Done));
    assert_eq!(stage.forwards().last().unwrap().1, None);
    assert_eq!(admin(&mut stage, AdminRequest::UpdateRoom { metadata: "agenda".into(), now_ms: 1 }), Ok(Reply::Done));
    assert!(stage.told("bob").iter().any(|notice| matches!(notice, Notice::Room(room) if room.metadata.as_ref() == "agenda")));
    assert_eq!(admin(&mut stage, AdminRequest::UpdateRoom { metadata: "x".repeat(70_000).into(), now_ms: 1 }), Err(Refusal::TextTooLong));
    assert_eq!(admin(&mut stage, AdminRequest::Remove(identity("ann"))), Ok(Reply::Done));
    let expected = (LeaveReason::Removed, LeaveAction::Disconnect);
    assert!(matches!(stage.told("ann").last(), Some(Notice::Leave { reason, action }) if (*reason, *action) == expected));
    assert_eq!(admin(&mut stage, AdminRequest::Delete), Ok(Reply::Done));
    assert!(matches!(stage.told("bob").last(), Some(Notice::Leave { reason: LeaveReason::RoomDeleted, .. })));
    assert!(stage.session.is_empty());
}

#[test]
fn a_node_that_stops_tells_its_members_to_come_back() {
    let (mut stage, _) = two();
    assert_eq!(stage.request(Request::Shutdown), Ok(Reply::Done));
    let expected = (LeaveReason::ServerShutdown, LeaveAction::Reconnect);
    for name in ["ann", "bob"] {
        assert!(matches!(stage.told(name).last(), Some(Notice::Leave { reason, action }) if (*reason, *action) == expected));
    }
}

#[test]
fn each_change_of_ours_is_put_with_a_newer_version_and_the_end_too() {
    let (mut stage, _) = two();
    let bob = stage.members["bob"];
    stage.heard.records.clear();
    let update = MetadataUpdate { name: Some("Bob".into()), ..MetadataUpdate::default() };
    stage.say("bob", MemberRequest::UpdateMetadata(Box::new(update)));
    stage.say("bob", MemberRequest::Leave);
    let records: Vec<_> = stage.heard.records.iter().filter(|record| record.participant == bob).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].manifest.as_ref().map(|manifest| manifest.name.to_string()), Some("Bob".into()));
    assert!(records[1].manifest.is_none() && records[1].version > records[0].version);
    assert_eq!(stage.session.local_records().count(), 1);
}

#[test]
fn participants_of_other_nodes_come_change_and_go() {
    let (mut stage, _) = two();
    let far = ParticipantId(500);
    let mut counter = 0;
    let mut write = |stage: &mut Stage, tracks: Option<&[u64]>| {
        counter += 1;
        let mut manifest = Manifest::new(identity("far"), Kind::Member, everything());
        let track = |id: &u64| RemoteTrack::new(info(TrackId(*id), MediaKind::Video));
        manifest.tracks = tracks.unwrap_or_default().iter().map(track).collect();
        let record = Record {
            key: RemoteKey { node: 2, participant: far },
            version: Version { epoch: 0, counter },
            manifest: tracks.map(|_| manifest),
        };
        let applied = stage.session.handle_record(stage.now, record);
        stage.drain();
        applied
    };
    assert_eq!(write(&mut stage, Some(&[7])), Applied::New);
    let told = stage.told("bob");
    let seen = &participants(&told)[0];
    assert_eq!((seen.participant, seen.tracks[0].track), (far, TrackId(7)));
    assert!(asked(&told).is_empty(), "nothing of it is here to be fed");
    stage.say("ann", MemberRequest::Subscribe { tracks: vec![TrackId(7)], subscribe: true });
    assert!(!stage.told("ann").iter().any(|notice| matches!(notice, Notice::SubscriptionFailed { .. })), "it waits");
    stage.enter("cid");
    let Notice::Welcome(welcome) = &stage.told("cid")[0] else { panic!("the welcome comes first") };
    assert_eq!(welcome.others.len(), 3);
    write(&mut stage, None);
    let gone = &participants(&stage.told("bob"))[0];
    assert_eq!((gone.participant, gone.state), (far, MemberState::Disconnected));
    let record =
        Record { key: RemoteKey { node: 2, participant: stage.members["ann"] }, version: Version { epoch: 0, counter: 9 }, manifest: None };
    assert_eq!(stage.session.handle_record(stage.now, record), Applied::Stale, "ours is not theirs to write");
}

#[test]
fn the_welcome_comes_first_whatever_is_not_allowed() {
    let (mut stage, _) = two();
    let permission = SubscriptionPermission { all: false, participants: Vec::new() };
    stage.say("ann", MemberRequest::SubscriptionPermission(permission));
    for permissions in [everything(), Permissions { subscribe: false, ..everything() }] {
        stage.enter_as("cid", permissions, true);
        let told = stage.told("cid");
        assert!(matches!(told[0], Notice::Welcome(_)), "{told:?}");
    }
}

#[test]
fn one_that_changes_without_end_is_told_now_and_then() {
    let (mut stage, track) = two();
    let mut updates = 0;
    for n in 0..1_000 {
        stage.say("ann", MemberRequest::Mute { track, muted: n % 2 == 0 });
        stage.pass(std::time::Duration::from_millis(10));
        updates += stage.told("bob").iter().filter(|notice| matches!(notice, Notice::Participants(_))).count();
    }
    assert!((40..=62).contains(&updates), "20 at once and 4 each second of 10: {updates}");
    stage.say("ann", MemberRequest::Mute { track, muted: true });
    stage.pass(std::time::Duration::from_secs(1));
    assert!(participants(&stage.told("bob"))[0].tracks[0].muted, "the last word is told");

    let update = || MemberRequest::UpdateMetadata(Box::new(MetadataUpdate { name: Some("x".into()), ..MetadataUpdate::default() }));
    for _ in 0..11 {
        stage.say("bob", update());
    }
    assert_eq!(refusals(&stage.told("bob")), [RequestRefusal::LimitExceeded]);
}

#[test]
fn tracks_that_are_gone_do_not_use_up_what_a_member_may_take() {
    let (mut stage, _) = two();
    stage.connect("ann");
    stage.connect("bob");
    for n in 1..600 {
        let cid = n.to_string();
        let track = stage.add_track("ann", camera(&cid)).unwrap();
        stage.offer("ann", vec![sends("1", &cid, &[VP8], &[])]);
        stage.say("bob", MemberRequest::Subscribe { tracks: vec![track], subscribe: n % 2 == 0 });
        stage.forget();
    }
    let last = stage.add_track("ann", camera("last")).unwrap();
    stage.offer("ann", vec![sends("1", "last", &[VP8], &[])]);
    stage.offer("bob", first_offer());
    stage.offer("bob", first_offer());
    assert_eq!(stage.forwards().last().unwrap().1, Some(last));
}

#[test]
fn a_viewer_gets_no_track_that_its_publisher_keeps_from_it() {
    let (mut stage, track) = two();
    stage.watch();
    let viewer = stage.viewer_section();
    assert_eq!(stage.forwards().last(), Some(&(viewer, Some(track))));
    let permission = |all| MemberRequest::SubscriptionPermission(SubscriptionPermission { all, participants: Vec::new() });
    stage.say("ann", permission(false));
    assert!(stage.forwards().contains(&(viewer, None)));
    stage.watch();
    assert_eq!(stage.forwards(), [], "nor does one that comes later");
    stage.say("ann", permission(true));
    assert!(stage.forwards().contains(&(viewer, Some(track))));

    let permissions = |hidden| Some(Permissions { hidden, ..everything() });
    let update =
        |hidden| AdminRequest::Update { identity: identity("ann"), texts: MetadataUpdate::default(), permissions: permissions(hidden) };
    admin(&mut stage, update(true)).unwrap();
    assert!(stage.forwards().contains(&(viewer, None)), "it is not shown");
    admin(&mut stage, update(false)).unwrap();
    assert!(stage.forwards().contains(&(viewer, Some(track))));
}

#[test]
fn a_viewer_gets_nothing_of_a_track_that_an_operator_has_silenced() {
    let (mut stage, track) = two();
    stage.watch();
    let early = stage.viewer_section();
    let mute = |stage: &mut Stage, muted| admin(stage, AdminRequest::Mute { identity: identity("ann"), track, muted }).unwrap();
    let paused = |stage: &mut Stage, section| {
        let wish = |command: &Command| match command {
            Command::Wish { subscription, wish } if *subscription == section => Some(wish.paused),
            _ => None,
        };
        let last = stage.heard.commands.iter().filter_map(wish).next_back();
        stage.forget();
        last
    };
    assert_eq!(paused(&mut stage, early), None);
    mute(&mut stage, true);
    assert_eq!(paused(&mut stage, early), Some(true));
    stage.watch();
    let late = stage.viewer_section();
    assert_eq!(paused(&mut stage, late), Some(true), "nor does one that comes later");
    mute(&mut stage, false);
    assert_eq!(paused(&mut stage, late), Some(false));
}

#[test]
fn a_section_that_sends_what_was_ended_is_not_the_next_track_that_is_announced() {
    let (mut stage, track) = two();
    let update = |sources| AdminRequest::Update {
        identity: identity("ann"),
        texts: MetadataUpdate::default(),
        permissions: Some(Permissions { sources, ..everything() }),
    };
    admin(&mut stage, update(vec![Source::ScreenShare])).unwrap();
    assert!(stage.told("ann").iter().any(|notice| matches!(notice, Notice::TrackUnpublished(ended) if *ended == track)));
    let screen = stage.add_track("ann", AddTrack { source: Source::ScreenShare, ..camera("screen") });
    let answer = stage.offer("ann", vec![sends("0", "cam", &[VP8], &[])]);
    assert_eq!(answer.sections["0"].takes, None, "it is the camera still");
    let answer = stage.offer("ann", vec![sends("0", "cam", &[VP8], &[]), sends("1", "{other}", &[VP8], &[])]);
    assert_eq!((answer.sections["0"].takes, answer.sections["1"].takes), (None, screen));
}

#[test]
fn one_that_comes_back_hears_what_it_may_and_what_was_ended_meanwhile() {
    let (mut stage, track) = two();
    let own = stage.add_track("bob", microphone("mic")).unwrap();
    let permission = |all| MemberRequest::SubscriptionPermission(SubscriptionPermission { all, participants: Vec::new() });
    for name in ["ann", "bob"] {
        stage.say(name, MemberRequest::SocketClosed);
    }
    stage.resume("ann").unwrap();
    stage.say("ann", permission(false));
    let listener = Permissions { publish: false, ..everything() };
    let update = AdminRequest::Update { identity: identity("bob"), texts: MetadataUpdate::default(), permissions: Some(listener.clone()) };
    admin(&mut stage, update).unwrap();
    assert!(stage.told("bob").is_empty());

    let allowed = |notices: &[Notice]| {
        let told = notices.iter().filter_map(|notice| match notice {
            Notice::SubscriptionPermission { track, allowed, .. } => Some((*track, *allowed)),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    stage.resume("bob").unwrap();
    let notices = stage.told("bob");
    assert!(notices.iter().any(|notice| matches!(notice, Notice::Grants(grants) if grants.permissions == listener)), "{notices:?}");
    assert_eq!(allowed(&notices), [(track, false)]);
    stage.say("bob", MemberRequest::Sync(Box::new(Sync { published: vec![("mic".into(), own)], subscribe: true, ..Sync::default() })));
    assert!(stage.told("bob").iter().any(|notice| matches!(notice, Notice::TrackUnpublished(ended) if *ended == own)));

    stage.say("bob", MemberRequest::SocketClosed);
    stage.say("ann", permission(true));
    stage.resume("bob").unwrap();
    assert_eq!(allowed(&stage.told("bob")), [(track, true)]);
}

#[test]
fn a_token_that_allows_less_takes_over_no_member() {
    let mut stage = Stage::new();
    stage.enter("ann");
    let some = [Source::Camera, Source::Microphone].to_vec();
    for less in [
        Permissions { publish: false, ..everything() },
        Permissions { subscribe: false, ..everything() },
        Permissions { publish_data: false, ..everything() },
        Permissions { update_metadata: false, ..everything() },
        Permissions { sources: some.clone(), ..everything() },
    ] {
        assert_eq!(stage.resume_as("ann", less.clone()), Err(Refusal::UnknownParticipant), "{less:?}");
    }
    assert_eq!(stage.resume_as("ann", everything()), Ok(Reply::Joined));

    stage.enter_as("bob", Permissions { publish: false, ..everything() }, true);
    let update =
        |permissions| AdminRequest::Update { identity: identity("bob"), texts: MetadataUpdate::default(), permissions: Some(permissions) };
    admin(&mut stage, update(Permissions { sources: some, ..everything() })).unwrap();
    assert_eq!(stage.resume_as("bob", Permissions { publish: false, ..everything() }), Ok(Reply::Joined), "its first token");
    assert_eq!(
        stage.resume_as("bob", Permissions { sources: vec![Source::Camera], ..everything() }),
        Ok(Reply::Joined),
        "more than the first"
    );
    let other = Permissions { sources: vec![Source::Camera], subscribe: false, ..everything() };
    assert_eq!(stage.resume_as("bob", other), Err(Refusal::UnknownParticipant));
}
