//! The bus without zenoh: somebody else carries its messages, in a time of his own. Between PoPs the links of their nodes do (`cluster/spans.rs`), and in
//! simulations `bench/sim`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pop_relay::control::{Presence, Telling};
use pop_schemas::{Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::presence::{LocalRecord, RemoteKey};

use super::record::{self, Page};
use super::replica::{BusEvent, PageAsk, Replica, Send};
use super::{BusCounters, NodeRecord, RecordError};

/// What a node says to another one, or to all.
#[derive(Clone, Debug)]
pub struct Wire(Said);

#[derive(Clone, Debug)]
enum Said {
    Beat(Vec<u8>),
    Node(Vec<u8>),
    Participant(SessionId, ParticipantId, Arc<[u8]>),
    Digest(SessionId, Vec<u8>),
    AskNode(Incarnation),
    AskPage(PageAsk),
    Page(PageAsk, Vec<u8>),
}

impl Wire {
    /// As links between PoPs carry it; `None` for what these know without it.
    pub(crate) fn into_presence(self) -> Option<Presence> {
        let (session, telling) = match self.0 {
            Said::Participant(session, participant, bytes) => (session, Telling::Participant(participant, bytes)),
            Said::Digest(session, bytes) => (session, Telling::Digest(bytes.into())),
            Said::AskPage(PageAsk { session, from, number, .. }) => (session, Telling::Ask(from, number)),
            Said::Page(PageAsk { session, from, number, .. }, bytes) => (session, Telling::Page(from, number, bytes.into())),
            Said::Beat(_) | Said::Node(_) | Said::AskNode(_) => return None,
        };
        Some(Presence { session, telling })
    }
}

/// A node on such a bus.
#[derive(Debug)]
pub struct Machine {
    incarnation: Incarnation,
    counters: Arc<BusCounters>,
    replica: Replica,
    asked: VecDeque<(Instant, PageAsk)>,
    give_up_after: Duration,
}

impl Machine {
    /// A node that says this of itself, and gives up questions that have no answer after so long.
    pub fn new(record: NodeRecord, give_up_after: Duration) -> Machine {
        let counters = Arc::<BusCounters>::default();
        let mut replica = Replica::new(record.node, &record.pop, record.incarnation, Arc::clone(&counters));
        let incarnation = record.incarnation;
        replica.put_node(record);
        Machine { incarnation, counters, replica, asked: VecDeque::new(), give_up_after }
    }

    /// The same, where the others are nodes of other PoPs, of which [`Self::meet`] and [`Self::part`] tell.
    pub(crate) fn abroad(self) -> Machine {
        Machine { replica: self.replica.abroad(), ..self }
    }

    /// A node is there, and says this of itself.
    pub(crate) fn meet(&mut self, now: Instant, record: NodeRecord) {
        self.replica.handle_node(now, record.node, record, 1);
    }

    /// It is not there any more.
    pub(crate) fn part(&mut self, now: Instant, node: NodeId, incarnation: Incarnation) {
        self.replica.handle_token(now, node, incarnation, false);
    }

    /// See [`Bus::unwatch`](super::Bus::unwatch).
    pub(crate) fn unwatch(&mut self, session: &SessionId) {
        self.replica.unwatch(session);
    }

    /// See [`Bus::tell_again`](super::Bus::tell_again).
    pub(crate) fn tell_again(&mut self, node: NodeId) {
        self.replica.tell_again(node);
    }

    /// Asks a node once more for all that it has of a session, from the beginning.
    pub(crate) fn ask(&mut self, session: &SessionId, node: NodeId) {
        self.replica.pull_anew(session, node);
    }

    /// Somebody hears a session's digests from now on.
    pub(crate) fn begin_digests(&mut self, session: &SessionId) {
        self.replica.begin_digests(session);
    }

    /// Nobody does.
    pub(crate) fn end_digests(&mut self, session: &SessionId) {
        self.replica.end_digests(session);
    }

    /// What came of a participant last counts for nothing.
    pub(crate) fn forget_record(&mut self, session: &SessionId, key: RemoteKey) {
        self.replica.forget_record(session, key);
    }

    /// What a node of another PoP says of people in a session that is watched; what it is answered. `shares`: it may know of ours.
    pub(crate) fn handle_presence(&mut self, now: Instant, node: NodeId, presence: Presence, shares: bool) -> Option<Presence> {
        let Presence { session, telling } = presence;
        let said = match telling {
            Telling::Watch | Telling::Unwatch | Telling::Meet(_) | Telling::Part | Telling::Hosts(_) => return None,
            Telling::Participant(participant, body) => Said::Participant(session, participant, body),
            Telling::Digest(body) => Said::Digest(session, body.to_vec()),
            Telling::Page(from, number, body) => {
                let incarnation = self.replica.incarnation_of(node)?;
                Said::Page(PageAsk { session, node, incarnation, from, number }, body.to_vec())
            }
            Telling::Ask(from, number) => {
                let page = if shares { self.replica.answer(&session, from) } else { self.empty_page() };
                return Some(Presence { session, telling: Telling::Page(from, number, page.into()) });
            }
        };
        self.handle(now, node, Wire(said)).and_then(Wire::into_presence)
    }

    /// What was to be asked of a node is not, as if it had nobody in the session.
    pub(crate) fn answer_with_nobody(&mut self, now: Instant, node: NodeId, session: SessionId, from: ParticipantId, number: u32) {
        let Some(incarnation) = self.replica.incarnation_of(node) else { return };
        let page = Page { incarnation, records: Vec::new(), next: None, len: 0 };
        self.replica.handle_page(now, &PageAsk { session, node, incarnation, from, number }, Some(page));
    }

    fn empty_page(&self) -> Vec<u8> {
        record::encode_page(self.incarnation, std::iter::empty())
    }

    /// See [`Bus::watch`](super::Bus::watch).
    pub fn watch(&mut self, session: &SessionId) {
        self.replica.watch(session);
    }

    /// See [`Bus::put_participant`](super::Bus::put_participant).
    ///
    /// # Errors
    ///
    /// Others would not accept it.
    pub fn put_participant(&mut self, now: Instant, session: &SessionId, record: &LocalRecord) -> Result<(), RecordError> {
        self.replica.put_participant(now, session, record)
    }

    /// See [`Bus::withdraw`](super::Bus::withdraw).
    pub fn withdraw(&mut self, now: Instant, session: &SessionId, participant: ParticipantId) {
        self.replica.withdraw_participant(now, session, participant);
    }

    /// The sign of life, for all.
    pub fn beat(&self) -> Wire {
        Wire(Said::Beat(self.replica.beat()))
    }

    /// To be called every 25 ms.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.asked.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.give_up_after) {
            if let Some((_, ask)) = self.asked.pop_front() {
                self.replica.handle_page(now, &ask, None);
            }
        }
        self.replica.handle_timeout(now);
    }

    /// What to send next, and to whom; `None`: to all.
    pub fn poll(&mut self, now: Instant) -> Option<(Option<NodeId>, Wire)> {
        loop {
            let (to, said) = match self.replica.poll_send(now)? {
                // Everything is heard here.
                Send::Watch(..) => continue,
                Send::Node(bytes) => (None, Said::Node(bytes)),
                Send::Participant(session, participant, bytes) => (None, Said::Participant(session, participant, bytes)),
                Send::Digest(session, bytes) => (None, Said::Digest(session, bytes)),
                Send::AskNode(node, incarnation) => (Some(node), Said::AskNode(incarnation)),
                Send::AskPage(ask) => {
                    self.asked.push_back((now, ask.clone()));
                    (Some(ask.node), Said::AskPage(ask))
                }
            };
            return Some((to, Wire(said)));
        }
    }

    /// What came from `node`; what it is answered.
    pub fn handle(&mut self, now: Instant, node: NodeId, Wire(said): Wire) -> Option<Wire> {
        let replica = &mut self.replica;
        let result = match said {
            Said::Beat(bytes) => record::decode_beat(&bytes).map(|beat| replica.handle_beat(now, node, beat)),
            Said::Node(bytes) => record::decode_node(&bytes).map(|(record, counter)| replica.handle_node(now, node, record, counter)),
            Said::Participant(session, participant, bytes) => record::decode_participant(&bytes)
                .map(|written| replica.handle_participant(&session, RemoteKey { node: node.0, participant }, written)),
            Said::Digest(session, bytes) => record::decode_digest(&bytes).map(|digest| replica.handle_digest(&session, node, digest)),
            Said::AskNode(incarnation) if incarnation == self.incarnation => {
                return replica.answer_node().map(|bytes| Wire(Said::Node(bytes)));
            }
            Said::AskPage(ask) if ask.incarnation == self.incarnation => {
                let page = replica.answer(&ask.session, ask.from);
                return Some(Wire(Said::Page(ask, page)));
            }
            Said::AskNode(_) | Said::AskPage(_) => Ok(()),
            Said::Page(ask, bytes) => record::decode_page(&bytes).map(|page| replica.handle_page(now, &ask, Some(page))),
        };
        if let Err(error) = result {
            self.counters.ignore(error);
        }
        None
    }

    /// What others did.
    pub fn poll_event(&mut self) -> Option<BusEvent> {
        self.replica.poll_event()
    }

    /// In which start a node was heard last.
    pub fn incarnation_of(&self, node: NodeId) -> Option<Incarnation> {
        self.replica.incarnation_of(node)
    }

    /// What was counted.
    pub fn counters(&self) -> &BusCounters {
        &self.counters
    }
}
