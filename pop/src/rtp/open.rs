//! Opening and ending a route: ports, sockets, and a participant for each leg.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pop_dataplane::worker::SOCKET_BUFFER_LEN;
use pop_proto::control::{ExtensionIds, Numbering, OpenRtp, OpenSubscription, OpenTrack, RtcpVia, RtpPeer};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, TrackId, TransportId};
use pop_session::placement::Claim;
use pop_session::{Join, Media, Opening, Publication, Section};
use pop_uring::bind_udp;

use super::plan::{Plan, Way, is_of_this_host};
use super::sdes::Crypto;
use super::{Entry, Leg, RouteFailure, Routes};
use crate::config::{ROUTES_MAX, RouteConfig, RouteRtcp};
use crate::logging::AUDIT;
use crate::node::{Node, RouteError, RouteSockets};
use crate::token::unix_now_ms;

/// Ports that are drawn before the host counts as full.
const DRAWS_MAX: usize = 64;

/// A configured port that is taken is tried again so often.
const REBINDS_MAX: usize = 10;

/// Between two tries.
const REBIND_INTERVAL: Duration = Duration::from_millis(20);

/// One leg in the making.
struct LegPlan<'p> {
    room: SessionId,
    identity: &'p Identity,
    peer: RtpPeer,
    crypto: Option<&'p Crypto>,
    numbering: Numbering,
    port: u16,
    takes: Takes<'p>,
}

enum Takes<'p> {
    /// Packets of its peer.
    Peer,
    /// A track of the room.
    Track { from: Option<&'p Identity>, ssrc: Option<u32> },
}

impl Routes {
    /// Opens a route and returns its name. Of a route that is refused nothing is left.
    pub(super) async fn open(
        &self,
        table: &mut BTreeMap<String, Entry>,
        config: RouteConfig,
        is_configured: bool,
    ) -> Result<String, RouteFailure> {
        let node = &self.shared.node;
        if table.len() >= ROUTES_MAX {
            return Err(RouteFailure::Full(format!("{ROUTES_MAX} RTP routes are open already: remove one")));
        }
        let name = config.name.clone().unwrap_or_else(|| format!("route-{}", node.next_id()));
        let plan = Plan::new(&name, &config, &self.shared.media, |out| node.random(out)).map_err(RouteFailure::Request)?;
        for warning in self.check_opening(&name, &plan, table.iter())? {
            tracing::warn!(route = name, "{warning}");
        }
        let mut legs = Vec::new();
        for leg in leg_plans(node, &plan) {
            match self.open_leg(table, &plan, leg).await {
                Ok(leg) => legs.push(leg),
                Err(failure) => {
                    close_legs(node, legs).await;
                    return Err(failure);
                }
            }
        }
        let told = legs.last().map(|leg| leg.local.to_string()).unwrap_or_default();
        tracing::info!(target: AUDIT, route = name, codec = plan.codec.name(), address = told, configured = is_configured, "route add");
        table.insert(name.clone(), Entry { config, plan, is_configured, legs });
        Ok(name)
    }

    /// Checks a route against this host and the routes `others`, and returns warnings. What else may refuse it is a port that
    /// another program has, and a node that is full.
    pub(super) fn check_opening<'e>(
        &self,
        name: &str,
        plan: &Plan,
        others: impl Iterator<Item = (&'e String, &'e Entry)>,
    ) -> Result<Vec<String>, RouteFailure> {
        let is_ours = |ip| self.is_ours(ip);
        plan.check_own(&self.shared.own, &is_ours).map_err(RouteFailure::Request)?;
        for (other, entry) in others {
            if other == name {
                return Err(RouteFailure::Conflict(format!("there is an RTP route {name:?} already")));
            }
            let ports: Vec<u16> = entry.legs.iter().flat_map(Leg::ports).collect();
            plan.check_beside(other, &entry.plan, &ports, &is_ours)?;
        }
        plan.check_networks().map_err(RouteFailure::Request)
    }

    /// Whether packets to this address come back to the node: behind a NAT those to its outer one do.
    pub(super) fn is_ours(&self, ip: IpAddr) -> bool {
        self.shared.media.advertise.contains(&ip) || is_of_this_host(ip)
    }

    /// Ends a route, if there is one of this name.
    pub(super) async fn close(&self, table: &mut BTreeMap<String, Entry>, name: &str) {
        if let Some(entry) = table.remove(name) {
            close_legs(&self.shared.node, entry.legs).await;
            tracing::info!(target: AUDIT, route = name, configured = entry.is_configured, "route remove");
        }
    }

    async fn open_leg(&self, table: &BTreeMap<String, Entry>, plan: &Plan, leg: LegPlan<'_>) -> Result<Leg, RouteFailure> {
        let looping = |ports: &[u16]| {
            let mut plans = table.values().map(|entry| &entry.plan).chain([plan]);
            plans.any(|plan| plan.sends_to(ports, &|ip| self.is_ours(ip)).is_some())
        };
        let mut tries = 0;
        let (sockets, local, rtcp_port) = loop {
            match bind(plan.address, leg.port, plan.rtcp, &looping) {
                // A port that a route has just left is free a worker's turn later.
                Err(RouteFailure::Conflict(_)) if leg.port != 0 && tries < REBINDS_MAX => tries += 1,
                bound => break bound?,
            }
            tokio::time::sleep(REBIND_INTERVAL).await;
        };
        let node = &self.shared.node;
        let (room, participant) = (leg.room.clone(), ParticipantId(node.next_id()));
        let claim = match leg.takes {
            Takes::Peer => Claim { transports: 1, tracks: 1, subscriptions: 0 },
            Takes::Track { .. } => Claim { transports: 1, tracks: 0, subscriptions: 1 },
        };
        let join = |rtp, rtcp| join(node, plan, leg, participant, rtp, rtcp);
        let open = node.open_route(&room, claim, sockets, join).await.map_err(|error| match error {
            RouteError::Full | RouteError::Socket(_) => RouteFailure::Full(error.to_string()),
            RouteError::Refused(_) => RouteFailure::Conflict(error.to_string()),
        })?;
        Ok(Leg { open, room, participant, local, rtcp_port })
    }
}

async fn close_legs(node: &Node, legs: Vec<Leg>) {
    for leg in legs {
        node.close_route(leg.open).await;
    }
}

fn leg_plans<'p>(node: &Node, plan: &'p Plan) -> Vec<LegPlan<'p>> {
    let (identity, crypto) = (&plan.identity, plan.crypto.as_ref());
    let heard = |peer: &Option<SocketAddr>, silence, never| peer.map_or(RtpPeer::Learnt { silence, never }, RtpPeer::Fixed);
    match &plan.way {
        Way::In { room, peer, peer_timeout } => {
            let peer = heard(peer, *peer_timeout, None);
            vec![LegPlan { room: room.clone(), identity, peer, crypto, numbering: Numbering::Own, port: plan.port, takes: Takes::Peer }]
        }
        Way::Out { room, from, peer, ssrc } => {
            let takes = Takes::Track { from: from.as_ref(), ssrc: *ssrc };
            let peer = RtpPeer::Fixed(*peer);
            vec![LegPlan { room: room.clone(), identity, peer, crypto, numbering: plan.numbering(), port: plan.port, takes }]
        }
        Way::Forward { peer, peer_timeout, to, to_crypto } => {
            // A room that nobody can name, for the two legs alone. The way out first: nothing that comes is lost.
            let room = SessionId::new(&format!("rtp-forward-{}", draw_name(node))).expect("letters, digits and hyphens");
            let out = LegPlan {
                room: room.clone(),
                identity,
                peer: RtpPeer::Fixed(*to),
                crypto: to_crypto.as_ref(),
                numbering: plan.numbering(),
                port: 0,
                takes: Takes::Track { from: None, ssrc: None },
            };
            let peer = heard(peer, *peer_timeout, Some(*to));
            let way_in = LegPlan { room, identity, peer, crypto, numbering: Numbering::Own, port: plan.port, takes: Takes::Peer };
            vec![out, way_in]
        }
    }
}

fn join(node: &Node, plan: &Plan, leg: LegPlan<'_>, participant: ParticipantId, rtp: u16, rtcp: Option<u16>) -> Join {
    let transport = TransportId(node.next_id());
    let (rtcp_ssrc, drawn_ssrc) = draw_ssrcs(node);
    let cname: Box<str> = draw_name(node).into();
    let open = OpenRtp {
        transport,
        socket: rtp,
        rtcp: match (plan.rtcp, rtcp) {
            (RouteRtcp::Off, _) => RtcpVia::Off,
            (_, Some(socket)) => RtcpVia::Next { socket },
            (_, None) => RtcpVia::Mux,
        },
        peer: leg.peer,
        keys: leg.crypto.map(|crypto| Box::new(crypto.keys())),
        numbering: leg.numbering,
        rtcp_ssrc,
        cname,
    };
    let (kind, feedback) = (plan.formats[0].format.codec().kind(), plan.rtcp != RouteRtcp::Off);
    let hidden = matches!(leg.takes, Takes::Track { .. });
    let media = match leg.takes {
        Takes::Peer => Media::Publish(vec![Publication {
            open: OpenTrack {
                track: TrackId(node.next_id()),
                transport,
                kind,
                ssrc: None,
                rtx_ssrc: None,
                mid: Box::default(),
                layers: Vec::new(),
                order: Vec::new(),
                payload_types: Vec::new(),
                nack: feedback,
                pli: feedback,
                fir: false,
            },
            formats: plan.formats.clone(),
        }]),
        Takes::Track { from, ssrc } => Media::Watch(vec![Section {
            open: OpenSubscription {
                subscription: SubscriptionId(node.next_id()),
                transport,
                kind,
                ssrc: ssrc.unwrap_or(drawn_ssrc),
                rtx_ssrc: None,
                extensions: ExtensionIds::NONE,
                mid: Box::default(),
                // RFC 3711 section 3.3.1: in the lower half both ends agree on rollover counter 0.
                first_sequence: u16::from_be_bytes(draw(node)) & 0x7fff,
                first_timestamp: 0,
            },
            formats: plan.formats.clone(),
            publisher: from.cloned(),
        }]),
    };
    Join {
        participant,
        identity: leg.identity.clone(),
        hidden,
        joined_at_ms: unix_now_ms(),
        resource: draw_name(node).into(),
        transport: Opening::Rtp(open),
        media,
    }
}

/// RTP's socket, with `port` 0 on an even port (RFC 3550 section 11), and RTCP's on the next one.
fn bind(
    address: IpAddr,
    port: u16,
    rtcp: RouteRtcp,
    looping: &impl Fn(&[u16]) -> bool,
) -> Result<(RouteSockets, SocketAddr, Option<u16>), RouteFailure> {
    let try_bind = |port| bind_udp(SocketAddr::new(address, port), SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN);
    let refuse =
        |port: u16, error: io::Error| RouteFailure::Conflict(format!("cannot bind {}/udp: {error}", SocketAddr::new(address, port)));
    for _ in 0..DRAWS_MAX {
        let socket = try_bind(port).map_err(|error| refuse(port, error))?;
        let local = socket.local_addr().map_err(|error| refuse(port, error))?;
        let needs_next = rtcp == RouteRtcp::Next;
        if port == 0 && needs_next && !local.port().is_multiple_of(2) {
            continue;
        }
        let next = needs_next.then(|| local.port() + 1);
        // A configured port was checked before.
        if port == 0 && looping(&[Some(local.port()), next].into_iter().flatten().collect::<Vec<_>>()) {
            continue;
        }
        let rtcp_socket = match next.map(try_bind).transpose() {
            Ok(rtcp_socket) => rtcp_socket,
            Err(_) if port == 0 => continue,
            Err(error) => return Err(refuse(port + 1, error)),
        };
        return Ok((RouteSockets { rtp: socket, rtcp: rtcp_socket }, local, next));
    }
    Err(RouteFailure::Full(format!("no pair of free UDP ports on {address} in {DRAWS_MAX} draws")))
}

fn draw<const N: usize>(node: &Node) -> [u8; N] {
    let mut bytes = [0; N];
    node.random(&mut bytes);
    bytes
}

/// 16 hexadecimal digits that nobody can guess.
fn draw_name(node: &Node) -> String {
    format!("{:016x}", u64::from_be_bytes(draw(node)))
}

/// Two different ones, neither 0.
fn draw_ssrcs(node: &Node) -> (u32, u32) {
    loop {
        let (one, other) = (u32::from_be_bytes(draw(node)), u32::from_be_bytes(draw(node)));
        if one != other && one != 0 && other != 0 {
            return (one, other);
        }
    }
}
