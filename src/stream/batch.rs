//! Atomic batches: messages that are stored together, or not at all.
//!
//! Members wait in memory, at most [`BATCH_BYTES_MAX`] of all batches of a stream, until the last
//! one comes. Then all are checked, each as if those before it were stored already, and stored with
//! one commit.

use std::collections::{HashMap, HashSet};

use super::config::Discard;
use super::error::ApiError;
use super::headers::{self, name};
use super::live::{LiveStream, StreamEvent};
use super::publish::{
    Incoming, MessageDraft, PublishContext, Published, Rollup, StoredAt, charge_of,
};
use crate::store::StreamStore;

/// Bytes of the members of all open batches of a stream.
const BATCH_BYTES_MAX: usize = 32 << 20;
/// Longest name of a batch, in bytes.
pub(super) const BATCH_ID_BYTES_MAX: usize = 64;

/// Batches whose end has not come.
#[derive(Debug, Default)]
pub(super) struct Batches {
    open: HashMap<Vec<u8>, OpenBatch>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct OpenBatch {
    messages: Vec<BatchMember>,
    /// Position of the last member that came.
    last: u64,
    /// Time at which the batch is given up, in nanoseconds since 1970.
    deadline: u64,
}

/// A member of a batch that waits for the others.
#[derive(Debug)]
struct BatchMember {
    subject: Box<[u8]>,
    headers: Vec<u8>,
    payload: Box<[u8]>,
}

impl BatchMember {
    fn bytes(&self) -> usize {
        self.subject.len() + self.headers.len() + self.payload.len()
    }
}

/// The end of a batch, as its last member says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// There are more members.
    No,
    /// The member is the last one.
    WithThis,
    /// The member before was the last one; this one is not stored.
    WithoutThis,
    /// The header has another value.
    Invalid,
}

impl Ending {
    fn of(block: &[u8]) -> Self {
        match headers::find(block, name::BATCH_COMMIT) {
            None => Self::No,
            Some(b"1") => Self::WithThis,
            Some(b"eob") => Self::WithoutThis,
            Some(_) => Self::Invalid,
        }
    }
}

/// Members of a batch that were checked, as those behind them see them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The time, in nanoseconds since 1970.
    now: u64,
    pub(super) messages: u64,
    bytes: u64,
    /// Members by subject.
    subjects: HashMap<Vec<u8>, u64>,
    ids: HashSet<Vec<u8>>,
}

impl Ahead {
    pub(super) fn has_subject(&self, subject: &[u8]) -> bool {
        self.subjects.contains_key(subject)
    }
}

impl Batches {
    fn drop_batch(&mut self, id: &[u8]) -> Option<OpenBatch> {
        let batch = self.open.remove(id)?;
        self.bytes -= batch.messages.iter().map(BatchMember::bytes).sum::<usize>();
        Some(batch)
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.open.values().map(|batch| batch.deadline).min()
    }

    /// Gives up batches that have waited too long; returns their names.
    pub(super) fn give_up(&mut self, now: u64) -> Vec<Vec<u8>> {
        let late = self.open.iter().filter(|(_, batch)| batch.deadline <= now);
        let late: Vec<Vec<u8>> = late.map(|(id, _)| id.clone()).collect();
        late.iter().for_each(|id| drop(self.drop_batch(id)));
        late
    }
}

/// Takes a member of an atomic batch.
pub(super) fn publish_member(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    incoming: &Incoming<'_>,
    id: &[u8],
) -> Published {
    take_member(live, store, context, incoming, id).unwrap_or_else(|refused| refused)
}

fn take_member(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    incoming: &Incoming<'_>,
    id: &[u8],
) -> Result<Published, Published> {
    check_member_alone(live, context, incoming, id)?;
    let position = headers::value(incoming.headers, name::BATCH_SEQUENCE);
    let position = position.and_then(headers::number);
    let position = position.ok_or(ApiError::ATOMIC_PUBLISH_MISSING_SEQUENCE)?;
    let ending = Ending::of(incoming.headers);
    let size = position - u64::from(ending == Ending::WithoutThis && position > 0);
    find_batch(live, id, position, size)?;
    if ending == Ending::Invalid {
        live.batches.drop_batch(id);
        return Err(ApiError::ATOMIC_PUBLISH_INVALID_BATCH_COMMIT.into());
    }
    if headers::needs_higher_level(incoming.headers) {
        abandon(live, id, "unsupported");
        return Err(ApiError::REQUIRED_API_LEVEL.into());
    }
    let deadline = context.now.saturating_add(live.limits.batch_timeout);
    let expected = live.batches.open.get_mut(id).map_or(0, |batch| {
        batch.last += 1;
        batch.deadline = deadline;
        batch.last
    });
    if expected != position || (position == 1 && ending == Ending::WithoutThis) {
        abandon(live, id, "incomplete");
        return Err(ApiError::ATOMIC_PUBLISH_INCOMPLETE_BATCH.into());
    }
    if size > live.limits.batch_messages_max as u64 {
        abandon(live, id, "large");
        let max = live.limits.batch_messages_max;
        return Err(ApiError::atomic_publish_too_large_batch(max).into());
    }
    if ending != Ending::WithoutThis {
        hold(live, id, incoming)?;
    }
    if ending == Ending::No {
        return Ok(Published::Held);
    }
    commit_batch(live, store, context, id, ending)
}

/// Checks a member apart from its batch.
fn check_member_alone(
    live: &LiveStream,
    context: &PublishContext<'_>,
    incoming: &Incoming<'_>,
    id: &[u8],
) -> Result<(), ApiError> {
    if live.config().sealed {
        return Err(ApiError::STREAM_SEALED);
    }
    if context.is_full {
        return Err(ApiError::INSUFFICIENT_RESOURCES);
    }
    let bytes = incoming.headers.len() + incoming.payload.len();
    if bytes as u64 > context.bytes_left {
        return Err(ApiError::ACCOUNT_RESOURCES_EXCEEDED);
    }
    if usize::try_from(live.config().max_msg_size).is_ok_and(|limit| bytes > limit) {
        return Err(ApiError::STREAM_MESSAGE_EXCEEDS_MAXIMUM);
    }
    if !live.config().allow_atomic {
        return Err(ApiError::ATOMIC_PUBLISH_DISABLED);
    }
    if id.len() > BATCH_ID_BYTES_MAX {
        return Err(ApiError::ATOMIC_PUBLISH_INVALID_BATCH_ID);
    }
    Ok(())
}

/// Finds the batch of a member, or opens one for the first member.
fn find_batch(live: &mut LiveStream, id: &[u8], position: u64, size: u64) -> Result<(), ApiError> {
    if live.batches.open.contains_key(id) {
        return Ok(());
    }
    if position != 1 {
        let max = live.limits.batch_messages_max;
        return Err(match size > max as u64 {
            true => ApiError::atomic_publish_too_large_batch(max),
            false => ApiError::ATOMIC_PUBLISH_INCOMPLETE_BATCH,
        });
    }
    if live.batches.open.len() >= live.limits.batches_max {
        return Err(ApiError::ATOMIC_PUBLISH_TOO_MANY_INFLIGHT);
    }
    live.batches.open.insert(id.to_vec(), OpenBatch::default());
    Ok(())
}

fn hold(live: &mut LiveStream, id: &[u8], incoming: &Incoming<'_>) -> Result<(), ApiError> {
    let mut block = headers::without_status(incoming.headers).into_owned();
    headers::remove(&mut block, name::REQUEST_INFO);
    headers::remove(&mut block, name::REQUIRED_API_LEVEL);
    let (subject, payload) = (incoming.subject.into(), incoming.payload.into());
    let message = BatchMember { subject, headers: block, payload };
    if live.batches.bytes + message.bytes() > BATCH_BYTES_MAX {
        abandon(live, id, "large");
        return Err(ApiError::ATOMIC_PUBLISH_TOO_MANY_INFLIGHT);
    }
    live.batches.bytes += message.bytes();
    if let Some(batch) = live.batches.open.get_mut(id) {
        batch.messages.push(message);
    }
    Ok(())
}

/// Drops a batch, and says so.
fn abandon(live: &mut LiveStream, id: &[u8], reason: &'static str) {
    live.batches.drop_batch(id);
    let batch = String::from_utf8_lossy(id).into_owned();
    live.events.push_back(StreamEvent::BatchAbandoned { batch, reason });
}

/// Gives up batches whose next member has not come.
pub(super) fn give_up_batches(live: &mut LiveStream, now: u64) {
    for id in live.batches.give_up(now) {
        abandon(live, &id, "timeout");
    }
}

/// Stores a batch that is complete.
fn commit_batch(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    id: &[u8],
    ending: Ending,
) -> Result<Published, Published> {
    let mut batch = live.batches.drop_batch(id).unwrap_or_default();
    if ending == Ending::WithoutThis
        && let Some(last) = batch.messages.last_mut()
    {
        headers::add(&mut last.headers, name::BATCH_COMMIT, "1");
    }
    let drafts = check_batch(live, store, context, &batch.messages)?;
    let count = drafts.len() as u64;
    let (first, mut commit) = (live.last_sequence(store) + 1, 0);
    for draft in drafts {
        match live.store(store, context, draft) {
            Ok(Published::Stored(stored)) => commit = commit.max(stored.commit),
            Ok(Published::NotStored { commit: of_it, .. }) => commit = commit.max(of_it),
            Ok(other) | Err(other) => {
                // Nobody has seen the members before it: they are in the same commit.
                let stored: Vec<u64> = (first..=live.last_sequence(store)).collect();
                let _ = live.remove(store, &stored);
                return Err(other);
            }
        }
    }
    let batch = Some((String::from_utf8_lossy(id).into_owned(), count));
    let sequence = live.last_sequence(store);
    Ok(Published::Stored(StoredAt { sequence, commit, value: None, batch }))
}

/// Checks all members of a batch, each behind those before it.
fn check_batch<'a>(
    live: &mut LiveStream,
    store: &StreamStore,
    context: &PublishContext<'_>,
    messages: &'a [BatchMember],
) -> Result<Vec<MessageDraft<'a>>, ApiError> {
    let mut ahead = Ahead { now: context.now, ..Ahead::default() };
    let mut drafts = Vec::with_capacity(messages.len());
    for message in messages {
        let (subject, payload) = (&*message.subject, &*message.payload);
        let block = message.headers.as_slice();
        if headers::value(block, name::EXPECTED_LAST_MSG_ID).is_some() {
            let name = name::EXPECTED_LAST_MSG_ID;
            return Err(ApiError::atomic_publish_unsupported_header_batch(name));
        }
        let incoming = Incoming { subject, reply: b"", headers: block, payload };
        let mut draft = live.draft(&incoming);
        check_member(live, store, &mut draft, &mut ahead)?;
        drafts.push(draft);
    }
    if ahead.bytes > context.bytes_left {
        return Err(ApiError::ACCOUNT_RESOURCES_EXCEEDED);
    }
    Ok(drafts)
}

fn check_member(
    live: &mut LiveStream,
    store: &StreamStore,
    draft: &mut MessageDraft<'_>,
    ahead: &mut Ahead,
) -> Result<(), ApiError> {
    live.check_size(draft)?;
    live.check_headers(store, draft, Some(ahead))?;
    if let Some(id) = headers::value(&draft.headers, name::MSG_ID) {
        let oldest = ahead.now.saturating_sub(live.window());
        let is_known = live.dedupe.find(id, oldest).is_some();
        if is_known || !ahead.ids.insert(id.to_vec()) {
            return Err(ApiError::ATOMIC_PUBLISH_CONTAINS_DUPLICATE_MESSAGE);
        }
    }
    live.check_ttl(draft)?;
    draft.rollup = live.rollup_of(&draft.headers)?;
    let is_first = !ahead.has_subject(&draft.subject);
    match draft.rollup {
        Some(Rollup::Subject) if !is_first => {
            return Err(ApiError::stream_rollup_failed("batch rollup sub invalid"));
        }
        Some(Rollup::All) if ahead.messages > 0 => {
            return Err(ApiError::stream_rollup_failed("batch rollup all invalid"));
        }
        _ => {}
    }
    ahead.messages += 1;
    ahead.bytes += charge_of(live, draft);
    *ahead.subjects.entry(draft.subject.to_vec()).or_default() += 1;
    check_room_for_batch(live, store, draft, ahead)
}

/// Refuses a batch for which there is no room, where old messages do not give way.
fn check_room_for_batch(
    live: &LiveStream,
    store: &StreamStore,
    draft: &MessageDraft<'_>,
    ahead: &Ahead,
) -> Result<(), ApiError> {
    let config = live.config();
    let Some(index) = store.stream(live.id).filter(|_| config.discard == Discard::New) else {
        return Ok(());
    };
    let totals = index.totals();
    let is_over = |limit: i64, number: u64| u64::try_from(limit).is_ok_and(|max| number > max);
    if is_over(config.max_msgs, totals.messages + ahead.messages) {
        return Err(ApiError::stream_store_failed("maximum messages exceeded"));
    }
    if is_over(config.max_bytes, totals.bytes + ahead.bytes) {
        return Err(ApiError::stream_store_failed("maximum bytes exceeded"));
    }
    if config.discard_new_per_subject && draft.rollup.is_none() {
        let stored = index.subject(&draft.subject).map_or(0, |state| state.messages);
        let own = ahead.subjects.get(&*draft.subject).copied().unwrap_or(0);
        if is_over(config.max_msgs_per_subject, stored + own) {
            let why = "maximum messages per subject exceeded";
            return Err(ApiError::stream_store_failed(why));
        }
    }
    Ok(())
}
