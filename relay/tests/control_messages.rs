//! Messages of the control connection: there and back, within limits, in both versions; and the golden frames of each version, those of
//! datagrams too.
// The crate is sans-IO, its tests read their golden frames.
#![allow(clippy::disallowed_methods)]

mod common;

use std::{fs, time::Duration};

use common::{keys_of, open_link, open_link_abroad};
use pop_relay::{
    RelayDrop,
    control::{
        Action, Alive, Connection, ControlError, Data, Done, Follow, Heard, Hello, Located, Message, Offer, Order, Outcome, Path, Paths,
        PayloadType, Presence, Refuse, Rekey, Resume, Room, Telling, Unfollow, Unwant, VERSION, VERSION_MIN, Want, decode, encode,
        negotiate,
    },
    frame::{FrameKind, Head},
    link::{Ask, Clock, FrameRef, Incoming, PathStats, SourceRoute, TRANSIT_OVERHEAD, Way},
    route::Figures,
    seal::Sealer,
};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId, Time, TrackId};

fn hello() -> Hello {
    Hello {
        version: VERSION,
        version_min: VERSION_MIN,
        node: "a".to_owned(),
        pop: "fra".to_owned(),
        incarnation: Incarnation { start: 3, nonce: 0x0102_0304_0506_0708 },
        link: 9,
        workers: vec!["192.0.2.1:11000".parse().expect("an address"), "[2001:db8::1]:11001".parse().expect("an address")],
        playout: Duration::from_millis(120),
        resumes: false,
    }
}

fn offer() -> Offer {
    Offer {
        track: TrackId(0x1122_3344_5566_7788),
        alias: 7,
        worker: 1,
        audio: false,
        payload_types: vec![
            PayloadType { number: 96, codec: "VP8".to_owned(), clock_rate: 90_000, rtx: Some(97) },
            PayloadType { number: 98, codec: "H264".to_owned(), clock_rate: 90_000, rtx: None },
        ],
        extensions: vec![3, 0, 5],
        layers: vec!["q".to_owned(), "h".to_owned(), "f".to_owned()],
        order: vec![0, 1, 2],
        load: 250,
    }
}

/// One of each, by the name of its golden frame.
fn messages() -> Vec<(&'static str, Message)> {
    let session = SessionId::new("Straße 7").expect("a name");
    vec![
        ("hello", Message::Hello(hello())),
        ("want", Message::Want(Want { session, track: TrackId(5), worker: 2, origin: None })),
        ("unwant", Message::Unwant(Unwant { track: TrackId(5) })),
        ("offer", Message::Offer(offer())),
        ("refuse", Message::Refuse(Refuse { track: TrackId(5), reason: "full".to_owned() })),
        ("rekey", Message::Rekey(Rekey { generation: 2 })),
        ("alive", Message::Alive(Alive { now_us: 1 << 40, ..Alive::default() })),
    ]
}

fn data() -> Data {
    let to = ["ann", "böb"].map(|name| Identity::new(name).expect("a name")).to_vec();
    let session = SessionId::new("Straße 7").expect("a name");
    Data { session, sender: ParticipantId(8), reliable: true, sequence: 3, to, body: b"hello".as_slice().into() }
}

fn want_of_abroad() -> Want {
    let session = SessionId::new("Straße 7").expect("a name");
    Want { session, track: TrackId(5), worker: 2, origin: Some(NodeId(0x0102_0304_0506_0708)) }
}

fn room() -> Room {
    let session = SessionId::new("Straße 7").expect("a name");
    Room { session, metadata: "auf Sendung".to_owned(), participants_max: 40, said: (1_700_000_000_000, 7) }
}

/// With the longest names.
fn many_paths(count: usize) -> Vec<Path> {
    (0..count).map(|n| Path { pop: format!("{n:0>128}"), ..paths().paths[0].clone() }).collect()
}

fn presence(telling: Telling) -> Message {
    Message::Presence(Presence { session: SessionId::new("Straße 7").expect("a name"), telling })
}

fn located(n: usize) -> Located {
    Located {
        node: format!("{n:0>128}"),
        pop: "x".repeat(128),
        address: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().expect("one"),
    }
}

fn paths() -> Paths {
    let figures = Figures { rtt_us: 161_500, loss_out: 12, loss_in: 250, jitter_us: 900 };
    let path = |pop: &str| Path { pop: pop.to_owned(), figures };
    Paths {
        paths: vec![path("sin"), path("khi")],
        release: "0.1.0".to_owned(),
        load: 125,
        draining: true,
        nodes: vec![located(1)],
        changes: true,
        gone: vec!["nyc".to_owned()],
    }
}

/// Those that version 0 does not know: a reader passes them over.
fn later_messages() -> Vec<(&'static str, Message)> {
    let session = || SessionId::new("Straße 7").expect("a name");
    let one = ParticipantId(0x1122_3344_5566_7788);
    let connection = Connection { participant: one, score: 412, grade: 2 };
    let order = Order {
        number: 5,
        session: session(),
        action: Action::Mute,
        identity: Identity::new("ann").ok(),
        tracks: vec![TrackId(6), TrackId(7)],
    };
    let nameless = Order { action: Action::Delete, identity: None, tracks: Vec::new(), ..order.clone() };
    vec![
        ("want_of_abroad", Message::Want(want_of_abroad())),
        ("follow", Message::Follow(Follow { session: session(), age: Duration::from_millis(1_500), received: vec![(one, 7), (one, 9)] })),
        ("unfollow", Message::Unfollow(Unfollow { session: session() })),
        ("data", Message::Data(data())),
        ("gap", Message::Gap),
        ("heard", Message::Heard(Heard { session: session(), speaking: vec![(one, 7)], connections: vec![connection] })),
        ("order", Message::Order(order)),
        ("order_delete", Message::Order(nameless)),
        ("done", Message::Done(Done { number: 5, outcome: Outcome::UnknownTrack })),
        ("room", Message::Room(room())),
        ("paths", Message::Paths(paths())),
        ("presence_watch", presence(Telling::Watch)),
        ("presence_unwatch", presence(Telling::Unwatch)),
        ("presence_participant", presence(Telling::Participant(one, b"record".as_slice().into()))),
        ("presence_digest", presence(Telling::Digest(b"digest".as_slice().into()))),
        ("presence_ask", presence(Telling::Ask(one, 7))),
        ("hello_resumes", Message::Hello(Hello { resumes: true, ..hello() })),
        ("alive_received", Message::Alive(Alive { now_us: 1 << 40, received: 1 << 33, ..Alive::default() })),
        ("revoked", Message::Revoked(b"list".as_slice().into())),
        ("resume", Message::Resume(Resume { number: 3, received: 1 << 33, proof: [7; 32] })),
        ("presence_page", presence(Telling::Page(one, 7, b"page".as_slice().into()))),
        ("presence_meet", presence(Telling::Meet(vec!["key".to_owned(), "another".to_owned()]))),
        ("presence_part", presence(Telling::Part)),
        ("presence_hosts", presence(Telling::Hosts(vec![NodeId(7), NodeId(1 << 63)]))),
    ]
}

/// What version 0 makes of it: it has no load.
fn without_news(message: &Message) -> Message {
    match message {
        Message::Offer(offer) => Message::Offer(Offer { load: 0, ..offer.clone() }),
        other => other.clone(),
    }
}

#[test]
fn messages_come_as_they_were_told() {
    for (name, message) in messages() {
        assert_eq!(decode(&encode(&message, 1).expect("within limits")).as_ref(), Ok(&message), "{name}");
        assert_eq!(decode(&encode(&message, 0).expect("within limits")), Ok(without_news(&message)), "{name}");
    }
    for (name, message) in later_messages() {
        assert_eq!(decode(&encode(&message, 1).expect("within limits")).as_ref(), Ok(&message), "{name}");
    }
}

/// The frame `name` as the writer of `version` made it, which is what is `written` now too. `POP_GOLDEN_WRITE=1` writes it anew: right
/// only before the version's first release; those of the versions before never change.
fn golden(version: u8, name: &str, written: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}/{name}.hex"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    if std::env::var_os("POP_GOLDEN_WRITE").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(&path, hex(written)).expect("it can be written");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(hex(written), text, "{}: a writer of this version still writes it", path.display());
    let digits = text.trim();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn golden_messages_of_both_versions_are_read_and_written() {
    for (name, message) in messages() {
        for version in [0, 1] {
            let golden = golden(version, name, &encode(&message, version).expect("within limits"));
            let expected = if version == 0 { without_news(&message) } else { message.clone() };
            assert_eq!(decode(&golden), Ok(expected), "version {version}, {name}");
        }
    }
    for (name, message) in later_messages() {
        assert_eq!(decode(&golden(1, name, &encode(&message, 1).expect("within limits"))), Ok(message), "{name}");
    }
}

#[test]
fn a_golden_datagram_of_another_link_is_carried_as_it_is() {
    let now = Time::from_millis(5_000);
    let (mut a, mut b, mut out) = (open_link(0, 1, now), open_link(1, 1, now), [0; 1_472]);
    let len = open_link(1, 1, now).write_media(now, &FrameRef::new(3, 0, 0, 1), b"for another", &mut out).expect("it fits").first;
    let (carried, route) = (out[..len].to_vec(), SourceRoute::through_one(NodeId(0x0102_0304_0506_0708), 3));
    let len = a.write_transit(route, &carried, &mut out).expect("it fits");
    assert_eq!((len - carried.len(), TRANSIT_OVERHEAD), (40, 40), "what a hop costs");
    let mut datagram = golden(1, "transit", &out[..len]);
    let Ok(Incoming::Transit(transit)) = b.open(now, &mut datagram) else { panic!("a transit is a transit") };
    assert_eq!((transit.route, &*transit.datagram), (route, carried.as_slice()));
}

#[test]
fn a_golden_echo_says_what_its_writer_hears() {
    let now = Time::from_millis(5_000);
    let (mut a, mut b, mut out) = (open_link_abroad(0, now), open_link_abroad(1, now), [0; 1_472]);
    a.route(now, Way::Direct, Some(Way::Via(3)));
    let written = a.poll_by_way(now, &mut out);
    assert_eq!(written, Some((Way::Direct, 32 + 29)));
    assert!(matches!(b.open(now + Duration::from_millis(40), &mut golden(1, "echo", &out[..61])), Ok(Incoming::Nothing)));
    assert_eq!(b.open(now, &mut golden(1, "echo", &out[..61])).map(|_| ()), Err(RelayDrop::Replayed));
    assert_eq!(b.open_by(now, &mut out[..61].to_vec(), Way::Via(3)).map(|_| ()), Err(RelayDrop::Replayed));
    // Who is asked for echoes answers, and that tells the round trip.
    let later = now + Duration::from_millis(90);
    let (way, len) = b.poll_by_way(later, &mut out).expect("they are wanted");
    assert_eq!(way, Way::Direct);
    a.open(later + Duration::from_millis(40), &mut out[..len]).expect("it is authentic");
    assert_eq!(a.direct_path(), PathStats { came: 1, lost: 0, rtt_us: 80_000, jitter_us: 0 });
}

#[test]
fn a_golden_parity_brings_back_the_datagram_that_it_is_of() {
    let now = Time::from_millis(5_000);
    let (mut b, mut sealer, mut out) = (open_link(1, 1, now), Sealer::new(&keys_of(0, 0), 0), [0; 1_472]);
    let head = |kind, alias| Head { version: 1, kind, phase: false, association: 0x0905, alias, layer: 0, epoch: 0, counter: 0 };
    sealer.seal(head(FrameKind::Media, 7), b"came before", &[], &mut out).expect("it fits");
    b.open(now, &mut out[..43]).expect("it is authentic");
    // One is lost; its block begins one counter before that of the parity. Its shard is the only one, so the parity is as it.
    sealer.seal(head(FrameKind::Media, 7), b"a packet", &[], &mut out).expect("it fits");
    let shard = [&[8, 0, 0, 7, 0, 2, 1][..], b"a packet", &[0]].concat();
    let len = sealer.seal(head(FrameKind::Parity, 0), &[1, 1, 1, 0], &shard, &mut out).expect("it fits");
    assert!(b.poll_recovered(now).is_none());
    assert!(matches!(b.open(now, &mut golden(1, "parity", &out[..len])), Ok(Incoming::Nothing)));
    let Some(Ok(Incoming::Media(media))) = b.poll_recovered(now) else { panic!("a packet is a packet") };
    assert_eq!((media.alias, media.layer, media.epoch, &*media.payload), (7, 2, 1, b"a packet".as_slice()));
    assert!(b.poll_recovered(now).is_none());
    assert_eq!((b.stats().recovered, b.stats().lost), (1, 1), "the way has lost it all the same");
    // The original comes late.
    let mut late = Sealer::new(&keys_of(0, 0), 0);
    late.seal(head(FrameKind::Media, 7), b"came before", &[], &mut out).expect("it fits");
    let len = late.seal(head(FrameKind::Media, 7), b"a packet", &[], &mut out).expect("it fits");
    assert_eq!(b.open(now, &mut out[..len]).map(|_| ()), Err(RelayDrop::Replayed));
}

#[test]
fn golden_datagrams_of_both_versions_are_opened_and_written() {
    let now = Time::from_millis(5_000);
    let ask = Ask { alias: 7, wanted: 0b101, keyframes: 0b100 };
    let (age, rank) = (Duration::from_millis(5), 1);
    let clock = Clock { alias: 7, layer: 2, ntp: 1 << 40, rtp_timestamp: 90_000, age, ended: false, paused: true, rank, rate_kbps: 600 };
    for version in [0, 1] {
        let (mut a, mut b, mut out) = (open_link(0, version, now), open_link(1, 1 - version, now), [0; 1_472]);
        let frame = FrameRef::new(7, 2, 1, 9);
        let len = a.write_media(now, &frame, b"a packet", &mut out).expect("it fits").first;
        let mut datagram = golden(version, "media", &out[..len]);
        assert!(matches!(b.open(now, &mut datagram), Ok(Incoming::Media(media)) if media.payload == b"a packet" && media.alias == 7));
        let len = a.write_ask(&ask, &mut out).expect("it fits");
        assert!(matches!(b.open(now, &mut golden(version, "ask", &out[..len])), Ok(Incoming::Ask(came)) if came == ask));
        let len = a.write_clock(&clock, &mut out).expect("it fits");
        assert!(matches!(b.open(now, &mut golden(version, "clock", &out[..len])), Ok(Incoming::Clock(came)) if came == clock));
        let feedback = |link: &mut pop_relay::link::Link, now| {
            let mut out = [0; 1_472];
            let len = link.poll_transmit(now, &mut out).expect("feedback");
            out[..len].to_vec()
        };
        // Two of the other end, the second 7 ms slower, so that the next has an echo and jitter.
        for (sent_ms, came_ms) in [(0, 1), (1_000, 1_008)] {
            let mut datagram = feedback(&mut b, now + Duration::from_millis(sent_ms));
            a.open(now + Duration::from_millis(came_ms), &mut datagram).expect("it is authentic");
        }
        assert!(a.stats().jitter_us > 0);
        let mut datagram = golden(version, "feedback", &feedback(&mut a, now + Duration::from_millis(1_050)));
        assert!(matches!(b.open(now + Duration::from_millis(1_060), &mut datagram), Ok(Incoming::Nothing)));
        assert_eq!(b.rtt(), Some(Duration::from_millis(18)), "8 ms there, 10 ms back");
    }
}

#[test]
fn what_is_beyond_a_limit_is_neither_written_nor_read() {
    let long = "x".repeat(129);
    let figures = paths().paths[0].figures;
    let path = |pop: &str, figures| Path { pop: pop.to_owned(), figures };
    let beyond = [
        Message::Hello(Hello { node: long.clone(), ..hello() }),
        Message::Hello(Hello { pop: long.clone(), ..hello() }),
        Message::Hello(Hello { version: 0, version_min: 1, ..hello() }),
        Message::Hello(Hello { workers: vec![hello().workers[0]; 257], ..hello() }),
        Message::Hello(Hello { playout: Duration::from_secs(66), ..hello() }),
        Message::Offer(Offer { layers: vec![long.clone()], ..offer() }),
        Message::Offer(Offer { layers: vec![String::new(); 9], ..offer() }),
        Message::Offer(Offer { order: vec![0; 9], ..offer() }),
        Message::Offer(Offer { extensions: vec![0; 33], ..offer() }),
        Message::Offer(Offer { payload_types: vec![offer().payload_types[0].clone(); 129], ..offer() }),
        Message::Offer(Offer { payload_types: vec![PayloadType { codec: long, ..offer().payload_types[0].clone() }], ..offer() }),
        Message::Refuse(Refuse { track: TrackId(1), reason: "x".repeat(257) }),
        Message::Data(Data { to: vec![data().to[0].clone(); 1_025], ..data() }),
        Message::Data(Data { body: vec![0; 64 * 1024 + 1].into(), ..data() }),
        Message::Follow(Follow { session: data().session, age: Duration::ZERO, received: vec![(ParticipantId(1), 1); 1_025] }),
        Message::Heard(Heard { session: data().session, speaking: vec![(ParticipantId(1), 1); 1_025], connections: Vec::new() }),
        Message::Room(Room { metadata: "x".repeat(64 * 1024 + 1), ..room() }),
        Message::Paths(Paths { paths: many_paths(513), ..paths() }),
        Message::Paths(Paths { nodes: (0..257).map(located).collect(), ..paths() }),
        Message::Paths(Paths { nodes: vec![Located { pop: "x".repeat(129), ..located(1) }], ..paths() }),
        Message::Paths(Paths { paths: vec![paths().paths[0].clone(); 2], ..paths() }),
        Message::Paths(Paths { paths: vec![path("sin", Figures { rtt_us: 0, ..figures }), path("ams", figures)], ..paths() }),
        Message::Paths(Paths { paths: vec![path("sin", Figures { loss_out: 10_001, ..figures })], ..paths() }),
        Message::Paths(Paths { paths: vec![path("sin", Figures { loss_in: 10_001, ..figures })], ..paths() }),
        Message::Paths(Paths { release: "1\x1b[2J".to_owned(), ..paths() }),
        Message::Paths(Paths { paths: vec![Path { pop: "x".repeat(129), ..paths().paths[0].clone() }], ..paths() }),
        Message::Paths(Paths { release: "x".repeat(33), ..paths() }),
        Message::Paths(Paths { changes: false, ..paths() }),
        Message::Paths(Paths { gone: vec!["sin".to_owned()], ..paths() }),
        Message::Paths(Paths { gone: (0..513).map(|n| n.to_string()).collect(), ..paths() }),
        presence(Telling::Meet(Vec::new())),
        presence(Telling::Meet(vec![String::new(); 33])),
        presence(Telling::Meet(vec!["x".repeat(129)])),
        presence(Telling::Hosts(vec![NodeId(1); 1_025])),
        presence(Telling::Participant(ParticipantId(1), vec![0; (200 << 10) + 1].into())),
        presence(Telling::Page(ParticipantId(1), 1, vec![0; (200 << 10) + 1].into())),
    ];
    let beyond = beyond.into_iter().chain([Message::Revoked(vec![0; (128 << 10) + 1].into())]);
    for message in beyond {
        assert_eq!(encode(&message, 1), Err(ControlError::Limit), "{message:?}");
    }
    let most = Message::Offer(Offer { payload_types: vec![offer().payload_types[0].clone(); 128], ..offer() });
    assert_eq!(decode(&encode(&most, 1).expect("within limits")), Ok(most));
    let name = Identity::new(&"x".repeat(128)).expect("a name");
    let most = Message::Data(Data { to: vec![name; 1_024], body: vec![7; 64 * 1024].into(), ..data() });
    assert_eq!(decode(&encode(&most, 1).expect("within limits")), Ok(most));
    let most = Message::Room(Room { metadata: "x".repeat(64 * 1024), ..room() });
    assert_eq!(decode(&encode(&most, 1).expect("within limits")), Ok(most));
    let most = Message::Paths(Paths { paths: many_paths(512), nodes: (0..256).map(located).collect(), ..paths() });
    assert_eq!(decode(&encode(&most, 1).expect("within limits")), Ok(most));
    let most = presence(Telling::Page(ParticipantId(1), 1, vec![7; 200 << 10].into()));
    assert_eq!(decode(&encode(&most, 1).expect("within limits")), Ok(most));
    for bytes in [vec![], vec![0; 15], vec![0; 256 * 1024 + 1]] {
        assert_eq!(decode(&bytes), Err(ControlError::Length));
    }
    assert_eq!(decode(&[0; 64]), Err(ControlError::Malformed));
}

#[test]
fn a_peer_that_would_take_a_wish_for_one_of_its_own_tracks_is_not_told_it() {
    assert_eq!(encode(&Message::Want(want_of_abroad()), 0), Err(ControlError::Limit));
}

#[test]
fn a_message_of_a_later_version_is_passed_over() {
    // The union's type is the only byte that differs: a member that nobody here knows.
    let bytes = encode(&Message::Rekey(Rekey { generation: 2 }), 1).expect("within limits");
    let changed: Vec<_> = (0..bytes.len())
        .filter(|at| bytes[*at] == 6)
        .map(|at| {
            let mut later = bytes.clone();
            later[at] = 100;
            decode(&later)
        })
        .collect();
    assert!(changed.contains(&Err(ControlError::Unknown)), "{changed:?}");
}

#[test]
fn the_version_to_speak_is_the_newest_that_both_know() {
    for (version, version_min, expected) in [(1, 0, Some(1)), (0, 0, Some(0)), (1, 1, Some(1)), (9, 0, Some(1)), (9, 2, None)] {
        assert_eq!(negotiate(1, &Hello { version, version_min, ..hello() }), expected, "{version_min} to {version}");
    }
    // One that is held at the version before.
    for (version, version_min, expected) in [(1, 0, Some(0)), (0, 0, Some(0)), (1, 1, None)] {
        assert_eq!(negotiate(0, &Hello { version, version_min, ..hello() }), expected, "{version_min} to {version}");
    }
}
