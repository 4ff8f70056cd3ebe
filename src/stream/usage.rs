//! Use of their limits by accounts, counted over all shards.

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::StorageKind;

/// Figures of one account. Each shard adds its own part.
#[derive(Debug, Default)]
pub struct AccountUsage {
    memory_bytes: AtomicU64,
    file_bytes: AtomicU64,
    /// Consumers of all streams.
    pub consumers: AtomicU64,
    /// Requests to the API since the start.
    pub api_total: AtomicU64,
    /// Requests that were answered with an error.
    pub api_errors: AtomicU64,
}

impl AccountUsage {
    fn of(&self, storage: StorageKind) -> &AtomicU64 {
        match storage {
            StorageKind::File => &self.file_bytes,
            StorageKind::Memory => &self.memory_bytes,
        }
    }

    /// Returns the bytes of all streams of a kind.
    pub fn bytes(&self, storage: StorageKind) -> u64 {
        self.of(storage).load(Ordering::Relaxed)
    }

    /// Replaces the bytes counted for a stream.
    pub fn recount(&self, storage: StorageKind, before: u64, after: u64) {
        let bytes = self.of(storage);
        if after >= before {
            bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}
