//! Links to workers of other nodes: tracks that come over them, tracks that go over them, and what the two ends tell each other of both.
//!
//! ```text
//! origin:    store_rtp -> dirty links --> poll_link_media: one train per link and turn           +-- Ask: wanted layers, keyframes
//!            tick: Clock, state of layers --> poll_links, and repairs from the track's history   |
//! receiver:  handle_link_datagrams -> store_rtp -> fan-out, repairs, mirrors on other workers    tick: Ask --> poll_links
//! ```
//! A packet crosses a link once per layer that somebody behind it wants. What is told is told again each second while it matters: a link
//! loses. Sealing, numbering, repair and the path's MTU are [`pop_relay::link`]'s; what goes through a third node is `transit.rs`'s.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

use pop_proto::audio_level::SILENT_LEVEL;
use pop_proto::control::{
    ExtensionIds, LAYERS_MAX, LinkId, LinkKeys, LinkStats, LinkWay, MediaKind, OpenLink, OpenTrack, Path, PathStats, SELF_TEST,
    SessionBound, WaysInUse,
};
use pop_proto::group::HOLE_PATIENCE;
use pop_proto::header::CopiedElements;
use pop_proto::history::{Lookup, Meta, SLOT_LEN, Stored};
use pop_proto::layers::LayerState;
use pop_proto::loudest::Loudest;
use pop_proto::sequence::{SequenceUnwrapper, extend_sequence};
use pop_proto::wire::rtp;
use pop_proto::{DropReason, Event};
use pop_relay::RelayDrop;
use pop_relay::frame::{OVERHEAD, TAG_LEN, association_of};
use pop_relay::link::{self as relay, Ask, Bundle, Clock, FrameRef, Incoming, Link, LinkConfig, Media, Way};
use pop_schemas::{NodeId, Time, TrackId};
use slab::Slab;

use super::mirror::elsewhere;
use super::pacer::{PACER_LEN, Pacer};
use super::transit::{Transits, Written};
use super::transmit::{Train, Transmit};
use super::{Core, Fresh, Layer, Source, Stream, TICKS_PER_ROUND, Track, has_room};
use crate::counters::Counters;
use crate::limits::FRESH_MAX;

/// A layer of which nothing came for so long was not wanted meanwhile, and its numbers went on: the next one is ahead, however far. No
/// repair is so late.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// From this version on a node knows of datagrams that others carry.
const TRANSIT_VERSION: u8 = 1;

/// Links that are missing are told of so often in a tick.
const MISSING_TOLD_MAX: u8 = 8;

/// What waits to be told over one link at most. It is told again within a second.
const TOLD_MAX: usize = 1_024;

/// Of what a link carries so much is shared by audio and layers of video, in percent: the rest is for repairs, heads and what is told.
const SHARED_PERCENT: u64 = 90;
/// A layer that does not cross comes back when there is room for this much of it, in percent: bitrates vary with the picture.
const BACK_PERCENT: u64 = 115;

/// Bytes of one link's state, for the memory plan.
pub const LINK_LEN: usize = size_of::<LinkState>() + Link::MEMORY_LEN + size_of::<Link>() + PACER_LEN + TOLD_MAX * size_of::<LinkTold>();
/// Bytes of what goes through a third node, for the memory plan.
pub const TRANSIT_LEN: usize = Transits::MEMORY_LEN;
/// Bytes that all links share, of each worker as if it were the only one, for the memory plan.
pub const PARITY_LEN: usize = Link::SHARED_MEMORY_LEN;
/// Bytes of one track on one link, for the memory plan: its places in the lists of both, and those among the loudest of a session that has
/// no other track.
pub const LINK_TRACK_LEN: usize =
    2 * (size_of::<LinkEnd>() + size_of::<(u16, usize)>() + 2 * size_of::<usize>() + size_of::<Stage>()) + Loudest::MEMORY_LEN_PER_TRACK;

/// A track's other end on another node.
#[derive(Clone, Copy)]
pub(super) struct LinkEnd {
    /// Place of the link.
    pub(super) link: usize,
    /// The track's name on it.
    alias: u16,
    /// The layers that are wanted, as was told last.
    pub(super) wanted: u8,
    /// Of a track that goes over the link: the same, whether or not the track crosses. `wanted` is nothing while it does not.
    pub(super) asked: u8,
    /// Layers of this rank, counted from the lowest quality, and above do not fit on the link.
    fits: u8,
    /// The same while that is chosen.
    next_fits: u8,
    /// Something came of the track in this second.
    pub(super) came: bool,
    /// In its link's `dirty`.
    is_dirty: bool,
    /// It is one of these; `None`: it always crosses.
    stage: Option<u32>,
    /// See [`Loudest::takes`].
    louder: u8,
    /// Its packets have told how loud they are.
    has_levels: bool,
    /// It does not cross now, since others of its session do.
    is_held: bool,
    /// The next packet that crosses begins the layer anew.
    must_return: bool,
    /// How often it has begun to cross again, modulo 256. The other end takes each for a beginning of the layer, and what did not cross
    /// neither for lost nor for late.
    returns: u8,
    /// The layer's epoch and the first packet since: what comes late of before is of no use.
    returned_at: (u16, u64),
}

/// See [`LinkEnd::fits`].
const ALL: u8 = LAYERS_MAX as u8;

impl LinkEnd {
    fn new(link: usize, alias: u16) -> LinkEnd {
        LinkEnd {
            link,
            alias,
            wanted: 0,
            asked: 0,
            fits: ALL,
            next_fits: ALL,
            came: false,
            is_dirty: false,
            stage: None,
            louder: 0,
            has_levels: false,
            is_held: false,
            must_return: false,
            returns: 0,
            returned_at: (0, 0),
        }
    }

    /// How often a layer has begun anew for the other end.
    fn epoch_of(&self, layer: &Layer) -> u8 {
        (layer.epoch as u8).wrapping_add(self.returns)
    }

    /// Whether a packet of audio crosses, where not all of a session do. `at`: its layer's epoch and its number.
    fn takes(&mut self, now: Time, stages: &mut Slab<Stage>, track: usize, at: (u16, u64), stored: &Stored<'_>) -> bool {
        let Some(Stage { loudest, .. }) = self.stage.and_then(|stage| stages.get_mut(stage as usize)) else { return true };
        let level = stored.meta.elements.audio_level(stored.packet).map(|level| level & 0x7f);
        self.has_levels |= level.is_some();
        let takes = match level {
            // What comes late tells nothing of now.
            _ if stored.meta.repeated => !self.must_return && (loudest.has(track) || !self.has_levels),
            None if !self.has_levels => true,
            level => loudest.takes(now, track, level.unwrap_or(SILENT_LEVEL), &mut self.louder),
        };
        self.is_held = !takes;
        self.must_return |= !takes;
        takes && (self.must_return || at.0 != self.returned_at.0 || at >= self.returned_at)
    }

    /// A packet crosses; true when it begins the layer anew for the other end.
    fn cross(&mut self, at: (u16, u64)) -> bool {
        let returns = std::mem::take(&mut self.must_return);
        if returns {
            (self.returns, self.returned_at) = (self.returns.wrapping_add(1), at);
        }
        returns
    }
}

/// The microphones, or the cameras, of a session of which not all cross a link.
struct Stage {
    session: u32,
    kind: MediaKind,
    max: u8,
    tracks: Vec<usize>,
    /// Of microphones.
    loudest: Loudest,
}

/// What of a track is to be told to its other end.
#[derive(Clone, Copy)]
pub(super) struct LinkTold {
    pub(super) track: usize,
    pub(super) what: What,
}

/// See [`LinkTold`].
#[derive(Clone, Copy)]
pub(super) enum What {
    /// What is wanted of it.
    Ask { wanted: u8, keyframes: u8 },
    /// The clock of a layer, whether it comes, its rank.
    Layer(u8),
}

pub(super) struct LinkState {
    pub(super) id: LinkId,
    /// This node, and the one at the other end.
    pub(super) own: NodeId,
    pub(super) node: NodeId,
    /// Out only while a datagram of it is read.
    pub(super) link: Option<Box<Link>>,
    pub(super) path: Path,
    /// The other node knows of datagrams that others carry.
    pub(super) carries: bool,
    /// How its datagrams are to go, and how where that cannot be.
    pub(super) way: LinkWay,
    pub(super) backup: Option<LinkWay>,
    /// What of these can be.
    pub(super) routed: (Way, Option<Way>),
    /// Tracks that come over it, by alias.
    incoming: Vec<(u16, usize)>,
    /// Tracks that go over it, by alias.
    outgoing: Vec<(u16, usize)>,
    told: VecDeque<LinkTold>,
    /// Tracks of which the other end wants packets of this turn: of audio, of video.
    dirty: [Vec<usize>; 2],
    is_dirty: bool,
    is_urgent: bool,
    pub(super) pacer: Pacer,
    /// What it carries, as the layers that cross were chosen by; `None`: all of them.
    limit: Option<u64>,
    /// Packets that did not leave for that.
    congested: u64,
    stages: Slab<Stage>,
}

impl LinkState {
    pub(super) fn link(&mut self) -> &mut Link {
        self.link.as_mut().expect("it is out only while a datagram of it is read")
    }

    /// Room for what the tracks that cross have to be told in a turn, and for those in it.
    fn make_room(&mut self) {
        let most = (2 * LAYERS_MAX * (self.incoming.len() + self.outgoing.len())).min(TOLD_MAX);
        self.told.reserve(most.saturating_sub(self.told.len()));
        let tracks = self.outgoing.len();
        self.dirty.iter_mut().for_each(|dirty| dirty.reserve(tracks.saturating_sub(dirty.len())));
    }

    /// A track crosses if it is among those of its session that do.
    fn enter_stage(&mut self, track: usize, kind: MediaKind, of: SessionBound) -> u32 {
        let SessionBound { session, max } = of;
        let known = self.stages.iter().find(|(_, stage)| (stage.session, stage.kind) == (session, kind)).map(|(at, _)| at);
        let new = || Stage { session, kind, max, tracks: Vec::new(), loudest: Loudest::new(max) };
        let at = known.unwrap_or_else(|| self.stages.insert(new()));
        let stage = &mut self.stages[at];
        stage.tracks.push(track);
        if kind == MediaKind::Audio {
            stage.loudest.make_room(stage.tracks.len());
        }
        at as u32
    }

    /// Nothing of a track goes over it any more.
    fn forget(&mut self, track: usize) {
        self.outgoing.retain(|(_, t)| *t != track);
        self.told.retain(|told| told.track != track);
        self.dirty.iter_mut().for_each(|dirty| dirty.retain(|t| *t != track));
        self.stages.retain(|_, stage| {
            stage.tracks.retain(|t| *t != track);
            stage.loudest.leave(track);
            !stage.tracks.is_empty()
        });
    }
}

/// The track that has this alias.
fn find(tracks: &[(u16, usize)], alias: u16) -> Option<usize> {
    tracks.binary_search_by_key(&alias, |(alias, _)| *alias).ok().map(|at| tracks[at].1)
}

/// Gives a track an alias; returns the one that had it.
fn name(tracks: &mut Vec<(u16, usize)>, alias: u16, track: usize) -> Option<usize> {
    match tracks.binary_search_by_key(&alias, |(alias, _)| *alias) {
        Ok(at) => Some(std::mem::replace(&mut tracks[at].1, track)).filter(|before| *before != track),
        Err(at) => {
            tracks.insert(at, (alias, track));
            None
        }
    }
}

/// Where the drain of this turn's packets for links stands.
#[derive(Clone, Copy, Default)]
struct Cursor {
    link: usize,
    /// 0: audio, 1: video.
    kind: usize,
    track: usize,
    fresh: usize,
}

/// All links of a worker.
pub(super) struct Links {
    pub(super) slab: Slab<LinkState>,
    pub(super) ids: HashMap<LinkId, usize>,
    /// Our numbers of the nodes.
    pub(super) numbers: HashMap<NodeId, u8>,
    pub(super) transits: Transits,
    /// Whether each relay socket is of IPv6; the first of them has the number `first_socket`.
    sockets: Vec<bool>,
    first_socket: u16,
    /// Links that may have something to say besides media.
    urgent: VecDeque<usize>,
    /// How often a link that is missing was told of in this tick.
    missing_told: u8,
    /// Nodes that were heard since that was asked: a bit for each number.
    heard: [u64; 4],
    /// Links that get packets of this turn.
    dirty: Vec<usize>,
    cursor: Cursor,
    /// A link has a pacer that is armed.
    is_paced: bool,
}

impl Links {
    pub(super) fn with_capacity(links: usize) -> Links {
        Links {
            slab: Slab::with_capacity(links),
            ids: HashMap::with_capacity(links),
            numbers: HashMap::with_capacity(links),
            transits: Transits::new(links > 0),
            sockets: Vec::new(),
            first_socket: 0,
            urgent: VecDeque::with_capacity(links),
            missing_told: 0,
            heard: [0; 4],
            dirty: Vec::with_capacity(links),
            cursor: Cursor::default(),
            is_paced: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether datagrams of this socket are links'.
    #[inline]
    pub(super) fn has_socket(&self, socket: u16) -> bool {
        usize::from(socket.wrapping_sub(self.first_socket)) < self.sockets.len()
    }

    /// The next thing that time brings.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let due =
            |state: &LinkState| state.link.as_ref().map(|link| link.poll_timeout()).into_iter().chain(state.pacer.poll_timeout()).min();
        self.slab.iter().filter_map(|(_, state)| due(state)).min()
    }

    /// Lets a link tell the other end.
    pub(super) fn tell(&mut self, link: usize, told: LinkTold) {
        let queue = &mut self.slab[link].told;
        if queue.len() < queue.capacity() {
            queue.push_back(told);
        }
        self.mark_urgent(link);
    }

    /// How long what is missing of a stream over a link may still come.
    pub(super) fn patience(&self, link: usize) -> std::time::Duration {
        let repaired = self.slab.get(link).and_then(|state| state.link.as_ref()?.repairs_within());
        repaired.unwrap_or_default().max(HOLE_PATIENCE)
    }

    pub(super) fn mark_urgent(&mut self, link: usize) {
        if !std::mem::replace(&mut self.slab[link].is_urgent, true) {
            self.urgent.push_back(link);
        }
    }

    /// A track has packets of this turn: they go where they are wanted.
    #[inline]
    pub(super) fn mark_dirty(&mut self, track: usize, kind: MediaKind, exports: &mut [LinkEnd]) {
        for export in exports.iter_mut().filter(|export| export.wanted != 0 && !export.is_dirty) {
            export.is_dirty = true;
            let state = &mut self.slab[export.link];
            state.dirty[usize::from(kind == MediaKind::Video)].push(track);
            if !std::mem::replace(&mut state.is_dirty, true) {
                self.dirty.push(export.link);
            }
        }
    }

    /// A track is gone.
    pub(super) fn forget_track(&mut self, track: usize, ends: impl Iterator<Item = usize>) {
        for end in ends {
            let state = &mut self.slab[end];
            state.incoming.retain(|(_, t)| *t != track);
            state.forget(track);
        }
    }
}

impl Core {
    /// Takes the sockets right behind the media port's as those of links; before the first datagram.
    pub fn set_relay_sockets(&mut self, addresses: &[SocketAddr]) {
        self.links.first_socket = self.media_sockets;
        self.links.sockets = addresses.iter().map(SocketAddr::is_ipv6).collect();
    }

    pub(super) fn open_link(&mut self, now: Time, open: &OpenLink) {
        // A worker without relay sockets has no links.
        let Links { sockets, first_socket, .. } = &self.links;
        let Some(own) = sockets.iter().position(|is_ipv6| *is_ipv6 == open.remote.is_ipv6()).or((!sockets.is_empty()).then_some(0)) else {
            return;
        };
        let path = Path { socket: first_socket + own as u16, remote: open.remote };
        // The other node has begun anew.
        self.close_link(open.link);
        assert!(self.links.len() < self.limits.links as usize, "the control plane opens no more links than the plan has");
        if self.is_idle() {
            self.next_tick = now + super::TICK;
        }
        let OpenLink { own, node, is_abroad, version, remote_link, generation, keys, playout, .. } = open;
        let LinkKeys { send, receive } = keys;
        let config = LinkConfig {
            version: *version,
            remote_association: remote_link.0,
            is_abroad: *is_abroad,
            measures: open.link.worker() == 0 && remote_link.worker() == 0,
            generation: *generation,
            send: *send,
            receive: *receive,
            playout: *playout,
        };
        let index = self.links.slab.insert(LinkState {
            id: open.link,
            own: *own,
            node: *node,
            link: Some(Box::new(Link::new(&config, now))),
            path,
            carries: *version >= TRANSIT_VERSION,
            way: LinkWay::Direct,
            backup: None,
            routed: (Way::Direct, None),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            told: VecDeque::new(),
            dirty: [Vec::new(), Vec::new()],
            is_dirty: false,
            is_urgent: false,
            pacer: Pacer::new(),
            limit: None,
            congested: 0,
            stages: Slab::new(),
        });
        self.links.ids.insert(open.link, index);
        self.links.numbers.insert(*node, open.link.node());
        self.links.mark_urgent(index);
    }

    pub(super) fn rekey_link(&mut self, now: Time, id: LinkId, generation: u32, keys: &LinkKeys) {
        let Some(&index) = self.links.ids.get(&id) else { return };
        self.links.slab[index].link().rekey(now, generation, &keys.send, &keys.receive);
        self.links.mark_urgent(index);
    }

    /// Whether it has links: then it turns every 10 ms.
    pub fn has_links(&self) -> bool {
        self.links.len() > 0
    }

    /// Until now nothing left, and nothing that came was read: neither is a loss of a link.
    pub fn stood_still(&mut self, now: Time) {
        self.links.slab.iter_mut().for_each(|(_, state)| state.link().stood_still(now));
    }

    /// The number of a node of which something authentic came since the last call that named it.
    pub fn poll_heard(&mut self) -> Option<u8> {
        let word = self.links.heard.iter().position(|bits| *bits != 0)?;
        let bit = self.links.heard[word].trailing_zeros();
        self.links.heard[word] &= !(1 << bit);
        Some((64 * word as u32 + bit) as u8)
    }

    /// What came over the link ends, what went over it stops.
    pub(super) fn close_link(&mut self, id: LinkId) {
        let Some(index) = self.links.ids.remove(&id) else { return };
        for (_, track) in std::mem::take(&mut self.links.slab[index].incoming) {
            let id = self.tracks[track].id;
            self.forget_track(id, track);
        }
        for (_, track) in std::mem::take(&mut self.links.slab[index].outgoing) {
            self.tracks[track].exports.retain(|export| export.link != index);
            self.look_at_ends(track);
            self.review_layers(track);
        }
        self.links.urgent.retain(|link| *link != index);
        self.links.dirty.retain(|link| *link != index);
        self.links.transits.forget(index);
        let node = self.links.slab.remove(index).node;
        if self.links.slab.iter().all(|(_, state)| state.node != node) {
            self.links.numbers.remove(&node);
        }
    }

    pub(super) fn open_remote_track(&mut self, open: &OpenTrack, extensions: ExtensionIds, link: LinkId, alias: u16) {
        let Some(&link) = self.links.ids.get(&link) else { return };
        if open.track.0 == SELF_TEST {
            // What another node names so is none of its people's: it would take the place of this worker's own.
            return;
        }
        // Offered anew, or its alias was another's.
        self.close_track(open.track);
        if let Some(before) = find(&self.links.slab[link].incoming, alias) {
            let id = self.tracks[before].id;
            self.forget_track(id, before);
        }
        let end = LinkEnd::new(link, alias);
        // What is missing is noted, to ask for a picture where it comes no more.
        let open = OpenTrack { nack: true, ..elsewhere(open) };
        let index = self.insert_track(&open, Source::Link(end, extensions));
        // Nothing is wanted before there is a subscriber.
        self.tracks[index].layers.iter_mut().for_each(|layer| layer.inbound.set_wanted(false));
        self.crossing.push(index);
        self.remotes += 1;
        name(&mut self.links.slab[link].incoming, alias, index);
        self.links.slab[link].make_room();
    }

    pub(super) fn export_to_link(&mut self, id: TrackId, link: LinkId, alias: u16, bound: Option<SessionBound>, on: bool) {
        let (Some(&index), Some(&at)) = (self.track_ids.get(&id), self.links.ids.get(&link)) else { return };
        // A packet never goes back where it came from.
        if let Source::Link(end, _) = &self.tracks[index].source
            && self.links.slab[end.link].id.node() == link.node()
        {
            return;
        }
        let state = &mut self.links.slab[at];
        state.forget(index);
        // The other end may go on with what it has of it.
        let returns = self.tracks[index].exports.iter().find(|export| export.link == at).map_or(0, |export| export.returns);
        self.tracks[index].exports.retain(|export| export.link != at);
        if on {
            if let Some(before) = name(&mut state.outgoing, alias, index) {
                state.forget(before);
                self.tracks[before].exports.retain(|export| export.link != at);
                self.look_at_ends(before);
                self.review_layers(before);
            }
            self.links.slab[at].make_room();
            let kind = self.tracks[index].layers[0].inbound.kind();
            let stage = bound.map(|of| self.links.slab[at].enter_stage(index, kind, of));
            // Nothing, until the other end asks.
            self.tracks[index].exports.push(LinkEnd { stage, returns, ..LinkEnd::new(at, alias) });
        }
        self.look_at_ends(index);
        self.review_layers(index);
    }

    /// Takes what came at a relay socket.
    pub(super) fn handle_link_datagrams<'a>(&mut self, now: Time, datagrams: impl Iterator<Item = &'a mut [u8]>) {
        for datagram in datagrams {
            if let Err(reason) = self.handle_link_datagram(now, datagram) {
                self.count_drops(reason, 1);
            }
        }
    }

    fn handle_link_datagram(&mut self, now: Time, datagram: &mut [u8]) -> Result<(), DropReason> {
        let len = datagram.len() as u64;
        let arrived = self.open_link_datagram(now, datagram, Way::Direct, |counters| {
            counters.relay_datagrams_in += 1;
            counters.relay_bytes_in += len;
        })?;
        if let Some((carrier, inner)) = arrived {
            // As if it had come by itself; what is carried in it again was refused.
            self.open_link_datagram(now, &mut datagram[inner], Way::Via(carrier.0), |_| {})?;
        }
        Ok(())
    }

    /// Returns where in it the datagram of another link lies that has arrived here in it, and over which it has come.
    fn open_link_datagram(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        by: Way,
        count: impl FnOnce(&mut Counters),
    ) -> Result<Option<(LinkId, Range<usize>)>, DropReason> {
        let association = association_of(datagram).ok_or(DropReason::RelayMalformed)?;
        let Some(&index) = self.links.ids.get(&LinkId(association)) else {
            self.note_missing(Event::LinkMissing { link: LinkId(association) });
            return Err(DropReason::RelayUnknownLink);
        };
        let mut link = self.links.slab[index].link.take().expect("it is out only while a datagram of it is read");
        let result = self.read_link_datagram(now, index, &mut link, datagram, by, count);
        self.links.slab[index].link = Some(link);
        Ok(result?.map(|inner| (LinkId(association), inner)))
    }

    fn read_link_datagram(
        &mut self,
        now: Time,
        index: usize,
        link: &mut Link,
        datagram: &mut [u8],
        by: Way,
        count: impl FnOnce(&mut Counters),
    ) -> Result<Option<Range<usize>>, DropReason> {
        let len = datagram.len();
        let incoming = link.open_by(now, datagram, by).map_err(reason_of)?;
        count(&mut self.counters);
        let node = self.links.slab[index].id.node();
        self.links.heard[usize::from(node / 64)] |= 1 << (node % 64);
        // It may have brought something to answer: a hole, or what the other end misses.
        self.links.mark_urgent(index);
        let taken = match incoming {
            Incoming::Nothing => {
                let pacer = &mut self.links.slab[index].pacer;
                pacer.follow(link.pace());
                self.links.is_paced |= pacer.is_armed();
                Ok(())
            }
            Incoming::Transit(transit) => {
                let end = len - TAG_LEN;
                let inner = end - transit.datagram.len()..end;
                return self.take_transit(index, &transit).map(|arrived| arrived.then_some(inner));
            }
            Incoming::Media(media) => self.take_relayed(now, index, media),
            Incoming::Bundle(bundle) => self.take_bundle(now, index, bundle),
            Incoming::Ask(ask) => self.hear_ask(index, ask),
            Incoming::Clock(clock) => self.hear_clock(now, index, clock),
        };
        // With it there may be enough of what did not come.
        while let Some(recovered) = link.poll_recovered(now) {
            let taken = match recovered {
                Ok(Incoming::Media(media)) => self.take_relayed(now, index, media),
                Ok(Incoming::Bundle(bundle)) => self.take_bundle(now, index, bundle),
                // Half a packet.
                Ok(_) => Ok(()),
                Err(reason) => Err(reason_of(reason)),
            };
            if let Err(reason) = taken {
                self.count_drops(reason, 1);
            }
        }
        taken.map(|()| None)
    }

    /// Tells of a link that may have to be opened, of some in each tick: whoever sends garbage has no more of them.
    pub(super) fn note_missing(&mut self, event: Event) {
        if self.links.missing_told < MISSING_TOLD_MAX && has_room(&self.events) {
            self.links.missing_told += 1;
            self.events.push_back(event);
        }
    }

    fn take_bundle(&mut self, now: Time, link: usize, bundle: Bundle<'_>) -> Result<(), DropReason> {
        for media in bundle {
            if let Err(reason) = self.take_relayed(now, link, media) {
                self.count_drops(reason, 1);
            }
        }
        Ok(())
    }

    /// Takes a packet of a track that comes over a link: authentic, and not looked at yet.
    fn take_relayed(&mut self, now: Time, link: usize, media: Media<'_>) -> Result<(), DropReason> {
        let Media { alias, layer, epoch, payload } = media;
        let index = find(&self.links.slab[link].incoming, alias).ok_or(DropReason::UnknownStream)?;
        let track = &mut self.tracks[index];
        let Source::Link(end, extensions) = &mut track.source else { return Err(DropReason::UnknownStream) };
        end.came = true;
        let stream = Stream { ssrc: 0, track: index, layer: layer.into(), is_rtx: false };
        let of_track = track.layers.get_mut(stream.layer).ok_or(DropReason::UnknownStream)?;
        if payload.len() > SLOT_LEN {
            return Err(DropReason::TooLarge);
        }
        // A bundle may bring more than a datagram of a client can.
        if track.fresh.len().max(self.handed.len()).max(self.tapped.len()) >= FRESH_MAX {
            return Err(DropReason::RelayBurst);
        }
        let view = rtp::RtpView::parse(payload)?;
        let header_len = view.header_len();
        let sequence = view.sequence();
        let mut meta = Meta {
            timestamp: view.timestamp(),
            payload_type: view.payload_type(),
            marker: view.marker(),
            header_len: header_len as u16,
            elements: CopiedElements::find(&view, extensions),
            ..Meta::default()
        };
        meta.len = (header_len + rtp::payload(payload, header_len)?.len()) as u16;
        let ahead = epoch.wrapping_sub(of_track.epoch as u8).cast_signed();
        if ahead < 0 && of_track.inbound.packets() > 0 {
            // Of a stream that another took the place of.
            return Err(DropReason::TooOld);
        }
        let since = now.since(std::mem::replace(&mut of_track.came_at, now));
        if ahead != 0 {
            of_track.epoch = of_track.epoch.wrapping_add_signed(ahead.into());
            if of_track.inbound.packets() > 0 {
                self.restart_layer(index, stream.layer);
            }
        }
        let newest = self.tracks[index].layers[stream.layer].inbound.history().newest();
        let extended = match newest {
            None => SequenceUnwrapper::new().unwrap(sequence),
            Some(newest) if since >= SILENCE => newest + u64::from(sequence.wrapping_sub(newest as u16)),
            Some(newest) => extend_sequence(newest, sequence),
        };
        // Whatever is late was sent again by the publisher or over the link.
        meta.repeated = newest.is_some_and(|newest| extended < newest);
        self.take_rtp(now, stream, extended, payload, meta)
    }

    /// The other end wants something of a track that goes over the link.
    fn hear_ask(&mut self, link: usize, ask: Ask) -> Result<(), DropReason> {
        let index = find(&self.links.slab[link].outgoing, ask.alias).ok_or(DropReason::UnknownStream)?;
        let track = &mut self.tracks[index];
        let Some(export) = track.exports.iter_mut().find(|export| export.link == link) else { return Err(DropReason::UnknownStream) };
        let is_camera = track.layers[0].inbound.kind() == MediaKind::Video;
        let (before, stage) = (std::mem::replace(&mut export.asked, ask.wanted), export.stage.filter(|_| is_camera));
        if before == 0 {
            track.layers.iter_mut().for_each(Layer::forget_told);
        }
        if let Some(stage) = stage.filter(|_| (before == 0) != (ask.wanted == 0)) {
            self.choose_cameras(link, stage);
        }
        let track = &mut self.tracks[index];
        let export = track.export_to(link);
        let is_held = is_camera && export.is_held;
        let (wanted, keyframes) = if is_held { (0, 0) } else { (ask.wanted, ask.keyframes) };
        if std::mem::replace(&mut export.wanted, wanted) != wanted || before != ask.wanted {
            // Where not all fits it is chosen anew.
            self.links.slab[link].limit = None;
        }
        track.hear(wanted, keyframes);
        self.review_layers(index);
        Ok(())
    }

    /// Who publishes a track speaks.
    pub(super) fn note_speech(&mut self, now: Time, id: TrackId) {
        let Some(&index) = self.track_ids.get(&id) else { return };
        self.tracks[index].spoke_at = now;
        for at in 0..self.tracks[index].exports.len() {
            let LinkEnd { link, stage, .. } = self.tracks[index].exports[at];
            stage.into_iter().for_each(|stage| self.choose_cameras(link, stage));
        }
    }

    /// Chooses the cameras of a session that cross a link: of all that the other end asks for, those of who spoke last.
    fn choose_cameras(&mut self, link: usize, stage: u32) {
        let known = self.links.slab[link].stages.get_mut(stage as usize);
        let Some(Stage { tracks, max, kind: MediaKind::Video, .. }) = known else { return };
        let (mut tracks, max) = (std::mem::take(tracks), usize::from(*max));
        tracks.sort_unstable_by_key(|track| Reverse((self.tracks[*track].spoke_at, Reverse(*track))));
        let mut asked = 0;
        for &track in &tracks {
            self.hold(link, track, asked >= max);
            asked += usize::from(self.tracks[track].export_to(link).asked != 0);
        }
        self.links.slab[link].stages[stage as usize].tracks = tracks;
    }

    /// Once a second for each link: one that crossed may have gone.
    pub(super) fn choose_all_cameras(&mut self) {
        for link in (self.tick..self.links.slab.capacity()).step_by(TICKS_PER_ROUND) {
            let stages = self.links.slab.get(link).map_or(0, |state| state.stages.capacity());
            (0..stages).for_each(|stage| self.choose_cameras(link, stage as u32));
        }
    }

    /// A camera crosses no longer, or crosses again: then with a picture.
    fn hold(&mut self, link: usize, index: usize, is_held: bool) {
        let track = &mut self.tracks[index];
        let export = track.export_to(link);
        if std::mem::replace(&mut export.is_held, is_held) == is_held {
            return;
        }
        export.must_return = true;
        export.wanted = if is_held { 0 } else { export.asked };
        let wanted = export.wanted;
        track.layers.iter_mut().for_each(Layer::forget_told);
        track.hear(wanted, wanted);
        self.links.slab[link].limit = None;
        self.review_layers(index);
    }

    /// The other end tells of a layer of a track that comes over the link.
    fn hear_clock(&mut self, now: Time, link: usize, clock: Clock) -> Result<(), DropReason> {
        let index = find(&self.links.slab[link].incoming, clock.alias).ok_or(DropReason::UnknownStream)?;
        let layer = usize::from(clock.layer);
        let track = &mut self.tracks[index];
        let layers = track.layers.len();
        let of_track = track.layers.get_mut(layer).ok_or(DropReason::UnknownStream)?;
        if let Source::Link(end, _) = &mut track.source {
            end.came = true;
        }
        // Before its first sender report a publisher has no clock.
        if clock.ntp != 0 {
            let age = u64::try_from(clock.age.as_nanos()).unwrap_or(u64::MAX);
            let at = Time::from_nanos(now.as_nanos().saturating_sub(age));
            of_track.inbound.handle_sender_report(at, clock.ntp, clock.rtp_timestamp);
        }
        if clock.ended {
            self.end_layer(index, layer);
        }
        if layers > 1 {
            let state = LayerState { comes: !clock.paused && !clock.ended, rank: clock.rank, rate: u64::from(clock.rate_kbps) * 1_000 };
            self.hear_layer(now, index, layer, state);
        }
        Ok(())
    }

    /// What time brings of links, whatever the tick.
    pub(super) fn time_links(&mut self, now: Time) {
        let Links { slab, urgent, .. } = &mut self.links;
        for (index, state) in slab {
            let link = state.link();
            if link.poll_timeout() <= now {
                link.handle_timeout(now);
                if !std::mem::replace(&mut state.is_urgent, true) {
                    urgent.push_back(index);
                }
            }
        }
    }

    /// Tells the control plane of links, of each once a second.
    pub(super) fn report_links(&mut self) {
        for index in (self.tick..self.links.slab.capacity()).step_by(TICKS_PER_ROUND) {
            let Some(state) = self.links.slab.get_mut(index) else { continue };
            let link = state.id;
            if state.link().keys_used() {
                self.events.push_back(Event::LinkKeysUsed { link });
            }
            if has_room(&self.events) {
                let stats = LinkStats { congested: state.congested, ..stats_of(state.link()) };
                self.events.push_back(Event::LinkStats { link, stats });
            }
        }
    }

    /// Chooses the layers that cross each link which does not carry all of them: when that changes, and once a second.
    pub(super) fn fit_links(&mut self, now: Time) {
        let Core { tracks, links, tick, .. } = self;
        links.missing_told = 0;
        links.is_paced = links.slab.iter().any(|(_, state)| state.pacer.is_armed());
        for (index, state) in &mut links.slab {
            let limit = state.link().limit();
            if limit != state.limit || limit.is_some() && index % TICKS_PER_ROUND == *tick {
                state.limit = limit;
                let audio_parity = state.link().audio_parity_percent();
                fit(now, tracks, state, index, audio_parity);
            }
        }
    }

    /// What links have to say besides this turn's media: asks, clocks, repairs, feedback.
    pub(super) fn poll_links(&mut self, now: Time, train: &mut [u8]) -> Option<Written> {
        while let Some(&index) = self.links.urgent.front() {
            if let Some(len) = self.write_urgent(now, index, train) {
                let path = self.links.slab[index].path;
                return Some(Written { link: index, way: None, transmit: Transmit { path, len, segment: None } });
            }
            let state = &mut self.links.slab[index];
            if let Some((way, len)) = state.link().poll_by_way(now, train) {
                return Some(Written { link: index, way: Some(way), transmit: Transmit { path: state.path, len, segment: None } });
            }
            self.links.urgent.pop_front();
            self.links.slab[index].is_urgent = false;
        }
        None
    }

    fn write_urgent(&mut self, now: Time, index: usize, out: &mut [u8]) -> Option<usize> {
        let Core { tracks, links, pool, counters, drops, .. } = self;
        let state = &mut links.slab[index];
        let link = state.link.as_mut().expect("it is out only while a datagram of it is read");
        while let Some(LinkTold { track, what }) = state.told.pop_front() {
            let track = &tracks[track];
            let written = match (what, &track.source) {
                (What::Ask { wanted, keyframes }, Source::Link(end, _)) => {
                    link.write_ask(&Ask { alias: end.alias, wanted, keyframes }, out)
                }
                (What::Ask { .. }, _) => continue,
                (What::Layer(layer), _) => {
                    let Some(export) = track.exports.iter().find(|export| export.link == index) else { continue };
                    let of_track = &track.layers[usize::from(layer)].inbound;
                    let clock = of_track.clock();
                    let LayerState { comes, rank, rate } = track.ranks.state(layer.into());
                    let clock = Clock {
                        alias: export.alias,
                        layer,
                        ntp: clock.map_or(0, |clock| clock.ntp),
                        rtp_timestamp: clock.map_or(0, |clock| clock.rtp_timestamp),
                        age: clock.map_or_else(Default::default, |clock| now.since(clock.at)),
                        ended: of_track.is_ended(),
                        paused: !comes || rank >= export.fits || export.is_held,
                        rank,
                        rate_kbps: u32::try_from(rate / 1_000).unwrap_or(u32::MAX),
                    };
                    link.write_clock(&clock, out)
                }
            };
            match written {
                Ok(len) => return Some(len),
                Err(reason) => drops[reason_of(reason) as usize] += 1,
            }
        }
        while let Some(frame) = link.next_repair() {
            let track = find(&state.outgoing, frame.alias).map(|track| &tracks[track]);
            let held = track.and_then(|track| track.layer_over(index, frame.layer, frame.epoch));
            let waits = state.pacer.is_armed() && held.is_some_and(|layer| layer.inbound.kind() == MediaKind::Video);
            let written = match held.map(|layer| layer.inbound.history().lookup(pool, frame.sequence)) {
                // It has its turn before what is new of video.
                Some(Lookup::Held(stored)) if waits && state.pacer.push(frame, stored.packet.len(), true) => continue,
                Some(Lookup::Held(_)) if waits => Err(DropReason::RelayCongested),
                Some(Lookup::Held(stored)) => link.write_repair(now, &frame, stored.packet, out).map_err(reason_of),
                _ => Err(DropReason::RepairMissing),
            };
            match written {
                Ok(len) => {
                    counters.relay_repairs_out += 1;
                    state.pacer.spend(len);
                    return Some(len);
                }
                Err(reason) => drops[reason as usize] += 1,
            }
        }
        let parity = link.poll_parity(now, out);
        state.pacer.spend(parity.unwrap_or_default());
        parity.or_else(|| link.poll_transmit(now, out))
    }

    /// This turn's packets for links: small ones of audio share datagrams, those of video make one train per link.
    pub(super) fn poll_link_media(&mut self, now: Time, out: &mut [u8]) -> Option<Written> {
        let Core { tracks, links, pool, counters, drops, .. } = self;
        let Links { slab, dirty, cursor, .. } = links;
        while let Some(&index) = dirty.get(cursor.link) {
            let state = &mut slab[index];
            let link = state.link.as_mut().expect("it is out only while a datagram of it is read");
            let mut train = Train::new(out);
            let is_audio = cursor.kind == 0;
            while let Some(&at) = state.dirty[cursor.kind].get(cursor.track) {
                let track = &mut tracks[at];
                let export = track.exports.iter_mut().find(|export| export.link == index).expect("a dirty track is exported");
                while let Some(&Fresh { layer, sequence, .. }) = track.fresh.get(cursor.fresh) {
                    // Parity has a length of its own: first what is protected leaves, then all of it.
                    if link.parity_waits() {
                        if train.len == 0 {
                            write_parity(now, link, &mut train);
                            state.pacer.spend(train.len);
                        }
                        if let Some(transmit) = train.transmit(state.path) {
                            return Some(Written { link: index, way: None, transmit });
                        }
                    }
                    if export.wanted >> layer & 1 == 0 {
                        cursor.fresh += 1;
                        continue;
                    }
                    // Where not all fits, video gives way to audio.
                    if !is_audio && track.ranks.rank_of(layer) >= export.fits {
                        drops[DropReason::RelayCongested as usize] += 1;
                        state.congested += 1;
                        cursor.fresh += 1;
                        continue;
                    }
                    let of_track = &mut track.layers[layer];
                    // Evicted within its own turn: the pool is far too small.
                    let Lookup::Held(stored) = of_track.inbound.history().lookup(pool, sequence) else {
                        drops[DropReason::PoolEmpty as usize] += 1;
                        cursor.fresh += 1;
                        continue;
                    };
                    let number = (of_track.epoch, sequence);
                    if is_audio && !export.takes(now, &mut state.stages, at, number, &stored) {
                        drops[DropReason::RelayNotLoudest as usize] += 1;
                        cursor.fresh += 1;
                        continue;
                    }
                    if export.cross(number) {
                        // The clock begins anew with it.
                        of_track.forget_told();
                    }
                    let frame = FrameRef::new(export.alias, layer as u8, export.epoch_of(of_track), sequence);
                    let len = stored.packet.len();
                    if !is_audio && state.pacer.is_armed() {
                        if !state.pacer.push(frame, len, false) {
                            drops[DropReason::RelayCongested as usize] += 1;
                            state.congested += 1;
                        }
                        cursor.fresh += 1;
                        continue;
                    }
                    // What the path does not carry whole leaves as two halves, a train of their own.
                    let sealed = link.media_len(len);
                    if !is_audio && !train.takes_relayed(sealed, sealed == len + OVERHEAD) {
                        return Some(Written { link: index, way: None, transmit: train.transmit(state.path)? });
                    }
                    let written = match is_audio {
                        true => link.bundle_media(now, &frame, stored.packet, train.rest()),
                        false => link.write_media(now, &frame, stored.packet, train.rest()),
                    };
                    cursor.fresh += 1;
                    match written {
                        Ok(written) => {
                            counters.relay_packets_out += 1;
                            counters.relay_media_bytes_out += len as u64;
                            train.add(written.first);
                            train.add(written.second);
                        }
                        Err(reason) => drops[reason_of(reason) as usize] += 1,
                    }
                    // A full bundle is a datagram of its own length.
                    if is_audio && let Some(transmit) = train.transmit(state.path) {
                        state.pacer.spend(transmit.len);
                        return Some(Written { link: index, way: None, transmit });
                    }
                }
                export.is_dirty = false;
                cursor.fresh = 0;
                cursor.track += 1;
            }
            if is_audio {
                // The bundle that is not full.
                if let Some(len) = link.poll_transmit(now, train.rest()) {
                    train.add(len);
                    state.pacer.spend(len);
                    return Some(Written { link: index, way: None, transmit: train.transmit(state.path)? });
                }
                *cursor = Cursor { link: cursor.link, kind: 1, ..Cursor::default() };
                continue;
            }
            state.dirty.iter_mut().for_each(Vec::clear);
            state.is_dirty = false;
            *cursor = Cursor { link: cursor.link + 1, ..Cursor::default() };
            if let Some(transmit) = train.transmit(state.path) {
                return Some(Written { link: index, way: None, transmit });
            }
        }
        dirty.clear();
        *cursor = Cursor::default();
        None
    }

    /// What waited for its turn on links that do not carry all at once: a train of each.
    pub(super) fn poll_paced(&mut self, now: Time, out: &mut [u8]) -> Option<Written> {
        let Core { tracks, links, pool, counters, drops, .. } = self;
        if !links.is_paced {
            return None;
        }
        for (index, state) in &mut links.slab {
            let link = state.link.as_mut().expect("it is out only while a datagram of it is read");
            let mut train = Train::new(&mut *out);
            if link.parity_waits() {
                write_parity(now, link, &mut train);
                state.pacer.spend(train.len);
                if let Some(transmit) = train.transmit(state.path) {
                    return Some(Written { link: index, way: None, transmit });
                }
            }
            while let Some((frame, is_repair)) = state.pacer.next(now) {
                if link.parity_waits() && train.len > 0 {
                    break;
                }
                let track = find(&state.outgoing, frame.alias).map(|track| &tracks[track]);
                let held = track.and_then(|track| track.layer_over(index, frame.layer, frame.epoch));
                let lookup = held.map(|layer| layer.inbound.history().lookup(pool, frame.sequence));
                let export = track.and_then(|track| track.exports.iter().find(|export| export.link == index));
                // It may have fallen while it waited.
                let fits = track.zip(export).is_some_and(|(track, export)| track.ranks.rank_of(frame.layer.into()) < export.fits);
                let written = match lookup {
                    Some(Lookup::Held(_)) if !fits => Err(DropReason::RelayCongested),
                    Some(Lookup::Held(stored)) => {
                        let len = stored.packet.len();
                        let sealed = link.media_len(len);
                        // A repair has a head of its own length: it is a train of one.
                        if train.len > 0 && (is_repair || !train.takes_relayed(sealed, sealed == len + OVERHEAD)) {
                            break;
                        }
                        if is_repair {
                            let written = link.write_repair(now, &frame, stored.packet, train.rest());
                            written.map(|first| (relay::Written { first, second: 0 }, 0)).map_err(reason_of)
                        } else {
                            link.write_media(now, &frame, stored.packet, train.rest()).map(|written| (written, len)).map_err(reason_of)
                        }
                    }
                    _ => Err(DropReason::RelayLate),
                };
                state.pacer.pop();
                match written {
                    Ok((written, len)) => {
                        train.add(written.first);
                        train.add(written.second);
                        state.pacer.spend(written.first + written.second);
                        counters.relay_packets_out += u64::from(!is_repair);
                        counters.relay_repairs_out += u64::from(is_repair);
                        counters.relay_media_bytes_out += len as u64;
                        if is_repair {
                            break;
                        }
                    }
                    Err(reason) => {
                        drops[reason as usize] += 1;
                        state.congested += u64::from(reason == DropReason::RelayCongested);
                    }
                }
            }
            if let Some(transmit) = train.transmit(state.path) {
                return Some(Written { link: index, way: None, transmit });
            }
        }
        None
    }

    /// Forgets what is left of this turn's packets for links; returns how many.
    pub(super) fn drop_link_media(&mut self) -> u64 {
        let Links { slab, dirty, cursor, urgent, .. } = &mut self.links;
        let mut lost = 0;
        for (at, index) in dirty.drain(..).enumerate() {
            let state = &mut slab[index];
            state.is_dirty = false;
            // What was put together already leaves with the next turn.
            if !std::mem::replace(&mut state.is_urgent, true) {
                urgent.push_back(index);
            }
            for track in state.dirty.iter_mut().flat_map(|dirty| dirty.drain(..)) {
                let track = &mut self.tracks[track];
                for export in track.exports.iter_mut().filter(|export| export.link == index && export.is_dirty) {
                    export.is_dirty = false;
                    if at >= cursor.link {
                        lost += track.fresh.iter().filter(|fresh| export.wanted >> fresh.layer & 1 == 1).count() as u64;
                    }
                }
            }
        }
        *cursor = Cursor::default();
        lost
    }
}

/// Writes the parity of one block into an empty train.
fn write_parity(now: Time, link: &mut Link, train: &mut Train<'_>) {
    while let Some(len) = link.poll_parity(now, train.rest()) {
        train.add(len);
        if !link.parity_goes_on() || !train.takes_relayed(len, true) {
            return;
        }
    }
}

/// Chooses which layers of each track cross a link that does not carry all: first the lowest of each that are wanted, then the next, and
/// then those that could be wanted. Audio and its parity, so many percent of it, go before them.
fn fit(now: Time, tracks: &mut Slab<Track>, state: &LinkState, link: usize, audio_parity: u64) {
    let mut room = state.limit.unwrap_or(u64::MAX) / 100 * SHARED_PERCENT;
    for (_, track) in &state.outgoing {
        let track = &mut tracks[*track];
        let is_audio = track.layers[0].inbound.kind() == MediaKind::Audio;
        if is_audio && !track.export_to(link).is_held {
            let rate: u64 = track.ranks.steps(now, 0).map(|step| step.rate).sum();
            room = room.saturating_sub(rate + rate * audio_parity / 100);
        }
        track.export_to(link).next_fits = if is_audio { ALL } else { 0 };
    }
    for is_offer in [false, true] {
        for rank in 0..ALL {
            for (_, track) in &state.outgoing {
                let track = &mut tracks[*track];
                let export = *track.export_to(link);
                let rate = |rank: u8| track.ranks.rate(track.ranks.layer_at(rank));
                let is_wanted = |rank: u8| export.wanted >> track.ranks.layer_at(rank) & 1 == 1;
                let layers = track.layers.len() as u8;
                if export.next_fits != rank || rank >= layers || is_offer == (rank..layers).any(is_wanted) {
                    continue;
                }
                // Who wants more and gets this gives up the one below.
                let left = if rank > 0 && !is_wanted(rank - 1) { rate(rank - 1) } else { 0 };
                let more = rate(rank).saturating_sub(left);
                let needed = if rank < export.fits { more } else { more / 100 * BACK_PERCENT };
                if needed <= room {
                    room = room.saturating_sub(more);
                    track.export_to(link).next_fits = rank + 1;
                }
            }
        }
    }
    for (_, track) in &state.outgoing {
        let track = &mut tracks[*track];
        let layers = track.layers.len() as u8;
        let export = track.export_to(link);
        let next = if export.next_fits >= layers { ALL } else { export.next_fits };
        let (wanted, before) = (export.wanted, std::mem::replace(&mut export.fits, next));
        if next == before {
            continue;
        }
        for (at, layer) in track.layers.iter_mut().enumerate() {
            // The other end is told of layers that do not come any more, or come again: with a picture.
            layer.forget_told();
            if wanted >> at & 1 == 1 && (before..next).contains(&track.ranks.rank_of(at)) {
                layer.inbound.request_keyframe();
            }
        }
    }
}

impl Track {
    /// Its end on a link that it goes over.
    fn export_to(&mut self, link: usize) -> &mut LinkEnd {
        self.exports.iter_mut().find(|export| export.link == link).expect("what goes over a link has an end on it")
    }

    /// The layer of which a packet went over a link, unless it has begun anew since.
    fn layer_over(&self, link: usize, layer: u8, epoch: u8) -> Option<&Layer> {
        let export = self.exports.iter().find(|export| export.link == link)?;
        self.layers.get(usize::from(layer)).filter(|layer| export.epoch_of(layer) == epoch)
    }
}

fn way_of(way: Way) -> LinkWay {
    match way {
        Way::Direct => LinkWay::Direct,
        Way::Via(carrier) => LinkWay::Via(LinkId(carrier)),
    }
}

fn stats_of(link: &Link) -> LinkStats {
    let (stats, direct) = (link.stats(), link.direct_path());
    LinkStats {
        datagrams_out: stats.datagrams_out,
        bytes_out: stats.bytes_out,
        media_bytes_out: stats.media_bytes_out,
        datagrams_in: stats.datagrams_in,
        bytes_in: stats.bytes_in,
        media_bytes_in: stats.media_bytes_in,
        lost: stats.lost,
        repaired: stats.repaired,
        repairs_out: stats.repairs_out,
        recovered: stats.recovered,
        parity_bytes_out: stats.parity_bytes_out,
        refused: stats.refused,
        rtt_us: stats.rtt_us,
        jitter_us: stats.jitter_us,
        mtu: stats.mtu,
        limit: link.limit().unwrap_or_default(),
        congested: 0,
        carried_in: stats.carried_in,
        transit_bytes_in: stats.transit_bytes_in,
        transit_bytes_out: stats.transit_bytes_out,
        ways: WaysInUse { first: way_of(link.ways().first), second: link.ways().second.map(way_of) },
        direct: PathStats { came: direct.came, lost: direct.lost, rtt_us: direct.rtt_us, jitter_us: direct.jitter_us },
    }
}

pub(super) const fn reason_of(reason: RelayDrop) -> DropReason {
    match reason {
        RelayDrop::Malformed => DropReason::RelayMalformed,
        RelayDrop::KeyUnknown => DropReason::RelayKeyUnknown,
        RelayDrop::Replayed | RelayDrop::TooOld => DropReason::RelayReplay,
        RelayDrop::NotAuthentic => DropReason::RelayAuth,
        RelayDrop::BadPayload => DropReason::RelayPayload,
        RelayDrop::Late | RelayDrop::Gone | RelayDrop::PartLost => DropReason::RelayLate,
        RelayDrop::TooLarge => DropReason::TooLarge,
        RelayDrop::KeysUsed => DropReason::RelayKeysUsed,
        RelayDrop::BadRoute => DropReason::RelayRoute,
        RelayDrop::HopsUsed => DropReason::RelayHops,
        RelayDrop::Circle => DropReason::RelayCircle,
    }
}
