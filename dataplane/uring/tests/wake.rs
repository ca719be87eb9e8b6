//! The wake-up from a worker to a task of the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pop_uring::{AsyncWake, wake_pair};

/// A counter stands for the queue: every item put in must be seen, with no more than one wake-up on its way at a time.
#[test]
fn a_task_awaits_a_worker_and_misses_nothing() {
    const ITEMS: u64 = 100_000;
    let (waker, receiver) = wake_pair().expect("an eventfd");
    let queue = Arc::new(AtomicU64::new(0));
    let filled = queue.clone();
    let worker = thread::spawn(move || {
        for _ in 0..ITEMS {
            filled.fetch_add(1, Ordering::Release);
            waker.wake();
        }
        waker
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let seen = runtime.block_on(async {
        let wake = AsyncWake::new(receiver).expect("a runtime");
        let all = async {
            let mut seen = 0;
            while seen < ITEMS {
                wake.woken().await.expect("an eventfd");
                seen += queue.swap(0, Ordering::Acquire);
            }
            seen
        };
        tokio::time::timeout(Duration::from_secs(20), all).await
    });
    drop(worker.join().expect("the worker's thread"));
    assert_eq!(seen, Ok(ITEMS), "an item was put in and nobody woke");
}
