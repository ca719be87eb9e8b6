//! One node: its session, a model of its worker and of the clients that are connected to it, and its end of the bus.

use std::collections::{BTreeMap, BTreeSet};

use pop_proto::control::{Command, Event, ExtensionIds, IceCredentials, MediaKind, OpenSubscription, OpenTransport, SrtpProfile};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};
use pop_session::member::{AddTrack, Enter, LeaveReason, MemberRequest, MemberState, Notice, Permissions, Resume};
use pop_session::presence::{Applied, RemoteKey};
use pop_session::{Action, CloseReason, Join, Limits, Media, Opening, Output, Refusal, Request, RequestId, Section, Session};

use crate::client::{Client, Heard, formats};
use crate::dice::{Dice, mix};
use crate::replica::{News, Replica};

/// Wall clock at the start of time, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// How far the wall clocks of nodes are apart at most: NTP keeps them closer. The changes of one who is taken over are numbered by them.
const SKEW_MS_MAX: u64 = 50;

/// Low bits of an id; above are the node and its start, so that it is seen whose an id is.
const ID_BITS: u32 = 32;

/// A node and its start.
type Writer = (u64, u64);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) start: u64,
    pub(crate) session: Session,
    pub(crate) replica: Replica,
    pub(crate) clients: BTreeMap<ParticipantId, Client>,
    /// Who came in here, or was taken over: nobody else's record may be written.
    mine: BTreeSet<ParticipantId>,
    /// Clients that lost their socket and come back.
    pub(crate) stranded: Vec<(ParticipantId, Client)>,
    /// Who left, or was told to.
    pub(crate) ended: Vec<ParticipantId>,
    /// Somebody who comes back is told who has gone meanwhile.
    is_resuming: bool,
    /// Why the last request was refused.
    refused: Option<Refusal>,
    /// Of others' participants, who wrote of them last.
    writers: BTreeMap<ParticipantId, Writer>,
    /// Transports of members, by whom.
    transports: BTreeMap<TransportId, ()>,
    /// What the worker has open.
    pub(crate) tracks: BTreeMap<TrackId, TransportId>,
    pub(crate) sections: BTreeMap<SubscriptionId, (TransportId, Option<TrackId>)>,
    /// Sections of clients of WHEP.
    pub(crate) viewers: Vec<SubscriptionId>,
    next: u64,
    /// How far its wall clock is ahead.
    skew_ms: u64,
    /// When nodes were found to be silent or to have begun anew, for as long as they are.
    lost: BTreeMap<Writer, Time>,
    /// How often a track of another node was fed.
    pub(crate) fed_abroad: u64,
}

impl Node {
    pub(crate) fn new(now: Time, id: u64, start: u64, seed: u64) -> Node {
        let session = Session::new(SessionId::new("sim").expect("a name"), Limits::default(), mix(seed ^ id << 20 ^ start)).on_node(id);
        Node {
            id,
            start,
            session,
            replica: Replica::new(now, id, start),
            clients: BTreeMap::new(),
            mine: BTreeSet::new(),
            stranded: Vec::new(),
            ended: Vec::new(),
            is_resuming: false,
            refused: None,
            writers: BTreeMap::new(),
            transports: BTreeMap::new(),
            tracks: BTreeMap::new(),
            sections: BTreeMap::new(),
            viewers: Vec::new(),
            next: 0,
            skew_ms: mix(seed ^ id) % SKEW_MS_MAX,
            lost: BTreeMap::new(),
            fed_abroad: 0,
        }
    }

    fn draw_id(&mut self) -> u64 {
        self.next += 1;
        self.id << 48 | self.start << ID_BITS | self.next
    }

    fn wall_ms(&self, now: Time) -> u64 {
        EPOCH_MS + self.skew_ms + now.as_millis()
    }

    pub(crate) fn enter(&mut self, now: Time, name: &'static str, hidden: bool) {
        let id = ParticipantId(self.draw_id());
        let permissions = Permissions { subscribe: true, publish_data: true, update_metadata: true, hidden, ..Permissions::PUBLISHER };
        let enter = Enter {
            participant: id,
            identity: Identity::new(name).expect("a name"),
            name: name.into(),
            metadata: "".into(),
            attributes: BTreeMap::new(),
            permissions,
            auto_subscribe: true,
            adaptive_stream: false,
            joined_at_ms: self.wall_ms(now),
            client: "sim".into(),
        };
        self.clients.insert(id, Client::new(name, enter.permissions.clone(), self.id));
        self.mine.insert(id);
        self.request(now, Request::Enter(Box::new(enter)));
    }

    fn request(&mut self, now: Time, request: Request) {
        self.session.handle_request(now, RequestId(0), request);
        self.drain(now);
        assert_eq!(self.refused, None, "nothing here is refused");
    }

    /// Its client loses the way to this node; its media may go on.
    pub(crate) fn lose(&mut self, now: Time, id: ParticipantId) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.say(now, id, MemberRequest::SocketClosed);
        Some(client)
    }

    pub(crate) fn has(&self, id: ParticipantId) -> bool {
        self.session.local_records().any(|record| record.participant == id && record.manifest.is_some())
    }

    /// A client comes back to what it was. `Some`: it may not, and why.
    pub(crate) fn resume(&mut self, now: Time, id: ParticipantId, mut client: Client) -> Option<(Client, Refusal)> {
        let identity = Identity::new(client.name).expect("a name");
        let (permissions, now_ms) = (client.permissions.clone(), self.wall_ms(now));
        let resume = Resume { participant: id, identity, permissions, now_ms, client: "sim".into() };
        let (sync, is_new) = (client.sync(), self.mine.insert(id));
        // Whoever resumes where its socket seems to be there takes the place of that one.
        self.clients.insert(id, client);
        self.is_resuming = true;
        self.session.handle_request(now, RequestId(0), Request::Resume(Box::new(resume)));
        self.drain(now);
        self.is_resuming = false;
        if let Some(refusal) = self.refused.take() {
            if is_new {
                self.mine.remove(&id);
            }
            return Some((self.clients.remove(&id)?, refusal));
        }
        let known: BTreeSet<_> = self.session.participants().map(|participant| participant.id()).collect();
        if let Some(client) = self.clients.get_mut(&id) {
            let others = client.others.values().map(|info| info.participant);
            client.missed = others.filter(|other| !known.contains(other)).collect();
        }
        self.say(now, id, MemberRequest::Sync(Box::new(sync)));
        None
    }

    /// A client of WHEP.
    pub(crate) fn watch(&mut self, now: Time) {
        let id = self.draw_id();
        let ice = IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() };
        let open = OpenSubscription {
            subscription: SubscriptionId(id),
            transport: TransportId(id),
            kind: MediaKind::Video,
            ssrc: 7,
            first_sequence: 0,
            first_timestamp: 0,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        };
        let join = Join {
            participant: ParticipantId(id),
            identity: Identity::new("viewer").expect("a name"),
            hidden: false,
            joined_at_ms: self.wall_ms(now),
            resource: id.to_string().into(),
            transport: Opening::WebRtc(OpenTransport {
                transport: TransportId(id),
                ice,
                extensions: ExtensionIds::NONE,
                transport_cc: false,
                remb: false,
                reduced_size_rtcp: true,
                rtcp_ssrc: 1,
                cname: "c".into(),
            }),
            media: Media::Watch(vec![Section { open, formats: formats(self.id, MediaKind::Video), publisher: None }]),
        };
        self.viewers.push(SubscriptionId(id));
        self.mine.insert(ParticipantId(id));
        self.request(now, Request::Join(Box::new(join)));
        self.session.handle_transport_connected(now, TransportId(id), SrtpProfile::AeadAes128Gcm);
        self.drain(now);
    }

    fn say(&mut self, now: Time, id: ParticipantId, request: MemberRequest) {
        self.session.handle_member(now, id, request);
        self.drain(now);
    }

    /// Somebody here does something.
    pub(crate) fn act(&mut self, now: Time, dice: &mut Dice) {
        let Some(id) = dice.pick(&self.clients.keys().copied().collect::<Vec<_>>()) else { return };
        let own: Vec<_> = self.session.participants().find(|participant| participant.id() == id).map(|p| p.tracks()).unwrap_or_default();
        match dice.below(12) {
            0 => {
                self.ended.push(id);
                self.say(now, id, MemberRequest::Leave);
            }
            1..=4 if own.len() < 3 => {
                let kind = if dice.once_in(2) { MediaKind::Audio } else { MediaKind::Video };
                let cid = self.draw_id().to_string();
                let add = AddTrack { cid: cid.as_str().into(), kind: Some(kind), ..AddTrack::default() };
                self.say(now, id, MemberRequest::AddTrack(Box::new(add)));
                if let Some(client) = self.clients.get_mut(&id) {
                    client.add(kind, Some(&cid));
                }
                self.offer(now, id);
            }
            5 => {
                // It ends a track: its section sends no more.
                if let Some(client) = self.clients.get_mut(&id)
                    && let Some(section) = client.sections.iter_mut().find(|section| section.sends.is_some())
                {
                    section.sends = None;
                    self.offer(now, id);
                }
            }
            6 | 7 => {
                if let Some(track) = dice.pick(&own) {
                    self.say(now, id, MemberRequest::Mute { track, muted: dice.once_in(2) });
                }
            }
            8 | 9 => {
                let all: Vec<_> = self.session.participants().flat_map(|participant| participant.tracks()).collect();
                if let Some(track) = dice.pick(&all) {
                    self.say(now, id, MemberRequest::Subscribe { tracks: vec![track], subscribe: dice.once_in(2) });
                }
            }
            _ => {
                if let Some(track) = dice.pick(&self.tracks.keys().copied().collect::<Vec<_>>()) {
                    self.session.handle_event(now, Event::TrackStarted { track });
                    self.drain(now);
                }
            }
        }
    }

    fn offer(&mut self, now: Time, id: ParticipantId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let offer = client.offer();
        self.say(now, id, MemberRequest::Offer(Box::new(offer)));
    }

    /// Clients do what they were asked for, and their transports connect.
    pub(crate) fn answer(&mut self, now: Time) {
        let asked = self.clients.iter().filter(|(_, client)| client.asked.is_some()).map(|(id, _)| *id);
        for id in asked.collect::<Vec<_>>() {
            self.offer(now, id);
            let is_new = self.clients.get_mut(&id).is_some_and(|client| !std::mem::replace(&mut client.is_connected, true));
            let transports: Vec<_> = if is_new { self.transports.keys().copied().collect() } else { Vec::new() };
            for transport in transports {
                self.session.handle_transport_connected(now, transport, SrtpProfile::AeadAes128Gcm);
            }
            self.transports.clear();
            self.drain(now);
        }
    }

    pub(crate) fn hear(&mut self, now: Time, news: Vec<News>) {
        for news in news {
            match news {
                News::Record(record) => {
                    let (id, writer) = (record.key.participant, (record.key.node, self.replica.start_of(record.key.node)));
                    if self.session.handle_record(now, *record) == Applied::New {
                        self.writers.insert(id, writer);
                    }
                }
                News::Up(node) => {
                    self.lost.remove(&(node, self.replica.start_of(node)));
                    self.session.handle_node_back(now, node);
                }
                News::Gone(node) => {
                    self.lost.insert((node, self.replica.start_of(node)), now);
                    self.session.handle_node_away(now, node);
                }
                News::Restarted(node) => {
                    for start in 1..self.replica.start_of(node) {
                        self.lost.entry((node, start)).or_insert(now);
                    }
                    self.session.handle_node_restarted(now, node);
                }
            }
            self.drain(now);
        }
    }

    pub(crate) fn pass(&mut self, now: Time) {
        for _ in 0..1_000 {
            if self.session.poll_timeout().is_none_or(|at| at > now) {
                return;
            }
            self.session.handle_timeout(now);
            self.drain(now);
        }
        panic!("a deadline comes again and again");
    }

    fn drain(&mut self, now: Time) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Put(record) => {
                    assert!(self.mine.contains(&record.participant), "it is none of ours to write: {record:?}");
                    self.replica.put(now, &record);
                }
                Output::Command(command) => self.obey(command),
                // What is said between people is not simulated: records alone make the sets of people.
                Output::Abroad { .. } => {}
                Output::Notice(to, notice) => {
                    if !self.is_resuming {
                        self.check_leave(now, &notice);
                    }
                    // One whose client is not connected hears nothing.
                    let Some(client) = self.clients.get_mut(&to) else { continue };
                    let heard = client.hear(notice);
                    if heard != Heard::Goes {
                        let client = self.clients.remove(&to).expect("it was there");
                        match heard {
                            Heard::ComesBack => self.stranded.push((to, client)),
                            _ => self.ended.push(to),
                        }
                    }
                }
                Output::Reply(_, reply) => self.refused = reply.err(),
                Output::Audit(audit) => {
                    if matches!(audit.action, Action::Left { reason: CloseReason::TakenOver, .. }) {
                        self.mine.remove(&audit.participant);
                        self.replica.withdraw(now, audit.participant);
                    }
                }
                Output::Closed { .. } => {}
            }
        }
    }

    /// Who goes without a word was not heard of for the whole grace.
    fn check_leave(&self, now: Time, notice: &Notice) {
        let Notice::Participants(infos) = notice else { return };
        let gone = infos.iter().filter(|info| info.state == MemberState::Disconnected);
        for info in gone.filter(|info| info.left == Some(LeaveReason::ConnectionTimeout)) {
            let Some(writer) = self.writers.get(&info.participant).filter(|(node, _)| *node != self.id) else { continue };
            let is_over = self.lost.get(writer).is_some_and(|lost| now.since(*lost) >= Limits::default().grace);
            assert!(is_over, "node {} told too early that {info:?} is gone", self.id);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::OpenTransport(open) => drop(self.transports.insert(open.transport, ())),
            Command::CloseTransport { transport } => {
                self.tracks.retain(|_, of| *of != transport);
                self.sections.retain(|_, (of, _)| *of != transport);
            }
            Command::OpenTrack(open) => drop(self.tracks.insert(open.track, open.transport)),
            Command::CloseTrack { track } => drop(self.tracks.remove(&track).expect("it is open")),
            Command::OpenSubscription(open) => drop(self.sections.insert(open.subscription, (open.transport, None))),
            Command::CloseSubscription { subscription } => drop(self.sections.remove(&subscription).expect("it is open")),
            Command::Forward { subscription, track, payload_types } => self.forward(subscription, track, payload_types.len()),
            _ => {}
        }
    }

    fn forward(&mut self, subscription: SubscriptionId, track: Option<TrackId>, formats: usize) {
        assert_eq!(track.is_some(), formats > 0);
        self.sections.get_mut(&subscription).expect("it is open").1 = track;
        let Some(track) = track.filter(|track| !self.tracks.contains_key(track)) else { return };
        self.fed_abroad += 1;
        let RemoteKey { node, .. } = self.session.remote_track(track).expect("a track that is neither here nor there is fed");
        assert!(!self.lost.contains_key(&(node, self.replica.start_of(node))), "fed by a node that is away");
    }
}
