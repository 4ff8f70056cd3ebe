//! The files of a log: made, filled with zeroes once, and used again when none of their batches is
//! needed.
//!
//! A file is ready when zeroes and label are on the disk, and so is its name: it takes commits
//! from then on, which need no more of the file system than their own blocks. The label is written
//! last: a file without one may have failed to be synced, and is made anew under its name. One file
//! is prepared at a time.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::WalSettings;
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, FileId, OpenAs, PAGE_BYTES};
use crate::record::checksum::LogKey;
use crate::record::label::Label;

/// Most files of a log.
pub(in super::super) const FILES_MAX: u32 = 1 << 16;
/// Files that are ready beforehand.
pub(super) const SPARES: usize = 2;
/// Zeroes that are written at a time, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// The result of recovery for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum FoundFile {
    /// No file has this number.
    Absent,
    /// A file of the log.
    Ours {
        /// The last batch in it that may be needed; 0 if there is none.
        last: u64,
        /// Whether the file was ready once: it has its label, and its full length.
        was_ready: bool,
    },
    /// A file that is not to be touched.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileState {
    Absent,
    /// A closed file.
    Kept {
        was_ready: bool,
    },
    /// An open file that takes commits when its turn comes.
    Ready,
    /// An open file that takes commits.
    Active,
    /// A closed file that is never written or synced again.
    GivenUp,
}

#[derive(Debug)]
struct WalFile {
    state: FileState,
    /// The last batch in it; 0 if there is none.
    last: u64,
    /// Whether it was allocated for commits that waited, and not filled: the file system has to
    /// take note of each page that is written first.
    has_holes: bool,
}

impl WalFile {
    fn new(state: FileState, last: u64) -> Self {
        Self { state, last, has_holes: false }
    }
}

/// A file on its way to being ready.
#[derive(Debug)]
struct Preparing {
    file: u32,
    step: PrepareStep,
    /// Whether the file takes batches behind those that it has, and is only to be opened.
    goes_on: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PrepareStep {
    Remove,
    Open,
    /// Room on the disk, without zeroes: commits wait for the file.
    Allocate,
    /// Zeroes, from this byte on.
    Fill(u64),
    Sync,
    Label,
    OpenDirectory,
    SyncDirectory,
}

/// All files of one log.
#[derive(Debug)]
pub(super) struct LogFiles {
    directory: Box<Path>,
    key: LogKey,
    bytes: u64,
    first_id: u32,
    tokens: Tokens,
    files: Vec<WalFile>,
    preparing: Option<Preparing>,
    /// The block of zeroes for the files, while no operation has it.
    zeroes: Block,
    is_direct: bool,
    is_directory_open: bool,
    /// Error for which no file is being prepared.
    failure: Option<io::ErrorKind>,
}

/// The state of a file that is being prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepared {
    NotYet,
    Ready,
    /// A file that has batches can take more.
    GoesOn,
    Failed(io::ErrorKind),
}

/// The name of a log's file.
pub(in super::super) fn file_name(number: u32) -> String {
    format!("{number:06}.wal")
}

impl LogFiles {
    pub(super) fn new(settings: &WalSettings, key: LogKey, found: &[FoundFile]) -> Self {
        let file = |found: &FoundFile| match *found {
            FoundFile::Absent => WalFile::new(FileState::Absent, 0),
            FoundFile::Foreign => WalFile::new(FileState::GivenUp, u64::MAX),
            FoundFile::Ours { last, was_ready } => {
                WalFile::new(FileState::Kept { was_ready }, last)
            }
        };
        Self {
            directory: settings.directory.clone(),
            key,
            bytes: settings.file_bytes,
            first_id: settings.first_file,
            tokens: Tokens(settings.first_token),
            files: found.iter().map(file).collect(),
            preparing: None,
            zeroes: Block::default(),
            is_direct: true,
            is_directory_open: false,
            failure: None,
        }
    }

    /// Pages of a file, with its label.
    pub(super) fn pages(&self) -> u32 {
        u32::try_from(self.bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX)
    }

    pub(super) fn id(&self, number: u32) -> FileId {
        file_id(self.first_id, number)
    }

    /// Lets files be prepared again, after a failure.
    pub(super) fn try_again(&mut self) {
        self.failure = None;
    }

    /// Makes a file that is ready the active one. Returns its number.
    pub(super) fn take_ready(&mut self) -> Option<u32> {
        let at = self.files.iter().position(|file| file.state == FileState::Ready)?;
        self.files[at].state = FileState::Active;
        u32::try_from(at).ok()
    }

    /// Whether commits to this file cost more than those to a file that was filled.
    pub(super) fn has_holes(&self, number: u32) -> bool {
        self.files[number as usize].has_holes
    }

    /// Whether a file is ready that was filled.
    pub(super) fn has_filled(&self) -> bool {
        self.files.iter().any(|file| file.state == FileState::Ready && !file.has_holes)
    }

    /// Notes that the active file is about to get this batch.
    pub(super) fn note(&mut self, number: u32, batch: u64) {
        let file = &mut self.files[number as usize];
        file.last = file.last.max(batch);
    }

    /// Retires the active file, which takes no more batches; one that has failed is never used
    /// again.
    pub(super) fn retire(&mut self, number: u32, has_failed: bool, ops: &mut VecDeque<DiskOp>) {
        let kept = FileState::Kept { was_ready: true };
        self.files[number as usize].state = if has_failed { FileState::GivenUp } else { kept };
        self.close(number, ops);
    }

    fn close(&self, number: u32, ops: &mut VecDeque<DiskOp>) {
        let what = DiskWork::Close { file: self.id(number) };
        ops.push_back(DiskOp { token: self.tokens.close(), what });
    }

    /// Begins to open a file that can take batches behind those that it has.
    pub(super) fn go_on(&mut self, number: u32, ops: &mut VecDeque<DiskOp>) {
        let step = PrepareStep::Open;
        self.begin(Preparing { file: number, step, goes_on: true }, ops);
    }

    /// Begins to prepare a file, if fewer than `wanted` are ready and none is being prepared.
    /// Batches before `floor` are needed no more.
    pub(super) fn prepare(&mut self, floor: u64, wanted: usize, ops: &mut VecDeque<DiskOp>) {
        let ready = self.files.iter().filter(|file| file.state == FileState::Ready).count();
        if self.preparing.is_some() || self.failure.is_some() || ready >= wanted {
            return;
        }
        if let Some(file) = self.next_free(floor) {
            let is_leftover = self.files[file as usize].state != FileState::Absent;
            let is_removed = is_leftover && !self.was_ready(file);
            let step = if is_removed { PrepareStep::Remove } else { PrepareStep::Open };
            self.begin(Preparing { file, step, goes_on: false }, ops);
        }
    }

    /// Returns the best file to prepare: one that has its length, or one that exists, or a new one.
    fn next_free(&mut self, floor: u64) -> Option<u32> {
        let rank = |file: &WalFile| match file.state {
            FileState::Kept { was_ready } if file.last < floor => Some(u8::from(!was_ready)),
            FileState::Absent => Some(2),
            _ => None,
        };
        let ranks = self.files.iter().enumerate().filter_map(|(at, file)| Some((rank(file)?, at)));
        if let Some((_, at)) = ranks.min() {
            return u32::try_from(at).ok();
        }
        let next = u32::try_from(self.files.len()).ok().filter(|next| *next < FILES_MAX)?;
        self.files.push(WalFile::new(FileState::Absent, 0));
        Some(next)
    }

    fn was_ready(&self, number: u32) -> bool {
        self.files[number as usize].state == FileState::Kept { was_ready: true }
    }

    /// The number under which a file is open for reads.
    pub(super) fn reader_id(&self, number: u32) -> FileId {
        FileId(self.first_id + 1 + FILES_MAX + number)
    }

    pub(super) fn close_reader(&self, number: u32, ops: &mut VecDeque<DiskOp>) {
        let what = DiskWork::Close { file: self.reader_id(number) };
        ops.push_back(DiskOp { token: self.tokens.close(), what });
    }

    pub(super) fn path(&self, number: u32) -> Box<Path> {
        self.directory.join(file_name(number)).into()
    }

    fn begin(&mut self, preparing: Preparing, ops: &mut VecDeque<DiskOp>) {
        let file = self.id(preparing.file);
        let what = match preparing.step {
            PrepareStep::Remove => DiskWork::Remove { path: self.path(preparing.file) },
            PrepareStep::Open => {
                let how = if self.is_direct { OpenAs::MadeDirect } else { OpenAs::Made };
                DiskWork::Open { file, path: self.path(preparing.file), how }
            }
            PrepareStep::Allocate => DiskWork::Allocate { file, bytes: self.bytes },
            PrepareStep::Fill(at) => self.fill(file, at),
            PrepareStep::Sync => DiskWork::Sync { file },
            PrepareStep::Label => {
                let mut block = self.take_block();
                Label { file: preparing.file, key: self.key }.encode(block.bytes_mut());
                DiskWork::Write { file, at: 0, block, bytes: PAGE_BYTES, durable: true }
            }
            PrepareStep::OpenDirectory => DiskWork::Open {
                file: FileId(self.first_id),
                path: self.directory.clone(),
                how: OpenAs::Directory,
            },
            PrepareStep::SyncDirectory => DiskWork::Sync { file: FileId(self.first_id) },
        };
        ops.push_back(DiskOp { token: self.tokens.prepare(), what });
        self.preparing = Some(preparing);
    }

    fn fill(&mut self, file: FileId, at: u64) -> DiskWork {
        let mut block = self.take_block();
        block.bytes_mut()[..PAGE_BYTES].fill(0);
        let bytes = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(block.len());
        DiskWork::Write { file, at, block, bytes, durable: false }
    }

    /// A block of zeroes, but for its first page.
    fn take_block(&mut self) -> Block {
        let block = std::mem::take(&mut self.zeroes);
        if !block.is_empty() {
            return block;
        }
        Block::zeroed(usize::try_from(self.bytes).unwrap_or(PIECE_BYTES).min(PIECE_BYTES))
    }

    /// Takes the end of a step of a preparation; the next operations go to `ops`.
    pub(super) fn on_step(&mut self, done: DiskDone, ops: &mut VecDeque<DiskOp>) -> Prepared {
        let Some(mut preparing) = self.preparing.take() else { return Prepared::NotYet };
        self.zeroes = done.block.unwrap_or_default();
        let written = match done.outcome {
            Ok(written) => written as u64,
            Err(error)
                if preparing.step == PrepareStep::Allocate
                    && error.kind() != io::ErrorKind::StorageFull =>
            {
                // Not every file system allocates.
                preparing.step = PrepareStep::Fill(0);
                self.begin(preparing, ops);
                return Prepared::NotYet;
            }
            Err(error) => return self.on_failure(preparing, error.kind(), ops),
        };
        let next = match preparing.step {
            PrepareStep::Open if preparing.goes_on => None,
            PrepareStep::Remove => Some(PrepareStep::Open),
            PrepareStep::Open
                if self.was_ready(preparing.file) && !self.has_holes(preparing.file) =>
            {
                Some(PrepareStep::Label)
            }
            PrepareStep::Open => {
                self.files[preparing.file as usize].state = FileState::Kept { was_ready: false };
                // Zeroes take a while. Commits do not wait for them, even if they cost more then.
                let waits = !self.files.iter().any(|file| file.state == FileState::Active);
                Some(if waits { PrepareStep::Allocate } else { PrepareStep::Fill(0) })
            }
            PrepareStep::Allocate => {
                self.files[preparing.file as usize].has_holes = true;
                Some(PrepareStep::Sync)
            }
            PrepareStep::Fill(_) if written == 0 => {
                return self.on_failure(preparing, io::ErrorKind::WriteZero, ops);
            }
            PrepareStep::Fill(at) if at + written < self.bytes => {
                Some(PrepareStep::Fill(at + written))
            }
            PrepareStep::Fill(_) => {
                self.files[preparing.file as usize].has_holes = false;
                Some(PrepareStep::Sync)
            }
            PrepareStep::Sync => Some(PrepareStep::Label),
            PrepareStep::Label if self.is_directory_open => Some(PrepareStep::SyncDirectory),
            PrepareStep::Label => Some(PrepareStep::OpenDirectory),
            PrepareStep::OpenDirectory => {
                self.is_directory_open = true;
                Some(PrepareStep::SyncDirectory)
            }
            PrepareStep::SyncDirectory => None,
        };
        if let Some(next) = next {
            preparing.step = next;
            self.begin(preparing, ops);
            return Prepared::NotYet;
        }
        self.zeroes = Block::default();
        let file = &mut self.files[preparing.file as usize];
        file.state = if preparing.goes_on { FileState::Active } else { FileState::Ready };
        if preparing.goes_on { Prepared::GoesOn } else { Prepared::Ready }
    }

    fn on_failure(
        &mut self,
        mut preparing: Preparing,
        error: io::ErrorKind,
        ops: &mut VecDeque<DiskOp>,
    ) -> Prepared {
        if !matches!(preparing.step, PrepareStep::Remove | PrepareStep::Open) {
            self.close(preparing.file, ops);
        }
        if error == io::ErrorKind::InvalidInput && self.is_direct {
            // The file system has no direct operations.
            self.is_direct = false;
            preparing.step = PrepareStep::Open;
            self.begin(preparing, ops);
            return Prepared::NotYet;
        }
        if preparing.goes_on {
            return Prepared::Failed(error);
        }
        if preparing.step == PrepareStep::Remove && error == io::ErrorKind::NotFound {
            preparing.step = PrepareStep::Open;
            self.begin(preparing, ops);
            return Prepared::NotYet;
        }
        use PrepareStep::{Allocate, Fill, Label, Sync};
        let of_the_file = matches!(preparing.step, Allocate | Fill(_) | Sync | Label);
        if of_the_file && error != io::ErrorKind::StorageFull {
            self.files[preparing.file as usize].state = FileState::GivenUp;
        }
        self.failure = Some(error);
        Prepared::Failed(error)
    }
}

/// The number of a log's file among those that are open; the first one is the directory's.
pub(in super::super) fn file_id(first: u32, number: u32) -> FileId {
    FileId(first + 1 + number)
}

/// Names of a log's operations: at most one of each is under way, but for those that close files.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Tokens(pub(in super::super) u64);

impl Tokens {
    pub(in super::super) fn commit(self) -> u64 {
        self.0
    }

    pub(in super::super) fn prepare(self) -> u64 {
        self.0 + 1
    }

    pub(in super::super) fn close(self) -> u64 {
        self.0 + 2
    }

    pub(in super::super) fn recover(self) -> u64 {
        self.0 + 3
    }

    pub(in super::super) fn read(self) -> u64 {
        self.0 + 4
    }
}
