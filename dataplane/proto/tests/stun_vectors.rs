//! STUN against RFC 5769, and what our writers write.

mod common;

use std::net::SocketAddr;

use common::{Rng, corpus, stun_fingerprint, unhex};
use pop_proto::{
    DropReason,
    wire::stun::{
        BindingRequest, Kind, MESSAGE_LEN_MAX, Message, RESPONSE_LEN_MAX, Role, TransactionId, UNKNOWN_MAX, write_request,
        write_role_conflict, write_success, write_unknown_attributes,
    },
};

const RFC_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
const TRANSACTION: TransactionId = TransactionId(*b"0123456789ab");

fn vector(name: &str) -> Vec<u8> {
    corpus("stun").into_iter().find(|(file, _)| file == name).expect("the vector is there").1
}

fn request(username: &str) -> BindingRequest<'_> {
    BindingRequest {
        transaction: TRANSACTION,
        username,
        priority: Some(0x6e7f_1eff),
        role: Some(Role::Controlling(77)),
        use_candidate: true,
    }
}

fn written(request: &BindingRequest<'_>) -> Vec<u8> {
    let mut out = [0; MESSAGE_LEN_MAX];
    let len = write_request(request, b"secret", &mut out).expect("it fits");
    out[..len].to_vec()
}

#[test]
fn rfc5769_request_is_read_and_authentic() {
    let bytes = vector("rfc5769_request");
    let message = Message::parse(&bytes).expect("it is well formed");
    assert_eq!(message.kind(), Kind::BindingRequest);
    assert_eq!(message.transaction().0.to_vec(), unhex("b7e7a701bc34d686fa87dfae"));
    assert_eq!(message.fragments(), Some((&b"evtj"[..], &b"h6vY"[..])));
    assert_eq!(message.priority(), Some(0x6e00_01ff));
    assert_eq!(message.role(), Some(Role::Controlled(0x932f_f9b1_5126_3b36)));
    assert!(!message.use_candidate() && message.has_fingerprint());
    assert!(message.is_authentic(RFC_PASSWORD));
    assert!(!message.is_authentic(b"VOkJxbRl1RmTxUk/WvJxBu"));
}

#[test]
fn rfc5769_responses_are_read_and_authentic() {
    for (name, address) in
        [("rfc5769_response_ipv4", "192.0.2.1:32853"), ("rfc5769_response_ipv6", "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
    {
        let bytes = vector(name);
        let message = Message::parse(&bytes).expect("it is well formed");
        assert_eq!(message.kind(), Kind::BindingSuccess);
        assert_eq!(message.mapped_address(), Some(address.parse().expect("an address")));
        assert!(message.is_authentic(RFC_PASSWORD) && message.has_fingerprint());
    }
}

#[test]
fn rfc5769_long_term_request_is_read_and_not_ours() {
    let bytes = vector("rfc5769_request_long_term");
    let message = Message::parse(&bytes).expect("it is well formed");
    assert_eq!(message.fragments(), None);
    assert!(message.unknown_attributes().as_slice().is_empty());
    assert!(!message.is_authentic(RFC_PASSWORD));
    // The key of long-term credentials is MD5(username ":" realm ":" password) (RFC 8489 section 9.2.2).
    assert!(message.is_authentic(&unhex("e8ca7ad59d5eb0518e312911d2dab2a9")));
}

#[test]
fn a_written_request_reads_back() {
    let bytes = written(&request("lite:full"));
    let message = Message::parse(&bytes).expect("it is well formed");
    assert_eq!(message.kind(), Kind::BindingRequest);
    assert_eq!(message.transaction(), TRANSACTION);
    assert_eq!(message.fragments(), Some((&b"lite"[..], &b"full"[..])));
    assert_eq!(message.priority(), Some(0x6e7f_1eff));
    assert_eq!(message.role(), Some(Role::Controlling(77)));
    assert!(message.use_candidate() && message.has_fingerprint() && message.is_authentic(b"secret"));
    let longest = format!("{}:{}", "l".repeat(256), "r".repeat(256));
    assert!(Message::parse(&written(&request(&longest))).is_ok());
    let too_long = format!("{longest}x");
    assert_eq!(Message::parse(&written(&request(&too_long))).unwrap_err(), DropReason::StunMalformed);
    assert_eq!(write_request(&request("lite:full"), b"secret", &mut vec![0; bytes.len() - 1]), None);
}

#[test]
fn answers_carry_the_address_that_the_client_knows() {
    for (remote, mapped) in
        [("192.0.2.7:40000", "192.0.2.7:40000"), ("[2001:db8::9]:1", "[2001:db8::9]:1"), ("[::ffff:192.0.2.7]:65535", "192.0.2.7:65535")]
    {
        let mut out = [0xee; RESPONSE_LEN_MAX];
        let remote: SocketAddr = remote.parse().expect("an address");
        let len = write_success(TRANSACTION, remote, b"secret", &mut out);
        let message = Message::parse(&out[..len]).expect("it is well formed");
        assert_eq!((message.kind(), message.transaction()), (Kind::BindingSuccess, TRANSACTION));
        assert_eq!(message.mapped_address(), Some(mapped.parse().expect("an address")));
        assert!(message.is_authentic(b"secret") && message.has_fingerprint());
    }
}

#[test]
fn error_answers_say_their_code() {
    let mut out = [0xee; RESPONSE_LEN_MAX];
    let len = write_role_conflict(TRANSACTION, b"secret", &mut out);
    let message = Message::parse(&out[..len]).expect("it is well formed");
    assert_eq!((message.kind(), message.error_code()), (Kind::BindingError, Some(487)));
    assert!(message.is_authentic(b"secret") && message.has_fingerprint());

    // Twice as many unknown attributes as an answer names: the answer stays within its bound.
    let mut attributes = Vec::new();
    for at in 0..2 * UNKNOWN_MAX as u16 {
        attributes.extend((0x7000 + at).to_be_bytes());
        attributes.extend([0, 0]);
    }
    let mut bytes = vec![0, 1, 0, attributes.len() as u8, 0x21, 0x12, 0xa4, 0x42];
    bytes.extend(TRANSACTION.0);
    bytes.extend(attributes);
    let unknown = *Message::parse(&bytes).expect("it is well formed").unknown_attributes();
    assert_eq!(unknown.as_slice().len(), UNKNOWN_MAX);
    let len = write_unknown_attributes(TRANSACTION, &unknown, b"secret", &mut out);
    assert_eq!(len, RESPONSE_LEN_MAX);
    let message = Message::parse(&out[..len]).expect("it is well formed");
    assert_eq!((message.kind(), message.error_code()), (Kind::BindingError, Some(420)));
    assert!(out[..len].windows(20).any(|window| window[..4] == [0, 0x0a, 0, 16] && window[4..8] == [0x70, 0, 0x70, 1]));
}

#[test]
fn what_follows_the_integrity_means_nothing() {
    let good = written(&BindingRequest { use_candidate: false, ..request("lite:full") });
    // Behind the integrity an attacker adds USE-CANDIDATE and an unknown attribute, and takes the fingerprint away.
    let mut bytes = good[..good.len() - 8].to_vec();
    bytes.extend([0x00, 0x25, 0, 0, 0x7f, 0xff, 0, 0]);
    let length = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let message = Message::parse(&bytes).expect("it is well formed");
    assert!(message.is_authentic(b"secret"));
    assert!(!message.use_candidate() && !message.has_fingerprint());
    assert!(message.unknown_attributes().as_slice().is_empty());
}

/// Makes the fingerprint right again that ends `behind` bytes before the end, so that only the change itself is wrong.
fn refresh_fingerprint(bytes: &mut [u8], behind: usize) {
    let at = bytes.len() - behind - 8;
    let fingerprint = stun_fingerprint(&bytes[..at]);
    bytes[at + 4..at + 8].copy_from_slice(&fingerprint);
}

#[test]
fn malformed_messages_are_refused() {
    let good = written(&request("lite:full"));
    assert!(Message::parse(&good).is_ok());
    let refuse = |why: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(Message::parse(&bytes).err(), Some(DropReason::StunMalformed), "{why}");
    };
    refuse("the magic is another", &|bytes| bytes[4] ^= 1);
    refuse("the top bits are set", &|bytes| {
        bytes[0] |= 0x40;
        refresh_fingerprint(bytes, 0);
    });
    refuse("the length is odd", &|bytes| bytes[3] ^= 1);
    refuse("the length is shorter than the datagram", &|bytes| bytes[3] -= 4);
    refuse("the datagram is longer", &|bytes| bytes.extend([0; 4]));
    refuse("an attribute passes the end", &|bytes| bytes[23] = 0xff);
    refuse("the fingerprint is wrong", &|bytes| *bytes.last_mut().expect("it is not empty") ^= 1);
    refuse("the fingerprint is right and not the last", &|bytes| {
        bytes.extend([0x80, 0x22, 0, 0]);
        bytes[3] += 4;
        refresh_fingerprint(bytes, 4);
    });
    for len in 0..good.len() {
        assert_eq!(Message::parse(&good[..len]).err(), Some(DropReason::StunMalformed), "{len} bytes");
    }
    let mut long = vec![0; MESSAGE_LEN_MAX + 4];
    long[..20].copy_from_slice(&good[..20]);
    let length = (long.len() - 20) as u16;
    long[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(Message::parse(&long).err(), Some(DropReason::StunMalformed));
}

#[test]
fn an_attribute_of_the_wrong_size_is_refused() {
    for (attribute, good_len) in [(0x0008_u16, 20), (0x0024, 4), (0x0025, 0), (0x8029, 8), (0x802a, 8), (0x8028, 4)] {
        for len in [0, 1, 3, 4, 8, 12, 20, 24_u16] {
            let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
            bytes.extend(TRANSACTION.0);
            bytes.extend(attribute.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            bytes.resize(bytes.len() + usize::from(len).next_multiple_of(4), 0);
            let length = (bytes.len() - 20) as u16;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            // A fingerprint of zeros is wrong whatever its size.
            let is_good = len == good_len && attribute != 0x8028;
            assert_eq!(Message::parse(&bytes).is_ok(), is_good, "attribute {attribute:#06x} of {len} bytes");
        }
    }
}

#[test]
fn random_datagrams_are_refused() {
    let mut rng = Rng::new(5);
    for _ in 0..10_000 {
        let len = rng.below(200);
        assert!(Message::parse(&rng.bytes(len)).is_err());
    }
}
