//! The certificate of a listener, with its status beside it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::ocsp::{self, CertLink};

/// A certificate that is presented to peers. It can be given a staple, the answer of its issuer
/// about its status, while the server runs.
pub struct Staple {
    key: Arc<CertifiedKey>,
    /// The certificate as peers get it; nothing when it needs a staple and has none.
    shown: ArcSwapOption<CertifiedKey>,
    file: PathBuf,
    authorities: Arc<[CertificateDer<'static>]>,
}

impl Staple {
    /// A certificate of a file without a staple. Its issuer is in the same file, or one of the
    /// authorities.
    pub(crate) fn new(
        key: Arc<CertifiedKey>,
        file: PathBuf,
        authorities: Arc<[CertificateDer<'static>]>,
    ) -> Self {
        Self { shown: ArcSwapOption::new(Some(Arc::clone(&key))), key, file, authorities }
    }

    /// Returns the certificate with its key, without a staple.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Returns the certificate as peers get it; `None` while it needs a staple and has none.
    pub(crate) fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.shown.load_full()
    }

    /// Returns the staple in force, in DER form.
    pub(crate) fn answer(&self) -> Option<Vec<u8>> {
        self.shown.load().as_ref()?.ocsp.clone()
    }

    /// Whether the certificate is presented with a staple or not at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.shown.load().as_ref().is_none_or(|shown| shown.ocsp.is_some())
    }

    /// Puts a staple in force; without one no peer gets the certificate any more.
    pub(crate) fn put(&self, answer: Option<Vec<u8>>) {
        let with = |answer| {
            let mut key = CertifiedKey::clone(&self.key);
            key.ocsp = Some(answer);
            Arc::new(key)
        };
        self.shown.store(answer.map(with));
    }

    /// Returns the file of the certificate.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the certificate itself demands a staple.
    pub(crate) fn is_must(&self) -> bool {
        self.key.cert.first().is_some_and(|own| ocsp::is_must_staple(own))
    }

    /// Returns the certificate with its issuer, which is also looked for among `others`; `None` if
    /// it is not found.
    pub(crate) fn link(&self, others: &[CertificateDer<'static>]) -> Option<CertLink> {
        let (own, beside) = self.key.cert.split_first()?;
        let candidates = beside.iter().chain(self.authorities.iter()).chain(others);
        CertLink::find(own, candidates.map(AsRef::as_ref))
    }
}

impl fmt::Debug for Staple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Staple {{ file: {} }}", self.file.display())
    }
}
