//! How the simulcast layers of one track rank, which of them come now, and what each costs.
//!
//! ```text
//! each packet -> meter of its layer -> active or paused ----------------------------------+
//!                                   -> bitrate -> order (told by the publisher, or so) ---+-> choose(highest wanted)
//! ```
//! The order of RIDs in SDP tells nothing reliable: where the publisher does not tell an order, layers are ranked by the bitrate that
//! they bring.

use std::time::Duration;

use pop_schemas::Time;

use crate::allocation::{Grant, Step};
use crate::control::LAYERS_MAX;
use crate::layering::{Layering, TARGETS_MAX, Target, TargetSet};

/// Bitrates are measured over this, and longer where fewer than [`WINDOW_FRAMES`] frames come meanwhile: a slow screen share.
const WINDOW: Duration = Duration::from_millis(500);
/// See [`WINDOW`].
const WINDOW_FRAMES: u32 = 2;

/// Two layers change places when the lower one brought this many times the bitrate of the higher one, in percent, ...
const CHALLENGE_PERCENT: u64 = 125;
/// ... in this many windows one after the other. Encoders ramp up for seconds and vary with the picture: each switch costs a keyframe.
const CHALLENGE_WINDOWS: u8 = 2;

/// When nothing came of any layer for so long, the track takes no bandwidth: it is muted. A slide stands still for less.
const IDLE: Duration = Duration::from_secs(10);

/// A layer is paused when nothing came for this long ...
const PAUSE: Duration = Duration::from_millis(500);
/// ... while each other active layer made this many frames: all of a slow screen share's layers are silent together.
const PAUSE_FRAMES: u32 = 3;

#[derive(Clone, Copy, Default)]
struct Meter {
    last: Option<Time>,
    timestamp: u32,
    /// Frames that other layers began since this one's last packet.
    frames_elsewhere: u32,
    /// When the layer came, or came back.
    since: Time,
    window_bytes: u64,
    window_frames: u32,
    /// In bit/s, of the last whole window.
    rate: u64,
    /// The same one window earlier: the last one of a layer that pauses is not full.
    rate_before: u64,
}

/// What another node tells of a layer, of which nothing need come from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerState {
    /// It comes there now.
    pub comes: bool,
    /// Its rank, counted from 0, the lowest.
    pub rank: u8,
    /// What it brings in bit/s, headers included; 0 before it was measured.
    pub rate: u64,
}

/// Ranks the layers of one track and measures them. What a subscriber gets is its own choice among them.
pub struct LayerRanks {
    meters: [Meter; LAYERS_MAX],
    len: usize,
    /// Layers by their place in `OpenTrack::layers`, the lowest quality first.
    order: [u8; LAYERS_MAX],
    /// The publisher told the order.
    is_told: bool,
    /// Where the track comes from tells of its layers; what comes of them says nothing.
    is_far: bool,
    /// A bit for each layer that comes.
    active: u8,
    window_start: Option<Time>,
    misplaced_windows: u8,
}

impl LayerRanks {
    /// Nothing came of any of `len` layers, at most [`LAYERS_MAX`]. `order` names their places, the lowest quality first; one that
    /// does not name each of them once tells nothing.
    pub fn new(len: usize, order: &[u8]) -> LayerRanks {
        assert!((1..=LAYERS_MAX).contains(&len), "a track has 1 to {LAYERS_MAX} layers");
        let is_told = order.len() == len && (0..len as u8).all(|layer| order.contains(&layer));
        let mut places = std::array::from_fn(|place| place as u8);
        if is_told {
            places[..len].copy_from_slice(order);
        }
        LayerRanks {
            meters: [Meter::default(); LAYERS_MAX],
            len,
            order: places,
            is_told,
            is_far: false,
            active: 0,
            window_start: None,
            misplaced_windows: 0,
        }
    }

    /// The best layer that comes now; the first before anything came.
    pub fn top(&self) -> usize {
        self.best_within(self.len).unwrap_or(0)
    }

    /// The layer for a subscriber that wants none above rank `rank_max`, counted from 0, the lowest: the best of those that come,
    /// else the lowest above them that comes; the best of those before anything came.
    pub fn choose(&self, rank_max: u8) -> usize {
        let within = self.len.min(usize::from(rank_max) + 1);
        let above = || self.order[within..self.len].iter().map(|layer| usize::from(*layer)).find(|layer| self.is_active(*layer));
        self.best_within(within).or_else(above).unwrap_or(usize::from(self.order[within - 1]))
    }

    fn best_within(&self, ranks: usize) -> Option<usize> {
        self.order[..ranks].iter().rev().map(|layer| usize::from(*layer)).find(|layer| self.is_active(*layer))
    }

    /// A layer's rank, counted from 0, the lowest.
    pub fn rank_of(&self, layer: usize) -> u8 {
        self.order[..self.len].iter().position(|of_rank| usize::from(*of_rank) == layer).unwrap_or(0) as u8
    }

    /// Whether the layer comes now.
    pub fn is_active(&self, layer: usize) -> bool {
        self.active >> layer & 1 == 1
    }

    /// What a layer brings in bit/s, headers included: when it is paused, what it brought before; 0 before it was measured.
    pub fn rate(&self, layer: usize) -> u64 {
        self.meters[layer].rate
    }

    /// The layers that a subscriber could get that wants none above rank `rank_max`, the lowest first; none while nothing comes. One
    /// that was never measured is no step up yet.
    pub fn steps(&self, now: Time, rank_max: u8) -> impl Iterator<Item = Step> {
        let is_idle = self.meters[..self.len].iter().filter_map(|meter| meter.last).all(|last| now.since(last) >= IDLE);
        let within = self.len.min(usize::from(rank_max) + 1);
        let is_choice = move |rank: &usize| !is_idle && self.is_active(self.order[*rank].into());
        let lowest = (0..self.len).find(is_choice);
        let better = (lowest.map_or(within, |rank| rank + 1)..within).filter(move |rank| is_choice(rank) && self.rate_at(*rank) > 0);
        lowest
            .into_iter()
            .chain(better)
            .map(|rank| Step { grant: Grant { spatial: rank as u8, temporal: u8::MAX }, rate: self.rate_at(rank) })
    }

    /// The layer of a rank.
    pub fn layer_at(&self, rank: u8) -> usize {
        usize::from(self.order[usize::from(rank).min(self.len - 1)])
    }

    fn rate_at(&self, rank: usize) -> u64 {
        self.rate(self.order[rank].into())
    }

    /// Takes a packet of a layer that came for the first time. Returns true when that changed what there is to choose from: the
    /// layer comes, or comes back.
    #[inline]
    pub fn record(&mut self, now: Time, layer: usize, len: usize, timestamp: u32) -> bool {
        let meter = &mut self.meters[layer];
        let begins_frame = meter.last.is_none() || meter.timestamp != timestamp;
        (meter.last, meter.timestamp, meter.frames_elsewhere) = (Some(now), timestamp, 0);
        meter.window_bytes += len as u64;
        meter.window_frames += u32::from(begins_frame);
        if begins_frame {
            for (_, other) in self.meters.iter_mut().enumerate().filter(|(other, _)| *other != layer) {
                other.frames_elsewhere = other.frames_elsewhere.saturating_add(1);
            }
        }
        let appears = !self.is_far && !self.is_active(layer);
        if appears {
            self.appear(now, layer);
        }
        appears
    }

    #[cold]
    fn appear(&mut self, now: Time, layer: usize) {
        self.active |= 1 << layer;
        self.meters[layer].since = now;
        if self.window_start.is_some() {
            return;
        }
        self.window_start = Some(now);
        if !self.is_told {
            // The first that comes is the top for a start.
            self.order[layer..self.len].rotate_left(1);
        }
    }

    /// The publisher said that the layer ends. Returns true when it came until now.
    pub fn end(&mut self, layer: usize) -> bool {
        let came = self.is_active(layer);
        self.pause(layer);
        self.meters[layer].last = None;
        came
    }

    /// What there is to tell of a layer.
    pub fn state(&self, layer: usize) -> LayerState {
        LayerState { comes: self.is_active(layer), rank: self.rank_of(layer), rate: self.rate(layer) }
    }

    /// Takes what another node tells of a layer; from now on that counts alone. Returns true when there is something else to choose from.
    pub fn tell(&mut self, now: Time, layer: usize, state: LayerState) -> bool {
        let before = (self.active, self.order);
        self.is_far = true;
        let meter = &mut self.meters[layer];
        meter.rate = state.rate;
        if state.comes {
            meter.last = Some(now);
        }
        self.active = self.active & !(1 << layer) | u8::from(state.comes) << layer;
        // Ranks differ, so that each layer has its own when all were told.
        if usize::from(state.rank) < self.len {
            let before = usize::from(self.rank_of(layer));
            self.order.swap(before, state.rank.into());
        }
        before != (self.active, self.order)
    }

    /// Whether another node tells of the layers: [`LayerRanks::tell`].
    pub fn is_far(&self) -> bool {
        self.is_far
    }

    fn pause(&mut self, layer: usize) {
        self.active &= !(1 << layer);
        let meter = &mut self.meters[layer];
        meter.rate = meter.rate.max(meter.rate_before);
        (meter.window_bytes, meter.window_frames) = (0, 0);
    }

    /// Does what time asks for; returns true when there is something else to choose from.
    pub fn handle_timeout(&mut self, now: Time) -> bool {
        let Some(window_start) = self.window_start.filter(|_| !self.is_far) else { return false };
        let before = (self.active, self.order);
        for layer in 0..self.len {
            if self.is_active(layer) && self.is_silent(now, layer) {
                self.pause(layer);
            }
        }
        let is_full = || self.meters[..self.len].iter().any(|meter| meter.window_frames >= WINDOW_FRAMES);
        if now.since(window_start) >= WINDOW && is_full() {
            self.measure(now, window_start);
        }
        before != (self.active, self.order)
    }

    /// Nothing of an active layer came for long, while the others went on.
    fn is_silent(&self, now: Time, layer: usize) -> bool {
        let meter = &self.meters[layer];
        let others = self.meters[..self.len].iter().filter(|m| m.last.is_some_and(|last| now.since(last) < PAUSE)).count();
        others > 0 && meter.last.is_some_and(|last| now.since(last) >= PAUSE) && meter.frames_elsewhere >= PAUSE_FRAMES * others as u32
    }

    fn measure(&mut self, now: Time, window_start: Time) {
        let mut measured = 0;
        for layer in 0..self.len {
            let is_active = self.is_active(layer);
            let meter = &mut self.meters[layer];
            let elapsed = now.since(meter.since.max(window_start));
            // Half a window of a layer that just came says little.
            if is_active && elapsed >= WINDOW / 2 {
                (meter.rate_before, meter.rate) = (meter.rate, meter.window_bytes * 8_000_000 / elapsed.as_micros() as u64);
                measured |= 1 << layer;
            }
            (meter.window_bytes, meter.window_frames) = (0, 0);
        }
        self.window_start = Some(now);
        if !self.is_told {
            self.challenge(measured);
        }
    }

    /// Counts a window in which measured layers were out of order; when that is often enough, they change places.
    fn challenge(&mut self, measured: u8) {
        let mut order = self.order;
        // Bubbles: each round puts at least one layer in its place.
        let moved = (0..self.len).filter(|_| self.sort_once(measured, &mut order)).count() > 0;
        self.misplaced_windows = if moved { self.misplaced_windows + 1 } else { 0 };
        if self.misplaced_windows >= CHALLENGE_WINDOWS {
            (self.order, self.misplaced_windows) = (order, 0);
        }
    }

    /// One round over the measured layers in `order`; true when two changed places. The others keep theirs.
    fn sort_once(&self, measured: u8, order: &mut [u8; LAYERS_MAX]) -> bool {
        let (mut lower, mut moved) = (None, false);
        for rank in 0..self.len {
            if measured >> order[rank] & 1 == 0 {
                continue;
            }
            let Some(below) = lower.replace(rank) else { continue };
            let rate = |rank: usize| self.meters[usize::from(order[rank])].rate;
            if rate(below) * 100 > rate(rank) * CHALLENGE_PERCENT {
                order.swap(below, rank);
                moved = true;
            }
        }
        moved
    }
}

/// What the qualities inside one stream bring, from one look to the next.
pub struct TargetRates {
    looked: Time,
    bytes: [u64; TARGETS_MAX],
    /// In bit/s.
    rates: [u64; TARGETS_MAX],
    known: TargetSet,
}

impl Default for TargetRates {
    fn default() -> TargetRates {
        TargetRates { looked: Time::ZERO, bytes: [0; TARGETS_MAX], rates: [0; TARGETS_MAX], known: TargetSet::NONE }
    }
}

impl TargetRates {
    /// Looks at what came since the last time: about once a second.
    pub fn look(&mut self, now: Time, layering: &Layering) {
        let elapsed_us = now.since(std::mem::replace(&mut self.looked, now)).as_micros().max(1) as u64;
        let known = std::mem::take(&mut self.known);
        for (target, bytes) in layering.targets() {
            let index = target.index();
            let before = std::mem::replace(&mut self.bytes[index], bytes);
            if before > 0 && bytes > before {
                self.rates[index] = (bytes - before) * 8_000_000 / elapsed_us;
            }
            // Where nothing came, what was known stays so.
            if before > 0 && bytes >= before && (bytes > before || known.has(target)) {
                self.known = self.known.with(target);
            }
        }
    }

    /// What the stream brings up to a temporal layer, in bit/s; `None` while that is not known.
    pub fn up_to_temporal(&self, temporal_max: u8) -> Option<u64> {
        self.known.best(Target::new(u8::MAX, temporal_max)).map(|target| self.rates[target.index()])
    }

    /// The lowest quality, where there are more; `None` while that is not known.
    pub fn lowest(&self) -> Option<Step> {
        let mut targets = self.known.iter();
        let lowest = targets.next()?;
        targets.next().map(|_| self.step(lowest, lowest.temporal()))
    }

    /// The best quality of each spatial layer up to these layers, the lowest first; none while nothing is known.
    pub fn steps(&self, spatial_max: u8, temporal_max: u8) -> impl Iterator<Item = Step> {
        let wish = Target::new(spatial_max, temporal_max);
        let is_wanted = move |target: &Target| target.spatial() <= wish.spatial() && target.temporal() <= wish.temporal();
        let mut targets = self.known.iter().filter(is_wanted).peekable();
        std::iter::from_fn(move || {
            let mut best = targets.next()?;
            while let Some(better) = targets.next_if(|target| target.spatial() == best.spatial()) {
                best = better;
            }
            Some(self.step(best, u8::MAX))
        })
    }

    fn step(&self, target: Target, temporal: u8) -> Step {
        Step { grant: Grant { spatial: target.spatial(), temporal }, rate: self.rates[target.index()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        ranks: LayerRanks,
        now: Time,
        /// Bytes per frame of each layer; 0: it sends nothing.
        frame_len: [usize; 3],
        interval: Duration,
    }

    impl Rig {
        fn new(frame_len: [usize; 3], fps: u32) -> Rig {
            Rig { ranks: LayerRanks::new(3, &[]), now: Time::from_millis(5), frame_len, interval: Duration::from_secs(1) / fps }
        }

        /// Lets time pass and returns (when, which) of every change.
        fn run(&mut self, duration: Duration) -> Vec<(Duration, usize)> {
            let (start, mut changes, mut next_frame) = (self.now, Vec::new(), self.now);
            while self.now < start + duration {
                let before = self.ranks.top();
                if self.now >= next_frame {
                    next_frame = next_frame + self.interval;
                    let timestamp = (self.now.as_micros() * 9 / 100) as u32;
                    for (layer, len) in self.frame_len.into_iter().enumerate().filter(|(_, len)| *len > 0) {
                        self.ranks.record(self.now, layer, len, timestamp);
                    }
                }
                self.ranks.handle_timeout(self.now);
                if self.ranks.top() != before {
                    changes.push((self.now.since(start), self.ranks.top()));
                }
                self.now = self.now + Duration::from_millis(10);
            }
            changes
        }
    }

    #[test]
    fn the_layer_with_the_highest_bitrate_is_the_top_whatever_its_place() {
        for frame_len in [[500, 2_000, 8_000], [8_000, 500, 2_000], [500, 8_000, 2_000]] {
            let mut rig = Rig::new(frame_len, 30);
            rig.run(Duration::from_secs(2));
            assert_eq!(frame_len[rig.ranks.top()], 8_000);
            assert_eq!(rig.run(Duration::from_secs(30)), [], "and stays");
        }
    }

    #[test]
    fn a_paused_top_gives_way_to_the_next_within_a_second_and_comes_back() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        rig.run(Duration::from_secs(3));
        rig.frame_len[2] = 0;
        let changes = rig.run(Duration::from_secs(5));
        let [(after, layer)] = changes[..] else { panic!("{changes:?}") };
        assert_eq!(layer, 1);
        assert!(after < Duration::from_millis(700), "{after:?}");
        rig.frame_len[2] = 8_000;
        let changes = rig.run(Duration::from_secs(5));
        let [(after, layer)] = changes[..] else { panic!("{changes:?}") };
        assert_eq!(layer, 2);
        assert!(after < Duration::from_millis(1_700), "{after:?}");
    }

    #[test]
    fn bitrates_that_cross_a_little_do_not_switch() {
        let mut rig = Rig::new([500, 2_000, 4_000], 30);
        rig.run(Duration::from_secs(3));
        assert_eq!(rig.ranks.top(), 2);
        for round in 0..40 {
            rig.frame_len[2] = if round % 2 == 0 { 1_800 } else { 2_200 };
            assert_eq!(rig.run(Duration::from_millis(700)), []);
        }
        rig.frame_len[2] = 1_000;
        assert_eq!(rig.run(Duration::from_secs(3)).len(), 1, "twice the bitrate does, once");
        assert_eq!(rig.ranks.top(), 1);
    }

    #[test]
    fn a_slow_screen_share_is_not_taken_for_a_pause() {
        let mut rig = Rig::new([500, 2_000, 8_000], 1);
        rig.run(Duration::from_secs(6));
        assert_eq!(rig.ranks.top(), 2);
        assert_eq!(rig.run(Duration::from_secs(30)), []);
    }

    #[test]
    fn when_all_fall_silent_nothing_switches() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        rig.run(Duration::from_secs(3));
        rig.frame_len = [0; 3];
        assert_eq!(rig.run(Duration::from_secs(10)), []);
    }

    #[test]
    fn a_layer_that_said_goodbye_is_left_at_once() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        rig.run(Duration::from_secs(3));
        rig.frame_len[2] = 0;
        rig.ranks.end(2);
        assert_eq!(rig.ranks.top(), 1);
        assert_eq!(rig.run(Duration::from_secs(1)), []);
    }

    #[test]
    fn a_told_order_is_not_changed_by_what_comes() {
        let mut rig = Rig::new([8_000, 2_000, 500], 30);
        rig.ranks = LayerRanks::new(3, &[1, 0, 2]);
        assert_eq!(rig.run(Duration::from_secs(10)), [(Duration::ZERO, 2)]);
        assert_eq!([1, 0, 2].map(|layer| rig.ranks.rank_of(layer)), [0, 1, 2]);
        assert_eq!([0, 1, 2, 9].map(|rank| rig.ranks.choose(rank)), [1, 0, 2, 2]);
    }

    #[test]
    fn an_order_that_does_not_name_each_layer_once_tells_nothing() {
        for order in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, 2, 2]] {
            let mut rig = Rig::new([8_000, 2_000, 500], 30);
            rig.ranks = LayerRanks::new(3, order);
            rig.run(Duration::from_secs(2));
            assert_eq!(rig.ranks.top(), 0, "{order:?}");
        }
    }

    #[test]
    fn a_wish_gets_the_best_at_or_below_it_else_the_lowest_above() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        assert_eq!([0, 1, 2, 255].map(|rank| rig.ranks.choose(rank)), [0, 1, 2, 2], "before anything came");
        rig.run(Duration::from_secs(2));
        assert_eq!([0, 1, 2, 255].map(|rank| rig.ranks.choose(rank)), [0, 1, 2, 2]);
        rig.frame_len = [0, 2_000, 8_000];
        rig.run(Duration::from_secs(1));
        assert_eq!([0, 1, 2, 255].map(|rank| rig.ranks.choose(rank)), [1, 1, 2, 2]);
        rig.frame_len = [0, 0, 8_000];
        rig.run(Duration::from_secs(1));
        assert_eq!([0, 1, 2, 255].map(|rank| rig.ranks.choose(rank)), [2; 4]);
    }

    #[test]
    fn a_layer_that_pauses_keeps_its_rate_and_its_rank() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        rig.run(Duration::from_millis(3_200));
        rig.frame_len[1] = 0;
        rig.run(Duration::from_secs(5));
        let rate = rig.ranks.rate(1);
        assert!(!rig.ranks.is_active(1));
        assert!((400_000..=560_000).contains(&rate), "30 frames of 2,000 bytes a second are {rate} bit/s");
        assert_eq!(rig.ranks.rank_of(1), 1);
    }

    #[test]
    fn a_slow_screen_share_is_ranked_and_measured_too() {
        let mut rig = Rig::new([8_000, 2_000, 500], 1);
        rig.run(Duration::from_secs(10));
        assert_eq!([0, 1, 2].map(|layer| rig.ranks.rank_of(layer)), [2, 1, 0]);
        let rate = rig.ranks.rate(0);
        assert!((60_000..=68_000).contains(&rate), "8,000 bytes a second are {rate} bit/s");
    }

    #[test]
    fn steps_are_the_layers_that_come_with_what_they_bring() {
        let mut rig = Rig::new([500, 2_000, 8_000], 30);
        let ranks = |rig: &Rig, rank_max| rig.ranks.steps(rig.now, rank_max).map(|step| step.grant.spatial).collect::<Vec<_>>();
        assert_eq!(ranks(&rig, 2), [0; 0]);
        rig.run(Duration::from_millis(300));
        assert_eq!(ranks(&rig, 2).len(), 1, "nothing is measured yet");
        rig.run(Duration::from_secs(2));
        let steps: Vec<_> = rig.ranks.steps(rig.now, 1).map(|step| (step.grant.spatial, step.rate / 10_000)).collect();
        assert!(matches!(steps[..], [(0, 11..13), (1, 46..50)]), "{steps:?}");
        rig.frame_len[0] = 0;
        rig.run(Duration::from_secs(1));
        assert_eq!((ranks(&rig, 0), ranks(&rig, 2)), (vec![1], vec![1, 2]));
        rig.now = rig.now + IDLE;
        assert_eq!(ranks(&rig, 2), [0; 0]);
    }

    #[test]
    fn a_layer_that_comes_says_so_once() {
        let mut ranks = LayerRanks::new(2, &[]);
        let at = Time::from_millis;
        assert_eq!([ranks.record(at(1), 0, 100, 1), ranks.record(at(2), 0, 100, 1)], [true, false]);
        assert!(ranks.end(0) && !ranks.end(0));
        assert!(ranks.record(at(3), 0, 100, 2));
    }
}
