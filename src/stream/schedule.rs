//! Schedules: messages that say when, and on which subject, a message is to be stored.
//!
//! A subject has one schedule: its last message. It is there until another message replaces it, or
//! until it has no time any more.

use std::collections::{BTreeSet, HashMap};

use chrono_tz::Tz;

use super::cron::{Due, next_time};
use super::error::ApiError;
use super::expiry::parse_ttl;
use super::headers::{self, name};
use super::live::{LiveStream, StreamEvent};
use super::publish::{Incoming, MessageDraft, PublishContext, Published, StoredAt};
use super::time;
use crate::store::{StoredMessage, StreamStore};
use crate::subject::{is_valid_publish, overlap};

/// Mark of a message that is a schedule.
pub(super) const FLAG_SCHEDULE: u8 = 2;
/// Mark of a message that comes from a schedule.
pub(super) const FLAG_SCHEDULED: u8 = 4;
/// The value of `Nats-Schedule-Next` by which a schedule is removed.
const PURGE: &[u8] = b"purge";
/// Schedules that one call carries out at most.
const RUN_AT_ONCE: usize = 1024;

/// Schedules of a stream.
#[derive(Debug, Default)]
pub(super) struct Schedules {
    by_subject: HashMap<Vec<u8>, Scheduled>,
    /// Times in nanoseconds since 1970, each with the sequence of the schedule.
    due: BTreeSet<(i64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Scheduled {
    sequence: u64,
    at: i64,
}

impl Schedules {
    fn set(&mut self, subject: &[u8], sequence: u64, at: i64) {
        self.remove(subject);
        self.by_subject.insert(subject.to_vec(), Scheduled { sequence, at });
        self.due.insert((at, sequence));
    }

    fn remove(&mut self, subject: &[u8]) {
        if let Some(old) = self.by_subject.remove(subject) {
            self.due.remove(&(old.at, old.sequence));
        }
    }

    fn move_to(&mut self, subject: &[u8], at: i64) {
        if let Some(sequence) = self.by_subject.get(subject).map(|it| it.sequence) {
            self.set(subject, sequence, at);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| u64::try_from(*at).unwrap_or(0))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_subject.is_empty()
    }
}

/// The time zone of a schedule, if it names one.
fn zone_of(block: &[u8]) -> Result<Option<Tz>, ApiError> {
    let Some(zone) = headers::find(block, name::SCHEDULE_TIME_ZONE) else { return Ok(None) };
    let zone = std::str::from_utf8(zone).ok().and_then(|zone| zone.parse().ok());
    zone.map(Some).ok_or(ApiError::MESSAGE_SCHEDULES_TIME_ZONE_INVALID)
}

/// The first time of a schedule with these headers after `from`; `None` if it is no schedule.
fn due_of(block: &[u8], from: i64, now: i64) -> Result<Option<Due>, ApiError> {
    let zone = zone_of(block)?;
    let Some(pattern) = headers::text(block, name::SCHEDULE) else { return Ok(None) };
    let due = next_time(&pattern, zone, from, now);
    due.map(Some).ok_or(ApiError::MESSAGE_SCHEDULES_PATTERN_INVALID)
}

fn signed(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// Checks a message that is a schedule or says that it comes from one.
pub(super) fn check_schedule(
    live: &LiveStream,
    store: &StreamStore,
    draft: &mut MessageDraft<'_>,
) -> Result<(), ApiError> {
    let is_allowed = live.config().allow_msg_schedules;
    // A pattern is checked as of any time at which it may have one.
    let due = due_of(&draft.headers, signed(live.last_time), signed(live.last_time));
    match due {
        Err(_) if !is_allowed => return Err(ApiError::MESSAGE_SCHEDULES_DISABLED),
        Err(error) => return Err(error),
        Ok(None) => {}
        Ok(Some(_)) if !is_allowed => return Err(ApiError::MESSAGE_SCHEDULES_DISABLED),
        Ok(Some(_)) => check_schedule_headers(live, draft)?,
    }
    check_scheduler(live, store, draft)
}

fn check_schedule_headers(live: &LiveStream, draft: &mut MessageDraft<'_>) -> Result<(), ApiError> {
    let block = &draft.headers;
    let ttl = headers::text(block, name::SCHEDULE_TTL);
    if ttl.as_deref().is_some_and(|ttl| parse_ttl(ttl).is_err()) {
        return Err(ApiError::MESSAGE_SCHEDULES_TTL_INVALID);
    }
    let rollup = headers::value(block, name::SCHEDULE_ROLLUP);
    if rollup.is_some_and(|rollup| rollup != b"sub") {
        return Err(ApiError::MESSAGE_SCHEDULES_ROLLUP_INVALID);
    }
    if ttl.is_some() && !live.config().allow_msg_ttl {
        return Err(ApiError::MESSAGE_TTL_DISABLED);
    }
    let is_ours = |subject: &[u8]| {
        let mut all = live.config().subjects.iter();
        all.any(|filter| overlap(filter.as_bytes(), subject))
    };
    let fits = |subject: &[u8]| is_valid_publish(subject) && *subject != *draft.subject;
    let target = headers::value(block, name::SCHEDULE_TARGET).filter(|target| fits(target));
    let target = target.ok_or(ApiError::MESSAGE_SCHEDULES_TARGET_INVALID)?;
    let source = headers::value(block, name::SCHEDULE_SOURCE);
    if source.is_some_and(|source| source == target || !fits(source)) {
        return Err(ApiError::MESSAGE_SCHEDULES_SOURCE_INVALID);
    }
    if !is_ours(target) {
        return Err(ApiError::MESSAGE_SCHEDULES_TARGET_INVALID);
    }
    if source.is_some_and(|source| !is_ours(source)) {
        return Err(ApiError::MESSAGE_SCHEDULES_SOURCE_INVALID);
    }
    match headers::text(block, name::ROLLUP).map(|rollup| rollup.to_lowercase()).as_deref() {
        Some("sub") => {}
        Some(_) => return Err(ApiError::MESSAGE_SCHEDULES_ROLLUP_INVALID),
        None => headers::add(draft.headers.to_mut(), name::ROLLUP, "sub"),
    }
    Ok(())
}

/// Checks the headers by which a client ends a schedule.
fn check_scheduler(
    live: &LiveStream,
    store: &StreamStore,
    draft: &MessageDraft<'_>,
) -> Result<(), ApiError> {
    let scheduler = headers::value(&draft.headers, name::SCHEDULER);
    let Some(next) = headers::value(&draft.headers, name::SCHEDULE_NEXT) else {
        return match scheduler {
            Some(_) => Err(ApiError::MESSAGE_SCHEDULES_SCHEDULER_INVALID),
            None => Ok(()),
        };
    };
    let fits = |subject: &&[u8]| is_valid_publish(subject) && **subject != *draft.subject;
    let scheduler = scheduler.filter(fits).filter(|_| next == PURGE);
    let scheduler = scheduler.ok_or(ApiError::MESSAGE_SCHEDULES_SCHEDULER_INVALID)?;
    if !live.config().allow_msg_schedules {
        return Err(ApiError::MESSAGE_SCHEDULES_DISABLED);
    }
    let last = live.newest(store, scheduler);
    let last = last.and_then(|sequence| live.message(store, sequence));
    match last {
        Some(message) if headers::value(message.headers, name::SCHEDULE).is_none() => {
            Err(ApiError::MESSAGE_SCHEDULES_SCHEDULER_INVALID)
        }
        _ => Ok(()),
    }
}

/// Notes what a stored message means for schedules; a message that is none ends the schedule
/// of its subject. Returns the subject of a schedule that is over.
pub(super) fn note_schedule(
    live: &mut LiveStream,
    message: &StoredMessage<'_>,
    now: u64,
) -> Option<Vec<u8>> {
    let block = message.headers;
    if message.flags & FLAG_SCHEDULE != 0 {
        match due_of(block, signed(message.time), signed(now)) {
            Ok(Some(due)) => live.schedules.set(message.subject, message.sequence, due.at),
            _ => live.schedules.remove(message.subject),
        }
    } else if !live.schedules.is_empty() {
        live.schedules.remove(message.subject);
    }
    if message.flags & FLAG_SCHEDULED == 0 {
        return None;
    }
    let (next, scheduler) =
        (headers::value(block, name::SCHEDULE_NEXT)?, headers::value(block, name::SCHEDULER)?);
    if next == PURGE {
        live.schedules.remove(scheduler);
        return Some(scheduler.to_vec());
    }
    let next = std::str::from_utf8(next).ok().and_then(time::parse_rfc3339);
    if let Some(at) = next {
        live.schedules.move_to(scheduler, at);
    }
    None
}

/// Stores the messages of schedules that are due, in order of the schedules.
pub(super) fn run_schedules(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
) {
    let now = signed(context.now);
    let due = live.schedules.due.iter().take_while(|(at, _)| *at <= now);
    let mut due: Vec<(i64, u64)> = due.take(RUN_AT_ONCE).copied().collect();
    due.sort_unstable_by_key(|(_, sequence)| *sequence);
    for (at, sequence) in due {
        run_schedule(live, store, context, Scheduled { sequence, at });
    }
}

fn run_schedule(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    schedule: Scheduled,
) {
    let Scheduled { sequence, at } = schedule;
    if let Some(cold) = cold_part(live, store, sequence) {
        return store.load(live.id, cold);
    }
    let Some(message) = scheduled_message(live, store, context.now, sequence) else {
        live.schedules.due.remove(&(at, sequence));
        live.schedules.by_subject.retain(|_, schedule| schedule.sequence != sequence);
        return;
    };
    let (target, block, payload) = message;
    let incoming = Incoming { subject: &target, reply: b"", headers: &block, payload: &payload };
    let mut draft = live.draft(&incoming);
    draft.is_own = true;
    draft.rollup = live.rollup_of(&draft.headers).unwrap_or_default();
    let published = live.store(store, context, draft);
    match published {
        Ok(Published::Stored(StoredAt { sequence, commit, .. })) => {
            live.events.push_back(StreamEvent::Stored { sequence, commit });
        }
        // The store takes nothing now: the schedule is still due.
        Err(Published::Failed(_)) => {}
        _ => {
            // A message that no limit lets in is left out, but not asked for again and again.
            let later = signed(context.now).saturating_add(time::SECOND.cast_signed());
            let subject = live.schedules.by_subject.iter();
            let subject = subject.filter(|(_, it)| it.sequence == sequence);
            let subject = subject.map(|(subject, _)| subject.clone()).next();
            if let Some(subject) = subject {
                live.schedules.move_to(&subject, later);
            }
        }
    }
}

/// A message that a schedule needs and that is not in memory.
fn cold_part(live: &LiveStream, store: &StreamStore, sequence: u64) -> Option<u64> {
    if live.is_cold(store, sequence) {
        return Some(sequence);
    }
    let schedule = live.message(store, sequence)?;
    let source = headers::value(schedule.headers, name::SCHEDULE_SOURCE)?;
    live.newest(store, source).filter(|source| live.is_cold(store, *source))
}

/// The subject, headers and payload that a schedule stores now.
fn scheduled_message(
    live: &LiveStream,
    store: &StreamStore,
    now: u64,
    sequence: u64,
) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let schedule = live.message(store, sequence)?;
    let block = schedule.headers;
    let due = due_of(block, signed(now), signed(now)).ok().flatten()?;
    let target = headers::value(block, name::SCHEDULE_TARGET)?.to_vec();
    let source = headers::value(block, name::SCHEDULE_SOURCE);
    let source = source.and_then(|source| live.newest(store, source));
    let source = source.and_then(|sequence| live.message(store, sequence));
    let content = source.unwrap_or(schedule);
    let mut own = content.headers.to_vec();
    headers::remove_all(&mut own, name::SCHEDULE);
    headers::remove_all(&mut own, "Nats-Expected-");
    for name in [name::MSG_ID, name::TTL, name::ROLLUP] {
        headers::remove(&mut own, name);
    }
    headers::add(&mut own, name::SCHEDULER, schedule.subject);
    if due.repeats {
        headers::add(&mut own, name::SCHEDULE_NEXT, time::rfc3339(due.at));
    } else {
        headers::add(&mut own, name::SCHEDULE_NEXT, PURGE);
    }
    for (from, to) in [(name::SCHEDULE_TTL, name::TTL), (name::SCHEDULE_ROLLUP, name::ROLLUP)] {
        if let Some(value) = headers::value(block, from) {
            headers::add(&mut own, to, value);
        }
    }
    Some((target, own, content.payload.to_vec()))
}
