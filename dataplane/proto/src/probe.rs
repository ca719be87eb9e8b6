//! Latency probes of strangers: who is answered, with what, and never with more than they sent.
//!
//! ```text
//! 3478   plain Binding --> limiter --> XOR-MAPPED-ADDRESS, 32 or 44 bytes      (service thread)
//! 862    STAMP --------> limiter --> reply as long as the request             (service thread)
//! media  ICE check for the public ufrag --> limiter --> integrity --> answer  (workers)
//! ```
//! Nothing here keeps state of a sender but its prefix's rate.

mod limiter;

use std::net::{IpAddr, SocketAddr};

use pop_schemas::Time;

pub use limiter::{HashSeed, LIMITER_LEN, PrefixLimiter, ProbeRates};

use crate::DropReason;
use crate::wire::stamp::{self, Reflection};
use crate::wire::stun::{self, Kind, Message, PLAIN_RESPONSE_LEN_MAX, RESPONSE_LEN_MAX};

/// What a reflector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReflectorKind {
    /// Plain STUN Binding (RFC 8489).
    Stun,
    /// STAMP and TWAMP-Light, unauthenticated (RFC 8762).
    Stamp,
}

impl ReflectorKind {
    /// Both, in the order of their discriminants.
    pub const ALL: [ReflectorKind; 2] = [ReflectorKind::Stun, ReflectorKind::Stamp];

    /// The `kind` label of `pop_probe_requests_total`, and the key of `[probe]`.
    pub const fn name(self) -> &'static str {
        match self {
            ReflectorKind::Stun => "stun",
            ReflectorKind::Stamp => "stamp",
        }
    }

    /// The port where clients look for it.
    pub const fn port(self) -> u16 {
        match self {
            ReflectorKind::Stun => 3_478,
            ReflectorKind::Stamp => stamp::PORT,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Answered.
    Answered,
    /// Its prefix, or all together, sent more than the rate.
    Limited,
    /// No request of this kind, a wrong integrity, or a source that cannot be a client.
    Refused,
}

impl ProbeResult {
    /// All, in the order of their discriminants.
    pub const ALL: [ProbeResult; 3] = [ProbeResult::Answered, ProbeResult::Limited, ProbeResult::Refused];

    /// The `result` label of `pop_probe_requests_total`.
    pub const fn name(self) -> &'static str {
        match self {
            ProbeResult::Answered => "answered",
            ProbeResult::Limited => "limited",
            ProbeResult::Refused => "refused",
        }
    }

    /// What a request was that ended for `reason`.
    pub fn of(reason: DropReason) -> ProbeResult {
        if reason == DropReason::ProbeLimited { ProbeResult::Limited } else { ProbeResult::Refused }
    }
}

/// A datagram that reached a reflector socket.
#[derive(Clone, Copy, Debug)]
pub struct ProbeRequest<'a> {
    /// Its sender, as far as UDP tells.
    pub from: SocketAddr,
    /// The socket's port.
    pub local_port: u16,
    /// The datagram.
    pub bytes: &'a [u8],
}

/// Answers the requests that reach one reflector socket.
pub struct Reflector {
    kind: ReflectorKind,
    limiter: PrefixLimiter,
}

impl Reflector {
    /// Takes all its memory.
    pub fn new(kind: ReflectorKind, seed: HashSeed) -> Reflector {
        Reflector { kind, limiter: PrefixLimiter::new(seed) }
    }

    /// Writes the answer to `request` into `out` and returns its length.
    ///
    /// # Errors
    ///
    /// Why there is no answer; [`ProbeResult::of`] says what to count it as.
    pub fn handle_request(
        &mut self,
        now: Time,
        request: &ProbeRequest<'_>,
        reflection: &Reflection,
        rates: ProbeRates,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let ProbeRequest { from, local_port, bytes } = *request;
        // From such a port comes another reflector's reply, or a forged request that would make two reflectors talk forever.
        if !is_client(from) || from.port() == local_port || from.port() == self.kind.port() {
            return Err(DropReason::ProbeSource);
        }
        // Before the parser: what a flood costs is bounded by the rate.
        if !self.limiter.admit(now, from.ip(), rates) {
            return Err(DropReason::ProbeLimited);
        }
        match self.kind {
            ReflectorKind::Stun => answer_binding(from, bytes, out),
            ReflectorKind::Stamp => stamp::write_reply(bytes, reflection, out),
        }
    }
}

/// Whether an answer to `address` reaches one host and nobody else.
fn is_client(address: SocketAddr) -> bool {
    let unicast = match address.ip().to_canonical() {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_multicast() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified(),
    };
    unicast && address.port() != 0
}

fn answer_binding(from: SocketAddr, request: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
    let message = Message::parse(request)?;
    if message.kind() != Kind::BindingRequest {
        return Err(DropReason::StunUnexpected);
    }
    let out: &mut [u8; PLAIN_RESPONSE_LEN_MAX] = out.first_chunk_mut().ok_or(DropReason::TooLarge)?;
    Ok(match message.unknown_attributes().as_slice() {
        [] => stun::write_plain_success(message.transaction(), from, out),
        unknown => stun::write_plain_unknown_attributes(message.transaction(), unknown, out),
    })
}

/// Name and password of the ICE probe: public, published by the node, the same for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCredentials {
    /// Of 16 characters: shorter ones could make a check shorter than its answer over IPv6.
    pub ufrag: Box<str>,
    /// Of 22 characters or more (RFC 8445 section 5.3).
    pub pwd: Box<str>,
}

/// Answers connectivity checks for the public ufrag: no transport, no validated path, only a round trip.
pub struct IceProbe {
    credentials: ProbeCredentials,
    rates: ProbeRates,
    limiter: PrefixLimiter,
}

impl IceProbe {
    /// Takes all its memory.
    pub fn new(credentials: ProbeCredentials, rates: ProbeRates, seed: HashSeed) -> IceProbe {
        IceProbe { credentials, rates, limiter: PrefixLimiter::new(seed) }
    }

    /// Whether a check for `ufrag` is a probe.
    pub fn is_probe(&self, ufrag: &[u8]) -> bool {
        ufrag == self.credentials.ufrag.as_bytes()
    }

    /// Changes the rates from now on.
    pub fn set_rates(&mut self, rates: ProbeRates) {
        self.rates = rates;
    }

    /// Writes the answer to the `check_len` bytes of `check` and returns its length.
    ///
    /// # Errors
    ///
    /// Why there is no answer; [`ProbeResult::of`] says what to count it as.
    pub fn handle_check(
        &mut self,
        now: Time,
        from: SocketAddr,
        check: &Message<'_>,
        check_len: usize,
        response: &mut [u8; RESPONSE_LEN_MAX],
    ) -> Result<usize, DropReason> {
        if check.kind() != Kind::BindingRequest {
            return Err(DropReason::StunUnexpected);
        }
        // Before the HMAC: what a flood costs is bounded by the rate, and the password is no secret.
        if !self.limiter.admit(now, from.ip(), self.rates) {
            return Err(DropReason::ProbeLimited);
        }
        let password = self.credentials.pwd.as_bytes();
        if !check.is_authentic(password) {
            return Err(DropReason::StunIntegrity);
        }
        // Roles mean nothing here: there is no pair to nominate.
        let len = stun::write_success(check.transaction(), from, password, response);
        if len > check_len { Err(DropReason::ProbeShort) } else { Ok(len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stamp::{ErrorEstimate, NtpTime};
    use crate::wire::stun::{BindingRequest, TransactionId, write_request};

    const RATES: ProbeRates = ProbeRates { per_prefix: 100, total: 1_000 };
    const SEED: HashSeed = [0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835, 7, 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9, 11];
    const PASSWORD: &[u8] = b"0123456789012345678901";
    const REFLECTION: Reflection = Reflection { received: NtpTime(1), transmitted: NtpTime(2), error: ErrorEstimate(1), ttl: 64 };

    fn client(address: &str) -> SocketAddr {
        address.parse().expect("an address")
    }

    fn binding(attributes: &[u8]) -> Vec<u8> {
        let length = (attributes.len() as u16).to_be_bytes();
        [&[0x00, 0x01, length[0], length[1], 0x21, 0x12, 0xa4, 0x42][..], &[9; 12], attributes].concat()
    }

    fn reflect(kind: ReflectorKind, from: &str, request: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut out = [0; stamp::REQUEST_LEN_MAX];
        let mut reflector = Reflector::new(kind, SEED);
        let request = ProbeRequest { from: client(from), local_port: 4_000, bytes: request };
        let len = reflector.handle_request(Time::ZERO, &request, &REFLECTION, RATES, &mut out)?;
        Ok(out[..len].to_vec())
    }

    #[test]
    fn a_plain_binding_gets_its_address_in_at_most_44_bytes() {
        for (from, len) in [("192.0.2.1:5", 32), ("[2001:db8::1]:5", 44)] {
            let answer = reflect(ReflectorKind::Stun, from, &binding(&[])).expect("it is a Binding request");
            assert_eq!(answer.len(), len);
            let message = Message::parse(&answer).expect("our answer is well formed");
            assert_eq!((message.kind(), message.transaction()), (Kind::BindingSuccess, TransactionId([9; 12])));
            assert_eq!(message.mapped_address(), Some(client(from)));
        }
    }

    #[test]
    fn attributes_that_must_be_understood_are_named_in_at_most_44_bytes() {
        // CHANGE-REQUEST of RFC 5780, and more than fit.
        let unknown = [[0x00, 0x03, 0, 4, 0, 0, 0, 6]; 12].concat();
        let answer = reflect(ReflectorKind::Stun, "192.0.2.1:5", &binding(&unknown)).expect("it is a Binding request");
        assert!(answer.len() <= 44);
        assert_eq!(Message::parse(&answer).expect("our answer is well formed").error_code(), Some(420));
    }

    #[test]
    fn answers_indications_and_garbage_are_not_requests() {
        let answer = reflect(ReflectorKind::Stun, "192.0.2.1:5", &binding(&[])).expect("it is a Binding request");
        assert_eq!(reflect(ReflectorKind::Stun, "192.0.2.1:5", &answer), Err(DropReason::StunUnexpected));
        assert_eq!(reflect(ReflectorKind::Stun, "192.0.2.1:5", &[0; 20]), Err(DropReason::StunMalformed));
        assert_eq!(reflect(ReflectorKind::Stamp, "192.0.2.1:5", &[0; 40]), Err(DropReason::StampMalformed));
    }

    #[test]
    fn reflectors_do_not_answer_each_other_nor_a_crowd() {
        let request = [0; stamp::PACKET_LEN];
        assert!(reflect(ReflectorKind::Stamp, "192.0.2.1:5", &request).is_ok());
        for from in ["192.0.2.1:862", "192.0.2.1:4000", "192.0.2.1:0", "255.255.255.255:5", "224.0.0.1:5", "0.0.0.0:5", "[ff02::1]:5"] {
            assert_eq!(reflect(ReflectorKind::Stamp, from, &request), Err(DropReason::ProbeSource), "{from}");
        }
    }

    fn check(username: &str, password: &[u8]) -> Vec<u8> {
        let request = BindingRequest { transaction: TransactionId([5; 12]), username, priority: None, role: None, use_candidate: false };
        let mut out = vec![0; 256];
        let len = write_request(&request, password, &mut out).expect("it fits");
        out.truncate(len);
        out
    }

    fn ice_probe() -> IceProbe {
        let pwd = str::from_utf8(PASSWORD).expect("it is text").into();
        IceProbe::new(ProbeCredentials { ufrag: "probe-0123456789".into(), pwd }, RATES, SEED)
    }

    fn probe(ice: &mut IceProbe, from: &str, bytes: &[u8]) -> Result<usize, DropReason> {
        let message = Message::parse(bytes)?;
        ice.handle_check(Time::ZERO, client(from), &message, bytes.len(), &mut [0; RESPONSE_LEN_MAX])
    }

    #[test]
    fn the_shortest_check_is_no_shorter_than_its_answer() {
        let bytes = check("probe-0123456789:", PASSWORD);
        for from in ["192.0.2.1:5", "[2001:db8::1]:5"] {
            let len = probe(&mut ice_probe(), from, &bytes).expect("it is authentic");
            assert!(len <= bytes.len(), "{len} bytes to {} of {from}", bytes.len());
        }
    }

    #[test]
    fn a_probe_is_limited_before_its_integrity_is_looked_at() {
        let (right, wrong) = (check("probe-0123456789:a", PASSWORD), check("probe-0123456789:a", b"wrong"));
        let mut ice = ice_probe();
        assert!(ice.is_probe(b"probe-0123456789") && !ice.is_probe(b"probe") && !ice.is_probe(b""));
        assert!(probe(&mut ice, "192.0.2.1:5", &right).is_ok());
        let results: Vec<_> = (0..200).map(|_| probe(&mut ice, "192.0.2.1:5", &wrong)).collect();
        assert_eq!(results[0], Err(DropReason::StunIntegrity));
        assert_eq!(results[199], Err(DropReason::ProbeLimited));
        assert_eq!(probe(&mut ice, "192.0.2.1:5", &right), Err(DropReason::ProbeLimited));
        assert!(probe(&mut ice, "198.51.100.1:5", &right).is_ok(), "another prefix is another's");
    }
}
