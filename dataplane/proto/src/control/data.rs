//! Data messages: what a client sends beside its media.

use std::sync::Arc;

use pop_schemas::Identity;

/// Longest message that is taken, in bytes. Clients of the room protocol split what is longer than 15,000 bytes by themselves.
pub const DATA_MESSAGE_LEN_MAX: usize = 64 << 10;

/// A message, encoded once for all who get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataMessage {
    /// In order and never lost; else as it comes.
    pub reliable: bool,
    /// To these; empty: to everybody else.
    pub to: Vec<Identity>,
    /// The sender's number of a reliable message, from 1; 0: it has none.
    pub sequence: u32,
    /// What receivers get, at most [`DATA_MESSAGE_LEN_MAX`] bytes.
    pub body: Arc<[u8]>,
}
