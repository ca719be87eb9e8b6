//! The ways of a link, and which of them live: small datagrams that go by one way alone tell it, and what comes by it.
//!
//! ```text
//! echo by each way, 4 to 20 a second -----> the other end: which of our ways bring something
//!        ^                                            |
//!        +-- its echoes say so, by each way ----------+--> choose: the way | the backup | both, while it is not known
//! ```
//! Echoes have counters of their own, so that what is lost of them by a way that is not used is no loss of the link. Who hears nothing by a
//! way for three of them says so at once, by all ways. A way that failed is taken again when it has lived for a second.

use std::time::Duration;

use pop_schemas::Time;

use super::missing::NEVER;
use crate::{
    RelayDrop,
    seal::{ECHO_COUNTERS, ECHO_COUNTERS_END},
};

/// Ways of a link: the direct one, and two over others.
pub(super) const WAYS_MAX: usize = 3;
/// The direct one.
pub(super) const DIRECT: usize = 0;

/// Between two echoes of the other end by one way, until it says.
const EVERY: Duration = Duration::from_millis(100);
/// Two by one way are at least so far apart, whatever there is to tell.
const PAUSE: Duration = Duration::from_millis(20);
/// A way is silent when this many echoes in a row did not come, ...
const MISSED_MAX: u32 = 3;
/// ... and this is over: a worker turns each 10 ms.
const SLACK: Duration = Duration::from_millis(20);
/// Who hears nothing by a way sends by two for so long. Then the other end has told whether it hears.
const DOUBT: Duration = Duration::from_millis(500);
/// A way that failed has to live for so long before it is taken again.
const PROVEN: Duration = Duration::from_secs(1);
/// The other end wants echoes until so long after it said so last.
const WANTED: Duration = Duration::from_secs(2);
/// A round trip beyond it is a lie.
const RTT_MAX: Duration = Duration::from_secs(10);
/// The other end's interval is believed up to this.
const EVERY_MAX: Duration = Duration::from_millis(255);

/// Bytes of an echo's payload.
pub(super) const ECHO_LEN: usize = 28;
const WANTS_ECHOES: u8 = 1;

/// How one datagram gets to the other end, or came from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// By itself.
    #[default]
    Direct,
    /// Over another link, which has this number.
    Via(u16),
}

/// How datagrams leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// This way.
    pub first: Way,
    /// And this one.
    pub second: Option<Way>,
}

/// What the direct path is like, of echoes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Echoes that came.
    pub came: u64,
    /// That did not.
    pub lost: u64,
    /// Round trip in microseconds; 0 while unknown.
    pub rtt_us: u32,
    /// Interarrival jitter in microseconds.
    pub jitter_us: u32,
}

/// Which echoes came of the last 64: they have counters of their own, of which few are on their way at once.
#[derive(Default)]
pub(super) struct EchoWindow {
    /// One past the highest that came, and a bit for each of those below it, the highest lowest.
    next: u64,
    bits: u64,
}

impl EchoWindow {
    /// Whether `counter` may still come.
    pub(super) fn check(&self, counter: u64) -> Result<(), RelayDrop> {
        if !(ECHO_COUNTERS..ECHO_COUNTERS_END).contains(&counter) {
            return Err(RelayDrop::Malformed);
        }
        match self.next.checked_sub(counter + 1) {
            None => Ok(()),
            Some(behind) if behind >= 64 => Err(RelayDrop::TooOld),
            Some(behind) if self.bits >> behind & 1 == 1 => Err(RelayDrop::Replayed),
            Some(_) => Ok(()),
        }
    }

    /// Remembers `counter`, which passed [`Self::check`]; called only after authentication.
    pub(super) fn insert(&mut self, counter: u64) {
        let ahead = (counter + 1).saturating_sub(self.next);
        if ahead > 0 {
            self.bits = u32::try_from(ahead).ok().and_then(|ahead| self.bits.checked_shl(ahead)).unwrap_or(0);
            self.next = counter + 1;
        }
        self.bits |= 1 << (self.next - 1 - counter);
    }
}

/// What an echo says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Echo {
    /// By which of its writer's ways it went.
    pub(super) way: u8,
    /// A bit for each of the reader's ways by which something comes.
    pub(super) hears: u8,
    /// The reader is to send some, too.
    pub(super) wants: bool,
    /// The next one comes after this, in milliseconds.
    pub(super) every_ms: u8,
    /// How many went by this way before.
    pub(super) sequence: u32,
    /// The writer's clock in microseconds.
    pub(super) now_us: u64,
    /// The reader's clock in its last echo by the way of the same number, and how long that is ago.
    pub(super) echo_us: u64,
    pub(super) held_us: u32,
}

impl Echo {
    pub(super) fn bytes(&self) -> [u8; ECHO_LEN] {
        let mut bytes = [0; ECHO_LEN];
        let wants = if self.wants { WANTS_ECHOES } else { 0 };
        bytes[..4].copy_from_slice(&[self.way, self.hears, wants, self.every_ms]);
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.now_us.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.echo_us.to_le_bytes());
        bytes[24..].copy_from_slice(&self.held_us.to_le_bytes());
        bytes
    }

    /// Fails with [`RelayDrop::BadPayload`] when it is shorter, by a way that there cannot be, or not by the one that it came by. A later
    /// version may write more behind it.
    pub(super) fn read(payload: &[u8], by: Way) -> Result<Echo, RelayDrop> {
        let bytes: &[u8; ECHO_LEN] = payload.first_chunk().ok_or(RelayDrop::BadPayload)?;
        let [way, hears, wants, every_ms, s0, s1, s2, s3, rest @ ..] = *bytes;
        if usize::from(way) >= WAYS_MAX || (usize::from(way) == DIRECT) != (by == Way::Direct) {
            return Err(RelayDrop::BadPayload);
        }
        let u64_at = |at: usize| rest[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Echo {
            way,
            hears,
            wants: wants & WANTS_ECHOES != 0,
            every_ms,
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
            now_us: u64_at(0),
            echo_us: u64_at(8),
            held_us: rest[16..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)),
        })
    }
}

/// One of our ways.
#[derive(Clone, Copy, Default)]
struct Ours {
    way: Way,
    sequence: u32,
    sent_at: Option<Time>,
    next_at: Time,
    /// Until then what the other end says of it may be of the way that was in its place before.
    new_until: Time,
    /// The other end has heard something by it.
    was_heard: bool,
}

/// One of the other end's.
#[derive(Clone, Copy)]
struct Theirs {
    /// How the last echo by it came.
    by: Way,
    heard_at: Option<Time>,
    every: Duration,
    /// The numbers of the first echo and the next one.
    base: u32,
    next: u32,
    came: u64,
    their_us: u64,
    their_at: Time,
    jitter: Duration,
    rtt: Option<Duration>,
}

impl Default for Theirs {
    fn default() -> Theirs {
        let (by, heard_at, base, next, came, their_us, their_at, jitter, rtt) = Default::default();
        Theirs { by, heard_at, every: EVERY, base, next, came, their_us, their_at, jitter, rtt }
    }
}

impl Theirs {
    fn silent_after(&self) -> Duration {
        self.every * MISSED_MAX + SLACK
    }

    /// When it is silent, if nothing more comes by it.
    fn silent_at(&self) -> Option<Time> {
        self.heard_at.map(|at| at + self.silent_after())
    }

    fn is_heard(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| now < at)
    }
}

/// What the other end said last of our ways.
#[derive(Clone, Copy)]
struct Report {
    /// It is of now, until then.
    is_new: bool,
    until: Time,
    their_us: u64,
    hears: u8,
}

/// See the module.
pub(super) struct Evidence {
    ours: [Ours; WAYS_MAX],
    theirs: [Theirs; WAYS_MAX],
    /// The way, and the backup, by their places.
    way: usize,
    backup: Option<usize>,
    report: Option<Report>,
    /// The way has failed, and since when it lives again.
    failed: bool,
    lives_since: Option<Time>,
    /// What was told last of theirs.
    told: u8,
    /// The other end wants echoes, until then.
    is_wanted: bool,
    wanted_until: Time,
}

impl Evidence {
    pub(super) fn new() -> Evidence {
        Evidence {
            ours: [Ours::default(); WAYS_MAX],
            theirs: [Theirs::default(); WAYS_MAX],
            way: DIRECT,
            backup: None,
            report: None,
            failed: false,
            lives_since: None,
            told: 0,
            is_wanted: false,
            wanted_until: Time::ZERO,
        }
    }

    /// Datagrams are to go this way, and by the backup where it fails.
    pub(super) fn route(&mut self, now: Time, way: Way, backup: Option<Way>) {
        let before = (self.way, self.backup);
        let (kept, at) = (self.ours, self.place_of(way, [None, backup]));
        self.way = self.take(now, at, way);
        let backup = backup.filter(|backup| *backup != way);
        let at = backup.map(|backup| self.place_of(backup, [Some(way), None]));
        self.backup = at.zip(backup).map(|(at, backup)| self.take(now, at, backup));
        if before.0 != self.way || kept[self.way].way != self.ours[self.way].way {
            (self.failed, self.lives_since) = (false, None);
        }
    }

    /// The place that a way has, or the first that neither of these has.
    fn place_of(&self, way: Way, others: [Option<Way>; 2]) -> usize {
        if way == Way::Direct {
            return DIRECT;
        }
        let has = |at: &usize| self.ours[*at].way == way;
        let is_unused = |at: &usize| self.ours[*at].sent_at.is_none() && !others.contains(&Some(self.ours[*at].way));
        let is_free = |at: &usize| !others.contains(&Some(self.ours[*at].way));
        (1..WAYS_MAX).find(has).or_else(|| (1..WAYS_MAX).find(is_unused)).or_else(|| (1..WAYS_MAX).find(is_free)).unwrap_or(1)
    }

    /// A way over another carrier than before in its place begins anew; its numbers go on, for the other end has counted them.
    fn take(&mut self, now: Time, at: usize, way: Way) -> usize {
        if self.ours[at].way != way {
            let Ours { sequence, sent_at, .. } = self.ours[at];
            let new_until = sent_at.map_or(Time::ZERO, |_| now + DOUBT);
            self.ours[at] = Ours { way, sequence, sent_at, next_at: Time::ZERO, new_until, was_heard: false };
        }
        at
    }

    /// Echoes go at all.
    pub(super) fn is_probed(&self) -> bool {
        self.has_route() || self.is_wanted
    }

    /// The places whose ways get echoes.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let (has_route, is_probed) = (self.has_route(), self.is_probed());
        let (way, backup) = (self.way, self.backup);
        (0..WAYS_MAX).filter(move |at| is_probed && *at == DIRECT || has_route && (*at == way || Some(*at) == backup))
    }

    fn has_route(&self) -> bool {
        self.way != DIRECT || self.backup.is_some()
    }

    /// Something authentic and new came by a way; an echo apart.
    #[inline]
    pub(super) fn heard(&mut self, now: Time, by: Way) {
        for (at, theirs) in self.theirs.iter_mut().enumerate() {
            if theirs.by == by && (theirs.heard_at.is_some() || at == DIRECT) && (at == DIRECT) == (by == Way::Direct) {
                theirs.heard_at = Some(now);
            }
        }
    }

    /// An echo came.
    pub(super) fn take_echo(&mut self, now: Time, by: Way, echo: &Echo) {
        let theirs = &mut self.theirs[usize::from(echo.way)];
        let every = Duration::from_millis(echo.every_ms.into()).clamp(PAUSE, EVERY_MAX);
        if theirs.heard_at.is_none() || theirs.came == 0 {
            (theirs.base, theirs.next) = (echo.sequence, echo.sequence);
        }
        (theirs.by, theirs.heard_at, theirs.every) = (by, Some(now), every);
        theirs.came += 1;
        // Whatever is far ahead is lost; what is behind was overtaken.
        if echo.sequence.wrapping_sub(theirs.next) < u32::MAX / 2 {
            theirs.next = echo.sequence.wrapping_add(1);
        }
        if echo.now_us > theirs.their_us {
            if theirs.their_us != 0 {
                let there = Duration::from_micros(echo.now_us - theirs.their_us);
                let transit = now.since(theirs.their_at).abs_diff(there).min(RTT_MAX);
                theirs.jitter = (theirs.jitter * 15 + transit) / 16;
            }
            (theirs.their_us, theirs.their_at) = (echo.now_us, now);
            let rtt = now.as_micros().checked_sub(echo.echo_us).and_then(|since| since.checked_sub(echo.held_us.into()));
            if let Some(rtt) = rtt.map(Duration::from_micros).filter(|rtt| echo.echo_us != 0 && *rtt <= RTT_MAX) {
                theirs.rtt = Some(theirs.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
            }
        }
        if echo.wants {
            (self.is_wanted, self.wanted_until) = (true, now + WANTED);
        }
        // By the longer of two ways comes what was said before.
        if self.report.is_none_or(|report| report.their_us < echo.now_us) {
            self.report = Some(Report { is_new: true, until: now + every * MISSED_MAX + SLACK, their_us: echo.now_us, hears: echo.hears });
            for (at, ours) in self.ours.iter_mut().enumerate() {
                ours.was_heard |= echo.hears >> at & 1 == 1 && now >= ours.new_until;
            }
        }
    }

    /// What comes by theirs, a bit for each.
    fn hears(&self, now: Time) -> u8 {
        self.theirs.iter().enumerate().map(|(at, theirs)| u8::from(theirs.is_heard(now)) << at).sum()
    }

    /// How datagrams leave now.
    pub(super) fn choose(&mut self, now: Time) -> Ways {
        let way = self.ours[self.way].way;
        let only = |way: Way| Ways { first: way, second: None };
        let (Some(backup_at), Some(report)) = (self.backup, self.report) else { return only(way) };
        let backup = self.ours[backup_at].way;
        let both = Ways { first: way, second: Some(backup) };
        let silent_for = self.theirs[DIRECT].silent_at().filter(|at| *at <= now).map(|at| now.since(at));
        // It may be as silent in the other direction, and nobody has told yet.
        let is_in_doubt = self.way == DIRECT && silent_for.is_some_and(|silent| silent < DOUBT);
        if !report.is_new {
            // Nothing comes, so nobody can tell what arrives.
            self.lives_since = None;
            return both;
        }
        let is_heard = |at: usize| report.hears >> at & 1 == 1 && now >= self.ours[at].new_until;
        if is_heard(self.way) {
            let since = *self.lives_since.get_or_insert(now);
            self.failed &= now.since(since) < PROVEN;
            match (self.failed, is_in_doubt) {
                (false, false) => only(way),
                (true, _) if is_heard(backup_at) => only(backup),
                _ => both,
            }
        } else {
            // One that was never heard is new: it is taken with the first echo that comes by it.
            self.failed |= self.ours[self.way].was_heard;
            self.lives_since = None;
            if is_heard(backup_at) { only(backup) } else { both }
        }
    }

    /// Time passed: what is silent now is told at once.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.is_wanted &= now < self.wanted_until;
        if let Some(report) = &mut self.report {
            report.is_new &= now < report.until;
        }
        let hears = self.hears(now);
        if std::mem::replace(&mut self.told, hears) != hears {
            self.hurry(now);
        }
    }

    /// The next echo is due by each way, as what leaves from now on is not to wait for what is known of them.
    pub(super) fn hurry(&mut self, now: Time) {
        for ours in &mut self.ours {
            ours.next_at = ours.next_at.min(ours.sent_at.map_or(now, |at| at + PAUSE));
        }
    }

    /// The next echo that is due, and by which way: one more comes after `every`.
    pub(super) fn poll(&mut self, now: Time, every: Duration) -> Option<(Way, Echo)> {
        let at = self.places().find(|at| self.ours[*at].next_at <= now)?;
        let (hears, wants, theirs) = (self.hears(now), self.has_route(), self.theirs[at]);
        self.told = hears;
        let ours = &mut self.ours[at];
        let echo = Echo {
            way: at as u8,
            hears,
            wants,
            every_ms: every.as_millis() as u8,
            sequence: ours.sequence,
            now_us: now.as_micros().max(1),
            echo_us: theirs.their_us,
            held_us: now.since(theirs.their_at).as_micros().try_into().unwrap_or(u32::MAX),
        };
        ours.sequence = ours.sequence.wrapping_add(1);
        (ours.sent_at, ours.next_at) = (Some(now), now + every);
        Some((ours.way, echo))
    }

    /// When [`Self::handle_timeout`] or [`Self::poll`] has something.
    pub(super) fn timeout(&self) -> Time {
        let echoes = self.places().map(|at| self.ours[at].next_at);
        let is_told = |at: &usize| self.told >> at & 1 == 1;
        let silent = (0..WAYS_MAX).filter(is_told).filter_map(|at| self.theirs[at].silent_at());
        let report = self.report.filter(|report| report.is_new).map(|report| report.until);
        let wanted = self.is_wanted.then_some(self.wanted_until);
        echoes.chain(silent).chain(report).chain(wanted).fold(NEVER, Time::min)
    }

    /// The way in a place.
    pub(super) fn way_at(&self, at: usize) -> Way {
        self.ours[at].way
    }

    /// The place of a way that is used; the direct one's where it is not.
    pub(super) fn place(&self, way: Way) -> usize {
        self.ours.iter().position(|ours| ours.way == way).unwrap_or(DIRECT)
    }

    pub(super) fn direct(&self) -> PathStats {
        let Theirs { came, base, next, jitter, rtt, .. } = self.theirs[DIRECT];
        PathStats {
            came,
            lost: u64::from(next.wrapping_sub(base)).saturating_sub(came),
            rtt_us: rtt.map_or(0, |rtt| rtt.as_micros().max(1) as u32),
            jitter_us: jitter.as_micros() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: Way = Way::Via(7);
    const B: Way = Way::Via(9);

    fn only(way: Way) -> Ways {
        Ways { first: way, second: None }
    }

    fn both(first: Way, second: Way) -> Ways {
        Ways { first, second: Some(second) }
    }

    /// Two ends with a way to each other of 40 ms, and others of 50 ms, in fake time and by seed.
    struct Rig {
        now: Time,
        ends: [Evidence; 2],
        /// When it comes, to which end, by which way.
        flying: VecDeque<(Time, usize, Way, Echo)>,
        /// Nothing that this end sends by this way comes.
        cut: Vec<(usize, Way)>,
        /// Of each hundred so many are lost.
        lost: u64,
        chance: u64,
        /// Between two echoes.
        every: Duration,
        /// How each end sends, and since when.
        ways: [Vec<(u64, Ways)>; 2],
    }

    impl Rig {
        fn new(way: Way, backup: Option<Way>) -> Rig {
            let mut ends = [Evidence::new(), Evidence::new()];
            ends.iter_mut().for_each(|end| end.route(Time::from_millis(5_000), way, backup));
            let (flying, cut, ways) = (VecDeque::new(), Vec::new(), [Vec::new(), Vec::new()]);
            let mut rig = Rig { now: Time::from_millis(5_000), ends, flying, cut, lost: 0, chance: 1, every: 50 * MS, ways };
            rig.run(2_000);
            rig.ways.iter_mut().for_each(Vec::clear);
            rig
        }

        fn is_lost(&mut self) -> bool {
            self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.chance >> 33) % 100 < self.lost
        }

        fn run(&mut self, ms: u64) {
            for _ in 0..ms {
                self.now = self.now + MS;
                let now = self.now;
                let due: Vec<_> = self.flying.iter().filter(|(at, ..)| *at <= now).copied().collect();
                self.flying.retain(|(at, ..)| *at > now);
                for (_, to, by, echo) in due {
                    let read = Echo::read(&echo.bytes(), by).expect("it is as it was written");
                    assert_eq!(read, echo);
                    self.ends[to].take_echo(now, by, &read);
                }
                for end in 0..2 {
                    self.ends[end].handle_timeout(now);
                    let ways = self.ends[end].choose(now);
                    if self.ways[end].last().is_none_or(|(_, before)| *before != ways) {
                        self.ways[end].push((now.as_millis(), ways));
                    }
                    while let Some((way, echo)) = self.ends[end].poll(now, self.every) {
                        let is_lost = self.is_lost();
                        if !self.cut.contains(&(end, way)) && !is_lost {
                            let delay = if way == Way::Direct { 40 * MS } else { 50 * MS };
                            self.flying.push_back((now + delay, 1 - end, way, echo));
                        }
                    }
                    assert!(self.ends[end].timeout() > now, "it does not spin");
                }
            }
        }

        /// How long after `from` an end sent so for the first time.
        fn after(&self, end: usize, from: Time, ways: impl Fn(&Ways) -> bool) -> u64 {
            let at = self.ways[end].iter().find(|(at, of)| *at >= from.as_millis() && ways(of));
            at.unwrap_or_else(|| panic!("end {end}: {:?}", self.ways[end])).0 - from.as_millis()
        }
    }

    #[test]
    fn a_link_that_rests_knows_of_a_cut_within_a_second_and_has_echoes_at_once_when_it_wakes() {
        for phase in (0..250).step_by(10) {
            let mut rig = Rig::new(Way::Direct, Some(A));
            rig.every = 250 * MS;
            rig.run(2_000 + phase);
            let cut_at = rig.now;
            rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
            rig.run(2_000);
            for end in 0..2 {
                let after = rig.after(end, cut_at, |ways| ways.second == Some(A) || ways.first == A);
                assert!((520 + 40..=1_000).contains(&after), "phase {phase}, end {end}: {after} ms: {:?}", rig.ways[end]);
            }
            rig.every = 50 * MS;
            rig.ends[0].hurry(rig.now);
            rig.flying.clear();
            rig.run(PAUSE.as_millis() as u64);
            let from_first = rig.flying.iter().filter(|(_, to, ..)| *to == 1).count();
            assert_eq!(from_first, 1, "phase {phase}: by the way that is not cut");
        }
    }

    #[test]
    fn a_way_that_is_cut_in_both_directions_is_left_after_three_missed_echoes() {
        for phase in 0..50 {
            let mut rig = Rig::new(Way::Direct, Some(A));
            rig.run(phase);
            let cut_at = rig.now;
            rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
            rig.run(2_000);
            for end in 0..2 {
                let after = rig.after(end, cut_at, |ways| ways.second == Some(A) || ways.first == A);
                assert!((120 + 40..=200 + 40).contains(&after), "phase {phase}, end {end}: {after} ms: {:?}", rig.ways[end]);
                assert_eq!(rig.ways[end].last().map(|(_, ways)| *ways), Some(only(A)));
            }
        }
    }

    #[test]
    fn a_way_that_is_cut_in_one_direction_is_left_in_that_one_alone() {
        for phase in 0..50 {
            let mut rig = Rig::new(Way::Direct, Some(A));
            rig.run(phase);
            let cut_at = rig.now;
            rig.cut = vec![(0, Way::Direct)];
            rig.run(2_000);
            // The other end finds out, and says so by the way that is left.
            let after = rig.after(0, cut_at, |ways| ways.second == Some(A) || ways.first == A);
            assert!(after <= 40 + 200 + 40, "phase {phase}: {after} ms: {:?}", rig.ways[0]);
            assert_eq!(rig.ways[0].last().map(|(_, ways)| *ways), Some(only(A)));
            // Which hears nothing directly, so it was in doubt for a moment.
            assert_eq!(rig.ways[1].last().map(|(_, ways)| *ways), Some(only(Way::Direct)), "{:?}", rig.ways[1]);
        }
    }

    #[test]
    fn what_lives_again_is_taken_again_after_a_second_and_what_flaps_is_not() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
        rig.run(2_000);
        let healed_at = rig.now;
        rig.cut.clear();
        rig.run(2_000);
        for end in 0..2 {
            let after = rig.after(end, healed_at, |ways| *ways == only(Way::Direct));
            assert!((1_000..1_200).contains(&after), "{after} ms: {:?}", rig.ways[end]);
        }
        rig.ways.iter_mut().for_each(Vec::clear);
        for _ in 0..20 {
            rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
            rig.run(300);
            rig.cut.clear();
            rig.run(700);
        }
        assert!(rig.ways.iter().all(|ways| ways.len() <= 3), "{:?}", rig.ways);
    }

    #[test]
    fn by_two_ways_is_sent_while_nothing_tells_which_lives() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        rig.cut = vec![(0, Way::Direct), (1, Way::Direct), (0, A), (1, A)];
        rig.run(2_000);
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(both(Way::Direct, A))), "{:?}", rig.ways);
        // One way, one direction: the other one hears that, and cannot say so.
        rig.cut.retain(|cut| *cut != (0, A));
        rig.run(2_000);
        assert_eq!(rig.ways[1].last().map(|(_, ways)| *ways), Some(both(Way::Direct, A)), "of its own ways it knows that none arrives");
        rig.cut.clear();
        rig.run(2_500);
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(only(Way::Direct))), "{:?}", rig.ways);
    }

    #[test]
    fn of_two_ways_over_others_the_one_that_lives_is_taken_and_the_direct_path_is_still_measured() {
        let mut rig = Rig::new(A, Some(B));
        rig.run(1_000);
        let rtt = rig.ends[0].direct().rtt_us;
        assert!((80_000..85_000).contains(&rtt), "{rtt}");
        rig.cut = vec![(0, A), (1, A)];
        rig.run(1_000);
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(only(B))), "{:?}", rig.ways);
        rig.cut = vec![(1, Way::Direct)];
        rig.run(100);
        let before = rig.ends[0].direct();
        rig.run(5_000);
        let after = rig.ends[0].direct();
        assert_eq!((after.came, after.lost), (before.came, before.lost), "nothing came to tell what was lost");
        rig.cut.clear();
        rig.run(1_000);
        let after = rig.ends[0].direct();
        assert!(after.lost >= 99 && after.came > before.came, "{after:?}");
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(only(A))), "{:?}", rig.ways);
    }

    #[test]
    fn a_way_that_is_new_is_taken_with_the_first_that_comes_by_it() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        for end in &mut rig.ends {
            end.route(rig.now, B, Some(Way::Direct));
        }
        rig.cut = vec![(0, B), (1, B)];
        rig.run(1_000);
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(only(Way::Direct))), "{:?}", rig.ways);
        let opened_at = rig.now;
        rig.cut.clear();
        rig.run(500);
        assert!(rig.after(0, opened_at, |ways| *ways == only(B)) <= 50 + 50 + 60);
        // In a place that another one had before it, what is said of that one is not believed of it.
        for end in &mut rig.ends {
            end.route(rig.now, B, Some(A));
        }
        rig.run(1_000);
        for end in &mut rig.ends {
            end.route(rig.now, Way::Via(11), Some(B));
        }
        rig.cut = vec![(0, Way::Via(11)), (1, Way::Via(11))];
        rig.ways.iter_mut().for_each(Vec::clear);
        rig.run(2_000);
        assert!(rig.ways.iter().all(|ways| ways.iter().all(|(_, ways)| *ways == only(B))), "{:?}", rig.ways);
    }

    #[test]
    fn some_loss_is_no_silence() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        rig.lost = 5;
        // With what else comes by it: 20 datagrams a second.
        for _ in 0..1_200 {
            rig.run(50);
            for end in 0..2 {
                if !rig.is_lost() {
                    let now = rig.now;
                    rig.ends[end].heard(now, Way::Direct);
                }
            }
        }
        assert!(rig.ways.iter().all(|ways| ways.len() <= 3), "a minute: {:?}", rig.ways);
    }

    #[test]
    fn a_link_without_ways_answers_echoes_while_they_are_wanted_and_is_quiet_else() {
        let mut rig = Rig::new(Way::Direct, None);
        assert!(rig.flying.is_empty());
        let now = rig.now;
        rig.ends[0].route(now, Way::Direct, Some(A));
        rig.run(1_000);
        assert!(rig.flying.iter().any(|(_, to, ..)| *to == 0));
        assert!(rig.ends[0].direct().rtt_us > 0);
        let now = rig.now;
        rig.ends[0].route(now, Way::Direct, None);
        rig.run(3_000);
        assert!(rig.flying.is_empty());
        assert_eq!(rig.ends[0].timeout(), NEVER);
    }

    #[test]
    fn an_echo_counts_once_and_by_the_way_that_it_names() {
        let mut window = EchoWindow::default();
        for (counter, expected) in [
            (3, Err(RelayDrop::Malformed)),
            (ECHO_COUNTERS_END, Err(RelayDrop::Malformed)),
            (ECHO_COUNTERS + 5, Ok(())),
            (ECHO_COUNTERS + 5, Err(RelayDrop::Replayed)),
            (ECHO_COUNTERS + 4, Ok(())),
            (ECHO_COUNTERS + 70, Ok(())),
            (ECHO_COUNTERS + 7, Ok(())),
            (ECHO_COUNTERS + 7, Err(RelayDrop::Replayed)),
            (ECHO_COUNTERS + 6, Err(RelayDrop::TooOld)),
            (ECHO_COUNTERS + 1_000, Ok(())),
            (ECHO_COUNTERS + 70, Err(RelayDrop::TooOld)),
            (ECHO_COUNTERS_END - 1, Ok(())),
        ] {
            let checked = window.check(counter);
            assert_eq!(checked, expected, "{counter:#x}");
            if checked.is_ok() {
                window.insert(counter);
            }
        }
        let echo = Echo { way: 1, ..Echo::default() };
        assert_eq!(Echo::read(&echo.bytes(), Way::Direct), Err(RelayDrop::BadPayload), "what went over another did not come by itself");
        assert_eq!(Echo::read(&Echo { way: 0, ..echo }.bytes(), A), Err(RelayDrop::BadPayload));
        assert_eq!(Echo::read(&Echo { way: 3, ..echo }.bytes(), A), Err(RelayDrop::BadPayload));
        assert_eq!(Echo::read(&echo.bytes()[..ECHO_LEN - 1], A), Err(RelayDrop::BadPayload));
    }

    #[test]
    fn whatever_an_authentic_liar_says_nothing_spins_and_nothing_panics() {
        let mut chance = 1_u64;
        let mut draw = || {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chance >> 16
        };
        let mut end = Evidence::new();
        let mut now = Time::from_millis(1);
        end.route(now, Way::Direct, Some(A));
        for _ in 0..200_000 {
            now = now + Duration::from_micros(draw() % 20_000);
            let bytes: [u8; ECHO_LEN] = std::array::from_fn(|at| match draw() % 4 {
                0 => 0,
                1 => 0xff,
                _ if at == 0 => (draw() % 3) as u8,
                _ => draw() as u8,
            });
            let by = [Way::Direct, A, B][(draw() % 3) as usize];
            if let Ok(echo) = Echo::read(&bytes, by) {
                end.take_echo(now, by, &echo);
            }
            if draw() % 100 == 0 {
                end.route(now, [Way::Direct, A, B][(draw() % 3) as usize], Some([Way::Direct, A, B][(draw() % 3) as usize]));
            }
            end.handle_timeout(now);
            let Ways { first, second } = end.choose(now);
            assert_ne!(Some(first), second);
            let echoes = std::iter::from_fn(|| end.poll(now, [50, 250][draw() as usize % 2] * MS)).count();
            assert!(echoes <= WAYS_MAX && end.timeout() > now);
            assert!(u64::from(end.direct().rtt_us) <= RTT_MAX.as_micros() as u64);
        }
    }
}
