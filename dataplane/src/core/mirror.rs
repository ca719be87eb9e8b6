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
use pop_schemas::{Time, TrackId};

use super::{Core, Stream, TICKS_PER_ROUND, Track};

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

/// A track's other end.
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
        // What is missing its home asks the publisher for, and whether by PLI or FIR is the home's business.
        let open = OpenTrack { nack: false, pli: open.pli || open.fir, fir: false, ..open.clone() };
        let index = self.insert_track(&open, None);
        self.tracks[index].peers.push(Peer { worker: home as u16, wanted: 0 });
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
                (layer.clock_told, layer.end_told) = (None, false);
            }
        } else {
            self.handed.retain(|(t, _)| *t != index || !track.peers.is_empty());
            self.told.retain(|(t, _)| *t != index || !track.peers.is_empty());
        }
        self.crossing.retain(|t| *t != index);
        if !self.tracks[index].peers.is_empty() {
            self.crossing.push(index);
        }
        self.review_layers(index);
    }

    /// Tells the other end of a track what has changed.
    pub(super) fn tell_peers(&mut self, now: Time, index: usize) {
        let Some(track) = self.tracks.get_mut(index).filter(|track| !track.peers.is_empty()) else { return };
        let id = track.id;
        if track.is_mirror() {
            let (mut wanted, mut keyframes) = (0, 0);
            for (at, layer) in track.layers.iter_mut().enumerate() {
                wanted |= u8::from(layer.inbound.is_wanted()) << at;
                if layer.inbound.keyframe_due(now) {
                    layer.inbound.pli_sent(now);
                    keyframes |= 1 << at;
                }
            }
            // Once a second whatever changed: what was told may have found a full queue.
            if keyframes != 0 || track.peers[0].wanted != wanted || index % TICKS_PER_ROUND == self.tick {
                track.peers[0].wanted = wanted;
                self.told.push_back((index, Handed::Ask { track: id, wanted, keyframes }));
            }
            return;
        }
        // Once a second whatever changed, as above.
        if index % TICKS_PER_ROUND == self.tick {
            track.layers.iter_mut().for_each(|layer| (layer.clock_told, layer.end_told) = (None, false));
        }
        for (at, layer) in track.layers.iter_mut().enumerate() {
            let at = at as u8;
            if let Some(clock) = layer.inbound.clock().filter(|clock| layer.clock_told != Some(*clock)) {
                layer.clock_told = Some(clock);
                self.told.push_back((index, Handed::Clock { track: id, layer: at, clock }));
            }
            let is_ended = layer.inbound.is_ended();
            if is_ended && !layer.end_told {
                self.told.push_back((index, Handed::Bye { track: id, layer: at }));
            }
            layer.end_told = is_ended;
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
        Some(Handover { to: &self.tracks[index].peers, handed, packet: &[], gives_way: false })
    }

    /// Takes what worker `from` hands over; `packet` is a packet's header and payload.
    pub fn handle_handover(&mut self, now: Time, from: usize, handed: Handed, packet: &[u8]) {
        let (Handed::Packet { track, .. } | Handed::Clock { track, .. } | Handed::Bye { track, .. } | Handed::Ask { track, .. }) = handed;
        let index = self.track_ids.get(&track).copied();
        let known = index.filter(|index| self.tracks[*index].peers.iter().any(|peer| usize::from(peer.worker) == from));
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
            Handed::Ask { wanted, keyframes, .. } => {
                self.tracks[index].hear(from, wanted, keyframes);
                self.review_layers(index);
            }
        }
    }
}

impl Track {
    /// It is another worker's track.
    pub(super) fn is_mirror(&self) -> bool {
        self.transport.is_none()
    }

    /// The layers that subscribers on other workers take.
    pub(super) fn wanted_elsewhere(&self) -> u8 {
        if self.is_mirror() { 0 } else { self.peers.iter().fold(0, |wanted, peer| wanted | peer.wanted) }
    }

    fn hear(&mut self, from: usize, wanted: u8, keyframes: u8) {
        self.peers.iter_mut().filter(|peer| usize::from(peer.worker) == from).for_each(|peer| peer.wanted = wanted);
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
