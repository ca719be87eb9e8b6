//! Keys of the datagrams: one for each generation, direction and pair of workers, all from one secret of the control link.

use aws_lc_rs::hkdf;
use pop_schemas::NodeId;

use crate::control::PROOF_LEN;

/// Bytes of an AES-128-GCM key and, behind it, its salt.
pub const KEYS_LEN: usize = 28;

/// How many bytes [`hkdf::Prk::expand`] is to make.
struct Len;

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        KEYS_LEN
    }
}

/// Key (16 bytes) and salt (12 bytes) of what worker `from` sends to worker `to` in `generation`: HKDF-SHA-256 (RFC 5869) of the TLS
/// exporter's `secret`. Who sends is part of it, so that no two senders of a mesh ever share a key.
pub fn derive(secret: &[u8; 32], generation: u32, from: (NodeId, u8), to: (NodeId, u8)) -> [u8; KEYS_LEN] {
    let generation = generation.to_be_bytes();
    let nodes = [from.0.0.to_be_bytes(), to.0.0.to_be_bytes()];
    let info = [b"pop relay datagrams".as_slice(), &generation, &nodes[0], &[from.1], &nodes[1], &[to.1]];
    let mut keys = [0; KEYS_LEN];
    hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
        .extract(secret)
        .expand(&info, Len)
        .and_then(|okm| okm.fill(&mut keys))
        .expect("28 bytes are less than HKDF's 255 blocks");
    keys
}

/// Length of what [`prove`] makes.
struct ProofLen;

impl hkdf::KeyType for ProofLen {
    fn len(&self) -> usize {
        PROOF_LEN
    }
}

/// What node `from` shows `to` on a connection with the exported secret `connection`, to prove that it is the other end of the link with
/// `secret`. The caller shows another proof than who answers, so that none can be thrown back.
pub fn prove(secret: &[u8; 32], connection: &[u8; 32], from: NodeId, to: NodeId, calls: bool) -> [u8; PROOF_LEN] {
    let nodes = [from.0.to_be_bytes(), to.0.to_be_bytes()];
    let info = [b"pop relay resume".as_slice(), connection, &nodes[0], &nodes[1], &[u8::from(calls)]];
    let mut proof = [0; PROOF_LEN];
    hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
        .extract(secret)
        .expand(&info, ProofLen)
        .and_then(|okm| okm.fill(&mut proof))
        .expect("32 bytes are less than HKDF's 255 blocks");
    proof
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_generation_direction_and_worker_pair_has_its_own_keys() {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut seen = HashSet::new();
        for generation in 0..3 {
            for (from, to) in [(a, b), (b, a)] {
                for workers in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    assert!(seen.insert(derive(&[7; 32], generation, (from, workers.0), (to, workers.1))));
                }
            }
        }
        assert!(seen.insert(derive(&[8; 32], 0, (a, 0), (b, 0))), "and each secret");
    }

    #[test]
    fn each_end_link_and_connection_has_its_own_proof() {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut seen = HashSet::new();
        for (secret, connection) in [(7, 1), (7, 2), (8, 1)] {
            for (from, to, calls) in [(a, b, true), (a, b, false), (b, a, true), (b, a, false)] {
                assert!(seen.insert(prove(&[secret; 32], &[connection; 32], from, to, calls)));
            }
        }
    }

    #[test]
    fn keys_are_those_of_rfc_5869() {
        // By Python's hmac: HMAC(HMAC(32 zero bytes, 07 x 32), "pop relay datagrams" | 00000001 | 00..01 | 02 | 00..03 | 04 | 01).
        let keys = derive(&[7; 32], 1, (NodeId(1), 2), (NodeId(3), 4));
        let text: String = keys.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "8992fcb73cb50265dfb4afc95bd8193172ff1aaf6c171e15be51864c");
    }
}
