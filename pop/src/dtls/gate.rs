//! Stands between the datagrams of a peer and the library.
//!
//! ```text
//! datagram -> records -+- epoch 0 handshake -> reassembly -> shape check -> in order, once, whole --+-> library
//!                      +- epoch 0 CCS -------> when the library waits for it ----------------------+
//!                      +- epoch 1 -----------> behind the CCS; after the handshake only alerts -----+
//!                      +- application data --> opened by ourselves, for who takes data (data.rs)
//!                      +- epoch 0 alert -----> noted; ends the handshake only if the peer falls silent
//!                      +- a repeat ----------> our last flight again
//!                      +- anything else -----> DropReason
//! ```
//!
//! The library never sees a fragment, a repeat, a message out of order or one whose lengths do not hold. That closes, in the
//! library: a recursion per fragment that overflows the stack on a message of many one-byte fragments (the process would end),
//! repeats kept for good in its fragment buffer, records of epoch 1 queued without bound, a plaintext ChangeCipherSpec under
//! epoch 1 that moves its epoch without authentication, and every parser panic that `message.rs` names.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use pop_proto::control::DTLS_DATAGRAM_LEN_MAX;
use pop_proto::drop_reason::DropReason;
use tokio::time::Instant;

use super::Role;
use super::data::{Records, Secrets};
use super::message::{self, ClientHello};
use super::record::{
    self, ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, Fragment, GCM_OVERHEAD_LEN, HANDSHAKE, HANDSHAKE_HEADER_LEN, RECORD_HEADER_LEN,
    Record,
};

/// Longest handshake message that is put together, in bytes. The library reads records into 8,192 bytes; a chain of two RSA
/// certificates is about 3,000, Chromium's ClientHello 1,413.
const MESSAGE_LEN_MAX: usize = 8_000;
const _: () = assert!(MESSAGE_LEN_MAX + HANDSHAKE_HEADER_LEN + RECORD_HEADER_LEN <= 8_192);

/// Messages ahead of the next one that are kept: the longest flight has 5.
const MESSAGES_AHEAD_MAX: u16 = 8;

/// Messages that a peer sends in plaintext: a server 6, with a second HelloVerifyRequest 7.
const MESSAGES_MAX: u16 = 16;

/// Bytes of unfinished messages: a flight of four small ones and a certificate chain.
const REASSEMBLY_LEN_MAX: usize = 16 * 1024;

/// Bytes of messages that the library gets: two hellos and a chain of 8,000 are 11,000. It keeps them all.
const FED_LEN_MAX: usize = 32 * 1024;

/// Gaps in one message that are tracked; a flight in datagrams of 300 bytes makes at most 26 fragments of 8,000 bytes.
const RANGES_MAX: usize = 32;

/// Records that wait for the library.
const READY_MAX: usize = 32;

/// Records of epoch 1 that wait for the ChangeCipherSpec: Finished, and a repeat or an alert.
const HELD_MAX: usize = 4;

/// Longest record of epoch 1 that a handshake needs: Finished is 13 + 8 + 24 + 16.
const PROTECTED_RECORD_LEN_MAX: usize = 256;

/// Records of epoch 1 that may reach the library before the end of the handshake: it may queue each.
const PROTECTED_RECORDS_MAX: u32 = 64;

/// Datagrams at once, and per second: a handshake needs about 10, with every flight repeated 30.
const DATAGRAM_BURST: u32 = 64;
const DATAGRAMS_PER_SECOND: u32 = 100;

/// At most one repeat of the last flight in this time. A client's repeat comes as several datagrams at once.
const REPEAT_INTERVAL: Duration = Duration::from_millis(40);

/// Datagrams of a last flight: ours is one.
const LAST_FLIGHT_MAX: usize = 4;

/// The library repeats at a fixed interval; this gate lets its repeats through after 1, 2, 4 and 8 of them (RFC 6347 section
/// 4.2.4.1: "SHOULD ... double the timer").
const REPEAT_TIMER_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Gate {
    role: Role,
    stage: Stage,
    /// Tokens of the datagram limit, in 1/1,000.
    tokens: u64,
    refilled_at: Instant,

    /// What the library reads next.
    ready: VecDeque<Box<[u8]>>,
    /// Sequence number of the next plaintext record that the library gets.
    record_sequence: u64,
    /// Bytes of messages that it has got.
    fed_len: usize,
    /// The message that is taken next.
    next_message: u16,
    messages: Vec<Message>,
    client_hello: Option<ClientHello>,
    key_exchanged: bool,
    change_cipher_spec: Ccs,
    held: VecDeque<Box<[u8]>>,
    protected_records: u32,
    alert: Option<u8>,

    /// Cookie of the HelloVerifyRequest that went out.
    cookie: Option<Box<[u8]>>,
    /// Our last flight, while it is one that the library does not repeat.
    last_flight: Vec<Box<[u8]>>,
    repeated_at: Option<Instant>,
    repeats: Repeats,
    alert_sent: bool,

    /// Explicit nonces that the library drew.
    nonces: Vec<u64>,
    /// After the handshake.
    records: Option<Records>,
    takes_data: bool,
}

/// How far the handshake is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Handshake,
    Established,
}

/// The peer's ChangeCipherSpec.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ccs {
    Missing,
    Arrived,
    Taken,
}

/// What a datagram caused.
#[derive(Debug, Default)]
pub(super) struct Caused {
    /// The library has something to read.
    pub(super) ready: bool,
    /// The hello is there, or the peer sent an alert.
    pub(super) news: bool,
    /// To send again.
    pub(super) repeat: Vec<Box<[u8]>>,
    /// Application data, for the owner.
    pub(super) data: Vec<Box<[u8]>>,
}

impl Gate {
    pub(super) fn new(role: Role, now: Instant) -> Gate {
        Gate {
            role,
            stage: Stage::Handshake,
            tokens: u64::from(DATAGRAM_BURST) * 1_000,
            refilled_at: now,
            ready: VecDeque::new(),
            record_sequence: 0,
            fed_len: 0,
            next_message: 0,
            messages: Vec::new(),
            client_hello: None,
            key_exchanged: false,
            change_cipher_spec: Ccs::Missing,
            held: VecDeque::new(),
            protected_records: 0,
            alert: None,
            cookie: None,
            last_flight: Vec::new(),
            repeated_at: None,
            repeats: Repeats::default(),
            alert_sent: false,
            nonces: Vec::new(),
            records: None,
            takes_data: false,
        }
    }

    /// A datagram of the peer. What it caused counts also when the verdict is an error: a message may have freed one behind it
    /// that does not hold.
    ///
    /// # Errors
    /// Why nothing of it was taken.
    pub(super) fn handle_datagram(&mut self, now: Instant, datagram: &[u8], caused: &mut Caused) -> Result<(), DropReason> {
        if datagram.len() > DTLS_DATAGRAM_LEN_MAX {
            return Err(DropReason::DtlsMalformed);
        }
        let records = record::records(datagram).ok_or(DropReason::DtlsMalformed)?;
        // Plaintext costs an established association nothing, so it must not use up what its alerts need. Application data has
        // a bound of its own: the owner's queue.
        let free = |record: Record<'_>| record.epoch == 0 || self.opens(record);
        let free = record::records(datagram).is_some_and(|mut records| records.all(free));
        if self.stage == Stage::Handshake || !free {
            self.take_token(now)?;
        }
        let mut verdict = Err(DropReason::DtlsUnexpected);
        for record in records {
            verdict = join(verdict, self.handle_record(now, record, caused));
        }
        verdict
    }

    /// What the library reads next.
    pub(super) fn pop_ready(&mut self) -> Option<Box<[u8]>> {
        self.ready.pop_front()
    }

    /// The client's first hello, when it is whole.
    pub(super) fn client_hello(&self) -> Option<&ClientHello> {
        self.client_hello.as_ref()
    }

    /// The description of a plaintext alert after which the peer has been silent.
    pub(super) fn alert(&self) -> Option<u8> {
        self.alert
    }

    /// The library has sent an alert: its reader ended for a reason.
    pub(super) fn alert_sent(&self) -> bool {
        self.alert_sent
    }

    /// The handshake is done, and from now on nothing that the library seals leaves the node. False: no keys.
    pub(super) fn install(&mut self, secrets: &Secrets) -> bool {
        self.establish();
        self.records = Records::derive(self.role, secrets, &self.nonces);
        self.records.is_some()
    }

    /// The owner takes application data.
    pub(super) fn take_data(&mut self) {
        self.takes_data = true;
    }

    /// A record of epoch 1, once the handshake is done; see [`Records::seal`].
    pub(super) fn seal(&mut self, content_type: u8, data: &[u8]) -> Option<Box<[u8]>> {
        self.records.as_mut()?.seal(content_type, data)
    }

    /// Records under our key are ours to write from now on.
    pub(super) fn has_records(&self) -> bool {
        self.records.is_some()
    }

    fn opens(&self, record: Record<'_>) -> bool {
        self.takes_data && self.records.is_some() && (record.epoch, record.content_type) == (1, APPLICATION_DATA)
    }

    /// The handshake is done: from now on only alerts under epoch 1 pass.
    pub(super) fn establish(&mut self) {
        self.stage = Stage::Established;
        self.messages = Vec::new();
        self.held = VecDeque::new();
        self.client_hello = None;
        self.cookie = None;
        // A client has the server's last flight, so the server has ours.
        if self.role == Role::Client {
            self.last_flight = Vec::new();
        }
    }

    /// A datagram of the library. Returns whether it is sent: repeats of its timer are thinned out. It may free what waits for
    /// the library.
    pub(super) fn handle_sent(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let Some(records) = record::records(datagram) else {
            // Never seen; the peer would judge it the same.
            return false;
        };
        let mut first_fragment = None;
        let mut changes_cipher_spec = false;
        let mut verifies_hello = false;
        for record in records {
            if record.epoch == 1 && self.records.is_none() {
                self.nonces.extend(record.explicit_nonce());
            }
            match (record.content_type, record.epoch) {
                (HANDSHAKE, 0) => {
                    for fragment in record::fragments(record.body).into_iter().flatten() {
                        first_fragment.get_or_insert((fragment.sequence, fragment.offset));
                        if fragment.message_type == message::HELLO_VERIFY_REQUEST {
                            verifies_hello = true;
                            self.cookie = message::parse_cookie(fragment.bytes).map(Box::from);
                        }
                    }
                }
                (CHANGE_CIPHER_SPEC, _) => changes_cipher_spec = true,
                (ALERT, _) => {
                    self.alert_sent = true;
                    return true;
                }
                // Nothing but alerts is left to say.
                (_, 1) if self.records.is_some() => return false,
                _ => {}
            }
        }
        // A server's last flight has no plaintext fragment and is the only one that the library does not repeat.
        let last = first_fragment.is_none() && self.role == Role::Server;
        if !last && !self.repeats.is_due(now, first_fragment) {
            return false;
        }
        if changes_cipher_spec || verifies_hello {
            self.last_flight.clear();
        }
        if self.role == Role::Server && self.last_flight.len() < LAST_FLIGHT_MAX {
            let follows = changes_cipher_spec || verifies_hello || (first_fragment.is_none() && !self.last_flight.is_empty());
            if follows {
                self.last_flight.push(datagram.into());
            } else {
                // The library repeats this flight itself.
                self.last_flight.clear();
            }
        }
        if changes_cipher_spec {
            match self.role {
                // Its Finished is on the way: nothing in plaintext is needed any longer.
                Role::Server => self.establish(),
                Role::Client => {
                    self.key_exchanged = true;
                    self.feed_protected();
                }
            }
        }
        true
    }

    fn take_token(&mut self, now: Instant) -> Result<(), DropReason> {
        let elapsed = u64::try_from(now.duration_since(self.refilled_at).as_millis()).unwrap_or(u64::MAX);
        if elapsed > 0 {
            self.refilled_at = now;
            let refill = elapsed.saturating_mul(u64::from(DATAGRAMS_PER_SECOND));
            self.tokens = self.tokens.saturating_add(refill).min(u64::from(DATAGRAM_BURST) * 1_000);
        }
        self.tokens = self.tokens.checked_sub(1_000).ok_or(DropReason::DtlsQueueFull)?;
        Ok(())
    }

    fn handle_record(&mut self, now: Instant, record: Record<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        match (self.stage, record.epoch, record.content_type) {
            (_, 1, CHANGE_CIPHER_SPEC) => Err(DropReason::DtlsMalformed),
            (_, 1, _) if record.body.len() < GCM_OVERHEAD_LEN => Err(DropReason::DtlsMalformed),
            (Stage::Handshake, 0, HANDSHAKE) => self.handle_fragments(now, record, caused),
            (Stage::Handshake, 0, CHANGE_CIPHER_SPEC) => self.handle_change_cipher_spec(record, caused),
            (Stage::Handshake, 0, ALERT) => self.handle_alert(record, caused),
            (Stage::Handshake, 1, HANDSHAKE | ALERT) => self.hold_protected(record, caused),
            // RFC 6347 section 4.2.4, in state FINISHED: "Read retransmit: Retransmit last flight". A plaintext record may be
            // forged; what it gets is 75 bytes, seldom.
            (Stage::Established, 0, HANDSHAKE) if self.role == Role::Server => {
                self.repeat_last_flight(now, caused).map_err(|_| DropReason::DtlsPlaintext)
            }
            (Stage::Established, 1, HANDSHAKE) if self.role == Role::Server => self.repeat_last_flight(now, caused),
            // RFC 6347 section 4.1.2.7: "invalid records SHOULD be silently discarded, thus preserving the association".
            (Stage::Established, 0, _) => Err(DropReason::DtlsPlaintext),
            (Stage::Established, 1, ALERT) => self.feed(record.bytes.into(), caused),
            (Stage::Established, 1, APPLICATION_DATA) if self.opens(record) => {
                let records = self.records.as_mut().ok_or(DropReason::DtlsUnexpected)?;
                caused.data.push(records.open(record)?);
                Ok(())
            }
            // Data before the keys are there, or for an owner that takes none; and renegotiation is off.
            _ => Err(DropReason::DtlsUnexpected),
        }
    }

    fn handle_fragments(&mut self, now: Instant, record: Record<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        let fragments = record::fragments(record.body).ok_or(DropReason::DtlsMalformed)?;
        let mut verdict = Err(DropReason::DtlsUnexpected);
        for fragment in fragments {
            verdict = join(verdict, self.handle_fragment(now, fragment, caused));
        }
        verdict
    }

    fn handle_fragment(&mut self, now: Instant, fragment: Fragment<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        let ahead = fragment.sequence.wrapping_sub(self.next_message);
        if fragment.sequence < self.next_message {
            // The library repeats every flight but the HelloVerifyRequest on its own timer.
            let again = fragment.message_type == message::CLIENT_HELLO && fragment.sequence == 0 && self.next_message == 1;
            return if again && fragment.offset == 0 { self.repeat_last_flight(now, caused) } else { Err(DropReason::DtlsUnexpected) };
        }
        if ahead >= MESSAGES_AHEAD_MAX || fragment.sequence >= MESSAGES_MAX {
            return Err(DropReason::DtlsUnexpected);
        }
        if fragment.length > MESSAGE_LEN_MAX || !self.may_send(fragment.message_type) {
            return Err(DropReason::DtlsMalformed);
        }
        self.put(fragment)?;
        self.alert = None;
        self.take_messages(caused)
    }

    /// Whether the peer's role sends this message in plaintext.
    fn may_send(&self, message_type: u8) -> bool {
        match self.role {
            Role::Server => matches!(
                message_type,
                message::CLIENT_HELLO | message::CERTIFICATE | message::CLIENT_KEY_EXCHANGE | message::CERTIFICATE_VERIFY
            ),
            Role::Client => matches!(
                message_type,
                message::HELLO_VERIFY_REQUEST
                    | message::SERVER_HELLO
                    | message::CERTIFICATE
                    | message::SERVER_KEY_EXCHANGE
                    | message::CERTIFICATE_REQUEST
                    | message::SERVER_HELLO_DONE
            ),
        }
    }

    fn put(&mut self, fragment: Fragment<'_>) -> Result<(), DropReason> {
        let known = self.messages.iter().position(|m| m.sequence == fragment.sequence);
        let index = match known {
            Some(index) => index,
            None => {
                self.make_room(fragment.sequence, fragment.length)?;
                self.messages.push(Message::new(&fragment));
                self.messages.len() - 1
            }
        };
        // The newest wins: a forged first fragment does not outlive the peer's repeat.
        if self.messages[index].contradicts(&fragment) {
            self.messages.swap_remove(index);
            self.make_room(fragment.sequence, fragment.length)?;
            self.messages.push(Message::new(&fragment));
            return self.messages.last_mut().expect("just pushed").put(&fragment);
        }
        self.messages[index].put(&fragment)
    }

    /// Makes room for a message, at the cost of those behind it.
    fn make_room(&mut self, sequence: u16, length: usize) -> Result<(), DropReason> {
        loop {
            let used: usize = self.messages.iter().map(|m| m.body.len()).sum();
            if used + length <= REASSEMBLY_LEN_MAX {
                return Ok(());
            }
            let last = self.messages.iter().enumerate().max_by_key(|(_, m)| m.sequence).filter(|(_, m)| m.sequence > sequence);
            let (last, _) = last.ok_or(DropReason::DtlsQueueFull)?;
            self.messages.swap_remove(last);
        }
    }

    /// Hands over every message whose turn it is.
    fn take_messages(&mut self, caused: &mut Caused) -> Result<(), DropReason> {
        while let Some(index) = self.messages.iter().position(|m| m.sequence == self.next_message && m.is_whole()) {
            if self.ready.len() >= READY_MAX {
                return Err(DropReason::DtlsQueueFull);
            }
            let message = self.messages.swap_remove(index);
            if self.fed_len + message.body.len() > FED_LEN_MAX {
                return Err(DropReason::DtlsQueueFull);
            }
            self.check_message(&message, caused).ok_or(DropReason::DtlsMalformed)?;
            let record = record::build_handshake_record(self.record_sequence, message.message_type, message.sequence, &message.body);
            self.fed_len += message.body.len();
            self.record_sequence += 1;
            self.next_message += 1;
            self.repeats.answered = true;
            self.key_exchanged |= message.message_type == message::CLIENT_KEY_EXCHANGE;
            self.feed(record, caused)?;
            if self.feed_protected() {
                caused.ready = true;
            }
        }
        Ok(())
    }

    fn check_message(&mut self, message: &Message, caused: &mut Caused) -> Option<()> {
        if message.message_type != message::CLIENT_HELLO {
            return message::is_well_formed(self.role.other(), message.message_type, &message.body).then_some(());
        }
        let hello = ClientHello::parse(&message.body)?;
        match (&self.client_hello, message.sequence) {
            (None, 0) => {
                self.client_hello = Some(hello);
                caused.news = true;
                Some(())
            }
            // The library would end the handshake over a wrong cookie; here a forged hello is dropped and the right one comes.
            (Some(first), 1) => (self.cookie.as_ref() == Some(&hello.cookie) && first.random == hello.random).then_some(()),
            _ => None,
        }
    }

    fn handle_change_cipher_spec(&mut self, record: Record<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        if record.body != [1] {
            return Err(DropReason::DtlsMalformed);
        }
        if self.change_cipher_spec != Ccs::Missing {
            return Err(DropReason::DtlsUnexpected);
        }
        self.change_cipher_spec = Ccs::Arrived;
        caused.ready |= self.feed_protected();
        Ok(())
    }

    fn hold_protected(&mut self, record: Record<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        if record.bytes.len() > PROTECTED_RECORD_LEN_MAX {
            return Err(DropReason::DtlsUnexpected);
        }
        if self.held.len() >= HELD_MAX {
            // The peer repeats its Finished, so the newest is as good.
            self.held.pop_front();
        }
        self.held.push_back(record.bytes.into());
        self.alert = None;
        caused.ready |= self.feed_protected();
        Ok(())
    }

    /// Hands over the ChangeCipherSpec and what is protected behind it, once the library can use them: a client's after its own
    /// ChangeCipherSpec, a server's after the client's keys. The library would forget a Finished that comes before them.
    fn feed_protected(&mut self) -> bool {
        if !self.key_exchanged || self.change_cipher_spec == Ccs::Missing {
            return false;
        }
        let mut fed = false;
        if self.change_cipher_spec == Ccs::Arrived && self.ready.len() < READY_MAX {
            self.change_cipher_spec = Ccs::Taken;
            self.ready.push_back(record::build_change_cipher_spec(self.record_sequence));
            self.record_sequence += 1;
            fed = true;
        }
        while self.change_cipher_spec == Ccs::Taken && self.ready.len() < READY_MAX && self.protected_records < PROTECTED_RECORDS_MAX {
            let Some(record) = self.held.pop_front() else { break };
            self.ready.push_back(record);
            self.protected_records += 1;
            fed = true;
        }
        fed
    }

    fn handle_alert(&mut self, record: Record<'_>, caused: &mut Caused) -> Result<(), DropReason> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        const CLOSE_NOTIFY: u8 = 0;
        match *record.body {
            [FATAL, description] | [WARNING, description @ CLOSE_NOTIFY] => {
                self.alert = Some(description);
                caused.news = true;
                Ok(())
            }
            [WARNING, _] => Err(DropReason::DtlsUnexpected),
            _ => Err(DropReason::DtlsMalformed),
        }
    }

    fn repeat_last_flight(&mut self, now: Instant, caused: &mut Caused) -> Result<(), DropReason> {
        let too_soon = self.repeated_at.is_some_and(|at| now.duration_since(at) < REPEAT_INTERVAL);
        if too_soon || self.last_flight.is_empty() {
            return Err(DropReason::DtlsUnexpected);
        }
        self.repeated_at = Some(now);
        caused.repeat = self.last_flight.clone();
        Ok(())
    }

    fn feed(&mut self, record: Box<[u8]>, caused: &mut Caused) -> Result<(), DropReason> {
        if self.ready.len() >= READY_MAX {
            return Err(DropReason::DtlsQueueFull);
        }
        self.ready.push_back(record);
        caused.ready = true;
        Ok(())
    }

    /// Hands bytes to the library past every check, to see what the rest does when one is missing.
    #[cfg(test)]
    pub(super) fn force_ready(&mut self, record: &[u8]) {
        self.ready.push_back(record.into());
    }
}

/// A handshake message in parts.
struct Message {
    message_type: u8,
    sequence: u16,
    body: Vec<u8>,
    /// What is there: sorted, apart from each other.
    have: Vec<Range<usize>>,
    whole: bool,
}

impl Message {
    fn new(fragment: &Fragment<'_>) -> Message {
        Message {
            message_type: fragment.message_type,
            sequence: fragment.sequence,
            body: vec![0; fragment.length],
            have: Vec::new(),
            whole: false,
        }
    }

    fn contradicts(&self, fragment: &Fragment<'_>) -> bool {
        self.message_type != fragment.message_type || self.body.len() != fragment.length
    }

    fn put(&mut self, fragment: &Fragment<'_>) -> Result<(), DropReason> {
        let mut added = fragment.offset..fragment.offset + fragment.bytes.len();
        let bytes = added.clone();
        let touches = |have: &Range<usize>, added: &Range<usize>| have.start <= added.end && added.start <= have.end;
        if self.have.len() >= RANGES_MAX && !self.have.iter().any(|have| touches(have, &added)) {
            return Err(DropReason::DtlsQueueFull);
        }
        self.body[bytes].copy_from_slice(fragment.bytes);
        self.have.retain(|have| {
            let joined = touches(have, &added);
            if joined {
                added = have.start.min(added.start)..have.end.max(added.end);
            }
            !joined
        });
        let at = self.have.partition_point(|have| have.start < added.start);
        self.have.insert(at, added);
        self.whole = self.have[0] == (0..self.body.len());
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.whole
    }
}

/// Thins out the library's repeats.
#[derive(Default)]
struct Repeats {
    /// The first fragment of the flight that is going out.
    flight: Option<(u16, usize)>,
    /// The last fragment that has gone out.
    newest: Option<(u16, usize)>,
    /// The peer has sent something new since the flight went out: the next new fragment begins another flight.
    answered: bool,
    sent_at: Option<Instant>,
    interval: Duration,
    passing: bool,
}

impl Repeats {
    /// Whether a datagram that begins with this fragment goes out. One without plaintext fragments follows those before it.
    fn is_due(&mut self, now: Instant, first_fragment: Option<(u16, usize)>) -> bool {
        let Some(first) = first_fragment else { return self.passing };
        if self.newest.is_none_or(|newest| first > newest) {
            if self.answered || self.flight.is_none() {
                self.answered = false;
                self.flight = Some(first);
                self.interval = super::FLIGHT_INTERVAL;
            }
            self.newest = Some(first);
            self.sent_at = Some(now);
            self.passing = true;
        } else if self.flight == Some(first) {
            // The library's timer is as exact as the runtime's, 1 ms.
            let slack = Duration::from_millis(5);
            self.passing = self.sent_at.is_none_or(|at| now.duration_since(at) + slack >= self.interval);
            if self.passing {
                self.sent_at = Some(now);
                self.interval = (self.interval * 2).min(REPEAT_TIMER_MAX);
            }
        }
        self.passing
    }
}

/// A datagram counts as taken when one of its parts was; else the first part that was not merely unexpected says why not.
fn join(before: Result<(), DropReason>, this: Result<(), DropReason>) -> Result<(), DropReason> {
    match (before, this) {
        (Ok(()), _) | (_, Ok(())) => Ok(()),
        (Err(DropReason::DtlsUnexpected), Err(reason)) => Err(reason),
        (Err(reason), _) => Err(reason),
    }
}
