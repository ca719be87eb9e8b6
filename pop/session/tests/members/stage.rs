//! A room with members in fake time, and what each of them was told.

use std::collections::BTreeMap;
use std::time::Duration;

use pop_proto::control::{
    Command, Event, ExtensionIds, IceCredentials, MediaKind, OpenSubscription, OpenTrack, OpenTransport, SrtpProfile,
};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};
use pop_session::member::{
    AddTrack, Answer, Enter, MemberRequest, Notice, Offer, OfferedSection, ParticipantInfo, Permissions, ReceivingSection, Resume,
    SendingSection, Source, TrackInfo, TransportOffer,
};
use pop_session::presence::LocalRecord;
use pop_session::session::{Abroad, Action, Audit};
use pop_session::{
    CloseReason, Format, Join, Limits, Media, Opening, Output, PayloadFormat, Publication, Refusal, Reply, Request, RequestId, Section,
    Session,
};

pub(crate) const OPUS: PayloadFormat = PayloadFormat { number: 111, format: Format::Opus, rtx: None };
pub(crate) const AV1: PayloadFormat = PayloadFormat { number: 45, format: Format::Av1 { profile: 0 }, rtx: None };
pub(crate) const VP8: PayloadFormat = PayloadFormat { number: 96, format: Format::Vp8, rtx: Some(97) };

/// What a call led to, and all calls since it was looked at.
#[derive(Default)]
pub(crate) struct Heard {
    pub commands: Vec<Command>,
    pub replies: Vec<Result<Reply, Refusal>>,
    pub closed: Vec<(TransportId, CloseReason)>,
    pub actions: Vec<(String, Action)>,
    pub records: Vec<LocalRecord>,
    pub abroad: Vec<(Option<u64>, Abroad)>,
    pub notices: BTreeMap<ParticipantId, Vec<Notice>>,
}

/// The room.
pub(crate) struct Stage {
    pub session: Session,
    pub now: Time,
    pub heard: Heard,
    pub members: BTreeMap<&'static str, ParticipantId>,
    next: u64,
}

pub(crate) fn everything() -> Permissions {
    Permissions {
        subscribe: true,
        publish: true,
        publish_data: true,
        sources: Vec::new(),
        hidden: false,
        recorder: false,
        update_metadata: true,
    }
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::new(name).unwrap()
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage::with(Limits::default(), 1)
    }

    pub(crate) fn with(limits: Limits, seed: u64) -> Stage {
        let session = Session::new(SessionId::new("stage").unwrap(), limits, seed);
        Stage { session, now: Time::from_millis(1_000), heard: Heard::default(), members: BTreeMap::new(), next: 0 }
    }

    /// A room on one of several nodes: ids of its own, and the same clock.
    pub(crate) fn on_node(node: u64) -> Stage {
        let stage = Stage::with(Limits::default(), node);
        Stage { session: stage.session.on_node(node), next: node << 32, ..stage }
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Reply(_, reply) => self.heard.replies.push(reply),
                Output::Command(command) => self.heard.commands.push(command),
                Output::Closed { transport, reason } => self.heard.closed.push((transport, reason)),
                Output::Audit(Audit { identity, action, .. }) => self.heard.actions.push((identity.to_string(), action)),
                Output::Put(record) => self.heard.records.push(*record),
                Output::Abroad { node, told } => self.heard.abroad.push((node, told)),
                Output::Notice(to, notice) => self.heard.notices.entry(to).or_default().push(notice),
            }
        }
    }

    pub(crate) fn request(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.session.handle_request(self.now, RequestId(1), request);
        self.drain();
        self.heard.replies.pop().expect("each request is answered")
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.session.handle_event(self.now, event);
        self.drain();
    }

    /// Time goes on, deadline by deadline.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.now.as_millis()
    }

    pub(crate) fn enter(&mut self, name: &'static str) -> ParticipantId {
        self.enter_as(name, everything(), true)
    }

    pub(crate) fn enter_as(&mut self, name: &'static str, permissions: Permissions, auto_subscribe: bool) -> ParticipantId {
        self.enter_with(name, |enter| (enter.permissions, enter.auto_subscribe) = (permissions, auto_subscribe))
    }

    pub(crate) fn enter_with(&mut self, name: &'static str, change: impl FnOnce(&mut Enter)) -> ParticipantId {
        assert_eq!(self.try_enter(name, change), Ok(Reply::Joined));
        self.members[name]
    }

    pub(crate) fn try_enter(&mut self, name: &'static str, change: impl FnOnce(&mut Enter)) -> Result<Reply, Refusal> {
        self.next += 1;
        let participant = ParticipantId(self.next);
        let mut enter = Enter {
            participant,
            identity: identity(name),
            name: name.into(),
            metadata: "".into(),
            attributes: BTreeMap::new(),
            permissions: everything(),
            auto_subscribe: true,
            adaptive_stream: false,
            joined_at_ms: self.wall_ms(),
            client: "test".into(),
        };
        change(&mut enter);
        let reply = self.request(Request::Enter(Box::new(enter)));
        if reply.is_ok() {
            self.members.insert(name, participant);
        }
        reply
    }

    /// A client of WHIP with one video track.
    pub(crate) fn publish(&mut self, name: &str) -> TrackId {
        self.next += 1;
        let open = OpenTrack {
            track: TrackId(self.next),
            transport: TransportId(self.next),
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
        let media = Media::Publish(vec![Publication { open, formats: vec![VP8] }]);
        self.join(name, media);
        TrackId(self.next)
    }

    /// A client of WHEP with one video section.
    pub(crate) fn watch(&mut self) {
        self.next += 1;
        let open = OpenSubscription {
            subscription: SubscriptionId(self.next),
            transport: TransportId(self.next),
            kind: MediaKind::Video,
            ssrc: 7,
            first_sequence: 0,
            first_timestamp: 0,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE,
            mid: "0".into(),
        };
        self.join("viewer", Media::Watch(vec![Section { open, formats: vec![VP8], publisher: None }]));
    }

    /// Of the last one.
    pub(crate) fn viewer_section(&self) -> SubscriptionId {
        SubscriptionId(self.next)
    }

    fn join(&mut self, name: &str, media: Media) {
        let transport = TransportId(self.next);
        let ice = IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() };
        let join = Join {
            participant: ParticipantId(self.next),
            identity: identity(name),
            hidden: false,
            joined_at_ms: self.wall_ms(),
            resource: self.next.to_string().into(),
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
        assert_eq!(self.request(Request::Join(Box::new(join))), Ok(Reply::Joined));
    }

    pub(crate) fn resume(&mut self, name: &'static str) -> Result<Reply, Refusal> {
        self.resume_as(name, everything())
    }

    pub(crate) fn resume_as(&mut self, name: &'static str, permissions: Permissions) -> Result<Reply, Refusal> {
        self.resume_at(name, permissions, 0)
    }

    /// `now_ms`: the node's wall clock.
    pub(crate) fn resume_at(&mut self, name: &'static str, permissions: Permissions, now_ms: u64) -> Result<Reply, Refusal> {
        let participant = self.members[name];
        self.request(Request::Resume(Box::new(Resume { participant, identity: identity(name), permissions, now_ms, client: "".into() })))
    }

    pub(crate) fn say(&mut self, name: &str, request: MemberRequest) {
        self.session.handle_member(self.now, self.members[name], request);
        self.drain();
    }

    pub(crate) fn add_track(&mut self, name: &str, add: AddTrack) -> Option<TrackId> {
        let cid = add.cid.clone();
        self.say(name, MemberRequest::AddTrack(Box::new(add)));
        self.told(name).into_iter().find_map(|notice| match notice {
            Notice::TrackPublished { cid: published, track } if published == cid => Some(track.track),
            _ => None,
        })
    }

    /// Makes an offer and gives its answer.
    pub(crate) fn offer(&mut self, name: &str, sections: Vec<OfferedSection>) -> Answer {
        self.offer_with(name, "remote", sections).expect("it is answered")
    }

    pub(crate) fn offer_with(&mut self, name: &str, ufrag: &str, sections: Vec<OfferedSection>) -> Option<Answer> {
        self.next += 1;
        let id = self.next as u32;
        let ice = IceCredentials { local_ufrag: format!("local{id}").into(), local_pwd: "pwd".into(), remote_ufrag: ufrag.into() };
        let transport = TransportOffer { extensions: ExtensionIds::NONE, transport_cc: true, remb: false, reduced_size_rtcp: true };
        self.say(name, MemberRequest::Offer(Box::new(Offer { id, ice, transport, sections })));
        let notices = self.heard.notices.get_mut(&self.members[name])?;
        let place = notices.iter().position(|notice| matches!(notice, Notice::Answer(answer) if answer.id == id))?;
        let Notice::Answer(answer) = notices.remove(place) else { unreachable!() };
        Some(*answer)
    }

    /// The present transport of a member gets its keys.
    pub(crate) fn connect(&mut self, name: &str) {
        let transport = self.transport(name);
        self.session.handle_transport_connected(self.now, transport, SrtpProfile::AeadAes128Gcm);
        self.drain();
    }

    /// The last transport that was opened by a member's offer.
    pub(crate) fn transport(&self, name: &str) -> TransportId {
        let joined = |(who, action): &(String, Action)| match action {
            Action::Joined { transport } if who == name => Some(*transport),
            _ => None,
        };
        self.heard.actions.iter().rev().find_map(joined).expect("it has made an offer")
    }

    /// What a member was told since it was last looked at.
    pub(crate) fn told(&mut self, name: &str) -> Vec<Notice> {
        self.heard.notices.remove(&self.members[name]).unwrap_or_default()
    }

    pub(crate) fn forget(&mut self) {
        self.heard.commands.clear();
        self.heard.notices.clear();
    }

    /// `subscription <- track` of each Forward since it was last looked at.
    pub(crate) fn forwards(&mut self) -> Vec<(SubscriptionId, Option<TrackId>)> {
        let commands = std::mem::take(&mut self.heard.commands);
        let forward = |command| match command {
            Command::Forward { subscription, track, .. } => Some((subscription, track)),
            _ => None,
        };
        commands.into_iter().filter_map(forward).collect()
    }
}

pub(crate) fn camera(cid: &str) -> AddTrack {
    AddTrack { cid: cid.into(), kind: Some(MediaKind::Video), source: Source::Camera, name: "cam".into(), ..AddTrack::default() }
}

pub(crate) fn microphone(cid: &str) -> AddTrack {
    AddTrack { cid: cid.into(), kind: Some(MediaKind::Audio), source: Source::Microphone, ..AddTrack::default() }
}

pub(crate) fn sends(mid: &str, cid: &str, formats: &[PayloadFormat], rids: &[&str]) -> OfferedSection {
    let sends = SendingSection {
        cid: cid.into(),
        formats: formats.to_vec(),
        ssrc: None,
        rtx_ssrc: None,
        layers: rids.iter().map(|rid| (*rid).into()).collect(),
        nack: true,
        pli: true,
        fir: false,
    };
    OfferedSection { mid: mid.into(), kind: formats[0].format.codec().kind(), sends: Some(sends), receives: None }
}

pub(crate) fn receives(mid: &str, formats: &[PayloadFormat]) -> OfferedSection {
    let receives = ReceivingSection { formats: formats.to_vec(), extensions: ExtensionIds::NONE, rtx: true };
    OfferedSection { mid: mid.into(), kind: formats[0].format.codec().kind(), sends: None, receives: Some(receives) }
}

/// What the clients of the room protocol offer first: sections for what others publish.
pub(crate) fn first_offer() -> Vec<OfferedSection> {
    let audio = (0..3).map(|n| receives(&n.to_string(), &[OPUS]));
    let video = (3..6).map(|n| receives(&n.to_string(), &[VP8]));
    audio.chain(video).collect()
}

/// The participants of the last update.
pub(crate) fn participants(notices: &[Notice]) -> Vec<ParticipantInfo> {
    let last = notices.iter().rev().find_map(|notice| match notice {
        Notice::Participants(infos) => Some(infos.to_vec()),
        _ => None,
    });
    last.unwrap_or_default()
}

/// Sections that were asked for.
pub(crate) fn asked(notices: &[Notice]) -> Vec<(u32, u32)> {
    let asked = |notice: &Notice| match notice {
        Notice::SectionsNeeded { audio, video } => Some((*audio, *video)),
        _ => None,
    };
    notices.iter().filter_map(asked).collect()
}

/// A track as others know it.
pub(crate) fn info(track: TrackId, kind: MediaKind) -> TrackInfo {
    TrackInfo {
        track,
        kind,
        source: Source::Camera,
        name: "".into(),
        muted: false,
        width: 0,
        height: 0,
        layers: Vec::new(),
        simulcast: false,
        mime: "video/VP8".into(),
        mid: "0".into(),
        stream: "".into(),
        encryption: 0,
        audio_features: Vec::new(),
        disable_red: false,
        stereo: false,
        disable_dtx: false,
    }
}
