//! What members on other nodes hear of ours beside records, and ours of theirs: data messages, who speaks, how each is connected.
//!
//! ```text
//! a member's data -> once to each node whose people it is for -> handle_remote_data -> to its members, exactly once and in order
//! a node that begins, or has missed something -> handle_follow -> what it lacks of the reliable ones, then everything
//! ```
//! A node speaks for its own participants alone, as it does in records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::DataMessage;
use pop_schemas::{Identity, ParticipantId, Time};

use super::Session;
use super::data::is_within_bounds;
use super::output::Output;
use super::quality::QUALITY_INTERVAL;
use super::speakers::STEPS_MAX;
use super::texts::METADATA_LEN_MAX;
use crate::member::ConnectionQuality;

/// Senders, speakers and connections that one telling names at most.
const ENTRIES_MAX: usize = 1_024;

/// What operators have said of a room. All its nodes agree on what was said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomWord {
    /// Opaque.
    pub metadata: Box<str>,
    /// It takes no more than these; 0: no bound was set.
    pub participants_max: u32,
    /// When and at which node it was said: milliseconds since 1970, later than what that node knew of. Nobody has: zeros.
    pub said: (u64, u64),
}

/// For other nodes that share the session.
#[derive(Clone, Debug, PartialEq)]
pub enum Abroad {
    /// The node gets data from here on: what was handed out before is not for it.
    Followed,
    /// A message of one of ours.
    Data {
        /// Who says it; `None`: an operator.
        sender: Option<ParticipantId>,
        /// What, with the names of the node's people alone.
        message: Arc<DataMessage>,
    },
    /// How ours are.
    Heard {
        /// All who speak, and how loud, in tenths.
        speaking: Vec<(ParticipantId, u8)>,
        /// Those whose connection has changed.
        connections: Vec<ConnectionQuality>,
    },
    /// What was said of the room. To all nodes when it is new: one that keeps the room for those whose node dies needs it, too.
    Room(RoomWord),
}

/// What is known of participants of other nodes, and what they were told of ours.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The last reliable message of each.
    pub(super) received: BTreeMap<ParticipantId, u32>,
    /// Who speaks.
    pub(super) speaking: BTreeMap<ParticipantId, u8>,
    /// How each is connected.
    pub(super) grades: BTreeMap<ParticipantId, ConnectionQuality>,
    /// How ours are, as it was told.
    told_grades: BTreeMap<ParticipantId, ConnectionQuality>,
}

impl Session {
    /// Another node has members here and wants to hear what ours say. `age`: for how long it has known ours; `received`: the last
    /// reliable message that it has of each. It may say so again when it has missed some.
    pub fn handle_follow(&mut self, now: Time, node: u64, age: Duration, received: &[(ParticipantId, u32)]) {
        self.tell_abroad(Some(node), Abroad::Followed);
        self.tell_room_to(node);
        for (sender, message) in self.missed_abroad(now, age, received) {
            self.send_to_node(node, Some(sender), &message);
        }
        let speaking = self.speakers.here.iter().map(|(id, level)| (*id, *level)).take(ENTRIES_MAX).collect();
        let connections = self.news.told_grades.values().copied().take(ENTRIES_MAX).collect();
        self.tell_abroad(Some(node), Abroad::Heard { speaking, connections });
        self.quality_due.get_or_insert(now + QUALITY_INTERVAL);
    }

    /// The last reliable message that came of each participant of `node`, for [`Session::handle_follow`] there.
    pub fn received_of(&self, node: u64) -> Vec<(ParticipantId, u32)> {
        let received = self.news.received.iter().filter(|(id, _)| self.is_of(node, **id));
        received.map(|(id, last)| (*id, *last)).take(ENTRIES_MAX).collect()
    }

    /// Hands out what a participant of another node says; `None`: an operator does, who asked there. What is not taken is counted in
    /// [`Session::data_drops`].
    pub fn handle_remote_data(&mut self, now: Time, node: u64, sender: Option<ParticipantId>, message: Arc<DataMessage>) {
        if !is_within_bounds(&message) {
            self.data_drops.oversized += 1;
            return;
        }
        if let Some(id) = sender {
            let may = |id| self.remotes.find(id).is_some_and(|remote| remote.manifest().permissions.publish_data);
            if !self.is_of(node, id) || !may(id) {
                self.data_drops.foreign += 1;
                return;
            }
            if message.reliable && message.sequence != 0 {
                let last = self.news.received.entry(id).or_default();
                if message.sequence <= *last {
                    self.data_drops.repeated += 1;
                    return;
                }
                *last = message.sequence;
                self.keep_data(now, id, &message);
            }
        }
        self.hand_out_here(&message, None);
        self.settle(now);
    }

    /// Takes what another node tells of its participants: all who speak, and whose connection has changed.
    pub fn handle_heard(&mut self, now: Time, node: u64, speaking: &[(ParticipantId, u8)], connections: &[ConnectionQuality]) {
        let strangers = speaking.iter().map(|(id, _)| id).chain(connections.iter().map(|quality| &quality.participant));
        self.unknown_events += strangers.filter(|id| !self.is_of(node, **id)).count() as u64;
        let speaking: Vec<_> = speaking.iter().filter(|(id, _)| self.is_of(node, *id)).copied().collect();
        let remotes = &self.remotes;
        self.news.speaking.retain(|id, _| remotes.find(*id).is_some_and(|remote| remote.key().node != node));
        self.news.speaking.extend(speaking.into_iter().map(|(id, level)| (id, level.clamp(1, STEPS_MAX))));
        self.tell_speakers();
        let judged: BTreeMap<_, _> = connections
            .iter()
            .filter(|quality| self.is_of(node, quality.participant))
            .map(|quality| (quality.participant, *quality))
            .collect();
        self.news.grades.extend(judged.iter().map(|(id, quality)| (*id, *quality)));
        if !judged.is_empty() {
            for id in self.members_here().collect::<Vec<_>>() {
                self.tell_quality(id, &judged);
            }
        }
        self.settle(now);
    }

    /// Another node has people here: it hears what was said of the room, also where nobody is here and it has nothing to follow.
    pub fn tell_room_to(&mut self, node: u64) {
        if self.word.said != (0, 0) {
            self.tell_abroad(Some(node), Abroad::Room(self.word.clone()));
        }
    }

    /// Takes what another node knows to have been said of the room, unless something later is known here.
    pub fn handle_room_word(&mut self, now: Time, word: RoomWord) {
        if word.metadata.len() > METADATA_LEN_MAX {
            self.unknown_events += 1;
            return;
        }
        if word.said > self.word.said {
            let before = std::mem::replace(&mut self.word, word);
            if (before.metadata, before.participants_max) != (self.word.metadata.clone(), self.word.participants_max) {
                self.tell_room();
            }
        }
        self.settle(now);
    }

    /// An operator says something of the room here: that is later than all that is known of.
    pub(super) fn say_of_room(&mut self, metadata: Box<str>, participants_max: u32, now_ms: u64) {
        if (&metadata, participants_max) == (&self.word.metadata, self.word.participants_max) {
            return;
        }
        let said = (now_ms.max(self.word.said.0.saturating_add(1)), self.node);
        self.word = RoomWord { metadata, participants_max, said };
        self.tell_room();
        self.tell_abroad(None, Abroad::Room(self.word.clone()));
    }

    /// Hands a message to the people of other nodes whom it is for: once to each node.
    pub(super) fn hand_out_abroad(&mut self, message: &Arc<DataMessage>, sender: Option<ParticipantId>) {
        if message.to.is_empty() {
            return self.tell_abroad(None, Abroad::Data { sender, message: Arc::clone(message) });
        }
        let of = |identity: &Identity| self.remotes.named(identity).map(|remote| remote.key().node).collect::<Vec<_>>();
        let nodes: BTreeSet<u64> = message.to.iter().flat_map(of).collect();
        for node in nodes {
            self.send_to_node(node, sender, message);
        }
    }

    /// With the names of the node's people alone.
    fn send_to_node(&mut self, node: u64, sender: Option<ParticipantId>, message: &Arc<DataMessage>) {
        if message.to.is_empty() {
            return self.tell_abroad(Some(node), Abroad::Data { sender, message: Arc::clone(message) });
        }
        let is_there = |identity: &&Identity| self.remotes.named(identity).any(|remote| remote.key().node == node);
        let to: BTreeSet<Identity> = message.to.iter().filter(is_there).cloned().collect();
        if !to.is_empty() {
            let message = Arc::new(DataMessage { to: to.into_iter().collect(), ..DataMessage::clone(message) });
            self.tell_abroad(Some(node), Abroad::Data { sender, message });
        }
    }

    fn tell_abroad(&mut self, node: Option<u64>, told: Abroad) {
        self.outputs.push_back(Output::Abroad { node, told });
    }

    /// Who of ours speaks has changed.
    pub(super) fn tell_speaking_abroad(&mut self) {
        let speaking = self.speakers.here.iter().map(|(id, level)| (*id, *level)).take(ENTRIES_MAX).collect();
        self.tell_abroad(None, Abroad::Heard { speaking, connections: Vec::new() });
    }

    /// Ours were judged.
    pub(super) fn tell_grades_abroad(&mut self, judged: &BTreeMap<ParticipantId, ConnectionQuality>) {
        let told = &mut self.news.told_grades;
        told.retain(|id, _| judged.contains_key(id));
        let is_news = |quality: &&ConnectionQuality| told.get(&quality.participant).is_none_or(|known| known.grade != quality.grade);
        let connections: Vec<_> = judged.values().filter(is_news).copied().take(ENTRIES_MAX).collect();
        told.extend(connections.iter().map(|quality| (quality.participant, *quality)));
        if !connections.is_empty() {
            let speaking = self.speakers.here.iter().map(|(id, level)| (*id, *level)).take(ENTRIES_MAX).collect();
            self.tell_abroad(None, Abroad::Heard { speaking, connections });
        }
    }

    /// A remote participant is gone, or away: it does not speak.
    pub(super) fn forget_news(&mut self, id: ParticipantId) {
        let remote = self.remotes.find(id);
        if remote.is_none_or(|remote| remote.is_away() || remote.is_outdone) && self.news.speaking.remove(&id).is_some() {
            // Those who have heard it speak are told at once.
            self.speakers.due = Some(Time::ZERO);
        }
        if remote.is_none() {
            self.news.received.remove(&id);
            self.news.grades.remove(&id);
        }
    }

    /// A remote participant is ours now. The last reliable message that came of it; 0: none.
    pub(super) fn forget_remote_news(&mut self, id: ParticipantId) -> u32 {
        if self.news.speaking.remove(&id).is_some() {
            self.speakers.due = Some(Time::ZERO);
        }
        self.news.grades.remove(&id);
        self.news.received.remove(&id).unwrap_or(0)
    }

    /// The participant is another node's.
    fn is_of(&self, node: u64, id: ParticipantId) -> bool {
        self.remotes.find(id).is_some_and(|remote| remote.key().node == node)
    }
}
