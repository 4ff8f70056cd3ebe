use std::io;

use super::super::testing::{PAGES, TestDisk, sequences};
use super::*;
use crate::disk::DiskWork;
use crate::record::batch::BATCH_HEADER_BYTES;

/// Three batches, of sequences 0 to 9, 10 to 19 and 20 to 29, on the first three pages of a file.
fn three_batches() -> TestDisk {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    for first in [0, 10, 20] {
        disk.commit(&mut wal, first..first + 10);
    }
    disk
}

fn page(number: usize) -> usize {
    number * PAGE_BYTES
}

fn without(all: std::ops::Range<u64>, lost: &[u64]) -> Vec<u64> {
    all.filter(|sequence| !lost.contains(sequence)).collect()
}

#[test]
fn a_log_is_found_as_it_was_and_its_last_batch_is_written_once_more() {
    let mut disk = three_batches();
    let Recovered { mut wal, report } = disk.recover().unwrap();
    assert_eq!(report, RecoveryReport::default());
    assert_eq!(sequences(&wal), without(0..30, &[]));
    assert_eq!(wal.committed(), 2, "the last one may be in a cache only");
    disk.settle(&mut wal);
    assert_eq!(wal.committed(), 3);
    disk.commit(&mut wal, 30..40);
    assert_eq!(disk.files.keys().count(), 3, "the file goes on");
    let wal = disk.recover().unwrap().wal;
    assert_eq!(sequences(&wal), without(0..40, &[]));
}

#[test]
fn there_is_no_log_in_an_empty_directory_and_none_without_its_key() {
    let mut disk = TestDisk::default();
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!((sequences(&wal), report), (Vec::new(), RecoveryReport::default()));
    let mut disk = three_batches();
    for file in 1..3 {
        disk.file(file)[..PAGE_BYTES].fill(9);
    }
    assert_eq!(sequences(&disk.recover().unwrap().wal).len(), 30);
    disk.file(0)[..PAGE_BYTES].fill(9);
    assert_eq!(disk.recover().unwrap_err(), RecoveryError::KeyLost);
}

#[test]
fn a_last_batch_without_end_is_dropped_and_its_number_is_used_no_more() {
    let mut disk = three_batches();
    disk.file(0)[page(3) + 500] ^= 1;
    let Recovered { mut wal, report } = disk.recover().unwrap();
    assert_eq!((report.torn, &report.damage[..]), (Some(3), &[][..]));
    assert_eq!(sequences(&wal), without(0..20, &[]));
    let number = disk.commit(&mut wal, 50..60);
    assert!(number > 3);
    // Should it be found later, it is known that it was given up.
    disk.file(0)[page(3) + 500] ^= 1;
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(report, RecoveryReport::default());
    let expected: Vec<u64> = (0..20).chain(50..60).collect();
    assert_eq!(sequences(&wal), expected);
}

#[test]
fn what_was_acknowledged_is_kept_record_by_record_and_what_is_lost_is_reported() {
    let mut disk = three_batches();
    // Two bits, in two records of the second batch.
    disk.file(0)[page(2) + BATCH_HEADER_BYTES + 40] ^= 1;
    disk.file(0)[page(2) + 1000] ^= 1;
    let Recovered { wal, report } = disk.recover().unwrap();
    let lost: Vec<u64> = (0..30).filter(|sequence| !sequences(&wal).contains(sequence)).collect();
    assert!(lost.len() == 2 && lost[0] == 10 && lost[1] < 20, "{lost:?}");
    let damage = Damage { first: 2, last: 2, file: Some(0), kept: 8, lost_max: 2 };
    assert_eq!(report, RecoveryReport { damage: vec![damage], ..RecoveryReport::default() });
}

#[test]
fn a_batch_without_a_header_loses_nothing_but_is_reported() {
    let mut disk = three_batches();
    disk.file(0)[page(2)] ^= 1;
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(sequences(&wal), without(0..30, &[]));
    assert_eq!((report.damage[0].first, report.damage[0].kept), (2, 10));
}

#[test]
fn a_file_of_which_only_records_are_left_is_not_used_again_while_they_are_needed() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    for sequence in 0..2 * PAGES {
        disk.commit(&mut wal, sequence..sequence + 1);
    }
    for number in 1..PAGES {
        disk.file(1)[page(usize::try_from(number).unwrap())] ^= 1;
    }
    let expected = without(0..2 * PAGES, &[]);
    for _ in 0..3 {
        let mut wal = disk.wal();
        let mut found = sequences(&wal);
        found.truncate(expected.len());
        assert_eq!(found, expected);
        for sequence in 100..100 + PAGES {
            disk.commit(&mut wal, sequence..sequence + 1);
        }
    }
}

#[test]
fn a_mark_tells_damage_to_the_last_batch_from_a_commit_without_end() {
    let mut disk = three_batches();
    let mut wal = disk.wal();
    disk.settle(&mut wal);
    wal.mark_durable();
    disk.settle(&mut wal);
    wal.mark_durable();
    wal.end_turn();
    assert!(wal.next_op().is_none(), "one mark is enough");
    // Both copies of the last batch.
    disk.file(0)[page(3) + 500] ^= 1;
    disk.file(0)[page(4) + 500] ^= 1;
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(report.torn, None);
    assert_eq!((report.damage[0].first, report.damage[0].lost_max), (3, 1));
    assert_eq!(sequences(&wal).len(), 29);
}

#[test]
fn a_batch_that_vanished_between_two_files_is_missed() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    for sequence in 0..PAGES + 3 {
        disk.commit(&mut wal, sequence..sequence + 1);
    }
    // The first file has holes, and is left at its half.
    let last = PAGES / 2 - 1;
    disk.file(0)[page(usize::try_from(last).unwrap())..].fill(0);
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(sequences(&wal), without(0..PAGES + 3, &[last - 1]));
    let damage = Damage { first: last, last, file: None, kept: 0, lost_max: 1 };
    assert_eq!(report.damage, [damage], "the batch behind it tells how much was lost");
}

#[test]
fn a_copy_of_which_the_write_failed_is_written_once_more_when_no_other_is_left() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    disk.commit(&mut wal, 0..5);
    let mut is_first = true;
    disk.fails = Some(Box::new(move |work| {
        let is_commit = matches!(work, DiskWork::Write { durable: true, at: 1.., .. });
        (is_commit && std::mem::take(&mut is_first)).then_some(io::ErrorKind::Other)
    }));
    disk.commit(&mut wal, 5..10);
    disk.commit(&mut wal, 10..12);
    disk.file(1)[page(1) + 500] ^= 1;
    let Recovered { mut wal, report } = disk.recover().unwrap();
    let damage = Damage { first: 2, last: 2, file: Some(0), kept: 5, lost_max: 0 };
    assert_eq!(report.damage, [damage]);
    disk.settle(&mut wal);
    // It was in a cache only.
    disk.file(0)[page(2)..].fill(0);
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(report, RecoveryReport::default());
    assert_eq!(sequences(&wal), without(0..12, &[]));
}

#[test]
fn files_of_another_log_or_another_place_are_left_alone() {
    let mut disk = three_batches();
    let mut other = TestDisk::default();
    let mut wal = {
        let mut recovery = Recovery::new(super::super::testing::settings(), LogKey(5));
        while !recovery.is_over() {
            let op = recovery.next_op().unwrap();
            recovery.on_disk(other.run(op));
        }
        recovery.finish().unwrap().wal
    };
    other.commit(&mut wal, 900..910);
    *disk.file(1) = other.file(1).clone();
    *disk.file(2) = disk.file(0).clone();
    let (one, two) = (disk.file(1).clone(), disk.file(2).clone());
    let Recovered { mut wal, report } = disk.recover().unwrap();
    assert_eq!(report.foreign, [1, 2]);
    assert_eq!(sequences(&wal), without(0..30, &[]));
    for sequence in 30..60 {
        disk.commit(&mut wal, sequence..sequence + 1);
    }
    assert!(*disk.file(1) == one && *disk.file(2) == two);
}

#[test]
fn a_file_that_cannot_be_opened_is_not_taken_for_none() {
    let mut disk = three_batches();
    disk.fails = Some(Box::new(|work| {
        matches!(work, DiskWork::Open { .. }).then_some(io::ErrorKind::PermissionDenied)
    }));
    let denied = RecoveryError::CannotOpen(0, io::ErrorKind::PermissionDenied);
    assert_eq!(disk.recover().unwrap_err(), denied);
}

#[test]
fn a_page_that_cannot_be_read_costs_what_is_on_it() {
    let mut disk = three_batches();
    disk.fails = Some(Box::new(|work| match work {
        DiskWork::Read { at, bytes, .. } => {
            let bad = page(2) as u64;
            (*at..*at + *bytes as u64).contains(&bad).then_some(io::ErrorKind::Other)
        }
        _ => None,
    }));
    let Recovered { wal, report } = disk.recover().unwrap();
    assert_eq!(report.unreadable_pages, 3, "one in each file");
    assert_eq!((report.damage[0].first, report.damage[0].last), (2, 2));
    let expected: Vec<u64> = (0..10).chain(20..30).collect();
    assert_eq!(sequences(&wal), expected);
}

#[test]
fn a_released_file_is_used_again_and_what_was_in_it_does_not_come_back() {
    let mut disk = TestDisk::default();
    let mut wal = disk.wal();
    let mut sequence = 0;
    for _ in 0..12 {
        for _ in 0..PAGES - 1 {
            let number = disk.commit(&mut wal, sequence..sequence + 1);
            sequence += 1;
            wal.release(number.saturating_sub(4));
        }
        disk.settle(&mut wal);
        let kept = sequences(&wal);
        assert_eq!(sequences(&disk.wal()), kept, "{sequence} messages");
        wal = disk.wal();
        disk.settle(&mut wal);
    }
    assert!(disk.files.len() <= 5, "{} files", disk.files.len());
}

#[test]
fn any_change_to_a_log_leaves_one_that_can_go_on() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let mut disk = three_batches();
        for _ in 0..rng.u32(1..6) {
            let file = disk.file(rng.u32(..3));
            let (at, len) = (rng.usize(..file.len()), rng.usize(1..3000));
            let end = file.len().min(at + len);
            match rng.u8(..4) {
                0 => file[at..end].fill_with(|| rng.u8(..)),
                1 => file[at..end].fill(0),
                2 => file.truncate(at),
                _ => file.copy_within(at..end, 0),
            }
            if disk.file(0).is_empty() {
                break;
            }
        }
        let Ok(Recovered { mut wal, .. }) = disk.recover() else { continue };
        let kept = sequences(&wal);
        assert!(kept.iter().all(|sequence| *sequence < 30), "{kept:?}");
        disk.commit(&mut wal, 100..101);
        let expected: Vec<u64> = kept.into_iter().chain([100]).collect();
        assert_eq!(sequences(&disk.wal()), expected);
    }
}
