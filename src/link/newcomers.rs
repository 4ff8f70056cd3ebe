//! New links, as long as other shards may have staged runs without knowing of them.
//!
//! A run goes to each peer once, over the link that there is when its publisher's shard finds its
//! receivers. While it waits on a lane that link may end, and the next one to the same peer may
//! begin on the shard that the lane leads to. So a new link takes nothing of another shard before
//! that one has answered a barrier: what it had staged until then has come by that time. The
//! barrier goes out before any interest of the peer, so that nothing is left out which was staged
//! for the new link.

use crate::interest::ids::{ConnId, ShardId, ShardSet};

/// A link of which some shards may not have known when they staged what comes from them.
#[derive(Debug)]
struct Newcomer {
    link: ConnId,
    /// Epoch of the barrier that those shards have to answer.
    epoch: u64,
    unaware: ShardSet,
}

/// The new links of a shard; none once every other shard has answered.
#[derive(Debug, Default)]
pub(crate) struct Newcomers(Vec<Newcomer>);

impl Newcomers {
    /// Enters a link that begins: the shards of `unaware` are sent the barrier of `epoch`.
    pub(crate) fn add(&mut self, link: ConnId, epoch: u64, unaware: ShardSet) {
        if !unaware.is_empty() {
            self.0.push(Newcomer { link, epoch, unaware });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes note that a shard has answered the barrier of `epoch`, and those before it.
    pub(crate) fn on_settled(&mut self, from: ShardId, epoch: u64) {
        self.0.retain_mut(|newcomer| {
            if newcomer.epoch <= epoch {
                newcomer.unaware.remove(from);
            }
            !newcomer.unaware.is_empty()
        });
    }

    /// Takes out a link that ends.
    pub(crate) fn remove(&mut self, link: ConnId) {
        self.0.retain(|newcomer| newcomer.link != link);
    }

    /// Whether a shard may have staged a run without knowing of a link, by its slot.
    pub(crate) fn is_new(&self, slot: u32, to: ShardId) -> bool {
        self.0.iter().any(|new| new.link.slot == slot && new.unaware.contains(to))
    }
}
