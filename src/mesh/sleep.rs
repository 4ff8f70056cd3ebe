//! The handshake between a shard that falls asleep and the shards that send to it.
//!
//! The sleeper sets its flag, then looks once more; the others publish, then read the flag. A
//! fence on both sides makes sure that one of them sees the other, so no wake is lost, and taking
//! the flag makes sure that only one of them rings. `tests/loom.rs` tries every order of them.

use super::sync::{AtomicU8, Ordering, fence};

const AWAKE: u8 = 0;
/// State of a sleeping shard that records have to wake.
const ASLEEP: u8 = 1;
/// State of a sleeping shard whose own records found no room; room has to wake it, too.
const ASLEEP_BEHIND: u8 = 2;

/// The state of one shard, asleep or awake; shared by all shards.
#[derive(Debug)]
#[repr(align(128))] // Two lines: neighbours are fetched in pairs.
pub struct Sleep {
    state: AtomicU8,
}

impl Default for Sleep {
    fn default() -> Self {
        Self { state: AtomicU8::new(AWAKE) }
    }
}

impl Sleep {
    /// Announces that the shard is about to sleep, then checks with `idle` that there is no work.
    /// If there is, the shard is awake again, and the result is `false`.
    pub fn fall_asleep(&self, behind: bool, idle: impl FnOnce() -> bool) -> bool {
        self.state.store(if behind { ASLEEP_BEHIND } else { ASLEEP }, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let asleep = idle();
        if !asleep {
            self.wake();
        }
        asleep
    }

    /// Marks the shard as awake.
    pub fn wake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Whether the caller has to ring the shard after publishing to it. Other callers then need
    /// not.
    pub fn must_be_rung(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) != AWAKE
            && self.state.swap(AWAKE, Ordering::Relaxed) != AWAKE
    }

    /// Whether the caller has to ring the shard after making room for it: the shard waits for room.
    pub fn must_be_rung_for_room(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == ASLEEP_BEHIND
            && self.state.swap(AWAKE, Ordering::Relaxed) != AWAKE
    }
}
