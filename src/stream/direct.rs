//! Direct gets: messages as they are stored, with headers that say where they are from.

use std::ops::RangeInclusive;

use super::config::StorageKind;
use super::headers::{self, name};
use super::json;
use super::live::LiveStream;
use super::requests::GetRequest;
use super::time;
use crate::store::{StoredMessage, StreamId, StreamStore};

/// Bytes of messages that one request gets: half of the 32 MiB that a turn may add to memory. The
/// last answer says that more messages are pending.
const BYTES_MAX: usize = 16 << 20;
/// Subjects that one request gets the last messages of.
const SUBJECTS_MAX: usize = 1024;

/// A request for messages.
#[derive(Debug, Clone, Copy)]
pub struct DirectRequest<'a> {
    /// Headers of the request.
    pub headers: &'a [u8],
    /// Body of the request.
    pub body: &'a [u8],
    /// The subject at the end of the request's own subject, if there is one.
    pub subject: Option<&'a [u8]>,
}

/// Answers a direct get: each message is handed to `out` as headers and payload, in order. The
/// headers are empty if the request wants none.
pub fn direct_get(
    live: &LiveStream,
    store: &StreamStore,
    request: &DirectRequest<'_>,
    out: &mut dyn FnMut(&[u8], &[u8]),
) {
    let status = match read(request) {
        Ok(get) => answer(live, store, &get, out).err(),
        Err(status) => Some(status),
    };
    if let Some(status) = status {
        out(format!("NATS/1.0 {status}\r\n\r\n").as_bytes(), b"");
    }
}

const NOT_FOUND: &str = "404 Message Not Found";
const BAD: &str = "408 Bad Request";
const EMPTY: &str = "408 Empty Request";

fn read(request: &DirectRequest<'_>) -> Result<GetRequest, &'static str> {
    if headers::needs_higher_level(request.headers) {
        return Err("412 Required Api Level");
    }
    if request.body.is_empty() && request.subject.is_none() {
        return Err(EMPTY);
    }
    let get = json::parse_request::<GetRequest>(request.body, false);
    let mut get = get.map_err(|_| "408 Malformed Request")?;
    let is_bare = get.seq == 0
        && get.last_by_subj.is_empty()
        && get.next_by_subj.is_empty()
        && get.multi_last.is_empty()
        && get.start_time.is_none();
    if let Some(subject) = request.subject {
        let is_more = get.batch != 0 || get.up_to_seq != 0 || get.up_to_time.is_some();
        if subject.is_empty() || !is_bare || is_more {
            return Err(BAD);
        }
        get.last_by_subj = String::from_utf8_lossy(subject).into_owned();
        return Ok(get);
    }
    if is_bare {
        return Err(EMPTY);
    }
    let (has_last, has_multi) = (!get.last_by_subj.is_empty(), !get.multi_last.is_empty());
    let has_next = !get.next_by_subj.is_empty();
    let contradicts = (get.seq > 0 && (has_last || get.start_time.is_some()))
        || (has_last && (get.start_time.is_some() || has_next || get.batch > 0 || has_multi))
        || (has_next && has_multi)
        || (get.up_to_seq > 0 && get.up_to_time.is_some());
    if contradicts { Err(BAD) } else { Ok(get) }
}

/// Numbers that messages of a batch have beside their own.
struct BatchPosition {
    pending: u64,
    last: u64,
}

fn send(
    live: &LiveStream,
    message: &StoredMessage<'_>,
    position: Option<&BatchPosition>,
    out: &mut dyn FnMut(&[u8], &[u8]),
) {
    let mut block = message.headers.to_vec();
    headers::add(&mut block, name::STREAM, &live.config().name);
    headers::add(&mut block, name::SUBJECT, message.subject);
    headers::add(&mut block, name::SEQUENCE, message.sequence.to_string());
    headers::add(&mut block, name::TIME_STAMP, time::rfc3339_or_none(message.time));
    if let Some(position) = position {
        headers::add(&mut block, name::NUM_PENDING, position.pending.to_string());
        headers::add(&mut block, name::LAST_SEQUENCE, position.last.to_string());
    }
    out(&block, message.payload);
}

fn answer(
    live: &LiveStream,
    store: &StreamStore,
    get: &GetRequest,
    out: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), &'static str> {
    if !get.multi_last.is_empty() {
        return last_of_many(live, store, get, out);
    }
    let from = get.start_time.map_or(get.seq, |time| live.sequence_at(store, time.0));
    if get.batch != 0 {
        return batch(live, store, get, from, out);
    }
    let found = if !get.next_by_subj.is_empty() {
        live.next_match(store, &get.next_by_subj, from)
    } else if from > 0 {
        Some(from)
    } else {
        live.last_match(store, &get.last_by_subj)
    };
    let message = found.and_then(|sequence| live.shown(store, sequence)).ok_or(NOT_FOUND)?;
    if get.no_hdr {
        out(b"", message.payload);
    } else {
        send(live, &message, None, out);
    }
    Ok(())
}

/// Messages of a stream behind `from`, up to a number or an amount of bytes.
fn batch(
    live: &LiveStream,
    store: &StreamStore,
    get: &GetRequest,
    from: u64,
    out: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), &'static str> {
    let filter = &get.next_by_subj;
    let bytes_max = bytes_max(get);
    let mut position = BatchPosition { pending: live.count(store, filter, from), last: 0 };
    let (mut from, mut bytes) = (from, 0);
    for number in 0..get.batch {
        let found = live.next_match(store, filter, from);
        let Some(message) = found.and_then(|sequence| live.shown(store, sequence)) else {
            if number == 0 {
                return Err(NOT_FOUND);
            }
            break;
        };
        if get.no_hdr {
            out(b"", message.payload);
        } else {
            position.pending = position.pending.saturating_sub(1);
            send(live, &message, Some(&position), out);
        }
        position.last = message.sequence;
        from = message.sequence + 1;
        bytes += message.subject.len() + message.headers.len() + message.payload.len();
        if bytes >= bytes_max {
            break;
        }
    }
    let BatchPosition { pending, last } = position;
    let end = format!(
        "NATS/1.0 204 EOB\r\nNats-Num-Pending: {pending}\r\nNats-Last-Sequence: {last}\r\n\r\n"
    );
    out(end.as_bytes(), b"");
    Ok(())
}

fn bytes_max(get: &GetRequest) -> usize {
    match usize::try_from(get.max_bytes) {
        Ok(0) => BYTES_MAX,
        // The first message is over it.
        Err(_) => 0,
        Ok(bytes) => bytes.min(BYTES_MAX),
    }
}

/// The last messages of the subjects that filters match.
fn last_of_many(
    live: &LiveStream,
    store: &StreamStore,
    get: &GetRequest,
    out: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), &'static str> {
    const NO_RESULTS: &str = "404 No Results";
    let Some(index) = store.stream(live.id()) else { return Err(NO_RESULTS) };
    let state = index.state();
    let up_to = match get.up_to_time {
        Some(time) => {
            let behind = live.sequence_at(store, time.0);
            if behind <= state.first {
                return Err(NO_RESULTS);
            }
            behind - 1
        }
        None if get.up_to_seq == 0 => state.last,
        None if get.up_to_seq > state.last && live.config().storage == StorageKind::File => {
            return Err(NO_RESULTS);
        }
        None => get.up_to_seq,
    };
    let filters: Vec<&[u8]> = get.multi_last.iter().map(String::as_bytes).collect();
    let Some(found) = last_messages(live.id(), store, &filters, get.seq..=up_to, SUBJECTS_MAX)
    else {
        return Err("413 Too Many Results");
    };
    if found.is_empty() {
        return Err(NO_RESULTS);
    }
    let bytes_max = bytes_max(get);
    let mut position = BatchPosition { pending: found.len() as u64, last: 0 };
    let mut bytes = 0;
    for (sent, sequence) in (1..).zip(found) {
        let message = live.shown(store, sequence).ok_or(NOT_FOUND)?;
        position.pending -= 1;
        send(live, &message, Some(&position), out);
        position.last = sequence;
        bytes += message.subject.len() + message.headers.len() + message.payload.len();
        if bytes >= bytes_max || (get.batch > 0 && sent >= get.batch) {
            break;
        }
    }
    let BatchPosition { pending, last } = position;
    let end = format!(
        "NATS/1.0 204 EOB\r\nNats-Num-Pending: {pending}\r\nNats-Last-Sequence: {last}\r\n\
         Nats-UpTo-Sequence: {up_to}\r\n\r\n"
    );
    out(end.as_bytes(), b"");
    Ok(())
}

impl LiveStream {
    /// Number of messages from `from` on that may be shown and that a filter matches.
    pub(super) fn count(&self, store: &StreamStore, filter: &str, from: u64) -> u64 {
        let filters = if filter.is_empty() { &[][..] } else { &[filter.as_bytes()] };
        store.stream(self.id()).map_or(0, |index| index.count(filters, from))
    }
}

/// Sequences of the last messages, between two sequences, of the subjects that any filter
/// matches; `None` if there are more than so many.
fn last_messages(
    id: StreamId,
    store: &StreamStore,
    filters: &[&[u8]],
    between: RangeInclusive<u64>,
    subjects_max: usize,
) -> Option<Vec<u64>> {
    let index = store.stream(id)?;
    let mut found = index.last_shown_of_subjects(filters, *between.end(), subjects_max)?;
    found.retain(|sequence| sequence >= between.start());
    Some(found)
}
