//! The check in front of the DTLS library, on handshakes that openssl made.

mod common;

use common::{captured, run_mutations};
use pop_proto::DropReason;
use pop_proto::wire::dtls::{DtlsSummary, HandshakeType};
use pop_proto::wire::{Protocol, demux};

fn record(content_type: u8, epoch: u16, body: &[u8]) -> Vec<u8> {
    let mut record = vec![content_type, 0xfe, 0xfd];
    record.extend_from_slice(&epoch.to_be_bytes());
    record.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
    record.extend_from_slice(&(body.len() as u16).to_be_bytes());
    record.extend_from_slice(body);
    record
}

/// A handshake fragment that claims `len`, `offset` and `fragment_len` and holds `body`.
fn handshake(message: u8, len: u32, offset: u32, fragment_len: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![message];
    bytes.extend_from_slice(&len.to_be_bytes()[1..]);
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&offset.to_be_bytes()[1..]);
    bytes.extend_from_slice(&fragment_len.to_be_bytes()[1..]);
    bytes.extend_from_slice(body);
    record(22, 0, &bytes)
}

fn parse(datagram: &[u8]) -> DtlsSummary {
    DtlsSummary::parse(datagram).unwrap_or_else(|_| panic!("{datagram:02x?} is well formed"))
}

fn assert_malformed(datagram: &[u8]) {
    assert_eq!(DtlsSummary::parse(datagram), Err(DropReason::DtlsMalformed), "{datagram:02x?}");
}

#[test]
fn handshakes_of_openssl_pass() {
    for file in ["openssl_lost_final", "openssl_fragments"] {
        let datagrams = captured("dtls", file);
        assert!(datagrams.iter().all(|datagram| demux(datagram) == Ok(Protocol::Dtls)));
        let summaries: Vec<_> = datagrams.iter().map(|datagram| parse(datagram)).collect();
        assert!(summaries[0].is_client_hello() && summaries[2].is_client_hello(), "with and without the cookie");
        assert!(summaries[1].has_handshake(HandshakeType::HelloVerifyRequest));
        assert_eq!(summaries.iter().filter(|summary| summary.is_client_hello()).count(), 2);
        let last = summaries.last().expect("the capture is not empty");
        assert!(last.encrypted.application_data && !last.has_plaintext());
    }
}

#[test]
fn fragments_of_one_message_are_seen_one_by_one() {
    let datagrams = captured("dtls", "openssl_fragments");
    let certificates = datagrams.iter().filter(|datagram| parse(datagram).has_handshake(HandshakeType::Certificate)).count();
    assert!(certificates >= 3, "300 bytes do not hold a certificate: {certificates}");
}

/// The server's Finished was lost twice: what the client then sends is how the adapter knows that its last flight is missing.
#[test]
fn a_client_that_repeats_its_flight_is_recognised() {
    let datagrams = captured("dtls", "openssl_lost_final");
    let asks: Vec<_> = datagrams.iter().map(|datagram| parse(datagram).repeats_last_flight()).collect();
    let is_client_key_exchange = |at: &usize| parse(&datagrams[*at]).has_handshake(HandshakeType::ClientKeyExchange);
    let key_exchanges: Vec<_> = (0..datagrams.len()).filter(is_client_key_exchange).collect();
    assert_eq!(key_exchanges, [4, 7, 15], "the flight as one datagram, then twice record by record");
    assert!(key_exchanges.iter().all(|at| asks[*at]), "each of the three flights asks");
    assert!(asks[..4].iter().all(|asks| !asks), "the flights before ask for nothing: {asks:?}");
    assert_eq!(asks.last(), Some(&false), "application data asks for nothing");
}

#[test]
fn records_of_one_datagram_are_summed() {
    let datagrams = captured("dtls", "openssl_lost_final");
    let whole = &datagrams[4];
    let summary = parse(whole);
    assert!(summary.has_handshake(HandshakeType::Certificate));
    assert!(summary.has_handshake(HandshakeType::ClientKeyExchange) && summary.has_handshake(HandshakeType::CertificateVerify));
    assert!(summary.plaintext.change_cipher_spec && summary.encrypted.handshake && !summary.encrypted.change_cipher_spec);
    assert!(summary.has_plaintext());
    assert_malformed(&[&whole[..], &[22]].concat());
}

#[test]
fn every_cut_datagram_is_malformed() {
    for file in ["openssl_lost_final", "openssl_fragments"] {
        for datagram in captured("dtls", file) {
            // A cut between records leaves a shorter datagram; every other cut is an overrun.
            let mut record_end = 0;
            for len in 0..datagram.len() {
                if len == record_end {
                    assert_eq!(DtlsSummary::parse(&datagram[..len]).is_ok(), len > 0);
                    record_end += 13 + usize::from(u16::from_be_bytes([datagram[len + 11], datagram[len + 12]]));
                } else {
                    assert_malformed(&datagram[..len]);
                }
            }
        }
    }
}

#[test]
fn only_the_four_content_types_of_dtls_1_2_pass() {
    for content_type in 0..=255 {
        let encrypted = record(content_type, 1, &[0; 24]);
        assert_eq!(DtlsSummary::parse(&encrypted).is_ok(), (20..=23).contains(&content_type), "{content_type}");
    }
}

#[test]
fn other_versions_are_malformed() {
    for version in [[3, 3], [0xfe, 0xfc], [0xfe, 0xfe], [1, 0], [0xff, 0xfd]] {
        let mut datagram = record(20, 0, &[1]);
        datagram[1..3].copy_from_slice(&version);
        assert_malformed(&datagram);
    }
    let mut datagram = record(20, 0, &[1]);
    datagram[2] = 0xff;
    parse(&datagram);
}

/// The library computes the length without nonce and tag before it checks it.
#[test]
fn an_encrypted_record_shorter_than_nonce_and_tag_is_malformed() {
    for len in 0..24 {
        for content_type in 20..=23 {
            assert_malformed(&record(content_type, 1, &vec![0; len]));
            assert_malformed(&record(content_type, 65_535, &vec![0; len]));
        }
    }
    parse(&record(23, 1, &[0; 24]));
}

/// What was measured to end or panic an established connection of the library, where its form alone gives it away.
#[test]
fn plaintext_that_no_handshake_sends_is_malformed() {
    assert_malformed(&record(21, 0, &[2])); // A truncated alert.
    assert_malformed(&record(21, 0, &[]));
    assert_malformed(&record(23, 0, b"application data in the clear"));
    assert_malformed(&record(20, 0, &[]));
    assert_malformed(&record(20, 0, &[2]));
    assert_malformed(&record(22, 0, &[]));
    assert_malformed(&handshake(16, 1, 0, 1, &[0])); // A ClientKeyExchange of one byte.
    assert_malformed(&handshake(1, 100, 0, 0, &[])); // A fragment that never gets anywhere.
    assert_malformed(&handshake(1, 10, 8, 4, &[0; 4])); // Past the end of its message.
    assert_malformed(&handshake(1, 10, 0xff_ffff, 4, &[0; 4]));
    assert_malformed(&handshake(1, 10, 0, 10, &[0; 9])); // Past the end of its record.
    assert_malformed(&handshake(1, 16_385, 0, 10, &[0; 10])); // More than anybody reassembles.
    assert_malformed(&handshake(32, 1, 0, 1, &[0]));
    assert_malformed(&handshake(1, 2, 0, 2, &[0, 0, 9])); // Bytes behind the message.
    assert!(parse(&handshake(14, 0, 0, 0, &[])).has_handshake(HandshakeType::ServerHelloDone), "an empty message is one fragment");
    // A well-formed alert passes as plaintext, and is dropped as such once the handshake is done.
    assert!(parse(&record(21, 0, &[2, 40])).plaintext.alert);
}

#[test]
fn mutated_datagrams_never_hide_plaintext_or_a_short_record() {
    let seeds: Vec<_> = ["openssl_lost_final", "openssl_fragments"].iter().flat_map(|file| captured("dtls", file)).collect();
    run_mutations("dtls", &seeds, |_, input| {
        let Ok(summary) = DtlsSummary::parse(input) else { return false };
        // A second walk, without any of the parser's code.
        let mut at = 0;
        let mut plaintext = false;
        while at < input.len() {
            let epoch = u16::from_be_bytes([input[at + 3], input[at + 4]]);
            let len = usize::from(u16::from_be_bytes([input[at + 11], input[at + 12]]));
            plaintext |= epoch == 0;
            assert!(epoch == 0 || len >= 24);
            at += 13 + len;
        }
        assert_eq!(at, input.len());
        assert_eq!(summary.has_plaintext(), plaintext);
        true
    });
}
