//! Why a packet ended here. Every packet that is not forwarded or answered ends with one of these and a counter.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $label:literal,)*) => {
        /// The reason label of `pop_rtp_dropped_packets_total`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its discriminant.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The value of the metric's `reason` label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $label,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Empty, longer than a datagram may be, or of no protocol that shares the port (RFC 7983).
    UnknownProtocol = "unknown_protocol",
    /// A STUN message whose header, attribute lengths or fingerprint do not hold.
    StunMalformed = "stun_malformed",
    /// A STUN message that is not a Binding request (indications and responses included).
    StunUnexpected = "stun_unexpected",
    /// A Binding request for a ufrag that no transport here has.
    StunUnknownUser = "stun_unknown_user",
    /// A Binding request whose MESSAGE-INTEGRITY is absent or wrong.
    StunIntegrity = "stun_integrity",
    /// A Binding request in a flood of such whose MESSAGE-INTEGRITY is wrong: it was not looked at any more.
    StunLimited = "stun_limited",
    /// More STUN answers in one turn than the queue holds.
    StunQueueFull = "stun_queue_full",
    /// A probe beyond what its source prefix, or all together, may send.
    ProbeLimited = "probe_limited",
    /// A probe shorter than its answer.
    ProbeShort = "probe_short",
    /// A probe from a reflector's port or from no single host's address.
    ProbeSource = "probe_source",
    /// No STAMP request: too short for a reply of its length, or longer than a frame.
    StampMalformed = "stamp_malformed",
    /// Media or DTLS from an address that no authenticated check has validated.
    UnknownAddress = "unknown_address",
    /// A datagram on an RTP route's port from another address than its peer's, or while no route has the port.
    ForeignPeer = "foreign_peer",
    /// A DTLS record whose header or length does not hold.
    DtlsMalformed = "dtls_malformed",
    /// A plaintext (epoch 0) record after the handshake has ended.
    DtlsPlaintext = "dtls_plaintext",
    /// A DTLS record that the association does not wait for: a repeat, application data of a client that is no member, a later epoch.
    DtlsUnexpected = "dtls_unexpected",
    /// Application data whose authentication tag is wrong.
    DtlsAuth = "dtls_auth",
    /// Application data that was already received, or that is older than the window.
    DtlsReplay = "dtls_replay",
    /// DTLS faster than a handshake needs, or the control plane does not keep up.
    DtlsQueueFull = "dtls_queue_full",
    /// An RTP header, extension or padding that does not fit its packet.
    RtpMalformed = "rtp_malformed",
    /// A retransmission (RFC 4588) without the sequence number of what it repeats.
    RtxMalformed = "rtx_malformed",
    /// Redundant audio (RFC 2198) whose blocks do not fit, for a subscriber that takes the primary alone.
    RedMalformed = "red_malformed",
    /// An RTCP compound whose headers or counts do not fit its packet.
    RtcpMalformed = "rtcp_malformed",
    /// SRTP or SRTCP before the keys are there.
    SrtpNoKeys = "srtp_no_keys",
    /// The authentication tag is wrong.
    SrtpAuth = "srtp_auth",
    /// An index that was already received, or that is older than the window.
    SrtpReplay = "srtp_replay",
    /// SRTCP without the E bit: unencrypted is not accepted.
    SrtcpUnencrypted = "srtcp_unencrypted",
    /// The key has protected as many packets as it may (2^48 RTP, 2^31 RTCP).
    SrtpKeyExhausted = "srtp_key_exhausted",
    /// Authenticated RTP of a stream that was not negotiated.
    UnknownStream = "unknown_stream",
    /// More streams in one transport than the plan holds.
    StreamLimit = "stream_limit",
    /// A payload type that was not negotiated, or that the subscriber cannot take.
    PayloadType = "payload_type",
    /// A packet that the history already holds.
    Duplicate = "duplicate",
    /// A packet too old for the history.
    TooOld = "too_old",
    /// A publisher's packet larger than a slot holds.
    TooLarge = "too_large",
    /// The packet pool is empty.
    PoolEmpty = "pool_empty",
    /// Video that a subscriber cannot decode before the next keyframe.
    WaitingForKeyframe = "waiting_for_keyframe",
    /// A frame of a layered stream that the viewer's layers do without.
    LayerNotWanted = "layer_not_wanted",
    /// A retransmission was asked for and the history no longer holds the packet.
    RepairMissing = "repair_missing",
    /// More retransmissions are waiting for one subscriber than its queue holds.
    RepairQueueFull = "repair_queue_full",
    /// The subscriber's transport has no address or no keys yet.
    SubscriberNotReady = "subscriber_not_ready",
    /// No train was free: the socket does not take what the worker makes.
    SendQueueFull = "send_queue_full",
    /// A TCP client reads slower than it is sent to, and its queue is full.
    TcpQueueFull = "tcp_queue_full",
    /// The kernel refused the send, or its socket or connection is gone.
    SendFailed = "send_failed",
    /// The queue to another worker that has subscribers of the track is full: that worker is too slow.
    HandoverQueueFull = "handover_queue_full",
    /// At the relay port: shorter than a head and a tag, longer than a datagram may be, or of a version or kind that is not spoken.
    RelayMalformed = "relay_malformed",
    /// At the relay port: of a link that is not open here.
    RelayUnknownLink = "relay_unknown_link",
    /// At the relay port: under keys that are not here yet, or dead.
    RelayKeyUnknown = "relay_key_unknown",
    /// At the relay port: it came before, or is older than the window.
    RelayReplay = "relay_replay",
    /// At the relay port: its tag is wrong.
    RelayAuth = "relay_auth",
    /// At the relay port: authentic, and not what its kind says.
    RelayPayload = "relay_payload",
    /// Of a link: a repair, or half of a packet, that is of no use any more.
    RelayLate = "relay_late",
    /// Of a link: more packets at once than a turn takes.
    RelayBurst = "relay_burst",
    /// Video for a link that loses too much to carry all of it.
    RelayCongested = "relay_congested",
    /// Audio for a link that takes the loudest microphones of a session alone: this was none of them.
    RelayNotLoudest = "relay_not_loudest",
    /// To a link whose keys have sealed as much as they may: it waits for the next.
    RelayKeysUsed = "relay_keys_used",
    /// Of other nodes, to be passed on: its route is too long, or what it carries is no datagram, or one of the same kind.
    RelayRoute = "relay_route",
    /// Of other nodes, to be passed on: it may go no further.
    RelayHops = "relay_hops",
    /// Of other nodes, to be passed on: back to where it came from.
    RelayCircle = "relay_circle",
    /// Of other nodes, to be passed on, or of this one over another: there is no link that leads there.
    RelayNoWay = "relay_no_way",
    /// Of other nodes, to be passed on: more at once than a turn takes.
    RelayTransitFull = "relay_transit_full",
    /// It waited, or was to leave, while this node did not run, or does not know yet whether others hold it for dead.
    Stale = "stale",
    /// A tap's queue to the service thread is full.
    TapQueueFull = "tap_queue_full",
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn every_reason_has_its_own_label() {
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::ALL.len());
        assert!(DropReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
    }
}
