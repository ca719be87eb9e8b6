//! One association: the task that drives the library and tells how it ended.

use std::any::Any;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use pop_proto::control::{DTLS_DATAGRAM_LEN_MAX, MasterKey, SrtpKeys, SrtpProfile};
use pop_proto::drop_reason::DropReason;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use webrtc_dtls::cipher_suite::CipherSuiteId;
use webrtc_dtls::config::{ClientAuthType, Config, ExtendedMasterSecretType};
use webrtc_dtls::conn::DTLSConn;
use webrtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use webrtc_util::KeyingMaterialExporter;
use zeroize::Zeroizing;

use super::data::Secrets;
use super::gate::Caused;
use super::record::{ALERT, APPLICATION_DATA};
use super::{
    ALERT_GRACE, DtlsError, DtlsEvent, DtlsShared, EVENTS_RESERVED, FLIGHT_INTERVAL, Fingerprint, Gate, HANDSHAKE_TIMEOUT, Role, record,
};

/// RFC 5764 section 4.2.
const EXPORTER_LABEL: &str = "EXTRACTOR-dtls_srtp";

/// Level warning, description close_notify (RFC 5246 section 7.2).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The library's tasks end at once when its connection is dropped.
const LIBRARY_END_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// What the owner's side and the library's side share.
pub(super) struct Association {
    dtls: Arc<DtlsShared>,
    role: Role,
    inner: Mutex<Inner>,
    /// The library has something to read.
    ready: Notify,
    /// The hello is whole, or the peer sent an alert.
    news: Notify,
    /// The library has let go of its connection: both of its tasks have ended.
    library_ended: Notify,
}

struct Inner {
    gate: Gate,
    /// Gone after the end.
    events: Option<mpsc::Sender<DtlsEvent>>,
}

impl Association {
    pub(super) fn new(dtls: Arc<DtlsShared>, role: Role, events: mpsc::Sender<DtlsEvent>) -> Association {
        Association {
            dtls,
            role,
            inner: Mutex::new(Inner { gate: Gate::new(role, Instant::now()), events: Some(events) }),
            ready: Notify::new(),
            news: Notify::new(),
            library_ended: Notify::new(),
        }
    }

    pub(super) fn deliver(&self, now: Instant, datagram: &[u8]) -> Result<(), DropReason> {
        let mut inner = self.lock();
        if inner.events.is_none() {
            return Err(DropReason::DtlsUnexpected);
        }
        let mut caused = Caused::default();
        let mut verdict = inner.gate.handle_datagram(now, datagram, &mut caused);
        for datagram in caused.repeat {
            self.send(&inner, datagram);
        }
        for data in caused.data {
            verdict = verdict.and(hand_over(&inner, data));
        }
        drop(inner);
        if caused.ready {
            self.ready.notify_one();
        }
        if caused.news {
            self.news.notify_one();
        }
        verdict
    }

    pub(super) fn take_data(&self) {
        self.lock().gate.take_data();
    }

    pub(super) fn seal_data(&self, data: &[u8]) -> Option<Box<[u8]>> {
        self.lock().gate.seal(APPLICATION_DATA, data)
    }

    /// A datagram that finds the queue full is lost, as on any network.
    fn send(&self, inner: &Inner, datagram: Box<[u8]>) {
        let sent = inner.events.as_ref().is_some_and(|events| events.try_send(DtlsEvent::Send(datagram)).is_ok());
        if !sent {
            self.dtls.counters.count_lost();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the gate does not panic: it is fuzzed with every mutation of a handshake")
    }
}

/// Application data never takes the last places, which are for the handshake's end and the association's.
fn hand_over(inner: &Inner, data: Box<[u8]>) -> Result<(), DropReason> {
    let events = inner.events.as_ref().filter(|events| events.capacity() > EVENTS_RESERVED).ok_or(DropReason::DtlsQueueFull)?;
    events.try_send(DtlsEvent::Data(data)).map_err(|_| DropReason::DtlsQueueFull)
}

/// How an association ends.
enum End {
    /// The owner dropped its peer.
    Dropped,
    Failed(DtlsError),
    Closed,
}

/// Drives an association from its start to its end.
pub(super) async fn run(
    association: Arc<Association>,
    remote: Vec<Fingerprint>,
    mut starts: watch::Receiver<bool>,
    events: mpsc::Sender<DtlsEvent>,
) {
    let end = drive(&association, remote, &mut starts, &events).await;
    association.lock().events = None;
    let last = match end {
        End::Dropped => return,
        End::Failed(error) => DtlsEvent::Failed(error),
        End::Closed => DtlsEvent::Closed,
    };
    tokio::select! {
        // An error means that nobody listens any longer.
        _ = events.send(last) => {}
        () = dropped(&mut starts) => {}
    }
}

async fn drive(
    association: &Arc<Association>,
    remote: Vec<Fingerprint>,
    starts: &mut watch::Receiver<bool>,
    events: &mpsc::Sender<DtlsEvent>,
) -> End {
    let (role, counters) = (association.role, &association.dtls.counters);
    if starts.wait_for(|started| *started).await.is_err() {
        counters.count_abandoned(role);
        return End::Dropped;
    }
    let Ok(permit) = Arc::clone(&association.dtls.half_open).try_acquire_owned() else {
        counters.count_failed(role, &DtlsError::Full);
        return End::Failed(DtlsError::Full);
    };
    let started_at = Instant::now();
    let handshake = tokio::select! {
        biased;
        () = dropped(starts) => {
            counters.count_abandoned(role);
            return End::Dropped;
        }
        error = watch_handshake(association, started_at + HANDSHAKE_TIMEOUT) => Err(error),
        handshake = shake_hands(association, remote) => handshake,
    };
    drop(permit);
    let Established { connection, keys, remote } = match handshake {
        Ok(established) => established,
        Err(error) => {
            counters.count_failed(role, &error);
            if error == DtlsError::Panicked {
                counters.count_panic();
            }
            return End::Failed(error);
        }
    };
    counters.count_established(role, started_at.elapsed());
    let told = tokio::select! {
        told = events.send(DtlsEvent::Established { keys, remote }) => told.is_ok(),
        () = dropped(starts) => false,
    };
    let read = tokio::select! {
        biased;
        () = dropped(starts) => None,
        read = drain(&connection), if told => Some(read),
    };
    let Some(read) = read else {
        // Best effort: the peer may be gone as well.
        let _ = timeout(LIBRARY_END_TIMEOUT, catch_panic(connection.close())).await;
        return End::Dropped;
    };
    drop(connection);
    let _ = timeout(LIBRARY_END_TIMEOUT, association.library_ended.notified()).await;
    // The library answers every alert with an alert before its reader ends; a reader that ended without one has panicked.
    if read.is_ok() && association.lock().gate.alert_sent() {
        return End::Closed;
    }
    counters.count_panic();
    End::Failed(DtlsError::Panicked)
}

/// Ends when the handshake may not go on.
async fn watch_handshake(association: &Association, deadline: Instant) -> DtlsError {
    let mut silent_at = None;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return DtlsError::Timeout,
            () = sleep_until(silent_at.unwrap_or(deadline)), if silent_at.is_some() => {
                if let Some(description) = association.lock().gate.alert() {
                    return DtlsError::PeerAlert(description);
                }
                silent_at = None;
            }
            () = association.news.notified() => {
                if association.lock().gate.alert().is_some() && silent_at.is_none() {
                    silent_at = Some(Instant::now() + ALERT_GRACE);
                }
            }
        }
    }
}

/// What a handshake comes to.
struct Established {
    connection: DTLSConn,
    keys: Box<SrtpKeys>,
    remote: Fingerprint,
}

/// The handshake, with the keys of a peer that is the right one.
async fn shake_hands(association: &Arc<Association>, remote: Vec<Fingerprint>) -> Result<Established, DtlsError> {
    let role = association.role;
    let profiles = match role {
        Role::Client => association.dtls.profiles.to_vec(),
        Role::Server => match choose_profile(association).await {
            Ok(profile) => vec![profile],
            Err((error, alert)) => {
                let inner = association.lock();
                association.send(&inner, record::build_fatal_alert(alert));
                return Err(error);
            }
        },
    };
    let stranger = Arc::new(AtomicBool::new(false));
    let config = build_config(association, &profiles, remote.clone(), Arc::clone(&stranger));
    let connection = Arc::new(LibraryConn { association: Arc::clone(association) });
    let made = catch_panic(DTLSConn::new(connection, config, role == Role::Client, None)).await;
    let connection = match made {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) if stranger.load(Relaxed) => return Err(DtlsError::Fingerprint),
        Ok(Err(error)) => return Err(explain(association, error).await),
        Err(Panicked) => return Err(DtlsError::Panicked),
    };
    let (keys, remote) = export_keys(&connection, role, &profiles, &remote).await?;
    let secrets = export_secrets(&connection).await?;
    if !association.lock().gate.install(&secrets) {
        return Err(DtlsError::Handshake("no keys for application data".into()));
    }
    Ok(Established { connection, keys, remote })
}

/// The best profile of the client's hello, or why there is none and the alert that says so.
async fn choose_profile(association: &Association) -> Result<SrtpProfile, (DtlsError, u8)> {
    const HANDSHAKE_FAILURE: u8 = 40;
    const PROTOCOL_VERSION: u8 = 70;
    const INSUFFICIENT_SECURITY: u8 = 71;
    let hello = loop {
        // `news` wakes one waiter, and the watch of the handshake waits as well: the library's bell rings for the hello too.
        if let Some(hello) = association.lock().gate.client_hello() {
            break hello.clone();
        }
        association.ready.notified().await;
    };
    // The bell was for the library.
    association.ready.notify_one();
    if !hello.dtls_1_2 {
        return Err((DtlsError::Version, PROTOCOL_VERSION));
    }
    if !hello.cipher_suite {
        return Err((DtlsError::CipherSuite, HANDSHAKE_FAILURE));
    }
    if !hello.extended_master_secret {
        return Err((DtlsError::ExtendedMasterSecret, INSUFFICIENT_SECURITY));
    }
    let Some(offered) = hello.srtp_profiles else {
        return Err((DtlsError::NoUseSrtp, HANDSHAKE_FAILURE));
    };
    let mut ours = association.dtls.profiles.iter().copied();
    ours.find(|profile| offered.contains(profile)).ok_or((DtlsError::NoSrtpProfile, HANDSHAKE_FAILURE))
}

fn build_config(association: &Association, profiles: &[SrtpProfile], remote: Vec<Fingerprint>, stranger: Arc<AtomicBool>) -> Config {
    // CBC panics on short records and CCM is slow; ChaCha20 is no one's only suite.
    let mut cipher_suites = vec![CipherSuiteId::Tls_Ecdhe_Ecdsa_With_Aes_128_Gcm_Sha256];
    if association.role == Role::Client {
        // Encoders may have an RSA certificate.
        cipher_suites.push(CipherSuiteId::Tls_Ecdhe_Rsa_With_Aes_128_Gcm_Sha256);
    }
    Config {
        certificates: vec![association.dtls.certificate.library.clone()],
        cipher_suites,
        srtp_protection_profiles: profiles.iter().map(|profile| to_library(*profile)).collect(),
        client_auth: ClientAuthType::RequireAnyClientCert,
        extended_master_secret: ExtendedMasterSecretType::Require,
        flight_interval: FLIGHT_INTERVAL,
        // No authority signs these certificates: the fingerprint is what is verified, right below and before the keys.
        insecure_skip_verify: true,
        verify_peer_certificate: Some(Arc::new(move |chain, _| {
            let known = chain.first().is_some_and(|leaf| Fingerprint::find(&remote, leaf).is_some());
            stranger.store(!known, Relaxed);
            if known { Ok(()) } else { Err(webrtc_dtls::Error::ErrInvalidCertificate) }
        })),
        // Empty would make the library warn and say "localhost".
        server_name: "pop.invalid".to_owned(),
        ..Config::default()
    }
}

/// What a refusal of the library means.
async fn explain(association: &Association, error: webrtc_dtls::Error) -> DtlsError {
    use webrtc_dtls::Error;
    match error {
        Error::ErrClientCertificateRequired => DtlsError::NoClientCertificate,
        Error::ErrRequestedButNoSrtpExtension | Error::ErrClientNoMatchingSrtpProfile | Error::ErrServerNoMatchingSrtpProfile => {
            DtlsError::NoSrtpProfile
        }
        // Its reader has ended: over an alert of the peer, which it answers, or in a panic.
        Error::ErrAlertFatalOrClose => {
            let _ = timeout(LIBRARY_END_TIMEOUT, association.library_ended.notified()).await;
            if association.lock().gate.alert_sent() { DtlsError::Handshake("the peer ended it".into()) } else { DtlsError::Panicked }
        }
        // Its writer ends before its connection only in a panic.
        Error::MpscSend(_) => DtlsError::Panicked,
        other => DtlsError::Handshake(other.to_string().into()),
    }
}

/// The keys, after another look at the profile and the certificate: what is used must be what was verified.
async fn export_keys(
    connection: &DTLSConn,
    role: Role,
    profiles: &[SrtpProfile],
    remote: &[Fingerprint],
) -> Result<(Box<SrtpKeys>, Fingerprint), DtlsError> {
    let state = connection.connection_state().await;
    let leaf = state.peer_certificates.first().ok_or(DtlsError::NoClientCertificate)?;
    let fingerprint = Fingerprint::find(remote, leaf).ok_or(DtlsError::Fingerprint)?;
    let agreed = connection.selected_srtpprotection_profile();
    let profile = profiles.iter().copied().find(|profile| to_library(*profile) == agreed).ok_or(DtlsError::NoSrtpProfile)?;
    let len = 2 * (profile.key_len() + profile.salt_len());
    let exported = state.export_keying_material(EXPORTER_LABEL, &[], len).await;
    let material = Zeroizing::new(exported.map_err(|error| DtlsError::Handshake(error.to_string().into()))?);
    let keys = split_keys(profile, role, &material).ok_or_else(|| DtlsError::Handshake("short keying material".into()))?;
    Ok((Box::new(keys), fingerprint))
}

/// What our record layer derives its keys from. With the extended master secret, which is required, it is that one.
async fn export_secrets(connection: &DTLSConn) -> Result<Secrets, DtlsError> {
    let log = connection.connection_state().await.key_log_data();
    let log = log.map_err(|error| DtlsError::Handshake(error.to_string().into()))?;
    Ok(Secrets { master_secret: Zeroizing::new(log.master_secret), local_random: log.local_random, remote_random: log.remote_random })
}

/// RFC 5764 section 4.2: client key, server key, client salt, server salt.
fn split_keys(profile: SrtpProfile, role: Role, material: &[u8]) -> Option<SrtpKeys> {
    let (client_key, rest) = material.split_at_checked(profile.key_len())?;
    let (server_key, rest) = rest.split_at_checked(profile.key_len())?;
    let (client_salt, server_salt) = rest.split_at_checked(profile.salt_len())?;
    let client = build_master_key(client_key, client_salt)?;
    let server = build_master_key(server_key, server_salt)?;
    let (local, remote) = match role {
        Role::Server => (server, client),
        Role::Client => (client, server),
    };
    Some(SrtpKeys { profile, local, remote })
}

fn build_master_key(key: &[u8], salt: &[u8]) -> Option<MasterKey> {
    let mut master = MasterKey { key: [0; 32], salt: [0; 14] };
    master.key.get_mut(..key.len())?.copy_from_slice(key);
    master.salt.get_mut(..salt.len())?.copy_from_slice(salt);
    Some(master)
}

const fn to_library(profile: SrtpProfile) -> SrtpProtectionProfile {
    match profile {
        SrtpProfile::Aes128CmSha1_80 => SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
        SrtpProfile::AeadAes128Gcm => SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
        SrtpProfile::AeadAes256Gcm => SrtpProtectionProfile::Srtp_Aead_Aes_256_Gcm,
    }
}

/// Reads until the library's reader has ended: one that is not read from stops seeing alerts.
async fn drain(connection: &DTLSConn) -> Result<(), Panicked> {
    let mut data = vec![0; DTLS_DATAGRAM_LEN_MAX];
    while catch_panic(connection.read(&mut data, None)).await?.is_ok() {}
    Ok(())
}

/// Ends when the owner has dropped its peer.
async fn dropped(starts: &mut watch::Receiver<bool>) {
    while starts.changed().await.is_ok() {}
}

/// The library's future panicked.
struct Panicked;

/// A panic of the library ends this association, not the process's task.
async fn catch_panic<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        // Nothing of the future is used after a panic: it is only dropped.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// What the library reads from and writes to.
struct LibraryConn {
    association: Arc<Association>,
}

impl Drop for LibraryConn {
    fn drop(&mut self) {
        self.association.library_ended.notify_one();
    }
}

#[async_trait::async_trait]
impl webrtc_util::Conn for LibraryConn {
    async fn connect(&self, _: SocketAddr) -> webrtc_util::Result<()> {
        Err(unsupported())
    }

    async fn recv(&self, buffer: &mut [u8]) -> webrtc_util::Result<usize> {
        loop {
            if let Some(record) = self.association.lock().gate.pop_ready() {
                let buffer = buffer.get_mut(..record.len()).ok_or_else(unsupported)?;
                buffer.copy_from_slice(&record);
                return Ok(record.len());
            }
            self.association.ready.notified().await;
        }
    }

    async fn recv_from(&self, _: &mut [u8]) -> webrtc_util::Result<(usize, SocketAddr)> {
        Err(unsupported())
    }

    async fn send(&self, datagram: &[u8]) -> webrtc_util::Result<usize> {
        let mut inner = self.association.lock();
        if inner.gate.handle_sent(Instant::now(), datagram) {
            // After the handshake the library has alerts alone to send: our close_notify goes in their place.
            // When our key has sealed all that it may, there is none at all: the library draws its nonces at random.
            let record = if inner.gate.has_records() { inner.gate.seal(ALERT, &CLOSE_NOTIFY) } else { Some(datagram.into()) };
            if let Some(record) = record {
                self.association.send(&inner, record);
            }
        }
        // A client's ChangeCipherSpec frees the server's. A bell for nothing does no harm.
        self.association.ready.notify_one();
        Ok(datagram.len())
    }

    async fn send_to(&self, _: &[u8], _: SocketAddr) -> webrtc_util::Result<usize> {
        Err(unsupported())
    }

    fn local_addr(&self) -> webrtc_util::Result<SocketAddr> {
        Err(unsupported())
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> webrtc_util::Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }
}

fn unsupported() -> webrtc_util::Error {
    webrtc_util::Error::Other("not a socket".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::{Certificate, Dtls};

    /// What the gate lets nobody send: it panics the library's reader.
    fn client_key_exchange_of_one_byte(message_sequence: u16) -> Box<[u8]> {
        record::build_handshake_record(90, 16, message_sequence, &[0])
    }

    fn node() -> Dtls {
        Dtls::new(Certificate::generate().unwrap(), 10)
    }

    fn force(peer: &crate::dtls::DtlsPeer, bytes: &[u8]) {
        peer.association.lock().gate.force_ready(bytes);
        peer.association.ready.notify_one();
    }

    async fn ends(us: &Dtls, role: Role) -> Vec<DtlsEvent> {
        let (peer, mut events) = us.open(role, vec![us.fingerprint().clone()]).unwrap();
        peer.start();
        let mut seen = Vec::new();
        if role == Role::Client {
            seen.extend(events.recv().await);
        }
        force(&peer, &client_key_exchange_of_one_byte(0));
        while let Some(event) = events.recv().await {
            seen.push(event);
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_the_library_during_the_handshake_is_told_at_once() {
        let us = node();
        let begin = Instant::now();
        let seen = ends(&us, Role::Client).await;
        assert!(matches!(seen[..], [DtlsEvent::Send(_), DtlsEvent::Failed(DtlsError::Panicked)]), "{seen:?}");
        assert!(begin.elapsed() < FLIGHT_INTERVAL, "{:?}", begin.elapsed());
        assert_eq!((us.counters().panics, us.counters().half_open), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_the_library_after_the_handshake_ends_that_association_alone() {
        let (us, them) = (node(), node());
        let mut pairs = Vec::new();
        for _ in 0..2 {
            let (server, mut server_events) = us.open(Role::Server, vec![them.fingerprint().clone()]).unwrap();
            let (client, mut client_events) = them.open(Role::Client, vec![us.fingerprint().clone()]).unwrap();
            server.start();
            client.start();
            let mut established = 0;
            while established < 2 {
                let (event, to) = tokio::select! {
                    event = server_events.recv() => (event, &client),
                    event = client_events.recv() => (event, &server),
                };
                match event.unwrap() {
                    DtlsEvent::Send(datagram) => to.deliver(&datagram).unwrap(),
                    DtlsEvent::Established { .. } => established += 1,
                    other => panic!("{other:?}"),
                }
            }
            pairs.push((server, server_events, client, client_events));
        }
        let (server, server_events, ..) = &mut pairs[0];
        // The next message of the client, behind its Finished.
        force(server, &client_key_exchange_of_one_byte(6));
        let event = server_events.recv().await;
        assert!(matches!(event, Some(DtlsEvent::Failed(DtlsError::Panicked))), "{event:?}");
        assert!(server_events.recv().await.is_none());
        assert_eq!(us.counters().panics, 1);
        // The other pair does not notice: its end is an orderly one.
        let (server, mut server_events, client, mut client_events) = pairs.pop().unwrap();
        drop(client);
        let Some(DtlsEvent::Send(close_notify)) = client_events.recv().await else { panic!("a close_notify") };
        server.deliver(&close_notify).unwrap();
        let answer = server_events.recv().await;
        assert!(matches!(&answer, Some(DtlsEvent::Send(alert)) if alert[0] == 21), "the library answers: {answer:?}");
        assert!(matches!(server_events.recv().await, Some(DtlsEvent::Closed)));
    }

    #[test]
    fn keys_are_cut_in_the_order_of_rfc_5764_and_given_to_the_right_direction() {
        for profile in super::super::PROFILES {
            let (key, salt) = (profile.key_len(), profile.salt_len());
            let material = [vec![1; key], vec![2; key], vec![3; salt], vec![4; salt]].concat();
            for (role, local, remote) in [(Role::Client, 1, 2), (Role::Server, 2, 1)] {
                let keys = split_keys(profile, role, &material).unwrap();
                assert_eq!((&keys.local.key[..key], &keys.local.salt[..salt]), (&vec![local; key][..], &vec![local + 2; salt][..]));
                assert_eq!((&keys.remote.key[..key], &keys.remote.salt[..salt]), (&vec![remote; key][..], &vec![remote + 2; salt][..]));
            }
            assert!(split_keys(profile, Role::Client, &material[..2 * key]).is_none());
        }
    }
}
