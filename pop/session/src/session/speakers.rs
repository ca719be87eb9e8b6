//! Who speaks. Levels come from the workers (RFC 6464, read from header extensions, so that end-to-end encryption changes nothing);
//! members hear of changes alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::Command;
use pop_schemas::{ParticipantId, Time, TrackId};

use super::Session;
use crate::member::{Notice, Speaker};

/// How often speakers are counted (LiveKit's figure): fast enough for a frame around a tile, slow enough for syllables.
const SPEAKERS_INTERVAL: Duration = Duration::from_millis(400);

/// Quieter is no speech, in -dBov (LiveKit's figure).
const THRESHOLD_DBOV: u8 = 35;

/// Of the packets of an interval so many must be loud, in percent (LiveKit's figure): a cough is not a word.
const ACTIVE_PERCENT_MIN: u8 = 40;

/// How much of the difference a new level brings, so that two intervals count (LiveKit's figure): 2 / (2 + 1).
const SMOOTHING: f32 = 2.0 / 3.0;

/// Steps between silence and full level: who speaks on as before is not told again.
pub(super) const STEPS_MAX: u8 = 10;
const STEPS: f32 = STEPS_MAX as f32;

/// A level holds so long without another; the worker tells one a few times a second while there is sound.
const STALE: Duration = Duration::from_secs(1);

/// How loud a track is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Voice {
    /// Of the last interval, linear; 0 when that was no speech.
    level: f32,
    at: Time,
    smoothed: f32,
}

/// Who speaks in a room.
#[derive(Debug, Default)]
pub(crate) struct Speakers {
    /// Tracks that were heard lately.
    voices: BTreeMap<TrackId, Voice>,
    /// Participants of this node who speak, in steps.
    pub(super) here: BTreeMap<ParticipantId, u8>,
    /// What was told: those who speak, wherever they are.
    told: BTreeMap<ParticipantId, u8>,
    /// The next count.
    pub(super) due: Option<Time>,
}

impl Session {
    /// Takes a level of a worker.
    pub(super) fn note_level(&mut self, now: Time, track: TrackId, level: u8, active_percent: u8) -> bool {
        if !self.tracks.contains_key(&track) {
            return false;
        }
        let is_speech = active_percent >= ACTIVE_PERCENT_MIN && level <= 127;
        let linear = if is_speech { linear(level) * f32::from(active_percent.min(100)) / 100.0 } else { 0.0 };
        let voice = self.speakers.voices.entry(track).or_default();
        (voice.level, voice.at) = (linear, now);
        self.speakers.due.get_or_insert(now + SPEAKERS_INTERVAL);
        true
    }

    /// Counts who speaks, and tells what has changed.
    pub(super) fn count_speakers(&mut self, now: Time) {
        if self.speakers.due.is_none_or(|due| due > now) {
            return;
        }
        let mut speaking = BTreeMap::<ParticipantId, u8>::new();
        let tracks = &self.tracks;
        let shown: BTreeSet<_> = self.speakers.voices.keys().filter_map(|id| self.tracks.get(id)).map(|track| track.owner).collect();
        let shown: BTreeSet<_> = shown.into_iter().filter(|owner| self.is_shown(*owner)).collect();
        self.speakers.voices.retain(|id, voice| {
            let Some(track) = tracks.get(id).filter(|track| !track.info.muted) else { return false };
            let level = if now.since(voice.at) < STALE { voice.level } else { 0.0 };
            voice.smoothed += (level - voice.smoothed) * SMOOTHING;
            if voice.smoothed >= linear(THRESHOLD_DBOV) && shown.contains(&track.owner) {
                let steps = (voice.smoothed * STEPS).ceil() as u8;
                let known = speaking.entry(track.owner).or_default();
                *known = steps.max(*known);
            }
            level > 0.0 || voice.smoothed >= linear(127)
        });
        let is_quiet = self.speakers.voices.is_empty() && speaking.is_empty();
        self.speakers.due = (!is_quiet).then(|| now + SPEAKERS_INTERVAL);
        if speaking != self.speakers.here {
            let before = std::mem::replace(&mut self.speakers.here, speaking);
            self.tell_who_spoke(&before);
            self.tell_speaking_abroad();
        }
        self.tell_speakers();
    }

    /// Of cameras that other nodes take, those of who spoke last go there: who stops was before who speaks on.
    fn tell_who_spoke(&mut self, before: &BTreeMap<ParticipantId, u8>) {
        let now = &self.speakers.here;
        if before.keys().eq(now.keys()) {
            return;
        }
        let stopped = before.keys().filter(|id| !now.contains_key(id));
        let order: Vec<_> = stopped.chain(now.keys()).copied().collect();
        for id in order {
            let Some(participant) = self.participants.get(&id) else { continue };
            let goes_there = |track: &&TrackId| self.wanted_abroad.contains(track) && self.is_camera(**track);
            let cameras: Vec<_> = participant.tracks.iter().filter(goes_there).copied().collect();
            cameras.into_iter().for_each(|track| self.command(Command::Spoke { track }));
        }
    }

    /// Tells members whose speaking has changed, here or on other nodes.
    pub(super) fn tell_speakers(&mut self) {
        let mut speaking = self.speakers.here.clone();
        speaking.extend(self.news.speaking.iter().filter(|(id, _)| self.is_shown(**id)));
        let told = std::mem::replace(&mut self.speakers.told, speaking.clone());
        let mut news: Vec<_> = speaking.iter().filter(|(id, steps)| told.get(id) != Some(steps)).map(speaker).collect();
        news.sort_by(|a, b| b.level.total_cmp(&a.level));
        let stopped = told.keys().filter(|id| !speaking.contains_key(id) && self.is_shown(**id));
        news.extend(stopped.map(|id| Speaker { participant: *id, level: 0.0, active: false }));
        if news.is_empty() {
            return;
        }
        let news = Arc::new(news);
        for id in self.members_here().collect::<Vec<_>>() {
            self.notify(id, Notice::Speakers(news.clone()));
        }
    }

    /// Tells one who is new, or back, who speaks.
    pub(super) fn repeat_speakers(&mut self, id: ParticipantId) {
        let mut speakers: Vec<_> = self.speakers.told.iter().map(speaker).collect();
        speakers.sort_by(|a, b| b.level.total_cmp(&a.level));
        if !speakers.is_empty() {
            self.notify(id, Notice::Speakers(Arc::new(speakers)));
        }
    }
}

fn speaker((participant, steps): (&ParticipantId, &u8)) -> Speaker {
    Speaker { participant: *participant, level: f32::from(*steps) / STEPS, active: true }
}

/// 0 dBov is 1.
fn linear(dbov: u8) -> f32 {
    10_f32.powf(-f32::from(dbov) / 20.0)
}
