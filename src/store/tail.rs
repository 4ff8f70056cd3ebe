//! The records of a log by their places: staged ones, and committed ones that are in memory or only
//! on the disk.
//!
//! Batches stay in memory while there is room for them; of those that are on the disk the ones that
//! nobody has read for a while go first. What was read from the disk has its place among the
//! others.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::disk::PAGE_BYTES;
use crate::output::Segment;
use crate::record::batch::{BatchBody, BatchPlace, pages_for};
use crate::record::checksum::LogKey;
use crate::record::record::{Decoded, LogRecord, RECORD_ALIGNMENT, StreamId, TooLong};

/// The place of a record among those of a log: a number of eight bytes each, which goes round after
/// 2 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordPlace(pub(super) u64);

/// Bits of a place.
const PLACE_BITS: u32 = 38;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Bytes that are allocated at once for a batch, at most: as many as the one before had, if that
/// is less.
const EXPECTED_BYTES_MAX: usize = 1 << 20;

/// A record in the tail.
#[derive(Debug, Clone, Copy)]
pub struct RecordAt<'a> {
    /// The records of the batch; `None` while it is staged.
    pub segment: Option<&'a Segment>,
    /// The byte at which the record begins among them.
    pub at: usize,
    /// The record itself.
    pub decoded: Decoded<'a>,
}

/// Records that can be read by their places.
pub(super) trait RecordSource {
    /// Returns the record at a place; `None` if it is not there any more.
    fn get(&self, place: RecordPlace) -> Option<RecordAt<'_>>;
}

/// A record that is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Read<'a> {
    /// The record.
    Now(RecordAt<'a>),
    /// A record that is on the disk, and not in memory.
    Cold,
    /// No record, for it is gone or lost.
    None,
}

/// Records of a log by their places.
#[derive(Debug)]
pub(super) struct Tail {
    key: LogKey,
    batches: VecDeque<TailBatch>,
    /// Bytes of the batches that are in memory.
    bytes: usize,
    /// Bytes from which on batches that are on the disk leave memory.
    bytes_max: usize,
    /// Numbers of the batches in memory, in the order in which they came.
    resident: VecDeque<u64>,
    /// The batch that was read last, which stays.
    pinned: u64,
    staged: BatchBody,
    /// Records of messages that are alive in the staged batch.
    staged_live: u32,
    /// The number of the staged batch.
    number: u64,
    /// Position at which the staged batch begins.
    start: u64,
    /// Pages of all batches.
    pages: u64,
    /// Bytes of the messages that are alive, as limits count them.
    live_bytes: u64,
    /// Batches at the front, known to have no message that is alive, and their pages.
    dead: (usize, u64),
}

#[derive(Debug)]
struct TailBatch {
    number: u64,
    start: u64,
    bytes: u32,
    /// Records of messages that are alive.
    live: u32,
    /// The place on the disk, once the batch is there as a whole.
    home: Option<BatchPlace>,
    body: Option<Segment>,
    /// Whether it was read since it last might have left memory.
    is_used: Cell<bool>,
}

/// A batch that takes no more records.
#[derive(Debug, Clone)]
pub(super) struct SealedBatch {
    pub(super) number: u64,
    pub(super) body: Segment,
    pub(super) records: u32,
    pub(super) checksum: u32,
}

/// A batch that is on the disk, and not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColdBatch {
    pub(super) number: u64,
    pub(super) home: BatchPlace,
    /// Bytes of the records.
    pub(super) bytes: u32,
}

impl Tail {
    /// An empty tail; the next batch will have this number. Over `bytes_max` bytes of records,
    /// batches that are on the disk leave memory.
    pub(super) fn new(key: LogKey, number: u64, bytes_max: usize) -> Self {
        Self {
            key,
            batches: VecDeque::new(),
            bytes: 0,
            bytes_max,
            resident: VecDeque::new(),
            pinned: 0,
            staged: BatchBody::new(key, number),
            staged_live: 0,
            number,
            start: 0,
            pages: 0,
            live_bytes: 0,
            dead: (0, 0),
        }
    }

    /// Appends a batch that is in the log already.
    pub(super) fn push(&mut self, number: u64, home: Option<BatchPlace>, body: Segment) {
        self.push_batch(number, home, u32::try_from(body.len()).unwrap_or(u32::MAX), 0);
        self.fill(number, body);
    }

    /// Appends a batch that is in the log already, and not in memory.
    pub(super) fn push_cold(&mut self, cold: ColdBatch) {
        self.push_batch(cold.number, Some(cold.home), cold.bytes, 0);
    }

    fn push_batch(&mut self, number: u64, home: Option<BatchPlace>, bytes: u32, live: u32) {
        let (start, is_used) = (self.start, Cell::new(false));
        self.start += u64::from(bytes);
        self.pages += u64::from(pages_for(bytes));
        self.batches.push_back(TailBatch { number, start, bytes, live, home, body: None, is_used });
    }

    /// Takes the records of a batch that was not in memory.
    pub(super) fn fill(&mut self, number: u64, body: Segment) {
        let Some(batch) = self.batch_mut(number) else { return };
        if batch.body.is_some() || body.len() != batch.bytes as usize {
            return;
        }
        let bytes = body.len();
        batch.body = Some(body);
        self.bytes += bytes;
        self.resident.push_back(number);
        self.evict();
    }

    /// Keeps a batch in memory until another one is kept.
    pub(super) fn pin(&mut self, number: u64) {
        self.pinned = number;
    }

    /// Lets batches leave memory that are on the disk, while there are too many.
    fn evict(&mut self) {
        let pinned = self.pinned;
        for _ in 0..2 * self.resident.len() {
            if self.bytes <= self.bytes_max {
                return;
            }
            let Some(number) = self.resident.pop_front() else { return };
            let Some(batch) = self.batch_mut(number) else { continue };
            if batch.home.is_none() || number == pinned || batch.is_used.take() {
                self.resident.push_back(number);
                continue;
            }
            let freed = batch.body.take().map_or(0, |body| body.len());
            self.bytes -= freed;
        }
    }

    fn at(&self, number: u64) -> Option<usize> {
        let at = self.batches.partition_point(|batch| batch.number < number);
        self.batches.get(at).filter(|batch| batch.number == number).map(|_| at)
    }

    fn batch_mut(&mut self, number: u64) -> Option<&mut TailBatch> {
        let at = self.at(number)?;
        self.batches.get_mut(at)
    }

    /// A batch is on the disk as a whole, at this place.
    pub(super) fn settle(&mut self, number: u64, home: BatchPlace) {
        if let Some(batch) = self.batch_mut(number) {
            batch.home = Some(home);
        }
        self.evict();
    }

    /// Returns the batches in memory, in their order, and the places of their records.
    pub(super) fn batches(&self) -> impl Iterator<Item = (u64, RecordPlace, &Segment)> {
        let in_memory = |batch: &TailBatch| batch.body.is_some();
        let batches = self.batches.iter().filter(move |batch| in_memory(batch));
        batches.filter_map(|batch| Some((batch.number, place(batch.start), batch.body.as_ref()?)))
    }

    /// The number of the last batch.
    pub(super) fn last(&self) -> Option<u64> {
        self.batches.back().map(|batch| batch.number)
    }

    /// The first batch from this number on: its number, the place of its first record, and all its
    /// records if they are in memory.
    pub(super) fn batch_from(&self, number: u64) -> Option<(u64, RecordPlace, Option<&Segment>)> {
        let at = self.batches.partition_point(|batch| batch.number < number);
        let batch = self.batches.get(at)?;
        Some((batch.number, place(batch.start), batch.body.as_ref()))
    }

    /// Returns batches behind one another on the disk that are not in memory, from this one on:
    /// the first one, and further ones of up to `bytes_max` bytes in all.
    pub(super) fn cold_from(&self, number: u64, bytes_max: usize) -> Vec<ColdBatch> {
        let mut found: Vec<ColdBatch> = Vec::new();
        let mut end = 0;
        let Some(at) = self.at(number) else { return found };
        for batch in self.batches.range(at..) {
            let Some(home) = batch.home.filter(|_| batch.body.is_none()) else { break };
            let pages = pages_for(batch.bytes);
            if let Some(first) = found.first()
                && (home.file != first.home.file
                    || home.page != end
                    || (home.page + pages - first.home.page) as usize * PAGE_BYTES > bytes_max)
            {
                break;
            }
            end = home.page + pages;
            found.push(ColdBatch { number: batch.number, home, bytes: batch.bytes });
        }
        found
    }

    pub(super) fn stage(
        &mut self,
        stream: StreamId,
        record: &LogRecord<'_>,
    ) -> Result<RecordPlace, TooLong> {
        let at = self.staged.push(stream, record)?;
        if let LogRecord::Message(message) = record {
            self.staged_live += 1;
            self.live_bytes += message.charged_bytes();
        }
        Ok(place(self.start + at as u64))
    }

    /// The number of the batch that is being staged.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of records that are staged.
    pub(super) fn staged_bytes(&self) -> usize {
        self.staged.bytes().len()
    }

    /// Ends the staged batch, and begins the next.
    pub(super) fn seal(&mut self) -> SealedBatch {
        let number = self.number;
        self.number += 1;
        let expected = self.staged_bytes().min(EXPECTED_BYTES_MAX);
        let next = BatchBody::expecting(expected, self.key, self.number);
        let staged = std::mem::replace(&mut self.staged, next);
        let (records, checksum) = (staged.records(), staged.checksum());
        let body = Rc::new(staged.into_bytes());
        let live = std::mem::take(&mut self.staged_live);
        if !body.is_empty() {
            let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
            self.push_batch(number, None, bytes, live);
            self.fill(number, Rc::clone(&body));
        }
        SealedBatch { number, body, records, checksum }
    }

    /// Drops the batches before this one.
    pub(super) fn release(&mut self, before: u64) {
        while let Some(batch) = self.batches.front().filter(|batch| batch.number < before) {
            let pages = u64::from(pages_for(batch.bytes));
            self.bytes -= batch.body.as_ref().map_or(0, |body| body.len());
            self.pages -= pages;
            if self.dead.0 > 0 {
                self.dead = (self.dead.0 - 1, self.dead.1 - pages);
            }
            self.batches.pop_front();
        }
        if self.resident.len() > 2 * self.batches.len() + 64 {
            let (resident, batches) = (&mut self.resident, &self.batches);
            let first = batches.front().map_or(u64::MAX, |batch| batch.number);
            resident.retain(|number| *number >= first);
        }
    }

    /// The message at a place is alive, which counts `charged` bytes. Batches that were read from
    /// the disk have none before.
    pub(super) fn add_live(&mut self, place: RecordPlace, charged: u64) {
        self.live_bytes += charged;
        if let Some(live) = self.live_mut(place) {
            *live += 1;
        }
    }

    /// The message at a place is alive no more.
    pub(super) fn remove_live(&mut self, place: RecordPlace, charged: u64) {
        self.live_bytes = self.live_bytes.saturating_sub(charged);
        if let Some(live) = self.live_mut(place) {
            *live = live.saturating_sub(1);
        }
    }

    /// Bytes on the disk from the first batch on, and bytes of the messages that are alive.
    pub(super) fn used_bytes(&self) -> (u64, u64) {
        (self.pages * PAGE_BYTES as u64, self.live_bytes)
    }

    /// Bytes on the disk before the first batch with a message that is alive.
    pub(super) fn dead_bytes(&mut self) -> u64 {
        while let Some(batch) = self.batches.get(self.dead.0).filter(|batch| batch.live == 0) {
            self.dead = (self.dead.0 + 1, self.dead.1 + u64::from(pages_for(batch.bytes)));
        }
        self.dead.1 * PAGE_BYTES as u64
    }

    fn live_mut(&mut self, place: RecordPlace) -> Option<&mut u32> {
        let position = self.position(place);
        if position >= self.start {
            return Some(&mut self.staged_live);
        }
        let behind = self.batches.partition_point(|batch| batch.start <= position);
        Some(&mut self.batches.get_mut(behind.checked_sub(1)?)?.live)
    }

    /// The first batch with a message that is alive, or the staged one.
    pub(super) fn first_live(&mut self) -> u64 {
        self.dead_bytes();
        self.batches.get(self.dead.0).map_or(self.number, |batch| batch.number)
    }

    /// Reads the record at a place.
    pub(super) fn read(&self, place: RecordPlace) -> Read<'_> {
        match self.batch_at(place) {
            Some(batch) if batch.body.is_none() => Read::Cold,
            _ => self.get(place).map_or(Read::None, Read::Now),
        }
    }

    /// The batch of a record, if it is not the staged one.
    fn batch_at(&self, place: RecordPlace) -> Option<&TailBatch> {
        let position = self.position(place);
        if position >= self.start {
            return None;
        }
        let behind = self.batches.partition_point(|batch| batch.start <= position);
        self.batches.get(behind.checked_sub(1)?)
    }

    /// The number of the batch of a record.
    pub(super) fn batch_of(&self, place: RecordPlace) -> Option<u64> {
        if self.position(place) >= self.start {
            return Some(self.number);
        }
        self.batch_at(place).map(|batch| batch.number)
    }

    fn position(&self, place: RecordPlace) -> u64 {
        position_of(place, self.start + self.staged_bytes() as u64)
    }
}

impl RecordSource for Tail {
    fn get(&self, place: RecordPlace) -> Option<RecordAt<'_>> {
        let position = self.position(place);
        let (segment, start, body) = match self.batch_at(place) {
            Some(batch) => {
                batch.is_used.set(true);
                let body = batch.body.as_ref()?;
                (Some(body), batch.start, &body[..])
            }
            None if position >= self.start => (None, self.start, self.staged.bytes()),
            None => return None,
        };
        let at = usize::try_from(position - start).ok()?;
        let decoded = LogRecord::view(body.get(at..)?).ok()?;
        Some(RecordAt { segment, at, decoded })
    }
}

/// The latest position that has this place and is not behind the end.
pub(super) fn position_of(place: RecordPlace, end: u64) -> u64 {
    let end = end / RECORD_ALIGNMENT as u64;
    let back = end.wrapping_sub(place.0) & PLACE_MASK;
    end.saturating_sub(back) * RECORD_ALIGNMENT as u64
}

pub(super) fn place(position: u64) -> RecordPlace {
    RecordPlace((position / RECORD_ALIGNMENT as u64) & PLACE_MASK)
}

impl RecordPlace {
    /// The place of a record that begins so many bytes behind this one.
    pub(super) fn plus(self, bytes: usize) -> Self {
        place(self.0 * RECORD_ALIGNMENT as u64 + bytes as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(1);

    fn stage(tail: &mut Tail, number: u64) -> RecordPlace {
        tail.stage(STREAM, &LogRecord::Purge { before: 1, last: number }).unwrap()
    }

    fn last_at(tail: &Tail, place: RecordPlace) -> Option<u64> {
        match tail.get(place)?.decoded.record {
            LogRecord::Purge { last, .. } => Some(last),
            _ => None,
        }
    }

    #[test]
    fn records_are_found_while_they_are_staged_and_until_their_batch_is_released() {
        let mut tail = Tail::new(LogKey(1), 5, usize::MAX);
        let places = [stage(&mut tail, 0), stage(&mut tail, 1)];
        assert!(tail.get(places[1]).unwrap().segment.is_none());
        assert_eq!(tail.seal().number, 5);
        let later = stage(&mut tail, 2);
        assert!(tail.get(places[1]).unwrap().segment.is_some());
        assert_eq!(places.map(|place| last_at(&tail, place)), [Some(0), Some(1)]);
        assert_eq!(last_at(&tail, later), Some(2));
        assert_eq!(tail.seal().number, 6);
        tail.release(6);
        assert_eq!(places.map(|place| last_at(&tail, place)), [None, None]);
        assert_eq!(last_at(&tail, later), Some(2));
        assert_eq!(tail.bytes, 32);
    }

    #[test]
    fn places_go_round_without_being_mistaken() {
        let mut tail = Tail::new(LogKey(1), 1, usize::MAX);
        tail.start = (PLACE_MASK - 2) * RECORD_ALIGNMENT as u64;
        let places: Vec<_> = (0..4).map(|number| stage(&mut tail, number)).collect();
        assert!(places[3].0 < places[0].0);
        for sealed in [false, true] {
            for (number, place) in (0..).zip(&places) {
                assert_eq!(last_at(&tail, *place), Some(number), "sealed: {sealed}");
            }
            tail.seal();
        }
    }
}
