//! Mutated STAMP packets against both ends: no panic, never more bytes out than in, and nothing of the request changed but what
//! RFC 8972 lets a reflector change.

mod common;

use common::{Rng, mutate, mutation_count};
use pop_proto::wire::stamp::{ErrorEstimate, NtpTime, PACKET_LEN, REQUEST_LEN_MAX, Reflection, Reply, write_reply, write_request};

const SEED: u64 = 862;

/// A sender's packets: bare, TWAMP-Light's, with TLVs, with padding.
fn templates(rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut bare = [0; PACKET_LEN];
    write_request(1, NtpTime(rng.next_u64()), ErrorEstimate(0x8d9a), 7, &mut bare);
    let with = |tail: &[u8]| [&bare[..], tail].concat();
    let tlvs = [0x80, 1, 0, 4, 1, 2, 3, 4, 0x80, 3, 0, 4, 0, 0, 0, 0, 0x80, 8, 0, 0, 0x80, 200, 0, 2, 9, 9];
    vec![bare.to_vec(), bare[..41].to_vec(), with(&tlvs), with(&rng.bytes(64)), with(&[0; 100]), with(&[0x80, 1, 4, 0].repeat(40))]
}

#[test]
fn mutated_requests_never_panic_and_never_get_more_than_they_are() {
    let inputs = mutation_count();
    let mut rng = Rng::new(SEED);
    let templates = templates(&mut rng);
    let mut out = [0; REQUEST_LEN_MAX];
    let (mut answered, mut bytes_in, mut bytes_out) = (0u64, 0u64, 0u64);
    for _ in 0..inputs {
        let mut request = templates[rng.below(templates.len())].clone();
        mutate(&mut rng, &mut request);
        let (received, transmitted) = (NtpTime(rng.next_u64()), NtpTime(rng.next_u64()));
        let reflection = Reflection { received, transmitted, error: ErrorEstimate(rng.next_u64() as u16), ttl: rng.next_u64() as u8 };
        bytes_in += request.len() as u64;
        let Ok(len) = write_reply(&request, &reflection, &mut out) else { continue };
        answered += 1;
        bytes_out += len as u64;
        assert_eq!(len, request.len());
        let reply = Reply::parse(&out[..len]).expect("our reply is one");
        assert_eq!((reply.received, reply.transmitted, reply.error), (received, transmitted, reflection.error));
        assert_eq!((&out[24..38], out[40]), (&request[..14], reflection.ttl));
        let flags = |at: usize| out[at] ^ request[at];
        assert!((PACKET_LEN..len).all(|at| flags(at) & 0x3f == 0), "only the flags U and M of a TLV may change");
    }
    let share = 100.0 * answered as f64 / inputs as f64;
    println!("stamp: seed {SEED}, {inputs} inputs, {share:.1} % past the length check, {bytes_in} bytes in, {bytes_out} bytes out");
    assert!(share >= 60.0 && bytes_out <= bytes_in);
}

#[test]
fn mutated_replies_are_read_or_refused() {
    let inputs = mutation_count();
    let mut rng = Rng::new(SEED + 1);
    let mut read = 0u64;
    for _ in 0..inputs {
        let len = 30 + rng.below(40);
        let mut reply = rng.bytes(len);
        mutate(&mut rng, &mut reply);
        if let Ok(reply) = Reply::parse(&reply) {
            read += 1;
            // What the command computes of them must hold for every value.
            let _ = (reply.transmitted.nanos_since(reply.received), reply.received.nanos_since(reply.sender_at), reply.error.error());
        }
    }
    println!("stamp replies: seed {}, {inputs} inputs, {read} past the length check", SEED + 1);
    assert!(read > inputs as u64 / 3);
}
