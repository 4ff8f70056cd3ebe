//! What a consumer has delivered: positions, messages that wait for their acknowledgement, and
//! those that are to be delivered again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::config::ConsumerConfig;

/// Most messages of one consumer that wait for their acknowledgement, whatever it asks for.
pub(super) const ACK_PENDING_MAX: usize = 1 << 20;
/// Times in the heap beyond two for each message, before it is made anew.
const SPARE_TIMES: usize = 64;

/// A position by both counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SequencePair {
    /// Deliveries of the consumer.
    pub(super) consumer: u64,
    /// Sequence of the stream.
    pub(super) stream: u64,
}

/// A message that waits for its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingMessage {
    /// Number of its first delivery.
    pub(super) consumer_sequence: u64,
    /// Time from which its wait counts, in nanoseconds; before the start if it is negative.
    pub(super) since: i64,
    /// Place among those that are to be delivered again; 0 if it is not one of them.
    ticket: u64,
}

/// Sequences whose state is not kept yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) sequences: Vec<u64>,
    /// Whether anything has changed.
    pub(super) is_changed: bool,
    /// Whether the whole state is to be kept.
    pub(super) is_whole: bool,
}

/// The deliveries of one consumer.
#[derive(Debug, Default)]
pub(super) struct AckState {
    pub(super) delivered: SequencePair,
    pub(super) floor: SequencePair,
    pending: BTreeMap<u64, PendingMessage>,
    /// Messages that were delivered again, with how often. Messages that are given up stay here
    /// while the stream has them.
    redelivered: BTreeMap<u64, u64>,
    /// Messages that are to be delivered again, in the order in which they became due.
    queue: BTreeMap<u64, u64>,
    last_ticket: u64,
    /// Times at which waits may end; a time that is none any more is ignored.
    due: BinaryHeap<Reverse<(i64, u64)>>,
    pub(super) changes: Changes,
}

impl AckState {
    /// Begins anew: the next delivery is the first one, of `next` or a later message.
    pub(super) fn restart(&mut self, next: u64) {
        let start = SequencePair { consumer: 0, stream: next.saturating_sub(1) };
        *self = Self { delivered: start, floor: start, ..Self::default() };
        (self.changes.is_changed, self.changes.is_whole) = (true, true);
    }

    /// Number of messages that wait.
    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Number of messages that were delivered more than once.
    pub(super) fn redelivered_count(&self) -> usize {
        self.redelivered.len()
    }

    /// Number of messages that are to be delivered again.
    pub(super) fn queued_count(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn pending(&self, sequence: u64) -> Option<PendingMessage> {
        self.pending.get(&sequence).copied()
    }

    /// All messages that wait, ascending.
    pub(super) fn all_pending(&self) -> impl Iterator<Item = (u64, PendingMessage)> {
        self.pending.iter().map(|(sequence, message)| (*sequence, *message))
    }

    /// All messages that were delivered again or given up, with how often, ascending.
    pub(super) fn all_redelivered(&self) -> impl Iterator<Item = (u64, u64)> {
        self.redelivered.iter().map(|(sequence, count)| (*sequence, *count))
    }

    /// The number of times that a message was delivered again.
    pub(super) fn redeliveries(&self, sequence: u64) -> u64 {
        self.redelivered.get(&sequence).copied().unwrap_or(0)
    }

    /// Whether a message was given up and is still counted.
    pub(super) fn is_given_up(&self, sequence: u64) -> bool {
        self.redelivered.contains_key(&sequence) && !self.pending.contains_key(&sequence)
    }

    fn touch(&mut self, sequence: u64) {
        let changes = &mut self.changes;
        changes.is_changed = true;
        if changes.is_whole {
            return;
        }
        // A list that is longer than the state says less than the state itself.
        if changes.sequences.len() > 2 * (self.pending.len() + self.redelivered.len()) + 256 {
            changes.is_whole = true;
            changes.sequences = Vec::new();
        } else {
            changes.sequences.push(sequence);
        }
    }

    /// Notes that positions have changed.
    pub(super) fn touch_positions(&mut self) {
        self.changes.is_changed = true;
    }

    /// Counts a first delivery that needs no acknowledgement. Returns the number of the delivery.
    pub(super) fn deliver_without_ack(&mut self, sequence: u64) -> u64 {
        self.delivered.consumer += 1;
        self.delivered.stream = self.delivered.stream.max(sequence);
        self.floor = self.delivered;
        self.touch_positions();
        self.delivered.consumer
    }

    /// Counts a delivery at a time. Returns the number of the delivery.
    pub(super) fn deliver(&mut self, sequence: u64, now: i64, config: &ConsumerConfig) -> u64 {
        self.delivered.consumer += 1;
        self.delivered.stream = self.delivered.stream.max(sequence);
        let consumer_sequence = self.delivered.consumer;
        match self.pending.get_mut(&sequence) {
            Some(message) => {
                message.since = now;
                if message.ticket != 0 {
                    self.queue.remove(&message.ticket);
                    message.ticket = 0;
                }
                *self.redelivered.entry(sequence).or_default() += 1;
            }
            None => {
                let message = PendingMessage { consumer_sequence, since: now, ticket: 0 };
                self.pending.insert(sequence, message);
            }
        }
        self.arm(sequence, now, config);
        self.touch(sequence);
        consumer_sequence
    }

    /// Puts back a message as it was kept.
    pub(super) fn restore_pending(&mut self, sequence: u64, consumer_sequence: u64, since: i64) {
        let message = PendingMessage { consumer_sequence, since, ticket: 0 };
        self.pending.insert(sequence, message);
    }

    /// Sets the time from which the wait of a message counts.
    pub(super) fn restore_since(&mut self, sequence: u64, since: i64) {
        if let Some(message) = self.pending.get_mut(&sequence) {
            message.since = since;
        }
    }

    /// Puts back how often a message was delivered again.
    pub(super) fn restore_redelivered(&mut self, sequence: u64, count: u64) {
        if count > 0 {
            self.redelivered.insert(sequence, count);
        }
    }

    /// Takes out a message that is not there any more, as it was kept.
    pub(super) fn restore_gone(&mut self, sequence: u64) {
        self.pending.remove(&sequence);
        self.redelivered.remove(&sequence);
    }

    /// Notes when the wait of a message ends.
    fn arm(&mut self, sequence: u64, since: i64, config: &ConsumerConfig) {
        let Some(wait) = config.wait_of(self.redeliveries(sequence)) else { return };
        if self.due.len() >= 2 * self.pending.len() + SPARE_TIMES {
            self.rearm(config);
        } else {
            self.due.push(Reverse((since.saturating_add(wait), sequence)));
        }
    }

    /// Notes anew when waits end.
    pub(super) fn rearm(&mut self, config: &ConsumerConfig) {
        let waiting = self.pending.iter().filter(|(_, message)| message.ticket == 0);
        let times = waiting.filter_map(|(sequence, message)| {
            let wait = config.wait_of(self.redeliveries(*sequence))?;
            Some(Reverse((message.since.saturating_add(wait), *sequence)))
        });
        self.due = times.collect();
    }

    /// Lets the wait of a message begin anew, or end at once or later. `since` is the time from
    /// which it counts.
    pub(super) fn wait_from(&mut self, sequence: u64, since: i64, config: &ConsumerConfig) {
        let Some(message) = self.pending.get_mut(&sequence) else { return };
        message.since = since;
        if message.ticket != 0 {
            self.queue.remove(&message.ticket);
            message.ticket = 0;
        }
        self.arm(sequence, since, config);
        self.touch(sequence);
    }

    /// Lets a message be delivered again as soon as it can be.
    pub(super) fn redeliver(&mut self, sequence: u64) {
        if let Some(message) = self.pending.get_mut(&sequence)
            && message.ticket == 0
        {
            self.last_ticket += 1;
            message.ticket = self.last_ticket;
            self.queue.insert(self.last_ticket, sequence);
        }
    }

    /// The message that is to be delivered again next.
    pub(super) fn next_redelivery(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(_, sequence)| *sequence)
    }

    /// The time at which the next wait may end.
    pub(super) fn next_due(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((time, _))| *time)
    }

    /// Takes a message whose wait has ended.
    pub(super) fn pop_due(&mut self, now: i64, config: &ConsumerConfig) -> Option<u64> {
        while let Some(Reverse((time, sequence))) = self.due.peek().copied() {
            if time > now {
                return None;
            }
            self.due.pop();
            let Some(message) = self.pending.get(&sequence) else { continue };
            let wait = config.wait_of(self.redeliveries(sequence));
            let is_due = wait.is_some_and(|wait| message.since.saturating_add(wait) <= now);
            if message.ticket == 0 && is_due {
                return Some(sequence);
            }
        }
        None
    }

    /// Gives a message up: it waits no more, and the floor stays below it.
    pub(super) fn give_up(&mut self, sequence: u64) {
        self.take(sequence);
        let count = self.redelivered.entry(sequence).or_default();
        *count = (*count).max(1);
        self.touch(sequence);
    }

    fn take(&mut self, sequence: u64) -> Option<PendingMessage> {
        let message = self.pending.remove(&sequence)?;
        if message.ticket != 0 {
            self.queue.remove(&message.ticket);
        }
        if self.pending.is_empty() {
            self.due.clear();
        }
        Some(message)
    }

    /// Acknowledges one message. Returns it, if it waited for that.
    pub(super) fn acknowledge(&mut self, sequence: u64) -> Option<PendingMessage> {
        let taken = self.take(sequence);
        if self.redelivered.remove(&sequence).is_some() || taken.is_some() {
            self.touch(sequence);
        }
        let message = taken?;
        if self.pending.is_empty() {
            self.floor = self.delivered;
        } else if message.consumer_sequence == self.floor.consumer + 1 {
            self.floor = SequencePair { consumer: message.consumer_sequence, stream: sequence };
            if let Some((next, after)) = self.pending.range(sequence + 1..).next()
                && after.consumer_sequence > 0
            {
                self.floor =
                    SequencePair { consumer: after.consumer_sequence - 1, stream: next - 1 };
            }
        }
        Some(message)
    }

    /// Acknowledges all messages up to one. Returns those that waited for that.
    pub(super) fn acknowledge_all(&mut self, to: SequencePair) -> Vec<u64> {
        let behind = self.pending.split_off(&(to.stream + 1));
        let taken = std::mem::replace(&mut self.pending, behind);
        let still = self.redelivered.split_off(&(to.stream + 1));
        let counted = std::mem::replace(&mut self.redelivered, still);
        for (sequence, message) in &taken {
            self.queue.remove(&message.ticket);
            self.touch(*sequence);
        }
        for sequence in counted.into_keys().filter(|sequence| !taken.contains_key(sequence)) {
            self.touch(sequence);
        }
        let consumer = to.consumer.min(self.delivered.consumer);
        self.floor = SequencePair { consumer, stream: to.stream.min(self.delivered.stream) };
        if self.pending.is_empty() {
            self.due.clear();
        }
        self.touch_positions();
        taken.into_keys().collect()
    }

    /// Drops messages of a purge: all before `first`, and these behind it. `next` is the message
    /// that would be delivered next. Returns whether any waited.
    pub(super) fn purge(&mut self, first: u64, behind: &[u64], next: u64) -> bool {
        let (floor, delivered) = (self.floor, self.delivered);
        self.floor.stream = self.floor.stream.max(first.saturating_sub(1));
        let before = self.pending.range(..first).map(|(sequence, _)| *sequence);
        let gone: Vec<u64> = before.chain(behind.iter().copied()).collect();
        for sequence in &gone {
            if let Some(message) = self.take(*sequence) {
                self.floor.consumer = self.floor.consumer.max(message.consumer_sequence);
            }
            self.redelivered.remove(sequence);
            self.touch(*sequence);
        }
        if self.pending.is_empty() {
            self.delivered.stream = next.saturating_sub(1);
            self.floor = self.delivered;
        }
        if (floor, delivered) != (self.floor, self.delivered) {
            self.touch_positions();
        }
        !gone.is_empty()
    }

    /// Forgets how often messages were delivered that the stream has no more.
    pub(super) fn forget_redelivered(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let counted = self.redelivered.range(first..=last);
        let counted = counted.map(|(sequence, _)| *sequence);
        let gone: Vec<u64> =
            counted.filter(|sequence| !self.pending.contains_key(sequence)).collect();
        for sequence in gone {
            self.redelivered.remove(&sequence);
            self.touch(sequence);
        }
    }

    /// The messages between two sequences that wait.
    pub(super) fn pending_between(&self, first: u64, last: u64) -> Vec<u64> {
        if first > last {
            return Vec::new();
        }
        self.pending.range(first..=last).map(|(sequence, _)| *sequence).collect()
    }

    /// Lets all messages that wait be delivered again.
    pub(super) fn redeliver_all(&mut self) {
        let all: Vec<u64> = self.pending.keys().copied().collect();
        all.into_iter().for_each(|sequence| self.redeliver(sequence));
    }

    /// Bytes of memory beside the state itself, about.
    pub(super) fn memory_bytes(&self) -> usize {
        let maps = self.pending.len() * 40 + (self.redelivered.len() + self.queue.len()) * 24;
        maps + self.due.capacity() * 16 + self.changes.sequences.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nanoseconds of a millisecond.
    const MS: i64 = 1_000_000;

    fn config() -> ConsumerConfig {
        ConsumerConfig { ack_wait: 10 * MS, ..ConsumerConfig::default() }
    }

    fn delivered(sequences: &[u64]) -> AckState {
        let mut state = AckState::default();
        state.restart(1);
        for sequence in sequences {
            state.deliver(*sequence, 0, &config());
        }
        state
    }

    fn pair(consumer: u64, stream: u64) -> SequencePair {
        SequencePair { consumer, stream }
    }

    #[test]
    fn the_floor_moves_when_the_gap_below_closes() {
        let mut state = delivered(&[1, 2, 4, 7]);
        assert!(state.acknowledge(2).is_some());
        assert_eq!(state.floor, pair(0, 0));
        state.acknowledge(1);
        assert_eq!(state.floor, pair(2, 3));
        assert!(state.acknowledge(1).is_none());
        state.acknowledge(7);
        assert_eq!(state.floor, pair(2, 3));
        state.acknowledge(4);
        assert_eq!((state.floor, state.pending_count()), (pair(4, 7), 0));
    }

    #[test]
    fn one_acknowledgement_is_for_all_below_it() {
        let mut state = delivered(&[1, 2, 4, 7]);
        assert_eq!(state.acknowledge_all(pair(3, 4)), [1, 2, 4]);
        assert_eq!((state.floor, state.pending_count()), (pair(3, 4), 1));
        assert_eq!(state.acknowledge_all(pair(90, 90)), [7]);
        assert_eq!(state.floor, pair(4, 7));
    }

    #[test]
    fn waits_end_in_their_order_and_only_once() {
        let mut state = delivered(&[1, 2]);
        state.wait_from(1, 5 * MS, &config());
        assert_eq!((state.next_due(), state.pop_due(9 * MS, &config())), (Some(10 * MS), None));
        assert_eq!(state.pop_due(10 * MS, &config()), Some(2));
        state.redeliver(2);
        state.redeliver(2);
        assert_eq!(state.queued_count(), 1);
        assert_eq!(state.pop_due(20 * MS, &config()), Some(1));
        state.redeliver(1);
        assert_eq!(state.next_redelivery(), Some(2));
        assert_eq!(state.deliver(2, 20 * MS, &config()), 3);
        assert_eq!((state.redeliveries(2), state.next_redelivery()), (1, Some(1)));
        state.acknowledge(1);
        assert_eq!(state.next_redelivery(), None);
        assert_eq!(state.pop_due(29 * MS, &config()), None);
        assert_eq!(state.pop_due(30 * MS, &config()), Some(2));
    }

    #[test]
    fn a_message_that_is_given_up_is_counted_and_holds_the_floor() {
        let mut state = delivered(&[1, 2]);
        state.give_up(1);
        assert!(state.is_given_up(1) && state.pending_count() == 1);
        assert_eq!((state.floor, state.redelivered_count()), (pair(0, 0), 1));
        state.forget_redelivered(1, 1);
        assert!(!state.is_given_up(1));
    }

    #[test]
    fn a_purge_takes_what_waited_and_moves_the_floor() {
        let mut state = delivered(&[1, 3]);
        assert!(state.purge(2, &[], 4));
        assert_eq!((state.floor, state.pending_count()), (pair(1, 1), 1));
        assert!(state.purge(5, &[], 5));
        assert_eq!((state.delivered, state.floor), (pair(2, 4), pair(2, 4)));
    }

    #[test]
    fn times_and_changes_take_no_more_room_than_the_messages() {
        let mut state = AckState::default();
        for sequence in 1..10_000 {
            state.deliver(sequence, 0, &config());
            state.acknowledge(sequence);
        }
        assert!(state.due.len() <= SPARE_TIMES && state.changes.is_whole);
        state.deliver(10_000, 0, &config());
        state.deliver(10_001, 0, &config());
        for at in 0..10_000 {
            state.wait_from(10_000, at, &config());
        }
        assert!(state.due.len() <= 2 * 2 + SPARE_TIMES, "{}", state.due.len());
    }
}
