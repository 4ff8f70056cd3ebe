//! Lives of one store: it is found, used, and ends when the power fails, when it is killed, or in
//! peace; in between its disk may rot.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

use shardcast::disk::PAGE_BYTES;
use shardcast::store::{
    Damage, LogKey, NewMessage, NextMessage, Read, Recovered, Recovery, RecoveryReport, StageError,
    StoreError, StreamHome, StreamId, StreamStore, WalEvent, WalSettings,
};

use super::disk::Disk;
use super::model::{Change, Content, Model, Tables, difference, tables_of};

/// What has happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    lives: u64,
    messages: u64,
    commits: u64,
    /// Commits that were on their way at an end, and were found.
    finished: u64,
    /// Those that were found without end.
    torn: u64,
    read_only: u64,
    no_file: u64,
    no_read: u64,
    released: u64,
    /// Reads of what was not in memory.
    loaded: u64,
    /// Messages that were written once more.
    moved: u64,
    /// Times that damage has cost something.
    damaged: u64,
    /// Times that it was there and has cost nothing.
    unharmed: u64,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.lives += other.lives;
        self.messages += other.messages;
        self.commits += other.commits;
        self.finished += other.finished;
        self.torn += other.torn;
        self.read_only += other.read_only;
        self.no_file += other.no_file;
        self.no_read += other.no_read;
        self.released += other.released;
        self.loaded += other.loaded;
        self.moved += other.moved;
        self.damaged += other.damaged;
        self.unharmed += other.unharmed;
    }
}

impl Outcome {
    /// Whether each thing that may happen has happened.
    pub(crate) fn has_seen_all(&self) -> bool {
        let all = [self.finished, self.torn, self.read_only, self.no_file, self.released];
        all.into_iter()
            .chain([self.damaged, self.unharmed, self.loaded, self.moved])
            .all(|count| count > 0)
    }
}

struct World {
    rng: fastrand::Rng,
    disk: Disk,
    store: StreamStore,
    model: Model,
    /// All messages that ever were, with the numbers of their commits.
    ever: BTreeMap<(StreamId, u64), Vec<(u64, Content)>>,
    /// A stream gets no number that another one had.
    next_stream: u32,
    /// Pages of a file.
    pages: usize,
    /// Bytes of records that stay in memory.
    memory: usize,
    /// Files have other numbers in each life.
    life: u32,
    /// The last commit that was found at the start.
    found: u64,
    is_read_only: bool,
    /// What the disk has cost so far.
    damage: Vec<Damage>,
    outcome: Outcome,
    trace: bool,
}

/// Runs what `seed` stands for; with `trace` it tells what happens.
pub(crate) fn run_seed(seed: u64, trace: bool) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = Disk::new(rng.u64(..));
    let pages = rng.usize(6..40);
    let memory = *rng.choice(&[0, 8 << 10, 100 << 10, 1 << 30]).expect("there are some");
    let (store, _) = recover(&mut disk, &settings(pages, memory, 0));
    let mut world = World {
        rng,
        disk,
        store,
        model: Model::default(),
        ever: BTreeMap::new(),
        next_stream: 1,
        pages,
        memory,
        life: 0,
        found: 0,
        is_read_only: false,
        damage: Vec::new(),
        outcome: Outcome::default(),
        trace,
    };
    for _ in 0..world.rng.u32(2..12) {
        world.live();
        world.end();
        world.begin();
    }
    world.outcome
}

fn settings(pages: usize, memory_bytes: usize, life: u32) -> WalSettings {
    let (directory, first_file) = (Path::new("/d").into(), life * 200_000);
    let file_bytes = (pages * PAGE_BYTES) as u64;
    WalSettings { directory, file_bytes, first_file, first_token: 7, memory_bytes }
}

fn recover(disk: &mut Disk, settings: &WalSettings) -> (StreamStore, RecoveryReport) {
    let mut recovery = Recovery::new(settings.clone(), LogKey(0x5eed));
    while !recovery.is_over() {
        while let Some(op) = recovery.next_op() {
            disk.begin(op);
        }
        if let Some(done) = disk.finish_one() {
            recovery.on_disk(done);
        }
    }
    // Files that it has closed.
    while disk.finish_one().is_some() {}
    let recovered: Recovered = recovery.finish().expect("there is a log, or none");
    let (mut store, report) = StreamStore::new(recovered, 1);
    while !store.is_ready() {
        while let Some(op) = store.next_op() {
            disk.begin(op);
        }
        store.on_disk(disk.finish_one().expect("it waits for something"));
    }
    (store, report)
}

impl World {
    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("life {}: {}", self.life, what());
        }
    }

    fn live(&mut self) {
        self.outcome.lives += 1;
        self.disk.failures = *self.pick(&[0, 0, 0, 1, 3, 10]);
        for _ in 0..self.rng.u32(10..150) {
            match self.rng.u32(..100) {
                0..36 => self.append(),
                36..41 => self.remove(),
                41..43 => self.purge(),
                43..45 => self.purge_subject(),
                45..48 => self.make_stream(),
                48 => self.end_stream(),
                49 => self.store.wal_mut().mark_durable(),
                50..52 => self.outcome.released += u64::from(self.store.checkpoint().is_ok()),
                52 if self.rng.bool() => self.store.wal_mut().read_again(),
                52 => self.store.wal_mut().try_again(),
                53 => self.fill_disk(),
                54 if self.store.wants_checkpoint() => {
                    self.outcome.released += u64::from(self.store.checkpoint().is_ok());
                }
                54..70 => self.end_turn(),
                _ => self.finish_one(),
            }
            self.nothing_is_shown_too_early();
            self.what_is_replaced_is_found();
        }
        if self.rng.bool() {
            self.settle();
        }
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.rng.usize(..choices.len())]
    }

    fn pick_stream(&mut self) -> Option<StreamId> {
        let streams: Vec<StreamId> = self.store.streams().map(|(id, _)| id).collect();
        if streams.is_empty() { None } else { Some(*self.pick(&streams)) }
    }

    /// Takes down what was staged, or that it was not.
    fn note(&mut self, id: StreamId, commit: Result<u64, StoreError>, change: Change) {
        self.tell(|| format!("{id:?} {change:?}: {commit:?}"));
        match commit {
            Ok(commit) => self.model.stage(commit, id, change),
            Err(StoreError::Log(StageError::ReadOnly(_))) => assert!(self.is_read_only),
            Err(StoreError::Log(StageError::Full | StageError::TooLong)) => {}
            Err(StoreError::NoStream) => panic!("{id:?} is not there"),
        }
    }

    fn make_stream(&mut self) {
        let known = if self.rng.u32(..4) == 0 { self.pick_stream() } else { None };
        let id = known.unwrap_or(StreamId(self.next_stream));
        self.next_stream += u32::from(known.is_none());
        let configuration: Vec<u8> = (0..self.rng.usize(..60)).map(|_| self.rng.u8(..)).collect();
        let home = if self.rng.u32(..4) == 0 { StreamHome::Memory } else { StreamHome::Log };
        if known.is_none() && home == StreamHome::Memory {
            self.model.in_memory.insert(id);
        }
        let commit = self.store.configure(id, home, &configuration).map_err(StoreError::Log);
        self.note(id, commit, Change::Configure(configuration));
    }

    fn end_stream(&mut self) {
        let Some(id) = self.pick_stream() else { return };
        let commit = self.store.end(id);
        self.note(id, commit, Change::End);
    }

    fn append(&mut self) {
        let Some(id) = self.pick_stream() else { return self.make_stream() };
        for _ in 0..self.rng.u32(1..4) {
            let subject = format!("s.{}", self.rng.u32(..5)).into_bytes();
            let headers = if self.rng.bool() { b"NATS/1.0\r\n\r\n".to_vec() } else { Vec::new() };
            let len = *self.pick(&[0, 3, 50, 200, 900, 5000]);
            let fill = self.rng.u8(..);
            let mut payload = vec![fill; len];
            // A message may look like the log.
            if self.rng.u32(..8) == 0 && len > PAGE_BYTES {
                payload[..4].copy_from_slice(b"shcB");
            }
            let message = NewMessage {
                time: self.outcome.messages,
                flags: 0,
                subject: &subject,
                headers: &headers,
                payload: &payload,
            };
            let expected = self.model.newest.get(&id).map_or(0, |table| table.last) + 1;
            let appended = self.store.append(id, &message);
            let content = (subject.clone(), headers, payload);
            if let Ok(appended) = appended {
                assert_eq!(appended.sequence, expected, "the next sequence of {id:?}");
                let entry = self.ever.entry((id, expected)).or_default();
                entry.push((appended.commit, content.clone()));
                self.outcome.messages += 1;
            }
            let is_added = appended.is_ok();
            self.note(id, appended.map(|appended| appended.commit), Change::Append(content));
            if is_added && self.rng.u32(..4) == 0 {
                self.replace(id, &subject, expected);
            }
        }
    }

    /// Removes the older messages of a subject, as a limit does.
    fn replace(&mut self, id: StreamId, subject: &[u8], by: u64) {
        let older = self.model.newest[&id].messages.range(..by);
        let of_subject = older.filter(|(_, (of, ..))| *of == subject);
        let sequences: Vec<u64> = of_subject.map(|(sequence, _)| *sequence).collect();
        if !sequences.is_empty() {
            let commit = self.store.replace(id, &sequences).map(|removed| removed.commit);
            self.note(id, commit, Change::Replace(sequences));
        }
    }

    fn remove(&mut self) {
        let Some(id) = self.pick_stream() else { return };
        let last = self.model.newest[&id].last;
        let mut sequences: Vec<u64> =
            (0..self.rng.u32(1..4)).map(|_| self.rng.u64(1..last + 2)).collect();
        sequences.sort_unstable();
        sequences.dedup();
        let removed = self.store.remove(id, &sequences);
        if removed.is_ok_and(|removed| removed.messages > 0) || removed.is_err() {
            let commit = removed.map(|removed| removed.commit);
            self.note(id, commit, Change::Remove(sequences));
        }
    }

    fn purge(&mut self) {
        let Some(id) = self.pick_stream() else { return };
        let last = self.model.newest[&id].last;
        let before = self.rng.u64(1..last + 4);
        let commit = self.store.purge(id, before).map(|removed| removed.commit);
        self.note(id, commit, Change::Purge(before));
    }

    fn purge_subject(&mut self) {
        let Some(id) = self.pick_stream() else { return };
        let subject = format!("s.{}", self.rng.u32(..5)).into_bytes();
        let keep = self.rng.usize(..3);
        let messages = self.model.newest[&id].messages.iter();
        let of_subject = messages.filter(|(_, (of, ..))| *of == subject);
        let mut sequences: Vec<u64> = of_subject.map(|(sequence, _)| *sequence).collect();
        sequences.truncate(sequences.len().saturating_sub(keep));
        let purged = self.store.purge_subjects(id, &[&subject], u64::MAX, keep);
        if let Ok(purged) = purged {
            assert_eq!(purged.messages, sequences.len() as u64, "purged of {id:?}");
        }
        if !sequences.is_empty() {
            self.note(id, purged.map(|purged| purged.commit), Change::Remove(sequences));
        }
    }

    fn fill_disk(&mut self) {
        let files = *self.pick(&[2, 5, 70, 70]);
        self.disk.bytes_max = files * self.pages * PAGE_BYTES;
    }

    fn end_turn(&mut self) {
        self.store.end_turn();
        while let Some(op) = self.store.next_op() {
            self.tell(|| format!("{:?}", op.what));
            self.disk.begin(op);
        }
    }

    fn finish_one(&mut self) {
        let Some(done) = self.disk.finish_one() else { return };
        self.tell(|| format!("{done:?}"));
        self.store.on_disk(done);
        while let Some(op) = self.store.next_op() {
            self.disk.begin(op);
        }
        while let Some(event) = self.store.next_event() {
            self.tell(|| format!("{event:?}"));
            match event {
                WalEvent::Committed(number) => {
                    self.model.acknowledge(number);
                    self.outcome.commits += 1;
                }
                WalEvent::NoFile(_) => self.outcome.no_file += 1,
                WalEvent::Loaded => self.outcome.loaded += 1,
                WalEvent::NoRead { .. } => self.outcome.no_read += 1,
                WalEvent::Damaged { commit, .. } => panic!("commit {commit} is not damaged"),
                WalEvent::ReadOnly(_) => {
                    self.is_read_only = true;
                    self.outcome.read_only += 1;
                }
            }
        }
    }

    /// Lets all come to an end, on a disk that works.
    fn settle(&mut self) {
        (self.disk.failures, self.disk.bytes_max) = (0, usize::MAX);
        self.store.wal_mut().try_again();
        self.store.wal_mut().read_again();
        for _ in 0..2000 {
            self.end_turn();
            if self.disk.is_idle() {
                break;
            }
            self.finish_one();
        }
        if !self.is_read_only {
            assert!(self.model.pending.is_empty(), "a commit has no end");
            let found = tables_of(&mut self.store, &mut self.disk);
            assert!(found == self.model.base, "{}", difference(&self.model.base, &found));
            self.all_is_shown();
        }
    }

    /// Readers find all messages in order, and no others.
    fn all_is_shown(&self) {
        for (id, table) in &self.model.base {
            let (mut from, mut found) = (0, Vec::new());
            while let NextMessage::Found(sequence) =
                self.store.next(*id, &[], from, &mut usize::MAX.clone())
            {
                let is_there = !matches!(self.store.read(*id, sequence), Read::None);
                assert!(is_there, "{sequence} of {id:?}");
                found.push(sequence);
                from = sequence + 1;
            }
            let expected: Vec<u64> = table.messages.keys().copied().collect();
            assert_eq!(found, expected, "what a reader of {id:?} finds");
        }
    }

    /// The last committed message of a subject is found, whatever is about to replace it.
    fn what_is_replaced_is_found(&self) {
        // At a start the last commit is written once more before anybody is served.
        if self.store.wal().committed() < self.found {
            return;
        }
        for (id, table) in &self.model.base {
            let Some(index) = self.store.stream(*id) else { continue };
            let is_removed = self.model.pending.iter().any(|(_, of, change)| {
                of == id && !matches!(change, Change::Append(_) | Change::Replace(_))
            });
            if is_removed {
                continue;
            }
            let mut last: BTreeMap<&[u8], u64> = BTreeMap::new();
            for (sequence, (subject, ..)) in &table.messages {
                last.insert(subject, *sequence);
            }
            for (subject, sequence) in &last {
                assert_eq!(index.last_of(subject), Some(*sequence), "in {id:?}");
                let is_there = !matches!(self.store.read(*id, *sequence), Read::None);
                assert!(is_there, "{sequence} of {id:?}");
            }
            let mut all: Vec<u64> = last.into_values().collect();
            all.sort_unstable();
            let found = index.last_shown_of_subjects(&[b">"], u64::MAX, usize::MAX);
            assert_eq!(found, Some(all), "in {id:?}");
        }
    }

    fn nothing_is_shown_too_early(&self) {
        for (id, table) in &self.model.newest {
            let known = self.model.base.get(id).map_or(0, |table| table.last);
            for sequence in known + 1..=table.last {
                assert!(self.store.get(*id, sequence).is_none(), "{sequence} of {id:?} is shown");
            }
        }
    }

    /// The end of a life.
    fn end(&mut self) {
        self.outcome.moved += self.store.moved();
        if self.rng.bool() {
            self.tell(|| "the power fails".to_owned());
            self.disk.crash();
        } else {
            self.tell(|| "it is killed".to_owned());
            while self.disk.finish_one().is_some() {}
        }
        (self.disk.failures, self.disk.bytes_max) = (0, usize::MAX);
        self.is_read_only = false;
        self.life += 1;
    }

    fn begin(&mut self) {
        let settings = settings(self.pages, self.memory, self.life);
        let (mut store, report) = recover(&mut self.disk, &settings);
        self.tell(|| format!("{report:?}"));
        assert_eq!((&report.foreign[..], report.unreadable_pages), (&[][..], 0));
        // What was damaged once stays so until it is released.
        let is_known = |damage: &Damage| {
            self.damage.iter().any(|known| known.first <= damage.first && damage.last <= known.last)
        };
        let new = report.damage.iter().find(|damage| !is_known(damage));
        assert_eq!(new, None, "where nothing is damaged");
        self.outcome.torn += u64::from(report.torn.is_some());
        let found = tables_of(&mut store, &mut self.disk);
        self.outcome.finished += u64::from(self.model.restart(&found));
        self.store = store;
        if self.rng.u32(..3) == 0 {
            self.rot(&found);
        }
        self.found = self.store.wal().last_batch().unwrap_or(0);
    }

    /// The disk has lost a little since; what that costs is a little, and reported.
    fn rot(&mut self, undamaged: &Tables) {
        let is_sector = self.rng.bool();
        let Some(place) = self.disk.rot(is_sector) else { return };
        self.life += 1;
        let (mut store, report) =
            recover(&mut self.disk, &settings(self.pages, self.memory, self.life));
        self.tell(|| format!("rot at {place:?}: {report:?}"));
        let found = tables_of(&mut store, &mut self.disk);
        // The last commit may not have had an end: if nothing says that it had, it is dropped.
        let number = |store: &StreamStore| store.wal().last_batch();
        let last = number(&self.store).filter(|last| *last > self.store.wal().committed());
        let is_last = last.is_some() && number(&store) != last;
        let mut lost = 0;
        for (id, table) in undamaged {
            let kept = found.get(id);
            let gone = table.messages.iter().filter(|(sequence, _)| {
                kept.is_none_or(|kept| !kept.messages.contains_key(sequence))
            });
            for (sequence, content) in gone {
                let mut ever = self.ever[&(*id, *sequence)].iter();
                let is_of_last = ever.any(|(commit, of)| (Some(*commit), of) == (last, content));
                lost += usize::from(!is_of_last || !is_last);
            }
            let last_kept = kept.map_or(u64::MAX, |kept| kept.last);
            assert!(is_last || last_kept >= table.last, "sequences of {id:?} are given again");
        }
        // A record of a message has forty bytes or more.
        let lost_max = if is_sector { 512 / 40 + 2 } else { 1 };
        assert!(lost <= lost_max, "{lost} messages are lost for {place:?}");
        for (id, table) in &found {
            for (sequence, content) in &table.messages {
                let is_known = self
                    .ever
                    .get(&(*id, *sequence))
                    .is_some_and(|ever| ever.iter().any(|(_, known)| known == content));
                assert!(is_known, "message {sequence} of {id:?} never was");
            }
        }
        if found == *undamaged {
            self.outcome.unharmed += 1;
        } else {
            assert!(is_last || !report.damage.is_empty(), "{}", difference(undamaged, &found));
            self.outcome.damaged += 1;
        }
        self.store = store;
        self.damage = report.damage;
        self.model.accept(found);
        // How much may be lost is found once, and written.
        self.settle();
    }
}
