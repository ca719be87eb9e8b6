//! Two of our associations over networks that lose, repeat and reorder; mutated packets; bombs.

#[path = "sctp_support/network.rs"]
mod network;

use std::time::Duration;

use bytes::Bytes;
use network::{LOSSY, Network, RELIABLE, Random, Weather};
use pop::data::DataDrop;
use pop::sctp::{MESSAGE_LEN_MAX, SctpEnd, SctpEvent, SendError, WINDOW_LEN};

const BAD: Weather = Weather { lost: 80, twice: 50, late: 100 };

const SEEDS: [u64; 4] = [1, 2, 3, 0x5eed];

fn numbered(n: u32, len: usize) -> Bytes {
    let mut body = n.to_be_bytes().to_vec();
    body.resize(len.max(4), n as u8);
    body.into()
}

fn number(body: &[u8]) -> u32 {
    u32::from_be_bytes(body[..4].try_into().unwrap())
}

#[test]
fn reliable_messages_arrive_once_and_in_order_whatever_the_weather() {
    for seed in SEEDS {
        println!("seed {seed:#x}");
        let (mut network, reliable, _) = Network::connected(seed, BAD);
        let mut sizes = Random(seed);
        let (mut next, mut back) = (0, 0);
        network.run(Duration::from_secs(300), |network| {
            while next < 1_000 && network.client.sctp.buffered_len(reliable) < 100_000 {
                let len = sizes.below(if next % 100 == 0 { MESSAGE_LEN_MAX as u64 } else { 3_000 }) as usize;
                network.client.sctp.send(reliable, true, &numbered(next, len)).unwrap();
                next += 1;
            }
            while back < 300 && network.server.sctp.buffered_len(reliable) < 100_000 {
                network.server.sctp.send(reliable, true, &numbered(back, 700)).unwrap();
                back += 1;
            }
            network.server.got[&reliable].len() >= 1_000 && network.client.got.get(&reliable).is_some_and(|got| got.len() >= 300)
        });
        for (got, count) in [(&network.server.got[&reliable], 1_000), (&network.client.got[&reliable], 300)] {
            let numbers: Vec<u32> = got.iter().map(|message| number(&message.body)).collect();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "seed {seed:#x}");
            assert!(got.iter().all(|m| m.binary && m.body[4..].iter().all(|byte| *byte == number(&m.body) as u8)));
        }
    }
}

#[test]
fn lossy_messages_do_not_wait_for_reliable_ones() {
    let weather = Weather { lost: 50, ..Weather::default() };
    let (mut network, reliable, lossy) = Network::connected(7, weather);
    // The server's reliable channel is full: 2 MB in front, that a cwnd of a bad network carries in many seconds.
    for n in 0..40 {
        network.server.sctp.send(reliable, true, &numbered(n, 50_000)).unwrap();
    }
    network.run(Duration::from_secs(1), |_| false);
    let (mut arrived, mut lost, mut slowest) = (0, 0, Duration::ZERO);
    for n in 0..100 {
        let begin = network.now;
        let before = network.client.got.get(&lossy).map_or(0, Vec::len);
        network.server.sctp.send(lossy, true, &numbered(n, 300)).unwrap();
        network.run(Duration::from_millis(2_000), |network| network.client.got.get(&lossy).map_or(0, Vec::len) > before);
        if network.client.got.get(&lossy).map_or(0, Vec::len) > before {
            arrived += 1;
            slowest = slowest.max(network.now - begin);
        } else {
            lost += 1;
        }
    }
    let behind = 40 - network.client.got.get(&reliable).map_or(0, Vec::len);
    println!("{arrived} arrived, the slowest after {slowest:?}; {lost} lost; {behind} reliable messages are still on their way");
    assert!(arrived >= 80 && lost <= 20);
    network.run(Duration::from_secs(300), |network| network.client.got.get(&reliable).map_or(0, Vec::len) == 40);
    assert_eq!(network.client.got[&reliable].len(), 40);
}

#[test]
fn a_lossy_message_is_tried_once() {
    let (mut network, _, lossy) = Network::connected(3, Weather::default());
    network.weather.lost = 300;
    for n in 0..500 {
        network.client.sctp.send(lossy, true, &numbered(n, 200)).unwrap();
        network.run(Duration::from_millis(10), |_| false);
    }
    network.run(Duration::from_secs(10), |_| false);
    let got = network.server.got[&lossy].len();
    println!("{got} of 500 with a loss of 30 %");
    assert!((250..450).contains(&got), "{got}: neither repeated nor stuck");
}

#[test]
fn texts_and_empty_messages_are_what_they_were() {
    let (mut network, reliable, _) = Network::connected(1, Weather::default());
    for (binary, body) in [(true, &b""[..]), (false, b""), (false, "grüezi".as_bytes()), (true, b"\0\xff")] {
        network.client.sctp.send(reliable, binary, &Bytes::copy_from_slice(body)).unwrap();
        network.run(Duration::from_secs(1), |network| !network.server.got[&reliable].is_empty());
        let message = network.server.got.get_mut(&reliable).unwrap().remove(0);
        assert_eq!((message.binary, &message.body[..]), (binary, body));
    }
    let long = Bytes::from(vec![0; MESSAGE_LEN_MAX + 1]);
    assert_eq!(network.client.sctp.send(reliable, true, &long), Err(SendError::TooLong));
    assert_eq!(network.client.sctp.send(40, true, &Bytes::new()), Err(SendError::NoChannel));
    network.client.sctp.send(reliable, true, &long.slice(1..)).unwrap();
    network.run(Duration::from_secs(5), |network| !network.server.got[&reliable].is_empty());
    assert_eq!(network.server.got[&reliable][0].body.len(), MESSAGE_LEN_MAX);
}

#[test]
fn a_reader_that_stops_stops_its_sender_and_one_that_goes_on_is_told_at_once() {
    let (mut network, reliable, _) = Network::connected(5, Weather::default());
    network.server.reads = false;
    let mut next = 0;
    let fill = |network: &mut Network, next: &mut u32| {
        while *next < 4_000 && network.client.sctp.buffered_len(reliable) < 2 * WINDOW_LEN {
            network.client.sctp.send(reliable, true, &numbered(*next, 1_000)).unwrap();
            *next += 1;
        }
    };
    network.run(Duration::from_secs(20), |network| {
        fill(network, &mut next);
        false
    });
    let waiting = network.client.sctp.buffered_len(reliable);
    let taken = next as usize * 1_000 - waiting;
    println!("{taken} bytes were taken without a reader, {waiting} wait at the sender");
    assert!((WINDOW_LEN / 2..=WINDOW_LEN + 20_000).contains(&taken));
    let begin = network.now;
    network.server.reads = true;
    network.run(Duration::from_secs(60), |network| {
        fill(network, &mut next);
        network.server.got[&reliable].len() == 4_000
    });
    assert_eq!(network.server.got[&reliable].len(), 4_000);
    let rest = network.now - begin;
    println!("4 MB after {rest:?}");
    assert!(rest < Duration::from_secs(15), "no timer of the sender was waited for again and again");
    assert!(network.server.got[&reliable].iter().enumerate().all(|(n, m)| number(&m.body) == n as u32));
}

#[test]
fn channels_open_and_close_and_open_again() {
    let (mut network, reliable, _) = Network::connected(9, Weather { lost: 30, ..Weather::default() });
    for round in 0..5 {
        network.client.sctp.close(reliable);
        let closed = SctpEvent::Closed { channel: reliable };
        let count = |events: &[SctpEvent]| events.iter().filter(|event| **event == closed).count();
        network.run(Duration::from_secs(30), |n| count(&n.server.events) == round + 1 && count(&n.client.events) == round + 1);
        assert_eq!((count(&network.server.events), count(&network.client.events)), (round + 1, round + 1));
        network.run(Duration::from_secs(3), |_| false);
        assert_eq!(network.client.sctp.open("_reliable", RELIABLE), Some(reliable), "its number is free again");
        network.client.sctp.send(reliable, true, &numbered(round as u32, 10)).unwrap();
        network.run(Duration::from_secs(30), |n| n.server.got[&reliable].len() > round);
        assert_eq!(number(&network.server.got[&reliable][round].body), round as u32);
    }
}

#[test]
fn channels_without_end_are_refused() {
    let (mut network, ..) = Network::connected(4, Weather::default());
    for n in 0..28 {
        assert!(network.client.sctp.open(&format!("bomb{n}"), LOSSY).is_some());
    }
    network.run(Duration::from_secs(5), |_| false);
    let opened = network.server.events.iter().filter(|event| matches!(event, SctpEvent::Opened { .. })).count();
    assert_eq!(opened, 16);
    let refused = network.server.sctp.take_drops();
    assert_eq!(refused.iter().filter(|reason| **reason == DataDrop::ChannelRefused).count(), 14);
    // A label of 64 KB is no channel either, and nobody waits for it.
    network.client.sctp.open(&"x".repeat(60_000), RELIABLE);
    network.run(Duration::from_secs(5), |_| false);
    assert_eq!(network.server.events.iter().filter(|event| matches!(event, SctpEvent::Opened { .. })).count(), 16);
}

#[test]
fn a_second_init_changes_nothing() {
    let mut network = Network::new(2, Weather::default());
    network.keep();
    network.client.sctp.begin();
    network.run(Duration::from_secs(5), |network| network.client.events.contains(&SctpEvent::Connected));
    network.run(Duration::from_secs(1), |_| false);
    let init = network.client.sent[0].clone();
    assert_eq!(network.server.sctp.handle_datagram(network.now, &init), Err(DataDrop::SctpUnexpected), "it is established");
    let mut another = Network::new(3, Weather::default());
    another.keep();
    another.client.sctp.begin();
    another.run(Duration::from_millis(1), |_| false);
    let stranger = another.client.sent[0].clone();
    let mut waiting = Network::new(4, Weather::default());
    waiting.client.sctp.begin();
    waiting.run(Duration::from_millis(7), |_| false);
    assert_eq!(waiting.server.sctp.handle_datagram(waiting.now, &stranger), Err(DataDrop::SctpUnexpected), "another one is on its way");
    waiting.run(Duration::from_secs(5), |network| network.client.events.contains(&SctpEvent::Connected));
    assert!(waiting.client.events.contains(&SctpEvent::Connected));
}

/// CRC-32C, written once more for the test.
fn fix_checksum(packet: &mut [u8]) {
    packet[8..12].fill(0);
    let mut sum = !0_u32;
    for byte in packet.iter() {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    packet[8..12].copy_from_slice(&(!sum).to_le_bytes());
}

#[test]
fn mutated_packets_end_an_association_at_most() {
    const SEED: u64 = 0x5eed_5c79;
    let inputs_max = if cfg!(debug_assertions) { 40_000 } else { 400_000 };
    let mut random = Random(SEED);
    let (mut inputs, mut passed, mut associations, mut ended, mut panics) = (0_u64, 0_u64, 0, 0, 0);
    while inputs < inputs_max {
        associations += 1;
        let stage_ms = random.below(60);
        let mut network = Network::new(random.next(), Weather { lost: 20, ..Weather::default() });
        network.keep();
        network.client.sctp.begin();
        network.run(Duration::from_millis(stage_ms), |_| false);
        for round in 0..20_u32 {
            if let Some(reliable) = network.client.sctp.find("_reliable") {
                let _ = network.client.sctp.send(reliable, true, &numbered(round, random.below(4_000) as usize));
                let _ = network.server.sctp.send(reliable, true, &numbered(round, random.below(4_000) as usize));
                if round == 15 {
                    network.client.sctp.close(reliable);
                }
            } else if network.client.events.contains(&SctpEvent::Connected) {
                network.client.sctp.open("_reliable", RELIABLE);
                network.client.sctp.open("_lossy", LOSSY);
            }
            network.run(Duration::from_millis(15), |_| false);
            let Some(seen) = network.client.sent.len().checked_sub(1) else { continue };
            for _ in 0..10 {
                let at = seen - random.below(4.min(seen as u64 + 1)) as usize;
                let packet = mutate(&mut random, &network.client.sent[at]);
                inputs += 1;
                passed += u64::from(network.server.sctp.handle_datagram(network.now, &packet) != Err(DataDrop::SctpMalformed));
            }
        }
        network.run(Duration::from_millis(50), |_| false);
        ended += u32::from(network.server.events.iter().any(|event| matches!(event, SctpEvent::Ended(_))));
        panics += u32::from(network.server.events.contains(&SctpEvent::Ended(SctpEnd::Panicked)));
    }
    println!("seed {SEED:#x}: {inputs} mutated packets, {:.1} % past our check", passed as f64 * 100.0 / inputs as f64);
    println!("{associations} associations, {ended} of them ended, {panics} by a panic of the crate");
    assert!(passed * 4 > inputs);
    assert_eq!(panics, 0, "a panic is caught, and is a bug to be found");
}

fn mutate(random: &mut Random, packet: &[u8]) -> Vec<u8> {
    let mut mutated = packet.to_vec();
    for _ in 0..=random.below(3) {
        let len = mutated.len() as u64;
        let at = 12 + random.below(len - 12) as usize;
        match random.below(8) {
            0 => mutated.truncate((at & !3).max(16)),
            1 => mutated[at] = random.next() as u8,
            2 => mutated[12] = random.below(16) as u8,
            3 => mutated[13] = random.next() as u8,
            4 if at + 4 <= mutated.len() => mutated[at..at + 4].copy_from_slice(&[0xff; 4]),
            5 => {
                // A chunk more.
                let chunk = [random.next() as u8, 0, 0, 8, 0, 0, 0, random.next() as u8];
                mutated.extend_from_slice(&chunk);
                mutated.truncate(1_400);
            }
            _ => mutated[at] ^= 1 << random.below(8),
        }
    }
    if random.below(10) > 0 {
        fix_checksum(&mut mutated);
    }
    mutated
}
