//! What a worker counts: plain cells on the worker, copied a few times a second into atomics that others read.

use std::sync::atomic::{AtomicU64, Ordering};

use pop_proto::DropReason;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $field:ident: $name:literal,)*) => {
        /// Totals of one worker since its start; written by the worker alone.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $field: u64,)*
        }

        impl Counters {
            /// How many there are.
            pub const LEN: usize = [$($name,)*].len();

            /// Visits (metric name without prefix and `_total`, help, value).
            pub fn for_each(&self, mut visit: impl FnMut(&'static str, &'static str, u64)) {
                $(visit($name, concat!($($doc,)*), self.$field);)*
            }

            fn to_array(self) -> [u64; Self::LEN] {
                [$(self.$field,)*]
            }

            fn from_array(values: [u64; Self::LEN]) -> Counters {
                let [$($field,)*] = values;
                Counters { $($field,)* }
            }
        }
    };
}

counters! {
    /// RTP packets received and authenticated.
    rtp_packets_in: "rtp_packets_in",
    /// RTP payload bytes received and authenticated.
    rtp_bytes_in: "rtp_bytes_in",
    /// RTP packets protected and handed to the kernel, retransmissions included.
    rtp_packets_out: "rtp_packets_out",
    /// RTP payload bytes protected and handed to the kernel.
    rtp_bytes_out: "rtp_bytes_out",
    /// Bytes of padding that made packets as long as their neighbours in a train.
    rtp_padding_bytes_out: "rtp_padding_bytes_out",
    /// RTP packets sent again because a viewer asked.
    retransmitted_packets: "retransmitted_packets",
    /// Sections that began with pictures that were kept, without a keyframe request.
    catch_ups: "catch_ups",
    /// Sections whose pictures were given up before all of them had left.
    catch_ups_broken: "catch_ups_broken",
    /// Packets taken from other workers for the mirrors of their tracks.
    handover_packets_in: "handover_packets_in",
    /// RTP payload bytes of these packets.
    handover_bytes_in: "handover_bytes_in",
    /// Packets handed over to other workers, once for each that has subscribers.
    handover_packets_out: "handover_packets_out",
    /// RTP payload bytes of these packets.
    handover_bytes_out: "handover_bytes_out",
    /// Batches taken from other workers.
    handover_batches_in: "handover_batches_in",
    /// Batches handed over to other workers.
    handover_batches_out: "handover_batches_out",
    /// Datagrams taken from other nodes' workers: authentic and new.
    relay_datagrams_in: "relay_datagrams_in",
    /// UDP payload bytes of these.
    relay_bytes_in: "relay_bytes_in",
    /// RTP packets in them, repairs included.
    relay_packets_in: "relay_packets_in",
    /// Bytes of these, headers included.
    relay_media_bytes_in: "relay_media_bytes_in",
    /// Datagrams sent to other nodes' workers.
    relay_datagrams_out: "relay_datagrams_out",
    /// UDP payload bytes of these.
    relay_bytes_out: "relay_bytes_out",
    /// RTP packets in them, repairs excluded.
    relay_packets_out: "relay_packets_out",
    /// Bytes of these, headers included.
    relay_media_bytes_out: "relay_media_bytes_out",
    /// RTP packets that were sent again to another node's worker.
    relay_repairs_out: "relay_repairs_out",
    /// Datagrams between other nodes that were passed on; those above count them, too.
    relay_transit_datagrams: "relay_transit_datagrams",
    /// UDP payload bytes of these, as they left.
    relay_transit_bytes: "relay_transit_bytes",
    /// RTX packets of publishers that stood for a packet of their stream.
    rtx_packets_in: "rtx_packets_in",
    /// RTX packets of publishers without a payload: probes for bandwidth.
    rtx_padding_in: "rtx_padding_in",
    /// Packets of publishers whose dependency descriptor does not fit its own fields; they are sent to whoever gets everything.
    descriptors_malformed: "descriptors_malformed",
    /// RTCP datagrams received and authenticated.
    rtcp_packets_in: "rtcp_packets_in",
    /// RTCP datagrams sent.
    rtcp_packets_out: "rtcp_packets_out",
    /// Sequence numbers that viewers asked for again.
    rtcp_nack_in: "rtcp_nack_in",
    /// Sequence numbers asked for again from publishers.
    rtcp_nack_out: "rtcp_nack_out",
    /// Keyframe requests from viewers.
    rtcp_pli_in: "rtcp_pli_in",
    /// Keyframe requests to publishers.
    rtcp_pli_out: "rtcp_pli_out",
    /// Transport-wide congestion control feedback datagrams sent to publishers.
    rtcp_twcc_out: "rtcp_twcc_out",
    /// Transport-wide congestion control feedback received from viewers.
    rtcp_twcc_in: "rtcp_twcc_in",
    /// Bitrate estimates (REMB) sent to publishers.
    rtcp_remb_out: "rtcp_remb_out",
    /// Bitrate estimates (REMB) received from viewers.
    rtcp_remb_in: "rtcp_remb_in",
    /// ICE connectivity checks answered with success.
    ice_checks_ok: "ice_checks_ok",
    /// ICE connectivity checks answered with an error.
    ice_checks_refused: "ice_checks_refused",
    /// Checks for the public probe ufrag that were answered.
    probe_ice_answered: "probe_ice_answered",
    /// Checks for the public probe ufrag beyond the rates.
    probe_ice_limited: "probe_ice_limited",
    /// Checks for the public probe ufrag that were wrong.
    probe_ice_refused: "probe_ice_refused",
    /// DTLS datagrams handed to the control plane.
    dtls_datagrams_in: "dtls_datagrams_in",
    /// DTLS datagrams sent.
    dtls_datagrams_out: "dtls_datagrams_out",
    /// Sends handed to the kernel; one carries a whole train.
    trains_out: "trains_out",
    /// Datagrams in those sends.
    datagrams_out: "datagrams_out",
    /// Datagrams received.
    datagrams_in: "datagrams_in",
    /// Turns of the worker's loop.
    turns: "worker_turns",
    /// System calls that moved packets or waited for them.
    syscalls: "worker_syscalls",
    /// Heap allocations on the worker's thread.
    allocations: "worker_allocations",
    /// Times the kernel had no buffer to receive into.
    receive_overflow: "uring_overflow",
    /// Datagrams longer than a receive buffer.
    truncated: "receive_truncated",
    /// Datagrams that the kernel dropped because a media socket's queue was full.
    kernel_drops: "udp_receive_buffer_drops",
    /// Errors that the kernel reported in place of a datagram, such as ICMP unreachable.
    receive_errors: "receive_errors",
    /// Datagrams dropped unread because their socket was removed.
    late_datagrams: "late_datagrams",
    /// TCP connections accepted at the media port.
    tcp_accepted: "tcp_connections_accepted",
    /// TCP connections refused because their source has too many, or because every place is taken.
    tcp_refused: "tcp_connections_refused",
    /// TCP connections that the kernel could not give: no descriptors or no memory.
    tcp_accept_errors: "tcp_accept_errors",
    /// TCP connections closed because no check of a client of this node came in time.
    tcp_unproven: "tcp_connections_unproven",
    /// TCP connections closed because they announced a longer datagram than may be.
    tcp_misframed: "tcp_connections_misframed",
    /// TCP connections closed because their peer read nothing for 10 s.
    tcp_stalled: "tcp_connections_stalled",
    /// Trains that the kernel refused as a train and that left datagram by datagram.
    gso_refused: "gso_refused",
    /// Trains that left datagram by datagram without a try, because the kernel had refused one on the same way shortly before.
    trains_split: "trains_split",
}

/// A worker's drops by reason.
pub type Drops = [u64; DropReason::ALL.len()];

/// A copy of a worker's totals.
#[derive(Clone, Debug)]
pub struct WorkerSnapshot {
    /// Index of the worker.
    pub worker: usize,
    /// The core that it is pinned to, when pinning worked.
    pub core: Option<usize>,
    /// `io_uring` or `mmsg`.
    pub backend: &'static str,
    /// Totals.
    pub counters: Counters,
    /// Drops, indexed by `DropReason as usize`.
    pub drops: Drops,
    /// Transports, tracks, subscriptions that exist now.
    pub gauges: Gauges,
}

/// What exists on a worker now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Transports.
    pub transports: u64,
    /// Tracks of publishers here.
    pub tracks: u64,
    /// Mirrors of other workers' tracks.
    pub mirrors: u64,
    /// Tracks of other nodes.
    pub remotes: u64,
    /// Links to workers of other nodes.
    pub links: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Packets held in histories.
    pub packets_held: u64,
    /// TCP connections open at the media port.
    pub tcp_connections: u64,
}

/// The atomics between a worker (the one writer) and everybody who reads.
pub(crate) struct SharedCounters {
    counters: [AtomicU64; Counters::LEN],
    drops: [AtomicU64; DropReason::ALL.len()],
    gauges: [AtomicU64; 8],
}

impl SharedCounters {
    pub(crate) fn new() -> SharedCounters {
        SharedCounters {
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn store(&self, counters: &Counters, drops: &Drops, gauges: &Gauges) {
        // One writer, and no value depends on another: relaxed stores are enough.
        let pairs = self.counters.iter().zip(counters.to_array()).chain(self.drops.iter().zip(*drops));
        for (cell, value) in pairs {
            cell.store(value, Ordering::Relaxed);
        }
        let Gauges { transports, tracks, mirrors, remotes, links, subscriptions, packets_held, tcp_connections } = *gauges;
        let values = [transports, tracks, mirrors, remotes, links, subscriptions, packets_held, tcp_connections];
        for (cell, value) in self.gauges.iter().zip(values) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn load(&self) -> (Counters, Drops, Gauges) {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let counters = Counters::from_array(std::array::from_fn(|i| read(&self.counters[i])));
        let [transports, tracks, mirrors, remotes, links, subscriptions, packets_held, tcp_connections] =
            std::array::from_fn(|i| read(&self.gauges[i]));
        (
            counters,
            std::array::from_fn(|i| read(&self.drops[i])),
            Gauges { transports, tracks, mirrors, remotes, links, subscriptions, packets_held, tcp_connections },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_worker_stores_is_what_others_load() {
        let mut counters = Counters { rtp_packets_in: 1, ..Counters::default() };
        counters.truncated = 9;
        let mut drops: Drops = [0; DropReason::ALL.len()];
        drops[DropReason::SrtpAuth as usize] = 3;
        let gauges =
            Gauges { transports: 1, tracks: 2, mirrors: 6, remotes: 7, links: 8, subscriptions: 3, packets_held: 4, tcp_connections: 5 };
        let shared = SharedCounters::new();
        shared.store(&counters, &drops, &gauges);
        assert_eq!(shared.load(), (counters, drops, gauges));
        let mut names = Vec::new();
        counters.for_each(|name, help, _| {
            assert!(!help.is_empty());
            names.push(name);
        });
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counters::LEN);
    }
}
