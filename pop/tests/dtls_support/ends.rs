//! Ends of a DTLS association, all driven alike: ours, the library bare, and dimpl as the independent oracle.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use pop::dtls::{Dtls, DtlsError, DtlsEvent, DtlsPeer, Fingerprint, Role};
use pop_proto::control::SrtpKeys;
use pop_proto::drop_reason::DropReason;
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use webrtc_dtls::config::{ClientAuthType, Config, ExtendedMasterSecretType};
use webrtc_dtls::conn::DTLSConn;
use webrtc_util::KeyingMaterialExporter;

/// What an end reports.
#[derive(Debug, PartialEq)]
pub(crate) enum Report {
    Send(Vec<u8>),
    /// Profile number and exporter material in the order of RFC 5764.
    Keys(u16, Vec<u8>),
    Data(Vec<u8>),
    Failed(String),
    Closed,
}

/// An end, running in tasks of its own.
pub(crate) struct End {
    pub(crate) to: mpsc::UnboundedSender<Vec<u8>>,
    pub(crate) from: mpsc::UnboundedReceiver<Report>,
    /// Application data to be sent.
    pub(crate) data: mpsc::UnboundedSender<Vec<u8>>,
    /// Ours only: to look at verdicts, or to drop.
    pub(crate) peer: Option<Arc<DtlsPeer>>,
    task: AbortHandle,
}

impl Drop for End {
    fn drop(&mut self) {
        // The library bare repeats its flights for good.
        self.task.abort();
    }
}

impl End {
    /// Hands it a datagram as the network would.
    pub(crate) fn deliver(&self, datagram: &[u8]) -> Result<(), DropReason> {
        match &self.peer {
            Some(peer) => peer.deliver(datagram),
            None => {
                let _ = self.to.send(datagram.to_vec());
                Ok(())
            }
        }
    }

    /// The next report that is not a datagram.
    pub(crate) async fn outcome(&mut self) -> Option<Report> {
        loop {
            match self.from.recv().await? {
                Report::Send(_) => {}
                report => return Some(report),
            }
        }
    }
}

pub(crate) fn profile_number(keys: &SrtpKeys) -> u16 {
    use pop_proto::control::SrtpProfile::*;
    match keys.profile {
        Aes128CmSha1_80 => 1,
        AeadAes128Gcm => 7,
        AeadAes256Gcm => 8,
    }
}

/// The exporter's bytes that these keys were cut from.
pub(crate) fn material(keys: &SrtpKeys, role: Role) -> Vec<u8> {
    let (client, server) = match role {
        Role::Client => (&keys.local, &keys.remote),
        Role::Server => (&keys.remote, &keys.local),
    };
    let (key, salt) = (keys.profile.key_len(), keys.profile.salt_len());
    [&client.key[..key], &server.key[..key], &client.salt[..salt], &server.salt[..salt]].concat()
}

pub(crate) fn error_text(error: &DtlsError) -> String {
    error.label().to_owned()
}

/// Our end.
pub(crate) fn ours(dtls: &Dtls, role: Role, remote: &str) -> End {
    let remote: Fingerprint = remote.parse().unwrap();
    let (peer, mut events) = dtls.open(role, vec![remote]).unwrap();
    peer.start();
    events.take_data();
    let peer = Arc::new(peer);
    let (reports, from) = mpsc::unbounded_channel();
    let (data, mut outbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let task = tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                Some(data) = outbox.recv() => Some(DtlsEvent::Send(events.seal_data(&data).expect("it fits, and the keys are there"))),
            };
            let Some(event) = event else { return };
            let report = match event {
                DtlsEvent::Data(data) => Report::Data(data.into()),
                DtlsEvent::Send(datagram) => Report::Send(datagram.into()),
                DtlsEvent::Established { keys, .. } => Report::Keys(profile_number(&keys), material(&keys, role)),
                DtlsEvent::Failed(error) => Report::Failed(error_text(&error)),
                DtlsEvent::Closed => Report::Closed,
            };
            if reports.send(report).is_err() {
                return;
            }
        }
    });
    let (to, _) = mpsc::unbounded_channel();
    End { to, from, data, peer: Some(peer), task: task.abort_handle() }
}

/// The library without anything of ours.
pub(crate) fn bare(
    certificate: Option<webrtc_dtls::crypto::Certificate>,
    role: Role,
    profiles: &[u16],
    tune: impl FnOnce(&mut Config),
) -> End {
    let (to, inbox) = mpsc::unbounded_channel();
    let (reports, from) = mpsc::unbounded_channel();
    let mut config = Config {
        certificates: certificate.into_iter().collect(),
        srtp_protection_profiles: profiles.iter().map(|&number| number.into()).collect(),
        client_auth: ClientAuthType::RequireAnyClientCert,
        extended_master_secret: ExtendedMasterSecretType::Require,
        flight_interval: std::time::Duration::from_millis(100),
        insecure_skip_verify: true,
        server_name: "test.invalid".to_owned(),
        ..Config::default()
    };
    tune(&mut config);
    let (data, mut outbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let conn = Arc::new(TestConn { inbox: Mutex::new(inbox), reports: reports.clone() });
    let task = tokio::spawn(async move {
        let connection = match DTLSConn::new(conn, config, role == Role::Client, None).await {
            Ok(connection) => connection,
            Err(error) => return drop(reports.send(Report::Failed(error.to_string()))),
        };
        let number = connection.selected_srtpprotection_profile() as u16;
        let len = match number {
            1 => 60,
            7 => 56,
            _ => 88,
        };
        let state = connection.connection_state().await;
        let material = state.export_keying_material("EXTRACTOR-dtls_srtp", &[], len).await.unwrap();
        let _ = reports.send(Report::Keys(number, material));
        let mut data = [0; 2_000];
        loop {
            tokio::select! {
                read = connection.read(&mut data, None) => {
                    let report = read.map_or(Report::Closed, |len| Report::Data(data[..len].to_vec()));
                    let end = report == Report::Closed;
                    if reports.send(report).is_err() || end {
                        return;
                    }
                }
                Some(data) = outbox.recv() => drop(connection.write(&data, None).await.unwrap()),
            }
        }
    });
    End { to, from, data, peer: None, task: task.abort_handle() }
}

/// dimpl; `auto` offers DTLS 1.3 as well.
pub(crate) fn dimpl(certificate: dimpl::DtlsCertificate, role: Role, mtu: usize, auto: bool) -> End {
    let (to, mut inbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let (reports, from) = mpsc::unbounded_channel();
    let (data, mut outbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let config = dimpl::Config::builder().mtu(mtu).flight_start_rto(std::time::Duration::from_millis(100)).build().unwrap();
    // dimpl has the clock of the standard library, the test may have a paused one.
    let (base, begin) = (std::time::Instant::now(), Instant::now());
    let now = move || base + begin.elapsed();
    let config = Arc::new(config);
    let mut end = if auto { dimpl::Dtls::new_auto(config, certificate, now()) } else { dimpl::Dtls::new_12(config, certificate, now()) };
    end.set_active(role == Role::Client);
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 4_096];
        if end.handle_timeout(now()).is_err() {
            return;
        }
        loop {
            let wake = loop {
                let report = match end.poll_output(&mut buffer) {
                    dimpl::Output::Packet(datagram) => Report::Send(datagram.to_vec()),
                    dimpl::Output::KeyingMaterial(material, profile) => {
                        let number = match profile {
                            dimpl::SrtpProfile::AES128_CM_SHA1_80 => 1,
                            dimpl::SrtpProfile::AEAD_AES_128_GCM => 7,
                            _ => 8,
                        };
                        Report::Keys(number, material.to_vec())
                    }
                    dimpl::Output::ApplicationData(data) => Report::Data(data.to_vec()),
                    dimpl::Output::CloseNotify => Report::Closed,
                    dimpl::Output::Timeout(at) => break at,
                    _ => continue,
                };
                if reports.send(report).is_err() {
                    return;
                }
            };
            let wake = Instant::now() + wake.saturating_duration_since(now());
            let result = tokio::select! {
                datagram = inbox.recv() => match datagram {
                    Some(datagram) => end.handle_timeout(now()).and_then(|()| end.handle_packet(&datagram)),
                    // An empty hand closes politely.
                    None => match end.close() {
                        Ok(()) => {
                            while let dimpl::Output::Packet(datagram) = end.poll_output(&mut buffer) {
                                let _ = reports.send(Report::Send(datagram.to_vec()));
                            }
                            return;
                        }
                        Err(error) => Err(error),
                    },
                },
                Some(data) = outbox.recv() => end.send_application_data(&data).map(drop),
                () = tokio::time::sleep_until(wake) => end.handle_timeout(now()),
            };
            if let Err(error) = result {
                let _ = reports.send(Report::Failed(error.to_string()));
                return;
            }
        }
    });
    End { to, from, data, peer: None, task: task.abort_handle() }
}

pub(crate) fn library_certificate() -> (webrtc_dtls::crypto::Certificate, String) {
    let certificate = webrtc_dtls::crypto::Certificate::generate_self_signed(["test".to_owned()]).unwrap();
    let attribute = fingerprint(&certificate.certificate[0]);
    (certificate, attribute)
}

pub(crate) fn dimpl_certificate() -> (dimpl::DtlsCertificate, String) {
    let certificate = dimpl::certificate::generate_self_signed_certificate().unwrap();
    let attribute = format!("sha-256 {}", certificate.fingerprint_str());
    (certificate, attribute)
}

pub(crate) fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("sha-256 {}", hex.join(":"))
}

struct TestConn {
    inbox: Mutex<mpsc::UnboundedReceiver<Vec<u8>>>,
    reports: mpsc::UnboundedSender<Report>,
}

#[async_trait::async_trait]
impl webrtc_util::Conn for TestConn {
    async fn connect(&self, _: SocketAddr) -> webrtc_util::Result<()> {
        unreachable!("the library only sends and receives")
    }
    async fn recv(&self, buffer: &mut [u8]) -> webrtc_util::Result<usize> {
        match self.inbox.lock().await.recv().await {
            Some(datagram) => {
                buffer[..datagram.len()].copy_from_slice(&datagram);
                Ok(datagram.len())
            }
            None => std::future::pending().await,
        }
    }
    async fn recv_from(&self, _: &mut [u8]) -> webrtc_util::Result<(usize, SocketAddr)> {
        unreachable!("the library only sends and receives")
    }
    async fn send(&self, datagram: &[u8]) -> webrtc_util::Result<usize> {
        let _ = self.reports.send(Report::Send(datagram.to_vec()));
        Ok(datagram.len())
    }
    async fn send_to(&self, _: &[u8], _: SocketAddr) -> webrtc_util::Result<usize> {
        unreachable!("the library only sends and receives")
    }
    fn local_addr(&self) -> webrtc_util::Result<SocketAddr> {
        unreachable!("the library only sends and receives")
    }
    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }
    async fn close(&self) -> webrtc_util::Result<()> {
        Ok(())
    }
    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}
