//! The operator's CA: a file of a certificate, a file of a key, and the nodes' certificates that they sign. It is nobody else's, so
//! whoever has a certificate of it is a node of the mesh.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::GeneralName;

use crate::mesh::{CRL_LEN_MAX, Grants, NodeName};
use crate::token::unix_now_s;

/// How long a CA holds. Its nodes are renewed often; the CA is laid out once.
const CA_DAYS: u64 = 3_650;

/// A certificate begins in the past: clocks of two nodes differ.
const BACKDATED: Duration = Duration::from_secs(3_600);

const DAY: Duration = Duration::from_secs(86_400);

/// Where a certificate and its key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The CA's certificate, PEM.
    pub ca: PathBuf,
    /// The certificate that was made, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
    /// Until when it is valid, in Unix seconds.
    pub expires_at_s: u64,
    /// Which API keys the node's PoP may use; `None` for a CA.
    pub api_keys: Option<Grants>,
}

/// What goes into a node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node.
    pub name: NodeName,
    /// How long it is valid.
    pub days: u64,
    /// Addresses that it proves, too: the bus checks them.
    pub addresses: Vec<IpAddr>,
    /// Which API keys its PoP may use.
    pub api_keys: Grants,
}

/// Makes `ca.pem` and `ca.key` in `folder`.
///
/// # Errors
///
/// A sentence that says what to change; files that are there are only overwritten with `force`.
pub fn init(folder: &Path, name: &str, force: bool) -> Result<Made, String> {
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err("--name takes 1 to 64 bytes of text".to_owned());
    }
    let (cert, key) = ca_files(folder);
    refuse_present(&[&cert, &key], force, "every certificate that it signed would be worthless")?;
    let secret = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let expires_at_s = set_validity(&mut params, CA_DAYS);
    let made = params.self_signed(&secret).map_err(|error| format!("no certificate could be made: {error}"))?;
    make_folder(folder)?;
    write_pair(&cert, &made.pem(), &key, &secret.serialize_pem())?;
    Ok(Made { ca: cert.clone(), cert, key, expires_at_s, api_keys: None })
}

/// Makes `node.pem` and `node.key` in `out`, signed by the CA in `folder`, and lays `ca.pem` beside them.
///
/// # Errors
///
/// As [`init`].
pub fn issue(folder: &Path, out: &Path, request: &Request, force: bool) -> Result<Made, String> {
    let (cert, key) = node_files(out);
    refuse_present(&[&cert, &key], force, "`pop ca renew` makes the same names again")?;
    sign(folder, out, request)
}

/// Makes the certificate in `out` again: the same names, a new key. Without `api_keys` it is for those that it was for.
///
/// # Errors
///
/// As [`init`].
pub fn renew(folder: &Path, out: &Path, days: u64, api_keys: Option<Grants>) -> Result<Made, String> {
    let (cert, _) = node_files(out);
    let shown = cert.display();
    let old = CertificateDer::from_pem_file(&cert)
        .map_err(|error| format!("{shown} is no certificate to renew: {}", crate::tls::explain(&error)))?;
    let name = NodeName::of_certificate(&old).ok_or_else(|| format!("{shown} names no node of a PoP: `pop ca issue` makes one"))?;
    let api_keys = api_keys.unwrap_or_else(|| Grants::of_certificate(&old));
    sign(folder, out, &Request { name, days, addresses: addresses_of(&old), api_keys })
}

/// Where `issue` writes when it is not told: a folder of the node's own beside the CA.
pub fn default_out(folder: &Path, name: &NodeName) -> PathBuf {
    folder.join(name.to_string())
}

fn sign(folder: &Path, out: &Path, request: &Request) -> Result<Made, String> {
    let Ca { pem, issuer, expires_at_s: ca_expires_at_s } = Ca::load(folder)?;
    let secret = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
    let names = std::iter::once(request.name.dns()).chain(request.addresses.iter().map(IpAddr::to_string));
    let mut params =
        CertificateParams::new(names.collect::<Vec<_>>()).map_err(|error| format!("no certificate can hold these names: {error}"))?;
    for uri in request.api_keys.uris()? {
        let uri = uri.try_into().map_err(|error| format!("no certificate can hold these API keys: {error}"))?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.distinguished_name = common_name(&request.name.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node takes links and makes them.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let expires_at_s = set_validity(&mut params, request.days);
    if expires_at_s > ca_expires_at_s {
        let left = ca_expires_at_s.saturating_sub(unix_now_s()) / DAY.as_secs();
        return Err(format!("the CA itself is valid for {left} days only: give fewer --days, or make a new CA for all nodes"));
    }
    let made = params.signed_by(&secret, &issuer).map_err(|error| format!("no certificate could be made: {error}"))?;
    make_folder(out)?;
    let (cert, key) = node_files(out);
    note_issued(folder, made.der(), &request.name)?;
    write_pair(&cert, &made.pem(), &key, &secret.serialize_pem())?;
    let (own, beside) = (ca_files(folder).0, out.join("ca.pem"));
    if own != beside {
        write(&beside, &pem, 0o644)?;
    }
    Ok(Made { ca: beside, cert, key, expires_at_s, api_keys: Some(request.api_keys.clone()) })
}

/// The number of a certificate, which no other one of its CA has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From hexadecimal digits, with or without colons, as tools show it.
    ///
    /// # Errors
    ///
    /// A sentence that says what it takes.
    pub fn parse(text: &str) -> Result<Serial, String> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let read: Option<Vec<u8>> = digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect();
        // RFC 5280 4.1.2.2: "Conforming CAs MUST NOT use serialNumber values longer than 20 octets."
        let read = read.filter(|read| (1..=20).contains(&read.len()));
        read.map(|bytes| Serial::of(&bytes)).ok_or_else(|| "--serial takes 2 to 40 hexadecimal digits, two for each byte".to_owned())
    }

    /// Without zeros in front.
    fn of(bytes: &[u8]) -> Serial {
        Serial(bytes[bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len() - 1)..].to_vec())
    }

    fn of_certificate(der: &[u8]) -> Option<Serial> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(Serial::of(&certificate.tbs_certificate.serial.to_bytes_be()))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A list of certificates that were taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The list (CRL), PEM.
    pub file: PathBuf,
    /// Of two lists the one with the higher number counts.
    pub number: u64,
    /// What was taken back now.
    pub serials: Vec<Serial>,
    /// So many are in the list.
    pub revoked: usize,
}

/// The certificates of a node that this CA has made.
///
/// # Errors
///
/// A sentence that says what to change.
pub fn serials_of(folder: &Path, name: &NodeName) -> Result<Vec<Serial>, String> {
    let issued = match fs::read_to_string(issued_file(folder)) {
        Ok(issued) => issued,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("{}: {error}: what it names would be left out", issued_file(folder).display())),
    };
    let of_name = |line: &str| {
        let (serial, of) = line.split_once(' ')?;
        Serial::parse(serial).ok().filter(|_| of == name.to_string())
    };
    let mut serials: Vec<Serial> = issued.lines().filter_map(of_name).collect();
    // It may be of before there was that file.
    let there = CertificateDer::from_pem_file(node_files(&default_out(folder, name)).0).ok();
    serials.extend(there.filter(|der| NodeName::of_certificate(der).as_ref() == Some(name)).and_then(|der| Serial::of_certificate(&der)));
    serials.sort_unstable();
    serials.dedup();
    if serials.is_empty() {
        return Err(format!("this CA has made no certificate of {name}: look at the names, or give --serial of the certificate itself"));
    }
    Ok(serials)
}

/// Takes certificates back: `crl.pem` in `folder`, signed by the CA there, is the list before with these.
///
/// # Errors
///
/// A sentence that says what to change.
pub fn revoke(folder: &Path, serials: &[Serial]) -> Result<List, String> {
    let Ca { issuer, pem, .. } = Ca::load(folder)?;
    let file = folder.join("crl.pem");
    let (before, mut all) = if file.exists() { read_list(&file, &pem)? } else { (0, Vec::new()) };
    all.extend(serials.iter().cloned());
    all.sort_unstable();
    all.dedup();
    // Newer than those of a copy of this folder, or of a list that is lost.
    let number = (before + 1).max(unix_now_s());
    let (epoch, now) = (rcgen::date_time_ymd(1970, 1, 1), Duration::from_secs(unix_now_s()));
    let one = |serial: &Serial| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial.0),
        revocation_time: epoch + now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: epoch + now.saturating_sub(BACKDATED),
        // It counts until there is a newer one.
        next_update: epoch + now + DAY * CA_DAYS as u32,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: all.iter().map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let made = params.signed_by(&issuer).map_err(|error| format!("no list could be made: {error}"))?;
    if made.der().len() > CRL_LEN_MAX {
        return Err(format!(
            "{} would be longer than the {CRL_LEN_MAX} bytes that nodes take: make a new CA for all nodes",
            file.display()
        ));
    }
    let text = made.pem().map_err(|error| format!("no list could be made: {error}"))?;
    write(&file, &text, 0o644)?;
    Ok(List { file, number, serials: serials.to_vec(), revoked: all.len() })
}

/// The number of the list in a file, and what is in it.
fn read_list(file: &Path, ca_pem: &str) -> Result<(u64, Vec<Serial>), String> {
    let shown = file.display();
    let der = CertificateRevocationListDer::from_pem_file(file).map_err(|error| format!("{shown} {}", crate::tls::explain(&error)))?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| format!("ca.pem {}", crate::tls::explain(&error)))?;
    let (_, list) = x509_parser::parse_x509_crl(&der).map_err(|_| format!("{shown} is no list of certificates"))?;
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).map_err(|_| "ca.pem is no X.509".to_owned())?;
    list.verify_signature(ca.public_key()).map_err(|_| format!("{shown} is not of this CA: move it away"))?;
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).ok_or_else(|| format!("{shown} has no number"))?;
    Ok((number, list.iter_revoked_certificates().map(|one| Serial::of(&one.serial().to_bytes_be())).collect()))
}

fn issued_file(folder: &Path) -> PathBuf {
    folder.join("issued")
}

/// So that they can be taken back by the node's name.
fn note_issued(folder: &Path, der: &[u8], name: &NodeName) -> Result<(), String> {
    let Some(serial) = Serial::of_certificate(der) else { return Ok(()) };
    let file = issued_file(folder);
    let noted = fs::OpenOptions::new().create(true).append(true).open(&file).and_then(|mut open| writeln!(open, "{serial} {name}"));
    noted.map_err(|error| format!("{} cannot be written: {error}", file.display()))
}

/// A CA that can sign.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    expires_at_s: u64,
}

impl Ca {
    fn load(folder: &Path) -> Result<Ca, String> {
        let (cert, key) = ca_files(folder);
        let (cert_shown, key_shown) = (cert.display(), key.display());
        let unreadable = |path: &Path, error: &std::io::Error| match error.kind() {
            ErrorKind::NotFound => format!("{} is not there: `pop ca init --dir {}` makes a CA", path.display(), folder.display()),
            _ => format!("{} cannot be read: {error}", path.display()),
        };
        let pem = fs::read_to_string(&cert).map_err(|error| unreadable(&cert, &error))?;
        let mode = fs::metadata(&key).map_err(|error| unreadable(&key, &error))?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(format!("{key_shown}: everybody may use the CA's private key: chmod 600 {key_shown}"));
        }
        let secret = fs::read_to_string(&key).map_err(|error| unreadable(&key, &error))?;
        let secret = KeyPair::from_pem(&secret).map_err(|error| format!("{key_shown} is no private key: {error}"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("{cert_shown} is no certificate: {}", crate::tls::explain(&error)))?;
        let (_, read) = x509_parser::parse_x509_certificate(&der).map_err(|_| format!("{cert_shown} is no X.509"))?;
        if !read.is_ca() {
            return Err(format!("{cert_shown} is no CA: `pop ca init` makes one"));
        }
        if *read.public_key().subject_public_key.data != *rcgen::PublicKeyData::der_bytes(&secret) {
            return Err(format!("{key_shown} is not the key of {cert_shown}: give the two that belong together"));
        }
        let expires_at_s = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::from_ca_cert_der(&der, secret).map_err(|error| format!("{cert_shown} cannot sign: {error}"))?;
        Ok(Ca { pem, issuer, expires_at_s })
    }
}

fn ca_files(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("ca.pem"), folder.join("ca.key"))
}

fn node_files(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("node.pem"), folder.join("node.key"))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a little before now, for `days`; the end in Unix seconds.
fn set_validity(params: &mut CertificateParams, days: u64) -> u64 {
    let (epoch, now) = (rcgen::date_time_ymd(1970, 1, 1), Duration::from_secs(unix_now_s()));
    let end = now + DAY * u32::try_from(days).unwrap_or(u32::MAX);
    (params.not_before, params.not_after) = (epoch + now.saturating_sub(BACKDATED), epoch + end);
    end.as_secs()
}

fn addresses_of(der: &[u8]) -> Vec<IpAddr> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::IPAddress(bytes) => {
                <[u8; 4]>::try_from(*bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()
            }
            _ => None,
        })
        .collect()
}

fn refuse_present(files: &[&Path], force: bool, else_what: &str) -> Result<(), String> {
    match files.iter().find(|file| !force && fs::symlink_metadata(file).is_ok()) {
        Some(file) => Err(format!("{} is there already: {else_what}; --force overwrites it", file.display())),
        None => Ok(()),
    }
}

fn make_folder(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| format!("the folder {} cannot be made: {error}", folder.display()))
}

/// Key first: a certificate without its key is of no use.
fn write_pair(cert: &Path, cert_pem: &str, key: &Path, key_pem: &str) -> Result<(), String> {
    write(key, key_pem, 0o600)?;
    write(cert, cert_pem, 0o644)
}

/// Whole or not at all: a node that reloads meanwhile reads the old file or the new one.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), String> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        fs::rename(&new, file)
    });
    written.map_err(|error| format!("{} cannot be written: {error}", file.display()))
}
