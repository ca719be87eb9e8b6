//! All clients of a load, joined: publishers, each in a room of its own, then subscribers in turn over the rooms.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use pop_proto::control::SrtpProfile;
use pop_proto::srtp::{SrtpReceiver, SrtpSender};

use super::join::Joined;
use super::load::{Client, Load, Publisher, Role, Subscriber};
use super::timeline::Pace;
use crate::groups::{Groups, SOCKET_QUEUE_LEN, bind_clients};
use crate::random::random_bytes;

/// Clients that join at the same time: a handshake costs the node about a millisecond of CPU, and nothing here is a storm.
pub(crate) const JOINS_AT_ONCE: usize = 20;

/// Of the subscribers of each side and SRTP profile one in this many authenticates every packet.
const AUTHENTICATE_EVERY: usize = 10;

/// Who joins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// Which of the sides it is of.
    pub(crate) side: usize,
    /// The publisher that it is or watches, and so its room.
    pub(crate) publisher: usize,
    /// Its place among the subscribers of its side; `None`: it publishes.
    pub(crate) subscriber: Option<usize>,
    /// Of what it would publish.
    pub(crate) ssrc: u32,
}

impl Seat {
    /// The SSRC of a publisher.
    pub(crate) fn published(&self) -> Option<u32> {
        self.subscriber.is_none().then_some(self.ssrc)
    }
}

/// How many join, where, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seats {
    /// How often all are there: sides that are measured in turn.
    pub(crate) sides: usize,
    /// Publishers of a side, at least one.
    pub(crate) publishers: usize,
    /// Subscribers of a side; they spread evenly over its publishers.
    pub(crate) subscribers: usize,
    /// Address of the clients.
    pub(crate) address: IpAddr,
    /// How the publishers send.
    pub(crate) pace: Pace,
    /// Only the latency of subscribers with this profile counts.
    pub(crate) timed: Option<SrtpProfile>,
}

/// A client that has joined.
pub(crate) struct Member {
    /// Who it is.
    pub(crate) seat: Seat,
    /// Its own address.
    pub(crate) address: SocketAddr,
    /// The server's media address.
    pub(crate) server: SocketAddr,
    /// USERNAME of its checks.
    pub(crate) username: String,
    /// Where DELETE ends its stay.
    pub(crate) resource: String,
    /// What DTLS agreed on.
    pub(crate) profile: &'static str,
}

impl Seats {
    /// Clients in all.
    pub(crate) fn len(&self) -> usize {
        self.sides * (self.publishers + self.subscribers)
    }

    /// Lets all join by `enter`, [`JOINS_AT_ONCE`] at the same time. The error is a sentence.
    pub(crate) fn fill<F>(&self, enter: impl Fn(Seat, UdpSocket) -> F) -> Result<(Load, Vec<Member>), String>
    where
        F: Future<Output = Result<Joined, String>> + Send + 'static,
    {
        if self.publishers == 0 || self.subscribers < self.publishers {
            return Err("--publishers must be at least 1, and --subscribers at least as many".to_owned());
        }
        let seat = |side: usize, publisher: usize, subscriber| {
            let publisher = side * self.publishers + publisher;
            Seat { side, publisher, subscriber, ssrc: u32::from_be_bytes(random_bytes()) }
        };
        let publishers = (0..self.sides).flat_map(|side| (0..self.publishers).map(move |publisher| seat(side, publisher, None)));
        let subscribers = (0..self.sides).flat_map(|side| (0..self.subscribers).map(move |n| seat(side, n % self.publishers, Some(n))));
        let seats: Vec<Seat> = publishers.chain(subscribers).collect();
        let sockets = bind_clients(self.address, seats.len(), SOCKET_QUEUE_LEN)
            .map_err(|e| format!("client sockets: {e}: raise the limit of open files (ulimit -n)"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))?;
        let pairs: Vec<(Seat, &UdpSocket)> = seats.into_iter().zip(&sockets).collect();
        let (mut clients, mut members, mut subscribed) = (Vec::new(), Vec::new(), HashMap::new());
        // The publishers alone first, so that every viewer finds its track.
        let (first, then) = pairs.split_at(self.sides * self.publishers);
        for batch in first.chunks(JOINS_AT_ONCE).chain(then.chunks(JOINS_AT_ONCE)) {
            let joins = batch.iter().map(|(seat, socket)| Ok(enter(*seat, socket.try_clone()?)));
            let joins: Vec<F> = joins.collect::<std::io::Result<_>>().map_err(|e| format!("client socket: {e}"))?;
            for (joined, (seat, socket)) in runtime.block_on(all_of(joins))?.into_iter().zip(batch) {
                members.push(Member {
                    seat: *seat,
                    address: socket.local_addr().map_err(|e| format!("client socket: {e}"))?,
                    server: joined.server,
                    username: joined.checks.username().to_owned(),
                    resource: joined.resource.clone(),
                    profile: joined.keys.profile.name(),
                });
                let before = subscribed.entry((seat.side, joined.keys.profile.name())).or_insert(0usize);
                let authenticates = before.is_multiple_of(AUTHENTICATE_EVERY);
                *before += usize::from(seat.subscriber.is_some());
                clients.push(self.client(seat, joined, authenticates));
            }
        }
        let authenticating: usize = subscribed.values().map(|count| count.div_ceil(AUTHENTICATE_EVERY)).sum();
        let Pace { bitrate, packet_len, fps, duration, .. } = self.pace;
        let per_subscriber = bitrate as f64 / 8.0 / packet_len as f64 * duration.as_secs_f64();
        let samples = (per_subscriber as usize + 2 * fps as usize) * authenticating;
        let groups = Groups::new(sockets).map_err(|e| format!("load generator: {e}"))?;
        // The runtime's threads would share the generator's core; what is left to do there is nothing.
        runtime.shutdown_background();
        Ok((Load::new(groups, clients, packet_len, samples), members))
    }

    fn client(&self, seat: &Seat, joined: Joined, authenticates: bool) -> Client {
        let Joined { server, checks, keys, .. } = joined;
        let receiver = || SrtpReceiver::new(keys.profile, &keys.remote);
        let role = match seat.published() {
            Some(ssrc) => {
                let (sender, sequence) = (SrtpSender::new(keys.profile, &keys.local), u16::from_be_bytes(random_bytes()));
                Role::Publisher(Box::new(Publisher::new(sender, receiver(), ssrc, sequence, &self.pace)))
            }
            None => {
                let is_timed = self.timed.is_none_or(|profile| profile == keys.profile);
                Role::Subscriber(Box::new(Subscriber::new(seat.publisher, authenticates.then(receiver), is_timed)))
            }
        };
        Client { server, checks, role }
    }
}

async fn all_of<F>(joins: Vec<F>) -> Result<Vec<Joined>, String>
where
    F: Future<Output = Result<Joined, String>> + Send + 'static,
{
    let tasks: Vec<_> = joins.into_iter().map(tokio::spawn).collect();
    let mut joined = Vec::new();
    for task in tasks {
        joined.push(task.await.map_err(|e| format!("a client's join panicked: {e}"))??);
    }
    Ok(joined)
}
