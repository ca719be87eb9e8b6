//! Two associations and the network between them, in virtual time.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pop::sctp::{Limit, Message, Promise, Sctp, SctpEvent, Side};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// In thousandths.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    /// Packets that come up to 40 ms later than others.
    pub(crate) late: u64,
}

pub(crate) const RELIABLE: Promise = Promise { ordered: true, limit: Limit::None };
pub(crate) const LOSSY: Promise = Promise { ordered: false, limit: Limit::Repeats(0) };

pub(crate) struct End {
    pub(crate) sctp: Sctp,
    pub(crate) events: Vec<SctpEvent>,
    /// Read as it comes, by channel.
    pub(crate) got: BTreeMap<u16, Vec<Message>>,
    /// Channels that are read.
    pub(crate) reads: bool,
    /// What it has sent.
    pub(crate) sent: Vec<Bytes>,
}

pub(crate) struct Network {
    pub(crate) now: Instant,
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) random: Random,
    pub(crate) weather: Weather,
    flying: VecDeque<(Instant, bool, Bytes)>,
    keeps: bool,
}

impl Network {
    pub(crate) fn new(seed: u64, weather: Weather) -> Network {
        let now = Instant::now();
        let end = |side| End { sctp: Sctp::new(side, now), events: Vec::new(), got: BTreeMap::new(), reads: true, sent: Vec::new() };
        let (client, server) = (end(Side::Begins), end(Side::Accepts));
        Network { now, client, server, random: Random(seed), weather, flying: VecDeque::new(), keeps: false }
    }

    /// Established, with a reliable and a lossy channel: their numbers.
    pub(crate) fn connected(seed: u64, weather: Weather) -> (Network, u16, u16) {
        let mut network = Network::new(seed, weather);
        network.client.sctp.begin();
        network.run(Duration::from_secs(20), |network| network.client.events.contains(&SctpEvent::Connected));
        let reliable = network.client.sctp.open("_reliable", RELIABLE).expect("it is connected");
        let lossy = network.client.sctp.open("_lossy", LOSSY).expect("it is connected");
        let is_open = |end: &End| end.events.iter().filter(|e| matches!(e, SctpEvent::Acknowledged { .. })).count() == 2;
        network.run(Duration::from_secs(20), |network| is_open(&network.client));
        assert!(is_open(&network.client), "{:?}", network.client.events);
        (network, reliable, lossy)
    }

    /// Remembers what is sent from now on.
    pub(crate) fn keep(&mut self) {
        self.keeps = true;
    }

    /// Lets time pass until `done` or for so long.
    pub(crate) fn run(&mut self, patience: Duration, mut done: impl FnMut(&mut Network) -> bool) {
        let deadline = self.now + patience;
        loop {
            self.exchange();
            if done(self) || self.now >= deadline {
                return;
            }
            self.exchange();
            let timers = [self.client.sctp.poll_timeout(), self.server.sctp.poll_timeout()];
            let next = timers.into_iter().flatten().chain(self.flying.iter().map(|f| f.0)).min();
            // A turn is at least a millisecond, and at most ten: `done` may look.
            let soonest = self.now + Duration::from_millis(1);
            let latest = self.now + Duration::from_millis(10);
            self.now = next.map_or(latest, |next| next.clamp(soonest, latest)).min(deadline);
            self.client.sctp.handle_timeout(self.now);
            self.server.sctp.handle_timeout(self.now);
        }
    }

    fn exchange(&mut self) {
        self.send(true);
        self.send(false);
        let now = self.now;
        let due: Vec<_> = {
            let (due, later): (Vec<_>, Vec<_>) = self.flying.drain(..).partition(|f| f.0 <= now);
            self.flying = later.into();
            due
        };
        for (_, to_server, packet) in due {
            let end = if to_server { &mut self.server } else { &mut self.client };
            let _ = end.sctp.handle_datagram(now, &packet);
        }
        self.client.collect(now);
        self.server.collect(now);
    }

    fn send(&mut self, from_client: bool) {
        let end = if from_client { &mut self.client } else { &mut self.server };
        while let Some(packet) = end.sctp.poll_transmit(self.now) {
            assert!(packet.len() <= pop::dtls::DATA_LEN_MAX);
            if self.keeps {
                end.sent.push(packet.clone());
            }
            if self.random.below(1_000) < self.weather.lost {
                continue;
            }
            let copies = if self.random.below(1_000) < self.weather.twice { 2 } else { 1 };
            for _ in 0..copies {
                let late = self.random.below(1_000) < self.weather.late;
                let delay_ms = 5 + if late { self.random.below(40) } else { 0 };
                self.flying.push_back((self.now + Duration::from_millis(delay_ms), from_client, packet.clone()));
            }
        }
    }
}

impl End {
    fn collect(&mut self, now: Instant) {
        while let Some(event) = self.sctp.poll_event() {
            if let SctpEvent::Opened { channel, .. } = event {
                self.got.entry(channel).or_default();
            }
            self.events.push(event);
        }
        if self.reads {
            for channel in 0..64 {
                while let Some(message) = self.sctp.read(now, channel) {
                    self.got.entry(channel).or_default().push(message);
                }
            }
        }
    }
}
