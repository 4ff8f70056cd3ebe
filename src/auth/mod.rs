//! Credentials and permissions: tokens, certificates, and plain types for the configuration.

#![forbid(unsafe_code)]

pub mod certificate;
mod connection_type;
pub mod jwt;
mod permissions;
mod secret;

pub use connection_type::ConnectionType;
pub use permissions::{Permissions, Responses, SubjectEntry, SubjectList};
pub use secret::Secret;
