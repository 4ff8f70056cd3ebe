//! What a store must have: streams as plain tables, and what each commit changes of them.

use std::collections::{BTreeMap, BTreeSet};

use shardcast::store::{LogRecord, Read, StreamId, StreamStore};

use super::disk::Disk;

/// The content of a message: subject, headers and payload.
pub(crate) type Content = (Vec<u8>, Vec<u8>, Vec<u8>);

/// One stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) configuration: Option<Vec<u8>>,
    pub(crate) messages: BTreeMap<u64, Content>,
    pub(crate) last: u64,
}

/// All streams.
pub(crate) type Tables = BTreeMap<StreamId, Table>;

/// What is changed of a stream.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Configure(Vec<u8>),
    End,
    Append(Content),
    Remove(Vec<u64>),
    /// A removal of messages that make room for one that was appended.
    Replace(Vec<u64>),
    Purge(u64),
}

/// What is acknowledged, and what is on its way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    /// What is acknowledged.
    pub(crate) base: Tables,
    /// Changes with the numbers of their commits, in their order.
    pub(crate) pending: Vec<(u64, StreamId, Change)>,
    /// With all changes.
    pub(crate) newest: Tables,
    /// Streams in memory: their changes are acknowledged at once, and a restart forgets them.
    pub(crate) in_memory: BTreeSet<StreamId>,
}

fn apply(tables: &mut Tables, id: StreamId, change: &Change) {
    if matches!(change, Change::End) {
        tables.remove(&id);
        return;
    }
    let table = tables.entry(id).or_default();
    match change {
        Change::Configure(bytes) => table.configuration = Some(bytes.clone()),
        Change::Append(content) => {
            table.last += 1;
            table.messages.insert(table.last, content.clone());
        }
        Change::Remove(sequences) | Change::Replace(sequences) => {
            sequences.iter().for_each(|sequence| drop(table.messages.remove(sequence)));
        }
        Change::Purge(before) => {
            table.messages.retain(|sequence, _| sequence >= before);
            table.last = table.last.max(before - 1);
        }
        Change::End => {}
    }
}

impl Model {
    /// Something was changed with this commit.
    pub(crate) fn stage(&mut self, commit: u64, id: StreamId, change: Change) {
        apply(&mut self.newest, id, &change);
        if self.in_memory.contains(&id) {
            apply(&mut self.base, id, &change);
        } else {
            self.pending.push((commit, id, change));
        }
    }

    /// All up to this commit is acknowledged.
    pub(crate) fn acknowledge(&mut self, commit: u64) {
        let acknowledged = self.pending.iter().take_while(|(number, ..)| *number <= commit);
        let count = acknowledged.count();
        for (_, id, change) in self.pending.drain(..count) {
            apply(&mut self.base, id, &change);
        }
    }

    /// After a restart the store has `found`: what was acknowledged, and the commit that was on its
    /// way or not, but nothing in between. Returns whether it has that commit.
    pub(crate) fn restart(&mut self, found: &Tables) -> bool {
        for id in std::mem::take(&mut self.in_memory) {
            self.base.remove(&id);
        }
        let on_its_way = self.pending.first().map(|(commit, ..)| *commit);
        let mut with = self.base.clone();
        self.pending.retain(|(commit, ..)| Some(*commit) == on_its_way);
        self.pending.iter().for_each(|(_, id, change)| apply(&mut with, *id, change));
        self.newest.clone_from(found);
        if *found == with {
            return on_its_way.is_some();
        }
        self.pending.clear();
        if *found != self.base {
            panic!("{}", difference(&self.base, found));
        }
        false
    }

    /// Damage has cost what nobody can bring back: the store goes on with this.
    pub(crate) fn accept(&mut self, found: Tables) {
        self.pending.clear();
        self.base.clone_from(&found);
        self.newest = found;
    }
}

/// Where a store has not what it must have.
pub(crate) fn difference(expected: &Tables, found: &Tables) -> String {
    let numbers = |tables: &Tables| tables.keys().copied().collect::<Vec<_>>();
    if numbers(expected) != numbers(found) {
        let (expected, found) = (numbers(expected), numbers(found));
        return format!("the streams {expected:?} were acknowledged, {found:?} are there");
    }
    for ((id, expected), found) in expected.iter().zip(found.values()) {
        if expected.last != found.last || expected.configuration != found.configuration {
            let what = |table: &Table| (table.last, table.configuration.clone());
            let (expected, found) = (what(expected), what(found));
            return format!("{id:?} was {expected:?} when it was acknowledged, and is {found:?}");
        }
        for sequence in 1..=expected.last {
            let message = |table: &Table| table.messages.get(&sequence).cloned();
            if message(expected) != message(found) {
                let (expected, found) = (message(expected), message(found));
                return format!("message {sequence} of {id:?} was {expected:?}, and is {found:?}");
            }
        }
    }
    "there is no difference".to_owned()
}

/// All that a store has, staged or not, on a disk that works.
pub(crate) fn tables_of(store: &mut StreamStore, disk: &mut Disk) -> Tables {
    let mut tables = Tables::new();
    let all: Vec<(StreamId, Option<Vec<u8>>)> =
        store.streams().map(|(id, bytes)| (id, bytes.map(<[u8]>::to_vec))).collect();
    for (id, configuration) in all {
        let index = store.stream(id).expect("it is listed");
        let last = index.next_sequence() - 1;
        let first = index.first().unwrap_or(last + 1);
        let mut messages = BTreeMap::new();
        for sequence in first..=last {
            if let Some(content) = content_of(store, disk, id, sequence) {
                messages.insert(sequence, content);
            }
        }
        tables.insert(id, Table { configuration, messages, last });
    }
    tables
}

/// The content of a message, staged or not, which may have to be read from the disk.
fn content_of(
    store: &mut StreamStore,
    disk: &mut Disk,
    id: StreamId,
    sequence: u64,
) -> Option<Content> {
    if !store.stream(id)?.has(sequence) {
        return None;
    }
    for _ in 0..100 {
        if let Some(at) = store.peek(id, sequence) {
            let LogRecord::Message(message) = at.decoded.record else {
                panic!("{sequence} of {id:?} is no message");
            };
            assert_eq!(message.sequence, sequence, "in {id:?}");
            let parts = [message.subject, message.headers, message.payload].map(<[u8]>::to_vec);
            return Some(parts.into());
        }
        store.load(id, sequence);
        while let Some(op) = store.next_op() {
            disk.begin(op);
        }
        match disk.finish_one() {
            Some(done) => store.on_disk(done),
            None => break,
        }
    }
    let is_cold = matches!(store.read(id, sequence), Read::Cold);
    panic!("{sequence} of {id:?} cannot be read (cold: {is_cold})");
}
