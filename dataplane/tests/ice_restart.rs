//! A restart of ICE in the middle of a call: other credentials, perhaps another address, the same keys and streams.

mod common;

use std::time::Duration;

use common::{CONSENT, Client, PWD, Rig, media_to, vp8};
use pop_proto::control::{IceCredentials, Path, TransportLoss};
use pop_proto::{Command, DropReason, Event};
use pop_schemas::TransportId;

/// A publisher (1) and a viewer (2) that has the first keyframe, sequence 10.
fn call() -> (Rig, Client, Client) {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewer = rig.viewer(2, 1);
    rig.sent();
    let sent = rig.exchange(publisher.path, publisher.packet(1, 10, &vp8(true, 900)));
    assert_eq!(media_to(&mut viewer, &sent).len(), 1);
    rig.events();
    (rig, publisher, viewer)
}

fn restart(rig: &mut Rig, client: &Client, generation: u8) {
    let text = |name: &str| format!("{name}{}-{generation}", client.id).into();
    let ice = IceCredentials { local_ufrag: text("ufrag"), local_pwd: text(PWD), remote_ufrag: text("remote") };
    rig.command(Command::RestartIce { transport: TransportId(client.id), ice: Box::new(ice) });
}

/// A nominating check under the credentials of a restart.
fn check(client: &Client, generation: u8) -> Vec<u8> {
    let id = client.id;
    client.check_as(&format!("ufrag{id}-{generation}:remote{id}-{generation}"), &format!("{PWD}{id}-{generation}"))
}

fn elsewhere(client: &Client) -> Path {
    Path { remote: ([127, 0, 0, 2], 40_000 + client.id as u16).into(), ..client.path }
}

#[test]
fn a_viewer_that_moves_by_a_restart_misses_nothing() {
    let (mut rig, publisher, mut viewer) = call();
    restart(&mut rig, &viewer, 2);
    // Until its first check, and between that check's arrival and nothing at all, the old path carries the media.
    let sent = rig.exchange(publisher.path, publisher.packet(1, 11, &vp8(false, 900)));
    let before = media_to(&mut viewer, &sent);

    let old = viewer.path;
    viewer.path = elsewhere(&viewer);
    let answers = rig.exchange(viewer.path, check(&viewer, 2));
    assert_eq!(answers.iter().map(|a| a.path).collect::<Vec<_>>(), [viewer.path], "the check is answered where it came from");
    let moved = rig.events().into_iter().find_map(|event| match event {
        Event::TransportValidated { transport, remote } => Some((transport, remote)),
        _ => None,
    });
    assert_eq!(moved, Some((TransportId(2), viewer.path.remote)), "the control plane hears of the new address");

    let sent = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    let after = media_to(&mut viewer, &sent);
    let indexes: Vec<u64> = before.iter().chain(&after).map(|(index, ..)| *index).collect();
    assert_eq!(indexes, [101, 102], "the same stream goes on under the same key");
    assert!(sent.iter().all(|s| s.path != old));
}

#[test]
fn a_publisher_that_moves_by_a_restart_is_heard_from_both_addresses() {
    let (mut rig, mut publisher, mut viewer) = call();
    let old = publisher.path;
    restart(&mut rig, &publisher, 2);
    publisher.path = elsewhere(&publisher);
    rig.receive(&publisher, check(&publisher, 2));
    // Still on its way from the old address, then from the new one.
    let late = rig.exchange(old, publisher.packet(1, 11, &vp8(false, 900)));
    let next = rig.exchange(publisher.path, publisher.packet(1, 12, &vp8(false, 900)));
    assert_eq!(media_to(&mut viewer, &[late, next].concat()).len(), 2);
}

#[test]
fn the_old_credentials_die_with_the_first_good_check_and_not_before() {
    let (mut rig, _, viewer) = call();
    restart(&mut rig, &viewer, 2);
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)).len(), 1, "the old ones still keep consent");
    // Whoever knows the new fragment without its password changes nothing.
    let mut forged = check(&viewer, 2);
    let tag = forged.len() - 20;
    forged[tag] ^= 1;
    assert_eq!(rig.exchange(elsewhere(&viewer), forged), []);
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)).len(), 1);

    assert_eq!(rig.exchange(viewer.path, check(&viewer, 2)).len(), 1);
    let unknown = rig.drops(DropReason::StunUnknownUser);
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)), []);
    assert_eq!(rig.drops(DropReason::StunUnknownUser), unknown + 1);
}

#[test]
fn a_second_restart_before_any_check_replaces_the_first() {
    let (mut rig, _, viewer) = call();
    restart(&mut rig, &viewer, 2);
    restart(&mut rig, &viewer, 3);
    assert_eq!(rig.exchange(viewer.path, check(&viewer, 2)), []);
    assert_eq!(rig.exchange(viewer.path, check(&viewer, 3)).len(), 1);
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)), []);
}

#[test]
fn a_restart_that_is_never_confirmed_ends_with_consent() {
    let (mut rig, _, viewer) = call();
    restart(&mut rig, &viewer, 2);
    rig.pass(CONSENT + Duration::from_secs(2));
    let lost = |event: &Event| matches!(event, Event::TransportLost { transport: TransportId(2), loss: TransportLoss::ConsentExpired });
    assert_eq!(rig.events().iter().filter(|event| lost(event)).count(), 1);
    assert_eq!(rig.exchange(viewer.path, check(&viewer, 2)), [], "nothing of it is left");
    assert_eq!(rig.exchange(viewer.path, viewer.check(PWD)), []);
}

#[test]
fn a_confirmed_restart_keeps_consent_and_a_closed_transport_leaves_no_fragment() {
    let (mut rig, _, viewer) = call();
    for generation in 2..12 {
        restart(&mut rig, &viewer, generation);
        assert_eq!(rig.exchange(viewer.path, check(&viewer, generation)).len(), 1);
        rig.pass(CONSENT - Duration::from_secs(2));
    }
    assert!(rig.events().iter().all(|event| !matches!(event, Event::TransportLost { transport: TransportId(2), .. })));
    restart(&mut rig, &viewer, 12);
    rig.command(Command::CloseTransport { transport: TransportId(2) });
    assert_eq!(rig.sent().len(), 1, "the goodbye");
    for bytes in [viewer.check(PWD), check(&viewer, 11), check(&viewer, 12)] {
        assert_eq!(rig.exchange(viewer.path, bytes), []);
    }
    // A command that comes too late finds nothing.
    restart(&mut rig, &viewer, 13);
    assert_eq!(rig.exchange(viewer.path, check(&viewer, 13)), []);
}
