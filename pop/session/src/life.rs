//! Whether another node lives, from what is heard of it.
//!
//! ```text
//! bus: its beats ----------+                               all silent: Dead
//! link: its Alive ---------+--> Life --judge, at look_at--> packets alone silent: Cut
//! packets: its heartbeats -+                               heard again: Alive
//! ```
//! Silence is what was listened to: of packets, from the last that came to the last turn of a worker that found none; of bus and link,
//! without the time in which this node itself did not run. What is silent has to be so at two looks, so that what waited to be read is
//! read before anybody is judged. The end of a connection says no more than that nothing comes on it: a process that is killed is
//! known by it sooner, and not by it alone.

use std::time::Duration;

use pop_schemas::Time;

/// A node says something on each way so often, 100 ms at most.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(50);

/// A node is looked at so often, and so often when it begins to be silent.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const LOOK_INTERVAL_SILENT: Duration = Duration::from_millis(5);

/// A node is silent when its beats may have been lost or late, but not all of them for no reason.
const SILENT: Duration = Duration::from_millis(100);

/// A node that is silent for so long on all ways is dead at the second look. A stop of 200 ms is not seen: its last beat may be 50 ms older.
pub const SILENCE_MAX: Duration = Duration::from_millis(260);

/// The same for one whose connections have ended, more than one.
pub const SILENCE_ENDED_MAX: Duration = Duration::from_millis(130);

/// Where packets are not exchanged, all that is heard comes through queues of others, so more is waited for.
pub const SILENCE_NO_PACKETS_MAX: Duration = Duration::from_millis(450);

/// A node that is heard, but whose packets do not come for so long, is cut off.
pub const SILENCE_CUT_MAX: Duration = Duration::from_millis(500);

/// So long others may take to say whether they hold a node that stood still for dead. Then nobody is there who does.
pub const VERDICT_WAIT_MAX: Duration = Duration::from_secs(3);

/// The same of the rest, once one of them has said that it does not.
pub const VERDICT_WAIT_OTHERS_MAX: Duration = SILENCE_NO_PACKETS_MAX;

/// A look that is later than this finds that this node did not run.
const LATE: Duration = Duration::from_millis(20);

/// Where another node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its beats on the bus.
    Bus,
    /// What its control plane says over the link.
    Link,
    /// What its workers send.
    Packets,
}

impl Way {
    /// All.
    pub const ALL: [Way; 3] = [Way::Bus, Way::Link, Way::Packets];
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It lives.
    Alive,
    /// It is silent on all ways.
    Dead,
    /// Its packets do not come, and it lives: it goes on for its own clients.
    Cut,
}

/// Another node, which is asked by one that stood still whether it holds that one for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// There is a connection to it: its answer may come.
    pub is_connected: bool,
    /// What it has said.
    pub holds_dead: Option<bool>,
    /// It stood still itself: that it holds nobody for dead says nothing, and more will not come of it.
    pub stood_still: bool,
}

/// What a node that stood still is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not all have said.
    Wait,
    /// One of them holds it for dead.
    Dead,
    /// Nobody who can say so does.
    Alive {
        /// All have said so, and there was somebody.
        is_settled: bool,
    },
}

/// The verdict of those who have been asked for as long as `waited`. Others hold it for dead together or not at all, so who has said that he does not
/// speaks for those who may be dead themselves: whoever has no connection to it, and whoever is silent for long enough to be.
pub fn verdict(witnesses: &[Witness], waited: Duration) -> Verdict {
    let is_known_alive = witnesses.iter().any(|of| of.holds_dead == Some(false) && !of.stood_still);
    let may_say = |of: &Witness| of.holds_dead.is_none() && (!is_known_alive || of.is_connected && waited < VERDICT_WAIT_OTHERS_MAX);
    if witnesses.iter().any(|of| of.holds_dead == Some(true)) {
        Verdict::Dead
    } else if waited < VERDICT_WAIT_MAX && witnesses.iter().any(may_say) {
        Verdict::Wait
    } else {
        Verdict::Alive { is_settled: is_known_alive && witnesses.iter().all(|of| of.holds_dead.is_some()) }
    }
}

/// One node's life.
#[derive(Clone, Debug)]
pub struct Life {
    /// The last that came on each way, moved on by the time in which this node did not listen.
    heard: [Option<Time>; 3],
    /// The connection of that way has ended.
    has_ended: [bool; 3],
    fate: Fate,
    /// Since the look before it seems to be so.
    suspected: Fate,
    look_at: Option<Time>,
    /// When the present fate was told.
    since: Time,
}

impl Default for Life {
    fn default() -> Self {
        Life { heard: [None; 3], has_ended: [false; 3], fate: Fate::Alive, suspected: Fate::Alive, look_at: None, since: Time::ZERO }
    }
}

impl Life {
    /// How it is.
    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// Something came on a way, at that time.
    pub fn hear(&mut self, way: Way, at: Time) {
        let heard = &mut self.heard[way as usize];
        if heard.is_none_or(|before| before < at) {
            *heard = Some(at);
            self.has_ended[way as usize] = false;
        }
    }

    /// Whether anything ever came on that way.
    pub fn has_heard(&self, way: Way) -> bool {
        self.heard[way as usize].is_some()
    }

    /// The connection of a way has ended: nothing comes on it until the next [`Self::hear`].
    pub fn end(&mut self, way: Way) {
        self.has_ended[way as usize] = true;
    }

    /// This node did not run, or could not hear: nobody's silence begins before now.
    pub fn excuse(&mut self, now: Time) {
        for heard in self.heard.iter_mut().flatten() {
            *heard = (*heard).max(now);
        }
        (self.suspected, self.look_at) = (self.fate, Some(now));
    }

    /// When [`Self::judge`] is to be called again; at once before the first time.
    pub fn look_at(&self) -> Time {
        self.look_at.unwrap_or(Time::ZERO)
    }

    /// The last that came on any way.
    pub fn heard_at(&self) -> Option<Time> {
        self.heard.into_iter().flatten().max()
    }

    /// Its new fate, when it has another one. `listened`: until when this node's workers have looked at what came.
    pub fn judge(&mut self, now: Time, listened: Time) -> Option<Fate> {
        let late = self.look_at.map_or(Duration::ZERO, |at| now.since(at));
        if late > LATE {
            // Whoever reads the connections did not run either.
            for way in [Way::Bus, Way::Link] {
                let heard = &mut self.heard[way as usize];
                *heard = heard.map(|at| (at + late).min(now));
            }
        }
        let silence = |way: Way| {
            let until = if way == Way::Packets { listened } else { now };
            self.heard[way as usize].map(|at| until.since(at))
        };
        let has = |way: Way| self.heard[way as usize].is_some() && !self.has_ended[way as usize];
        let is_silent = |way: Way, limit: Duration| !has(way) || silence(way).is_some_and(|silence| silence >= limit);
        let limit = if has(Way::Packets) { SILENCE_MAX } else { SILENCE_NO_PACKETS_MAX };
        let has_ended = !Way::ALL.into_iter().any(has);
        // One connection alone may end because its reader was too slow.
        let ended_max = if self.heard.iter().flatten().count() > 1 { SILENCE_ENDED_MAX } else { SILENCE_NO_PACKETS_MAX };
        let is_quiet = self.fate == Fate::Alive && self.heard_at().is_some_and(|at| now.since(at) >= SILENT);
        self.look_at = Some(now + if is_quiet { LOOK_INTERVAL_SILENT } else { LOOK_INTERVAL });
        let heard_at = self.heard_at()?;
        let seems = if has_ended {
            if now.since(heard_at) >= ended_max { Fate::Dead } else { self.suspected }
        } else if Way::ALL.into_iter().all(|way| is_silent(way, limit)) {
            Fate::Dead
        } else if has(Way::Packets) && is_silent(Way::Packets, SILENCE_CUT_MAX) {
            Fate::Cut
        } else {
            Fate::Alive
        };
        let was_suspected = std::mem::replace(&mut self.suspected, seems) == seems;
        let may_change = match (self.fate, seems) {
            (before, seems) if before == seems => false,
            // Nobody is dead after a first look, nor is he back by what he said before.
            (_, Fate::Dead | Fate::Cut) => was_suspected,
            (Fate::Cut, Fate::Alive) => self.heard[Way::Packets as usize].is_some_and(|at| at > self.since),
            (_, Fate::Alive) => heard_at > self.since,
        };
        if !may_change {
            return None;
        }
        (self.fate, self.since) = (seems, now);
        Some(seems)
    }
}
