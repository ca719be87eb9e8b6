//! What a room does, in fake time: who feeds whom, who replaces whom, and what the worker and the owner are told.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use pop_proto::control::{
    ANY_PAYLOAD_TYPE, Codec, Command, Datagram, Event, ExtensionIds, IceCredentials, MediaKind, Numbering, OpenRtp, OpenSubscription,
    OpenTrack, OpenTransport, RtcpVia, RtpPeer, RtpPeerStats, SrtpProfile, TrackStats, TransportLoss,
};
use pop_schemas::{Identity, ParticipantId, SessionId, SubscriptionId, Time, TrackId, TransportId};
use pop_session::member::Permissions;
use pop_session::presence::{Applied, Manifest, Record, RemoteKey, Version};
use pop_session::session::CONNECT_TIMEOUT;
use pop_session::{
    Action, CloseReason, Format, H264Profile, IceCondition, IceUpdate, Join, Kind, Limits, Media, Opening, Output, PayloadFormat,
    Publication, Refusal, Reply, Request, RequestId, Section, Session, TransportFailure,
};

const OPUS: PayloadFormat = PayloadFormat { number: 111, format: Format::Opus, rtx: None };
const VP8: PayloadFormat = PayloadFormat { number: 96, format: Format::Vp8, rtx: None };
const AV1: PayloadFormat = PayloadFormat { number: 45, format: Format::Av1 { profile: 0 }, rtx: None };
const H264: PayloadFormat =
    PayloadFormat { number: 102, format: Format::H264 { profile: H264Profile::ConstrainedBaseline, packetization_mode: 1 }, rtx: None };

/// A room with the numbers that an owner would draw.
struct Room {
    session: Session,
    now: Time,
    next: u64,
}

/// What a call led to.
#[derive(Default)]
struct Outcome {
    commands: Vec<Command>,
    replies: Vec<Result<Reply, Refusal>>,
    closed: Vec<(TransportId, CloseReason)>,
    actions: Vec<(String, Action)>,
}

impl Outcome {
    /// `subscription <- track` of each Forward, in order; the payload types as `from>to`.
    fn forwards(&self) -> Vec<(u64, Option<u64>, String)> {
        let forward = |command: &Command| match command {
            Command::Forward { subscription, track, payload_types } => {
                let map: Vec<_> = payload_types.iter().map(|m| format!("{}>{}", m.from, m.to)).collect();
                Some((subscription.0, track.map(|t| t.0), map.join(" ")))
            }
            _ => None,
        };
        self.commands.iter().filter_map(forward).collect()
    }

    fn names(&self) -> Vec<&'static str> {
        let name = |command: &Command| match command {
            Command::OpenTransport(_) => "open transport",
            Command::OpenRtp(_) => "open rtp",
            Command::UpdateTransport { .. } => "update transport",
            Command::CloseTransport { .. } => "close transport",
            Command::RestartIce { .. } => "restart ice",
            Command::OpenTrack(_) => "open track",
            Command::BindLayers { .. } => "bind layers",
            Command::CloseTrack { .. } => "close track",
            Command::OpenSubscription(_) => "open subscription",
            Command::CloseSubscription { .. } => "close subscription",
            Command::Forward { .. } => "forward",
            Command::Tap { .. } => "tap",
            Command::Spoke { .. } => "spoke",
            Command::SendDtls { .. } | Command::InstallKeys { .. } => "dtls",
            Command::ProbeRates(_) => "probe rates",
            Command::Wish { .. } => "wish",
            Command::SendData { .. } => "send data",
            Command::OpenMirror { .. } | Command::Export { .. } => unreachable!("a session knows no workers"),
            Command::OpenLink(_)
            | Command::RekeyLink { .. }
            | Command::RouteLink { .. }
            | Command::CloseLink { .. }
            | Command::OpenRemoteTrack { .. }
            | Command::ExportToLink { .. } => unreachable!("a session knows no links"),
        };
        self.commands.iter().map(name).collect()
    }
}

impl Room {
    fn new() -> Room {
        Room::with(Limits::default())
    }

    fn with(limits: Limits) -> Room {
        Room { session: Session::new(SessionId::new("stage").unwrap(), limits, 1), now: Time::from_millis(1_000), next: 0 }
    }

    fn drain(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(output) = self.session.poll() {
            match output {
                Output::Reply(_, reply) => outcome.replies.push(reply),
                Output::Command(command) => outcome.commands.push(command),
                Output::Closed { transport, reason } => outcome.closed.push((transport, reason)),
                Output::Audit(audit) => outcome.actions.push((audit.identity.to_string(), audit.action)),
                Output::Put(_) | Output::Abroad { .. } => {}
                Output::Notice(to, notice) => panic!("{to} is no member: {notice:?}"),
            }
        }
        outcome
    }

    fn request(&mut self, request: Request) -> Outcome {
        self.session.handle_request(self.now, RequestId(1), request);
        self.drain()
    }

    fn event(&mut self, event: Event) -> Outcome {
        self.session.handle_event(self.now, event);
        self.drain()
    }

    /// The participant, its transport and its resource all carry the number that is returned.
    fn join(&mut self, identity: &str, media: Media) -> (u64, Outcome) {
        self.next += 1;
        let join = join(self.next, identity, media);
        let outcome = self.request(Request::Join(Box::new(join)));
        (self.next, outcome)
    }

    /// Tracks are numbered `100 * participant + n`.
    fn publish(&mut self, identity: &str, sections: &[&[PayloadFormat]]) -> (u64, Outcome) {
        let id = self.next + 1;
        let media = sections.iter().enumerate().map(|(n, formats)| publication(id, 100 * id + n as u64, formats)).collect();
        self.join(identity, Media::Publish(media))
    }

    /// Subscriptions are numbered `100 * participant + n`.
    fn watch(&mut self, sections: &[&[PayloadFormat]]) -> (u64, Outcome) {
        let id = self.next + 1;
        let media = sections.iter().enumerate().map(|(n, formats)| section(id, 100 * id + n as u64, formats)).collect();
        self.join("viewer", Media::Watch(media))
    }

    fn leave(&mut self, id: u64) -> Outcome {
        self.request(Request::Leave { resource: id.to_string().into() })
    }

    fn source(&self, subscription: u64) -> Option<String> {
        let view = self.session.describe(self.now);
        let name = SubscriptionId(subscription).to_string();
        view.participants.into_iter().flat_map(|p| p.subscriptions).find(|s| s.id == name).expect("it is there").source
    }
}

fn join(id: u64, identity: &str, media: Media) -> Join {
    Join {
        participant: ParticipantId(id),
        identity: Identity::new(identity).unwrap(),
        hidden: false,
        joined_at_ms: 0,
        resource: id.to_string().into(),
        transport: Opening::WebRtc(OpenTransport {
            transport: TransportId(id),
            ice: IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() },
            extensions: ExtensionIds::NONE,
            transport_cc: false,
            remb: false,
            reduced_size_rtcp: true,
            rtcp_ssrc: 1,
            cname: "c".into(),
        }),
        media,
    }
}

fn publication(transport: u64, track: u64, formats: &[PayloadFormat]) -> Publication {
    let open = OpenTrack {
        track: TrackId(track),
        transport: TransportId(transport),
        kind: formats[0].format.codec().kind(),
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
    Publication { open, formats: formats.to_vec() }
}

fn section(transport: u64, subscription: u64, formats: &[PayloadFormat]) -> Section {
    let open = OpenSubscription {
        subscription: SubscriptionId(subscription),
        transport: TransportId(transport),
        kind: formats[0].format.codec().kind(),
        ssrc: subscription as u32,
        first_sequence: 0,
        first_timestamp: 0,
        rtx_ssrc: None,
        extensions: ExtensionIds::NONE,
        mid: "0".into(),
    };
    Section { open, formats: formats.to_vec(), publisher: None }
}

const SINK: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 5_004));

fn route(transport: u64, peer: RtpPeer) -> OpenRtp {
    OpenRtp {
        transport: TransportId(transport),
        socket: 1,
        rtcp: RtcpVia::Off,
        peer,
        keys: None,
        numbering: Numbering::Timestamps,
        rtcp_ssrc: 1,
        cname: "c".into(),
    }
}

fn track(id: u64) -> Option<String> {
    Some(TrackId(id).to_string())
}

#[test]
fn a_viewer_that_came_first_is_fed_when_the_publisher_comes() {
    let mut room = Room::new();
    let (viewer, came) = room.watch(&[&[OPUS], &[VP8, H264]]);
    assert_eq!(came.names(), ["open transport", "open subscription", "open subscription"]);
    assert_eq!(came.replies, [Ok(Reply::Joined)]);
    let (publisher, came) = room.publish("ann", &[&[OPUS], &[H264]]);
    assert_eq!(came.names(), ["open transport", "open track", "open track", "forward", "forward"]);
    let (audio, video) = (100 * viewer, 100 * viewer + 1);
    assert_eq!(came.forwards(), [(audio, Some(100 * publisher), "111>111".into()), (video, Some(100 * publisher + 1), "102>102".into())]);
}

#[test]
fn the_worker_learns_the_payload_types_of_the_formats() {
    let mut room = Room::new();
    let (_, came) = room.publish("ann", &[&[H264, VP8]]);
    let open = came.commands.iter().find_map(|c| if let Command::OpenTrack(open) = c { Some(open) } else { None }).unwrap();
    assert_eq!(open.payload_types, [H264.payload_type(), VP8.payload_type()]);
}

#[test]
fn payload_types_are_mapped_between_two_numberings() {
    let mut room = Room::new();
    room.publish("ann", &[&[VP8, H264]]);
    let (_, came) = room.watch(&[&[PayloadFormat { number: 120, ..H264 }, PayloadFormat { number: 102, ..VP8 }]]);
    assert_eq!(came.forwards()[0].2, "96>102 102>120");
}

#[test]
fn the_oldest_publisher_that_fits_feeds_and_when_it_leaves_the_next_takes_over() {
    let mut room = Room::new();
    let (first, _) = room.publish("ann", &[&[VP8]]);
    let (second, _) = room.publish("bob", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    assert_eq!(room.source(100 * viewer), track(100 * first));
    let left = room.leave(first);
    assert_eq!(left.names(), ["close transport", "forward"]);
    assert_eq!(left.forwards(), [(100 * viewer, Some(100 * second), "96>96".into())]);
    assert_eq!(left.closed, [(TransportId(first), CloseReason::Left)]);
    let left = room.leave(second);
    assert_eq!(left.forwards(), [(100 * viewer, None, String::new())]);
}

#[test]
fn a_publisher_that_the_viewer_cannot_decode_is_passed_over() {
    let mut room = Room::new();
    room.publish("ann", &[&[AV1]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    assert_eq!(room.source(100 * viewer), None);
    let (second, came) = room.publish("bob", &[&[VP8]]);
    assert_eq!(came.forwards(), [(100 * viewer, Some(100 * second), "96>96".into())]);
}

#[test]
fn a_publisher_that_now_sends_another_codec_makes_room_for_one_that_fits() {
    let mut room = Room::new();
    let (first, _) = room.publish("ann", &[&[VP8, AV1]]);
    let (second, _) = room.publish("bob", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    for id in [first, second] {
        room.event(Event::TrackStarted { track: TrackId(100 * id) });
    }
    let stats = TrackStats { codec: Some(Codec::Vp8), ..TrackStats::default() };
    assert!(room.event(Event::TrackStats { track: TrackId(100 * first), stats }).forwards().is_empty());
    let stats = TrackStats { codec: Some(Codec::Av1), ..stats };
    let changed = room.event(Event::TrackStats { track: TrackId(100 * first), stats });
    assert_eq!(changed.forwards(), [(100 * viewer, Some(100 * second), "96>96".into())]);
}

#[test]
fn a_publisher_that_never_sends_does_not_keep_viewers_from_one_that_does() {
    let mut room = Room::new();
    let (first, _) = room.publish("ann", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    let (second, _) = room.publish("bob", &[&[VP8]]);
    assert_eq!(room.source(100 * viewer), track(100 * first), "not before it sends");
    let started = room.event(Event::TrackStarted { track: TrackId(100 * second) });
    assert_eq!(started.forwards(), [(100 * viewer, Some(100 * second), "96>96".into())]);
    // And no way back: both work now.
    assert!(room.event(Event::TrackStarted { track: TrackId(100 * first) }).forwards().is_empty());
}

#[test]
fn a_restarted_publisher_replaces_its_ghost_and_viewers_go_on() {
    let mut room = Room::new();
    let (ghost, _) = room.publish("ann", &[&[OPUS], &[VP8]]);
    let (other, _) = room.publish("bob", &[&[OPUS], &[VP8]]);
    for track in [100 * ghost, 100 * ghost + 1, 100 * other, 100 * other + 1] {
        room.event(Event::TrackStarted { track: TrackId(track) });
    }
    let (viewer, _) = room.watch(&[&[OPUS], &[VP8]]);
    let (again, came) = room.publish("ann", &[&[OPUS], &[VP8]]);
    // The new source is there before the old one goes, so that the worker can continue sequence and timestamp.
    assert_eq!(came.names(), ["open transport", "open track", "forward", "open track", "forward", "close transport"]);
    assert_eq!(
        came.forwards(),
        [(100 * viewer, Some(100 * again), "111>111".into()), (100 * viewer + 1, Some(100 * again + 1), "96>96".into())]
    );
    assert_eq!(came.closed, [(TransportId(ghost), CloseReason::Replaced)]);
    // The worker's late word about the ghost changes nothing.
    let late = room.event(Event::TransportLost { transport: TransportId(ghost), loss: TransportLoss::ConsentExpired });
    assert!(late.commands.is_empty() && late.closed.is_empty());
    assert_eq!(room.session.unknown_events(), 1);
    // It kept its place: a viewer that comes now gets it, not bob.
    let (late_viewer, _) = room.watch(&[&[VP8]]);
    assert_eq!(room.source(100 * late_viewer), track(100 * again + 1));
}

#[test]
fn a_restart_with_a_codec_that_a_viewer_cannot_decode_gives_it_another_source() {
    let mut room = Room::new();
    room.publish("ann", &[&[VP8]]);
    let (other, _) = room.publish("bob", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    room.publish("ann", &[&[AV1]]);
    assert_eq!(room.source(100 * viewer), track(100 * other));
}

#[test]
fn viewers_with_one_identity_do_not_replace_each_other() {
    let mut room = Room::new();
    let (_, first) = room.watch(&[&[VP8]]);
    let (_, second) = room.watch(&[&[VP8]]);
    assert!(first.closed.is_empty() && second.closed.is_empty());
    let (publisher, came) = room.publish("viewer", &[&[VP8]]);
    assert!(came.closed.is_empty(), "who publishes may watch under the same name");
    assert_eq!(came.forwards().iter().map(|f| f.1).collect::<Vec<_>>(), [Some(100 * publisher); 2]);
}

#[test]
fn a_full_room_refuses_and_changes_nothing() {
    let mut room = Room::with(Limits { participants_max: 2, tracks_max: 1, ..Limits::default() });
    let (_, too_many) = room.publish("ann", &[&[OPUS], &[VP8]]);
    assert_eq!(too_many.replies, [Err(Refusal::TooManyTracks(1))]);
    assert!(too_many.commands.is_empty() && room.session.is_empty());
    room.publish("ann", &[&[VP8]]);
    room.watch(&[&[VP8]]);
    let (_, refused) = room.watch(&[&[VP8]]);
    assert_eq!(refused.replies, [Err(Refusal::Full(2))]);
    assert!(refused.commands.is_empty() && refused.actions.is_empty());
    // A restart takes its own place, so it fits.
    let (_, again) = room.publish("ann", &[&[VP8]]);
    assert_eq!(again.replies, [Ok(Reply::Joined)]);
}

#[test]
fn an_id_or_resource_in_use_is_refused() {
    let mut room = Room::new();
    room.publish("ann", &[&[VP8]]);
    let media = |track| Media::Publish(vec![publication(9, track, &[VP8])]);
    for (name, join) in [
        ("participant", Join { participant: ParticipantId(1), ..join(9, "bob", media(900)) }),
        ("resource", Join { resource: "1".into(), ..join(9, "bob", media(900)) }),
        ("transport", {
            let mut j = join(9, "bob", media(900));
            j.transport = Opening::Rtp(route(1, RtpPeer::Fixed(SINK)));
            j
        }),
        ("track", join(9, "bob", media(100))),
        ("track twice", join(9, "bob", Media::Publish(vec![publication(9, 900, &[VP8]), publication(9, 900, &[VP8])]))),
    ] {
        let outcome = room.request(Request::Join(Box::new(join)));
        assert_eq!(outcome.replies, [Err(Refusal::Duplicate)], "{name}");
        assert!(outcome.commands.is_empty(), "{name}");
    }
}

#[test]
fn a_viewer_has_one_section_of_each_kind() {
    let mut room = Room::new();
    assert_eq!(room.watch(&[&[VP8], &[AV1]]).1.replies, [Err(Refusal::TooManySections)]);
    assert_eq!(room.watch(&[]).1.replies, [Err(Refusal::NoMedia)]);
    assert_eq!(room.publish("ann", &[]).1.replies, [Err(Refusal::NoMedia)]);
}

#[test]
fn leaving_twice_is_an_unknown_resource() {
    let mut room = Room::new();
    let (id, _) = room.watch(&[&[VP8]]);
    room.now = room.now + Duration::from_secs(3);
    let left = room.leave(id);
    assert_eq!(left.replies, [Ok(Reply::Left)]);
    assert_eq!(left.actions, [("viewer".into(), Action::Left { reason: CloseReason::Left, stayed: Duration::from_secs(3) })]);
    assert_eq!(room.leave(id).replies, [Err(Refusal::UnknownResource)]);
    assert!(room.session.is_empty());
    assert_eq!(room.session.poll_timeout(), None);
}

#[test]
fn a_lost_transport_takes_its_participant_and_is_not_closed_again() {
    let mut room = Room::new();
    let (publisher, _) = room.publish("ann", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    let lost = room.event(Event::TransportLost { transport: TransportId(publisher), loss: TransportLoss::ConsentExpired });
    assert_eq!(lost.names(), ["forward"]);
    assert_eq!(lost.closed, [(TransportId(publisher), CloseReason::Lost(TransportLoss::ConsentExpired))]);
    room.session.handle_transport_failed(room.now, TransportId(viewer), TransportFailure::ClosedByPeer);
    let failed = room.drain();
    assert_eq!(failed.names(), ["close transport"]);
    assert_eq!(failed.closed, [(TransportId(viewer), CloseReason::Failed(TransportFailure::ClosedByPeer))]);
    assert!(room.session.is_empty());
}

#[test]
fn who_does_not_connect_in_time_is_taken_out_and_who_does_stays() {
    let mut room = Room::new();
    let start = room.now;
    let (quick, _) = room.watch(&[&[VP8]]);
    room.now = start + Duration::from_secs(1);
    let (slow, _) = room.watch(&[&[VP8]]);
    assert_eq!(room.session.poll_timeout(), Some(start + CONNECT_TIMEOUT));
    room.event(Event::TransportValidated { transport: TransportId(quick), remote: "192.0.2.7:5000".parse().unwrap() });
    room.session.handle_transport_connected(room.now, TransportId(quick), SrtpProfile::AeadAes128Gcm);
    let Action::Connected { address, after, .. } = room.drain().actions[0].1 else { panic!("connected") };
    assert_eq!((address, after), (Some("192.0.2.7:5000".parse().unwrap()), Duration::from_secs(1)));
    let deadline = start + Duration::from_secs(1) + CONNECT_TIMEOUT;
    assert_eq!(room.session.poll_timeout(), Some(deadline));
    room.session.handle_timeout(deadline - Duration::from_millis(1));
    assert!(room.drain().closed.is_empty());
    room.session.handle_timeout(deadline);
    assert_eq!(room.drain().closed, [(TransportId(slow), CloseReason::ConnectTimeout)]);
    assert_eq!(room.session.poll_timeout(), None);
    assert!(!room.session.is_empty());
}

#[test]
fn a_capture_gets_present_and_future_tracks_of_its_kind() {
    let mut room = Room::new();
    room.publish("ann", &[&[OPUS], &[VP8]]);
    let tapped = room.request(Request::Tap { tap: 7, kind: Some(MediaKind::Video) });
    let Ok(Reply::Tapped { tracks }) = &tapped.replies[0] else { panic!("tapped") };
    assert_eq!(tracks.iter().map(|t| (t.track, t.kind)).collect::<Vec<_>>(), [(TrackId(101), MediaKind::Video)]);
    assert_eq!(tapped.names(), ["tap"]);
    let (_, came) = room.publish("bob", &[&[OPUS], &[VP8]]);
    assert_eq!(came.names(), ["open transport", "open track", "open track", "tap"]);
    // A track has one tap: all media cannot be captured while video is.
    assert_eq!(room.request(Request::Tap { tap: 8, kind: None }).replies, [Err(Refusal::TapBusy)]);
    assert!(room.request(Request::Tap { tap: 8, kind: Some(MediaKind::Audio) }).replies[0].is_ok());
    assert_eq!(room.session.describe(room.now).captured, ["audio", "video"]);
    let ended = room.request(Request::Untap { tap: 7 });
    assert_eq!((ended.names().as_slice(), ended.replies.as_slice()), (["tap"; 2].as_slice(), [Ok(Reply::Untapped)].as_slice()));
    assert_eq!(room.request(Request::Untap { tap: 7 }).replies, [Err(Refusal::UnknownTap)]);
}

#[test]
fn a_capture_alone_keeps_a_room() {
    let mut room = Room::new();
    assert!(room.session.is_empty());
    room.request(Request::Tap { tap: 1, kind: None });
    assert!(!room.session.is_empty());
    room.request(Request::Untap { tap: 1 });
    assert!(room.session.is_empty());
}

#[test]
fn events_of_unknown_ids_are_counted_and_change_nothing() {
    let mut room = Room::new();
    room.publish("ann", &[&[VP8]]);
    let before = room.session.describe(room.now);
    let events = [
        Event::TransportValidated { transport: TransportId(99), remote: "192.0.2.1:1".parse().unwrap() },
        Event::TransportLost { transport: TransportId(99), loss: TransportLoss::NeverConnected },
        Event::TrackStarted { track: TrackId(99) },
        Event::TrackStats { track: TrackId(99), stats: TrackStats::default() },
        Event::SubscriptionStats { subscription: SubscriptionId(99), stats: Default::default() },
        Event::Dtls { transport: TransportId(1), datagram: Datagram::new(&[22]).unwrap() },
    ];
    let count = events.len() as u64;
    for event in events {
        let outcome = room.event(event);
        assert!(outcome.commands.is_empty() && outcome.actions.is_empty() && outcome.closed.is_empty());
    }
    room.session.handle_transport_connected(room.now, TransportId(99), SrtpProfile::AeadAes128Gcm);
    room.session.handle_transport_failed(room.now, TransportId(99), TransportFailure::Handshake);
    assert_eq!(room.session.unknown_events(), count + 2);
    assert_eq!(room.session.describe(room.now), before);
}

#[test]
fn a_track_shows_its_layers_and_the_one_that_viewers_get() {
    let mut room = Room::new();
    let mut of_three = publication(7, 70, &[VP8]);
    of_three.open.layers = ["q", "h", "f"].map(Into::into).to_vec();
    room.request(Request::Join(Box::new(join(7, "camera", Media::Publish(vec![of_three])))));
    let layers = |room: &Room| {
        let view = serde_json::to_value(room.session.describe(room.now)).unwrap();
        let layers = view["participants"][0]["tracks"][0]["layers"].as_array().unwrap().clone();
        layers.iter().map(|layer| (layer["rid"].as_str().unwrap().to_owned(), layer["forwarded"] == true)).collect::<Vec<_>>()
    };
    let shown = |forwarded: &str| ["q", "h", "f"].map(|rid| (rid.to_owned(), rid == forwarded)).to_vec();
    assert_eq!(layers(&room), shown(""), "no packet has come");
    let stats = TrackStats { packets: 1, layer: 2, ..TrackStats::default() };
    room.event(Event::TrackStats { track: TrackId(70), stats });
    assert_eq!(layers(&room), shown("f"));
}

#[test]
fn the_looking_glass_shows_locals_and_remotes_with_one_shape() {
    let mut room = Room::new();
    let (publisher, _) = room.publish("ann", &[&[VP8]]);
    let (viewer, _) = room.watch(&[&[VP8]]);
    room.session.handle_transport_connected(room.now, TransportId(publisher), SrtpProfile::AeadAes128Gcm);
    let stats = TrackStats { packets: 5, jitter: 90, codec: Some(Codec::Vp8), ..TrackStats::default() };
    room.event(Event::TrackStats { track: TrackId(100 * publisher), stats });
    let record = Record {
        key: RemoteKey { node: 2, participant: ParticipantId(77) },
        version: Version { epoch: 0, counter: 1 },
        manifest: Some(Manifest { hidden: true, ..Manifest::new(Identity::new("far").unwrap(), Kind::Viewer, Permissions::PUBLISHER) }),
    };
    assert_eq!(room.session.handle_record(Time::ZERO, record), Applied::New);
    room.now = room.now + Duration::from_millis(250);
    let view = serde_json::to_value(room.session.describe(room.now)).unwrap();
    assert_eq!(view["id"], "stage");
    let ann = &view["participants"][0];
    assert_eq!(
        (&ann["kind"], &ann["state"], &ann["srtp"], &ann["age_ms"]),
        (&"publish".into(), &"connected".into(), &"AEAD_AES_128_GCM".into(), &250.into())
    );
    assert_eq!((&ann["tracks"][0]["codec"], &ann["tracks"][0]["stats"]["jitter_ms"]), (&"VP8".into(), &1.0.into()));
    let watch = &view["participants"][1];
    assert_eq!(
        (&watch["state"], &watch["subscriptions"][0]["source"]),
        (&"connecting".into(), &TrackId(100 * publisher).to_string().into())
    );
    assert_eq!(watch["subscriptions"][0]["id"], SubscriptionId(100 * viewer).to_string());
    let far = &view["participants"][2];
    assert_eq!((&far["local"], &far["hidden"], &far["state"]), (&false.into(), &true.into(), &"remote".into()));
    let names: Vec<_> = room.session.participants().map(|p| (p.identity().to_string(), p.is_hidden(), p.kind())).collect();
    assert_eq!(names[2], ("far".into(), true, Kind::Viewer));
}

fn update(room: &mut Room, resource: u64, condition: &IceCondition, remote: Option<&str>) -> (Reply, Vec<&'static str>) {
    room.next += 1;
    let local_ufrag: Box<str> = format!("l{}", room.next).into();
    let credentials = remote.map(|remote| IceCredentials { local_pwd: local_ufrag.clone(), local_ufrag, remote_ufrag: remote.into() });
    let resource = resource.to_string().into();
    let outcome = room.request(Request::UpdateIce(Box::new(IceUpdate { resource, condition: condition.clone(), credentials })));
    let names = outcome.names();
    (outcome.replies.into_iter().next().unwrap().expect("it is taken"), names)
}

fn refused_update(room: &mut Room, resource: u64, condition: IceCondition) -> Refusal {
    let credentials = Some(IceCredentials { local_ufrag: "x".into(), local_pwd: "x".into(), remote_ufrag: "new".into() });
    let resource = resource.to_string().into();
    let outcome = room.request(Request::UpdateIce(Box::new(IceUpdate { resource, condition, credentials })));
    assert!(outcome.commands.is_empty(), "a refused request changes nothing");
    outcome.replies[0].clone().expect_err("it is refused")
}

fn only(tag: &str) -> IceCondition {
    IceCondition::OneOf(vec!["other".into(), tag.into()])
}

#[test]
fn a_new_fragment_restarts_ice_and_the_same_one_does_not() {
    let mut room = Room::new();
    let (viewer, _) = room.watch(&[&[VP8]]);
    assert_eq!(update(&mut room, viewer, &only("l"), Some("r")), (Reply::IceKept, vec![]));
    assert_eq!(update(&mut room, viewer, &only("l"), None), (Reply::IceKept, vec![]), "candidates alone");
    assert_eq!(update(&mut room, viewer, &IceCondition::Any, Some("r")), (Reply::IceKept, vec![]), "it has not restarted yet");
    let (reply, commands) = update(&mut room, viewer, &IceCondition::Any, Some("new"));
    let Reply::IceRestarted(first) = reply else { panic!("{reply:?}") };
    assert_eq!((&*first.remote_ufrag, commands), ("new", vec!["restart ice"]));

    // The answer was lost: the same request gets the same one, and the worker is left alone.
    assert_eq!(update(&mut room, viewer, &IceCondition::Any, Some("new")), (Reply::IceRestarted(first.clone()), vec![]));
    assert_eq!(update(&mut room, viewer, &only(&first.local_ufrag), Some("new")), (Reply::IceKept, vec![]));
    let (reply, _) = update(&mut room, viewer, &only(&first.local_ufrag), Some("newer"));
    let Reply::IceRestarted(second) = reply else { panic!("{reply:?}") };
    assert_ne!(second.local_ufrag, first.local_ufrag);
}

#[test]
fn an_update_for_another_ice_session_or_none_is_refused() {
    let mut room = Room::new();
    let (viewer, _) = room.watch(&[&[VP8]]);
    assert_eq!(refused_update(&mut room, viewer, IceCondition::Missing), Refusal::IceUnconditional);
    assert_eq!(refused_update(&mut room, viewer, only("m")), Refusal::IceStale);
    assert_eq!(refused_update(&mut room, viewer, IceCondition::OneOf(Vec::new())), Refusal::IceStale);
    assert_eq!(refused_update(&mut room, viewer + 100, IceCondition::Missing), Refusal::UnknownResource);
    update(&mut room, viewer, &IceCondition::Any, Some("new"));
    assert_eq!(refused_update(&mut room, viewer, only("l")), Refusal::IceStale, "the first session's tag is over");
    room.leave(viewer);
    assert_eq!(refused_update(&mut room, viewer, IceCondition::Any), Refusal::UnknownResource);
}

#[test]
fn one_identity_cannot_keep_every_place_without_connecting() {
    let mut room = Room::with(Limits { connecting_max: 2, ..Limits::default() });
    let (first, _) = room.watch(&[&[VP8]]);
    room.watch(&[&[VP8]]);
    assert_eq!(room.watch(&[&[VP8]]).1.replies, [Err(Refusal::Connecting(2))]);
    assert_eq!(room.publish("viewer", &[&[VP8]]).1.replies, [Ok(Reply::Joined)], "a publisher replaces only itself");
    room.next += 1;
    let other = join(room.next, "other", Media::Watch(vec![section(room.next, 900, &[VP8])]));
    assert_eq!(room.request(Request::Join(Box::new(other))).replies, [Ok(Reply::Joined)]);
    room.session.handle_transport_connected(room.now, TransportId(first), SrtpProfile::AeadAes128Gcm);
    assert_eq!(room.watch(&[&[VP8]]).1.replies, [Err(Refusal::Connecting(2))], "the publisher of this identity is connecting, too");
    room.now = room.now + CONNECT_TIMEOUT;
    room.session.handle_timeout(room.now);
    room.drain();
    assert_eq!(room.watch(&[&[VP8]]).1.replies, [Ok(Reply::Joined)]);
}

/// Whatever comes in whatever order: ids that were closed stay closed, each transport is closed once, and a section is only
/// ever fed by a track that is open.
#[test]
fn random_lives_leave_no_dangling_reference() {
    let seed: u64 = 7;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let mut room = Room::with(Limits { participants_max: 12, tracks_max: 2, ..Limits::default() });
    let mut open_tracks = std::collections::BTreeMap::<u64, u64>::new();
    let mut open_transports = std::collections::BTreeSet::<u64>::new();
    let formats: [&[PayloadFormat]; 4] = [&[VP8], &[H264], &[VP8, AV1], &[AV1, H264, VP8]];
    for _ in 0..20_000 {
        room.now = room.now + Duration::from_millis(random(3_000));
        let pick = random(room.next + 1);
        let (mut gone, outcome) = match random(8) {
            0 | 1 => {
                let name = ["ann", "bob", "cid"][random(3) as usize];
                (None, room.publish(name, &[&[OPUS], formats[random(4) as usize]]).1)
            }
            2 | 3 => (None, room.watch(&[&[OPUS], formats[random(4) as usize]]).1),
            4 => (None, room.leave(pick)),
            5 => {
                let lost = open_transports.contains(&pick).then_some(pick);
                (lost, room.event(Event::TransportLost { transport: TransportId(pick), loss: TransportLoss::ConsentExpired }))
            }
            6 => (None, room.event(Event::TrackStarted { track: TrackId(100 * pick + random(2)) })),
            _ => {
                room.session.handle_timeout(room.now);
                (None, room.drain())
            }
        };
        for command in &outcome.commands {
            match command {
                Command::OpenTransport(open) => assert!(open_transports.insert(open.transport.0), "seed {seed}"),
                Command::OpenTrack(open) => drop(open_tracks.insert(open.track.0, open.transport.0)),
                Command::CloseTransport { transport } => {
                    assert!(open_transports.remove(&transport.0), "seed {seed}");
                    open_tracks.retain(|_, owner| *owner != transport.0);
                }
                Command::Forward { track: Some(track), payload_types, .. } => {
                    if let Some(lost) = gone.take() {
                        open_transports.remove(&lost);
                        open_tracks.retain(|_, owner| *owner != lost);
                    }
                    assert!(open_tracks.contains_key(&track.0), "seed {seed}: forwarded from a closed track");
                    assert!(!payload_types.is_empty());
                }
                _ => {}
            }
        }
        if let Some(lost) = gone {
            open_transports.remove(&lost);
            open_tracks.retain(|_, owner| *owner != lost);
        }
        let view = room.session.describe(room.now);
        assert!(view.participants.len() <= 12);
        assert_eq!(view.participants.len(), open_transports.len(), "seed {seed}");
        for subscription in view.participants.iter().flat_map(|p| &p.subscriptions) {
            let open = |name: &String| open_tracks.keys().any(|id| TrackId(*id).to_string() == *name);
            assert!(subscription.source.as_ref().is_none_or(open), "seed {seed}: fed by a closed track");
        }
    }
}

#[test]
fn a_route_needs_no_connecting_is_told_its_peer_and_replaces_nobody() {
    let mut room = Room::new();
    let (person, _) = room.publish("ann", &[&[VP8]]);
    let media = Media::Publish(vec![publication(50, 5_000, &[VP8])]);
    let learnt = RtpPeer::Learnt { silence: Duration::from_secs(30), never: None };
    let came = room.request(Request::Join(Box::new(Join { transport: Opening::Rtp(route(50, learnt)), ..join(50, "ann", media) })));
    assert_eq!((came.names(), came.closed.len()), (vec!["open rtp", "open track"], 0), "ann stays, and so does the route");
    room.event(Event::TrackStarted { track: TrackId(100 * person) });
    room.now = room.now + CONNECT_TIMEOUT;
    room.session.handle_timeout(room.now);
    assert_eq!(room.drain().closed, [(TransportId(person), CloseReason::ConnectTimeout)]);

    let view = |room: &Room| room.session.describe(room.now).participants.remove(0);
    assert_eq!((view(&room).state, view(&room).address), ("connecting", None));
    let told = room.event(Event::TransportValidated { transport: TransportId(50), remote: SINK });
    assert_eq!(told.actions, [("ann".to_owned(), Action::Learnt { address: SINK })]);
    room.event(Event::RtpPeerStats { transport: TransportId(50), stats: RtpPeerStats { foreign: 3, refused: 4 } });
    let seen = view(&room);
    assert_eq!((seen.state, seen.address.as_deref()), ("connected", Some("192.0.2.9:5004")));
    assert_eq!(seen.route.map(|route| (route.foreign, route.refused)), Some((3, 4)));

    // Nor does a person who comes later end the route.
    let (_, came) = room.publish("ann", &[&[VP8]]);
    assert_eq!(came.closed, []);
    assert_eq!(room.leave(50).closed, [(TransportId(50), CloseReason::Left)]);
}

#[test]
fn a_route_out_may_name_its_publisher_and_a_raw_one_takes_whatever_comes() {
    let mut room = Room::new();
    room.publish("ann", &[&[VP8]]);
    let raw = PayloadFormat { number: ANY_PAYLOAD_TYPE, format: Format::Raw { clock_rate: 90_000 }, rtx: None };
    let bob = Some(Identity::new("bob").unwrap());
    let media = Media::Watch(vec![Section { publisher: bob, ..section(50, 5_000, &[raw]) }]);
    let out = Join { transport: Opening::Rtp(route(50, RtpPeer::Fixed(SINK))), ..join(50, "tap", media) };
    assert_eq!(room.request(Request::Join(Box::new(out))).forwards(), []);
    let (bob, came) = room.publish("bob", &[&[AV1, H264]]);
    assert_eq!(came.forwards(), [(5_000, Some(100 * bob), "45>255 102>255".into())]);
    assert_eq!(room.leave(bob).forwards(), [(5_000, None, String::new())], "ann's track is not bob's");
}
