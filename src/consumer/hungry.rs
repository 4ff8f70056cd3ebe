//! Consumers that wait for new messages, by the subjects that they wait for.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ConsumerConfig;
use crate::subject::is_literal;

/// Consumers that wait for new messages.
#[derive(Debug, Default)]
pub(super) struct HungryConsumers {
    /// Consumers with a filter that has wildcards, or with none.
    of_many: BTreeSet<usize>,
    /// Consumers whose filters are all subjects.
    of_subject: BTreeMap<Box<[u8]>, BTreeSet<usize>>,
}

impl HungryConsumers {
    fn is_of_many(config: &ConsumerConfig) -> bool {
        let mut filters = config.filters().peekable();
        filters.peek().is_none() || !filters.all(is_literal)
    }

    /// Enters a consumer.
    pub(super) fn insert(&mut self, at: usize, config: &ConsumerConfig) {
        if Self::is_of_many(config) {
            self.of_many.insert(at);
            return;
        }
        for filter in config.filters() {
            match self.of_subject.get_mut(filter) {
                Some(all) => drop(all.insert(at)),
                None => drop(self.of_subject.insert(filter.into(), BTreeSet::from([at]))),
            }
        }
    }

    /// Takes a consumer out.
    pub(super) fn remove(&mut self, at: usize, config: &ConsumerConfig) {
        if Self::is_of_many(config) {
            self.of_many.remove(&at);
            return;
        }
        for filter in config.filters() {
            if let Some(all) = self.of_subject.get_mut(filter) {
                all.remove(&at);
                if all.is_empty() {
                    self.of_subject.remove(filter);
                }
            }
        }
    }

    /// Whether nobody waits for particular subjects.
    pub(super) fn is_of_many_only(&self) -> bool {
        self.of_subject.is_empty()
    }

    /// Returns the consumers that wait for many subjects.
    pub(super) fn all_of_many(&self) -> impl Iterator<Item = usize> {
        self.of_many.iter().copied()
    }

    /// Returns the consumers that wait for a subject.
    pub(super) fn all_of(&self, subject: &[u8]) -> impl Iterator<Item = usize> {
        self.of_subject.get(subject).into_iter().flatten().copied()
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = usize> {
        self.all_of_many().chain(self.of_subject.values().flatten().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(filters: &[&str]) -> ConsumerConfig {
        let filter_subjects = filters.iter().map(|filter| (*filter).to_owned()).collect();
        ConsumerConfig { filter_subjects, ..ConsumerConfig::default() }
    }

    #[test]
    fn a_subject_concerns_those_that_wait_for_it_and_for_many() {
        let mut hungry = HungryConsumers::default();
        let all = [config(&[]), config(&["a", "b"]), config(&["b"]), config(&["a", "c.*"])];
        all.iter().enumerate().for_each(|(at, config)| hungry.insert(at, config));
        assert_eq!(hungry.all_of_many().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(hungry.all_of(b"b").collect::<Vec<_>>(), [1, 2]);
        hungry.remove(1, &all[1]);
        assert_eq!(hungry.all_of(b"a").count(), 0);
        assert_eq!(hungry.all().count(), 3);
        hungry.remove(2, &all[2]);
        assert!(hungry.is_of_many_only());
    }
}
