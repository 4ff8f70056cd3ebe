//! Tests of file operations on every tier, and on a kernel that fails.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::disk::{OpenAs, PAGE_BYTES};
use crate::uring::faults::{self, Faults};
use crate::uring::tests::{on_every_tier, pattern};
use crate::uring::{ReactorOptions, TurnWait};

const FILE: FileId = FileId(7);

/// A reactor and a directory of its own.
struct Disk {
    reactor: Reactor,
    directory: tempfile::TempDir,
    next_token: u64,
}

impl Disk {
    fn new(options: &ReactorOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { reactor: Reactor::new(options).unwrap(), directory, next_token: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn begin(&mut self, what: DiskWork) -> u64 {
        self.next_token += 1;
        self.reactor.disk(DiskOp { token: self.next_token, what });
        self.next_token
    }

    fn outcomes(&mut self, count: usize) -> Vec<DiskDone> {
        let (mut events, mut done) = (Vec::new(), Vec::new());
        while done.len() < count {
            self.reactor.turn(TurnWait::Forever, &mut events).unwrap();
            done.extend(events.drain(..).filter_map(|event| match event {
                Event::Disk(done) => Some(*done),
                _ => None,
            }));
        }
        done
    }

    fn run(&mut self, what: DiskWork) -> DiskDone {
        let token = self.begin(what);
        let done = self.outcomes(1).pop().unwrap();
        assert_eq!(done.token, token);
        done
    }

    fn open(&mut self, name: &str, how: OpenAs) {
        let path = self.path(name).into();
        self.run(DiskWork::Open { file: FILE, path, how }).outcome.unwrap();
    }

    fn write(&mut self, at: u64, bytes: &[u8], durable: bool) -> io::Result<usize> {
        self.run(write(at, bytes, durable)).outcome
    }

    fn read(&mut self, at: u64, bytes: usize) -> Vec<u8> {
        let block = Block::zeroed(bytes);
        let done = self.run(DiskWork::Read { file: FILE, at, block, bytes });
        done.block.unwrap().bytes()[..done.outcome.unwrap()].to_vec()
    }
}

fn numbered(number: u64, len: usize) -> Vec<u8> {
    pattern(usize::try_from(number).unwrap(), len)
}

fn write(at: u64, bytes: &[u8], durable: bool) -> DiskWork {
    let mut block = Block::zeroed(bytes.len());
    block.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    DiskWork::Write { file: FILE, at, block, bytes: bytes.len(), durable }
}

#[test]
fn what_is_written_is_read_back() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        let data = pattern(1, 300_000);
        assert_eq!(disk.write(0, &data, false).unwrap(), data.len());
        assert_eq!(disk.write(5, b"durable", true).unwrap(), 7);
        assert_eq!(disk.read(0, 5), data[..5]);
        assert_eq!(disk.read(5, 7), b"durable");
        assert_eq!(disk.read(12, 400_000), data[12..], "a read ends where the file does");
        assert_eq!(disk.read(300_000, 10), b"");
        disk.run(DiskWork::Sync { file: FILE }).outcome.unwrap();
        let mut expected = data;
        expected[5..12].copy_from_slice(b"durable");
        assert_eq!(fs::read(disk.path("a")).unwrap(), expected);
    });
}

#[test]
fn whole_pages_go_past_the_page_cache() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        let path = disk.path("a").into();
        let how = OpenAs::MadeDirect;
        let opened = disk.run(DiskWork::Open { file: FILE, path, how });
        if opened.outcome.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
            return; // This file system has no direct operations.
        }
        opened.outcome.unwrap();
        let page = PAGE_BYTES as u64;
        disk.run(DiskWork::Allocate { file: FILE, bytes: 4 * page }).outcome.unwrap();
        assert_eq!(fs::metadata(disk.path("a")).unwrap().len(), 4 * page);
        let data = pattern(2, 2 * PAGE_BYTES);
        disk.write(page, &data, true).unwrap();
        assert_eq!(disk.read(page, 2 * PAGE_BYTES), data);
    });
}

#[test]
fn files_are_renamed_and_removed() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        disk.write(0, b"one", true).unwrap();
        let (from, to) = (disk.path("a"), disk.path("b"));
        disk.run(DiskWork::Rename { from: from.clone().into(), to: to.clone().into() })
            .outcome
            .unwrap();
        let path = disk.directory.path().into();
        let directory = FileId(8);
        disk.run(DiskWork::Open { file: directory, path, how: OpenAs::Directory }).outcome.unwrap();
        disk.run(DiskWork::Sync { file: directory }).outcome.unwrap();
        assert!(!from.exists());
        assert_eq!(fs::read(&to).unwrap(), b"one");
        disk.run(DiskWork::Remove { path: to.clone().into() }).outcome.unwrap();
        assert!(!to.exists());
        let gone = disk.run(DiskWork::Remove { path: to.into() }).outcome.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_file_that_is_not_there_or_not_open_is_an_error_and_the_memory_comes_back() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        let path: Box<Path> = disk.path("none").into();
        for how in [OpenAs::Reader, OpenAs::Writer, OpenAs::Directory] {
            let done = disk.run(DiskWork::Open { file: FILE, path: path.clone(), how });
            assert_eq!(done.outcome.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        let done = disk.run(write(0, b"lost", true));
        assert_eq!(done.outcome.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(&done.block.unwrap().bytes()[..4], b"lost");
        let closed = disk.run(DiskWork::Close { file: FILE }).outcome.unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::InvalidInput);
        disk.open("a", OpenAs::Made);
        let block = Block::zeroed(10);
        let bytes = block.len() + 1;
        let done = disk.run(DiskWork::Read { file: FILE, at: 0, block, bytes });
        assert_eq!(done.outcome.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(done.block.is_some());
    });
}

#[test]
fn a_file_that_is_closed_meanwhile_is_written_to_the_end() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        let data = pattern(3, 1_000_000);
        let writing = disk.begin(write(0, &data, true));
        disk.begin(DiskWork::Close { file: FILE });
        let done = disk.outcomes(2);
        let written = done.iter().find(|done| done.token == writing).unwrap();
        assert_eq!(*written.outcome.as_ref().unwrap(), data.len());
        assert_eq!(fs::read(disk.path("a")).unwrap(), data);
    });
}

#[test]
fn more_durable_writes_at_once_than_the_queue_has_entries() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&ReactorOptions { entries: 4, ..options });
        disk.open("a", OpenAs::Made);
        let tokens: Vec<u64> =
            (0..100).map(|n| disk.begin(write(10 * n, &numbered(n, 10), true))).collect();
        let mut done: Vec<u64> = disk
            .outcomes(100)
            .into_iter()
            .map(|done| {
                assert_eq!(done.outcome.unwrap(), 10);
                done.token
            })
            .collect();
        done.sort_unstable();
        assert_eq!(done, tokens);
        let expected: Vec<u8> = (0..100).flat_map(|n| pattern(n, 10)).collect();
        assert_eq!(fs::read(disk.path("a")).unwrap(), expected);
    });
}

#[test]
fn a_write_that_comes_out_short_goes_on_and_is_durable_as_a_whole() {
    on_every_tier(|options| {
        let short = Faults { short_send: Box::new(|| true), ..Faults::default() };
        let _guard = faults::arm(short);
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        let data = pattern(4, 60);
        assert_eq!(disk.write(3, &data, true).unwrap(), 60);
        assert_eq!(disk.read(3, 60), data);
    });
}

#[test]
fn an_interruption_is_not_an_error() {
    on_every_tier(|options| {
        let mut count = 0;
        let operation = move |kind| {
            count += 1;
            let is_of_disk = matches!(kind, TokenKind::Disk | TokenKind::DiskSync);
            (is_of_disk && count % 3 != 0).then_some(libc::EINTR)
        };
        let _guard = faults::arm(Faults { operation: Box::new(operation), ..Faults::default() });
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        for at in 0..50 {
            assert_eq!(disk.write(at * 9, &numbered(at, 9), at % 2 == 0).unwrap(), 9);
        }
        let expected: Vec<u8> = (0..50).flat_map(|n| pattern(n, 9)).collect();
        assert_eq!(disk.read(0, 1000), expected);
    });
}

#[test]
fn who_is_always_interrupted_is_told_in_the_end() {
    on_every_tier(|options| {
        let always = |kind| matches!(kind, TokenKind::Disk).then_some(libc::EINTR);
        let _guard = faults::arm(Faults { operation: Box::new(always), ..Faults::default() });
        let mut disk = Disk::new(&options);
        let path = disk.path("a").into();
        let done = disk.run(DiskWork::Open { file: FILE, path, how: OpenAs::Made });
        assert_eq!(done.outcome.unwrap_err().kind(), io::ErrorKind::Interrupted);
    });
}

#[test]
fn a_durable_write_fails_if_its_write_or_its_sync_does() {
    on_every_tier(|options| {
        for (failing, errno) in [(TokenKind::Disk, libc::ENOSPC), (TokenKind::DiskSync, libc::EIO)]
        {
            let mut disk = Disk::new(&options);
            disk.open("a", OpenAs::Made);
            let operation = move |kind| (kind == failing).then_some(errno);
            let _guard =
                faults::arm(Faults { operation: Box::new(operation), ..Faults::default() });
            let done = disk.run(write(0, b"12345678", true));
            assert_eq!(done.outcome.unwrap_err().raw_os_error(), Some(errno));
            assert_eq!(&done.block.unwrap().bytes()[..8], b"12345678");
        }
    });
}

#[test]
fn a_kernel_that_takes_some_and_not_all_of_a_turn_makes_links_doubtful() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        let before = disk.reactor.ring.cuts();
        disk.begin(write(0, b"12345678", true));
        disk.reactor.ring.look_for_cuts(2, 0);
        assert_eq!(disk.reactor.ring.cuts(), before, "what was not begun is not cut");
        disk.reactor.ring.look_for_cuts(2, 1);
        assert_eq!(disk.reactor.ring.cuts(), before + 1);
        assert_eq!(disk.outcomes(1).pop().unwrap().outcome.unwrap(), 8);
        disk.reactor.ring.look_for_cuts(2, 1);
        assert_eq!(disk.reactor.ring.cuts(), before + 1, "no link is in the queue");
    });
}

#[test]
fn a_reactor_that_goes_waits_for_its_disk() {
    on_every_tier(|options| {
        let mut disk = Disk::new(&options);
        disk.open("a", OpenAs::Made);
        for at in 0..20 {
            disk.begin(write(at * 100_000, &numbered(at, 100_000), at % 2 == 0));
        }
        let mut events = Vec::new();
        disk.reactor.turn(TurnWait::No, &mut events).unwrap();
        let Disk { reactor, directory, .. } = disk;
        drop(reactor);
        assert!(directory.path().join("a").exists());
    });
}
