//! Who is heard: levels of authenticated packets become a few events a second.

mod common;

use std::time::Duration;

use common::{Client, Packet, Rig, open_transport, protect};
use pop_proto::Event;
use pop_proto::control::{Codec, Extension, MediaKind, OpenTrack, OpenTransport, PayloadType};
use pop_proto::{Command, DropReason};
use pop_schemas::{TrackId, TransportId};

const LEVEL: u8 = 8;

/// A publisher of one microphone: track, SSRC and transport are `id`.
fn microphone(rig: &mut Rig, id: u64) -> Client {
    let open = open_transport(id);
    let client = rig.connect_with(OpenTransport { extensions: open.extensions.with(Extension::AudioLevel, LEVEL), ..open });
    let payload_types = vec![PayloadType { number: 96, codec: Codec::Opus, rtx: None }];
    rig.command(Command::OpenTrack(Box::new(OpenTrack { kind: MediaKind::Audio, payload_types, ..Rig::track(id) })));
    client
}

fn packet(client: &Client, index: u64, level: u8) -> Vec<u8> {
    let (ssrc, timestamp) = (client.id as u32, 960 * index as u32);
    protect(client, &Packet { ssrc, payload_type: 96, index, timestamp, elements: &[(LEVEL, &[level])], payload: &[1; 40] })
}

fn levels(rig: &mut Rig) -> Vec<(u64, u8, u8)> {
    rig.events()
        .into_iter()
        .filter_map(|event| match event {
            Event::AudioLevel { track, level, active_percent } => Some((track.0, level, active_percent)),
            _ => None,
        })
        .collect()
}

/// Two seconds, a packet each 20 ms from each client, at its level.
fn talk(rig: &mut Rig, from: u64, clients: &[(&Client, u8)]) -> Vec<(u64, u8, u8)> {
    let mut told = Vec::new();
    for index in from..from + 100 {
        for (client, level) in clients {
            rig.receive(client, packet(client, index, *level));
        }
        rig.pass(Duration::from_millis(20));
        told.extend(levels(rig));
    }
    told
}

#[test]
fn the_speaker_is_told_a_few_times_a_second_and_the_silent_one_never() {
    let mut rig = Rig::new();
    let (ann, ben) = (microphone(&mut rig, 1), microphone(&mut rig, 2));
    let told = talk(&mut rig, 0, &[(&ann, 0x80 | 20), (&ben, 127)]);
    assert!((4..=5).contains(&told.len()), "{told:?}");
    assert!(told.iter().skip(1).all(|told| *told == (1, 20, 100)), "{told:?}");
    let told = talk(&mut rig, 100, &[(&ann, 90), (&ben, 30)]);
    let (anns, bens): (Vec<_>, Vec<_>) = told.iter().partition(|told| told.0 == 1);
    assert!(anns.iter().rev().skip(1).all(|(_, _, active)| *active > 0), "{anns:?}");
    assert_eq!(anns.last(), Some(&(1, 127, 0)), "once, when she falls silent");
    assert!((4..=5).contains(&bens.len()), "{bens:?}");
}

#[test]
fn what_nobody_signed_is_not_heard() {
    let mut rig = Rig::new();
    let ann = microphone(&mut rig, 1);
    rig.receive(&ann, packet(&ann, 0, 127));
    for index in 1..100 {
        let mut forged = packet(&ann, index, 5);
        *forged.last_mut().unwrap() ^= 1;
        rig.receive(&ann, forged);
        rig.pass(Duration::from_millis(20));
    }
    assert_eq!(rig.drops(DropReason::SrtpAuth), 99);
    assert_eq!(levels(&mut rig), []);
}

#[test]
fn a_microphone_that_is_closed_says_no_more() {
    let mut rig = Rig::new();
    let ann = microphone(&mut rig, 1);
    talk(&mut rig, 0, &[(&ann, 5)]);
    rig.command(Command::CloseTrack { track: TrackId(1) });
    rig.pass(Duration::from_secs(2));
    assert_eq!(levels(&mut rig), []);
    rig.command(Command::CloseTransport { transport: TransportId(1) });
}

#[test]
fn speakers_do_not_fill_the_queue_of_a_control_plane_that_sleeps() {
    let mut rig = Rig::new();
    let clients: Vec<_> = (1..=32).map(|id| microphone(&mut rig, id)).collect();
    for index in 0..600 {
        for client in &clients {
            rig.core.handle_datagram(rig.now, client.path, &mut packet(client, index, 5));
        }
        rig.now = rig.now + Duration::from_millis(20);
        rig.core.handle_timeout(rig.now);
        rig.sent();
    }
    let events = rig.events();
    assert!(events.len() <= pop_dataplane::limits::EVENTS_MAX / 4, "{} wait for a control plane that takes none", events.len());
    let told = events.iter().filter(|event| matches!(event, Event::AudioLevel { .. })).count();
    assert!(told > 200);
}
