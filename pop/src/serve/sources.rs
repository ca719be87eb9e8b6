//! What one client address may take of a public listener, so that nobody takes all of it.
//!
//! Many people behind one NAT are one address, so the bounds are wide: they stop a machine that runs wild, not a company.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// How long an address may save up requests: everybody of a company joins when the meeting begins.
const BURST: Duration = Duration::from_secs(5);

/// Addresses that are remembered. Each is 72 bytes; one is forgotten 5 s after its last request. More than these at once are a
/// flood from everywhere, against which a bound per address is no help: then they are let in, up to the listener's own bound.
const SOURCES_MAX: usize = 65_536;

/// The bounds of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Open connections.
    pub connections: usize,
    /// Requests per second, in the mean over 5 s.
    pub requests_per_s: u32,
}

/// The addresses of one listener.
#[derive(Debug)]
pub struct Sources {
    limits: SourceLimits,
    table: Mutex<Table>,
    refused_connections: AtomicU64,
}

#[derive(Debug)]
struct Table {
    sources: HashMap<IpAddr, Source>,
    swept_at: Instant,
}

#[derive(Debug)]
struct Source {
    connections: usize,
    /// When all that was asked for is paid off, at `requests_per_s`.
    paid_at: Instant,
}

/// One connection of an address; its place is given back when dropped.
#[derive(Debug)]
pub struct Guest {
    sources: Arc<Sources>,
    /// `None` for an address without a bound.
    address: Option<IpAddr>,
}

impl Sources {
    /// Nobody yet.
    pub fn new(limits: SourceLimits) -> Arc<Sources> {
        let table = Mutex::new(Table { sources: HashMap::new(), swept_at: Instant::now() });
        Arc::new(Sources { limits, table, refused_connections: AtomicU64::new(0) })
    }

    /// A place for one more connection of `remote`; `None` when it has as many as it may.
    pub fn admit(self: &Arc<Self>, now: Instant, remote: SocketAddr) -> Option<Guest> {
        let address = key(remote.ip());
        let Some(address) = address.filter(|address| self.lock().has_room_for(now, address)) else {
            return Some(Guest { sources: Arc::clone(self), address: None });
        };
        let mut table = self.lock();
        let source = table.sources.entry(address).or_insert(Source { connections: 0, paid_at: now });
        if source.connections >= self.limits.connections {
            self.refused_connections.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        source.connections += 1;
        Some(Guest { sources: Arc::clone(self), address: Some(address) })
    }

    /// Connections that were refused because their address had as many as it may.
    pub fn refused_connections(&self) -> u64 {
        self.refused_connections.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics with it")
    }
}

impl Table {
    fn has_room_for(&mut self, now: Instant, address: &IpAddr) -> bool {
        if self.sources.len() >= SOURCES_MAX / 2 && now.duration_since(self.swept_at) >= Duration::from_secs(1) {
            self.swept_at = now;
            self.sources.retain(|_, source| source.connections > 0 || source.paid_at > now);
        }
        self.sources.len() < SOURCES_MAX || self.sources.contains_key(address)
    }
}

impl Guest {
    /// Whether the address may ask for something now.
    pub fn may_ask(&self, now: Instant) -> bool {
        let Some(address) = self.address else { return true };
        let mut table = self.sources.lock();
        let source = table.sources.get_mut(&address).expect("an address with a connection is remembered");
        let paid_at = source.paid_at.max(now) + Duration::from_secs(1) / self.sources.limits.requests_per_s;
        let may = paid_at <= now + BURST;
        if may {
            source.paid_at = paid_at;
        }
        may
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut table = self.sources.lock();
        if let Some(source) = table.sources.get_mut(&address) {
            source.connections -= 1;
        }
    }
}

/// Who counts as one: an IPv4 address, or a /64 of IPv6, since one customer has at least that. Loopback has no bound: a proxy on
/// this host speaks for everybody, and who is on this host has shorter ways.
fn key(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
        address => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SourceLimits = SourceLimits { connections: 3, requests_per_s: 10 };

    fn from(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), 1)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_connections_and_others_have_theirs() {
        let (sources, now) = (Sources::new(LIMITS), Instant::now());
        let admit = |text: &str| sources.admit(now, from(text));
        let mut open: Vec<_> = (0..3).map(|_| admit("192.0.2.1").expect("there is room")).collect();
        assert!(admit("192.0.2.1").is_none() && admit("::ffff:192.0.2.1").is_none(), "both are one address");
        assert!(admit("192.0.2.2").is_some());
        open.pop();
        open.push(admit("192.0.2.1").expect("one place came free"));
        let _neighbours: Vec<_> = (0..3).map(|i| admit(&format!("2001:db8::{i}")).expect("there is room")).collect();
        assert!(admit("2001:db8::99").is_none() && admit("2001:db8:0:1::").is_some(), "a /64 is one customer");
        assert!((0..100).map(|_| admit("127.0.0.1").expect("loopback has no bound")).collect::<Vec<_>>().len() == 100);
        assert_eq!(sources.refused_connections(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_paid_off_over_time_and_not_by_new_connections() {
        let (sources, start) = (Sources::new(LIMITS), Instant::now());
        let asked = |now| {
            let guest = sources.admit(now, from("192.0.2.1")).expect("there is room");
            (0..1_000).filter(|_| guest.may_ask(now)).count()
        };
        assert_eq!(asked(start), 50, "10 a second, saved up for 5 s");
        assert_eq!(asked(start), 0);
        assert_eq!(asked(start + Duration::from_secs(2)), 20);
        assert_eq!(asked(start + Duration::from_secs(3_600)), 50);
        let local = sources.admit(start, from("::1")).expect("there is room");
        assert!((0..1_000).all(|_| local.may_ask(start)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_a_flood_from_everywhere_forgets_nobody_who_asks() {
        let (sources, start) = (Sources::new(LIMITS), Instant::now());
        let busy = sources.admit(start, from("192.0.2.1")).expect("there is room");
        while busy.may_ask(start) {}
        for i in 0..2 * SOURCES_MAX as u32 {
            let guest = sources.admit(start, SocketAddr::new(std::net::Ipv4Addr::from_bits(i).into(), 1)).expect("it is let in");
            guest.may_ask(start);
        }
        assert_eq!(sources.lock().sources.len(), SOURCES_MAX);
        assert!(!busy.may_ask(start));
        let later = start + Duration::from_secs(1);
        let _new = sources.admit(later, from("198.51.100.1"));
        assert_eq!(sources.lock().sources.len(), 2, "who has nothing open and nothing to pay is forgotten");
    }
}
