//! Who gets what of one client's bandwidth.
//!
//! First the lowest quality for every section, the most important first; then better ones, again the most important first, and
//! among equals in turn, a step each.

use crate::control::LAYERS_MAX;

/// A section that has its lowest layer keeps it while there is room for this share of it, in percent: a picture with a quarter of its
/// packets lost and repaired is better than none.
const KEEP_PERCENT: u64 = 75;
/// One that has none gets it when there is room for this much of it, in percent.
const RESUME_PERCENT: u64 = 125;
/// A step up needs so much of the better layer's bitrate beyond what it costs, in percent: bitrates vary with the picture.
const STEP_UP_PERCENT: u64 = 15;

/// Steps that a section may have: one for each layer, and the lowest at a lower frame rate.
pub const STEPS_MAX: usize = LAYERS_MAX + 1;

/// What a section may get at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// Rank of a simulcast layer, counted from the lowest, or spatial layer of a stream that has them inside.
    pub spatial: u8,
    /// Temporal layer.
    pub temporal: u8,
}

impl Grant {
    /// Everything.
    pub const ALL: Grant = Grant { spatial: u8::MAX, temporal: u8::MAX };
    /// The least that there is.
    pub const LEAST: Grant = Grant { spatial: 0, temporal: 0 };
}

/// One quality that a section could get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub grant: Grant,
    /// Its bitrate in bit/s.
    pub rate: u64,
}

/// A section that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The caller's name for it; among equals the lower is served first.
    pub section: usize,
    /// The lower the earlier.
    pub priority: u8,
    /// What it may have now; `None`: nothing.
    pub current: Option<Grant>,
    /// What it gets; `None`: nothing.
    pub granted: Option<Grant>,
    steps: [Step; STEPS_MAX],
    steps_len: usize,
    /// Index of the step that it gets.
    at: usize,
}

impl Demand {
    /// A section that wants nothing yet.
    pub fn new(section: usize, priority: u8, current: Option<Grant>) -> Demand {
        let steps = [Step { grant: Grant::LEAST, rate: 0 }; STEPS_MAX];
        Demand { section, priority, current, granted: None, steps, steps_len: 0, at: 0 }
    }

    /// It wants something that comes.
    pub fn has_steps(&self) -> bool {
        self.steps_len > 0
    }

    /// Adds a quality that it would take, above those before; at most [`STEPS_MAX`].
    pub fn push(&mut self, step: Step) {
        self.steps[self.steps_len] = step;
        self.steps_len += 1;
    }

    fn rate(&self) -> u64 {
        self.steps[self.at].rate
    }

    /// The lowest layer, if there is room for it; returns what is left.
    fn take_lowest(&mut self, room: u64, may_stop: bool) -> u64 {
        let percent = if self.current.is_some() { KEEP_PERCENT } else { RESUME_PERCENT };
        if self.steps_len == 0 || (may_stop && self.rate() / 100 * percent > room) {
            return room;
        }
        self.granted = Some(self.steps[0].grant);
        room.saturating_sub(self.rate())
    }

    /// The next layer, if it has one and there is room for a better one; returns what is left.
    fn step_up(&mut self, room: u64) -> Option<u64> {
        self.granted?;
        let next = self.steps[..self.steps_len].get(self.at + 1)?;
        let cost = next.rate.saturating_sub(self.rate());
        let has_it = self.current.is_some_and(|current| current >= next.grant);
        let spare = if has_it { 0 } else { next.rate / 100 * STEP_UP_PERCENT };
        if cost + spare > room {
            return None;
        }
        (self.at, self.granted) = (self.at + 1, Some(next.grant));
        Some(room - cost)
    }
}

/// Shares `room` bit/s: sets what is granted to each, and sorts them by importance. Unless one `may_stop`, each gets its lowest layer
/// whatever that costs.
pub fn allocate(mut room: u64, may_stop: bool, demands: &mut [Demand]) {
    demands.sort_unstable_by_key(|demand| (demand.priority, demand.section));
    for demand in demands.iter_mut() {
        room = demand.take_lowest(room, may_stop);
    }
    for equals in demands.chunk_by_mut(|a, b| a.priority == b.priority) {
        // One step each in a round, and no section has more than these.
        for _ in 1..STEPS_MAX {
            for demand in equals.iter_mut() {
                room = demand.step_up(room).unwrap_or(room);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [u64; 3] = [150_000, 500_000, 2_000_000];

    fn rank(spatial: u8) -> Grant {
        Grant { spatial, temporal: u8::MAX }
    }

    fn demand(section: usize, priority: u8, current: Option<u8>) -> Demand {
        let mut demand = Demand::new(section, priority, current.map(rank));
        RATES.iter().enumerate().for_each(|(at, rate)| demand.push(Step { grant: rank(at as u8), rate: *rate }));
        demand
    }

    /// What sections 0, 1, .. of these (priority, current) get of `room`.
    fn shares(room: u64, sections: &[(u8, Option<u8>)]) -> Vec<Option<u8>> {
        let mut demands: Vec<_> = sections.iter().enumerate().map(|(at, (priority, current))| demand(at, *priority, *current)).collect();
        demands.reverse();
        allocate(room, true, &mut demands);
        demands.sort_by_key(|demand| demand.section);
        demands.iter().map(|demand| demand.granted.map(|grant| grant.spatial)).collect()
    }

    #[test]
    fn everybody_gets_the_lowest_before_anybody_gets_more() {
        assert_eq!(shares(700_000, &[(1, None); 4]), [Some(0); 4]);
        assert_eq!(shares(1_100_000, &[(1, None); 4]), [Some(1), Some(0), Some(0), Some(0)]);
    }

    #[test]
    fn better_layers_go_to_the_important_first_and_among_equals_in_turn() {
        assert_eq!(shares(2_700_000, &[(5, None), (1, None), (5, None)]), [Some(0), Some(2), Some(0)]);
        assert_eq!(shares(4_000_000, &[(1, None); 3]), [Some(2), Some(1), Some(1)]);
        assert_eq!(shares(100_000_000, &[(1, None); 3]), [Some(2); 3]);
    }

    #[test]
    fn when_there_is_no_room_the_least_important_get_nothing() {
        assert_eq!(shares(340_000, &[(9, None), (1, None), (5, None)]), [None, Some(0), Some(0)]);
        assert_eq!(shares(0, &[(1, Some(2))]), [None]);
    }

    #[test]
    fn what_one_has_is_kept_with_less_room_than_it_takes_to_get_it() {
        for (room, from_nothing, from_lowest, from_middle) in [
            (100_000, None, None, None),
            (120_000, None, Some(0), Some(0)),
            (180_000, None, Some(0), Some(0)),
            (190_000, Some(0), Some(0), Some(0)),
            (510_000, Some(0), Some(0), Some(1)),
            (570_000, Some(0), Some(0), Some(1)),
            (580_000, Some(1), Some(1), Some(1)),
        ] {
            let share = |current| shares(room, &[(1, current)])[0];
            assert_eq!((share(None), share(Some(0)), share(Some(1))), (from_nothing, from_lowest, from_middle), "{room}");
        }
    }

    #[test]
    fn a_lowest_layer_that_may_not_stop_is_sent_whatever_it_costs() {
        let mut demands = [demand(0, 1, None), demand(1, 1, None)];
        allocate(0, false, &mut demands);
        assert!(demands.iter().all(|demand| demand.granted == Some(rank(0))));
    }

    #[test]
    fn a_section_of_which_nothing_comes_gets_nothing_and_costs_nothing() {
        let mut demands = [Demand::new(0, 1, None), demand(1, 1, Some(0))];
        allocate(150_000, true, &mut demands);
        assert_eq!(demands.map(|demand| demand.granted), [None, Some(rank(0))]);
    }
}
