//! Streams: the rules by which one stream stores messages, gives them back, and removes them.
//!
//! - `live`: a stream as it runs; `publish`: a message on its way in
//! - `expiry`: messages that go at a time, `schedule` and `cron`: those that come at one
//! - `counter`: values that messages add to; `batch`: all or nothing; `ingest`: many at a time
//! - `copy`: mirrors and sources
//! - `requests`: information, purges, and messages by sequence; `direct`: messages as they are
//! - `usage`: what the streams of an account use of its limits
//!
//! No input or output, no clock: a stream lives over the messages that a
//! [`StreamStore`](crate::store::StreamStore) keeps, and is told the time. All that it changes gets
//! the number of a commit: what says so may leave once that commit is on the disk. The owner drains
//! [`LiveStream::next_event`] after each call.

#![forbid(unsafe_code)]

mod batch;
mod copy;
mod counter;
mod cron;
mod dedupe;
mod direct;
mod expiry;
mod figures;
mod ingest;
mod live;
mod publish;
mod requests;
pub mod restore;
mod schedule;
mod usage;

pub use crate::api::{
    AnswerKind, ApiAnswer, ApiError, CheckContext, ConsumerLimits, Discard, ExternalStream,
    KeptStream, NAME_BYTES_MAX, NAME_WANTED, PersistMode, Republish, Retention, SourceConsumer,
    StorageKind, StoreCompression, StreamConfig, StreamLimits, StreamPlacement, StreamRequest,
    StreamSource, SubjectTransformConfig, headers, is_valid_name, json, short_name, time,
};
use crate::api::{answer, check, config, error};
pub use copy::{
    CopiedMessage, CopyAsk, CopyPage, CopyPlace, CopyStart, begin_anew, copy_place, identity,
    note_failed, note_lost,
};
pub use direct::{DirectRequest, direct_get};
pub use figures::{StreamFigures, UsageFigures};
pub use live::{LiveStream, Opening, Purge, StreamEvent, last_commit};
pub use publish::{Incoming, PublishContext, Published, StoredAt};
pub use requests::{
    Alternate, InfoContext, SourceInfo, StreamInfo, delete_message, get_message, purge,
    refused_body, stream_info,
};
pub use usage::AccountUsage;

#[cfg(test)]
mod tests;
