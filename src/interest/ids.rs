//! Shards and connections by their numbers.

use ahash::RandomState;

use crate::proto::route::NO_CLUSTER;

/// A shard of this server, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

/// Shards of a server, at most: a [`ShardSet`] has a bit for each.
pub const SHARDS_MAX: usize = 64;

impl ShardId {
    /// Returns the shard's place in tables of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The origin of a peer's interest, and of the messages that it passes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Origin(u64);

impl Origin {
    /// The peer's own clients.
    pub(crate) const PEER: Self = Self(0);
    /// Leaf nodes that have not named their cluster: each may be in another one.
    pub(crate) const NO_CLUSTER: Self = Self(1);

    /// The leaf nodes of this cluster, if it is known.
    pub(crate) fn of_leaves(cluster: &[u8]) -> Self {
        if cluster == NO_CLUSTER.as_bytes() {
            return Self::NO_CLUSTER;
        }
        // Equal on all shards. Two clusters that share a number lose a message at worst.
        let hash = RandomState::with_seeds(0x6c65_6166, 1, 2, 3).hash_one(cluster);
        Self(hash.max(2))
    }

    /// Whether messages of this origin do not go to leaf nodes of the other: they are of one
    /// cluster, whose servers have them already.
    pub(crate) fn has_served(self, other: Self) -> bool {
        self == other && self > Self::NO_CLUSTER
    }

    pub(crate) fn of(cluster: Option<&[u8]>) -> Self {
        cluster.map_or(Self::PEER, Self::of_leaves)
    }
}

/// Another server, by a hash of its id that is equal on all shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ServerKey(u64);

impl ServerKey {
    pub(crate) fn of(server_id: &str) -> Self {
        // Two servers that share a number lose a queue message at worst.
        Self(RandomState::with_seeds(0x7365_7276, 1, 2, 3).hash_one(server_id))
    }
}

/// A set of shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    pub(crate) fn contains(self, shard: ShardId) -> bool {
        self.0 & 1 << shard.0 != 0
    }

    pub(crate) fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    pub(crate) fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }

    pub(crate) fn with(self, shard: ShardId) -> Self {
        Self(self.0 | 1 << shard.0)
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the number of shards.
    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is more than one shard in the set.
    pub(crate) fn has_several(self) -> bool {
        self.0.count_ones() > 1
    }

    /// Returns the shards, lowest first.
    #[inline]
    pub(crate) fn iter(self) -> impl Iterator<Item = ShardId> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let rest = left & left.checked_sub(1)?;
            let first = (left ^ rest).trailing_zeros();
            left = rest;
            u8::try_from(first).ok().map(ShardId)
        })
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<T: IntoIterator<Item = ShardId>>(shards: T) -> Self {
        shards.into_iter().fold(Self::default(), Self::with)
    }
}

/// A connection of some shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Publisher {
    pub(crate) shard: ShardId,
    pub(crate) conn: ConnId,
}

/// A connection of a shard: a slot, and the generation of its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Number of the slot, dense from 0; used again when the connection is wholly closed.
    pub slot: u32,
    /// Number of earlier connections in the slot.
    pub generation: u32,
}

/// An account: a namespace of subjects. All shards give it the same number, and it keeps it while
/// the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub(crate) u32);

impl AccountId {
    /// `$G`, the account of all users that are in no other one.
    pub(crate) const GLOBAL: Self = Self(0);

    /// The account with this number in the configuration.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}
