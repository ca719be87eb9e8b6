//! One subscriber's media section: its own sequence numbers and timestamps over whatever track feeds it.
//!
//! Within one source a packet's numbers are the published ones plus constants, so a repair needs no map: the published
//! sequence is the outgoing one minus the offset, and the rewritten packet is the same to the last bit.

use std::time::Duration;

use pop_schemas::Time;

use crate::control::{ANY_PAYLOAD_TYPE, MediaKind, Numbering, OpenSubscription, PayloadTypeMap, SubscriptionStats};
use crate::drop_reason::DropReason;
use crate::history::{Meta, Stored};
use crate::inbound::SenderClock;
use crate::wire::rtp;

const NO_PAYLOAD_TYPE: u8 = 0xff;

/// Repairs that may wait for one subscription. A NACK names at most 17 packets per item; a burst loss longer than this is a
/// keyframe's work.
pub const REPAIRS_MAX: usize = 64;

/// Repairs that a subscription may send before it has sent media, and at most in one burst. Beyond it a repair costs one packet of
/// fresh media, so that no client can ask for more than twice its stream.
const REPAIR_CREDIT_MAX: u32 = 128;

/// The constants between a source's numbers and ours.
#[derive(Clone, Copy)]
struct Source {
    /// First published sequence that is forwarded; what is older belongs to nobody here.
    start: u64,
    /// First outgoing sequence of this source.
    first: u64,
    /// Added to the published timestamp.
    timestamp_offset: u32,
}

/// A packet's place in the subscriber's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// 48-bit SRTP packet index: rollover counter and sequence number.
    pub index: u64,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Payload type.
    pub payload_type: u8,
}

/// The state of one subscription.
pub struct Outbound {
    ssrc: u32,
    numbering: Numbering,
    kind: MediaKind,
    payload_types: [u8; 128],
    source: Option<Source>,
    /// A source was chosen and its first packet is awaited.
    waiting: bool,
    /// One past the highest sequence sent.
    next: u64,
    last_timestamp: Option<u32>,
    last_sent: Time,
    clock_rate: u32,
    repairs: [u64; REPAIRS_MAX],
    repairs_len: usize,
    repair_credit: u32,
    octets: u64,
    stats: SubscriptionStats,
    first_timestamp: u32,
}

impl Outbound {
    /// A section without a source.
    pub fn new(open: &OpenSubscription) -> Outbound {
        Outbound {
            ssrc: open.ssrc,
            numbering: Numbering::Own,
            kind: open.kind,
            payload_types: [NO_PAYLOAD_TYPE; 128],
            source: None,
            waiting: false,
            next: u64::from(open.first_sequence),
            last_timestamp: None,
            last_sent: Time::ZERO,
            clock_rate: match open.kind {
                MediaKind::Audio => 48_000,
                MediaKind::Video => 90_000,
            },
            repairs: [0; REPAIRS_MAX],
            repairs_len: 0,
            repair_credit: REPAIR_CREDIT_MAX,
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

    /// Counters since the start.
    pub fn stats(&self) -> SubscriptionStats {
        self.stats
    }

    /// Takes packets from another track from now on, or from none. Numbers go on where they are.
    pub fn switch_source(&mut self, connected: bool, payload_types: &[PayloadTypeMap]) {
        self.restart_source();
        self.waiting = connected;
        self.payload_types = [NO_PAYLOAD_TYPE; 128];
        for map in payload_types {
            if map.from == ANY_PAYLOAD_TYPE {
                self.payload_types = std::array::from_fn(|from| if map.to == ANY_PAYLOAD_TYPE { from as u8 } else { map.to });
            } else if let Some(entry) = self.payload_types.get_mut(usize::from(map.from)) {
                *entry = if map.to == ANY_PAYLOAD_TYPE { map.from } else { map.to };
            }
        }
    }

    /// The track's numbers begin anew: so does the source, from its next keyframe on.
    pub fn restart_source(&mut self) {
        self.waiting = self.waiting || self.source.is_some();
        self.source = None;
        self.repairs_len = 0;
    }

    /// Whether a keyframe would help this subscriber.
    pub fn wants_keyframe(&self) -> bool {
        self.waiting && self.kind == MediaKind::Video
    }

    /// Decides whether a fresh packet of the source goes out, and as what.
    ///
    /// Errors: [`DropReason::PayloadType`], [`DropReason::WaitingForKeyframe`].
    #[inline]
    pub fn forward(&mut self, now: Time, sequence: u64, meta: &Meta) -> Result<Rewritten, DropReason> {
        let payload_type = match self.payload_type(meta) {
            Ok(payload_type) => payload_type,
            Err(reason) => {
                // The publisher went on in a codec that this client cannot take. Numbers must not run on meanwhile: after 2^15 of
                // them the client could no longer guess the rollover counter.
                if self.source.is_some_and(|s| sequence >= s.start + (self.next - s.first)) {
                    self.restart_source();
                }
                return Err(reason);
            }
        };
        let source = match self.source {
            Some(source) => source,
            None if !self.waiting || (self.kind == MediaKind::Video && !meta.keyframe_start) => return Err(DropReason::WaitingForKeyframe),
            None => self.start_source(now, sequence, meta),
        };
        if sequence < source.start {
            return Err(DropReason::WaitingForKeyframe);
        }
        let index = sequence - source.start + source.first;
        let timestamp = meta.timestamp.wrapping_add(source.timestamp_offset);
        if index >= self.next {
            self.next = index + 1;
            self.last_timestamp = Some(timestamp);
            self.last_sent = now;
        }
        Ok(Rewritten { index, timestamp, payload_type })
    }

    fn payload_type(&self, meta: &Meta) -> Result<u8, DropReason> {
        match self.payload_types[usize::from(meta.payload_type & 0x7f)] {
            NO_PAYLOAD_TYPE => Err(DropReason::PayloadType),
            payload_type => Ok(payload_type),
        }
    }

    fn start_source(&mut self, now: Time, sequence: u64, meta: &Meta) -> Source {
        if self.numbering == Numbering::Whole {
            self.next = sequence;
        }
        let timestamp = match self.last_timestamp {
            _ if self.numbering != Numbering::Own => meta.timestamp,
            None => self.first_timestamp,
            Some(last) => {
                // The media clock ran on while no source did; at least one tick, so that two frames never share a timestamp.
                let ticks = now.since(self.last_sent).as_micros() * u128::from(self.clock_rate) / 1_000_000;
                last.wrapping_add((ticks as u32).max(1))
            }
        };
        let source = Source { start: sequence, first: self.next, timestamp_offset: timestamp.wrapping_sub(meta.timestamp) };
        self.source = Some(source);
        self.waiting = false;
        source
    }

    /// Bytes of header that a stored packet leaves with.
    #[inline]
    pub fn header_len(&self, meta: &Meta) -> usize {
        if self.numbering == Numbering::Whole { usize::from(meta.header_len) } else { rtp::FIXED_HEADER_LEN }
    }

    /// The header of a packet that [`Outbound::forward`] or [`Outbound::repair`] let through: made in `out`, or the published one.
    #[inline]
    pub fn header<'h>(&mut self, out: &'h mut [u8; rtp::FIXED_HEADER_LEN], stored: &Stored<'h>, rewritten: &Rewritten) -> &'h [u8] {
        if matches!(self.numbering, Numbering::TimestampsAndSsrc | Numbering::Whole) {
            self.ssrc = stored.ssrc();
        }
        if self.numbering == Numbering::Whole {
            return &stored.packet[..usize::from(stored.meta.header_len)];
        }
        let sequence = rewritten.index as u16;
        rtp::write_header(out, stored.meta.marker, rewritten.payload_type, sequence, rewritten.timestamp, self.ssrc);
        out
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
        (index >= source.first).then(|| index - source.first + source.start)
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

    /// The same numbers as when `published` was first sent.
    pub fn repair(&self, published: u64, stored: &Stored<'_>) -> Result<Rewritten, DropReason> {
        let payload_type = self.payload_type(&stored.meta)?;
        let source = self.source.filter(|s| published >= s.start).ok_or(DropReason::RepairMissing)?;
        Ok(Rewritten {
            index: published - source.start + source.first,
            timestamp: stored.meta.timestamp.wrapping_add(source.timestamp_offset),
            payload_type,
        })
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
    use crate::control::ExtensionIds;

    fn outbound(kind: MediaKind) -> Outbound {
        let mut outbound = Outbound::new(&OpenSubscription {
            subscription: SubscriptionId(1),
            transport: TransportId(1),
            kind,
            ssrc: 7,
            first_sequence: 1_000,
            first_timestamp: 50_000,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        });
        outbound.switch_source(true, &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        outbound
    }

    fn meta(timestamp: u32, keyframe_start: bool) -> Meta {
        Meta { timestamp, payload_type: 96, marker: true, keyframe_start, header_len: 12, len: 112 }
    }

    #[test]
    fn video_starts_at_a_keyframe_and_its_late_packets_keep_their_places() {
        let mut o = outbound(MediaKind::Video);
        assert!(o.wants_keyframe());
        assert_eq!(o.forward(Time::ZERO, 10, &meta(1, false)), Err(DropReason::WaitingForKeyframe));
        assert_eq!(o.forward(Time::ZERO, 11, &meta(90, true)), Ok(Rewritten { index: 1_000, timestamp: 50_000, payload_type: 100 }));
        assert!(!o.wants_keyframe());
        assert_eq!(o.forward(Time::ZERO, 14, &meta(95, false)).map(|r| (r.index, r.timestamp)), Ok((1_003, 50_005)));
        assert_eq!(o.forward(Time::ZERO, 12, &meta(90, false)).map(|r| (r.index, r.timestamp)), Ok((1_001, 50_000)));
        assert_eq!(o.forward(Time::ZERO, 9, &meta(1, false)), Err(DropReason::WaitingForKeyframe));
    }

    #[test]
    fn numbers_continue_when_the_publisher_restarts() {
        let mut o = outbound(MediaKind::Audio);
        o.forward(Time::ZERO, 500, &meta(0, false)).unwrap();
        o.forward(Time::from_millis(20), 501, &meta(960, false)).unwrap();
        o.switch_source(true, &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        let r = o.forward(Time::from_millis(1_020), 30_000, &meta(777_777, false)).unwrap();
        assert_eq!((r.index, r.timestamp), (1_002, 50_000 + 960 + 48_000));
    }

    #[test]
    fn a_payload_type_that_the_viewer_cannot_take_is_dropped() {
        let mut o = outbound(MediaKind::Audio);
        let other = Meta { payload_type: 97, ..meta(0, false) };
        assert_eq!(o.forward(Time::ZERO, 1, &other), Err(DropReason::PayloadType));
    }

    #[test]
    fn a_repair_has_the_numbers_of_the_first_sending() {
        let mut o = outbound(MediaKind::Video);
        let first = o.forward(Time::ZERO, 70_000, &meta(5, true)).unwrap();
        o.forward(Time::ZERO, 70_001, &meta(6, false)).unwrap();
        assert_eq!(o.published_sequence(1_000), Some(70_000));
        assert_eq!(o.published_sequence(999), None, "sent by nobody, or by the source before");
        let packet = [0; 112];
        let stored = Stored { meta: meta(5, true), packet: &packet };
        assert_eq!(o.repair(70_000, &stored), Ok(first));
    }

    #[test]
    fn a_sequence_number_is_found_behind_a_rollover() {
        let mut o = outbound(MediaKind::Audio);
        for i in 0..70_000 {
            o.forward(Time::ZERO, i, &meta(i as u32, false)).unwrap();
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
            o.forward(Time::ZERO, turn, &meta(0, true)).unwrap();
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
        assert_eq!(o.forward(Time::ZERO, 0, &meta(0, false)).map(|r| r.index), Ok(1_000));
        let other = Meta { payload_type: 97, ..meta(0, false) };
        for sequence in 1..40_000 {
            assert_eq!(o.forward(Time::ZERO, sequence, &other), Err(DropReason::PayloadType));
        }
        assert_eq!(o.forward(Time::ZERO, 40_000, &meta(0, false)).map(|r| r.index), Ok(1_001));
        assert_eq!(o.forward(Time::ZERO, 39_000, &other), Err(DropReason::PayloadType));
        assert_eq!(o.forward(Time::ZERO, 40_001, &meta(0, false)).map(|r| r.index), Ok(1_002), "a late one changes nothing");
    }

    #[test]
    fn audio_and_video_reports_carry_the_publishers_clock() {
        let mut o = outbound(MediaKind::Video);
        let clock = SenderClock { ntp: 10 << 32, rtp_timestamp: 900, at: Time::ZERO };
        assert_eq!(o.sender_report(Time::ZERO, &clock), None);
        o.forward(Time::ZERO, 1, &meta(0, true)).unwrap();
        let report = o.sender_report(Time::from_millis(500), &clock).unwrap();
        assert_eq!(report.ntp, (10 << 32) + (1 << 31));
        assert_eq!(report.rtp_timestamp, 50_000 + 900 + 45_000);
    }
}
