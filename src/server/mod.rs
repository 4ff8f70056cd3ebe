//! The process: arguments to exit code.

#![forbid(unsafe_code)]
pub mod shards;
