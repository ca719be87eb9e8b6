//! Which simulcast layer of a track is the top one now.
//!
//! The order of RIDs in SDP tells nothing reliable, so layers are ranked by what they really bring: bitrate while they are active.

use std::time::Duration;

use pop_schemas::Time;

use crate::control::LAYERS_MAX;

/// Bitrates are measured over this.
const WINDOW: Duration = Duration::from_millis(500);

/// A layer becomes the top when it brought this many times the top's bitrate, in percent, ...
const CHALLENGE_PERCENT: u64 = 125;
/// ... in this many windows one after the other. Encoders ramp up for seconds and vary with the picture: each switch costs a keyframe.
const CHALLENGE_WINDOWS: u8 = 2;

/// A layer is paused when nothing came for this long ...
const PAUSE: Duration = Duration::from_millis(500);
/// ... while each other active layer made this many frames: all of a slow screen share's layers are silent together.
const PAUSE_FRAMES: u32 = 3;

#[derive(Clone, Copy, Default)]
struct Meter {
    last: Option<Time>,
    timestamp: u32,
    window_bytes: u64,
    /// In bit/s.
    rate: u64,
    /// Frames that other layers began since this one's last packet.
    frames_elsewhere: u32,
    challenges: u8,
}

/// Ranks the layers of one track. It chooses for all subscribers alike; a choice per subscriber needs only its meters.
pub struct LayerChooser {
    meters: [Meter; LAYERS_MAX],
    len: usize,
    top: Option<usize>,
    window_end: Time,
    window_start: Time,
}

impl LayerChooser {
    /// Nothing came of any of `len` layers, at most [`LAYERS_MAX`].
    pub fn new(len: usize) -> LayerChooser {
        assert!((1..=LAYERS_MAX).contains(&len), "a track has 1 to {LAYERS_MAX} layers");
        LayerChooser { meters: [Meter::default(); LAYERS_MAX], len, top: None, window_start: Time::ZERO, window_end: Time::ZERO }
    }

    /// The layer that everybody gets; the first before anything came.
    pub fn top(&self) -> usize {
        self.top.unwrap_or(0)
    }

    /// Takes a packet of a layer. Returns true when the top changed: the first layer that comes is the top for a start.
    #[inline]
    pub fn record(&mut self, now: Time, layer: usize, len: usize, timestamp: u32) -> bool {
        let meter = &mut self.meters[layer];
        meter.window_bytes += len as u64;
        let begins_frame = meter.last.is_none() || meter.timestamp != timestamp;
        (meter.last, meter.timestamp, meter.frames_elsewhere) = (Some(now), timestamp, 0);
        if begins_frame {
            for (_, other) in self.meters.iter_mut().enumerate().filter(|(other, _)| *other != layer) {
                other.frames_elsewhere = other.frames_elsewhere.saturating_add(1);
            }
        }
        let is_first = self.top.is_none();
        if is_first {
            (self.top, self.window_start, self.window_end) = (Some(layer), now, now + WINDOW);
        }
        is_first && layer != 0
    }

    /// The publisher said that the layer ends.
    pub fn end(&mut self, layer: usize) {
        self.meters[layer] = Meter::default();
    }

    /// Does what time asks for; returns true when the top changed.
    pub fn handle_timeout(&mut self, now: Time) -> bool {
        let Some(top) = self.top else { return false };
        let measured = now >= self.window_end;
        if measured {
            self.measure(now);
        }
        let active = |layer: &usize| !self.is_paused(now, *layer);
        let best = (0..self.len).filter(active).max_by_key(|layer| (self.meters[*layer].rate, std::cmp::Reverse(*layer)));
        let next = if self.is_paused(now, top) { best } else { best.filter(|layer| measured && self.challenge(*layer, top)) };
        match next {
            Some(next) if next != top => {
                self.top = Some(next);
                self.meters.iter_mut().for_each(|meter| meter.challenges = 0);
                true
            }
            _ => false,
        }
    }

    fn measure(&mut self, now: Time) {
        let elapsed_us = now.since(self.window_start).as_micros().max(1) as u64;
        for meter in &mut self.meters[..self.len] {
            meter.rate = meter.window_bytes * 8_000_000 / elapsed_us;
            meter.window_bytes = 0;
        }
        (self.window_start, self.window_end) = (now, now + WINDOW);
    }

    /// Counts a window in which `layer` was ahead of `top`; true when that is often enough.
    fn challenge(&mut self, layer: usize, top: usize) -> bool {
        let threshold = self.meters[top].rate * CHALLENGE_PERCENT / 100;
        for (index, meter) in self.meters[..self.len].iter_mut().enumerate() {
            meter.challenges = if index == layer && meter.rate > threshold { meter.challenges.saturating_add(1) } else { 0 };
        }
        self.meters[layer].challenges >= CHALLENGE_WINDOWS
    }

    fn is_paused(&self, now: Time, layer: usize) -> bool {
        let meter = &self.meters[layer];
        let others = self.meters[..self.len].iter().filter(|m| m.last.is_some_and(|last| now.since(last) < PAUSE)).count();
        meter.last.is_none_or(|last| now.since(last) >= PAUSE && meter.frames_elsewhere >= PAUSE_FRAMES * others as u32)
            && (meter.last.is_none() || others > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        chooser: LayerChooser,
        now: Time,
        /// Bytes per frame of each layer; 0: it sends nothing.
        frame_len: [usize; 3],
        interval: Duration,
    }

    impl Rig {
        fn new(frame_len: [usize; 3], fps: u32) -> Rig {
            Rig { chooser: LayerChooser::new(3), now: Time::from_millis(5), frame_len, interval: Duration::from_secs(1) / fps }
        }

        /// Lets time pass and returns (when, which) of every change.
        fn run(&mut self, duration: Duration) -> Vec<(Duration, usize)> {
            let (start, mut changes, mut next_frame) = (self.now, Vec::new(), self.now);
            while self.now < start + duration {
                let mut changed = false;
                if self.now >= next_frame {
                    next_frame = next_frame + self.interval;
                    let timestamp = (self.now.as_micros() * 9 / 100) as u32;
                    for (layer, len) in self.frame_len.into_iter().enumerate().filter(|(_, len)| *len > 0) {
                        changed |= self.chooser.record(self.now, layer, len, timestamp);
                    }
                }
                changed |= self.chooser.handle_timeout(self.now);
                if changed {
                    changes.push((self.now.since(start), self.chooser.top()));
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
            assert_eq!(frame_len[rig.chooser.top()], 8_000);
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
        assert_eq!(rig.chooser.top(), 2);
        for round in 0..40 {
            rig.frame_len[2] = if round % 2 == 0 { 1_800 } else { 2_200 };
            assert_eq!(rig.run(Duration::from_millis(700)), []);
        }
        rig.frame_len[2] = 1_000;
        assert_eq!(rig.run(Duration::from_secs(3)).len(), 1, "twice the bitrate does, once");
        assert_eq!(rig.chooser.top(), 1);
    }

    #[test]
    fn a_slow_screen_share_is_not_taken_for_a_pause() {
        let mut rig = Rig::new([500, 2_000, 8_000], 1);
        rig.run(Duration::from_secs(6));
        assert_eq!(rig.chooser.top(), 2);
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
        rig.chooser.end(2);
        assert_eq!(rig.run(Duration::from_secs(1)), [(Duration::ZERO, 1)]);
    }
}
