//! The group of pictures that a video stream is in: where it begins in the history, and whether all of it is there.
//!
//! Who comes late begins with it and needs no keyframe of the publisher's. It takes no memory: its packets are those of the
//! [`History`](crate::history::History), which keeps them a little longer.

use std::time::Duration;

use pop_schemas::Time;

use crate::history::Meta;

/// A group that began longer ago is not sent: decoding it all would take a client longer than a keyframe takes to come.
pub const GROUP_AGE_MAX: Duration = Duration::from_secs(2);

/// A group of more payload is not sent: at the pace of `dataplane::core` a viewer has caught up with this much within half a second.
pub const GROUP_LEN_MAX: usize = 1 << 20;

/// A group of more packets is not sent: three quarters of a history, so that what comes meanwhile overwrites none of it.
pub const GROUP_PACKETS_MAX: u64 = 768;

/// A group's packets are held this long after its beginning, so that who began with it at the last moment gets all of it.
pub const GROUP_HOLD: Duration = Duration::from_secs(3);

/// A group that misses a packet is waited for this long before a keyframe is asked for instead: a repair takes a round trip.
pub const HOLE_PATIENCE: Duration = Duration::from_millis(100);

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    start: u64,
    timestamp: u32,
    came: Time,
    /// The first packet that is not there yet.
    next: u64,
    newest_timestamp: u32,
    len: usize,
}

impl Group {
    /// One whose first packet is this keyframe's.
    pub fn begin(now: Time, sequence: u64, timestamp: u32) -> Group {
        Group { start: sequence, timestamp, came: now, next: sequence, newest_timestamp: timestamp, len: 0 }
    }

    /// Whether a keyframe's packet begins another one: not those behind the first of the same picture, nor a keyframe of the past.
    pub fn ends_before(&self, sequence: u64, timestamp: u32) -> bool {
        if timestamp == self.timestamp { sequence < self.start } else { sequence > self.start }
    }

    /// Takes the packet at [`Group::next`].
    pub fn take(&mut self, meta: &Meta) {
        self.next += 1;
        self.len += usize::from(meta.len - meta.header_len);
        self.newest_timestamp = meta.timestamp;
    }

    /// Its first packet.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The first packet that is not there yet.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// RTP timestamp of its newest packet.
    pub fn newest_timestamp(&self) -> u32 {
        self.newest_timestamp
    }

    /// Short enough to be sent.
    pub fn is_short(&self, now: Time) -> bool {
        now.since(self.came) <= GROUP_AGE_MAX && self.is_small()
    }

    /// Its bytes and packets are few enough to be sent. They never get fewer.
    pub fn is_small(&self) -> bool {
        self.len <= GROUP_LEN_MAX && self.next - self.start <= GROUP_PACKETS_MAX
    }

    /// Whether its packets are to be kept whatever their age.
    pub fn is_held(&self, now: Time) -> bool {
        now.since(self.came) < GROUP_HOLD
    }
}
