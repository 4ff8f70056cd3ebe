//! Restores: streams that come as archives, chunk by chunk.
//!
//! A chunk is answered when all of it is in the log's hands, so whoever sends waits for the disk.
//! The stream is served when its archive has ended; before, nobody sees it, and a restart forgets
//! it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::advisory::new_id;
use super::meta::answer;
use super::order::{Create, Order, ReplyTo};
use super::snapshots::{ArchiveEvent, tell_archive};
use super::streams::{Announcement, LogCommit, answer_when_known, opening, room};
use super::{ActiveJetStream, META, TapUse, consumers, wall};
use crate::archive::{ArchivePart, ArchiveReader, ArchiveStep};
use crate::consumer::ArchivedConsumer;
use crate::core::Core;
use crate::interest::ids::AccountId;
use crate::interest::taps::TapId;
use crate::run::tapped::{TapMessage, TapRun};
use crate::store::{StreamId, StreamStore};
use crate::stream::{AnswerKind, ApiError, LiveStream, PublishContext, Published, restore, time};

/// The longest time without a chunk, in nanoseconds.
const STALL_NS: u64 = 5_000_000_000;
/// Chunks that wait, in bytes, at most.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// Restores of a shard at a time: each may keep a chunk, an unpacked block and a long message.
const RESTORES_MAX: usize = 8;
/// Bytes of consumers that one archive may have.
const CONSUMER_BYTES_MAX: usize = 64 << 20;
/// Bytes that are unpacked in one turn, for all restores of a shard, about.
const TURN_BYTES: usize = 1 << 20;

/// A chunk that waits.
#[derive(Debug)]
struct ArrivedChunk {
    body: Box<[u8]>,
    reply: ReplyTo,
}

/// Bytes that have come, and the time of the beginning, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct RestoreProgress {
    bytes: u64,
    started: u64,
}

/// A stream that comes.
#[derive(Debug)]
pub(super) struct Restore {
    live: LiveStream,
    log: usize,
    account: AccountId,
    asked: ReplyTo,
    reader: ArchiveReader,
    chunks: VecDeque<ArrivedChunk>,
    waiting_bytes: usize,
    /// The chunk that is being read.
    reply: Option<ReplyTo>,
    consumers: Vec<ArchivedConsumer>,
    consumer_bytes: usize,
    /// Bytes of messages that were stored.
    stored_bytes: u64,
    /// The last commit, and who is to hear of it, once the archive has ended.
    end: Option<(u64, ReplyTo)>,
    progress: RestoreProgress,
    subject: String,
    tap: TapId,
    /// Time at which the restore is given up, in nanoseconds since the start of the process.
    pub(super) deadline: u64,
}

/// The fields of the answer to a request for a restore.
#[derive(serde::Serialize)]
struct RestoreBegun<'a> {
    deliver_subject: &'a str,
}

/// Begins to take the archive of a stream.
pub(super) fn on_restore(js: &mut ActiveJetStream, core: &mut Core, create: Create) {
    let Create { reply, stream: id, log, kept } = create;
    let (opening, account) = (opening(core), reply.account);
    let name = kept.config.name.clone();
    let has_room = js.archives.restores.len() < RESTORES_MAX;
    let made = match js.logs.store_mut(log) {
        Some(store) if has_room => LiveStream::create(id, kept, store, &opening).ok(),
        _ => None,
    };
    let Some((live, commit)) = made else {
        let text = AnswerKind::STREAM_RESTORE.error(&ApiError::INSUFFICIENT_RESOURCES);
        answer(core, &reply, &text);
        return js.send(core, META, Order::Gone(id));
    };
    let told = ArchiveEvent { stream: &name, ..ArchiveEvent::default() };
    tell_archive(core, &reply, "RESTORE_CREATE", "restore_create", told);
    let subject = format!("$JS.SNAPSHOT.RESTORE.{name}.{}", new_id(&mut core.random.rng));
    let tap = js.add_tap(core, account, subject.as_bytes(), TapUse::RestoreChunk(id));
    let begun = RestoreBegun { deliver_subject: &subject };
    let text = Announcement::Text(AnswerKind::STREAM_RESTORE.answer(&begun));
    let restore = Restore {
        live,
        log,
        account,
        asked: reply.clone(),
        reader: ArchiveReader::new(&name),
        chunks: VecDeque::new(),
        waiting_bytes: 0,
        reply: None,
        consumers: Vec::new(),
        consumer_bytes: 0,
        stored_bytes: 0,
        end: None,
        progress: RestoreProgress { bytes: 0, started: wall(core) },
        subject,
        tap,
        deadline: core.times.now.saturating_add(STALL_NS),
    };
    js.archives.restores.insert(id, restore);
    answer_when_known(js, core, id, LogCommit { log, commit }, reply, text);
}

/// Takes a chunk of an archive; an empty one ends it.
pub(super) fn on_restore_chunk(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    run: &TapRun,
    message: &TapMessage<'_>,
) {
    let Some(restore) = js.archives.restores.get_mut(&id) else { return };
    let (account, subject) = (run.account, message.reply.into());
    let (publisher, wanted, identity) = (run.publisher, Box::default(), Box::default());
    let reply = ReplyTo { account, subject, publisher, audited: None, wanted, identity };
    restore.deadline = core.times.now.saturating_add(STALL_NS);
    restore.progress.bytes += message.body.len() as u64;
    restore.waiting_bytes += message.body.len();
    if message.reply.is_empty() || restore.waiting_bytes > WAITING_BYTES_MAX {
        return fail_restore(js, core, id, &reply, "each chunk waits for the one before");
    }
    restore.chunks.push_back(ArrivedChunk { body: message.body.into(), reply });
    js.archives.is_awake = true;
}

/// Goes on with all restores.
pub(super) fn advance_restores(js: &mut ActiveJetStream, core: &mut Core) {
    let all: Vec<StreamId> = js.archives.restores.keys().copied().collect();
    let each = TURN_BYTES / all.len().max(1);
    all.into_iter().for_each(|id| advance_restore(js, core, id, each));
}

/// Reads chunks, as long as the log takes what is in them, and as far as the budget goes.
fn advance_restore(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, mut left: usize) {
    let Some(account) = js.archives.restores.get(&id).map(|it| it.account) else { return };
    let (now, usage) = (wall(core), Arc::clone(core.accounts.at(account).stream_usage()));
    loop {
        let Some(restore) = js.archives.restores.get_mut(&id) else { return };
        if let Some((commit, reply)) = &restore.end {
            if js.logs.committed(restore.log) >= *commit {
                let reply = reply.clone();
                serve_restored(js, core, id, &reply);
            }
            return;
        }
        if js.logs.is_full(restore.log) {
            return;
        }
        let Some(store) = js.logs.store_mut(restore.log) else { return };
        let why = match restore.reader.next_part(&mut left) {
            Ok(ArchiveStep::Later) => return js.archives.is_awake = true,
            Ok(ArchiveStep::Part(part)) => {
                let (is_full, bytes) = room(core, account, &usage, &restore.live);
                match restore.take(store, part, now, if is_full { 0 } else { bytes }) {
                    Ok(()) => continue,
                    Err(why) => why,
                }
            }
            Err(error) => error.0.to_owned(),
            Ok(ArchiveStep::Needs) => {
                if let Some(reply) = restore.reply.take() {
                    answer(core, &reply, b"");
                }
                let Some(chunk) = restore.chunks.pop_front() else { return };
                restore.waiting_bytes -= chunk.body.len();
                if chunk.body.is_empty() {
                    end_restore(js, core, id, chunk.reply);
                    continue;
                }
                restore.reader.add(&chunk.body);
                restore.reply = Some(chunk.reply);
                continue;
            }
        };
        let reply = restore.reply.take().unwrap_or_else(|| restore.asked.clone());
        return fail_restore(js, core, id, &reply, &why);
    }
}

/// Makes the stream of an archive that has ended whole.
fn end_restore(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, reply: ReplyTo) {
    let Some(coming) = js.archives.restores.get_mut(&id) else { return };
    let is_whole = coming.reader.has_ended();
    let store = js.logs.store_mut(coming.log);
    match store.filter(|_| is_whole).map(|store| restore::end_restore(&mut coming.live, store)) {
        Some(Ok(commit)) => coming.end = Some((commit, reply)),
        _ => {
            let why = if coming.progress.bytes == 0 { "EOF" } else { "backup was truncated" };
            fail_restore(js, core, id, &reply, why);
        }
    }
}

/// Serves a stream that was restored, now that all of it is on the disk.
fn serve_restored(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, reply: &ReplyTo) {
    let Some(restore) = js.archives.restores.remove(&id) else { return };
    let Restore { mut live, log, account, consumers: archived, .. } = restore;
    // Messages were published again when they were stored first.
    while live.next_event().is_some() {}
    js.remove_tap(core, account, restore.subject.as_bytes(), restore.tap);
    js.serve(core, log, account, live);
    if !consumers::take_archived_consumers(js, core, id, &archived) {
        tracing::warn!("Some consumers of a restored stream cannot be read");
    }
    let commit = consumers::kept_commit(js, id);
    js.send(core, META, Order::Restored(id));
    js.answer_announced(core, id, commit, reply.clone(), Announcement::Restored);
    js.advise(core, id, commit, "CREATED", "create");
    consumers::on_stream_changed(js, core, id);
    tell_end(core, name_of(js, id), &restore.asked, restore.progress);
}

fn name_of(js: &ActiveJetStream, id: StreamId) -> &str {
    js.streams.all.get(&id).map_or("", |stream| stream.live.config().name.as_str())
}

/// Forgets a stream whose archive is none, or does not come.
fn fail_restore(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    reply: &ReplyTo,
    why: &str,
) {
    let Some(restore) = js.archives.restores.remove(&id) else { return };
    js.remove_tap(core, restore.account, restore.subject.as_bytes(), restore.tap);
    if let Some(Err(error)) = js.logs.store_mut(restore.log).map(|store| store.end(id)) {
        tracing::warn!("A stream that was not restored goes with the next restart: {error:?}");
    }
    answer(core, reply, &AnswerKind::STREAM_CREATE.error(&ApiError::stream_restore(why)));
    tell_end(core, &restore.live.config().name, &restore.asked, restore.progress);
    js.send(core, META, Order::Gone(id));
}

/// Gives up restores whose chunks do not come.
pub(super) fn tick_restores(js: &mut ActiveJetStream, core: &mut Core) {
    let now = core.times.now;
    let restores = js.archives.restores.iter();
    let over = restores.filter(|(_, restore)| restore.deadline <= now);
    for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
        let asked = js.archives.restores.get(&id).map(|restore| restore.asked.clone());
        if let Some(asked) = asked {
            let nobody = ReplyTo { subject: Box::default(), audited: None, ..asked };
            fail_restore(js, core, id, &nobody, "stalled");
        }
    }
}

fn tell_end(core: &mut Core, stream: &str, asked: &ReplyTo, progress: RestoreProgress) {
    let RestoreProgress { bytes, started } = progress;
    let [start, end] = [started, wall(core)].map(|at| Some(time::rfc3339_or_none(at)));
    let bytes = Some(bytes);
    let told = ArchiveEvent { stream, start, end, bytes, ..ArchiveEvent::default() };
    tell_archive(core, asked, "RESTORE_COMPLETE", "restore_complete", told);
}

impl Restore {
    /// Takes a part of the archive.
    ///
    /// # Errors
    ///
    /// Returns what is wrong, in words for the answer.
    fn take(
        &mut self,
        store: &mut StreamStore,
        part: ArchivePart,
        now: u64,
        bytes_left: u64,
    ) -> Result<(), String> {
        let failed = |error| format!("{error:?}");
        match part {
            ArchivePart::Begins(first) => {
                restore::restore_first(&mut self.live, store, first).map_err(failed)?;
            }
            ArchivePart::Meta(file) => {
                if !restore::take_archived(&mut self.live, &file) {
                    return Err("stream names do not match".to_owned());
                }
            }
            ArchivePart::Message(message) => {
                let message = message.stored();
                let bytes_left = bytes_left.saturating_sub(self.stored_bytes);
                self.stored_bytes += message.payload.len() as u64 + message.headers.len() as u64;
                let has_interest = &|_: &[u8]| true;
                let is_full = bytes_left == 0;
                let context = PublishContext { now, is_full, bytes_left, has_interest };
                match restore::restore_message(&mut self.live, store, &context, &message) {
                    Published::Refused(error) => return Err(error.description.to_string()),
                    Published::Failed(error) => return Err(failed(error)),
                    _ => {}
                }
                while self.live.next_event().is_some() {}
            }
            ArchivePart::Erased(sequence) => {
                restore::restore_gap(&mut self.live, store, sequence).map_err(failed)?;
            }
            ArchivePart::Deleted(sequence) => {
                restore::restore_deleted(&mut self.live, store, sequence).map_err(failed)?;
            }
            ArchivePart::Consumer(consumer) => {
                self.consumer_bytes += consumer.cost_bytes();
                if self.consumer_bytes > CONSUMER_BYTES_MAX {
                    return Err("consumers take too much memory".to_owned());
                }
                self.consumers.push(consumer);
            }
        }
        Ok(())
    }
}
