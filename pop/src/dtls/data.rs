//! Our own record layer of epoch 1, for all that an association carries after its handshake: application data and the close_notify
//! (RFC 6347 section 4.1, RFC 5288). The library's is not used there: it draws explicit nonces at random.
//!
//! Why no nonce occurs twice under a key of ours: the explicit nonce is epoch and sequence number, the number is never used again
//! and never wraps, and those that the library drew for its few records of the handshake are known and left out. After the
//! handshake nothing that the library has sealed leaves the node.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use pop_proto::control::DTLS_DATAGRAM_LEN_MAX;
use pop_proto::drop_reason::DropReason;
use zeroize::Zeroizing;

use super::Role;
use super::record::{DTLS_1_2, GCM_OVERHEAD_LEN, RECORD_HEADER_LEN, Record};

/// Longest piece of application data that fits a datagram.
pub const DATA_LEN_MAX: usize = DTLS_DATAGRAM_LEN_MAX - RECORD_HEADER_LEN - GCM_OVERHEAD_LEN;

/// Our first number. The library's few records have those from 0, and a peer drops what is far below the newest that it has seen.
const FIRST_SEQUENCE: u64 = 1 << 16;

/// Records that one key may seal. 2^36 are a month of 26,000 a second; the sequence number itself has 48 bits.
const SEALED_MAX: u64 = 1 << 36;

const EPOCH: u64 = 1 << 48;
const KEY_LEN: usize = 16;
const SALT_LEN: usize = 4;
const NONCE_LEN: usize = 8;
const TAG_LEN: usize = 16;

/// What the keys of epoch 1 are made from.
pub(super) struct Secrets {
    pub(super) master_secret: Zeroizing<Vec<u8>>,
    pub(super) local_random: Vec<u8>,
    pub(super) remote_random: Vec<u8>,
}

/// Both directions of epoch 1.
pub(super) struct Records {
    local: Direction,
    remote: Direction,
    /// Number of the next record that is sealed.
    next: u64,
    /// Explicit nonces of the library that look like ours.
    taken: Vec<u64>,
    window: Window,
}

struct Direction {
    key: LessSafeKey,
    salt: [u8; SALT_LEN],
}

impl Records {
    /// The keys, for an end of this role. `drawn`: every explicit nonce that the library has used under our key.
    pub(super) fn derive(role: Role, secrets: &Secrets, drawn: &[u64]) -> Option<Records> {
        let (client_random, server_random) = match role {
            Role::Client => (&secrets.local_random, &secrets.remote_random),
            Role::Server => (&secrets.remote_random, &secrets.local_random),
        };
        // RFC 5246 section 6.3: "key_block = PRF(SecurityParameters.master_secret, "key expansion",
        // SecurityParameters.server_random + SecurityParameters.client_random)".
        let seed = [b"key expansion", &server_random[..], &client_random[..]].concat();
        let block = expand(&secrets.master_secret, &seed, 2 * (KEY_LEN + SALT_LEN));
        let (client_key, rest) = block.split_at(KEY_LEN);
        let (server_key, salts) = rest.split_at(KEY_LEN);
        let (client_salt, server_salt) = salts.split_at(SALT_LEN);
        let (client, server) = (Direction::new(client_key, client_salt)?, Direction::new(server_key, server_salt)?);
        let (local, remote) = match role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        let taken = drawn.iter().copied().filter(|nonce| nonce & !(EPOCH - 1) == EPOCH).collect();
        Some(Records { local, remote, next: FIRST_SEQUENCE, taken, window: Window::default() })
    }

    /// A record that carries `data`; `None` when it does not fit a datagram or the key has sealed as many as it may.
    pub(super) fn seal(&mut self, content_type: u8, data: &[u8]) -> Option<Box<[u8]>> {
        if data.len() > DATA_LEN_MAX {
            return None;
        }
        while self.taken.contains(&(EPOCH | self.next)) {
            self.next += 1;
        }
        if self.next >= FIRST_SEQUENCE + SEALED_MAX {
            return None;
        }
        let number = EPOCH | self.next;
        self.next += 1;
        let body_len = u16::try_from(GCM_OVERHEAD_LEN + data.len()).ok()?;
        let mut record = Vec::with_capacity(RECORD_HEADER_LEN + usize::from(body_len));
        record.push(content_type);
        record.extend_from_slice(&DTLS_1_2);
        record.extend_from_slice(&number.to_be_bytes());
        record.extend_from_slice(&body_len.to_be_bytes());
        record.extend_from_slice(&number.to_be_bytes());
        let sealed_at = record.len();
        record.extend_from_slice(data);
        let aad = Aad::from(additional_data(number, content_type, data.len()));
        let nonce = self.local.nonce(number.to_be_bytes());
        let tag = self.local.key.seal_in_place_separate_tag(nonce, aad, &mut record[sealed_at..]).ok()?;
        record.extend_from_slice(tag.as_ref());
        Some(record.into())
    }

    /// What a record of epoch 1 carries.
    pub(super) fn open(&mut self, record: Record<'_>) -> Result<Box<[u8]>, DropReason> {
        let number = EPOCH | record.sequence;
        // RFC 6347 section 4.1.2.6: "each received record ... MUST verify that the record contains a sequence number that does not
        // duplicate the sequence number of any other record received during the life of this association".
        if !self.window.is_new(record.sequence) {
            return Err(DropReason::DtlsReplay);
        }
        let (explicit, sealed) = record.body.split_at_checked(NONCE_LEN).ok_or(DropReason::DtlsMalformed)?;
        let data_len = sealed.len().checked_sub(TAG_LEN).ok_or(DropReason::DtlsMalformed)?;
        let explicit = explicit.try_into().map_err(|_| DropReason::DtlsMalformed)?;
        let aad = Aad::from(additional_data(number, record.content_type, data_len));
        let mut data = sealed.to_vec();
        self.remote.key.open_in_place(self.remote.nonce(explicit), aad, &mut data).map_err(|_| DropReason::DtlsAuth)?;
        self.window.note(record.sequence);
        data.truncate(data_len);
        Ok(data.into())
    }
}

impl Direction {
    fn new(key: &[u8], salt: &[u8]) -> Option<Direction> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).ok()?);
        Some(Direction { key, salt: salt.try_into().ok()? })
    }

    /// RFC 5288 section 3: the salt of the key block, then the explicit part.
    fn nonce(&self, explicit: [u8; NONCE_LEN]) -> Nonce {
        let mut nonce = [0; SALT_LEN + NONCE_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&explicit);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// RFC 5246 section 6.2.3.3: "seq_num + TLSCompressed.type + TLSCompressed.version + TLSCompressed.length".
fn additional_data(number: u64, content_type: u8, data_len: usize) -> [u8; 13] {
    let mut additional = [0; 13];
    additional[..8].copy_from_slice(&number.to_be_bytes());
    additional[8] = content_type;
    additional[9..11].copy_from_slice(&DTLS_1_2);
    // A datagram holds less than 2^16 bytes.
    additional[11..].copy_from_slice(&(data_len as u16).to_be_bytes());
    additional
}

/// P_SHA256 (RFC 5246 section 5).
fn expand(secret: &[u8], seed: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut out = Zeroizing::new(Vec::with_capacity(len + 32));
    let mut a = hmac::sign(&key, seed);
    while out.len() < len {
        let mut context = hmac::Context::with_key(&key);
        context.update(a.as_ref());
        context.update(seed);
        out.extend_from_slice(context.sign().as_ref());
        a = hmac::sign(&key, a.as_ref());
    }
    out.truncate(len);
    out
}

/// The sequence numbers that have come: the newest, and which of the 64 up to it.
#[derive(Default)]
struct Window {
    newest: u64,
    /// Bit n: newest - n has come.
    came: u64,
}

impl Window {
    fn is_new(&self, sequence: u64) -> bool {
        match self.newest.checked_sub(sequence) {
            Some(behind) => behind < 64 && self.came & (1 << behind) == 0,
            None => true,
        }
    }

    fn note(&mut self, sequence: u64) {
        match sequence.checked_sub(self.newest) {
            Some(ahead) => {
                self.came = if ahead < 64 { self.came << ahead } else { 0 } | 1;
                self.newest = sequence;
            }
            None => self.came |= 1 << (self.newest - sequence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{self, APPLICATION_DATA};
    use super::*;

    fn pair(drawn: &[u64]) -> (Records, Records) {
        let secrets = |local: u8, remote: u8| Secrets {
            master_secret: Zeroizing::new(vec![7; 48]),
            local_random: vec![local; 32],
            remote_random: vec![remote; 32],
        };
        let client = Records::derive(Role::Client, &secrets(1, 2), drawn).unwrap();
        let server = Records::derive(Role::Server, &secrets(2, 1), drawn).unwrap();
        (client, server)
    }

    fn open(records: &mut Records, bytes: &[u8]) -> Result<Box<[u8]>, DropReason> {
        records.open(record::records(bytes).unwrap().next().unwrap())
    }

    #[test]
    fn the_prf_is_the_one_of_the_published_vector() {
        // TLS 1.2 P_SHA256, from the list of the IETF TLS working group (mail archive, message 03416).
        let secret = [0x9b, 0xbe, 0x43, 0x6b, 0xa9, 0x40, 0xf0, 0x17, 0xb1, 0x76, 0x52, 0x84, 0x9a, 0x71, 0xdb, 0x35];
        let seed = [0xa0, 0xba, 0x9f, 0x93, 0x6c, 0xda, 0x31, 0x18, 0x27, 0xa6, 0xf7, 0x96, 0xff, 0xd5, 0x19, 0x8c];
        let out = expand(&secret, &[b"test label", &seed[..]].concat(), 100);
        assert_eq!(out[..8], [0xe3, 0xf2, 0x29, 0xba, 0x72, 0x7b, 0xe1, 0x7b]);
        assert_eq!(out[92..], [0x10, 0xff, 0xf7, 0x01, 0x87, 0x34, 0x7b, 0x66]);
    }

    #[test]
    fn what_one_end_seals_the_other_opens_once() {
        let (mut client, mut server) = pair(&[]);
        for data in [&b""[..], b"x", &[9; DATA_LEN_MAX]] {
            let sealed = client.seal(APPLICATION_DATA, data).unwrap();
            assert!(sealed.len() <= DTLS_DATAGRAM_LEN_MAX);
            assert_eq!(open(&mut server, &sealed).as_deref(), Ok(data));
            assert_eq!(open(&mut server, &sealed), Err(DropReason::DtlsReplay));
            assert_eq!(open(&mut client, &sealed), Err(DropReason::DtlsAuth), "its own direction has another key");
        }
        assert!(client.seal(APPLICATION_DATA, &[0; DATA_LEN_MAX + 1]).is_none());
    }

    #[test]
    fn every_changed_bit_is_noticed_and_spoils_nothing() {
        let (mut client, mut server) = pair(&[]);
        let sealed = client.seal(APPLICATION_DATA, b"a message").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Some(record) = record::records(&changed).and_then(|mut records| records.next()) else { continue };
            if record.epoch == 1 {
                assert_eq!(server.open(record), Err(DropReason::DtlsAuth), "bit {bit}");
            }
        }
        assert_eq!(open(&mut server, &sealed).as_deref(), Ok(&b"a message"[..]));
    }

    #[test]
    fn late_records_are_taken_once_and_old_ones_never() {
        let (mut client, mut server) = pair(&[]);
        let sealed: Vec<_> = (0..200_u8).map(|n| client.seal(APPLICATION_DATA, &[n]).unwrap()).collect();
        assert!(open(&mut server, &sealed[100]).is_ok());
        for (n, record) in sealed.iter().enumerate().take(100) {
            let expected = if n > 36 { Ok(&[n as u8][..]) } else { Err(DropReason::DtlsReplay) };
            assert_eq!(open(&mut server, record).as_deref().map_err(|e| *e), expected, "{n}");
            assert_eq!(open(&mut server, record), Err(DropReason::DtlsReplay), "{n} again");
        }
        assert!(open(&mut server, &sealed[199]).is_ok());
        assert_eq!(open(&mut server, &sealed[101]), Err(DropReason::DtlsReplay), "the window has moved on");
    }

    #[test]
    fn no_nonce_occurs_twice() {
        // The library happened to draw three that are like ours.
        let drawn = [EPOCH | FIRST_SEQUENCE, EPOCH | (FIRST_SEQUENCE + 1), EPOCH | (FIRST_SEQUENCE + 5), 77];
        let (mut client, mut server) = pair(&drawn);
        let mut seen: Vec<u64> = drawn.to_vec();
        for n in 0..20_u8 {
            let sealed = client.seal(APPLICATION_DATA, &[n]).unwrap();
            let nonce = u64::from_be_bytes(sealed[13..21].try_into().unwrap());
            assert!(!seen.contains(&nonce), "{nonce:#x}");
            seen.push(nonce);
            assert!(open(&mut server, &sealed).is_ok());
        }
    }

    #[test]
    fn a_key_ends_before_its_numbers_do() {
        let (mut client, _) = pair(&[]);
        client.next = FIRST_SEQUENCE + SEALED_MAX - 1;
        assert!(client.seal(APPLICATION_DATA, b"the last").is_some());
        assert!(client.seal(APPLICATION_DATA, b"one too many").is_none());
    }
}
