//! Certificates that the operator has taken back: the newest list (CRL, RFC 5280) of each CA, signed by it. Nodes give it on to each other.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::tls::explain;

/// Longest list, in bytes: some 3,000 certificates.
pub const CRL_LEN_MAX: usize = 128 << 10;

/// All lists together, in bytes, so that they fit into what may wait for a peer.
const ALL_LEN_MAX: usize = 512 << 10;

/// Which certificate it is: of two of one CA none has the number of the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CertificateId {
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
}

impl CertificateId {
    /// Of a certificate (DER); `None`: it is none.
    pub(super) fn of(der: &[u8]) -> Option<CertificateId> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let serial = certificate.tbs_certificate.serial.to_bytes_be().into();
        Some(CertificateId { issuer: certificate.tbs_certificate.issuer.as_raw().into(), serial })
    }
}

/// What became of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It is newer than what was known.
    New,
    /// It is what is known.
    Known,
    /// A newer one is known, or another one of its number.
    Old,
    /// It is not signed by a CA that this node believes.
    Forged,
    /// It is none, or has no number.
    Malformed,
    /// It is longer than one may be.
    TooLarge,
}

impl Listed {
    /// All, in the order of their counters.
    pub const ALL: [Listed; 6] = [Listed::New, Listed::Known, Listed::Old, Listed::Forged, Listed::Malformed, Listed::TooLarge];

    /// As metrics and the audit log say it.
    pub const fn label(self) -> &'static str {
        match self {
            Listed::New => "new",
            Listed::Known => "known",
            Listed::Old => "old",
            Listed::Forged => "forged",
            Listed::Malformed => "malformed",
            Listed::TooLarge => "too_large",
        }
    }
}

/// A list that was believed.
#[derive(Clone)]
struct List {
    issuer: Box<[u8]>,
    number: u64,
    der: Vec<u8>,
    serials: BTreeSet<Box<[u8]>>,
}

/// The newest list of each CA, by its key: two may have one name.
#[derive(Clone, Default)]
pub(super) struct Revoked(HashMap<Box<[u8]>, List>);

impl Revoked {
    /// Takes a list when it is newer than what is known, and of one of `roots`.
    pub(super) fn take(&mut self, der: &[u8], roots: &[CertificateDer<'_>]) -> Listed {
        if der.len() > CRL_LEN_MAX {
            return Listed::TooLarge;
        }
        // Who says it again and again costs no more than a look.
        if self.0.values().any(|known| known.der == der) {
            return Listed::Known;
        }
        let Ok((rest, list)) = x509_parser::parse_x509_crl(der) else { return Listed::Malformed };
        let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
        // RFC 5280 5.1.1.2: "This field MUST contain the same algorithm identifier as the signature field in the sequence tbsCertList".
        let is_whole = rest.is_empty() && list.signature_value.unused_bits == 0 && list.signature_algorithm == list.tbs_cert_list.signature;
        let Some(number) = number.filter(|_| is_whole) else { return Listed::Malformed };
        let issuer: Box<[u8]> = list.issuer().as_raw().into();
        let signer = |root: &CertificateDer<'_>| {
            let (_, root) = x509_parser::parse_x509_certificate(root).ok()?;
            let is_signer = root.subject().as_raw() == &*issuer && list.verify_signature(root.public_key()).is_ok();
            is_signer.then(|| Box::<[u8]>::from(root.public_key().raw))
        };
        // Before anything it says counts.
        let Some(key) = roots.iter().find_map(signer) else { return Listed::Forged };
        let signed = list.tbs_cert_list.as_ref();
        if let Some(known) = self.0.get(&key) {
            let is_same = || x509_parser::parse_x509_crl(&known.der).is_ok_and(|(_, known)| known.tbs_cert_list.as_ref() == signed);
            match number.cmp(&known.number) {
                std::cmp::Ordering::Equal if is_same() => return Listed::Known,
                std::cmp::Ordering::Less | std::cmp::Ordering::Equal => return Listed::Old,
                std::cmp::Ordering::Greater => {}
            }
        }
        let others: usize = self.0.iter().filter(|(of, _)| **of != key).map(|(_, list)| list.der.len()).sum();
        if others + der.len() > ALL_LEN_MAX {
            return Listed::TooLarge;
        }
        let serials = list.iter_revoked_certificates().map(|one| one.serial().to_bytes_be().into()).collect();
        self.0.insert(key, List { issuer, number, der: der.to_vec(), serials });
        Listed::New
    }

    pub(super) fn has(&self, certificate: &CertificateId) -> bool {
        self.0.values().any(|list| list.issuer == certificate.issuer && list.serials.contains(&certificate.serial))
    }

    /// All lists, DER.
    pub(super) fn lists(&self) -> impl Iterator<Item = &[u8]> {
        self.0.values().map(|list| list.der.as_slice())
    }

    /// Certificates that were taken back.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|list| list.serials.len()).sum()
    }
}

/// The lists in a file, PEM.
///
/// # Errors
///
/// A sentence that says what is wrong with it.
pub(super) fn read(key: &str, file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let shown = file.display();
    let lists = CertificateRevocationListDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let lists = lists.map_err(|error| format!("{key} {shown} {}", explain(&error)))?;
    if lists.is_empty() {
        return Err(format!("{key} {shown} holds no X509 CRL in PEM: `pop ca revoke` makes one"));
    }
    Ok(lists.into_iter().map(|list| list.to_vec()).collect())
}

/// A list as PEM.
pub(super) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };

    struct Ca(Issuer<'static, KeyPair>, CertificateDer<'static>);

    fn ca(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).expect("a certificate").der().clone();
        Ca(Issuer::new(params, key), der)
    }

    impl Ca {
        fn list(&self, number: u64, serials: impl IntoIterator<Item = u64>) -> Vec<u8> {
            let time = |year| rcgen::date_time_ymd(year, 1, 1);
            let one = |serial: u64| RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: time(2026),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: time(2026),
                next_update: time(2036),
                crl_number: SerialNumber::from(number),
                issuing_distribution_point: None,
                revoked_certs: serials.into_iter().map(one).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.0).expect("a list").der().to_vec()
        }

        fn certificate(&self, serial: u64) -> CertificateId {
            let mut params = CertificateParams::new(vec!["a.fra.pop.internal".to_owned()]).expect("a name");
            params.serial_number = Some(SerialNumber::from(serial));
            let key = KeyPair::generate().expect("a key");
            CertificateId::of(params.signed_by(&key, &self.0).expect("a certificate").der()).expect("it is one")
        }
    }

    #[test]
    fn the_newest_list_of_each_ca_counts_and_no_other() {
        let (fra, sin, foreign) = (ca("fra"), ca("sin"), ca("fra"));
        let roots = [fra.1.clone(), sin.1.clone()];
        let mut revoked = Revoked::default();
        assert_eq!(revoked.take(&fra.list(2, [7, 8]), &roots), Listed::New);
        assert_eq!(revoked.take(&sin.list(1, [9]), &roots), Listed::New);
        assert!(revoked.has(&fra.certificate(7)) && !revoked.has(&sin.certificate(7)) && revoked.has(&sin.certificate(9)));
        assert_eq!(revoked.take(&fra.list(2, [7, 8]), &roots), Listed::Known);
        assert_eq!(revoked.take(&fra.list(2, []), &roots), Listed::Old, "another one of this number");
        assert_eq!(revoked.take(&fra.list(1, []), &roots), Listed::Old);
        assert_eq!(revoked.take(&foreign.list(9, []), &roots), Listed::Forged);
        assert!(revoked.has(&fra.certificate(8)), "nothing of these counted");
        assert_eq!(revoked.take(&fra.list(3, [8]), &roots), Listed::New);
        assert!(!revoked.has(&fra.certificate(7)) && revoked.has(&fra.certificate(8)));
        assert_eq!((revoked.len(), revoked.lists().count()), (2, 2));
        // Of two CAs of one name neither takes back what the other has.
        let roots = [fra.1.clone(), sin.1.clone(), foreign.1.clone()];
        assert_eq!(revoked.take(&foreign.list(1, [5]), &roots), Listed::New);
        assert_eq!(revoked.take(&foreign.list(9, [5]), &roots), Listed::New);
        assert!(revoked.has(&fra.certificate(8)) && revoked.has(&foreign.certificate(5)));
        assert_eq!((revoked.len(), revoked.lists().count()), (3, 3));
    }

    #[test]
    fn what_is_damaged_or_too_long_counts_for_nothing() {
        let fra = ca("fra");
        let roots = [fra.1.clone()];
        let (list, mut revoked, certificate) = (fra.list(5, [1, 2, 3]), Revoked::default(), fra.certificate(2));
        let signed = |der: &[u8]| x509_parser::parse_x509_crl(der).map(|(_, list)| list.tbs_cert_list.as_ref().to_vec());
        for at in 0..list.len() {
            let mut damaged = list.clone();
            damaged[at] ^= 1;
            let mut of_damaged = Revoked::default();
            if of_damaged.take(&damaged, &roots) == Listed::New {
                // What is not signed may be written in another way, which says the same.
                assert_eq!(signed(&damaged), signed(&list), "byte {at}");
                assert!(of_damaged.len() == 3 && of_damaged.has(&certificate));
            }
            assert_ne!(revoked.take(&list[..at], &roots), Listed::New, "{at} bytes");
        }
        assert_eq!(revoked.take(&[list.as_slice(), &[0]].concat(), &roots), Listed::Malformed);
        assert_eq!(revoked.take(&vec![0; CRL_LEN_MAX + 1], &roots), Listed::TooLarge);
        assert_eq!(revoked.take(&fra.list(5, 0..20_000), &roots), Listed::TooLarge);
        assert_eq!(revoked.len(), 0);
    }
}
