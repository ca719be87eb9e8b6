//! One subscriber's media section: its own sequence numbers and timestamps over whatever track and layer feeds it.
//!
//! Within one source a packet's numbers are the published ones plus constants, so a repair needs no map: the published
//! sequence is the outgoing one minus the offset. Once frames are left out ([`Thinning`]), [`Slots`] has the numbers. Without RTX the
//! repair is the same packet to the last bit; with RTX (RFC 4588) it goes on a stream of its own, whose numbers are never used twice.

use std::time::Duration;

use pop_schemas::Time;

use crate::control::{
    ANY_PAYLOAD_TYPE, Codec, MediaKind, Numbering, OpenSubscription, PAYLOAD_TYPES_MAX, PayloadTypeMap, SubscriptionStats,
};
use crate::drop_reason::DropReason;
use crate::header::{CopiedElements, HEADER_LEN_MAX, HeaderLayout, Stamp};
use crate::history::{Meta, SLOT_LEN, Stored};
use crate::inbound::SenderClock;
use crate::layering::Target;
use crate::picture::{PictureNumbers, PictureShift};
use crate::slots::Slots;
use crate::srtp::RTP_INDEX_END;
use crate::thinning::Thinning;
use crate::wire::rtx::OSN_LEN;
use crate::wire::{red, rtp};

/// Repairs that may wait for one subscription. A NACK names at most 17 packets per item; a burst loss longer than this is a
/// keyframe's work.
pub const REPAIRS_MAX: usize = 64;

/// Repairs that a subscription may send before it has sent media, and at most in one burst. Beyond it a repair costs one packet of
/// fresh media, so that no client can ask for more than twice its stream.
const REPAIR_CREDIT_MAX: u32 = 128;

/// A jump of the published sequence by this many begins a source anew: after 2^15 the client could no longer guess the rollover
/// counter, and its own losses add to ours.
const JUMP_MAX: u64 = 1 << 14;

/// Bytes of padding per hundred of payload.
const PADDING_PERCENT_MAX: usize = 3;

/// As the wanted layer: none, until one is wanted again.
const NO_LAYER: usize = usize::MAX;

/// Pictures of the past are this much closer together: two seconds of them end 67 ms before the newest, one frame of 30 a second is
/// more than a millisecond long.
const PAST_DIVISOR: u32 = 30;

/// The pictures that were kept before a source began.
#[derive(Clone, Copy)]
struct Past {
    /// One past their last published sequence. Not a time: a packet must look the same when it is asked for again, whatever times a
    /// publisher claims meanwhile.
    end: u64,
    newest_timestamp: u32,
}

/// The constants between a source's numbers and ours. A source is a layer of a track from one keyframe on.
#[derive(Clone, Copy)]
struct Source {
    layer: usize,
    /// First published sequence that is forwarded; what is older belongs to nobody here.
    start: u64,
    /// First outgoing sequence of this source.
    first: u64,
    /// Added to the published timestamp.
    timestamp_offset: u32,
    /// It began with pictures that were kept.
    past: Option<Past>,
    /// Added to the picture numbers in the payload.
    picture: PictureShift,
    /// Added to the dependency descriptor's frame number.
    frame: u16,
}

impl Source {
    /// A published timestamp on our clock. The past is squeezed: who comes back after a short pause must get no picture that is older
    /// than what it has, and a player that keeps to the timestamps must not play the past at the pace at which it was made.
    #[inline]
    fn timestamp(&self, sequence: u64, published: u32) -> u32 {
        let past = self.past.filter(|past| sequence < past.end);
        let published = past.map_or(published, |past| squeeze(past.newest_timestamp, published));
        published.wrapping_add(self.timestamp_offset)
    }
}

fn squeeze(newest: u32, published: u32) -> u32 {
    match newest.wrapping_sub(published) as i32 {
        behind @ 1.. => newest.wrapping_sub(behind as u32 / PAST_DIVISOR),
        _ => published,
    }
}

/// Keyframe requests one after the other, each within [`REQUEST_INTERVAL_MAX`] of the one before, from a client that cannot put the
/// layers together. Chromium sends four a second then.
#[derive(Clone, Copy, Default)]
struct Helpless {
    requests: u8,
    last: Option<Time>,
}

/// Who lost packets has its keyframe by then.
const REQUEST_INTERVAL_MAX: Duration = Duration::from_millis(700);
/// So many requests are no loss.
const REQUESTS_MAX: u8 = 5;

impl Helpless {
    fn is_so(&self) -> bool {
        self.requests >= REQUESTS_MAX
    }

    /// Counts a request; true when it is the one that settles it.
    fn note(&mut self, now: Time) -> bool {
        let follows = self.last.replace(now).is_some_and(|last| now.since(last) <= REQUEST_INTERVAL_MAX);
        if !self.is_so() {
            self.requests = if follows { self.requests + 1 } else { 1 };
            return self.is_so();
        }
        false
    }
}

/// A packet as this subscriber gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten<'a> {
    /// 48-bit SRTP packet index: rollover counter and sequence number. A retransmission with RTX gets its own when it is written.
    pub index: u64,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Payload type.
    pub payload_type: u8,
    /// It goes as RTX.
    is_rtx: bool,
    marker: bool,
    /// It only fills its number: without payload, and without the descriptor of a frame that the viewer does not get.
    is_filler: bool,
    payload: &'a [u8],
    picture: PictureShift,
    frame: u16,
    padding: u8,
}

impl Rewritten<'_> {
    /// Bytes of the payload that is sent, without padding.
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.payload.len() + if self.is_rtx { OSN_LEN } else { 0 }
    }

    /// The packet with so many bytes of padding, at most [`Outbound::padding_max`].
    #[inline]
    pub fn padded(self, padding: u8) -> Self {
        Rewritten { padding, ..self }
    }
}

/// Where a header, and a payload that has to differ from the stored one, are made.
pub struct Scratch {
    header: [u8; HEADER_LEN_MAX],
    payload: [u8; SLOT_LEN + OSN_LEN],
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { header: [0; HEADER_LEN_MAX], payload: [0; SLOT_LEN + OSN_LEN] }
    }
}

/// A packet ready to be protected.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// 48-bit SRTP packet index.
    pub index: u64,
    /// RTP header with its extensions.
    pub header: &'a [u8],
    /// RTP payload.
    pub payload: &'a [u8],
    /// Bytes of padding behind it: the header tells of them.
    pub padding: u8,
}

/// The state of one subscription. What every packet needs comes first and lies together, four cache lines of it: between two packets of one
/// subscriber lie those of all others, and each line is fetched anew.
#[repr(C)]
pub struct Outbound {
    source: Option<Source>,
    /// One past the highest sequence sent.
    next: u64,
    last_sent: Time,
    slots: Slots,
    octets: u64,
    stats: SubscriptionStats,
    last_timestamp: Option<u32>,
    rtx_ssrc: Option<u32>,
    ssrc: u32,
    repair_credit: u32,
    last_picture: Option<PictureNumbers>,
    last_frame: Option<u16>,
    /// The payload type that came last, and its map.
    map: Option<(u8, PayloadTypeMap)>,
    numbering: Numbering,
    kind: MediaKind,
    /// A source was chosen and its first packet is awaited.
    waiting: bool,
    layout: HeaderLayout,
    /// Layer of the track that this subscriber is to get, or [`NO_LAYER`].
    wanted: usize,
    thinning: Thinning,
    /// Index of the next retransmission on `rtx_ssrc`.
    rtx_next: u64,
    clock_rate: u32,
    first_timestamp: u32,
    /// Layer and timestamp offset of the source that was sent before the section came to rest: its clock goes on afterwards.
    rested: Option<(usize, u32)>,
    /// What is wanted of the layers inside a stream.
    inside: Target,
    helpless: Helpless,
    /// The next source begins with pictures that were kept.
    past: Option<Past>,
    last_fir: Option<u8>,
    repairs_len: usize,
    repairs: [u64; REPAIRS_MAX],
    maps: [PayloadTypeMap; PAYLOAD_TYPES_MAX],
    maps_len: usize,
}

impl Outbound {
    /// A section without a source.
    pub fn new(open: &OpenSubscription) -> Outbound {
        Outbound {
            ssrc: open.ssrc,
            rtx_ssrc: open.rtx_ssrc,
            numbering: Numbering::Own,
            kind: open.kind,
            layout: HeaderLayout::new(&open.extensions, &open.mid),
            map: None,
            maps: [PayloadTypeMap { from: 0, to: 0, rtx: None, unwrap_red: false }; PAYLOAD_TYPES_MAX],
            maps_len: 0,
            wanted: 0,
            source: None,
            rested: None,
            thinning: Thinning::default(),
            slots: Slots::default(),
            inside: Target::new(u8::MAX, u8::MAX),
            helpless: Helpless::default(),
            waiting: false,
            past: None,
            next: u64::from(open.first_sequence),
            // Another SSRC: the same number in the lower half of the range serves both (RFC 3711 section 3.3.1).
            rtx_next: u64::from(open.first_sequence),
            last_timestamp: None,
            last_picture: None,
            last_frame: None,
            last_sent: Time::ZERO,
            clock_rate: match open.kind {
                MediaKind::Audio => 48_000,
                MediaKind::Video => 90_000,
            },
            repairs: [0; REPAIRS_MAX],
            repairs_len: 0,
            repair_credit: REPAIR_CREDIT_MAX,
            last_fir: None,
            octets: 0,
            stats: SubscriptionStats::default(),
            first_timestamp: open.first_timestamp,
        }
    }

    /// Keeps more of the source's numbers than a browser's section does. Before the first packet.
    pub fn keep(&mut self, numbering: Numbering) {
        self.numbering = numbering;
    }

    /// Our SSRC: of the last packet, where the source's is kept.
    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// Our SSRC for retransmissions.
    pub fn rtx_ssrc(&self) -> Option<u32> {
        self.rtx_ssrc
    }

    /// Counters since the start.
    pub fn stats(&self) -> SubscriptionStats {
        self.stats
    }

    /// Takes packets from another track from now on, beginning with `layer` of it, or from none. Numbers go on where they are.
    pub fn switch_source(&mut self, layer: Option<usize>, payload_types: &[PayloadTypeMap]) {
        self.restart_source();
        self.helpless = Helpless::default();
        self.want_inside();
        self.rested = None;
        self.waiting = layer.is_some();
        self.wanted = layer.unwrap_or(0);
        self.map = None;
        self.maps_len = payload_types.len().min(PAYLOAD_TYPES_MAX);
        self.maps[..self.maps_len].copy_from_slice(&payload_types[..self.maps_len]);
    }

    /// Takes another layer of the track from its next keyframe on; until then the present one goes on. After [`Outbound::rest`] audio
    /// goes on with the next packet, video at a keyframe.
    pub fn want_layer(&mut self, layer: usize) {
        self.waiting |= self.wanted == NO_LAYER;
        self.wanted = layer;
    }

    /// Sends nothing until a layer is wanted again; then numbers go on where they are.
    pub fn rest(&mut self) {
        if let Some(source) = self.source.take() {
            self.rested = Some((source.layer, source.timestamp_offset));
        }
        (self.wanted, self.waiting, self.repairs_len) = (NO_LAYER, false, 0);
    }

    /// Takes spatial layers up to `spatial` and temporal ones up to `temporal` of a stream that has them inside: the lower at the next
    /// picture, the higher where the stream lets it be entered. Holds for every source, and until it is said otherwise everything is
    /// taken. Numbers that there are not mean the highest.
    pub fn want_spatial(&mut self, spatial: u8, temporal: u8) {
        self.inside = Target::new(spatial, temporal);
        self.want_inside();
    }

    fn want_inside(&mut self) {
        let spatial = if self.helpless.is_so() { 0 } else { self.inside.spatial() };
        self.thinning.want(Target::new(spatial, self.inside.temporal()));
    }

    /// The client asked for a keyframe of a stream in `codec`. Chromium since 152 puts spatial layers of AV1 together by the dependency
    /// descriptor alone, and offers to receive that only when it is told to; Firefox needs none. So who was not given it and asks again
    /// and again gets the lowest spatial layer of this track from then on.
    pub fn note_keyframe_request(&mut self, now: Time, codec: Codec) {
        let layered = self.target().is_some_and(|target| target.spatial() > 0);
        if codec == Codec::Av1 && layered && !self.layout.has_descriptor() && self.helpless.note(now) {
            self.want_inside();
        }
    }

    /// Highest spatial and temporal layer that is sent now; `None` while the stream tells no layers.
    pub fn target(&self) -> Option<Target> {
        self.source.and_then(|_| self.thinning.target())
    }

    /// The layer's numbers begin anew or end: so does the source if it is that one, from the next keyframe on.
    pub fn end_layer(&mut self, layer: usize) {
        self.past = None;
        if self.source.is_some_and(|source| source.layer == layer) {
            self.restart_source();
        }
    }

    fn restart_source(&mut self) {
        self.waiting = self.waiting || self.source.is_some();
        self.source = None;
        self.past = None;
        self.repairs_len = 0;
    }

    /// The next packet is the first of a group of pictures that was kept: those before the published sequence `end`, the newest of
    /// which has this timestamp.
    pub fn begin_in_the_past(&mut self, end: u64, newest_timestamp: u32) {
        self.past = Some(Past { end, newest_timestamp });
    }

    /// Whether it has times and numbers of its own, which can go on however old the pictures are that it begins with.
    pub fn may_begin_in_the_past(&self) -> bool {
        self.numbering == Numbering::Own
    }

    /// The next source begins with what comes, as usual.
    pub fn forget_past(&mut self) {
        self.past = None;
    }

    /// No RTP may be sent under this key any longer on one of our SSRCs (RFC 3711 section 9.2).
    pub fn is_exhausted(&self) -> bool {
        self.next.max(self.rtx_next) >= RTP_INDEX_END
    }

    /// The layer that is sent now.
    pub fn layer(&self) -> Option<usize> {
        self.source.map(|source| source.layer)
    }

    /// The layer whose packets are this subscriber's: the one that it has, before that the one that it wants; none's place while it
    /// rests.
    pub fn own_layer(&self) -> usize {
        self.source.map_or(self.wanted, |source| source.layer)
    }

    /// The layer that it is to get; `None` while it rests.
    pub fn wanted_layer(&self) -> Option<usize> {
        (self.wanted != NO_LAYER).then_some(self.wanted)
    }

    /// The layer of which a keyframe would help this subscriber.
    pub fn wants_keyframe(&self) -> Option<usize> {
        let elsewhere = self.source.is_some_and(|source| source.layer != self.wanted || self.thinning.wants_keyframe());
        (self.kind == MediaKind::Video && (self.waiting || elsewhere)).then_some(self.wanted)
    }

    /// Whether a fresh packet of `layer` is any business of this subscriber: of the layer that it has, or the beginning of the one
    /// that it wants.
    #[inline]
    pub fn takes(&self, layer: usize, keyframe_start: bool) -> bool {
        match self.source {
            Some(source) if source.layer == layer => true,
            Some(_) => layer == self.wanted && keyframe_start,
            None => layer == self.wanted,
        }
    }

    /// Decides whether a fresh packet that [`Outbound::takes`] goes out, and as what. The same packet again gives the same answer.
    ///
    /// `align` tells what to add to a timestamp of the second layer to get the first one's, when both clocks are known.
    ///
    /// Errors: [`DropReason::PayloadType`], [`DropReason::WaitingForKeyframe`], [`DropReason::RedMalformed`],
    /// [`DropReason::LayerNotWanted`].
    #[inline]
    pub fn forward<'a>(
        &mut self,
        now: Time,
        layer: usize,
        sequence: u64,
        stored: &Stored<'a>,
        align: impl FnOnce(usize, usize) -> Option<u32>,
    ) -> Result<Rewritten<'a>, DropReason> {
        let meta = &stored.meta;
        let (to, payload) = match self.select(stored) {
            Ok((map, payload)) => {
                self.map = Some((meta.payload_type, map));
                (map.to, payload)
            }
            Err(reason) => {
                // The publisher went on in a codec that this client cannot take. Numbers must not run on meanwhile: after 2^15 of
                // them the client could no longer guess the rollover counter.
                if self.source.is_some_and(|s| s.layer == layer && sequence >= self.front(&s)) {
                    self.restart_source();
                }
                return Err(reason);
            }
        };
        if self.source.is_some_and(|s| s.layer == layer && sequence >= self.front(&s) + JUMP_MAX) {
            self.restart_source();
        }
        let source = match self.source {
            Some(source) if source.layer == layer => source,
            None if !self.waiting => return Err(DropReason::WaitingForKeyframe),
            _ if self.kind == MediaKind::Video && !meta.keyframe_start => return Err(DropReason::WaitingForKeyframe),
            before => {
                let before = before.map(|before| (before.layer, before.timestamp_offset)).or(self.rested.take());
                let shift = before.and_then(|(before, offset)| Some(offset.wrapping_add(align(before, layer)?)));
                self.start_source(now, layer, sequence, stored, shift)
            }
        };
        if sequence < source.start {
            return Err(DropReason::WaitingForKeyframe);
        }
        if self.numbering == Numbering::Own && (meta.layers.is_known() || self.slots.is_in_use()) {
            self.thin(&source, sequence, meta)?;
        }
        let rewritten = self.rewrite(&source, sequence, stored, to, payload).ok_or(DropReason::LayerNotWanted)?;
        if rewritten.index >= self.next {
            self.next = rewritten.index + 1;
            self.last_timestamp = Some(rewritten.timestamp);
            self.last_sent = now;
            if let Some(numbers) = meta.picture.read(stored.payload()) {
                let id = numbers.id.wrapping_add(rewritten.picture.id);
                self.last_picture = Some(PictureNumbers { id, tl0: numbers.tl0.wrapping_add(rewritten.picture.tl0) });
            }
            if let Some(frame) = meta.elements.frame_number(stored.packet) {
                self.last_frame = Some(frame.wrapping_add(source.frame));
            }
        }
        Ok(rewritten)
    }

    /// One past the newest published sequence that was looked at.
    #[inline]
    fn front(&self, source: &Source) -> u64 {
        if self.slots.is_in_use() { self.slots.front() } else { source.start + (self.next - source.first) }
    }

    /// Decides on a packet of a layered stream, and gives it and those missing before it their numbers or none. One that is no longer
    /// the newest was decided on before, by itself or by its neighbours.
    ///
    /// Errors: [`DropReason::LayerNotWanted`].
    #[inline]
    fn thin(&mut self, source: &Source, sequence: u64, meta: &Meta) -> Result<(), DropReason> {
        let front = self.front(source);
        if sequence < front {
            return Ok(());
        }
        let decision = self.thinning.take(front, sequence, meta);
        if !self.slots.is_in_use() {
            if decision.passes {
                return Ok(());
            }
            // Until here each published packet had a number.
            self.slots.begin(front, self.next);
        }
        self.slots.append_until(sequence, decision.gap_passes);
        self.slots.append_until(sequence + 1, decision.passes);
        if decision.closes_picture {
            self.slots.close_picture();
        }
        if decision.passes { Ok(()) } else { Err(DropReason::LayerNotWanted) }
    }

    /// A packet under its outgoing numbers: the same whenever it is asked. `None`: it has none, or what was decided on it is forgotten.
    #[inline]
    fn rewrite<'a>(
        &self,
        source: &Source,
        sequence: u64,
        stored: &Stored<'a>,
        payload_type: u8,
        payload: &'a [u8],
    ) -> Option<Rewritten<'a>> {
        let meta = &stored.meta;
        let timestamp = source.timestamp(sequence, meta.timestamp);
        let (mut index, mut picture) = (sequence - source.start + source.first, source.picture);
        let (mut is_filler, mut marker) = (false, meta.marker);
        if self.numbering == Numbering::Own && (meta.layers.is_known() || self.slots.is_in_use()) {
            // It came after its number was given away, and turned out to be of a frame that is not sent: a hole would be asked for and
            // counted as lost.
            is_filler = !self.thinning.passes(sequence, meta)?;
            marker = !is_filler && self.thinning.marks(sequence, meta);
            if self.slots.is_in_use() {
                let (number, pictures) = self.slots.number_of(sequence)?;
                index = number;
                picture.id = picture.id.wrapping_sub(pictures);
            }
        }
        let payload = if is_filler { &payload[..0] } else { payload };
        Some(Rewritten {
            index,
            timestamp,
            payload_type,
            is_rtx: false,
            marker,
            is_filler,
            payload,
            picture,
            frame: source.frame,
            padding: 0,
        })
    }

    /// What the subscriber takes of a packet, if anything.
    #[inline]
    fn select<'a>(&self, stored: &Stored<'a>) -> Result<(PayloadTypeMap, &'a [u8]), DropReason> {
        let map = match self.map {
            Some((from, map)) if from == stored.meta.payload_type => map,
            _ => self.map_of(stored.meta.payload_type)?,
        };
        let payload = if map.unwrap_red { red::primary(stored.payload())? } else { stored.payload() };
        Ok((map, payload))
    }

    /// How the subscriber takes a published payload type: of several maps the last counts.
    fn map_of(&self, from: u8) -> Result<PayloadTypeMap, DropReason> {
        let maps = self.maps[..self.maps_len].iter().rev();
        let map = maps.copied().find(|map| map.from == from || map.from == ANY_PAYLOAD_TYPE).ok_or(DropReason::PayloadType)?;
        Ok(PayloadTypeMap { to: if map.to == ANY_PAYLOAD_TYPE { from } else { map.to }, ..map })
    }

    /// `shift` is the timestamp offset that keeps the media clock of the source before, when it is known.
    fn start_source(&mut self, now: Time, layer: usize, sequence: u64, stored: &Stored<'_>, shift: Option<u32>) -> Source {
        let meta = &stored.meta;
        if self.numbering == Numbering::Whole {
            self.next = sequence;
        }
        // What the clock is continued to: the packet, or the newest of the pictures that it is the first of.
        let past = self.past.take().filter(|past| self.numbering == Numbering::Own && sequence < past.end);
        let anchor = past.map_or(meta.timestamp, |past| past.newest_timestamp);
        let behind = anchor.wrapping_sub(past.map_or(anchor, |past| squeeze(past.newest_timestamp, meta.timestamp)));
        let timestamp = match self.last_timestamp {
            _ if self.numbering != Numbering::Own => anchor,
            None => self.first_timestamp,
            Some(last) => {
                // The media clock ran on while no source did; at least one tick, so that two frames never share a timestamp.
                let least = behind + 1;
                let guess = ((now.since(self.last_sent).as_micros() * u128::from(self.clock_rate) / 1_000_000) as u32).max(least);
                // What two clocks say counts if it is near that: frames of two layers are made within a second of each other.
                let told = shift.map(|shift| anchor.wrapping_add(shift).wrapping_sub(last) as i32);
                let near = |ticks: &i32| i64::from(*ticks).abs_diff(i64::from(guess)) <= u64::from(self.clock_rate);
                last.wrapping_add(told.filter(near).map_or(guess, |ticks| ticks.max(least as i32) as u32))
            }
        };
        let picture = self.last_picture.zip(meta.picture.read(stored.payload()));
        let frame = self.last_frame.zip(meta.elements.frame_number(stored.packet));
        let source = Source {
            layer,
            start: sequence,
            first: self.next,
            timestamp_offset: timestamp.wrapping_sub(anchor),
            past,
            picture: picture.map_or_else(PictureShift::default, |(last, first)| last.shift_to(first)),
            frame: frame.map_or(0, |(last, first)| last.wrapping_add(1).wrapping_sub(first)),
        };
        self.source = Some(source);
        self.thinning.reset();
        self.slots.clear();
        self.waiting = false;
        // They name sequences of the source before.
        self.repairs_len = 0;
        source
    }

    /// Bytes of header that a stored packet leaves with.
    #[inline]
    pub fn header_len(&self, meta: &Meta) -> usize {
        if self.numbering == Numbering::Whole { usize::from(meta.header_len) } else { self.layout.len(&meta.elements) }
    }

    /// Each packet takes a transport-wide number: `Stamp::transport_sequence` moves on with it.
    #[inline]
    pub fn has_transport_sequence(&self) -> bool {
        self.layout.has_transport_sequence()
    }

    /// Padding that a fresh packet may get, so that it is as long as its neighbours in a train: at most 3 % of it. Never audio, whose packets
    /// are small, nor where a repair is the same packet again, which nobody remembers the padding of.
    #[inline]
    pub fn padding_max(&self, rewritten: &Rewritten<'_>) -> u8 {
        let repairs_differ = self.rtx_ssrc.is_some() && self.map.is_some_and(|(_, map)| map.rtx.is_some());
        if self.kind == MediaKind::Video && self.numbering == Numbering::Own && repairs_differ && !rewritten.is_rtx {
            (rewritten.payload.len() * PADDING_PERCENT_MAX / 100).min(usize::from(u8::MAX)) as u8
        } else {
            0
        }
    }

    /// Makes header and payload of a packet that [`Outbound::forward`] or [`Outbound::repair`] let through.
    #[inline]
    pub fn write<'a>(&mut self, rewritten: &Rewritten<'a>, stored: &Stored<'a>, stamp: Stamp, scratch: &'a mut Scratch) -> Written<'a> {
        let meta = &stored.meta;
        if matches!(self.numbering, Numbering::TimestampsAndSsrc | Numbering::Whole) {
            self.ssrc = stored.ssrc();
        }
        if self.numbering == Numbering::Whole {
            let header = &stored.packet[..usize::from(meta.header_len)];
            return Written { index: rewritten.index, header, payload: rewritten.payload, padding: 0 };
        }
        let (ssrc, index) = match self.rtx_ssrc.filter(|_| rewritten.is_rtx) {
            None => (self.ssrc, rewritten.index),
            Some(ssrc) => {
                let index = self.rtx_next;
                self.rtx_next += 1;
                (ssrc, index)
            }
        };
        let Scratch { header, payload } = scratch;
        rtp::write_header(header, rewritten.marker, rewritten.payload_type, index as u16, rewritten.timestamp, ssrc);
        let elements = if rewritten.is_filler { &CopiedElements::NONE } else { &meta.elements };
        let header_len = self.layout.write(header, stored.packet, elements, stamp, rewritten.frame);
        let moves_picture = rewritten.picture != PictureShift::default() && meta.picture.any() && !rewritten.is_filler;
        let payload = if rewritten.is_rtx || moves_picture {
            // A copy, because what is sent differs from what all subscribers share: repairs, and VP8 or VP9 after a switch.
            let start = if rewritten.is_rtx { OSN_LEN } else { 0 };
            let len = start + rewritten.payload.len();
            payload[..start].copy_from_slice(&(rewritten.index as u16).to_be_bytes()[..start]);
            payload[start..len].copy_from_slice(rewritten.payload);
            if moves_picture {
                meta.picture.shift(&mut payload[start..len], rewritten.picture);
            }
            &payload[..len]
        } else {
            rewritten.payload
        };
        let padding = rewritten.padding;
        header[0] |= if padding > 0 { rtp::PADDING } else { 0 };
        Written { index, header: &header[..header_len], payload, padding }
    }

    /// Counts a packet that was written.
    #[inline]
    pub fn count_sent(&mut self, payload_len: usize, repair: bool) {
        self.stats.packets += 1;
        self.stats.bytes += payload_len as u64;
        self.stats.retransmitted += u64::from(repair);
        if repair {
            self.repair_credit = self.repair_credit.saturating_sub(1);
        } else {
            self.octets += payload_len as u64;
            self.repair_credit = (self.repair_credit + 1).min(REPAIR_CREDIT_MAX);
        }
    }

    /// The published sequence that stands behind an outgoing 16-bit sequence number, when this source sent it.
    pub fn published_sequence(&self, sequence: u16) -> Option<u64> {
        let source = self.source?;
        // The newest outgoing index with these 16 low bits.
        let newest = self.next.checked_sub(1)?;
        let behind = (newest as u16).wrapping_sub(sequence);
        let index = newest.checked_sub(u64::from(behind))?;
        if index < source.first {
            return None;
        }
        if self.slots.is_in_use() { self.slots.published(index) } else { Some(index - source.first + source.start) }
    }

    /// Queues a repair of a published sequence. Asked twice before it left, it leaves once.
    ///
    /// Errors: [`DropReason::RepairQueueFull`], also when the client has asked for more than its stream's worth.
    pub fn queue_repair(&mut self, published: u64) -> Result<(), DropReason> {
        if self.repairs[..self.repairs_len].contains(&published) {
            return Ok(());
        }
        if self.repairs_len >= self.repair_credit as usize {
            return Err(DropReason::RepairQueueFull);
        }
        let place = self.repairs.get_mut(self.repairs_len).ok_or(DropReason::RepairQueueFull)?;
        *place = published;
        self.repairs_len += 1;
        Ok(())
    }

    /// The next repair to send, by published sequence; stays queued until [`Outbound::repair_done`].
    pub fn next_repair(&self) -> Option<u64> {
        self.repairs_len.checked_sub(1).map(|last| self.repairs[last])
    }

    /// Takes the repair that [`Outbound::next_repair`] told off the queue.
    pub fn repair_done(&mut self) {
        self.repairs_len = self.repairs_len.saturating_sub(1);
    }

    /// A published packet again: as RTX where that is negotiated, else with the same numbers as when it was first sent.
    ///
    /// Errors: those of [`Outbound::forward`]; [`DropReason::RepairMissing`] when another source sent it, and when the section has
    /// no RTX and its header differs each time: one index must not protect two packets.
    pub fn repair<'a>(&self, published: u64, stored: &Stored<'a>) -> Result<Rewritten<'a>, DropReason> {
        let (map, payload) = self.select(stored)?;
        let source = self.source.filter(|s| published >= s.start).ok_or(DropReason::RepairMissing)?;
        let rtx = map.rtx.filter(|_| self.rtx_ssrc.is_some());
        if rtx.is_none() && self.layout.differs_each_time() {
            return Err(DropReason::RepairMissing);
        }
        let first = self.rewrite(&source, published, stored, map.to, payload).ok_or(DropReason::RepairMissing)?;
        Ok(Rewritten { payload_type: rtx.unwrap_or(map.to), is_rtx: rtx.is_some(), ..first })
    }

    /// Takes a full intra request's command number; true when it is a new command and no repetition (RFC 5104 section 4.3.1.2).
    pub fn handle_fir(&mut self, sequence: u8) -> bool {
        self.last_fir.replace(sequence) != Some(sequence)
    }

    /// What a sender report says now: the publisher's own clock, carried on to `now` and shifted to our timestamps, so that
    /// audio and video of one publisher stay on one clock.
    pub fn sender_report(&self, now: Time, clock: &SenderClock) -> Option<SenderReportInfo> {
        let source = self.source?;
        let elapsed = now.since(clock.at);
        Some(SenderReportInfo {
            ssrc: self.ssrc,
            ntp: clock.ntp.wrapping_add(ntp_duration(elapsed)),
            rtp_timestamp: clock
                .rtp_timestamp
                .wrapping_add((elapsed.as_micros() * u128::from(self.clock_rate) / 1_000_000) as u32)
                .wrapping_add(source.timestamp_offset),
            packets: (self.stats.packets - self.stats.retransmitted) as u32,
            octets: self.octets as u32,
        })
    }

    /// Takes what a report block says about our SSRC.
    pub fn handle_report(&mut self, fraction_lost: u8, rtt: Option<Duration>) {
        self.stats.fraction_lost = fraction_lost;
        if let Some(rtt) = rtt {
            self.stats.rtt_us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        }
    }
}

/// The sender info of an SR (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReportInfo {
    /// Our SSRC.
    pub ssrc: u32,
    /// NTP timestamp, 32.32.
    pub ntp: u64,
    /// The same instant in RTP units.
    pub rtp_timestamp: u32,
    /// Packets sent, retransmissions excluded.
    pub packets: u32,
    /// Payload octets sent, retransmissions excluded.
    pub octets: u32,
}

/// A duration as NTP 32.32 fixed point.
pub fn ntp_duration(duration: Duration) -> u64 {
    (duration.as_secs() << 32) | ((u64::from(duration.subsec_nanos()) << 32) / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use pop_schemas::{SubscriptionId, TransportId};

    use super::*;
    use crate::control::{Extension, ExtensionIds};
    use crate::header::CopiedElements;
    use crate::picture::PicturePlaces;

    const PACKET: [u8; 112] = [0; 112];

    fn open(kind: MediaKind) -> OpenSubscription {
        OpenSubscription {
            subscription: SubscriptionId(1),
            transport: TransportId(1),
            kind,
            ssrc: 7,
            first_sequence: 1_000,
            first_timestamp: 50_000,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        }
    }

    fn outbound(kind: MediaKind) -> Outbound {
        let mut outbound = Outbound::new(&open(kind));
        outbound.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        outbound
    }

    fn meta(timestamp: u32, keyframe_start: bool) -> Meta {
        Meta { timestamp, payload_type: 96, marker: true, keyframe_start, header_len: 12, len: 112, ..Meta::default() }
    }

    fn stored(meta: Meta, packet: &[u8]) -> Stored<'_> {
        Stored { meta, packet }
    }

    fn forward(o: &mut Outbound, now: Time, sequence: u64, meta: Meta) -> Result<Rewritten<'static>, DropReason> {
        o.forward(now, 0, sequence, &stored(meta, &PACKET), |_, _| None)
    }

    fn numbers(rewritten: Rewritten<'_>) -> (u64, u32, u8) {
        (rewritten.index, rewritten.timestamp, rewritten.payload_type)
    }

    #[test]
    fn video_starts_at_a_keyframe_and_its_late_packets_keep_their_places() {
        let mut o = outbound(MediaKind::Video);
        assert_eq!(o.wants_keyframe(), Some(0));
        assert_eq!(forward(&mut o, Time::ZERO, 10, meta(1, false)), Err(DropReason::WaitingForKeyframe));
        assert_eq!(forward(&mut o, Time::ZERO, 11, meta(90, true)).map(numbers), Ok((1_000, 50_000, 100)));
        assert_eq!(o.wants_keyframe(), None);
        assert_eq!(forward(&mut o, Time::ZERO, 14, meta(95, false)).map(|r| (r.index, r.timestamp)), Ok((1_003, 50_005)));
        assert_eq!(forward(&mut o, Time::ZERO, 12, meta(90, false)).map(|r| (r.index, r.timestamp)), Ok((1_001, 50_000)));
        assert_eq!(forward(&mut o, Time::ZERO, 9, meta(1, false)), Err(DropReason::WaitingForKeyframe));
    }

    #[test]
    fn numbers_continue_when_the_publisher_restarts() {
        let mut o = outbound(MediaKind::Audio);
        forward(&mut o, Time::ZERO, 500, meta(0, false)).unwrap();
        forward(&mut o, Time::from_millis(20), 501, meta(960, false)).unwrap();
        o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        let r = forward(&mut o, Time::from_millis(1_020), 30_000, meta(777_777, false)).unwrap();
        assert_eq!((r.index, r.timestamp), (1_002, 50_000 + 960 + 48_000));
    }

    #[test]
    fn pictures_of_the_past_are_squeezed_behind_a_clock_that_goes_on() {
        let mut o = outbound(MediaKind::Video);
        forward(&mut o, Time::ZERO, 10, meta(0, true)).unwrap();
        o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        // A second later: the newest of what is kept is the present, and the keyframe was made a second before it.
        o.begin_in_the_past(24, 300_000);
        let at = Time::from_millis(1_000);
        let first = forward(&mut o, at, 20, meta(210_000, true)).unwrap();
        assert_eq!((first.index, first.timestamp), (1_001, 140_000 - 3_000));
        for (sequence, published, expected) in
            [(21, 213_000, 137_100), (22, 297_000, 139_900), (23, 300_000, 140_000), (24, 303_000, 143_000)]
        {
            let packet = meta(published, false);
            let sent = forward(&mut o, at, sequence, packet).unwrap();
            assert_eq!(sent.timestamp, expected);
            assert_eq!(o.repair(sequence, &stored(packet, &PACKET)), Ok(sent), "the same when it is sent again");
        }
        // Half a turn of the clock later it is still the present.
        for (sequence, published) in [(25, 1_300_000), (26, 0x7fff_ffff), (27, 0xffff_0000)] {
            assert_eq!(forward(&mut o, at, sequence, meta(published, false)).unwrap().timestamp, published - 160_000);
        }
    }

    #[test]
    fn what_was_squeezed_looks_the_same_again_whatever_time_the_publisher_claims_later() {
        let mut o = outbound(MediaKind::Video);
        o.begin_in_the_past(22, 300_000);
        let past: Vec<_> = [(20, 210_000), (21, 300_000)]
            .map(|(sequence, timestamp)| (sequence, meta(timestamp, sequence == 20)))
            .map(|(sequence, packet)| (sequence, packet, forward(&mut o, Time::ZERO, sequence, packet).unwrap()))
            .into();
        for (sequence, claimed) in [(22, 1_300_000), (23, 0x8fff_ffff), (24, 0), (25, 300_000)] {
            let live = meta(claimed, false);
            let sent = forward(&mut o, Time::ZERO, sequence, live).unwrap();
            assert_eq!(o.repair(sequence, &stored(live, &PACKET)), Ok(sent));
            for (sequence, packet, first) in &past {
                assert_eq!(o.repair(*sequence, &stored(*packet, &PACKET)).as_ref(), Ok(first), "{claimed}");
            }
        }
    }

    #[test]
    fn who_comes_back_at_once_gets_no_picture_older_than_it_has() {
        let mut o = outbound(MediaKind::Video);
        let last = forward(&mut o, Time::ZERO, 10, meta(0, true)).unwrap().timestamp;
        o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        o.begin_in_the_past(21, 180_000);
        assert_eq!(forward(&mut o, Time::from_millis(1), 20, meta(0, true)).unwrap().timestamp, last + 1);
    }

    #[test]
    fn a_past_that_is_given_up_moves_no_clock() {
        for end in [Outbound::forget_past as fn(&mut Outbound), |o| o.end_layer(0)] {
            let mut o = outbound(MediaKind::Video);
            o.begin_in_the_past(21, 300_000);
            end(&mut o);
            assert_eq!(forward(&mut o, Time::ZERO, 20, meta(7, true)).unwrap().timestamp, 50_000);
        }
    }

    #[test]
    fn a_payload_type_that_the_viewer_cannot_take_is_dropped() {
        let mut o = outbound(MediaKind::Audio);
        let other = Meta { payload_type: 97, ..meta(0, false) };
        assert_eq!(forward(&mut o, Time::ZERO, 1, other), Err(DropReason::PayloadType));
    }

    #[test]
    fn a_repair_has_the_numbers_of_the_first_sending() {
        let mut o = outbound(MediaKind::Video);
        let first = forward(&mut o, Time::ZERO, 70_000, meta(5, true)).unwrap();
        forward(&mut o, Time::ZERO, 70_001, meta(6, false)).unwrap();
        assert_eq!(o.published_sequence(1_000), Some(70_000));
        assert_eq!(o.published_sequence(999), None, "sent by nobody, or by the source before");
        assert_eq!(o.repair(70_000, &stored(meta(5, true), &PACKET)), Ok(first));
    }

    #[test]
    fn a_sequence_number_is_found_behind_a_rollover() {
        let mut o = outbound(MediaKind::Audio);
        for i in 0..70_000 {
            forward(&mut o, Time::ZERO, i, meta(i as u32, false)).unwrap();
        }
        // 1,000 + 69,999 = 70,999 is the newest index: 5,463 after one rollover.
        assert_eq!(o.published_sequence(5_463), Some(69_999));
        assert_eq!(o.published_sequence(65_535), Some(64_535));
    }

    #[test]
    fn the_repair_queue_is_bounded_and_holds_a_packet_once() {
        let mut o = outbound(MediaKind::Video);
        for i in 0..REPAIRS_MAX as u64 {
            o.queue_repair(i).unwrap();
            o.queue_repair(i).unwrap();
        }
        assert_eq!(o.queue_repair(1_000), Err(DropReason::RepairQueueFull));
        let mut sent = 0;
        while o.next_repair().is_some() {
            o.repair_done();
            sent += 1;
        }
        assert_eq!(sent, REPAIRS_MAX);
    }

    #[test]
    fn a_client_cannot_ask_for_more_than_its_streams_worth_of_repairs() {
        let mut o = outbound(MediaKind::Video);
        let mut sent = 0;
        for turn in 0..100 {
            forward(&mut o, Time::ZERO, turn, meta(0, true)).unwrap();
            o.count_sent(100, false);
            for sequence in 0..REPAIRS_MAX as u64 {
                let _ = o.queue_repair(sequence);
            }
            while o.next_repair().is_some() {
                o.repair_done();
                o.count_sent(100, true);
                sent += 1;
            }
        }
        assert!(sent <= REPAIR_CREDIT_MAX + 100, "{sent} repairs for 100 packets");
        assert_eq!(o.queue_repair(1), Err(DropReason::RepairQueueFull));
        o.count_sent(100, false);
        assert_eq!(o.queue_repair(1), Ok(()));
    }

    #[test]
    fn numbers_stand_still_while_the_publisher_sends_what_the_viewer_cannot_take() {
        let mut o = outbound(MediaKind::Audio);
        assert_eq!(forward(&mut o, Time::ZERO, 0, meta(0, false)).map(|r| r.index), Ok(1_000));
        let other = Meta { payload_type: 97, ..meta(0, false) };
        for sequence in 1..40_000 {
            assert_eq!(forward(&mut o, Time::ZERO, sequence, other), Err(DropReason::PayloadType));
        }
        assert_eq!(forward(&mut o, Time::ZERO, 40_000, meta(0, false)).map(|r| r.index), Ok(1_001));
        assert_eq!(forward(&mut o, Time::ZERO, 39_000, other), Err(DropReason::PayloadType));
        assert_eq!(forward(&mut o, Time::ZERO, 40_001, meta(0, false)).map(|r| r.index), Ok(1_002), "a late one changes nothing");
    }

    #[test]
    fn a_jump_of_the_publisher_is_none_of_the_viewers() {
        let mut o = outbound(MediaKind::Video);
        forward(&mut o, Time::ZERO, 10, meta(0, true)).unwrap();
        assert_eq!(forward(&mut o, Time::ZERO, 10 + JUMP_MAX, meta(0, false)).map(|r| r.index), Ok(1_000 + JUMP_MAX), "bounded");
        let far = 11 + 2 * JUMP_MAX;
        assert_eq!(forward(&mut o, Time::ZERO, far, meta(0, false)), Err(DropReason::WaitingForKeyframe));
        assert_eq!(o.wants_keyframe(), Some(0));
        for _ in 0..2 {
            let first = forward(&mut o, Time::ZERO, far + 1, meta(0, true)).map(|r| r.index);
            assert_eq!(first, Ok(1_001 + JUMP_MAX), "also when it is asked again");
        }
        assert_eq!(forward(&mut o, Time::ZERO, 11, meta(0, false)), Err(DropReason::WaitingForKeyframe));
    }

    #[test]
    fn audio_and_video_reports_carry_the_publishers_clock() {
        let mut o = outbound(MediaKind::Video);
        let clock = SenderClock { ntp: 10 << 32, rtp_timestamp: 900, at: Time::ZERO };
        assert_eq!(o.sender_report(Time::ZERO, &clock), None);
        forward(&mut o, Time::ZERO, 1, meta(0, true)).unwrap();
        let report = o.sender_report(Time::from_millis(500), &clock).unwrap();
        assert_eq!(report.ntp, (10 << 32) + (1 << 31));
        assert_eq!(report.rtp_timestamp, 50_000 + 900 + 45_000);
    }
    /// A VP8 packet of a layer: its descriptor's picture id and TL0PICIDX.
    fn vp8(timestamp: u32, keyframe_start: bool, id: u16, tl0: u8) -> (Meta, Vec<u8>) {
        let [high, low] = (id | 0x8000).to_be_bytes();
        let packet = [&[0; 12][..], &[0x90, 0xc0, high, low, tl0, 9, 9, 9]].concat();
        let picture = PicturePlaces::find(Codec::Vp8, &packet[12..]);
        let len = packet.len() as u16;
        (Meta { timestamp, payload_type: 96, keyframe_start, header_len: 12, len, picture, ..Meta::default() }, packet)
    }

    #[test]
    fn a_layer_is_left_at_the_next_ones_keyframe_and_every_number_goes_on() {
        let mut o = outbound(MediaKind::Video);
        let mut scratch = Scratch::default();
        let mut send = |o: &mut Outbound, at: u64, layer: usize, sequence: u64, (meta, packet): (Meta, Vec<u8>), align: Option<u32>| {
            let stored = Stored { meta, packet: &packet };
            if !o.takes(layer, meta.keyframe_start) {
                return None;
            }
            let rewritten = o.forward(Time::from_millis(at), layer, sequence, &stored, |_, _| align).unwrap();
            let written = o.write(&rewritten, &stored, Stamp::default(), &mut scratch);
            Some((rewritten.index, rewritten.timestamp, written.payload[2..5].to_vec()))
        };
        assert_eq!(send(&mut o, 0, 0, 10, vp8(900, true, 0x7fff, 255), None), Some((1_000, 50_000, vec![0xff, 0xff, 255])));
        o.want_layer(1);
        assert_eq!(o.wants_keyframe(), Some(1));
        assert_eq!(send(&mut o, 33, 1, 70, vp8(7_000, false, 5, 6), None), None, "not before its keyframe");
        assert_eq!(send(&mut o, 33, 0, 11, vp8(3_900, false, 0, 0), None), Some((1_001, 53_000, vec![0x80, 0, 0])));
        // Layer 1's clock is 3,100 ticks ahead: its 10,000 is layer 0's 6,900.
        let first = send(&mut o, 70, 1, 71, vp8(10_000, true, 6, 7), Some(0u32.wrapping_sub(3_100)));
        assert_eq!(first, Some((1_002, 56_000, vec![0x80, 1, 1])));
        assert_eq!(o.wants_keyframe(), None);
        assert_eq!(send(&mut o, 71, 0, 12, vp8(6_900, false, 1, 1), None), None, "the old layer is over");
        assert_eq!(send(&mut o, 100, 1, 72, vp8(13_000, false, 7, 8), None), Some((1_003, 59_000, vec![0x80, 2, 2])));
        assert_eq!(o.published_sequence(1_001), None, "the old layer's packets are nobody's");
        assert_eq!(o.published_sequence(1_002), Some(71));
    }

    #[test]
    fn a_section_at_rest_takes_nothing_and_goes_on_at_a_keyframe_with_the_numbers_and_the_clock_that_it_had() {
        let mut o = outbound(MediaKind::Video);
        forward(&mut o, Time::ZERO, 10, meta(900, true)).unwrap();
        o.rest();
        assert_eq!((o.layer(), o.wanted_layer(), o.wants_keyframe()), (None, None, None));
        assert!(!o.takes(0, meta(3_900, true).keyframe_start));
        assert_eq!(forward(&mut o, Time::from_millis(33), 11, meta(3_900, true)), Err(DropReason::WaitingForKeyframe));
        o.want_layer(0);
        assert_eq!(o.wants_keyframe(), Some(0));
        assert_eq!(forward(&mut o, Time::from_millis(66), 12, meta(6_900, false)), Err(DropReason::WaitingForKeyframe));
        // It comes 7 ms late, which is no reason to move the clock.
        let next = o.forward(Time::from_millis(107), 0, 13, &stored(meta(9_900, true), &PACKET), |_, _| Some(0)).unwrap();
        assert_eq!((next.index, next.timestamp), (1_001, 59_000));
    }

    #[test]
    fn audio_goes_on_with_the_next_packet_after_a_rest() {
        let mut o = outbound(MediaKind::Audio);
        forward(&mut o, Time::ZERO, 10, meta(960, false)).unwrap();
        o.rest();
        o.rest();
        o.want_layer(0);
        let next = forward(&mut o, Time::from_millis(100), 15, meta(5_760, false)).unwrap();
        assert_eq!((next.index, next.timestamp), (1_001, 54_800));
    }

    #[test]
    fn without_clocks_a_layer_continues_at_the_time_that_passed() {
        for told in [None, Some(5_000_000)] {
            let mut o = outbound(MediaKind::Video);
            forward(&mut o, Time::ZERO, 1, meta(900, true)).unwrap();
            o.want_layer(1);
            let next = o.forward(Time::from_millis(100), 1, 50, &stored(meta(7, true), &PACKET), |_, _| told).unwrap();
            assert_eq!(next.timestamp, 50_000 + 9_000, "{told:?}");
        }
    }

    #[test]
    fn two_layers_of_one_instant_do_not_share_a_timestamp() {
        let mut o = outbound(MediaKind::Video);
        forward(&mut o, Time::ZERO, 1, meta(900, true)).unwrap();
        o.want_layer(1);
        let next = o.forward(Time::ZERO, 1, 50, &stored(meta(900, true), &PACKET), |_, _| Some(0)).unwrap();
        assert_eq!(next.timestamp, 50_001);
    }

    #[test]
    fn frame_numbers_of_a_descriptor_go_on_when_the_publisher_restarts() {
        let ids = ExtensionIds::NONE.with(Extension::DependencyDescriptor, 3);
        let mut o = Outbound::new(&OpenSubscription { extensions: ids, ..open(MediaKind::Video) });
        let maps = [PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }];
        o.switch_source(Some(0), &maps);
        let mut scratch = Scratch::default();
        let mut send = |o: &mut Outbound, sequence: u64, frame: u16| {
            let [high, low] = frame.to_be_bytes();
            let packet = [&[0x90][..], &[0; 11], &[0xbe, 0xde, 0, 1, 0x32, 0xc0, high, low], &[7; 20]].concat();
            let elements = CopiedElements::find(&rtp::RtpView::parse(&packet).unwrap(), &ids);
            let len = packet.len() as u16;
            let meta = Meta { payload_type: 96, keyframe_start: true, header_len: 20, len, elements, ..Meta::default() };
            let stored = Stored { meta, packet: &packet };
            let rewritten = o.forward(Time::ZERO, 0, sequence, &stored, |_, _| None).unwrap();
            let written = o.write(&rewritten, &stored, Stamp::default(), &mut scratch);
            rtp::RtpView::parse(written.header).unwrap().extension(3).unwrap().to_vec()
        };
        assert_eq!(send(&mut o, 1, 40_000), [0xc0, 0x9c, 0x40]);
        o.switch_source(Some(0), &maps);
        assert_eq!(send(&mut o, 500, 0), [0xc0, 0x9c, 0x41], "40,001: a decoder takes no older key picture");
        assert_eq!(send(&mut o, 501, 1), [0xc0, 0x9c, 0x42]);
    }

    #[test]
    fn a_repair_with_rtx_has_its_own_numbers_and_names_the_original() {
        let mut o = Outbound::new(&OpenSubscription {
            rtx_ssrc: Some(8),
            extensions: ExtensionIds::NONE.with(Extension::TransportCc, 1),
            ..open(MediaKind::Video)
        });
        o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: Some(101), unwrap_red: false }]);
        let mut packet = PACKET;
        packet[12..].fill(5);
        let stored = stored(meta(5, true), &packet);
        o.forward(Time::ZERO, 0, 70_000, &stored, |_, _| None).unwrap();
        let mut scratch = Scratch::default();
        for expected in 1_000..1_003 {
            let repair = o.repair(70_000, &stored).unwrap();
            assert_eq!(repair.payload_len(), 102);
            let written = o.write(&repair, &stored, Stamp { send_time: 0, transport_sequence: expected as u16 }, &mut scratch);
            let view = rtp::RtpView::parse(written.header).unwrap();
            assert_eq!((written.index, view.sequence(), view.ssrc(), view.payload_type()), (expected, expected as u16, 8, 101));
            assert_eq!(view.timestamp(), 50_000);
            assert_eq!(written.payload, [&1_000u16.to_be_bytes()[..], &[5; 100]].concat());
            assert_eq!(written.header.len(), o.header_len(&stored.meta));
        }
    }

    #[test]
    fn without_rtx_a_header_that_differs_each_time_is_never_sent_twice() {
        for extension in [Extension::TransportCc, Extension::AbsSendTime] {
            let mut o = Outbound::new(&OpenSubscription { extensions: ExtensionIds::NONE.with(extension, 1), ..open(MediaKind::Audio) });
            o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: Some(101), unwrap_red: false }]);
            forward(&mut o, Time::ZERO, 1, meta(0, false)).unwrap();
            assert_eq!(o.repair(1, &stored(meta(0, false), &PACKET)), Err(DropReason::RepairMissing));
        }
    }

    #[test]
    fn a_subscriber_without_red_gets_the_primary_and_numbers_stand_still_over_malformed_blocks() {
        let mut o = Outbound::new(&open(MediaKind::Audio));
        o.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 111, rtx: None, unwrap_red: true }]);
        let good = [&[0; 12][..], &[0x80 | 96, 0, 0, 2, 96, 8, 9, 1, 2, 3]].concat();
        let bad = [&[0; 12][..], &[0x80 | 96, 0, 3, 2, 96, 8, 9, 1, 2, 3]].concat();
        let meta = Meta { len: good.len() as u16, ..meta(0, false) };
        let mut scratch = Scratch::default();
        let mut send = |o: &mut Outbound, sequence: u64, packet: &[u8]| {
            let stored = Stored { meta, packet };
            let rewritten = o.forward(Time::ZERO, 0, sequence, &stored, |_, _| None)?;
            Ok((rewritten.index, o.write(&rewritten, &stored, Stamp::default(), &mut scratch).payload.to_vec()))
        };
        assert_eq!(send(&mut o, 0, &good), Ok((1_000, vec![1, 2, 3])));
        for sequence in 1..40_000 {
            assert_eq!(send(&mut o, sequence, &bad), Err(DropReason::RedMalformed));
        }
        assert_eq!(send(&mut o, 40_000, &good), Ok((1_001, vec![1, 2, 3])));
    }

    #[test]
    fn after_the_last_index_of_a_key_a_section_says_so() {
        let mut o = outbound(MediaKind::Audio);
        o.next = RTP_INDEX_END - 1;
        assert!(!o.is_exhausted());
        assert_eq!(forward(&mut o, Time::ZERO, 1, meta(0, false)).map(|r| r.index), Ok(RTP_INDEX_END - 1));
        assert!(o.is_exhausted());
    }

    #[test]
    fn a_repeated_fir_is_one_command() {
        let mut o = outbound(MediaKind::Video);
        assert_eq!([5, 5, 5, 6, 6, 5].map(|sequence| o.handle_fir(sequence)), [true, false, false, true, false, true]);
    }
}
