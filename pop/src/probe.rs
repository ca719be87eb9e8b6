//! Latency probes of strangers: the reflectors, the ICE probe's credentials, and what a client reads to find all of it.
//!
//! ```text
//! browser --GET /probe----------------> page          GET /.well-known/pop.json -> names, addresses, credentials, other PoPs
//!         --fetch /probe--------------> 204           UDP 3478, 862 -> service thread       UDP media port -> worker
//! ```

mod applier;
mod description;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use pop_dataplane::reflect::{Reflect, ReflectCounters, ReflectSocket, SharedRates};
use pop_dataplane::{Counters, Service, WorkerSnapshot};
use pop_proto::probe::{HashSeed, ProbeCredentials, ProbeRates, ProbeResult, ReflectorKind};

use crate::config::{Config, ProbeConfig, PublicUrl, ReflectorPlace};

pub use applier::ProbeApplier;
pub use description::{Candidate, Description, IceDescription};
pub use routes::routes;

/// What a node offers to those who measure.
pub struct Probe {
    region: String,
    pops: RwLock<Vec<PublicUrl>>,
    public_url: Option<PublicUrl>,
    serves_http: bool,
    credentials: Option<ProbeCredentials>,
    rates: Arc<SharedRates>,
    /// What each reflector is called by clients.
    places: Vec<(ReflectorKind, SocketAddr)>,
    reflectors: [Arc<ReflectCounters>; ReflectorKind::ALL.len()],
    http_answered: AtomicU64,
    /// Strangers are told one worker each, in turn.
    next_worker: AtomicUsize,
}

/// Reflectors that are bound and wait for the service thread.
#[derive(Debug)]
pub struct Bound(Vec<ReflectSocket>);

impl Probe {
    /// Ports of the reflectors.
    pub fn reflector_ports(&self) -> impl Iterator<Item = u16> {
        self.places.iter().map(|(_, place)| place.port())
    }

    /// Draws the credentials and binds the reflectors.
    ///
    /// # Errors
    ///
    /// A place that the config demands and this host refuses: a sentence that says what to change.
    pub fn bind(config: &Config) -> Result<(Probe, Bound), String> {
        let probe = &config.probe;
        let mut sockets = Vec::new();
        for kind in ReflectorKind::ALL {
            sockets.extend(bind(kind, place(probe, kind), config)?);
        }
        let advertised = |socket: &ReflectSocket| {
            let address = socket.local_addr();
            let at = config.media.addresses.iter().position(|ip| *ip == address.ip());
            (socket.kind(), SocketAddr::new(at.and_then(|at| config.media.advertised(at)).unwrap_or(address.ip()), address.port()))
        };
        let probe = Probe {
            region: config.node.region.clone(),
            pops: RwLock::new(probe.pops.clone()),
            public_url: config.http.public_url.clone(),
            serves_http: probe.http,
            credentials: probe.ice.then(draw_credentials),
            rates: SharedRates::new(rates(probe)),
            places: sockets.iter().map(advertised).collect(),
            reflectors: Default::default(),
            http_answered: AtomicU64::new(0),
            next_worker: AtomicUsize::new(0),
        };
        Ok((probe, Bound(sockets)))
    }

    /// Lets the service thread answer.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn start(&self, bound: Bound, service: &Service) -> io::Result<()> {
        for socket in bound.0 {
            let counters = Arc::clone(&self.reflectors[socket.kind() as usize]);
            service.reflect(Reflect { socket, rates: Arc::clone(&self.rates), counters, seed: draw_seed() })?;
        }
        Ok(())
    }

    /// Tells clients about these PoPs from now on.
    pub(crate) fn set_pops(&self, pops: Vec<PublicUrl>) {
        *self.pops.write().unwrap_or_else(PoisonError::into_inner) = pops;
    }

    /// Limits the reflectors to `rates` from now on; the workers are told by command.
    pub(crate) fn set_rates(&self, rates: ProbeRates) {
        self.rates.set(rates);
    }

    /// What one worker answers ICE probes with.
    pub fn of_worker(&self, config: &ProbeConfig) -> Option<pop_dataplane::ProbeConfig> {
        let credentials = self.credentials.clone()?;
        Some(pop_dataplane::ProbeConfig { credentials, rates: rates(config), seed: draw_seed() })
    }

    /// Requests by kind and result.
    pub fn requests(&self, workers: &[WorkerSnapshot]) -> Vec<(&'static str, ProbeResult, u64)> {
        let mut requests = Vec::new();
        for result in ProbeResult::ALL {
            for kind in ReflectorKind::ALL {
                requests.push((kind.name(), result, self.reflectors[kind as usize].requests(result)));
            }
            let of_worker = |counters: &Counters| match result {
                ProbeResult::Answered => counters.probe_ice_answered,
                ProbeResult::Limited => counters.probe_ice_limited,
                ProbeResult::Refused => counters.probe_ice_refused,
            };
            requests.push(("ice", result, workers.iter().map(|worker| of_worker(&worker.counters)).sum()));
        }
        // The listener refuses and limits connections, not requests.
        requests.push(("http", ProbeResult::Answered, self.http_answered.load(Ordering::Relaxed)));
        requests
    }
}

/// The rates of the config.
pub fn rates(config: &ProbeConfig) -> ProbeRates {
    ProbeRates { per_prefix: config.prefix_requests_per_second, total: config.requests_per_second }
}

fn place(config: &ProbeConfig, kind: ReflectorKind) -> ReflectorPlace {
    match kind {
        ReflectorKind::Stun => config.stun,
        ReflectorKind::Stamp => config.stamp,
    }
}

/// The sockets of one kind. With `auto`, those that can be had, and one line about the first that cannot.
fn bind(kind: ReflectorKind, place: ReflectorPlace, config: &Config) -> Result<Vec<ReflectSocket>, String> {
    let (mut sockets, mut refused) = (Vec::new(), None);
    for address in place.addresses(&config.media, kind.port()) {
        match ReflectSocket::bind(kind, address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if place == ReflectorPlace::Auto => {
                refused.get_or_insert_with(|| refusal(kind, address, &error));
            }
            Err(error) => return Err(refusal(kind, address, &error)),
        }
    }
    if let Some(refusal) = refused {
        tracing::warn!("{refusal}; probes there are not answered");
    }
    Ok(sockets)
}

fn refusal(kind: ReflectorKind, address: SocketAddr, error: &io::Error) -> String {
    let key = kind.name();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address}/udp is taken by another process: stop it, or set probe.{key} to another port or to false")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{address}/udp needs CAP_NET_BIND_SERVICE: grant it, or set probe.{key} to a port from 1024 on or to false")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{address}/udp is no address of this host: set probe.{key} to one of `ip address`, or to false")
        }
        _ => format!("{address}/udp cannot be bound: {error}: set probe.{key} to another place or to false"),
    }
}

fn draw_seed() -> HashSeed {
    std::array::from_fn(|_| {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
        u128::from_ne_bytes(bytes)
    })
}

/// Public, and still drawn: who has never asked the node cannot make it answer.
fn draw_credentials() -> ProbeCredentials {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let draw = |len: usize| -> Box<str> {
        let mut bytes = vec![0; len];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect::<String>().into()
    };
    ProbeCredentials { ufrag: draw(16), pwd: draw(24) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, std::path::Path::new("pop.toml")).expect("it is valid")
    }

    #[test]
    fn a_taken_port_ends_the_start_only_where_the_config_demands_it() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("it is bound").port();
        let demanded = config(&format!("[probe]\nstun = {port}\nstamp = false\n[media]\naddresses = [\"127.0.0.1\"]\n"));
        let message = Probe::bind(&demanded).err().expect("it is taken");
        assert!(message.contains("is taken by another process: stop it, or set probe.stun"), "{message}");
        // Whoever has the standard ports on this machine: the default goes on.
        let holder = std::net::UdpSocket::bind("127.0.0.1:3478");
        assert!(Probe::bind(&config("[media]\naddresses = [\"127.0.0.1\"]\n")).is_ok());
        drop(holder);
        let none = Probe::bind(&config("[probe]\nstun = false\nstamp = false\n")).expect("nothing is bound").1;
        assert!(none.0.is_empty());
    }

    #[test]
    fn every_kind_and_result_is_told_from_the_start() {
        let config = config("[probe]\nstun = 0\nstamp = 0\n[media]\naddresses = [\"127.0.0.1\"]\nadvertise = [\"198.51.100.1\"]\n");
        let (probe, bound) = Probe::bind(&config).expect("free ports");
        assert_eq!(bound.0.len(), 2);
        assert!(probe.places.iter().all(|(_, place)| place.ip() == std::net::IpAddr::from([198, 51, 100, 1]) && place.port() != 0));
        assert_eq!(probe.requests(&[]).len(), 10);
        let credentials = probe.credentials.expect("the ICE probe is on");
        assert_eq!((credentials.ufrag.len(), credentials.pwd.len()), (16, 24));
    }
}
