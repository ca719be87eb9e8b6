//! The check in front of the DTLS library (RFC 6347 section 4.1 and 4.2.2): its parser panics on short records and bodies, and
//! one plaintext record ends an established connection, so nothing reaches it that does not pass here.

use crate::DropReason;

const MALFORMED: DropReason = DropReason::DtlsMalformed;

const RECORD_HEADER_LEN: usize = 13;
const HANDSHAKE_HEADER_LEN: usize = 12;
/// Shortest AEAD_AES_GCM record body: explicit nonce and tag (RFC 5288 section 3). The library subtracts before it checks.
const ENCRYPTED_LEN_MIN: usize = 8 + 16;
/// Longest handshake message that is reassembled. A certificate chain of WebRTC has 300 to 1,000 bytes, a post-quantum
/// ClientHello 1,400; the library would hold 2 MB.
const HANDSHAKE_LEN_MAX: usize = 16_384;
/// Shortest ClientKeyExchange of the key exchanges in use: a length byte and an X25519 point. One of 1 byte panics the library.
const CLIENT_KEY_EXCHANGE_LEN_MIN: usize = 33;

/// What one well-formed DTLS 1.2 datagram holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DtlsSummary {
    /// Records in the clear: epoch 0.
    pub plaintext: DtlsContents,
    /// Records under keys: epoch 1 and later. Their sequence numbers and content are not authenticated yet.
    pub encrypted: DtlsContents,
    /// Bit n: a plaintext record holds a fragment of handshake message type n.
    handshake_types: u32,
}

/// Which content types occur.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DtlsContents {
    /// Content type 20.
    pub change_cipher_spec: bool,
    /// Content type 21.
    pub alert: bool,
    /// Content type 22.
    pub handshake: bool,
    /// Content type 23.
    pub application_data: bool,
}

impl DtlsContents {
    /// At least one record.
    pub fn any(self) -> bool {
        self.change_cipher_spec || self.alert || self.handshake || self.application_data
    }
}

/// A handshake message type (RFC 5246 section 7.4, RFC 6347 section 4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The names are the RFC's.
pub enum HandshakeType {
    HelloRequest = 0,
    ClientHello = 1,
    ServerHello = 2,
    HelloVerifyRequest = 3,
    Certificate = 11,
    ServerKeyExchange = 12,
    CertificateRequest = 13,
    ServerHelloDone = 14,
    CertificateVerify = 15,
    ClientKeyExchange = 16,
    Finished = 20,
}

impl DtlsSummary {
    /// Checks every record of a datagram: header, version, length, and in the clear also the content's own framing.
    /// `DtlsMalformed` when one does not hold.
    ///
    /// Only content types 20 to 23 pass. Heartbeats, connection ids and the unified header of DTLS 1.3 are never negotiated, and
    /// an unknown type in the clear ends a connection of the library.
    pub fn parse(datagram: &[u8]) -> Result<DtlsSummary, DropReason> {
        let mut summary = DtlsSummary::default();
        let mut rest = datagram;
        loop {
            let (header, after) = rest.split_first_chunk::<RECORD_HEADER_LEN>().ok_or(MALFORMED)?;
            let [content_type, major, minor, e0, e1, .., l0, l1] = *header;
            let (fragment, after) = after.split_at_checked(usize::from(u16::from_be_bytes([l0, l1]))).ok_or(MALFORMED)?;
            // A first ClientHello may say DTLS 1.0 in its record header (RFC 6347 section 4.2.1), everything else says 1.2.
            if (major, minor) != (0xfe, 0xfd) && (major, minor) != (0xfe, 0xff) {
                return Err(MALFORMED);
            }
            let epoch = u16::from_be_bytes([e0, e1]);
            summary.add_record(content_type, epoch, fragment)?;
            rest = after;
            if rest.is_empty() {
                return Ok(summary);
            }
        }
    }

    /// At least one record is in the clear. After the handshake such a datagram is dropped (`DtlsPlaintext`).
    pub fn has_plaintext(&self) -> bool {
        self.plaintext.any()
    }

    /// A plaintext fragment of a ClientHello is in it: a handshake begins, or begins again.
    pub fn is_client_hello(&self) -> bool {
        self.has_handshake(HandshakeType::ClientHello)
    }

    /// A plaintext fragment of this message is in it.
    pub fn has_handshake(&self, message: HandshakeType) -> bool {
        self.handshake_types & 1 << message as u8 != 0
    }

    /// After the handshake has ended: the peer repeats its final flight, so it may have lost ours. Answer by sending our last
    /// flight again, from a copy and rate limited (a flight of one record per datagram asks twice), and let the library see
    /// nothing of it.
    ///
    /// A client whose ChangeCipherSpec and Finished went unanswered repeats ClientKeyExchange and ChangeCipherSpec in the clear.
    /// Ask only as the server of a full handshake: it sends last. Were both ends to answer so, they would answer each other for ever.
    pub fn repeats_last_flight(&self) -> bool {
        self.plaintext.change_cipher_spec || self.has_handshake(HandshakeType::ClientKeyExchange)
    }

    fn add_record(&mut self, content_type: u8, epoch: u16, fragment: &[u8]) -> Result<(), DropReason> {
        let contents = if epoch == 0 { &mut self.plaintext } else { &mut self.encrypted };
        match content_type {
            20 => contents.change_cipher_spec = true,
            21 => contents.alert = true,
            22 => contents.handshake = true,
            23 => contents.application_data = true,
            _ => return Err(MALFORMED),
        }
        match (epoch, content_type) {
            (1.., _) if fragment.len() < ENCRYPTED_LEN_MIN => Err(MALFORMED),
            (1.., _) => Ok(()),
            (0, 20) if fragment != [1] => Err(MALFORMED),
            (0, 21) if fragment.len() != 2 => Err(MALFORMED),
            (0, 22) => self.add_handshake(fragment),
            // Application data before there are keys.
            (0, 23) => Err(MALFORMED),
            (0, _) => Ok(()),
        }
    }

    /// Walks the handshake fragments of one plaintext record: there is at least one, and the record ends with one.
    fn add_handshake(&mut self, mut rest: &[u8]) -> Result<(), DropReason> {
        loop {
            let (header, after) = rest.split_first_chunk::<HANDSHAKE_HEADER_LEN>().ok_or(MALFORMED)?;
            let [message, n0, n1, n2, _, _, o0, o1, o2, f0, f1, f2] = *header;
            let [len, offset, fragment_len] =
                [[n0, n1, n2], [o0, o1, o2], [f0, f1, f2]].map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]) as usize);
            rest = after.get(fragment_len..).ok_or(MALFORMED)?;
            let is_short_key_exchange = message == HandshakeType::ClientKeyExchange as u8 && len < CLIENT_KEY_EXCHANGE_LEN_MIN;
            // A fragment without bytes of a message that has some never completes it (CVE-2022-29190 looped on it).
            let is_empty_piece = fragment_len == 0 && len != 0;
            if message > 31 || len > HANDSHAKE_LEN_MAX || offset + fragment_len > len || is_empty_piece || is_short_key_exchange {
                return Err(MALFORMED);
            }
            self.handshake_types |= 1 << message;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}
