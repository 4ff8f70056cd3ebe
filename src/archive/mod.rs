//! Archives of streams, as nats-server makes and takes them: what a snapshot is, and a restore.
//!
//! An archive is in S2's stream format. What is in it has two forms:
//!
//! - since nats-server 2.15, entries behind one another (`entries`): the state of the stream, its
//!   consumers, its messages, and an empty entry as the end. This one is written.
//! - before, a tar file (`tarball`): `meta.inf` and `meta.sum` with the configuration; blocks of
//!   messages, `msgs/1.blk` and so on (`records`); for each consumer `meta.inf`, `meta.sum` and
//!   `o.dat` below `obs/<consumer>` (`position`). This one is only read.
//!
//! The files of a stopped nats-server have the same records and positions ([`BlockFile`]).
//!
//! [`ArchiveWriter`] takes a stream piece by piece, [`ArchiveReader`] takes an archive cut
//! anywhere. No input or output, no stream and no consumer is known here.
//!
//! **Bounds.** The writer keeps one block of S2 and what nobody has taken yet. The reader keeps one
//! block of S2, of at most 4 MiB, and one message or small file, of at most 64 MiB.

#![forbid(unsafe_code)]

mod blocks;
mod entries;
mod position;
mod reader;
mod records;
mod tar;
mod tarball;
mod writer;

pub(crate) use blocks::{BlockFile, BlockIndex};
pub(crate) use reader::{ArchivePart, ArchiveReader, ArchiveStep};
pub(crate) use writer::ArchiveWriter;
