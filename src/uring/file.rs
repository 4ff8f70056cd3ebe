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

use super::ring::Ring;
use super::token::{OpToken, TokenKind};
use super::{Event, Reactor, is_interrupted, op};
use crate::disk::{Block, DiskDone, DiskOp, DiskWork, FileId};

/// Bytes asked of one read or write at most: a longer one is done in parts.
const PART_BYTES_MAX: usize = 1 << 30;
/// Interruptions of one operation after which it fails.
const INTERRUPTIONS_MAX: u32 = 1000;

/// The open files of a reactor, and the operations on them.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<FileId, Rc<OwnedFd>>,
    working: Slab<Box<Working>>,
    /// Whether operations end where the kernel has left them.
    is_ending: bool,
}

/// An operation in the kernel's hands. It lives in a box: the kernel reads paths and the block.
struct Working {
    token: u64,
    step: DiskStep,
    /// The descriptor, which stays open even if the file's number is closed.
    fd: Option<Rc<OwnedFd>>,
    block: Option<Block>,
    /// Bytes read or written so far.
    done: usize,
    /// Bytes to read or write in all.
    bytes: usize,
    /// Completions to come.
    parts: u32,
    interruptions: u32,
    /// Whether the kernel has completed a step that is not counted in bytes.
    answered: bool,
    /// Whether the sync of a durable write has succeeded.
    synced: bool,
    /// The ring's count of cut links when the sync was queued: if it has changed since, the sync
    /// may not have been linked.
    cuts: u64,
    error: Option<io::Error>,
}

enum DiskStep {
    Open { file: FileId, path: CString, flags: i32 },
    Write { at: u64, durable: bool },
    Read { at: u64 },
    Sync,
    Allocate { bytes: u64 },
    Rename { from: CString, to: CString },
    Remove { path: CString },
}

impl Working {
    fn new(token: u64, step: DiskStep, fd: Option<Rc<OwnedFd>>) -> Self {
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
        matches!(self.step, DiskStep::Write { durable: true, .. })
    }

    /// Whether the kernel has done the whole step, apart from the sync of a durable write.
    fn is_whole(&self) -> bool {
        self.answered && self.done == self.bytes
    }

    fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd())
    }

    /// Returns the operation for the rest of the step.
    fn entry(&mut self, token: OpToken) -> squeue::Entry {
        let fd = self.raw_fd();
        let left = (self.bytes - self.done).min(PART_BYTES_MAX);
        let len = u32::try_from(left).unwrap_or(u32::MAX);
        let memory = match &mut self.block {
            Some(block) => block.bytes_mut()[self.done..].as_mut_ptr(),
            None => std::ptr::null_mut(),
        };
        match &self.step {
            DiskStep::Open { path, flags, .. } => op::open(token, path, *flags),
            DiskStep::Write { at, .. } => op::write(token, fd, memory, len, at + self.done as u64),
            DiskStep::Read { at } => op::read(token, fd, memory, len, at + self.done as u64),
            DiskStep::Sync => op::sync(token, fd),
            DiskStep::Allocate { bytes } => op::allocate(token, fd, *bytes),
            DiskStep::Rename { from, to } => op::rename(token, from, to),
            DiskStep::Remove { path } => op::remove(token, path),
        }
    }

    /// Counts the part of a step, or the whole of it, that the kernel has carried out.
    fn advance(&mut self, result: usize) {
        self.answered = true;
        match self.step {
            DiskStep::Write { .. } if result == 0 && self.done < self.bytes => {
                self.error = Some(io::ErrorKind::WriteZero.into());
            }
            // The file's end.
            DiskStep::Read { .. } if result == 0 => self.bytes = self.done,
            DiskStep::Write { .. } | DiskStep::Read { .. } => self.done += result,
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
    /// Begins an operation. Returns its result, if that is known at once.
    fn begin(&mut self, op: DiskOp, ring: &mut Ring) -> Option<DiskDone> {
        let DiskOp { token, what } = op;
        let mut block = None;
        let outcome = match self.prepare(token, what, &mut block) {
            Ok(Some(mut working)) => {
                working.block = block;
                let slot = self.working.insert(Box::new(working));
                self.start(slot, ring);
                return None;
            }
            Ok(None) => Ok(0),
            Err(error) => Err(error),
        };
        Some(DiskDone { token, outcome, block })
    }

    /// Returns the step for the kernel, or `None` if the operation was done at once. The
    /// operation's memory is in `kept`, in either case.
    fn prepare(
        &mut self,
        token: u64,
        what: DiskWork,
        kept: &mut Option<Block>,
    ) -> io::Result<Option<Working>> {
        let (step, file, bytes) = match what {
            DiskWork::Open { file, path, how } => {
                let (path, flags) = (c_path(&path)?, op::open_flags(how));
                (DiskStep::Open { file, path, flags }, None, 0)
            }
            DiskWork::Write { file, at, block, bytes, durable } => {
                *kept = Some(block);
                (DiskStep::Write { at, durable }, Some(file), bytes)
            }
            DiskWork::Read { file, at, block, bytes } => {
                *kept = Some(block);
                (DiskStep::Read { at }, Some(file), bytes)
            }
            DiskWork::Sync { file } => (DiskStep::Sync, Some(file), 0),
            DiskWork::Allocate { file, bytes } => (DiskStep::Allocate { bytes }, Some(file), 0),
            DiskWork::Rename { from, to } => {
                (DiskStep::Rename { from: c_path(&from)?, to: c_path(&to)? }, None, 0)
            }
            DiskWork::Remove { path } => (DiskStep::Remove { path: c_path(&path)? }, None, 0),
            DiskWork::Close { file } => {
                self.open.remove(&file).ok_or_else(not_open)?;
                return Ok(None);
            }
        };
        if bytes > kept.as_ref().map_or(0, Block::len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let open = |file| self.open.get(&file).map(Rc::clone).ok_or_else(not_open);
        let fd = file.map(open).transpose()?;
        Ok(Some(Working { bytes, ..Working::new(token, step, fd) }))
    }

    /// Queues the rest of the operation.
    fn start(&mut self, slot: usize, ring: &mut Ring) {
        let working = &mut self.working[slot];
        let entry = working.entry(name(TokenKind::Disk, slot));
        if !working.is_durable() {
            working.parts += 1;
            // SAFETY: paths and block are in the slot's box, which neither changes nor goes while
            // `parts` counts completions to come: `on_answer` insists on it, and `Reactor::drop`
            // leaves the box to the kernel. The box keeps the descriptor open, too.
            unsafe { ring.push(entry) };
            return;
        }
        let sync = op::sync(name(TokenKind::DiskSync, slot), working.raw_fd());
        working.parts += 2;
        working.synced = false;
        working.cuts = ring.cuts();
        // SAFETY: as above.
        unsafe { ring.push_linked(entry.flags(squeue::Flags::IO_LINK), sync) };
    }

    /// Queues the sync of a write that was written without one.
    fn sync_written(&mut self, slot: usize, ring: &mut Ring) {
        let working = &mut self.working[slot];
        working.parts += 1;
        working.cuts = ring.cuts();
        let entry = op::sync(name(TokenKind::DiskSync, slot), working.raw_fd());
        // SAFETY: the operation names no memory; the slot's box keeps the descriptor open.
        unsafe { ring.push(entry) };
    }

    /// Handles a completion of a part. Returns the result of the whole operation, if it is over.
    fn on_answer(
        &mut self,
        token: OpToken,
        result: io::Result<u32>,
        ring: &mut Ring,
    ) -> Option<DiskDone> {
        let slot = token.slot as usize;
        let Some(working) = self.working.get_mut(slot) else {
            debug_assert!(false, "an operation was given up before its last completion");
            return None;
        };
        working.parts -= 1;
        match (token.kind, result) {
            (TokenKind::DiskSync, Ok(_)) => working.synced = true,
            // The write came out short or failed, and says so itself.
            (TokenKind::DiskSync, Err(error)) if error.raw_os_error() == Some(libc::ECANCELED) => {}
            (_, Err(error)) => working.fail(error),
            (_, Ok(result)) => {
                if let DiskStep::Open { file, .. } = working.step {
                    // SAFETY: the kernel has just made this descriptor for the reactor, and reports
                    // it once.
                    let fd = unsafe { OwnedFd::from_raw_fd(result.cast_signed()) };
                    self.open.insert(file, Rc::new(fd));
                }
                working.advance(result as usize);
            }
        }
        if working.parts == 0 { self.go_on(slot, ring) } else { None }
    }

    /// Ends or continues an operation of which the kernel has no part.
    fn go_on(&mut self, slot: usize, ring: &mut Ring) -> Option<DiskDone> {
        let working = &self.working[slot];
        if working.error.is_none() && !self.is_ending {
            let is_synced = working.synced && working.cuts == ring.cuts();
            if !working.is_whole() {
                self.start(slot, ring);
                return None;
            }
            if working.is_durable() && !is_synced {
                self.sync_written(slot, ring);
                return None;
            }
        }
        let Working { token, error, done, block, .. } = *self.working.remove(slot);
        Some(DiskDone { token, outcome: error.map_or(Ok(done), Err), block })
    }

    /// Makes operations end where the kernel has left them, from now on.
    pub(super) fn give_up(&mut self) {
        self.is_ending = true;
    }

    /// Leaves the memory of all operations to the kernel, for good.
    pub(super) fn forget(&mut self) {
        self.working.drain().for_each(std::mem::forget);
    }
}

impl Reactor {
    /// Begins a disk operation; [`Event::Disk`] has its result.
    pub fn disk(&mut self, op: DiskOp) {
        let done = self.files.begin(op, &mut self.ring);
        self.tell_of_disk(done);
    }

    /// Handles a completion of a part of a disk operation.
    pub(super) fn on_disk(&mut self, token: OpToken, result: io::Result<u32>) {
        let done = self.files.on_answer(token, result, &mut self.ring);
        self.tell_of_disk(done);
    }

    fn tell_of_disk(&mut self, done: Option<DiskDone>) {
        self.early.extend(done.map(|done| Event::Disk(Box::new(done))));
    }
}

fn name(kind: TokenKind, slot: usize) -> OpToken {
    let Ok(slot) = u32::try_from(slot) else {
        unreachable!("memory ends long before there are so many operations")
    };
    OpToken::new(kind, slot, 0)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn not_open() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no file of this number is open")
}

#[cfg(test)]
mod tests;
