//! One room on one worker: requests and worker events in, commands, replies and notices out.
//!
//! ```text
//! HTTP, CLI     -> handle_request ---+
//! member socket -> handle_member  ---+   Reply -> who asked | Notice -> a member's socket | Command -> the worker
//! worker Event  -> handle_event   ---+-> poll: Closed -> DTLS, slot | Audit -> log
//! DTLS          -> handle_transport_*+
//! timer         -> handle_timeout ---+
//! ```
//! Drain [`Session::poll`] to the end after each call.

mod abroad;
mod admin;
mod adopt;
mod bucket;
mod clients;
mod data;
mod members;
mod negotiate;
mod output;
mod permissions;
mod publish;
mod quality;
mod remotes;
mod request;
mod speakers;
mod subscriptions;
mod taps;
mod texts;
mod told;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pop_proto::control::{Command, Event, RtpPeerStats, SrtpProfile};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};

use crate::draw::Draw;
use crate::format::map_payload_types;
use crate::member::{MemberRequest, ParticipantInfo};
use crate::participant::{Choice, Connection, Kind, LocalParticipant, LocalSection, Participant, Track};
use crate::presence::{LocalRecord, RemoteParticipants};
use crate::sid::format_room_sid;
use crate::subscribe::choose;
use crate::view::{self, SessionView};

pub use abroad::{Abroad, RoomWord};
pub(crate) use bucket::Bucket;
pub use data::DataDrops;
pub(crate) use members::Member;
pub use output::{Action, Audit, CloseReason, Output, TransportFailure};
pub use publish::TRACK_TEXT_LEN_MAX;
pub(crate) use quality::Judged;
pub use request::{
    IceCondition, IceUpdate, Join, Limits, Media, Opening, Publication, Refusal, Reply, Request, RequestId, Section, TappedTrack,
};
pub(crate) use wishes::Demand;

use abroad::News;
use data::DataHistory;
use output::audit;
use quality::QUALITY_INTERVAL;
use remotes::Far;
use speakers::Speakers;

/// From the answer to agreed keys. The worker gives up after 30 s without a check
/// ([`pop_proto::control::TransportLoss::NeverConnected`]); a handshake that began at the last moment gets 10 s more.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a member whose socket is gone is waited for, while its media may still flow.
pub const RESUME_GRACE: Duration = Duration::from_secs(30);

/// Tracks that one member takes at most.
pub const MEMBER_SUBSCRIPTIONS_MAX: usize = 256;

/// Media sections of one member's transport: what it takes, what it publishes, and some that are idle.
pub const MEMBER_SECTIONS_MAX: usize = 320;

/// A room. See the module for how to drive it.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    /// The node that it is on; 0: it was not told.
    node: u64,
    limits: Limits,
    participants: BTreeMap<ParticipantId, LocalParticipant>,
    remotes: RemoteParticipants,
    tracks: BTreeMap<TrackId, Track>,
    /// What is here of remote participants.
    far: BTreeMap<ParticipantId, Far>,
    /// Tracks of ours that other nodes take.
    wanted_abroad: BTreeSet<TrackId>,
    /// Local members and publishers.
    identities: BTreeMap<Identity, BTreeSet<ParticipantId>>,
    sections: BTreeMap<SubscriptionId, LocalSection>,
    by_transport: BTreeMap<TransportId, ParticipantId>,
    by_resource: BTreeMap<Box<str>, ParticipantId>,
    /// Who is connecting, by deadline; an entry goes when its participant connects or leaves.
    connecting: BTreeSet<(Time, ParticipantId)>,
    /// The capture of each kind, by `MediaKind`.
    taps: [Option<u32>; 2],
    /// The next publisher's place.
    next_order: u64,
    draw: Draw,
    /// One life of the room, as clients see it.
    sid: Box<str>,
    /// What operators have said of it, here or at other nodes.
    word: RoomWord,
    /// When its first member came, or an operator made it.
    created: Option<Time>,
    /// Wall clock at [`Time::ZERO`], in milliseconds since 1970; who made the room brings it.
    epoch_ms: Option<u64>,
    /// Members without a socket, by the end of their grace.
    socketless: BTreeSet<(Time, ParticipantId)>,
    /// Members whose client was asked for an offer, by when it is asked again.
    asking: BTreeSet<(Time, ParticipantId)>,
    /// When changes of a large room's audience are told.
    tell_at: Option<Time>,
    /// When the number of participants is told, and what it was then: all, and those who publish.
    room_at: Option<Time>,
    told_counts: (u32, u32),
    /// Of this call, or not told yet: whom others must hear of, ...
    changed: BTreeSet<ParticipantId>,
    /// (or other nodes alone), ...
    restated: BTreeSet<ParticipantId>,
    /// (or other nodes, of how they want tracks, when it is time), ...
    rewished: BTreeSet<ParticipantId>,
    wishes_at: Option<Time>,
    /// ... who is gone, ...
    gone: Vec<ParticipantInfo>,
    /// (and who has gone lately: those whose socket was away did not hear of it), ...
    past: VecDeque<(Time, ParticipantInfo)>,
    /// ... what is the last word on it for other nodes, ...
    ended: Vec<LocalRecord>,
    /// ... who has been told everything, ...
    fresh: Option<ParticipantId>,
    /// ... whose subscriptions have changed, ...
    unsettled: BTreeSet<ParticipantId>,
    /// ... and for which track somebody wants more or less than before.
    rated: BTreeSet<TrackId>,
    /// Tracks whose publisher hears of less demand when it lasts until then.
    calming: BTreeSet<(Time, TrackId)>,
    speakers: Speakers,
    /// When connections are judged next; `None` without members.
    quality_due: Option<Time>,
    news: News,
    history: DataHistory,
    data_drops: DataDrops,
    /// Events and requests about ids that this session does not have (any more).
    unknown_events: u64,
    outputs: VecDeque<Output>,
}

impl Session {
    /// An empty room. All that it draws (ids, SSRCs, first numbers) comes from `seed`, which its owner drew at random.
    pub fn new(id: SessionId, limits: Limits, seed: u64) -> Session {
        let mut draw = Draw::new(seed);
        Session {
            id,
            node: 0,
            sid: format_room_sid(draw.next_id()).into(),
            draw,
            word: RoomWord::default(),
            created: None,
            epoch_ms: None,
            socketless: BTreeSet::new(),
            asking: BTreeSet::new(),
            tell_at: None,
            room_at: None,
            told_counts: (0, 0),
            changed: BTreeSet::new(),
            restated: BTreeSet::new(),
            rewished: BTreeSet::new(),
            wishes_at: None,
            gone: Vec::new(),
            past: VecDeque::new(),
            ended: Vec::new(),
            fresh: None,
            unsettled: BTreeSet::new(),
            rated: BTreeSet::new(),
            calming: BTreeSet::new(),
            speakers: Speakers::default(),
            quality_due: None,
            news: News::default(),
            history: DataHistory::default(),
            data_drops: DataDrops::default(),
            limits,
            participants: BTreeMap::new(),
            remotes: RemoteParticipants::default(),
            tracks: BTreeMap::new(),
            far: BTreeMap::new(),
            wanted_abroad: BTreeSet::new(),
            identities: BTreeMap::new(),
            sections: BTreeMap::new(),
            by_transport: BTreeMap::new(),
            by_resource: BTreeMap::new(),
            connecting: BTreeSet::new(),
            taps: [None; 2],
            next_order: 0,
            unknown_events: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Nobody is connected here and nothing is captured: the owner may drop it.
    pub fn is_empty(&self) -> bool {
        self.participants.is_empty() && self.taps == [None; 2]
    }

    /// Events that named something this session does not have: stragglers after a close, or a bug when it keeps growing.
    pub fn unknown_events(&self) -> u64 {
        self.unknown_events
    }

    /// Everybody, locals first.
    pub fn participants(&self) -> impl Iterator<Item = Participant<'_>> {
        let locals = self.participants.values().map(Participant::Local);
        locals.chain(self.remotes.iter().filter(|remote| !remote.is_outdone).map(Participant::Remote))
    }

    /// The body of `/api/v1/sessions` for this room.
    pub fn describe(&self, now: Time) -> SessionView {
        view::describe(now, &self.id, &self.participants, &self.tracks, &self.sections, &self.remotes, self.taps)
    }

    /// Takes a request; its reply comes out of [`Session::poll`]: before the first notice to a member that comes (back) in, after the
    /// commands of everything else. A refused request has changed nothing.
    pub fn handle_request(&mut self, now: Time, id: RequestId, request: Request) {
        let place = self.outputs.len();
        let result = match request {
            Request::Join(join) => self.join(now, *join),
            Request::Leave { resource } => self.leave_resource(now, &resource),
            Request::UpdateIce(update) => self.update_ice(*update),
            Request::Tap { tap, kind } => self.open_tap(tap, kind),
            Request::Untap { tap } => self.close_tap(tap),
            Request::Enter(enter) => self.enter(now, *enter),
            Request::Resume(resume) => self.resume(now, *resume),
            Request::Shutdown => self.shut_down(now),
            Request::Admin(admin) => self.administer(now, admin),
        };
        // Its owner learns of the socket's participant before it has to hand it a notice.
        let place = if self.fresh.is_some() { place } else { self.outputs.len() };
        self.outputs.insert(place, Output::Reply(id, result));
        self.settle(now);
    }

    /// Takes an event of this session's worker. DTLS datagrams are none of its business and are counted as unknown.
    pub fn handle_event(&mut self, now: Time, event: Event) {
        let known = match event {
            Event::TransportValidated { transport, remote } => self.note_address(transport, remote),
            Event::TransportLost { transport, loss } => self.close_transport(now, transport, CloseReason::Lost(loss)),
            Event::RtpPeerStats { transport, stats } => self.note_peer_stats(transport, stats),
            Event::TrackStarted { track } => self.start_track(track),
            Event::LayersBound { track, ssrcs } => self.note_layers(track, ssrcs),
            Event::TrackStats { track, stats } => self.note_track_stats(track, stats),
            Event::SubscriptionStats { subscription, stats } => self.note_subscription_stats(subscription, stats),
            Event::AudioLevel { track, level, active_percent } => self.note_level(now, track, level, active_percent),
            Event::Data { transport, message } => self.take_data(now, transport, message),
            Event::Dtls { .. }
            | Event::LinkStats { .. }
            | Event::LinkMissing { .. }
            | Event::LinkWanted { .. }
            | Event::LinkKeysUsed { .. } => false,
        };
        self.unknown_events += u64::from(!known);
        self.settle(now);
    }

    /// Takes what a member says on its present socket. Its answers are notices.
    pub fn handle_member(&mut self, now: Time, participant: ParticipantId, request: MemberRequest) {
        let known = self.take_member_request(now, participant, request);
        self.unknown_events += u64::from(!known);
        self.settle(now);
    }

    /// DTLS is through and the keys go to the worker.
    pub fn handle_transport_connected(&mut self, now: Time, transport: TransportId, profile: SrtpProfile) {
        let Some(participant) = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id)) else {
            self.unknown_events += 1;
            return;
        };
        participant.connection = Connection::Connected { profile };
        let mut adopted = None;
        if let Some(member) = &mut participant.member {
            // There is nothing from before that it could have missed; except for one that was taken over.
            member.is_behind = false;
            adopted = member.adopted.take();
        }
        let (id, joined) = (participant.id, participant.joined);
        self.connecting.remove(&(participant.opened + CONNECT_TIMEOUT, id));
        let action = Action::Connected { profile, address: participant.address, after: now.since(participant.opened) };
        let audit = audit(participant, action);
        self.outputs.push_back(Output::Audit(audit));
        self.touch(id);
        if let Some(received) = adopted.and_then(|adopted| adopted.received) {
            self.replay_data(now, id, joined, &received);
        }
        self.settle(now);
    }

    /// DTLS failed, or the client closed it.
    pub fn handle_transport_failed(&mut self, now: Time, transport: TransportId, failure: TransportFailure) {
        let known = self.close_transport(now, transport, CloseReason::Failed(failure));
        self.unknown_events += u64::from(!known);
        self.settle(now);
    }

    /// When [`Session::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let members = [&self.connecting, &self.socketless, &self.asking];
        let members = members.iter().filter_map(|deadlines| deadlines.first()).map(|(deadline, _)| *deadline);
        let tracks = self.calming.first().map(|(deadline, _)| *deadline);
        let news = [self.tell_at, self.room_at, self.wishes_at];
        let room = [self.speakers.due, self.quality_due, self.history.deadline(), self.remotes.deadline()];
        members.chain(tracks).chain(room.into_iter().chain(news).flatten()).min()
    }

    /// Ends those who did not connect, or come back, in time, and those whose node did not.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((_, id)) = self.connecting.first().filter(|(deadline, _)| *deadline <= now).copied() {
            self.remove(now, id, CloseReason::ConnectTimeout);
        }
        self.end_socketless(now);
        self.end_away(now);
        self.ask_again(now);
        self.lower_demand(now);
        self.count_speakers(now);
        self.judge(now);
        self.forget_old_data(now);
        self.tell_waiting(now);
        self.tell_wishes(now);
        self.settle(now);
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The end of each call: what it has changed is told once.
    fn settle(&mut self, now: Time) {
        let fresh = self.fresh.take();
        self.settle_changes(now, fresh);
        self.put_restated();
        self.settle_subscriptions(now);
        self.settle_demand(now);
    }

    fn shut_down(&mut self, now: Time) -> Result<Reply, Refusal> {
        for id in self.participants.keys().copied().collect::<Vec<_>>() {
            self.remove(now, id, CloseReason::Shutdown);
        }
        Ok(Reply::Done)
    }

    fn note_address(&mut self, transport: TransportId, remote: SocketAddr) -> bool {
        let Some(participant) = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id)) else {
            return false;
        };
        participant.address = Some(remote);
        if participant.is_routed() {
            let learnt = audit(participant, Action::Learnt { address: remote });
            self.outputs.push_back(Output::Audit(learnt));
        }
        true
    }

    fn note_peer_stats(&mut self, transport: TransportId, news: RtpPeerStats) -> bool {
        let participant = self.by_transport.get(&transport).and_then(|id| self.participants.get_mut(id));
        let Some(Connection::Routed { stats, .. }) = participant.map(|participant| &mut participant.connection) else { return false };
        *stats = news;
        true
    }

    fn start_track(&mut self, id: TrackId) -> bool {
        let Some(track) = self.tracks.get_mut(&id) else { return false };
        if track.is_remote() {
            return true;
        }
        track.started = true;
        let action = Action::Published { track: id, kind: track.kind, codec: track.formats.first().map(|first| first.format.codec()) };
        let owner = self.participants.get(&track.owner).expect("a track goes with its participant");
        let owner_id = owner.id;
        self.outputs.push_back(Output::Audit(audit(owner, action)));
        self.restate(owner_id);
        self.feed_sections();
        true
    }

    fn close_transport(&mut self, now: Time, transport: TransportId, reason: CloseReason) -> bool {
        let Some(id) = self.by_transport.get(&transport).copied() else { return false };
        self.remove(now, id, reason);
        true
    }

    /// Takes a participant out, with its transport, tracks and sections; sections that it fed get another source.
    fn remove(&mut self, now: Time, id: ParticipantId, reason: CloseReason) {
        let Some(participant) = self.participants.get(&id) else { return };
        // One that was taken over is still in the room, and its new owner tells of it.
        let stays = reason == CloseReason::TakenOver;
        if participant.is_shown() && !stays {
            self.gone.push(self.describe_gone(participant, members::leave_of(reason).0));
        }
        self.dismiss(id, reason);
        let Some(participant) = self.participants.remove(&id) else { return };
        if !stays {
            self.bury(now, &participant);
        }
        self.forget_identity(&participant);
        self.forget_deadlines(&participant);
        self.restated.remove(&id);
        self.rewished.remove(&id);
        if let Some(resource) = &participant.resource {
            self.by_resource.remove(resource);
        }
        for section in &participant.sections {
            self.forget_section(*section);
        }
        for track in &participant.tracks {
            self.wanted_abroad.remove(track);
            self.forget_track(*track);
        }
        if let Some(transport) = participant.transport {
            self.by_transport.remove(&transport);
            // After TransportLost the worker has already forgotten the transport and everything in it.
            if !matches!(reason, CloseReason::Lost(_)) {
                self.command(Command::CloseTransport { transport });
            }
            self.outputs.push_back(Output::Closed { transport, reason });
        }
        let action = Action::Left { reason, stayed: now.since(participant.joined) };
        self.outputs.push_back(Output::Audit(audit(&participant, action)));
        if !matches!(reason, CloseReason::Replaced | CloseReason::Displaced | CloseReason::TakenOver) {
            self.contest_identity(now, &participant.identity);
        }
        self.feed_sections();
    }

    /// Lets a participant in.
    fn insert(&mut self, now: Time, participant: LocalParticipant) {
        let (id, identity) = (participant.id, participant.identity.clone());
        if participant.member.is_some() || self.remotes.iter().next().is_some() {
            self.quality_due.get_or_insert(now + QUALITY_INTERVAL);
        }
        if participant.kind != Kind::Viewer {
            self.identities.entry(identity.clone()).or_default().insert(id);
        }
        self.participants.insert(id, participant);
        self.touch(id);
        if self.participants[&id].kind != Kind::Viewer {
            self.contest_identity(now, &identity);
        }
    }

    fn forget_identity(&mut self, participant: &LocalParticipant) {
        let Some(same) = self.identities.get_mut(&participant.identity) else { return };
        same.remove(&participant.id);
        if same.is_empty() {
            self.identities.remove(&participant.identity);
        }
    }

    fn forget_deadlines(&mut self, participant: &LocalParticipant) {
        let id = participant.id;
        self.changed.remove(&id);
        self.unsettled.remove(&id);
        self.connecting.remove(&(participant.opened + CONNECT_TIMEOUT, id));
        let Some(member) = &participant.member else { return };
        if let Some(since) = member.socket_gone {
            self.socketless.remove(&(since + RESUME_GRACE, id));
        }
        if let Some(asked) = member.asked {
            self.asking.remove(&(asked.again, id));
        }
    }

    /// Sections that `old` feeds and that the session chooses for go on with `new` where they can decode it; the worker continues
    /// sequence and timestamp.
    fn move_sections(&mut self, old: TrackId, new: TrackId) {
        let Some(track) = self.tracks.get(&old) else { return };
        let chosen = |id: &&SubscriptionId| self.sections.get(id).is_some_and(|section| matches!(section.choice, Choice::Oldest { .. }));
        for section in track.takers.iter().filter(chosen).copied().collect::<Vec<_>>() {
            self.forward(section, Some(new));
        }
    }

    /// Gives every section that the session chooses for the track that should feed it.
    fn feed_sections(&mut self) {
        let chosen = self.sections.values().filter(|section| matches!(section.choice, Choice::Oldest { .. }));
        let changes: Vec<_> = chosen
            .map(|section| (section.id, choose(&self.tracks, section, |track| self.is_open_to(section.owner, track)), section.source))
            .filter(|(_, wanted, source)| wanted != source)
            .collect();
        for (section, wanted, _) in changes {
            self.forward(section, wanted);
        }
    }

    fn forward(&mut self, id: SubscriptionId, track: Option<TrackId>) {
        let Some(section) = self.sections.get_mut(&id) else { return };
        if let Some(old) = section.source.and_then(|source| self.tracks.get_mut(&source)) {
            old.takers.remove(&id);
            self.rated.insert(old.id);
        }
        let source = track.and_then(|id| self.tracks.get_mut(&id));
        let payload_types = source.as_ref().map(|track| map_payload_types(&track.formats, &section.formats)).unwrap_or_default();
        section.source = track.filter(|_| !payload_types.is_empty());
        if let Some(new) = source.filter(|_| section.source.is_some()) {
            new.takers.insert(id);
            self.rated.insert(new.id);
        }
        let (track, owner) = (section.source, section.owner);
        let chosen = track.filter(|_| matches!(section.choice, Choice::Oldest { .. }));
        let comes = track.filter(|id| self.tracks.get(id).is_some_and(|track| !track.is_away()));
        let payload_types = if comes.is_some() { payload_types } else { Vec::new() };
        self.command(Command::Forward { subscription: id, track: comes, payload_types });
        if let Some(track) = chosen {
            self.wish_for(owner, track, id);
        }
    }

    fn command(&mut self, command: Command) {
        self.outputs.push_back(Output::Command(command));
    }
}
