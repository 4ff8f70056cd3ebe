//! The form of a log on the disk: records, the batches of commits, and the labels of files.
//!
//! - `record`: entries of the log about a stream, and `ranges`: sets of sequences in it
//! - `batch`: the records of one commit
//! - `checksum`: the mark of whole records and batches
//! - `label`: the first page of a file

#![forbid(unsafe_code)]

pub(crate) mod batch;
pub(crate) mod checksum;
pub(crate) mod label;
pub(crate) mod ranges;
#[expect(clippy::module_inception, reason = "a record is what the room is about")]
pub(crate) mod record;
