//! Operations on files.
//!
//! An operation waits in a slot, with all the memory that it names, until the kernel has answered
//! for the last time; the kernel may carry it out in parts. A durable write is a write and a sync
//! that the kernel links: the sync begins when the write has ended, and not at all when that came
//! out short.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use io_uring::squeue;
use slab::Slab;

use super::token::{Kind, Token};
use super::{Event, Reactor, is_interrupted, op};
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, FileId};

/// Most bytes asked of one read or write: what is longer is done in parts.
const PART_BYTES_MAX: usize = 1 << 30;
/// How often an operation that was interrupted is asked for again.
const INTERRUPTIONS_MAX: u32 = 1000;

/// The files of a reactor, and what is being done to them.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<FileId, Rc<OwnedFd>>,
    working: Slab<Box<Working>>,
}

/// An operation in the kernel's hands. It lives in a box: the kernel reads paths and the block.
struct Working {
    token: u64,
    step: Step,
    /// Keeps the descriptor open, whatever becomes of the file's number.
    fd: Option<Rc<OwnedFd>>,
    block: Option<Block>,
    /// Bytes read or written so far, …
    done: usize,
    /// … and how many there are to be.
    bytes: usize,
    /// Completions to come.
    parts: u32,
    interruptions: u32,
    /// The kernel has done what is not counted in bytes.
    answered: bool,
    /// The sync that belongs to a durable write has ended well, …
    synced: bool,
    /// … and it was linked if this is what the ring says of cut links still.
    cuts: u64,
    error: Option<io::Error>,
}

enum Step {
    Open { file: FileId, path: CString, flags: i32 },
    Write { at: u64, durable: bool },
    Read { at: u64 },
    Sync,
    Allocate { bytes: u64 },
    Rename { from: CString, to: CString },
    Remove { path: CString },
}

impl Working {
    fn new(token: u64, step: Step, fd: Option<Rc<OwnedFd>>) -> Self {
        Self {
            token,
            step,
            fd,
            block: None,
            done: 0,
            bytes: 0,
            parts: 0,
            interruptions: 0,
            answered: false,
            synced: false,
            cuts: 0,
            error: None,
        }
    }

    fn is_durable(&self) -> bool {
        matches!(self.step, Step::Write { durable: true, .. })
    }

    /// Whether the kernel has done all of it, but for the sync of a durable write.
    fn is_whole(&self) -> bool {
        self.answered && self.done == self.bytes
    }

    fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd())
    }

    /// The operation for what is left to do.
    fn entry(&mut self, token: Token) -> squeue::Entry {
        let fd = self.raw_fd();
        let left = (self.bytes - self.done).min(PART_BYTES_MAX);
        let len = u32::try_from(left).unwrap_or(u32::MAX);
        let memory = match &mut self.block {
            Some(block) => block.bytes_mut()[self.done..].as_mut_ptr(),
            None => std::ptr::null_mut(),
        };
        match &self.step {
            Step::Open { path, flags, .. } => op::open(token, path, *flags),
            Step::Write { at, .. } => op::write(token, fd, memory, len, at + self.done as u64),
            Step::Read { at } => op::read(token, fd, memory, len, at + self.done as u64),
            Step::Sync => op::sync(token, fd),
            Step::Allocate { bytes } => op::allocate(token, fd, *bytes),
            Step::Rename { from, to } => op::rename(token, from, to),
            Step::Remove { path } => op::remove(token, path),
        }
    }

    /// The kernel has carried out a part, or all, of the step itself.
    fn advance(&mut self, result: usize) {
        self.answered = true;
        match self.step {
            Step::Write { .. } if result == 0 && self.done < self.bytes => {
                self.error = Some(io::ErrorKind::WriteZero.into());
            }
            // The file's end.
            Step::Read { .. } if result == 0 => self.bytes = self.done,
            Step::Write { .. } | Step::Read { .. } => self.done += result,
            _ => {}
        }
    }

    fn fail(&mut self, error: io::Error) {
        self.interruptions += u32::from(is_interrupted(&error));
        if !is_interrupted(&error) || self.interruptions > INTERRUPTIONS_MAX {
            self.error.get_or_insert(error);
        }
    }
}

impl Files {
    /// Leaves the memory of all operations to the kernel, for good.
    pub(super) fn forget(&mut self) {
        self.working.drain().for_each(std::mem::forget);
    }
}

impl Reactor {
    /// Does something to a file; [`Event::Disk`] says what became of it.
    pub fn disk(&mut self, op: DiskOp) {
        let DiskOp { token, what } = op;
        let mut block = None;
        match self.prepare(token, what, &mut block) {
            Ok(Some(mut working)) => {
                working.block = block;
                let slot = self.files.working.insert(Box::new(working));
                self.start(slot);
            }
            Ok(None) => self.tell_of_disk(token, Ok(0), block),
            Err(error) => self.tell_of_disk(token, Err(error), block),
        }
    }

    /// What the kernel is to do, or nothing for what was done at once. The operation's memory is
    /// in `kept`, whatever comes of it.
    fn prepare(
        &mut self,
        token: u64,
        what: DiskWork,
        kept: &mut Option<Block>,
    ) -> io::Result<Option<Working>> {
        let (step, file, bytes) = match what {
            DiskWork::Open { file, path, how } => {
                let (path, flags) = (c_path(&path)?, op::open_flags(how));
                (Step::Open { file, path, flags }, None, 0)
            }
            DiskWork::Write { file, at, block, bytes, durable } => {
                *kept = Some(block);
                (Step::Write { at, durable }, Some(file), bytes)
            }
            DiskWork::Read { file, at, block, bytes } => {
                *kept = Some(block);
                (Step::Read { at }, Some(file), bytes)
            }
            DiskWork::Sync { file } => (Step::Sync, Some(file), 0),
            DiskWork::Allocate { file, bytes } => (Step::Allocate { bytes }, Some(file), 0),
            DiskWork::Rename { from, to } => {
                (Step::Rename { from: c_path(&from)?, to: c_path(&to)? }, None, 0)
            }
            DiskWork::Remove { path } => (Step::Remove { path: c_path(&path)? }, None, 0),
            DiskWork::Close { file } => {
                self.files.open.remove(&file).ok_or_else(not_open)?;
                return Ok(None);
            }
        };
        if bytes > kept.as_ref().map_or(0, Block::len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let open = |file| self.files.open.get(&file).map(Rc::clone).ok_or_else(not_open);
        let fd = file.map(open).transpose()?;
        Ok(Some(Working { bytes, ..Working::new(token, step, fd) }))
    }

    /// Asks the kernel for what is left of the operation.
    fn start(&mut self, slot: usize) {
        let working = &mut self.files.working[slot];
        let entry = working.entry(name(Kind::Disk, slot));
        if !working.is_durable() {
            working.parts += 1;
            // SAFETY: paths and block are in the slot's box, which neither changes nor goes while
            // `parts` counts completions to come: `on_disk` insists on it, and `Reactor::drop`
            // leaves the box to the kernel. The box keeps the descriptor open, too.
            unsafe { self.ring.push(entry) };
            return;
        }
        let sync = op::sync(name(Kind::DiskSync, slot), working.raw_fd());
        working.parts += 2;
        working.synced = false;
        working.cuts = self.ring.cuts();
        // SAFETY: as above.
        unsafe { self.ring.push_linked(entry.flags(squeue::Flags::IO_LINK), sync) };
    }

    /// Asks for the sync of what has been written without one.
    fn sync_written(&mut self, slot: usize) {
        let working = &mut self.files.working[slot];
        working.parts += 1;
        working.cuts = self.ring.cuts();
        let entry = op::sync(name(Kind::DiskSync, slot), working.raw_fd());
        // SAFETY: the operation names no memory; the slot's box keeps the descriptor open.
        unsafe { self.ring.push(entry) };
    }

    /// The kernel has answered for a part of an operation.
    pub(super) fn on_disk(&mut self, token: Token, result: io::Result<u32>) {
        let slot = token.slot as usize;
        let Some(working) = self.files.working.get_mut(slot) else {
            debug_assert!(false, "an operation was given up before its last completion");
            return;
        };
        working.parts -= 1;
        match (token.kind, result) {
            (Kind::DiskSync, Ok(_)) => working.synced = true,
            // The write came out short or failed, and says so itself.
            (Kind::DiskSync, Err(error)) if error.raw_os_error() == Some(libc::ECANCELED) => {}
            (_, Err(error)) => working.fail(error),
            (_, Ok(result)) => {
                if let Step::Open { file, .. } = working.step {
                    // SAFETY: the kernel has just made this descriptor for us, and tells us once.
                    let fd = unsafe { OwnedFd::from_raw_fd(result.cast_signed()) };
                    self.files.open.insert(file, Rc::new(fd));
                }
                working.advance(result as usize);
            }
        }
        if working.parts == 0 {
            self.go_on(slot);
        }
    }

    /// No part of the operation is with the kernel: it is over, or goes on.
    fn go_on(&mut self, slot: usize) {
        let working = &self.files.working[slot];
        if working.error.is_none() && !self.is_dropping {
            let is_synced = working.synced && working.cuts == self.ring.cuts();
            match working.is_whole() {
                false => return self.start(slot),
                true if working.is_durable() && !is_synced => return self.sync_written(slot),
                true => {}
            }
        }
        let Working { token, error, done, block, .. } = *self.files.working.remove(slot);
        self.tell_of_disk(token, error.map_or(Ok(done), Err), block);
    }

    fn tell_of_disk(&mut self, token: u64, outcome: io::Result<usize>, block: Option<Block>) {
        self.early.push(Event::Disk(Box::new(DiskDone { token, outcome, block })));
    }
}

fn name(kind: Kind, slot: usize) -> Token {
    let Ok(slot) = u32::try_from(slot) else {
        unreachable!("memory ends long before there are so many operations")
    };
    Token::new(kind, slot, 0)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn not_open() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no file of this number is open")
}

#[cfg(test)]
mod tests;
