//! What operators do to a room, in fake time.

#[path = "members/stage.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod stage;

use std::sync::Arc;

use pop_proto::control::{Command, DATA_MESSAGE_LEN_MAX, DataMessage};
use pop_schemas::{ParticipantId, TransportId};
use pop_session::member::{AdminRequest, Enter, Notice, RoomInfo};
use pop_session::{Refusal, Reply, Request};
use stage::{Stage, everything, first_offer, identity};

fn admin(stage: &mut Stage, request: AdminRequest) -> Result<Reply, Refusal> {
    stage.request(Request::Admin(request))
}

fn create(stage: &mut Stage, metadata: Option<&str>, participants_max: u32) -> RoomInfo {
    let request = AdminRequest::Create { metadata: metadata.map(Into::into), participants_max, now_ms: 1_600_000_000_000 };
    let Ok(Reply::Room(info)) = admin(stage, request) else { panic!("it is made") };
    *info
}

fn enter(stage: &mut Stage, id: u64, name: &str) -> Result<Reply, Refusal> {
    stage.request(Request::Enter(Box::new(Enter {
        participant: ParticipantId(id),
        identity: identity(name),
        name: name.into(),
        metadata: "".into(),
        attributes: Default::default(),
        permissions: everything(),
        auto_subscribe: true,
        adaptive_stream: false,
        joined_at_ms: 1_700_000_000_000,
        client: "test".into(),
    })))
}

#[test]
fn a_room_is_made_before_anybody_is_in_it_and_once() {
    let mut stage = Stage::new();
    let made = create(&mut stage, Some("stage left"), 0);
    assert_eq!((made.created_at_ms, made.participants, made.metadata.as_ref()), (1_600_000_000_000, 0, "stage left"));
    stage.enter("ann");
    let again = create(&mut stage, None, 0);
    assert_eq!((again.sid, again.created_at_ms, again.participants), (made.sid, made.created_at_ms, 1));
    assert_eq!(again.metadata, made.metadata, "what is not told stays");
}

#[test]
fn an_operator_bounds_a_room_and_it_takes_no_more() {
    let mut stage = Stage::new();
    assert_eq!(create(&mut stage, None, 1).participants_max, 1);
    assert_eq!(enter(&mut stage, 101, "ann"), Ok(Reply::Joined));
    assert_eq!(enter(&mut stage, 102, "bob"), Err(Refusal::Full(1)));
    assert_eq!(enter(&mut stage, 103, "ann"), Ok(Reply::Joined), "the same identity takes the place of its older one");
    create(&mut stage, None, 2);
    assert_eq!(enter(&mut stage, 104, "bob"), Ok(Reply::Joined));
}

#[test]
fn members_are_told_of_new_metadata_and_too_long_ones_change_nothing() {
    let mut stage = Stage::new();
    stage.enter("ann");
    stage.forget();
    let long = "x".repeat((64 << 10) + 1);
    let request = AdminRequest::Create { metadata: Some(long.into()), participants_max: 5, now_ms: 0 };
    assert_eq!(admin(&mut stage, request), Err(Refusal::TextTooLong));
    assert!(stage.told("ann").is_empty());
    assert_eq!(admin(&mut stage, AdminRequest::UpdateRoom { metadata: "new".into(), now_ms: 0 }), Ok(Reply::Done));
    let notices = stage.told("ann");
    assert!(matches!(&notices[..], [Notice::Room(room)] if room.metadata.as_ref() == "new"), "{notices:?}");
}

/// Transports that a message goes to.
fn sent(stage: &mut Stage) -> Vec<TransportId> {
    let commands = std::mem::take(&mut stage.heard.commands).into_iter();
    commands.filter_map(|command| if let Command::SendData { transport, .. } = command { Some(transport) } else { None }).collect()
}

#[test]
fn an_operators_message_goes_to_those_it_names() {
    let mut stage = Stage::new();
    for name in ["ann", "bob", "eve"] {
        stage.enter(name);
        stage.offer(name, first_offer());
    }
    stage.connect("ann");
    stage.connect("bob");
    let (ann, bob) = (stage.transport("ann"), stage.transport("bob"));
    let send = |stage: &mut Stage, to: &[&str], len: usize| {
        let to = to.iter().map(|name| identity(name)).collect();
        let message = DataMessage { reliable: true, to, sequence: 0, body: vec![7; len].into() };
        admin(stage, AdminRequest::SendData(Arc::new(message)))
    };
    assert_eq!(send(&mut stage, &[], 10), Ok(Reply::Done));
    assert_eq!(sent(&mut stage), [ann, bob], "eve has no keys yet");
    assert_eq!(send(&mut stage, &["bob"], 10), Ok(Reply::Done));
    assert_eq!(sent(&mut stage), [bob]);
    assert_eq!(send(&mut stage, &[], DATA_MESSAGE_LEN_MAX + 1), Err(Refusal::MessageTooLarge));
    assert_eq!(sent(&mut stage), []);
}
