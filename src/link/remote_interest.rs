//! Remote interest (interest of peers), and the bound of its memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use ahash::RandomState;

use crate::proto::route::{self as wire, Form, InterestEntry};

// Measured in tests/live/route_peers.rs, with tables that have just grown:
// `interest_of_a_peer_takes_about_as_much_memory_as_is_counted_for_it`.

/// Bytes that a filter takes on the shard of its link besides twice its text: its place among the
/// peer's others, in the table of interest, and its list of links (48 bytes for the first of them).
const INTEREST_BYTES: usize = 224;

/// Bytes that a filter takes on each other shard besides its text.
const FILTER_BYTES: usize = 144;

/// Bytes that a queue group takes on each shard besides its name, which is part of the text.
const QUEUE_BYTES: usize = 184;

/// Memory that remote interest may have in any case, in bytes: a mesh needs its interest however
/// little memory there is.
pub(crate) const REMOTE_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Memory of all remote interest on all shards of a server, in bytes, counted by all shards
/// together: one peer may announce all of it to one shard.
#[derive(Debug, Clone, Default)]
pub struct RemoteInterestBytes(Arc<AtomicUsize>);

impl RemoteInterestBytes {
    /// Adds `bytes`. Returns the new total.
    pub(crate) fn add(&self, bytes: usize) -> usize {
        self.0.fetch_add(bytes, Relaxed) + bytes
    }

    pub(crate) fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }

    /// Returns the total, in bytes.
    pub(crate) fn total(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A filter of a peer's interest, kept for later.
#[derive(Debug)]
pub(crate) struct Known {
    /// Whether the interest is of leaf nodes behind the peer, not of its own clients.
    is_of_leaves: bool,
    key: Box<[u8]>,
}

impl Known {
    pub(crate) fn of(entry: &InterestEntry<'_>) -> Self {
        Self { is_of_leaves: entry.origin.is_some(), key: entry.key.into() }
    }

    /// Returns the filter as a peer that writes in this form has sent it.
    pub(crate) fn parse(&self, form: Form) -> Option<InterestEntry<'_>> {
        wire::parse_entry(&self.key, self.is_of_leaves, form)
    }
}

/// The interest of one peer, by its text on the wire.
#[derive(Debug)]
pub(crate) struct RemoteInterest {
    /// Texts for the peer's own clients, and for leaf nodes behind it.
    keys: [HashSet<Box<[u8]>, RandomState>; 2],
}

impl RemoteInterest {
    pub(crate) fn new(hasher: &RandomState) -> Self {
        Self { keys: [(); 2].map(|()| HashSet::with_hasher(hasher.clone())) }
    }

    /// Returns the bytes that an entry takes on `shards` shards.
    pub(crate) fn cost_bytes(entry: &InterestEntry<'_>, shards: usize) -> usize {
        let filter = if entry.queue.is_some() { QUEUE_BYTES } else { 0 } + entry.key.len();
        let others = shards.saturating_sub(1) * (filter + FILTER_BYTES);
        filter + entry.key.len() + INTEREST_BYTES + others
    }

    /// Enters a filter; `false` if it was known.
    pub(crate) fn insert(&mut self, entry: &InterestEntry<'_>) -> bool {
        let keys = &mut self.keys[usize::from(entry.origin.is_some())];
        let is_new = !keys.contains(entry.key);
        if is_new {
            keys.insert(entry.key.into());
        }
        is_new
    }

    /// Removes a filter; `false` if it was not there.
    pub(crate) fn remove(&mut self, entry: &InterestEntry<'_>) -> bool {
        self.keys[usize::from(entry.origin.is_some())].remove(entry.key)
    }

    /// Removes up to `count` filters and returns them.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Known> {
        let [own, leaves] = &mut self.keys;
        let own = own.extract_if(|_| true).map(|key| Known { is_of_leaves: false, key });
        let leaves = leaves.extract_if(|_| true).map(|key| Known { is_of_leaves: true, key });
        own.chain(leaves).take(count).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.iter().map(HashSet::len).sum()
    }

    /// Returns the number of filters with an origin.
    pub(crate) fn len_with_origin(&self) -> usize {
        self.keys[1].len()
    }

    /// Returns all filters, from a peer that writes in this form.
    pub(crate) fn iter(&self, form: Form) -> impl Iterator<Item = InterestEntry<'_>> {
        let [own, leaves] = &self.keys;
        let own = own.iter().filter_map(move |key| wire::parse_entry(key, false, form));
        own.chain(leaves.iter().filter_map(move |key| wire::parse_entry(key, true, form)))
    }
}

/// Returns the log message for peers with more interest than `bytes_max`.
pub(crate) fn too_much(bytes_max: usize) -> String {
    let mib = bytes_max / 1024 / 1024;
    format!(
        "Interest of the cluster's servers takes more than {mib} MiB, three quarters of the \
         memory: add memory, use fewer shards (--shards), or accept less interest \
         (cluster.permissions.export)"
    )
}
