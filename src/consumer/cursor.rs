//! The place in a stream from which a consumer reads, and how many messages follow.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::config::{ConsumerConfig, DeliverPolicy};
use super::source::{ConsumerSource, StreamBounds};
use crate::store::NextMessage;

/// Filters as a search takes them.
pub(super) type FilterList<'a> = SmallVec<[&'a [u8]; 4]>;

/// The last messages of subjects that are delivered before all that follow.
#[derive(Debug)]
struct LastMessages {
    sequences: VecDeque<u64>,
    /// The last sequence of the stream when they were looked up.
    upto: u64,
}

/// The next message of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextUnread {
    /// A message.
    Found(u64),
    /// No message yet.
    None,
    /// The search is to go on another time.
    Later,
}

/// A consumer's place in its stream.
#[derive(Debug, Default)]
pub(super) struct ReadPlace {
    /// The first message that was not looked at.
    next: u64,
    last_messages: Option<Box<LastMessages>>,
    /// Messages that follow, of those up to `counted_upto`.
    count: u64,
    counted_upto: u64,
    /// Whether the count has to be made anew.
    is_stale: bool,
}

/// The filters of a consumer as a list.
pub(super) fn filter_list(config: &ConsumerConfig) -> FilterList<'_> {
    config.filters().collect()
}

impl ReadPlace {
    /// A place before this message.
    pub(super) fn at(next: u64) -> Self {
        Self { next, is_stale: true, ..Self::default() }
    }

    /// The place at which a new consumer begins. A stream that keeps one message a subject has no
    /// others than the last ones.
    pub(super) fn start(
        config: &ConsumerConfig,
        keeps_one: bool,
        source: &mut dyn ConsumerSource,
    ) -> Self {
        let bounds = source.bounds();
        let filters = filter_list(config);
        let mut last_messages = None;
        let next = match config.deliver_policy {
            DeliverPolicy::All => bounds.first,
            DeliverPolicy::LastPerSubject if keeps_one => bounds.first,
            DeliverPolicy::Last if filters.is_empty() => bounds.last,
            DeliverPolicy::Last => source.last_of_subjects(&filters).pop().unwrap_or(0),
            DeliverPolicy::LastPerSubject => {
                let sequences = source.last_of_subjects(&filters);
                let first = sequences.first().copied();
                last_messages =
                    Some(LastMessages { sequences: sequences.into(), upto: bounds.last });
                first.unwrap_or(bounds.last)
            }
            DeliverPolicy::New => bounds.last + 1,
            DeliverPolicy::ByStartSequence => config.opt_start_seq,
            DeliverPolicy::ByStartTime => {
                source.at_time(config.opt_start_time.map_or(0, |time| time.0))
            }
        };
        let has_sequence = config.deliver_policy == DeliverPolicy::ByStartSequence;
        let next = if has_sequence { next } else { next.min(bounds.last + 1) };
        let mut place = Self::at(next.max(bounds.first).max(1));
        if let Some(last) = last_messages.filter(|last| !last.sequences.is_empty()) {
            place.next = last.upto + 1;
            place.last_messages = Some(Box::new(last));
        }
        place
    }

    /// Looks up once more the last messages that a consumer had not got when it was kept.
    pub(super) fn resume_last_messages(
        &mut self,
        upto: u64,
        config: &ConsumerConfig,
        source: &mut dyn ConsumerSource,
    ) {
        let mut sequences: VecDeque<u64> = source.last_of_subjects(&filter_list(config)).into();
        sequences.retain(|sequence| (self.next..=upto).contains(sequence));
        *self = Self::at(upto.max(self.next - 1) + 1);
        if !sequences.is_empty() {
            self.last_messages = Some(Box::new(LastMessages { sequences, upto }));
        }
    }

    /// The sequence from which delivery goes on.
    pub(super) fn next(&self) -> u64 {
        let first = self.last_messages.as_ref().and_then(|last| last.sequences.front());
        first.copied().unwrap_or(self.next)
    }

    /// The last sequence of the last messages that are not all delivered; 0 if there are none.
    pub(super) fn last_messages_upto(&self) -> u64 {
        self.last_messages.as_ref().map_or(0, |last| last.upto)
    }

    /// Moves on to this message, if the place is before it.
    pub(super) fn skip_to(&mut self, next: u64) {
        if let Some(last) = &mut self.last_messages {
            while last.sequences.front().is_some_and(|sequence| *sequence < next) {
                last.sequences.pop_front();
            }
            if last.sequences.is_empty() {
                self.last_messages = None;
            }
        }
        if self.next < next {
            self.next = next;
            self.is_stale = true;
        }
    }

    /// Counts anew: messages were removed, or the filters are others.
    pub(super) fn recount(&mut self) {
        self.is_stale = true;
    }

    /// Notes that messages were removed.
    pub(super) fn remove(&mut self, first: u64, last: u64) {
        self.is_stale |= last >= self.next && first <= self.counted_upto;
        if let Some(messages) = &mut self.last_messages {
            messages.sequences.retain(|sequence| !(first..=last).contains(sequence));
            if messages.sequences.is_empty() {
                self.last_messages = None;
            }
        }
    }

    /// Number of messages that follow. Those that are not committed count, too: while a value is
    /// being changed, who reads all of them has not come to the end.
    pub(super) fn pending(
        &mut self,
        config: &ConsumerConfig,
        source: &mut dyn ConsumerSource,
    ) -> u64 {
        let last = source.bounds().staged;
        if self.is_stale {
            self.count = source.count(&filter_list(config), self.next);
            self.is_stale = false;
        } else if last > self.counted_upto {
            let from = self.next.max(self.counted_upto + 1);
            self.count += source.count(&filter_list(config), from);
        }
        self.counted_upto = last;
        let before = self.last_messages.as_ref().map_or(0, |last| last.sequences.len() as u64);
        self.count + before
    }

    /// Looks for the next message. [`Self::take`] takes it.
    pub(super) fn find(
        &mut self,
        config: &ConsumerConfig,
        source: &mut dyn ConsumerSource,
    ) -> NextUnread {
        if let Some(last) = &self.last_messages
            && let Some(sequence) = last.sequences.front()
        {
            return NextUnread::Found(*sequence);
        }
        let StreamBounds { last, staged, .. } = source.bounds();
        if self.next > last {
            return NextUnread::None;
        }
        match source.next(&filter_list(config), self.next) {
            NextMessage::Found(sequence) => {
                self.next = self.next.max(sequence);
                NextUnread::Found(sequence)
            }
            NextMessage::None => {
                self.next = last + 1;
                (self.count, self.counted_upto, self.is_stale) = (0, last, staged > last);
                NextUnread::None
            }
            NextMessage::Later(at) => {
                self.next = self.next.max(at);
                NextUnread::Later
            }
        }
    }

    /// Goes past the message that was found.
    pub(super) fn take(&mut self, sequence: u64) {
        if let Some(last) = &mut self.last_messages {
            if last.sequences.front() == Some(&sequence) {
                last.sequences.pop_front();
            }
            if last.sequences.is_empty() {
                self.last_messages = None;
            }
            return;
        }
        self.next = self.next.max(sequence + 1);
        if sequence <= self.counted_upto && !self.is_stale {
            self.count = self.count.saturating_sub(1);
        }
    }

    /// Bytes of memory beside the place itself.
    pub(super) fn memory_bytes(&self) -> usize {
        let last = self.last_messages.as_ref();
        last.map_or(0, |last| size_of::<LastMessages>() + last.sequences.capacity() * 8)
    }
}
