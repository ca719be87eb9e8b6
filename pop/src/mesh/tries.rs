//! Several ways to one end: the next is tried beside those that have come to nothing in a moment, and the first that comes to something is
//! taken. Who stalls or fails costs the others no more than that moment.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Another way is tried beside one that has not come to be within this.
pub(super) const STAGGER: Duration = Duration::from_millis(700);

/// One that has come to nothing within this is not waited for where those that failed say enough. Over the longest ways an answer takes about so long.
pub(super) const STALLED: Duration = Duration::from_millis(1_300);

/// Third nodes that are asked at once.
pub(super) const THIRDS_MAX: usize = 4;

/// One way. It has a bound of its own.
pub(super) type Try<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// The first that comes to something, or why none did. `settles`: after this failure no other is tried. `suffices`: after these those that
/// have stalled are not waited for.
pub(super) async fn staggered<'a, T, E>(
    tries: impl IntoIterator<Item = Try<'a, T, E>>,
    settles: impl Fn(&E) -> bool,
    suffices: impl Fn(&[E]) -> bool,
) -> Result<T, Vec<E>> {
    let (mut tries, mut trying, mut failed) = (tries.into_iter().peekable(), Vec::<(Instant, Try<'a, T, E>)>::new(), Vec::new());
    loop {
        let has_stalled = |(since, _): &(Instant, _)| since.elapsed() >= STALLED;
        if tries.peek().is_none() && suffices(&failed) && trying.iter().all(has_stalled) {
            return Err(failed);
        }
        match tries.next() {
            Some(one) => trying.push((Instant::now(), one)),
            None if trying.is_empty() => return Err(failed),
            None => {}
        }
        let next = poll_fn(|context| {
            let done = trying.iter_mut().enumerate().find_map(|(place, (_, one))| match one.as_mut().poll(context) {
                Poll::Ready(outcome) => Some((place, outcome)),
                Poll::Pending => None,
            });
            done.map_or(Poll::Pending, |(place, outcome)| {
                drop(trying.swap_remove(place));
                Poll::Ready(outcome)
            })
        });
        match timeout(STAGGER, next).await {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(error)) => {
                let is_settled = settles(&error);
                failed.push(error);
                if is_settled {
                    return Err(failed);
                }
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    fn after(ms: u64, outcome: Result<u8, u8>) -> Try<'static, u8, u8> {
        Box::pin(async move {
            sleep(Duration::from_millis(ms)).await;
            outcome
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_or_fails_costs_a_moment_and_all_errors_are_told() {
        let begun = Instant::now();
        let made = staggered([after(60_000, Err(1)), after(10, Err(2)), after(10, Ok(3))], |_| false, |_| false).await;
        assert_eq!((made, begun.elapsed().as_millis() / 10), (Ok(3), 72));
        assert_eq!(staggered([after(10, Err(1)), after(900, Err(2)), after(10, Err(3))], |_| false, |_| false).await, Err(vec![1, 3, 2]));
        let begun = Instant::now();
        let tries = [after(10, Err(1)), after(60_000, Ok(9)), after(10, Err(2)), after(60_000, Ok(9))];
        assert_eq!(staggered(tries, |_| false, |failed| failed.len() == 2).await, Err(vec![1, 2]));
        assert!(begun.elapsed() < 4 * STAGGER, "{:?}: who stalls is not waited for", begun.elapsed());
        let tries = [after(10, Err(1)), after(1_200, Ok(9)), after(10, Err(2))];
        assert_eq!(staggered(tries, |_| false, |failed| failed.len() == 2).await, Ok(9), "who takes his time is");
        assert_eq!(staggered([after(10, Err(1)), after(10, Ok(2))], |error| *error == 1, |_| false).await, Err(vec![1]));
    }
}
