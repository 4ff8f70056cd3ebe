//! Certificates and keys in files, and the choice among them for a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::StartError;
use crate::transport::Staple;

/// A certificate and its key.
#[derive(Debug, Clone, Default)]
pub(in crate::config) struct Pair {
    pub(in crate::config) cert_file: Option<PathBuf>,
    pub(in crate::config) key_file: Option<PathBuf>,
}

impl Pair {
    /// Reads both files, and adds their content to `digest`.
    pub(super) fn read(
        &self,
        provider: &CryptoProvider,
        digest: &mut Sha256,
    ) -> Result<Arc<CertifiedKey>, StartError> {
        let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) else {
            return Err(StartError::new("tls needs cert_file and key_file; name both"));
        };
        let chain = read_certificates(cert_file, digest)?;
        let key = private_key(key_file, digest)?;
        let pair = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            unusable(cert_file, &format!("{error}; does the key belong to it?"))
        })?;
        Ok(Arc::new(pair))
    }
}

/// Certificates of a server. If there are none, no handshake succeeds.
#[derive(Debug)]
pub(super) struct Certificates(pub(super) Vec<Arc<Staple>>);

impl ResolvesServerCert for Certificates {
    /// Returns the first certificate for the name that the client asks for, else the first whose
    /// signature the client supports.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let is_for = |pair: &CertifiedKey| {
            let certificate = pair.end_entity_cert().ok();
            let parsed = certificate.and_then(|der| ParsedCertificate::try_from(der).ok());
            parsed
                .zip(name.as_ref())
                .is_some_and(|(own, name)| verify_server_name(&own, name).is_ok())
        };
        let schemes = hello.signature_schemes();
        let can = |own: &CertifiedKey| own.key.choose_scheme(schemes).is_some();
        let fitting = || self.0.iter().filter(|own| can(own.key()));
        fitting().find(|own| is_for(own.key())).or_else(|| fitting().next())?.shown()
    }
}

/// Certificate authorities that are trusted, and their certificates.
pub(super) type Roots = (RootCertStore, Vec<CertificateDer<'static>>);

/// Returns the trusted certificate authorities: those of a file, or those of this system.
pub(super) fn roots(ca_file: Option<&Path>, digest: &mut Sha256) -> Result<Roots, StartError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = ca_file {
        let certificates = read_certificates(ca_file, digest)?;
        for root in &certificates {
            roots.add(root.clone()).map_err(|error| unusable(ca_file, &error.to_string()))?;
        }
        return Ok((roots, certificates));
    }
    let system = rustls_native_certs::load_native_certs();
    system.certs.iter().for_each(|root| digest.update(root));
    roots.add_parsable_certificates(system.certs.iter().cloned());
    if roots.is_empty() {
        let reason = "tls: this system has no certificates of authorities; name those who vouch \
                      for the others in ca_file";
        return Err(StartError::new(reason));
    }
    Ok((roots, system.certs))
}

fn read(file: &Path, digest: &mut Sha256) -> Result<Vec<u8>, StartError> {
    let bytes = std::fs::read(file).map_err(|error| unusable(file, &error.to_string()))?;
    digest.update(&bytes);
    Ok(bytes)
}

fn read_certificates(
    file: &Path,
    digest: &mut Sha256,
) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let bytes = read(file, digest)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unusable(file, "no certificate in PEM form")),
        Err(error) => Err(unusable(file, &error.to_string())),
    }
}

fn private_key(file: &Path, digest: &mut Sha256) -> Result<PrivateKeyDer<'static>, StartError> {
    let bytes = read(file, digest)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| unusable(file, &format!("no private key in PEM form: {error}")))
}

fn unusable(file: &Path, reason: &str) -> StartError {
    StartError::new(format!("tls: cannot use {}: {reason}", file.display()))
}
