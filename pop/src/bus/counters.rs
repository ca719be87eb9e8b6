//! What happened on the bus, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::record::RecordError;

/// Why a message of another node has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Ignored {
    /// Its key names another node, or another participant, than it does.
    Foreign,
    /// Of an incarnation that has been replaced, or older than what is known.
    Older,
    /// Of a node that is not up, or not in this incarnation; all of it is asked for once it is.
    UnknownNode,
    /// No record.
    Malformed,
    /// Longer than a record may be, or with more parts.
    TooLarge,
    /// There is no place for it: nodes, participants, or events that nobody takes. A digest brings it back when there is.
    Full,
}

impl Ignored {
    /// Each.
    pub const ALL: [Ignored; 6] =
        [Ignored::Foreign, Ignored::Older, Ignored::UnknownNode, Ignored::Malformed, Ignored::TooLarge, Ignored::Full];

    /// Value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Ignored::Foreign => "foreign",
            Ignored::Older => "older",
            Ignored::UnknownNode => "unknown_node",
            Ignored::Malformed => "malformed",
            Ignored::TooLarge => "too_large",
            Ignored::Full => "full",
        }
    }
}

impl From<RecordError> for Ignored {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::TooLarge => Ignored::TooLarge,
            RecordError::Malformed => Ignored::Malformed,
        }
    }
}

/// Counts of one bus since its start.
#[derive(Debug, Default)]
pub struct BusCounters {
    pub(super) records_in: AtomicU64,
    pub(super) records_out: AtomicU64,
    pub(super) record_bytes_out: AtomicU64,
    ignored: [AtomicU64; Ignored::ALL.len()],
    pub(super) refused: AtomicU64,
    pub(super) resyncs: AtomicU64,
    pub(super) repairs: AtomicU64,
    pub(super) queries_dropped: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) entered_anew: AtomicU64,
    pub(super) nodes_up: AtomicU64,
    pub(super) nodes_gone: AtomicU64,
    pub(super) nodes: AtomicU64,
    pub(super) participants: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn add(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl BusCounters {
    pub(super) fn ignore(&self, why: impl Into<Ignored>) {
        count(&self.ignored[why.into() as usize]);
    }

    /// Records of others that were handed on.
    pub fn records_in(&self) -> u64 {
        read(&self.records_in)
    }

    /// Records of ours that were written.
    pub fn records_out(&self) -> u64 {
        read(&self.records_out)
    }

    /// Their bytes, once each, however many nodes there are.
    pub fn record_bytes_out(&self) -> u64 {
        read(&self.record_bytes_out)
    }

    /// Messages that had no effect.
    pub fn ignored(&self, why: Ignored) -> u64 {
        read(&self.ignored[why as usize])
    }

    /// Records of ours that others would not accept: beyond [`super::RECORD_LEN_MAX`] or another bound.
    pub fn refused(&self) -> u64 {
        read(&self.refused)
    }

    /// Times that all records of a node in a session were read.
    pub fn resyncs(&self) -> u64 {
        read(&self.resyncs)
    }

    /// Digests that told of something missed.
    pub fn repairs(&self) -> u64 {
        read(&self.repairs)
    }

    /// Queries of others that were not answered because too many waited.
    pub fn queries_dropped(&self) -> u64 {
        read(&self.queries_dropped)
    }

    /// Times that another process with this node's id was heard.
    pub fn duplicates(&self) -> u64 {
        read(&self.duplicates)
    }

    /// Times that the bus was entered anew because somebody of `bus.connect` takes connections and is not on it.
    pub fn entered_anew(&self) -> u64 {
        read(&self.entered_anew)
    }

    /// Times that a node came up, and that one was gone.
    pub fn transitions(&self) -> (u64, u64) {
        (read(&self.nodes_up), read(&self.nodes_gone))
    }

    /// Other nodes that are up.
    pub fn nodes(&self) -> u64 {
        read(&self.nodes)
    }

    /// Participants of others that are known here.
    pub fn participants(&self) -> u64 {
        read(&self.participants)
    }
}
