//! Application data with the library and with dimpl at the other end: both ways, repeated, changed, and to the end.

#[path = "dtls_support/ends.rs"]
mod ends;
#[path = "dtls_support/network.rs"]
mod network;
#[path = "dtls_support/random.rs"]
mod random;

use std::collections::HashSet;
use std::time::Duration;

use ends::{End, Report, bare, dimpl, dimpl_certificate, library_certificate, ours};
use network::{reliable, run};
use pop::dtls::{Certificate, DATA_DATAGRAMS_MAX, DATA_LEN_MAX, Dtls, DtlsEvent, Role};
use pop_proto::drop_reason::DropReason;
use random::Random;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(12);

const PARTNERS: [&str; 3] = ["bare", "dimpl", "ours"];

fn node() -> Dtls {
    Dtls::new(Certificate::generate().unwrap(), 1_000)
}

async fn established(us: &Dtls, name: &str, role: Role) -> (End, End) {
    let far_role = if role == Role::Server { Role::Client } else { Role::Server };
    let (mut far, fingerprint) = match name {
        "bare" => {
            let (certificate, fingerprint) = library_certificate();
            (bare(Some(certificate), far_role, &[1, 7, 8], |_| {}), fingerprint)
        }
        "ours" => {
            let them = node();
            (ours(&them, far_role, &us.fingerprint().attribute()), them.fingerprint().attribute())
        }
        _ => {
            let (certificate, fingerprint) = dimpl_certificate();
            (dimpl(certificate, far_role, 1_150, false), fingerprint)
        }
    };
    let mut near = ours(us, role, &fingerprint);
    let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
    outcome.agreed();
    (near, far)
}

/// What an end has to say within a second.
async fn next(end: &mut End) -> Option<Report> {
    timeout(Duration::from_secs(1), end.from.recv()).await.ok().flatten()
}

/// The next datagram that an end sends.
async fn sent(end: &mut End) -> Vec<u8> {
    match next(end).await {
        Some(Report::Send(datagram)) => datagram,
        other => panic!("a datagram, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn data_goes_both_ways_with_every_partner_in_either_role() {
    let us = node();
    for name in PARTNERS {
        for role in [Role::Server, Role::Client] {
            let (mut near, mut far) = established(&us, name, role).await;
            let mut nonces = HashSet::new();
            for n in 0..300_u32 {
                let mut message = n.to_be_bytes().to_vec();
                message.resize(4 + n as usize * 3, n as u8);
                near.data.send(message.clone()).unwrap();
                let datagram = sent(&mut near).await;
                assert!(nonces.insert(datagram[13..21].to_vec()), "{name} {role:?}: a nonce of ours came twice");
                far.deliver(&datagram).unwrap();
                assert_eq!(next(&mut far).await, Some(Report::Data(message.clone())), "{name} {role:?} {n}");
                far.data.send(message.clone()).unwrap();
                let datagram = sent(&mut far).await;
                near.deliver(&datagram).unwrap();
                assert_eq!(next(&mut near).await, Some(Report::Data(message)), "{name} {role:?} {n}");
            }
        }
    }
    assert_eq!(us.counters().panics, 0);
}

#[tokio::test(start_paused = true)]
async fn repeated_and_changed_data_is_refused_and_the_association_lives() {
    let us = node();
    let mut random = Random(0x0da7a);
    let (mut near, mut far) = established(&us, "dimpl", Role::Server).await;
    let (mut inputs, mut past_framing) = (0_u32, 0_u32);
    for n in 0..400_u32 {
        far.data.send(n.to_be_bytes().repeat(1 + n as usize % 200)).unwrap();
        let datagram = sent(&mut far).await;
        for _ in 0..50 {
            let mut changed = datagram.clone();
            match random.below(8) {
                0 => changed.truncate(1 + random.below(changed.len() as u64) as usize),
                1 => changed.extend((0..random.below(60)).map(|_| 23)),
                _ => {}
            }
            for _ in 0..=random.below(3) {
                let at = random.below(changed.len() as u64) as usize;
                changed[at] ^= 1 << random.below(8);
            }
            if changed == datagram {
                continue;
            }
            let verdict = near.deliver(&changed);
            inputs += 1;
            past_framing += u32::from(verdict == Err(DropReason::DtlsAuth));
            assert!(verdict.is_err() || changed[0] != 23, "changed data was taken");
        }
        near.deliver(&datagram).unwrap();
        // A changed record that says it is the client's Finished gets our last flight again.
        let mut report = next(&mut near).await;
        while matches!(report, Some(Report::Send(_))) {
            report = next(&mut near).await;
        }
        assert!(matches!(report, Some(Report::Data(_))), "the real one still comes through: {report:?}");
        assert_eq!(near.deliver(&datagram), Err(DropReason::DtlsReplay));
    }
    println!("{inputs} changed records, {past_framing} of them reached the keys");
    assert!(past_framing * 2 > inputs);
    assert_eq!(us.counters().panics, 0);
}

#[tokio::test(start_paused = true)]
async fn more_data_than_the_owner_takes_is_dropped_and_the_end_still_comes() {
    let us = node();
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, Role::Client, 1_150, false);
    let (peer, mut events) = us.open(Role::Server, vec![fingerprint.parse().unwrap()]).unwrap();
    events.take_data();
    assert!(events.seal_data(b"too early").is_none());
    loop {
        tokio::select! {
            Some(report) = far.from.recv() => {
                if let Report::Send(datagram) = report {
                    peer.deliver(&datagram).unwrap();
                }
            }
            Some(event) = events.recv() => match event {
                DtlsEvent::Send(datagram) => far.deliver(&datagram).unwrap(),
                DtlsEvent::Established { .. } => break,
                other => panic!("{other:?}"),
            },
        }
    }
    let mut verdicts = Vec::new();
    for _ in 0..1_000 {
        far.data.send(vec![1; 1_000]).unwrap();
        let datagram = loop {
            if let Report::Send(datagram) = far.from.recv().await.unwrap() {
                break datagram;
            }
        };
        verdicts.push(peer.deliver(&datagram));
    }
    let taken = verdicts.iter().filter(|verdict| verdict.is_ok()).count();
    assert!((DATA_DATAGRAMS_MAX - 4..=DATA_DATAGRAMS_MAX).contains(&taken), "{taken}");
    assert_eq!(verdicts.last(), Some(&Err(DropReason::DtlsQueueFull)));
    assert!(events.seal_data(&[0; DATA_LEN_MAX]).is_some() && events.seal_data(&[0; DATA_LEN_MAX + 1]).is_none());
    drop(peer);
    let mut close_notify = None;
    while let Some(event) = events.recv().await {
        if let DtlsEvent::Send(datagram) = event {
            close_notify = Some(datagram);
        }
    }
    far.deliver(&close_notify.expect("a full queue has a place for the end")).unwrap();
    assert_eq!(far.outcome().await, Some(Report::Closed));
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_data_is_given_none() {
    let us = node();
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, Role::Client, 1_150, false);
    let (peer, mut events) = us.open(Role::Server, vec![fingerprint.parse().unwrap()]).unwrap();
    let (mut near_done, mut far_done) = (false, false);
    while !(near_done && far_done) {
        tokio::select! {
            Some(report) = far.from.recv() => match report {
                Report::Send(datagram) => peer.deliver(&datagram).unwrap(),
                _ => far_done = true,
            },
            Some(event) = events.recv() => match event {
                DtlsEvent::Send(datagram) => far.deliver(&datagram).unwrap(),
                _ => near_done = true,
            },
        }
    }
    far.data.send(b"hello".to_vec()).unwrap();
    assert_eq!(peer.deliver(&sent(&mut far).await), Err(DropReason::DtlsUnexpected));
}

#[tokio::test(start_paused = true)]
async fn the_close_notify_behind_data_reaches_the_peer() {
    let us = node();
    for name in PARTNERS {
        for role in [Role::Server, Role::Client] {
            let (mut near, mut far) = established(&us, name, role).await;
            for n in 0..200_u8 {
                near.data.send(vec![n]).unwrap();
                let datagram = sent(&mut near).await;
                far.deliver(&datagram).unwrap();
                assert_eq!(next(&mut far).await, Some(Report::Data(vec![n])));
            }
            near.peer = None;
            let close_notify = sent(&mut near).await;
            assert_eq!(close_notify[0], 21, "{name} {role:?}");
            far.deliver(&close_notify).unwrap();
            assert_eq!(far.outcome().await, Some(Report::Closed), "{name} {role:?}: the peer was told");
        }
    }
}
