//! Mutated datagrams and control messages: no panic, nothing that is not authentic, nothing twice, and no memory that grows.

mod common;

use std::{collections::HashSet, time::Duration};

use common::{Rng, keys_of, mutate, mutation_count, open_link};
use pop_relay::{
    RelayDrop,
    control::{
        Action, CONTROL_LEN_MAX, Connection, Data, Follow, Heard, Hello, Located, Message, Offer, Order, Path, Paths, PayloadType,
        Presence, Refuse, Resume, Room, Telling, Want, decode, encode,
    },
    frame::{FrameKind, Head},
    link::{Ask, Clock, DATAGRAM_LEN_WRITTEN_MAX, FrameRef, HOPS_MAX, Incoming, Link, SourceRoute, Transit, Way},
    route::Figures,
    seal::Sealer,
};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId, Time, TrackId};

const SEED: u64 = 0x0072_656c;

/// Opens, takes everything out, and says whether the first check (length, version, kind) let it past.
fn open(link: &mut Link, now: Time, datagram: &mut [u8], mut came: impl FnMut(&[u8])) -> Result<(), RelayDrop> {
    let mut take = |incoming: Incoming<'_>| match incoming {
        Incoming::Media(media) => came(media.payload),
        Incoming::Bundle(bundle) => bundle.for_each(|media| came(media.payload)),
        Incoming::Transit(transit) => transits(&transit),
        Incoming::Ask(_) | Incoming::Clock(_) | Incoming::Nothing => {}
    };
    let opened = link.open(now, datagram).map(&mut take);
    let mut recovered = 0;
    while let Some(incoming) = link.poll_recovered(now) {
        // What was never a datagram is refused as one that came would be.
        let _ = incoming.map(&mut take);
        recovered += 1;
    }
    assert!(recovered <= 8, "a parity brings no more than there are parities");
    opened
}

/// Whatever was sealed: what goes on is a datagram, by a route of so many hops at most.
fn transits(transit: &Transit<'_>) {
    assert!(transit.route.hops_left < HOPS_MAX);
    let inner = Head::read(transit.datagram).expect("what is carried has a head");
    assert_ne!(inner.kind, FrameKind::Transit, "nothing is carried in what is carried");
}

/// Everything that a link has to say after what it was told.
fn drain(link: &mut Link, now: Time, out: &mut [u8]) {
    link.handle_timeout(now);
    let mut repairs = 0;
    while let Some(frame) = link.next_repair() {
        let _ = link.write_repair(now, &frame, &[0; 40], out);
        repairs += 1;
    }
    assert!(repairs <= 2 * 512 * 32, "repairs are bounded");
    let mut datagrams = 0;
    while link.poll_transmit(now, out).is_some() {
        datagrams += 1;
    }
    while link.poll_by_way(now, out).is_some() {
        datagrams += 1;
    }
    assert!(datagrams <= 4 + 3, "{datagrams} datagrams in one turn");
    assert!(link.poll_timeout() > now || datagrams > 0, "a link does not spin");
}

#[test]
fn mutated_datagrams_deliver_nothing_that_was_not_sent_and_nothing_twice() {
    let mut rng = Rng::new(SEED);
    let (mut inputs, mut past, mut opened) = (0_u64, 0_u64, 0_u64);
    let mut now = Time::from_millis(1_000);
    let (mut a, mut b) = (open_link(0, 1, now), open_link(1, 1, now));
    a.route(now, Way::Direct, Some(Way::Via(3)));
    let mut out = vec![0; 4_000];
    let mut seen = HashSet::new();
    let mut earlier = Vec::new();
    for sequence in 0..mutation_count() as u64 / 4 {
        now = now + Duration::from_micros(rng.below(2_000) as u64);
        let mut packet = sequence.to_le_bytes().to_vec();
        packet.resize(8 + rng.below(200), 1);
        let frame = FrameRef::new(rng.below(4) as u16, 0, 0, sequence);
        let len = match rng.below(8) {
            7 => a.poll_by_way(now, &mut out).map_or(0, |(_, len)| len),
            6 => {
                // What is carried is another link's, so that nothing of it is delivered here.
                let carried = if (32..1_000).contains(&earlier.len()) { earlier.as_slice() } else { &[1; 40] };
                a.write_transit(SourceRoute::through_one(NodeId(sequence), 1), carried, &mut out).expect("it fits")
            }
            0 => a.write_ask(&Ask { alias: 1, wanted: 1, keyframes: 0 }, &mut out).expect("it fits"),
            1 => a.poll_transmit(now, &mut out).unwrap_or(0),
            2 => a.bundle_media(now, &frame, &packet, &mut out).expect("it fits").first,
            _ => a.write_media(now, &frame, &packet, &mut out).expect("it fits").first,
        };
        let mut datagram = out[..len].to_vec();
        match rng.below(10) {
            0 => datagram.clone_from(&earlier),
            1 => earlier.clone_from(&datagram),
            2..=4 => {}
            _ => mutate(&mut rng, &mut datagram),
        }
        inputs += 1;
        past += u64::from(Head::read(&datagram).is_ok());
        let result = open(&mut b, now, &mut datagram, |payload| {
            let sequence = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
            assert!(payload[8..].iter().all(|byte| *byte == 1), "it is as it was sent");
            assert!(seen.insert(sequence), "{sequence} came twice");
        });
        opened += u64::from(result.is_ok());
        if rng.one_in(50) {
            drain(&mut b, now, &mut out);
        }
        if a.keys_used() {
            break;
        }
    }
    let share = 100.0 * past as f64 / inputs as f64;
    println!("datagrams: seed {SEED}, {inputs} inputs, {share:.1} % past the first check, {opened} opened");
    assert!(share >= 30.0 && opened > inputs / 10);
}

/// A peer with our keys that lies: what is sealed is mutated, the seal is right.
#[test]
fn mutated_payloads_of_an_authentic_liar_panic_nowhere_and_stay_bounded() {
    let mut rng = Rng::new(SEED);
    let now = Time::from_millis(1_000);
    let mut liar = Sealer::new(&keys_of(0, 0), 0);
    let (mut a, mut b) = (open_link(0, 1, now), open_link(1, 1, now));
    b.route(now, Way::Direct, Some(Way::Via(3)));
    let mut out = vec![0; 4_000];
    // Honest payloads of each kind, taken from an honest end by opening what it writes.
    let mut opener = pop_relay::seal::Opener::new(&keys_of(0, 0), 0);
    let mut seeds: Vec<(FrameKind, Vec<u8>)> = Vec::new();
    let mut keep = |datagram: &mut [u8]| {
        let head = Head::read(datagram).expect("an honest head");
        let len = opener.open(now, &head, datagram).expect("it is authentic");
        seeds.push((head.kind, datagram[16..16 + len].to_vec()));
    };
    let clock =
        Clock { alias: 1, layer: 0, ntp: 1, rtp_timestamp: 2, age: Duration::ZERO, ended: true, paused: true, rank: 1, rate_kbps: 7 };
    let len = a.write_ask(&Ask { alias: 1, wanted: 3, keyframes: 1 }, &mut out).expect("it fits");
    keep(&mut out[..len]);
    let len = a.write_clock(&clock, &mut out).expect("it fits");
    keep(&mut out[..len]);
    for at in 0..3 {
        a.bundle_media(now, &FrameRef::new(1, 0, 0, at), &[1; 50], &mut out).expect("it fits");
    }
    let len = a.poll_transmit(now, &mut out).expect("the bundle");
    keep(&mut out[..len]);
    let written = a.write_media(now, &FrameRef::new(1, 0, 0, 9), &[1; 1_300], &mut out).expect("it fits");
    let (first, second) = out.split_at_mut(written.first);
    keep(first);
    keep(&mut second[..written.second]);
    let len = a.write_media(now, &FrameRef::new(1, 0, 0, 10), &[1; 50], &mut out).expect("it fits").first;
    let carried = out[..len].to_vec();
    let len = a.write_transit(SourceRoute::through_one(NodeId(7), 1), &carried, &mut out).expect("it fits");
    keep(&mut out[..len]);
    for counter in [3_u32, 40] {
        let part = if counter == 40 { 1_300_u16 } else { 0 };
        let payload = [counter.to_le_bytes().as_slice(), &[0, 1], &part.to_le_bytes(), &[1; 650]].concat();
        seeds.push((FrameKind::Repair, payload));
    }
    seeds.push((FrameKind::Echo, [[0, 1, 1, 50].as_slice(), &[0; 24]].concat()));
    // Parity of one datagram, which it is the same as, and of three, of which it is noise.
    let shard = [&50_u16.to_le_bytes()[..], &[0, 1, 0, 0, 0], &[1; 50], &[0]].concat();
    seeds.push((FrameKind::Parity, [&[1, 1, 1, 0][..], &shard].concat()));
    seeds.push((FrameKind::Parity, [&[9, 3, 2, 1, 4, 7][..], &shard].concat()));
    // A feedback with ranges: b misses what a sent.
    for counter in [0_u64, 2, 4, 9] {
        while liar.counter() < counter {
            liar.seal(head(FrameKind::Media), &[0; 20], &[], &mut out).expect("it fits");
        }
        let len = liar.seal(head(FrameKind::Media), &[0; 20], &[], &mut out).expect("it fits");
        b.open(now, &mut out[..len]).expect("it is authentic");
    }
    let later = now + Duration::from_millis(20);
    let len = b.poll_transmit(later, &mut out).expect("feedback");
    let mut opener = pop_relay::seal::Opener::new(&keys_of(1, 0), 0);
    let fed_back = Head::read(&out[..len]).expect("an honest head");
    let payload_len = opener.open(later, &fed_back, &mut out[..len]).expect("it is authentic");
    assert_eq!(fed_back.kind, FrameKind::Feedback);
    seeds.push((FrameKind::Feedback, out[16..16 + payload_len].to_vec()));

    let (mut inputs, mut accepted, mut now) = (0_u64, 0_u64, later);
    let mut generation = 0;
    for _ in 0..mutation_count() / 4 {
        now = now + Duration::from_micros(rng.below(3_000) as u64);
        let (kind, mut payload) = seeds[rng.below(seeds.len())].clone();
        let kind = if rng.one_in(20) { seeds[rng.below(seeds.len())].0 } else { kind };
        if !rng.one_in(8) {
            mutate(&mut rng, &mut payload);
        }
        payload.truncate(1_400);
        if kind == FrameKind::Repair && payload.len() >= 4 && rng.one_in(2) {
            // Of something that is really missing: the counter before the last.
            payload[..4].copy_from_slice(&(liar.counter() as u32).wrapping_sub(rng.below(20) as u32).to_le_bytes());
        }
        if rng.one_in(10) {
            // A gap.
            liar.seal(head(FrameKind::Probe), &[], &[], &mut out).expect("it fits");
        }
        let (layer, epoch) = if kind == FrameKind::Transit { (rng.below(4) as u8, rng.below(5) as u8) } else { (0, 0) };
        let len = if kind == FrameKind::Echo {
            liar.seal_echo(head(kind), &payload, &mut out).expect("it fits")
        } else if kind == FrameKind::Transit {
            liar.seal_transit(Head { layer, epoch, ..head(kind) }, &payload, &[], &mut out).expect("it fits")
        } else {
            liar.seal(Head { layer, epoch, ..head(kind) }, &payload, &[], &mut out).expect("it fits")
        };
        inputs += 1;
        let result = open(&mut b, now, &mut out[..len], |payload| assert!(payload.len() <= 2_400));
        accepted += u64::from(result.is_ok());
        assert!(
            matches!(result, Ok(()) | Err(RelayDrop::BadPayload | RelayDrop::Late | RelayDrop::PartLost | RelayDrop::BadRoute)),
            "authentic, new, and yet {result:?}"
        );
        if rng.one_in(20) {
            drain(&mut b, now, &mut out);
        }
        if liar.keys_used() {
            generation += 1;
            liar.rekey(&keys_of(0, generation), generation);
            liar.confirm(generation);
            b.rekey(now, generation, &keys_of(1, generation), &keys_of(0, generation));
        }
    }
    let share = 100.0 * accepted as f64 / inputs as f64;
    println!("payloads: seed {SEED}, {inputs} inputs, all past the first check (the seal), {share:.1} % accepted");
    assert!(share > 10.0);
}

fn head(kind: FrameKind) -> Head {
    Head { version: 1, kind, phase: false, association: 0x0903, alias: 1, layer: 0, epoch: 0, counter: 0 }
}

#[test]
fn mutated_control_messages_panic_nowhere_and_keep_their_limits() {
    let mut rng = Rng::new(SEED);
    let payload_type = PayloadType { number: 96, codec: "VP8".to_owned(), clock_rate: 90_000, rtx: Some(97) };
    let session = || SessionId::new("room").expect("a name");
    let seeds: Vec<Vec<u8>> = [
        Message::Hello(Hello {
            version: 1,
            version_min: 0,
            node: "a".to_owned(),
            pop: "fra".to_owned(),
            incarnation: Incarnation { start: 1, nonce: 2 },
            link: 1,
            workers: vec!["192.0.2.1:11000".parse().expect("an address"); 3],
            playout: Duration::from_millis(150),
            resumes: true,
        }),
        Message::Resume(Resume { number: 1, received: 2, proof: [3; 32] }),
        Message::Want(Want { session: session(), track: TrackId(1), worker: 0, origin: None }),
        Message::Offer(Offer {
            track: TrackId(1),
            alias: 1,
            worker: 0,
            audio: true,
            payload_types: vec![payload_type; 3],
            extensions: vec![1, 2, 3],
            layers: vec!["q".to_owned(), "h".to_owned()],
            order: vec![0, 1],
            load: 3,
        }),
        Message::Refuse(Refuse { track: TrackId(1), reason: "full".to_owned() }),
        Message::Data(Data {
            session: session(),
            sender: ParticipantId(1),
            reliable: true,
            sequence: 1,
            to: vec![Identity::new("ann").expect("a name"); 3],
            body: [7; 40].into(),
        }),
        Message::Follow(Follow { session: session(), age: Duration::from_secs(1), received: vec![(ParticipantId(1), 1); 3] }),
        Message::Heard(Heard {
            session: session(),
            speaking: vec![(ParticipantId(1), 3); 3],
            connections: vec![Connection { participant: ParticipantId(1), score: 410, grade: 2 }; 3],
        }),
        Message::Order(Order {
            number: 1,
            session: session(),
            action: Action::Mute,
            identity: Identity::new("ann").ok(),
            tracks: vec![TrackId(1); 3],
        }),
        Message::Room(Room { session: session(), metadata: "on air".to_owned(), participants_max: 9, said: (1 << 40, 3) }),
        Message::Paths(Paths {
            paths: ["sin", "ams", "nyc"]
                .map(|pop| Path { pop: pop.to_owned(), figures: Figures { rtt_us: 160_000, ..Figures::default() } })
                .to_vec(),
            release: "0.1.0".to_owned(),
            load: 9,
            draining: false,
            nodes: vec![Located { node: "a".to_owned(), pop: "sin".to_owned(), address: "192.0.2.1:7890".parse().expect("an address") }; 3],
            changes: true,
            gone: ["khi", "fra"].map(str::to_owned).to_vec(),
        }),
        Message::Presence(Presence { session: session(), telling: Telling::Meet(vec!["key".to_owned(); 3]) }),
        Message::Presence(Presence { session: session(), telling: Telling::Hosts(vec![pop_schemas::NodeId(7); 3]) }),
        Message::Presence(Presence { session: session(), telling: Telling::Page(ParticipantId(1), 7, b"page".as_slice().into()) }),
    ]
    .iter()
    .map(|message| encode(message, 1).expect("within limits"))
    .collect();
    let (mut inputs, mut past, mut read) = (0_u64, 0_u64, 0_u64);
    for _ in 0..mutation_count() / 2 {
        let mut bytes = seeds[rng.below(seeds.len())].clone();
        mutate(&mut rng, &mut bytes);
        inputs += 1;
        past += u64::from((16..=CONTROL_LEN_MAX).contains(&bytes.len()));
        if let Ok(message) = decode(&bytes) {
            read += 1;
            // What was read is within the limits of what is written.
            assert!(encode(&message, 1).is_ok(), "{message:?}");
        }
    }
    let share = 100.0 * past as f64 / inputs as f64;
    println!("control: seed {SEED}, {inputs} inputs, {share:.1} % past the first check, {read} read");
    assert!(share >= 30.0 && read > 0);
    assert!(out_of_reach(&seeds), "a message that names itself is not followed for ever");
}

/// Offsets that point back: each place of each message in turn names the root again.
fn out_of_reach(seeds: &[Vec<u8>]) -> bool {
    for seed in seeds {
        for at in (0..seed.len() - 4).step_by(4) {
            for value in [0_u32, 4, u32::MAX, 0x7fff_ffff, (seed.len() as u32).wrapping_sub(at as u32)] {
                let mut bytes = seed.clone();
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let _ = decode(&bytes);
            }
        }
    }
    true
}

#[test]
fn datagrams_of_no_link_leave_no_trace() {
    let now = Time::from_millis(5);
    let mut link = open_link(0, 1, now);
    let mut rng = Rng::new(SEED);
    for _ in 0..10_000 {
        let len = rng.below(DATAGRAM_LEN_WRITTEN_MAX);
        let mut datagram = rng.bytes(len);
        if let [version, kind, ..] = datagram.as_mut_slice() {
            (*version, *kind) = (1, *kind % 11);
        }
        assert!(link.open(now, &mut datagram).is_err());
    }
    assert_eq!(link.heard_at(), None);
    assert_eq!((link.stats().datagrams_in, link.stats().lost, link.stats().refused), (0, 0, 10_000));
}
