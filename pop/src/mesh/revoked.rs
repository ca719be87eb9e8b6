//! Certificates that the operator has taken back: the newest list (CRL, RFC 5280) of each CA, signed by it. Nodes give it on to each other.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::time::Instant;

use crate::tls::explain;

/// Longest list, in bytes: some 3,000 certificates.
pub const CRL_LEN_MAX: usize = 128 << 10;

/// All lists together, in bytes, so that they fit into what may wait for a peer.
const ALL_LEN_MAX: usize = 512 << 10;

/// A link may tell of so many lists at once beside one of each CA, and of one more each [`TELL_INTERVAL`]: looking at one of 128 KiB takes
/// about a millisecond. Those that are known already cost nothing.
const TELL_BURST: u32 = 4;
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// Others may tell of so many newer lists of one CA at once, and of one more each [`RENEW_INTERVAL`]: each is written to the disk and told to
/// all, and whoever holds a CA signs as many as it likes.
const RENEW_BURST: u32 = 4;
const RENEW_INTERVAL: Duration = Duration::from_secs(4);

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
    /// Its link has told of too many, or others have of its CA: the last such list of a link is looked at again when there is time.
    TooMany,
}

impl Listed {
    /// All, in the order of their counters.
    pub const ALL: [Listed; 7] =
        [Listed::New, Listed::Known, Listed::Old, Listed::Forged, Listed::Malformed, Listed::TooLarge, Listed::TooMany];

    /// As metrics and the audit log say it.
    pub const fn label(self) -> &'static str {
        match self {
            Listed::New => "new",
            Listed::Known => "known",
            Listed::Old => "old",
            Listed::Forged => "forged",
            Listed::Malformed => "malformed",
            Listed::TooLarge => "too_large",
            Listed::TooMany => "too_many",
        }
    }
}

/// How much of something there was: so much at once, and one more each interval.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance(Option<Instant>);

impl Allowance {
    fn take(&mut self, now: Instant, burst: u32, interval: Duration) -> bool {
        let next = self.0.map_or(now, |next| next.max(now));
        let is_there = next.duration_since(now) <= interval * burst.saturating_sub(1);
        if is_there {
            self.0 = Some(next + interval);
        }
        is_there
    }
}

/// What a link tells of lists.
#[derive(Debug, Default)]
pub(super) struct Telling {
    told: Allowance,
    /// The last one that was too much.
    waiting: Option<Arc<[u8]>>,
}

impl Telling {
    /// Whether a list that it tells of may be looked at now.
    pub(super) fn may_look(&mut self, now: Instant, roots: usize) -> bool {
        self.told.take(now, TELL_BURST + u32::try_from(roots).unwrap_or(u32::MAX / 2), TELL_INTERVAL)
    }

    pub(super) fn wait(&mut self, list: Arc<[u8]>) {
        self.waiting = Some(list);
    }

    /// A list that waited again has been looked at, and is still too much: one that came since is the newer one.
    pub(super) fn wait_again(&mut self, list: Arc<[u8]>) {
        self.waiting.get_or_insert(list);
    }

    /// The list that waits, when it may be looked at now.
    pub(super) fn waited(&mut self, now: Instant, roots: usize) -> Option<Arc<[u8]>> {
        if self.waiting.is_none() || !self.may_look(now, roots) {
            return None;
        }
        self.waiting.take()
    }
}

/// A list that a CA has signed which this node believes.
#[derive(Clone, Debug)]
pub(super) struct List {
    /// The CA's.
    key: Box<[u8]>,
    issuer: Box<[u8]>,
    number: u64,
    der: Vec<u8>,
    /// SHA-256 of what is signed.
    signed: [u8; 32],
    serials: BTreeSet<Box<[u8]>>,
}

/// Looks at a list of one of `roots`. Takes about a millisecond, so nothing is locked meanwhile.
pub(super) fn verify(der: &[u8], roots: &[CertificateDer<'_>]) -> Result<List, Listed> {
    if der.len() > CRL_LEN_MAX {
        return Err(Listed::TooLarge);
    }
    let Ok((rest, list)) = x509_parser::parse_x509_crl(der) else { return Err(Listed::Malformed) };
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
    // RFC 5280 5.1.1.2: "This field MUST contain the same algorithm identifier as the signature field in the sequence tbsCertList".
    let is_whole = rest.is_empty() && list.signature_value.unused_bits == 0 && list.signature_algorithm == list.tbs_cert_list.signature;
    let Some(number) = number.filter(|_| is_whole) else { return Err(Listed::Malformed) };
    let issuer: Box<[u8]> = list.issuer().as_raw().into();
    let signer = |root: &CertificateDer<'_>| {
        let (_, root) = x509_parser::parse_x509_certificate(root).ok()?;
        let is_signer = root.subject().as_raw() == &*issuer && list.verify_signature(root.public_key()).is_ok();
        is_signer.then(|| Box::<[u8]>::from(root.public_key().raw))
    };
    // Before anything it says counts.
    let Some(key) = roots.iter().find_map(signer) else { return Err(Listed::Forged) };
    let mut signed = [0; 32];
    signed.copy_from_slice(digest::digest(&digest::SHA256, list.tbs_cert_list.as_ref()).as_ref());
    let serials = list.iter_revoked_certificates().map(|one| one.serial().to_bytes_be().into()).collect();
    Ok(List { key, issuer, number, der: der.to_vec(), signed, serials })
}

/// The newest list of each CA, by its key: two may have one name.
#[derive(Clone, Default)]
pub(super) struct Revoked {
    lists: HashMap<Box<[u8]>, List>,
    /// What others have told of each CA that has had a list.
    renewed: HashMap<Box<[u8]>, Allowance>,
}

impl Revoked {
    /// Who says it again and again costs no more than a look.
    pub(super) fn knows(&self, der: &[u8]) -> bool {
        self.lists.values().any(|known| known.der == der)
    }

    /// Takes a list when it is newer than what is known, and of one of `roots`.
    pub(super) fn take(&mut self, der: &[u8], roots: &[CertificateDer<'_>]) -> Listed {
        if self.knows(der) {
            return Listed::Known;
        }
        match verify(der, roots) {
            Ok(list) => self.enter(list, None),
            Err(why) => why,
        }
    }

    /// The same for one that was verified. `told`: another node has told of it, now.
    pub(super) fn enter(&mut self, list: List, told: Option<Instant>) -> Listed {
        if let Some(known) = self.lists.get(&list.key) {
            match list.number.cmp(&known.number) {
                std::cmp::Ordering::Equal if known.signed == list.signed => return Listed::Known,
                std::cmp::Ordering::Less | std::cmp::Ordering::Equal => return Listed::Old,
                std::cmp::Ordering::Greater => {}
            }
        }
        let others: usize = self.lists.iter().filter(|(of, _)| **of != list.key).map(|(_, list)| list.der.len()).sum();
        if others + list.der.len() > ALL_LEN_MAX {
            return Listed::TooLarge;
        }
        if let Some(now) = told
            && !self.renewed.entry(list.key.clone()).or_default().take(now, RENEW_BURST, RENEW_INTERVAL)
        {
            return Listed::TooMany;
        }
        self.lists.insert(list.key.clone(), list);
        Listed::New
    }

    pub(super) fn has(&self, certificate: &CertificateId) -> bool {
        self.lists.values().any(|list| list.issuer == certificate.issuer && list.serials.contains(&certificate.serial))
    }

    /// All lists, DER.
    pub(super) fn lists(&self) -> impl Iterator<Item = &[u8]> {
        self.lists.values().map(|list| list.der.as_slice())
    }

    /// Certificates that were taken back.
    pub(super) fn len(&self) -> usize {
        self.lists.values().map(|list| list.serials.len()).sum()
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

    #[tokio::test(start_paused = true)]
    async fn what_others_tell_is_bounded_for_each_ca_and_each_link_and_the_last_of_it_is_not_lost() {
        let (fra, sin) = (ca("fra"), ca("sin"));
        let roots = [fra.1.clone(), sin.1.clone()];
        let (mut revoked, mut telling, told) = (Revoked::default(), Telling::default(), Some(Instant::now()));
        let list = |of: &Ca, number| verify(&of.list(number, [7]), &roots).expect("it is signed");
        for number in 1..=u64::from(RENEW_BURST) {
            assert_eq!(revoked.enter(list(&fra, number), told), Listed::New);
        }
        assert_eq!(revoked.enter(list(&fra, 9), told), Listed::TooMany);
        assert_eq!(revoked.enter(list(&sin, 1), told), Listed::New, "another CA has its own");
        assert_eq!(revoked.enter(list(&fra, 8), None), Listed::New, "the operator's count");
        tokio::time::advance(RENEW_INTERVAL).await;
        let told = Some(Instant::now());
        assert_eq!(revoked.enter(list(&fra, 9), told), Listed::New);
        assert_eq!(revoked.enter(list(&fra, 10), told), Listed::TooMany);

        let looks = (0..1_000).filter(|_| telling.may_look(Instant::now(), roots.len())).count();
        assert_eq!(looks, TELL_BURST as usize + roots.len());
        (1..=3).for_each(|list| telling.wait([list].into()));
        assert_eq!(telling.waited(Instant::now(), roots.len()), None);
        tokio::time::advance(TELL_INTERVAL).await;
        assert_eq!(telling.waited(Instant::now(), roots.len()).as_deref(), Some([3].as_slice()));
        telling.wait([4].into());
        telling.wait_again([3].into());
        tokio::time::advance(TELL_INTERVAL).await;
        assert_eq!(telling.waited(Instant::now(), roots.len()).as_deref(), Some([4].as_slice()));
        assert!(telling.waited(Instant::now(), roots.len()).is_none() && !telling.may_look(Instant::now(), roots.len()));
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
