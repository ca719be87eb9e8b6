//! Mutated checks against the parser and the agent: no panic, and nothing unauthentic changes anything.

mod common;

use std::time::Duration;

use common::{Rng, corpus, mutate, mutation_count, stun_fingerprint};
use hmac::{Hmac, KeyInit, Mac};
use pop_proto::{
    DropReason,
    control::{IceCredentials, Path},
    ice::{IceLite, PATHS_MAX},
    wire::stun::{Message, RESPONSE_LEN_MAX},
};
use pop_schemas::Time;
use sha1::Sha1;

const SEED: u64 = 4_711;
const PASSWORD: &[u8] = b"swordfishswordfishswor";

/// Sets the length field to what the datagram has.
fn fix_length(bytes: &mut [u8]) {
    if let Some(length) = bytes.len().checked_sub(20) {
        bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    }
}

/// Appends MESSAGE-INTEGRITY and now and then FINGERPRINT, as RFC 8489 says and apart from the code under test.
fn seal(bytes: &mut Vec<u8>, with_fingerprint: bool) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend([0x00, 0x08, 0, 20]);
    let before = bytes.len() - 4;
    bytes.extend([0; 20]);
    fix_length(bytes);
    let tag = <Hmac<Sha1> as KeyInit>::new_from_slice(PASSWORD).expect("any length").chain_update(&bytes[..before]).finalize();
    bytes[before + 4..].copy_from_slice(&tag.into_bytes());
    if with_fingerprint {
        bytes.extend([0x80, 0x28, 0, 4, 0, 0, 0, 0]);
        fix_length(bytes);
        let end = bytes.len() - 8;
        let fingerprint = stun_fingerprint(&bytes[..end]);
        bytes[end + 4..].copy_from_slice(&fingerprint);
    }
}

fn new_agent() -> IceLite {
    let password = String::from_utf8(PASSWORD.to_vec()).expect("it is text");
    let credentials = IceCredentials { local_ufrag: "lite".into(), local_pwd: password.into(), remote_ufrag: "full".into() };
    IceLite::new(Time::ZERO, credentials, Duration::from_secs(15))
}

#[test]
fn every_check_of_the_corpus_is_answered_as_it_should_be() {
    for (name, template) in corpus("stun") {
        let mut bytes = template.clone();
        if !name.starts_with("rfc5769") {
            seal(&mut bytes, true);
        }
        let mut ice = new_agent();
        let check = Message::parse(&bytes).unwrap_or_else(|reason| panic!("{name}: {reason:?}"));
        let path = Path { socket: 0, remote: ([192, 0, 2, 1], 9).into() };
        let result = ice.handle_check(Time::ZERO, path, &check, &mut [0; RESPONSE_LEN_MAX]);
        match name.as_str() {
            "chromium_check" | "without_priority" => assert!(result.is_ok_and(|outcome| outcome.newly_validated), "{name}"),
            "unknown_required" => {
                assert_eq!(check.unknown_attributes().as_slice(), [0x0003, 0x7abc]);
                assert!(result.is_ok_and(|outcome| !outcome.newly_validated));
            }
            "rfc5769_request" | "rfc5769_request_long_term" => assert_eq!(result, Err(DropReason::StunUnknownUser)),
            _ => assert_eq!(result, Err(DropReason::StunUnexpected), "{name}"),
        }
    }
}

#[test]
fn mutated_checks_never_panic_and_only_authentic_ones_count() {
    let inputs = mutation_count();
    let corpus = corpus("stun");
    let mut rng = Rng::new(SEED);
    let mut ice = new_agent();
    let (mut well_formed, mut authentic, mut answered) = (0_u64, 0_u64, 0_u64);
    for input in 0..inputs {
        let mut bytes = corpus[rng.below(corpus.len())].1.clone();
        if bytes.windows(4).rev().nth(4) == Some(&[0x80, 0x28, 0, 4]) {
            // The vectors' own seals, which no mutation would leave right.
            bytes.truncate(bytes.len() - 32);
            fix_length(&mut bytes);
        }
        // A third each: changed and sealed; sealed and changed; changed with only the length made right.
        let sealing = rng.below(3);
        if sealing == 1 {
            seal(&mut bytes, true);
        }
        if rng.one_in(5) {
            mutate(&mut rng, &mut bytes);
        } else {
            // Behind the header, so that most inputs get to the attributes.
            let mut attributes = bytes.split_off(20);
            mutate(&mut rng, &mut attributes);
            bytes.extend(attributes);
        }
        match sealing {
            0 if bytes.len() >= 20 => {
                let with_fingerprint = !rng.one_in(4);
                seal(&mut bytes, with_fingerprint);
            }
            2 => {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                fix_length(&mut bytes);
            }
            _ => {}
        }
        let Ok(check) = Message::parse(&bytes) else { continue };
        well_formed += 1;
        let is_authentic = check.is_authentic(PASSWORD);
        authentic += u64::from(is_authentic);
        let before = (ice.paths().collect::<Vec<_>>(), ice.selected(), ice.deadline());
        let path = Path { socket: rng.below(2) as u16, remote: ([192, 0, 2, rng.below(4) as u8], rng.below(4) as u16).into() };
        let mut response = [0; RESPONSE_LEN_MAX];
        match ice.handle_check(Time::from_nanos(input as u64), path, &check, &mut response) {
            Ok(outcome) => {
                answered += 1;
                assert!(is_authentic, "an answer to {bytes:02x?}");
                let answer = Message::parse(&response[..outcome.response_len]).expect("our answer is well formed");
                assert!(answer.is_authentic(PASSWORD) && answer.transaction() == check.transaction());
                assert!(ice.paths().count() <= PATHS_MAX);
                assert!(ice.selected().is_none_or(|selected| ice.is_validated(selected)));
            }
            Err(_) => assert_eq!(before, (ice.paths().collect::<Vec<_>>(), ice.selected(), ice.deadline())),
        }
    }
    let share = 100.0 * well_formed as f64 / inputs as f64;
    println!("stun: seed {SEED}, {inputs} inputs, {share:.1} % well formed, {authentic} authentic, {answered} answered");
    assert!(share >= 30.0);
    assert!(answered > 0);
}
