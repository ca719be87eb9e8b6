//! STUN, STAMP and ICE checks: sent on the beat, matched by what nobody else can know, timed by the kernel's receive timestamps.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use pop_dataplane::Clock;
use pop_dataplane::reflect::own_error;
use pop_proto::wire::stamp::{self, NtpTime, Reply};
use pop_proto::wire::stun::{self, BindingRequest, Kind, Message, Role, TransactionId};
use pop_uring::{AsyncStampedSocket, StampedReceipt, StampedSocket};
use tokio::sync::watch;

use super::statistics::Statistics;
use super::target::{Target, UdpPlace};
use super::{Method, Plan, Sample, Split, StampSample, due, show_loss, show_sample};
use crate::probe::IceDescription;

/// Kernel queue of the probe's socket.
const SOCKET_BUFFER_LEN: usize = 256 << 10;

/// A probe that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Pending {
    sequence: u32,
    at: Instant,
    /// The wall clock at the same moment.
    wall: Duration,
}

/// Probes under way by what their answer must repeat: transaction, or session, sequence and timestamp. Nobody off the path can guess it.
type Pendings = HashMap<[u8; 14], Pending>;

pub(super) async fn run(target: &Target, place: &UdpPlace, plan: Plan, stop: watch::Receiver<bool>, statistics: &mut Statistics) {
    let local: SocketAddr = match place.address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = StampedSocket::bind(local, SOCKET_BUFFER_LEN).and_then(AsyncStampedSocket::new);
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("pop: no socket for {}: {error}", target.label());
            statistics.count_sent();
            return;
        }
    };
    let mut session = [0; 2];
    aws_lc_rs::rand::fill(&mut session).expect("the system gives random bytes");
    Running { target, place, plan, socket, session, pending: Pendings::new(), statistics }.run(stop).await;
}

struct Running<'a> {
    target: &'a Target,
    place: &'a UdpPlace,
    plan: Plan,
    socket: AsyncStampedSocket,
    /// Session identifier of STAMP.
    session: [u8; 2],
    pending: Pendings,
    statistics: &'a mut Statistics,
}

impl Running<'_> {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let started = Instant::now();
        let mut next = 0;
        // One byte more than any answer has.
        let mut buffer = [0; stamp::REQUEST_LEN_MAX + 1];
        loop {
            if *stop.borrow_and_update() {
                self.plan.count = next;
            }
            if next == self.plan.count && self.pending.is_empty() {
                return;
            }
            let expiry = self.pending.values().map(|pending| pending.at + self.plan.timeout).min();
            let send = (next < self.plan.count).then(|| due(started, self.plan, next));
            let wake = expiry.into_iter().chain(send).min().expect("something is under way or to be sent");
            tokio::select! {
                received = self.socket.receive(&mut buffer) => {
                    // An error is ICMP's (nobody listens): the probe is lost when its time is up.
                    if let Ok(receipt) = received {
                        self.take(&receipt, &buffer[..receipt.len]);
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    self.expire();
                    if send.is_some_and(|send| send <= Instant::now()) {
                        self.send(next);
                        next += 1;
                    }
                }
                _ = stop.changed() => {}
            }
        }
    }

    fn send(&mut self, sequence: u32) {
        let mut buffer = [0; stun::MESSAGE_LEN_MAX];
        let mut transaction = [0; 12];
        aws_lc_rs::rand::fill(&mut transaction).expect("the system gives random bytes");
        self.statistics.count_sent();
        let (at, wall) = (Instant::now(), Clock::wall_now());
        let written = match (self.target.method, &self.place.ice) {
            (Method::Stamp, _) => Some(self.write_stamp(sequence, wall, &mut buffer)),
            (_, Some(ice)) => write_check(ice, TransactionId(transaction), &mut buffer),
            _ => {
                let head = buffer.first_chunk_mut().expect("the buffer is longer than a header");
                stun::write_plain_request(TransactionId(transaction), head);
                Some(stun::HEADER_LEN)
            }
        };
        let Some(len) = written else {
            return self.lose(sequence, "the PoP's credentials are too long for a check");
        };
        match self.socket.send(&buffer[..len], self.place.address, None) {
            Ok(()) => {
                let mut key = [0; 14];
                match self.target.method {
                    Method::Stamp => key = stamp_key(self.session, &buffer[..12]),
                    _ => key[..12].copy_from_slice(&transaction),
                }
                self.pending.insert(key, Pending { sequence, at, wall });
            }
            Err(error) => self.lose(sequence, &format!("not sent: {error}")),
        }
    }

    fn write_stamp(&self, sequence: u32, wall: Duration, buffer: &mut [u8]) -> usize {
        let packet = buffer.first_chunk_mut().expect("the buffer is longer than a packet");
        stamp::write_request(sequence, NtpTime::from_unix(wall), own_error(), u16::from_be_bytes(self.session), packet);
        stamp::PACKET_LEN
    }

    /// Takes an answer; what is from elsewhere, asked by nobody, or twice is passed over.
    fn take(&mut self, receipt: &StampedReceipt, bytes: &[u8]) {
        if receipt.from.port() != self.place.address.port() || receipt.from.ip().to_canonical() != self.place.address.ip().to_canonical() {
            return;
        }
        let matched = match self.target.method {
            Method::Stamp => self.match_reply(bytes),
            _ => self.match_binding(bytes).map(|pending| (pending, None)),
        };
        let Some((pending, reply)) = matched else { return };
        // The time in this process after the kernel had the answer is not the network's.
        let elapsed = pending.at.elapsed();
        let arrived = receipt.at.unwrap_or_else(Clock::wall_now);
        let waited = Clock::wall_now().saturating_sub(arrived).min(elapsed);
        let mut rtt = elapsed - waited;
        let stamp = reply.map(|reply| {
            let inside = u64::try_from(reply.turnaround_nanos()).map_or(Duration::ZERO, Duration::from_nanos);
            // A reflector that claims more than there was has a clock that jumped: its claim does not count.
            rtt = rtt.checked_sub(inside).unwrap_or(rtt);
            self.split(&pending, &reply, arrived)
        });
        let sample = Sample { sequence: pending.sequence, rtt, stamp };
        self.statistics.add(sample);
        if self.plan.show {
            show_sample(self.target, &sample);
        }
    }

    fn match_binding(&mut self, bytes: &[u8]) -> Option<Pending> {
        let message = Message::parse(bytes).ok().filter(|message| message.kind() == Kind::BindingSuccess)?;
        let mut key = [0; 14];
        key[..12].copy_from_slice(&message.transaction().0);
        let authentic = self.place.ice.as_ref().is_none_or(|ice| message.is_authentic(ice.pwd.as_bytes()));
        if authentic { self.pending.remove(&key) } else { None }
    }

    fn match_reply(&mut self, bytes: &[u8]) -> Option<(Pending, Option<Reply>)> {
        let reply = Reply::parse(bytes).ok()?;
        // A reflector of RFC 8762 alone leaves the identifier zero; sequence and timestamp are the request's in any case.
        if reply.ssid != 0 && reply.ssid.to_be_bytes() != self.session {
            return None;
        }
        Some((self.pending.remove(&stamp_key(self.session, &bytes[24..36]))?, Some(reply)))
    }

    /// The two ways, where both clocks follow UTC: each is off by at most both errors together.
    fn split(&mut self, pending: &Pending, reply: &Reply, arrived: Duration) -> StampSample {
        let own = own_error();
        let unsplit = match (own.is_synchronized(), reply.error.is_synchronized()) {
            _ if reply.error.is_ptp() => Some("the reflector counts in another time scale (PTP)"),
            (true, true) => None,
            (false, false) => Some("neither this host's clock nor the reflector's is synchronized"),
            (false, true) => Some("this host's clock is not synchronized"),
            (true, false) => Some("the reflector's clock is not synchronized"),
        };
        let split = Split {
            forward_nanos: reply.received.nanos_since(NtpTime::from_unix(pending.wall)),
            back_nanos: NtpTime::from_unix(arrived).nanos_since(reply.transmitted),
            error: own.error().saturating_add(reply.error.error()),
        };
        if let Some(reason) = unsplit {
            self.statistics.set_unsplit(reason);
        }
        StampSample { ttl: reply.sender_ttl, split: unsplit.is_none().then_some(split) }
    }

    /// Gives up what waits too long.
    fn expire(&mut self) {
        let now = Instant::now();
        let mut lost: Vec<u32> = Vec::new();
        self.pending.retain(|_, pending| {
            let waits = now < pending.at + self.plan.timeout;
            if !waits {
                lost.push(pending.sequence);
            }
            waits
        });
        lost.sort_unstable();
        for sequence in lost {
            self.lose(sequence, "lost");
        }
    }

    fn lose(&mut self, sequence: u32, reason: &str) {
        if self.plan.show {
            show_loss(self.target, sequence, reason);
        }
    }
}

/// Session, sequence and timestamp: `head` is the first 12 bytes of a request.
fn stamp_key(session: [u8; 2], head: &[u8]) -> [u8; 14] {
    let mut key = [0; 14];
    key[..2].copy_from_slice(&session);
    key[2..].copy_from_slice(&head[..12]);
    key
}

fn write_check(ice: &IceDescription, transaction: TransactionId, out: &mut [u8]) -> Option<usize> {
    let request = BindingRequest {
        transaction,
        username: &format!("{}:probe", ice.ufrag),
        priority: Some(1),
        role: Some(Role::Controlling(1)),
        use_candidate: false,
    };
    stun::write_request(&request, ice.pwd.as_bytes(), out)
}
