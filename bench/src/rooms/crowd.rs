//! The members' media: publishers that pace their frames, every stream of every member counted, on one thread without waiting.

use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use pop_proto::control::SrtpKeys;
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_uring::Received;
use tokio::runtime::Runtime;

use super::member::{Member, Seat, Times};
use crate::fanout::arrival::{Arrival, Latencies};
use crate::fanout::ice::Checks;
use crate::fanout::load::{CHECK_INTERVAL, Frame, Outcome, Pace, Publisher, QUIET};
use crate::fanout::packet::{FrameSizer, read_payload};
use crate::groups::Groups;
use crate::random::random_bytes;

/// Members whose sockets are read from together; a wave hands over so many at a time.
const BATCH_LEN: usize = 20;

/// Between two turns while members join: their joins need the core, too.
const PAUSE: Duration = Duration::from_micros(500);

/// Latencies that are kept.
const SAMPLES_MAX: usize = 1 << 21;

/// Everybody in the room.
pub(crate) struct Crowd {
    batches: Vec<Batch>,
    /// Where the publishers are: batch and place in it.
    publishers: Vec<Sending>,
    pace: Pace,
    clock: Instant,
    next_check: Duration,
    next_checked: usize,
    last_media: Duration,
    filler: Vec<u8>,
    number: u64,
    tally: Tally,
}

struct Batch {
    groups: Groups,
    clients: Vec<Client>,
}

struct Sending {
    batch: usize,
    at: usize,
    sizer: FrameSizer,
    due: Duration,
    /// Frames and packets of this run.
    frames: u32,
    packets: u64,
}

struct Client {
    server: SocketAddr,
    checks: Checks,
    /// Present when every packet is authenticated.
    keys: Option<SrtpKeys>,
    publisher: Option<Box<Publisher>>,
    /// By SSRC.
    streams: Vec<Stream>,
    seat: Seat,
}

struct Stream {
    ssrc: u32,
    arrival: Arrival,
    /// One for each stream: a receiver keeps no more than 32.
    receiver: Option<Box<SrtpReceiver>>,
}

/// What a run saw.
#[derive(Default)]
struct Tally {
    trains: u64,
    authenticated: u64,
    refused: u64,
    /// Packets of an SSRC that no answer told.
    unknown: u64,
    checksum: u64,
    latencies: Latencies,
}

impl Client {
    fn new(member: Member, authenticates: bool) -> (UdpSocket, Client) {
        let Member { socket, server, checks, keys, ssrc, sources, seat, .. } = member;
        let receiver = || SrtpReceiver::new(keys.profile, &keys.remote);
        let publisher = ssrc.map(|ssrc| {
            let sender = SrtpSender::new(keys.profile, &keys.local);
            Box::new(Publisher::new(sender, receiver(), ssrc, u16::from_be_bytes(random_bytes())))
        });
        let mut client = Client { server, checks, keys: authenticates.then_some(keys), publisher, streams: Vec::new(), seat };
        client.expect_sources(&sources);
        (socket, client)
    }

    /// Counts these from now on, too.
    fn expect_sources(&mut self, sources: &[u32]) {
        for ssrc in sources {
            if let Err(at) = self.streams.binary_search_by_key(ssrc, |stream| stream.ssrc) {
                let receiver = self.keys.as_ref().map(|keys| Box::new(SrtpReceiver::new(keys.profile, &keys.remote)));
                self.streams.insert(at, Stream { ssrc: *ssrc, arrival: Arrival::default(), receiver });
            }
        }
    }

    /// Takes one train; whether it was media.
    fn take(&mut self, mut received: Received<'_>, clock: Instant, tally: &mut Tally) -> bool {
        if received.from != self.server {
            return false;
        }
        let mut media = false;
        let now_ns = clock.elapsed().as_nanos() as u64;
        for datagram in received.datagrams() {
            match demux(datagram) {
                Ok(Protocol::Stun) => drop(self.checks.read_answer(datagram)),
                Ok(Protocol::Rtcp) => self.publisher.iter_mut().for_each(|publisher| publisher.take_rtcp(datagram)),
                Ok(Protocol::Rtp) => {
                    media = true;
                    let ssrc = u32::from_be_bytes([datagram[8], datagram[9], datagram[10], datagram[11]]);
                    match self.streams.binary_search_by_key(&ssrc, |stream| stream.ssrc) {
                        Ok(at) => self.streams[at].take(datagram, now_ns, tally),
                        Err(_) => tally.unknown += 1,
                    }
                }
                // Late DTLS flights, what is malformed: nothing to measure.
                _ => {}
            }
        }
        tally.trains += u64::from(media);
        media
    }
}

impl Stream {
    fn take(&mut self, packet: &mut [u8], now_ns: u64, tally: &mut Tally) {
        self.arrival.insert(u16::from_be_bytes([packet[2], packet[3]]));
        let Some(receiver) = &mut self.receiver else { return };
        match open(receiver, packet) {
            Some((number, sent_ns)) => {
                tally.authenticated += 1;
                tally.checksum = tally.checksum.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                if tally.latencies.len() < SAMPLES_MAX {
                    tally.latencies.push(now_ns.saturating_sub(sent_ns));
                }
            }
            None => tally.refused += 1,
        }
    }
}

/// Number and send time of an authentic packet.
fn open(receiver: &mut SrtpReceiver, packet: &mut [u8]) -> Option<(u64, u64)> {
    let header_len = RtpView::parse(packet).ok()?.header_len();
    let opened = receiver.unprotect_rtp(packet, header_len).ok()?;
    read_payload(packet.get(header_len..opened.len)?)
}

impl Crowd {
    /// Nobody yet.
    pub(crate) fn new(pace: Pace) -> Crowd {
        Crowd {
            batches: Vec::new(),
            publishers: Vec::new(),
            pace,
            clock: Instant::now(),
            next_check: Duration::ZERO,
            next_checked: 0,
            last_media: Duration::ZERO,
            filler: (0..pace.packet_len).map(|at| (at * 7) as u8).collect(),
            number: 0,
            tally: Tally::default(),
        }
    }

    /// Sends and reads while a wave joins, and takes in who has joined. Their times, and the sentences of those who failed.
    pub(crate) fn admit(
        &mut self,
        wave: &Receiver<Result<Member, String>>,
        authenticates: impl Fn(usize) -> bool,
    ) -> Result<(Vec<Times>, Vec<String>), String> {
        let (mut times, mut failures, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        self.begin();
        loop {
            let over = match wave.try_recv() {
                Ok(Ok(member)) => {
                    times.push(member.times);
                    let authenticates = authenticates(member.index);
                    waiting.push(Client::new(member, authenticates));
                    false
                }
                Ok(Err(sentence)) => {
                    failures.push(sentence);
                    false
                }
                Err(TryRecvError::Empty) => {
                    std::thread::sleep(PAUSE);
                    false
                }
                Err(TryRecvError::Disconnected) => true,
            };
            if waiting.len() >= BATCH_LEN || over {
                self.add(std::mem::take(&mut waiting))?;
            }
            if over {
                return Ok((times, failures));
            }
            self.send_due(u32::MAX)?;
            self.sweep()?;
        }
    }

    fn add(&mut self, joined: Vec<(UdpSocket, Client)>) -> Result<(), String> {
        if joined.is_empty() {
            return Ok(());
        }
        let (sockets, clients): (Vec<_>, Vec<_>) = joined.into_iter().unzip();
        let groups = Groups::new(sockets).map_err(|e| format!("load generator: {e}"))?;
        let Pace { bitrate, packet_len, fps, .. } = self.pace;
        for (at, _) in clients.iter().enumerate().filter(|(_, client)| client.publisher.is_some()) {
            let (batch, sizer) = (self.batches.len(), FrameSizer::new(bitrate, packet_len, fps));
            self.publishers.push(Sending { batch, at, sizer, due: self.clock.elapsed(), frames: 0, packets: 0 });
        }
        self.batches.push(Batch { groups, clients });
        Ok(())
    }

    /// How many are here.
    pub(crate) fn len(&self) -> usize {
        self.batches.iter().map(|batch| batch.clients.len()).sum()
    }

    /// Streams that all members get together.
    pub(crate) fn streams(&self) -> u64 {
        self.clients().map(|client| client.streams.len() as u64).sum()
    }

    /// Members whose signalling the server has ended.
    pub(crate) fn lost(&self) -> usize {
        self.clients().filter(|client| client.seat.is_lost()).count()
    }

    /// Packets of an SSRC that no answer told.
    pub(crate) fn unknown(&self) -> u64 {
        self.tally.unknown
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.batches.iter().flat_map(|batch| &batch.clients)
    }

    /// Has the publishers offer again: each joined before those after it had published.
    pub(crate) fn offer_again(&mut self, runtime: &Runtime) -> Result<(), String> {
        for sending in &self.publishers {
            let client = &mut self.batches[sending.batch].clients[sending.at];
            let sources = runtime.block_on(client.seat.offer_again())?;
            client.expect_sources(&sources);
        }
        Ok(())
    }

    /// Sends frames for the pace's duration and waits for the last packets; every publisher sends as many packets.
    pub(crate) fn run(&mut self) -> Result<Outcome, String> {
        self.wait_for_quiet()?;
        let Pace { fps, duration, .. } = self.pace;
        let frames = (duration.as_secs_f64() * f64::from(fps)).round().max(1.0) as u32;
        let (before, drops_before) = (self.arrived(), self.kernel_drops());
        self.number = 0;
        self.tally = Tally { unknown: self.tally.unknown, ..Tally::default() };
        let start = self.begin();
        let end = start + Duration::from_secs(1) / fps * frames;
        let mut outcome = Outcome::default();
        while self.clock.elapsed() < end || self.publishers.iter().any(|sending| sending.frames < frames) {
            outcome.late_max = outcome.late_max.max(self.send_due(frames)?);
            self.sweep()?;
        }
        self.wait_for_quiet()?;
        let (packets, repeats) = self.arrived();
        outcome.overrun = self.last_media.saturating_sub(end);
        outcome.elapsed = end + outcome.overrun - start;
        outcome.sent = self.publishers.iter().map(|sending| sending.packets).sum();
        // Each member should get all the others: a stream that no answer told is lost altogether.
        outcome.expected = outcome.sent * (self.len() as u64).saturating_sub(1);
        (outcome.delivered, outcome.repeats) = (packets - before.0, repeats - before.1);
        outcome.generator_drops = self.kernel_drops() - drops_before;
        let tally = &mut self.tally;
        (outcome.trains, outcome.authenticated, outcome.refused) = (tally.trains, tally.authenticated, tally.refused);
        outcome.checksum = tally.checksum;
        outcome.latency_samples = tally.latencies.len();
        outcome.latency_us = tally.latencies.percentiles_us([0.5, 0.99, 0.999]);
        Ok(outcome)
    }

    /// Frames are due from now on, one publisher after the other within a frame's time.
    fn begin(&mut self) -> Duration {
        let Pace { bitrate, packet_len, fps, .. } = self.pace;
        let (now, count) = (self.clock.elapsed(), self.publishers.len() as u32);
        for (n, sending) in self.publishers.iter_mut().enumerate() {
            sending.sizer = FrameSizer::new(bitrate, packet_len, fps);
            sending.due = now + Duration::from_secs(1) / fps / count * n as u32;
            (sending.frames, sending.packets) = (0, 0);
        }
        now
    }

    /// Sends the frames that are due, up to `frames` of each publisher. How late the latest was.
    fn send_due(&mut self, frames: u32) -> Result<Duration, String> {
        let Crowd { batches, publishers, pace, clock, filler, number, .. } = self;
        let mut late_max = Duration::ZERO;
        for sending in publishers.iter_mut().filter(|sending| sending.frames < frames) {
            let now = clock.elapsed();
            if now < sending.due {
                continue;
            }
            late_max = late_max.max(now - sending.due);
            sending.due += Duration::from_secs(1) / pace.fps;
            let Batch { groups, clients } = &mut batches[sending.batch];
            let client = &mut clients[sending.at];
            let publisher = client.publisher.as_mut().expect("the list holds the places of publishers");
            let packets = sending.sizer.next_frame();
            let frame = Frame { packets, fps: pace.fps, filler, number, clock: *clock };
            publisher.send_frame(groups, (sending.at, client.server), frame)?;
            sending.frames += 1;
            sending.packets += packets as u64;
        }
        Ok(late_max)
    }

    fn wait_for_quiet(&mut self) -> Result<(), String> {
        let start = self.clock.elapsed();
        while self.clock.elapsed() < self.last_media.max(start) + QUIET {
            self.sweep()?;
        }
        Ok(())
    }

    /// Takes what arrived and sends the checks that are due.
    fn sweep(&mut self) -> Result<(), String> {
        self.send_checks()?;
        let Crowd { batches, clock, tally, .. } = self;
        let mut media = false;
        for Batch { groups, clients } in batches {
            let swept = groups.sweep(|at, received| media |= clients[at].take(received, *clock, tally));
            swept.map_err(|e| format!("load generator: receive: {e}"))?;
        }
        if media {
            self.last_media = self.clock.elapsed();
        }
        Ok(())
    }

    /// A batch at a time, each in its turn: consent must be renewed well before it expires.
    fn send_checks(&mut self) -> Result<(), String> {
        let now = self.clock.elapsed();
        if now < self.next_check || self.batches.is_empty() {
            return Ok(());
        }
        self.next_check = now + CHECK_INTERVAL / self.batches.len() as u32;
        self.next_checked = (self.next_checked + 1) % self.batches.len();
        let Batch { groups, clients } = &mut self.batches[self.next_checked];
        for (at, client) in clients.iter_mut().enumerate() {
            let checks = &mut client.checks;
            groups.send(at, client.server, |out| checks.write_check(out.first_chunk_mut().expect("a slot has room for a check")));
            groups.flush(at).map_err(|e| format!("load generator: check: {e}"))?;
        }
        Ok(())
    }

    /// Packets and repeats so far.
    fn arrived(&self) -> (u64, u64) {
        let streams = self.clients().flat_map(|client| &client.streams);
        streams.fold((0, 0), |sum, Stream { arrival, .. }| (sum.0 + arrival.packets, sum.1 + arrival.repeats))
    }

    fn kernel_drops(&self) -> u64 {
        self.batches.iter().map(|batch| batch.groups.kernel_drops()).sum()
    }
}
