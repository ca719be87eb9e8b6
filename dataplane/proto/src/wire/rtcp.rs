//! RTCP: RFC 3550 section 6, feedback of RFC 4585 and RFC 5104, REMB, transport-wide congestion control; reduced size
//! (RFC 5506) is taken.
//!
//! [`RtcpReader`] walks a decrypted compound, [`RtcpWriter`] makes one in the caller's buffer.

use crate::DropReason;

const MALFORMED: DropReason = DropReason::RtcpMalformed;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;

const NACK: u8 = 1;
pub(crate) const TRANSPORT_CC: u8 = 15;
const PLI: u8 = 1;
const FIR: u8 = 4;
const APPLICATION_LAYER: u8 = 15;

/// Report blocks and sources that one packet can count: its count field has 5 bits.
const COUNT_MAX: usize = 31;

/// One packet of a compound; every list in it is already checked against its length.
#[derive(Clone, Copy, Debug)]
pub enum RtcpPacket<'a> {
    /// RFC 3550 section 6.4.1.
    SenderReport {
        /// What the sender says of itself.
        info: SenderInfo,
        /// What it says of the streams it receives.
        blocks: ReportBlocks<'a>,
    },
    /// RFC 3550 section 6.4.2.
    ReceiverReport {
        /// Who reports.
        ssrc: u32,
        /// What it says of the streams it receives.
        blocks: ReportBlocks<'a>,
    },
    /// RFC 3550 section 6.5. Nothing here reads the items, so nothing parses them.
    Sdes,
    /// RFC 3550 section 6.6.
    Bye {
        /// Who leaves.
        sources: Ssrcs<'a>,
    },
    /// Generic NACK, RFC 4585 section 6.2.1.
    Nack {
        /// Who asks.
        sender: u32,
        /// Of which stream.
        media: u32,
        /// What is missing.
        sequences: NackSequences<'a>,
    },
    /// Picture loss indication, RFC 4585 section 6.3.1.
    Pli {
        /// Who asks.
        sender: u32,
        /// Of which stream.
        media: u32,
    },
    /// Full intra request, RFC 5104 section 4.3.1.
    Fir {
        /// Who asks.
        sender: u32,
        /// Of which streams.
        entries: FirEntries<'a>,
    },
    /// Receiver estimated maximum bitrate, draft-alvestrand-rmcat-remb-03 section 2.2.
    Remb {
        /// Who estimates.
        sender: u32,
        /// In bit/s, over all sources.
        bitrate: u64,
        /// Which streams it covers.
        sources: Ssrcs<'a>,
    },
    /// draft-holmer-rmcat-transport-wide-cc-extensions-01 section 3.1.
    TransportCc(TransportCc<'a>),
    /// Well formed, of a type that nothing here uses.
    Unknown {
        /// RTCP packet type.
        packet_type: u8,
        /// Its count or feedback format.
        format: u8,
    },
}

/// The sender's part of a sender report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderInfo {
    /// Who reports.
    pub ssrc: u32,
    /// Wall clock: seconds since 1900 in 32.32 fixed point.
    pub ntp: u64,
    /// The same instant on the stream's RTP clock.
    pub rtp_timestamp: u32,
    /// Packets sent since the start.
    pub packets: u32,
    /// Payload bytes sent since the start.
    pub octets: u32,
}

/// One report block: what a receiver saw of one stream (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportBlock {
    /// Which stream.
    pub ssrc: u32,
    /// Share lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost since the start, 24 bits signed; the writer clamps to that.
    pub cumulative_lost: i32,
    /// Extended highest sequence number received.
    pub highest_sequence: u32,
    /// Interarrival jitter in RTP units.
    pub jitter: u32,
    /// Middle 32 bits of the last sender report's NTP time; 0 when there was none.
    pub last_sr: u32,
    /// How long ago that report came, in 1/65536 s.
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    const LEN: usize = 24;

    fn read(bytes: &[u8; Self::LEN]) -> ReportBlock {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        ReportBlock {
            ssrc: word(0),
            fraction_lost: bytes[4],
            // Shifted up and back down so that the sign of the 24-bit number is kept.
            cumulative_lost: (word(4) << 8) as i32 >> 8,
            highest_sequence: word(8),
            jitter: word(12),
            last_sr: word(16),
            delay_since_last_sr: word(20),
        }
    }

    fn write(&self) -> [u8; Self::LEN] {
        let lost = self.cumulative_lost.clamp(-0x80_0000, 0x7f_ffff) as u32 & 0xff_ffff;
        let mut out = [0; Self::LEN];
        let words = [
            self.ssrc,
            u32::from(self.fraction_lost) << 24 | lost,
            self.highest_sequence,
            self.jitter,
            self.last_sr,
            self.delay_since_last_sr,
        ];
        for (out, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *out = word.to_be_bytes();
        }
        out
    }
}

/// The report blocks of one report.
#[derive(Clone, Copy, Debug)]
pub struct ReportBlocks<'a>(&'a [[u8; ReportBlock::LEN]]);

impl<'a> ReportBlocks<'a> {
    /// In the order of the packet; at most 31.
    pub fn iter(self) -> impl Iterator<Item = ReportBlock> + use<'a> {
        self.0.iter().map(ReportBlock::read)
    }
}

/// A list of SSRCs.
#[derive(Clone, Copy, Debug)]
pub struct Ssrcs<'a>(&'a [[u8; 4]]);

impl<'a> Ssrcs<'a> {
    /// In the order of the packet.
    pub fn iter(self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// The sequence numbers of one NACK.
#[derive(Clone, Copy, Debug)]
pub struct NackSequences<'a>(&'a [[u8; 4]]);

impl<'a> NackSequences<'a> {
    /// In the order of the packet: each packet id, then the later ones that its bit mask names. A hostile packet may repeat
    /// numbers, 17 for every 4 bytes of datagram: bound what one NACK may cost.
    pub fn iter(self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.iter().flat_map(|[p0, p1, b0, b1]| {
            let first = u16::from_be_bytes([*p0, *p1]);
            let mask = u32::from(u16::from_be_bytes([*b0, *b1])) << 1 | 1;
            (0..17).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| first.wrapping_add(bit))
        })
    }
}

/// One stream that a FIR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirEntry {
    /// Which stream.
    pub ssrc: u32,
    /// The command's number: the same number again is the same request again.
    pub sequence: u8,
}

/// The entries of one FIR.
#[derive(Clone, Copy, Debug)]
pub struct FirEntries<'a>(&'a [[u8; 8]]);

impl<'a> FirEntries<'a> {
    /// In the order of the packet; at least one.
    pub fn iter(self) -> impl Iterator<Item = FirEntry> + use<'a> {
        self.0.iter().map(|[a, b, c, d, sequence, ..]| FirEntry { ssrc: u32::from_be_bytes([*a, *b, *c, *d]), sequence: *sequence })
    }
}

/// Transport-wide feedback: its chunks cover [`status_count`](Self::status_count) packets without a reserved symbol, and every
/// delta that they announce is there.
#[derive(Clone, Copy, Debug)]
pub struct TransportCc<'a> {
    /// Who reports.
    pub sender: u32,
    /// SSRC of a stream of the transport; the feedback is for all of them.
    pub media: u32,
    /// Transport sequence number of the first packet.
    pub base_sequence: u16,
    /// How many packets it covers, from `base_sequence` on; at least 1.
    pub status_count: u16,
    /// Time of the first delta's base: 24 bits signed, in 64 ms.
    pub reference_time: i32,
    /// Wrapping number of this feedback.
    pub feedback_count: u8,
    /// Packet status chunks.
    pub chunks: &'a [[u8; 2]],
    /// One byte for each small delta, two for each large one, in 250 us; nothing else.
    pub deltas: &'a [u8],
}

impl<'a> TransportCc<'a> {
    fn parse(sender: u32, media: u32, body: &'a [u8]) -> Result<TransportCc<'a>, DropReason> {
        let ([s0, s1, c0, c1, r0, r1, r2, feedback_count], rest) = body.split_first_chunk().ok_or(MALFORMED)?;
        let status_count = u16::from_be_bytes([*c0, *c1]);
        let (words, odd) = rest.as_chunks::<2>();
        let (mut chunks_len, mut covered, mut deltas_len) = (0, 0, 0);
        // Work is bounded by the bytes of the datagram, not by the 16-bit count: a run is one step, however long.
        while covered < usize::from(status_count) {
            let chunk = u16::from_be_bytes(*words.get(chunks_len).ok_or(MALFORMED)?);
            let (symbols, delta_bytes) = chunk_cost(chunk, usize::from(status_count) - covered).ok_or(MALFORMED)?;
            chunks_len += 1;
            covered += symbols;
            deltas_len += delta_bytes;
        }
        if status_count == 0 || rest.len() - 2 * chunks_len < deltas_len {
            return Err(MALFORMED);
        }
        debug_assert!(odd.len() < 2, "as_chunks leaves less than one chunk");
        Ok(TransportCc {
            sender,
            media,
            base_sequence: u16::from_be_bytes([*s0, *s1]),
            status_count,
            reference_time: i32::from_be_bytes([*r0, *r1, *r2, 0]) >> 8,
            feedback_count: *feedback_count,
            chunks: &words[..chunks_len],
            deltas: &rest[2 * chunks_len..2 * chunks_len + deltas_len],
        })
    }
}

impl TransportCc<'_> {
    /// Of the `take` packets after the first `skip`: how many it tells as received, and how many there are up to the last of these. What
    /// comes behind that one may be on the way. Work is bounded by the datagram's bytes.
    pub fn received_among(&self, skip: u16, take: u16) -> (u16, u16) {
        let (begin, end) = (usize::from(skip), usize::from(skip) + usize::from(take));
        let (mut at, mut received, mut covered) = (0, 0, 0);
        let mut count = |at: usize, len: usize| {
            let (first, last) = (at.max(begin), (at + len).min(end));
            if first < last {
                received += last - first;
                covered = last - begin;
            }
        };
        for chunk in self.chunks {
            let chunk = u16::from_be_bytes(*chunk);
            let left = usize::from(self.status_count) - at;
            // A run, or a bit or two for each packet. `parse` let no symbol 3 in.
            let (width, len) = match chunk >> 14 {
                0b00 | 0b01 => {
                    let run = usize::from(chunk & 0x1fff).min(left);
                    if chunk >> 13 & 3 != 0 {
                        count(at, run);
                    }
                    at += run;
                    continue;
                }
                0b10 => (1, left.min(14)),
                _ => (2, left.min(7)),
            };
            for packet in 0..len {
                if chunk >> (14 - width * (packet + 1)) & ((1 << width) - 1) != 0 {
                    count(at + packet, 1);
                }
            }
            at += len;
        }
        (received as u16, covered as u16)
    }
}

/// How many of the `left` packets a chunk covers and how many bytes of deltas it announces; `None` when it uses the reserved
/// symbol 3.
fn chunk_cost(chunk: u16, left: usize) -> Option<(usize, usize)> {
    match chunk >> 14 {
        0b00 | 0b01 => {
            let run = usize::from(chunk & 0x1fff).min(left);
            let symbol = usize::from(chunk >> 13 & 3);
            (symbol != 3).then_some((run, run * symbol))
        }
        0b10 => {
            let symbols = left.min(14);
            Some((symbols, (chunk & 0x3fff).wrapping_shr(14 - symbols as u32).count_ones() as usize))
        }
        _ => {
            let symbols = left.min(7);
            let used = (chunk & 0x3fff) >> (14 - 2 * symbols as u32);
            let (low, high) = (used & 0x1555, used >> 1 & 0x1555);
            (low & high == 0).then_some((symbols, (low.count_ones() + 2 * high.count_ones()) as usize))
        }
    }
}

/// Walks the packets of a decrypted compound.
#[derive(Clone, Debug)]
pub struct RtcpReader<'a> {
    rest: &'a [u8],
}

impl<'a> RtcpReader<'a> {
    /// Checks every packet of the compound, so that a malformed one is dropped whole and never half obeyed: `RtcpMalformed` when
    /// a header, count, padding or list does not fit.
    pub fn new(compound: &'a [u8]) -> Result<RtcpReader<'a>, DropReason> {
        let mut rest = compound;
        loop {
            rest = split_packet(rest)?.1;
            if rest.is_empty() {
                return Ok(RtcpReader { rest: compound });
            }
        }
    }
}

impl<'a> Iterator for RtcpReader<'a> {
    type Item = RtcpPacket<'a>;

    fn next(&mut self) -> Option<RtcpPacket<'a>> {
        // Never an error before the end: `new` has walked all of it.
        let (packet, rest) = split_packet(self.rest).ok()?;
        self.rest = rest;
        Some(packet)
    }
}

/// The first packet and what follows it.
fn split_packet(bytes: &[u8]) -> Result<(RtcpPacket<'_>, &[u8]), DropReason> {
    let ([first, packet_type, l0, l1], after) = bytes.split_first_chunk().ok_or(MALFORMED)?;
    let len = 4 * usize::from(u16::from_be_bytes([*l0, *l1]));
    let (mut body, rest) = after.split_at_checked(len).ok_or(MALFORMED)?;
    if first >> 6 != 2 {
        return Err(MALFORMED);
    }
    if first & 0x20 != 0 {
        // RFC 3550 has padding in multiples of four and on the last packet alone. libwebrtc fills transport feedback with 1 to 3
        // bytes of it and may put another packet behind, so only what reading needs is checked.
        let count = usize::from(*body.last().ok_or(MALFORMED)?);
        if count == 0 {
            return Err(MALFORMED);
        }
        body = &body[..len.checked_sub(count).ok_or(MALFORMED)?];
    }
    Ok((parse_body(first & 0x1f, *packet_type, body)?, rest))
}

fn parse_body(format: u8, packet_type: u8, body: &[u8]) -> Result<RtcpPacket<'_>, DropReason> {
    match packet_type {
        SENDER_REPORT => {
            let (fixed, rest) = body.split_first_chunk::<24>().ok_or(MALFORMED)?;
            let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
            let info = SenderInfo {
                ssrc: word(0),
                ntp: u64::from(word(4)) << 32 | u64::from(word(8)),
                rtp_timestamp: word(12),
                packets: word(16),
                octets: word(20),
            };
            Ok(RtcpPacket::SenderReport { info, blocks: ReportBlocks(counted(rest, format)?) })
        }
        RECEIVER_REPORT => {
            let (ssrc, rest) = split_u32(body)?;
            Ok(RtcpPacket::ReceiverReport { ssrc, blocks: ReportBlocks(counted(rest, format)?) })
        }
        SDES => Ok(RtcpPacket::Sdes),
        BYE => {
            let sources = counted(body, format)?;
            // The reason that may follow has a length byte; nobody reads the text.
            match &body[4 * sources.len()..] {
                [len, text @ ..] if text.len() < usize::from(*len) => Err(MALFORMED),
                _ => Ok(RtcpPacket::Bye { sources: Ssrcs(sources) }),
            }
        }
        TRANSPORT_FEEDBACK | PAYLOAD_FEEDBACK => {
            let (sender, rest) = split_u32(body)?;
            let (media, control) = split_u32(rest)?;
            parse_feedback(format, packet_type, sender, media, control)
        }
        _ => Ok(RtcpPacket::Unknown { packet_type, format }),
    }
}

/// `control` is the feedback control information behind the two SSRCs.
fn parse_feedback(format: u8, packet_type: u8, sender: u32, media: u32, control: &[u8]) -> Result<RtcpPacket<'_>, DropReason> {
    match (packet_type, format) {
        (TRANSPORT_FEEDBACK, NACK) => Ok(RtcpPacket::Nack { sender, media, sequences: NackSequences(whole(control)?) }),
        (TRANSPORT_FEEDBACK, TRANSPORT_CC) => TransportCc::parse(sender, media, control).map(RtcpPacket::TransportCc),
        // RFC 4585 section 6.3.1.2: "PLI does not require parameters."
        (PAYLOAD_FEEDBACK, PLI) if control.is_empty() => Ok(RtcpPacket::Pli { sender, media }),
        (PAYLOAD_FEEDBACK, PLI) => Err(MALFORMED),
        (PAYLOAD_FEEDBACK, FIR) => Ok(RtcpPacket::Fir { sender, entries: FirEntries(whole(control)?) }),
        (PAYLOAD_FEEDBACK, APPLICATION_LAYER) => match control {
            [b'R', b'E', b'M', b'B', remb @ ..] => parse_remb(sender, remb),
            _ => Ok(RtcpPacket::Unknown { packet_type, format }),
        },
        _ => Ok(RtcpPacket::Unknown { packet_type, format }),
    }
}

fn parse_remb(sender: u32, remb: &[u8]) -> Result<RtcpPacket<'_>, DropReason> {
    let ([count, b0, b1, b2], rest) = remb.split_first_chunk().ok_or(MALFORMED)?;
    let (sources, odd) = rest.as_chunks::<4>();
    let mantissa = u64::from(b0 & 3) << 16 | u64::from(*b1) << 8 | u64::from(*b2);
    let exponent = u32::from(b0 >> 2);
    let bitrate = mantissa << exponent;
    if sources.len() != usize::from(*count) || !odd.is_empty() || bitrate >> exponent != mantissa {
        return Err(MALFORMED);
    }
    Ok(RtcpPacket::Remb { sender, bitrate, sources: Ssrcs(sources) })
}

fn split_u32(bytes: &[u8]) -> Result<(u32, &[u8]), DropReason> {
    bytes.split_first_chunk().map(|(word, rest)| (u32::from_be_bytes(*word), rest)).ok_or(MALFORMED)
}

/// The first `count` entries; what follows them (profile-specific extensions of a report) is left alone.
fn counted<const N: usize>(bytes: &[u8], count: u8) -> Result<&[[u8; N]], DropReason> {
    bytes.as_chunks::<N>().0.get(..usize::from(count)).ok_or(MALFORMED)
}

/// A list that is all that there is: not empty, nothing left over.
fn whole<const N: usize>(bytes: &[u8]) -> Result<&[[u8; N]], DropReason> {
    match bytes.as_chunks::<N>() {
        ([], _) => Err(MALFORMED),
        (entries, []) => Ok(entries),
        _ => Err(MALFORMED),
    }
}

/// Builds a compound in the caller's buffer.
///
/// Each method appends one packet, or nothing: `None` means that it did not fit, and what was there before still stands.
///
/// ```
/// use pop_proto::wire::rtcp::RtcpWriter;
///
/// fn report(out: &mut [u8]) -> Option<usize> {
///     let mut compound = RtcpWriter::new(out);
///     compound.receiver_report(1, &[])?.sdes_cname(1, "pop")?.nack(1, 2, [7, 8, 40])?.pli(1, 2)?;
///     Some(compound.len())
/// }
///
/// assert_eq!(report(&mut [0; 1_200]), Some(8 + 16 + 20 + 12));
/// assert_eq!(report(&mut [0; 55]), None);
/// ```
#[derive(Debug)]
pub struct RtcpWriter<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> RtcpWriter<'a> {
    /// An empty compound at the start of `out`.
    pub fn new(out: &'a mut [u8]) -> RtcpWriter<'a> {
        RtcpWriter { out, len: 0 }
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A sender report. Blocks beyond the 31st go into receiver reports behind it.
    pub fn sender_report(&mut self, info: &SenderInfo, blocks: &[ReportBlock]) -> Option<&mut Self> {
        let start = self.len;
        let (first, more) = blocks.split_at(blocks.len().min(COUNT_MAX));
        self.packet(first.len() as u8, SENDER_REPORT, |body| {
            body.put_u32(info.ssrc)?;
            body.put(&info.ntp.to_be_bytes())?;
            body.put_u32(info.rtp_timestamp)?;
            body.put_u32(info.packets)?;
            body.put_u32(info.octets)?;
            first.iter().try_for_each(|block| body.put(&block.write()))
        })?;
        match more {
            [] => Some(self),
            _ => self.receiver_reports(start, info.ssrc, more),
        }
    }

    /// A receiver report, or as many as the blocks need: 31 fit one.
    pub fn receiver_report(&mut self, ssrc: u32, blocks: &[ReportBlock]) -> Option<&mut Self> {
        self.receiver_reports(self.len, ssrc, blocks)
    }

    /// `start` is where the compound goes back to when not all of them fit.
    fn receiver_reports(&mut self, start: usize, ssrc: u32, blocks: &[ReportBlock]) -> Option<&mut Self> {
        let (first, more) = blocks.split_at(blocks.len().min(COUNT_MAX));
        let fits = self.packet(first.len() as u8, RECEIVER_REPORT, |body| {
            body.put_u32(ssrc)?;
            first.iter().try_for_each(|block| body.put(&block.write()))
        });
        if fits.is_none() {
            self.len = start;
            return None;
        }
        match more {
            [] => Some(self),
            _ => self.receiver_reports(start, ssrc, more),
        }
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.out.len() - self.len
    }

    /// Bytes of a sender report without blocks.
    pub const SENDER_REPORT_LEN: usize = 28;

    /// Bytes of a receiver report with `blocks` blocks, at most 31.
    pub const fn receiver_report_len(blocks: usize) -> usize {
        8 + blocks * ReportBlock::LEN
    }

    /// Bytes of a source description with this CNAME.
    pub const fn sdes_cname_len(cname: &str) -> usize {
        // Header, SSRC, item head and text, then one to four null octets.
        (4 + 4 + 2 + cname.len()) / 4 * 4 + 4
    }

    /// A source description with one CNAME; `None` also when it is longer than 255 bytes.
    pub fn sdes_cname(&mut self, ssrc: u32, cname: &str) -> Option<&mut Self> {
        const CNAME: u8 = 1;
        let len = u8::try_from(cname.len()).ok()?;
        self.packet(1, SDES, |body| {
            body.put_u32(ssrc)?;
            body.put(&[CNAME, len])?;
            body.put(cname.as_bytes())?;
            // RFC 3550 section 6.5: the list "MUST be terminated by one or more null octets" up to the next 32-bit boundary.
            body.put(&[0; 4][body.len % 4..])
        })
    }

    /// A NACK for `sequences`, sorted in sequence order (wraps included); duplicates are named once. Nothing for an empty list.
    pub fn nack(&mut self, sender: u32, media: u32, sequences: impl IntoIterator<Item = u16>) -> Option<&mut Self> {
        let mut sequences = sequences.into_iter();
        let Some(mut first) = sequences.next() else { return Some(self) };
        self.packet(NACK, TRANSPORT_FEEDBACK, |body| {
            body.put_u32(sender)?;
            body.put_u32(media)?;
            let mut mask = 0u16;
            for sequence in sequences {
                match sequence.wrapping_sub(first) {
                    0 => {}
                    distance @ 1..=16 => mask |= 1 << (distance - 1),
                    _ => {
                        body.put_u32(u32::from(first) << 16 | u32::from(mask))?;
                        (first, mask) = (sequence, 0);
                    }
                }
            }
            body.put_u32(u32::from(first) << 16 | u32::from(mask))
        })
    }

    /// A picture loss indication.
    pub fn pli(&mut self, sender: u32, media: u32) -> Option<&mut Self> {
        self.packet(PLI, PAYLOAD_FEEDBACK, |body| {
            body.put_u32(sender)?;
            body.put_u32(media)
        })
    }

    /// A full intra request for one stream.
    pub fn fir(&mut self, sender: u32, entry: FirEntry) -> Option<&mut Self> {
        self.packet(FIR, PAYLOAD_FEEDBACK, |body| {
            body.put_u32(sender)?;
            // RFC 5104 section 4.3.1.2: "The SSRC of media source is not used and SHALL be set to 0."
            body.put_u32(0)?;
            body.put_u32(entry.ssrc)?;
            body.put_u32(u32::from(entry.sequence) << 24)
        })
    }

    /// An estimate of the bitrate that these streams together may have, in bit/s; the last bits of large numbers are lost. `None`
    /// also for more than 255 sources.
    pub fn remb(&mut self, sender: u32, bitrate: u64, sources: &[u32]) -> Option<&mut Self> {
        let count = u8::try_from(sources.len()).ok()?;
        // An 18-bit mantissa and 6 bits of exponent.
        let exponent = (64 - bitrate.leading_zeros()).saturating_sub(18);
        let mantissa = (bitrate >> exponent) as u32;
        self.packet(APPLICATION_LAYER, PAYLOAD_FEEDBACK, |body| {
            body.put_u32(sender)?;
            body.put_u32(0)?;
            body.put(b"REMB")?;
            body.put_u32(u32::from(count) << 24 | exponent << 18 | mantissa)?;
            sources.iter().try_for_each(|ssrc| body.put_u32(*ssrc))
        })
    }

    /// Sequence numbers for which one more [`RtcpWriter::nack`] has room, however they lie.
    pub fn nack_room(&self) -> usize {
        // Header and two SSRCs, then at worst an item of 4 bytes for each number.
        self.room().saturating_sub(12) / 4
    }

    /// A goodbye; `None` also for more than 31 sources.
    pub fn bye(&mut self, sources: &[u32]) -> Option<&mut Self> {
        if sources.len() > COUNT_MAX {
            return None;
        }
        self.packet(sources.len() as u8, BYE, |body| sources.iter().try_for_each(|ssrc| body.put_u32(*ssrc)))
    }

    /// Appends a packet whose body `fill` writes in whole words.
    fn packet(&mut self, format: u8, packet_type: u8, fill: impl FnOnce(&mut Body<'_>) -> Option<()>) -> Option<&mut Self> {
        let (head, rest) = self.out.get_mut(self.len..)?.split_first_chunk_mut::<4>()?;
        let mut body = Body { out: rest, len: 0 };
        fill(&mut body)?;
        let body_len = body.len;
        assert!(body_len.is_multiple_of(4), "every body above is made of whole words");
        let [l0, l1] = u16::try_from(body_len / 4).ok()?.to_be_bytes();
        *head = [0x80 | format, packet_type, l0, l1];
        self.len += 4 + body_len;
        Some(self)
    }
}

/// The unwritten rest of the buffer behind a packet's header.
struct Body<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Body<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.len..self.len + bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }

    fn put_u32(&mut self, word: u32) -> Option<()> {
        self.put(&word.to_be_bytes())
    }
}
