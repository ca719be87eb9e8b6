//! RTP routes: transports whose peer is configured or learnt, on sockets of their own.
//!
//! ```text
//! route's socket -> RTCP? -> the peer, or who may become it? -> header, payload type -> authentic (SRTP) -> learn -> inbound
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use pop_proto::control::{Numbering, OpenRtp, Path, RtcpVia, RtpPeer, RtpPeerStats, TransportLoss};
use pop_proto::history::{Meta, SLOT_LEN};
use pop_proto::protection::Receiver;
use pop_proto::wire::{self, Protocol, rtp};
use pop_proto::{DropReason, Event};
use pop_schemas::Time;

use super::{Core, Endpoint, Keys, Stream, Transport};

/// A route's stream may change its SSRC this often: an encoder that starts again goes on at once, two at a time do not take turns.
const REBIND_INTERVAL: Duration = Duration::from_secs(1);

/// A learnt peer keeps its place at least this long, whatever is configured: less, and two senders take turns packet by packet.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// RTCP from one port of the peer's host keeps out the host's other ports for this long after its last: two intervals of RFC 3550
/// section 6.2, with their randomization.
const RTCP_SILENCE: Duration = Duration::from_secs(15);

/// The address of a route's peer, and what its ports have refused.
pub(super) struct RtpRoute {
    socket: u16,
    rtcp: RtcpVia,
    peer: RtpPeer,
    numbering: Numbering,
    /// Configured, or learnt.
    remote: Option<SocketAddr>,
    /// Where the peer's RTCP comes from, once some came.
    rtcp_remote: Option<SocketAddr>,
    /// When it came last.
    rtcp_heard: Time,
    /// The peer's last valid packet.
    heard: Time,
    /// The stream's last change of SSRC.
    rebound: Option<Time>,
    /// Packets of a raw stream: their own numbers are not believed.
    arrivals: u64,
    stats: RtpPeerStats,
    stats_reported: RtpPeerStats,
}

impl RtpRoute {
    fn new(open: &OpenRtp) -> RtpRoute {
        RtpRoute {
            socket: open.socket,
            rtcp: open.rtcp,
            peer: match open.peer {
                RtpPeer::Learnt { silence, never } => RtpPeer::Learnt { silence: silence.max(SILENCE_MIN), never },
                fixed @ RtpPeer::Fixed(_) => fixed,
            },
            // One (key, SSRC, index) makes one ciphertext: a source's own SSRC comes again when its subscription or this route is opened
            // again, and under a key of the operator's it would meet its indexes.
            numbering: match open.numbering {
                Numbering::TimestampsAndSsrc | Numbering::Whole if open.keys.is_some() => Numbering::Timestamps,
                numbering => numbering,
            },
            remote: match open.peer {
                RtpPeer::Fixed(remote) => Some(remote),
                RtpPeer::Learnt { .. } => None,
            },
            rtcp_remote: None,
            rtcp_heard: Time::ZERO,
            heard: Time::ZERO,
            rebound: None,
            arrivals: 0,
            stats: RtpPeerStats::default(),
            stats_reported: RtpPeerStats::default(),
        }
    }

    /// What is kept of a packet's header on the way out.
    pub(super) fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// Where RTP goes; `None` before a peer is learnt.
    pub(super) fn media_path(&self) -> Option<Path> {
        Some(Path { socket: self.socket, remote: self.remote? })
    }

    /// Where RTCP goes: without multiplexing to where the peer's comes from, else to the port after its RTP's (RFC 3550 section 11).
    pub(super) fn rtcp_path(&self) -> Option<Path> {
        match self.rtcp {
            RtcpVia::Off => None,
            RtcpVia::Mux => self.media_path(),
            RtcpVia::Next { socket } => Some(Path { socket, remote: self.rtcp_remote.or_else(|| self.next_port())? }),
        }
    }

    /// The port after the peer's RTP's.
    fn next_port(&self) -> Option<SocketAddr> {
        let rtp = self.remote?;
        Some(SocketAddr::new(rtp.ip(), rtp.port().checked_add(1)?))
    }

    fn is_rtcp(&self, socket: u16, datagram: &[u8]) -> bool {
        match self.rtcp {
            RtcpVia::Off => false,
            RtcpVia::Mux => wire::demux(datagram) == Ok(Protocol::Rtcp),
            RtcpVia::Next { socket: rtcp } => socket == rtcp,
        }
    }

    /// Whether RTP may come from `from` now: it is the peer, or there is none and it may become it.
    fn admits(&self, now: Time, from: SocketAddr) -> bool {
        match self.peer {
            RtpPeer::Fixed(peer) => from == peer,
            RtpPeer::Learnt { silence, never } => {
                self.remote == Some(from) || (never != Some(from) && (self.remote.is_none() || now.since(self.heard) >= silence))
            }
        }
    }

    /// Whether RTCP may come from `from` now. Multiplexed: the peer. Else the port after its RTP's, or another of its host's while
    /// no third one speaks: whoever comes first from an address behind which many live must not keep the others out for ever.
    fn admits_rtcp(&self, now: Time, from: SocketAddr) -> bool {
        if !matches!(self.rtcp, RtcpVia::Next { .. }) {
            return self.remote == Some(from);
        }
        let is_open = self.rtcp_remote.is_none_or(|known| known == from || now.since(self.rtcp_heard) >= RTCP_SILENCE);
        self.next_port() == Some(from) || (is_open && self.remote.is_some_and(|peer| peer.ip() == from.ip()))
    }

    /// A valid packet came from an address that was let in; tells whether it is a new peer's.
    fn hear(&mut self, now: Time, from: SocketAddr) -> bool {
        self.heard = now;
        let is_new = self.remote.replace(from) != Some(from);
        if is_new {
            (self.rtcp_remote, self.rebound) = (None, None);
        }
        is_new
    }
}

impl Transport {
    fn route_mut(&mut self) -> &mut RtpRoute {
        match &mut self.endpoint {
            Endpoint::Rtp(route) => route,
            Endpoint::Ice(_) => unreachable!("the table of sockets and OpenRtp name routes alone"),
        }
    }
}

impl Core {
    pub(super) fn open_rtp(&mut self, now: Time, open: &OpenRtp) {
        let rtcp_socket = match open.rtcp {
            RtcpVia::Next { socket } => Some(socket),
            RtcpVia::Off | RtcpVia::Mux => None,
        };
        let sockets = [Some(open.socket), rtcp_socket];
        if sockets.into_iter().flatten().any(|socket| self.refused_sockets.contains(&socket)) {
            self.events.push_back(Event::TransportLost { transport: open.transport, loss: TransportLoss::SocketRefused });
            return;
        }
        let transport = Transport {
            keys: Some(Keys::new(open.keys.as_deref())),
            ..Transport::new(open.transport, Endpoint::Rtp(RtpRoute::new(open)), open.rtcp_ssrc, &open.cname)
        };
        let index = self.insert_transport(now, transport);
        for socket in sockets.into_iter().flatten().map(usize::from) {
            if self.routes.len() <= socket {
                self.routes.resize(socket + 1, None);
            }
            self.routes[socket] = Some(index);
        }
    }

    pub(super) fn handle_route_datagram(&mut self, now: Time, index: usize, path: Path, datagram: &mut [u8]) {
        let is_rtcp = self.transports[index].route_mut().is_rtcp(path.socket, datagram);
        let result = match datagram.len() {
            // As on the media ports: what is longer than an Ethernet MTU was not negotiated.
            len if len > SLOT_LEN => Err(DropReason::TooLarge),
            _ if is_rtcp => self.handle_route_rtcp(now, index, path, datagram),
            _ => self.handle_route_rtp(now, index, path.remote, datagram),
        };
        if let Err(reason) = result {
            let stats = &mut self.transports[index].route_mut().stats;
            match reason {
                DropReason::ForeignPeer => stats.foreign += 1,
                _ => stats.refused += 1,
            }
            self.count_drops(reason, 1);
        }
    }

    fn handle_route_rtcp(&mut self, now: Time, index: usize, path: Path, datagram: &mut [u8]) -> Result<(), DropReason> {
        let from = path.remote;
        if !self.transports[index].route_mut().admits_rtcp(now, from) {
            return Err(DropReason::ForeignPeer);
        }
        self.handle_rtcp(now, index, path, datagram)?;
        let transport = &mut self.transports[index];
        let is_authentic = matches!(&transport.keys, Some(Keys { receiver: Receiver::Srtp(_), .. }));
        let route = transport.route_mut();
        (route.rtcp_remote, route.rtcp_heard) = (Some(from), now);
        // A sender that pauses its stream is still there. Plain, that would be anybody's word who can forge the host's address.
        if is_authentic {
            route.heard = now;
        }
        Ok(())
    }

    fn handle_route_rtp(&mut self, now: Time, index: usize, from: SocketAddr, packet: &mut [u8]) -> Result<(), DropReason> {
        let transport = &mut self.transports[index];
        if !transport.route_mut().admits(now, from) {
            return Err(DropReason::ForeignPeer);
        }
        let view = rtp::RtpView::parse(packet)?;
        let (ssrc, sequence, header_len) = (view.ssrc(), view.sequence(), view.header_len());
        let mut meta = Meta {
            timestamp: view.timestamp(),
            payload_type: view.payload_type(),
            marker: view.marker(),
            header_len: header_len as u16,
            ..Meta::default()
        };
        // A route out takes RTCP alone.
        let track = *transport.tracks.first().ok_or(DropReason::UnknownStream)?;
        // Before a peer is learnt from it: a stray packet is rarely of this payload type, too.
        self.tracks[track].layers[0].inbound.codec(meta.payload_type).ok_or(DropReason::PayloadType)?;
        let (len, index_of_packet) = self.open_route_packet(now, index, track, (ssrc, sequence), header_len, packet)?;

        let transport = &mut self.transports[index];
        if transport.route_mut().hear(now, from) {
            self.events.push_back(Event::TransportValidated { transport: transport.id, remote: from });
        }
        let plain = &mut packet[..len];
        meta.len = (header_len + rtp::payload(plain, header_len)?.len()) as u16;
        self.take_rtp(now, Stream { ssrc, track, layer: 0, is_rtx: false }, index_of_packet, plain, meta)
    }

    /// Opens a packet and puts it into its stream; returns the plaintext's length and the extended sequence number.
    fn open_route_packet(
        &mut self,
        now: Time,
        index: usize,
        track: usize,
        (ssrc, sequence): (u32, u16),
        header_len: usize,
        packet: &mut [u8],
    ) -> Result<(usize, u64), DropReason> {
        let is_raw = self.tracks[track].layers[0].inbound.takes_any();
        let transport = &mut self.transports[index];
        // A report of ours under the same key must not share its SSRC.
        if ssrc == transport.rtcp_ssrc {
            return Err(DropReason::UnknownStream);
        }
        let keys = transport.keys.as_mut().ok_or(DropReason::SrtpNoKeys)?;
        let is_current = |transport: &Transport| transport.streams.iter().any(|stream| stream.ssrc == ssrc);
        match &mut keys.receiver {
            Receiver::Plain(_) if is_raw => {
                rtp::payload(packet, header_len)?;
                let route = transport.route_mut();
                route.arrivals += 1;
                Ok((packet.len(), route.arrivals))
            }
            Receiver::Plain(receiver) => {
                rtp::payload(packet, header_len)?;
                if receiver.begins_anew(ssrc, sequence) {
                    self.rebind_route(now, index, track, ssrc)?;
                }
                let keys = self.transports[index].keys.as_mut().ok_or(DropReason::SrtpNoKeys)?;
                let opened = keys.receiver.unprotect_rtp(packet, header_len)?;
                Ok((opened.len, opened.index))
            }
            Receiver::Srtp(receiver) => {
                let opened = receiver.unprotect_rtp(packet, header_len)?;
                if !is_current(transport)
                    && let Err(reason) = self.rebind_route(now, index, track, ssrc)
                {
                    if let Some(keys) = &mut self.transports[index].keys {
                        keys.receiver.forget(ssrc);
                    }
                    return Err(reason);
                }
                Ok((opened.len, opened.index))
            }
        }
    }

    /// Gives the track another stream, if the last change is long enough ago and the stream is not one that was left: its packets,
    /// late or replayed, are authentic, too. On a plain route nothing is, and two encoders may take over from each other.
    fn rebind_route(&mut self, now: Time, index: usize, track: usize, ssrc: u32) -> Result<(), DropReason> {
        let transport = &self.transports[index];
        if matches!(&transport.keys, Some(Keys { receiver: Receiver::Srtp(_), .. })) && transport.is_retired(ssrc) {
            return Err(DropReason::UnknownStream);
        }
        let route = self.transports[index].route_mut();
        if route.rebound.is_some_and(|last| now.since(last) < REBIND_INTERVAL) {
            return Err(DropReason::UnknownStream);
        }
        route.rebound = Some(now);
        self.bind(index, Stream { ssrc, track, layer: 0, is_rtx: false });
        Ok(())
    }

    /// Tells what the ports have refused, when it is more than last time.
    pub(super) fn report_peer(&mut self, index: usize) {
        let transport = &mut self.transports[index];
        let id = transport.id;
        let route = transport.route_mut();
        if route.stats != route.stats_reported && self.events.len() < crate::limits::EVENTS_MAX / 4 {
            route.stats_reported = route.stats;
            self.events.push_back(Event::RtpPeerStats { transport: id, stats: route.stats });
        }
    }
}
