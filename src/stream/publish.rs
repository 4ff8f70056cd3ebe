//! A message on its way into a stream: checks in nats-server's order, then the store.

use std::borrow::Cow;

use super::answer::write_json;
use super::batch::Ahead;
use super::config::{Discard, Retention, StorageKind};
use super::error::ApiError;
use super::expiry::{FLAG_TTL, InvalidTtl, TimeToLive, ttl_of};
use super::headers::{self, name};
use super::live::{LiveStream, StreamEvent};
use super::schedule::{FLAG_SCHEDULE, FLAG_SCHEDULED};
use super::{batch, counter, ingest, schedule, time};
use crate::store::{NewMessage, StageError, StoreError, StoredMessage, StreamStore};

/// Longest headers of a message, in bytes.
const HEADERS_BYTES_MAX: usize = 65_535;

/// A message that was published to a subject of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The subject to which it was published.
    pub subject: &'a [u8],
    /// The subject for the acknowledgement; empty if none is wanted.
    pub reply: &'a [u8],
    /// Headers with the line that they begin with; empty if there are none.
    pub headers: &'a [u8],
    /// Payload without the headers.
    pub payload: &'a [u8],
}

/// Facts that a publish must know beside the stream.
pub struct PublishContext<'a> {
    /// The time, in nanoseconds since 1970.
    pub now: u64,
    /// Whether the server's storage is used up.
    pub is_full: bool,
    /// Bytes that the account may still store.
    pub bytes_left: u64,
    /// Whether a consumer of the stream wants a subject: asked only if retention is by interest.
    pub has_interest: &'a dyn Fn(&[u8]) -> bool,
}

/// A message that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAt {
    /// Sequence of the message; of a batch, of its last one.
    pub sequence: u64,
    /// The number of the commit before which nothing may be said.
    pub commit: u64,
    /// The counter's new value, if the stream has counters.
    pub value: Option<String>,
    /// Name and size of the batch, if the message was the last one of one.
    pub batch: Option<(String, u64)>,
}

/// The outcome of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The message was stored.
    Stored(StoredAt),
    /// A message with this id was stored before.
    Duplicate {
        /// The sequence of that message.
        sequence: u64,
        /// The number of a commit before which nothing may be said: that message may be in it.
        commit: u64,
    },
    /// Nobody wants the message: it has used up a sequence.
    NotStored {
        /// The message's sequence.
        sequence: u64,
        /// The number of the commit before which nothing may be said.
        commit: u64,
    },
    /// The message waits for the rest of its batch: an empty acknowledgement says so.
    Held,
    /// The message is acknowledged with others, later or among the events.
    Unanswered,
    /// The message was refused.
    Refused(ApiError),
    /// The store takes nothing now: the publisher gets no answer, as if the server had stopped.
    Failed(StoreError),
}

impl From<ApiError> for Published {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Published {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Log(StageError::TooLong) => {
                Self::Refused(ApiError::stream_store_failed("message too large"))
            }
            error => Self::Failed(error),
        }
    }
}

/// Earlier messages that a message removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rollup {
    Subject,
    All,
}

/// A message that is being checked, and changed on the way.
#[derive(Debug)]
pub(super) struct MessageDraft<'a> {
    pub(super) subject: Cow<'a, [u8]>,
    pub(super) headers: Cow<'a, [u8]>,
    pub(super) payload: Cow<'a, [u8]>,
    pub(super) rollup: Option<Rollup>,
    /// The value of the counter with this message.
    pub(super) value: Option<String>,
    /// Whether the message comes from this server: of a schedule, or as a copy.
    pub(super) is_own: bool,
    /// Sequence and time of a message that has them already.
    pub(super) place: Option<(u64, u64)>,
}

/// The part that all acknowledgements of a stream have in common.
#[derive(Debug)]
pub(super) struct AckHead {
    /// Name of the server's domain, if it has one.
    pub(super) domain: Option<String>,
    /// The text up to the sequence.
    text: Vec<u8>,
}

impl AckHead {
    pub(super) fn new(stream: &str, domain: Option<String>) -> Self {
        let mut text = b"{\"stream\":".to_vec();
        write_json(&mut text, &stream);
        if let Some(domain) = &domain {
            text.extend_from_slice(b",\"domain\":");
            write_json(&mut text, domain);
        }
        text.extend_from_slice(b",\"seq\":");
        Self { domain, text }
    }
}

impl LiveStream {
    /// Takes a message that was published to one of the stream's subjects.
    pub fn publish(
        &mut self,
        store: &mut StreamStore,
        context: &PublishContext<'_>,
        incoming: &Incoming<'_>,
    ) -> Published {
        if ingest::is_fast(incoming.reply) {
            return ingest::publish_fast(self, store, context, incoming);
        }
        if !incoming.headers.is_empty()
            && let Some(id) = headers::value(incoming.headers, name::BATCH_ID)
        {
            return batch::publish_member(self, store, context, incoming, id);
        }
        self.publish_one(store, context, incoming)
    }

    /// Takes a message that stands for itself.
    pub(super) fn publish_one(
        &mut self,
        store: &mut StreamStore,
        context: &PublishContext<'_>,
        incoming: &Incoming<'_>,
    ) -> Published {
        let mut draft = self.draft(incoming);
        match self.check(store, context, &mut draft) {
            Ok(None) => {}
            Ok(Some(published)) => return published,
            Err(error) => {
                let last =
                    self.config().allow_msg_counter.then(|| self.newest(store, &draft.subject));
                if let Some(last) = last.flatten().filter(|last| self.is_cold(store, *last)) {
                    // The publisher, who tries again, finds the counter in memory.
                    store.load(self.id, last);
                }
                return error.into();
            }
        }
        self.store(store, context, draft).unwrap_or_else(|published| published)
    }

    pub(super) fn draft<'a>(&mut self, incoming: &Incoming<'a>) -> MessageDraft<'a> {
        let mut subject = Cow::Borrowed(incoming.subject);
        if let Some(transform) = &self.transform {
            let mut changed = Vec::new();
            if transform.apply(&subject, &mut self.rng, &mut changed) {
                subject = changed.into();
            }
        }
        let mut headers = headers::without_status(incoming.headers);
        if headers::find(&headers, name::REQUEST_INFO).is_some() {
            headers::remove(headers.to_mut(), name::REQUEST_INFO);
        }
        let payload = incoming.payload.into();
        let (rollup, value, is_own, place) = (None, None, false, None);
        MessageDraft { subject, headers, payload, rollup, value, is_own, place }
    }

    /// Checks a message. Returns the outcome if it is not to be stored.
    pub(super) fn check(
        &mut self,
        store: &StreamStore,
        context: &PublishContext<'_>,
        draft: &mut MessageDraft<'_>,
    ) -> Result<Option<Published>, ApiError> {
        if self.config().sealed {
            return Err(ApiError::STREAM_SEALED);
        }
        self.check_size(draft)?;
        if !draft.headers.is_empty() {
            self.check_headers(store, draft, None)?;
            if let Some(sequence) = duplicate_of(self, &draft.headers, context.now) {
                let commit = self.last_commit;
                return Ok(Some(Published::Duplicate { sequence, commit }));
            }
            check_last_id(self, &draft.headers)?;
            draft.rollup = match self.rollup_of(&draft.headers) {
                // What its origin has let in is stored.
                Err(_) if draft.is_own => None,
                rollup => rollup?,
            };
        }
        self.apply_increment(store, draft)?;
        if context.is_full {
            return Err(ApiError::INSUFFICIENT_RESOURCES);
        }
        Ok(None)
    }

    pub(super) fn check_size(&self, draft: &MessageDraft<'_>) -> Result<(), ApiError> {
        let bytes = draft.headers.len() + draft.payload.len();
        if usize::try_from(self.config().max_msg_size).is_ok_and(|limit| bytes > limit) {
            return Err(ApiError::STREAM_MESSAGE_EXCEEDS_MAXIMUM);
        }
        if draft.headers.len() > HEADERS_BYTES_MAX {
            return Err(ApiError::STREAM_HEADER_EXCEEDS_MAXIMUM);
        }
        Ok(())
    }

    /// Checks the headers of a message, in a batch behind those that are `ahead` of it.
    pub(super) fn check_headers(
        &self,
        store: &StreamStore,
        draft: &mut MessageDraft<'_>,
        ahead: Option<&Ahead>,
    ) -> Result<(), ApiError> {
        counter::increment_of(self, draft)?;
        if draft.is_own {
            return Ok(());
        }
        let block = &draft.headers;
        let stream = headers::value(block, name::EXPECTED_STREAM);
        if stream.is_some_and(|stream| stream != self.config().name.as_bytes()) {
            return Err(ApiError::STREAM_NOT_MATCH);
        }
        if !self.config().allow_msg_ttl && matches!(ttl_of(block), Ok(Some(_))) {
            return Err(ApiError::MESSAGE_TTL_DISABLED);
        }
        self.check_expectations(store, draft, ahead)?;
        schedule::check_schedule(self, store, draft)?;
        if headers::value(&draft.headers, name::STREAM_SOURCE).is_some() {
            return Err(ApiError::MESSAGE_SOURCE_HEADER_NOT_ALLOWED);
        }
        Ok(())
    }

    fn check_expectations(
        &self,
        store: &StreamStore,
        draft: &MessageDraft<'_>,
        ahead: Option<&Ahead>,
    ) -> Result<(), ApiError> {
        let block = &draft.headers;
        let subject = headers::value(block, name::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT);
        match headers::value(block, name::EXPECTED_LAST_SUBJECT_SEQUENCE) {
            Some(expected) => {
                let subject = subject.unwrap_or(&draft.subject);
                if ahead.is_some_and(|ahead| ahead.has_subject(subject)) {
                    return Err(ApiError::STREAM_WRONG_LAST_SEQUENCE_CONSTANT);
                }
                let last = self.newest(store, subject).unwrap_or(0);
                if headers::number(expected) != Some(last) {
                    return Err(ApiError::stream_wrong_last_sequence(last));
                }
            }
            None if subject.is_some() => {
                return Err(ApiError::STREAM_EXPECTED_LAST_SEQUENCE_PER_SUBJECT_INVALID);
            }
            None => {}
        }
        if let Some(expected) = headers::value(block, name::EXPECTED_LAST_SEQUENCE) {
            let before = ahead.map_or(0, |ahead| ahead.messages);
            let last = self.last_sequence(store) + before;
            if headers::number(expected) != Some(last) {
                return Err(ApiError::stream_wrong_last_sequence(last));
            }
            if before > 0 {
                return Err(ApiError::STREAM_WRONG_LAST_SEQUENCE_CONSTANT);
            }
        }
        Ok(())
    }

    /// Adds to the counter of the message's subject, if the stream has counters.
    pub(super) fn apply_increment(
        &self,
        store: &StreamStore,
        draft: &mut MessageDraft<'_>,
    ) -> Result<(), ApiError> {
        if !self.config().allow_msg_counter {
            return Ok(());
        }
        let increment =
            counter::increment_of(self, draft)?.ok_or(ApiError::MESSAGE_INCREMENT_MISSING)?;
        counter::add_increment(self, store, draft, increment)?;
        self.check_size(draft)
    }

    /// Checks the time to live, which markers may make longer.
    pub(super) fn check_ttl(&self, draft: &mut MessageDraft<'_>) -> Result<(), ApiError> {
        let ttl = ttl_of(&draft.headers).map_err(|InvalidTtl| ApiError::MESSAGE_TTL_INVALID)?;
        let config = self.config();
        let marker = u64::try_from(config.subject_delete_marker_ttl).unwrap_or(0) / time::SECOND;
        // A marker of the subject that is there already is to be seen for its time. Of one message
        // of a subject there is none besides it.
        if let Some(TimeToLive::Seconds(seconds)) = ttl
            && seconds < marker
            && config.max_msgs_per_subject != 1
        {
            headers::remove(draft.headers.to_mut(), name::TTL);
            headers::add(draft.headers.to_mut(), name::TTL, marker.to_string());
        }
        Ok(())
    }

    /// The last sequence that was given.
    pub(super) fn last_sequence(&self, store: &StreamStore) -> u64 {
        store.stream(self.id).map_or(0, |index| index.next_sequence() - 1)
    }

    /// The last message with a subject that the filter matches, staged or not.
    pub(super) fn newest(&self, store: &StreamStore, filter: &[u8]) -> Option<u64> {
        let index = store.stream(self.id)?;
        if crate::subject::is_literal(filter) {
            return index.newest_of(filter);
        }
        let all = index.subjects_from(0);
        let matching = all.filter(|(_, name, _)| crate::subject::matches(filter, name));
        matching.filter_map(|(_, name, _)| index.newest_of(name)).max()
    }

    pub(super) fn rollup_of(&self, block: &[u8]) -> Result<Option<Rollup>, ApiError> {
        let Some(rollup) = headers::value(block, name::ROLLUP) else { return Ok(None) };
        if !self.config().allow_rollup_hdrs || self.config().deny_purge {
            return Err(ApiError::stream_rollup_failed("rollup not permitted"));
        }
        let rollup = String::from_utf8_lossy(rollup).to_lowercase();
        match &*rollup {
            "sub" => Ok(Some(Rollup::Subject)),
            "all" => Ok(Some(Rollup::All)),
            _ => Err(ApiError::stream_rollup_failed(format_args!(
                "rollup value invalid: {rollup:?}"
            ))),
        }
    }

    /// Stores a message that was checked.
    pub(super) fn store(
        &mut self,
        store: &mut StreamStore,
        context: &PublishContext<'_>,
        mut draft: MessageDraft<'_>,
    ) -> Result<Published, Published> {
        if draft.value.is_none() {
            self.apply_increment(store, &mut draft)?;
        }
        let is_by_interest = self.config().retention == Retention::Interest;
        if is_by_interest && draft.place.is_none() && !(context.has_interest)(&draft.subject) {
            return self.skip(store, context, &draft);
        }
        let flags = flags_of(self, &mut draft)?;
        let message = NewMessage {
            time: draft.place.map_or(context.now.max(self.last_time), |(_, time)| time),
            flags,
            subject: &draft.subject,
            headers: &draft.headers,
            payload: &draft.payload,
        };
        let bytes = charge(self, &message);
        if bytes > context.bytes_left {
            return Err(ApiError::ACCOUNT_RESOURCES_EXCEEDED.into());
        }
        self.check_room(store, &draft, bytes)?;
        let before = self.republish.as_ref().and_then(|_| self.newest(store, &draft.subject));
        let appended = match draft.place {
            Some((sequence, _)) => store.append_at(self.id, sequence, &message)?,
            None => store.append(self.id, &message)?,
        };
        let (sequence, mut commit) = (appended.sequence, appended.commit);
        self.note(&draft, sequence, message.time);
        self.last_commit = commit;
        if (flags != 0 || !self.schedules.is_empty())
            && let Some(over) = self.note_flags(store, sequence, context.now)
        {
            commit = commit.max(self.remove_older(store, &over, sequence)?);
        }
        if self.config().max_msgs_per_subject > 0 {
            commit = commit.max(self.enforce_subject(store, &draft.subject)?);
        }
        commit = commit.max(self.enforce_totals(store)?);
        if let Some(rollup) = draft.rollup {
            commit = commit.max(self.roll_up(store, rollup, &draft.subject, sequence)?);
        }
        if self.republish.is_some() {
            self.publish_again(&message, sequence, before.unwrap_or(0), commit);
        }
        let value = draft.value;
        Ok(Published::Stored(StoredAt { sequence, commit, value, batch: None }))
    }

    /// Remembers what later messages are compared with.
    fn note(&mut self, draft: &MessageDraft<'_>, sequence: u64, time: u64) {
        self.last_time = time;
        self.last_id.clear();
        if draft.headers.is_empty() {
            return;
        }
        if let Some(id) = headers::value(&draft.headers, name::MSG_ID) {
            self.last_id.extend_from_slice(id);
            if self.config().mirror.is_none() && self.window() > 0 {
                self.dedupe.insert(id, sequence, time);
            }
        }
    }

    /// Refuses a message that is over a limit, if old ones do not give way.
    fn check_room(
        &self,
        store: &StreamStore,
        draft: &MessageDraft<'_>,
        bytes: u64,
    ) -> Result<(), ApiError> {
        let config = self.config();
        if config.discard != Discard::New {
            return Ok(());
        }
        let Some(index) = store.stream(self.id) else { return Ok(()) };
        let mut gives_way = None;
        if let Ok(limit) = u64::try_from(config.max_msgs_per_subject)
            && let Some(state) = index.subject(&draft.subject)
            && state.messages >= limit
        {
            if config.discard_new_per_subject && draft.rollup.is_none() {
                let why = "maximum messages per subject exceeded";
                return Err(ApiError::stream_store_failed(why));
            }
            gives_way = Some(state.first);
        }
        let totals = index.totals();
        if let Ok(limit) = u64::try_from(config.max_msgs)
            && totals.messages >= limit
            && gives_way.is_none()
        {
            return Err(ApiError::stream_store_failed("maximum messages exceeded"));
        }
        if let Ok(limit) = u64::try_from(config.max_bytes)
            && totals.bytes + bytes > limit
        {
            let freed = gives_way.and_then(|sequence| index.charged_bytes_of(sequence));
            if freed.is_none_or(|freed| freed < bytes) {
                return Err(ApiError::stream_store_failed("maximum bytes exceeded"));
            }
        }
        Ok(())
    }

    /// Removes what a message replaces.
    fn roll_up(
        &mut self,
        store: &mut StreamStore,
        rollup: Rollup,
        subject: &[u8],
        sequence: u64,
    ) -> Result<u64, StoreError> {
        match rollup {
            Rollup::All => Ok(self.remove_before(store, sequence)?.commit),
            Rollup::Subject => self.remove_older(store, subject, sequence),
        }
    }

    /// Removes the messages of a subject before a sequence.
    pub(super) fn remove_older(
        &mut self,
        store: &mut StreamStore,
        subject: &[u8],
        sequence: u64,
    ) -> Result<u64, StoreError> {
        let (mut commit, mut first, mut count) = (0, None, 0);
        while let Some(state) = store.stream(self.id).and_then(|index| index.subject(subject))
            && state.first < sequence
        {
            first.get_or_insert(state.first);
            count += 1;
            commit = commit.max(store.replace(self.id, &[state.first])?.commit);
        }
        if let Some(first) = first {
            self.events.extend(StreamEvent::of_purge(count, first..=sequence - 1, subject));
        }
        Ok(commit)
    }

    /// Uses up a sequence for a message that nobody wants.
    fn skip(
        &mut self,
        store: &mut StreamStore,
        context: &PublishContext<'_>,
        draft: &MessageDraft<'_>,
    ) -> Result<Published, Published> {
        let is_empty = store.stream(self.id).is_some_and(|index| index.first().is_none());
        let sequence = self.last_sequence(store) + 1;
        let commit = if is_empty {
            store.purge(self.id, sequence + 1)?.commit
        } else {
            let time = context.now.max(self.last_time);
            let nothing = NewMessage { time, flags: 0, subject: b"", headers: b"", payload: b"" };
            store.append(self.id, &nothing)?;
            store.remove(self.id, &[sequence])?.commit
        };
        self.note(draft, sequence, context.now.max(self.last_time));
        if let Some(Rollup::Subject) = draft.rollup {
            store.purge_subjects(self.id, &[&draft.subject], sequence, 0)?;
        }
        Ok(Published::NotStored { sequence, commit })
    }

    fn publish_again(&mut self, message: &NewMessage<'_>, sequence: u64, before: u64, commit: u64) {
        let Some(transform) = &self.republish else { return };
        let mut subject = Vec::new();
        let is_wanted = transform.apply(message.subject, &mut self.rng, &mut subject);
        if !is_wanted || !crate::subject::is_valid_publish(&subject) {
            return;
        }
        let is_bare = self.kept.config.republish.as_ref().is_some_and(|it| it.headers_only);
        let mut block = message.headers.to_vec();
        headers::add(&mut block, name::STREAM, &self.kept.config.name);
        headers::add(&mut block, name::SUBJECT, message.subject);
        headers::add(&mut block, name::SEQUENCE, sequence.to_string());
        headers::add(&mut block, name::TIME_STAMP, time::rfc3339_or_none(message.time));
        headers::add(&mut block, name::LAST_SEQUENCE, before.to_string());
        if is_bare {
            headers::add(&mut block, name::MSG_SIZE, message.payload.len().to_string());
        }
        let payload = if is_bare { Vec::new() } else { message.payload.to_vec() };
        self.fast.tell(StreamEvent::Publish { subject, headers: block, payload, commit });
    }

    /// Appends the acknowledgement of a publish to `text`: nothing for one that waits for its
    /// batch. Returns the commit that it has to wait for, 0 if none; `None` if there is no
    /// acknowledgement at all.
    pub fn pub_ack(&self, published: &Published, text: &mut Vec<u8>) -> Option<u64> {
        if self.config().no_ack {
            return None;
        }
        match published {
            Published::Stored(stored) => {
                self.ack_sequence(stored.sequence, text);
                if let Some(value) = &stored.value {
                    text.extend_from_slice(b",\"val\":");
                    write_json(text, value);
                }
                if let Some((batch, count)) = &stored.batch {
                    text.extend_from_slice(b",\"batch\":");
                    write_json(text, batch);
                    text.extend_from_slice(format!(",\"count\":{count}").as_bytes());
                }
                text.push(b'}');
                Some(stored.commit)
            }
            Published::Duplicate { sequence, commit } => {
                self.ack_sequence(*sequence, text);
                text.extend_from_slice(b",\"duplicate\": true}");
                Some(*commit)
            }
            Published::NotStored { sequence, commit } => {
                self.ack_sequence(*sequence, text);
                text.push(b'}');
                Some(*commit)
            }
            Published::Held => Some(0),
            Published::Unanswered => None,
            Published::Refused(error) => {
                text.extend_from_slice(b"{\"error\":");
                write_json(text, error);
                text.extend_from_slice(b",\"stream\":");
                write_json(text, &self.config().name);
                text.extend_from_slice(b",\"seq\":0}");
                Some(0)
            }
            Published::Failed(_) => None,
        }
    }

    fn ack_sequence(&self, sequence: u64, text: &mut Vec<u8>) {
        text.extend_from_slice(&self.acks.text);
        text.extend_from_slice(itoa::Buffer::new().format(sequence).as_bytes());
    }
}

/// Returns the marks of a message, and checks the time to live that they are about.
fn flags_of(live: &LiveStream, draft: &mut MessageDraft<'_>) -> Result<u8, ApiError> {
    if draft.headers.is_empty() {
        return Ok(0);
    }
    // A copy of a stream whose messages expire has its own limits.
    if !draft.is_own {
        live.check_ttl(draft)?;
    }
    let has = |name| headers::value(&draft.headers, name).is_some();
    let mut flags = 0;
    for (flag, name) in [
        (FLAG_TTL, name::TTL),
        (FLAG_SCHEDULE, name::SCHEDULE),
        (FLAG_SCHEDULED, name::SCHEDULE_NEXT),
    ] {
        flags |= if has(name) { flag } else { 0 };
    }
    if !live.config().allow_msg_ttl {
        flags &= !FLAG_TTL;
    }
    if !live.config().allow_msg_schedules {
        flags &= !(FLAG_SCHEDULE | FLAG_SCHEDULED);
    }
    Ok(flags)
}

fn check_last_id(live: &LiveStream, block: &[u8]) -> Result<(), ApiError> {
    let expected = headers::value(block, name::EXPECTED_LAST_MSG_ID);
    if expected.is_some_and(|expected| expected != live.last_id) {
        let last = String::from_utf8_lossy(&live.last_id);
        return Err(ApiError::stream_wrong_last_message_id(last));
    }
    Ok(())
}

fn duplicate_of(live: &mut LiveStream, block: &[u8], now: u64) -> Option<u64> {
    let id = headers::value(block, name::MSG_ID)?;
    let oldest = now.saturating_sub(live.window());
    live.dedupe.find(id, oldest)
}

/// Bytes that limits count for a message.
pub(super) fn charge_of(live: &LiveStream, draft: &MessageDraft<'_>) -> u64 {
    let MessageDraft { subject, headers, payload, .. } = draft;
    charge(live, &NewMessage { time: 0, flags: 0, subject, headers, payload })
}

fn charge(live: &LiveStream, message: &NewMessage<'_>) -> u64 {
    let NewMessage { time, flags, subject, headers, payload } = *message;
    let message = StoredMessage { sequence: 0, time, flags, subject, headers, payload };
    match live.config().storage {
        StorageKind::File => message.charged_bytes(),
        StorageKind::Memory => message.charged_bytes_in_memory(),
    }
}
