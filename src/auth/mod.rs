//! Credentials and permissions: tokens, certificates, and plain types for the configuration.

#![forbid(unsafe_code)]

pub mod callout;
pub mod certificate;
mod connection_type;
pub(crate) mod credential_check;
pub(crate) mod grants;
pub mod jwt;
pub(crate) mod logins;
mod permissions;
mod secret;
pub(crate) mod token_users;
pub(crate) mod user;

pub use connection_type::ConnectionType;
pub use permissions::{Permissions, Responses, SubjectEntry, SubjectList};
pub use secret::Secret;
