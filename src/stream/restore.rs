//! A stream that comes out of an archive, and what goes into one beside its messages.

use std::borrow::Cow;

use super::live::LiveStream;
use super::publish::{MessageDraft, PublishContext, Published};
use super::requests::InfoContext;
use super::time::Timestamp;
use crate::store::{NewMessage, StoreError, StoredMessage, StreamStore};
use crate::stream::ApiError;
use crate::subject::is_valid_publish;

/// The file of an archive that has a stream's configuration: the part of it that a restore takes.
#[derive(serde::Deserialize)]
struct ArchivedTime {
    #[serde(rename = "Created")]
    created: Option<Timestamp>,
    name: String,
}

/// Takes the file of an archive with the stream's configuration. Returns whether it is of a stream
/// with this name.
pub fn take_archived(live: &mut LiveStream, file: &[u8]) -> bool {
    let Ok(ArchivedTime { created, name }) = serde_json::from_slice(file) else { return false };
    live.kept.created = created.unwrap_or(live.kept.created);
    name == live.config().name
}

/// Stores a message of an archive, with its sequence and time. One that is there already, or
/// comes too late, is passed over.
pub fn restore_message(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    message: &StoredMessage<'_>,
) -> Published {
    let StoredMessage { sequence, time, subject, headers, payload, .. } = *message;
    if !is_valid_publish(subject) {
        return Published::Refused(ApiError::stream_restore("a message has an invalid subject"));
    }
    if sequence <= live.last_sequence(store) {
        return Published::Duplicate { sequence, commit: 0 };
    }
    let [subject, headers, payload] = [subject, headers, payload].map(Cow::Borrowed);
    // It was transformed and counted when it was stored first.
    let (rollup, value, is_own, place) = (None, Some(String::new()), true, Some((sequence, time)));
    let draft = MessageDraft { subject, headers, payload, rollup, value, is_own, place };
    live.store(store, context, draft).unwrap_or_else(|refused| refused)
}

/// Lets the stream go on behind a sequence that has no message.
///
/// # Errors
///
/// Returns the error of the store.
pub fn restore_gap(
    live: &mut LiveStream,
    store: &mut StreamStore,
    sequence: u64,
) -> Result<(), StoreError> {
    if sequence > live.last_sequence(store) {
        let (time, subject) = (live.last_time, &b"_"[..]);
        let nothing = NewMessage { time, flags: 0, subject, headers: b"", payload: b"" };
        store.append_at(live.id, sequence, &nothing)?;
        store.remove(live.id, &[sequence])?;
    }
    Ok(())
}

/// Lets the stream, which is empty, begin at a sequence.
///
/// # Errors
///
/// Returns the error of the store.
pub fn restore_first(
    live: &mut LiveStream,
    store: &mut StreamStore,
    first: u64,
) -> Result<(), StoreError> {
    if first > 1 {
        store.purge(live.id, first)?;
    }
    Ok(())
}

/// Forgets a message that the archive says was deleted. If its block is gone, it was deleted after
/// all before it were stored: the stream goes on behind it.
///
/// # Errors
///
/// Returns the error of the store.
pub fn restore_deleted(
    live: &mut LiveStream,
    store: &mut StreamStore,
    sequence: u64,
) -> Result<(), StoreError> {
    store.remove(live.id, &[sequence])?;
    restore_gap(live, store, sequence)
}

/// Makes the stream whole: it is there after a restart. Returns the number of the commit.
///
/// # Errors
///
/// Returns the error of the store.
pub fn end_restore(live: &mut LiveStream, store: &mut StreamStore) -> Result<u64, StoreError> {
    live.kept.is_partial = false;
    let home = super::live::home_of(&live.kept.config);
    let commit = store.configure(live.id, home, &live.kept.to_bytes())?;
    Ok(commit.max(live.enforce_limits(store)?))
}

/// Returns the state of the stream as an answer shows it, in JSON.
pub fn archived_state(
    live: &LiveStream,
    store: &StreamStore,
    context: &InfoContext,
) -> serde_json::Value {
    let info = serde_json::to_value(live.info(store, context)).unwrap_or_default();
    info.get("state").cloned().unwrap_or_default()
}
