//! The write-ahead log of one shard: records staged in a turn become one commit.
//!
//! - A commit is one durable write of whole pages, at most one at a time, at the end of a turn;
//!   records staged meanwhile make the next one. No page that was acknowledged is written again.
//! - A failure of a write or sync is final for its file: the kernel may take for written what is
//!   not. The batch goes to a fresh file, once; if that fails, too, the log takes no more.
//! - Files are prepared beforehand. Without one, for want of space, staged records wait.
//!
//! **Numbers.** Each batch has the next number, and names the one before it that is known to be
//! durable. Batches in a gap between the two were begun and never acknowledged before a start, so
//! numbers are never used twice for different records.

mod files;
mod reads;

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::tail::{Read, RecordAt, RecordPlace, RecordSource, SealedBatch, Tail};
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, PAGE_BYTES};
use crate::output::Segment;
use crate::record::batch::{
    BATCH_HEADER_BYTES, BatchGap, BatchHeader, BatchPlace, GAPS, pages_for,
};
use crate::record::checksum::LogKey;
use crate::record::record::{LogRecord, RECORD_BYTES_MAX, StreamId};
use files::{LogFiles, Prepared, SPARES};
use reads::{ReadEnd, Reads};

pub(super) use files::{FILES_MAX, FoundFile, Tokens, file_id, file_name};

/// Length of a log's file, in bytes.
pub const FILE_BYTES: u64 = 64 << 20;
/// Bytes that wait for a commit, from which on publishers are to wait.
pub const STAGED_BYTES_MAX: usize = 4 << 20;
/// Bytes of records in memory, from which on those leave it that are on the disk.
pub const TAIL_BYTES_MAX: usize = 64 << 20;
/// Part of the active file, as a divisor, from which on further files are made ready.
const SPARES_FROM: u32 = 8;
/// Pages of a file that was only allocated, from which on commits go to one that was filled; half
/// of the file if that is less.
const PAGES_WITH_HOLES_MAX: u32 = 64;
/// Writes of a batch before the log gives up.
const ATTEMPTS_MAX: u32 = 2;
/// Bytes up to which the block of a commit is kept for the next one.
const KEPT_BLOCK_BYTES_MAX: usize = STAGED_BYTES_MAX + PAGE_BYTES;

/// The sizes of a log.
#[derive(Debug, Clone, Copy)]
pub struct LogSizes {
    /// The length of a file, in bytes: whole pages ([`FILE_BYTES`]).
    pub file_bytes: u64,
    /// Bytes of records that stay in memory, beside those that are not on the disk yet
    /// ([`TAIL_BYTES_MAX`]).
    pub memory_bytes: usize,
}

impl Default for LogSizes {
    fn default() -> Self {
        Self { file_bytes: FILE_BYTES, memory_bytes: TAIL_BYTES_MAX }
    }
}

/// The place of a log.
#[derive(Debug, Clone)]
pub struct WalSettings {
    /// The directory of the log's files, which exists.
    pub directory: Box<Path>,
    /// The length of a file: whole pages.
    pub file_bytes: u64,
    /// The first of 131,073 numbers of files that are the log's own.
    pub first_file: u32,
    /// The first of 5 names of operations that are the log's own.
    pub first_token: u64,
    /// Bytes of records that stay in memory, beside those that are not on the disk yet: usually
    /// [`TAIL_BYTES_MAX`].
    pub memory_bytes: usize,
}

/// News of a log for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalEvent {
    /// All batches up to this number are on the disk.
    Committed(u64),
    /// No file can be prepared. If commits need one they wait for [`Wal::try_again`].
    NoFile(io::ErrorKind),
    /// Records that were asked for are in memory.
    Loaded,
    /// Records of this commit cannot be read for now, for the so-manieth time: they wait for
    /// [`Wal::read_again`].
    NoRead { commit: u64, error: io::ErrorKind, failures: u32 },
    /// This batch is damaged: of its records those are left that are as they were written. `lost`
    /// are the others that streams had.
    Damaged { commit: u64, lost: u64 },
    /// Staged records cannot be written: the log takes nothing more until a restart.
    ReadOnly(io::ErrorKind),
}

/// The reason for which a record was not staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageError {
    /// No log takes a record of this length.
    TooLong,
    /// There is no room before the next commit; see [`Wal::is_full`].
    Full,
    /// The log takes nothing more.
    ReadOnly(io::ErrorKind),
}

/// The commit and the place of a staged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    /// The number of the batch with which it is committed.
    pub commit: u64,
    /// Place of the record in the tail.
    pub place: RecordPlace,
}

/// The state with which a log begins.
#[derive(Debug)]
pub(super) struct WalStart {
    pub(super) key: LogKey,
    pub(super) files: Vec<FoundFile>,
    /// The highest generation of a file.
    pub(super) generation: u64,
    /// The last batch known to be durable.
    pub(super) durable: LastDurable,
    /// The first batch that is needed.
    pub(super) floor: u64,
    /// A file that can take more batches, its generation, and the page of the next one.
    pub(super) active: Option<ActiveFile>,
    /// Batches that may be on the disk or not, and are written once more, in order.
    pub(super) again: Vec<BatchAgain>,
    /// The last gaps in the numbers of batches, the latest first.
    pub(super) gaps: [BatchGap; GAPS],
    /// The last batch that is part of the log.
    pub(super) kept: u64,
}

/// The last batch of a log that is on the disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LastDurable {
    pub(super) number: u64,
    /// Place of the batch.
    pub(super) place: BatchPlace,
    /// Number of the records of all batches up to this one.
    pub(super) records: u64,
}

/// A batch that is written once more after a start.
#[derive(Debug)]
pub(super) struct BatchAgain {
    pub(super) batch: SealedBatch,
    /// The header of a copy of it.
    pub(super) header: BatchHeader,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ActiveFile {
    pub(super) number: u32,
    pub(super) generation: u64,
    /// Page at which the next batch begins.
    pub(super) page: u32,
}

/// A batch on its way to the disk.
#[derive(Debug)]
struct Commit {
    batch: SealedBatch,
    /// Failed writes.
    failures: u32,
    /// Header of the batch, while its write is under way.
    written: Option<BatchHeader>,
    /// The header of an earlier copy.
    copied: Option<BatchHeader>,
}

impl Commit {
    fn new(batch: SealedBatch, copied: Option<BatchHeader>) -> Self {
        Self { batch, failures: 0, written: None, copied }
    }
}

/// The write-ahead log of one shard.
#[derive(Debug)]
pub struct Wal {
    key: LogKey,
    tokens: Tokens,
    files: LogFiles,
    ops: VecDeque<DiskOp>,
    events: VecDeque<WalEvent>,
    active: Option<ActiveFile>,
    /// Whether the active file is being opened.
    is_opening: bool,
    generation: u64,
    tail: Tail,
    commit: Option<Commit>,
    /// Batches that are written once more before any other.
    again: VecDeque<BatchAgain>,
    durable: LastDurable,
    /// The last gaps in the numbers of batches, the latest first.
    gaps: [BatchGap; GAPS],
    /// Whether no batch on the disk says that the last one is durable.
    is_unmarked: bool,
    wants_mark: bool,
    /// The first batch that is needed.
    floor: u64,
    /// The first batch that is needed, as a batch on the disk says.
    told_floor: u64,
    block: Block,
    reads: Reads,
    read_only: Option<io::ErrorKind>,
}

impl Wal {
    /// The log after a recovery; `tail` has the batches that were found, with the one that is
    /// written once more as the last.
    pub(super) fn new(settings: &WalSettings, start: WalStart, tail: Tail) -> Self {
        let mut files = LogFiles::new(settings, start.key, &start.files);
        let gaps = with_gap(start.gaps, start.kept, tail.number());
        let mut ops = VecDeque::new();
        if let Some(active) = start.active {
            files.go_on(active.number, &mut ops);
        }
        Self {
            key: start.key,
            tokens: Tokens(settings.first_token),
            files,
            ops,
            events: VecDeque::new(),
            is_opening: start.active.is_some(),
            active: start.active,
            generation: start.generation,
            tail,
            commit: None,
            again: start.again.into(),
            durable: start.durable,
            gaps,
            is_unmarked: true,
            wants_mark: false,
            floor: start.floor,
            told_floor: start.floor,
            block: Block::default(),
            reads: Reads::new(Tokens(settings.first_token).read()),
            read_only: None,
        }
    }

    /// Takes the next operation for the disk.
    pub fn next_op(&mut self) -> Option<DiskOp> {
        self.ops.pop_front()
    }

    /// Takes the next event for the owner.
    pub fn next_event(&mut self) -> Option<WalEvent> {
        self.events.pop_front()
    }

    /// Adds a record to the next commit.
    pub fn stage(
        &mut self,
        stream: StreamId,
        record: &LogRecord<'_>,
    ) -> Result<Staged, StageError> {
        self.check_room(record.stored_bytes())?;
        let place = self.tail.stage(stream, record).map_err(|_| StageError::TooLong)?;
        Ok(Staged { commit: self.tail.number(), place })
    }

    /// Checks that records of `bytes` can be staged now.
    pub(super) fn check_room(&self, bytes: usize) -> Result<(), StageError> {
        if let Some(reason) = self.read_only {
            return Err(StageError::ReadOnly(reason));
        }
        let bytes_max = self.batch_bytes_max();
        if bytes > bytes_max.min(RECORD_BYTES_MAX) {
            return Err(StageError::TooLong);
        }
        let is_full = self.tail.staged_bytes() + bytes > bytes_max;
        if is_full { Err(StageError::Full) } else { Ok(()) }
    }

    /// Bytes of records that one commit can have: a whole file behind its label.
    fn batch_bytes_max(&self) -> usize {
        (self.files.pages() as usize - 1) * PAGE_BYTES - BATCH_HEADER_BYTES
    }

    fn unwritten_bytes(&self) -> usize {
        let on_its_way = self.commit.as_ref().map_or(0, |commit| commit.batch.body.len());
        self.tail.staged_bytes() + on_its_way
    }

    /// Whether publishers are to wait: [`STAGED_BYTES_MAX`] are staged, of a small file half, or
    /// [`TAIL_BYTES_MAX`] are not on the disk.
    pub fn is_full(&self) -> bool {
        let staged_bytes_max = STAGED_BYTES_MAX.min(self.batch_bytes_max() / 2);
        self.tail.staged_bytes() >= staged_bytes_max || self.unwritten_bytes() >= TAIL_BYTES_MAX
    }

    /// The last batch that is on the disk, with all before it.
    pub fn committed(&self) -> u64 {
        self.durable.number
    }

    /// The record at a place; `None` if its batch was released, or is not in memory.
    pub fn record(&self, place: RecordPlace) -> Option<RecordAt<'_>> {
        self.tail.get(place)
    }

    /// Reads the record at a place.
    pub fn read(&self, place: RecordPlace) -> Read<'_> {
        self.tail.read(place)
    }

    /// Asks for the records of a batch that are not in memory: [`WalEvent::Loaded`] follows.
    pub(super) fn load(&mut self, number: u64) {
        self.reads.ask(number);
        self.reads.begin(&self.tail, &self.files, &mut self.ops);
    }

    /// Asks for the record at a place; see [`Self::load`].
    pub(super) fn load_at(&mut self, place: RecordPlace) {
        if let Some(number) = self.tail.batch_of(place) {
            self.load(number);
        }
    }

    pub(super) fn tail_mut(&mut self) -> &mut Tail {
        &mut self.tail
    }

    /// Bytes of a file.
    pub(super) fn file_bytes(&self) -> u64 {
        u64::from(self.files.pages()) * PAGE_BYTES as u64
    }

    /// Whether the log takes nothing more.
    pub fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The batches in memory, in order: number, place of the first record, and all records.
    pub fn batches(&self) -> impl Iterator<Item = (u64, RecordPlace, &Segment)> {
        self.tail.batches()
    }

    /// The number of the last batch, if there is one.
    pub fn last_batch(&self) -> Option<u64> {
        self.tail.last()
    }

    /// Batches before this one are needed no more: what is alive in them is stored elsewhere, and
    /// on the disk. Their files are used again when a batch on the disk says so.
    pub(super) fn release(&mut self, before: u64) {
        if before > self.floor && before <= self.durable.number + 1 {
            self.floor = before;
            self.tail.release(before);
            self.wants_mark = true;
        }
    }

    /// Begins a commit even if nothing is staged.
    pub(super) fn mark(&mut self) {
        self.wants_mark = true;
    }

    /// Marks the last commit as durable on the disk, if no batch does so yet: from then on damage
    /// to it is not taken for a commit that had no end. For times of rest.
    pub fn mark_durable(&mut self) {
        self.wants_mark |= self.is_unmarked;
    }

    /// Tries once more to prepare files, after [`WalEvent::NoFile`].
    pub fn try_again(&mut self) {
        self.files.try_again();
    }

    /// Reads once more what could not be read, after [`WalEvent::NoRead`].
    pub fn read_again(&mut self) {
        self.reads.again();
        self.reads.begin(&self.tail, &self.files, &mut self.ops);
    }

    /// Whether all records are on the disk.
    pub fn is_at_rest(&self) -> bool {
        self.commit.is_none() && self.again.is_empty() && self.tail.staged_bytes() == 0
    }

    /// Begins a commit of all staged records, if none is on its way.
    pub fn end_turn(&mut self) {
        if self.read_only.is_some() {
            return;
        }
        if !self.is_opening {
            self.begin_commit();
        }
        self.files.prepare(self.told_floor, self.wanted_files(), &mut self.ops);
    }

    /// Files that are to be ready: none before the active one has some use, for most logs never
    /// need another, unless what waits does not fit into it, or commits to it cost too much.
    fn wanted_files(&self) -> usize {
        let Some(active) = self.active else { return 1 };
        if active.page >= self.files.pages() / SPARES_FROM {
            return SPARES;
        }
        let is_over = active.page.saturating_add(self.waiting_pages()) > self.files.pages();
        usize::from(is_over || self.is_costly(active))
    }

    /// Whether a file that was filled is better than the active one: in one that was only
    /// allocated, each commit is a change for the file system, too, which has cost up to as much
    /// again.
    fn is_costly(&self, active: ActiveFile) -> bool {
        let pages_max = PAGES_WITH_HOLES_MAX.min(self.files.pages() / 2);
        active.page >= pages_max && self.files.has_holes(active.number)
    }

    /// Pages of the next commit.
    fn waiting_pages(&self) -> u32 {
        match &self.commit {
            Some(commit) if commit.written.is_none() => pages_of(&commit.batch),
            _ => pages_for(u32::try_from(self.tail.staged_bytes()).unwrap_or(u32::MAX)),
        }
    }

    fn begin_commit(&mut self) {
        if self.commit.is_none()
            && let Some(BatchAgain { batch, header }) = self.again.pop_front()
        {
            self.commit = Some(Commit::new(batch, Some(header)));
        }
        match &self.commit {
            Some(commit) if commit.written.is_some() => {}
            Some(commit) => {
                if self.find_room(pages_of(&commit.batch)) {
                    self.write();
                }
            }
            None if self.tail.staged_bytes() == 0 && !self.wants_mark => {}
            None => {
                let bytes = u32::try_from(self.tail.staged_bytes()).unwrap_or(u32::MAX);
                // Until there is room, further records join the same commit.
                if self.find_room(pages_for(bytes)) {
                    let batch = self.tail.seal();
                    self.commit = Some(Commit::new(batch, None));
                    self.wants_mark = false;
                    self.write();
                }
            }
        }
    }

    /// Finds an active file with `pages` left; `false` if there is none yet.
    fn find_room(&mut self, pages: u32) -> bool {
        let pages_max = self.files.pages();
        if let Some(active) = self.active
            && pages <= pages_max.saturating_sub(active.page)
            && !(self.is_costly(active) && self.files.has_filled())
        {
            return true;
        }
        if pages >= pages_max {
            self.give_up(io::ErrorKind::FileTooLarge);
            return false;
        }
        let Some(number) = self.files.take_ready() else { return false };
        if let Some(full) = self.active.take() {
            self.files.retire(full.number, false, &mut self.ops);
        }
        self.generation += 1;
        self.active = Some(ActiveFile { number, generation: self.generation, page: 1 });
        true
    }

    /// Writes the commit to the active file, which has room for it.
    fn write(&mut self) {
        let (Some(commit), Some(active)) = (&mut self.commit, &mut self.active) else { return };
        let (batch, bytes) = (&commit.batch, commit.batch.body.len());
        // What was before a copy does not change.
        let copied = commit.copied.filter(|_| batch.number <= self.durable.number);
        let before = copied.map(|header| LastDurable {
            number: header.durable,
            place: header.durable_at,
            records: header.earlier,
        });
        let before = before.unwrap_or(self.durable);
        let header = BatchHeader {
            place: BatchPlace { file: active.number, page: active.page },
            generation: active.generation,
            number: batch.number,
            durable: before.number,
            floor: self.floor,
            earlier: before.records,
            gaps: self.gaps,
            durable_at: before.place,
            body_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            records: batch.records,
            checksum: batch.checksum,
        };
        let whole = header.pages() as usize * PAGE_BYTES;
        let mut block = std::mem::take(&mut self.block);
        if block.len() < whole {
            block = Block::zeroed(whole);
        }
        let out = block.bytes_mut();
        header.encode(self.key, out);
        out[BATCH_HEADER_BYTES..][..bytes].copy_from_slice(&batch.body);
        out[BATCH_HEADER_BYTES + bytes..whole].fill(0);
        let at = u64::from(active.page) * PAGE_BYTES as u64;
        let file = self.files.id(active.number);
        active.page += header.pages();
        self.files.note(active.number, batch.number);
        commit.written = Some(header);
        let what = DiskWork::Write { file, at, block, bytes: whole, durable: true };
        self.ops.push_back(DiskOp { token: self.tokens.commit(), what });
    }

    /// Takes the end of an operation of this log.
    pub fn on_disk(&mut self, done: DiskDone) {
        if done.token == self.tokens.commit() {
            self.on_written(done);
        } else if done.token == self.tokens.read() {
            let Self { reads, tail, files, ops, .. } = self;
            match reads.on_done(done, tail, self.key, files, ops) {
                ReadEnd::NotYet => {}
                ReadEnd::Loaded => self.events.push_back(WalEvent::Loaded),
                ReadEnd::Failed { number, error, failures } => {
                    self.events.push_back(WalEvent::NoRead { commit: number, error, failures });
                }
                ReadEnd::Damaged(commit) => {
                    self.events.push_back(WalEvent::Damaged { commit, lost: 0 });
                }
            }
            self.reads.begin(&self.tail, &self.files, &mut self.ops);
        } else if done.token == self.tokens.prepare() {
            match self.files.on_step(done, &mut self.ops) {
                Prepared::NotYet | Prepared::Ready => {}
                Prepared::GoesOn => self.is_opening = false,
                Prepared::Failed(_) if self.is_opening => {
                    // Another file will do.
                    (self.is_opening, self.active) = (false, None);
                }
                Prepared::Failed(reason) => self.events.push_back(WalEvent::NoFile(reason)),
            }
        }
    }

    fn on_written(&mut self, done: DiskDone) {
        if let Some(block) = done.block.filter(|block| block.len() <= KEPT_BLOCK_BYTES_MAX) {
            self.block = block;
        }
        let Some(mut commit) = self.commit.take() else { return };
        let Some(header) = commit.written.take() else { return };
        let whole = header.pages() as usize * PAGE_BYTES;
        let failure = match done.outcome {
            Ok(bytes) if bytes == whole => None,
            Ok(_) => Some(io::ErrorKind::WriteZero),
            Err(error) => Some(error.kind()),
        };
        let Some(reason) = failure else {
            self.on_durable(&header);
            return;
        };
        self.files.retire(header.place.file, true, &mut self.ops);
        self.active = None;
        commit.failures += 1;
        if commit.failures >= ATTEMPTS_MAX {
            self.give_up(reason);
        }
        self.commit = Some(commit);
    }

    fn on_durable(&mut self, header: &BatchHeader) {
        self.told_floor = header.floor;
        self.tail.settle(header.number, header.place);
        if header.number >= self.durable.number {
            self.durable.place = header.place;
        }
        if header.number > self.durable.number {
            self.durable.number = header.number;
            self.durable.records += u64::from(header.records);
            self.is_unmarked = header.records > 0;
            self.events.push_back(WalEvent::Committed(header.number));
        }
    }

    fn give_up(&mut self, reason: io::ErrorKind) {
        self.read_only = Some(reason);
        self.events.push_back(WalEvent::ReadOnly(reason));
    }
}

/// Adds the gap between the last batch of the log and the next one, if there is one.
fn with_gap(gaps: [BatchGap; GAPS], after: u64, before: u64) -> [BatchGap; GAPS] {
    if before == after + 1 {
        return gaps;
    }
    let mut all = [BatchGap { after, before }; GAPS];
    all[1..].copy_from_slice(&gaps[..GAPS - 1]);
    all
}

fn pages_of(batch: &SealedBatch) -> u32 {
    pages_for(u32::try_from(batch.body.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
