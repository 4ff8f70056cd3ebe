//! The answer to INFO: what an account's streams use, and its limits.

use std::collections::BTreeMap;

use serde::Serialize;

/// The tier of streams with one replica.
const TIER: &str = "R1";

/// Streams of an account, or of one of its tiers.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct StreamsShown {
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Bytes on disk.
    pub(crate) storage: u64,
    /// Bytes in memory that streams may grow to.
    pub(crate) reserved_memory: u64,
    /// Bytes on disk that streams may grow to.
    pub(crate) reserved_storage: u64,
    /// Number of streams.
    pub(crate) streams: usize,
    /// Number of consumers.
    pub(crate) consumers: u64,
    /// Limits of what is before.
    pub(crate) limits: LimitsShown,
}

/// Limits of an account's streams; -1 is without limit.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct LimitsShown {
    /// Bytes in memory.
    pub(crate) max_memory: i64,
    /// Bytes on disk.
    pub(crate) max_storage: i64,
    /// Number of streams.
    pub(crate) max_streams: i64,
    /// Consumers of each stream.
    pub(crate) max_consumers: i64,
    /// Messages that a consumer may have unacknowledged.
    pub(crate) max_ack_pending: i64,
    /// Bytes of one stream in memory.
    pub(crate) memory_max_stream_bytes: i64,
    /// Bytes of one stream on disk.
    pub(crate) storage_max_stream_bytes: i64,
    /// Whether streams must have a limit of bytes.
    pub(crate) max_bytes_required: bool,
}

/// Requests of the API.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ApiCounts {
    /// The level of the API.
    pub(crate) level: u32,
    /// Number of requests.
    pub(crate) total: u64,
    /// Number of requests that were answered with an error.
    pub(crate) errors: u64,
}

/// The answer to INFO.
#[derive(Debug, Serialize)]
pub(crate) struct ApiAccountInfo<'a> {
    #[serde(flatten)]
    all: StreamsShown,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
    api: ApiCounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    tiers: Option<BTreeMap<&'static str, StreamsShown>>,
}

impl<'a> ApiAccountInfo<'a> {
    /// The answer for an account with limits of its own.
    pub(crate) fn new(all: StreamsShown, domain: Option<&'a str>, api: ApiCounts) -> Self {
        Self { all, domain, api, tiers: None }
    }

    /// The answer if the limits are those of a tier: all streams are of it, and together they have
    /// none.
    #[must_use]
    pub(crate) fn tiered(self) -> Self {
        let all = StreamsShown { limits: LimitsShown::default(), ..self.all };
        Self { tiers: Some(BTreeMap::from([(TIER, self.all)])), all, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_of_a_tier_are_shown_with_it_and_not_with_the_account() {
        let limits = LimitsShown { max_storage: 7, max_memory: -1, ..LimitsShown::default() };
        let (memory, reserved_memory, reserved_storage) = (1, 0, 3);
        let all = StreamsShown {
            memory,
            storage: 2,
            reserved_memory,
            reserved_storage,
            streams: 4,
            consumers: 5,
            limits,
        };
        let api = ApiCounts { level: 1, total: 2, errors: 0 };
        let plain = json!(ApiAccountInfo::new(all, None, api));
        assert_eq!((&plain["limits"]["max_storage"], plain.get("tiers")), (&json!(7), None));
        let tiered = json!(ApiAccountInfo::new(all, Some("d"), api).tiered());
        assert_eq!((&tiered["limits"]["max_storage"], &tiered["streams"]), (&json!(0), &json!(4)));
        assert_eq!(tiered["limits"]["max_memory"], 0);
        assert_eq!(tiered["tiers"], json!({"R1": all}));
    }
}
