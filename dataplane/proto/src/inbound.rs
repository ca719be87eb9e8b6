//! One published stream: what came, what is missing, what the publisher must be asked for.

use std::time::Duration;

use pop_schemas::Time;

use crate::codec;
use crate::control::{ANY_PAYLOAD_TYPE, Codec, MediaKind, OpenTrack, PayloadType, TrackStats};
use crate::drop_reason::DropReason;
use crate::group::{Group, HOLE_PATIENCE};
use crate::history::{History, Meta, PacketPool};
use crate::layering::Layering;
use crate::picture::PicturePlaces;
use crate::remb::Received;

/// Packets that a video track's history holds: 1 s of 10 Mb/s in 1,200-byte packets, as a power of two.
pub const VIDEO_HISTORY_LEN: usize = 1_024;

/// Packets that an audio track's history holds: 1 s of 10 ms packets, as a power of two.
pub const AUDIO_HISTORY_LEN: usize = 128;

/// Missing packets that are tracked at once; a larger hole is a keyframe's work.
const MISSING_MAX: usize = 256;

/// A missing packet is asked for this often, then given up.
const ASKS_MAX: u8 = 10;

/// Between two asks for one packet. The publisher's round trip is not known to a receiver; half of it costs one extra ask.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// At most one keyframe request per layer in this time.
pub const PLI_INTERVAL: Duration = Duration::from_millis(500);

/// After this many unanswered keyframe requests they come [`PLI_INTERVAL_SLOW`] apart: the source is probably muted.
const PLIS_FAST: u32 = 6;

/// See [`PLIS_FAST`].
const PLI_INTERVAL_SLOW: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
struct Missing {
    sequence: u64,
    next_ask: Time,
    asks: u8,
}

/// The publisher's last sender report: its wall clock and the RTP timestamp of the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderClock {
    /// NTP timestamp, 32.32.
    pub ntp: u64,
    /// RTP timestamp.
    pub rtp_timestamp: u32,
    /// When the report came.
    pub at: Time,
}

impl SenderClock {
    /// What to add to a timestamp of `other` to get the one of the same instant on this clock; both at `clock_rate`.
    pub fn ticks_ahead(&self, other: &SenderClock, clock_rate: u32) -> u32 {
        let between = i128::from(other.ntp.wrapping_sub(self.ntp) as i64);
        let ticks = (between * i128::from(clock_rate)) >> 32;
        self.rtp_timestamp.wrapping_sub(other.rtp_timestamp).wrapping_add(ticks as u32)
    }
}

/// A report block's values (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reception {
    /// Lost since the last report, of 256.
    pub fraction_lost: u8,
    /// Lost since the start; negative with duplicates.
    pub cumulative_lost: i32,
    /// Highest sequence number with its cycles.
    pub highest_sequence: u32,
    /// Interarrival jitter in RTP units.
    pub jitter: u32,
    /// Middle 32 bits of the last SR's NTP timestamp, 0 without one.
    pub last_sender_report: u32,
    /// Since that SR, in 1/65,536 s.
    pub delay_since_sender_report: u32,
}

/// The state of one published stream.
pub struct Inbound {
    kind: MediaKind,
    payload_types: Vec<PayloadType>,
    nack: bool,
    pli: bool,
    fir: bool,
    history: History,
    /// Of video alone.
    layering: Option<Box<Layering>>,
    first: Option<u64>,
    highest: u64,
    missing: Vec<Missing>,
    jitter_q4: u64,
    transit: Option<i64>,
    expected_prior: u64,
    received_prior: u64,
    clock: Option<SenderClock>,
    keyframe_wanted: bool,
    /// Of video: where the present group of pictures is.
    group: Option<Group>,
    /// Somebody who is shown nothing waits for a picture: one from the history will do.
    picture_wanted: bool,
    /// Until when a hole in the group is waited for.
    hole_until: Option<Time>,
    last_pli: Option<Time>,
    plis_unanswered: u32,
    fir_sequence: u8,
    /// The publisher said goodbye; nothing is asked for until it sends again.
    ended: bool,
    /// Nobody takes it; nothing is asked for.
    unwanted: bool,
    /// Packets that came because they were asked for again.
    repaired: u64,
    /// Packets of the streams before the last restart.
    packets_before: u64,
    stats: TrackStats,
}

impl Inbound {
    /// A stream of which nothing has come.
    pub fn new(open: &OpenTrack) -> Inbound {
        Inbound {
            kind: open.kind,
            payload_types: open.payload_types.clone(),
            nack: open.nack,
            pli: open.pli,
            fir: open.fir,
            history: History::new(history_len(open.kind)),
            layering: (open.kind == MediaKind::Video).then(Box::default),
            first: None,
            highest: 0,
            missing: Vec::with_capacity(MISSING_MAX),
            jitter_q4: 0,
            transit: None,
            expected_prior: 0,
            received_prior: 0,
            clock: None,
            keyframe_wanted: false,
            group: None,
            picture_wanted: false,
            hole_until: None,
            last_pli: None,
            plis_unanswered: 0,
            fir_sequence: 0,
            ended: false,
            unwanted: false,
            repaired: 0,
            packets_before: 0,
            stats: TrackStats::default(),
        }
    }

    /// Audio or video.
    pub fn kind(&self) -> MediaKind {
        self.kind
    }

    /// The codec of a negotiated payload type.
    pub fn codec(&self, payload_type: u8) -> Option<Codec> {
        self.payload_types.iter().find(|p| p.number == payload_type || p.number == ANY_PAYLOAD_TYPE).map(|p| p.codec)
    }

    /// Whether it takes whatever comes ([`Codec::Raw`]).
    pub fn takes_any(&self) -> bool {
        self.payload_types.iter().any(|p| p.number == ANY_PAYLOAD_TYPE)
    }

    /// The payload type that `rtx` repeats (RFC 4588 section 8.6), when it is negotiated.
    pub fn repeated_by(&self, rtx: u8) -> Option<u8> {
        self.payload_types.iter().find(|p| p.rtx == Some(rtx)).map(|p| p.number)
    }

    /// The extended sequence number that a 16-bit one of a retransmission means: the nearest to the newest.
    ///
    /// Errors: [`DropReason::UnknownStream`] before the first packet, [`DropReason::TooOld`] before sequence 0.
    pub fn extend_repeated(&self, sequence: u16) -> Result<u64, DropReason> {
        self.first.ok_or(DropReason::UnknownStream)?;
        let ahead = sequence.wrapping_sub(self.highest as u16) as i16;
        self.highest.checked_add_signed(i64::from(ahead)).ok_or(DropReason::TooOld)
    }

    /// How many packets should have come, and how many came unasked.
    pub fn received(&self) -> Received {
        let expected = self.first.map_or(0, |first| self.highest - first + 1);
        Received { expected, received: self.packets_of_stream().saturating_sub(self.repaired) }
    }

    /// The publisher said that the stream ends (RFC 3550 section 6.6). It may go on later under the same numbers.
    pub fn end(&mut self) {
        self.ended = true;
        self.missing.clear();
        (self.keyframe_wanted, self.picture_wanted, self.hole_until, self.group) = (false, false, None, None);
    }

    /// Whether anybody takes the stream. While nobody does, neither packets nor keyframes are asked for.
    pub fn set_wanted(&mut self, wanted: bool) {
        self.unwanted = !wanted;
        if self.unwanted {
            self.missing.clear();
            (self.keyframe_wanted, self.picture_wanted, self.hole_until) = (false, false, None);
        }
    }

    /// See [`Inbound::set_wanted`]: so it begins.
    pub fn is_wanted(&self) -> bool {
        !self.unwanted
    }

    /// The packets.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What the stream's packets tell about spatial and temporal layers; `None` for audio.
    pub fn layering(&self) -> Option<&Layering> {
        self.layering.as_deref()
    }

    /// Reads what a packet's own descriptors say; the next is [`Inbound::handle_packet`] with it. Returns false when its dependency
    /// descriptor is malformed: it is no reason to drop the packet.
    #[inline]
    pub fn read_payload(&mut self, sequence: u64, packet: &[u8], meta: &mut Meta, codec: Codec) -> bool {
        let payload = &packet[usize::from(meta.header_len)..];
        meta.picture = PicturePlaces::find(codec, payload);
        let Some(layering) = &mut self.layering else {
            meta.keyframe_start = codec::is_keyframe_start(codec, payload);
            return true;
        };
        let read = layering.read(sequence, codec, meta.elements.descriptor(packet), payload, meta.marker);
        // The payload may be encrypted from end to end, the descriptor is not.
        meta.keyframe_start = read.keyframe_start.unwrap_or_else(|| codec::is_keyframe_start(codec, payload));
        meta.layers = read.layers;
        !read.malformed
    }

    /// The publisher's clock, once a sender report came.
    pub fn clock(&self) -> Option<SenderClock> {
        self.clock
    }

    /// Counters since the start.
    pub fn stats(&self) -> TrackStats {
        let expected = self.first.map_or(0, |first| self.highest - first + 1);
        let lost = self.stats.lost + expected as i64 - self.packets_of_stream() as i64;
        TrackStats { lost, jitter: (self.jitter_q4 >> 4) as u32, ..self.stats }
    }

    /// Packets received since the start.
    pub fn packets(&self) -> u64 {
        self.stats.packets
    }

    /// The encoder began anew under another SSRC: numbers, clock and history start over, totals go on.
    pub fn restart(&mut self, pool: &mut PacketPool) {
        self.history.reset(pool);
        if let Some(layering) = &mut self.layering {
            layering.reset();
        }
        self.group = None;
        // What never came of the old stream stays counted; the new one's numbers begin behind it.
        self.stats.lost = self.stats().lost;
        self.packets_before = self.stats.packets;
        (self.repaired, self.ended) = (0, false);
        (self.first, self.highest) = (None, 0);
        self.missing.clear();
        (self.transit, self.clock) = (None, None);
        (self.expected_prior, self.received_prior) = (0, 0);
    }

    /// Takes an authenticated packet: `sequence` is extended, `packet` is header and payload without padding, `codec` is that of
    /// its payload type ([`Inbound::codec`]).
    ///
    /// Errors: those of [`History::insert`].
    pub fn handle_packet(
        &mut self,
        pool: &mut PacketPool,
        now: Time,
        sequence: u64,
        packet: &[u8],
        meta: Meta,
        codec: Codec,
    ) -> Result<(), DropReason> {
        self.history.insert(pool, now, sequence, packet, meta)?;
        self.stats.packets += 1;
        self.stats.bytes += u64::from(meta.len - meta.header_len);
        self.stats.codec = Some(codec);
        self.ended = false;
        self.track_sequence(now, sequence);
        if !meta.repeated {
            self.track_jitter(now, codec, meta.timestamp);
        }
        if meta.keyframe_start {
            self.keyframe_wanted = false;
            self.plis_unanswered = 0;
        }
        // Raw packets stand alone: nothing old helps anybody.
        if self.kind == MediaKind::Video && !matches!(codec, Codec::Raw { .. }) {
            self.follow_group(pool, now, sequence, &meta);
        }
        Ok(())
    }

    /// Lets the group of pictures begin or grow by a packet that is in the history, and by those that waited for it.
    fn follow_group(&mut self, pool: &PacketPool, now: Time, sequence: u64, meta: &Meta) {
        if meta.keyframe_start && self.group.is_none_or(|group| group.ends_before(sequence, meta.timestamp)) {
            self.group = Some(Group::begin(now, sequence, meta.timestamp));
        }
        let Some(group) = &mut self.group else { return };
        while group.is_small()
            && let Some(meta) = self.history.held(pool, group.next())
        {
            group.take(meta);
        }
    }

    /// Asks for a picture for somebody who is shown nothing: one that is kept, else a keyframe. See [`Inbound::poll_group`].
    pub fn request_picture(&mut self) {
        self.picture_wanted = self.kind == MediaKind::Video;
    }

    /// The group of pictures that those who wait for one are to begin with, when there is one, whole and short. A hole in it is
    /// waited for a little; else a keyframe is asked for.
    pub fn poll_group(&mut self, now: Time) -> Option<Group> {
        if !self.picture_wanted {
            return None;
        }
        if let Some(group) = self.group.filter(|group| group.is_short(now)) {
            if group.next() > self.highest {
                (self.picture_wanted, self.hole_until) = (false, None);
                return Some(group);
            }
            if now < *self.hole_until.get_or_insert(now + HOLE_PATIENCE) {
                return None;
            }
        }
        (self.picture_wanted, self.hole_until) = (false, None);
        self.request_keyframe();
        None
    }

    fn track_sequence(&mut self, now: Time, sequence: u64) {
        let Some(first) = self.first else {
            (self.first, self.highest) = (Some(sequence), sequence);
            return;
        };
        self.first = Some(first.min(sequence));
        if sequence > self.highest {
            let hole = self.highest + 1..sequence;
            self.highest = sequence;
            if hole.end - hole.start > MISSING_MAX as u64 {
                self.missing.clear();
                self.request_keyframe();
            } else {
                hole.for_each(|sequence| self.miss(now, sequence));
            }
        } else if let Some(index) = self.missing.iter().position(|m| m.sequence == sequence) {
            self.repaired += u64::from(self.missing.swap_remove(index).asks > 0);
        }
    }

    fn miss(&mut self, now: Time, sequence: u64) {
        if !self.nack || self.unwanted {
            return;
        }
        if self.missing.len() == MISSING_MAX {
            // Too much is gone for repairs to be in time.
            self.missing.clear();
            self.request_keyframe();
            return;
        }
        self.missing.push(Missing { sequence, next_ask: now, asks: 0 });
    }

    fn track_jitter(&mut self, now: Time, codec: Codec, timestamp: u32) {
        // RFC 3550 appendix A.8; the arrival is taken in RTP units.
        let arrival = now.as_micros() as i64 * i64::from(codec.clock_rate()) / 1_000_000;
        let transit = i64::from((arrival as u32).wrapping_sub(timestamp) as i32);
        if let Some(before) = self.transit.replace(transit) {
            let difference = i64::from((transit as i32).wrapping_sub(before as i32)).unsigned_abs();
            self.jitter_q4 = self.jitter_q4 + difference - ((self.jitter_q4 + 8) >> 4);
        }
    }

    /// Packets since the stream began or began anew.
    fn packets_of_stream(&self) -> u64 {
        self.stats.packets - self.packets_before
    }

    /// Takes a sender report about this stream.
    pub fn handle_sender_report(&mut self, now: Time, ntp: u64, rtp_timestamp: u32) {
        self.clock = Some(SenderClock { ntp, rtp_timestamp, at: now });
    }

    /// The publisher said goodbye and has not sent since.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Asks for a keyframe at the next opportunity; many asks are one.
    pub fn request_keyframe(&mut self) {
        self.keyframe_wanted = self.kind == MediaKind::Video && (self.pli || self.fir) && !self.unwanted;
    }

    /// What has been missing for so long comes no more, where others ask for it: of a picture that lacks it a new one has to begin.
    pub fn give_up_missing(&mut self, now: Time, patience: Duration) {
        let before = self.missing.len();
        self.missing.retain(|missing| now.since(missing.next_ask) < patience);
        if self.missing.len() < before {
            self.request_keyframe();
        }
    }

    /// Asks for a packet that never came, on behalf of a viewer that misses it.
    pub fn request_repair(&mut self, now: Time, sequence: u64) {
        let in_reach = self.first.is_some_and(|first| sequence > first)
            && sequence < self.highest
            && sequence + self.history.capacity() > self.highest;
        if in_reach && !self.missing.iter().any(|m| m.sequence == sequence) {
            self.miss(now, sequence);
        }
    }

    /// Writes the sequence numbers to ask for now into `asks`, in order; returns how many.
    pub fn poll_nack(&mut self, now: Time, asks: &mut [u16]) -> usize {
        let before = self.missing.len();
        self.missing.retain(|m| m.asks < ASKS_MAX);
        if self.missing.len() < before {
            self.request_keyframe();
        }
        let mut len = 0;
        for missing in self.missing.iter_mut().filter(|m| m.next_ask <= now) {
            let Some(ask) = asks.get_mut(len) else { break };
            *ask = missing.sequence as u16;
            missing.asks += 1;
            missing.next_ask = now + ASK_INTERVAL;
            len += 1;
        }
        self.stats.nacked += len as u64;
        // `swap_remove` disorders the list; a NACK's bit mask needs order. Sequence numbers of one list span less than 2^15.
        let base = self.highest as u16;
        asks[..len].sort_unstable_by_key(|s| std::cmp::Reverse(base.wrapping_sub(*s)));
        len
    }

    /// Whether [`Inbound::poll_nack`] has something to ask now.
    pub fn nack_due(&self, now: Time) -> bool {
        self.missing.iter().any(|m| m.next_ask <= now)
    }

    /// Whether a keyframe request is to be sent now.
    pub fn pli_due(&self, now: Time) -> bool {
        self.first.is_some() && self.keyframe_due(now)
    }

    /// The same, whether or not anything came yet: of a mirror, whose home knows more.
    pub fn keyframe_due(&self, now: Time) -> bool {
        let interval = if self.plis_unanswered < PLIS_FAST { PLI_INTERVAL } else { PLI_INTERVAL_SLOW };
        self.keyframe_wanted && !self.ended && self.last_pli.is_none_or(|last| now.since(last) >= interval)
    }

    /// The keyframe request to send: a PLI where that was negotiated, else a FIR with this command number.
    pub fn fir_sequence(&self) -> Option<u8> {
        (!self.pli).then_some(self.fir_sequence)
    }

    /// Counts a keyframe request as sent.
    pub fn pli_sent(&mut self, now: Time) {
        self.last_pli = Some(now);
        self.plis_unanswered = self.plis_unanswered.saturating_add(1);
        // RFC 5104 section 4.3.1.2: "increased by 1 modulo 256 for each new command". A request half a second later is new: the
        // keyframe that answered the last one may be what was lost.
        self.fir_sequence = self.fir_sequence.wrapping_add(1);
        self.stats.plis += 1;
    }

    /// The next report block; `None` before the first packet.
    pub fn poll_reception(&mut self, now: Time) -> Option<Reception> {
        let first = self.first?;
        let expected = self.highest - first + 1;
        let expected_interval = expected - self.expected_prior.min(expected);
        let received = self.packets_of_stream();
        let received_interval = received - self.received_prior;
        (self.expected_prior, self.received_prior) = (expected, received);
        let lost_interval = expected_interval.saturating_sub(received_interval);
        let (last_sender_report, delay_since_sender_report) = match self.clock {
            None => (0, 0),
            Some(clock) => {
                let delay = now.since(clock.at).as_micros() * 65_536 / 1_000_000;
                ((clock.ntp >> 16) as u32, u32::try_from(delay).unwrap_or(u32::MAX))
            }
        };
        Some(Reception {
            fraction_lost: lost_interval.checked_mul(256).map_or(255, |l| (l / expected_interval.max(1)).min(255)) as u8,
            // RFC 3550: 24 bits signed, clamped.
            cumulative_lost: (expected as i64 - received as i64).clamp(-0x80_0000, 0x7f_ffff) as i32,
            highest_sequence: self.highest as u32,
            jitter: (self.jitter_q4 >> 4) as u32,
            last_sender_report,
            delay_since_sender_report,
        })
    }

    /// Gives back packets that are too old to be asked for.
    pub fn expire(&mut self, pool: &mut PacketPool, now: Time) {
        // Only while there is room: a group that is kept must cost no other track its packets.
        self.group = self.group.filter(|group| group.is_held(now) && pool.is_roomy());
        self.history.expire(pool, now, self.group.map(|group| group.start()));
    }

    /// Gives every packet back: the track is closing.
    pub fn close(&mut self, pool: &mut PacketPool) {
        self.history.clear(pool);
    }
}

/// Packets that a track's history holds.
pub const fn history_len(kind: MediaKind) -> usize {
    match kind {
        MediaKind::Audio => AUDIO_HISTORY_LEN,
        MediaKind::Video => VIDEO_HISTORY_LEN,
    }
}

/// Memory of one stream beyond its packets, in bytes.
pub const fn len_bytes(kind: MediaKind) -> usize {
    size_of::<Inbound>() + Layering::LEN + History::len_bytes(history_len(kind)) + MISSING_MAX * size_of::<Missing>()
}

#[cfg(test)]
mod tests {
    use pop_schemas::{TrackId, TransportId};

    use super::*;

    struct Rig {
        inbound: Inbound,
        pool: PacketPool,
        now: Time,
    }

    impl Rig {
        fn new() -> Rig {
            let open = OpenTrack {
                track: TrackId(1),
                transport: TransportId(1),
                kind: MediaKind::Video,
                ssrc: None,
                rtx_ssrc: None,
                mid: "0".into(),
                layers: Vec::new(),
                order: Vec::new(),
                payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: None }],
                nack: true,
                pli: true,
                fir: false,
            };
            Rig { inbound: Inbound::new(&open), pool: PacketPool::new(2_000), now: Time::ZERO }
        }

        fn packet(&mut self, sequence: u64, keyframe_start: bool) -> Result<(), DropReason> {
            let meta = Meta { timestamp: 0, payload_type: 96, marker: false, keyframe_start, header_len: 12, len: 112, ..Meta::default() };
            self.inbound.handle_packet(&mut self.pool, self.now, sequence, &[0; 112], meta, Codec::Vp8)
        }

        fn asks(&mut self) -> Vec<u16> {
            let mut asks = [0; 64];
            let len = self.inbound.poll_nack(self.now, &mut asks);
            asks[..len].to_vec()
        }
    }

    #[test]
    fn a_missing_packet_is_asked_for_until_it_comes() {
        let mut rig = Rig::new();
        for sequence in [65_533, 65_536, 65_537] {
            rig.packet(sequence, false).unwrap();
        }
        assert_eq!(rig.asks(), [65_534, 65_535]);
        assert_eq!(rig.asks(), [0; 0], "once per interval");
        rig.packet(65_534, false).unwrap();
        rig.now = rig.now + ASK_INTERVAL;
        assert_eq!(rig.asks(), [65_535]);
        rig.packet(65_535, false).unwrap();
        rig.now = rig.now + ASK_INTERVAL;
        assert_eq!(rig.asks(), [0; 0]);
        assert_eq!(rig.inbound.stats().lost, 0);
    }

    #[test]
    fn a_packet_given_up_becomes_a_keyframe_request() {
        let mut rig = Rig::new();
        rig.packet(1, true).unwrap();
        rig.packet(3, false).unwrap();
        for _ in 0..ASKS_MAX {
            assert_eq!(rig.asks(), [2]);
            rig.now = rig.now + ASK_INTERVAL;
            assert!(!rig.inbound.pli_due(rig.now));
        }
        assert_eq!(rig.asks(), [0; 0]);
        assert!(rig.inbound.pli_due(rig.now));
    }

    #[test]
    fn keyframe_requests_are_one_per_half_second_until_a_keyframe_comes() {
        let mut rig = Rig::new();
        rig.packet(1, false).unwrap();
        let mut sent = 0;
        for _ in 0..200 {
            rig.inbound.request_keyframe();
            if rig.inbound.pli_due(rig.now) {
                rig.inbound.pli_sent(rig.now);
                sent += 1;
            }
            rig.now = rig.now + Duration::from_millis(10);
        }
        assert_eq!(sent, 4, "2 s, one each 500 ms");
        rig.packet(2, true).unwrap();
        assert!(!rig.inbound.pli_due(rig.now + Duration::from_secs(10)));
    }

    #[test]
    fn a_hole_larger_than_repairs_can_fill_asks_for_a_keyframe_instead() {
        let mut rig = Rig::new();
        rig.packet(1, false).unwrap();
        rig.packet(1_000, false).unwrap();
        assert_eq!(rig.asks(), [0; 0]);
        assert!(rig.inbound.pli_due(rig.now));
    }

    #[test]
    fn a_viewers_repair_is_asked_upstream_only_for_what_never_came_and_can_still_come() {
        let mut rig = Rig::new();
        for sequence in (10..20).chain(21..30) {
            rig.packet(sequence, false).unwrap();
        }
        assert_eq!(rig.asks(), [20]);
        rig.inbound.request_repair(rig.now, 20);
        rig.inbound.request_repair(rig.now, 5);
        rig.inbound.request_repair(rig.now, 40);
        rig.now = rig.now + ASK_INTERVAL;
        assert_eq!(rig.asks(), [20]);
    }

    /// What a late joiner would begin with now: first and next packet.
    fn group(rig: &mut Rig) -> Option<(u64, u64)> {
        rig.inbound.request_picture();
        rig.inbound.poll_group(rig.now).map(|group| (group.start(), group.next()))
    }

    #[test]
    fn a_group_begins_at_the_last_keyframe_and_is_whole_or_none() {
        let mut rig = Rig::new();
        let picture = |rig: &mut Rig, sequence: u64, timestamp: u32, keyframe_start: bool| {
            let meta = Meta { timestamp, payload_type: 96, keyframe_start, header_len: 12, len: 112, ..Meta::default() };
            rig.inbound.handle_packet(&mut rig.pool, rig.now, sequence, &[0; 112], meta, Codec::Vp8).unwrap();
        };
        picture(&mut rig, 1, 0, false);
        assert_eq!(group(&mut rig), None);
        // A keyframe of two packets that each look like a beginning, the second first.
        picture(&mut rig, 3, 9, true);
        picture(&mut rig, 2, 9, true);
        assert_eq!(group(&mut rig), Some((2, 4)));
        picture(&mut rig, 5, 18, false);
        assert_eq!(group(&mut rig), None, "a hole");
        picture(&mut rig, 4, 18, false);
        assert_eq!(group(&mut rig), Some((2, 6)), "is filled");
        picture(&mut rig, 6, 27, true);
        assert_eq!(group(&mut rig), Some((6, 7)), "the next one");
        rig.now = rig.now + crate::group::GROUP_AGE_MAX + Duration::from_millis(1);
        assert_eq!(group(&mut rig), None, "too old");
        assert!(rig.inbound.pli_due(rig.now));
    }

    #[test]
    fn two_clocks_tell_the_ticks_between_their_timestamps() {
        let here = SenderClock { ntp: 10 << 32, rtp_timestamp: 1_000, at: Time::ZERO };
        let there = SenderClock { ntp: (10 << 32) + (1 << 31), rtp_timestamp: 7_000, at: Time::ZERO };
        // Its 7,000 is half a second after our 1,000, so it is our 46,000.
        assert_eq!(7_000u32.wrapping_add(here.ticks_ahead(&there, 90_000)), 46_000);
        assert_eq!(46_000u32.wrapping_add(there.ticks_ahead(&here, 90_000)), 7_000);
    }

    #[test]
    fn after_a_goodbye_nothing_is_asked_for_until_the_stream_goes_on() {
        let mut rig = Rig::new();
        rig.packet(1, false).unwrap();
        rig.packet(3, false).unwrap();
        rig.inbound.end();
        rig.inbound.request_keyframe();
        assert!(!rig.inbound.nack_due(rig.now) && !rig.inbound.pli_due(rig.now));
        rig.packet(4, false).unwrap();
        assert!(!rig.inbound.is_ended());
        rig.inbound.request_keyframe();
        assert!(rig.inbound.pli_due(rig.now));
    }

    #[test]
    fn of_a_stream_that_nobody_takes_nothing_is_asked_for() {
        let mut rig = Rig::new();
        for sequence in [1, 3] {
            rig.packet(sequence, false).unwrap();
        }
        rig.inbound.request_keyframe();
        rig.inbound.set_wanted(false);
        rig.packet(5, false).unwrap();
        rig.packet(1_000, false).unwrap();
        rig.inbound.request_keyframe();
        assert!(!rig.inbound.nack_due(rig.now) && !rig.inbound.pli_due(rig.now));
        rig.inbound.set_wanted(true);
        rig.packet(1_002, false).unwrap();
        rig.inbound.request_keyframe();
        assert_eq!(rig.asks(), [1_001], "what was missing before belongs to nobody");
        assert!(rig.inbound.pli_due(rig.now));
    }

    #[test]
    fn a_retransmission_means_the_nearest_sequence_number() {
        let mut rig = Rig::new();
        assert_eq!(rig.inbound.extend_repeated(5), Err(DropReason::UnknownStream));
        rig.packet(10, false).unwrap();
        assert_eq!(rig.inbound.extend_repeated(8), Ok(8));
        assert_eq!(rig.inbound.extend_repeated(65_530), Err(DropReason::TooOld), "before sequence 0 there is nothing");
        rig.packet(65_537, false).unwrap();
        assert_eq!(rig.inbound.extend_repeated(65_530), Ok(65_530));
        assert_eq!(rig.inbound.extend_repeated(2), Ok(65_538));
    }

    #[test]
    fn what_came_because_it_was_asked_for_counts_as_lost_for_the_estimate() {
        let mut rig = Rig::new();
        for sequence in [1, 2, 5] {
            rig.packet(sequence, false).unwrap();
        }
        rig.packet(3, false).unwrap();
        assert_eq!(rig.asks(), [4]);
        rig.packet(4, false).unwrap();
        assert_eq!(rig.inbound.received(), Received { expected: 5, received: 4 }, "3 was late, 4 was repaired");
    }

    #[test]
    fn a_report_tells_the_loss_of_its_interval() {
        let mut rig = Rig::new();
        assert_eq!(rig.inbound.poll_reception(rig.now), None);
        for sequence in (0..100).filter(|s| s % 4 != 3) {
            rig.packet(sequence, false).unwrap();
        }
        rig.inbound.handle_sender_report(rig.now, 0x0000_0001_8000_0000, 5);
        let report = rig.inbound.poll_reception(rig.now + Duration::from_millis(500)).unwrap();
        assert_eq!((report.fraction_lost, report.cumulative_lost), (62, 24));
        assert_eq!((report.last_sender_report, report.delay_since_sender_report), (0x0001_8000, 32_768));
        for sequence in 100..200 {
            rig.packet(sequence, false).unwrap();
        }
        let report = rig.inbound.poll_reception(rig.now).unwrap();
        assert_eq!((report.fraction_lost, report.cumulative_lost, report.highest_sequence), (2, 25, 199));
    }
}
