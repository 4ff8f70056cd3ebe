//! A question about a peer: is its certificate still good?

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::PeerPolicy;

/// A question about the certificates that a peer has shown, to be answered off the shards.
#[derive(Clone)]
pub struct PeerQuestion {
    /// The certificates of the peer, its own first.
    pub shown: Vec<CertificateDer<'static>>,
    /// Certificates of the authorities that vouch for such peers.
    pub authorities: Arc<[CertificateDer<'static>]>,
    /// Demands on the status.
    pub policy: Arc<PeerPolicy>,
    /// The kind of the connection, in words of events.
    pub kind: &'static str,
    /// The words by which the peer is refused.
    pub refusal: &'static str,
    /// Nanoseconds for which the peer waits.
    pub wait_ns: u64,
}

impl fmt::Debug for PeerQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerQuestion {{ kind: {}, policy: {:?} }}", self.kind, self.policy)
    }
}
