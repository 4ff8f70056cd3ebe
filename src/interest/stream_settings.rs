//! JetStream as it is configured for all accounts: storage, limits, and the disk.

/// Bytes that the streams of all accounts may have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AssetLimits {
    /// Bytes in memory.
    pub memory_bytes_max: u64,
    /// Bytes on disk.
    pub file_bytes_max: u64,
}

/// The point at which stored messages are forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before each acknowledgement.
    Always,
    /// This many nanoseconds after they were written, or earlier.
    Every(u64),
}

impl SyncPolicy {
    /// Nanoseconds of a server whose configuration has none.
    pub const USUAL_NS: u64 = 120 * 1_000_000_000;
}

impl Default for SyncPolicy {
    fn default() -> Self {
        Self::Every(Self::USUAL_NS)
    }
}

/// Limits of atomic batches of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Batches under way in one stream (50).
    pub batches_per_stream_max: usize,
    /// Batches under way in all streams (1000).
    pub batches_max: usize,
    /// Messages of one batch (1000).
    pub messages_max: usize,
    /// Nanoseconds without a message after which a batch is dropped (10 s).
    pub timeout_ns: u64,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            batches_per_stream_max: 50,
            batches_max: 1000,
            messages_max: 1000,
            timeout_ns: 10 * 1_000_000_000,
        }
    }
}

/// Configuration of JetStream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// Name under which other domains reach the API.
    pub domain: Option<Box<str>>,
    /// Storage of all accounts together.
    pub limits: AssetLimits,
    /// Longest window of duplicates in nanoseconds, also the default; 0 is no limit.
    pub duplicate_window_max: u64,
    /// Messages that a consumer may have unacknowledged, also the default; 0 is no limit.
    pub max_ack_pending: u64,
    /// Messages of one pull request; 0 is no limit.
    pub max_request_batch: u64,
    /// Consumers of a stream that has no limit of its own.
    pub stream_consumers_max: u64,
    /// Atomic batches.
    pub batch: BatchLimits,
    /// Requests to the API that may wait at one time.
    pub requests_max: usize,
    /// Messages for one stream that may wait to be stored.
    pub buffered_messages_max: usize,
    /// Bytes of messages for one stream that may wait to be stored.
    pub buffered_bytes_max: usize,
    /// Whether requests with unknown fields are refused.
    pub is_strict: bool,
    /// Point at which messages are forced to the disk.
    pub sync: SyncPolicy,
}
