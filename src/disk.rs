//! Disk operations of a shard, as plain values.
//!
//! The room that stores data emits [`DiskOp`]s and receives one [`DiskDone`] for each; the reactor
//! carries them out, and so does a simulated disk. The memory of an operation travels with it and
//! returns with its outcome: it is not touched in between.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

/// Bytes of a page: the alignment of blocks, and the unit of direct operations. Larger than any
/// disk's logical sector.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct AlignedPage([u8; PAGE_BYTES]);

/// Memory for whole pages of a file, aligned as direct operations need it.
#[derive(Clone, Default)]
pub struct Block {
    pages: Vec<AlignedPage>,
}

impl Block {
    /// Zeroes, of at least `bytes` bytes, rounded up to whole pages.
    pub fn zeroed(bytes: usize) -> Self {
        Self { pages: bytemuck::zeroed_vec(bytes.div_ceil(PAGE_BYTES)) }
    }

    /// Returns all bytes of the block.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pages)
    }

    /// Returns all bytes of the block, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages)
    }

    /// Returns the length in bytes: whole pages.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Whether the block has no bytes.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}

/// The name of a file of one shard: a number that its user has chosen and opened, unique among the
/// open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// The mode in which a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAs {
    /// An existing file, only read.
    Reader,
    /// An existing file, read and written.
    Writer,
    /// A file that is read and written, and made if it does not exist; only the owner has access.
    Made,
    /// A file as with `Made`, but read and written past the page cache: blocks, places and lengths
    /// are whole pages. Fails with [`io::ErrorKind::InvalidInput`] where the file system does not
    /// support it.
    MadeDirect,
    /// A directory, to be synced after files in it were made, renamed or removed.
    Directory,
}

/// An operation on the disk.
#[derive(Debug)]
pub struct DiskOp {
    /// The name that the operation's user has given it; returns with the outcome.
    pub token: u64,
    /// The work to do.
    pub what: DiskWork,
}

/// The work of a disk operation. Operations in flight on one file may be carried out in any order.
#[derive(Debug)]
pub enum DiskWork {
    /// The opening of a file under a number.
    Open {
        /// The number, which no open file has.
        file: FileId,
        /// The path of the file.
        path: Box<Path>,
        /// The mode in which the file is opened.
        how: OpenAs,
    },
    /// A write of the first `bytes` of the block; it fails unless all are written.
    Write {
        /// The file to write to.
        file: FileId,
        /// The place in the file of the first byte.
        at: u64,
        /// Bytes to write, and perhaps more.
        block: Block,
        /// Bytes of the block that are written.
        bytes: usize,
        /// Whether the outcome waits until the data, and the metadata needed to find it, are on the
        /// disk.
        durable: bool,
    },
    /// A read into the first `bytes` of the block, or of as many as the file has there.
    Read {
        /// The file to read from.
        file: FileId,
        /// The place in the file of the first byte.
        at: u64,
        /// The block to read into.
        block: Block,
        /// Bytes to read.
        bytes: usize,
    },
    /// A sync: it ends when all earlier writes are on the disk; of a directory, its entries.
    Sync {
        /// The file or directory to sync.
        file: FileId,
    },
    /// An allocation: the file becomes at least this long, with room on the disk.
    Allocate {
        /// The file to extend.
        file: FileId,
        /// The length in bytes that the file has at least.
        bytes: u64,
    },
    /// A new path for a file, in place of a file that is there.
    Rename {
        /// The path of the file.
        from: Box<Path>,
        /// The new path.
        to: Box<Path>,
    },
    /// The removal of a file from its directory.
    Remove {
        /// The path of the file.
        path: Box<Path>,
    },
    /// The closing of a file, which frees its number. Operations in flight end as they would have.
    Close {
        /// The file to close.
        file: FileId,
    },
}

/// The outcome of a disk operation.
#[derive(Debug)]
pub struct DiskDone {
    /// The name of the operation.
    pub token: u64,
    /// Bytes written or read; 0 for operations that do neither.
    pub outcome: io::Result<usize>,
    /// The block of the operation.
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
