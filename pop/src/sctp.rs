//! SCTP over DTLS with data channels (RFC 8831, RFC 8832, RFC 9260): the only door to the crate sctp-proto.
//!
//! ```text
//! DTLS data -> handle_datagram -> packet check -> crate -+-> poll_event: Connected, Opened, Closed, Ended
//!                                                        +-> read(channel): whole messages
//! send(channel, message) -> crate -> poll_transmit -> DTLS data
//! ```
//!
//! One association for a transport, and one alone: a second INIT is not taken. The owner brings time and bytes. Messages that the
//! owner does not read stay in the crate, and the window that the peer is told shrinks: that is how a sender is slowed.
//!
//! The crate is given nothing that `packet.rs` has not checked. A panic in it is caught and ends the association.

mod dcep;
mod flow;
mod packet;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pop_proto::control::DATA_MESSAGE_LEN_MAX;
use sctp_proto::{
    Association, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event, Payload, PayloadProtocolIdentifier,
    ReliabilityType, ServerConfig, StreamEvent, TransportConfig,
};

use self::dcep::Dcep;
use self::flow::Flow;
use crate::data::DataDrop;
use crate::dtls::DATA_DATAGRAMS_MAX;

pub use self::dcep::{Limit, Promise};

/// `a=sctp-port` of our answers.
pub const SCTP_PORT: u16 = 5_000;

/// `a=max-message-size` of our answers, in bytes.
pub const MESSAGE_LEN_MAX: usize = DATA_MESSAGE_LEN_MAX;

/// Bytes of messages that a peer may have on their way to who reads them. Four of the longest; a browser at 10 MB/s fills it in 25 ms.
pub const WINDOW_LEN: usize = 256 << 10;

// What a peer may send at once has a place on its way here, packets that are half full as well.
const _: () = assert!(DATA_DATAGRAMS_MAX * CHUNK_LEN_MAX as usize >= 2 * WINDOW_LEN);

/// Streams of an association; ids above are not agreed. Clients of the room protocol use 3.
const STREAMS_MAX: u16 = 64;

/// Channels that a peer may have open.
const CHANNELS_MAX: usize = 16;

/// Payload of a DATA chunk: with the headers of SCTP, DTLS, UDP and IPv6 1,265 bytes, below the 1,280 that every IPv6 path carries.
const CHUNK_LEN_MAX: u32 = 1_152;

/// First, shortest and longest retransmission timeout. The shortest is above the 200 ms that receivers may hold an acknowledgement
/// back; the longest keeps a path that was down for a while from being idle for a minute.
const RTO_INITIAL_MS: u64 = 500;
const RTO_MIN_MS: u64 = 400;
const RTO_MAX_MS: u64 = 10_000;

/// Which end begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer's INIT comes; our channels would have odd ids.
    Accepts,
    /// Our INIT goes; our channels have even ids.
    Begins,
}

/// A channel that both ends know from an association before this one: nobody opens it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptChannel {
    /// Its number.
    pub channel: u16,
    /// Its name.
    pub label: Box<str>,
    /// What holds for its messages, both ways.
    pub promise: Promise,
}

/// What happens to an association.
#[derive(Debug, PartialEq, Eq)]
pub enum SctpEvent {
    /// It is established.
    Connected,
    /// The peer has opened a channel.
    Opened {
        /// Its number.
        channel: u16,
        /// Its name.
        label: Box<str>,
        /// What holds for its messages, both ways.
        promise: Promise,
    },
    /// The peer knows a channel of ours.
    Acknowledged {
        /// Its number.
        channel: u16,
    },
    /// A channel is closed.
    Closed {
        /// Its number.
        channel: u16,
    },
    /// The association has ended; nothing comes after it.
    Ended(SctpEnd),
}

/// Why an association ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SctpEnd {
    /// The peer ended it, or broke the protocol.
    Closed,
    /// The crate panicked: a bug.
    Panicked,
}

/// A whole message.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Bytes; else UTF-8, as the sender says.
    pub binary: bool,
    /// At most [`MESSAGE_LEN_MAX`] bytes.
    pub body: Vec<u8>,
}

/// Why a message cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No such channel, or no association.
    NoChannel,
    /// Longer than [`MESSAGE_LEN_MAX`].
    TooLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Connected,
    Ended,
}

struct Channel {
    label: Box<str>,
    promise: Promise,
    /// See [`KeptChannel`].
    is_kept: bool,
}

/// The crate's part.
struct Machine {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
}

/// One association; see the module.
pub struct Sctp {
    side: Side,
    /// Gone after a panic.
    machine: Option<Machine>,
    stage: Stage,
    /// Tag of the INIT that was taken.
    init: Option<u32>,
    flow: Flow,
    channels: BTreeMap<u16, Channel>,
    /// They are open as soon as the association is.
    kept: Vec<KeptChannel>,
    /// Streams without a channel that have something to read.
    strange: BTreeSet<u16>,
    events: VecDeque<SctpEvent>,
    transmits: VecDeque<Bytes>,
    /// Messages that were read and not handed on, by reason.
    drops: Vec<DataDrop>,
}

impl Sctp {
    /// An association that does nothing yet.
    pub fn new(side: Side, now: Instant) -> Sctp {
        let mut endpoint_config = EndpointConfig::new();
        endpoint_config.max_payload_size(CHUNK_LEN_MAX);
        let server = (side == Side::Accepts).then(|| {
            let mut server = ServerConfig::new();
            server.transport = Arc::new(transport_config());
            Arc::new(server)
        });
        let endpoint = Endpoint::new(Arc::new(endpoint_config), server);
        Sctp {
            side,
            machine: Some(Machine { endpoint, association: None }),
            stage: Stage::Waiting,
            init: None,
            flow: Flow::new(now),
            channels: BTreeMap::new(),
            kept: Vec::new(),
            strange: BTreeSet::new(),
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            drops: Vec::new(),
        }
    }

    /// Sends the INIT; for [`Side::Begins`].
    pub fn begin(&mut self) {
        let mut config = ClientConfig::new();
        config.transport = Arc::new(transport_config());
        self.drive(|machine| {
            if machine.association.is_none() {
                machine.association = machine.endpoint.connect(config, somewhere()).ok();
            }
        });
    }

    /// The same towards a peer that has an association still, which begins anew (RFC 9260 section 5.2.4), with the channels that it has.
    /// Beyond [`CHANNELS_MAX`] they are left out, and so are streams that are not agreed.
    pub fn begin_again(&mut self, mut kept: Vec<KeptChannel>) {
        kept.retain(|kept| kept.channel < STREAMS_MAX);
        kept.truncate(CHANNELS_MAX);
        self.kept = kept;
        self.begin();
    }

    /// A packet of the peer.
    ///
    /// # Errors
    /// Why it ends here.
    pub fn handle_datagram(&mut self, now: Instant, packet: &[u8]) -> Result<(), DataDrop> {
        if self.stage == Stage::Ended {
            return Err(DataDrop::SctpUnexpected);
        }
        let checked = packet::check(packet, STREAMS_MAX).ok_or(DataDrop::SctpMalformed)?;
        if let Some(tag) = checked.facts.init {
            self.admit_init(tag)?;
        }
        self.flow.admit(now, &checked.facts)?;
        let packet = checked.rewritten.map_or_else(|| Bytes::copy_from_slice(packet), Bytes::from);
        if !checked.facts.data.is_empty() {
            self.flow.note_data(&packet);
        }
        self.feed(now, packet);
        Ok(())
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.drive(|machine| {
            if let Some((_, association)) = &mut machine.association {
                association.handle_timeout(now);
            }
        });
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.machine.as_ref()?.association.as_ref()?.1.poll_timeout()
    }

    /// The next packet for the peer, at most [`crate::dtls::DATA_LEN_MAX`] bytes.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.transmits.is_empty() {
            let packets = self.drive(|machine| {
                let transmit = machine.association.as_mut()?.1.poll_transmit(now)?;
                if let Payload::RawEncode(packets) = transmit.payload { Some(packets) } else { None }
            });
            self.transmits.extend(packets.flatten().into_iter().flatten());
        }
        let packet = self.transmits.pop_front()?;
        if let Some(announced) = packet::announced(&packet) {
            self.flow.note_announced(announced);
        }
        Some(packet)
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<SctpEvent> {
        self.events.pop_front()
    }

    /// Why messages ended here since the last call.
    pub fn take_drops(&mut self) -> Vec<DataDrop> {
        std::mem::take(&mut self.drops)
    }

    /// Opens a channel; `None` without an association.
    pub fn open(&mut self, label: &str, promise: Promise) -> Option<u16> {
        let first = u16::from(self.side == Side::Accepts);
        let id = (first..STREAMS_MAX).step_by(2).find(|id| !self.channels.contains_key(id))?;
        let message = Bytes::from(dcep::build_open(label, promise));
        self.drive(|machine| {
            let association = &mut machine.association.as_mut()?.1;
            let mut stream = association.open_stream(id, PayloadProtocolIdentifier::Binary).ok()?;
            stream.write_sctp(&message, PayloadProtocolIdentifier::Dcep).ok()
        })
        .flatten()?;
        self.channels.insert(id, Channel { label: label.into(), promise, is_kept: false });
        Some(id)
    }

    /// Closes a channel; the peer is told.
    pub fn close(&mut self, channel: u16) {
        self.drive(|machine| machine.association.as_mut()?.1.stream(channel).ok()?.close().ok());
    }

    /// The next message of a channel.
    pub fn read(&mut self, now: Instant, channel: u16) -> Option<Message> {
        loop {
            let (kind, message) = self.read_stream(now, channel)?;
            match kind {
                PayloadProtocolIdentifier::Dcep => self.handle_dcep(channel, &message.body),
                PayloadProtocolIdentifier::Unknown => self.drops.push(DataDrop::Protocol),
                _ => return Some(message),
            }
        }
    }

    /// Hands a message to the association, which keeps it until it has arrived or was given up.
    ///
    /// # Errors
    /// [`SendError`]; nothing was kept.
    pub fn send(&mut self, channel: u16, binary: bool, body: &Bytes) -> Result<(), SendError> {
        use PayloadProtocolIdentifier::{Binary, BinaryEmpty, String, StringEmpty};
        if body.len() > MESSAGE_LEN_MAX {
            return Err(SendError::TooLong);
        }
        if !self.channels.contains_key(&channel) {
            return Err(SendError::NoChannel);
        }
        // RFC 8831 section 6.6: "SCTP does not support the sending of empty user messages ... a single zero byte".
        let (body, kind) = match (body.is_empty(), binary) {
            (false, true) => (body.clone(), Binary),
            (false, false) => (body.clone(), String),
            (true, true) => (Bytes::from_static(&[0]), BinaryEmpty),
            (true, false) => (Bytes::from_static(&[0]), StringEmpty),
        };
        let sent = self.drive(|machine| machine.association.as_mut()?.1.stream(channel).ok()?.write_sctp(&body, kind).ok());
        sent.flatten().map(drop).ok_or(SendError::NoChannel)
    }

    /// Bytes of a channel's messages that the peer has not acknowledged.
    pub fn buffered_len(&mut self, channel: u16) -> usize {
        let buffered = self.drive(|machine| machine.association.as_mut()?.1.stream(channel).ok()?.buffered_amount().ok());
        buffered.flatten().unwrap_or(0)
    }

    /// The channel of this name that was opened last.
    pub fn find(&self, label: &str) -> Option<u16> {
        self.channels.iter().rev().find(|(_, channel)| *channel.label == *label).map(|(id, _)| *id)
    }

    /// RFC 9260 section 5.2.2 would let a peer begin anew; a peer connection never does.
    fn admit_init(&mut self, tag: u32) -> Result<(), DataDrop> {
        let is_first = *self.init.get_or_insert(tag) == tag;
        let waits = self.side == Side::Accepts && self.stage == Stage::Waiting;
        if is_first && waits { Ok(()) } else { Err(DataDrop::SctpUnexpected) }
    }

    fn feed(&mut self, now: Instant, packet: Bytes) {
        self.drive(|machine| machine.handle(now, packet));
        self.absorb(now);
    }

    /// Calls the crate. A panic ends the association.
    fn drive<T>(&mut self, call: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let machine = self.machine.as_mut()?;
        // Nothing of the machine is used after a panic: it is dropped.
        match catch_unwind(AssertUnwindSafe(|| call(machine))) {
            Ok(answer) => Some(answer),
            Err(_) => {
                self.machine = None;
                self.end(SctpEnd::Panicked);
                None
            }
        }
    }

    fn end(&mut self, why: SctpEnd) {
        if self.stage != Stage::Ended {
            self.stage = Stage::Ended;
            self.channels.clear();
            self.strange.clear();
            self.events.push_back(SctpEvent::Ended(why));
        }
    }

    /// Takes what the crate has to tell.
    fn absorb(&mut self, now: Instant) {
        while let Some(event) = self.drive(Machine::poll).flatten() {
            match event {
                Event::Connected => {
                    self.stage = Stage::Connected;
                    self.events.push_back(SctpEvent::Connected);
                    self.open_kept();
                }
                Event::HandshakeFailed { .. } | Event::AssociationLost { .. } => self.end(SctpEnd::Closed),
                Event::Stream(StreamEvent::Readable { id }) if !self.channels.contains_key(&id) => drop(self.strange.insert(id)),
                Event::Stream(StreamEvent::Finished { id }) => {
                    self.strange.remove(&id);
                    if self.channels.remove(&id).is_some() {
                        self.events.push_back(SctpEvent::Closed { channel: id });
                    }
                }
                _ => {}
            }
        }
        while let Some(id) = self.strange.pop_first() {
            self.read_strange(now, id);
        }
    }

    /// A stream is no channel before an OPEN has come.
    fn read_strange(&mut self, now: Instant, id: u16) {
        while !self.channels.contains_key(&id) {
            let Some((kind, message)) = self.read_stream(now, id) else { return };
            match kind {
                PayloadProtocolIdentifier::Dcep => self.handle_dcep(id, &message.body),
                _ => self.drops.push(DataDrop::NoChannel),
            }
        }
    }

    fn open_kept(&mut self) {
        for KeptChannel { channel, label, promise } in std::mem::take(&mut self.kept) {
            let open = self.drive(|machine| {
                let association = &mut machine.association.as_mut()?.1;
                association.open_stream(channel, PayloadProtocolIdentifier::Binary).ok().map(drop)
            });
            if open.flatten().is_some() && !self.channels.contains_key(&channel) {
                self.keep_promise(channel, promise);
                self.channels.insert(channel, Channel { label: label.clone(), promise, is_kept: true });
                self.events.push_back(SctpEvent::Opened { channel, label, promise });
            }
        }
    }

    fn read_stream(&mut self, now: Instant, id: u16) -> Option<(PayloadProtocolIdentifier, Message)> {
        use PayloadProtocolIdentifier::{Binary, BinaryEmpty, StringEmpty};
        let chunks = self.drive(|machine| machine.association.as_mut()?.1.stream(id).ok()?.read().ok()?).flatten()?;
        let mut body = vec![0; chunks.len()];
        let whole = self.drive(|_| chunks.read(&mut body)).is_some_and(|read| read.is_ok());
        if let Some(again) = self.flow.note_read(chunks.chunks.len(), body.len()) {
            // Twice: the first would be acknowledged later, the second at once.
            for packet in [again.clone(), again] {
                self.drive(|machine| machine.handle(now, packet));
            }
        }
        if !whole || matches!(chunks.ppi, BinaryEmpty | StringEmpty) {
            body.clear();
        }
        Some((chunks.ppi, Message { binary: matches!(chunks.ppi, Binary | BinaryEmpty), body }))
    }

    fn handle_dcep(&mut self, id: u16, message: &[u8]) {
        match dcep::parse(message) {
            Some(Dcep::Open { label, promise }) if !self.channels.contains_key(&id) && self.channels.len() < CHANNELS_MAX => {
                self.accept(id, label, promise);
            }
            // Its OPEN had not arrived before.
            Some(Dcep::Open { .. }) if self.channels.get(&id).is_some_and(|channel| channel.is_kept) => self.acknowledge(id),
            Some(Dcep::Ack) if self.channels.contains_key(&id) => {
                let promise = self.channels[&id].promise;
                self.keep_promise(id, promise);
                self.events.push_back(SctpEvent::Acknowledged { channel: id });
            }
            // A channel too many, or one that does not hold: RFC 8832 section 6 has it closed.
            Some(Dcep::Open { .. }) | None if !self.channels.contains_key(&id) => {
                self.drops.push(DataDrop::ChannelRefused);
                self.close(id);
            }
            _ => self.drops.push(DataDrop::Protocol),
        }
    }

    fn accept(&mut self, id: u16, label: Box<str>, promise: Promise) {
        self.keep_promise(id, promise);
        self.acknowledge(id);
        self.channels.insert(id, Channel { label: label.clone(), promise, is_kept: false });
        self.events.push_back(SctpEvent::Opened { channel: id, label, promise });
    }

    fn acknowledge(&mut self, id: u16) {
        let (ack, dcep) = (Bytes::from_static(&dcep::ACK_MESSAGE), PayloadProtocolIdentifier::Dcep);
        self.drive(|machine| machine.association.as_mut()?.1.stream(id).ok()?.write_sctp(&ack, dcep).ok());
    }

    /// What the OPEN says holds for both directions.
    fn keep_promise(&mut self, id: u16, promise: Promise) {
        let (kind, value) = match promise.limit {
            Limit::None => (ReliabilityType::Reliable, 0),
            Limit::Repeats(repeats) => (ReliabilityType::Rexmit, repeats),
            Limit::LifetimeMs(ms) => (ReliabilityType::Timed, ms),
        };
        self.drive(|machine| machine.association.as_mut()?.1.stream(id).ok()?.set_reliability_params(!promise.ordered, kind, value).ok());
    }
}

impl Machine {
    fn handle(&mut self, now: Instant, packet: Bytes) {
        match self.endpoint.handle(now, somewhere(), None, None, packet) {
            Some((handle, DatagramEvent::NewAssociation(association))) if self.association.is_none() => {
                self.association = Some((handle, association));
                self.endpoint.reject_new_associations();
            }
            Some((handle, DatagramEvent::AssociationEvent(event))) => {
                if let Some((_, association)) = self.association.as_mut().filter(|(known, _)| *known == handle) {
                    association.handle_event(event);
                }
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Event> {
        let (handle, association) = self.association.as_mut()?;
        while association.accept_stream().is_some() {}
        while let Some(event) = association.poll_endpoint_event() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                association.handle_event(event);
            }
        }
        association.poll()
    }
}

fn transport_config() -> TransportConfig {
    TransportConfig::default()
        .with_max_receive_buffer_size(WINDOW_LEN as u32)
        .with_max_receive_message_size(MESSAGE_LEN_MAX as u32)
        .with_max_send_message_size(MESSAGE_LEN_MAX as u32)
        .with_max_num_inbound_streams(STREAMS_MAX)
        .with_max_num_outbound_streams(STREAMS_MAX)
        .with_rto_initial_ms(RTO_INITIAL_MS)
        .with_rto_min_ms(RTO_MIN_MS)
        .with_rto_max_ms(RTO_MAX_MS)
        .with_local_port(SCTP_PORT)
        .with_remote_port(SCTP_PORT)
}

/// The crate wants an address; DTLS has the real one.
fn somewhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, SCTP_PORT))
}
