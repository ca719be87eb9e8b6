//! Data messages in the room protocol's encoding: what a client sends becomes what the others get (`DataPacket`).
//!
//! ```text
//! bytes -> outline (fields, bounds) -> decode (is it one?) -> the same fields again, without those that only we may write,
//!                                                             with ours -> DataMessage, encoded once for all who get it
//! ```
//!
//! The value goes on byte for byte, so that what a newer client adds to it reaches other newer clients. Of a `UserPacket` the fields
//! that name its sender are replaced, too: older clients read those.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use livekit_protocol::data_packet::{Kind, Value};
use livekit_protocol::{DataPacket, UserPacket};
use pop_proto::control::{DATA_MESSAGE_LEN_MAX, DataMessage};
use pop_schemas::{Identity, ParticipantId};
use pop_session::sid::format_participant_sid;
use prost::Message;

use crate::data::DataDrop;

/// Receivers that a client's message may name.
const RECEIVERS_MAX: usize = 256;

/// Fields of a packet: one for each receiver that it names, and those of a newer client.
const FIELDS_MAX: usize = RECEIVERS_MAX + 64;

/// Fields of its value. The decoder makes an object of each, whatever its length: a batch of metrics has some hundred.
const VALUE_FIELDS_MAX: usize = 2_048;

/// Field numbers of `DataPacket`.
const KIND: u32 = 1;
const USER: u32 = 2;
const SPEAKER: u32 = 3;
const PARTICIPANT_IDENTITY: u32 = 4;
const SEQUENCE: u32 = 16;
const PARTICIPANT_SID: u32 = 17;
/// sip_dtmf, transcription, metrics, chat_message, rpc_request, rpc_ack, rpc_response, stream_header, stream_chunk, stream_trailer.
const VALUES: std::ops::RangeInclusive<u32> = 6..=15;
const ENCRYPTED_PACKET: u32 = 18;

/// Field numbers of `UserPacket`.
const USER_PARTICIPANT_SID: u32 = 1;
const USER_DESTINATION_SIDS: u32 = 3;
const USER_PARTICIPANT_IDENTITY: u32 = 5;
const USER_DESTINATION_IDENTITIES: u32 = 6;

/// Who sends: written into everything that it sends.
#[derive(Clone, Debug)]
pub struct Sender {
    sid: String,
    identity: Identity,
    /// It is not shown to the others, and not named to them either.
    hidden: Arc<AtomicBool>,
}

impl Sender {
    /// A member; `hidden` says at any time whether it is.
    pub fn new(participant: ParticipantId, identity: Identity, hidden: Arc<AtomicBool>) -> Sender {
        Sender { sid: format_participant_sid(participant), identity, hidden }
    }

    /// What the others may know of it: id and identity.
    fn names(&self) -> (&str, &str) {
        if self.hidden.load(Relaxed) { ("", "") } else { (&self.sid, self.identity.as_str()) }
    }

    /// What becomes of a message that came on the reliable channel, or on the other.
    ///
    /// # Errors
    /// Why it ends here.
    pub fn stamp(&self, reliable: bool, bytes: &[u8]) -> Result<DataMessage, DataDrop> {
        let outline = Outline::of(bytes)?;
        let packet = DataPacket::decode(bytes).map_err(|_| DataDrop::Malformed)?;
        let to = receivers(&packet)?;
        let sequence = if reliable { packet.sequence } else { 0 };
        let (sid, identity) = self.names();
        let mut body = Vec::with_capacity(bytes.len() + 2 * (self.sid.len() + self.identity.as_str().len()) + 32);
        if !reliable {
            push_number(&mut body, KIND, Kind::Lossy as u64);
        }
        match outline.number {
            USER => push_bytes(&mut body, USER, &self.stamp_user(outline.value)?),
            number => push_bytes(&mut body, number, outline.value),
        }
        push_bytes(&mut body, PARTICIPANT_IDENTITY, identity.as_bytes());
        if sequence != 0 {
            push_number(&mut body, SEQUENCE, sequence.into());
        }
        push_bytes(&mut body, PARTICIPANT_SID, sid.as_bytes());
        if body.len() > DATA_MESSAGE_LEN_MAX {
            return Err(DataDrop::Malformed);
        }
        Ok(DataMessage { reliable, to, sequence, body: body.into() })
    }

    fn stamp_user(&self, value: &[u8]) -> Result<Vec<u8>, DataDrop> {
        let mut user = Vec::with_capacity(value.len() + self.sid.len() + self.identity.as_str().len() + 8);
        for field in Fields(value) {
            let field = field.ok_or(DataDrop::Malformed)?;
            let replaced = [USER_PARTICIPANT_SID, USER_DESTINATION_SIDS, USER_PARTICIPANT_IDENTITY, USER_DESTINATION_IDENTITIES];
            if !replaced.contains(&field.number) {
                user.extend_from_slice(field.bytes);
            }
        }
        let (sid, identity) = self.names();
        push_bytes(&mut user, USER_PARTICIPANT_SID, sid.as_bytes());
        push_bytes(&mut user, USER_PARTICIPANT_IDENTITY, identity.as_bytes());
        Ok(user)
    }
}

/// A message of an operator: a `UserPacket` of nobody. `None` when it is longer than a message may be.
pub fn build_operator_message(
    reliable: bool,
    to: Vec<Identity>,
    payload: Vec<u8>,
    topic: Option<String>,
    nonce: Vec<u8>,
) -> Option<DataMessage> {
    #[expect(deprecated, reason = "older clients read it")]
    let packet = DataPacket {
        kind: if reliable { Kind::Reliable } else { Kind::Lossy } as i32,
        value: Some(Value::User(UserPacket { payload, topic, nonce, ..UserPacket::default() })),
        ..DataPacket::default()
    };
    let body: Arc<[u8]> = packet.encode_to_vec().into();
    (body.len() <= DATA_MESSAGE_LEN_MAX).then_some(DataMessage { reliable, to, sequence: 0, body })
}

/// Whom a packet names. One that names somebody in a way that is not spoken here must not go to everybody.
#[expect(deprecated, reason = "older clients name receivers in the user packet")]
fn receivers(packet: &DataPacket) -> Result<Vec<Identity>, DataDrop> {
    let mut named = &packet.destination_identities;
    if let (Some(Value::User(user)), true) = (&packet.value, named.is_empty()) {
        named = &user.destination_identities;
        if named.is_empty() && !user.destination_sids.is_empty() {
            return Err(DataDrop::Destination);
        }
    }
    if named.len() > RECEIVERS_MAX {
        return Err(DataDrop::Destination);
    }
    // One that can be nobody's is nobody.
    let to: Vec<Identity> = named.iter().filter_map(|text| Identity::new(text).ok()).collect();
    if to.is_empty() && !named.is_empty() { Err(DataDrop::Destination) } else { Ok(to) }
}

/// The value of a packet, found without a decoder.
struct Outline<'a> {
    number: u32,
    value: &'a [u8],
}

impl Outline<'_> {
    fn of(bytes: &[u8]) -> Result<Outline<'_>, DataDrop> {
        if bytes.len() > DATA_MESSAGE_LEN_MAX {
            return Err(DataDrop::Malformed);
        }
        let mut outline = None;
        for (count, field) in Fields(bytes).enumerate() {
            let field = field.filter(|_| count < FIELDS_MAX).ok_or(DataDrop::Malformed)?;
            let is_value = field.number == USER || VALUES.contains(&field.number) || field.number == ENCRYPTED_PACKET;
            match (is_value, &outline, field.content) {
                // Of two values the last one would hold; nobody sends two.
                (true, Some(_), _) | (true, _, None) => return Err(DataDrop::Malformed),
                (true, None, Some(value)) => outline = Some(Outline { number: field.number, value }),
                (false, ..) if field.number == SPEAKER => return Err(DataDrop::Kind),
                (false, ..) => {}
            }
        }
        let outline = outline.ok_or(DataDrop::Kind)?;
        let mut fields = 0;
        for field in Fields(outline.value) {
            fields += 1;
            if field.is_none() || fields > VALUE_FIELDS_MAX {
                return Err(DataDrop::Malformed);
            }
        }
        Ok(outline)
    }
}

/// A field of a message.
struct Field<'a> {
    number: u32,
    /// With its tag.
    bytes: &'a [u8],
    /// Of a field that has a length.
    content: Option<&'a [u8]>,
}

/// The fields of an encoded message; `None` is the last item when what follows is none.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let Some((field, rest)) = split_field(whole) else { return Some(None) };
        self.0 = rest;
        Some(Some(field))
    }
}

fn split_field(whole: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, rest) = split_number(whole)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number != 0)?;
    let (content, rest) = match tag & 7 {
        0 => (None, split_number(rest)?.1),
        1 => (None, rest.get(8..)?),
        2 => {
            let (len, rest) = split_number(rest)?;
            let (content, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            (Some(content), rest)
        }
        5 => (None, rest.get(4..)?),
        _ => return None,
    };
    Some((Field { number, bytes: &whole[..whole.len() - rest.len()], content }, rest))
}

/// A number of 7 bits in each byte, the lowest first.
fn split_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_number(out: &mut Vec<u8>, field: u32, number: u64) {
    push_varint(out, u64::from(field) << 3);
    push_varint(out, number);
}

fn push_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    push_varint(out, u64::from(field) << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// For tests of what carries messages.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn packet(payload: Vec<u8>, sequence: u32) -> Vec<u8> {
        let value = Some(Value::User(UserPacket { payload, ..UserPacket::default() }));
        DataPacket { value, sequence, ..DataPacket::default() }.encode_to_vec()
    }

    pub(crate) fn packet_to(destination_identities: Vec<String>) -> Vec<u8> {
        let value = Some(Value::User(UserPacket { payload: vec![1], ..UserPacket::default() }));
        DataPacket { value, destination_identities, ..DataPacket::default() }.encode_to_vec()
    }

    pub(crate) fn sender_of(body: &[u8]) -> String {
        DataPacket::decode(body).expect("it is a packet").participant_identity
    }
}

#[cfg(test)]
#[expect(deprecated, reason = "older clients read and write them")]
mod tests {
    use livekit_protocol::{
        ActiveSpeakerUpdate, ChatMessage, EncryptedPacket, MetricsBatch, RpcAck, RpcRequest, RpcResponse, SipDtmf, TimeSeriesMetric,
        Transcription, data_stream,
    };

    use super::*;

    fn alice() -> Sender {
        Sender::new(ParticipantId(0xa11ce), Identity::new("alice").unwrap(), Arc::default())
    }

    fn user(packet: UserPacket) -> DataPacket {
        DataPacket { value: Some(Value::User(packet)), ..DataPacket::default() }
    }

    #[test]
    fn a_message_says_who_sent_it_whatever_it_said_itself() {
        let mut packet = user(UserPacket {
            participant_sid: "PA_somebody".into(),
            participant_identity: "bob".into(),
            payload: b"hello".to_vec(),
            topic: Some("greetings".into()),
            nonce: vec![1, 2],
            ..UserPacket::default()
        });
        packet.participant_identity = "bob".into();
        packet.participant_sid = "PA_somebody".into();
        packet.sequence = 7;
        let message = alice().stamp(true, &packet.encode_to_vec()).unwrap();
        assert_eq!((message.reliable, message.sequence, &message.to[..]), (true, 7, &[][..]));
        let got = DataPacket::decode(&message.body[..]).unwrap();
        let Some(Value::User(user)) = &got.value else { panic!("{got:?}") };
        for sid in [&got.participant_sid, &user.participant_sid] {
            assert_eq!(*sid, format_participant_sid(ParticipantId(0xa11ce)));
        }
        for identity in [&got.participant_identity, &user.participant_identity] {
            assert_eq!(identity, "alice");
        }
        assert_eq!(
            (user.payload.as_slice(), user.topic.as_deref(), user.nonce.as_slice()),
            (&b"hello"[..], Some("greetings"), &[1, 2][..])
        );
        assert_eq!((got.sequence, got.kind), (7, Kind::Reliable as i32));
    }

    #[test]
    fn the_channel_decides_the_kind() {
        let mut packet = user(UserPacket { payload: vec![1], ..UserPacket::default() });
        packet.sequence = 9;
        let message = alice().stamp(false, &packet.encode_to_vec()).unwrap();
        assert_eq!((message.reliable, message.sequence), (false, 0));
        let got = DataPacket::decode(&message.body[..]).unwrap();
        assert_eq!((got.kind, got.sequence), (Kind::Lossy as i32, 0));
    }

    #[test]
    fn receivers_are_named_in_the_packet_or_as_older_clients_do() {
        let bob = Identity::new("bob").unwrap();
        let mut packet = user(UserPacket::default());
        packet.destination_identities = vec!["bob".into()];
        let message = alice().stamp(true, &packet.encode_to_vec()).unwrap();
        assert_eq!(message.to, std::slice::from_ref(&bob));
        let got = DataPacket::decode(&message.body[..]).unwrap();
        assert!(got.destination_identities.is_empty(), "who else gets it is nobody's business");
        let older = user(UserPacket { destination_identities: vec!["bob".into()], ..UserPacket::default() });
        assert_eq!(alice().stamp(true, &older.encode_to_vec()).unwrap().to, [bob]);
        let by_sid = user(UserPacket { destination_sids: vec!["PA_1".into()], ..UserPacket::default() });
        assert_eq!(alice().stamp(true, &by_sid.encode_to_vec()), Err(DataDrop::Destination), "not to everybody");
        packet.destination_identities = vec!["*".into()];
        assert_eq!(alice().stamp(true, &packet.encode_to_vec()), Err(DataDrop::Destination), "nobody is not everybody");
    }

    fn every_kind() -> Vec<Value> {
        vec![
            Value::User(UserPacket { payload: vec![1; 100], ..UserPacket::default() }),
            Value::SipDtmf(SipDtmf { code: 1, digit: "1".into() }),
            Value::Transcription(Transcription { track_id: "TR_1".into(), ..Transcription::default() }),
            Value::Metrics(MetricsBatch { time_series: vec![TimeSeriesMetric::default(); 3], ..MetricsBatch::default() }),
            Value::ChatMessage(ChatMessage { message: "hi".into(), ..ChatMessage::default() }),
            Value::RpcRequest(RpcRequest { method: "m".into(), ..RpcRequest::default() }),
            Value::RpcAck(RpcAck { request_id: "1".into() }),
            Value::RpcResponse(RpcResponse { request_id: "1".into(), ..RpcResponse::default() }),
            Value::StreamHeader(data_stream::Header { stream_id: "s".into(), ..data_stream::Header::default() }),
            Value::StreamChunk(data_stream::Chunk { content: vec![2; 300], ..data_stream::Chunk::default() }),
            Value::StreamTrailer(data_stream::Trailer { stream_id: "s".into(), ..data_stream::Trailer::default() }),
            Value::EncryptedPacket(EncryptedPacket { encrypted_value: vec![3; 50], ..EncryptedPacket::default() }),
        ]
    }

    #[test]
    fn every_kind_that_clients_send_goes_on_as_it_is() {
        for value in every_kind() {
            let packet = DataPacket { value: Some(value.clone()), sequence: 1, ..DataPacket::default() };
            let got = DataPacket::decode(&alice().stamp(true, &packet.encode_to_vec()).unwrap().body[..]).unwrap();
            match (got.value, value) {
                (Some(Value::User(got)), Value::User(sent)) => assert_eq!(got.payload, sent.payload),
                (got, sent) => assert_eq!(got, Some(sent)),
            }
        }
    }

    #[test]
    fn what_only_servers_send_and_what_is_nothing_is_refused() {
        let speaker = DataPacket { value: Some(Value::Speaker(ActiveSpeakerUpdate::default())), ..DataPacket::default() };
        assert_eq!(alice().stamp(true, &speaker.encode_to_vec()), Err(DataDrop::Kind));
        assert_eq!(alice().stamp(true, &DataPacket::default().encode_to_vec()), Err(DataDrop::Kind));
        assert_eq!(alice().stamp(true, b"no message"), Err(DataDrop::Malformed));
        // A kind of tomorrow.
        let mut unknown = Vec::new();
        push_bytes(&mut unknown, 40, b"x");
        assert_eq!(alice().stamp(true, &unknown), Err(DataDrop::Kind));
    }

    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        let long = user(UserPacket { payload: vec![0; DATA_MESSAGE_LEN_MAX], ..UserPacket::default() });
        assert_eq!(alice().stamp(true, &long.encode_to_vec()), Err(DataDrop::Malformed));
        let mut packet = user(UserPacket::default());
        packet.destination_identities = vec!["b".into(); FIELDS_MAX];
        assert_eq!(alice().stamp(true, &packet.encode_to_vec()), Err(DataDrop::Malformed));
        let metrics = MetricsBatch { time_series: vec![TimeSeriesMetric::default(); VALUE_FIELDS_MAX + 1], ..MetricsBatch::default() };
        let packet = DataPacket { value: Some(Value::Metrics(metrics)), ..DataPacket::default() };
        assert_eq!(alice().stamp(true, &packet.encode_to_vec()), Err(DataDrop::Malformed));
        let twice = [user(UserPacket::default()).encode_to_vec(), user(UserPacket::default()).encode_to_vec()].concat();
        assert_eq!(alice().stamp(true, &twice), Err(DataDrop::Malformed), "two values");
    }

    #[test]
    fn who_is_hidden_is_not_named_in_what_it_sends() {
        let hidden: Arc<AtomicBool> = Arc::default();
        let ann = Sender::new(ParticipantId(7), Identity::new("ann").unwrap(), Arc::clone(&hidden));
        let named = || {
            let packet = user(UserPacket { payload: vec![1], ..UserPacket::default() });
            let got = DataPacket::decode(&ann.stamp(true, &packet.encode_to_vec()).unwrap().body[..]).unwrap();
            let Some(Value::User(user)) = got.value else { panic!("it is a user packet") };
            [got.participant_sid, got.participant_identity, user.participant_sid, user.participant_identity]
        };
        assert!(named().iter().all(|name| !name.is_empty()));
        hidden.store(true, Relaxed);
        assert_eq!(named(), [""; 4]);
    }

    #[test]
    fn receivers_are_bounded_wherever_they_are_named() {
        let names = |count: usize| vec!["b".to_owned(); count];
        let of_packet = |count| DataPacket { destination_identities: names(count), ..user(UserPacket::default()) };
        let of_user = |count| user(UserPacket { destination_identities: names(count), ..UserPacket::default() });
        for packet in [of_packet(RECEIVERS_MAX), of_user(RECEIVERS_MAX)] {
            assert_eq!(alice().stamp(true, &packet.encode_to_vec()).unwrap().to.len(), RECEIVERS_MAX);
        }
        for packet in [of_packet(RECEIVERS_MAX + 1), of_user(RECEIVERS_MAX + 1)] {
            assert_eq!(alice().stamp(true, &packet.encode_to_vec()), Err(DataDrop::Destination));
        }
    }

    #[test]
    fn an_unknown_field_of_a_value_reaches_the_receivers() {
        let mut value = UserPacket { payload: vec![1], ..UserPacket::default() }.encode_to_vec();
        push_bytes(&mut value, 90, b"of tomorrow");
        let mut packet = Vec::new();
        push_bytes(&mut packet, USER, &value);
        let body = alice().stamp(true, &packet).unwrap().body;
        assert!(body.windows(11).any(|part| part == b"of tomorrow"));
    }

    #[test]
    fn mutated_messages_never_panic_and_what_passes_is_stamped() {
        let mut state = 0x5eed_da7a_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let seeds: Vec<Vec<u8>> = every_kind()
            .into_iter()
            .map(|value| DataPacket { value: Some(value), sequence: 3, participant_sid: "PA_x".into(), ..DataPacket::default() })
            .map(|packet| packet.encode_to_vec())
            .collect();
        let (mut outlined, mut stamped) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = seeds[random() % seeds.len()].clone();
            for _ in 0..=random() % 3 {
                let at = random() % bytes.len();
                match random() % 8 {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, random() as u8),
                    _ => bytes[at] ^= 1 << (random() % 8),
                }
            }
            outlined += u32::from(Outline::of(&bytes).is_ok());
            if let Ok(message) = alice().stamp(true, &bytes) {
                stamped += 1;
                let got = DataPacket::decode(&message.body[..]).unwrap();
                assert_eq!((got.participant_identity.as_str(), got.participant_sid), ("alice", alice().sid));
            }
        }
        println!("20000 inputs: {:.1} % past the outline, {:.1} % stamped", outlined as f64 / 200.0, stamped as f64 / 200.0);
        assert!(outlined > 4_000 && stamped > 3_500);
    }
}
