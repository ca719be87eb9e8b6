//! The bitrate that a client's network takes, by what the client tells once a second.
//!
//! ```text
//! unbounded --trouble--> 0.85 of what is sent, or what arrived --calm--> grows slowly, below what failed until it may be tried again
//!                           ^                                                             |
//!                           +------------------ trouble: the next try comes later --------+
//! ```
//! Trouble is a loss above 10 %, or a REMB (draft-alvestrand-rmcat-remb-03) below what is sent. A REMB above it binds nobody: receivers
//! do not estimate more than 1.5 times what they get, which is less than the step to a better layer. No delay is looked at.

use std::time::Duration;

use pop_schemas::Time;

/// Loss above this share is trouble, in percent, ...
const LOSS_PERCENT_MAX: u64 = 10;
/// ... and below this one it is calm.
const LOSS_PERCENT_CALM: u64 = 2;

/// Packets that a loss must be a share of. Audio alone makes 50 a second, and DTX silence five.
const PACKETS_MIN: u64 = 10;

/// What is left of the sent bitrate after trouble, in percent; less when less arrived.
const BACK_PERCENT: u64 = 85;

/// When less than this is sent, in bit/s, there is nothing that could be left out, or it tells little of what the path takes: the
/// lowest layer of a camera takes as much.
const SENT_LITTLE: u64 = 100_000;

/// A REMB below this share of what is sent is trouble, in percent: estimates vary.
const REMB_PERCENT: u64 = 90;

/// Growth of a calm second: this share in percent, ...
const GROWTH_PERCENT: u64 = 8;
/// ... and this in bit/s, so that it comes off the ground.
const GROWTH: u64 = 10_000;

/// Never below this, in bit/s: what audio takes.
const ALLOWANCE_MIN: u64 = 40_000;
/// From here on, in bit/s, it is unbounded again: more than 256 sections of HD.
const ALLOWANCE_MAX: u64 = 1_000_000_000;

/// Until it may be tried again, an allowance stays below this share of what failed, in percent.
const RETRY_PERCENT: u64 = 90;
/// A rate that failed is not tried again for so long; ...
const RETRY_MIN: Duration = Duration::from_secs(8);
/// ... twice as long each time that it fails again, up to this.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// When nothing failed for so long after it might, the way is another one.
const RETRY_FORGOTTEN: Duration = Duration::from_secs(64);
/// For so long after trouble nothing that is told counts: a step down takes a keyframe, and losses of before are still told.
const SETTLING: Duration = Duration::from_millis(1_500);
/// Troubles that are this close belong together.
const SAME_TROUBLE: Duration = Duration::from_secs(4);

/// What one second told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What was sent, in bit/s.
    pub sent: u64,
    /// Packets that the client told about ...
    pub expected: u64,
    /// ... and of these, what did not arrive.
    pub lost: u64,
    /// The client's newest estimate, in bit/s.
    pub remb: Option<u64>,
}

impl Told {
    fn loss_percent(&self) -> Option<u64> {
        (self.expected >= PACKETS_MIN).then(|| 100 * self.lost / self.expected)
    }

    /// What to send instead of so much; `None` without trouble.
    fn trouble(&self) -> Option<u64> {
        let by_loss = self.loss_percent().filter(|percent| *percent > LOSS_PERCENT_MAX).map(|percent| (100 - percent).min(BACK_PERCENT));
        let by_loss = by_loss.map(|percent| self.sent / 100 * percent);
        let by_estimate = self.remb.filter(|remb| *remb < self.sent / 100 * REMB_PERCENT);
        by_loss.into_iter().chain(by_estimate).min()
    }

    /// Without trouble: little was lost, nothing at all of a few packets, or an estimate is all that the client tells, or nothing was
    /// there to be lost: a try is the only way to learn more then.
    fn is_calm(&self) -> bool {
        let of_few = (self.expected > 0 && self.lost == 0) || self.remb.is_some() || self.sent == 0;
        self.loss_percent().map_or(of_few, |percent| percent < LOSS_PERCENT_CALM)
    }
}

/// The allowance of one client. See the module's picture.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// In bit/s; `None`: unbounded.
    limit: Option<u64>,
    /// What was sent when it failed last, in bit/s.
    failed: u64,
    failed_at: Time,
    retry_after: Duration,
    /// The bound comes of packets that were lost, and not of an estimate alone.
    lossy: bool,
}

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance { limit: None, failed: 0, failed_at: Time::ZERO, retry_after: RETRY_MIN, lossy: false }
    }
}

impl Allowance {
    /// In bit/s; `None`: no bound is known.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// A section may be left without anything: packets were lost. An estimate alone is too little for that: aiortc's begins, and may
    /// stay, far below what arrives whole.
    pub fn may_stop(&self) -> bool {
        self.lossy
    }

    /// Takes what the last second told.
    pub fn handle_second(&mut self, now: Time, told: &Told) {
        if self.limit.is_some() && now.since(self.failed_at) < SETTLING {
            return;
        }
        match (told.trouble(), self.limit) {
            (Some(_), None) if told.sent < SENT_LITTLE => {}
            (Some(rate), limit) => {
                self.lossy = told.loss_percent().is_some_and(|percent| percent > LOSS_PERCENT_MAX);
                self.note_failure(now, told.sent);
                // What is sent now may be sound alone; it does not tell of a path that took much more.
                let least = limit.filter(|_| told.sent < SENT_LITTLE).map_or(ALLOWANCE_MIN, |limit| limit / 2);
                self.limit = Some(rate.min(limit.unwrap_or(u64::MAX)).max(least).max(ALLOWANCE_MIN));
            }
            (None, Some(limit)) if told.is_calm() => self.grow(now, limit),
            (None, _) => {}
        }
    }

    fn note_failure(&mut self, now: Time, sent: u64) {
        let since = now.since(self.failed_at);
        if self.limit.is_none() || since > self.retry_after + RETRY_FORGOTTEN {
            self.retry_after = RETRY_MIN;
        } else if since > SAME_TROUBLE {
            self.retry_after = (2 * self.retry_after).min(RETRY_MAX);
        }
        (self.failed, self.failed_at) = (sent, now);
    }

    fn grow(&mut self, now: Time, limit: u64) {
        let grown = limit + limit / 100 * GROWTH_PERCENT + GROWTH;
        let may_retry = now.since(self.failed_at) >= self.retry_after;
        let bound = if may_retry { u64::MAX } else { (self.failed / 100 * RETRY_PERCENT).max(limit) };
        self.limit = Some(grown.min(bound)).filter(|limit| *limit < ALLOWANCE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client behind a path that takes `capacity` bit/s and loses the rest.
    struct Rig {
        allowance: Allowance,
        now: Time,
        capacity: u64,
        /// What could be sent, in bit/s, the lowest first.
        steps: Vec<u64>,
        /// Each second's choice.
        sent: Vec<u64>,
    }

    impl Rig {
        fn new(capacity: u64, steps: &[u64]) -> Rig {
            Rig { allowance: Allowance::default(), now: Time::from_millis(7), capacity, steps: steps.into(), sent: Vec::new() }
        }

        fn run(&mut self, seconds: usize) -> &[u64] {
            for _ in 0..seconds {
                let limit = self.allowance.limit().unwrap_or(u64::MAX);
                let sent = self.steps.iter().rev().find(|step| **step <= limit).copied().unwrap_or(0);
                let lost = sent.saturating_sub(self.capacity) / 8_000;
                self.now = self.now + Duration::from_secs(1);
                self.allowance.handle_second(self.now, &Told { sent, expected: sent / 8_000, lost, remb: None });
                self.sent.push(sent);
            }
            &self.sent[self.sent.len() - seconds..]
        }
    }

    #[test]
    fn without_trouble_there_is_no_bound() {
        let mut rig = Rig::new(5_000_000, &[150_000, 500_000, 2_000_000]);
        assert!(rig.run(100).iter().all(|sent| *sent == 2_000_000));
        assert_eq!(rig.allowance.limit(), None);
    }

    #[test]
    fn what_a_path_does_not_take_is_left_within_a_second_and_tried_again_ever_more_rarely() {
        let mut rig = Rig::new(1_000_000, &[150_000, 500_000, 2_000_000]);
        let sent = rig.run(300).to_vec();
        assert_eq!(sent[..4], [2_000_000, 500_000, 500_000, 500_000]);
        let tries: Vec<usize> = (1..300).filter(|second| sent[*second] > sent[*second - 1]).collect();
        assert!((4..=7).contains(&tries.len()), "{tries:?}");
        assert!(tries.windows(3).all(|tries| tries[2] - tries[1] >= tries[1] - tries[0]), "{tries:?}");
        assert!(sent[4..].iter().filter(|sent| **sent == 2_000_000).count() == tries.len(), "each lasts a second: {sent:?}");
        assert!(sent.iter().all(|sent| *sent >= 500_000), "{sent:?}");
    }

    #[test]
    fn a_path_that_recovers_is_used_again() {
        let mut rig = Rig::new(1_000_000, &[150_000, 500_000, 2_000_000]);
        rig.run(30);
        rig.capacity = 5_000_000;
        let back = rig.run(60).iter().position(|sent| *sent == 2_000_000).expect("it is tried");
        // It failed three times in these 30 s, the last time when they ended: the next try is 32 s later.
        assert!(back < 35, "after {back} s");
        assert!(rig.run(300).iter().all(|sent| *sent == 2_000_000), "and stays");
        assert_eq!(rig.allowance.limit(), None);
    }

    #[test]
    fn a_path_that_takes_nothing_of_it_is_tried_too() {
        let mut rig = Rig::new(50_000, &[150_000]);
        let sent = rig.run(100).to_vec();
        assert!(sent[1..8].iter().all(|sent| *sent == 0), "{sent:?}");
        let tries = sent[1..].iter().filter(|sent| **sent > 0).count();
        assert!((1..8).contains(&tries), "{sent:?}");
    }

    #[test]
    fn a_loss_between_the_two_bounds_changes_nothing() {
        let mut allowance = Allowance::default();
        let told = |lost| Told { sent: 1_000_000, expected: 100, lost, remb: None };
        allowance.handle_second(Time::from_millis(1_000), &told(11));
        assert_eq!(allowance.limit(), Some(850_000));
        for lost in [2, 5, 10] {
            allowance.handle_second(Time::from_millis(2_000), &told(lost));
            assert_eq!(allowance.limit(), Some(850_000), "{lost}");
        }
        allowance.handle_second(Time::from_millis(3_000), &told(1));
        assert!(allowance.limit() > Some(850_000));
    }

    #[test]
    fn a_few_lost_packets_of_nearly_none_are_no_trouble() {
        let mut allowance = Allowance::default();
        allowance.handle_second(Time::from_millis(1_000), &Told { sent: 9_000, expected: 9, lost: 9, remb: None });
        assert_eq!(allowance.limit(), None);
    }

    #[test]
    fn a_client_that_hears_a_quiet_room_gets_its_bound_raised() {
        let mut allowance = Allowance::default();
        allowance.handle_second(Time::from_millis(1_000), &Told { sent: 200_000, expected: 100, lost: 90, remb: None });
        assert_eq!(allowance.limit(), Some(ALLOWANCE_MIN));
        let quiet = Told { sent: 2_000, expected: 5, lost: 0, remb: None };
        (3..60).for_each(|second| allowance.handle_second(Time::from_millis(1_000 * second), &quiet));
        assert!(allowance.limit() > Some(500_000), "{:?}", allowance.limit());
        let lossy = Told { lost: 1, ..quiet };
        let before = allowance.limit();
        allowance.handle_second(Time::from_millis(70_000), &lossy);
        assert_eq!(allowance.limit(), before);
    }

    #[test]
    fn trouble_of_sound_alone_does_not_tell_what_a_path_takes() {
        let mut allowance = Allowance::default();
        let sound = Told { sent: 40_000, expected: 50, lost: 10, remb: None };
        allowance.handle_second(Time::from_millis(1_000), &sound);
        assert_eq!(allowance.limit(), None);
        allowance.handle_second(Time::from_millis(2_000), &Told { sent: 2_000_000, expected: 200, lost: 40, remb: None });
        assert_eq!(allowance.limit(), Some(1_600_000));
        allowance.handle_second(Time::from_millis(4_000), &sound);
        assert_eq!(allowance.limit(), Some(800_000));
    }

    #[test]
    fn an_estimate_binds_when_it_is_below_what_is_sent() {
        let mut allowance = Allowance::default();
        let told = |remb| Told { sent: 1_000_000, expected: 100, lost: 0, remb: Some(remb) };
        allowance.handle_second(Time::from_millis(1_000), &told(1_500_000));
        allowance.handle_second(Time::from_millis(2_000), &told(950_000));
        assert_eq!(allowance.limit(), None);
        allowance.handle_second(Time::from_millis(3_000), &told(600_000));
        assert_eq!(allowance.limit(), Some(600_000));
        allowance.handle_second(Time::from_millis(5_000), &told(1));
        assert_eq!(allowance.limit(), Some(ALLOWANCE_MIN), "whatever a client says");
    }

    #[test]
    fn only_packets_that_were_lost_may_leave_a_section_without_anything() {
        let mut allowance = Allowance::default();
        let told = |lost, remb| Told { sent: 1_000_000, expected: 100, lost, remb };
        allowance.handle_second(Time::from_millis(1_000), &told(0, Some(300_000)));
        assert!(allowance.limit().is_some() && !allowance.may_stop());
        allowance.handle_second(Time::from_millis(4_000), &told(30, None));
        assert!(allowance.may_stop());
        allowance.handle_second(Time::from_millis(8_000), &told(0, Some(300_000)));
        assert!(!allowance.may_stop(), "the newest trouble counts");
    }
}
