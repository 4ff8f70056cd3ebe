//! Ids of messages that were stored lately.

use std::collections::VecDeque;

use ahash::RandomState;
use hashbrown::HashMap;

/// Ids that one stream remembers; then the oldest ones are forgotten before their time.
pub(super) const IDS_MAX: usize = 4 << 20;

/// Ids of a window of time, each as a hash of 128 bits whose key is secret.
#[derive(Debug)]
pub(super) struct Dedupe {
    sequences: HashMap<u128, u64, RandomState>,
    /// Ids in order of their times.
    order: VecDeque<(u64, u128)>,
    hashers: [RandomState; 2],
}

impl Dedupe {
    pub(super) fn new(seed: u64) -> Self {
        let hasher = |number: u64| {
            let seed = seed ^ number;
            RandomState::with_seeds(seed, !seed, seed.rotate_left(17), number)
        };
        let sequences = HashMap::with_hasher(hasher(3));
        Self { sequences, order: VecDeque::new(), hashers: [hasher(1), hasher(2)] }
    }

    fn hash(&self, id: &[u8]) -> u128 {
        let [low, high] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(id)));
        high << 64 | low
    }

    /// The sequence of the message with this id that was stored after `oldest`.
    pub(super) fn find(&mut self, id: &[u8], oldest: u64) -> Option<u64> {
        if self.order.is_empty() {
            return None;
        }
        self.forget_before(oldest);
        self.sequences.get(&self.hash(id)).copied()
    }

    /// Remembers an id; its time is no earlier than that of the others.
    pub(super) fn insert(&mut self, id: &[u8], sequence: u64, time: u64) {
        let hash = self.hash(id);
        self.sequences.insert(hash, sequence);
        self.order.push_back((time, hash));
        if self.order.len() > IDS_MAX {
            self.forget_first();
        }
    }

    /// Remembers an id whose time is no later than that of the others.
    pub(super) fn insert_before(&mut self, id: &[u8], sequence: u64, time: u64) {
        let hash = self.hash(id);
        if self.order.len() < IDS_MAX && !self.sequences.contains_key(&hash) {
            self.sequences.insert(hash, sequence);
            self.order.push_front((time, hash));
        }
    }

    /// Forgets ids of messages up to this time.
    pub(super) fn forget_before(&mut self, time: u64) {
        while self.order.front().is_some_and(|(stored, _)| *stored <= time) {
            self.forget_first();
        }
        if self.order.is_empty() && self.sequences.capacity() > 1024 {
            (self.sequences, self.order) =
                (HashMap::with_hasher(self.sequences.hasher().clone()), VecDeque::new());
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.sequences.remove(&hash);
        }
    }

    /// Time of the first id.
    #[cfg(test)]
    pub(super) fn oldest(&self) -> Option<u64> {
        self.order.front().map(|(time, _)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_for_its_time_and_no_longer() {
        let mut dedupe = Dedupe::new(7);
        dedupe.insert(b"b", 2, 20);
        dedupe.insert(b"c", 3, 30);
        dedupe.insert_before(b"a", 1, 10);
        assert_eq!(dedupe.oldest(), Some(10));
        assert_eq!([&b"a"[..], b"b", b"x"].map(|id| dedupe.find(id, 9)), [Some(1), Some(2), None]);
        assert_eq!([&b"a"[..], b"b", b"c"].map(|id| dedupe.find(id, 10)), [None, Some(2), Some(3)]);
        assert_eq!(dedupe.find(b"c", 30), None);
        assert_eq!(dedupe.oldest(), None);
    }
}
