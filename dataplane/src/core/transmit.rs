//! What goes out: one call, one send. Media leaves as trains, encrypted straight into the owner's send slot.

use pop_proto::DropReason;
use pop_proto::control::Path;
use pop_proto::history::{Lookup, Stored};
use pop_proto::outbound::Rewritten;
use pop_proto::protection::Sender;
use pop_proto::wire::rtp::FIXED_HEADER_LEN;
use pop_schemas::Time;

use super::{Core, Subscription};
use crate::counters::Counters;

/// Segments that one GSO send takes (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9).
const SEGMENTS_MAX: usize = 64;

/// Bytes that one GSO send takes: a UDP payload is at most 65,507 bytes, and some drivers stop a little short of it.
const TRAIN_LEN_MAX: usize = 65_000;

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

/// Where the drain of this turn's fresh packets stands: subscriber-major, so that a frame's payloads stay in the cache
/// while each subscriber's train is filled.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    transport: usize,
    subscription: usize,
    fresh: usize,
}

/// A train in the making. All segments are equal but the last: what is smaller closes it, what is larger stays outside.
struct Train<'a> {
    bytes: &'a mut [u8],
    len: usize,
    segment: usize,
    segments: usize,
    closed: bool,
}

impl<'a> Train<'a> {
    fn new(bytes: &'a mut [u8]) -> Train<'a> {
        Train { bytes, len: 0, segment: 0, segments: 0, closed: false }
    }

    fn takes(&self, size: usize) -> bool {
        let room = self.len + size <= self.bytes.len().min(TRAIN_LEN_MAX);
        room && !self.closed && self.segments < SEGMENTS_MAX && (self.segments == 0 || size <= self.segment)
    }

    /// Header, payload and tag of one packet, straight into their place.
    fn append(&mut self, sender: &Sender, index: u64, header: &[u8], payload: &[u8]) -> Result<(), DropReason> {
        let size = sender.protect_rtp(index, header, payload, &mut self.bytes[self.len..])?;
        if self.segments == 0 {
            self.segment = size;
        }
        self.closed = size < self.segment;
        self.len += size;
        self.segments += 1;
        Ok(())
    }

    fn transmit(&self, path: Path) -> Option<Transmit> {
        let segment = (self.segments > 1).then_some(self.segment as u16);
        (self.segments > 0).then_some(Transmit { path, len: self.len, segment })
    }
}

impl Core {
    /// Writes the next send into `train` (at least 2,048 bytes); `None` when the turn has nothing more.
    ///
    /// The order is: answers to checks, DTLS, RTCP, repairs, fresh media. What keeps a connection alive never waits behind media.
    pub fn poll_transmit(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let transmit = self
            .poll_answer(train)
            .or_else(|| self.poll_dtls(train))
            .or_else(|| self.poll_rtcp(now, train))
            .or_else(|| self.poll_repairs(train))
            .or_else(|| self.poll_media(now, train))?;
        self.counters.trains_out += 1;
        self.counters.datagrams_out += transmit.segment.map_or(1, |s| transmit.len.div_ceil(usize::from(s)) as u64);
        Some(transmit)
    }

    /// Forgets what is left of this turn's media: no send slot is free. Whoever got nothing is first in the next turn.
    pub fn drop_fresh(&mut self) {
        let unserved = self.dirty.get(self.cursor.transport).copied();
        let mut lost = 0;
        for (at, index) in self.dirty.drain(..).enumerate() {
            let transport = &mut self.transports[index];
            transport.is_dirty = false;
            if at < self.cursor.transport {
                continue;
            }
            for subscription in &transport.subscriptions {
                let track = self.subscriptions[*subscription].track.map(|t| &self.tracks[t]);
                lost += track.map_or(0, |t| t.fresh.len() as u64);
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

    fn poll_repairs(&mut self, train: &mut [u8]) -> Option<Transmit> {
        let Core { transports, tracks, subscriptions, pool, counters, drops, repairing, .. } = self;
        while let Some(&index) = repairing.front() {
            let transport = &mut transports[index];
            let mut train = Train::new(train);
            if let (Some(path), Some(keys)) = (transport.endpoint.selected(), &transport.keys) {
                'sections: for subscription in &transport.subscriptions {
                    let subscription = &mut subscriptions[*subscription];
                    while let Some(published) = subscription.outbound.next_repair() {
                        let lookup = subscription.track.map(|t| tracks[t].inbound.history().lookup(pool, published));
                        let Some(Lookup::Held(stored)) = lookup else {
                            drops[DropReason::RepairMissing as usize] += 1;
                            subscription.outbound.repair_done();
                            continue;
                        };
                        if !train.takes(subscription.outbound.header_len(&stored.meta) + stored.payload().len() + keys.sender.overhead()) {
                            break 'sections;
                        }
                        let rewritten = subscription.outbound.repair(published, &stored);
                        send(&mut train, subscription, &keys.sender, &stored, rewritten, true, counters, drops);
                        subscription.outbound.repair_done();
                    }
                }
                if let Some(transmit) = train.transmit(path) {
                    return Some(transmit);
                }
            }
            transport.is_repairing = false;
            repairing.pop_front();
        }
        None
    }

    fn poll_media(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let Core { transports, tracks, subscriptions, pool, counters, drops, dirty, cursor, .. } = self;
        while let Some(&index) = dirty.get(cursor.transport) {
            let transport = &mut transports[index];
            let mut train = Train::new(train);
            let ready = transport.endpoint.selected().zip(transport.keys.as_ref());
            while let Some(&subscription) = transport.subscriptions.get(cursor.subscription) {
                let subscription = &mut subscriptions[subscription];
                let Some(track) = subscription.track.map(|t| &tracks[t]) else {
                    cursor.subscription += 1;
                    continue;
                };
                let Some((path, keys)) = ready else {
                    drops[DropReason::SubscriberNotReady as usize] += track.fresh.len() as u64;
                    cursor.subscription += 1;
                    continue;
                };
                while let Some(&sequence) = track.fresh.get(cursor.fresh) {
                    // Evicted within its own turn: the pool is far too small, and the publisher's loss is counted there.
                    if let Lookup::Held(stored) = track.inbound.history().lookup(pool, sequence) {
                        if !train.takes(subscription.outbound.header_len(&stored.meta) + stored.payload().len() + keys.sender.overhead()) {
                            return train.transmit(path);
                        }
                        let rewritten = subscription.outbound.forward(now, sequence, &stored.meta);
                        send(&mut train, subscription, &keys.sender, &stored, rewritten, false, counters, drops);
                    } else {
                        drops[DropReason::PoolEmpty as usize] += 1;
                    }
                    cursor.fresh += 1;
                }
                cursor.fresh = 0;
                cursor.subscription += 1;
            }
            transport.is_dirty = false;
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

/// Puts one packet into the train, or counts why not.
#[allow(clippy::too_many_arguments)] // Split borrows of `Core`'s fields; a struct for them would live for this one call.
#[inline]
fn send(
    train: &mut Train<'_>,
    subscription: &mut Subscription,
    sender: &Sender,
    stored: &Stored<'_>,
    rewritten: Result<Rewritten, DropReason>,
    repair: bool,
    counters: &mut Counters,
    drops: &mut crate::counters::Drops,
) {
    let payload = stored.payload();
    let sent = rewritten.and_then(|rewritten| {
        let mut header = [0; FIXED_HEADER_LEN];
        let header = subscription.outbound.header(&mut header, stored, &rewritten);
        train.append(sender, rewritten.index, header, payload)
    });
    match sent {
        Ok(()) => {
            subscription.outbound.count_sent(payload.len(), repair);
            counters.rtp_packets_out += 1;
            counters.rtp_bytes_out += payload.len() as u64;
            counters.retransmitted_packets += u64::from(repair);
        }
        Err(reason) => drops[reason as usize] += 1,
    }
}
