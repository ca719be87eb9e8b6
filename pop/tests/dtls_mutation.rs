//! Real flights, mutated, into the gate and the library behind it: no panic gets out, and none happens inside.

#[path = "dtls_support/ends.rs"]
mod ends;
#[path = "dtls_support/network.rs"]
mod network;
#[path = "dtls_support/random.rs"]
mod random;

use std::sync::Arc;
use std::time::Duration;

use ends::{Report, dimpl, dimpl_certificate, ours};
use network::{Way, run};
use pop::dtls::{Certificate, Dtls, Role};
use pop_proto::drop_reason::DropReason;
use random::Random;

/// Mutated datagrams in all. The slow build also checks every addition of the library for overflow.
const INPUTS: u32 = if cfg!(debug_assertions) { 20_000 } else { 250_000 };

/// Mutations of one datagram, below the burst that the gate takes.
const MUTATIONS: u32 = 40;

const SEED: u64 = 0x5eed_d715;

#[tokio::test(start_paused = true)]
async fn mutated_flights_panic_neither_the_gate_nor_the_library() {
    println!("seed {SEED:#x}, {INPUTS} inputs");
    let us = Dtls::new(Certificate::generate().unwrap(), 1_000);
    let mut random = Random(SEED);
    let (certificate, fingerprint) = dimpl_certificate();
    let (mut inputs, mut framed, mut taken, mut handshakes, mut established) = (0, 0, 0, 0, 0);
    while inputs < INPUTS {
        handshakes += 1;
        let role = if random.below(2) == 0 { Role::Server } else { Role::Client };
        let far_role = if role == Role::Server { Role::Client } else { Role::Server };
        let mut far = dimpl(certificate.clone(), far_role, 1_150, random.below(4) == 0);
        let mut near = ours(&us, role, &fingerprint);
        let peer = Arc::clone(near.peer.as_ref().unwrap());
        // One datagram of the peer is preceded by its mutations; those before it arrive as they are.
        let stage = random.below(3) as usize;
        let mut seen: Vec<Vec<u8>> = Vec::new();
        let mut mutate = |random: &mut Random, datagram: &[u8], seen: &[Vec<u8>]| {
            for _ in 0..MUTATIONS {
                let input = mutation(random, datagram, seen);
                let verdict = peer.deliver(&input);
                inputs += 1;
                framed += u32::from(verdict != Err(DropReason::DtlsMalformed));
                taken += u32::from(verdict.is_ok());
            }
        };
        let outcome = run(&mut near, &mut far, Duration::from_millis(700), |way, number, datagram| {
            if way == Way::Back {
                seen.push(datagram.to_vec());
                if number == stage {
                    mutate(&mut random, datagram, &seen);
                }
            }
            vec![Duration::ZERO]
        })
        .await;
        if matches!(outcome.first, Some(Report::Keys(..))) {
            established += 1;
            // Behind the handshake as well.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let last = seen[seen.len() - 1].clone();
            mutate(&mut random, &last, &seen);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(us.counters().panics, 0, "the library panicked: seed {SEED:#x}, handshake {handshakes}, {role:?}, stage {stage}");
    }
    println!("{handshakes} handshakes, {established} of them established; {inputs} inputs");
    println!("past the first check {:.1} %, taken {:.1} %", percent(framed, inputs), percent(taken, inputs));
    println!("{:?}", us.counters());
    assert!(percent(framed, inputs) >= 30.0);
    assert!(percent(taken, inputs) >= 10.0, "reach the reassembly, the library or the memory of the last flight");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(us.counters().half_open, 0, "nothing hangs");
}

fn percent(part: u32, whole: u32) -> f64 {
    f64::from(part) * 100.0 / f64::from(whole)
}

/// A mutation: mostly inside the records, with the lengths around it kept right.
fn mutation(random: &mut Random, datagram: &[u8], seen: &[Vec<u8>]) -> Vec<u8> {
    let mut records: Vec<Vec<u8>> = split_records(datagram);
    for _ in 0..=random.below(3) {
        let at = random.below(records.len() as u64) as usize;
        let record = &mut records[at];
        let handshake = record[0] == 22 && record.len() >= 25;
        match random.below(16) {
            // Raw: anything anywhere.
            0 => flip(random, record, 0),
            1 => record.truncate(1 + random.below(record.len() as u64) as usize),
            // Header fields.
            2 => record[0] = 19 + random.below(6) as u8,
            3 if record.len() >= 13 => record[4] = random.below(3) as u8,
            4 if handshake => record[13] = *random.pick(&[0, 1, 2, 3, 4, 11, 12, 13, 14, 15, 16, 20, 22]),
            5 if handshake => record[18] = random.below(9) as u8,
            6 if handshake => {
                let field = *random.pick(&[14, 19, 22]);
                record[field + 2] = record[field + 2].wrapping_add(random.below(5) as u8).wrapping_sub(2);
            }
            // The message grows or shrinks, its lengths follow.
            7 | 8 if handshake => {
                let len = random.below(record.len() as u64 - 24) as usize;
                record.truncate(25 + len);
                fix_lengths(record);
            }
            9 if handshake => {
                let more = random.below(40);
                record.extend((0..more).map(|_| random.next() as u8));
                fix_lengths(record);
            }
            // A length field somewhere inside the message.
            10 | 11 if handshake && record.len() > 27 => {
                let field = 25 + random.below(record.len() as u64 - 26) as usize;
                let value = *random.pick(&[0_u16, 1, 2, 3, 0xff, 0x100, 0xffff]);
                record[field..field + 2].copy_from_slice(&value.to_be_bytes());
            }
            12 => {
                let other = random.pick(seen).clone();
                records.extend(split_records(&other));
            }
            _ => flip(random, record, if handshake { 25 } else { 13 }),
        }
        if records.len() > 1 && random.below(8) == 0 {
            records.swap_remove(at);
        }
    }
    let mut mutated = records.concat();
    mutated.truncate(1_500);
    mutated
}

fn flip(random: &mut Random, record: &mut [u8], from: usize) {
    let from = from.min(record.len() - 1);
    for _ in 0..=random.below(4) {
        let at = from + random.below((record.len() - from) as u64) as usize;
        record[at] ^= 1 << random.below(8);
    }
}

/// A whole message of this length in a record of this length.
fn fix_lengths(record: &mut [u8]) {
    let body = u32::try_from(record.len() - 25).unwrap().to_be_bytes();
    let record_len = u16::try_from(record.len() - 13).unwrap().to_be_bytes();
    record[11..13].copy_from_slice(&record_len);
    record[14..17].copy_from_slice(&body[1..]);
    record[19..22].copy_from_slice(&[0; 3]);
    record[22..25].copy_from_slice(&body[1..]);
}

fn split_records(datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = datagram;
    let mut records = Vec::new();
    while rest.len() >= 13 {
        let len = 13 + usize::from(u16::from_be_bytes([rest[11], rest[12]]));
        let (record, tail) = rest.split_at(len.min(rest.len()));
        records.push(record.to_vec());
        rest = tail;
    }
    records
}
