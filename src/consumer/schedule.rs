//! The consumers that are to be looked at: now, at a time, or when something comes.

use std::collections::{BTreeSet, VecDeque};

use slab::Slab;

use super::hungry::HungryConsumers;
use super::live::LiveConsumer;
use super::source::{ConsumerSource, Moment};

/// New messages whose subjects are looked at; more than that concern all that wait.
const NEWS_MAX: u64 = 256;

/// Consumers by what they wait for.
#[derive(Debug, Default)]
pub(super) struct WakeSchedule {
    ready: VecDeque<usize>,
    hungry: HungryConsumers,
    /// Consumers that wait for a message from the disk.
    cold: BTreeSet<usize>,
    times: BTreeSet<(u64, usize)>,
    /// The last message that those who wait know of.
    seen: u64,
    has_news: bool,
}

impl WakeSchedule {
    /// Whether some consumer is to be looked at now.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The first time at which a consumer is to be looked at.
    pub(super) fn next_time(&self) -> Option<u64> {
        self.times.first().map(|(time, _)| *time)
    }

    /// Takes a consumer that is to be looked at.
    pub(super) fn pop(&mut self) -> Option<usize> {
        self.ready.pop_front()
    }

    /// Lets a consumer be looked at.
    pub(super) fn wake(&mut self, slots: &mut Slab<LiveConsumer>, at: usize) {
        let Some(consumer) = slots.get_mut(at) else { return };
        if std::mem::take(&mut consumer.is_hungry) {
            self.hungry.remove(at, &consumer.config);
        }
        if !consumer.is_ready {
            consumer.is_ready = true;
            self.ready.push_back(at);
        }
    }

    /// Lets consumers be looked at whose time has come, up to a number.
    pub(super) fn wake_due(&mut self, slots: &mut Slab<LiveConsumer>, now: u64, max: usize) {
        for _ in 0..max {
            let Some((time, at)) = self.times.first().copied() else { break };
            if time > now {
                break;
            }
            self.times.pop_first();
            if let Some(consumer) = slots.get_mut(at) {
                consumer.wakes_at = None;
            }
            self.wake(slots, at);
        }
    }

    /// Enters the time at which a consumer is to be looked at, if it is earlier than before.
    pub(super) fn set_time(&mut self, slots: &mut Slab<LiveConsumer>, at: usize, moment: Moment) {
        let Some(consumer) = slots.get_mut(at) else { return };
        let Some(due) = consumer.next_due(moment) else { return };
        if consumer.wakes_at.is_some_and(|time| time <= due) {
            return;
        }
        if let Some(time) = consumer.wakes_at.replace(due) {
            self.times.remove(&(time, at));
        }
        self.times.insert((due, at));
    }

    /// Lets a consumer wait for new messages.
    pub(super) fn hunger(&mut self, slots: &mut Slab<LiveConsumer>, at: usize) {
        let Some(consumer) = slots.get_mut(at) else { return };
        if !consumer.is_hungry && !consumer.is_ready {
            consumer.is_hungry = true;
            self.hungry.insert(at, &consumer.config);
        }
    }

    /// Lets a consumer wait for a message from the disk.
    pub(super) fn chill(&mut self, at: usize) {
        self.cold.insert(at);
    }

    /// Lets all be looked at that wait for a message from the disk.
    pub(super) fn warm(&mut self, slots: &mut Slab<LiveConsumer>) {
        std::mem::take(&mut self.cold).into_iter().for_each(|at| self.wake(slots, at));
    }

    /// Notes that there are new messages.
    pub(super) fn note_news(&mut self) {
        self.has_news = true;
    }

    /// Lets those be looked at that wait for the new messages.
    pub(super) fn tell_news(
        &mut self,
        slots: &mut Slab<LiveConsumer>,
        source: &mut dyn ConsumerSource,
    ) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        let last = source.bounds().last;
        let from = std::mem::replace(&mut self.seen, last) + 1;
        let mut concerned: Vec<usize> = self.hungry.all_of_many().collect();
        if !self.hungry.is_of_many_only() {
            if (last + 1).saturating_sub(from) > NEWS_MAX {
                concerned = self.hungry.all().collect();
            } else {
                for sequence in from..=last {
                    if let Some(subject) = source.subject(sequence) {
                        concerned.extend(self.hungry.all_of(subject));
                    }
                }
            }
        }
        concerned.into_iter().for_each(|at| self.wake(slots, at));
    }

    /// Takes a consumer out of all lists. Another one may get its place, and must not be taken for
    /// it.
    pub(super) fn forget(&mut self, consumer: &LiveConsumer, at: usize) {
        if let Some(time) = consumer.wakes_at {
            self.times.remove(&(time, at));
        }
        if consumer.is_ready {
            self.ready.retain(|other| *other != at);
        }
        if consumer.is_hungry {
            self.hungry.remove(at, &consumer.config);
        }
        self.cold.remove(&at);
    }
}
