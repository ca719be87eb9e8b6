//! After start, no packet costs an allocation, whatever its path through the core.

mod common;

use std::time::Duration;

use common::{PWD, Packet, Pair, Rig, open_transport, protect, vp8};
use pop_proto::Command;
use pop_proto::control::{
    Codec, Extension, ExtensionIds, IceCredentials, LayerWish, MediaKind, OpenSubscription, OpenTrack, OpenTransport, Path, PayloadType,
    PayloadTypeMap,
};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::rtcp::SenderInfo;
use pop_schemas::{SubscriptionId, TrackId, TransportId};
use pop_uring::alloc::{CountingAllocator, thread_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Drains the core without keeping anything.
fn drain(rig: &mut Rig) -> usize {
    let mut sent = 0;
    while rig.transmit().is_some() {
        sent += 1;
    }
    while rig.core.poll_tap().is_some() {}
    while rig.core.poll_event().is_some() {}
    sent
}

/// Hands in one datagram a millisecond; returns the sends.
fn run(rig: &mut Rig, datagrams: &mut [(Path, Vec<u8>)]) -> usize {
    let mut sent = 0;
    for (path, datagram) in datagrams {
        rig.core.handle_datagram(rig.now, *path, datagram);
        rig.now = rig.now + Duration::from_millis(1);
        rig.core.handle_timeout(rig.now);
        sent += drain(rig);
    }
    sent
}

#[test]
fn media_repairs_reports_checks_and_drops_allocate_nothing() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewers: Vec<_> = (2..12).map(|id| rig.viewer(id, 1)).collect();
    rig.command(Command::Tap { track: TrackId(1), tap: Some(1) });

    // Everything that a client would allocate is made first.
    let mut datagrams = Vec::new();
    for index in 0..4_000u64 {
        if index % 50 != 7 {
            datagrams.push((publisher.path, publisher.packet(1, index, &vp8(index % 300 == 0, 1_000))));
        }
        if index % 20 == 0 {
            datagrams.push((publisher.path, publisher.check(PWD)));
            let viewer = &mut viewers[(index / 20) as usize % 10];
            let (path, ssrc) = (viewer.path, viewer.id as u32);
            datagrams.push((path, viewer.rtcp(|c| c.nack(0, ssrc, [index as u16 + 98]))));
            datagrams.push((path, viewer.rtcp(|c| c.pli(0, ssrc))));
            datagrams.push((path, vec![0x80; 40]));
            datagrams.push((path, vec![0x80, 200, 0, 1]));
            datagrams.push((publisher.path, vec![0; 30]));
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = thread_allocations();
    assert!(before > 0, "the counter counts");
    let sent = run(&mut rig, &mut datagrams[half..]);
    let allocations = thread_allocations() - before;
    assert!(sent > 15_000, "{sent} sends");
    assert_eq!(allocations, 0, "over {sent} sends");
    assert!(rig.core.counters().retransmitted_packets > 50, "{:?}", rig.core.counters());
    assert!(rig.core.counters().rtcp_nack_out > 30);
}

#[test]
fn layers_rtx_extensions_and_estimates_allocate_nothing() {
    let mut rig = Rig::new();
    let ids = Extension::ALL.into_iter().enumerate().fold(ExtensionIds::NONE, |ids, (i, extension)| ids.with(extension, 1 + i as u8));
    let id = |extension| ids.get(extension).expect("all are negotiated");
    let mut publisher = rig.connect_with(OpenTransport { extensions: ids, transport_cc: false, remb: true, ..open_transport(1) });
    rig.command(Command::OpenTrack(Box::new(OpenTrack {
        ssrc: None,
        layers: vec!["a".into(), "b".into()],
        order: Vec::new(),
        payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: Some(97) }],
        pli: false,
        fir: true,
        ..Rig::track(1)
    })));
    let mut viewers: Vec<_> = (2..6)
        .map(|viewer| {
            let client = rig.connect(viewer);
            let rtx_ssrc = Some(100 + viewer as u32);
            rig.command(Command::OpenSubscription(Box::new(OpenSubscription { rtx_ssrc, extensions: ids, ..Rig::subscription(viewer) })));
            let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false }];
            rig.command(Command::Forward { subscription: SubscriptionId(viewer), track: Some(TrackId(1)), payload_types });
            client
        })
        .collect();

    let mut datagrams = Vec::new();
    for index in 0..6_000u64 {
        // The second layer is the top but for a pause in each half, and loses packets that come as RTX.
        let pictures = [0x90, 0xc0, 0x80 | (index >> 8) as u8, index as u8, 9, u8::from(!index.is_multiple_of(40))];
        for (layer, rid) in [&b"a"[..], b"b"].into_iter().enumerate().filter(|(layer, _)| *layer == 0 || index % 3_000 < 2_000) {
            let payload = [&pictures[..], &vec![layer as u8; 300 + 600 * layer]].concat();
            let elements: [(u8, &[u8]); 4] = [
                (id(Extension::Mid), b"0"),
                (id(Extension::Rid), rid),
                (id(Extension::VideoOrientation), &[1]),
                (id(Extension::DependencyDescriptor), &[0xc0, (index >> 8) as u8, index as u8]),
            ];
            let media = Packet {
                ssrc: 50 + layer as u32,
                payload_type: 96,
                index,
                timestamp: 900 * index as u32,
                elements: &elements,
                payload: &payload,
            };
            if layer == 0 || index % 50 != 7 {
                datagrams.push((publisher.path, protect(&publisher, &media)));
                continue;
            }
            let payload = [&(index as u16).to_be_bytes()[..], &payload].concat();
            let elements: [(u8, &[u8]); 2] = [(id(Extension::Mid), b"0"), (id(Extension::RepairedRid), rid)];
            let repair =
                Packet { ssrc: 60, payload_type: 97, index, timestamp: 900 * index as u32, elements: &elements, payload: &payload };
            datagrams.push((publisher.path, protect(&publisher, &repair)));
        }
        if index % 20 == 0 {
            datagrams.push((publisher.path, publisher.check(PWD)));
            let viewer = &mut viewers[(index / 20) as usize % 4];
            let (path, ssrc) = (viewer.path, viewer.id as u32);
            datagrams.push((path, viewer.check(PWD)));
            datagrams.push((path, viewer.rtcp(|c| c.nack(0, ssrc, (0..20).map(|back| (index as u16).wrapping_sub(back))))));
            datagrams.push((path, viewer.rtcp(|c| c.pli(0, ssrc))));
        }
        if index % 3_000 == 1_999 {
            datagrams.push((publisher.path, publisher.rtcp(|c| c.receiver_report(51, &[])?.bye(&[51]))));
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), *rig.core.counters());
    let sent = run(&mut rig, &mut datagrams[half..]);
    let allocations = thread_allocations() - before.0;
    assert!(sent > 10_000, "{sent} sends");
    assert_eq!(allocations, 0, "over {sent} sends");
    let (now, before) = (rig.core.counters(), before.1);
    assert!(now.rtx_packets_in - before.rtx_packets_in > 30, "{now:?}");
    assert!(now.retransmitted_packets - before.retransmitted_packets > 50, "{now:?}");
    assert!(now.rtcp_remb_out > before.rtcp_remb_out && now.rtcp_pli_out > before.rtcp_pli_out, "{now:?}");
}

#[test]
fn pages_of_reports_and_audio_levels_allocate_nothing() {
    let mut rig = Rig::new();
    let open = open_transport(1);
    let mut publisher = rig.connect_with(OpenTransport { extensions: open.extensions.with(Extension::AudioLevel, 8), ..open });
    let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
    rig.command(Command::OpenTrack(Box::new(OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(1) })));
    let mut viewer = rig.connect(2);
    for id in 200..300 {
        let open = OpenSubscription { transport: TransportId(2), kind: MediaKind::Audio, ..Rig::subscription(id) };
        rig.command(Command::OpenSubscription(Box::new(open)));
        rig.forward(id, Some(1));
    }
    let mut datagrams = Vec::new();
    for index in 0..4_000u64 {
        let level = if index % 1_000 < 500 { 20 } else { 127 };
        let timestamp = 48 * index as u32;
        let packet = Packet { ssrc: 1, payload_type: 96, index, timestamp, elements: &[(8, &[level])], payload: &[7; 60] };
        datagrams.push((publisher.path, protect(&publisher, &packet)));
        if index % 100 == 0 {
            let info = SenderInfo { ssrc: 1, ntp: index << 32, rtp_timestamp: timestamp, packets: 1, octets: 1 };
            datagrams.push((publisher.path, publisher.rtcp(|c| c.sender_report(&info, &[]))));
            let ssrc = 200 + (index / 100) as u32;
            datagrams.push((viewer.path, viewer.rtcp(|c| c.nack(0, ssrc, [index as u16 + 90]))));
            datagrams.push((viewer.path, viewer.check(PWD)));
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), *rig.core.counters());
    let sent = run(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0, "over {sent} sends");
    let now = rig.core.counters();
    assert!(now.rtcp_packets_out - before.1.rtcp_packets_out >= 10, "{now:?}");
    assert!(now.retransmitted_packets > before.1.retransmitted_packets, "{now:?}");
}

#[test]
fn wishes_switches_and_shares_of_bandwidth_allocate_nothing() {
    let mut rig = Rig::new();
    let ids = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::Rid, 2).with(Extension::TransportCc, 3);
    let publisher = rig.connect_with(OpenTransport { extensions: ids, ..open_transport(1) });
    rig.command(Command::OpenTrack(Box::new(OpenTrack {
        ssrc: None,
        layers: vec!["a".into(), "b".into(), "c".into()],
        order: vec![0, 1, 2],
        ..Rig::track(1)
    })));
    let mut viewers: Vec<_> = (2..6)
        .map(|viewer| {
            let client = rig.connect_with(OpenTransport { extensions: ids, ..open_transport(viewer) });
            // Two sections each.
            for id in [viewer, 100 + viewer] {
                let open = OpenSubscription { transport: TransportId(viewer), extensions: ids, ..Rig::subscription(id) };
                rig.command(Command::OpenSubscription(Box::new(open)));
                rig.forward(id, Some(1));
            }
            client
        })
        .collect();

    let mut datagrams = Vec::new();
    for index in 0..6_000u64 {
        for layer in 0..3u64 {
            let payload =
                [&[0x90, 0xc0, 0x80, index as u8, 9, u8::from(!index.is_multiple_of(20))][..], &vec![1; 100 + 400 * layer as usize]]
                    .concat();
            let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, &b"abc"[layer as usize..][..1])];
            let (ssrc, timestamp) = (50 + layer as u32, 900 * index as u32);
            let media = Packet { ssrc, payload_type: 96, index, timestamp, elements: &elements, payload: &payload };
            // The top pauses now and then.
            if layer < 2 || index % 2_000 < 1_500 {
                datagrams.push((publisher.path, protect(&publisher, &media)));
            }
        }
        if index.is_multiple_of(20) {
            let viewer = &mut viewers[(index / 20) as usize % 4];
            datagrams.push((viewer.path, viewer.check(PWD)));
            // A third is lost for a while, then nothing.
            let mut recorder = TwccRecorder::new();
            let is_lossy = index % 3_000 < 1_000;
            (0..90).filter(|at| !is_lossy || at % 3 != 1).for_each(|at| recorder.record(index as u16 + at, rig.now));
            let mut compound = vec![0; 1_500];
            let len = recorder.poll_feedback(rig.now + Duration::from_secs(1), 9, 2, &mut compound).expect("it is due");
            let len = viewer.sender.protect_rtcp(&mut compound, len).unwrap();
            compound.truncate(len);
            datagrams.push((viewer.path, compound));
            datagrams.push((viewer.path, viewer.rtcp(|c| c.receiver_report(9, &[])?.remb(9, 400_000 + 1_000 * index, &[2]))));
        }
    }
    let half = datagrams.len() / 2;
    run_wishing(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), rig.core.counters().rtp_packets_out);
    run_wishing(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0);
    let sent = rig.core.counters().rtp_packets_out - before.1;
    assert!(sent > 3_000, "{sent} sends");
    let counters = rig.core.counters();
    assert!(counters.rtcp_remb_in > 100 && counters.rtcp_pli_out > 2 && counters.catch_ups > 5, "{counters:?}");
}

/// [`run`], with another wish each tenth of a second.
fn run_wishing(rig: &mut Rig, datagrams: &mut [(Path, Vec<u8>)]) {
    for (at, datagrams) in datagrams.chunks_mut(100).enumerate() {
        let subscription = SubscriptionId([2, 103, 4, 105][at % 4]);
        let wish = LayerWish { paused: at % 7 == 6, spatial_max: at as u8 % 3, temporal_max: 1, priority: at as u8 % 5 };
        rig.command(Command::Wish { subscription, wish });
        run(rig, datagrams);
    }
}

#[test]
fn late_joiners_who_begin_with_what_is_kept_allocate_nothing() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewers: Vec<_> = (2..22).map(|id| rig.viewer(id, 1)).collect();
    // All leave the source and come back, turn after turn: only a command allocates.
    let mut datagrams: Vec<_> =
        (0..3_000u64).map(|index| (publisher.path, publisher.packet(1, index, &vp8(index % 700 == 0, 900)))).collect();
    let mut allocations = 0;
    for (turn, chunk) in datagrams.chunks_mut(75).enumerate() {
        let client = &mut viewers[turn % 20];
        let id = client.id;
        rig.forward(id, None);
        rig.forward(id, Some(1));
        let mut nack = client.rtcp(|c| c.nack(0, id as u32, (0..20).map(|back| 105 + 70 * turn as u16 + back)));
        let (path, before) = (client.path, thread_allocations());
        run(&mut rig, chunk);
        rig.core.handle_datagram(rig.now, path, &mut nack);
        drain(&mut rig);
        // A client's first RTCP makes its window: once for each is enough.
        allocations += if turn < 20 { 0 } else { thread_allocations() - before };
    }
    let counters = rig.core.counters();
    assert!(counters.catch_ups > 20, "{counters:?}");
    assert_eq!(allocations, 0, "over {} packets", counters.rtp_packets_out);
}

#[test]
fn packets_and_asks_that_cross_to_another_worker_allocate_nothing() {
    let mut pair = Pair::new();
    let mut publisher = pair.home.publisher(1);
    pair.mirror(Rig::track(1));
    let mut viewers: Vec<_> = (2..12).map(|id| pair.away.viewer(id, 1)).collect();
    let mut datagrams = Vec::new();
    for index in 0..4_000u64 {
        if index % 50 != 7 {
            datagrams.push((true, publisher.path, publisher.packet(1, index, &vp8(index % 300 == 0, 1_000))));
        }
        if index % 100 == 0 {
            let info = SenderInfo { ssrc: 1, ntp: index << 32, rtp_timestamp: 90 * index as u32, packets: 1, octets: 1 };
            datagrams.push((true, publisher.path, publisher.rtcp(|c| c.sender_report(&info, &[]))));
        }
        if index % 20 == 0 {
            let viewer = &mut viewers[(index / 20) as usize % 10];
            let (path, ssrc) = (viewer.path, viewer.id as u32);
            datagrams.push((false, path, viewer.rtcp(|c| c.nack(0, ssrc, [index as u16 + 98]))));
            datagrams.push((false, path, viewer.rtcp(|c| c.pli(0, ssrc))));
        }
    }
    let run = |pair: &mut Pair, datagrams: &mut [(bool, Path, Vec<u8>)]| {
        for (at, (is_home, path, datagram)) in datagrams.iter_mut().enumerate() {
            let rig = if *is_home { &mut pair.home } else { &mut pair.away };
            rig.core.handle_datagram(rig.now, *path, datagram);
            for rig in [&mut pair.home, &mut pair.away] {
                rig.now = rig.now + Duration::from_millis(1);
                rig.core.handle_timeout(rig.now);
            }
            // The other worker is slow now and then, until the lane is full.
            pair.home_ends.send(&mut pair.home.core);
            if at % 2_000 > 1_900 && at % 100 != 99 {
                drain(&mut pair.home);
                continue;
            }
            pair.cross();
            drain(&mut pair.home);
            drain(&mut pair.away);
        }
    };
    let half = datagrams.len() / 2;
    run(&mut pair, &mut datagrams[..half]);
    let before = (thread_allocations(), *pair.home.core.counters(), *pair.away.core.counters());
    run(&mut pair, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0);
    let (home, away) = (pair.home.core.counters(), pair.away.core.counters());
    assert!(home.handover_packets_out - before.1.handover_packets_out > 1_500, "{home:?}");
    assert!(home.rtcp_pli_out > before.1.rtcp_pli_out && away.handover_batches_out > before.2.handover_batches_out, "{home:?}");
    assert!(away.retransmitted_packets > before.2.retransmitted_packets, "{away:?}");
}

#[test]
fn a_check_that_confirms_a_restart_allocates_nothing() {
    let mut rig = Rig::new();
    let client = rig.connect(1);
    let ice = IceCredentials { local_ufrag: "fresh".into(), local_pwd: PWD.into(), remote_ufrag: "other".into() };
    rig.command(pop_proto::Command::RestartIce { transport: pop_schemas::TransportId(1), ice: Box::new(ice) });
    let (mut old, mut fresh) = (client.check(PWD), client.check_as("fresh:other", PWD));
    drain(&mut rig);
    let before = thread_allocations();
    rig.core.handle_datagram(rig.now, client.path, &mut fresh);
    assert_eq!(drain(&mut rig), 1, "the answer");
    rig.core.handle_datagram(rig.now, client.path, &mut old);
    assert_eq!(drain(&mut rig), 0, "the old credentials are dead");
    assert_eq!(thread_allocations() - before, 0);
}
