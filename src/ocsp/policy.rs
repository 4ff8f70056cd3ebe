//! What a server demands of the status of its peers' certificates.

use super::{CertAnswer, CertStatus};

/// Demands on the status of peers' certificates, as the block `ocsp_peer` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Milliseconds that one responder has for its answer (2000).
    pub timeout_ms: u64,
    /// Seconds by which the clock of a responder may be wrong (30).
    pub skew_s: i64,
    /// Whether a peer without a good status is let in nevertheless, with a warning (false).
    pub warns_only: bool,
    /// Whether a certificate that the responder does not know counts as good (false).
    pub unknown_is_good: bool,
    /// Whether a peer is let in if no responder answers (false).
    pub allows_silence: bool,
    /// Seconds for which an answer without an end holds (3600).
    pub ttl_s: i64,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self {
            timeout_ms: 2000,
            skew_s: 30,
            warns_only: false,
            unknown_is_good: false,
            allows_silence: false,
            ttl_s: 3600,
        }
    }
}

impl PeerPolicy {
    /// Whether an answer is current at `now`, in seconds since 1970.
    pub fn is_current(&self, answer: &CertAnswer, now: i64) -> bool {
        answer.is_current(now, self.skew_s, Some(self.ttl_s))
    }

    /// Whether a certificate of this status is accepted, not counting `warns_only`.
    pub fn accepts(&self, status: CertStatus) -> bool {
        match status {
            CertStatus::Good => true,
            CertStatus::Revoked => false,
            CertStatus::Unknown => self.unknown_is_good,
        }
    }
}
