use std::cell::RefCell;
use std::rc::Rc;

use super::super::testing::{Failures, PAGES, STREAM, TestDisk, sequences, with_message};
use super::*;

fn stage(wal: &mut Wal, sequence: u64) -> Result<Staged, StageError> {
    with_message(sequence, |record| wal.stage(STREAM, record))
}

/// Whether an operation writes a batch: labels are durable, too, and on the first page.
fn is_commit(work: &DiskWork) -> bool {
    matches!(work, DiskWork::Write { durable: true, at: 1.., .. })
}

/// Returns failures of the first `count` commits.
fn failing_commits(count: u32) -> Failures {
    let mut left = count;
    Box::new(move |work| {
        let fails = left > 0 && is_commit(work);
        left -= u32::from(fails);
        fails.then_some(io::ErrorKind::Other)
    })
}

#[test]
fn one_commit_is_on_its_way_and_what_comes_meanwhile_is_the_next() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    disk.commit(&mut wal, 0..1);
    let first = stage(&mut wal, 1).unwrap();
    wal.end_turn();
    let op = wal.next_op().expect("a commit begins");
    let later = [stage(&mut wal, 2).unwrap(), stage(&mut wal, 3).unwrap()];
    wal.end_turn();
    assert!(wal.next_op().is_none());
    wal.on_disk(disk.run(op));
    assert_eq!(wal.next_event(), Some(WalEvent::Committed(first.commit)));
    assert_eq!(later.map(|staged| staged.commit), [first.commit + 1; 2]);
    assert_eq!(disk.settle(&mut wal), [WalEvent::Committed(first.commit + 1)]);
    assert_eq!(sequences(&wal), [0, 1, 2, 3]);
    wal.end_turn();
    assert!(wal.next_op().is_none(), "nothing is left to do");
}

#[test]
fn no_page_is_written_twice_under_one_generation() {
    let mut disk = TestDisk::default();
    let written = Rc::new(RefCell::new(Vec::new()));
    let pages = Rc::clone(&written);
    disk.fails = Some(Box::new(move |work| {
        if let DiskWork::Write { file, at, bytes, .. } = work
            && is_commit(work)
        {
            let page_bytes = PAGE_BYTES as u64;
            let range = *at / page_bytes..(*at + *bytes as u64) / page_bytes;
            pages.borrow_mut().extend(range.map(|page| (*file, page)));
        }
        None
    }));
    let mut wal = disk.wal();
    let mut next = 0;
    for count in [1, 30, 70, 2, 90, 1, 1, 64] {
        disk.commit(&mut wal, next..next + count);
        next += count;
    }
    let written = written.borrow();
    let different: std::collections::BTreeSet<_> = written.iter().collect();
    assert_eq!(different.len(), written.len());
    assert!(written.len() > 8 && written.iter().all(|(_, page)| (1..PAGES).contains(page)));
}

#[test]
fn a_write_that_fails_is_done_once_more_in_a_fresh_file_and_never_again_in_its_own() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    disk.commit(&mut wal, 0..10);
    disk.fails = Some(failing_commits(1));
    disk.commit(&mut wal, 10..20);
    let failed = disk.file(0).clone();
    disk.commit(&mut wal, 20..300);
    assert!(*disk.file(0) == failed);
    assert_eq!(sequences(&disk.wal()), (0..300).collect::<Vec<_>>());
}

#[test]
fn a_log_that_fails_twice_takes_no_more_and_says_so() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    disk.commit(&mut wal, 0..10);
    disk.fails = Some(failing_commits(2));
    let number = stage(&mut wal, 10).unwrap().commit;
    assert_eq!(disk.settle(&mut wal), [WalEvent::ReadOnly(io::ErrorKind::Other)]);
    assert_eq!(wal.committed(), number - 1);
    assert_eq!(stage(&mut wal, 11), Err(StageError::ReadOnly(io::ErrorKind::Other)));
    assert_eq!(disk.settle(&mut wal), []);
}

#[test]
fn without_room_for_files_commits_wait_and_go_on_when_there_is() {
    let mut disk = TestDisk::default();
    let is_full = Rc::new(RefCell::new(true));
    let full = Rc::clone(&is_full);
    disk.fails = Some(Box::new(move |work| {
        let takes_room =
            matches!(work, DiskWork::Write { durable: false, .. } | DiskWork::Allocate { .. });
        (takes_room && *full.borrow()).then_some(io::ErrorKind::StorageFull)
    }));
    let mut wal = disk.wal();
    let staged = stage(&mut wal, 1).unwrap();
    assert_eq!(disk.settle(&mut wal), [WalEvent::NoFile(io::ErrorKind::StorageFull)]);
    assert_eq!(disk.settle(&mut wal), [], "it does not try by itself");
    is_full.replace(false);
    wal.try_again();
    assert_eq!(stage(&mut wal, 2).unwrap().commit, staged.commit, "they wait together");
    assert_eq!(disk.settle(&mut wal), [WalEvent::Committed(staged.commit)]);
}

#[test]
fn where_there_are_no_direct_operations_there_are_others() {
    let mut disk = TestDisk::default();
    disk.fails = Some(Box::new(|work| match work {
        DiskWork::Open { how: crate::disk::OpenAs::MadeDirect, .. } => {
            Some(io::ErrorKind::InvalidInput)
        }
        _ => None,
    }));
    let mut wal = disk.wal();
    disk.commit(&mut wal, 0..10);
    assert_eq!(sequences(&disk.wal()).len(), 10);
}

#[test]
fn what_no_commit_can_take_is_refused() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    let room = (usize::try_from(PAGES).unwrap() - 1) * PAGE_BYTES - BATCH_HEADER_BYTES;
    let long = vec![0; room - 16];
    assert_eq!(wal.stage(STREAM, &LogRecord::Configuration(&[0; 1])).map(|_| ()), Ok(()));
    let result = wal.stage(STREAM, &LogRecord::Configuration(&long));
    assert_eq!(result, Err(StageError::Full));
    disk.settle(&mut wal);
    let staged = wal.stage(STREAM, &LogRecord::Configuration(&long)).unwrap();
    assert_eq!(disk.settle(&mut wal), [WalEvent::Committed(staged.commit)]);
    let longer = vec![0; room - 15];
    let result = wal.stage(STREAM, &LogRecord::Configuration(&longer));
    assert_eq!(result, Err(StageError::TooLong));
}

#[test]
fn what_does_not_fit_into_a_file_with_little_in_it_waits_for_another() {
    let mut disk = TestDisk::default();
    let file_bytes = 32 * PAGE_BYTES as u64;
    let mut wal = disk.wal_with(WalSettings { file_bytes, ..super::super::testing::settings() });
    disk.commit(&mut wal, 0..1);
    let long = vec![0; 30 * PAGE_BYTES];
    let staged = wal.stage(STREAM, &LogRecord::Configuration(&long)).unwrap();
    assert_eq!(disk.settle(&mut wal), [WalEvent::Committed(staged.commit)]);
}

#[test]
fn who_publishes_is_to_wait_when_much_is_staged() {
    let mut disk = TestDisk::default();
    let settings = WalSettings { file_bytes: 8 << 20, ..super::super::testing::settings() };
    let mut wal = disk.wal_with(settings);
    let piece = vec![0; 1 << 20];
    for _ in 0..4 {
        assert!(!wal.is_full());
        wal.stage(STREAM, &LogRecord::Configuration(&piece)).unwrap();
    }
    assert!(wal.is_full());
    disk.settle(&mut wal);
    assert!(!wal.is_full());
}

#[test]
fn commits_leave_a_file_that_was_only_allocated_for_one_that_was_filled() {
    let mut disk = TestDisk::default();
    let files = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&files);
    disk.fails = Some(Box::new(move |work| {
        if let DiskWork::Write { file, .. } = work
            && is_commit(work)
        {
            seen.borrow_mut().push(*file);
        }
        None
    }));
    let settings = WalSettings { file_bytes: 8 << 20, ..super::super::testing::settings() };
    let mut wal = disk.wal_with(settings.clone());
    for sequence in 0..100 {
        disk.commit(&mut wal, sequence..sequence + 1);
    }
    let files = files.borrow();
    assert_eq!(files.iter().filter(|file| **file == files[0]).count(), 63);
    assert!(files[63..].iter().all(|file| *file == files[99]), "in one other");
    drop(wal);
    let wal = disk.wal_with(settings);
    assert_eq!(sequences(&wal), (0..100).collect::<Vec<_>>());
}
