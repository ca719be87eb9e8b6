//! Views of a datagram's DTLS 1.2 records and of a handshake record's fragments (RFC 6347 sections 4.1 and 4.2.2).

/// Bytes of a record header.
pub(super) const RECORD_HEADER_LEN: usize = 13;
/// Bytes of a handshake message header.
pub(super) const HANDSHAKE_HEADER_LEN: usize = 12;
/// Explicit nonce and tag of a GCM record (RFC 5288 section 3).
pub(super) const GCM_OVERHEAD_LEN: usize = 8 + 16;

/// Content types.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

const DTLS_1_0: [u8; 2] = [0xfe, 0xff];
pub(super) const DTLS_1_2: [u8; 2] = [0xfe, 0xfd];

/// One record of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) content_type: u8,
    pub(super) epoch: u16,
    /// 48 bits.
    pub(super) sequence: u64,
    pub(super) body: &'a [u8],
    /// Header and body.
    pub(super) bytes: &'a [u8],
}

impl Record<'_> {
    /// Of a GCM record.
    pub(super) fn explicit_nonce(&self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.body.first_chunk()?))
    }
}

/// The records of a datagram; `None` unless every header holds, has a body and the last one ends with the datagram.
///
/// The whole datagram is judged before anything of it is used: a peer's stack never sends half a record.
pub(super) fn records(datagram: &[u8]) -> Option<impl Iterator<Item = Record<'_>>> {
    let mut rest = datagram;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        rest = split_record(rest)?.1;
    }
    let mut rest = datagram;
    Some(std::iter::from_fn(move || {
        let (record, tail) = split_record(rest)?;
        rest = tail;
        Some(record)
    }))
}

fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let header = bytes.get(..RECORD_HEADER_LEN)?;
    let content_type = header[0];
    let version = [header[1], header[2]];
    let epoch = u16::from_be_bytes([header[3], header[4]]);
    // A first ClientHello may say DTLS 1.0 in its record header (RFC 6347 section 4.2.1); nothing protected may.
    let version_holds = version == DTLS_1_2 || (version == DTLS_1_0 && epoch == 0);
    if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&content_type) || !version_holds {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([header[11], header[12]]));
    let bytes_len = RECORD_HEADER_LEN + len;
    if len == 0 || bytes.len() < bytes_len {
        return None;
    }
    let (record, rest) = bytes.split_at(bytes_len);
    let sequence = header[5..11].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some((Record { content_type, epoch, sequence, body: &record[RECORD_HEADER_LEN..], bytes: record }, rest))
}

/// One fragment of a handshake message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    pub(super) message_type: u8,
    /// Of the whole message.
    pub(super) length: usize,
    pub(super) sequence: u16,
    pub(super) offset: usize,
    pub(super) bytes: &'a [u8],
}

/// The fragments of a plaintext handshake record; `None` unless every one lies inside its message and inside the record.
pub(super) fn fragments(body: &[u8]) -> Option<impl Iterator<Item = Fragment<'_>>> {
    let mut rest = body;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        rest = split_fragment(rest)?.1;
    }
    let mut rest = body;
    Some(std::iter::from_fn(move || {
        let (fragment, tail) = split_fragment(rest)?;
        rest = tail;
        Some(fragment)
    }))
}

fn split_fragment(bytes: &[u8]) -> Option<(Fragment<'_>, &[u8])> {
    let header = bytes.get(..HANDSHAKE_HEADER_LEN)?;
    let length = read_u24(&header[1..4]);
    let offset = read_u24(&header[6..9]);
    let fragment_len = read_u24(&header[9..12]);
    // An empty fragment of a message that is not empty says nothing and has hung other stacks (CVE-2022-29190).
    if offset + fragment_len > length || (fragment_len == 0 && length != 0) {
        return None;
    }
    let (_, rest) = bytes.split_at(HANDSHAKE_HEADER_LEN);
    let (bytes, rest) = rest.split_at_checked(fragment_len)?;
    Some((Fragment { message_type: header[0], length, sequence: u16::from_be_bytes([header[4], header[5]]), offset, bytes }, rest))
}

/// A record that carries one whole handshake message in plaintext.
pub(super) fn build_handshake_record(record_sequence: u64, message_type: u8, message_sequence: u16, body: &[u8]) -> Box<[u8]> {
    let length = &u32::try_from(body.len()).expect("a message is at most MESSAGE_LEN_MAX bytes").to_be_bytes()[1..];
    let record_len = u16::try_from(HANDSHAKE_HEADER_LEN + body.len()).expect("a message is at most MESSAGE_LEN_MAX bytes");
    let mut record = Vec::with_capacity(RECORD_HEADER_LEN + usize::from(record_len));
    push_record_header(&mut record, HANDSHAKE, record_sequence, record_len);
    record.push(message_type);
    record.extend_from_slice(length);
    record.extend_from_slice(&message_sequence.to_be_bytes());
    record.extend_from_slice(&[0; 3]);
    record.extend_from_slice(length);
    record.extend_from_slice(body);
    record.into()
}

/// The ChangeCipherSpec that ends epoch 0.
pub(super) fn build_change_cipher_spec(record_sequence: u64) -> Box<[u8]> {
    let mut record = Vec::with_capacity(RECORD_HEADER_LEN + 1);
    push_record_header(&mut record, CHANGE_CIPHER_SPEC, record_sequence, 1);
    record.push(1);
    record.into()
}

/// A fatal alert in plaintext.
pub(super) fn build_fatal_alert(description: u8) -> Box<[u8]> {
    let mut record = Vec::with_capacity(RECORD_HEADER_LEN + 2);
    push_record_header(&mut record, ALERT, 0, 2);
    record.extend_from_slice(&[2, description]);
    record.into()
}

fn push_record_header(record: &mut Vec<u8>, content_type: u8, sequence: u64, len: u16) {
    record.push(content_type);
    record.extend_from_slice(&DTLS_1_2);
    record.extend_from_slice(&[0, 0]);
    record.extend_from_slice(&sequence.to_be_bytes()[2..]);
    record.extend_from_slice(&len.to_be_bytes());
}

/// Big-endian number of three bytes.
pub(super) fn read_u24(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_taken_whole_or_not_at_all() {
        let record = build_handshake_record(0, 14, 3, &[]);
        let two = [&record[..], &record[..]].concat();
        assert_eq!(records(&two).unwrap().count(), 2);
        for len in 0..two.len() {
            assert_eq!(records(&two[..len]).is_some(), len == record.len(), "{len}");
        }
        let mut longer = two.clone();
        longer.push(22);
        assert!(records(&longer).is_none());
    }

    #[test]
    fn a_fragment_outside_its_message_is_refused() {
        let fragment = |length: u8, offset: u8, len: u8, bytes: usize| {
            let mut body = vec![1, 0, 0, length, 0, 0, 0, 0, offset, 0, 0, len];
            body.resize(HANDSHAKE_HEADER_LEN + bytes, 7);
            fragments(&body).map(Iterator::count)
        };
        assert_eq!(fragment(4, 0, 4, 4), Some(1));
        assert_eq!(fragment(4, 2, 2, 2), Some(1));
        assert_eq!(fragment(0, 0, 0, 0), Some(1));
        assert_eq!(fragment(4, 2, 3, 3), None, "ends behind the message");
        assert_eq!(fragment(4, 0, 4, 3), None, "ends behind the record");
        assert_eq!(fragment(4, 0, 0, 0), None, "says nothing");
        assert_eq!(fragment(4, 0, 2, 3), None, "a header is cut");
    }

    #[test]
    fn only_dtls_1_2_is_taken_when_protected() {
        let mut record = build_change_cipher_spec(1).to_vec();
        record[2] = 0xff;
        assert!(records(&record).is_some(), "DTLS 1.0 in a plaintext header");
        record[4] = 1;
        assert!(records(&record).is_none());
        record[2] = 0xfd;
        assert!(records(&record).is_some());
        record[1] = 3;
        assert!(records(&record).is_none());
    }
}
