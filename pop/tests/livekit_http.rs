//! The room protocol against a running node, by a client that speaks it badly on purpose: what it is told, what is counted, and that
//! the others in the room do not notice.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use pop::config::Config;
use pop::http;
use pop::keys::ApiKeys;
use pop::metrics::{JoinSeconds, Metrics};
use pop::node::Node;
use pop::serve;
use pop::signal::{Refused, routes};
use pop::token::{TokenRequest, unix_now_s};
use pop_schemas::SessionId;
use pop_session::token::{Claims, VideoGrant, sign};
use prost::Message as _;
use proto::leave_request::Action;
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const ROOM: &str = "stage";

struct Host {
    node: Node,
    url: String,
    _stop: watch::Sender<bool>,
}

impl Host {
    async fn start() -> Host {
        Host::with(16, 64).await
    }

    /// A node on loopback with room for `tracks` streams and `subscriptions` sections.
    async fn with(tracks: usize, subscriptions: usize) -> Host {
        let text = format!(
            "[media]\nport = 0\n[dataplane]\ncores = \"0\"\nbackend = \"mmsg\"\ntransports_max = 16\ntracks_max = {tracks}\n\
             subscriptions_max = {subscriptions}\npacket_pool = 1024\nrecv_buffers = 16\ntrains = 4\ngro = false\n"
        );
        let config = Config::parse(&text, Path::new("test.toml")).unwrap();
        let node = Node::start(&config, ApiKeys::draw()).unwrap();
        let listener = serve::bind("http.listen", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let metrics = Metrics::new("mmsg", &JoinSeconds::default(), Vec::new());
        let router = http::router(routes(node.clone(), &config), Arc::clone(&metrics));
        tokio::spawn(serve::serve(listener, router, http::CONNECTIONS_MAX, None, stopped));
        Host { node, url: address.to_string(), _stop: stop }
    }

    fn token(&self, identity: &str) -> String {
        TokenRequest::new(ROOM, identity).sign(&self.node.keys(), unix_now_s()).unwrap()
    }

    fn token_of(&self, change: impl FnOnce(&mut Claims)) -> String {
        let keys = self.node.keys();
        let (key, secret) = keys.signing();
        let video = VideoGrant { room: Some(ROOM.to_owned()), room_join: true, ..VideoGrant::default() };
        let mut claims = Claims { iss: key.to_owned(), sub: "ann".to_owned(), exp: unix_now_s() + 60, video, ..Claims::default() };
        change(&mut claims);
        sign(&claims, secret.expose().as_bytes()).unwrap()
    }

    /// An HTTP request by hand: status and body.
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(&self.url).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    async fn connect(&self, query: &str) -> Result<Client, u16> {
        let url = format!("ws://{}/rtc/v1?{query}", self.url);
        match tokio_tungstenite::connect_async(&url).await {
            Ok((socket, _)) => Ok(Client { socket, token: String::new() }),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn join(&self, identity: &str) -> (Client, proto::JoinResponse) {
        self.join_by(identity, proto::JoinRequest::default()).await
    }

    async fn join_by(&self, identity: &str, request: proto::JoinRequest) -> (Client, proto::JoinResponse) {
        let mut client = self.connect(&query(&self.token(identity), &request)).await.unwrap();
        let Told::Join(join) = client.next().await else { panic!("the first message is a JoinResponse") };
        (client, join)
    }

    fn refused(&self, reason: Refused) -> u64 {
        self.node.signal_counters().refused(reason)
    }
}

fn query(token: &str, request: &proto::JoinRequest) -> String {
    wrap(token, &request.encode_to_vec())
}

fn wrap(token: &str, request: &[u8]) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(request).unwrap();
    let wrapped = proto::WrappedJoinRequest {
        compression: proto::wrapped_join_request::Compression::Gzip as i32,
        join_request: gzip.finish().unwrap(),
    };
    // Padding is percent-encoded, as URLSearchParams does it.
    let text = URL_SAFE.encode(wrapped.encode_to_vec()).replace('=', "%3D");
    format!("access_token={token}&join_request={text}")
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    token: String,
}

impl Client {
    /// The next message, whatever it is.
    async fn next(&mut self) -> Told {
        self.read().await.expect("the socket is open")
    }

    /// `None` at the end of the socket.
    async fn read(&mut self) -> Option<Told> {
        loop {
            let frame = tokio::time::timeout(Duration::from_secs(10), self.socket.next()).await.expect("it says something");
            match frame {
                Some(Ok(Frame::Binary(bytes))) => {
                    let message = proto::SignalResponse::decode(&*bytes).unwrap().message.unwrap();
                    if let Told::RefreshToken(token) = &message {
                        self.token.clone_from(token);
                    }
                    return Some(message);
                }
                Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(other)) => panic!("{other:?}"),
            }
        }
    }

    /// The next message for which `choose` has something.
    async fn until<T>(&mut self, what: &str, choose: impl Fn(&Told) -> Option<T>) -> T {
        for _ in 0..100 {
            let Some(message) = self.read().await else { panic!("the socket ended before {what}") };
            if let Some(chosen) = choose(&message) {
                return chosen;
            }
        }
        panic!("no {what} came");
    }

    async fn say(&mut self, message: Say) {
        let request = proto::SignalRequest { message: Some(message) };
        self.socket.send(Frame::Binary(request.encode_to_vec().into())).await.unwrap();
    }

    /// How long a ping takes to be answered.
    async fn ping(&mut self) -> Duration {
        let start = Instant::now();
        self.say(Say::PingReq(proto::Ping { timestamp: 4711, rtt: 0 })).await;
        self.until("pong", |told| matches!(told, Told::PongResp(pong) if pong.last_ping_timestamp == 4711).then_some(())).await;
        start.elapsed()
    }

    async fn left(&mut self) -> (proto::DisconnectReason, Action) {
        let told = |told: &Told| match told {
            Told::Leave(leave) => Some((leave.reason(), leave.action())),
            _ => None,
        };
        let left = self.until("leave", told).await;
        assert!(self.read().await.is_none(), "nothing comes after it");
        left
    }
}

fn corpus(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/corpus/sdp/{name}.sdp", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn offer(id: u32, sdp: String) -> proto::SessionDescription {
    proto::SessionDescription { r#type: "offer".to_owned(), sdp, id, ..Default::default() }
}

fn answer_of(told: &Told) -> Option<proto::SessionDescription> {
    match told {
        Told::Answer(answer) => Some(answer.clone()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_come_is_told_why() {
    let host = Host::start().await;
    let other = sign(
        &Claims { iss: "other".to_owned(), sub: "ann".to_owned(), exp: unix_now_s() + 60, ..Claims::default() },
        b"a secret of somebody else, 0123456789",
    )
    .unwrap();
    let cases = [
        (String::new(), 401, "an access token is needed"),
        ("garbage".to_owned(), 401, "well-formed JWT"),
        (other, 401, "API key"),
        (host.token_of(|claims| claims.exp = 1), 401, "expired"),
        (host.token_of(|claims| claims.video.room_join = false), 403, "roomJoin"),
        (host.token_of(|claims| claims.video.room = None), 403, "video.room"),
    ];
    for (token, status, sentence) in &cases {
        assert_eq!(host.connect(&format!("access_token={token}")).await.err(), Some(*status), "{sentence}");
        let (told, text) = host.ask("GET", &format!("/rtc/v1/validate?access_token={token}")).await;
        assert!(told == *status && text.contains(sentence), "{text}");
        assert!(text.contains("access-control-allow-origin: *"), "a page may read it: {text}");
    }
    assert_eq!(host.refused(Refused::Token), 2 * cases.len() as u64);
    let (status, text) = host.ask("GET", &format!("/rtc/v1/validate?access_token={}", host.token("ann"))).await;
    assert!(status == 200 && text.ends_with("success"), "{text}");
    assert_eq!(host.ask("OPTIONS", "/rtc/v1/validate").await.0, 204);
    assert!(host.node.sessions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_version_0_gets_a_sentence_and_no_reason_to_come_again() {
    let host = Host::start().await;
    for path in ["/rtc", "/rtc/validate"] {
        let (status, text) = host.ask("GET", &format!("{path}?access_token={}", host.token("ann"))).await;
        // 404 would make livekit-client try version 0 again, for ever.
        assert!(status == 403 && text.contains("/rtc/v1"), "{text}");
    }
    assert_eq!(host.refused(Refused::Version), 2);
    assert_eq!(host.ask("HEAD", "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_request_is_bounded_before_it_is_read() {
    let host = Host::start().await;
    let token = host.token("ann");
    // 32 MiB fit into a URL.
    let bomb = wrap(&token, &vec![0; 32 << 20]);
    let flood = wrap(&token, &[0x2a, 0].repeat(100_000));
    let plain = |bytes: &[u8]| format!("access_token={token}&join_request={}", URL_SAFE.encode(bytes).replace('=', "%3D"));
    let not_gzip = proto::WrappedJoinRequest { compression: 1, join_request: vec![1, 2, 3] };
    let cases = [bomb, flood, plain(b"\xff\xff"), plain(&not_gzip.encode_to_vec()), format!("access_token={token}&join_request=***")];
    for (i, query) in cases.iter().enumerate() {
        assert_eq!(host.connect(query).await.err(), Some(400), "case {i}");
    }
    assert_eq!(host.refused(Refused::Join), cases.len() as u64);
    assert!(host.node.sessions().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_told_of_the_room_and_its_first_offer_is_answered_at_once() {
    let host = Host::start().await;
    let (mut bob, alone) = host.join("bob").await;
    assert!(alone.other_participants.is_empty());
    let request = proto::JoinRequest { publisher_offer: Some(offer(7, corpus("livekit-chromium-join"))), ..Default::default() };
    let (mut ann, join) = host.join_by("ann", request).await;
    let me = join.participant.clone().unwrap();
    assert!(me.sid.starts_with("PA_") && me.identity == "ann", "{me:?}");
    assert_eq!(join.other_participants.iter().map(|other| &*other.identity).collect::<Vec<_>>(), ["bob"]);
    assert_eq!((join.ping_interval, join.ping_timeout, join.subscriber_primary), (5, 15, false));
    let room = join.room.unwrap();
    assert!(room.name == ROOM && room.sid.starts_with("RM_"), "{room:?}");
    assert!(join.enabled_publish_codecs.iter().any(|codec| codec.mime == "video/VP8"));

    let answer = ann.until("answer", answer_of).await;
    assert_eq!((answer.id, &*answer.r#type), (7, "answer"));
    let sections: Vec<_> = answer.sdp.split("\r\nm=").skip(1).collect();
    assert_eq!(sections.len(), 7);
    for section in &sections {
        let (head, _) = section.split_once("\r\n").unwrap();
        assert!(!head.contains(" 0 UDP"), "a section that may be used later is not rejected: {head}");
        assert!(section.contains("a=inactive") || section.contains("a=sctp-port:5000"), "{section}");
        assert!(section.contains("a=setup:passive") && section.contains("a=ice-pwd:"), "{section}");
    }
    assert!(answer.sdp.contains("a=group:BUNDLE 0 1 2 3 4 5 6\r\n") && answer.sdp.contains("a=candidate:1 1 udp"), "{}", answer.sdp);

    let told = |told: &Told| match told {
        Told::Update(update) => update.participants.iter().find(|other| other.identity == "ann").map(|ann| ann.state()),
        _ => None,
    };
    bob.until("ann", told).await;
    assert!(ann.ping().await < Duration::from_secs(1));
    ann.say(Say::Leave(proto::LeaveRequest::default())).await;
    bob.until("ann's end", |message| told(message).filter(|state| *state == proto::participant_info::State::Disconnected)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_is_who_it_was_and_nobody_else() {
    let host = Host::start().await;
    let (mut bob, _) = host.join("bob").await;
    let (ann, join) = host.join("ann").await;
    let sid = join.participant.unwrap().sid;
    // The socket ends without a word.
    drop(ann);
    let resume = |sid: &str| proto::JoinRequest { reconnect: true, participant_sid: sid.to_owned(), ..Default::default() };
    let mut ann = host.connect(&query(&host.token("ann"), &resume(&sid))).await.unwrap();
    assert!(matches!(ann.next().await, Told::Reconnect(_)));
    ann.say(Say::SyncState(proto::SyncState::default())).await;
    assert!(ann.ping().await < Duration::from_secs(1));

    // By the words of older clients, and over a socket that still seems to be open.
    let mut again = host.connect(&format!("access_token={}&reconnect=1&sid={sid}", host.token("ann"))).await.unwrap();
    assert!(matches!(again.next().await, Told::Reconnect(_)));
    while ann.read().await.is_some() {}

    let unknown = [(resume("PA_0000000000000001"), "ann"), (resume("nonsense"), "ann"), (resume(&sid), "eve")];
    for (request, identity) in unknown {
        let mut client = host.connect(&query(&host.token(identity), &request)).await.unwrap();
        assert_eq!(client.left().await, (proto::DisconnectReason::StateMismatch, Action::Reconnect));
    }
    assert_eq!(host.refused(Refused::Resume), 3);
    assert!(again.ping().await < Duration::from_secs(1), "the one who is here does not notice");
    assert!(bob.ping().await < Duration::from_secs(1));
    assert_eq!(host.node.sessions().await[0].participants.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resumes_for_nobody_is_refused_and_who_is_here_does_not_notice() {
    let host = Host::start().await;
    let ((mut bob, _), (mut ann, _)) = (host.join("bob").await, host.join("ann").await);
    let host = Arc::new(host);
    let strangers: Vec<_> = (0..8u64)
        .map(|lane| {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                for number in 0..50 {
                    let sid = format!("PA_{:016x}", (lane << 32) | (number + 1));
                    let sync = proto::SyncState { track_sids_disabled: vec!["TR_0".into(); 1_000], ..Default::default() };
                    let resume = proto::JoinRequest { reconnect: true, participant_sid: sid, sync_state: Some(sync), ..Default::default() };
                    let mut stranger = host.connect(&query(&host.token("eve"), &resume)).await.unwrap();
                    assert_eq!(stranger.left().await, (proto::DisconnectReason::StateMismatch, Action::Reconnect));
                }
            })
        })
        .collect();
    while !strangers.iter().all(|lane| lane.is_finished()) {
        for member in [&mut ann, &mut bob] {
            assert!(member.ping().await < Duration::from_secs(1));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for lane in strangers {
        lane.await.unwrap();
    }
    assert_eq!(host.refused(Refused::Resume), 400);
    let sessions = host.node.sessions().await;
    assert_eq!((sessions.len(), sessions[0].participants.len()), (1, 2), "nobody came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_state_of_megabytes_costs_its_client_the_socket_and_nobody_the_call() {
    let host = Host::start().await;
    let ((mut bob, _), (mut ann, join)) = (host.join("bob").await, host.join("ann").await);
    let sid = join.participant.unwrap().sid;
    let resume = proto::JoinRequest { reconnect: true, participant_sid: sid.clone(), ..Default::default() };
    // More fields than are looked at, then more bytes than are read.
    let (many, long) = (vec!["TR_0".to_owned(); 100_000], vec!["x".repeat(1 << 20); 4]);
    ann.say(Say::SyncState(proto::SyncState { track_sids_disabled: many, ..Default::default() })).await;
    assert!(ann.ping().await < Duration::from_secs(1), "it is not looked at");
    assert_eq!(host.refused(Refused::Message), 1);
    let request = Say::SyncState(proto::SyncState { track_sids_disabled: long, ..Default::default() });
    let request = proto::SignalRequest { message: Some(request) };
    // The node may close before all is sent.
    let _ = ann.socket.send(Frame::Binary(request.encode_to_vec().into())).await;
    while ann.read().await.is_some() {}
    assert!(bob.ping().await < Duration::from_secs(1));
    let mut ann = host.connect(&query(&host.token("ann"), &resume)).await.unwrap();
    assert!(matches!(ann.next().await, Told::Reconnect(_)), "she is here still");
    assert!(ann.ping().await < Duration::from_secs(1));
    assert_eq!(host.node.sessions().await[0].participants.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_one_of_an_identity_stays() {
    let host = Host::start().await;
    let (mut old, _) = host.join("ann").await;
    let (mut young, _) = host.join("ann").await;
    assert_eq!(old.left().await, (proto::DisconnectReason::DuplicateIdentity, Action::Disconnect));
    assert!(young.ping().await < Duration::from_secs(1));
    assert_eq!(host.node.sessions().await[0].participants.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_still_speaks_when_it_has_left_hears_the_end_of_its_socket_and_no_reset() {
    let host = Host::start().await;
    for _ in 0..20 {
        let (mut ann, _) = host.join("ann").await;
        ann.say(Say::Leave(proto::LeaveRequest::default())).await;
        // As livekit-client does: what it had to say follows, and its own end.
        for timestamp in 0..50 {
            let ping = proto::SignalRequest { message: Some(Say::PingReq(proto::Ping { timestamp, rtt: 0 })) };
            let _ = ann.socket.feed(Frame::Binary(ping.encode_to_vec().into())).await;
        }
        let _ = ann.socket.send(Frame::Close(None)).await;
        let mut last = None;
        while let Some(frame) = ann.socket.next().await {
            last = Some(frame.map_err(|error| error.to_string()));
        }
        assert!(matches!(last, Some(Ok(Frame::Close(_)))), "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_counted_and_ends_nothing() {
    let host = Host::start().await;
    let (mut ann, _) = host.join("ann").await;
    for bytes in [&b"\xff\xff\xff"[..], b"", &[0x0a, 0x7f], &[0x2a, 0].repeat(10_000)] {
        ann.socket.send(Frame::Binary(bytes.to_vec().into())).await.unwrap();
    }
    ann.say(Say::Mute(proto::MuteTrackRequest { sid: "TR_x".to_owned(), muted: true })).await;
    ann.say(Say::GetDataBlobRequest(proto::GetDataBlobRequest::default())).await;
    ann.ping().await;
    assert_eq!((host.refused(Refused::Message), host.refused(Refused::Unknown), host.refused(Refused::Unspoken)), (4, 1, 1));

    // Too long for the socket: this one ends.
    let long = Frame::Binary(vec![0; 5 << 20].into());
    let _ = ann.socket.send(long).await;
    while ann.read().await.is_some() {}
    assert_eq!(host.refused(Refused::Message), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_answered_by_text() {
    let host = Host::start().await;
    let (mut ann, _) = host.join("ann").await;
    let flood = format!(r#"{{"syncState":{{"publishTracks":[{}{{}}]}}}}"#, "{},".repeat(10_000));
    ann.socket.send(Frame::Text(flood.into())).await.unwrap();
    ann.socket.send(Frame::Text(r#"{"pingReq":{"timestamp":"7"}}"#.into())).await.unwrap();
    let text = loop {
        if let Some(Ok(Frame::Text(text))) = ann.socket.next().await {
            break text;
        }
    };
    assert!(text.contains(r#""pongResp":{"lastPingTimestamp":"7""#), "{text}");
    assert_eq!(host.refused(Refused::Message), 1, "a flood of empty values is not parsed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_and_the_others_do_not() {
    let host = Host::start().await;
    let ((mut ann, _), (mut bob, _)) = (host.join("ann").await, host.join("bob").await);
    for _ in 0..1_000 {
        ann.say(Say::TrackSetting(proto::UpdateTrackSettings::default())).await;
    }
    for id in 0..20 {
        ann.say(Say::Offer(offer(id, corpus("livekit-chromium-join")))).await;
    }
    // What waits is read when its turn comes, and the flood is found then.
    let begin = Instant::now();
    while host.refused(Refused::Flood) == 0 {
        assert!(bob.ping().await < Duration::from_millis(500));
        assert!(begin.elapsed() < Duration::from_secs(5), "nobody is refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let taken = host.node.signal_counters().taken().find(|(kind, _)| *kind == "track_setting").unwrap().1;
    assert!(taken < 1_000, "{taken} of 1,000 messages were read at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_cannot_be_served_makes_its_client_begin_anew() {
    let host = Host::start().await;
    let other = corpus("livekit-chromium-join").replace("a=fingerprint:sha-256 ", "a=fingerprint:sha-256 00:");
    let other = other.lines().map(|line| match line.strip_prefix("a=fingerprint:sha-256 ") {
        Some(hex) => format!("a=fingerprint:sha-256 {}\r\n", &hex[..32 * 3 - 1]),
        None => format!("{line}\r\n"),
    });
    let other: String = other.collect();
    for bad in ["v=1\r\n".to_owned(), String::new(), "v=0\r\n".repeat(120_000), other] {
        let (mut ann, _) = host.join("ann").await;
        ann.say(Say::Offer(offer(1, corpus("livekit-chromium-join")))).await;
        ann.until("answer", answer_of).await;
        ann.say(Say::Offer(offer(2, bad))).await;
        assert_eq!(ann.left().await, (proto::DisconnectReason::MediaFailure, Action::Reconnect));
    }
    assert_eq!(host.refused(Refused::Offer), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_an_offer_that_cannot_be_served_is_in_before_it_is_told_to_begin_anew() {
    let host = Host::start().await;
    let asked = proto::JoinRequest { publisher_offer: Some(offer(1, "v=nonsense".to_owned())), ..Default::default() };
    // `join_by` wants the JoinResponse first.
    let (mut ann, _) = host.join_by("ann", asked).await;
    assert_eq!(ann.left().await, (proto::DisconnectReason::MediaFailure, Action::Reconnect));
    assert_eq!(host.refused(Refused::Offer), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_worker_has_no_room_for_is_left_out_of_the_answer() {
    let host = Host::with(2, 4).await;
    let add = proto::AddTrackRequest {
        cid: "a03a89f6-544d-4ec3-96f9-b3234020a6e2".to_owned(),
        r#type: proto::TrackType::Video as i32,
        source: proto::TrackSource::Camera as i32,
        ..Default::default()
    };
    let (mut ann, _) = host.join("ann").await;
    ann.say(Say::AddTrack(add)).await;
    // One audio stream, and a video section with three layers.
    ann.say(Say::Offer(offer(1, corpus("livekit-chromium-publish")))).await;
    let answer = ann.until("answer", answer_of).await;
    assert!(!answer.sdp.contains("a=simulcast"), "three layers do not fit into two places");
    assert_eq!(host.refused(Refused::Section), 2 + 1, "of six sections to receive two, and the camera");
    // The places that are left are nobody's.
    let (mut bob, _) = host.join("bob").await;
    bob.say(Say::Offer(offer(1, corpus("livekit-firefox-join")))).await;
    bob.until("answer", answer_of).await;
    assert!(bob.ping().await < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_removed_lets_nobody_in_and_nobody_is_thrown_out() {
    let host = Host::start().await;
    let (mut ann, join) = host.join("ann").await;
    let (token, sid) = (host.token("ann"), join.participant.unwrap().sid);
    host.node.set_keys(ApiKeys::draw());
    assert_eq!(host.connect(&format!("access_token={token}")).await.err(), Some(401));
    assert_eq!(host.connect(&format!("access_token={token}&reconnect=1&sid={sid}")).await.err(), Some(401));
    assert!(ann.ping().await < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_sends_its_members_elsewhere() {
    let host = Host::start().await;
    let (mut ann, _) = host.join("ann").await;
    host.node.shutdown().await;
    assert_eq!(ann.left().await, (proto::DisconnectReason::ServerShutdown, Action::Reconnect));
    assert_eq!(host.connect(&format!("access_token={}", host.token("bob"))).await.err(), Some(503));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_asks_to_see_happens_to_itself() {
    use proto::simulate_scenario::Scenario;
    let host = Host::start().await;
    let (mut bob, _) = host.join("bob").await;
    let cases = [
        (Scenario::Migration(true), Some(Action::Resume)),
        (Scenario::LeaveRequestFullReconnect(true), Some(Action::Reconnect)),
        (Scenario::ServerLeave(true), Some(Action::Disconnect)),
        (Scenario::NodeFailure(true), None),
    ];
    for (scenario, expected) in cases {
        let (mut ann, _) = host.join("ann").await;
        ann.say(Say::Simulate(proto::SimulateScenario { scenario: Some(scenario) })).await;
        match expected {
            Some(action) => assert_eq!(ann.left().await.1, action),
            None => while ann.read().await.is_some() {},
        }
    }
    assert!(bob.ping().await < Duration::from_secs(1));
    assert!(host.node.admin(&SessionId::new("other").unwrap(), pop_session::member::AdminRequest::List).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_change_its_metadata_brings_none_but_its_tokens() {
    let host = Host::start().await;
    let asked = proto::JoinRequest {
        metadata: "its own".to_owned(),
        participant_attributes: [("role".to_owned(), "host".to_owned())].into(),
        ..Default::default()
    };
    for (may, metadata, role) in [(None, "of the token", "guest"), (Some(true), "its own", "host")] {
        let token = host.token_of(|claims| {
            claims.metadata = Some("of the token".to_owned());
            claims.attributes.insert("role".to_owned(), "guest".to_owned());
            claims.video.can_update_own_metadata = may;
        });
        let mut ann = host.connect(&query(&token, &asked)).await.unwrap();
        let Told::Join(join) = ann.next().await else { panic!("the first message is a JoinResponse") };
        let me = join.participant.unwrap();
        assert_eq!((&*me.metadata, &*me.attributes["role"]), (metadata, role));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_hold_on_the_socket_and_a_changed_one_comes_with_a_token() {
    let host = Host::start().await;
    let token = host.token_of(|claims| {
        claims.video.can_publish_sources = vec!["microphone".to_owned()];
        claims.rest.insert("sip".to_owned(), "kept".into());
    });
    let mut ann = host.connect(&query(&token, &proto::JoinRequest::default())).await.unwrap();
    let Told::Join(join) = ann.next().await else { panic!("the first message is a JoinResponse") };
    let permission = join.participant.unwrap().permission.unwrap();
    assert_eq!((permission.can_publish_sources, permission.can_update_metadata), (vec![proto::TrackSource::Microphone as i32], false));
    let camera = proto::AddTrackRequest { cid: "c".to_owned(), r#type: 1, source: 1, ..Default::default() };
    ann.say(Say::AddTrack(camera.clone())).await;
    let refused = |told: &Told| match told {
        Told::RequestResponse(response) => Some(response.reason()),
        _ => None,
    };
    assert_eq!(ann.until("refusal", refused).await, proto::request_response::Reason::NotAllowed);
    ann.say(Say::UpdateMetadata(proto::UpdateParticipantMetadata { name: "x".to_owned(), request_id: 9, ..Default::default() })).await;
    assert_eq!(ann.until("refusal", refused).await, proto::request_response::Reason::NotAllowed);

    let video = VideoGrant { can_update_own_metadata: Some(true), ..VideoGrant::default() };
    let update = |permissions| pop_session::member::AdminRequest::Update {
        identity: pop_schemas::Identity::new("ann").unwrap(),
        texts: pop_session::member::MetadataUpdate::default(),
        permissions: Some(permissions),
    };
    let room = SessionId::new(ROOM).unwrap();
    host.node.admin(&room, update(video.permissions())).await.unwrap();
    let refreshed = |told: &Told| match told {
        Told::RefreshToken(token) => Some(token.clone()),
        _ => None,
    };
    let token = ann.until("token", refreshed).await;
    let access = host.node.verify_token(&token).unwrap();
    let claims = access.claims();
    assert_eq!((claims.video.can_update_own_metadata, claims.video.can_publish_sources.len()), (Some(true), 0));
    assert_eq!((&claims.rest["sip"], claims.video.room.as_deref()), (&"kept".into(), Some(ROOM)));
    assert!(claims.exp >= unix_now_s() + 590, "it holds for ten minutes");
    ann.say(Say::AddTrack(camera)).await;
    ann.until("track", |told| matches!(told, Told::TrackPublished(_)).then_some(())).await;

    // A key that was removed signs nothing.
    host.node.set_keys(ApiKeys::draw());
    host.node.admin(&room, update(VideoGrant::default().permissions())).await.unwrap();
    ann.ping().await;
    assert_eq!(ann.token, token);
}
