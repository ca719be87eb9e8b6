//! What members may: by their token, by an operator's later word, and by each publisher's own choice of who takes its tracks.

use std::collections::BTreeMap;

use pop_schemas::{Identity, ParticipantId, SubscriptionId, TrackId};

use super::Session;
use crate::member::{Grants, LeaveReason, Notice, PermissionSubject, Permissions, Source, SubscriptionPermission};
use crate::participant::{Choice, Kind, LocalParticipant, Texts, Track};

/// Entries that other nodes are told, so that a record stays small.
const SUBJECTS_TOLD_MAX: usize = 128;

/// Entries of one publisher's choice, and tracks of one entry: as many as one member may meet.
const SUBJECTS_MAX: usize = 1_024;
const SUBJECT_TRACKS_MAX: usize = 64;

/// Who may take a publisher's tracks: looked up for each who would.
#[derive(Debug, PartialEq)]
pub(crate) struct Takers {
    all: bool,
    /// All tracks (`None`), or these.
    identities: BTreeMap<Identity, Option<Vec<TrackId>>>,
    participants: BTreeMap<ParticipantId, Option<Vec<TrackId>>>,
}

impl Takers {
    pub(super) fn everybody() -> Takers {
        Takers { all: true, identities: BTreeMap::new(), participants: BTreeMap::new() }
    }

    /// Of two entries for one the later counts.
    pub(super) fn new(permission: SubscriptionPermission) -> Takers {
        let mut takers = Takers { all: permission.all, ..Takers::everybody() };
        for (subject, tracks) in permission.participants {
            match subject {
                PermissionSubject::Identity(identity) => drop(takers.identities.insert(identity, tracks)),
                PermissionSubject::Participant(participant) => drop(takers.participants.insert(participant, tracks)),
            }
        }
        takers
    }

    /// As other nodes hear of it. Those beyond the bound take nothing there.
    pub(super) fn told(&self) -> SubscriptionPermission {
        let identities = self.identities.iter().map(|(identity, tracks)| (PermissionSubject::Identity(identity.clone()), tracks.clone()));
        let participants = self.participants.iter().map(|(id, tracks)| (PermissionSubject::Participant(*id), tracks.clone()));
        let named = identities.chain(participants).take(if self.all { 0 } else { SUBJECTS_TOLD_MAX });
        SubscriptionPermission { all: self.all, participants: named.collect() }
    }

    fn include(&self, taker: &LocalParticipant, track: TrackId) -> bool {
        let covers = |tracks: &Option<Vec<TrackId>>| tracks.as_ref().is_none_or(|tracks| tracks.contains(&track));
        let by_identity = self.identities.get(&taker.identity).is_some_and(covers);
        self.all || by_identity || self.participants.get(&taker.id).is_some_and(covers)
    }
}

impl Permissions {
    /// Whatever `other` allows, this does, too.
    pub(super) fn cover(&self, other: &Permissions) -> bool {
        let covers = |mine: bool, theirs: bool| mine || !theirs;
        let sources = other.sources.iter().all(|source| self.may_publish(*source));
        let all_sources = self.sources.is_empty() || (!other.sources.is_empty() && sources);
        covers(self.subscribe, other.subscribe)
            && covers(self.publish && all_sources, other.publish)
            && covers(self.publish_data, other.publish_data)
            && covers(self.update_metadata, other.update_metadata)
    }

    /// It may publish a track of this source.
    pub(super) fn may_publish(&self, source: Source) -> bool {
        self.publish && (self.sources.is_empty() || self.sources.contains(&source))
    }
}

impl Session {
    /// The member may take the track now.
    pub(super) fn may_take(&self, id: ParticipantId, track: TrackId) -> bool {
        let Some(taker) = self.participants.get(&id) else { return false };
        if !taker.member.as_ref().is_some_and(|member| member.permissions.subscribe) {
            return false;
        }
        let owner = self.tracks.get(&track).map(|track| track.owner);
        owner.and_then(|owner| self.takers_of(owner)).is_none_or(|takers| takers.include(taker, track))
    }

    /// A viewer may be fed the track: a member that is hidden, or that chose others, is not for it.
    pub(super) fn is_open_to(&self, viewer: ParticipantId, track: &Track) -> bool {
        let (hidden, kind) = match (self.participants.get(&track.owner), self.remotes.find(track.owner)) {
            (Some(local), _) => (local.hidden, local.kind),
            (None, Some(remote)) => (remote.manifest().hidden, remote.manifest().kind),
            (None, None) => return false,
        };
        if kind != Kind::Member || track.is_away() {
            return !track.is_away();
        }
        let (viewer, takers) = (self.participants.get(&viewer), self.takers_of(track.owner));
        !hidden && viewer.is_some_and(|viewer| takers.is_none_or(|takers| takers.include(viewer, track.id)))
    }

    /// Whom a publisher has chosen; `None`: it does not choose.
    fn takers_of(&self, publisher: ParticipantId) -> Option<&Takers> {
        match self.participants.get(&publisher) {
            Some(local) => local.member.as_ref().map(|member| &member.takers),
            None => self.far.get(&publisher).map(|far| &far.takers),
        }
    }

    /// Takes a publisher's choice of who takes its tracks. `false`: it is longer than any room needs, and nothing has changed.
    pub(super) fn set_subscription_permission(&mut self, id: ParticipantId, permission: SubscriptionPermission) -> bool {
        let is_long = |tracks: &Option<Vec<TrackId>>| tracks.as_ref().is_some_and(|tracks| tracks.len() > SUBJECT_TRACKS_MAX);
        let entries = &permission.participants;
        if entries.len() > SUBJECTS_MAX || entries.iter().any(|(_, tracks)| is_long(tracks)) {
            return false;
        }
        let Some(member) = self.member_mut(id) else { return false };
        member.takers = Takers::new(permission);
        for track in self.tracks_of(id).map(|track| track.id).collect::<Vec<_>>() {
            self.recheck_all(track);
        }
        self.restate(id);
        self.feed_sections();
        true
    }

    /// Its publisher has chosen anew.
    pub(super) fn recheck_all(&mut self, track: TrackId) {
        for taker in self.members().collect::<Vec<_>>() {
            self.recheck(taker, track);
        }
    }

    /// Gives new permissions to a member.
    pub(super) fn set_permissions(&mut self, id: ParticipantId, permissions: Permissions) {
        let Some(participant) = self.participants.get_mut(&id) else { return };
        let was_shown = participant.is_shown();
        participant.hidden = permissions.hidden;
        let Some(member) = participant.member.as_mut() else { return };
        member.permissions = permissions;
        self.unpublish_forbidden(id);
        let taken: Vec<_> = self.member(id).into_iter().flat_map(|member| member.subscriptions.keys().copied()).collect();
        for track in taken {
            self.recheck(id, track);
        }
        self.subscribe_to_all(id);
        self.show(id, was_shown);
        self.touch(id);
    }

    /// Ends what it publishes and may no longer.
    fn unpublish_forbidden(&mut self, id: ParticipantId) {
        let Some(member) = self.member_mut(id) else { return };
        let permissions = member.permissions.clone();
        member.announced.retain(|announced| permissions.may_publish(announced.info.source));
        let forbidden = self.tracks_of(id).filter(|track| !permissions.may_publish(track.info.source));
        for track in forbidden.map(|track| track.id).collect::<Vec<_>>() {
            self.close_track(track);
            self.notify(id, Notice::TrackUnpublished(track));
        }
    }

    /// Others begin, or cease, to see it.
    fn show(&mut self, id: ParticipantId, was_shown: bool) {
        let Some(participant) = self.participants.get(&id) else { return };
        let tracks = participant.tracks.clone();
        match (was_shown, participant.is_shown()) {
            (true, false) => {
                self.gone.push(self.describe_gone(participant, LeaveReason::Removed));
                for track in tracks {
                    self.stop_members(track);
                    self.withdraw_track(track);
                }
            }
            (false, true) => {
                for track in tracks {
                    self.offer_track(track);
                }
            }
            _ => return,
        }
        self.feed_sections();
    }

    /// No member gets the track any longer.
    pub(super) fn stop_members(&mut self, track: TrackId) {
        let takers = self.tracks.get(&track).into_iter().flat_map(|track| track.takers.iter().copied());
        let is_member = |id: &SubscriptionId| self.sections.get(id).is_some_and(|section| matches!(section.choice, Choice::Member));
        for section in takers.filter(is_member).collect::<Vec<_>>() {
            self.forward(section, None);
        }
    }

    /// A subscription that is no longer allowed ends and stays a wish; one that is allowed again goes on.
    pub(super) fn recheck(&mut self, id: ParticipantId, track: TrackId) {
        let allowed = self.may_take(id, track);
        let Some(subscription) = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(&track)) else { return };
        let was_denied = std::mem::replace(&mut subscription.denied, !allowed);
        subscription.was_denied |= !allowed;
        if was_denied != allowed {
            return;
        }
        let section = subscription.section.take_if(|_| !allowed);
        if let Some(section) = section {
            self.forward(section, None);
        }
        // What its own permissions forbid it learns with them.
        if self.member(id).is_some_and(|member| member.permissions.subscribe) {
            self.tell_permission(id, track, allowed);
        }
        self.unsettled.insert(id);
    }

    /// Tells a member that is back what it may have missed of publishers' choices.
    pub(super) fn repeat_permissions(&mut self, id: ParticipantId) {
        let Some(member) = self.member(id).filter(|member| member.permissions.subscribe) else { return };
        let denied = member.subscriptions.iter().filter(|(_, subscription)| subscription.was_denied);
        for (track, allowed) in denied.map(|(track, subscription)| (*track, !subscription.denied)).collect::<Vec<_>>() {
            self.tell_permission(id, track, allowed);
        }
    }

    /// Tells a member of a publisher's choice.
    fn tell_permission(&mut self, id: ParticipantId, track: TrackId, allowed: bool) {
        if let Some(publisher) = self.tracks.get(&track).map(|track| track.owner) {
            self.notify(id, Notice::SubscriptionPermission { publisher, track, allowed });
        }
    }

    /// Tells a member what its token should say now.
    pub(super) fn tell_grants(&mut self, id: ParticipantId) {
        let Some(participant) = self.participants.get(&id) else { return };
        let Some(member) = &participant.member else { return };
        let Texts { name, metadata, attributes } = participant.texts.clone();
        let grants = Grants { name, metadata, attributes, permissions: member.permissions.clone() };
        self.notify(id, Notice::Grants(Box::new(grants)));
    }

    /// Everybody who speaks the room protocol.
    pub(super) fn members(&self) -> impl Iterator<Item = ParticipantId> {
        self.participants.values().filter(|participant| participant.member.is_some()).map(|participant| participant.id)
    }
}
