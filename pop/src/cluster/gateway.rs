//! One copy over the ocean: of the nodes of a PoP one, the gateway of a session, takes a track of another PoP and passes it on to those of its PoP
//! that have viewers.
//!
//! ```text
//! origin abroad --one copy--> gateway --a copy each--> nodes of its PoP            Want goes the other way, from the second arrow on with `origin`
//! ```
//! Nobody elects it: it is the first of the session's rank that fits, as each node finds for itself. Who finds otherwise for a while is refused, or
//! makes a second copy. A gateway takes what it passes on of its origin and of nobody else, so nothing goes in a circle, and passes it on to nodes of
//! its own PoP alone.

use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// When it was chosen, or found to be the right one still.
    chosen_at: Instant,
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
        Source { owner, asked, asked_at: now, chosen_at: now, comes: false, before: None, failed: Vec::new() }
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
        (self.asked, self.asked_at, self.chosen_at, self.comes) = (node, now, now, false);
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

    /// Whether it may come from elsewhere without need. Who says so looks whether it does, and the next time is as much later.
    pub(super) fn is_settled(&mut self, now: Instant) -> bool {
        let is_settled = now.saturating_duration_since(self.chosen_at) >= SETTLED_AFTER;
        if is_settled {
            self.chosen_at = now;
        }
        is_settled
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

    /// All sessions of which something is passed on.
    pub(super) fn sessions(&self) -> HashSet<&SessionId> {
        self.tracks.values().map(|pass| &pass.session).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);
    const OWNER: NodeId = NodeId(90);
    const FIRST: NodeId = NodeId(2);
    const SECOND: NodeId = NodeId(3);

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_first_of_the_rank_that_fits_is_asked_and_the_owner_when_that_is_this_node_or_nobody() {
        let rank = [FIRST, OWN, SECOND];
        let asked = |unfit: &[NodeId]| choose(&rank, OWN, OWNER, |node| !unfit.contains(&node));
        assert_eq!(asked(&[]), FIRST);
        assert_eq!(asked(&[FIRST]), OWNER, "this node is next");
        assert_eq!(asked(&[FIRST, OWN]), SECOND, "this node has no room, or no link");
        assert_eq!(asked(&rank), OWNER, "the last resort");
    }

    #[test]
    fn a_node_that_is_too_far_back_in_the_rank_is_no_gateway() {
        let rank = [NodeId(10), NodeId(11), NodeId(12), FIRST];
        assert_eq!(choose(&rank, OWN, OWNER, |node| node == FIRST), OWNER);
        assert_eq!(choose(&rank, OWN, OWNER, |node| node == NodeId(12)), NodeId(12));
    }

    #[test]
    fn a_gateway_that_does_not_answer_in_time_has_failed_and_may_be_asked_again_later() {
        let begin = now();
        let mut source = Source::new(begin, OWNER, FIRST);
        assert_eq!(source.poll_timeout(), Some(begin + ANSWER_MAX));
        source.fail(begin + ANSWER_MAX, FIRST);
        assert_eq!(source.ask(begin + ANSWER_MAX, OWNER), Some(FIRST), "it is told that nobody waits for it");
        assert_eq!(source.poll_timeout(), None, "the owner is waited for");
        assert!(source.has_failed(begin + ANSWER_MAX + FAILED_FOR / 2, FIRST) && !source.has_failed(begin, SECOND));
        assert!(!source.has_failed(begin + ANSWER_MAX + FAILED_FOR, FIRST));
        assert!(
            source.anew(begin + FAILED_FOR / 2, OWNER).has_failed(begin + FAILED_FOR / 2, FIRST),
            "a room that asks anew does not forget it"
        );
        source.fail(begin, OWNER);
        assert!(!source.has_failed(begin, OWNER), "there is nobody in its place");
    }

    #[test]
    fn who_sends_goes_on_until_the_next_one_does() {
        let mut source = Source::new(now(), OWNER, FIRST);
        assert_eq!((source.sender(), source.offered(), source.sender()), (None, None, Some(FIRST)));
        assert_eq!(source.ask(now(), OWNER), None);
        assert_eq!((source.sender(), source.asked(), source.is_direct()), (Some(FIRST), OWNER, false));
        assert_eq!(source.nodes().collect::<Vec<_>>(), [FIRST, OWNER]);
        assert_eq!(source.offered(), Some(FIRST), "it is wanted no longer");
        assert!(source.is_direct() && source.sender() == Some(OWNER));
    }

    #[test]
    fn who_is_asked_again_while_it_still_sends_is_not_let_go_of() {
        let mut source = Source::new(now(), OWNER, FIRST);
        source.offered();
        source.ask(now(), OWNER);
        assert_eq!(source.ask(now(), SECOND), Some(OWNER));
        assert_eq!((source.sender(), source.asked()), (Some(FIRST), SECOND));
        assert_eq!(source.ask(now(), FIRST), Some(SECOND));
        assert_eq!((source.sender(), source.asked(), source.offered()), (Some(FIRST), FIRST, None));
    }

    #[test]
    fn a_track_ends_with_who_sends_it_and_not_with_who_was_only_asked() {
        let mut source = Source::new(now(), OWNER, FIRST);
        assert!(!source.end(FIRST), "nothing came");
        source.offered();
        source.ask(now(), SECOND);
        assert!(!source.end(SECOND) && source.sender() == Some(FIRST));
        assert!(source.end(FIRST) && source.sender().is_none());
        source.offered();
        assert!(!source.end(OWNER) && source.end(SECOND) && source.sender().is_none());
    }

    #[test]
    fn a_track_changes_its_way_without_need_when_it_has_come_for_a_while_alone() {
        let begin = now();
        let mut source = Source::new(begin, OWNER, OWNER);
        assert!(!source.is_settled(begin + SETTLED_AFTER / 2) && source.is_settled(begin + SETTLED_AFTER));
        assert!(!source.is_settled(begin + SETTLED_AFTER), "it was looked at");
        source.ask(begin + SETTLED_AFTER * 3 / 2, FIRST);
        assert!(!source.is_settled(begin + SETTLED_AFTER * 2) && source.is_settled(begin + SETTLED_AFTER * 5 / 2));
    }

    #[test]
    fn a_track_is_passed_on_inside_a_pop_alone_and_from_its_origin_alone() {
        let good = Facts {
            is_of_this_pop: true,
            is_abroad: true,
            is_linked: true,
            has_room: true,
            is_direct: true,
            is_covered: true,
            is_shared: true,
        };
        assert_eq!(good.refusal(), None);
        let refused = [
            Facts { is_of_this_pop: false, ..good },
            Facts { is_abroad: false, ..good },
            Facts { is_linked: false, ..good },
            Facts { has_room: false, ..good },
            Facts { is_direct: false, ..good },
            Facts { is_covered: false, ..good },
            Facts { is_shared: false, ..good },
        ];
        let mut reasons: Vec<_> = refused.iter().map(|facts| facts.refusal().expect("one is enough")).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), refused.len(), "each says why");
    }

    #[test]
    fn what_is_passed_on_ends_with_its_last_asker_and_is_of_one_owner() {
        let (session, track) = (SessionId::new("room").expect("a name"), TrackId(7));
        let other = SessionId::new("other").expect("a name");
        let mut passes = Passes::default();
        passes.add(&session, track, OWNER, (FIRST, 0)).expect("the first");
        passes.add(&session, track, OWNER, (SECOND, 1)).expect("one more");
        passes.add(&session, track, OWNER, (SECOND, 2)).expect("another worker");
        assert!(passes.add(&session, track, NodeId(91), (FIRST, 0)).is_err() && passes.add(&other, track, OWNER, (FIRST, 0)).is_err());
        assert_eq!(passes.get(track).map(|pass| pass.askers.clone()), Some(BTreeMap::from([(FIRST, 0), (SECOND, 2)])));
        assert_eq!((passes.remove(track, FIRST), passes.remove(track, FIRST)), (None, None));
        assert!(passes.sessions().contains(&session));
        assert_eq!(passes.remove(track, SECOND), Some(session.clone()));
        assert!(!passes.sessions().contains(&session) && passes.get(track).is_none() && passes.end(track).is_none());
        passes.add(&session, track, NodeId(91), (FIRST, 0)).expect("whoever has it now");
        assert_eq!(passes.find(|pass| pass.origin == NodeId(91)), [track]);
        assert_eq!((passes.end(track).map(|pass| pass.askers.len()), passes.askers), (Some(1), 0));
    }

    #[test]
    fn a_node_passes_on_so_many_tracks_and_no_more() {
        let session = SessionId::new("room").expect("a name");
        let mut passes = Passes::default();
        for track in 0..PASSED_MAX as u64 {
            passes.add(&session, TrackId(track), OWNER, (FIRST, 0)).expect("there is room");
        }
        assert!(passes.add(&session, TrackId(u64::MAX), OWNER, (FIRST, 0)).is_err());
        assert!(passes.get(TrackId(u64::MAX)).is_none());
        passes.remove(TrackId(0), FIRST);
        passes.add(&session, TrackId(u64::MAX), OWNER, (FIRST, 0)).expect("there is room again");
    }
}
