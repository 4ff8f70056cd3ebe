//! Figures of streams, as monitoring reads them from shards.

use std::sync::Arc;

use super::config::StorageKind;
use super::requests::StreamInfo;

/// A stream with its state and consumers.
#[derive(Debug, Clone)]
pub struct StreamFigures {
    /// Name of the stream's account.
    pub account: Arc<str>,
    /// Name of the stream.
    pub name: String,
    /// Place of its messages.
    pub storage: StorageKind,
    /// Bytes that the stream's limit reserves; 0 if it has none.
    pub reserved_bytes: u64,
    /// Number of messages.
    pub messages: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Number of consumers.
    pub consumers: usize,
    /// The stream as answers show it.
    pub info: StreamInfo,
    /// Consumers as answers show them, a list in JSON; empty if it was not asked for.
    pub consumers_shown: Vec<u8>,
}

/// Use of JetStream by an account, over all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageFigures {
    /// Name of the account.
    pub account: Arc<str>,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Requests to the API since the start.
    pub api_total: u64,
    /// Requests that were answered with an error.
    pub api_errors: u64,
}
