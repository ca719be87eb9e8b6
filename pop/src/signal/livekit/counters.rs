//! What the room protocol counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Why something of a client was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// A join request that is malformed or too large.
    Join,
    /// A token that is not believed, or does not allow it.
    Token,
    /// A client of the protocol's version 0.
    Version,
    /// What it wants to resume is not here.
    Resume,
    /// The node or the room does not take it.
    Full,
    /// A message that is malformed or too large.
    Message,
    /// A message that names nothing that is known.
    Unknown,
    /// A message that this node does not speak.
    Unspoken,
    /// An offer that cannot be read or served.
    Offer,
    /// A section of an offer for which the worker has no room.
    Section,
    /// A client that says too much: it is read no faster than it may speak.
    Flood,
    /// A client that was silent for too long, or never offered.
    Silent,
}

impl Refused {
    /// All, in the order of their discriminants.
    pub const ALL: [Refused; 12] = [
        Refused::Join,
        Refused::Token,
        Refused::Version,
        Refused::Resume,
        Refused::Full,
        Refused::Message,
        Refused::Unknown,
        Refused::Unspoken,
        Refused::Offer,
        Refused::Section,
        Refused::Flood,
        Refused::Silent,
    ];

    /// The value of the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Refused::Join => "join",
            Refused::Token => "token",
            Refused::Version => "version",
            Refused::Resume => "resume",
            Refused::Full => "full",
            Refused::Message => "message",
            Refused::Unknown => "unknown",
            Refused::Unspoken => "unspoken",
            Refused::Offer => "offer",
            Refused::Section => "section",
            Refused::Flood => "flood",
            Refused::Silent => "silent",
        }
    }
}

/// The kinds of messages that clients send; the last is everything that has no other.
pub(super) const IN: [&str; 14] = [
    "offer",
    "trickle",
    "add_track",
    "mute",
    "subscription",
    "track_setting",
    "leave",
    "subscription_permission",
    "sync_state",
    "simulate",
    "ping",
    "update_metadata",
    "update_track",
    "other",
];

/// The kinds of messages that clients get.
pub(super) const OUT: [&str; 20] = [
    "join",
    "reconnect",
    "answer",
    "update",
    "track_published",
    "track_unpublished",
    "track_subscribed",
    "leave",
    "mute",
    "speakers_changed",
    "room_update",
    "connection_quality",
    "stream_state_update",
    "subscribed_quality_update",
    "subscription_permission_update",
    "subscription_response",
    "request_response",
    "media_sections_requirement",
    "refresh_token",
    "pong",
];

/// Counters of all sockets.
#[derive(Debug, Default)]
pub struct SignalCounters {
    connections: AtomicI64,
    refused: [AtomicU64; Refused::ALL.len()],
    taken: [AtomicU64; IN.len()],
    sent: [AtomicU64; OUT.len()],
}

impl SignalCounters {
    /// Sockets that are open.
    pub fn connections(&self) -> i64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What was refused for `reason`.
    pub fn refused(&self, reason: Refused) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    /// Messages of clients by kind.
    pub fn taken(&self) -> impl Iterator<Item = (&'static str, u64)> {
        IN.into_iter().zip(self.taken.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Messages to clients by kind.
    pub fn sent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUT.into_iter().zip(self.sent.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(super) fn refuse(&self, reason: Refused) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self, kind: &'static str) {
        let place = IN.iter().position(|known| *known == kind).unwrap_or(IN.len() - 1);
        self.taken[place].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn send(&self, kind: &'static str) {
        let place = OUT.iter().position(|known| *known == kind).expect("every kind that is sent is in the list");
        self.sent[place].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn open(&self) -> OpenSocket<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        OpenSocket(self)
    }
}

/// Counts as open until it is dropped.
pub(super) struct OpenSocket<'a>(&'a SignalCounters);

impl Drop for OpenSocket<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
