//! Strangers that measure by ICE: answered, bounded, and never a transport.

mod common;

use common::{PWD, Rig};
use pop_proto::control::Path;
use pop_proto::probe::{IceProbe, ProbeCredentials, ProbeRates};
use pop_proto::wire::stun::{self, BindingRequest, Role, TransactionId};
use pop_proto::{Command, DropReason};

const SEED: [u128; 4] = [0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835, 7, 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9, 11];

fn probe_check(ufrag: &str, password: &str) -> Vec<u8> {
    let username = format!("{ufrag}:stranger");
    let request = BindingRequest {
        transaction: TransactionId([3; 12]),
        username: &username,
        priority: Some(1),
        role: Some(Role::Controlling(1)),
        use_candidate: true,
    };
    let mut out = vec![0; 256];
    let len = stun::write_request(&request, password.as_bytes(), &mut out).expect("it fits");
    out.truncate(len);
    out
}

#[test]
fn an_ice_probe_is_answered_with_no_more_than_it_sent_and_makes_no_transport() {
    let mut rig = Rig::new();
    let rates = ProbeRates { per_prefix: 10, total: 1_000 };
    let credentials = ProbeCredentials { ufrag: "probe-0123456789".into(), pwd: "a-public-password-22-c".into() };
    rig.core.set_probe(IceProbe::new(credentials, rates, SEED));
    let client = rig.connect(1);
    rig.sent();
    let stranger = Path { socket: 0, remote: "198.51.100.9:4000".parse().expect("an address") };
    let check = probe_check("probe-0123456789", "a-public-password-22-c");
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for _ in 0..100 {
        bytes_in += check.len();
        for sent in rig.exchange(stranger, check.clone()) {
            assert_eq!(sent.path, stranger);
            let answer = stun::Message::parse(&sent.bytes).expect("it is STUN");
            assert!(answer.is_authentic(b"a-public-password-22-c") && answer.mapped_address() == Some(stranger.remote));
            assert!(sent.bytes.len() <= check.len());
            bytes_out += sent.bytes.len();
        }
    }
    println!("ice: {bytes_in} bytes in, {bytes_out} bytes out");
    let counters = *rig.core.counters();
    assert_eq!((counters.probe_ice_answered, counters.probe_ice_limited, counters.probe_ice_refused), (11, 89, 0));
    assert_eq!((rig.core.gauges().transports, counters.ice_checks_ok), (1, 1), "the client's, and no other");
    // Neither DTLS nor media of a stranger gets anywhere, and another's ufrag needs its own password.
    assert!(rig.exchange(stranger, vec![22; 60]).is_empty() && rig.exchange(stranger, vec![0x80; 60]).is_empty());
    assert_eq!(rig.drops(DropReason::UnknownAddress), 2);
    assert!(rig.exchange(stranger, probe_check("ufrag1", "a-public-password-22-c")).is_empty());
    let neighbour = Path { socket: 0, remote: "198.51.101.9:4000".parse().expect("an address") };
    assert!(rig.exchange(neighbour, probe_check("probe-0123456789", "guess")).is_empty());
    assert_eq!(rig.core.counters().probe_ice_refused, 1);
    // The client's own checks are answered whatever strangers do, and a change of rates counts at once.
    assert_eq!(rig.exchange(client.path, client.check(PWD)).len(), 1);
    rig.command(Command::ProbeRates(ProbeRates { per_prefix: 1_000, total: 1_000 }));
    rig.pass(std::time::Duration::from_secs(2));
    assert_eq!(rig.exchange(stranger, check).len(), 1);
}

#[test]
fn many_probes_in_one_turn_leave_room_for_clients() {
    let mut rig = Rig::new();
    let rates = ProbeRates { per_prefix: 100_000, total: 100_000 };
    let credentials = ProbeCredentials { ufrag: "probe-0123456789".into(), pwd: "a-public-password-22-c".into() };
    rig.core.set_probe(IceProbe::new(credentials, rates, SEED));
    let client = rig.open(1);
    let stranger = Path { socket: 0, remote: "198.51.100.9:4000".parse().expect("an address") };
    for _ in 0..1_000 {
        rig.core.handle_datagram(rig.now, stranger, &mut probe_check("probe-0123456789", "a-public-password-22-c"));
    }
    let sent = rig.exchange(client.path, client.check(PWD));
    assert_eq!(sent.iter().filter(|sent| sent.path == client.path).count(), 1);
    assert!(rig.drops(DropReason::StunQueueFull) > 800);
}
