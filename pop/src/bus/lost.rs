//! Nodes that take connections and are not on the bus.
//!
//! zenoh 1.10.2 gives a connection up at its timeout, wherever that is. One that waits for its new-link callback then, as on a machine with
//! too much to do, is in the table of transports already: what sends there runs, what reads never begins, and each later connection with that
//! node is refused as a second one. Nothing inside zenoh ends that. A bus that is entered anew has another name there, and meets all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How often it is looked whether somebody is missing.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Somebody may be missing for so long: a start, a reload, and the tries of zenoh are over by then.
const MISSING_MAX: Duration = Duration::from_secs(5);

/// From one time that the bus is entered anew to the next, at first; it doubles as long as that does not help.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// Who does not take a connection within this is taken for dead.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// When the bus is to be entered anew.
#[derive(Debug)]
pub(super) struct Lost {
    missing_since: Option<Instant>,
    /// Not before.
    next: Option<Instant>,
    wait: Duration,
}

impl Default for Lost {
    fn default() -> Self {
        Lost { missing_since: None, next: None, wait: AGAIN }
    }
}

impl Lost {
    /// What a look found; whether the bus is to be entered anew.
    pub(super) fn look(&mut self, now: Instant, is_missing: bool) -> bool {
        if !is_missing {
            *self = Lost::default();
            return false;
        }
        let since = *self.missing_since.get_or_insert(now);
        if now.duration_since(since) < MISSING_MAX || self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + self.wait);
        self.wait = (2 * self.wait).min(AGAIN_MAX);
        true
    }
}

/// Those of `connect` that are not this node, which listens at `listen`: a list may be the same for all nodes of a PoP.
pub(super) fn others(connect: &[SocketAddr], listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_this_node = |address: &SocketAddr| {
        let is_ours = |at: &SocketAddr| at.port() == address.port() && (at.ip() == address.ip() || at.ip().is_unspecified());
        listen.iter().any(|at| is_ours(at) && (at == address || is_of_this_host(*address)))
    };
    connect.iter().filter(|address| !is_this_node(address)).copied().collect()
}

/// Whether packets to it do not leave this host: then they come from the same address. Sends nothing.
fn is_of_this_host(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    own.is_ok_and(|own| own.ip() == address.ip())
}

/// How many of them take connections.
pub(super) async fn there_are(others: &[SocketAddr]) -> usize {
    let mut there = 0;
    for address in others {
        there += usize::from(matches!(timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_))));
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_missing_for_five_seconds_is_looked_for_anew_and_ever_less_often() {
        let (mut lost, began) = (Lost::default(), Instant::now());
        let entered: Vec<u64> = (0..4_000).filter(|second| lost.look(began + Duration::from_secs(*second), true)).collect();
        assert_eq!(entered, [5, 35, 95, 215, 455, 935, 1_535, 2_135, 2_735, 3_335, 3_935]);
        assert!(!lost.look(began + Duration::from_secs(4_000), false));
        let later = began + Duration::from_secs(4_001);
        let entered: Vec<u64> = (0..40).filter(|second| lost.look(later + Duration::from_secs(*second), true)).collect();
        assert_eq!(entered, [5, 35], "who was found is a case of its own when it is missing again");
    }

    #[test]
    fn who_is_missing_for_a_moment_now_and_then_is_let_be() {
        let (mut lost, began) = (Lost::default(), Instant::now());
        assert!((0..100).all(|second| !lost.look(began + Duration::from_secs(second), second % 5 != 0)));
    }

    #[test]
    fn this_node_is_none_of_the_others() {
        let at = |addresses: &[&str]| -> Vec<SocketAddr> { addresses.iter().map(|address| address.parse().unwrap()).collect() };
        let connect = at(&["127.0.0.1:7", "127.0.0.1:8", "192.0.2.1:7"]);
        assert_eq!(others(&connect, &at(&["127.0.0.1:7"])), at(&["127.0.0.1:8", "192.0.2.1:7"]));
        assert_eq!(others(&connect, &at(&["0.0.0.0:7"])), at(&["127.0.0.1:8", "192.0.2.1:7"]));
        assert_eq!(others(&connect, &at(&["127.0.0.2:9"])), connect);
    }
}
