//! Datagrams of another link that pass over this one: sealed between that link's two nodes, and once more on each hop.
//!
//! ```text
//! X: link X-Y seals, link X-Z wraps -- Z: link X-Z opens, link Z-Y wraps -- Y: link Z-Y opens, link X-Y opens
//!
//!  head: layer = worker, epoch = hops left | sealed: destination (8) | datagram of X-Y, its head and tag included | tag
//! ```
//! The route is the origin's, and short: who carries a datagram gives it to the node that the route names, over a link with that node, or to
//! nobody. So a path has two hops, and no datagram can go in a circle; both are checked all the same.

use pop_schemas::NodeId;

use crate::{
    RelayDrop,
    frame::{FrameKind, Head, OVERHEAD},
};

/// Links that a datagram may cross on its way from one node to another, at most.
pub const HOPS_MAX: u8 = 3;
/// Bytes of the destination in front of the datagram.
pub(super) const DESTINATION_LEN: usize = 8;
/// Bytes that a datagram is longer on each hop of its way through other nodes.
pub const TRANSIT_OVERHEAD: usize = OVERHEAD + DESTINATION_LEN;

/// Where a datagram goes, and how far it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRoute {
    /// The node that can open it.
    pub destination: NodeId,
    /// And its worker.
    pub worker: u8,
    /// Links that it may cross after this one.
    pub hops_left: u8,
}

impl SourceRoute {
    /// Through one node to `worker` of `destination`.
    pub fn through_one(destination: NodeId, worker: u8) -> SourceRoute {
        SourceRoute { destination, worker, hops_left: 1 }
    }

    /// The route from `own` on of what came from `from`; `None`: it has arrived. Fails with [`RelayDrop::Circle`] when it leads back, with
    /// [`RelayDrop::HopsUsed`] when it may go no further.
    pub fn onward(self, own: NodeId, from: NodeId) -> Result<Option<SourceRoute>, RelayDrop> {
        if self.destination == own {
            return Ok(None);
        }
        if self.destination == from {
            return Err(RelayDrop::Circle);
        }
        let hops_left = self.hops_left.checked_sub(1).ok_or(RelayDrop::HopsUsed)?;
        Ok(Some(SourceRoute { hops_left, ..self }))
    }
}

/// A datagram that is to go on, or has arrived. It is as hostile as any other.
#[derive(Debug, PartialEq, Eq)]
pub struct Transit<'a> {
    /// Its route from here.
    pub route: SourceRoute,
    /// The datagram, from head to tag.
    pub datagram: &'a mut [u8],
}

impl<'a> Transit<'a> {
    /// What lies in `payload`. Fails with [`RelayDrop::BadRoute`] when the route is longer than one may be, or what follows is no datagram,
    /// or a transit again.
    pub(super) fn read(head: &Head, payload: &'a mut [u8]) -> Result<Transit<'a>, RelayDrop> {
        let (destination, datagram) = payload.split_first_chunk_mut::<DESTINATION_LEN>().ok_or(RelayDrop::BadRoute)?;
        let inner = Head::read(datagram).map_err(|_| RelayDrop::BadRoute)?;
        if head.epoch >= HOPS_MAX || inner.kind == FrameKind::Transit {
            return Err(RelayDrop::BadRoute);
        }
        let destination = NodeId(u64::from_le_bytes(*destination));
        Ok(Transit { route: SourceRoute { destination, worker: head.layer, hops_left: head.epoch }, datagram })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::VERSION;

    const ROUTE: SourceRoute = SourceRoute { destination: NodeId(3), worker: 1, hops_left: 1 };

    #[test]
    fn a_route_goes_on_while_it_has_hops_and_never_back() {
        let on = ROUTE.onward(NodeId(2), NodeId(1)).expect("one more hop").expect("it is for another");
        assert_eq!(on, SourceRoute { hops_left: 0, ..ROUTE });
        assert_eq!(on.onward(NodeId(3), NodeId(2)), Ok(None));
        assert_eq!(on.onward(NodeId(4), NodeId(2)), Err(RelayDrop::HopsUsed));
        assert_eq!(ROUTE.onward(NodeId(2), NodeId(3)), Err(RelayDrop::Circle));
        // However it is sent round, it ends.
        let mut route = SourceRoute { hops_left: HOPS_MAX - 1, ..ROUTE };
        let mut hops = 1;
        while let Ok(Some(next)) = route.onward(NodeId(8), NodeId(9)) {
            (route, hops) = (next, hops + 1);
        }
        assert_eq!(hops, HOPS_MAX);
    }

    #[test]
    fn what_is_no_datagram_or_a_transit_again_is_not_carried() {
        let head = |kind, epoch| Head { version: VERSION, kind, phase: false, association: 258, alias: 0, layer: 1, epoch, counter: 5 };
        let payload = |kind| [3, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(head(kind, 0).bytes()).chain([9; 16]).collect::<Vec<u8>>();
        let mut good = payload(FrameKind::Media);
        let transit = Transit::read(&head(FrameKind::Transit, 1), &mut good).expect("a media datagram");
        assert_eq!((transit.route, transit.datagram.len()), (ROUTE, OVERHEAD));
        assert_eq!(Transit::read(&head(FrameKind::Transit, HOPS_MAX), &mut good), Err(RelayDrop::BadRoute));
        assert_eq!(Transit::read(&head(FrameKind::Transit, 1), &mut payload(FrameKind::Transit)), Err(RelayDrop::BadRoute));
        for len in 0..good.len() {
            assert_eq!(Transit::read(&head(FrameKind::Transit, 1), &mut good[..len]), Err(RelayDrop::BadRoute), "{len} bytes");
        }
    }
}
