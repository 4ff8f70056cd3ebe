//! The store of a shard: one append-only log for all its streams, and an index of each.
//!
//! - `wal`: commits, and the files that they go to
//! - `tail`: the records of the log in memory
//! - `memory`: the records of a stream that is in no log
//! - `stream`: the index of one stream, and `streams`: all streams of a log
//! - `recovery`: a log that is found again after a restart, and damage to it
//!
//! No input or output, no clock, no protocol: the room knows neither JetStream's API nor consumers.
//!
//! **In** go messages and changes to be stored ([`StreamStore::append`] and its like) and
//! completions ([`StreamStore::on_disk`]); **out** come operations for the disk and events. The
//! owner hands in all that has happened, calls [`StreamStore::end_turn`], and carries out every
//! operation in the order in which they come.
//!
//! **Commits.** A call that changes something returns the number of its commit. The change may be
//! confirmed, and shown to readers, once [`WalEvent::Committed`] has come with that number or a
//! higher one: then it is on the disk, and a crash cannot give its sequence to another message. A
//! commit is there after a crash as a whole or not at all.
//!
//! **Memory.** A stream that is made with [`StreamHome::Memory`] is in no log, and gone after a
//! restart. It has the same calls; what they return as the number of a commit has ended already.
//!
//! **Start.** [`Recovery`] reads the log, [`StreamStore::new`] makes the indexes from it. The last
//! commit that was found is committed once more: until then it is staged as any other.
//!
//! **Reads.** Messages that are not in memory are on the disk: [`StreamStore::read`] says so,
//! [`StreamStore::load`] asks for them and those behind them, and [`WalEvent::Loaded`] says that
//! they may be read. Places, times, bytes and subjects of all messages are in the index.
//!
//! **Files.** All messages are in the log so far, which takes as many files as they need. The
//! oldest messages are written once more while the log takes more than about twice what is alive in
//! it, and [`StreamStore::checkpoint`] frees the files before the first message that is alive.
//!
//! **Bounds.** 4 MiB staged (`STAGED_BYTES_MAX`), at which [`Wal::is_full`] says that publishers
//! are to wait. 64 MiB of records in memory (`TAIL_BYTES_MAX`), 256 KiB in a read. A message costs
//! 28 bytes of index, a subject 75; a batch 64.

#![forbid(unsafe_code)]

mod memory;
mod recovery;
mod stream;
mod streams;
mod tail;
#[cfg(test)]
pub(crate) mod testing;
mod wal;

pub use crate::record::batch::{
    BATCH_HEADER_BYTES, BatchBody, BatchError, BatchGap, BatchHeader, BatchPlace, GAPS, Records,
};
pub use crate::record::checksum::{LogKey, Seed};
pub use crate::record::label::Label;
pub use crate::record::ranges::{RangeList, Ranges};
pub use crate::record::record::{
    Decoded, LogRecord, RECORD_BYTES_MAX, RecordError, StoredMessage, StreamId, TooLong,
};
pub use recovery::{Damage, Recovered, Recovery, RecoveryError, RecoveryReport};
pub use stream::{NextMessage, SEQUENCE_MAX, Stream, StreamState, SubjectState, Totals};
pub use streams::{Appended, NewMessage, Removed, StoreError, StreamHome, StreamStore};
pub use tail::{Read, RecordAt, RecordPlace};
pub use wal::{
    FILE_BYTES, LogSizes, STAGED_BYTES_MAX, StageError, Staged, TAIL_BYTES_MAX, Wal, WalEvent,
    WalSettings,
};
