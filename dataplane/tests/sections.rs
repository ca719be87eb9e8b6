//! A client with as many sections as a large room asks for: reports in pages, figures in turn, goodbyes for all.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{CONSENT, Client, Rig, limits, open_transport, rtcp_to, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::{SUBSCRIPTIONS_PER_TRANSPORT_MAX, WorkerLimits};
use pop_proto::control::{OpenSubscription, OpenTransport};
use pop_proto::wire::rtcp::{ReportBlock, RtcpPacket, RtcpReader, SenderInfo};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TransportId};

/// The SSRC of the first section; the others follow in an order that is not the order of opening.
const FIRST: u64 = 1_000;

fn section(at: u64) -> u64 {
    FIRST + (at * 101) % SUBSCRIPTIONS_PER_TRANSPORT_MAX as u64
}

/// A publisher (1) whose clock is known, and a client (2) with `sections` sections of its track that has got a keyframe in each.
fn large_room(sections: u64) -> (Rig, Client, Client) {
    let mut rig = Rig::new();
    rig.core = Core::new(WorkerLimits { subscriptions: 10_000, ..limits() }, CONSENT);
    let mut publisher = rig.publisher(1);
    let client = rig.connect_with(OpenTransport { cname: "a-cname-as-long-as-in-life".into(), ..open_transport(2) });
    for at in 0..sections {
        let id = section(at);
        let open = OpenSubscription { transport: TransportId(2), ..Rig::subscription(id) };
        rig.command(Command::OpenSubscription(Box::new(open)));
        rig.forward(id, Some(1));
    }
    rig.sent();
    let sent = rig.exchange(publisher.path, publisher.packet(1, 10, &vp8(true, 100)));
    assert_eq!(sent.len() as u64, sections);
    let info = SenderInfo { ssrc: 1, ntp: 100 << 32, rtp_timestamp: 900, packets: 1, octets: 100 };
    let report = publisher.rtcp(|c| c.sender_report(&info, &[]));
    rig.exchange(publisher.path, report);
    (rig, publisher, client)
}

/// SSRCs of the SDES packets of a compound: each of ours has one chunk.
fn described(compound: &[u8]) -> Vec<u32> {
    let (mut rest, mut found) = (compound, Vec::new());
    while let [_, packet_type, l0, l1, body @ ..] = rest {
        let len = 4 * usize::from(u16::from_be_bytes([*l0, *l1]));
        if *packet_type == 202 {
            found.push(u32::from_be_bytes(body[..4].try_into().unwrap()));
        }
        rest = &body[len..];
    }
    found
}

fn sender_reports(compounds: &[Vec<u8>]) -> HashMap<u32, (usize, SenderInfo)> {
    let mut reports = HashMap::new();
    for compound in compounds {
        for packet in RtcpReader::new(compound).unwrap() {
            if let RtcpPacket::SenderReport { info, .. } = packet {
                reports.entry(info.ssrc).or_insert((0, info)).0 += 1;
            }
        }
    }
    reports
}

#[test]
fn each_of_256_sections_reports_once_a_second_in_compounds_that_stand_alone() {
    let (mut rig, publisher, mut client) = large_room(256);
    for second in 0..3 {
        let sent = rig.pass(Duration::from_secs(1));
        rig.exchange(publisher.path, publisher.check(common::PWD));
        assert!(sent.iter().all(|datagram| datagram.bytes.len() <= 1_200));
        let compounds = rtcp_to(&mut client, &sent);
        let reports = sender_reports(&compounds);
        assert_eq!(reports.len(), 256, "second {second}");
        assert!(reports.values().all(|(times, info)| *times == 1 && info.packets == 1));
        assert!((10..=20).contains(&compounds.len()), "{} datagrams", compounds.len());
        for compound in &compounds {
            let first = RtcpReader::new(compound).unwrap().next();
            assert!(matches!(first, Some(RtcpPacket::SenderReport { .. } | RtcpPacket::ReceiverReport { .. })), "RFC 3550 section 6.1");
            let mut told: Vec<u32> = sender_reports(std::slice::from_ref(compound)).into_keys().collect();
            let mut described = described(compound);
            told.sort_unstable();
            described.sort_unstable();
            assert_eq!(told, described, "each source has its CNAME beside it");
        }
    }
}

#[test]
fn a_page_of_reports_goes_out_per_tick_and_a_closed_section_costs_no_other_its_report() {
    let (mut rig, _, mut client) = large_room(100);
    let mut reported = HashMap::new();
    let mut closed = 0;
    for _ in 0..100 {
        let sent = rig.pass(Duration::from_millis(10));
        let compounds = rtcp_to(&mut client, &sent);
        assert!(compounds.len() <= 1, "a page each tick");
        reported.extend(sender_reports(&compounds));
        if !compounds.is_empty() && closed < 3 {
            rig.command(Command::CloseSubscription { subscription: SubscriptionId(section(closed)) });
            rig.sent();
            closed += 1;
        }
    }
    assert_eq!(closed, 3);
    let missing: Vec<u64> = (3..100).map(section).filter(|ssrc| !reported.contains_key(&(*ssrc as u32))).collect();
    assert_eq!(missing, [0; 0]);
}

#[test]
fn round_trips_of_many_sections_are_measured() {
    let (mut rig, publisher, mut client) = large_room(100);
    let compounds = rtcp_to(&mut client, &rig.pass(Duration::from_secs(1)));
    let reports = sender_reports(&compounds);
    let sent_at: Vec<ReportBlock> = reports
        .values()
        .map(|(_, info)| ReportBlock { ssrc: info.ssrc, last_sr: (info.ntp >> 16) as u32, fraction_lost: 7, ..ReportBlock::default() })
        .collect();
    rig.now = rig.now + Duration::from_millis(40);
    for blocks in sent_at.chunks(31) {
        let report = client.rtcp(|c| c.receiver_report(9, blocks));
        rig.exchange(client.path, report);
    }
    rig.events();
    rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 100)));
    for at in 0..100 {
        let nack = client.rtcp(|c| c.nack(0, section(at) as u32, [101]));
        let repairs = rig.exchange(client.path, nack);
        assert_eq!(repairs.len(), 1, "section {at} is found by its SSRC");
    }
    rig.pass(Duration::from_secs(1));
    let stats: Vec<_> = rig
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::SubscriptionStats { stats, .. } => Some(stats),
            _ => None,
        })
        .collect();
    assert_eq!(stats.len(), 100);
    for stats in stats {
        assert_eq!(stats.fraction_lost, 7);
        assert!((40_000..1_100_000).contains(&stats.rtt_us), "{} us", stats.rtt_us);
    }
}

#[test]
fn a_client_with_many_sections_leaves_with_a_goodbye_for_each() {
    let (mut rig, _, mut client) = large_room(256);
    rig.command(Command::CloseTransport { transport: TransportId(2) });
    let sent = rig.sent();
    assert!(sent.iter().all(|datagram| datagram.bytes.len() <= 1_200));
    let mut gone: Vec<u32> = Vec::new();
    for compound in rtcp_to(&mut client, &sent) {
        assert!(matches!(RtcpReader::new(&compound).unwrap().next(), Some(RtcpPacket::ReceiverReport { .. })));
        for packet in RtcpReader::new(&compound).unwrap() {
            if let RtcpPacket::Bye { sources } = packet {
                gone.extend(sources.iter());
            }
        }
    }
    gone.sort_unstable();
    let mut expected: Vec<u32> = (FIRST as u32..FIRST as u32 + 256).chain([0x1002]).collect();
    expected.sort_unstable();
    assert_eq!(gone, expected);
}

#[test]
fn nobody_speaks_of_a_section_that_is_closed() {
    let (mut rig, _, mut client) = large_room(10);
    rig.command(Command::CloseSubscription { subscription: SubscriptionId(section(4)) });
    rig.sent();
    let nack = client.rtcp(|c| c.nack(0, section(4) as u32, [100]));
    rig.exchange(client.path, nack);
    assert_eq!(rig.drops(DropReason::UnknownStream), 1);
}

#[test]
fn figures_of_more_sections_than_a_second_takes_are_told_in_turn() {
    let mut rig = Rig::new();
    rig.core = Core::new(WorkerLimits { subscriptions: 10_000, transports: 64, ..limits() }, CONSENT);
    let publisher = rig.publisher(1);
    let clients: Vec<_> = (2..40).map(|id| rig.connect(id)).collect();
    let mut sections = 0;
    for client in &clients {
        for _ in 0..160 {
            sections += 1;
            let open = OpenSubscription { transport: TransportId(client.id), ..Rig::subscription(100_000 + sections) };
            rig.command(Command::OpenSubscription(Box::new(open)));
            rig.forward(100_000 + sections, Some(1));
        }
    }
    rig.sent();
    let mut told: HashMap<SubscriptionId, usize> = HashMap::new();
    for tick in 0..300 {
        if tick % 10 == 0 {
            rig.receive(&publisher, publisher.packet(1, tick / 10, &vp8(tick == 0, 20)));
        }
        rig.pass(Duration::from_millis(10));
        let events = rig.events();
        assert!(events.len() <= 80, "{} events in one tick", events.len());
        for event in events {
            if let Event::SubscriptionStats { subscription, .. } = event {
                *told.entry(subscription).or_default() += 1;
            }
        }
    }
    assert_eq!(told.len() as u64, sections, "all of them within 3 s");
    let total: usize = told.values().sum();
    assert!((9_000..=12_000).contains(&total), "{total}: at most 4,000 a second");
    assert!(told.values().all(|times| (1..=3).contains(times)), "nobody is told at others' expense");
}
