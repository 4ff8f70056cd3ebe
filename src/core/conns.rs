//! The connections of a shard, by slot.

use crate::core::conn::Conn;
use crate::interest::ids::ConnId;

/// The connections of a shard by slot.
#[derive(Debug, Default)]
pub(crate) struct Conns {
    pub(crate) slots: Vec<Option<Box<Conn>>>,
}

impl Conns {
    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.at(id.slot).filter(|conn| conn.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.at_mut(id.slot).filter(|conn| conn.id == id)
    }

    pub(crate) fn at(&self, slot: u32) -> Option<&Conn> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.slots.iter_mut().flatten().map(Box::as_mut)
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.iter().map(|conn| conn.id).collect()
    }

    /// Returns the ids of the connections that are no routes.
    pub(crate) fn client_ids(&self) -> Vec<ConnId> {
        self.iter().filter(|conn| conn.link.is_none()).map(|conn| conn.id).collect()
    }
}
