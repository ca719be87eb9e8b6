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

mod bandwidth;
mod catch_up;
mod feedback;
mod layers;
mod link;
mod mirror;
mod pacer;
mod route;
mod transit;
mod transmit;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pop_proto::allocation::{Demand, Grant};
use pop_proto::audio_level::{AudioLevels, Loudness};
use pop_proto::control::{
    Command, Datagram, Extension, ExtensionIds, IceCredentials, LayerWish, MediaKind, OpenSubscription, OpenTrack, OpenTransport, Path,
    PayloadTypeMap, SELF_TEST, SrtpKeys, SubscriptionStats, TCP_SOCKET_BASE, TrackSsrcs, TrackStats, TransportLoss,
};
use pop_proto::header::CopiedElements;
use pop_proto::history::{Lookup, Meta, PacketPool, SLOT_LEN};
use pop_proto::ice::{IceLite, PATHS_MAX};
use pop_proto::inbound::{Inbound, SenderClock};
use pop_proto::layers::{LayerRanks, LayerState, TargetRates};
use pop_proto::outbound::{Outbound, Scratch};
use pop_proto::probe::{IceProbe, ProbeResult};
use pop_proto::protection::{Receiver, Sender};
use pop_proto::remb::RembEstimator;
use pop_proto::slots::Slots;
use pop_proto::srtp::{KEY_OBJECT_LEN_MAX, STREAM_LEN, STREAMS_MAX};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::{self, Protocol, dtls, rtp, rtx, stun};
use pop_proto::{DropReason, Event};
use pop_schemas::{SubscriptionId, Time, TrackId, TransportId};
use slab::Slab;

use bandwidth::{Downstream, Reported, Tally};
use catch_up::{CatchUp, CatchUps, begin_catch_ups};
use layers::{follow_layers, give_layer, request_keyframe, request_wanted};
pub use link::{LINK_LEN, LINK_TRACK_LEN, PARITY_LEN, TRANSIT_LEN};
use link::{LinkEnd, Links};
pub use mirror::{Handed, Handover, Peer};
use route::RtpRoute;
pub use transmit::Transmit;

use crate::counters::{Counters, Drops, Gauges};
use crate::limits::{FRESH_MAX, STUN_ANSWERS_MAX, SUBSCRIPTIONS_PER_TRANSPORT_MAX, TRACKS_PER_TRANSPORT_MAX, WorkerLimits};

/// Between two looks at what is missing, at feedback and at a hundredth of the transports. The first NACK of a lost packet
/// leaves within this.
const TICK: Duration = Duration::from_millis(10);

/// Each transport is looked after once in this many ticks: reports and consent once a second.
const TICKS_PER_ROUND: usize = 100;

/// The SSRCs of a track's layers are told so many times as soon as they change: each layer comes alone, and its repairs after it.
const LAYERS_TOLD_AT_ONCE: u8 = 8;

/// Figures of tracks, and of sections, that one tick tells the control plane at most: 4,000 a second of each, which is a room of 50
/// nearly every second. With more of them each waits its turn longer.
const STATS_PER_TICK_MAX: usize = 40;

/// DTLS datagrams that one transport may hand up per second: a handshake with every flight repeated five times.
const DTLS_PER_SECOND_MAX: u32 = 64;

/// Protected DTLS datagrams that one transport may hand up per second once it has keys: its data messages, at most 9.4 MB/s. What
/// reads them slows a sender down by its window; this bounds who does not listen.
const DATA_PER_SECOND_MAX: u32 = 8_192;

/// Checks of strangers under a name of ours and not under its password that one tick reads to the end: what is beyond ends before its
/// HMAC, which costs more than all else about it. A tenth of a core. Only what fails is counted, so that a storm of honest joins is not.
const FAILED_CHECKS_PER_TICK_MAX: u32 = 1_000;

/// The same for each transport's own address: one client's nonsense must not use up what the others may get wrong.
const FAILED_CHECKS_OF_ONE_MAX: u32 = 100;

/// Checks of one receive buffer that may be under a wrong password; then the rest of them is read no further. Nobody honest is wrong so
/// often within microseconds, and 64 checks cost their sender one send, but an HMAC each here. Nothing else counts: a browser's one socket
/// has the clients of all its pages behind it, and the old names of some must not silence the others.
const FAILED_CHECKS_OF_BUFFER_MAX: u32 = 4;

/// Datagrams that one receive buffer can hold: the kernel joins at most 64 before Linux 6.9, and 128 since
/// (`UDP_MAX_SEGMENTS`).
const GRO_SEGMENTS_MAX: usize = 128;

/// Bytes of one transport's state, keys and lists included, for the memory plan.
pub const TRANSPORT_LEN: usize = size_of::<Transport>()
    + PATHS_MAX * (size_of::<Path>() + size_of::<(Path, usize)>())
    + 4 * KEY_OBJECT_LEN_MAX
    + STREAMS_MAX * STREAM_LEN
    + STREAMS_PER_TRANSPORT_MAX * size_of::<Stream>()
    + TRACKS_PER_TRANSPORT_MAX * size_of::<usize>()
    + TwccRecorder::LEN
    + TEXTS_LEN;
/// Bytes of one track's own state with one layer and without its history, for the memory plan.
pub const TRACK_LEN: usize = size_of::<Track>() + size_of::<Layer>() - size_of::<Inbound>() + FRESH_MAX * size_of::<Fresh>();
/// Bytes of one subscription's state, for the memory plan: its places in its transport's lists, which double when they grow, in the
/// queues of repairs and of catch-ups, and its outgoing numbers, too.
pub const SUBSCRIPTION_LEN: usize =
    size_of::<Subscription>() + Slots::LEN + 2 * (2 * size_of::<usize>() + size_of::<(u32, u32)>()) + 2 * size_of::<usize>();

/// Bound SSRCs of what one client publishes: each layer and its retransmissions.
const STREAMS_PER_TRANSPORT_MAX: usize = 2 * TRACKS_PER_TRANSPORT_MAX;
const _: () = assert!(STREAMS_PER_TRANSPORT_MAX <= STREAMS_MAX, "each bound stream has a replay window");

/// SSRCs that a transport remembers of streams that others took the place of. An encoder begins anew this often within the life of a
/// late packet at most.
const RETIRED_MAX: usize = 8;

/// What one tick tells of a layer to other workers at most: its clock and its end, or what is asked of it.
const TOLD_PER_LAYER_MAX: usize = 2;

/// Ufrag (twice: it is a map's key, too), password and CNAME of one transport, and the texts of one restart, generously.
const TEXTS_LEN: usize = 448;

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
    fn note_authentic_packet(&mut self, now: Time, path: Path) {
        if let Endpoint::Ice(ice) = self {
            ice.note_authentic_packet(now, path);
        }
    }
}

struct Transport {
    id: TransportId,
    endpoint: Endpoint,
    keys: Option<Keys>,
    twcc: Option<Box<TwccRecorder>>,
    remb: Option<RembEstimator>,
    extensions: ExtensionIds,
    reduced_size_rtcp: bool,
    rtcp_ssrc: u32,
    cname: Box<str>,
    /// Bound SSRCs of what the client publishes.
    streams: Vec<Stream>,
    /// SSRCs that were bound before, newest first. Their windows are gone: a late or replayed packet of one is authentic, and must
    /// not take the place (and the rollover counter) of the stream that lives.
    retired: [Option<u32>; RETIRED_MAX],
    /// The next transport-wide number of what the client gets.
    transport_sequence: u16,
    /// What is known of the way to the client.
    downstream: Downstream,
    tracks: Vec<usize>,
    /// In the order of opening.
    subscriptions: Vec<usize>,
    /// The SSRC of each section and its place in the slab, by SSRC. Of a route, whose section may take its source's SSRC: empty.
    sections: Vec<(u32, u32)>,
    /// Sections whose track has fresh packets in this turn; room for all of them.
    dirty: Vec<usize>,
    dtls_budget: u32,
    data_budget: u32,
    /// Wrong checks from its own address since then.
    failed_checks: (Time, u32),
    /// The control plane knows that the client's checks come.
    validated: bool,
    /// In `Core::dirty` for this turn.
    is_dirty: bool,
    /// In `Core::reporting`: RTCP is to be written.
    is_reporting: bool,
    /// In `Core::measuring`: packets came that its client has to be told of.
    is_measuring: bool,
    /// The next RTCP carries a page of the once-a-second report.
    report_due: bool,
    /// Where in `subscriptions` the next page begins; `None` when every source was reported in this second.
    report_from: Option<usize>,
}

impl Transport {
    /// One of which nothing was negotiated and nothing has come.
    fn new(id: TransportId, endpoint: Endpoint, rtcp_ssrc: u32, cname: &str) -> Transport {
        Transport {
            id,
            endpoint,
            keys: None,
            twcc: None,
            remb: None,
            extensions: ExtensionIds::default(),
            reduced_size_rtcp: false,
            rtcp_ssrc,
            cname: cname.into(),
            streams: Vec::with_capacity(STREAMS_PER_TRANSPORT_MAX),
            retired: [None; RETIRED_MAX],
            transport_sequence: 0,
            downstream: Downstream::default(),
            tracks: Vec::with_capacity(TRACKS_PER_TRANSPORT_MAX),
            subscriptions: Vec::new(),
            sections: Vec::new(),
            dirty: Vec::new(),
            dtls_budget: DTLS_PER_SECOND_MAX,
            data_budget: DATA_PER_SECOND_MAX,
            failed_checks: (Time::ZERO, 0),
            validated: false,
            is_dirty: false,
            is_reporting: false,
            is_measuring: false,
            report_due: false,
            report_from: None,
        }
    }

    /// What is sent to its client arrives and can be opened.
    fn is_ready(&self) -> bool {
        self.keys.is_some() && self.endpoint.selected().is_some()
    }

    fn is_retired(&self, ssrc: u32) -> bool {
        self.retired.contains(&Some(ssrc))
    }
}

/// An SSRC that a client sends.
#[derive(Clone, Copy)]
struct Stream {
    ssrc: u32,
    track: usize,
    layer: usize,
    /// It carries the layer's retransmissions.
    is_rtx: bool,
}

/// One simulcast layer of a track; a track without simulcast has one without RID.
struct Layer {
    rid: Box<str>,
    inbound: Inbound,
    /// What the layers inside it bring.
    inside: TargetRates,
    /// How often it has begun anew under another SSRC: a mirror sees it by this.
    epoch: u16,
    /// What mirrors know.
    clock_told: Option<SenderClock>,
    /// See `clock_told`.
    end_told: bool,
    /// What of it goes to other ends than this worker's subscribers, as told last. Where the track comes over a link or goes over one.
    told: Option<LayerState>,
    /// When something of it came over a link last.
    came_at: Time,
}

/// A packet of this turn.
#[derive(Clone, Copy)]
struct Fresh {
    layer: usize,
    sequence: u64,
    /// As in its `Meta`: a subscriber that it is no business of need not look it up.
    keyframe_start: bool,
    /// Bytes of its payload: the header leaves as each section has it.
    len: u16,
    /// So much longer is one that came behind it: libwebrtc makes the last packets of a frame a byte longer than the first.
    shortfall: u8,
}

/// Packets that a longer one looks back at: those of a frame.
const SHORTFALL_PACKETS_MAX: usize = 16;

/// Tells the packets right before `next` how much longer it is.
fn note_shortfall(fresh: &mut [Fresh], next: &Fresh) {
    for before in fresh.iter_mut().rev().take(SHORTFALL_PACKETS_MAX).filter(|before| before.layer == next.layer) {
        match u8::try_from(i32::from(next.len) - i32::from(before.len)) {
            Ok(shortfall) if shortfall > before.shortfall => before.shortfall = shortfall,
            _ => break,
        }
    }
}

impl Layer {
    /// Its other ends are told everything anew.
    fn forget_told(&mut self) {
        (self.clock_told, self.end_told, self.told) = (None, false, None);
    }

    fn new(rid: &str, open: &OpenTrack) -> Layer {
        Layer {
            rid: rid.into(),
            inbound: Inbound::new(open),
            inside: TargetRates::default(),
            epoch: 0,
            clock_told: None,
            end_told: false,
            told: None,
            came_at: Time::ZERO,
        }
    }
}

/// Where a track's packets come from: here, or in the two other cases from its other end, which was told what is wanted of it.
#[derive(Clone, Copy)]
enum Source {
    /// A publisher's transport.
    Transport(usize),
    /// The worker of this node that has the publisher: the track is a mirror.
    Worker(Peer),
    /// A worker of another node; ids of the extensions in its packets.
    Link(LinkEnd, ExtensionIds),
}

struct Track {
    id: TrackId,
    source: Source,
    /// Workers that mirror it.
    peers: Vec<Peer>,
    /// Links that it is sent over.
    exports: Vec<LinkEnd>,
    mid: Box<str>,
    layers: Vec<Layer>,
    ranks: LayerRanks,
    subscribers: Vec<usize>,
    /// What came in this turn, in the order of arrival.
    fresh: Vec<Fresh>,
    tap: Option<u32>,
    /// How loud it is: audio alone.
    levels: Option<AudioLevels>,
    /// When its publisher spoke last, as far as that was told.
    spoke_at: Time,
    packets_reported: u64,
    /// Layers have other SSRCs than were told.
    is_bound_anew: bool,
    /// How many times that may still be told at once.
    tells_left: u8,
}

impl Track {
    /// Totals of all layers; jitter and codec are those of the best that comes.
    fn stats(&self) -> TrackStats {
        let best = self.ranks.top();
        let of_best = self.layers[best].inbound.stats();
        let mut stats = TrackStats { packets: 0, bytes: 0, lost: 0, nacked: 0, plis: 0, layer: best as u8, ..of_best };
        for layer in &self.layers {
            let of_layer = layer.inbound.stats();
            stats.packets += of_layer.packets;
            stats.bytes += of_layer.bytes;
            stats.lost += of_layer.lost;
            stats.nacked += of_layer.nacked;
            stats.plis += of_layer.plis;
        }
        stats
    }

    /// Packets of a layer that came in this turn.
    fn fresh_of(&self, layer: usize) -> u64 {
        self.fresh.iter().filter(|fresh| fresh.layer == layer).count() as u64
    }

    /// What to add to a timestamp of layer `to` to get the one of the same instant in layer `from`; `None` before both have told
    /// their clocks.
    fn align(&self, from: usize, to: usize) -> Option<u32> {
        let clock = |layer: usize| self.layers[layer].inbound.clock();
        let clock_rate = self.layers[from].inbound.stats().codec?.clock_rate();
        Some(clock(from)?.ticks_ahead(&clock(to)?, clock_rate))
    }
}

struct Subscription {
    id: SubscriptionId,
    transport: usize,
    outbound: Outbound,
    track: Option<usize>,
    wish: LayerWish,
    /// What there is bandwidth for; `None`: for nothing.
    granted: Option<Grant>,
    packets_reported: u64,
    /// Congestion and layers as the figures told them last.
    state_reported: (bool, u8, u8),
    /// The client's last report.
    reported: Option<Reported>,
    /// In its transport's `dirty`.
    is_dirty: bool,
    /// In `Core::repairing`.
    is_repairing: bool,
    /// It begins with pictures that were kept; in `Core::catch_ups`.
    catch_up: Option<CatchUp>,
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
    /// One of them is the node's own test.
    tests_itself: bool,
    tracks: Slab<Track>,
    subscriptions: Slab<Subscription>,
    transport_ids: HashMap<TransportId, usize>,
    track_ids: HashMap<TrackId, usize>,
    subscription_ids: HashMap<SubscriptionId, usize>,
    ufrags: HashMap<Box<[u8]>, usize>,
    paths: HashMap<Path, usize>,
    /// Sockets below this index are the media port's; above it a datagram is a route's, or nobody's.
    media_sockets: u16,
    /// The route that a socket belongs to, by the socket's index.
    routes: Vec<Option<usize>>,
    /// Sockets that the back end did not take.
    refused_sockets: Vec<u16>,
    answers: VecDeque<Answer>,
    /// Wrong checks of strangers in this tick.
    failed_checks: u32,
    dtls_out: VecDeque<(Path, Box<[u8]>)>,
    /// Goodbyes of what was closed, protected.
    goodbyes: VecDeque<(Path, Box<[u8]>)>,
    events: VecDeque<Event>,
    tapped: VecDeque<(u32, usize, Fresh, Time)>,
    /// Packets of this turn for mirrors, and what else other workers are to be told.
    handed: VecDeque<(usize, Fresh)>,
    told: VecDeque<(usize, Handed)>,
    /// How many of `tracks` are mirrors.
    mirrors: usize,
    /// How many of `tracks` are other nodes'.
    remotes: usize,
    links: Links,
    /// Tracks with another end, which a tick looks at, not at all that there are.
    crossing: Vec<usize>,
    /// Tracks with fresh packets in this turn.
    touched: Vec<usize>,
    /// One of them may have no room for what one more receive buffer brings.
    is_full: bool,
    /// Transports that take some of them.
    dirty: Vec<usize>,
    /// Subscriptions with queued repairs.
    repairing: VecDeque<usize>,
    /// Transports that RTCP is to be written to.
    reporting: VecDeque<usize>,
    /// Transports with another page of the once-a-second report to come.
    paging: Vec<usize>,
    /// Transports whose packets are measured for congestion feedback: those that publish, which a tick looks at, not at everybody.
    measuring: Vec<usize>,
    /// Transports whose sections share bandwidth anew at the next tick, and what each section takes part with.
    sharing: VecDeque<usize>,
    demands: Vec<Demand>,
    catch_ups: CatchUps,
    cursor: transmit::Cursor,
    scratch: Box<Scratch>,
    next_tick: Time,
    tick: usize,
    track_stats: Walk,
    subscription_stats: Walk,
    counters: Counters,
    drops: Drops,
}

impl Core {
    /// An empty worker with all its memory. `consent` is how long a client may stay silent.
    pub fn new(limits: WorkerLimits, consent: Duration) -> Core {
        let limits = limits.with_self_test();
        let (transports, tracks, subscriptions) = (limits.transports as usize, limits.tracks as usize, limits.subscriptions as usize);
        Core {
            limits,
            consent,
            probe: None,
            pool: PacketPool::new(limits.packets),
            transports: Slab::with_capacity(transports),
            tests_itself: false,
            tracks: Slab::with_capacity(tracks),
            subscriptions: Slab::with_capacity(subscriptions),
            transport_ids: HashMap::with_capacity(transports),
            track_ids: HashMap::with_capacity(tracks),
            subscription_ids: HashMap::with_capacity(subscriptions),
            // Each twice while it restarts ICE.
            ufrags: HashMap::with_capacity(2 * transports),
            paths: HashMap::with_capacity(PATHS_MAX * transports),
            media_sockets: TCP_SOCKET_BASE,
            routes: Vec::new(),
            refused_sockets: Vec::new(),
            answers: VecDeque::with_capacity(STUN_ANSWERS_MAX),
            failed_checks: 0,
            dtls_out: VecDeque::new(),
            goodbyes: VecDeque::new(),
            events: VecDeque::with_capacity(crate::limits::EVENTS_MAX),
            tapped: VecDeque::with_capacity(FRESH_MAX),
            handed: VecDeque::with_capacity(FRESH_MAX),
            told: VecDeque::with_capacity(TOLD_PER_LAYER_MAX * tracks),
            mirrors: 0,
            remotes: 0,
            links: Links::with_capacity(limits.links as usize),
            crossing: Vec::with_capacity(tracks),
            touched: Vec::with_capacity(tracks),
            is_full: false,
            dirty: Vec::with_capacity(transports),
            repairing: VecDeque::with_capacity(subscriptions),
            reporting: VecDeque::with_capacity(transports),
            paging: Vec::with_capacity(transports),
            measuring: Vec::with_capacity(transports),
            sharing: VecDeque::with_capacity(transports),
            demands: Vec::with_capacity(SUBSCRIPTIONS_PER_TRANSPORT_MAX),
            catch_ups: CatchUps::with_capacity(subscriptions),
            cursor: transmit::Cursor::default(),
            scratch: Box::default(),
            next_tick: Time::ZERO,
            tick: 0,
            track_stats: Walk::default(),
            subscription_stats: Walk::default(),
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

    /// What exists now, but for the node's own test.
    pub fn gauges(&self) -> Gauges {
        let track = self.track_ids.get(&TrackId(SELF_TEST)).map(|index| &self.tracks[*index]);
        let own_subscriptions = usize::from(self.subscription_ids.contains_key(&SubscriptionId(SELF_TEST)));
        let own_packets = track.map_or(0, |track| track.layers[0].inbound.history().count());
        Gauges {
            transports: (self.transports.len() - usize::from(self.tests_itself)) as u64,
            tracks: (self.tracks.len() - self.mirrors - self.remotes - usize::from(track.is_some())) as u64,
            mirrors: self.mirrors as u64,
            remotes: self.remotes as u64,
            links: self.links.len() as u64,
            subscriptions: (self.subscriptions.len() - own_subscriptions) as u64,
            packets_held: u64::from(self.limits.packets) - (self.pool.free_slots() + own_packets) as u64,
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
        self.is_full || self.links.transits.is_full() || self.tapped.len().max(self.handed.len()) + GRO_SEGMENTS_MAX > FRESH_MAX
    }

    /// Takes one datagram.
    pub fn handle_datagram(&mut self, now: Time, path: Path, datagram: &mut [u8]) {
        self.handle_datagrams(now, path, std::iter::once(datagram));
    }

    /// Takes what came by one path in one receive buffer. The path is looked up once for all: a train from a stranger, 64 datagrams for
    /// the price of one to its sender, must not cost 64 times that here.
    pub fn handle_datagrams<'a>(&mut self, now: Time, path: Path, datagrams: impl Iterator<Item = &'a mut [u8]>) {
        if let Some(&Some(index)) = self.routes.get(usize::from(path.socket)) {
            return datagrams.for_each(|datagram| self.handle_route_datagram(now, index, path, datagram));
        }
        if self.links.has_socket(path.socket) {
            return self.handle_link_datagrams(now, datagrams);
        }
        if (self.media_sockets..TCP_SOCKET_BASE).contains(&path.socket) {
            // Its route is not open yet, or any more.
            return self.count_drops(DropReason::ForeignPeer, datagrams.count() as u64);
        }
        // `None`: to be looked up.
        let (mut owner, mut failed_checks) = (None, 0);
        for datagram in datagrams {
            let result = match wire::demux(datagram) {
                // Nothing that is negotiated sends more than an Ethernet MTU, and the cost of a datagram is bounded by its length.
                _ if datagram.len() > SLOT_LEN => Err(DropReason::TooLarge),
                Err(reason) => Err(reason),
                Ok(Protocol::Stun) if failed_checks == FAILED_CHECKS_OF_BUFFER_MAX => Err(DropReason::StunLimited),
                Ok(Protocol::Stun) => {
                    // A check may give the path to its transport.
                    owner = None;
                    let checked = self.handle_stun(now, path, datagram);
                    failed_checks += u32::from(checked == Err(DropReason::StunIntegrity));
                    checked
                }
                Ok(protocol) => match *owner.get_or_insert_with(|| self.paths.get(&path).copied()) {
                    None => Err(DropReason::UnknownAddress),
                    Some(index) => match protocol {
                        Protocol::Dtls => self.handle_dtls(now, index, path, datagram),
                        Protocol::Rtp => self.handle_rtp(now, index, path, datagram),
                        Protocol::Rtcp | Protocol::Stun => self.handle_rtcp(now, index, path, datagram),
                    },
                },
            };
            if let Err(reason) = result {
                self.count_drops(reason, 1);
            }
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
        let (failed, failed_max) = if self.paths.get(&path) == Some(&index) {
            let (since, failed) = &mut transport.failed_checks;
            if now.since(*since) >= TICK {
                (*since, *failed) = (now, 0);
            }
            (failed, FAILED_CHECKS_OF_ONE_MAX)
        } else {
            (&mut self.failed_checks, FAILED_CHECKS_PER_TICK_MAX)
        };
        if *failed >= failed_max {
            return Err(DropReason::StunLimited);
        }
        let mut answer = Answer { path, len: 0, bytes: [0; stun::RESPONSE_LEN_MAX] };
        let Endpoint::Ice(ice) = &mut transport.endpoint else { return Err(DropReason::StunUnknownUser) };
        let outcome = ice.handle_check(now, path, &message, &mut answer.bytes);
        *failed += u32::from(matches!(outcome, Err(DropReason::StunIntegrity)));
        let outcome = outcome?;
        answer.len = outcome.response_len;
        self.answers.push_back(answer);
        if outcome.refused {
            self.counters.ice_checks_refused += 1;
            return Ok(());
        }
        self.counters.ice_checks_ok += u64::from(transport.id.0 != SELF_TEST);
        if let Some(forgotten) = outcome.replaced {
            self.forget_path(&forgotten, index);
        }
        // On every success, not only the first: when a 5-tuple changed hands (a client that came back from one port, a forged
        // source address), the next check of the right one heals the table.
        self.paths.insert(path, index);
        if let Some(retired) = &outcome.retired {
            self.ufrags.remove(retired.local_ufrag.as_bytes());
        }
        let transport = &mut self.transports[index];
        if !transport.validated || outcome.retired.is_some() {
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

    /// Takes the sockets from index `count` on for links' and routes' alone from now on.
    pub fn set_media_sockets(&mut self, count: u16) {
        self.media_sockets = count;
    }

    /// The back end did not take an added socket: a route that is opened on it is lost at once.
    pub fn refuse_socket(&mut self, socket: u16) {
        self.refused_sockets.push(socket);
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
        self.refused_sockets.retain(|refused| *refused != socket);
        self.paths.retain(|path, _| path.socket != socket);
        for (_, transport) in &mut self.transports {
            if let Endpoint::Ice(ice) = &mut transport.endpoint {
                ice.forget(|path| path.socket == socket);
            }
        }
    }

    fn handle_dtls(&mut self, now: Time, index: usize, path: Path, datagram: &[u8]) -> Result<(), DropReason> {
        let transport = &mut self.transports[index];
        let summary = dtls::DtlsSummary::parse(datagram)?;
        // A repeat of the client's last flight goes up: the adapter answers it from a copy and shows the library nothing of it.
        if transport.keys.is_some() && summary.has_plaintext() && !summary.repeats_last_flight() {
            return Err(DropReason::DtlsPlaintext);
        }
        let datagram = Datagram::new(datagram).ok_or(DropReason::DtlsMalformed)?;
        let is_data = transport.keys.is_some() && !summary.has_plaintext();
        let budget = if is_data { &mut transport.data_budget } else { &mut transport.dtls_budget };
        if *budget == 0 || self.events.len() >= crate::limits::EVENTS_MAX / 2 {
            return Err(DropReason::DtlsQueueFull);
        }
        *budget -= 1;
        // Nobody has authenticated it: after the keys SRTP alone says where the client is.
        if let (Endpoint::Ice(ice), None) = (&mut transport.endpoint, &transport.keys) {
            ice.note_handshake(now, path);
        }
        self.counters.dtls_datagrams_in += 1;
        self.events.push_back(Event::Dtls { transport: transport.id, datagram });
        Ok(())
    }

    fn handle_rtp(&mut self, now: Time, index: usize, path: Path, packet: &mut [u8]) -> Result<(), DropReason> {
        let transport = &mut self.transports[index];
        let view = rtp::RtpView::parse(packet)?;
        let header_len = view.header_len();
        let ssrc = view.ssrc();
        let sequence = transport.extensions.get(Extension::TransportCc).and_then(|id| view.transport_sequence(id));
        let mut meta = Meta {
            timestamp: view.timestamp(),
            payload_type: view.payload_type(),
            marker: view.marker(),
            header_len: header_len as u16,
            elements: CopiedElements::find(&view, &transport.extensions),
            ..Meta::default()
        };
        let keys = transport.keys.as_mut().ok_or(DropReason::SrtpNoKeys)?;
        let opened = keys.receiver.unprotect_rtp(packet, header_len)?;

        // Authenticated from here on; the header was never encrypted.
        transport.endpoint.note_authentic_packet(now, path);
        let plain = &mut packet[..opened.len];
        let payload_len = rtp::payload(plain, header_len)?.len();
        meta.len = (header_len + payload_len) as u16;
        if let (Some(twcc), Some(sequence)) = (&mut transport.twcc, sequence) {
            twcc.record(sequence, now);
        }
        if let Some(remb) = &mut transport.remb {
            remb.record(now, opened.len);
        }
        if !transport.is_measuring && (transport.twcc.is_some() || transport.remb.is_some()) {
            transport.is_measuring = true;
            self.measuring.push(index);
        }
        let stream = match transport.streams.iter().find(|stream| stream.ssrc == ssrc) {
            Some(stream) => *stream,
            None => self.bind_stream(index, plain)?,
        };
        if stream.is_rtx { self.take_rtx(now, index, stream, plain, meta) } else { self.take_rtp(now, stream, opened.index, plain, meta) }
    }

    /// Takes a retransmission (RFC 4588) in the place of what it repeats.
    ///
    /// Errors: [`DropReason::UnknownStream`] before the stream itself, [`DropReason::PayloadType`], [`DropReason::RtxMalformed`],
    /// and those of [`Core::take_rtp`]: [`DropReason::Duplicate`] when the original came after all.
    fn take_rtx(&mut self, now: Time, transport: usize, stream: Stream, plain: &mut [u8], mut meta: Meta) -> Result<(), DropReason> {
        let inbound = &self.tracks[stream.track].layers[stream.layer].inbound;
        let original = inbound.repeated_by(meta.payload_type).ok_or(DropReason::PayloadType)?;
        let streams = &self.transports[transport].streams;
        let media = streams.iter().find(|s| s.track == stream.track && s.layer == stream.layer && !s.is_rtx);
        let media = *media.ok_or(DropReason::UnknownStream)?;
        let plain = &mut plain[..usize::from(meta.len)];
        // Padding went with the cut; the restored header must not tell of it.
        plain[0] &= !0x20;
        let Some((sequence, plain)) = rtx::restore(plain, meta.header_len.into(), media.ssrc, original)? else {
            self.counters.rtx_padding_in += 1;
            return Ok(());
        };
        let sequence = inbound.extend_repeated(sequence)?;
        (meta.payload_type, meta.repeated) = (original, true);
        meta.len = plain.len() as u16;
        self.counters.rtx_packets_in += 1;
        self.store_rtp(now, media, sequence, plain, meta)
    }

    /// Stores an authenticated packet of a stream and marks whom it goes to; `plain` may end in padding.
    ///
    /// Errors: [`DropReason::PayloadType`] and those of [`Inbound::handle_packet`].
    fn take_rtp(&mut self, now: Time, stream: Stream, index: u64, plain: &mut [u8], meta: Meta) -> Result<(), DropReason> {
        // Padding is not stored, so its bit must not be either.
        plain[0] &= !0x20;
        self.store_rtp(now, stream, index, &plain[..usize::from(meta.len)], meta)
    }

    fn store_rtp(&mut self, now: Time, stream: Stream, index: u64, plain: &[u8], mut meta: Meta) -> Result<(), DropReason> {
        let Stream { track: track_index, layer, .. } = stream;
        let track = &mut self.tracks[track_index];
        let inbound = &mut track.layers[layer].inbound;
        let codec = inbound.codec(meta.payload_type).ok_or(DropReason::PayloadType)?;
        let payload = &plain[usize::from(meta.header_len)..];
        let told = meta.keyframe_start;
        let is_sound = inbound.read_payload(index, plain, &mut meta, codec);
        if matches!(track.source, Source::Worker(_)) {
            // The home has seen what came before; a mirror that begins in mid-stream guesses.
            meta.keyframe_start = told;
        }
        self.counters.descriptors_malformed += u64::from(!is_sound);
        inbound.handle_packet(&mut self.pool, now, index, plain, meta, codec)?;
        match track.source {
            Source::Transport(_) if track.id.0 == SELF_TEST => {}
            Source::Transport(_) => {
                if inbound.packets() == 1 && track.layers.iter().map(|layer| layer.inbound.packets()).sum::<u64>() == 1 {
                    self.events.push_back(Event::TrackStarted { track: track.id });
                }
                self.counters.rtp_packets_in += 1;
                self.counters.rtp_bytes_in += payload.len() as u64;
            }
            Source::Worker(_) => {
                self.counters.handover_packets_in += 1;
                self.counters.handover_bytes_in += payload.len() as u64;
            }
            Source::Link(..) => {
                self.counters.relay_packets_in += 1;
                self.counters.relay_media_bytes_in += plain.len() as u64;
            }
        }
        if let (Some(levels), false, Some(level)) = (&mut track.levels, meta.repeated, meta.elements.audio_level(plain)) {
            levels.record(meta.timestamp, level);
        }
        // A retransmission or a bandwidth probe may come of a layer that is paused.
        if !meta.repeated && !payload.is_empty() && track.ranks.record(now, layer, plain.len(), meta.timestamp) {
            follow_layers(track, &mut self.subscriptions);
        }

        if track.fresh.is_empty() {
            self.touched.push(track_index);
            self.links.mark_dirty(track_index, codec.kind(), &mut track.exports);
            for subscriber in &track.subscribers {
                let subscription = &mut self.subscriptions[*subscriber];
                let transport = &mut self.transports[subscription.transport];
                if !std::mem::replace(&mut subscription.is_dirty, true) {
                    transport.dirty.push(*subscriber);
                }
                if !std::mem::replace(&mut transport.is_dirty, true) {
                    self.dirty.push(subscription.transport);
                }
            }
        }
        let fresh = Fresh { layer, sequence: index, keyframe_start: meta.keyframe_start, len: payload.len() as u16, shortfall: 0 };
        // Audio is never padded.
        if track.layers[layer].inbound.kind() == MediaKind::Video {
            note_shortfall(&mut track.fresh, &fresh);
        }
        track.fresh.push(fresh);
        self.is_full |= track.fresh.len() + GRO_SEGMENTS_MAX > FRESH_MAX;
        if let Some(tap) = track.tap {
            self.tapped.push_back((tap, track_index, fresh, now));
        }
        if !track.peers.is_empty() {
            self.handed.push_back((track_index, fresh));
        }
        Ok(())
    }

    /// The stream of an authenticated packet whose SSRC is not known yet: by its MID and RID, else by a payload type that only one
    /// layer without an SSRC has (RFC 9143 section 9.2, RFC 8852 section 3). A MID of a layer that has an SSRC means that the
    /// encoder began anew.
    fn bind_stream(&mut self, index: usize, plain: &[u8]) -> Result<Stream, DropReason> {
        let Core { transports, tracks, .. } = self;
        let transport = &mut transports[index];
        let view = rtp::RtpView::parse(plain)?;
        let ssrc = view.ssrc();
        let extension = |extension| transport.extensions.get(extension).and_then(|id| view.extension(id));
        let mid = extension(Extension::Mid);
        let mut matching = transport.tracks.iter().filter_map(|&track| {
            let Track { mid: of_track, layers, .. } = &tracks[track];
            if mid.is_some_and(|mid| of_track.as_bytes() != mid) {
                return None;
            }
            // In each case of a negotiated payload type: redundancy streams carry the MID, too, and must not unseat the media.
            let is_rtx = layers[0].inbound.repeated_by(view.payload_type()).is_some();
            if !is_rtx && layers[0].inbound.codec(view.payload_type()).is_none() {
                return None;
            }
            let rid = extension(if is_rtx { Extension::RepairedRid } else { Extension::Rid });
            let layer = layers.iter().position(|layer| layer.rid.is_empty() || Some(layer.rid.as_bytes()) == rid)?;
            let bound = transport.streams.iter().any(|s| s.track == track && s.layer == layer && s.is_rtx == is_rtx);
            let is_free = !bound || (!is_rtx && layers[layer].inbound.is_ended());
            (mid.is_some() || is_free).then_some(Stream { ssrc, track, layer, is_rtx })
        });
        let found = match (matching.next(), matching.next()) {
            (Some(found), None) if !transport.is_retired(ssrc) => Some(found),
            _ => None,
        };
        let Some(found) = found else {
            if let Some(keys) = &mut transport.keys {
                keys.receiver.forget(ssrc);
            }
            return Err(DropReason::UnknownStream);
        };
        self.bind(index, found);
        Ok(found)
    }

    /// Binds a stream's SSRC. A layer that had another begins anew.
    fn bind(&mut self, index: usize, stream: Stream) {
        let transport = &mut self.transports[index];
        let same = |s: &Stream| s.track == stream.track && s.layer == stream.layer && s.is_rtx == stream.is_rtx;
        if let Some(at) = transport.streams.iter().position(same) {
            let before = transport.streams.swap_remove(at);
            if let Some(keys) = &mut transport.keys {
                keys.receiver.forget(before.ssrc);
            }
            // A plain stream may begin anew under its own SSRC.
            if before.ssrc != stream.ssrc {
                transport.retired.rotate_right(1);
                transport.retired[0] = Some(before.ssrc);
            }
            if !stream.is_rtx {
                let layer = &mut self.tracks[stream.track].layers[stream.layer];
                layer.epoch = layer.epoch.wrapping_add(1);
                self.restart_layer(stream.track, stream.layer);
            }
        }
        self.transports[index].streams.push(stream);
        let track = &mut self.tracks[stream.track];
        track.is_bound_anew |= !track.layers[stream.layer].rid.is_empty();
    }

    /// Presets what the first packets of simulcast layers would have told.
    fn bind_layers(&mut self, id: TrackId, ssrcs: &TrackSsrcs) {
        let Some(&track) = self.track_ids.get(&id) else { return };
        let Source::Transport(transport) = self.tracks[track].source else { return };
        let layers = self.tracks[track].layers.len();
        for (layer, of_layer) in ssrcs.iter().enumerate().take(layers) {
            for (ssrc, is_rtx) in [(of_layer.media, false), (of_layer.rtx, true)] {
                let Some(ssrc) = ssrc else { continue };
                let is_taken = |s: &Stream| s.ssrc == ssrc || (s.track == track && s.layer == layer && s.is_rtx == is_rtx);
                if !self.transports[transport].streams.iter().any(is_taken) {
                    self.bind(transport, Stream { ssrc, track, layer, is_rtx });
                }
            }
        }
    }

    /// Tells the SSRCs of layers when that is new: all nodes hear of it. A client that changes them again and again is told of once a
    /// second.
    fn tell_layers(&mut self) {
        let Core { tracks, transports, events, tick, .. } = self;
        for (index, track) in tracks {
            let Source::Transport(transport) = track.source else { continue };
            let is_turn = track.tells_left > 0 || index % TICKS_PER_ROUND == *tick;
            if !track.is_bound_anew || !is_turn || !has_room(events) {
                continue;
            }
            track.is_bound_anew = false;
            track.tells_left = track.tells_left.saturating_sub(1);
            let mut ssrcs = TrackSsrcs::default();
            for stream in transports[transport].streams.iter().filter(|stream| stream.track == index) {
                let of_layer = &mut ssrcs[stream.layer];
                *(if stream.is_rtx { &mut of_layer.rtx } else { &mut of_layer.media }) = Some(stream.ssrc);
            }
            events.push_back(Event::LayersBound { track: track.id, ssrcs });
        }
    }

    /// A layer's numbers begin anew.
    fn restart_layer(&mut self, index: usize, layer: usize) {
        let Core { tracks, subscriptions, pool, .. } = self;
        let track = &mut tracks[index];
        track.layers[layer].inbound.restart(pool);
        track.fresh.retain(|fresh| fresh.layer != layer);
        if track.fresh.is_empty() {
            self.touched.retain(|t| *t != index);
        }
        self.tapped.retain(|(_, t, fresh, _)| *t != index || fresh.layer != layer);
        self.handed.retain(|(t, fresh)| *t != index || fresh.layer != layer);
        for subscriber in &track.subscribers {
            subscriptions[*subscriber].outbound.end_layer(layer);
        }
    }

    /// Takes a command. Ids that are not known (any longer) are ignored: the control plane's view may be one turn old.
    pub fn handle_command(&mut self, now: Time, command: Command) {
        match command {
            Command::OpenTransport(open) => self.open_transport(now, &open),
            Command::OpenRtp(open) => self.open_rtp(now, &open),
            Command::UpdateTransport { transport, extensions, transport_cc, remb } => {
                self.update_transport(transport, extensions, transport_cc, remb);
            }
            Command::CloseTransport { transport } => {
                self.say_goodbye(transport, None);
                self.close_transport(transport);
            }
            Command::RestartIce { transport, ice } => self.restart_ice(transport, *ice),
            Command::SendDtls { transport, datagram } => self.send_dtls(transport, datagram),
            Command::InstallKeys { transport, keys } => self.install_keys(transport, &keys),
            Command::OpenTrack(open) => self.open_track(&open),
            Command::BindLayers { track, ssrcs } => self.bind_layers(track, &ssrcs),
            Command::OpenMirror { open, home } => self.open_mirror(&open, home),
            Command::Export { track, to, on } => self.export(track, to, on),
            Command::CloseTrack { track } => self.close_track(track),
            Command::OpenSubscription(open) => self.open_subscription(&open),
            Command::CloseSubscription { subscription } => self.close_subscription(subscription),
            Command::Forward { subscription, track, payload_types } => self.forward(subscription, track, &payload_types),
            Command::Wish { subscription, wish } => self.set_wish(subscription, wish),
            // The owner of the queue takes it out.
            Command::SendData { .. } => {}
            Command::ProbeRates(rates) => {
                if let Some(probe) = &mut self.probe {
                    probe.set_rates(rates);
                }
            }
            Command::OpenLink(open) => self.open_link(now, &open),
            Command::RekeyLink { link, generation, keys } => self.rekey_link(now, link, generation, &keys),
            Command::RouteLink { link, way, backup } => self.route_link(now, link, way, backup),
            Command::CloseLink { link } => self.close_link(link),
            Command::OpenRemoteTrack { open, extensions, link, alias } => self.open_remote_track(&open, extensions, link, alias),
            Command::ExportToLink { track, link, alias, bound, on } => self.export_to_link(track, link, alias, bound, on),
            Command::Spoke { track } => self.note_speech(now, track),
            Command::Tap { track, tap } => {
                if let Some(index) = self.track_ids.get(&track) {
                    self.tracks[*index].tap = tap;
                    self.review_layers(*index);
                }
            }
        }
    }

    fn open_transport(&mut self, now: Time, open: &OpenTransport) {
        let ice = IceLite::new(now, open.ice.clone(), self.consent);
        let index = self.insert_transport(
            now,
            Transport {
                twcc: open.transport_cc.then(|| Box::new(TwccRecorder::new())),
                remb: open.remb.then(RembEstimator::new),
                extensions: open.extensions,
                reduced_size_rtcp: open.reduced_size_rtcp,
                ..Transport::new(open.transport, Endpoint::Ice(ice), open.rtcp_ssrc, &open.cname)
            },
        );
        self.ufrags.insert(open.ice.local_ufrag.as_bytes().into(), index);
    }

    /// What is measured goes on: an estimator that is there keeps what it knows.
    fn update_transport(&mut self, id: TransportId, extensions: ExtensionIds, transport_cc: bool, remb: bool) {
        let Some(index) = self.transport_ids.get(&id) else { return };
        let transport = &mut self.transports[*index];
        transport.extensions = extensions;
        if transport_cc {
            transport.twcc.get_or_insert_with(|| Box::new(TwccRecorder::new()));
            transport.remb = None;
        } else if remb {
            transport.remb.get_or_insert_with(RembEstimator::new);
        }
    }

    fn insert_transport(&mut self, now: Time, transport: Transport) -> usize {
        assert!(self.transports.len() < self.limits.transports as usize, "the control plane places no more transports than the plan has");
        if self.is_idle() {
            self.next_tick = now + TICK;
        }
        let id = transport.id;
        let index = self.transports.insert(transport);
        self.transport_ids.insert(id, index);
        self.tests_itself |= id.0 == SELF_TEST;
        index
    }

    /// Time brings nothing.
    fn is_idle(&self) -> bool {
        self.transports.len() == usize::from(self.tests_itself) && self.links.len() == 0
    }

    fn restart_ice(&mut self, id: TransportId, ice: IceCredentials) {
        let Some(&index) = self.transport_ids.get(&id) else { return };
        let Endpoint::Ice(agent) = &mut self.transports[index].endpoint else { return };
        self.ufrags.insert(ice.local_ufrag.as_bytes().into(), index);
        if let Some(forgotten) = agent.restart(ice) {
            self.ufrags.remove(forgotten.local_ufrag.as_bytes());
        }
    }

    fn close_transport(&mut self, id: TransportId) {
        let Some(index) = self.transport_ids.remove(&id) else { return };
        let transport = self.transports.remove(index);
        self.tests_itself &= id.0 != SELF_TEST;
        match &transport.endpoint {
            Endpoint::Ice(ice) => {
                for ufrag in ice.local_ufrags() {
                    self.ufrags.remove(ufrag.as_bytes());
                }
                ice.paths().for_each(|path| self.forget_path(&path, index));
            }
            Endpoint::Rtp(_) => self.routes.iter_mut().filter(|route| **route == Some(index)).for_each(|route| *route = None),
        }
        self.dirty.retain(|i| *i != index);
        self.reporting.retain(|i| *i != index);
        self.paging.retain(|i| *i != index);
        self.measuring.retain(|i| *i != index);
        self.sharing.retain(|i| *i != index);
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
        // Once: the windows and the counters of those in use would begin anew, and with equal keys that is a second use of each index.
        if transport.keys.is_some() {
            return;
        }
        transport.keys = Some(Keys::new(Some(keys)));
        // A viewer that is ready now needs a picture now.
        for subscription in &transport.subscriptions {
            request_keyframe(&mut self.tracks, &self.subscriptions[*subscription]);
        }
    }

    fn open_track(&mut self, open: &OpenTrack) {
        let Some(&transport_index) = self.transport_ids.get(&open.transport) else { return };
        let of_transport = self.transports[transport_index].tracks.iter().map(|track| self.tracks[*track].layers.len()).sum::<usize>();
        let layers = open.layers.len().max(1);
        assert!(of_transport + layers <= TRACKS_PER_TRANSPORT_MAX, "the control plane opens no more layers than a transport has");
        let index = self.insert_track(open, Source::Transport(transport_index));
        let transport = &mut self.transports[transport_index];
        transport.tracks.push(index);
        // Which layer an SSRC of the SDP belongs to would be a guess.
        for (ssrc, is_rtx) in [(open.ssrc, false), (open.rtx_ssrc, true)] {
            transport.streams.extend(ssrc.filter(|_| layers == 1).map(|ssrc| Stream { ssrc, track: index, layer: 0, is_rtx }));
        }
    }

    fn insert_track(&mut self, open: &OpenTrack, source: Source) -> usize {
        let layers = open.layers.len().max(1);
        assert!(
            self.tracks.iter().map(|(_, track)| track.layers.len()).sum::<usize>() + layers <= self.limits.tracks as usize,
            "the control plane opens no more layers than the plan has"
        );
        let rids = if open.layers.is_empty() { &[Box::default()][..] } else { &open.layers };
        let index = self.tracks.insert(Track {
            id: open.track,
            source,
            peers: Vec::new(),
            exports: Vec::new(),
            mid: open.mid.clone(),
            layers: rids.iter().map(|rid| Layer::new(rid, open)).collect(),
            ranks: LayerRanks::new(layers, &open.order),
            subscribers: Vec::new(),
            fresh: Vec::with_capacity(FRESH_MAX),
            tap: None,
            levels: (open.kind == MediaKind::Audio && matches!(source, Source::Transport(_))).then(AudioLevels::new),
            spoke_at: Time::ZERO,
            packets_reported: 0,
            is_bound_anew: false,
            tells_left: LAYERS_TOLD_AT_ONCE,
        });
        self.track_ids.insert(open.track, index);
        index
    }

    fn close_track(&mut self, id: TrackId) {
        let Some(&index) = self.track_ids.get(&id) else { return };
        if let Source::Transport(transport) = self.tracks[index].source {
            let transport = &mut self.transports[transport];
            transport.tracks.retain(|t| *t != index);
            if let Some(keys) = &mut transport.keys {
                for stream in transport.streams.iter().filter(|stream| stream.track == index) {
                    keys.receiver.forget(stream.ssrc);
                }
            }
            transport.streams.retain(|stream| stream.track != index);
        }
        self.forget_track(id, index);
    }

    /// Takes a track out of everything but its transport.
    fn forget_track(&mut self, id: TrackId, index: usize) {
        let mut track = self.tracks.remove(index);
        track.layers.iter_mut().for_each(|layer| layer.inbound.close(&mut self.pool));
        self.track_ids.remove(&id);
        self.touched.retain(|t| *t != index);
        self.tapped.retain(|(_, t, _, _)| *t != index);
        self.handed.retain(|(t, _)| *t != index);
        self.told.retain(|(t, _)| *t != index);
        self.mirrors -= usize::from(track.is_mirror());
        self.remotes -= usize::from(matches!(track.source, Source::Link(..)));
        let source = if let Source::Link(end, _) = &track.source { Some(end.link) } else { None };
        self.links.forget_track(index, track.exports.iter().map(|export| export.link).chain(source));
        self.crossing.retain(|t| *t != index);
        for subscriber in track.subscribers {
            let subscription = &mut self.subscriptions[subscriber];
            subscription.track = None;
            subscription.outbound.switch_source(None, &[]);
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
            wish: LayerWish::default(),
            // Where there is little, a new section begins with little.
            granted: Some(transport.downstream.allowance.limit().map_or(Grant::ALL, |_| Grant::LEAST)),
            packets_reported: 0,
            state_reported: (false, 0, 0),
            reported: None,
            is_dirty: false,
            is_repairing: false,
            catch_up: None,
        });
        transport.subscriptions.push(index);
        transport.dirty.reserve(transport.subscriptions.len() - transport.dirty.len());
        if matches!(transport.endpoint, Endpoint::Ice(_)) {
            let place = transport.sections.partition_point(|(ssrc, _)| *ssrc < open.ssrc);
            transport.sections.insert(place, (open.ssrc, index as u32));
        }
        self.subscription_ids.insert(open.subscription, index);
    }

    fn close_subscription(&mut self, id: SubscriptionId) {
        let Some(&index) = self.subscription_ids.get(&id) else { return };
        let transport = self.transports[self.subscriptions[index].transport].id;
        self.say_goodbye(transport, Some(index));
        let transport = &mut self.transports[self.subscriptions[index].transport];
        if let Some(at) = transport.subscriptions.iter().position(|s| *s == index) {
            transport.subscriptions.remove(at);
            transport.report_from = transport.report_from.map(|from| from - usize::from(at < from));
        }
        transport.sections.retain(|(_, s)| *s as usize != index);
        transport.dirty.retain(|s| *s != index);
        transport.downstream.close_section(&self.subscriptions[index].outbound.stats());
        self.forget_subscription(id, index);
    }

    /// Takes a subscription out of everything but its transport.
    fn forget_subscription(&mut self, id: SubscriptionId, index: usize) {
        let subscription = self.subscriptions.remove(index);
        self.subscription_ids.remove(&id);
        if subscription.is_repairing {
            self.repairing.retain(|s| *s != index);
        }
        if subscription.catch_up.is_some() {
            self.catch_ups.forget(index);
        }
        if let Some(track) = subscription.track {
            self.leave_track(track, index);
        }
    }

    /// A section takes a track no longer.
    fn leave_track(&mut self, track: usize, subscription: usize) {
        self.tracks[track].subscribers.retain(|s| *s != subscription);
        // What crosses for nobody is told off at the next tick; of a publisher here nobody is in a hurry.
        if !matches!(self.tracks[track].source, Source::Transport(_)) {
            self.review_layers(track);
        }
    }

    fn forward(&mut self, id: SubscriptionId, track: Option<TrackId>, payload_types: &[PayloadTypeMap]) {
        let Some(&index) = self.subscription_ids.get(&id) else { return };
        let track = track.and_then(|t| self.track_ids.get(&t).copied());
        let subscription = &mut self.subscriptions[index];
        let before = subscription.track.take();
        if subscription.catch_up.take().is_some() {
            self.catch_ups.forget(index);
        }
        // What the track before brought in this turn is not its business any more.
        if std::mem::take(&mut subscription.is_dirty) {
            self.transports[subscription.transport].dirty.retain(|s| *s != index);
        }
        if let Some(before) = before {
            self.leave_track(before, index);
        }
        let subscription = &mut self.subscriptions[index];
        subscription.track = track;
        subscription.outbound.switch_source(track.map(|_| 0), payload_types);
        if let Some(track) = track {
            let track = &mut self.tracks[track];
            track.subscribers.push(index);
            give_layer(track, subscription);
            let transport = subscription.transport;
            self.share_soon(transport);
        }
    }

    /// Does what time asks for.
    pub fn handle_timeout(&mut self, now: Time) {
        self.time_links(now);
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.failed_checks = 0;
        self.tick = (self.tick + 1) % TICKS_PER_ROUND;
        for index in (self.tick..self.tracks.capacity()).step_by(TICKS_PER_ROUND) {
            self.review_layers(index);
            self.measure_inside(now, index);
        }
        for (_, track) in &mut self.tracks {
            if track.ranks.handle_timeout(now) {
                follow_layers(track, &mut self.subscriptions);
            }
            if let Some(levels) = &mut track.levels
                && has_room(&self.events)
                && let Some(Loudness { level, active_percent }) = levels.poll(now)
            {
                self.events.push_back(Event::AudioLevel { track: track.id, level, active_percent });
            }
            begin_catch_ups(now, track, &mut self.transports, &mut self.subscriptions, &mut self.catch_ups);
            for layer in &mut track.layers {
                layer.inbound.expire(&mut self.pool, now);
                if layer.inbound.nack_due(now) || layer.inbound.pli_due(now) {
                    // What a track from elsewhere waits for is asked of its other end.
                    if let Source::Transport(transport) = track.source {
                        mark_reporting(&mut self.transports, &mut self.reporting, transport);
                    }
                }
            }
        }
        self.tell_layers();
        for at in 0..self.crossing.len() {
            self.tell_ends(now, self.crossing[at]);
        }
        self.break_overdue_catch_ups(now);
        self.catch_ups.begin_tick();
        self.mark_due(now);
        for index in (self.tick..self.transports.capacity()).step_by(TICKS_PER_ROUND) {
            if self.transports.contains(index) {
                self.look_after(now, index);
            }
        }
        self.share_bandwidth(now);
        self.choose_all_cameras();
        self.review_all_ways(now);
        self.fit_links(now);
        self.report_stats();
        self.report_links();
    }

    /// Lets those write RTCP who have another page to tell, or whose congestion feedback is due.
    fn mark_due(&mut self, now: Time) {
        let Core { transports, reporting, paging, measuring, .. } = self;
        for index in paging.drain(..) {
            transports[index].report_due |= transports[index].report_from.is_some();
            mark_reporting(transports, reporting, index);
        }
        measuring.retain(|&index| {
            let transport = &mut transports[index];
            let feedback = transport.twcc.as_ref().and_then(|twcc| twcc.poll_timeout());
            let estimate = transport.remb.as_ref().and_then(RembEstimator::poll_timeout);
            let due = feedback.into_iter().chain(estimate).min();
            transport.is_measuring = due.is_some();
            if due.is_some_and(|at| at <= now) {
                mark_reporting(transports, reporting, index);
            }
            due.is_some()
        });
    }

    /// The once-a-second work of one transport.
    fn look_after(&mut self, now: Time, index: usize) {
        let transport = &mut self.transports[index];
        if transport.id.0 == SELF_TEST {
            // It stays although nothing came while the node stood still, and wants no reports.
            return;
        }
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
        transport.data_budget = DATA_PER_SECOND_MAX;
        let Some(keys) = &transport.keys else { return };
        if keys.sender.is_exhausted() || transport.subscriptions.iter().any(|s| self.subscriptions[*s].outbound.is_exhausted()) {
            let id = transport.id;
            self.close_transport(id);
            self.events.push_back(Event::TransportLost { transport: id, loss: TransportLoss::KeyExhausted });
            return;
        }
        (transport.report_due, transport.report_from) = (true, Some(0));
        for subscription in &transport.subscriptions {
            let subscription = &self.subscriptions[*subscription];
            // Its keyframe may have come and been dropped on the way out: a client that never got a packet asks for none.
            if let (Some(track), Some(layer)) = (subscription.track, subscription.outbound.wants_keyframe()) {
                request_wanted(&subscription.outbound, &mut self.tracks[track].layers[layer].inbound);
            }
        }
        self.judge_bandwidth(now, index);
        mark_reporting(&mut self.transports, &mut self.reporting, index);
    }

    /// Tells the figures of a hundredth of the tracks and sections, those that changed: each once a second, and no tick brings more
    /// than [`STATS_PER_TICK_MAX`] of either. What finds no room goes first in the next tick, so that all are told in turn.
    fn report_stats(&mut self) {
        let Core { transports, tracks, subscriptions, events, limits, .. } = self;
        self.track_stats.walk(limits.tracks as usize, |at| {
            let Some(track) = tracks.get_mut(at).filter(|track| matches!(track.source, Source::Transport(_))) else { return Told::Nothing };
            let stats = track.stats();
            if stats.packets == track.packets_reported || track.id.0 == SELF_TEST {
                return Told::Nothing;
            }
            let told = push_figures(events, Event::TrackStats { track: track.id, stats });
            track.packets_reported = if told == Told::Event { stats.packets } else { track.packets_reported };
            told
        });
        self.subscription_stats.walk(limits.subscriptions as usize, |at| {
            let Some(subscription) = subscriptions.get_mut(at) else { return Told::Nothing };
            let stats = subscription.stats(subscription.track.map(|track| &tracks[track]));
            let state = (stats.congested, stats.layer, stats.temporal);
            let is_as_told = stats.packets == subscription.packets_reported && state == subscription.state_reported;
            if is_as_told || subscription.id.0 == SELF_TEST {
                return Told::Nothing;
            }
            let Tally { received, lost } = transports[subscription.transport].downstream.feedback;
            let stats = SubscriptionStats { transport_received: received, transport_lost: lost, ..stats };
            let told = push_figures(events, Event::SubscriptionStats { subscription: subscription.id, stats });
            if told == Told::Event {
                (subscription.packets_reported, subscription.state_reported) = (stats.packets, state);
            }
            told
        });
    }

    /// When [`Core::handle_timeout`] wants to be called; `None` while there is nobody.
    pub fn poll_timeout(&self) -> Option<Time> {
        let tick = (!self.is_idle()).then_some(self.next_tick);
        tick.into_iter().chain(self.links.poll_timeout()).min()
    }

    /// The next event for the control plane.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next packet that a tap wants.
    pub fn poll_tap(&mut self) -> Option<Tapped<'_>> {
        while let Some((tap, track, Fresh { layer, sequence, .. }, at)) = self.tapped.pop_front() {
            if let Lookup::Held(stored) = self.tracks[track].layers[layer].inbound.history().lookup(&self.pool, sequence) {
                return Some(Tapped { tap, at, packet: stored.packet });
            }
            self.drops[DropReason::TapQueueFull as usize] += 1;
        }
        None
    }
}

/// Figures may wait; a DTLS datagram or a loss may not.
fn has_room(events: &VecDeque<Event>) -> bool {
    events.len() < crate::limits::EVENTS_MAX / 4
}

fn push_figures(events: &mut VecDeque<Event>, event: Event) -> Told {
    if !has_room(events) {
        return Told::Full;
    }
    events.push_back(event);
    Told::Event
}

/// What became of one place of a [`Walk`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Event,
    Full,
}

/// A walk over a slab that takes a second, a hundredth each tick.
#[derive(Default)]
struct Walk {
    next: usize,
}

impl Walk {
    /// Looks at the places of one tick.
    fn walk(&mut self, places: usize, mut tell: impl FnMut(usize) -> Told) {
        let per_tick = places.div_ceil(TICKS_PER_ROUND);
        let mut events = 0;
        for _ in 0..per_tick {
            if events == STATS_PER_TICK_MAX {
                return;
            }
            match tell(self.next) {
                Told::Nothing => {}
                Told::Event => events += 1,
                Told::Full => return,
            }
            self.next = (self.next + 1) % (per_tick * TICKS_PER_ROUND);
        }
    }
}

/// Puts a transport on the list of those that RTCP is written to, once.
fn mark_reporting(transports: &mut Slab<Transport>, reporting: &mut VecDeque<usize>, index: usize) {
    if !std::mem::replace(&mut transports[index].is_reporting, true) {
        reporting.push_back(index);
    }
}

#[cfg(test)]
mod tests {
    use pop_proto::control::{IceCredentials, MasterKey, SrtpProfile};

    use super::*;

    #[test]
    fn a_transport_whose_key_is_used_up_ends() {
        let mut core = Core::new(WorkerLimits { packets: 16, ..WorkerLimits::default() }, Duration::from_secs(15));
        core.handle_command(
            Time::ZERO,
            Command::OpenTransport(Box::new(OpenTransport {
                transport: TransportId(1),
                ice: IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() },
                extensions: ExtensionIds::NONE,
                transport_cc: false,
                remb: false,
                reduced_size_rtcp: true,
                rtcp_ssrc: 1,
                cname: "c".into(),
            })),
        );
        let key = MasterKey { key: [1; 32], salt: [2; 14] };
        let keys = SrtpKeys { profile: SrtpProfile::AeadAes128Gcm, local: key.clone(), remote: key };
        core.handle_command(Time::ZERO, Command::InstallKeys { transport: TransportId(1), keys: Box::new(keys) });
        let pass_a_second = |core: &mut Core, from: u64| {
            (0..101).for_each(|tick| core.handle_timeout(Time::from_millis(from + tick * 10)));
            core.poll_event()
        };
        assert!(pass_a_second(&mut core, 10).is_none());
        let Some(Keys { sender: Sender::Srtp(sender), .. }) = &mut core.transports[0].keys else { panic!("keys were installed") };
        sender.rtcp_index = 1 << 31;
        let event = pass_a_second(&mut core, 2_000);
        assert!(matches!(event, Some(Event::TransportLost { loss: TransportLoss::KeyExhausted, .. })), "{event:?}");
        assert_eq!(core.gauges(), Gauges::default());
    }
}
