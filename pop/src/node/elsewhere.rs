//! What operators ask at one node of rooms and people of others. Who asks was allowed to at the node where it asked.

use std::time::Duration;

use pop_relay::control::{Action, Order, Outcome};
use pop_schemas::{Identity, TrackId};
use pop_session::member::AdminRequest;
use pop_session::{Refusal, Reply, Request};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::directory::RoomSender;
use super::room::RoomMessage;

/// How long a room that has begun here is given to hear who is in it on other nodes: pages come within some milliseconds.
const PEOPLE_TRIES: u32 = 10;
const PEOPLE_INTERVAL: Duration = Duration::from_millis(30);

/// An order without number and session.
pub(crate) struct Wish {
    pub(crate) action: Action,
    pub(crate) identity: Option<Identity>,
    pub(crate) tracks: Vec<TrackId>,
}

/// What other nodes can do in the place of this one.
pub(super) fn order_of(request: &AdminRequest) -> Option<Wish> {
    let (action, identity, tracks) = match request {
        AdminRequest::Remove(identity) => (Action::Remove, Some(identity), Vec::new()),
        AdminRequest::Mute { identity, track, muted } => (if *muted { Action::Mute } else { Action::Unmute }, Some(identity), vec![*track]),
        AdminRequest::Subscribe { identity, tracks, subscribe } => {
            (if *subscribe { Action::Subscribe } else { Action::Unsubscribe }, Some(identity), tracks.clone())
        }
        AdminRequest::Delete => (Action::Delete, None, Vec::new()),
        _ => return None,
    };
    Some(Wish { action, identity: identity.cloned(), tracks })
}

/// What an order asks of a room; nothing when it names nobody.
pub(super) fn requests_of(order: Order) -> Vec<AdminRequest> {
    let Order { action, identity, tracks, .. } = order;
    let Some(identity) = identity else {
        return if action == Action::Delete { vec![AdminRequest::Delete] } else { Vec::new() };
    };
    let mute = |muted: bool| {
        let of = |track: &TrackId| AdminRequest::Mute { identity: identity.clone(), track: *track, muted };
        tracks.iter().map(of).collect()
    };
    match action {
        Action::Remove => vec![AdminRequest::Remove(identity)],
        Action::Mute => mute(true),
        Action::Unmute => mute(false),
        Action::Subscribe | Action::Unsubscribe => {
            vec![AdminRequest::Subscribe { identity, tracks, subscribe: action == Action::Subscribe }]
        }
        Action::Delete => Vec::new(),
    }
}

pub(super) fn outcome_of(reply: Result<Reply, Refusal>) -> Outcome {
    match reply {
        Ok(_) => Outcome::Done,
        Err(Refusal::UnknownTrack) => Outcome::UnknownTrack,
        Err(_) => Outcome::UnknownParticipant,
    }
}

/// What became of a request here and elsewhere together.
pub(super) fn add(here: Result<Reply, Refusal>, elsewhere: Outcome) -> Result<Reply, Refusal> {
    match (here, elsewhere) {
        (Ok(reply), _) => Ok(reply),
        (Err(_), Outcome::Done) => Ok(Reply::Done),
        (Err(_), Outcome::UnknownTrack) => Err(Refusal::UnknownTrack),
        (Err(refusal), Outcome::UnknownParticipant) => Err(refusal),
    }
}

/// It is answered by who is in the room, or is for them, wherever they are.
pub(super) fn needs_everybody(request: &AdminRequest) -> bool {
    matches!(request, AdminRequest::List | AdminRequest::SendData(_) | AdminRequest::UpdateRoom { .. })
}

/// Returns when somebody is in the room, or nobody seems to be.
pub(super) async fn await_people(room: &RoomSender) {
    for _ in 0..PEOPLE_TRIES {
        let (reply, answer) = oneshot::channel();
        if room.send(RoomMessage::Ask { request: Request::Admin(AdminRequest::List), reply }).is_err() {
            return;
        }
        if let Ok(Ok(Reply::Participants(people))) = answer.await
            && !people.is_empty()
        {
            return;
        }
        sleep(PEOPLE_INTERVAL).await;
    }
}
