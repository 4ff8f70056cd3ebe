//! A stream as it runs: its configuration, and what is known of it beside its messages.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::batch::Batches;
use super::check::StreamLimits;
use super::config::{KeptStream, Retention, StorageKind, StreamConfig};
use super::copy::CopyState;
use super::dedupe::Dedupe;
use super::expiry::{Expiry, FLAG_TTL};
use super::headers;
use super::ingest::FastBatches;
use super::publish::{AckHead, PublishContext};
use super::schedule::Schedules;
use super::{batch, copy, expiry, schedule};
use crate::store::{
    LogRecord, SEQUENCE_MAX, StoreError, StoredMessage, StreamHome, StreamId, StreamStore,
};
use crate::subject::Transform;

/// Messages that one call removes at most because of their age; the next call goes on.
pub(super) const REMOVED_AT_ONCE: usize = 4096;
/// Messages that one call looks at for what is known of them beside.
const FOUND_AT_ONCE: u64 = 4096;

/// Facts that a stream is told when it begins to run.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The time, in nanoseconds since 1970.
    pub now: u64,
    /// A number that cannot be guessed: it keys hashes of ids.
    pub seed: u64,
    /// Limits of the server.
    pub limits: StreamLimits,
    /// Name of the server's domain, if it has one.
    pub domain: Option<String>,
}

/// Messages that a purge or a rollup has removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// Sequences among which all of them are. If they have any subject, none is left that is not
    /// behind these.
    pub range: RangeInclusive<u64>,
    /// Filter of their subjects; empty for all.
    pub filter: Box<[u8]>,
}

/// News of a stream for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Messages in this range were removed, each for itself; others in it may be there still.
    Removed(RangeInclusive<u64>),
    /// Messages were removed by a purge or a rollup.
    Purged(Purge),
    /// The stream stored a message by itself: a marker, or one that was scheduled.
    Stored {
        /// The message's sequence.
        sequence: u64,
        /// The number of the commit.
        commit: u64,
    },
    /// A message is to be published once the commit is on the disk.
    Publish {
        /// The subject of the message.
        subject: Vec<u8>,
        /// Headers with the line that they begin with.
        headers: Vec<u8>,
        /// Payload without the headers.
        payload: Vec<u8>,
        /// The number of the commit.
        commit: u64,
    },
    /// An atomic batch was given up: an advisory says so.
    BatchAbandoned {
        /// Name of the batch.
        batch: String,
        /// The reason as the advisory has it.
        reason: &'static str,
    },
}

impl StreamEvent {
    /// The events of a purge by subjects that has removed so many messages. One message alone is
    /// also told of for itself, as nats-server does.
    pub(super) fn of_purge(
        messages: u64,
        range: RangeInclusive<u64>,
        filter: &[u8],
    ) -> impl Iterator<Item = Self> {
        let alone = (messages == 1).then(|| Self::Removed(range.clone()));
        alone.into_iter().chain([Self::Purged(Purge { range, filter: filter.into() })])
    }
}

/// A stream as it runs.
#[derive(Debug)]
pub struct LiveStream {
    pub(super) id: StreamId,
    pub(super) kept: KeptStream,
    pub(super) limits: StreamLimits,
    pub(super) acks: AckHead,
    pub(super) transform: Option<Transform>,
    pub(super) republish: Option<Transform>,
    pub(super) rng: fastrand::Rng,
    /// Time of the last message, in nanoseconds since 1970; 0 if it is unknown.
    pub(super) last_time: u64,
    /// The id of the last message; empty if it had none.
    pub(super) last_id: Vec<u8>,
    /// The commit of the last message.
    pub(super) last_commit: u64,
    pub(super) dedupe: Dedupe,
    pub(super) expiry: Expiry,
    pub(super) schedules: Schedules,
    pub(super) batches: Batches,
    pub(super) fast: FastBatches,
    /// Messages from this one on, up to an end, have marks that were not looked at.
    pub(super) marks_from: u64,
    pub(super) marks_end: u64,
    /// Messages up to this one may say how far copies are; 0 if that is known.
    pub(super) copies_from: u64,
    /// The mirror, or the sources.
    pub(super) copies: Vec<CopyState>,
    pub(super) events: VecDeque<StreamEvent>,
}

impl LiveStream {
    /// Makes a stream. Returns it with the number of the commit.
    ///
    /// # Errors
    ///
    /// Returns the error of the store, which then has no such stream.
    pub fn create(
        id: StreamId,
        kept: KeptStream,
        store: &mut StreamStore,
        opening: &Opening,
    ) -> Result<(Self, u64), StoreError> {
        let mut commit = store.configure(id, home_of(&kept.config), &kept.to_bytes())?;
        if kept.config.first_seq > 1 {
            commit = commit.max(store.purge(id, kept.config.first_seq)?.commit);
        }
        Ok((Self::open(id, kept, store, opening), commit))
    }

    /// A stream that the store has, as after a restart.
    pub fn open(id: StreamId, kept: KeptStream, store: &StreamStore, opening: &Opening) -> Self {
        let acks = AckHead::new(&kept.config.name, opening.domain.clone());
        let mut stream = Self {
            id,
            kept,
            limits: opening.limits.clone(),
            acks,
            transform: None,
            republish: None,
            rng: fastrand::Rng::with_seed(opening.seed),
            last_time: 0,
            last_id: Vec::new(),
            last_commit: store.wal().last_batch().unwrap_or(0),
            dedupe: Dedupe::new(opening.seed),
            expiry: Expiry::default(),
            schedules: Schedules::default(),
            batches: Batches::default(),
            fast: FastBatches::default(),
            marks_from: 0,
            marks_end: 0,
            copies_from: 0,
            copies: Vec::new(),
            events: VecDeque::new(),
        };
        stream.compile();
        stream.find_again(store, opening.now);
        copy::find_copies(&mut stream, store);
        stream
    }

    fn compile(&mut self) {
        let config = &self.kept.config;
        let transform = config.subject_transform.as_ref().and_then(|it| it.compile());
        self.transform = transform.and_then(Result::ok);
        let republish = config.republish.as_ref();
        let republish = republish.map(|it| Transform::new(it.src.as_bytes(), it.dest.as_bytes()));
        self.republish = republish.and_then(Result::ok);
    }

    /// Learns from the stored messages what is kept beside them.
    fn find_again(&mut self, store: &StreamStore, now: u64) {
        let Some(index) = store.stream(self.id) else { return };
        let last = index.next_sequence() - 1;
        let window = self.config().duplicate_window.unsigned_abs();
        let mut is_last = true;
        for sequence in (index.first().unwrap_or(last + 1)..=last).rev() {
            let Some(message) = self.message(store, sequence) else { continue };
            let id = headers::value(message.headers, headers::name::MSG_ID);
            if is_last {
                self.last_time = message.time;
                self.last_id = id.filter(|_| sequence == last).unwrap_or_default().to_vec();
                is_last = false;
            }
            if message.time.saturating_add(window) <= now || window == 0 {
                break;
            }
            if let Some(id) = id {
                self.dedupe.insert_before(id, sequence, message.time);
            }
        }
        if self.config().allow_msg_ttl || self.config().allow_msg_schedules {
            let first = store.stream(self.id).and_then(crate::store::Stream::first);
            (self.marks_from, self.marks_end) = (first.unwrap_or(last + 1), last + 1);
            while self.marks_from < self.marks_end && !self.is_cold(store, self.marks_from) {
                self.note_flags(store, self.marks_from, now);
                self.marks_from += 1;
            }
        }
    }

    /// Notes what the marks of a message say that is stored. Returns the subject of a schedule
    /// that is over with it.
    pub(super) fn note_flags(
        &mut self,
        store: &StreamStore,
        sequence: u64,
        now: u64,
    ) -> Option<Vec<u8>> {
        let message = self.message(store, sequence)?;
        if message.flags & FLAG_TTL != 0 {
            self.expiry.add(store.stream(self.id), &message);
        }
        if message.flags == 0 && self.schedules.is_empty() {
            return None;
        }
        schedule::note_schedule(self, &message, now)
    }

    /// Number of the stream in its store.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The configuration.
    pub fn config(&self) -> &StreamConfig {
        &self.kept.config
    }

    /// The stream as its log keeps it.
    pub fn kept(&self) -> &KeptStream {
        &self.kept
    }

    /// Takes the next event. The owner drains them after each call that changes the stream.
    pub fn next_event(&mut self) -> Option<StreamEvent> {
        self.next_told().or_else(|| self.events.pop_front())
    }

    /// Takes the next event that comes before the acknowledgement of the message just published.
    pub fn next_told(&mut self) -> Option<StreamEvent> {
        self.fast.next_told()
    }

    /// Changes the configuration, which has been checked, and removes what is over lower limits.
    /// Returns the number of the commit.
    ///
    /// # Errors
    ///
    /// Returns the error of the store; then nothing is changed.
    pub fn update(
        &mut self,
        store: &mut StreamStore,
        now: u64,
        config: StreamConfig,
    ) -> Result<u64, StoreError> {
        let kept = KeptStream { config, ..self.kept.clone() };
        let mut commit = store.configure(self.id, home_of(&kept.config), &kept.to_bytes())?;
        let has_same_origins = self.config().mirror == kept.config.mirror
            && self.config().sources == kept.config.sources;
        self.kept = kept;
        self.compile();
        if !has_same_origins {
            copy::find_copies(self, store);
        }
        commit = commit.max(self.enforce_limits(store)?);
        self.dedupe.forget_before(now.saturating_sub(self.window()));
        Ok(commit)
    }

    pub(super) fn window(&self) -> u64 {
        self.config().duplicate_window.unsigned_abs()
    }

    /// The message with this sequence, staged or not.
    pub(super) fn message<'a>(
        &self,
        store: &'a StreamStore,
        sequence: u64,
    ) -> Option<StoredMessage<'a>> {
        match store.peek(self.id, sequence)?.decoded.record {
            LogRecord::Message(message) => Some(message),
            _ => None,
        }
    }

    /// Whether a message is there, but not in memory.
    pub(super) fn is_cold(&self, store: &StreamStore, sequence: u64) -> bool {
        store.stream(self.id).is_some_and(|index| index.has(sequence))
            && self.message(store, sequence).is_none()
    }

    /// Removes what is over any limit.
    pub(super) fn enforce_limits(&mut self, store: &mut StreamStore) -> Result<u64, StoreError> {
        let mut commit = self.enforce_totals(store)?;
        let limit = u64::try_from(self.config().max_msgs_per_subject).unwrap_or(0);
        if limit == 0 {
            return Ok(commit);
        }
        let Some(index) = store.stream(self.id) else { return Ok(commit) };
        let subjects = index.subjects_from(0).filter(|(_, _, count)| *count > limit);
        let over: Vec<Vec<u8>> = subjects.map(|(_, name, _)| name.to_vec()).collect();
        for subject in over {
            commit = commit.max(self.enforce_subject(store, &subject)?);
        }
        Ok(commit)
    }

    /// Removes the first messages of a subject that has more than it may.
    pub(super) fn enforce_subject(
        &mut self,
        store: &mut StreamStore,
        subject: &[u8],
    ) -> Result<u64, StoreError> {
        let limit = u64::try_from(self.config().max_msgs_per_subject).unwrap_or(u64::MAX);
        let mut commit = 0;
        loop {
            let state = store.stream(self.id).and_then(|index| index.subject(subject));
            match state {
                Some(state) if state.messages > limit => {
                    commit = commit.max(self.give_way(store, state.first)?);
                }
                _ => return Ok(commit),
            }
        }
    }

    /// Removes the first messages while there are too many, or too many bytes.
    pub(super) fn enforce_totals(&mut self, store: &mut StreamStore) -> Result<u64, StoreError> {
        let messages_max = u64::try_from(self.config().max_msgs).unwrap_or(u64::MAX);
        let bytes_max = u64::try_from(self.config().max_bytes).unwrap_or(u64::MAX);
        let mut commit = 0;
        loop {
            let Some(index) = store.stream(self.id) else { return Ok(commit) };
            let totals = index.totals();
            let is_over = totals.messages > messages_max || totals.bytes > bytes_max;
            let Some(first) = index.first().filter(|_| is_over) else { return Ok(commit) };
            commit = commit.max(self.give_way(store, first)?);
        }
    }

    /// Removes messages, and says so. Returns the number of the commit.
    pub(super) fn remove(
        &mut self,
        store: &mut StreamStore,
        sequences: &[u64],
    ) -> Result<u64, StoreError> {
        let removed = store.remove(self.id, sequences)?;
        let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
        for sequence in sequences.iter().copied() {
            match ranges.last_mut() {
                Some(range) if *range.end() + 1 == sequence => *range = *range.start()..=sequence,
                _ => ranges.push(sequence..=sequence),
            }
        }
        self.events.extend(ranges.into_iter().map(StreamEvent::Removed));
        Ok(removed.commit)
    }

    /// Removes a message that makes room for a newer one, and says so. Returns the number of the
    /// commit.
    pub(super) fn give_way(
        &mut self,
        store: &mut StreamStore,
        sequence: u64,
    ) -> Result<u64, StoreError> {
        let removed = store.replace(self.id, &[sequence])?;
        self.events.push_back(StreamEvent::Removed(sequence..=sequence));
        Ok(removed.commit)
    }

    /// Removes all messages before a sequence, and says so.
    pub(super) fn remove_before(
        &mut self,
        store: &mut StreamStore,
        before: u64,
    ) -> Result<crate::store::Removed, StoreError> {
        let before = before.min(SEQUENCE_MAX);
        let first = store.stream(self.id).and_then(|index| index.first());
        let removed = store.purge(self.id, before)?;
        if let Some(first) = first.filter(|first| *first < before) {
            let purge = Purge { range: first..=before - 1, filter: Box::default() };
            self.events.push_back(StreamEvent::Purged(purge));
        }
        Ok(removed)
    }

    /// Time at which something is to be done by [`Self::tick`], in nanoseconds since 1970; `None`
    /// if nothing waits for a time.
    pub fn next_deadline(&self, store: &StreamStore) -> Option<u64> {
        if is_finding(self) {
            return Some(0);
        }
        let batches = [self.batches.next_deadline(), self.fast.next_deadline()];
        let own = [expiry::next_expiry(self, store), self.schedules.next_deadline()];
        batches.into_iter().chain(own).flatten().min()
    }

    /// Does what is due, as if the account had room for all that schedules store and consumers
    /// wanted it; see [`Self::tick_in`].
    pub fn tick(&mut self, store: &mut StreamStore, now: u64) {
        let has_interest = &|_: &[u8]| true;
        let (is_full, bytes_left) = (false, u64::MAX);
        self.tick_in(store, &PublishContext { now, is_full, bytes_left, has_interest });
    }

    /// Does what is due: removes messages that are too old, stores those that are scheduled, gives
    /// up batches. What the store refuses is done by a later call.
    pub fn tick_in(&mut self, store: &mut StreamStore, context: &PublishContext<'_>) {
        let now = context.now;
        self.dedupe.forget_before(now.saturating_sub(self.window()));
        if is_finding(self) {
            go_on_finding(self, store, now);
        }
        expiry::expire(self, store, now);
        batch::give_up_batches(self, now);
        self.fast.give_up(now);
        schedule::run_schedules(self, store, context);
    }

    /// Whether messages leave the stream when consumers have acknowledged them.
    pub fn is_for_consumers(&self) -> bool {
        self.config().retention != Retention::Limits
    }

    /// Removes messages that consumers do not need any more, in ascending order. Returns the number
    /// of the commit.
    ///
    /// # Errors
    ///
    /// Returns the error of the store.
    pub fn acknowledged(
        &mut self,
        store: &mut StreamStore,
        sequences: &[u64],
    ) -> Result<u64, StoreError> {
        Ok(store.remove(self.id, sequences)?.commit)
    }
}

/// The number of the commit of a stream's last message.
pub fn last_commit(live: &LiveStream) -> u64 {
    live.last_commit
}

/// Looks at stored messages for what is known of them beside, until one is not in memory: that
/// one is asked for.
fn go_on_finding(live: &mut LiveStream, store: &mut StreamStore, now: u64) {
    let end = live.marks_from.saturating_add(FOUND_AT_ONCE).min(live.marks_end);
    while live.marks_from < end {
        if live.is_cold(store, live.marks_from) {
            return store.load(live.id, live.marks_from);
        }
        live.note_flags(store, live.marks_from, now);
        live.marks_from += 1;
    }
    if let Some(cold) = copy::go_on_finding(live, store) {
        store.load(live.id, cold);
    }
}

/// Whether some stored messages have not been looked at.
fn is_finding(live: &LiveStream) -> bool {
    live.marks_from < live.marks_end || live.copies_from > 0
}

/// The home of a stream's messages in its store.
pub(super) fn home_of(config: &StreamConfig) -> StreamHome {
    match config.storage {
        StorageKind::File => StreamHome::Log,
        StorageKind::Memory => StreamHome::Memory,
    }
}
