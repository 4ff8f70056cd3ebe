//! Receive chunks: memory that changes hands between the kernel and the shard.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::{io, slice};

use io_uring::types::BufRingEntry;

use super::op;
use super::ring::Ring;

const PAGE_BYTES: usize = 4096;
/// Bytes that the read of an eventfd needs.
const COUNTER_BYTES: usize = 8;

/// Received bytes, lent to the shard until it recycles them.
///
/// A name of the bytes, which stay in the reactor: [`super::Reactor::bytes`].
#[derive(Debug)]
#[must_use = "a chunk that is not recycled is lost to the reactor"]
pub struct Chunk {
    index: u16,
    len: u32,
    /// A mark that binds a chunk to its reactor's thread.
    not_send: PhantomData<*const ()>,
}

impl Chunk {
    /// Returns the number of received bytes, at least 1.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no bytes were received.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The holder of a chunk, which alone may touch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// No holder: the chunk waits for a receive.
    Free,
    /// The kernel, at any time: it is in the buffer ring, or a receive names it.
    Kernel,
    /// The shard, for reading.
    Shard,
}

/// All memory that the kernel writes to.
pub(super) struct Pool {
    region: Region,
    holders: Vec<Holder>,
    /// Chunks without a holder; with a buffer ring the kernel holds those.
    free: Vec<u16>,
    chunk_bytes: u32,
    /// The ring from which the kernel takes chunks by itself.
    buffer_ring: Option<BufferRing>,
    /// Chunks in the buffer ring that no completion has named.
    in_buffer_ring: usize,
}

/// The kernel's view of the buffer ring: its entries lie at the start of the region.
struct BufferRing {
    entries: u16,
    tail: u16,
}

impl Pool {
    pub(super) fn new(chunks: u16, chunk_bytes: u32) -> Self {
        let region = Region::new(usize::from(chunks), chunk_bytes as usize);
        Self {
            region,
            holders: vec![Holder::Free; usize::from(chunks)],
            free: (0..chunks).rev().collect(),
            chunk_bytes,
            buffer_ring: None,
            in_buffer_ring: 0,
        }
    }

    /// Lets the kernel take chunks itself, from a ring that both sides see.
    pub(super) fn register(&mut self, ring: &Ring) -> io::Result<()> {
        let entries = u16::try_from(self.region.ring_entries).unwrap_or(u16::MAX);
        let address = self.region.start.as_ptr() as u64;
        #[cfg(test)]
        super::faults::at_registration()?;
        // SAFETY: the region's first `entries` ring entries are page-aligned, used for nothing
        // else, and freed only after the ring is closed (see `Reactor::drop`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(address, entries, op::BUFFER_GROUP, 0)?;
        }
        self.buffer_ring = Some(BufferRing { entries, tail: 0 });
        while let Some(index) = self.free.pop() {
            self.hand_to_kernel(index);
        }
        Ok(())
    }

    /// Chunks that a receive started now could get.
    pub(super) fn available(&self) -> usize {
        if self.buffer_ring.is_some() { self.in_buffer_ring } else { self.free.len() }
    }

    /// Takes a free chunk for one receive of the kernel: its index, its address and its length in
    /// bytes.
    pub(super) fn take_for_kernel(&mut self) -> Option<(u16, *mut u8, u32)> {
        let index = self.free.pop()?;
        self.holders[usize::from(index)] = Holder::Kernel;
        Some((index, self.region.chunk(index), self.chunk_bytes))
    }

    /// Takes over a chunk from the buffer ring that the kernel has filled.
    pub(super) fn take_from_ring(&mut self, index: u16) {
        let holder = &mut self.holders[usize::from(index)];
        assert_eq!(*holder, Holder::Kernel, "the kernel returned a chunk that it did not have");
        *holder = Holder::Free;
        self.in_buffer_ring -= 1;
    }

    /// Takes over the chunk of a receive that has completed.
    pub(super) fn take_from_receive(&mut self, index: u16) {
        let holder = &mut self.holders[usize::from(index)];
        assert_eq!(*holder, Holder::Kernel, "a receive completed for a chunk it did not have");
        *holder = Holder::Free;
    }

    /// Lends the shard a chunk that came back from the kernel with `len` bytes.
    pub(super) fn lend(&mut self, index: u16, len: u32) -> Chunk {
        assert!(len <= self.chunk_bytes, "the kernel wrote past the end of a chunk");
        let holder = &mut self.holders[usize::from(index)];
        assert_eq!(*holder, Holder::Free, "a chunk can be lent once only");
        *holder = Holder::Shard;
        Chunk { index, len, not_send: PhantomData }
    }

    /// Puts back a chunk that came from the kernel and was not lent.
    pub(super) fn put_back(&mut self, index: u16) {
        debug_assert_eq!(self.holders[usize::from(index)], Holder::Free);
        if self.buffer_ring.is_some() {
            self.hand_to_kernel(index);
        } else {
            self.free.push(index);
        }
    }

    /// Takes back a chunk from the shard.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        let Chunk { index, .. } = chunk;
        let holder = &mut self.holders[usize::from(index)];
        assert_eq!(*holder, Holder::Shard, "this chunk was lent by another reactor");
        *holder = Holder::Free;
        self.put_back(index);
    }

    pub(super) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        let holder = self.holders[usize::from(chunk.index)];
        assert_eq!(holder, Holder::Shard, "this chunk was lent by another reactor");
        assert!(chunk.len <= self.chunk_bytes);
        let start = self.region.chunk(chunk.index);
        // SAFETY: the range is inside the region and initialized (the region starts zeroed).
        // The shard holds the chunk, so the kernel does not write to it before `recycle`, which
        // needs `&mut self` and so ends this borrow.
        unsafe { slice::from_raw_parts(start, chunk.len as usize) }
    }

    /// Returns the address to which the kernel writes the waker's counter, which is never read.
    pub(super) fn counter(&self) -> *mut u8 {
        self.region.counter()
    }

    fn hand_to_kernel(&mut self, index: u16) {
        let Some(ring) = &mut self.buffer_ring else {
            return;
        };
        self.holders[usize::from(index)] = Holder::Kernel;
        self.in_buffer_ring += 1;
        let entry = self.region.ring_entry(ring.tail & (ring.entries - 1));
        let address = self.region.chunk(index) as u64;
        // SAFETY: the entry is inside the region. The kernel does not read it: there are as many
        // entries as chunks, and this chunk was not in the ring until now.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.chunk_bytes);
        entry.set_bid(index);
        ring.tail = ring.tail.wrapping_add(1);
        self.region.ring_tail().store(ring.tail, Ordering::Release);
    }
}

/// One allocation: the buffer ring's entries, the chunks, the waker's counter.
struct Region {
    /// The first page boundary of the allocation.
    start: NonNull<u8>,
    allocation: NonNull<u8>,
    layout: Layout,
    ring_entries: usize,
    chunks_at: usize,
    chunk_bytes: usize,
    counter_at: usize,
}

impl Region {
    fn new(chunks: usize, chunk_bytes: usize) -> Self {
        let ring_entries = chunks.next_power_of_two();
        let ring_bytes = ring_entries * size_of::<BufRingEntry>();
        let chunks_at = ring_bytes.next_multiple_of(PAGE_BYTES);
        let counter_at = chunks_at + chunks * chunk_bytes;
        let bytes = (counter_at + COUNTER_BYTES).next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
        // A larger alignment would have the allocator write the zeros, and so take all the memory
        // from the kernel at once. An idle shard needs a page or two of it.
        let layout = Layout::from_size_align(bytes, align_of::<BufRingEntry>())
            .unwrap_or_else(|_| panic!("{chunks} chunks of {chunk_bytes} bytes are too many"));
        // SAFETY: the layout is at least one page long.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else { handle_alloc_error(layout) };
        let ahead = allocation.addr().get().next_multiple_of(PAGE_BYTES) - allocation.addr().get();
        // SAFETY: less than one page ahead, and the allocation has one page more than is used.
        let start = unsafe { allocation.add(ahead) };
        Self { start, allocation, layout, ring_entries, chunks_at, chunk_bytes, counter_at }
    }

    fn chunk(&self, index: u16) -> *mut u8 {
        let at = self.chunks_at + usize::from(index) * self.chunk_bytes;
        debug_assert!(at + self.chunk_bytes <= self.counter_at);
        // SAFETY: a chunk's index is below the number of chunks, so this is inside the region.
        unsafe { self.start.as_ptr().add(at) }
    }

    fn counter(&self) -> *mut u8 {
        // SAFETY: `new` made the region long enough for a counter at `counter_at`.
        unsafe { self.start.as_ptr().add(self.counter_at) }
    }

    fn ring_entry(&self, index: u16) -> *mut BufRingEntry {
        debug_assert!(usize::from(index) < self.ring_entries);
        // SAFETY: the ring's entries are the first `ring_entries` of the region.
        unsafe { self.start.as_ptr().cast::<BufRingEntry>().add(usize::from(index)) }
    }

    fn ring_tail(&self) -> &AtomicU16 {
        // SAFETY: the region starts with a zeroed, that is initialized, ring entry.
        let tail = unsafe { BufRingEntry::tail(self.start.as_ptr().cast()) };
        // SAFETY: the tail is aligned, inside the region, lives as long as it, and is only ever
        // accessed through this; `set_addr`, `set_len` and `set_bid` write other fields.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout. The kernel does not know the region any
        // more: the reactor forgets a pool of which it cannot say that (see `Reactor::drop`).
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}
