//! After start, no packet costs an allocation, whatever its path through the core.
//!
//! | path | test |
//! |---|---|
//! | media in and out, NACK, PLI, checks, taps; both ciphers, over TCP | `media_repairs_..`, `the_other_cipher_and_tcp_..` |
//! | simulcast, RTX both ways, FIR, REMB, BYE, extensions | `layers_rtx_..` |
//! | layers inside a stream, frames left out | `frames_that_are_left_out_..` |
//! | reports in pages, SR, audio levels; RED to who takes none | `pages_of_reports_..`, `redundant_audio_..` |
//! | wishes, TWCC, shares of bandwidth | `wishes_..` |
//! | packets and asks that cross workers | `packets_and_asks_that_cross_..` |
//! | packets, repairs, asks and feedback over a link to another node | `packets_that_cross_a_link_..` |
//! | the same over a third node, and what that one passes on | `packets_that_go_through_a_third_node_..` |
//! | kept pictures for late joiners | `late_joiners_..` |
//! | trains whose packets are padded to one length | `padded_trains_..` |
//! | RTP routes in and out, their RTCP, strangers at their ports | `routes_..` |
//! | ICE restart; ICE probes; DTLS up | `a_check_that_..`, `probes_and_dtls_..` |
//! | every reason to drop what comes | `a_flood_of_every_kind_..` |
//!
//! Commands allocate what they open. The back ends' and the streams' own paths are in `uring/tests/no_alloc.rs`.

mod common;
#[path = "../proto/tests/common/svc.rs"]
mod svc;

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use common::{PWD, Packet, Pair, Rig, open_transport, protect, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::WorkerLimits;
use pop_proto::control::{
    Codec, Extension, ExtensionIds, IceCredentials, LayerWish, LinkId, LinkKeys, LinkStats, LinkWay, MediaKind, Numbering, OpenLink,
    OpenRtp, OpenSubscription, OpenTrack, OpenTransport, Path, PayloadType, PayloadTypeMap, RtcpVia, RtpPeer, SessionBound, SrtpProfile,
    TCP_SOCKET_BASE,
};
use pop_proto::probe::{IceProbe, ProbeCredentials, ProbeRates};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::rtcp::{RtcpWriter, SenderInfo};
use pop_proto::wire::rtp;
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{NodeId, SubscriptionId, Time, TrackId, TransportId};
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
fn packets_that_cross_a_link_with_all_that_belongs_to_it_allocate_nothing() {
    const RELAY: u16 = 1;
    let address = |node: u8| SocketAddr::from(([10, 0, 0, node], 11_000));
    let node = |of: u8| {
        let limits = WorkerLimits { links: 2, ..common::limits() };
        let mut rig = Rig { core: Core::new(limits, common::CONSENT), ..Rig::new() };
        rig.core.set_media_sockets(1);
        rig.core.set_relay_sockets(&[address(of)]);
        let other = 3 - of;
        rig.command(Command::OpenLink(Box::new(OpenLink {
            link: LinkId::new(other, 0),
            own: NodeId(of.into()),
            node: NodeId(other.into()),
            remote: address(other),
            version: 1,
            remote_link: LinkId::new(of, 0),
            keys: LinkKeys { send: [of; 28], receive: [other; 28] },
            is_abroad: false,
            generation: 0,
            playout: Duration::from_millis(150),
        })));
        rig
    };
    let (mut origin, mut edge) = (node(1), node(2));
    let mut publisher = origin.publisher(1);
    let ids = open_transport(1).extensions.with(Extension::AudioLevel, 8);
    let speakers = [20, 21].map(|id| origin.connect_with(OpenTransport { extensions: ids, ..open_transport(id) }));
    let audio = [20, 21].map(|id| OpenTrack {
        kind: MediaKind::Audio,
        payload_types: vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }],
        ..Rig::track(id)
    });
    audio.iter().for_each(|track| origin.command(Command::OpenTrack(Box::new(track.clone()))));
    for track in [Rig::track(1)].into_iter().chain(audio) {
        let (id, alias, extensions) = (track.track, track.track.0 as u16, ids);
        let bound = (track.kind == MediaKind::Audio).then_some(SessionBound { session: 1, max: 1 });
        origin.command(Command::ExportToLink { track: id, link: LinkId::new(2, 0), alias, bound, on: true });
        edge.command(Command::OpenRemoteTrack { open: Box::new(track), extensions, link: LinkId::new(1, 0), alias });
    }
    let mut viewers: Vec<_> = (2..6).map(|id| edge.viewer(id, 1)).collect();
    for id in [20, 21] {
        let open = OpenSubscription { kind: MediaKind::Audio, transport: TransportId(2), ..Rig::subscription(id) };
        edge.command(Command::OpenSubscription(Box::new(open)));
        edge.forward(id, Some(id));
    }
    let mut datagrams = Vec::new();
    for index in 0..15_000u64 {
        datagrams.push((true, publisher.path, publisher.packet(1, index, &vp8(index % 300 == 0, 1_000))));
        if index % 20 == 0 {
            // They take turns.
            for (speaker, is_loud) in speakers.iter().zip([index / 2_000 % 2 == 0, index / 2_000 % 2 == 1]) {
                let (ssrc, index) = (speaker.id as u32, index / 20);
                let elements: [(u8, &[u8]); 1] = [(8, &[if is_loud { 20 } else { 127 }])];
                let packet =
                    Packet { ssrc, payload_type: 96, index, timestamp: 960 * index as u32, elements: &elements, payload: &[7; 60] };
                datagrams.push((true, speaker.path, protect(speaker, &packet)));
            }
        }
        if index % 100 == 0 {
            let info = SenderInfo { ssrc: 1, ntp: index << 32, rtp_timestamp: 90 * index as u32, packets: 1, octets: 1 };
            datagrams.push((true, publisher.path, publisher.rtcp(|c| c.sender_report(&info, &[]))));
            let viewer = &mut viewers[(index / 100) as usize % 4];
            let (path, ssrc) = (viewer.path, viewer.id as u32);
            datagrams.push((false, path, viewer.rtcp(|c| c.pli(0, ssrc))));
            // Garbage, forgeries and what came before.
            datagrams.push((false, Path { socket: RELAY, remote: address(9) }, vec![1; 60]));
        }
    }
    let mut crossing = vec![0; 65_535];
    let mut carried = 0;
    let told = [(); 2].map(|()| Cell::new(LinkStats::default()));
    // What is under way to each.
    let mut flying = [(); 2].map(|()| VecDeque::<(Time, usize, [u8; 1_500])>::with_capacity(4_000));
    let mut run = |rigs: [&mut Rig; 2], datagrams: &mut [(bool, Path, Vec<u8>)], lost_of_20: usize, way_ms: u64| {
        let [origin, edge] = rigs;
        for (is_origin, path, datagram) in datagrams {
            let rig = if *is_origin { &mut *origin } else { &mut *edge };
            rig.core.handle_datagram(rig.now, *path, datagram);
            for rig in [&mut *origin, &mut *edge] {
                rig.now = rig.now + Duration::from_millis(1);
                rig.core.handle_timeout(rig.now);
            }
            let mut is_quiet = false;
            while !is_quiet {
                is_quiet = true;
                for from in [1, 2] {
                    let (rig, other) = if from == 1 { (&mut *origin, &mut *edge) } else { (&mut *edge, &mut *origin) };
                    while let Some(sent) = rig.core.poll_transmit(rig.now, &mut crossing) {
                        if sent.path.socket != RELAY {
                            continue;
                        }
                        is_quiet = false;
                        for datagram in crossing[..sent.len].chunks_mut(sent.segment.map_or(sent.len, usize::from)) {
                            carried += 1;
                            if carried % 20 >= lost_of_20 {
                                let mut bytes = [0; 1_500];
                                bytes[..datagram.len()].copy_from_slice(datagram);
                                assert!(flying[usize::from(from) - 1].len() < 4_000, "there is room for what is under way");
                                flying[usize::from(from) - 1].push_back((other.now + Duration::from_millis(way_ms), datagram.len(), bytes));
                            }
                        }
                    }
                    while flying[usize::from(from) - 1].front().is_some_and(|(due, ..)| *due <= other.now) {
                        let Some((_, len, mut bytes)) = flying[usize::from(from) - 1].pop_front() else { break };
                        other.core.handle_datagram(other.now, Path { socket: RELAY, remote: address(from) }, &mut bytes[..len]);
                        is_quiet = false;
                    }
                    while let Some(event) = rig.core.poll_event() {
                        if let Event::LinkStats { stats, .. } = event {
                            told[usize::from(from) - 1].set(stats);
                        }
                    }
                }
            }
        }
    };
    let third = datagrams.len() * 2 / 15;
    run([&mut origin, &mut edge], &mut datagrams[..third], 1, 0);
    let before = (thread_allocations(), *origin.core.counters(), *edge.core.counters());
    let held_back = origin.drops(DropReason::RelayNotLoudest);
    run([&mut origin, &mut edge], &mut datagrams[third..2 * third], 1, 0);
    assert_eq!(thread_allocations() - before.0, 0);
    assert!(origin.drops(DropReason::RelayNotLoudest) - held_back > 50, "one of two crosses");
    let (of_origin, of_edge) = (origin.core.counters(), edge.core.counters());
    assert!(of_edge.relay_packets_in - before.2.relay_packets_in > 2_000, "{of_edge:?}");
    assert!(of_origin.relay_repairs_out - before.1.relay_repairs_out > 50, "{of_origin:?}");
    assert!(of_origin.rtcp_pli_out > before.1.rtcp_pli_out && of_edge.relay_datagrams_out > before.2.relay_datagrams_out, "{of_origin:?}");
    assert!(edge.drops(DropReason::RelayUnknownLink) > 10);
    assert_eq!(origin.drops(DropReason::RelayCongested), 0);
    // It is long: what is lost comes by parity.
    // A queue of that length would have gone meanwhile.
    run([&mut origin, &mut edge], &mut datagrams[2 * third..4 * third], 0, 100);
    run([&mut origin, &mut edge], &mut datagrams[4 * third..5 * third], 1, 100);
    let before = (thread_allocations(), edge.core.counters().relay_packets_in);
    let [of_origin, of_edge] = [0, 1].map(|at| told[at].get());
    run([&mut origin, &mut edge], &mut datagrams[5 * third..6 * third], 1, 100);
    assert_eq!(thread_allocations() - before.0, 0);
    let figures = [0, 1].map(|at| told[at].get());
    assert!(figures[0].parity_bytes_out - of_origin.parity_bytes_out > 10_000, "{figures:?}");
    assert!(figures[1].recovered - of_edge.recovered > 20, "{figures:?}");
    assert!(edge.core.counters().relay_packets_in > before.1);
    // It does not carry all: what is left waits for its turn.
    let before = (thread_allocations(), origin.drops(DropReason::RelayCongested));
    run([&mut origin, &mut edge], &mut datagrams[6 * third..], 8, 0);
    assert_eq!(thread_allocations() - before.0, 0);
    assert!(origin.drops(DropReason::RelayCongested) - before.1 > 100);
}

#[test]
fn packets_that_go_through_a_third_node_allocate_nothing() {
    const RELAY: u16 = 1;
    let address = |node: u8| SocketAddr::from(([10, 0, 0, node], 11_000));
    let mut nodes = [1, 2, 3].map(|of: u8| {
        let limits = WorkerLimits { links: 2, ..common::limits() };
        let mut rig = Rig { core: Core::new(limits, common::CONSENT), ..Rig::new() };
        rig.core.set_media_sockets(1);
        rig.core.set_relay_sockets(&[address(of)]);
        for other in [1, 2, 3].into_iter().filter(|other| *other != of) {
            rig.command(Command::OpenLink(Box::new(OpenLink {
                link: LinkId::new(other, 0),
                own: NodeId(of.into()),
                node: NodeId(other.into()),
                remote: address(other),
                version: 1,
                remote_link: LinkId::new(of, 0),
                keys: LinkKeys { send: [10 * of + other; 28], receive: [10 * other + of; 28] },
                is_abroad: false,
                generation: 0,
                playout: Duration::from_millis(150),
            })));
        }
        rig
    });
    let publisher = nodes[0].publisher(1);
    let ids = open_transport(1).extensions;
    nodes[0].command(Command::ExportToLink { track: TrackId(1), link: LinkId::new(2, 0), alias: 1, bound: None, on: true });
    nodes[1].command(Command::OpenRemoteTrack { open: Box::new(Rig::track(1)), extensions: ids, link: LinkId::new(1, 0), alias: 1 });
    nodes[1].viewer(2, 1);
    for (of, other) in [(0, 2), (1, 1)] {
        let (way, backup) = (LinkWay::Via(LinkId::new(3, 0)), Some(LinkWay::Direct));
        nodes[of].command(Command::RouteLink { link: LinkId::new(other, 0), way, backup });
    }
    let mut datagrams: Vec<_> = (0..4_000).map(|index| publisher.packet(1, index, &vp8(index % 300 == 0, 1_000))).collect();
    let mut crossing = vec![0; 65_535];
    let mut carried = 0;
    let mut run = |nodes: &mut [Rig; 3], datagrams: &mut [Vec<u8>]| {
        for datagram in datagrams {
            nodes[0].core.handle_datagram(nodes[0].now, publisher.path, datagram);
            nodes.iter_mut().for_each(|rig| {
                rig.now = rig.now + Duration::from_millis(1);
                rig.core.handle_timeout(rig.now);
            });
            let mut is_quiet = false;
            while !is_quiet {
                is_quiet = true;
                for from in 0..3 {
                    while let Some(sent) = nodes[from].core.poll_transmit(nodes[from].now, &mut crossing) {
                        let Some(to) = (0..3).find(|to| sent.path.remote == address(*to as u8 + 1)) else { continue };
                        is_quiet = false;
                        for datagram in crossing[..sent.len].chunks_mut(sent.segment.map_or(sent.len, usize::from)) {
                            carried += 1;
                            if carried % 20 > 0 {
                                let path = Path { socket: RELAY, remote: address(from as u8 + 1) };
                                nodes[to].core.handle_datagram(nodes[to].now, path, datagram);
                            }
                        }
                    }
                    while nodes[from].core.poll_event().is_some() {}
                }
            }
        }
    };
    let (first, second) = datagrams.split_at_mut(2_000);
    run(&mut nodes, first);
    let before = (thread_allocations(), *nodes[2].core.counters(), *nodes[0].core.counters());
    run(&mut nodes, second);
    assert_eq!(thread_allocations() - before.0, 0);
    let (of_carrier, of_origin) = (nodes[2].core.counters(), nodes[0].core.counters());
    assert!(of_carrier.relay_transit_datagrams - before.1.relay_transit_datagrams > 2_000, "{of_carrier:?}");
    assert!(of_origin.relay_repairs_out - before.2.relay_repairs_out > 50, "{of_origin:?}");
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

/// The bad datagrams of a flood on `client`'s path: nearly each ends for another reason.
fn bad_datagrams(client: &mut common::Client, number: u64) -> Vec<Vec<u8>> {
    let mut forged = client.packet(1, number, &vp8(false, 700));
    *forged.last_mut().expect("it has a tag") ^= 1;
    let flipped = {
        let mut report = client.rtcp(|c| c.receiver_report(9, &[]));
        *report.last_mut().expect("it has an index") ^= 1;
        report
    };
    vec![
        vec![],
        vec![99; 200],
        vec![0x80; 2],
        vec![0x80, 200, 0, 1],
        vec![0x80; 9_000],
        vec![0; 30],
        vec![22; 4],
        vec![21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 2, 40],
        vec![20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 1],
        client.check("wrong-wrong-wrong-wrong"),
        common::check_as("nobody:remote", PWD),
        forged,
        flipped,
        // Authentic, and of no use: a stream that was not negotiated, a payload type that was not, a number that is not new.
        client.packet(5_000 + number as u32, 7, &vp8(false, 700)),
        client.packet_of_mid(1, b'0', 33, number, &[7; 20]),
        client.packet(1, number / 2, &vp8(false, 700)),
        client.rtcp(|c| c.nack(0, 999_999, [1, 2, 3])),
    ]
}

#[test]
fn a_flood_of_every_kind_allocates_nothing() {
    let mut rig = Rig::new();
    let mut publisher = rig.publisher(1);
    let mut viewer = rig.viewer(2, 1);
    let early = rig.open(3);
    rig.receive(&early, early.check(PWD));
    let stranger = Path { socket: 0, remote: "198.51.100.7:4000".parse().expect("an address") };
    let closed = Path { socket: 9, ..stranger };
    rig.core.set_media_sockets(1);
    let mut datagrams = Vec::new();
    for index in 0..1_000u64 {
        datagrams.push((publisher.path, publisher.packet(1, 10_000 + 2 * index, &vp8(index % 300 == 0, 700))));
        for client in [&mut publisher, &mut viewer] {
            for bad in bad_datagrams(client, 10_001 + 2 * index) {
                datagrams.extend([client.path, stranger, closed].map(|path| (path, bad.clone())));
            }
        }
        datagrams.push((early.path, publisher.packet(1, index, &vp8(false, 700))));
        // More wrong checks in a tick than are read.
        if index.is_multiple_of(100) {
            let wrong = viewer.check("wrong-wrong-wrong-wrong");
            datagrams.extend((0..2_500).map(|_| (stranger, wrong.clone())));
        }
    }
    // A tick each 2,000: a flood is faster than a datagram a millisecond.
    let run = |rig: &mut Rig, datagrams: &mut [(Path, Vec<u8>)]| {
        for chunk in datagrams.chunks_mut(2_000) {
            for (path, datagram) in chunk {
                rig.core.handle_datagram(rig.now, *path, datagram);
                drain(rig);
            }
            rig.now = rig.now + Duration::from_millis(10);
            rig.core.handle_timeout(rig.now);
            drain(rig);
        }
    };
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), *rig.core.drops(), rig.core.counters().rtp_packets_out);
    run(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0);
    assert!(rig.core.counters().rtp_packets_out - before.2 > 400, "the call goes on");
    use DropReason::*;
    for reason in [
        UnknownProtocol,
        StunMalformed,
        StunUnknownUser,
        StunIntegrity,
        StunLimited,
        UnknownAddress,
        ForeignPeer,
        DtlsMalformed,
        DtlsPlaintext,
        DtlsQueueFull,
        RtpMalformed,
        RtcpMalformed,
        SrtpNoKeys,
        SrtpAuth,
        SrtpReplay,
        UnknownStream,
        PayloadType,
        TooLarge,
    ] {
        let new = rig.drops(reason) - before.1[reason as usize];
        assert!(new > 0, "none ended as {}", reason.label());
    }
}

#[test]
fn probes_and_dtls_allocate_nothing() {
    let mut rig = Rig::new();
    let credentials = ProbeCredentials { ufrag: "probe-0123456789".into(), pwd: "a-public-password-22-c".into() };
    let mut check = common::check_as("probe-0123456789:stranger", &credentials.pwd);
    rig.core.set_probe(IceProbe::new(credentials, ProbeRates { per_prefix: 50, total: 500 }, [1, 2, 3, 4]));
    let client = rig.connect(1);
    let mut data = [vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 6, 0, 40], vec![7; 40]].concat();
    let mut round = |rig: &mut Rig, rounds: u32| {
        for at in 0..rounds {
            let stranger = Path { socket: 0, remote: ([198, 51, (at % 7) as u8, 9], 4_000).into() };
            rig.core.handle_datagram(rig.now, stranger, &mut check);
            rig.core.handle_datagram(rig.now, client.path, &mut data);
            rig.now = rig.now + Duration::from_millis(1);
            rig.core.handle_timeout(rig.now);
            drain(rig);
        }
    };
    round(&mut rig, 1_000);
    let before = (thread_allocations(), *rig.core.counters());
    round(&mut rig, 1_000);
    assert_eq!(thread_allocations() - before.0, 0);
    let (now, before) = (rig.core.counters(), before.1);
    assert!(now.probe_ice_answered > before.probe_ice_answered && now.probe_ice_limited > before.probe_ice_limited, "{now:?}");
    assert!(now.dtls_datagrams_in - before.dtls_datagrams_in > 900, "{now:?}");
}

#[test]
fn padded_trains_allocate_nothing() {
    for profile in [SrtpProfile::AeadAes128Gcm, SrtpProfile::Aes128CmSha1_80] {
        let mut rig = Rig { profile, ..Rig::new() };
        let publisher = rig.publisher(1);
        for id in 2..6 {
            rig.connect(id);
            let open = OpenSubscription { rtx_ssrc: Some(0x0200_0000 + id as u32), ..Rig::subscription(id) };
            rig.command(Command::OpenSubscription(Box::new(open)));
            let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false }];
            rig.command(Command::Forward { subscription: SubscriptionId(id), track: Some(TrackId(1)), payload_types });
        }
        // Frames of five packets, the last three a byte longer, each frame within a turn.
        let mut frames: Vec<Vec<Vec<u8>>> = (0..400u64)
            .map(|frame| {
                let packet = |at: u64| {
                    let mut payload = vp8(frame % 100 == 0, 1_000 + usize::from(at > 1));
                    payload[0] = if at == 0 { 0x10 } else { 0 };
                    publisher.packet(1, 5 * frame + at, &payload)
                };
                (0..5).map(packet).collect()
            })
            .collect();
        let run = |rig: &mut Rig, frames: &mut [Vec<Vec<u8>>]| {
            let mut sent = 0;
            for frame in frames {
                rig.core.handle_datagrams(rig.now, publisher.path, frame.iter_mut().map(Vec::as_mut_slice));
                rig.now = rig.now + Duration::from_millis(33);
                rig.core.handle_timeout(rig.now);
                sent += drain(rig);
            }
            sent
        };
        run(&mut rig, &mut frames[..200]);
        let before = (thread_allocations(), *rig.core.counters());
        let sent = run(&mut rig, &mut frames[200..]);
        assert_eq!(thread_allocations() - before.0, 0, "over {sent} sends");
        let now = rig.core.counters();
        assert_eq!(now.rtp_packets_out - before.1.rtp_packets_out, 4 * 5 * 200, "{now:?}");
        assert_eq!(now.rtp_padding_bytes_out - before.1.rtp_padding_bytes_out, 4 * 2 * 200, "{now:?}");
        assert!(sent < 4 * 200 + 600, "{sent} sends: a frame is one train");
    }
}

#[test]
fn the_other_cipher_and_tcp_allocate_nothing() {
    let mut rig = Rig { profile: SrtpProfile::Aes128CmSha1_80, ..Rig::new() };
    let mut publisher = rig.publisher(1);
    let mut viewer = rig.viewer(2, 1);
    for client in [&mut publisher, &mut viewer] {
        client.path = Path { socket: TCP_SOCKET_BASE, ..client.path };
        let check = client.check(PWD);
        rig.exchange(client.path, check);
    }
    let mut datagrams = Vec::new();
    for index in 0..2_000u64 {
        datagrams.push((publisher.path, publisher.packet(1, index, &vp8(index % 300 == 0, 900))));
        if index.is_multiple_of(50) {
            datagrams.push((viewer.path, viewer.check(PWD)));
            datagrams.push((viewer.path, viewer.rtcp(|c| c.pli(0, 2))));
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = thread_allocations();
    let sent = run(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before, 0);
    assert!(sent > 1_000, "{sent} sends");
}

#[test]
fn redundant_audio_for_who_takes_none_allocates_nothing() {
    let mut rig = Rig::new();
    let publisher = rig.connect(1);
    let payload_types = vec![PayloadType { number: 63, codec: Codec::Red, rtx: None }];
    rig.command(Command::OpenTrack(Box::new(OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(1) })));
    rig.connect(2);
    let open = OpenSubscription { kind: MediaKind::Audio, ..Rig::subscription(2) };
    rig.command(Command::OpenSubscription(Box::new(open)));
    let payload_types = vec![PayloadTypeMap { from: 63, to: 111, rtx: None, unwrap_red: true }];
    rig.command(Command::Forward { subscription: SubscriptionId(2), track: Some(TrackId(1)), payload_types });
    let payload = [&[0x80 | 111, 0x0f, 0x00, 40, 111][..], &[9; 80]].concat();
    let mut datagrams: Vec<_> = (0..2_000u64)
        .map(|index| {
            let timestamp = 960 * index as u32;
            (publisher.path, protect(&publisher, &Packet { ssrc: 1, payload_type: 63, index, timestamp, elements: &[], payload: &payload }))
        })
        .collect();
    run(&mut rig, &mut datagrams[..1_000]);
    let before = (thread_allocations(), *rig.core.counters());
    run(&mut rig, &mut datagrams[1_000..]);
    assert_eq!(thread_allocations() - before.0, 0);
    let now = rig.core.counters();
    assert_eq!(now.rtp_packets_out - before.1.rtp_packets_out, 1_000, "{now:?}");
    assert_eq!(now.rtp_bytes_out - before.1.rtp_bytes_out, 40_000, "the primary alone");
}

#[test]
fn frames_that_are_left_out_allocate_nothing() {
    let mut rig = Rig::new();
    let theirs = ExtensionIds::NONE.with(Extension::Mid, 1).with(Extension::DependencyDescriptor, 2);
    let publisher = rig.connect_with(OpenTransport { extensions: theirs, transport_cc: false, ..open_transport(1) });
    let payload_types = vec![PayloadType { number: 96, codec: Codec::Vp9, rtx: None }];
    rig.command(Command::OpenTrack(Box::new(OpenTrack { payload_types, ..Rig::track(1) })));
    let viewers: Vec<_> = (2..6)
        .map(|id| {
            let client = rig.connect(id);
            rig.command(Command::OpenSubscription(Box::new(OpenSubscription { extensions: theirs, ..Rig::subscription(id) })));
            rig.forward(id, Some(1));
            let wish = LayerWish { spatial_max: id as u8 % 3, temporal_max: id as u8 % 2, ..LayerWish::default() };
            rig.command(Command::Wish { subscription: SubscriptionId(id), wish });
            client
        })
        .collect();
    let mut encoder = svc::Encoder::new(3, 3, svc::Prediction::Key);
    let (mut datagrams, mut index) = (Vec::new(), 0u64);
    for picture in 0..1_500 {
        encoder.key_wanted |= picture % 400 == 100;
        for frame in encoder.picture() {
            for starts in [true, false] {
                let descriptor = frame.descriptor(starts, !starts);
                let timestamp = 3_000 * frame.picture;
                let elements: [(u8, &[u8]); 2] = [(1, b"0"), (2, &descriptor)];
                // The structure of a keyframe takes more than an element of one byte's head holds.
                let elements = if descriptor.len() > 16 { &elements[..1] } else { &elements[..] };
                let packet = Packet { ssrc: 1, payload_type: 96, index, timestamp, elements, payload: &[0xa7; 300] };
                datagrams.push((
                    publisher.path,
                    if descriptor.len() > 16 { two_byte(&publisher, &packet, &descriptor) } else { protect(&publisher, &packet) },
                ));
                index += 1;
            }
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), *rig.core.counters(), rig.drops(DropReason::LayerNotWanted));
    let sent = run(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0, "over {sent} sends to {} viewers", viewers.len());
    assert!(rig.core.counters().rtp_packets_out - before.1.rtp_packets_out > 2_000, "{:?}", rig.core.counters());
    assert!(rig.drops(DropReason::LayerNotWanted) - before.2 > 2_000, "{:?}", rig.core.drops());
}

/// The packet with its descriptor in an extension of two-byte heads (RFC 8285 section 4.3), and a MID.
fn two_byte(client: &common::Client, packet: &Packet<'_>, descriptor: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 16];
    rtp::write_header(&mut header, true, packet.payload_type, packet.index as u16, packet.timestamp, packet.ssrc);
    header.extend_from_slice(&[1, 1, b'0', 2, descriptor.len() as u8]);
    header.extend_from_slice(descriptor);
    header.resize(header.len().next_multiple_of(4), 0);
    header[0] |= 0x10;
    let words = (header.len() / 4 - 4) as u8;
    header[12..16].copy_from_slice(&[0x10, 0, 0, words]);
    let mut out = vec![0; 1_500];
    let len = client.sender.protect_rtp(packet.index, &header, packet.payload, &mut out).expect("it fits");
    out.truncate(len);
    out
}

#[test]
fn routes_allocate_nothing() {
    const IN: u16 = 7;
    const OUT: u16 = 8;
    let mut rig = Rig::new();
    let sink = "192.0.2.9:5004".parse().expect("an address");
    let open = |id, socket, peer| {
        Command::OpenRtp(Box::new(OpenRtp {
            transport: TransportId(id),
            socket,
            rtcp: RtcpVia::Mux,
            peer,
            keys: None,
            numbering: Numbering::Own,
            rtcp_ssrc: 0xfeed,
            cname: "pop".into(),
        }))
    };
    rig.command(open(1, IN, RtpPeer::Learnt { silence: Duration::from_secs(30), never: None }));
    rig.command(Command::OpenTrack(Box::new(OpenTrack { ssrc: None, mid: "".into(), ..Rig::track(1) })));
    rig.command(open(2, OUT, RtpPeer::Fixed(sink)));
    rig.command(Command::OpenSubscription(Box::new(OpenSubscription { mid: "".into(), ..Rig::subscription(2) })));
    rig.forward(2, Some(1));
    let viewer = rig.viewer(3, 1);
    let source = Path { socket: IN, remote: "192.0.2.1:4000".parse().expect("an address") };
    let stranger = Path { socket: IN, remote: "198.51.100.1:4000".parse().expect("an address") };
    let receiver = Path { socket: OUT, remote: sink };
    let compound = |write: &dyn Fn(&mut RtcpWriter<'_>)| {
        let mut out = vec![0; 500];
        let len = {
            let mut writer = RtcpWriter::new(&mut out);
            write(&mut writer);
            writer.len()
        };
        out.truncate(len);
        out
    };
    let mut datagrams = Vec::new();
    for index in 0..4_000u64 {
        let mut packet = vec![0; 12];
        rtp::write_header(&mut packet, true, 96, index as u16, 90 * index as u32, 77);
        packet.extend(vp8(index % 300 == 0, 900));
        if index % 50 != 7 {
            datagrams.push((source, packet.clone()));
        }
        if index.is_multiple_of(40) {
            datagrams.push((stranger, packet));
            datagrams.push((source, vec![0x80; 5]));
            let info = SenderInfo { ssrc: 77, ntp: index << 32, rtp_timestamp: 90 * index as u32, packets: 1, octets: 1 };
            datagrams.push((source, compound(&|c| _ = c.sender_report(&info, &[]))));
            datagrams.push((receiver, compound(&|c| _ = c.receiver_report(5, &[]).and_then(|c| c.nack(5, 2, [index as u16 + 90])))));
            datagrams.push((receiver, compound(&|c| _ = c.receiver_report(5, &[]).and_then(|c| c.pli(5, 2)))));
            datagrams.push((viewer.path, viewer.check(PWD)));
        }
    }
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = (thread_allocations(), *rig.core.counters(), rig.drops(DropReason::ForeignPeer));
    let sent = run(&mut rig, &mut datagrams[half..]);
    assert_eq!(thread_allocations() - before.0, 0, "over {sent} sends");
    let now = rig.core.counters();
    assert!(now.rtp_packets_out - before.1.rtp_packets_out > 3_000, "{now:?}");
    assert!(now.rtcp_nack_in > before.1.rtcp_nack_in && now.rtcp_nack_out > before.1.rtcp_nack_out, "{now:?}");
    assert!(now.retransmitted_packets > before.1.retransmitted_packets, "{now:?}");
    assert!(rig.drops(DropReason::ForeignPeer) > before.2);
}
