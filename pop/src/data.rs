//! Data messages of rooms, counted: how many came and went, and why some ended here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::OwnedSemaphorePermit;

/// A message's place among what its sender may have waiting: all who have to receive it hold it, and the last of them frees it.
pub(crate) type SenderPlace = Arc<OwnedSemaphorePermit>;

macro_rules! data_drops {
    ($($(#[$doc:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a message, or a packet that carries messages, ended here: the label of `pop_data_dropped_total`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DataDrop {
            $($(#[$doc])* $variant,)*
        }

        impl DataDrop {
            /// Every reason, in the order of its discriminant.
            pub const ALL: &'static [DataDrop] = &[$(DataDrop::$variant,)*];

            /// The value of the metric's `reason` label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(DataDrop::$variant => $label,)*
                }
            }
        }
    };
}

data_drops! {
    /// An SCTP packet whose header, checksum or chunks do not hold.
    SctpMalformed = "sctp_malformed",
    /// An SCTP packet that the association does not wait for: a second INIT, anything after its end.
    SctpUnexpected = "sctp_unexpected",
    /// An SCTP packet of a peer that has too many small pieces waiting; it sends it again.
    SctpFlood = "sctp_flood",
    /// A message on a stream that no channel was opened on.
    NoChannel = "no_channel",
    /// A channel that does not hold, or one too many.
    ChannelRefused = "channel_refused",
    /// A message whose kind no channel has, or a second OPEN.
    Protocol = "protocol",
    /// A message on a channel that the room protocol does not have.
    UnknownChannel = "unknown_channel",
    /// A message of a data track, which is not spoken here.
    DataTrack = "data_track",
    /// A message that is not a `DataPacket`, or breaks one of its bounds.
    Malformed = "malformed",
    /// A message of a kind that only servers send, or of none.
    Kind = "kind",
    /// A message for receivers that are named in a way that is not spoken here.
    Destination = "destination",
    /// A message of a client that may not send data.
    NotAllowed = "not_allowed",
    /// A reliable message that came before: after a resume a client sends again what it does not know to have arrived.
    Repeated = "repeated",
    /// A message of another node for a room that is not here, or for somebody who is not its own or may not send data.
    Foreign = "foreign",
    /// An unreliable message of a sender that sends too many.
    LossyRate = "lossy_rate",
    /// An unreliable message for a receiver, or for another node, that has too many waiting.
    LossyQueueFull = "lossy_queue_full",
    /// A reliable message for a receiver, or for another node, that has too many waiting, or too old ones: it is told to resume.
    ReliableOverflow = "reliable_overflow",
    /// A message for a receiver that has no channel for it, or that is gone.
    NotConnected = "not_connected",
    /// A datagram for a peer whose DTLS has ended, or has sealed all that it may.
    NotSealed = "not_sealed",
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a client.
    Received,
    /// To a client.
    Sent,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Received, Direction::Sent];

    /// The value of the metric's `direction` label.
    pub const fn label(self) -> &'static str {
        match self {
            Direction::Received => "received",
            Direction::Sent => "sent",
        }
    }
}

/// The counters of a node; index of `kind`: reliable or not.
#[derive(Debug)]
pub struct DataCounters {
    messages: [[AtomicU64; 2]; 2],
    bytes: [[AtomicU64; 2]; 2],
    drops: [AtomicU64; DataDrop::ALL.len()],
    overflows: AtomicU64,
    associations_lost: AtomicU64,
    panics: AtomicU64,
}

impl Default for DataCounters {
    fn default() -> DataCounters {
        DataCounters {
            messages: Default::default(),
            bytes: Default::default(),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            overflows: AtomicU64::new(0),
            associations_lost: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }
}

impl DataCounters {
    /// A message came, or was handed to a client's association.
    pub fn count(&self, direction: Direction, reliable: bool, len: usize) {
        self.messages[direction as usize][usize::from(reliable)].fetch_add(1, Relaxed);
        self.bytes[direction as usize][usize::from(reliable)].fetch_add(len as u64, Relaxed);
    }

    /// Something ended here.
    pub fn count_drop(&self, reason: DataDrop) {
        self.drops[reason as usize].fetch_add(1, Relaxed);
    }

    /// A receiver, or another node, was told to resume.
    pub fn count_overflow(&self) {
        self.overflows.fetch_add(1, Relaxed);
    }

    /// An association ended before its transport did.
    pub fn count_lost(&self) {
        self.associations_lost.fetch_add(1, Relaxed);
    }

    /// The SCTP crate panicked: a bug, which ended one association.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// Messages and bytes so far.
    pub fn total(&self, direction: Direction, reliable: bool) -> (u64, u64) {
        let (direction, kind) = (direction as usize, usize::from(reliable));
        (self.messages[direction][kind].load(Relaxed), self.bytes[direction][kind].load(Relaxed))
    }

    /// What ended here so far.
    pub fn dropped(&self, reason: DataDrop) -> u64 {
        self.drops[reason as usize].load(Relaxed)
    }

    /// Receivers, and other nodes, that were told to resume.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    /// Associations that ended before their transports did.
    pub fn associations_lost(&self) -> u64 {
        self.associations_lost.load(Relaxed)
    }

    /// Panics of the SCTP crate.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }
}
