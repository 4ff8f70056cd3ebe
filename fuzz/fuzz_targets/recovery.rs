//! A log whose files were changed: it is found again or refused, no message is made up, and it
//! takes further ones, which are there after the next start.
//!
//! Of the input, each six bytes are a change: a file, its kind, a place, a length and a byte.

#![no_main]

#[allow(dead_code, reason = "the simulators use the rest")]
#[path = "../../tests/sim/disk.rs"]
mod disk;
#[path = "../store.rs"]
mod store;

use std::path::Path;

use disk::Disk;
use libfuzzer_sys::fuzz_target;
use shardcast::disk::PAGE_BYTES;
use shardcast::store::{LogRecord, NewMessage, StreamHome, StreamId, StreamStore, WalSettings};
use store::settle;

const STREAM: StreamId = StreamId(1);
const PAGES: usize = 9;

fn payload(sequence: u64) -> Vec<u8> {
    format!("{sequence},").repeat(sequence as usize % 300).into_bytes()
}

fn append(store: &mut StreamStore) -> Option<u64> {
    let sequence = store.stream(STREAM)?.next_sequence();
    let (subject, payload) = (format!("s.{}", sequence % 5), payload(sequence));
    let (subject, payload) = (subject.as_bytes(), &payload[..]);
    let message = NewMessage { time: sequence, flags: 0, subject, headers: b"", payload };
    store.append(STREAM, &message).ok().map(|appended| appended.sequence)
}

fn open(disk: &mut Disk, life: u32) -> Option<StreamStore> {
    let settings = WalSettings {
        directory: Path::new("/d").into(),
        file_bytes: (PAGES * PAGE_BYTES) as u64,
        first_file: life * 200_000,
        first_token: 0,
        memory_bytes: 20_000,
    };
    store::open(disk, settings)
}

/// A log of some files, with messages that were removed, and files that were used again.
fn written() -> Disk {
    let mut disk = Disk::new(1);
    let mut store = open(&mut disk, 0).expect("nothing fails");
    store.configure(STREAM, StreamHome::Log, b"configuration").expect("there is room");
    for number in 1..90 {
        append(&mut store);
        if number % 7 == 0 {
            store.remove(STREAM, &[number - 3]).expect("there is room");
        }
        if number == 40 {
            store.purge(STREAM, 35).expect("there is room");
            store.checkpoint().expect("there is room");
        }
        if number % 2 == 0 {
            settle(&mut store, &mut disk);
        }
    }
    settle(&mut store, &mut disk);
    disk.crash();
    disk
}

fuzz_target!(|bytes: &[u8]| {
    let mut disk = written();
    for change in bytes.chunks_exact(6).take(40) {
        let place = usize::from(change[2]) * 256 + usize::from(change[3]) * 8;
        let len = usize::from(change[4]) + 1;
        let (file, from) = (usize::from(change[0]), usize::from(change[5]));
        match change[1] % 4 {
            0 => disk.scribble(file, place, &vec![change[5]; len]),
            1 => disk.scribble(file, place & !511, &[0; 512]),
            // A page that got elsewhere, or an old one.
            2 => disk.copy_page(file, place / PAGE_BYTES, from % PAGES),
            _ => disk.scribble(file, place, &vec![0; len * 16]),
        }
    }
    let Some(mut store) = open(&mut disk, 1) else { return };
    settle(&mut store, &mut disk);
    let Some(index) = store.stream(STREAM) else { return };
    let last = index.next_sequence() - 1;
    for sequence in 1..=last {
        let Some(LogRecord::Message(message)) =
            store.get(STREAM, sequence).map(|at| at.decoded.record)
        else {
            continue;
        };
        assert_eq!(message.sequence, sequence);
        assert_eq!(message.payload, payload(sequence), "{sequence} was never written");
    }
    let Some(sequence) = append(&mut store) else { return };
    assert!(sequence > last);
    settle(&mut store, &mut disk);
    if store.wal().committed() == 0 {
        return;
    }
    disk.crash();
    let mut store = open(&mut disk, 2).expect("it was found before");
    settle(&mut store, &mut disk);
    store.load(STREAM, sequence);
    settle(&mut store, &mut disk);
    assert!(store.get(STREAM, sequence).is_some(), "{sequence} was acknowledged");
});
