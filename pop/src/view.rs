//! What the looking glass shows of the other nodes: plain serializable values. The rooms' part of it is `pop_session::view`.

use serde::Serialize;

use crate::admin::Incarnation;

/// Another node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// The PoP that it is a node of.
    pub pop: String,
    /// `up`, or `away`: nothing is heard of it, and its people are kept for the grace.
    pub state: &'static str,
    /// Its start that is known.
    pub incarnation: Incarnation,
    /// Where it takes control links.
    pub mesh: Option<String>,
    /// People whose transport ends there.
    pub participants: u64,
    /// Permille of what it can do that it does.
    pub load: u16,
    /// Clients that it has place for.
    pub capacity: u32,
    /// It lets its people go and takes no new ones.
    pub draining: bool,
}

/// A service address of the PoP (`http.vip`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VipView {
    /// The address.
    pub address: String,
    /// Name of the node that has it, as this one finds; `None` where nobody may.
    pub holder: Option<String>,
    /// This node's host has it.
    pub held: bool,
}

/// A secured relation with another node. Counters are of all workers, since the link came up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkView {
    /// The other node's name.
    pub node: String,
    /// The other node's id, 16 hexadecimal digits.
    pub id: String,
    /// The PoP that it is a node of.
    pub pop: String,
    /// Its control address.
    pub address: String,
    /// `connecting` or `up`.
    pub state: &'static str,
    /// This node has opened it.
    pub dialled: bool,
    /// Version of the schema that both ends speak.
    pub schema: u8,
    /// Which of the link's keys are in use: one more each time they are exchanged.
    pub generation: u32,
    /// Milliseconds since it came up.
    pub age_ms: u64,
    /// Round trip of media datagrams; absent before the first is measured.
    pub rtt_ms: Option<f64>,
    /// Interarrival jitter of what comes from the other node; the most of its workers.
    pub jitter_ms: f64,
    /// Longest UDP payload that passes, in bytes; absent before it is probed.
    pub mtu: Option<u16>,
    /// Tracks that it carries from here.
    pub tracks_out: usize,
    /// Tracks that it carries to here.
    pub tracks_in: usize,
    /// Relay datagrams sent.
    pub datagrams_out: u64,
    /// Relay datagrams taken.
    pub datagrams_in: u64,
    /// Bytes of the UDP payloads sent.
    pub bytes_out: u64,
    /// Bytes of the UDP payloads taken.
    pub bytes_in: u64,
    /// Datagrams that never came, or came too late.
    pub lost: u64,
    /// Datagrams that came because they were asked for again.
    pub repaired: u64,
    /// Datagrams that came and were refused.
    pub dropped: u64,
    /// What it carries, in kbit/s, where that is less than what is to be sent; absent while no limit is known.
    pub limit_kbps: Option<u64>,
    /// Packets of video that were not sent because it does not carry them.
    pub congested: u64,
}
