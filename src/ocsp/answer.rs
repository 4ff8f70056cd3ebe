//! Answers of responders.

use der::Decode;
use x509_ocsp::{BasicOcspResponse, OcspResponse, OcspResponseStatus};

use super::link::{CertLink, Signed, first_element};

/// The type of an answer that everybody understands.
const BASIC: der::asn1::ObjectIdentifier =
    der::asn1::ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// The length of an answer, at most, in bytes: the time to read a longer one may grow with its
/// square.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The status of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertStatus {
    /// The certificate is not revoked.
    Good,
    /// The certificate is revoked.
    Revoked,
    /// The responder does not know the certificate.
    Unknown,
}

impl CertStatus {
    /// Returns the word for the status in logs and files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// An answer that the issuer of a certificate, or its delegate, has given about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertAnswer {
    /// The status of the certificate.
    pub status: CertStatus,
    /// The time from which the answer holds, in seconds since 1970.
    pub this_update: i64,
    /// The time up to which the answer holds, in seconds since 1970.
    pub next_update: Option<i64>,
}

impl CertLink {
    /// Reads an answer in DER form about this certificate at the time `now`, in seconds since 1970.
    ///
    /// # Errors
    ///
    /// Returns the reason why it is no answer about this certificate that its issuer or a delegate
    /// of the issuer has signed.
    pub fn judge(&self, answer: &[u8], now: i64) -> Result<CertAnswer, String> {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        let unreadable = |error: der::Error| format!("the answer cannot be read: {error}");
        let outer = OcspResponse::from_der(answer).map_err(unreadable)?;
        if outer.response_status != OcspResponseStatus::Successful {
            return Err(format!("the responder answers {:?}", outer.response_status));
        }
        let inner = outer.response_bytes.filter(|bytes| bytes.response_type == BASIC);
        let inner = inner.ok_or("the answer is of an unknown type")?;
        let inner = inner.response.as_bytes();
        let basic = BasicOcspResponse::from_der(inner).map_err(unreadable)?;
        let signed = Signed {
            bytes: first_element(inner).ok_or("the answer cannot be read")?,
            algorithm: &basic.signature_algorithm,
            signature: basic.signature.raw_bytes(),
        };
        let delegates = basic.certs.as_deref().unwrap_or_default();
        if !self.is_answered_by(&signed, delegates, now) {
            return Err("the answer is not signed by the issuer, nor by its delegate".to_owned());
        }
        let mut all = basic.tbs_response_data.responses.iter();
        let own = all.find(|single| self.is_named_by(&single.cert_id));
        let own = own.ok_or("the answer is about another certificate")?;
        let at = |time: &x509_ocsp::OcspGeneralizedTime| {
            i64::try_from(time.0.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
        };
        Ok(CertAnswer {
            status: match own.cert_status {
                x509_ocsp::CertStatus::Good(_) => CertStatus::Good,
                x509_ocsp::CertStatus::Revoked(_) => CertStatus::Revoked,
                x509_ocsp::CertStatus::Unknown(_) => CertStatus::Unknown,
            },
            this_update: at(&own.this_update),
            next_update: own.next_update.as_ref().map(at),
        })
    }
}

impl CertAnswer {
    /// Whether the answer holds at `now`, in seconds since 1970; it may have been made `skew_s`
    /// later, or have ended as much earlier. Without an end it holds for `ttl_s`, or always.
    pub fn is_current(&self, now: i64, skew_s: i64, ttl_s: Option<i64>) -> bool {
        let ends_at = match (self.next_update, ttl_s) {
            (Some(end), _) => end,
            (None, Some(ttl_s)) => self.this_update.saturating_add(ttl_s),
            (None, None) => i64::MAX,
        };
        ends_at >= now.saturating_sub(skew_s) && self.this_update <= now.saturating_add(skew_s)
    }
}
