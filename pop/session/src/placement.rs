//! Which worker takes a session. Pure: the owner tells the loads, the choice is the return value.

/// What a worker carries and may carry, in transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Transports that exist or are promised.
    pub transports: usize,
    /// The worker's plan (`limits.rs`).
    pub transports_max: usize,
}

impl WorkerLoad {
    fn has_room(&self) -> bool {
        self.transports < self.transports_max
    }
}

/// No worker that may take the session has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is full: every transport that it has room for is taken")]
pub struct Full;

/// The worker for one more transport of a session that lives on `current`, or of a new session.
///
/// A session stays on its worker, because a track is forwarded within one worker: when that one is full the session is full,
/// whatever room the others have. A new session goes to the worker with the smallest share of its plan in use, the lower
/// index when equal.
pub fn place(current: Option<usize>, workers: &[WorkerLoad]) -> Result<usize, Full> {
    if let Some(worker) = current {
        return workers.get(worker).filter(|load| load.has_room()).map(|_| worker).ok_or(Full);
    }
    let with_room = workers.iter().enumerate().filter(|(_, load)| load.has_room());
    // a/b < c/d as a*d < c*b, in u128 so that no plan overflows it.
    let least = with_room.min_by(|(_, a), (_, b)| {
        let share = |x: &WorkerLoad, y: &WorkerLoad| x.transports as u128 * y.transports_max as u128;
        share(a, b).cmp(&share(b, a))
    });
    least.map(|(worker, _)| worker).ok_or(Full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(transports: usize, transports_max: usize) -> WorkerLoad {
        WorkerLoad { transports, transports_max }
    }

    #[test]
    fn a_new_session_goes_to_the_least_loaded_worker() {
        assert_eq!(place(None, &[load(3, 10), load(2, 10), load(2, 10)]), Ok(1));
        assert_eq!(place(None, &[load(3, 10), load(20, 100)]), Ok(1), "by share, not by count");
        assert_eq!(place(None, &[load(0, 0), load(9, 10)]), Ok(1), "a worker without a plan has no room");
    }

    #[test]
    fn a_session_stays_on_its_worker_while_there_is_room() {
        assert_eq!(place(Some(0), &[load(9, 10), load(0, 10)]), Ok(0));
        assert_eq!(place(Some(0), &[load(10, 10), load(0, 10)]), Err(Full));
        assert_eq!(place(Some(5), &[load(0, 10)]), Err(Full), "a worker that does not exist");
    }

    #[test]
    fn nothing_fits_when_every_worker_is_full() {
        assert_eq!(place(None, &[]), Err(Full));
        assert_eq!(place(None, &[load(1, 1), load(5, 5)]), Err(Full));
    }
}
