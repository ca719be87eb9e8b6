//! Datagrams that go through a third node: those of this node's links, over the link with it, and those of others that are passed on here.
//!
//! ```text
//! origin   link's train --keep--> Carriage --poll_carriage: each datagram sealed once more--> train to the carrier
//! carrier  open --pass_on--> Passing --poll_passing: sealed for the next link--> train to the destination
//! end      open --> the datagram as if it had come by itself, to the link that it names
//! ```
//! A train stays one: what is carried of one link is equally long and leaves together. Both places are made at the start and bounded.

use std::collections::VecDeque;
use std::ops::Range;

use pop_proto::control::{LinkId, LinkWay};
use pop_proto::{DropReason, Event};
use pop_relay::frame::association_of;
use pop_relay::link::{SourceRoute, TRANSIT_OVERHEAD, Transit, Way, Ways};
use pop_schemas::Time;

use super::link::{LinkState, Links, reason_of};
use super::transmit::{TRAIN_LEN_MAX, Train, Transmit};
use super::{Core, GRO_SEGMENTS_MAX};

/// Bytes and datagrams that are passed on in one turn before it has to send: two receive buffers with all that they can hold.
const PASSING_LEN: usize = 2 * RECEIVED_LEN_MAX;
const PASSING_MAX: usize = 2 * GRO_SEGMENTS_MAX;
/// Bytes of one receive buffer.
const RECEIVED_LEN_MAX: usize = 65_536;

/// What a link has written.
pub(super) struct Written {
    pub(super) link: usize,
    /// How it leaves, where that is not as the link's datagrams do.
    pub(super) way: Option<Way>,
    pub(super) transmit: Transmit,
}

/// Writes a train of one link.
type Write = fn(&mut Core, Time, &mut [u8]) -> Option<Written>;

/// A train that a link has written and another one carries.
struct Waiting {
    link: usize,
    carrier: LinkId,
    /// And after that this one.
    next: Option<LinkId>,
    len: usize,
    segment: usize,
    /// So much of it has left.
    at: usize,
}

impl Waiting {
    /// Where each datagram of it lies that has not left.
    fn rest(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (len, segment) = (self.len, self.segment);
        (self.at..len).step_by(segment).map(move |at| at..len.min(at + segment))
    }
}

/// A datagram of others.
struct Passed {
    link: usize,
    route: SourceRoute,
    at: usize,
    len: usize,
}

/// Both places of a worker.
pub(super) struct Transits {
    carried: Box<[u8]>,
    waiting: Option<Waiting>,
    passing: Box<[u8]>,
    passing_len: usize,
    passed: VecDeque<Passed>,
}

impl Transits {
    pub(super) const MEMORY_LEN: usize = TRAIN_LEN_MAX + PASSING_LEN + PASSING_MAX * size_of::<Passed>();

    /// Of a worker without links it has no place.
    pub(super) fn new(has_links: bool) -> Transits {
        let bytes = |len: usize| vec![0; if has_links { len } else { 0 }].into_boxed_slice();
        let passed = VecDeque::with_capacity(if has_links { PASSING_MAX } else { 0 });
        Transits { carried: bytes(TRAIN_LEN_MAX), waiting: None, passing: bytes(PASSING_LEN), passing_len: 0, passed }
    }

    /// It may have no room for what one more receive buffer brings.
    pub(super) fn is_full(&self) -> bool {
        self.passing_len > 0 && (self.passing_len + RECEIVED_LEN_MAX > PASSING_LEN || self.passed.len() + GRO_SEGMENTS_MAX > PASSING_MAX)
    }

    /// A train in `bytes` is to be carried, by one or by two.
    fn keep(&mut self, link: usize, [carrier, next]: [Option<LinkId>; 2], bytes: &[u8], train: &Transmit) {
        assert!(self.waiting.is_none(), "what was written before has left");
        let Some(carrier) = carrier else { return };
        self.carried[..train.len].copy_from_slice(&bytes[..train.len]);
        let segment = train.segment.map_or(train.len, usize::from);
        self.waiting = Some(Waiting { link, carrier, next, len: train.len, segment, at: 0 });
    }

    /// All of it has left over the first.
    fn next_carrier(&mut self) {
        self.waiting = self.waiting.take().and_then(|waiting| Some(Waiting { carrier: waiting.next?, next: None, at: 0, ..waiting }));
    }

    fn push(&mut self, link: usize, route: SourceRoute, datagram: &[u8]) -> Result<(), DropReason> {
        let at = self.passing_len;
        let place = self.passing.get_mut(at..at + datagram.len()).filter(|_| self.passed.len() < PASSING_MAX);
        place.ok_or(DropReason::RelayTransitFull)?.copy_from_slice(datagram);
        self.passing_len += datagram.len();
        self.passed.push_back(Passed { link, route, at, len: datagram.len() });
        Ok(())
    }

    /// A link is gone.
    pub(super) fn forget(&mut self, link: usize) {
        self.waiting = self.waiting.take().filter(|waiting| waiting.link != link);
        self.passed.retain(|passed| passed.link != link);
        self.passing_len = if self.passed.is_empty() { 0 } else { self.passing_len };
    }
}

impl Links {
    /// Over which link a way of `state` goes, where that can be: over one with another node, and all three know how.
    fn carrier_of(&self, state: &LinkState, way: LinkWay) -> Option<usize> {
        let LinkWay::Via(carrier) = way else { return None };
        let index = *self.ids.get(&carrier)?;
        let of = &self.slab[index];
        (of.node != state.node && of.carries && state.carries).then_some(index)
    }
}

impl Core {
    /// How a link's datagrams go from now on.
    pub(super) fn route_link(&mut self, now: Time, id: LinkId, way: LinkWay, backup: Option<LinkWay>) {
        let Some(&index) = self.links.ids.get(&id) else { return };
        let state = &mut self.links.slab[index];
        (state.way, state.backup) = (way, backup);
        self.review_ways(now, index);
    }

    /// Once a tick: a carrier may have gone, and what it takes may be longer or shorter.
    pub(super) fn review_all_ways(&mut self, now: Time) {
        for index in 0..self.links.slab.capacity() {
            if self.links.slab.get(index).is_some_and(|state| state.way != LinkWay::Direct || state.backup.is_some()) {
                self.review_ways(now, index);
            }
        }
    }

    fn review_ways(&mut self, now: Time, index: usize) {
        let state = &self.links.slab[index];
        let told = [Some(state.way), state.backup];
        let mut ways = [None; 2];
        let mut len_max = [None; 2];
        for (at, way) in told.into_iter().enumerate() {
            match way {
                None => {}
                Some(LinkWay::Direct) => ways[at] = Some(Way::Direct),
                Some(way @ LinkWay::Via(_)) => {
                    let Some(carrier) = self.links.carrier_of(state, way) else { continue };
                    let Some(of) = self.links.slab.get(carrier).and_then(|of| Some((of.id, of.link.as_ref()?))) else { continue };
                    ways[at] = Some(Way::Via(of.0.0));
                    len_max[at] = Some((of.0.0, of.1.transit_len_max()));
                }
            }
        }
        let state = &mut self.links.slab[index];
        // What cannot be leaves the other one, or the direct way.
        let (way, backup) = match ways {
            [Some(way), backup] => (way, backup),
            [None, Some(way)] => (way, None),
            [None, None] => (Way::Direct, None),
        };
        if std::mem::replace(&mut state.routed, (way, backup)) != (way, backup) {
            state.link().route(now, way, backup);
            self.links.mark_urgent(index);
        }
        for (carrier, len) in len_max.into_iter().flatten() {
            self.links.slab[index].link().set_len_max(now, carrier, len);
        }
    }

    /// A datagram on its way between two other nodes, or to this one; `true`: it has arrived.
    pub(super) fn take_transit(&mut self, from: usize, transit: &Transit<'_>) -> Result<bool, DropReason> {
        let state = &self.links.slab[from];
        let Some(route) = transit.route.onward(state.own, state.node).map_err(reason_of)? else {
            // Who carries its own datagrams in its own datagrams goes in a circle, too.
            let of = association_of(transit.datagram).map(|association| LinkId(association).node());
            return if of == Some(state.id.node()) { Err(DropReason::RelayCircle) } else { Ok(true) };
        };
        let links = &mut self.links;
        let known = links.numbers.get(&route.destination).and_then(|number| links.ids.get(&LinkId::new(*number, route.worker)));
        let Some(&index) = known else {
            self.note_missing(Event::LinkWanted { node: route.destination });
            return Err(DropReason::RelayNoWay);
        };
        if index == from {
            return Err(DropReason::RelayCircle);
        }
        let onward = &mut links.slab[index];
        if !onward.carries {
            return Err(DropReason::RelayNoWay);
        }
        if transit.datagram.len() > onward.link().transit_len_max() {
            return Err(DropReason::TooLarge);
        }
        links.transits.push(index, route, transit.datagram)?;
        Ok(false)
    }

    /// What a link writes with `write` leaves by itself or over another link.
    pub(super) fn poll_ways(&mut self, now: Time, out: &mut [u8], write: Write) -> Option<Transmit> {
        loop {
            if let Some(transmit) = self.poll_carried(out) {
                return Some(transmit);
            }
            let Written { link, way, transmit } = write(self, now, out)?;
            let Ways { first, second } = way.map_or_else(|| self.links.slab[link].link().ways(), |way| Ways { first: way, second: None });
            let carriers = [Some(first), second].map(|way| if let Some(Way::Via(carrier)) = way { Some(LinkId(carrier)) } else { None });
            let carriers = if carriers[0].is_none() { [carriers[1], None] } else { carriers };
            self.links.transits.keep(link, carriers, out, &transmit);
            if first == Way::Direct || second == Some(Way::Direct) {
                return Some(self.count_relayed(transmit));
            }
        }
    }

    fn count_relayed(&mut self, transmit: Transmit) -> Transmit {
        self.counters.relay_datagrams_out += transmit.datagrams();
        self.counters.relay_bytes_out += transmit.len as u64;
        transmit
    }

    /// What waits to be carried: as much of it as one train takes.
    fn poll_carried(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let Links { transits, slab, ids, .. } = &mut self.links;
        while let Some(waiting) = &mut transits.waiting {
            let of = &slab[waiting.link];
            let route = SourceRoute::through_one(of.node, of.id.worker());
            let Some(&carrier) = ids.get(&waiting.carrier) else {
                self.drops[DropReason::RelayNoWay as usize] += waiting.rest().count() as u64;
                transits.next_carrier();
                continue;
            };
            let state = &mut slab[carrier];
            let link = state.link.as_mut().expect("it is out only while a datagram of it is read");
            let mut train = Train::new(&mut *out);
            for datagram in waiting.rest() {
                if !train.takes_relayed(datagram.len() + TRANSIT_OVERHEAD, true) {
                    break;
                }
                waiting.at = datagram.end;
                match link.write_transit(route, &transits.carried[datagram], train.rest()) {
                    Ok(len) => train.add(len),
                    Err(reason) => self.drops[reason_of(reason) as usize] += 1,
                }
            }
            if waiting.at == waiting.len {
                transits.next_carrier();
            }
            if let Some(transmit) = train.transmit(state.path) {
                state.pacer.spend(transmit.len);
                return Some(self.count_relayed(transmit));
            }
        }
        None
    }

    /// What others have this node pass on: a train of what goes to one worker in a row.
    pub(super) fn poll_passing(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let Links { transits, slab, .. } = &mut self.links;
        while let Some(index) = transits.passed.front().map(|passed| passed.link) {
            let state = &mut slab[index];
            let link = state.link.as_mut().expect("it is out only while a datagram of it is read");
            let mut train = Train::new(&mut *out);
            while let Some(passed) = transits.passed.front().filter(|passed| passed.link == index) {
                if !train.takes_relayed(passed.len + TRANSIT_OVERHEAD, true) {
                    break;
                }
                match link.write_transit(passed.route, &transits.passing[passed.at..passed.at + passed.len], train.rest()) {
                    Ok(len) => {
                        train.add(len);
                        self.counters.relay_transit_datagrams += 1;
                        self.counters.relay_transit_bytes += len as u64;
                    }
                    Err(reason) => self.drops[reason_of(reason) as usize] += 1,
                }
                transits.passed.pop_front();
            }
            if transits.passed.is_empty() {
                transits.passing_len = 0;
            }
            if let Some(transmit) = train.transmit(state.path) {
                state.pacer.spend(transmit.len);
                return Some(self.count_relayed(transmit));
            }
        }
        None
    }
}
