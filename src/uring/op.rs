//! The operations that the reactor asks of the kernel, one function each.
//!
//! Building an operation is harmless; pushing it hands the memory that it names to the kernel.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr;

use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{opcode, squeue};

use super::token::{OpToken, TokenKind};
use crate::disk::OpenAs;

/// The group of receive buffers, one for each ring.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Bytes that one `discard` throws away at most.
const DISCARD_BYTES: u32 = 1 << 20;

/// Flags of all sends: no signal, and one completion for all of it where the kernel can do that.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

pub(super) fn accept(token: OpToken, listener: RawFd) -> squeue::Entry {
    opcode::Accept::new(Fd(listener), ptr::null_mut(), ptr::null_mut())
        .flags(libc::SOCK_CLOEXEC)
        .build()
        .user_data(token.to_user_data())
}

/// Receives into buffers that the kernel takes from the group, until something stops it.
pub(super) fn receive_many(token: OpToken, fd: RawFd) -> squeue::Entry {
    opcode::RecvMulti::new(Fd(fd), BUFFER_GROUP).build().user_data(token.to_user_data())
}

/// Receives once, into a buffer that the kernel takes from the group.
pub(super) fn receive_once(token: OpToken, fd: RawFd) -> squeue::Entry {
    opcode::Recv::new(Fd(fd), ptr::null_mut(), 0)
        .buf_group(BUFFER_GROUP)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
        .user_data(token.to_user_data())
}

/// Receives the bytes that are there into `buffer`; never waits.
pub(super) fn receive_now(token: OpToken, fd: RawFd, buffer: *mut u8, len: u32) -> squeue::Entry {
    opcode::Recv::new(Fd(fd), buffer, len)
        .flags(libc::MSG_DONTWAIT)
        .build()
        .user_data(token.to_user_data())
}

/// Completes when there is input.
pub(super) fn poll_readable(token: OpToken, fd: RawFd) -> squeue::Entry {
    const READABLE: u32 = libc::POLLIN.unsigned_abs() as u32;
    opcode::PollAdd::new(Fd(fd), READABLE).build().user_data(token.to_user_data())
}

/// Throws away input without a buffer: TCP does not copy bytes received with `MSG_TRUNC`. Other
/// sockets answer EFAULT.
pub(super) fn discard(token: OpToken, fd: RawFd) -> squeue::Entry {
    opcode::Recv::new(Fd(fd), ptr::null_mut(), DISCARD_BYTES)
        .flags(libc::MSG_TRUNC)
        .build()
        .user_data(token.to_user_data())
}

pub(super) fn send(token: OpToken, fd: RawFd, part: libc::iovec, zero_copy: bool) -> squeue::Entry {
    let len = u32::try_from(part.iov_len).unwrap_or(u32::MAX);
    let entry = if zero_copy {
        opcode::SendZc::new(Fd(fd), part.iov_base.cast(), len).flags(SEND_FLAGS).build()
    } else {
        opcode::Send::new(Fd(fd), part.iov_base.cast(), len).flags(SEND_FLAGS).build()
    };
    entry.user_data(token.to_user_data())
}

pub(super) fn send_vectored(
    token: OpToken,
    fd: RawFd,
    header: *const libc::msghdr,
    zero_copy: bool,
) -> squeue::Entry {
    let flags = SEND_FLAGS.unsigned_abs();
    let entry = if zero_copy {
        opcode::SendMsgZc::new(Fd(fd), header).flags(flags).build()
    } else {
        opcode::SendMsg::new(Fd(fd), header).flags(flags).build()
    };
    entry.user_data(token.to_user_data())
}

pub(super) fn cancel(token: OpToken, target: OpToken) -> squeue::Entry {
    opcode::AsyncCancel::new(target.to_user_data()).build().user_data(token.to_user_data())
}

pub(super) fn timer(token: OpToken, after: *const Timespec) -> squeue::Entry {
    opcode::Timeout::new(after).build().user_data(token.to_user_data())
}

/// Reads an eventfd's counter, eight bytes, into `counter`.
pub(super) fn read_waker(token: OpToken, fd: RawFd, counter: *mut u8) -> squeue::Entry {
    opcode::Read::new(Fd(fd), counter, 8).build().user_data(token.to_user_data())
}

/// Posts a completion into another ring.
pub(super) fn wake(token: OpToken, ring: RawFd) -> squeue::Entry {
    let woken = OpToken::new(TokenKind::Woken, 0, 0).to_user_data();
    opcode::MsgRingData::new(Fd(ring), 0, woken, None).build().user_data(token.to_user_data())
}

/// Returns the kernel's flags for opening a file.
pub(super) fn open_flags(how: OpenAs) -> i32 {
    libc::O_CLOEXEC
        | match how {
            OpenAs::Reader => libc::O_RDONLY,
            OpenAs::Writer => libc::O_RDWR,
            OpenAs::Made => libc::O_RDWR | libc::O_CREAT,
            OpenAs::MadeDirect => libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT,
            OpenAs::Directory => libc::O_RDONLY | libc::O_DIRECTORY,
        }
}

/// Opens a file; a new one belongs to its owner alone.
pub(super) fn open(token: OpToken, path: &CStr, flags: i32) -> squeue::Entry {
    opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags)
        .mode(0o600)
        .build()
        .user_data(token.to_user_data())
}

pub(super) fn write(
    token: OpToken,
    fd: RawFd,
    from: *const u8,
    len: u32,
    at: u64,
) -> squeue::Entry {
    opcode::Write::new(Fd(fd), from, len).offset(at).build().user_data(token.to_user_data())
}

pub(super) fn read(token: OpToken, fd: RawFd, into: *mut u8, len: u32, at: u64) -> squeue::Entry {
    opcode::Read::new(Fd(fd), into, len).offset(at).build().user_data(token.to_user_data())
}

/// Waits until written data, and the metadata needed to find it, are on the disk.
pub(super) fn sync(token: OpToken, fd: RawFd) -> squeue::Entry {
    opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build().user_data(token.to_user_data())
}

pub(super) fn allocate(token: OpToken, fd: RawFd, bytes: u64) -> squeue::Entry {
    opcode::Fallocate::new(Fd(fd), bytes).build().user_data(token.to_user_data())
}

pub(super) fn rename(token: OpToken, from: &CStr, to: &CStr) -> squeue::Entry {
    let here = Fd(libc::AT_FDCWD);
    opcode::RenameAt::new(here, from.as_ptr(), here, to.as_ptr())
        .build()
        .user_data(token.to_user_data())
}

pub(super) fn remove(token: OpToken, path: &CStr) -> squeue::Entry {
    opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build().user_data(token.to_user_data())
}
