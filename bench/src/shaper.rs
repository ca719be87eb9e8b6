//! A network between namespaces, played by one process: what the kernel here has no netem for.
//!
//! ```text
//!  namespace a            process                         namespace b
//!  10.77.0.1/24                                           10.77.0.2/24
//!  device a (TUN) --> handle_packet -> wire a>b -> held --> device b (TUN)
//!                     by destination   loss, rate,  until
//!                     address          delay, ..    due
//! ```
//!
//! [`Shaper`] is the machine: packets and the time go in, deliveries come out, and a seed decides everything. Each ordered pair
//! of ends is a [`Wire`] of its own. [`process`] gives it devices and a clock.

mod packet;
pub mod process;
mod settings;
mod wire;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;

use pop_schemas::Time;

pub use settings::{Change, Jitter, JitterShape, Loss, Settings};
pub use wire::{Wire, WireStats};

/// Packets in flight over all wires. With devices of 1,500 bytes they take 98 MB at most; at 100 ms it is 650,000 packets/s.
const PACKETS_MAX: usize = 65_536;

/// One place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// What commands call it.
    pub name: String,
    /// Packets to these addresses go there.
    pub addresses: Vec<IpAddr>,
}

/// A packet whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Index of the end that gets it.
    pub to: usize,
    /// When it was to arrive.
    pub due: Time,
    /// The IP packet.
    pub packet: &'a [u8],
}

/// The network without devices and clock.
#[derive(Debug)]
pub struct Shaper {
    ends: Vec<End>,
    routes: HashMap<IpAddr, usize>,
    /// From end `i` to end `j` at `i * ends + j`.
    wires: Vec<Wire>,
    /// By time, and in order of arrival for equal times.
    held: BinaryHeap<Reverse<(Time, u64, u32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    arrivals: u64,
    unrouted: u64,
}

#[derive(Debug)]
struct Slot {
    wire: usize,
    packet: Vec<u8>,
}

impl Shaper {
    /// Perfect wires between `ends` (two or more, names and addresses unique): no delay, no loss. Equal seeds and equal inputs
    /// make equal deliveries.
    pub fn new(ends: Vec<End>, seed: u64) -> Result<Self, String> {
        if ends.len() < 2 {
            return Err("a network has two ends or more".to_owned());
        }
        let mut routes = HashMap::new();
        for (i, end) in ends.iter().enumerate() {
            if end.name.is_empty() || !end.name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(format!("end {:?}: a name is letters and digits", end.name));
            }
            if ends[..i].iter().any(|other| other.name == end.name) {
                return Err(format!("two ends are called {}", end.name));
            }
            for address in &end.addresses {
                if let Some(other) = routes.insert(*address, i) {
                    return Err(format!("{address} is at {} and at {}", ends[other].name, end.name));
                }
            }
        }
        // The wire's own number in the upper half: wires of one seed share no sequence.
        let wires = (0..ends.len() * ends.len()).map(|i| Wire::new(seed ^ ((i as u64 + 1) << 32))).collect();
        let (held, slots, free) = (BinaryHeap::new(), Vec::new(), Vec::new());
        Ok(Self { ends, routes, wires, held, slots, free, arrivals: 0, unrouted: 0 })
    }

    /// The ends, in the order of their indices.
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Follows one line: which wires, then what changes about them, such as `a-b delay 20ms loss 1%`. `a-b` is both directions,
    /// `a>b` one, `*` is an end of any name. A line with an error changes nothing.
    pub fn command(&mut self, line: &str) -> Result<(), String> {
        let (pair, changes) = line.trim().split_once(char::is_whitespace).ok_or("say which wires, and what changes: a-b loss 5%")?;
        let wires = self.find_wires(pair)?;
        let changes = Change::parse_all(changes)?;
        for wire in wires {
            changes.iter().for_each(|change| self.wires[wire].settings.apply(change));
        }
        Ok(())
    }

    fn find_wires(&self, pair: &str) -> Result<Vec<usize>, String> {
        let split = |separator| pair.split_once(separator);
        let (both, (from, to)) = match (split('>'), split('-')) {
            (Some(ends), _) => (false, ends),
            (None, Some(ends)) => (true, ends),
            (None, None) if pair == "*" => (true, ("*", "*")),
            (None, None) => return Err(format!("{pair:?} is no pair of ends: a-b for both directions, a>b for one, * for all")),
        };
        let (from, to) = (self.find_ends(from)?, self.find_ends(to)?);
        let one_way = |a: &[usize], b: &[usize]| -> Vec<usize> {
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b)));
            pairs.filter(|(a, b)| a != b).map(|(a, b)| a * self.ends.len() + b).collect()
        };
        let mut wires = one_way(&from, &to);
        if both {
            wires.extend(one_way(&to, &from));
        }
        if wires.is_empty() {
            return Err(format!("{pair:?} is no wire: its ends are the same"));
        }
        Ok(wires)
    }

    fn find_ends(&self, name: &str) -> Result<Vec<usize>, String> {
        if name == "*" {
            return Ok((0..self.ends.len()).collect());
        }
        let found = self.ends.iter().position(|end| end.name == name);
        found.map(|i| vec![i]).ok_or_else(|| format!("no end is called {name:?}"))
    }

    /// Takes an IP packet that end `from` sent. Drain [`Shaper::poll`] after it.
    pub fn handle_packet(&mut self, now: Time, from: usize, packet: &[u8]) {
        let Some(to) = self.route(from, packet) else {
            self.unrouted += 1;
            return;
        };
        let index = from * self.ends.len() + to;
        let copies = self.wires[index].carry(now, packet.len());
        for copy in copies.iter() {
            if self.held.len() == PACKETS_MAX {
                self.wires[index].stats.no_room += 1;
                continue;
            }
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(Slot { wire: index, packet: Vec::new() });
                (self.slots.len() - 1) as u32
            });
            let held = &mut self.slots[slot as usize];
            held.wire = index;
            held.packet.clear();
            held.packet.extend_from_slice(packet);
            if let Some(draw) = copy.corrupt {
                packet::flip_bit(&mut held.packet, draw);
            }
            self.arrivals += 1;
            self.held.push(Reverse((copy.due, self.arrivals, slot)));
        }
    }

    /// By destination; between two ends whatever is not for an end's own address goes to the other one, as on a cable.
    fn route(&self, from: usize, packet: &[u8]) -> Option<usize> {
        let to = packet::destination(packet)?;
        if to.is_multicast() {
            return None;
        }
        let cable = (self.ends.len() == 2).then_some(1 - from.min(1));
        self.routes.get(&to).copied().filter(|to| *to != from).or(cable)
    }

    /// When the next packet is due.
    pub fn next_due(&self) -> Option<Time> {
        self.held.peek().map(|Reverse((due, ..))| *due)
    }

    /// The next packet that is due by `now`.
    pub fn poll(&mut self, now: Time) -> Option<Delivery<'_>> {
        let Reverse((due, _, slot)) = *self.held.peek().filter(|Reverse((due, ..))| *due <= now)?;
        self.held.pop();
        self.free.push(slot);
        let Slot { wire, packet } = &self.slots[slot as usize];
        let stats = &mut self.wires[*wire].stats;
        stats.delivered += 1;
        stats.delivered_bytes += packet.len() as u64;
        Some(Delivery { to: wire % self.ends.len(), due, packet })
    }

    /// Packets on their way.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Packets to no end: multicast, and addresses that nobody has.
    pub fn unrouted(&self) -> u64 {
        self.unrouted
    }

    /// Each wire that carried something, as `(from, to, counters)`.
    pub fn stats(&self) -> impl Iterator<Item = (&str, &str, WireStats)> {
        let name = |i: usize| self.ends[i].name.as_str();
        let used = self.wires.iter().enumerate().filter(|(_, wire)| wire.stats.packets > 0);
        used.map(move |(i, wire)| (name(i / self.ends.len()), name(i % self.ends.len()), wire.stats))
    }
}

#[cfg(test)]
mod tests;
