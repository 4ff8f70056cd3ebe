//! Client certificates: the names in them, their end, and their fields for monitoring.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::oid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::host::hex;

/// Names of a certificate that `verify_and_map` maps to users, in the order in which they are
/// tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// E-mail addresses, DNS names and URIs among the alternative names.
    pub alternative: Vec<String>,
    /// The subject, as `CN=…,O=…`.
    pub subject: String,
}

impl Names {
    /// The user among `users` that the certificate is for.
    pub fn user<'a>(&self, mut users: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        for name in &self.alternative {
            if let Some(user) = users.clone().find(|user| user == name) {
                return Some(user);
            }
        }
        users.find(|user| attributes(user) == attributes(&self.subject))
    }
}

/// Returns the end of validity of a certificate in DER form, in seconds since 1970.
pub fn ends_at(der: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Returns the attributes of a distinguished name, sorted, so that two orders compare as equal.
fn attributes(name: &str) -> Option<Vec<(String, &str)>> {
    let pair = |part: &str| part.split_once('=').map(|(key, _)| key.trim().to_ascii_uppercase());
    let mut all = Vec::new();
    for part in name.split([',', '+']) {
        let (_, value) = part.split_once('=')?;
        all.push((pair(part)?, value.trim()));
    }
    all.sort();
    Some(all)
}

/// Returns the names in a certificate in DER form; none if it cannot be read.
pub fn names(der: &[u8]) -> Names {
    let mut names = Names { alternative: Vec::new(), subject: String::new() };
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return names };
    names.subject = subject(&certificate);
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
    let all = &extension.value.general_names;
    let emails = all.iter().filter_map(|name| match name {
        GeneralName::RFC822Name(email) => Some(*email),
        _ => None,
    });
    let hosts = all.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(*host),
        _ => None,
    });
    let uris = all.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    names.alternative = emails.chain(hosts).chain(uris).map(str::to_owned).collect();
    names
}

/// Returns the subject in the order that Go writes: the most specific attribute first.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let order = [
        ("SERIALNUMBER", oid!(2.5.4.5)),
        ("CN", oid!(2.5.4.3)),
        ("POSTALCODE", oid!(2.5.4.17)),
        ("STREET", oid!(2.5.4.9)),
        ("ST", oid!(2.5.4.8)),
        ("L", oid!(2.5.4.7)),
        ("OU", oid!(2.5.4.11)),
        ("O", oid!(2.5.4.10)),
        ("C", oid!(2.5.4.6)),
        ("DC", oid!(0.9.2342.19200300.100.1.25)),
    ];
    let mut parts = Vec::new();
    for (key, oid) in order {
        let of_key = certificate.subject().iter_by_oid(&oid);
        let values: Vec<String> =
            of_key.filter_map(|value| Some(format!("{key}={}", value.as_str().ok()?))).collect();
        if !values.is_empty() {
            parts.push(values.join("+"));
        }
    }
    parts.join(",")
}

/// Certificates of a chain, at most; a longer one is cut.
const CHAIN_MAX: usize = 16;

/// Returns the chain from a peer's own certificate, the first of `shown`, to that of an authority,
/// all in DER form. The other certificates of the peer may be in any order.
pub fn chain<'a>(
    shown: &'a [impl AsRef<[u8]>],
    authorities: &'a [impl AsRef<[u8]>],
) -> Vec<&'a [u8]> {
    let shown: Vec<&[u8]> = shown.iter().map(AsRef::as_ref).collect();
    let authorities: Vec<&[u8]> = authorities.iter().map(AsRef::as_ref).collect();
    let mut chain: Vec<&[u8]> = shown.iter().take(1).copied().collect();
    while let Some(last) = chain.last()
        && chain.len() < CHAIN_MAX
        && !authorities.contains(last)
        && let Some(next) = authorities.iter().chain(&shown).find(|next| has_issued(next, last))
        && !chain.contains(next)
    {
        chain.push(next);
    }
    chain
}

/// Whether the subject of one certificate is the issuer of another, both in DER form.
fn has_issued(issuer: &[u8], issued: &[u8]) -> bool {
    let parsed = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
    let (Ok(issuer), Ok(issued)) = (parsed(issuer), parsed(issued)) else { return false };
    issuer.subject().as_raw() == issued.issuer().as_raw()
}

/// Returns a certificate in PEM form.
pub fn pem(der: &[u8]) -> String {
    const LINE_CHARS: usize = 64;
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(LINE_CHARS) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Fields of a certificate that monitoring shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The certificate's subject, as `CN=…,O=…`.
    pub subject: String,
    /// SHA-256 of the public key, in hexadecimal, as `pinned_certs` lists it.
    pub key_sha256: String,
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub sha256: String,
}

/// Returns the fields that monitoring shows of a certificate in DER form; `None` if it cannot be
/// read.
pub fn show(der: &[u8]) -> Option<Shown> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Shown {
        subject: subject(&certificate),
        key_sha256: hex(&Sha256::digest(certificate.public_key().raw)),
        sha256: hex(&Sha256::digest(der)),
    })
}
