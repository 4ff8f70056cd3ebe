//! Cipher suites and curves by their names in Go.

use rustls::SupportedCipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as crypto;

use super::StartError;
use super::field::Field;

/// The safety of a cipher suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Safety {
    Sound,
    Insecure,
}

use Safety::{Insecure, Sound};

/// Cipher suites that nats-server knows; only some of them are implemented here.
const CIPHER_SUITES: &[(&str, Safety)] = &[
    ("TLS_AES_128_GCM_SHA256", Sound),
    ("TLS_AES_256_GCM_SHA384", Sound),
    ("TLS_CHACHA20_POLY1305_SHA256", Sound),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", Sound),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", Sound),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", Sound),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", Sound),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Sound),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Sound),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Sound),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Sound),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", Sound),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", Sound),
    ("TLS_RSA_WITH_RC4_128_SHA", Insecure),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", Insecure),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", Insecure),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", Insecure),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", Insecure),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", Insecure),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", Insecure),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", Insecure),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", Insecure),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", Insecure),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", Insecure),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", Insecure),
];

/// Curves that nats-server knows, with their names here; none for those not implemented.
const CURVES: &[(&str, Option<&str>)] = &[
    ("X25519", Some("X25519")),
    ("CurveP256", Some("secp256r1")),
    ("CurveP384", Some("secp384r1")),
    ("CurveP521", None),
    ("X25519MLKEM768", None),
    ("SecP256r1MLKEM768", None),
    ("SecP384r1MLKEM1024", None),
];

/// Cipher suites that a file names, in the file's order.
#[derive(Debug, Clone, Default)]
pub(in crate::config) struct CipherSuites {
    names: Vec<&'static str>,
    insecure: Vec<&'static str>,
}

impl CipherSuites {
    pub(super) fn bind(v: &mut Field<'_>) -> Result<Self, StartError> {
        let found = v.each(|v| {
            let name = v.text()?;
            let found = CIPHER_SUITES.iter().find(|(known, _)| *known == name);
            let names = CIPHER_SUITES.iter().map(|(name, _)| *name);
            found.copied().ok_or_else(|| unrecognized(v, "cipher suite", &name, names))
        })?;
        if found.is_empty() {
            return Err(v.error("cipher_suites cannot be empty; leave it out for all safe suites"));
        }
        let implemented: Vec<String> =
            crypto::ALL_CIPHER_SUITES.iter().map(|suite| name_of(*suite)).collect();
        let mut suites = Self::default();
        for (name, safety) in found {
            if safety == Insecure {
                suites.insecure.push(name);
            }
            if implemented.iter().any(|known| known == name) {
                suites.names.push(name);
            } else {
                v.warn_missing(format!("cipher suite {name} is not supported and left out"));
            }
        }
        if suites.names.is_empty() && suites.insecure.is_empty() {
            let reason = "none of the cipher_suites is supported; name ones of TLS 1.3, or ECDHE \
                          with GCM or ChaCha20";
            return Err(v.error(reason));
        }
        Ok(suites)
    }

    /// Checks that insecure suites are allowed, and that a suite remains.
    ///
    /// # Errors
    ///
    /// Returns the reason why the suites cannot be used.
    pub(super) fn check(&self, is_insecure_allowed: bool) -> Result<(), String> {
        if self.insecure.is_empty() {
            return Ok(());
        }
        let names = self.insecure.join(", ");
        if !is_insecure_allowed {
            return Err(format!(
                "insecure cipher suites configured without allow_insecure_cipher_suites: {names}; \
                 leave them out"
            ));
        }
        match self.names.is_empty() {
            true => Err(format!("no cipher suite is supported; these are insecure: {names}")),
            false => Ok(()),
        }
    }
}

/// Returns the names of the cipher suites, in order of preference.
pub(in crate::config) fn suites() -> Vec<String> {
    let provider = provider(&CipherSuites::default(), &[]);
    provider.cipher_suites.iter().map(|suite| name_of(*suite)).collect()
}

/// Returns the names of the curves, as a file has them.
pub(in crate::config) fn curves() -> Vec<String> {
    let here = CURVES.iter().filter(|(_, own)| own.is_some());
    here.map(|(name, _)| (*name).to_owned()).collect()
}

/// Binds the curves that a file names, in the file's order.
pub(super) fn bind_curves(v: &mut Field<'_>) -> Result<Vec<&'static str>, StartError> {
    let found = v.each(|v| {
        let name = v.text()?;
        let found = CURVES.iter().find(|(known, _)| *known == name);
        let names = CURVES.iter().map(|(name, _)| *name);
        found.copied().ok_or_else(|| unrecognized(v, "curve", &name, names))
    })?;
    if found.is_empty() {
        return Err(v.error("curve_preferences cannot be empty; leave it out for all curves"));
    }
    for (name, _) in found.iter().filter(|(_, own)| own.is_none()) {
        v.warn_missing(format!("curve {name} is not supported and left out"));
    }
    let curves: Vec<_> = found.into_iter().filter_map(|(_, own)| own).collect();
    if curves.is_empty() {
        let reason = "none of the curve_preferences is supported; name X25519, CurveP256 or \
                      CurveP384";
        return Err(v.error(reason));
    }
    Ok(curves)
}

fn unrecognized<'a>(
    v: &Field<'_>,
    kind: &str,
    name: &str,
    names: impl Iterator<Item = &'a str>,
) -> StartError {
    let hint = match super::nearest(name, names) {
        Some(near) => format!("; did you mean \"{near}\"?"),
        None => String::new(),
    };
    v.error(format!("unrecognized {kind} \"{name}\"{hint}"))
}

fn name_of(suite: SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

/// Returns a provider with the given algorithms; where a list is empty, with all safe ones.
pub(super) fn provider(suites: &CipherSuites, curves: &[&'static str]) -> CryptoProvider {
    let mut provider = crypto::default_provider();
    // AES with the shorter key first: it is the fastest wherever there is hardware for it.
    provider.cipher_suites.sort_by_key(|suite| {
        let name = name_of(*suite);
        (suite.tls13().is_none(), !name.contains("AES_128"), !name.contains("AES"))
    });
    if !suites.names.is_empty() {
        let is_named = |suite: &SupportedCipherSuite| suites.names.contains(&&*name_of(*suite));
        let is_13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
        // As in Go, the list is about TLS 1.2; version 1.3 has nothing unsafe to leave out.
        let names_13 = provider.cipher_suites.iter().any(|suite| is_13(suite) && is_named(suite));
        provider.cipher_suites.retain(|suite| is_named(suite) || (!names_13 && is_13(suite)));
    }
    if !curves.is_empty() {
        let groups = &provider.kx_groups;
        let named = |name: &&str| {
            groups.iter().find(|group| format!("{:?}", group.name()) == **name).copied()
        };
        provider.kx_groups = curves.iter().filter_map(named).collect();
    }
    provider
}
