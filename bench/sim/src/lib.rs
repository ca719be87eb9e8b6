//! Many nodes that host one room together: the real [`pop_session::Session`]s, in one thread and fake time. All that happens comes from
//! one seed, so a run can be had again.
//!
//! ```text
//! dice -> enter, publish, mute, leave, lose a socket, crash, hang, restart, cut, mend
//!           |
//!        Node: Session <-> clients, worker (models); a client whose node is gone goes on at another
//!           | Put, handle_record, handle_node_*
//!        Machine of `pop::bus`: beats, digests, pulls, in the bytes of the bus
//!           |
//!        Network: delay, loss, repeats, cuts in both directions or in one
//! ```
//! [`World::run`] panics where the promises of the room do not hold. What is checked is listed there. [`Links::run`] is the same for the
//! packets: real workers' cores and the sealed links between them. [`OverlayWorld::run`] is many PoPs, the ways between them and packets of some
//! sessions that take these, and
//! [`SpansWorld::run`] their sessions: who shares one finds the others.

mod client;
mod dice;
mod links;
mod network;
mod node;
mod overlay;
mod packets;
mod replica;
mod spans;
mod world;

pub use links::{LinkFigures, Links};
pub use overlay::{OverlayFigures, OverlayWorld};
pub use packets::PacketFigures;
pub use spans::{After, Sent, SpansFigures, SpansWorld};
pub use world::{Figures, World};
