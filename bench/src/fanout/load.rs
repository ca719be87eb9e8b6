//! The load itself: publishers that pace their frames, subscribers that count and authenticate, on one thread without waiting.
//!
//! ```text
//! until the next frame is due: sweep all sockets -> STUN answers, PLIs, media
//! frame due: packets of the frame, numbered and stamped -> SRTP -> one burst
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader, RtcpWriter, SenderInfo};
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_uring::Received;

use super::arrival::{Arrival, Latencies};
use super::ice::Checks;
use super::packet::{FrameSizer, HEADER_LEN, Place, read_payload, write_packet};
use crate::groups::Groups;

/// Between two checks of one client: consent must be renewed well before it expires (RFC 7675 section 5.1 says 5 s).
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(2_500);

/// Between two sweeps of a load that only waits.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Between two sender reports of a publisher.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// After the last frame, packets are waited for until this long nothing came.
pub(crate) const QUIET: Duration = Duration::from_millis(100);

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
    wants_keyframe: bool,
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
    trains: u64,
    authenticated: u64,
    refused: u64,
}

impl Publisher {
    /// A stream of `ssrc` that starts at `sequence`, below 2^15 so that both ends agree on rollover counter 0.
    pub(crate) fn new(sender: SrtpSender, receiver: SrtpReceiver, ssrc: u32, sequence: u16) -> Publisher {
        Publisher {
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
    /// A viewer of the `publisher`-th publisher; with a `receiver` it authenticates every packet.
    pub(crate) fn new(publisher: usize, receiver: Option<SrtpReceiver>) -> Subscriber {
        Subscriber { publisher, arrival: Arrival::default(), receiver, trains: 0, authenticated: 0, refused: 0 }
    }
}

/// How the publishers send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bits of RTP packets per second and publisher.
    pub(crate) bitrate: u64,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Frames per second and publisher.
    pub(crate) fps: u32,
    /// How long.
    pub(crate) duration: Duration,
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
    /// Trains that the subscribers got.
    pub(crate) trains: u64,
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
    /// From the first frame to the last packet's arrival, at least to the end of the last frame's interval.
    pub(crate) elapsed: Duration,
    /// How much of that lies behind the last frame's interval: a queue that had to be worked off.
    pub(crate) overrun: Duration,
    /// The latest that a frame left after its time.
    pub(crate) late_max: Duration,
    /// p50, p99 and p99.9 of authenticated packets, in microseconds.
    pub(crate) latency_us: [f64; 3],
    /// How many packets that is.
    pub(crate) latency_samples: usize,
}

impl Outcome {
    /// Share of the expected packets that did not arrive.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.delivered as f64 / self.expected.max(1) as f64
    }

    /// Mean packets per train as the subscribers saw it.
    pub(crate) fn train_len(&self) -> f64 {
        (self.delivered + self.repeats) as f64 / self.trains.max(1) as f64
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
    /// Of the next packet.
    number: u64,
    checksum: u64,
    latencies: Latencies,
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
            number: 0,
            checksum: 0,
            latencies: Latencies::with_capacity(samples),
        }
    }

    /// Sends frames at `pace` and waits for the last packets. The number of frames is fixed, so that two runs do the same.
    pub(crate) fn run(&mut self, pace: &Pace) -> Result<Outcome, String> {
        let publishers = self.publishers.len() as u32;
        let frames = (pace.duration.as_secs_f64() * f64::from(pace.fps)).round().max(1.0) as u32;
        let interval = Duration::from_secs(1) / pace.fps;
        let mut sizers: Vec<FrameSizer> =
            self.publishers.iter().map(|_| FrameSizer::new(pace.bitrate, pace.packet_len, pace.fps)).collect();
        let before = self.counts();
        let drops_before = self.groups.kernel_drops();
        (self.number, self.checksum) = (0, 0);
        self.latencies.clear();
        let mut outcome = Outcome::default();
        let mut sent = vec![0u64; self.publishers.len()];
        let start = self.clock.elapsed();
        for step in 0..frames * publishers {
            let due = start + interval * (step / publishers) + interval / publishers * (step % publishers);
            while self.clock.elapsed() < due {
                self.sweep()?;
            }
            outcome.late_max = outcome.late_max.max(self.clock.elapsed().saturating_sub(due));
            let publisher = (step % publishers) as usize;
            let packets = sizers[publisher].next_frame();
            self.send_frame(publisher, packets, pace)?;
            sent[publisher] += packets as u64;
        }
        while self.clock.elapsed() < start + interval * frames {
            self.sweep()?;
        }
        self.wait_for_quiet()?;
        let end = start + interval * frames;
        outcome.overrun = self.last_media.saturating_sub(end);
        outcome.elapsed = end + outcome.overrun - start;
        let after = self.counts();
        outcome.sent = sent.iter().sum();
        outcome.expected = self.subscribers().map(|subscriber| sent[subscriber.publisher]).sum();
        outcome.delivered = after.packets - before.packets;
        outcome.repeats = after.repeats - before.repeats;
        outcome.trains = after.trains - before.trains;
        outcome.authenticated = after.authenticated - before.authenticated;
        outcome.refused = after.refused - before.refused;
        outcome.keyframe_requests = after.keyframe_requests - before.keyframe_requests;
        outcome.generator_drops = self.groups.kernel_drops() - drops_before;
        outcome.checksum = self.checksum;
        outcome.latency_samples = self.latencies.len();
        outcome.latency_us = self.latencies.percentiles_us([0.5, 0.99, 0.999]);
        Ok(outcome)
    }

    /// Serves what arrives and keeps consent until nothing has come for a while.
    pub(crate) fn wait_for_quiet(&mut self) -> Result<(), String> {
        let start = self.clock.elapsed();
        while self.clock.elapsed() < self.last_media.max(start) + QUIET {
            self.sweep()?;
        }
        Ok(())
    }

    /// Keeps consent while something else is measured, with as little of the core as that takes.
    pub(crate) fn idle(&mut self) -> Result<(), String> {
        self.sweep()?;
        std::thread::sleep(IDLE_INTERVAL);
        Ok(())
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
                    counts.trains += subscriber.trains;
                    counts.authenticated += subscriber.authenticated;
                    counts.refused += subscriber.refused;
                }
            }
        }
        counts
    }

    /// Takes what arrived and sends the checks that are due.
    fn sweep(&mut self) -> Result<(), String> {
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
        let Load { groups, clients, clock, checksum, latencies, .. } = self;
        let mut media = false;
        let swept = groups.sweep(|at, received| media |= clients[at].take(received, *clock, checksum, latencies));
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

    fn send_frame(&mut self, publisher: usize, packets: usize, pace: &Pace) -> Result<(), String> {
        let at = self.publishers[publisher];
        let Client { server, role: Role::Publisher(stream), .. } = &mut self.clients[at] else {
            unreachable!("the list holds the indexes of publishers");
        };
        let frame = Frame { packets, fps: pace.fps, filler: &mut self.filler, number: &mut self.number, clock: self.clock };
        stream.send_frame(&mut self.groups, (at, *server), frame)
    }
}

/// What a frame is made of.
pub(crate) struct Frame<'a> {
    /// How many packets.
    pub(crate) packets: usize,
    /// Frames per second of its stream.
    pub(crate) fps: u32,
    /// A packet, to be filled in.
    pub(crate) filler: &'a mut [u8],
    /// Number of the next packet.
    pub(crate) number: &'a mut u64,
    /// What stamps are read from.
    pub(crate) clock: Instant,
}

#[derive(Default)]
struct Counts {
    packets: u64,
    repeats: u64,
    trains: u64,
    authenticated: u64,
    refused: u64,
    keyframe_requests: u64,
}

impl Publisher {
    /// Sends one frame as one burst. A full queue of the generator is its own fault and ends the run. `way` is the client's place in
    /// `groups`, and its server.
    pub(crate) fn send_frame(&mut self, groups: &mut Groups, way: (usize, SocketAddr), frame: Frame<'_>) -> Result<(), String> {
        let (at, server) = way;
        let Frame { packets, fps, filler, number, clock } = frame;
        let now = clock.elapsed();
        if now >= self.next_report {
            self.next_report = now + REPORT_INTERVAL;
            groups.send(at, server, |out| self.write_report(out, now));
        }
        let keyframe = std::mem::take(&mut self.wants_keyframe);
        for n in 0..packets {
            let place = Place {
                ssrc: self.ssrc,
                sequence: self.index as u16,
                timestamp: self.timestamp,
                starts_frame: n == 0,
                ends_frame: n + 1 == packets,
                keyframe,
            };
            write_packet(filler, &place, *number, clock.elapsed().as_nanos() as u64);
            *number += 1;
            let (header, payload) = filler.split_at(HEADER_LEN);
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
        }
        self.timestamp = self.timestamp.wrapping_add(90_000 / fps);
        groups.flush(at).map_err(|e| format!("load generator: send: {e}"))
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
    fn take(&mut self, mut received: Received<'_>, clock: Instant, checksum: &mut u64, latencies: &mut Latencies) -> bool {
        if received.from != self.server {
            return false;
        }
        let mut media = false;
        let mut now_ns = None;
        for datagram in received.datagrams() {
            match (demux(datagram), &mut self.role) {
                (Ok(Protocol::Stun), _) => {
                    let _ = self.checks.read_answer(datagram);
                }
                (Ok(Protocol::Rtcp), Role::Publisher(publisher)) => publisher.take_rtcp(datagram),
                (Ok(Protocol::Rtp), Role::Subscriber(subscriber)) => {
                    media = true;
                    subscriber.arrival.insert(u16::from_be_bytes([datagram[2], datagram[3]]));
                    if subscriber.receiver.is_some() {
                        // One clock read per train: its packets were there together.
                        let now_ns = *now_ns.get_or_insert_with(|| clock.elapsed().as_nanos() as u64);
                        match subscriber.open(datagram) {
                            Some((number, sent_ns)) => {
                                subscriber.authenticated += 1;
                                *checksum = checksum.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                                latencies.push(now_ns.saturating_sub(sent_ns));
                            }
                            None => subscriber.refused += 1,
                        }
                    }
                }
                // Receiver-side RTCP, late DTLS flights, what is malformed: nothing to measure.
                _ => {}
            }
        }
        if media && let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.trains += 1;
        }
        media
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
