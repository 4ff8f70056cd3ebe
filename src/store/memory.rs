//! The messages of a stream in memory: records behind one another in chunks, which are freed and
//! copied as their messages are removed.
//!
//! A chunk of which less than half is alive is copied to the end, so that a stream takes no more
//! than about twice the bytes of its messages.

use std::collections::VecDeque;
use std::rc::Rc;

use super::tail::{RecordAt, RecordPlace, RecordSource, place, position_of};
use crate::output::Segment;
use crate::record::checksum::LogKey;
use crate::record::record::{LogRecord, RECORD_ALIGNMENT, StreamId, TooLong};

/// Bytes from which on a chunk takes no more records.
const CHUNK_BYTES: usize = 256 << 10;

/// Records that no publisher could be mistaken for are not looked for in memory.
const KEY: LogKey = LogKey(0);

/// Records of one stream in memory.
#[derive(Debug, Default)]
pub(super) struct MemoryLog {
    /// Chunks that take no more records, by their positions.
    chunks: VecDeque<MemoryChunk>,
    open: Vec<u8>,
    /// Position at which the open chunk begins.
    start: u64,
    /// Bytes of records in the open chunk that are alive.
    open_live: usize,
}

#[derive(Debug)]
struct MemoryChunk {
    start: u64,
    body: Segment,
    /// Bytes of records that are alive.
    live: usize,
}

/// A chunk that was taken out, since little of it is alive.
#[derive(Debug)]
pub(super) struct SparseChunk {
    /// Place of the first record.
    pub(super) first: RecordPlace,
    pub(super) body: Segment,
}

impl MemoryLog {
    /// Adds a record.
    pub(super) fn push(
        &mut self,
        stream: StreamId,
        record: &LogRecord<'_>,
    ) -> Result<RecordPlace, TooLong> {
        let at = self.open.len();
        record.encode(stream, KEY.for_records(1), &mut self.open)?;
        self.open_live += self.open.len() - at;
        let place = place(self.start + at as u64);
        if self.open.len() >= CHUNK_BYTES {
            self.seal();
        }
        Ok(place)
    }

    fn seal(&mut self) {
        let mut bytes = std::mem::take(&mut self.open);
        bytes.shrink_to_fit();
        let (start, live) = (self.start, std::mem::take(&mut self.open_live));
        self.start += bytes.len() as u64;
        self.chunks.push_back(MemoryChunk { start, body: Rc::new(bytes), live });
    }

    /// Frees a record. Returns its chunk if the records that are alive in it are to be moved.
    pub(super) fn free(&mut self, place: RecordPlace) -> Option<SparseChunk> {
        let bytes = self.get(place)?.decoded.used;
        let position = self.position(place);
        if position >= self.start {
            self.open_live -= bytes;
            if self.open_live == 0 {
                self.start += self.open.len() as u64;
                self.open = Vec::new();
            }
            return None;
        }
        let at = self.chunk_of(position)?;
        let chunk = self.chunks.get_mut(at)?;
        chunk.live -= bytes;
        if chunk.live > chunk.body.len() / 2 {
            return None;
        }
        let MemoryChunk { start, body, live } = self.chunks.remove(at)?;
        (live > 0).then(|| SparseChunk { first: self::place(start), body })
    }

    /// Frees all records.
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.start += self.open.len() as u64;
        (self.open, self.open_live) = (Vec::new(), 0);
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.body.len()).sum::<usize>() + self.open.capacity()
    }

    fn chunk_of(&self, position: u64) -> Option<usize> {
        self.chunks.partition_point(|chunk| chunk.start <= position).checked_sub(1)
    }

    fn position(&self, place: RecordPlace) -> u64 {
        position_of(place, self.start + self.open.len() as u64)
    }
}

impl RecordSource for MemoryLog {
    fn get(&self, place: RecordPlace) -> Option<RecordAt<'_>> {
        let position = self.position(place);
        let (segment, start, body) = if position >= self.start {
            (None, self.start, &self.open[..])
        } else {
            let chunk = self.chunks.get(self.chunk_of(position)?)?;
            (Some(&chunk.body), chunk.start, &chunk.body[..])
        };
        let at = usize::try_from(position - start).ok()?;
        let decoded = LogRecord::view(body.get(at..)?).ok()?;
        Some(RecordAt { segment, at, decoded })
    }
}

const _: () = assert!(CHUNK_BYTES.is_multiple_of(RECORD_ALIGNMENT));

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(1);

    fn push(log: &mut MemoryLog, number: u64) -> RecordPlace {
        log.push(STREAM, &LogRecord::Configuration(&number.to_le_bytes().repeat(64))).unwrap()
    }

    fn number_at(log: &MemoryLog, place: RecordPlace) -> Option<u64> {
        match log.get(place)?.decoded.record {
            LogRecord::Configuration(bytes) => {
                Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
            }
            _ => None,
        }
    }

    #[test]
    fn memory_comes_free_with_the_records_and_what_is_left_of_a_chunk_is_to_be_moved() {
        let mut log = MemoryLog::default();
        let places: Vec<_> = (0..2000).map(|number| push(&mut log, number)).collect();
        let full = log.bytes();
        assert!(full >= 2000 * 528);
        let mut moved = 0;
        for (number, place) in (0..2000).zip(&places).filter(|(number, _)| number % 4 != 0) {
            assert!(number_at(&log, *place).is_none_or(|found| found == number));
            if number_at(&log, *place).is_some() {
                moved += usize::from(log.free(*place).is_some());
            }
        }
        assert!(moved >= 3, "{moved} chunks");
        assert!(log.bytes() < full / 2, "{} bytes", log.bytes());
        log.clear();
        assert_eq!(log.bytes(), 0);
        let place = push(&mut log, 7);
        assert_eq!(number_at(&log, place), Some(7));
        assert!(places.iter().all(|place| number_at(&log, *place).is_none()));
        assert!(log.free(place).is_none());
        assert_eq!(log.bytes(), 0);
    }
}
