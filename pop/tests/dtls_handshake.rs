//! Handshakes with the library and with dimpl at the other end, over links that lose, repeat and reorder.

#[path = "dtls_support/ends.rs"]
mod ends;
#[path = "dtls_support/network.rs"]
mod network;

use std::time::Duration;

use ends::{End, Report, bare, dimpl, dimpl_certificate, library_certificate, ours};
use network::{Way, reliable, run};
use pop::dtls::{Certificate, Dtls, Role};

const PATIENCE: Duration = Duration::from_secs(12);

fn node() -> (Dtls, String) {
    let certificate = Certificate::generate().unwrap();
    let attribute = certificate.fingerprint().attribute();
    (Dtls::new(certificate, 1_000), attribute)
}

fn other(role: Role) -> Role {
    if role == Role::Server { Role::Client } else { Role::Server }
}

/// The ends that are tried against ours.
const PARTNERS: [&str; 4] = ["bare", "dimpl", "dimpl auto", "ours"];

fn partner(name: &str, role: Role, us: &Dtls) -> (End, String) {
    match name {
        "bare" => {
            let (certificate, fingerprint) = library_certificate();
            (bare(Some(certificate), role, &[1, 7, 8], |_| {}), fingerprint)
        }
        "ours" => {
            let (far, fingerprint) = node();
            (ours(&far, role, &us.fingerprint().attribute()), fingerprint)
        }
        _ => {
            let (certificate, fingerprint) = dimpl_certificate();
            (dimpl(certificate, role, 1_150, name == "dimpl auto"), fingerprint)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn both_roles_agree_on_keys_with_every_partner() {
    let (us, _) = node();
    for name in PARTNERS {
        for role in [Role::Server, Role::Client] {
            // dimpl's 1.3 server would need a hello that offers 1.3.
            let (mut far, fingerprint) = partner(name, other(role), &us);
            let mut near = ours(&us, role, &fingerprint);
            let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
            let profile = outcome.agreed();
            println!("{name} as {}: profile {profile} after {:?}, {} datagrams", other(role).name(), outcome.elapsed, outcome.sent.len());
            if role == Role::Server {
                assert_eq!(profile, 7, "{name}: as server we choose GCM-128");
            }
            assert!(outcome.elapsed < Duration::from_millis(100), "{name} {role:?}: nothing was lost: {:?}", outcome.elapsed);
        }
    }
    let counters = us.counters();
    assert_eq!((counters.handshakes(Role::Server, "established"), counters.handshakes(Role::Client, "established")), (4, 4));
    assert_eq!((counters.panics, counters.half_open), (0, 0));
}

/// Whether the far end is the one whose last flight is lost: the library bare never repeats it.
fn is_partners_own_fault(name: &str, role: Role, way: Way, number: usize) -> bool {
    name == "bare" && role == Role::Client && way == Way::Back && number >= 2
}

#[tokio::test(start_paused = true)]
async fn every_lost_datagram_is_recovered_within_a_second() {
    let (us, _) = node();
    let mut slowest = Duration::ZERO;
    for name in PARTNERS {
        for role in [Role::Server, Role::Client] {
            for way in [Way::There, Way::Back] {
                for lost in 0..4 {
                    if is_partners_own_fault(name, role, way, lost) {
                        continue;
                    }
                    let (mut far, fingerprint) = partner(name, other(role), &us);
                    let mut near = ours(&us, role, &fingerprint);
                    let outcome =
                        run(
                            &mut near,
                            &mut far,
                            PATIENCE,
                            |w, number, _| {
                                if (w, number) == (way, lost) { vec![] } else { vec![Duration::ZERO] }
                            },
                        )
                        .await;
                    outcome.agreed();
                    slowest = slowest.max(outcome.elapsed);
                    assert!(outcome.elapsed < Duration::from_secs(1), "{name} {role:?} {way:?} {lost}: {:?}", outcome.elapsed);
                }
            }
        }
    }
    println!("slowest: {slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn every_pair_may_be_repeated_or_swapped() {
    let (us, _) = node();
    let all: Vec<(Way, usize)> = [Way::There, Way::Back].into_iter().flat_map(|way| (0..3).map(move |number| (way, number))).collect();
    let mut slowest = Duration::ZERO;
    for name in PARTNERS {
        for role in [Role::Server, Role::Client] {
            for (i, &one) in all.iter().enumerate() {
                for &two in &all[i..] {
                    for late in [false, true] {
                        let (mut far, fingerprint) = partner(name, other(role), &us);
                        let mut near = ours(&us, role, &fingerprint);
                        let outcome = run(&mut near, &mut far, PATIENCE, |way, number, _| {
                            let hit = (way, number) == one || (way, number) == two;
                            match (hit, late) {
                                (false, _) => vec![Duration::ZERO],
                                (true, false) => vec![Duration::ZERO, Duration::from_millis(1), Duration::from_millis(30)],
                                // Behind whatever is repeated meanwhile.
                                (true, true) => vec![Duration::from_millis(120)],
                            }
                        })
                        .await;
                        outcome.agreed();
                        slowest = slowest.max(outcome.elapsed);
                        assert!(outcome.elapsed < Duration::from_secs(1), "{name} {role:?} {one:?} {two:?} {late}: {:?}", outcome.elapsed);
                    }
                }
            }
        }
    }
    println!("slowest: {slowest:?}");
}

/// Splits a datagram into its records, one datagram each.
fn split_records(datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = datagram;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (record, tail) = rest.split_at(13 + usize::from(u16::from_be_bytes([rest[11], rest[12]])));
        records.push(record.to_vec());
        rest = tail;
    }
    records
}

/// Cuts every plaintext handshake message of a datagram into fragments of at most `size` bytes, one datagram each.
fn fragment(datagram: &[u8], size: usize, sequence: &mut u64) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for record in split_records(datagram) {
        if record[0] != 22 || record[3..5] != [0, 0] {
            datagrams.push(record);
            continue;
        }
        let (header, body) = (&record[13..25], &record[25..]);
        for (i, part) in body.chunks(size).enumerate().chain(body.is_empty().then_some((0, body))) {
            let mut new = record[..5].to_vec();
            new.extend_from_slice(&sequence.to_be_bytes()[2..]);
            *sequence += 1;
            new.extend_from_slice(&u16::try_from(12 + part.len()).unwrap().to_be_bytes());
            new.extend_from_slice(&header[..6]);
            new.extend_from_slice(&u32::try_from(i * size).unwrap().to_be_bytes()[1..]);
            new.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes()[1..]);
            new.extend_from_slice(part);
            datagrams.push(new);
        }
    }
    datagrams
}

#[tokio::test(start_paused = true)]
async fn fragments_of_any_order_are_put_together() {
    let (us, _) = node();
    // 60 bytes make 10 fragments of a certificate; Chromium's hello comes as 1,200 and 263.
    for (size, reversed) in [(60, false), (60, true), (100, false), (100, true), (1_200, true)] {
        for name in ["bare", "dimpl auto"] {
            let (mut far, fingerprint) = partner(name, Role::Client, &us);
            let mut near = ours(&us, Role::Server, &fingerprint);
            let peer = near.peer.take().unwrap();
            let mut sequence = 0;
            let mut keys = (None, None);
            while keys.0.is_none() || keys.1.is_none() {
                tokio::select! {
                    report = near.from.recv() => match report.unwrap() {
                        Report::Send(datagram) => drop(far.deliver(&datagram)),
                        report => keys.0 = Some(report),
                    },
                    report = far.from.recv() => match report.unwrap() {
                        Report::Send(datagram) => {
                            let mut parts = fragment(&datagram, size, &mut sequence);
                            if reversed {
                                parts.reverse();
                            }
                            for part in &parts {
                                peer.deliver(part).unwrap();
                            }
                        }
                        report => keys.1 = Some(report),
                    },
                }
            }
            assert_eq!(keys.0, keys.1, "{name} {size} {reversed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn as_server_we_choose_the_best_common_profile_in_any_order() {
    let (us, _) = node();
    let orders: [&[u16]; 9] = [&[1, 8, 7], &[1, 7, 8], &[7, 8, 1], &[8, 7, 1], &[7], &[8, 1], &[1, 8], &[2, 1], &[1]];
    for offered in orders {
        let best = *[7, 8, 1].iter().find(|p| offered.contains(p)).unwrap();
        let (certificate, fingerprint) = library_certificate();
        let mut far = bare(Some(certificate), Role::Client, offered, |_| {});
        let mut near = ours(&us, Role::Server, &fingerprint);
        assert_eq!(run(&mut near, &mut far, PATIENCE, reliable).await.agreed(), best, "{offered:?}");
    }
    // As client the server chooses, and gets ours in our order.
    for (has, chosen) in [(&[1][..], 1), (&[8, 1], 8), (&[1, 8, 7], 7)] {
        let (certificate, fingerprint) = library_certificate();
        let mut far = bare(Some(certificate), Role::Server, has, |_| {});
        let mut near = ours(&us, Role::Client, &fingerprint);
        assert_eq!(run(&mut near, &mut far, PATIENCE, reliable).await.agreed(), chosen, "{has:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeat_timer_backs_off() {
    let (us, _) = node();
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, Role::Server, 1_150, false);
    let mut near = ours(&us, Role::Client, &fingerprint);
    let outcome = run(&mut near, &mut far, PATIENCE, |_, _, _| vec![]).await;
    assert_eq!(outcome.first, Some(Report::Failed("timeout".to_owned())));
    // At 0, 0.1, 0.3, 0.7, 1.5, then every second up to 10.
    let hellos = outcome.sent.iter().filter(|(way, _)| *way == Way::There).count();
    assert!((12..=14).contains(&hellos), "{hellos} hellos in 10 s");
}

/// CPU time of this thread in nanoseconds, on which the paused runtime runs everything.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_cost_of_a_handshake_is_printed() {
    let rounds = if cfg!(debug_assertions) { 10 } else { 500 };
    let (us, _) = node();
    for name in ["ours", "bare", "dimpl"] {
        for role in [Role::Server, Role::Client] {
            let mut cpu = 0;
            for _ in 0..rounds {
                let (mut far, fingerprint) = partner(name, other(role), &us);
                let begin = cpu_ns();
                let mut near = ours(&us, role, &fingerprint);
                run(&mut near, &mut far, PATIENCE, reliable).await.agreed();
                cpu += cpu_ns() - begin;
            }
            println!("we as {} with {name}: {} us CPU per handshake, both ends", role.name(), cpu / rounds / 1_000);
        }
    }
}
