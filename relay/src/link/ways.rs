//! The ways of a link, and which of them live: small datagrams that go by one way alone tell it, and what comes by it.
//!
//! ```text
//! echo by each way, and media or feedback ---> the other end: which of our ways bring something, which should and do not
//! by those that are in use                                   |
//!        ^                                                   |
//!        +-- its echoes say so, by each way -----------------+--> choose: the way | both, in doubt | the backup
//! ```
//! Who sends says by which ways all goes, and how long nothing may come by them at most: after that there is doubt, and what is sent goes by two ways
//! until it is known which one lives. After three times so long a way is silent. Both are told at once, by all ways. A way that failed is taken
//! again when it has lived for a second. Echoes have counters of their own, so that what is lost of them by a way that is not used is no loss of the link.

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
/// A way is silent when this many in a row did not come of what was to, ...
const MISSED_MAX: u32 = 3;
/// ... and this is over: a worker turns each 10 ms.
const SLACK: Duration = Duration::from_millis(20);
/// A way by which all goes is in doubt when the first did not come, and this is over; or four times the jitter, up to the latter.
const DOUBT_SLACK: (Duration, Duration) = (SLACK, Duration::from_millis(100));
/// With longer beats there is no media that could be late.
const DOUBT_BEAT: Duration = Duration::from_millis(50);
/// Who hears nothing by a way sends by two for so long. Then the other end has told whether it hears.
const DOUBT: Duration = Duration::from_millis(500);
/// By a way that loses much two are used for so long, until routes have been chosen anew; not more often than so.
const LOSSY: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(15));
/// Echoes go more often until so long after something was in doubt or silent, or is no longer.
const UNEASY: Duration = Duration::from_secs(1);
/// What comes by two ways is not equally long on its way.
const GRACE: Duration = Duration::from_millis(50);
/// A way that failed has to live for so long before it is taken again.
const PROVEN: Duration = Duration::from_secs(1);
/// The other end wants echoes until so long after it said so last.
const WANTED: Duration = Duration::from_secs(2);
/// A round trip beyond it is a lie.
const RTT_MAX: Duration = Duration::from_secs(10);
/// Intervals travel in so many milliseconds, ...
const UNIT_MS: u64 = 10;
/// ... and are believed up to this.
const EVERY_MAX: Duration = Duration::from_millis(255 * UNIT_MS);

/// Bytes of an echo's payload.
pub(super) const ECHO_LEN: usize = 29;
const WANTS_ECHOES: u8 = 1;
/// A bit for each way.
const PLACES: u8 = (1 << WAYS_MAX) - 1;

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

/// How often something goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two echoes by the direct way: they measure the path.
    pub(super) direct: Duration,
    /// By others.
    pub(super) beside: Duration,
    /// By each, while it is not known which of them live.
    pub(super) uneasy: Duration,
    /// Between two datagrams of any kind by the ways in use, at most, also in the next half second.
    pub(super) beat: Duration,
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
    /// A bit for each by which something should have come.
    pub(super) doubts: u8,
    /// A bit for each of the writer's ways by which all that it sends goes.
    pub(super) uses: u8,
    /// The reader is to send some, too.
    pub(super) wants: bool,
    /// The next one by this way comes after this, ...
    pub(super) every: Duration,
    /// ... and by the ways in use something within this time again, in units of [`UNIT_MS`].
    pub(super) beat: Duration,
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
        let units = |of: Duration| (of.as_millis() as u64 / UNIT_MS).min(255) as u8;
        let wants = if self.wants { WANTS_ECHOES } else { 0 };
        let mut bytes = [0; ECHO_LEN];
        bytes[..4].copy_from_slice(&[self.way, self.hears | self.doubts << WAYS_MAX, wants | self.uses << 1, units(self.every)]);
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.now_us.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.echo_us.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.held_us.to_le_bytes());
        bytes[28] = units(self.beat);
        bytes
    }

    /// Fails with [`RelayDrop::BadPayload`] when it is shorter, by a way that there cannot be, or not by the one that it came by. A later
    /// version may write more behind it.
    pub(super) fn read(payload: &[u8], by: Way) -> Result<Echo, RelayDrop> {
        let bytes: &[u8; ECHO_LEN] = payload.first_chunk().ok_or(RelayDrop::BadPayload)?;
        let [way, heard, used, every, s0, s1, s2, s3, rest @ .., beat] = *bytes;
        if usize::from(way) >= WAYS_MAX || (usize::from(way) == DIRECT) != (by == Way::Direct) {
            return Err(RelayDrop::BadPayload);
        }
        let u64_at = |at: usize| rest[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let interval = |units: u8| Duration::from_millis(u64::from(units) * UNIT_MS).clamp(PAUSE, EVERY_MAX);
        Ok(Echo {
            way,
            hears: heard & PLACES,
            doubts: heard >> WAYS_MAX & PLACES,
            uses: used >> 1 & PLACES,
            wants: used & WANTS_ECHOES != 0,
            every: interval(every),
            beat: interval(beat),
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
    /// What the last one told of the next.
    every: Duration,
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
    /// Between two echoes by it.
    every: Duration,
    /// All that they send goes by it, too.
    is_used: bool,
    /// Silence does not count before.
    since: Time,
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
        let (by, heard_at, is_used, since, base, next, came, their_us, their_at, jitter, rtt) = Default::default();
        Theirs { by, heard_at, every: EVERY, is_used, since, base, next, came, their_us, their_at, jitter, rtt }
    }
}

impl Theirs {
    /// Nothing comes by it for so long at most.
    fn beat(&self, beat: Duration) -> Duration {
        if self.is_used { self.every.min(beat) } else { self.every }
    }

    fn heard_since(&self) -> Option<Time> {
        self.heard_at.map(|at| at.max(self.since))
    }

    /// When it is silent, if nothing more comes by it.
    fn silent_at(&self, beat: Duration) -> Option<Time> {
        self.heard_since().map(|at| at + self.beat(beat) * MISSED_MAX + SLACK)
    }

    /// When it is in doubt, if nothing more comes by it.
    fn doubted_at(&self, beat: Duration) -> Option<Time> {
        let is_watched = self.is_used && beat <= DOUBT_BEAT;
        let slack = (4 * self.jitter).clamp(DOUBT_SLACK.0, DOUBT_SLACK.1);
        self.heard_since().filter(|_| is_watched).map(|at| at + self.beat(beat) + slack)
    }
}

/// What the other end said last of our ways.
#[derive(Clone, Copy)]
struct Report {
    /// It is of now, until then.
    is_new: bool,
    until: Time,
    at: Time,
    their_us: u64,
    hears: u8,
    doubts: u8,
}

/// What is told at once when it is another.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    hears: u8,
    doubts: u8,
    uses: u8,
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
    /// What was told last.
    told: Told,
    /// The ways that are in use, a bit for each, and how often something comes by those of the other end.
    uses: u8,
    their_beat: Duration,
    /// Something of which way lives has changed.
    uneasy_until: Time,
    /// When time was looked at last.
    looked_at: Time,
    /// See [`Self::misses`].
    misses: bool,
    /// The way loses much, and since when two are used for that.
    lossy_since: Option<Time>,
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
            told: Told::default(),
            uses: 0,
            their_beat: EVERY_MAX,
            uneasy_until: Time::ZERO,
            looked_at: Time::ZERO,
            misses: false,
            lossy_since: None,
            is_wanted: false,
            wanted_until: Time::ZERO,
        }
    }

    /// Datagrams are to go this way, and by the backup where it fails.
    pub(super) fn route(&mut self, way: Way, backup: Option<Way>) {
        let before = (self.way, self.backup);
        let (kept, at) = (self.ours, self.place_of(way, [None, backup]));
        self.way = self.take(at, way);
        let backup = backup.filter(|backup| *backup != way);
        let at = backup.map(|backup| self.place_of(backup, [Some(way), None]));
        self.backup = at.zip(backup).map(|(at, backup)| self.take(at, backup));
        if before.0 != self.way || kept[self.way].way != self.ours[self.way].way {
            (self.failed, self.lives_since, self.lossy_since) = (false, None, None);
        }
    }

    /// The place that a way has, or the first that neither of these has.
    fn place_of(&self, way: Way, others: [Option<Way>; 2]) -> usize {
        if way == Way::Direct {
            return DIRECT;
        }
        let has = |at: &usize| self.ours[*at].way == way;
        let is_unused = |at: &usize| self.ours[*at].sent_at.is_none() && self.ours[*at].way == Way::Direct;
        let is_free = |at: &usize| !others.contains(&Some(self.ours[*at].way));
        let is_idle = |at: &usize| is_free(at) && self.uses >> at & 1 == 0;
        let find = |is_so: &dyn Fn(&usize) -> bool| (1..WAYS_MAX).find(is_so);
        find(&has).or_else(|| find(&is_unused)).or_else(|| find(&is_idle)).or_else(|| find(&is_free)).unwrap_or(1)
    }

    /// A way over another carrier than before in its place begins anew; its numbers go on, for the other end has counted them.
    fn take(&mut self, at: usize, way: Way) -> usize {
        if self.ours[at].way != way {
            let Ours { sequence, sent_at, every, .. } = self.ours[at];
            let new_until = sent_at.map_or(Time::ZERO, |at| at + every * MISSED_MAX + SLACK + DOUBT);
            self.ours[at] = Ours { way, sequence, sent_at, every, next_at: Time::ZERO, new_until, was_heard: false };
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
        if self.told.doubts != 0 {
            self.tell(now);
        }
    }

    /// An echo came.
    pub(super) fn take_echo(&mut self, now: Time, by: Way, echo: &Echo) {
        let theirs = &mut self.theirs[usize::from(echo.way)];
        if theirs.heard_at.is_none() || theirs.came == 0 {
            (theirs.base, theirs.next) = (echo.sequence, echo.sequence);
        }
        (theirs.by, theirs.heard_at, theirs.every) = (by, Some(now), echo.every);
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
            self.take_report(now, echo);
        }
    }

    fn take_report(&mut self, now: Time, echo: &Echo) {
        let Echo { hears, doubts, uses, every, beat, now_us: their_us, .. } = *echo;
        for (at, theirs) in self.theirs.iter_mut().enumerate() {
            let before = theirs.beat(self.their_beat);
            theirs.is_used = uses >> at & 1 == 1;
            if theirs.beat(beat) < before {
                theirs.since = now + GRACE;
            }
        }
        self.their_beat = beat;
        if self.report.is_some_and(|report| (report.hears, report.doubts) != (hears, doubts)) {
            self.uneasy_until = now + UNEASY;
        }
        self.report = Some(Report { is_new: true, until: now + every.max(EVERY) * MISSED_MAX + SLACK, at: now, their_us, hears, doubts });
        for (at, ours) in self.ours.iter_mut().enumerate() {
            ours.was_heard |= hears >> at & 1 == 1 && now >= ours.new_until;
        }
    }

    /// A bit for each of theirs of which this is so.
    fn bits(&self, is_so: impl Fn(&Theirs) -> bool) -> u8 {
        self.theirs.iter().enumerate().map(|(at, theirs)| u8::from(is_so(theirs)) << at).sum()
    }

    /// What comes by theirs.
    fn hears(&self, now: Time) -> u8 {
        self.bits(|theirs| theirs.silent_at(self.their_beat).is_some_and(|at| now < at))
    }

    /// What should have come.
    fn doubts(&self, now: Time) -> u8 {
        self.bits(|theirs| theirs.doubted_at(self.their_beat).is_some_and(|at| now >= at))
    }

    /// Two ways are used where the other end misses much, or would be.
    pub(super) fn spares(&self, now: Time) -> bool {
        let may = self.lossy_since.is_none_or(|since| now.since(since) < LOSSY.0 || now.since(since) >= LOSSY.1);
        may && self.backup.is_some() && !self.failed
    }

    /// The other end misses much of what goes by the way. Two are used for a while.
    pub(super) fn lose(&mut self, now: Time) {
        if !self.failed && self.backup.is_some() && self.lossy_since.is_none_or(|since| now.since(since) >= LOSSY.1) {
            self.lossy_since = Some(now);
        }
    }

    /// What was sent by the way lately may not have come.
    pub(super) fn misses(&self) -> bool {
        self.misses
    }

    /// How datagrams leave now.
    pub(super) fn choose(&mut self, now: Time) -> Ways {
        let ways = self.choose_of(now);
        let places = self.places_of(ways);
        self.uses = places.into_iter().flatten().map(|at| 1 << at).sum();
        ways
    }

    fn places_of(&self, ways: Ways) -> [Option<usize>; 2] {
        [Some(self.place(ways.first)), ways.second.map(|way| self.place(way))]
    }

    fn choose_of(&mut self, now: Time) -> Ways {
        let way = self.ours[self.way].way;
        let only = |way: Way| Ways { first: way, second: None };
        self.misses = false;
        let (Some(backup_at), Some(report)) = (self.backup, self.report) else { return only(way) };
        let backup = self.ours[backup_at].way;
        let both = Ways { first: way, second: Some(backup) };
        if !report.is_new {
            // Nothing comes, so nobody can tell what arrives.
            (self.lives_since, self.misses) = (None, true);
            return both;
        }
        let is_heard = |at: usize| report.hears >> at & 1 == 1 && now >= self.ours[at].new_until;
        let is_doubted = |at: usize| report.doubts >> at & 1 == 1;
        let takes_backup = is_heard(backup_at) && !is_doubted(backup_at);
        if is_heard(self.way) {
            let since = *self.lives_since.get_or_insert(now);
            self.failed &= now.since(since) < PROVEN;
            let is_lossy = self.lossy_since.is_some_and(|since| now.since(since) < LOSSY.0);
            let quiet_since = self.quiet_since(now, way, report.at);
            // That the other end is quiet is seldom that it hears nothing, unless it is for long.
            self.misses = match self.failed {
                true => is_doubted(backup_at),
                false => is_doubted(self.way) || quiet_since.is_some_and(|at| now.since(at) >= self.their_beat),
            };
            match (self.failed, is_doubted(self.way) || quiet_since.is_some() || is_lossy) {
                (false, false) => only(way),
                (true, _) if takes_backup => only(backup),
                _ => both,
            }
        } else {
            // One that was never heard is new: it is taken with the first echo that comes by it.
            self.failed |= self.ours[self.way].was_heard;
            (self.lives_since, self.misses) = (None, self.failed);
            if takes_backup { only(backup) } else { both }
        }
    }

    /// Nothing comes where this way leads. It may be so in the other direction, too, until the other end has told that it is not.
    fn quiet_since(&self, now: Time, way: Way, told_at: Time) -> Option<Time> {
        let of_way = self.theirs.iter().enumerate().filter(|(at, theirs)| theirs.by == way && (*at == DIRECT) == (way == Way::Direct));
        let doubted = of_way.filter_map(|(_, theirs)| theirs.doubted_at(self.their_beat)).find(|at| *at <= now);
        doubted.filter(|at| now.since(*at) < DOUBT || told_at < *at)
    }

    /// Time passed: what is silent now, or in doubt, is told at once.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.looked_at = now;
        self.is_wanted &= now < self.wanted_until;
        if let Some(report) = &mut self.report {
            report.is_new &= now < report.until;
        }
        self.tell(now);
    }

    fn to_tell(&self, now: Time) -> Told {
        Told { hears: self.hears(now), doubts: self.doubts(now), uses: self.uses }
    }

    /// Tells at once what is another than was told.
    pub(super) fn tell(&mut self, now: Time) {
        let (told, before) = (self.to_tell(now), self.told);
        if told == before {
            return;
        }
        if (told.hears, told.doubts) != (before.hears, before.doubts) {
            self.uneasy_until = now + UNEASY;
        }
        self.told = told;
        self.hurry(now);
    }

    /// The next echo is due by each way, as what leaves from now on is not to wait for what is known of them.
    pub(super) fn hurry(&mut self, now: Time) {
        for ours in &mut self.ours {
            ours.next_at = ours.next_at.min(ours.sent_at.map_or(now, |at| at + PAUSE));
        }
    }

    /// The next echo that is due, and by which way.
    pub(super) fn poll(&mut self, now: Time, pace: &Pace) -> Option<(Way, Echo)> {
        self.tell(now);
        let at = self.places().find(|at| self.ours[*at].next_at <= now)?;
        let (told, wants, theirs) = (self.told, self.has_route(), self.theirs[at]);
        // By one that failed, or that nothing was heard by, it is to be known soon whether it lives.
        let is_untold = at == self.way && (self.failed || !self.ours[at].was_heard);
        let is_uneasy = now < self.uneasy_until || is_untold && self.has_route();
        let calm = if at == DIRECT { pace.direct } else { pace.beside };
        let every = if is_uneasy { pace.uneasy.min(calm) } else { calm };
        let ours = &mut self.ours[at];
        // Who misses the first that tells of a longer one waits for the next.
        let most = if ours.every.is_zero() { every } else { ours.every.max(PAUSE) * 3 / 2 };
        let every = Duration::from_millis(every.min(most).as_millis() as u64 / UNIT_MS * UNIT_MS);
        let echo = Echo {
            way: at as u8,
            hears: told.hears,
            doubts: told.doubts,
            uses: told.uses,
            wants,
            every,
            beat: pace.beat,
            sequence: ours.sequence,
            now_us: now.as_micros().max(1),
            echo_us: theirs.their_us,
            held_us: now.since(theirs.their_at).as_micros().try_into().unwrap_or(u32::MAX),
        };
        ours.sequence = ours.sequence.wrapping_add(1);
        (ours.sent_at, ours.every, ours.next_at) = (Some(now), every, now + every);
        Some((ours.way, echo))
    }

    /// When [`Self::handle_timeout`] or [`Self::poll`] has something.
    pub(super) fn timeout(&self) -> Time {
        let echoes = self.places().map(|at| self.ours[at].next_at);
        let is_of = |bits: u8| move |at: &usize| bits >> at & 1 == 1;
        let silent = (0..WAYS_MAX).filter(is_of(self.told.hears)).filter_map(|at| self.theirs[at].silent_at(self.their_beat));
        let doubted = (0..WAYS_MAX).filter(is_of(!self.told.doubts)).filter_map(|at| self.theirs[at].doubted_at(self.their_beat));
        // A second one that is missed.
        let again = (0..WAYS_MAX).filter(is_of(self.told.doubts)).filter_map(|at| self.theirs[at].doubted_at(self.their_beat));
        let again = again.map(|at| at + self.their_beat).filter(|at| *at > self.looked_at);
        let report = self.report.filter(|report| report.is_new).map(|report| report.until);
        let wanted = self.is_wanted.then_some(self.wanted_until);
        echoes.chain(silent).chain(doubted).chain(again).chain(report).chain(wanted).fold(NEVER, Time::min)
    }

    /// The round trip of one of the ways, as far as it is known.
    pub(super) fn rtt(&self, at: usize) -> Option<Duration> {
        self.theirs[at].rtt
    }

    /// The places of the way and of its backup, of two those by which something arrives.
    pub(super) fn arriving(&self) -> [Option<usize>; 2] {
        let arrives = |at: &usize| self.report.is_some_and(|report| report.is_new && report.hears >> at & 1 == 1);
        match self.backup {
            None => [Some(self.way), None],
            Some(backup) => [Some(self.way).filter(arrives), Some(backup).filter(arrives)],
        }
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

    const ACTIVE: Pace =
        Pace { direct: MS.saturating_mul(250), beside: MS.saturating_mul(250), uneasy: MS.saturating_mul(50), beat: MS.saturating_mul(50) };
    const RESTING: Pace = Pace {
        direct: MS.saturating_mul(250),
        beside: MS.saturating_mul(1_000),
        uneasy: MS.saturating_mul(250),
        beat: MS.saturating_mul(1_000),
    };

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
        flying: VecDeque<(Time, usize, Way, Option<Echo>)>,
        /// When each end sends something else, by the ways in use.
        beats: [Time; 2],
        /// Nothing that this end sends by this way comes.
        cut: Vec<(usize, Way)>,
        /// Of each hundred so many are lost.
        lost: u64,
        chance: u64,
        /// Between two echoes.
        pace: Pace,
        /// How each end sends, and since when.
        ways: [Vec<(u64, Ways)>; 2],
    }

    impl Rig {
        fn new(way: Way, backup: Option<Way>) -> Rig {
            let mut ends = [Evidence::new(), Evidence::new()];
            ends.iter_mut().for_each(|end| end.route(way, backup));
            let (flying, cut, ways) = (VecDeque::new(), Vec::new(), [Vec::new(), Vec::new()]);
            let mut rig =
                Rig { now: Time::from_millis(5_000), ends, flying, cut, lost: 0, chance: 1, pace: ACTIVE, beats: [Time::ZERO; 2], ways };
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
                    let Some(echo) = echo else {
                        self.ends[to].heard(now, by);
                        continue;
                    };
                    let read = Echo::read(&echo.bytes(), by).expect("it is as it was written");
                    assert_eq!(read, echo);
                    self.ends[to].take_echo(now, by, &read);
                }
                for end in 0..2 {
                    self.ends[end].handle_timeout(now);
                    let ways = self.ends[end].choose(now);
                    self.ends[end].tell(now);
                    if self.ways[end].last().is_none_or(|(_, before)| *before != ways) {
                        self.ways[end].push((now.as_millis(), ways));
                    }
                    let mut leaving = Vec::new();
                    if self.beats[end] <= now && self.ends[end].is_probed() {
                        self.beats[end] = now + self.pace.beat;
                        leaving.extend([Some(ways.first), ways.second].into_iter().flatten().map(|way| (way, None)));
                    }
                    leaving.extend(std::iter::from_fn(|| self.ends[end].poll(now, &self.pace)).map(|(way, echo)| (way, Some(echo))));
                    for (way, echo) in leaving {
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
            rig.pace = RESTING;
            rig.run(2_000 + phase);
            let cut_at = rig.now;
            rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
            rig.run(3_000);
            for end in 0..2 {
                let after = rig.after(end, cut_at, |ways| ways.second == Some(A) || ways.first == A);
                assert!((520 + 40..=1_000).contains(&after), "phase {phase}, end {end}: {after} ms: {:?}", rig.ways[end]);
            }
            rig.pace = ACTIVE;
            rig.ends[0].hurry(rig.now);
            rig.flying.clear();
            rig.run(PAUSE.as_millis() as u64);
            let from_first = rig.flying.iter().filter(|(_, to, _, echo)| *to == 1 && echo.is_some()).count();
            assert_eq!(from_first, 1, "phase {phase}: by the way that is not cut");
        }
    }

    #[test]
    fn a_way_that_is_cut_in_both_directions_is_doubled_after_one_missed_beat_and_left_after_three() {
        for phase in 0..50 {
            let mut rig = Rig::new(Way::Direct, Some(A));
            rig.run(phase);
            let cut_at = rig.now;
            rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
            rig.run(2_000);
            for end in 0..2 {
                let after = rig.after(end, cut_at, |ways| *ways == both(Way::Direct, A));
                assert!((20 + 40..=70 + 41).contains(&after), "phase {phase}, end {end}: {after} ms: {:?}", rig.ways[end]);
                let after = rig.after(end, cut_at, |ways| *ways == only(A));
                assert!((120 + 40..=170 + 91).contains(&after), "phase {phase}, end {end}: {after} ms: {:?}", rig.ways[end]);
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
            let after = rig.after(0, cut_at, |ways| *ways == both(Way::Direct, A));
            assert!(after <= 40 + 70 + 51, "phase {phase}: {after} ms: {:?}", rig.ways[0]);
            assert_eq!(rig.ways[0].last().map(|(_, ways)| *ways), Some(only(A)));
            // Which hears nothing directly, so it was in doubt for a moment.
            assert_eq!(rig.ways[1].last().map(|(_, ways)| *ways), Some(only(Way::Direct)), "{:?}", rig.ways[1]);
        }
    }

    #[test]
    fn one_datagram_that_is_lost_is_doubt_for_a_moment_and_no_failure() {
        for (end, phase) in [(0, 10), (1, 10), (0, 40), (1, 40)] {
            let mut rig = Rig::new(Way::Direct, Some(A));
            rig.run(phase);
            let (cut_at, beat_at) = (rig.now, rig.beats[end]);
            rig.cut = vec![(end, Way::Direct)];
            rig.run(beat_at.since(cut_at).as_millis() as u64 + 1);
            rig.cut.clear();
            rig.run(2_000);
            for ways in &rig.ways {
                assert!(ways.iter().all(|(_, ways)| *ways == only(Way::Direct) || *ways == both(Way::Direct, A)), "{ways:?}");
                let doubled: Vec<u64> = ways.windows(2).filter(|two| two[0].1.second.is_some()).map(|two| two[1].0 - two[0].0).collect();
                assert!(doubled.len() <= 1 && doubled.iter().all(|ms| *ms <= 150), "{ways:?}");
            }
        }
    }

    #[test]
    fn a_way_that_loses_much_is_doubled_for_four_seconds_of_fifteen() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        for _ in 0..300 {
            let now = rig.now;
            rig.ends[0].lose(now);
            rig.run(100);
        }
        let doubled = rig.ways[0].windows(2).filter(|two| two[0].1.second.is_some()).map(|two| two[1].0 - two[0].0);
        let doubled: Vec<u64> = doubled.collect();
        assert!(doubled.len() == 2 && doubled.iter().all(|ms| (3_900..4_300).contains(ms)), "{:?}", rig.ways[0]);
        assert!(!rig.ends[0].misses(), "what is lost is asked for");
    }

    #[test]
    fn what_wakes_on_a_path_that_was_cut_meanwhile_is_in_doubt_at_once() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        rig.pace = RESTING;
        rig.run(3_000);
        rig.cut = vec![(0, Way::Direct), (1, Way::Direct)];
        rig.run(20);
        let woken_at = rig.now;
        rig.pace = ACTIVE;
        (0..2).for_each(|end| rig.ends[end].hurry(woken_at));
        rig.run(1_000);
        for end in 0..2 {
            let after = rig.after(end, woken_at, |ways| *ways == both(Way::Direct, A));
            assert!(after <= 50 + 50 + 70 + 5, "{after} ms: {:?}", rig.ways[end]);
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
        assert!(after.lost >= 30 && after.came > before.came, "{after:?}");
        assert!(rig.ways.iter().all(|ways| ways.last().map(|(_, ways)| *ways) == Some(only(A))), "{:?}", rig.ways);
    }

    #[test]
    fn a_way_that_is_new_is_taken_with_the_first_that_comes_by_it() {
        let mut rig = Rig::new(Way::Direct, Some(A));
        for end in &mut rig.ends {
            end.route(B, Some(Way::Direct));
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
            end.route(B, Some(A));
        }
        rig.run(1_000);
        for end in &mut rig.ends {
            end.route(Way::Via(11), Some(B));
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
        // With what else comes by it: 20 datagrams a second from each, of which 5 % are missed.
        rig.run(60_000);
        for ways in &rig.ways {
            assert!(ways.iter().all(|(_, ways)| ways.first == Way::Direct), "{ways:?}");
            let doubled: u64 = ways.windows(2).filter(|two| two[0].1.second.is_some()).map(|two| two[1].0 - two[0].0).sum();
            assert!(doubled < 1_500, "of a minute: {doubled} ms: {ways:?}");
        }
    }

    #[test]
    fn a_link_without_ways_answers_echoes_while_they_are_wanted_and_is_quiet_else() {
        let mut rig = Rig::new(Way::Direct, None);
        let has_echoes = |rig: &Rig, from: &[usize]| rig.flying.iter().any(|(_, to, _, echo)| echo.is_some() && from.contains(&(1 - to)));
        assert!(!has_echoes(&rig, &[0, 1]));
        rig.ends[0].route(Way::Direct, Some(A));
        rig.run(1_000);
        rig.pace.direct = 20 * MS;
        rig.run(500);
        assert!(has_echoes(&rig, &[1]));
        assert!(rig.ends[0].direct().rtt_us > 0);
        rig.ends[0].route(Way::Direct, None);
        rig.run(3_000);
        assert!(!has_echoes(&rig, &[0, 1]));
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
        end.route(Way::Direct, Some(A));
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
                end.route([Way::Direct, A, B][(draw() % 3) as usize], Some([Way::Direct, A, B][(draw() % 3) as usize]));
            }
            end.handle_timeout(now);
            let Ways { first, second } = end.choose(now);
            assert_ne!(Some(first), second);
            if draw() % 50 == 0 {
                end.lose(now);
            }
            end.tell(now);
            let echoes = std::iter::from_fn(|| end.poll(now, [&ACTIVE, &RESTING][draw() as usize % 2])).count();
            assert!(echoes <= WAYS_MAX && end.timeout() > now);
            assert!(u64::from(end.direct().rtt_us) <= RTT_MAX.as_micros() as u64);
        }
    }
}
