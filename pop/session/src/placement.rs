//! Which node and which worker take a client. Pure: the owner tells what there is, the choice is the return value.

use std::cmp::Reverse;

use pop_schemas::{NodeId, SessionId, fnv1a};

/// Nodes that watch a session though nobody of it need be there: the first of its [`rank`]. Clients go to the first two of them (one
/// holds a client's socket, another its transport), so when one of these dies the next that takes its people knows them already.
pub const KEEPERS: usize = 3;

/// `nodes` in the order in which they take the people of `session`: by highest random weight, so that all nodes of a PoP agree without a
/// word, sessions spread, and a node that comes or goes changes nobody else's place in the order.
pub fn rank(session: &SessionId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut ranked: Vec<_> = nodes.into_iter().collect();
    ranked.sort_by_cached_key(by_weight(session));
    ranked.dedup();
    ranked
}

/// The first `count` of [`rank`], of many nodes, none of which comes twice.
pub fn rank_first(session: &SessionId, nodes: impl IntoIterator<Item = NodeId>, count: usize) -> Vec<NodeId> {
    let mut place = by_weight(session);
    let mut first: Vec<_> = Vec::with_capacity(count + 1);
    for node in nodes {
        let place = place(&node);
        if first.len() < count || first.last().is_some_and(|last| place < *last) {
            first.insert(first.partition_point(|other| *other < place), place);
            first.truncate(count);
        }
    }
    first.into_iter().map(|(_, node)| node).collect()
}

/// The place of a node in the order of [`rank`].
fn by_weight(session: &SessionId) -> impl FnMut(&NodeId) -> (Reverse<u64>, NodeId) + use<> {
    let seed = fnv1a(session.as_str().bytes());
    move |node| (Reverse(mix(seed ^ mix(node.0))), *node)
}

/// The finalizer of SplitMix64: each bit of the input changes half of the output's.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a client takes of a worker's plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Transports.
    pub transports: usize,
    /// Published tracks.
    pub tracks: usize,
    /// Subscriber sections.
    pub subscriptions: usize,
}

impl Claim {
    fn fits(&self, plan: &Claim) -> bool {
        self.transports <= plan.transports && self.tracks <= plan.tracks && self.subscriptions <= plan.subscriptions
    }
}

impl std::ops::AddAssign for Claim {
    fn add_assign(&mut self, more: Claim) {
        self.transports += more.transports;
        self.tracks += more.tracks;
        self.subscriptions += more.subscriptions;
    }
}

impl std::ops::SubAssign for Claim {
    /// Panics when more is given back than was taken.
    fn sub_assign(&mut self, less: Claim) {
        self.transports -= less.transports;
        self.tracks -= less.tracks;
        self.subscriptions -= less.subscriptions;
    }
}

/// What a worker carries, promises included, and what its plan (`limits.rs`) allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Taken or promised.
    pub used: Claim,
    /// The plan.
    pub plan: Claim,
}

impl WorkerLoad {
    /// Whether so much more fits.
    pub fn has_room(&self, claim: &Claim) -> bool {
        let mut used = self.used;
        used += *claim;
        used.fits(&self.plan)
    }

    /// The same without room for anybody more.
    fn full(&self) -> WorkerLoad {
        WorkerLoad { plan: self.used, ..*self }
    }

    /// The largest share of the plan in use, of [`WHOLE`].
    fn share(&self) -> u128 {
        let Claim { transports, tracks, subscriptions } = self.used;
        let shares = [(transports, self.plan.transports), (tracks, self.plan.tracks), (subscriptions, self.plan.subscriptions)];
        shares.into_iter().map(|(used, plan)| (used as u128 * WHOLE).checked_div(plan as u128).unwrap_or(0)).max().unwrap_or(0)
    }
}

/// The whole of a plan, as [`WorkerLoad::share`] counts it: fine enough to tell one client of a million.
const WHOLE: u128 = 100_000_000;

/// Above this share of its plan a worker is given no more clients of a session while another has less to do. A room of n people grows to
/// n² sections after they have come, and nobody changes workers: a quarter of 10,000 sections is a room of 50, which fills a good part
/// of a core, and half of a room of 100.
const EASE: u128 = WHOLE / 4;

/// The largest share that is in use of what all workers may carry together, in permille.
pub fn load_permille(workers: &[WorkerLoad]) -> u16 {
    let (mut used, mut plan) = (Claim::default(), Claim::default());
    for worker in workers {
        used += worker.used;
        plan += worker.plan;
    }
    (WorkerLoad { used, plan }.share() * 1_000 / WHOLE).min(1_000) as u16
}

/// No worker has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is full: no worker has room for this client")]
pub struct Full;

/// The worker for one more client of a session that has clients on the workers `current`, in the order in which they got them; none of
/// a new session.
///
/// A session stays together while there is room, because what crosses to another worker costs both: the first of its workers that has
/// room and uses no more than a quarter of its plan. Else, and for a new session, it is the worker with the smallest share of its plan
/// in use, the lower index when equal.
pub fn place(current: &[usize], claim: &Claim, workers: &[WorkerLoad]) -> Result<usize, Full> {
    let with_room = |worker: &usize| workers.get(*worker).is_some_and(|load| load.has_room(claim));
    let is_at_ease = |worker: &usize| with_room(worker) && workers[*worker].share() < EASE;
    let together = current.iter().copied().find(is_at_ease);
    together.or_else(|| (0..workers.len()).filter(with_room).min_by_key(|worker| workers[*worker].share())).ok_or(Full)
}

/// As [`place`], but a worker that `is_gray`, through which media does not come, is the last choice.
pub fn place_around(current: &[usize], claim: &Claim, workers: &[WorkerLoad], is_gray: impl Fn(usize) -> bool) -> Result<usize, Full> {
    let sound = workers.iter().enumerate().map(|(worker, load)| if is_gray(worker) { load.full() } else { *load });
    let sound: Vec<_> = sound.collect();
    place(current, claim, &sound).or_else(|Full| place(current, claim, workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEWER: Claim = Claim { transports: 1, tracks: 0, subscriptions: 2 };

    fn load(transports: usize, plan: usize) -> WorkerLoad {
        let subscriptions = 2 * plan;
        WorkerLoad {
            used: Claim { transports, tracks: 0, subscriptions: 2 * transports },
            plan: Claim { transports: plan, tracks: 1, subscriptions },
        }
    }

    #[test]
    fn the_first_of_many_are_those_of_the_whole_order() {
        let nodes: Vec<NodeId> = (0..100).map(|n| NodeId(n * n)).collect();
        for session in ["a", "b", "c", "room"].map(|name| SessionId::new(name).unwrap()) {
            let ranked = rank(&session, nodes.iter().copied());
            for count in [0, 1, 3, 99, 100, 101] {
                assert_eq!(rank_first(&session, nodes.iter().copied(), count), ranked[..count.min(100)]);
            }
        }
    }

    #[test]
    fn a_gray_worker_takes_a_client_only_when_no_other_can() {
        let workers = [load(0, 10), load(3, 10), load(4, 20)];
        let around = |current: &[usize], gray: &[usize]| place_around(current, &VIEWER, &workers, |worker| gray.contains(&worker));
        assert_eq!((around(&[], &[]), around(&[], &[0]), around(&[], &[0, 2])), (Ok(0), Ok(2), Ok(1)));
        assert_eq!((around(&[2], &[0]), around(&[2], &[2]), around(&[2], &[0, 2])), (Ok(2), Ok(0), Ok(1)), "its session is there or not");
        assert_eq!((around(&[], &[0, 1, 2]), around(&[2], &[0, 1, 2])), (Ok(0), Ok(2)), "as if none were");
        let busy = [load(0, 10), load(10, 10)];
        assert_eq!(place_around(&[], &VIEWER, &busy, |worker| worker == 0), Ok(0));
    }

    fn session(n: u32) -> SessionId {
        SessionId::new(&format!("room {n}")).expect("a name")
    }

    #[test]
    fn a_node_that_goes_moves_nobody_else() {
        let nodes = || (1..=5).map(NodeId);
        let mut firsts = [0; 5];
        for n in 0..10_000 {
            let all = rank(&session(n), nodes());
            assert_eq!(rank(&session(n), nodes().rev()), all, "the order of what is asked does not matter");
            firsts[all[0].0 as usize - 1] += 1;
            let without = rank(&session(n), nodes().filter(|node| *node != all[1]));
            assert_eq!(without, [all[0], all[2], all[3], all[4]]);
        }
        assert!(firsts.iter().all(|first| (1_850..2_150).contains(first)), "{firsts:?} of 10,000 sessions");
    }

    #[test]
    fn all_releases_rank_alike() {
        let ranked = |name: &str| {
            rank(&SessionId::new(name).expect("a name"), (1..=4).map(NodeId)).into_iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!([ranked("demo"), ranked("studio 1"), ranked("Straße 7")], [[4, 3, 1, 2], [1, 4, 2, 3], [4, 3, 2, 1]]);
    }

    #[test]
    fn a_worker_without_room_for_the_tracks_or_the_sections_is_full() {
        let publisher = |tracks| Claim { transports: 1, tracks, subscriptions: 0 };
        assert_eq!(place(&[], &publisher(1), &[load(0, 10)]), Ok(0));
        assert_eq!(place(&[], &publisher(2), &[load(0, 10)]), Err(Full));
        let greedy = Claim { subscriptions: 3, ..VIEWER };
        assert_eq!(place(&[0], &greedy, &[load(9, 10)]), Err(Full));
        assert_eq!(place(&[0], &Claim::default(), &[load(10, 10)]), Ok(0), "who takes nothing always fits");
    }

    #[test]
    fn a_new_session_goes_to_the_least_loaded_worker() {
        assert_eq!(place(&[], &VIEWER, &[load(3, 10), load(2, 10), load(2, 10)]), Ok(1));
        assert_eq!(place(&[], &VIEWER, &[load(3, 10), load(20, 100)]), Ok(1), "by share, not by count");
        assert_eq!(place(&[], &VIEWER, &[load(0, 0), load(9, 10)]), Ok(1), "a worker without a plan has no room");
    }

    #[test]
    fn a_session_stays_together_until_a_quarter_of_its_worker_is_in_use() {
        assert_eq!(place(&[0], &VIEWER, &[load(24, 100), load(0, 100)]), Ok(0));
        assert_eq!(place(&[0], &VIEWER, &[load(25, 100), load(0, 100)]), Ok(1));
        assert_eq!(place(&[0, 1], &VIEWER, &[load(25, 100), load(24, 100), load(0, 100)]), Ok(1), "the workers that it has come first");
        assert_eq!(place(&[0, 1], &VIEWER, &[load(40, 100), load(30, 100)]), Ok(1), "then the least loaded");
        assert_eq!(place(&[0], &VIEWER, &[load(10, 10), load(9, 10)]), Ok(1), "a full worker is none");
        assert_eq!(place(&[0], &VIEWER, &[load(9, 10)]), Ok(0), "one worker alone takes what it can");
        assert_eq!(place(&[5], &VIEWER, &[load(0, 10)]), Ok(0), "a worker that does not exist");
        let sections = WorkerLoad { used: Claim { subscriptions: 50, ..Claim::default() }, plan: load(0, 100).plan };
        assert_eq!(place(&[0], &VIEWER, &[sections, load(0, 100)]), Ok(1), "sections count like clients");
    }

    #[test]
    fn the_load_of_a_node_is_what_all_its_workers_are_nearest_to_the_end_of() {
        assert_eq!(load_permille(&[load(10, 100), load(0, 300)]), 25);
        let mut busy = load(0, 100);
        (busy.used.tracks, busy.plan.tracks) = (150, 300);
        assert_eq!(load_permille(&[busy]), 500);
        assert_eq!(load_permille(&[]), 0);
    }

    #[test]
    fn nothing_fits_when_every_worker_is_full() {
        assert_eq!(place(&[], &VIEWER, &[]), Err(Full));
        assert_eq!(place(&[], &VIEWER, &[load(1, 1), load(5, 5)]), Err(Full));
    }
}
