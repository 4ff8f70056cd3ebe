//! A disk that does what it may: carries out operations under way in any order, tears writes,
//! forgets what was not synced when the power fails, fails, and fills up.
//!
//! It promises no more than `shardcast::disk` does: a write is safe when it was durable, or behind
//! a sync that began after it; a name is, when its directory was synced after it was given. A sync
//! that fails may have lost what was written before, although it can still be read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use shardcast::disk::{DiskDone, DiskOp, DiskWork, FileId, OpenAs, PAGE_BYTES};

/// What of a write survives or not as a whole.
const SECTOR_BYTES: usize = 512;
type Sector = [u8; SECTOR_BYTES];

/// Something that was changed, but not synced.
#[derive(Debug)]
struct Changing<T> {
    seen: T,
    safe: T,
    /// What it has been since, and from when on.
    since: Vec<(u64, T)>,
}

impl<T: Copy> Changing<T> {
    fn new(value: T) -> Self {
        Self { seen: value, safe: value, since: Vec::new() }
    }

    fn set(&mut self, value: T, now: u64, durable: bool) {
        self.seen = value;
        self.since.push((now, value));
        if durable {
            self.sync(now);
        }
    }

    /// What it was at that time is safe.
    fn sync(&mut self, until: u64) {
        let count = self.since.iter().take_while(|(at, _)| *at <= until).count();
        if let Some((_, last)) = self.since.drain(..count).next_back() {
            self.safe = last;
        }
    }

    /// Nothing that was changed before that time becomes safe any more.
    fn forget(&mut self, until: u64) {
        self.since.retain(|(at, _)| *at > until);
    }

    fn crash(&mut self, rng: &mut fastrand::Rng) {
        if let Some((_, value)) = self.since.get(rng.usize(..=self.since.len())) {
            self.safe = *value;
        }
        *self = Self::new(self.safe);
    }
}

/// What is stored under a name.
#[derive(Debug)]
struct Content {
    len: Changing<usize>,
    sectors: Vec<Changing<Sector>>,
}

impl Content {
    /// Writes those sectors of `bytes` that `picks` says.
    fn write(
        &mut self,
        at: usize,
        bytes: &[u8],
        time: (u64, bool),
        mut picks: impl FnMut() -> bool,
    ) {
        let (now, durable) = time;
        let end = at + bytes.len();
        let count = end.div_ceil(SECTOR_BYTES);
        while self.sectors.len() < count {
            self.sectors.push(Changing::new([0; SECTOR_BYTES]));
        }
        for number in at / SECTOR_BYTES..count {
            if !picks() {
                continue;
            }
            let first = number * SECTOR_BYTES;
            let (from, to) = (at.max(first), end.min(first + SECTOR_BYTES));
            let mut image = self.sectors[number].seen;
            image[from - first..to - first].copy_from_slice(&bytes[from - at..to - at]);
            self.sectors[number].set(image, now, durable);
        }
        if end > self.len.seen {
            self.len.set(end, now, durable);
        } else if durable {
            self.len.sync(now);
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) -> usize {
        let len = into.len().min(self.len.seen.saturating_sub(at));
        let mut done = 0;
        while done < len {
            let (number, from) = ((at + done) / SECTOR_BYTES, (at + done) % SECTOR_BYTES);
            let count = (SECTOR_BYTES - from).min(len - done);
            let part = &mut into[done..done + count];
            match self.sectors.get(number) {
                Some(sector) => part.copy_from_slice(&sector.seen[from..from + count]),
                None => part.fill(0),
            }
            done += count;
        }
        len
    }
}

/// A name is given or taken.
#[derive(Debug, Clone)]
struct Naming {
    path: PathBuf,
    content: Option<usize>,
    /// The name that a rename takes.
    from: Option<PathBuf>,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        match self.content {
            Some(content) => drop(names.insert(self.path.clone(), content)),
            None => drop(names.remove(&self.path)),
        }
    }
}

#[derive(Debug, Clone)]
enum Opened {
    File { content: usize, how: OpenAs },
    Directory(PathBuf),
}

/// Whose files these are: each numbers them for itself.
pub(super) type Owner = u8;

/// An operation under way, with what its file's number meant when it began, and when that was.
struct Working {
    owner: Owner,
    op: DiskOp,
    on: Option<Opened>,
    began: u64,
}

pub(super) struct Disk {
    rng: fastrand::Rng,
    now: u64,
    contents: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    safe_names: BTreeMap<PathBuf, usize>,
    unsafe_names: Vec<(u64, Naming)>,
    open: BTreeMap<(Owner, FileId), Opened>,
    working: Vec<Working>,
    /// Bytes that all files together may have.
    pub(super) bytes_max: usize,
    /// Of a hundred operations, those that fail.
    pub(super) failures: u32,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            contents: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            unsafe_names: Vec::new(),
            open: BTreeMap::new(),
            working: Vec::new(),
            bytes_max: usize::MAX,
            failures: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.working.is_empty()
    }

    /// An operation begins.
    pub(super) fn begin(&mut self, op: DiskOp) {
        self.begin_for(0, op);
    }

    /// An operation of one of several owners begins.
    pub(super) fn begin_for(&mut self, owner: Owner, op: DiskOp) {
        self.now += 1;
        let on = match &op.what {
            DiskWork::Write { file, .. }
            | DiskWork::Read { file, .. }
            | DiskWork::Sync { file }
            | DiskWork::Allocate { file, .. } => self.open.get(&(owner, *file)).cloned(),
            DiskWork::Close { file } => self.open.remove(&(owner, *file)),
            DiskWork::Open { .. } | DiskWork::Rename { .. } | DiskWork::Remove { .. } => None,
        };
        self.working.push(Working { owner, op, on, began: self.now });
    }

    /// One of the operations under way ends.
    pub(super) fn finish_one(&mut self) -> Option<DiskDone> {
        if self.working.is_empty() {
            return None;
        }
        let at = self.rng.usize(..self.working.len());
        Some(self.finish(at))
    }

    /// One of the operations that an owner has under way ends.
    pub(super) fn finish_one_of(&mut self, owner: Owner) -> Option<DiskDone> {
        let own = (0..self.working.len()).filter(|at| self.working[*at].owner == owner);
        let own: Vec<usize> = own.collect();
        let at = *own.get(self.rng.usize(..own.len().max(1)))?;
        Some(self.finish(at))
    }

    fn finish(&mut self, at: usize) -> DiskDone {
        self.now += 1;
        let Working { owner, op, on, began } = self.working.swap_remove(at);
        let fails = self.rng.u32(..100) < self.failures;
        let DiskOp { token, what } = op;
        let (outcome, block) = match (what, on) {
            (DiskWork::Open { file, path, how }, _) => {
                (self.open_file((owner, file), &path, how, fails), None)
            }
            (DiskWork::Rename { from, to }, _) => (self.rename(&from, &to, fails), None),
            (DiskWork::Remove { path }, _) => (self.remove(&path, fails), None),
            (DiskWork::Write { at, block, bytes, durable, .. }, on) => {
                let write = block.bytes().get(..bytes).map(<[u8]>::to_vec);
                let writing = Writing { at, bytes: write, durable };
                (self.write(on, writing, fails), Some(block))
            }
            (DiskWork::Read { at, mut block, bytes, .. }, on) => {
                let into = block.bytes_mut().get_mut(..bytes);
                (self.read(on, at, into, fails), Some(block))
            }
            (DiskWork::Sync { .. }, on) => (self.sync(on, began, fails), None),
            (DiskWork::Allocate { bytes, .. }, on) => (self.allocate(on, bytes, fails), None),
            (DiskWork::Close { .. }, on) => (on.map(|_| 0).ok_or_else(not_open), None),
        };
        DiskDone { token, outcome, block }
    }

    /// The program ends: of what is under way some is carried out, and nothing is open any more.
    pub(super) fn let_go(&mut self) {
        while !self.working.is_empty() {
            let at = self.rng.usize(..self.working.len());
            if self.rng.bool() {
                self.finish(at);
            } else {
                self.working.swap_remove(at);
            }
        }
        self.open.clear();
    }

    /// The power fails: what is not safe is there, or not, or in part; nothing is open any more.
    pub(super) fn crash(&mut self) {
        for Working { op, on, .. } in std::mem::take(&mut self.working) {
            if let DiskWork::Write { at, block, bytes, .. } = op.what {
                let bytes = block.bytes().get(..bytes).map(<[u8]>::to_vec);
                // It may have got somewhere, and nobody hears of that.
                let _ = self.write(on, Writing { at, bytes, durable: false }, true);
            }
        }
        for Content { len, sectors } in &mut self.contents {
            len.crash(&mut self.rng);
            sectors.iter_mut().for_each(|sector| sector.crash(&mut self.rng));
            // What the file is too short for is not there, should it become longer.
            let first_lost = len.seen.div_ceil(SECTOR_BYTES);
            sectors.truncate(first_lost);
            if let Some(last) = sectors.get_mut(first_lost.saturating_sub(1)) {
                let mut image = last.seen;
                let end = len.seen - (first_lost - 1) * SECTOR_BYTES;
                image[end..].fill(0);
                *last = Changing::new(image);
            }
        }
        for (_, naming) in std::mem::take(&mut self.unsafe_names) {
            if self.rng.bool() {
                naming.apply(&mut self.safe_names);
            }
        }
        self.names.clone_from(&self.safe_names);
        self.open.clear();
    }

    /// A bit turns over somewhere in what is stored, or a whole sector becomes zeroes. Returns
    /// where, if anything is stored.
    #[allow(dead_code, reason = "the simulator's shards store nothing yet")]
    pub(super) fn rot(&mut self, whole_sector: bool) -> Option<(PathBuf, usize)> {
        let mut places = Vec::new();
        for (path, content) in &self.names {
            let sectors = self.contents[*content].sectors.iter().enumerate();
            let filled = sectors.filter(|(_, sector)| sector.seen.iter().any(|byte| *byte != 0));
            places.extend(filled.map(|(number, _)| (path.clone(), *content, number)));
        }
        let (path, content, number) = places.get(self.rng.usize(..places.len().max(1)))?.clone();
        let sector = &mut self.contents[content].sectors[number];
        let mut image = sector.seen;
        let at = self.rng.usize(..SECTOR_BYTES);
        if whole_sector {
            image.fill(0);
        } else {
            image[at] ^= 1 << self.rng.u32(..8);
        }
        sector.set(image, self.now, true);
        Some((path, number * SECTOR_BYTES + at))
    }

    /// Bytes of a file become others, if it is as long; files are counted by their names, around.
    #[allow(dead_code, reason = "for those who change files as they like")]
    pub(super) fn scribble(&mut self, file: usize, at: usize, bytes: &[u8]) {
        let contents: Vec<usize> = self.names.values().copied().collect();
        let Some(content) = contents.get(file % contents.len().max(1)) else { return };
        let content = &mut self.contents[*content];
        let len = bytes.len().min(content.len.seen.saturating_sub(at));
        if len > 0 {
            content.write(at, &bytes[..len], (self.now, true), || true);
        }
    }

    /// A page of a file becomes as another one of it is.
    #[allow(dead_code, reason = "for those who change files as they like")]
    pub(super) fn copy_page(&mut self, file: usize, to: usize, from: usize) {
        let contents: Vec<usize> = self.names.values().copied().collect();
        let Some(content) = contents.get(file % contents.len().max(1)) else { return };
        let mut page = [0; PAGE_BYTES];
        self.contents[*content].read(from * PAGE_BYTES, &mut page);
        self.scribble(file, to * PAGE_BYTES, &page);
    }

    fn open_file(
        &mut self,
        file: (Owner, FileId),
        path: &Path,
        how: OpenAs,
        fails: bool,
    ) -> Outcome {
        assert!(!self.open.contains_key(&file), "{file:?} is the number of another open file");
        if fails {
            return Err(failure());
        }
        if how == OpenAs::Directory {
            self.open.insert(file, Opened::Directory(path.to_owned()));
            return Ok(0);
        }
        let content = match self.names.get(path) {
            Some(content) => *content,
            None if matches!(how, OpenAs::Made | OpenAs::MadeDirect) => {
                let (len, sectors) = (Changing::new(0), Vec::new());
                self.contents.push(Content { len, sectors });
                let content = self.contents.len() - 1;
                self.name(Naming { path: path.to_owned(), content: Some(content), from: None });
                content
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.open.insert(file, Opened::File { content, how });
        Ok(0)
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsafe_names.push((self.now, naming));
    }

    fn rename(&mut self, from: &Path, to: &Path, fails: bool) -> Outcome {
        let content = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if fails {
            return Err(failure());
        }
        let (path, from) = (to.to_owned(), Some(from.to_owned()));
        self.name(Naming { path, content: Some(content), from });
        Ok(0)
    }

    fn remove(&mut self, path: &Path, fails: bool) -> Outcome {
        self.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        if fails {
            return Err(failure());
        }
        self.name(Naming { path: path.to_owned(), content: None, from: None });
        Ok(0)
    }

    fn write(&mut self, on: Option<Opened>, writing: Writing, fails: bool) -> Outcome {
        let (content, how) = file(on)?;
        let at = place(writing.at)?;
        let bytes = writing.bytes.ok_or(io::ErrorKind::InvalidInput)?;
        if how == OpenAs::Reader {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        check_direct(how, at, bytes.len())?;
        if !self.has_room(content, at + bytes.len()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (now, rng) = (self.now, &mut self.rng);
        // Of what fails some may be there.
        let picks = || !fails || rng.bool();
        self.contents[content].write(at, &bytes, (now, writing.durable && !fails), picks);
        if fails { Err(failure()) } else { Ok(bytes.len()) }
    }

    fn read(
        &mut self,
        on: Option<Opened>,
        at: u64,
        into: Option<&mut [u8]>,
        fails: bool,
    ) -> Outcome {
        let (content, how) = file(on)?;
        let (at, into) = (place(at)?, into.ok_or(io::ErrorKind::InvalidInput)?);
        check_direct(how, at, into.len())?;
        if fails {
            return Err(failure());
        }
        Ok(self.contents[content].read(at, into))
    }

    fn sync(&mut self, on: Option<Opened>, began: u64, fails: bool) -> Outcome {
        match on.ok_or_else(not_open)? {
            Opened::File { content, .. } => {
                let Content { len, sectors } = &mut self.contents[content];
                if fails {
                    len.forget(began);
                    sectors.iter_mut().for_each(|sector| sector.forget(began));
                    return Err(failure());
                }
                len.sync(began);
                sectors.iter_mut().for_each(|sector| sector.sync(began));
            }
            Opened::Directory(_) if fails => return Err(failure()),
            Opened::Directory(directory) => {
                let is_of_it = |path: &Path| path.parent() == Some(&*directory);
                for (at, naming) in std::mem::take(&mut self.unsafe_names) {
                    if at <= began && is_of_it(&naming.path) {
                        naming.apply(&mut self.safe_names);
                    } else {
                        self.unsafe_names.push((at, naming));
                    }
                }
            }
        }
        Ok(0)
    }

    fn allocate(&mut self, on: Option<Opened>, bytes: u64, fails: bool) -> Outcome {
        let ((content, _), len) = (file(on)?, place(bytes)?);
        if !self.has_room(content, len) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if fails {
            return Err(failure());
        }
        let now = self.now;
        let content = &mut self.contents[content];
        if len > content.len.seen {
            content.len.set(len, now, false);
        }
        Ok(0)
    }

    fn has_room(&self, content: usize, len: usize) -> bool {
        let used: usize = self.contents.iter().map(|content| content.len.seen).sum();
        let more = len.saturating_sub(self.contents[content].len.seen);
        more == 0 || used.saturating_add(more) <= self.bytes_max
    }
}

type Outcome = io::Result<usize>;

struct Writing {
    at: u64,
    bytes: Option<Vec<u8>>,
    durable: bool,
}

fn file(on: Option<Opened>) -> io::Result<(usize, OpenAs)> {
    match on {
        Some(Opened::File { content, how }) => Ok((content, how)),
        Some(Opened::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
        None => Err(not_open()),
    }
}

fn place(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check_direct(how: OpenAs, at: usize, len: usize) -> io::Result<()> {
    let is_whole = at.is_multiple_of(PAGE_BYTES) && len.is_multiple_of(PAGE_BYTES);
    if how != OpenAs::MadeDirect || is_whole {
        return Ok(());
    }
    Err(io::ErrorKind::InvalidInput.into())
}

fn not_open() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no file of this number is open")
}

fn failure() -> io::Error {
    io::Error::other("the disk fails")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use shardcast::disk::Block;

    use super::*;

    const FILE: FileId = FileId(1);
    const DIRECTORY: FileId = FileId(2);
    const PAGE: u64 = PAGE_BYTES as u64;

    fn begin(disk: &mut Disk, token: u64, what: DiskWork) {
        disk.begin(DiskOp { token, what });
    }

    fn run(disk: &mut Disk, what: DiskWork) -> DiskDone {
        begin(disk, 0, what);
        disk.finish_one().expect("it has just begun")
    }

    fn open(disk: &mut Disk, file: FileId, path: &str, how: OpenAs) -> Outcome {
        run(disk, DiskWork::Open { file, path: Path::new(path).into(), how }).outcome
    }

    fn page(byte: u8) -> Block {
        let mut block = Block::zeroed(PAGE_BYTES);
        block.bytes_mut().fill(byte);
        block
    }

    fn write(at: u64, byte: u8, durable: bool) -> DiskWork {
        DiskWork::Write { file: FILE, at, block: page(byte), bytes: PAGE_BYTES, durable }
    }

    /// The bytes there are in a page; empty behind the end.
    fn bytes_at(disk: &mut Disk, at: u64) -> BTreeSet<u8> {
        let block = Block::zeroed(PAGE_BYTES);
        let done = run(disk, DiskWork::Read { file: FILE, at, block, bytes: PAGE_BYTES });
        let count = done.outcome.expect("it can be read");
        done.block.iter().flat_map(|block| &block.bytes()[..count]).copied().collect()
    }

    /// A file whose name is safe.
    fn ready(seed: u64) -> Disk {
        let mut disk = Disk::new(seed);
        open(&mut disk, FILE, "/d/a", OpenAs::MadeDirect).expect("there is room");
        open(&mut disk, DIRECTORY, "/d", OpenAs::Directory).expect("it is there");
        run(&mut disk, DiskWork::Sync { file: DIRECTORY }).outcome.expect("nothing fails");
        disk
    }

    fn crash(disk: &mut Disk) {
        disk.crash();
        open(disk, FILE, "/d/a", OpenAs::Writer).expect("its name was safe");
    }

    #[test]
    fn what_was_durable_or_synced_is_there_after_a_crash_whatever_is_lost() {
        let mut torn = 0;
        for seed in 0..200 {
            let mut disk = ready(seed);
            run(&mut disk, write(0, 1, false)).outcome.expect("nothing fails");
            run(&mut disk, DiskWork::Sync { file: FILE }).outcome.expect("nothing fails");
            run(&mut disk, write(PAGE, 2, false)).outcome.expect("nothing fails");
            run(&mut disk, write(PAGE, 3, true)).outcome.expect("nothing fails");
            run(&mut disk, write(2 * PAGE, 4, false)).outcome.expect("nothing fails");
            crash(&mut disk);
            assert_eq!(bytes_at(&mut disk, 0), [1].into());
            assert_eq!(bytes_at(&mut disk, PAGE), [3].into());
            torn += usize::from(bytes_at(&mut disk, 2 * PAGE) == [0, 4].into());
        }
        assert!(torn > 0, "nothing is ever torn");
    }

    #[test]
    fn a_sync_covers_only_what_was_written_when_it_began() {
        let lost = (0..200).filter(|seed| {
            let mut disk = ready(*seed);
            begin(&mut disk, 1, write(0, 1, false));
            begin(&mut disk, 2, DiskWork::Sync { file: FILE });
            while disk.finish_one().is_some() {}
            crash(&mut disk);
            bytes_at(&mut disk, 0) != [1].into()
        });
        assert!(lost.count() > 0, "a write beside a sync is always safe");
    }

    #[test]
    fn operations_under_way_end_in_any_order_and_each_once() {
        let orders: BTreeSet<Vec<u64>> = (0..200)
            .map(|seed| {
                let mut disk = ready(seed);
                (1..4).for_each(|token| begin(&mut disk, token, write(token * PAGE, 1, true)));
                std::iter::from_fn(|| disk.finish_one()).map(|done| done.token).collect()
            })
            .collect();
        assert_eq!(orders.len(), 6);
        assert!(orders.iter().all(|order| order.len() == 3));
    }

    #[test]
    fn a_name_is_safe_when_its_directory_was_synced() {
        let kept = (0..200).filter(|seed| {
            let mut disk = ready(*seed);
            let (from, to) = (Path::new("/d/a").into(), Path::new("/d/b").into());
            run(&mut disk, DiskWork::Rename { from, to }).outcome.expect("it is there");
            disk.crash();
            let files = [("/d/a", FILE), ("/d/b", FileId(3))];
            let found =
                files.map(|(path, file)| open(&mut disk, file, path, OpenAs::Writer).is_ok());
            assert!(found[0] != found[1], "a rename is done or not");
            found[1]
        });
        assert!((1..200).contains(&kept.count()), "a rename that was not synced may be lost");
    }

    #[test]
    fn a_sync_that_fails_loses_what_was_written_before_and_the_next_one_does_not_save_it() {
        let mut disk = ready(1);
        run(&mut disk, write(0, 1, true)).outcome.expect("nothing fails");
        run(&mut disk, write(0, 2, false)).outcome.expect("nothing fails");
        disk.failures = 100;
        assert!(run(&mut disk, DiskWork::Sync { file: FILE }).outcome.is_err());
        disk.failures = 0;
        run(&mut disk, DiskWork::Sync { file: FILE }).outcome.expect("nothing fails");
        assert_eq!(bytes_at(&mut disk, 0), [2].into());
        crash(&mut disk);
        assert_eq!(bytes_at(&mut disk, 0), [1].into());
    }

    #[test]
    fn a_full_disk_takes_nothing_more_but_what_it_has_room_for() {
        let mut disk = ready(1);
        disk.bytes_max = 2 * PAGE_BYTES;
        let bytes = 2 * PAGE;
        run(&mut disk, DiskWork::Allocate { file: FILE, bytes }).outcome.expect("there is room");
        run(&mut disk, write(PAGE, 1, true)).outcome.expect("there is room");
        let error = run(&mut disk, write(2 * PAGE, 1, true)).outcome.expect_err("it is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_and_the_memory_comes_back() {
        let mut disk = ready(1);
        let whole =
            |at, bytes| DiskWork::Write { file: FILE, at, block: page(1), bytes, durable: true };
        for work in [whole(1, PAGE_BYTES), whole(0, 1), whole(0, PAGE_BYTES + 1)] {
            let done = run(&mut disk, work);
            assert_eq!(done.outcome.expect_err("it is wrong").kind(), io::ErrorKind::InvalidInput);
            assert!(done.block.is_some());
        }
        run(&mut disk, DiskWork::Close { file: FILE }).outcome.expect("it is open");
        let done = run(&mut disk, write(0, 1, true));
        assert_eq!(done.outcome.expect_err("it is closed").kind(), io::ErrorKind::InvalidInput);
        assert!(open(&mut disk, FILE, "/d/none", OpenAs::Reader).is_err());
        assert!(disk.is_idle());
    }
}
