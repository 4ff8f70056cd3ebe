//! Certificates made for a test.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;

/// An authority and what it has signed, as files.
pub(crate) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("ca.pem"), own.pem()).expect("written");
        std::fs::write(dir.path().join("ca.key"), key.serialize_pem()).expect("written");
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// Signs a certificate `file.pem` with its key in `file.key`.
    pub(crate) fn sign(&self, file: &str, common_name: &str, alternative: Vec<SanType>) {
        self.sign_with(file, common_name, alternative, Vec::new());
    }

    /// The same with further extensions.
    pub(crate) fn sign_with(
        &self,
        file: &str,
        common_name: &str,
        alternative: Vec<SanType>,
        extensions: Vec<CustomExtension>,
    ) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.custom_extensions = extensions;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = alternative;
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(self.file(&format!("{file}.pem")), signed.pem()).expect("written");
        std::fs::write(self.file(&format!("{file}.key")), key.serialize_pem()).expect("written");
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
