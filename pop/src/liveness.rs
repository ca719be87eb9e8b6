//! Whether every part of the node still moves. The service manager's watchdog is fed by this check and by nothing else, so a
//! worker that hangs, a room that does not answer or a control plane that is stuck ends in a restart.

use std::time::Duration;

use tokio::time::Instant;

use crate::node::Node;
use crate::notify::Notifier;

/// How often `systemctl status` gets its line when there is no watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// How often a worker that has not moved yet is looked at again: a worker shows its counters every 20 ms.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Tells the service manager how the node is, and feeds the watchdog while everything moves. Ends with the runtime.
pub async fn keep_told(node: Node, notifier: Notifier) {
    // sd_watchdog_enabled(3): "it is recommended that a daemon sends a keep-alive notification every half of the time".
    let interval = notifier.watchdog().map_or(STATUS_INTERVAL, |deadline| deadline / 2);
    let mut last_status = String::new();
    loop {
        let checked_at = Instant::now();
        let status = match check(&node, interval / 2).await {
            Ok(()) => {
                notifier.alive();
                let clients: u64 = node.workers().iter().map(|worker| worker.gauges.transports).sum();
                format!("serving {clients} clients")
            }
            Err(stuck) => {
                tracing::error!("{stuck}: the watchdog is not fed");
                format!("stuck: {stuck}")
            }
        };
        if status != last_status {
            notifier.status(&status);
            last_status = status;
        }
        tokio::time::sleep_until(checked_at + interval).await;
    }
}

/// Asks the control tasks for an answer and the workers for a turn; the error names the first that does not within `patience`.
async fn check(node: &Node, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    if tokio::time::timeout_at(deadline, node.rooms_answer()).await.is_err() {
        return Err(format!("the rooms did not answer within {patience:?}"));
    }
    let turns = |node: &Node| node.workers().iter().map(|worker| worker.counters.turns).collect::<Vec<_>>();
    let before = turns(node);
    loop {
        // An idle worker sleeps until it is woken.
        node.wake_workers();
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = turns(node);
        let Some(stuck) = before.iter().zip(&now).position(|(before, now)| before == now) else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(format!("worker {stuck} has not turned within {patience:?}"));
        }
    }
}
