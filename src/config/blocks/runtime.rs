//! Use of the host: shards, cores, io_uring. Set by flags only.

use crate::engine::SHARDS_MAX;
use crate::host::{Placement, ShardCount, ShardsWanted, Tier, Topology};

/// Use of the host: shards, cores and polling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// The number of shards (`auto`).
    pub shards: ShardCount,
    /// The choice of a shard for a new connection (that with the fewest).
    pub seating: Seating,
    /// The io_uring tier to use (none: the best one that works here).
    pub uring_tier: Option<Tier>,
    /// Whether each shard is pinned to one core (true).
    pub pin: bool,
    /// Microseconds that a shard looks for work before it sleeps (0).
    pub busy_poll_us: u32,
    /// Microseconds that the kernel polls network cards before a shard sleeps (0).
    pub napi_us: u32,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            shards: ShardCount::Auto,
            seating: Seating::Fewest,
            uring_tier: None,
            pin: true,
            busy_poll_us: 0,
            napi_us: 0,
        }
    }
}

impl RuntimeOptions {
    /// Returns the cores of the shards on a host with this topology.
    pub fn placement(&self, topology: &Topology) -> Placement {
        Placement::plan(
            topology,
            ShardsWanted { shards: self.shards, pin: self.pin, max: SHARDS_MAX },
        )
    }
}

/// The choice of a shard for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seating {
    /// The shard with the fewest connections.
    Fewest,
    /// The shard after that of the previous connection.
    RoundRobin,
}
