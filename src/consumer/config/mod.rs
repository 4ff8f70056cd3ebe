//! Configurations of consumers: their fields as requests and answers have them; `check`: what is
//! wrong with them, and what an update may change.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stream::time::Timestamp;
use crate::subject::{covers, overlap};
pub use check::ConsumerRules;
pub(super) use check::{ConfigCheck, is_valid_group};

/// Key of the metadata that says which level of the API a consumer needs.
const REQUIRED_LEVEL: &str = "_nats.req.level";
/// Keys of the metadata that are in answers only: version and level of the server.
const SERVER_VERSION: &str = "_nats.ver";
const SERVER_LEVEL: &str = "_nats.level";
/// The shortest time after which a message is delivered again, in nanoseconds: one that nobody can
/// acknowledge in time is not delivered in every turn.
const WAIT_MIN_NS: i64 = 1_000_000;

/// Part of what a consumer reads that a purge concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PurgeReach {
    /// Nothing.
    None,
    /// Some subjects.
    Part,
    /// All subjects.
    Whole,
}

/// The first message that a consumer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliverPolicy {
    /// The first message of the stream.
    #[default]
    #[serde(alias = "undefined")]
    All,
    /// The last message.
    Last,
    /// The last message of each subject, and then all that follow.
    LastPerSubject,
    /// The next message.
    New,
    /// The message with a sequence.
    ByStartSequence,
    /// The first message of a time.
    ByStartTime,
}

/// The way in which a consumer's messages are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckPolicy {
    /// A delivered message is an acknowledged one.
    #[default]
    None,
    /// An acknowledgement is for all messages up to its own.
    All,
    /// An acknowledgement is for its own message.
    Explicit,
    /// As `All`, by answers to requests of flow control.
    FlowControl,
}

/// The pace at which messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayPolicy {
    /// As fast as it goes.
    #[default]
    Instant,
    /// The pace at which the messages were stored.
    Original,
}

/// The order in which requests of a group are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriorityPolicy {
    /// One request after the other.
    #[default]
    None,
    /// A request is served when enough messages wait.
    Overflow,
    /// One client is served while it asks.
    PinnedClient,
    /// Requests with a lower number come first.
    Prioritized,
}

/// The configuration of a consumer. Durations are in nanoseconds.
#[expect(clippy::struct_excessive_bools, reason = "they are fields of the API")]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerConfig {
    /// Name of a consumer that stays without a client; empty for others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub durable_name: String,
    /// Name of the consumer; empty if the server has made one up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The first message.
    pub deliver_policy: DeliverPolicy,
    /// Sequence of the first message.
    #[serde(skip_serializing_if = "is_default")]
    pub opt_start_seq: u64,
    /// Time of the first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_start_time: Option<Timestamp>,
    /// Way of acknowledging.
    pub ack_policy: AckPolicy,
    /// Time after which an unacknowledged message is delivered again.
    #[serde(skip_serializing_if = "is_default")]
    pub ack_wait: i64,
    /// Most deliveries of a message; -1 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_deliver: i64,
    /// Waits of a message's first deliveries, in place of `ack_wait`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backoff: Vec<i64>,
    /// Filter of the subjects that are delivered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Several such filters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter_subjects: Vec<String>,
    /// Pace of delivery.
    pub replay_policy: ReplayPolicy,
    /// Most bits a second; 0 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub rate_limit_bps: u64,
    /// Percentage of acknowledgements of which a metric is published.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sample_freq: String,
    /// Most requests that wait.
    #[serde(skip_serializing_if = "is_default")]
    pub max_waiting: i64,
    /// Most messages that wait for an acknowledgement; -1 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_ack_pending: i64,
    /// Whether the receiver says when it has caught up.
    #[serde(skip_serializing_if = "is_default")]
    pub flow_control: bool,
    /// Whether payloads are left out.
    #[serde(skip_serializing_if = "is_default")]
    pub headers_only: bool,
    /// Most messages of a request; 0 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_batch: i64,
    /// Longest time of a request; 0 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_expires: i64,
    /// Most bytes of a request; 0 is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub max_bytes: i64,
    /// The subject that messages are pushed to; empty if they are pulled.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_subject: String,
    /// The queue group that messages are pushed to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_group: String,
    /// Time without a message after which a sign of life is pushed.
    #[serde(skip_serializing_if = "is_default")]
    pub idle_heartbeat: i64,
    /// Time without a client after which the consumer ends; 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub inactive_threshold: i64,
    /// Number of copies; 0 is that of the stream.
    pub num_replicas: i64,
    /// Whether a restart loses the consumer.
    #[serde(skip_serializing_if = "is_default")]
    pub mem_storage: bool,
    /// Whether the consumer serves a stream that copies, and is hidden.
    #[serde(skip_serializing_if = "is_default")]
    pub direct: bool,
    /// Whether the consumer serves a stream that copies.
    #[serde(skip_serializing_if = "is_default")]
    pub sourcing: bool,
    /// Words of the owner. Those of the server are in answers only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Time until which nothing is delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_until: Option<Timestamp>,
    /// Groups of requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_groups: Vec<String>,
    /// Order of requests.
    #[serde(skip_serializing_if = "is_default")]
    pub priority_policy: PriorityPolicy,
    /// Time without a request after which a client is pinned no more.
    #[serde(skip_serializing_if = "is_default")]
    pub priority_timeout: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ConsumerConfig {
    /// Returns the configuration as answers show it: with the level of the API that it needs in its
    /// metadata, and perhaps with the server's version.
    #[must_use]
    pub(super) fn shown(&self, shows_version: bool) -> Self {
        let mut shown = self.clone();
        let mut say = |key: &str, value: String| shown.metadata.insert(key.to_owned(), value);
        say(REQUIRED_LEVEL, self.required_level().to_string());
        if shows_version {
            say(SERVER_VERSION, crate::NATS_VERSION.to_owned());
            say(SERVER_LEVEL, crate::JETSTREAM_API_LEVEL.to_string());
        }
        shown
    }

    /// Drops from the metadata what the server says in answers.
    pub(super) fn unmark(&mut self) {
        for key in [REQUIRED_LEVEL, SERVER_VERSION, SERVER_LEVEL] {
            self.metadata.remove(key);
        }
    }

    /// The level of the API that the consumer needs.
    fn required_level(&self) -> u32 {
        if self.ack_policy == AckPolicy::FlowControl {
            return 4;
        }
        let has_groups = self.priority_policy != PriorityPolicy::None
            || self.priority_timeout != 0
            || !self.priority_groups.is_empty();
        u32::from(self.pause_until.is_some() || has_groups)
    }

    /// The filters of the consumer; none if it gets all messages.
    pub fn filters(&self) -> impl Iterator<Item = &[u8]> {
        let one = Some(&self.filter_subject).filter(|filter| !filter.is_empty());
        self.filter_subjects.iter().chain(one).map(String::as_bytes)
    }

    /// Whether messages are pushed, not pulled.
    pub fn is_push(&self) -> bool {
        !self.deliver_subject.is_empty()
    }

    /// Whether the consumer stays without a client.
    pub fn is_durable(&self) -> bool {
        !self.durable_name.is_empty()
    }

    /// Whether a message with this subject is delivered.
    pub fn matches(&self, subject: &[u8]) -> bool {
        let mut filters = self.filters().peekable();
        filters.peek().is_none() || filters.any(|filter| crate::subject::matches(filter, subject))
    }

    /// Percentage of acknowledgements of which a metric is published.
    pub(super) fn sample_percentage(&self) -> u32 {
        self.sample_freq.trim_end_matches('%').parse().unwrap_or(0)
    }

    /// Most deliveries of a message; `None` if there is no limit.
    pub(super) fn deliveries_max(&self) -> Option<u64> {
        u64::try_from(self.max_deliver).ok().filter(|max| *max > 0)
    }

    /// Returns the part of what the consumer reads that a purge of this filter concerns; an empty
    /// filter is for all.
    pub(super) fn reach_of(&self, purge: &[u8]) -> PurgeReach {
        let has_filters = self.filters().next().is_some();
        if purge.is_empty() || (has_filters && self.filters().all(|it| covers(purge, it))) {
            PurgeReach::Whole
        } else if !has_filters || self.filters().any(|it| overlap(it, purge)) {
            PurgeReach::Part
        } else {
            PurgeReach::None
        }
    }

    /// Time after which a message that was delivered again so many times is due, in nanoseconds, at
    /// least a millisecond; `None` if it never is.
    pub(super) fn wait_of(&self, redeliveries: u64) -> Option<i64> {
        let at = usize::try_from(redeliveries).unwrap_or(usize::MAX);
        let at = at.min(self.backoff.len().saturating_sub(1));
        let wait = self.backoff.get(at).copied().unwrap_or(self.ack_wait);
        (self.ack_wait > 0).then_some(wait.max(WAIT_MIN_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_written_in_the_order_of_its_fields_and_without_what_is_not_set() {
        let mut config = ConsumerConfig { max_deliver: -1, max_waiting: 512, ..<_>::default() };
        "C".clone_into(&mut config.name);
        let expected = concat!(
            r#"{"name":"C","deliver_policy":"all","ack_policy":"none","max_deliver":-1,"#,
            r#""replay_policy":"instant","max_waiting":512,"num_replicas":0}"#
        );
        assert_eq!(serde_json::to_string(&config).unwrap(), expected);
        config.deliver_policy = DeliverPolicy::LastPerSubject;
        config.priority_policy = PriorityPolicy::PinnedClient;
        config.ack_policy = AckPolicy::FlowControl;
        let text = serde_json::to_string(&config).unwrap();
        for word in ["last_per_subject", "pinned_client", "flow_control"] {
            assert!(text.contains(&format!("\"{word}\"")), "{text}");
        }
        assert_eq!(serde_json::from_str::<ConsumerConfig>(&text).unwrap(), config);
        let undefined = r#"{"deliver_policy":"undefined"}"#;
        let read: ConsumerConfig = serde_json::from_str(undefined).unwrap();
        assert_eq!(read.deliver_policy, DeliverPolicy::All);
    }

    #[test]
    fn the_servers_words_are_shown_in_the_metadata_and_nowhere_else() {
        let mut config = ConsumerConfig::default();
        for key in ["a", "_nats.ver", "_nats.req.level"] {
            config.metadata.insert(key.to_owned(), "x".to_owned());
        }
        config.unmark();
        assert_eq!(config.metadata.len(), 1);
        let listed = config.shown(false).metadata;
        assert_eq!(listed.into_keys().collect::<Vec<_>>(), [REQUIRED_LEVEL, "a"]);
        assert_eq!(config.shown(true).metadata.len(), 4);
        assert_eq!(config.shown(true).metadata[REQUIRED_LEVEL], "0");
        config.pause_until = Some(Timestamp(1));
        assert_eq!(config.shown(true).metadata[REQUIRED_LEVEL], "1");
    }

    #[test]
    fn filters_are_one_or_many_and_waits_are_those_of_the_backoff() {
        let wait = 7 * WAIT_MIN_NS;
        let mut config = ConsumerConfig { ack_wait: wait, ..ConsumerConfig::default() };
        assert!(config.matches(b"any.thing"));
        "a.*".clone_into(&mut config.filter_subject);
        assert!(config.matches(b"a.b") && !config.matches(b"b.a"));
        config.filter_subject.clear();
        config.filter_subjects = vec!["b".to_owned(), "c.>".to_owned()];
        assert!(config.matches(b"c.d") && config.matches(b"b") && !config.matches(b"a.b"));
        assert_eq!(config.wait_of(3), Some(wait));
        config.backoff = vec![1, wait];
        let waits = [0, 1, 9].map(|count| config.wait_of(count));
        assert_eq!(waits, [Some(WAIT_MIN_NS), Some(wait), Some(wait)]);
        (config.ack_wait, config.backoff) = (0, Vec::new());
        assert_eq!(config.wait_of(0), None);
        "50%".clone_into(&mut config.sample_freq);
        assert_eq!(config.sample_percentage(), 50);
    }
}
