//! Who takes which track: what members ask for, what they may, and when the client is asked for an offer with more sections.

use std::time::Duration;

use pop_proto::control::MediaKind;
use pop_schemas::{ParticipantId, SubscriptionId, Time, TrackId};

use super::wishes::Settings;
use super::{MEMBER_SECTIONS_MAX, MEMBER_SUBSCRIPTIONS_MAX, Session};
use crate::member::{Notice, SubscriptionError};

/// A client that was asked for sections and made no offer is asked again after this long: a negotiation takes a round trip and some
/// hundred milliseconds of the client. Twice as long each time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Tracks that one request may name: more than a member may take, of which each may be answered.
const CHOICES_MAX: usize = 2 * MEMBER_SUBSCRIPTIONS_MAX;

/// Offers without the sections that were asked for, until the tracks that wait fail.
const ASKS_IN_VAIN_MAX: u32 = 3;

/// A member's wish for a track that is here.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The lower, the longer it waits.
    serial: u64,
    /// The section that it is fed into.
    pub(super) section: Option<SubscriptionId>,
    /// Its client can decode none of the formats, or has no section for it.
    pub(super) failed: bool,
    /// Its publisher, or its own permissions, do not allow it.
    pub(super) denied: bool,
    /// It was so at some time.
    pub(super) was_denied: bool,
    pub(super) settings: Settings,
}

impl Session {
    /// A track is here: whoever takes everything takes it.
    pub(super) fn offer_track(&mut self, track: TrackId) {
        for id in self.members().collect::<Vec<_>>() {
            if self.member(id).is_some_and(|member| member.auto_subscribe) {
                self.add_subscription(id, track);
            }
        }
    }

    /// A member is here: it takes everything that is, unless it said otherwise.
    pub(super) fn subscribe_to_all(&mut self, id: ParticipantId) {
        if !self.member(id).is_some_and(|member| member.auto_subscribe) {
            return;
        }
        let mut tracks: Vec<_> = self.tracks.values().map(|track| (track.order, track.id)).collect();
        tracks.sort_unstable();
        for (_, track) in tracks {
            self.add_subscription(id, track);
        }
    }

    /// Takes a member's, or an operator's, choice.
    pub(super) fn choose_tracks(&mut self, now: Time, id: ParticipantId, mut tracks: Vec<TrackId>, subscribe: bool) {
        self.unknown_events += tracks.len().saturating_sub(CHOICES_MAX) as u64;
        tracks.truncate(CHOICES_MAX);
        for track in tracks {
            if !subscribe {
                self.end_subscription(id, track);
                if self.is_visible(id, track)
                    && let Some(member) = self.member_mut(id)
                {
                    member.declined.insert(track);
                }
                continue;
            }
            if !self.is_visible(id, track) {
                let error = SubscriptionError::UnknownTrack;
                self.notify(id, Notice::SubscriptionFailed { track, error });
                continue;
            }
            if let Some(member) = self.member_mut(id) {
                member.declined.remove(&track);
                member.patience = Patience::default();
                if let Some(subscription) = member.subscriptions.get_mut(&track) {
                    subscription.failed = false;
                }
            }
            if !self.add_subscription(id, track) {
                self.notify(id, Notice::SubscriptionFailed { track, error: SubscriptionError::Full });
            }
        }
        self.ask_for_sections(now, id);
    }

    /// Takes what a client that is back says of its choices: with `auto_subscribe` what it does not take, else what it takes.
    pub(super) fn restore_choices(&mut self, now: Time, id: ParticipantId, tracks: Vec<TrackId>, subscribe: bool) {
        let known: Vec<_> = tracks.into_iter().filter(|track| self.is_visible(id, *track)).collect();
        self.choose_tracks(now, id, known, subscribe);
    }

    /// `false`: the member has as many as it may.
    fn add_subscription(&mut self, id: ParticipantId, track: TrackId) -> bool {
        if !self.is_visible(id, track) {
            return true;
        }
        let Some(member) = self.member_mut(id) else { return true };
        if member.subscriptions.contains_key(&track) || member.declined.contains(&track) {
            return true;
        }
        if member.subscriptions.len() >= MEMBER_SUBSCRIPTIONS_MAX {
            return false;
        }
        member.next_serial += 1;
        member.patience.try_once_more();
        let before = member.adopted.as_ref().and_then(|adopted| adopted.wish_for(track));
        let (serial, settings) = (member.next_serial, before.map_or_else(|| Settings::new(member.adaptive_stream), Settings::from_wish));
        let subscription = Subscription { serial, section: None, failed: false, denied: false, was_denied: false, settings };
        member.subscriptions.insert(track, subscription);
        self.recheck(id, track);
        self.unsettled.insert(id);
        true
    }

    /// The member may know of the track.
    pub(super) fn is_visible(&self, id: ParticipantId, track: TrackId) -> bool {
        self.tracks.get(&track).is_some_and(|track| track.owner != id && self.is_shown(track.owner))
    }

    /// Members see the participant, wherever it is.
    pub(super) fn is_shown(&self, id: ParticipantId) -> bool {
        match self.participants.get(&id) {
            Some(local) => local.is_shown(),
            None => self.far.get(&id).is_some_and(|far| far.is_shown),
        }
    }

    fn end_subscription(&mut self, id: ParticipantId, track: TrackId) {
        let Some(member) = self.member_mut(id) else { return };
        let Some(subscription) = member.subscriptions.remove(&track) else { return };
        if let Some(section) = subscription.section {
            self.forward(section, None);
        }
        self.unsettled.insert(id);
    }

    /// A track is gone: so are the wishes for it.
    pub(super) fn withdraw_track(&mut self, track: TrackId) {
        for participant in self.participants.values_mut() {
            let Some(member) = &mut participant.member else { continue };
            member.subscriptions.remove(&track);
            member.declined.remove(&track);
        }
    }

    /// Tracks that a member waits for and that are here, the longest waiting first.
    pub(super) fn waiting_of(&self, id: ParticipantId) -> Vec<TrackId> {
        let Some(member) = self.member(id) else { return Vec::new() };
        // What another node has not negotiated yet, or is away, has nothing that could be fed.
        let is_ready = |track| self.tracks.get(track).is_some_and(|track| !track.is_away() && !track.formats.is_empty());
        let waiting = member.subscriptions.iter();
        let waiting = waiting.filter(|(track, s)| !s.failed && !s.denied && is_ready(track) && !self.is_fed(**track, s));
        let mut waiting: Vec<_> = waiting.map(|(track, subscription)| (subscription.serial, *track)).collect();
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, track)| track).collect()
    }

    fn is_fed(&self, track: TrackId, subscription: &Subscription) -> bool {
        let section = subscription.section.and_then(|section| self.sections.get(&section));
        section.is_some_and(|section| section.source == Some(track))
    }

    pub(super) fn note_fed(&mut self, id: ParticipantId, track: TrackId, section: SubscriptionId) {
        if let Some(subscription) = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(&track)) {
            subscription.section = Some(section);
        }
    }

    /// The track is not what it was: perhaps it can be served now. `false`: the member does not take it.
    pub(super) fn retry_subscription(&mut self, id: ParticipantId, track: TrackId) -> bool {
        let subscription = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(&track));
        subscription.map(|subscription| subscription.failed = false).is_some()
    }

    /// It waits no longer: until it is asked for anew, nothing will change that.
    pub(super) fn fail_subscription(&mut self, id: ParticipantId, track: TrackId, error: SubscriptionError) {
        if let Some(subscription) = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(&track)) {
            subscription.failed = true;
        }
        self.notify(id, Notice::SubscriptionFailed { track, error });
    }

    /// An offer came and is answered.
    pub(super) fn note_offer(&mut self, now: Time, id: ParticipantId) {
        let Some(member) = self.member_mut(id) else { return };
        // An offer that was under way when its client was asked has not the sections; the next one has.
        let receiving = member.receiving_sections();
        if let Some(asked) = member.asked.take_if(|asked| receiving >= asked.sections || asked.passed) {
            member.patience.note(receiving >= asked.sections);
            self.asking.remove(&(asked.again, id));
        } else if let Some(asked) = &mut member.asked {
            asked.passed = true;
        }
        self.ask_for_sections(now, id);
    }

    /// Asks a member's client for another offer when tracks wait: with new sections when those that are idle do not suffice. An idle
    /// section needs an offer, too, as its track is told by the answer.
    pub(super) fn ask_for_sections(&mut self, now: Time, id: ParticipantId) {
        let Some(member) = self.member(id) else { return };
        let is_connected = self.participants[&id].transport.is_some();
        if !is_connected || member.asked.is_some() || member.socket_gone.is_some() {
            return;
        }
        let waiting = self.waiting_of(id);
        if waiting.is_empty() {
            return;
        }
        let missing = |kind: MediaKind| {
            let waiting = waiting.iter().filter(|track| self.tracks.get(track).is_some_and(|track| track.kind == kind)).count();
            let of_kind = member.sections.values().filter(|section| section.kind == kind && section.receives.is_some());
            waiting.saturating_sub(of_kind.filter(|section| self.source_of(section).is_none()).count())
        };
        let needed = missing(MediaKind::Audio) + missing(MediaKind::Video);
        if needed > 0 && member.patience.is_over() {
            return self.fail_waiting(id, waiting);
        }
        let room = MEMBER_SECTIONS_MAX.saturating_sub(member.sections.len());
        let audio = missing(MediaKind::Audio).min(room);
        let video = missing(MediaKind::Video).min(room - audio);
        self.ask(now, id, audio, video);
    }

    /// Gives up: the client makes offers, and they have no more sections that can be served.
    fn fail_waiting(&mut self, id: ParticipantId, waiting: Vec<TrackId>) {
        for track in waiting {
            self.fail_subscription(id, track, SubscriptionError::Full);
        }
    }

    /// Asks for an offer, whatever is in it.
    pub(super) fn ask_for_offer(&mut self, now: Time, id: ParticipantId) {
        if self.member(id).is_some_and(|member| member.asked.is_none()) {
            self.ask(now, id, 0, 0);
        }
    }

    fn ask(&mut self, now: Time, id: ParticipantId, audio: usize, video: usize) {
        let Some(member) = self.member_mut(id) else { return };
        let (sections, again) = (member.receiving_sections() + audio + video, now + member.patience.next_wait());
        member.asked = Some(Asked { sections, again, passed: false });
        self.asking.insert((again, id));
        self.notify(id, Notice::SectionsNeeded { audio: audio as u32, video: video as u32 });
    }

    /// Asks those again that did not answer.
    pub(super) fn ask_again(&mut self, now: Time) {
        while let Some(due) = self.asking.first().filter(|(at, _)| *at <= now).copied() {
            self.asking.remove(&due);
            let (_, id) = due;
            if let Some(member) = self.member_mut(id)
                && let Some(asked) = member.asked.take()
                && asked.passed
            {
                member.patience.note(false);
            }
            self.ask_for_sections(now, id);
        }
    }

    /// Members whose subscriptions have changed in this call.
    pub(super) fn settle_subscriptions(&mut self, now: Time) {
        for id in std::mem::take(&mut self.unsettled) {
            self.ask_for_sections(now, id);
        }
    }
}

/// How often a client was asked in vain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    /// Since it did last what it was asked for.
    asked: u32,
    /// Its offers since then that did not have the sections.
    short: u32,
}

impl Patience {
    fn note(&mut self, satisfied: bool) {
        *self = if satisfied { Patience::default() } else { Patience { short: self.short + 1, ..*self } };
    }

    /// Offers come without the sections: this worker has no place for them, or the client none.
    fn is_over(&self) -> bool {
        self.short >= ASKS_IN_VAIN_MAX
    }

    /// Something is new: perhaps there is a place by now.
    fn try_once_more(&mut self) {
        self.short = self.short.min(ASKS_IN_VAIN_MAX - 1);
    }

    /// Each request adds sections to a client that only sleeps.
    fn next_wait(&mut self) -> Duration {
        self.asked += 1;
        ASK_AGAIN * (1 << (self.asked - 1).min(4))
    }
}

/// What a client was asked for and has not done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Receiving sections that it will have then.
    sections: usize,
    /// When it is asked again.
    pub(super) again: Time,
    /// One offer without them has come since.
    passed: bool,
}
