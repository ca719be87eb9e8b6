//! What the way to the other end carries, by what its feedback tells: how long our datagrams were on the way, and how many came.
//!
//! ```text
//! unlimited --trouble--> 0.85 of what came --calm--> grows slowly, below what failed until that may be tried again --> unlimited
//!                           ^                                               |
//!                           +--- trouble: the next try comes later ---------+
//! ```
//! Trouble is a queue that stands or overflows, or a loss that is not chance. All need several feedbacks in a row: a thread that slept for
//! a moment looks like a queue, too. What a way lost while it was cut is not judged. A queue that stays as it is while much less is sent is none: the way is another one.

use std::time::Duration;

use pop_schemas::Time;

use super::table::Feedback;

/// The least time on the way is that of so long, or up to twice as long: clocks drift, and ways change.
const LEAST_EVERY: Duration = Duration::from_secs(30);
/// A queue beyond it is a lie.
const QUEUE_MAX_US: u64 = 10_000_000;

/// One judgement is of so long at least, by the other end's clock.
const WINDOW_US: u64 = 50_000;
/// A queue above it in a whole window is a sign of trouble, ...
const QUEUE_HIGH_US: u64 = 40_000;
/// ... one above this in a row of fewer windows, ...
const QUEUE_DEEP_US: u64 = 100_000;
/// ... one that overflows at once: this many are trouble. A process that gets its turn late in most windows looks like a queue in each of
/// them with a chance of one half; but it loses nothing, and of 16 windows one will show that there is no queue.
const SIGNS_MAX: u8 = 16;
const SIGNS_HIGH: u8 = 1;
const SIGNS_DEEP: u8 = 3;
const SIGNS_OVERFLOWING: u8 = 8;
/// A loss of more of 1,000 in a window is an overflow, when so many datagrams at least were sent in it.
const OVERFLOW: (u64, u64) = (100, 10);

/// Loss is judged of so many datagrams and so long at least.
const LOSS_WINDOW: (u64, u64) = (50, 250_000);
/// When so little is sent that it is none for so long, what was lost when it was more must not count for ever.
const LOSS_FORGOTTEN_US: u64 = 2_000_000;
/// A loss of more of 1,000 is trouble: so much is not chance, and its repairs are part of what does not fit.
const LOSS_MAX_PERMILLE: u16 = 150;
/// With less it is calm; with what may be chance, too, where the limit does not change it.
const LOSS_CALM_PERMILLE: u16 = 30;

/// Where nothing came for so long, of so many datagrams at least, the way was cut: a queue that overflows lets something through.
const CUT: (u64, u64) = (200_000, 10);

/// What is lost in the long run is the mean of so many measures, the last weighing most: 4 s at least.
const STEADY_MEASURES: u32 = 16;
/// With less of a million it is none.
const STEADY_LOSS_MIN_PPM: u32 = 500;

/// What is left of what came, in percent.
const BACK_PERCENT: u64 = 85;
/// Beyond the limit may go, in percent, for a while: a picture comes all at once, and is paced. It is less than what came.
const PACE_PERCENT: u64 = 110;
/// While the queue is high, so that it drains.
const DRAIN_PERCENT: u64 = 50;
/// When less than this is sent, in bit/s, there is nothing that could be left out. No limit is below it: it is a few voices.
const RATE_MIN: u64 = 40_000;
/// For so long after trouble nothing is judged: what was sent before is still on the way, and told.
const SETTLING: Duration = Duration::from_secs(1);

/// Growth of a calm second: this share in percent, ...
const GROWTH_PERCENT: u64 = 8;
/// ... and this in bit/s, so that it comes off the ground.
const GROWTH: u64 = 10_000;
/// Until it may be tried again, a limit stays below this share of what failed, in percent.
const RETRY_PERCENT: u64 = 90;
/// A rate that failed is not tried again for so long; ...
const RETRY_MIN: Duration = Duration::from_secs(8);
/// ... twice as long each time that it fails again, up to this.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// Troubles that are this close belong together.
const SAME_TROUBLE: Duration = Duration::from_secs(4);

/// Least of a time on the way between two clocks, in microseconds.
#[derive(Default)]
pub(super) struct Least {
    /// Of now and of before.
    of: Option<[i64; 2]>,
    since: Time,
}

impl Least {
    /// How far a time is above the least, in microseconds.
    pub(super) fn above(&mut self, now: Time, from_us: u64, to_us: u64) -> u64 {
        let transit = to_us.cast_signed().wrapping_sub(from_us.cast_signed());
        let [least, before] = self.of.get_or_insert([transit; 2]);
        if now.since(self.since) >= LEAST_EVERY {
            (*before, *least, self.since) = (*least, transit, now);
        }
        *least = transit.min(*least);
        transit.saturating_sub(*least.min(before)).unsigned_abs().min(QUEUE_MAX_US)
    }
}

/// Where both ends were when a window began.
#[derive(Clone, Copy, Default)]
struct Mark {
    now: Time,
    bytes: u64,
    datagrams: u64,
    remote_us: u64,
    next: u64,
    received: u64,
}

/// One direction of a link. See the module.
pub(super) struct Rate {
    least: Least,
    /// When we sent the datagram that was echoed last, by our clock.
    echo_us: u64,
    /// The least queue of this window.
    queue_us: Option<u64>,
    window: Mark,
    loss_window: Mark,
    /// When something had come last.
    came: Mark,
    loss_permille: u16,
    loss_is_new: bool,
    /// See [`Self::spare_loss`].
    is_loss_spared: bool,
    was_spared: bool,
    /// The same in the long run, in millionths, of so many measures.
    steady_loss_ppm: u32,
    measures: u32,
    signs: u8,
    limit: Option<u64>,
    /// The limit before the last trouble, and the queue then.
    before: (Option<u64>, u64),
    /// What was sent when it failed last, in bit/s.
    failed: u64,
    troubled_at: Time,
    retry_after: Duration,
    grown_at: Time,
    /// What was sent before did not leave: nothing is judged before feedback on what came later.
    blind_until: Option<Time>,
}

impl Rate {
    pub(super) fn new() -> Rate {
        Rate {
            least: Least::default(),
            echo_us: 0,
            queue_us: None,
            window: Mark::default(),
            loss_window: Mark::default(),
            came: Mark::default(),
            loss_permille: 0,
            loss_is_new: false,
            is_loss_spared: false,
            was_spared: false,
            steady_loss_ppm: 0,
            measures: 0,
            signs: 0,
            limit: None,
            before: (None, 0),
            failed: 0,
            troubled_at: Time::ZERO,
            retry_after: RETRY_MIN,
            grown_at: Time::ZERO,
            blind_until: None,
        }
    }

    /// What was sent until now did not leave.
    pub(super) fn stood_still(&mut self, now: Time) {
        self.blind_until = Some(now);
    }

    /// What is sent from now on goes another way, of which nothing is known.
    pub(super) fn way_changed(&mut self, now: Time) {
        *self = Rate { blind_until: Some(now), echo_us: self.echo_us, ..Rate::new() };
    }

    /// In bit/s of datagrams; `None`: no limit is known.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// How fast datagrams may leave while there is a limit, in bit/s.
    pub(super) fn pace(&self) -> Option<u64> {
        let percent = if self.signs > 0 { DRAIN_PERCENT } else { PACE_PERCENT };
        self.limit.map(|limit| limit / 100 * percent)
    }

    pub(super) fn loss_permille(&self) -> u16 {
        self.loss_permille
    }

    /// How many of a million are lost in the long run; 0: so few that it may be none.
    pub(super) fn steady_loss_ppm(&self) -> u32 {
        Some(self.steady_loss_ppm).filter(|ppm| *ppm >= STEADY_LOSS_MIN_PPM).unwrap_or_default()
    }

    /// Whether loss alone is no trouble now: where there is another way all goes by both, and comes.
    pub(super) fn spare_loss(&mut self, is_spared: bool) {
        self.is_loss_spared = is_spared;
    }

    /// Loss was trouble, and spared.
    pub(super) fn take_spared(&mut self) -> bool {
        std::mem::take(&mut self.was_spared)
    }

    /// What was sent lately did not leave, or the way was cut.
    pub(super) fn is_blind(&self) -> bool {
        self.blind_until.is_some()
    }

    /// What is lost may be lost for a queue.
    pub(super) fn has_queue(&self) -> bool {
        self.signs > 0
    }

    /// Takes feedback that is newer than all before; `bytes` and `datagrams` were sent until now.
    pub(super) fn handle_feedback(&mut self, now: Time, feedback: &Feedback, bytes: u64, datagrams: u64) {
        let mark = Mark { now, bytes, datagrams, remote_us: feedback.now_us, next: feedback.next, received: feedback.received };
        let came_us = feedback.now_us.saturating_sub(feedback.echo_held_us.into());
        if feedback.echo_us > self.echo_us && feedback.echo_us <= now.as_micros() {
            self.echo_us = feedback.echo_us;
            let queue = self.least.above(now, feedback.echo_us, came_us);
            self.queue_us = Some(self.queue_us.map_or(queue, |least| least.min(queue)));
        }
        if mark.next > self.came.next {
            let Mark { remote_us, datagrams, .. } = std::mem::replace(&mut self.came, mark);
            if mark.remote_us.saturating_sub(remote_us) >= CUT.0 && mark.datagrams.saturating_sub(datagrams) >= CUT.1 {
                self.blind_until = Some(now);
            }
        }
        if self.window.remote_us == 0 || self.blind_until.is_some() {
            // What was before it was sent to nobody, or did not leave.
            (self.window, self.loss_window, self.queue_us) = (mark, mark, None);
            self.blind_until = self.blind_until.filter(|until| feedback.echo_us < until.as_micros());
            return;
        }
        self.measure_loss(mark);
        if mark.remote_us - self.window.remote_us < WINDOW_US {
            return;
        }
        if let Some(queue) = self.queue_us.take() {
            self.judge(mark, queue);
        }
    }

    fn measure_loss(&mut self, mark: Mark) {
        let Mark { next, received, remote_us, .. } = self.loss_window;
        let (sent, elapsed_us) = (mark.next.saturating_sub(next), mark.remote_us - remote_us);
        if elapsed_us >= LOSS_FORGOTTEN_US && sent < LOSS_WINDOW.0 {
            self.measure_steady_loss(sent, mark.received.saturating_sub(received).min(sent));
            (self.loss_permille, self.loss_window) = (0, mark);
        }
        if elapsed_us < LOSS_WINDOW.1 || sent < LOSS_WINDOW.0 {
            return;
        }
        let came = mark.received.saturating_sub(received).min(sent);
        let permille = (u128::from(sent - came) * 1_000 / u128::from(sent)) as u16;
        self.measure_steady_loss(sent, came);
        self.loss_permille = (self.loss_permille + permille) / 2;
        (self.loss_is_new, self.loss_window) = (true, mark);
    }

    fn measure_steady_loss(&mut self, sent: u64, came: u64) {
        if sent == 0 {
            return;
        }
        let ppm = (u128::from(sent - came) * 1_000_000 / u128::from(sent)) as i64;
        self.measures = (self.measures + 1).min(STEADY_MEASURES);
        let steady = i64::from(self.steady_loss_ppm);
        self.steady_loss_ppm = (steady + (ppm - steady) / i64::from(self.measures)) as u32;
    }

    /// The end of a window in which the queue was never below `queue`.
    fn judge(&mut self, mark: Mark, queue: u64) {
        let Mark { now, bytes, datagrams, remote_us, next, received } = std::mem::replace(&mut self.window, mark);
        let (bytes, datagrams) = (mark.bytes - bytes, mark.datagrams - datagrams);
        let per_second = |bytes: u64, us: u64| (u128::from(bytes) * 8_000_000 / u128::from(us.max(1))) as u64;
        let sent = per_second(bytes, mark.now.since(now).as_micros() as u64);
        // More than twice of what was sent is a lie, or of before.
        let arrived = mark.received.saturating_sub(received);
        let came = arrived.min(2 * datagrams);
        let came = per_second(came * (bytes / datagrams.max(1)), mark.remote_us - remote_us);
        let told = mark.next.saturating_sub(next);
        let overflows = told >= OVERFLOW.1 && u128::from(told.saturating_sub(arrived)) * 1_000 > u128::from(told) * u128::from(OVERFLOW.0);
        let signs = match queue > QUEUE_HIGH_US {
            false => 0,
            true if overflows => SIGNS_OVERFLOWING,
            true if queue > QUEUE_DEEP_US => SIGNS_DEEP,
            true => SIGNS_HIGH,
        };
        self.signs = if signs == 0 { 0 } else { (self.signs + signs).min(SIGNS_MAX) };
        let since = mark.now.since(self.troubled_at);
        let is_lossy = std::mem::take(&mut self.loss_is_new) && self.loss_permille > LOSS_MAX_PERMILLE;
        self.was_spared |= is_lossy && self.is_loss_spared;
        let is_lossy = is_lossy && !self.is_loss_spared;
        if self.limit.is_some() && since < SETTLING {
            return;
        }
        if sent >= RATE_MIN && (self.signs == SIGNS_MAX || is_lossy) {
            self.trouble(mark.now, queue, sent, came);
        } else if self.signs == 0 && self.is_calm(since) && mark.now.since(self.grown_at) >= Duration::from_secs(1) {
            self.grow(mark.now);
        }
    }

    /// So long after the last trouble. A loss that stays as it is however little is sent is chance.
    fn is_calm(&self, since: Duration) -> bool {
        self.loss_permille < LOSS_CALM_PERMILLE || u64::from(self.loss_permille) < OVERFLOW.0 && since >= self.retry_after
    }

    fn trouble(&mut self, now: Time, queue: u64, sent: u64, came: u64) {
        let (since, is_again) = (now.since(self.troubled_at), self.limit.is_some());
        let (before, queue_before) = std::mem::replace(&mut self.before, (self.limit, queue));
        if is_again && since < SAME_TROUBLE && u64::from(self.loss_permille) < OVERFLOW.0 && queue >= queue_before / 10 * 9 {
            // Much less was sent since, and it stands; one that was full would be shorter.
            (self.limit, self.least, self.signs) = (before, Least::default(), 0);
            return;
        }
        if !is_again || since > self.retry_after + RETRY_MAX {
            self.retry_after = RETRY_MIN;
        } else if since > SAME_TROUBLE {
            self.retry_after = (2 * self.retry_after).min(RETRY_MAX);
        }
        // Of one trouble the first is what did not fit.
        self.failed = if is_again && since < SAME_TROUBLE { self.failed } else { sent };
        let rate = came.min(sent) / 100 * BACK_PERCENT;
        self.limit = Some(rate.min(self.limit.unwrap_or(u64::MAX)).max(RATE_MIN));
        (self.troubled_at, self.grown_at) = (now, now);
    }

    /// A second without trouble.
    fn grow(&mut self, now: Time) {
        self.grown_at = now;
        let Some(limit) = self.limit else { return };
        let grown = limit + limit / 100 * GROWTH_PERCENT + GROWTH;
        let may_retry = now.since(self.troubled_at) >= self.retry_after;
        let bound = if may_retry { u64::MAX } else { (self.failed / 100 * RETRY_PERCENT).max(limit) };
        // All of what failed passes again, and as much beside it.
        self.limit = Some(grown.min(bound)).filter(|limit| *limit < 2 * self.failed.max(RATE_MIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000-byte datagrams, 1,000 a second; feedback each 50 ms of which the echo waited `queue_ms`, and `lost` of 50 are lost.
    struct Rig {
        rate: Rate,
        ms: u64,
        sent: u64,
        came: u64,
    }

    impl Rig {
        fn new() -> Rig {
            let mut rig = Rig { rate: Rate::new(), ms: 1_000, sent: 0, came: 0 };
            rig.feed(20, 0, 0);
            rig
        }

        fn feed(&mut self, times: usize, queue_ms: u64, lost: u64) {
            for _ in 0..times {
                self.ms += 50;
                (self.sent, self.came) = (self.sent + 50, self.came + 50 - lost);
                let echo_us = (self.ms - 20 - queue_ms) * 1_000;
                let feedback = Feedback {
                    next: self.sent,
                    received: self.came,
                    echo_us,
                    // Their clock is another one.
                    now_us: self.ms * 1_000 + 77_000_000_000,
                    ..Feedback::default()
                };
                self.rate.handle_feedback(Time::from_millis(self.ms), &feedback, self.sent * 1_000, self.sent);
            }
        }
    }

    #[test]
    fn a_thread_that_slept_is_no_queue_and_a_queue_that_stands_is_one() {
        let mut rig = Rig::new();
        for _ in 0..20 {
            rig.feed(1, 300, 0);
            rig.feed(2, 0, 0);
        }
        rig.feed(15, 90, 0);
        rig.feed(1, 0, 0);
        assert_eq!((rig.rate.limit(), rig.rate.pace()), (None, None));
        for (windows, queue_ms) in [(16, 90), (6, 150)] {
            let mut rig = Rig::new();
            // The echo of one that waits comes after that of those before it.
            rig.feed(windows + queue_ms as usize / 50, queue_ms, 0);
            assert!(rig.rate.limit().is_some(), "{queue_ms} ms in {windows} windows");
        }
        rig.feed(1, 90, 10);
        assert_eq!(rig.rate.limit(), None);
        // It overflows, too.
        rig.feed(3, 90, 10);
        let limit = rig.rate.limit().expect("a queue");
        assert!((5_000_000..6_000_000).contains(&limit), "0.85 of the four fifths that came: {limit}");
        assert!(rig.rate.pace() < Some(limit), "until the queue is gone");
        rig.feed(1, 0, 0);
        assert!(rig.rate.pace() > Some(limit));
    }

    #[test]
    fn loss_is_trouble_when_it_is_not_chance_and_a_limit_goes_again_with_patience() {
        let mut rig = Rig::new();
        rig.feed(100, 0, 6);
        assert_eq!(rig.rate.limit(), None, "12 % are");
        rig.feed(20, 0, 20);
        let limit = rig.rate.limit().expect("40 % are not");
        rig.feed(20 * 60, 0, 0);
        assert_eq!(rig.rate.limit(), None, "a minute later, from {limit}");
        rig.feed(30, 90, 10);
        assert!(rig.rate.limit().is_some(), "a queue");
        // One of 16 is lost for ever after.
        rig.feed(20 * 60, 0, 3);
        assert_eq!(rig.rate.limit(), None, "a minute later");
    }

    #[test]
    fn what_a_cut_in_this_direction_took_is_no_trouble_and_what_is_lost_after_it_is() {
        let mut rig = Rig::new();
        rig.feed(20, 0, 0);
        let next = rig.sent;
        for _ in 0..6 {
            // Feedback comes, and tells of nothing new.
            (rig.ms, rig.sent) = (rig.ms + 50, rig.sent + 50);
            let now_us = rig.ms * 1_000 + 77_000_000_000;
            let feedback = Feedback { next, received: rig.came, echo_us: 1, now_us, ..Feedback::default() };
            rig.rate.handle_feedback(Time::from_millis(rig.ms), &feedback, rig.sent * 1_000, rig.sent);
        }
        rig.feed(20, 0, 0);
        assert_eq!(rig.rate.limit(), None);
        rig.feed(20, 0, 20);
        assert!(rig.rate.limit().is_some());
    }

    #[test]
    fn whatever_an_authentic_liar_says_the_limit_is_no_less_than_a_few_voices() {
        let mut rate = Rate::new();
        let mut random = 7_u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random >> (random % 60)
        };
        let mut now_us = 0;
        for at in 0..100_000_u64 {
            // It is not handed on when it is not newer.
            now_us = (now_us + 1).max(if at % 1_000 == 999 { next() } else { now_us + next() % 100_000 });
            if now_us == u64::MAX {
                break;
            }
            let feedback =
                Feedback { next: next(), received: next(), echo_us: next(), echo_held_us: next() as u32, now_us, ..Feedback::default() };
            rate.handle_feedback(Time::from_millis(1_000 + at), &feedback, at * 50_000, at * 50);
            assert!(rate.limit().is_none_or(|limit| (RATE_MIN..10_000_000_000).contains(&limit)), "{feedback:?}");
        }
    }
}
