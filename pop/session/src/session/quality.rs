//! How well each participant is connected, from what the workers count: loss on the way up, loss and round trip on the way down,
//! and silence of what should be heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{MediaKind, SubscriptionStats, TrackStats};
use pop_schemas::{ParticipantId, SubscriptionId, Time, TrackId};

use super::Session;
use crate::member::{ConnectionGrade, ConnectionQuality, Notice, StreamState};
use crate::participant::{Choice, LocalParticipant, Track};

/// How often it is judged (LiveKit's figure).
pub(super) const QUALITY_INTERVAL: Duration = Duration::from_secs(5);

/// What a percent of lost packets costs, of 100 points: Opus conceals, a picture freezes (LiveKit's figures).
const AUDIO_LOSS_COST: f32 = 8.0;
const VIDEO_LOSS_COST: f32 = 10.0;

/// From here on it is excellent, and good.
const EXCELLENT_MIN: f32 = 80.0;
const GOOD_MIN: f32 = 40.0;

/// The counters of a track when it was judged last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judged {
    packets: u64,
    lost: i64,
}

impl Session {
    /// Takes the counters of a section, and tells its member when its picture stops, or goes on, for want of bandwidth.
    pub(super) fn note_subscription_stats(&mut self, id: SubscriptionId, stats: SubscriptionStats) -> bool {
        let Some(section) = self.sections.get_mut(&id) else { return false };
        let changed = section.stats.congested != stats.congested;
        section.stats = stats;
        let (owner, source) = (section.owner, section.source.and_then(|source| self.tracks.get(&source)));
        if let (true, Some(track)) = (changed, source) {
            let state = StreamState { publisher: track.owner, track: track.id, paused: stats.congested };
            self.notify(owner, Notice::StreamStates(vec![state]));
        }
        true
    }

    /// Tells a member that is back which of its pictures stand still.
    pub(super) fn repeat_stream_states(&mut self, id: ParticipantId) {
        let sections = self.participants.get(&id).into_iter().flat_map(|participant| &participant.sections);
        let states = sections.filter_map(|section| {
            let section = self.sections.get(section)?;
            let track = self.tracks.get(&section.source?)?;
            Some(StreamState { publisher: track.owner, track: track.id, paused: section.stats.congested })
        });
        let states: Vec<_> = states.collect();
        if !states.is_empty() {
            self.notify(id, Notice::StreamStates(states));
        }
    }

    /// Takes the counters of a track. A change of codec may change who can decode it.
    pub(super) fn note_track_stats(&mut self, id: TrackId, stats: TrackStats) -> bool {
        let Some(known) = self.tracks.get_mut(&id) else { return false };
        if known.is_remote() {
            return true;
        }
        let (changed, owner) = (known.stats.codec != stats.codec, known.owner);
        known.stats = stats;
        if changed {
            self.restate(owner);
            self.feed_sections();
        }
        true
    }

    /// Judges everybody, and tells what has changed to those whom it concerns: the participant, and who takes its tracks.
    pub(super) fn judge(&mut self, now: Time) {
        if self.quality_due.is_none_or(|due| due > now) {
            return;
        }
        // Members of other nodes listen as well; where nobody is here there is nobody to judge.
        let has_listeners = self.members().next().is_some() || self.remotes.iter().next().is_some();
        let somebody_listens = has_listeners && !self.participants.is_empty();
        self.quality_due = somebody_listens.then(|| now + QUALITY_INTERVAL);
        let shown = self.participants.values().filter(|participant| participant.is_shown() || participant.member.is_some());
        let mut judged: BTreeMap<_, _> = shown.map(|participant| (participant.id, self.judge_participant(participant))).collect();
        for track in self.tracks.values_mut() {
            track.judged = Some(Judged { packets: track.stats.packets, lost: track.stats.lost });
        }
        self.tell_grades_abroad(&judged);
        judged.extend(self.news.grades.iter().map(|(id, quality)| (*id, *quality)));
        for id in self.members_here().collect::<Vec<_>>() {
            self.tell_quality(id, &judged);
        }
    }

    pub(super) fn tell_quality(&mut self, id: ParticipantId, judged: &BTreeMap<ParticipantId, ConnectionQuality>) {
        let Some(participant) = self.participants.get(&id) else { return };
        let sources = participant.sections.iter().filter_map(|section| self.sections.get(section)?.source);
        let publishers = sources.filter_map(|track| Some(self.tracks.get(&track)?.owner));
        let watched: BTreeSet<_> = publishers.chain([id]).collect();
        let Some(member) = self.member_mut(id) else { return };
        member.told_grades.retain(|known, _| watched.contains(known));
        let mut news = Vec::new();
        for quality in watched.iter().filter_map(|watched| judged.get(watched)) {
            if member.told_grades.insert(quality.participant, quality.grade) != Some(quality.grade) {
                news.push(*quality);
            }
        }
        if !news.is_empty() {
            self.notify(id, Notice::Quality(Arc::new(news)));
        }
    }

    fn judge_participant(&self, participant: &LocalParticipant) -> ConnectionQuality {
        let expected = self.tracks_of(participant.id).filter(|track| is_expected(track));
        let expected: Vec<_> = expected.filter_map(|track| Some((track, track.judged?))).collect();
        let silent = expected.iter().filter(|(track, before)| track.stats.packets == before.packets).count();
        let up = expected.iter().map(|(track, before)| track_score(track, before)).fold(100.0, f32::min);
        let sections = participant.sections.iter().filter_map(|section| self.sections.get(section));
        let fed = sections.filter(|section| section.source.is_some() && matches!(section.choice, Choice::Member));
        let down = fed.map(|section| section_score(section.kind, &section.stats)).fold(100.0, f32::min);
        let score = up.min(down);
        let grade = match () {
            () if !expected.is_empty() && silent == expected.len() => ConnectionGrade::Lost,
            () if silent > 0 => ConnectionGrade::Poor,
            () if score >= EXCELLENT_MIN => ConnectionGrade::Excellent,
            () if score >= GOOD_MIN => ConnectionGrade::Good,
            () => ConnectionGrade::Poor,
        };
        let score = match grade {
            ConnectionGrade::Lost => 0.0,
            _ if silent > 0 => score.min(GOOD_MIN - 1.0),
            _ => score,
        };
        ConnectionQuality { participant: participant.id, grade, score: opinion(score) }
    }
}

/// Packets of it should have come since the last time: it has begun, is not silent, and somebody wants it.
fn is_expected(track: &Track) -> bool {
    track.stats.packets > 0 && !track.info.muted && !track.demand.is_off()
}

/// Of 100 points.
fn track_score(track: &Track, before: &Judged) -> f32 {
    let lost = (track.stats.lost - before.lost).max(0) as f32;
    let all = track.stats.packets.saturating_sub(before.packets) as f32 + lost;
    let percent = if all > 0.0 { 100.0 * lost / all } else { 0.0 };
    score(track.kind, percent, 0)
}

fn section_score(kind: MediaKind, stats: &SubscriptionStats) -> f32 {
    score(kind, 100.0 * f32::from(stats.fraction_lost) / 256.0, stats.rtt_us)
}

/// The E-model of ITU-T G.107 cut down to loss and delay, as LiveKit does.
fn score(kind: MediaKind, lost_percent: f32, rtt_us: u32) -> f32 {
    let cost = match kind {
        MediaKind::Audio => AUDIO_LOSS_COST,
        MediaKind::Video => VIDEO_LOSS_COST,
    };
    let delay_ms = rtt_us as f32 / 2_000.0;
    let delay = if delay_ms > 160.0 { (delay_ms - 120.0) / 10.0 } else { delay_ms / 40.0 };
    (100.0 - cost * lost_percent - delay).max(0.0)
}

/// Points as a mean opinion score (ITU-T G.107 annex B).
fn opinion(points: f32) -> f32 {
    match points {
        points if points <= 0.0 => 1.0,
        points => 1.0 + 0.035 * points + points * (points - 60.0) * (100.0 - points) * 7e-6,
    }
}
