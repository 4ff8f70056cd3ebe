//! Records of consumers: when they are kept, and consumers that are found again in them.

use std::sync::Arc;

use super::consumers::Consumers;
use super::cursor::ReadPlace;
use super::journal::{KeptEntry, KeptMessage, KeptState, RecordReader, RecordWriter};
use super::live::{LiveConsumer, Turn};
use super::output::ConsumerOutput;
use super::pending::SequencePair;
use super::retention::REMOVABLE_MAX;
use super::source::{ConsumerSource, Look, Moment};
use crate::stream::Retention;

impl Consumers {
    /// Keeps changes, if it is time or something waits for that.
    pub(super) fn keep_if_due(&mut self, moment: Moment) {
        let is_due = self.out.keep_at.is_some_and(|time| time <= moment.mono);
        if is_due || self.removable.len() >= REMOVABLE_MAX {
            self.keep(moment);
        }
    }

    /// Keeps all changes. Then acknowledgements are confirmed and messages let go.
    pub(super) fn keep(&mut self, moment: Moment) {
        self.out.keep_at = None;
        let mut writer = RecordWriter::default();
        for at in std::mem::take(&mut self.changed) {
            let Some(consumer) = self.slots.get_mut(at) else { continue };
            consumer.is_listed = false;
            let out = &mut self.out;
            let mut put = |bytes| out.push(ConsumerOutput::Keep(bytes));
            writer.state(consumer, false, moment, &mut put);
        }
        if let Some(bytes) = writer.take() {
            self.out.push(ConsumerOutput::Keep(bytes));
        }
        for reply in std::mem::take(&mut self.out.confirms) {
            self.out.push(ConsumerOutput::Confirm { reply, waits: true });
        }
        if !self.removable.is_empty() {
            let mut removable = std::mem::take(&mut self.removable);
            removable.sort_unstable();
            removable.dedup();
            self.out.push(ConsumerOutput::Removable(removable));
        }
    }

    /// Keeps a consumer whole: it is new, or its configuration has changed.
    pub(super) fn keep_consumer(&mut self, at: usize, moment: Moment) {
        let Some(consumer) = self.slots.get_mut(at) else { return };
        if !consumer.is_kept(&self.about) {
            return;
        }
        let mut writer = RecordWriter::default();
        writer.consumer(consumer);
        let out = &mut self.out;
        let mut put = |bytes| out.push(ConsumerOutput::Keep(bytes));
        writer.state(consumer, true, moment, &mut put);
        writer.take().into_iter().for_each(put);
    }

    /// Keeps that a consumer is no more.
    pub(super) fn keep_end(&mut self, number: u32) {
        let mut writer = RecordWriter::default();
        writer.end(number);
        self.out.queue.extend(writer.take().map(ConsumerOutput::Keep));
    }

    /// All that is to be kept of all consumers: records that replace all earlier ones.
    pub fn snapshot(&mut self, moment: Moment) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut writer = RecordWriter::default();
        for (_, consumer) in &mut self.slots {
            if !consumer.is_kept(&self.about) {
                continue;
            }
            // Whether these records are kept is not known here: changes stay for the next record.
            let changes = std::mem::take(&mut consumer.acks.changes);
            writer.consumer(consumer);
            writer.state(consumer, true, moment, &mut |bytes| records.push(bytes));
            consumer.acks.changes = changes;
            if writer.is_full() {
                records.extend(writer.take());
            }
        }
        records.extend(writer.take());
        records
    }

    /// Takes a record that was kept, in the order of the log, before [`Self::start`]. Returns
    /// whether all of it could be read.
    pub fn restore(&mut self, record: &[u8]) -> bool {
        let Some(mut reader) = RecordReader::new(record) else { return false };
        while let Some(entry) = reader.next() {
            self.restore_entry(entry);
        }
        reader.is_at_end()
    }

    pub(super) fn restore_entry(&mut self, entry: KeptEntry) {
        match entry {
            KeptEntry::Consumer { number, name, created, config } => {
                self.last_number = self.last_number.max(number);
                let name: Arc<str> = name.into();
                if let Some(consumer) = self.restoring(number) {
                    consumer.config = config;
                    return;
                }
                let place = ReadPlace::at(1);
                let consumer = LiveConsumer::new(name.clone(), number, created, *config, place);
                let at = self.slots.insert(consumer);
                self.numbers.insert(number, at);
                if let Some(before) = self.names.insert(name, at) {
                    self.slots.try_remove(before);
                }
            }
            KeptEntry::End { number } => {
                if let Some(at) = self.numbers.remove(&number)
                    && let Some(consumer) = self.slots.try_remove(at)
                {
                    self.names.remove(&consumer.name);
                }
            }
            KeptEntry::State { number, state } => {
                if let Some(consumer) = self.restoring(number) {
                    consumer.restore(&state);
                }
            }
        }
    }

    fn restoring(&mut self, number: u32) -> Option<&mut LiveConsumer> {
        self.slots.get_mut(*self.numbers.get(&number)?)
    }

    /// Begins to run, when all records have been taken.
    pub fn start(&mut self, moment: Moment, source: &mut dyn ConsumerSource) {
        self.numbers.clear();
        let all: Vec<usize> = self.names.values().copied().collect();
        for at in all {
            self.with(at, moment, source, |consumer, turn| consumer.resume(turn));
            let subject = self.slots[at].push.as_ref().map(|push| push.subject.clone());
            if let Some(subject) = subject {
                self.listeners.add(subject.clone(), at);
                let now = Some(subject);
                self.out.push(ConsumerOutput::Listens { before: None, now });
            }
            self.wake(at);
        }
        if self.about.retention != Retention::Limits && !self.slots.is_empty() {
            self.sweep_from(0);
        }
    }
}

impl LiveConsumer {
    /// Takes a state as it was kept. Times are those since 1970 until the consumer runs.
    fn restore(&mut self, kept: &KeptState) {
        if kept.is_whole {
            self.acks = <_>::default();
        }
        (self.acks.delivered, self.acks.floor) = (kept.delivered, kept.floor);
        self.place = ReadPlace::at(kept.next.max(1));
        self.restored_upto = kept.last_messages_upto;
        for (sequence, message) in &kept.messages {
            self.acks.restore_gone(*sequence);
            match *message {
                KeptMessage::Gone => {}
                KeptMessage::GivenUp { redeliveries } => {
                    self.acks.restore_redelivered(*sequence, redeliveries);
                }
                KeptMessage::Pending { consumer_sequence, since, redeliveries } => {
                    self.acks.restore_pending(*sequence, consumer_sequence, since);
                    self.acks.restore_redelivered(*sequence, redeliveries);
                }
            }
        }
    }

    /// Begins to run after a restart.
    fn resume(&mut self, turn: &mut Turn<'_>) {
        let bounds = turn.source.bounds();
        self.drop_lost(bounds.last);
        self.place.skip_to(bounds.first);
        let upto = std::mem::take(&mut self.restored_upto);
        if upto > 0 {
            self.place.resume_last_messages(upto, &self.config, turn.source);
        }
        let pending: Vec<(u64, i64)> =
            self.acks.all_pending().map(|(sequence, message)| (sequence, message.since)).collect();
        for (sequence, since) in pending {
            if turn.source.look(sequence) == Look::None {
                self.acks.acknowledge(sequence);
                continue;
            }
            let ago = turn.moment.wall_time().saturating_sub(since).max(0);
            let since = turn.moment.mono_time().saturating_sub(ago);
            self.acks.restore_since(sequence, since);
        }
        self.acks.rearm(&self.config);
        self.begin(turn);
    }

    /// Goes back to the end of a stream that has lost messages.
    fn drop_lost(&mut self, last: u64) {
        if self.acks.delivered.stream <= last {
            return;
        }
        for sequence in self.acks.pending_between(last + 1, u64::MAX) {
            self.acks.restore_gone(sequence);
        }
        self.acks.forget_redelivered(last + 1, u64::MAX);
        self.acks.delivered.stream = last;
        let floor = self.acks.floor;
        self.acks.floor = SequencePair { stream: floor.stream.min(last), ..floor };
        self.place = ReadPlace::at(last + 1);
        self.acks.touch_positions();
    }
}
