//! The path's MTU: probes of growing length, and the way back when the path swallows what once passed (RFC 8899).

use std::time::Duration;

use pop_schemas::Time;

use super::missing::NEVER;
use super::transit::TRANSIT_OVERHEAD;

/// Lengths of UDP payloads. 1,200 is RFC 8899's base and what every path of ours has to pass; 1,452 and 1,472 are what Ethernet passes
/// over IPv6 and IPv4, 1,400 is Ethernet behind a tunnel, 1,280 a cautious operator's path. The first is for datagrams that others carry:
/// with what that adds to them they are 1,200.
pub(super) const LADDER: [usize; 6] = [BASE - TRANSIT_OVERHEAD, BASE, 1_280, 1_400, 1_452, 1_472];
/// See [`LADDER`].
pub(super) const BASE: usize = 1_200;
const TOP: usize = LADDER.len() - 1;
/// Probes of one length without an answer before it counts as too long. RFC 8899 has 3; one more, since a path with 10 % loss
/// swallows three probes or their answers too often.
const PROBES_MAX: u8 = 4;
/// How often a length that passed is tried again while nothing is lost; when something is, at most each [`SUSPECT_EVERY`].
const CONFIRM_EVERY: Duration = Duration::from_secs(10);
/// Of a path that is not used.
const CONFIRM_BESIDE: Duration = Duration::from_secs(60);
const SUSPECT_EVERY: Duration = Duration::from_millis(250);
/// "The PMTU_RAISE_TIMER ... the value RECOMMENDED is 600 seconds" (RFC 8899 section 5.1.1).
const RAISE_EVERY: Duration = Duration::from_secs(600);
/// What an answer may take beyond two round trips.
const ANSWER_SLACK: Duration = Duration::from_millis(100);

/// A probe that has no answer yet.
#[derive(Clone, Copy)]
struct Probe {
    counter: u64,
    step: usize,
    until: Time,
    confirm_after: Duration,
}

/// The search for one direction of a path.
pub(super) struct Path {
    /// The step that passes whatever the path.
    floor: usize,
    /// The step above which nothing can pass: more than that the carrier does not take.
    ceiling: usize,
    /// The step that passes.
    step: usize,
    /// The step above which nothing is tried.
    top: usize,
    probe: Option<Probe>,
    failures: u8,
    next_at: Time,
    raise_at: Time,
    suspected_at: Time,
}

impl Path {
    /// Of datagrams that go by themselves.
    pub(super) fn direct(now: Time) -> Path {
        Path::new(now, 1, TOP)
    }

    /// Of datagrams that others carry, and who carries them first takes so many bytes.
    pub(super) fn carried(now: Time, len_max: usize) -> Path {
        Path::new(now, 0, ceiling(len_max))
    }

    fn new(now: Time, floor: usize, ceiling: usize) -> Path {
        let raise_at = now + RAISE_EVERY;
        Path { floor, ceiling, step: floor, top: ceiling, probe: None, failures: 0, next_at: now, raise_at, suspected_at: Time::ZERO }
    }

    /// The carrier takes so many bytes now.
    pub(super) fn set_len_max(&mut self, now: Time, len_max: usize) {
        let ceiling = ceiling(len_max);
        if ceiling > self.ceiling {
            (self.top, self.next_at) = (ceiling, now);
        }
        (self.ceiling, self.step, self.top) = (ceiling, self.step.min(ceiling), self.top.min(ceiling));
    }

    /// The longest UDP payload that passes.
    pub(super) fn mtu(&self) -> usize {
        LADDER[self.step]
    }

    /// A probe has no answer yet.
    pub(super) fn waits(&self) -> bool {
        self.probe.is_some()
    }

    fn target(&self) -> usize {
        (self.step + 1).min(self.top)
    }

    /// Length of the probe to send now.
    pub(super) fn due(&self, now: Time) -> Option<usize> {
        (self.probe.is_none() && self.next_at <= now).then(|| LADDER[self.target()])
    }

    /// It was sent as datagram `counter`. Whether other datagrams go by the path now.
    pub(super) fn sent(&mut self, now: Time, counter: u64, rtt: Duration, is_used: bool) {
        let confirm_after = if is_used { CONFIRM_EVERY } else { CONFIRM_BESIDE };
        self.probe = Some(Probe { counter, step: self.target(), until: now + 2 * rtt + ANSWER_SLACK, confirm_after });
    }

    /// The probe with `counter` came.
    pub(super) fn answered(&mut self, now: Time, counter: u64) {
        if let Some(probe) = self.probe.take_if(|probe| probe.counter == counter) {
            self.failures = 0;
            self.step = probe.step;
            self.next_at = if self.step < self.top { now } else { now + probe.confirm_after };
        }
    }

    /// Something is missing: the path may swallow what is long, which is looked at sooner than usual.
    pub(super) fn suspect(&mut self, now: Time) {
        if self.step == self.top && self.step > self.floor && now.since(self.suspected_at) >= SUSPECT_EVERY {
            self.suspected_at = now;
            self.next_at = self.next_at.min(now);
        }
    }

    /// When [`Self::handle_timeout`] or [`Self::due`] has something.
    pub(super) fn timeout(&self) -> Time {
        self.probe.map_or(self.next_at, |probe| probe.until).min(self.raise_at)
    }

    /// A probe may be lost, and what was too long may have become possible.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        if now >= self.raise_at {
            (self.top, self.raise_at) = (self.ceiling, now + RAISE_EVERY);
            self.next_at = now;
        }
        let Some(probe) = self.probe.take_if(|probe| probe.until <= now) else { return };
        self.next_at = now;
        self.failures += 1;
        if self.failures < PROBES_MAX {
            return;
        }
        self.failures = 0;
        if probe.step > self.step {
            self.top = self.step;
            self.next_at = if self.step == self.floor { NEVER } else { now + CONFIRM_EVERY };
        } else {
            // "the DPLPMTUD sender ... enters the BASE phase" (RFC 8899 section 4.3): a black hole, so begin again from below.
            (self.step, self.top) = (self.floor, self.ceiling);
        }
    }
}

/// The step of the longest datagrams of so many bytes.
fn ceiling(len_max: usize) -> usize {
    LADDER.iter().rposition(|len| *len <= len_max).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    /// Lets `path` run for `seconds` over a path that passes `limit` bytes; returns the time.
    fn run(path: &mut Path, mut now: Time, seconds: u64, limit: usize) -> Time {
        let end = now + Duration::from_secs(seconds);
        let mut counter = now.as_nanos();
        while now < end {
            now = now + Duration::from_millis(10);
            path.handle_timeout(now);
            if let Some(len) = path.due(now) {
                assert!(len <= LADDER[path.ceiling], "{len} bytes are more than the carrier takes");
                counter += 1;
                path.sent(now, counter, RTT, true);
                if len <= limit {
                    path.answered(now + RTT, counter);
                }
            }
        }
        now
    }

    #[test]
    fn the_longest_length_that_passes_is_found_and_kept() {
        for (limit, expected) in [(1_200, 1_200), (1_280, 1_280), (1_399, 1_280), (1_451, 1_400), (1_452, 1_452), (9_000, 1_472)] {
            let mut path = Path::direct(Time::ZERO);
            run(&mut path, Time::ZERO, 30, limit);
            assert_eq!(path.mtu(), expected, "limit {limit}");
        }
    }

    #[test]
    fn what_others_carry_is_no_longer_than_they_take() {
        for (len_max, limit, expected) in [(1_432, 9_000, 1_400), (1_432, 1_399, 1_280), (1_432, 1_199, 1_160), (1_160, 9_000, 1_160)] {
            let mut path = Path::carried(Time::ZERO, len_max);
            assert_eq!(path.mtu(), 1_160, "what passes any two paths");
            let now = run(&mut path, Time::ZERO, 30, limit);
            assert_eq!(path.mtu(), expected, "limit {limit} behind {len_max}");
            path.set_len_max(now, 1_240);
            assert!(path.mtu() <= 1_240);
            let now = run(&mut path, now, 30, limit);
            path.set_len_max(now, 1_432);
            run(&mut path, now, 30, limit);
            assert_eq!(path.mtu(), if len_max > 1_240 { expected } else { 1_400 }, "limit {limit}, and again");
        }
    }

    #[test]
    fn a_black_hole_brings_the_path_back_to_what_passes() {
        let mut path = Path::direct(Time::ZERO);
        let now = run(&mut path, Time::ZERO, 5, 1_472);
        assert_eq!(path.mtu(), 1_472);
        path.suspect(now);
        let now = run(&mut path, now, 1, 1_280);
        assert!(path.mtu() <= 1_280, "{}", path.mtu());
        let now = run(&mut path, now, 2, 1_280);
        assert_eq!(path.mtu(), 1_280);
        run(&mut path, now, 610, 1_472);
        assert_eq!(path.mtu(), 1_472, "and up again ten minutes later");
    }
}
