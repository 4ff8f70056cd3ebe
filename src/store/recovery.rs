//! Recovery: a log is found again as it was, and damage to it is told from a commit without end.
//!
//! All files are read, first their labels for the key, then the rest. Nothing is written, and no
//! file that cannot be opened is taken for one that is not there.

mod judge;
mod salvage;
mod scan;

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::tail::{ColdBatch, Tail};
use super::wal::{
    ActiveFile, FILE_BYTES, FILES_MAX, FoundFile, LastDurable, Tokens, Wal, WalSettings, WalStart,
    file_id, file_name,
};
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, FileId, OpenAs, PAGE_BYTES};
use crate::record::checksum::LogKey;
use crate::record::label::Label;
use judge::{Judged, judge};
use scan::{FileScan, has_batches, scan};

pub use judge::Damage;
pub(super) use salvage::salvage;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Numbers without a file behind the last one, after which there are no further files.
const ABSENT_MAX: u32 = 64;
/// Bytes of pages behind the last batches of files that are kept, to be searched for records.
const GAP_BYTES_MAX: usize = 64 << 20;
/// Attempts at one operation on a disk that fails.
const TRIES_MAX: u32 = 5;

/// The reason for which a log cannot be used. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryError {
    /// The file with this number is there, perhaps, and cannot be opened.
    CannotOpen(u32, io::ErrorKind),
    /// There is a log, but each of its files has lost the key on its first page.
    KeyLost,
}

/// Faults found in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The number of a last batch that had no end. No record of it was acknowledged; or no mark
    /// says that one was, see [`Wal::mark_durable`].
    pub torn: Option<u64>,
    /// Damage to acknowledged records, in order.
    pub damage: Vec<Damage>,
    /// Pages that could not be read.
    pub unreadable_pages: u64,
    /// Files that belong to another log or another place. They are left alone.
    pub foreign: Vec<u32>,
}

/// A log that was found.
#[derive(Debug)]
pub struct Recovered {
    /// The log, which goes on. Its last batch is committed once more, if nothing says that it is on
    /// the disk.
    pub wal: Wal,
    /// Faults found in the log.
    pub report: RecoveryReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    Label,
    /// A piece of the rest.
    Piece,
    /// One page of a piece that cannot be read as a whole; the piece ends before this byte.
    Page(usize),
}

/// A log that is being read.
#[derive(Debug)]
pub struct Recovery {
    settings: WalSettings,
    fresh: LogKey,
    ops: VecDeque<DiskOp>,
    /// The label of each file that is there, if it has one.
    labels: BTreeMap<u32, Option<Label>>,
    are_labels_known: bool,
    key: Option<LogKey>,
    file: u32,
    reading: Reading,
    tries: u32,
    /// Bytes read of the file.
    image: Vec<u8>,
    /// The block for reads, while no operation has it.
    block: Block,
    lengths: BTreeMap<u32, usize>,
    scans: Vec<FileScan>,
    /// The first batch that is needed, as far as it is known.
    floor: u64,
    unreadable_pages: u64,
    end: Option<Result<(), RecoveryError>>,
}

impl Recovery {
    /// Begins to look for a log. If there is none, the one that begins has the key `fresh`: a
    /// number that cannot be guessed.
    pub fn new(settings: WalSettings, fresh: LogKey) -> Self {
        let mut recovery = Self {
            settings,
            fresh,
            ops: VecDeque::new(),
            labels: BTreeMap::new(),
            are_labels_known: false,
            key: None,
            file: 0,
            reading: Reading::Open,
            tries: 0,
            image: Vec::new(),
            block: Block::default(),
            lengths: BTreeMap::new(),
            scans: Vec::new(),
            floor: 0,
            unreadable_pages: 0,
            end: None,
        };
        recovery.ask();
        recovery
    }

    /// Takes the next operation for the disk.
    pub fn next_op(&mut self) -> Option<DiskOp> {
        self.ops.pop_front()
    }

    /// Whether all has been read, or never will be.
    pub fn is_over(&self) -> bool {
        self.end.is_some() && self.ops.is_empty()
    }

    /// Returns the number of files read so far, and of all files.
    pub fn progress(&self) -> (usize, usize) {
        (self.lengths.len(), self.labels.len())
    }

    /// Returns the log, once reading is over.
    pub fn finish(self) -> Result<Recovered, RecoveryError> {
        if let Some(Err(error)) = self.end {
            return Err(error);
        }
        let key = self.key.unwrap_or(self.fresh);
        let judged = judge(&self.scans, key);
        let active = self.active(&judged);
        let is_foreign = |file: u32| self.is_foreign(file, key);
        let last_file = self.labels.keys().next_back().map_or(0, |last| last + 1);
        let files: Vec<FoundFile> = (0..last_file)
            .map(|file| match self.labels.contains_key(&file) {
                false => FoundFile::Absent,
                true if is_foreign(file) => FoundFile::Foreign,
                true => self.found(file, &judged),
            })
            .collect();
        let foreign = (0..last_file).filter(|file| is_foreign(*file)).collect();
        let next = judged.last + if judged.last == 0 { 1 } else { 2 };
        let mut tail = Tail::new(key, next, self.settings.memory_bytes);
        for batch in judged.batches {
            match (batch.body, batch.home) {
                (Some(body), home) => tail.push(batch.number, home, body),
                (None, Some(home)) => {
                    let (number, bytes) = (batch.number, batch.bytes);
                    tail.push_cold(ColdBatch { number, home, bytes });
                }
                (None, None) => {}
            }
        }
        let start = WalStart {
            key,
            files,
            generation: self.scans.iter().map(|scan| scan.generation).max().unwrap_or(0),
            durable: LastDurable {
                number: judged.durable,
                place: judged.durable_at,
                records: judged.earlier,
            },
            floor: judged.floor,
            active,
            again: judged.again,
            gaps: judged.gaps,
            kept: judged.kept,
        };
        let report = RecoveryReport {
            torn: judged.torn,
            damage: judged.damage,
            unreadable_pages: self.unreadable_pages,
            foreign,
        };
        Ok(Recovered { wal: Wal::new(&self.settings, start, tail), report })
    }

    fn is_foreign(&self, file: u32, key: LogKey) -> bool {
        let label = self.labels.get(&file).copied().flatten();
        label.is_some_and(|label| label != Label { file, key })
    }

    fn found(&self, file: u32, judged: &Judged) -> FoundFile {
        let scan = self.scans.iter().find(|scan| scan.file == file);
        let salvaged = judged.salvaged.iter().filter(|(of, _)| *of == file);
        let last = salvaged.map(|(_, number)| *number).max().unwrap_or(0);
        let last = last.max(scan.map_or(0, |scan| scan.last));
        let len = self.lengths.get(&file).copied().unwrap_or(0) as u64;
        let has_label = self.labels.get(&file).is_some_and(Option::is_some);
        FoundFile::Ours { last, was_ready: has_label && len == self.settings.file_bytes }
    }

    /// Returns the file that was written last, if the next batch can follow the last one there:
    /// that one is whole, and so is the file.
    fn active(&self, judged: &Judged) -> Option<ActiveFile> {
        let scan = self.scans.iter().max_by_key(|scan| scan.generation)?;
        let goes_on = scan.batches.last().is_some_and(|batch| batch.is_whole())
            && judged.torn.is_none()
            && judged.damage.is_empty()
            && self.unreadable_pages == 0
            && matches!(self.found(scan.file, judged), FoundFile::Ours { was_ready: true, .. });
        let (number, generation, page) = (scan.file, scan.generation, scan.end);
        goes_on.then_some(ActiveFile { number, generation, page })
    }

    /// Queues the next operation for the disk.
    fn ask(&mut self) {
        let file = file_id(self.settings.first_file, self.file);
        let what = match self.reading {
            Reading::Open => {
                let path = self.settings.directory.join(file_name(self.file)).into();
                DiskWork::Open { file, path, how: OpenAs::Reader }
            }
            Reading::Label | Reading::Page(_) => self.read(file, PAGE_BYTES),
            Reading::Piece => self.read(file, self.piece_bytes()),
        };
        self.ops.push_back(DiskOp { token: Tokens(self.settings.first_token).recover(), what });
    }

    fn read(&mut self, file: FileId, bytes: usize) -> DiskWork {
        let mut block = std::mem::take(&mut self.block);
        if block.is_empty() {
            block = Block::zeroed(self.piece_bytes());
        }
        DiskWork::Read { file, at: self.image.len() as u64, block, bytes }
    }

    fn piece_bytes(&self) -> usize {
        usize::try_from(self.settings.file_bytes).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)
    }

    /// Takes the end of an operation of this recovery.
    pub fn on_disk(&mut self, done: DiskDone) {
        if done.token != Tokens(self.settings.first_token).recover() || self.end.is_some() {
            return;
        }
        match done.outcome {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.next_file(),
            Err(error) => {
                self.block = done.block.unwrap_or_default();
                self.tries += 1;
                if self.tries >= TRIES_MAX {
                    self.tries = 0;
                    self.on_failure(error.kind());
                }
            }
            Ok(bytes) => {
                self.tries = 0;
                let block = done.block.unwrap_or_default();
                self.on_read(block.bytes().get(..bytes).unwrap_or_default());
                self.block = block;
            }
        }
        if self.end.is_none() {
            self.ask();
        }
    }

    fn on_failure(&mut self, error: io::ErrorKind) {
        match self.reading {
            Reading::Open => self.end = Some(Err(RecoveryError::CannotOpen(self.file, error))),
            Reading::Label => {
                self.close();
                self.next_file();
            }
            Reading::Piece => self.reading = Reading::Page(self.image.len() + self.piece_bytes()),
            Reading::Page(_) => {
                self.unreadable_pages += 1;
                self.on_read(&[0; PAGE_BYTES]);
            }
        }
    }

    fn on_read(&mut self, bytes: &[u8]) {
        match self.reading {
            Reading::Open if self.are_labels_known => self.reading = Reading::Piece,
            Reading::Open => {
                self.labels.insert(self.file, None);
                self.reading = Reading::Label;
            }
            Reading::Label => {
                self.labels.insert(self.file, Label::decode(bytes));
                self.close();
                self.next_file();
            }
            Reading::Piece => {
                self.image.extend_from_slice(bytes);
                if bytes.len() < self.piece_bytes() {
                    self.end_file();
                }
            }
            Reading::Page(end) => {
                self.image.extend_from_slice(bytes);
                if bytes.len() < PAGE_BYTES || self.is_too_long() {
                    self.end_file();
                } else if self.image.len() >= end {
                    self.reading = Reading::Piece;
                }
            }
        }
    }

    fn is_too_long(&self) -> bool {
        self.image.len() as u64 > self.settings.file_bytes.max(FILE_BYTES)
    }

    /// Takes the end of a file that has been read.
    fn end_file(&mut self) {
        self.lengths.insert(self.file, self.image.len());
        let image = std::mem::take(&mut self.image);
        match self.key {
            Some(key) => {
                self.scans.push(scan(&image, self.file, key));
                self.forget_bodies();
                let floor = self.scans.iter().map(|scan| scan.floor).max().unwrap_or(0);
                if floor > self.floor {
                    self.floor = floor;
                    self.scans.iter_mut().for_each(|scan| scan.release(floor));
                } else if let Some(scan) = self.scans.iter_mut().find(|it| it.file == self.file) {
                    scan.release(floor);
                }
            }
            None if has_batches(&image) => self.end = Some(Err(RecoveryError::KeyLost)),
            None => {}
        }
        self.close();
        self.next_file();
    }

    /// Forgets the records of the oldest batches, and the pages behind the oldest files, if there
    /// are too many: what is needed of them is read once more.
    fn forget_bodies(&mut self) {
        self.scans.sort_by_key(|scan| scan.generation);
        let last = self.scans.iter().map(|scan| scan.last).max().unwrap_or(0);
        let mut bytes: usize = self.scans.iter().map(|scan| scan.body_bytes).sum();
        let mut gaps: usize = self.scans.iter().map(FileScan::gap_bytes).sum();
        for scan in &mut self.scans {
            if bytes > self.settings.memory_bytes {
                bytes -= scan.forget_bodies(bytes - self.settings.memory_bytes, last);
            }
            if gaps > GAP_BYTES_MAX {
                gaps -= scan.gap_bytes();
                scan.gaps = Vec::new();
            }
        }
    }

    fn close(&mut self) {
        let file = file_id(self.settings.first_file, self.file);
        let token = Tokens(self.settings.first_token).close();
        self.ops.push_back(DiskOp { token, what: DiskWork::Close { file } });
    }

    /// Goes on with the label of the next file, or with its batches once all labels are known.
    fn next_file(&mut self) {
        self.reading = Reading::Open;
        self.file += 1;
        if !self.are_labels_known {
            let behind = self.labels.keys().next_back().map_or(0, |last| last + 1);
            if self.file < FILES_MAX && self.file < behind + ABSENT_MAX {
                return;
            }
            self.are_labels_known = true;
            self.key = self.most_frequent_key();
            self.file = 0;
        }
        let is_foreign = |file: u32| self.key.is_some_and(|key| self.is_foreign(file, key));
        let mut files = self.labels.range(self.file..).map(|(file, _)| *file);
        match files.find(|file| !is_foreign(*file)) {
            Some(next) => self.file = next,
            None => drop(self.end.get_or_insert(Ok(()))),
        }
    }

    fn most_frequent_key(&self) -> Option<LogKey> {
        let keys: Vec<LogKey> = self.labels.values().flatten().map(|label| label.key).collect();
        let count = |key: &LogKey| keys.iter().filter(|other| *other == key).count();
        keys.iter().rev().copied().max_by_key(count)
    }
}

#[cfg(test)]
mod tests;
