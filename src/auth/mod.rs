//! Users, and what they may do: plain types that a configuration and tokens are read into.

#![forbid(unsafe_code)]

mod connection_type;
mod permissions;
mod secret;

pub use connection_type::ConnectionType;
pub use permissions::{Permissions, Responses, SubjectEntry, SubjectList};
pub use secret::Secret;
