//! What participants and the room are labelled with: names, metadata, attributes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pop_schemas::{ParticipantId, Time};

use super::Session;
use crate::member::{MetadataUpdate, Notice, RequestRefusal};
use crate::participant::Texts;

/// Longest name, in bytes (LiveKit's limit).
const NAME_LEN_MAX: usize = 256;

/// Longest metadata of a participant or a room, in bytes (LiveKit's limit).
pub(super) const METADATA_LEN_MAX: usize = 64 << 10;

/// Bytes of all attributes of a participant, keys and values (LiveKit's limit).
const ATTRIBUTES_LEN_MAX: usize = 64 << 10;

/// A member may change its own texts so often at once, and once in so long for ever.
pub(super) const TEXT_UPDATES_BURST: u32 = 10;
const TEXT_UPDATE_INTERVAL: Duration = Duration::from_millis(500);

impl Texts {
    /// Short enough for everybody.
    pub(super) fn is_bounded(&self) -> bool {
        let attributes: usize = self.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.name.len() <= NAME_LEN_MAX && self.metadata.len() <= METADATA_LEN_MAX && attributes <= ATTRIBUTES_LEN_MAX
    }

    /// The same with what is new.
    fn updated(&self, update: MetadataUpdate) -> Texts {
        let MetadataUpdate { name, metadata, attributes, .. } = update;
        let mut merged: BTreeMap<_, _> = self.attributes.clone();
        merged.extend(attributes);
        merged.retain(|_, value| !value.is_empty());
        let (name, metadata) = (name.unwrap_or_else(|| self.name.clone()), metadata.unwrap_or_else(|| self.metadata.clone()));
        Texts { name, metadata, attributes: merged }
    }
}

impl Session {
    /// A member changes its own texts.
    pub(super) fn update_own_texts(&mut self, now: Time, id: ParticipantId, update: MetadataUpdate) {
        let request = update.request;
        let allowed = self.member(id).is_some_and(|member| member.permissions.update_metadata);
        // Each may be 128 KiB for everybody in the room.
        let is_rare = self.member_mut(id).is_some_and(|member| member.texts.take(now, TEXT_UPDATES_BURST, TEXT_UPDATE_INTERVAL));
        let result = match (allowed, is_rare) {
            (false, _) => Err(RequestRefusal::NotAllowed),
            (true, false) => Err(RequestRefusal::LimitExceeded),
            (true, true) => self.update_texts(id, update),
        };
        self.notify(id, Notice::RequestAnswered { request, refused: result.err() });
        if result.is_ok() {
            self.tell_grants(id);
        }
    }

    /// Gives a participant new texts, or leaves it as it is.
    pub(super) fn update_texts(&mut self, id: ParticipantId, update: MetadataUpdate) -> Result<(), RequestRefusal> {
        let participant = self.participants.get_mut(&id).ok_or(RequestRefusal::NotFound)?;
        let texts = participant.texts.updated(update);
        if !texts.is_bounded() {
            return Err(RequestRefusal::LimitExceeded);
        }
        if participant.texts != texts {
            participant.texts = texts;
            self.touch(id);
        }
        Ok(())
    }

    /// Tells everybody of the room.
    pub(super) fn tell_room(&mut self) {
        let room = Arc::new(self.describe_room());
        for id in self.members_here().collect::<Vec<_>>() {
            self.notify(id, Notice::Room(room.clone()));
        }
    }
}
