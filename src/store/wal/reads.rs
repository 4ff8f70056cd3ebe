//! Reads of batches that are not in memory: one at a time, with those behind it.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::super::recovery::salvage;
use super::super::tail::{ColdBatch, Tail};
use super::files::LogFiles;
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, OpenAs, PAGE_BYTES};
use crate::record::batch::{BATCH_HEADER_BYTES, BatchHeader, pages_for};
use crate::record::checksum::LogKey;

/// Bytes that are read at a time, if a batch is not longer.
const READ_BYTES: usize = 256 << 10;
/// Batches that are asked for and wait.
const WANTED_MAX: usize = 64;
/// Files that are open for reads.
const OPEN_MAX: usize = 8;
/// Attempts at one read, at once.
const TRIES_MAX: u32 = 3;
/// Reads of one batch that fail, each after [`Reads::again`], before it is taken for damaged. With
/// one each second: five minutes, in which another path to the disk is found, or files come free.
const FAILURES_MAX: u32 = 300;

/// Reads of one log.
#[derive(Debug)]
pub(super) struct Reads {
    token: u64,
    wanted: VecDeque<u64>,
    job: Option<ReadJob>,
    /// Batches whose last read failed, [`WANTED_MAX`] at most: others are asked for once more.
    failed: Vec<FailedRead>,
    /// Files that are open, the last used one at the end.
    open: VecDeque<u32>,
    /// The block for reads, while no operation has it.
    block: Block,
}

#[derive(Debug)]
struct ReadJob {
    /// Batches behind one another in one file.
    batches: Vec<ColdBatch>,
    is_opening: bool,
    tries: u32,
}

#[derive(Debug)]
struct FailedRead {
    number: u64,
    failures: u32,
    /// Whether it waits for [`Reads::again`].
    waits: bool,
}

/// The end of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// Not the end: the read goes on.
    NotYet,
    /// Batches are in memory.
    Loaded,
    /// This batch cannot be read now, for the so-manieth time.
    Failed { number: u64, error: io::ErrorKind, failures: u32 },
    /// This batch is in memory, with what is left of it.
    Damaged(u64),
}

impl ReadJob {
    fn file(&self) -> u32 {
        self.batches.first().map_or(0, |batch| batch.home.file)
    }

    fn bytes(&self) -> usize {
        let pages: u32 = self.batches.iter().map(|batch| pages_for(batch.bytes)).sum();
        pages as usize * PAGE_BYTES
    }
}

impl Reads {
    pub(super) fn new(token: u64) -> Self {
        let (wanted, open) = (VecDeque::new(), VecDeque::new());
        Self { token, wanted, job: None, failed: Vec::new(), open, block: Block::default() }
    }

    /// Asks for a batch. Over so many it is not asked for: there will be a next time.
    pub(super) fn ask(&mut self, number: u64) {
        let job = self.job.as_ref().map_or(&[][..], |job| &job.batches);
        let is_asked = job.iter().any(|batch| batch.number == number)
            || self.failed.iter().any(|failed| failed.number == number && failed.waits);
        if !is_asked && self.wanted.len() < WANTED_MAX && !self.wanted.contains(&number) {
            self.wanted.push_back(number);
        }
    }

    /// Asks once more for what could not be read.
    pub(super) fn again(&mut self) {
        for failed in &mut self.failed {
            if std::mem::take(&mut failed.waits) && !self.wanted.contains(&failed.number) {
                self.wanted.push_back(failed.number);
            }
        }
    }

    /// Begins the next read, if none is under way.
    pub(super) fn begin(&mut self, tail: &Tail, files: &LogFiles, ops: &mut VecDeque<DiskOp>) {
        while self.job.is_none() {
            let Some(number) = self.wanted.pop_front() else { return };
            let batches = tail.cold_from(number, READ_BYTES);
            if batches.is_empty() {
                // It is there, or nobody needs it any more.
                self.failed.retain(|failed| failed.number != number);
                continue;
            }
            self.job = Some(ReadJob { batches, is_opening: false, tries: 0 });
            self.step(files, ops);
        }
    }

    /// Queues the next operation of the read.
    fn step(&mut self, files: &LogFiles, ops: &mut VecDeque<DiskOp>) {
        let Some(job) = &mut self.job else { return };
        let number = job.file();
        let file = files.reader_id(number);
        if let Some(at) = self.open.iter().position(|open| *open == number) {
            self.open.remove(at);
            self.open.push_back(number);
            let mut block = std::mem::take(&mut self.block);
            let bytes = job.bytes();
            if block.len() < bytes {
                block = Block::zeroed(bytes);
            }
            let page = job.batches.first().map_or(0, |batch| batch.home.page);
            let at = u64::from(page) * PAGE_BYTES as u64;
            ops.push_back(DiskOp {
                token: self.token,
                what: DiskWork::Read { file, at, block, bytes },
            });
            return;
        }
        if self.open.len() >= OPEN_MAX
            && let Some(old) = self.open.pop_front()
        {
            files.close_reader(old, ops);
        }
        job.is_opening = true;
        let what = DiskWork::Open { file, path: files.path(number), how: OpenAs::Reader };
        ops.push_back(DiskOp { token: self.token, what });
    }

    /// Takes the end of an operation of a read.
    pub(super) fn on_done(
        &mut self,
        done: DiskDone,
        tail: &mut Tail,
        key: LogKey,
        files: &LogFiles,
        ops: &mut VecDeque<DiskOp>,
    ) -> ReadEnd {
        let Some(mut job) = self.job.take() else { return ReadEnd::NotYet };
        let block = done.block.unwrap_or_default();
        let was_opening = std::mem::take(&mut job.is_opening);
        let end = match done.outcome {
            Ok(_) if was_opening => {
                self.open.push_back(job.file());
                None
            }
            Ok(bytes) => {
                let image = block.bytes().get(..bytes).unwrap_or_default();
                self.on_read(&mut job, image, tail, key)
            }
            Err(error) => self.on_failure(&mut job, error.kind(), tail),
        };
        if block.len() <= READ_BYTES {
            self.block = block;
        }
        if let Some(end) = end {
            return end;
        }
        self.job = Some(job);
        self.step(files, ops);
        ReadEnd::NotYet
    }

    fn on_read(
        &mut self,
        job: &mut ReadJob,
        image: &[u8],
        tail: &mut Tail,
        key: LogKey,
    ) -> Option<ReadEnd> {
        let mut at = 0;
        let mut first_is_whole = false;
        tail.pin(job.batches.first().map_or(0, |batch| batch.number));
        for (number, batch) in job.batches.iter().enumerate() {
            let body = body_of(image.get(at..).unwrap_or_default(), batch, key);
            first_is_whole |= number == 0 && body.is_some();
            if let Some(body) = body {
                tail.fill(batch.number, Rc::new(body.to_vec()));
            }
            at += pages_for(batch.bytes) as usize * PAGE_BYTES;
        }
        let batch = *job.batches.first()?;
        if first_is_whole {
            self.failed.retain(|failed| failed.number != batch.number);
            return Some(ReadEnd::Loaded);
        }
        job.tries += 1;
        if job.tries < TRIES_MAX {
            return None;
        }
        let there = image.get(BATCH_HEADER_BYTES..).unwrap_or_default();
        let there = &there[..there.len().min(batch.bytes as usize)];
        let mut body = vec![0; batch.bytes as usize];
        for (at, record) in salvage(there, key.for_records(batch.number)) {
            body[at..at + record.len()].copy_from_slice(record);
        }
        Some(self.give_up(batch, body, tail))
    }

    /// A read has failed: the disk does not say what is there, which is no damage yet.
    fn on_failure(
        &mut self,
        job: &mut ReadJob,
        error: io::ErrorKind,
        tail: &mut Tail,
    ) -> Option<ReadEnd> {
        // What is behind may be what cannot be read.
        job.batches.truncate(1);
        job.tries += 1;
        if job.tries < TRIES_MAX {
            return None;
        }
        let batch = *job.batches.first()?;
        let failures = self.note_failure(batch.number);
        if failures < FAILURES_MAX {
            return Some(ReadEnd::Failed { number: batch.number, error, failures });
        }
        tail.pin(batch.number);
        Some(self.give_up(batch, vec![0; batch.bytes as usize], tail))
    }

    /// Returns the number of failures of this batch until now.
    fn note_failure(&mut self, number: u64) -> u32 {
        if let Some(failed) = self.failed.iter_mut().find(|failed| failed.number == number) {
            failed.failures += 1;
            failed.waits = true;
            return failed.failures;
        }
        if self.failed.len() < WANTED_MAX {
            self.failed.push(FailedRead { number, failures: 1, waits: true });
        }
        1
    }

    /// Goes on with what is left of a batch.
    fn give_up(&mut self, batch: ColdBatch, left: Vec<u8>, tail: &mut Tail) -> ReadEnd {
        self.failed.retain(|failed| failed.number != batch.number);
        tail.fill(batch.number, Rc::new(left));
        ReadEnd::Damaged(batch.number)
    }
}

/// Returns the records of a batch, if they are as they were written.
fn body_of<'a>(image: &'a [u8], batch: &ColdBatch, key: LogKey) -> Option<&'a [u8]> {
    let header = BatchHeader::decode(key, image)?;
    let body = image.get(BATCH_HEADER_BYTES..)?.get(..batch.bytes as usize)?;
    let is_it =
        (header.number, header.place, header.body_bytes) == (batch.number, batch.home, batch.bytes);
    (is_it && header.check(key, body).is_ok()).then_some(body)
}
