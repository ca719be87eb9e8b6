//! Data messages, speakers and connections between nodes, in fake time: what each session tells of its people is handed to the others.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{Command, DataMessage, Event, TrackStats};
use pop_schemas::{ParticipantId, TrackId};
use pop_session::member::{AdminRequest, ConnectionGrade, ConnectionQuality, MemberRequest, Notice, Permissions, Speaker, Sync};
use pop_session::presence::{Record, RemoteKey};
use pop_session::session::{Abroad, RoomWord};
use pop_session::{Refusal, Reply, Request};
use stage::*;

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

/// Nodes whose records always come; what is told abroad goes along links that stand.
struct Pop {
    nodes: BTreeMap<u64, Stage>,
    /// `(of, to)`: data of the first goes to the second.
    followed: BTreeSet<(u64, u64)>,
    /// Of these nothing crosses.
    down: BTreeSet<(u64, u64)>,
    /// Messages that have crossed a link.
    crossed: Vec<(u64, u64, Vec<u8>)>,
}

impl Pop {
    fn new() -> Pop {
        let nodes = [A, B, C].map(|node| (node, Stage::on_node(node))).into();
        Pop { nodes, followed: BTreeSet::new(), down: BTreeSet::new(), crossed: Vec::new() }
    }

    /// Ann on A, bob and ben on B, eve on C, all connected, all links up.
    fn with_people() -> Pop {
        let mut pop = Pop::new();
        for (node, name) in [(A, "ann"), (B, "bob"), (B, "ben"), (C, "eve")] {
            pop.on(node, |stage| {
                stage.enter(name);
                stage.offer(name, first_offer());
                stage.connect(name);
            });
        }
        for (by, of) in [(A, B), (A, C), (B, A), (B, C), (C, A), (C, B)] {
            pop.follow(by, of);
        }
        pop.nodes.values_mut().for_each(Stage::forget);
        pop.crossed.clear();
        pop
    }

    fn on<R>(&mut self, node: u64, act: impl FnOnce(&mut Stage) -> R) -> R {
        let result = act(self.nodes.get_mut(&node).unwrap());
        self.carry();
        result
    }

    fn carry(&mut self) {
        loop {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            let mut is_done = true;
            for from in ids.iter().copied() {
                let heard = &mut self.nodes.get_mut(&from).unwrap().heard;
                let (records, abroad) = (std::mem::take(&mut heard.records), std::mem::take(&mut heard.abroad));
                is_done &= records.is_empty() && abroad.is_empty();
                for record in records {
                    for to in ids.iter().copied().filter(|to| *to != from) {
                        let stage = self.nodes.get_mut(&to).unwrap();
                        let key = RemoteKey { node: from, participant: record.participant };
                        stage.session.handle_record(stage.now, Record { key, version: record.version, manifest: record.manifest.clone() });
                        stage.drain();
                    }
                }
                for (node, told) in abroad {
                    if told == Abroad::Followed {
                        self.followed.insert((from, node.expect("one follows")));
                        continue;
                    }
                    // To all nodes, whether they follow or not.
                    if matches!(told, Abroad::Room(_)) {
                        let is_told = |to: &u64| *to != from && node.is_none_or(|node| node == *to) && !self.down.contains(&(from, *to));
                        for to in ids.iter().copied().filter(is_told).collect::<Vec<_>>() {
                            self.hand(from, to, &told);
                        }
                        continue;
                    }
                    let to: Vec<_> =
                        self.followed.iter().filter(|(of, to)| *of == from && node.is_none_or(|node| node == *to)).copied().collect();
                    for (_, to) in to {
                        self.hand(from, to, &told);
                    }
                }
            }
            if is_done {
                return;
            }
        }
    }

    fn hand(&mut self, from: u64, to: u64, told: &Abroad) {
        let stage = self.nodes.get_mut(&to).unwrap();
        match told {
            Abroad::Data { sender, message } => {
                self.crossed.push((from, to, message.body.to_vec()));
                stage.session.handle_remote_data(stage.now, from, *sender, message.clone());
            }
            Abroad::Heard { speaking, connections } => stage.session.handle_heard(stage.now, from, speaking, connections),
            Abroad::Room(word) => stage.session.handle_room_word(stage.now, word.clone()),
            Abroad::Followed => unreachable!("it is for the link"),
        }
        stage.drain();
    }

    /// Node `by` says to node `of` what it has.
    fn follow(&mut self, by: u64, of: u64) {
        self.down.remove(&(of, by));
        let received = self.nodes[&by].session.received_of(of);
        self.on(of, |stage| {
            stage.session.handle_follow(stage.now, by, Duration::from_secs(60), &received);
            stage.drain();
        });
    }

    /// Nothing crosses until the second follows the first again.
    fn cut(&mut self, of: u64, to: u64) {
        self.followed.remove(&(of, to));
        self.down.insert((of, to));
    }

    fn say(&mut self, node: u64, name: &str, message: DataMessage) {
        self.on(node, |stage| stage.event(Event::Data { transport: stage.transport(name), message: Arc::new(message) }));
    }

    /// Bodies that `name` got since the last look.
    fn got(&mut self, node: u64, name: &str) -> Vec<Vec<u8>> {
        let stage = self.nodes.get_mut(&node).unwrap();
        let transport = stage.transport(name);
        let (mut got, mut rest) = (Vec::new(), Vec::new());
        for command in std::mem::take(&mut stage.heard.commands) {
            match command {
                Command::SendData { transport: to, message } if to == transport => got.push(message.body.to_vec()),
                other => rest.push(other),
            }
        }
        stage.heard.commands = rest;
        got
    }

    fn pass(&mut self, duration: Duration) {
        let step = Duration::from_millis(100);
        let mut passed = Duration::ZERO;
        while passed < duration {
            self.nodes.values_mut().for_each(|stage| stage.pass(step));
            self.carry();
            passed += step;
        }
    }

    fn told(&mut self, node: u64, name: &str) -> Vec<Notice> {
        self.nodes.get_mut(&node).unwrap().told(name)
    }

    fn id(&self, node: u64, name: &str) -> ParticipantId {
        self.nodes[&node].members[name]
    }
}

fn message(reliable: bool, sequence: u32, to: &[&str], body: &[u8]) -> DataMessage {
    DataMessage { reliable, to: to.iter().map(|name| identity(name)).collect(), sequence, body: body.into() }
}

fn bodies(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn a_message_reaches_all_on_all_nodes_once_and_crosses_once_per_node() {
    let mut pop = Pop::with_people();
    pop.say(A, "ann", message(true, 1, &[], b"one"));
    pop.say(A, "ann", message(false, 0, &[], b"two"));
    for (node, name) in [(B, "bob"), (B, "ben"), (C, "eve")] {
        assert_eq!(pop.got(node, name), bodies(&["one", "two"]), "{name}");
    }
    assert_eq!(pop.got(A, "ann"), bodies(&[]), "not to its sender");
    assert_eq!(pop.crossed.len(), 4, "one copy per node: {:?}", pop.crossed);
}

#[test]
fn a_named_message_crosses_only_to_the_nodes_of_those_whom_it_names_with_their_names_alone() {
    let mut pop = Pop::with_people();
    pop.say(A, "ann", message(true, 1, &["ben", "bob", "ben", "zoe"], b"b"));
    assert_eq!(pop.crossed, [(A, B, b"b".to_vec())]);
    for (node, name, got) in [(B, "bob", &["b"][..]), (B, "ben", &["b"]), (C, "eve", &[])] {
        assert_eq!(pop.got(node, name), bodies(got), "{name}");
    }
    pop.say(A, "ann", message(true, 2, &["eve"], b"e"));
    assert_eq!(pop.got(C, "eve"), bodies(&["e"]));
    assert_eq!(pop.got(B, "bob"), bodies(&[]));
    // Eve is sent the list of those on her own node.
    let heard = &mut pop.nodes.get_mut(&A).unwrap().heard;
    heard.abroad.clear();
    let transport = pop.nodes[&A].transport("ann");
    let stage = pop.nodes.get_mut(&A).unwrap();
    stage.event(Event::Data { transport, message: Arc::new(message(true, 3, &["eve", "bob"], b"both")) });
    let told: Vec<_> = std::mem::take(&mut stage.heard.abroad);
    let names: Vec<_> = told
        .iter()
        .map(|(node, told)| match told {
            Abroad::Data { message, .. } => (node.unwrap(), message.to.iter().map(ToString::to_string).collect::<Vec<_>>()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, [(B, vec!["bob".to_owned()]), (C, vec!["eve".to_owned()])]);
}

#[test]
fn what_is_said_while_a_link_is_down_or_too_slow_comes_when_it_is_followed_again_in_order_and_once() {
    let mut pop = Pop::with_people();
    pop.say(A, "ann", message(true, 1, &[], b"1"));
    pop.cut(A, B);
    for n in 2..=4_u32 {
        pop.say(A, "ann", message(true, n, &[], n.to_string().as_bytes()));
    }
    pop.say(A, "ann", message(true, 5, &["eve"], b"5"));
    pop.say(A, "ann", message(false, 0, &[], b"lossy"));
    assert_eq!(pop.got(C, "eve"), bodies(&["1", "2", "3", "4", "5", "lossy"]), "nobody else waits");
    assert_eq!(pop.got(B, "bob"), bodies(&["1"]));
    pop.follow(B, A);
    pop.say(A, "ann", message(true, 6, &[], b"6"));
    assert_eq!(pop.got(B, "bob"), bodies(&["2", "3", "4", "6"]), "what is lossy, or for others, is not repeated");
    // A node that asks for what it has, has it once.
    pop.on(A, |stage| {
        stage.session.handle_follow(stage.now, B, Duration::from_secs(60), &[]);
        stage.drain();
    });
    assert_eq!(pop.got(B, "bob"), bodies(&[]));
    assert!(pop.nodes[&B].session.data_drops().repeated > 0);
}

#[test]
fn a_node_that_has_just_come_gets_nothing_that_was_said_before() {
    let mut pop = Pop::with_people();
    pop.cut(A, B);
    pop.say(A, "ann", message(true, 1, &[], b"before"));
    pop.pass(Duration::from_secs(2));
    pop.say(A, "ann", message(true, 2, &[], b"after"));
    pop.on(A, |stage| {
        stage.session.handle_follow(stage.now, B, Duration::from_secs(1), &[]);
        stage.drain();
    });
    assert_eq!(pop.got(B, "bob"), bodies(&["after"]));
}

#[test]
fn a_client_that_comes_back_gets_what_people_of_other_nodes_have_said_meanwhile() {
    let mut pop = Pop::with_people();
    pop.say(A, "ann", message(true, 1, &[], b"1"));
    pop.on(B, |stage| stage.session.handle_data_overflow(stage.now, stage.transport("bob")));
    pop.say(A, "ann", message(true, 2, &[], b"2"));
    assert_eq!(pop.got(B, "bob"), bodies(&["1"]), "who is behind gets the rest when it is back");
    assert_eq!(pop.got(B, "ben"), bodies(&["1", "2"]));
    let ann = pop.id(A, "ann");
    pop.on(B, |stage| {
        assert_eq!(stage.resume("bob"), Ok(Reply::Joined));
        stage.say("bob", MemberRequest::Sync(Box::new(Sync { received: vec![(ann, 1)], ..Sync::default() })));
    });
    assert_eq!(pop.got(B, "bob"), bodies(&["2"]));
}

#[test]
fn what_one_said_at_its_former_node_is_not_heard_there_again_from_its_next_one() {
    let mut pop = Pop::with_people();
    pop.on(A, |stage| {
        stage.enter("amy");
        stage.offer("amy", first_offer());
        stage.connect("amy");
    });
    for n in 1..=3 {
        pop.say(A, "ann", message(true, n, &[], n.to_string().as_bytes()));
    }
    assert_eq!(pop.got(A, "amy"), bodies(&["1", "2", "3"]));
    let ann = pop.id(A, "ann");
    // C takes A for dead, and A lives.
    pop.on(C, |stage| {
        stage.session.handle_node_away(stage.now, A);
        stage.drain();
        stage.members.insert("ann", ann);
        assert_eq!(stage.resume("ann"), Ok(Reply::Joined));
        stage.offer("ann", first_offer());
        stage.connect("ann");
    });
    pop.follow(A, C);
    for n in 2..=4 {
        pop.on(A, |stage| {
            stage.session.handle_remote_data(stage.now, C, Some(ann), Arc::new(message(true, n, &[], n.to_string().as_bytes())))
        });
    }
    pop.on(A, |stage| stage.drain());
    assert_eq!(pop.got(A, "amy"), bodies(&["4"]));
}

#[test]
fn a_node_speaks_for_its_own_people_alone() {
    let mut pop = Pop::with_people();
    let (bob, eve, ann) = (pop.id(B, "bob"), pop.id(C, "eve"), pop.id(A, "ann"));
    let said = Arc::new(message(true, 1, &[], b"forged"));
    pop.on(B, |stage| {
        for sender in [bob, eve, ParticipantId(77)] {
            stage.session.handle_remote_data(stage.now, A, Some(sender), said.clone());
        }
        let long = Arc::new(DataMessage { body: vec![0; (64 << 10) + 1].into(), ..message(true, 1, &[], b"") });
        stage.session.handle_remote_data(stage.now, A, Some(ann), long);
        stage.drain();
        let poor = ConnectionQuality { participant: eve, grade: ConnectionGrade::Poor, score: 1.0 };
        stage.session.handle_heard(stage.now, A, &[(bob, 9), (eve, 9)], &[poor]);
        stage.drain();
    });
    assert_eq!(pop.got(B, "bob"), bodies(&[]));
    assert_eq!(pop.got(B, "ben"), bodies(&[]));
    let drops = pop.nodes[&B].session.data_drops();
    assert_eq!((drops.foreign, drops.oversized), (3, 1));
    assert!(pop.nodes[&B].session.unknown_events() >= 3);
    assert!(pop.told(B, "ben").iter().all(|notice| !matches!(notice, Notice::Speakers(_) | Notice::Quality(_))));
}

#[test]
fn who_may_not_send_data_is_not_heard_whatever_its_node_says() {
    let mut pop = Pop::with_people();
    let mute = Permissions { publish_data: false, ..everything() };
    pop.on(A, |stage| {
        stage.enter_as("mute", mute, true);
        stage.offer("mute", first_offer());
        stage.connect("mute");
    });
    let id = pop.id(A, "mute");
    pop.say(A, "mute", message(true, 1, &[], b"no"));
    pop.on(B, |stage| {
        stage.session.handle_remote_data(stage.now, A, Some(id), Arc::new(message(true, 1, &[], b"no")));
        stage.drain();
    });
    assert_eq!(pop.got(B, "bob"), bodies(&[]));
    assert_eq!(pop.nodes[&B].session.data_drops().foreign, 1);
}

#[test]
fn an_operators_message_reaches_all_nodes() {
    let mut pop = Pop::with_people();
    let request = AdminRequest::SendData(Arc::new(message(true, 0, &[], b"operator")));
    pop.on(B, |stage| assert_eq!(stage.request(Request::Admin(request)), Ok(Reply::Done)));
    for (node, name) in [(A, "ann"), (B, "bob"), (C, "eve")] {
        assert_eq!(pop.got(node, name), bodies(&["operator"]), "{name}");
    }
}

fn say_of_room(pop: &mut Pop, node: u64, metadata: &str, now_ms: u64) -> Result<Reply, Refusal> {
    let request = AdminRequest::UpdateRoom { metadata: metadata.into(), now_ms };
    pop.on(node, |stage| stage.request(Request::Admin(request)))
}

/// What the members of `node` were told the room's metadata to be, since the last look.
fn told_metadata(pop: &mut Pop, node: u64, name: &str) -> Vec<String> {
    let of = |notice: Notice| if let Notice::Room(room) = notice { Some(room.metadata.to_string()) } else { None };
    pop.told(node, name).into_iter().filter_map(of).collect()
}

fn metadata_at(pop: &mut Pop, node: u64) -> String {
    match pop.on(node, |stage| stage.request(Request::Admin(AdminRequest::Describe))) {
        Ok(Reply::Room(info)) => info.metadata.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_operator_says_of_the_room_at_one_node_is_told_to_members_of_all_once() {
    let mut pop = Pop::with_people();
    assert_eq!(say_of_room(&mut pop, C, "on air", 5), Ok(Reply::Done));
    for (node, name) in [(A, "ann"), (B, "bob"), (B, "ben"), (C, "eve")] {
        assert_eq!(told_metadata(&mut pop, node, name), ["on air"], "{name}");
    }
    // The clock of another node is behind: what it says is later all the same.
    assert_eq!(say_of_room(&mut pop, A, "over", 1), Ok(Reply::Done));
    assert_eq!([A, B, C].map(|node| metadata_at(&mut pop, node)), ["over"; 3]);
    let made = AdminRequest::Create { metadata: None, participants_max: 3, now_ms: 2 };
    pop.on(B, |stage| assert!(matches!(stage.request(Request::Admin(made)), Ok(Reply::Room(_)))));
    let full = pop.on(A, |stage| stage.try_enter("zoe", |_| {}));
    assert_eq!(full, Err(Refusal::Full(3)), "its bound holds at all nodes");
}

#[test]
fn a_node_that_comes_to_a_room_hears_what_was_said_of_it_and_one_that_keeps_it_for_nobody_tells() {
    let mut pop = Pop::new();
    let made = AdminRequest::Create { metadata: Some("stage left".into()), participants_max: 0, now_ms: 5 };
    pop.on(C, |stage| assert!(matches!(stage.request(Request::Admin(made)), Ok(Reply::Room(_)))));
    // Another node's room begins later: it has heard nothing yet.
    pop.nodes.insert(A, Stage::on_node(A));
    pop.on(A, |stage| stage.enter("ann"));
    assert_eq!(metadata_at(&mut pop, A), "");
    pop.on(C, |stage| {
        stage.session.tell_room_to(A);
        stage.drain();
    });
    assert_eq!(told_metadata(&mut pop, A, "ann"), ["stage left"]);
    pop.nodes.insert(B, Stage::on_node(B));
    pop.follow(B, A);
    assert_eq!(metadata_at(&mut pop, B), "stage left", "it comes with what is followed");
}

#[test]
fn after_a_cut_all_nodes_have_what_was_said_last() {
    let mut pop = Pop::with_people();
    pop.cut(A, B);
    pop.cut(B, A);
    assert_eq!(say_of_room(&mut pop, A, "first", 10), Ok(Reply::Done));
    assert_eq!(say_of_room(&mut pop, B, "second", 20), Ok(Reply::Done));
    assert_eq!([A, B, C].map(|node| metadata_at(&mut pop, node)), ["first", "second", "second"]);
    pop.follow(A, B);
    pop.follow(B, A);
    assert_eq!([A, B, C].map(|node| metadata_at(&mut pop, node)), ["second"; 3]);
}

#[test]
fn what_another_node_says_of_a_room_is_bounded_and_of_no_room_nothing_can_be_said() {
    let mut pop = Pop::with_people();
    let before = pop.nodes[&B].session.unknown_events();
    let long = RoomWord { metadata: "x".repeat((64 << 10) + 1).into(), participants_max: 0, said: (9, A) };
    pop.on(B, |stage| stage.session.handle_room_word(stage.now, long));
    assert_eq!((metadata_at(&mut pop, B).as_str(), pop.nodes[&B].session.unknown_events()), ("", before + 1));
    let mut nobody = Pop::new();
    assert_eq!(say_of_room(&mut nobody, A, "nowhere", 1), Err(Refusal::UnknownParticipant));
    // The last moment there is leaves room for one more word.
    let last = RoomWord { metadata: "last".into(), participants_max: 0, said: (u64::MAX, A) };
    pop.on(B, |stage| {
        stage.session.handle_room_word(stage.now, last);
        stage.drain();
    });
    assert_eq!(say_of_room(&mut pop, C, "after", 1), Ok(Reply::Done));
    assert_eq!(metadata_at(&mut pop, C), "after");
}

/// A microphone of `name`, whose first packet has come.
fn microphone_of(pop: &mut Pop, node: u64, name: &str) -> TrackId {
    pop.on(node, |stage| {
        let track = stage.add_track(name, microphone("mic")).unwrap();
        let mut sections = first_offer();
        sections.push(sends("9", "mic", &[OPUS], &[]));
        stage.offer(name, sections);
        stage.event(Event::TrackStarted { track });
        track
    })
}

fn speakers(notices: &[Notice]) -> Vec<Speaker> {
    let of = |notice: &Notice| match notice {
        Notice::Speakers(speakers) => speakers.to_vec(),
        _ => Vec::new(),
    };
    notices.iter().flat_map(of).collect()
}

#[test]
fn who_speaks_on_one_node_is_shown_on_all_three_times_a_second_at_most_until_it_stops() {
    let mut pop = Pop::with_people();
    let track = microphone_of(&mut pop, A, "ann");
    let ann = pop.id(A, "ann");
    pop.nodes.values_mut().for_each(Stage::forget);
    for level in (0..50).map(|n| 10 + n % 7) {
        pop.on(A, |stage| stage.event(Event::AudioLevel { track, level, active_percent: 100 }));
        pop.pass(Duration::from_millis(100));
    }
    for (node, name) in [(B, "bob"), (C, "eve")] {
        let notices = pop.told(node, name);
        let spoke = speakers(&notices);
        let updates = notices.iter().filter(|notice| matches!(notice, Notice::Speakers(_))).count();
        assert!(spoke.iter().all(|speaker| speaker.participant == ann && speaker.active) && !spoke.is_empty(), "{spoke:?}");
        assert!(updates <= 15, "{updates} updates in 5 s");
    }
    // One who comes now is told, too; and one who stops is no longer shown.
    pop.on(C, |stage| stage.enter("late"));
    let notices = pop.told(C, "late");
    assert!(speakers(&notices).iter().any(|speaker| speaker.participant == ann && speaker.active));
    pop.pass(Duration::from_secs(3));
    let last = speakers(&pop.told(B, "bob")).pop().expect("bob is told");
    assert!(last.participant == ann && !last.active, "{last:?}");
}

#[test]
fn a_worker_hears_whose_cameras_that_other_nodes_take_speak_who_stops_before_who_speaks_on() {
    let mut stage = Stage::new();
    let mut tracks = Vec::new();
    for name in ["ann", "bob"] {
        stage.enter(name);
        let microphone = stage.add_track(name, microphone("mic")).unwrap();
        let camera = stage.add_track(name, camera("cam")).unwrap();
        stage.offer(name, vec![sends("0", "mic", &[OPUS], &[]), sends("1", "cam", &[VP8], &[])]);
        stage.session.handle_remote_demand(stage.now, camera, true);
        stage.session.handle_remote_demand(stage.now, microphone, true);
        tracks.push((microphone, camera));
    }
    let [(ann, anns), (bob, bobs)] = tracks[..] else { panic!("two people") };
    let mut talk = |who: &[TrackId]| {
        stage.forget();
        for _ in 0..6 {
            who.iter().for_each(|track| stage.event(Event::AudioLevel { track: *track, level: 10, active_percent: 100 }));
            stage.pass(Duration::from_millis(400));
        }
        let spoke = |command: &Command| if let Command::Spoke { track } = command { Some(*track) } else { None };
        stage.heard.commands.iter().filter_map(spoke).collect::<Vec<_>>()
    };
    assert_eq!(talk(&[]), []);
    assert_eq!(talk(&[ann]), [anns]);
    assert_eq!(talk(&[ann, bob])[..2], [anns, bobs]);
    assert_eq!(talk(&[ann]), [bobs, anns]);
}

#[test]
fn who_speaks_when_its_node_dies_speaks_no_longer() {
    let mut pop = Pop::with_people();
    let track = microphone_of(&mut pop, A, "ann");
    let ann = pop.id(A, "ann");
    pop.on(A, |stage| stage.event(Event::AudioLevel { track, level: 10, active_percent: 100 }));
    pop.pass(Duration::from_millis(500));
    assert!(speakers(&pop.told(B, "bob")).iter().any(|speaker| speaker.participant == ann && speaker.active));
    let stage = pop.nodes.get_mut(&B).unwrap();
    stage.session.handle_node_away(stage.now, A);
    stage.drain();
    stage.pass(Duration::from_millis(10));
    let last = speakers(&stage.told("bob")).pop().expect("bob is told");
    assert!(last.participant == ann && !last.active, "{last:?}");
}

#[test]
fn a_bad_connection_is_told_on_the_node_of_who_watches_and_again_when_it_is_good() {
    let mut pop = Pop::with_people();
    let track = microphone_of(&mut pop, A, "ann");
    let ann = pop.id(A, "ann");
    pop.on(A, |stage| stage.session.handle_remote_demand(stage.now, track, true));
    // Bob's client makes the section that it was asked for.
    pop.on(B, |stage| drop(stage.offer("bob", first_offer())));
    let mut packets = 0;
    let mut run = |pop: &mut Pop, lost: i64, seconds: u64| {
        for _ in 0..seconds {
            packets += 50;
            let stats = TrackStats { packets, lost: lost * packets as i64 / 100, ..Default::default() };
            pop.on(A, |stage| stage.event(Event::TrackStats { track, stats }));
            pop.pass(Duration::from_secs(1));
        }
        let of = |notice: &Notice| match notice {
            Notice::Quality(news) => news.iter().filter(|quality| quality.participant == ann).map(|quality| quality.grade).collect(),
            _ => Vec::new(),
        };
        pop.told(B, "bob").iter().flat_map(of).collect::<Vec<_>>()
    };
    let good = run(&mut pop, 0, 11);
    assert_eq!(good, [ConnectionGrade::Excellent], "once");
    let bad = run(&mut pop, 30, 11);
    assert_eq!(bad.last(), Some(&ConnectionGrade::Poor), "{bad:?}");
}
