//! Staples between servers: one whose own certificate is stapled demands the same of those it
//! dials.
//!
//! The library gives a server's staple to its verifier, and no client's: who dials this server
//! shows none.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::{Materials, StartError};
use crate::ocsp::{CertLink, CertStatus, PeerPolicy};
use crate::transport::Staple;

/// Returns the verifier of dialled servers, which errors name as `peer`.
pub(super) fn verifier(
    own: &Arc<Staple>,
    materials: &Materials,
    peer: &'static str,
) -> Result<Arc<dyn ServerCertVerifier>, StartError> {
    let (roots, provider) = (Arc::clone(&materials.roots), Arc::clone(&materials.provider));
    let builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
    let verifier = builder.build().map_err(|error| {
        StartError::new(format!("tls: the certificates of ca_file cannot be used: {error}"))
    })?;
    let (own, authorities) = (Arc::clone(own), Arc::clone(&materials.authorities));
    Ok(Arc::new(StapledServers { verifier, own, authorities, peer }))
}

#[derive(Debug)]
struct StapledServers {
    verifier: Arc<WebPkiServerVerifier>,
    own: Arc<Staple>,
    authorities: Arc<[CertificateDer<'static>]>,
    peer: &'static str,
}

impl StapledServers {
    /// Judges the staple of a server whose certificates are in order.
    fn check(&self, shown: &[&CertificateDer<'_>], staple: &[u8], now: i64) -> Result<(), String> {
        let peer = self.peer;
        if staple.is_empty() {
            return Err(format!("{peer} peer missing OCSP Staple"));
        }
        // The chain is in order: its first link is all that the staple is about.
        let [own, others @ ..] = shown else {
            return Err(format!("{peer} peer missing TLS verified chains"));
        };
        let authorities = self.authorities.iter().map(AsRef::as_ref);
        let issuers = others.iter().map(|other| other.as_ref()).chain(authorities);
        let Some(link) = CertLink::find(own, issuers) else {
            return Err(format!("failed to get issuer certificate for {peer} peer"));
        };
        let answer = link.judge(staple, now).map_err(|reason| {
            format!("failed to parse OCSP response from {peer} peer: {reason}")
        })?;
        if !PeerPolicy::default().is_current(&answer, now) {
            return Err(format!("OCSP staple from {peer} peer not current"));
        }
        match answer.status {
            CertStatus::Good => Ok(()),
            other => Err(format!("bad status for OCSP Staple from {peer} peer: {}", other.word())),
        }
    }
}

impl ServerCertVerifier for StapledServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        if self.own.is_wanted() {
            let shown: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            self.check(&shown, ocsp_response, now).map_err(Error::General)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
