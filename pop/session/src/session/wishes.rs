//! Layers: what each member wants of a track becomes a wish for the worker; the most that anybody wants of a track is told to its
//! publisher, who may stop what is above (dynacast).

use std::time::Duration;

use pop_proto::control::{Command, LayerWish, MediaKind};
use pop_schemas::{ParticipantId, SubscriptionId, Time, TrackId};

use super::Session;
use super::members::Member;
use crate::member::{Notice, Quality, TrackSettings, VideoLayer};
use crate::participant::{Choice, LocalSection, Track};
use crate::presence::{WISHES_MAX, Wish};

/// A publisher is told of less demand when it has lasted this long (LiveKit's figure): an encoder that stops and starts costs a
/// keyframe each time, and a viewer that scrolls comes back. More demand is told at once.
pub(super) const DEMAND_CALM: Duration = Duration::from_secs(5);

/// Other nodes hear of wishes together, at most this much later: a client that fits them to a page that is scrolled has many. Those of a
/// node that dies meanwhile are lost, and its people get what they wanted before.
const WISHES_WAIT: Duration = Duration::from_secs(2);

/// Heights that stand for the qualities where a publisher told no sizes (LiveKit's figures).
const LOW_HEIGHT: u32 = 180;
const MEDIUM_HEIGHT: u32 = 360;

/// How a member wants a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(super) disabled: bool,
    quality: Quality,
    height: u32,
    fps: u16,
    priority: u8,
}

impl Settings {
    /// `adaptive`: the client tells sizes by itself, soon.
    pub(super) fn new(adaptive: bool) -> Settings {
        let quality = if adaptive { Quality::Low } else { Quality::High };
        Settings { disabled: false, quality, height: 0, fps: 0, priority: u8::MAX }
    }

    fn from_request(request: &TrackSettings) -> Settings {
        let TrackSettings { disabled, quality, height, fps, priority, .. } = *request;
        let priority = if priority == 0 { u8::MAX } else { u8::try_from(priority).unwrap_or(u8::MAX) };
        let fps = u16::try_from(fps).unwrap_or(u16::MAX);
        Settings { disabled: disabled || quality == Quality::Off, quality, height, fps, priority }
    }

    /// A track is wanted again by new settings alone, so those of one that is paused need not be kept.
    fn to_wish(self, track: TrackId) -> Wish {
        let Settings { disabled, quality, height, fps, priority } = self;
        Wish { track, quality: if disabled { Quality::Off } else { quality }, height, fps, priority }
    }

    pub(super) fn from_wish(wish: Wish) -> Settings {
        let Wish { quality, height, fps, priority, .. } = wish;
        Settings { disabled: quality == Quality::Off, quality, height, fps, priority }
    }

    /// A muted track is not forwarded: its client may go on sending after an operator has silenced it.
    fn wish(&self, track: &Track) -> LayerWish {
        let paused = self.disabled || track.info.muted;
        if track.kind == MediaKind::Audio {
            return LayerWish { paused, ..LayerWish::default() };
        }
        let spatial_max = self.place(&track.info.layers).map_or(u8::MAX, |place| place as u8);
        LayerWish { paused, spatial_max, temporal_max: self.temporal(), priority: self.priority }
    }

    /// The layer's place, the lowest is 0; `None`: whatever there is.
    fn place(&self, layers: &[VideoLayer]) -> Option<usize> {
        if self.height > 0 && layers.len() > 1 && layers.iter().all(|layer| layer.height > 0) {
            // A tenth less is not seen (LiveKit's figure), and spares a step for a pixel.
            let covers = |layer: &VideoLayer| u64::from(layer.height) * 10 >= u64::from(self.height) * 9;
            return Some(layers.iter().position(covers).unwrap_or(layers.len() - 1));
        }
        let quality = match self.height {
            0 => self.quality,
            height if height <= LOW_HEIGHT => Quality::Low,
            height if height <= MEDIUM_HEIGHT => Quality::Medium,
            _ => Quality::High,
        };
        if layers.len() < 2 {
            // Nobody told of layers, and the stream may have some inside.
            return match quality {
                Quality::Low | Quality::Off => Some(0),
                Quality::Medium => Some(1),
                Quality::High => None,
            };
        }
        Some(layers.iter().rposition(|layer| layer.quality <= quality).unwrap_or(0))
    }

    /// Encoders that have temporal layers halve the rate of 30 frames per second with each.
    fn temporal(&self) -> u8 {
        match self.fps {
            1..=8 => 0,
            9..=15 => 1,
            _ => u8::MAX,
        }
    }
}

/// What the publisher of a track knows of its subscribers.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// Somebody takes the track, or did.
    subscribed: bool,
    /// `None`: not told yet, so that it sends everything.
    told: Option<Quality>,
    /// When less is told.
    calm_at: Option<Time>,
}

impl Demand {
    /// Its publisher was told that nobody wants it.
    pub(super) fn is_off(&self) -> bool {
        self.told == Some(Quality::Off)
    }
}

impl Session {
    /// Takes how a member wants tracks. Those that it does not take are none of its business.
    pub(super) fn take_settings(&mut self, now: Time, id: ParticipantId, request: TrackSettings) {
        let settings = Settings::from_request(&request);
        for track in request.tracks {
            let Some(subscription) = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(&track)) else {
                self.unknown_events += 1;
                continue;
            };
            let before = std::mem::replace(&mut subscription.settings, settings);
            if let Some(section) = subscription.section {
                self.wish_for(id, track, section);
            }
            if before != settings {
                self.note_wish(now, id);
            }
        }
    }

    fn note_wish(&mut self, now: Time, id: ParticipantId) {
        self.rewished.insert(id);
        self.wishes_at.get_or_insert(now + WISHES_WAIT);
    }

    /// Tells other nodes what members want since the last time.
    pub(super) fn tell_wishes(&mut self, now: Time) {
        if self.wishes_at.take_if(|at| *at <= now).is_some() {
            for id in std::mem::take(&mut self.rewished) {
                self.restate(id);
            }
        }
    }

    /// Pauses tracks of a client that is back, as it says that they are.
    pub(super) fn disable_tracks(&mut self, now: Time, id: ParticipantId, tracks: &[TrackId]) {
        for track in tracks {
            let subscription = self.member_mut(id).and_then(|member| member.subscriptions.get_mut(track));
            let Some(subscription) = subscription else { continue };
            subscription.settings.disabled = true;
            if let Some(section) = subscription.section {
                self.wish_for(id, *track, section);
            }
            self.note_wish(now, id);
        }
    }

    /// Tells the worker how a participant wants a track that is, or will be, forwarded into its section. Viewers and routes say
    /// nothing of it: they take all that there is, but nothing of a track that is muted.
    pub(super) fn wish_for(&mut self, id: ParticipantId, track: TrackId, section: SubscriptionId) {
        let Some(track) = self.tracks.get(&track) else { return };
        let wish = match self.member(id) {
            Some(member) => match member.subscriptions.get(&track.id) {
                Some(known) => known.settings.wish(track),
                None => return,
            },
            None => LayerWish { paused: track.info.muted, ..LayerWish::default() },
        };
        let id = track.id;
        let Some(section) = self.sections.get_mut(&section).filter(|section| section.wish != wish) else { return };
        section.wish = wish;
        let subscription = section.id;
        self.command(Command::Wish { subscription, wish });
        self.rated.insert(id);
    }

    /// Tells the worker anew how everybody wants a track.
    pub(super) fn wish_for_all(&mut self, id: TrackId) {
        let Some(track) = self.tracks.get(&id) else { return };
        let takers: Vec<_> = track.takers.iter().filter_map(|taker| Some((self.sections.get(taker)?.owner, *taker))).collect();
        for (owner, section) in takers {
            self.wish_for(owner, id, section);
        }
        self.rated.insert(id);
    }

    /// Tells publishers of the tracks of which somebody wants more or less since the last call.
    pub(super) fn settle_demand(&mut self, now: Time) {
        for id in std::mem::take(&mut self.rated) {
            self.settle_track(now, id);
        }
    }

    fn settle_track(&mut self, now: Time, id: TrackId) {
        let Some(track) = self.tracks.get(&id).filter(|track| !track.is_remote()) else { return };
        let (owner, wanted) = (track.owner, self.wanted_of(track));
        let is_taken = self.wanted_abroad.contains(&id)
            || track.takers.iter().any(|taker| self.sections.get(taker).is_some_and(|section| section.owner != owner));
        let is_video = track.kind == MediaKind::Video;
        let Some(track) = self.tracks.get_mut(&id) else { return };
        let (demand, muted) = (&mut track.demand, track.info.muted);
        if is_taken && !demand.subscribed {
            demand.subscribed = true;
            self.notify(owner, Notice::TrackSubscribed(id));
        }
        // Nothing is sent of a muted track, whoever wants it: what was wanted holds when it is heard again.
        if is_video && !muted {
            self.settle_quality(now, owner, id, wanted);
        }
    }

    fn settle_quality(&mut self, now: Time, owner: ParticipantId, id: TrackId, wanted: Quality) {
        let Some(demand) = self.tracks.get_mut(&id).map(|track| &mut track.demand) else { return };
        // A client that was told nothing sends all that it has.
        let less = rank(wanted) < rank(demand.told.unwrap_or_default());
        if let Some(at) = demand.calm_at.take_if(|_| !less) {
            self.calming.remove(&(at, id));
        } else if less && demand.calm_at.is_none() {
            let at = now + DEMAND_CALM;
            demand.calm_at = Some(at);
            self.calming.insert((at, id));
        }
        if !less && demand.told.is_some_and(|told| told != wanted) {
            self.tell_demand(owner, id, wanted);
        }
    }

    /// Tells publishers of less demand that has lasted.
    pub(super) fn lower_demand(&mut self, now: Time) {
        while let Some((at, id)) = self.calming.first().filter(|(at, _)| *at <= now).copied() {
            self.calming.remove(&(at, id));
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            track.demand.calm_at = None;
            if track.info.muted {
                continue;
            }
            let (owner, wanted) = (track.owner, self.wanted_of(&self.tracks[&id]));
            self.tell_demand(owner, id, wanted);
        }
    }

    fn tell_demand(&mut self, owner: ParticipantId, track: TrackId, quality: Quality) {
        if let Some(known) = self.tracks.get_mut(&track) {
            known.demand.told = Some(quality);
            known.judged = None;
        }
        self.notify(owner, Notice::SubscribedQuality { track, quality });
    }

    /// Tells a publisher that is back what it may have missed.
    pub(super) fn repeat_demand(&mut self, owner: ParticipantId) {
        let told: Vec<_> = self.tracks_of(owner).filter_map(|track| Some((track.id, track.demand.told?))).collect();
        for (track, quality) in told {
            self.notify(owner, Notice::SubscribedQuality { track, quality });
        }
    }

    pub(super) fn forget_demand(&mut self, track: TrackId, demand: &Demand) {
        self.rated.remove(&track);
        if let Some(at) = demand.calm_at {
            self.calming.remove(&(at, track));
        }
    }

    /// The most that anybody wants. Viewers, routes and captures take the best; so do other nodes, of whom it is not known what they
    /// want.
    fn wanted_of(&self, track: &Track) -> Quality {
        if self.taps[track.kind as usize].is_some() || self.wanted_abroad.contains(&track.id) {
            return Quality::High;
        }
        let wanted = |section: &LocalSection| match section.choice {
            Choice::Oldest { .. } => Quality::High,
            Choice::Member if section.wish.paused => Quality::Off,
            Choice::Member => {
                let layer = track.info.layers.get(usize::from(section.wish.spatial_max));
                layer.map_or(Quality::High, |layer| layer.quality)
            }
        };
        let takers = track.takers.iter().filter_map(|taker| self.sections.get(taker));
        takers.map(wanted).max_by_key(|quality| rank(*quality)).unwrap_or(Quality::Off)
    }
}

/// What a member wants other than in the beginning.
pub(super) fn wishes_of(member: &Member) -> Vec<Wish> {
    let first = Settings::new(member.adaptive_stream);
    let wanted = member.subscriptions.iter().filter(|(_, subscription)| subscription.settings != first);
    wanted.map(|(track, subscription)| subscription.settings.to_wish(*track)).take(WISHES_MAX).collect()
}

/// How much it is.
const fn rank(quality: Quality) -> u8 {
    match quality {
        Quality::Off => 0,
        Quality::Low => 1,
        Quality::Medium => 2,
        Quality::High => 3,
    }
}
