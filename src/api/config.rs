//! Configurations of streams: their fields as requests and answers have them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::json;
use super::time::Timestamp;

/// Longest name of a stream, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Key of the metadata that says which level of the API a stream needs.
const REQUIRED_LEVEL: &str = "_nats.req.level";
/// Keys of the metadata that are in answers only: version and level of the server.
const SERVER_VERSION: &str = "_nats.ver";
const SERVER_LEVEL: &str = "_nats.level";

/// Reason for which messages leave a stream by themselves, limits apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// Limits alone remove messages.
    #[default]
    Limits,
    /// A message is kept for the consumers whose filters match it.
    Interest,
    /// A message is kept until the first consumer has acknowledged it.
    WorkQueue,
}

/// Whether old or new messages give way at a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// The oldest messages are removed.
    #[default]
    Old,
    /// New messages are refused.
    New,
}

/// Place of a stream's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// The disk.
    #[default]
    File,
    /// Memory: a restart loses them.
    Memory,
}

/// Compression of stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreCompression {
    /// None.
    #[default]
    None,
    /// S2.
    S2,
}

/// Whether acknowledgements wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PersistMode {
    /// Acknowledgements wait.
    #[default]
    #[serde(alias = "")]
    Default,
    /// Acknowledgements do not wait.
    Async,
}

/// A transform of subjects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubjectTransformConfig {
    /// Filter of the subjects that are changed; all if it is empty.
    pub src: String,
    /// The new subject; the old one if it is empty.
    pub dest: String,
}

/// A rule by which stored messages are published again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Republish {
    /// Filter of the subjects that are published again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub src: String,
    /// The new subject.
    pub dest: String,
    /// Whether payloads are left out.
    #[serde(skip_serializing_if = "is_default")]
    pub headers_only: bool,
}

/// A stream from which another one copies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSource {
    /// Name of the origin.
    pub name: String,
    /// The first sequence to be copied.
    #[serde(skip_serializing_if = "is_default")]
    pub opt_start_seq: u64,
    /// Time of the first message to be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_start_time: Option<Timestamp>,
    /// Filter of the subjects to be copied; all if it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Filters and transforms of subjects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_transforms: Vec<SubjectTransformConfig>,
    /// The way to an origin in another account or domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalStream>,
    /// A consumer of the origin that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<SourceConsumer>,
}

/// The way to a stream in another account or domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalStream {
    /// Prefix of its API.
    pub api: String,
    /// Prefix of the subjects to which it delivers.
    pub deliver: String,
}

/// A consumer that was made for a copy beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConsumer {
    /// Name of the consumer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The subject to which it delivers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_subject: String,
}

/// Wishes for the server of a stream. They are kept, and have no effect.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamPlacement {
    /// Name of a cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Tags that a server has to have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Name of a server; no stream may have it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub preferred: String,
}

/// Defaults and limits of a stream's consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerLimits {
    /// Longest inactivity of a consumer, in nanoseconds; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub inactive_threshold: i64,
    /// Most messages that wait for an acknowledgement; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub max_ack_pending: i64,
}

/// The configuration of a stream. Durations are in nanoseconds.
#[expect(clippy::struct_excessive_bools, reason = "they are fields of the API")]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// Name of the stream.
    pub name: String,
    /// Text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Filters of the subjects that are stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// Reason for which messages leave by themselves.
    pub retention: Retention,
    /// Most consumers; -1 is no limit, as in all limits.
    pub max_consumers: i64,
    /// Most messages.
    pub max_msgs: i64,
    /// Most bytes of messages.
    pub max_bytes: i64,
    /// Age at which messages are removed; 0 is none.
    pub max_age: i64,
    /// Most messages of a subject.
    pub max_msgs_per_subject: i64,
    /// Most bytes of a message, headers included.
    pub max_msg_size: i32,
    /// The messages that give way at a limit.
    pub discard: Discard,
    /// Place of the messages.
    pub storage: StorageKind,
    /// Number of copies.
    pub num_replicas: i64,
    /// Whether publishers get no acknowledgement.
    #[serde(skip_serializing_if = "is_default")]
    pub no_ack: bool,
    /// Time for which ids of messages are remembered; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub duplicate_window: i64,
    /// Wishes for the server of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<StreamPlacement>,
    /// The stream of which this one is a copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<StreamSource>,
    /// Streams from which messages are copied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StreamSource>,
    /// Compression of messages.
    pub compression: StoreCompression,
    /// The first sequence of a new stream; 0 is 1.
    #[serde(skip_serializing_if = "is_default")]
    pub first_seq: u64,
    /// The change of a message's subject before all else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_transform: Option<SubjectTransformConfig>,
    /// The rule by which stored messages are published again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub republish: Option<Republish>,
    /// Whether messages may be got directly.
    pub allow_direct: bool,
    /// Whether a mirror answers direct gets of its origin.
    pub mirror_direct: bool,
    /// Whether new messages are refused at the limit of their subject.
    #[serde(skip_serializing_if = "is_default")]
    pub discard_new_per_subject: bool,
    /// Whether nothing may come in or go out any more.
    pub sealed: bool,
    /// Whether requests may not delete messages.
    pub deny_delete: bool,
    /// Whether requests may not purge the stream.
    pub deny_purge: bool,
    /// Whether messages may remove earlier ones by a header.
    pub allow_rollup_hdrs: bool,
    /// Defaults and limits of consumers.
    pub consumer_limits: ConsumerLimits,
    /// Whether messages may have a time to live of their own.
    pub allow_msg_ttl: bool,
    /// Time for which a marker stays in place of a subject's last message; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub subject_delete_marker_ttl: i64,
    /// Whether messages are increments of counters.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_msg_counter: bool,
    /// Whether messages may come in batches that are stored as a whole or not at all.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_atomic: bool,
    /// Whether messages may be schedules of other messages.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_msg_schedules: bool,
    /// Whether acknowledgements wait for the disk.
    #[serde(skip_serializing_if = "is_default")]
    pub persist_mode: PersistMode,
    /// Whether messages may come in batches that are acknowledged together.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_batched: bool,
    /// Words of the owner, and of the server.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A request to make or to change a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamRequest {
    /// The configuration as it was sent.
    pub config: StreamConfig,
    /// Whether a value that the server would change is an error.
    pub is_pedantic: bool,
}

impl StreamRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    ///
    /// 10025, see [`json::parse_request`].
    pub fn parse(body: &[u8], is_strict: bool) -> Result<Self, ApiError> {
        let Some(mut value) = json::parse_value(body)? else { return Ok(Self::default()) };
        let pedantic = value.as_object_mut().and_then(|fields| fields.remove("pedantic"));
        let is_pedantic = match pedantic {
            None => false,
            Some(serde_json::Value::Bool(is_pedantic)) => is_pedantic,
            Some(_) => return Err(ApiError::invalid_json("pedantic is true or false")),
        };
        Ok(Self { config: json::from_value(value, is_strict)?, is_pedantic })
    }
}

/// A stream as its log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStream {
    /// The account that the stream belongs to.
    pub account: String,
    /// The time at which the stream was made.
    pub created: Timestamp,
    /// The stream's configuration.
    pub config: StreamConfig,
    /// Whether the stream is being restored: after a restart it is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_partial: bool,
}

impl KeptStream {
    /// Returns the bytes that are kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the bytes that were kept; `None` if they are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl StreamConfig {
    /// Returns the configuration as answers show it: with the server's version in its metadata.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        shown.metadata.insert(SERVER_VERSION.to_owned(), crate::NATS_VERSION.to_owned());
        shown.metadata.insert(SERVER_LEVEL.to_owned(), crate::JETSTREAM_API_LEVEL.to_string());
        shown
    }

    /// Whether a filter and one of the stream's subjects have a subject in common.
    pub fn overlaps(&self, filter: &str) -> bool {
        let filter = filter.as_bytes();
        self.subjects.iter().any(|subject| crate::subject::overlap(subject.as_bytes(), filter))
    }

    /// Whether some subject of this stream is one of the other's, too; then only one of the two can
    /// be there (10065).
    pub fn collides(&self, other: &Self) -> bool {
        other.subjects.iter().any(|subject| self.overlaps(subject))
    }

    /// The level of the API that the stream needs.
    fn required_level(&self) -> u32 {
        if self.allow_batched {
            4
        } else if self.allow_msg_counter
            || self.allow_atomic
            || self.allow_msg_schedules
            || self.persist_mode == PersistMode::Async
        {
            2
        } else {
            u32::from(self.allow_msg_ttl || self.subject_delete_marker_ttl > 0)
        }
    }

    /// Sets what the server says in the metadata, in place of what the request said of that.
    pub(super) fn mark(&mut self) {
        self.metadata.remove(SERVER_VERSION);
        self.metadata.remove(SERVER_LEVEL);
        let level = self.required_level().to_string();
        self.metadata.insert(REQUIRED_LEVEL.to_owned(), level);
    }
}
