//! A certificate authority for tests, which answers whatever it is told to.

use der::asn1::{BitString, GeneralizedTime, OctetString};
use der::{Decode, Encode};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SigningKey,
};
use x509_cert::Certificate;
use x509_ocsp::{
    AsResponseBytes, BasicOcspResponse, OcspGeneralizedTime, OcspRequest, OcspResponse,
    ResponderId, ResponseData, SingleResponse, Version,
};

use super::{CertLink, CertStatus};

/// A certificate authority.
pub(crate) struct TestAuthority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) der: Vec<u8>,
}

/// An answer to be made.
#[derive(Clone, Copy)]
pub(crate) struct Answering {
    pub(crate) status: CertStatus,
    pub(crate) from: i64,
    pub(crate) to: Option<i64>,
}

impl TestAuthority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, der }
    }

    /// Makes an authority that this one vouches for.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let Self { params, key, .. } = Self::new(name);
        let der = self.issue_params(&params, &key);
        Self { params, key, der }
    }

    /// Forges a certificate of this authority: its name and key, signed by `forger`, whose own
    /// name is `by`.
    pub(crate) fn forged(&self, by: &str, forger: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, by);
        let issuer = Issuer::from_params(&params, forger);
        self.params.signed_by(&self.key, &issuer).unwrap().der().to_vec()
    }

    fn issue_params(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().der().to_vec()
    }

    /// Issues a certificate, which demands staples if `is_must` says so, with a responder at `url`.
    pub(crate) fn issue(&self, name: &str, is_must: bool, url: Option<&str>) -> (Vec<u8>, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if is_must {
            let oid = [1, 3, 6, 1, 5, 5, 7, 1, 24];
            let feature = vec![0x30, 3, 2, 1, 5];
            params.custom_extensions.push(CustomExtension::from_oid_content(&oid, feature));
        }
        if let Some(url) = url {
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access(url)));
        }
        let key = KeyPair::generate().unwrap();
        (self.issue_params(&params, &key), key)
    }

    /// Returns an answer to a question, signed by this authority.
    pub(crate) fn answer(&self, request: &[u8], answering: Answering) -> Vec<u8> {
        sign(&self.key, request, answering, None)
    }

    /// Returns an answer by somebody else for whom this authority vouches, as one who may answer if
    /// `may` says so.
    pub(crate) fn answer_by_delegate(
        &self,
        request: &[u8],
        answering: Answering,
        may: bool,
    ) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "delegate");
        params.extended_key_usages = match may {
            true => vec![ExtendedKeyUsagePurpose::OcspSigning],
            false => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        let key = KeyPair::generate().unwrap();
        let der = self.issue_params(&params, &key);
        sign(&key, request, answering, Some(Certificate::from_der(&der).unwrap()))
    }
}

/// Returns the extension that names a responder.
fn access(url: &str) -> Vec<u8> {
    let element = |tag: u8, content: &[u8]| {
        let mut der = vec![tag, u8::try_from(content.len()).unwrap()];
        der.extend_from_slice(content);
        der
    };
    let ocsp = element(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    element(0x30, &element(0x30, &[ocsp, element(0x86, url.as_bytes())].concat()))
}

fn sign(key: &KeyPair, request: &[u8], answering: Answering, cert: Option<Certificate>) -> Vec<u8> {
    let asked = OcspRequest::from_der(request).unwrap().tbs_request.request_list.remove(0);
    let time = |at: i64| {
        let since = std::time::Duration::from_secs(u64::try_from(at).unwrap());
        OcspGeneralizedTime(GeneralizedTime::from_unix_duration(since).unwrap())
    };
    let single = SingleResponse {
        cert_id: asked.req_cert,
        cert_status: match answering.status {
            CertStatus::Good => x509_ocsp::CertStatus::good(),
            CertStatus::Unknown => x509_ocsp::CertStatus::unknown(),
            CertStatus::Revoked => x509_ocsp::CertStatus::revoked(x509_ocsp::RevokedInfo {
                revocation_time: time(answering.from),
                revocation_reason: None,
            }),
        },
        this_update: time(answering.from),
        next_update: answering.to.map(time),
        single_extensions: None,
    };
    let data = ResponseData {
        version: Version::V1,
        responder_id: ResponderId::ByKey(OctetString::new([0; 20]).unwrap()),
        produced_at: time(answering.from),
        responses: vec![single],
        response_extensions: None,
    };
    let signature = key.sign(&data.to_der().unwrap()).unwrap();
    let basic = BasicOcspResponse {
        tbs_response_data: data,
        signature_algorithm: x509_cert::spki::AlgorithmIdentifierOwned {
            // ECDSA with SHA-256, which the keys of rcgen have.
            oid: der::asn1::ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
            parameters: None,
        },
        signature: BitString::from_bytes(&signature).unwrap(),
        certs: cert.map(|cert| vec![cert]),
    };
    let bytes = basic.to_response_bytes().unwrap();
    OcspResponse {
        response_status: x509_ocsp::OcspResponseStatus::Successful,
        response_bytes: Some(bytes),
    }
    .to_der()
    .unwrap()
}

/// Returns the link of a certificate with its issuer.
pub(crate) fn link(cert: &[u8], authority: &TestAuthority) -> CertLink {
    CertLink::find(cert, std::iter::once(authority.der.as_slice())).unwrap()
}
