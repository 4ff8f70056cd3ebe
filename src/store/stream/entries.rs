//! The messages of one stream by sequence: for each its place, bytes and time, and the messages of
//! its subject before and behind it. A message costs 28 bytes, one among many removed ones 32.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::super::tail::RecordPlace;
use super::subjects::SubjectId;

/// Sequences of one chunk.
const CHUNK: u64 = 256;
/// Messages up to which a chunk that takes no more keeps them alone.
const SPARSE_MAX: u16 = 64;
/// In `subject`: no message has this sequence any more.
const REMOVED: u32 = 1 << 31;
/// Bits of the bytes in `charged`; the others are those of the place that are too many for it.
const CHARGED_BITS: u32 = 26;

/// The entry of one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageEntry {
    /// The lower half of the time, and the higher one.
    time: [u32; 2],
    place: u32,
    charged: u32,
    /// The number of the subject, or `REMOVED`.
    subject: u32,
    /// Sequences back to the message of the subject before it; 0 if there is none.
    before: u32,
    /// Sequences up to the message of the subject behind it; 0 if there is none.
    behind: u32,
}

const _: () = assert!(size_of::<MessageEntry>() == 28);
const _: () = assert!(crate::record::record::RECORD_BYTES_MAX < 1 << CHARGED_BITS);

fn low(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// A distance between messages; 0 stands for none. Messages in memory are never so far apart.
fn distance(far: Option<u64>) -> u32 {
    far.map_or(0, |far| u32::try_from(far).unwrap_or(0))
}

impl MessageEntry {
    const HOLE: Self =
        Self { time: [0; 2], place: 0, charged: 0, subject: REMOVED, before: 0, behind: 0 };

    pub(super) fn new(place: RecordPlace, subject: SubjectId, charged: u64, time: u64) -> Self {
        let time = [low(time), low(time >> 32)];
        let charged = low(charged) & ((1 << CHARGED_BITS) - 1);
        let mut entry = Self { time, charged, subject: subject.0, ..Self::HOLE };
        entry.set_place(place);
        entry
    }

    pub(super) fn place(&self) -> RecordPlace {
        RecordPlace(u64::from(self.charged >> CHARGED_BITS) << 32 | u64::from(self.place))
    }

    pub(super) fn set_place(&mut self, place: RecordPlace) {
        let high = low(place.0 >> 32) << CHARGED_BITS;
        self.charged = self.charged & ((1 << CHARGED_BITS) - 1) | high;
        self.place = low(place.0);
    }

    /// Bytes that limits count for the message.
    pub(super) fn charged(&self) -> u64 {
        u64::from(self.charged & ((1 << CHARGED_BITS) - 1))
    }

    pub(super) fn time(&self) -> u64 {
        u64::from(self.time[1]) << 32 | u64::from(self.time[0])
    }

    fn is_removed(&self) -> bool {
        self.subject & REMOVED != 0
    }

    pub(super) fn subject(&self) -> SubjectId {
        SubjectId(self.subject)
    }

    /// The message of the subject before this one, which has this sequence.
    pub(super) fn before(&self, sequence: u64) -> Option<u64> {
        (self.before != 0).then(|| sequence - u64::from(self.before))
    }

    /// The message of the subject behind this one, which has this sequence.
    pub(super) fn behind(&self, sequence: u64) -> Option<u64> {
        (self.behind != 0).then(|| sequence + u64::from(self.behind))
    }

    pub(super) fn set_before(&mut self, sequence: u64, before: Option<u64>) {
        self.before = distance(before.map(|before| sequence - before));
    }

    pub(super) fn set_behind(&mut self, sequence: u64, behind: Option<u64>) {
        self.behind = distance(behind.map(|behind| behind - sequence));
    }
}

/// Entries by sequence.
#[derive(Debug, Default)]
pub(in super::super) struct Entries {
    chunks: VecDeque<EntryChunk>,
}

/// The messages of 256 sequences.
#[derive(Debug)]
struct EntryChunk {
    /// The first sequence, by 256.
    number: u64,
    /// Number of messages.
    live: u16,
    slots: Slots,
}

#[derive(Debug)]
enum Slots {
    /// Entries of sequences behind one another, from an offset on.
    Dense { skip: u8, entries: Vec<MessageEntry> },
    /// Entries with their offsets.
    Sparse(Vec<(u8, MessageEntry)>),
}

fn split(sequence: u64) -> (u64, u8) {
    (sequence / CHUNK, sequence.to_le_bytes()[0])
}

impl EntryChunk {
    fn new(number: u64, skip: u8, capacity: usize) -> Self {
        Self {
            number,
            live: 0,
            slots: Slots::Dense { skip, entries: Vec::with_capacity(capacity) },
        }
    }

    fn get(&self, offset: u8) -> Option<&MessageEntry> {
        match &self.slots {
            Slots::Dense { skip, entries } => {
                let at = usize::from(offset.checked_sub(*skip)?);
                entries.get(at).filter(|entry| !entry.is_removed())
            }
            Slots::Sparse(entries) => {
                let at = entries.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
                Some(&entries[at].1)
            }
        }
    }

    fn get_mut(&mut self, offset: u8) -> Option<&mut MessageEntry> {
        match &mut self.slots {
            Slots::Dense { skip, entries } => {
                let at = usize::from(offset.checked_sub(*skip)?);
                entries.get_mut(at).filter(|entry| !entry.is_removed())
            }
            Slots::Sparse(entries) => {
                let at = entries.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
                Some(&mut entries[at].1)
            }
        }
    }

    fn insert(&mut self, offset: u8, entry: MessageEntry) {
        if let Some(there) = self.get_mut(offset) {
            *there = entry;
            return;
        }
        self.live += 1;
        match &mut self.slots {
            Slots::Dense { skip, entries } => {
                if offset < *skip {
                    let more = usize::from(*skip - offset);
                    entries.splice(0..0, std::iter::repeat_n(MessageEntry::HOLE, more));
                    *skip = offset;
                }
                let at = usize::from(offset - *skip);
                if entries.len() <= at {
                    entries.resize(at, MessageEntry::HOLE);
                    entries.push(entry);
                } else {
                    entries[at] = entry;
                }
            }
            Slots::Sparse(entries) => {
                let at = entries.partition_point(|(other, _)| *other < offset);
                entries.insert(at, (offset, entry));
            }
        }
    }

    fn remove(&mut self, offset: u8) -> Option<MessageEntry> {
        let removed = match &mut self.slots {
            Slots::Dense { .. } => {
                let entry = self.get_mut(offset)?;
                std::mem::replace(entry, MessageEntry::HOLE)
            }
            Slots::Sparse(entries) => {
                let at = entries.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
                entries.remove(at).1
            }
        };
        self.live -= 1;
        Some(removed)
    }

    /// Keeps the messages alone, if they are few among removed ones.
    fn thin_out(&mut self) {
        if let Slots::Dense { entries, .. } = &self.slots
            && self.live <= SPARSE_MAX
            && entries.len() > 2 * usize::from(SPARSE_MAX)
        {
            let mut kept = Vec::with_capacity(usize::from(self.live));
            let first = self.number * CHUNK;
            kept.extend(
                self.from(0)
                    .map(|(sequence, entry)| (low(sequence - first).to_le_bytes()[0], *entry)),
            );
            self.slots = Slots::Sparse(kept);
        }
    }

    /// The messages from an offset on.
    fn from(&self, offset: u8) -> impl DoubleEndedIterator<Item = (u64, &MessageEntry)> {
        let base = self.number * CHUNK;
        let (dense, sparse) = match &self.slots {
            Slots::Dense { skip, entries } => {
                let at = usize::from(offset.saturating_sub(*skip)).min(entries.len());
                let first = base + u64::from(*skip) + at as u64;
                let slots = entries[at..].iter().enumerate();
                (Some(slots.map(move |(at, entry)| (first + at as u64, entry))), None)
            }
            Slots::Sparse(entries) => {
                let at = entries.partition_point(|(other, _)| *other < offset);
                let slots = entries[at..].iter();
                (None, Some(slots.map(move |(offset, entry)| (base + u64::from(*offset), entry))))
            }
        };
        let all = dense.into_iter().flatten().chain(sparse.into_iter().flatten());
        all.filter(|(_, entry)| !entry.is_removed())
    }

    fn capacity_bytes(&self) -> usize {
        match &self.slots {
            Slots::Dense { entries, .. } => entries.capacity() * size_of::<MessageEntry>(),
            Slots::Sparse(entries) => entries.capacity() * size_of::<(u8, MessageEntry)>(),
        }
    }
}

impl Entries {
    /// The place of a chunk among all, or where it would be.
    fn find(&self, number: u64) -> Result<usize, usize> {
        let Some(front) = self.chunks.front() else { return Err(0) };
        let Some(guess) = number.checked_sub(front.number) else { return Err(0) };
        let guess = usize::try_from(guess).unwrap_or(usize::MAX);
        if self.chunks.get(guess).is_some_and(|chunk| chunk.number == number) {
            return Ok(guess);
        }
        self.chunks.binary_search_by_key(&number, |chunk| chunk.number)
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&MessageEntry> {
        let (number, offset) = split(sequence);
        self.chunks.get(self.find(number).ok()?)?.get(offset)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut MessageEntry> {
        let (number, offset) = split(sequence);
        let at = self.find(number).ok()?;
        self.chunks.get_mut(at)?.get_mut(offset)
    }

    /// Adds the entry of a sequence, or changes it.
    pub(super) fn insert(&mut self, sequence: u64, entry: MessageEntry) {
        let (number, offset) = split(sequence);
        let at = self.find(number).unwrap_or_else(|at| {
            // A stream of few messages is small.
            let capacity =
                if self.chunks.is_empty() { 1 } else { usize::try_from(CHUNK).unwrap_or(1) };
            self.chunks.insert(at, EntryChunk::new(number, offset, capacity));
            if let Some(before) = at.checked_sub(1).and_then(|at| self.chunks.get_mut(at)) {
                before.thin_out();
            }
            at
        });
        if let Some(chunk) = self.chunks.get_mut(at) {
            chunk.insert(offset, entry);
        }
    }

    /// Removes the entry of a message; `None` if it is not there.
    pub(super) fn remove(&mut self, sequence: u64) -> Option<MessageEntry> {
        let (number, offset) = split(sequence);
        let at = self.find(number).ok()?;
        let is_last = at + 1 == self.chunks.len();
        let chunk = self.chunks.get_mut(at)?;
        let removed = chunk.remove(offset)?;
        if chunk.live == 0 {
            self.chunks.remove(at);
        } else if !is_last {
            chunk.thin_out();
        }
        Some(removed)
    }

    /// The messages from a sequence on.
    pub(super) fn from(&self, sequence: u64) -> impl Iterator<Item = (u64, &MessageEntry)> {
        let (number, offset) = split(sequence);
        let (first, in_chunk) = match self.find(number) {
            Ok(at) => (at + 1, self.chunks.get(at)),
            Err(at) => (at, None),
        };
        let in_chunk = in_chunk.into_iter().flat_map(move |chunk| chunk.from(offset));
        in_chunk.chain(self.chunks.range(first..).flat_map(|chunk| chunk.from(0)))
    }

    /// The first message at a sequence or behind it.
    pub(super) fn next(&self, sequence: u64) -> Option<u64> {
        self.from(sequence).next().map(|(sequence, _)| sequence)
    }

    /// The last message at a sequence or before it.
    pub(super) fn last_up_to(&self, sequence: u64) -> Option<u64> {
        let (number, _) = split(sequence);
        let end = self.find(number).map_or_else(|at| at, |at| at + 1);
        let chunks = self.chunks.range(..end).rev();
        let mut messages = chunks.flat_map(|chunk| chunk.from(0).rev());
        messages.find(|(at, _)| *at <= sequence).map(|(at, _)| at)
    }

    /// Returns the number of messages from a sequence on.
    pub(super) fn count_from(&self, sequence: u64) -> u64 {
        let (number, offset) = split(sequence);
        let (first, in_chunk) = match self.find(number) {
            Ok(at) => (at + 1, self.chunks[at].from(offset).count() as u64),
            Err(at) => (at, 0),
        };
        in_chunk + self.chunks.range(first..).map(|chunk| u64::from(chunk.live)).sum::<u64>()
    }

    /// The first message of this time or later, if times ascend.
    pub(super) fn at_time(&self, time: u64) -> Option<u64> {
        let is_earlier = |chunk: &EntryChunk| {
            chunk.from(0).next_back().is_some_and(|(_, entry)| entry.time() < time)
        };
        let at = self.chunks.partition_point(is_earlier);
        let mut messages = self.chunks.get(at)?.from(0);
        messages.find(|(_, entry)| entry.time() >= time).map(|(sequence, _)| sequence)
    }

    /// Returns the first ranges of sequences in a range that have no message, at most `max`.
    pub(super) fn holes(&self, range: RangeInclusive<u64>, max: usize) -> Vec<RangeInclusive<u64>> {
        let (mut next, last) = range.into_inner();
        let mut holes = Vec::new();
        let first = self.find(next / CHUNK).unwrap_or_else(|at| at);
        for chunk in self.chunks.range(first..) {
            let (begin, end) = (chunk.number * CHUNK, (chunk.number + 1) * CHUNK);
            if next >= begin && next < end && u64::from(chunk.live) == CHUNK {
                next = end;
                continue;
            }
            for (sequence, _) in chunk.from(0).skip_while(move |(sequence, _)| *sequence < next) {
                if next > last || holes.len() >= max {
                    return holes;
                }
                if sequence > next {
                    holes.push(next..=last.min(sequence - 1));
                }
                next = sequence + 1;
            }
        }
        if next <= last && holes.len() < max {
            holes.push(next..=last);
        }
        holes
    }

    /// Takes the entries of up to 256 messages out. Returns their places, and the bytes that limits
    /// count.
    pub(in super::super) fn take_places(&mut self) -> Option<Vec<(RecordPlace, u64)>> {
        let chunk = self.chunks.pop_front()?;
        Some(chunk.from(0).map(|(_, entry)| (entry.place(), entry.charged())).collect())
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let entries: usize = self.chunks.iter().map(EntryChunk::capacity_bytes).sum();
        entries + self.chunks.capacity() * size_of::<EntryChunk>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Append(u64),
        Insert(u64),
        Remove(u64),
        RemoveAll(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..400_u64).prop_map(Step::Append),
            2 => (1..2000_u64).prop_map(Step::Insert),
            4 => (1..2000_u64).prop_map(Step::Remove),
            1 => (1..1500_u64, 1..600_u64).prop_map(|(from, len)| Step::RemoveAll(from, len)),
        ]
    }

    fn entry(number: u64) -> MessageEntry {
        let place = RecordPlace(number | 0x2a << 32);
        MessageEntry::new(place, SubjectId(7), number, number * 10)
    }

    proptest! {
        #[test]
        fn entries_are_a_table(steps in prop::collection::vec(step(), 0..30)) {
            let (mut entries, mut model) = (Entries::default(), BTreeMap::new());
            let mut last = 0;
            for step in steps {
                match step {
                    Step::Append(count) => {
                        for sequence in last + 1..=last + count {
                            entries.insert(sequence, entry(sequence));
                            model.insert(sequence, sequence);
                        }
                        last += count;
                    }
                    Step::Insert(sequence) => {
                        entries.insert(sequence, entry(sequence));
                        model.insert(sequence, sequence);
                        last = last.max(sequence);
                    }
                    Step::Remove(sequence) => {
                        let removed = entries.remove(sequence).map(|entry| entry.charged());
                        prop_assert_eq!(removed, model.remove(&sequence));
                    }
                    Step::RemoveAll(from, len) => {
                        for sequence in from..from + len {
                            let removed = entries.remove(sequence).is_some();
                            prop_assert_eq!(removed, model.remove(&sequence).is_some());
                        }
                    }
                }
            }
            for from in (0..last + 2).step_by(37) {
                let found: Vec<u64> = entries.from(from).map(|(sequence, _)| sequence).collect();
                let known: Vec<u64> = model.range(from..).map(|(key, _)| *key).collect();
                prop_assert_eq!(entries.count_from(from), known.len() as u64);
                prop_assert_eq!(entries.at_time(from * 10 - u64::from(from > 0)),
                    known.first().copied());
                prop_assert_eq!(&found, &known);
                let holes = entries.holes(from.max(1)..=last, usize::MAX);
                let all: Vec<u64> = holes.into_iter().flatten().collect();
                let missing = (from.max(1)..=last).filter(|key| !model.contains_key(key));
                prop_assert_eq!(all, missing.collect::<Vec<_>>());
            }
            for (sequence, entry) in entries.from(0) {
                prop_assert_eq!(entry.place(), RecordPlace(sequence | 0x2a << 32));
                prop_assert_eq!((entry.time(), entry.charged()), (sequence * 10, sequence));
            }
        }
    }
}
