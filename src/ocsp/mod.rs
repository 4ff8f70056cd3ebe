//! The status of certificates (OCSP, RFC 6960): questions to responders, and their answers.
//!
//! A [`CertLink`] is a certificate and the one of its issuer. It names the responders to ask, makes
//! the question, and judges the answer: who has signed it, and about which certificate it speaks.
//! Whatever comes from a responder is only bytes until then. A [`CertAnswer`] is one that holds:
//! who has asked decides whether it is current, and what follows from it ([`PeerPolicy`]).
//!
//! Pure: nothing is fetched here, and time is an argument. Structures are those of the crate
//! `x509-ocsp`, signatures are verified by the algorithms of rustls.

#![forbid(unsafe_code)]

mod answer;
mod link;
mod policy;
mod question;

pub use answer::{ANSWER_BYTES_MAX, CertAnswer, CertStatus};
pub use link::{CertLink, LINKS_MAX, RESPONDERS_MAX, is_must_staple, links};
pub use policy::PeerPolicy;
pub use question::PeerQuestion;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
