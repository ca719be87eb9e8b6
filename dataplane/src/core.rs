//! A worker's brain, without sockets, clock or thread: datagrams, commands and time in; trains, events and taps out.
//!
//! ```text
//! handle_datagram -> demux -+-> ice ............................................ answers --+
//!                           +-> DTLS ................................ poll_event           |
//!                           +-> srtp.unprotect -> inbound (history, fresh) -> dirty --+    |
//!                           +-> srtcp.unprotect -> repairs, keyframes, reports --+    |    |
//! handle_timeout -> NACK, PLI, feedback, reports, consent -----------------------+----+----+-> poll_transmit
//! ```
//! Every `handle_` is followed by a complete drain of `poll_event`, `poll_tap` and `poll_transmit`: the lists of a turn are
//! bounded by what one turn can bring.

mod feedback;
mod route;
mod transmit;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pop_proto::control::{
    Command, Datagram, Extension, ExtensionIds, OpenSubscription, OpenTrack, OpenTransport, Path, PayloadTypeMap, SrtpKeys,
};
use pop_proto::history::{Lookup, Meta, PacketPool, SLOT_LEN};
use pop_proto::ice::{IceLite, PATHS_MAX};
use pop_proto::inbound::Inbound;
use pop_proto::outbound::Outbound;
use pop_proto::probe::{IceProbe, ProbeResult};
use pop_proto::protection::{Receiver, Sender};
use pop_proto::srtp::{KEY_OBJECT_LEN_MAX, STREAM_LEN, STREAMS_MAX};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::{self, Protocol, dtls, rtp, stun};
use pop_proto::{DropReason, Event, codec};
use pop_schemas::{SubscriptionId, Time, TrackId, TransportId};
use slab::Slab;

use route::RtpRoute;
pub use transmit::Transmit;

use crate::counters::{Counters, Drops, Gauges};
use crate::limits::{FRESH_MAX, STUN_ANSWERS_MAX, SUBSCRIPTIONS_PER_TRANSPORT_MAX, TRACKS_PER_TRANSPORT_MAX, WorkerLimits};

/// Between two looks at what is missing, at feedback and at a hundredth of the transports. The first NACK of a lost packet
/// leaves within this.
const TICK: Duration = Duration::from_millis(10);

/// Each transport is looked after once in this many ticks: reports and consent once a second.
const TICKS_PER_ROUND: usize = 100;

/// DTLS datagrams that one transport may hand up per second: a handshake with every flight repeated five times.
const DTLS_PER_SECOND_MAX: u32 = 64;

/// Datagrams that one receive buffer can hold: the kernel joins at most 64 before Linux 6.9, and 128 since
/// (`UDP_MAX_SEGMENTS`).
const GRO_SEGMENTS_MAX: usize = 128;

/// Bytes of one transport's state, keys and lists included, for the memory plan.
pub const TRANSPORT_LEN: usize = size_of::<Transport>()
    + PATHS_MAX * (size_of::<Path>() + size_of::<(Path, usize)>())
    + 4 * KEY_OBJECT_LEN_MAX
    + STREAMS_MAX * STREAM_LEN
    + (2 * TRACKS_PER_TRANSPORT_MAX + SUBSCRIPTIONS_PER_TRANSPORT_MAX) * size_of::<(u32, usize)>()
    + TwccRecorder::LEN
    + TEXTS_LEN;
/// Bytes of one track's own state, for the memory plan.
pub const TRACK_LEN: usize = size_of::<Track>() + FRESH_MAX * size_of::<u64>();
/// Bytes of one subscription's state, for the memory plan.
pub const SUBSCRIPTION_LEN: usize = size_of::<Subscription>();

/// Ufrag (twice: it is a map's key, too), password and CNAME of one transport, generously.
const TEXTS_LEN: usize = 256;

struct Keys {
    sender: Sender,
    receiver: Receiver,
}

impl Keys {
    fn new(keys: Option<&SrtpKeys>) -> Keys {
        Keys { sender: Sender::new(keys), receiver: Receiver::new(keys) }
    }
}

/// How a transport reaches its client.
enum Endpoint {
    /// A WebRTC client: its address is what authenticated checks say.
    Ice(IceLite),
    /// An RTP route: its address is configured, or learnt from its packets.
    Rtp(RtpRoute),
}

impl Endpoint {
    /// Where media goes.
    fn selected(&self) -> Option<Path> {
        match self {
            Endpoint::Ice(ice) => ice.selected(),
            Endpoint::Rtp(route) => route.media_path(),
        }
    }

    /// Where RTCP goes.
    fn rtcp_path(&self) -> Option<Path> {
        match self {
            Endpoint::Ice(ice) => ice.selected(),
            Endpoint::Rtp(route) => route.rtcp_path(),
        }
    }

    /// The client is alive. A route counts its peer's packets by itself.
    fn note_authentic_packet(&mut self, now: Time) {
        if let Endpoint::Ice(ice) = self {
            ice.note_authentic_packet(now);
        }
    }
}

struct Transport {
    id: TransportId,
    /// Empty for a route.
    local_ufrag: Box<[u8]>,
    endpoint: Endpoint,
    keys: Option<Keys>,
    twcc: Option<Box<TwccRecorder>>,
    extensions: ExtensionIds,
    reduced_size_rtcp: bool,
    rtcp_ssrc: u32,
    cname: Box<str>,
    /// Bound SSRCs of what the client publishes.
    streams: Vec<(u32, usize)>,
    tracks: Vec<usize>,
    subscriptions: Vec<usize>,
    dtls_budget: u32,
    validated: bool,
    /// In `Core::dirty` for this turn.
    is_dirty: bool,
    /// In `Core::repairing`.
    is_repairing: bool,
    /// In `Core::reporting`: RTCP is to be written.
    is_reporting: bool,
    /// The next RTCP carries the once-a-second report.
    report_due: bool,
}

impl Transport {
    /// One of which nothing was negotiated and nothing has come.
    fn new(id: TransportId, endpoint: Endpoint, rtcp_ssrc: u32, cname: &str) -> Transport {
        Transport {
            id,
            local_ufrag: Box::default(),
            endpoint,
            keys: None,
            twcc: None,
            extensions: ExtensionIds::default(),
            reduced_size_rtcp: false,
            rtcp_ssrc,
            cname: cname.into(),
            streams: Vec::with_capacity(TRACKS_PER_TRANSPORT_MAX),
            tracks: Vec::with_capacity(TRACKS_PER_TRANSPORT_MAX),
            subscriptions: Vec::with_capacity(SUBSCRIPTIONS_PER_TRANSPORT_MAX),
            dtls_budget: DTLS_PER_SECOND_MAX,
            validated: false,
            is_dirty: false,
            is_repairing: false,
            is_reporting: false,
            report_due: false,
        }
    }
}

struct Track {
    id: TrackId,
    transport: usize,
    mid: Box<str>,
    inbound: Inbound,
    bound: bool,
    subscribers: Vec<usize>,
    /// Sequences that came in this turn, in the order of arrival.
    fresh: Vec<u64>,
    tap: Option<u32>,
    packets_reported: u64,
}

struct Subscription {
    id: SubscriptionId,
    transport: usize,
    outbound: Outbound,
    track: Option<usize>,
    packets_reported: u64,
}

struct Answer {
    path: Path,
    len: usize,
    bytes: [u8; stun::RESPONSE_LEN_MAX],
}

/// A packet that a tap wants, decrypted.
#[derive(Clone, Copy, Debug)]
pub struct Tapped<'a> {
    /// The tap's number.
    pub tap: u32,
    /// When it came.
    pub at: Time,
    /// RTP header and payload.
    pub packet: &'a [u8],
}

/// One worker's state. See the module's picture.
pub struct Core {
    limits: WorkerLimits,
    consent: Duration,
    /// Set before the first turn, where the config wants the ICE probe.
    probe: Option<IceProbe>,
    pool: PacketPool,
    transports: Slab<Transport>,
    tracks: Slab<Track>,
    subscriptions: Slab<Subscription>,
    transport_ids: HashMap<TransportId, usize>,
    track_ids: HashMap<TrackId, usize>,
    subscription_ids: HashMap<SubscriptionId, usize>,
    ufrags: HashMap<Box<[u8]>, usize>,
    paths: HashMap<Path, usize>,
    /// The route that a socket belongs to, by the socket's index.
    routes: Vec<Option<usize>>,
    answers: VecDeque<Answer>,
    dtls_out: VecDeque<(Path, Box<[u8]>)>,
    events: VecDeque<Event>,
    tapped: VecDeque<(u32, usize, u64, Time)>,
    /// Tracks with fresh packets in this turn.
    touched: Vec<usize>,
    /// Transports that take some of them.
    dirty: Vec<usize>,
    repairing: VecDeque<usize>,
    reporting: VecDeque<usize>,
    cursor: transmit::Cursor,
    next_tick: Time,
    tick: usize,
    counters: Counters,
    drops: Drops,
}

impl Core {
    /// An empty worker with all its memory. `consent` is how long a client may stay silent.
    pub fn new(limits: WorkerLimits, consent: Duration) -> Core {
        let (transports, tracks, subscriptions) = (limits.transports as usize, limits.tracks as usize, limits.subscriptions as usize);
        Core {
            limits,
            consent,
            probe: None,
            pool: PacketPool::new(limits.packets),
            transports: Slab::with_capacity(transports),
            tracks: Slab::with_capacity(tracks),
            subscriptions: Slab::with_capacity(subscriptions),
            transport_ids: HashMap::with_capacity(transports),
            track_ids: HashMap::with_capacity(tracks),
            subscription_ids: HashMap::with_capacity(subscriptions),
            ufrags: HashMap::with_capacity(transports),
            paths: HashMap::with_capacity(PATHS_MAX * transports),
            routes: Vec::new(),
            answers: VecDeque::with_capacity(STUN_ANSWERS_MAX),
            dtls_out: VecDeque::new(),
            events: VecDeque::with_capacity(crate::limits::EVENTS_MAX),
            tapped: VecDeque::with_capacity(FRESH_MAX),
            touched: Vec::with_capacity(tracks),
            dirty: Vec::with_capacity(transports),
            repairing: VecDeque::with_capacity(transports),
            reporting: VecDeque::with_capacity(transports),
            cursor: transmit::Cursor::default(),
            next_tick: Time::ZERO,
            tick: 0,
            counters: Counters::default(),
            drops: [0; DropReason::ALL.len()],
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The owner's own counters live in the same table.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Drops since the start.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// What exists now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            transports: self.transports.len() as u64,
            tracks: self.tracks.len() as u64,
            subscriptions: self.subscriptions.len() as u64,
            packets_held: u64::from(self.limits.packets) - self.pool.free_slots() as u64,
            tcp_connections: 0,
        }
    }

    /// Counts `packets` that end here.
    pub fn count_drops(&mut self, reason: DropReason, packets: u64) {
        self.drops[reason as usize] += packets;
    }

    /// Drops that the owner counts by itself.
    pub fn set_drops(&mut self, reason: DropReason, packets: u64) {
        self.drops[reason as usize] = packets;
    }

    /// Whether the owner must drain `poll_transmit` before the next receive buffer: one brings at most [`GRO_SEGMENTS_MAX`] packets.
    pub fn must_drain(&self) -> bool {
        self.touched.iter().any(|t| self.tracks.get(*t).is_some_and(|t| t.fresh.len() + GRO_SEGMENTS_MAX > FRESH_MAX))
            || self.tapped.len() + GRO_SEGMENTS_MAX > FRESH_MAX
    }

    /// Takes one datagram.
    pub fn handle_datagram(&mut self, now: Time, path: Path, datagram: &mut [u8]) {
        if let Some(Some(index)) = self.routes.get(usize::from(path.socket)) {
            return self.handle_route_datagram(now, *index, path, datagram);
        }
        let result = match wire::demux(datagram) {
            // Nothing that is negotiated sends more than an Ethernet MTU, and the cost of a datagram is bounded by its length.
            _ if datagram.len() > SLOT_LEN => Err(DropReason::TooLarge),
            Err(reason) => Err(reason),
            Ok(Protocol::Stun) => self.handle_stun(now, path, datagram),
            Ok(protocol) => match self.paths.get(&path) {
                None => Err(DropReason::UnknownAddress),
                Some(&index) => match protocol {
                    Protocol::Dtls => self.handle_dtls(index, datagram),
                    Protocol::Rtp => self.handle_rtp(now, index, datagram),
                    Protocol::Rtcp | Protocol::Stun => self.handle_rtcp(now, index, datagram),
                },
            },
        };
        if let Err(reason) = result {
            self.count_drops(reason, 1);
        }
    }

    fn handle_stun(&mut self, now: Time, path: Path, datagram: &[u8]) -> Result<(), DropReason> {
        let message = stun::Message::parse(datagram)?;
        let (ufrag, _) = message.fragments().ok_or(DropReason::StunUnknownUser)?;
        if self.probe.as_ref().is_some_and(|probe| probe.is_probe(ufrag)) {
            return self.handle_probe(now, path, &message, datagram.len());
        }
        let index = *self.ufrags.get(ufrag).ok_or(DropReason::StunUnknownUser)?;
        if self.answers.len() == STUN_ANSWERS_MAX {
            return Err(DropReason::StunQueueFull);
        }
        let transport = &mut self.transports[index];
        let mut answer = Answer { path, len: 0, bytes: [0; stun::RESPONSE_LEN_MAX] };
        let Endpoint::Ice(ice) = &mut transport.endpoint else { return Err(DropReason::StunUnknownUser) };
        let outcome = ice.handle_check(now, path, &message, &mut answer.bytes)?;
        answer.len = outcome.response_len;
        self.answers.push_back(answer);
        if outcome.refused {
            self.counters.ice_checks_refused += 1;
            return Ok(());
        }
        self.counters.ice_checks_ok += 1;
        if let Some(forgotten) = outcome.replaced {
            self.forget_path(&forgotten, index);
        }
        // On every success, not only the first: when a 5-tuple changed hands (a client that came back from one port, a forged
        // source address), the next check of the right one heals the table.
        self.paths.insert(path, index);
        let transport = &mut self.transports[index];
        if !transport.validated {
            transport.validated = true;
            self.events.push_back(Event::TransportValidated { transport: transport.id, remote: path.remote });
        }
        Ok(())
    }

    /// A check for the public ufrag: a round trip for a stranger, and nothing else.
    fn handle_probe(&mut self, now: Time, path: Path, check: &stun::Message<'_>, check_len: usize) -> Result<(), DropReason> {
        let Some(probe) = &mut self.probe else { return Err(DropReason::StunUnknownUser) };
        // Clients first: strangers get half of the turn's answers.
        if self.answers.len() >= STUN_ANSWERS_MAX / 2 {
            return Err(DropReason::StunQueueFull);
        }
        let mut answer = Answer { path, len: 0, bytes: [0; stun::RESPONSE_LEN_MAX] };
        match probe.handle_check(now, path.remote, check, check_len, &mut answer.bytes) {
            Ok(len) => {
                self.counters.probe_ice_answered += 1;
                answer.len = len;
                self.answers.push_back(answer);
                Ok(())
            }
            Err(reason) => {
                match ProbeResult::of(reason) {
                    ProbeResult::Limited => self.counters.probe_ice_limited += 1,
                    _ => self.counters.probe_ice_refused += 1,
                }
                Err(reason)
            }
        }
    }

    /// Answers checks for a public ufrag from now on.
    pub fn set_probe(&mut self, probe: IceProbe) {
        self.probe = Some(probe);
    }

    /// Takes a path out of the table if it is still this transport's.
    fn forget_path(&mut self, path: &Path, owner: usize) {
        if self.paths.get(path) == Some(&owner) {
            self.paths.remove(path);
        }
    }

    /// Whether an authenticated check came by `path`, and it belongs to a transport since.
    pub fn owns_path(&self, path: &Path) -> bool {
        self.paths.contains_key(path)
    }

    /// A TCP connection is gone.
    pub fn close_path(&mut self, path: &Path) {
        if let Some(index) = self.paths.remove(path)
            && let Endpoint::Ice(ice) = &mut self.transports[index].endpoint
        {
            ice.forget(|known| known == path);
        }
    }

    /// A socket is gone: nothing comes or goes by its paths any more.
    pub fn remove_socket(&mut self, socket: u16) {
        self.paths.retain(|path, _| path.socket != socket);
        for (_, transport) in &mut self.transports {
            if let Endpoint::Ice(ice) = &mut transport.endpoint {
                ice.forget(|path| path.socket == socket);
            }
        }
    }

    fn handle_dtls(&mut self, index: usize, datagram: &[u8]) -> Result<(), DropReason> {
        let transport = &mut self.transports[index];
        let summary = dtls::DtlsSummary::parse(datagram)?;
        // A repeat of the client's last flight goes up: the adapter answers it from a copy and shows the library nothing of it.
        if transport.keys.is_some() && summary.has_plaintext() && !summary.repeats_last_flight() {
            return Err(DropReason::DtlsPlaintext);
        }
        let datagram = Datagram::new(datagram).ok_or(DropReason::DtlsMalformed)?;
        if transport.dtls_budget == 0 || self.events.len() >= crate::limits::EVENTS_MAX / 2 {
            return Err(DropReason::DtlsQueueFull);
        }
        transport.dtls_budget -= 1;
        self.counters.dtls_datagrams_in += 1;
        self.events.push_back(Event::Dtls { transport: transport.id, datagram });
        Ok(())
    }

    fn handle_rtp(&mut self, now: Time, index: usize, packet: &mut [u8]) -> Result<(), DropReason> {
        let transport = &mut self.transports[index];
        let view = rtp::RtpView::parse(packet)?;
        let header_len = view.header_len();
        let ssrc = view.ssrc();
        let sequence = transport.extensions.get(Extension::TransportCc).and_then(|id| view.transport_sequence(id));
        let mut meta = Meta {
            timestamp: view.timestamp(),
            payload_type: view.payload_type(),
            marker: view.marker(),
            keyframe_start: false,
            header_len: header_len as u16,
            len: 0,
        };
        let keys = transport.keys.as_mut().ok_or(DropReason::SrtpNoKeys)?;
        let opened = keys.receiver.unprotect_rtp(packet, header_len)?;

        // Authenticated from here on; the header was never encrypted.
        transport.endpoint.note_authentic_packet(now);
        let plain = &mut packet[..opened.len];
        let payload_len = rtp::payload(plain, header_len)?.len();
        meta.len = (header_len + payload_len) as u16;
        if let (Some(twcc), Some(sequence)) = (&mut transport.twcc, sequence) {
            twcc.record(sequence, now);
        }
        let track_index = match transport.streams.iter().find(|(s, _)| *s == ssrc) {
            Some((_, track)) => *track,
            None => self.bind_stream(index, plain)?,
        };
        self.take_rtp(now, track_index, opened.index, plain, meta)
    }

    /// Stores an authenticated packet of a track and marks whom it goes to; `plain` may end in padding.
    ///
    /// Errors: [`DropReason::PayloadType`] and those of [`Inbound::handle_packet`].
    fn take_rtp(&mut self, now: Time, track_index: usize, index: u64, plain: &mut [u8], mut meta: Meta) -> Result<(), DropReason> {
        let track = &mut self.tracks[track_index];
        let codec = track.inbound.codec(meta.payload_type).ok_or(DropReason::PayloadType)?;
        // Padding is not stored, so its bit must not be either.
        plain[0] &= !0x20;
        let plain = &plain[..usize::from(meta.len)];
        let payload = &plain[usize::from(meta.header_len)..];
        meta.keyframe_start = codec::is_keyframe_start(codec, payload);
        track.inbound.handle_packet(&mut self.pool, now, index, plain, meta, codec)?;
        if track.inbound.packets() == 1 {
            self.events.push_back(Event::TrackStarted { track: track.id });
        }
        self.counters.rtp_packets_in += 1;
        self.counters.rtp_bytes_in += payload.len() as u64;

        if track.fresh.is_empty() {
            self.touched.push(track_index);
            for subscriber in &track.subscribers {
                let transport = self.subscriptions[*subscriber].transport;
                if !std::mem::replace(&mut self.transports[transport].is_dirty, true) {
                    self.dirty.push(transport);
                }
            }
        }
        track.fresh.push(index);
        if let Some(tap) = track.tap {
            self.tapped.push_back((tap, track_index, index, now));
        }
        Ok(())
    }

    /// The track of an authenticated packet whose SSRC is not known yet: by its MID, else by a payload type that only one track
    /// without an SSRC has (RFC 9143 section 9.2). A MID of a track that has an SSRC means that the encoder began anew.
    fn bind_stream(&mut self, index: usize, plain: &[u8]) -> Result<usize, DropReason> {
        let Core { transports, tracks, .. } = self;
        let transport = &mut transports[index];
        let view = rtp::RtpView::parse(plain)?;
        let mid = transport.extensions.get(Extension::Mid).and_then(|id| view.extension(id));
        // In both cases of a negotiated payload type: repair or redundancy streams carry the MID, too, and must not unseat the media.
        let negotiated = |t: &usize| tracks[*t].inbound.codec(view.payload_type()).is_some();
        let mut matching = transport.tracks.iter().copied().filter(negotiated).filter(|t| match mid {
            Some(mid) => tracks[*t].mid.as_bytes() == mid,
            None => !tracks[*t].bound,
        });
        let (Some(found), None) = (matching.next(), matching.next()) else {
            if let Some(keys) = &mut transport.keys {
                keys.receiver.forget(view.ssrc());
            }
            return Err(DropReason::UnknownStream);
        };
        let ssrc = view.ssrc();
        self.bind(index, found, ssrc);
        Ok(found)
    }

    /// Makes `ssrc` the stream of a track; one that had another begins anew.
    fn bind(&mut self, index: usize, found: usize, ssrc: u32) {
        let Core { transports, tracks, subscriptions, pool, .. } = self;
        let (transport, track) = (&mut transports[index], &mut tracks[found]);
        if std::mem::replace(&mut track.bound, true) {
            if let (Some(at), Some(keys)) = (transport.streams.iter().position(|(_, t)| *t == found), &mut transport.keys) {
                let (before, _) = transport.streams.swap_remove(at);
                keys.receiver.forget(before);
            }
            track.inbound.restart(pool);
            track.fresh.clear();
            self.touched.retain(|t| *t != found);
            for subscriber in &track.subscribers {
                subscriptions[*subscriber].outbound.restart_source();
            }
        }
        transport.streams.push((ssrc, found));
    }

    /// Takes a command. Ids that are not known (any longer) are ignored: the control plane's view may be one turn old.
    pub fn handle_command(&mut self, now: Time, command: Command) {
        match command {
            Command::OpenTransport(open) => self.open_transport(now, &open),
            Command::OpenRtp(open) => self.open_rtp(now, &open),
            Command::CloseTransport { transport } => self.close_transport(transport),
            Command::SendDtls { transport, datagram } => self.send_dtls(transport, datagram),
            Command::InstallKeys { transport, keys } => self.install_keys(transport, &keys),
            Command::OpenTrack(open) => self.open_track(&open),
            Command::CloseTrack { track } => self.close_track(track),
            Command::OpenSubscription(open) => self.open_subscription(&open),
            Command::CloseSubscription { subscription } => self.close_subscription(subscription),
            Command::Forward { subscription, track, payload_types } => self.forward(subscription, track, &payload_types),
            Command::ProbeRates(rates) => {
                if let Some(probe) = &mut self.probe {
                    probe.set_rates(rates);
                }
            }
            Command::Tap { track, tap } => {
                if let Some(index) = self.track_ids.get(&track) {
                    self.tracks[*index].tap = tap;
                }
            }
        }
    }

    fn open_transport(&mut self, now: Time, open: &OpenTransport) {
        let local_ufrag: Box<[u8]> = open.ice.local_ufrag.as_bytes().into();
        let ice = IceLite::new(now, open.ice.clone(), self.consent);
        let index = self.insert_transport(
            now,
            Transport {
                local_ufrag: local_ufrag.clone(),
                twcc: open.transport_cc.then(|| Box::new(TwccRecorder::new())),
                extensions: open.extensions,
                reduced_size_rtcp: open.reduced_size_rtcp,
                ..Transport::new(open.transport, Endpoint::Ice(ice), open.rtcp_ssrc, &open.cname)
            },
        );
        self.ufrags.insert(local_ufrag, index);
    }

    fn insert_transport(&mut self, now: Time, transport: Transport) -> usize {
        assert!(self.transports.len() < self.limits.transports as usize, "the control plane places no more transports than the plan has");
        if self.transports.is_empty() {
            self.next_tick = now + TICK;
        }
        let id = transport.id;
        let index = self.transports.insert(transport);
        self.transport_ids.insert(id, index);
        index
    }

    fn close_transport(&mut self, id: TransportId) {
        let Some(index) = self.transport_ids.remove(&id) else { return };
        let transport = self.transports.remove(index);
        self.ufrags.remove(&transport.local_ufrag);
        match &transport.endpoint {
            Endpoint::Ice(ice) => ice.paths().iter().for_each(|path| self.forget_path(path, index)),
            Endpoint::Rtp(_) => self.routes.iter_mut().filter(|route| **route == Some(index)).for_each(|route| *route = None),
        }
        self.dirty.retain(|i| *i != index);
        self.repairing.retain(|i| *i != index);
        self.reporting.retain(|i| *i != index);
        for track in transport.tracks {
            let id = self.tracks[track].id;
            self.forget_track(id, track);
        }
        for subscription in transport.subscriptions {
            let id = self.subscriptions[subscription].id;
            self.forget_subscription(id, subscription);
        }
    }

    fn send_dtls(&mut self, id: TransportId, datagram: Box<[u8]>) {
        let Some(index) = self.transport_ids.get(&id) else { return };
        match self.transports[*index].endpoint.selected() {
            Some(path) => self.dtls_out.push_back((path, datagram)),
            None => self.count_drops(DropReason::SubscriberNotReady, 1),
        }
    }

    fn install_keys(&mut self, id: TransportId, keys: &SrtpKeys) {
        let Some(index) = self.transport_ids.get(&id) else { return };
        let transport = &mut self.transports[*index];
        transport.keys = Some(Keys::new(Some(keys)));
        // A viewer that is ready now needs a picture now.
        for subscription in &transport.subscriptions {
            if let Some(track) = self.subscriptions[*subscription].track {
                self.tracks[track].inbound.request_keyframe();
            }
        }
    }

    fn open_track(&mut self, open: &OpenTrack) {
        let Some(&transport_index) = self.transport_ids.get(&open.transport) else { return };
        let transport = &mut self.transports[transport_index];
        assert!(
            transport.tracks.len() < TRACKS_PER_TRANSPORT_MAX && self.tracks.len() < self.limits.tracks as usize,
            "the control plane opens no more tracks than the plan has"
        );
        let index = self.tracks.insert(Track {
            id: open.track,
            transport: transport_index,
            mid: open.mid.clone(),
            inbound: Inbound::new(open),
            bound: open.ssrc.is_some(),
            subscribers: Vec::new(),
            fresh: Vec::with_capacity(FRESH_MAX),
            tap: None,
            packets_reported: 0,
        });
        transport.tracks.push(index);
        if let Some(ssrc) = open.ssrc {
            transport.streams.push((ssrc, index));
        }
        self.track_ids.insert(open.track, index);
    }

    fn close_track(&mut self, id: TrackId) {
        let Some(&index) = self.track_ids.get(&id) else { return };
        let transport = &mut self.transports[self.tracks[index].transport];
        transport.tracks.retain(|t| *t != index);
        if let Some(keys) = &mut transport.keys {
            for (ssrc, _) in transport.streams.iter().filter(|(_, t)| *t == index) {
                keys.receiver.forget(*ssrc);
            }
        }
        transport.streams.retain(|(_, t)| *t != index);
        self.forget_track(id, index);
    }

    /// Takes a track out of everything but its transport.
    fn forget_track(&mut self, id: TrackId, index: usize) {
        let mut track = self.tracks.remove(index);
        track.inbound.close(&mut self.pool);
        self.track_ids.remove(&id);
        self.touched.retain(|t| *t != index);
        self.tapped.retain(|(_, t, _, _)| *t != index);
        for subscriber in track.subscribers {
            let subscription = &mut self.subscriptions[subscriber];
            subscription.track = None;
            subscription.outbound.switch_source(false, &[]);
        }
    }

    fn open_subscription(&mut self, open: &OpenSubscription) {
        let Some(&transport_index) = self.transport_ids.get(&open.transport) else { return };
        let transport = &mut self.transports[transport_index];
        assert!(
            transport.subscriptions.len() < SUBSCRIPTIONS_PER_TRANSPORT_MAX
                && self.subscriptions.len() < self.limits.subscriptions as usize,
            "the control plane opens no more subscriptions than the plan has"
        );
        let mut outbound = Outbound::new(open);
        if let Endpoint::Rtp(route) = &transport.endpoint {
            outbound.keep(route.numbering());
        }
        let index = self.subscriptions.insert(Subscription {
            id: open.subscription,
            transport: transport_index,
            outbound,
            track: None,
            packets_reported: 0,
        });
        transport.subscriptions.push(index);
        self.subscription_ids.insert(open.subscription, index);
    }

    fn close_subscription(&mut self, id: SubscriptionId) {
        let Some(&index) = self.subscription_ids.get(&id) else { return };
        self.transports[self.subscriptions[index].transport].subscriptions.retain(|s| *s != index);
        self.forget_subscription(id, index);
    }

    /// Takes a subscription out of everything but its transport.
    fn forget_subscription(&mut self, id: SubscriptionId, index: usize) {
        let subscription = self.subscriptions.remove(index);
        self.subscription_ids.remove(&id);
        if let Some(track) = subscription.track {
            self.tracks[track].subscribers.retain(|s| *s != index);
        }
    }

    fn forward(&mut self, id: SubscriptionId, track: Option<TrackId>, payload_types: &[PayloadTypeMap]) {
        let Some(&index) = self.subscription_ids.get(&id) else { return };
        let track = track.and_then(|t| self.track_ids.get(&t).copied());
        let subscription = &mut self.subscriptions[index];
        if let Some(before) = subscription.track.take() {
            self.tracks[before].subscribers.retain(|s| *s != index);
        }
        subscription.track = track;
        subscription.outbound.switch_source(track.is_some(), payload_types);
        if let Some(track) = track {
            self.tracks[track].subscribers.push(index);
            self.tracks[track].inbound.request_keyframe();
        }
    }

    /// Does what time asks for.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.tick = (self.tick + 1) % TICKS_PER_ROUND;
        for (_, track) in &mut self.tracks {
            track.inbound.expire(&mut self.pool, now);
            if track.inbound.nack_due(now) || track.inbound.pli_due(now) {
                mark_reporting(&mut self.transports, &mut self.reporting, track.transport);
            }
        }
        for index in 0..self.transports.capacity() {
            let Some(transport) = self.transports.get(index) else { continue };
            let feedback = transport.twcc.as_ref().is_some_and(|t| t.poll_timeout().is_some_and(|at| at <= now));
            if feedback {
                mark_reporting(&mut self.transports, &mut self.reporting, index);
            }
            if index % TICKS_PER_ROUND == self.tick {
                self.look_after(now, index);
            }
        }
    }

    /// The once-a-second work of one transport.
    fn look_after(&mut self, now: Time, index: usize) {
        let transport = &mut self.transports[index];
        match &mut transport.endpoint {
            Endpoint::Ice(ice) => {
                if let Some(loss) = ice.expired(now) {
                    let id = transport.id;
                    self.close_transport(id);
                    self.events.push_back(Event::TransportLost { transport: id, loss });
                    return;
                }
            }
            // A peer that is silent may come again.
            Endpoint::Rtp(_) => self.report_peer(index),
        }
        let transport = &mut self.transports[index];
        transport.dtls_budget = DTLS_PER_SECOND_MAX;
        if transport.keys.is_none() {
            return;
        }
        transport.report_due = true;
        for subscription in &transport.subscriptions {
            let subscription = &self.subscriptions[*subscription];
            // Its keyframe may have come and been dropped on the way out: a client that never got a packet asks for none.
            if let Some(track) = subscription.track.filter(|_| subscription.outbound.wants_keyframe()) {
                self.tracks[track].inbound.request_keyframe();
            }
        }
        self.report_stats(index);
        mark_reporting(&mut self.transports, &mut self.reporting, index);
    }

    fn report_stats(&mut self, index: usize) {
        // Figures may wait a second; a DTLS datagram or a loss may not.
        let room = |events: &VecDeque<Event>| events.len() < crate::limits::EVENTS_MAX / 4;
        let transport = &self.transports[index];
        for track in &transport.tracks {
            let track = &mut self.tracks[*track];
            let stats = track.inbound.stats();
            if stats.packets != track.packets_reported && room(&self.events) {
                track.packets_reported = stats.packets;
                self.events.push_back(Event::TrackStats { track: track.id, stats });
            }
        }
        for subscription in &transport.subscriptions {
            let subscription = &mut self.subscriptions[*subscription];
            let stats = subscription.outbound.stats();
            if stats.packets != subscription.packets_reported && room(&self.events) {
                subscription.packets_reported = stats.packets;
                self.events.push_back(Event::SubscriptionStats { subscription: subscription.id, stats });
            }
        }
    }

    /// When [`Core::handle_timeout`] wants to be called; `None` while there is nobody.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.transports.is_empty()).then_some(self.next_tick)
    }

    /// The next event for the control plane.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next packet that a tap wants.
    pub fn poll_tap(&mut self) -> Option<Tapped<'_>> {
        while let Some((tap, track, sequence, at)) = self.tapped.pop_front() {
            if let Lookup::Held(stored) = self.tracks[track].inbound.history().lookup(&self.pool, sequence) {
                return Some(Tapped { tap, at, packet: stored.packet });
            }
            self.drops[DropReason::TapQueueFull as usize] += 1;
        }
        None
    }
}

/// Puts a transport on the list of those that RTCP is written to, once.
fn mark_reporting(transports: &mut Slab<Transport>, reporting: &mut VecDeque<usize>, index: usize) {
    if !std::mem::replace(&mut transports[index].is_reporting, true) {
        reporting.push_back(index);
    }
}
