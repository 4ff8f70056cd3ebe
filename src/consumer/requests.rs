//! Requests about consumers: to make, change, show, list, pause, reset and delete them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::advisory::{Advisory, ConsumerEvent, random_text};
use super::config::{AckPolicy, ConfigCheck, ConsumerConfig, DeliverPolicy, is_valid_group};
use super::consumers::Consumers;
use super::cursor::ReadPlace;
use super::live::{LiveConsumer, Turn};
use super::output::ConsumerOutput;
use super::source::{ConsumerSource, Moment};
use crate::stream::time::{NO_TIME, Timestamp, rfc3339};
use crate::stream::{AnswerKind, ApiError, Retention, StreamConfig, is_valid_name, json};
use crate::subject::overlap;

/// Names that one answer lists.
const NAMES_MAX: usize = 1024;
/// Consumers that one answer lists.
const LIST_MAX: usize = 256;
/// Characters of a name that the server makes up.
const NAME_CHARACTERS: usize = 8;

/// The thing that a request may do to the consumer that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsumerAction {
    /// Make it, or change it if it is there.
    #[default]
    #[serde(rename = "")]
    Any,
    /// Make it.
    Create,
    /// Change it.
    Update,
}

/// A request to make or to change a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ConsumerRequest {
    /// Name of the stream.
    pub stream_name: String,
    /// The configuration.
    pub config: ConsumerConfig,
    /// The thing that the request may do.
    pub action: ConsumerAction,
    /// Whether a value that the server would change is an error.
    pub pedantic: bool,
}

/// The end of a request's subject, behind the name of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerForm<'a> {
    /// `CONSUMER.CREATE.S`: a consumer without a name.
    Ephemeral,
    /// `CONSUMER.DURABLE.CREATE.S.C`.
    Durable(&'a str),
    /// `CONSUMER.CREATE.S.C`, perhaps with a filter behind it.
    Named(&'a str, Option<&'a str>),
}

impl ConsumerRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    ///
    /// 10025, see [`json::parse_request`].
    pub fn parse(body: &[u8], is_strict: bool) -> Result<Self, ApiError> {
        let mut request: Self = json::parse_request(body, is_strict)?;
        let config = &mut request.config;
        config.unmark();
        // The time before all others is none.
        config.pause_until = config.pause_until.filter(|until| until.0 > i64::MIN);
        Ok(request)
    }

    /// The first checks of a request, against its subject. The name in the subject becomes that of
    /// the consumer. The stream is to be found next, then [`Consumers::create`].
    ///
    /// # Errors
    ///
    /// 10056 for another stream, and errors about names and filters.
    pub fn check_subject(&mut self, stream: &str, form: ConsumerForm<'_>) -> Result<(), ApiError> {
        let config = &mut self.config;
        if self.stream_name != stream {
            return Err(ApiError::STREAM_MISMATCH);
        }
        let name = match form {
            ConsumerForm::Ephemeral => config.name.clone(),
            ConsumerForm::Durable(name) | ConsumerForm::Named(name, _) => name.to_owned(),
        };
        if name.contains(['\\', '/']) {
            return Err(ApiError::CONSUMER_NAME_CONTAINS_PATH_SEPARATORS);
        }
        let is_other = config.is_durable() && config.durable_name != name;
        match form {
            ConsumerForm::Ephemeral if config.is_durable() => {
                return Err(ApiError::CONSUMER_EPHEMERAL_WITH_DURABLE_NAME);
            }
            ConsumerForm::Durable(_) if !config.is_durable() => {
                return Err(ApiError::CONSUMER_DURABLE_NAME_NOT_SET);
            }
            ConsumerForm::Durable(_) | ConsumerForm::Named(..) if is_other => {
                return Err(ApiError::CONSUMER_DURABLE_NAME_NOT_MATCH_SUBJECT);
            }
            _ => config.name = name,
        }
        if let ConsumerForm::Named(_, Some(filter)) = form {
            if !config.filter_subjects.is_empty() {
                return Err(ApiError::CONSUMER_MULTIPLE_FILTERS_NOT_ALLOWED);
            }
            if config.filter_subject != filter {
                return Err(ApiError::CONSUMER_CREATE_FILTER_SUBJECT_MISMATCH);
            }
        }
        if config.num_replicas > 1 {
            return Err(ApiError::STREAM_REPLICAS_NOT_SUPPORTED);
        }
        Ok(())
    }
}

impl PauseRequest {
    fn parse(body: &[u8], is_strict: bool) -> Result<Self, ApiError> {
        if json::is_object_or_array(body) {
            json::parse_request(body, is_strict)
        } else {
            Ok(Self::default())
        }
    }
}

impl UnpinRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = json::parse_request(body, false)?;
        if request.group.is_empty() {
            return Err(ApiError::invalid_json("consumer group not specified"));
        }
        if !is_valid_group(&request.group) {
            return Err(ApiError::CONSUMER_INVALID_GROUP_NAME);
        }
        Ok(request)
    }
}

/// Checks the body of a request to pause a consumer, where there is no such stream: nobody looks
/// for that before.
///
/// # Errors
///
/// 10025 for a request that cannot be read.
pub fn check_pause(body: &[u8], is_strict: bool) -> Result<(), ApiError> {
    PauseRequest::parse(body, is_strict).map(drop)
}

/// Checks the body of a request to let go of a pinned client, where there is no such stream.
///
/// # Errors
///
/// 10025 and 10162 for a wrong request.
pub fn check_unpin(body: &[u8]) -> Result<(), ApiError> {
    UnpinRequest::parse(body).map(drop)
}

/// A page of names.
#[derive(Debug, Serialize)]
struct NamesShown {
    total: usize,
    offset: usize,
    limit: usize,
    consumers: Vec<String>,
}

/// A page of consumers.
#[derive(Debug, Serialize)]
struct ListShown {
    total: usize,
    offset: usize,
    limit: usize,
    consumers: Vec<super::info::ConsumerInfo>,
}

/// A request for a page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConsumersPageRequest {
    offset: i64,
}

/// A request to pause a consumer, or to let it go on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PauseRequest {
    pause_until: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct PauseShown {
    paused: bool,
    pause_until: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_remaining: Option<i64>,
}

/// A request to go back.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResetRequest {
    seq: u64,
}

/// A request to let go of a pinned client.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UnpinRequest {
    group: String,
}

#[derive(Debug, Serialize)]
struct SuccessShown {
    success: bool,
}

#[derive(Debug, Serialize)]
struct NothingShown {}

impl Consumers {
    /// Makes a consumer, or changes it. Returns the answer, which is to wait for the commit of the
    /// last record that was kept.
    ///
    /// # Errors
    ///
    /// Returns the first error of the configuration, or of the change.
    pub fn create(
        &mut self,
        request: &ConsumerRequest,
        stream: &StreamConfig,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<Vec<u8>, ApiError> {
        let mut config = request.config.clone();
        self.adapt(&mut config, stream);
        let (is_pedantic, rules) = (request.pedantic, &self.rules);
        ConfigCheck { config: &mut config, is_pedantic, stream, rules }.run()?;
        let name =
            if config.is_durable() { config.durable_name.clone() } else { config.name.clone() };
        let at = match self.find(&name) {
            Some(at) => {
                let is_of_copy = config.sourcing;
                self.update(at, config, request.action, moment, source)?;
                if is_of_copy {
                    // The copy has lost its place, and begins where it has stored all before.
                    self.with(at, moment, source, |consumer, turn| consumer.reset(0, turn).ok());
                    self.keep_consumer(at, moment);
                }
                at
            }
            None if request.action == ConsumerAction::Update => {
                return Err(ApiError::CONSUMER_DOES_NOT_EXIST);
            }
            None => {
                self.check_place(&name, &config, stream)?;
                self.add(name, config, stream, moment, source)?
            }
        };
        let info = self.with(at, moment, source, |consumer, turn| {
            let info = consumer.info(true, turn);
            if consumer.is_paused {
                consumer.advise_pause(turn);
            }
            info
        });
        self.wake(at);
        Ok(AnswerKind::CONSUMER_CREATE.answer(&info))
    }

    /// Changes what a request cannot say: consumers that serve a copy, and pauses of those that are
    /// there.
    fn adapt(&mut self, config: &mut ConsumerConfig, stream: &StreamConfig) {
        if config.direct && config.sourcing && !config.name.is_empty() {
            if stream.retention == Retention::Limits {
                let random = random_text(&mut self.rng, NAME_CHARACTERS);
                config.name = format!("{}-{random}", config.name);
            } else {
                config.direct = false;
                config.durable_name.clone_from(&config.name);
                config.ack_policy = AckPolicy::FlowControl;
                (config.ack_wait, config.max_deliver, config.inactive_threshold) = (0, 0, 0);
            }
        }
        if let Some(at) = self.find(&config.name) {
            let present = &self.slots[at].config;
            config.pause_until = present.pause_until;
            if config.sourcing && config.is_durable() {
                config.deliver_policy = present.deliver_policy;
                config.opt_start_seq = present.opt_start_seq;
                config.opt_start_time = present.opt_start_time;
            }
        }
    }

    /// Checks that a new consumer fits into its stream.
    pub(super) fn check_place(
        &self,
        name: &str,
        config: &ConsumerConfig,
        stream: &StreamConfig,
    ) -> Result<(), ApiError> {
        let is_own = config.direct || config.sourcing;
        let others = || self.slots.iter().filter(|(_, other)| !other.config.sourcing);
        if !is_own {
            let of_account = self.rules.account_max_consumers;
            let mut max = stream.max_consumers;
            if max <= 0 || (of_account > 0 && of_account < max) {
                max = of_account;
            }
            if max <= 0 {
                max = self.rules.default_max_consumers;
            }
            let max = usize::try_from(max).ok().filter(|max| *max > 0).unwrap_or(usize::MAX);
            if self.slots.len() >= max && others().count() >= max {
                return Err(ApiError::MAXIMUM_CONSUMERS_LIMIT);
            }
        }
        if stream.retention == Retention::WorkQueue && !is_own {
            if !matches!(config.ack_policy, AckPolicy::Explicit | AckPolicy::FlowControl) {
                return Err(ApiError::CONSUMER_WORK_QUEUE_REQUIRES_EXPLICIT_ACK);
            }
            if config.deliver_policy != DeliverPolicy::All {
                return Err(ApiError::CONSUMER_WORK_QUEUE_CONSUMER_NOT_DELIVER_ALL);
            }
            let has_others = others().next().is_some();
            if has_others && config.filters().next().is_none() {
                return Err(ApiError::CONSUMER_WORK_QUEUE_MULTIPLE_UNFILTERED);
            }
            if has_others && !is_unique(self, name, config) {
                return Err(ApiError::CONSUMER_WORK_QUEUE_CONSUMER_NOT_UNIQUE);
            }
        }
        config.check_name_length()
    }

    /// Adds a consumer whose configuration has been checked.
    fn add(
        &mut self,
        name: String,
        mut config: ConsumerConfig,
        stream: &StreamConfig,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<usize, ApiError> {
        let mut name: Arc<str> = name.into();
        while name.is_empty() || self.names.contains_key(&name) {
            name = random_text(&mut self.rng, NAME_CHARACTERS).into();
        }
        if !is_valid_name(&name) {
            return Err(ApiError::CONSUMER_BAD_DURABLE_NAME);
        }
        if !config.is_durable() {
            config.fill_threshold();
        }
        let place = ReadPlace::start(&config, stream.max_msgs_per_subject == 1, source);
        let next = place.next();
        self.last_number += 1;
        let created = Timestamp(moment.wall_time());
        let mut consumer =
            LiveConsumer::new(name.clone(), self.last_number, created, config, place);
        consumer.acks.restart(next);
        let is_shown = !consumer.config.direct;
        let at = self.slots.insert(consumer);
        self.names.insert(name.clone(), at);
        self.with(at, moment, source, LiveConsumer::begin);
        if let Some(push) = &self.slots[at].push {
            let subject = push.subject.clone();
            self.listeners.add(subject.clone(), at);
            self.out.push(ConsumerOutput::Listens { before: None, now: Some(subject) });
        }
        if is_shown {
            self.out.advise(Advisory::new(&name, moment, ConsumerEvent::Created));
        }
        self.keep_consumer(at, moment);
        Ok(at)
    }

    /// Changes a consumer to a configuration that has been checked.
    fn update(
        &mut self,
        at: usize,
        mut config: ConsumerConfig,
        action: ConsumerAction,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<(), ApiError> {
        let present = &self.slots[at];
        if action == ConsumerAction::Create && config != *present.config {
            return Err(ApiError::CONSUMER_ALREADY_EXISTS);
        }
        let is_queue = self.about.retention == Retention::WorkQueue;
        if is_queue && !is_unique(self, &present.name, &config) {
            return Err(ApiError::CONSUMER_WORK_QUEUE_CONSUMER_NOT_UNIQUE);
        }
        let is_of_copy = config.sourcing;
        present.config.check_change(&config, |subject| match is_of_copy {
            true => source.reaches(subject),
            false => source.has_interest(subject),
        })?;
        // A consumer stays what it was made, durable or not.
        let was_durable = present.config.is_durable();
        if !was_durable && config.inactive_threshold != present.config.inactive_threshold {
            config.fill_threshold();
        }
        self.replace(at, config, moment, source);
        Ok(())
    }

    /// Gives a consumer another configuration.
    fn replace(
        &mut self,
        at: usize,
        config: ConsumerConfig,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) {
        // A consumer that waits for new messages is known by its filters.
        self.wake(at);
        let before = self.slots[at].push.as_ref().map(|push| push.subject.clone());
        let changes = self.with(at, moment, source, |consumer, turn| consumer.change(config, turn));
        let now = self.slots[at].push.as_ref().map(|push| push.subject.clone());
        if before != now {
            before.iter().for_each(|subject| self.listeners.remove(subject, at));
            now.iter().for_each(|subject| self.listeners.add(subject.clone(), at));
            self.out.push(ConsumerOutput::Listens { before, now });
        }
        if changes == Some(true) && self.about.retention == Retention::Interest {
            self.sweep_from(self.slots[at].acks.floor.stream);
        }
        self.keep_consumer(at, moment);
        self.wake(at);
    }

    /// Answers CONSUMER.INFO.
    ///
    /// # Errors
    ///
    /// 10014 if there is no such consumer.
    pub fn info(
        &mut self,
        name: &str,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<Vec<u8>, ApiError> {
        let at = self.find(name).ok_or(ApiError::CONSUMER_NOT_FOUND)?;
        let info = self.with(at, moment, source, |consumer, turn| consumer.info(true, turn));
        Ok(AnswerKind::CONSUMER_INFO.answer(&info))
    }

    /// Answers CONSUMER.NAMES.
    ///
    /// # Errors
    ///
    /// 10025 for a request that cannot be read.
    pub fn list_names(&self, body: &[u8]) -> Result<Vec<u8>, ApiError> {
        let offset = offset(self, body)?;
        let page = public(self).skip(offset).take(NAMES_MAX);
        let consumers = page.map(|at| self.slots[at].name.to_string()).collect();
        let total = public(self).count();
        let shown = NamesShown { total, offset, limit: NAMES_MAX, consumers };
        Ok(AnswerKind::CONSUMER_NAMES.answer(&shown))
    }

    /// Answers CONSUMER.LIST.
    ///
    /// # Errors
    ///
    /// 10025 for a request that cannot be read.
    pub fn list(
        &mut self,
        body: &[u8],
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<Vec<u8>, ApiError> {
        let offset = offset(self, body)?;
        let total = public(self).count();
        let page: Vec<usize> = public(self).skip(offset).take(LIST_MAX).collect();
        let mut info =
            |at| self.with(at, moment, source, |consumer, turn| consumer.info(false, turn));
        let consumers = page.into_iter().filter_map(&mut info).collect();
        let shown = ListShown { total, offset, limit: LIST_MAX, consumers };
        Ok(AnswerKind::CONSUMER_LIST.answer(&shown))
    }

    /// All consumers as answers show them, for monitoring, up to a number.
    pub fn details(
        &mut self,
        max: usize,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Vec<serde_json::Value> {
        let page: Vec<usize> = public(self).take(max).collect();
        let mut info =
            |at| self.with(at, moment, source, |consumer, turn| consumer.info(false, turn));
        let infos = page.into_iter().filter_map(&mut info);
        infos.filter_map(|info| serde_json::to_value(info).ok()).collect()
    }

    /// Answers CONSUMER.DELETE.
    ///
    /// # Errors
    ///
    /// 10014 if there is no such consumer.
    pub fn delete(&mut self, name: &str, moment: Moment) -> Result<Vec<u8>, ApiError> {
        let at = self.find(name).ok_or(ApiError::CONSUMER_NOT_FOUND)?;
        self.remove(at, moment);
        self.keep(moment);
        Ok(AnswerKind::CONSUMER_DELETE.answer(&SuccessShown { success: true }))
    }

    /// Answers CONSUMER.PAUSE.
    ///
    /// # Errors
    ///
    /// 10025 for a request that cannot be read, 10014 if there is no such consumer.
    pub fn pause(
        &mut self,
        name: &str,
        body: &[u8],
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<Vec<u8>, ApiError> {
        let request = PauseRequest::parse(body, self.rules.is_strict)?;
        let at = self.find(name).ok_or(ApiError::CONSUMER_NOT_FOUND)?;
        let until = request.pause_until.filter(|until| until.0 > i64::MIN);
        let mut config = (*self.slots[at].config).clone();
        config.pause_until = until;
        self.replace(at, config, moment, source);
        let remaining = until.map(|until| until.0.saturating_sub(moment.wall_time()));
        let remaining = remaining.filter(|remaining| *remaining > 0);
        let shown = PauseShown {
            paused: remaining.is_some(),
            pause_until: until.map_or_else(|| NO_TIME.to_owned(), |until| rfc3339(until.0)),
            pause_remaining: remaining,
        };
        Ok(AnswerKind::CONSUMER_PAUSE.answer(&shown))
    }

    /// Answers CONSUMER.RESET.
    ///
    /// # Errors
    ///
    /// 10025 for a request that cannot be read, 10204 for a sequence that is not allowed, 10014 if
    /// there is no such consumer.
    pub fn reset(
        &mut self,
        name: &str,
        body: &[u8],
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> Result<Vec<u8>, ApiError> {
        let request: ResetRequest = json::parse_request(body, false)?;
        let at = self.find(name).ok_or(ApiError::CONSUMER_NOT_FOUND)?;
        let info = self.with(at, moment, source, |consumer, turn| {
            let next = consumer.reset(request.seq, turn)?;
            let mut info = consumer.info(true, turn);
            info.reset_seq = Some(next);
            Ok(info)
        });
        let info = info.transpose().map_err(|why: &str| ApiError::consumer_invalid_reset(why))?;
        if self.about.retention == Retention::Interest {
            self.sweep_from(0);
        }
        self.keep_consumer(at, moment);
        self.wake(at);
        Ok(AnswerKind::CONSUMER_RESET.answer(&info))
    }

    /// Answers CONSUMER.UNPIN.
    ///
    /// # Errors
    ///
    /// 10025 and 10162 for a wrong request, 10160 for an unknown group, 10014 if there is no such
    /// consumer.
    pub fn unpin(&mut self, name: &str, body: &[u8], moment: Moment) -> Result<Vec<u8>, ApiError> {
        let request = UnpinRequest::parse(body)?;
        let at = self.find(name).ok_or(ApiError::CONSUMER_NOT_FOUND)?;
        let consumer = &mut self.slots[at];
        if !consumer.config.priority_groups.contains(&request.group) {
            return Err(ApiError::CONSUMER_INVALID_PRIORITY_GROUP);
        }
        consumer.pulls.pin = None;
        let event = ConsumerEvent::Unpinned { group: request.group.into(), reason: "admin" };
        self.out.advise(Advisory::new(&consumer.name, moment, event));
        self.wake(at);
        Ok(AnswerKind::CONSUMER_UNPIN.answer(&NothingShown {}))
    }
}

impl LiveConsumer {
    /// Takes another configuration. Returns whether the filters are others.
    fn change(&mut self, config: ConsumerConfig, turn: &mut Turn<'_>) -> bool {
        let before = std::mem::replace(&mut *self.config, config);
        let config = &self.config;
        if before.ack_wait != config.ack_wait || before.backoff != config.backoff {
            self.acks.rearm(config);
        }
        let is_moved = before.deliver_subject != config.deliver_subject;
        if let Some(push) = &mut self.push {
            push.set_subject(config);
            push.is_moved = is_moved;
            // Nobody has looked for listeners of the new subject yet.
            push.is_active &= !is_moved;
            if before.rate_limit_bps != config.rate_limit_bps {
                push.set_rate(config, turn.about.message_bytes_max);
            }
        }
        if is_moved {
            self.acks.redeliver_all();
        }
        if before.inactive_threshold != self.config.inactive_threshold {
            self.activity = turn.moment.mono;
        }
        if before.pause_until != self.config.pause_until {
            self.is_paused = self.is_paused_at(turn.moment);
            self.advise_pause(turn);
        }
        let mut old: Vec<&[u8]> = before.filters().collect();
        let mut new: Vec<&[u8]> = self.config.filters().collect();
        old.sort_unstable();
        new.sort_unstable();
        let has_others = old != new;
        if has_others {
            self.place.recount();
        }
        has_others
    }

    /// Goes back to a sequence, or to the first message that was not acknowledged. Returns the
    /// sequence.
    ///
    /// # Errors
    ///
    /// Returns the reason for which that is not allowed.
    fn reset(&mut self, sequence: u64, turn: &mut Turn<'_>) -> Result<u64, &'static str> {
        let next = match self.config.deliver_policy {
            _ if sequence == 0 => self.acks.floor.stream + 1,
            DeliverPolicy::All => sequence,
            DeliverPolicy::ByStartSequence if sequence >= self.config.opt_start_seq => sequence,
            DeliverPolicy::ByStartSequence => return Err("below start seq"),
            DeliverPolicy::ByStartTime => {
                let time = self.config.opt_start_time.map_or(0, |time| time.0);
                if sequence < turn.source.at_time(time) {
                    return Err("below start time");
                }
                sequence
            }
            _ => return Err("not allowed"),
        };
        let next = next.clamp(1, crate::store::SEQUENCE_MAX);
        self.place = ReadPlace::at(next);
        self.acks.restart(next);
        (self.last_delivered, self.last_acked) = (None, None);
        Ok(next)
    }
}

/// Whether no other consumer has a filter in common with these.
fn is_unique(all: &Consumers, name: &str, config: &ConsumerConfig) -> bool {
    let others = all
        .slots
        .iter()
        .map(|(_, other)| other)
        .filter(|other| *other.name != *name && !other.config.direct && !other.config.sourcing);
    let collides = |other: &LiveConsumer, filter: &[u8]| {
        let mut filters = other.config.filters().peekable();
        filters.peek().is_none() || filters.any(|second| overlap(filter, second))
    };
    let mut others = others;
    !others.any(|other| config.filters().any(|filter| collides(other, filter)))
}

/// Number of consumers that are shown: those of copies are not.
pub fn shown_consumers(all: &Consumers) -> usize {
    public(all).count()
}

/// The names that lists show, in order.
fn public(all: &Consumers) -> impl Iterator<Item = usize> {
    all.names.values().copied().filter(|at| !all.slots[*at].config.direct)
}

fn offset(all: &Consumers, body: &[u8]) -> Result<usize, ApiError> {
    if !json::is_object_or_array(body) {
        return Ok(0);
    }
    let request: ConsumersPageRequest = json::parse_request(body, all.rules.is_strict)?;
    Ok(usize::try_from(request.offset).unwrap_or(0).min(public(all).count()))
}
