//! The memory plan: every bound of a worker, and the bytes that they add up to.

use pop_proto::allocation::Demand;
use pop_proto::control::{Event, MediaKind};
use pop_proto::history::{PacketPool, SLOT_LEN};
use pop_proto::inbound;
use pop_proto::outbound::Scratch;
use pop_uring::StreamsConfig;

use crate::worker::Order;

/// Commands that may wait for one worker. A join makes about five.
pub const COMMANDS_MAX: usize = 4_096;

/// Sockets that one worker serves beyond those of its media port: an RTP route takes one or two.
pub const ADDED_SOCKETS_MAX: u16 = 256;

/// Bytes of one added socket: its slot, poll entry and generation, its share of the ring (a submission of 64 bytes, two
/// completions of 16), and its lock's flag. The socket's own queues are the kernel's.
const ADDED_SOCKET_LEN: usize = 192;

/// TCP connections at one worker's media port, and the bytes that wait in the queue of each: a keyframe, beside what the kernel
/// holds.
pub const TCP_CONNECTIONS_MAX: u16 = 512;
/// See [`TCP_CONNECTIONS_MAX`].
pub const TCP_QUEUE_LEN: u32 = 128 << 10;

/// Events that may wait for the control plane. A DTLS flight makes about four; one event is 1.5 KB because a datagram rides inline.
pub const EVENTS_MAX: usize = 2_048;

/// Packets that may wait for the service thread per tap queue.
pub const TAP_QUEUE_LEN: usize = 1_024;

/// Streams that one transport may publish; each simulcast layer is one.
pub const TRACKS_PER_TRANSPORT_MAX: usize = 16;

/// Sections that one transport may subscribe: audio, video and screen of 85 others; a room of 50 needs 98.
pub const SUBSCRIPTIONS_PER_TRANSPORT_MAX: usize = 256;

/// STUN answers that one turn may make.
pub const STUN_ANSWERS_MAX: usize = 256;

/// Links of one worker, where the node has any: to 32 nodes of four workers.
pub const LINKS_MAX: u16 = 128;

/// Fresh packets of one track in one turn: what GRO can bring in one turn from one publisher.
pub const FRESH_MAX: usize = 256;

/// The bounds of one worker, from the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Clients that may be connected.
    pub transports: u32,
    /// Published streams, mirrors of other workers' and tracks of other nodes; each simulcast layer is one.
    pub tracks: u32,
    /// Subscriber sections.
    pub subscriptions: u32,
    /// Packets that all histories together may hold.
    pub packets: u32,
    /// Receive buffers given to the kernel.
    pub recv_buffers: u16,
    /// Bytes of one receive buffer: 65,536 with GRO.
    pub recv_buffer_len: u32,
    /// Send slots.
    pub trains: u16,
    /// Bytes of one send slot.
    pub train_len: u32,
    /// TCP connections at the media port; 0: it listens for UDP alone.
    pub tcp_connections: u16,
    /// The node's other workers: a lane goes to each.
    pub peers: u16,
    /// Links to workers of other nodes; 0: it has no relay port.
    pub links: u16,
}

impl WorkerLimits {
    /// With the node's own test of its way for media, which is in no client's plan.
    pub(crate) fn with_self_test(self) -> WorkerLimits {
        WorkerLimits { transports: self.transports + 1, tracks: self.tracks + 1, subscriptions: self.subscriptions + 1, ..self }
    }

    pub(crate) fn streams(&self) -> StreamsConfig {
        StreamsConfig { connections: self.tcp_connections, queue_len: TCP_QUEUE_LEN }
    }
}

impl Default for WorkerLimits {
    fn default() -> WorkerLimits {
        WorkerLimits {
            transports: 2_000,
            tracks: 1_000,
            // Two rooms of 50 with a microphone and a camera each.
            subscriptions: 10_000,
            packets: 65_536,
            recv_buffers: 256,
            recv_buffer_len: 65_536,
            trains: 64,
            train_len: 65_535,
            tcp_connections: TCP_CONNECTIONS_MAX,
            peers: 0,
            links: 0,
        }
    }
}

/// One line of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// What it is for.
    pub name: &'static str,
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub bytes_each: u64,
}

impl Term {
    /// Bytes of all.
    pub const fn bytes(&self) -> u64 {
        self.count * self.bytes_each
    }
}

/// The worst case of one worker's memory, line by line. Lines are address space: a page counts once it was used, but for receive
/// buffers, which are backed at start.
pub fn plan(limits: &WorkerLimits) -> Vec<Term> {
    let mut plan = core_plan(limits);
    plan.extend([
        term("receive buffers", limits.recv_buffers.into(), limits.recv_buffer_len as usize),
        term("send trains", limits.trains.into(), limits.train_len as usize),
        term("TCP connections", limits.tcp_connections.into(), limits.streams().connection_len()),
        term("added sockets", ADDED_SOCKETS_MAX.into(), ADDED_SOCKET_LEN + size_of::<u16>() * usize::from(limits.trains)),
        term("command queue", COMMANDS_MAX as u64, size_of::<Order>()),
        term("event queue to the control plane", EVENTS_MAX as u64, size_of::<Event>()),
        term("rates of the ICE probe", 1, pop_proto::probe::LIMITER_LEN),
        term("lanes to other workers", limits.peers.into(), crate::handover::LANE_LEN),
        term("tap queue (one for all workers)", TAP_QUEUE_LEN as u64, SLOT_LEN + 32),
    ]);
    plan
}

/// The part of [`plan`] that a worker's [`Core`](crate::core::Core) takes.
pub fn core_plan(limits: &WorkerLimits) -> Vec<Term> {
    let limits = limits.with_self_test();
    vec![
        term("packet pool (histories of all tracks)", limits.packets.into(), PacketPool::BYTES_PER_SLOT),
        term("transports", limits.transports.into(), crate::core::TRANSPORT_LEN),
        term("tracks (as if all were video)", limits.tracks.into(), crate::core::TRACK_LEN + inbound::len_bytes(MediaKind::Video)),
        term("subscriptions", limits.subscriptions.into(), crate::core::SUBSCRIPTION_LEN),
        term("links to other nodes", limits.links.into(), crate::core::LINK_LEN),
        term("tracks on links", u64::from(limits.links) * u64::from(limits.tracks), crate::core::LINK_TRACK_LEN),
        term("what goes through a third node", limits.links.min(1).into(), crate::core::TRANSIT_LEN),
        term("tables for parity", limits.links.min(1).into(), crate::core::PARITY_LEN),
        term("a packet in the making", 1, size_of::<Scratch>()),
        term("sections that share a client's bandwidth", SUBSCRIPTIONS_PER_TRANSPORT_MAX as u64, size_of::<Demand>()),
        term("event queue of the core", EVENTS_MAX as u64, size_of::<Event>()),
    ]
}

const fn term(name: &'static str, count: u64, bytes_each: usize) -> Term {
    Term { name, count, bytes_each: bytes_each as u64 }
}

/// Sum of [`plan`], in bytes.
pub fn plan_bytes(limits: &WorkerLimits) -> u64 {
    plan(limits).iter().map(Term::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_plan_of_a_worker_stays_below_320_mib() {
        let bytes = plan_bytes(&WorkerLimits::default());
        assert!(bytes < 320 << 20, "{} MiB", bytes >> 20);
    }
}
