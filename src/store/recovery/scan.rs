//! The content of one file of a log: batches, whole or not, and the bytes between them.

use std::rc::Rc;

use super::super::wal::STAGED_BYTES_MAX;
use crate::disk::PAGE_BYTES;
use crate::output::Segment;
use crate::record::batch::{BATCH_HEADER_BYTES, BatchHeader, BatchPlace};
use crate::record::checksum::LogKey;

/// Pages that are looked at behind the last batch of a file: as many as a usual batch has.
const PAGES_BEHIND: usize = 2 * STAGED_BYTES_MAX / PAGE_BYTES;

const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A batch with a header that was found.
#[derive(Debug, Clone)]
pub(super) struct FoundBatch {
    pub(super) header: BatchHeader,
    pub(super) body: FoundBody,
}

#[derive(Debug, Clone)]
pub(super) enum FoundBody {
    /// All records, as they were written; `None` if they were forgotten.
    Whole(Option<Segment>),
    /// The bytes there are in their place.
    Damaged(Vec<u8>),
}

/// The batches of a file that were written under its last generation.
#[derive(Debug, Default)]
pub(super) struct FileScan {
    pub(super) file: u32,
    pub(super) generation: u64,
    pub(super) batches: Vec<FoundBatch>,
    /// The bytes of pages that belong to no batch, before, between and behind them.
    pub(super) gaps: Vec<Vec<u8>>,
    /// The number of such pages, with those that are zeroes.
    pub(super) gap_pages: usize,
    /// Bytes of the records that are in memory.
    pub(super) body_bytes: usize,
    /// The last batch of those that were dropped.
    pub(super) released: Option<BatchHeader>,
    /// The page behind the last batch.
    pub(super) end: u32,
    /// The highest number of a batch; 0 if there is none.
    pub(super) last: u64,
    /// The first batch that was needed when the last one was written.
    pub(super) floor: u64,
}

impl FileScan {
    pub(super) fn gap_bytes(&self) -> usize {
        self.gaps.iter().map(Vec::len).sum()
    }

    /// Drops the batches before this one.
    pub(super) fn release(&mut self, floor: u64) {
        let released = self.batches.iter().map(|batch| batch.header);
        let released = released.filter(|header| header.number < floor);
        self.released = released.chain(self.released).max_by_key(|header| header.number);
        self.batches.retain(|batch| batch.header.number >= floor);
        let bodies = self.batches.iter().filter_map(|batch| batch.whole());
        self.body_bytes = bodies.map(|body| body.len()).sum();
    }

    /// Forgets records of the first batches, so many bytes or more, but for those of the `last`
    /// one of all. Returns the bytes.
    pub(super) fn forget_bodies(&mut self, bytes: usize, last: u64) -> usize {
        let before = self.body_bytes;
        for batch in &mut self.batches {
            if before - self.body_bytes >= bytes || self.body_bytes == 0 {
                break;
            }
            if batch.header.number != last {
                self.body_bytes -= batch.forget_body();
            }
        }
        before - self.body_bytes
    }
}

impl FoundBatch {
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.body, FoundBody::Whole(_))
    }

    /// Returns the records of the batch, if they are as they were written, and in memory.
    pub(super) fn whole(&self) -> Option<&Segment> {
        match &self.body {
            FoundBody::Whole(body) => body.as_ref(),
            FoundBody::Damaged(_) => None,
        }
    }

    /// Forgets the records of a whole batch. Returns their bytes.
    fn forget_body(&mut self) -> usize {
        match &mut self.body {
            FoundBody::Whole(body) => body.take().map_or(0, |body| body.len()),
            FoundBody::Damaged(_) => 0,
        }
    }

    fn pages(&self) -> std::ops::Range<usize> {
        let first = self.header.place.page as usize;
        first..first.saturating_add(self.header.pages() as usize)
    }
}

/// Whether any page begins as a batch of any log does.
pub(super) fn has_batches(image: &[u8]) -> bool {
    image.chunks(PAGE_BYTES).any(BatchHeader::looks_like_one)
}

/// Looks through all of a file.
pub(super) fn scan(image: &[u8], file: u32, key: LogKey) -> FileScan {
    let pages = image.len() / PAGE_BYTES;
    let (mut batches, mut page) = (Vec::new(), 1);
    while page < pages {
        let found = batch_at(image, page, file, key);
        // Behind the beginning of a batch that is not whole there may be others that are newer.
        page = match &found {
            Some(batch) if batch.is_whole() => batch.pages().end,
            _ => page + 1,
        };
        batches.extend(found);
    }
    let generation = batches.iter().map(|batch| batch.header.generation).max().unwrap_or(0);
    batches.retain(|batch| batch.header.generation == generation);
    let (gaps, gap_pages, end) = gaps(image, &batches);
    let headers = || batches.iter().map(|batch| batch.header);
    FileScan {
        file,
        generation,
        gaps,
        gap_pages,
        body_bytes: batches.iter().filter_map(|batch| batch.whole()).map(|body| body.len()).sum(),
        released: None,
        end: u32::try_from(end).unwrap_or(u32::MAX),
        last: headers().map(|header| header.number).max().unwrap_or(0),
        floor: headers().map(|header| header.floor).max().unwrap_or(0),
        batches,
    }
}

fn batch_at(image: &[u8], page: usize, file: u32, key: LogKey) -> Option<FoundBatch> {
    let bytes = image.get(page * PAGE_BYTES..)?;
    let header = BatchHeader::decode(key, bytes)?;
    let BatchPlace { file: in_file, page: on_page } = header.place;
    if in_file != file || on_page as usize != page || header.number == 0 {
        return None;
    }
    let there = &bytes[BATCH_HEADER_BYTES..];
    let body = &there[..there.len().min(header.body_bytes as usize)];
    let is_whole = body.len() == header.body_bytes as usize && header.check(key, body).is_ok();
    let body = match is_whole {
        true => FoundBody::Whole(Some(Rc::new(body.to_vec()))),
        false => FoundBody::Damaged(body.to_vec()),
    };
    Some(FoundBatch { header, body })
}

/// Returns the pages that are part of none of these batches, but for those that are zero, the
/// number of all such pages, and the page behind the last batch.
fn gaps(image: &[u8], batches: &[FoundBatch]) -> (Vec<Vec<u8>>, usize, usize) {
    let pages = image.len() / PAGE_BYTES;
    let (mut gaps, mut count, mut end) = (Vec::new(), 0, 1);
    let mut take = |range: std::ops::Range<usize>| {
        let range = range.start..range.end.min(pages);
        count += range.len();
        let range = range.start * PAGE_BYTES..range.end * PAGE_BYTES;
        let bytes = image.get(range).unwrap_or_default();
        if bytes.chunks(PAGE_BYTES).any(|page| page != ZEROES) {
            gaps.push(bytes.to_vec());
        }
    };
    for batch in batches {
        take(end..batch.pages().start);
        end = end.max(batch.pages().end);
    }
    take(end..end.saturating_add(PAGES_BEHIND));
    (gaps, count, end)
}
