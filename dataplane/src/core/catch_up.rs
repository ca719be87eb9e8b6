//! Who comes late begins with the group of pictures that the history holds, and the publisher is asked for nothing.
//!
//! ```text
//! wanted: a picture --tick--> poll_group --+--> whole and short: CatchUp { next: its keyframe } --> queue
//!                                          +--> else a keyframe request
//! poll_transmit: [kept .. next .. newest] --forward, in order, bounded per tick--> the stream itself, once next passes the newest
//! ```
//! What comes meanwhile is not sent as fresh but in its turn, so that no number goes out twice or out of order.

use std::collections::VecDeque;

use pop_proto::group::GROUP_HOLD;
use pop_proto::history::{Lookup, PacketPool};
use pop_schemas::Time;
use slab::Slab;

use super::transmit::{Sending, Sent, Train};
use super::{Core, Subscription, Track, Transmit, Transport};
use crate::counters::Drops;

/// Bytes that one section is sent of kept pictures in a tick of 10 ms: 25 Mb/s, which is a keyframe in two ticks, and a burst that the
/// queue in front of a client's last mile takes.
const SECTION_LEN_MAX: usize = 32 << 10;

/// Bytes that all sections together are sent of them in a tick: 0.8 Gb/s, a millisecond or two of the core.
const TICK_LEN_MAX: usize = 1 << 20;

/// What a packet that is missing costs of them.
const MISSING_LEN: usize = 64;

/// Where a section stands in the pictures that were kept.
#[derive(Clone, Copy)]
pub(super) struct CatchUp {
    layer: usize,
    /// The next published sequence to send.
    next: u64,
    /// It is broken off then: while the send queue is full it would go nowhere, and nothing that its client asks for is heard.
    until: Time,
}

impl CatchUp {
    /// Whether a fresh packet is among those that are sent in their turn. One that filled a hole behind `next` is not.
    #[inline]
    pub(super) fn will_send(&self, layer: usize, sequence: u64) -> bool {
        layer == self.layer && sequence >= self.next
    }
}

/// The sections that catch up, and what they may still send in this tick.
pub(super) struct CatchUps {
    queue: VecDeque<usize>,
    /// Of the queue's front how many have not had their turn.
    sections_left: usize,
    /// Bytes left for the front.
    section_left: usize,
    /// Bytes left for all.
    left: usize,
}

impl CatchUps {
    pub(super) fn with_capacity(subscriptions: usize) -> CatchUps {
        CatchUps { queue: VecDeque::with_capacity(subscriptions), sections_left: 0, section_left: 0, left: 0 }
    }

    /// Everybody gets one turn; who finds no bytes left is first in the next tick.
    pub(super) fn begin_tick(&mut self) {
        (self.sections_left, self.section_left, self.left) = (self.queue.len(), SECTION_LEN_MAX, TICK_LEN_MAX);
    }

    pub(super) fn forget(&mut self, subscription: usize) {
        if let Some(at) = self.queue.iter().position(|s| *s == subscription) {
            self.queue.remove(at);
            self.sections_left -= usize::from(at < self.sections_left);
        }
    }

    /// The section whose turn it is, and how many bytes it may send.
    fn front(&self) -> Option<(usize, usize)> {
        let section = *self.queue.front().filter(|_| self.sections_left > 0 && self.left > 0)?;
        Some((section, self.section_left.min(self.left)))
    }

    fn spend(&mut self, len: usize) {
        self.left = self.left.saturating_sub(len);
        self.section_left = self.section_left.saturating_sub(len);
    }

    /// The front's turn is over; `stays` when it has more to send.
    fn end_turn(&mut self, stays: bool) {
        self.sections_left -= 1;
        self.section_left = SECTION_LEN_MAX;
        if let Some(section) = self.queue.pop_front().filter(|_| stays) {
            self.queue.push_back(section);
        }
    }
}

/// Lets those who are shown nothing begin with what is kept of the layer that they wait for.
pub(super) fn begin_catch_ups(
    now: Time,
    track: &mut Track,
    transports: &mut Slab<Transport>,
    subscriptions: &mut Slab<Subscription>,
    catch_ups: &mut CatchUps,
) {
    for layer in 0..track.layers.len() {
        let Some(group) = track.layers[layer].inbound.poll_group(now) else { continue };
        let mut asks_for_keyframe = false;
        for index in &track.subscribers {
            let subscription = &mut subscriptions[*index];
            let waits = subscription.outbound.layer().is_none() && subscription.outbound.wants_keyframe() == Some(layer);
            if waits && !subscription.outbound.may_begin_in_the_past() {
                // A peer that is given the publisher's own numbers or times would see them go back.
                asks_for_keyframe = true;
                continue;
            }
            // One that is not ready asks again when it is.
            if waits && subscription.catch_up.is_none() && transports[subscription.transport].is_ready() {
                subscription.catch_up = Some(CatchUp { layer, next: group.start(), until: now + GROUP_HOLD });
                subscription.outbound.begin_in_the_past(group.next(), group.newest_timestamp());
                catch_ups.queue.push_back(*index);
            }
        }
        if asks_for_keyframe {
            track.layers[layer].inbound.request_keyframe();
        }
    }
}

/// How a turn of a section ends.
enum Turn {
    /// The train is full, or the bytes are spent.
    Goes,
    /// It has all that came: the stream itself goes on from here.
    Done,
    /// What it needs is gone, or not its business any more.
    Broken,
}

impl Core {
    /// Breaks off what did not get through in time: its client waits for a keyframe like everybody.
    pub(super) fn break_overdue_catch_ups(&mut self, now: Time) {
        let Core { tracks, subscriptions, counters, catch_ups, .. } = self;
        catch_ups.queue.retain(|index| {
            let subscription = &mut subscriptions[*index];
            let is_overdue = subscription.catch_up.is_some_and(|catch_up| now > catch_up.until);
            if is_overdue {
                counters.catch_ups_broken += 1;
                if let Some(track) = subscription.track {
                    subscription.give_up_kept(&mut tracks[track]);
                }
                subscription.catch_up = None;
                subscription.outbound.forget_past();
            }
            !is_overdue
        });
    }

    /// Writes the next train of kept pictures; `None` when none is due in this tick.
    pub(super) fn poll_catch_up(&mut self, now: Time, train: &mut [u8]) -> Option<Transmit> {
        let Core { transports, tracks, subscriptions, pool, scratch, counters, drops, catch_ups, .. } = self;
        while let Some((index, room)) = catch_ups.front() {
            let subscription = &mut subscriptions[index];
            let transport = &mut transports[subscription.transport];
            let mut train = Train::new(train);
            let ready = transport.endpoint.selected().zip(transport.keys.as_ref());
            let (Some((path, keys)), Some(track)) = (ready, subscription.track) else {
                // Before its client has a path again the rest is gone.
                counters.catch_ups_broken += 1;
                subscription.catch_up = None;
                subscription.outbound.forget_past();
                catch_ups.end_turn(false);
                continue;
            };
            let mut sending =
                Sending { sender: &keys.sender, now, transport_sequence: &mut transport.transport_sequence, scratch, counters };
            let track = &mut tracks[track];
            let mut left = room;
            let turn = subscription.send_kept(track, pool, &mut sending, &mut train, &mut left, drops);
            catch_ups.spend(room - left);
            match turn {
                Turn::Goes if left > 0 && train.len > 0 => {}
                Turn::Goes => catch_ups.end_turn(true),
                Turn::Done | Turn::Broken => {
                    if matches!(turn, Turn::Done) {
                        counters.catch_ups += 1;
                    } else {
                        counters.catch_ups_broken += 1;
                        subscription.give_up_kept(track);
                    }
                    subscription.catch_up = None;
                    subscription.outbound.forget_past();
                    catch_ups.end_turn(false);
                }
            }
            if let Some(transmit) = train.transmit(path) {
                return Some(transmit);
            }
        }
        None
    }
}

impl Subscription {
    /// It waits for a keyframe again: the rest would decode to nothing.
    fn give_up_kept(&mut self, track: &mut Track) {
        let Some(CatchUp { layer, .. }) = self.catch_up else { return };
        self.outbound.end_layer(layer);
        match self.outbound.wants_keyframe() {
            Some(wanted) if wanted == layer => track.layers[wanted].inbound.request_keyframe(),
            // Of another layer nothing was tried.
            Some(wanted) => track.layers[wanted].inbound.request_picture(),
            None => {}
        }
    }

    /// Fills a train, until `left` is spent, by the packet that crosses it. A packet that is looked at and not sent costs as much.
    fn send_kept(
        &mut self,
        track: &Track,
        pool: &PacketPool,
        sending: &mut Sending<'_>,
        train: &mut Train<'_>,
        left: &mut usize,
        drops: &mut Drops,
    ) -> Turn {
        let Subscription { outbound, catch_up: Some(CatchUp { layer, next, .. }), .. } = self else { return Turn::Broken };
        let history = track.layers[*layer].inbound.history();
        while *left > 0 {
            let written = train.len;
            // A wish for another layer, an end of this one.
            if outbound.own_layer() != *layer {
                return Turn::Broken;
            }
            let looked_up = history.lookup(pool, *next);
            let stored_len = if let Lookup::Held(stored) = &looked_up { stored.packet.len() } else { MISSING_LEN };
            let sent = match looked_up {
                Lookup::Held(stored) => outbound
                    .forward(sending.now, *layer, *next, &stored, |from, to| track.align(from, to))
                    .and_then(|rewritten| sending.send(train, outbound, &rewritten, &stored, Sent::Kept)),
                Lookup::Gone => return Turn::Broken,
                Lookup::Missing if history.newest().is_some_and(|newest| *next < newest) => Ok(true),
                Lookup::Missing => return Turn::Done,
            };
            // A train that is full writes nothing, and looks at it again.
            if sent != Ok(false) {
                *left = left.saturating_sub((train.len - written).max(stored_len));
            }
            match sent {
                Ok(true) => *next += 1,
                Ok(false) => return Turn::Goes,
                Err(reason) => {
                    drops[reason as usize] += 1;
                    *next += 1;
                    if outbound.layer().is_none() {
                        return Turn::Broken;
                    }
                }
            }
        }
        Turn::Goes
    }
}
