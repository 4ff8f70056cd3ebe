//! Snapshots: streams that leave as archives, chunk by chunk, as fast as they are acknowledged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::advisory::{advisory, new_id};
use super::audit::note_answer;
use super::meta::answer;
use super::order::ReplyTo;
use super::restores::{Restore, advance_restores, tick_restores};
use super::{ActiveJetStream, TapUse, consumers, wall};
use crate::archive::ArchiveWriter;
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::delivery::services;
use crate::interest::ids::AccountId;
use crate::interest::taps::TapId;
use crate::store::{Decoded, LogRecord, NextMessage, Read, RecordAt, StreamId};
use crate::stream::restore::archived_state;
use crate::stream::{AnswerKind, ApiError, StreamConfig, json, time};
use crate::subject;

const SECOND_NS: u64 = 1_000_000_000;
/// The longest time for which nobody acknowledges anything, and for which the receiver is awaited.
const STALL_NS: u64 = 5 * SECOND_NS;
const INTEREST_NS: u64 = 2 * SECOND_NS;
/// The time between two looks for a receiver.
const LOOK_NS: u64 = SECOND_NS / 50;
/// Bytes of chunks and of windows: what is usual, and what is allowed.
const CHUNK_BYTES: usize = 128 << 10;
const CHUNK_BYTES_MAX: usize = 1 << 20;
const WINDOW_BYTES: usize = 8 << 20;
const WINDOW_BYTES_MAX: usize = 32 << 20;
const CHUNK_BYTES_MIN: usize = 1 << 10;
/// Bytes of messages that go into archives in one turn, about.
const TURN_BYTES: usize = 1 << 20;
/// Steps of one search for the next message, and the bytes for which one without a result counts.
const SEARCH_STEPS: usize = 4096;
const SEARCH_BYTES: usize = 64 << 10;
/// Snapshots of a shard at a time.
const SNAPSHOTS_MAX: usize = 64;

/// Streams that leave as archives, and that come as such.
#[derive(Debug, Default)]
pub(super) struct Archives {
    snapshots: BTreeMap<StreamId, Snapshot>,
    pub(super) restores: BTreeMap<StreamId, Restore>,
    /// Whether there may be something to do now.
    pub(super) is_awake: bool,
    /// Time of the next look for receivers, in nanoseconds since the start of the process.
    again: Option<u64>,
}

/// A request for a snapshot.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SnapshotRequest {
    deliver_subject: String,
    no_consumers: bool,
    chunk_size: i64,
    window_size: i64,
    #[serde(rename = "jsck")]
    _checks_messages: bool,
}

/// A stream that leaves.
#[derive(Debug)]
struct Snapshot {
    account: AccountId,
    asked: ReplyTo,
    name: String,
    writer: ArchiveWriter,
    /// The next sequence, and the last one.
    next: u64,
    last: u64,
    is_written: bool,
    to: Box<[u8]>,
    chunk_bytes: usize,
    /// Chunks that may be on their way, and that are.
    window: usize,
    unacknowledged: usize,
    /// Number of the last chunk.
    chunk: u64,
    ack_subject: String,
    tap: TapId,
    /// Time at which the snapshot is given up, in nanoseconds since the start of the process.
    deadline: u64,
    /// Whether the receiver was there, and whether it is still awaited.
    has_receiver: bool,
    waits_for_receiver: bool,
    started: u64,
    /// Whether a message is awaited from the disk.
    is_cold: bool,
}

#[derive(Serialize)]
struct SnapshotShown<'a> {
    config: &'a StreamConfig,
    state: serde_json::Value,
}

/// Fields of the events about snapshots and restores.
#[derive(Serialize, Default)]
pub(super) struct ArchiveEvent<'a> {
    pub(super) stream: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    pub(super) client: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'a str>,
}

impl Archives {
    /// Whether there may be something to do now.
    pub(super) fn has_awake(&self) -> bool {
        self.is_awake
    }

    /// Lets all archives go on.
    pub(super) fn wake_all(&mut self) {
        self.is_awake = !(self.snapshots.is_empty() && self.restores.is_empty());
        self.snapshots.values_mut().for_each(|snapshot| snapshot.is_cold = false);
    }

    /// The first time at which an archive is given up, in nanoseconds since the start of the
    /// process.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.deadline);
        let restores = self.restores.values().map(|restore| restore.deadline);
        snapshots.chain(restores).chain(self.again).min()
    }
}

/// Publishes an event about an archive.
pub(super) fn tell_archive(
    core: &mut Core,
    asked: &ReplyTo,
    subject: &str,
    kind: &str,
    event: ArchiveEvent<'_>,
) {
    let info = String::from_utf8(services::client_info(core, asked.publisher, asked.account));
    let client = info.ok().and_then(|info| RawValue::from_string(info).ok());
    let subject = format!("STREAM.{subject}.{}", event.stream);
    let event = ArchiveEvent { client, ..event };
    if let Some((subject, text)) = advisory(core, asked.account, &subject, kind, &event) {
        let subject = subject.as_bytes();
        let message = InnerMessage { subject, reply: b"", headers: b"", body: &text };
        inside::publish(core, asked.account, &message);
    }
}

/// Returns a number of bytes as it was asked for, within bounds.
fn bytes_of(asked: i64, usual: usize, max: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) => usual,
        Ok(bytes) => bytes.clamp(CHUNK_BYTES_MIN, max),
        Err(_) => CHUNK_BYTES_MIN,
    }
}

/// Begins the snapshot that was asked for.
pub(super) fn begin_snapshot(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    reply: &ReplyTo,
    body: &[u8],
) {
    if let Err(error) = try_snapshot(js, core, id, reply, body) {
        answer(core, reply, &AnswerKind::STREAM_SNAPSHOT.error(&error));
    }
}

fn try_snapshot(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    reply: &ReplyTo,
    body: &[u8],
) -> Result<(), ApiError> {
    if json::is_empty_request(body) {
        return Err(ApiError::BAD_REQUEST);
    }
    let is_strict = core.settings.streams.as_ref().is_none_or(|streams| streams.is_strict);
    let request: SnapshotRequest = json::parse_request(body, is_strict)?;
    let to = request.deliver_subject.as_bytes();
    if !subject::is_valid_publish(to) {
        return Err(ApiError::SNAPSHOT_DELIVER_SUBJECT_INVALID);
    }
    let context = js.info_context(core, id);
    let stream = js.streams.all.get(&id).ok_or(ApiError::STREAM_NOT_FOUND)?;
    if js.archives.snapshots.contains_key(&id) {
        return Err(ApiError::stream_snapshot("snapshot in progress"));
    }
    if js.archives.snapshots.len() >= SNAPSHOTS_MAX {
        return Err(ApiError::stream_snapshot("too many snapshots in progress; ask again later"));
    }
    let store = js.logs.store(stream.log).ok_or(ApiError::STREAM_NOT_FOUND)?;
    let state = store.stream(id).map(|index| index.state()).unwrap_or_default();
    let shown = archived_state(&stream.live, store, &context);
    let (config, name) = (stream.live.config(), stream.live.config().name.clone());
    let text = AnswerKind::STREAM_SNAPSHOT.answer(&SnapshotShown { config, state: shown.clone() });
    let account = stream.account;
    let ack_subject = format!("$JS.SNAPSHOT.ACK.{name}.{}", new_id(&mut core.random.rng));
    let filter = format!("{ack_subject}.>");
    let tap = js.add_tap(core, account, filter.as_bytes(), TapUse::SnapshotAck(id));
    let chunk_bytes = bytes_of(request.chunk_size, CHUNK_BYTES, CHUNK_BYTES_MAX);
    let window = bytes_of(request.window_size, WINDOW_BYTES, WINDOW_BYTES_MAX);
    let consumers = match request.no_consumers {
        true => Vec::new(),
        false => consumers::archived_consumers(js, core, id),
    };
    let mut kept = shown.clone();
    if let Some(fields) = kept.as_object_mut() {
        fields.insert("consumer_count".to_owned(), consumers.len().into());
    }
    let kept = serde_json::to_vec(&kept).unwrap_or_default();
    let mut writer = ArchiveWriter::new(&kept, wall(core));
    consumers.iter().for_each(|consumer| writer.consumer(consumer));
    note_answer(core, reply, &text);
    let message = InnerMessage { subject: &reply.subject, reply: b"", headers: b"", body: &text };
    if !reply.subject.is_empty() {
        inside::publish(core, reply.account, &message);
    }
    let told = ArchiveEvent { stream: &name, state: Some(shown), ..ArchiveEvent::default() };
    tell_archive(core, reply, "SNAPSHOT_CREATE", "snapshot_create", told);
    let snapshot = Snapshot {
        account,
        asked: reply.clone(),
        name,
        writer,
        next: state.first,
        last: state.last,
        is_written: false,
        to: to.into(),
        chunk_bytes,
        window: (window / chunk_bytes).max(1),
        unacknowledged: 0,
        chunk: 0,
        ack_subject,
        tap,
        deadline: core.times.now.saturating_add(INTEREST_NS),
        has_receiver: false,
        waits_for_receiver: true,
        started: wall(core),
        is_cold: false,
    };
    js.archives.snapshots.insert(id, snapshot);
    js.archives.is_awake = true;
    Ok(())
}

/// Takes the acknowledgement of a chunk.
pub(super) fn on_snapshot_ack(js: &mut ActiveJetStream, id: StreamId) {
    if let Some(snapshot) = js.archives.snapshots.get_mut(&id) {
        snapshot.unacknowledged = snapshot.unacknowledged.saturating_sub(1);
        js.archives.is_awake = true;
    }
}

/// Goes on with all archives.
pub(super) fn advance_archives(js: &mut ActiveJetStream, core: &mut Core) {
    if !std::mem::take(&mut js.archives.is_awake) {
        return;
    }
    let snapshots: Vec<StreamId> = js.archives.snapshots.keys().copied().collect();
    let each = TURN_BYTES / snapshots.len().max(1);
    for id in snapshots {
        if let Some(snapshot) = js.archives.snapshots.remove(&id) {
            advance_snapshot(js, core, id, snapshot, each);
        }
    }
    advance_restores(js, core);
}

/// Gives up archives that nobody goes on with.
pub(super) fn tick_archives(js: &mut ActiveJetStream, core: &mut Core) {
    let now = core.times.now;
    if js.archives.again.is_some_and(|again| again <= now) {
        (js.archives.again, js.archives.is_awake) = (None, true);
    }
    let is_over = |(_, snapshot): &(&StreamId, &Snapshot)| snapshot.deadline <= now;
    let over = js.archives.snapshots.iter().filter(is_over);
    for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
        let Some(mut snapshot) = js.archives.snapshots.remove(&id) else { continue };
        if snapshot.waits_for_receiver && !snapshot.has_receiver {
            snapshot.waits_for_receiver = false;
            snapshot.deadline = now.saturating_add(STALL_NS);
            js.archives.snapshots.insert(id, snapshot);
            js.archives.is_awake = true;
            continue;
        }
        end_snapshot(js, core, snapshot, "408 No Flow Response", "no flow response");
    }
    tick_restores(js, core);
}

fn advance_snapshot(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    mut snapshot: Snapshot,
    mut left: usize,
) {
    // Clients subscribe to their inbox as a whole beforehand, to the very subject behind the
    // answer only.
    let interest = &core.accounts.at(snapshot.account).interest;
    let has_receiver = interest.is_wanted_by_cluster(&snapshot.to);
    if has_receiver && !snapshot.has_receiver {
        snapshot.has_receiver = true;
        snapshot.deadline = core.times.now.saturating_add(STALL_NS);
    } else if !has_receiver && snapshot.has_receiver {
        return end_snapshot(js, core, snapshot, "408 No Interest", "no interest");
    } else if !has_receiver && snapshot.waits_for_receiver {
        js.archives.snapshots.insert(id, snapshot);
        // Nobody says when it comes.
        js.archives.again = Some(core.times.now.saturating_add(LOOK_NS));
        return;
    }
    let Some(log) = js.streams.all.get(&id).map(|stream| stream.log) else {
        return end_snapshot(js, core, snapshot, "500 stream closed", "stream closed");
    };
    loop {
        while snapshot.writer.waiting_bytes() < snapshot.chunk_bytes && !snapshot.is_written {
            let is_done = write_some(js, id, log, &mut snapshot, &mut left);
            if !is_done {
                js.archives.is_awake |= !snapshot.is_cold;
                js.archives.snapshots.insert(id, snapshot);
                return;
            }
        }
        if snapshot.unacknowledged >= snapshot.window {
            js.archives.snapshots.insert(id, snapshot);
            return;
        }
        if snapshot.writer.waiting_bytes() < snapshot.chunk_bytes {
            return end_snapshot(js, core, snapshot, "", "");
        }
        snapshot.send_chunk(core);
    }
}

/// Writes one message, or what follows the last. Returns whether this could be done now.
fn write_some(
    js: &mut ActiveJetStream,
    id: StreamId,
    log: usize,
    snapshot: &mut Snapshot,
    left: &mut usize,
) -> bool {
    let Some(store) = js.logs.store_mut(log) else { return false };
    if *left == 0 || snapshot.is_cold {
        return false;
    }
    let mut steps = SEARCH_STEPS;
    let found = match store.next(id, &[], snapshot.next, &mut steps) {
        NextMessage::Found(sequence) if sequence <= snapshot.last => sequence,
        NextMessage::Later(next) if next <= snapshot.last => {
            snapshot.next = next;
            *left = left.saturating_sub(SEARCH_BYTES);
            return true;
        }
        _ => {
            snapshot.writer.finish();
            snapshot.is_written = true;
            return true;
        }
    };
    match store.read(id, found) {
        Read::Now(RecordAt {
            decoded: Decoded { record: LogRecord::Message(message), .. },
            ..
        }) => {
            snapshot.writer.push(&message);
            *left = left.saturating_sub(message.payload.len() + message.headers.len() + 64);
        }
        Read::Cold => {
            store.load(id, found);
            snapshot.is_cold = true;
            return false;
        }
        _ => {}
    }
    snapshot.next = found + 1;
    true
}

/// Sends what is left, and the end of an archive, with a status if something went wrong.
fn end_snapshot(
    js: &mut ActiveJetStream,
    core: &mut Core,
    mut snapshot: Snapshot,
    status: &str,
    why: &str,
) {
    let (account, tap, started) = (snapshot.account, snapshot.tap, snapshot.started);
    let rest = if status.is_empty() { snapshot.writer.take(usize::MAX) } else { Vec::new() };
    let to = &*snapshot.to;
    if !rest.is_empty() {
        let message = InnerMessage { subject: to, reply: b"", headers: b"", body: &rest };
        inside::publish(core, account, &message);
    }
    let headers = match (status, snapshot.chunk) {
        ("", 0) => String::new(),
        ("", _) => "NATS/1.0 204\r\n\r\n".to_owned(),
        (status, _) => format!("NATS/1.0 {status}\r\n\r\n"),
    };
    let headers = headers.as_bytes();
    inside::publish(core, account, &InnerMessage { subject: to, reply: b"", headers, body: b"" });
    js.remove_tap(core, account, format!("{}.>", snapshot.ack_subject).as_bytes(), tap);
    let [start, end] = [started, wall(core)].map(|at| Some(time::rfc3339_or_none(at)));
    let error = Some(why).filter(|why| !why.is_empty());
    let stream = &*snapshot.name;
    let told = ArchiveEvent { stream, start, end, error, ..ArchiveEvent::default() };
    tell_archive(core, &snapshot.asked, "SNAPSHOT_COMPLETE", "snapshot_complete", told);
}

impl Snapshot {
    fn send_chunk(&mut self, core: &mut Core) {
        let body = self.writer.take(self.chunk_bytes);
        self.chunk += 1;
        let reply = format!("{}.{}.{}", self.ack_subject, body.len(), self.chunk);
        let (subject, reply) = (&*self.to, reply.as_bytes());
        let message = InnerMessage { subject, reply, headers: b"", body: &body };
        inside::publish(core, self.account, &message);
        self.unacknowledged += 1;
        self.deadline = core.times.now.saturating_add(STALL_NS);
    }
}
