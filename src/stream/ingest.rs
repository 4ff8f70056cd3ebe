//! Fast ingest: messages of a batch that are stored one by one and acknowledged many at a time.
//!
//! The reply subject of each message says its place:
//! `<prefix>.<id>.<flow>.<ok|fail>.<position>.<operation>.$FI`.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use serde::Serialize;

use super::answer::write_json;
use super::batch::BATCH_ID_BYTES_MAX;
use super::error::ApiError;
use super::headers::{self, name};
use super::live::{LiveStream, StreamEvent};
use super::publish::{Incoming, PublishContext, Published, StoredAt};
use crate::store::StreamStore;

/// End of the reply subjects of fast ingest.
const SUFFIX: &[u8] = b".$FI";
/// Messages between two acknowledgements, at most; several batches share them.
const FLOW_MAX: u64 = 500;
/// Messages between two acknowledgements if a publisher does not say.
const FLOW_USUAL: u64 = 10;

/// The operation of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Start,
    Append,
    /// The message is the last one.
    Commit,
    /// The message before was the last one; this one is not stored.
    End,
    /// No message: a publisher asks how far the server is.
    Ping,
}

/// The place of a message in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FastPlace<'a> {
    id: &'a [u8],
    flow: u64,
    may_have_gaps: bool,
    position: u64,
    operation: Operation,
}

/// Whether a reply subject is one of fast ingest.
pub(super) fn is_fast(reply: &[u8]) -> bool {
    reply.len() > SUFFIX.len() && reply.ends_with(SUFFIX)
}

impl<'a> FastPlace<'a> {
    fn parse(reply: &'a [u8]) -> Option<Self> {
        let mut tokens = reply.strip_suffix(SUFFIX)?.rsplit(|byte| *byte == b'.');
        let operation = match tokens.next()? {
            b"0" => Operation::Start,
            b"1" => Operation::Append,
            b"2" => Operation::Commit,
            b"3" => Operation::End,
            b"4" => Operation::Ping,
            _ => return None,
        };
        let position = headers::number(tokens.next()?).filter(|position| *position > 0)?;
        let fits = match operation {
            Operation::Start => position == 1,
            Operation::Append | Operation::End => position > 1,
            Operation::Commit | Operation::Ping => true,
        };
        let may_have_gaps = match tokens.next()? {
            b"ok" => true,
            b"fail" => false,
            _ => return None,
        };
        let flow = headers::number(tokens.next()?).filter(|flow| *flow > 0);
        let flow = flow.unwrap_or(FLOW_USUAL).min(u64::from(u16::MAX));
        let id = tokens.next()?;
        // The id is not the first token.
        tokens.next()?;
        fits.then_some(Self { id, flow, may_have_gaps, position, operation })
    }
}

/// A batch under way.
#[derive(Debug)]
struct FastBatch {
    may_have_gaps: bool,
    /// Messages between two acknowledgements that the publisher allows.
    flow_max: u64,
    flow: u64,
    /// Position that was acknowledged last.
    told: u64,
    /// Position of the last message.
    last: u64,
    /// Sequence of the last message that was stored.
    sequence: u64,
    commit: u64,
    deadline: u64,
}

/// All batches under way.
#[derive(Debug, Default)]
pub(super) struct FastBatches {
    open: HashMap<Vec<u8>, FastBatch>,
    /// Words to publishers that come before the acknowledgement of the same message.
    told: VecDeque<StreamEvent>,
}

impl FastBatches {
    /// Adds a message that leaves before the acknowledgement of what is being published.
    pub(super) fn tell(&mut self, event: StreamEvent) {
        self.told.push_back(event);
    }

    pub(super) fn next_told(&mut self) -> Option<StreamEvent> {
        self.told.pop_front()
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.open.values().map(|batch| batch.deadline).min()
    }

    pub(super) fn give_up(&mut self, now: u64) {
        self.open.retain(|_, batch| batch.deadline > now);
    }
}

impl FastBatch {
    /// Returns the position to be acknowledged now, if it is time.
    fn due(&mut self, batches: u64) -> Option<u64> {
        let flow = self.flow.max(1);
        if self.last < self.told + flow {
            return None;
        }
        self.told += (self.last - self.told) / flow * flow;
        let most = (FLOW_MAX / batches.max(1)).clamp(1, self.flow_max);
        self.flow = match self.flow {
            slow if slow < most => (slow * 2).min(most),
            fast => (fast / 2).max(most).min(fast),
        };
        Some(self.told)
    }
}

/// Words to a publisher besides the acknowledgement of the whole batch.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum FlowMessage<'a> {
    Ack { seq: u64, msgs: u64 },
    Gap { last_seq: u64, seq: u64 },
    Err { seq: u64, error: &'a ApiError },
}

/// Takes a message of fast ingest.
pub(super) fn publish_fast(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    incoming: &Incoming<'_>,
) -> Published {
    let place = match check_fast(live, context, incoming) {
        Ok(place) => place,
        Err(error) => return error.into(),
    };
    if let Err(error) = find_fast(live, &place) {
        return error.into();
    }
    if headers::needs_higher_level(incoming.headers) {
        live.fast.open.remove(place.id);
        return ApiError::REQUIRED_API_LEVEL.into();
    }
    let deadline = context.now.saturating_add(live.limits.batch_timeout);
    if let Some(batch) = live.fast.open.get_mut(place.id) {
        batch.deadline = deadline;
    }
    if place.operation == Operation::Ping {
        return answer_ping(live, &place, incoming.reply);
    }
    if !accept(live, &place, incoming.reply) {
        return end_fast(live, place.id);
    }
    if place.operation == Operation::End {
        return end_fast(live, place.id);
    }
    if place.operation == Operation::Start {
        let msgs = live.fast.open.get(place.id).map_or(0, |batch| batch.flow);
        tell(live, incoming.reply, 0, &FlowMessage::Ack { seq: 0, msgs });
    }
    let mut headers = Cow::Borrowed(incoming.headers);
    if headers::find(&headers, name::REQUIRED_API_LEVEL).is_some() {
        headers::remove(headers.to_mut(), name::REQUIRED_API_LEVEL);
    }
    let published = live.publish_one(store, context, &Incoming { headers: &headers, ..*incoming });
    on_fast_published(live, &place, incoming.reply, published)
}

fn check_fast<'a>(
    live: &LiveStream,
    context: &PublishContext<'_>,
    incoming: &Incoming<'a>,
) -> Result<FastPlace<'a>, ApiError> {
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
    if !live.config().allow_batched {
        return Err(ApiError::BATCH_PUBLISH_DISABLED);
    }
    let place = FastPlace::parse(incoming.reply).ok_or(ApiError::BATCH_PUBLISH_INVALID_PATTERN)?;
    if place.id.len() > BATCH_ID_BYTES_MAX {
        return Err(ApiError::BATCH_PUBLISH_INVALID_BATCH_ID);
    }
    Ok(place)
}

/// Finds the batch of a message, or opens one for the first message.
fn find_fast(live: &mut LiveStream, place: &FastPlace<'_>) -> Result<(), ApiError> {
    if live.fast.open.contains_key(place.id) {
        return Ok(());
    }
    if place.position != 1 || place.operation == Operation::Ping {
        return Err(ApiError::BATCH_PUBLISH_UNKNOWN_BATCH_ID);
    }
    if live.fast.open.len() >= live.limits.batches_max {
        return Err(ApiError::BATCH_PUBLISH_TOO_MANY_INFLIGHT);
    }
    // One publisher may be as fast as it likes; of several each begins slowly.
    let flow = if live.fast.open.is_empty() { place.flow.min(FLOW_MAX) } else { 1 };
    let batch = FastBatch {
        may_have_gaps: place.may_have_gaps,
        flow_max: place.flow,
        flow,
        told: 0,
        last: 0,
        sequence: 0,
        commit: 0,
        deadline: 0,
    };
    live.fast.open.insert(place.id.to_vec(), batch);
    Ok(())
}

fn answer_ping(live: &mut LiveStream, place: &FastPlace<'_>, reply: &[u8]) -> Published {
    let Some(batch) = live.fast.open.get_mut(place.id) else { return Published::Unanswered };
    let (last, commit) = (batch.last, batch.commit);
    let is_gap = place.position > last;
    if is_gap && batch.may_have_gaps {
        batch.last = place.position;
    }
    let goes_on = !is_gap || batch.may_have_gaps;
    if is_gap {
        let (last_seq, seq) = (last + 1, place.position.saturating_add(1));
        tell(live, reply, commit, &FlowMessage::Gap { last_seq, seq });
    }
    if !goes_on {
        return end_fast(live, place.id);
    }
    if !tell_flow(live, place.id, reply)
        && let Some(batch) = live.fast.open.get(place.id)
    {
        let ack = FlowMessage::Ack { seq: batch.told, msgs: batch.flow };
        tell(live, reply, commit, &ack);
    }
    Published::Unanswered
}

/// Whether a message is the next one of its batch, or there may be gaps.
fn accept(live: &mut LiveStream, place: &FastPlace<'_>, reply: &[u8]) -> bool {
    let Some(batch) = live.fast.open.get_mut(place.id) else { return false };
    let (expected, commit) = (batch.last + 1, batch.commit);
    let is_accepted = match place.position {
        position if position == expected => true,
        position => position > expected && batch.may_have_gaps,
    };
    if is_accepted {
        let is_stored = place.operation != Operation::End;
        batch.last = if is_stored { place.position } else { place.position - 1 };
    }
    if place.position != expected {
        let gap = FlowMessage::Gap { last_seq: expected, seq: place.position };
        tell(live, reply, commit, &gap);
    }
    is_accepted
}

fn on_fast_published(
    live: &mut LiveStream,
    place: &FastPlace<'_>,
    reply: &[u8],
    published: Published,
) -> Published {
    let is_last = place.operation == Operation::Commit;
    match published {
        Published::Stored(StoredAt { sequence, commit, .. })
        | Published::NotStored { sequence, commit } => {
            if let Some(batch) = live.fast.open.get_mut(place.id) {
                (batch.sequence, batch.commit) = (sequence, commit);
            }
            live.events.push_back(StreamEvent::Stored { sequence, commit });
        }
        Published::Refused(error) => {
            let batch = live.fast.open.get_mut(place.id);
            let Some(batch) = batch else { return Published::Refused(error) };
            if !batch.may_have_gaps && batch.last == 1 {
                live.fast.open.remove(place.id);
                return Published::Refused(error);
            }
            let goes_on = batch.may_have_gaps && !is_last;
            if !goes_on {
                batch.last -= 1;
            }
            let commit = batch.commit;
            let told = FlowMessage::Err { seq: place.position, error: &error };
            tell(live, reply, commit, &told);
            return if goes_on { Published::Unanswered } else { end_fast(live, place.id) };
        }
        // A message that was there already counts as stored.
        Published::Duplicate { .. } => {}
        other => return other,
    }
    if is_last {
        return end_fast(live, place.id);
    }
    tell_flow(live, place.id, reply);
    Published::Unanswered
}

/// Acknowledges what was stored, if it is time; returns whether it was.
fn tell_flow(live: &mut LiveStream, id: &[u8], reply: &[u8]) -> bool {
    let batches = live.fast.open.len() as u64;
    let Some(batch) = live.fast.open.get_mut(id) else { return false };
    let Some(seq) = batch.due(batches) else { return false };
    let (msgs, commit) = (batch.flow, batch.commit);
    tell(live, reply, commit, &FlowMessage::Ack { seq, msgs });
    true
}

/// Ends a batch: its acknowledgement has the last message that was stored.
fn end_fast(live: &mut LiveStream, id: &[u8]) -> Published {
    let Some(batch) = live.fast.open.remove(id) else { return Published::Unanswered };
    Published::Stored(StoredAt {
        sequence: batch.sequence,
        commit: batch.commit,
        value: None,
        batch: Some((String::from_utf8_lossy(id).into_owned(), batch.last)),
    })
}

fn tell(live: &mut LiveStream, reply: &[u8], commit: u64, message: &FlowMessage<'_>) {
    if live.config().no_ack || reply.is_empty() {
        return;
    }
    let mut payload = Vec::new();
    write_json(&mut payload, message);
    let (subject, headers) = (reply.to_vec(), Vec::new());
    live.fast.tell(StreamEvent::Publish { subject, headers, payload, commit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_subject_says_the_place_of_a_message() {
        let place = FastPlace::parse(b"in.u1.10.fail.2.1.$FI").unwrap();
        let expected = FastPlace {
            id: b"u1",
            flow: 10,
            may_have_gaps: false,
            position: 2,
            operation: Operation::Append,
        };
        assert_eq!(place, expected);
        assert_eq!(FastPlace::parse(b"a.b.u.0.ok.1.4.$FI").unwrap().flow, FLOW_USUAL);
        for reply in [
            &b"u1.10.fail.2.1.$FI"[..],
            b"in.u1.10.maybe.2.1.$FI",
            b"in.u1.10.ok.0.1.$FI",
            b"in.u1.10.ok.1.1.$FI",
            b"in.u1.10.ok.2.0.$FI",
            b"in.u1.10.ok.1.3.$FI",
            b"in.u1.10.ok.2.5.$FI",
            b".$FI",
        ] {
            assert_eq!(FastPlace::parse(reply), None, "{}", String::from_utf8_lossy(reply));
        }
        assert!(is_fast(b"x.$FI") && !is_fast(b".$FI") && !is_fast(b"x"));
    }
}
