//! The stream's messages as its consumers see them, and the time.

use crate::store::{NextMessage, StoredMessage};

/// A point in time by both clocks, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// The time since some start, which never goes back: waits are measured with it.
    pub mono: u64,
    /// The time since 1970.
    pub wall: u64,
}

impl Moment {
    /// The wall time as texts and records have it.
    pub(super) fn wall_time(self) -> i64 {
        i64::try_from(self.wall).unwrap_or(i64::MAX)
    }

    /// The time as waits count it; messages may have been delivered before the start.
    pub(super) fn mono_time(self) -> i64 {
        i64::try_from(self.mono).unwrap_or(i64::MAX)
    }

    /// The time after a wait, which is none if it is negative.
    pub(super) fn after(self, wait: i64) -> u64 {
        self.mono.saturating_add(u64::try_from(wait).unwrap_or(0))
    }
}

/// The ends of a stream, as far as it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBounds {
    /// The first message; the sequence behind the last one if there is none.
    pub first: u64,
    /// The last sequence that was given.
    pub last: u64,
    /// The last sequence with those that are not committed.
    pub staged: u64,
}

/// A look at a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look<'a> {
    /// The message.
    Now(StoredMessage<'a>),
    /// The message is on its way from the disk; the consumers hear of it when it is there.
    Cold,
    /// No message.
    None,
}

/// The committed messages of one stream, and the interest in its consumers' subjects.
pub trait ConsumerSource {
    /// The ends of the stream.
    fn bounds(&self) -> StreamBounds;

    /// The first message at `from` or behind it that one of the filters matches; all match if there
    /// are none. A search may end early, and goes on from there.
    fn next(&mut self, filters: &[&[u8]], from: u64) -> NextMessage;

    /// Number of messages at `from` and behind it that one of the filters matches, with those that
    /// are not committed.
    fn count(&mut self, filters: &[&[u8]], from: u64) -> u64;

    /// The last message of each subject that one of the filters matches, ascending.
    fn last_of_subjects(&mut self, filters: &[&[u8]]) -> Vec<u64>;

    /// The first message of a time in nanoseconds since 1970, or later; the next sequence if there
    /// is none.
    fn at_time(&mut self, time: i64) -> u64;

    /// The message with a sequence.
    fn look(&mut self, sequence: u64) -> Look<'_>;

    /// The subject of a message that is there, be it in memory or not.
    fn subject(&mut self, sequence: u64) -> Option<&[u8]>;

    /// Whether somebody takes messages with a subject.
    fn has_interest(&self, subject: &[u8]) -> bool;

    /// Whether somebody subscribes to this very subject: as a member of the queue group, or for
    /// himself if there is none.
    fn is_bound(&self, subject: &[u8], queue: Option<&[u8]>) -> bool;

    /// Whether somebody listens now, in this account or in one that imports the subject. Of changes
    /// there nobody hears.
    fn reaches(&self, subject: &[u8]) -> bool {
        self.has_interest(subject)
    }
}
