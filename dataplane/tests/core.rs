//! What a worker does with datagrams, commands and time.

mod common;

use std::time::Duration;

use common::{CONSENT, Client, PWD, Rig, key, media_to, open_transport, rtcp_to, vp8};
use pop_dataplane::Gauges;
use pop_proto::control::{
    OpenSubscription, OpenTrack, OpenTransport, Path, SELF_TEST, SrtpKeys, SrtpProfile, TCP_SOCKET_BASE, TransportLoss,
};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

/// A publisher (1) and a viewer (2) that has the first keyframe, sequence 10.
fn call() -> (Rig, Client, Client) {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = rig.viewer(2, 1);
    rig.sent();
    let sent = rig.exchange(publisher.path, publisher.packet(1, 10, &vp8(true, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1);
    (rig, publisher, viewer)
}

fn count(compounds: &[Vec<u8>], matches: impl Fn(&RtcpPacket<'_>) -> bool) -> usize {
    compounds.iter().map(|c| RtcpReader::new(c).unwrap().filter(|p| matches(p)).count()).sum()
}

#[test]
fn a_packet_reaches_each_viewer_under_its_own_key_and_numbers() {
    for profile in [SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm, SrtpProfile::Aes128CmSha1_80] {
        let mut rig = Rig { profile, ..Rig::new() };
        let publisher = rig.publisher(1);
        let mut viewers = [rig.viewer(2, 1), rig.viewer(3, 1)];
        rig.sent();
        let payload = vp8(true, 1_000);
        let sent = rig.exchange(publisher.path, publisher.packet(1, 60_000, &payload));
        for viewer in &mut viewers {
            let packets = media_to(viewer, &sent);
            let [(index, header, received)] = &packets[..] else { panic!("{packets:?}") };
            assert_eq!((*index, received), (100, &payload));
            assert_eq!(header[1], 0x80 | 102, "marker and the viewer's payload type");
            assert_eq!(header[4..8], 5_000u32.to_be_bytes());
            assert_eq!(header[8..12], (viewer.id as u32).to_be_bytes());
        }
        assert_eq!(sent.iter().filter(|s| s.path == publisher.path).count(), 0);
    }
}

#[test]
fn what_one_turn_brings_leaves_as_one_train_per_viewer() {
    let (mut rig, publisher, mut viewer) = call();
    for index in 11..21 {
        rig.receive(&publisher, publisher.packet(1, index, &vp8(false, 900)));
    }
    rig.receive(&publisher, publisher.packet(1, 21, &vp8(false, 300)));
    rig.receive(&publisher, publisher.packet(1, 22, &vp8(false, 900)));
    let sent = rig.sent();
    assert_eq!(sent.iter().map(|s| s.train).collect::<Vec<_>>(), [[11; 11].as_slice(), &[1]].concat(), "a shorter one closes the train");
    let indexes: Vec<u64> = media_to(&mut viewer, &sent).iter().map(|(index, ..)| *index).collect();
    assert_eq!(indexes, (101..113).collect::<Vec<_>>());
}

#[test]
fn a_nack_is_answered_from_the_history_with_the_same_bytes() {
    let (mut rig, publisher, mut viewer) = call();
    let first = rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 900)));
    let nack = viewer.rtcp(|c| c.nack(0, 2, [101]));
    let again = rig.exchange(viewer.path, nack);
    assert_eq!(again, first);
    assert_eq!(rig.core.counters().retransmitted_packets, 1);
    let unknown = viewer.rtcp(|c| c.nack(0, 2, [99, 500]));
    assert_eq!(rig.exchange(viewer.path, unknown), []);
    assert_eq!(rig.drops(DropReason::RepairMissing), 2);
    let others = viewer.rtcp(|c| c.nack(0, 1, [101]));
    rig.exchange(viewer.path, others);
    assert_eq!(rig.drops(DropReason::UnknownStream), 1, "a client can only speak about its own sections");
}

#[test]
fn what_is_missing_is_asked_upstream_and_takes_its_place_when_it_comes() {
    let (mut rig, mut publisher, mut viewer) = call();
    let sent = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 102);
    let asked = rig.pass(Duration::from_millis(20));
    let mut missing = Vec::new();
    for compound in rtcp_to(&mut publisher, &asked) {
        for packet in RtcpReader::new(&compound).unwrap() {
            if let RtcpPacket::Nack { sequences, .. } = packet {
                missing.extend(sequences.iter());
            }
        }
    }
    assert_eq!(missing, [11]);
    let sent = rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 101);
}

#[test]
fn keyframe_requests_of_many_viewers_are_one_per_half_second() {
    let (mut rig, mut publisher, mut viewer) = call();
    rig.pass(Duration::from_secs(1));
    let mut requests = Vec::new();
    for _ in 0..100 {
        let pli = viewer.rtcp(|c| c.pli(0, 2));
        rig.receive(&viewer, pli);
        requests.extend(rig.pass(Duration::from_millis(10)));
    }
    let compounds = rtcp_to(&mut publisher, &requests);
    assert_eq!(count(&compounds, |p| matches!(p, RtcpPacket::Pli { .. })), 2, "1 s");
}

#[test]
fn a_viewer_plays_on_when_the_publisher_restarts() {
    let (mut rig, _, mut viewer) = call();
    rig.command(Command::CloseTransport { transport: TransportId(1) });
    let again = rig.publisher(3);
    rig.forward(2, Some(3));
    rig.pass(Duration::from_secs(1));
    let sent = rig.exchange(again.path, again.packet(3, 40_000, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 0, "nothing that cannot be decoded");
    let sent = rig.exchange(again.path, again.packet(3, 40_001, &vp8(true, 900)));
    let (index, header, _) = &media_to(&mut viewer, &sent)[0];
    assert_eq!(*index, 101);
    assert_eq!(header[4..8], (5_000 + 90_000u32).to_be_bytes(), "the clock ran on for the second");
}

#[test]
fn a_viewer_that_becomes_ready_asks_for_a_picture() {
    let mut rig = Rig::new();
    let mut publisher = rig.publisher(1);
    rig.receive(&publisher, publisher.packet(1, 10, &vp8(false, 900)));
    rig.viewer(2, 1);
    let sent = rig.pass(Duration::from_millis(20));
    assert_eq!(count(&rtcp_to(&mut publisher, &sent), |p| matches!(p, RtcpPacket::Pli { .. })), 1);
}

#[test]
fn congestion_feedback_and_reports_flow_to_the_publisher() {
    let (mut rig, mut publisher, _) = call();
    let report = publisher.rtcp(|c| {
        let info = pop_proto::wire::rtcp::SenderInfo { ssrc: 1, ntp: 7 << 32, rtp_timestamp: 900, packets: 1, octets: 1 };
        c.sender_report(&info, &[])
    });
    rig.receive(&publisher, report);
    let mut sent = Vec::new();
    for index in 11..111 {
        rig.receive(&publisher, publisher.packet(1, index, &vp8(false, 900)));
        sent.extend(rig.pass(Duration::from_millis(10)));
    }
    let compounds = rtcp_to(&mut publisher, &sent);
    let feedback = count(&compounds, |p| matches!(p, RtcpPacket::TransportCc(_)));
    assert!((10..=25).contains(&feedback), "{feedback} in a second");
    let reports = count(
        &compounds,
        |p| matches!(p, RtcpPacket::ReceiverReport { blocks, .. } if blocks.iter().any(|b| b.ssrc == 1 && b.last_sr == 7 << 16)),
    );
    assert_eq!(reports, 1, "one a second");
}

#[test]
fn a_viewers_sender_report_carries_the_publishers_clock_and_its_round_trip_is_measured() {
    let (mut rig, mut publisher, mut viewer) = call();
    let info = pop_proto::wire::rtcp::SenderInfo { ssrc: 1, ntp: 7 << 32, rtp_timestamp: 900, packets: 1, octets: 1 };
    let report = publisher.rtcp(|c| c.sender_report(&info, &[]));
    rig.receive(&publisher, report);
    let sent = rig.pass(Duration::from_millis(1_010));
    let compounds = rtcp_to(&mut viewer, &sent);
    let mut reported = None;
    for packet in compounds.iter().flat_map(|c| RtcpReader::new(c).unwrap()) {
        if let RtcpPacket::SenderReport { info, .. } = packet {
            reported = Some(info);
        }
    }
    let reported = reported.expect("one sender report a second");
    assert_eq!(reported.ssrc, 2);
    // Published: timestamp 900 at 7 s; packet 10 (timestamp 900) went out as 5,000. So our timestamp minus 5,000 is the elapsed time.
    let elapsed_ticks = ((reported.ntp - (7 << 32)) as f64 / (1u64 << 32) as f64 * 90_000.0) as u32;
    assert!(reported.rtp_timestamp.abs_diff(5_000 + elapsed_ticks) <= 1);

    rig.pass(Duration::from_millis(40));
    let block = pop_proto::wire::rtcp::ReportBlock {
        ssrc: 2,
        fraction_lost: 13,
        last_sr: (reported.ntp >> 16) as u32,
        delay_since_last_sr: 0,
        ..Default::default()
    };
    let report = viewer.rtcp(|c| c.receiver_report(9, &[block]));
    rig.receive(&viewer, report);
    rig.events();
    rig.receive(&publisher, publisher.packet(1, 11, &vp8(false, 100)));
    rig.pass(Duration::from_secs(1));
    let stats = rig.events().into_iter().find_map(|e| match e {
        Event::SubscriptionStats { stats, .. } => Some(stats),
        _ => None,
    });
    let stats = stats.expect("packets flowed");
    assert_eq!(stats.fraction_lost, 13);
    assert!((39_900..1_100_000).contains(&stats.rtt_us), "{}", stats.rtt_us);
}

#[test]
fn media_from_another_address_is_dropped_and_nothing_is_ever_sent_there() {
    let (mut rig, publisher, mut viewer) = call();
    let stranger = Path { socket: 0, remote: "127.0.0.9:666".parse().unwrap() };
    assert_eq!(rig.exchange(stranger, publisher.packet(1, 11, &vp8(false, 900))), []);
    assert_eq!(rig.drops(DropReason::UnknownAddress), 1);
    let wrong = viewer.check("another-password-22-ch");
    assert_eq!(rig.exchange(stranger, wrong), []);
    assert_eq!(rig.drops(DropReason::StunIntegrity), 1);
    let sent = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1);
    let right = viewer.check(PWD);
    assert_eq!(rig.exchange(stranger, right).len(), 1, "an authenticated check moves the client");
    let sent = rig.exchange(publisher.path, publisher.packet(1, 13, &vp8(false, 900)));
    assert!(sent.iter().all(|s| s.path == stranger));
    assert_eq!(sent.len(), 1);
}

#[test]
fn forged_replayed_and_early_packets_are_counted_and_change_nothing() {
    let (mut rig, publisher, viewer) = call();
    let packet = publisher.packet(1, 11, &vp8(false, 900));
    assert_eq!(rig.exchange(publisher.path, packet.clone()).len(), 1);
    assert_eq!(rig.exchange(publisher.path, packet.clone()), []);
    assert_eq!(rig.drops(DropReason::SrtpReplay), 1);
    let mut forged = publisher.packet(1, 12, &vp8(false, 900));
    *forged.last_mut().unwrap() ^= 1;
    for _ in 0..10_000 {
        assert_eq!(rig.exchange(publisher.path, forged.clone()), []);
    }
    assert_eq!(rig.drops(DropReason::SrtpAuth), 10_000);
    let unencrypted = [[0x80, 201, 0, 1, 0, 0, 0, 9].as_slice(), &[0; 16], &[0, 0, 0, 1]].concat();
    assert_eq!(rig.exchange(viewer.path, unencrypted), []);
    assert_eq!(rig.drops(DropReason::SrtcpUnencrypted), 1);
    let early = rig.open(9);
    rig.exchange(early.path, early.check(PWD));
    assert_eq!(rig.exchange(early.path, packet), []);
    assert_eq!(rig.drops(DropReason::SrtpNoKeys), 1);
    assert_eq!(rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900))).len(), 1, "the call goes on");
}

#[test]
fn dtls_goes_up_only_from_a_validated_address_and_never_in_the_clear_after_the_handshake() {
    let mut rig = Rig::new();
    let client = rig.open(1);
    let alert = vec![21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 2, 40];
    rig.receive(&client, alert.clone());
    assert_eq!(rig.drops(DropReason::UnknownAddress), 1);
    rig.receive(&client, client.check(PWD));
    rig.receive(&client, alert.clone());
    let events = rig.events();
    assert!(matches!(&events[..], [Event::TransportValidated { .. }, Event::Dtls { .. }]), "{events:?}");
    rig.install_keys(1);
    rig.receive(&client, alert);
    assert_eq!(rig.drops(DropReason::DtlsPlaintext), 1);
    let repeated_flight = vec![20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 1];
    for _ in 0..1_000 {
        rig.receive(&client, repeated_flight.clone());
    }
    assert!(rig.drops(DropReason::DtlsQueueFull) > 900, "a flood is bounded");
    rig.events();
    let before = rig.drops(DropReason::DtlsQueueFull);
    let message = [vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 6, 0, 40], vec![7; 40]].concat();
    for _ in 0..18 {
        (0..500).for_each(|_| rig.receive(&client, message.clone()));
        rig.events();
    }
    let dropped = rig.drops(DropReason::DtlsQueueFull) - before;
    assert!((500..1_000).contains(&dropped), "data messages have a bound of their own, and thousands a second pass: {dropped}");
}

#[test]
fn a_silent_client_is_forgotten_with_everything_it_had() {
    let (mut rig, publisher, _) = call();
    rig.events();
    rig.pass(CONSENT / 2);
    rig.receive(&publisher, publisher.check(PWD));
    rig.pass(CONSENT / 2 + Duration::from_secs(2));
    let lost: Vec<_> = rig
        .events()
        .into_iter()
        .filter_map(|e| match e {
            Event::TransportLost { transport, loss } => Some((transport, loss)),
            _ => None,
        })
        .collect();
    assert_eq!(lost, [(TransportId(2), TransportLoss::ConsentExpired)]);
    assert_eq!(rig.core.gauges().subscriptions, 0);
    rig.pass(CONSENT);
    assert_eq!(rig.core.gauges(), Default::default());
    assert_eq!(rig.core.poll_timeout(), None);
}

#[test]
fn closing_in_any_order_gives_everything_back() {
    for order in [[1, 2], [2, 1]] {
        let (mut rig, publisher, _) = call();
        rig.receive(&publisher, publisher.packet(1, 11, &vp8(false, 900)));
        for transport in order {
            rig.command(Command::CloseTransport { transport: TransportId(transport) });
            rig.sent();
        }
        assert_eq!(rig.core.gauges(), Default::default());
    }
}

#[test]
fn a_tap_sees_the_published_packet_without_padding() {
    let (mut rig, publisher, _) = call();
    rig.command(Command::Tap { track: TrackId(1), tap: Some(5) });
    let mut payload = vp8(false, 100);
    payload.extend([0, 0, 0, 4]);
    let mut header = [0; 12];
    pop_proto::wire::rtp::write_header(&mut header, false, 96, 11, 990, 1);
    header[0] |= 0x20;
    let mut packet = vec![0; 200];
    let len = publisher.sender.protect_rtp(11, &header, &payload, &mut packet).unwrap();
    packet.truncate(len);
    rig.receive(&publisher, packet);
    let tapped = rig.core.poll_tap().expect("one packet");
    assert_eq!((tapped.tap, tapped.packet.len(), tapped.packet[0]), (5, 112, 0x80));
    assert!(rig.core.poll_tap().is_none());
}

#[test]
fn without_a_send_slot_the_turns_media_is_dropped_and_counted() {
    let (mut rig, publisher, mut viewer) = call();
    rig.receive(&publisher, publisher.packet(1, 11, &vp8(false, 900)));
    rig.core.drop_fresh();
    assert_eq!(rig.drops(DropReason::SendQueueFull), 1);
    let sent = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 102, "the place of the dropped one stays, so that it can be asked for");
    let nack = viewer.rtcp(|c| c.nack(0, 2, [101]));
    assert_eq!(rig.exchange(viewer.path, nack).len(), 1);
}

#[test]
fn a_viewer_whose_keyframe_was_dropped_gets_it_when_it_is_looked_after_or_another() {
    for kept in [true, false] {
        let mut rig = Rig::new();
        let mut publisher = rig.publisher(1);
        rig.receive(&publisher, publisher.packet(1, 10, &vp8(false, 900)));
        let mut late = rig.viewer(3, 1);
        rig.pass(Duration::from_millis(600));
        rig.receive(&publisher, publisher.packet(1, 11, &vp8(true, 900)));
        rig.core.drop_fresh();
        if !kept {
            // A group that misses a packet is none.
            rig.receive(&publisher, publisher.packet(1, 13, &vp8(false, 900)));
            rig.core.drop_fresh();
        }
        let sent = rig.pass(Duration::from_millis(1_100));
        let plis = count(&rtcp_to(&mut publisher, &sent), |p| matches!(p, RtcpPacket::Pli { .. }));
        assert_eq!((plis >= 1, media_to(&mut late, &sent).len()), (!kept, usize::from(kept)));
        let sent = rig.exchange(publisher.path, publisher.packet(1, 14, &vp8(true, 900)));
        assert_eq!(media_to(&mut late, &sent).len(), 1);
    }
}

#[test]
fn an_address_that_changed_hands_goes_back_to_who_proves_it_again() {
    let (mut rig, publisher, mut viewer) = call();
    let other = rig.connect(9);
    // The same 5-tuple, as after a NAT has given the port to another client.
    rig.exchange(publisher.path, other.check(PWD));
    assert_eq!(rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 900))), []);
    rig.exchange(publisher.path, publisher.check(PWD));
    let sent = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1);
    rig.command(Command::CloseTransport { transport: TransportId(9) });
    let sent = rig.exchange(publisher.path, publisher.packet(1, 13, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1, "the end of the other one takes nothing with it");
}

#[test]
fn an_encoder_that_begins_anew_under_its_mid_plays_on_and_strangers_cost_no_place() {
    let (mut rig, publisher, mut viewer) = call();
    for ssrc in 1_000..1_100 {
        assert_eq!(rig.exchange(publisher.path, publisher.packet_of_mid(ssrc, b'9', 96, 1, &vp8(true, 900))), []);
    }
    assert_eq!(rig.drops(DropReason::UnknownStream), 100);
    assert_eq!(rig.exchange(publisher.path, publisher.packet_of_mid(55, b'0', 97, 1, &vp8(true, 900))), []);
    assert_eq!(rig.drops(DropReason::UnknownStream), 101, "a stream beside the media, such as one for repairs");
    let sent = rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 101, "has not unseated it");
    let sent = rig.exchange(publisher.path, publisher.packet_of_mid(77, b'0', 96, 30_000, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent), [], "its numbers begin anew at a keyframe");
    let sent = rig.exchange(publisher.path, publisher.packet_of_mid(77, b'0', 96, 30_001, &vp8(true, 900)));
    assert_eq!(media_to(&mut viewer, &sent)[0].0, 102);
    assert_eq!(rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(true, 900))), [], "the old SSRC is a stranger now");
}

#[test]
fn a_retired_ssrc_does_not_come_back_and_the_live_one_keeps_its_rollover_counter() {
    let (mut rig, publisher, mut viewer) = call();
    let late = publisher.packet_of_mid(1, b'0', 96, 11, &vp8(true, 900));
    rig.exchange(publisher.path, publisher.packet_of_mid(77, b'0', 96, 65_535, &vp8(true, 900)));
    let sent = rig.exchange(publisher.path, publisher.packet_of_mid(77, b'0', 96, 65_536, &vp8(false, 900)));
    media_to(&mut viewer, &sent);
    for _ in 0..2 {
        assert_eq!(rig.exchange(publisher.path, late.clone()), [], "late, or replayed");
    }
    assert_eq!(rig.drops(DropReason::UnknownStream), 2);
    let sent = rig.exchange(publisher.path, publisher.packet_of_mid(77, b'0', 96, 65_537, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1);
    assert_eq!(rig.drops(DropReason::SrtpAuth), 0);
}

#[test]
fn keys_that_are_installed_again_reset_neither_windows_nor_counters() {
    let (mut rig, publisher, mut viewer) = call();
    let first = rig.pass(Duration::from_secs(2));
    rig.install_keys(1);
    rig.install_keys(2);
    assert_eq!(rig.exchange(publisher.path, publisher.packet(1, 10, &vp8(true, 900))), []);
    assert_eq!(rig.drops(DropReason::SrtpReplay), 1);
    let second = rig.pass(Duration::from_secs(2));
    assert!(rtcp_to(&mut viewer, &first).len() * rtcp_to(&mut viewer, &second).len() > 0, "each opens: no SRTCP index came twice");
}

#[test]
fn what_waits_for_a_tap_is_forgotten_when_the_encoder_begins_anew() {
    let (mut rig, publisher, _) = call();
    rig.command(Command::Tap { track: TrackId(1), tap: Some(5) });
    rig.receive(&publisher, publisher.packet_of_mid(1, b'0', 96, 11, &vp8(false, 900)));
    rig.receive(&publisher, publisher.packet_of_mid(77, b'0', 96, 11, &vp8(true, 700)));
    let lens: Vec<usize> = std::iter::from_fn(|| rig.core.poll_tap().map(|tapped| tapped.packet.len())).collect();
    assert_eq!((lens, rig.drops(DropReason::TapQueueFull)), (vec![720], 0));
}

#[test]
fn an_added_socket_without_a_route_serves_nobody() {
    let mut rig = Rig::new();
    rig.core.set_media_sockets(1);
    let client = rig.open(1);
    assert_eq!(rig.exchange(Path { socket: 1, ..client.path }, client.check(PWD)), []);
    assert_eq!(rig.drops(DropReason::ForeignPeer), 1);
    for socket in [0, TCP_SOCKET_BASE] {
        assert_eq!(rig.exchange(Path { socket, ..client.path }, client.check(PWD)).len(), 1);
    }
}

#[test]
fn a_datagram_longer_than_a_packet_may_be_is_dropped_before_anything_reads_it() {
    let (mut rig, publisher, _) = call();
    let mut nack = vec![0; 60_000];
    nack[..8].copy_from_slice(&[0x81, 205, 0x3a, 0x97, 0, 0, 0, 9]);
    assert_eq!(rig.exchange(publisher.path, nack), []);
    assert_eq!(rig.drops(DropReason::TooLarge), 1);
}

#[test]
fn a_closed_connection_is_forgotten_and_media_goes_on_by_udp() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = rig.viewer(2, 1);
    let udp = viewer.path;
    let tcp = Path { socket: TCP_SOCKET_BASE, remote: "127.0.0.1:50000".parse().unwrap() };
    // The client nominates its TCP pair.
    rig.exchange(tcp, viewer.check(PWD));
    assert!(rig.core.owns_path(&tcp));
    rig.receive(&publisher, publisher.packet(1, 1, &vp8(true, 100)));
    viewer.path = tcp;
    assert_eq!(media_to(&mut viewer, &rig.sent()).len(), 1, "media goes where the client nominated");
    rig.core.close_path(&tcp);
    assert!(!rig.core.owns_path(&tcp) && rig.core.owns_path(&udp));
    rig.receive(&publisher, publisher.packet(1, 2, &vp8(false, 100)));
    viewer.path = udp;
    assert_eq!(media_to(&mut viewer, &rig.sent()).len(), 1, "and by what is left when it is closed");
    rig.core.close_path(&tcp);
}

#[test]
fn checks_with_a_wrong_password_are_cut_off_each_tick_and_keep_no_client_from_its_own() {
    let (mut rig, publisher, viewer) = call();
    let stranger = Path { socket: 0, remote: "127.0.0.9:666".parse().unwrap() };
    let wrong = viewer.check("another-password-22-ch");
    for _ in 0..5_000 {
        assert_eq!(rig.exchange(stranger, wrong.clone()), []);
    }
    assert_eq!((rig.drops(DropReason::StunIntegrity), rig.drops(DropReason::StunLimited)), (1_000, 4_000));
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)).len(), 1, "the client's own address has a measure of its own");
    let wrong = publisher.check("another-password-22-ch");
    (0..200).for_each(|_| assert_eq!(rig.exchange(publisher.path, wrong.clone()), []));
    assert_eq!((rig.drops(DropReason::StunIntegrity), rig.drops(DropReason::StunLimited)), (1_100, 4_100));
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)).len(), 1, "and so has each client's");
    assert_eq!(rig.exchange(stranger, viewer.check(PWD)), [], "a stranger waits");
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.exchange(stranger, viewer.check(PWD)).len(), 1, "until the next tick");
}

#[test]
fn a_train_of_wrong_checks_costs_four_of_them() {
    let (mut rig, publisher, viewer) = call();
    let stranger = Path { socket: 0, remote: "127.0.0.9:666".parse().unwrap() };
    let wrong = viewer.check("another-password-22-ch");
    for _ in 0..200 {
        let mut train = vec![wrong.clone(); 64];
        rig.core.handle_datagrams(rig.now, stranger, train.iter_mut().map(Vec::as_mut_slice));
    }
    assert_eq!((rig.drops(DropReason::StunIntegrity), rig.drops(DropReason::StunLimited)), (800, 12_000));
    let moved = Path { socket: 0, remote: "127.0.0.10:666".parse().unwrap() };
    assert_eq!(rig.exchange(moved, publisher.check(PWD)).len(), 1, "so that who moves is still heard in the same tick");
    // Who was wrong three times may be right then.
    let mut train = [wrong.clone(), wrong.clone(), wrong, viewer.check(PWD)];
    rig.core.handle_datagrams(rig.now, viewer.path, train.iter_mut().map(Vec::as_mut_slice));
    assert_eq!(rig.sent().len(), 1);
}

#[test]
fn what_is_not_a_wrong_password_silences_no_check_behind_it() {
    let (mut rig, _, viewer) = call();
    // Two pages of one browser by one socket: one of them has not heard yet that its stay has ended.
    let stale = viewer.check_as("a-name-of-before:remote", PWD);
    let mut train = [vec![stale; 8], vec![viewer.check(PWD)]].concat();
    rig.core.handle_datagrams(rig.now, viewer.path, train.iter_mut().map(Vec::as_mut_slice));
    assert_eq!((rig.drops(DropReason::StunUnknownUser), rig.drops(DropReason::StunLimited)), (8, 0));
    assert_eq!(rig.sent().len(), 1);
    // More right ones than one turn answers are told as what they are.
    let mut full = vec![viewer.check(PWD); 1_000];
    for train in full.chunks_mut(64) {
        rig.core.handle_datagrams(rig.now, viewer.path, train.iter_mut().map(Vec::as_mut_slice));
    }
    assert!(rig.drops(DropReason::StunQueueFull) > 100);
    assert_eq!(rig.drops(DropReason::StunLimited), 0);
}

#[test]
fn right_checks_are_never_cut_off() {
    let (mut rig, _, viewer) = call();
    (0..5_000).for_each(|_| assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)).len(), 1));
}

#[test]
fn a_check_within_a_train_makes_its_sender_known_to_what_follows() {
    let (mut rig, publisher, mut viewer) = call();
    let moved = Path { socket: 0, remote: "127.0.0.9:666".parse().unwrap() };
    let mut train = [
        publisher.packet(1, 11, &vp8(false, 900)),
        publisher.check(PWD),
        publisher.packet(1, 12, &vp8(false, 900)),
        publisher.packet(1, 13, &vp8(false, 900)),
    ];
    rig.core.handle_datagrams(rig.now, moved, train.iter_mut().map(Vec::as_mut_slice));
    assert_eq!(rig.drops(DropReason::UnknownAddress), 1);
    let sent = rig.sent();
    assert_eq!(media_to(&mut viewer, &sent).len(), 2);
    // And another's check from there takes the path away again.
    let mut train = [viewer.check(PWD), publisher.packet(1, 14, &vp8(false, 900))];
    rig.core.handle_datagrams(rig.now, moved, train.iter_mut().map(Vec::as_mut_slice));
    assert_eq!(rig.drops(DropReason::SrtpAuth), 1);
}

#[test]
fn a_track_that_is_full_asks_for_a_drain_until_it_had_one() {
    let (mut rig, publisher, _) = call();
    let mut index = 11;
    while !rig.core.must_drain() {
        rig.receive(&publisher, publisher.packet(1, index, &vp8(false, 100)));
        index += 1;
        assert!(index < 2_000, "it asks before the list is full");
    }
    assert!(index > 100);
    rig.sent();
    assert!(!rig.core.must_drain());
}

/// The node's own client, which publishes and watches what it publishes.
fn tester(rig: &mut Rig) -> Client {
    let (id, transport) = (7, TransportId(SELF_TEST));
    rig.command(Command::OpenTransport(Box::new(OpenTransport { transport, transport_cc: false, ..open_transport(id) })));
    let keys = SrtpKeys { profile: rig.profile, local: key(!id as u8), remote: key(id as u8) };
    rig.command(Command::InstallKeys { transport, keys: Box::new(keys) });
    rig.command(Command::OpenTrack(Box::new(OpenTrack {
        track: TrackId(SELF_TEST),
        transport,
        nack: false,
        pli: false,
        ..Rig::track(id)
    })));
    let subscription = SubscriptionId(SELF_TEST);
    rig.command(Command::OpenSubscription(Box::new(OpenSubscription { subscription, transport, ..Rig::subscription(id) })));
    rig.forward(SELF_TEST, Some(SELF_TEST));
    Rig::new().open(id)
}

#[test]
fn the_nodes_own_test_is_in_no_figure_and_keeps_no_worker_awake() {
    let mut rig = Rig::new();
    let mut tester = tester(&mut rig);
    for second in 1..100 {
        let check = tester.check(PWD);
        assert_eq!(rig.exchange(tester.path, check).len(), 1, "the answer, and no report");
        let sent = rig.exchange(tester.path, tester.packet(7, second, &vp8(true, 100)));
        assert_eq!(media_to(&mut tester, &sent).len(), 1, "second {second}");
        assert_eq!(rig.core.poll_timeout(), None, "nothing is to be done until the next packet");
        rig.now = rig.now + Duration::from_secs(1);
        rig.core.handle_timeout(rig.now);
        assert_eq!(rig.core.gauges(), Gauges::default());
    }
    let counters = rig.core.counters();
    assert_eq!((counters.ice_checks_ok, counters.rtp_packets_in, counters.rtp_packets_out, counters.rtp_bytes_out), (0, 0, 0, 0));
    let told = rig.events();
    assert!(told.iter().all(|event| matches!(event, Event::TransportValidated { .. } | Event::TrackStarted { .. })), "{told:?}");
}

#[test]
fn the_nodes_own_test_takes_nobodys_place_and_outlives_silence() {
    let mut rig = Rig::new();
    let mut tester = tester(&mut rig);
    for client in 1..=u64::from(common::limits().transports) {
        rig.open(client + 100);
    }
    // The clients never came; and the whole process may have stood still.
    rig.pass(10 * CONSENT);
    assert_eq!(rig.core.gauges(), Gauges::default());
    rig.exchange(tester.path, tester.check(PWD));
    let sent = rig.exchange(tester.path, tester.packet(7, 1, &vp8(true, 100)));
    assert_eq!(media_to(&mut tester, &sent).len(), 1);
}
