//! The streams of one log: their records, their indexes, and their state after a restart.
//!
//! The caller hands in completions, calls [`StreamStore::end_turn`], and then carries out all
//! operations and hears of all events. Commits have numbers: the changes of one may be shown or
//! confirmed when [`WalEvent::Committed`] has its number or a higher one.

mod replay;
mod upkeep;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use ahash::RandomState;

use super::memory::MemoryLog;
use super::recovery::{Recovered, RecoveryReport};
use super::stream::{Entries, NextMessage, Purged, SEQUENCE_MAX, Stream};
use super::tail::{Read, RecordAt, RecordPlace, RecordSource};
use super::wal::{StageError, Staged, Wal, WalEvent};
use crate::disk::{DiskDone, DiskOp};
use crate::record::batch::Records;
use crate::record::ranges::RangeList;
use crate::record::record::{LogRecord, StoredMessage, StreamId};
use replay::Replay;
use upkeep::Checkpoint;

/// A message that is to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewMessage<'a> {
    /// Time of the message, in nanoseconds since 1970.
    pub time: u64,
    /// Marks that the owner reads without the headers.
    pub flags: u8,
    /// Subject of the message.
    pub subject: &'a [u8],
    /// Headers with the line that they begin with; empty if there are none.
    pub headers: &'a [u8],
    /// Payload without the headers.
    pub payload: &'a [u8],
}

/// The reason for which a record was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// No stream has this number.
    NoStream,
    /// The log does not take the record.
    Log(StageError),
}

impl From<StageError> for StoreError {
    fn from(error: StageError) -> Self {
        Self::Log(error)
    }
}

/// The place of a stream's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamHome {
    /// The log: they are there after a restart.
    Log,
    /// Memory: nothing of the stream is there after a restart.
    Memory,
}

/// A stream of the log, or one in memory.
#[derive(Debug)]
struct LoggedStream {
    index: Stream,
    /// The messages of a stream in memory.
    memory: Option<Box<MemoryLog>>,
    /// The last configuration of the stream; `None` if it was lost.
    configuration: Option<Box<[u8]>>,
    /// Records that were lost by damage since the stream's last message: each may have been one of
    /// its messages.
    unsure: u64,
    /// The last commit that changes the stream.
    changed_by: u64,
}

/// A message that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Sequence of the message.
    pub sequence: u64,
    /// Number of the message's commit.
    pub commit: u64,
}

/// Messages that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Number of the messages.
    pub messages: u64,
    /// The number of the commit.
    pub commit: u64,
}

/// Streams of one shard: those in its log, and those in memory.
#[derive(Debug)]
pub struct StreamStore {
    wal: Wal,
    streams: BTreeMap<StreamId, LoggedStream>,
    /// Streams that a commit on its way changes.
    changing: VecDeque<(u64, StreamId)>,
    checkpoint: Option<Checkpoint>,
    /// The log, while it is being read.
    replay: Option<Box<Replay>>,
    /// Records about consumers that were found, until their owner takes them.
    consumers: BTreeMap<StreamId, Vec<Box<[u8]>>>,
    /// Messages that were removed with all of their stream, and still count for their batches.
    graves: VecDeque<Entries>,
    /// Messages that were written once more.
    moved: u64,
    /// A message that was not in memory.
    missed: Cell<Option<(StreamId, u64)>>,
    hasher: RandomState,
}

impl StreamStore {
    /// The streams of a log that was found. `seed` keys the hashes of subjects: a number that
    /// cannot be guessed. A log that does not fit into memory is read once more: until
    /// [`Self::is_ready`], operations are to be carried out, and nothing is to be changed.
    pub fn new(recovered: Recovered, seed: u64) -> (Self, RecoveryReport) {
        let Recovered { wal, report } = recovered;
        let hasher = RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 1);
        let mut store = Self {
            wal,
            streams: BTreeMap::new(),
            changing: VecDeque::new(),
            checkpoint: None,
            replay: Some(Box::new(Replay::new(&report))),
            consumers: BTreeMap::new(),
            graves: VecDeque::new(),
            moved: 0,
            missed: Cell::new(None),
            hasher,
        };
        store.go_on_reading();
        (store, report)
    }

    /// Whether all streams are known.
    pub fn is_ready(&self) -> bool {
        self.replay.is_none()
    }

    /// Number of messages that were written once more since the start, so that files come free.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Takes the records about the consumers of a stream that the log had at the start, in order.
    pub fn take_consumers(&mut self, id: StreamId) -> Vec<Box<[u8]>> {
        self.consumers.remove(&id).unwrap_or_default()
    }

    /// Takes the next operation for the disk.
    pub fn next_op(&mut self) -> Option<DiskOp> {
        self.wal.next_op()
    }

    /// Takes the next event for the owner; committed changes are shown already.
    pub fn next_event(&mut self) -> Option<WalEvent> {
        let mut event = self.wal.next_event()?;
        if let WalEvent::Committed(number) = event {
            while let Some((_, id)) = self.changing.front().filter(|(commit, _)| *commit <= number)
            {
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.index.commit(number);
                }
                self.changing.pop_front();
            }
            self.end_checkpoint(number);
        }
        if let WalEvent::Damaged { commit, lost } = &mut event {
            *lost = self.lose_unreadable(*commit);
        }
        Some(event)
    }

    /// Begins a commit of all staged records, if none is on its way.
    pub fn end_turn(&mut self) {
        self.keep_up();
        self.wal.end_turn();
    }

    /// Takes the end of an operation of this log.
    pub fn on_disk(&mut self, done: DiskDone) {
        self.wal.on_disk(done);
        self.go_on_reading();
    }

    /// The log itself.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// The log itself, for calls that concern no stream.
    pub fn wal_mut(&mut self) -> &mut Wal {
        &mut self.wal
    }

    /// All streams in order of their numbers, each with its configuration. A stream that has lost
    /// its configuration by damage has none, and is to be kept aside.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, Option<&[u8]>)> {
        self.streams.iter().map(|(id, stream)| (*id, stream.configuration.as_deref()))
    }

    /// The index of a stream.
    pub fn stream(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id).map(|stream| &stream.index)
    }

    fn stage(&mut self, id: StreamId, record: &LogRecord<'_>) -> Result<Staged, StageError> {
        if !self.is_ready() {
            return Err(StageError::Full);
        }
        let staged = self.wal.stage(id, record)?;
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.changed_by != staged.commit
        {
            stream.changed_by = staged.commit;
            self.changing.push_back((staged.commit, id));
        }
        Ok(staged)
    }

    /// Makes a stream, or changes its configuration; its home does not change. Returns the number
    /// of the commit.
    pub fn configure(
        &mut self,
        id: StreamId,
        home: StreamHome,
        configuration: &[u8],
    ) -> Result<u64, StageError> {
        let is_new = !self.streams.contains_key(&id);
        if is_new && home == StreamHome::Memory {
            let memory = Some(Box::default());
            let index = Stream::in_memory(self.hasher.clone());
            let stream = LoggedStream { index, memory, ..LoggedStream::new(&self.hasher) };
            self.streams.insert(id, stream);
        }
        let record = LogRecord::Configuration(configuration);
        let commit = if self.is_in_memory(id) {
            self.wal.committed()
        } else {
            if is_new {
                // After damage this shows that the stream had no messages before.
                let bounds = LogRecord::Purge { before: 1, last: 0 };
                self.wal.check_room(record.stored_bytes() + bounds.stored_bytes())?;
                self.streams.insert(id, LoggedStream::new(&self.hasher));
                self.stage(id, &bounds)?;
            }
            self.stage(id, &record)?.commit
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.configuration = Some(configuration.into());
        }
        Ok(commit)
    }

    fn is_in_memory(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.memory.is_some())
    }

    /// Stages a record that is no message. Returns the number of the commit, for a stream in
    /// memory one that has ended.
    fn note(&mut self, id: StreamId, record: &LogRecord<'_>) -> Result<u64, StageError> {
        if self.is_in_memory(id) {
            return Ok(self.wal.committed());
        }
        Ok(self.stage(id, record)?.commit)
    }

    /// Bytes of memory that messages of streams in memory take.
    pub fn memory_bytes(&self) -> usize {
        let logs = self.streams.values().filter_map(|stream| stream.memory.as_ref());
        logs.map(|memory| memory.bytes()).sum()
    }

    /// Removes a stream with all its messages. Returns the number of the commit.
    pub fn end(&mut self, id: StreamId) -> Result<u64, StoreError> {
        self.find(id)?;
        let commit = self.note(id, &LogRecord::End)?;
        if let Some(stream) = self.streams.remove(&id) {
            self.free_stream(stream);
        }
        self.consumers.remove(&id);
        Ok(commit)
    }

    /// Keeps the acknowledgements of consumers, if the stream is not in memory. Returns the number
    /// of the commit.
    pub fn keep_consumers(&mut self, id: StreamId, state: &[u8]) -> Result<u64, StoreError> {
        self.find(id)?;
        Ok(self.note(id, &LogRecord::Consumers(state))?)
    }

    fn find(&self, id: StreamId) -> Result<&Stream, StoreError> {
        self.stream(id).ok_or(StoreError::NoStream)
    }

    /// Adds a message.
    pub fn append(
        &mut self,
        id: StreamId,
        message: &NewMessage<'_>,
    ) -> Result<Appended, StoreError> {
        self.append_at(id, 0, message)
    }

    /// Adds a message with this sequence, or a higher one that is the next. Sequences that are
    /// passed over have no message.
    pub fn append_at(
        &mut self,
        id: StreamId,
        sequence: u64,
        message: &NewMessage<'_>,
    ) -> Result<Appended, StoreError> {
        let stream = self.streams.get_mut(&id).ok_or(StoreError::NoStream)?;
        let sequence = sequence.min(SEQUENCE_MAX).max(stream.index.next_sequence());
        let NewMessage { time, flags, subject, headers, payload } = *message;
        let message = StoredMessage { sequence, time, flags, subject, headers, payload };
        if let Some(memory) = &mut stream.memory {
            let commit = self.wal.committed();
            let place = memory.push(id, &LogRecord::Message(message));
            let place = place.map_err(|_| StoreError::Log(StageError::TooLong))?;
            stream.index.append(&message, Staged { commit, place });
            stream.index.commit(commit);
            return Ok(Appended { sequence, commit });
        }
        let staged = self.stage(id, &LogRecord::Message(message))?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.index.append(&message, staged);
        }
        Ok(Appended { sequence, commit: staged.commit })
    }

    /// Removes messages, in ascending order. Sequences without a message are ignored.
    pub fn remove(&mut self, id: StreamId, sequences: &[u64]) -> Result<Removed, StoreError> {
        self.remove_with(id, sequences, |stream, sequence, _| stream.remove(sequence))
    }

    /// Removes messages as [`Self::remove`] does, which make room for one that was added just now:
    /// whoever asks for them finds them until that one is shown.
    pub fn replace(&mut self, id: StreamId, sequences: &[u64]) -> Result<Removed, StoreError> {
        let is_logged = !self.is_in_memory(id);
        self.remove_with(id, sequences, |stream, sequence, commit| match is_logged {
            true => stream.index.replace(sequence, commit),
            false => stream.remove(sequence),
        })
    }

    fn remove_with(
        &mut self,
        id: StreamId,
        sequences: &[u64],
        mut remove: impl FnMut(&mut LoggedStream, u64, u64) -> Option<(RecordPlace, u64)>,
    ) -> Result<Removed, StoreError> {
        let index = self.find(id)?;
        let mut list = RangeList::default();
        let there = sequences.iter().filter(|sequence| index.has(**sequence));
        there.for_each(|sequence| list.push(*sequence..=*sequence));
        if list.is_empty() {
            return Ok(Removed { messages: 0, commit: self.wal.committed() });
        }
        let commit = self.note(id, &LogRecord::Delete(list.ranges()))?;
        let mut removed = 0;
        if let Some(stream) = self.streams.get_mut(&id) {
            for sequence in list.ranges().iter().flatten() {
                if let Some((place, charged)) = remove(stream, sequence, commit) {
                    removed += 1;
                    if stream.memory.is_none() {
                        self.wal.tail_mut().remove_live(place, charged);
                    }
                }
            }
        }
        Ok(Removed { messages: removed, commit })
    }

    /// Removes all messages before a sequence. If that is behind the last one, the next message
    /// gets it.
    pub fn purge(&mut self, id: StreamId, before: u64) -> Result<Removed, StoreError> {
        let index = self.find(id)?;
        let messages = index.totals().messages;
        let before = before.min(SEQUENCE_MAX);
        let last = (index.next_sequence() - 1).max(before.saturating_sub(1));
        let commit = self.note(id, &LogRecord::Purge { before, last })?;
        let mut left = 0;
        if let Some(stream) = self.streams.get_mut(&id) {
            let purged = stream.index.purge(before, last, commit);
            left = stream.index.totals().messages;
            self.free_purged(id, purged);
        }
        Ok(Removed { messages: messages - left, commit })
    }

    /// Removes the messages before `below` with a subject that a filter matches, but for the last
    /// `keep` ones.
    pub fn purge_subjects(
        &mut self,
        id: StreamId,
        filters: &[&[u8]],
        below: u64,
        keep: usize,
    ) -> Result<Removed, StoreError> {
        let purged = self.find(id)?.purged(filters, below, keep);
        self.remove(id, &purged)
    }

    /// Reads the message with this sequence, if it is shown. One that is [`Read::Cold`] can be
    /// asked for with [`Self::load`].
    pub fn read(&self, id: StreamId, sequence: u64) -> Read<'_> {
        let Some(stream) = self.streams.get(&id) else { return Read::None };
        let Some(place) = stream.index.get(sequence) else { return Read::None };
        match &stream.memory {
            Some(memory) => memory.get(place).map_or(Read::None, Read::Now),
            None => self.wal.read(place),
        }
    }

    /// Asks for a message that is not in memory, and those behind it: [`WalEvent::Loaded`] follows.
    /// It stays there for a while.
    pub fn load(&mut self, id: StreamId, sequence: u64) {
        let stream = self.streams.get(&id).filter(|stream| stream.memory.is_none());
        let place = |stream: &LoggedStream| {
            stream.index.peek(sequence).or_else(|| stream.index.get(sequence))
        };
        if let Some(place) = stream.and_then(place) {
            self.wal.load_at(place);
        }
    }

    /// The message with this sequence, if it is shown, and in memory; see [`Self::take_missed`].
    pub fn get(&self, id: StreamId, sequence: u64) -> Option<RecordAt<'_>> {
        match self.read(id, sequence) {
            Read::Now(at) => Some(at),
            Read::Cold => {
                self.missed.set(self.missed.get().or(Some((id, sequence))));
                None
            }
            Read::None => None,
        }
    }

    /// Returns the first message that [`Self::get`] has not found in memory since this was asked
    /// last: what was made of it is to be made again when it is there.
    pub fn take_missed(&self) -> Option<(StreamId, u64)> {
        self.missed.take()
    }

    /// The message with this sequence, staged or not, if it is in memory: for publishes that
    /// depend on it, as on the last value of a counter. No reader is shown it.
    pub fn peek(&self, id: StreamId, sequence: u64) -> Option<RecordAt<'_>> {
        let stream = self.streams.get(&id)?;
        stream.record(stream.index.peek(sequence)?, &self.wal)
    }

    /// The next message for a reader, see [`Stream::next`].
    pub fn next(
        &self,
        id: StreamId,
        filters: &[&[u8]],
        from: u64,
        steps: &mut usize,
    ) -> NextMessage {
        self.stream(id).map_or(NextMessage::None, |index| index.next(filters, from, steps))
    }
}

impl LoggedStream {
    fn new(hasher: &RandomState) -> Self {
        let index = Stream::new(hasher.clone());
        Self { index, memory: None, configuration: None, unsure: 0, changed_by: 0 }
    }

    /// The record at a place.
    fn record<'a>(&'a self, place: RecordPlace, wal: &'a Wal) -> Option<RecordAt<'a>> {
        self.memory.as_ref().map_or_else(|| wal.record(place), |memory| memory.get(place))
    }

    /// Removes a message. Returns the place where it was, and its bytes as limits count them.
    fn remove(&mut self, sequence: u64) -> Option<(RecordPlace, u64)> {
        let removed = self.index.remove(sequence)?;
        if let Some(memory) = &mut self.memory {
            free(memory, &mut self.index, removed.0);
        }
        Some(removed)
    }

    /// Frees the memory of messages that a purge has removed.
    fn free_purged(&mut self, purged: &Purged) {
        let Some(memory) = &mut self.memory else { return };
        if !purged.all.is_empty() {
            memory.clear();
        }
        for (place, _) in &purged.places {
            free(memory, &mut self.index, *place);
        }
        self.index.commit(u64::MAX);
    }
}

/// Frees the record of a message that is removed from the index, and moves those beside it if few
/// are left.
fn free(memory: &mut MemoryLog, index: &mut Stream, place: RecordPlace) {
    let Some(sparse) = memory.free(place) else { return };
    for (at, decoded) in Records::of(&sparse.body) {
        let from = sparse.first.plus(at);
        if let LogRecord::Message(message) = decoded.record
            && index.peek(message.sequence) == Some(from)
            && let Ok(to) = memory.push(decoded.stream, &decoded.record)
        {
            index.move_to(message.sequence, from, to);
        }
    }
}

#[cfg(test)]
mod tests;
