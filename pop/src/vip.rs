//! `http.vip`: addresses of the PoP that one node at a time has. The cluster says who; a thread per address lends it to the kernel.
//!
//! ```text
//! cluster --every look: yours for 0.5 s, or not yours--> thread --every second: yours for 3 s--> kernel, which answers for the address
//!                                                               --ARP, NA: it is here----------> neighbours
//! ```
//! Who dies or hangs says nothing more, so the kernel takes the address away by itself. Who is silent keeps it where nobody hears it, until
//! it hears the others again. While two have it, the one that took it last says so more often than the one before.

mod frame;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pop_uring::{FrameSocket, Interface, RouteSocket};

/// What the cluster said holds for so long: it says it every 20 ms, and who did not run for so long asks before it goes on.
const WORD_HOLDS: Duration = Duration::from_millis(500);

/// What was lent to the kernel goes after so long. Whole seconds, as the kernel counts them.
const LIFETIME: Duration = Duration::from_secs(3);

/// How often it is lent and announced anew.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is announced at first, and for how long: until the kernel of one that died has forgotten the address, too.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(250);
const ANNOUNCE_OFTEN: Duration = Duration::from_secs(4);

/// A service address, and whether this node has it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vip(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: IpAddr,
    word: Mutex<Word>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
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
            if lender.step(Instant::now(), &said, link) {
                self.0.takeovers.fetch_add(1, Ordering::Relaxed);
            }
            self.0.failures.fetch_add(lender.failures - before, Ordering::Relaxed);
            self.0.is_held.store(lender.lent_at.is_some(), Ordering::Relaxed);
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
    /// Gives the kernel the address for [`LIFETIME`].
    fn lend(&mut self) -> Result<(), String>;
    /// Takes it away.
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
}

impl Lender {
    /// Does what is due. Whether this node has just taken the address.
    fn step(&mut self, now: Instant, word: &Word, link: &mut impl Link) -> bool {
        if self.lent_at.is_some_and(|at| now >= at + LIFETIME) {
            // The kernel has taken it away meanwhile.
            self.lent_at = None;
        }
        if word.turn == Turn::Theirs {
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
                return false;
            }
            self.lent_at = Some(now);
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
        let mut link = Self { address, route, frames, interface: None };
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
    fn lend(&mut self) -> Result<(), String> {
        let interface = self.find()?;
        self.route
            .lend(interface.index, self.address, LIFETIME.as_secs() as u32)
            .map_err(|error| format!("http.vip {} cannot be given to {}: {error}", self.address, interface.name))?;
        self.interface = Some(interface);
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), String> {
        let Some(interface) = self.interface.take() else { return Ok(()) };
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
    }

    impl FakeLink {
        fn has_it(&self, now: Instant) -> bool {
            self.until.is_some_and(|until| now < until)
        }
    }

    impl Link for FakeLink {
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
}
