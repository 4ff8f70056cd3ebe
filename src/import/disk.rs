//! Disk operations of a log, each carried out at once: nobody else waits meanwhile.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, fallocate};

use crate::disk::{Block, DiskDone, DiskOp, DiskWork, FileId, OpenAs};

/// The files that are open.
#[derive(Debug, Default)]
pub(super) struct ImmediateDisk {
    open: HashMap<FileId, File>,
}

impl ImmediateDisk {
    /// Carries an operation out.
    pub(super) fn run(&mut self, op: DiskOp) -> DiskDone {
        let DiskOp { token, what } = op;
        let (outcome, block) = self.work(what);
        DiskDone { token, outcome, block }
    }

    fn work(&mut self, what: DiskWork) -> (io::Result<usize>, Option<Block>) {
        let done = |result: io::Result<()>| (result.map(|()| 0), None);
        match what {
            DiskWork::Open { file, path, how } => done(open(&path, how).map(|opened| {
                self.open.insert(file, opened);
            })),
            DiskWork::Write { file, at, block, bytes, durable } => {
                let written = self.file(file).and_then(|file| {
                    file.write_all_at(&block.bytes()[..bytes], at)?;
                    if durable { file.sync_data() } else { Ok(()) }
                });
                (written.map(|()| bytes), Some(block))
            }
            DiskWork::Read { file, at, mut block, bytes } => {
                let read = self.file(file);
                let read = read.and_then(|file| read_at(file, &mut block.bytes_mut()[..bytes], at));
                (read, Some(block))
            }
            DiskWork::Sync { file } => done(self.file(file).and_then(File::sync_all)),
            DiskWork::Allocate { file, bytes } => done(self.file(file).and_then(|file| {
                fallocate(file, FallocateFlags::empty(), 0, bytes).map_err(io::Error::from)
            })),
            DiskWork::Rename { from, to } => done(fs::rename(from, to)),
            DiskWork::Remove { path } => done(fs::remove_file(path)),
            DiskWork::Close { file } => {
                self.open.remove(&file);
                done(Ok(()))
            }
        }
    }

    fn file(&self, file: FileId) -> io::Result<&File> {
        self.open.get(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn open(path: &std::path::Path, how: OpenAs) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600);
    match how {
        OpenAs::Reader | OpenAs::Directory => {}
        OpenAs::Writer => drop(options.write(true)),
        OpenAs::Made => drop(options.write(true).create(true).truncate(false)),
        // Blocks need no page cache, but nothing here is so urgent.
        OpenAs::MadeDirect => return Err(io::ErrorKind::InvalidInput.into()),
    }
    options.open(path)
}

/// Reads as many bytes as the file has there.
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], at + read as u64) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
