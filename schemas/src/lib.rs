//! Ids, time and what nodes say to each other: the words that every crate of the appliance shares. A leaf: it imports nothing of ours.

pub mod generated;
pub mod id;
pub mod time;

pub use id::{IdError, Identity, Incarnation, NodeId, ParticipantId, SessionId, SubscriptionId, TrackId, TransportId, fnv1a};
pub use time::Time;
