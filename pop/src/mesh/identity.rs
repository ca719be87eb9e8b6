//! This node's certificate, and whom it believes: nodes with one of the same CA.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use super::counters::Refusal;
use super::grants::Grants;
use super::name::NodeName;
use super::{carry, transit};
use crate::config::{Config, MeshConfig};
use crate::tls::{TlsIdentity, explain};
use crate::token::unix_now_s;

/// Asked for by a dialler that knows an address and not whose it is.
const ANYBODY: &str = "pop.internal";

/// The files of a node's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshFiles {
    /// The operator's CA, PEM.
    pub ca: PathBuf,
    /// The node's chain, PEM, its own certificate first.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl MeshFiles {
    /// Those of `[mesh]`; `None` when it names none.
    pub fn of(config: &MeshConfig) -> Option<MeshFiles> {
        config.files().map(|(ca, cert, key)| MeshFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
    }
}

/// What a node shows and whom it believes, read and checked.
#[derive(Clone)]
pub struct MeshIdentity {
    name: NodeName,
    grants: Grants,
    expires_at_s: u64,
    /// The certificates in `mesh.ca`.
    roots: Arc<[CertificateDer<'static>]>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    carrier: Arc<ClientConfig>,
    transit: Arc<ClientConfig>,
    /// Of `bus.ca`: where PoPs do not trust each other, another one's CA must not name nodes of this one.
    own_pop: Option<Arc<dyn ClientCertVerifier>>,
}

impl fmt::Debug for MeshIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshIdentity({}, expires at {} s)", self.name, self.expires_at_s)
    }
}

impl MeshIdentity {
    /// The identity of `config`'s node; `None` without files.
    ///
    /// # Errors
    ///
    /// A sentence that says which file is wrong and what to do.
    pub fn of(config: &Config) -> Result<Option<MeshIdentity>, String> {
        let Some(files) = MeshFiles::of(&config.mesh) else { return Ok(None) };
        let name = NodeName::new(&config.node.shown_name(), &config.node.pop).map_err(|error| format!("node.name, node.pop: {error}"))?;
        let mut identity = Self::load(&files, &name)?;
        if let Some(ca) = &config.bus.ca {
            let own = TlsIdentity::load_as(("mesh.cert", &files.cert), ("mesh.key", &files.key))?;
            identity.own_pop = Some(clients_of(("bus.ca", ca), &files.cert, &own.key().cert)?.0);
        }
        Ok(Some(identity))
    }

    /// Reads the files of the node `name`. A certificate that has expired is taken, since others judge it: see [`Self::warning`].
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    pub fn load(files: &MeshFiles, name: &NodeName) -> Result<MeshIdentity, String> {
        let own = TlsIdentity::load_as(("mesh.cert", &files.cert), ("mesh.key", &files.key))?;
        let shown = files.cert.display();
        let chain = &own.key().cert;
        match NodeName::of_certificate(&chain[0]) {
            Some(certified) if certified == *name => {}
            Some(other) => {
                return Err(format!(
                    "mesh.cert {shown} is of {other} and this node is {name}: set node.name and node.pop, or `pop ca issue`"
                ));
            }
            None => return Err(format!("mesh.cert {shown} names no node of a PoP: `pop ca issue` makes one that does")),
        }
        let (clients, roots) = clients_of(("mesh.ca", &files.ca), &files.cert, chain)?;
        let certificates = read_roots("mesh.ca", &files.ca)?;
        let provider = Arc::new(default_provider());
        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let servers = servers.map_err(|error| format!("mesh.ca {}: {error}", files.ca.display()))?;
        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(own.key())));
        let versions = [&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions);
        let server = server.expect("the provider has suites of TLS 1.3").with_client_cert_verifier(clients);
        let mut server = server.with_cert_resolver(Arc::<SingleCertAndKey>::clone(&resolver));
        // Every link is a whole handshake, so that each looks at a certificate.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        // A link offers no protocol.
        server.alpn_protocols = vec![carry::PROTOCOL.to_vec(), transit::PROTOCOL.to_vec()];
        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions);
        let client = client.expect("the provider has suites of TLS 1.3").dangerous();
        let mut client =
            client.with_custom_certificate_verifier(Arc::new(NodeVerifier { chain: servers })).with_client_cert_resolver(resolver);
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_sni = false;
        let mut carrier = client.clone();
        carrier.alpn_protocols = vec![carry::PROTOCOL.to_vec()];
        let mut of_transits = client.clone();
        of_transits.alpn_protocols = vec![transit::PROTOCOL.to_vec()];
        Ok(MeshIdentity {
            name: name.clone(),
            grants: Grants::of_certificate(&chain[0]),
            expires_at_s: own.expires_at_s(),
            roots: certificates.into(),
            server: Arc::new(server),
            client: Arc::new(client),
            carrier: Arc::new(carrier),
            transit: Arc::new(of_transits),
            own_pop: None,
        })
    }

    /// Whose it is.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Which API keys the certificate lets its PoP use.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Until when the certificate is valid, in Unix seconds.
    pub fn expires_at_s(&self) -> u64 {
        self.expires_at_s
    }

    /// How many days it still holds.
    pub fn days_left(&self) -> u64 {
        self.expires_at_s.saturating_sub(unix_now_s()) / 86_400
    }

    /// A sentence for the operator when the certificate has expired: other nodes refuse it.
    pub fn warning(&self) -> Option<&'static str> {
        (self.expires_at_s <= unix_now_s()).then_some("the certificate of mesh.cert has expired: `pop ca renew`, then `pop reload`")
    }

    /// Whether a chain that TLS has taken may be a node's of this name: of those of this PoP `bus.ca` says so, where there is one.
    pub(super) fn vouches(&self, name: &NodeName, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let Some(own_pop) = self.own_pop.as_ref().filter(|_| name.pop() == self.name.pop()) else { return Ok(()) };
        let (end, between) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        own_pop.verify_client_cert(end, between, UnixTime::now()).map(drop).map_err(|error| Refusal::of_tls(&error))
    }

    /// Those whose word counts on what they have signed.
    pub(super) fn roots(&self) -> Arc<[CertificateDer<'static>]> {
        Arc::clone(&self.roots)
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For connections that carry clients' requests.
    pub(super) fn carrier(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.carrier)
    }

    /// For connections over which another node's control link goes.
    pub(super) fn transit(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.transit)
    }
}

/// What a dialler asks for: `expected`, or any node of the CA.
pub(super) fn server_name(expected: Option<&NodeName>) -> ServerName<'static> {
    expected.map_or_else(|| ServerName::try_from(ANYBODY).expect("it is a name"), NodeName::server_name)
}

/// Whom the CA in the file `ca`, that `key` names, lets in, and what is in it. It has to let in this node, too: `chain`, of the file `cert`.
fn clients_of(
    (key, ca): (&str, &Path),
    cert: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(Arc<dyn ClientCertVerifier>, Arc<RootCertStore>), String> {
    let roots = Arc::new(load_roots(key, ca)?);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::new(default_provider())).build();
    let clients = clients.map_err(|error| format!("{key} {}: {error}", ca.display()))?;
    match clients.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()) {
        Ok(_) => {}
        Err(error) if Refusal::of_tls(&error) == Refusal::Expired => {}
        Err(error) => return Err(format!("mesh.cert {} is not of the CA in {key} {}: {error}", cert.display(), ca.display())),
    }
    Ok((clients, roots))
}

fn read_roots(key: &str, ca: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = ca.display();
    let read = CertificateDer::pem_file_iter(ca).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| format!("{key} {shown} {}", explain(&error)))?;
    if read.is_empty() {
        return Err(format!("{key} {shown} holds no CERTIFICATE in PEM: `pop ca init` makes one"));
    }
    Ok(read)
}

fn load_roots(key: &str, ca: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_roots(key, ca)? {
        roots.add(certificate).map_err(|error| format!("{key} {} cannot be used: {error}", ca.display()))?;
    }
    Ok(roots)
}

/// Believes a node whose certificate is of the CA and names the node that was dialled, or any node where only an address was known.
#[derive(Debug)]
struct NodeVerifier {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if server_name.to_str() != ANYBODY {
            return self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        }
        let name = NodeName::of_certificate(end_entity).ok_or(CertificateError::NotValidForName)?;
        self.chain.verify_server_cert(end_entity, intermediates, &name.server_name(), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Why a handshake failed.
pub(super) fn refusal_of(error: &io::Error) -> Refusal {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => Refusal::of_tls(error),
        None => Refusal::Closed,
    }
}
