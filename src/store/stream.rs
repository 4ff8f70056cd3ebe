//! The index of one stream: its messages, their places in the log, and their subjects.
//!
//! A message is *staged* until its commit ends: it has its sequence, and counts for limits and
//! expectations, but no reader is shown it. A removal is seen at once, unless a staged message is
//! what the removed one gives way to: whoever asks for that one finds it until the commit ends.

mod entries;
mod replaced;
mod subjects;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;

use ahash::RandomState;

use super::tail::RecordPlace;
use super::wal::Staged;
use crate::record::record::StoredMessage;
use crate::subject::{is_literal, matches};
pub(super) use entries::Entries;
use entries::MessageEntry;
use replaced::Replaced;
use subjects::{SubjectId, Subjects};

/// No sequence is higher, however far a purge moves a stream.
pub const SEQUENCE_MAX: u64 = u64::MAX / 2;
/// Ranges of lost sequences that are told apart; more than that become one.
const LOST_RANGES_MAX: usize = 1024;
/// Subjects of which one search remembers whether they are wanted.
const REMEMBERED: usize = 64;

/// Messages and their bytes, as limits count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of messages.
    pub messages: u64,
    /// Bytes of the messages; see [`Stream::charge`].
    pub bytes: u64,
}

impl Totals {
    fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The state of a stream, as far as it is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Messages and bytes.
    pub totals: Totals,
    /// The first message; the sequence behind the last one if there is none.
    pub first: u64,
    /// The last sequence that was given.
    pub last: u64,
    /// Sequences between the two that have no message, those of `lost` ones included.
    pub deleted: u64,
    /// Sequences with messages that are lost by damage.
    pub lost: u64,
    /// Subjects, with those of staged messages.
    pub subjects: usize,
    /// Time of the first message, in nanoseconds since 1970; 0 if there is none.
    pub first_time: u64,
    /// Time of the last message that is left, in nanoseconds since 1970; 0 if there is none.
    pub last_time: u64,
}

/// The messages of one subject in a stream, staged ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectState {
    /// The first message of the subject.
    pub first: u64,
    /// The last message of the subject.
    pub last: u64,
    /// Number of messages of the subject.
    pub messages: u64,
}

/// The result of a search for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextMessage {
    /// A message with this sequence.
    Found(u64),
    /// No message.
    None,
    /// No message before this sequence; the search can go on from there.
    Later(u64),
}

/// Messages of one commit that has not ended.
#[derive(Debug)]
struct StagedPart {
    commit: u64,
    /// The last sequence of the stream with it.
    last: u64,
    totals: Totals,
}

/// Messages that a purge has removed.
#[derive(Debug)]
pub(super) struct Purged {
    /// Places of some of them, with the bytes that limits count.
    pub(super) places: Vec<(RecordPlace, u64)>,
    /// Entries of all, if the stream has none left.
    pub(super) all: Entries,
}

/// The index of one stream.
#[derive(Debug)]
pub struct Stream {
    subjects: Subjects,
    entries: Entries,
    /// The first message, staged or not; `last + 1` if there is none.
    first: u64,
    /// The last sequence that was given.
    last: u64,
    /// The last sequence that is shown.
    committed: u64,
    shown: Totals,
    staged: VecDeque<StagedPart>,
    replaced: Replaced,
    lost: Vec<RangeInclusive<u64>>,
    /// Whether each message knows those of its subject beside it: not while a log is read.
    is_linked: bool,
    is_in_memory: bool,
}

impl Stream {
    /// An index without messages, with this hasher for subjects.
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            subjects: Subjects::new(hasher),
            entries: Entries::default(),
            first: 1,
            last: 0,
            committed: 0,
            shown: Totals::default(),
            staged: VecDeque::new(),
            replaced: Replaced::default(),
            lost: Vec::new(),
            is_linked: true,
            is_in_memory: false,
        }
    }

    /// An index of messages that are in no log.
    pub(super) fn in_memory(hasher: RandomState) -> Self {
        Self { is_in_memory: true, ..Self::new(hasher) }
    }

    /// Returns the bytes that limits count for a message of the stream.
    pub fn charge(&self, message: &StoredMessage<'_>) -> u64 {
        if self.is_in_memory { message.charged_bytes_in_memory() } else { message.charged_bytes() }
    }

    /// An index that is filled from a log, in which messages may have been written again: they come
    /// in any order, and [`Self::link`] follows.
    pub(super) fn unlinked(hasher: RandomState) -> Self {
        Self { is_linked: false, ..Self::new(hasher) }
    }

    /// Returns the sequence of the next message.
    pub fn next_sequence(&self) -> u64 {
        self.last + 1
    }

    /// Returns the state of the stream, as far as it is committed.
    pub fn state(&self) -> StreamState {
        let last = self.committed;
        let first = if self.shown.messages == 0 { last + 1 } else { self.first };
        StreamState {
            totals: self.shown,
            first,
            last,
            deleted: (last + 1 - first).saturating_sub(self.shown.messages),
            lost: self.lost.iter().map(|range| range.end() - range.start() + 1).sum(),
            subjects: self.subjects.len(),
            first_time: self.time_of(first).unwrap_or(0),
            last_time: self.time_of(self.last_before(last)).unwrap_or(0),
        }
    }

    /// The last message that is shown, or `last` itself.
    fn last_before(&self, last: u64) -> u64 {
        if self.has(last) { last } else { self.entries.last_up_to(last).unwrap_or(last) }
    }

    /// The time of a message, staged or not, in nanoseconds since 1970.
    pub fn time_of(&self, sequence: u64) -> Option<u64> {
        self.entries.get(sequence).map(MessageEntry::time)
    }

    /// The subject of a message, staged or not.
    pub fn subject_of(&self, sequence: u64) -> Option<&[u8]> {
        let id = self.entries.get(sequence)?.subject();
        self.subjects.line(id).map(|line| line.name())
    }

    /// Bytes that limits count for a message, staged or not.
    pub fn charged_bytes_of(&self, sequence: u64) -> Option<u64> {
        self.entries.get(sequence).map(MessageEntry::charged)
    }

    /// The first message of a time or later that is shown.
    pub fn at_time(&self, time: u64) -> Option<u64> {
        self.entries.at_time(time).filter(|sequence| *sequence <= self.committed)
    }

    /// Returns the ranges of sequences between the first and the last message that is shown that
    /// have no message, in order, at most `max`.
    pub fn deleted(&self, max: usize) -> Vec<RangeInclusive<u64>> {
        let state = self.state();
        if state.deleted == 0 {
            Vec::new()
        } else {
            self.entries.holes(state.first..=state.last, max)
        }
    }

    /// Returns messages and bytes with those that are staged, which count for limits.
    pub fn totals(&self) -> Totals {
        let mut totals = self.shown;
        for part in &self.staged {
            totals.messages += part.totals.messages;
            totals.bytes += part.totals.bytes;
        }
        totals
    }

    /// Returns the ranges of sequences with messages that are lost by damage.
    pub fn lost(&self) -> &[RangeInclusive<u64>] {
        &self.lost
    }

    /// Whether there is a message with this sequence, staged or not.
    pub fn has(&self, sequence: u64) -> bool {
        self.entries.get(sequence).is_some()
    }

    /// The first message, staged or not.
    pub fn first(&self) -> Option<u64> {
        (self.first <= self.last).then_some(self.first)
    }

    /// Bytes of memory that the index takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.subjects.memory_bytes() + self.entries.memory_bytes()
    }

    /// Adds the message with the next sequence, or a later one. While a log is read, a message that
    /// is there already was written once more.
    pub(super) fn append(&mut self, message: &StoredMessage<'_>, staged: Staged) {
        let sequence = message.sequence;
        if sequence <= self.last {
            self.append_again(message, staged.place);
            return;
        }
        if self.first > self.last {
            self.first = sequence;
        }
        self.last = sequence;
        let (subject, before) = self.subjects.add(message.subject, sequence);
        let charged = self.charge(message);
        let mut entry = MessageEntry::new(staged.place, subject, charged, message.time);
        if let Some(before) = before.filter(|_| self.is_linked) {
            entry.set_before(sequence, Some(before));
            if let Some(other) = self.entries.get_mut(before) {
                other.set_behind(before, Some(sequence));
            }
        }
        self.entries.insert(sequence, entry);
        self.staged_part(staged.commit).totals.add(charged);
    }

    fn append_again(&mut self, message: &StoredMessage<'_>, place: RecordPlace) {
        let sequence = message.sequence;
        if let Some(entry) = self.entries.get_mut(sequence) {
            entry.set_place(place);
            return;
        }
        if self.is_linked {
            return;
        }
        let (subject, _) = self.subjects.add(message.subject, sequence);
        let charged = self.charge(message);
        let entry = MessageEntry::new(place, subject, charged, message.time);
        self.entries.insert(sequence, entry);
        self.shown.add(charged);
        self.first = self.first.min(sequence);
        self.find_again(sequence);
    }

    /// A message that was taken for lost is there.
    fn find_again(&mut self, sequence: u64) {
        let Some(at) = self.lost.iter().position(|range| range.contains(&sequence)) else { return };
        let (start, end) = self.lost[at].clone().into_inner();
        let parts = [start..=sequence - 1, sequence + 1..=end];
        self.lost.splice(at..=at, parts.into_iter().filter(|part| !part.is_empty()));
    }

    /// Finds for each message those of its subject beside it, once a log was read.
    pub(super) fn link(&mut self) {
        self.is_linked = true;
        self.subjects.forget_messages();
        let mut at = self.entries.next(0);
        while let Some(sequence) = at {
            let subject = self.entries.get(sequence).map(MessageEntry::subject);
            let before = subject.and_then(|subject| self.subjects.add_to(subject, sequence));
            if let Some(before) = before {
                if let Some(entry) = self.entries.get_mut(sequence) {
                    entry.set_before(sequence, Some(before));
                }
                if let Some(other) = self.entries.get_mut(before) {
                    other.set_behind(before, Some(sequence));
                }
            }
            at = self.entries.next(sequence + 1);
        }
    }

    /// Returns the changes of a commit; it has all sequences that were given so far.
    fn staged_part(&mut self, commit: u64) -> &mut StagedPart {
        let (last, totals) = (self.last, Totals::default());
        if self.staged.back().is_none_or(|part| part.commit != commit) {
            self.staged.push_back(StagedPart { commit, last, totals });
        }
        let at = self.staged.len() - 1;
        self.staged[at].last = last;
        &mut self.staged[at]
    }

    /// Takes the end of all commits up to this one: their messages are on the disk.
    pub(super) fn commit(&mut self, number: u64) {
        while let Some(part) = self.staged.front().filter(|part| part.commit <= number) {
            self.committed = part.last;
            self.shown.messages += part.totals.messages;
            self.shown.bytes += part.totals.bytes;
            self.staged.pop_front();
        }
        self.replaced.commit(number);
    }

    /// Uses up the sequences up to this one: their messages are lost.
    pub(super) fn lose_up_to(&mut self, last: u64) {
        if last <= self.last {
            return;
        }
        self.note_lost(self.last + 1..=last);
        if self.first > self.last {
            self.first = last + 1;
        }
        self.last = last;
        match self.staged.back_mut() {
            Some(part) => part.last = last,
            None => self.committed = last,
        }
    }

    fn note_lost(&mut self, range: RangeInclusive<u64>) {
        if self.lost.len() < LOST_RANGES_MAX {
            self.lost.push(range);
        } else if let Some(last) = self.lost.last_mut() {
            *last = *last.start()..=*range.end();
        }
    }

    /// The place of a message that is shown.
    pub fn get(&self, sequence: u64) -> Option<RecordPlace> {
        if sequence > self.committed {
            return None;
        }
        let place = self.entries.get(sequence).map(MessageEntry::place);
        place.or_else(|| self.replaced.place(sequence))
    }

    /// The place of a message, staged or not.
    pub(super) fn peek(&self, sequence: u64) -> Option<RecordPlace> {
        self.entries.get(sequence).map(MessageEntry::place)
    }

    /// The last message of a subject that is shown.
    pub fn last_of(&self, subject: &[u8]) -> Option<u64> {
        let mut newest = self.subjects.find(subject).into_iter().flat_map(|id| self.newest(id));
        let found = newest.find(|sequence| *sequence <= self.committed);
        found.or_else(|| self.replaced.last_of(subject, self.committed))
    }

    /// The last message of a subject, staged or not, with which expectations are compared.
    pub fn newest_of(&self, subject: &[u8]) -> Option<u64> {
        Some(self.subjects.line(self.subjects.find(subject)?)?.last)
    }

    /// Returns the messages of a subject, staged or not.
    pub fn subject(&self, subject: &[u8]) -> Option<SubjectState> {
        let line = self.subjects.line(self.subjects.find(subject)?)?;
        Some(SubjectState { first: line.first, last: line.last, messages: line.count })
    }

    /// Returns the subjects from a number on, each with its number, name, and count of messages. A
    /// subject that comes or goes meanwhile is seen or not.
    pub fn subjects_from(&self, number: u32) -> impl Iterator<Item = (u32, &[u8], u64)> {
        self.subjects.from(number).map(|(id, line)| (id.0, line.name(), line.count))
    }

    /// The messages of a subject, from the last one back.
    fn newest(&self, id: SubjectId) -> impl Iterator<Item = u64> {
        let mut at = self.subjects.line(id).map(|line| line.last);
        std::iter::from_fn(move || {
            let sequence = at?;
            at = self.entries.get(sequence).and_then(|entry| entry.before(sequence));
            Some(sequence)
        })
    }

    /// The messages of a subject, from the first one on.
    fn oldest(&self, id: SubjectId) -> impl Iterator<Item = u64> {
        let mut at = self.subjects.line(id).map(|line| line.first);
        std::iter::from_fn(move || {
            let sequence = at?;
            at = self.entries.get(sequence).and_then(|entry| entry.behind(sequence));
            Some(sequence)
        })
    }

    /// The first shown message at `from` or behind it with a subject that one of the filters
    /// matches; all match if there are none. Looks at no more than `steps` messages, which are used
    /// up.
    pub fn next(&self, filters: &[&[u8]], from: u64, steps: &mut usize) -> NextMessage {
        let from = from.max(self.first);
        if let [filter] = filters
            && is_literal(filter)
        {
            let Some(id) = self.subjects.find(filter) else { return NextMessage::None };
            return self.next_of(id, from, steps);
        }
        let mut wanted = WantedSubjects::new(filters);
        let is_wanted = |id| wanted.has(id, &self.subjects);
        self.search(from, steps, is_wanted, || false)
    }

    /// The first shown message of a subject at `from` or behind it.
    fn next_of(&self, id: SubjectId, from: u64, steps: &mut usize) -> NextMessage {
        let Some(line) = self.subjects.line(id) else { return NextMessage::None };
        let shown = |sequence: u64| match sequence <= self.committed {
            true => NextMessage::Found(sequence),
            false => NextMessage::None,
        };
        if line.last < from {
            return NextMessage::None;
        }
        if line.first >= from {
            return shown(line.first);
        }
        // A reader goes on behind the message that it has had.
        let before =
            from.checked_sub(1).and_then(|before| Some((before, self.entries.get(before)?)));
        if let Some((before, entry)) = before.filter(|(_, entry)| entry.subject() == id) {
            return entry.behind(before).map_or(NextMessage::None, shown);
        }
        // The subject is rare, or one of its messages is near.
        let mut backward = self.newest(id);
        let mut best = None;
        let mut is_known = || {
            let before = backward.next().filter(|before| *before >= from);
            best = before.or(best);
            before.is_none()
        };
        match self.search(from, steps, |subject| subject == id, &mut is_known) {
            NextMessage::None => best.map_or(NextMessage::None, shown),
            found => found,
        }
    }

    /// Looks for a message that is wanted, until there is none or `is_over`.
    fn search(
        &self,
        from: u64,
        steps: &mut usize,
        mut is_wanted: impl FnMut(SubjectId) -> bool,
        mut is_over: impl FnMut() -> bool,
    ) -> NextMessage {
        for (sequence, entry) in self.entries.from(from) {
            if sequence > self.committed {
                break;
            }
            if *steps == 0 {
                return NextMessage::Later(sequence);
            }
            *steps -= 1;
            if is_wanted(entry.subject()) {
                return NextMessage::Found(sequence);
            }
            if is_over() {
                break;
            }
        }
        NextMessage::None
    }

    /// Returns the number of shown messages from a sequence on with a subject that one of the
    /// filters matches; all match if there are none. The work is that of [`Self::count_all`].
    pub fn count(&self, filters: &[&[u8]], from: u64) -> u64 {
        if from > self.committed {
            return 0;
        }
        self.count_all(filters, from) - self.count_all(filters, self.committed + 1)
    }

    /// Returns the number of messages, staged or not, from a sequence on with a subject that one of
    /// the filters matches; all match if there are none. The work is that of one look at each
    /// subject, or at each message from there on, whatever is less, and at the messages from there
    /// on of those subjects that have some before, too.
    pub fn count_all(&self, filters: &[&[u8]], from: u64) -> u64 {
        let from = from.max(self.first);
        if from > self.last {
            return 0;
        }
        let all = self.entries.count_from(from);
        let is_all = |filter: &[u8]| filter == b">";
        if filters.is_empty() || filters.iter().any(|filter| is_all(filter)) {
            return all;
        }
        let mut wanted = WantedSubjects::new(filters);
        if let [filter] = filters
            && is_literal(filter)
        {
            self.subjects.find(filter).map_or(0, |id| self.count_of(id, from))
        } else if all <= self.subjects.len() as u64 {
            let messages = self.entries.from(from);
            let count = messages.filter(|(_, entry)| wanted.has(entry.subject(), &self.subjects));
            count.count() as u64
        } else {
            let subjects = self.subjects.from(0);
            let matching = subjects.filter(|(_, line)| any_matches(filters, line.name()));
            let ids: Vec<SubjectId> = matching.map(|(id, _)| id).collect();
            let is_every = ids.len() == self.subjects.len();
            if is_every { all } else { ids.iter().map(|id| self.count_of(*id, from)).sum() }
        }
    }

    /// Returns the number of messages of a subject from a sequence on, staged ones included. They
    /// are counted from both ends at once.
    fn count_of(&self, id: SubjectId, from: u64) -> u64 {
        let Some(line) = self.subjects.line(id) else { return 0 };
        if line.first >= from {
            return line.count;
        }
        let (mut older, mut newer) = (self.oldest(id), self.newest(id));
        for number in 0.. {
            if newer.next().is_none_or(|sequence| sequence < from) {
                return number;
            }
            if older.next().is_none_or(|sequence| sequence >= from) {
                return line.count - number;
            }
        }
        0
    }

    /// Returns the last shown messages, up to a sequence, of the subjects that one of the filters
    /// matches; all match if there are none. `None` if there are more than `max`.
    pub fn last_of_subjects(&self, filters: &[&[u8]], up_to: u64, max: usize) -> Option<Vec<u64>> {
        let up_to = up_to.min(self.committed);
        let last = |id| self.newest(id).find(|sequence| *sequence <= up_to);
        let mut found: Vec<u64> = if !filters.is_empty() && filters.iter().all(|it| is_literal(it))
        {
            let ids = filters.iter().filter_map(|filter| self.subjects.find(filter));
            ids.filter_map(last).collect()
        } else {
            let subjects = self.subjects.from(0);
            let is_wanted = |name: &[u8]| filters.is_empty() || any_matches(filters, name);
            let matching = subjects.filter(|(_, line)| is_wanted(line.name()));
            matching.filter_map(|(id, _)| last(id)).take(max.saturating_add(1)).collect()
        };
        found.sort_unstable();
        found.dedup();
        (found.len() <= max).then_some(found)
    }

    /// Returns what [`Self::last_of_subjects`] does, with messages that staged ones have replaced.
    pub fn last_shown_of_subjects(
        &self,
        filters: &[&[u8]],
        up_to: u64,
        max: usize,
    ) -> Option<Vec<u64>> {
        let mut found = self.last_of_subjects(filters, up_to, max)?;
        let up_to = up_to.min(self.committed);
        let all = filters.iter().flat_map(|filter| self.replaced.last_of_subjects(filter, up_to));
        let count = found.len();
        for (subject, sequence) in all {
            let mut newest =
                self.subjects.find(&subject).into_iter().flat_map(|it| self.newest(it));
            if !newest.any(|it| it <= up_to) {
                found.push(sequence);
            }
        }
        if found.len() > count {
            found.sort_unstable();
            found.dedup();
        }
        (found.len() <= max).then_some(found)
    }

    /// The first message at `from` or behind it, and before `before`, that a staged one has
    /// replaced, with a subject that the filter matches.
    pub fn next_replaced(&self, filter: &[u8], from: u64, before: Option<u64>) -> Option<u64> {
        let end = before.map_or(self.committed, |before| before.saturating_sub(1));
        self.replaced.next(filter, from, end.min(self.committed))
    }

    /// Removes a message to which one of this commit is the successor. It is shown until that
    /// commit has ended. Returns what [`Self::remove`] does.
    pub(super) fn replace(&mut self, sequence: u64, commit: u64) -> Option<(RecordPlace, u64)> {
        let subject = self.subject_of(sequence).map(Rc::from)?;
        let removed = self.remove(sequence)?;
        self.replaced.insert(sequence, subject, removed.0, commit);
        Some(removed)
    }

    /// Removes a message, staged or not. Returns the place where it was, and its bytes as limits
    /// count them.
    pub(super) fn remove(&mut self, sequence: u64) -> Option<(RecordPlace, u64)> {
        let entry = self.entries.remove(sequence)?;
        let mut parts = self.staged.iter_mut();
        match parts.find(|part| sequence > self.committed && sequence <= part.last) {
            Some(part) => part.totals.remove(entry.charged()),
            None => self.shown.remove(entry.charged()),
        }
        if self.is_linked {
            self.take_from_subject(sequence, &entry);
        } else {
            self.subjects.take_back(entry.subject());
        }
        if sequence == self.first {
            self.first = self.entries.next(sequence + 1).unwrap_or(self.last + 1);
        }
        Some((entry.place(), entry.charged()))
    }

    fn take_from_subject(&mut self, sequence: u64, entry: &MessageEntry) {
        let (before, behind) = (entry.before(sequence), entry.behind(sequence));
        let Some(line) = self.subjects.line_mut(entry.subject()) else { return };
        line.count -= 1;
        if line.count == 0 {
            self.subjects.remove(entry.subject());
            return;
        }
        match before.and_then(|before| Some((before, self.entries.get_mut(before)?))) {
            Some((before, other)) => other.set_behind(before, behind),
            None => line.first = behind.unwrap_or(line.first),
        }
        match behind.and_then(|behind| Some((behind, self.entries.get_mut(behind)?))) {
            Some((behind, other)) => other.set_before(behind, before),
            None => line.last = before.unwrap_or(line.last),
        }
    }

    /// Removes all messages in a range. Returns the places where they were.
    pub(super) fn remove_range(&mut self, range: RangeInclusive<u64>) -> Vec<(RecordPlace, u64)> {
        let live = self.entries.from(*range.start()).map(|(sequence, _)| sequence);
        let sequences: Vec<u64> = live.take_while(|sequence| sequence <= range.end()).collect();
        sequences.into_iter().filter_map(|sequence| self.remove(sequence)).collect()
    }

    /// A message has been moved from one place to another.
    pub(super) fn move_to(&mut self, sequence: u64, from: RecordPlace, to: RecordPlace) {
        let entry = self.entries.get_mut(sequence);
        if let Some(entry) = entry.filter(|entry| entry.place() == from) {
            entry.set_place(to);
        }
    }

    /// Removes all messages before a sequence, and uses up sequences up to `last`. Returns what is
    /// to be freed.
    pub(super) fn purge(&mut self, before: u64, last: u64, commit: u64) -> Purged {
        let mut purged = Purged { places: Vec::new(), all: Entries::default() };
        self.replaced.forget_before(before);
        if before > self.last {
            self.subjects.clear();
            purged.all = std::mem::take(&mut self.entries);
            self.shown = Totals::default();
            self.staged.iter_mut().for_each(|part| part.totals = Totals::default());
        } else if before > self.first {
            purged.places = self.remove_range(self.first..=before - 1);
        }
        self.last = self.last.max(last).max(before.saturating_sub(1)).min(SEQUENCE_MAX);
        if self.totals().messages == 0 {
            self.first = self.last + 1;
        }
        self.staged_part(commit);
        purged
    }

    /// All messages, staged or not, with their places.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, RecordPlace, u64)> {
        let all = self.entries.from(0);
        all.map(|(sequence, entry)| (sequence, entry.place(), entry.charged()))
    }

    /// All entries of a stream that ends.
    pub(super) fn into_entries(self) -> Entries {
        self.entries
    }

    /// Removes messages that are lost by damage.
    pub(super) fn lose(&mut self, sequence: u64) {
        if self.remove(sequence).is_some() {
            self.note_lost(sequence..=sequence);
        }
    }

    /// Returns the messages that a purge is to remove, staged or not: those before `below` with a
    /// subject that one of the filters matches, but for the last `keep` ones.
    pub(super) fn purged(&self, filters: &[&[u8]], below: u64, keep: usize) -> Vec<u64> {
        let mut wanted = WantedSubjects::new(filters);
        let all = self.entries.from(self.first).take_while(|(sequence, _)| *sequence < below);
        let matching = all.filter(|(_, entry)| wanted.has(entry.subject(), &self.subjects));
        let mut found: Vec<u64> = if let [filter] = filters
            && is_literal(filter)
        {
            let id = self.subjects.find(filter);
            let of_it = id.into_iter().flat_map(|id| self.oldest(id));
            of_it.take_while(|sequence| *sequence < below).collect()
        } else {
            matching.map(|(sequence, _)| sequence).collect()
        };
        found.truncate(found.len().saturating_sub(keep));
        found
    }
}

fn any_matches(filters: &[&[u8]], name: &[u8]) -> bool {
    filters.iter().any(|filter| matches(filter, name))
}

/// Subjects that one of the filters matches; all match if there are none.
struct WantedSubjects<'a> {
    filters: &'a [&'a [u8]],
    /// Subjects of which it is known.
    remembered: [(SubjectId, bool); REMEMBERED],
}

impl<'a> WantedSubjects<'a> {
    fn new(filters: &'a [&'a [u8]]) -> Self {
        Self { filters, remembered: [(SubjectId(u32::MAX), false); REMEMBERED] }
    }

    fn has(&mut self, id: SubjectId, subjects: &Subjects) -> bool {
        if self.filters.is_empty() {
            return true;
        }
        let known = &mut self.remembered[id.0 as usize % REMEMBERED];
        if known.0 != id {
            let name = subjects.line(id).map_or(&[][..], |line| line.name());
            *known = (id, any_matches(self.filters, name));
        }
        known.1
    }
}

#[cfg(test)]
mod tests;
