//! An RTP route: a transport without ICE and DTLS, on sockets of its own.

use std::net::SocketAddr;
use std::time::Duration;

use pop_schemas::TransportId;

use super::SrtpKeys;

/// As a track's payload type: every one that comes. As a subscriber's: the one that the publisher used.
pub const ANY_PAYLOAD_TYPE: u8 = 0xff;

/// Whom a route listens to and sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtpPeer {
    /// This address alone.
    Fixed(SocketAddr),
    /// The source of the first valid packet (with SRTP: the first authentic one), and nobody else from then on.
    Learnt {
        /// After so long without a valid packet, and a second at least, another peer may be learnt: a sender that starts again has another port.
        silence: Duration,
        /// What this route is forwarded to: never learnt, or its packets would go in a circle.
        never: Option<SocketAddr>,
    },
}

/// How a route's RTCP travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcpVia {
    /// Not at all: whatever comes is RTP.
    Off,
    /// With RTP (RFC 5761): payload types 64 to 95 are RTCP's.
    Mux,
    /// On the next port (RFC 3550 section 11), which is this socket.
    Next {
        /// Index of the worker's socket.
        socket: u16,
    },
}

/// What a packet keeps of its header on the way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbering {
    /// Sequence, timestamp and SSRC are the subscription's own and go on over a change of the source: what a browser needs.
    #[default]
    Own,
    /// The source's timestamps; sequence and SSRC are the subscription's own.
    Timestamps,
    /// The source's timestamps and SSRC; the sequence is the subscription's own. Under a key it is [`Numbering::Timestamps`]: an SSRC
    /// that comes again would meet an index of its first time.
    TimestampsAndSsrc,
    /// The whole header, payload type and extensions included, as it came: a forwarder. Under a key it is [`Numbering::Timestamps`]: a
    /// source that starts over repeats its sequence numbers.
    Whole,
}

/// A route: one stream in, or subscriptions out.
#[derive(Debug)]
pub struct OpenRtp {
    /// Its transport.
    pub transport: TransportId,
    /// Index of the worker's socket that RTP is received on and sent from.
    pub socket: u16,
    /// Where RTCP is.
    pub rtcp: RtcpVia,
    /// The other end.
    pub peer: RtpPeer,
    /// SRTP, by keys that the operator gave (RFC 4568); `None`: plain RTP. What comes in has to be heard from its stream's beginning:
    /// nobody signals a rollover counter (RFC 3711 section 3.3.1), so a sender that has counted 65,536 packets under one SSRC before
    /// the route was opened fails authentication until it begins anew. An SSRC that another took the place of is refused, so that
    /// its packets cannot be replayed.
    pub keys: Option<Box<SrtpKeys>>,
    /// Of what is sent.
    pub numbering: Numbering,
    /// SSRC of our RTCP; drawn anew for each transport.
    pub rtcp_ssrc: u32,
    /// CNAME of everything that we send.
    pub cname: Box<str>,
}

/// What a route's port has refused since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtpPeerStats {
    /// Datagrams of others than the peer.
    pub foreign: u64,
    /// Datagrams of the peer, or of who could become it, that were not taken.
    pub refused: u64,
}
