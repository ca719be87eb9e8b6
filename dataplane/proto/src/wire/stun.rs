//! STUN messages of ICE connectivity checks (RFC 8489, RFC 8445 section 7): a bounded view, and the writers of our answers.
//!
//! ```text
//! 00 type length | 2112a442 | transaction (12) | attribute*: type length value pad | MESSAGE-INTEGRITY | FINGERPRINT
//!                                                \________ means something _______/   \__ checked __/
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::{DropReason, control::ICE_TEXT_LEN_MAX};

/// Longest message that is taken, in bytes: the smallest MTU of IPv6, which no check may exceed (RFC 8489 section 6.1).
pub const MESSAGE_LEN_MAX: usize = 1_280;

/// Longest answer that is written, in bytes: a 420 that names [`UNKNOWN_MAX`] attributes.
pub const RESPONSE_LEN_MAX: usize = 100;

/// Longest answer to a plain Binding request, in bytes: an IPv6 address and nothing else.
pub const PLAIN_RESPONSE_LEN_MAX: usize = 44;

/// Unknown attributes that a 420 names; more are there, these are enough to tell.
pub const UNKNOWN_MAX: usize = 8;

/// Bytes of a message's header, and of a plain Binding request.
pub const HEADER_LEN: usize = 20;
const MAGIC: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const INTEGRITY_LEN: usize = 20;
const FINGERPRINT_LEN: usize = 4;
/// "the XOR'd with the 32-bit value 0x5354554e" of the CRC (RFC 8489 section 14.7).
const FINGERPRINT_MASK: u32 = 0x5354_554e;
/// Attribute types below this must be understood (RFC 8489 section 14).
const OPTIONAL_FROM: u16 = 0x8000;

mod attribute {
    pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(super) const USERNAME: u16 = 0x0006;
    pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(super) const ERROR_CODE: u16 = 0x0009;
    pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub(super) const REALM: u16 = 0x0014;
    pub(super) const NONCE: u16 = 0x0015;
    pub(super) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(super) const PRIORITY: u16 = 0x0024;
    pub(super) const USE_CANDIDATE: u16 = 0x0025;
    pub(super) const FINGERPRINT: u16 = 0x8028;
    pub(super) const ICE_CONTROLLED: u16 = 0x8029;
    pub(super) const ICE_CONTROLLING: u16 = 0x802a;
}

/// Ties an answer to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What a message is. Every method but Binding is [`Kind::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Binding request: in ICE, a connectivity check.
    BindingRequest,
    /// A Binding success response.
    BindingSuccess,
    /// A Binding error response.
    BindingError,
    /// An indication, or a method that is not ours.
    Other,
}

impl Kind {
    fn of(message_type: u16) -> Kind {
        match message_type {
            0x0001 => Kind::BindingRequest,
            0x0101 => Kind::BindingSuccess,
            0x0111 => Kind::BindingError,
            _ => Kind::Other,
        }
    }

    fn message_type(self) -> u16 {
        match self {
            Kind::BindingRequest => 0x0001,
            Kind::BindingSuccess => 0x0101,
            Kind::BindingError => 0x0111,
            Kind::Other => unreachable!("only Binding messages are written"),
        }
    }
}

/// The role that the sender of a check takes, with its tie-breaker (RFC 8445 section 7.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// ICE-CONTROLLING.
    Controlling(u64),
    /// ICE-CONTROLLED.
    Controlled(u64),
}

/// The unknown comprehension-required attributes of a message, the first [`UNKNOWN_MAX`] of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnknownAttributes {
    types: [u16; UNKNOWN_MAX],
    len: usize,
}

impl UnknownAttributes {
    /// Their types in the order of the message.
    pub fn as_slice(&self) -> &[u16] {
        &self.types[..self.len]
    }

    fn push(&mut self, attribute_type: u16) {
        if let Some(slot) = self.types.get_mut(self.len) {
            *slot = attribute_type;
            self.len += 1;
        }
    }
}

/// A message whose header, attribute lengths and fingerprint hold. Nothing in it is believed before [`Self::is_authentic`].
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    kind: Kind,
    username: Option<&'a [u8]>,
    /// Where the MESSAGE-INTEGRITY attribute starts.
    integrity_at: Option<usize>,
    has_fingerprint: bool,
    priority: Option<u32>,
    use_candidate: bool,
    role: Option<Role>,
    mapped: Option<SocketAddr>,
    error_code: Option<u16>,
    unknown: UnknownAttributes,
}

impl<'a> Message<'a> {
    /// Checks a datagram. Of an attribute that comes twice the first counts; after MESSAGE-INTEGRITY only FINGERPRINT counts
    /// (RFC 8489 sections 14 and 14.5).
    ///
    /// Errors: [`DropReason::StunMalformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, DropReason> {
        Message::parse_bounded(bytes).ok_or(DropReason::StunMalformed)
    }

    fn parse_bounded(bytes: &'a [u8]) -> Option<Message<'a>> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let message_type = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // "The most significant 2 bits of every STUN message MUST be zeroes" and the length counts whole words without the
        // header (RFC 8489 section 5).
        let is_framed = message_type >> 14 == 0 && length % 4 == 0 && HEADER_LEN + length == bytes.len();
        if !is_framed || header[4..8] != MAGIC || bytes.len() > MESSAGE_LEN_MAX {
            return None;
        }
        let mut message = Message {
            bytes,
            kind: Kind::of(message_type),
            username: None,
            integrity_at: None,
            has_fingerprint: false,
            priority: None,
            use_candidate: false,
            role: None,
            mapped: None,
            error_code: None,
            unknown: UnknownAttributes::default(),
        };
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let attribute_header = bytes.get(at..at + 4)?;
            let attribute_type = u16::from_be_bytes([attribute_header[0], attribute_header[1]]);
            let value_len = usize::from(u16::from_be_bytes([attribute_header[2], attribute_header[3]]));
            let value = bytes.get(at + 4..at + 4 + value_len)?;
            let next = at + 4 + value_len.next_multiple_of(4);
            // The length was a multiple of 4, so padding never passes the end.
            match attribute_type {
                attribute::FINGERPRINT => {
                    let claimed = u32::from_be_bytes(value.try_into().ok()?);
                    // "FINGERPRINT ... MUST be the last attribute" (RFC 8489 section 14.7).
                    if next != bytes.len() || claimed != fingerprint(&[&bytes[..at]]) {
                        return None;
                    }
                    message.has_fingerprint = true;
                }
                attribute::MESSAGE_INTEGRITY if value_len != INTEGRITY_LEN => return None,
                attribute::MESSAGE_INTEGRITY => message.integrity_at = message.integrity_at.or(Some(at)),
                _ if message.integrity_at.is_some() => {}
                _ => message.take(attribute_type, value)?,
            }
            at = next;
        }
        Some(message)
    }

    /// Remembers an attribute that stands before MESSAGE-INTEGRITY; `None` when its value has no such form.
    fn take(&mut self, attribute_type: u16, value: &'a [u8]) -> Option<()> {
        match attribute_type {
            attribute::USERNAME if value.len() > 2 * ICE_TEXT_LEN_MAX + 1 => return None,
            attribute::USERNAME => self.username = self.username.or(Some(value)),
            attribute::PRIORITY => self.priority = self.priority.or(Some(u32::from_be_bytes(value.try_into().ok()?))),
            attribute::USE_CANDIDATE if value.is_empty() => self.use_candidate = true,
            attribute::USE_CANDIDATE => return None,
            attribute::ICE_CONTROLLING => {
                self.role = self.role.or(Some(Role::Controlling(u64::from_be_bytes(value.try_into().ok()?))));
            }
            attribute::ICE_CONTROLLED => {
                self.role = self.role.or(Some(Role::Controlled(u64::from_be_bytes(value.try_into().ok()?))));
            }
            attribute::XOR_MAPPED_ADDRESS => self.mapped = self.mapped.or(Some(read_xor_address(value, self.transaction())?)),
            attribute::ERROR_CODE => {
                let code = value.first_chunk::<4>()?;
                self.error_code = self.error_code.or(Some(u16::from(code[2] & 7) * 100 + u16::from(code[3])));
            }
            attribute::MAPPED_ADDRESS
            | attribute::UNKNOWN_ATTRIBUTES
            | attribute::REALM
            | attribute::NONCE
            | attribute::MESSAGE_INTEGRITY_SHA256 => {}
            unknown if unknown < OPTIONAL_FROM => self.unknown.push(unknown),
            _ => {}
        }
        Some(())
    }

    /// Request, answer or neither.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The transaction.
    pub fn transaction(&self) -> TransactionId {
        TransactionId(self.bytes[8..HEADER_LEN].try_into().expect("the header holds 12 bytes of transaction"))
    }

    /// The two fragments of USERNAME, `receiver:sender` (RFC 8445 section 7.2.2): of a check that arrives here, ours and the
    /// client's. `None` without USERNAME or without a colon.
    pub fn fragments(&self) -> Option<(&'a [u8], &'a [u8])> {
        let username = self.username?;
        let colon = username.iter().position(|byte| *byte == b':')?;
        Some((&username[..colon], &username[colon + 1..]))
    }

    /// Whether MESSAGE-INTEGRITY is there and was made with `password`; compared in constant time.
    pub fn is_authentic(&self, password: &[u8]) -> bool {
        let Some(at) = self.integrity_at else { return false };
        let claimed = &self.bytes[at + 4..at + 4 + INTEGRITY_LEN];
        integrity(password, &self.bytes[..at]).verify_slice(claimed).is_ok()
    }

    /// Whether FINGERPRINT is there (it is right, or the message would not have parsed).
    pub fn has_fingerprint(&self) -> bool {
        self.has_fingerprint
    }

    /// PRIORITY; some clients leave it out.
    pub fn priority(&self) -> Option<u32> {
        self.priority
    }

    /// Whether the check nominates its pair.
    pub fn use_candidate(&self) -> bool {
        self.use_candidate
    }

    /// The role that the sender takes.
    pub fn role(&self) -> Option<Role> {
        self.role
    }

    /// XOR-MAPPED-ADDRESS of an answer.
    pub fn mapped_address(&self) -> Option<SocketAddr> {
        self.mapped
    }

    /// ERROR-CODE of an answer, 300 to 699.
    pub fn error_code(&self) -> Option<u16> {
        self.error_code
    }

    /// Attributes that had to be understood and are not.
    pub fn unknown_attributes(&self) -> &UnknownAttributes {
        &self.unknown
    }
}

/// What a Binding request says; written by clients (tests and the load generator).
#[derive(Clone, Copy, Debug)]
pub struct BindingRequest<'a> {
    /// Ties the answer to it.
    pub transaction: TransactionId,
    /// `receiver:sender`.
    pub username: &'a str,
    /// PRIORITY, if any.
    pub priority: Option<u32>,
    /// Role, if any.
    pub role: Option<Role>,
    /// Nominate the pair.
    pub use_candidate: bool,
}

/// Writes a check with MESSAGE-INTEGRITY under `password` and FINGERPRINT; `None` when `out` is too short.
pub fn write_request(request: &BindingRequest<'_>, password: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut writer = Writer::start(out, Kind::BindingRequest, request.transaction)?;
    writer.put(attribute::USERNAME, request.username.as_bytes())?;
    if let Some(priority) = request.priority {
        writer.put(attribute::PRIORITY, &priority.to_be_bytes())?;
    }
    match request.role {
        Some(Role::Controlling(tie_breaker)) => writer.put(attribute::ICE_CONTROLLING, &tie_breaker.to_be_bytes())?,
        Some(Role::Controlled(tie_breaker)) => writer.put(attribute::ICE_CONTROLLED, &tie_breaker.to_be_bytes())?,
        None => {}
    }
    if request.use_candidate {
        writer.put(attribute::USE_CANDIDATE, &[])?;
    }
    writer.finish(password)
}

/// Writes the success answer to a check that came from `remote`; returns its length.
pub fn write_success(transaction: TransactionId, remote: SocketAddr, password: &[u8], out: &mut [u8; RESPONSE_LEN_MAX]) -> usize {
    let mut value = [0; 20];
    let value_len = xor_address(remote, transaction, &mut value);
    write_response(out, Kind::BindingSuccess, transaction, password, |writer| {
        writer.put(attribute::XOR_MAPPED_ADDRESS, &value[..value_len])
    })
}

/// Writes 487 Role Conflict: the sender has to take the other role (RFC 8445 section 7.3.1.1).
pub fn write_role_conflict(transaction: TransactionId, password: &[u8], out: &mut [u8; RESPONSE_LEN_MAX]) -> usize {
    write_response(out, Kind::BindingError, transaction, password, |writer| {
        writer.put(attribute::ERROR_CODE, b"\x00\x00\x04\x57Role Conflict")
    })
}

/// Writes 420 Unknown Attribute with their types (RFC 8489 section 6.3.1).
pub fn write_unknown_attributes(
    transaction: TransactionId,
    unknown: &UnknownAttributes,
    password: &[u8],
    out: &mut [u8; RESPONSE_LEN_MAX],
) -> usize {
    let mut types = [0; 2 * UNKNOWN_MAX];
    for (slot, attribute_type) in types.chunks_exact_mut(2).zip(unknown.as_slice()) {
        slot.copy_from_slice(&attribute_type.to_be_bytes());
    }
    write_response(out, Kind::BindingError, transaction, password, |writer| {
        writer.put(attribute::ERROR_CODE, b"\x00\x00\x04\x14Unknown Attribute")?;
        writer.put(attribute::UNKNOWN_ATTRIBUTES, &types[..2 * unknown.as_slice().len()])
    })
}

/// Writes the success answer to a plain Binding request (no integrity, no fingerprint); returns its length.
pub fn write_plain_success(transaction: TransactionId, remote: SocketAddr, out: &mut [u8; PLAIN_RESPONSE_LEN_MAX]) -> usize {
    let mut value = [0; 20];
    let value_len = xor_address(remote, transaction, &mut value);
    let mut write = || {
        let mut writer = Writer::start(out, Kind::BindingSuccess, transaction)?;
        writer.put(attribute::XOR_MAPPED_ADDRESS, &value[..value_len])?;
        Some(writer.len)
    };
    write().expect("PLAIN_RESPONSE_LEN_MAX is the length of the longest answer")
}

/// Writes 420 to a plain Binding request, with as many of `unknown` as the length allows.
pub fn write_plain_unknown_attributes(transaction: TransactionId, unknown: &[u16], out: &mut [u8; PLAIN_RESPONSE_LEN_MAX]) -> usize {
    const TYPES_MAX: usize = (PLAIN_RESPONSE_LEN_MAX - HEADER_LEN - 8 - 4) / 2;
    let mut types = [0; 2 * TYPES_MAX];
    let mut len = 0;
    for (slot, attribute_type) in types.chunks_exact_mut(2).zip(unknown) {
        slot.copy_from_slice(&attribute_type.to_be_bytes());
        len += 2;
    }
    let mut write = || {
        let mut writer = Writer::start(out, Kind::BindingError, transaction)?;
        writer.put(attribute::ERROR_CODE, b"\x00\x00\x04\x14")?;
        writer.put(attribute::UNKNOWN_ATTRIBUTES, &types[..len])?;
        Some(writer.len)
    };
    write().expect("PLAIN_RESPONSE_LEN_MAX is the length of the longest answer")
}

/// Writes a plain Binding request: a header alone.
pub fn write_plain_request(transaction: TransactionId, out: &mut [u8; HEADER_LEN]) {
    Writer::start(out, Kind::BindingRequest, transaction).expect("a header has its length");
}

fn write_response(
    out: &mut [u8; RESPONSE_LEN_MAX],
    kind: Kind,
    transaction: TransactionId,
    password: &[u8],
    put_attributes: impl FnOnce(&mut Writer<'_>) -> Option<()>,
) -> usize {
    let write = || {
        let mut writer = Writer::start(out, kind, transaction)?;
        put_attributes(&mut writer)?;
        writer.finish(password)
    };
    write().expect("RESPONSE_LEN_MAX is the length of the longest answer")
}

/// Appends attributes to a message; `None` when the buffer ends.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    fn start(out: &'a mut [u8], kind: Kind, transaction: TransactionId) -> Option<Writer<'a>> {
        let header = out.first_chunk_mut::<HEADER_LEN>()?;
        header[..2].copy_from_slice(&kind.message_type().to_be_bytes());
        header[2..4].fill(0);
        header[4..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&transaction.0);
        Some(Writer { out, len: HEADER_LEN })
    }

    fn put(&mut self, attribute_type: u16, value: &[u8]) -> Option<()> {
        let padded_len = value.len().next_multiple_of(4);
        let slot = self.out.get_mut(self.len..self.len + 4 + padded_len)?;
        slot[..2].copy_from_slice(&attribute_type.to_be_bytes());
        slot[2..4].copy_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
        slot[4..4 + value.len()].copy_from_slice(value);
        slot[4 + value.len()..].fill(0);
        self.len += 4 + padded_len;
        let length = u16::try_from(self.len - HEADER_LEN).ok()?;
        self.out[2..4].copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    fn finish(mut self, password: &[u8]) -> Option<usize> {
        let tag = integrity(password, &self.out[..self.len]).finalize().into_bytes();
        self.put(attribute::MESSAGE_INTEGRITY, &tag)?;
        let crc = fingerprint(&[&self.out[..2], &length_after(self.len, FINGERPRINT_LEN), &self.out[4..self.len]]);
        self.put(attribute::FINGERPRINT, &crc.to_be_bytes())?;
        Some(self.len)
    }
}

/// The length field of a message of `len` bytes that gets one more attribute with a value of `value_len` bytes.
fn length_after(len: usize, value_len: usize) -> [u8; 2] {
    ((len - HEADER_LEN + 4 + value_len) as u16).to_be_bytes()
}

/// The HMAC of everything before MESSAGE-INTEGRITY, with the length field of a message that ends with it (RFC 8489 section 14.5).
fn integrity(password: &[u8], before: &[u8]) -> Hmac<Sha1> {
    <Hmac<Sha1> as KeyInit>::new_from_slice(password)
        .expect("HMAC takes a key of any length")
        .chain_update(&before[..2])
        .chain_update(length_after(before.len(), INTEGRITY_LEN))
        .chain_update(&before[4..])
}

/// The CRC-32 of ISO 3309 over `parts`, masked.
fn fingerprint(parts: &[&[u8]]) -> u32 {
    let crc = parts.iter().copied().flatten().fold(u32::MAX, |crc, byte| {
        let at = (crc ^ u32::from(*byte)) & 0xff;
        CRC_TABLE[at as usize] ^ (crc >> 8)
    });
    !crc ^ FINGERPRINT_MASK
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

/// The mask of XOR-MAPPED-ADDRESS: magic and transaction (RFC 8489 section 14.2).
fn address_mask(transaction: TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC);
    mask[4..].copy_from_slice(&transaction.0);
    mask
}

/// Writes the attribute's value and returns its length. An IPv4 address that a dual-stack socket shows as IPv6 is written
/// as what the client knows itself by.
fn xor_address(address: SocketAddr, transaction: TransactionId, value: &mut [u8; 20]) -> usize {
    let mask = address_mask(transaction);
    let port = address.port().to_be_bytes();
    (value[2], value[3]) = (port[0] ^ mask[0], port[1] ^ mask[1]);
    let mut put = |family: u8, octets: &[u8]| {
        value[1] = family;
        for (slot, (octet, mask)) in value[4..].iter_mut().zip(octets.iter().zip(mask)) {
            *slot = octet ^ mask;
        }
        4 + octets.len()
    };
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => put(1, &ip.octets()),
        IpAddr::V6(ip) => put(2, &ip.octets()),
    }
}

fn read_xor_address(value: &[u8], transaction: TransactionId) -> Option<SocketAddr> {
    let mask = address_mask(transaction);
    let (head, octets) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ mask[0], head[3] ^ mask[1]]);
    let ip = match head[1] {
        1 => IpAddr::V4(Ipv4Addr::from(unmask::<4>(octets, &mask)?)),
        2 => IpAddr::V6(Ipv6Addr::from(unmask::<16>(octets, &mask)?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn unmask<const N: usize>(octets: &[u8], mask: &[u8; 16]) -> Option<[u8; N]> {
    let mut plain: [u8; N] = octets.try_into().ok()?;
    plain.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
    Some(plain)
}
