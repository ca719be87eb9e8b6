//! RTCP in both directions: what viewers and publishers tell us, and what they are told.

use std::time::Duration;

use pop_proto::DropReason;
use pop_proto::control::Path;
use pop_proto::history::Lookup;
use pop_proto::inbound::SenderClock;
use pop_proto::outbound::{REPAIRS_MAX, SenderReportInfo, ntp_duration};
use pop_proto::remb::Received;
use pop_proto::wire::rtcp::{FirEntry, ReportBlock, RtcpPacket, RtcpReader, RtcpWriter, SenderInfo, TransportCc};
use pop_schemas::{Time, TransportId};

use super::bandwidth::Reported;
use super::{Core, Endpoint, STREAMS_PER_TRANSPORT_MAX, Stream, Subscription, Transmit, Transport, follow_layers, request_keyframe};
use crate::limits::TRACKS_PER_TRANSPORT_MAX;

/// RTCP datagrams that we make stay below the smallest path MTU that browsers assume for media.
const RTCP_LEN_MAX: usize = 1_200;

/// Sources that one datagram can report: an SR and the shortest SDES of each, behind 16 bytes and more of SRTCP.
const SOURCES_PER_PAGE_MAX: usize = (RTCP_LEN_MAX - 16) / (RtcpWriter::SENDER_REPORT_LEN + RtcpWriter::sdes_cname_len(""));

/// Sources that one datagram says goodbye for: six packets of 31, behind a report and the longest CNAME.
const GOODBYES_PER_DATAGRAM: usize = 6 * 31;

/// Sequence numbers that one NACK of ours asks for.
const NACK_SEQUENCES_MAX: usize = 64;

/// Sequence numbers that one datagram of a client may ask for: what the queues of its audio and video hold.
const NACKED_MAX: usize = 2 * REPAIRS_MAX;

/// A round trip longer than this is a report about another clock (the source was switched in between).
const RTT_MAX: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn handle_rtcp(&mut self, now: Time, index: usize, path: Path, datagram: &mut [u8]) -> Result<(), DropReason> {
        let keys = self.transports[index].keys.as_mut().ok_or(DropReason::SrtpNoKeys)?;
        let len = keys.receiver.unprotect_rtcp(datagram)?;
        let compound = RtcpReader::new(&datagram[..len])?;
        self.transports[index].endpoint.note_authentic_packet(now, path);
        self.counters.rtcp_packets_in += 1;
        let mut nacked = 0;
        for packet in compound {
            match packet {
                RtcpPacket::SenderReport { info, blocks } => {
                    if let Some(Stream { track, layer, .. }) = self.published_stream(index, info.ssrc) {
                        self.tracks[track].layers[layer].inbound.handle_sender_report(now, info.ntp, info.rtp_timestamp);
                    }
                    blocks.iter().for_each(|block| self.handle_report_block(now, index, &block));
                }
                RtcpPacket::ReceiverReport { blocks, .. } => {
                    blocks.iter().for_each(|block| self.handle_report_block(now, index, &block));
                }
                RtcpPacket::Nack { media, sequences, .. } => {
                    for sequence in sequences.iter() {
                        self.counters.rtcp_nack_in += 1;
                        nacked += 1;
                        if nacked > NACKED_MAX {
                            self.count_drops(DropReason::RepairQueueFull, 1);
                            continue;
                        }
                        if let Err(reason) = self.handle_nack(now, index, media, sequence) {
                            self.count_drops(reason, 1);
                        }
                    }
                }
                RtcpPacket::Pli { media, .. } => self.handle_keyframe_request(now, index, media),
                RtcpPacket::Fir { entries, .. } => entries.iter().for_each(|entry| self.handle_fir(now, index, entry)),
                RtcpPacket::TransportCc(feedback) => self.handle_transport_feedback(index, &feedback),
                RtcpPacket::Bye { sources } => sources.iter().for_each(|ssrc| self.handle_bye(index, ssrc)),
                RtcpPacket::Remb { bitrate, .. } => {
                    self.counters.rtcp_remb_in += 1;
                    self.transports[index].downstream.handle_remb(now, bitrate);
                }
                RtcpPacket::Sdes | RtcpPacket::Unknown { .. } => {}
            }
        }
        Ok(())
    }

    /// What this client publishes as `ssrc`, retransmissions excluded.
    fn published_stream(&self, transport: usize, ssrc: u32) -> Option<Stream> {
        self.transports[transport].streams.iter().copied().find(|stream| stream.ssrc == ssrc && !stream.is_rtx)
    }

    /// The clock of the layer that a section sends now.
    fn clock_of(&self, subscription: usize) -> Option<SenderClock> {
        let subscription = &self.subscriptions[subscription];
        let (track, layer) = (subscription.track?, subscription.outbound.layer()?);
        self.tracks[track].layers[layer].inbound.clock()
    }

    /// The section of this client that we send as `ssrc`. A client can only speak about its own.
    fn subscription_of(&self, transport: usize, ssrc: u32) -> Option<usize> {
        let transport = &self.transports[transport];
        match transport.endpoint {
            Endpoint::Ice(_) => {
                let at = transport.sections.binary_search_by_key(&ssrc, |(ssrc, _)| *ssrc).ok()?;
                Some(transport.sections[at].1 as usize)
            }
            // It has one section, and that may take the SSRC of its source.
            Endpoint::Rtp(_) => transport.subscriptions.iter().copied().find(|s| self.subscriptions[*s].outbound.ssrc() == ssrc),
        }
    }

    fn handle_report_block(&mut self, now: Time, transport: usize, block: &ReportBlock) {
        let Some(index) = self.subscription_of(transport, block.ssrc) else { return };
        let clock = self.clock_of(index);
        let subscription = &mut self.subscriptions[index];
        subscription.outbound.handle_report(block.fraction_lost, clock.and_then(|clock| round_trip(now, &clock, block)));
        let stats = subscription.outbound.stats();
        let told = Reported { packets: stats.packets - stats.retransmitted, highest_sequence: block.highest_sequence };
        if let Some(before) = subscription.reported.replace(told) {
            let (expected, lost) = told.lost_since(&before, block.fraction_lost);
            self.transports[transport].downstream.handle_report(expected, lost);
        }
    }

    fn handle_nack(&mut self, now: Time, transport: usize, media: u32, sequence: u16) -> Result<(), DropReason> {
        let index = self.subscription_of(transport, media).ok_or(DropReason::UnknownStream)?;
        let subscription = &mut self.subscriptions[index];
        let published = subscription.outbound.published_sequence(sequence).ok_or(DropReason::RepairMissing)?;
        let track = &mut self.tracks[subscription.track.ok_or(DropReason::RepairMissing)?];
        let inbound = &mut track.layers[subscription.outbound.layer().ok_or(DropReason::RepairMissing)?].inbound;
        match inbound.history().lookup(&self.pool, published) {
            Lookup::Held(_) => subscription.outbound.queue_repair(published)?,
            Lookup::Gone => return Err(DropReason::RepairMissing),
            Lookup::Missing => {
                inbound.request_repair(now, published);
                return Ok(());
            }
        }
        if !std::mem::replace(&mut subscription.is_repairing, true) {
            self.repairing.push_back(index);
        }
        Ok(())
    }

    fn handle_keyframe_request(&mut self, now: Time, transport: usize, media: u32) {
        self.counters.rtcp_pli_in += 1;
        let subscription = self.subscription_of(transport, media);
        if let Some(Subscription { outbound, track: Some(track), .. }) = subscription.map(|index| &mut self.subscriptions[index])
            && let Some(codec) = outbound.layer().and_then(|layer| self.tracks[*track].layers[layer].inbound.stats().codec)
        {
            outbound.note_keyframe_request(now, codec);
        }
        match subscription {
            // Its picture is on the way.
            Some(subscription) if self.subscriptions[subscription].catch_up.is_some() => {}
            Some(subscription) if self.subscriptions[subscription].track.is_some() => {
                request_keyframe(&mut self.tracks, &self.subscriptions[subscription]);
            }
            _ => self.count_drops(DropReason::UnknownStream, 1),
        }
    }

    fn handle_fir(&mut self, now: Time, transport: usize, entry: FirEntry) {
        let repeated = self
            .subscription_of(transport, entry.ssrc)
            .is_some_and(|subscription| !self.subscriptions[subscription].outbound.handle_fir(entry.sequence));
        if !repeated {
            self.handle_keyframe_request(now, transport, entry.ssrc);
        }
    }

    fn handle_transport_feedback(&mut self, transport: usize, feedback: &TransportCc<'_>) {
        let transport = &mut self.transports[transport];
        transport.downstream.handle_feedback(feedback, transport.transport_sequence);
        self.counters.rtcp_twcc_in += 1;
    }

    /// RFC 3550 section 6.6. The SSRC stays known, because browsers say goodbye for a layer that they pause and go on with it
    /// later; but another may take its place.
    fn handle_bye(&mut self, transport: usize, ssrc: u32) {
        if let Some(Stream { track, layer, .. }) = self.published_stream(transport, ssrc) {
            self.end_layer(track, layer);
        }
    }

    /// A layer ends, and others may take its place with its subscribers.
    pub(super) fn end_layer(&mut self, track: usize, layer: usize) {
        let track = &mut self.tracks[track];
        // Said already: a compound of goodbyes would cost sources times subscribers.
        if track.layers[layer].inbound.is_ended() {
            return;
        }
        track.layers[layer].inbound.end();
        for subscriber in &track.subscribers {
            self.subscriptions[*subscriber].outbound.end_layer(layer);
        }
        if track.ranks.end(layer) {
            follow_layers(track, &mut self.subscriptions);
        }
    }

    /// Says goodbye for a section that is closed, or for everything that a transport sends. Before its keys go.
    pub(super) fn say_goodbye(&mut self, id: TransportId, section: Option<usize>) {
        let Some(&index) = self.transport_ids.get(&id) else { return };
        let transport = &mut self.transports[index];
        let (Some(path), Some(keys)) = (transport.endpoint.rtcp_path(), &mut transport.keys) else { return };
        let mut sources = Vec::new();
        sources.extend(section.is_none().then_some(transport.rtcp_ssrc));
        for subscription in transport.subscriptions.iter().filter(|subscription| section.is_none_or(|section| section == **subscription)) {
            let outbound = &self.subscriptions[*subscription].outbound;
            if outbound.stats().packets > 0 {
                sources.push(outbound.ssrc());
                sources.extend(outbound.rtx_ssrc());
            }
        }
        for sources in sources.chunks(GOODBYES_PER_DATAGRAM) {
            let mut datagram = vec![0; RTCP_LEN_MAX];
            let mut compound = RtcpWriter::new(&mut datagram[..RTCP_LEN_MAX - keys.sender.rtcp_overhead()]);
            compound.receiver_report(transport.rtcp_ssrc, &[]);
            compound.sdes_cname(transport.rtcp_ssrc, &transport.cname);
            // A BYE counts its sources in 5 bits.
            for sources in sources.chunks(31) {
                compound.bye(sources);
            }
            let len = compound.len();
            match keys.sender.protect_rtcp(&mut datagram, len) {
                Ok(len) => {
                    datagram.truncate(len);
                    self.goodbyes.push_back((path, datagram.into()));
                }
                Err(reason) => self.drops[reason as usize] += 1,
            }
        }
    }

    /// Writes the next RTCP datagram that is due for a transport; `None` when nothing is (any longer).
    pub(super) fn write_rtcp(&mut self, now: Time, index: usize, out: &mut [u8]) -> Option<Transmit> {
        let transport = &self.transports[index];
        let path = transport.endpoint.rtcp_path()?;
        let room = RTCP_LEN_MAX - transport.keys.as_ref()?.sender.rtcp_overhead();
        let mut len = self.write_reports(now, index, &mut out[..room]);
        if len == 0 {
            len = self.write_congestion_feedback(now, index, &mut out[..room]);
        }
        if len == 0 {
            len = self.write_remb(now, index, &mut out[..room]);
        }
        if len == 0 {
            return None;
        }
        self.protect_rtcp(index, path, len, out)
    }

    fn protect_rtcp(&mut self, index: usize, path: Path, len: usize, out: &mut [u8]) -> Option<Transmit> {
        let keys = self.transports[index].keys.as_mut()?;
        match keys.sender.protect_rtcp(out, len) {
            Ok(len) => Some(Transmit { path, len, segment: None }),
            Err(reason) => {
                self.count_drops(reason, 1);
                None
            }
        }
    }

    /// The once-a-second report, NACKs and keyframe requests; returns the bytes written, 0 when none is due.
    fn write_reports(&mut self, now: Time, index: usize, out: &mut [u8]) -> usize {
        let transport = &mut self.transports[index];
        let feedback = transport.streams.iter().filter(|stream| !stream.is_rtx).any(|stream| {
            let inbound = &self.tracks[stream.track].layers[stream.layer].inbound;
            inbound.nack_due(now) || inbound.pli_due(now)
        });
        if !transport.report_due && !feedback {
            return 0;
        }
        let mut compound = RtcpWriter::new(out);
        if std::mem::take(&mut transport.report_due) {
            self.write_report_page(now, index, &mut compound);
        }
        let transport = &self.transports[index];
        if feedback && compound.is_empty() && !transport.reduced_size_rtcp {
            write_prefix(transport, &mut compound);
        }
        let transport = &self.transports[index];
        for stream in transport.streams.iter().filter(|stream| !stream.is_rtx) {
            let inbound = &mut self.tracks[stream.track].layers[stream.layer].inbound;
            let mut asks = [0; NACK_SEQUENCES_MAX];
            // What would not fit is not taken, so that it is still due for the next datagram.
            let fitting = compound.nack_room().min(NACK_SEQUENCES_MAX);
            let len = inbound.poll_nack(now, &mut asks[..fitting]);
            if compound.nack(transport.rtcp_ssrc, stream.ssrc, asks[..len].iter().copied()).is_some() {
                self.counters.rtcp_nack_out += len as u64;
            }
            if inbound.pli_due(now) {
                let asked = match inbound.fir_sequence() {
                    None => compound.pli(transport.rtcp_ssrc, stream.ssrc),
                    Some(sequence) => compound.fir(transport.rtcp_ssrc, FirEntry { ssrc: stream.ssrc, sequence }),
                };
                if asked.is_some() {
                    inbound.pli_sent(now);
                    self.counters.rtcp_pli_out += 1;
                }
            }
        }
        compound.len()
    }

    /// RFC 3550 section 6.4: what we send is reported by SR, what we receive by RR, and each source has its CNAME. One datagram's
    /// worth: what we receive goes into the first, and the sources that find no room are the next tick's.
    fn write_report_page(&mut self, now: Time, index: usize, compound: &mut RtcpWriter<'_>) {
        let Some(from) = self.transports[index].report_from.take() else { return };
        let mut blocks = [ReportBlock::default(); TRACKS_PER_TRANSPORT_MAX];
        let blocks_len = if from == 0 { self.take_report_blocks(now, index, &mut blocks) } else { 0 };
        let blocks = &blocks[..blocks_len];
        let transport = &self.transports[index];
        let sdes_len = RtcpWriter::sdes_cname_len(&transport.cname);
        let mut reserved = if blocks.is_empty() { 0 } else { RtcpWriter::receiver_report_len(blocks.len()) + sdes_len };
        let mut sources = [0; SOURCES_PER_PAGE_MAX];
        let mut sources_len = 0;
        let mut next = None;
        for (at, subscription) in transport.subscriptions.iter().enumerate().skip(from) {
            let clock = self.clock_of(*subscription);
            let outbound = &self.subscriptions[*subscription].outbound;
            let Some(info) = clock.and_then(|clock| outbound.sender_report(now, &clock)) else { continue };
            let fits = compound.room() >= RtcpWriter::SENDER_REPORT_LEN + reserved + sdes_len;
            if sources_len == sources.len() || !fits {
                next = Some(at);
                break;
            }
            let SenderReportInfo { ssrc, ntp, rtp_timestamp, packets, octets } = info;
            compound.sender_report(&SenderInfo { ssrc, ntp, rtp_timestamp, packets, octets }, &[]);
            reserved += sdes_len;
            sources[sources_len] = ssrc;
            sources_len += 1;
        }
        // RFC 3550 section 6.1: a report comes first, whatever there is to tell.
        if !blocks.is_empty() || (sources_len == 0 && from == 0) {
            compound.receiver_report(transport.rtcp_ssrc, blocks);
            compound.sdes_cname(transport.rtcp_ssrc, &transport.cname);
        }
        for ssrc in &sources[..sources_len] {
            compound.sdes_cname(*ssrc, &transport.cname);
        }
        self.transports[index].report_from = next;
        if next.is_some() {
            self.paging.push(index);
        }
    }

    /// What a client is told of the streams that it publishes; returns how many blocks.
    fn take_report_blocks(&mut self, now: Time, index: usize, blocks: &mut [ReportBlock; TRACKS_PER_TRANSPORT_MAX]) -> usize {
        let mut len = 0;
        for stream in self.transports[index].streams.iter().filter(|stream| !stream.is_rtx) {
            let inbound = &mut self.tracks[stream.track].layers[stream.layer].inbound;
            let Some(reception) = inbound.poll_reception(now) else { continue };
            blocks[len] = ReportBlock {
                ssrc: stream.ssrc,
                fraction_lost: reception.fraction_lost,
                cumulative_lost: reception.cumulative_lost,
                highest_sequence: reception.highest_sequence,
                jitter: reception.jitter,
                last_sr: reception.last_sender_report,
                delay_since_last_sr: reception.delay_since_sender_report,
            };
            len += 1;
        }
        len
    }

    /// Transport-wide congestion control feedback; returns the bytes written, 0 when none is due.
    fn write_congestion_feedback(&mut self, now: Time, index: usize, out: &mut [u8]) -> usize {
        let transport = &mut self.transports[index];
        let media_ssrc = transport.streams.first().map_or(0, |stream| stream.ssrc);
        let mut len = 0;
        if !transport.reduced_size_rtcp {
            let mut compound = RtcpWriter::new(out);
            write_prefix(transport, &mut compound);
            len = compound.len();
        }
        let Some(twcc) = &mut transport.twcc else { return 0 };
        match twcc.poll_feedback(now, transport.rtcp_ssrc, media_ssrc, &mut out[len..]) {
            Some(feedback) => {
                self.counters.rtcp_twcc_out += 1;
                len + feedback
            }
            None => 0,
        }
    }

    /// A REMB over all streams of a publisher; returns the bytes written, 0 when none is due.
    fn write_remb(&mut self, now: Time, index: usize, out: &mut [u8]) -> usize {
        let transport = &mut self.transports[index];
        let Some(remb) = &mut transport.remb else { return 0 };
        let (mut ssrcs, mut ssrcs_len, mut totals) = ([0; STREAMS_PER_TRANSPORT_MAX], 0, Received::default());
        for stream in &transport.streams {
            ssrcs[ssrcs_len] = stream.ssrc;
            ssrcs_len += 1;
            if !stream.is_rtx {
                let received = self.tracks[stream.track].layers[stream.layer].inbound.received();
                totals.expected += received.expected;
                totals.received += received.received;
            }
        }
        let Some(bitrate) = remb.poll(now, totals) else { return 0 };
        let mut compound = RtcpWriter::new(out);
        write_prefix(transport, &mut compound);
        if compound.remb(transport.rtcp_ssrc, bitrate, &ssrcs[..ssrcs_len]).is_none() {
            return 0;
        }
        self.counters.rtcp_remb_out += 1;
        compound.len()
    }
}

/// RFC 4585 section 3.1: a compound begins with a report and names its source, whatever the feedback behind it.
fn write_prefix(transport: &Transport, compound: &mut RtcpWriter<'_>) {
    compound.receiver_report(transport.rtcp_ssrc, &[]);
    compound.sdes_cname(transport.rtcp_ssrc, &transport.cname);
}

/// RFC 3550 section 6.4.1: A - LSR - DLSR, on the clock that our sender reports carry.
fn round_trip(now: Time, clock: &SenderClock, block: &ReportBlock) -> Option<Duration> {
    if block.last_sr == 0 {
        return None;
    }
    let arrival = (clock.ntp.wrapping_add(ntp_duration(now.since(clock.at))) >> 16) as u32;
    let ticks = arrival.wrapping_sub(block.last_sr).wrapping_sub(block.delay_since_last_sr);
    let rtt = Duration::from_nanos(u64::from(ticks) * 1_000_000_000 / 65_536);
    (rtt < RTT_MAX).then_some(rtt)
}
