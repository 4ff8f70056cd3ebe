//! Streams that keep messages for their consumers: which messages nobody needs any more.

use slab::Slab;

use super::consumers::Consumers;
use super::live::LiveConsumer;
use super::source::ConsumerSource;
use crate::store::NextMessage;
use crate::stream::Retention;

/// Messages that one call looks at to see whether somebody needs them.
const SWEPT_AT_ONCE: usize = 256;
/// Messages that are let go at once.
pub(super) const REMOVABLE_MAX: usize = 4096;

/// A walk over messages that perhaps nobody needs any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep {
    next: u64,
    /// The last message of the walk; `None` is the last one of the stream when it begins.
    upto: Option<u64>,
}

impl Consumers {
    /// Lets go of acknowledged messages that no other consumer needs.
    pub(super) fn settle_acknowledged(&mut self, by: usize, source: &mut dyn ConsumerSource) {
        if self.out.acknowledged.is_empty() {
            return;
        }
        let acknowledged = std::mem::take(&mut self.out.acknowledged);
        let is_alone = self.slots.len() == 1 && self.slots.contains(by);
        for sequence in acknowledged.iter().copied() {
            let is_free = match self.about.retention {
                Retention::Limits => false,
                // Each message of a work queue is for one consumer.
                Retention::WorkQueue => true,
                Retention::Interest => is_alone || !is_needed(&self.slots, sequence, source),
            };
            if is_free {
                self.removable.push(sequence);
            }
        }
        // The list is used again.
        self.out.acknowledged = acknowledged;
        self.out.acknowledged.clear();
        if !self.removable.is_empty() && self.out.keep_at.is_none() {
            self.out.keep_by(0);
        }
    }

    /// Lets messages from this one on be looked at.
    pub(super) fn sweep_from(&mut self, first: u64) {
        let next = self.sweep.map_or(first, |sweep| sweep.next.min(first));
        self.sweep = Some(Sweep { next, upto: None });
    }

    /// Goes on with a walk.
    pub(super) fn advance_sweep(&mut self, source: &mut dyn ConsumerSource) {
        // A stream may have become one that keeps its messages anyway.
        self.sweep = self.sweep.filter(|_| self.about.retention != Retention::Limits);
        let Some(mut sweep) = self.sweep else { return };
        let upto = *sweep.upto.get_or_insert_with(|| source.bounds().last);
        for _ in 0..SWEPT_AT_ONCE {
            let found = match source.next(&[], sweep.next) {
                NextMessage::Found(sequence) if sequence <= upto => sequence,
                NextMessage::Later(at) if at <= upto => {
                    sweep.next = at;
                    break;
                }
                _ => {
                    self.sweep = None;
                    self.let_go();
                    return;
                }
            };
            let is_queue = self.about.retention == Retention::WorkQueue;
            let is_kept_anyway = is_queue && !is_for_any(&self.slots, found, source);
            if !is_kept_anyway && !is_needed(&self.slots, found, source) {
                self.removable.push(found);
            }
            sweep.next = found + 1;
        }
        self.sweep = Some(sweep);
        self.let_go();
    }

    fn let_go(&mut self) {
        if !self.removable.is_empty() {
            self.out.keep_by(0);
        }
    }
}

/// Whether some consumer still needs a message. One that is not there is not let go.
fn is_needed(slots: &Slab<LiveConsumer>, sequence: u64, source: &mut dyn ConsumerSource) -> bool {
    let Some(subject) = source.subject(sequence) else { return true };
    slots.iter().any(|(_, consumer)| consumer.needs(sequence, subject))
}

/// Whether a message of a work queue is for some consumer: it stays until somebody has had it.
fn is_for_any(slots: &Slab<LiveConsumer>, sequence: u64, source: &mut dyn ConsumerSource) -> bool {
    let Some(subject) = source.subject(sequence) else { return false };
    slots.iter().any(|(_, consumer)| consumer.config.matches(subject))
}
