//! Data messages between members, in fake time.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{Command, DataMessage, Event};
use pop_schemas::{ParticipantId, TransportId};
use pop_session::Reply;
use pop_session::member::{DATA_HISTORY, LeaveAction, MemberRequest, Notice, Permissions, Sync};
use stage::*;

fn message(sequence: u32, to: &[&str], body: &[u8]) -> DataMessage {
    DataMessage { reliable: true, to: to.iter().map(|name| identity(name)).collect(), sequence, body: body.into() }
}

/// Ann, bob and a hidden cid, all connected.
fn three() -> Stage {
    let mut stage = Stage::new();
    for name in ["ann", "bob", "cid"] {
        stage.enter_as(name, Permissions { hidden: name == "cid", ..everything() }, true);
        stage.offer(name, first_offer());
        stage.connect(name);
    }
    stage.forget();
    stage
}

/// To which transports, and the body.
fn sent(stage: &mut Stage) -> Vec<(TransportId, Vec<u8>)> {
    let sent = |command: Command| match command {
        Command::SendData { transport, message } => Some((transport, message.body.to_vec())),
        _ => None,
    };
    std::mem::take(&mut stage.heard.commands).into_iter().filter_map(sent).collect()
}

fn say(stage: &mut Stage, name: &str, message: DataMessage) -> Vec<(TransportId, Vec<u8>)> {
    let transport = stage.transport(name);
    stage.event(Event::Data { transport, message: Arc::new(message) });
    sent(stage)
}

fn sync(stage: &mut Stage, name: &str, received: &[(ParticipantId, u32)]) -> Vec<(TransportId, Vec<u8>)> {
    stage.heard.commands.clear();
    let sync = Sync { received: received.to_vec(), ..Sync::default() };
    stage.say(name, MemberRequest::Sync(Box::new(sync)));
    sent(stage)
}

#[test]
fn a_message_goes_to_everybody_else_or_to_those_whom_it_names() {
    let mut stage = three();
    let [ann, bob, cid] = ["ann", "bob", "cid"].map(|name| stage.transport(name));
    let all = say(&mut stage, "ann", message(1, &[], b"all"));
    assert_eq!(all.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [bob, cid], "who is hidden hears, too");
    let one = say(&mut stage, "bob", message(1, &["ann", "bob", "zoe"], b"ann"));
    assert_eq!(one, [(ann, b"ann".to_vec())], "not to itself");
    stage.enter("dan");
    stage.offer("dan", first_offer());
    assert_eq!(say(&mut stage, "ann", message(2, &["dan"], b"x")), [], "it is not connected yet");
}

#[test]
fn who_may_not_send_is_not_heard_and_a_repetition_is_dropped() {
    let mut stage = three();
    stage.enter_as("eve", Permissions { publish_data: false, ..everything() }, true);
    stage.offer("eve", first_offer());
    stage.connect("eve");
    stage.forget();
    assert_eq!(say(&mut stage, "eve", message(1, &[], b"x")), []);
    assert_eq!(say(&mut stage, "ann", message(5, &[], b"x")).len(), 3);
    assert_eq!(say(&mut stage, "ann", message(5, &[], b"x")), []);
    assert_eq!(say(&mut stage, "ann", message(4, &[], b"x")), []);
    let drops = stage.session.data_drops();
    assert_eq!((drops.forbidden, drops.repeated), (1, 2));
    let lossy = DataMessage { reliable: false, ..message(0, &[], b"x") };
    assert_eq!(say(&mut stage, "ann", lossy.clone()).len() + say(&mut stage, "ann", lossy).len(), 6);
}

#[test]
fn one_that_comes_back_gets_what_it_missed_and_hears_how_far_it_was_heard() {
    let mut stage = three();
    for n in 1..=4 {
        say(&mut stage, "ann", message(n, &[], &[n as u8]));
    }
    say(&mut stage, "ann", message(5, &["cid"], b"not for bob"));
    say(&mut stage, "bob", message(7, &[], b"own"));
    stage.say("bob", MemberRequest::SocketClosed);
    assert_eq!(stage.resume("bob"), Ok(Reply::Joined));
    let notices = stage.told("bob");
    assert!(notices.iter().any(|notice| matches!(notice, Notice::Resumed(resumed) if resumed.last_message == 7)));
    let (ann, bob) = (stage.members["ann"], stage.transport("bob"));
    assert_eq!(sync(&mut stage, "bob", &[(ann, 2)]), [(bob, vec![3]), (bob, vec![4])]);
    assert_eq!(sync(&mut stage, "bob", &[(ann, 4)]), []);
    stage.pass(DATA_HISTORY);
    assert_eq!(sync(&mut stage, "bob", &[(ann, 2)]), [], "it was too long ago");
    assert_eq!(stage.session.data_kept_len(), 0);
}

#[test]
fn a_receiver_that_is_behind_is_told_to_resume_and_nobody_else_notices() {
    let mut stage = three();
    let (ann, bob) = (stage.members["ann"], stage.transport("bob"));
    say(&mut stage, "ann", message(1, &[], b"1"));
    stage.forget();
    stage.session.handle_data_overflow(stage.now, bob);
    stage.drain();
    assert!(matches!(stage.told("bob")[..], [Notice::Leave { action: LeaveAction::Resume, .. }]));
    assert!(stage.told("ann").is_empty() && stage.told("cid").is_empty());
    let to: Vec<_> = say(&mut stage, "ann", message(2, &[], b"2")).into_iter().map(|(to, _)| to).collect();
    assert!(!to.contains(&bob), "its buffer is full");
    assert_eq!(stage.resume("bob"), Ok(Reply::Joined));
    assert_eq!(sync(&mut stage, "bob", &[(ann, 1)]), [(bob, b"2".to_vec())]);
    let to: Vec<_> = say(&mut stage, "ann", message(3, &[], b"3")).into_iter().map(|(to, _)| to).collect();
    assert!(to.contains(&bob));
}

#[test]
fn what_is_kept_is_bounded_for_large_messages_and_for_many() {
    let mut stage = three();
    for n in 1..=100 {
        say(&mut stage, "ann", message(n, &[], &[0; 60_000]));
    }
    assert!((900_000..=1 << 20).contains(&stage.session.data_kept_len()));
    for n in 101..=30_000 {
        say(&mut stage, "ann", message(n, &[], b""));
    }
    assert!((900_000..=1 << 20).contains(&stage.session.data_kept_len()));
    let ann = stage.members["ann"];
    let replayed = sync(&mut stage, "bob", &[(ann, 0)]).len();
    assert!(replayed < 10_000, "small messages count for more than their bodies: {replayed}");
    stage.pass(Duration::from_secs(60));
    assert_eq!(stage.session.data_kept_len(), 0);
}

#[test]
fn a_receiver_that_is_behind_and_not_connected_gets_messages_once_it_is() {
    let mut stage = Stage::new();
    for name in ["ann", "bob"] {
        stage.enter(name);
        stage.offer(name, first_offer());
    }
    stage.connect("ann");
    let bob = stage.transport("bob");
    stage.session.handle_data_overflow(stage.now, bob);
    stage.drain();
    assert_eq!(stage.resume("bob"), Ok(Reply::Joined));
    assert_eq!(sync(&mut stage, "bob", &[]), [], "there is no way to it");
    stage.connect("bob");
    assert_eq!(say(&mut stage, "ann", message(1, &[], b"1")), [(bob, b"1".to_vec())]);
}
