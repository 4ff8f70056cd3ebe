//! The wire.
#![forbid(unsafe_code)]
