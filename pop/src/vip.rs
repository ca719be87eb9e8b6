//! `http.vip`: addresses of the PoP that one node at a time has. The cluster says who; a thread per address lends it to the kernel.
//!
//! ```text
//! cluster --every look: yours for 0.5 s, or not yours--> thread --every second: yours for 3 s--> kernel, which answers for the address
//!                                                               --ARP, NA: it is here----------> neighbours
//! ```
//! Who dies or hangs says nothing more, so the kernel takes the address away by itself. Who is silent keeps it where nobody hears it, until
//! it hears the others again. While two have it, the one that took it last says so more often than the one before. A host that cannot have
//! it leaves it to others: its interface has no carrier, or its kernel refuses.

mod frame;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pop_session::vip::SETTLE;
use pop_uring::{DiagSocket, FrameSocket, Interface, RouteSocket};

/// What the cluster said holds for so long: it says it every 20 ms, and who did not run for so long asks before it goes on.
const WORD_HOLDS: Duration = Duration::from_millis(500);

/// What was lent to the kernel goes after so long. Whole seconds, as the kernel counts them.
const LIFETIME: Duration = Duration::from_secs(3);

/// How often it is lent and announced anew.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is announced at first, and for how long: until the kernel of one that died has forgotten the address, too.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(250);
const ANNOUNCE_OFTEN: Duration = Duration::from_secs(4);

/// Who was not lent it for so long lets others have it, and tries again after a while, each time twice as long.
const FAILS_MAX: Duration = Duration::from_secs(1);
const REST_MIN: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_secs(640);

/// A service address, and whether this node has it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vip(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: IpAddr,
    word: Mutex<Word>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    is_able: AtomicBool,
    is_held: AtomicBool,
    takeovers: AtomicU64,
    failures: AtomicU64,
}

/// Who is to have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This node.
    Ours,
    /// Another one, but this node stops and had it: its goodbyes leave by it, and nobody is told that it is here.
    Stops,
    /// Another one.
    Theirs,
}

/// What the cluster said last.
#[derive(Clone, Copy, Debug)]
struct Word {
    turn: Turn,
    until: Instant,
    /// Counts the times that nodes came or went.
    change: u64,
    /// The node stops.
    is_last: bool,
}

impl Vip {
    /// Looks whether this host can have `address`, and starts what lends it. What a former start of this node left is taken away.
    ///
    /// # Errors
    ///
    /// A sentence that says what to change.
    pub fn start(address: IpAddr) -> Result<Vip, String> {
        let mut link = HostLink::open(address)?;
        let word = Word { turn: Turn::Theirs, until: Instant::now(), change: 0, is_last: false };
        let vip = Vip(Arc::new(Shared {
            address,
            word: Mutex::new(word),
            changed: Condvar::new(),
            thread: Mutex::new(None),
            is_able: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            takeovers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }));
        let of = vip.clone();
        let thread = thread::Builder::new().name("pop-vip".to_owned()).spawn(move || of.lend(&mut link));
        *lock(&vip.0.thread) = Some(thread.map_err(|error| format!("no thread for http.vip: {error}"))?);
        Ok(vip)
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    /// Its host can have it now.
    pub fn is_able(&self) -> bool {
        self.0.is_able.load(Ordering::Relaxed)
    }

    /// This node has it.
    pub fn is_held(&self) -> bool {
        self.0.is_held.load(Ordering::Relaxed)
    }

    /// How often this node took it.
    pub fn takeovers(&self) -> u64 {
        self.0.takeovers.load(Ordering::Relaxed)
    }

    /// How often the kernel did not do what it was asked for.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// Whose turn it is, for as long as this is said again. `has_changed`: a node came or went, and may have said that it has it.
    pub(crate) fn tell(&self, turn: Turn, has_changed: bool) {
        let mut word = lock(&self.0.word);
        if word.is_last {
            return;
        }
        let is_new = word.turn != turn || has_changed;
        word.change += u64::from(has_changed);
        (word.turn, word.until) = (turn, Instant::now() + WORD_HOLDS);
        if is_new {
            self.0.changed.notify_one();
        }
    }

    /// Gives it up for good, and returns when the kernel has done so. Blocks for some microseconds, unless the kernel is busy.
    pub fn stop(&self) {
        let mut word = lock(&self.0.word);
        (word.turn, word.is_last) = (Turn::Theirs, true);
        drop(word);
        self.0.changed.notify_one();
        if let Some(thread) = lock(&self.0.thread).take() {
            // A panic there is told by the hook, and the address goes by itself.
            let _ = thread.join();
        }
    }

    /// The thread.
    fn lend(&self, link: &mut impl Link) {
        let mut lender = Lender::default();
        let mut word = lock(&self.0.word);
        loop {
            let said = *word;
            // Who tells does not wait for the kernel.
            drop(word);
            let before = lender.failures;
            let now = Instant::now();
            if lender.step(now, &said, link) {
                self.0.takeovers.fetch_add(1, Ordering::Relaxed);
            }
            self.0.failures.fetch_add(lender.failures - before, Ordering::Relaxed);
            self.0.is_held.store(lender.lent_at.is_some(), Ordering::Relaxed);
            let is_able = lender.is_able(now);
            if is_able && !self.0.is_able.swap(is_able, Ordering::Relaxed) {
                tracing::info!(address = %self.0.address, "this host can have the service address");
            }
            self.0.is_able.store(is_able, Ordering::Relaxed);
            if said.is_last {
                return;
            }
            word = lock(&self.0.word);
            if (word.change, word.turn, word.is_last) == (said.change, said.turn, false) {
                word = self.0.changed.wait_timeout(word, ANNOUNCE_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Nothing panics while it holds one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a lender needs of its host.
trait Link {
    /// Whether the kernel can have the address now, else a sentence that says why not.
    fn look(&mut self) -> Result<(), String>;
    /// Gives the kernel the address for [`LIFETIME`].
    fn lend(&mut self) -> Result<(), String>;
    /// Takes it away, and ends the connections to it first: nobody would hear of their end afterwards.
    fn take_back(&mut self) -> Result<(), String>;
    /// Tells the neighbours that it is here.
    fn announce(&mut self) -> Result<(), String>;
}

/// When an address is lent and announced.
#[derive(Debug, Default)]
struct Lender {
    /// When it was lent last; `None`: the kernel does not have it.
    lent_at: Option<Instant>,
    announced_at: Option<Instant>,
    often_until: Option<Instant>,
    change: u64,
    failures: u64,
    /// The last failure was told.
    is_failing: bool,
    /// Since when lending fails.
    fails_since: Option<Instant>,
    /// How long others had it when it failed last.
    rest: Duration,
    /// Until then others have it at least.
    rests_until: Option<Instant>,
}

impl Lender {
    /// Does what is due. Whether this node has just taken the address.
    fn step(&mut self, now: Instant, word: &Word, link: &mut impl Link) -> bool {
        if self.lent_at.is_some_and(|at| now >= at + LIFETIME) {
            // The kernel has taken it away meanwhile.
            self.lent_at = None;
        }
        if let Err(sentence) = link.look() {
            // Its neighbours have been without it, and it may go again in a moment: it begins as a node does.
            self.rest(now, SETTLE, &sentence);
        }
        if word.turn == Turn::Theirs || !self.is_able(now) {
            if self.lent_at.is_some() {
                let outcome = link.take_back();
                // Tried again, if it failed, until the kernel takes it away by itself.
                if self.note(outcome) {
                    self.lent_at = None;
                }
            }
            return false;
        }
        if now >= word.until {
            return false;
        }
        let is_taken = self.lent_at.is_none();
        if self.lent_at.is_none_or(|at| now >= at + RENEW_INTERVAL) {
            let outcome = link.lend();
            if !self.note(outcome) {
                if now >= *self.fails_since.get_or_insert(now) + FAILS_MAX {
                    self.fails_since = None;
                    self.rest = (2 * self.rest).clamp(REST_MIN, REST_MAX);
                    self.rest(now, self.rest, "http.vip: the kernel has refused it again and again");
                }
                return false;
            }
            (self.lent_at, self.fails_since, self.rest) = (Some(now), None, Duration::ZERO);
        }
        if word.turn == Turn::Stops {
            return false;
        }
        if is_taken || word.change != self.change {
            (self.change, self.announced_at, self.often_until) = (word.change, None, Some(now + ANNOUNCE_OFTEN));
        }
        let interval = if self.often_until.is_some_and(|until| now < until) { ANNOUNCE_INTERVAL } else { RENEW_INTERVAL };
        if self.announced_at.is_none_or(|at| now >= at + interval) {
            let outcome = link.announce();
            self.note(outcome);
            self.announced_at = Some(now);
        }
        is_taken
    }

    /// This node may have it, as far as its host is concerned.
    fn is_able(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| now >= until)
    }

    /// Others have it, for so long at least.
    fn rest(&mut self, now: Instant, how_long: Duration, why: &str) {
        if self.is_able(now) {
            tracing::warn!("{why}: other nodes have it meanwhile");
        }
        self.rests_until = self.rests_until.max(Some(now + how_long));
    }

    /// Counts a failure, and tells the first of several. Whether there was none.
    fn note(&mut self, outcome: Result<(), String>) -> bool {
        let Err(sentence) = &outcome else {
            self.is_failing = false;
            return true;
        };
        self.failures += 1;
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::error!("{sentence}");
        }
        false
    }
}

/// This host's kernel and the interface in whose subnet the address is.
struct HostLink {
    address: IpAddr,
    route: RouteSocket,
    frames: FrameSocket,
    diag: DiagSocket,
    /// Where it is to be lent.
    found: Option<Interface>,
    /// Where it was lent last.
    interface: Option<Interface>,
}

impl HostLink {
    fn open(address: IpAddr) -> Result<Self, String> {
        let route = RouteSocket::open().map_err(|error| format!("http.vip: no rtnetlink socket: {error}"))?;
        let frames = FrameSocket::open().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "http.vip needs CAP_NET_RAW to tell neighbours where the address is: run as root, or grant it".to_owned()
            }
            _ => format!("http.vip: no packet socket: {error}: allow AF_PACKET (RestrictAddressFamilies=)"),
        })?;
        let diag = DiagSocket::open().map_err(|error| format!("http.vip: no sock_diag socket: {error}"))?;
        let mut link = Self { address, route, frames, diag, found: None, interface: None };
        let interface = link.find()?;
        link.clear(&interface)?;
        Ok(link)
    }

    /// The interface in whose subnet the address is. Looked for each time: an interface may go and come.
    fn find(&mut self) -> Result<Interface, String> {
        let address = self.address;
        let all = self.route.addresses().map_err(|error| format!("http.vip: the host's addresses cannot be read: {error}"))?;
        let own = all.iter().find(|of| of.address == address && (of.is_permanent || of.prefix < full_prefix(address)));
        if own.is_some() {
            return Err(format!(
                "http.vip {address} is an address of this host alone: take it away there (`ip address del`), nodes lend it to each other's hosts"
            ));
        }
        let beside = all.iter().filter(|of| of.address != address && of.is_on_link(address)).max_by_key(|of| of.prefix);
        let Some(beside) = beside else {
            return Err(format!("http.vip {address} is in no subnet of this host: set it to a free address beside one of `ip address`"));
        };
        self.route.interface(beside.interface).map_err(|error| {
            format!("http.vip {address} belongs to interface {}, which has no neighbours to tell: {error}", beside.interface)
        })
    }

    /// Takes away what a former start of this node has left.
    fn clear(&mut self, interface: &Interface) -> Result<(), String> {
        match self.route.take_back(interface.index, self.address) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err("http.vip needs CAP_NET_ADMIN to give the host an address: run as root, or grant it".to_owned())
            }
            Err(error) => Err(format!("http.vip {} cannot be taken from {}: {error}", self.address, interface.name)),
        }
    }
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Link for HostLink {
    fn look(&mut self) -> Result<(), String> {
        let interface = self.find()?;
        if !interface.is_up {
            return Err(format!("http.vip {}: interface {} is down or has no carrier", self.address, interface.name));
        }
        self.found = Some(interface);
        Ok(())
    }

    fn lend(&mut self) -> Result<(), String> {
        let Some(interface) = self.found.clone() else { return Ok(()) };
        self.route
            .lend(interface.index, self.address, LIFETIME.as_secs() as u32)
            .map_err(|error| format!("http.vip {} cannot be given to {}: {error}", self.address, interface.name))?;
        self.interface = Some(interface);
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), String> {
        let Some(interface) = self.interface.take() else { return Ok(()) };
        match self.diag.reset_connections(self.address) {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!(address = %self.address, count, "connections to the service address are reset: it goes to another node")
            }
            // They end at their clients' next packet, which another node answers.
            Err(error) => tracing::warn!(address = %self.address, %error, "connections to the service address cannot be reset"),
        }
        let outcome = self.clear(&interface);
        if outcome.is_err() {
            self.interface = Some(interface);
        }
        outcome
    }

    fn announce(&mut self) -> Result<(), String> {
        let Some(interface) = &self.interface else { return Ok(()) };
        for frame in frame::announcements(interface.mac, self.address) {
            let told = self.frames.send(interface.index, &frame);
            told.map_err(|error| format!("http.vip {}: the neighbours at {} cannot be told: {error}", self.address, interface.name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel and neighbours in fake time.
    #[derive(Default)]
    struct FakeLink {
        now: Option<Instant>,
        until: Option<Instant>,
        announced: usize,
        refuses: bool,
        has_no_carrier: bool,
    }

    impl FakeLink {
        fn has_it(&self, now: Instant) -> bool {
            self.until.is_some_and(|until| now < until)
        }
    }

    impl Link for FakeLink {
        fn look(&mut self) -> Result<(), String> {
            if self.has_no_carrier { Err("no carrier".to_owned()) } else { Ok(()) }
        }

        fn lend(&mut self) -> Result<(), String> {
            if self.refuses {
                return Err("refused".to_owned());
            }
            self.until = self.now.map(|now| now + LIFETIME);
            Ok(())
        }

        fn take_back(&mut self) -> Result<(), String> {
            self.until = None;
            Ok(())
        }

        fn announce(&mut self) -> Result<(), String> {
            self.announced += 1;
            Ok(())
        }
    }

    struct World {
        now: Instant,
        word: Word,
        lender: Lender,
        link: FakeLink,
        takeovers: usize,
    }

    impl World {
        fn new() -> World {
            let now = Instant::now();
            let word = Word { turn: Turn::Ours, until: now + WORD_HOLDS, change: 0, is_last: false };
            World { now, word, lender: Lender::default(), link: FakeLink::default(), takeovers: 0 }
        }

        /// Steps of the thread for so long, while the cluster goes on telling or not.
        fn run(&mut self, ms: u64, is_told: bool) {
            for _ in 0..ms / 50 {
                self.now += Duration::from_millis(50);
                if is_told {
                    self.word.until = self.now + WORD_HOLDS;
                }
                self.link.now = Some(self.now);
                self.takeovers += usize::from(self.lender.step(self.now, &self.word, &mut self.link));
            }
        }
    }

    #[test]
    fn a_holder_has_it_and_says_so_often_at_first_and_each_second_later() {
        let mut world = World::new();
        world.run(50, true);
        assert_eq!((world.link.has_it(world.now), world.link.announced, world.takeovers), (true, 1, 1));
        world.run(3_950, true);
        assert_eq!(world.link.announced, 16);
        world.run(100_000, true);
        assert_eq!((world.link.has_it(world.now), world.takeovers), (true, 1));
        assert!((100..=102).contains(&(world.link.announced - 16)), "{} in 100 s", world.link.announced - 16);
    }

    #[test]
    fn who_stops_has_it_without_a_word_until_its_goodbyes_are_out() {
        let mut world = World::new();
        world.run(5_000, true);
        let announced = world.link.announced;
        (world.word.turn, world.word.change) = (Turn::Stops, 1);
        world.run(5_000, true);
        assert_eq!((world.link.has_it(world.now), world.link.announced), (true, announced));
        world.word.turn = Turn::Theirs;
        world.run(50, true);
        assert!(!world.link.has_it(world.now));
    }

    #[test]
    fn who_is_told_nothing_loses_it_and_who_is_told_that_it_is_anothers_gives_it_up_at_once() {
        let mut world = World::new();
        world.run(1_000, true);
        world.run(2_000, false);
        let announced = world.link.announced;
        assert!(world.link.has_it(world.now), "a hang that ends soon loses nothing");
        world.run(2_500, false);
        assert_eq!((world.link.has_it(world.now), world.link.announced, world.lender.lent_at), (false, announced, None));
        world.run(50, true);
        assert_eq!((world.link.has_it(world.now), world.takeovers), (true, 2));
        world.word.turn = Turn::Theirs;
        world.run(50, true);
        assert_eq!((world.link.has_it(world.now), world.lender.lent_at), (false, None));
    }

    #[test]
    fn when_a_node_comes_or_goes_the_holder_says_at_once_that_it_has_it() {
        let mut world = World::new();
        world.run(10_500, true);
        let announced = world.link.announced;
        world.word.change += 1;
        world.run(50, true);
        assert_eq!((world.link.announced, world.takeovers), (announced + 1, 1));
    }

    #[test]
    fn a_kernel_that_refuses_is_asked_again_and_counted() {
        let mut world = World::new();
        world.link.refuses = true;
        world.run(500, true);
        assert_eq!((world.lender.failures, world.link.announced, world.takeovers), (10, 0, 0));
        world.link.refuses = false;
        world.run(50, true);
        assert_eq!((world.link.has_it(world.now), world.link.announced, world.takeovers), (true, 1, 1));
    }

    #[test]
    fn who_has_no_carrier_gives_it_up_and_may_have_it_again_when_the_link_has_settled() {
        let mut world = World::new();
        world.run(5_000, true);
        world.link.has_no_carrier = true;
        world.run(50, true);
        assert_eq!((world.link.has_it(world.now), world.lender.is_able(world.now)), (false, false));
        // A link that flaps is none.
        for _ in 0..10 {
            world.link.has_no_carrier ^= true;
            world.run(1_000, true);
        }
        world.link.has_no_carrier = true;
        world.run(50, true);
        world.link.has_no_carrier = false;
        world.run(2_900, true);
        assert_eq!((world.lender.is_able(world.now), world.takeovers), (false, 1));
        world.run(150, true);
        assert_eq!((world.lender.is_able(world.now), world.link.has_it(world.now), world.takeovers), (true, true, 2));
        assert_eq!(world.lender.failures, 0, "the kernel did what it was asked for");
    }

    #[test]
    fn a_kernel_that_goes_on_refusing_leaves_it_to_others_for_longer_each_time() {
        let mut world = World::new();
        world.run(5_000, true);
        world.link.refuses = true;
        // When it is to be lent anew, which it is each second.
        world.run(1_100, true);
        assert_eq!((world.link.has_it(world.now), world.lender.is_able(world.now)), (false, false), "taken back before it runs out");
        for rest_s in [10, 20, 40, 80, 160, 320, 640, 640] {
            let failures = world.lender.failures;
            world.run(1_000 * rest_s - 100, true);
            assert_eq!((world.lender.is_able(world.now), world.lender.failures), (false, failures), "{rest_s} s");
            world.run(50, true);
            assert!(world.lender.is_able(world.now), "{rest_s} s");
            world.run(1_050, true);
            assert!(!world.lender.is_able(world.now), "{rest_s} s");
        }
        world.link.refuses = false;
        world.run(641_000, true);
        assert_eq!((world.link.has_it(world.now), world.lender.rest), (true, Duration::ZERO));
    }
}
