//! What strangers, wrong peers and bad datagrams get.

#[path = "dtls_support/ends.rs"]
mod ends;
#[path = "dtls_support/network.rs"]
mod network;
#[path = "dtls_support/random.rs"]
mod random;

use std::sync::Arc;
use std::time::Duration;

use ends::{End, Report, bare, dimpl, dimpl_certificate, fingerprint, library_certificate, ours};
use network::{Outcome, Way, reliable, run};
use pop::dtls::{Certificate, Dtls, DtlsError, DtlsEvent, Role};
use pop_proto::drop_reason::DropReason;
use random::Random;
use webrtc_dtls::config::ExtendedMasterSecretType;

const PATIENCE: Duration = Duration::from_secs(12);

fn node() -> Dtls {
    Dtls::new(Certificate::generate().unwrap(), 1_000)
}

fn record(content_type: u8, epoch: u16, sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut record = vec![content_type, 0xfe, 0xfd];
    record.extend_from_slice(&epoch.to_be_bytes());
    record.extend_from_slice(&sequence.to_be_bytes()[2..]);
    record.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    record.extend_from_slice(body);
    record
}

fn handshake(message_type: u8, sequence: u16, length: u32, offset: u32, part: &[u8]) -> Vec<u8> {
    let mut body = vec![message_type];
    body.extend_from_slice(&length.to_be_bytes()[1..]);
    body.extend_from_slice(&sequence.to_be_bytes());
    body.extend_from_slice(&offset.to_be_bytes()[1..]);
    body.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes()[1..]);
    body.extend_from_slice(part);
    record(22, 0, 100, &body)
}

/// A hello without extensions.
fn bare_hello(version: [u8; 2]) -> Vec<u8> {
    let mut hello = version.to_vec();
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 0]);
    hello
}

async fn established(us: &Dtls, role: Role) -> (End, End, Outcome) {
    let far_role = if role == Role::Server { Role::Client } else { Role::Server };
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, far_role, 1_150, false);
    let mut near = ours(us, role, &fingerprint);
    let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
    outcome.agreed();
    (near, far, outcome)
}

#[tokio::test(start_paused = true)]
async fn another_certificate_than_the_one_of_the_sdp_gets_no_keys() {
    let us = node();
    let stranger = fingerprint(b"somebody else");
    for role in [Role::Server, Role::Client] {
        let far_role = if role == Role::Server { Role::Client } else { Role::Server };
        let (certificate, _) = library_certificate();
        let mut far = bare(Some(certificate), far_role, &[7], |_| {});
        let mut near = ours(&us, role, &stranger);
        let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
        assert_eq!(outcome.first, Some(Report::Failed("fingerprint".to_owned())), "{role:?}");
        assert!(!matches!(outcome.second, Some(Report::Keys(..))), "{role:?}: the stranger has keys as well");
        assert!(outcome.elapsed < Duration::from_secs(2));
        // Our own certificate shown back to us is not the peer's either.
        let (mirror, mut events) = us.open(role, vec![us.fingerprint().clone()]).unwrap();
        drop(mirror);
        assert!(events.recv().await.is_none());
    }
    assert_eq!(us.counters().handshakes(Role::Server, "fingerprint"), 1);
    assert_eq!(us.counters().handshakes(Role::Client, "fingerprint"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_certificate_srtp_profile_or_extended_master_secret_is_refused() {
    let us = node();
    type Tune = fn(&mut webrtc_dtls::config::Config);
    let cases: [(&str, bool, &[u16], Tune); 6] = [
        ("no_client_certificate", false, &[7], |_| {}),
        ("no_use_srtp", true, &[], |_| {}),
        ("no_srtp_profile", true, &[2], |_| {}),
        ("extended_master_secret", true, &[7], |config| config.extended_master_secret = ExtendedMasterSecretType::Disable),
        ("cipher_suite", true, &[7], |config| {
            config.cipher_suites = vec![webrtc_dtls::cipher_suite::CipherSuiteId::Tls_Ecdhe_Ecdsa_With_Aes_256_Cbc_Sha];
        }),
        ("cipher_suite", true, &[7], |config| {
            config.cipher_suites = vec![webrtc_dtls::cipher_suite::CipherSuiteId::Tls_Ecdhe_Ecdsa_With_Aes_128_Ccm_8];
        }),
    ];
    for (result, certificate, profiles, tune) in cases {
        let (own, fingerprint) = library_certificate();
        let mut far = bare(certificate.then_some(own), Role::Client, profiles, tune);
        let mut near = ours(&us, Role::Server, &fingerprint);
        let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
        assert_eq!(outcome.first, Some(Report::Failed(result.to_owned())));
        assert!(matches!(outcome.second, Some(Report::Failed(_))), "{result}: the client was told: {:?}", outcome.second);
    }
    assert_eq!(us.counters().half_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_srtp_profile_is_refused() {
    let us = node();
    let (certificate, fingerprint) = library_certificate();
    let mut far = bare(Some(certificate), Role::Server, &[2], |_| {});
    let mut near = ours(&us, Role::Client, &fingerprint);
    let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
    assert!(matches!(outcome.first, Some(Report::Failed(_))), "{:?}", outcome.first);
}

#[tokio::test(start_paused = true)]
async fn dtls_1_0_is_refused() {
    let us = node();
    let mut near = ours(&us, Role::Server, &fingerprint(b"x"));
    let hello = bare_hello([0xfe, 0xff]);
    near.deliver(&handshake(1, 0, u32::try_from(hello.len()).unwrap(), 0, &hello)).unwrap();
    assert_eq!(near.from.recv().await, Some(Report::Send(vec![21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 70])));
    assert_eq!(near.outcome().await, Some(Report::Failed("version".to_owned())));
    assert_eq!(near.outcome().await, None);
}

#[tokio::test(start_paused = true)]
async fn plaintext_after_the_handshake_changes_nothing() {
    let us = node();
    for role in [Role::Server, Role::Client] {
        let (mut near, mut far, _) = established(&us, role).await;
        let plaintext = [
            record(21, 0, 100, &[2, 40]),
            record(21, 0, 101, &[1, 0]),
            record(21, 0, 102, &[2]),
            record(20, 0, 103, &[1]),
            record(23, 0, 104, b"data"),
            handshake(16, 5, 1, 0, &[0]),
            handshake(1, 0, 2, 0, &[0xfe, 0xfd]),
        ];
        for datagram in &plaintext {
            let verdict = near.deliver(datagram);
            // A server answers a repeat of the client's flight with its own, here once.
            assert!(matches!(verdict, Err(DropReason::DtlsPlaintext)) || (role == Role::Server && datagram[0] == 22), "{verdict:?}");
        }
        // Under epoch 1: a ChangeCipherSpec is not authenticated by the library, a short record panics it, data must be the peer's.
        assert_eq!(near.deliver(&record(20, 1, 9, &[1])), Err(DropReason::DtlsMalformed));
        assert_eq!(near.deliver(&record(21, 1, 9, &[0; 23])), Err(DropReason::DtlsMalformed));
        assert_eq!(near.deliver(&record(23, 1, 9, &[0; 40])), Err(DropReason::DtlsAuth));
        assert_eq!(near.deliver(&record(21, 2, 9, &[0; 40])), Err(DropReason::DtlsUnexpected));
        assert_eq!(near.deliver(&record(24, 0, 9, &[0; 40])), Err(DropReason::DtlsMalformed));
        assert_eq!(near.deliver(&[22, 0xfe]), Err(DropReason::DtlsMalformed));
        assert_eq!(near.deliver(&vec![22; 1_501]), Err(DropReason::DtlsMalformed));
        // Alerts that do not authenticate reach the library and change nothing.
        for sequence in 10..20 {
            near.deliver(&record(21, 1, sequence, &[7; 26])).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Ok(report) = near.from.try_recv() {
            assert!(matches!(&report, Report::Send(datagram) if datagram[0] == 20), "{role:?}: {report:?}");
        }
        // The peer's own close_notify is still heard.
        far.to = tokio::sync::mpsc::unbounded_channel().0;
        let Some(Report::Send(close_notify)) = far.from.recv().await else { panic!("dimpl closes") };
        assert_eq!((close_notify[0], close_notify[4]), (21, 1));
        near.deliver(&close_notify).unwrap();
        assert_eq!(near.outcome().await, Some(Report::Closed), "{role:?}");
        assert_eq!(near.outcome().await, None);
        assert_eq!(near.deliver(&close_notify), Err(DropReason::DtlsUnexpected));
    }
    assert_eq!(us.counters().panics, 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_an_established_peer_tells_the_other_end() {
    let us = node();
    for role in [Role::Server, Role::Client] {
        let (mut near, mut far, _) = established(&us, role).await;
        drop(near.peer.take());
        let Some(Report::Send(close_notify)) = near.from.recv().await else { panic!("a close_notify") };
        assert_eq!((close_notify[0], close_notify[4]), (21, 1), "an alert under epoch 1");
        assert_eq!(near.from.recv().await, None);
        far.deliver(&close_notify).unwrap();
        assert_eq!(far.outcome().await, Some(Report::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_alert_does_not_end_a_handshake_and_a_true_one_does() {
    let us = node();
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, Role::Client, 1_150, false);
    let mut near = ours(&us, Role::Server, &fingerprint);
    let peer = Arc::clone(near.peer.as_ref().unwrap());
    let outcome = run(&mut near, &mut far, PATIENCE, |_, _, _| {
        let _ = peer.deliver(&record(21, 0, 50, &[2, 40]));
        vec![Duration::ZERO]
    })
    .await;
    outcome.agreed();

    let mut near = ours(&us, Role::Server, &fingerprint);
    let begin = tokio::time::Instant::now();
    near.deliver(&record(21, 0, 50, &[2, 40])).unwrap();
    assert_eq!(near.outcome().await, Some(Report::Failed("peer_alert".to_owned())));
    assert_eq!(begin.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn forged_handshake_messages_do_not_disturb_the_true_ones() {
    let us = node();
    for role in [Role::Server, Role::Client] {
        let far_role = if role == Role::Server { Role::Client } else { Role::Server };
        let (certificate, fingerprint) = dimpl_certificate();
        let mut far = dimpl(certificate, far_role, 1_150, false);
        let mut near = ours(&us, role, &fingerprint);
        let peer = Arc::clone(near.peer.as_ref().unwrap());
        let outcome = run(&mut near, &mut far, PATIENCE, |way, number, _| {
            if way == Way::Back && number < 3 {
                // One byte panics the library's key exchange parsers; a cut extension header its hello parsers.
                for message_type in [1, 2, 3, 11, 12, 13, 14, 15, 16, 20] {
                    for sequence in 0..6 {
                        let _ = peer.deliver(&handshake(message_type, sequence, 1, 0, &[0]));
                    }
                }
                // A wrong cookie ends the library's handshake, a ChangeCipherSpec under epoch 1 moves its epoch.
                let hello = bare_hello([0xfe, 0xfd]);
                let _ = peer.deliver(&handshake(1, 1, u32::try_from(hello.len()).unwrap(), 0, &hello));
                let _ = peer.deliver(&record(20, 1, 9, &[1]));
                let _ = peer.deliver(&record(22, 1, 9, &[7; 48]));
            }
            vec![Duration::from_secs(1)]
        })
        .await;
        outcome.agreed();
    }
    assert_eq!(us.counters().panics, 0);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_bad_datagrams_neither_grow_nor_kill_an_association() {
    let us = node();
    let (certificate, fingerprint) = dimpl_certificate();
    let mut far = dimpl(certificate, Role::Client, 1_150, false);
    let mut near = ours(&us, Role::Server, &fingerprint);
    let mut random = Random(11);
    // The library overflows its stack over some 10,000 fragments of one byte.
    let mut refused = 0;
    for i in 0..10_000_u32 {
        let one_byte = handshake(11, 1, 8_000, (i * 2) % 8_000, &[0]);
        let mut noise: Vec<u8> = (0..random.below(1_400)).map(|_| random.next() as u8).collect();
        if i % 2 == 0 && noise.len() > 13 {
            noise[..5].copy_from_slice(&[20 + (random.below(4) as u8), 0xfe, 0xfd, 0, random.below(2) as u8]);
        }
        refused += u32::from(near.deliver(&one_byte).is_err()) + u32::from(near.deliver(&noise).is_err());
    }
    assert!(refused > 19_900, "{refused}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outcome = run(&mut near, &mut far, PATIENCE, reliable).await;
    outcome.agreed();
    for _ in 0..10_000 {
        let noise: Vec<u8> = (0..random.below(1_400)).map(|_| random.next() as u8).collect();
        assert!(near.deliver(&noise).is_err());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(near.from.try_recv().is_err(), "the association lives on and says nothing");
    assert_eq!(us.counters().panics, 0);
}

#[tokio::test(start_paused = true)]
async fn half_open_handshakes_are_capped_and_come_free() {
    let us = Dtls::new(Certificate::generate().unwrap(), 2);
    let remote = vec![us.fingerprint().clone()];
    assert_eq!(us.open(Role::Server, vec![]).err(), Some(DtlsError::NoFingerprint));
    // What ICE has not reached counts nothing, however many there are.
    let idle: Vec<_> = (0..50).map(|_| us.open(Role::Server, remote.clone()).unwrap()).collect();
    assert_eq!(us.counters().half_open, 0);
    let (first, _) = us.open(Role::Server, remote.clone()).unwrap();
    let (second, mut events) = us.open(Role::Server, remote.clone()).unwrap();
    let (late, mut late_events) = us.open(Role::Server, remote.clone()).unwrap();
    first.start();
    second.start();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(us.counters().half_open, 2);
    assert_eq!(us.open(Role::Server, remote.clone()).err(), Some(DtlsError::Full));
    late.start();
    assert!(matches!(late_events.recv().await, Some(DtlsEvent::Failed(DtlsError::Full))));
    assert_eq!(us.counters().handshakes(Role::Server, "full"), 1);
    drop(first);
    // The second has 10 s.
    let begin = tokio::time::Instant::now();
    assert!(matches!(events.recv().await, Some(DtlsEvent::Failed(DtlsError::Timeout))));
    assert_eq!(begin.elapsed().as_secs(), 9, "it began a millisecond before");
    assert!(events.recv().await.is_none());
    assert_eq!(us.counters().half_open, 0);
    assert!(us.open(Role::Server, remote.clone()).is_ok());
    drop(idle);
    // An established one does not count.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (near, far, _) = established(&us, Role::Server).await;
    assert_eq!(us.counters().half_open, 0);
    drop((near, far));
    assert_eq!(us.counters().handshakes(Role::Server, "abandoned"), 52, "50 idle ones, the first, and one of the last");
}
