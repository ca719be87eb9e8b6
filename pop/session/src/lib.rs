//! Sans-IO control state: who is in a room, who publishes what, who watches whom, and who may.
//!
//! A [`Session`] is one room on one worker. Its owner hands it requests and worker events and drains [`Session::poll`] after
//! each; nothing here owns a clock, a socket, a lock, a thread or a source of randomness.

mod draw;
pub mod format;
pub mod life;
pub mod member;
pub mod participant;
pub mod placement;
pub mod presence;
pub mod session;
pub mod sid;
mod subscribe;
pub mod token;
pub mod view;
pub mod vip;

pub use format::{Format, H264Profile, PayloadFormat};
pub use participant::{Connection, Kind, Participant, Role};
pub use session::{
    Action, Audit, CloseReason, IceCondition, IceUpdate, Join, Limits, Media, Opening, Output, Publication, Refusal, Reply, Request,
    RequestId, Section, Session, TappedTrack, TransportFailure,
};
pub use view::SessionView;
