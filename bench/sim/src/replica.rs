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
const SECOND_PULL: Duration = Duration::from_millis(400);

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
    Record(Box<Record>),
    Up(u64),
    Gone(u64),
    Restarted(u64),
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    /// The last pull that has confirmed it.
    pull: u32,
    /// Its node was gone: the session is told once more.
    again: bool,
}

/// What is being asked for.
#[derive(Clone, Copy, Debug)]
struct Pull {
    number: u32,
    /// When it was asked for, or is.
    at: Time,
    is_asked: bool,
    /// What this one does not name has gone.
    is_second: bool,
}

#[derive(Debug)]
struct Peer {
    start: u64,
    heard: Time,
    known: BTreeMap<ParticipantId, Known>,
    pull: Option<Pull>,
    /// It is silent: what it had may come again.
    is_gone: bool,
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
                let peer = self.peer(from, start)?;
                let pull = peer.pull.map_or(0, |pull| pull.number);
                peer.take(from, record, pull, news);
            }
            Message::Digest { start, sum } => {
                let peer = self.peer(from, start)?;
                if peer.sum() != sum && peer.pull.is_none() {
                    self.repairs += 1;
                    return self.ask(now, from, false);
                }
            }
            Message::Ask { number } => {
                return Some(Message::Page { start: self.start, number, records: self.own.values().cloned().collect() });
            }
            Message::Page { start, number, records } => {
                let (second, peer) = (self.pulls + 1, self.peer(from, start)?);
                let pull = peer.pull.take_if(|pull| pull.number == number && pull.is_asked)?;
                for record in records {
                    peer.take(from, record, number, news);
                }
                if peer.end_unconfirmed(from, pull, news) {
                    peer.pull = Some(Pull { number: second, at: now + SECOND_PULL, is_asked: false, is_second: true });
                    self.pulls = second;
                }
            }
        }
        None
    }

    /// What time brings: what goes to all others, and to one of them.
    pub(crate) fn tick(&mut self, now: Time, news: &mut Vec<News>) -> (Vec<Message>, Vec<(u64, Message)>) {
        for (node, peer) in self.peers.iter_mut().filter(|(_, peer)| !peer.is_gone && now.since(peer.heard) > SILENCE_MAX) {
            (peer.is_gone, peer.pull) = (true, None);
            peer.known.values_mut().for_each(|known| known.again = true);
            news.push(News::Gone(*node));
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
        let is_due = |pull: &Pull| if pull.is_asked { now.since(pull.at) >= ASK_AGAIN } else { pull.at <= now };
        let due = self.peers.iter().filter_map(|(node, peer)| Some((*node, peer.pull.filter(is_due)?.is_second)));
        let asks =
            due.collect::<Vec<_>>().into_iter().filter_map(|(node, is_second)| Some((node, self.ask(now, node, is_second)?))).collect();
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
            if !std::mem::take(&mut peer.is_gone) {
                return None;
            }
        } else {
            if is_restarted {
                news.push(News::Restarted(from));
            }
            self.peers.insert(from, Peer { start, heard: now, known: BTreeMap::new(), pull: None, is_gone: false });
        }
        news.push(News::Up(from));
        self.ask(now, from, false)
    }

    fn ask(&mut self, now: Time, node: u64, is_second: bool) -> Option<Message> {
        self.pulls += 1;
        self.peers.get_mut(&node)?.pull = Some(Pull { number: self.pulls, at: now, is_asked: true, is_second });
        Some(Message::Ask { number: self.pulls })
    }

    /// One that is heard in that start.
    fn peer(&mut self, node: u64, start: u64) -> Option<&mut Peer> {
        self.peers.get_mut(&node).filter(|peer| peer.start == start && !peer.is_gone)
    }
}

impl Peer {
    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for (id, known) in self.known.iter().filter(|(_, known)| !known.again) {
            sum.add(*id, known.version);
        }
        sum
    }

    fn take(&mut self, node: u64, record: LocalRecord, pull: u32, news: &mut Vec<News>) {
        let LocalRecord { participant, version, manifest } = record;
        match self.known.get_mut(&participant) {
            Some(known) if known.version > version || known.version == version && !known.again => return known.pull = pull,
            _ => {}
        }
        if manifest.is_some() {
            self.known.insert(participant, Known { version, pull, again: false });
        } else {
            self.known.remove(&participant);
        }
        news.push(News::Record(Box::new(Record { key: RemoteKey { node, participant }, version, manifest })));
    }

    /// What was known before a pull and is not in it has gone. Of what was known before the node was gone a second pull decides: whoever
    /// has it now is heard by then. Whether one is needed.
    fn end_unconfirmed(&mut self, node: u64, pull: Pull, news: &mut Vec<News>) -> bool {
        let unconfirmed = self.known.iter().filter(|(_, known)| known.pull != pull.number);
        let (waits, gone): (Vec<_>, Vec<_>) =
            unconfirmed.map(|(id, known)| (*id, *known)).partition(|(_, known)| known.again && !pull.is_second);
        for (participant, Known { version, .. }) in gone {
            let version = Version { counter: version.counter + 1, ..version };
            self.take(node, LocalRecord { participant, version, manifest: None }, pull.number, news);
        }
        !waits.is_empty()
    }
}
