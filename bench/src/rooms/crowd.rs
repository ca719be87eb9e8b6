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
use crate::fanout::arrival::{Arrival, Latencies, Trains};
use crate::fanout::ice::Checks;
use crate::fanout::load::{CHECK_INTERVAL, Outcome, Publisher, QUIET, Source};
use crate::fanout::packet::read_payload;
use crate::fanout::timeline::{Pace, Timeline};
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
    /// The batch that is read from next.
    next: usize,
    last_media: Duration,
    filler: Vec<u8>,
    number: u64,
    tally: Tally,
}

struct Batch {
    groups: Groups,
    /// Of the sockets.
    addresses: Vec<SocketAddr>,
    clients: Vec<Client>,
}

struct Sending {
    batch: usize,
    at: usize,
    /// Packets of this run.
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
    trains: Trains,
    authenticated: u64,
    refused: u64,
    /// Packets of an SSRC that no answer told.
    unknown: u64,
    /// Datagrams that came from elsewhere: the floor's.
    strange: u64,
    checksum: u64,
    latencies: Latencies,
}

impl Client {
    fn new(member: Member, authenticates: bool, pace: &Pace) -> (UdpSocket, Client) {
        let Member { socket, server, checks, keys, ssrc, sources, seat, .. } = member;
        let receiver = || SrtpReceiver::new(keys.profile, &keys.remote);
        let publisher = ssrc.map(|ssrc| {
            let sender = SrtpSender::new(keys.profile, &keys.local);
            Box::new(Publisher::new(sender, receiver(), ssrc, u16::from_be_bytes(random_bytes()), pace))
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
            tally.strange += received.bytes.len().div_ceil(received.segment) as u64;
            return false;
        }
        let mut media = 0;
        let now_ns = clock.elapsed().as_nanos() as u64;
        for datagram in received.datagrams() {
            match demux(datagram) {
                Ok(Protocol::Stun) => drop(self.checks.read_answer(datagram)),
                Ok(Protocol::Rtcp) => self.publisher.iter_mut().for_each(|publisher| publisher.take_rtcp(datagram)),
                Ok(Protocol::Rtp) => {
                    media += 1;
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
        if media > 0 {
            tally.trains.push(media);
        }
        media > 0
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
            next: 0,
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
        self.begin(u32::MAX);
        loop {
            let over = match wave.try_recv() {
                Ok(Ok(member)) => {
                    times.push(member.times);
                    let authenticates = authenticates(member.index);
                    waiting.push(Client::new(member, authenticates, &self.pace));
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
            self.send_due()?;
            self.sweep_next()?;
        }
    }

    fn add(&mut self, joined: Vec<(UdpSocket, Client)>) -> Result<(), String> {
        if joined.is_empty() {
            return Ok(());
        }
        let (sockets, mut clients): (Vec<_>, Vec<_>) = joined.into_iter().unzip();
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let groups = Groups::new(sockets).map_err(|e| format!("load generator: {e}"))?;
        let now = self.clock.elapsed();
        for (at, client) in clients.iter_mut().enumerate() {
            if let Some(publisher) = &mut client.publisher {
                publisher.begin(Timeline::new(&self.pace, now, u32::MAX));
                self.publishers.push(Sending { batch: self.batches.len(), at, packets: 0 });
            }
        }
        self.batches.push(Batch { groups, addresses, clients });
        Ok(())
    }

    /// Where their sockets are.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.batches.iter().flat_map(|batch| &batch.addresses).copied().collect()
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

    /// Sends at `pace` and waits for the last packets; every publisher sends as many packets.
    pub(crate) fn run(&mut self, pace: &Pace) -> Result<Outcome, String> {
        self.wait_for_quiet()?;
        self.pace = *pace;
        let (before, drops_before) = (self.arrived(), self.kernel_drops());
        self.number = 0;
        self.tally = Tally { unknown: self.tally.unknown, strange: self.tally.strange, ..Tally::default() };
        let start = self.begin(pace.frames());
        let end = start + pace.interval() * pace.frames();
        let mut outcome = Outcome::default();
        while self.clock.elapsed() < end || self.is_sending() {
            outcome.late_max = outcome.late_max.max(self.send_due()?);
            self.sweep_next()?;
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
        (outcome.trains, outcome.authenticated, outcome.refused) = (tally.trains.clone(), tally.authenticated, tally.refused);
        outcome.checksum = tally.checksum;
        outcome.latency_samples = tally.latencies.len();
        outcome.latency_us = tally.latencies.summarize();
        Ok(outcome)
    }

    fn is_sending(&self) -> bool {
        let mut publishers = self.clients().filter_map(|client| client.publisher.as_ref());
        publishers.any(|publisher| publisher.due().is_some())
    }

    /// `frames` frames are due from now on, one publisher after the other within a frame's time.
    fn begin(&mut self, frames: u32) -> Duration {
        let Crowd { batches, publishers, pace, clock, .. } = self;
        let (now, count) = (clock.elapsed(), publishers.len() as u32);
        for (n, sending) in publishers.iter_mut().enumerate() {
            let begin = now + pace.interval() / count * n as u32;
            let publisher = batches[sending.batch].clients[sending.at].publisher.as_mut();
            publisher.expect("the list holds the places of publishers").begin(Timeline::new(pace, begin, frames));
            sending.packets = 0;
        }
        now
    }

    /// Sends the packets that are due. How late the latest was.
    fn send_due(&mut self) -> Result<Duration, String> {
        let Crowd { batches, publishers, pace, clock, filler, number, .. } = self;
        let mut late_max = Duration::ZERO;
        for sending in publishers {
            let before = *number;
            let Batch { groups, clients, .. } = &mut batches[sending.batch];
            let Client { publisher, server, .. } = &mut clients[sending.at];
            let publisher = publisher.as_mut().expect("the list holds the places of publishers");
            let source = Source { fps: pace.fps, filler, shorter: 0, number, now: clock.elapsed() };
            late_max = late_max.max(publisher.send_due(groups, (sending.at, *server), source)?);
            sending.packets += *number - before;
        }
        Ok(late_max)
    }

    fn wait_for_quiet(&mut self) -> Result<(), String> {
        let start = self.clock.elapsed();
        while self.clock.elapsed() < self.last_media.max(start) + QUIET {
            self.sweep_next()?;
        }
        Ok(())
    }

    /// Reads what somebody else sends to the members: how many datagrams have come in all.
    pub(crate) fn drain(&mut self) -> Result<u64, String> {
        self.sweep_next()?;
        Ok(self.tally.strange)
    }

    /// Takes what arrived for the next batch of members and sends the checks that are due.
    fn sweep_next(&mut self) -> Result<(), String> {
        self.send_checks()?;
        let Crowd { batches, clock, tally, next, .. } = self;
        if batches.is_empty() {
            return Ok(());
        }
        *next = (*next + 1) % batches.len();
        let Batch { groups, clients, .. } = &mut batches[*next];
        let mut media = false;
        let swept = groups.sweep(|at, received| media |= clients[at].take(received, *clock, tally));
        swept.map_err(|e| format!("load generator: receive: {e}"))?;
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
        let Batch { groups, clients, .. } = &mut self.batches[self.next_checked];
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
