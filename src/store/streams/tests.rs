use proptest::prelude::*;

use super::super::stream::SubjectState;
use super::super::testing::TestDisk;
use super::super::wal::WalSettings;
use super::*;
use crate::disk::{DiskWork, OpenAs};
use crate::subject::matches;
use std::io;

const STREAM: StreamId = StreamId(3);

/// A stream as a table.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Bytes that limits count for a message beside its parts.
    charge: usize,
    messages: BTreeMap<u64, (String, Vec<u8>)>,
    last: u64,
    /// The last sequence that is committed.
    committed: u64,
}

impl Model {
    fn shown(&self) -> impl DoubleEndedIterator<Item = (&u64, &(String, Vec<u8>))> {
        self.messages.range(..=self.committed)
    }

    fn next(&self, filter: &str, from: u64) -> Option<u64> {
        let mut shown = self.shown().filter(|(sequence, _)| **sequence >= from);
        let is_wanted = |subject: &str| matches(filter.as_bytes(), subject.as_bytes());
        shown.find(|(_, (subject, _))| is_wanted(subject)).map(|(sequence, _)| *sequence)
    }

    fn count(&self, filters: &[&str], from: u64) -> u64 {
        let is_wanted = |subject: &str| {
            filters.iter().any(|filter| matches(filter.as_bytes(), subject.as_bytes()))
        };
        let shown = self.shown().filter(|(sequence, _)| **sequence >= from);
        shown.filter(|(_, (subject, _))| is_wanted(subject)).count() as u64
    }

    /// The last message of each subject that a filter matches, up to a sequence.
    fn last_of_subjects(&self, filters: &[&str], up_to: u64) -> Vec<u64> {
        let mut last = BTreeMap::new();
        for (sequence, (subject, _)) in self.shown().filter(|(sequence, _)| **sequence <= up_to) {
            if filters.iter().any(|filter| matches(filter.as_bytes(), subject.as_bytes())) {
                last.insert(subject, *sequence);
            }
        }
        let mut last: Vec<u64> = last.into_values().collect();
        last.sort_unstable();
        last
    }

    fn compare(&self, store: &StreamStore) {
        let index = store.stream(STREAM).expect("it is there");
        let state = index.state();
        assert_eq!(state.last, self.committed);
        assert_eq!(state.totals.messages, self.shown().count() as u64);
        let charged = |(_, (subject, payload)): (&u64, &(String, Vec<u8>))| {
            (self.charge + subject.len() + payload.len()) as u64
        };
        assert_eq!(state.totals.bytes, self.shown().map(charged).sum::<u64>());
        assert_eq!(index.totals().messages, self.messages.len() as u64);
        let first = self.shown().next().map_or(self.committed + 1, |(sequence, _)| *sequence);
        assert_eq!(state.first, first);
        let deleted: Vec<u64> = index.deleted(usize::MAX).into_iter().flatten().collect();
        let missing = (first..=state.last).filter(|sequence| !self.messages.contains_key(sequence));
        assert_eq!(deleted, missing.collect::<Vec<_>>());
        let time = |sequence: u64| self.messages.get(&sequence).map_or(0, |_| sequence / 2);
        assert_eq!(state.first_time, time(first));
        let last = self.shown().next_back().map_or(0, |(sequence, _)| *sequence);
        assert_eq!(state.last_time, time(last));
        for at in 0..self.last / 2 + 2 {
            let found = self.shown().find(|(sequence, _)| *sequence / 2 >= at);
            assert_eq!(index.at_time(at), found.map(|(sequence, _)| *sequence));
        }
        for sequence in 0..self.last + 2 {
            let known = self.messages.get(&sequence).filter(|_| sequence <= self.committed);
            let found = store.get(STREAM, sequence).map(|at| at.decoded.record);
            let found = found.map(|record| match record {
                LogRecord::Message(message) => (message.subject, message.payload),
                other => panic!("{other:?} is no message"),
            });
            let known = known.map(|(subject, payload)| (subject.as_bytes(), &payload[..]));
            assert_eq!(found, known, "{sequence}");
        }
        for filter in ["a.0", "a.3", "a.*", ">", "b.>", "*.1"] {
            for from in (0..self.last + 2).step_by(3) {
                let found = match store.next(STREAM, &[filter.as_bytes()], from, &mut 10_000) {
                    NextMessage::Found(sequence) => Some(sequence),
                    NextMessage::None => None,
                    NextMessage::Later(at) => panic!("no search is as long: {at}"),
                };
                assert_eq!(found, self.next(filter, from), "{filter} from {from}");
                let count = self.count(&[filter], from);
                assert_eq!(index.count(&[filter.as_bytes()], from), count, "{filter} from {from}");
                let both = [filter, "a.0"];
                let filters = both.map(str::as_bytes);
                assert_eq!(index.count(&filters, from), self.count(&both, from), "{both:?}");
                let last = self.last_of_subjects(&both, from);
                assert_eq!(index.last_of_subjects(&filters, from, 99), Some(last), "{both:?}");
            }
        }
        self.compare_subjects(index);
    }

    fn compare_subjects(&self, index: &Stream) {
        let mut all: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (sequence, (subject, _)) in &self.messages {
            all.entry(subject).or_default().push(*sequence);
        }
        assert_eq!(index.state().subjects, all.len());
        for (subject, sequences) in all {
            let shown = sequences.iter().rev().find(|sequence| **sequence <= self.committed);
            assert_eq!(index.last_of(subject.as_bytes()), shown.copied(), "{subject}");
            let state = SubjectState {
                first: sequences[0],
                last: sequences[sequences.len() - 1],
                messages: sequences.len() as u64,
            };
            assert_eq!(index.subject(subject.as_bytes()), Some(state), "{subject}");
        }
    }
}

fn open(disk: &mut TestDisk) -> StreamStore {
    let (store, report) = StreamStore::new(disk.recover().unwrap(), 1);
    assert_eq!(report, RecoveryReport::default());
    store
}

fn settle(disk: &mut TestDisk, store: &mut StreamStore) -> Vec<WalEvent> {
    loop {
        store.end_turn();
        let Some(op) = store.next_op() else { break };
        store.on_disk(disk.run(op));
    }
    std::iter::from_fn(|| store.next_event()).collect()
}

fn append(store: &mut StreamStore, subject: &str, payload: &[u8]) -> u64 {
    let (subject, headers) = (subject.as_bytes(), &b""[..]);
    let time = store.stream(STREAM).unwrap().next_sequence() / 2;
    let message = NewMessage { time, flags: 0, subject, headers, payload };
    store.append(STREAM, &message).unwrap().sequence
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, usize),
    Remove(Vec<u16>),
    Purge(u16),
    PurgeSubjects(u8, u16, usize),
    Commit,
    Restart,
    /// Everything but live messages is written once more, and the rest given up.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..6_u8, 0..40_usize).prop_map(|(subject, len)| Step::Append(subject, len)),
        3 => prop::collection::vec(0..60_u16, 1..4).prop_map(Step::Remove),
        1 => (0..80_u16).prop_map(Step::Purge),
        1 => (0..6_u8, 0..80_u16, 0..3_usize)
            .prop_map(|(subject, below, keep)| Step::PurgeSubjects(subject, below, keep)),
        4 => Just(Step::Commit),
        1 => Just(Step::Restart),
        1 => Just(Step::Release),
    ]
}

fn name(subject: u8) -> String {
    if subject < 5 {
        format!("a.{subject}")
    } else {
        "b.with.a.name.that.is.longer.than.a.line".to_owned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn a_stream_is_a_table_before_and_after_a_restart_if_it_is_not_in_memory(
        steps in prop::collection::vec(step(), 0..60),
        in_memory in any::<bool>(),
    ) {
        let (mut disk, mut model) = (TestDisk::default(), Model::default());
        model.charge = if in_memory { 16 } else { 30 };
        let mut store = open(&mut disk);
        let home = if in_memory { StreamHome::Memory } else { StreamHome::Log };
        store.configure(STREAM, home, b"configuration").unwrap();
        settle(&mut disk, &mut store);
        for mut step in steps {
            match step {
                Step::Append(subject, len) => {
                    model.last += 1;
                    let payload = vec![subject; len];
                    prop_assert_eq!(append(&mut store, &name(subject), &payload), model.last);
                    model.messages.insert(model.last, (name(subject), payload));
                }
                Step::Remove(ref mut back) => {
                    back.sort_unstable();
                    back.reverse();
                    let sequence = |back: &u16| model.last.saturating_sub((*back).into());
                    let sequences = back.iter().map(sequence);
                    let sequences: Vec<u64> = sequences.collect();
                    let removed = store.remove(STREAM, &sequences).unwrap().messages;
                    let before = model.messages.len();
                    sequences.iter().for_each(|sequence| drop(model.messages.remove(sequence)));
                    prop_assert_eq!(removed, (before - model.messages.len()) as u64);
                }
                Step::Purge(back) => {
                    let before = (model.last + 10).saturating_sub(back.into()).max(1);
                    store.purge(STREAM, before).unwrap();
                    model.messages.retain(|sequence, _| *sequence >= before);
                    model.last = model.last.max(before - 1);
                }
                Step::PurgeSubjects(subject, back, keep) => {
                    let below = model.last.saturating_sub(back.into());
                    let name = name(subject);
                    store.purge_subjects(STREAM, &[name.as_bytes()], below, keep).unwrap();
                    let wanted = model.messages.range(..below).filter(|(_, (of, _))| *of == name);
                    let wanted: Vec<u64> = wanted.map(|(sequence, _)| *sequence).collect();
                    for sequence in &wanted[..wanted.len().saturating_sub(keep)] {
                        model.messages.remove(sequence);
                    }
                }
                Step::Commit | Step::Restart | Step::Release => {
                    settle(&mut disk, &mut store);
                    model.committed = model.last;
                }
            }
            if in_memory {
                model.committed = model.last;
            }
            if matches!(step, Step::Restart) {
                store = open(&mut disk);
                settle(&mut disk, &mut store);
                let streams: Vec<_> = store.streams().collect();
                if in_memory {
                    prop_assert!(streams.is_empty());
                    break;
                }
                prop_assert_eq!(streams, [(STREAM, Some(&b"configuration"[..]))]);
            }
            if matches!(step, Step::Release) {
                store.checkpoint().unwrap();
                settle(&mut disk, &mut store);
            }
            model.compare(&store);
        }
    }
}

#[test]
fn a_stream_that_has_ended_is_not_there_after_a_restart_and_the_others_are() {
    let mut disk = TestDisk::default();
    let mut store = open(&mut disk);
    let [one, two] = [STREAM, StreamId(4)];
    store.configure(one, StreamHome::Log, b"one").unwrap();
    store.configure(two, StreamHome::Log, b"two").unwrap();
    append(&mut store, "a", b"x");
    store.keep_consumers(two, b"acks").unwrap();
    store.end(one).unwrap();
    let message = NewMessage { time: 1, flags: 0, subject: b"a", headers: b"", payload: b"x" };
    assert_eq!(store.append(one, &message), Err(StoreError::NoStream));
    settle(&mut disk, &mut store);
    let mut store = open(&mut disk);
    assert_eq!(store.streams().collect::<Vec<_>>(), [(two, Some(&b"two"[..]))]);
    assert_eq!(store.take_consumers(two), [(*b"acks").into()]);
    assert!(store.take_consumers(one).is_empty());
}

#[test]
fn a_sequence_that_damage_may_have_taken_is_not_given_again() {
    let mut disk = TestDisk::default();
    let mut store = open(&mut disk);
    let other = StreamId(4);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    store.configure(other, StreamHome::Log, b"two").unwrap();
    settle(&mut disk, &mut store);
    for _ in 0..3 {
        append(&mut store, "a", b"x");
    }
    settle(&mut disk, &mut store);
    let message = NewMessage { time: 1, flags: 0, subject: b"a", headers: b"", payload: b"y" };
    store.append(other, &message).unwrap();
    settle(&mut disk, &mut store);
    // The last byte of the second batch that is not zero: the payload of the third message.
    let file = disk.file(0);
    let page = &mut file[2 * 4096..3 * 4096];
    let at = page.iter().rposition(|byte| *byte != 0).unwrap();
    page[at] ^= 1;
    let (store, report) = StreamStore::new(disk.recover().unwrap(), 1);
    assert_eq!((report.damage.len(), report.damage[0].lost_max), (1, 1));
    let index = store.stream(STREAM).unwrap();
    assert_eq!((index.next_sequence(), index.lost()), (4, &[3..=3][..]));
    assert!(store.get(STREAM, 2).is_some() && store.get(STREAM, 3).is_none());
    assert_eq!(store.stream(other).unwrap().next_sequence(), 2);
}

#[test]
fn nothing_is_released_for_removals_that_are_not_on_the_disk() {
    let mut disk = TestDisk::default();
    let mut store = open(&mut disk);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    append(&mut store, "a", b"x");
    settle(&mut disk, &mut store);
    store.checkpoint().unwrap();
    store.end_turn();
    let op = store.next_op().expect("a commit begins");
    store.purge(STREAM, 2).unwrap();
    store.on_disk(disk.run(op));
    while store.next_event().is_some() {}
    store.end_turn();
    let op = store.next_op().expect("the purge is on its way");
    store.on_disk(disk.run(op));
    // Of its batch, the third one, only the header has come to the disk.
    disk.file(0)[3 * 4096 + 128..4 * 4096].fill(0);
    let (store, report) = StreamStore::new(disk.recover().unwrap(), 1);
    assert_eq!(report.torn, Some(3));
    assert!(store.peek(STREAM, 1).is_some());
}

#[test]
fn a_purge_moves_a_stream_as_far_as_sequences_go_and_it_goes_on() {
    let mut disk = TestDisk::default();
    let mut store = open(&mut disk);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    append(&mut store, "a", b"x");
    assert_eq!(store.purge(STREAM, u64::MAX).unwrap().messages, 1);
    assert_eq!(append(&mut store, "a", b"y"), SEQUENCE_MAX);
    settle(&mut disk, &mut store);
    let mut store = open(&mut disk);
    settle(&mut disk, &mut store);
    assert_eq!(store.stream(STREAM).unwrap().state().last, SEQUENCE_MAX);
    assert!(store.get(STREAM, SEQUENCE_MAX).is_some());
}

#[test]
fn a_stream_in_memory_needs_no_disk_and_gives_its_memory_back() {
    let mut disk = TestDisk::default();
    let mut store = open(&mut disk);
    store.configure(STREAM, StreamHome::Memory, b"one").unwrap();
    for number in 0..2000 {
        append(&mut store, "a", &[7; 1000]);
        assert!(store.get(STREAM, number + 1).is_some(), "it is committed at once");
    }
    assert_eq!(store.keep_consumers(STREAM, b"acks"), Ok(store.wal().committed()));
    let full = store.memory_bytes();
    let kept = |sequence: &u64| sequence.is_multiple_of(10);
    let removed: Vec<u64> = (1..=2000).filter(|sequence| !kept(sequence)).collect();
    for part in removed.chunks(7) {
        store.remove(STREAM, part).unwrap();
    }
    assert!((full / 10..full / 3).contains(&store.memory_bytes()), "{}", store.memory_bytes());
    for sequence in (1..=2000).filter(kept) {
        let found = store.get(STREAM, sequence).map(|at| at.decoded.record);
        let Some(LogRecord::Message(message)) = found else { panic!("{sequence} is there") };
        assert_eq!((message.sequence, message.payload), (sequence, &[7; 1000][..]));
    }
    store.purge(STREAM, u64::MAX).unwrap();
    assert_eq!(store.memory_bytes(), 0);
    store.end_turn();
    let stage = |op: DiskOp| matches!(op.what, DiskWork::Write { at: 4096.., .. });
    assert!(!std::iter::from_fn(|| store.next_op()).any(stage), "nothing goes to the disk");
}

/// A store that keeps but a few records in memory.
fn open_small(disk: &mut TestDisk) -> StreamStore {
    let settings = WalSettings { memory_bytes: 3000, ..super::super::testing::settings() };
    let (mut store, report) = StreamStore::new(disk.recover_with(settings).unwrap(), 1);
    assert_eq!(report, RecoveryReport::default());
    settle(disk, &mut store);
    assert!(store.is_ready());
    store
}

/// The payload of a message, which may have to come from the disk.
fn payload_of(disk: &mut TestDisk, store: &mut StreamStore, sequence: u64) -> Option<Vec<u8>> {
    if matches!(store.read(STREAM, sequence), Read::Cold) {
        assert!(store.get(STREAM, sequence).is_none());
        assert_eq!(store.take_missed(), Some((STREAM, sequence)));
        store.load(STREAM, sequence);
        while let Some(op) = store.next_op() {
            store.on_disk(disk.run(op));
        }
    }
    match store.get(STREAM, sequence)?.decoded.record {
        LogRecord::Message(message) => Some(message.payload.to_vec()),
        other => panic!("{other:?} is no message"),
    }
}

#[test]
fn a_log_may_be_longer_than_memory_and_what_is_not_there_is_read_back() {
    let mut disk = TestDisk::default();
    let mut store = open_small(&mut disk);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    let payload = |sequence: u64| vec![sequence.to_le_bytes()[0]; 1000];
    for sequence in 1..=200 {
        append(&mut store, "a", &payload(sequence));
        if sequence % 3 == 0 {
            settle(&mut disk, &mut store);
        }
    }
    settle(&mut disk, &mut store);
    for _ in 0..2 {
        let is_cold = |sequence: &u64| matches!(store.read(STREAM, *sequence), Read::Cold);
        assert!((1..=200).filter(is_cold).count() > 190);
        assert!(matches!(store.read(STREAM, 201), Read::None));
        for sequence in [7, 1, 199, 8, 9, 100, 200, 2] {
            let found = payload_of(&mut disk, &mut store, sequence);
            assert_eq!(found, Some(payload(sequence)), "{sequence}");
        }
        assert!(disk.files.len() > 3);
        store = open_small(&mut disk);
    }
}

#[test]
fn what_cannot_be_read_for_a_while_is_not_lost() {
    // Reads fail, or files cannot be opened: each as often as it is allowed, and once more.
    let fails = |work: &DiskWork, is_open: bool| match work {
        DiskWork::Open { how: OpenAs::Reader, .. } => is_open,
        DiskWork::Read { .. } => !is_open,
        _ => false,
    };
    for (is_open, tries, is_lost) in [(true, 299, false), (false, 299, false), (false, 300, true)] {
        let mut disk = TestDisk::default();
        let mut store = open_small(&mut disk);
        store.configure(STREAM, StreamHome::Log, b"one").unwrap();
        for number in 0..20 {
            append(&mut store, "a", &[number; 1000]);
            settle(&mut disk, &mut store);
        }
        assert!(matches!(store.read(STREAM, 1), Read::Cold));
        let failing = move |work: &DiskWork| fails(work, is_open).then_some(io::ErrorKind::Other);
        disk.fails = Some(Box::new(failing));
        store.load(STREAM, 1);
        for number in 1..=tries {
            let events = settle(&mut disk, &mut store);
            let is_told =
                matches!(events[..], [WalEvent::NoRead { failures, .. }] if failures == number);
            assert!(is_told || number == 300, "{number}: {events:?}");
            // Asking does not make it come sooner.
            store.load(STREAM, 1);
            store.wal_mut().read_again();
        }
        disk.fails = None;
        settle(&mut disk, &mut store);
        let expected = (!is_lost).then(|| vec![0; 1000]);
        assert_eq!(payload_of(&mut disk, &mut store, 1), expected, "{is_open}, {tries}");
        assert_eq!(store.stream(STREAM).unwrap().state().lost, u64::from(is_lost));
    }
}

#[test]
fn a_batch_that_has_rotted_since_the_start_costs_the_records_that_were_hit() {
    let mut disk = TestDisk::default();
    let mut store = open_small(&mut disk);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    settle(&mut disk, &mut store);
    for first in [0, 3] {
        for number in 0..3 {
            append(&mut store, "a", &[first + number; 900]);
        }
        settle(&mut disk, &mut store);
    }
    // The payload of the second message, in the second batch.
    disk.file(0)[2 * 4096 + 1500] ^= 1;
    assert_eq!(payload_of(&mut disk, &mut store, 1), Some(vec![0; 900]));
    while store.next_event().is_some() {}
    let state = store.stream(STREAM).unwrap().state();
    assert_eq!((state.totals.messages, state.lost), (5, 1));
    assert_eq!(payload_of(&mut disk, &mut store, 2), None);
    assert_eq!(payload_of(&mut disk, &mut store, 3), Some(vec![2; 900]));
}

#[test]
fn a_log_takes_no_more_than_twice_what_is_alive_and_some_files() {
    let mut disk = TestDisk::default();
    let mut store = open_small(&mut disk);
    store.configure(STREAM, StreamHome::Log, b"one").unwrap();
    let (payload, mut kept) = (|sequence: u64| vec![sequence.to_le_bytes()[0]; 700], Vec::new());
    for round in 0..3000_u64 {
        let sequence = append(&mut store, &format!("a.{}", round % 7), &payload(round + 1));
        // Some of the first ones stay, as keys that nobody changes.
        if round < 20 {
            kept.push(sequence);
        } else {
            store.remove(STREAM, &[sequence]).unwrap();
        }
        if round % 4 == 0 {
            settle(&mut disk, &mut store);
        }
        if store.wants_checkpoint() {
            store.checkpoint().unwrap();
        }
    }
    settle(&mut disk, &mut store);
    assert!(store.moved() > 20, "{} messages were moved", store.moved());
    assert!(disk.files.len() <= 12, "{} files", disk.files.len());
    for _ in 0..2 {
        for sequence in &kept {
            let found = payload_of(&mut disk, &mut store, *sequence);
            assert_eq!(found, Some(payload(*sequence)), "{sequence}");
        }
        let index = store.stream(STREAM).unwrap();
        assert_eq!(index.count(&[b"a.3"], 0), 3);
        assert_eq!((index.totals().messages, index.next_sequence()), (20, 3001));
        store = open_small(&mut disk);
    }
}
