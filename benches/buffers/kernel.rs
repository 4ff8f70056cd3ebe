//! One ring that sends from, or receives into, memory of one kind. The only part of the benches
//! that is unsafe: it takes to the kernel what the reactor has no operation for.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Operations in flight at most; a power of two.
const ENTRIES: u32 = 64;
/// Where memory for the kernel begins and ends.
const PAGE_BYTES: usize = 4096;
/// The one group of receive buffers.
const GROUP: u16 = 0;

/// How bytes leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Copied into a buffer of the receiver's own, as a run is that is rendered for one, then sent.
    Copied,
    /// Sent from the one buffer that all receivers share.
    Shared,
    /// The same, without the kernel's copy.
    ZeroCopy,
    /// The same, from memory that is registered.
    ZeroCopyRegistered,
}

/// How bytes arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arriving {
    /// Into a buffer that the receive names.
    Plain,
    /// The same, registered.
    Registered,
    /// Into buffers that the kernel takes from a ring, by one receive for all.
    BufferRing,
}

/// Memory that begins and ends with a page, zeroed.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(PAGE_BYTES);
        let bytes = vec![0_u8; len + PAGE_BYTES];
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        Self { bytes, start, len }
    }

    fn pointer(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn vector(&mut self) -> libc::iovec {
        libc::iovec { iov_base: self.pointer().cast(), iov_len: self.len }
    }
}

/// A ring with its memory.
pub(crate) struct Kernel {
    // Closed first: what follows is memory that it knows.
    ring: IoUring,
    shared: Memory,
    own: Vec<Memory>,
    buffer_ring: Memory,
}

impl Kernel {
    /// A ring with `buffers` buffers of `bytes` besides the shared one.
    pub(crate) fn new(buffers: usize, bytes: usize) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES)?;
        Ok(Self {
            ring,
            shared: Memory::new(bytes),
            own: (0..buffers).map(|_| Memory::new(bytes)).collect(),
            buffer_ring: Memory::new(buffers.next_power_of_two() * size_of::<BufRingEntry>()),
        })
    }

    /// Registers the shared buffer, and those of the receivers.
    pub(crate) fn register(&mut self) -> io::Result<()> {
        let own = self.own.iter_mut().map(Memory::vector);
        let vectors: Vec<libc::iovec> = [self.shared.vector()].into_iter().chain(own).collect();
        // SAFETY: this memory lives as long as the ring, which is dropped before it.
        unsafe { self.ring.submitter().register_buffers(&vectors) }
    }

    /// Sends `bytes` to each of `sockets`, of which there are no more than buffers, and waits
    /// until all is sent and the kernel reads none of it any more.
    pub(crate) fn send(
        &mut self,
        sockets: &[TcpStream],
        bytes: usize,
        how: Leaving,
    ) -> io::Result<()> {
        assert!(bytes <= self.shared.len && sockets.len() <= self.own.len());
        let mut left = vec![bytes; sockets.len()];
        let mut awaited = 0;
        for (at, socket) in sockets.iter().enumerate() {
            if how == Leaving::Copied {
                let from = self.shared.start;
                let (shared, own) = (&self.shared.bytes[from..from + bytes], &mut self.own[at]);
                let to = own.start;
                own.bytes[to..to + bytes].copy_from_slice(shared);
            }
            self.push_send(socket, at, bytes, how)?;
            awaited += 1;
        }
        while awaited > 0 {
            self.ring.submit_and_wait(1)?;
            let seen: Vec<cqueue::Entry> = self.ring.completion().collect();
            for entry in seen {
                if !cqueue::more(entry.flags()) {
                    awaited -= 1;
                }
                if cqueue::notif(entry.flags()) {
                    continue;
                }
                let sent = result(&entry)?;
                let at = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                left[at] -= sent;
                if left[at] > 0 {
                    self.push_send(&sockets[at], at, left[at], how)?;
                    awaited += 1;
                }
            }
        }
        Ok(())
    }

    fn push_send(
        &mut self,
        socket: &TcpStream,
        at: usize,
        bytes: usize,
        how: Leaving,
    ) -> io::Result<()> {
        let from =
            if how == Leaving::Copied { self.own[at].pointer() } else { self.shared.pointer() };
        let (fd, len) = (Fd(socket.as_raw_fd()), u32::try_from(bytes).unwrap_or(u32::MAX));
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = match how {
            Leaving::Copied | Leaving::Shared => {
                opcode::Send::new(fd, from, len).flags(flags).build()
            }
            Leaving::ZeroCopy => opcode::SendZc::new(fd, from, len).flags(flags).build(),
            Leaving::ZeroCopyRegistered => {
                opcode::SendZc::new(fd, from, len).flags(flags).buf_index(Some(0)).build()
            }
        };
        self.push(entry.user_data(at as u64))
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what it names is in memory of this value, which is neither changed nor freed
        // before `send` and `receive` have seen the last completion.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Receives from `socket` until `is_over`, which is told the bytes of each receive.
    pub(crate) fn receive(
        &mut self,
        socket: &TcpStream,
        how: Arriving,
        mut is_over: impl FnMut(usize) -> bool,
    ) -> io::Result<()> {
        let fd = Fd(socket.as_raw_fd());
        let mut tail = 0;
        if how == Arriving::BufferRing {
            self.offer_all(&mut tail)?;
        }
        let (mut armed, mut over) = (false, false);
        loop {
            if !armed && !over {
                let (into, len) = (self.own[0].pointer(), self.own[0].len);
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                self.push(match how {
                    Arriving::Plain => opcode::Recv::new(fd, into, len).build(),
                    Arriving::Registered => opcode::ReadFixed::new(fd, into, len, 1).build(),
                    Arriving::BufferRing => opcode::RecvMulti::new(fd, GROUP).build(),
                })?;
                armed = true;
            }
            self.ring.submit_and_wait(1)?;
            let seen: Vec<cqueue::Entry> = self.ring.completion().collect();
            for entry in seen {
                armed &= cqueue::more(entry.flags());
                let bytes = match result(&entry) {
                    Ok(bytes) => bytes,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                    Err(error) => return Err(error),
                };
                over |= bytes == 0 || is_over(bytes);
                if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
                    self.offer(buffer, &mut tail);
                }
            }
            if over {
                // What is armed ends with the ring, before its memory.
                return Ok(());
            }
        }
    }

    /// Registers the buffer ring, with all buffers in it.
    fn offer_all(&mut self, tail: &mut u16) -> io::Result<()> {
        let entries = u16::try_from(self.own.len()).unwrap_or(u16::MAX);
        assert!(entries.is_power_of_two());
        let start = self.buffer_ring.pointer() as u64;
        // SAFETY: its memory lives as long as the ring, and is used for nothing else.
        unsafe { self.ring.submitter().register_buf_ring_with_flags(start, entries, GROUP, 0)? };
        (0..entries).for_each(|buffer| self.offer(buffer, tail));
        Ok(())
    }

    fn offer(&mut self, buffer: u16, tail: &mut u16) {
        let mask = self.own.len() - 1;
        let memory = &mut self.own[usize::from(buffer)];
        let (address, len) = (memory.pointer() as u64, memory.len);
        let start = self.buffer_ring.pointer().cast::<BufRingEntry>();
        // SAFETY: there are as many entries as buffers, and the kernel does not read those behind
        // the tail; this buffer's completion has been seen.
        let entry = unsafe { &mut *start.add(usize::from(*tail) & mask) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(len).unwrap_or(u32::MAX));
        entry.set_bid(buffer);
        *tail = tail.wrapping_add(1);
        // SAFETY: the tail is in the ring's memory, aligned, and only written here.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(start).cast_mut()) };
        shared.store(*tail, Ordering::Release);
    }
}

fn result(entry: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))
}
