//! A store on the simulated disk, for the targets that need one.

use shardcast::store::{LogKey, Recovery, StreamStore, WalSettings};

use crate::disk::Disk;

/// Opens the log that is on the disk, as a new life of the server does. `None` if it is refused.
pub fn open(disk: &mut Disk, settings: WalSettings) -> Option<StreamStore> {
    let mut recovery = Recovery::new(settings, LogKey(5));
    while !recovery.is_over() {
        while let Some(op) = recovery.next_op() {
            disk.begin(op);
        }
        recovery.on_disk(disk.finish_one()?);
    }
    while disk.finish_one().is_some() {}
    let (mut store, _) = StreamStore::new(recovery.finish().ok()?, 1);
    while !store.is_ready() {
        while let Some(op) = store.next_op() {
            disk.begin(op);
        }
        store.on_disk(disk.finish_one()?);
    }
    Some(store)
}

/// Lets all operations come to their end.
pub fn settle(store: &mut StreamStore, disk: &mut Disk) {
    for _ in 0..10_000 {
        store.end_turn();
        while let Some(op) = store.next_op() {
            disk.begin(op);
        }
        match disk.finish_one() {
            Some(done) => store.on_disk(done),
            None => break,
        }
        while store.next_event().is_some() {}
    }
}
