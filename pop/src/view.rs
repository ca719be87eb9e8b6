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

/// Another PoP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PopView {
    /// Its name.
    pub pop: String,
    /// `up`, or `away`: no way leads there.
    pub state: &'static str,
    /// Links of this node to its nodes.
    pub links: usize,
    /// What its nodes run.
    pub releases: Vec<String>,
    /// Permille of what it can do that its busiest node does.
    pub load: u16,
    /// All its nodes let their people go.
    pub draining: bool,
}

/// How the path between two PoPs is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathView {
    /// Who measures it.
    pub from: String,
    /// The other end.
    pub to: String,
    /// Round trip.
    pub rtt_ms: f64,
    /// Interarrival jitter of what comes from the other end.
    pub jitter_ms: f64,
    /// Share of what is sent there that is lost.
    pub loss_out: f64,
    /// Share of what comes from there that is lost.
    pub loss_in: f64,
}

/// Which way goes to another PoP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteView {
    /// The PoP.
    pub to: String,
    /// `direct`, or `via POP`.
    pub way: String,
    /// How datagrams leave, as the workers find: the way, the backup, or both with a `+` while it is not known which of them lives; absent
    /// before they have told.
    pub in_use: Option<String>,
    /// The next best, which has nothing in common with it.
    pub backup: Option<String>,
    /// How late a packet is, repairs and jitter weighed in.
    pub cost_ms: f64,
    /// The same of the direct way; absent where there is none.
    pub direct_ms: Option<f64>,
    /// `best`, `kept` (another is better, not by enough or not for long enough), `failed` (the way before is gone).
    pub reason: &'static str,
    /// Milliseconds since it became this way.
    pub age_ms: u64,
}

/// The other PoPs and the ways to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OverlayView {
    /// Those with which there is or was a link.
    pub pops: Vec<PopView>,
    /// Paths between PoPs, as each end measures them.
    pub paths: Vec<PathView>,
    /// One for each PoP that can be reached.
    pub routes: Vec<RouteView>,
    /// Times that a route became another one.
    pub changes: u64,
    /// What happened of late, the newest last; 50 at most.
    pub events: Vec<EventView>,
    /// Sessions with people in another PoP, too.
    pub sessions: usize,
    /// Those people.
    pub participants: u64,
}

/// Something that happened to another node or to the way to a PoP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventView {
    /// Milliseconds since 1970, by this node's clock.
    pub at_ms: u64,
    /// `way` (another one goes to the PoP); of a node `new`, `restarted`, `away`, `back`, and where it is another PoP's `link_up`,
    /// `link_down`.
    pub what: &'static str,
    /// The PoP.
    pub pop: String,
    /// The node; of a way absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The way before: `direct`, `via POP` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The way since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
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
    /// How the control link gets there: `direct`, `via NODE.POP`, or `none` while it has no connection and datagrams still come.
    pub control: String,
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
    /// Pairs of workers, one of each node, that exchange datagrams: with a node of another PoP one, until there is media for it or to be carried.
    pub lanes: usize,
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
    /// Datagrams that did not come, and that parity brought back in time.
    pub recovered: u64,
    /// Bytes of parity, part of `bytes_out`.
    pub parity_bytes_out: u64,
    /// Datagrams that came and were refused.
    pub dropped: u64,
    /// What it carries, in kbit/s, where that is less than what is to be sent; absent while no limit is known.
    pub limit_kbps: Option<u64>,
    /// Packets of video that were not sent because it does not carry them.
    pub congested: u64,
    /// How datagrams to a node of another PoP leave: `direct`, `via POP`, or both with a `+` while it is not known which of them lives.
    pub way: Option<String>,
    /// Bytes that this link carried between the other node and third ones, or this one: taken.
    pub transit_bytes_in: u64,
    /// The same: sent.
    pub transit_bytes_out: u64,
    /// Ids of the API keys that the other node's certificate lets its PoP use, as `pop ca issue --api-keys` takes them: `*` is all.
    pub api_keys: Vec<String>,
}
