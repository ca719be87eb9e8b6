//! What operators do to a room and to those in it.

use pop_schemas::{Identity, ParticipantId, Time, TrackId};

use super::Session;
use super::abroad::RoomWord;
use super::output::CloseReason;
use super::remotes::describe_remote;
use super::request::{Refusal, Reply};
use super::texts::METADATA_LEN_MAX;
use crate::member::{AdminRequest, MetadataUpdate, Notice, Permissions, RequestRefusal};
use crate::participant::{Kind, LocalParticipant};

impl Session {
    /// Does what an operator asks. RTP routes are not in its reach: they end where they were made.
    pub(super) fn administer(&mut self, now: Time, request: AdminRequest) -> Result<Reply, Refusal> {
        match request {
            AdminRequest::List => return Ok(Reply::Participants(self.list())),
            AdminRequest::Describe => return Ok(Reply::Room(Box::new(self.describe_room()))),
            AdminRequest::Create { metadata, participants_max, now_ms } => {
                self.create(now, metadata, participants_max, now_ms)?;
                return Ok(Reply::Room(Box::new(self.describe_room())));
            }
            AdminRequest::Remove(identity) => {
                let id = self.find(&identity, |_| true)?;
                self.remove(now, id, CloseReason::Removed);
            }
            AdminRequest::Mute { identity, track, muted } => self.mute_by_operator(&identity, track, muted)?,
            AdminRequest::Subscribe { identity, tracks, subscribe } => {
                self.subscribe_by_operator(now, &identity, tracks, subscribe)?;
            }
            AdminRequest::Update { identity, texts, permissions } => {
                self.update_by_operator(&identity, texts, permissions)?;
            }
            AdminRequest::UpdateRoom { metadata, now_ms } => self.update_room(metadata, now_ms)?,
            AdminRequest::SendData(message) => self.send_data(&message)?,
            AdminRequest::Delete => self.delete(now),
        }
        Ok(Reply::Done)
    }

    fn create(&mut self, now: Time, metadata: Option<Box<str>>, participants_max: u32, now_ms: u64) -> Result<(), Refusal> {
        if metadata.as_ref().is_some_and(|metadata| metadata.len() > METADATA_LEN_MAX) {
            return Err(Refusal::TextTooLong);
        }
        self.begin(now, now_ms);
        let metadata = metadata.unwrap_or_else(|| self.word.metadata.clone());
        let participants_max = if participants_max == 0 { self.word.participants_max } else { participants_max };
        self.say_of_room(metadata, participants_max, now_ms);
        Ok(())
    }

    /// Gives the room new metadata, when there is one: here or, with its people, on other nodes.
    fn update_room(&mut self, metadata: Box<str>, now_ms: u64) -> Result<(), Refusal> {
        if metadata.len() > METADATA_LEN_MAX {
            return Err(Refusal::TextTooLong);
        }
        if self.created.is_none() && self.participants.is_empty() && self.remotes.iter().next().is_none() {
            return Err(Refusal::UnknownParticipant);
        }
        self.say_of_room(metadata, self.word.participants_max, now_ms);
        Ok(())
    }

    /// Everybody but the audience of WHEP, those who are hidden included.
    fn list(&self) -> Vec<crate::member::ParticipantInfo> {
        let listed = self.participants.values().filter(|participant| participant.kind != Kind::Viewer);
        let remotes = self.remotes.iter().filter(|remote| remote.manifest().kind != Kind::Viewer && !remote.is_outdone);
        listed.map(|participant| self.describe_local(participant)).chain(remotes.map(describe_remote)).collect()
    }

    /// The member, or client of WHIP, of this identity.
    fn find(&self, identity: &Identity, fits: impl Fn(&LocalParticipant) -> bool) -> Result<ParticipantId, Refusal> {
        let same = |participant: &&LocalParticipant| {
            participant.kind != Kind::Viewer && !participant.is_routed() && participant.identity == *identity
        };
        let found = self.participants.values().filter(same).find(|participant| fits(participant));
        found.map(|participant| participant.id).ok_or(Refusal::UnknownParticipant)
    }

    fn find_member(&self, identity: &Identity) -> Result<ParticipantId, Refusal> {
        self.find(identity, |participant| participant.member.is_some())
    }

    /// Only members can be silenced: they do it themselves when they are told.
    fn mute_by_operator(&mut self, identity: &Identity, track: TrackId, muted: bool) -> Result<(), Refusal> {
        let id = self.find_member(identity)?;
        if !self.mute_track(id, track, muted) {
            return Err(Refusal::UnknownTrack);
        }
        self.notify(id, Notice::Muted { track, muted });
        Ok(())
    }

    fn subscribe_by_operator(&mut self, now: Time, identity: &Identity, tracks: Vec<TrackId>, subscribe: bool) -> Result<(), Refusal> {
        let id = self.find_member(identity)?;
        if tracks.iter().any(|track| !self.is_visible(id, *track)) {
            return Err(Refusal::UnknownTrack);
        }
        self.choose_tracks(now, id, tracks, subscribe);
        Ok(())
    }

    fn update_by_operator(&mut self, identity: &Identity, texts: MetadataUpdate, permissions: Option<Permissions>) -> Result<(), Refusal> {
        let id = match permissions {
            Some(_) => self.find_member(identity)?,
            None => self.find(identity, |_| true)?,
        };
        self.update_texts(id, texts).map_err(|refused| match refused {
            RequestRefusal::NotFound => Refusal::UnknownParticipant,
            _ => Refusal::TextTooLong,
        })?;
        if let Some(permissions) = permissions {
            self.set_permissions(id, permissions);
        }
        self.tell_grants(id);
        Ok(())
    }

    /// Ends the room for all but the operator's own routes.
    fn delete(&mut self, now: Time) {
        let ended: Vec<_> = self.participants.values().filter(|participant| !participant.is_routed()).map(|p| p.id).collect();
        for id in ended {
            self.remove(now, id, CloseReason::RoomDeleted);
        }
        self.word = RoomWord::default();
    }
}
