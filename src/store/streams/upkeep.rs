//! Upkeep of a log: what is alive in its oldest batches is written once more, so that their files
//! can be used again.
//!
//! A log takes about twice the bytes that are alive, and four files (`FILES_SLACK`), at most: over
//! that the oldest messages are appended once more, 256 KiB of batches a turn. A checkpoint
//! follows, which the owner begins, since it has to write what it keeps of consumers.

use std::collections::VecDeque;
use std::rc::Rc;

use super::super::stream::{Entries, Purged};
use super::super::tail::{Read, RecordPlace};
use super::super::wal::{STAGED_BYTES_MAX, StageError, Wal};
use super::{LoggedStream, StreamStore};
use crate::record::batch::Records;
use crate::record::record::{LogRecord, StreamId};

/// Files that a log may have beside those that its messages need.
const FILES_SLACK: u64 = 4;
/// Bytes of batches that are written once more in a turn.
const MOVED_BYTES: usize = 256 << 10;
/// Bytes that a checkpoint stages in a turn.
const RESTATED_BYTES: usize = 1 << 20;
/// Chunks of 256 removed messages whose batches are told in a turn.
const BURIED_CHUNKS: usize = 64;

/// A release of batches, once what else they say of streams was written again.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The batch that was being staged at its beginning.
    begun: u64,
    /// Streams that have to be written once more.
    left: VecDeque<StreamId>,
    /// The commit of the last of them, and the first batch that is needed then.
    end: Option<(u64, u64)>,
}

impl StreamStore {
    /// Begins to write once more all that the log says of streams but their messages and consumers.
    /// Batches before the first one that has a message are released when that is on the disk. What
    /// else is needed of them, as of consumers, is to be staged before that.
    ///
    /// # Errors
    ///
    /// The error of the log, if it takes nothing.
    pub fn checkpoint(&mut self) -> Result<(), StageError> {
        self.wal.check_room(0)?;
        if self.checkpoint.is_none() {
            let logged = self.streams.iter().filter(|(_, stream)| stream.memory.is_none());
            let left = logged.map(|(id, _)| *id).collect();
            let begun = self.wal.tail().number();
            self.checkpoint = Some(Checkpoint { begun, left, end: None });
            self.go_on_with_checkpoint();
        }
        Ok(())
    }

    /// Whether a checkpoint would free a file.
    pub fn wants_checkpoint(&mut self) -> bool {
        let is_idle = self.checkpoint.is_none() && self.is_ready();
        is_idle && self.wal.tail_mut().dead_bytes() >= self.wal.file_bytes()
    }

    fn go_on_with_checkpoint(&mut self) {
        let Some(mut checkpoint) = self.checkpoint.take() else { return };
        while let Some(id) = checkpoint.left.pop_front() {
            let is_much = self.wal.tail().staged_bytes() >= RESTATED_BYTES;
            if is_much || self.restate(id).is_err() {
                checkpoint.left.push_front(id);
                self.checkpoint = Some(checkpoint);
                return;
            }
        }
        if checkpoint.end.is_none() {
            // What is removed by now may be there again after a crash, until this commit has ended.
            let commit = self.wal.tail().number();
            let first = self.wal.tail_mut().first_live();
            checkpoint.end = Some((commit, first.min(checkpoint.begun)));
            self.wal.mark();
        }
        self.checkpoint = Some(checkpoint);
    }

    /// Takes the end of a commit.
    pub(super) fn end_checkpoint(&mut self, committed: u64) {
        let end = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.end);
        if let Some((_, floor)) = end.filter(|(commit, _)| *commit <= committed) {
            self.checkpoint = None;
            self.wal.release(floor);
        }
    }

    /// Writes once more what the log says of a stream but its messages and consumers.
    pub(super) fn restate(&mut self, id: StreamId) -> Result<(), StageError> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let last = stream.index.next_sequence() - 1;
        let before = stream.index.first().unwrap_or(last + 1);
        if let Some(configuration) = stream.configuration.clone() {
            self.stage(id, &LogRecord::Configuration(&configuration))?;
        }
        // What nobody has taken, as of a stream that is kept aside, is kept as it is.
        for record in self.consumers.get(&id).cloned().unwrap_or_default() {
            self.stage(id, &LogRecord::Consumers(&record))?;
        }
        self.stage(id, &LogRecord::Purge { before, last })?;
        Ok(())
    }

    /// Does a part of all upkeep.
    pub(super) fn keep_up(&mut self) {
        if !self.is_ready() || self.wal.is_read_only() {
            return;
        }
        self.bury();
        self.go_on_with_checkpoint();
        // A checkpoint alone frees what is dead at the front.
        let dead = self.wal.tail_mut().dead_bytes();
        let (used, live) = self.wal.tail().used_bytes();
        if used.saturating_sub(dead) > 2 * live + FILES_SLACK * self.wal.file_bytes() {
            self.move_oldest();
        }
    }

    /// Counts removed messages of purged streams as such.
    fn bury(&mut self) {
        for _ in 0..BURIED_CHUNKS {
            let Some(grave) = self.graves.front_mut() else { return };
            match grave.take_places() {
                Some(places) => free_all(&mut self.wal, &places),
                None => drop(self.graves.pop_front()),
            }
        }
    }

    /// Writes the oldest messages once more.
    fn move_oldest(&mut self) {
        let mut moved = 0;
        while moved < MOVED_BYTES && self.wal.tail().staged_bytes() < STAGED_BYTES_MAX / 2 {
            let first = self.wal.tail_mut().first_live();
            if first > self.wal.committed() {
                return;
            }
            let Some((number, place, body)) = self.wal.tail().batch_from(first) else { return };
            let Some(body) = body.map(Rc::clone) else { return self.wal.load(number) };
            moved += body.len();
            for (at, decoded) in Records::of(&body) {
                let from = place.plus(at);
                let LogRecord::Message(message) = decoded.record else { continue };
                let stream = self.streams.get(&decoded.stream);
                let there = stream.and_then(|stream| stream.index.peek(message.sequence));
                if there != Some(from) {
                    continue;
                }
                let Ok(staged) = self.stage(decoded.stream, &decoded.record) else { return };
                if let Some(stream) = self.streams.get_mut(&decoded.stream) {
                    stream.index.move_to(message.sequence, from, staged.place);
                }
                self.wal.tail_mut().remove_live(from, message.charged_bytes());
                self.moved += 1;
            }
        }
    }

    /// Takes what is left of a batch that cannot be read. Returns the number of its other messages,
    /// which are lost.
    pub(super) fn lose_unreadable(&mut self, number: u64) -> u64 {
        let mut lost = Vec::new();
        for (id, stream) in self.streams.iter().filter(|(_, stream)| stream.memory.is_none()) {
            let places = stream.index.places();
            let of_it = places.filter(|(_, place, _)| {
                let is_of_it = self.wal.tail().batch_of(*place) == Some(number);
                is_of_it && matches!(self.wal.read(*place), Read::None)
            });
            lost.extend(of_it.map(|(sequence, place, charged)| (*id, sequence, place, charged)));
        }
        let count = lost.len() as u64;
        for (id, sequence, place, charged) in lost {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.index.lose(sequence);
                self.wal.tail_mut().remove_live(place, charged);
            }
        }
        count
    }

    /// Frees what a purge has removed.
    pub(super) fn free_purged(&mut self, id: StreamId, purged: Purged) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.memory.is_some() {
            stream.free_purged(&purged);
        } else {
            free_all(&mut self.wal, &purged.places);
            self.free_later(purged.all);
        }
    }

    /// Frees the messages of a stream that has none left.
    pub(super) fn free_later(&mut self, entries: Entries) {
        if !entries.is_empty() {
            self.graves.push_back(entries);
        }
    }

    /// Frees the messages of a stream that was removed.
    pub(super) fn free_stream(&mut self, stream: LoggedStream) {
        if stream.memory.is_none() {
            self.free_later(stream.index.into_entries());
        }
    }
}

fn free_all(wal: &mut Wal, places: &[(RecordPlace, u64)]) {
    for (place, charged) in places {
        wal.tail_mut().remove_live(*place, *charged);
    }
}
