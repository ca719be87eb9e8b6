//! What a node tells others of a room, and what it knows of them: the rules of `pop/src/bus/replica.rs`, without its encoding and its
//! bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use pop_schemas::{ParticipantId, Time};
use pop_session::presence::{LocalRecord, Record, RemoteKey, Version};

use crate::dice::mix;

const BEAT_INTERVAL: Duration = Duration::from_millis(100);
const SILENCE_MAX: Duration = Duration::from_millis(450);
const DIGEST_INTERVAL: Duration = Duration::from_millis(1_500);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What nodes send each other; `start` is the incarnation of who sends.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Beat { start: u64 },
    Record { start: u64, record: LocalRecord },
    Digest { start: u64, sum: Sum },
    Ask { number: u32 },
    Page { start: u64, number: u32, records: Vec<LocalRecord> },
}

/// How many participants, and a hash over their ids and versions in which the order does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    count: u64,
    hash: u64,
}

impl Sum {
    fn add(&mut self, id: ParticipantId, version: Version) {
        self.count += 1;
        self.hash ^= mix(id.0 ^ mix(u64::from(version.epoch) << 32 | u64::from(version.counter)));
    }
}

/// What its session has to hear.
#[derive(Debug)]
pub(crate) enum News {
    Record(Record),
    Up(u64),
    Gone(u64),
    Restarted(u64),
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    /// The last pull that has confirmed it.
    pull: u32,
}

#[derive(Debug)]
struct Peer {
    start: u64,
    heard: Time,
    known: BTreeMap<ParticipantId, Known>,
    /// The pull that runs, and when it was asked for.
    pull: Option<(u32, Time)>,
}

#[derive(Debug)]
pub(crate) struct Replica {
    node: u64,
    start: u64,
    /// Ours, tombstones included.
    own: BTreeMap<ParticipantId, LocalRecord>,
    peers: BTreeMap<u64, Peer>,
    /// The highest start that was heard of each node.
    fences: BTreeMap<u64, u64>,
    beat_at: Time,
    digest_at: Time,
    pulls: u32,
    pub(crate) repairs: u64,
}

impl Replica {
    pub(crate) fn new(now: Time, node: u64, start: u64) -> Replica {
        let (own, peers, fences) = Default::default();
        Replica { node, start, own, peers, fences, beat_at: now, digest_at: now + DIGEST_INTERVAL, pulls: 0, repairs: 0 }
    }

    /// One of ours has changed: what all others are told.
    pub(crate) fn put(&mut self, record: LocalRecord) -> Message {
        let before = self.own.insert(record.participant, record.clone());
        assert!(before.is_none_or(|before| before.version < record.version), "a version is used twice: {record:?}");
        Message::Record { start: self.start, record }
    }

    /// One of ours has another owner.
    pub(crate) fn withdraw(&mut self, participant: ParticipantId) {
        self.own.remove(&participant);
    }

    /// What came from `from`: what the session must hear, and what goes back.
    pub(crate) fn handle(&mut self, now: Time, from: u64, message: Message, news: &mut Vec<News>) -> Option<Message> {
        match message {
            Message::Beat { start } => return self.meet(now, from, start, news),
            Message::Record { start, record } => {
                let peer = self.peers.get_mut(&from).filter(|peer| peer.start == start)?;
                let pull = peer.pull.map_or(0, |(number, _)| number);
                peer.take(from, record, pull, news);
            }
            Message::Digest { start, sum } => {
                let peer = self.peers.get_mut(&from).filter(|peer| peer.start == start)?;
                if peer.sum() != sum && peer.pull.is_none() {
                    self.repairs += 1;
                    return self.ask(now, from);
                }
            }
            Message::Ask { number } => {
                return Some(Message::Page { start: self.start, number, records: self.own.values().cloned().collect() });
            }
            Message::Page { start, number, records } => {
                let peer = self.peers.get_mut(&from).filter(|peer| peer.start == start)?;
                peer.pull.take_if(|(asked, _)| *asked == number)?;
                for record in records {
                    peer.take(from, record, number, news);
                }
                peer.end_unconfirmed(from, number, news);
            }
        }
        None
    }

    /// What time brings: what goes to all others, and to one of them.
    pub(crate) fn tick(&mut self, now: Time, news: &mut Vec<News>) -> (Vec<Message>, Vec<(u64, Message)>) {
        let silent = self.peers.iter().filter(|(_, peer)| now.since(peer.heard) > SILENCE_MAX).map(|(node, _)| *node);
        for node in silent.collect::<Vec<_>>() {
            self.peers.remove(&node);
            news.push(News::Gone(node));
        }
        let mut all = Vec::new();
        if self.beat_at <= now {
            self.beat_at = now + BEAT_INTERVAL;
            all.push(Message::Beat { start: self.start });
        }
        if self.digest_at <= now {
            self.digest_at = now + DIGEST_INTERVAL;
            let mut sum = Sum::default();
            for record in self.own.values().filter(|record| record.manifest.is_some()) {
                sum.add(record.participant, record.version);
            }
            all.push(Message::Digest { start: self.start, sum });
        }
        let late = self.peers.iter().filter(|(_, peer)| peer.pull.is_some_and(|(_, at)| now.since(at) >= ASK_AGAIN)).map(|(node, _)| *node);
        let asks = late.collect::<Vec<_>>().into_iter().filter_map(|node| Some((node, self.ask(now, node)?))).collect();
        (all, asks)
    }

    /// The present start of another node.
    pub(crate) fn start_of(&self, node: u64) -> u64 {
        self.fences.get(&node).copied().unwrap_or(0)
    }

    fn meet(&mut self, now: Time, from: u64, start: u64, news: &mut Vec<News>) -> Option<Message> {
        assert_ne!(from, self.node);
        let fence = self.fences.entry(from).or_default();
        if start < *fence {
            return None;
        }
        let is_restarted = *fence != 0 && start > *fence;
        *fence = start;
        if let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.start == start) {
            peer.heard = now;
            return None;
        }
        if is_restarted {
            news.push(News::Restarted(from));
        }
        self.peers.insert(from, Peer { start, heard: now, known: BTreeMap::new(), pull: None });
        news.push(News::Up(from));
        self.ask(now, from)
    }

    fn ask(&mut self, now: Time, node: u64) -> Option<Message> {
        self.pulls += 1;
        self.peers.get_mut(&node)?.pull = Some((self.pulls, now));
        Some(Message::Ask { number: self.pulls })
    }
}

impl Peer {
    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for (id, known) in &self.known {
            sum.add(*id, known.version);
        }
        sum
    }

    fn take(&mut self, node: u64, record: LocalRecord, pull: u32, news: &mut Vec<News>) {
        let LocalRecord { participant, version, manifest } = record;
        match self.known.get_mut(&participant) {
            Some(known) if known.version == version => return known.pull = pull,
            Some(known) if known.version > version => return,
            _ => {}
        }
        if manifest.is_some() {
            self.known.insert(participant, Known { version, pull });
        } else {
            self.known.remove(&participant);
        }
        news.push(News::Record(Record { key: RemoteKey { node, participant }, version, manifest }));
    }

    /// What was known before a pull and is not in it has gone.
    fn end_unconfirmed(&mut self, node: u64, pull: u32, news: &mut Vec<News>) {
        let gone: Vec<_> = self.known.iter().filter(|(_, known)| known.pull != pull).map(|(id, known)| (*id, known.version)).collect();
        for (participant, version) in gone {
            let version = Version { counter: version.counter + 1, ..version };
            self.take(node, LocalRecord { participant, version, manifest: None }, pull, news);
        }
    }
}
