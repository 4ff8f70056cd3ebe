//! A certificate and its issuer: the question about it, and the responders to ask.

use crate::auth::certificate;
use der::{Decode, Encode, Header, Reader, SliceReader};
use rustls::crypto::ring::default_provider;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, ExtendedKeyUsage};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{CertId, OcspRequest, Request, TbsRequest, Version};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Links of a chain, at most; a longer one leads to no authority.
pub const LINKS_MAX: usize = 16;
/// Responders of one certificate that are asked, at most.
pub const RESPONDERS_MAX: usize = 4;
/// Bytes of a certificate, at most: the time to read a longer one may grow with their square.
const CERT_BYTES_MAX: usize = 16 * 1024;

const OCSP: der::asn1::ObjectIdentifier = const_oid("1.3.6.1.5.5.7.48.1");
const OCSP_SIGNING: der::asn1::ObjectIdentifier = const_oid("1.3.6.1.5.5.7.3.9");
const TLS_FEATURE: der::asn1::ObjectIdentifier = const_oid("1.3.6.1.5.5.7.1.24");
const SHA1: der::asn1::ObjectIdentifier = const_oid("1.3.14.3.2.26");
const SHA256: der::asn1::ObjectIdentifier = const_oid("2.16.840.1.101.3.4.2.1");

/// The number of the TLS extension "status_request", by which a certificate demands staples.
const STATUS_REQUEST: u16 = 5;

const fn const_oid(text: &str) -> der::asn1::ObjectIdentifier {
    der::asn1::ObjectIdentifier::new_unwrap(text)
}

/// A certificate and that of its issuer, which has signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertLink {
    cert: Certificate,
    issuer: Certificate,
    fingerprint: [u8; 32],
}

impl CertLink {
    /// Returns the link of a certificate with the one among `candidates` that has signed it, all in
    /// DER form; `None` if none has, or if the certificate cannot be read.
    pub fn find<'a>(cert: &[u8], candidates: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let read = |der: &[u8]| {
            let is_short = der.len() <= CERT_BYTES_MAX;
            is_short.then(|| Certificate::from_der(der).ok()).flatten()
        };
        let parsed = read(cert)?;
        let issuer =
            candidates.filter_map(read).find(|issuer| has_issued(issuer, cert, &parsed))?;
        Some(Self { cert: parsed, issuer, fingerprint: Sha256::digest(cert).into() })
    }

    /// The SHA-256 of the certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Returns the subject of the certificate, as `CN=…,O=…`.
    pub fn subject(&self) -> String {
        certificate::show(&self.der()).map(|shown| shown.subject).unwrap_or_default()
    }

    /// Returns the subject of the issuer, as `CN=…,O=…`.
    pub fn issuer(&self) -> String {
        let issuer = self.issuer.to_der().unwrap_or_default();
        certificate::show(&issuer).map(|shown| shown.subject).unwrap_or_default()
    }

    /// Returns the certificate in DER form.
    pub fn der(&self) -> Vec<u8> {
        self.cert.to_der().unwrap_or_default()
    }

    /// Returns the HTTP addresses of responders that the certificate names, at most 4.
    pub fn responders(&self) -> Vec<String> {
        let Ok(Some((_, access))) = self.cert.tbs_certificate.get::<AuthorityInfoAccessSyntax>()
        else {
            return Vec::new();
        };
        let of_ocsp = access.0.into_iter().filter(|one| one.access_method == OCSP);
        let urls = of_ocsp.filter_map(|one| match one.access_location {
            GeneralName::UniformResourceIdentifier(url) => Some(url.to_string()),
            _ => None,
        });
        let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        urls.filter(is_http).take(RESPONDERS_MAX).collect()
    }

    /// Returns the question to a responder, in DER form.
    ///
    /// # Errors
    ///
    /// Returns an error about a certificate of which no question can be made.
    pub fn request(&self) -> Result<Vec<u8>, String> {
        let unusable = |error: der::Error| error.to_string();
        let algorithm =
            AlgorithmIdentifierOwned { oid: SHA1, parameters: Some(der::asn1::Null.into()) };
        let (name, key) = self.issuer_ids().map_err(unusable)?;
        let octets = |bytes: &[u8]| der::asn1::OctetString::new(bytes).map_err(unusable);
        let req_cert = CertId {
            hash_algorithm: algorithm,
            issuer_name_hash: octets(&Sha1::digest(name))?,
            issuer_key_hash: octets(&Sha1::digest(key))?,
            serial_number: self.cert.tbs_certificate.serial_number.clone(),
        };
        let request = OcspRequest {
            tbs_request: TbsRequest {
                version: Version::V1,
                requestor_name: None,
                request_list: vec![Request { req_cert, single_request_extensions: None }],
                request_extensions: None,
            },
            optional_signature: None,
        };
        request.to_der().map_err(unusable)
    }

    /// Whether an answer is about this certificate.
    pub(super) fn is_named_by(&self, id: &CertId) -> bool {
        let Ok((name, key)) = self.issuer_ids() else { return false };
        let (name, key) = match id.hash_algorithm.oid {
            SHA1 => (Sha1::digest(name).to_vec(), Sha1::digest(key).to_vec()),
            SHA256 => (Sha256::digest(name).to_vec(), Sha256::digest(key).to_vec()),
            _ => return false,
        };
        id.serial_number == self.cert.tbs_certificate.serial_number
            && id.issuer_name_hash.as_bytes() == name
            && id.issuer_key_hash.as_bytes() == key
    }

    /// Returns what identifies the issuer: its name in DER form, and the bits of its key.
    fn issuer_ids(&self) -> der::Result<(Vec<u8>, &[u8])> {
        let issuer = &self.issuer.tbs_certificate;
        Ok((
            issuer.subject.to_der()?,
            issuer.subject_public_key_info.subject_public_key.raw_bytes(),
        ))
    }

    /// Whether the issuer, or somebody whom it has put in charge of answers, has signed `signed`.
    pub(super) fn is_answered_by(
        &self,
        signed: &Signed<'_>,
        delegates: &[Certificate],
        now: i64,
    ) -> bool {
        if signed.is_by(&self.issuer) {
            return true;
        }
        delegates.iter().take(LINKS_MAX).any(|delegate| {
            signed.is_by(delegate)
                && may_answer(delegate, now)
                && delegate.to_der().is_ok_and(|der| has_issued(&self.issuer, &der, delegate))
        })
    }
}

/// Whether the certificate is for signatures of answers, and is valid at `now`.
fn may_answer(delegate: &Certificate, now: i64) -> bool {
    let usage = delegate.tbs_certificate.get::<ExtendedKeyUsage>();
    let validity = &delegate.tbs_certificate.validity;
    let at = |time: &x509_cert::time::Time| {
        i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
    };
    matches!(usage, Ok(Some((_, usages))) if usages.0.contains(&OCSP_SIGNING))
        && at(&validity.not_before) <= now
        && now <= at(&validity.not_after)
}

/// Whether `issuer` has signed a certificate, which is given in DER form and parsed.
fn has_issued(issuer: &Certificate, der: &[u8], issued: &Certificate) -> bool {
    if issuer.tbs_certificate.subject != issued.tbs_certificate.issuer {
        return false;
    }
    let Some(bytes) = first_element(der) else { return false };
    let algorithm = &issued.signature_algorithm;
    Signed { bytes, algorithm, signature: issued.signature.raw_bytes() }.is_by(issuer)
}

/// Bytes with a signature.
pub(super) struct Signed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) algorithm: &'a AlgorithmIdentifierOwned,
    pub(super) signature: &'a [u8],
}

impl Signed<'_> {
    /// Whether the signature is by the key of this certificate.
    fn is_by(&self, signer: &Certificate) -> bool {
        let key = &signer.tbs_certificate.subject_public_key_info;
        let (Some(algorithm), Some(of_key)) = (contents(self.algorithm), contents(&key.algorithm))
        else {
            return false;
        };
        let known = default_provider().signature_verification_algorithms.all;
        let mut fitting = known.iter().filter(|one| {
            *one.signature_alg_id() == *algorithm && *one.public_key_alg_id() == *of_key
        });
        let key = key.subject_public_key.raw_bytes();
        fitting.any(|one| one.verify_signature(key, self.bytes, self.signature).is_ok())
    }
}

/// Returns an identifier of an algorithm without its outermost frame.
fn contents(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    let mut reader = SliceReader::new(&der).ok()?;
    Header::decode(&mut reader).ok()?;
    let length = reader.remaining_len();
    reader.read_slice(length).ok().map(<[u8]>::to_vec)
}

/// Returns the first element of a sequence in DER form, which is what a signature covers.
pub(super) fn first_element(sequence: &[u8]) -> Option<&[u8]> {
    let mut reader = SliceReader::new(sequence).ok()?;
    Header::decode(&mut reader).ok()?;
    reader.tlv_bytes().ok()
}

/// Whether a certificate in DER form demands that its server staples its status.
pub fn is_must_staple(der: &[u8]) -> bool {
    let Ok(cert) = Certificate::from_der(der) else { return false };
    let mut extensions = cert.tbs_certificate.extensions.iter().flatten();
    let feature = extensions.find(|extension| extension.extn_id == TLS_FEATURE);
    feature.is_some_and(|feature| {
        let numbers = <Vec<u16> as Decode>::from_der(feature.extn_value.as_bytes());
        numbers.is_ok_and(|numbers| numbers.contains(&STATUS_REQUEST))
    })
}

/// Whether a certificate in DER form is that of an authority, and valid at `now`, in seconds since
/// 1970: no other may stand between a peer and those who are trusted.
fn may_issue(der: &[u8], now: i64) -> bool {
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return false };
    let now = ASN1Time::from_timestamp(now);
    cert.is_ca() && now.is_ok_and(|now| cert.validity().is_valid_at(now))
}

/// Returns the links from a peer's own certificate, the first of `shown`, up to that of an
/// authority, all in DER form, at the time `now`, in seconds since 1970. `None` means that the
/// certificates lead to no authority.
pub fn links<'a>(
    shown: &'a [impl AsRef<[u8]>],
    authorities: &'a [impl AsRef<[u8]>],
    now: i64,
) -> Option<Vec<CertLink>> {
    let mut last: Vec<u8> = shown.first()?.as_ref().to_vec();
    let mut links: Vec<CertLink> = Vec::new();
    while !authorities.iter().any(|authority| authority.as_ref() == last) {
        let trusted = CertLink::find(&last, authorities.iter().map(AsRef::as_ref));
        let is_last = trusted.is_some();
        let others = || {
            let others = shown.iter().skip(1).map(AsRef::as_ref);
            CertLink::find(&last, others.filter(|der| may_issue(der, now)))
        };
        let link = trusted.or_else(others)?;
        last = link.issuer.to_der().ok()?;
        links.push(link);
        if is_last {
            break;
        }
        if links.len() >= LINKS_MAX {
            return None;
        }
    }
    Some(links)
}
