//! The subjects of one stream: for each its count of messages, the first and the last one.
//!
//! A subject costs 64 bytes, and up to 10.5 of a hash table; names of more than 38 bytes cost as
//! much again as they are long.

use ahash::RandomState;

use crate::subject::Parted;

/// Names up to this length are in the line itself, in bytes.
const SHORT_BYTES_MAX: usize = 38;
/// Lines that are allocated at a time, once there are as many.
const CHUNK: usize = 256;

/// The number of a subject in its stream, which another one may have later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SubjectId(pub(super) u32);

/// The line of one subject.
#[derive(Debug, Clone)]
pub(super) struct SubjectLine {
    /// The first message of the subject.
    pub(super) first: u64,
    /// The last message of the subject.
    pub(super) last: u64,
    /// Number of messages; 0 if the line is free.
    pub(super) count: u64,
    name: SubjectName,
}

const _: () = assert!(size_of::<SubjectLine>() == 64);

#[derive(Debug, Clone)]
enum SubjectName {
    Short { len: u8, bytes: [u8; SHORT_BYTES_MAX] },
    Long(Box<[u8]>),
}

impl SubjectName {
    fn new(name: &[u8]) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(name);
                Self::Short { len, bytes }
            }
            _ => Self::Long(name.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl SubjectLine {
    pub(super) fn name(&self) -> &[u8] {
        self.name.bytes()
    }
}

/// All subjects of a stream that have messages.
#[derive(Debug)]
pub(super) struct Subjects {
    /// Numbers of lines, by the hash of the name.
    numbers: Parted<u32>,
    lines: Vec<Vec<SubjectLine>>,
    /// The line to be used next; each free one has the number of another in `first`.
    free: Option<u32>,
    hasher: RandomState,
}

impl Subjects {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self { numbers: Parted::default(), lines: Vec::new(), free: None, hasher }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.hasher.clone());
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn line(&self, id: SubjectId) -> Option<&SubjectLine> {
        line(&self.lines, id.0)
    }

    pub(super) fn line_mut(&mut self, id: SubjectId) -> Option<&mut SubjectLine> {
        self.lines.get_mut(id.0 as usize / CHUNK)?.get_mut(id.0 as usize % CHUNK)
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<SubjectId> {
        let hash = self.hasher.hash_one(name);
        let is_it = |number: &u32| line(&self.lines, *number).is_some_and(|l| l.name() == name);
        self.numbers.find(hash, is_it).copied().map(SubjectId)
    }

    /// Counts a message of a subject. Returns the subject, and the message of it before.
    pub(super) fn add(&mut self, name: &[u8], sequence: u64) -> (SubjectId, Option<u64>) {
        if let Some(id) = self.find(name)
            && let Some(line) = self.line_mut(id)
        {
            let before = std::mem::replace(&mut line.last, sequence);
            line.count += 1;
            return (id, Some(before));
        }
        let name = SubjectName::new(name);
        let line = SubjectLine { first: sequence, last: sequence, count: 1, name };
        let hash = self.hasher.hash_one(line.name());
        let number = self.place(line);
        let (lines, hasher) = (&self.lines, &self.hasher);
        self.numbers.find_or_insert(hash, |_| false, hash_of(lines, hasher), || number);
        (SubjectId(number), None)
    }

    /// Counts a message of a subject that is known. Returns the message of it before.
    pub(super) fn add_to(&mut self, id: SubjectId, sequence: u64) -> Option<u64> {
        let line = self.line_mut(id)?;
        let before = std::mem::replace(&mut line.last, sequence);
        line.count += 1;
        if line.count == 1 {
            line.first = sequence;
        }
        (line.count > 1).then_some(before)
    }

    /// Makes the counts of all subjects zero; each of them gets messages at once.
    pub(super) fn forget_messages(&mut self) {
        self.lines.iter_mut().flatten().for_each(|line| line.count = 0);
    }

    /// Takes back a message that was counted, which has no place among the others yet.
    pub(super) fn take_back(&mut self, id: SubjectId) {
        if let Some(line) = self.line_mut(id) {
            line.count -= 1;
            if line.count == 0 {
                self.remove(id);
            }
        }
    }

    fn place(&mut self, new: SubjectLine) -> u32 {
        if let Some(number) = self.free
            && let Some(line) = self.line_mut(SubjectId(number))
        {
            let next = line.first;
            *line = new;
            self.free = u32::try_from(next).ok().filter(|next| *next != number);
            return number;
        }
        let chunks = self.lines.len();
        match self.lines.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(new),
            // A stream of few subjects is small.
            None => self.lines.push(vec![new]),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(new);
                self.lines.push(chunk);
            }
        }
        let filled = chunks.saturating_sub(usize::from(chunks == self.lines.len())) * CHUNK;
        let number = filled + self.lines.last().map_or(0, Vec::len) - 1;
        let Ok(number) = u32::try_from(number) else {
            unreachable!("memory ends before numbers do")
        };
        number
    }

    /// Removes a subject that has no messages left.
    pub(super) fn remove(&mut self, id: SubjectId) {
        let Some(line) = self.line(id) else { return };
        let hash = self.hasher.hash_one(line.name());
        let (lines, hasher) = (&self.lines, &self.hasher);
        self.numbers.remove(hash, |number| *number == id.0, hash_of(lines, hasher));
        if self.numbers.is_empty() {
            (self.lines, self.free) = (Vec::new(), None);
            return;
        }
        let next = self.free.unwrap_or(id.0);
        if let Some(line) = self.line_mut(id) {
            line.first = u64::from(next);
            line.count = 0;
            line.name = SubjectName::Short { len: 0, bytes: [0; SHORT_BYTES_MAX] };
        }
        self.free = Some(id.0);
    }

    /// All subjects, from the number `from` on.
    pub(super) fn from(&self, from: u32) -> impl Iterator<Item = (SubjectId, &SubjectLine)> {
        let all = self.lines.iter().flatten().skip(from as usize);
        (from..).map(SubjectId).zip(all).filter(|(_, line)| line.count > 0)
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let lines: usize = self.lines.iter().map(|chunk| chunk.capacity()).sum();
        let long = self.from(0).map(|(_, line)| match &line.name {
            SubjectName::Short { .. } => 0,
            SubjectName::Long(name) => name.len(),
        });
        let of_chunks = self.lines.capacity() * size_of::<Vec<SubjectLine>>();
        lines * size_of::<SubjectLine>()
            + of_chunks
            + long.sum::<usize>()
            + self.numbers.memory_bytes()
    }
}

fn line(lines: &[Vec<SubjectLine>], number: u32) -> Option<&SubjectLine> {
    lines.get(number as usize / CHUNK)?.get(number as usize % CHUNK)
}

fn hash_of(lines: &[Vec<SubjectLine>], hasher: &RandomState) -> impl Fn(&u32) -> u64 {
    |number| line(lines, *number).map_or(0, |line| hasher.hash_one(line.name()))
}
