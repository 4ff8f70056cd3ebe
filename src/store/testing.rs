//! A disk for the tests of this room: it does at once what it is told, and can be damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::recovery::{Recovered, Recovery, RecoveryError};
use super::wal::{Wal, WalEvent, WalSettings};
use crate::disk::{DiskDone, DiskOp, DiskWork, FileId, OpenAs, PAGE_BYTES};
use crate::record::checksum::LogKey;
use crate::record::record::{LogRecord, StoredMessage, StreamId};

pub(super) const STREAM: StreamId = StreamId(1);
/// Pages of a file, one of them its label.
pub(super) const PAGES: u64 = 17;

/// A choice of operations that fail, and their errors.
pub(super) type Failures = Box<dyn FnMut(&DiskWork) -> Option<io::ErrorKind>>;

#[derive(Default)]
pub(crate) struct TestDisk {
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    open: BTreeMap<FileId, PathBuf>,
    /// The operations that fail, and how.
    pub(super) fails: Option<Failures>,
}

pub(super) fn settings() -> WalSettings {
    let directory = Path::new("/log").into();
    let file_bytes = PAGES * PAGE_BYTES as u64;
    WalSettings { directory, file_bytes, first_file: 100, first_token: 200, memory_bytes: 1 << 30 }
}

/// Calls `f` with a record of a message that has its sequence as payload, again and again.
pub(super) fn with_message<T>(sequence: u64, f: impl FnOnce(&LogRecord<'_>) -> T) -> T {
    let payload = format!("{sequence},").repeat(20);
    let (subject, headers, payload) = (&b"a.b"[..], &b""[..], payload.as_bytes());
    f(&LogRecord::Message(StoredMessage { sequence, time: 1, flags: 0, subject, headers, payload }))
}

impl TestDisk {
    pub(crate) fn run(&mut self, op: DiskOp) -> DiskDone {
        let DiskOp { token, what } = op;
        let failure = self.fails.as_mut().and_then(|fails| fails(&what));
        let result = failure.map_or(Ok(()), |kind| Err(io::Error::from(kind)));
        let (outcome, block) = match what {
            DiskWork::Write { file, at, block, bytes, .. } => {
                let at = usize::try_from(at).unwrap();
                let content = self.content(file);
                if content.len() < at + bytes {
                    content.resize(at + bytes, 0);
                }
                // A write that fails has got somewhere.
                let len = if result.is_ok() { bytes } else { bytes / 2 };
                content[at..at + len].copy_from_slice(&block.bytes()[..len]);
                (result.map(|()| bytes), Some(block))
            }
            DiskWork::Read { file, at, mut block, bytes } => {
                let content = self.content(file);
                let at = usize::try_from(at).unwrap().min(content.len());
                let len = bytes.min(content.len() - at);
                block.bytes_mut()[..len].copy_from_slice(&content[at..at + len]);
                (result.map(|()| len), Some(block))
            }
            DiskWork::Open { file, path, how } => {
                let is_there = self.files.contains_key(&*path);
                if how == OpenAs::Reader && !is_there && result.is_ok() {
                    return self.done(token, Err(io::ErrorKind::NotFound.into()));
                }
                if result.is_ok() {
                    if how != OpenAs::Directory {
                        self.files.entry(path.to_path_buf()).or_default();
                    }
                    let before = self.open.insert(file, path.into());
                    assert_eq!(before, None, "{file:?} is open");
                }
                (result.map(|()| 0), None)
            }
            DiskWork::Close { file } => {
                self.open.remove(&file).expect("it is open");
                (result.map(|()| 0), None)
            }
            DiskWork::Allocate { file, bytes } => {
                let content = self.content(file);
                content.resize(content.len().max(usize::try_from(bytes).unwrap()), 0);
                (result.map(|()| 0), None)
            }
            DiskWork::Sync { file } => {
                assert!(self.open.contains_key(&file));
                (result.map(|()| 0), None)
            }
            DiskWork::Remove { path } => {
                self.files.remove(&*path).expect("it is there");
                (result.map(|()| 0), None)
            }
            other => panic!("a log does not do this: {other:?}"),
        };
        DiskDone { token, outcome, block }
    }

    fn done(&self, token: u64, outcome: io::Result<usize>) -> DiskDone {
        DiskDone { token, outcome, block: None }
    }

    fn content(&mut self, file: FileId) -> &mut Vec<u8> {
        self.files.get_mut(&self.open[&file]).expect("it is a file")
    }

    pub(super) fn file(&mut self, number: u32) -> &mut Vec<u8> {
        self.files.get_mut(Path::new(&format!("/log/{number:06}.wal"))).expect("it is there")
    }

    /// Nothing is open any more, as after the end of a process.
    pub(super) fn restart(&mut self) {
        self.open.clear();
    }

    pub(crate) fn recover(&mut self) -> Result<Recovered, RecoveryError> {
        self.recover_with(settings())
    }

    pub(super) fn recover_with(
        &mut self,
        settings: WalSettings,
    ) -> Result<Recovered, RecoveryError> {
        self.restart();
        let mut recovery = Recovery::new(settings, LogKey(77));
        while !recovery.is_over() {
            let op = recovery.next_op().expect("it waits for something");
            recovery.on_disk(self.run(op));
        }
        recovery.finish()
    }

    pub(super) fn wal(&mut self) -> Wal {
        self.recover().expect("there is a log").wal
    }

    pub(super) fn wal_with(&mut self, settings: WalSettings) -> Wal {
        self.recover_with(settings).expect("there is a log").wal
    }

    /// Ends turns until no operation is left, and returns the events of the log.
    pub(super) fn settle(&mut self, wal: &mut Wal) -> Vec<WalEvent> {
        loop {
            wal.end_turn();
            let Some(op) = wal.next_op() else { break };
            wal.on_disk(self.run(op));
        }
        std::iter::from_fn(|| wal.next_event()).collect()
    }

    /// Commits messages with these sequences.
    pub(super) fn commit(&mut self, wal: &mut Wal, sequences: std::ops::Range<u64>) -> u64 {
        let staged = sequences.map(|sequence| {
            with_message(sequence, |record| wal.stage(STREAM, record)).expect("there is room")
        });
        let number = staged.last().expect("there is one").commit;
        let events = self.settle(wal);
        assert_eq!(events.last(), Some(&WalEvent::Committed(number)));
        number
    }
}

/// The sequences of all messages in a log.
pub(super) fn sequences(wal: &Wal) -> Vec<u64> {
    let bodies = wal.batches().map(|(_, _, body)| body);
    let records = bodies.flat_map(|body| crate::record::batch::Records::of(body));
    let message = |record| match record {
        LogRecord::Message(message) => Some(message.sequence),
        _ => None,
    };
    records.filter_map(|(_, decoded)| message(decoded.record)).collect()
}
