//! Members come, go, and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pop_schemas::{Identity, ParticipantId, Time, TrackId};

use super::adopt::Adopted;
use super::adopt::first_counter;
use super::bucket::Bucket;
use super::negotiate::MemberSection;
use super::output::{Action, CloseReason, Output, audit};
use super::permissions::Takers;
use super::publish::Announced;
use super::request::{Refusal, Reply};
use super::subscriptions::{Asked, Patience, Subscription};
use super::texts::TEXT_UPDATES_BURST;
use super::told::CHANGES_BURST;
use super::{CONNECT_TIMEOUT, RESUME_GRACE, Session};
use crate::member::{
    ConnectionGrade, Enter, LeaveAction, LeaveReason, MemberRequest, Notice, Permissions, Resume, Resumed, Sync, TransportOffer, Welcome,
};
use crate::participant::{Connection, Kind, LocalParticipant, Texts};
use crate::presence::Taking;
use crate::view::SignalView;

/// Characters of a client's description that are kept.
const CLIENT_LEN_MAX: usize = 64;

/// What a member has beyond other participants.
#[derive(Debug)]
pub(crate) struct Member {
    pub(super) permissions: Permissions,
    /// What its token allowed.
    entered_with: Permissions,
    pub(super) auto_subscribe: bool,
    pub(super) adaptive_stream: bool,
    /// SDK and its version.
    client: Box<str>,
    /// Since when its socket is gone; `None` while it is here.
    pub(super) socket_gone: Option<Time>,
    /// Tracks without a media section.
    pub(super) announced: Vec<Announced>,
    /// By mid, as of the last offer.
    pub(super) sections: BTreeMap<Box<str>, MemberSection>,
    /// What it takes, of what is here.
    pub(super) subscriptions: BTreeMap<TrackId, Subscription>,
    /// What it said that it does not take, of what is here.
    pub(super) declined: BTreeSet<TrackId>,
    /// Numbers the subscriptions.
    pub(super) next_serial: u64,
    /// Its client was asked for an offer.
    pub(super) asked: Option<Asked>,
    pub(super) patience: Patience,
    /// What its last offer said of the transport.
    pub(super) transport: Option<TransportOffer>,
    /// All that were used under the transport's key.
    pub(super) ssrcs: BTreeSet<u32>,
    /// How others were said to be connected.
    pub(super) told_grades: BTreeMap<ParticipantId, ConnectionGrade>,
    /// The last reliable message that came from it.
    pub(super) last_message: u32,
    /// Its buffer of messages was full: it gets no more before it is back and has told what it has.
    pub(super) is_behind: bool,
    /// How often it may change its texts.
    pub(super) texts: Bucket,
    /// Who may take its tracks.
    pub(super) takers: Takers,
    /// It was taken over, and its new transport is not connected yet.
    pub(super) adopted: Option<Box<Adopted>>,
}

impl Member {
    pub(super) fn new(permissions: Permissions, auto_subscribe: bool, adaptive_stream: bool, client: &str) -> Member {
        Member {
            entered_with: permissions.clone(),
            permissions,
            auto_subscribe,
            adaptive_stream,
            client: client.chars().take(CLIENT_LEN_MAX).collect::<String>().into(),
            socket_gone: None,
            announced: Vec::new(),
            sections: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            declined: BTreeSet::new(),
            next_serial: 0,
            asked: None,
            patience: Patience::default(),
            transport: None,
            ssrcs: BTreeSet::new(),
            told_grades: BTreeMap::new(),
            last_message: 0,
            is_behind: false,
            texts: Bucket::full(TEXT_UPDATES_BURST),
            takers: Takers::everybody(),
            adopted: None,
        }
    }

    /// For the looking glass.
    pub(crate) fn signal(&self) -> SignalView {
        SignalView { client: self.client.to_string(), connected: self.socket_gone.is_none() }
    }

    /// For who may take it over.
    pub(super) fn taking(&self) -> Taking {
        Taking { everything: self.auto_subscribe, adaptive: self.adaptive_stream }
    }

    /// Sections that tracks can be sent into.
    pub(super) fn receiving_sections(&self) -> usize {
        self.sections.values().filter(|section| section.receives.is_some()).count()
    }
}

impl Session {
    pub(super) fn member(&self, id: ParticipantId) -> Option<&Member> {
        self.participants.get(&id)?.member.as_deref()
    }

    pub(super) fn member_mut(&mut self, id: ParticipantId) -> Option<&mut Member> {
        self.participants.get_mut(&id)?.member.as_deref_mut()
    }

    /// Lets a member in. Among members and publishers an identity is unique: the newer one stays, as clients know others by it.
    pub(super) fn enter(&mut self, now: Time, enter: Enter) -> Result<Reply, Refusal> {
        let replaced = self.check_enter(&enter)?;
        let Enter { participant: id, identity, name, metadata, attributes, permissions, client, .. } = enter;
        self.begin(now, enter.joined_at_ms);
        for old in replaced {
            self.remove(now, old, CloseReason::Replaced);
        }
        let joined_at_ms = self.draw_joined_ms(now, &identity);
        let participant = LocalParticipant {
            id,
            identity,
            hidden: permissions.hidden,
            kind: Kind::Member,
            resource: None,
            transport: None,
            ice: None,
            joined: now,
            joined_at_ms,
            opened: now,
            connection: Connection::Connecting,
            address: None,
            tracks: Vec::new(),
            sections: Vec::new(),
            texts: Texts { name, metadata, attributes },
            counter: 0,
            told: Bucket::full(CHANGES_BURST),
            epoch: 0,
            member: Some(Box::new(Member::new(permissions, enter.auto_subscribe, enter.adaptive_stream, &client))),
        };
        self.outputs.push_back(Output::Audit(audit(&participant, Action::Entered)));
        // One that never makes an offer must not keep a place for ever.
        self.connecting.insert((now + CONNECT_TIMEOUT, id));
        self.insert(now, participant);
        self.fresh = Some(id);
        let participant = self.describe_local(&self.participants[&id]);
        let welcome = Welcome { room: self.describe_room(), participant, others: self.others(id) };
        self.notify(id, Notice::Welcome(Box::new(welcome)));
        self.subscribe_to_all(id);
        self.repeat_speakers(id);
        Ok(Reply::Joined)
    }

    /// The room's life begins, unless it has; `now_ms` is the wall clock.
    pub(super) fn begin(&mut self, now: Time, now_ms: u64) {
        self.set_wall_clock(now, now_ms);
        self.created.get_or_insert(now);
    }

    /// The first word on it counts; 0 is none.
    pub(super) fn set_wall_clock(&mut self, now: Time, now_ms: u64) {
        if now_ms > 0 {
            self.epoch_ms.get_or_insert(now_ms.saturating_sub(now.as_millis()));
        }
    }

    /// One more of this identity, in the place of so many here: the node has a bound for those here, and an operator may have set one for
    /// those of all nodes.
    pub(super) fn check_full(&self, identity: &Identity, replaced: usize) -> Result<(), Refusal> {
        let here = self.participants.len() - replaced;
        if here >= self.limits.participants_max {
            return Err(Refusal::Full(self.limits.participants_max));
        }
        let elsewhere = self.remotes.iter().filter(|remote| !remote.is_outdone && remote.manifest().identity != *identity).count();
        match self.word.participants_max as usize {
            max @ 1.. if here + elsewhere >= max => Err(Refusal::Full(max)),
            _ => Ok(()),
        }
    }

    /// Those whom it replaces.
    fn check_enter(&self, enter: &Enter) -> Result<Vec<ParticipantId>, Refusal> {
        if self.participants.contains_key(&enter.participant) {
            return Err(Refusal::Duplicate);
        }
        let Enter { name, metadata, attributes, .. } = enter;
        let texts = Texts { name: name.clone(), metadata: metadata.clone(), attributes: attributes.clone() };
        if !texts.is_bounded() {
            return Err(Refusal::TextTooLong);
        }
        let same = self.participants.values().filter(|p| p.kind != Kind::Viewer && p.identity == enter.identity);
        if same.clone().any(LocalParticipant::is_routed) {
            return Err(Refusal::IdentityTaken);
        }
        let replaced: Vec<_> = same.map(|participant| participant.id).collect();
        self.check_full(&enter.identity, replaced.len())?;
        Ok(replaced)
    }

    /// Lets a member go on with a new socket. The old one, if it still seems to be there, is the owner's to close.
    pub(super) fn resume(&mut self, now: Time, resume: Resume) -> Result<Reply, Refusal> {
        let id = resume.participant;
        let is_adopted = !self.participants.contains_key(&id);
        if is_adopted {
            self.adopt(now, &resume)?;
        }
        let known = self.participants.get_mut(&id).filter(|participant| participant.identity == resume.identity);
        let participant = known.ok_or(Refusal::UnknownParticipant)?;
        let member = participant.member.as_deref_mut().ok_or(Refusal::UnknownParticipant)?;
        if !resume.permissions.cover(&member.permissions) && !resume.permissions.cover(&member.entered_with) {
            return Err(Refusal::UnknownParticipant);
        }
        // While its client was away it may have been at another node, which took it over and is gone: what is told from now on is newer,
        // and told at once, here as well: whoever was at that node leaves older words aside.
        if !is_adopted {
            participant.epoch = participant.epoch.saturating_add(1);
            participant.counter = first_counter(resume.now_ms, participant.counter);
            self.changed.insert(id);
        }
        member.told_grades.clear();
        let (asked, last_message) = (member.asked.take(), member.last_message);
        if let Some(since) = member.socket_gone.take() {
            self.socketless.remove(&(since + RESUME_GRACE, id));
        }
        if let Some(asked) = asked {
            self.asking.remove(&(asked.again, id));
        }
        self.fresh = Some(id);
        self.notify(id, Notice::Resumed(Box::new(Resumed { last_message })));
        if is_adopted {
            self.subscribe_to_all(id);
        }
        let everybody = self.everybody(now, id);
        self.notify(id, Notice::Participants(Arc::new(everybody)));
        self.notify(id, Notice::Room(Arc::new(self.describe_room())));
        self.tell_grants(id);
        self.repeat_permissions(id);
        self.repeat_stream_states(id);
        self.repeat_speakers(id);
        self.unsettled.insert(id);
        Ok(Reply::Joined)
    }

    /// Takes what a member says.
    pub(super) fn take_member_request(&mut self, now: Time, id: ParticipantId, request: MemberRequest) -> bool {
        if self.member(id).is_none() {
            return false;
        }
        match request {
            MemberRequest::AddTrack(add) => self.add_track(now, id, *add),
            MemberRequest::Offer(offer) => self.take_offer(now, id, *offer),
            MemberRequest::Mute { track, muted } => return self.mute_track(id, track, muted),
            MemberRequest::Subscribe { tracks, subscribe } => self.choose_tracks(now, id, tracks, subscribe),
            MemberRequest::UpdateTrack(update) => return self.update_track(id, update),
            MemberRequest::Sync(sync) => self.sync(now, id, *sync),
            MemberRequest::Leave => self.remove(now, id, CloseReason::Left),
            MemberRequest::SocketClosed => self.lose_socket(now, id),
            MemberRequest::TrackSettings(settings) => self.take_settings(now, id, settings),
            MemberRequest::SubscriptionPermission(permission) => return self.set_subscription_permission(id, permission),
            MemberRequest::UpdateMetadata(update) => self.update_own_texts(now, id, *update),
        }
        true
    }

    /// A client that is back tells what it knows.
    fn sync(&mut self, now: Time, id: ParticipantId, sync: Sync) {
        let Sync { tracks, subscribe, disabled, published, received, fed } = sync;
        self.note_sync(id, subscribe, &published, &received, fed);
        self.restore_choices(now, id, tracks, subscribe);
        self.disable_tracks(now, id, &disabled);
        self.repeat_published(id, &published);
        self.repeat_demand(id);
        if let Some(opened) = self.participants.get(&id).map(|participant| participant.opened) {
            self.replay_data(now, id, opened, &received);
        }
    }

    /// Its client may come back, and its media may flow all the while.
    fn lose_socket(&mut self, now: Time, id: ParticipantId) {
        let Some(member) = self.member_mut(id).filter(|member| member.socket_gone.is_none()) else { return };
        member.socket_gone = Some(now);
        self.socketless.insert((now + RESUME_GRACE, id));
    }

    /// Ends those who did not come back.
    pub(super) fn end_socketless(&mut self, now: Time) {
        while let Some((_, id)) = self.socketless.first().filter(|(deadline, _)| *deadline <= now).copied() {
            self.remove(now, id, CloseReason::SocketLost);
        }
    }

    /// Says goodbye to a member that is about to be removed.
    pub(super) fn dismiss(&mut self, id: ParticipantId, reason: CloseReason) {
        let (reason, action) = leave_of(reason);
        self.notify(id, Notice::Leave { reason, action });
    }
}

/// What a client is told of its end, and what it should do. A transport that is gone took its DTLS association with it, which the
/// client's connection cannot make anew: beginning anew at once is the shortest way back.
pub(super) fn leave_of(reason: CloseReason) -> (LeaveReason, LeaveAction) {
    match reason {
        CloseReason::Left => (LeaveReason::ClientInitiated, LeaveAction::Disconnect),
        CloseReason::Replaced | CloseReason::Displaced => (LeaveReason::DuplicateIdentity, LeaveAction::Disconnect),
        // If this is where its client still is, it finds its new owner by coming again.
        CloseReason::TakenOver => (LeaveReason::SignalClosed, LeaveAction::Resume),
        CloseReason::Removed => (LeaveReason::Removed, LeaveAction::Disconnect),
        CloseReason::RoomDeleted => (LeaveReason::RoomDeleted, LeaveAction::Disconnect),
        CloseReason::SocketLost => (LeaveReason::SignalClosed, LeaveAction::Disconnect),
        CloseReason::Shutdown => (LeaveReason::ServerShutdown, LeaveAction::Reconnect),
        CloseReason::ConnectTimeout | CloseReason::Lost(_) => (LeaveReason::ConnectionTimeout, LeaveAction::Reconnect),
        CloseReason::Failed(_) | CloseReason::SsrcsExhausted => (LeaveReason::MediaFailure, LeaveAction::Reconnect),
    }
}
