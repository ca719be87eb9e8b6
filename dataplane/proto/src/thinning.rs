//! Which frames of a layered stream one viewer gets.
//!
//! A viewer is on one target at a time. It changes between pictures only, to a target that it could decode from there on:
//! `held` has those of which it got every frame since a place where they can be entered. So a lower temporal layer, or a lower spatial one
//! that the higher is built on, can be taken at once; one that was left out only where the stream has a switching point, which for spatial
//! layers is mostly a keyframe.

use crate::history::Meta;
use crate::layering::{FrameLayers, Target, TargetSet};

/// Changes of the target that are remembered for packets that come or are asked for late: one a picture would be 30 a second, and who
/// chooses layers holds one for longer than that.
const ERAS_MAX: usize = 8;

/// A target, and the published sequence from which on it holds. Sequences, not timestamps: what was sent once must look the same when it
/// is asked for again, whatever a publisher claims later.
#[derive(Clone, Copy, Default)]
struct Era {
    start: u64,
    target: Target,
}

/// The newest frame that was looked at.
#[derive(Clone, Copy, Default)]
struct Newest {
    number: u16,
    timestamp: u32,
    passed: bool,
    ended: bool,
    /// Its layers were told; else the rest means nothing.
    known: bool,
}

/// What becomes of a packet and of those missing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// It is sent.
    pub passes: bool,
    /// What is missing between the packet before it and this one may have to be sent.
    pub gap_passes: bool,
    /// It is not sent, is the first of its picture, and the pictures behind it close up.
    pub closes_picture: bool,
}

/// One viewer's choice of layers.
pub struct Thinning {
    wish: Target,
    /// None before a frame whose layers are known.
    target: Option<Target>,
    held: TargetSet,
    /// As the newest frame told it.
    active: TargetSet,
    newest: Newest,
    /// The newest first.
    eras: [Era; ERAS_MAX],
    eras_len: usize,
}

impl Default for Thinning {
    fn default() -> Thinning {
        Thinning {
            wish: Target::new(u8::MAX, u8::MAX),
            target: None,
            held: TargetSet::NONE,
            active: TargetSet::NONE,
            newest: Newest::default(),
            eras: [Era::default(); ERAS_MAX],
            eras_len: 0,
        }
    }
}

impl Thinning {
    /// Another source begins, under the same wish.
    pub fn reset(&mut self) {
        *self = Thinning { wish: self.wish, ..Thinning::default() };
    }

    /// The best target that is to be sent.
    pub fn want(&mut self, wish: Target) {
        self.wish = wish;
    }

    /// The target that is sent; `None` while the stream tells no layers.
    pub fn target(&self) -> Option<Target> {
        self.target
    }

    /// The wish can only be met, or met further, at a keyframe.
    pub fn wants_keyframe(&self) -> bool {
        let (Some(target), Some(best)) = (self.target, self.active.best(self.wish)) else { return false };
        best.spatial() != target.spatial() && !self.held.has(best)
    }

    /// Looks at the next packet in order: `sequence` is at or behind `front`, which is one past all before.
    #[inline]
    pub fn take(&mut self, front: u64, sequence: u64, meta: &Meta) -> Decision {
        let layers = &meta.layers;
        if !layers.is_known() {
            // All padding, or of a keyframe whose beginning is missing: what cannot be judged passes.
            return Decision { passes: true, gap_passes: true, closes_picture: false };
        }
        let before = self.newest;
        let same_picture = before.known && before.timestamp == meta.timestamp;
        if same_picture && before.number == layers.number {
            self.newest.ended = layers.ends();
            return Decision { passes: before.passed, gap_passes: before.passed, closes_picture: false };
        }
        // Of neighbours nothing is missing but the end of the one and the beginning of the other.
        let are_neighbours = before.known && before.number.wrapping_add(1) == layers.number;
        if sequence > front && !are_neighbours {
            // Whole frames may be missing. When they come they are sent as far as the present target wants them, and no further: so
            // fewer pictures of the same spatial layer still are within reach.
            self.held = self.target.map_or(TargetSet::NONE, |target| self.held.and(TargetSet::within(target)));
        }
        // The beginning of the frame may be among what is missing.
        let start = if layers.starts() { sequence } else { front };
        let passes = self.take_frame(start, layers, same_picture);
        self.newest = Newest { number: layers.number, timestamp: meta.timestamp, passed: passes, ended: layers.ends(), known: true };
        let gap_passes = !are_neighbours || (before.passed && !before.ended) || (passes && !layers.starts());
        Decision { passes, gap_passes, closes_picture: !passes && layers.counts_pictures() }
    }

    /// The first packet of a frame that comes.
    fn take_frame(&mut self, start: u64, layers: &FrameLayers, same_picture: bool) -> bool {
        let decodes = layers.is_independent() || !layers.present.and(self.held).is_empty();
        let switch = if decodes { layers.switch } else { TargetSet::NONE };
        self.active = layers.active;
        if !same_picture || self.target.is_none() {
            self.choose(start, self.held.or(switch));
        }
        let passes = self.target.is_none_or(|target| layers.present.has(target));
        if passes {
            self.held = self.held.or(switch);
        } else {
            self.held = self.held.without(layers.present);
        }
        passes
    }

    /// Between two pictures: takes the target that comes nearest to the wish and can be entered now.
    fn choose(&mut self, start: u64, reachable: TargetSet) {
        let Some(best) = self.active.best(self.wish) else { return };
        let next = match self.target {
            Some(target) if target == best => return,
            _ if reachable.has(best) => best,
            // The stream began without its keyframe's own word for it.
            None => reachable.and(self.active).best(self.wish).unwrap_or(best),
            // Another spatial layer waits for a keyframe; fewer pictures of this one need not.
            Some(target) => match Target::new(target.spatial(), best.temporal()) {
                fewer if fewer != target && reachable.and(self.active).has(fewer) => fewer,
                _ => return,
            },
        };
        self.target = Some(next);
        self.eras.copy_within(..ERAS_MAX - 1, 1);
        self.eras[0] = Era { start, target: next };
        self.eras_len = (self.eras_len + 1).min(ERAS_MAX);
    }

    /// The target by which a packet was chosen; `None`: too many changes ago.
    #[inline]
    fn target_of(&self, sequence: u64) -> Option<Target> {
        self.eras[..self.eras_len].iter().find(|era| sequence >= era.start).map(|era| era.target)
    }

    /// Whether a packet that came late, or is asked for again, belongs to what the viewer gets; `None`: it cannot be told any more.
    pub fn passes(&self, sequence: u64, meta: &Meta) -> Option<bool> {
        if self.target.is_none() || !meta.layers.is_known() {
            return Some(true);
        }
        self.target_of(sequence).map(|target| meta.layers.present.has(target))
    }

    /// The viewer's marker bit: it stands on the last packet of a picture, which may be one that the viewer does not get.
    #[inline]
    pub fn marks(&self, sequence: u64, meta: &Meta) -> bool {
        let layers = &meta.layers;
        let ends = || layers.is_known() && layers.ends();
        meta.marker || (ends() && self.target_of(sequence).is_some_and(|target| target.spatial() == layers.spatial()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Codec;
    use crate::layering::Layering;

    #[test]
    fn after_a_gap_fewer_pictures_can_be_had_without_a_keyframe() {
        let (mut layering, mut thinning) = (Layering::default(), Thinning::default());
        let mut take = |thinning: &mut Thinning, front: u64, picture: u8| {
            // Each second picture is of the higher temporal layer, and none says that it may be entered there.
            let payload = [0x90, 0xe0, 0x80, picture, picture / 2, (picture % 2) << 6, u8::from(picture > 0)];
            let layers = layering.read(picture.into(), Codec::Vp8, None, &payload, true).layers;
            let meta = Meta { layers, timestamp: 3_000 * u32::from(picture), marker: true, ..Meta::default() };
            thinning.take(front, picture.into(), &meta).passes
        };
        assert!((0..4).all(|picture| take(&mut thinning, picture.into(), picture)));
        assert!(take(&mut thinning, 4, 5), "4 is missing");
        thinning.want(Target::new(0, 0));
        assert_eq!([6, 7, 8, 9].map(|picture| take(&mut thinning, picture.into(), picture)), [true, false, true, false]);
    }
}
