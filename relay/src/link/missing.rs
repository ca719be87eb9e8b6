//! What did not come: asked for once per round trip, and given up when a repair would be too late.

use std::time::Duration;

use pop_schemas::Time;

use super::{table::Range, window::Window};

/// Datagrams that are missing at once. Of more, as after an outage, the oldest are given up.
pub(super) const MISSING_MAX: usize = 512;
/// Later than every deadline.
pub(super) const NEVER: Time = Time::from_nanos(u64::MAX);

/// A datagram that did not come.
#[derive(Clone, Copy)]
struct Missing {
    counter: u64,
    ask_at: Time,
    /// A repair after it is too late for the one who plays it.
    deadline: Time,
    /// Which of its packets were repaired, when it was a bundle.
    places: u32,
}

impl Missing {
    /// Nobody waits for it any longer. Of one that was repaired in part the window takes no late original: it would deliver that part again.
    fn forget(&self, window: &mut Window) {
        if self.places != 0 && window.check(self.counter).is_ok() {
            window.insert(self.counter);
        }
    }
}

/// What a repair was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repaired {
    /// Nobody waits for it.
    Unknown,
    /// It came before.
    Again,
    /// A packet of several.
    Partly,
    /// All of the datagram is here now; whether in time.
    Wholly { in_time: bool },
}

/// The list, in the order of the counters.
pub(super) struct MissingList {
    list: Vec<Missing>,
    /// No entry is to be asked for before.
    ask_at: Time,
}

impl MissingList {
    pub(super) const MEMORY_LEN: usize = MISSING_MAX * size_of::<Missing>();

    pub(super) fn new() -> MissingList {
        MissingList { list: Vec::with_capacity(MISSING_MAX), ask_at: NEVER }
    }

    /// When there is something to ask for; [`NEVER`]: nothing.
    pub(super) fn ask_at(&self) -> Time {
        self.ask_at
    }

    /// Counters from `first` up to `end` were passed over. The first question waits for `tolerance`, in which they may overtake. When there
    /// are too many, the oldest are forgotten.
    pub(super) fn passed_over(&mut self, now: Time, first: u64, end: u64, tolerance: Duration, playout: Duration, window: &mut Window) {
        let first = first.max(end.saturating_sub(MISSING_MAX as u64));
        let too_many = (self.list.len() + (end - first) as usize).saturating_sub(MISSING_MAX);
        self.list.drain(..too_many).for_each(|missing| missing.forget(window));
        let ask_at = now + tolerance;
        self.list.extend((first..end).map(|counter| Missing { counter, ask_at, deadline: now + playout, places: 0 }));
        self.ask_at = self.ask_at.min(ask_at);
    }

    fn find(&self, counter: u64) -> Option<usize> {
        self.list.binary_search_by_key(&counter, |missing| missing.counter).ok()
    }

    /// The datagram itself came, late; returns which of its packets were repaired before.
    pub(super) fn came(&mut self, counter: u64) -> u32 {
        self.find(counter).map_or(0, |at| self.list.remove(at).places)
    }

    /// The datagram was brought back; returns which of its packets were repaired before, and whether it is in time.
    pub(super) fn recovered(&mut self, now: Time, counter: u64) -> (u32, bool) {
        let Some(at) = self.find(counter) else { return (0, false) };
        let Missing { places, deadline, .. } = self.list.remove(at);
        (places, now <= deadline)
    }

    /// Packet `place` of the `count` of a datagram was repaired.
    pub(super) fn repaired(&mut self, now: Time, counter: u64, place: u8, count: u8) -> Repaired {
        let Some(at) = self.find(counter) else { return Repaired::Unknown };
        let missing = &mut self.list[at];
        if missing.places & 1 << place != 0 {
            return Repaired::Again;
        }
        missing.places |= 1 << place;
        if missing.places.count_ones() < u32::from(count) {
            return Repaired::Partly;
        }
        Repaired::Wholly { in_time: now <= self.list.remove(at).deadline }
    }

    /// Writes what is to be asked for now into `ranges` and returns how many there are; forgets what nobody waits for any longer.
    pub(super) fn ask(&mut self, now: Time, rtt: Duration, again: Duration, window: &mut Window, ranges: &mut [Range]) -> usize {
        let mut len = 0;
        let mut ask_at = NEVER;
        self.list.retain_mut(|missing| {
            // A repair that is late by a round trip is still better than none: who plays it may be further behind.
            if now > missing.deadline + rtt {
                missing.forget(window);
                return false;
            }
            if missing.ask_at <= now {
                if now + rtt > missing.deadline {
                    missing.ask_at = NEVER;
                } else if let Some(last) =
                    ranges[..len].last_mut().filter(|r| r.first + u64::from(r.count) == missing.counter && r.count < u16::MAX)
                {
                    last.count += 1;
                    missing.ask_at = now + again;
                } else if len < ranges.len() {
                    ranges[len] = Range { first: missing.counter, count: 1 };
                    len += 1;
                    missing.ask_at = now + again;
                }
            }
            ask_at = ask_at.min(missing.ask_at);
            true
        });
        self.ask_at = ask_at;
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RelayDrop;
    use crate::link::table::RANGES_MAX;

    const RTT: Duration = Duration::from_millis(40);
    const PLAYOUT: Duration = Duration::from_millis(150);

    fn ask(list: &mut MissingList, at_ms: u64) -> Vec<(u64, u16)> {
        let mut ranges = [Range::default(); RANGES_MAX];
        let len = list.ask(Time::from_millis(at_ms), RTT, RTT + Duration::from_millis(2), &mut Window::new(), &mut ranges);
        ranges[..len].iter().map(|range| (range.first, range.count)).collect()
    }

    #[test]
    fn what_is_missing_is_asked_for_once_per_round_trip_until_a_repair_would_be_late() {
        let mut list = MissingList::new();
        list.passed_over(Time::from_millis(1_000), 5, 8, Duration::from_millis(2), PLAYOUT, &mut Window::new());
        assert_eq!(ask(&mut list, 1_001), [], "it may have been overtaken");
        assert_eq!(ask(&mut list, 1_002), [(5, 3)]);
        assert_eq!(ask(&mut list, 1_030), []);
        assert_eq!(list.came(6), 0);
        assert_eq!(list.repaired(Time::from_millis(1_040), 7, 0, 1), Repaired::Wholly { in_time: true });
        assert_eq!(ask(&mut list, 1_044), [(5, 1)]);
        assert_eq!(ask(&mut list, 1_086), [(5, 1)]);
        assert_eq!(ask(&mut list, 1_128), [], "40 ms later 150 ms are over");
        assert_eq!(list.ask_at(), NEVER);
        assert_eq!(list.repaired(Time::from_millis(1_160), 5, 0, 1), Repaired::Wholly { in_time: false });
    }

    #[test]
    fn packets_of_a_bundle_are_repaired_one_by_one_and_once() {
        let mut list = MissingList::new();
        list.passed_over(Time::ZERO, 1, 2, Duration::ZERO, PLAYOUT, &mut Window::new());
        assert_eq!(list.repaired(Time::ZERO, 1, 1, 2), Repaired::Partly);
        assert_eq!(list.repaired(Time::ZERO, 1, 1, 2), Repaired::Again);
        assert_eq!(list.came(1), 0b10, "the original may deliver the other");
        assert_eq!(list.repaired(Time::ZERO, 1, 0, 2), Repaired::Unknown);
    }

    #[test]
    fn what_was_repaired_in_part_and_forgotten_comes_no_more() {
        for outage in [true, false] {
            let (mut list, mut window) = (MissingList::new(), Window::new());
            window.insert(3);
            list.passed_over(Time::ZERO, 1, 3, Duration::ZERO, PLAYOUT, &mut window);
            assert_eq!(list.repaired(Time::ZERO, 1, 1, 2), Repaired::Partly);
            if outage {
                list.passed_over(Time::ZERO, 4, 1_000, Duration::ZERO, PLAYOUT, &mut window);
            } else {
                list.ask(Time::ZERO + PLAYOUT + 2 * RTT, RTT, RTT, &mut window, &mut [Range::default(); RANGES_MAX]);
            }
            assert_eq!(list.find(1), None);
            assert_eq!((window.check(1), window.check(2)), (Err(RelayDrop::Replayed), Ok(())));
        }
    }

    #[test]
    fn of_an_outage_the_last_datagrams_are_asked_for() {
        let mut list = MissingList::new();
        list.passed_over(Time::ZERO, 0, 1 << 40, Duration::ZERO, PLAYOUT, &mut Window::new());
        assert_eq!(list.list.len(), MISSING_MAX);
        assert_eq!(ask(&mut list, 0), [((1 << 40) - MISSING_MAX as u64, MISSING_MAX as u16)]);
    }
}
