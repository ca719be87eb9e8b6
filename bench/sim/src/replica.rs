//! The bus machine of the product, in the names and the time of the simulation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pop::bus::{BusEvent, Gone, Machine, NodeRecord, Wire};
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId, Time};
use pop_session::presence::{LocalRecord, Record, RemoteKey, Version};

const BEAT_INTERVAL: Duration = Duration::from_millis(100);

/// A question, or its answer, is lost when it has none after this: where connections carry them, their ends would say so.
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// How often the machine wants to be called; [`Replica::tick`] is called half as often.
const TICK: Duration = Duration::from_millis(25);

/// What nodes send each other.
pub(crate) type Message = Wire;

/// What its session has to hear.
#[derive(Debug)]
pub(crate) enum News {
    Record(Box<Record>),
    Up(u64),
    Gone(u64),
    Restarted(u64),
}

#[derive(Debug)]
pub(crate) struct Replica {
    machine: Machine,
    room: SessionId,
    /// When time was zero.
    zero: Instant,
    /// What nodes are called here.
    names: BTreeMap<NodeId, u64>,
    /// Of whom the session knows that it is there.
    up: BTreeMap<u64, u64>,
    /// The last version of each of ours.
    versions: BTreeMap<ParticipantId, Version>,
    beat_at: Time,
}

/// The id of a node of the simulation on the bus.
fn id_of(node: u64) -> NodeId {
    NodeId::of("sim", &name_of(node))
}

fn name_of(node: u64) -> String {
    format!("node-{node}")
}

impl Replica {
    pub(crate) fn new(now: Time, node: u64, start: u64) -> Replica {
        let record = NodeRecord {
            name: name_of(node).into(),
            pop: "sim".into(),
            node: id_of(node),
            incarnation: Incarnation { start, nonce: 1 },
            mesh: None,
            release: "sim".into(),
            load: 0,
            capacity: 1,
            draining: false,
            vips: Vec::new(),
        };
        let room = SessionId::new("sim").expect("a name");
        let mut machine = Machine::new(record, ANSWER_MAX);
        machine.watch(&room);
        let (names, up, versions) = Default::default();
        Replica { machine, room, zero: Instant::now(), names, up, versions, beat_at: now }
    }

    fn at(&self, now: Time) -> Instant {
        self.zero + now.since(Time::ZERO)
    }

    /// One of ours has changed.
    pub(crate) fn put(&mut self, now: Time, record: &LocalRecord) {
        let before = self.versions.insert(record.participant, record.version);
        assert!(before.is_none_or(|before| before < record.version), "a version is used twice: {record:?}");
        self.machine.put_participant(self.at(now), &self.room, record).expect("it is within bounds");
    }

    /// One of ours has another owner.
    pub(crate) fn withdraw(&mut self, now: Time, participant: ParticipantId) {
        self.versions.remove(&participant);
        self.machine.withdraw(self.at(now), &self.room, participant);
    }

    /// What came from `from`: what the session must hear, and what goes back.
    pub(crate) fn handle(&mut self, now: Time, from: u64, message: Message, news: &mut Vec<News>) -> Option<Message> {
        self.names.insert(id_of(from), from);
        let answer = self.machine.handle(self.at(now), id_of(from), message);
        self.tell(news);
        answer
    }

    /// What time brings: what goes to all others.
    pub(crate) fn tick(&mut self, now: Time, news: &mut Vec<News>) -> Option<Message> {
        let at = self.at(now);
        self.machine.handle_timeout(at - TICK);
        self.machine.handle_timeout(at);
        self.tell(news);
        (self.beat_at <= now).then(|| {
            self.beat_at = now + BEAT_INTERVAL;
            self.machine.beat()
        })
    }

    /// What is to be sent, and to whom; `None`: to all.
    pub(crate) fn poll(&mut self, now: Time) -> Option<(Option<u64>, Message)> {
        let (to, message) = self.machine.poll(self.at(now))?;
        Some((to.map(|to| self.names[&to]), message))
    }

    /// The last start that was heard of another node.
    pub(crate) fn start_of(&self, node: u64) -> u64 {
        self.machine.incarnation_of(id_of(node)).map_or(0, |incarnation| incarnation.start)
    }

    /// Pulls because of a digest.
    pub(crate) fn repairs(&self) -> u64 {
        self.machine.counters().repairs()
    }

    fn tell(&mut self, news: &mut Vec<News>) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                BusEvent::Record { record, .. } => {
                    let key = RemoteKey { node: self.names[&NodeId(record.key.node)], ..record.key };
                    news.push(News::Record(Box::new(Record { key, ..record })));
                }
                BusEvent::NodeUp(record) => {
                    let node = self.names[&record.node];
                    let before = self.up.insert(node, record.incarnation.start);
                    // It began anew while it was gone.
                    if before.is_some_and(|before| before != record.incarnation.start) {
                        news.push(News::Restarted(node));
                    }
                    news.push(News::Up(node));
                }
                BusEvent::NodeGone { node, why: Gone::Restarted } => {
                    let node = self.names[&node];
                    self.up.remove(&node);
                    news.push(News::Restarted(node));
                }
                BusEvent::NodeGone { node, .. } => news.push(News::Gone(self.names[&node])),
                BusEvent::NodeChanged(_) | BusEvent::Keep(_) => {}
                BusEvent::Duplicate { theirs, .. } => panic!("nobody has the id of another: {theirs:?}"),
            }
        }
    }
}
