//! The load itself: publishers that pace their frames, subscribers that count and authenticate, on one thread without waiting.
//!
//! ```text
//! sweep a group of sockets -> STUN answers, PLIs, media
//! packets that are due: numbered, stamped with the time that they were due -> SRTP -> the kernel -> the next group
//! ```

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, RtcpWriter, SenderInfo};
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_uring::Received;

use super::arrival::{Arrival, Latencies, Trains};
use super::ice::Checks;
use super::packet::{HEADER_LEN, Place, read_payload, write_packet};
use super::timeline::{Pace, Timeline};
use crate::groups::Groups;
use crate::result::LatencyUs;
use crate::sdp::Media;

/// Between two checks of one client: consent must be renewed well before it expires (RFC 7675 section 5.1 says 5 s).
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(2_500);

/// Between two sender reports of a publisher.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// After the last frame, packets are waited for until this long nothing came.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// Bytes that SRTP and SRTCP may add.
const OVERHEAD_MAX: usize = pop_proto::srtp::OVERHEAD_MAX;

/// A client whose media may flow.
pub(crate) struct Client {
    /// Where it sends to and what it accepts from.
    pub(crate) server: SocketAddr,
    /// Its ICE checks.
    pub(crate) checks: Checks,
    /// What it is.
    pub(crate) role: Role,
}

/// What a client is.
pub(crate) enum Role {
    /// Sends a stream.
    Publisher(Box<Publisher>),
    /// Receives a publisher's stream.
    Subscriber(Box<Subscriber>),
}

/// A stream that is sent.
pub(crate) struct Publisher {
    sender: SrtpSender,
    receiver: SrtpReceiver,
    ssrc: u32,
    /// 48-bit index of the next packet.
    index: u64,
    timestamp: u32,
    timeline: Timeline,
    media: Media,
    wants_keyframe: bool,
    /// The frame that is being sent is one.
    keyframe: bool,
    keyframe_requests: u64,
    packets: u32,
    next_report: Duration,
}

/// A stream that is received.
pub(crate) struct Subscriber {
    /// Which publisher it watches, by place among the publishers.
    publisher: usize,
    arrival: Arrival,
    /// Present in those that authenticate every packet.
    receiver: Option<SrtpReceiver>,
    /// The latency of its packets counts.
    is_timed: bool,
    authenticated: u64,
    refused: u64,
}

impl Publisher {
    /// A stream of `ssrc` that starts at `sequence`, below 2^15 so that both ends agree on rollover counter 0. It sends nothing until
    /// it is given a time to begin.
    pub(crate) fn new(sender: SrtpSender, receiver: SrtpReceiver, ssrc: u32, sequence: u16, pace: &Pace) -> Publisher {
        Publisher {
            timeline: Timeline::new(pace, Duration::ZERO, 0),
            keyframe: false,
            media: pace.media,
            sender,
            receiver,
            ssrc,
            index: u64::from(sequence & 0x7fff),
            timestamp: 0,
            wants_keyframe: true,
            keyframe_requests: 0,
            packets: 0,
            next_report: Duration::ZERO,
        }
    }
}

impl Subscriber {
    /// A viewer of the `publisher`-th publisher; with a `receiver` it authenticates every packet, whose latency counts where it is timed.
    pub(crate) fn new(publisher: usize, receiver: Option<SrtpReceiver>, is_timed: bool) -> Subscriber {
        Subscriber { publisher, arrival: Arrival::default(), receiver, is_timed, authenticated: 0, refused: 0 }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Packets that the publishers sent.
    pub(crate) sent: u64,
    /// Packets that the subscribers should have.
    pub(crate) expected: u64,
    /// Different packets that the subscribers got.
    pub(crate) delivered: u64,
    /// Packets that came again.
    pub(crate) repeats: u64,
    /// UDP payload bytes of all packets that came; 0 where nobody counted them.
    pub(crate) bytes: u64,
    /// Trains that the subscribers got, which is how they left the server: nothing on the way cuts or joins them.
    pub(crate) trains: Trains,
    /// Packets whose tag was checked and right, with the publisher's number inside.
    pub(crate) authenticated: u64,
    /// Packets whose tag was wrong, that were replayed, or that held something else.
    pub(crate) refused: u64,
    /// Folds the numbers of all authenticated packets, whatever their order.
    pub(crate) checksum: u64,
    /// Keyframes that the server asked for.
    pub(crate) keyframe_requests: u64,
    /// Packets that the kernel dropped at a subscriber's socket: a generator that does not keep up, not the server.
    pub(crate) generator_drops: u64,
    /// From the first packet to the last packet's arrival, at least to the end of the last frame's interval.
    pub(crate) elapsed: Duration,
    /// How much of that lies behind the last frame's interval: a queue that had to be worked off.
    pub(crate) overrun: Duration,
    /// The latest that a packet left after its time.
    pub(crate) late_max: Duration,
    /// Of authenticated packets, from the time that they were to be sent.
    pub(crate) latency_us: Option<LatencyUs>,
    /// How many packets that is.
    pub(crate) latency_samples: usize,
}

impl Outcome {
    /// Share of the expected packets that did not arrive.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.delivered as f64 / self.expected.max(1) as f64
    }
}

/// All clients and their sockets.
pub(crate) struct Load {
    groups: Groups,
    clients: Vec<Client>,
    /// Indexes of the publishers among the clients.
    publishers: Vec<usize>,
    clock: Instant,
    next_check: Duration,
    next_checked: usize,
    /// When the last train of media was taken.
    last_media: Duration,
    filler: Vec<u8>,
    /// So many bytes shorter are the packets of the first half of a frame.
    shorter: usize,
    /// Of the next packet.
    number: u64,
    tally: Tally,
}

/// What a run saw, of all subscribers together.
#[derive(Default)]
struct Tally {
    checksum: u64,
    latencies: Latencies,
    trains: Trains,
    bytes: u64,
    /// Datagrams that came from elsewhere: the floor's.
    strange: u64,
}

impl Load {
    /// `groups` are the clients' sockets in the same order. `samples` is how many latencies a run may have.
    pub(crate) fn new(groups: Groups, clients: Vec<Client>, packet_len: usize, samples: usize) -> Load {
        let publishers = clients.iter().enumerate().filter(|(_, client)| matches!(client.role, Role::Publisher(_))).map(|(at, _)| at);
        Load {
            publishers: publishers.collect(),
            groups,
            clients,
            clock: Instant::now(),
            next_check: Duration::ZERO,
            next_checked: 0,
            last_media: Duration::ZERO,
            filler: (0..packet_len).map(|at| (at * 7) as u8).collect(),
            shorter: 0,
            number: 0,
            tally: Tally { latencies: Latencies::with_capacity(samples), ..Tally::default() },
        }
    }

    /// The packets of the first half of a frame are a byte shorter from now on: libwebrtc cuts a frame as evenly as it can, the longer ones
    /// last.
    pub(crate) fn cut_as_libwebrtc(&mut self) {
        self.shorter = 1;
    }

    /// Sends at `pace` and waits for the last packets.
    pub(crate) fn run(&mut self, pace: &Pace) -> Result<Outcome, String> {
        self.run_some(pace, 0..self.publishers.len())
    }

    /// The same of some publishers alone.
    pub(crate) fn run_some(&mut self, pace: &Pace, which: Range<usize>) -> Result<Outcome, String> {
        let (frames, interval, publishers) = (pace.frames(), pace.interval(), which.len() as u32);
        let (before, drops_before) = (self.counts(), self.groups.kernel_drops());
        self.number = 0;
        self.tally.latencies.clear();
        (self.tally.checksum, self.tally.trains, self.tally.bytes) = (0, Trains::default(), 0);
        let mut outcome = Outcome::default();
        let mut sent = vec![0u64; self.publishers.len()];
        let start = self.clock.elapsed();
        for (n, publisher) in (0..).zip(which) {
            let begin = start + interval / publishers * n;
            self.publisher(publisher).begin(Timeline::new(pace, begin, frames));
        }
        let end = start + interval * frames;
        loop {
            let mut over = self.clock.elapsed() >= end;
            for (publisher, sent) in sent.iter_mut().enumerate() {
                let late = self.send_due(publisher, pace, sent)?;
                outcome.late_max = outcome.late_max.max(late);
                over &= self.publisher(publisher).due().is_none();
            }
            if over {
                break;
            }
            self.sweep_next()?;
        }
        self.wait_for_quiet()?;
        outcome.overrun = self.last_media.saturating_sub(end);
        outcome.elapsed = end + outcome.overrun - start;
        let after = self.counts();
        outcome.sent = sent.iter().sum();
        outcome.expected = self.subscribers().map(|subscriber| sent[subscriber.publisher]).sum();
        outcome.delivered = after.packets - before.packets;
        outcome.repeats = after.repeats - before.repeats;
        outcome.authenticated = after.authenticated - before.authenticated;
        outcome.refused = after.refused - before.refused;
        outcome.keyframe_requests = after.keyframe_requests - before.keyframe_requests;
        outcome.generator_drops = self.groups.kernel_drops() - drops_before;
        outcome.trains = self.tally.trains.clone();
        outcome.bytes = self.tally.bytes;
        outcome.checksum = self.tally.checksum;
        outcome.latency_samples = self.tally.latencies.len();
        outcome.latency_us = self.tally.latencies.summarize();
        Ok(outcome)
    }

    /// Serves what arrives and keeps consent until nothing has come for a while.
    pub(crate) fn wait_for_quiet(&mut self) -> Result<(), String> {
        let start = self.clock.elapsed();
        while self.clock.elapsed() < self.last_media.max(start) + QUIET {
            self.sweep_next()?;
        }
        Ok(())
    }

    /// Keeps consent and reads what somebody else sends to the subscribers: how many datagrams have come in all.
    pub(crate) fn drain(&mut self) -> Result<u64, String> {
        self.sweep_next()?;
        Ok(self.tally.strange)
    }

    /// Checks of all clients that the server has answered.
    pub(crate) fn check_answers(&self) -> u64 {
        self.clients.iter().map(|client| client.checks.answers).sum()
    }

    /// Makes a check of every client due at once: before a pause, and after it.
    pub(crate) fn renew_consent(&mut self) -> Result<(), String> {
        for at in 0..self.clients.len() {
            self.send_check(at)?;
        }
        self.wait_for_quiet()
    }

    fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.clients.iter().filter_map(|client| match &client.role {
            Role::Subscriber(subscriber) => Some(&**subscriber),
            Role::Publisher(_) => None,
        })
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for client in &self.clients {
            match &client.role {
                Role::Publisher(publisher) => counts.keyframe_requests += publisher.keyframe_requests,
                Role::Subscriber(subscriber) => {
                    counts.packets += subscriber.arrival.packets;
                    counts.repeats += subscriber.arrival.repeats;
                    counts.authenticated += subscriber.authenticated;
                    counts.refused += subscriber.refused;
                }
            }
        }
        counts
    }

    /// Takes what arrived for the next group of clients and sends the checks that are due.
    fn sweep_next(&mut self) -> Result<(), String> {
        let now = self.clock.elapsed();
        // At most one round: a generator that was stopped for long does not pay it all back.
        for _ in 0..self.clients.len() {
            if now < self.next_check {
                break;
            }
            self.next_check += CHECK_INTERVAL / self.clients.len() as u32;
            self.next_checked = (self.next_checked + 1) % self.clients.len();
            self.send_check(self.next_checked)?;
        }
        self.next_check = self.next_check.max(now);
        let Load { groups, clients, clock, tally, .. } = self;
        let mut media = false;
        let swept = groups.sweep_next(|at, received| media |= clients[at].take(received, *clock, tally));
        swept.map_err(|e| format!("load generator: receive: {e}"))?;
        if media {
            self.last_media = self.clock.elapsed();
        }
        Ok(())
    }

    fn send_check(&mut self, at: usize) -> Result<(), String> {
        let client = &mut self.clients[at];
        let (server, checks) = (client.server, &mut client.checks);
        self.groups.send(at, server, |out| {
            let out = out.first_chunk_mut().expect("a slot has room for a check");
            checks.write_check(out)
        });
        self.groups.flush(at).map_err(|e| format!("load generator: check: {e}"))
    }

    /// The `n`-th publisher.
    fn publisher(&mut self, n: usize) -> &mut Publisher {
        match &mut self.clients[self.publishers[n]].role {
            Role::Publisher(publisher) => publisher,
            Role::Subscriber(_) => unreachable!("the list holds the indexes of publishers"),
        }
    }

    /// Sends what is due of one publisher and counts it; how late the latest left.
    fn send_due(&mut self, publisher: usize, pace: &Pace, sent: &mut u64) -> Result<Duration, String> {
        let Load { groups, clients, publishers, filler, shorter, number, clock, .. } = self;
        let at = publishers[publisher];
        let Client { server, role: Role::Publisher(stream), .. } = &mut clients[at] else {
            unreachable!("the list holds the indexes of publishers");
        };
        let before = *number;
        let source = Source { fps: pace.fps, filler, shorter: *shorter, number, now: clock.elapsed() };
        let late = stream.send_due(groups, (at, *server), source)?;
        *sent += *number - before;
        Ok(late)
    }
}

/// What packets are made of.
pub(crate) struct Source<'a> {
    /// Frames per second of the stream.
    pub(crate) fps: u32,
    /// A packet, to be filled in.
    pub(crate) filler: &'a mut [u8],
    /// So many bytes shorter are the packets of the first half of a frame.
    pub(crate) shorter: usize,
    /// Number of the next packet.
    pub(crate) number: &'a mut u64,
    /// What is due by now is sent.
    pub(crate) now: Duration,
}

#[derive(Default)]
struct Counts {
    packets: u64,
    repeats: u64,
    authenticated: u64,
    refused: u64,
    keyframe_requests: u64,
}

impl Publisher {
    /// Sends at these times from now on.
    pub(crate) fn begin(&mut self, timeline: Timeline) {
        self.timeline = timeline;
    }

    /// When the next packet is to leave, if there is one.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.timeline.due()
    }

    /// Sends what is due and says how late the latest left. A full queue of the generator is its own fault and ends the run. `way` is
    /// the client's place in `groups`, and its server.
    pub(crate) fn send_due(&mut self, groups: &mut Groups, way: (usize, SocketAddr), source: Source<'_>) -> Result<Duration, String> {
        let (at, server) = way;
        let Source { fps, filler, shorter, number, now } = source;
        let mut late = None;
        while let Some(due) = self.timeline.due().filter(|due| *due <= now) {
            if now >= self.next_report {
                self.next_report = now + REPORT_INTERVAL;
                groups.send(at, server, |out| self.write_report(out, now));
            }
            late = late.max(Some(now - due));
            let (starts_frame, ends_frame) = self.timeline.place();
            if starts_frame {
                self.keyframe = std::mem::take(&mut self.wants_keyframe);
            }
            let (sequence, timestamp, keyframe) = (self.index as u16, self.timestamp, self.keyframe);
            let place = Place { ssrc: self.ssrc, sequence, timestamp, starts_frame, ends_frame, keyframe, media: self.media };
            // The time that it was to leave: a generator that is late must not hide the wait (coordinated omission).
            write_packet(filler, &place, *number, due.as_nanos() as u64);
            *number += 1;
            let len = filler.len() - if self.timeline.is_early() { shorter } else { 0 };
            let (header, payload) = filler[..len].split_at(HEADER_LEN);
            let fill = |out: &mut [u8]| {
                self.sender.protect_rtp(self.index, header, payload, out).expect("a slot is longer than a packet and its tag")
            };
            if !groups.send(at, server, fill) {
                groups.flush(at).map_err(|e| format!("load generator: send: {e}"))?;
                if !groups.send(at, server, fill) {
                    return Err("the load generator's own send queue is full".to_owned());
                }
            }
            self.index += 1;
            self.packets += 1;
            if ends_frame {
                self.timestamp = self.timestamp.wrapping_add(self.media.clock_rate() / fps);
            }
            self.timeline.advance();
        }
        let Some(late) = late else { return Ok(Duration::ZERO) };
        groups.flush(at).map_err(|e| format!("load generator: send: {e}"))?;
        Ok(late)
    }

    fn write_report(&mut self, out: &mut [u8], now: Duration) -> usize {
        let info = SenderInfo {
            ssrc: self.ssrc,
            // Any epoch will do: nobody here compares it with another clock.
            ntp: ((now.as_secs() + 1) << 32) | (u64::from(now.subsec_nanos()) * 4),
            rtp_timestamp: self.timestamp,
            packets: self.packets,
            octets: 0,
        };
        let len = {
            let end = out.len() - OVERHEAD_MAX;
            let mut writer = RtcpWriter::new(&mut out[..end]);
            let _ = writer.sender_report(&info, &[]).and_then(|writer| writer.sdes_cname(self.ssrc, "bench"));
            writer.len()
        };
        self.sender.protect_rtcp(out, len).expect("a slot is longer than a report and its tag")
    }

    /// Takes an RTCP packet: a request for a keyframe is granted with the next frame.
    pub(crate) fn take_rtcp(&mut self, packet: &mut [u8]) {
        let Ok(len) = self.receiver.unprotect_rtcp(packet) else { return };
        let Ok(reader) = RtcpReader::new(&packet[..len]) else { return };
        for packet in reader {
            if matches!(packet, RtcpPacket::Pli { .. } | RtcpPacket::Fir { .. }) {
                self.wants_keyframe = true;
                self.keyframe_requests += 1;
            }
        }
    }
}

impl Client {
    /// Takes one train; whether it was media.
    fn take(&mut self, mut received: Received<'_>, clock: Instant, tally: &mut Tally) -> bool {
        if received.from != self.server {
            tally.strange += received.bytes.len().div_ceil(received.segment) as u64;
            return false;
        }
        let mut media = 0;
        let mut now_ns = None;
        for datagram in received.datagrams() {
            match (demux(datagram), &mut self.role) {
                (Ok(Protocol::Stun), _) => {
                    let _ = self.checks.read_answer(datagram);
                }
                (Ok(Protocol::Rtcp), Role::Publisher(publisher)) => publisher.take_rtcp(datagram),
                (Ok(Protocol::Rtp), Role::Subscriber(subscriber)) => {
                    media += 1;
                    tally.bytes += datagram.len() as u64;
                    subscriber.arrival.insert(u16::from_be_bytes([datagram[2], datagram[3]]));
                    if subscriber.receiver.is_some() {
                        // One clock read per train: its packets were there together.
                        let now_ns = *now_ns.get_or_insert_with(|| clock.elapsed().as_nanos() as u64);
                        match subscriber.open(datagram) {
                            Some((number, sent_ns)) => {
                                subscriber.authenticated += 1;
                                tally.checksum = tally.checksum.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                                if subscriber.is_timed {
                                    tally.latencies.push(now_ns.saturating_sub(sent_ns));
                                }
                            }
                            None => subscriber.refused += 1,
                        }
                    }
                }
                // Receiver-side RTCP, late DTLS flights, what is malformed: nothing to measure.
                _ => {}
            }
        }
        if media > 0 {
            tally.trains.push(media);
        }
        media > 0
    }
}

impl Subscriber {
    /// Number and send time of an authentic packet.
    fn open(&mut self, packet: &mut [u8]) -> Option<(u64, u64)> {
        let header_len = RtpView::parse(packet).ok()?.header_len();
        let opened = self.receiver.as_mut()?.unprotect_rtp(packet, header_len).ok()?;
        read_payload(packet.get(header_len..opened.len)?)
    }
}
