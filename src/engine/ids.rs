//! Shards and connections by their numbers.

#![forbid(unsafe_code)]

use ahash::RandomState;

use super::conn::Conn;

/// A shard of this server, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

/// More shards than this cannot be told apart in a [`ShardSet`].
pub const SHARDS_MAX: usize = 64;

impl ShardId {
    /// Its place in tables of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Whose interest it is that a peer speaks of, and whose messages it passes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Origin(u64);

impl Origin {
    /// Its own clients'.
    pub(super) const PEER: Self = Self(0);

    /// That of leaf nodes of this cluster, if it is known.
    pub(super) fn of_leaves(cluster: &[u8]) -> Self {
        // Equal on all shards. Two clusters that share a number lose a queue message at worst.
        let hash = RandomState::with_seeds(0x6c65_6166, 1, 2, 3).hash_one(cluster);
        Self(hash.max(1))
    }

    pub(super) fn of(cluster: Option<&[u8]>) -> Self {
        cluster.map_or(Self::PEER, Self::of_leaves)
    }
}

/// A set of shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    pub(super) fn contains(self, shard: ShardId) -> bool {
        self.0 & 1 << shard.0 != 0
    }

    pub(super) fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    pub(super) fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }

    pub(super) fn with(self, shard: ShardId) -> Self {
        Self(self.0 | 1 << shard.0)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..64).filter(move |shard| self.0 & 1 << shard != 0).map(ShardId)
    }
}

/// A connection of a shard: a slot, and which life of that slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Dense from 0; used again when the connection is wholly closed.
    pub slot: u32,
    /// Counts the lives of the slot.
    pub generation: u32,
}

/// The connections of a shard by slot.
#[derive(Debug, Default)]
pub(super) struct Conns(pub(super) Vec<Option<Box<Conn>>>);

impl Conns {
    pub(super) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.at(id.slot).filter(|conn| conn.id == id)
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.at_mut(id.slot).filter(|conn| conn.id == id)
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Conn> {
        self.0.get(slot as usize)?.as_deref()
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        self.0.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.0.iter().flatten().map(Box::as_ref)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.0.iter_mut().flatten().map(Box::as_mut)
    }

    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.iter().map(|conn| conn.id).collect()
    }

    /// Those that are no routes.
    pub(super) fn client_ids(&self) -> Vec<ConnId> {
        self.iter().filter(|conn| conn.route.is_none()).map(|conn| conn.id).collect()
    }
}
