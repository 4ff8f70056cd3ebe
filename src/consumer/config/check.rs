//! Checks of configurations, the values that the server fills in, and what an update may change.

use super::{AckPolicy, ConsumerConfig, DeliverPolicy, PriorityPolicy};
use crate::stream::{ApiError, NAME_BYTES_MAX, Retention, StreamConfig, is_valid_name, time};
use crate::subject::{covers, is_literal, is_valid_filter};

const DESCRIPTION_BYTES_MAX: usize = 4096;
const METADATA_BYTES_MAX: usize = 128 * 1024;
const GROUP_BYTES_MAX: usize = 16;
const SECOND: i64 = 1_000_000_000;
/// Wait for an acknowledgement where none is given, in nanoseconds.
const ACK_WAIT: i64 = 30 * SECOND;
/// Inactivity after which a consumer without a durable name ends, in nanoseconds.
const INACTIVE_THRESHOLD: i64 = 5 * SECOND;
/// Time without a request after which a client is pinned no more, in nanoseconds.
const PIN_TIMEOUT: i64 = 120 * SECOND;
/// Heartbeat of consumers that are acknowledged by flow control, in nanoseconds.
const FLOW_HEARTBEAT: i64 = SECOND;
/// Shortest heartbeat, in nanoseconds.
const SHORTEST_HEARTBEAT: i64 = 100_000_000;
/// Shortest limit of a request's time, in nanoseconds.
const SHORTEST_EXPIRES: i64 = 1_000_000;
/// Requests that wait where no limit is given.
const WAITING: i64 = 512;
/// Messages that wait for an acknowledgement where no limit is given.
const ACK_PENDING: i64 = 1000;

/// Limits that server and account set for all consumers; 0 and below is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerRules {
    /// Whether unknown fields of requests are errors.
    pub is_strict: bool,
    /// Most messages of one consumer that wait for an acknowledgement, by the server.
    pub max_ack_pending: i64,
    /// Most messages of a request, also the default.
    pub max_request_batch: i64,
    /// Most consumers of a stream for which neither the stream nor the account has a limit.
    pub default_max_consumers: i64,
    /// Most consumers of a stream, by the account.
    pub account_max_consumers: i64,
    /// Most messages of one consumer that wait for an acknowledgement, by the account.
    pub account_max_ack_pending: i64,
}

impl Default for ConsumerRules {
    fn default() -> Self {
        Self {
            is_strict: true,
            max_ack_pending: 0,
            max_request_batch: 0,
            default_max_consumers: 1000,
            account_max_consumers: 0,
            account_max_ack_pending: 0,
        }
    }
}

fn invalid<T>(why: &'static str) -> Result<T, ApiError> {
    Err(ApiError::stream_invalid_configuration(why))
}

/// The first error of a list of conditions.
fn first_of(refused: impl IntoIterator<Item = (bool, ApiError)>) -> Result<(), ApiError> {
    match refused.into_iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// One check of a configuration, which fills in values as it goes.
pub(in crate::consumer) struct ConfigCheck<'a> {
    pub(in crate::consumer) config: &'a mut ConsumerConfig,
    pub(in crate::consumer) is_pedantic: bool,
    pub(in crate::consumer) stream: &'a StreamConfig,
    pub(in crate::consumer) rules: &'a ConsumerRules,
}

impl ConfigCheck<'_> {
    /// Fills in values and checks all of them.
    ///
    /// # Errors
    ///
    /// Returns the first error of the configuration.
    pub(in crate::consumer) fn run(&mut self) -> Result<(), ApiError> {
        self.raise_negatives()?;
        self.fill()?;
        self.names_and_copies()?;
        self.waits()?;
        self.flow_acks()?;
        let config = &*self.config;
        let waits = i64::try_from(config.backoff.len()).unwrap_or(i64::MAX);
        if waits > 0 && config.max_deliver != -1 && waits > config.max_deliver {
            return Err(ApiError::CONSUMER_MAX_DELIVER_BACKOFF);
        }
        if config.description.len() > DESCRIPTION_BYTES_MAX {
            return Err(ApiError::consumer_description_too_long(DESCRIPTION_BYTES_MAX));
        }
        if config.is_push() {
            self.push()?
        } else {
            self.pull()?
        }
        self.limits()?;
        self.filters()?;
        self.start()?;
        self.rest()?;
        self.groups()
    }

    /// Refuses a value that is to be changed, if the request wants to be told.
    fn pedantic(&self, is_changed: bool, why: &'static str) -> Result<(), ApiError> {
        if self.is_pedantic && is_changed { Err(ApiError::pedantic(why)) } else { Ok(()) }
    }

    fn raise_negatives(&mut self) -> Result<(), ApiError> {
        self.pedantic(self.config.max_deliver < -1, "max_deliver must be set to -1")?;
        if self.config.max_deliver == 0 || self.config.max_deliver < -1 {
            self.config.max_deliver = -1;
        }
        self.raise(|config| &mut config.max_waiting, 0, "max_waiting must not be negative")?;
        self.raise(|config| &mut config.max_ack_pending, -1, "max_ack_pending must be set to -1")?;
        self.raise(|config| &mut config.max_batch, 0, "max_batch must not be negative")?;
        self.raise(|config| &mut config.max_expires, 0, "max_expires must not be negative")?;
        self.raise(|config| &mut config.max_bytes, 0, "max_bytes must not be negative")?;
        self.raise(|config| &mut config.idle_heartbeat, 0, "idle_heartbeat must not be negative")?;
        let why = "inactive_threshold must not be negative";
        self.raise(|config| &mut config.inactive_threshold, 0, why)?;
        let why = "priority_timeout must not be negative";
        self.raise(|config| &mut config.priority_timeout, 0, why)
    }

    /// Raises a value to the lowest one that it may have.
    fn raise(
        &mut self,
        field: impl Fn(&mut ConsumerConfig) -> &mut i64,
        lowest: i64,
        why: &'static str,
    ) -> Result<(), ApiError> {
        let is_low = *field(self.config) < lowest;
        self.pedantic(is_low, why)?;
        if is_low {
            *field(self.config) = lowest;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), ApiError> {
        let limits = self.stream.consumer_limits;
        let is_pull = !self.config.is_push();
        if is_pull && self.config.max_waiting == 0 {
            self.config.max_waiting = WAITING;
        }
        let policy = self.config.ack_policy;
        if self.config.ack_wait == 0 && matches!(policy, AckPolicy::Explicit | AckPolicy::All) {
            self.config.ack_wait = ACK_WAIT;
        }
        if let Some(first) = self.config.backoff.first().copied() {
            let why = "first backoff value has to equal batch AckWait";
            self.pedantic(self.config.ack_wait != first, why)?;
            self.config.ack_wait = first;
        }
        if self.config.max_ack_pending == 0 {
            let why = "max_ack_pending must be set if it's configured in stream limits";
            self.pedantic(limits.max_ack_pending > 0, why)?;
            self.config.max_ack_pending = limits.max_ack_pending;
        }
        if self.config.inactive_threshold == 0 {
            let why = "inactive_threshold must be set if it's configured in stream limits";
            self.pedantic(limits.inactive_threshold > 0, why)?;
            self.config.inactive_threshold = limits.inactive_threshold;
        }
        if self.config.max_ack_pending == 0 && policy != AckPolicy::None {
            let limits = [self.rules.max_ack_pending, self.rules.account_max_ack_pending];
            let lowest = limits.into_iter().filter(|limit| *limit > 0).min();
            self.config.max_ack_pending = lowest.unwrap_or(ACK_PENDING).min(ACK_PENDING);
        }
        if is_pull && self.config.max_batch == 0 && self.rules.max_request_batch > 0 {
            self.pedantic(true, "max_request_batch must be set if it's JetStream limits are set")?;
            self.config.max_batch = self.rules.max_request_batch;
        }
        let is_pinned = self.config.priority_policy == PriorityPolicy::PinnedClient;
        if is_pinned && self.config.priority_timeout == 0 {
            self.config.priority_timeout = PIN_TIMEOUT;
        }
        if policy == AckPolicy::FlowControl && !self.is_pedantic {
            self.config.flow_control = true;
            self.config.idle_heartbeat = FLOW_HEARTBEAT;
        }
        Ok(())
    }

    fn names_and_copies(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if !config.name.is_empty() && !is_valid_name(&config.name) {
            return invalid(r"consumer name can not contain '.', '*', '>', '\', '/'");
        }
        if config.is_durable() && !is_valid_name(&config.durable_name) {
            return invalid(r"consumer durable name can not contain '.', '*', '>', '\', '/'");
        }
        let (copies, of_stream) = (config.num_replicas, self.stream.num_replicas);
        let is_for_consumers = self.stream.retention != Retention::Limits;
        first_of([
            (copies > of_stream, ApiError::CONSUMER_REPLICAS_EXCEEDS_STREAM),
            (copies < 0, ApiError::REPLICAS_COUNT_CANNOT_BE_NEGATIVE),
            (
                is_for_consumers && copies != 0 && copies != of_stream,
                ApiError::CONSUMER_REPLICAS_SHOULD_MATCH_STREAM,
            ),
        ])
    }

    fn waits(&self) -> Result<(), ApiError> {
        let is_negative = self.config.backoff.iter().any(|wait| *wait < 0);
        first_of([
            (is_negative, ApiError::CONSUMER_BACK_OFF_NEGATIVE),
            (self.config.ack_wait < 0, ApiError::CONSUMER_ACK_WAIT_NEGATIVE),
        ])
    }

    fn flow_acks(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if config.ack_policy != AckPolicy::FlowControl {
            return Ok(());
        }
        let has_wait = config.ack_wait != 0 || !config.backoff.is_empty();
        let heartbeat = "flow control ack policy heartbeat needs to be 1s";
        first_of([
            (!config.is_push(), ApiError::CONSUMER_ACK_FLOW_CONTROL_REQUIRES_PUSH),
            (!config.flow_control, ApiError::CONSUMER_ACK_FLOW_CONTROL_REQUIRES_FLOW_CONTROL),
            (
                config.idle_heartbeat != FLOW_HEARTBEAT,
                ApiError::stream_invalid_configuration(heartbeat),
            ),
            (
                config.max_ack_pending <= 0,
                ApiError::CONSUMER_ACK_FLOW_CONTROL_REQUIRES_MAX_ACK_PENDING,
            ),
            (has_wait, ApiError::CONSUMER_ACK_FLOW_CONTROL_REQUIRES_NO_ACK_WAIT),
            (config.max_deliver > 0, ApiError::CONSUMER_ACK_FLOW_CONTROL_REQUIRES_NO_MAX_DELIVER),
        ])
    }

    fn push(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        let subject = config.deliver_subject.as_bytes();
        let is_small = (1..SHORTEST_HEARTBEAT).contains(&config.idle_heartbeat);
        let mut subjects = self.stream.subjects.iter();
        let is_cycle =
            is_valid_filter(subject) && subjects.any(|filter| covers(filter.as_bytes(), subject));
        first_of([
            (!is_literal(subject), ApiError::CONSUMER_DELIVER_TO_WILDCARDS),
            (!is_valid_filter(subject), ApiError::CONSUMER_INVALID_DELIVER_SUBJECT),
            (is_cycle, ApiError::CONSUMER_DELIVER_CYCLE),
            (config.max_waiting != 0, ApiError::CONSUMER_PUSH_MAX_WAITING),
            (
                config.max_ack_pending > 0 && config.ack_policy == AckPolicy::None,
                ApiError::CONSUMER_MAX_PENDING_ACK_POLICY_REQUIRED,
            ),
            (is_small, ApiError::CONSUMER_SMALL_HEARTBEAT),
        ])
    }

    fn pull(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        let is_queue = self.stream.retention == Retention::WorkQueue;
        let batch_max = self.rules.max_request_batch;
        first_of([
            (
                is_queue && config.ack_policy == AckPolicy::None,
                ApiError::CONSUMER_PULL_REQUIRES_ACK,
            ),
            (config.rate_limit_bps > 0, ApiError::CONSUMER_PULL_WITH_RATE_LIMIT),
            (config.idle_heartbeat > 0, ApiError::CONSUMER_HEARTBEAT_REQUIRES_PUSH),
            (config.flow_control, ApiError::CONSUMER_FLOW_CONTROL_REQUIRES_PUSH),
            (
                (1..SHORTEST_EXPIRES).contains(&config.max_expires),
                ApiError::CONSUMER_MAX_REQUEST_EXPIRES_TOO_SMALL,
            ),
            (
                batch_max > 0 && config.max_batch > batch_max,
                ApiError::consumer_max_request_batch_exceeded(batch_max),
            ),
        ])
    }

    fn limits(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        let limits = self.stream.consumer_limits;
        let pending = [
            self.rules.max_ack_pending,
            self.rules.account_max_ack_pending,
            limits.max_ack_pending,
        ];
        let is_over = |limit: &&i64| **limit > 0 && config.max_ack_pending > **limit;
        if let Some(limit) = pending.iter().find(is_over) {
            return Err(ApiError::consumer_max_pending_ack_excess(limit));
        }
        let threshold = limits.inactive_threshold;
        if threshold > 0 && config.inactive_threshold > threshold {
            let threshold = time::duration(threshold.unsigned_abs());
            return Err(ApiError::consumer_inactive_threshold_excess(threshold));
        }
        first_of([
            (config.direct && !config.is_push(), ApiError::CONSUMER_DIRECT_REQUIRES_PUSH),
            (config.direct && config.is_durable(), ApiError::CONSUMER_DIRECT_REQUIRES_EPHEMERAL),
        ])
    }

    fn filters(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if !config.filter_subject.is_empty() && !config.filter_subjects.is_empty() {
            return Err(ApiError::CONSUMER_DUPLICATE_FILTER_SUBJECTS);
        }
        if config.filter_subjects.iter().any(String::is_empty) {
            return Err(ApiError::CONSUMER_EMPTY_FILTER);
        }
        for (at, filter) in config.filters().enumerate() {
            if !is_valid_filter(filter) {
                return invalid("invalid subject");
            }
            let mut others = config.filters().enumerate();
            if others.any(|(other, wide)| other != at && covers(wide, filter)) {
                return Err(ApiError::CONSUMER_OVERLAPPING_SUBJECT_FILTERS);
            }
        }
        Ok(())
    }

    fn start(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        let policy = match config.deliver_policy {
            DeliverPolicy::All => "all",
            DeliverPolicy::Last => "last",
            DeliverPolicy::LastPerSubject => "last per subject",
            DeliverPolicy::New => "new",
            DeliverPolicy::ByStartSequence => "by start sequence",
            DeliverPolicy::ByStartTime => "by start time",
        };
        let refuse = |what: &str| {
            Err(ApiError::consumer_invalid_policy(format_args!(
                "consumer delivery policy is deliver {policy}, but optional {what}"
            )))
        };
        let (has_sequence, has_time) = (config.opt_start_seq > 0, config.opt_start_time.is_some());
        match config.deliver_policy {
            DeliverPolicy::ByStartSequence if !has_sequence => refuse("start sequence is not set"),
            DeliverPolicy::ByStartSequence if has_time => refuse("start time is also set"),
            DeliverPolicy::ByStartTime if !has_time => refuse("start time is not set"),
            DeliverPolicy::ByStartTime if has_sequence => {
                refuse("start start sequence is also set")
            }
            DeliverPolicy::ByStartSequence | DeliverPolicy::ByStartTime => Ok(()),
            _ if has_sequence => refuse("start sequence is also set"),
            _ if has_time => refuse("start time is also set"),
            DeliverPolicy::LastPerSubject if config.filters().next().is_none() => {
                refuse("filter subject is not set")
            }
            _ => Ok(()),
        }
    }

    fn rest(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if !config.sample_freq.is_empty() {
            let text = config.sample_freq.strip_suffix('%').unwrap_or(&config.sample_freq);
            let why = match text.parse::<i64>() {
                Ok(0..) => None,
                Ok(_) => Some("<nil>".to_owned()),
                Err(_) => Some(format!("strconv.Atoi: parsing {text:?}: invalid syntax")),
            };
            if let Some(why) = why {
                return Err(ApiError::consumer_invalid_sampling(why));
            }
        }
        let all = config.metadata.iter();
        let bytes: usize = all.map(|(key, value)| key.len() + value.len()).sum();
        let has_both = config.is_durable() && !config.name.is_empty();
        first_of([
            (
                config.flow_control && config.idle_heartbeat == 0,
                ApiError::CONSUMER_WITH_FLOW_CONTROL_NEEDS_HEARTBEATS,
            ),
            (
                has_both && config.name != config.durable_name,
                ApiError::CONSUMER_CREATE_DURABLE_AND_NAME_MISMATCH,
            ),
            (bytes > METADATA_BYTES_MAX, ApiError::consumer_metadata_length("128KB")),
        ])
    }

    fn groups(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if config.priority_policy == PriorityPolicy::None {
            let has_groups = !config.priority_groups.is_empty();
            return first_of([
                (has_groups, ApiError::CONSUMER_PRIORITY_GROUP_WITH_POLICY_NONE),
                (
                    config.priority_timeout > 0,
                    ApiError::CONSUMER_PINNED_TTL_WITHOUT_PRIORITY_POLICY_NONE,
                ),
            ]);
        }
        let bad = config.priority_groups.iter().find(|group| !is_valid_group(group));
        first_of([
            (config.is_push(), ApiError::CONSUMER_PUSH_WITH_PRIORITY_GROUP),
            (config.priority_groups.is_empty(), ApiError::CONSUMER_PRIORITY_POLICY_WITHOUT_GROUP),
            (bad.is_some_and(String::is_empty), ApiError::CONSUMER_EMPTY_GROUP_NAME),
            (bad.is_some(), ApiError::CONSUMER_INVALID_GROUP_NAME),
        ])
    }
}

/// Whether the name of a group of requests is one.
pub(in crate::consumer) fn is_valid_group(group: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_=-".contains(c);
    (1..=GROUP_BYTES_MAX).contains(&group.len()) && group.chars().all(is_plain)
}

impl ConsumerConfig {
    /// Sets the inactivity after which a consumer that is not durable ends, if none is given.
    pub(in crate::consumer) fn fill_threshold(&mut self) {
        if self.inactive_threshold <= 0 {
            self.inactive_threshold = INACTIVE_THRESHOLD;
        }
    }

    /// Checks the length of a new consumer's name.
    pub(in crate::consumer) fn check_name_length(&self) -> Result<(), ApiError> {
        if self.durable_name.len() > NAME_BYTES_MAX {
            return Err(ApiError::consumer_name_too_long(NAME_BYTES_MAX));
        }
        if self.name.len() > NAME_BYTES_MAX {
            return Err(ApiError::consumer_create("error creating store for consumer"));
        }
        Ok(())
    }

    /// Checks that a new configuration changes nothing that has to stay. A deliver subject may
    /// change if `is_bound`, which is asked for the old one, says that nobody listens.
    ///
    /// # Errors
    ///
    /// 10012 for what has to stay, 10013 for a deliver subject in use.
    pub(in crate::consumer) fn check_change(
        &self,
        new: &Self,
        is_bound: impl FnOnce(&[u8]) -> bool,
    ) -> Result<(), ApiError> {
        let fixed = [
            (self.deliver_policy != new.deliver_policy, "deliver policy"),
            (self.mem_storage != new.mem_storage, "storage type"),
            (self.direct != new.direct, "direct"),
            (self.sourcing != new.sourcing, "sourcing"),
            (self.opt_start_seq != new.opt_start_seq, "start sequence"),
            (self.opt_start_time != new.opt_start_time, "start time"),
            (self.ack_policy != new.ack_policy, "ack policy"),
            (self.replay_policy != new.replay_policy, "replay policy"),
            (self.idle_heartbeat != new.idle_heartbeat, "heart beats"),
            (self.flow_control != new.flow_control, "flow control"),
        ];
        let refuse =
            |what: &str| Err(ApiError::consumer_create(format_args!("{what} can not be updated")));
        if let Some((_, what)) = fixed.into_iter().find(|(is_changed, _)| *is_changed) {
            return refuse(what);
        }
        if self.deliver_subject != new.deliver_subject {
            let change = match (self.is_push(), new.is_push()) {
                (false, _) => "can not update pull consumer to push based",
                (true, false) => "can not update push consumer to pull based",
                _ if is_bound(self.deliver_subject.as_bytes()) => {
                    return Err(ApiError::CONSUMER_NAME_EXIST);
                }
                _ => "",
            };
            if !change.is_empty() {
                return Err(ApiError::consumer_create(change));
            }
        }
        if self.max_waiting != new.max_waiting {
            return refuse("max waiting");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(more: serde_json::Value) -> StreamConfig {
        let mut config: StreamConfig = serde_json::from_value(more).unwrap();
        "S".clone_into(&mut config.name);
        config.num_replicas = 1;
        if config.subjects.is_empty() {
            config.subjects = vec!["s.>".to_owned()];
        }
        config
    }

    fn check_in(
        stream: &StreamConfig,
        config: serde_json::Value,
        is_pedantic: bool,
    ) -> Result<ConsumerConfig, ApiError> {
        let mut config: ConsumerConfig = serde_json::from_value(config).unwrap();
        let rules = ConsumerRules::default();
        ConfigCheck { config: &mut config, is_pedantic, stream, rules: &rules }.run()?;
        Ok(config)
    }

    fn check(config: serde_json::Value) -> Result<ConsumerConfig, u16> {
        check_in(&stream(json!({})), config, false).map_err(|error| error.err_code)
    }

    #[test]
    fn values_are_filled_in_by_kind() {
        let pull = check(json!({"ack_policy":"explicit","max_waiting":-1})).unwrap();
        assert_eq!((pull.max_waiting, pull.max_deliver), (WAITING, -1));
        assert_eq!((pull.ack_wait, pull.max_ack_pending), (ACK_WAIT, ACK_PENDING));
        let none = check(json!({})).unwrap();
        assert_eq!((none.ack_wait, none.max_ack_pending), (0, 0));
        let push = check(json!({"deliver_subject":"d","ack_policy":"all"})).unwrap();
        assert_eq!((push.max_waiting, push.ack_wait), (0, ACK_WAIT));
        let backoff = check(json!({"ack_policy":"explicit","backoff":[5,6]})).unwrap();
        assert_eq!(backoff.ack_wait, 5);
        let pinned = json!({"priority_policy":"pinned_client","priority_groups":["g"]});
        assert_eq!(check(pinned).unwrap().priority_timeout, PIN_TIMEOUT);
        let flow = json!({"deliver_subject":"d","ack_policy":"flow_control"});
        let flow = check(flow).unwrap();
        assert!(flow.flow_control && flow.idle_heartbeat == SECOND && flow.ack_wait == 0);
        let limited = stream(json!({"consumer_limits":{"max_ack_pending":10}}));
        let config = check_in(&limited, json!({"ack_policy":"explicit"}), false).unwrap();
        assert_eq!(config.max_ack_pending, 10);
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_number_of_its_error() {
        for (config, expected) in [
            (json!({"name":"a.b"}), 10052),
            (json!({"durable_name":"a b"}), 10052),
            (json!({"num_replicas":2}), 10126),
            (json!({"num_replicas":-1}), 10133),
            (json!({"backoff":[-1]}), 10184),
            (json!({"ack_wait":-1}), 10183),
            (json!({"ack_policy":"flow_control"}), 10218),
            (json!({"max_deliver":2,"backoff":[1,1,1]}), 10116),
            (json!({"description":"x".repeat(4097)}), 10107),
            (json!({"deliver_subject":"a.*"}), 10079),
            (json!({"deliver_subject":"a..b"}), 10112),
            (json!({"deliver_subject":"s.a"}), 10081),
            (json!({"deliver_subject":"d","max_waiting":1}), 10080),
            (json!({"deliver_subject":"d","max_ack_pending":1}), 10082),
            (json!({"deliver_subject":"d","idle_heartbeat":1}), 10083),
            (json!({"rate_limit_bps":1}), 10086),
            (json!({"idle_heartbeat":SECOND}), 10088),
            (json!({"flow_control":true}), 10089),
            (json!({"max_expires":1}), 10115),
            (json!({"direct":true}), 10090),
            (json!({"direct":true,"deliver_subject":"d","durable_name":"D"}), 10091),
            (json!({"filter_subject":"s.a","filter_subjects":["s.b"]}), 10136),
            (json!({"filter_subjects":["s.a",""]}), 10139),
            (json!({"filter_subjects":["s.>","s.b"]}), 10138),
            (json!({"filter_subject":"s..b"}), 10052),
            (json!({"opt_start_seq":1}), 10094),
            (json!({"deliver_policy":"by_start_time"}), 10094),
            (json!({"deliver_policy":"last_per_subject"}), 10094),
            (json!({"sample_freq":"often"}), 10095),
            (json!({"deliver_subject":"d","flow_control":true}), 10108),
            (json!({"name":"a","durable_name":"b"}), 10132),
            (json!({"metadata":{"k":"x".repeat(131_072)}}), 10135),
            (json!({"priority_policy":"overflow"}), 10159),
            (json!({"priority_policy":"overflow","priority_groups":[""]}), 10161),
            (json!({"priority_policy":"overflow","priority_groups":["a b"]}), 10162),
            (json!({"priority_groups":["a"]}), 10196),
            (json!({"priority_timeout":1}), 10197),
        ] {
            assert_eq!(check(config.clone()).map(|_| ()), Err(expected), "{config}");
        }
        let with_push = json!({"deliver_subject":"d","priority_policy":"overflow",
            "priority_groups":["g"]});
        assert_eq!(check(with_push), Err(10178));
    }

    #[test]
    fn a_stream_limits_its_consumers() {
        let limited = stream(json!({"retention":"workqueue",
            "consumer_limits":{"inactive_threshold":10_000_000_000_i64,"max_ack_pending":10}}));
        let refused = |config| check_in(&limited, config, false).unwrap_err();
        assert_eq!(refused(json!({"ack_policy":"none"})).err_code, 10084);
        let error = refused(json!({"ack_policy":"explicit","max_ack_pending":11}));
        assert_eq!(error.description, "consumer max ack pending exceeds system limit of 10");
        let threshold = json!({"ack_policy":"explicit","inactive_threshold":11 * SECOND});
        let text = "consumer inactive threshold exceeds system limit of 10s";
        assert_eq!(refused(threshold).description, text);
        let error = check_in(&limited, json!({"ack_policy":"explicit"}), true).unwrap_err();
        assert_eq!(error.err_code, 10157);
    }

    #[test]
    fn an_update_changes_what_may_change() {
        let old = json!({"deliver_subject":"d","ack_policy":"explicit"});
        let old: ConsumerConfig = serde_json::from_value(old).unwrap();
        let changed = |more: serde_json::Value, is_bound: bool| {
            let mut new = serde_json::to_value(&old).unwrap();
            new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let new: ConsumerConfig = serde_json::from_value(new).unwrap();
            old.check_change(&new, |_| is_bound).map_err(|error| error.description.into_owned())
        };
        let free = json!({"description":"x","ack_wait":5,"max_deliver":3,"filter_subject":"s.a",
            "headers_only":true,"max_ack_pending":7,"rate_limit_bps":8,"metadata":{"a":"b"}});
        assert_eq!(changed(free, true), Ok(()));
        for (change, what) in [
            (json!({"deliver_policy":"new"}), "deliver policy can not be updated"),
            (json!({"mem_storage":true}), "storage type can not be updated"),
            (json!({"ack_policy":"all"}), "ack policy can not be updated"),
            (json!({"idle_heartbeat":SECOND}), "heart beats can not be updated"),
            (json!({"max_waiting":3}), "max waiting can not be updated"),
            (json!({"deliver_subject":""}), "can not update push consumer to pull based"),
        ] {
            assert_eq!(changed(change, false), Err(what.to_owned()));
        }
        let moved = json!({"deliver_subject":"e"});
        assert_eq!(changed(moved.clone(), false), Ok(()));
        assert_eq!(changed(moved, true), Err("consumer name already in use".to_owned()));
    }
}
