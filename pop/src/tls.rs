//! TLS of the public listener: a certificate from two files, which can be replaced while connections are open.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Config;
use crate::reload::{Applier, Prepared};
use crate::serve::Listen;
use crate::token::unix_now_s;

/// HTTP/2 is not spoken: signalling is one request in a while, and what is not there needs no defence.
const ALPN: &[u8] = b"http/1.1";

/// A certificate chain with its key, read and checked.
#[derive(Clone)]
pub struct TlsIdentity {
    key: Arc<CertifiedKey>,
    expires_at_s: u64,
}

impl TlsIdentity {
    /// Reads the chain and the key of `http.tls_cert` and `http.tls_key`. The error says which file is wrong and what to do.
    pub fn load(cert: &Path, key: &Path) -> Result<TlsIdentity, String> {
        Self::load_as(("http.tls_cert", cert), ("http.tls_key", key))
    }

    /// Reads a chain and its key, each with the config key that names it.
    pub(crate) fn load_as((cert_name, cert): (&str, &Path), (key_name, key): (&str, &Path)) -> Result<TlsIdentity, String> {
        let (cert_shown, key_shown) = (cert.display(), key.display());
        let mode = std::fs::metadata(key).map_err(|error| format!("{key_name} {key_shown} cannot be read: {error}"))?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(format!("{key_name} {key_shown}: everybody may use this private key: chmod 640 {key_shown}"));
        }
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| format!("{cert_name} {cert_shown} {}", explain(&error)))?;
        let Some(leaf) = chain.first() else {
            return Err(format!("{cert_name} {cert_shown} holds no CERTIFICATE in PEM: give the chain, the node's own first"));
        };
        let expires_at_s = read_expiry(leaf).ok_or_else(|| format!("{cert_name} {cert_shown}: its first certificate is no X.509"))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                format!(
                    "{key_name} {key_shown} holds no PRIVATE KEY in PEM; one with a passphrase must be decrypted: openssl pkey -in FILE"
                )
            }
            error => format!("{key_name} {key_shown} {}", explain(&error)),
        })?;
        let certified = CertifiedKey::from_der(chain, secret, &default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("{key_name} {key_shown} is not the key of the first certificate in {cert_shown}: give the two that belong together")
            }
            error => format!("{key_name} {key_shown} cannot be used: {error}"),
        })?;
        Ok(TlsIdentity { key: Arc::new(certified), expires_at_s })
    }

    /// The chain with its key.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Until when its first certificate is valid, in Unix seconds.
    pub fn expires_at_s(&self) -> u64 {
        self.expires_at_s
    }

    /// A sentence for the operator when the certificate has expired: clients refuse it, and the node serves on.
    pub fn warning(&self) -> Option<&'static str> {
        (self.expires_at_s <= unix_now_s()).then_some("the certificate of http.tls_cert has expired: renew it, then `pop reload`")
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsIdentity(expires at {} s)", self.expires_at_s)
    }
}

/// What is wrong with a PEM file, as the rest of a sentence that begins with its name.
pub(crate) fn explain(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        error => format!("is no PEM: {error:?}"),
    }
}

/// RFC 5280 section 4.1.2.5, as Unix seconds; 0 for a time before 1970.
fn read_expiry(leaf: &[u8]) -> Option<u64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    Some(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

/// The listener's TLS. Cheap to clone; all clones have the same certificate.
#[derive(Clone)]
pub struct Tls {
    certificate: Arc<Current>,
    acceptor: TlsAcceptor,
}

struct Current(RwLock<TlsIdentity>);

impl Current {
    fn get(&self) -> TlsIdentity {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().key)
    }
}

impl Tls {
    /// TLS 1.2 and 1.3 with this certificate.
    pub fn new(identity: TlsIdentity) -> Tls {
        let certificate = Arc::new(Current(RwLock::new(identity)));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has suites of both versions");
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Current>::clone(&certificate);
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Tls { certificate, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// Gives new connections this certificate.
    pub fn replace(&self, identity: TlsIdentity) {
        *self.certificate.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Until when the certificate in use is valid, in Unix seconds.
    pub fn expires_at_s(&self) -> u64 {
        self.certificate.get().expires_at_s
    }

    /// `listener` behind TLS.
    pub fn listen(&self, listener: TcpListener) -> TlsListener {
        TlsListener { listener, acceptor: self.acceptor.clone() }
    }
}

/// `http.tls_cert` and `http.tls_key`: new connections get the certificate that is in the files then, open ones keep theirs. A pair
/// that is wrong refuses the reload, and the old certificate stays.
pub struct TlsApplier(pub Tls);

#[async_trait]
impl Applier for TlsApplier {
    fn keys(&self) -> &'static [&'static str] {
        &["http.tls_cert", "http.tls_key"]
    }

    async fn prepare(&self, new: &Config) -> Result<Prepared, String> {
        let (Some(cert), Some(key)) = (&new.http.tls_cert, &new.http.tls_key) else {
            return Err("http.tls_cert and http.tls_key cannot be taken away while the listener speaks TLS: restart the node".to_owned());
        };
        let identity = TlsIdentity::load(cert, key).map_err(|error| format!("{error}; the old certificate stays"))?;
        let tls = self.0.clone();
        let mut changes = Vec::new();
        if identity.key.cert != tls.certificate.get().key.cert {
            let days = identity.expires_at_s.saturating_sub(unix_now_s()) / 86_400;
            changes.push(format!("certificate of http.tls_cert, valid for {days} days"));
        }
        changes.extend(identity.warning().map(str::to_owned));
        Ok(Prepared::new(changes, async move { tls.replace(identity) }))
    }
}

/// A TCP listener behind TLS.
pub struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listen for TlsListener {
    type Accepted = TcpStream;
    type Stream = TlsStream<TcpStream>;

    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        Listen::accept(&self.listener).await
    }

    fn establish(&self, accepted: TcpStream) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static {
        self.acceptor.accept(accepted)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::Router;
    use axum::routing::get;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::serve::{self, bounded};

    /// A folder with a chain and a key, and the certificate for a client to trust.
    struct Files {
        folder: PathBuf,
        certificate: CertificateDer<'static>,
    }

    impl Files {
        fn new(name: &str) -> Files {
            let folder = std::env::temp_dir().join(format!("pop-tls-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("temporary files can be made");
            let mut files = Files { folder, certificate: CertificateDer::from(Vec::new()) };
            files.renew(2_100);
            files
        }

        /// A new pair that is valid to the end of `year`.
        fn renew(&mut self, year: i32) {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            params.not_after = rcgen::date_time_ymd(year, 12, 31);
            let certificate = params.self_signed(&key).expect("a certificate");
            std::fs::write(self.cert(), certificate.pem()).expect("the folder is there");
            self.write_key(&key.serialize_pem(), 0o640);
            self.certificate = certificate.der().clone();
        }

        fn write_key(&self, text: &str, mode: u32) {
            std::fs::write(self.key(), text).expect("the folder is there");
            std::fs::set_permissions(self.key(), std::fs::Permissions::from_mode(mode)).expect("it is ours");
        }

        fn cert(&self) -> PathBuf {
            self.folder.join("chain.pem")
        }

        fn key(&self) -> PathBuf {
            self.folder.join("key.pem")
        }

        fn config(&self) -> Config {
            let mut config = Config::default();
            (config.http.tls_cert, config.http.tls_key) = (Some(self.cert()), Some(self.key()));
            config
        }

        fn load(&self) -> Result<TlsIdentity, String> {
            TlsIdentity::load(&self.cert(), &self.key())
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    async fn start(tls: &Tls) -> (SocketAddr, watch::Sender<bool>) {
        let listener = serve::bind("http.listen", SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = watch::channel(false);
        let router = bounded(Router::new().route("/", get(|| async { "here" })));
        tokio::spawn(serve::serve(tls.listen(listener), router, 8, None, stopped));
        (address, stop)
    }

    /// Asks for `/` as a client that trusts `certificate` alone; the protocol version and the answer.
    async fn ask(
        address: SocketAddr,
        certificate: &CertificateDer<'static>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(versions);
        let mut config = config.expect("both are there").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), ALPN.to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN));
        let version = stream.get_ref().1.protocol_version();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(format!("{version:?} {answer}"))
    }

    #[tokio::test]
    async fn both_versions_are_served_and_a_reload_changes_the_certificate() {
        let mut files = Files::new("serve");
        let tls = Tls::new(files.load().expect("a right pair"));
        assert_eq!(tls.expires_at_s(), 4_133_894_400, "2100-12-31");
        let (address, _stop) = start(&tls).await;
        let first = files.certificate.clone();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let answer = ask(address, &first, &[version]).await.expect("it is trusted");
            assert!(answer.starts_with(&format!("Some({:?}) HTTP/1.1 200", version.version)) && answer.ends_with("here"), "{answer}");
        }
        files.renew(2_101);
        let applier = TlsApplier(tls.clone());
        applier.prepare(&files.config()).await.expect("a right pair").apply.await;
        assert_eq!(tls.expires_at_s(), 4_165_430_400, "2101-12-31");
        let both: Vec<_> = rustls::ALL_VERSIONS.to_vec();
        ask(address, &first, &both).await.expect_err("the old one is gone");
        ask(address, &files.certificate, &both).await.expect("the new one is there");
    }

    #[tokio::test]
    async fn a_wrong_pair_is_a_sentence_and_the_old_certificate_stays() {
        let mut files = Files::new("wrong");
        let tls = Tls::new(files.load().expect("a right pair"));
        let (address, _stop) = start(&tls).await;
        let refused = async |config: Config| match TlsApplier(tls.clone()).prepare(&config).await {
            Ok(_) => panic!("it is taken"),
            Err(sentence) => sentence,
        };
        assert!(refused(Config::default()).await.contains("restart the node"));
        let (good, good_cert) = (files.certificate.clone(), std::fs::read_to_string(files.cert()).expect("it is there"));
        let good_key = std::fs::read_to_string(files.key()).expect("it is there");
        files.renew(2_099);
        let other_cert = std::fs::read_to_string(files.cert()).expect("it is there");
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let rows = [
            (&*other_cert, &*good_key, 0o600, "is not the key of the first certificate in"),
            (&*good_cert, "", 0o600, "holds no PRIVATE KEY in PEM"),
            (&*good_cert, &*good_cert, 0o600, "holds no PRIVATE KEY in PEM"),
            (&*good_cert, &*good_key, 0o644, "everybody may use this private key: chmod 640"),
            ("", &*good_key, 0o600, "holds no CERTIFICATE in PEM"),
            ("hello", &*good_key, 0o600, "holds no CERTIFICATE in PEM"),
            (garbage, &*good_key, 0o600, "its first certificate is no X.509"),
            ("-----BEGIN CERTIFICATE-----\nAA*A\n", &*good_key, 0o600, "is no PEM"),
        ];
        for (cert, key, mode, sentence) in rows {
            std::fs::write(files.cert(), cert).expect("the folder is there");
            files.write_key(key, mode);
            let error = refused(files.config()).await;
            assert!(error.contains(sentence) && error.ends_with("; the old certificate stays"), "{error:?} does not say {sentence:?}");
        }
        std::fs::remove_file(files.cert()).expect("it is there");
        let error = refused(files.config()).await;
        assert!(error.contains("http.tls_cert") && error.contains("cannot be read: No such file"), "{error}");
        let mut elsewhere = files.config();
        elsewhere.http.tls_key = Some(files.folder.join("none.pem"));
        let error = refused(elsewhere).await;
        assert!(error.contains("http.tls_key") && error.contains("cannot be read: No such file"), "{error}");
        ask(address, &good, rustls::ALL_VERSIONS).await.expect("the old one serves");
    }

    #[tokio::test]
    async fn an_expired_certificate_is_told_and_served() {
        let mut files = Files::new("expired");
        assert_eq!(files.load().expect("a right pair").warning(), None);
        files.renew(1_999);
        let identity = files.load().expect("a right pair");
        assert!(identity.warning().expect("it has expired").contains("renew it"));
    }

    #[tokio::test]
    async fn what_is_not_tls_is_cut_and_harms_nobody() {
        let files = Files::new("garbage");
        let tls = Tls::new(files.load().expect("a right pair"));
        let (address, _stop) = start(&tls).await;
        let mut hello = vec![22, 3, 1, 0x40, 0];
        hello.resize(8_192, 0xff);
        for bytes in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0; 4_096], &hello, &[21, 3, 3, 0, 2, 2, 40], &[22, 3, 0, 0, 0]] {
            let mut stream = TcpStream::connect(address).await.expect("the listener is there");
            stream.write_all(bytes).await.expect("a few bytes");
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            // A reset is an end as good as any.
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.len() < 64 && !answer.starts_with(b"HTTP"), "an alert at most: {answer:?}");
        }
        ask(address, &files.certificate, rustls::ALL_VERSIONS).await.expect("others are served");
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_does_not_come_frees_its_connection() {
        let files = Files::new("slow");
        let tls = Tls::new(files.load().expect("a right pair"));
        let (address, _stop) = start(&tls).await;
        let mut idle = Vec::new();
        for bytes in [&[][..], &[22, 3, 1, 0x01, 0], &[22], &[22, 3, 1]].repeat(2) {
            let mut stream = TcpStream::connect(address).await.expect("the listener is there");
            stream.write_all(bytes).await.expect("a few bytes");
            idle.push(stream);
        }
        // All 8 places are taken until their time is up; paused time then jumps there.
        ask(address, &files.certificate, rustls::ALL_VERSIONS).await.expect("a place came free");
    }
}
