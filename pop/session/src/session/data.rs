//! Data messages: who may send, who gets them, and what a receiver that comes back has missed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{Command, DATA_MESSAGE_LEN_MAX, DataMessage};
use pop_schemas::{Identity, ParticipantId, Time, TransportId};

use super::request::Refusal;
use super::{RESUME_GRACE, Session};
use crate::member::{DATA_HISTORY, LeaveAction, LeaveReason, Notice};
use crate::participant::{Connection, LocalParticipant};

/// Bytes of reliable messages that a room keeps for receivers that come back.
const DATA_HISTORY_LEN_MAX: usize = 1 << 20;

/// What a kept message costs beside its body, in bytes: many small messages must not escape the bound.
const KEPT_COST: usize = 128;

/// Receivers that one message may name.
const DATA_RECEIVERS_MAX: usize = 1_024;

/// Reliable messages of the last [`DATA_HISTORY`].
#[derive(Debug, Default)]
pub(crate) struct DataHistory {
    kept: VecDeque<Kept>,
    len: usize,
}

#[derive(Debug)]
struct Kept {
    sender: ParticipantId,
    /// It came from a client of this node.
    is_ours: bool,
    at: Time,
    message: Arc<DataMessage>,
}

impl DataHistory {
    fn push(&mut self, kept: Kept) {
        let at = kept.at;
        self.len += cost(&kept.message);
        self.kept.push_back(kept);
        self.prune(at);
    }

    fn prune(&mut self, now: Time) {
        let is_over = |kept: &Kept, len: usize| len > DATA_HISTORY_LEN_MAX || kept.at + DATA_HISTORY <= now;
        while self.kept.front().is_some_and(|kept| is_over(kept, self.len)) {
            let Some(kept) = self.kept.pop_front() else { return };
            self.len -= cost(&kept.message);
        }
    }

    /// When the oldest goes.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.kept.front().map(|kept| kept.at + DATA_HISTORY)
    }
}

fn cost(message: &DataMessage) -> usize {
    message.body.len() + message.to.iter().map(|identity| identity.as_str().len() + 16).sum::<usize>() + KEPT_COST
}

/// What became of messages that nobody got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataDrops {
    /// The sender may not send data, or is none of the members.
    pub forbidden: u64,
    /// Longer, or to more receivers, than may be.
    pub oversized: u64,
    /// It came before: the sender repeats what it does not know to have arrived.
    pub repeated: u64,
    /// Another node says it for somebody who is not its own, or may not send data.
    pub foreign: u64,
}

impl Session {
    /// Messages that were dropped.
    pub fn data_drops(&self) -> DataDrops {
        self.data_drops
    }

    /// What the reliable messages that are kept for receivers which come back take, in bytes: at most 1 MiB.
    pub fn data_kept_len(&self) -> usize {
        self.history.len
    }

    /// A receiver takes messages slower than they come, and its buffer is full. Its socket ends with the word to resume: then it gets
    /// what it missed, by what it says that it has. Nothing else of it ends, and nobody else notices.
    pub fn handle_data_overflow(&mut self, now: Time, transport: TransportId) {
        let id = self.by_transport.get(&transport).copied();
        let Some(id) = id.filter(|id| self.member(*id).is_some()) else {
            self.unknown_events += 1;
            return;
        };
        self.notify(id, Notice::Leave { reason: LeaveReason::SignalClosed, action: LeaveAction::Resume });
        let Some(member) = self.member_mut(id) else { return };
        member.is_behind = true;
        if member.socket_gone.is_none() {
            member.socket_gone = Some(now);
            self.socketless.insert((now + RESUME_GRACE, id));
        }
        self.settle(now);
    }

    /// Hands a message to those who get it. `false`: it is of nobody here.
    pub(super) fn take_data(&mut self, now: Time, transport: TransportId, message: Arc<DataMessage>) -> bool {
        let Some(id) = self.by_transport.get(&transport).copied() else { return false };
        let Some(member) = self.member_mut(id).filter(|member| member.permissions.publish_data) else {
            self.data_drops.forbidden += 1;
            return true;
        };
        if !is_within_bounds(&message) {
            self.data_drops.oversized += 1;
            return true;
        }
        if message.reliable && message.sequence != 0 {
            if message.sequence <= member.last_message {
                self.data_drops.repeated += 1;
                return true;
            }
            member.last_message = message.sequence;
        }
        self.hand_out(&message, Some(id));
        // One without a number cannot be asked for.
        if message.reliable && message.sequence != 0 {
            self.history.push(Kept { sender: id, is_ours: true, at: now, message });
        }
        true
    }

    /// A message of another node's participant, for those of ours who come back.
    pub(super) fn keep_data(&mut self, now: Time, sender: ParticipantId, message: &Arc<DataMessage>) {
        self.history.push(Kept { sender, is_ours: false, at: now, message: Arc::clone(message) });
    }

    /// What another node lacks of what ours have said since `age`: `received` is the last of each sender that it has.
    pub(super) fn missed_abroad(
        &mut self,
        now: Time,
        age: Duration,
        received: &[(ParticipantId, u32)],
    ) -> Vec<(ParticipantId, Arc<DataMessage>)> {
        self.history.prune(now);
        let received: BTreeMap<_, _> = received.iter().copied().collect();
        let is_missing = |kept: &&Kept| {
            let last = received.get(&kept.sender).copied().unwrap_or(0);
            kept.is_ours && kept.at + age >= now && kept.message.sequence > last
        };
        self.history.kept.iter().filter(is_missing).map(|kept| (kept.sender, Arc::clone(&kept.message))).collect()
    }

    /// Hands an operator's message to those who get it.
    pub(super) fn send_data(&mut self, message: &Arc<DataMessage>) -> Result<(), Refusal> {
        if !is_within_bounds(message) {
            return Err(Refusal::MessageTooLarge);
        }
        self.hand_out(message, None);
        Ok(())
    }

    /// Hands a message of this node to all whom it is for, wherever they are.
    fn hand_out(&mut self, message: &Arc<DataMessage>, sender: Option<ParticipantId>) {
        self.hand_out_here(message, sender);
        self.hand_out_abroad(message, sender);
    }

    /// Hands a message to all of this node whom it is for and who can be reached now, but not to its sender.
    pub(super) fn hand_out_here(&mut self, message: &Arc<DataMessage>, sender: Option<ParticipantId>) {
        // A message may name many, and a room may have many.
        let named: BTreeSet<&Identity> = message.to.iter().collect();
        let is_for = |participant: &LocalParticipant| named.is_empty() || named.contains(&participant.identity);
        let others = self.participants.values().filter(|participant| Some(participant.id) != sender && participant.member.is_some());
        let ready = others.filter(|participant| is_ready(participant) && is_for(participant));
        for transport in ready.filter_map(|participant| participant.transport).collect::<Vec<_>>() {
            self.command(Command::SendData { transport, message: message.clone() });
        }
    }

    /// Sends again what a receiver that is back has missed since then: `received` is the last of each sender that it has.
    pub(super) fn replay_data(&mut self, now: Time, id: ParticipantId, since: Time, received: &[(ParticipantId, u32)]) {
        self.history.prune(now);
        let Some(receiver) = self.participants.get(&id) else { return };
        let (Some(transport), Connection::Connected { .. }) = (receiver.transport, receiver.connection) else { return };
        let received: BTreeMap<_, _> = received.iter().copied().collect();
        let last = |sender: ParticipantId| received.get(&sender).copied().unwrap_or(0);
        let is_missing = |kept: &&Kept| {
            let is_later = kept.message.sequence > last(kept.sender);
            kept.sender != id && kept.at >= since && takes(receiver, &kept.message) && is_later
        };
        let missing: Vec<_> = self.history.kept.iter().filter(is_missing).map(|kept| kept.message.clone()).collect();
        for message in missing {
            self.command(Command::SendData { transport, message });
        }
        if let Some(member) = self.member_mut(id) {
            member.is_behind = false;
        }
    }

    pub(super) fn forget_old_data(&mut self, now: Time) {
        self.history.prune(now);
    }
}

pub(super) fn is_within_bounds(message: &DataMessage) -> bool {
    message.body.len() <= DATA_MESSAGE_LEN_MAX && message.to.len() <= DATA_RECEIVERS_MAX
}

/// The message is for this participant: those who are hidden get it too.
fn takes(participant: &LocalParticipant, message: &DataMessage) -> bool {
    participant.member.is_some() && (message.to.is_empty() || message.to.contains(&participant.identity))
}

/// It can be reached now. One that is behind gets the rest when it is back.
fn is_ready(participant: &LocalParticipant) -> bool {
    let is_behind = participant.member.as_ref().is_some_and(|member| member.is_behind);
    matches!(participant.connection, Connection::Connected { .. }) && !is_behind
}
