//! What goes out: one call, one send. Media leaves as trains, encrypted straight into the owner's send slot.

use pop_proto::DropReason;
use pop_proto::control::{Path, SELF_TEST};
use pop_proto::header::Stamp;
use pop_proto::history::{Lookup, Stored};
use pop_proto::outbound::{Outbound, Rewritten, Scratch, Written};
use pop_proto::protection::Sender;
use pop_schemas::Time;

use super::{Core, Fresh};
use crate::counters::Counters;

/// Segments that one GSO send takes (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9).
const SEGMENTS_MAX: usize = 64;

/// Bytes that one GSO send takes: a UDP payload is at most 65,507 bytes, and some drivers stop a little short of it.
pub(super) const TRAIN_LEN_MAX: usize = 65_000;

/// One send: `len` bytes of the train to `path`, as segments of `segment` bytes (the last may be shorter) when it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Through which socket, to whom.
    pub path: Path,
    /// Bytes of the train.
    pub len: usize,
    /// Segment size of a train of several datagrams.
    pub segment: Option<u16>,
}

impl Transmit {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> u64 {
        self.segment.map_or(1, |segment| self.len.div_ceil(usize::from(segment)) as u64)
    }
}

/// Where the drain of this turn's fresh packets stands: subscriber-major, so that a frame's payloads stay in the cache
/// while each subscriber's train is filled.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    transport: usize,
    subscription: usize,
    fresh: usize,
}

/// A train in the making. All segments are equal but the last: what is smaller closes it, what is larger stays outside.
pub(super) struct Train<'a> {
    bytes: &'a mut [u8],
    pub(super) len: usize,
    segment: usize,
    segments: usize,
    closed: bool,
}

impl<'a> Train<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Train<'a> {
        Train { bytes, len: 0, segment: 0, segments: 0, closed: false }
    }

    fn takes(&self, size: usize) -> bool {
        let room = self.len + size <= self.bytes.len().min(TRAIN_LEN_MAX);
        room && !self.closed && self.segments < SEGMENTS_MAX && (self.segments == 0 || size <= self.segment)
    }

    /// Padding that makes a packet of `size` bytes a whole segment: of the first one what it lacks for the longest of its neighbours. More
    /// than `most` is none.
    fn padding(&self, size: usize, shortfall: u8, most: u8) -> u8 {
        let lacking = if self.segments == 0 { usize::from(shortfall) } else { self.segment.saturating_sub(size) };
        u8::try_from(lacking).ok().filter(|lacking| *lacking <= most).unwrap_or(0)
    }

    /// Header, payload and tag of one packet, straight into their place.
    fn append(&mut self, sender: &Sender, packet: &Written<'_>) -> Result<(), DropReason> {
        let Written { index, header, payload, padding } = *packet;
        let size = sender.protect_padded_rtp(index, header, payload, padding, &mut self.bytes[self.len..])?;
        self.add(size);
        Ok(())
    }

    /// A datagram of `size` bytes was written into [`Train::rest`]; of none nothing was.
    pub(super) fn add(&mut self, size: usize) {
        if size == 0 {
            return;
        }
        if self.segments == 0 {
            self.segment = size;
        }
        self.closed = size < self.segment;
        self.len += size;
        self.segments += 1;
    }

    /// What is free of it.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }

    /// Whether a packet that is `size` bytes on a link goes into it. What is not whole, but two datagrams, goes into an empty one alone.
    pub(super) fn takes_relayed(&self, size: usize, is_whole: bool) -> bool {
        self.segments == 0 || is_whole && self.takes(size)
    }

    pub(super) fn transmit(&self, path: Path) -> Option<Transmit> {
        let segment = (self.segments > 1).then_some(self.segment as u16);
        (self.segments > 0).then_some(Transmit { path, len: self.len, segment })
    }
}

impl Core {
    /// Writes the next send into `train` (at least 2,048 bytes); `None` when the turn has nothing more.
    ///
    /// The order is: answers to checks, DTLS, what links tell, what is passed on between other nodes, RTCP, repairs, fresh media for links, then for clients, pictures for late joiners. What keeps a connection alive never waits behind media.
    pub fn poll_transmit(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let transmit = self
            .poll_answer(train)
            .or_else(|| self.poll_dtls(train))
            .or_else(|| self.poll_goodbye(train))
            .or_else(|| self.poll_ways(now, train, Core::poll_links))
            .or_else(|| self.poll_passing(train))
            .or_else(|| self.poll_rtcp(now, train))
            .or_else(|| self.poll_repairs(now, train))
            .or_else(|| self.poll_ways(now, train, Core::poll_link_media))
            .or_else(|| self.poll_ways(now, train, Core::poll_paced))
            .or_else(|| self.poll_media(now, train))
            .or_else(|| self.poll_catch_up(now, train))?;
        self.counters.trains_out += 1;
        self.counters.datagrams_out += transmit.datagrams();
        Some(transmit)
    }

    /// Forgets what is left of this turn's media: no send slot is free. Whoever got nothing is first in the next turn.
    pub fn drop_fresh(&mut self) {
        let unserved = self.dirty.get(self.cursor.transport).copied();
        let mut lost = self.drop_link_media();
        for (at, index) in self.dirty.drain(..).enumerate() {
            let transport = &mut self.transports[index];
            transport.is_dirty = false;
            for subscription in transport.dirty.drain(..) {
                let subscription = &mut self.subscriptions[subscription];
                subscription.is_dirty = false;
                if at < self.cursor.transport {
                    continue;
                }
                lost += subscription.track.map_or(0, |track| self.tracks[track].fresh_of(subscription.outbound.own_layer()));
            }
        }
        for track in &self.touched {
            let subscribers = &mut self.tracks[*track].subscribers;
            let first = subscribers.iter().position(|s| Some(self.subscriptions[*s].transport) == unserved);
            subscribers.rotate_left(first.unwrap_or(0));
        }
        self.clear_fresh();
        self.count_drops(DropReason::SendQueueFull, lost);
    }

    fn clear_fresh(&mut self) {
        for track in self.touched.drain(..) {
            self.tracks[track].fresh.clear();
        }
        self.is_full = false;
        self.cursor = Cursor::default();
    }

    fn poll_answer(&mut self, train: &mut [u8]) -> Option<Transmit> {
        let answer = self.answers.pop_front()?;
        train[..answer.len].copy_from_slice(&answer.bytes[..answer.len]);
        Some(Transmit { path: answer.path, len: answer.len, segment: None })
    }

    fn poll_dtls(&mut self, train: &mut [u8]) -> Option<Transmit> {
        let (path, datagram) = self.dtls_out.pop_front()?;
        self.counters.dtls_datagrams_out += 1;
        train[..datagram.len()].copy_from_slice(&datagram);
        Some(Transmit { path, len: datagram.len(), segment: None })
    }

    fn poll_goodbye(&mut self, train: &mut [u8]) -> Option<Transmit> {
        let (path, datagram) = self.goodbyes.pop_front()?;
        self.counters.rtcp_packets_out += 1;
        train[..datagram.len()].copy_from_slice(&datagram);
        Some(Transmit { path, len: datagram.len(), segment: None })
    }

    fn poll_rtcp(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        while let Some(&index) = self.reporting.front() {
            if let Some(transmit) = self.write_rtcp(now, index, train) {
                self.counters.rtcp_packets_out += 1;
                return Some(transmit);
            }
            self.reporting.pop_front();
            self.transports[index].is_reporting = false;
        }
        None
    }

    fn poll_repairs(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let Core { transports, tracks, subscriptions, pool, scratch, counters, drops, repairing, .. } = self;
        while let Some(&first) = repairing.front() {
            let index = subscriptions[first].transport;
            let transport = &mut transports[index];
            let mut train = Train::new(train);
            let Some((path, keys)) = transport.endpoint.selected().zip(transport.keys.as_ref()) else {
                subscriptions[first].is_repairing = false;
                repairing.pop_front();
                continue;
            };
            let mut sending =
                Sending { sender: &keys.sender, now, transport_sequence: &mut transport.transport_sequence, scratch, counters };
            'sections: while let Some(subscription) = repairing.front().map(|at| &mut subscriptions[*at]) {
                if subscription.transport != index {
                    break;
                }
                while let Some(published) = subscription.outbound.next_repair() {
                    let source = subscription.track.zip(subscription.outbound.layer());
                    let lookup = source.map(|(track, layer)| tracks[track].layers[layer].inbound.history().lookup(pool, published));
                    let repair = match &lookup {
                        Some(Lookup::Held(stored)) => subscription.outbound.repair(published, stored).map(|repair| (repair, stored)),
                        _ => Err(DropReason::RepairMissing),
                    };
                    let sent = repair
                        .and_then(|(repair, stored)| sending.send(&mut train, &mut subscription.outbound, &repair, stored, Sent::Repair));
                    match sent {
                        Ok(true) => {}
                        Ok(false) => break 'sections,
                        Err(reason) => drops[reason as usize] += 1,
                    }
                    subscription.outbound.repair_done();
                }
                subscription.is_repairing = false;
                repairing.pop_front();
            }
            if let Some(transmit) = train.transmit(path) {
                return Some(transmit);
            }
        }
        None
    }

    fn poll_media(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let Core { transports, tracks, subscriptions, pool, scratch, counters, drops, dirty, cursor, .. } = self;
        while let Some(&index) = dirty.get(cursor.transport) {
            let transport = &mut transports[index];
            let mut train = Train::new(train);
            let ready = transport.endpoint.selected().zip(transport.keys.as_ref());
            let counted = (counters.rtp_packets_out, counters.rtp_bytes_out);
            while let Some(&subscription) = transport.dirty.get(cursor.subscription) {
                let subscription = &mut subscriptions[subscription];
                let Some(track) = subscription.track.map(|t| &tracks[t]) else {
                    cursor.subscription += 1;
                    continue;
                };
                let Some((path, keys)) = ready else {
                    drops[DropReason::SubscriberNotReady as usize] += track.fresh_of(subscription.outbound.own_layer());
                    cursor.subscription += 1;
                    continue;
                };
                let mut sending =
                    Sending { sender: &keys.sender, now, transport_sequence: &mut transport.transport_sequence, scratch, counters };
                let catch_up = subscription.catch_up;
                let outbound = &mut subscription.outbound;
                while let Some(&Fresh { layer, sequence, keyframe_start, shortfall, .. }) = track.fresh.get(cursor.fresh) {
                    // Another layer's packet ends nowhere: it goes to whoever has that layer.
                    if !outbound.takes(layer, keyframe_start) {
                        cursor.fresh += 1;
                        continue;
                    }
                    // Evicted within its own turn: the pool is far too small, and the publisher's loss is counted there.
                    let sent = match track.layers[layer].inbound.history().lookup(pool, sequence) {
                        // Its turn comes behind what is kept.
                        Lookup::Held(_) if catch_up.is_some_and(|catch_up| catch_up.will_send(layer, sequence)) => Ok(true),
                        Lookup::Held(stored) => outbound
                            .forward(now, layer, sequence, &stored, |from, to| track.align(from, to))
                            .and_then(|rewritten| sending.send(&mut train, outbound, &rewritten, &stored, Sent::Fresh { shortfall })),
                        Lookup::Gone | Lookup::Missing => Err(DropReason::PoolEmpty),
                    };
                    match sent {
                        Ok(true) => {}
                        Ok(false) => return train.transmit(path),
                        Err(reason) => drops[reason as usize] += 1,
                    }
                    cursor.fresh += 1;
                }
                cursor.fresh = 0;
                cursor.subscription += 1;
            }
            if transport.id.0 == SELF_TEST {
                (counters.rtp_packets_out, counters.rtp_bytes_out) = counted;
            }
            transport.is_dirty = false;
            transport.dirty.drain(..).for_each(|subscription| subscriptions[subscription].is_dirty = false);
            *cursor = Cursor { transport: cursor.transport + 1, ..Cursor::default() };
            if let Some(transmit) = ready.and_then(|(path, _)| train.transmit(path)) {
                return Some(transmit);
            }
        }
        dirty.clear();
        self.clear_fresh();
        None
    }
}

/// Why a packet is sent.
#[derive(Clone, Copy)]
pub(super) enum Sent {
    /// It came in this turn.
    Fresh {
        /// As in [`Fresh`].
        shortfall: u8,
    },
    /// It was kept for a late joiner.
    Kept,
    /// It was asked for again.
    Repair,
}

/// What the packets of one train share.
pub(super) struct Sending<'a> {
    pub(super) sender: &'a Sender,
    pub(super) now: Time,
    pub(super) transport_sequence: &'a mut u16,
    pub(super) scratch: &'a mut Scratch,
    pub(super) counters: &'a mut Counters,
}

impl Sending<'_> {
    /// Puts one packet into the train; false when it has to wait for the next one.
    #[inline]
    pub(super) fn send(
        &mut self,
        train: &mut Train<'_>,
        outbound: &mut Outbound,
        rewritten: &Rewritten<'_>,
        stored: &Stored<'_>,
        kind: Sent,
    ) -> Result<bool, DropReason> {
        let len = rewritten.payload_len();
        let size = outbound.header_len(&stored.meta) + len + self.sender.overhead();
        let (repair, padding) = match kind {
            Sent::Fresh { shortfall } => (false, train.padding(size, shortfall, outbound.padding_max(rewritten))),
            Sent::Kept => (false, 0),
            Sent::Repair => (true, 0),
        };
        if !train.takes(size + usize::from(padding)) {
            // Into an empty train everything goes that a slot of the history holds.
            return if train.segments > 0 { Ok(false) } else { Err(DropReason::TooLarge) };
        }
        let stamp = Stamp { send_time: absolute_send_time(self.now), transport_sequence: *self.transport_sequence };
        let written = outbound.write(&rewritten.padded(padding), stored, stamp, self.scratch);
        train.append(self.sender, &written)?;
        *self.transport_sequence = self.transport_sequence.wrapping_add(u16::from(outbound.has_transport_sequence()));
        outbound.count_sent(len, repair);
        self.counters.rtp_packets_out += 1;
        self.counters.rtp_bytes_out += len as u64;
        self.counters.rtp_padding_bytes_out += u64::from(padding);
        self.counters.retransmitted_packets += u64::from(repair);
        Ok(true)
    }
}

/// Seconds in 6.18 fixed point, of any epoch: receivers use differences alone.
#[inline]
fn absolute_send_time(now: Time) -> u32 {
    // 24 bits of them are 64 seconds, so what a division by that leaves is enough, and fits 64 bits when it is shifted.
    (((now.as_nanos() % 64_000_000_000) << 18) / 1_000_000_000) as u32
}
