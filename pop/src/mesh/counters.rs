//! What the mesh counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rustls::CertificateError;

use super::revoked::Listed;

/// Why a connection, or a link, was not taken or ended. Each is counted and written to the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It showed no certificate.
    NoCertificate,
    /// Its certificate is of another CA.
    ForeignCa,
    /// Its certificate has expired, or is not valid yet.
    Expired,
    /// Its certificate, or its Hello, names another node than it should.
    WrongName,
    /// It spoke no TLS 1.3, or what came is no message of ours.
    Malformed,
    /// A message is longer than one may be.
    TooLarge,
    /// It speaks no schema that this node speaks.
    Version,
    /// It refused our certificate.
    RefusesUs,
    /// It hung up before it had proved itself.
    Closed,
    /// It did not prove itself in time.
    Timeout,
    /// Too many have not proved themselves, and it had waited longest.
    Crowded,
    /// Another start of a node that has a link.
    Duplicate,
    /// The node has as many peers as it may.
    Full,
    /// Its certificate was taken back.
    Revoked,
}

impl Refusal {
    /// All, in the order of their counters.
    pub const ALL: [Refusal; 14] = [
        Refusal::NoCertificate,
        Refusal::ForeignCa,
        Refusal::Expired,
        Refusal::WrongName,
        Refusal::Malformed,
        Refusal::TooLarge,
        Refusal::Version,
        Refusal::RefusesUs,
        Refusal::Closed,
        Refusal::Timeout,
        Refusal::Crowded,
        Refusal::Duplicate,
        Refusal::Full,
        Refusal::Revoked,
    ];

    /// As metrics and the audit log say it.
    pub const fn label(self) -> &'static str {
        match self {
            Refusal::NoCertificate => "no_certificate",
            Refusal::ForeignCa => "foreign_ca",
            Refusal::Expired => "expired",
            Refusal::WrongName => "wrong_name",
            Refusal::Malformed => "malformed",
            Refusal::TooLarge => "too_large",
            Refusal::Version => "version",
            Refusal::RefusesUs => "refuses_us",
            Refusal::Closed => "closed",
            Refusal::Timeout => "timeout",
            Refusal::Crowded => "crowded",
            Refusal::Duplicate => "duplicate",
            Refusal::Full => "full",
            Refusal::Revoked => "revoked",
        }
    }

    pub(super) fn of_tls(error: &rustls::Error) -> Refusal {
        use CertificateError as Wrong;
        match error {
            rustls::Error::NoCertificatesPresented => Refusal::NoCertificate,
            rustls::Error::InvalidCertificate(wrong) => match wrong {
                Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => Refusal::Expired,
                Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => Refusal::WrongName,
                // Another CA of the same name has another key.
                Wrong::UnknownIssuer | Wrong::BadSignature => Refusal::ForeignCa,
                _ => Refusal::Malformed,
            },
            rustls::Error::AlertReceived(_) => Refusal::RefusesUs,
            _ => Refusal::Malformed,
        }
    }
}

/// Why what a node says over a link that is up counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It is no node of this PoP, as far as the bus has told.
    Foreign,
    /// Too much waits for this node's rooms; it is told to ask for what it has missed.
    Full,
}

impl Unheard {
    /// All, in the order of their counters.
    pub const ALL: [Unheard; 2] = [Unheard::Foreign, Unheard::Full];

    /// As metrics say it.
    pub const fn label(self) -> &'static str {
        match self {
            Unheard::Foreign => "foreign",
            Unheard::Full => "full",
        }
    }
}

/// What became of a client's request that another node has, or of one that this node has for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// It was carried to the node that has it, and answered there.
    Carried,
    /// The other node cannot be reached.
    Unreachable,
    /// The other node answers its own clients alone.
    Unsupported,
    /// The other node did not answer.
    Unanswered,
    /// Another node carried it here.
    Answered,
    /// Another node would have carried it here, and there was no place.
    Full,
}

impl Carry {
    /// All, in the order of their counters.
    pub const ALL: [Carry; 6] = [Carry::Carried, Carry::Unreachable, Carry::Unsupported, Carry::Unanswered, Carry::Answered, Carry::Full];

    /// As metrics say it.
    pub const fn label(self) -> &'static str {
        match self {
            Carry::Carried => "carried",
            Carry::Unreachable => "unreachable",
            Carry::Unsupported => "unsupported",
            Carry::Unanswered => "unanswered",
            Carry::Answered => "answered",
            Carry::Full => "full",
        }
    }
}

/// What became of a transit: a control link of two other nodes over this one, or one of this node's over another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transit {
    /// This node carries it.
    Carried,
    /// This node has no direct link with whom it should go to.
    Unknown,
    /// It should go to this very node, or to who asks.
    Myself,
    /// Who asks has no link with this node.
    Stranger,
    /// There are as many as there may be, in all or for who asks.
    Full,
    /// The other node was not reached, or did not take it.
    Unreachable,
    /// It was brought here, and taken.
    Taken,
    /// It was brought here, and what is in it is neither a link nor of whom it should be.
    Loop,
    /// Its first words are none.
    Malformed,
}

impl Transit {
    /// All, in the order of their counters.
    pub const ALL: [Transit; 9] = [
        Transit::Carried,
        Transit::Unknown,
        Transit::Myself,
        Transit::Stranger,
        Transit::Full,
        Transit::Unreachable,
        Transit::Taken,
        Transit::Loop,
        Transit::Malformed,
    ];

    /// As metrics and the audit log say it.
    pub const fn label(self) -> &'static str {
        match self {
            Transit::Carried => "carried",
            Transit::Unknown => "unknown",
            Transit::Myself => "myself",
            Transit::Stranger => "stranger",
            Transit::Full => "full",
            Transit::Unreachable => "unreachable",
            Transit::Taken => "taken",
            Transit::Loop => "loop",
            Transit::Malformed => "malformed",
        }
    }
}

/// Since the start of the node.
#[derive(Debug, Default)]
pub(super) struct Counters {
    refused: [AtomicU64; Refusal::ALL.len()],
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    unheard: [AtomicU64; Unheard::ALL.len()],
    rekeys: AtomicU64,
    carried: [AtomicU64; Carry::ALL.len()],
    joined: AtomicI64,
    transits: [AtomicU64; Transit::ALL.len()],
    transit_bytes: AtomicU64,
    moved_direct: AtomicU64,
    moved_over: AtomicU64,
    listed: [AtomicU64; Listed::ALL.len()],
}

/// What the mesh has done, and what is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshCounters {
    /// Links that are up.
    pub links: usize,
    /// Connections that were refused, and links that ended for a fault of the other end, by reason.
    pub refused: [(Refusal, u64); Refusal::ALL.len()],
    /// Control messages that came, those of liveness included.
    pub messages_in: u64,
    /// Control messages that were written.
    pub messages_out: u64,
    /// Of those that came, the ones that counted for nothing, by reason.
    pub unheard: [(Unheard, u64); Unheard::ALL.len()],
    /// New generations of keys.
    pub rekeys: u64,
    /// Requests of clients that this node carried elsewhere, or answered for another, by what became of them.
    pub carried: [(Carry, u64); Carry::ALL.len()],
    /// Sockets of clients that go through this node to another.
    pub joined: i64,
    /// Control links of others that this node carries now.
    pub transits: usize,
    /// What became of those that were asked for or brought here.
    pub transited: [(Transit, u64); Transit::ALL.len()],
    /// Bytes of them, both ways.
    pub transit_bytes: u64,
    /// Links of this node that went on over a direct connection, and over another node.
    pub moved: [(&'static str, u64); 2],
    /// Lists of certificates that were taken back, by what became of them.
    pub listed: [(Listed, u64); Listed::ALL.len()],
    /// Certificates that were taken back, as far as this node knows.
    pub revoked: usize,
    /// Until when this node's certificate is valid, in Unix seconds.
    pub expires_at_s: u64,
}

impl MeshCounters {
    /// Of one reason.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].1
    }

    /// Of one outcome.
    pub fn transited(&self, outcome: Transit) -> u64 {
        self.transited[outcome as usize].1
    }
}

impl Counters {
    pub(super) fn refuse(&self, reason: Refusal) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn message_in(&self) {
        self.messages_in.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn message_out(&self) {
        self.messages_out.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ignore(&self, why: Unheard) {
        self.unheard[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn rekey(&self) {
        self.rekeys.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn carry(&self, outcome: Carry) {
        self.carried[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn joined(&self, change: i64) {
        self.joined.fetch_add(change, Ordering::Relaxed);
    }

    pub(super) fn transit(&self, outcome: Transit) {
        self.transits[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn transit_bytes(&self, len: usize) {
        self.transit_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(super) fn listed(&self, outcome: Listed) {
        self.listed[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A link went on over another connection.
    pub(super) fn moved(&self, is_direct: bool) {
        let counter = if is_direct { &self.moved_direct } else { &self.moved_over };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, links: usize, transits: usize, revoked: usize, expires_at_s: u64) -> MeshCounters {
        MeshCounters {
            links,
            refused: Refusal::ALL.map(|reason| (reason, self.refused[reason as usize].load(Ordering::Relaxed))),
            messages_in: self.messages_in.load(Ordering::Relaxed),
            messages_out: self.messages_out.load(Ordering::Relaxed),
            unheard: Unheard::ALL.map(|why| (why, self.unheard[why as usize].load(Ordering::Relaxed))),
            rekeys: self.rekeys.load(Ordering::Relaxed),
            carried: Carry::ALL.map(|outcome| (outcome, self.carried[outcome as usize].load(Ordering::Relaxed))),
            joined: self.joined.load(Ordering::Relaxed),
            transits,
            transited: Transit::ALL.map(|outcome| (outcome, self.transits[outcome as usize].load(Ordering::Relaxed))),
            transit_bytes: self.transit_bytes.load(Ordering::Relaxed),
            listed: Listed::ALL.map(|outcome| (outcome, self.listed[outcome as usize].load(Ordering::Relaxed))),
            revoked,
            moved: [("direct", self.moved_direct.load(Ordering::Relaxed)), ("over", self.moved_over.load(Ordering::Relaxed))],
            expires_at_s,
        }
    }
}
