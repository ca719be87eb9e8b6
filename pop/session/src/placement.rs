//! Which worker takes a session. Pure: the owner tells the loads, the choice is the return value.

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
    fn has_room(&self, claim: &Claim) -> bool {
        let mut used = self.used;
        used += *claim;
        used.fits(&self.plan)
    }
}

/// No worker that may take the session has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is full: no worker has room for this client")]
pub struct Full;

/// The worker for one more client of a session that lives on `current`, or of a new session.
///
/// A session stays on its worker, because a track is forwarded within one worker: when that one is full the session is full,
/// whatever room the others have. A new session goes to the worker with the smallest share of its plan in use, the lower
/// index when equal.
pub fn place(current: Option<usize>, claim: &Claim, workers: &[WorkerLoad]) -> Result<usize, Full> {
    if let Some(worker) = current {
        return workers.get(worker).filter(|load| load.has_room(claim)).map(|_| worker).ok_or(Full);
    }
    let with_room = workers.iter().enumerate().filter(|(_, load)| load.has_room(claim));
    // a/b < c/d as a*d < c*b, in u128 so that no plan overflows it.
    let least = with_room.min_by(|(_, a), (_, b)| {
        let share = |x: &WorkerLoad, y: &WorkerLoad| x.used.transports as u128 * y.plan.transports as u128;
        share(a, b).cmp(&share(b, a))
    });
    least.map(|(worker, _)| worker).ok_or(Full)
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
    fn a_worker_without_room_for_the_tracks_or_the_sections_is_full() {
        let publisher = |tracks| Claim { transports: 1, tracks, subscriptions: 0 };
        assert_eq!(place(None, &publisher(1), &[load(0, 10)]), Ok(0));
        assert_eq!(place(None, &publisher(2), &[load(0, 10)]), Err(Full));
        let greedy = Claim { subscriptions: 3, ..VIEWER };
        assert_eq!(place(Some(0), &greedy, &[load(9, 10)]), Err(Full));
        assert_eq!(place(Some(0), &Claim::default(), &[load(10, 10)]), Ok(0), "who takes nothing always fits");
    }

    #[test]
    fn a_new_session_goes_to_the_least_loaded_worker() {
        assert_eq!(place(None, &VIEWER, &[load(3, 10), load(2, 10), load(2, 10)]), Ok(1));
        assert_eq!(place(None, &VIEWER, &[load(3, 10), load(20, 100)]), Ok(1), "by share, not by count");
        assert_eq!(place(None, &VIEWER, &[load(0, 0), load(9, 10)]), Ok(1), "a worker without a plan has no room");
    }

    #[test]
    fn a_session_stays_on_its_worker_while_there_is_room() {
        assert_eq!(place(Some(0), &VIEWER, &[load(9, 10), load(0, 10)]), Ok(0));
        assert_eq!(place(Some(0), &VIEWER, &[load(10, 10), load(0, 10)]), Err(Full));
        assert_eq!(place(Some(5), &VIEWER, &[load(0, 10)]), Err(Full), "a worker that does not exist");
    }

    #[test]
    fn nothing_fits_when_every_worker_is_full() {
        assert_eq!(place(None, &VIEWER, &[]), Err(Full));
        assert_eq!(place(None, &VIEWER, &[load(1, 1), load(5, 5)]), Err(Full));
    }
}
