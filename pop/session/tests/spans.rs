//! One room on several nodes in fake time: what each session tells of its participants is handed to the others.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pop_proto::control::{Codec, Command, Event, LayerSsrcs, LayerWish, MediaKind, PayloadTypeMap, TrackStats};
use pop_schemas::{ParticipantId, SubscriptionId, TrackId};
use pop_session::member::{
    Answer, LeaveAction, LeaveReason, MemberRequest, MemberState, Notice, OfferedSection, ParticipantInfo, PermissionSubject, Permissions,
    Quality, Resume, SubscriptionPermission, Sync as MemberSync, TrackSettings,
};
use pop_session::presence::{Applied, LocalRecord, Manifest, Record, RemoteKey, Version};
use pop_session::session::Action;
use pop_session::{CloseReason, Format, Kind, Participant, PayloadFormat, Refusal, Reply, Request, Session};
use stage::{OPUS, Stage, VP8, camera, everything, first_offer, identity, microphone, participants, receives, sends};

/// As a client of another browser numbers it.
const VP8_ELSEWHERE: PayloadFormat = PayloadFormat { number: 120, format: Format::Vp8, rtx: Some(124) };
const OPUS_ELSEWHERE: PayloadFormat = PayloadFormat { number: 109, format: Format::Opus, rtx: None };

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

/// Nodes that hear of each other, except those that are cut off.
struct Mesh {
    nodes: BTreeMap<u64, Stage>,
    cut: Option<u64>,
    /// Each record that went over the bus.
    records: Vec<(u64, LocalRecord)>,
}

fn from(node: u64, record: LocalRecord) -> Record {
    let LocalRecord { participant, version, manifest } = record;
    Record { key: RemoteKey { node, participant }, version, manifest }
}

impl Mesh {
    fn new(nodes: &[u64]) -> Mesh {
        let nodes = nodes.iter().map(|node| (*node, Stage::on_node(*node))).collect();
        Mesh { nodes, cut: None, records: Vec::new() }
    }

    fn on<R>(&mut self, node: u64, act: impl FnOnce(&mut Stage) -> R) -> R {
        let result = act(self.nodes.get_mut(&node).unwrap());
        self.carry();
        result
    }

    /// Hands each record to all others.
    fn carry(&mut self) {
        loop {
            let mut under_way = Vec::new();
            for (node, stage) in &mut self.nodes {
                under_way.extend(stage.heard.records.drain(..).map(|record| (*node, record)));
            }
            if under_way.is_empty() {
                return;
            }
            for (node, record) in under_way {
                self.records.push((node, record.clone()));
                let hears = |other: u64| other != node && self.cut != Some(node) && self.cut != Some(other);
                for (_, stage) in self.nodes.iter_mut().filter(|(other, _)| hears(**other)) {
                    let now = stage.now;
                    stage.session.handle_record(now, from(node, record.clone()));
                    stage.drain();
                }
            }
        }
    }

    /// Ends a partition: all ask all others for all that they have.
    fn heal(&mut self) {
        self.cut = None;
        let told: Vec<_> = self.nodes.iter().flat_map(|(node, stage)| all_of(*node, &stage.session)).collect();
        for (node, stage) in &mut self.nodes {
            for record in told.iter().filter(|record| record.key.node != *node) {
                stage.session.handle_record(stage.now, record.clone());
                stage.drain();
            }
        }
        self.carry();
    }

    fn pass(&mut self, duration: Duration) {
        for stage in self.nodes.values_mut() {
            stage.pass(duration);
        }
        self.carry();
    }

    fn node(&mut self, node: u64, act: impl FnOnce(&mut Session, pop_schemas::Time)) {
        self.on(node, |stage| {
            act(&mut stage.session, stage.now);
            stage.drain();
        });
    }
}

fn all_of(node: u64, session: &Session) -> Vec<Record> {
    session.local_records().map(|record| from(node, record)).collect()
}

/// A member with a transport and sections for what others publish.
fn connect(stage: &mut Stage, name: &'static str) {
    stage.enter(name);
    stage.offer(name, first_offer());
    stage.connect(name);
    stage.forget();
}

/// Another browser's.
fn connect_elsewhere(stage: &mut Stage, name: &'static str) {
    stage.enter(name);
    stage.offer(name, elsewhere());
    stage.connect(name);
    stage.forget();
}

fn elsewhere() -> Vec<OfferedSection> {
    let audio = (0..3).map(|n| receives(&n.to_string(), &[OPUS_ELSEWHERE]));
    audio.chain((3..6).map(|n| receives(&n.to_string(), &[VP8_ELSEWHERE]))).collect()
}

/// Publishes a camera and a microphone beside the sections of `before`.
fn publish(stage: &mut Stage, name: &str, before: Vec<OfferedSection>, rids: &[&str]) -> (TrackId, TrackId) {
    let video = stage.add_track(name, camera("cam")).unwrap();
    let audio = stage.add_track(name, microphone("mic")).unwrap();
    let mut sections = before;
    sections.extend([sends("8", "cam", &[VP8], rids), sends("9", "mic", &[OPUS], &[])]);
    stage.offer(name, sections);
    (video, audio)
}

fn map(from: u8, to: u8, rtx: Option<u8>) -> PayloadTypeMap {
    PayloadTypeMap { from, to, rtx, unwrap_red: false }
}

/// What the last command for each section says.
fn fed(commands: &[Command]) -> BTreeMap<SubscriptionId, (Option<TrackId>, Vec<PayloadTypeMap>)> {
    let forward = |command: &Command| match command {
        Command::Forward { subscription, track, payload_types } => Some((*subscription, (*track, payload_types.clone()))),
        _ => None,
    };
    commands.iter().filter_map(forward).collect()
}

fn sources(commands: &[Command]) -> Vec<Option<TrackId>> {
    fed(commands).into_values().map(|(track, _)| track).collect()
}

fn last_wish(commands: &[Command]) -> Option<LayerWish> {
    commands.iter().rev().find_map(|command| match command {
        Command::Wish { wish, .. } => Some(*wish),
        _ => None,
    })
}

fn seen(told: &[Notice]) -> Vec<(String, MemberState, Option<LeaveReason>)> {
    let all = told.iter().filter_map(|notice| match notice {
        Notice::Participants(infos) => Some(infos.to_vec()),
        _ => None,
    });
    all.flatten().map(|info: ParticipantInfo| (info.identity.to_string(), info.state, info.left)).collect()
}

fn was_left(told: &[Notice]) -> Option<LeaveReason> {
    told.iter().find_map(|notice| match notice {
        Notice::Leave { reason, .. } => Some(*reason),
        _ => None,
    })
}

/// Ann on A publishes, bob on B and cid on C take it.
fn call() -> (Mesh, TrackId, TrackId) {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.on(A, |stage| connect(stage, "ann"));
    mesh.on(B, |stage| connect_elsewhere(stage, "bob"));
    mesh.on(C, |stage| connect(stage, "cid"));
    let (video, audio) = mesh.on(A, |stage| publish(stage, "ann", first_offer(), &[]));
    (mesh, video, audio)
}

/// Bob's client answers what it is asked for.
fn bob_is_fed() -> (Mesh, TrackId, TrackId) {
    let (mut mesh, video, audio) = call();
    mesh.on(B, |stage| stage.offer("bob", elsewhere()));
    let both = fed(&mesh.nodes[&B].heard.commands);
    assert_eq!(both.len(), 2, "audio and video");
    mesh.on(A, Stage::forget);
    mesh.on(B, Stage::forget);
    (mesh, video, audio)
}

#[test]
fn everybody_sees_everybody_and_is_fed_with_numbers_of_his_own() {
    let (mut mesh, video, audio) = call();
    let told = mesh.on(B, |stage| stage.told("bob"));
    let ann = participants(&told).into_iter().find(|info| info.identity.as_str() == "ann").unwrap();
    assert_eq!(ann.tracks.iter().map(|track| track.track).collect::<Vec<_>>(), [video, audio]);
    assert_eq!(stage::asked(&told), [(0, 0)], "its idle sections suffice");
    let answer = mesh.on(B, |stage| stage.offer("bob", elsewhere()));
    let fed = fed(&mesh.nodes[&B].heard.commands);
    let maps: BTreeMap<_, _> = fed.values().map(|(track, map)| (track.unwrap(), map.clone())).collect();
    assert_eq!(maps[&video], [map(96, 120, Some(124))]);
    assert_eq!(maps[&audio], [map(111, 109, None)]);
    let feeds: Vec<_> = answer.sections.values().filter_map(|section| section.feeds.as_ref()).collect();
    assert!(feeds.iter().all(|feed| feed.publisher == ann.participant), "{feeds:?}");
    let whose = mesh.nodes[&B].session.remote_track(video);
    assert_eq!(whose, Some(RemoteKey { node: A, participant: ann.participant }));
    assert_eq!(mesh.nodes[&A].session.remote_track(video), None, "it is its own");
    for stage in mesh.nodes.values() {
        let mut names: Vec<_> = stage.session.participants().map(|participant| participant.identity().to_string()).collect();
        names.sort();
        assert_eq!(names, ["ann", "bob", "cid"]);
    }
}

#[test]
fn a_viewer_takes_the_oldest_track_that_runs_wherever_it_is() {
    let mut mesh = Mesh::new(&[A, B]);
    let far = mesh.on(A, |stage| stage.publish("studio"));
    mesh.pass(Duration::from_secs(1));
    let near = mesh.on(B, |stage| stage.publish("spare"));
    mesh.on(B, |stage| stage.watch());
    let viewer = mesh.nodes[&B].viewer_section();
    assert_eq!(mesh.on(B, Stage::forwards), [(viewer, Some(far))], "it is older, and none runs");
    mesh.on(B, |stage| stage.event(Event::TrackStarted { track: near }));
    assert_eq!(mesh.on(B, Stage::forwards), [(viewer, Some(near))]);
    mesh.on(A, |stage| stage.event(Event::TrackStarted { track: far }));
    assert_eq!(mesh.on(B, Stage::forwards), [], "age alone moves nobody");
    mesh.on(B, |stage| stage.watch());
    let second = mesh.nodes[&B].viewer_section();
    assert_eq!(mesh.on(B, Stage::forwards), [(second, Some(far))], "the oldest that runs");
    let left = Request::Leave { resource: near.0.to_string().into() };
    assert_eq!(mesh.on(B, |stage| stage.request(left)), Ok(Reply::Left));
    assert_eq!(mesh.on(B, Stage::forwards), [(viewer, Some(far))]);
    let left = Request::Leave { resource: far.0.to_string().into() };
    assert_eq!(mesh.on(A, |stage| stage.request(left)), Ok(Reply::Left));
    assert_eq!(mesh.on(B, Stage::forwards), [(viewer, None), (second, None)]);
}

#[test]
fn what_only_nodes_must_know_is_told_to_no_member() {
    let (mut mesh, video, _) = bob_is_fed();
    let before = mesh.records.len();
    mesh.on(A, |stage| stage.event(Event::TrackStarted { track: video }));
    let stats = TrackStats { codec: Some(Codec::Vp8), packets: 1, ..TrackStats::default() };
    mesh.on(A, |stage| stage.event(Event::TrackStats { track: video, stats }));
    mesh.on(A, |stage| stage.event(Event::TrackStats { track: video, stats: TrackStats { packets: 2, ..stats } }));
    let (_, last) = mesh.records.last().unwrap();
    let track = last.manifest.as_ref().unwrap().tracks.iter().find(|track| track.info.track == video).unwrap();
    assert!(track.started && track.codec == Some(Codec::Vp8));
    assert_eq!(mesh.records.len() - before, 2, "the first packet and the codec, not each count");
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    assert_eq!(seen(&mesh.on(A, |stage| stage.told("ann"))), []);
}

#[test]
fn what_is_muted_is_paused_and_what_is_gone_is_silent_abroad() {
    let (mut mesh, video, audio) = bob_is_fed();
    for muted in [true, false] {
        mesh.on(A, |stage| stage.say("ann", MemberRequest::Mute { track: audio, muted }));
        let wish = last_wish(&mesh.nodes[&B].heard.commands);
        assert_eq!(wish.map(|wish| wish.paused), Some(muted));
    }
    mesh.on(B, Stage::forget);
    // Its client no longer offers the camera.
    let mut sections = first_offer();
    sections.push(sends("9", "mic", &[OPUS], &[]));
    mesh.on(A, |stage| stage.offer("ann", sections));
    assert_eq!(sources(&mesh.nodes[&B].heard.commands), [None]);
    assert_eq!(mesh.nodes[&B].session.remote_track(video), None);
    mesh.on(B, Stage::forget);
    mesh.on(A, |stage| stage.say("ann", MemberRequest::Leave));
    assert_eq!(sources(&mesh.nodes[&B].heard.commands), [None], "the microphone");
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert_eq!(seen(&told), [("ann".into(), MemberState::Disconnected, Some(LeaveReason::ClientInitiated))]);
}

#[test]
fn layers_are_wished_abroad_and_a_publisher_sends_what_other_nodes_take() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.on(A, |stage| connect(stage, "ann"));
    mesh.on(B, |stage| connect(stage, "bob"));
    let (video, _) = mesh.on(A, |stage| publish(stage, "ann", first_offer(), &["q", "h", "f"]));
    mesh.on(B, |stage| stage.offer("bob", first_offer()));
    let small = TrackSettings { tracks: vec![video], quality: Quality::Low, ..TrackSettings::default() };
    mesh.on(B, |stage| stage.say("bob", MemberRequest::TrackSettings(small)));
    let wish = last_wish(&mesh.nodes[&B].heard.commands).unwrap();
    assert_eq!((wish.paused, wish.spatial_max), (false, 0));
    let told = |mesh: &mut Mesh| {
        let told = mesh.on(A, |stage| stage.told("ann"));
        told.into_iter().find_map(|notice| match notice {
            Notice::SubscribedQuality { track, quality } if track == video => Some(quality),
            _ => None,
        })
    };
    mesh.node(A, |session, now| session.handle_remote_demand(now, video, true));
    mesh.pass(Duration::from_secs(20));
    assert_eq!(told(&mut mesh), None, "a track that another node takes is wanted");
    mesh.node(A, |session, now| session.handle_remote_demand(now, video, false));
    mesh.pass(Duration::from_secs(20));
    assert_eq!(told(&mut mesh), Some(Quality::Off));
    mesh.node(A, |session, now| session.handle_remote_demand(now, video, true));
    assert_eq!(told(&mut mesh), Some(Quality::High), "more at once");
}

#[test]
fn one_that_comes_late_asks_for_all_and_repeats_change_nothing() {
    let (mesh, video, _) = bob_is_fed();
    let mut late = Stage::on_node(9);
    connect(&mut late, "dan");
    for turn in 0..2 {
        for record in mesh.nodes.iter().flat_map(|(node, stage)| all_of(*node, &stage.session)) {
            let applied = late.session.handle_record(late.now, record);
            assert_eq!(applied, if turn == 0 { Applied::New } else { Applied::Stale });
        }
        late.drain();
    }
    let told = late.told("dan");
    assert_eq!(seen(&told).len(), 3, "each once: {:?}", seen(&told));
    late.offer("dan", first_offer());
    assert!(sources(&late.heard.commands).contains(&Some(video)));
}

#[test]
fn one_whose_node_is_away_stays_and_is_fed_again_when_it_is_back() {
    let (mut mesh, video, _) = bob_is_fed();
    mesh.on(B, |stage| stage.watch());
    let viewer = mesh.nodes[&B].viewer_section();
    assert_eq!(mesh.on(B, Stage::forwards), [(viewer, Some(video))]);
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    let silent = fed(&mesh.nodes[&B].heard.commands);
    assert_eq!(silent.len(), 3);
    assert!(silent.values().all(|(track, map)| track.is_none() && map.is_empty()));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), [], "no leave");
    let view = |mesh: &Mesh| {
        let view = mesh.nodes[&B].session.describe(mesh.nodes[&B].now);
        view.participants.iter().find(|p| p.identity == "ann").map(|p| (p.state, p.node.clone().unwrap()))
    };
    assert_eq!(view(&mesh), Some(("away", format!("{A:016x}"))));
    mesh.on(B, Stage::forget);
    mesh.on(B, |stage| stage.offer("bob", elsewhere()));
    assert!(mesh.on(B, Stage::forwards).is_empty(), "its sections wait for it");
    mesh.pass(Duration::from_secs(4));
    mesh.node(B, |session, now| session.handle_node_back(now, A));
    let again = fed(&mesh.nodes[&B].heard.commands);
    assert_eq!(again.len(), 3, "without another offer");
    assert!(again.values().all(|(track, map)| track.is_some() && map.len() == 1));
    assert_eq!(view(&mesh).unwrap().0, "remote");
    mesh.pass(pop_session::presence::TOMBSTONE_LIFE);
    assert_eq!(view(&mesh).unwrap().0, "remote");
}

#[test]
fn one_whose_node_stays_away_is_gone_after_the_grace_and_comes_back_with_its_node() {
    let (mut mesh, ..) = bob_is_fed();
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    mesh.pass(Duration::from_millis(4_990));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    mesh.pass(Duration::from_millis(20));
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert_eq!(seen(&told), [("ann".into(), MemberState::Disconnected, Some(LeaveReason::ConnectionTimeout))]);
    let records = all_of(A, &mesh.nodes[&A].session);
    mesh.node(B, |session, now| {
        assert_eq!(session.handle_record(now, records[0].clone()), Applied::Stale, "a late sample of a dead node");
    });
    mesh.node(B, |session, now| session.handle_node_back(now, A));
    mesh.node(B, |session, now| assert_eq!(session.handle_record(now, records[0].clone()), Applied::New));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), [("ann".into(), MemberState::Active, None)]);
}

#[test]
fn a_word_of_a_node_that_is_away_ends_that_for_whom_it_is_about_but_not_for_ever() {
    let (mut mesh, video, audio) = bob_is_fed();
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    mesh.pass(Duration::from_secs(3));
    mesh.on(B, Stage::forget);
    mesh.on(A, |stage| stage.say("ann", MemberRequest::Mute { track: audio, muted: true }));
    assert!(sources(&mesh.nodes[&B].heard.commands).contains(&Some(video)), "it lives");
    mesh.pass(Duration::from_secs(3));
    assert!(!seen(&mesh.on(B, |stage| stage.told("bob"))).iter().any(|(_, state, _)| *state == MemberState::Disconnected));
    mesh.pass(Duration::from_secs(3));
    let told = seen(&mesh.on(B, |stage| stage.told("bob")));
    assert_eq!(told, [("ann".into(), MemberState::Disconnected, Some(LeaveReason::ConnectionTimeout))], "it was the last word");
}

#[test]
fn participants_of_a_node_that_begins_anew_are_away_until_the_grace_is_over() {
    let (mut mesh, ..) = bob_is_fed();
    let old = all_of(A, &mesh.nodes[&A].session);
    mesh.node(B, |session, now| session.handle_node_restarted(now, A));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), [], "another node may take her over");
    assert!(sources(&mesh.nodes[&B].heard.commands).iter().all(Option::is_none));
    // Whoever is at the node now does not bring back whom it had before.
    mesh.pass(Duration::from_secs(2));
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    mesh.node(B, |session, now| session.handle_node_back(now, A));
    mesh.pass(Duration::from_millis(2_990));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    mesh.pass(Duration::from_millis(20));
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert_eq!(seen(&told), [("ann".into(), MemberState::Disconnected, Some(LeaveReason::ConnectionTimeout))]);
    let mut older = old[0].clone();
    older.version.counter -= 1;
    mesh.node(B, |session, now| assert_eq!(session.handle_record(now, older), Applied::Stale));
}

#[test]
fn who_comes_again_to_a_node_that_has_begun_anew_takes_the_place_of_who_was_there() {
    let (mut mesh, ..) = bob_is_fed();
    mesh.node(B, |session, now| session.handle_node_restarted(now, A));
    let mut anew = Stage::on_node(77);
    anew.pass(Duration::from_secs(1));
    anew.enter("ann");
    let records = all_of(A, &anew.session);
    mesh.node(B, |session, now| assert_eq!(session.handle_record(now, records[0].clone()), Applied::New));
    let told: Vec<_> = seen(&mesh.on(B, |stage| stage.told("bob"))).into_iter().map(|(name, state, _)| (name, state)).collect();
    assert_eq!(told, [("ann".into(), MemberState::Disconnected), ("ann".into(), MemberState::Joining)]);
    mesh.pass(Duration::from_secs(6));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), [], "she who was there before is out already");
}

#[test]
fn the_same_identity_elsewhere_takes_the_place() {
    let (mut mesh, ..) = bob_is_fed();
    mesh.pass(Duration::from_secs(1));
    mesh.on(B, Stage::forget);
    mesh.on(C, |stage| stage.enter("ann"));
    assert_eq!(was_left(&mesh.on(A, |stage| stage.told("ann"))), Some(LeaveReason::DuplicateIdentity));
    assert_eq!(mesh.nodes[&A].heard.closed.last().map(|(_, reason)| *reason), Some(CloseReason::Displaced));
    let told = seen(&mesh.on(B, |stage| stage.told("bob")));
    let states: Vec<_> = told.iter().map(|(name, state, _)| (name.as_str(), *state)).collect();
    assert_eq!(states, [("ann", MemberState::Disconnected), ("ann", MemberState::Joining)], "the older is out first, and once");
    assert!(sources(&mesh.nodes[&B].heard.commands).iter().all(Option::is_none), "its tracks with it");
    assert_eq!(was_left(&mesh.on(C, |stage| stage.told("ann"))), None);
    let count = |mesh: &Mesh| mesh.nodes.values().map(|stage| stage.session.participants().count()).collect::<Vec<_>>();
    assert_eq!(count(&mesh), [3, 3, 3]);
}

#[test]
fn of_two_that_come_at_once_in_a_partition_one_stays_and_all_agree_which() {
    for first in [A, C] {
        let mut mesh = Mesh::new(&[A, B, C]);
        mesh.on(B, |stage| connect(stage, "bob"));
        mesh.cut = Some(A);
        mesh.on(first, |stage| stage.enter("ann"));
        mesh.on(A + C - first, |stage| stage.enter("ann"));
        mesh.heal();
        let here = |mesh: &Mesh, node: u64| mesh.nodes[&node].session.local_records().any(|record| is_of(&record, "ann"));
        assert_eq!((here(&mesh, A), here(&mesh, C)), (false, true), "the same moment: the higher node");
        for stage in mesh.nodes.values() {
            assert_eq!(stage.session.participants().count(), 2);
        }
        let told = seen(&mesh.on(B, |stage| stage.told("bob")));
        assert_eq!(told.last().map(|(_, state, _)| *state), Some(MemberState::Joining), "{told:?}");
    }
}

fn is_of(record: &LocalRecord, name: &str) -> bool {
    record.manifest.as_ref().is_some_and(|manifest| manifest.identity == identity(name))
}

#[test]
fn who_comes_later_stays_although_its_nodes_clock_is_slow() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.on(A, |stage| stage.enter("ann"));
    mesh.on(B, |stage| stage.enter_with("ann", |enter| enter.joined_at_ms -= 3_600_000));
    assert_eq!(was_left(&mesh.on(A, |stage| stage.told("ann"))), Some(LeaveReason::DuplicateIdentity));
    assert_eq!(was_left(&mesh.on(B, |stage| stage.told("ann"))), None);
}

#[test]
fn a_take_over_fences_the_owner_and_nobody_sees_a_leave() {
    let (mut mesh, video, _) = bob_is_fed();
    let ann = mesh.nodes[&A].members["ann"];
    let taken = |epoch| {
        let mut manifest = Manifest::new(identity("ann"), Kind::Member, everything());
        manifest.joined_at_ms = 1_700_000_001_000;
        Record { key: RemoteKey { node: C, participant: ann }, version: Version { epoch, counter: 0 }, manifest: Some(manifest) }
    };
    mesh.node(A, |session, now| {
        assert_eq!(session.handle_record(now, taken(0)), Applied::Stale, "ours is not theirs to write");
        assert_eq!(session.handle_record(now, taken(1)), Applied::New);
    });
    assert_eq!(mesh.nodes[&A].heard.closed.last().map(|(_, reason)| *reason), Some(CloseReason::TakenOver));
    assert!(!mesh.records.iter().any(|(_, record)| record.participant == ann && record.manifest.is_none()), "it does not end");
    mesh.node(B, |session, now| {
        assert_eq!(session.handle_record(now, taken(1)), Applied::New);
    });
    let told = seen(&mesh.on(B, |stage| stage.told("bob")));
    assert!(!told.iter().any(|(_, state, _)| *state == MemberState::Disconnected), "{told:?}");
    assert_eq!(mesh.nodes[&B].session.remote_track(video), None, "the new owner does not publish it");
    let zombie = Record { key: RemoteKey { node: A, participant: ann }, version: Version { epoch: 0, counter: 900 }, manifest: None };
    mesh.node(B, |session, now| assert_eq!(session.handle_record(now, zombie), Applied::Stale));
}

#[test]
fn a_publishers_choice_of_who_takes_its_tracks_holds_on_all_nodes() {
    let (mut mesh, video, _) = bob_is_fed();
    let only = |name: &str| SubscriptionPermission { all: false, participants: vec![(PermissionSubject::Identity(identity(name)), None)] };
    mesh.on(A, |stage| stage.say("ann", MemberRequest::SubscriptionPermission(only("cid"))));
    assert_eq!(sources(&mesh.nodes[&B].heard.commands), [None, None]);
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert!(told.iter().any(|notice| matches!(notice, Notice::SubscriptionPermission { allowed: false, .. })), "{told:?}");
    mesh.on(C, |stage| stage.offer("cid", first_offer()));
    assert!(sources(&mesh.nodes[&C].heard.commands).contains(&Some(video)));
    mesh.on(B, Stage::forget);
    mesh.on(B, |stage| stage.watch());
    assert_eq!(mesh.on(B, Stage::forwards), [], "a viewer is none of those");
    mesh.on(A, |stage| stage.say("ann", MemberRequest::SubscriptionPermission(only("bob"))));
    mesh.on(B, |stage| stage.offer("bob", elsewhere()));
    assert!(sources(&mesh.nodes[&B].heard.commands).contains(&Some(video)));
}

#[test]
fn a_record_cannot_take_a_track_of_somebody_else() {
    let (mut mesh, video, _) = bob_is_fed();
    let mut manifest = Manifest::new(identity("eve"), Kind::Member, everything());
    manifest.tracks.push(pop_session::presence::RemoteTrack::new(stage::info(video, MediaKind::Video)));
    let key = RemoteKey { node: C, participant: ParticipantId(666) };
    for node in [A, B] {
        let record = Record { key, version: Version { epoch: 0, counter: 1 }, manifest: Some(manifest.clone()) };
        mesh.node(node, |session, now| assert_eq!(session.handle_record(now, record), Applied::New));
        assert!(fed(&mesh.nodes[&node].heard.commands).is_empty());
        assert_eq!(mesh.nodes[&node].session.unknown_events(), 1);
    }
    assert_eq!(mesh.nodes[&B].session.remote_track(video).map(|key| key.node), Some(A));
}

#[test]
fn a_participant_keeps_its_identity() {
    let (mut mesh, ..) = bob_is_fed();
    let mut record = all_of(A, &mesh.nodes[&A].session)[0].clone();
    record.version.counter += 1;
    record.manifest.as_mut().unwrap().identity = identity("eve");
    mesh.node(B, |session, now| assert_eq!(session.handle_record(now, record), Applied::Stale));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
}

#[test]
fn a_track_whose_formats_come_later_is_fed_then() {
    let mut mesh = Mesh::new(&[B]);
    mesh.on(B, |stage| connect_elsewhere(stage, "bob"));
    let mut manifest = Manifest::new(identity("far"), Kind::Member, everything());
    let track = TrackId(7);
    manifest.tracks.push(pop_session::presence::RemoteTrack::new(stage::info(track, MediaKind::Video)));
    let mut counter = 0;
    let mut write = |mesh: &mut Mesh, manifest: &Manifest| {
        counter += 1;
        let key = RemoteKey { node: A, participant: ParticipantId(500) };
        let record = Record { key, version: Version { epoch: 0, counter }, manifest: Some(manifest.clone()) };
        mesh.node(B, |session, now| assert_eq!(session.handle_record(now, record), Applied::New));
    };
    write(&mut mesh, &manifest);
    assert!(stage::asked(&mesh.on(B, |stage| stage.told("bob"))).is_empty(), "there is nothing to be fed yet");
    manifest.tracks[0].formats = vec![VP8];
    write(&mut mesh, &manifest);
    assert_eq!(stage::asked(&mesh.on(B, |stage| stage.told("bob"))), [(0, 0)]);
    mesh.on(B, |stage| stage.offer("bob", elsewhere()));
    assert_eq!(fed(&mesh.nodes[&B].heard.commands).into_values().next(), Some((Some(track), vec![map(96, 120, Some(124))])));
    mesh.on(B, Stage::forget);
    manifest.tracks[0].formats = vec![PayloadFormat { number: 100, ..VP8 }];
    write(&mut mesh, &manifest);
    assert_eq!(fed(&mesh.nodes[&B].heard.commands).into_values().next(), Some((Some(track), vec![map(100, 120, Some(124))])));
}

/// Where each section of an answer gets its track from.
fn feeds(answer: &Answer) -> BTreeMap<String, TrackId> {
    answer.sections.iter().filter_map(|(mid, used)| Some((mid.to_string(), used.feeds.as_ref()?.track))).collect()
}

/// The node of `name` has died: its client is at `node` now, and says what it knows.
fn come_back(stage: &mut Stage, name: &'static str, id: ParticipantId, sync: MemberSync, sections: Vec<OfferedSection>) -> Answer {
    stage.members.insert(name, id);
    assert_eq!(stage.resume(name), Ok(Reply::Joined));
    stage.say(name, MemberRequest::Sync(Box::new(sync)));
    let answer = stage.offer(name, sections);
    stage.connect(name);
    answer
}

fn offer_of_ann() -> Vec<OfferedSection> {
    let mut sections = first_offer();
    sections.extend([sends("8", "cam", &[VP8], &[]), sends("9", "mic", &[OPUS], &[])]);
    sections
}

/// Ann of A and bob of B take each other's tracks. Her id, her tracks, his, and what her sections have.
fn two_in_a_call() -> (Mesh, ParticipantId, [TrackId; 2], [TrackId; 2], BTreeMap<String, TrackId>) {
    let (mut mesh, video, audio) = bob_is_fed();
    let (of_bob, heard) = mesh.on(B, |stage| publish(stage, "bob", elsewhere(), &[]));
    let answer = mesh.on(A, |stage| stage.offer("ann", offer_of_ann()));
    let ann = mesh.nodes[&A].members["ann"];
    for node in [A, B, C] {
        mesh.on(node, Stage::forget);
    }
    (mesh, ann, [video, audio], [of_bob, heard], feeds(&answer))
}

#[test]
fn one_whose_node_died_goes_on_at_another_and_nobody_sees_it_leave() {
    let (mut mesh, ann, [video, audio], of_bob, fed_before) = two_in_a_call();
    assert_eq!(fed_before.values().copied().collect::<BTreeSet<_>>(), of_bob.into());
    mesh.on(A, |stage| stage.say("ann", MemberRequest::Mute { track: audio, muted: true }));
    mesh.on(B, Stage::forget);
    mesh.cut = Some(A);
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    assert_eq!(sources(&mesh.nodes[&B].heard.commands), [None, None], "silent, and kept");
    mesh.on(B, Stage::forget);
    let sync = MemberSync {
        published: vec![("cam".into(), video), ("mic".into(), audio)],
        fed: fed_before.iter().map(|(mid, track)| (mid.as_str().into(), *track)).collect(),
        ..MemberSync::default()
    };
    let answer = mesh.on(C, |stage| come_back(stage, "ann", ann, sync, offer_of_ann()));
    assert_eq!(feeds(&answer), fed_before, "each section means what it meant");
    assert_eq!((answer.sections["8"].takes, answer.sections["9"].takes), (Some(video), Some(audio)));
    let told = mesh.on(C, |stage| stage.told("ann"));
    assert!(matches!(told.first(), Some(Notice::Resumed(_))), "{told:?}");
    let unpublished = told.iter().any(|notice| matches!(notice, Notice::TrackUnpublished(_) | Notice::TrackPublished { .. }));
    assert!(!unpublished && stage::asked(&told).is_empty(), "{told:?}");
    // Bob has the tracks in the sections that had them, from another node, and has seen nothing.
    let fed: BTreeSet<_> = sources(&mesh.nodes[&B].heard.commands).into_iter().collect();
    assert_eq!(fed, [Some(video), Some(audio)].into());
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert!(seen(&told).iter().all(|seen| *seen == ("ann".into(), MemberState::Active, None)), "{told:?}");
    assert_eq!(stage::asked(&told), []);
    let key = RemoteKey { node: C, participant: ann };
    assert_eq!(mesh.nodes[&B].session.remote_track(video), Some(key));
    let of_ann = mesh.nodes[&B].session.participants().find(|participant| participant.id() == ann).unwrap();
    let Participant::Remote(remote) = of_ann else { panic!("it is C's") };
    assert!(remote.manifest().tracks.iter().any(|track| track.info.track == audio && track.info.muted && !track.waits));
    // The old owner was only cut off: it ends without a word to others, and what it says late counts for nothing.
    mesh.heal();
    assert!(mesh.nodes[&A].heard.closed.iter().any(|(_, reason)| *reason == CloseReason::TakenOver));
    assert_eq!(mesh.nodes[&B].session.remote_track(video), Some(key));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    let owners = |stage: &Stage| stage.session.participants().filter(|p| matches!(p, Participant::Local(_)) && p.id() == ann).count();
    assert_eq!(mesh.nodes.values().map(owners).sum::<usize>(), 1);
}

#[test]
fn a_track_that_moves_from_node_to_node_is_wanted_of_its_new_owner() {
    let (mut mesh, ann, [video, audio], ..) = two_in_a_call();
    // B never hears that A is away.
    mesh.cut = Some(A);
    mesh.node(C, |session, now| session.handle_node_away(now, A));
    let sync = MemberSync { published: vec![("cam".into(), video), ("mic".into(), audio)], ..MemberSync::default() };
    mesh.on(C, |stage| come_back(stage, "ann", ann, sync, offer_of_ann()));
    let last: BTreeSet<_> = sources(&mesh.nodes[&B].heard.commands).into_iter().collect();
    assert_eq!(last, [Some(video), Some(audio)].into(), "forwarded anew");
    assert_eq!(mesh.nodes[&B].session.remote_track(video).map(|key| key.node), Some(C));
}

#[test]
fn what_a_client_no_longer_offers_has_ended_and_what_it_no_longer_takes_is_idle() {
    let (mut mesh, ann, [video, audio], of_bob, fed_before) = two_in_a_call();
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    let sync = MemberSync {
        tracks: vec![of_bob[0]],
        published: vec![("mic".into(), audio)],
        fed: fed_before.iter().map(|(mid, track)| (mid.as_str().into(), *track)).collect(),
        ..MemberSync::default()
    };
    let answer = mesh.on(C, |stage| come_back(stage, "ann", ann, sync, offer_of_ann()));
    assert_eq!(feeds(&answer).into_values().collect::<Vec<_>>(), [of_bob[1]], "the other one was declined");
    assert_eq!(mesh.nodes[&B].session.remote_track(video), None, "it does not publish it any more");
    assert!(mesh.nodes[&B].session.remote_track(audio).is_some());
}

#[test]
fn only_who_it_was_takes_it_over_and_only_while_its_node_is_away() {
    let (mut mesh, ann, ..) = two_in_a_call();
    let come = |mesh: &mut Mesh, name: &str, permissions: Permissions| {
        let resume = Resume { participant: ann, identity: identity(name), permissions, now_ms: 0, client: "".into() };
        mesh.on(C, |stage| stage.request(Request::Resume(Box::new(resume))))
    };
    assert_eq!(come(&mut mesh, "ann", everything()), Err(Refusal::Elsewhere), "its owner lives");
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    let before = mesh.records.len();
    assert_eq!(come(&mut mesh, "eve", everything()), Err(Refusal::UnknownParticipant));
    assert_eq!(come(&mut mesh, "ann", Permissions { publish: false, ..everything() }), Err(Refusal::UnknownParticipant));
    assert_eq!(mesh.records.len(), before, "nobody has heard of it");
    assert_eq!(come(&mut mesh, "ann", everything()), Ok(Reply::Joined));
    assert_eq!(come(&mut mesh, "eve", everything()), Err(Refusal::UnknownParticipant));
    mesh.pass(Duration::from_secs(6));
    assert!(mesh.nodes[&B].session.participants().any(|participant| participant.id() == ann), "it is nobody's ghost");
    let mut late = Stage::on_node(9);
    assert_eq!(
        late.request(Request::Resume(Box::new(Resume {
            participant: ann,
            identity: identity("ann"),
            permissions: everything(),
            now_ms: 0,
            client: "".into(),
        }))),
        Err(Refusal::UnknownParticipant),
        "a node that never heard of it"
    );
}

#[test]
fn a_sync_state_that_is_old_or_names_what_is_anothers_takes_nothing_and_ends_nothing() {
    let (mut mesh, ann, [video, audio], of_bob, fed_before) = two_in_a_call();
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    let (nobody, bob) = (TrackId(77), mesh.nodes[&B].members["bob"]);
    // She publishes what is bob's, and nobody's, and was fed with her own; sections that there are not had something, and others' messages came.
    let own = |of: &TrackId| if *of == of_bob[0] { video } else { audio };
    let fed_with_own = fed_before.iter().map(|(mid, of)| (mid.as_str().into(), own(of)));
    let no_sections = [("8".into(), of_bob[0]), ("none".into(), of_bob[1]), ("9".into(), nobody)];
    let forged = MemberSync {
        published: vec![("cam".into(), of_bob[0]), ("mic".into(), nobody), ("cam".into(), video), ("mic".into(), audio)],
        fed: fed_with_own.chain(no_sections).collect(),
        received: vec![(bob, 9), (ParticipantId(99), 9)],
        disabled: vec![nobody, video],
        ..MemberSync::default()
    };
    mesh.on(B, Stage::forget);
    let answer = mesh.on(C, |stage| come_back(stage, "ann", ann, forged.clone(), offer_of_ann()));
    assert_eq!((answer.sections["8"].takes, answer.sections["9"].takes), (Some(video), Some(audio)));
    let of_others: BTreeSet<_> = feeds(&answer).into_values().collect();
    assert!(of_others.is_subset(&of_bob.into()), "she is fed with bob's, or not yet: {of_others:?}");
    let is_his = |mesh: &Mesh| of_bob.iter().all(|track| mesh.nodes[&C].session.remote_track(*track).map(|key| key.node) == Some(B));
    assert!(is_his(&mesh));
    // What she said before is said again, and so is what was so long ago; she sends on.
    let stale =
        MemberSync { published: vec![("cam".into(), nobody)], tracks: vec![nobody], fed: forged.fed.clone(), ..MemberSync::default() };
    for old in [forged, stale] {
        mesh.on(C, |stage| stage.say("ann", MemberRequest::Sync(Box::new(old))));
    }
    let answer = mesh.on(C, |stage| stage.offer("ann", offer_of_ann()));
    assert_eq!((answer.sections["8"].takes, answer.sections["9"].takes), (Some(video), Some(audio)));
    assert_eq!([video, audio].map(|track| mesh.nodes[&B].session.remote_track(track).map(|key| key.node)), [Some(C); 2]);
    assert!(is_his(&mesh));
    let told = mesh.on(B, |stage| stage.told("bob"));
    assert!(seen(&told).iter().all(|seen| *seen == ("ann".into(), MemberState::Active, None)), "{told:?}");
    // And what there is of his goes to her in the end.
    let fed: BTreeSet<_> = feeds(&mesh.on(C, |stage| stage.offer("ann", offer_of_ann()))).into_values().collect();
    assert_eq!(fed, of_bob.into());
}

/// A is cut off, and C takes over whom it had.
fn taken_over_by_c(now_ms: u64) -> (Mesh, ParticipantId, TrackId) {
    let (mut mesh, ann, [video, _], ..) = two_in_a_call();
    mesh.on(A, |stage| connect(stage, "dan"));
    mesh.cut = Some(A);
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    mesh.on(C, |stage| {
        stage.members.insert("ann", ann);
        assert_eq!(stage.resume_at("ann", everything(), now_ms), Ok(Reply::Joined));
        stage.offer("ann", offer_of_ann());
    });
    (mesh, ann, video)
}

#[test]
fn who_goes_on_again_at_a_node_whose_clock_is_behind_is_not_older_for_clients() {
    let (mut mesh, ann, _) = taken_over_by_c(1_700_000_000_000);
    let versions = |told: &[Notice]| -> Vec<u32> {
        let infos = told.iter().filter_map(|notice| if let Notice::Participants(infos) = notice { Some(infos) } else { None });
        infos.flat_map(|infos| infos.iter()).filter(|info| info.participant == ann).map(|info| info.version).collect()
    };
    let before = versions(&mesh.on(B, |stage| stage.told("bob")));
    mesh.on(B, Stage::forget);
    mesh.cut = Some(C);
    mesh.node(B, |session, now| session.handle_node_away(now, C));
    mesh.on(B, |stage| {
        stage.members.insert("ann", ann);
        assert_eq!(stage.resume_at("ann", everything(), 1_699_999_000_000), Ok(Reply::Joined));
        stage.offer("ann", offer_of_ann());
    });
    let after = versions(&mesh.on(B, |stage| stage.told("bob")));
    assert!(!before.is_empty() && !after.is_empty() && after.iter().all(|after| after > before.last().unwrap()), "{before:?}, {after:?}");
}

#[test]
fn a_record_that_counts_further_than_any_node_is_none() {
    let (mut mesh, ..) = two_in_a_call();
    let record = all_of(A, &mesh.nodes[&A].session).remove(0);
    for (counter, applied) in [(u32::MAX, Applied::Stale), (1 << 31, Applied::Stale), ((1 << 31) - 1, Applied::New)] {
        let record = Record { version: Version { counter, ..record.version }, ..record.clone() };
        mesh.node(B, |session, now| assert_eq!(session.handle_record(now, record), applied, "{counter}"));
    }
}

#[test]
fn of_two_that_take_one_over_at_once_the_lower_node_has_it() {
    let (mut mesh, ann, ..) = two_in_a_call();
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    mesh.cut = Some(C);
    for node in [B, C] {
        mesh.on(node, |stage| {
            stage.members.insert("ann", ann);
            assert_eq!(stage.resume("ann"), Ok(Reply::Joined));
        });
    }
    mesh.on(C, |stage| stage.offer("ann", offer_of_ann()));
    mesh.on(C, Stage::forget);
    mesh.on(B, Stage::forget);
    mesh.heal();
    let told = mesh.on(C, |stage| stage.told("ann"));
    let resumes = |notice: &Notice| matches!(notice, Notice::Leave { action: LeaveAction::Resume, .. });
    assert!(told.iter().any(resumes), "its client is told to come again: {told:?}");
    assert!(!mesh.on(B, |stage| stage.told("ann")).iter().any(resumes));
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    for (node, stage) in &mesh.nodes {
        let here = stage.session.participants().filter(|participant| participant.id() == ann).collect::<Vec<_>>();
        assert_eq!(here.len(), 1, "node {node}");
        assert_eq!(matches!(here[0], Participant::Local(_)), *node == B, "node {node}");
    }
}

#[test]
fn one_that_went_on_elsewhere_and_left_there_is_gone_for_those_who_stayed_and_comes_back_to_nobody() {
    let (mut mesh, ann, _) = taken_over_by_c(0);
    mesh.on(C, |stage| stage.say("ann", MemberRequest::Leave));
    mesh.on(A, Stage::forget);
    // C hears late what A said of ann, and A what C said last.
    let of_a = all_of(A, &mesh.nodes[&A].session);
    mesh.node(C, |session, now| of_a.into_iter().for_each(|record| _ = session.handle_record(now, record)));
    let (_, tombstone) = mesh.records.iter().rev().find(|(node, record)| *node == C && record.manifest.is_none()).cloned().unwrap();
    mesh.node(A, |session, now| _ = session.handle_record(now, from(C, tombstone)));
    mesh.heal();
    assert_eq!(
        seen(&mesh.on(A, |stage| stage.told("dan"))),
        [("ann".into(), MemberState::Disconnected, Some(LeaveReason::ClientInitiated))]
    );
    for (node, stage) in &mesh.nodes {
        assert!(stage.session.participants().all(|participant| participant.id() != ann), "node {node} believes what A said late");
    }
}

#[test]
fn one_that_was_taken_over_by_a_node_that_died_is_again_whose_it_was() {
    let (mut mesh, _, video) = taken_over_by_c(0);
    mesh.cut = Some(C);
    mesh.node(B, |session, now| session.handle_node_away(now, C));
    mesh.node(B, |session, now| session.handle_node_back(now, A));
    let of_a = all_of(A, &mesh.nodes[&A].session);
    mesh.node(B, |session, now| of_a.into_iter().for_each(|record| _ = session.handle_record(now, record)));
    assert_eq!(mesh.nodes[&B].session.remote_track(video).map(|key| key.node), Some(C), "C may come back");
    mesh.on(B, Stage::forget);
    mesh.pass(Duration::from_secs(6));
    assert_eq!(mesh.nodes[&B].session.remote_track(video).map(|key| key.node), Some(A));
    let told = seen(&mesh.on(B, |stage| stage.told("bob")));
    let of_ann: Vec<_> = told.into_iter().filter(|(name, ..)| name == "ann").map(|(_, state, _)| state).collect();
    assert_eq!(of_ann, [MemberState::Disconnected, MemberState::Active], "so that what A says is not older than what C said");
}

#[test]
fn layers_of_one_that_is_taken_over_are_known_by_what_its_owner_wrote_of_them() {
    let mut mesh = Mesh::new(&[A, B]);
    let (ann, video) = mesh.on(A, |stage| {
        connect(stage, "ann");
        let (video, _) = publish(stage, "ann", first_offer(), &["q", "h", "f"]);
        stage.event(Event::TrackStarted { track: video });
        (stage.members["ann"], video)
    });
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    mesh.on(B, |stage| {
        stage.members.insert("ann", ann);
        assert_eq!(stage.resume("ann"), Err(Refusal::UnknownParticipant), "nobody would know them");
    });
    assert!(mesh.nodes[&B].session.participants().any(|participant| participant.id() == ann), "it is away still");

    mesh.node(B, |session, now| session.handle_node_back(now, A));
    let of_layer = |media, rtx| LayerSsrcs { media: Some(media), rtx };
    let ssrcs = [of_layer(10, Some(11)), of_layer(20, None), of_layer(30, Some(31)), LayerSsrcs::default()];
    let before = mesh.records.len();
    for _ in 0..5 {
        mesh.on(A, |stage| stage.event(Event::LayersBound { track: video, ssrcs }));
    }
    assert_eq!(mesh.records.len(), before + 1, "once");
    mesh.node(B, |session, now| session.handle_node_away(now, A));
    let published = vec![("cam".into(), video)];
    let sync = MemberSync { published, ..MemberSync::default() };
    let mut sections = first_offer();
    // The client may call them in another order.
    sections.extend([sends("8", "cam", &[VP8], &["f", "h", "q"]), sends("9", "mic", &[OPUS], &[])]);
    mesh.on(B, |stage| {
        stage.forget();
        come_back(stage, "ann", ann, sync, sections);
    });
    let bound = mesh.nodes[&B].heard.commands.iter().filter_map(|command| match command {
        Command::OpenTrack(open) => Some((open.track, None)),
        Command::BindLayers { track, ssrcs } => Some((*track, Some(*ssrcs))),
        _ => None,
    });
    let bound: Vec<_> = bound.filter(|(track, _)| *track == video).map(|(_, ssrcs)| ssrcs).collect();
    let turned = [ssrcs[2], ssrcs[1], ssrcs[0], LayerSsrcs::default()];
    assert_eq!(bound, [None, Some(turned)], "the track, then its layers by what they are called now");
    let (_, last) = mesh.records.last().unwrap();
    let track = last.manifest.as_ref().unwrap().tracks.iter().find(|track| track.info.track == video).unwrap();
    assert_eq!((&*track.rids[0], track.ssrcs), ("f", turned), "for the next one that takes it over");
}

/// Numbers of a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// One node is cut off, and both sides notice.
fn cut(mesh: &mut Mesh, node: u64) {
    mesh.cut = Some(node);
    for other in [A, B, C].into_iter().filter(|other| *other != node) {
        mesh.node(other, |session, now| session.handle_node_away(now, node));
        mesh.node(node, |session, now| session.handle_node_away(now, other));
    }
}

fn heal(mesh: &mut Mesh) {
    for node in [A, B, C] {
        for other in [A, B, C].into_iter().filter(|other| *other != node) {
            mesh.node(node, |session, now| session.handle_node_back(now, other));
        }
    }
    mesh.heal();
}

/// Who is where, as a node sees it.
fn owners(node: u64, session: &Session) -> BTreeMap<ParticipantId, u64> {
    let owner = |participant: &Participant<'_>| match participant {
        Participant::Local(_) => node,
        Participant::Remote(remote) => remote.key().node,
    };
    session.participants().map(|participant| (participant.id(), owner(&participant))).collect()
}

#[test]
fn whoever_is_cut_off_and_comes_back_wherever_each_has_one_owner_in_the_end() {
    let people = [("ann", A), ("bob", B), ("cid", C)];
    let mut moves = 0;
    for seed in 1..400 {
        let mut dice = Dice(seed);
        let (mut mesh, ..) = call();
        let ids: BTreeMap<_, _> = people.map(|(name, node)| (name, mesh.nodes[&node].members[name])).into();
        for _ in 0..40 {
            match dice.below(5) {
                0 => match mesh.cut {
                    None => cut(&mut mesh, dice.one_of(&[A, B, C])),
                    Some(_) => heal(&mut mesh),
                },
                1 | 2 => {
                    // Its client may know less than the others, and may try where it is refused.
                    let (name, node) = (dice.one_of(&people).0, dice.one_of(&[A, B, C]));
                    let sections = if name == "ann" { offer_of_ann() } else { first_offer() };
                    mesh.on(node, |stage| {
                        stage.members.insert(name, ids[name]);
                        let before = stage.heard.actions.len();
                        if stage.resume(name).is_ok() {
                            moves += stage.heard.actions[before..]
                                .iter()
                                .filter(|(_, action)| matches!(action, Action::TakenOver { .. }))
                                .count();
                            stage.offer(name, sections);
                            stage.connect(name);
                        }
                    });
                }
                3 => {
                    let node = dice.one_of(&[A, B, C]);
                    mesh.on(node, |stage| {
                        let track =
                            stage.session.participants().find(|p| p.identity().as_str() == "ann").and_then(|p| p.tracks().first().copied());
                        if let Some((track, _)) = track.zip(stage.members.get("ann")) {
                            stage.say("ann", MemberRequest::Mute { track, muted: true });
                        }
                    });
                }
                _ => mesh.pass(Duration::from_millis(dice.below(2_500))),
            }
        }
        heal(&mut mesh);
        mesh.pass(Duration::from_secs(1));
        heal(&mut mesh);
        let seen: BTreeMap<_, _> = mesh.nodes.iter().map(|(node, stage)| (*node, owners(*node, &stage.session))).collect();
        assert!(seen[&A] == seen[&B] && seen[&B] == seen[&C], "seed {seed}: {seen:?}");
        assert_eq!(seen[&A].keys().copied().collect::<BTreeSet<_>>(), ids.values().copied().collect(), "seed {seed}: nobody is lost");
        let locals = mesh.nodes.values().flat_map(|stage| stage.session.local_records()).map(|record| record.participant);
        assert_eq!(locals.collect::<Vec<_>>().len(), 3, "seed {seed}: one owner each");
    }
    assert!(moves > 400, "{moves} times one was taken over");
}

/// How each track that comes is wanted, by the last command.
fn wanted(commands: &[Command]) -> BTreeMap<TrackId, LayerWish> {
    let wish = |command: &Command| match command {
        Command::Wish { subscription, wish } => Some((*subscription, *wish)),
        _ => None,
    };
    let wishes: BTreeMap<_, _> = commands.iter().filter_map(wish).collect();
    fed(commands).into_iter().filter_map(|(section, (track, _))| Some((track?, *wishes.get(&section)?))).collect()
}

fn settings(track: TrackId, quality: Quality, fps: u32) -> MemberRequest {
    MemberRequest::TrackSettings(TrackSettings { tracks: vec![track], quality, fps, priority: 2, ..TrackSettings::default() })
}

#[test]
fn what_a_client_wants_of_tracks_holds_where_it_is_taken_over_though_it_does_not_say_it_again() {
    let (mut mesh, ann, _, [video, audio], fed_before) = two_in_a_call();
    mesh.on(A, |stage| {
        stage.say("ann", settings(video, Quality::Low, 15));
        stage.say("ann", settings(audio, Quality::Off, 0));
    });
    mesh.pass(Duration::from_secs(2));
    mesh.cut = Some(A);
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    let fed: Vec<_> = fed_before.iter().map(|(mid, track)| (mid.as_str().into(), *track)).collect();
    let sync = MemberSync { fed: fed.clone(), ..MemberSync::default() };
    mesh.on(C, |stage| come_back(stage, "ann", ann, sync, offer_of_ann()));
    let low = LayerWish { paused: false, spatial_max: 0, temporal_max: 1, priority: 2 };
    let paused = LayerWish { paused: true, ..LayerWish::default() };
    assert_eq!(wanted(&mesh.nodes[&C].heard.commands), [(video, low), (audio, paused)].into());
    // C knows it for the next one, and a client that says it again is heard.
    mesh.node(B, |session, now| session.handle_node_away(now, C));
    mesh.cut = Some(C);
    mesh.on(B, |stage| come_back(stage, "ann", ann, MemberSync { fed, ..MemberSync::default() }, offer_of_ann()));
    assert_eq!(wanted(&mesh.nodes[&B].heard.commands)[&video], low);
    mesh.on(B, |stage| stage.say("ann", settings(video, Quality::High, 0)));
    assert_eq!(wanted(&mesh.nodes[&B].heard.commands)[&video], LayerWish { priority: 2, ..LayerWish::default() });
}

#[test]
fn what_a_client_says_is_paused_is_paused_where_it_is_taken_over() {
    let (mut mesh, ann, _, [video, audio], fed_before) = two_in_a_call();
    for node in [B, C] {
        mesh.node(node, |session, now| session.handle_node_away(now, A));
    }
    let fed = fed_before.iter().map(|(mid, track)| (mid.as_str().into(), *track)).collect();
    let sync = MemberSync { fed, disabled: vec![video], ..MemberSync::default() };
    mesh.on(C, |stage| come_back(stage, "ann", ann, sync, offer_of_ann()));
    let wanted = wanted(&mesh.nodes[&C].heard.commands);
    assert!(wanted[&video].paused && !wanted.get(&audio).is_some_and(|wish| wish.paused), "{wanted:?}");
}

#[test]
fn wishes_that_change_often_are_one_record_and_no_news_to_members() {
    let (mut mesh, _, _, [video, _], _) = two_in_a_call();
    let before = mesh.records.len();
    for fps in (1..100).map(|n| 1 + n % 60) {
        mesh.on(A, |stage| stage.say("ann", settings(video, Quality::High, fps)));
    }
    assert_eq!(mesh.records.len(), before, "it may have more to say");
    mesh.pass(Duration::from_secs(2));
    assert_eq!(mesh.records.len(), before + 1);
    assert_eq!(seen(&mesh.on(B, |stage| stage.told("bob"))), []);
    // What is as it was is no news either.
    mesh.on(A, |stage| stage.say("ann", settings(video, Quality::High, 1 + 99 % 60)));
    mesh.pass(Duration::from_secs(2));
    assert_eq!(mesh.records.len(), before + 1);
}
