//! All consumers of one stream: which of them are looked at, and when.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use super::acks::AckMessage;
use super::advisory::{Advisory, ConsumerEvent};
use super::config::{ConsumerConfig, ConsumerRules, PurgeReach};
use super::live::{LiveConsumer, Rest, Turn};
use super::output::{ConsumerOutput, Outbound};
use super::pulls::PullMessage;
use super::retention::Sweep;
use super::schedule::WakeSchedule;
use super::source::{ConsumerSource, Moment};
use crate::store::NextMessage;
use crate::stream::{ConsumerLimits, Purge, Retention, StorageKind, StreamConfig};

/// Steps of all consumers in one call: messages that are looked at.
const STEPS_MAX: usize = 512;
/// Steps of one consumer before the next one has its turn.
const STEPS_AT_ONCE: usize = 64;
/// Consumers that are looked at in one call.
const LOOKS_MAX: usize = 1024;

/// Outputs that wait to be carried out before nothing more is delivered.
const OUTPUTS_MAX: usize = 4096;
/// Time after which an output that was put back is to be tried again, in nanoseconds.
const TRY_AGAIN: u64 = 10_000_000;

/// Facts about the stream that its consumers need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamAbout {
    /// Name of the stream.
    pub name: String,
    /// Reason for which messages leave the stream.
    pub retention: Retention,
    /// Whether a restart loses the stream.
    pub is_memory: bool,
    /// Longest message of the stream, in bytes.
    pub message_bytes_max: u64,
}

impl StreamAbout {
    /// The facts of a configuration; `payload_bytes_max` is the longest message of any stream.
    pub fn of(config: &StreamConfig, payload_bytes_max: usize) -> Self {
        let own = u64::try_from(config.max_msg_size).ok().filter(|max| *max > 0);
        Self {
            name: config.name.clone(),
            retention: config.retention,
            is_memory: config.storage == StorageKind::Memory,
            message_bytes_max: own.unwrap_or(payload_bytes_max as u64),
        }
    }
}

/// Consumers by the subjects that they push to.
#[derive(Debug, Default)]
pub(super) struct PushListeners {
    all: BTreeMap<Bytes, Vec<usize>>,
}

impl PushListeners {
    /// Whether there are none.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the consumers that push to a subject.
    fn of(&self, subject: &[u8]) -> Vec<usize> {
        self.all.get(subject).cloned().unwrap_or_default()
    }

    pub(super) fn add(&mut self, subject: Bytes, at: usize) {
        self.all.entry(subject).or_default().push(at);
    }

    pub(super) fn remove(&mut self, subject: &Bytes, at: usize) {
        if let Some(all) = self.all.get_mut(subject) {
            all.retain(|other| *other != at);
            if all.is_empty() {
                self.all.remove(subject);
            }
        }
    }
}

/// The consumers of one stream.
#[derive(Debug)]
pub struct Consumers {
    pub(super) about: StreamAbout,
    pub(super) rules: ConsumerRules,
    pub(super) rng: fastrand::Rng,
    pub(super) slots: Slab<LiveConsumer>,
    pub(super) names: BTreeMap<Arc<str>, usize>,
    /// Consumers by the subjects that they push to.
    pub(super) listeners: PushListeners,
    schedule: WakeSchedule,
    /// Consumers whose changes are to be kept.
    pub(super) changed: Vec<usize>,
    pub(super) out: Outbound,
    /// Messages that leave the stream when the next record is kept.
    pub(super) removable: Vec<u64>,
    pub(super) sweep: Option<Sweep>,
    pub(super) last_number: u32,
    /// Consumers by their numbers in records, until the records have been taken.
    pub(super) numbers: BTreeMap<u32, usize>,
}

impl Consumers {
    /// No consumers yet. `seed` makes names and ids: a number that cannot be guessed.
    pub fn new(about: StreamAbout, rules: ConsumerRules, seed: u64) -> Self {
        Self {
            about,
            rules,
            rng: fastrand::Rng::with_seed(seed),
            slots: Slab::new(),
            names: BTreeMap::new(),
            listeners: PushListeners::default(),
            schedule: WakeSchedule::default(),
            changed: Vec::new(),
            out: Outbound::default(),
            removable: Vec::new(),
            sweep: None,
            last_number: 0,
            numbers: BTreeMap::new(),
        }
    }

    /// Number of consumers.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no consumer.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether there is a consumer with this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Names of all consumers, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// Whether a consumer sends messages only on request.
    pub fn is_pull(&self, name: &str) -> bool {
        self.find(name).is_some_and(|at| self.slots[at].push.is_none())
    }

    /// Whether acknowledgements of a consumer are listened for.
    pub fn takes_acks(&self, name: &str) -> bool {
        self.find(name).is_some_and(|at| self.slots[at].takes_acks())
    }

    /// Whether a message with this subject would be for some consumer: a stream that keeps messages
    /// for its consumers stores no others.
    pub fn wants(&self, subject: &[u8]) -> bool {
        self.slots.iter().any(|(_, consumer)| consumer.config.matches(subject))
    }

    /// Names of the consumers that are beyond limits of their stream.
    pub fn beyond(&self, limits: ConsumerLimits) -> Vec<String> {
        let is_over = |limit: i64, value: i64| limit > 0 && value > limit;
        let is_beyond = |config: &ConsumerConfig| {
            is_over(limits.inactive_threshold, config.inactive_threshold)
                || is_over(limits.max_ack_pending, config.max_ack_pending)
        };
        let all = self.names.iter().filter(|(_, at)| is_beyond(&self.slots[**at].config));
        all.map(|(name, _)| name.to_string()).collect()
    }

    /// Takes a new configuration of the stream.
    pub fn on_stream_updated(&mut self, about: StreamAbout) {
        self.about = about;
        if self.about.retention == Retention::Interest {
            self.sweep_from(0);
        }
    }

    /// Takes new limits.
    pub fn set_rules(&mut self, rules: ConsumerRules) {
        self.rules = rules;
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Does something with a consumer, and sees to what follows.
    pub(super) fn with<T>(
        &mut self,
        at: usize,
        moment: Moment,
        source: &mut dyn ConsumerSource,
        act: impl FnOnce(&mut LiveConsumer, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let consumer = self.slots.get_mut(at)?;
        let mut turn =
            Turn { moment, source, out: &mut self.out, about: &self.about, rng: &mut self.rng };
        let done = act(consumer, &mut turn);
        self.note_changes(at);
        self.settle_acknowledged(at, source);
        Some(done)
    }

    /// Notes that a consumer is to be kept, if something has changed.
    pub(super) fn note_changes(&mut self, at: usize) {
        let Some(consumer) = self.slots.get_mut(at) else { return };
        if consumer.acks.changes.is_changed && !consumer.is_listed {
            if consumer.is_kept(&self.about) {
                consumer.is_listed = true;
                self.changed.push(at);
            } else {
                consumer.acks.changes = <_>::default();
            }
        }
    }

    /// Lets a consumer be looked at by the next [`Self::poll`].
    pub(super) fn wake(&mut self, at: usize) {
        self.schedule.wake(&mut self.slots, at);
    }

    /// Takes a request for messages. Returns false if there is no such consumer.
    pub fn on_pull(
        &mut self,
        name: &str,
        pull: &PullMessage<'_>,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> bool {
        let Some(at) = self.find(name) else { return false };
        self.with(at, moment, source, |consumer, turn| consumer.pull(pull, turn));
        self.wake(at);
        true
    }

    /// Takes an acknowledgement. Returns false if nobody listens for it.
    pub fn on_ack(
        &mut self,
        ack: &AckMessage<'_>,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) -> bool {
        let name = std::str::from_utf8(ack.about.consumer).ok();
        let Some(at) = name.and_then(|name| self.find(name)) else { return false };
        if !self.slots[at].takes_acks() {
            return false;
        }
        self.with(at, moment, source, |consumer, turn| consumer.ack(ack, turn));
        self.wake(at);
        true
    }

    /// Takes an answer to a request of flow control, with its subject and headers.
    pub fn on_flow_reply(
        &mut self,
        subject: &[u8],
        headers: &[u8],
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) {
        let name = crate::subject::tokens(subject).nth(3);
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let Some(at) = name.and_then(|name| self.find(name)) else { return };
        self.with(at, moment, source, |consumer, turn| {
            consumer.flow_reply(subject, headers, turn);
        });
        self.wake(at);
    }

    /// Hears that interest in a subject that consumers push to may have come or gone.
    pub fn on_interest_changed(
        &mut self,
        subject: &[u8],
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) {
        for at in self.listeners.of(subject) {
            self.with(at, moment, source, |consumer, turn| consumer.look_for_interest(turn));
            self.wake(at);
        }
    }

    /// Hears that messages were committed, which may be delivered now.
    pub fn on_stored(&mut self) {
        self.schedule.note_news();
    }

    /// Hears that messages have come from the disk.
    pub fn on_loaded(&mut self) {
        self.schedule.warm(&mut self.slots);
    }

    /// Hears that messages were removed from the stream, but for those that consumers let go.
    pub fn on_removed(
        &mut self,
        range: RangeInclusive<u64>,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) {
        let (first, last) = range.into_inner();
        let mut concerned = Vec::new();
        for (at, consumer) in &mut self.slots {
            consumer.place.remove(first, last);
            if consumer.acks.pending_count() + consumer.acks.redelivered_count() > 0 {
                concerned.push(at);
            }
        }
        for at in concerned {
            let changed = self.with(at, moment, source, |consumer, turn| {
                consumer.forget_removed(first, last, turn)
            });
            if changed == Some(true) {
                self.wake(at);
            }
        }
    }

    /// Does what is due, and delivers. Returns whether there is more to do at once.
    pub fn poll(&mut self, moment: Moment, source: &mut dyn ConsumerSource) -> bool {
        if self.out.queue.len() >= OUTPUTS_MAX {
            return false;
        }
        self.schedule.wake_due(&mut self.slots, moment.mono, LOOKS_MAX);
        self.schedule.tell_news(&mut self.slots, source);
        let mut steps = STEPS_MAX;
        for _ in 0..LOOKS_MAX {
            if steps == 0 {
                break;
            }
            let Some(at) = self.schedule.pop() else { break };
            let mut own = steps.min(STEPS_AT_ONCE);
            steps -= own;
            self.look(at, &mut own, moment, source);
            steps += own;
        }
        self.advance_sweep(source);
        self.keep_if_due(moment);
        self.schedule.is_ready() || self.sweep.is_some()
    }

    fn look(
        &mut self,
        at: usize,
        steps: &mut usize,
        moment: Moment,
        source: &mut dyn ConsumerSource,
    ) {
        let Some(consumer) = self.slots.get_mut(at) else { return };
        consumer.is_ready = false;
        let rest = self.with(at, moment, source, |consumer, turn| consumer.look(steps, turn));
        match rest {
            Some(Rest::Over) => return self.finish(at, moment),
            Some(Rest::Busy) => self.wake(at),
            Some(Rest::Cold) => self.schedule.chill(at),
            Some(Rest::Hungry) => self.schedule.hunger(&mut self.slots, at),
            Some(Rest::Idle) | None => {}
        }
        self.schedule.set_time(&mut self.slots, at, moment);
    }

    /// The time at which [`Self::poll`] has something to do, by the clock that never goes back;
    /// `None` if nothing waits for a time.
    pub fn next_deadline(&self) -> Option<u64> {
        let times = [self.schedule.next_time(), self.out.keep_at];
        times.into_iter().flatten().min()
    }

    /// Takes the next thing to be done. The owner takes all of them after each call.
    pub fn next_output(&mut self) -> Option<ConsumerOutput> {
        self.out.queue.pop_front()
    }

    /// Whether outputs wait to be taken.
    pub fn has_outputs(&self) -> bool {
        !self.out.queue.is_empty()
    }

    /// Puts back an output that cannot be carried out now: it comes first again.
    pub fn put_back(&mut self, output: ConsumerOutput, moment: Moment) {
        self.out.queue.push_front(output);
        self.out.keep_by(moment.mono.saturating_add(TRY_AGAIN));
    }

    /// Ends a consumer that no client has been heard of.
    fn finish(&mut self, at: usize, moment: Moment) {
        self.remove(at, moment);
        self.keep(moment);
    }

    /// Takes a consumer out, and tells its clients.
    pub(super) fn remove(&mut self, at: usize, moment: Moment) {
        let Some(mut consumer) = self.slots.try_remove(at) else { return };
        self.names.remove(&consumer.name);
        self.schedule.forget(&consumer, at);
        if consumer.is_listed {
            self.changed.retain(|other| *other != at);
        }
        consumer.pulls.end_all(&mut |status| self.out.status(status), false);
        if let Some(push) = &consumer.push {
            self.listeners.remove(&push.subject, at);
            let before = Some(push.subject.clone());
            self.out.push(ConsumerOutput::Listens { before, now: None });
        }
        if !consumer.config.direct {
            let event = ConsumerEvent::Deleted;
            self.out.advise(Advisory::new(&consumer.name, moment, event));
        }
        if consumer.is_kept(&self.about) {
            self.keep_end(consumer.number);
        }
        if self.about.retention == Retention::Interest {
            self.sweep_from(consumer.acks.floor.stream);
        }
        self.out.push(ConsumerOutput::Ended(consumer.name));
    }

    /// Ends all consumers, as their stream is deleted. Nothing is kept.
    pub fn end_all(&mut self, moment: Moment) {
        self.about.is_memory = true;
        let all: Vec<usize> = self.names.values().copied().collect();
        all.into_iter().for_each(|at| self.remove(at, moment));
        self.sweep = None;
        self.removable.clear();
    }

    /// Tells waiting clients that the server stops, and keeps all changes.
    pub fn shut_down(&mut self, moment: Moment) {
        for (_, consumer) in &mut self.slots {
            consumer.pulls.end_all(&mut |status| self.out.status(status), true);
        }
        self.keep(moment);
    }

    /// Bytes of memory that the consumers take, about.
    pub fn memory_bytes(&self) -> usize {
        let own: usize = self.slots.iter().map(|(_, consumer)| consumer.memory_bytes()).sum();
        own + self.slots.len() * 64
    }
}

/// Forgets messages that a purge or a rollup has removed: consumers go on behind them.
pub fn on_purged(
    all: &mut Consumers,
    purge: &Purge,
    moment: Moment,
    source: &mut dyn ConsumerSource,
) {
    let (first, last) = (*purge.range.start(), *purge.range.end());
    let bounds = source.bounds();
    // What is not committed is read later.
    let behind = bounds.first.min(bounds.last + 1);
    let rest = if purge.filter.is_empty() {
        last + 1
    } else {
        match source.next(&[&purge.filter], 0) {
            NextMessage::Found(sequence) | NextMessage::Later(sequence) => sequence,
            NextMessage::None => (last + 1).min(bounds.last + 1),
        }
    };
    let mut concerned = Vec::new();
    for (at, consumer) in &mut all.slots {
        consumer.place.remove(first, last);
        match consumer.config.reach_of(&purge.filter) {
            PurgeReach::None => {}
            PurgeReach::Whole => concerned.push((at, rest)),
            PurgeReach::Part => concerned.push((at, behind)),
        }
    }
    for (at, from) in concerned {
        let changed = all.with(at, moment, source, |consumer, turn| {
            consumer.skip_purged(first..=last, from, turn)
        });
        if changed == Some(true) {
            all.wake(at);
        }
    }
}

impl LiveConsumer {
    /// Forgets messages that were removed. Returns whether any of them waited.
    fn forget_removed(&mut self, first: u64, last: u64, turn: &mut Turn<'_>) -> bool {
        let mut gone = self.acks.pending_between(first, last);
        gone.retain(|sequence| turn.source.subject(*sequence).is_none());
        gone.iter().for_each(|sequence| self.terminate_removed(*sequence, turn));
        self.acks.forget_redelivered(first, last);
        if self.acks.changes.is_changed {
            turn.out.keep_by(turn.moment.mono);
        }
        !gone.is_empty()
    }

    /// Goes on at `from`, behind messages of this range that were purged. Returns whether any of
    /// them waited.
    fn skip_purged(&mut self, range: RangeInclusive<u64>, from: u64, turn: &mut Turn<'_>) -> bool {
        let mut gone = self.acks.pending_between(*range.start(), *range.end());
        gone.retain(|sequence| turn.source.subject(*sequence).is_none());
        self.place.skip_to(from);
        let waited = self.acks.purge(from, &gone, self.place.next());
        if waited {
            self.last_acked = Some(turn.moment.wall_time());
        }
        self.acks.forget_redelivered(1, from.saturating_sub(1));
        if self.acks.changes.is_changed {
            turn.out.keep_by(turn.moment.mono);
        }
        waited
    }
}
