//! Which node of a PoP holds a service address (`http.vip`): the first of the address's rank that may. Every node finds the same without a
//! word, from what it sees of the others.
//!
//! ```text
//! began       + SETTLE                               a node that begins takes nothing before it has seen who is there,
//!   |------------|--- it counts, for itself            and those who were there before
//!   seen         + SETTLE                              count it when it counts itself
//!     |------------|--- it counts, for the others
//! ```

use std::net::IpAddr;
use std::time::Duration;

use pop_schemas::{NodeId, SessionId, Time};

use crate::placement;

/// A node that begins has so long to see the others.
pub const SETTLE: Duration = Duration::from_secs(3);

/// From when on a node that is first seen then may hold an address, in the eyes of one that began at `began`: at once where that one has
/// just begun itself, since then it may have held it for long.
pub fn counts_from(began: Time, seen: Time) -> Time {
    if seen < began + SETTLE { seen } else { seen + SETTLE }
}

/// Who of those that may holds `address`.
pub fn holder(address: IpAddr, fit: &[NodeId]) -> Option<NodeId> {
    // Addresses are far shorter than a session's name may be, and all of their characters may be in one.
    let name = SessionId::new(&format!("vip {address}")).ok()?;
    placement::rank(&name, fit.iter().copied()).first().copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TICK_MS: u64 = 20;

    fn address() -> IpAddr {
        IpAddr::from([192, 0, 2, 80])
    }

    /// What a node knows: since when it is there, and from when on each other counts; as cluster.rs keeps it.
    struct View {
        began: Time,
        others: BTreeMap<NodeId, Time>,
    }

    /// Nodes in fake time, each seen by the others `delay` after it begins and after it ends.
    struct World {
        now: Time,
        delay: Duration,
        alive: BTreeMap<NodeId, View>,
        ended: BTreeMap<NodeId, Time>,
    }

    impl World {
        fn new(delay_ms: u64) -> World {
            let now = Time::from_millis(1_000);
            World { now, delay: Duration::from_millis(delay_ms), alive: BTreeMap::new(), ended: BTreeMap::new() }
        }

        fn begin(&mut self, node: u64) {
            self.alive.insert(NodeId(node), View { began: self.now, others: BTreeMap::new() });
            self.ended.remove(&NodeId(node));
        }

        fn end(&mut self, node: u64) {
            self.alive.remove(&NodeId(node));
            self.ended.insert(NodeId(node), self.now);
        }

        /// One look of each; who holds the address afterwards.
        fn tick(&mut self) -> Vec<u64> {
            self.now = self.now + Duration::from_millis(TICK_MS);
            let (now, delay) = (self.now, self.delay);
            let begins: Vec<(NodeId, Time)> = self.alive.iter().map(|(node, view)| (*node, view.began)).collect();
            for (own, view) in &mut self.alive {
                for (node, began) in &begins {
                    if node != own && now >= *began + delay && now >= view.began + delay {
                        view.others.entry(*node).or_insert_with(|| counts_from(view.began, now));
                    }
                }
                view.others.retain(|node, _| self.ended.get(node).is_none_or(|at| now < *at + delay));
            }
            let holds = |(own, view): (&NodeId, &View)| {
                let others = view.others.iter().map(|(node, from)| (*node, *from));
                let counting = others.chain([(*own, view.began + SETTLE)]).filter(|(_, from)| *from <= now);
                let fit: Vec<NodeId> = counting.map(|(node, _)| node).collect();
                (holder(address(), &fit) == Some(*own)).then_some(own.0)
            };
            self.alive.iter().filter_map(holds).collect()
        }

        /// Ticks for so long: how long nobody held it, and how long more than one.
        fn run(&mut self, ms: u64) -> (u64, u64) {
            let (mut none, mut several) = (0, 0);
            for _ in 0..ms / TICK_MS {
                match self.tick().len() {
                    0 => none += TICK_MS,
                    1 => {}
                    _ => several += TICK_MS,
                }
            }
            (none, several)
        }
    }

    /// The nodes 1 to 3 in the order in which they take the address.
    fn ranked() -> Vec<u64> {
        let mut left: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let mut ranked = Vec::new();
        while let Some(first) = holder(address(), &left) {
            left.retain(|node| *node != first);
            ranked.push(first.0);
        }
        ranked
    }

    #[test]
    fn nodes_that_begin_together_wait_and_then_one_holds_it() {
        let mut world = World::new(300);
        (1..=3).for_each(|node| world.begin(node));
        let (none, several) = world.run(10_000);
        assert!((2_900..=3_000).contains(&none), "nobody for {none} ms");
        assert_eq!((several, world.tick()), (0, vec![ranked()[0]]));
    }

    #[test]
    fn a_survivor_holds_it_as_soon_as_the_holder_is_known_to_be_dead() {
        let mut world = World::new(300);
        (1..=3).for_each(|node| world.begin(node));
        world.run(5_000);
        world.end(ranked()[0]);
        let (none, several) = world.run(2_000);
        assert!((280..=320).contains(&none), "nobody for {none} ms");
        assert_eq!((several, world.tick()), (0, vec![ranked()[1]]));
    }

    #[test]
    fn a_first_of_the_rank_that_begins_again_takes_it_without_a_gap() {
        let mut world = World::new(300);
        (1..=3).for_each(|node| world.begin(node));
        world.run(5_000);
        world.end(ranked()[0]);
        world.run(2_000);
        world.begin(ranked()[0]);
        let (none, several) = world.run(10_000);
        assert_eq!(none, 0);
        // As long as the others saw it later than it began.
        assert!(several <= 320, "two for {several} ms");
        assert_eq!(world.tick(), [ranked()[0]]);
    }

    #[test]
    fn a_node_of_a_later_rank_that_begins_beside_the_holder_changes_nothing() {
        let mut world = World::new(300);
        world.begin(ranked()[0]);
        world.run(10_000);
        world.begin(ranked()[1]);
        assert_eq!(world.run(10_000), (0, 0));
        assert_eq!(world.tick(), [ranked()[0]]);
    }

    #[test]
    fn addresses_spread_over_the_nodes() {
        let nodes: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let holders: Vec<_> = (0..=255).map(|last| holder(IpAddr::from([192, 0, 2, last]), &nodes).expect("one of three")).collect();
        for node in nodes {
            let count = holders.iter().filter(|holder| **holder == node).count();
            assert!((60..=110).contains(&count), "{count} of 256 at {node}");
        }
        assert_eq!(holder("2001:db8::80".parse().expect("an address"), &[NodeId(7)]), Some(NodeId(7)));
        assert_eq!(holder(address(), &[]), None);
    }
}
