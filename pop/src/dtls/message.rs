//! The shape of each handshake message that a peer may send in plaintext, checked before the library parses it.
//!
//! The library's parsers index before they look: a ClientHello or ServerHello whose extension block ends within an extension
//! header, and a ServerKeyExchange or ClientKeyExchange of one byte, panic; a Certificate allocates what its length field says.

use super::record::{DTLS_1_2, read_u24};
use super::{Role, SrtpProfile};

/// Handshake message types (RFC 5246 section 7.4, RFC 6347 section 4.3.2).
pub(super) const CLIENT_HELLO: u8 = 1;
pub(super) const SERVER_HELLO: u8 = 2;
pub(super) const HELLO_VERIFY_REQUEST: u8 = 3;
pub(super) const CERTIFICATE: u8 = 11;
pub(super) const SERVER_KEY_EXCHANGE: u8 = 12;
pub(super) const CERTIFICATE_REQUEST: u8 = 13;
pub(super) const SERVER_HELLO_DONE: u8 = 14;
pub(super) const CERTIFICATE_VERIFY: u8 = 15;
pub(super) const CLIENT_KEY_EXCHANGE: u8 = 16;

/// `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256` (RFC 5289): what our ECDSA certificate serves.
const ECDHE_ECDSA_AES_128_GCM: u16 = 0xc02b;

const EXTENSION_SUPPORTED_GROUPS: u16 = 10;
const EXTENSION_USE_SRTP: u16 = 14;
const EXTENSION_EXTENDED_MASTER_SECRET: u16 = 23;

/// Certificates in a chain that are taken; WebRTC peers send one.
const CERTIFICATES_MAX: usize = 8;

/// What decides about a client before the library sees it.
#[derive(Clone, Debug)]
pub(super) struct ClientHello {
    /// DTLS 1.2 or later was offered: later versions also say 1.2 here (RFC 9147 section 5.3).
    pub(super) dtls_1_2: bool,
    /// Our cipher suite was offered.
    pub(super) cipher_suite: bool,
    /// RFC 7627.
    pub(super) extended_master_secret: bool,
    /// The profiles of `use_srtp` that we know, in the client's order; `None` without the extension.
    pub(super) srtp_profiles: Option<Vec<SrtpProfile>>,
    /// Must be the same in the second hello (RFC 6347 section 4.2.1).
    pub(super) random: [u8; 32],
    pub(super) cookie: Box<[u8]>,
}

impl ClientHello {
    /// `None` when the message does not hold its own lengths.
    pub(super) fn parse(body: &[u8]) -> Option<ClientHello> {
        let mut reader = Reader(body);
        let version = reader.take(2)?;
        let random = reader.take(32)?.try_into().ok()?;
        // The library reads no session id: a client that sends one would be read one byte off.
        if !reader.take_u8_prefixed()?.is_empty() {
            return None;
        }
        let cookie = reader.take_u8_prefixed()?.into();
        let suites = reader.take_u16_list()?;
        let compressions = reader.take_u8_prefixed()?;
        if suites.is_empty() || !compressions.contains(&0) {
            return None;
        }
        let mut hello = ClientHello {
            // DTLS counts downwards: {254, 253} is 1.2, lower is later.
            dtls_1_2: version[0] == DTLS_1_2[0] && version[1] <= DTLS_1_2[1],
            cipher_suite: list_u16(suites).any(|suite| suite == ECDHE_ECDSA_AES_128_GCM),
            extended_master_secret: false,
            srtp_profiles: None,
            random,
            cookie,
        };
        let mut extensions = Reader(reader.take_u16_prefixed()?);
        reader.end()?;
        while !extensions.0.is_empty() {
            let kind = extensions.take_u16()?;
            let mut extension = Reader(extensions.take_u16_prefixed()?);
            match kind {
                EXTENSION_SUPPORTED_GROUPS => {
                    extension.take_u16_list()?;
                    extension.end()?;
                }
                EXTENSION_USE_SRTP => {
                    let profiles = extension.take_u16_list()?;
                    extension.take_u8_prefixed()?;
                    extension.end()?;
                    hello.srtp_profiles = Some(list_u16(profiles).filter_map(profile_for).collect());
                }
                EXTENSION_EXTENDED_MASTER_SECRET => {
                    extension.end()?;
                    hello.extended_master_secret = true;
                }
                _ => {}
            }
        }
        Some(hello)
    }
}

/// Whether a peer of `role` may send `message_type` in plaintext and `body` holds its own lengths. ClientHello has its own
/// parser.
pub(super) fn is_well_formed(role: Role, message_type: u8, body: &[u8]) -> bool {
    let holds = match (role, message_type) {
        (Role::Client, CERTIFICATE) | (Role::Server, CERTIFICATE) => check_certificate(body),
        (Role::Client, CLIENT_KEY_EXCHANGE) => check_client_key_exchange(body),
        (Role::Client, CERTIFICATE_VERIFY) => check_certificate_verify(body),
        (Role::Server, HELLO_VERIFY_REQUEST) => check_hello_verify_request(body),
        (Role::Server, SERVER_HELLO) => check_server_hello(body),
        (Role::Server, SERVER_KEY_EXCHANGE) => check_server_key_exchange(body),
        (Role::Server, CERTIFICATE_REQUEST) => check_certificate_request(body),
        (Role::Server, SERVER_HELLO_DONE) => body.is_empty().then_some(()),
        _ => None,
    };
    holds.is_some()
}

/// The cookie of a HelloVerifyRequest.
pub(super) fn parse_cookie(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(body);
    reader.take(2)?;
    let cookie = reader.take_u8_prefixed()?;
    reader.end()?;
    Some(cookie)
}

fn check_hello_verify_request(body: &[u8]) -> Option<()> {
    parse_cookie(body).map(|_| ())
}

fn check_server_hello(body: &[u8]) -> Option<()> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    if reader.take_u8_prefixed()?.len() > 32 {
        return None;
    }
    reader.take(2 + 1)?;
    let mut extensions = Reader(reader.take_u16_prefixed()?);
    reader.end()?;
    while !extensions.0.is_empty() {
        let kind = extensions.take_u16()?;
        let mut extension = Reader(extensions.take_u16_prefixed()?);
        if kind == EXTENSION_USE_SRTP {
            // RFC 5764 section 4.1.1: the server "MUST" return one profile.
            if extension.take_u16_list()?.len() != 2 {
                return None;
            }
            extension.take_u8_prefixed()?;
            extension.end()?;
        }
    }
    Some(())
}

fn check_certificate(body: &[u8]) -> Option<()> {
    let mut reader = Reader(body);
    let mut chain = Reader(reader.take_u24_prefixed()?);
    reader.end()?;
    let mut certificates = 0;
    while !chain.0.is_empty() {
        if chain.take_u24_prefixed()?.is_empty() {
            return None;
        }
        certificates += 1;
    }
    (certificates <= CERTIFICATES_MAX).then_some(())
}

fn check_server_key_exchange(body: &[u8]) -> Option<()> {
    const NAMED_CURVE: u8 = 3;
    let mut reader = Reader(body);
    if reader.take(1)? != [NAMED_CURVE] {
        return None;
    }
    reader.take(2)?;
    check_public_key(reader.take_u8_prefixed()?)?;
    reader.take(2)?;
    reader.take_u16_prefixed()?;
    reader.end()
}

fn check_client_key_exchange(body: &[u8]) -> Option<()> {
    let mut reader = Reader(body);
    check_public_key(reader.take_u8_prefixed()?)?;
    reader.end()
}

/// X25519, or an uncompressed point of P-256 or P-384.
fn check_public_key(key: &[u8]) -> Option<()> {
    matches!(key.len(), 32 | 65 | 97).then_some(())
}

fn check_certificate_request(body: &[u8]) -> Option<()> {
    let mut reader = Reader(body);
    reader.take_u8_prefixed()?;
    reader.take_u16_list()?;
    reader.take_u16_prefixed()?;
    reader.end()
}

fn check_certificate_verify(body: &[u8]) -> Option<()> {
    let mut reader = Reader(body);
    reader.take(2)?;
    reader.take_u16_prefixed()?;
    reader.end()
}

fn profile_for(number: u16) -> Option<SrtpProfile> {
    match number {
        0x0001 => Some(SrtpProfile::Aes128CmSha1_80),
        0x0007 => Some(SrtpProfile::AeadAes128Gcm),
        0x0008 => Some(SrtpProfile::AeadAes256Gcm),
        _ => None,
    }
}

fn list_u16(list: &[u8]) -> impl Iterator<Item = u16> {
    list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn take_u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn take_u8_prefixed(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    fn take_u16_prefixed(&mut self) -> Option<&'a [u8]> {
        let len = self.take_u16()?;
        self.take(usize::from(len))
    }

    fn take_u24_prefixed(&mut self) -> Option<&'a [u8]> {
        let len = read_u24(self.take(3)?);
        self.take(len)
    }

    /// Numbers of two bytes behind their length in bytes.
    fn take_u16_list(&mut self) -> Option<&'a [u8]> {
        self.take_u16_prefixed().filter(|list| list.len().is_multiple_of(2))
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;
    use std::panic::catch_unwind;

    use webrtc_dtls::handshake::Handshake;

    use super::super::{Certificate, Dtls, DtlsEvent, record};
    use super::*;

    /// Every plaintext message of a handshake of two of our ends, by the role that sent it.
    async fn capture() -> Vec<(Role, u8, Vec<u8>)> {
        let (us, them) = (Dtls::new(Certificate::generate().unwrap(), 1), Dtls::new(Certificate::generate().unwrap(), 1));
        let (server, mut server_events) = us.open(Role::Server, vec![them.fingerprint().clone()]).unwrap();
        let (client, mut client_events) = them.open(Role::Client, vec![us.fingerprint().clone()]).unwrap();
        server.start();
        client.start();
        let (mut messages, mut established) = (Vec::new(), 0);
        while established < 2 {
            let (event, role, to) = tokio::select! {
                event = server_events.recv() => (event, Role::Server, &client),
                event = client_events.recv() => (event, Role::Client, &server),
            };
            match event.unwrap() {
                DtlsEvent::Send(datagram) => {
                    for record in record::records(&datagram).unwrap().filter(|r| (r.content_type, r.epoch) == (record::HANDSHAKE, 0)) {
                        let fragments = record::fragments(record.body).unwrap();
                        messages.extend(fragments.map(|f| (role, f.message_type, f.bytes.to_vec())));
                    }
                    to.deliver(&datagram).unwrap();
                }
                DtlsEvent::Established { .. } => established += 1,
                other => panic!("{other:?}"),
            }
        }
        messages
    }

    fn holds(role: Role, message_type: u8, body: &[u8]) -> bool {
        match message_type {
            CLIENT_HELLO => ClientHello::parse(body).is_some(),
            _ => is_well_formed(role, message_type, body),
        }
    }

    fn library_panics(message_type: u8, body: &[u8]) -> bool {
        let record = record::build_handshake_record(0, message_type, 0, body);
        catch_unwind(|| drop(Handshake::unmarshal(&mut BufReader::new(&record[record::RECORD_HEADER_LEN..])))).is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn what_panics_the_librarys_parsers_does_not_hold() {
        // A hello whose only extension is cut inside its header.
        let mut hello = vec![0xfe, 0xfd];
        hello.extend_from_slice(&[7; 32]);
        hello.extend_from_slice(&[0, 0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 1, 0]);
        let mut server_hello = vec![0xfe, 0xfd];
        server_hello.extend_from_slice(&[7; 32]);
        server_hello.extend_from_slice(&[0, 0xc0, 0x2b, 0, 0, 3, 0, 14, 0]);
        let panics: [(Role, u8, &[u8]); 6] = [
            (Role::Client, CLIENT_HELLO, &hello),
            (Role::Server, SERVER_HELLO, &server_hello),
            (Role::Client, CLIENT_KEY_EXCHANGE, &[]),
            (Role::Client, CLIENT_KEY_EXCHANGE, &[0]),
            (Role::Server, SERVER_KEY_EXCHANGE, &[]),
            (Role::Server, SERVER_KEY_EXCHANGE, &[3]),
        ];
        for (role, message_type, body) in panics {
            assert!(library_panics(message_type, body), "{message_type}: the check may go when the library is mended");
            assert!(!holds(role, message_type, body), "{message_type}");
        }
        // A chain of one certificate that says 16 MB: the library would allocate it.
        assert!(!holds(Role::Client, CERTIFICATE, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_million_mutated_messages_that_hold_do_not_panic_the_library() {
        const SEED: u64 = 0x5eed_0e55;
        let inputs = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        let corpus = capture().await;
        assert!(corpus.iter().all(|(role, message_type, body)| holds(*role, *message_type, body)), "what a peer sends holds");
        let mut state = SEED;
        let mut below = move |bound: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            ((state >> 33) as usize) % bound.max(1)
        };
        let mut held = 0;
        for _ in 0..inputs {
            let (role, message_type, body) = &corpus[below(corpus.len())];
            let mut body = body.clone();
            for _ in 0..=below(3) {
                let at = below(body.len());
                match below(8) {
                    0 => body.truncate(at),
                    1 => body.insert(at, below(256) as u8),
                    2 if body.len() > at + 1 => drop(body.drain(at..at + 1 + below(body.len() - at))),
                    3 if body.len() > at + 1 => body[at] = *[0, 1, 2, 0xff].get(below(4)).unwrap_or(&0),
                    _ => body.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << below(8)),
                }
            }
            if holds(*role, *message_type, &body) {
                held += 1;
                assert!(!library_panics(*message_type, &body), "seed {SEED:#x}: {message_type} {body:02x?}");
            }
        }
        println!("seed {SEED:#x}: {held} of {inputs} held and were parsed by the library");
        assert!(held * 100 >= inputs * 30, "{held}");
    }
}
