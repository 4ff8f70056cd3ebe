//! Messages that are removed at a time: by age, by a time to live of their own, with markers in the
//! place of a subject's last one.

use std::collections::BTreeSet;

use super::headers::{self, name};
use super::live::{LiveStream, REMOVED_AT_ONCE, StreamEvent};
use super::time::{self, SECOND};
use crate::store::{NewMessage, NextMessage, StoreError, StoredMessage, Stream, StreamStore};

/// Mark of a message with a time to live, also of one that is to stay for ever.
pub(super) const FLAG_TTL: u8 = 1;

/// The header of deletions and purges by clients of key-value stores.
const KV_OPERATION: &str = "KV-Operation";

/// A message's own time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeToLive {
    /// Seconds from the message's time on.
    Seconds(u64),
    /// No age removes the message.
    Never,
}

/// A time to live that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidTtl;

/// Reads a time to live: `5`, `1h30m`, `never`. `None` is none at all.
pub(super) fn parse_ttl(text: &str) -> Result<Option<TimeToLive>, InvalidTtl> {
    if text.eq_ignore_ascii_case("never") {
        return Ok(Some(TimeToLive::Never));
    }
    if let Some(nanoseconds) = time::parse_duration(text) {
        return match u64::try_from(nanoseconds) {
            Ok(nanoseconds) if nanoseconds >= SECOND => {
                Ok(Some(TimeToLive::Seconds(nanoseconds / SECOND)))
            }
            _ => Err(InvalidTtl),
        };
    }
    let seconds = headers::number(text.as_bytes()).ok_or(InvalidTtl)?;
    Ok((seconds > 0).then_some(TimeToLive::Seconds(seconds)))
}

/// Reads the time to live of a message with these headers.
pub(super) fn ttl_of(block: &[u8]) -> Result<Option<TimeToLive>, InvalidTtl> {
    match headers::text(block, name::TTL) {
        Some(text) => parse_ttl(&text),
        None => Ok(None),
    }
}

/// Times at which messages with a time to live are removed, and how far ages were looked at.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Deadlines in nanoseconds since 1970, each with the sequence of its message, which may be
    /// gone.
    deadlines: BTreeSet<(u64, u64)>,
    /// Messages before this one stay for ever, or are gone.
    aged_from: u64,
}

/// Entries without a message that are kept beside those that have one.
const STALE_MAX: usize = 1024;

impl Expiry {
    pub(super) fn add(&mut self, index: Option<&Stream>, message: &StoredMessage<'_>) {
        let Ok(Some(TimeToLive::Seconds(seconds))) = ttl_of(message.headers) else { return };
        let deadline = message.time.saturating_add(seconds.saturating_mul(SECOND));
        self.deadlines.insert((deadline, message.sequence));
        let messages = index.map_or(0, |index| index.totals().messages);
        let messages = usize::try_from(messages).unwrap_or(usize::MAX);
        if self.deadlines.len() > messages.saturating_mul(2).saturating_add(STALE_MAX) {
            let is_there = |sequence| index.is_some_and(|index| index.has(sequence));
            self.deadlines.retain(|(_, sequence)| is_there(*sequence));
        }
    }

    fn next(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

/// Time at which a message is too old, in nanoseconds since 1970.
pub(super) fn next_expiry(live: &LiveStream, store: &StreamStore) -> Option<u64> {
    let by_age = || {
        let age = u64::try_from(live.config().max_age).ok().filter(|age| *age > 0)?;
        let index = store.stream(live.id)?;
        let first = next_from(index, live.expiry.aged_from)?;
        Some(index.time_of(first)?.saturating_add(age))
    };
    [by_age(), live.expiry.next()].into_iter().flatten().min()
}

/// Removes messages that are too old, a bounded number of them.
pub(super) fn expire(live: &mut LiveStream, store: &mut StreamStore, now: u64) {
    let (mut due, mut cold) = too_old(live, store, now);
    while due.len() < REMOVED_AT_ONCE
        && let Some((deadline, sequence)) = live.expiry.deadlines.first().copied()
        && deadline <= now
    {
        live.expiry.deadlines.pop_first();
        if store.stream(live.id).is_some_and(|index| index.has(sequence)) {
            due.push(sequence);
        }
    }
    due.sort_unstable();
    due.dedup();
    if live.config().subject_delete_marker_ttl > 0
        && let Some(at) = due.iter().position(|sequence| live.is_cold(store, *sequence))
    {
        cold = Some(due[at]);
        live.expiry.deadlines.extend(due.drain(at..).map(|sequence| (now, sequence)));
    }
    if let Some(cold) = cold {
        store.load(live.id, cold);
    }
    // What the store takes now not is removed by a later call: nothing forgets it but the
    // deadlines, which come back then.
    if let Err(error) = remove_expired(live, store, &due, now) {
        let late = due.into_iter().map(|sequence| (now, sequence));
        live.expiry.deadlines.extend(late);
        debug_assert!(matches!(error, StoreError::Log(_)), "{error:?}");
    }
}

/// Messages that are older than the stream lets them be, and one that is not in memory.
fn too_old(live: &mut LiveStream, store: &StreamStore, now: u64) -> (Vec<u64>, Option<u64>) {
    let mut due = Vec::new();
    let Ok(age) = u64::try_from(live.config().max_age) else { return (due, None) };
    let Some(index) = store.stream(live.id).filter(|_| age > 0) else { return (due, None) };
    for _ in 0..REMOVED_AT_ONCE {
        let Some(sequence) = next_from(index, live.expiry.aged_from) else { break };
        if index.time_of(sequence).is_none_or(|time| time.saturating_add(age) > now) {
            break;
        }
        if live.config().allow_msg_ttl && live.is_cold(store, sequence) {
            return (due, Some(sequence));
        }
        let message = live.config().allow_msg_ttl.then(|| live.message(store, sequence));
        let is_for_ever = message.flatten().is_some_and(|message| {
            message.flags & FLAG_TTL != 0 && ttl_of(message.headers) == Ok(Some(TimeToLive::Never))
        });
        if !is_for_ever {
            due.push(sequence);
        }
        live.expiry.aged_from = sequence + 1;
    }
    (due, None)
}

fn remove_expired(
    live: &mut LiveStream,
    store: &mut StreamStore,
    due: &[u64],
    now: u64,
) -> Result<(), StoreError> {
    if due.is_empty() {
        return Ok(());
    }
    if live.config().subject_delete_marker_ttl <= 0 {
        return live.remove(store, due).map(drop);
    }
    // One by one: what is removed decides whether the next one is the last of its subject.
    for sequence in due {
        match subject_of_last(live, store, *sequence) {
            Some(subject) => store_marker(live, store, &subject, now)?,
            None => drop(live.remove(store, &[*sequence])?),
        }
    }
    Ok(())
}

/// The subject of a message if it is the only one of it and no marker itself.
fn subject_of_last(live: &LiveStream, store: &StreamStore, sequence: u64) -> Option<Vec<u8>> {
    let message = live.message(store, sequence)?;
    let is_only = store.stream(live.id)?.subject(message.subject)?.messages == 1;
    let is_marker = headers::value(message.headers, name::MARKER_REASON).is_some()
        || headers::value(message.headers, KV_OPERATION) == Some(b"PURGE");
    (is_only && !is_marker).then(|| message.subject.to_vec())
}

/// Stores a marker in place of the messages of a subject.
fn store_marker(
    live: &mut LiveStream,
    store: &mut StreamStore,
    subject: &[u8],
    now: u64,
) -> Result<(), StoreError> {
    let ttl = live.config().subject_delete_marker_ttl.unsigned_abs();
    let mut block = Vec::new();
    headers::add(&mut block, name::MARKER_REASON, "MaxAge");
    headers::add(&mut block, name::TTL, time::duration(ttl));
    headers::add(&mut block, name::ROLLUP, "sub");
    let time = now.max(live.last_time);
    let flags = FLAG_TTL;
    let message = NewMessage { time, flags, subject, headers: &block, payload: b"" };
    let appended = store.append(live.id, &message)?;
    live.last_time = time;
    live.last_id.clear();
    live.last_commit = appended.commit;
    live.note_flags(store, appended.sequence, now);
    let rolled = live.remove_older(store, subject, appended.sequence)?;
    let totals = live.enforce_totals(store)?;
    let commit = appended.commit.max(rolled).max(totals);
    live.events.push_back(StreamEvent::Stored { sequence: appended.sequence, commit });
    Ok(())
}

/// The first message at `from` or behind it, staged or not.
fn next_from(index: &Stream, from: u64) -> Option<u64> {
    let first = index.first()?;
    if from <= first {
        return Some(first);
    }
    match index.next(&[], from, &mut usize::MAX.clone()) {
        NextMessage::Found(sequence) => Some(sequence),
        NextMessage::None | NextMessage::Later(_) => {
            let staged = index.state().last.saturating_add(1)..index.next_sequence();
            staged.into_iter().find(|sequence| *sequence >= from && index.has(*sequence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_number_of_seconds_or_a_duration() {
        let seconds = |number| Ok(Some(TimeToLive::Seconds(number)));
        let cases = [
            ("5", seconds(5)),
            ("00", Ok(None)),
            ("1s", seconds(1)),
            ("1h30m", seconds(5400)),
            ("1500ms", seconds(1)),
            ("NEVER", Ok(Some(TimeToLive::Never))),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_ttl(text), expected, "{text}");
        }
        for text in ["0", "500ms", "-1s", "soon", "-1", "1 s", ""] {
            assert_eq!(parse_ttl(text), Err(InvalidTtl), "{text}");
        }
    }
}
