//! Disk operations of a shard, as plain values.
//!
//! The room that decides what is stored emits [`DiskOp`]s and hears of each by one [`DiskDone`];
//! the reactor carries them out, and so does a simulated disk. The memory of an operation travels
//! with it and returns with its outcome: nobody touches it in between.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

/// What blocks are aligned to, and what direct operations count in, in bytes. Larger than any
/// disk's logical sector.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Memory for whole pages of a file, aligned as direct operations want it.
#[derive(Clone, Default)]
pub struct Block {
    pages: Vec<Page>,
}

impl Block {
    /// Zeroes, of at least `bytes` bytes, rounded up to whole pages.
    pub fn zeroed(bytes: usize) -> Self {
        Self { pages: bytemuck::zeroed_vec(bytes.div_ceil(PAGE_BYTES)) }
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pages)
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages)
    }

    /// How many bytes it has: whole pages.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}

/// Names a file of one shard: a number that its user has picked and opened, unique among those
/// that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAs {
    /// It is there, and only read.
    Reader,
    /// It is there, read and written.
    Writer,
    /// It is read and written, and made if it is not there; only the owner has access.
    Made,
    /// Made as `Made`, read and written past the page cache: blocks, places and lengths are
    /// whole pages. Fails with [`io::ErrorKind::InvalidInput`] where the file system cannot.
    MadeDirect,
    /// A directory, to be synced after files in it were made, renamed or removed.
    Directory,
}

/// One operation on the disk.
#[derive(Debug)]
pub struct DiskOp {
    /// Its user's name for it; comes back with the outcome.
    pub token: u64,
    /// What is to be done.
    pub what: DiskWork,
}

/// What can be done. Operations on one file that are under way at once may be carried out in any
/// order.
#[derive(Debug)]
pub enum DiskWork {
    /// Gives a file its number.
    Open {
        /// The number, which no open file has.
        file: FileId,
        /// Which file.
        path: Box<Path>,
        /// What for.
        how: OpenAs,
    },
    /// Writes the first `bytes` of the block, all of them or it fails.
    Write {
        /// Where to.
        file: FileId,
        /// The place in the file of the first byte.
        at: u64,
        /// What is written, and perhaps more.
        block: Block,
        /// How much of it.
        bytes: usize,
        /// The outcome comes when the data, and what is needed to find it, are on the disk.
        durable: bool,
    },
    /// Fills the first `bytes` of the block, or as many as there are before the file's end.
    Read {
        /// Where from.
        file: FileId,
        /// The place in the file of the first byte.
        at: u64,
        /// Where to.
        block: Block,
        /// How much.
        bytes: usize,
    },
    /// Waits until all that was written before is on the disk; of a directory, its entries.
    Sync {
        /// Of which file.
        file: FileId,
    },
    /// Makes the file at least this long, with room on the disk.
    Allocate {
        /// Which file.
        file: FileId,
        /// Its length.
        bytes: u64,
    },
    /// Gives a file another path, in place of what is there.
    Rename {
        /// Its path.
        from: Box<Path>,
        /// The other.
        to: Box<Path>,
    },
    /// Takes a file out of its directory.
    Remove {
        /// Its path.
        path: Box<Path>,
    },
    /// Takes a file's number back. Operations under way end as they would have.
    Close {
        /// Which file.
        file: FileId,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub struct DiskDone {
    /// The operation's name.
    pub token: u64,
    /// How many bytes were written or read; 0 for operations that do neither.
    pub outcome: io::Result<usize>,
    /// The operation's memory.
    pub block: Option<Block>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_whole_pages_where_direct_operations_want_them() {
        for (bytes, len) in [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)] {
            let block = Block::zeroed(bytes);
            assert_eq!(block.len(), len);
            assert_eq!(block.bytes().len(), len);
            assert_eq!(block.bytes().as_ptr().align_offset(PAGE_BYTES), 0);
            assert!(block.bytes().iter().all(|&byte| byte == 0));
        }
    }
}
