//! DTLS-SRTP handshakes (RFC 6347, RFC 5764): the only door to the crate webrtc-dtls.
//!
//! ```text
//! worker Event::Dtls -> DtlsPeer::deliver -> gate -> library (two tasks of its own) -> DtlsEvents: Send, then Established
//! ```
//!
//! DTLS 1.2, `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256` (as client also with an RSA certificate of the server), both ends with a
//! certificate, which is judged by the fingerprint of the SDP alone. The extended master secret is required (RFC 7627): the
//! library, as server, does not compare the client's Finished, and it is the session hash in the keys that binds both ends to
//! the same messages.
//!
//! As server we choose the SRTP profile: the hello is read before the library sees it, and the library is given the one best
//! common profile. As client the server chooses; see [`Dtls::with_profiles`].
//!
//! The library draws the explicit nonce of a GCM record at random instead of counting. A nonce that occurs twice under one key
//! would give its authentication key away; of the library's records only Finished and a few repeats of it leave the node, so two
//! of n agree with a chance of n^2 / 2^65. Everything after the handshake (application data, which carries SCTP, and the
//! close_notify) is sealed by [`data`], which counts. Media has other keys.

mod association;
mod counters;
mod data;
mod fingerprint;
mod gate;
mod message;
mod record;

use std::sync::{Arc, Once};
use std::time::Duration;

use pop_proto::control::{SrtpKeys, SrtpProfile};
use pop_proto::drop_reason::DropReason;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use self::association::Association;
use self::counters::Counters;
use self::gate::Gate;

pub use self::counters::{DtlsCounters, HANDSHAKE_BUCKETS_MS};
pub use self::data::DATA_LEN_MAX;
pub use self::fingerprint::{Fingerprint, FingerprintError};

/// First repeat of a lost flight. libwebrtc takes 50 ms and more (twice its round trip); below a long round trip it costs one
/// flight sent in vain.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(100);

/// From the start to the keys. A client that needs longer has given up or has its own retry.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A plaintext alert may be forged: it ends the handshake when the peer then says nothing for this long.
const ALERT_GRACE: Duration = Duration::from_secs(1);

/// Datagrams of application data that wait for the owner of a peer. A peer that keeps to the window of its data (256 KB) has so many
/// on their way at most, of which some are short: one that is dropped here has Chromium send the others again as well. They are 0.6 MB
/// when nobody reads them and all are as long as one may be.
pub const DATA_DATAGRAMS_MAX: usize = 512;

/// Events beside them. A handshake with repeats has about 20.
const EVENTS_RESERVED: usize = 32;
const EVENTS_MAX: usize = DATA_DATAGRAMS_MAX + EVENTS_RESERVED;

/// What we choose from as server and offer as client, best first: GCM-128 costs 164 ns a packet, SHA1_80 740. SHA1_80 stays in the offer
/// although a browser as server would take it: browsers are answered `passive`, so that we are the server, and those that insist on
/// being the server are encoders (ffmpeg) that have only SHA1_80 and would be turned away without it.
const PROFILES: [SrtpProfile; 3] = [SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm, SrtpProfile::Aes128CmSha1_80];

/// Makes aws-lc-rs the process's rustls provider. `main` calls it before anything else: the crates of this process compile rustls
/// with two providers, and the library panics when none is chosen. Calling it again does nothing.
pub fn install_crypto_provider() {
    static INSTALLED: Once = Once::new();
    // An error means that the process has chosen one already, which is as good.
    INSTALLED.call_once(|| drop(rustls::crypto::aws_lc_rs::default_provider().install_default()));
}

/// The node's DTLS identity: one ECDSA P-256 certificate per process.
#[derive(Clone)]
pub struct Certificate {
    library: webrtc_dtls::crypto::Certificate,
    fingerprint: Fingerprint,
}

impl Certificate {
    /// A new key with its self-signed certificate.
    ///
    /// # Errors
    /// [`DtlsError::Certificate`] when the system has no randomness.
    pub fn generate() -> Result<Certificate, DtlsError> {
        // The library unwraps what its generator answers.
        let generated = std::panic::catch_unwind(|| webrtc_dtls::crypto::Certificate::generate_self_signed(["pop".to_owned()]));
        let library = generated.ok().and_then(Result::ok).ok_or(DtlsError::Certificate)?;
        let der = library.certificate.first().ok_or(DtlsError::Certificate)?;
        Ok(Certificate { fingerprint: Fingerprint::of(der), library })
    }

    /// Its SHA-256, for the SDP.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
}

/// Which end begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `a=setup:passive`: the client's hello comes.
    Server,
    /// `a=setup:active`: our hello goes.
    Client,
}

impl Role {
    /// `server` or `client`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "client",
        }
    }

    const fn other(self) -> Role {
        match self {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        }
    }
}

/// Why an association could not begin, or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DtlsError {
    /// As many handshakes as the configuration allows are open.
    #[error("too many DTLS handshakes are open")]
    Full,
    /// The SDP gave none, so nobody could be recognised.
    #[error("no fingerprint to compare the peer's certificate with")]
    NoFingerprint,
    /// A certificate could not be generated.
    #[error("no DTLS certificate could be generated")]
    Certificate,
    /// The handshake took too long.
    #[error("the DTLS handshake did not end in time")]
    Timeout,
    /// The peer gave up, with this alert description (RFC 5246 section 7.2).
    #[error("the peer ended the DTLS handshake with alert {0}")]
    PeerAlert(u8),
    /// The client knows no DTLS 1.2.
    #[error("the client offers no DTLS 1.2")]
    Version,
    /// The client knows none of our cipher suites.
    #[error("the client offers no ECDHE-ECDSA with AES-128-GCM")]
    CipherSuite,
    /// The client does not know RFC 7627.
    #[error("the client offers no extended master secret")]
    ExtendedMasterSecret,
    /// The client does not do SRTP.
    #[error("the client offers no use_srtp")]
    NoUseSrtp,
    /// No common SRTP profile.
    #[error("the peer has none of our SRTP profiles")]
    NoSrtpProfile,
    /// The peer's certificate is not the one of the SDP.
    #[error("the peer's certificate does not have the fingerprint of the SDP")]
    Fingerprint,
    /// The client did not show a certificate.
    #[error("the client showed no certificate")]
    NoClientCertificate,
    /// Anything else that the library refuses, in its words.
    #[error("the DTLS handshake failed: {0}")]
    Handshake(Box<str>),
    /// The library panicked: a bug, which ended this association alone.
    #[error("the DTLS library panicked")]
    Panicked,
}

impl DtlsError {
    /// The value of the metric's `result` label.
    pub const fn label(&self) -> &'static str {
        match self {
            DtlsError::Full => "full",
            DtlsError::NoFingerprint => "no_fingerprint",
            DtlsError::Certificate => "certificate",
            DtlsError::Timeout => "timeout",
            DtlsError::PeerAlert(_) => "peer_alert",
            DtlsError::Version => "version",
            DtlsError::CipherSuite => "cipher_suite",
            DtlsError::ExtendedMasterSecret => "extended_master_secret",
            DtlsError::NoUseSrtp => "no_use_srtp",
            DtlsError::NoSrtpProfile => "no_srtp_profile",
            DtlsError::Fingerprint => "fingerprint",
            DtlsError::NoClientCertificate => "no_client_certificate",
            DtlsError::Handshake(_) => "handshake",
            DtlsError::Panicked => "panicked",
        }
    }
}

/// What all associations of a node share.
#[derive(Clone)]
pub struct Dtls(Arc<DtlsShared>);

struct DtlsShared {
    certificate: Certificate,
    profiles: &'static [SrtpProfile],
    half_open: Arc<Semaphore>,
    half_open_max: usize,
    counters: Counters,
}

impl Dtls {
    /// `half_open_max`: handshakes that may be open at once. Each takes about 28 KiB, and a hostile one at most about 150: 16 of
    /// unfinished messages, 32 of finished ones that wait, and the library's copies of these.
    pub fn new(certificate: Certificate, half_open_max: usize) -> Dtls {
        Dtls::with_profiles(certificate, half_open_max, &PROFILES)
    }

    /// The same with these SRTP profiles alone, best first: as server we choose one of them, as client we offer them.
    pub fn with_profiles(certificate: Certificate, half_open_max: usize, profiles: &'static [SrtpProfile]) -> Dtls {
        install_crypto_provider();
        let half_open_max = half_open_max.min(Semaphore::MAX_PERMITS);
        let half_open = Arc::new(Semaphore::new(half_open_max));
        Dtls(Arc::new(DtlsShared { certificate, profiles, half_open, half_open_max, counters: Counters::default() }))
    }

    /// The node's fingerprint.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.0.certificate.fingerprint()
    }

    /// Begins an association, on the runtime of the caller. From [`DtlsPeer::start`] on its time runs, and it counts as
    /// half-open until it is established, has failed or its peer is dropped. Until then it holds nothing that others could need:
    /// who signals and never comes keeps nobody out.
    ///
    /// # Errors
    /// [`DtlsError::NoFingerprint`], and [`DtlsError::Full`] when another handshake could not start now. Who starts in a full
    /// moment hears the same by [`DtlsEvent::Failed`].
    pub fn open(&self, role: Role, remote: Vec<Fingerprint>) -> Result<(DtlsPeer, DtlsEvents), DtlsError> {
        if remote.is_empty() {
            return Err(DtlsError::NoFingerprint);
        }
        if self.0.half_open.available_permits() == 0 {
            return Err(DtlsError::Full);
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let association = Arc::new(Association::new(self.0.clone(), role, events.clone()));
        let (started, starts) = watch::channel(false);
        tokio::spawn(association::run(Arc::clone(&association), remote, starts, events));
        Ok((DtlsPeer { association: Arc::clone(&association), started }, DtlsEvents { receiver, association }))
    }

    /// What has happened so far.
    pub fn counters(&self) -> DtlsCounters {
        self.0.counters.snapshot(self.0.half_open_max - self.0.half_open.available_permits())
    }
}

/// One association. Dropping it ends the association: an established peer is told so, and no task is left behind.
pub struct DtlsPeer {
    association: Arc<Association>,
    /// Whether the time runs; its end tells the task that the peer is gone.
    started: watch::Sender<bool>,
}

impl DtlsPeer {
    /// A datagram of the peer's validated address. Never blocks.
    ///
    /// # Errors
    /// Why nothing of it was taken.
    pub fn deliver(&self, datagram: &[u8]) -> Result<(), DropReason> {
        self.start();
        self.association.deliver(Instant::now(), datagram)
    }

    /// ICE has validated a path: a client sends its hello, a server's time begins to run. Calling it again does nothing.
    pub fn start(&self) {
        self.started.send_if_modified(|started| !std::mem::replace(started, true));
    }
}

/// What an association does.
#[derive(Debug)]
pub enum DtlsEvent {
    /// Send this to the peer: at most [`pop_proto::control::DTLS_DATAGRAM_LEN_MAX`] bytes.
    Send(Box<[u8]>),
    /// The peer's certificate is the one of the SDP, and these are the keys.
    Established {
        /// For both directions.
        keys: Box<SrtpKeys>,
        /// The fingerprint that the peer's certificate has.
        remote: Fingerprint,
    },
    /// Application data of the peer; only for who has called [`DtlsEvents::take_data`].
    Data(Box<[u8]>),
    /// The end, with no keys or (only [`DtlsError::Panicked`]) after them.
    Failed(DtlsError),
    /// The end: the peer's authenticated close_notify or fatal alert.
    Closed,
}

/// The events of one association, in order.
pub struct DtlsEvents {
    receiver: mpsc::Receiver<DtlsEvent>,
    association: Arc<Association>,
}

impl DtlsEvents {
    /// The next one; `None` after the end.
    pub async fn recv(&mut self) -> Option<DtlsEvent> {
        self.receiver.recv().await
    }

    /// From now on application data is taken. Until then it is refused.
    pub fn take_data(&self) {
        self.association.take_data();
    }

    /// A datagram that carries `data` to the peer, at most [`DATA_LEN_MAX`] bytes; `None` before the handshake is done, when it is
    /// too long, and when the key has sealed all that it may.
    pub fn seal_data(&self, data: &[u8]) -> Option<Box<[u8]>> {
        self.association.seal_data(data)
    }
}
