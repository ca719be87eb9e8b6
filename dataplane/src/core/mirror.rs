//! Tracks whose subscribers are on other workers. Each such worker has a mirror of the track, with a history of its own; everything
//! that a subscriber has to do with a track, it has to do with the mirror.
//!
//! ```text
//! home:    store_rtp -> handed --+                       +-- Ask: wanted layers, keyframes (coalesced like a subscriber's)
//!          tick: Clock, Bye -----+--> poll_handover      |
//! mirror:  handle_handover -> store_rtp -> fan-out, repairs, catch-ups       tick: Ask --> poll_handover
//! ```
//! Packets cross once per worker, whatever is lost is lost: all the rest is told again until it holds.

use pop_proto::DropReason;
use pop_proto::control::{MediaKind, OpenTrack};
use pop_proto::history::{Lookup, Meta};
use pop_proto::inbound::SenderClock;
use pop_proto::layers::LayerState;
use pop_schemas::{Time, TrackId};

use super::layers::follow_layers;
use super::link::{LinkTold, What};
use super::{Core, Source, Stream, TICKS_PER_ROUND, Track};

/// What goes from one worker to another.
#[derive(Clone, Copy, Debug)]
pub enum Handed {
    /// A packet as it sits in the track's history, to a mirror.
    Packet {
        /// Of which track.
        track: TrackId,
        /// Of which of its layers.
        layer: u8,
        /// How often the layer has begun anew under another SSRC.
        epoch: u16,
        /// The extended sequence number.
        sequence: u64,
        /// Its facts.
        meta: Meta,
    },
    /// The publisher's clock of a layer, to a mirror.
    Clock {
        /// Of which track.
        track: TrackId,
        /// Of which of its layers.
        layer: u8,
        /// As of the last sender report.
        clock: SenderClock,
    },
    /// The publisher said goodbye for a layer, to a mirror.
    Bye {
        /// Of which track.
        track: TrackId,
        /// For which of its layers.
        layer: u8,
    },
    /// What another node told of a layer, to a mirror of a track from there.
    Layer {
        /// Of which track.
        track: TrackId,
        /// Of which of its layers.
        layer: u8,
        /// What.
        state: LayerState,
    },
    /// What a mirror's subscribers want, to the track's home.
    Ask {
        /// Of which track.
        track: TrackId,
        /// A bit for each layer that somebody takes.
        wanted: u8,
        /// A bit for each layer whose keyframe somebody waits for.
        keyframes: u8,
    },
}

/// A track's other end on another worker.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Index of the worker.
    pub worker: u16,
    /// The layers that its subscribers take, as it told last.
    wanted: u8,
}

/// The next thing to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// To each of these workers.
    pub to: &'a [Peer],
    /// What.
    pub handed: Handed,
    /// Of a packet: header and payload, decrypted, without padding.
    pub packet: &'a [u8],
    /// A packet of video: where there is little room it gives way to audio and to what is asked.
    pub gives_way: bool,
}

impl Core {
    /// Makes a mirror of a track whose home is worker `home`.
    pub(super) fn open_mirror(&mut self, open: &OpenTrack, home: usize) {
        let index = self.insert_track(&elsewhere(open), Source::Worker(Peer { worker: home as u16, wanted: 0 }));
        self.crossing.push(index);
        self.mirrors += 1;
    }

    /// Hands a track over to worker `to` from now on, or no longer.
    pub(super) fn export(&mut self, id: TrackId, to: usize, on: bool) {
        let Some(&index) = self.track_ids.get(&id) else { return };
        let track = &mut self.tracks[index];
        track.peers.retain(|peer| usize::from(peer.worker) != to);
        if on {
            // Everything, until it tells.
            track.peers.push(Peer { worker: to as u16, wanted: u8::MAX });
            for layer in &mut track.layers {
                layer.inbound.set_wanted(true);
                layer.forget_told();
            }
        } else {
            self.handed.retain(|(t, _)| *t != index || !track.peers.is_empty());
            self.told.retain(|(t, handed)| *t != index || !track.peers.is_empty() || matches!(handed, Handed::Ask { .. }));
        }
        self.look_at_ends(index);
        self.review_layers(index);
    }

    /// Notes whether a track has other ends than this worker's transports.
    pub(super) fn look_at_ends(&mut self, index: usize) {
        self.crossing.retain(|t| *t != index);
        let track = &self.tracks[index];
        if !matches!(track.source, Source::Transport(_)) || !track.peers.is_empty() || !track.exports.is_empty() {
            self.crossing.push(index);
        }
    }

    /// Tells the other ends of a track what has changed.
    pub(super) fn tell_ends(&mut self, now: Time, index: usize) {
        // Once a second whatever changed: what was told may have found a full queue, or a link that lost it.
        let is_turn = index % TICKS_PER_ROUND == self.tick;
        self.ask_source(now, index, is_turn);
        let Core { tracks, links, told, .. } = self;
        let track = &mut tracks[index];
        let id = track.id;
        let is_layered = track.layers.len() > 1;
        for (at, layer) in track.layers.iter_mut().enumerate() {
            if is_turn {
                layer.forget_told();
            }
            let clock = layer.inbound.clock().filter(|clock| layer.clock_told != Some(*clock));
            let is_ended = layer.inbound.is_ended();
            let state = is_layered.then(|| track.ranks.state(at));
            // What it brings changes all the time.
            let choice = |state: LayerState| (state.comes, state.rank);
            let new_state = state.filter(|state| layer.told.map(choice) != Some(choice(*state)));
            let is_new = clock.is_some() || is_ended != layer.end_told || new_state.is_some();
            let at = at as u8;
            if !track.peers.is_empty() {
                told.extend(clock.map(|clock| (index, Handed::Clock { track: id, layer: at, clock })));
                told.extend((is_ended && !layer.end_told).then_some((index, Handed::Bye { track: id, layer: at })));
                // Of a track whose layers all cross, its mirrors see for themselves.
                let far = new_state.filter(|_| track.ranks.is_far());
                told.extend(far.map(|state| (index, Handed::Layer { track: id, layer: at, state })));
            }
            if is_new {
                for export in track.exports.iter().filter(|export| export.asked != 0) {
                    links.tell(export.link, LinkTold { track: index, what: What::Layer(at) });
                }
            }
            (layer.clock_told, layer.end_told, layer.told) = (layer.inbound.clock(), is_ended, state);
        }
    }

    /// Asks where a track comes from for what is wanted of it, when that is not this worker.
    fn ask_source(&mut self, now: Time, index: usize, is_turn: bool) {
        let track = &mut self.tracks[index];
        // Of pictures that a link brings with a hole nothing can be shown until a new one begins, and clients wait for that for seconds.
        let patience = if let Source::Link(end, _) = &track.source { Some(self.links.patience(end.link)) } else { None };
        let (wanted_told, must_hold) = match &mut track.source {
            Source::Transport(_) => return,
            Source::Worker(peer) => (&mut peer.wanted, true),
            // Over a link nothing is said when nothing is wanted, but while something comes all the same.
            Source::Link(end, _) => {
                let came = end.came;
                end.came &= !is_turn;
                (&mut end.wanted, came)
            }
        };
        let (mut wanted, mut keyframes) = (0, 0);
        for (at, layer) in track.layers.iter_mut().enumerate() {
            wanted |= u8::from(layer.inbound.is_wanted()) << at;
            if let Some(patience) = patience {
                layer.inbound.give_up_missing(now, patience);
            }
            if layer.inbound.keyframe_due(now) {
                layer.inbound.pli_sent(now);
                keyframes |= 1 << at;
            }
        }
        let is_new = keyframes != 0 || *wanted_told != wanted;
        if is_new || is_turn && (must_hold || wanted != 0) {
            *wanted_told = wanted;
            match track.source {
                Source::Link(end, _) => self.links.tell(end.link, LinkTold { track: index, what: What::Ask { wanted, keyframes } }),
                _ => self.told.push_back((index, Handed::Ask { track: track.id, wanted, keyframes })),
            }
        }
    }

    /// The next thing for other workers.
    pub fn poll_handover(&mut self) -> Option<Handover<'_>> {
        while let Some((index, fresh)) = self.handed.pop_front() {
            let track = &self.tracks[index];
            let layer = &track.layers[fresh.layer];
            let Lookup::Held(stored) = layer.inbound.history().lookup(&self.pool, fresh.sequence) else {
                // Evicted within its own turn: the pool is far too small.
                self.drops[DropReason::PoolEmpty as usize] += track.peers.len() as u64;
                continue;
            };
            let (meta, sequence) = (stored.meta, fresh.sequence);
            let handed = Handed::Packet { track: track.id, layer: fresh.layer as u8, epoch: layer.epoch, sequence, meta };
            let gives_way = layer.inbound.kind() == MediaKind::Video;
            return Some(Handover { to: &track.peers, handed, packet: stored.packet, gives_way });
        }
        let (index, handed) = self.told.pop_front()?;
        let track = &self.tracks[index];
        let to = match (&handed, &track.source) {
            (Handed::Ask { .. }, Source::Worker(home)) => std::slice::from_ref(home),
            _ => &track.peers,
        };
        Some(Handover { to, handed, packet: &[], gives_way: false })
    }

    /// Takes what worker `from` hands over; `packet` is a packet's header and payload.
    pub fn handle_handover(&mut self, now: Time, from: usize, handed: Handed, packet: &[u8]) {
        let (Handed::Packet { track, .. }
        | Handed::Clock { track, .. }
        | Handed::Bye { track, .. }
        | Handed::Layer { track, .. }
        | Handed::Ask { track, .. }) = handed;
        let index = self.track_ids.get(&track).copied();
        let known = index.filter(|index| self.tracks[*index].is_shared_with(from, &handed));
        let Some(index) = known else {
            // Opened or closed on one of the two alone, for a turn or two.
            self.count_drops(DropReason::UnknownStream, u64::from(matches!(handed, Handed::Packet { .. })));
            return;
        };
        match handed {
            Handed::Packet { layer, epoch, sequence, meta, .. } => {
                let stream = Stream { ssrc: 0, track: index, layer: layer.into(), is_rtx: false };
                let of_track = &mut self.tracks[index].layers[stream.layer];
                if std::mem::replace(&mut of_track.epoch, epoch) != epoch && of_track.inbound.packets() > 0 {
                    self.restart_layer(index, stream.layer);
                }
                if let Err(reason) = self.store_rtp(now, stream, sequence, packet, meta) {
                    self.count_drops(reason, 1);
                }
            }
            Handed::Clock { layer, clock: SenderClock { ntp, rtp_timestamp, at }, .. } => {
                self.tracks[index].layers[usize::from(layer)].inbound.handle_sender_report(at, ntp, rtp_timestamp);
            }
            Handed::Bye { layer, .. } => self.end_layer(index, layer.into()),
            Handed::Layer { layer, state, .. } => self.hear_layer(now, index, layer.into(), state),
            Handed::Ask { wanted, keyframes, .. } => {
                let track = &mut self.tracks[index];
                track.peers.iter_mut().filter(|peer| usize::from(peer.worker) == from).for_each(|peer| peer.wanted = wanted);
                track.hear(wanted, keyframes);
                self.review_layers(index);
            }
        }
    }

    /// Another node tells of a layer.
    pub(super) fn hear_layer(&mut self, now: Time, index: usize, layer: usize, state: LayerState) {
        let Core { tracks, subscriptions, .. } = self;
        let track = &mut tracks[index];
        if track.ranks.tell(now, layer, state) {
            follow_layers(track, subscriptions);
        }
    }
}

/// As it is opened where the track comes from another worker or node: what is missing its other end asks the publisher for, or repairs by
/// itself, and whether by PLI or FIR is the other end's business.
pub(super) fn elsewhere(open: &OpenTrack) -> OpenTrack {
    OpenTrack { nack: false, pli: open.pli || open.fir, fir: false, ..open.clone() }
}

impl Track {
    /// It is another worker's track.
    pub(super) fn is_mirror(&self) -> bool {
        matches!(self.source, Source::Worker(_))
    }

    /// Whether worker `from` has to do with what it hands over: asks come up, everything else goes down.
    fn is_shared_with(&self, from: usize, handed: &Handed) -> bool {
        match (handed, &self.source) {
            (Handed::Ask { .. }, _) => self.peers.iter().any(|peer| usize::from(peer.worker) == from),
            (_, Source::Worker(home)) => usize::from(home.worker) == from,
            _ => false,
        }
    }

    /// The layers that subscribers on other workers and nodes take.
    pub(super) fn wanted_elsewhere(&self) -> u8 {
        let of_workers = self.peers.iter().map(|peer| peer.wanted);
        of_workers.chain(self.exports.iter().map(|export| export.wanted)).fold(0, |all, wanted| all | wanted)
    }

    /// Another end wants layers, and keyframes of them.
    pub(super) fn hear(&mut self, wanted: u8, keyframes: u8) {
        for (at, layer) in self.layers.iter_mut().enumerate() {
            if wanted >> at & 1 == 1 {
                layer.inbound.set_wanted(true);
            }
            if keyframes >> at & 1 == 1 {
                layer.inbound.request_keyframe();
            }
        }
    }
}
