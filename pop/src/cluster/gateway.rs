//! One copy over the ocean: of the nodes of a PoP one, the gateway of a session, takes a track of another PoP and passes it on to those of its PoP
//! that have viewers.
//!
//! ```text
//! origin abroad --one copy--> gateway --a copy each--> nodes of its PoP            Want goes the other way, from the second arrow on with `origin`
//! ```
//! Nobody elects it: it is the first of the session's rank that fits, as each node finds for itself. Who finds otherwise for a while is refused, or
//! makes a second copy. A gateway takes what it passes on of its origin and of nobody else, so nothing goes in a circle, and passes it on to nodes of
//! its own PoP alone.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pop_schemas::{NodeId, SessionId, TrackId};
use tokio::time::Instant;

/// From this version on a node passes tracks on.
pub(super) const PASS_VERSION: u8 = 1;

/// So many nodes of a session's rank may be its gateway. They know the session, as those that keep it.
const GATEWAYS_MAX: usize = pop_session::placement::KEEPERS;

/// Who does not send by then what it was asked to pass on is not waited for: it may take two round trips over the ocean.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// So long a node that failed to pass a track on is not asked for it.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// So long a track comes from where it comes before that is changed without need.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Tracks that this node passes on, to one node each.
const PASSED_MAX: usize = 32_768;

/// The node to ask for a track of `owner`, a node of another PoP, of those of this PoP in the order of the session's `rank`; `own` is this one.
/// `fits` says of another node whether it may pass the track on, and of this one whether it can take it itself.
pub(super) fn choose(rank: &[NodeId], own: NodeId, owner: NodeId, fits: impl Fn(NodeId) -> bool) -> NodeId {
    match rank.iter().copied().take(GATEWAYS_MAX).find(|node| fits(*node)) {
        Some(node) if node != own => node,
        _ => owner,
    }
}

/// Where a track that is wanted comes from.
#[derive(Debug)]
pub(super) struct Source {
    /// Whose track it is.
    owner: NodeId,
    /// Who was asked last.
    asked: NodeId,
    asked_at: Instant,
    /// It sends.
    comes: bool,
    /// Who sends until `asked` does.
    before: Option<NodeId>,
    /// Those that were asked to pass it on, and did not.
    failed: Vec<(NodeId, Instant)>,
}

impl Source {
    /// Of a track of `owner`, for which `asked` is asked now.
    pub(super) fn new(now: Instant, owner: NodeId, asked: NodeId) -> Source {
        Source { owner, asked, asked_at: now, comes: false, before: None, failed: Vec::new() }
    }

    /// The same for a room that asks anew: whoever failed has.
    pub(super) fn anew(&self, now: Instant, asked: NodeId) -> Source {
        Source { failed: self.failed.clone(), ..Source::new(now, self.owner, asked) }
    }

    pub(super) fn asked(&self) -> NodeId {
        self.asked
    }

    /// Who sends it.
    pub(super) fn sender(&self) -> Option<NodeId> {
        if self.comes { Some(self.asked) } else { self.before }
    }

    /// It comes from its owner, or nobody else was asked.
    pub(super) fn is_direct(&self) -> bool {
        self.asked == self.owner && self.before.is_none()
    }

    /// All that may send it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.before.into_iter().chain([self.asked])
    }

    pub(super) fn has_failed(&self, now: Instant, node: NodeId) -> bool {
        self.failed.iter().any(|(of, at)| *of == node && now.saturating_duration_since(*at) < FAILED_FOR)
    }

    /// `node` does not pass it on, or does not any more.
    pub(super) fn fail(&mut self, now: Instant, node: NodeId) {
        self.failed.retain(|(of, at)| *of != node && now.saturating_duration_since(*at) < FAILED_FOR);
        if node != self.owner {
            self.failed.push((node, now));
        }
    }

    /// Asks `node` from now on. Whoever sends goes on until that one does. Returns who is told that it is not wanted any more.
    pub(super) fn ask(&mut self, now: Instant, node: NodeId) -> Option<NodeId> {
        let left = if self.comes { self.before.replace(self.asked) } else { Some(self.asked).filter(|asked| *asked != node) };
        (self.asked, self.asked_at, self.comes) = (node, now, false);
        if self.before == Some(node) {
            (self.before, self.comes) = (None, true);
        }
        left
    }

    /// Who was asked sends. Returns who sent it before, and is not wanted any more.
    pub(super) fn offered(&mut self) -> Option<NodeId> {
        self.comes = true;
        self.before.take()
    }

    /// `node` sends nothing of it any more. `true`: so nobody does, and somebody did.
    pub(super) fn end(&mut self, node: NodeId) -> bool {
        let ends = self.sender() == Some(node);
        if self.before == Some(node) {
            self.before = None;
        } else if self.asked == node {
            self.comes = false;
        }
        ends
    }

    /// When whoever was asked to pass it on has failed to.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.asked != self.owner && !self.comes).then(|| self.asked_at + ANSWER_MAX)
    }

    /// Whether it may come from elsewhere without need.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked_at) >= SETTLED_AFTER
    }
}

/// What a node that was asked to pass a track on knows of that.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The asker is a node of this PoP.
    pub(super) is_of_this_pop: bool,
    /// The track's owner is a node of another one.
    pub(super) is_abroad: bool,
    /// There is a link with it, which has a place.
    pub(super) is_linked: bool,
    /// This node takes more work.
    pub(super) has_room: bool,
    /// This node takes the track from nobody, or from that owner alone.
    pub(super) is_direct: bool,
    /// The asker's certificate has all keys that this node's has: what this node may see, the asker may.
    pub(super) is_covered: bool,
    /// Whoever is in the session here may share it with the owner.
    pub(super) is_shared: bool,
}

impl Facts {
    /// Why it is not passed on.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        let Facts { is_of_this_pop, is_abroad, is_linked, has_room, is_direct, is_covered, is_shared } = *self;
        let reasons = [
            (is_of_this_pop, "tracks are passed on inside a PoP alone"),
            (is_abroad, "what this PoP has is not passed on"),
            (is_linked, "this node has no link with its owner"),
            (has_room, "this node does as much as it can"),
            (is_direct, "this node takes it from another one itself"),
            (is_covered, "a certificate without all of this node's API keys"),
            (is_shared, "its owner is none of this session here"),
        ];
        reasons.into_iter().find(|(holds, _)| !holds).map(|(_, reason)| reason)
    }
}

/// A track of another PoP that this node passes on.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) session: SessionId,
    /// Whose it is.
    pub(super) origin: NodeId,
    /// The nodes of this PoP that want it, and the worker of each that takes it.
    pub(super) askers: BTreeMap<NodeId, u16>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Passes {
    tracks: HashMap<TrackId, Pass>,
    /// Of all of them.
    askers: usize,
}

impl Passes {
    /// One more node wants a track, or the same one once more. `Err`: it is not passed on.
    pub(super) fn add(
        &mut self,
        session: &SessionId,
        track: TrackId,
        origin: NodeId,
        (node, worker): (NodeId, u16),
    ) -> Result<(), &'static str> {
        if self.askers >= PASSED_MAX {
            return Err("this node passes on as many tracks as it may");
        }
        let new = || Pass { session: session.clone(), origin, askers: BTreeMap::new() };
        let pass = self.tracks.entry(track).or_insert_with(new);
        if (&pass.session, pass.origin) != (session, origin) {
            return Err("another node, or another session, has it here");
        }
        self.askers += usize::from(pass.askers.insert(node, worker).is_none());
        Ok(())
    }

    pub(super) fn get(&self, track: TrackId) -> Option<&Pass> {
        self.tracks.get(&track)
    }

    /// A node wants a track no longer. Returns the session, when no other one does.
    pub(super) fn remove(&mut self, track: TrackId, node: NodeId) -> Option<SessionId> {
        let pass = self.tracks.get_mut(&track)?;
        self.askers -= usize::from(pass.askers.remove(&node).is_some());
        if pass.askers.is_empty() { self.tracks.remove(&track).map(|pass| pass.session) } else { None }
    }

    /// A track is passed on no longer.
    pub(super) fn end(&mut self, track: TrackId) -> Option<Pass> {
        let pass = self.tracks.remove(&track)?;
        self.askers -= pass.askers.len();
        Some(pass)
    }

    /// Those of which this holds.
    pub(super) fn find(&self, holds: impl Fn(&Pass) -> bool) -> Vec<TrackId> {
        self.tracks.iter().filter(|(_, pass)| holds(pass)).map(|(track, _)| *track).collect()
    }

    pub(super) fn has_session(&self, session: &SessionId) -> bool {
        self.tracks.values().any(|pass| pass.session == *session)
    }
}
