//! A seeded walk over everything that can be said to a room, with a model of the worker and of each client beside it. After each step
//! the books must agree.

#[path = "members/stage.rs"]
#[allow(dead_code)]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pop_proto::control::{
    Command, DataMessage, Event, ExtensionIds, IceCredentials, MediaKind, OpenSubscription, OpenTrack, OpenTransport, SrtpProfile,
    SubscriptionStats, TrackStats, TransportLoss,
};
use pop_schemas::{ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};
use pop_session::member::{
    AddTrack, AdminRequest, Enter, MemberRequest, MemberState, MetadataUpdate, Notice, Offer, OfferedSection, ParticipantInfo,
    PermissionSubject, Permissions, Quality, Resume, Source, SubscriptionPermission, Sync, TrackSettings, TrackUpdate, TransportOffer,
};
use pop_session::presence::{Manifest, Record, RemoteKey, RemoteTrack, Version};
use pop_session::{
    Join, Kind, Limits, Media, Opening, Output, PayloadFormat, Publication, Reply, Request, RequestId, Section, Session, TransportFailure,
};
use stage::{AV1, OPUS, VP8, identity, receives, sends};

const NAMES: [&str; 6] = ["ann", "bob", "cid", "dan", "eve", "fay"];

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len())].clone())
    }
}

/// What a worker has open.
#[derive(Default)]
struct Worker {
    transports: BTreeMap<TransportId, BTreeSet<u32>>,
    /// With its layers.
    tracks: BTreeMap<TrackId, (TransportId, MediaKind, Vec<Box<str>>)>,
    sections: BTreeMap<SubscriptionId, (TransportId, MediaKind, Option<TrackId>)>,
}

impl Worker {
    fn forget(&mut self, transport: TransportId) {
        assert!(self.transports.remove(&transport).is_some(), "{transport} is closed and was not open");
        self.tracks.retain(|_, (of, ..)| *of != transport);
        self.sections.retain(|_, (of, ..)| *of != transport);
    }

    /// `is_abroad`: it names a track of another node, all of which are video.
    fn obey(&mut self, command: Command, is_abroad: bool) {
        match command {
            Command::OpenTransport(open) => {
                let ssrcs = BTreeSet::from([open.rtcp_ssrc]);
                assert!(self.transports.insert(open.transport, ssrcs).is_none(), "opened twice");
            }
            Command::CloseTransport { transport } => self.forget(transport),
            Command::RestartIce { transport, .. } | Command::UpdateTransport { transport, .. } | Command::SendData { transport, .. } => {
                assert!(self.transports.contains_key(&transport));
            }
            Command::OpenTrack(open) => {
                assert!(self.transports.contains_key(&open.transport));
                let value = (open.transport, open.kind, open.layers.clone());
                assert!(self.tracks.insert(open.track, value).is_none(), "opened twice");
                let streams = self.tracks.values().filter(|(of, ..)| *of == open.transport).map(|(.., layers)| layers.len().max(1));
                assert!(streams.sum::<usize>() <= 6, "more streams than a transport has places for");
                assert!(!open.payload_types.is_empty());
                let mut order = open.order.clone();
                order.sort_unstable();
                assert!(order.is_empty() || order == (0..open.layers.len() as u8).collect::<Vec<_>>(), "{:?}", open.order);
            }
            Command::CloseTrack { track } => {
                assert!(self.tracks.remove(&track).is_some(), "closed and was not open");
            }
            Command::OpenSubscription(open) => {
                let ssrcs = self.transports.get_mut(&open.transport).expect("its transport is open");
                assert!(ssrcs.insert(open.ssrc) && open.rtx_ssrc.is_none_or(|rtx| ssrcs.insert(rtx)), "an SSRC is used twice");
                assert!(open.first_sequence < 1 << 15);
                assert!(self.sections.insert(open.subscription, (open.transport, open.kind, None)).is_none(), "opened twice");
            }
            Command::CloseSubscription { subscription } => assert!(self.sections.remove(&subscription).is_some()),
            Command::Forward { subscription, track, payload_types } => {
                let (_, kind, source) = self.sections.get_mut(&subscription).expect("the section is open");
                if let Some(track) = track {
                    let known = if is_abroad { MediaKind::Video } else { self.tracks.get(&track).expect("the track is open").1 };
                    assert_eq!(known, *kind);
                }
                assert_eq!(track.is_some(), !payload_types.is_empty());
                *source = track;
            }
            Command::Wish { subscription, .. } => assert!(self.sections.contains_key(&subscription)),
            Command::Tap { track, .. } => assert!(self.tracks.contains_key(&track)),
            other => panic!("none of a room's business: {other:?}"),
        }
    }
}

/// A client of the room protocol, as far as it understands.
struct Client {
    name: &'static str,
    here: bool,
    /// It was told nothing yet.
    new_socket: bool,
    /// By identity, as the SDKs keep them.
    others: BTreeMap<String, ParticipantInfo>,
    sections: Vec<OfferedSection>,
    mids: u64,
    fragment: u64,
    /// Tracks that were taken and are not in an offer.
    announced: Vec<(Box<str>, MediaKind)>,
    asked: Option<(u32, u32)>,
}

struct World {
    dice: Dice,
    session: Session,
    now: Time,
    next: u64,
    worker: Worker,
    clients: BTreeMap<ParticipantId, Client>,
    /// Resources of WHIP and WHEP.
    resources: Vec<Box<str>>,
    replies: Vec<Result<Reply, pop_session::Refusal>>,
    remote_counter: u32,
    /// Nodes that do not answer.
    away: BTreeSet<u64>,
    /// How often each thing was said, so that the walk is seen to go everywhere.
    said: BTreeMap<String, u64>,
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits { participants_max: 12, tracks_max: 4, streams_max: 6, connecting_max: 4, ..Limits::default() };
        World {
            dice: Dice(seed),
            session: Session::new(SessionId::new("walk").unwrap(), limits, seed),
            now: Time::from_millis(1),
            next: 0,
            worker: Worker::default(),
            clients: BTreeMap::new(),
            resources: Vec::new(),
            replies: Vec::new(),
            remote_counter: 0,
            away: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Command(command) => {
                    let feeds = match &command {
                        Command::Forward { track: Some(track), .. } if self.session.remote_track(*track).is_some() => Some("FeedAbroad"),
                        Command::Forward { track: Some(_), .. } => Some("Feed"),
                        _ => None,
                    };
                    let name = format!("{command:?}");
                    let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                    *self.said.entry(feeds.unwrap_or(name).into()).or_default() += 1;
                    self.worker.obey(command, feeds == Some("FeedAbroad"));
                }
                Output::Reply(_, reply) => self.replies.push(reply),
                Output::Notice(to, notice) => self.hear(to, notice),
                Output::Closed { .. } | Output::Audit(_) | Output::Put(_) | Output::Abroad { .. } => {}
            }
        }
        self.check();
    }

    fn hear(&mut self, to: ParticipantId, notice: Notice) {
        let name = format!("{notice:?}");
        let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        *self.said.entry(name.to_owned()).or_default() += 1;
        let client = self.clients.get_mut(&to).unwrap_or_else(|| panic!("{to} has not come in: {notice:?}"));
        assert!(client.here, "{to} has no socket: {notice:?}");
        let is_first = std::mem::take(&mut client.new_socket);
        assert_eq!(is_first, matches!(notice, Notice::Welcome(_) | Notice::Resumed(_)), "{notice:?}");
        match notice {
            Notice::Welcome(welcome) => {
                assert_eq!(welcome.participant.participant, to);
                client.others.clear();
                client.learn(&welcome.others);
            }
            Notice::Participants(infos) => client.learn(&infos),
            Notice::Leave { .. } => client.here = false,
            Notice::SectionsNeeded { audio, video } => client.asked = Some((audio, video)),
            Notice::TrackPublished { cid, track } => client.announced.push((cid, track.kind)),
            Notice::Answer(answer) => {
                for (mid, track) in answer.sections.iter().filter_map(|(mid, section)| Some((mid, section.takes?))) {
                    let offered = client.sections.iter().find(|section| section.mid == *mid).and_then(|section| section.sends.as_ref());
                    assert_eq!(self.worker.tracks[&track].2, offered.expect("it is offered").layers, "the layers of the offer");
                }
            }
            _ => {}
        }
    }

    /// The books agree.
    fn check(&self) {
        for (id, (_, _, source)) in &self.worker.sections {
            let is_there = |track| self.worker.tracks.contains_key(&track) || self.session.remote_track(track).is_some();
            assert!(source.is_none_or(is_there), "{id} is fed by a ghost");
        }
        let view = self.session.describe(self.now);
        let shown: BTreeMap<_, _> = view
            .participants
            .iter()
            .filter(|p| !p.hidden && p.kind != "watch")
            .map(|p| (p.id.clone(), p.tracks.iter().map(|track| track.id.clone()).collect::<BTreeSet<_>>()))
            .collect();
        for (id, client) in self.clients.iter().filter(|(_, client)| client.here) {
            let seen: BTreeMap<_, _> = client
                .others
                .values()
                .map(|p| (p.participant.to_string(), p.tracks.iter().map(|track| track.track.to_string()).collect::<BTreeSet<_>>()))
                .collect();
            let mut expected = shown.clone();
            expected.remove(&id.to_string());
            assert_eq!(seen, expected, "what {id} ({}) believes", client.name);
        }
        for participant in view.participants.iter().filter(|p| p.kind == "member") {
            let sources: Vec<_> = participant.subscriptions.iter().filter_map(|s| s.source.clone()).collect();
            assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len(), "a track in two sections of one member");
            assert!(participant.tracks.iter().all(|track| !sources.contains(&track.id)), "a member hears itself");
            assert!(participant.tracks.len() <= 4);
        }
        let locals: usize = view.participants.iter().filter(|p| p.local).count();
        assert!(locals <= 12, "the room is larger than it may be");
        let tracks: usize = view.participants.iter().filter(|p| p.local).map(|p| p.tracks.len()).sum();
        let sections: usize = view.participants.iter().map(|p| p.subscriptions.len()).sum();
        assert_eq!((tracks, sections), (self.worker.tracks.len(), self.worker.sections.len()), "the worker has what the session has");
        assert!(self.session.data_kept_len() <= 1 << 20);
    }

    fn request(&mut self, request: Request) -> Result<Reply, pop_session::Refusal> {
        self.session.handle_request(self.now, RequestId(0), request);
        self.drain();
        self.replies.pop().expect("each request is answered")
    }

    fn say(&mut self, id: ParticipantId, request: MemberRequest) {
        self.session.handle_member(self.now, id, request);
        self.drain();
    }

    fn event(&mut self, event: Event) {
        self.session.handle_event(self.now, event);
        self.drain();
    }

    fn draw_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn somebody(&mut self) -> Option<ParticipantId> {
        let here: Vec<_> = self.clients.iter().filter(|(_, client)| client.here).map(|(id, _)| *id).collect();
        self.dice.pick(&here)
    }

    fn some_track(&mut self) -> TrackId {
        let tracks: Vec<_> = self.session.participants().flat_map(|participant| participant.tracks()).collect();
        if self.dice.once_in(10) { TrackId(self.dice.next()) } else { self.dice.pick(&tracks).unwrap_or(TrackId(9)) }
    }

    fn some_transport(&mut self) -> TransportId {
        let transports: Vec<_> = self.worker.transports.keys().copied().collect();
        if self.dice.once_in(20) { TransportId(self.dice.next()) } else { self.dice.pick(&transports).unwrap_or(TransportId(9)) }
    }

    fn permissions(&mut self) -> Permissions {
        Permissions {
            subscribe: !self.dice.once_in(8),
            publish: !self.dice.once_in(8),
            publish_data: !self.dice.once_in(5),
            sources: if self.dice.once_in(8) { vec![Source::Camera] } else { Vec::new() },
            hidden: self.dice.once_in(6),
            recorder: false,
            update_metadata: self.dice.once_in(2),
        }
    }

    fn step(&mut self) {
        match self.dice.below(60) {
            0 => self.enter(),
            1..=12 => self.offer(),
            13..=18 => self.add_track(),
            19 => self.join(),
            20 if self.dice.once_in(2) => self.leave_resource(),
            21..=23 => self.subscribe(),
            24..=28 => self.settings(),
            29..=33 => self.small_talk(),
            34 => self.permission(),
            35 => self.end_socket(),
            36..=38 => self.resume(),
            39 => self.administer(),
            40 => self.tap(),
            41 | 58 | 59 => self.record(),
            42..=45 => self.data(),
            46 | 47 => self.pass(),
            48 if self.dice.once_in(3) => self.lose(),
            49..=51 => self.connect(),
            _ => self.happen(),
        }
    }

    fn enter(&mut self) {
        let (id, name) = (ParticipantId(self.draw_id()), NAMES[self.dice.below(NAMES.len())]);
        let enter = Enter {
            participant: id,
            identity: identity(name),
            name: name.into(),
            metadata: "m".into(),
            attributes: BTreeMap::new(),
            permissions: self.permissions(),
            auto_subscribe: !self.dice.once_in(4),
            adaptive_stream: self.dice.once_in(2),
            joined_at_ms: 1_000,
            client: "walk".into(),
        };
        let (others, sections, announced) = Default::default();
        let (here, fragment, asked) = (true, self.next, None);
        self.clients.insert(id, Client { name, here, new_socket: true, others, sections, mids: 0, fragment, announced, asked });
        if self.come(Request::Enter(Box::new(enter))).is_err() {
            self.clients.remove(&id);
        }
    }

    fn offer(&mut self) {
        let Some(id) = self.somebody() else { return };
        let dice = &mut self.dice;
        let client = self.clients.get_mut(&id).unwrap();
        let (audio, video) = client.asked.take().unwrap_or((u32::from(dice.once_in(3)), u32::from(dice.once_in(3))));
        for formats in std::iter::repeat_n([OPUS], audio.min(9) as usize).chain(std::iter::repeat_n([VP8], video.min(9) as usize)) {
            client.mids += 1;
            let mid = client.mids.to_string();
            client.sections.push(receives(&mid, &formats));
        }
        match dice.below(6) {
            0 => {
                let (cid, kind) = client.announced.pop().unwrap_or(("{x}".into(), MediaKind::Video));
                let formats: &[PayloadFormat] = match kind {
                    MediaKind::Audio => &[OPUS],
                    MediaKind::Video => [&[VP8][..], &[VP8], &[AV1]][dice.below(3)],
                };
                let rids: &[&str] = if dice.once_in(2) && formats[0] != OPUS { &["f", "h", "q"] } else { &[] };
                client.mids += 1;
                client.sections.push(sends(&client.mids.to_string(), &cid, formats, rids));
            }
            1 if !client.sections.is_empty() => {
                let place = dice.below(client.sections.len());
                client.sections[place].sends = None;
            }
            2 if !client.sections.is_empty() => drop(client.sections.remove(dice.below(client.sections.len()))),
            3 if dice.once_in(3) => client.fragment += 1_000,
            4 => {
                let rids: &[&str] = [&[][..], &["q", "h", "f"], &["f", "h"]][dice.below(3)];
                let video = client.sections.iter_mut().filter(|section| section.kind == MediaKind::Video);
                if let Some(sends) = video.filter_map(|section| section.sends.as_mut()).next_back() {
                    sends.layers = rids.iter().map(|rid| (*rid).into()).collect();
                }
            }
            _ => {}
        }
        let sections = client.sections.clone();
        let remote_ufrag = client.fragment.to_string().into();
        let local = self.draw_id();
        let ice = IceCredentials { local_ufrag: local.to_string().into(), local_pwd: "p".into(), remote_ufrag };
        let transport_cc = self.dice.once_in(2);
        let transport = TransportOffer { extensions: ExtensionIds::NONE, transport_cc, remb: false, reduced_size_rtcp: true };
        self.say(id, MemberRequest::Offer(Box::new(Offer { id: local as u32, ice, transport, sections })));
    }

    fn add_track(&mut self) {
        let Some(id) = self.somebody() else { return };
        let cid = self.dice.below(30).to_string().into();
        let kind = if self.dice.once_in(9) { None } else { Some([MediaKind::Audio, MediaKind::Video][self.dice.below(2)]) };
        let source = [Source::Camera, Source::Microphone, Source::ScreenShare][self.dice.below(3)];
        let muted = self.dice.once_in(3);
        let name = "n".repeat(if self.dice.once_in(9) { 300 } else { 3 }).into();
        let add = AddTrack { cid, kind, source, muted, name, ..AddTrack::default() };
        self.say(id, MemberRequest::AddTrack(Box::new(add)));
    }

    fn join(&mut self) {
        let id = self.draw_id();
        let transport = TransportId(id);
        let ice = IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() };
        let media = if self.dice.once_in(2) {
            let formats = [VP8];
            let open = OpenTrack {
                track: TrackId(id),
                transport,
                kind: MediaKind::Video,
                ssrc: None,
                rtx_ssrc: None,
                mid: "0".into(),
                layers: Vec::new(),
                order: Vec::new(),
                payload_types: Vec::new(),
                nack: true,
                pli: true,
                fir: false,
            };
            Media::Publish(vec![Publication { open, formats: formats.to_vec() }])
        } else {
            let open = OpenSubscription {
                subscription: SubscriptionId(id),
                transport,
                kind: MediaKind::Video,
                ssrc: 7,
                first_sequence: 0,
                first_timestamp: 0,
                rtx_ssrc: None,
                extensions: ExtensionIds::NONE,
                mid: "0".into(),
            };
            Media::Watch(vec![Section { open, formats: vec![VP8, AV1], publisher: None }])
        };
        let join = Join {
            participant: ParticipantId(id),
            identity: identity(NAMES[self.dice.below(NAMES.len())]),
            hidden: self.dice.once_in(5),
            joined_at_ms: 0,
            resource: id.to_string().into(),
            transport: Opening::WebRtc(OpenTransport {
                transport,
                ice,
                extensions: ExtensionIds::NONE,
                transport_cc: false,
                remb: false,
                reduced_size_rtcp: true,
                rtcp_ssrc: 1,
                cname: "c".into(),
            }),
            media,
        };
        if self.request(Request::Join(Box::new(join))).is_ok() {
            self.resources.push(id.to_string().into());
        }
    }

    fn leave_resource(&mut self) {
        if self.resources.is_empty() {
            return;
        }
        let place = self.dice.below(self.resources.len());
        let resource = self.resources.swap_remove(place);
        // It may have been replaced, or lost.
        let _ = self.request(Request::Leave { resource });
    }

    fn subscribe(&mut self) {
        let Some(id) = self.somebody() else { return };
        let (tracks, subscribe) = (vec![self.some_track(), self.some_track()], self.dice.once_in(2));
        self.say(id, MemberRequest::Subscribe { tracks, subscribe });
    }

    fn settings(&mut self) {
        let Some(id) = self.somebody() else { return };
        let settings = TrackSettings {
            tracks: vec![self.some_track()],
            disabled: self.dice.once_in(3),
            quality: [Quality::Low, Quality::Medium, Quality::High, Quality::Off][self.dice.below(4)],
            width: 0,
            height: [0, 90, 360, 2_000][self.dice.below(4)],
            fps: [0, 5, 12, 60][self.dice.below(4)],
            priority: self.dice.below(300) as u32,
        };
        self.say(id, MemberRequest::TrackSettings(settings));
    }

    fn small_talk(&mut self) {
        let Some(id) = self.somebody() else { return };
        let own: Vec<_> = self.session.participants().filter(|p| p.id() == id).flat_map(|p| p.tracks()).collect();
        let track = if self.dice.once_in(3) { self.some_track() } else { self.dice.pick(&own).unwrap_or(TrackId(1)) };
        let request = match self.dice.below(4) {
            0 => MemberRequest::Mute { track, muted: self.dice.once_in(2) },
            1 => MemberRequest::UpdateTrack(TrackUpdate { track, size: Some((1, 2)), audio_features: Some(vec![1; 99]) }),
            2 => {
                let metadata = "x".repeat(if self.dice.once_in(4) { 70_000 } else { 9 }).into();
                let attributes = BTreeMap::from([("k".into(), if self.dice.once_in(2) { "".into() } else { "v".into() })]);
                let update = MetadataUpdate { request: 5, name: Some("new".into()), metadata: Some(metadata), attributes };
                MemberRequest::UpdateMetadata(Box::new(update))
            }
            _ => MemberRequest::Sync(Box::new(Sync {
                tracks: vec![track],
                subscribe: self.dice.once_in(2),
                disabled: vec![track],
                published: Vec::new(),
                received: Vec::new(),
                fed: vec![("3".into(), track)],
            })),
        };
        self.say(id, request);
    }

    fn permission(&mut self) {
        let Some(id) = self.somebody() else { return };
        let subject = PermissionSubject::Identity(identity(NAMES[self.dice.below(NAMES.len())]));
        let tracks = if self.dice.once_in(2) { Some(vec![self.some_track()]) } else { None };
        let permission = SubscriptionPermission { all: self.dice.once_in(2), participants: vec![(subject, tracks)] };
        self.say(id, MemberRequest::SubscriptionPermission(permission));
    }

    fn end_socket(&mut self) {
        let Some(id) = self.somebody() else { return };
        if self.dice.once_in(3) {
            self.say(id, MemberRequest::Leave);
            assert!(!self.clients[&id].here, "it was told that it is out");
        } else {
            self.clients.get_mut(&id).unwrap().here = false;
            self.say(id, MemberRequest::SocketClosed);
        }
    }

    fn resume(&mut self) {
        let all: Vec<_> = self.clients.keys().copied().collect();
        let Some(id) = self.dice.pick(&all) else { return };
        let identity = identity(if self.dice.once_in(9) { "zoe" } else { self.clients[&id].name });
        let permissions = if self.dice.once_in(9) { self.permissions() } else { stage::everything() };
        let client = self.clients.get_mut(&id).unwrap();
        // It keeps what it knows: who is gone is told.
        let before = client.here;
        client.here = true;
        let old = std::mem::replace(&mut client.new_socket, true);
        if self.come(Request::Resume(Box::new(Resume { participant: id, identity, permissions, now_ms: 0, client: "".into() }))).is_err() {
            let client = self.clients.get_mut(&id).unwrap();
            client.new_socket = old;
            client.here = before;
        }
    }

    /// The reply comes before the first notice.
    fn come(&mut self, request: Request) -> Result<Reply, pop_session::Refusal> {
        self.session.handle_request(self.now, RequestId(0), request);
        let Some(Output::Reply(_, reply)) = self.session.poll() else { panic!("the reply comes first") };
        if reply.is_err() {
            assert!(self.session.poll().is_none(), "a refused request changes nothing");
            return reply;
        }
        self.drain();
        reply
    }

    fn administer(&mut self) {
        let who = identity(NAMES[self.dice.below(NAMES.len())]);
        let track = self.some_track();
        let request = match self.dice.below(12) {
            0 => AdminRequest::List,
            1 => AdminRequest::Remove(who),
            2 | 3 => AdminRequest::Mute { identity: who, track, muted: self.dice.once_in(2) },
            4 | 5 => AdminRequest::Subscribe { identity: who, tracks: vec![track], subscribe: self.dice.once_in(2) },
            6..=8 => {
                let permissions = (!self.dice.once_in(4)).then(|| self.permissions());
                AdminRequest::Update { identity: who, texts: MetadataUpdate::default(), permissions }
            }
            9 | 10 => AdminRequest::UpdateRoom { metadata: "room".into(), now_ms: 1 },
            _ if self.dice.once_in(4) => AdminRequest::Delete,
            _ => AdminRequest::List,
        };
        let _ = self.request(Request::Admin(request));
    }

    fn tap(&mut self) {
        let request = if self.dice.once_in(2) { Request::Tap { tap: 1, kind: None } } else { Request::Untap { tap: 1 } };
        let _ = self.request(request);
    }

    /// Participants of two other nodes, one of whom has a name that is used here too, come, change and go, with their nodes.
    fn record(&mut self) {
        let node = 2 + self.dice.below(2) as u64;
        match self.dice.below(12) {
            0 | 1 if self.away.insert(node) => self.session.handle_node_away(self.now, node),
            2..=5 if self.away.remove(&node) => self.session.handle_node_back(self.now, node),
            6 => {
                self.away.remove(&node);
                self.session.handle_node_restarted(self.now, node);
            }
            _ => self.write(node),
        }
        self.drain();
    }

    fn write(&mut self, node: u64) {
        self.remote_counter += 1;
        let (name, id) = if self.dice.once_in(4) { ("ann", node * 1_000_000) } else { ("far", node * 1_000_000 + 500_000) };
        let mut manifest = Manifest::new(identity(name), Kind::Member, Permissions::PUBLISHER);
        manifest.hidden = self.dice.once_in(4);
        manifest.joined_at_ms = self.dice.below(2 + 2 * self.now.as_millis() as usize) as u64;
        manifest.takers.all = !self.dice.once_in(5);
        for n in 0..self.dice.below(3) as u64 {
            let mut track = RemoteTrack::new(stage::info(TrackId(id + n), MediaKind::Video));
            track.formats = [vec![VP8], vec![VP8, AV1], vec![AV1], Vec::new()][self.dice.below(4)].clone();
            (track.started, track.info.muted, track.order) = (self.dice.once_in(2), self.dice.once_in(3), self.dice.below(9) as u64);
            manifest.tracks.push(track);
        }
        let record = Record {
            key: RemoteKey { node, participant: ParticipantId(id) },
            version: Version { epoch: 0, counter: self.remote_counter - u32::from(self.dice.once_in(4)) },
            manifest: (!self.dice.once_in(4)).then_some(manifest),
        };
        self.session.handle_record(self.now, record);
    }

    fn data(&mut self) {
        let transport = self.some_transport();
        if self.dice.once_in(12) {
            self.session.handle_data_overflow(self.now, transport);
            return self.drain();
        }
        let message = DataMessage {
            reliable: self.dice.once_in(2),
            to: if self.dice.once_in(2) { vec![identity("ann")] } else { Vec::new() },
            sequence: self.dice.below(500) as u32,
            body: vec![0; self.dice.below(65_000)].into(),
        };
        self.event(Event::Data { transport, message: Arc::new(message) });
    }

    fn pass(&mut self) {
        let end = self.now + Duration::from_millis([5, 400, 3_000, 20_000][self.dice.below(4)]);
        let mut turns = 0;
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
            self.drain();
            turns += 1;
            assert!(turns < 2_000, "a deadline comes again and again");
        }
        self.now = end;
    }

    fn lose(&mut self) {
        let transport = self.some_transport();
        if self.dice.once_in(2) {
            if self.worker.transports.contains_key(&transport) {
                self.worker.forget(transport);
            }
            self.event(Event::TransportLost { transport, loss: TransportLoss::ConsentExpired });
        } else {
            self.session.handle_transport_failed(self.now, transport, TransportFailure::ClosedByPeer);
            self.drain();
        }
    }

    fn connect(&mut self) {
        let transport = self.some_transport();
        let remote: SocketAddr = "192.0.2.1:5".parse().unwrap();
        self.event(Event::TransportValidated { transport, remote });
        self.session.handle_transport_connected(self.now, transport, SrtpProfile::AeadAes128Gcm);
        self.drain();
    }

    fn happen(&mut self) {
        let track = self.some_track();
        let packets = self.dice.next() % 10_000;
        let sections: Vec<_> = self.worker.sections.keys().copied().collect();
        let subscription = self.dice.pick(&sections).unwrap_or(SubscriptionId(9));
        let event = match self.dice.below(4) {
            0 => Event::TrackStarted { track },
            1 => Event::TrackStats { track, stats: TrackStats { packets, lost: 3, ..TrackStats::default() } },
            2 => Event::AudioLevel { track, level: self.dice.below(256) as u8, active_percent: self.dice.below(256) as u8 },
            _ => {
                let (congested, fraction_lost) = (self.dice.once_in(2), self.dice.below(256) as u8);
                let stats = SubscriptionStats { congested, fraction_lost, rtt_us: 900_000, ..SubscriptionStats::default() };
                Event::SubscriptionStats { subscription, stats }
            }
        };
        self.event(event);
    }

    /// Clients that do as they are asked are asked for the last time soon.
    fn settle(&mut self) {
        for _ in 0..20 {
            let asked: Vec<_> = self.clients.iter().filter(|(_, c)| c.here && c.asked.is_some()).map(|(id, _)| *id).collect();
            if asked.is_empty() {
                return;
            }
            for id in asked {
                let client = self.clients.get_mut(&id).unwrap();
                let (audio, video) = client.asked.take().unwrap();
                let wanted = std::iter::repeat_n([OPUS], audio as usize).chain(std::iter::repeat_n([VP8], video as usize));
                for formats in wanted.collect::<Vec<_>>() {
                    client.mids += 1;
                    client.sections.push(receives(&client.mids.to_string(), &formats));
                }
                let sections = client.sections.clone();
                let remote_ufrag = client.fragment.to_string().into();
                let ice = IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag };
                let transport =
                    TransportOffer { extensions: ExtensionIds::NONE, transport_cc: false, remb: false, reduced_size_rtcp: true };
                self.say(id, MemberRequest::Offer(Box::new(Offer { id: 1, ice, transport, sections })));
            }
        }
        panic!("clients are asked for ever");
    }

    fn end(&mut self) {
        self.request(Request::Shutdown).unwrap();
        let _ = self.request(Request::Untap { tap: 1 });
        assert!(self.session.is_empty());
        assert!(self.worker.transports.is_empty() && self.worker.tracks.is_empty() && self.worker.sections.is_empty());
        for _ in 0..30 {
            self.now = self.now + Duration::from_secs(10);
            self.session.handle_timeout(self.now);
            self.drain();
        }
        assert_eq!(self.session.poll_timeout(), None, "an empty room has nothing to wait for");
        assert_eq!(self.session.data_kept_len(), 0);
    }
}

impl Client {
    fn learn(&mut self, infos: &[ParticipantInfo]) {
        for info in infos.iter().filter(|info| info.identity.as_str() != self.name) {
            let key = info.identity.to_string();
            if let Some(known) = self.others.get(&key).filter(|known| known.participant == info.participant) {
                assert!(known.version <= info.version, "an older word comes after a newer one");
            }
            if info.state == MemberState::Disconnected {
                self.others.remove(&key);
            } else {
                self.others.insert(key, info.clone());
            }
        }
    }
}

#[test]
fn whatever_is_said_the_books_agree() {
    let mut said = BTreeMap::<String, u64>::new();
    for seed in 0..60 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..800 {
            world.step();
        }
        world.settle();
        world.end();
        for (name, times) in world.said {
            *said.entry(name).or_default() += times;
        }
    }
    println!("{said:?}");
    for name in [
        "Feed",
        "FeedAbroad",
        "CloseSubscription",
        "CloseTrack",
        "SendData",
        "Wish",
        "Speakers",
        "Quality",
        "StreamStates",
        "SubscribedQuality",
    ] {
        assert!(said.get(name).is_some_and(|times| *times > 20), "the walk must lead to {name}: {said:?}");
    }
}
