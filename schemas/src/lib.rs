//! Ids and time: the words that every crate of the appliance shares. A leaf: it imports nothing.

pub mod id;
pub mod time;

pub use id::{IdError, Identity, ParticipantId, SessionId, SubscriptionId, TrackId, TransportId};
pub use time::Time;
